//! `[alerts]` in `controller.toml`.

use std::path::{Path, PathBuf};

use postern_common::diagnostics::HumanDuration;
use serde::Deserialize;

/// Where alerts go.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlertSettings {
    /// Where alerts are posted: `https://...`, or `http://127.0.0.1...` on this machine.
    pub webhook: Option<String>,
    /// A file with the secret that signs what is posted; required with `webhook`.
    pub secret_file: Option<PathBuf>,
    /// PEM certificates that vouch for the receiver, beside the system's roots.
    pub ca_file: Option<PathBuf>,
    /// A file to which each alert is appended as a line of JSON.
    pub log: Option<PathBuf>,
    /// After how long without use a subject or device is dormant.
    pub dormant_after: HumanDuration,
    /// For how long after its first use by a service everything that it uses is taken as usual.
    pub learn_for: HumanDuration,
}

impl Default for AlertSettings {
    fn default() -> Self {
        let dormant_after = HumanDuration::new(std::time::Duration::from_secs(30 * 86_400));
        let learn_for = HumanDuration::new(std::time::Duration::from_secs(86_400));
        Self { webhook: None, secret_file: None, ca_file: None, log: None, dormant_after, learn_for }
    }
}

impl AlertSettings {
    /// Resolves paths, which are relative to the configuration file.
    pub(crate) fn based_on(self, base: &Path) -> Self {
        let place = |path: Option<PathBuf>| path.map(|path| base.join(path));
        let (secret_file, ca_file, log) = (place(self.secret_file), place(self.ca_file), place(self.log));
        Self { secret_file, ca_file, log, ..self }
    }

    /// Says what does not fit together.
    pub(crate) fn mistakes(&self) -> Option<&'static str> {
        match (&self.webhook, &self.secret_file) {
            (Some(url), _) if !is_private(url) => {
                Some("`webhook` in [alerts] must begin with https:// (http://127.0.0.1 on this machine)")
            }
            (Some(_), None) => Some("`webhook` in [alerts] needs `secret_file`: what is posted is signed"),
            (Some(_) | None, _) => None,
        }
    }
}

/// Tells whether what is posted there stays unread on its way: TLS, or this machine.
fn is_private(url: &str) -> bool {
    let Ok(url) = url::Url::parse(url) else { return false };
    url.scheme() == "https" || (url.scheme() == "http" && url.host_str() == Some("127.0.0.1"))
}
