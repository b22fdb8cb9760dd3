//! What can be known of a device.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::version::{Distribution, Version};
use crate::{id::FactName, time::WallTime};

/// The most endpoint agents, and the most checks by command, of one device.
pub const MAX_NAMED: usize = 32;
/// The most bytes of a text in a fact: with the longest of each a report still fits into [`MAX_POSTURE_BYTES`](super::MAX_POSTURE_BYTES).
pub const MAX_TEXT: usize = 120;

/// An operating system that a requirement can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OsKind {
    /// Linux.
    Linux,
    /// Apple macOS.
    Macos,
    /// Microsoft Windows.
    Windows,
    /// Anything else.
    Other,
}

/// A kind of fact, by the word that `[posture.NAME]` uses for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FactKind {
    /// Whether the disk that holds the system and the homes is encrypted.
    DiskEncrypted,
    /// Whether a host firewall is on.
    Firewall,
    /// Whether the screen locks by itself.
    ScreenLock,
    /// Whether the machine started by Secure Boot.
    SecureBoot,
    /// The operating system, its kernel and its distribution.
    Os,
    /// How many security updates wait.
    SecurityUpdates,
    /// Who manages the machine, by a signed marker.
    ManagedBy,
    /// Endpoint agents that run.
    Agents,
    /// Checks by command.
    Checks,
    /// Whether the machine's management finds it as it wants it: its word alone, never the device's own.
    Compliant,
}

impl FactKind {
    /// Every kind, in the order of their declaration.
    pub const ALL: [Self; 10] = [
        Self::DiskEncrypted,
        Self::Firewall,
        Self::ScreenLock,
        Self::SecureBoot,
        Self::Os,
        Self::SecurityUpdates,
        Self::ManagedBy,
        Self::Agents,
        Self::Checks,
        Self::Compliant,
    ];

    /// Returns the word of the policy.
    pub const fn word(self) -> &'static str {
        match self {
            Self::DiskEncrypted => "disk_encrypted",
            Self::Firewall => "firewall",
            Self::ScreenLock => "screen_lock",
            Self::SecureBoot => "secure_boot",
            Self::Os => "os",
            Self::SecurityUpdates => "security_updates",
            Self::ManagedBy => "managed_by",
            Self::Agents => "agents",
            Self::Checks => "checks",
            Self::Compliant => "compliant",
        }
    }
}

/// What came of a command that an administrator named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// Whether it ended with exit code 0.
    pub passed: bool,
    /// The first line of what it printed, cut to [`MAX_TEXT`] bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub said: String,
    /// How long before the report it was run, seconds.
    #[serde(default)]
    pub age_s: u32,
}

/// What a device says of itself, or a device-management system of a device. An absent fact is unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Whether the disk that holds the system and the homes is encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_encrypted: Option<bool>,
    /// Whether a host firewall is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firewall: Option<bool>,
    /// Whether the screen locks by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub screen_lock: Option<bool>,
    /// Whether the machine started by Secure Boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secure_boot: Option<bool>,
    /// The operating system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<OsKind>,
    /// The kernel's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Version>,
    /// The Linux distribution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distribution: Option<Distribution>,
    /// How many security updates wait to be installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security_updates: Option<u32>,
    /// Who manages the machine, as a marker file says that was signed for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub managed_by: Option<FactName>,
    /// Endpoint agents by the name that the machine's administrator gave them, and whether each runs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub agents: BTreeMap<FactName, bool>,
    /// Checks by command, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: BTreeMap<FactName, CheckResult>,
    /// Whether the machine's management finds it as it wants it. What a device says of that itself counts for nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compliant: Option<bool>,
    /// The serial number that the machine's firmware tells: for people who bind it, no requirement looks at it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

impl Facts {
    /// The names of the facts in JSON, for whoever must not misspell one. What is stored may hold names of another version.
    pub const NAMES: [&'static str; 13] = [
        "disk_encrypted",
        "firewall",
        "screen_lock",
        "secure_boot",
        "os",
        "kernel",
        "distribution",
        "security_updates",
        "managed_by",
        "agents",
        "checks",
        "compliant",
        "serial",
    ];

