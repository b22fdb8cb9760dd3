//! Claims about postures as conditions: facts, attestation, exceptions, and how each is told.

use std::time::Duration;

use super::*;
use crate::{
    policy::{Audience, Destination},
    posture::{FactKind, OsKind},
    protocol::Explanation,
};

const BASE: &str = r#"
[posture.managed]
disk_encrypted = true
max_security_updates = 0
managed_by = "corp"
agents = ["edr"]
checks = ["edr-ok"]
os.linux.min_kernel = "6.1"
os.linux.distributions = ["debian 12", "ubuntu 24.04"]
max_age = "20m"

[posture.own]
screen_lock = true

[resource.wiki]
node = "wiki-1"
ports = ["tcp/443"]

[[access]]
name = "staff reads the wiki"
owner = "wiki-team"
from = ["group:staff"]
to = ["wiki"]
when = { posture = "managed" }
"#;

fn exception(of: &str, more: &str) -> String {
    format!(
        "{BASE}[[posture_exception]]\nposture = \"managed\"\n{of}\nowner = \"it\"\nreason = \"new disk is ordered\"\nexpires = \"2026-11-30\"\n{more}\n"
    )
}

/// Alice on a laptop that reported nothing.
fn silent() -> RequestContext {
    RequestContext { posture: None, ..person("alice", &["staff"], MONDAY) }
}

fn why(text: &str, context: &RequestContext) -> Explanation {
    let wiki = Destination::Resource("wiki".parse().expect("a name"));
    policy(text).explain(context, &machines(), &wiki, None, Audience::Subject)
}

#[test]
fn a_posture_of_every_kind_of_fact_is_met_and_named_where_it_is_not() {
    let document = policy(BASE);
    let mut alice = silent();
    let (_, requirement) = &document.model.postures[0];
    let facts = requirement.minimal_facts().0;
    assert_eq!(facts.os, Some(OsKind::Linux));
    alice.posture = Some(Report { facts: facts.clone(), observed_at: alice.now });
    assert_eq!(given(&document, &alice), ["wiki-1 tcp/443 until 2026-11-23T09:20:00Z"]);
    assert!(document.posture_demands(&alice).is_empty());
    alice.posture = Some(Report { facts: Facts { security_updates: Some(4), ..facts }, observed_at: alice.now });
    assert_eq!(given(&document, &alice), [""; 0]);
    let told = why(BASE, &alice);
    assert!(told.reason.contains("4 security updates wait now, and at most 0 may"), "{}", told.reason);
    assert_eq!(told.fix.as_deref(), Some("on this device: install the updates: `apt update && apt upgrade`"));
    let demands = document.posture_demands(&alice);
    assert_eq!((demands.len(), demands[0].posture.as_str(), demands[0].findings.len()), (1, "managed", 1));
    assert!(document.posture_demands(&person("eve", &[], MONDAY)).is_empty(), "no rule names her");
    assert_eq!(document.shortest_posture_age(), Some(Duration::from_secs(900)), "the other posture's default");
}

#[test]
fn an_exception_opens_for_its_device_until_it_ends_and_is_told() {
    let unknown_device = DeviceId::from_bytes([8; 16]).to_string();
    for (of, opens) in [
        ("device = \"alice-laptop\"", true),
        (&format!("device = \"{}\"", device(9)) as &str, true),
        ("device = \"bob-laptop\"", false),
        (&format!("device = \"{unknown_device}\""), false),
        ("from = [\"group:staff\"]", true),
        ("from = [\"user:bob\"]", false),
    ] {
        let document = exception(of, "");
        let expected: &[&str] = if opens { &["wiki-1 tcp/443 until 2026-11-30T00:00:00Z"] } else { &[] };
        assert_eq!(given(&policy(&document), &silent()), expected, "{of}");
    }
    // Any machine may take a free name when it joins.
    let squatter = RequestContext { machine_approved: false, ..silent() };
    let by_name = exception("device = \"alice-laptop\"", "");
    assert_eq!(given(&policy(&by_name), &squatter), [""; 0]);
    let told = why(&by_name, &squatter);
    let hint = "postern-controller approve alice-laptop --name";
    assert!(format!("{told:?}").contains(hint), "{told:?}");
    let by_id = exception(&format!("device = \"{}\"", device(9)), "");
    assert_eq!(given(&policy(&by_id), &squatter).len(), 1, "an identifier is nobody else's");
    let listed: Vec<String> = policy(&exception("from = [\"group:staff\"]", "")).posture_exceptions().collect();
    let line = "group:staff: excepted from posture \"managed\" until 2026-11-30T00:00:00Z by it: new disk is ordered";
    assert_eq!(listed, [line], "plans say it");
    let document = exception("device = \"alice-laptop\"", "");
    let told = why(&document, &silent());
    assert!(told.allowed && told.because.iter().any(|line| line.contains("owner of the rule: wiki-team")));
    let excepted = "posture \"managed\" is excepted until 2026-11-30T00:00:00Z by it: new disk is ordered";
    assert!(told.because.iter().any(|line| line.starts_with(excepted)), "{:?}", told.because);
    let late = RequestContext { now: at("2026-11-30T00:00:00Z"), ..silent() };
    assert_eq!(given(&policy(&document), &late), [""; 0]);
    assert!(
        why(&document, &late).reason.contains("its exception by it ended at 2026-11-30"),
        "{:?}",
        why(&document, &late)
    );
}

