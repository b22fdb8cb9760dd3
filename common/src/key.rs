//! Keys. Public, private and pre-shared keys are types of their own; the secret ones are wiped when dropped,
//! print as `[redacted]`, and cannot be serialised by accident ([`PresharedKey`] alone travels, over TLS).

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::{Signer, Verifier};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Tells that a text is not a key: 32 bytes in standard base 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a key of 32 bytes in base 64 (44 characters)")]
pub struct KeyError;

/// Tells that a signature does not fit the key and the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not fit")]
pub struct BadSignature;

fn decode32(text: &str) -> Result<[u8; 32], KeyError> {
    BASE64.decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(KeyError)
}

macro_rules! public_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Takes the 32 bytes as they are.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// Returns the 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Returns the first 16 hexadecimal digits of the key's SHA-256 in groups of four: what a person compares.
            pub fn fingerprint(&self) -> String {
                let digest = hex::encode(&Sha256::digest(self.0)[..8]);
                digest.as_bytes().chunks(4).map(|c| String::from_utf8_lossy(c)).collect::<Vec<_>>().join("-")
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&BASE64.encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                decode32(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

public_bytes! {
    /// A WireGuard public key (Curve25519).
    WireGuardPublicKey
}
public_bytes! {
    /// A device's public key (Ed25519): made at enrolment, it names the device to the controller.
    DevicePublicKey
}
public_bytes! {
    /// The controller's public signing key (Ed25519): what a node pins when it joins.
    ControllerPublicKey
}

/// A WireGuard private key (Curve25519). It never leaves the machine that made it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct WireGuardPrivateKey([u8; 32]);

impl WireGuardPrivateKey {
    /// Takes 32 random bytes; clamping happens where the key is used (RFC 7748 §5).
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Lends the secret bytes to the WireGuard code or to the sealed state file.
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Computes the public key.
    pub fn public(&self) -> WireGuardPublicKey {
        let secret = x25519_dalek::StaticSecret::from(self.0);
        WireGuardPublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }
}

impl fmt::Debug for WireGuardPrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A pre-shared key of one pair of WireGuard keys, made by the controller (WireGuard whitepaper §5.2).
///
/// It is serialised, because it travels inside signed grants over TLS 1.3 with X25519MLKEM768.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; 32]);

impl PresharedKey {
    /// Takes 32 random bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Lends the secret bytes to the WireGuard code.
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Writes the key in base 64, for a configuration that a stock client takes.
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.0)
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Serialize for PresharedKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = BASE64.encode(self.0);
        let done = serializer.serialize_str(&text);
        text.zeroize();
        done
    }
}

impl<'de> Deserialize<'de> for PresharedKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        decode32(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// An Ed25519 signature (RFC 8032), 64 bytes; base 64 in text formats.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    /// Takes the 64 bytes as they are.
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// Returns the 64 bytes.
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", BASE64.encode(&self.0[..6]))
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let bytes = BASE64.decode(text.as_bytes()).map_err(serde::de::Error::custom)?;
        let bytes: [u8; 64] = bytes.try_into().map_err(|_| serde::de::Error::custom("expected 64 bytes"))?;
        Ok(Self(bytes))
    }
}

/// What a signature is for. The label is part of the signed bytes, so that a signature made for one purpose
/// can never be shown for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningPurpose {
    /// A device answers the controller's challenge on its stream.
    StreamHello,
    /// A new device proves that it holds the key it wants to enrol.
    Join,
    /// The controller tells a node what to enforce.
    Grant,
    /// A device tells the controller its posture.
    Posture,
}

impl SigningPurpose {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::StreamHello => b"postern stream hello v1\0",
            Self::Join => b"postern join v1\0",
            Self::Grant => b"postern grant v1\0",
            Self::Posture => b"postern posture v1\0",
        }
    }

    fn message(self, payload: &[u8]) -> Vec<u8> {
        [self.label(), payload].concat()
    }
}

