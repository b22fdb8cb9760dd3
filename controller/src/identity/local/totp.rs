//! One-time codes as a second factor (TOTP, RFC 6238): 6 digits, 30 seconds, SHA-1, as every authenticator speaks it.
//!
//! A code is accepted for its own 30 seconds and one step before and after (RFC 6238 §5.2), and once: the newest step
//! used is kept, and a code of that step or an older one is refused. Secrets lie in the database sealed under a key
//! that a backup of the database does not hold.

use chacha20poly1305::{
    ChaCha20Poly1305, KeyInit,
    aead::{Aead, Payload},
};
use postern_common::time::WallTime;
use sha2::{Digest, Sha256};
use totp_rs::{Algorithm, TOTP};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::super::random;

/// Length of a step, seconds (RFC 6238 §4.1, the default X).
pub const STEP_SECONDS: i64 = 30;
/// How many steps before and after the present one are accepted (RFC 6238 §5.2).
const SKEW_STEPS: i64 = 1;

/// The key under which second-factor secrets are sealed; it comes from a file that backups leave out.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SealingKey([u8; 32]);

impl SealingKey {
    /// Takes 32 random bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl SealingKey {
    /// Derives a key of its own for another use, so that nothing sealed for one use opens for another.
    pub(crate) fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        let digest = Sha256::new().chain_update(b"postern sealing key v1\0").chain_update(purpose).chain_update(self.0);
        digest.finalize().into()
    }
}

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The shared secret of one account's authenticator, 160 bits.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 20]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Secret {
    /// Draws a secret.
    pub fn draw() -> Self {
        Self(random::bytes())
    }

    fn totp(&self, issuer: Option<String>, login: String) -> TOTP {
        TOTP::new_unchecked(Algorithm::SHA1, 6, 0, STEP_SECONDS.unsigned_abs(), self.0.to_vec(), issuer, login)
    }

    /// Writes the secret in base 32 in groups of four, to be typed where no QR code can be read.
    pub fn grouped(&self) -> String {
        let text = self.totp(None, String::new()).get_secret_base32();
        text.as_bytes().chunks(4).map(String::from_utf8_lossy).collect::<Vec<_>>().join(" ")
    }

    /// Writes the `otpauth` URL for a QR code.
    pub fn url(&self, issuer: &str, login: &str) -> String {
        self.totp(Some(issuer.replace(':', " ")), login.replace(':', " ")).get_url()
    }

    /// Finds the step, newer than `last_used`, whose code was given; `None` if there is none.
    pub fn step_of(&self, code: &str, last_used: i64, now: WallTime) -> Option<i64> {
        let present = now.as_millis().div_euclid(1_000).div_euclid(STEP_SECONDS);
        let totp = self.totp(None, String::new());
        let mut found = None;
        // Every candidate is compared, in constant time each, whether or not one has fitted.
        for step in present - SKEW_STEPS..=present + SKEW_STEPS {
            let Ok(seconds) = u64::try_from(step.saturating_mul(STEP_SECONDS)) else { continue };
            if random::same(&totp.generate(seconds), code) && step > last_used {
                found = Some(step);
            }
        }
        found
    }

    /// Returns the code of a moment, for tests that play the authenticator.
    #[cfg(test)]
    pub(crate) fn code_at(&self, now: WallTime) -> String {
        self.totp(None, String::new()).generate(u64::try_from(now.as_millis() / 1_000).expect("after 1970"))
    }

    /// Reads what [`Secret::grouped`] wrote, for tests that play the authenticator.
    #[cfg(test)]
    pub(crate) fn from_grouped(text: &str) -> Self {
        let bytes = totp_rs::Secret::Encoded(text.replace(' ', "")).to_bytes().expect("base 32");
        Self(bytes.try_into().expect("20 bytes"))
    }

    /// Seals the secret for the database; it opens only for the same account.
    pub(super) fn seal(&self, key: &SealingKey, account: &str) -> Vec<u8> {
        let nonce = random::bytes::<12>();
        let payload = Payload { msg: &self.0, aad: account.as_bytes() };
        let sealed = ChaCha20Poly1305::new(&key.0.into()).encrypt(&nonce.into(), payload);
        [&nonce[..], &sealed.expect("20 bytes are within ChaCha20-Poly1305's limits")].concat()
    }

    /// Opens a sealed secret; `None` if key, account or bytes do not fit.
    pub(super) fn open(sealed: &[u8], key: &SealingKey, account: &str) -> Option<Self> {
        let (nonce, text) = sealed.split_first_chunk::<12>()?;
        let payload = Payload { msg: text, aad: account.as_bytes() };
        let mut open = ChaCha20Poly1305::new(&key.0.into()).decrypt(nonce.into(), payload).ok()?;
        let secret = <[u8; 20]>::try_from(open.as_slice()).ok().map(Self);
        open.zeroize();
        secret
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> WallTime {
        WallTime::from_millis(seconds * 1_000)
    }

    #[test]
    fn codes_agree_with_the_test_vectors_of_rfc_6238() {
        let secret = Secret(*b"12345678901234567890"); // appendix B, last six of eight digits
        for (seconds, code) in [(59, "287082"), (1_111_111_109, "081804"), (20_000_000_000, "353130")] {
            assert_eq!(secret.step_of(code, 0, at(seconds)), Some(seconds / 30));
        }
    }

    #[test]
    fn a_code_is_good_for_its_step_and_its_neighbours_and_only_once() {
        let secret = Secret::draw();
        let code = secret.code_at(at(3_000));
        assert_eq!(secret.step_of(&code, 0, at(3_030)), Some(100));
        assert_eq!(secret.step_of(&code, 0, at(2_970)), Some(100));
        assert_eq!(secret.step_of(&code, 0, at(3_060)), None, "too old");
        assert_eq!(secret.step_of(&code, 0, at(2_969)), None, "too early");
        assert_eq!(secret.step_of(&code, 100, at(3_000)), None, "used");
        for bad in ["", "12345", "1234567", "abcdef"] {
            assert_eq!(secret.step_of(bad, 0, at(3_000)), None);
        }
    }

    #[test]
    fn a_sealed_secret_opens_only_with_its_key_and_account() {
        let (key, other) = (SealingKey::from_bytes([1; 32]), SealingKey::from_bytes([2; 32]));
        let secret = Secret::draw();
        let sealed = secret.seal(&key, "acc_1");
        assert_eq!(Secret::open(&sealed, &key, "acc_1").map(|secret| secret.0), Some(secret.0));
        assert!(Secret::open(&sealed, &other, "acc_1").is_none());
        assert!(Secret::open(&sealed, &key, "acc_2").is_none());
        assert!(Secret::open(&sealed[..11], &key, "acc_1").is_none());
    }
}
