//! Security Event Tokens (RFC 8417, as Shared Signals Framework 1.0 §4 profiles them): what one has to be, and what it tells.
//!
//! ```text
//! text --parse--> jws::Unverified --signature checked by Keys--> read(claims) --> SecurityEvent
//! ```
//!
//! [`read`] is only for a token whose signature was checked over exactly these bytes.
//!
//! Threats: another kind of token passed off as an event (explicit type, `events`, neither `sub` nor `exp` nor `nonce`), one for
//! another receiver (`aud`), of another transmitter (`iss`), an old one (`iat`; what is young enough is remembered by `jti`), one
//! from the future, a time of the event that has not come (it would end sessions that are not begun yet).

use postern_common::time::WallTime;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{
    event::Told,
    subject::{Identifier, Subject},
};
use crate::signals::jws::{self, Unverified};

/// The longest token, bytes.
pub const MAX_TOKEN: usize = 32 << 10;
/// How far the transmitter's clock may go ahead of ours, seconds.
pub const CLOCK_SKEW: i64 = 60;
/// The longest `jti`, bytes, and the most audiences and events of one token.
const MAX_NAME: usize = 255;
const MAX_LISTED: usize = 8;
/// RFC 8417 §2.3.
const TYPE: &str = "secevent+jwt";

/// Why a token is refused, in the codes of RFC 8935 §2.4 and SSF 1.0 §8.1.4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorCode {
    /// It cannot be read as an event, or is not one that may be sent here now.
    InvalidRequest,
    /// It is not signed by a key of the transmitter's.
    InvalidKey,
    /// Another transmitter.
    InvalidIssuer,
    /// For another receiver.
    InvalidAudience,
    /// The transmitter did not show who it is.
    AuthenticationFailed,
    /// A verification that nobody asked for.
    InvalidState,
}

impl ErrorCode {
    /// Returns the code as it is sent.
    pub const fn word(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidKey => "invalid_key",
            Self::InvalidIssuer => "invalid_issuer",
            Self::InvalidAudience => "invalid_audience",
            Self::AuthenticationFailed => "authentication_failed",
            Self::InvalidState => "invalid_state",
        }
    }
}

/// A refused token: the code for the transmitter, and a constant text for the audit log and the transmitter's people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The code.
    pub code: ErrorCode,
    /// Why.
    pub why: &'static str,
}

const fn malformed(why: &'static str) -> Refused {
    Refused { code: ErrorCode::InvalidRequest, why }
}

/// What a token of a stream has to say of itself.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The transmitter.
    pub issuer: &'a str,
    /// This receiver.
    pub audience: &'a str,
    /// The stream's name at the transmitter, if it is known.
    pub stream_id: Option<&'a str>,
    /// For how long a token is taken after it was issued, seconds.
    pub max_age: i64,
    /// The stream's name here.
    pub stream: &'a str,
}

/// An event whose token holds in every part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityEvent {
    /// The token's name, as its issuer gives it.
    pub jti: String,
    /// Names the token: SHA-256 of the stream's name, issuer and `jti`. Two streams of one transmitter may use the same `jti`.
    pub hash: [u8; 32],
    /// When the token was issued.
    pub issued: WallTime,
    /// When that happened of which it tells: never later than when it was read.
    pub at: WallTime,
    /// About whom.
    pub subject: Subject,
    /// What.
    pub told: Told,
    /// Why, for administrators, as the transmitter says.
    pub reason: Option<String>,
}

/// Takes a token apart.
///
/// # Errors
/// [`Refused`].
pub fn parse(text: &str) -> Result<Unverified<'_>, Refused> {
    jws::parse(text.trim(), TYPE, MAX_TOKEN).map_err(malformed)
}

/// Why a token whose signature holds is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// It does not hold.
    Refused(Refused),
    /// It was issued later than now: one of the two clocks is wrong, and to refuse it would lose what it tells.
    NotYet,
}

