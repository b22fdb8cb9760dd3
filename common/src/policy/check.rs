//! The document's own `[[test]]` entries: who should, and who should not, reach what.
//!
//! A test that names no time (`at`) claims something of *every* time: `expect = "deny"` says that it is never allowed,
//! `expect = "allow"` that there are times at which it is. So hours and dates are then taken in favour of access.
//! There are no machines in a document; a test asks about one imagined machine for each node selector of the resource.

use std::collections::BTreeSet;

use toml::{Spanned, de::DeValue};

use super::{
    Audience, Destination, Policy,
    condition::Lens,
    evaluate::{Coverage, Evaluation},
    model::{Expect, NodeSelector, TestCase},
    place::Place,
    proof::Phishing,
    read::Reading,
    restraint::{Reach, Restraint},
    subject::{Assurance, RequestContext, Subject, TargetNode, Targets, UserIdentity},
};
use crate::{
    diagnostics::{
        Diagnostic,
        table::{TableReader, parse_at, text_of, wrong_type},
    },
    id::DeviceId,
    posture::{Facts, Report},
    time::WallTime,
};

/// The moment of a test that names none: the start of 2026. No condition looks at it.
const SOME_TIME: WallTime = WallTime::from_millis(1_767_225_600_000);

/// What came of one `[[test]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestOutcome {
    /// The test's name, or what it asks.
    pub name: String,
    /// Where it stands: `policy.toml:88`.
    pub location: String,
    /// Why it failed, with the explanation of the decision; absent if it passed.
    pub failure: Option<TestFailure>,
}

/// Why a test failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestFailure {
    /// What happened and what was expected.
    pub message: String,
    /// Why it happened.
    pub why: String,
    pub(super) span: std::ops::Range<usize>,
}

impl Reading {
    pub(super) fn test(&mut self, value: &Spanned<DeValue<'_>>) {
        let Some(mut table) = TableReader::of_value(value, "[[test]]", &mut self.diagnostics) else { return };
        let name = table.text("name", &mut self.diagnostics).map(|name| name.into_inner().to_owned());
        let who = table.take("as");
        if who.is_none() {
            let help = "add who asks, such as as = { user = \"bob\", groups = [\"ops\"] }";
            table.missing("as", help, &mut self.diagnostics);
        }
        let to = table.text("to", &mut self.diagnostics);
        if !table.has("to") {
            table.missing("to", "add the resource that is asked for", &mut self.diagnostics);
        }
        let to = to.and_then(|to| self.resource_named(&to));
        let service = table.parsed("port", &mut self.diagnostics).map(Spanned::into_inner);
        let expects = [("allow", Expect::Allow), ("deny", Expect::Deny), ("would-deny", Expect::WouldDeny)];
        let expect_span = table.take("expect").map_or(table.span(), Spanned::span);
        let expect = table.word("expect", &expects, &mut self.diagnostics);
        if !table.has("expect") {
            table.missing("expect", "add expect = \"allow\" or expect = \"deny\"", &mut self.diagnostics);
        }
        let at = self.date(&mut table, "at").map(Spanned::into_inner);
        let line = self.line(&table.span());
        let test = who.and_then(|who| self.asker(who)).zip(to).zip(expect).map(|((asker, to), expect)| TestCase {
            name,
            line,
            span: expect_span,
            at,
            to,
            service,
            expect,
            ..asker
        });
        table.finish(&mut self.diagnostics);
        self.model.tests.extend(test);
    }

    /// Reads `groups`: a list, which may be empty, or `"unknown"`.
    fn groups(&mut self, table: &mut TableReader<'_, '_>) -> Option<BTreeSet<String>> {
        let Some(value) = table.take("groups") else { return Some(BTreeSet::new()) };
        match value.get_ref() {
            DeValue::String(text) if text == "unknown" => None,
            DeValue::Array(list) => {
                let texts = list.iter().filter_map(|group| text_of(group, &mut self.diagnostics));
                Some(texts.map(|group| group.into_inner().to_owned()).collect())
            }
            other => {
                self.diagnostics.push(wrong_type(value.span(), "a list of groups, or \"unknown\"", other));
                None
            }
        }
    }

