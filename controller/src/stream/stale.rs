//! What nobody uses: the first step of offboarding is to see it.

use postern_common::time::{Now, WallTime};

use super::{
    api::{StaleKind, StaleView},
    core::Core,
};
use crate::records::{DeviceRecord, SubjectKind};

impl Core {
    /// Lists people, services, devices and enrolment tokens that were not used since `since`, the longest unused in front.
    ///
    /// A device is used while it has a stream, a subject when somebody signs in or a device of theirs is used. A token is listed
    /// if it was made before and still works.
    pub fn list_stale(&self, since: WallTime, now: Now) -> Vec<StaleView> {
        let mut stale = Vec::new();
        for subject in self.registry.subjects().filter(|subject| self.registry.barred(subject).is_none()) {
            let own = self.registry.devices().filter(|device| device.owner == subject.id);
            let last = own.map(|device| self.last_used(device, now)).max();
            let (kind, last) = match &subject.kind {
                SubjectKind::Person { .. } => (StaleKind::Person, last.max(Some(subject.last_sign_in))),
                SubjectKind::Service { .. } => (StaleKind::Service, last),
            };
            let last_used = last.unwrap_or(subject.created);
            if last_used < since {
                let note = self.scim_note(subject).map(|note| format!(", {note}")).unwrap_or_default();
                let (name, detail) = (subject.name.clone(), format!("{}{note}", subject.id));
                stale.push(StaleView { kind, name, last_used, detail });
            }
        }
        for device in self.registry.devices() {
            let last_used = self.last_used(device, now);
            if last_used < since {
                let detail = format!("of {}", self.registry.subject_name(device.owner));
                stale.push(StaleView { kind: StaleKind::Device, name: device.name.to_string(), last_used, detail });
            }
        }
        for token in self.registry.tokens().filter(|token| token.created < since && token.expires > now.wall) {
            let detail = format!("made by {}, works until {}", token.created_by, token.expires);
            let (name, last_used) = (token.hash.short(), token.created);
            stale.push(StaleView { kind: StaleKind::Token, name, last_used, detail });
        }
        stale.sort_by(|a, b| (a.last_used, a.kind, &a.name).cmp(&(b.last_used, b.kind, &b.name)));
        stale
    }

    fn last_used(&self, device: &DeviceRecord, now: Now) -> WallTime {
        if self.nodes.contains_key(&device.id) { now.wall } else { device.last_seen }
    }
}
