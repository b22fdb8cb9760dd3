//! Limits on behaviour, end to end: more than a rule lets pass is cut on the node, the person signs in anew and goes on; a machine
//! that scans is held.

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, ensure};
use postern_tests::{
    Background, Echo, Host, Signal,
    deployment::{Deployment, Family, Node, PASSWORD, PATIENCE},
    eventually,
    programs::{can_connect, nmap_open_ports},
    talk::PROMPTLY,
};

const POLICY: &str = r#"
[resource.files]
nodes = ["tag:files"]
ports = ["tcp/7000"]

[resource.wiki]
nodes = ["tag:files"]
ports = ["tcp/7001"]

[[access]]
name = "staff use files"
from = ["group:staff"]
to = ["files"]
limits = { download = "1MiB/h", on_exceed = "challenge" }

[resource.builds]
nodes = ["tag:files"]
ports = ["tcp/7002"]

[resource.mail]
nodes = ["tag:files"]
ports = ["tcp/7003"]

[set.basics]
resources = ["wiki"]

[[access]]
name = "staff use builds"
from = ["group:staff"]
to = ["builds"]
limits = { connections = "20/10m", on_exceed = "restrict", restrict_to = "basics" }

[[access]]
name = "staff send mail"
from = ["group:staff"]
to = ["mail"]
limits = { upload = "1MiB/h", on_exceed = "terminate" }

[[access]]
name = "everybody reads the wiki"
from = ["user:*"]
to = ["wiki"]

[[limit]]
name = "machines that scan"
from = ["group:guests"]
refused = "10/m"
on_exceed = "quarantine"
"#;

struct Scene {
    world: Deployment,
    server: Node,
    laptop: Node,
    at: IpAddr,
    _echo: Echo,
}

fn scene(name: &str) -> Result<Scene> {
    let world = Deployment::start(name)?;
    world.add_user("alice", &["staff"])?;
    world.add_user("mallory", &["guests"])?;
    let server = world.server("files-1", &["files"], None)?;
    world.apply_policy(POLICY)?;
    let echo = server.echo(&[7000, 7001, 7002, 7003])?;
    let laptop = world.laptop("laptop")?;
    let at = server.overlay(Family::V6)?;
    Ok(Scene { world, server, laptop, at, _echo: echo })
}

/// Downloads so many KiB from the echo, and goes on with a line every 200 ms until its connection ends.
fn download(from: &Host, at: IpAddr, kib: u32) -> Result<Background> {
    exchange(from, at, 7000, kib)
}

/// Sends so many KiB to the echo at a port, and goes on with a line every 200 ms until its connection ends.
fn exchange(from: &Host, at: IpAddr, port: u16, kib: u32) -> Result<Background> {
    let script = format!(
        "(head -c {kib}K /dev/zero | tr '\\0' x; echo; echo begun; while :; do echo line; sleep 0.2; done) \
         | socat -t5 -T30 - TCP6:[{at}]:{port} | sed -u s,x,,g"
    );
    from.command("sh").args(["-c", &script]).spawn()
}

