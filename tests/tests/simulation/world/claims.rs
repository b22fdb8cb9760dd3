//! What must hold at every instant, and what must hold in the end.

use std::collections::BTreeSet;

use postern_common::id::DeviceId;
use postern_controller::stream::RevocationProgress;
use postern_node::agent::core::Phase;

use super::{
    super::oracle::{Door, LONGEST_LEASE_S},
    World,
};

/// How much longer than a lease a door may live after it lost its reason: rounding of milliseconds.
const SLACK_MS: u64 = 5;

impl World {
    /// No door outlives its reason by more than a lease, whatever clocks and network do; none at all at a node that has
    /// acknowledged the revocation.
    pub(super) fn check_machine(&mut self, i: usize) {
        let (inbound, outbound) = self.machines[i].open_doors(self.now);
        let Some(own) = self.machines[i].device() else { return };
        for door in inbound.iter().chain(&outbound).filter(|door| !self.current.contains(door)) {
            let Some(ended) = self.ended.get(door) else {
                fail!(self, "machine {i} holds {door:?}, which nobody ever gave");
            };
            if self.now - ended > LONGEST_LEASE_S * 1_000 + SLACK_MS {
                fail!(self, "machine {i} holds {door:?}, which ended {} ms ago", self.now - ended);
            }
            self.check_revoked(i, own, *door);
        }
    }

    fn check_revoked(&self, i: usize, own: DeviceId, door: Door) {
        let Some(core) = &self.host.core else { return };
        for revoked in self.revoked.iter().filter(|r| r.life == self.life && r.ended.contains(&door)) {
            let Some(view) = core.revocation(revoked.id, self.controller_now()) else { continue };
            let acknowledged = view
                .nodes
                .iter()
                .any(|node| node.node == own && matches!(node.progress, RevocationProgress::Acknowledged { .. }));
            if acknowledged {
                fail!(self, "machine {i} has acknowledged revocation {} and holds {door:?}", revoked.id);
            }
        }
    }

    /// Checks every machine, and what the controller believes of it.
    pub(crate) fn check_all(&mut self) {
        for i in 0..self.machines.len() {
            self.check_machine(i);
        }
        if self.plan.keys_checked {
            self.check_keys();
        }
        let Some(core) = &self.host.core else { return };
        for device in core.list_devices() {
            let current = device.stream.as_ref().is_some_and(|stream| stream.current);
            let Some(i) = self.machines.iter().position(|machine| machine.device() == Some(device.record.id)) else {
                continue;
            };
            if !current {
                continue;
            }
            let (inbound, outbound) = self.machines[i].open_doors(self.now);
            if let Some(door) = inbound.iter().chain(&outbound).find(|door| !self.current.contains(door)) {
                fail!(self, "machine {i} is said to enforce everything, and holds {door:?}");
            }
        }
    }

    fn is_connected(&self, i: usize) -> bool {
        let machine = &self.machines[i];
        let live = machine.core.as_ref().is_some_and(|core| matches!(core.phase(), Phase::Connected { .. }));
        let known = machine.connection.is_some_and(|connection| {
            let link = &self.connections[connection];
            !link.broken && link.stream.is_some_and(|stream| self.streams.get(&stream) == Some(&connection))
        });
        live && known
    }

    /// Two connected machines with an open door between them share a pair of keys, so that no flow has to stop while
    /// keys are changed.
    fn check_keys(&self) {
        for (i, source) in self.machines.iter().enumerate().filter(|(i, _)| self.is_connected(*i)) {
            let Some(own) = source.device() else { continue };
            let (_, outbound) = source.open_doors(self.now);
            for (k, destination) in self.machines.iter().enumerate().filter(|(k, _)| self.is_connected(*k)) {
                let Some(other) = destination.device() else { continue };
                let (inbound, _) = destination.open_doors(self.now);
                if !outbound.iter().any(|door| door.destination == other && inbound.contains(door)) {
                    continue;
                }
                let pairs = |reader: &super::Machine, peer| {
                    let core = reader.core.as_ref()?;
                    let held = core.identity().keyring.public_keys();
                    let pairs = core.book().stand()?.peers.get(&peer)?.pairs.clone();
                    Some(pairs.into_iter().filter(|pair| held.contains(&pair.local)).collect::<Vec<_>>())
                };
                let (here, there) =
                    (pairs(source, other).unwrap_or_default(), pairs(destination, own).unwrap_or_default());
                let shared = here.iter().any(|a| {
                    let fits = |b: &postern_common::grant::KeyPair| {
                        a.local == b.remote && a.remote == b.local && a.preshared.expose() == b.preshared.expose()
                    };
                    there.iter().any(fits)
                });
                if !shared {
                    fail!(
                        self,
                        "machines {i} and {k} have a door between them and no pair of keys: {here:?} {there:?}"
                    );
                }
            }
        }
    }

    /// Compares what every node enforces with the oracle; tells what differs.
    pub(crate) fn difference(&self) -> Option<String> {
        let own: Vec<Option<DeviceId>> = self.machines.iter().map(super::Machine::device).collect();
        for (i, machine) in self.machines.iter().enumerate() {
            let (inbound, outbound) = machine.open_doors(self.now);
            let wanted = |of: &dyn Fn(&Door) -> DeviceId| -> BTreeSet<Door> {
                self.current.iter().filter(|door| Some(of(door)) == own[i]).copied().collect()
            };
            let (in_wanted, out_wanted) = (wanted(&|door| door.destination), wanted(&|door| door.source));
            if inbound != in_wanted {
                return Some(format!("machine {i} lets in {inbound:?}\n  and should {in_wanted:?}"));
            }
            if outbound != out_wanted {
                return Some(format!("machine {i} lets out {outbound:?}\n  and should {out_wanted:?}"));
            }
        }
        None
    }

    /// Waits, in virtual time, until every node enforces exactly what the oracle says.
    pub(crate) fn settle(&mut self, within_ms: u64) {
        let end = self.now + within_ms;
        while let Some(difference) = self.difference() {
            if self.now >= end {
                fail!(self, "no rest after {within_ms} ms: {difference}");
            }
            self.run_for(2_000);
        }
    }
}
