//! Properties over generated documents and askers, and agreement with a slow reference.
//!
//! The reference asks, for one node and port at a time and without any index: does some access hold, and does no deny
//! cover it? It is written from the guide and shares only the conditions' own evaluation with the real one.

use std::fmt::Write;

use proptest::prelude::*;

use super::*;
use crate::{
    grant::Mode,
    net::{Protocol, Service},
    policy::{Truth, condition::Lens, model::DenyTo},
};

const GROUPS: [&str; 3] = ["a", "b", "c"];
const FROM: [&str; 7] = ["group:a", "group:b", "group:c", "user:ann", "user:*", "tag:t", "service:s"];
const TO: [&str; 4] = ["r0", "r1", "r2", "r3"];
const WHEN: [&str; 7] = [
    "",
    "when = { mfa_within = \"1h\" }",
    "when = { posture = \"p\" }",
    "when = { network = \"192.0.2.0/24\", mfa_within = \"99d\" }",
    "when = { hours = \"Mon 08:00-12:00 UTC\" }",
    "when = { hours = \"Mon 10:00-12:00 UTC\", posture = \"p\" }",
    "starts = 2026-11-23T09:30:00Z",
];
const MODES: [&str; 3] =
    ["", "mode = \"monitor\"\nmonitor_until = 2026-12-01", "mode = \"monitor\"\nmonitor_until = 2026-11-01"];
const UNLESS: [&str; 3] = ["", "unless = { posture = \"p\" }", "unless = { network = \"192.0.2.0/24\" }"];

const RESOURCES: &str = r#"
[posture.p]
disk_encrypted = true
[resource.r0]
node = "n0"
ports = ["tcp/10-20"]
[resource.r1]
nodes = ["tag:x"]
ports = ["tcp/15", "udp/15"]
[resource.r2]
nodes = ["n0", "n1"]
ports = ["tcp/*"]
[resource.r3]
node = "n2"
ports = ["udp/10-20", "icmp"]
"#;

/// A rule of a generated document: indexes into the tables above.
type Rule = (Vec<usize>, Vec<usize>, usize, usize, usize);

fn rule() -> impl Strategy<Value = Rule> {
    let some = |most: usize| proptest::collection::vec(0..most, 1..3);
    (some(FROM.len()), some(TO.len()), 0..WHEN.len(), 0..MODES.len(), 0..UNLESS.len())
}

fn document(access: &[Rule], deny: &[Rule]) -> String {
    let mut text = RESOURCES.to_owned();
    let mut write = |kind: &str, index: usize, (from, to, when, mode, unless): &Rule| {
        let from: Vec<&str> = from.iter().map(|i| FROM[*i]).collect();
        let to: Vec<&str> = to.iter().map(|i| TO[*i]).collect();
        let unless = if kind == "deny" { UNLESS[*unless] } else { "" };
        let _ = writeln!(text, "[[{kind}]]\nname = \"{kind} {index}\"\nfrom = {from:?}\nto = {to:?}");
        let _ = writeln!(text, "{}\n{}\n{unless}", WHEN[*when], MODES[*mode]);
    };
    access.iter().enumerate().for_each(|(index, rule)| write("access", index, rule));
    deny.iter().enumerate().for_each(|(index, rule)| write("deny", index, rule));
    text
}

fn asker() -> impl Strategy<Value = RequestContext> {
    let groups = proptest::option::weighted(0.8, proptest::collection::btree_set(0..GROUPS.len(), 0..3));
    let options = (any::<bool>(), any::<bool>(), 0..4u8, 0..3u8, 0..3u8, 0..6i64, any::<bool>());
    (groups, options).prop_map(|(groups, (is_service, tagged, proof, disk, place, half_hours, own))| {
        let mut context = if is_service { service("s") } else { person("ann", &[], MONDAY) };
        context.now = WallTime::from_millis(at("2026-11-23T07:45:00Z").as_millis() + half_hours * 2_700_000);
        if let Subject::User { groups: mine, assurance, .. } = &mut context.subject {
            *mine = groups.map(|groups| groups.into_iter().map(|group| GROUPS[group].to_owned()).collect());
            assurance.auth_time =
                [None, Some(context.now), Some(at("2026-11-23T06:00:00Z")), Some(context.now)][usize::from(proof)];
            assurance.amr = (proof != 3).then(|| set(&["mfa"]));
        }
        if tagged {
            context.tags.insert("t".parse().expect("a tag"));
        }
        let facts = Facts { disk_encrypted: [Some(true), Some(false), None][usize::from(disk)], ..Facts::default() };
        context.posture = Some(Report { facts, observed_at: context.now });
        context.address = [Some("192.0.2.1"), Some("198.51.100.1"), None][usize::from(place)]
            .map(|address| address.parse().expect("an address"));
        context.device = own.then(|| device(1));
        context
    })
}

