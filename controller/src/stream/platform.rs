//! Services that sign in with a token of the platform that they run on, and renew with a fresh one.
//!
//! ```text
//! Platform{join, token} --limits, device key--> waits --Effect::VerifyToken--> shell --token_verified--> admit: device, session
//! PlatformToken{token} on a live stream -------> waits ----------------------------------'             `-> renew: later end
//! the session's end (the token's) --> lease, keys and doors close on all nodes; away for long --> the machine is forgotten
//! ```
//!
//! Invariants:
//! - **Nothing outlives its token.** A login session ends when the newest token that was shown for it does, counted on the
//!   monotonic clock too: a platform that gives no fresh one has revoked the workload.
//! - **A token belongs to the device key that showed it first**, durably, until it has ended. Shown by another key it is refused,
//!   recorded, and alarmed: one of the two has stolen it. The machine itself may show it again (platforms leave it in a file)
//!   unless the platform gives a new one each time; it gains no time by that.
//! - What an administrator took back stays back: the tokens behind a session that was ended early are spent.
//! - A machine is of one service. A token that stands for another service does not make it that.
//!
//! Clocks: the shell checks `iat` and `nbf` by the wall clock. `exp` counts here against the later of the wall clock and the time
//! that has passed since the start by the monotonic one, so that a clock that is set back revives no token.
//!
//! Bounds: one token of a stream is checked at a time; [`shown`] tokens are remembered, and beyond that none is taken; refusals
//! are limited by address, and recorded within a limit, with how many were not.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use postern_common::{
    id::{DeviceId, MachineName, Nonce, SessionId, SubjectId},
    key::DevicePublicKey,
    protocol::{Join, MAX_PLATFORM_TOKEN_BYTES, PlatformJoin, PlatformToken, Refusal, ToNode},
    time::{Now, WallTime},
};

use super::{
    api::{Effect, StreamId},
    core::Core,
    greeting::StreamState,
    joins::{LINGER, lower},
    leases::{Turn, Urgency},
    limits::{Stranger, site},
    shown::{SEEN_FOR_RENEWALS, Shown},
    timers::Due,
};
use crate::{
    decision::Extend,
    identity::machine::TokenRefusal,
    records::{
        Assurance, AuditEvent, DeviceKind, DeviceRecord, NameClaim, PlatformBinding, Quarantined, SessionRecord,
        Standing, SubjectKind, TokenUseRecord, Workload,
    },
};

/// The most tokens that join from one address and are being checked.
const MAX_CHECKED_OF_ADDRESS: usize = 64;
/// The most machines of one service that sign in with tokens.
const MAX_MACHINES_OF_SERVICE: usize = 2_048;
/// How long checking a token may take, an issuer that is asked for its keys included.
const CHECKED_WITHIN: Duration = Duration::from_secs(30);
/// What ends the session of a machine whose platform gave no fresh token.
pub(super) const RUN_OUT: &str = "its platform's token has run out, and no fresh one came";

/// Whom a token is checked for.
#[derive(Debug)]
enum Waiting {
    /// A machine that joins or signs in again.
    Join { join: Box<Join>, from: IpAddr },
    /// A machine on its live stream.
    Renewal { device: DeviceId, from: IpAddr },
}

/// Tokens that are checked, and tokens that were shown.
#[derive(Debug, Default)]
pub(super) struct Platform {
    waiting: HashMap<StreamId, Waiting>,
    pub(super) shown: Shown,
    /// Refusals that were not recorded.
    unrecorded: u64,
}

impl Platform {
    pub(super) fn load(records: Vec<TokenUseRecord>, now: Now) -> Self {
        Self { shown: Shown::load(records, now), ..Self::default() }
    }

    /// Forgets what a stream waits for that has ended; tells whether it waited.
    pub(super) fn abandon(&mut self, stream: StreamId) -> bool {
        self.waiting.remove(&stream).is_some()
    }
}

pub(super) type Refused = (Refusal, String);

fn refused(message: impl Into<String>) -> Refused {
    (Refusal::JoinRefused, message.into())
}

