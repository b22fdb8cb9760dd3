//! Servers that join with an enrolment token.
//!
//! A token is looked up by its hash, and its use is claimed here, in memory, by the one actor that owns the core: of two
//! machines at the same moment one finds it gone. The claim is durable before the machine is told.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use postern_common::{
    id::{DeviceId, MachineName, Nonce, ServiceName, SubjectId},
    protocol::{Enrol, Refusal, ToNode},
    time::Now,
};

use super::{
    api::StreamId,
    core::Core,
    greeting::StreamState,
    joins::{LINGER, lower},
    leases::{Turn, Urgency},
    limits::Stranger,
    timers::Due,
};
use crate::{
    decision::Extend,
    records::{AuditEvent, DeviceKind, DeviceRecord, NameClaim, SubjectKind, SubjectRecord, TokenHash},
    signals::alerts::{About, AlertKind},
};

/// The least time from one alert about a token's use elsewhere to the next.
const ELSEWHERE_APART: Duration = Duration::from_secs(3_600);

impl Core {
    pub(super) fn enrol(&mut self, stream: StreamId, remote: SocketAddr, challenge: Nonce, enrol: &Enrol, now: Now) {
        let from = remote.ip();
        if !self.failure_limit.permits(from, now.monotonic) {
            self.counters.rate_limited += 1;
            let message = "too many failed attempts from this address: try again in a minute";
            return self.refuse_stream(stream, None, Refusal::Busy, message, now);
        }
        let result = self.check_join(challenge, &enrol.join).and_then(|()| self.enrol_device(enrol, from, now));
        let (device, subject_name) = match result {
            Ok(enrolled) => enrolled,
            Err((refusal, message)) => {
                self.failure_limit.take(from, now.monotonic);
                if self.records_stranger(Stranger::Enrol, from, now) {
                    let machine = enrol.join.name.clone();
                    self.out.audit(AuditEvent::EnrolRefused { machine, from, reason: message.clone() });
                }
                return self.refuse_stream(stream, None, refusal, &message, now);
            }
        };
        if let Some(known) = self.streams.get_mut(&stream) {
            known.state = StreamState::Joining;
        }
        self.timers.set(Due::Greeting(stream), now.monotonic.saturating_add(LINGER));
        let joined = ToNode::Joined {
            device: device.id,
            name: device.name,
            session: None,
            subject_name,
            controller: self.signing.public(),
            session_until: None,
        };
        self.out.send(stream, joined);
    }

    fn enrol_device(
        &mut self,
        enrol: &Enrol,
        from: IpAddr,
        now: Now,
    ) -> Result<(DeviceRecord, String), (Refusal, String)> {
        // Looked up by its hash: timing tells nothing about the secret itself.
        let token = self
            .registry
            .token(TokenHash::of(&enrol.token))
            .filter(|t| t.expires > self.clock.latest(now) && t.uses_left > 0);
        let Some(token) = token.cloned() else {
            let message = "the enrolment token is wrong, expired or used: `postern-controller token create` makes one";
            return Err((Refusal::BadToken, message.into()));
        };
        let refused = |message: String| (Refusal::JoinRefused, message);
        let place = from.to_canonical(); // ::ffff:192.0.2.1 is 192.0.2.1
        if !token.networks.is_empty() && !token.networks.iter().any(|network| network.contains(&place)) {
            self.token_elsewhere(token.hash, place, now);
            return Err(refused(format!("the token is not for machines at {place}")));
        }
        let asked = lower(&enrol.join.name);
        if let Some(machine) = token.machine.as_ref().map(lower).filter(|machine| *machine != asked) {
            return Err(refused(format!("the token is for a machine named {machine}, and this one says {asked}")));
        }
        let service = token.service.as_ref().and_then(|service| self.registry.service(service));
        if let Some(reason) = service.and_then(|service| service.disabled.as_ref()) {
            return Err(refused(format!("the service may not take part: {reason}")));
        }
        let known = self.registry.device_by_key(&enrol.join.device_key).cloned();
        if !self.key_is_free(known.as_ref().map(|device| device.id), enrol.join.wireguard_key) {
            return Err(refused("this WireGuard key is another machine's: make a new one".into()));
        }
        let vouched = token.machine.is_some();
        let device = match known {
            Some(device) => {
                // It would take part for good from now on, by whatever token of ours somebody on it got hold of.
                if device.platform.is_some() {
                    let message =
                        format!("{} signs in with tokens of its platform: remove that device first", device.name);
                    return Err(refused(message));
                }
                let owner = self.registry.subject(device.owner).map(|owner| &owner.kind);
                let same = match (owner, &token.service) {
                    (Some(SubjectKind::Service { name }), Some(service)) => name == service,
                    (Some(SubjectKind::Service { .. }), None) => true,
                    (Some(SubjectKind::Person { .. }) | None, _) => false,
                };
                if !same {
                    let message = format!(
                        "{} is enrolled for {}: remove that device first",
                        device.name,
                        self.registry.subject_name(device.owner)
                    );
                    return Err(refused(message));
                }
                self.free_vouched_name(vouched, &asked, Some(&device))?;
                device
            }
            None => {
                self.free_vouched_name(vouched, &asked, None)?;
                let name = self.registry.free_name(&asked);
                // The owner of a machine without a service of its own is known once the device has its identifier.
                let (kind, key) = (DeviceKind::Agent, Some(enrol.join.device_key));
                let nobody = SubjectId::from_bytes([0; 16]);
                let device = self.new_device(kind, key, name, nobody, Some(from), now);
                device.map_err(|error| refused(error.to_string()))?
            }
        };
        let service = match (&token.service, self.registry.subject(device.owner).map(|owner| &owner.kind)) {
            (Some(service), _) => service.clone(),
            (None, Some(SubjectKind::Service { name })) => name.clone(),
            // A name that no machine can choose: what a machine calls itself must not become an identity in rules.
            (None, Some(SubjectKind::Person { .. }) | None) => private_service(device.id),
        };
        let subject = self.service(service, now);
        if let Some(reason) = &subject.disabled {
            return Err(refused(format!("{} may not take part: {reason}", subject.name)));
        }
        self.registry.use_token(token.hash, now.wall, &mut self.out);
        self.registry.change_device(device.id, &mut self.out, |device| {
            device.owner = subject.id;
            device.tags.extend(token.tags.iter().cloned());
            device.tags_pending.retain(|tag| !token.tags.contains(tag));
            if vouched {
                // The token vouches for one name: not for another that this machine has claimed before.
                device.name.clone_from(&asked);
                device.name_claim = NameClaim::Approved;
            }
        });
        self.bring_key(device.id, enrol.join.wireguard_key, now);
        let device = self.registry.device(device.id).cloned().unwrap_or(device);
        self.out.audit(AuditEvent::Enrolled {
            subject: subject.id,
            subject_name: subject.name.clone(),
            device: device.id,
            machine: device.name.clone(),
            token: token.hash.short(),
            tags: device.tags.iter().cloned().collect(),
            from,
        });
        for peer in self.peers(device.id) {
            self.mark(peer, device.id, Urgency::Opens, Turn::Second);
        }
        self.targets_changed(now);
        self.decide(device.id, Extend::Yes, now);
        self.tell_own(device.id);
        Ok((device, subject.name))
    }

