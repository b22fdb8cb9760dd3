//! The core's state, its start, and its clock.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use postern_common::{
    grant::OwnGrant,
    id::{DeviceId, Nonce, SessionId, SubjectId},
    key::{ControllerPublicKey, ControllerSigningKey},
    policy::{Entitlement, Policy, TargetNode, Targets},
    protocol::Refusal,
    time::{Monotonic, Now, WallTime},
};

use super::{
    api::{CoreConfig, Counters, Effect, Random, StreamId},
    greeting::Stream,
    joins::Joins,
    limits::{Limit, Recorded},
    node::{Connected, Pace},
    openings::Openings,
    outbox::Outbox,
    peering::{Peering, PeeringName},
    plan::Plans,
    platform::{Platform, RUN_OUT},
    provisioning::Provisioning,
    registry::Registry,
    revocation::Revocations,
    speed::Speed,
    step_up::StepUpPages,
    timers::{Due, Timers},
    views::Views,
};
use crate::{
    decision::{Clock, Extend, Lease, Terms},
    records::{
        AuditEvent, DeviceKind, DeviceRecord, LeaseEnd, Loaded, Meta, NameClaim, SessionEnd, StoreChange, SubjectKind,
        TokenHash,
    },
    signals::{behaviour, events::memory::Streams, habits, place::Atlas, posture, provider::Doors, refusals::Refusals},
};

/// How long a lease without any entitlement lasts, and how often its device is looked at.
pub(crate) const IDLE_LEASE: Duration = Duration::from_secs(600);
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// The most leases that one call looks at: everybody's are looked at in the same half second of each minute, and a revocation must
/// not wait for all of them.
const LOOKS_AT_ONCE: usize = 32;
/// What ends a session that its own machine ends.
pub(super) const SIGNED_OUT: &str = "signed out on the machine";
const TIME_OVER: &str = "its time is over: sign in again with `postern up`";

/// What became of the nodes that policy can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PlacesChange {
    /// Nothing.
    None,
    /// These are not there any more, and nothing else is different.
    Gone(BTreeSet<DeviceId>),
    /// Some are new, or have another name or tag.
    Any {
        /// Those that are gone or have another name or tag: something may be taken away there.
        touched: BTreeSet<DeviceId>,
    },
}