impl Core {
    /// A machine shows a token of its platform to join, or to sign in again.
    pub(super) fn platform_join(
        &mut self,
        stream: StreamId,
        remote: SocketAddr,
        challenge: Nonce,
        asked: PlatformJoin,
        now: Now,
    ) {
        let from = remote.ip();
        if !self.failure_limit.permits(from, now.monotonic) {
            self.counters.rate_limited += 1;
            let message = "too many failed attempts from this address: try again in a minute";
            return self.refuse_stream(stream, None, Refusal::Busy, message, now);
        }
        let joins = self.platform.waiting.values().filter(|waiting| match waiting {
            Waiting::Join { from: other, .. } => site(*other) == site(from),
            Waiting::Renewal { .. } => false,
        });
        // Each sign-in is a token that is remembered and records that are kept for ever.
        if joins.count() >= MAX_CHECKED_OF_ADDRESS || !self.sign_in_limit.permits(from, now.monotonic) {
            self.counters.rate_limited += 1;
            let message = "too many machines sign in from this address: try again in a minute";
            return self.refuse_stream(stream, None, Refusal::Busy, message, now);
        }
        let PlatformJoin { join, token } = asked;
        if let Err((refusal, message)) = self.check_join(challenge, &join).and_then(|()| fits(&token)) {
            self.platform_refused(&join.name.clone(), join.device_key, from, &message, now);
            return self.refuse_stream(stream, None, refusal, &message, now);
        }
        if let Some(known) = self.streams.get_mut(&stream) {
            known.state = StreamState::Joining;
        }
        self.timers.set(Due::Greeting(stream), now.monotonic.saturating_add(CHECKED_WITHIN));
        self.platform.waiting.insert(stream, Waiting::Join { join: Box::new(join), from });
        self.out.ask(Effect::VerifyToken { stream, token });
    }

    /// A machine shows a fresh token on its live stream.
    pub(super) fn platform_token(&mut self, id: DeviceId, stream: StreamId, token: PlatformToken, now: Now) {
        let Some((from, permitted)) =
            self.nodes.get_mut(&id).map(|node| (node.from.ip(), node.asks.tokens.take(now.monotonic)))
        else {
            return;
        };
        // One at a time: what a machine sends while one is checked is its own mistake.
        let bound = self.registry.device(id).is_some_and(|device| device.platform.is_some());
        if !permitted || !bound || self.platform.waiting.contains_key(&stream) || fits(&token).is_err() {
            self.counters.messages_refused += 1;
            let message = "the token is not taken: it is not this machine's way to sign in, it is too long, or it comes too often";
            return self.out.send(stream, ToNode::PlatformRefused { message: message.into() });
        }
        self.platform.waiting.insert(stream, Waiting::Renewal { device: id, from });
        self.out.ask(Effect::VerifyToken { stream, token });
    }

    /// Takes what became of a token that [`Effect::VerifyToken`] asked about.
    pub fn token_verified(&mut self, stream: StreamId, found: Result<Workload, TokenRefusal>, now: Now) {
        match self.platform.waiting.remove(&stream) {
            None => return, // the stream has ended meanwhile
            Some(Waiting::Join { join, from }) => self.join_verified(stream, &join, from, found, now),
            Some(Waiting::Renewal { device, from }) => self.renewal_verified(stream, device, from, found, now),
        }
        self.flush(now);
    }

    fn join_verified(
        &mut self,
        stream: StreamId,
        join: &Join,
        from: IpAddr,
        found: Result<Workload, TokenRefusal>,
        now: Now,
    ) {
        let admitted = match found {
            Ok(workload) => self.admit(join, &workload, from, now),
            Err(TokenRefusal::Refused { told, why }) => {
                self.failure_limit.take(from, now.monotonic);
                self.platform_refused(&join.name, join.device_key, from, &why, now);
                return self.refuse_stream(stream, None, Refusal::BadToken, &told, now);
            }
            Err(TokenRefusal::Unavailable(why)) => {
                tracing::warn!(why, "a platform's token cannot be checked");
                self.platform_refused(&join.name, join.device_key, from, &why, now);
                let message =
                    "the platform's token cannot be checked now: the controller's log says why; it is tried again";
                return self.refuse_stream(stream, None, Refusal::Busy, message, now);
            }
        };
        match admitted {
            Ok((device, session, until)) => {
                self.timers.set(Due::Greeting(stream), now.monotonic.saturating_add(LINGER));
                let joined = ToNode::Joined {
                    device: device.id,
                    name: device.name,
                    session: Some(session),
                    subject_name: self.registry.subject_name(device.owner),
                    controller: self.signing.public(),
                    session_until: Some(until),
                };
                self.out.send(stream, joined);
            }
            Err((refusal, message)) => {
                self.failure_limit.take(from, now.monotonic);
                self.platform_refused(&join.name, join.device_key, from, &message, now);
                self.refuse_stream(stream, None, refusal, &message, now);
            }
        }
    }

