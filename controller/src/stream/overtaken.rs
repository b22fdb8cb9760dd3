//! Sign-ins that an event or a logout overtakes: the doors behind what is being ended ([`Doors`](crate::signals::provider::Doors)).
//!
//! ```text
//! event  --sign_ins_overtaken--.
//! logout --signed_out_at_provider--> doors --overtaken--> a sign-in that ends now, a join, a step-up, an approval: turned away
//! ```
//!
//! First the door, then the rooms: a door is shut before anything is looked for that has to end, so that a sign-in which finds its way in
//! meanwhile is turned away when it asks.
//!
//! Whether a sign-in comes from before is told by the provider's own times (`auth_time`, and the time of the event or logout): the
//! clocks of two machines are not compared. Of people who are known here, the time of the last revocation stands in their record too
//! ([`proven_after`](crate::records::SubjectRecord::proven_after)) and is never forgotten.

use postern_common::time::{Now, WallTime};

use super::core::Core;
use crate::{
    records::{Person, SubjectKind},
    signals::{
        events::{
            Named, Whom,
            event::Told,
            set::SecurityEvent,
            subject::{Identifier, Subject},
        },
        provider::{Door, Overtaking, SignIn},
    },
};

/// The most doors that one look at the clock forgets.
const FORGOTTEN_AT_ONCE: usize = 512;

/// How long a door is shut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasts {
    /// For good.
    ForGood,
    /// As long as a sign-in that is under way could take.
    InPassing,
}

impl Core {
    /// Sees to it that sign-ins from before an event open nothing, before what they opened is ended.
    pub fn overtake(&mut self, people_of: &str, event: &SecurityEvent, whom: &Whom, now: Now) {
        self.sign_ins_overtaken(people_of, event, whom, now);
        self.flush(now);
    }

    /// As [`Core::overtake`], within a turn: those under way, and after a revocation those of all time.
    pub(super) fn sign_ins_overtaken(&mut self, people_of: &str, event: &SecurityEvent, whom: &Whom, now: Now) {
        let (why, lasts) = match &event.told {
            Told::SessionRevoked => (Overtaking::SessionRevoked, Lasts::ForGood),
            Told::CredentialChange { .. } => (Overtaking::CredentialChange, Lasts::InPassing),
            Told::AssuranceLevelChange { .. } => (Overtaking::AssuranceLevelChange, Lasts::InPassing),
            Told::TokenClaimsChange(_) => (Overtaking::TokenClaimsChange, Lasts::InPassing),
            Told::DeviceComplianceChange(_)
            | Told::Verification { .. }
            | Told::StreamUpdated { .. }
            | Told::Unknown { .. } => return,
        };
        if !event.told.overtakes_sign_ins() || whom.user == Named::Elsewhere {
            return;
        }
        let (session, narrows) = match (&event.subject, &event.told) {
            (Subject::Complex(members), _) => (members.session.as_ref(), true),
            // CAEP 1.0 §3.1: an opaque subject may be the session itself, and may be the person.
            (Subject::Simple(one), Told::SessionRevoked) => (Some(one), false),
            (Subject::Simple(_), _) => (None, false),
        };
        let issuers = [people_of];
        let sids: Vec<&str> = session.into_iter().flat_map(|session| Identifier::handles(session, &issuers)).collect();
        let mut shut = |door| self.shut_door(people_of, door, event.at, why, lasts, now);
        for sid in sids.iter().copied() {
            match whom.user {
                // A session that is not theirs is somebody else's, who is not meant.
                Named::Known if narrows => {
                    whom.everybody().for_each(|sub| shut(Door::SessionOf { sid, sub }));
                }
                Named::Known | Named::NotAtAll | Named::Unresolved | Named::Elsewhere => shut(Door::Session { sid }),
            }
        }
        // Where a session is named, the others of that person are not meant.
        let is_one = narrows && !sids.is_empty();
        for sub in whom.everybody() {
            match is_one {
                true => self.shut_door(people_of, Door::Unnamed { sub }, event.at, why, Lasts::InPassing, now),
                false => self.shut_door(people_of, Door::Person { sub }, event.at, why, lasts, now),
            }
        }
    }

    /// Sees to it that sign-ins that were proven before a logout at the provider open nothing: with a session those of that session, else
    /// all of the person's. `at` is the provider's time of it, as it stands in the token: a clock there that is ahead of ours makes it
    /// later than any proof from before.
    pub fn signed_out_at_provider(
        &mut self,
        issuer: &str,
        sub: Option<&str>,
        sid: Option<&str>,
        at: WallTime,
        now: Now,
    ) {
        let why = Overtaking::LoggedOut;
        let mut shut = |door, lasts| self.shut_door(issuer, door, at, why, lasts, now);
        match (sub, sid) {
            (Some(sub), Some(sid)) => {
                shut(Door::SessionOf { sid, sub }, Lasts::ForGood);
                shut(Door::Unnamed { sub }, Lasts::InPassing);
            }
            (None, Some(sid)) => shut(Door::Session { sid }, Lasts::ForGood),
            (Some(sub), None) => shut(Door::Person { sub }, Lasts::ForGood),
            (None, None) => {}
        }
        self.flush(now);
    }

    /// Sees to it that sign-ins to a local account from until now open nothing, at once and for as long as their pages may be under way;
    /// what the record of the person and the account keep lasts for ever.
    pub(super) fn credentials_overtaken(&mut self, issuer: &str, sub: &str, now: Now) {
        self.shut_door(issuer, Door::Person { sub }, now.wall, Overtaking::CredentialsSet, Lasts::InPassing, now);
    }

    fn shut_door(&mut self, issuer: &str, door: Door<'_>, until: WallTime, why: Overtaking, lasts: Lasts, now: Now) {
        self.doors.shut_in_passing(issuer, door, until, why, now);
        if lasts == Lasts::InPassing {
            return;
        }
        for change in self.doors.shut(issuer, door, until, why, self.clock.latest(now)) {
            self.out.store(change);
        }
        self.counters.doors_forgotten = self.doors.forgotten();
        if let Door::Person { sub } = door {
            let kind = SubjectKind::Person { issuer: issuer.to_owned(), sub: sub.to_owned() };
            if let Some(mut subject) = self.registry.subject_of(&kind).filter(|s| s.proven_after < Some(until)).cloned()
            {
                subject.proven_after = Some(until);
                self.registry.put_subject(subject, &mut self.out);
            }
        }
    }

    /// Tells whether a sign-in comes from before something that ended it, and what that was.
    pub fn overtaken(&self, who: &Person, now: Now) -> Option<Overtaking> {
        let sign_in = SignIn {
            issuer: &who.issuer,
            sub: &who.sub,
            sid: who.provider_session.as_deref(),
            auth_time: who.auth_time,
        };
        self.doors.before(sign_in, now).or_else(|| {
            let until = self.registry.subject_of(&who.kind())?.proven_after?;
            let why = match who.issuer == self.config.url {
                true => Overtaking::CredentialsSet, // of local accounts nobody else tells
                false => Overtaking::SessionRevoked,
            };
            who.auth_time.is_some_and(|proven| proven <= until).then_some(why)
        })
    }

    pub(super) fn sweep_doors(&mut self, now: Now) {
        for change in self.doors.sweep(self.clock.earliest(now), FORGOTTEN_AT_ONCE) {
            self.out.store(change);
        }
    }
}
