//! Stock WireGuard clients: a lease that the controller renews for them while the browser's login session lives.
//!
//! A stock client enforces nothing and cannot be told anything later: it gets one configuration, with the keys that the
//! nodes have then, and those stay valid for it until its session ends. The destination's verdict is the one that counts
//! anyway. It is never a destination itself.

use std::net::IpAddr;

use ipnet::IpNet;
use postern_common::{policy::Entitlement, time::Now};

use super::{api::CoreError, core::Core, peering::PeeringName};
use crate::{
    decision::{Extend, Whence, hypothetical},
    records::{AuditEvent, DeviceKind, Person, StoreChange},
    web::doors::{StockConfiguration, StockPeer, StockRequest},
};

/// The most stock clients of one person.
const MAX_STOCK_CLIENTS: usize = 8;

impl Core {
    /// Returns what a stock client of this person could reach now.
    pub(super) fn stock_entitlements(&mut self, who: &Person, now: Now) -> Vec<Entitlement> {
        let owner = self.record_of(who, now);
        if self.registry.barred(&owner).is_some() || self.turned_away(who).is_some() {
            return vec![];
        }
        let assurance = self.present_assurance(who);
        let context =
            hypothetical(&self.config.url, &owner, Some(&assurance), None, Whence::default(), self.clock.times(now));
        self.counters.decisions += 1;
        let mut entitlements = self.policy.entitlements(&context, &self.targets);
        let revoked = self.registry.revoked_rules();
        entitlements.retain(|entitlement| entitlement.stock_clients && !revoked.contains_key(&entitlement.rule));
        entitlements
    }

    /// Lets a stock WireGuard client in, for the resources whose rules permit it.
    ///
    /// # Errors
    /// [`CoreError::NotPermitted`] if no rule permits it, the key is in use, or the person has too many of them.
    pub fn export(
        &mut self,
        asked: &StockRequest,
        who: &Person,
        from: IpAddr,
        now: Now,
    ) -> Result<StockConfiguration, CoreError> {
        let refused = |message: &str| Err(CoreError::NotPermitted(message.to_owned()));
        if self.stock_entitlements(who, now).is_empty() {
            return refused(
                "no rule lets you use a stock WireGuard client now: `stock_clients = true` on a rule would",
            );
        }
        if let Some(held) = self
            .own_devices(who)
            .find(|device| device.kind == DeviceKind::StockClient && self.registry.quarantine_on(device).is_some())
        {
            let name = &held.name;
            return refused(&format!("{name} is in quarantine: there is no other configuration until it is released"));
        }
        if self.stock_devices_of(who) >= MAX_STOCK_CLIENTS {
            return refused("you have as many WireGuard configurations as a person may have: remove one first");
        }
        if !self.key_is_free(None, asked.public_key) {
            return refused("this public key is in use: make a new key pair for this configuration");
        }
        let until = self.end_after(self.config.stock_limit, now)?.min(who.web_session_until);
        if until <= self.clock.latest(now) {
            return refused("your sign-in is over: sign in again");
        }
        let subject = self.person(who, now)?;
        let name = self.registry.free_name(&asked.name);
        let device = self.new_device(DeviceKind::StockClient, None, name, subject.id, Some(from), now)?;
        self.registry.change_device(device.id, &mut self.out, |device| device.wireguard_keys.push(asked.public_key));
        self.begin_session(&device, who, from, until, Some(who.web_session), now);
        self.decide(device.id, Extend::Yes, now);
        self.out.audit(AuditEvent::StockExported {
            subject: subject.id,
            subject_name: subject.name,
            device: device.id,
            machine: device.name.clone(),
            until,
            from,
        });
        let mut peers = Vec::new();
        for node in self.peers(device.id) {
            let Some(record) = self.registry.device(node) else { continue };
            let Some(peering) = self.peerings.get_mut(&PeeringName::of(device.id, node)) else { continue };
            let Some(pair) = peering.exported(device.id).cloned() else { continue };
            self.out.store(StoreChange::PutPair(pair.clone()));
            let mut resources: Vec<_> =
                peering.edge_to(node).wanted.iter().map(|permission| permission.resource.clone()).collect();
            resources.dedup();
            peers.push(StockPeer {
                machine: record.name.clone(),
                public_key: pair.first.key,
                preshared_key: pair.preshared,
                endpoint: record.endpoints.first().copied(),
                allowed_ips: record.addresses.to_vec().into_iter().map(IpNet::from).collect(),
                resources,
            });
        }
        self.flush(now);
        Ok(StockConfiguration {
            device: device.id,
            machine: device.name,
            public_key: asked.public_key,
            addresses: device.addresses.to_vec(),
            mtu: self.config.stock_mtu,
            peers,
            until,
        })
    }
}
