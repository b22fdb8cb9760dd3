//! `managed_by`: a file that a device-management system wrote and signed for this one device.
//!
//! ```json
//! {"device": "dev_…", "managed_by": "corp-mdm", "expires": "2027-01-31T00:00:00Z"}
//! ```
//!
//! The signature (Ed25519 over the file's bytes, 64 bytes as they are or in base 64) stands beside it in `FILE.sig`; the key stands in
//! `node.toml`. `openssl pkeyutl -sign -rawin -inkey key.pem -in FILE -out FILE.sig` makes one.
//!
//! Threats: a marker that is copied from a managed machine names that machine and counts for nothing here; one that was taken back
//! ends by itself at `expires`.

use base64::Engine;
use postern_common::{
    id::{DeviceId, FactName},
    key::Signature,
    time::WallTime,
};
use serde::Deserialize;

use super::{config::MarkerConfig, root::Root};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    device: DeviceId,
    managed_by: FactName,
    expires: String,
}

/// Reads who manages this device.
///
/// # Errors
/// Why the marker counts for nothing, for the person at the machine; `None` inside is no marker at all.
pub fn managed_by(
    root: &Root,
    config: &MarkerConfig,
    device: Option<DeviceId>,
    now: WallTime,
) -> Result<FactName, Option<String>> {
    let wrong = |what: String| Some(format!("the marker {} {what}", config.file.display()));
    let text = root.bytes(&config.file).ok_or(None)?;
    let mut beside = config.file.clone().into_os_string();
    beside.push(".sig");
    let signature = root.bytes(beside).ok_or_else(|| wrong("has no signature beside it".into()))?;
    let signature = signature_of(&signature).ok_or_else(|| wrong("has a signature that is none".into()))?;
    config.key.verify(&text, &signature).map_err(|_| wrong("is not signed by the key in node.toml".into()))?;
    let marker: Marker = serde_json::from_slice(&text).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    if device != Some(marker.device) {
        return Err(wrong(format!("is for another device, {}", marker.device)));
    }
    let expires: jiff::Timestamp =
        marker.expires.parse().map_err(|_| wrong("has no time of RFC 3339 in `expires`".into()))?;
    if expires.as_millisecond() <= now.as_millis() {
        return Err(wrong(format!("ended at {expires}")));
    }
    Ok(marker.managed_by)
}

fn signature_of(bytes: &[u8]) -> Option<Signature> {
    if let Ok(bytes) = bytes.try_into() {
        return Some(Signature::from_bytes(bytes));
    }
    let text = std::str::from_utf8(bytes).ok()?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text.trim()).ok()?;
    Some(Signature::from_bytes(bytes.try_into().ok()?))
}
