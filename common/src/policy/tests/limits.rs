//! Limits as the document says them, and restraints as a decision sees them.

use std::collections::BTreeSet;

use super::{
    super::{Destination, LimitChange, LimitResponse, Reach, Restraint},
    *,
};
use crate::{
    id::ResourceName,
    limit::{Consequence, Measure},
    policy::{Audience, Country, Place},
    protocol::Explanation,
};

const LIMITED: &str = r#"
[resource.wiki]
node = "wiki-1"
ports = ["tcp/443"]
[resource.git]
node = "git-1"
ports = ["tcp/22"]
[resource.payroll]
node = "payroll-1"
ports = ["tcp/443"]

[set.basics]
resources = ["wiki"]

[[access]]
name = "wiki"
from = ["user:*"]
to = ["wiki"]

[[access]]
name = "git"
from = ["group:engineers", "service:build"]
to = ["git"]
limits = [
    { upload = "50MiB/10m", connections = "600/m", on_exceed = "restrict", restrict_to = "basics" },
    { download = "2GiB/h", on_exceed = "terminate" },
]

[[access]]
name = "payroll"
from = ["group:engineers"]
to = ["payroll"]
when = { mfa_within = "12h" }
limits = { download = "100MB/d", on_exceed = "challenge" }

[[limit]]
name = "machines that scan"
from = ["user:*", "service:*"]
refused = "20/m"
on_exceed = "quarantine"

[[limit]]
name = "engineers that scan"
from = ["group:engineers"]
refused = "10/m"
on_exceed = "restrict"
restrict_to = "basics"

[[limit]]
name = "nobody jumps between countries"
from = ["user:*"]
stay_in = "country"
on_exceed = "challenge"
"#;

fn name(text: &str) -> ResourceName {
    text.parse().expect("a name")
}

fn engineer() -> RequestContext {
    person("alice", &["engineers"], MONDAY)
}

fn ask(policy: &Policy, context: &RequestContext, to: &str) -> Explanation {
    policy.explain(context, &machines(), &Destination::Resource(name(to)), None, Audience::Subject)
}

fn challenge(reach: Reach, since: &str) -> Restraint {
    Restraint::Challenge {
        reach,
        since: at(since),
        reason: "git: more than 2GiB down within 1 h".into(),
        whom: "subject alice".into(),
    }
}

fn of_git() -> Reach {
    Reach::Access { rule: "git".parse().expect("a name"), resource: name("git") }
}

#[test]
fn limits_reach_the_entitlements_with_what_follows_from_each() {
    let policy = policy(LIMITED);
    let given = policy.entitlements(&engineer(), &machines());
    let of = |resource: &str| {
        let entitlement = given.iter().find(|entitlement| entitlement.resource.as_str() == resource).expect("given");
        entitlement.limits.iter().map(|limit| format!("{limit}: {:?}", limit.then)).collect::<Vec<_>>()
    };
    assert!(of("wiki").is_empty());
    assert_eq!(
        of("git"),
        [
            "50MiB up within 10 min: Restrict",
            "600 connections within 1 min: Restrict",
            "2GiB down within 1 h: Terminate"
        ]
    );
    assert_eq!(of("payroll"), ["100MB down within 1 d: Challenge"]);
    let rule = "git".parse().expect("a name");
    let (_, response) = policy.limit(&rule, Measure::Upload, 600_000, at(MONDAY)).expect("it is limited");
    assert_eq!(response, LimitResponse::Restrict(BTreeSet::from([name("wiki")])));
    assert_eq!(policy.limit(&rule, Measure::Upload, 60_000, at(MONDAY)), None);
    let because = ask(&policy, &engineer(), "git").because;
    assert!(
        because.iter().any(|line| line == "at most 2GiB down within 1 h; beyond that the session ends"),
        "{because:?}"
    );
}

#[test]
fn a_watched_rule_only_raises_an_alert() {
    let watched =
        LIMITED.replace("name = \"git\"\n", "name = \"git\"\nmode = \"monitor\"\nmonitor_until = \"2027-01-31\"\n");
    let policy = policy(&watched);
    let given = policy.entitlements(&engineer(), &machines());
    let git = given.iter().find(|entitlement| entitlement.resource.as_str() == "git").expect("given");
    assert!(git.limits.iter().all(|limit| limit.then == Consequence::Alert));
    let rule = "git".parse().expect("a name");
    let response = |now| policy.limit(&rule, Measure::Download, 3_600_000, at(now)).map(|(_, response)| response);
    assert_eq!(response(MONDAY), Some(LimitResponse::Alert));
    assert_eq!(response("2027-02-01T00:00:00Z"), Some(LimitResponse::Terminate), "the watch is over");
}