/// Everything that the controller decides, in memory. See the module for its shape. What is walked through is ordered, so
/// that the same calls and random numbers always have the same effects.
pub struct Core {
    pub(super) config: CoreConfig,
    pub(super) signing: ControllerSigningKey,
    pub(super) policy: Arc<Policy>,
    /// The nodes that policy can name: rebuilt when one of them changes, not when somebody signs in.
    pub(super) targets: Arc<Targets>,
    pub(super) random: Random,
    pub(super) out: Outbox,
    pub(super) meta: Meta,
    pub(super) registry: Registry,
    /// The groups of every person for whom they were changed since the start: a confirmation may be under way with a
    /// sign-in from before. One entry a local account, gone with it.
    pub(super) groups_now: HashMap<SubjectKind, BTreeSet<String>>,
    pub(super) leases: BTreeMap<DeviceId, Lease>,
    pub(super) peerings: BTreeMap<PeeringName, Peering>,
    /// The index from a device to the nodes that it is on: what a change touches.
    pub(super) peers_of: HashMap<DeviceId, BTreeSet<DeviceId>>,
    pub(super) nodes: BTreeMap<DeviceId, Connected>,
    /// The last generation of every node in this life of the core, for when it comes back.
    pub(super) generations: HashMap<DeviceId, u64>,
    /// How often each device that came since the start may go on as it does; one entry a device.
    pub(super) paces: HashMap<DeviceId, Pace>,
    pub(super) streams: HashMap<StreamId, Stream>,
    pub(super) next_stream: u64,
    /// Streams in the order in which they came; some have said since who they are, or have ended.
    pub(super) strangers: VecDeque<StreamId>,
    pub(super) joins: Joins,
    pub(super) platform: Platform,
    pub(super) habits: habits::Book,
    /// What is new of services and was told of already.
    pub(super) news_told: BTreeMap<(postern_common::id::SubjectId, habits::Habit), super::habits::News>,
    /// The connected machines whose old key was told of, and since when they have it.
    pub(super) keys_told: HashMap<DeviceId, postern_common::time::WallTime>,
    /// What time it is.
    pub(super) clock: Clock,
    /// The clocks at the start.
    pub(super) started: Now,
    pub(super) step_up_pages: StepUpPages,
    pub(super) revocations: Revocations,
    pub(super) speed: Speed,
    pub(super) plans: Plans,
    pub(super) postures: posture::Book,
    /// The devices of each subject that have leases.
    pub(super) leases_of: HashMap<SubjectId, BTreeSet<DeviceId>>,
    /// How much of limits every node says was used.
    pub(super) usages: behaviour::Book,
    pub(super) refused_lately: behaviour::RefusalBook,
    pub(super) accusers: behaviour::Accusers<DeviceId>,
    pub(super) accused_subjects: behaviour::Accusers<SubjectId>,
    pub(super) challenged_subjects: behaviour::Accusers<SubjectId>,
    /// Of whom a fresh sign-in is asked for what one node gives.
    pub(super) challenged_there: behaviour::Accusers<SubjectId>,
    pub(super) provisioning: Provisioning,
    pub(super) openings: Openings,
    /// From where nodes see machines speak.
    pub(super) views: Views,
    pub(super) atlas: Arc<dyn Atlas>,
    pub(super) event_streams: Streams,
    pub(super) refusals: Refusals,
    pub(super) doors: Doors,
    /// Browsers' login sessions that have just been cut.
    pub(super) cut_browsers: BTreeMap<SessionId, Monotonic>,
    pub(super) timers: Timers,
    pub(super) flush_first: VecDeque<DeviceId>,
    pub(super) flush_then: VecDeque<DeviceId>,
    pub(super) counters: Counters,
    pub(super) ask_limit: Limit,
    pub(super) guess_limit: Limit,
    pub(super) failure_limit: Limit,
    pub(super) recorded: Recorded,
    /// When an alert told of an enrolment token's use elsewhere, within the last hour. One entry a token.
    pub(super) tokens_elsewhere: HashMap<TokenHash, Monotonic>,
    pub(super) sign_in_limit: Limit,
    /// The nodes behind the names of probes.
    pub(super) probes: HashMap<Nonce, DeviceId>,
}

impl Core {
    /// Takes up what the store kept. Where addresses are is known from the first moment on: a machine that moved while the controller was
    /// down is not overlooked. `now` and every later `now` come from the clocks of one boot.
    pub fn new(
        config: CoreConfig,
        signing: ControllerSigningKey,
        policy: Arc<Policy>,
        atlas: Arc<dyn Atlas>,
        mut loaded: Loaded,
        random: Random,
        now: Now,
    ) -> Self {
        let provisioning = Provisioning::load(&mut loaded);
        let registry = Registry::load(&mut loaded);
        let born = WallTime::from_millis(i64::try_from(loaded.meta.epoch).unwrap_or(i64::MAX));
        let event_streams = Streams::load(loaded.event_streams, loaded.seen_events, born, now);
        let clock = Clock::load(loaded.clock, config.boot, now);
        let mut core = Self {
            config,
            clock,
            signing,
            policy,
            targets: Arc::default(),
            random,
            out: Outbox::default(),
            meta: loaded.meta,
            registry,
            groups_now: HashMap::new(),
            leases: BTreeMap::new(),
            peerings: BTreeMap::new(),
            peers_of: HashMap::new(),
            nodes: BTreeMap::new(),
            generations: HashMap::new(),
            paces: HashMap::new(),
            streams: HashMap::new(),
            next_stream: 0,
            strangers: VecDeque::new(),
            provisioning,
            openings: Openings::default(),
            views: Views::default(),
            atlas,
            event_streams,
            refusals: Refusals::default(),
            doors: Doors::load(loaded.shut_doors),
            cut_browsers: BTreeMap::new(),
            joins: Joins::default(),
            platform: Platform::load(loaded.token_uses, now),
            habits: habits::Book::load(loaded.habits),
            news_told: BTreeMap::new(),
            keys_told: HashMap::new(),
            started: now,
            step_up_pages: StepUpPages::default(),
            revocations: Revocations::default(),
            speed: Speed::default(),
            plans: Plans::default(),
            postures: posture::Book::load(loaded.postures, now),
            leases_of: HashMap::new(),
            usages: behaviour::Book::default(),
            refused_lately: behaviour::RefusalBook::default(),
            accusers: behaviour::Accusers::new(behaviour::MAX_ACCUSED),
            accused_subjects: behaviour::Accusers::new(behaviour::MAX_ACCUSED),
            challenged_subjects: behaviour::Accusers::new(behaviour::MAX_CHALLENGED),
            challenged_there: behaviour::Accusers::new(behaviour::MAX_CHALLENGED_THERE),
            timers: Timers::default(),
            flush_first: VecDeque::new(),
            flush_then: VecDeque::new(),
            counters: Counters::default(),
            ask_limit: Limit::new(20, Duration::from_secs(3)),
            // An office shares one address: the limit of one person is the pages', this one only makes guessing hopeless.
            guess_limit: Limit::new(60, Duration::from_secs(1)),
            failure_limit: Limit::new(30, Duration::from_secs(2)),
            recorded: Recorded::default(),
            tokens_elsewhere: HashMap::new(),
            // A cluster behind one address may start all its machines at once.
            sign_in_limit: Limit::new(512, Duration::from_secs(1)),
            probes: HashMap::new(),
        };
        let started = AuditEvent::Started { epoch: core.meta.epoch, policy_revision: core.meta.policy_revision };
        core.out.audit(started);
        core.index_all_provisioned();
        core.date_keys(now);
        core.sweep(now);
        for session in core.registry.sessions().map(|s| (s.id, s.expires)).collect::<Vec<_>>() {
            core.schedule_session(session.0, session.1, now);
        }
        core.rebuild_targets();
        core.resume(loaded.leases, loaded.pairs, now);
        core.close_withdrawn(now);
        core.flush(now);
        core
    }

