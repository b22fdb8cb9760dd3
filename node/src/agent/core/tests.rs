//! The control logic in virtual time, against a controller that signs real documents: many nodes, no sockets, no sleeps.

use std::collections::BTreeMap;

use postern_common::{
    grant::{
        Change, DOCUMENT_VERSION, GrantDocument, Mode, OnDeny, OwnGrant, PeerGrant, Permission, SignedDocument, sign,
    },
    id::{DeviceId, LeaseId, SubjectId},
    key::{ControllerSigningKey, WireGuardPublicKey},
    protocol::{PROTOCOL_VERSION, Refusal, ToNode},
    time::Lifetime,
};

use super::*;

const BOOT: BootId = BootId::from_bytes([1; 16]);
const ROTATION: Duration = Duration::from_secs(3_600);

fn target() -> ControllerTarget {
    "https://ctl.corp.example".parse().expect("a target")
}

/// What the shell would have done with the effects.
#[derive(Default)]
struct Seen {
    connects: Vec<Monotonic>,
    sent: Vec<FromNode>,
    applied: Vec<Position>,
    notices: Vec<Notice>,
    explained: Vec<(u64, Result<Explanation, String>)>,
    doors_closed: usize,
    host_down: usize,
    keys: Vec<WireGuardPublicKey>,
    saved: Option<SavedGrants>,
    identity: Option<Identity>,
    order: Vec<&'static str>,
}

/// How the simulated machine behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Disk {
    Works,
    Waits,
    Full,
}

struct Node {
    core: Core,
    now: Now,
    seen: Seen,
    disk: Disk,
    reachable: bool,
    connected: bool,
}

impl Node {
    fn new(seed: u64) -> Self {
        let settings = Settings { rotation: ROTATION, boot: BOOT, listen_port: 51820, version: "test".into() };
        Self::with(Core::new(settings, Box::new(SeededEntropy::new(seed))))
    }

    fn with(core: Core) -> Self {
        let now = Now { monotonic: Monotonic::from_millis(1_000), wall: WallTime::from_millis(1_700_000_000_000) };
        Self { core, now, seen: Seen::default(), disk: Disk::Works, reachable: true, connected: false }
    }

