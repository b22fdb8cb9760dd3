//! What nobody uses: the first step of offboarding is to see it.

use postern_common::{
    id::DeviceId,
    time::{Now, WallTime},
};

use super::{
    api::{StaleKind, StaleView},
    core::Core,
};
use crate::records::{DeviceRecord, SubjectKind, SubjectRecord};

impl Core {
    /// Lists people, services, devices and tokens that were not used since `since`, the longest unused in front.
    ///
    /// A machine of a service is used while it has a stream, one of a person while somebody is signed in on it: that it is switched on is
    /// nobody's use. A subject is used when somebody signs in, also on the pages, or a device of theirs is used. A token is used when
    /// something is done with it. Whom a provider has provisioned, and who never came, was not used since they were.
    pub fn list_stale(&self, since: WallTime, now: Now) -> Vec<StaleView> {
        let mut stale = Vec::new();
        let mut unused = |kind, name: String, last_used: WallTime, detail: String| {
            if last_used < since {
                stale.push(StaleView { kind, name, last_used, detail });
            }
        };
        for subject in self.registry.subjects().filter(|subject| self.registry.barred(subject).is_none()) {
            let kind = match &subject.kind {
                SubjectKind::Person { .. } => StaleKind::Person,
                SubjectKind::Service { .. } => StaleKind::Service,
            };
            let note = self.scim_note(subject).map(|note| format!(", {note}")).unwrap_or_default();
            unused(kind, subject.name.clone(), self.subject_used(subject, now), format!("{}{note}", subject.id));
        }
        for (name, created) in self.provisioned_and_never_seen() {
            unused(StaleKind::Person, name, created, "provisioned (SCIM), never signed in here".into());
        }
        for device in self.registry.devices() {
            let detail = format!("of {}", self.registry.subject_name(device.owner));
            unused(StaleKind::Device, device.name.to_string(), self.last_used(device, now), detail);
        }
        for token in self.registry.tokens().filter(|token| token.expires > now.wall) {
            let detail = format!("made by {}, works until {}", token.created_by, token.expires);
            unused(StaleKind::Token, token.hash.short(), token.last_used.unwrap_or(token.created), detail);
        }
        for token in self.list_scim_tokens().into_iter().filter(|token| token.expires > now.wall) {
            let detail = format!("of {}, made by {}, works until {}", token.issuer, token.created_by, token.expires);
            unused(StaleKind::ScimToken, token.hash.short(), token.last_heard.unwrap_or(token.created), detail);
        }
        stale.sort_by(|a, b| (a.last_used, a.kind, &a.name).cmp(&(b.last_used, b.kind, &b.name)));
        stale
    }

    /// Returns when a subject was used last. Machines of a service that are not on record any more count too.
    pub(super) fn subject_used(&self, subject: &SubjectRecord, now: Now) -> WallTime {
        let own = self.registry.devices_of(subject.id).map(|device| self.last_used(device, now));
        own.max().max(Some(subject.last_sign_in)).unwrap_or(subject.created)
    }

    /// Keeps when a service's machine was used last, which is about to be removed.
    pub(super) fn keep_use_of(&mut self, id: DeviceId, now: Now) {
        let Some(device) = self.registry.device(id) else { return };
        let Some(owner) = self.registry.subject(device.owner).filter(|_| self.registry.is_of_service(id)) else {
            return;
        };
        let last_used = self.last_used(device, now);
        if last_used > owner.last_sign_in {
            let owner = SubjectRecord { last_sign_in: last_used, ..owner.clone() };
            self.registry.put_subject(owner, &mut self.out);
        }
    }

    fn last_used(&self, device: &DeviceRecord, now: Now) -> WallTime {
        let seen = if self.nodes.contains_key(&device.id) { now.wall } else { device.last_seen };
        if self.registry.is_of_service(device.id) || self.registry.session_on(device.id).is_some() {
            return seen;
        }
        // One that ended while the controller was away is noted later.
        let ended = self.registry.ended_on(device.id).map(|end| end.at);
        let latest = device.last_session.map(|began| began.saturating_add(self.config.session_length));
        ended.map(|at| at.min(latest.unwrap_or(at))).max(device.last_session).unwrap_or(device.created)
    }
}
