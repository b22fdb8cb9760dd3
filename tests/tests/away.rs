//! The controller is away while signals change: nodes end by themselves what ends by time and by their own counting, the rest ends with its
//! lease; and when the controller is back, nothing opens before it has heard what changed.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Signal,
    corp::{Corp, stream_of_events},
    deployment::{Family, Node, PATIENCE, POSTURE_ROOT, WALL_OFFSET},
    eventually,
    programs::{CONTROLLER_AUTHORITY, can_connect},
};
use serde_json::{Value, json};

const POLICY: &str = r#"
[posture.guarded]
firewall = true

[resource.guarded]
nodes = ["tag:payroll"]
ports = ["tcp/7000"]

[resource.fresh]
nodes = ["tag:payroll"]
ports = ["tcp/7001"]

[resource.asked]
nodes = ["tag:payroll"]
ports = ["tcp/7002"]

[resource.bulk]
nodes = ["tag:payroll"]
ports = ["tcp/7003"]

[resource.wiki]
nodes = ["tag:payroll"]
ports = ["tcp/7004"]

[[access]]
name = "guarded machines"
from = ["user:*"]
to = ["guarded"]
lease = "30s"
when = { posture = "guarded" }

[[access]]
name = "fresh sign-ins"
from = ["user:*"]
to = ["fresh"]
lease = "10m"
when = { mfa_within = "5m" }

[[access]]
name = "on request"
from = ["user:*"]
to = ["asked"]
lease = "10m"
request = { approvers = ["group:leads"], longest = "1h" }

[[access]]
name = "not too much"
from = ["user:*"]
to = ["bulk"]
lease = "10m"
limits = { download = "256KiB/h", on_exceed = "challenge" }

[[access]]
name = "everybody reads the wiki"
from = ["user:*"]
to = ["wiki"]
lease = "30s"
"#;
const GUARDED: u16 = 7000;
const FRESH: u16 = 7001;
const ASKED: u16 = 7002;
const BULK: u16 = 7003;
const WIKI: u16 = 7004;
/// What is left of a lease of 30 seconds, and what a busy machine needs to notice.
const LEASE: Duration = Duration::from_secs(40);

const RULESET: &str = "/run/nftables.json";
const CLOSED: &str = r#"{"nftables":[{"chain":{"family":"inet","table":"filter","name":"input","type":"filter","hook":"input","policy":"drop"}}]}"#;
const OPEN: &str = r#"{"nftables":[]}"#;

fn firewall(node: &Node, ruleset: &str) -> Result<()> {
    node.host.write(format!("{POSTURE_ROOT}{RULESET}"), ruleset)
}

/// Sends a request of the SCIM client's; the status of the answer, or nothing if nobody answers.
fn scim(corp: &Corp, token: &str, method: &str, path: &str, body: &Value) -> Result<Option<(u64, Value)>> {
    corp.idp.write("/run/scim-body", body.to_string())?;
    let answer = corp.idp.sh(&format!(
        "curl -sg --max-time 10 --cacert {CONTROLLER_AUTHORITY} -X {method} -w '\\n%{{http_code}}' --data-binary @/run/scim-body \
         -H 'Authorization: Bearer {token}' -H 'Content-Type: application/scim+json' 'https://ctl/scim/v2{path}' || true"
    ))?;
    let (body, status) = answer.trim_end().rsplit_once('\n').unwrap_or(("", answer.trim()));
    let status = status.parse().with_context(|| answer.clone())?;
    Ok((status != 0).then(|| (status, serde_json::from_str(body).unwrap_or_default())))
}

fn move_clock(corp: &Corp, nodes: &[&Node], millis: i64) -> Result<()> {
    let hosts = nodes.iter().map(|node| &node.host).chain([&corp.world.controller]);
    hosts.into_iter().try_for_each(|host| host.write(WALL_OFFSET, millis.to_string()))
}

fn closed(node: &Node, at: IpAddr, port: u16) -> bool {
    !can_connect(&node.host, at, port)
}

