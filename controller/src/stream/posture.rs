//! Postures: who is asked for them, what a report does, what an import does.
//!
//! ```text
//! policy + device --ask_for_posture--> ToNode::Posture {how fresh, what is unmet}      told when it changes
//! FromNode::Posture --PostureVerifier--> Book --changed--> decide(that device)         nobody else is decided
//!                                         '----younger--> its deadlines move, if age is what set them
//! ```
//!
//! A report that is too old needs no event: the decision's `valid_until` ended when the oldest of its facts would.

use std::time::Duration;

use postern_common::{
    id::{DeviceId, MachineName},
    policy::{Entitlement, RequestContext},
    posture::{Facts, Report, SignedPosture},
    protocol::{MAX_UNMET_POSTURES, ToNode, UnmetPosture},
    time::{Now, WallTime},
};

use super::{
    api::{CoreError, PostureImport, PostureView},
    core::Core,
    leases::Evaluation,
};
use crate::{
    decision::{Extend, held_before},
    records::{AuditEvent, ComplianceRecord, DeviceRecord, NameClaim, StoreChange},
    signals::posture::{Attestation, Evidence, Keyed, book::Taken, import::read_line},
};

/// The longest time between reports of a node.
const REPORT_AT_LEAST_EVERY: Duration = Duration::from_secs(300);
/// A report has to come within this part of the age that is accepted, so that one that is lost takes nothing away.
const REPORTS_WITHIN_AGE: u32 = 3;
/// The most refused lines of an import that are told of.
const MAX_REFUSED_TOLD: usize = 100;
/// The longest serial number, bytes.
const MAX_SERIAL: usize = 120;

impl Core {
    /// Returns how fresh reports have to be; `None` if the policy asks devices nothing.
    pub(super) fn report_within(&self) -> Option<Duration> {
        let shortest = self.policy.shortest_posture_age()?;
        Some((shortest / REPORTS_WITHIN_AGE).min(REPORT_AT_LEAST_EVERY))
    }

    fn unmet(&self, context: &RequestContext) -> Vec<UnmetPosture> {
        let demands = self.policy.posture_demands(context).into_iter();
        let unmet = demands.flat_map(|demand| {
            let posture = demand.posture;
            demand.findings.into_iter().map(move |finding| UnmetPosture {
                posture: posture.clone(),
                what: finding.gist,
                fix: finding.fix,
            })
        });
        unmet.take(MAX_UNMET_POSTURES).collect()
    }

