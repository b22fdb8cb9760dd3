//! What a security event tells: CAEP 1.0 §3, and the framework's own events (SSF 1.0 §8.1.4, §8.1.5).
//!
//! A kind that is not known here is no fault of the transmitter's ([`Told::Unknown`]); a known one that lacks what it has to have is.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::identity::oidc::claims_groups;

const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type/";
const SSF: &str = "https://schemas.openid.net/secevent/ssf/event-type/";
/// The longest word of an event, bytes, and the longest kind that is shown.
const MAX_WORD: usize = 256;
const MAX_KIND: usize = 120;
/// The most claims of one `token-claims-change`.
const MAX_CLAIMS: usize = 64;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The session, or every session of the subject, is over.
    SessionRevoked,
    /// A credential was created, changed, revoked or deleted.
    CredentialChange {
        /// What kind of credential.
        credential: String,
        /// What became of it.
        change: CredentialChange,
    },
    /// The proof of sign-in counts for this from now on.
    AssuranceLevelChange {
        /// For what.
        level: Level,
        /// Whether that is more than before.
        direction: Direction,
    },
    /// A device is, or is no longer, as its management wants it.
    DeviceComplianceChange(Compliance),
    /// Claims have new values.
    TokenClaimsChange(Claims),
    /// The stream works.
    Verification {
        /// What the receiver gave along when it asked; absent if the transmitter began by itself.
        state: Option<String>,
    },
    /// The transmitter begins or stops to tell.
    StreamUpdated {
        /// What it does from now on.
        status: StreamStatus,
        /// Why, as it says.
        reason: Option<String>,
    },
    /// Something else.
    Unknown {
        /// Its kind, cut short.
        kind: String,
    },
}

/// What became of a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialChange {
    /// There is a new one.
    Create,
    /// It was revoked.
    Revoke,
    /// It is another one.
    Update,
    /// It is gone.
    Delete,
}

/// Whether a level is higher than before, as the transmitter says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It rose.
    Up,
    /// It fell.
    Down,
    /// It says nothing.
    Unsaid,
}

/// What a proof of sign-in counts for at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Level {
    /// One factor (NIST SP 800-63B, AAL1).
    OneFactor,
    /// Several factors (AAL2).
    SeveralFactors,
    /// Several factors of which none can be phished (AAL3).
    PhishingResistant,
    /// An authentication method (RFC 8176): this one alone.
    Method(String),
    /// An authentication context class (RFC 6711, or one of the transmitter's own).
    Class(String),
    /// It is not understood, and higher than before: nothing changes.
    Higher,
    /// It is not understood, and lower than before or nobody knows: nothing is proven but who it is.
    Nothing,
    /// It speaks of something that no rule asks about (identity proofing, federation): nothing changes.
    Elsewhere,
}

/// How a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compliance {
    /// As its management wants it.
    Compliant,
    /// Not so.
    NotCompliant,
}

/// New values of claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims(Map<String, Value>);

/// What became of the person's groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewGroups {
    /// Nothing is said of them.
    Unsaid,
    /// These; `None`: something is said that cannot be read, so they are unknown.
    Now(Option<BTreeSet<String>>),
}

impl Claims {
    /// Returns the groups, which stand under the claim of that name.
    pub fn groups(&self, claim: &str) -> NewGroups {
        self.0.get(claim).map_or(NewGroups::Unsaid, |value| NewGroups::Now(claims_groups(value)))
    }

    /// Returns the authentication context class, as a level.
    pub fn class(&self) -> Option<Level> {
        let value = self.0.get("acr")?;
        Some(value.as_str().filter(|word| word.len() <= MAX_WORD).map_or(Level::Nothing, |w| Level::Class(w.into())))
    }
}

/// What a transmitter does with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamStatus {
    /// It tells.
    Enabled,
    /// It keeps what there is to tell for later.
    Paused,
    /// It does not tell.
    Disabled,
}

impl StreamStatus {
    /// Returns the word for people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Paused => "paused",
            Self::Disabled => "disabled",
        }
    }
}