    /// Takes the next effect. The shell takes all of them after every call.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.out.pop()
    }

    /// Returns when [`Core::handle_timeout`] wants to be called at the latest.
    pub fn poll_timeout(&self) -> Monotonic {
        self.timers.next()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        let mut over = Vec::new();
        let mut looks = 0;
        while looks < LOOKS_AT_ONCE
            && let Some(due) = self.timers.pop(now.monotonic)
        {
            match due {
                Due::Lease(device) => {
                    looks += 1;
                    self.look_at_lease(device, now);
                }
                // By the monotonic clock. If the wall clock was set back meanwhile, they do not get longer by that.
                Due::Session(session) => over.push(session),
                Due::Greeting(stream) => self.greeting_due(stream, now),
                Due::Acknowledge(node) => self.acknowledgement_due(node, now),
                Due::Expiry(node) => self.expiry_due(node, now),
                Due::Retire(one, other) => self.retire_pairs(one, other, now),
                Due::Revocation(id) => self.revocation_due(id, now),
                Due::Silence => self.silence_due(now),
                Due::Openings => looks += self.decide_openings(now).max(1),
                Due::Provisioning => looks += self.decide_waiting(now).max(1),
                Due::Sweep => self.sweep(now),
            }
        }
        self.end_sessions(over, TIME_OVER, now);
        self.flush(now);
    }

    /// Returns what the core is configured with.
    pub const fn config(&self) -> &CoreConfig {
        &self.config
    }

    /// Returns the key that nodes pin.
    pub fn public_key(&self) -> ControllerPublicKey {
        self.signing.public()
    }

    pub(super) fn draw<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        (self.random)(&mut bytes);
        bytes
    }

    pub(super) fn draw_u32(&mut self) -> u32 {
        u32::from_be_bytes(self.draw())
    }

    pub(super) const fn terms(&self) -> Terms {
        Terms { min: self.config.lease_min, max: self.config.lease_max }
    }

    /// Looks through what hangs on the wall clock, which can be set.
    fn sweep(&mut self, now: Now) {
        self.watch_clock(now);
        // Not by the wall clock alone: after an hour forward it may come back, and what is forgotten does not.
        self.registry.sweep(self.clock.earliest(now), &mut self.out);
        self.sweep_requests(now.wall);
        self.sweep_break_glass(now.wall);
        self.sweep_events(now);
        self.sweep_doors(now);
        self.views.sweep(now.monotonic);
        self.usages.sweep(now.monotonic);
        self.refused_lately.sweep(now.monotonic);
        self.accusers.sweep(now.monotonic);
        self.accused_subjects.sweep(now.monotonic);
        self.challenged_subjects.sweep(now.monotonic);
        self.challenged_there.sweep(now.monotonic);
        self.sweep_provisioning(now);
        self.end_overtaken_sessions(now);
        let leases: Vec<DeviceId> =
            self.leases.values().filter(|l| l.deadline.has_passed(now)).map(|l| l.record.device).collect();
        for device in leases {
            self.look_at_lease(device, now);
        }
        self.tell_late_endpoints(now);
        self.sweep_platform(now);
        self.sweep_keys(now);
        self.sweep_news(now);
        self.timers.set(Due::Sweep, now.monotonic.saturating_add(SWEEP_EVERY));
    }

    // --- login sessions

    pub(super) fn schedule_session(&mut self, session: SessionId, expires: postern_common::time::WallTime, now: Now) {
        self.timers.set(Due::Session(session), now.monotonic.saturating_add(expires.since(self.clock.latest(now))));
    }

    /// Ends the login sessions whose time is over by the wall clock.
    pub(super) fn end_overtaken_sessions(&mut self, now: Now) {
        let over = self.registry.sessions().filter(|session| session.expires <= now.wall).map(|session| session.id);
        let over: Vec<SessionId> = over.collect();
        self.end_sessions(over, TIME_OVER, now);
    }

    /// Ends a login session: its lease, its keys and every door that it opened, on all nodes.
    pub(super) fn end_session(&mut self, session: SessionId, reason: &str, now: Now) {
        self.end_sessions(vec![session], reason, now);
    }

    /// Ends login sessions as [`Core::end_session`] does, and looks once at what that changes for everybody else: each
    /// look goes through all machines.
    pub(super) fn end_sessions(&mut self, sessions: Vec<SessionId>, reason: &str, now: Now) {
        let ended: Vec<DeviceId> = sessions.into_iter().filter_map(|id| self.close_session(id, reason, now)).collect();
        if ended.is_empty() {
            return;
        }
        self.targets_changed(now);
        for device in ended {
            let reason = self.reason_on(device, reason);
            self.forget_keys(device, now);
            if let Some(node) = self.nodes.get_mut(&device) {
                node.own_dirty = true;
                let message = postern_common::protocol::ToNode::SessionEnded { reason: reason.to_owned() };
                self.out.send(node.stream, message);
                self.flush_then.push_back(device);
            }
            // One that is held stays on record until its release: else its person would take another configuration.
            let goes = |device: &DeviceRecord| device.kind == DeviceKind::StockClient && !self.is_held(device);
            if self.registry.device(device).is_some_and(goes) {
                self.drop_device(device, now); // never a place
            }
        }
    }

    /// A session that hangs on a platform's token is over for another reason than a person's.
    fn reason_on<'a>(&self, device: DeviceId, reason: &'a str) -> &'a str {
        let platform = self.registry.device(device).is_some_and(|device| device.platform.is_some());
        if platform && reason == TIME_OVER { RUN_OUT } else { reason }
    }

    /// Ends the record of a login session and its lease; returns its device.
    fn close_session(&mut self, session: SessionId, reason: &str, now: Now) -> Option<DeviceId> {
        let record = self.registry.session(session)?.clone();
        let reason = self.reason_on(record.device, reason);
        if reason != RUN_OUT && reason != SIGNED_OUT {
            self.spend_tokens(record.device);
        }
        self.timers.cancel(Due::Session(session));
        self.end_lease(record.device, LeaseEnd::SessionEnded { reason: reason.to_owned() }, now);
        let end = SessionEnd { at: now.wall, reason: reason.to_owned() };
        self.registry.end_session(session, end, &mut self.out);
        self.out.audit(AuditEvent::SessionEnded {
            session,
            subject: record.subject,
            subject_name: self.registry.subject_name(record.subject),
            device: record.device,
            reason: reason.to_owned(),
        });
        Some(record.device)
    }

    // --- targets

    /// Tells whether `policy` may name this device as a place, and under which name.
    fn target_of(&self, policy: &Policy, device: &DeviceRecord) -> Option<TargetNode> {
        self.registry.may_take_part(device).then(|| self.named_by(policy, device)).flatten()
    }

    /// Lists the nodes that policy could name if nothing were in quarantine: what an explanation is made from.
    pub(super) fn targets_but_for_quarantine(&self) -> Arc<Targets> {
        if self.registry.quarantines().next().is_none() {
            return self.targets.clone();
        }
        let would = self.registry.devices().filter(|device| self.registry.would_take_part(device));
        Arc::new(Targets::new(would.filter_map(|device| self.named_by(&self.policy, device))))
    }

    fn named_by(&self, policy: &Policy, device: &DeviceRecord) -> Option<TargetNode> {
        if device.kind == DeviceKind::StockClient {
            return None;
        }
        let by_name = device.name_claim == NameClaim::Approved && policy.is_destination_name(&device.name);
        let by_tag = device.tags.iter().any(|tag| policy.is_destination_tag(tag));
        if !by_name && !by_tag {
            return None;
        }
        // A name that nobody vouched for must not stand for a resource; an identifier cannot be one by accident.
        let name = match by_name || !policy.is_destination_name(&device.name) {
            true => device.name.clone(),
            false => device.id.to_string().parse().expect("an identifier is a name"),
        };
        Some(TargetNode { device: device.id, name, tags: device.tags.clone() })
    }

    /// Lists the nodes that `policy` can name.
    pub(super) fn target_nodes(&self, policy: &Policy) -> Vec<TargetNode> {
        self.registry.devices().filter_map(|device| self.target_of(policy, device)).collect()
    }

    /// Rebuilds the index of nodes that policy can name; tells what differs.
    pub(super) fn rebuild_targets(&mut self) -> PlacesChange {
        self.counters.places_listed += 1;
        let next = Targets::new(self.target_nodes(&self.policy));
        let before = self.targets.nodes();
        if next.nodes() == before {
            return PlacesChange::None;
        }
        let all_known = next.nodes().iter().all(|node| self.targets.node(node.device) == Some(node));
        let touched = before.iter().filter(|node| next.node(node.device) != Some(node));
        let touched = touched.map(|node| node.device).collect();
        self.targets = Arc::new(next);
        if all_known { PlacesChange::Gone(touched) } else { PlacesChange::Any { touched } }
    }

    /// Decides again whom a change of the nodes that policy can name concerns: at once whose leases open something on a place that went
    /// or changed, and everybody in portions if some may gain by it.
    pub(super) fn targets_changed(&mut self, now: Now) {
        match self.rebuild_targets() {
            PlacesChange::None => {}
            PlacesChange::Gone(gone) => {
                self.decide_where(now, |entitlement| entitlement.nodes.iter().any(|node| gone.contains(node)));
            }
            PlacesChange::Any { touched } => {
                let on = |entitlement: &Entitlement| entitlement.nodes.iter().any(|node| touched.contains(node));
                let decided = self.decide_where(now, on);
                self.let_wait(&decided, now);
            }
        }
    }

    /// Decides again the leases of which some entitlement is concerned: enough for whatever only takes away. Returns whose.
    pub(super) fn decide_where(&mut self, now: Now, concerned: impl Fn(&Entitlement) -> bool) -> HashSet<DeviceId> {
        let held = |lease: &Lease| lease.granted.iter().any(|granted| concerned(&granted.entitlement));
        let devices: Vec<DeviceId> =
            self.leases.iter().filter(|(_, lease)| held(lease)).map(|(device, _)| *device).collect();
        for device in &devices {
            self.decide(*device, Extend::No, now);
        }
        devices.into_iter().collect()
    }

    pub(super) fn decide_all(&mut self, now: Now) {
        let mut devices: Vec<DeviceId> = self.leases.keys().copied().collect();
        devices.sort_unstable();
        for device in devices {
            self.decide(device, Extend::No, now);
        }
    }

    // --- what a node is told of itself

    pub(super) fn own_grant(&self, device: &DeviceRecord) -> OwnGrant<postern_common::time::WallTime> {
        let session = self.registry.session_on(device.id);
        OwnGrant {
            name: device.name.clone(),
            subject: session.map_or(device.owner, |session| session.subject),
            subject_name: self.registry.subject_name(device.owner),
            tags: device.tags.iter().cloned().collect(),
            addresses: device.addresses.to_vec(),
            overlay: self.config.overlay(),
            domain: self.config.domain.clone(),
            keys: device.wireguard_keys.clone(),
            session_until: session.map(|session| session.expires),
            quarantine: self.quarantine_notice(device),
            step_up: self.step_up_offers(device.id),
            scan: self.leases.get(&device.id).and_then(|lease| lease.scan.clone()),
        }
    }

    /// Forgets a device, ends its stream, and holds its addresses back.
    pub(super) fn forget_device(&mut self, device: DeviceId, now: Now) {
        self.drop_device(device, now);
        self.targets_changed(now);
    }

    fn drop_device(&mut self, device: DeviceId, now: Now) {
        self.keep_use_of(device, now);
        self.close_node(
            device,
            Refusal::UnknownDevice,
            "this machine was removed: run `postern up` to join again",
            now,
        );
        let hold_until = self.clock.latest(now).saturating_add(self.config.address_hold);
        self.keep_challenges_of(device, now);
        self.registry.delete_device(device, hold_until, &mut self.out);
        if self.postures.forget(device) {
            self.out.store(StoreChange::DeletePosture(device));
        }
        self.generations.remove(&device);
        self.paces.remove(&device);
        self.views.forget_all(device);
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("epoch", &self.meta.epoch)
            .field("nodes", &self.nodes.len())
            .field("leases", &self.leases.len())
            .finish_non_exhaustive()
    }
}

