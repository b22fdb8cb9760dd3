//! The door behind a security event: sign-ins that it overtakes and that were under way when it came.
//!
//! ```text
//! event --sign_ins_overtaken--> who, proven until when --is_overtaken--> a sign-in that ends now, a join, a step-up: turned away
//! ```
//!
//! An event ends what is open. A page, or a sign-in at the provider, that was under way then comes later, with a proof from before. It is
//! turned away for as long as the provider's code for it may live; after a revocation of all of a person's sessions for ever, by
//! [`proven_after`](crate::records::SubjectRecord::proven_after), also after a restart.
//!
//! **Bounded**: [`MAX_UNDER_WAY`] people; the oldest makes room.

use std::{collections::BTreeSet, time::Duration};

use postern_common::time::{Monotonic, Now, WallTime};

use super::core::Core;
use crate::{
    records::{Person, SubjectKind},
    signals::events::{Whom, event::Told, set::SecurityEvent},
};

/// How long a page may be under way.
const UNDER_WAY: Duration = Duration::from_secs(90);
/// How long a sign-in at the provider may be under way: its code lives for ten minutes at most (RFC 6749 §4.1.2).
const CODE_LIFE: Duration = Duration::from_secs(600);
const MAX_UNDER_WAY: usize = 4_096;

/// A person whose sign-ins an event has just overtaken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Overtaken {
    /// Those proven until then.
    proven_until: WallTime,
    /// When the event came.
    since: Monotonic,
    /// Until when that is remembered.
    until: Monotonic,
}

impl Core {
    /// Sees to it that sign-ins from before an event open nothing: those under way, and after a revocation of all of a person's sessions
    /// those of all time.
    pub(super) fn sign_ins_overtaken(&mut self, people_of: &str, event: &SecurityEvent, whom: &Whom, now: Now) {
        let is_of_one = event.subject.session().is_some() && whom.browsers.as_ref().is_some_and(|all| !all.is_empty());
        for sub in whom.everybody() {
            let kind = SubjectKind::Person { issuer: people_of.to_owned(), sub: sub.clone() };
            self.turn_away(kind.clone(), event.at, if is_of_one { UNDER_WAY } else { CODE_LIFE }, now);
            if is_of_one || event.told != Told::SessionRevoked {
                continue;
            }
            if let Some(mut subject) = self.registry.subject_of(&kind).cloned() {
                subject.proven_after = subject.proven_after.max(Some(event.at));
                self.registry.put_subject(subject, &mut self.out);
            }
        }
    }

    /// Closes the door to sign-ins of people that were proven until then, while what they opened is being ended.
    pub fn turn_away_people(&mut self, people_of: &str, subs: &BTreeSet<String>, proven_until: WallTime, now: Now) {
        for sub in subs {
            let kind = SubjectKind::Person { issuer: people_of.to_owned(), sub: sub.clone() };
            self.turn_away(kind, proven_until, UNDER_WAY, now);
        }
    }

    /// Remembers for a while that sign-ins of a person from before count no more: a page may be under way with one. Where there are too
    /// many, the oldest makes room.
    fn turn_away(&mut self, who: SubjectKind, proven_until: WallTime, keep: Duration, now: Now) {
        let new = Overtaken { proven_until, since: now.monotonic, until: now.monotonic.saturating_add(keep) };
        self.overtaken.retain(|_, known| now.monotonic < known.until);
        if self.overtaken.len() >= MAX_UNDER_WAY && !self.overtaken.contains_key(&who) {
            let oldest = self.overtaken.iter().min_by_key(|(_, known)| known.since).map(|(who, _)| who.clone());
            oldest.and_then(|who| self.overtaken.remove(&who));
        }
        let known = self.overtaken.entry(who).or_insert(new);
        known.proven_until = known.proven_until.max(new.proven_until); // an older event that comes later opens nothing
        (known.since, known.until) = (new.since, known.until.max(new.until));
    }

    /// Tells whether an event has overtaken the sign-in with which a page comes.
    pub fn is_overtaken(&self, who: &Person, now: Now) -> bool {
        let kind = who.kind();
        let lately = self.overtaken.get(&kind).filter(|known| now.monotonic < known.until);
        let revoked_until = self.registry.subject_of(&kind).and_then(|subject| subject.proven_after);
        match who.auth_time {
            Some(proven) => {
                let until = revoked_until.max(lately.map(|known| known.proven_until));
                until.is_some_and(|until| proven <= until)
            }
            // Nobody knows when it was proven: for ever would be too long.
            None => lately.is_some_and(|known| now.monotonic.since(known.since) < UNDER_WAY),
        }
    }
}
