//! What a change of policy does to limits: which are new, which are gone, which became others, and whom that concerns.
//!
//! Limits open nothing and close nothing by themselves, so no line about who gains or loses would show that one was loosened or forgotten.
//! Two documents are compared limit by limit, a rule by its name: what a renamed rule does not limit any more is shown as gone. A limit
//! counts as changed when what follows from it does: another set stays, or its rule is only watched.

use std::collections::BTreeMap;

use super::{
    Policy,
    limits::{SubjectLimit, Then, Watched},
    selector::Selector,
    subject::{RequestContext, Truth},
};
use crate::{
    diagnostics::HumanDuration,
    id::{ResourceName, RuleName},
    limit::Measure,
    time::WallTime,
};

/// One limit that is another under the next policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitChange {
    /// The rule, or the `[[limit]]`.
    pub rule: RuleName,
    /// Of each of which resources, in the order of their names; empty for a `[[limit]]`, which is about everything.
    pub resources: Vec<ResourceName>,
    /// What it said: `2GiB down within 1 h, then a fresh sign-in is asked for`; absent if it is new.
    pub before: Option<String>,
    /// What it will say; absent if it is gone.
    pub after: Option<String>,
    /// Whom it concerns or concerned, as indexes into the contexts that were given.
    pub subjects: Vec<usize>,
}

/// Which limit of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Which {
    Used(Measure, u128),
    Refused,
    Place,
}

/// A limit as a plan sees it.
struct Said<'a> {
    text: String,
    resources: Vec<ResourceName>,
    from: &'a [Selector],
}

impl Policy {
    /// Compares the limits of this policy with those of `next` at a moment.
    pub fn limit_changes(&self, next: &Self, contexts: &[RequestContext], now: WallTime) -> Vec<LimitChange> {
        let (mut old, new) = (self.limits_said(now), next.limits_said(now));
        let mut changes = Vec::new();
        for ((rule, which), after) in new {
            let before = old.remove(&(rule.clone(), which));
            if before.as_ref().is_some_and(|before| before.text == after.text) {
                continue;
            }
            let mut subjects = concerned(after.from, contexts);
            subjects.extend(before.iter().flat_map(|before| concerned(before.from, contexts)));
            changes.push(LimitChange {
                rule,
                resources: after.resources,
                before: before.map(|before| before.text),
                after: Some(after.text),
                subjects,
            });
        }
        changes.extend(old.into_iter().map(|((rule, _), before)| LimitChange {
            rule,
            resources: before.resources,
            subjects: concerned(before.from, contexts),
            before: Some(before.text),
            after: None,
        }));
        for change in &mut changes {
            change.subjects.sort_unstable();
            change.subjects.dedup();
        }
        changes.sort_by(|one, other| {
            (&one.rule, &one.after, &one.before).cmp(&(&other.rule, &other.after, &other.before))
        });
        changes
    }

    fn limits_said(&self, now: WallTime) -> BTreeMap<(RuleName, Which), Said<'_>> {
        let mut said = BTreeMap::new();
        for access in &self.model.access {
            let mut resources: Vec<ResourceName> =
                access.to.iter().map(|index| self.model.resources[*index].name.clone()).collect();
            resources.sort();
            for limit in &access.limits {
                let then = match access.is_watched(now) {
                    true => "an alert is raised".into(),
                    false => self.then_said(limit.then),
                };
                let text = format!("{}, then {then}", limit.on_nodes(false));
                let which = Which::Used(limit.measure, limit.within.as_millis());
                let (resources, from) = (resources.clone(), &access.from[..]);
                said.insert((access.name.clone(), which), Said { text, resources, from });
            }
        }
        for limit in &self.model.limits {
            let SubjectLimit { name, from, watched, then, monitor_until: _ } = limit;
            let (which, what) = match watched {
                Watched::Refused { most, within } => {
                    (Which::Refused, format!("{most} refused destinations within {}", HumanDuration::new(*within)))
                }
                Watched::Stay { country, asn } => {
                    let of = match (country, asn) {
                        (true, true) => "country and autonomous system",
                        (false, true) => "autonomous system",
                        (true, false) | (false, false) => "country",
                    };
                    (Which::Place, format!("the same {of}"))
                }
            };
            let whom = from.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let then = if limit.is_watched(now) { "an alert is raised".into() } else { self.then_said(*then) };
            let text = format!("{what}, then {then} (for {whom})");
            said.insert((name.clone(), which), Said { text, resources: vec![], from });
        }
        said
    }

    fn then_said(&self, then: Then) -> String {
        match then {
            Then::Challenge | Then::Terminate | Then::Quarantine => then.consequence().to_string(),
            Then::Restrict(set) => {
                let names: Vec<String> = self.set(set).iter().map(ToString::to_string).collect();
                match &names[..] {
                    [] => "nothing stays".into(),
                    [one] => format!("only {one} stays"),
                    several => format!("only {} stay", several.join(", ")),
                }
            }
        }
    }
}

/// Lists those whom selectors name, or might name.
fn concerned(from: &[Selector], contexts: &[RequestContext]) -> Vec<usize> {
    let named = |context: &RequestContext| from.iter().any(|selector| selector.matches(context) != Truth::False);
    contexts.iter().enumerate().filter(|(_, context)| named(context)).map(|(index, _)| index).collect()
}
