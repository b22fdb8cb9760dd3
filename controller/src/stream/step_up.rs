//! Step-up: a person proves their sign-in anew, more strongly or just now, for a login session that is open.
//!
//! ```text
//! decide --Policy::step_ups--> offers in the node's own document     (what lacks nothing but proof)
//! node: StepUp {resource} --> a page for this session and resource --> StepUpPending {url}
//! page: the same person, freshly proven --confirm_step_up--> the session's assurance --> this device decided anew
//! ```
//!
//! Invariants:
//! - A page is named by 256 random bits, of which only the hash is kept; it is for one login session, one device and one
//!   resource, works once and for [`PAGE_LIFE`]; nobody but the session's own person (issuer and `sub`) gets anything of it.
//! - A session's assurance changes only to one that proves at least as much, and only if that opens what was asked for. A
//!   refused step-up changes nothing.
//! - Only the device of that session is decided anew.
//!
//! Bounds: [`MAX_OF_DEVICE`] pages of one device, [`MAX_PAGES`] in all; the oldest makes room. A node's questions have a limit
//! of their own, and one beyond it is refused in words: somebody may wait.
//!
//! Threat: somebody with a stolen session asks for a page and sends it to its owner. So the page names machine, resource and
//! the address from which the machine speaks, and asks to confirm only what the person is just doing.

use std::{collections::HashMap, net::IpAddr};

use postern_common::{
    grant::{MAX_STEP_UPS, StepUpOffer},
    id::{DeviceId, ResourceName, SessionId},
    policy::{StepUp, Subject},
    protocol::ToNode,
    time::{Monotonic, Now, WallTime},
};

use super::{
    api::{CoreError, StreamId},
    core::Core,
};
use crate::{
    decision::{Extend, policy_assurance},
    identity::random::{Token, TokenHash},
    records::{Assurance, AuditEvent, Person, SessionRecord},
    web::doors::{StepUpPage, SteppedUp, Sufficient},
};

/// How long a page works.
const PAGE_LIFE: std::time::Duration = std::time::Duration::from_secs(600);
/// The most pages of one device, and of all.
const MAX_OF_DEVICE: usize = 16;
const MAX_PAGES: usize = 4_096;
/// The most addresses of one offer.
const MAX_ADDRESSES: usize = 512;

/// A page that waits for its person.
#[derive(Debug, Clone)]
struct Page {
    session: SessionId,
    device: DeviceId,
    resource: ResourceName,
    asked: WallTime,
    /// When it works no more, for people.
    expires: WallTime,
    /// When it does not, by the clock that nobody sets.
    over: Monotonic,
}

/// The pages that wait, by the hash of their secret.
#[derive(Debug, Default)]
pub(super) struct StepUpPages {
    waiting: HashMap<TokenHash, Page>,
}

impl StepUpPages {
    fn put(&mut self, token: &Token, page: Page, now: Monotonic) {
        self.waiting.retain(|_, waiting| now < waiting.over);
        let of_device = self.waiting.values().filter(|waiting| waiting.device == page.device).count();
        let full = self.waiting.len() >= MAX_PAGES;
        if full || of_device >= MAX_OF_DEVICE {
            let mine = |waiting: &&Page| full || waiting.device == page.device;
            let oldest = self
                .waiting
                .iter()
                .filter(|(_, waiting)| mine(waiting))
                .min_by_key(|(hash, page)| (page.asked, *hash.as_bytes()));
            let oldest = oldest.map(|(hash, _)| *hash);
            oldest.into_iter().for_each(|hash| drop(self.waiting.remove(&hash)));
        }
        self.waiting.insert(token.hash(), page);
    }
}

impl Core {
    /// Lists for a node what stronger or fresher proof of its person's sign-in would open.
    pub(super) fn step_up_offers(&self, device: DeviceId) -> Vec<StepUpOffer> {
        let Some(lease) = self.leases.get(&device) else { return vec![] };
        let offer = |step_up: &StepUp| {
            let nodes = step_up.nodes.iter().filter_map(|node| self.registry.device(*node));
            StepUpOffer {
                resource: step_up.resource.clone(),
                addresses: nodes.flat_map(|node| node.addresses.to_vec()).take(MAX_ADDRESSES).collect(),
                services: step_up.services.clone(),
                demand: step_up.demand.words(),
            }
        };
        lease.step_ups.iter().take(MAX_STEP_UPS).map(offer).collect()
    }