    /// Raises an alert: whoever has the token and is elsewhere may have stolen it. One for a token and hour; every try is a refusal
    /// in the audit log.
    fn token_elsewhere(&mut self, token: TokenHash, place: IpAddr, now: Now) {
        self.tokens_elsewhere.retain(|_, told| now.monotonic.since(*told) < ELSEWHERE_APART);
        if self.tokens_elsewhere.contains_key(&token) {
            return;
        }
        self.tokens_elsewhere.insert(token, now.monotonic);
        let text = format!(
            "the enrolment token {short} was used from {place}, where it is not for: postern-controller token revoke {short}, if it \
             was stolen",
            short = token.short()
        );
        self.alert(AlertKind::NewPlace, text, About::default(), now);
    }

    /// Tells whether a machine may have the name that its token vouches for. Changes nothing.
    pub(super) fn check_vouched_name(
        &self,
        vouched: bool,
        asked: &MachineName,
        known: Option<&DeviceRecord>,
    ) -> Result<(), (Refusal, String)> {
        let holder = self.registry.device_by_name(asked);
        match holder.filter(|holder| vouched && known.is_none_or(|known| known.id != holder.id)) {
            Some(holder) if holder.name_claim == NameClaim::Approved => {
                let message = format!("there is a machine named {asked} already: remove that device first");
                Err((Refusal::JoinRefused, message))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Makes room for a machine whose name the token vouches for: whoever merely claims that name gets another.
    pub(super) fn free_vouched_name(
        &mut self,
        vouched: bool,
        asked: &MachineName,
        known: Option<&DeviceRecord>,
    ) -> Result<(), (Refusal, String)> {
        self.check_vouched_name(vouched, asked, known)?;
        let holder = self.registry.device_by_name(asked).map(|device| device.id);
        let Some(id) = holder.filter(|id| vouched && known.is_none_or(|known| known.id != *id)) else { return Ok(()) };
        let other = self.registry.free_name(asked);
        self.registry.change_device(id, &mut self.out, |device| device.name = other);
        self.tell_own(id);
        for peer in self.peers(id) {
            self.mark(peer, id, Urgency::Opens, Turn::Second);
        }
        Ok(())
    }

    pub(super) fn service(&mut self, name: ServiceName, now: Now) -> SubjectRecord {
        if let Some(known) = self.registry.service(&name).cloned() {
            let last_used = self.subject_used(&known, now);
            self.subject_wakes(&known, last_used, now);
            let subject = SubjectRecord { last_sign_in: now.wall, ..known };
            self.registry.put_subject(subject.clone(), &mut self.out);
            return subject;
        }
        let subject = SubjectRecord {
            id: SubjectId::from_bytes(self.draw()),
            name: format!("service:{name}"),
            kind: SubjectKind::Service { name },
            disabled: None,
            created: now.wall,
            last_sign_in: now.wall,
            provisioned_as: None,
            proven_after: None,
        };
        self.registry.put_subject(subject.clone(), &mut self.out);
        subject
    }
}

/// Returns the service identity of a machine that was enrolled without one: nothing that it could choose.
fn private_service(device: DeviceId) -> ServiceName {
    device.to_string().parse().expect("an identifier is a name")
}