    /// Tells a node how fresh its reports have to be and what is unmet, if that is not what it was told last. `context` is that of a
    /// decision of this moment, if there was one.
    pub(super) fn ask_for_posture(&mut self, id: DeviceId, context: Option<RequestContext>, now: Now) {
        let within = self.report_within();
        let Some(node) = self.nodes.get(&id) else { return };
        if within.is_none() && node.posture_told.is_none() {
            return; // nobody asks, and nobody has asked
        }
        let Some(device) = self.registry.device(id) else { return };
        let context = within.and_then(|_| context.or_else(|| self.context_of(device, now)));
        let unmet = context.map(|context| self.unmet(&context)).unwrap_or_default();
        let report_within_ms = within.map(|within| u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
        let message = ToNode::Posture { report_within_ms, unmet };
        if let Some(node) = self.nodes.get_mut(&id)
            && node.posture_told.as_ref() != Some(&message)
        {
            node.posture_told = Some(message.clone());
            self.out.send(node.stream, message);
        }
    }

    /// Tells every node what a new policy asks: also those on which nobody is signed in, for whom nothing is decided.
    pub(super) fn ask_all_for_posture(&mut self, now: Now) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.ask_for_posture(id, None, now);
        }
    }

    /// Takes a node's report.
    pub(super) fn hear_posture(&mut self, id: DeviceId, signed: &SignedPosture, now: Now) {
        // Each change is a record on disk and one that is kept. What a machine does to itself with more, only it suffers.
        let permitted = self.paces.get_mut(&id).is_some_and(|pace| pace.postures.take(now.monotonic));
        if !permitted {
            self.counters.postures_refused += 1;
            return;
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let since_challenge = now.monotonic.since(node.challenged);
        let Some(verifier) = &mut node.posture else { return };
        let posture = match verifier.verify(signed, since_challenge) {
            Ok(posture) => posture,
            Err(refusal) => {
                self.counters.postures_refused += 1;
                let machine = self.registry.machine_name(id);
                self.out.audit(AuditEvent::PostureRefused { device: id, machine, reason: refusal.to_string() });
                return;
            }
        };
        node.posture_heard = Some(now.monotonic);
        let taken = self.postures.hear(id, posture, now);
        self.posture_taken(id, taken, "device", now);
    }

    /// Does what follows from something that was taken into the book. Returns whether facts changed.
    fn posture_taken(&mut self, id: DeviceId, taken: Taken, by: &str, now: Now) -> bool {
        match taken {
            Taken::Outdated => false,
            Taken::Younger => {
                // What is stored must not be too old after a restart, and need not be the newest.
                let every = self.report_within().unwrap_or(REPORT_AT_LEAST_EVERY);
                if self.postures.is_stored_long_ago(id, every, now) {
                    self.store_posture(id, now);
                }
                if let Some(extend) = self.youth_changes(id, now) {
                    self.decide(id, extend, now);
                }
                self.ask_for_posture(id, None, now);
                false
            }
            Taken::Changed(changes) => {
                self.store_posture(id, now);
                let machine = self.registry.machine_name(id);
                self.out.audit(AuditEvent::PostureChanged { device: id, machine, by: by.to_owned(), changes });
                self.decide(id, Extend::No, now);
                self.ask_for_posture(id, None, now);
                true
            }
        }
    }

    fn store_posture(&mut self, id: DeviceId, now: Now) {
        if let Some(record) = self.postures.record(id, now) {
            self.out.store(StoreChange::PutPosture(record));
        }
    }

    /// Tells what the same facts, younger, change in a device's lease: whether parts that were gone because the facts were too old
    /// are back, or parts that would end with the facts' age end later.
    fn youth_changes(&mut self, id: DeviceId, now: Now) -> Option<Extend> {
        let device = self.registry.device(id).cloned()?;
        let Evaluation { entitlements: fresh, step_ups, .. } = self.evaluate(&device, now);
        let lease = self.leases.get(&id)?;
        let granted = &lease.granted;
        let held = |new: &Entitlement| held_before(granted, new);
        // A part may be held on fewer nodes, or for fewer ports: facts from before the stream opened no more.
        let is_held_on = |new: &Entitlement, node: &DeviceId| {
            granted.iter().map(|held| &held.entitlement).any(|held| {
                (&held.rule, &held.resource) == (&new.rule, &new.resource)
                    && held.nodes.contains(node)
                    && new.services.iter().all(|service| held.services.contains(service))
            })
        };
        let is_back = |new: &Entitlement| new.nodes.iter().any(|node| !is_held_on(new, node));
        let later = |new: &Entitlement| {
            held(new).is_some_and(|held| !held.renewable && new.valid_until > held.entitlement.valid_until)
        };
        if fresh.iter().any(later) {
            return Some(Extend::Yes);
        }
        (step_ups != lease.step_ups || fresh.iter().any(is_back)).then_some(Extend::No)
    }

    /// Returns what a decision about a device is made from. What a stream of events said of it holds while that stream speaks, because the
    /// transmitter tells of changes alone.
    pub(super) fn evidence_of(&self, id: DeviceId, now: Now) -> Evidence {
        let mut evidence = self.postures.evidence(id, now);
        let Some(told) = self.postures.compliance(id).filter(|told| self.event_streams.vouches(&told.stream)) else {
            return evidence;
        };
        // The import may be newer; of two words of one time the one that takes away counts.
        let imported = self.postures.compliance_imported(id);
        let is_newer = |at: WallTime, compliant: bool| at > told.at || (at == told.at && !compliant);
        if imported.is_some_and(|(compliant, at)| is_newer(at, compliant)) {
            return evidence;
        }
        let heard = self.event_streams.last_heard(&told.stream).unwrap_or(told.at).max(told.at).min(now.wall);
        let empty = Report { facts: Facts::default(), observed_at: heard };
        evidence.attested.get_or_insert(empty).facts.compliant = Some(told.compliant);
        evidence
    }

    /// Takes what a stream of events says of a device.
    pub(super) fn compliance_told(&mut self, id: DeviceId, compliant: bool, at: WallTime, stream: &str, now: Now) {
        let told = ComplianceRecord { compliant, at, stream: stream.to_owned() };
        let Some(changes) = self.postures.comply(id, told) else { return };
        self.store_posture(id, now);
        let machine = self.registry.machine_name(id);
        self.out.audit(AuditEvent::PostureChanged { device: id, machine, by: format!("events {stream}"), changes });
        self.decide(id, Extend::No, now);
        self.ask_for_posture(id, None, now);
    }

    // --- administration

    /// Takes what a device-management system said of devices, as JSON lines, and decides those anew of which facts changed.
    pub fn import_posture(&mut self, lines: &str, by: &str, now: Now) -> PostureImport {
        let mut import = PostureImport::default();
        for (index, line) in lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let read = read_line(line, now.wall).map_err(|error| error.to_string());
            match read.and_then(|attestation| self.attest(attestation, by, now)) {
                Ok(changed) => {
                    import.taken += 1;
                    import.changed.extend(changed);
                }
                Err(why) => {
                    import.refused_count += 1;
                    if import.refused.len() < MAX_REFUSED_TOLD {
                        import.refused.push((index + 1, why));
                    }
                }
            }
        }
        let (taken, refused) = (import.taken, import.refused_count);
        self.out.audit(AuditEvent::PostureImported { by: by.to_owned(), taken, refused });
        self.flush(now);
        import
    }

    fn attest(&mut self, attestation: Attestation, by: &str, now: Now) -> Result<Option<MachineName>, String> {
        let id = match &attestation.of {
            Keyed::Serial(serial) => self.postures.by_serial(serial).ok_or_else(|| {
                format!("no device has the serial `{serial}`: postern-controller posture bind DEVICE --serial {serial}")
            })?,
            Keyed::Key(key) => {
                self.registry.device_by_key(key).map(|device| device.id).ok_or("no device has this key")?
            }
            Keyed::Device(name) => {
                let id = self.find_device(name).map_err(|error| error.to_string())?;
                // Any machine may call itself what it likes: management's word about a name is about the machine whose name it is.
                let device = self.registry.device(id);
                let is_own_word = |device: &DeviceRecord| {
                    device.name.as_str().eq_ignore_ascii_case(name) && device.name_claim != NameClaim::Approved
                };
                if device.is_some_and(is_own_word) {
                    return Err(format!(
                        "the name `{name}` is the machine's own word: approve it, or use its identifier, key or serial"
                    ));
                }
                id
            }
        };
        let taken = self.postures.attest(id, attestation.facts, attestation.observed_at, now);
        if taken == Taken::Outdated {
            return Err("what is known of this device is newer".into());
        }
        let is_same = taken == Taken::Younger;
        let changed = self.posture_taken(id, taken, by, now);
        if is_same && self.postures.compliance(id).is_some() {
            self.decide(id, Extend::No, now); // the same word as before may now be newer than a stream's
        }
        // What management says comes seldom: each time is worth a record.
        self.store_posture(id, now);
        Ok(changed.then(|| self.registry.machine_name(id)))
    }

    /// Binds a serial number to a device, so that what is attested for the serial counts for the device.
    ///
    /// # Errors
    /// [`CoreError::NotFound`]; [`CoreError::NotPermitted`] if the text is no serial number.
    pub fn bind_serial(&mut self, device: DeviceId, serial: &str, by: &str, now: Now) -> Result<(), CoreError> {
        if self.registry.device(device).is_none() {
            return Err(CoreError::NotFound { what: "device", name: device.to_string() });
        }
        let serial = serial.trim();
        if serial.is_empty() || serial.len() > MAX_SERIAL || serial.chars().any(char::is_control) {
            return Err(CoreError::NotPermitted(format!("a serial number has 1 to {MAX_SERIAL} characters")));
        }
        let former = self.postures.bind(device, serial);
        let machine = self.registry.machine_name(device);
        let serial = serial.to_owned();
        self.out.audit(AuditEvent::SerialBound { device, machine, serial, by: by.to_owned() });
        for id in [Some(device), former].into_iter().flatten() {
            self.store_posture(id, now);
            self.decide(id, Extend::No, now);
        }
        self.flush(now);
        Ok(())
    }

    /// Returns what is known of a device's posture.
    pub fn posture_of(&self, id: DeviceId, now: Now) -> PostureView {
        let evidence = self.evidence_of(id, now);
        let context = self.registry.device(id).and_then(|device| self.context_of(device, now));
        PostureView {
            own: evidence.own,
            attested: evidence.attested,
            serial: self.postures.serial(id).map(str::to_owned),
            unmet: context.map(|context| self.unmet(&context)).unwrap_or_default(),
        }
    }
}
