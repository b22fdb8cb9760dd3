//! Enrolment tokens, and the hashes by which tokens are known.

use std::{collections::BTreeSet, fmt, str::FromStr};

use ipnet::IpNet;
use postern_common::{
    id::{MachineName, ServiceName, Tag},
    time::WallTime,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// The SHA-256 of an enrolment token; the token itself is shown once and kept nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Hashes a token as it was given out. Tokens carry 160 random bits, so a plain hash resists guessing.
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.trim().as_bytes()).into())
    }

    /// Takes the hash of a token that was made elsewhere.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Tells in constant time whether two hashes are the same.
    pub fn is_same(&self, other: &Self) -> bool {
        subtle::ConstantTimeEq::ct_eq(&self.0[..], &other.0[..]).into()
    }

    /// Returns the 12 hexadecimal digits by which people name the token.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for TokenHash {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map(|()| Self(bytes))
    }
}

impl Serialize for TokenHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An enrolment token for servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The token's hash, which is also its name.
    pub hash: TokenHash,
    /// The service identity that a machine gets; a private one of its own if absent.
    pub service: Option<ServiceName>,
    /// The tags that it approves.
    pub tags: BTreeSet<Tag>,
    /// The machine name that it approves, if it was made for one machine.
    pub machine: Option<MachineName>,
    /// From where machines may use it; empty means from anywhere.
    #[serde(default)]
    pub networks: Vec<IpNet>,
    /// How many machines may still use it.
    pub uses_left: u32,
    /// When it stops to work.
    pub expires: WallTime,
    /// The operating system's user who made it.
    pub created_by: String,
    /// When.
    pub created: WallTime,
    /// When a machine last used it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<WallTime>,
}
