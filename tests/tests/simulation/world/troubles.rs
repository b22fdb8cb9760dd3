//! What goes wrong, at random.

use postern_common::{
    id::{DeviceId, SessionId},
    policy::Reach,
};
use postern_controller::{
    records::{DeviceKind, Quarantined, Restrained, RevokeTarget, Standing},
    stream::SignalResponse,
};
use postern_node::agent::core::Command;

use super::{super::oracle::Spec, Event, Trouble, World};

const HOUR_MS: u64 = 3_600_000;

impl World {
    pub(super) fn trouble(&mut self) {
        let total: u64 = self.plan.troubles.iter().map(|(_, weight)| weight).sum();
        let mut draw = self.rng.below(total);
        let Some(trouble) = self.plan.troubles.iter().find_map(|(trouble, weight)| {
            let hit = draw < *weight;
            draw = draw.saturating_sub(*weight);
            hit.then_some(*trouble)
        }) else {
            return;
        };
        let i = self.rng.index(self.machines.len());
        self.note(|| format!("trouble: {trouble:?} {i}"));
        match trouble {
            Trouble::Drop => self.drop_stream(i),
            Trouble::Partition => {
                for i in 0..self.machines.len() {
                    if self.rng.one_in(2) {
                        self.drop_stream(i);
                    }
                }
            }
            Trouble::Suspend => {
                self.machines[i].suspended_until = self.now + self.rng.between(1_000, 700_000);
            }
            Trouble::JumpMachine => {
                self.machines[i].wall_offset_ms = self.jump();
                self.wake(i);
                self.check_machine(i);
            }
            Trouble::JumpController => self.host.wall_offset_ms = self.jump(),
            Trouble::Kill => {
                self.kill(i);
                self.after(100, 10_000, Event::MachineStart { machine: i });
            }
            Trouble::Reboot => {
                self.kill(i);
                let now = self.now;
                self.machines[i].reboot(now);
                self.after(1_000, 30_000, Event::MachineStart { machine: i });
            }
            Trouble::Rollback => self.roll_back(i),
            Trouble::CopyDirectories => {
                let copy = self.machines[i].disk.clone();
                self.machines[i].copies.push(copy);
                if self.host.core.is_some() {
                    self.host.backups.push(self.host.disk.clone());
                }
            }
            Trouble::CrashController => self.host.crash_in = Some(self.rng.below(60)),
            Trouble::RestoreController => self.restore_controller(),
            Trouble::Revoke => self.revoke_something(i),
            Trouble::Lift => {
                self.lift_something();
            }
            Trouble::Policy => {
                let spec = self.another_spec();
                if self.host.core.is_some() {
                    self.apply_policy(spec);
                }
            }
            Trouble::Restrain => self.restrain_somebody(i),
            Trouble::Release => self.release_somebody(),
            Trouble::Logout => {
                if self.machines[i].person.is_some() {
                    self.with_machine(i, |core, now| core.handle_command(Command::Logout, now));
                    self.after(5_000, 60_000, Event::WantUp { machine: i });
                }
            }
        }
    }

    fn jump(&mut self) -> i64 {
        i64::try_from(self.rng.below(2 * HOUR_MS)).expect("two hours") - i64::try_from(HOUR_MS).expect("an hour")
    }

    /// Makes a policy that differs a little, or wholly, from the one in force.
    pub(crate) fn another_spec(&mut self) -> Spec {
        let mut spec = self.spec();
        if self.rng.one_in(4) {
            return Spec::draw(&mut self.rng, self.plan.servers);
        }
        let other = Spec::draw(&mut self.rng, self.plan.servers);
        let at = self.rng.index(spec.access.len());
        spec.access[at] = other.access[0].clone();
        spec
    }

    /// Loses a stream with everything on its way. Each end notices in its own time.
    pub(crate) fn drop_stream(&mut self, i: usize) {
        let Some(connection) = self.machines[i].connection else { return };
        self.connections[connection].broken = true;
        self.after(1, 20_000, Event::MachineLearns { connection, why: "the connection was lost" });
        self.after(1, 40_000, Event::ControllerLearns { connection });
    }

    /// Kills a machine's process.
    pub(crate) fn kill(&mut self, i: usize) {
        if let Some(connection) = self.machines[i].connection {
            self.connections[connection].broken = true;
            self.after(1, 40_000, Event::ControllerLearns { connection });
        }
        self.machines[i].kill();
    }

    /// Puts an older copy of one of the two directories back while the machine is down.
    fn roll_back(&mut self, i: usize) {
        let copies = std::mem::take(&mut self.machines[i].copies);
        let Some(copy) = copies.first().cloned() else { return };
        self.kill(i);
        let disk = &mut self.machines[i].disk;
        let closed = if self.rng.one_in(2) {
            let differs =
                copy.grants.as_ref().map(|grants| grants.position) != disk.grants.as_ref().map(|g| g.position);
            disk.grants = copy.grants;
            differs
        } else {
            let differs = copy.mark != disk.mark;
            (disk.mark, disk.identity) = (copy.mark, copy.identity);
            differs
        };
        self.start_machine(i, closed);
    }

