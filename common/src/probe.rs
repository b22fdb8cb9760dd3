//! The probe: one small UDP datagram from a node's WireGuard socket, by which the controller sees the node's outer address.
//!
//! ```text
//! offset  0  b"PSTNprb1"           8 bytes; its first byte is none of WireGuard's message types (1 to 4)
//!         8  stream                16 bytes: `ToNode::Probe::id`
//!        24  sequence              8 bytes, network order; grows with every probe of the stream
//!        32  HMAC-SHA-256          32 bytes over the 32 bytes before it, under `ToNode::Probe::key`
//! ```
//!
//! The receiver takes the datagram's source address as one endpoint of the stream's node if the code is right and the
//! sequence is greater than any seen on that stream, so that a recorded probe that is sent again from elsewhere moves
//! nothing. It answers nothing: it cannot be used to reflect or to amplify.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{id::Nonce, key::KeyError};

/// The length of a probe, in bytes.
pub const PROBE_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"PSTNprb1";
const SIGNED_BYTES: usize = 32;

/// The key of one stream's probes. Wiped when dropped, printed as `[redacted]`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ProbeKey([u8; 32]);

impl ProbeKey {
    /// Takes 32 random bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads the base 64 of [`crate::protocol::ToNode::Probe`].
    ///
    /// # Errors
    /// [`KeyError`] if the text is not 32 bytes in base 64.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        BASE64.decode(text).ok().and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or(KeyError)
    }

    /// Writes the base 64 for [`crate::protocol::ToNode::Probe`].
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.0)
    }

    fn code(&self, signed: &[u8]) -> Hmac<Sha256> {
        let mut code = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        code.update(signed);
        code
    }

    /// Makes the stream's probe number `sequence`.
    pub fn seal(&self, stream: Nonce, sequence: u64) -> [u8; PROBE_BYTES] {
        let mut datagram = [0; PROBE_BYTES];
        datagram[..8].copy_from_slice(MAGIC);
        datagram[8..24].copy_from_slice(stream.as_bytes());
        datagram[24..SIGNED_BYTES].copy_from_slice(&sequence.to_be_bytes());
        let code = self.code(&datagram[..SIGNED_BYTES]).finalize().into_bytes();
        datagram[SIGNED_BYTES..].copy_from_slice(&code);
        datagram
    }

    /// Tells whether a claimed probe was made with this key.
    pub fn made(&self, probe: &ClaimedProbe<'_>) -> bool {
        self.code(probe.signed).verify_slice(probe.code).is_ok()
    }
}

impl std::fmt::Debug for ProbeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A datagram in the shape of a probe, whose code is not checked yet: look the stream's key up and ask [`ProbeKey::made`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimedProbe<'a> {
    /// The stream that it claims to belong to.
    pub stream: Nonce,
    /// The number that it claims to have.
    pub sequence: u64,
    signed: &'a [u8],
    code: &'a [u8],
}

impl<'a> ClaimedProbe<'a> {
    /// Reads a datagram; `None` if it has not the shape of a probe.
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        if datagram.len() != PROBE_BYTES || !datagram.starts_with(MAGIC) {
            return None;
        }
        let (signed, code) = datagram.split_at(SIGNED_BYTES);
        let stream = Nonce::from_bytes(signed[8..24].try_into().ok()?);
        let sequence = u64::from_be_bytes(signed[24..32].try_into().ok()?);
        Some(Self { stream, sequence, signed, code })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: Nonce = Nonce::from_bytes([7; 16]);

    #[test]
    fn a_probe_is_believed_only_with_its_streams_key_and_unchanged() {
        let key = ProbeKey::from_bytes([1; 32]);
        let datagram = key.seal(STREAM, 9);
        let probe = ClaimedProbe::parse(&datagram).expect("the shape of a probe");
        assert_eq!((probe.stream, probe.sequence), (STREAM, 9));
        assert!(key.made(&probe));
        assert!(!ProbeKey::from_bytes([2; 32]).made(&probe), "another stream's key");
        for at in 8..PROBE_BYTES {
            let mut changed = datagram;
            changed[at] ^= 1;
            let probe = ClaimedProbe::parse(&changed).expect("the shape of a probe");
            assert!(!key.made(&probe), "byte {at} changed");
        }
        assert!(ClaimedProbe::parse(&datagram[..63]).is_none());
        assert!(ClaimedProbe::parse(b"").is_none());
    }

    #[test]
    fn a_probe_key_survives_its_message_and_does_not_print() {
        let key = ProbeKey::from_bytes([5; 32]);
        let again = ProbeKey::from_base64(&key.to_base64()).expect("base 64");
        assert_eq!(again.seal(STREAM, 1), key.seal(STREAM, 1));
        assert!(ProbeKey::from_base64("AAAA").is_err());
        assert_eq!(format!("{key:?}"), "[redacted]");
    }
}