impl Told {
    /// Reads an event.
    ///
    /// # Errors
    /// What a known event lacks, as a constant text.
    pub(super) fn read(kind: &str, payload: &Map<String, Value>) -> Result<Self, &'static str> {
        let word = |name: &str| match payload.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= MAX_WORD && !text.chars().any(char::is_control) => {
                Ok(Some(text.as_str()))
            }
            Some(_) => Err("a word of the event is none"),
        };
        let unknown = || Self::Unknown { kind: kind.chars().filter(|c| !c.is_control()).take(MAX_KIND).collect() };
        if let Some(name) = kind.strip_prefix(CAEP) {
            return match name {
                "session-revoked" => Ok(Self::SessionRevoked),
                "credential-change" => {
                    let credential = word("credential_type")?.ok_or("a credential of no type")?.to_owned();
                    let change = match word("change_type")? {
                        Some("create") => CredentialChange::Create,
                        Some("revoke") => CredentialChange::Revoke,
                        Some("update") => CredentialChange::Update,
                        Some("delete") => CredentialChange::Delete,
                        Some(_) | None => return Err("a credential to which nothing known happened"),
                    };
                    Ok(Self::CredentialChange { credential, change })
                }
                "assurance-level-change" => {
                    let namespace = word("namespace")?.ok_or("a level of no namespace")?;
                    let current = word("current_level")?.ok_or("no current level")?;
                    let direction = match word("change_direction")? {
                        Some("increase") => Direction::Up,
                        Some("decrease") => Direction::Down,
                        None => Direction::Unsaid,
                        Some(_) => return Err("a level that neither rose nor fell"),
                    };
                    Ok(Self::AssuranceLevelChange { level: level(namespace, current, direction), direction })
                }
                "device-compliance-change" => match word("current_status")? {
                    Some("compliant") => Ok(Self::DeviceComplianceChange(Compliance::Compliant)),
                    Some("not-compliant") => Ok(Self::DeviceComplianceChange(Compliance::NotCompliant)),
                    Some(_) | None => Err("a device that is neither compliant nor not"),
                },
                "token-claims-change" => match payload.get("claims") {
                    Some(Value::Object(claims)) if !claims.is_empty() && claims.len() <= MAX_CLAIMS => {
                        Ok(Self::TokenClaimsChange(Claims(claims.clone())))
                    }
                    Some(_) | None => Err("no claims, or too many"),
                },
                _other => Ok(unknown()),
            };
        }
        match kind.strip_prefix(SSF) {
            Some("verification") => Ok(Self::Verification { state: word("state")?.map(str::to_owned) }),
            Some("stream-updated") => {
                let status = match word("status")? {
                    Some("enabled") => StreamStatus::Enabled,
                    Some("paused") => StreamStatus::Paused,
                    Some("disabled") => StreamStatus::Disabled,
                    Some(_) | None => return Err("a stream of no known status"),
                };
                Ok(Self::StreamUpdated { status, reason: word("reason")?.map(str::to_owned) })
            }
            Some(_) | None => Ok(unknown()),
        }
    }

    /// Tells whether it is about a person, or a session of theirs.
    pub(crate) const fn is_of_people(&self) -> bool {
        match self {
            Self::SessionRevoked
            | Self::CredentialChange { .. }
            | Self::AssuranceLevelChange { .. }
            | Self::TokenClaimsChange(_) => true,
            Self::DeviceComplianceChange(_)
            | Self::Verification { .. }
            | Self::StreamUpdated { .. }
            | Self::Unknown { .. } => false,
        }
    }

    /// Tells whether sign-ins of the person from before it count for less, or for nothing, after it.
    pub(crate) const fn overtakes_sign_ins(&self) -> bool {
        match self {
            Self::SessionRevoked | Self::CredentialChange { .. } | Self::TokenClaimsChange(_) => true,
            Self::AssuranceLevelChange { level, direction } => match (level, direction) {
                (Level::Elsewhere | Level::Higher, _) | (_, Direction::Up) => false,
                (_, Direction::Down | Direction::Unsaid) => true,
            },
            Self::DeviceComplianceChange(_)
            | Self::Verification { .. }
            | Self::StreamUpdated { .. }
            | Self::Unknown { .. } => false,
        }
    }

    /// Returns the last part of the event's name, for people.
    pub fn word(&self) -> &str {
        match self {
            Self::SessionRevoked => "session-revoked",
            Self::CredentialChange { .. } => "credential-change",
            Self::AssuranceLevelChange { .. } => "assurance-level-change",
            Self::DeviceComplianceChange(_) => "device-compliance-change",
            Self::TokenClaimsChange(_) => "token-claims-change",
            Self::Verification { .. } => "verification",
            Self::StreamUpdated { .. } => "stream-updated",
            Self::Unknown { kind } => kind,
        }
    }
}

fn level(namespace: &str, current: &str, direction: Direction) -> Level {
    let unclear = || match direction {
        Direction::Up => Level::Higher,
        Direction::Down | Direction::Unsaid => Level::Nothing,
    };
    match namespace {
        "NIST-AAL" => match current.to_ascii_lowercase().trim_start_matches("nist-") {
            "aal1" | "1" => Level::OneFactor,
            "aal2" | "2" => Level::SeveralFactors,
            "aal3" | "3" => Level::PhishingResistant,
            _other => unclear(),
        },
        "RFC8176" => Level::Method(current.to_owned()),
        "NIST-IAL" | "NIST-FAL" => Level::Elsewhere,
        "ISO-IEC-29115" => unclear(),
        _registered_classes_and_own_ones => Level::Class(current.to_owned()),
    }
}