    /// Joins two sets of facts; where both speak, `other` counts.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        self.agents.extend(other.agents);
        self.checks.extend(other.checks);
        Self {
            disk_encrypted: other.disk_encrypted.or(self.disk_encrypted),
            firewall: other.firewall.or(self.firewall),
            screen_lock: other.screen_lock.or(self.screen_lock),
            secure_boot: other.secure_boot.or(self.secure_boot),
            os: other.os.or(self.os),
            kernel: self.kernel.max(other.kernel),
            distribution: other.distribution.or(self.distribution),
            security_updates: other.security_updates.or(self.security_updates),
            managed_by: other.managed_by.or(self.managed_by),
            compliant: other.compliant.or(self.compliant),
            serial: other.serial.or(self.serial),
            agents: self.agents,
            checks: self.checks,
        }
    }

    /// Tells whether the facts are the same, whatever the age of each.
    pub fn same_state(&self, other: &Self) -> bool {
        let ageless = |facts: &Self| {
            let mut facts = facts.clone();
            facts.checks.values_mut().for_each(|check| check.age_s = 0);
            facts
        };
        self == other || ageless(self) == ageless(other)
    }

    /// Returns what holds by two reports of which nobody knows which is the newer: of what is on or off the worse, and of everything else
    /// what both say. Whatever only one of them knows is unknown.
    #[must_use]
    pub fn agreed(&self, other: &Self) -> Self {
        fn same<T: PartialEq + Clone>(one: &Option<T>, other: &Option<T>) -> Option<T> {
            one.clone().filter(|_| one == other)
        }
        let both = |one: Option<bool>, other: Option<bool>| one.zip(other).map(|(one, other)| one && other);
        let agents = self.agents.iter();
        let checks = self.checks.iter();
        Self {
            disk_encrypted: both(self.disk_encrypted, other.disk_encrypted),
            firewall: both(self.firewall, other.firewall),
            screen_lock: both(self.screen_lock, other.screen_lock),
            secure_boot: both(self.secure_boot, other.secure_boot),
            os: same(&self.os, &other.os),
            kernel: same(&self.kernel, &other.kernel),
            distribution: same(&self.distribution, &other.distribution),
            security_updates: self.security_updates.zip(other.security_updates).map(|(one, other)| one.max(other)),
            managed_by: same(&self.managed_by, &other.managed_by),
            agents: agents.filter_map(|(name, runs)| Some((name.clone(), *runs && *other.agents.get(name)?))).collect(),
            checks: checks
                .filter(|(name, check)| other.checks.get(*name).is_some_and(|said| said.passed == check.passed))
                .map(|(name, check)| (name.clone(), check.clone()))
                .collect(),
            compliant: both(self.compliant, other.compliant),
            serial: same(&self.serial, &other.serial),
        }
    }

    /// Tells whether lists and texts are within their bounds, and no text could trip a terminal.
    pub fn within_bounds(&self) -> bool {
        let good = |text: &str| text.len() <= MAX_TEXT && !text.chars().any(char::is_control);
        self.agents.len() <= MAX_NAMED
            && self.checks.len() <= MAX_NAMED
            && self.checks.values().all(|check| good(&check.said))
            && self.serial.as_deref().is_none_or(good)
    }

    /// Lists what is known, one fact a line, for people: `disk_encrypted: on`.
    pub fn lines(&self) -> Vec<(String, String)> {
        let on = |fact: Option<bool>| fact.map(|on| if on { "on" } else { "off" }.to_owned());
        let mut lines: Vec<(String, String)> = [
            ("disk_encrypted", on(self.disk_encrypted)),
            ("firewall", on(self.firewall)),
            ("screen_lock", on(self.screen_lock)),
            ("secure_boot", on(self.secure_boot)),
            ("kernel", self.kernel.map(|kernel| kernel.to_string())),
            ("distribution", self.distribution.as_ref().map(ToString::to_string)),
            ("security_updates", self.security_updates.map(|count| format!("{count} waiting"))),
            ("managed_by", self.managed_by.as_ref().map(ToString::to_string)),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.unwrap_or_else(|| "unknown".to_owned())))
        .collect();
        lines.extend(
            self.agents
                .iter()
                .map(|(name, runs)| (format!("agent {name}"), if *runs { "runs" } else { "does not run" }.to_owned())),
        );
        lines.extend(self.checks.iter().map(|(name, check)| {
            let said = if check.said.is_empty() { String::new() } else { format!(" ({})", check.said) };
            (format!("check {name}"), format!("{}{said}", if check.passed { "passed" } else { "failed" }))
        }));
        lines.extend(on(self.compliant).map(|state| ("compliant".to_owned(), state)));
        lines.extend(self.serial.iter().map(|serial| ("serial".to_owned(), serial.clone())));
        lines
    }

    /// Lists what differs from `before`: `firewall: on -> off`. At most [`MAX_NAMED`] lines.
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let old: BTreeMap<String, String> = before.lines().into_iter().collect();
        let new: BTreeMap<String, String> = self.lines().into_iter().collect();
        let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let shown = |value: Option<&String>| value.map_or("unknown", String::as_str).to_owned();
        let changes = names.into_iter().map(|name| (name, shown(old.get(name)), shown(new.get(name))));
        let changes = changes.filter(|(_, old, new)| old != new);
        changes.map(|(name, old, new)| format!("{name}: {old} -> {new}")).take(MAX_NAMED).collect()
    }
}

