//! Limits on behaviour: what nodes tell of it, and what follows.
//!
//! ```text
//! FromNode::Behaviour --usages--> Book: the sum over nodes and devices --more than the limit--> alert, respond (restraint)
//!                     '-scans---> alert, respond or quarantine
//! another country or autonomous system within one login session --stay_limit--> respond
//! respond --> another budget of that limit in the subject's permissions: nodes count it anew
//! ```
//!
//! Invariants:
//! - A node is believed about those alone who may open something on it, under the limit that its document carries: another rule,
//!   measure, window or budget is dropped and counted. Of itself it may say that it
//!   scans; of a server that is an alert and no more, because whoever talks to its programs may bring it to that.
//! - A response begins the count of the limit that was passed, and of no other: a cheap challenge is no way round a harsher limit.
//! - A limit is passed once for a budget: the response begins another one. What is taken already is not taken again, nor told again.
//! - The word of one node closes a few in an hour, whatever it says ([`crate::signals::behaviour`]): its own doors it shuts anyway. Of
//!   whom it would have a fresh sign-in beyond that, one is asked for what that node gives, and for nothing else: so nobody stays shut
//!   there who proves who they are, and its word counts for nobody else's doors or counts.
//! - Where a rule is only watched, an alert is all that follows.

use std::time::Duration;

use postern_common::{
    id::{DeviceId, SubjectId},
    limit::{Consequence, Limit, Measure, Scan, ScanLimit, Usage},
    net::FiveTuple,
    policy::{LimitResponse, Place, Reach, RequestContext},
    protocol::{MAX_SCANS, MAX_USAGES},
    time::Now,
};

use super::{
    core::Core,
    restraint::{Begins, MAX_OF_ONE, SignalResponse},
};
use crate::{
    decision::Extend,
    records::{Begun, DeviceRecord, Quarantined, Restrained, budget_of},
    signals::{
        alerts::{About, AlertKind},
        behaviour::{ACCUSED_WITHIN, MAX_ACCUSED, MAX_CHALLENGED, RefusedAt, ToldOf, Word},
    },
};

impl Core {
    /// Returns the number of a device's budget of refused destinations. A challenge of what one rule gives is no new one.
    fn scan_budget(&self, device: &DeviceRecord) -> u64 {
        let of_subject = self.registry.restraints_of(Restrained::Subject(device.owner)).iter();
        let of_subject = of_subject.filter(|record| record.takes.is_wide());
        let of_device = self.registry.restraints_of(Restrained::Device(device.id)).iter();
        of_subject.chain(of_device).map(|record| record.budget).max().unwrap_or(0)
    }

    /// Returns from how many refused destinations on a device counts as one that scans.
    pub(super) fn scan_limit_of(&self, device: &DeviceRecord, context: Option<&RequestContext>) -> Option<ScanLimit> {
        if !self.policy.limits_behaviour() {
            return None;
        }
        let limit = self.policy.scan_limit(context?)?;
        Some(ScanLimit { budget: self.scan_budget(device), ..limit })
    }

    /// Takes in what a node tells of behaviour.
    pub(super) fn behaviour_told(
        &mut self,
        (node, process): (DeviceId, u64),
        usages: Vec<Usage>,
        scans: Vec<Scan>,
        now: Now,
    ) {
        if usages.len() > MAX_USAGES || scans.len() > MAX_SCANS {
            self.counters.messages_refused += 1;
            return;
        }
        let (mut usages, mut scans) = (usages, scans);
        // Each is looked up among the leases of a subject, and nothing but this bounds how many a node sends. It tells them again.
        if !usages.is_empty() && !self.paces.get_mut(&node).is_some_and(|pace| pace.usages.take(now.monotonic)) {
            self.counters.messages_refused += 1;
            usages.clear();
        }
        // Each may be records and an alert. A node tells of a scan again as long as nothing followed.
        if !scans.is_empty() && !self.paces.get_mut(&node).is_some_and(|pace| pace.scans.take(now.monotonic)) {
            self.counters.messages_refused += 1;
            scans.clear();
        }
        // All of it is heard before anything follows, and the worst follows first.
        let heard = once_each(usages).into_iter().filter_map(|usage| self.usage_told(node, process, usage, now));
        let mut passed: Vec<(Limit, Usage)> = heard.collect();
        passed.sort_by_key(|(limit, _)| std::cmp::Reverse(limit.then));
        for (limit, usage) in passed {
            self.judge(&limit, &usage, now);
        }
        for scan in scans {
            self.scan_told((node, process), &scan, now);
        }
    }