    /// A node asks for a page.
    pub(super) fn step_up_asked(&mut self, id: DeviceId, stream: StreamId, resource: ResourceName, now: Now) {
        let session = self.registry.session_on(id).map(|session| (session.id, session.subject));
        let offered = self.leases.get(&id).and_then(|lease| lease.step_ups.iter().find(|s| s.resource == resource));
        let (Some((session, subject)), Some(step_up)) = (session, offered) else {
            let message = format!("no stronger proof of sign-in would open {resource} to this machine now");
            return self.out.send(stream, ToNode::StepUpRefused { resource, message });
        };
        let demand = step_up.demand.words();
        let token = Token::from_bytes(self.draw());
        let (expires, over) = (now.wall.saturating_add(PAGE_LIFE), now.monotonic.saturating_add(PAGE_LIFE));
        let page = Page { session, device: id, resource: resource.clone(), asked: now.wall, expires, over };
        self.step_up_pages.put(&token, page, now.monotonic);
        self.out.audit(AuditEvent::StepUpAsked {
            session,
            subject,
            subject_name: self.registry.subject_name(subject),
            device: id,
            resource: resource.clone(),
            demand: demand.clone(),
        });
        let url = format!("{}/step-up/{}", self.config.url, token.expose());
        self.out.send(stream, ToNode::StepUpPending { resource, demand, url, expires });
    }

    /// Finds the page of a secret, for its own person alone.
    fn step_up_page_of(
        &mut self,
        token: &Token,
        who: &Person,
        from: IpAddr,
        now: Now,
    ) -> Result<(Page, SessionRecord), CoreError> {
        let page = self.step_up_pages.waiting.get(&token.hash()).filter(|page| now.monotonic < page.over).cloned();
        let session = page.as_ref().and_then(|page| self.registry.session(page.session)).cloned();
        let (Some(page), Some(session)) = (page, session) else { return Err(CoreError::Expired) };
        let own = self.registry.subject_of(&who.kind()).map(|subject| subject.id);
        if own != Some(session.subject) {
            self.refuse_step_up(&page, &session, "another person tried to confirm it", from);
            return Err(CoreError::NotPermitted(format!(
                "this page is for somebody else: you are signed in as {}. Nothing was changed",
                who.name
            )));
        }
        Ok((page, session))
    }

    fn refuse_step_up(&mut self, page: &Page, session: &SessionRecord, reason: &str, from: IpAddr) {
        self.out.audit(AuditEvent::StepUpRefused {
            session: page.session,
            subject: session.subject,
            subject_name: self.registry.subject_name(session.subject),
            device: page.device,
            resource: page.resource.clone(),
            reason: reason.to_owned(),
            from,
        });
    }

    /// Tells what would be missing for a resource with another assurance; nothing if it would be open.
    fn missing_with(&self, page: &Page, assurance: &Assurance, now: Now) -> Option<StepUp> {
        let device = self.registry.device(page.device)?;
        let mut context = self.context_of(device, now)?;
        if let Subject::User { assurance: proof, groups, .. } = &mut context.subject {
            *proof = policy_assurance(Some(assurance));
            let owner = self.registry.subject(device.owner)?;
            let present = self.provisioned_assurance(&owner.kind, owner.provisioned_as.as_ref(), Some(assurance));
            *groups = present.and_then(|present| present.groups);
        }
        let mut step_ups = self.policy.step_ups(&context, &self.targets).into_iter();
        step_ups.find(|step_up| step_up.resource == page.resource)
    }

    /// Shows its person a page: which machine wants what, and whether the sign-in of this browser is enough for it.
    ///
    /// # Errors
    /// [`CoreError::Expired`] if there is no such page, [`CoreError::NotPermitted`] for somebody else.
    pub fn step_up_page(
        &mut self,
        token: &Token,
        who: &Person,
        from: IpAddr,
        now: Now,
    ) -> Result<StepUpPage, CoreError> {
        let (page, session) = self.step_up_page_of(token, who, from, now)?;
        let offered = self.offer_of(&page).cloned();
        let StepUp { rule, services, demand, .. } = offered.ok_or(CoreError::Expired)?; // it is open by now, or gone
        let new = self.stepped_up(&session, who);
        let sufficient = match self.missing_with(&page, &new, now).is_none() && self.strengthens(&session, &new) {
            true => Sufficient::Yes,
            false => Sufficient::No,
        };
        let address = self.nodes.get(&page.device).map(|node| node.from.ip());
        Ok(StepUpPage {
            machine: self.registry.machine_name(page.device),
            address,
            resource: page.resource,
            services,
            rule,
            demand,
            asked_at: page.asked,
            expires: page.expires,
            sufficient,
        })
    }

