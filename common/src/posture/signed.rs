//! A device's report as it travels.
//!
//! ```text
//! node:       Facts, when they were looked at --sign_posture(device key)--> SignedPosture
//! controller: PostureVerifier (device key, challenge of this stream, last number) --verify--> VerifiedPosture
//! ```
//!
//! What is signed names the device, the challenge that the controller drew for this one stream, a number that rises with every
//! report on it, and how long after the challenge the device looked. So whoever carries the stream cannot
//! - forge a report (device key, and a signing purpose of its own),
//! - show one again, of this stream (number) or of another (challenge), or of another device (identifier),
//! - hold a good one back and deliver it when the fact has long changed: its age is counted from the challenge by the
//!   controller's own clock, and delay makes it older.
//!
//! Rejected: the device's wall clock in the report. Who can set it could make a report as young as wished, and an honest machine
//! with a wrong clock would be locked out.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::facts::Facts;
use crate::{
    id::{DeviceId, Nonce},
    key::{DevicePublicKey, DeviceSigningKey, Signature, SigningPurpose},
};

/// The most bytes of a report's text.
pub const MAX_POSTURE_BYTES: usize = 16 << 10;

/// What a device says of itself, and what ties that to one stream and moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostureDocument {
    /// Who says it.
    pub device: DeviceId,
    /// The challenge with which the controller began the stream.
    pub challenge: Nonce,
    /// Rises by at least one with every report on the stream; the first is 1.
    pub number: u64,
    /// Milliseconds from the moment at which the device took the challenge to the moment at which it looked; negative if it
    /// looked before.
    pub taken_ms: i64,
    /// What it saw.
    pub facts: Facts,
}

/// A report with its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPosture {
    /// The JSON text of a [`PostureDocument`]: what was signed is what is read.
    pub document: String,
    /// The device's signature, for [`SigningPurpose::Posture`].
    pub signature: Signature,
}

/// Signs a report.
///
/// # Panics
/// Never: every part of a report has a JSON form.
pub fn sign_posture(document: &PostureDocument, key: &DeviceSigningKey) -> SignedPosture {
    let document = serde_json::to_string(document).expect("a report has no part without a JSON form");
    let signature = key.sign(SigningPurpose::Posture, document.as_bytes());
    SignedPosture { document, signature }
}

/// Why a report counts for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PostureRefusal {
    /// The device did not sign these bytes.
    #[error("the report is not signed by this device")]
    Signature,
    /// The text is no report, or longer or larger than one may be.
    #[error("the report cannot be read, or is too large")]
    Malformed,
    /// It is another device's.
    #[error("the report is another device's")]
    Device,
    /// It was made for another stream.
    #[error("the report was made for another stream")]
    Challenge,
    /// It is not newer than the last one.
    #[error("the report was shown before")]
    Replayed,
}

/// A report of which signature, device, stream and order are good. Only [`PostureVerifier::verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPosture {
    facts: Facts,
    age: Duration,
}

impl VerifiedPosture {
    /// Returns what the device saw.
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Returns how long ago it looked, at most: the time on the way is part of it.
    pub const fn age(&self) -> Duration {
        self.age
    }

    /// Takes the facts out.
    pub fn into_facts(self) -> Facts {
        self.facts
    }
}

/// Verifies the reports of one stream.
#[derive(Debug, Clone)]
pub struct PostureVerifier {
    device: DeviceId,
    key: DevicePublicKey,
    challenge: Nonce,
    last: u64,
}

impl PostureVerifier {
    /// Begins with a stream whose challenge the device has answered.
    pub const fn new(device: DeviceId, key: DevicePublicKey, challenge: Nonce) -> Self {
        Self { device, key, challenge, last: 0 }
    }