    fn run(&mut self) {
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::Connect(_) => {
                    self.seen.connects.push(self.now.monotonic);
                    self.connected = self.reachable;
                    if self.reachable {
                        self.core.handle_connected(self.now);
                    } else {
                        self.core.handle_disconnected("connection refused".into(), Retry::Soon, self.now);
                    }
                }
                Effect::Close => self.connected = false,
                Effect::Send(message) => {
                    self.seen.order.push(match &message {
                        FromNode::Enforced { .. } => "enforced",
                        FromNode::RotateKey { .. } => "rotate",
                        FromNode::Enrol(_) | FromNode::Join(_) => "join",
                        _ => "message",
                    });
                    self.seen.sent.push(message);
                }
                Effect::SetLocalKeys(keys) => {
                    self.seen.keys = keys.iter().map(WireGuardPrivateKey::public).collect();
                }
                Effect::Apply(grants) => {
                    let position = grants.position();
                    self.seen.applied.push(position);
                    self.core.handle_compiled(position);
                }
                Effect::CloseDoors => {
                    self.seen.doors_closed += 1;
                    self.seen.saved = None;
                }
                Effect::PersistIdentity(identity) => {
                    self.seen.order.push("identity");
                    match self.disk {
                        Disk::Works => {
                            self.seen.identity = Some(*identity);
                            self.core.handle_persisted(Persisted::Identity, self.now);
                        }
                        Disk::Waits => {}
                        Disk::Full => {
                            self.core.handle_persist_failed(Persisted::Identity, "the disk is full", self.now)
                        }
                    }
                }
                Effect::PersistGrants(saved) => {
                    let what = Persisted::Grants(saved.position);
                    match self.disk {
                        Disk::Works => {
                            self.seen.saved = Some(*saved);
                            self.core.handle_persisted(what, self.now);
                        }
                        Disk::Waits => {}
                        Disk::Full => self.core.handle_persist_failed(what, "the disk is full", self.now),
                    }
                }
                Effect::HostDown => self.seen.host_down += 1,
                Effect::Probe(_) | Effect::StopProbes => {}
                Effect::Notify(notice) => self.seen.notices.push(notice),
                Effect::Explained { question, answer } => self.seen.explained.push((question, answer)),
            }
        }
    }

    fn command(&mut self, command: Command) {
        self.core.handle_command(command, self.now);
        self.run();
    }

    fn up(&mut self) {
        let token = Some(Zeroizing::new("pst_join_x".to_owned()));
        self.command(Command::Up { target: Some(target()), token, name: "payroll-1".parse().expect("a name") });
    }

    fn hear(&mut self, message: ToNode) {
        self.core.handle_message(message, self.now);
        self.run();
    }

    fn lose_stream(&mut self) {
        self.connected = false;
        self.core.handle_disconnected("gone".into(), Retry::Soon, self.now);
        self.run();
    }

    /// Lets time pass, stopping at every time-out of the core.
    fn pass(&mut self, span: Duration) {
        let end = self.now.monotonic.saturating_add(span);
        for _step in 0..100_000 {
            let due = self.core.poll_timeout(self.now).unwrap_or(Monotonic::NEVER).max(self.now.monotonic).min(end);
            let step = due.since(self.now.monotonic);
            self.now = Now { monotonic: due, wall: self.now.wall.saturating_add(step) };
            self.core.handle_timeout(self.now);
            self.run();
            if due == end {
                return;
            }
        }
        panic!("the core asks for time-outs without end");
    }

    fn sent(&mut self) -> Vec<FromNode> {
        std::mem::take(&mut self.seen.sent)
    }
}

/// A controller that signs what it is told to, for many nodes.
struct Controller {
    key: ControllerSigningKey,
    generation: u64,
    nonces: BTreeMap<DeviceId, Nonce>,
    keys: BTreeMap<DeviceId, Vec<WireGuardPublicKey>>,
}

impl Controller {
    fn new() -> Self {
        Self {
            key: ControllerSigningKey::from_seed(&[5; 32]),
            generation: 0,
            nonces: BTreeMap::new(),
            keys: BTreeMap::new(),
        }
    }

    fn challenge(&self) -> ToNode {
        ToNode::Challenge { nonce: Nonce::from_bytes([4; 16]), protocol: PROTOCOL_VERSION }
    }

    fn joined(&self, device: DeviceId) -> ToNode {
        ToNode::Joined {
            device,
            name: "payroll-1".parse().expect("a name"),
            session: None,
            subject_name: "service:payroll".into(),
            controller: self.key.public(),
            session_until: None,
        }
    }

    fn hear(&mut self, device: DeviceId, message: &FromNode) {
        match message {
            FromNode::Hello(hello) => {
                self.nonces.insert(device, hello.nonce);
                self.keys.insert(device, hello.keys.clone());
            }
            FromNode::Freshen { nonce } => {
                self.nonces.insert(device, *nonce);
            }
            FromNode::RotateKey { key } => self.keys.entry(device).or_default().insert(0, *key),
            _ => {}
        }
    }

    fn grants(&mut self, device: DeviceId, previous: Option<u64>) -> ToNode {
        self.generation += 1;
        ToNode::Grants { signed: self.document(device, self.generation, previous, &self.key) }
    }