fn nodes() -> Targets {
    Targets::new([node(0, "n0", &["x"]), node(1, "n1", &[]), node(2, "n2", &["x"]), node(3, "n3", &[])])
}

const PORTS: [(Protocol, u16); 10] = [
    (Protocol::Tcp, 9),
    (Protocol::Tcp, 10),
    (Protocol::Tcp, 15),
    (Protocol::Tcp, 16),
    (Protocol::Tcp, 20),
    (Protocol::Tcp, 21),
    (Protocol::Udp, 10),
    (Protocol::Udp, 15),
    (Protocol::Udp, 16),
    (Protocol::Icmp, 0),
];

/// How something may be reached, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    No,
    Lent,
    Earned,
}

fn by_entitlements(policy: &Policy, context: &RequestContext, node: u8, port: (Protocol, u16)) -> Reach {
    let entitlements = policy.entitlements(context, &nodes());
    let touching = entitlements.iter().filter(|entitlement| {
        entitlement.nodes.contains(&device(node))
            && entitlement.services.iter().any(|s: &Service| s.contains(port.0, port.1))
    });
    let reach = touching.map(|entitlement| match entitlement.mode {
        Mode::Enforce => Reach::Earned,
        Mode::Monitor { .. } => Reach::Lent,
    });
    reach.max().unwrap_or(Reach::No)
}

fn by_reference(policy: &Policy, context: &RequestContext, number: u8, port: (Protocol, u16)) -> Reach {
    let (model, targets) = (&*policy.model, nodes());
    if context.device == Some(device(number)) {
        return Reach::No;
    }
    let this = targets.node(device(number)).expect("a node");
    let covers = |resource: usize| {
        let resource = &model.resources[resource];
        let on_node = resource.nodes.iter().any(|place| match place {
            super::super::NodeSelector::Name(name) => *name == this.name,
            super::super::NodeSelector::Tag(tag) => this.tags.contains(tag),
        });
        on_node && resource.services.iter().any(|service| service.contains(port.0, port.1))
    };
    let holds = |when: Option<usize>| {
        when.map_or(Truth::True, |when| model.whens[when].state(model, context, Lens::Actual, Truth::True).truth)
    };
    let alive = |life: super::super::model::Life| {
        life.starts.is_none_or(|starts| starts <= context.now)
            && life.expires.is_none_or(|expires| expires > context.now)
    };
    let watched = |until: Option<WallTime>| until.is_some_and(|until| until > context.now);
    let mut reach = Reach::No;
    for access in &model.access {
        let named = access.from.iter().any(|selector| selector.matches(context) == Truth::True);
        if named && alive(access.life) && access.to.iter().any(|resource| covers(*resource)) {
            reach = reach.max(match holds(access.when) {
                Truth::True => Reach::Earned,
                Truth::False | Truth::Unknown if watched(access.monitor_until) => Reach::Lent,
                Truth::False | Truth::Unknown => Reach::No,
            });
        }
    }
    for deny in &model.deny {
        let named = deny.from.iter().any(|selector| selector.matches(context) != Truth::False);
        let to = match &deny.to {
            DenyTo::Everything => true,
            DenyTo::Resources(resources) => resources.iter().any(|resource| covers(*resource)),
        };
        let applies =
            holds(deny.when) != Truth::False && deny.unless.is_none_or(|unless| holds(Some(unless)) != Truth::True);
        if named && to && applies && alive(deny.life) {
            reach = reach.min(if watched(deny.monitor_until) { Reach::Lent } else { Reach::No });
        }
    }
    reach
}