#[test]
fn a_limit_that_is_only_watched_raises_an_alert_until_a_day_and_hides_none_that_is_not() {
    let watch = "mode = \"monitor\"\nmonitor_until = \"2027-01-31\"\n";
    let stay = r#"
[[limit]]
name = "the network stays"
from = ["user:*"]
stay_in = "asn"
on_exceed = "terminate"
"#;
    let text = format!(
        "{}{}{watch}",
        LIMITED.replace("name = \"engineers that scan\"\n", &format!("name = \"engineers that scan\"\n{watch}")),
        stay
    );
    let policy = policy(&text);
    let later = |context: RequestContext| RequestContext { now: at("2027-02-01T00:00:00Z"), ..context };
    let limit = |context: &RequestContext| policy.scan_limit(context).map(|limit| (limit.rule.to_string(), limit.most));
    assert_eq!(limit(&engineer()), Some(("machines that scan".into(), 20)), "the one that is enforced");
    assert_eq!(limit(&later(engineer())), Some(("engineers that scan".into(), 10)), "the watch is over");
    let rule = "engineers that scan".parse().expect("a name");
    assert_eq!(policy.scan_response(&rule, at(MONDAY)), Some(LimitResponse::Alert));
    assert_ne!(policy.scan_response(&rule, at("2027-02-01T00:00:00Z")), Some(LimitResponse::Alert));
    let place = |country: &str, asn| Place {
        country: Some(country.parse::<Country>().expect("a country")),
        asn: Some(crate::policy::AutonomousSystem(asn)),
    };
    let left = |context: &RequestContext, now: Place| {
        policy.stay_limit(context, &place("DE", 1), &now).map(|limit| limit.then)
    };
    assert_eq!(left(&engineer(), place("DE", 2)), Some(LimitResponse::Alert));
    assert_eq!(left(&later(engineer()), place("DE", 2)), Some(LimitResponse::Terminate));
    assert_eq!(left(&engineer(), place("FR", 2)), Some(LimitResponse::Challenge), "what is enforced counts before it");
    assert_eq!(policy.watched_rules().count(), 2, "and it is said loudly");
    let enforced = super::super::Policy::parse("policy.toml", &text.replace(watch, "")).expect("a policy");
    let changes = policy.limit_changes(&enforced, &[engineer()], at(MONDAY));
    assert_eq!(changes.len(), 2, "a plan shows the end of a watch: {changes:?}");
}

#[test]
fn the_strictest_limit_on_scans_counts_and_unknown_groups_free_nobody() {
    let policy = policy(LIMITED);
    let limit = |context: &RequestContext| policy.scan_limit(context).map(|limit| (limit.rule.to_string(), limit.most));
    assert_eq!(limit(&engineer()), Some(("engineers that scan".into(), 10)));
    assert_eq!(limit(&person("bob", &["sales"], MONDAY)), Some(("machines that scan".into(), 20)));
    assert_eq!(limit(&service("build")), Some(("machines that scan".into(), 20)));
    let mut unknown = person("eve", &[], MONDAY);
    forget_groups(&mut unknown);
    assert_eq!(limit(&unknown), Some(("engineers that scan".into(), 10)));
}

#[test]
fn leaving_the_country_is_noticed_where_a_rule_says_so() {
    let policy = policy(LIMITED);
    let place = |country: Option<&str>, asn: Option<u32>| Place {
        country: country.map(|country| country.parse::<Country>().expect("a country")),
        asn: asn.map(crate::policy::AutonomousSystem),
    };
    let left = |before: Place, now: Place| policy.stay_limit(&engineer(), &before, &now).map(|limit| limit.then);
    assert_eq!(left(place(Some("DE"), Some(1)), place(Some("FR"), Some(1))), Some(LimitResponse::Challenge));
    assert_eq!(left(place(Some("DE"), Some(1)), place(Some("DE"), Some(2))), None, "the rule speaks of countries");
    assert_eq!(left(place(Some("DE"), None), place(None, None)), None, "unknown is no other place");
    let moved = (place(Some("DE"), None), place(Some("FR"), None));
    assert_eq!(policy.stay_limit(&service("build"), &moved.0, &moved.1), None, "nor a rule for services");
}