#[test]
fn an_exception_for_groups_that_are_unknown_opens_nothing() {
    let mut alice = silent();
    forget_groups(&mut alice);
    alice.tags = ["lab".parse().expect("a tag")].into();
    let document =
        exception("from = [\"group:staff\"]", "").replace("from = [\"group:staff\"]\nto", "from = [\"tag:lab\"]\nto");
    assert_eq!(given(&policy(&document), &alice), [""; 0]);
}

#[test]
fn an_exception_for_peoples_own_machines_holds_while_the_other_posture_does() {
    let document = policy(&exception("from = [\"group:staff\"]", "instead = \"own\""));
    let mut alice = silent();
    assert_eq!(given(&document, &alice), [""; 0]);
    let locked =
        |on| Some(Report { facts: Facts { screen_lock: Some(on), ..Facts::default() }, observed_at: at(MONDAY) });
    alice.posture = locked(true);
    assert_eq!(given(&document, &alice), ["wiki-1 tcp/443 until 2026-11-23T09:15:00Z"]);
    alice.posture = locked(false);
    assert_eq!(given(&document, &alice), [""; 0]);
}

#[test]
fn what_is_attested_opens_by_the_word_of_the_management_alone() {
    let all = policy(&BASE.replace("max_age = \"20m\"", "attested = true\nattested_max_age = \"2h\""));
    assert_eq!(all.model.postures[0].1.attested.len(), 6);
    let one = policy(&BASE.replace("max_age = \"20m\"", "attested = [\"disk_encrypted\"]"));
    assert_eq!(one.model.postures[0].1.attested, [FactKind::DiskEncrypted].into());
    let mut alice = silent();
    let facts = all.model.postures[0].1.minimal_facts().1;
    let said = Some(Report { facts, observed_at: alice.now });
    alice.posture.clone_from(&said);
    assert_eq!(given(&all, &alice), [""; 0], "the device's own word");
    (alice.posture, alice.attested) = (None, said);
    assert_eq!(given(&all, &alice), ["wiki-1 tcp/443 until 2026-11-23T11:00:00Z"]);
    let test = "[[test]]\nas = { user = \"a\", groups = [\"staff\"], posture = \"managed\" }\nto = \"wiki\"\nexpect = \"allow\"\n";
    policy(&format!("{}{test}", BASE.replace("max_age = \"20m\"", "attested = [\"disk_encrypted\"]")));
}

#[test]
fn mistakes_about_postures_say_what_to_write() {
    for (text, parts) in [
        (BASE.replace("max_age = \"20m\"", "max_age = \"5s\""), ["reports often enough", "use \"10s\" or more"]),
        (BASE.replace("= 0", "= \"none\""), ["expected how many may wait", "found a text"]),
        (BASE.replace("debian 12", "debian twelve"), ["names no distribution", "/etc/os-release"]),
        (BASE.replace("max_age = \"20m\"", "attested = [\"disk\"]"), ["`disk` is no fact", "disk_encrypted, firewall"]),
        (
            BASE.replace("max_age = \"20m\"", "attested = [\"firewall\"]"),
            ["does not require `firewall`", "names facts that this posture requires"],
        ),
        (BASE.replace("max_age = \"20m\"", "attested_max_age = \"1h\""), ["with nothing attested", "attested = true"]),
        (
            exception("device = \"x\"", "").replace("expires = \"2026-11-30\"\n", ""),
            ["[[posture_exception]] has no `expires`", "does not last for ever"],
        ),
        (exception("device = \"x\"", "").replace("owner = \"it\"\n", ""), ["has no `owner`", "who answers for it"]),
        (
            exception("device = \"x\"", "").replace("reason = \"new disk is ordered\"\n", ""),
            ["has no `reason`", "why it is needed"],
        ),
        (exception("", ""), ["has no `device`", "or from ="]),
        (exception("device = \"x\"\nfrom = [\"user:*\"]", ""), ["both a device and people", "keep one"]),
        (exception("device = \"x\"", "instead = \"ownn\""), ["there is no posture \"ownn\"", "did you mean \"own\"?"]),
        (exception("device = \"x\"", "expire = 1"), ["unknown key `expire`", "`expires`?"]),
    ] {
        let shown = Policy::parse("policy.toml", &text).expect_err(&text).to_string();
        for part in parts {
            assert!(shown.contains(part), "{part:?} is missing in\n{shown}");
        }
    }
}