    /// Records that a token was refused, within the limit by address.
    fn platform_refused(&mut self, machine: &MachineName, key: DevicePublicKey, from: IpAddr, reason: &str, now: Now) {
        self.counters.tokens_refused += 1;
        if !self.records_stranger(Stranger::Platform, from, now) {
            self.platform.unrecorded += 1;
            return;
        }
        self.out.audit(AuditEvent::PlatformRefused {
            machine: machine.clone(),
            fingerprint: key.fingerprint(),
            from,
            reason: reason.to_owned(),
            unrecorded: std::mem::take(&mut self.platform.unrecorded),
        });
    }

    /// Lets a machine in whose token is good.
    fn admit(
        &mut self,
        join: &Join,
        workload: &Workload,
        from: IpAddr,
        now: Now,
    ) -> Result<(DeviceRecord, SessionId, WallTime), Refused> {
        // First of all: whether somebody has stolen it is to be known also where it would not open anything.
        self.check_shown(workload, join.device_key, SEEN_FOR_RENEWALS, from, now)?;
        let service = self.registry.service(&workload.service);
        if let Some(reason) = service.and_then(|service| service.disabled.as_ref()) {
            return Err(refused(format!("the service may not take part: {reason}")));
        }
        let known = self.registry.device_by_key(&join.device_key).cloned();
        let of = known.as_ref().map(|device| self.registry.subject(device.owner).map(|owner| owner.kind.clone()));
        let mine = Some(Some(SubjectKind::Service { name: workload.service.clone() }));
        if let Some(device) = known.as_ref().filter(|_| of != mine) {
            let owner = self.registry.subject_name(device.owner);
            return Err(refused(format!("{} is enrolled for {owner}: remove that device first", device.name)));
        }
        if !self.key_is_free(known.as_ref().map(|device| device.id), join.wireguard_key) {
            return Err(refused("this WireGuard key is another machine's: make a new one"));
        }
        let theirs = self.registry.service(&workload.service).map(|service| self.registry.devices_of(service.id));
        let count = theirs.into_iter().flatten().filter(|device| device.platform.is_some()).count();
        if known.is_none() && count >= MAX_MACHINES_OF_SERVICE {
            return Err(refused(format!("a service may have {MAX_MACHINES_OF_SERVICE} machines: remove one first")));
        }
        if known.is_none() {
            self.check_instance(workload)?;
        }
        let asked = workload.machine.as_ref().map_or_else(|| lower(&join.name), lower);
        let vouched = workload.machine.is_some();
        let gone = self.predecessor(&asked, workload, join.device_key).filter(|_| vouched);
        if gone.is_none() {
            self.check_vouched_name(vouched, &asked, known.as_ref())?;
        }
        // The last that can fail comes before anything is recorded or forgotten: whoever is refused can come again with the token.
        let device = match known {
            Some(device) => device,
            None => {
                let name = self.registry.free_name(&asked);
                let (kind, key, nobody) = (DeviceKind::Agent, Some(join.device_key), SubjectId::from_bytes([0; 16]));
                self.new_device(kind, key, name, nobody, Some(from), now).map_err(|error| refused(error.to_string()))?
            }
        };
        if let Some(gone) = gone {
            self.forget_platform_machine(gone, now);
        }
        self.free_vouched_name(vouched, &asked, Some(&device))?;
        self.sign_in_limit.take(from, now.monotonic);
        self.record_shown(workload, join.device_key, now);
        let owner = self.service(workload.service.clone(), now).id;
        self.registry.change_device(device.id, &mut self.out, |device| {
            device.owner = owner;
            take_over(device, workload);
            if workload.machine.is_some() {
                device.name.clone_from(&asked);
                device.name_claim = NameClaim::Approved;
            }
        });
        let device = self.registry.device(device.id).cloned().unwrap_or(device);
        let session = self.begin_platform_session(&device, workload.expires, from, now);
        self.bring_key(device.id, join.wireguard_key, now);
        self.out.audit(AuditEvent::PlatformSignedIn {
            subject: device.owner,
            subject_name: self.registry.subject_name(device.owner),
            device: device.id,
            machine: device.name.clone(),
            session,
            issuer: workload.issuer.clone(),
            workload: workload.subject.clone(),
            token: workload.token.short(),
            tags: device.tags.iter().cloned().collect(),
            from,
            until: workload.expires,
        });
        for peer in self.peers(device.id) {
            self.mark(peer, device.id, Urgency::Opens, Turn::Second);
        }
        self.targets_changed(now);
        self.decide(device.id, Extend::Yes, now);
        self.tell_own(device.id);
        Ok((device, session, workload.expires))
    }

