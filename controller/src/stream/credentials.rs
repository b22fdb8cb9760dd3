//! What follows when the credentials of a local account are set anew, or one of them is known to be copied.
//!
//! ```text
//! accounts: new password, second factor reset --credentials_set--> their machines signed out; sign-ins from before: turned away
//! accounts at a start ------------------------credentials_known--> the same, for what a crash kept from the core
//! passkey's counter went back ----------------passkey_copied-----> alert
//! ```
//!
//! Whoever knew the old password may have let a machine of their own in. A login session on a machine does not hang on the
//! browser's in which it was confirmed, so it is ended here, and [`SubjectRecord::proven_after`](crate::records::SubjectRecord)
//! keeps a page that was under way with the old sign-in from confirming another.

use std::net::IpAddr;

use postern_common::{
    id::SessionId,
    time::{Now, WallTime},
};

use super::core::Core;
use crate::{
    records::SubjectKind,
    signals::alerts::{About, AlertKind},
};

/// Why login sessions end, for people.
const SET_ANEW: &str = "the password or second factor of the account was set anew";

impl Core {
    /// Ends every login session of a person with a local account, on machines and stock clients, and turns sign-ins from until
    /// now away: their credentials are new ones. Returns how many sessions ended.
    pub fn credentials_set(&mut self, issuer: &str, sub: &str, now: Now) -> usize {
        let kind = SubjectKind::Person { issuer: issuer.to_owned(), sub: sub.to_owned() };
        self.credentials_overtaken(issuer, sub, now);
        if let Some(mut subject) = self.registry.subject_of(&kind).cloned() {
            // Not the later of the two: after a clock that was set back, nobody could sign in until that time came again.
            subject.proven_after = Some(now.wall);
            self.registry.put_subject(subject, &mut self.out);
        }
        self.end_person(issuer, sub, SET_ANEW, now)
    }

    /// Takes over at a start when the credentials of an account were set anew: sessions that were proven until then end, if the
    /// core was not told of it before.
    pub(super) fn credentials_known(&mut self, issuer: &str, sub: &str, secured: WallTime, now: Now) {
        let kind = SubjectKind::Person { issuer: issuer.to_owned(), sub: sub.to_owned() };
        let Some(mut subject) = self.registry.subject_of(&kind).cloned() else { return };
        if subject.proven_after.is_some_and(|told| told >= secured) {
            return;
        }
        subject.proven_after = Some(secured);
        let is_before = |proven: Option<WallTime>| proven.is_none_or(|proven| proven <= secured);
        let theirs = self.registry.sessions().filter(|s| s.subject == subject.id && is_before(s.assurance.auth_time));
        let theirs: Vec<SessionId> = theirs.map(|session| session.id).collect();
        self.registry.put_subject(subject, &mut self.out);
        self.end_sessions(theirs, SET_ANEW, now);
        self.flush(now);
    }

    /// Raises an alert about a passkey of which there may be two. The one that came first may have been the copy.
    pub fn passkey_copied(&mut self, issuer: &str, sub: &str, login: &str, passkey: &str, from: IpAddr, now: Now) {
        let kind = SubjectKind::Person { issuer: issuer.to_owned(), sub: sub.to_owned() };
        let subject = self.registry.subject_of(&kind).map(|subject| subject.id);
        let text = format!(
            "the passkey `{passkey}` of {login} was used from {from} and may have been copied: its counter went back. It signs \
             nobody in any more. If it was not {login}: postern-controller user reset-totp {login}, and user passwd {login}"
        );
        self.alert(AlertKind::PasskeyCopied, text, About { subject, ..About::default() }, now);
        self.flush(now);
    }
}
