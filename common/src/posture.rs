//! What is required of a device, and what is known of it.
//!
//! A device reports [`Facts`]; the controller keeps them with the time of their arrival as a [`Report`]; the policy
//! names a [`Requirement`] under `[posture.NAME]`. A fact that was not reported is not a fact that is false: it is
//! *unknown*, and so is everything in a report that is older than the requirement accepts.
//!
//! A device is the only witness of its own posture. A machine whose root is hostile can claim any fact, so posture
//! narrows what honest machines may do; it never widens what a rule's `from` gives.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{policy::Truth, time::WallTime};

/// How old a report may be where `[posture.NAME]` says nothing of `max_age`.
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(15 * 60);

/// A dotted version of up to four numbers: `6.1`, `6.1.0`, `24.04`. Absent numbers count as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version([u32; 4]);

/// Tells that a text is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a version: use one to four numbers with dots, such as \"6.1\"")]
pub struct VersionError(String);

impl Version {
    /// Reads the leading numbers of a version as an operating system reports it: `6.1.0-27-amd64` is 6.1.0.
    pub fn lenient(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        text[..end].split('.').filter(|part| !part.is_empty()).take(4).collect::<Vec<_>>().join(".").parse().ok()
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let bad = || VersionError(text.chars().take(40).collect());
        let mut numbers = [0; 4];
        let parts: Vec<&str> = text.split('.').collect();
        if parts.len() > numbers.len() {
            return Err(bad());
        }
        for (number, part) in numbers.iter_mut().zip(parts) {
            if !part.bytes().all(|c| c.is_ascii_digit()) {
                return Err(bad());
            }
            *number = part.parse().map_err(|_| bad())?;
        }
        Ok(Self(numbers))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = self.0.iter().rposition(|n| *n > 0).map_or(2, |last| last.max(1) + 1);
        let shown: Vec<String> = self.0[..length].iter().map(u32::to_string).collect();
        f.write_str(&shown.join("."))
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

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

/// What a device says of itself. An absent fact is unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Whether the disk that holds the system and the homes is encrypted.
    pub disk_encrypted: Option<bool>,
    /// Whether a host firewall is on.
    pub firewall: Option<bool>,
    /// Whether the screen locks by itself.
    pub screen_lock: Option<bool>,
    /// Whether the machine started by Secure Boot.
    pub secure_boot: Option<bool>,
    /// The operating system.
    pub os: Option<OsKind>,
    /// The kernel's version.
    pub kernel: Option<Version>,
}

impl Facts {
    /// Joins two sets of facts; where both speak, `other` counts.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            disk_encrypted: other.disk_encrypted.or(self.disk_encrypted),
            firewall: other.firewall.or(self.firewall),
            screen_lock: other.screen_lock.or(self.screen_lock),
            secure_boot: other.secure_boot.or(self.secure_boot),
            os: other.os.or(self.os),
            kernel: self.kernel.max(other.kernel),
        }
    }
}

/// Facts and when they reached the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What the device said.
    pub facts: Facts,
    /// When the controller received it, by its own clock.
    pub received_at: WallTime,
}

/// What `[posture.NAME]` requires. Absent parts require nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The required state of disk encryption.
    pub disk_encrypted: Option<bool>,
    /// The required state of the firewall.
    pub firewall: Option<bool>,
    /// The required state of the screen lock.
    pub screen_lock: Option<bool>,
    /// The required state of Secure Boot.
    pub secure_boot: Option<bool>,
    /// The lowest kernel version; it requires Linux too.
    pub min_linux_kernel: Option<Version>,
    /// How old a report may be.
    pub max_age: Duration,
}

impl Default for Requirement {
    fn default() -> Self {
        Self {
            disk_encrypted: None,
            firewall: None,
            screen_lock: None,
            secure_boot: None,
            min_linux_kernel: None,
            max_age: DEFAULT_MAX_AGE,
        }
    }
}

/// What came of comparing a report with a requirement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostureVerdict {
    /// Whether the requirement is met.
    pub truth: Truth,
    /// Until when `truth` holds if no other report comes; then it becomes unknown.
    pub until: WallTime,
    /// What fails or is unknown, one a line, for people; empty if the requirement is met.
    pub findings: Vec<String>,
}

