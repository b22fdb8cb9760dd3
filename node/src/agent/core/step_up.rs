//! Step-up: a resource wants stronger or fresher proof of sign-in, and the person is told where to give it.
//!
//! ```text
//! packet refused for StepUp, flow cut at its deadline --quietly--> FromNode::StepUp
//! `postern step-up` of a client --a page that waits, or--by hand--^      |
//!     ToNode::StepUpPending {url} --> Notice::StepUp (log, status, desktop, terminals; clients that wait for it)
//!     --> the person proves their sign-in on that page --> a document that opens it --> Notice::SteppedUp
//! ```
//!
//! Nothing here opens anything: a document does.
//!
//! Bounds: packets ask for one resource at most once in [`QUIET`], or [`REFUSED_QUIET`] after a refusal; what is remembered is
//! as many resources as a node is offered at most. Any local user may ask by hand, so that has a budget of its own
//! ([`HAND_BURST`], one more in [`HAND_APART`]): it leaves what packets cause its share at the controller, which takes 30 at
//! once and one more a second. What waits for a client is shown to that client alone; only a *new* page is news for
//! everybody. At most [`waits::MAX_WAITS`] clients wait, and each wait ends: with the resource open, the page's time over, the offer
//! withdrawn, the stream closed, or no answer.

pub(super) mod waits;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use postern_common::{
    grant::{MAX_STEP_UPS, StepUpOffer},
    id::ResourceName,
    net::Protocol,
    protocol::FromNode,
    time::{Monotonic, Now, WallTime},
};

use self::waits::{Late, Waits};
use super::{Core, Effect, Notice, stream::Stream};

/// For how long packets to one resource cause no second notice.
pub const QUIET: Duration = Duration::from_secs(60);
/// For how long they cause no other question after the controller refused one: it may only have been asked too much.
pub(super) const REFUSED_QUIET: Duration = Duration::from_secs(10);
/// For how long a flow that was cut is remembered, in case the document that tells why is still on its way.
const CUT_MEMORY: Duration = Duration::from_secs(10);
/// How long the controller has for its answer.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How many questions by hand may be asked at once, all local users together.
pub(super) const HAND_BURST: u32 = 10;
/// After which time there may be one more.
const HAND_APART: Duration = Duration::from_secs(2);

/// Where the person proves their sign-in anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingStepUp {
    /// What is asked: `MFA within 15 min`.
    pub demand: String,
    /// The page. It opens nothing to anybody but the person who is signed in on this machine, so other local users may see it.
    pub url: String,
    /// When it works no more.
    pub expires: WallTime,
}

/// A question to the controller.
#[derive(Debug, Clone, Copy)]
struct Asked {
    at: Monotonic,
    /// Until when packets cause no other.
    quiet_until: Monotonic,
    answered: bool,
}

/// What is known of step-ups; each map holds at most [`MAX_STEP_UPS`] resources.
#[derive(Debug, Default)]
pub(super) struct StepUps {
    asked: BTreeMap<ResourceName, Asked>,
    pending: BTreeMap<ResourceName, PendingStepUp>,
    cut: BTreeMap<ResourceName, Monotonic>,
    waits: Waits,
    by_hand: Budget,
}

/// What may still be asked by hand.
#[derive(Debug)]
struct Budget {
    left: u32,
    filled: Monotonic,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: HAND_BURST, filled: Monotonic::from_millis(0) }
    }
}

impl Budget {
    fn take(&mut self, now: Monotonic) -> bool {
        let gained = now.since(self.filled).as_millis() / HAND_APART.as_millis();
        if gained > 0 {
            self.left = u32::try_from(gained).unwrap_or(HAND_BURST).saturating_add(self.left).min(HAND_BURST);
            self.filled = now;
        }
        let permitted = self.left > 0;
        self.left -= u32::from(permitted);
        permitted
    }
}

/// Keeps a map within its bound; what was put there first by the clock goes first.
fn note<T>(map: &mut BTreeMap<ResourceName, T>, resource: ResourceName, value: T, since: impl Fn(&T) -> Monotonic) {
    if map.len() >= MAX_STEP_UPS && !map.contains_key(&resource) {
        let oldest = map.iter().min_by_key(|(_, value)| since(value)).map(|(name, _)| name.clone());
        map.retain(|name, _| Some(name) != oldest.as_ref());
    }
    map.insert(resource, value);
}

