//! Streams: how they begin, what may be said on them, how they end.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use postern_common::{
    id::{DeviceId, Nonce},
    key::SigningPurpose,
    posture::PostureVerifier,
    probe::{ClaimedProbe, ProbeKey},
    protocol::{FromNode, Hello, MAX_ENDPOINTS, PROTOCOL_VERSION, Refusal, ToNode, hello_payload},
    time::{Monotonic, Now},
};

use super::{
    api::{PlanId, StreamId},
    core::{Core, SIGNED_OUT},
    leases::{Turn, Urgency},
    limits::Stranger,
    node::{Asks, Connected, Pace, Probe},
    platform::RUN_OUT,
    timers::Due,
};
use crate::{
    decision::Extend,
    records::{AuditEvent, DeviceRecord, Standing, SubjectKind},
};

/// The most streams that have not said who they are or wait for a person. When one more comes, the one gives way that has
/// been silent longest.
const MAX_GREETING: usize = 1_024;
/// The most streams in all.
const MAX_STREAMS: usize = 20_000;
/// The greatest generation that a node may say it enforces: more documents than a controller can ever have signed.
const MAX_GENERATION: u64 = 1 << 48;
/// To a node that asks more than its limit allows, for whoever waits there.
const TOO_OFTEN: &str = "this machine asks too often: try again in a minute";
const GREET_WITHIN: Duration = Duration::from_secs(15);

/// What a stream is for.
#[derive(Debug, Clone)]
pub(crate) enum StreamState {
    /// It was asked who it is.
    Challenged {
        /// What it has to sign.
        nonce: Nonce,
        /// When it was asked.
        at: Monotonic,
    },
    /// A machine that waits for a person, or was told that it has joined.
    Joining,
    /// An enrolled node.
    Node(DeviceId),
}

/// One stream.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) remote: SocketAddr,
    pub(crate) state: StreamState,
}

fn is_silent(streams: &HashMap<StreamId, Stream>, stream: StreamId) -> bool {
    streams.get(&stream).is_some_and(|stream| matches!(stream.state, StreamState::Challenged { .. }))
}

impl Core {
    /// Begins a stream: a WebSocket that a machine has opened.
    pub fn connect(&mut self, remote: SocketAddr, now: Now) -> StreamId {
        let stream = StreamId(self.next_stream);
        self.next_stream += 1;
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        if self.has_no_room() {
            self.drop_longest_silent(now);
        }
        if self.has_no_room() {
            self.counters.streams_refused += 1;
            self.out.close(stream, Refusal::Busy, "the controller has too many streams: it is worth another try soon");
            return stream;
        }
        let nonce = Nonce::from_bytes(self.draw());
        self.streams.insert(stream, Stream { remote, state: StreamState::Challenged { nonce, at: now.monotonic } });
        if self.strangers.len() >= 2 * MAX_GREETING {
            let is_silent = |stream: &StreamId| is_silent(&self.streams, *stream);
            self.strangers.retain(is_silent);
        }
        self.strangers.push_back(stream);
        self.timers.set(Due::Greeting(stream), now.monotonic.saturating_add(GREET_WITHIN));
        self.out.send(stream, ToNode::Challenge { nonce, protocol: PROTOCOL_VERSION });
        stream
    }

    fn has_no_room(&self) -> bool {
        let greeting = self.streams.len().saturating_sub(self.nodes.len());
        greeting >= MAX_GREETING || self.streams.len() >= MAX_STREAMS
    }

    /// Ends the stream that has been silent longest. A node says who it is as soon as it is asked; whoever opens streams and
    /// says nothing must not keep nodes from coming back, so silence is what gives way.
    fn drop_longest_silent(&mut self, now: Now) {
        while let Some(stream) = self.strangers.pop_front() {
            if is_silent(&self.streams, stream) {
                let message = "the controller has many streams, and this one has not said who it is";
                return self.refuse_stream(stream, None, Refusal::Busy, message, now);
            }
        }
    }

