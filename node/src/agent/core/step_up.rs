//! Step-up: a resource wants stronger or fresher proof of sign-in, and the person is told where to give it.
//!
//! ```text
//! packet refused for StepUp, flow cut at its deadline, `postern step-up`  --wanted--> FromNode::StepUp
//!     --> ToNode::StepUpPending {url} --> Notice::StepUp (terminal, log, status, desktop)
//!     --> the person proves their sign-in on that page --> a document that opens it --> Notice::SteppedUp
//! ```
//!
//! Bounds: packets ask for one resource at most once in [`QUIET`]; what is remembered is as many resources as a node is
//! offered at most. Nothing here opens anything: a document does.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use postern_common::{
    grant::{MAX_STEP_UPS, StepUpOffer},
    id::ResourceName,
    net::Protocol,
    protocol::FromNode,
    time::{Monotonic, Now, WallTime},
};

use super::{Core, Effect, Notice, stream::Stream};

/// For how long packets to one resource cause no second notice.
pub const QUIET: Duration = Duration::from_secs(60);
/// For how long a flow that was cut is remembered, in case the document that tells why is still on its way.
const CUT_MEMORY: Duration = Duration::from_secs(10);

/// Where the person proves their sign-in anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingStepUp {
    /// What is asked: `MFA within 15 min`.
    pub demand: String,
    /// The page.
    pub url: String,
    /// When it works no more.
    pub expires: WallTime,
}

/// What is known of step-ups; each map holds at most [`MAX_STEP_UPS`] resources.
#[derive(Debug, Default)]
pub(super) struct StepUps {
    asked: BTreeMap<ResourceName, Monotonic>,
    pending: BTreeMap<ResourceName, PendingStepUp>,
    cut: BTreeMap<ResourceName, Monotonic>,
}

/// Keeps a map within its bound; what was put there first by the clock goes first.
fn note(map: &mut BTreeMap<ResourceName, Monotonic>, resource: ResourceName, now: Monotonic) {
    if map.len() >= MAX_STEP_UPS && !map.contains_key(&resource) {
        let oldest = map.iter().min_by_key(|(_, at)| **at).map(|(name, _)| name.clone());
        map.retain(|name, _| Some(name) != oldest.as_ref());
    }
    map.insert(resource, now);
}

impl StepUps {
    /// Forgets the pages that the controller gave: one that has started anew since does not know them, and the next packet asks for
    /// another.
    pub(super) fn forget_pages(&mut self) {
        for resource in std::mem::take(&mut self.pending).into_keys() {
            self.asked.remove(&resource);
        }
    }
}

impl Core {
    /// Takes note that a packet of this machine was refused because it wants a step-up.
    pub fn handle_step_up_wanted(&mut self, destination: IpAddr, protocol: Protocol, port: u16, now: Now) {
        let covers = |offer: &&StepUpOffer| offer.covers(destination, protocol, port);
        let wanted = self.offers().find(covers).map(|offer| offer.resource.clone());
        wanted.into_iter().for_each(|resource| self.want_quietly(resource, now));
    }

    /// Takes note that a flow of this machine's to a resource was cut. If that is because the proof of sign-in grew old, the
    /// person is told.
    pub fn handle_flow_cut(&mut self, resource: &ResourceName, now: Now) {
        let offered = self.offers().any(|offer| offer.resource == *resource);
        match offered {
            true => self.want_quietly(resource.clone(), now),
            false => note(&mut self.step_ups.cut, resource.clone(), now.monotonic),
        }
    }

    /// Asks for a page, unless the person was told a short while ago.
    fn want_quietly(&mut self, resource: ResourceName, now: Now) {
        let quiet = |at: &Monotonic| now.monotonic.since(*at) < QUIET;
        if let (false, Stream::Live(_)) = (self.step_ups.asked.get(&resource).is_some_and(quiet), &self.stream) {
            note(&mut self.step_ups.asked, resource.clone(), now.monotonic);
            self.effects.push_back(Effect::Send(FromNode::StepUp { resource }));
        }
    }

    /// The person asks by hand.
    pub(super) fn step_up(&mut self, resource: ResourceName, now: Now) {
        let failed = |message: String| Notice::StepUpFailed { resource: resource.clone(), message };
        if self.offers().all(|offer| offer.resource != resource) {
            let open = self.book.reachable(now).iter().any(|reachable| reachable.resource == resource);
            return self.notify(match open {
                true => Notice::SteppedUp { resource },
                false => failed(format!(
                    "no stronger proof of sign-in would open {resource} to this machine: `postern explain {resource}` tells why"
                )),
            });
        }
        if let Some(PendingStepUp { demand, url, expires }) = self.step_ups.pending.get(&resource).cloned()
            && expires > now.wall
        {
            return self.notify(Notice::StepUp { resource, demand, url, expires });
        }
        match &self.stream {
            Stream::Live(_) => {
                note(&mut self.step_ups.asked, resource.clone(), now.monotonic);
                self.effects.push_back(Effect::Send(FromNode::StepUp { resource }));
            }
            Stream::Resting { .. }
            | Stream::Connecting { .. }
            | Stream::Greeting { .. }
            | Stream::Joining { .. }
            | Stream::Leaving { .. } => self.notify(failed("the controller is not connected".into())),
        }
    }

    /// The controller says where. What nobody offered is not taken up.
    pub(super) fn step_up_pending(&mut self, resource: ResourceName, pending: PendingStepUp) {
        if self.step_ups.pending.len() >= MAX_STEP_UPS || self.offers().all(|offer| offer.resource != resource) {
            return;
        }
        let PendingStepUp { demand, url, expires } = pending.clone();
        self.step_ups.pending.insert(resource.clone(), pending);
        self.notify(Notice::StepUp { resource, demand, url, expires });
    }

    /// Looks, after a document, what of it ends or begins a step-up.
    pub(super) fn follow_step_ups(&mut self, now: Now) {
        let open = self.book.reachable(now);
        let offered = |core: &Self, resource: &ResourceName| core.offers().any(|offer| offer.resource == *resource);
        let pending: Vec<ResourceName> = self.step_ups.pending.keys().cloned().collect();
        for resource in pending {
            if !offered(self, &resource) && open.iter().any(|reachable| reachable.resource == resource) {
                self.step_ups.pending.remove(&resource);
                self.step_ups.asked.remove(&resource);
                self.notify(Notice::SteppedUp { resource });
            }
        }
        self.step_ups.pending.retain(|_, pending| pending.expires > now.wall);
        let lately = |at: Monotonic| now.monotonic.since(at) < CUT_MEMORY;
        self.step_ups.cut.retain(|_, at| lately(*at));
        let cut: Vec<ResourceName> = self.step_ups.cut.keys().cloned().collect();
        for resource in cut {
            if offered(self, &resource) {
                self.step_ups.cut.remove(&resource);
                self.want_quietly(resource, now);
            }
        }
    }

    /// Returns what stronger or fresher proof would open.
    pub fn offers(&self) -> impl Iterator<Item = &StepUpOffer> {
        self.book.stand().into_iter().flat_map(|stand| &stand.own.step_up)
    }

    /// Returns where the person can prove their sign-in for a resource, if a page waits for them.
    pub fn pending_step_up(&self, resource: &ResourceName, now: WallTime) -> Option<&PendingStepUp> {
        self.step_ups.pending.get(resource).filter(|pending| pending.expires > now)
    }
}