    fn document(
        &self,
        device: DeviceId,
        generation: u64,
        previous: Option<u64>,
        key: &ControllerSigningKey,
    ) -> SignedDocument {
        let until = Lifetime { remaining_ms: 600_000, not_after: WallTime::NEVER };
        let own = OwnGrant {
            name: "payroll-1".parse().expect("a name"),
            subject: SubjectId::from_bytes([2; 16]),
            subject_name: "service:payroll".into(),
            tags: vec![],
            addresses: vec!["fd00::1".parse().expect("an address")],
            overlay: vec!["fd00::/48".parse().expect("a prefix")],
            domain: "internal".into(),
            keys: self.keys.get(&device).cloned().unwrap_or_default(),
            session_until: None,
        };
        let peer = PeerGrant {
            device: DeviceId::from_bytes([3; 16]),
            name: "db-1".parse().expect("a name"),
            subject: SubjectId::from_bytes([4; 16]),
            subject_name: "service:db".into(),
            tags: vec![],
            addresses: vec!["fd00::3".parse().expect("an address")],
            pairs: vec![],
            endpoints: vec![],
            inbound: vec![],
            outbound: vec![Permission {
                rule: "billing reads".parse().expect("a name"),
                resource: "db".parse().expect("a name"),
                lease: LeaseId::from_bytes([6; 16]),
                services: vec!["tcp/5432".parse().expect("a service")],
                until,
                on_deny: OnDeny::Drop,
                mode: Mode::Enforce,
            }],
        };
        let change = match previous {
            None => Change::Snapshot { own, peers: vec![peer] },
            Some(previous) => Change::Delta { previous, own: Some(own), upsert: vec![], remove: vec![] },
        };
        let position = Position { epoch: 1, generation };
        let nonce = self.nonces[&device];
        let issued_at = WallTime::from_millis(0);
        sign(
            &GrantDocument {
                version: DOCUMENT_VERSION,
                audience: device,
                position,
                nonce,
                issued_at,
                policy_revision: 1,
                change,
            },
            key,
        )
    }

    /// Answers whatever the node has sent, until it says nothing more.
    fn converse(&mut self, node: &mut Node, device: DeviceId) {
        for _round in 0..20 {
            if node.connected && matches!(node.core.stream, Stream::Greeting { .. }) {
                node.hear(self.challenge());
            }
            let sent = node.sent();
            if sent.is_empty() {
                return;
            }
            for message in sent {
                self.hear(device, &message);
                match message {
                    FromNode::Enrol(_) | FromNode::Join(_) => node.hear(self.joined(device)),
                    FromNode::Hello(_) | FromNode::SnapshotWanted => {
                        let grants = self.grants(device, None);
                        node.hear(grants);
                    }
                    FromNode::RotateKey { .. } => {
                        let grants = self.grants(device, Some(self.generation));
                        node.hear(grants);
                    }
                    _ => {}
                }
            }
        }
    }
}

fn device(number: u8) -> DeviceId {
    DeviceId::from_bytes([number; 16])
}

fn joined() -> (Node, Controller) {
    let (mut node, mut controller) = (Node::new(1), Controller::new());
    node.up();
    controller.converse(&mut node, device(9));
    assert_eq!(node.core.phase(), Phase::Connected { current: true });
    (node, controller)
}

#[test]
fn a_token_enrols_and_the_node_enforces_its_first_snapshot() {
    let (node, _) = joined();
    assert_eq!(node.seen.applied.len(), 1);
    assert!(node.seen.notices.iter().any(|notice| matches!(notice, Notice::Joined { .. })));
    assert!(matches!(node.seen.notices.last(), Some(Notice::Enforcing { generation: 1 })));
    assert_eq!(node.core.book().reachable(node.now).len(), 1);
    let enforced = node.seen.order.iter().position(|what| *what == "enforced").expect("acknowledged");
    let first_write = node.seen.order.iter().position(|what| *what == "identity").expect("written");
    let join = node.seen.order.iter().position(|what| *what == "join").expect("joined");
    assert!(first_write < join && join < enforced, "{:?}", node.seen.order);
}

#[test]
fn a_full_disk_spends_no_token() {
    let mut node = Node::new(1);
    node.disk = Disk::Full;
    node.up();
    node.pass(Duration::from_secs(60));
    assert!(node.seen.connects.is_empty());
    assert!(matches!(node.seen.notices.last(), Some(Notice::Failed { message }) if message.contains("full")));
}

