//! What a signed-in person sees of their own on the pages.

use std::{collections::BTreeMap, net::IpAddr};

use postern_common::{
    id::{DeviceId, ResourceName},
    policy::{Audience, Destination},
    time::Now,
};

use super::core::Core;
use crate::{
    decision::{Whence, hypothetical},
    records::{DeviceKind, DeviceRecord, Person, SubjectRecord},
    web::doors::{
        self, GroupsKnown, OpenFrom, Portal, PortalDevice, PortalResource, PortalSession, Presence, Reach, StockClients,
    },
};

impl Core {
    /// Shows what this person may reach and which machines are theirs.
    pub fn portal(&mut self, who: &Person, now: Now) -> Portal {
        let mut devices = self.devices_of(who);
        devices.sort_by(|a, b| a.name.cmp(&b.name));
        let resources = self.portal_resources(who, &devices, now);
        let stock_clients = match self.stock_entitlements(who, now).is_empty() {
            true => StockClients::NotPermitted,
            false => StockClients::Permitted,
        };
        let groups = match self.present_assurance(who).groups {
            None if self.policy.names_groups() => GroupsKnown::Missing,
            Some(_) | None => GroupsKnown::Enough,
        };
        let devices = devices.iter().map(|device| self.portal_device(device)).collect();
        Portal { resources, devices, stock_clients, groups }
    }

    /// Returns the record of a person who may never have joined a machine.
    pub(super) fn record_of(&self, who: &Person, now: Now) -> SubjectRecord {
        self.registry.subject_of(&who.kind()).cloned().unwrap_or_else(|| SubjectRecord {
            id: postern_common::id::SubjectId::from_bytes([0; 16]),
            kind: who.kind(),
            name: who.name.clone(),
            disabled: None,
            created: now.wall,
            last_sign_in: now.wall,
            provisioned_as: who.provisioned_as.clone(),
            proven_after: None,
        })
    }

    fn portal_resources(&mut self, who: &Person, devices: &[DeviceRecord], now: Now) -> Vec<PortalResource> {
        let mut open: BTreeMap<ResourceName, PortalResource> = BTreeMap::new();
        for device in devices {
            let Some(lease) = self.leases.get(&device.id) else { continue };
            for granted in &lease.granted {
                let entitlement = &granted.entitlement;
                let from = OpenFrom { machine: device.name.clone(), until: granted.until.wall };
                let resource = open.entry(entitlement.resource.clone()).or_insert_with(|| PortalResource {
                    name: entitlement.resource.clone(),
                    host: format!("{}.{}", entitlement.resource, self.config.domain),
                    addresses: self.addresses_of(&entitlement.nodes),
                    services: vec![],
                    rule: entitlement.rule.clone(),
                    reach: Reach::Open(vec![]),
                });
                for service in &entitlement.services {
                    if !resource.services.contains(service) {
                        resource.services.push(*service);
                    }
                }
                if let Reach::Open(machines) = &mut resource.reach
                    && machines.iter().all(|open| open.machine != from.machine)
                {
                    machines.push(from);
                }
            }
        }
        // What a rule names for this person, but is not open on any machine: with the reason.
        let owner = self.record_of(who, now);
        let assurance = self.present_assurance(who);
        let context = match devices.iter().find(|device| self.leases.contains_key(&device.id)) {
            Some(device) => self.context_of(device, now),
            None => Some(hypothetical(
                &self.config.url,
                &owner,
                Some(&assurance),
                None,
                Whence::default(),
                self.clock.times(now),
            )),
        };
        let Some(context) = context else { return open.into_values().collect() };
        for resource in self.policy.resources() {
            if open.contains_key(resource.name()) {
                continue;
            }
            let to = Destination::Resource(resource.name().clone());
            let explanation = self.policy.explain(&context, &self.targets, &to, None, Audience::Subject);
            let Some(rule) = explanation.rule.and_then(|rule| rule.parse().ok()) else { continue };
            let (reason, fix) = match explanation.allowed {
                true => ("none of your machines is signed in".to_owned(), Some("run `postern up` on it".to_owned())),
                false => (explanation.reason, explanation.fix),
            };
            let closed = PortalResource {
                name: resource.name().clone(),
                host: format!("{}.{}", resource.name(), self.config.domain),
                addresses: vec![],
                services: resource.services().to_vec(),
                rule,
                reach: Reach::Closed { reason, fix },
            };
            open.insert(resource.name().clone(), closed);
        }
        open.into_values().collect()
    }

    fn addresses_of(&self, nodes: &[DeviceId]) -> Vec<IpAddr> {
        nodes.iter().filter_map(|node| self.registry.device(*node)).flat_map(|d| d.addresses.to_vec()).collect()
    }

    fn portal_device(&self, device: &DeviceRecord) -> PortalDevice {
        let (kind, fingerprint, presence) = match device.kind {
            DeviceKind::Agent => (
                doors::DeviceKind::Agent,
                device.key.map(|key| key.fingerprint()),
                match self.nodes.contains_key(&device.id) {
                    true => Presence::Connected,
                    false => Presence::LastHeard(Some(device.last_seen)),
                },
            ),
            DeviceKind::StockClient => (
                doors::DeviceKind::StockClient,
                device.wireguard_keys.first().map(|key| key.fingerprint()),
                Presence::LastHeard(None),
            ),
        };
        let session = self.registry.session_on(device.id).map(|session| PortalSession {
            session: session.id,
            began: session.started,
            until: session.expires,
        });
        PortalDevice {
            device: device.id,
            machine: device.name.clone(),
            kind,
            fingerprint: fingerprint.unwrap_or_default(),
            addresses: device.addresses.to_vec(),
            presence,
            session,
        }
    }
}