    /// Checks a report. `since_challenge` is how long ago the controller sent the challenge, by its monotonic clock.
    ///
    /// # Errors
    /// [`PostureRefusal`]; what was known before stays as it is.
    pub fn verify(
        &mut self,
        signed: &SignedPosture,
        since_challenge: Duration,
    ) -> Result<VerifiedPosture, PostureRefusal> {
        if signed.document.len() > MAX_POSTURE_BYTES {
            return Err(PostureRefusal::Malformed);
        }
        self.key
            .verify(SigningPurpose::Posture, signed.document.as_bytes(), &signed.signature)
            .map_err(|_| PostureRefusal::Signature)?;
        let document: PostureDocument =
            serde_json::from_str(&signed.document).map_err(|_| PostureRefusal::Malformed)?;
        if document.device != self.device {
            return Err(PostureRefusal::Device);
        }
        if document.challenge != self.challenge {
            return Err(PostureRefusal::Challenge);
        }
        if document.number <= self.last {
            return Err(PostureRefusal::Replayed);
        }
        if !document.facts.within_bounds() {
            return Err(PostureRefusal::Malformed);
        }
        self.last = document.number;
        let elapsed = i128::from(u64::try_from(since_challenge.as_millis()).unwrap_or(u64::MAX));
        let age = (elapsed - i128::from(document.taken_ms)).max(0); // less than nothing: the device's clock runs fast
        let age = u64::try_from(age).unwrap_or(u64::MAX);
        Ok(VerifiedPosture { facts: document.facts, age: Duration::from_millis(age) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::FactName,
        posture::facts::{CheckResult, MAX_NAMED, MAX_TEXT, OsKind},
    };

    const DEVICE: DeviceId = DeviceId::from_bytes([1; 16]);
    const CHALLENGE: Nonce = Nonce::from_bytes([2; 16]);
    const LATER: Duration = Duration::from_secs(100);

    fn key() -> DeviceSigningKey {
        DeviceSigningKey::from_seed(&[3; 32])
    }

    fn document(number: u64) -> PostureDocument {
        let facts = Facts { firewall: Some(true), ..Facts::default() };
        PostureDocument { device: DEVICE, challenge: CHALLENGE, number, taken_ms: 90_000, facts }
    }

    fn verifier() -> PostureVerifier {
        PostureVerifier::new(DEVICE, key().public(), CHALLENGE)
    }

    #[test]
    fn the_largest_report_within_bounds_fits() {
        let names = |kind: char| (0..MAX_NAMED).map(move |n| format!("{kind}{n:02}{}", "x".repeat(60)));
        let name = |text: String| text.parse::<FactName>().expect("a name of the longest");
        let check = |said: &str| CheckResult { passed: false, said: said.into(), age_s: u32::MAX };
        // What a text may hold at its longest: in JSON a quotation mark takes two bytes.
        for said in ["\"".repeat(MAX_TEXT), "ü".repeat(MAX_TEXT / 2), "\u{1f5dd}".repeat(MAX_TEXT / 4)] {
            let facts = Facts {
                disk_encrypted: Some(false),
                firewall: Some(false),
                screen_lock: Some(false),
                secure_boot: Some(false),
                os: Some(OsKind::Windows),
                kernel: Some("65535.65535.65535".parse().expect("a version")),
                security_updates: Some(u32::MAX),
                managed_by: Some(name("m".repeat(63))),
                agents: names('a').map(|text| (name(text), false)).collect(),
                checks: names('c').map(|text| (name(text), check(&said))).collect(),
                serial: Some(said.clone()),
                ..Facts::default()
            };
            assert!(facts.within_bounds(), "{said}");
            let signed = sign_posture(&PostureDocument { taken_ms: i64::MIN, facts, ..document(u64::MAX) }, &key());
            assert!(signed.document.len() + 512 <= MAX_POSTURE_BYTES, "{}", signed.document.len()); // a distribution's name
            assert!(verifier().verify(&signed, LATER).is_ok(), "{}", signed.document.len());
        }
        let long = Facts { serial: Some("ü".repeat(MAX_TEXT)), ..Facts::default() };
        assert!(!long.within_bounds());
    }

    #[test]
    fn a_report_is_as_old_as_the_look_however_late_it_comes() {
        let signed = sign_posture(&document(1), &key());
        assert_eq!(verifier().verify(&signed, LATER).expect("good").age(), Duration::from_secs(10));
        let held_back = verifier().verify(&signed, Duration::from_secs(3_600)).expect("good");
        assert_eq!(held_back.age(), Duration::from_secs(3_510), "holding it back makes it older");
        let before = sign_posture(&PostureDocument { taken_ms: -5_000, ..document(1) }, &key());
        assert_eq!(verifier().verify(&before, LATER).expect("good").age(), Duration::from_secs(105));
        let fast_clock = sign_posture(&PostureDocument { taken_ms: i64::MAX, ..document(1) }, &key());
        assert_eq!(verifier().verify(&fast_clock, LATER).expect("good").age(), Duration::ZERO);
        let slow_clock = sign_posture(&PostureDocument { taken_ms: i64::MIN, ..document(1) }, &key());
        assert!(verifier().verify(&slow_clock, LATER).expect("good").age() > Duration::from_secs(1 << 40));
    }

    #[test]
    fn a_report_counts_once_on_its_own_stream_and_for_its_own_device() {
        let mut verifier = verifier();
        let signed = sign_posture(&document(1), &key());
        assert!(verifier.verify(&signed, LATER).is_ok());
        assert_eq!(verifier.verify(&signed, LATER), Err(PostureRefusal::Replayed));
        assert!(verifier.verify(&sign_posture(&document(7), &key()), LATER).is_ok(), "numbers may have gaps");
        assert_eq!(verifier.verify(&sign_posture(&document(6), &key()), LATER), Err(PostureRefusal::Replayed));
        let elsewhere = PostureDocument { challenge: Nonce::from_bytes([9; 16]), ..document(8) };
        assert_eq!(verifier.verify(&sign_posture(&elsewhere, &key()), LATER), Err(PostureRefusal::Challenge));
        let other = PostureDocument { device: DeviceId::from_bytes([9; 16]), ..document(8) };
        assert_eq!(verifier.verify(&sign_posture(&other, &key()), LATER), Err(PostureRefusal::Device));
        assert!(verifier.verify(&sign_posture(&document(8), &key()), LATER).is_ok(), "a refusal changes nothing");
    }

    #[test]
    fn a_report_that_the_device_did_not_sign_counts_for_nothing() {
        let forged = sign_posture(&document(1), &DeviceSigningKey::from_seed(&[4; 32]));
        assert_eq!(verifier().verify(&forged, LATER), Err(PostureRefusal::Signature));
        let mut changed = sign_posture(&document(1), &key());
        changed.document = changed.document.replace("true", "false");
        assert_eq!(verifier().verify(&changed, LATER), Err(PostureRefusal::Signature));
        let text = sign_posture(&document(1), &key()).document;
        let hello = key().sign(SigningPurpose::StreamHello, text.as_bytes());
        let borrowed = SignedPosture { document: text, signature: hello };
        assert_eq!(verifier().verify(&borrowed, LATER), Err(PostureRefusal::Signature), "made for another purpose");
    }

    #[test]
    fn a_report_that_is_too_large_is_refused() {
        let name = |n: usize| format!("a{n}").parse().expect("a name");
        let agents = (0..100).map(|n| (name(n), true)).collect();
        let large = PostureDocument { facts: Facts { agents, ..Facts::default() }, ..document(1) };
        assert_eq!(verifier().verify(&sign_posture(&large, &key()), LATER), Err(PostureRefusal::Malformed));
        let mut padded = sign_posture(&document(1), &key());
        padded.document.push_str(&" ".repeat(MAX_POSTURE_BYTES));
        assert_eq!(verifier().verify(&padded, LATER), Err(PostureRefusal::Malformed));
    }
}
