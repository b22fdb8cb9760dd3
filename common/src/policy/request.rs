//! Access for a time, on request: rules that give only what somebody has approved.
//!
//! `request = { approvers = ["group:sre-leads"], longest = "4h" }` in an `[[access]]` says who may approve, and for how long at
//! most. The rule's `from` says who may ask. Every other condition of the rule holds as well: an approval replaces none.

use std::time::Duration;

use super::{Policy, condition::State, model::Access, selector::Selector, subject::RequestContext, subject::Truth};
use crate::{
    id::{ResourceName, RuleName},
    time::WallTime,
};

/// What a rule says of requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OnRequest {
    /// Any of them may approve; people and groups.
    pub(super) approvers: Vec<Selector>,
    /// How long an approval holds at most.
    pub(super) longest: Duration,
}

/// An approved request of one subject on one device, as a decision sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// The rule that gives it.
    pub rule: RuleName,
    /// What was asked for: no other resource of the rule.
    pub resource: ResourceName,
    /// When it was approved.
    pub at: WallTime,
    /// Until when.
    pub until: WallTime,
}

/// What a subject may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requestable {
    /// The rule that would give it.
    pub rule: RuleName,
    /// For how long at most.
    pub longest: Duration,
    /// Who may approve, as the document names them.
    pub approvers: Vec<String>,
}

impl OnRequest {
    /// Tells until when an approval holds: never longer than the rule says today.
    pub(super) fn until(&self, approval: &Approval) -> WallTime {
        approval.until.min(approval.at.saturating_add(self.longest))
    }
}

impl Access {
    /// Tells until when something was approved under this rule; `None` if it has to be and was not.
    pub(super) fn approved(&self, resource: &ResourceName, context: &RequestContext) -> Option<WallTime> {
        let Some(on_request) = &self.request else { return Some(WallTime::NEVER) };
        let live = self.approvals(resource, context).filter_map(|approval| {
            let until = on_request.until(approval);
            let state = context.at_every_time(|now| State { truth: Truth::known(until > now), until });
            (state.truth == Truth::True).then_some(state.until)
        });
        live.max()
    }

    /// Tells until when the last approval under this rule holds, or held; `None` if none is on record.
    pub(super) fn last_approval(&self, resource: &ResourceName, context: &RequestContext) -> Option<WallTime> {
        let on_request = self.request.as_ref()?;
        self.approvals(resource, context).map(|approval| on_request.until(approval)).max()
    }

    fn approvals<'a>(
        &'a self,
        resource: &'a ResourceName,
        context: &'a RequestContext,
    ) -> impl Iterator<Item = &'a Approval> {
        context.approved.iter().filter(move |known| known.rule == self.name && known.resource == *resource)
    }
}

impl Policy {
    /// Tells under which rule a subject may ask for a resource: of several, the one that gives it longest.
    pub fn requestable(&self, context: &RequestContext, resource: &ResourceName) -> Option<Requestable> {
        let index = *self.model.resource_by_name.get(resource)?;
        let named = self.model.access_index.naming(context).into_iter().map(|(rule, _)| &self.model.access[rule]);
        let rules = named.filter(|access| access.to.contains(&index));
        let asked = rules.filter_map(|access| access.request.as_ref().map(|on_request| (access, on_request)));
        let (access, on_request) = asked.max_by_key(|(_, on_request)| on_request.longest)?;
        Some(Requestable {
            rule: access.name.clone(),
            longest: on_request.longest,
            approvers: on_request.approvers.iter().map(ToString::to_string).collect(),
        })
    }

    /// Tells whether somebody may approve what is asked for under a rule. Unknown groups approve nothing.
    pub fn may_approve(&self, rule: &RuleName, approver: &RequestContext) -> bool {
        let access = self.model.access_by_name.get(rule).map(|index| &self.model.access[*index]);
        let on_request = access.and_then(|access| access.request.as_ref());
        on_request.is_some_and(|on_request| {
            on_request.approvers.iter().any(|selector| selector.matches(approver) == Truth::True)
        })
    }
}