#[test]
fn more_than_the_limit_is_cut_within_seconds_and_after_a_fresh_sign_in_it_goes_on() -> Result<()> {
    let Scene { world, server, laptop, at, _echo } = scene("limit")?;
    world.sign_in(&laptop, "alice")?;
    eventually(PATIENCE, "the files are not reached", || can_connect(&laptop.host, at, 7000).then_some(()))?;
    let mut little = download(&laptop.host, at, 300)?;
    little.wait_for_output("line", PATIENCE)?;
    ensure!(little.is_running(), "less than the limit is cut: {}", little.output());

    let mut much = download(&laptop.host, at, 2_000)?;
    for (client, what) in [(&mut much, "that downloads"), (&mut little, "beside it")] {
        eventually(Duration::from_secs(15), &format!("the connection {what} lives on"), || {
            (!client.is_running()).then_some(())
        })?;
    }
    ensure!(can_connect(&laptop.host, at, 7001), "the wiki has no limit");
    let listed = eventually(PATIENCE, "the controller lists no restraint", || {
        world.ctl(&["restraint", "list"]).ok().filter(|text| text.contains("alice"))
    })?;
    ensure!(listed.contains("files until a fresh sign-in") && listed.contains("more than 1MiB down"), "{listed}");
    let why = laptop.explain("files:7000");
    ensure!(
        why.contains("files: more than 1MiB down within 1 h") && why.contains("postern step-up files"),
        "the limit is not named: {why}"
    );
    let status = world.ctl(&["status"])?;
    ensure!(status.contains("restrained: alice"), "{status}");
    let sessions = world.ctl(&["session", "list"])?;
    ensure!(sessions.contains("counts no more since"), "{sessions}");

    // A restart of the controller forgets nothing of it.
    world.stop_controller(Signal::Kill)?;
    world.start_controller()?;
    eventually(PATIENCE, "nobody came back", || {
        world.ctl(&["status"]).ok().filter(|status| status.contains("2 of 2 machines connected"))
    })?;
    ensure!(!can_connect(&laptop.host, at, 7000), "it is open after a restart of the controller");

    // The same connection attempt gets through after the sign-in.
    let attempt = "echo through | socat -t10 -T90 - TCP:files.internal:7000,connect-timeout=90";
    let mut attempt = laptop.host.command("sh").args(["-c", attempt]).spawn()?;
    let url = eventually(PATIENCE, "status shows no page for a step-up", || {
        let status = laptop.json(&["status"]).ok()?;
        let wants = status["step_ups"].as_array()?.iter().find(|wants| wants["name"] == "files")?.clone();
        wants["url"].as_str().map(str::to_owned)
    })?;
    let browser = world.browser(&laptop.host)?;
    let page = browser.get(&url)?;
    let page = browser.submit(&page.form("password")?, &[("login", "alice"), ("password", PASSWORD)])?;
    let page = match page.form("Yes, it is me") {
        Ok(form) => browser.submit(&form, &[])?,
        Err(_) => browser.submit(&page.form("/prove")?, &[("password", PASSWORD)])?,
    };
    ensure!(page.status == 200 && page.text().contains("files is open"), "({}) {}", page.status, page.text());
    attempt.wait_for_output("through", PATIENCE)?;
    let audit = world.controller.sh("cat /etc/postern-controller/state/audit/*")?;
    for word in ["restrained", "stepped_up"] {
        ensure!(audit.contains(word), "the audit log says nothing of {word}");
    }

    // With the controller away the node judges by itself.
    let by_limit = || {
        let drops = server.json(&["status"]).ok()?["drops"].as_array()?.clone();
        drops.iter().find(|drop| drop[0] == "limit")?[1].as_u64()
    };
    let before = by_limit().unwrap_or(0);
    world.stop_controller(Signal::Kill)?;
    let alone = download(&laptop.host, at, 2_000)?;
    eventually(Duration::from_secs(30), "without the controller it is not cut", || {
        can_connect(&laptop.host, at, 7000);
        (by_limit()? > before).then_some(())
    })?;
    ensure!(!alone.output().contains("begun"), "more than the limit came through: {}", alone.output());
    ensure!(can_connect(&laptop.host, at, 7001), "nothing else is cut");
    alone.signal(Signal::Kill)?;
    Ok(())
}

