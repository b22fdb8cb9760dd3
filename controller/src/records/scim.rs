//! What identity providers provision by SCIM, as it is kept.

use std::{fmt, str::FromStr};

use ipnet::IpNet;
use postern_common::time::WallTime;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::TokenHash;

/// Names a user or group of SCIM (RFC 7643 §3.1): drawn here, never given to another, written as a UUID and
/// read in any case, as some clients write it. It begins with the time, so
/// that lists in its order grow at their end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScimId([u8; 16]);

impl ScimId {
    /// Makes an identifier of the time and 10 random bytes.
    pub fn new(at: WallTime, random: [u8; 10]) -> Self {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&at.as_millis().to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&random);
        Self(bytes)
    }
}

impl fmt::Display for ScimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = hex::encode(self.0);
        write!(f, "{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
    }
}

impl fmt::Debug for ScimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no identifier of SCIM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an identifier")]
pub struct NotAnId;

impl FromStr for ScimId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let shape = text.len() == 36
            && text.bytes().enumerate().all(|(i, byte)| (byte == b'-') == matches!(i, 8 | 13 | 18 | 23));
        let mut bytes = [0; 16];
        let digits = if shape { text.replace('-', "") } else { String::new() };
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| NotAnId)?;
        Ok(Self(bytes))
    }
}

impl Serialize for ScimId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ScimId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A person whom a provider has provisioned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScimUser {
    /// The resource.
    pub id: ScimId,
    /// The issuer of the provider.
    pub issuer: String,
    /// `userName`: unique within the provider, whatever its case.
    pub user_name: String,
    /// `externalId`: the provider's own name for the person; unique within the provider here.
    pub external_id: Option<String>,
    /// Whether the person may take part.
    pub active: bool,
    /// Every other attribute, in its canonical form; kept only to be given back to the provider.
    pub attributes: Map<String, Value>,
    /// When it was created.
    pub created: WallTime,
    /// When it last changed.
    pub modified: WallTime,
    /// How often it changed: its entity tag.
    pub version: u64,
}

impl ScimUser {
    /// Returns a name of theirs, as it is compared.
    pub fn name_by(&self, key: ScimKey) -> Option<String> {
        match key {
            ScimKey::ExternalId => self.external_id.clone(),
            ScimKey::UserName => Some(key.compared(&self.user_name)),
        }
    }
}

/// A group that a provider has provisioned. Its members are kept beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScimGroup {
    /// The resource.
    pub id: ScimId,
    /// The issuer of the provider.
    pub issuer: String,
    /// `displayName`: what `group:NAME` in the policy means; unique within the provider here.
    pub display_name: String,
    /// `externalId`.
    pub external_id: Option<String>,
    /// When it was created.
    pub created: WallTime,
    /// When it, or who is in it, last changed.
    pub modified: WallTime,
    /// How often that was: its entity tag.
    pub version: u64,
}

/// By which attribute of SCIM's a person who signs in is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ScimKey {
    /// `externalId`.
    #[serde(rename = "externalId")]
    ExternalId,
    /// `userName`, whatever its case.
    #[serde(rename = "userName")]
    UserName,
}

impl ScimKey {
    /// Returns the attribute's name.
    pub const fn word(self) -> &'static str {
        match self {
            Self::ExternalId => "externalId",
            Self::UserName => "userName",
        }
    }

    /// Returns the form in which values of the attribute are compared (RFC 7643 §4.1.1, §3.1).
    pub fn compared(self, value: &str) -> String {
        match self {
            Self::ExternalId => value.to_owned(),
            Self::UserName => value.to_lowercase(),
        }
    }
}

/// Somebody whom the provider had provisioned and took away, by one name of theirs. They stay out until they are provisioned
/// again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ScimGone {
    /// The issuer of the provider.
    pub issuer: String,
    /// Which name.
    pub key: ScimKey,
    /// The name, as it is compared.
    pub value: String,
}

impl ScimGone {
    /// Returns the record's name in the store.
    pub fn id(&self) -> String {
        let hash = Sha256::new().chain_update(&self.issuer).chain_update([0]).chain_update(self.key.word());
        hex::encode(hash.chain_update([0]).chain_update(&self.value).finalize())
    }
}

/// A bearer token of one SCIM client. Whoever has it may change the people and groups of one provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScimToken {
    /// The token's hash, which is also its name; the token itself is shown once and kept nowhere.
    pub hash: TokenHash,
    /// The issuer of the provider whose people it may change.
    pub issuer: String,
    /// From where it may be used; empty means from anywhere.
    pub networks: Vec<IpNet>,
    /// When it stops to work.
    pub expires: WallTime,
    /// The operating system's user who made it.
    pub created_by: String,
    /// When.
    pub created: WallTime,
    /// When it was last used, within an hour.
    #[serde(default)]
    pub last_heard: Option<WallTime>,
}

/// Who is in which group, as the store has it: group, user.
pub type ScimMembership = (ScimId, ScimId);