    fn revoke_something(&mut self, i: usize) {
        let Some(device) = self.machines[i].device() else { return };
        let Some(record) = self.host.disk.devices.get(&device).cloned() else { return };
        let session = self.host.disk.sessions.values().find(|s| s.device == device && s.ended.is_none()).map(|s| s.id);
        let target = match (self.rng.below(7), session) {
            (0, _) => RevokeTarget::Device(device),
            (1, _) => RevokeTarget::Subject(record.owner),
            (2, _) => RevokeTarget::Node(device),
            (3, _) => RevokeTarget::Rule(format!("rule-{}", self.rng.below(6)).parse().expect("a rule's name")),
            (4, _) => RevokeTarget::Quarantine(Quarantined::Subject(record.owner)),
            (5, _) => {
                let resource = format!("r{}", self.rng.below(6)).parse().expect("a resource's name");
                RevokeTarget::Quarantine(Quarantined::Resource(resource))
            }
            (_, Some(session)) => RevokeTarget::Session(session),
            (_, None) => return,
        };
        let before = self.current.clone();
        self.revoke(target);
        if !self.plan.troubles.iter().any(|(trouble, _)| *trouble == Trouble::Kill) {
            return;
        }
        // The worst moment for a crash is while a machine writes down what was revoked.
        let closed: std::collections::BTreeSet<_> =
            before.difference(&self.current).map(|door| door.destination).collect();
        for machine in 0..self.machines.len() {
            if self.machines[machine].device().is_some_and(|device| closed.contains(&device)) && self.rng.one_in(2) {
                self.after(1, 600, Event::MachineKill { machine });
            }
        }
    }

    /// Takes something from the subject, or the machine, as a limit or an administrator does. That opens nothing to anybody.
    fn restrain_somebody(&mut self, i: usize) {
        let Some(device) = self.machines[i].device() else { return };
        let Some(record) = self.host.disk.devices.get(&device).cloned() else { return };
        let whom = if self.rng.one_in(2) { Restrained::Subject(record.owner) } else { Restrained::Device(device) };
        let resource = |n: u64| format!("r{n}").parse().expect("a resource's name");
        let rule = format!("rule-{}", self.rng.below(6)).parse().expect("a rule's name");
        let to = resource(self.rng.below(6));
        let doors: Vec<DeviceId> = self.current.iter().map(|door| door.destination).collect();
        let response = match self.rng.below(5) {
            0 => SignalResponse::Challenge(Reach::Everything),
            1 => SignalResponse::Challenge(Reach::Access { rule, resource: to }),
            2 if !doors.is_empty() => {
                let node = doors[self.rng.index(doors.len())];
                SignalResponse::Challenge(Reach::AccessOn { rule, resource: to, node })
            }
            2 | 3 => SignalResponse::Restrict((0..self.rng.below(6)).map(resource).collect()),
            _ => SignalResponse::Terminate,
        };
        self.note(|| format!("restrain {whom}: {response:?}"));
        let before = self.current.clone();
        let _unknown = self.with_controller(|core, now| core.respond(whom, response, "simulated", "root", now));
        if let Some(door) = self.current.difference(&before).next() {
            self.fail(format!("a restraint opened {door:?}"));
        }
    }

    fn release_somebody(&mut self) {
        let held: Vec<Restrained> = self.host.disk.restraints.values().map(|record| record.whom).collect();
        if held.is_empty() {
            return;
        }
        let whom = held[self.rng.index(held.len())];
        self.note(|| format!("release {whom}"));
        let before = self.current.clone();
        let _nothing_in_force = self.with_controller(|core, now| core.release_restraints(whom, "root", now));
        if let Some(door) = before.difference(&self.current).next() {
            self.fail(format!("a release closed {door:?}"));
        }
    }

    fn lift_something(&mut self) -> bool {
        let disk = &self.host.disk;
        let held = |id: &DeviceId| {
            disk.devices.get(id).is_some_and(|d| d.kind == DeviceKind::Agent && d.standing != Standing::Good)
        };
        let device = disk.devices.keys().find(|id| held(id)).map(|id| RevokeTarget::Device(*id));
        let subject = disk.subjects.values().find(|s| s.disabled.is_some()).map(|s| RevokeTarget::Subject(s.id));
        let rule = disk.revoked_rules.keys().next().map(|rule| RevokeTarget::Rule(rule.clone()));
        let held = disk.quarantines.keys().next().map(|held| RevokeTarget::Quarantine(held.clone()));
        let Some(target) = device.or(subject).or(rule).or(held) else { return false };
        self.note(|| format!("lift {target:?}"));
        self.with_controller(|core, now| core.lift(target, "root", now)).is_some()
    }

    /// Finds an open login session that opens doors, and its device.
    pub(crate) fn a_session_with_doors(&self) -> Option<(SessionId, DeviceId)> {
        let open = self.host.disk.sessions.values().filter(|session| session.ended.is_none());
        open.map(|session| (session.id, session.device))
            .find(|(_, device)| self.current.iter().any(|door| door.source == *device))
    }
}