    fn offer_of(&self, page: &Page) -> Option<&StepUp> {
        self.leases.get(&page.device)?.step_ups.iter().find(|step_up| step_up.resource == page.resource)
    }

    /// Tells whether what a page is for is open on its machine.
    fn is_open(&self, page: &Page) -> bool {
        let granted = self.leases.get(&page.device).map(|lease| lease.granted.as_slice()).unwrap_or_default();
        granted.iter().any(|granted| granted.entitlement.resource == page.resource)
    }

    /// Returns the session's assurance after a step-up: what was just proven; groups that the issuer did not name stay.
    fn stepped_up(&self, session: &SessionRecord, who: &Person) -> Assurance {
        let new = self.assurance(who);
        Assurance { groups: new.groups.clone().or_else(|| session.assurance.groups.clone()), ..new }
    }

    fn strengthens(&self, session: &SessionRecord, new: &Assurance) -> bool {
        self.policy.at_least_as_strong(&policy_assurance(Some(new)), &policy_assurance(Some(&session.assurance)))
    }

    /// Takes over a fresh proof into the login session of the page. The page is spent.
    ///
    /// # Errors
    /// [`CoreError::Expired`], and [`CoreError::NotPermitted`] with the reason: another person, a weaker proof than the session
    /// has, one that does not open what was asked for, or something that no proof opens any more. Nothing is changed then.
    pub fn confirm_step_up(
        &mut self,
        token: &Token,
        who: &Person,
        from: IpAddr,
        now: Now,
    ) -> Result<SteppedUp, CoreError> {
        let (page, mut session) = self.step_up_page_of(token, who, from, now)?;
        if let Some(why) = self.overtaken(who, now) {
            self.refuse_step_up(&page, &session, why.told(), from);
            return Err(CoreError::NotPermitted(format!("{}: sign in again", why.told())));
        }
        if let Some(reason) = self.is_cut_off(who, now) {
            self.refuse_step_up(&page, &session, &reason, from);
            return Err(CoreError::NotPermitted(reason));
        }
        let new = self.stepped_up(&session, who);
        if !self.strengthens(&session, &new) {
            let reason = "this sign-in proves less than the one that the machine has";
            self.refuse_step_up(&page, &session, reason, from);
            return Err(CoreError::NotPermitted(format!("{reason}: sign in as you did there, or more strongly")));
        }
        if self.offer_of(&page).is_none() && !self.is_open(&page) {
            let reason = "no proof of sign-in would open it any more";
            self.refuse_step_up(&page, &session, reason, from);
            let message = format!("{0}: {reason}. `postern explain {0}` on the machine says why", page.resource);
            return Err(CoreError::NotPermitted(message));
        }
        if let Some(missing) = self.missing_with(&page, &new, now) {
            let reason = format!("it needs {}, and this sign-in does not prove that", missing.demand.words());
            self.refuse_step_up(&page, &session, &reason, from);
            return Err(CoreError::NotPermitted(format!("{}: {reason}", page.resource)));
        }
        self.step_up_pages.waiting.retain(|hash, other| {
            *hash != token.hash() && (other.session, &other.resource) != (page.session, &page.resource)
        });
        session.assurance = new;
        session.vouched = Some(who.web_session);
        session.proven = None;
        self.out.audit(AuditEvent::SteppedUp {
            session: session.id,
            subject: session.subject,
            subject_name: self.registry.subject_name(session.subject),
            device: page.device,
            resource: page.resource.clone(),
            acr: session.assurance.acr.clone(),
            amr: session.assurance.amr.clone(),
            auth_time: session.assurance.auth_time,
            from,
        });
        self.registry.put_session(session, &mut self.out);
        self.decide(page.device, Extend::Yes, now);
        self.flush(now);
        if !self.is_open(&page) {
            let message = format!("{0} is not open yet: `postern explain {0}` on the machine says why", page.resource);
            return Err(CoreError::NotPermitted(message));
        }
        Ok(SteppedUp { machine: self.registry.machine_name(page.device), resource: page.resource })
    }
}