macro_rules! signing_key {
    ($(#[$doc:meta])* $name:ident, $public:ident) => {
        $(#[$doc])*
        pub struct $name(ed25519_dalek::SigningKey);

        impl $name {
            /// Takes 32 random bytes as the seed (RFC 8032 §5.1.5).
            pub fn from_seed(seed: &[u8; 32]) -> Self {
                Self(ed25519_dalek::SigningKey::from_bytes(seed))
            }

            /// Lends the seed to the file that keeps it.
            pub fn expose_seed(&self) -> &[u8; 32] {
                self.0.as_bytes()
            }

            /// Computes the public key.
            pub fn public(&self) -> $public {
                $public(self.0.verifying_key().to_bytes())
            }

            /// Signs `payload` for one purpose.
            pub fn sign(&self, purpose: SigningPurpose, payload: &[u8]) -> Signature {
                Signature(self.0.sign(&purpose.message(payload)).to_bytes())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[redacted]")
            }
        }

        impl $public {
            /// Checks that the holder of this key signed `payload` for `purpose`.
            ///
            /// # Errors
            /// [`BadSignature`] if it did not, or if the key or signature is malformed or of small order.
            pub fn verify(&self, purpose: SigningPurpose, payload: &[u8], signature: &Signature) -> Result<(), BadSignature> {
                let key = ed25519_dalek::VerifyingKey::from_bytes(&self.0).map_err(|_| BadSignature)?;
                if key.is_weak() {
                    return Err(BadSignature);
                }
                let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
                key.verify(&purpose.message(payload), &signature).map_err(|_| BadSignature)
            }
        }
    };
}

/// The public key (Ed25519) of a device-management system that signs the marker files of the machines it manages.
///
/// Its signatures are over the file's bytes alone, with no label in front, so that any tool can make them; the key serves
/// nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkerPublicKey([u8; 32]);

impl MarkerPublicKey {
    /// Takes the 32 bytes as they are.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Checks that the holder of this key signed `bytes`.
    ///
    /// # Errors
    /// [`BadSignature`] if it did not, or if the key or signature is malformed or of small order.
    pub fn verify(&self, bytes: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(&self.0).map_err(|_| BadSignature)?;
        key.verify_strict(bytes, &ed25519_dalek::Signature::from_bytes(&signature.0)).map_err(|_| BadSignature)
    }
}

impl FromStr for MarkerPublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode32(text).map(Self)
    }
}

impl<'de> Deserialize<'de> for MarkerPublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

signing_key! {
    /// A device's private key (Ed25519). It never leaves the device. Wiped when dropped.
    DeviceSigningKey, DevicePublicKey
}
signing_key! {
    /// The controller's private signing key (Ed25519). Wiped when dropped.
    ControllerSigningKey, ControllerPublicKey
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_for_one_purpose_does_not_serve_another() {
        let key = DeviceSigningKey::from_seed(&[3; 32]);
        let signature = key.sign(SigningPurpose::Join, b"hello");
        assert_eq!(key.public().verify(SigningPurpose::Join, b"hello", &signature), Ok(()));
        assert_eq!(key.public().verify(SigningPurpose::StreamHello, b"hello", &signature), Err(BadSignature));
        assert_eq!(key.public().verify(SigningPurpose::Join, b"hellO", &signature), Err(BadSignature));
    }

    #[test]
    fn secrets_do_not_print() {
        assert_eq!(format!("{:?}", WireGuardPrivateKey::from_bytes([1; 32])), "[redacted]");
        assert_eq!(format!("{:?}", PresharedKey::from_bytes([1; 32])), "[redacted]");
        assert_eq!(format!("{:?}", DeviceSigningKey::from_seed(&[1; 32])), "[redacted]");
    }

    #[test]
    fn a_public_key_of_small_order_verifies_nothing() {
        let identity = DevicePublicKey::from_bytes({
            let mut bytes = [0u8; 32];
            bytes[0] = 1;
            bytes
        });
        let signature = Signature::from_bytes([0; 64]);
        assert_eq!(identity.verify(SigningPurpose::Join, b"", &signature), Err(BadSignature));
    }
}
