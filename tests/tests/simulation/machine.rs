//! One machine: the real agent core, the real data plane over deterministic tunnels, a disk that takes its time, clocks
//! of its own, and a power button.

use std::collections::{BTreeSet, VecDeque};

use postern_common::{
    grant::{Position, SavedGrants},
    id::{BootId, DeviceId},
    protocol::MAX_FLOW_GROUPS,
    time::{Monotonic, Now, WallTime},
};
use postern_dataplane::{
    DataPlane, Out, Settings as PlaneSettings,
    packet::batch::{Joining, TunBatch, UdpBatch},
    wireguard::simulated::Simulated,
};
use postern_node::agent::core::{Core, Effect, Persisted, Settings, identity::Identity};

use super::{oracle::Door, rng::Rng};

/// Wall time when the simulation begins, milliseconds since the Unix epoch.
pub(crate) const EPOCH_MS: i64 = 1_700_000_000_000;

/// What a machine's disk has yet to write.
#[derive(Debug)]
pub(crate) enum Job {
    Identity(Box<Identity>),
    Grants(Box<SavedGrants>),
    Remove,
}

/// The two directories.
#[derive(Debug, Clone, Default)]
pub(crate) struct Directories {
    pub(crate) identity: Option<Identity>,
    pub(crate) grants: Option<SavedGrants>,
    pub(crate) mark: Option<Position>,
}

/// A machine.
pub(crate) struct Machine {
    pub(crate) name: String,
    /// The number of its person; a server has none.
    pub(crate) person: Option<usize>,
    pub(crate) core: Option<Core>,
    pub(crate) plane: DataPlane<Simulated>,
    pub(crate) disk: Directories,
    /// Copies that somebody made of the directories.
    pub(crate) copies: Vec<Directories>,
    pub(crate) queue: VecDeque<Job>,
    pub(crate) boot: BootId,
    booted_ms: u64,
    pub(crate) wall_offset_ms: i64,
    pub(crate) suspended_until: u64,
    /// Counts processes, so that what was meant for a former one is recognized.
    pub(crate) process: u64,
    pub(crate) connection: Option<usize>,
    pub(crate) timer_at: u64,
    pub(crate) rotation_s: u64,
    /// How many times a peer's rules were compiled, and documents applied, since somebody reset it.
    pub(crate) compiled: Vec<DeviceId>,
    pub(crate) applied: usize,
    pub(crate) rng: Rng,
    udp: UdpBatch,
    tun: TunBatch,
}

fn new_plane(seed: u64, now: Now) -> DataPlane<Simulated> {
    let settings = PlaneSettings { flow_capacity: 64, flows_per_peer: 8, ..PlaneSettings::default() };
    DataPlane::with_tunnels(settings, Simulated::new(seed), now)
}

impl Machine {
    pub(crate) fn new(number: usize, person: Option<usize>, rotation_s: u64, now_ms: u64, mut rng: Rng) -> Self {
        let name = match person {
            Some(_) => format!("laptop-{number}"),
            None => format!("server-{number}"),
        };
        let mut boot = [0; 16];
        rng.fill(&mut boot);
        let booted_ms = 0;
        let now = Now {
            monotonic: Monotonic::from_millis(now_ms),
            wall: WallTime::from_millis(EPOCH_MS + i64::try_from(now_ms).expect("a short simulation")),
        };
        Self {
            name,
            person,
            core: None,
            plane: new_plane(number as u64, now),
            disk: Directories::default(),
            copies: vec![],
            queue: VecDeque::new(),
            boot: BootId::from_bytes(boot),
            booted_ms,
            wall_offset_ms: 0,
            suspended_until: 0,
            process: 0,
            connection: None,
            timer_at: u64::MAX,
            rotation_s,
            compiled: vec![],
            applied: 0,
            rng,
            udp: UdpBatch::new(),
            tun: TunBatch::new(Joining::Nothing),
        }
    }

    /// Reads the machine's own clocks.
    pub(crate) fn now(&self, true_ms: u64) -> Now {
        let wall = EPOCH_MS + i64::try_from(true_ms).expect("a short simulation") + self.wall_offset_ms;
        Now { monotonic: Monotonic::from_millis(true_ms - self.booted_ms), wall: WallTime::from_millis(wall) }
    }

    /// Translates a point on the machine's monotonic clock to true milliseconds, rounded up.
    pub(crate) fn true_ms(&self, at: Monotonic) -> u64 {
        at.as_nanos().div_ceil(1_000_000).saturating_add(self.booted_ms)
    }

    /// Starts the agent with what the disk holds.
    pub(crate) fn start(&mut self, true_ms: u64) {
        let now = self.now(true_ms);
        self.process += 1;
        self.queue.clear();
        self.connection = None;
        self.timer_at = u64::MAX;
        self.plane = new_plane(self.rng.next(), now);
        let settings = Settings {
            rotation: std::time::Duration::from_secs(self.rotation_s),
            boot: self.boot,
            listen_port: 51_820,
            overlay_within: postern_common::net::private_space().to_vec(),
            version: "simulated".into(),
            machine: Default::default(),
            platform: None,
        };
        let entropy = Box::new(self.rng.fork());
        let mut core = match self.disk.identity.clone() {
            Some(identity) => Core::restore(settings, entropy, identity),
            None => Core::new(settings, entropy),
        };
        let _ = core.start(self.disk.grants.clone(), self.disk.mark, now);
        self.core = Some(core);
    }