/// Turns what a backup holds into the start of a new life: a new epoch, every login session and lease over, every pair
/// of keys and every enrolment token forgotten. The effects make that durable; the shell applies them before it makes a core.
pub fn restored(mut loaded: Loaded, now: Now) -> (Loaded, Vec<Effect>) {
    let mut effects = Vec::new();
    let wall = u64::try_from(now.wall.as_millis()).unwrap_or(0);
    loaded.meta.epoch = wall.max(loaded.meta.epoch + 1);
    loaded.meta.restored = Some(now.wall);
    effects.push(Effect::Store(StoreChange::PutMeta(loaded.meta.clone())));
    let mut ended = 0;
    for mut session in loaded.sessions.drain(..).filter(|session| session.ended.is_none()) {
        session.ended = Some(SessionEnd { at: now.wall, reason: "the controller was restored from a backup".into() });
        effects.push(Effect::Store(StoreChange::PutSession(session)));
        ended += 1;
    }
    for lease in loaded.leases.drain(..) {
        effects.push(Effect::Store(StoreChange::DeleteLease(lease.id)));
    }
    for pair in loaded.pairs.drain(..) {
        effects.push(Effect::Store(StoreChange::DeletePair(pair.name())));
    }
    // What was vouched for when the backup was made may have been taken back since. Serial numbers stay bound.
    for mut posture in loaded.postures.drain(..) {
        (posture.own, posture.attested, posture.compliance) = (None, None, None);
        effects.push(Effect::Store(StoreChange::PutPosture(posture)));
    }
    // What somebody opened for a time may have been closed or refused since.
    for opening in loaded.break_glass.drain(..) {
        effects.push(Effect::Store(StoreChange::DeleteBreakGlass(opening.id)));
    }
    for request in loaded.requests.drain(..) {
        effects.push(Effect::Store(StoreChange::DeleteRequest(request.id)));
    }
    // A token that was used up after the backup was made must not work again.
    for token in loaded.tokens.drain(..) {
        effects.push(Effect::Store(StoreChange::DeleteToken(token.hash)));
    }
    // Nor may a client whose token was taken back.
    for token in loaded.scim_tokens.drain(..) {
        effects.push(Effect::Store(StoreChange::DeleteScimToken(token.hash)));
    }
    let people: BTreeMap<_, _> = loaded.subjects.iter().map(|subject| (subject.id, &subject.kind)).collect();
    for device in &mut loaded.devices {
        let person = matches!(people.get(&device.owner), Some(crate::records::SubjectKind::Person { .. }) | None);
        if person && !device.wireguard_keys.is_empty() {
            device.wireguard_keys.clear();
            effects.push(Effect::Store(StoreChange::PutDevice(device.clone())));
        }
    }
    effects.push(Effect::Audit(AuditEvent::Restored { epoch: loaded.meta.epoch, sessions_ended: ended }));
    (loaded, effects)
}