    /// Finds the limit of which a node speaks, if it may: somebody's machine has it there now.
    fn limit_at(&self, node: DeviceId, usage: &Usage) -> Option<Limit> {
        // By subject: a busy node speaks of everybody whom it serves, every few seconds.
        self.leases_of.get(&usage.subject)?.iter().find_map(|device| {
            let lease = self
                .leases
                .get(device)
                .filter(|lease| lease.record.subject == usage.subject && lease.destinations.contains(&node))?;
            let mut given = lease.granted.iter().map(|granted| &granted.entitlement);
            let given = given.find(|given| {
                given.rule == usage.rule && given.resource == usage.resource && given.nodes.contains(&node)
            })?;
            let fits = |limit: &&Limit| (limit.measure, limit.within_ms) == (usage.measure, usage.within_ms);
            given.limits.iter().find(fits).copied()
        })
    }

    /// Takes in what a node says was used; returns the limit that this passes.
    fn usage_told(&mut self, node: DeviceId, process: u64, usage: Usage, now: Now) -> Option<(Limit, Usage)> {
        let records = self.registry.restraints_of(Restrained::Subject(usage.subject));
        let budget = |limit: &Limit| budget_of(records, &usage.rule, &usage.resource, limit, node);
        let Some(limit) = self.limit_at(node, &usage).filter(|limit| usage.budget == budget(limit)) else {
            self.counters.behaviour_refused += 1;
            return None;
        };
        (self.usages.hear(node, process, &usage, now.monotonic) > limit.most).then_some((limit, usage))
    }

    fn judge(&mut self, limit: &Limit, usage: &Usage, now: Now) {
        let mut sum = self.usages.sum(usage);
        while sum > limit.most {
            let Some(sayer) = self.usages.says_most(usage) else { return };
            if self.limit_passed(sayer, usage, now) == Word::Counts {
                return;
            }
            sum = self.usages.leave_out(sayer, usage);
        }
    }

    /// Answers a limit that was passed, mostly by what `sayer` says.
    fn limit_passed(&mut self, sayer: DeviceId, usage: &Usage, now: Now) -> Word {
        let known = self.policy.limit(&usage.rule, usage.measure, usage.within_ms, self.clock.latest(now));
        let Some((limit, response)) = known else { return Word::Counts };
        let whom = Restrained::Subject(usage.subject);
        let (accusers, most, response) = match response {
            LimitResponse::Challenge => {
                let (rule, resource) = (usage.rule.clone(), usage.resource.clone());
                let challenge = SignalResponse::Challenge(Reach::Access { rule, resource });
                (&mut self.challenged_subjects, MAX_CHALLENGED, Some(challenge))
            }
            LimitResponse::Alert => (&mut self.challenged_subjects, MAX_CHALLENGED, None),
            LimitResponse::Restrict(resources) => {
                (&mut self.accused_subjects, MAX_ACCUSED, Some(SignalResponse::Restrict(resources)))
            }
            LimitResponse::Terminate | LimitResponse::Quarantine => {
                (&mut self.accused_subjects, MAX_ACCUSED, Some(SignalResponse::Terminate))
            }
        };
        let kind = match usage.measure {
            Measure::Download | Measure::Upload => AlertKind::Volume,
            Measure::Connections => AlertKind::Rate,
        };
        let word = accusers.accuse(sayer, usage.subject, now.monotonic);
        if word != Word::Counts {
            self.counters.behaviour_refused += 1;
            let says = format!("of more than {most} subjects that they pass limits");
            self.not_believed(kind, sayer, word, &says, now);
            if let Some(SignalResponse::Challenge(_)) = response {
                self.challenge_there(sayer, &limit, usage, now);
            }
            return word;
        }
        // What is taken already is not taken again at every word of a node, each of which would be a record and an alert.
        let is_answered = match &response {
            Some(response) => self.is_taken(whom, response),
            None => !self.usages.may_alert(usage, now.monotonic),
        };
        let begun = begun(usage, None);
        if is_answered {
            match &response {
                Some(response @ (SignalResponse::Challenge(_) | SignalResponse::Terminate)) => {
                    self.begin_too(whom, response, begun, now);
                }
                Some(SignalResponse::Restrict(_)) | None => {}
            }
            return word;
        }
        let reason = format!("{}: more than {limit}", usage.resource);
        let name = self.registry.subject_name(usage.subject);
        let about = About { subject: Some(usage.subject), device: None, resource: Some(usage.resource.clone()) };
        let text = format!("{name}: more than {limit} of {} (rule \"{}\"): {}", usage.resource, usage.rule, limit.then);
        self.alert(kind, text, about, now);
        let Some(response) = response else { return word };
        self.usages.begin_limit_anew(usage);
        let by = format!("limit of rule \"{}\"", usage.rule);
        self.respond_without_telling(whom, response, Begins::Limit(begun), &reason, &by, now);
        word
    }