    /// Takes a message of a stream.
    pub fn receive(&mut self, stream: StreamId, message: FromNode, now: Now) {
        let Some(Stream { remote, state }) = self.streams.get(&stream).cloned() else { return };
        match (state, message) {
            (StreamState::Challenged { nonce, at }, FromNode::Hello(hello)) => {
                self.hello(stream, remote, (nonce, at), hello, now)
            }
            (StreamState::Challenged { nonce, .. }, FromNode::Join(join)) => {
                self.join(stream, remote, nonce, join, now);
            }
            (StreamState::Challenged { nonce, .. }, FromNode::Enrol(enrol)) => {
                self.enrol(stream, remote, nonce, &enrol, now);
            }
            (StreamState::Challenged { nonce, .. }, FromNode::Platform(asked)) => {
                self.platform_join(stream, remote, nonce, asked, now);
            }
            (StreamState::Node(node), message) => self.receive_from_node(stream, node, message, now),
            (StreamState::Challenged { .. } | StreamState::Joining, _) => {
                self.refuse_stream(stream, None, Refusal::Protocol, "this message makes no sense here", now);
            }
        }
        self.flush(now);
    }

    fn receive_from_node(&mut self, stream: StreamId, id: DeviceId, message: FromNode, now: Now) {
        match message {
            FromNode::Enforced { position, cut } => self.enforced(id, position, cut, now),
            FromNode::LiveFlows { id: question, groups, unlisted } => {
                self.flows_counted(id, PlanId(question), groups, unlisted);
            }
            FromNode::SnapshotWanted => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    let asked_lately = !node.asks.snapshots.take(now.monotonic);
                    if asked_lately {
                        self.counters.messages_refused += 1;
                        return;
                    }
                    // What was on its way will not be enforced; the snapshot replaces all of it.
                    let lost = std::mem::take(&mut node.outstanding);
                    node.revocations.extend(lost.into_iter().flat_map(|document| document.revocations));
                    node.snapshot_wanted = true;
                    node.peers.clear();
                    node.own = None;
                    self.flush_then.push_back(id);
                }
            }
            FromNode::Freshen { nonce } => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.nonce = nonce;
                    node.nonce_received = now.monotonic;
                }
            }
            FromNode::RotateKey { key } => {
                // Each new key is two records on disk, one of which is kept for ever.
                match self.paces.get_mut(&id).is_some_and(|pace| pace.changes.take(now.monotonic)) {
                    true => self.add_key(id, key, now),
                    false => self.counters.keys_refused += 1,
                }
            }
            FromNode::Endpoints { endpoints } => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.reported = endpoints;
                    self.endpoints_changed(id, now);
                }
            }
            FromNode::Posture { signed } => self.hear_posture(id, &signed, now),
            FromNode::Logout => match self.registry.session_on(id).map(|session| session.id) {
                Some(session) => self.end_session(session, SIGNED_OUT, now),
                None => self.counters.messages_refused += 1,
            },
            FromNode::Explain { id: question, to, service } => {
                if self.nodes.get_mut(&id).is_some_and(|node| node.asks.explanations.take(now.monotonic)) {
                    let explanation = self.explain_to_node(id, &to, service, now);
                    self.out.send(stream, ToNode::Explained { id: question, explanation });
                } else {
                    self.counters.messages_refused += 1;
                }
            }
            FromNode::StepUp { resource } => {
                if self.nodes.get_mut(&id).is_some_and(|node| node.asks.step_ups.take(now.monotonic)) {
                    self.step_up_asked(id, stream, resource, now);
                } else {
                    self.counters.messages_refused += 1;
                    // Somebody may wait for it.
                    let message = TOO_OFTEN.to_owned();
                    self.out.send(stream, ToNode::StepUpRefused { resource, message });
                }
            }
            FromNode::Behaviour { process, usages, scans } => self.behaviour_told((id, process), usages, scans, now),
            FromNode::Seen { peers } => self.peers_seen(id, peers, now),
            FromNode::Refusals { refused } => self.refusals_told(id, refused, now),
            FromNode::RequestAccess { id: question, resource, length_ms, reason } => {
                let answer = if self.nodes.get_mut(&id).is_some_and(|node| node.asks.access.take(now.monotonic)) {
                    let length = Duration::from_millis(length_ms);
                    let answer = self.request_access(id, &resource, length, &reason, now);
                    answer.map_err(|error| error.to_string())
                } else {
                    self.counters.messages_refused += 1;
                    Err(TOO_OFTEN.to_owned())
                };
                self.out.send(stream, ToNode::AccessRequested { id: question, answer });
            }
            FromNode::PlatformToken { token } => self.platform_token(id, stream, token, now),
            FromNode::FirstUses { uses } => self.used_first(id, uses, now),
            FromNode::Join(_) | FromNode::Enrol(_) | FromNode::Platform(_) | FromNode::Hello(_) => {
                self.close_node(id, Refusal::Protocol, "this message makes no sense here", now);
            }
        }
    }

    fn hello(
        &mut self,
        stream: StreamId,
        remote: SocketAddr,
        (challenge, challenged): (Nonce, Monotonic),
        hello: Hello,
        now: Now,
    ) {
        // No limit by address: a signature cannot be guessed, and a neighbour behind the same address could use the
        // limit up and keep every node there from coming back.
        let refuse = |core: &mut Self, refusal, message: &str| {
            core.refuse_stream(stream, Some(hello.device), refusal, message, now);
        };
        if hello.protocol != PROTOCOL_VERSION {
            let message =
                format!("the controller speaks protocol {PROTOCOL_VERSION}: install the same version of postern");
            return refuse(self, Refusal::Version, &message);
        }
        let Some(device) = self.registry.device(hello.device).cloned() else {
            return refuse(
                self,
                Refusal::UnknownDevice,
                "the controller does not know this machine: `postern up` joins again",
            );
        };
        let payload = hello_payload(challenge, hello.device, hello.boot, hello.nonce);
        let signed =
            device.key.is_some_and(|key| key.verify(SigningPurpose::StreamHello, &payload, &hello.signature).is_ok());
        if !signed {
            return refuse(self, Refusal::BadSignature, "the signature is not this machine's");
        }
        if let Standing::Revoked { .. } = device.standing {
            return refuse(self, Refusal::UnknownDevice, "an administrator has revoked this machine");
        }
        if hello.enforced.is_some_and(|enforced| enforced.epoch > self.meta.epoch) {
            // This controller runs on older state than the machine has seen: its documents would be refused there.
            return refuse(
                self,
                Refusal::Closing,
                "the controller's state is older than what this machine has seen: an administrator has to run `postern-controller restore`",
            );
        }
        // Each stream is two records that are kept for ever, and a snapshot.
        let pace = self.paces.entry(device.id).or_insert_with(|| Pace::new(now.monotonic));
        if !pace.hellos.take(now.monotonic) {
            self.counters.rate_limited += 1;
            return refuse(self, Refusal::Busy, "this machine comes back too often: try again in a minute");
        }
        self.accept(stream, remote, device, (challenge, challenged), hello, now);
    }

    fn accept(
        &mut self,
        stream: StreamId,
        remote: SocketAddr,
        device: DeviceRecord,
        (challenge, challenged): (Nonce, Monotonic),
        hello: Hello,
        now: Now,
    ) {
        let id = device.id;
        self.close_node(id, Refusal::Closing, "another stream of this machine took over", now);
        self.timers.cancel(Due::Greeting(stream));
        self.streams.insert(stream, Stream { remote, state: StreamState::Node(id) });
        let epoch = self.meta.epoch;
        // A node can say anything: no number from which there is none left to count on. It refuses what it is told then.
        let seen = hello.enforced.filter(|p| p.epoch == epoch && p.generation < MAX_GENERATION);
        let seen = seen.map_or(0, |position| position.generation);
        let generation = seen.max(self.generations.get(&id).copied().unwrap_or(0));
        let revocations = self.revocations_for(id);
        let node = Connected {
            stream,
            from: remote,
            since: now.wall,
            nonce: hello.nonce,
            nonce_received: now.monotonic,
            reported: hello.endpoints,
            observed: None,
            probe: None,
            generation,
            enforced: None,
            own: None,
            peers: Default::default(),
            outstanding: Default::default(),
            revocations,
            dirty: Default::default(),
            own_dirty: false,
            snapshot_wanted: true,
            urgent: false,
            asks: Asks::new(now.monotonic),
            posture: device.key.map(|key| PostureVerifier::new(id, key, challenge)),
            challenged,
            posture_heard: None,
            posture_told: None,
            endpoints_late: false,
        };
        self.nodes.insert(id, node);
        self.wakes(id, device.last_seen, now);
        if device.last_address != Some(remote.ip()) {
            self.views.moved(id, now.monotonic);
        }
        let spoke_from = self.moves(&device, remote.ip(), now);
        self.service_seen(&device, &hello.machine, remote.ip(), now);
        let version: String = hello.version.chars().filter(|c| !c.is_control()).take(64).collect();
        self.registry.change_device(id, &mut self.out, |device| {
            device.last_seen = now.wall;
            device.last_address = Some(remote.ip());
            device.spoke_from = spoke_from;
            device.version.clone_from(&version);
        });
        self.out.audit(AuditEvent::StreamOpened { device: id, machine: device.name, from: remote.ip(), version });
        let within_ms = u64::try_from(self.config.key_deadline.as_millis()).unwrap_or(u64::MAX);
        self.out.send(stream, ToNode::KeyDeadline { within_ms });
        self.offer_probe(id);
        self.endpoints_changed(id, now);
        if self.registry.device(id).is_some_and(|device| self.registry.would_take_part(device)) {
            self.reconcile_keys(id, &hello.keys, now);
        }
        match self.leases.get(&id) {
            Some(lease) if !lease.wants_renewal(now) => self.decide(id, Extend::No, now),
            Some(_) | None => self.decide(id, Extend::Yes, now),
        }
        self.ask_for_posture(id, None, now);
        let signed_out = self.registry.session_on(id).is_none()
            && self
                .registry
                .subject(device.owner)
                .is_some_and(|owner| device.platform.is_some() || matches!(owner.kind, SubjectKind::Person { .. }));
        if signed_out {
            let reason = match device.platform {
                Some(_) => RUN_OUT.to_owned(),
                None => "nobody is signed in on this machine: sign in with `postern up`".to_owned(),
            };
            self.out.send(stream, ToNode::SessionEnded { reason });
        }
        self.tell_requests(id);
        self.flush_then.push_back(id);
    }

    // --- outer addresses

    fn offer_probe(&mut self, id: DeviceId) {
        let Some(port) = self.config.probe_port else { return };
        let name = Nonce::from_bytes(self.draw());
        let key = ProbeKey::from_bytes(self.draw());
        let Some(node) = self.nodes.get_mut(&id) else { return };
        self.out.send(node.stream, ToNode::Probe { port, id: name, key: key.to_base64() });
        node.probe = Some(Probe { id: name, key, sequence: 0 });
        self.probes.insert(name, id);
    }

    /// Takes a datagram that came to the receiver of probes.
    pub fn observe_probe(&mut self, datagram: &[u8], from: SocketAddr, now: Now) {
        let claimed = ClaimedProbe::parse(datagram);
        let id = claimed.and_then(|claimed| self.probes.get(&claimed.stream).copied());
        let probe = id.and_then(|id| self.nodes.get_mut(&id)).and_then(|node| node.probe.as_mut());
        let (Some(claimed), Some(id), Some(probe)) = (claimed, id, probe) else {
            self.counters.probes_refused += 1;
            return;
        };
        if probe.id != claimed.stream || claimed.sequence <= probe.sequence || !probe.key.made(&claimed) {
            self.counters.probes_refused += 1;
            return;
        }
        probe.sequence = claimed.sequence;
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        if let Some(node) = self.nodes.get_mut(&id)
            && node.observed != Some(from)
        {
            let before = node.observed.replace(from);
            self.out.send(node.stream, ToNode::Observed { endpoint: from });
            self.probe_moved(id, before, from.ip(), now);
            self.endpoints_changed(id, now);
            self.flush(now);
        }
    }

    /// Tells peers where a node may be found. Permissions are not touched.
    fn endpoints_changed(&mut self, id: DeviceId, now: Now) {
        let overlay = self.config.overlay();
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let from_here = node.from.ip().is_loopback();
        let useful = |endpoint: &SocketAddr| {
            let ip = endpoint.ip();
            // A loopback address would make peers talk to themselves, an overlay address would loop the tunnel.
            endpoint.port() != 0
                && !ip.is_unspecified()
                && !ip.is_multicast()
                && ip != IpAddr::V4(std::net::Ipv4Addr::BROADCAST)
                && (from_here || !ip.is_loopback())
                && !overlay.iter().any(|net| net.contains(&ip))
        };
        node.reported.truncate(MAX_ENDPOINTS);
        for endpoint in &mut node.reported {
            *endpoint = SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port());
        }
        node.reported.retain(useful);
        let endpoints = node.endpoints();
        let Some(device) = self.registry.device(id) else { return };
        // Each change costs a record and a document for every peer: a node that changes all the time waits for the sweep.
        let pace = self.paces.get_mut(&id);
        node.endpoints_late =
            device.endpoints != endpoints && !pace.is_some_and(|pace| pace.changes.take(now.monotonic));
        self.counters.messages_refused += u64::from(node.endpoints_late);
        if device.endpoints != endpoints && !node.endpoints_late {
            self.registry.change_device(id, &mut self.out, |device| device.endpoints = endpoints);
            for peer in self.peers(id) {
                self.mark(peer, id, Urgency::Opens, Turn::Second);
            }
        }
    }

    /// Tells peers the outer addresses of nodes that changed them too often to be told at once.
    pub(super) fn tell_late_endpoints(&mut self, now: Now) {
        let late: Vec<DeviceId> =
            self.nodes.iter().filter(|(_, node)| node.endpoints_late).map(|(id, _)| *id).collect();
        for id in late {
            self.endpoints_changed(id, now);
        }
    }

    // --- ends

    /// Forgets a stream that has ended.
    pub fn disconnect(&mut self, stream: StreamId, now: Now) {
        let Some(ended) = self.streams.remove(&stream) else { return };
        self.timers.cancel(Due::Greeting(stream));
        match ended.state {
            StreamState::Challenged { .. } => {}
            StreamState::Joining => {
                self.joins.abandon(stream);
                self.platform.abandon(stream);
            }
            StreamState::Node(id) => self.node_left(id, "the stream ended", now),
        }
        self.flush(now);
    }

    fn node_left(&mut self, id: DeviceId, reason: &str, now: Now) {
        let Some(node) = self.nodes.remove(&id) else { return };
        self.platform.abandon(node.stream);
        if let Some(probe) = node.probe {
            self.probes.remove(&probe.id);
        }
        self.timers.cancel(Due::Acknowledge(id));
        self.timers.cancel(Due::Expiry(id));
        self.revocations_interrupted(id);
        self.registry.change_device(id, &mut self.out, |device| device.last_seen = now.wall);
        let machine = self.registry.machine_name(id);
        self.out.audit(AuditEvent::StreamClosed { device: id, machine, reason: reason.to_owned() });
        if let Some(lease) = self.leases.get(&id) {
            // Nobody is there to renew it: look again when the first part of it ends.
            let at = lease.next_look(false, 0, now);
            self.timers.set(Due::Lease(id), at);
        }
    }

    /// Ends a node's stream, if it has one.
    pub(super) fn close_node(&mut self, id: DeviceId, refusal: Refusal, message: &str, now: Now) {
        if let Some(stream) = self.nodes.get(&id).map(|node| node.stream) {
            self.streams.remove(&stream);
            self.node_left(id, message, now);
            self.out.close(stream, refusal, message);
        }
    }

    /// Ends a stream that is not a node's.
    pub(super) fn refuse_stream(
        &mut self,
        stream: StreamId,
        device: Option<DeviceId>,
        refusal: Refusal,
        message: &str,
        now: Now,
    ) {
        let Some(ended) = self.streams.remove(&stream) else { return };
        self.timers.cancel(Due::Greeting(stream));
        self.joins.abandon(stream);
        self.platform.abandon(stream);
        self.counters.streams_refused += 1;
        let from = ended.remote.ip();
        if self.records_stranger(Stranger::Stream, from, now) {
            self.out.audit(AuditEvent::StreamRefused { device, from, reason: message.to_owned() });
        }
        self.out.close(stream, refusal, message);
    }

    /// A stream did not say who it is in time, or nobody confirmed its join.
    pub(super) fn greeting_due(&mut self, stream: StreamId, now: Now) {
        match self.streams.get(&stream).map(|stream| &stream.state) {
            Some(StreamState::Challenged { .. }) => {
                self.refuse_stream(stream, None, Refusal::Protocol, "the machine did not say who it is in time", now);
            }
            Some(StreamState::Joining) => self.join_expired(stream, now),
            Some(StreamState::Node(_)) | None => {}
        }
    }
}