impl StepUps {
    /// Forgets the pages that the controller gave: one that has started anew since does not know them, and the next packet asks for
    /// another.
    pub(super) fn forget_pages(&mut self) {
        for resource in std::mem::take(&mut self.pending).into_keys() {
            self.asked.remove(&resource);
        }
    }

    /// Returns when a wait ends by itself.
    pub(super) fn due(&self) -> Option<Monotonic> {
        self.waits.due()
    }

    /// Takes note that the controller has said whether there is a page. A refusal keeps packets quiet for less long.
    fn answered(&mut self, resource: &ResourceName, refused: bool, now: Now) {
        if let Some(asked) = self.asked.get_mut(resource) {
            asked.answered = true;
            if refused {
                asked.quiet_until = now.monotonic.saturating_add(REFUSED_QUIET);
            }
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
        match self.is_offered(resource) {
            true => self.want_quietly(resource.clone(), now),
            false => note(&mut self.step_ups.cut, resource.clone(), now.monotonic, |at| *at),
        }
    }

    /// Asks for a page, unless the person was told a short while ago.
    fn want_quietly(&mut self, resource: ResourceName, now: Now) {
        let quiet = |asked: &Asked| now.monotonic < asked.quiet_until;
        if let (false, Stream::Live(_)) = (self.step_ups.asked.get(&resource).is_some_and(quiet), &self.stream) {
            self.ask_for_page(resource, now);
        }
    }

    fn ask_for_page(&mut self, resource: ResourceName, now: Now) {
        let asked = Asked { at: now.monotonic, quiet_until: now.monotonic.saturating_add(QUIET), answered: false };
        note(&mut self.step_ups.asked, resource.clone(), asked, |asked| asked.at);
        self.effects.push_back(Effect::Send(FromNode::StepUp { resource }));
    }

    /// A client asks by hand: it alone is answered, and waits until the resource is open or it is clear that it will not be.
    pub(super) fn step_up(&mut self, client: u64, resource: ResourceName, now: Now) {
        if !self.is_offered(&resource) {
            let notice = match self.is_open(&resource, now) {
                true => Notice::SteppedUp { resource },
                false => {
                    let message = format!(
                        "no stronger proof of sign-in would open {resource} to this machine: `postern explain {resource}` tells why"
                    );
                    Notice::StepUpFailed { resource, message }
                }
            };
            return self.tell_of_step_up(client, notice);
        }
        let refuse = |core: &mut Self, resource, message: &str| {
            core.tell_of_step_up(client, Notice::StepUpFailed { resource, message: message.into() });
        };
        if self.step_ups.waits.is_full() {
            return refuse(self, resource, "too many wait for a step-up on this machine: try again in a moment");
        }
        if let Some(pending) = self.step_ups.pending.get(&resource).filter(|page| page.expires > now.wall).cloned() {
            self.step_ups.waits.put(client, resource.clone(), Late::PageExpired, pending.until(now));
            return self.tell_of_step_up(client, pending.notice(resource));
        }
        let Stream::Live(_) = &self.stream else {
            return refuse(self, resource, "the controller is not connected");
        };
        let on_its_way = |asked: &Asked| !asked.answered && now.monotonic.since(asked.at) < ANSWER_WITHIN;
        if !self.step_ups.asked.get(&resource).is_some_and(on_its_way) {
            if !self.step_ups.by_hand.take(now.monotonic) {
                return refuse(
                    self,
                    resource,
                    "too many step-ups were asked for on this machine: try again in a moment",
                );
            }
            self.ask_for_page(resource.clone(), now);
        }
        let until = now.monotonic.saturating_add(ANSWER_WITHIN);
        self.step_ups.waits.put(client, resource, Late::NoAnswer, until);
    }

    /// A client that waited for a step-up went away.
    pub(super) fn abandon_step_up(&mut self, client: u64) {
        self.step_ups.waits.remove(client);
    }

    /// The controller says where. What nobody offered is not taken up.
    pub(super) fn step_up_pending(&mut self, resource: ResourceName, pending: PendingStepUp, now: Now) {
        self.step_ups.answered(&resource, false, now);
        let known = self.step_ups.pending.contains_key(&resource);
        if (self.step_ups.pending.len() >= MAX_STEP_UPS && !known) || !self.is_offered(&resource) {
            return;
        }
        let notice = pending.notice(resource.clone());
        self.step_ups.waits.extend(&resource, Late::PageExpired, pending.until(now));
        self.step_ups.pending.insert(resource.clone(), pending);
        self.step_up_news(&resource, notice);
    }

    /// The controller has no page to give.
    pub(super) fn step_up_refused(&mut self, resource: ResourceName, message: String, now: Now) {
        self.step_ups.answered(&resource, true, now);
        self.end_step_up(&resource, Notice::StepUpFailed { resource: resource.clone(), message });
    }

    /// Looks, after a document, what of it ends or begins a step-up.
    pub(super) fn follow_step_ups(&mut self, now: Now) {
        let waited = self.step_ups.waits.resources();
        let known: Vec<ResourceName> = self.step_ups.pending.keys().cloned().chain(waited).collect();
        for resource in known {
            if self.is_offered(&resource) {
                // It may have been withdrawn for a moment only.
                let page = self.step_ups.pending.get(&resource).map(|page| page.until(now));
                self.step_ups.waits.offered_again(&resource, page, now);
            } else if self.is_open(&resource, now) {
                let told = self.step_ups.pending.remove(&resource).is_some() | self.step_ups.waits.has(&resource);
                self.step_ups.asked.remove(&resource);
                if told {
                    self.end_step_up(&resource, Notice::SteppedUp { resource: resource.clone() });
                }
            } else {
                // What the proof opens comes by a document of its own, once the other end knows it.
                self.step_ups.waits.withdrawn(&resource, now);
            }
        }
        self.step_ups.pending.retain(|_, pending| pending.expires > now.wall);
        let lately = |at: Monotonic| now.monotonic.since(at) < CUT_MEMORY;
        self.step_ups.cut.retain(|_, at| lately(*at));
        let cut: Vec<ResourceName> = self.step_ups.cut.keys().cloned().collect();
        for resource in cut {
            if self.is_offered(&resource) {
                self.step_ups.cut.remove(&resource);
                self.want_quietly(resource, now);
            }
        }
    }

    /// Ends the waits whose time is over.
    pub(super) fn step_ups_timeout(&mut self, now: Now) {
        for (client, resource, late) in self.step_ups.waits.take_late(now.monotonic) {
            let message = late.words(&resource);
            self.tell_of_step_up(client, Notice::StepUpFailed { resource, message });
        }
    }

    /// Ends every wait, because what it waits for cannot come.
    pub(super) fn fail_step_ups(&mut self, why: &str) {
        for (client, resource) in self.step_ups.waits.take_all() {
            self.tell_of_step_up(client, Notice::StepUpFailed { resource, message: why.to_owned() });
        }
    }

    /// Tells everybody, and the clients that wait for it.
    fn step_up_news(&mut self, resource: &ResourceName, notice: Notice) {
        for client in self.step_ups.waits.clients(resource) {
            self.tell_of_step_up(client, notice.clone());
        }
        self.notify(notice);
    }

    /// Tells everybody of the end; nobody waits for it any more.
    fn end_step_up(&mut self, resource: &ResourceName, notice: Notice) {
        let clients = self.step_ups.waits.take(resource);
        clients.into_iter().for_each(|client| self.tell_of_step_up(client, notice.clone()));
        self.notify(notice);
    }

    fn tell_of_step_up(&mut self, client: u64, notice: Notice) {
        self.effects.push_back(Effect::StepUp { client, notice });
    }

    fn is_offered(&self, resource: &ResourceName) -> bool {
        self.offers().any(|offer| offer.resource == *resource)
    }

    fn is_open(&self, resource: &ResourceName, now: Now) -> bool {
        self.book.reachable(now).iter().any(|reachable| reachable.resource == *resource)
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

impl PendingStepUp {
    fn notice(&self, resource: ResourceName) -> Notice {
        let Self { demand, url, expires } = self.clone();
        Notice::StepUp { resource, demand, url, expires }
    }

    /// Returns when the page ends, on the clock that does not jump.
    fn until(&self, now: Now) -> Monotonic {
        now.monotonic.saturating_add(self.expires.since(now.wall).min(waits::LONGEST))
    }
}
