//! The controller's host: its effects in order, its crashes, and the messages that reach it.

use super::*;

impl World {
    pub(super) fn start_controller(&mut self) {
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
            Arc::new(postern_controller::signals::place::NoMaps),
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
    pub(super) fn drain_controller(&mut self) {
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
                ControllerEffect::VerifyToken { .. } => {} // no machine here has a platform
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
    pub(super) fn forget_reader(&mut self, device: DeviceId, connection: usize) {
        let newer =
            self.streams.values().any(|other| *other != connection && self.connections[*other].device == Some(device));
        if !newer {
            self.ledger.stream_ended(device);
        }
    }

    pub(super) fn commit(
        &mut self,
        transaction: &mut Vec<postern_controller::records::StoreChange>,
        matters: Matters,
    ) -> Matters {
        let mut matters = matters;
        for change in transaction.drain(..) {
            if self.host.disk.apply(change) == Matters::Yes {
                matters = Matters::Yes;
            }
        }
        matters
    }

    /// Asks the oracle anew.
    pub(super) fn recompute(&mut self) {
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

    pub(super) fn crash_controller(&mut self) {
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
    pub(super) fn restore_controller(&mut self) {
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

    pub(super) fn send_to_machine(&mut self, stream: StreamId, message: ToNode) {
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

    pub(super) fn delay(&mut self) -> u64 {
        if self.rng.one_in(60) && !self.calm { self.rng.between(1_000, 15_000) } else { self.rng.between(1, 120) }
    }

    pub(super) fn address(machine: usize) -> SocketAddr {
        let host = u8::try_from(machine + 1).expect("dozens of machines");
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, host)), 40_000)
    }

    pub(super) fn open(&mut self, connection: usize) {
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

    pub(super) fn tell_controller(&mut self, connection: usize, message: FromNode) {
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
            (FromNode::Enforced { position, .. }, Some(device)) => self.ledger.enforced(device, *position),
            (FromNode::SnapshotWanted, Some(device)) => self.ledger.snapshot_wanted(device),
            _ => {}
        }
        self.with_controller(|core, now| core.receive(stream, message, now));
    }

    pub(super) fn controller_learns(&mut self, connection: usize) {
        let Some(stream) = self.connections[connection].stream else { return };
        if self.streams.get(&stream) == Some(&connection) {
            self.streams.remove(&stream);
            if let Some(device) = self.connections[connection].device {
                self.forget_reader(device, connection);
            }
            self.with_controller(|core, now| core.disconnect(stream, now));
        }
    }

    pub(super) fn confirm(&mut self, i: usize, code: &str) {
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
            provisioned_as: None,
            web_session: SessionId::from_bytes([u8::try_from(person).expect("dozens of people"); 16]),
            web_session_until: wall.saturating_add(Duration::from_secs(3_600)),
            provider_session: None,
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