    /// Asks a fresh sign-in for what `node` gives, and for nothing else: it has shut that already, and nobody should stay there without a
    /// way out because it speaks of many.
    fn challenge_there(&mut self, node: DeviceId, limit: &Limit, usage: &Usage, now: Now) {
        let whom = Restrained::Subject(usage.subject);
        let has_shut = self.usages.said_by(node, usage) > limit.most;
        // Beyond this many, challenges become one of everything.
        let has_room = self.registry.restraints_of(whom).len() < MAX_OF_ONE;
        if !has_shut || !has_room || self.challenged_there.accuse(node, usage.subject, now.monotonic) != Word::Counts {
            return;
        }
        let (rule, resource) = (usage.rule.clone(), usage.resource.clone());
        let response = SignalResponse::Challenge(Reach::AccessOn { rule, resource, node });
        let begun = begun(usage, Some(node));
        if self.is_taken(whom, &response) {
            return self.begin_too(whom, &response, begun, now);
        }
        let reason = format!("{}: more than {limit}", usage.resource);
        let by = format!("limit of rule \"{}\", on {} alone", usage.rule, self.registry.machine_name(node));
        self.respond_without_telling(whom, response, Begins::Limit(begun), &reason, &by, now);
    }

    /// Says, once in a while, that a node speaks of too many for its word to count.
    fn not_believed(&mut self, kind: AlertKind, node: DeviceId, word: Word, says: &str, now: Now) {
        if word != Word::NewlyTooMany {
            return;
        }
        let machine = self.registry.machine_name(node);
        let within = postern_common::diagnostics::HumanDuration::new(ACCUSED_WITHIN);
        let text = format!("{machine} says {says} within {within}: no more follows from its word, look at it");
        self.alert(kind, text, About { device: Some(node), ..About::default() }, now);
    }

    fn scan_told(&mut self, (node, process): (DeviceId, u64), scan: &Scan, now: Now) {
        let device = scan.device.unwrap_or(node);
        // Who may open something on another machine must not accuse that one: only the other way round is asked of it.
        let lease = self.leases.get(&device).filter(|lease| device == node || lease.destinations.contains(&node));
        let limit = lease.and_then(|lease| lease.scan.clone());
        let limit = limit.filter(|limit| limit.rule == scan.rule && limit.budget == scan.budget);
        let response = limit.as_ref().and_then(|limit| self.policy.scan_response(&limit.rule, self.clock.latest(now)));
        let (Some(limit), Some(response)) = (limit, response) else {
            self.counters.behaviour_refused += 1;
            return;
        };
        let within = Duration::from_millis(limit.within_ms);
        let Some(subject) = self.registry.device(device).map(|device| device.owner) else { return };
        if scan.refused > limit.most {
            self.scans(device, node, (&limit, response), &scan.last, now);
            return;
        }
        // No scan at that node; it may be one together with what other nodes refused to this subject's machines. What a machine says of
        // itself is no part of it.
        if device == node {
            return;
        }
        let of = (subject, &limit.rule);
        let at = RefusedAt { device, node, last: scan.last };
        self.refused_lately.hear(of, (at, process), (scan.refused, within), now.monotonic);
        self.judge_sum(subject, (&limit, &response), now);
    }