    /// Reads `as`; what it does not speak of is filled in by the caller.
    fn asker(&mut self, value: &Spanned<DeValue<'_>>) -> Option<TestCase> {
        let mut table = TableReader::of_value(value, "`as` of [[test]]", &mut self.diagnostics)?;
        let user = table.text("user", &mut self.diagnostics);
        let service = table.parsed("service", &mut self.diagnostics);
        let groups = self.groups(&mut table);
        let mfa_age = table.duration("mfa", &mut self.diagnostics).map(|age| age.into_inner().get());
        let phishing = match table.flag("phishing_resistant", &mut self.diagnostics) {
            Some(true) => Phishing::Resistant,
            Some(false) | None => Phishing::Any,
        };
        let acr = table.text("acr", &mut self.diagnostics).map(|class| class.into_inner().to_owned());
        let mut tags = BTreeSet::new();
        for tag in table.list("tags", &mut self.diagnostics).unwrap_or_default() {
            let name = tag.get_ref().strip_prefix("tag:").unwrap_or(tag.get_ref());
            tags.extend(parse_at::<crate::id::Tag>(tag.span(), name, &mut self.diagnostics));
        }
        let mut posture = Vec::new();
        for name in table.one_or_more("posture", &mut self.diagnostics).unwrap_or_default() {
            posture.extend(self.posture_named(&name));
        }
        let address = table.parsed("address", &mut self.diagnostics).map(Spanned::into_inner);
        let place = Place {
            country: table.parsed("country", &mut self.diagnostics).map(Spanned::into_inner),
            asn: table.parsed("asn", &mut self.diagnostics).map(Spanned::into_inner),
        };
        let challenged = table.flag("challenged", &mut self.diagnostics).unwrap_or(false);
        let challenged = challenged.then(|| "the test says that the sign-in is challenged".to_owned());
        let restricted_to = table.text("restricted_to", &mut self.diagnostics).and_then(|name| self.set_named(&name));
        let subject = match (user, service) {
            (Some(user), None) => {
                let identity = match user.get_ref().strip_prefix("oidc/") {
                    Some(sub) => UserIdentity::Oidc { issuer: String::new(), sub: sub.into() },
                    None => UserIdentity::Local { name: user.get_ref().to_string() },
                };
                let display_name = user.get_ref().to_string();
                Some(Subject::User { identity, display_name, groups, assurance: Assurance::default() })
            }
            (None, Some(service)) => Some(Subject::Service { name: service.into_inner() }),
            (Some(_), Some(_)) => {
                let both = Diagnostic::at(value.span(), "`as` names both a user and a service").help("keep one");
                self.diagnostics.push(both);
                None
            }
            (None, None) => {
                if !table.has("user") && !table.has("service") {
                    table.missing("user", "add user = \"NAME\" or service = \"NAME\"", &mut self.diagnostics);
                }
                None
            }
        };
        table.finish(&mut self.diagnostics);
        Some(TestCase {
            subject: subject?,
            mfa_age,
            phishing,
            acr,
            tags,
            posture,
            address,
            place,
            challenged,
            restricted_to,
            name: None,
            line: 0,
            span: value.span(),
            at: None,
            to: 0,
            service: None,
            expect: Expect::Deny,
        })
    }
}

impl Policy {
    /// Runs the document's tests. All of them passed when the document was parsed.
    pub fn run_tests(&self) -> Vec<TestOutcome> {
        self.model.tests.iter().map(|test| self.run_test(test)).collect()
    }

