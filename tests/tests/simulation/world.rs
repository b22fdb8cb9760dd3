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
mod controller;
mod machines;
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
    Restrain,
    Release,
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
}