    /// Answers that more was refused to a subject's machines together than passes. Who says most of it has to answer for it.
    fn judge_sum(&mut self, subject: SubjectId, (limit, response): (&ScanLimit, &LimitResponse), now: Now) {
        while let Some(most) = self.refused_lately.says_most(subject, &limit.rule) {
            if self.refused_lately.sum(subject, &limit.rule) <= limit.most.into() {
                return;
            }
            let RefusedAt { device, node, last } = most;
            // Whoever is removed by now has nothing to be closed.
            if self.registry.device(device).is_some()
                && self.scans(device, node, (limit, response.clone()), &last, now) == Word::Counts
            {
                return;
            }
            self.refused_lately.leave_out(subject, &limit.rule, (device, node));
        }
    }

    /// Does what follows when a machine scans, as `node` says, which refused it `last`; tells whether that word counts.
    fn scans(
        &mut self,
        device: DeviceId,
        node: DeviceId,
        (limit, response): (&ScanLimit, LimitResponse),
        last: &FiveTuple,
        now: Now,
    ) -> Word {
        let whom = Restrained::Device(device);
        let restraint = SignalResponse::of(response.clone());
        if restraint.as_ref().is_some_and(|restraint| self.is_taken(whom, restraint)) {
            return Word::Counts;
        }
        // Whoever talks to a server can make its programs ask for places that it may not reach. What a destination says counts.
        let of_server = self.registry.is_of_service(device) && device == node;
        if of_server && !self.may_alert_of_server(node, now) {
            return Word::Counts;
        }
        let word = if device == node { Word::Counts } else { self.accusers.accuse(node, device, now.monotonic) };
        if word != Word::Counts {
            self.counters.behaviour_refused += 1;
            self.not_believed(
                AlertKind::Scan,
                node,
                word,
                &format!("of more than {MAX_ACCUSED} machines that they scan"),
                now,
            );
            return word;
        }
        // Where it is only watched, an alert is all that follows, once in a while.
        if response == LimitResponse::Alert && !self.refused_lately.may_alert(ToldOf::Scan, device, now.monotonic) {
            return word;
        }
        let (machine, seen_by) = (self.registry.machine_name(device), self.registry.machine_name(node));
        let within = postern_common::diagnostics::HumanDuration::new(Duration::from_millis(limit.within_ms));
        let last = format!("{} {}/{}", last.destination, last.protocol, last.destination_port);
        let reason =
            format!("more than {} refused destinations within {within}, the last {last}, at {seen_by}", limit.most);
        let subject = self.registry.device(device).map(|device| device.owner);
        let name = subject.map(|subject| self.registry.subject_name(subject)).unwrap_or_default();
        let then = if of_server { Consequence::Alert } else { limit.then };
        let text = format!("{machine} of {name} scans: {reason} (rule \"{}\"): {then}", limit.rule);
        self.alert(AlertKind::Scan, text, About { subject, device: Some(device), resource: None }, now);
        if of_server {
            return word;
        }
        if let Some(subject) = subject {
            self.refused_lately.begin_anew(subject, &limit.rule);
        }
        let by = format!("limit \"{}\"", limit.rule);
        if response == LimitResponse::Alert {
            // The node tells of it until it counts anew; what was a scan while the limit was watched is none when the watch is over.
            self.begin_budgets_anew(whom, &reason, &by, now);
            self.decide(device, Extend::No, now);
        } else if response == LimitResponse::Quarantine {
            // Nodes that have shut it out open again when it is released.
            self.begin_budgets_anew(whom, &reason, &by, now);
            // It fails only if there are very many already; whoever is in quarantine has no lease, and does not come here.
            if let Err(error) = self.quarantine(Quarantined::Device(device), &reason, &by, now) {
                tracing::error!(%error, device = %device, "a machine that scans is not in quarantine");
                self.respond_without_telling(whom, SignalResponse::Terminate, Begins::Everything, &reason, &by, now);
            }
        } else if let Some(response) = restraint {
            self.respond_without_telling(whom, response, Begins::Everything, &reason, &by, now);
        }
        word
    }