#[test]
fn nothing_is_acknowledged_before_it_is_durable() {
    let (mut node, mut controller) = joined();
    node.sent();
    node.disk = Disk::Waits;
    let grants = controller.grants(device(9), Some(1));
    node.hear(grants);
    assert_eq!(node.seen.applied.len(), 2, "enforced at once");
    assert!(node.sent().is_empty(), "and not acknowledged");
    let position = Position { epoch: 1, generation: 2 };
    node.core.handle_persisted(Persisted::Grants(position), node.now);
    node.run();
    assert_eq!(node.sent(), [FromNode::Enforced { position }]);
}

#[test]
fn deltas_that_come_during_a_write_are_written_once_more_and_acknowledged_together() {
    let (mut node, mut controller) = joined();
    node.sent();
    node.disk = Disk::Waits;
    for previous in 1..=3 {
        let grants = controller.grants(device(9), Some(previous));
        node.hear(grants);
    }
    node.disk = Disk::Works;
    node.core.handle_persisted(Persisted::Grants(Position { epoch: 1, generation: 2 }), node.now);
    node.run();
    let enforced = |generation| FromNode::Enforced { position: Position { epoch: 1, generation } };
    assert_eq!(node.sent(), [enforced(2), enforced(4)]);
    assert_eq!(node.seen.saved.as_ref().map(|saved| saved.position.generation), Some(4));
}

#[test]
fn a_gap_forces_one_request_for_a_snapshot_which_mends_it() {
    let (mut node, mut controller) = joined();
    node.sent();
    controller.generation = 5;
    for _storm in 0..10 {
        let grants = controller.grants(device(9), Some(controller.generation));
        node.hear(grants);
    }
    assert_eq!(node.sent(), [FromNode::SnapshotWanted], "one request, whatever the storm");
    assert_eq!(node.seen.applied.len(), 1, "nothing of it is enforced");
    let grants = controller.grants(device(9), None);
    node.hear(grants);
    assert_eq!(node.core.enforced().map(|position| position.generation), Some(controller.generation));
}

#[test]
fn a_document_that_the_controller_did_not_sign_is_not_enforced_and_ends_the_stream() {
    let (mut node, controller) = joined();
    let forged = controller.document(device(9), 7, None, &ControllerSigningKey::from_seed(&[6; 32]));
    node.hear(ToNode::Grants { signed: forged });
    assert_eq!(node.seen.applied.len(), 1);
    assert!(!node.connected);
    let misdirected = {
        let mut other = Controller::new();
        other.nonces.insert(device(8), Nonce::from_bytes([0; 16]));
        other.document(device(8), 9, None, &other.key)
    };
    node.hear(ToNode::Grants { signed: misdirected });
    assert_eq!(node.seen.applied.len(), 1);
}

#[test]
fn keys_rotate_three_times_on_disk_first_and_old_ones_are_wiped() {
    let (mut node, mut controller) = joined();
    let mut seen = std::collections::BTreeSet::from([node.seen.keys[0]]);
    for rotation in 1..=3 {
        node.seen.order.clear();
        for _minute in 0..61 {
            node.pass(Duration::from_secs(60));
            controller.converse(&mut node, device(9));
        }
        let write = node.seen.order.iter().position(|what| *what == "identity");
        let offer = node.seen.order.iter().position(|what| *what == "rotate");
        assert!(write.is_some() && write < offer, "rotation {rotation}: {:?}", node.seen.order);
        assert_eq!(node.seen.keys.len(), 2, "both keys serve while peers change over");
        // Every peer has changed over: the controller lists the newest alone.
        controller.keys.get_mut(&device(9)).expect("its keys").truncate(1);
        let grants = controller.grants(device(9), Some(controller.generation));
        node.hear(grants);
        controller.converse(&mut node, device(9));
        assert_eq!(node.seen.keys.len(), 1, "the old key is wiped from the data plane");
        let kept = node.seen.identity.as_ref().expect("written").keyring.public_keys();
        assert_eq!(kept, node.seen.keys, "and from the disk");
        assert!(seen.insert(node.seen.keys[0]), "and the new one is new");
    }
}

