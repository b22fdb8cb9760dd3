//! `[posture]` in `node.toml`: whether the machine reports, its endpoint agents, its marker, its checks.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use postern_common::{diagnostics::HumanDuration, id::FactName, key::MarkerPublicKey};
use serde::Deserialize;

/// The shortest time from one run of a check to the next.
pub const MIN_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The longest time that a check may take.
pub const MAX_CHECK_TIMEOUT: Duration = Duration::from_secs(300);

/// What the owner of the machine says of its posture.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PostureConfig {
    /// Whether the machine reports its posture when its controller asks.
    pub report: bool,
    /// The file that device management signed for this device.
    pub marker: Option<MarkerConfig>,
    /// Endpoint agents, by the names that policies use.
    pub agents: BTreeMap<FactName, AgentConfig>,
    /// Checks by command, by the names that policies use.
    pub checks: BTreeMap<FactName, CheckConfig>,
}

impl Default for PostureConfig {
    fn default() -> Self {
        Self { report: true, marker: None, agents: BTreeMap::new(), checks: BTreeMap::new() }
    }
}

/// The file that device management signed for this device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarkerConfig {
    /// The file; its signature is beside it, with `.sig` at its end.
    pub file: PathBuf,
    /// The Ed25519 key that signs, base 64.
    pub key: MarkerPublicKey,
}

/// An endpoint agent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// Its executable.
    pub exe: Option<PathBuf>,
    /// Its systemd unit.
    pub unit: Option<String>,
}

/// A check by command.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckConfig {
    /// The program, by its absolute path, and its arguments.
    pub command: Vec<String>,
    /// The user as whom it runs.
    #[serde(default = "nobody")]
    pub user: String,
    /// How often it runs.
    #[serde(default = "a_minute")]
    pub every: HumanDuration,
    /// How long it may take.
    #[serde(default = "ten_seconds")]
    pub timeout: HumanDuration,
}

fn nobody() -> String {
    "nobody".into()
}

fn a_minute() -> HumanDuration {
    HumanDuration::new(Duration::from_secs(60))
}

fn ten_seconds() -> HumanDuration {
    HumanDuration::new(Duration::from_secs(10))
}

impl PostureConfig {
    /// Finds what the section cannot mean.
    ///
    /// # Errors
    /// The mistake, for the person who wrote it.
    pub fn check(&self) -> Result<(), String> {
        use postern_common::posture::facts::MAX_NAMED;
        if self.agents.len() > MAX_NAMED || self.checks.len() > MAX_NAMED {
            return Err(format!("posture: at most {MAX_NAMED} agents and {MAX_NAMED} checks are reported"));
        }
        if let Some(marker) = &self.marker
            && !marker.file.is_absolute()
        {
            return Err(format!("posture.marker.file {} is not an absolute path", marker.file.display()));
        }
        for (name, agent) in &self.agents {
            if agent.exe.is_none() && agent.unit.is_none() {
                return Err(format!("posture.agents.{name} has neither `exe` nor `unit`: how is it known?"));
            }
            if agent.exe.as_ref().is_some_and(|exe| !exe.is_absolute()) {
                return Err(format!("posture.agents.{name}.exe is not an absolute path"));
            }
            if agent.unit.as_ref().is_some_and(|unit| unit.is_empty() || unit.contains('/')) {
                return Err(format!("posture.agents.{name}.unit is not a unit's name, such as \"edr.service\""));
            }
        }
        for (name, check) in &self.checks {
            if !check.command.first().is_some_and(|program| program.starts_with('/')) {
                return Err(format!("posture.checks.{name}.command does not begin with an absolute path"));
            }
            if check.every.get() < MIN_CHECK_INTERVAL {
                return Err(format!("posture.checks.{name}.every is shorter than {} s", MIN_CHECK_INTERVAL.as_secs()));
            }
            if check.timeout.get().is_zero() || check.timeout.get() > MAX_CHECK_TIMEOUT {
                let longest = MAX_CHECK_TIMEOUT.as_secs();
                return Err(format!("posture.checks.{name}.timeout is not between 1 ms and {longest} s"));
            }
        }
        Ok(())
    }
}
