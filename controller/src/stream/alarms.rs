//! What the core raises alerts for. They are stored with the change that caused them; [`crate::signals::alerts`] delivers them.

use std::{net::IpAddr, time::Duration};

use postern_common::{
    id::DeviceId,
    policy::Place,
    time::{Now, WallTime},
};

use super::{core::Core, node::Pace};
use crate::{
    records::{DeviceRecord, Quarantined, Restrained, StoreChange, SubjectRecord},
    signals::alerts::{About, Alert, AlertKind},
};

/// The least time from one alert about a node's refusals to the next.
const BURSTS_APART: Duration = Duration::from_secs(300);
/// How many packets a node has to have refused within a minute.
const BURST: u64 = 100;

impl Core {
    /// Raises an alert.
    pub fn alert(&mut self, kind: AlertKind, text: String, about: About, now: Now) {
        let About { subject, device, resource } = about;
        let id = hex::encode(self.draw::<16>());
        self.out.store(StoreChange::PutAlert(Alert { id, kind, at: now.wall, text, subject, device, resource }));
    }

    pub(super) fn alert_quarantine(&mut self, target: &Quarantined, text: String, now: Now) {
        let about = match target.clone() {
            Quarantined::Subject(subject) => About { subject: Some(subject), ..About::default() },
            Quarantined::Device(device) => About { device: Some(device), ..About::default() },
            Quarantined::Resource(resource) => About { resource: Some(resource), ..About::default() },
        };
        self.alert(AlertKind::Quarantine, text, about, now);
    }

    pub(super) fn alert_restrained(&mut self, whom: Restrained, text: String, now: Now) {
        let about = match whom {
            Restrained::Subject(subject) => About { subject: Some(subject), ..About::default() },
            Restrained::Device(device) => {
                let subject = self.registry.device(device).map(|device| device.owner);
                About { subject, device: Some(device), resource: None }
            }
        };
        self.alert(AlertKind::Restrained, text, about, now);
    }

    /// Raises an alert if a device is used again after long.
    pub(super) fn wakes(&mut self, id: DeviceId, last_used: WallTime, now: Now) {
        let slept = now.wall.since(last_used);
        if slept < self.config.dormant_after {
            return;
        }
        let subject = self.registry.device(id).map(|device| device.owner);
        let name = subject.map(|subject| self.registry.subject_name(subject)).unwrap_or_default();
        let machine = self.registry.machine_name(id);
        let slept = postern_common::diagnostics::HumanDuration::rounded(slept);
        let text = format!("{machine} of {name} is used again after {slept}");
        self.alert(AlertKind::DormantAwake, text, About { subject, device: Some(id), resource: None }, now);
    }

    /// Raises an alert if a person signs in again after long, or a machine joins of a service that none was of for long: on whatever
    /// machine, and on the pages.
    pub(super) fn subject_wakes(&mut self, subject: &SubjectRecord, last_used: WallTime, now: Now) {
        let slept = now.wall.since(last_used);
        if slept < self.config.dormant_after {
            return;
        }
        let slept = postern_common::diagnostics::HumanDuration::rounded(slept);
        let text = format!("{} is used again after {slept}", subject.name);
        self.alert(AlertKind::DormantAwake, text, About { subject: Some(subject.id), ..About::default() }, now);
    }

    /// Raises an alert if a device speaks from another country or autonomous system than before. Conditions on the place count in any
    /// case: every decision looks where it speaks from now.
    ///
    /// Within one login session a `[[limit]]` of the policy may say what follows; a service has one for ever. Returns where the session
    /// speaks from as far as is known now, for the record.
    pub(super) fn moves(&mut self, device: &DeviceRecord, address: IpAddr, now: Now) -> Option<Place> {
        let id = device.id;
        let last = device.last_address.map(|before| self.atlas.place_of(before)).unwrap_or_default();
        let is = self.atlas.place_of(address);
        // An address that no map knows is no way from one country to another: what was known before it counts.
        let known = device.spoke_from.unwrap_or_default();
        let was = Place { country: last.country.or(known.country), asn: last.asn.or(known.asn) };
        let place = Place { country: is.country.or(was.country), asn: is.asn.or(was.asn) };
        let place = (place != Place::default()).then_some(place);
        let Some(before) = device.last_address.filter(|before| *before != address) else { return place };
        if !is.differs_from(&was) || self.views.was_told(id, &is, now.monotonic) {
            return place;
        }
        let subject = self.registry.device(id).map(|device| device.owner);
        let name = subject.map(|subject| self.registry.subject_name(subject)).unwrap_or_default();
        let machine = self.registry.machine_name(id);
        let text = format!("{machine} of {name} speaks from {address} ({is}), and before from {before} ({was})");
        let of_service = subject.is_some_and(|subject| self.is_service(subject));
        if !of_service {
            // Of a service it is told what no machine of it ever did: `service_seen`.
            self.alert(AlertKind::NewPlace, text, About { subject, device: Some(id), resource: None }, now);
        }
        // Who came to another country and signed in there has just proven who they are.
        if self.registry.session_on(id).is_none_or(|session| session.started < device.last_seen) {
            self.place_left(id, &was, &is, now);
        }
        place
    }

    /// Takes in how many packets a node has refused within the last minute.
    pub(super) fn refusals_told(&mut self, id: DeviceId, refused: u64, now: Now) {
        let pace = self.paces.entry(id).or_insert_with(|| Pace::new(now.monotonic));
        let lately = pace.burst_told.is_some_and(|told| now.monotonic.since(told) < BURSTS_APART);
        if refused < BURST || lately {
            return;
        }
        pace.burst_told = Some(now.monotonic);
        let machine = self.registry.machine_name(id);
        let subject = self.registry.device(id).map(|device| device.owner);
        let text = format!("{machine} refused {refused} packets within a minute: postern flows -f --denied there");
        self.alert(AlertKind::DenyBurst, text, About { subject, device: Some(id), resource: None }, now);
    }
}