    /// Refuses a new device key of a workload that was stopped under another: a device key costs nothing.
    fn check_instance(&self, workload: &Workload) -> Result<(), Refused> {
        let stopped = self.registry.devices().find(|device| {
            let same = |binding: &PlatformBinding| {
                binding.issuer == workload.issuer && binding.instance.as_ref() == Some(&workload.instance)
            };
            device.platform.as_deref().is_some_and(same)
                && (device.standing != Standing::Good
                    || self.registry.quarantine_on(device).is_some_and(|q| q.target == Quarantined::Device(device.id)))
        });
        match stopped {
            None => Ok(()),
            Some(device) => Err(refused(format!(
                "an administrator has stopped this workload as {}: only an administrator can lift that",
                device.name
            ))),
        }
    }

    /// Finds the machine to which the platform gave this name before, if that is gone: its successor would wait for long.
    fn predecessor(&self, name: &MachineName, workload: &Workload, key: DevicePublicKey) -> Option<DeviceRecord> {
        let service = self.registry.service(&workload.service).map(|service| service.id);
        let gone = self.registry.device_by_name(name).filter(|holder| {
            let same =
                |binding: &PlatformBinding| binding.issuer == workload.issuer && binding.machine.as_ref() == Some(name);
            holder.key != Some(key)
                && Some(holder.owner) == service
                && holder.platform.as_deref().is_some_and(same)
                && !self.is_stopped(holder)
                && !self.nodes.contains_key(&holder.id)
                && self.registry.session_on(holder.id).is_none()
        });
        gone.cloned()
    }

    /// Tells whether an administrator has something against a machine: it would come back as another, of which nobody knows why.
    fn is_stopped(&self, device: &DeviceRecord) -> bool {
        self.registry.quarantine_on(device).is_some() || device.standing != Standing::Good
    }

    fn forget_platform_machine(&mut self, device: DeviceRecord, now: Now) {
        let (id, machine, last_seen) = (device.id, device.name, device.last_seen);
        self.out.audit(AuditEvent::PlatformMachineForgotten { device: id, machine, last_seen });
        self.forget_device(id, now);
    }

    fn begin_platform_session(
        &mut self,
        device: &DeviceRecord,
        expires: WallTime,
        from: IpAddr,
        now: Now,
    ) -> SessionId {
        self.replace_session(device.id, now);
        let id = SessionId::from_bytes(self.draw());
        let record = SessionRecord {
            id,
            subject: device.owner,
            device: device.id,
            assurance: Assurance { groups: None, acr: None, amr: vec![], auth_time: None },
            started: now.wall,
            from,
            web_session: None,
            vouched: None,
            proven: None,
            claims_told: None,
            expires,
            ended: None,
        };
        self.registry.put_session(record, &mut self.out);
        self.schedule_platform_session(id, expires, now);
        id
    }

    /// A session of a token ends by the monotonic clock however the wall clock stands now.
    fn schedule_platform_session(&mut self, session: SessionId, expires: WallTime, now: Now) {
        let left = expires.since(now.wall.max(self.steady(now)));
        self.timers.set(Due::Session(session), now.monotonic.saturating_add(left));
    }

