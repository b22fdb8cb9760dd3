//! `[platform]` of `node.toml`: a service that signs in by a token of the platform that it runs on.

use std::path::PathBuf;

use postern_common::id::MachineName;
use serde::Deserialize;

use crate::agent::target::ControllerTarget;

/// Where tokens come from, and whom the machine joins with them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlatformConfig {
    /// The file into which the platform writes them.
    pub token_file: Option<PathBuf>,
    /// The audience to ask GitHub Actions for.
    pub github_audience: Option<String>,
    /// The controller that the machine joins by itself, as the join link has it.
    pub join: Option<ControllerTarget>,
    /// The name that the machine would like; its host name if absent.
    pub name: Option<MachineName>,
}

impl PlatformConfig {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.token_file.is_some() && self.github_audience.is_some() {
            return Err("[platform] names two sources of tokens: write `token_file` or `github_audience`".into());
        }
        if let Some(path) = self.token_file.as_ref().filter(|path| !path.is_absolute()) {
            return Err(format!("platform.token_file {} is not an absolute path", path.display()));
        }
        if self.github_audience.as_ref().is_some_and(String::is_empty) {
            return Err("platform.github_audience is empty: write the audience that the controller takes".into());
        }
        let source = self.token_file.is_some() || self.github_audience.is_some();
        if !source && (self.join.is_some() || self.name.is_some()) {
            return Err("[platform] names no source of tokens: add `token_file` or `github_audience`".into());
        }
        Ok(())
    }
}