fn everywhere() -> impl Iterator<Item = (u8, (Protocol, u16))> {
    (0..4).flat_map(|node| PORTS.into_iter().map(move |port| (node, port)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_indexed_evaluator_agrees_with_the_reference(
        access in proptest::collection::vec(rule(), 0..5),
        deny in proptest::collection::vec(rule(), 0..4),
        context in asker(),
    ) {
        let policy = policy(&document(&access, &deny));
        for (node, port) in everywhere() {
            prop_assert_eq!(
                by_entitlements(&policy, &context, node, port),
                by_reference(&policy, &context, node, port),
                "node {} port {:?}", node, port
            );
        }
    }

    #[test]
    fn a_deny_never_adds_and_an_access_never_takes_away(
        access in proptest::collection::vec(rule(), 1..5),
        deny in proptest::collection::vec(rule(), 1..4),
        context in asker(),
    ) {
        let all = policy(&document(&access, &deny));
        let fewer_denies = policy(&document(&access, &deny[1..]));
        let fewer_accesses = policy(&document(&access[1..], &deny));
        for (node, port) in everywhere() {
            let reach = by_entitlements(&all, &context, node, port);
            prop_assert!(reach <= by_entitlements(&fewer_denies, &context, node, port));
            prop_assert!(reach >= by_entitlements(&fewer_accesses, &context, node, port));
        }
    }

    #[test]
    fn to_know_less_never_gives_more(
        access in proptest::collection::vec(rule(), 1..5),
        deny in proptest::collection::vec(rule(), 0..4),
        context in asker(),
    ) {
        let policy = policy(&document(&access, &deny));
        let mut ignorant = context.clone();
        (ignorant.posture, ignorant.address) = (None, None);
        if let Subject::User { groups, assurance, .. } = &mut ignorant.subject {
            (*groups, *assurance) = (None, Assurance::default());
        }
        for (node, port) in everywhere() {
            prop_assert!(
                by_entitlements(&policy, &ignorant, node, port) <= by_entitlements(&policy, &context, node, port)
            );
        }
    }

    #[test]
    fn an_answer_holds_until_the_moment_that_it_names(
        access in proptest::collection::vec(rule(), 1..5),
        deny in proptest::collection::vec(rule(), 0..4),
        context in asker(),
        fraction in 0.0..1.0f64,
    ) {
        let policy = policy(&document(&access, &deny));
        for entitlement in policy.entitlements(&context, &nodes()) {
            prop_assert!(entitlement.valid_until > context.now);
            let most = context.now.saturating_add(std::time::Duration::from_secs(20_000));
            let span = entitlement.valid_until.min(most).as_millis() - context.now.as_millis() - 1;
            let mut later = context.clone();
            later.now = WallTime::from_millis(context.now.as_millis() + (span as f64 * fraction) as i64);
            let held = if entitlement.mode == Mode::Enforce { Reach::Earned } else { Reach::Lent };
            for node in 0..4 {
                for port in PORTS.into_iter().filter(|_| entitlement.nodes.contains(&device(node))) {
                    if entitlement.services.iter().any(|service| service.contains(port.0, port.1)) {
                        let reach = by_reference(&policy, &later, node, port);
                        prop_assert!(reach >= held, "{:?} at {} on {}", entitlement, later.now, node);
                    }
                }
            }
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}", cut in 0usize..3000, insert in "[\\[\\]{}=\"'.,\n a-z0-9:*-]{0,8}") {
        let _ = Policy::parse("p", &text).map_err(|mistakes| mistakes.to_string());
        let at = cut.min(PAYROLL.len());
        let broken = format!("{}{insert}{}", &PAYROLL[..at], &PAYROLL[at..]);
        let _ = Policy::parse("p", &broken).map_err(|mistakes| mistakes.to_string());
        let _ = Policy::parse("p", &PAYROLL[..at]).map_err(|mistakes| mistakes.to_string());
    }
}
