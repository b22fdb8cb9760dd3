//! Versions of kernels and distributions, and distributions as policies name them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::FactName;

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

/// A Linux distribution by the `ID` and `VERSION_ID` of its `os-release` file. In a requirement the version is the lowest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Distribution {
    /// `ID`: `debian`.
    pub id: FactName,
    /// `VERSION_ID`; absent where there is none, as in a rolling distribution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
}

impl Distribution {
    /// Tells whether this one, as a device reports it, is at least `wanted`.
    pub(super) fn is_at_least(&self, wanted: &Self) -> bool {
        self.id == wanted.id
            && wanted.version.is_none_or(|lowest| self.version.is_some_and(|version| version >= lowest))
    }
}

/// Tells that a text names no distribution.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no distribution: use its ID and its lowest version from /etc/os-release, such as \"debian 12\"")]
pub struct DistributionError(String);

impl FromStr for Distribution {
    type Err = DistributionError;

    fn from_str(text: &str) -> Result<Self, DistributionError> {
        let bad = || DistributionError(text.chars().take(40).collect());
        let (id, version) = text.split_once(' ').map_or((text, None), |(id, version)| (id, Some(version)));
        let version = version.map(|version| version.parse().map_err(|_| bad())).transpose()?;
        Ok(Self { id: id.parse().map_err(|_| bad())?, version })
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "{} {version}", self.id),
            None => self.id.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_distribution_is_itself_in_that_version_or_a_newer_one() {
        let distribution = |text: &str| text.parse::<Distribution>().expect("a distribution");
        assert!(distribution("debian 12.5").is_at_least(&distribution("debian 12")));
        assert!(distribution("debian 12").is_at_least(&distribution("debian")));
        assert!(!distribution("debian 11").is_at_least(&distribution("debian 12")));
        assert!(!distribution("debian").is_at_least(&distribution("debian 12")), "no version is no proof of one");
        assert!(!distribution("ubuntu 24.04").is_at_least(&distribution("debian 12")));
        for bad in ["", "Debian 12 bookworm", "debian twelve", " debian"] {
            assert!(bad.parse::<Distribution>().is_err(), "{bad:?}");
        }
    }
}
