//! Tables and properties of the policy as a whole.

mod clocks;
mod decisions;
mod documents;
mod explanations;
mod limits;
mod places;
mod plans;
mod postures;
mod properties;
mod step_ups;

use std::collections::BTreeSet;

use super::{Assurance, Policy, RequestContext, Subject, TargetNode, Targets, UserIdentity};
use crate::{
    id::DeviceId,
    posture::{Facts, Report},
    time::WallTime,
};

/// The document of the design, with a second resource on the same machine and a deny.
const PAYROLL: &str = r#"
[settings]
timezone = "Europe/Berlin"

[posture.managed-laptop]
disk_encrypted = true
firewall = true
os.linux.min_kernel = "6.1"

[resource.payroll-app]
node = "payroll-1"
ports = ["tcp/443"]
sensitivity = "high"
owner = "finance-it"

[resource.everything-on-servers]
nodes = ["tag:server"]
ports = ["tcp/*", "icmp"]

[resource.git]
node = "git-1"
ports = ["tcp/22"]
on_deny = "reject"

[[access]]
name = "payroll managers use payroll"
reason = "monthly payroll run"
from = ["group:payroll", "service:payroll-batch"]
to = ["payroll-app"]
when = { posture = "managed-laptop", mfa_within = "12h", hours = "Mon-Fri 07:00-20:00 Europe/Berlin" }
lease = "5m"

[[access]]
name = "operators reach servers"
from = ["group:ops"]
to = ["everything-on-servers"]

[[access]]
name = "engineers use git"
from = ["group:engineers", "tag:build"]
to = ["git"]
when = { mfa_within = "15m" }
mode = "monitor"
monitor_until = "2026-12-01"
stock_clients = true

[[deny]]
name = "contractors never reach payroll"
from = ["group:contractors"]
to = ["payroll-app"]

[[test]]
as = { user = "bob@corp.example", groups = ["contractors", "payroll"], posture = "managed-laptop", mfa = "1h" }
to = "payroll-app"
port = "tcp/443"
expect = "deny"

[[test]]
name = "managers get in by day"
as = { user = "alice", groups = ["payroll"], posture = "managed-laptop", mfa = "1h" }
to = "payroll-app"
at = "2026-11-23 10:00"
expect = "allow"
"#;

/// A Monday, 10:00 in Berlin.
const MONDAY: &str = "2026-11-23T09:00:00Z";

fn at(text: &str) -> WallTime {
    WallTime::from_millis(text.parse::<jiff::Timestamp>().expect("a timestamp").as_millisecond())
}

fn policy(text: &str) -> Policy {
    Policy::parse("policy.toml", text).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

fn device(number: u8) -> DeviceId {
    DeviceId::from_bytes([number; 16])
}

fn node(number: u8, name: &str, tags: &[&str]) -> TargetNode {
    let tags = tags.iter().map(|tag| tag.parse().expect("a tag")).collect();
    TargetNode { device: device(number), name: name.parse().expect("a name"), tags }
}

fn machines() -> Targets {
    Targets::new([
        node(1, "payroll-1", &["server"]),
        node(2, "git-1", &["server"]),
        node(3, "wiki-1", &["server"]),
        node(9, "alice-laptop", &[]),
    ])
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A person on a managed laptop who has just signed in with two factors.
fn person(name: &str, groups: &[&str], now: &str) -> RequestContext {
    let now = at(now);
    RequestContext {
        subject: Subject::User {
            identity: UserIdentity::Local { name: name.into() },
            display_name: name.into(),
            groups: Some(set(groups)),
            assurance: Assurance { auth_time: Some(now), acr: None, amr: Some(set(&["pwd", "otp"])) },
        },
        device: Some(device(9)),
        machine: Some("alice-laptop".parse().expect("a name")),
        tags: BTreeSet::new(),
        posture: Some(Report { facts: managed(), observed_at: now }),
        attested: None,
        machine_approved: true,
        approved: vec![],
        restraints: vec![],
        address: Some("192.0.2.7".parse().expect("an address")),
        place: super::Place::default(),
        also: vec![],
        now,
        instead: None,
    }
}

fn managed() -> Facts {
    Facts {
        disk_encrypted: Some(true),
        firewall: Some(true),
        os: Some(crate::posture::OsKind::Linux),
        kernel: Some("6.12".parse().expect("a version")),
        ..Facts::default()
    }
}

fn service(name: &str) -> RequestContext {
    let subject = Subject::Service { name: name.parse().expect("a name") };
    RequestContext { subject, machine: Some("batch-1".parse().expect("a name")), ..person("-", &[], MONDAY) }
}

fn assurance(context: &mut RequestContext) -> &mut Assurance {
    match &mut context.subject {
        Subject::User { assurance, .. } => assurance,
        Subject::Service { .. } => panic!("a service has no sign-in"),
    }
}

fn forget_groups(context: &mut RequestContext) {
    if let Subject::User { groups, .. } = &mut context.subject {
        *groups = None;
    }
}

/// Everything that is given, one line each: `payroll-1 tcp/443 by "rule" until 2026-11-23T19:00:00Z`.
fn given(policy: &Policy, context: &RequestContext) -> Vec<String> {
    let machines = machines();
    let mut lines: Vec<String> = Vec::new();
    for entitlement in policy.entitlements(context, &machines) {
        for node in &entitlement.nodes {
            let services: Vec<String> = entitlement.services.iter().map(ToString::to_string).collect();
            let name = &machines.node(*node).expect("a known node").name;
            let watched = match &entitlement.mode {
                crate::grant::Mode::Enforce => "",
                crate::grant::Mode::Monitor { .. } => " watched",
            };
            lines.push(format!("{name} {} until {}{watched}", services.join(" "), entitlement.valid_until));
        }
    }
    lines
}
