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

#[cfg(test)]
mod tests {
    use ed25519_dalek::Signer;
    use postern_common::key::MarkerPublicKey;

    use super::{super::root::testing::Tree, *};

    const FILE: &str = "/etc/postern/managed.json";
    const NOW: WallTime = WallTime::from_millis(1_795_424_400_000); // 2026-11-23T09:00:00Z

    fn signer(seed: u8) -> ed25519_dalek::SigningKey {
        ed25519_dalek::SigningKey::from_bytes(&[seed; 32])
    }

    fn device(number: u8) -> DeviceId {
        DeviceId::from_bytes([number; 16])
    }

    fn text(of: DeviceId, expires: &str) -> String {
        format!("{{\"device\": \"{of}\", \"managed_by\": \"corp-mdm\", \"expires\": \"{expires}\"}}\n")
    }

    fn judged(tree: &Tree) -> Result<FactName, Option<String>> {
        let key = MarkerPublicKey::from_bytes(signer(1).verifying_key().to_bytes());
        managed_by(&tree.root(), &MarkerConfig { file: FILE.into(), key }, Some(device(9)), NOW)
    }

    fn with(text: &str, seed: u8) -> Tree {
        let tree = Tree::new(&[(FILE, text)]);
        tree.write(&format!("{FILE}.sig"), signer(seed).sign(text.as_bytes()).to_bytes());
        tree
    }

    #[test]
    fn a_marker_that_was_signed_for_this_device_says_who_manages_it() {
        let good = text(device(9), "2027-01-31T00:00:00Z");
        assert_eq!(judged(&with(&good, 1)), Ok("corp-mdm".parse().expect("a name")));
        let tree = with(&good, 1);
        let in_text = base64::engine::general_purpose::STANDARD.encode(signer(1).sign(good.as_bytes()).to_bytes());
        tree.write(&format!("{FILE}.sig"), format!("{in_text}\n"));
        assert!(judged(&tree).is_ok());
        assert_eq!(judged(&Tree::new(&[])), Err(None), "there is none");
    }

    #[test]
    fn a_marker_that_is_copied_forged_changed_or_over_counts_for_nothing() {
        let good = text(device(9), "2027-01-31T00:00:00Z");
        let changed = with(&good, 1);
        changed.write(FILE, good.replace("corp-mdm", "corp-mdn"));
        let unsigned = Tree::new(&[(FILE, &good)]);
        let nonsense = Tree::new(&[(FILE, &good), (&format!("{FILE}.sig"), "yes")]);
        for (tree, part) in [
            (with(&text(device(8), "2027-01-31T00:00:00Z"), 1), "is for another device"),
            (with(&good, 2), "is not signed by the key"),
            (changed, "is not signed by the key"),
            (with(&text(device(9), "2026-11-23T09:00:00Z"), 1), "ended at 2026-11-23T09:00:00Z"),
            (with(&text(device(9), "never"), 1), "no time of RFC 3339"),
            (with("{}", 1), "cannot be read"),
            (unsigned, "has no signature beside it"),
            (nonsense, "has a signature that is none"),
        ] {
            let why = judged(&tree).expect_err(part).expect("a reason");
            assert!(why.contains(part) && why.contains(FILE), "{why}");
        }
    }
}