impl From<Refused> for Unread {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// Returns when that happened of which a token tells, and when it was issued, milliseconds, before anything of it is checked: for putting
/// what came together in order, and for nothing else.
pub(super) fn moments(text: &str) -> (i64, i64) {
    let claims: Option<Map<String, Value>> =
        parse(text).ok().and_then(|token| serde_json::from_slice(&token.payload).ok());
    let Some(claims) = claims else { return (i64::MAX, i64::MAX) };
    let issued = claims.get("iat").and_then(Value::as_i64).map_or(i64::MAX, |at| at.saturating_mul(1_000));
    let payloads = claims.get("events").and_then(Value::as_object).into_iter().flatten();
    let told = payloads.filter_map(|(_, payload)| payload.get("event_timestamp")).next().or(claims.get("toe"));
    (told.and_then(Value::as_f64).map_or(issued, milliseconds), issued)
}

fn milliseconds(seconds: f64) -> i64 {
    (seconds * 1_000.0).ceil() as i64
}

/// Reads the claims of a token whose signature was checked.
///
/// # Errors
/// [`Unread`].
pub fn read(payload: &[u8], expected: Expected<'_>, now: WallTime) -> Result<SecurityEvent, Unread> {
    let claims: Map<String, Value> =
        serde_json::from_slice(payload).map_err(|_| malformed("its claims cannot be read"))?;
    if claims.get("iss").and_then(Value::as_str) != Some(expected.issuer) {
        return Err(Refused { code: ErrorCode::InvalidIssuer, why: "of another issuer" }.into());
    }
    let audience = match claims.get("aud") {
        Some(Value::String(one)) => one == expected.audience,
        Some(Value::Array(all)) => {
            all.len() <= MAX_LISTED && all.iter().any(|one| one.as_str() == Some(expected.audience))
        }
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => false,
    };
    if !audience {
        return Err(Refused { code: ErrorCode::InvalidAudience, why: "for another audience" }.into());
    }
    // SSF 1.0 §4.1.3, and what only ID tokens have.
    if ["sub", "exp", "nonce", "azp", "at_hash"].iter().any(|claim| claims.contains_key(*claim)) {
        return Err(malformed("it has claims of another kind of token").into());
    }
    let seconds = now.as_millis().div_euclid(1_000);
    let issued = claims.get("iat").and_then(Value::as_i64).ok_or(malformed("it does not tell when it was issued"))?;
    let age = seconds.saturating_sub(issued);
    if age > expected.max_age {
        return Err(malformed("too old").into());
    }
    if age < -CLOCK_SKEW {
        return Err(Unread::NotYet);
    }
    let jti = match claims.get("jti") {
        Some(Value::String(jti)) if !jti.is_empty() && jti.len() <= MAX_NAME && !jti.chars().any(char::is_control) => {
            jti.clone()
        }
        Some(_) | None => return Err(malformed("it has no name of its own").into()),
    };
    let subject = Subject::read(claims.get("sub_id").ok_or(malformed("it is about nobody"))?).map_err(malformed)?;
    let (told, payload) = told(&claims)?;
    check_stream(&told, &subject, expected.stream_id)?;
    let happened = payload.get("event_timestamp").or_else(|| claims.get("toe"));
    let happened = match happened {
        None => issued.saturating_mul(1_000),
        Some(value) => {
            milliseconds(value.as_f64().filter(|at| at.is_finite()).ok_or(malformed("its time is no time"))?)
        }
    };
    let at = WallTime::from_millis(happened).min(now);
    let name = Sha256::new().chain_update(expected.stream).chain_update([0]).chain_update(expected.issuer);
    let hash = name.chain_update([0]).chain_update(&jti).finalize().into();
    let issued = WallTime::from_millis(issued.saturating_mul(1_000));
    Ok(SecurityEvent { jti, hash, issued, at, subject, told, reason: reason(payload) })
}

/// Finds the one event that is understood. Others may stand beside it only as further names for the same (SSF 1.0 §4.1.8).
fn told(claims: &Map<String, Value>) -> Result<(Told, &Map<String, Value>), Refused> {
    let events = claims.get("events").and_then(Value::as_object).ok_or(malformed("it tells of no event"))?;
    if events.is_empty() || events.len() > MAX_LISTED {
        return Err(malformed("it tells of no event, or of too many"));
    }
    let mut found = None;
    for (kind, payload) in events {
        let payload = payload.as_object().ok_or(malformed("an event that is no object"))?;
        let told = Told::read(kind, payload).map_err(malformed)?;
        found = match (found, told) {
            (None, told) => Some((told, payload)),
            (Some((Told::Unknown { .. }, _)), told) => Some((told, payload)),
            (Some(known), Told::Unknown { .. }) => Some(known),
            (Some(_), _) => return Err(malformed("it tells of two events")),
        };
    }
    found.ok_or(malformed("it tells of no event"))
}

/// What is said of a stream has to be said of this one (SSF 1.0 §8.1.4.1, §8.1.5).
fn check_stream(told: &Told, subject: &Subject, stream_id: Option<&str>) -> Result<(), Refused> {
    let of_stream = match told {
        Told::Verification { .. } | Told::StreamUpdated { .. } => true,
        Told::SessionRevoked
        | Told::CredentialChange { .. }
        | Told::AssuranceLevelChange { .. }
        | Told::DeviceComplianceChange(_)
        | Told::TokenClaimsChange(_)
        | Told::Unknown { .. } => false,
    };
    match (of_stream, subject, stream_id) {
        (false, _, _) => Ok(()),
        (true, Subject::Simple(Identifier::Opaque(id)), Some(own)) if id != own => Err(malformed("of another stream")),
        (true, Subject::Simple(Identifier::Opaque(_)), Some(_) | None) => Ok(()),
        (true, Subject::Simple(_) | Subject::Complex(_), _) => Err(malformed("it names no stream")),
    }
}

/// Returns why the transmitter says that it happened: its English words, or the first.
fn reason(payload: &Map<String, Value>) -> Option<String> {
    let texts = payload.get("reason_admin")?.as_object()?;
    let text = texts.get("en").or_else(|| texts.values().next())?.as_str()?;
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    (!text.is_empty()).then_some(text)
}