#[test]
fn a_challenge_takes_what_it_reaches_until_a_later_sign_in() {
    let policy = policy(LIMITED);
    let mut context = engineer();
    context.restraints = vec![challenge(of_git(), MONDAY)];
    let resources = |context: &RequestContext| {
        let given = policy.entitlements(context, &machines()).into_iter();
        given.map(|entitlement| entitlement.resource.to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(resources(&context), "wiki payroll");
    let refused = ask(&policy, &context, "git");
    assert_eq!(refused.reason, "git: more than 2GiB down within 1 h; rule \"git\" asks for a fresh sign-in");
    assert_eq!(refused.fix.as_deref(), Some("postern step-up git"));
    let offers = policy.step_ups(&context, &machines());
    assert_eq!(offers.len(), 1);
    assert_eq!(offers[0].demand.words(), "a fresh sign-in (git: more than 2GiB down within 1 h)");
    for (auth_time, opens) in [
        (Some("2026-11-23T07:59:59Z"), false),
        (Some(MONDAY), false),
        (None, false),
        (Some("2026-11-23T18:00:00Z"), false),
    ] {
        assurance(&mut context).auth_time = auth_time.map(at);
        assert_eq!(resources(&context).contains("git"), opens, "{auth_time:?}");
    }
    let later = WallTime::from_millis(at(MONDAY).as_millis() + 1_000);
    (context.now, assurance(&mut context).auth_time) = (later, Some(later));
    assert_eq!(resources(&context), "wiki git payroll", "proven after it");
    context.restraints.push(challenge(Reach::Everything, MONDAY));
    assert_eq!(resources(&context), "wiki git payroll");
    assurance(&mut context).auth_time = Some(at(MONDAY));
    assert_eq!(resources(&context), "");
}

#[test]
fn a_challenge_of_one_machine_closes_that_one_and_the_offer_names_it_alone() {
    let policy = policy(&LIMITED.replace("node = \"git-1\"", "nodes = [\"tag:server\"]"));
    let tagged = |context: &RequestContext| {
        let given = policy.entitlements(context, &machines()).into_iter();
        given.filter(|given| given.resource == name("git")).flat_map(|given| given.nodes).collect::<BTreeSet<_>>()
    };
    let mut context = engineer();
    let before = tagged(&context);
    assert!(before.len() > 1, "several machines are this resource: {before:?}");
    let node = *before.first().expect("one of them");
    let rule = "git".parse().expect("a name");
    context.restraints = vec![challenge(Reach::AccessOn { rule, resource: name("git"), node }, MONDAY)];
    let left: BTreeSet<_> = before.iter().copied().filter(|other| *other != node).collect();
    assert_eq!(tagged(&context), left);
    let offers = policy.step_ups(&context, &machines());
    assert_eq!((offers.len(), &offers[0].nodes), (1, &vec![node]));
    assert_eq!(offers[0].demand.words(), "a fresh sign-in (git: more than 2GiB down within 1 h)");
    let told = ask(&policy, &context, "git");
    assert!(told.allowed && told.because.iter().any(|line| line.starts_with("not on ")), "{told:?}");
    let ssh = Some("tcp/22".parse().expect("a service"));
    let there = policy.explain(&context, &machines(), &Destination::Node(node), ssh, Audience::Subject);
    assert!(!there.allowed && there.reason.starts_with("git: more than 2GiB down"), "{there:?}");
    let later = WallTime::from_millis(at(MONDAY).as_millis() + 1_000);
    (context.now, assurance(&mut context).auth_time) = (later, Some(later));
    assert_eq!(tagged(&context), before);
}

#[test]
fn a_restriction_leaves_the_set_and_no_proof_lifts_it() {
    let policy = policy(LIMITED);
    let mut context = engineer();
    context.restraints = vec![Restraint::Only {
        resources: [name("wiki")].into(),
        reason: "it uploads too much".into(),
        whom: "device alice-laptop".into(),
    }];
    assert_eq!(given(&policy, &context).len(), 1);
    assert!(policy.step_ups(&context, &machines()).is_empty());
    let refused = ask(&policy, &context, "payroll");
    assert!(!refused.allowed, "{refused:?}");
    assert_eq!(refused.fix.as_deref(), Some("ask your administrator"));
    let to = Destination::Resource(name("payroll"));
    let told = policy.explain(&context, &machines(), &to, None, Audience::Operator);
    assert_eq!(told.fix.as_deref(), Some("postern-controller restraint release device alice-laptop"));
    assert!(refused.reason.starts_with("it uploads too much; rule \"payroll\" gives nothing"), "{}", refused.reason);
    assert!(ask(&policy, &context, "wiki").allowed);
}

#[test]
fn a_watched_rule_lends_no_way_round_a_restraint_and_a_service_stays_closed() {
    let watched =
        LIMITED.replace("name = \"git\"\n", "name = \"git\"\nmode = \"monitor\"\nmonitor_until = \"2027-01-31\"\n");
    let policy = policy(&watched);
    for mut context in [engineer(), service("build")] {
        assert!(ask(&policy, &context, "git").allowed);
        context.restraints = vec![challenge(of_git(), MONDAY)];
        assert!(!ask(&policy, &context, "git").allowed);
    }
    let mut context = service("build");
    context.restraints = vec![challenge(Reach::Everything, MONDAY)];
    let refused = ask(&policy, &context, "git");
    assert!(refused.reason.contains("until an administrator releases it"), "{refused:?}");
    assert_eq!(refused.fix.as_deref(), Some("ask your administrator"));
    let to = Destination::Resource(name("git"));
    let told = policy.explain(&context, &machines(), &to, None, Audience::Operator);
    assert_eq!(told.fix.as_deref(), Some("postern-controller restraint release subject alice"));
    assert!(policy.step_ups(&context, &machines()).is_empty());
}

#[test]
fn a_document_tests_what_is_left_under_a_restraint() {
    let tested = |who: &str, to: &str, expect: &str| {
        let test = format!("[[test]]\nas = {{ {who} }}\nto = \"{to}\"\nexpect = \"{expect}\"\n");
        Policy::parse("policy.toml", &format!("{LIMITED}\n{test}")).map_err(|wrong| wrong.to_string())
    };
    for (who, to, expect) in [
        ("user = \"bob\", groups = [\"engineers\"]", "git", "allow"),
        ("user = \"bob\", groups = [\"engineers\"], challenged = true", "git", "deny"),
        ("user = \"bob\", groups = [\"engineers\"], restricted_to = \"basics\"", "git", "deny"),
        ("user = \"bob\", groups = [\"engineers\"], restricted_to = \"basics\"", "wiki", "allow"),
        ("service = \"build\", challenged = true", "git", "deny"),
    ] {
        tested(who, to, expect).map(drop).unwrap_or_else(|wrong| panic!("{who}: {wrong}"));
        let other = if expect == "allow" { "deny" } else { "allow" };
        assert!(tested(who, to, other).is_err(), "{who}");
    }
    let wrong = tested("user = \"bob\", restricted_to = \"basic\"", "git", "deny").map(drop).expect_err("no such set");
    assert!(wrong.contains("did you mean \"basics\""), "{wrong}");
}

#[test]
fn a_mistake_in_a_limit_says_what_is_meant() {
    let limits = "limits = { download = \"100MB/d\", on_exceed = \"challenge\" }";
    let scan = "refused = \"20/m\"\non_exceed = \"quarantine\"";
    for (from, to, said) in [
        (limits, "limits = { download = \"2GiB\", on_exceed = \"challenge\" }", "within how long"),
        (limits, "limits = { download = \"2GiB/0s\", on_exceed = \"challenge\" }", "use \"10s\" to \"7d\""),
        (limits, "limits = { download = \"2GiB/9d\", on_exceed = \"challenge\" }", "use \"10s\" to \"7d\""),
        (limits, "limits = { download = \"99999999999TiB/h\", on_exceed = \"challenge\" }", "is not a size"),
        (
            limits,
            "limits = { connections = \"99999999999999999999999/h\", on_exceed = \"challenge\" }",
            "more than can be counted",
        ),
        (limits, "limits = { download = \"0B/h\", on_exceed = \"challenge\" }", "lets nothing pass"),
        (limits, "limits = { download = \"600/h\", on_exceed = \"challenge\" }", "counts bytes"),
        (limits, "limits = { connections = \"2GiB/h\", on_exceed = \"challenge\" }", "counts how often"),
        (limits, "limits = { on_exceed = \"challenge\" }", "limit nothing"),
        (limits, "limits = { download = \"2GiB/h\", on_exceed = \"chalenge\" }", "did you mean \"challenge\""),
        (limits, "limits = { download = \"2GiB/h\", on_exceed = \"quarantine\" }", "is not a value of `on_exceed`"),
        (limits, "limits = { download = \"2GiB/h\", on_exceed = \"restrict\" }", "has no `restrict_to`"),
        (
            limits,
            "limits = { download = \"2GiB/h\", on_exceed = \"challenge\", restrict_to = \"basics\" }",
            "belongs to",
        ),
        (
            limits,
            "limits = { download = \"2GiB/h\", on_exceed = \"restrict\", restrict_to = \"basic\" }",
            "did you mean \"basics\"",
        ),
        (
            limits,
            "limits = [{ download = \"2GiB/h\", on_exceed = \"challenge\" }, { download = \"1GiB/h\", on_exceed = \"terminate\" }]",
            "the same twice",
        ),
        (limits, "limits = { refused = \"20/m\", on_exceed = \"challenge\" }", "write a [[limit]]"),
        ("resources = [\"wiki\"]", "resources = [\"wiki\", \"git\"]", "holds git, of which this is a limit"),
        ("resources = [\"wiki\"]", "resources = [\"wikki\"]", "did you mean \"wiki\""),
        ("to = [\"payroll\"]", "to = [\"git\"]", ""),
        ("on_exceed = \"restrict\", restrict_to = \"basics\"", "on_exceed = \"challenge\"", "which cannot sign in"),
        (scan, "on_exceed = \"quarantine\"", "watches one thing"),
        (scan, "refused = \"20/m\"\nstay_in = \"asn\"\non_exceed = \"terminate\"", "watches one thing"),
        (scan, "refused = \"100000/m\"\non_exceed = \"quarantine\"", "too many to remember"),
        (scan, "stay_in = \"town\"\non_exceed = \"terminate\"", "is not a kind of place"),
        (scan, "stay_in = \"asn\"\non_exceed = \"quarantine\"", "is not a value of `on_exceed`"),
        (scan, "refused = \"20/m\"\non_exceed = \"challenge\"", "which cannot sign in"),
    ] {
        let text = LIMITED.replacen(from, to, 1);
        assert!(text != LIMITED, "{from}");
        match Policy::parse("policy.toml", &text) {
            Ok(_) => assert_eq!(said, "", "{to}"),
            Err(wrong) => {
                let wrong = wrong.to_string();
                assert!(!said.is_empty() && wrong.contains(said), "{to}: {wrong}");
            }
        }
    }
    let whole = LIMITED.replace("resources = [\"wiki\"]", "resources = [\"wiki\", \"git\", \"payroll\"]");
    let wrong = Policy::parse("policy.toml", &whole).expect_err("it restricts nothing").to_string();
    assert!(wrong.contains("holds every resource"), "{wrong}");
}

#[test]
fn a_plan_shows_limits_that_are_new_gone_or_others_and_whom_they_concern() {
    let changes = |from: &str, to: &str| {
        let (old, new) = (policy(LIMITED), policy(&LIMITED.replace(from, to)));
        let contexts = [engineer(), person("bob", &["sales"], MONDAY), service("build")];
        let said = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let changes = old.limit_changes(&new, &contexts, at(MONDAY)).into_iter();
        let line = |change: LimitChange| {
            let resources = change.resources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            format!(
                "{} [{resources}] {} => {} {:?}",
                change.rule,
                said(change.before),
                said(change.after),
                change.subjects
            )
        };
        changes.map(line).collect::<Vec<_>>()
    };
    assert!(changes("", "").is_empty());
    let payroll = "100MB down within 1 d, then a fresh sign-in is asked for";
    let limit = "limits = { download = \"100MB/d\", on_exceed = \"challenge\" }";
    let [gone] = &changes(limit, "")[..] else { panic!("one is gone") };
    assert!(gone.starts_with(&format!("payroll [payroll] {payroll} => - [")), "{gone}");
    let [more] = &changes("100MB/d", "900MB/d")[..] else { panic!("one is another") };
    assert!(more.contains(&format!("{payroll} => 900MB down within 1 d, then a fresh")), "{more}");
    let watched = changes("name = \"git\"\n", "name = \"git\"\nmode = \"monitor\"\nmonitor_until = \"2027-01-31\"\n");
    assert_eq!(watched.len(), 3, "a rule that is only watched limits nothing: {watched:?}");
    assert!(watched.iter().all(|line| line.contains("then an alert is raised [")), "{watched:?}");
    let [scans] = &changes("refused = \"10/m\"", "refused = \"200/m\"")[..] else { panic!("one is another") };
    assert!(
        scans.starts_with("engineers that scan [] 10 refused destinations within 1 min, then only wiki stays")
            && scans.contains("=> 200 refused destinations")
            && scans.ends_with("[0]"),
        "{scans}"
    );
    let renamed = changes("name = \"nobody jumps between countries\"", "name = \"no jumps\"");
    assert_eq!(renamed.len(), 2, "a limit by another name is another: {renamed:?}");
}
