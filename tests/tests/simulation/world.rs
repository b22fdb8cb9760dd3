//! The world: one controller, many machines, a network between them, and the events in the order of true time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use postern_common::{
    grant::GrantDocument,
    id::{DeviceId, MachineName, SessionId},
    key::ControllerSigningKey,
    policy::Policy,
    protocol::{FromNode, ToNode},
    time::{Monotonic, Now, WallTime},
};
use postern_controller::{
    records::Person,
    stream::{
        Core as ControllerCore, CoreConfig, Effect as ControllerEffect, NewToken, RevocationId, StreamId, restored,
    },
};
use postern_node::agent::core::{Command, Effect, Notice, Persisted, Phase, Retry};
use zeroize::Zeroizing;

use super::{
    disk::{Disk, Matters},
    ledger::Ledger,
    machine::{EPOCH_MS, Job, Machine},
    oracle::{Door, Spec, TAGS, doors},
    rng::Rng,
};

macro_rules! fail {
    ($world:expr, $($text:tt)*) => {
        $world.fail(format!($($text)*))
    };
}

mod claims;
mod troubles;

/// Something that happens.
#[derive(Debug)]
enum Event {
    Open { connection: usize },
    ToController { connection: usize, message: Box<FromNode> },
    ToMachine { connection: usize, message: Box<ToNode> },
    ControllerLearns { connection: usize },
    MachineLearns { connection: usize, why: &'static str },
    MachineTimer { machine: usize, process: u64 },
    ControllerTimer,
    ControllerStart,
    MachineStart { machine: usize },
    MachineKill { machine: usize },
    Written { machine: usize, process: u64 },
    Confirm { machine: usize, code: String },
    WantUp { machine: usize },
    Trouble,
    Check,
}

/// One stream between a machine and the controller.
#[derive(Debug)]
struct Connection {
    machine: usize,
    process: u64,
    stream: Option<StreamId>,
    /// The device that said hello on it.
    device: Option<DeviceId>,
    broken: bool,
    to_controller_at: u64,
    to_machine_at: u64,
}

/// What can go wrong, each with its weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    Drop,
    Partition,
    Suspend,
    JumpMachine,
    JumpController,
    Kill,
    Reboot,
    Rollback,
    CrashController,
    RestoreController,
    Revoke,
    Lift,
    Policy,
    Logout,
    CopyDirectories,
}

/// What a simulation is made of.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) servers: usize,
    pub(crate) laptops: usize,
    pub(crate) troubles: Vec<(Trouble, u64)>,
    /// Between two troubles, milliseconds at most.
    pub(crate) spacing_ms: u64,
    pub(crate) rotation_s: u64,
    pub(crate) session_s: u64,
    /// Whether both ends must share a pair of keys at every instant.
    pub(crate) keys_checked: bool,
}

/// The controller's host.
struct Host {
    core: Option<ControllerCore>,
    disk: Disk,
    backups: Vec<Disk>,
    wall_offset_ms: i64,
    booted_ms: u64,
    timer_at: u64,
    crash_in: Option<u64>,
    signing: ControllerSigningKey,
    config: CoreConfig,
}

/// A revocation that an administrator was told is made.
struct Revoked {
    life: u64,
    id: RevocationId,
    ended: BTreeSet<Door>,
}

/// Everything.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) now: u64,
    plan: Plan,
    rng: Rng,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    host: Host,
    pub(crate) machines: Vec<Machine>,
    connections: Vec<Connection>,
    streams: BTreeMap<StreamId, usize>,
    pub(crate) ledger: Ledger,
    specs: HashMap<String, Spec>,
    /// Who may reach what now, by the oracle.
    pub(crate) current: BTreeSet<Door>,
    ended: HashMap<Door, u64>,
    revoked: VecDeque<Revoked>,
    sessions_over: BTreeMap<SessionId, u64>,
    life: u64,
    calm: bool,
    /// Machines whose acknowledgements the network swallows.
    pub(crate) deaf: BTreeSet<usize>,
    pub(crate) steps: u64,
    trace: VecDeque<String>,
    tracing: bool,
}

