//! A browser's login session goes with the machine that it let in.
//!
//! ```text
//! revoke device, session, node; quarantine device --browsers_behind--> shell: the cookies end at once           (commands)
//!                                                 |-browsers_of_stopped--> shell: within a minute     (whoever stopped it)
//!                                                 '-is_cut_off--> join, stock client, step-up, decision: turned away
//! ```
//!
//! Whoever has a stolen laptop has its browser too, and that is signed in: with it they would confirm another machine, or the same one
//! with a new device key. So what stops a machine, or its login session, ends the browsers' login sessions in which somebody was signed
//! in on it. A person who has them on several machines signs in again there.
//!
//! Invariants:
//! - A page of such a browser that was under way comes to nothing ([`Core::is_cut_off`]). For a machine that is revoked or in quarantine
//!   that follows from what is on record: it holds after a restart, and for a quarantine that no command asked for.
//! - A sign-in that was proven after the machine was stopped is another one: it counts, in that browser too.
//!
//! **Bounded**: [`MAX_CUT`] browsers whose session was revoked lately; the one that was first goes first.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use postern_common::{
    id::{DeviceId, SessionId},
    time::{Now, WallTime},
};

use super::core::Core;
use crate::records::{DeviceRecord, Person, Quarantined, RevokeTarget, Standing};

/// How long a page may be under way.
const UNDER_WAY: Duration = Duration::from_secs(90);
/// For how long after it a stopped machine's browsers are looked at again: longer than their login sessions live.
const LATELY: Duration = Duration::from_secs(7 * 86_400);
/// The most browsers that are remembered for that long.
const MAX_CUT: usize = 4_096;

impl Core {
    /// Lists the browsers' login sessions that go with what is about to be revoked: the shell ends them. A subject's are all of theirs.
    pub fn browsers_behind(&self, target: &RevokeTarget) -> BTreeSet<SessionId> {
        match target {
            RevokeTarget::Device(id) | RevokeTarget::Node(id) | RevokeTarget::Quarantine(Quarantined::Device(id)) => {
                self.registry.browsers_of(*id).collect()
            }
            RevokeTarget::Session(id) => {
                self.registry.session(*id).and_then(|session| session.vouched).into_iter().collect()
            }
            RevokeTarget::Quarantine(Quarantined::Subject(_) | Quarantined::Resource(_))
            | RevokeTarget::Subject(_)
            | RevokeTarget::Rule(_) => BTreeSet::new(),
        }
    }

    /// Lists the browsers' login sessions of machines that were stopped lately, whoever stopped them, and since when: the shell ends those
    /// that were not proven since.
    pub fn browsers_of_stopped(&self, now: Now) -> BTreeMap<SessionId, WallTime> {
        let mut browsers: BTreeMap<SessionId, WallTime> = BTreeMap::new();
        for device in self.registry.devices() {
            let since = self.stopped_since(device).filter(|since| now.wall.since(*since) < LATELY);
            for (browser, since) in
                since.into_iter().flat_map(|at| self.registry.browsers_of(device.id).map(move |b| (b, at)))
            {
                let known = browsers.entry(browser).or_insert(since);
                *known = since.max(*known);
            }
        }
        browsers
    }

    /// Turns pages of these browsers away that are under way, and ends the stock clients that hang on them.
    pub fn cut_browsers(&mut self, browsers: &BTreeSet<SessionId>, now: Now) {
        let until = now.monotonic.saturating_add(UNDER_WAY);
        self.cut_browsers.retain(|_, until| now.monotonic < *until);
        for browser in browsers {
            if self.cut_browsers.len() >= MAX_CUT && !self.cut_browsers.contains_key(browser) {
                let oldest = self.cut_browsers.iter().min_by_key(|(id, until)| (**until, **id)).map(|(id, _)| *id);
                oldest.and_then(|id| self.cut_browsers.remove(&id));
            }
            self.cut_browsers.insert(*browser, until);
        }
        self.web_sessions_over(browsers, now);
    }

    /// Says why a sign-in counts for nothing, if it is of a browser that went with a machine which was stopped.
    pub(super) fn is_cut_off(&self, who: &Person, now: Now) -> Option<String> {
        if self.cut_browsers.get(&who.web_session).is_some_and(|until| now.monotonic < *until) {
            return Some("an administrator has ended this sign-in: sign in again".into());
        }
        let own = self.registry.subject_of(&who.kind())?.id;
        let is_theirs = |device: DeviceId| self.registry.browsers_of(device).any(|browser| browser == who.web_session);
        let stopped = self.registry.devices_of(own).find(|device| {
            let since = self.stopped_since(device);
            since.is_some_and(|since| who.auth_time.is_none_or(|at| at <= since)) && is_theirs(device.id)
        })?;
        Some(format!("{} was let in by this sign-in, and an administrator has stopped it: sign in again", stopped.name))
    }

    /// Tells since when a machine itself is stopped.
    fn stopped_since(&self, device: &DeviceRecord) -> Option<WallTime> {
        let revoked = match device.standing {
            Standing::Good => None,
            Standing::Revoked { since, .. } => Some(since),
        };
        let held = self.registry.quarantine(&Quarantined::Device(device.id)).map(|held| held.since);
        revoked.max(held)
    }
}
