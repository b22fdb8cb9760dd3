//! What a device-management system says of devices: JSON lines, one device each.
//!
//! ```json
//! {"serial": "PF3ABC12", "observed": "2026-11-22T08:00:00Z", "facts": {"disk_encrypted": true, "firewall": true}}
//! {"device_key": "…base 64…", "facts": {"managed_by": "corp-mdm"}}
//! {"device": "alice-laptop", "facts": {"disk_encrypted": false}}
//! ```
//!
//! A line says everything that the system knows: a fact that was in the last line and is not in this one is unknown again.

use std::time::Duration;

use postern_common::{key::DevicePublicKey, posture::Facts, time::WallTime};
use serde::Deserialize;

/// The longest line, bytes.
const MAX_LINE: usize = 16 << 10;
/// The longest serial number or name, bytes.
const MAX_KEY: usize = 120;
/// How far the system's clock may be ahead of the controller's.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// By what a line names its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keyed {
    /// The serial number that an administrator bound to it.
    Serial(String),
    /// Its device key.
    Key(DevicePublicKey),
    /// Its name or identifier.
    Device(String),
}

/// What was said of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attestation {
    /// Of which.
    pub of: Keyed,
    /// What.
    pub facts: Facts,
    /// When it was so.
    pub observed_at: WallTime,
}

/// Why a line counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// It is no JSON object of the right shape.
    #[error("it cannot be read: {0}")]
    Malformed(String),
    /// It names no device, or more than one way.
    #[error("it has to name its device by one of `serial`, `device_key` and `device`")]
    Unnamed,
    /// A text or a list in it is too long.
    #[error("it is too long, or has control characters in it")]
    TooLong,
    /// Its time is no time.
    #[error("`observed` is no time of RFC 3339, such as 2026-11-22T08:00:00Z")]
    Time,
    /// Its time has not come.
    #[error("`observed` lies in the future")]
    Future,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    serial: Option<String>,
    device_key: Option<DevicePublicKey>,
    device: Option<String>,
    facts: serde_json::Map<String, serde_json::Value>,
    observed: Option<String>,
}

/// Reads one line.
///
/// # Errors
/// [`ImportError`] in words for who wrote it.
pub(crate) fn read_line(text: &str, now: WallTime) -> Result<Attestation, ImportError> {
    if text.len() > MAX_LINE {
        return Err(ImportError::TooLong);
    }
    let line: Line = serde_json::from_str(text).map_err(|error| ImportError::Malformed(error.to_string()))?;
    if let Some(unknown) = line.facts.keys().find(|name| !Facts::NAMES.contains(&name.as_str())) {
        let unknown: String = unknown.chars().filter(|c| !c.is_control()).take(40).collect();
        let known = Facts::NAMES.join(", ");
        return Err(ImportError::Malformed(format!("there is no fact `{unknown}`: there are {known}")));
    }
    let facts: Facts = serde_json::from_value(line.facts.into())
        .map_err(|error| ImportError::Malformed(format!("its facts: {error}")))?;
    let of = match (line.serial, line.device_key, line.device) {
        (Some(serial), None, None) => Keyed::Serial(serial),
        (None, Some(key), None) => Keyed::Key(key),
        (None, None, Some(device)) => Keyed::Device(device),
        (_, _, _) => return Err(ImportError::Unnamed),
    };
    let long = match &of {
        Keyed::Serial(text) | Keyed::Device(text) => text.is_empty() || text.len() > MAX_KEY,
        Keyed::Key(_) => false,
    };
    if long || !facts.within_bounds() {
        return Err(ImportError::TooLong);
    }
    let observed_at = match line.observed {
        None => now,
        Some(text) => {
            let timestamp: jiff::Timestamp = text.parse().map_err(|_| ImportError::Time)?;
            WallTime::from_millis(timestamp.as_millisecond())
        }
    };
    if observed_at > now.saturating_add(CLOCK_SKEW) {
        return Err(ImportError::Future);
    }
    Ok(Attestation { of, facts, observed_at: observed_at.min(now) })
}

/// Reads bytes as a line of an import. What is taken is within its bounds and does not lie in the future.
pub fn fuzz_import(bytes: &[u8]) {
    let now = WallTime::from_millis(1_795_424_400_000);
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(attestation) = read_line(text, now)
    {
        assert!(attestation.facts.within_bounds() && attestation.observed_at <= now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: WallTime = WallTime::from_millis(1_795_424_400_000); // 2026-11-23T09:00:00Z

    #[test]
    fn a_line_names_a_device_one_way_and_says_when() {
        let read = read_line(r#"{"serial":"SN1","observed":"2026-11-23T08:00:00Z","facts":{"firewall":true}}"#, NOW);
        let facts = Facts { firewall: Some(true), ..Facts::default() };
        let observed_at = WallTime::from_millis(NOW.as_millis() - 3_600_000);
        assert_eq!(read, Ok(Attestation { of: Keyed::Serial("SN1".into()), facts, observed_at }));
        let by_name = read_line(r#"{"device":"laptop","facts":{}}"#, NOW).expect("a line");
        assert_eq!((by_name.of, by_name.observed_at), (Keyed::Device("laptop".into()), NOW));
    }

    #[test]
    fn a_line_with_a_mistake_counts_for_nothing() {
        let long = format!(r#"{{"device":"{}","facts":{{}}}}"#, "x".repeat(200));
        for (line, part) in [
            ("", "cannot be read"),
            (r#"{"serial":"a","facts":{"firewal":true}}"#, "there is no fact `firewal`"),
            (r#"{"serial":"a","facts":{"firewall":"yes"}}"#, "cannot be read"),
            (r#"{"serial":"a"}"#, "missing field `facts`"),
            (r#"{"facts":{}}"#, "has to name its device"),
            (r#"{"serial":"a","device":"b","facts":{}}"#, "has to name its device"),
            (r#"{"serial":"","facts":{}}"#, "too long"),
            (long.as_str(), "too long"),
            (r#"{"serial":"a","observed":"yesterday","facts":{}}"#, "no time of RFC 3339"),
            (r#"{"serial":"a","observed":"2026-11-23T09:02:00Z","facts":{}}"#, "lies in the future"),
        ] {
            let error = read_line(line, NOW).expect_err(line).to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