#[test]
fn a_machine_that_scans_is_held_by_itself_and_told_why() -> Result<()> {
    let Scene { world, server, laptop, at, _echo } = scene("scan")?;
    world.sign_in(&laptop, "mallory")?;
    eventually(PATIENCE, "the wiki is not reached", || can_connect(&laptop.host, at, 7001).then_some(()))?;
    for port in 8_000..8_005 {
        can_connect(&laptop.host, at, port);
    }
    ensure!(can_connect(&laptop.host, at, 7001), "a few refusals are no scan");
    let others = server.overlay(Family::V4)?;
    for port in 8_005..8_020 {
        laptop.host.command("socat").args(["-T1", "-", &format!("TCP:{others}:{port},connect-timeout=1")]).run()?;
    }
    let held = eventually(PATIENCE, "the machine is not held", || {
        world.ctl(&["quarantine", "list"]).ok().filter(|text| text.contains("laptop"))
    })?;
    ensure!(held.contains("limit \"machines that scan\"") && held.contains("refused destinations"), "{held}");
    eventually(PATIENCE, "it is still open", || (!can_connect(&laptop.host, at, 7001)).then_some(()))?;
    let status = eventually(PATIENCE, "it is not told", || {
        laptop.postern(&["status"]).ok().filter(|status| status.contains("IN QUARANTINE"))
    })?;
    ensure!(status.contains("more than 10 refused destinations within 1 min"), "{status}");
    let why = laptop.explain("wiki:7001");
    ensure!(why.contains("is in quarantine since"), "{why}");
    world.ctl(&["quarantine", "release", "device", "laptop"])?;
    eventually(PATIENCE, "released and not open", || can_connect(&laptop.host, at, 7001).then_some(()))?;
    Ok(())
}

#[test]
fn too_many_connections_leave_a_few_resources_and_too_much_upload_ends_the_session() -> Result<()> {
    let Scene { world, server: _server, laptop, at, _echo } = scene("rate")?;
    world.sign_in(&laptop, "alice")?;
    eventually(PATIENCE, "the builds are not reached", || can_connect(&laptop.host, at, 7002).then_some(()))?;
    world.controller.write("/run/next.toml", POLICY.replace("20/10m", "30/10m"))?;
    let plan = world.ctl(&["policy", "plan", "/run/next.toml"])?;
    let said = "! rule \"staff use builds\"   limits   builds to 30 connections within 10 min, then only wiki stays   (now 20 connections";
    ensure!(plan.contains(said) && plan.contains("alice on laptop"), "{plan}");
    let plan = world.ctl_json(&["policy", "plan", "/run/next.toml"])?;
    ensure!(plan["plan"]["limits"][0]["rule"] == "staff use builds", "{plan}");

    let mut wiki = exchange(&laptop.host, at, 7001, 1)?;
    let mut builds = exchange(&laptop.host, at, 7002, 1)?;
    wiki.wait_for_output("line", PATIENCE)?;
    builds.wait_for_output("line", PATIENCE)?;
    eventually(PATIENCE, "connections without end get through", || {
        (!can_connect(&laptop.host, at, 7002)).then_some(())
    })?;
    eventually(PATIENCE, "the open connection lives on", || (!builds.is_running()).then_some(()))?;
    let listed = eventually(PATIENCE, "the controller lists no restraint", || {
        world.ctl(&["restraint", "list"]).ok().filter(|text| text.contains("alice"))
    })?;
    ensure!(listed.contains("all but wiki") && listed.contains("more than 20 connections"), "{listed}");
    eventually(PATIENCE, "more than the set is left", || (!can_connect(&laptop.host, at, 7003)).then_some(()))?;
    ensure!(can_connect(&laptop.host, at, 7001) && wiki.is_running(), "what stays is cut: {}", wiki.output());
    let why = laptop.explain("builds:7002");
    ensure!(why.contains("builds: more than 20 connections within 10 min"), "{why}");
    world.ctl(&["restraint", "release", "subject", "alice"])?;
    for port in [7002, 7003] {
        eventually(PATIENCE, "released and not open", || can_connect(&laptop.host, at, port).then_some(()))?;
    }
    ensure!(wiki.is_running(), "the wiki was cut: {}", wiki.output());

    let mut mail = exchange(&laptop.host, at, 7003, 2_000)?;
    for (client, what) in [(&mut mail, "that uploads"), (&mut wiki, "of the same session")] {
        eventually(Duration::from_secs(15), &format!("the connection {what} lives on"), || {
            (!client.is_running()).then_some(())
        })?;
    }
    let status = eventually(PATIENCE, "the session has not ended", || {
        laptop.postern(&["status"]).ok().filter(|status| status.contains("more than 1MiB up"))
    })?;
    ensure!(!can_connect(&laptop.host, at, 7001), "signed out, and open: {status}");
    world.sign_in(&laptop, "alice")?;
    eventually(PATIENCE, "a fresh sign-in opens nothing", || can_connect(&laptop.host, at, 7003).then_some(()))?;
    Ok(())
}

