//! Records that take away or give beside the rules: quarantine, restraints, openings past the rules, requests for access.

use postern_common::{
    id::{BreakGlassId, RequestId, SubjectId},
    policy::Approval,
};

use super::{Outbox, Registry};
use crate::records::{
    BreakGlassRecord, DeviceRecord, QuarantineRecord, Quarantined, RequestRecord, Restrained, RestraintRecord,
    StoreChange,
};

impl Registry {
    // --- quarantine

    pub(crate) fn quarantine(&self, target: &Quarantined) -> Option<&QuarantineRecord> {
        self.quarantines.get(target)
    }

    pub(crate) fn quarantines(&self) -> impl Iterator<Item = &QuarantineRecord> {
        self.quarantines.values()
    }

    /// Returns the quarantine that holds a device: its own, or its owner's.
    pub(crate) fn quarantine_on(&self, device: &DeviceRecord) -> Option<&QuarantineRecord> {
        if self.quarantines.is_empty() {
            return None;
        }
        let own = self.quarantines.get(&Quarantined::Device(device.id));
        own.or_else(|| self.quarantines.get(&Quarantined::Subject(device.owner)))
    }

    pub(crate) fn quarantined_resources(&self) -> impl Iterator<Item = &QuarantineRecord> {
        // The last kind in order: each decision asks, and thousands of machines may be held.
        self.quarantines.values().rev().take_while(|record| matches!(record.target, Quarantined::Resource(_)))
    }

    pub(crate) fn hold(&mut self, record: QuarantineRecord) {
        self.quarantines.insert(record.target.clone(), record);
    }

    pub(crate) fn release(&mut self, target: &Quarantined) -> Option<QuarantineRecord> {
        self.quarantines.remove(target)
    }

    // --- restraints

    pub(crate) fn restraints(&self) -> impl Iterator<Item = &RestraintRecord> {
        self.restraints.values().flatten().map(|record| self.walk(record))
    }

    pub(crate) fn restraints_of(&self, whom: Restrained) -> &[RestraintRecord] {
        self.restraints.get(&whom).map_or(&[], Vec::as_slice)
    }

    /// Writes a restraint; an older one that takes the same is replaced.
    pub(crate) fn put_restraint(&mut self, record: RestraintRecord, out: &mut Outbox) {
        out.store(StoreChange::PutRestraint(record.clone()));
        let held = self.restraints.entry(record.whom).or_default();
        held.retain(|known| known.takes != record.takes);
        held.push(record);
    }

    /// Forgets every restraint of a subject or device; returns how many there were.
    pub(crate) fn forget_restraints(&mut self, whom: Restrained, out: &mut Outbox) -> usize {
        let held = self.restraints.remove(&whom).unwrap_or_default();
        let count = held.len();
        held.into_iter().for_each(|record| out.store(StoreChange::DeleteRestraint(record)));
        count
    }

    // --- openings past the rules

    pub(crate) fn break_glass(&self) -> impl Iterator<Item = &BreakGlassRecord> {
        self.break_glass.values()
    }

    pub(crate) fn put_break_glass(&mut self, record: BreakGlassRecord, out: &mut Outbox) {
        out.store(StoreChange::PutBreakGlass(record.clone()));
        self.break_glass.insert(record.id, record);
    }

    pub(crate) fn forget_break_glass(&mut self, id: BreakGlassId) -> Option<BreakGlassRecord> {
        self.break_glass.remove(&id)
    }

    // --- requests for access

    pub(crate) fn request(&self, id: RequestId) -> Option<&RequestRecord> {
        self.requests.get(&id)
    }

    pub(crate) fn requests(&self) -> impl Iterator<Item = &RequestRecord> {
        self.requests.values().map(|request| self.walk(request))
    }

    pub(crate) fn put_request(&mut self, request: RequestRecord, out: &mut Outbox) {
        out.store(StoreChange::PutRequest(request.clone()));
        self.index_request(request);
    }

    pub(super) fn index_request(&mut self, request: RequestRecord) {
        self.requests_of.entry(request.subject).or_default().insert(request.id);
        self.requests.insert(request.id, request);
    }

    pub(crate) fn forget_request(&mut self, id: RequestId) {
        let Some(request) = self.requests.remove(&id) else { return };
        if let Some(of_subject) = self.requests_of.get_mut(&request.subject) {
            of_subject.remove(&id);
            if of_subject.is_empty() {
                self.requests_of.remove(&request.subject);
            }
        }
    }

    /// Lists the requests of one subject.
    pub(crate) fn requests_of(&self, subject: SubjectId) -> impl Iterator<Item = &RequestRecord> {
        self.requests_of
            .get(&subject)
            .into_iter()
            .flatten()
            .filter_map(|id| self.requests.get(id))
            .map(|request| self.walk(request))
    }

    /// Lists what was approved for a device and its owner.
    pub(crate) fn approvals(&self, device: &DeviceRecord) -> Vec<Approval> {
        self.requests_of(device.owner).filter_map(|request| request.approval(device.owner, device.id)).collect()
    }
}
