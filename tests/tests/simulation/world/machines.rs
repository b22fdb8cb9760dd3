//! The machines' hosts: starts, effects, disks, and people who sign in.

use super::*;

impl World {
    pub(super) fn start_machine(&mut self, i: usize, closed: bool) {
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
    pub(super) fn with_machine(&mut self, i: usize, call: impl FnOnce(&mut postern_node::agent::core::Core, Now)) {
        let now = self.machines[i].now(self.now);
        if let Some(core) = &mut self.machines[i].core {
            call(core, now);
            self.drain_machine(i);
        }
    }

    pub(super) fn drain_machine(&mut self, i: usize) {
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

    pub(super) fn schedule_machine(&mut self, i: usize) {
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
    pub(super) fn wake(&mut self, i: usize) {
        let process = self.machines[i].process;
        self.machines[i].timer_at = self.now;
        self.at(self.now, Event::MachineTimer { machine: i, process });
    }

    pub(super) fn write_next(&mut self, i: usize) {
        let slow = self.rng.one_in(12) && !self.calm;
        let process = self.machines[i].process;
        let (low, high) = if slow { (1_000, 6_000) } else { (1, 15) };
        self.after(low, high, Event::Written { machine: i, process });
    }

    pub(super) fn written(&mut self, i: usize, process: u64) {
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
    pub(super) fn want_up(&mut self, i: usize) {
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

    pub(super) fn token_for(&mut self, i: usize) -> Option<String> {
        let tags = [i % TAGS, (i / TAGS) % TAGS].iter().map(|tag| format!("t{tag}").parse().expect("a tag")).collect();
        let new = NewToken {
            service: Some(format!("svc-{i}").parse().expect("a service name")),
            tags,
            machine: Some(self.machines[i].name.parse().expect("a machine name")),
            networks: vec![],
            uses: 1,
            life: Duration::from_secs(3_600),
        };
        let (token, _) = self.with_controller(|core, now| core.create_token(new, "root", now))?.ok()?;
        Some(token)
    }

    pub(super) fn tell_machine(&mut self, connection: usize, message: ToNode) {
        let link = &self.connections[connection];
        let i = link.machine;
        if link.broken || self.machines[i].connection != Some(connection) || self.machines[i].process != link.process {
            return;
        }
        self.with_machine(i, |core, now| core.handle_message(message, now));
        self.check_machine(i);
    }
}
