//! The doors behind what a provider ends: which sign-ins from before open nothing any more. Sans-IO.
//!
//! ```text
//! event, logout --shut--> Door (whose sign-ins, proven until when, why) --before--> a sign-in that ends now, a join, a step-up
//! ```
//!
//! Whoever ends login sessions ends what is open. A page, or a sign-in at the provider, that was under way then comes later, with a proof
//! from before, and so does who is still signed in at a provider that was told by somebody else.
//!
//! | door | whose sign-ins |
//! | --- | --- |
//! | [`Door::Person`] | everybody's with that `sub` |
//! | [`Door::Unnamed`] | theirs that name no session at the provider: the one that ended may be theirs |
//! | [`Door::Session`], [`Door::SessionOf`] | those of that session at the provider (`sid`), of whomever, or of that person |
//!
//! Invariants:
//! - The end of one session shuts no door to another one's sign-ins.
//! - What is shut **for good** is durable, and stays for [`KEPT`], as long as a session at a provider may be expected to live, while there
//!   is room ([`MAX_SHUT`]; the oldest makes room, and is counted). What is shut in passing stays for [`CODE_LIFE`], the longest that a
//!   sign-in which was under way could take, and is not durable: sign-ins under way do not outlive a restart.
//! - A door never opens wider: an older event that comes later moves nothing back.
//!
//! Names are kept as hashes, so that each takes the same room, however long it is.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use postern_common::time::{Monotonic, Now, WallTime};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::records::StoreChange;

/// How long what is shut for good is remembered.
const KEPT: Duration = Duration::from_secs(30 * 86_400);
/// How long a sign-in may be under way: the provider's code for it lives for ten minutes at most (RFC 6749 §4.1.2).
const CODE_LIFE: Duration = Duration::from_secs(600);
/// How long a page may be under way: a sign-in of which nobody knows when it was proven is turned away for so long.
const UNDER_WAY: Duration = Duration::from_secs(90);
/// The most doors that are shut for good, and in passing.
pub(crate) const MAX_SHUT: usize = 32_768;
pub(crate) const MAX_PASSING: usize = 8_192;

/// Why sign-ins from before open nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overtaking {
    /// A security event revoked the session, or all of the person's.
    SessionRevoked,
    /// The person signed out at the provider.
    LoggedOut,
    /// A credential of the person was changed.
    CredentialChange,
    /// The proof counts for less.
    AssuranceLevelChange,
    /// The provider says other things of the person.
    TokenClaimsChange,
    /// The password or second factor of a local account was set anew.
    CredentialsSet,
}

impl Overtaking {
    /// Returns the constant word for the audit log.
    pub const fn word(self) -> &'static str {
        match self {
            Self::SessionRevoked => "session_revoked",
            Self::LoggedOut => "signed_out_at_provider",
            Self::CredentialChange => "credential_change",
            Self::AssuranceLevelChange => "assurance_level_change",
            Self::TokenClaimsChange => "token_claims_change",
            Self::CredentialsSet => "credentials_set",
        }
    }

    /// Says what happened, to the person.
    pub const fn told(self) -> &'static str {
        match self {
            Self::SessionRevoked => "your identity provider has revoked this sign-in",
            Self::LoggedOut => "you signed out at your identity provider",
            Self::CredentialChange => "your credentials were changed at your identity provider after this sign-in",
            Self::AssuranceLevelChange => "your identity provider says that this sign-in counts for less by now",
            Self::TokenClaimsChange => "what your identity provider says of you has changed since this sign-in",
            Self::CredentialsSet => "the password or second factor of your account was set anew after this sign-in",
        }
    }
}

/// Whose sign-ins are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door<'a> {
    /// Everybody's with that `sub`.
    Person {
        /// Their name at the provider.
        sub: &'a str,
    },
    /// A person's that name no session at the provider.
    Unnamed {
        /// Their name at the provider.
        sub: &'a str,
    },
    /// Those of one session at the provider.
    Session {
        /// The session.
        sid: &'a str,
    },
    /// Those of one session, of one person alone.
    SessionOf {
        /// The session.
        sid: &'a str,
        /// The person.
        sub: &'a str,
    },
}