    fn may_alert_of_server(&mut self, node: DeviceId, now: Now) -> bool {
        let Some(pace) = self.paces.get_mut(&node) else { return false };
        let due = pace.scan_told.is_none_or(|told| now.monotonic.since(told) >= ACCUSED_WITHIN);
        if due {
            pace.scan_told = Some(now.monotonic);
        }
        due
    }

    /// Does what follows when a machine speaks from another place than before, within one login session.
    pub(super) fn place_left(&mut self, id: DeviceId, was: &Place, is: &Place, now: Now) {
        let Some(device) = self.registry.device(id).cloned() else { return };
        let Some(context) = self.context_of(&device, now) else { return };
        let Some(limit) = self.policy.stay_limit(&context, was, is) else { return };
        let response = SignalResponse::of(limit.then.clone());
        // A service stays closed until it is released, and who was asked for a fresh sign-in was asked.
        if response.as_ref().is_some_and(|response| self.is_taken(Restrained::Device(id), response)) {
            return;
        }
        // Of a person's machine it is told in any case that it moved; of a service, what follows: whoever looks after it has to know.
        let of_service = self.registry.is_of_service(id);
        if of_service && (response.is_some() || self.refused_lately.may_alert(ToldOf::Move, id, now.monotonic)) {
            let name = self.registry.subject_name(device.owner);
            let text = format!(
                "{} of {name} speaks from {is}, and spoke from {was} before (rule \"{}\"): {}",
                device.name,
                limit.rule,
                limit.then.consequence()
            );
            let about = About { subject: Some(device.owner), device: Some(id), resource: None };
            self.alert(AlertKind::NewPlace, text, about, now);
        }
        let Some(response) = response else { return };
        let reason = format!("{} speaks from {is}, and spoke from {was} before", device.name);
        let by = format!("limit \"{}\"", limit.rule);
        // Whoever travels has been refused no less.
        self.respond_without_telling(Restrained::Device(id), response, Begins::Nothing, &reason, &by, now);
    }
}

/// Keeps of each count what is said of it last: a node has one number for each.
fn once_each(usages: Vec<Usage>) -> Vec<Usage> {
    let count = |usage: &Usage| (usage.subject, usage.measure, usage.within_ms);
    let mut once: Vec<Usage> = Vec::with_capacity(usages.len());
    for usage in usages {
        let is_same = |known: &&mut Usage| {
            count(known) == count(&usage) && known.rule == usage.rule && known.resource == usage.resource
        };
        match once.iter_mut().find(is_same) {
            Some(known) => *known = usage,
            None => once.push(usage),
        }
    }
    once
}

/// Names the count of a limit, on one node or everywhere.
fn begun(usage: &Usage, node: Option<DeviceId>) -> Begun {
    let Usage { subject: _, rule, resource, budget: _, measure, within_ms, used: _ } = usage.clone();
    Begun { rule, resource, measure, within_ms, node, budget: 0 }
}

impl SignalResponse {
    /// Turns what a limit on a machine's behaviour says into what is done; nothing for quarantine, which is more, and for an alert.
    fn of(response: LimitResponse) -> Option<Self> {
        match response {
            LimitResponse::Challenge => Some(Self::Challenge(Reach::Everything)),
            LimitResponse::Restrict(resources) => Some(Self::Restrict(resources)),
            LimitResponse::Terminate => Some(Self::Terminate),
            LimitResponse::Quarantine | LimitResponse::Alert => None,
        }
    }
}