    fn run_test(&self, test: &TestCase) -> TestOutcome {
        let model = &self.model;
        let now = test.at.unwrap_or(SOME_TIME);
        let lens = if test.at.is_some() { Lens::Actual } else { Lens::AnyTime };
        let context = self.context_of(test, now);
        let resource = &model.resources[test.to];
        let evaluate = |targets: &Targets| {
            let evaluation = Evaluation::new(model, &context, targets, lens);
            let wanted = test.service.map_or_else(|| resource.services.clone(), |service| vec![service]);
            evaluation.coverage(test.to, &wanted)
        };
        let expected = match test.expect {
            Expect::Allow => Coverage::Earned,
            Expect::Deny => Coverage::Nothing,
            Expect::WouldDeny => Coverage::Lent,
        };
        let machines = resource.nodes.iter().map(imagined);
        let wrong = machines.map(|machine| (evaluate(&machine), machine)).find(|(got, _)| *got != expected);
        let what = match test.service {
            Some(service) => format!("{} -> {} {service}", context.subject, resource.name),
            None => format!("{} -> {}", context.subject, resource.name),
        };
        let failure = wrong.map(|(got, machine)| {
            let said = |coverage: Coverage| match coverage {
                Coverage::Earned => "allowed",
                Coverage::Nothing => "denied",
                Coverage::Lent => "passed by a rule that is only watched",
                Coverage::Partly => "allowed in part",
            };
            let to = Destination::Resource(resource.name.clone());
            let explanation = self.explain_through(lens, &context, &machine, &to, test.service, Audience::Operator);
            let at = explanation.location.map(|location| format!(" ({location})")).unwrap_or_default();
            TestFailure {
                message: format!("{what} is {}, and the test expects that it is {}", said(got), said(expected)),
                why: format!("{}{at}", explanation.reason),
                span: test.span.clone(),
            }
        });
        TestOutcome { name: test.name.clone().unwrap_or(what), location: model.location(test.line), failure }
    }

    fn restraints_of(&self, test: &TestCase, now: WallTime) -> Vec<Restraint> {
        let challenge = test.challenged.iter().map(|reason| {
            let reason = reason.clone();
            Restraint::Challenge { reach: Reach::Everything, since: now, reason, whom: "subject".into() }
        });
        let only = test.restricted_to.iter().map(|set| Restraint::Only {
            resources: self.set(*set),
            reason: format!("the test says that only \"{}\" is left", self.model.sets[*set].name),
            whom: "subject".into(),
        });
        challenge.chain(only).collect()
    }

    fn context_of(&self, test: &TestCase, now: WallTime) -> RequestContext {
        let mut subject = test.subject.clone();
        if let Subject::User { assurance, .. } = &mut subject {
            let methods = match (test.mfa_age, test.phishing) {
                (Some(_), Phishing::Resistant) => &["hwk", "mfa"][..],
                (Some(_), Phishing::Any) => &["pwd", "otp", "mfa"],
                (None, Phishing::Resistant) => &["hwk"],
                (None, Phishing::Any) => &["pwd"],
            };
            let age = i64::try_from(test.mfa_age.unwrap_or_default().as_millis()).unwrap_or(i64::MAX);
            *assurance = Assurance {
                auth_time: Some(WallTime::from_millis(now.as_millis().saturating_sub(age))),
                acr: test.acr.clone(),
                amr: Some(methods.iter().map(|method| (*method).to_owned()).collect()),
            };
        }
        let (mut own, mut attested) = (Facts::default(), Facts::default());
        for posture in &test.posture {
            let (more, vouched) = self.model.postures[*posture].1.minimal_facts();
            (own, attested) = (own.with(more), attested.with(vouched));
        }
        let report = |facts| (!test.posture.is_empty()).then_some(Report { facts, observed_at: now });
        RequestContext {
            subject,
            device: None,
            machine: None,
            tags: test.tags.clone(),
            posture: report(own),
            attested: report(attested),
            machine_approved: true,
            approved: vec![],
            restraints: self.restraints_of(test, now),
            address: test.address,
            place: test.place,
            also: vec![],
            now,
            instead: None,
        }
    }
}

fn imagined(node: &NodeSelector) -> Targets {
    let name = |name: &str| name.parse().expect("a name without odd characters");
    Targets::new([match node {
        NodeSelector::Name(name) => {
            TargetNode { device: DeviceId::from_bytes([0; 16]), name: name.clone(), tags: BTreeSet::new() }
        }
        NodeSelector::Tag(tag) => TargetNode {
            device: DeviceId::from_bytes([0; 16]),
            name: name("imagined-machine"),
            tags: BTreeSet::from([tag.clone()]),
        },
    }])
}