type Name = [u8; 32];

impl Door<'_> {
    fn name(self, issuer: &str) -> Name {
        let (kind, one, other) = match self {
            Self::Person { sub } => (b'p', sub, ""),
            Self::Unnamed { sub } => (b'u', sub, ""),
            Self::Session { sid } => (b's', sid, ""),
            Self::SessionOf { sid, sub } => (b'o', sid, sub),
        };
        let mut hash = Sha256::new().chain_update([kind]);
        for part in [issuer, one, other] {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    /// Of a session that ended no sign-in is good of which nobody knows when it was proven; a person has others.
    const fn is_of_session(self) -> bool {
        match self {
            Self::Session { .. } | Self::SessionOf { .. } => true,
            Self::Person { .. } | Self::Unnamed { .. } => false,
        }
    }
}

/// A door that is shut for good, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutDoor {
    /// SHA-256 of what it is the door of, in hexadecimal.
    pub name: String,
    /// Sign-ins that were proven until then.
    pub proven_until: WallTime,
    /// When it was shut.
    pub since: WallTime,
    /// Why.
    pub why: Overtaking,
}

/// A sign-in that asks for something.
#[derive(Debug, Clone, Copy)]
pub struct SignIn<'a> {
    /// The provider.
    pub issuer: &'a str,
    /// The person.
    pub sub: &'a str,
    /// The session at the provider, if it said.
    pub sid: Option<&'a str>,
    /// When it was proven, if the provider said.
    pub auth_time: Option<WallTime>,
}

#[derive(Debug, Clone, Copy)]
struct Shut {
    proven_until: WallTime,
    since: WallTime,
    why: Overtaking,
}

#[derive(Debug, Clone, Copy)]
struct Passing {
    proven_until: WallTime,
    since: Monotonic,
    why: Overtaking,
}

/// All doors.
#[derive(Debug)]
pub(crate) struct Doors {
    shut: Aged<Shut>,
    passing: Aged<Passing>,
    forgotten: u64,
}

impl Doors {
    /// Takes up what the store kept.
    pub(crate) fn load(mut records: Vec<ShutDoor>) -> Self {
        records.sort_by_key(|record| record.since);
        let mut doors = Self { shut: Aged::new(MAX_SHUT), passing: Aged::new(MAX_PASSING), forgotten: 0 };
        for ShutDoor { name, proven_until, since, why } in records {
            let mut hash = [0; 32];
            if hex::decode_to_slice(&name, &mut hash).is_ok() {
                doors.shut.put(hash, Shut { proven_until, since, why });
            }
        }
        doors
    }

    /// Shuts a door for good to what was proven until then; returns what has to be durable for it.
    pub(crate) fn shut(
        &mut self,
        issuer: &str,
        door: Door<'_>,
        proven_until: WallTime,
        why: Overtaking,
        now: WallTime,
    ) -> Vec<StoreChange> {
        let name = door.name(issuer);
        if self.shut.get(&name).is_some_and(|known| proven_until <= known.proven_until) {
            return vec![];
        }
        let mut changes = Vec::new();
        if let Some(oldest) = self.shut.put(name, Shut { proven_until, since: now, why }) {
            self.forgotten += 1;
            changes.push(StoreChange::DeleteShutDoor(hex::encode(oldest)));
        }
        let record = ShutDoor { name: hex::encode(name), proven_until, since: now, why };
        changes.push(StoreChange::PutShutDoor(record));
        changes
    }