#[test]
fn a_server_that_restarts_has_not_let_less_through() -> Result<()> {
    let Scene { world, server, laptop, at, _echo } = scene("recount")?;
    world.sign_in(&laptop, "alice")?;
    eventually(PATIENCE, "the files are not reached", || can_connect(&laptop.host, at, 7000).then_some(()))?;
    let mut first = download(&laptop.host, at, 600)?;
    first.wait_for_output("line", PATIENCE)?;
    server.stop(Signal::Terminate)?;
    first.signal(Signal::Kill)?;
    server.start()?;
    eventually(PATIENCE, "it does not come back", || can_connect(&laptop.host, at, 7000).then_some(()))?;
    let mut second = download(&laptop.host, at, 600)?;
    eventually(Duration::from_secs(20), "600 KiB before the restart and 600 after it pass where 1 MiB may", || {
        (!second.is_running()).then_some(())
    })?;
    eventually(PATIENCE, "the controller lists no restraint", || {
        world.ctl(&["restraint", "list"]).ok().filter(|text| text.contains("more than 1MiB down"))
    })?;
    Ok(())
}

/// What a limit takes away from alice, beside what bob has on a machine of his own.
struct Pair {
    world: Deployment,
    _server: Node,
    _echo: Echo,
    alice: Node,
    bob: Node,
    at: IpAddr,
}

const FILES: u16 = 7000;
const WIKI: u16 = 7001;
const API: u16 = 7002;

fn pair(name: &str, policy: &str) -> Result<Pair> {
    let world = Deployment::start(name)?;
    world.add_user("alice", &["staff"])?;
    world.add_user("bob", &[])?;
    let server = world.server("files-1", &["files"], None)?;
    world.apply_policy(policy)?;
    let echo = server.echo(&[FILES, WIKI, API])?;
    let (alice, bob) = (world.laptop("laptop-a")?, world.laptop("laptop-b")?);
    world.sign_in(&alice, "alice")?;
    world.sign_in(&bob, "bob")?;
    let at = server.overlay(Family::V6)?;
    Ok(Pair { world, _server: server, _echo: echo, alice, bob, at })
}

impl Pair {
    /// Does more than its limit lets pass; what is returned goes on with it.
    fn exceed(&self, what: Exceeded) -> Result<Option<Background>> {
        let host = &self.alice.host;
        match what {
            Exceeded::Volume => return download(host, self.at, 400).map(Some),
            // More than the limit; those that come after it are refused.
            Exceeded::Rate => assert!((0..16).any(|_| !can_connect(host, self.at, API)), "every one is let in"),
            Exceeded::Scan => drop(nmap_open_ports(host, self.at, "8000-8030")?),
        }
        Ok(None)
    }