#[test]
fn the_nonce_is_freshened_so_that_a_delayed_document_is_never_too_old() {
    let (mut node, mut controller) = joined();
    node.sent();
    let mut freshened = 0;
    for _minute in 0..60 {
        node.pass(Duration::from_secs(60));
        freshened += node.seen.sent.iter().filter(|message| matches!(message, FromNode::Freshen { .. })).count();
        controller.converse(&mut node, device(9));
    }
    assert_eq!(freshened, 30);
    let grants = controller.grants(device(9), Some(controller.generation));
    node.hear(grants);
    assert_eq!(node.core.phase(), Phase::Connected { current: true });
}

#[test]
fn an_answer_to_a_forgotten_nonce_is_refused_and_asked_anew() {
    let (mut node, mut controller) = joined();
    let old = controller.nonces[&device(9)];
    for _minute in 0..40 {
        node.pass(Duration::from_secs(60));
    }
    controller.converse(&mut node, device(9));
    controller.nonces.insert(device(9), old);
    let grants = controller.grants(device(9), Some(controller.generation));
    node.hear(grants);
    let sent = node.sent();
    assert!(matches!(&sent[..], [FromNode::Freshen { .. }, FromNode::SnapshotWanted]), "{sent:?}");
}

#[test]
fn the_end_of_a_session_closes_the_doors_even_if_no_document_follows() {
    let (mut node, _) = joined();
    node.hear(ToNode::SessionEnded { reason: "laptop lost".into() });
    node.pass(Duration::from_secs(3));
    assert_eq!(node.seen.doors_closed, 2, "once when it joined, once now");
    assert!(node.core.book().stand().is_none());
    assert!(matches!(node.core.phase(), Phase::SignedOut { reason } if reason == "laptop lost"));
    node.lose_stream();
    let before = node.seen.connects.len();
    node.pass(Duration::from_secs(3_600));
    assert_eq!(node.seen.connects.len(), before, "it waits for a person");
}

#[test]
fn after_the_doors_were_shut_a_delta_opens_nothing() {
    let (mut node, mut controller) = joined();
    node.hear(ToNode::SessionEnded { reason: "x".into() });
    node.pass(Duration::from_secs(3));
    node.sent();
    let applied = node.seen.applied.len();
    let grants = controller.grants(device(9), Some(controller.generation));
    node.hear(grants);
    assert_eq!(node.seen.applied.len(), applied);
    assert_eq!(node.sent(), [FromNode::SnapshotWanted]);
}

#[test]
fn a_device_that_the_controller_does_not_know_is_closed_and_says_so() {
    let (mut node, _) = joined();
    let message = "this machine was removed: join again".to_owned();
    node.hear(ToNode::Refused { refusal: Refusal::UnknownDevice, message: message.clone() });
    assert!(node.core.book().stand().is_none());
    assert!(matches!(node.core.phase(), Phase::SignedOut { reason } if reason == message));
}

#[test]
fn a_refused_token_fails_at_once_and_is_not_tried_again() {
    let (mut node, controller) = (Node::new(1), Controller::new());
    node.up();
    node.hear(controller.challenge());
    node.hear(ToNode::Refused { refusal: Refusal::BadToken, message: "the token was used already".into() });
    assert_eq!(node.seen.notices.last(), Some(&Notice::Failed { message: "the token was used already".into() }));
    let before = node.seen.connects.len();
    node.pass(Duration::from_secs(600));
    assert_eq!(node.seen.connects.len(), before);
    assert_eq!(node.core.phase(), Phase::NotEnrolled);
}