#[test]
fn signals_that_change_while_the_controller_is_away_end_what_they_can_and_nothing_opens_on_its_return() -> Result<()> {
    let further = format!("\n[oidc.scim]\ngroups = \"claims\"\n{}", stream_of_events("corp"));
    let corp = Corp::start_with("away", POLICY, &further, &[])?;
    let world = &corp.world;
    let _transmitter = corp.transmitter()?;
    let made = world.ctl_json(&["scim", "token", "create", "--ttl", "1h"])?;
    let token = made["token"].as_str().context("no token")?.to_owned();
    let bob = json!({"schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"], "userName": "bob@corp.example", "externalId": "bob", "active": true});
    let (_, bob) = scim(&corp, &token, "POST", "/Users", &bob)?.context("no answer")?;
    let target = format!("/Users/{}", bob["id"].as_str().with_context(|| bob.to_string())?);
    let off = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"],
        "Operations": [{"op": "Replace", "path": "active", "value": "False"}]});

    let server = world.server("payroll", &["payroll"], None)?;
    let _echo = server.echo(&[GUARDED, FRESH, ASKED, BULK, WIKI])?;
    let at = server.overlay(Family::V6)?;
    let host = world.lab.host("alice-laptop")?;
    host.write(format!("{POSTURE_ROOT}{RULESET}"), CLOSED)?;
    let alice = world.adopt(host, "")?;
    let bob = world.laptop("bob-laptop")?;
    corp.sign_in(&bob, "bob")?;
    corp.sign_in(&alice, "alice")?;
    alice.postern(&["request", "asked", "--for", "1m", "--reason", "incident 17", "--no-wait"])?;
    let list = world.ctl_json(&["request", "list"])?;
    let id = list[0]["record"]["id"].as_str().with_context(|| list.to_string())?;
    world.ctl(&["request", "approve", id, "--reason", "on call"])?;
    let mut asked = alice.chatter(at, ASKED)?;
    let mut guarded = alice.chatter(at, GUARDED)?;
    let mut fresh = alice.chatter(at, FRESH)?;
    let mut bulk = alice.chatter(at, BULK)?;
    let mut wiki = alice.chatter(at, WIKI)?;
    let mut of_bob = bob.chatter(at, WIKI)?;

    world.stop_controller(Signal::Kill)?;
    of_bob.goes_on("nobody is there to end it")?; // first: of its lease ten seconds may be left
    firewall(&alice, OPEN)?;
    ensure!(scim(&corp, &token, "PATCH", &target, &off)?.is_none(), "somebody took what SCIM says");
    ensure!(corp.push("session-revoked", json!({}), "alice")? != Some(202), "somebody took the event");
    // By its own count, at once: nobody has to be asked.
    let more = format!("(head -c 400K /dev/zero | tr '\\0' x; sleep 60) | socat - TCP6:[{at}]:{BULK} > /dev/null");
    let _more = alice.host.command("sh").args(["-c", &more]).spawn()?;
    // The destination has shut; nobody can tell the source, whose packets are dropped.
    bulk.falls_silent("more than the limit")?;
    for (flow, what) in [(&mut asked, "asked"), (&mut fresh, "fresh")] {
        flow.goes_on(what)?;
    }
    // What nobody can tell the nodes ends with its lease.
    guarded.is_cut_within(LEASE, "the firewall is off")?;
    wiki.is_cut_within(LEASE, "a session that was revoked")?;
    of_bob.is_cut_within(LEASE, "a person who is deactivated")?;
    fresh.goes_on("a lease of ten minutes")?;
    // By time, at once: a minute is over, then the proof is too old.
    move_clock(&corp, &[&alice, &server], 61_000)?;
    asked.is_cut("a minute that is over")?;
    fresh.goes_on("its proof is fresh for five minutes")?;
    move_clock(&corp, &[&alice, &server], 320_000)?;
    fresh.is_cut("a proof that is too old")?;
    for port in [GUARDED, FRESH, ASKED, BULK, WIKI] {
        ensure!(closed(&alice, at, port), "port {port} is open without a controller");
    }

    // It is back, and has heard nothing yet.
    world.start_controller()?;
    let heard = || world.ctl(&["device", "show", "alice-laptop"]).unwrap_or_default();
    eventually(2 * PATIENCE, "the controller does not hear of the firewall", || {
        let open: Vec<u16> =
            [GUARDED, FRESH, ASKED, BULK].into_iter().filter(|port| !closed(&alice, at, *port)).collect();
        if !open.is_empty() {
            return Some(Err(anyhow::anyhow!("{open:?} opened on its return")));
        }
        let shown = heard();
        shown.lines().any(|line| line.contains("firewall ") && line.contains(" off")).then_some(Ok(()))
    })??;
    let mut wiki = alice.chatter(at, WIKI)?;
    let mut of_bob = bob.chatter(at, WIKI)?;
    for (name, port, words) in [
        ("guarded", GUARDED, "the firewall is off"),
        ("fresh", FRESH, "asks for MFA within 5 min"),
        ("asked", ASKED, "postern request asked"),
        ("bulk", BULK, "more than 256KiB down"),
    ] {
        ensure!(closed(&alice, at, port), "{name} opened again");
        for said in [alice.explain(name), world.explain("alice@corp.example", name)] {
            ensure!(said.starts_with("denied") && said.contains(words), "{name} is not explained by {words:?}: {said}");
        }
    }

    // What was refused is told again.
    let status = eventually(PATIENCE, "SCIM is not served", || {
        scim(&corp, &token, "PATCH", &target, &off)
            .ok()
            .flatten()
            .map(|(status, _)| status)
            .filter(|status| *status < 500)
    })?;
    ensure!((200..300).contains(&status), "{status}");
    of_bob.is_cut("a person who is deactivated")?;
    wiki.goes_on("somebody else is deactivated")?;
    corp.tell("session-revoked", json!({}), "alice")?;
    wiki.is_cut("a session that was revoked")?;
    Ok(())
}