    /// Ends the process as `kill -9` does: what the disk was writing is written, half written, or not.
    pub(crate) fn kill(&mut self) {
        match (self.queue.pop_front(), self.rng.below(3)) {
            (Some(Job::Grants(grants)), 1) => self.disk.grants = Some(*grants),
            (Some(job), 2) => drop(self.perform(job)),
            _ => {}
        }
        self.queue.clear();
        self.core = None;
        self.process += 1;
        self.connection = None;
    }

    /// Boots anew. The runtime directory is memory-backed, and yet a copy of it may survive.
    pub(crate) fn reboot(&mut self, true_ms: u64) {
        self.booted_ms = true_ms;
        let mut boot = [0; 16];
        self.rng.fill(&mut boot);
        self.boot = BootId::from_bytes(boot);
        if self.rng.one_in(2) {
            self.disk.grants = None;
        }
    }

    /// Does what the writer thread does with one job.
    pub(crate) fn perform(&mut self, job: Job) -> Option<Persisted> {
        match job {
            Job::Identity(identity) => {
                self.disk.identity = Some(*identity);
                Some(Persisted::Identity)
            }
            Job::Grants(grants) => {
                let position = grants.position;
                self.disk.mark = Some(position);
                self.disk.grants = Some(*grants);
                Some(Persisted::Grants(position))
            }
            Job::Remove => {
                (self.disk.grants, self.disk.mark) = (None, None);
                None
            }
        }
    }

    /// Does what the shell does inside the machine with an effect; returns effects that concern others.
    pub(crate) fn inner_effect(&mut self, effect: Effect, true_ms: u64) -> Option<Effect> {
        let now = self.now(true_ms);
        self.udp.clear();
        self.tun.clear();
        let mut out = Out { udp: &mut self.udp, tun: &mut self.tun };
        match effect {
            Effect::SetLocalKeys(keys) => self.plane.set_local_keys(&keys, now),
            Effect::Apply(grants) => {
                let applied = self.plane.apply(grants, now, &mut out);
                self.applied += 1;
                self.compiled.extend(applied.compiled);
                self.compiled.extend(applied.removed);
                if let Some(core) = &mut self.core {
                    core.handle_compiled(applied.position, applied.cut_inbound);
                }
            }
            Effect::CloseDoors => {
                self.plane = new_plane(self.rng.next(), now);
                let keys = self.core.as_ref().map(|core| core.identity().keyring.private_keys()).unwrap_or_default();
                self.plane.set_local_keys(&keys, now);
                self.queue.push_back(Job::Remove);
            }
            Effect::HostDown => self.plane = new_plane(self.rng.next(), now),
            Effect::PersistIdentity(identity) => self.queue.push_back(Job::Identity(identity)),
            Effect::PersistGrants(grants) => self.queue.push_back(Job::Grants(grants)),
            Effect::CountFlows { question, peers } => {
                let counted = self.plane.inbound_flows(&peers, MAX_FLOW_GROUPS, now);
                if let Some(core) = &mut self.core {
                    core.handle_flows(question, counted.groups, counted.unlisted);
                }
            }
            Effect::Probe(_)
            | Effect::StopProbes
            | Effect::LookAtPosture
            | Effect::ReadPlatformToken
            | Effect::Explained { .. }
            | Effect::AccessRequested { .. }
            | Effect::StepUp { .. }
            | Effect::RequestsChanged
            | Effect::Settled(_) => {}
            other @ (Effect::Connect(_) | Effect::Close | Effect::Send(_) | Effect::Notify(_)) => return Some(other),
        }
        None
    }

    /// Lets the data plane do what is due.
    pub(crate) fn tick(&mut self, true_ms: u64) {
        let now = self.now(true_ms);
        self.udp.clear();
        self.tun.clear();
        self.plane.handle_timeout(now, &mut Out { udp: &mut self.udp, tun: &mut self.tun });
    }

    /// Returns the device that this machine is to the controller, if it has joined.
    pub(crate) fn device(&self) -> Option<DeviceId> {
        self.core.as_ref()?.identity().enrolment.as_ref().map(|enrolment| enrolment.device)
    }

    /// Lists what the data plane lets pass at this moment: doors into this machine, and out of it.
    pub(crate) fn open_doors(&self, true_ms: u64) -> (BTreeSet<Door>, BTreeSet<Door>) {
        let (mut inbound, mut outbound) = (BTreeSet::new(), BTreeSet::new());
        let Some(own) = self.device() else { return (inbound, outbound) };
        let now = self.now(true_ms);
        for peer in self.plane.peers(now) {
            let other = peer.peer.device;
            for (list, into) in [(&peer.inbound, &mut inbound), (&peer.outbound, &mut outbound)] {
                let is_inbound = std::ptr::eq(list, &peer.inbound);
                let (source, destination) = if is_inbound { (other, own) } else { (own, other) };
                for permission in list.iter().filter(|permission| !permission.until.has_passed(now)) {
                    let rule = permission.permit.rule.as_str().trim_start_matches("rule-");
                    for service in &permission.services {
                        let port = service.to_string();
                        into.insert(Door {
                            source,
                            destination,
                            rule: rule.parse().expect("rules of the simulation have numbers"),
                            port: port.trim_start_matches("tcp/").parse().expect("a single TCP port"),
                        });
                    }
                }
            }
        }
        (inbound, outbound)
    }

    pub(crate) fn is_suspended(&self, true_ms: u64) -> bool {
        self.suspended_until > true_ms
    }
}