/// A world that needs more has a storm in it.
const STEPS_AT_MOST: u64 = 400_000;
const GROUPS_OF: [&[&str]; 6] = [&["g0"], &["g1"], &["g0", "g2"], &["g3"], &["g1", "g3"], &["g2"]];

impl World {
    /// Makes a world in which every machine is about to join.
    pub(crate) fn new(seed: u64, plan: Plan) -> Self {
        let mut rng = Rng::new(seed);
        let mut key = [0; 32];
        rng.fill(&mut key);
        let mut config = CoreConfig::new(
            "https://ctl.corp.example",
            "fd7a:115c:a1e0::/48".parse().expect("a prefix"),
            "100.64.0.0/16".parse().expect("a prefix"),
        );
        config.session_length = Duration::from_secs(plan.session_s);
        let host = Host {
            core: None,
            disk: Disk::default(),
            backups: vec![],
            wall_offset_ms: 0,
            booted_ms: 0,
            timer_at: u64::MAX,
            crash_in: None,
            signing: ControllerSigningKey::from_seed(&key),
            config,
        };
        let count = plan.servers + plan.laptops;
        let machines =
            (0..count).map(|i| Machine::new(i, i.checked_sub(plan.servers), plan.rotation_s, 1, rng.fork())).collect();
        let mut world = Self {
            seed,
            now: 1,
            rng,
            events: BTreeMap::new(),
            sequence: 0,
            host,
            machines,
            connections: vec![],
            streams: BTreeMap::new(),
            ledger: Ledger::default(),
            specs: HashMap::new(),
            current: BTreeSet::new(),
            ended: HashMap::new(),
            revoked: VecDeque::new(),
            sessions_over: BTreeMap::new(),
            life: 0,
            calm: false,
            deaf: BTreeSet::new(),
            steps: 0,
            trace: VecDeque::new(),
            tracing: std::env::var_os("POSTERN_SIMULATION_TRACE").is_some(),
            plan,
        };
        world.host.disk.meta.epoch = EPOCH_MS as u64;
        let spec = Spec::draw(&mut world.rng, world.plan.servers);
        world.host.disk.meta.policy_text = spec.text();
        world.host.disk.meta.policy_revision = 1;
        world.specs.insert(spec.text(), spec);
        world.start_controller();
        for machine in 0..count {
            let at = 10 + world.rng.below(3_000);
            world.at(at, Event::MachineStart { machine });
        }
        world.at(2_000, Event::Check);
        world.at(60_000, Event::Trouble);
        world
    }

    // --- time

    fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((at.max(self.now), self.sequence), event);
    }

    fn after(&mut self, low: u64, high: u64, event: Event) {
        let at = self.now + self.rng.between(low, high);
        self.at(at, event);
    }

    /// Runs until that true time.
    pub(crate) fn run_until(&mut self, end: u64) {
        while let Some(entry) = self.events.first_entry() {
            let (at, _) = *entry.key();
            if at > end {
                break;
            }
            let event = entry.remove();
            self.now = at;
            self.steps += 1;
            if self.steps > STEPS_AT_MOST {
                self.fail(format!("no end: {event:?}"));
            }
            self.happen(event);
        }
        self.now = end;
    }

    pub(crate) fn run_for(&mut self, span: u64) {
        self.run_until(self.now + span);
    }

    /// Ends all trouble: clocks are set right, everything runs.
    pub(crate) fn calm_down(&mut self) {
        self.calm = true;
        self.host.wall_offset_ms = 0;
        self.host.crash_in = None;
        if self.host.core.is_none() {
            self.at(self.now, Event::ControllerStart);
        }
        for i in 0..self.machines.len() {
            self.machines[i].wall_offset_ms = 0;
            self.machines[i].suspended_until = 0;
            self.wake(i);
        }
    }

    /// Keeps people and servers from joining again from now on.
    pub(crate) fn nobody_signs_in(&mut self) {
        self.events.retain(|_, event| !matches!(event, Event::WantUp { .. }));
    }

    fn controller_now(&self) -> Now {
        let wall = EPOCH_MS + self.now as i64 + self.host.wall_offset_ms;
        Now { monotonic: Monotonic::from_millis(self.now - self.host.booted_ms), wall: WallTime::from_millis(wall) }
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if self.tracing {
            if self.trace.len() == 3_000 {
                self.trace.pop_front();
            }
            self.trace.push_back(format!("{:>9} {}", self.now, line()));
        }
    }

    pub(crate) fn fail(&self, what: String) -> ! {
        for line in &self.trace {
            eprintln!("{line}");
        }
        panic!("seed {} at {} ms, step {}: {what}", self.seed, self.now, self.steps)
    }

    fn happen(&mut self, event: Event) {
        let asleep = match &event {
            Event::ToMachine { connection, .. } | Event::MachineLearns { connection, .. } => {
                Some(self.connections[*connection].machine)
            }
            Event::MachineTimer { machine, .. } | Event::Written { machine, .. } | Event::WantUp { machine } => {
                Some(*machine)
            }
            _ => None,
        };
        if let Some(machine) = asleep.map(|i| &self.machines[i]).filter(|machine| machine.is_suspended(self.now)) {
            let at = machine.suspended_until;
            return self.at(at, event);
        }
        match event {
            Event::Open { connection } => self.open(connection),
            Event::ToController { connection, message } => self.tell_controller(connection, *message),
            Event::ToMachine { connection, message } => self.tell_machine(connection, *message),
            Event::ControllerLearns { connection } => self.controller_learns(connection),
            Event::MachineLearns { connection, why } => {
                let i = self.connections[connection].machine;
                if self.machines[i].connection == Some(connection) {
                    self.machines[i].connection = None;
                    self.with_machine(i, |core, now| core.handle_disconnected(why.into(), Retry::Soon, now));
                }
            }
            Event::MachineTimer { machine, process } => {
                if self.machines[machine].process == process && self.machines[machine].timer_at <= self.now {
                    self.machines[machine].timer_at = u64::MAX;
                    self.machines[machine].tick(self.now);
                    self.with_machine(machine, |core, now| core.handle_timeout(now));
                }
            }
            Event::ControllerTimer => {
                if self.host.timer_at <= self.now {
                    self.host.timer_at = u64::MAX;
                    self.with_controller(|core, now| core.handle_timeout(now));
                }
            }
            Event::ControllerStart => self.start_controller(),
            Event::MachineStart { machine } => self.start_machine(machine, false),
            Event::MachineKill { machine } => {
                self.kill(machine);
                self.after(100, 2_000, Event::MachineStart { machine });
            }
            Event::Written { machine, process } => self.written(machine, process),
            Event::Confirm { machine, code } => self.confirm(machine, &code),
            Event::WantUp { machine } => self.want_up(machine),
            Event::Trouble => {
                if !self.calm {
                    self.trouble();
                    let spacing = self.plan.spacing_ms;
                    self.after(1, spacing, Event::Trouble);
                }
            }
            Event::Check => {
                self.check_all();
                self.after(500, 3_000, Event::Check);
            }
        }
    }

    // --- the controller

    fn start_controller(&mut self) {
        if self.host.core.is_some() {
            return;
        }
        self.life += 1;
        self.ledger.controller_restarted();
        self.streams.clear();
        let text = self.host.disk.meta.policy_text.clone();
        let policy = match Policy::parse("policy.toml", &text) {
            Ok(policy) => Arc::new(policy),
            Err(error) => fail!(self, "the policy does not check: {error}\n{text}"),
        };
        let mut random = self.rng.fork();
        let random = Box::new(move |bytes: &mut [u8]| random.fill(bytes));
        let now = self.controller_now();
        let core = ControllerCore::new(
            self.host.config.clone(),
            ControllerSigningKey::from_seed(self.host.signing.expose_seed()),
            policy,
            self.host.disk.load(),
            random,
            now,
        );
        self.note(|| "controller starts".into());
        self.host.core = Some(core);
        self.host.timer_at = u64::MAX;
        self.with_controller(|_, _| ());
    }

    /// Calls the controller's core, then does what it wants done.
    pub(crate) fn with_controller<T>(&mut self, call: impl FnOnce(&mut ControllerCore, Now) -> T) -> Option<T> {
        let now = self.controller_now();
        let result = call(self.host.core.as_mut()?, now);
        self.drain_controller();
        Some(result)
    }

    /// Takes effects in order. Changes up to the next message are one transaction; a crash can come before any effect.
    fn drain_controller(&mut self) {
        let mut transaction = Vec::new();
        let mut matters = Matters::No;
        while let Some(effect) = self.host.core.as_mut().and_then(ControllerCore::poll_effect) {
            if let Some(left) = &mut self.host.crash_in {
                if *left == 0 {
                    self.host.crash_in = None;
                    self.crash_controller();
                    self.ledger.controller_restarted();
                    if matters == Matters::Yes {
                        self.recompute();
                    }
                    return;
                }
                *left -= 1;
            }
            match effect {
                ControllerEffect::Store(change) => transaction.push(change),
                ControllerEffect::Audit(event) => self.note(|| format!("audit {event:?}")),
                ControllerEffect::Send { stream, message } => {
                    matters = self.commit(&mut transaction, matters);
                    if std::mem::replace(&mut matters, Matters::No) == Matters::Yes {
                        self.recompute();
                    }
                    self.send_to_machine(stream, message);
                }
                ControllerEffect::Close { stream, refusal, message } => {
                    matters = self.commit(&mut transaction, matters);
                    self.note(|| format!("controller closes {stream:?}: {message}"));
                    self.send_to_machine(stream, ToNode::Refused { refusal, message });
                    if let Some(connection) = self.streams.remove(&stream) {
                        let at = self.connections[connection].to_machine_at;
                        self.at(at, Event::MachineLearns { connection, why: "the controller closed the stream" });
                        if let Some(device) = self.connections[connection].device {
                            self.forget_reader(device, connection);
                        }
                    }
                }
            }
        }
        if self.commit(&mut transaction, matters) == Matters::Yes {
            self.recompute();
        }
        if let Err(error) = self.ledger.destinations_are_closed(self.now) {
            fail!(self, "{error}");
        }
        let Some(core) = &self.host.core else { return };
        let at = core.poll_timeout();
        if at < Monotonic::NEVER {
            let at = at.as_nanos().div_ceil(1_000_000) + self.host.booted_ms;
            let at = at.max(self.now + 1);
            if at < self.host.timer_at {
                self.host.timer_at = at;
                self.at(at, Event::ControllerTimer);
            }
        }
    }

    /// A newer stream of the same device may have taken the reader's place.
    fn forget_reader(&mut self, device: DeviceId, connection: usize) {
        let newer =
            self.streams.values().any(|other| *other != connection && self.connections[*other].device == Some(device));
        if !newer {
            self.ledger.stream_ended(device);
        }
    }

    fn commit(&mut self, transaction: &mut Vec<postern_controller::records::StoreChange>, matters: Matters) -> Matters {
        let mut matters = matters;
        for change in transaction.drain(..) {
            if self.host.disk.apply(change) == Matters::Yes {
                matters = Matters::Yes;
            }
        }
        matters
    }

    /// Asks the oracle anew.
    fn recompute(&mut self) {
        let spec = &self.specs[&self.host.disk.meta.policy_text];
        let doors = doors(&self.host.disk, spec);
        for gone in self.current.difference(&doors) {
            self.ended.insert(*gone, self.now);
        }
        for back in &doors {
            self.ended.remove(back);
            for revoked in &mut self.revoked {
                revoked.ended.remove(back);
            }
        }
        self.current = doors;
        for session in self.host.disk.sessions.values() {
            if session.ended.is_some() {
                self.sessions_over.insert(session.id, self.now);
            }
        }
        let risen =
            self.host.disk.sessions.values().find(|s| s.ended.is_none() && self.sessions_over.contains_key(&s.id));
        if let Some(session) = risen {
            fail!(self, "session {} had ended and is open again", session.id);
        }
    }

    fn crash_controller(&mut self) {
        self.note(|| "controller crashes".into());
        self.host.core = None;
        for (_, connection) in std::mem::take(&mut self.streams) {
            self.connections[connection].broken = true;
            self.after(1, 8_000, Event::MachineLearns { connection, why: "the connection was lost" });
        }
        if self.rng.one_in(3) {
            self.host.booted_ms = self.now; // its host went down with it
        }
        self.after(10, 20_000, Event::ControllerStart);
    }

    /// Stops the controller and starts a new life from an old backup.
    fn restore_controller(&mut self) {
        let Some(backup) = self.host.backups.first().cloned() else { return };
        if self.host.core.is_some() {
            self.crash_controller();
        }
        self.note(|| "controller is restored from a backup".into());
        self.host.disk = backup;
        self.host.backups.clear();
        let (_, effects) = restored(self.host.disk.load(), self.controller_now());
        for effect in effects {
            if let ControllerEffect::Store(change) = effect {
                self.host.disk.apply(change);
            }
        }
        if let Some(open) = self.host.disk.sessions.values().find(|session| session.ended.is_none()) {
            fail!(self, "session {} outlives a restore", open.id);
        }
        self.ledger.controller_restored();
        self.sessions_over.clear();
        self.recompute();
    }

    fn send_to_machine(&mut self, stream: StreamId, message: ToNode) {
        let Some(connection) = self.streams.get(&stream).copied() else { return };
        if let ToNode::Grants { signed } = &message {
            let document: GrantDocument =
                serde_json::from_str(&signed.document).expect("the controller's own document");
            if let Err(error) = self.ledger.sent(&document, &self.current, self.now) {
                fail!(self, "{error}");
            }
            self.note(|| format!("controller tells {} {}", document.audience, summary(&document)));
        }
        let delay = self.delay();
        let link = &mut self.connections[connection];
        if link.broken {
            return;
        }
        link.to_machine_at = link.to_machine_at.max(self.now + delay);
        let at = link.to_machine_at;
        self.at(at, Event::ToMachine { connection, message: Box::new(message) });
    }

    fn delay(&mut self) -> u64 {
        if self.rng.one_in(60) && !self.calm { self.rng.between(1_000, 15_000) } else { self.rng.between(1, 120) }
    }

    fn address(machine: usize) -> SocketAddr {
        let host = u8::try_from(machine + 1).expect("dozens of machines");
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, host)), 40_000)
    }

    fn open(&mut self, connection: usize) {
        let (i, process) = (self.connections[connection].machine, self.connections[connection].process);
        if self.machines[i].process != process || self.machines[i].connection != Some(connection) {
            return;
        }
        if self.host.core.is_none() || (self.rng.one_in(20) && !self.calm) {
            return self.after(1, 3_000, Event::MachineLearns { connection, why: "connection refused" });
        }
        let now = self.controller_now();
        let Some(core) = self.host.core.as_mut() else { return };
        let stream = core.connect(Self::address(i), now);
        self.streams.insert(stream, connection);
        self.connections[connection].stream = Some(stream);
        self.with_machine(i, |core, now| core.handle_connected(now));
        self.drain_controller();
    }

    fn tell_controller(&mut self, connection: usize, message: FromNode) {
        let (Some(stream), false) = (self.connections[connection].stream, self.connections[connection].broken) else {
            return;
        };
        if self.streams.get(&stream) != Some(&connection) {
            return;
        }
        let speaker = self.connections[connection].machine;
        self.note(|| format!("machine {speaker} says {message:?}"));
        let device = self.connections[connection].device;
        match (&message, device) {
            (FromNode::Hello(hello), _) => {
                self.ledger.nonce_received(hello.nonce, self.now);
                self.ledger.stream_began(hello.device);
                self.connections[connection].device = Some(hello.device);
            }
            (FromNode::Freshen { nonce }, Some(_)) => self.ledger.nonce_received(*nonce, self.now),
            (FromNode::Enforced { position }, Some(device)) => self.ledger.enforced(device, *position),
            (FromNode::SnapshotWanted, Some(device)) => self.ledger.snapshot_wanted(device),
            _ => {}
        }
        self.with_controller(|core, now| core.receive(stream, message, now));
    }

    fn controller_learns(&mut self, connection: usize) {
        let Some(stream) = self.connections[connection].stream else { return };
        if self.streams.get(&stream) == Some(&connection) {
            self.streams.remove(&stream);
            if let Some(device) = self.connections[connection].device {
                self.forget_reader(device, connection);
            }
            self.with_controller(|core, now| core.disconnect(stream, now));
        }
    }

    fn confirm(&mut self, i: usize, code: &str) {
        let Some(person) = self.machines[i].person else { return };
        let Some(key) = self.machines[i].core.as_ref().map(|core| core.identity().device_seed.key().public()) else {
            return;
        };
        let wall = self.controller_now().wall;
        let who = Person {
            issuer: "https://idp.corp.example".into(),
            sub: format!("person-{person}"),
            name: format!("person-{person}@corp.example"),
            groups: Some(GROUPS_OF[person % GROUPS_OF.len()].iter().map(ToString::to_string).collect()),
            acr: None,
            amr: vec!["pwd".into()],
            auth_time: Some(wall),
            web_session: SessionId::from_bytes([u8::try_from(person).expect("dozens of people"); 16]),
            web_session_until: wall.saturating_add(Duration::from_secs(3_600)),
        };
        let code = code.parse().expect("the code that the controller showed");
        let from = Self::address(i).ip();
        let _ = self.with_controller(|core, now| core.confirm_join(code, key, &who, from, now).map(drop));
    }

    /// Applies a policy.
    pub(crate) fn apply_policy(&mut self, spec: Spec) {
        let text = spec.text();
        let policy = match Policy::parse("policy.toml", &text) {
            Ok(policy) => Arc::new(policy),
            Err(error) => fail!(self, "the policy does not check: {error}\n{text}"),
        };
        self.specs.insert(text.clone(), spec);
        self.with_controller(|core, now| core.apply_policy(policy, text, "root", now));
    }

    pub(crate) fn spec(&self) -> Spec {
        self.specs[&self.host.disk.meta.policy_text].clone()
    }

    /// Revokes something and remembers what that closed.
    pub(crate) fn revoke(&mut self, target: postern_controller::records::RevokeTarget) {
        let before = self.current.clone();
        let life = self.life;
        self.note(|| format!("revoke {target:?}"));
        let made = self.with_controller(|core, now| core.revoke(target, "simulated", "root", now));
        if let Some(Ok(id)) = made
            && self.life == life
            && self.host.core.is_some()
        {
            let ended = before.difference(&self.current).copied().collect();
            self.revoked.push_back(Revoked { life, id, ended });
            if self.revoked.len() > 16 {
                self.revoked.pop_front();
            }
        }
    }

    // --- machines

    fn start_machine(&mut self, i: usize, closed: bool) {
        let now = self.now;
        let machine = &mut self.machines[i];
        if machine.core.is_some() {
            return;
        }
        machine.start(now);
        let disk = machine.disk.clone();
        let boot = machine.boot;
        self.note(|| format!("machine {i} starts"));
        self.drain_machine(i);
        let (inbound, outbound) = self.machines[i].open_doors(now);
        let fits = disk.grants.as_ref().is_some_and(|saved| saved.boot == boot && Some(saved.position) == disk.mark);
        if (closed || !fits) && !(inbound.is_empty() && outbound.is_empty()) {
            fail!(self, "machine {i} starts with open doors that it must not trust: {inbound:?} {outbound:?}");
        }
        let serving = self.machines[i].core.as_ref().is_some_and(|core| matches!(core.phase(), Phase::Offline { .. }));
        let saved = disk.grants.as_ref().map_or(0, |saved| {
            let now = self.machines[i].now(now);
            let peers = saved.peers.iter().flat_map(|peer| peer.inbound.iter().chain(&peer.outbound));
            peers
                .filter(|permission| !permission.until.has_passed(now))
                .map(|permission| permission.services.len())
                .sum()
        });
        if fits && serving && inbound.len() + outbound.len() != saved {
            fail!(self, "machine {i} resumes {inbound:?} {outbound:?}, and {saved} doors were saved");
        }
        self.after(100, 5_000, Event::WantUp { machine: i });
    }

    /// Calls a machine's core, then does what it wants done.
    fn with_machine(&mut self, i: usize, call: impl FnOnce(&mut postern_node::agent::core::Core, Now)) {
        let now = self.machines[i].now(self.now);
        if let Some(core) = &mut self.machines[i].core {
            call(core, now);
            self.drain_machine(i);
        }
    }

    fn drain_machine(&mut self, i: usize) {
        let queued = self.machines[i].queue.len();
        while let Some(effect) = self.machines[i].core.as_mut().and_then(postern_node::agent::core::Core::poll_effect) {
            let Some(effect) = self.machines[i].inner_effect(effect, self.now) else { continue };
            match effect {
                Effect::Connect(_) => {
                    let process = self.machines[i].process;
                    let connection = self.connections.len();
                    self.connections.push(Connection {
                        machine: i,
                        process,
                        stream: None,
                        device: None,
                        broken: false,
                        to_controller_at: 0,
                        to_machine_at: 0,
                    });
                    self.machines[i].connection = Some(connection);
                    self.after(1, 200, Event::Open { connection });
                }
                Effect::Close => {
                    if let Some(connection) = self.machines[i].connection.take() {
                        let at = self.connections[connection].to_controller_at.max(self.now) + 1;
                        self.at(at, Event::ControllerLearns { connection });
                    }
                }
                Effect::Send(message) => {
                    let deaf = self.deaf.contains(&i) && matches!(message, FromNode::Enforced { .. });
                    let delay = self.delay();
                    let Some(connection) = self.machines[i].connection.filter(|_| !deaf) else { continue };
                    let link = &mut self.connections[connection];
                    link.to_controller_at = link.to_controller_at.max(self.now + delay);
                    let at = link.to_controller_at;
                    self.at(at, Event::ToController { connection, message: Box::new(message) });
                }
                Effect::Notify(notice) => match notice {
                    Notice::SignIn { code, .. } => self.after(200, 5_000, Event::Confirm { machine: i, code }),
                    Notice::Failed { .. } | Notice::SessionEnded { .. } => {
                        self.after(5_000, 60_000, Event::WantUp { machine: i });
                    }
                    other => self.note(|| format!("machine {i}: {other:?}")),
                },
                _ => {}
            }
        }
        if queued == 0 && !self.machines[i].queue.is_empty() {
            self.write_next(i);
        }
        self.schedule_machine(i);
    }

    fn schedule_machine(&mut self, i: usize) {
        let machine = &self.machines[i];
        let now = machine.now(self.now);
        let Some(core) = &machine.core else { return };
        let plane = machine.plane.poll_timeout();
        let at = core.poll_timeout(now).unwrap_or(Monotonic::NEVER).min(plane);
        if at < Monotonic::NEVER {
            let at = machine.true_ms(at).max(self.now + 1);
            if at < machine.timer_at {
                let process = machine.process;
                self.machines[i].timer_at = at;
                self.at(at, Event::MachineTimer { machine: i, process });
            }
        }
    }

    /// Looks at a machine's timers at once: its clock was set, or it woke up.
    fn wake(&mut self, i: usize) {
        let process = self.machines[i].process;
        self.machines[i].timer_at = self.now;
        self.at(self.now, Event::MachineTimer { machine: i, process });
    }

    fn write_next(&mut self, i: usize) {
        let slow = self.rng.one_in(12) && !self.calm;
        let process = self.machines[i].process;
        let (low, high) = if slow { (1_000, 6_000) } else { (1, 15) };
        self.after(low, high, Event::Written { machine: i, process });
    }

    fn written(&mut self, i: usize, process: u64) {
        if self.machines[i].process != process {
            return;
        }
        let Some(job) = self.machines[i].queue.pop_front() else { return };
        let fails = self.rng.one_in(80) && !self.calm;
        if fails && !matches!(job, Job::Remove) {
            let what = match &job {
                Job::Grants(grants) => Persisted::Grants(grants.position),
                Job::Identity(_) | Job::Remove => Persisted::Identity,
            };
            if let Persisted::Grants(_) = what {
                self.machines[i].perform(Job::Remove);
            }
            self.with_machine(i, |core, now| core.handle_persist_failed(what, "the disk is full", now));
        } else if let Some(what) = self.machines[i].perform(job) {
            self.with_machine(i, |core, now| core.handle_persisted(what, now));
        }
        if self.machines[i].process == process && !self.machines[i].queue.is_empty() {
            self.write_next(i);
        }
    }

    /// Joins, or signs in again, if the machine should be up and is not.
    fn want_up(&mut self, i: usize) {
        let Some(phase) = self.machines[i].core.as_ref().map(postern_node::agent::core::Core::phase) else { return };
        let idle = match phase {
            Phase::Down | Phase::NotEnrolled | Phase::SignedOut { .. } => true,
            Phase::Joining { .. } | Phase::Offline { .. } | Phase::Connected { .. } => false,
        };
        if idle {
            let token = match self.machines[i].person {
                Some(_) => None,
                None => match self.token_for(i) {
                    Some(token) => Some(Zeroizing::new(token)),
                    None => return self.after(1_000, 9_000, Event::WantUp { machine: i }),
                },
            };
            let target = Some("https://ctl.corp.example".parse().expect("a controller's address"));
            let name: MachineName = self.machines[i].name.parse().expect("a machine name");
            self.with_machine(i, |core, now| core.handle_command(Command::Up { target, token, name }, now));
        }
        self.after(20_000, 70_000, Event::WantUp { machine: i });
    }

    fn token_for(&mut self, i: usize) -> Option<String> {
        let tags = [i % TAGS, (i / TAGS) % TAGS].iter().map(|tag| format!("t{tag}").parse().expect("a tag")).collect();
        let new = NewToken {
            service: Some(format!("svc-{i}").parse().expect("a service name")),
            tags,
            machine: Some(self.machines[i].name.parse().expect("a machine name")),
            uses: 1,
            life: Duration::from_secs(3_600),
        };
        let (token, _) = self.with_controller(|core, now| core.create_token(new, "root", now))?.ok()?;
        Some(token)
    }

    fn tell_machine(&mut self, connection: usize, message: ToNode) {
        let link = &self.connections[connection];
        let i = link.machine;
        if link.broken || self.machines[i].connection != Some(connection) || self.machines[i].process != link.process {
            return;
        }
        self.with_machine(i, |core, now| core.handle_message(message, now));
        self.check_machine(i);
    }
}