    fn renewal_verified(
        &mut self,
        stream: StreamId,
        id: DeviceId,
        from: IpAddr,
        found: Result<Workload, TokenRefusal>,
        now: Now,
    ) {
        if self.nodes.get(&id).is_none_or(|node| node.stream != stream) {
            return;
        }
        let Some(device) = self.registry.device(id).cloned() else { return };
        let renewed = match found {
            Ok(workload) => self.renew(&device, &workload, from, now),
            Err(TokenRefusal::Refused { told, why }) => Err((told, why)),
            Err(TokenRefusal::Unavailable(why)) => {
                let told = "the platform's token cannot be checked now: the controller's log says why";
                tracing::warn!(why, "a platform's token cannot be checked");
                Err((told.to_owned(), why))
            }
        };
        match renewed {
            Ok(until) => self.out.send(stream, ToNode::PlatformRenewed { until }),
            Err((message, why)) => {
                if let Some(key) = device.key {
                    self.platform_refused(&device.name, key, from, &why, now);
                }
                self.out.send(stream, ToNode::PlatformRefused { message });
            }
        }
    }

    fn renew(
        &mut self,
        device: &DeviceRecord,
        workload: &Workload,
        from: IpAddr,
        now: Now,
    ) -> Result<WallTime, (String, String)> {
        let twice = |text: String| (text.clone(), text);
        let (Some(session), Some(key)) = (self.registry.session_on(device.id).cloned(), device.key) else {
            return Err(twice("nobody is signed in on this machine: it joins again".into()));
        };
        self.check_shown(workload, key, 0, from, now).map_err(|(_, message)| twice(message))?;
        let owner = self.registry.subject(device.owner).map(|owner| owner.kind.clone());
        if owner != Some(SubjectKind::Service { name: workload.service.clone() }) {
            return Err(twice(format!(
                "the token stands for service:{}, and this machine is another's",
                workload.service
            )));
        }
        self.record_shown(workload, key, now);
        self.registry.change_device(device.id, &mut self.out, |device| take_over(device, workload));
        if workload.expires > session.expires {
            let record = SessionRecord { expires: workload.expires, ..session.clone() };
            self.registry.put_session(record, &mut self.out);
            self.schedule_platform_session(session.id, workload.expires, now);
            self.out.audit(AuditEvent::PlatformRenewed {
                device: device.id,
                machine: device.name.clone(),
                session: session.id,
                token: workload.token.short(),
                from,
                until: workload.expires,
            });
        }
        self.targets_changed(now);
        self.decide(device.id, Extend::Yes, now);
        self.tell_own(device.id);
        Ok(workload.expires.max(session.expires))
    }

    /// Forgets tokens that ended long ago, and machines that have been away for long.
    pub(super) fn sweep_platform(&mut self, now: Now) {
        let earlier = now.wall.min(self.steady(now));
        self.sweep_shown(earlier);
        let gone: Vec<DeviceRecord> = self
            .registry
            .devices()
            .filter(|device| {
                let Some(binding) = &device.platform else { return false };
                // `last_seen` is when its stream began, if the controller went away before the stream did; and while the
                // controller was away nobody could be seen.
                let ended = self.registry.ended_on(device.id).map_or(device.last_seen, |end| end.at);
                let seen = device.last_seen.max(ended).max(self.started.wall);
                let forget = seen.saturating_add(Duration::from_millis(binding.forget_after_ms));
                !self.is_stopped(device)
                    && forget <= earlier
                    && !self.nodes.contains_key(&device.id)
                    && self.registry.session_on(device.id).is_none()
            })
            .cloned()
            .collect();
        for device in gone {
            self.forget_platform_machine(device, now);
        }
    }
}

fn fits(token: &PlatformToken) -> Result<(), Refused> {
    if token.expose().len() > MAX_PLATFORM_TOKEN_BYTES {
        return Err((Refusal::BadToken, "the platform's token is too long".into()));
    }
    Ok(())
}

/// What a token says of its machine counts from now on, and nothing that one before it said.
fn take_over(device: &mut DeviceRecord, workload: &Workload) {
    device.tags.clone_from(&workload.tags);
    device.tags_pending.retain(|tag| !workload.tags.contains(tag));
    let vouched = device.platform.as_ref().and_then(|binding| binding.machine.as_ref());
    if vouched.is_some() && vouched != workload.machine.as_ref().map(lower).as_ref() {
        device.name_claim = NameClaim::Claimed;
    }
    device.platform = Some(Box::new(PlatformBinding {
        issuer: workload.issuer.clone(),
        subject: workload.subject.clone(),
        instance: Some(workload.instance.clone()),
        machine: workload.machine.as_ref().map(lower),
        forget_after_ms: u64::try_from(workload.forget_after.as_millis()).unwrap_or(u64::MAX),
    }));
}