/// Facts, and since when they are known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What was said.
    pub facts: Facts,
    /// When it was so, by the controller's clock: a device's report counts from when the device looked.
    pub observed_at: WallTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> FactName {
        text.parse().expect("a name")
    }

    #[test]
    fn ages_change_no_fact_and_results_do() {
        let check = |passed, age_s| Facts {
            checks: [(name("edr-ok"), CheckResult { passed, said: "fine".into(), age_s })].into(),
            ..Facts::default()
        };
        assert!(check(true, 1).same_state(&check(true, 59)));
        assert!(!check(true, 1).same_state(&check(false, 1)));
        assert_eq!(check(false, 1).changes_since(&check(true, 1)), ["check edr-ok: passed (fine) -> failed (fine)"]);
        assert_eq!(
            Facts { firewall: Some(true), ..Facts::default() }.changes_since(&Facts::default()),
            ["firewall: unknown -> on"]
        );
    }

    #[test]
    fn every_fact_has_its_name_in_the_list() {
        let whole: serde_json::Value =
            serde_json::from_str(include_str!("../../fuzz/corpus/posture/whole")).expect("a report");
        let facts: Facts = serde_json::from_value(whole["facts"].clone()).expect("facts");
        let written = serde_json::to_value(&facts).expect("facts have a JSON form");
        let written: Vec<&String> = written.as_object().expect("an object").keys().collect();
        let complete = facts.with(Facts {
            screen_lock: Some(true),
            secure_boot: Some(true),
            compliant: Some(true),
            ..Facts::default()
        });
        let complete = serde_json::to_value(&complete).expect("facts have a JSON form");
        assert!(written.iter().all(|name| Facts::NAMES.contains(&name.as_str())));
        assert_eq!(complete.as_object().expect("an object").len(), Facts::NAMES.len());
        assert!(serde_json::from_str::<Facts>("{\"of_a_later_version\": 1}").is_ok());
    }

    #[test]
    fn what_is_too_much_or_could_trip_a_terminal_is_out_of_bounds() {
        assert!(Facts::default().within_bounds());
        let many = (0..=MAX_NAMED).map(|n| (name(&format!("a{n}")), true)).collect();
        assert!(!Facts { agents: many, ..Facts::default() }.within_bounds());
        for serial in ["a\u{1b}[2J".to_owned(), "x".repeat(MAX_TEXT + 1)] {
            assert!(!Facts { serial: Some(serial), ..Facts::default() }.within_bounds());
        }
    }
}