fn summary(document: &GrantDocument) -> String {
    let short = |device: &DeviceId| device.to_string().chars().take(6).collect::<String>();
    let ports = |list: &[postern_common::grant::Permission<postern_common::time::Lifetime>]| {
        list.iter()
            .map(|p| {
                format!(
                    "{}:{}@{}",
                    p.rule.as_str(),
                    p.services.iter().map(ToString::to_string).collect::<Vec<_>>().join("+"),
                    p.until.remaining_ms
                )
            })
            .collect::<Vec<_>>()
            .join(",")
    };
    let peers = |list: &[postern_common::grant::PeerGrant<postern_common::time::Lifetime>]| {
        list.iter()
            .map(|p| {
                format!(
                    "[{} pairs {} in {} out {}]",
                    short(&p.device),
                    p.pairs.len(),
                    ports(&p.inbound),
                    ports(&p.outbound)
                )
            })
            .collect::<Vec<_>>()
            .join(" ")
    };
    match &document.change {
        postern_common::grant::Change::Snapshot { peers: list, .. } => {
            format!("{:?} snapshot {}", document.position.generation, peers(list))
        }
        postern_common::grant::Change::Delta { upsert, remove, .. } => {
            let gone: Vec<String> = remove.iter().map(short).collect();
            format!("{:?} delta {} gone {gone:?}", document.position.generation, peers(upsert))
        }
    }
}