    fn explained(&self, to: &str, words: &[&str]) -> Result<()> {
        for said in [self.alice.explain(to), self.world.explain("alice", to.split(':').next().unwrap_or(to))] {
            ensure!(
                said.starts_with("denied") && words.iter().all(|word| said.contains(word)),
                "not {words:?}: {said}"
            );
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exceeded {
    Volume,
    Rate,
    Scan,
}

const NARROWING: &str = r#"
[resource.files]
nodes = ["tag:files"]
ports = ["tcp/7000"]

[resource.wiki]
nodes = ["tag:files"]
ports = ["tcp/7001"]

[resource.api]
nodes = ["tag:files"]
ports = ["tcp/7002"]

[set.basics]
resources = ["wiki"]

[[access]]
name = "staff use files"
from = ["group:staff"]
to = ["files"]
limits = { download = "256KiB/h", on_exceed = "restrict", restrict_to = "basics" }

[[access]]
name = "staff use the api"
from = ["group:staff"]
to = ["api"]
limits = { connections = "12/10m", on_exceed = "challenge" }

[[access]]
name = "everybody reads the wiki"
from = ["user:*"]
to = ["wiki"]

[[limit]]
name = "people who scan"
from = ["user:*"]
refused = "10/m"
on_exceed = "restrict"
restrict_to = "basics"
"#;

/// Volume and scans that narrow, and a rate that asks for a fresh sign-in: what is open beyond the set is cut, what is in it goes on.
#[test]
fn a_limit_that_narrows_cuts_what_is_open_beyond_its_set_and_keeps_the_rest() -> Result<()> {
    let pair = pair("limit-narrow", NARROWING)?;
    let mut wiki = pair.alice.chatter(pair.at, WIKI)?;
    let mut of_bob = pair.bob.chatter(pair.at, WIKI)?;
    for (exceeded, whom, port, to, words) in [
        (
            Exceeded::Rate,
            ["subject", "alice"],
            API,
            "api:7002",
            ["more than 12 connections within 10 min", "asks for a fresh sign-in"],
        ),
        (
            Exceeded::Volume,
            ["subject", "alice"],
            FILES,
            "files:7000",
            ["more than 256KiB down within 1 h", "until an administrator releases it"],
        ),
        (
            Exceeded::Scan,
            ["device", "laptop-a"],
            FILES,
            "files:7000",
            ["more than 10 refused destinations within 1 min", "until an administrator releases it"],
        ),
    ] {
        let mut open = pair.alice.chatter(pair.at, port)?;
        let _going_on = pair.exceed(exceeded)?;
        open.is_cut_within(2 * PROMPTLY, &format!("{exceeded:?}"))?;
        wiki.goes_on(&format!("{exceeded:?}"))?;
        of_bob.goes_on(&format!("{exceeded:?} of somebody else"))?;
        ensure!(!can_connect(&pair.alice.host, pair.at, port), "{exceeded:?}: it opens again");
        eventually(PATIENCE, "the controller lists no restraint", || {
            pair.world.ctl(&["restraint", "list"]).ok().filter(|text| text.contains(whom[1]))
        })?;
        pair.explained(to, &words)?;
        pair.world.ctl(&[&["restraint", "release"][..], &whom].concat())?;
    }
    pair.alice.chatter(pair.at, FILES).map(drop)
}

/// The same that ends the session: all that she has is cut, and nothing but a sign-in opens it again.
#[test]
fn a_limit_that_terminates_cuts_everything_of_its_subject_and_nothing_of_others() -> Result<()> {
    let policy = NARROWING
        .replace("on_exceed = \"restrict\", restrict_to = \"basics\"", "on_exceed = \"terminate\"")
        .replace("on_exceed = \"restrict\"\nrestrict_to = \"basics\"", "on_exceed = \"terminate\"")
        .replace("on_exceed = \"challenge\"", "on_exceed = \"terminate\"");
    ensure!(policy.matches("terminate").count() == 3, "{policy}");
    let pair = pair("limit-terminate", &policy)?;
    let mut of_bob = pair.bob.chatter(pair.at, WIKI)?;
    for (exceeded, words) in [
        (Exceeded::Volume, "more than 256KiB down within 1 h"),
        (Exceeded::Rate, "more than 12 connections within 10 min"),
        (Exceeded::Scan, "more than 10 refused destinations within 1 min"),
    ] {
        let (mut files, mut wiki) = (pair.alice.chatter(pair.at, FILES)?, pair.alice.chatter(pair.at, WIKI)?);
        let _going_on = pair.exceed(exceeded)?;
        files.is_cut_within(2 * PROMPTLY, &format!("{exceeded:?}"))?;
        wiki.is_cut_within(2 * PROMPTLY, &format!("{exceeded:?}, beside it"))?;
        of_bob.goes_on(&format!("{exceeded:?} of somebody else"))?;
        eventually(PATIENCE, "she is not told why her session ended", || {
            pair.alice.command().arg("status").run().ok().filter(|status| status.text().contains(words))
        })?;
        let said = pair.world.explain("alice", "wiki");
        ensure!(said.starts_with("denied") && said.contains(words), "{exceeded:?} is not explained: {said}");
        pair.world.sign_in(&pair.alice, "alice")?;
    }
    pair.alice.chatter(pair.at, FILES).map(drop)
}
