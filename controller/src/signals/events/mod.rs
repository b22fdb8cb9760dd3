//! Security events of other systems: a receiver of the Shared Signals Framework 1.0 and of CAEP 1.0, by push (RFC 8935) and by poll
//! (RFC 8936).
//!
//! ```text
//! transmitter --POST /events/NAME, bearer--> web::events --.
//! poll_url <--poll, ack, setErrs--> poll ------------------+--> Receiver: parse, signature (Keys), read --> SecurityEvent
//!     --look--> core: seen before?   --resolve--> browsers' sign-ins from before the event end
//!     --take_event--> core: name of the token, effects, audit: one transaction --> only then 202, or `ack` in the next poll
//! ```
//!
//! | event | effect |
//! | --- | --- |
//! | `session-revoked` | the login sessions that it names end, those that were proven before it |
//! | `credential-change` | the person has to sign in anew |
//! | `assurance-level-change` | the proof of sign-in counts for that much, and never for more than was verified at sign-in |
//! | `device-compliance-change` | the attested fact `compliant` of the device |
//! | `token-claims-change` | the session's groups, and the class of its proof, are decided anew |
//! | `verification` | the stream is alive |
//! | `stream-updated` | shown, and an alert when the transmitter stops |
//!
//! Invariants:
//! - **A stream speaks of one provider's people** ([`Binding::people_of`]) and, if it says so, of devices. What it says of
//!   anybody else is acknowledged, audited and has no effect.
//! - **An address names nobody surely.** An event about an e-mail address or account takes away; only `iss_sub` and `opaque` give back.
//! - **Once.** The name of a token is durable with its effects ([`memory`]); what is older than the memory is refused by its age.
//! - **Nothing is acknowledged before it is durable.** A crash in between lets the transmitter say it again, which changes nothing.
//! - A refusal changes nothing; refusals are counted, and a flood of them is a line a minute ([`super::refusals`]).
//!
//! Threats: a forged, replayed, foreign or old token ([`set`]); a transmitter that speaks of people who are not its own; somebody
//! who can reach the push endpoint (bearer before anything is parsed, limits by address, bounded bodies and time); a transmitter
//! that is silenced (an alert, and `compliant` counts for nothing meanwhile).
//!
//! Rejected: creating the stream at the transmitter by its management API. It needs a wider credential than receiving, and every
//! transmitter has an administration page for it.
//!
//! | module | holds |
//! | --- | --- |
//! | [`settings`] | `[[events]]` in `controller.toml` |
//! | [`set`], [`event`], [`subject`] | tokens, what they tell, about whom; sans-IO |
//! | [`memory`] | what was taken, and when a stream was heard; sans-IO |
//! | `transmitter` | its metadata and keys; asking for a verification |
//! | `receiver` | one token from text to outcome |
//! | `poll` | the poll client |

pub mod event;
pub mod memory;
mod poll;
mod receiver;
pub mod set;
pub mod settings;
pub mod subject;
mod transmitter;

use std::collections::BTreeSet;

use postern_common::id::SessionId;

pub use self::receiver::{CannotReceive, Receivers};
pub(crate) use self::{
    poll::poll,
    receiver::{Around, Outcome, verify_now_and_then},
};

/// Of whom and what a stream may speak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The stream's name in the configuration.
    pub name: String,
    /// The transmitter, as its tokens name it.
    pub issuer: String,
    /// The provider of whose people it speaks; `None`: of nobody.
    pub people_of: Option<String>,
    /// Whether it speaks of devices.
    pub devices: SpeaksOfDevices,
    /// The claim that holds the person's groups, as in the provider's ID tokens.
    pub groups_claim: String,
}

/// Whether a stream speaks of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpeaksOfDevices {
    /// It does.
    Yes,
    /// What it says of them has no effect.
    No,
}

/// What is known of the person whom an event names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Named {
    /// The event names none.
    #[default]
    NotAtAll,
    /// Somebody of another provider: nobody here.
    Elsewhere,
    /// In a way that is not understood here: a session or device beside the name decides.
    Unresolved,
    /// Somebody of the provider.
    Known,
}

/// About whom an event is, as far as names go; the core knows the machines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whom {
    /// People of the provider who are surely meant, by `sub`.
    pub surely: BTreeSet<String>,
    /// People whose name it is today, by `sub`.
    pub perhaps: BTreeSet<String>,
    /// What is known of the person who is named.
    pub user: Named,
    /// The browsers' login sessions that the session at the provider stands for; `None` if none is named.
    pub browsers: Option<BTreeSet<SessionId>>,
    /// Those of them of which the provider said that they stand for it.
    pub exactly: BTreeSet<SessionId>,
    /// How many browsers' login sessions ended.
    pub browsers_ended: usize,
    /// Browsers' login sessions of these people that were proven after the event.
    pub kept: BTreeSet<SessionId>,
}

impl Whom {
    /// Lists everybody who may be meant.
    pub fn everybody(&self) -> impl Iterator<Item = &String> {
        self.surely.union(&self.perhaps)
    }
}

/// Any bytes as a token, and as the claims of one that was signed: no panic, and what is taken is of this issuer, for this audience
/// and of its time.
pub fn fuzz_security_event(bytes: &[u8]) {
    use postern_common::time::WallTime;
    let now = WallTime::from_millis(1_795_424_400_000);
    let expected = set::Expected {
        issuer: "https://idp.example",
        audience: "https://ctl.example/events/okta",
        stream_id: Some("s-1"),
        max_age: 3_600,
        stream: "okta",
    };
    let unverified = std::str::from_utf8(bytes).ok().and_then(|text| set::parse(text).ok());
    // The signature is not what is looked for: bare claims, too, reach their checks.
    let payloads = [unverified.map(|token| token.payload), Some(bytes.to_vec())];
    for payload in payloads.into_iter().flatten() {
        let Ok(event) = set::read(&payload, expected, now) else { continue };
        assert!(event.at <= now && event.jti.len() <= 255);
        assert!(now.since(event.issued).as_secs() <= 3_600);
        let claims: serde_json::Value = serde_json::from_slice(&payload).expect("it was read");
        assert!(claims["sub"].is_null() && claims["exp"].is_null() && claims["iss"] == expected.issuer);
        assert!(!event.told.word().chars().any(char::is_control) && event.told.word().len() <= 4 * 120);
        if let event::Told::TokenClaimsChange(claims) = &event.told
            && let event::NewGroups::Now(Some(groups)) = claims.groups("groups")
        {
            assert!(groups.len() <= 2_000 && groups.iter().all(|group| group.len() <= 256));
        }
    }
}

#[cfg(test)]
mod tests;