#[test]
fn an_unreachable_controller_fails_a_join_after_three_attempts_with_its_reason() {
    let mut node = Node::new(1);
    node.reachable = false;
    node.up();
    node.pass(Duration::from_secs(60));
    assert_eq!(node.seen.connects.len(), 3);
    assert_eq!(node.seen.notices.last(), Some(&Notice::Failed { message: "connection refused".into() }));
}

#[test]
fn a_code_that_nobody_confirms_ends_the_join() {
    let (mut node, controller) = (Node::new(1), Controller::new());
    node.command(Command::Up { target: Some(target()), token: None, name: "laptop".parse().expect("a name") });
    node.hear(controller.challenge());
    let expires = node.now.wall.saturating_add(Duration::from_secs(600));
    node.hear(ToNode::JoinPending { code: "KTRM-4821".into(), url: "u".into(), url_with_code: "uc".into(), expires });
    assert!(matches!(node.core.phase(), Phase::Joining { code: Some(code), .. } if code == "KTRM-4821"));
    node.pass(Duration::from_secs(590));
    assert!(node.connected, "the person still has time");
    node.pass(Duration::from_secs(60));
    assert!(matches!(node.seen.notices.last(), Some(Notice::Failed { message }) if message.contains("expired")));
    assert!(!node.connected);
}

#[test]
fn a_join_is_given_up_when_its_client_goes_away() {
    let (mut node, controller) = (Node::new(1), Controller::new());
    node.up();
    node.hear(controller.challenge());
    node.command(Command::AbandonJoin);
    assert!(!node.connected);
    assert_eq!(node.core.phase(), Phase::NotEnrolled);
}

#[test]
fn another_controller_is_refused_before_logout() {
    let (mut node, _) = joined();
    let other = Some("https://evil.example".parse().expect("a target"));
    node.command(Command::Up { target: other, token: None, name: "x".parse().expect("a name") });
    assert!(matches!(node.seen.notices.last(), Some(Notice::Failed { message }) if message.contains("logout")));
    assert_eq!(node.core.phase(), Phase::Connected { current: true });
}

#[test]
fn down_closes_everything_and_up_begins_with_a_snapshot() {
    let (mut node, mut controller) = joined();
    node.sent();
    node.command(Command::Down);
    assert_eq!((node.core.phase(), node.seen.host_down, node.connected), (Phase::Down, 1, false));
    assert!(node.core.book().stand().is_none() && node.seen.saved.is_none());
    node.pass(Duration::from_secs(3_600));
    assert!(node.sent().is_empty());
    node.command(Command::Up { target: None, token: None, name: "x".parse().expect("a name") });
    controller.converse(&mut node, device(9));
    assert_eq!(node.core.phase(), Phase::Connected { current: true });
}

#[test]
fn logout_of_a_service_forgets_its_enrolment_and_wipes_its_keys() {
    let (mut node, _) = joined();
    node.sent();
    node.command(Command::Logout);
    assert_eq!(node.sent(), [FromNode::Logout]);
    assert!(node.seen.keys.is_empty());
    let kept = node.seen.identity.as_ref().expect("written");
    assert!(kept.enrolment.is_none() && kept.keyring.keys().is_empty());
    assert_eq!(node.core.phase(), Phase::NotEnrolled);
}

#[test]
fn a_restart_within_the_boot_resumes_and_any_other_state_begins_closed() {
    let (node, _) = joined();
    let (identity, saved) = (node.seen.identity.expect("written"), node.seen.saved.expect("written"));
    let restart = |boot, mark: Position| {
        let settings = Settings { rotation: ROTATION, boot, listen_port: 51820, version: "test".into() };
        let mut node = Node::with(Core::restore(settings, Box::new(SeededEntropy::new(2)), identity.clone()));
        let resumed = node.core.start(Some(saved.clone()), Some(mark), node.now).is_ok();
        node.run();
        (resumed, node.seen.applied.len(), node.seen.doors_closed)
    };
    assert_eq!(restart(BOOT, saved.position), (true, 1, 0));
    assert_eq!(restart(BootId::from_bytes([2; 16]), saved.position), (false, 0, 1), "a new boot");
    let newer = Position { epoch: 1, generation: saved.position.generation + 1 };
    assert_eq!(restart(BOOT, newer), (false, 0, 1), "an old copy of the grants");
}