impl Requirement {
    /// Compares what is known of a device at `now` with this requirement.
    pub fn evaluate(&self, report: Option<&Report>, now: WallTime) -> PostureVerdict {
        let Some(report) = report else {
            let findings = vec!["this device has not reported its posture".to_owned()];
            return PostureVerdict { truth: Truth::Unknown, until: WallTime::NEVER, findings };
        };
        let until = report.received_at.saturating_add(self.max_age);
        if until <= now {
            let age = crate::diagnostics::HumanDuration::rounded(now.since(report.received_at));
            let accepted = crate::diagnostics::HumanDuration::new(self.max_age);
            let findings = vec![format!("its posture is {age} old, and {accepted} is accepted")];
            return PostureVerdict { truth: Truth::Unknown, until: WallTime::NEVER, findings };
        }
        let mut truth = Truth::True;
        let mut findings = Vec::new();
        let facts = &report.facts;
        for (what, required, reported) in [
            ("disk encryption", self.disk_encrypted, facts.disk_encrypted),
            ("the firewall", self.firewall, facts.firewall),
            ("the screen lock", self.screen_lock, facts.screen_lock),
            ("Secure Boot", self.secure_boot, facts.secure_boot),
        ] {
            let Some(required) = required else { continue };
            let state = |on: bool| if on { "on" } else { "off" };
            match reported {
                Some(reported) if reported == required => {}
                Some(reported) => {
                    truth = truth.and(Truth::False);
                    findings.push(format!("{what} is {}, and must be {}", state(reported), state(required)));
                }
                None => {
                    truth = truth.and(Truth::Unknown);
                    findings.push(format!("the device did not say whether {what} is {}", state(required)));
                }
            }
        }
        if let Some(minimum) = self.min_linux_kernel {
            match (facts.os, facts.kernel) {
                (Some(OsKind::Linux), Some(kernel)) if kernel >= minimum => {}
                (Some(OsKind::Linux), Some(kernel)) => {
                    truth = truth.and(Truth::False);
                    findings.push(format!("its kernel is {kernel}, and must be {minimum} or newer"));
                }
                (Some(OsKind::Macos | OsKind::Windows | OsKind::Other), _) => {
                    truth = truth.and(Truth::False);
                    findings.push("its operating system is not Linux".to_owned());
                }
                (Some(OsKind::Linux) | None, _) => {
                    truth = truth.and(Truth::Unknown);
                    findings.push("the device did not say which kernel it runs".to_owned());
                }
            }
        }
        PostureVerdict { truth, until, findings }
    }

    /// Returns facts that meet exactly this requirement and say nothing else: for `[[test]]` and simulation.
    pub fn minimal_facts(&self) -> Facts {
        Facts {
            disk_encrypted: self.disk_encrypted,
            firewall: self.firewall,
            screen_lock: self.screen_lock,
            secure_boot: self.secure_boot,
            os: self.min_linux_kernel.map(|_| OsKind::Linux),
            kernel: self.min_linux_kernel,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: WallTime = WallTime::from_millis(10_000_000);

    fn requirement() -> Requirement {
        Requirement {
            disk_encrypted: Some(true),
            min_linux_kernel: Some("6.1".parse().expect("a version")),
            ..Requirement::default()
        }
    }

    fn report(facts: Facts) -> Option<Report> {
        Some(Report { facts, received_at: WallTime::from_millis(NOW.as_millis() - 60_000) })
    }

    #[test]
    fn what_was_not_said_is_unknown_and_what_is_wrong_is_false() {
        let good = requirement().minimal_facts();
        let table = [
            (None, Truth::Unknown),
            (report(good.clone()), Truth::True),
            (report(Facts { disk_encrypted: Some(false), ..good.clone() }), Truth::False),
            (report(Facts { disk_encrypted: None, ..good.clone() }), Truth::Unknown),
            (report(Facts { kernel: Some("5.15".parse().expect("a version")), ..good.clone() }), Truth::False),
            (report(Facts { os: Some(OsKind::Macos), ..good.clone() }), Truth::False),
            (report(Facts { os: None, ..good }), Truth::Unknown),
        ];
        for (report, truth) in table {
            assert_eq!(requirement().evaluate(report.as_ref(), NOW).truth, truth, "{report:?}");
        }
    }

    #[test]
    fn a_report_becomes_unknown_when_it_is_too_old() {
        let report = report(requirement().minimal_facts());
        let verdict = requirement().evaluate(report.as_ref(), NOW);
        assert_eq!(verdict.until, WallTime::from_millis(NOW.as_millis() - 60_000 + 900_000));
        let late = requirement().evaluate(report.as_ref(), verdict.until);
        assert_eq!(late.truth, Truth::Unknown);
        assert_eq!(late.findings, ["its posture is 15 min old, and 15 min is accepted"]);
    }

    #[test]
    fn versions_compare_by_their_numbers() {
        let version = |text: &str| text.parse::<Version>().expect("a version");
        assert!(version("6.1") < version("6.10") && version("6.1") == version("6.1.0"));
        assert_eq!(Version::lenient("6.1.0-27-amd64"), Some(version("6.1.0")));
        assert_eq!(version("6.1").to_string(), "6.1");
        assert_eq!(version("24").to_string(), "24.0");
        for bad in ["", "6.", "a", "1.2.3.4.5", "-1", "99999999999"] {
            assert!(bad.parse::<Version>().is_err(), "{bad:?}");
        }
    }
}