    /// Shuts a door for as long as a sign-in that was under way could take.
    pub(crate) fn shut_in_passing(
        &mut self,
        issuer: &str,
        door: Door<'_>,
        proven_until: WallTime,
        why: Overtaking,
        now: Now,
    ) {
        while let Some((name, oldest)) = self.passing.oldest()
            && now.monotonic.since(oldest.since) >= CODE_LIFE
        {
            self.passing.remove(&name);
        }
        let name = door.name(issuer);
        let mut passing = Passing { proven_until, since: now.monotonic, why };
        if let Some(known) = self.passing.get(&name).filter(|known| known.proven_until > proven_until) {
            (passing.proven_until, passing.why) = (known.proven_until, known.why);
        }
        self.forgotten += u64::from(self.passing.put(name, passing).is_some());
    }

    /// Tells why a sign-in opens nothing, if a door is shut to it.
    pub(crate) fn before(&self, sign_in: SignIn<'_>, now: Now) -> Option<Overtaking> {
        let SignIn { issuer, sub, sid, auth_time } = sign_in;
        let doors = match sid {
            Some(sid) => [Some(Door::Session { sid }), Some(Door::SessionOf { sid, sub }), Some(Door::Person { sub })],
            None => [Some(Door::Unnamed { sub }), Some(Door::Person { sub }), None],
        };
        doors.into_iter().flatten().find_map(|door| {
            let name = door.name(issuer);
            let shut = self.shut.get(&name).filter(|shut| match auth_time {
                Some(proven) => proven <= shut.proven_until,
                // Nobody knows when it was proven: a person would be kept out for too long.
                None => door.is_of_session(),
            });
            let passing = self.passing.get(&name).filter(|passing| {
                let age = now.monotonic.since(passing.since);
                match auth_time {
                    Some(proven) => proven <= passing.proven_until && age < CODE_LIFE,
                    None if door.is_of_session() => age < CODE_LIFE,
                    None => age < UNDER_WAY,
                }
            });
            shut.map(|shut| shut.why).or(passing.map(|passing| passing.why))
        })
    }

    /// Forgets what was shut so long ago that no session is from before, at most `most`; returns what has to be durable for it.
    pub(crate) fn sweep(&mut self, now: WallTime, most: usize) -> Vec<StoreChange> {
        let mut changes = Vec::new();
        while changes.len() < most
            && let Some((name, oldest)) = self.shut.oldest()
            && oldest.since.saturating_add(KEPT) < now
        {
            self.shut.remove(&name);
            changes.push(StoreChange::DeleteShutDoor(hex::encode(name)));
        }
        changes
    }

    /// Returns how many were forgotten for want of room.
    pub(crate) const fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

/// A table that is bounded: what was put there first makes room.
#[derive(Debug)]
struct Aged<V> {
    all: HashMap<Name, (u64, V)>,
    order: BTreeMap<u64, Name>,
    next: u64,
    most: usize,
}

impl<V: Copy> Aged<V> {
    fn new(most: usize) -> Self {
        Self { all: HashMap::new(), order: BTreeMap::new(), next: 0, most }
    }

    fn get(&self, name: &Name) -> Option<V> {
        self.all.get(name).map(|(_, value)| *value)
    }

    fn oldest(&self) -> Option<(Name, V)> {
        let (_, name) = self.order.first_key_value()?;
        self.get(name).map(|value| (*name, value))
    }

    fn remove(&mut self, name: &Name) {
        if let Some((place, _)) = self.all.remove(name) {
            self.order.remove(&place);
        }
    }

    /// Puts something last; returns what made room for it.
    fn put(&mut self, name: Name, value: V) -> Option<Name> {
        self.remove(&name);
        let full = self.all.len() >= self.most;
        let room = if full { self.order.pop_first().map(|(_, oldest)| oldest) } else { None };
        if let Some(oldest) = &room {
            self.all.remove(oldest);
        }
        self.all.insert(name, (self.next, value));
        self.order.insert(self.next, name);
        self.next += 1;
        room
    }
}

#[cfg(test)]
#[path = "doors_tests.rs"]
mod tests;