#[test]
fn a_lost_data_plane_is_told_everything_again() {
    let (mut node, mut controller) = joined();
    node.core.handle_plane_lost(node.now);
    node.run();
    assert!(node.core.enforced().is_none());
    controller.converse(&mut node, device(9));
    assert_eq!(node.seen.applied.len(), 2);
    assert_eq!(node.core.phase(), Phase::Connected { current: true });
}

#[test]
fn questions_are_answered_or_end_in_time_and_are_bounded() {
    let (mut node, _) = joined();
    node.sent();
    for question in 0..100 {
        node.command(Command::Explain { question, to: "db".into(), service: None });
    }
    assert_eq!(node.sent().len(), MAX_OPEN_QUESTIONS);
    assert_eq!(node.seen.explained.len(), 100 - MAX_OPEN_QUESTIONS);
    node.pass(EXPLAIN_PATIENCE);
    assert_eq!(node.seen.explained.len(), 100);
    assert!(node.seen.explained.iter().all(|(_, answer)| answer.is_err()));
    node.lose_stream();
    node.command(Command::Explain { question: 200, to: "db".into(), service: None });
    assert_eq!(node.seen.explained.last().expect("answered").1, Err("the controller is not connected".into()));
}

#[test]
fn endpoint_changes_are_reported_spaced_and_wake_a_waiting_node() {
    let (mut node, mut controller) = joined();
    node.sent();
    let at = |port: u16| vec![SocketAddr::from(([10, 0, 0, 1], port))];
    for port in 1..=50 {
        node.core.handle_endpoints(at(port), node.now);
        node.pass(Duration::from_millis(10));
    }
    node.pass(Duration::from_secs(2));
    let sent = node.sent();
    assert!(sent.len() <= 2, "{sent:?}");
    assert_eq!(sent.last(), Some(&FromNode::Endpoints { endpoints: at(50) }));
    node.reachable = false;
    node.lose_stream();
    node.pass(Duration::from_secs(300));
    node.reachable = true;
    node.core.handle_endpoints(at(99), node.now);
    node.pass(Duration::ZERO);
    controller.converse(&mut node, device(9));
    assert_eq!(node.core.phase(), Phase::Connected { current: true }, "at once, not after the back-off");
}

#[test]
fn five_hundred_nodes_come_back_spread_out_after_the_controller_was_away() {
    let mut controller = Controller::new();
    let mut nodes: Vec<Node> = (0..500).map(|seed| Node::new(1_000 + seed)).collect();
    for node in &mut nodes {
        node.up();
        controller.converse(node, device(9));
        controller.generation = 0;
        node.pass(Duration::from_secs(60));
        node.reachable = false;
        node.lose_stream();
        node.seen.connects.clear();
        node.pass(Duration::from_secs(600));
    }
    let mut per_second: BTreeMap<u64, usize> = BTreeMap::new();
    for at in nodes.iter().flat_map(|node| &node.seen.connects) {
        *per_second.entry(at.as_nanos() / 1_000_000_000).or_default() += 1;
    }
    let busiest = per_second.iter().filter(|(second, _)| **second > 61 + 60).map(|(_, count)| *count).max();
    assert!(busiest.is_some_and(|count| count < 100), "{busiest:?}");
    let attempts: usize = nodes.iter().map(|node| node.seen.connects.len()).sum();
    assert!(attempts / nodes.len() >= 20, "and they do try: {attempts}");
    for node in &mut nodes {
        node.reachable = true;
        for _second in 0..backoff::CAP.as_secs() {
            node.pass(Duration::from_secs(u64::from(!node.connected)));
        }
        controller.generation = 1_000;
        controller.converse(node, device(9));
        assert_eq!(node.core.phase(), Phase::Connected { current: true });
    }
}
