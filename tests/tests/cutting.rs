//! What ends, ends everywhere: revocation and deadlines cut flows that are established, both ways.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Echo, Signal,
    deployment::{Deployment, Family, Node, PATIENCE},
    eventually,
    programs::can_connect,
};

const POLICY: &str = r#"
[resource.echo]
nodes = ["tag:echo"]
ports = ["tcp/7000", "udp/7000"]

[[access]]
name = "staff use echo"
from = ["group:staff"]
to = ["echo"]
lease = "30s"
"#;

struct Scene {
    world: Deployment,
    laptop: Node,
    server: Node,
    _echo: Echo,
    at: IpAddr,
}

/// A laptop with a live TCP and a live UDP conversation with a server that echoes.
fn scene(name: &str) -> Result<Scene> {
    let world = Deployment::start(name)?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["staff"])?;
    let server = world.server("echo", &["echo"], None)?;
    let echo = server.echo(&[7000])?;
    let laptop = world.laptop("laptop")?;
    world.sign_in(&laptop, "alice")?;
    let at = server.overlay(Family::V6)?;
    Ok(Scene { world, laptop, server, _echo: echo, at })
}

fn revoking_cuts(name: &str, revoke: &[&str]) -> Result<()> {
    let scene = scene(name)?;
    let mut tcp = scene.laptop.chatter(scene.at, 7000)?;
    let mut udp = scene.laptop.chatter_by_udp(scene.at, 7000)?;
    let said = scene.world.ctl(&[&["revoke"], revoke, &["--reason", "test"]].concat())?;
    // Each flow lives in the tables of both ends and is told of once.
    ensure!(said.starts_with("revoked on 2 of 2 nodes in ") && said.contains(" ms; 2 live flows cut"), "{said}");
    let (tcp_before, udp_before) = (tcp.lines(), udp.lines());
    tcp.falls_silent("revoked")?;
    udp.falls_silent("revoked")?;
    // what had come back when the command returned may still have been on its way to the screen, and no more
    for (client, before, what) in [(&tcp, tcp_before, "TCP"), (&udp, udp_before, "UDP")] {
        let after = client.lines() - before;
        ensure!(after <= 2, "{what} brought {after} lines after the revocation");
    }
    ensure!(!can_connect(&scene.laptop.host, scene.at, 7000), "a new connection after the revocation");
    Ok(())
}

/// What `policy plan` says would be cut is what `policy apply` cuts, and a plan itself cuts nothing.
#[test]
fn a_plan_names_the_live_flow_that_applying_it_cuts() -> Result<()> {
    let scene = scene("plan-flows")?;
    let mut tcp = scene.laptop.chatter(scene.at, 7000)?;
    let mut udp = scene.laptop.chatter_by_udp(scene.at, 7000)?;
    let next = POLICY.replace("[\"tcp/7000\", \"udp/7000\"]", "[\"udp/7000\"]");
    scene.world.controller.write("/run/next.toml", &next)?;
    let plan = scene.world.ctl(&["policy", "plan", "/run/next.toml"])?;
    ensure!(
        plan.contains("- group:staff   loses   echo tcp/7000   alice on laptop, 1 live flow would be cut"),
        "{plan}"
    );
    ensure!(plan.contains("(laptop -> echo, ") && !plan.contains("not counted"), "{plan}");
    tcp.goes_on("only planned")?;
    udp.goes_on("only planned")?;
    scene.world.ctl(&["policy", "apply", "/run/next.toml"])?;
    tcp.falls_silent("its port is in no rule any more")?;
    udp.goes_on("it loses nothing")?;
    let after = scene.world.ctl(&["policy", "plan", "/run/next.toml"])?;
    ensure!(after.contains("nobody who is signed in now gains or loses anything"), "{after}");

    // A node that cannot answer is said to be missing from the count.
    scene.server.stop(Signal::Kill)?;
    let nothing = POLICY.split("[[access]]").next().unwrap_or_default();
    scene.world.controller.write("/run/nothing.toml", nothing)?;
    let told = eventually(PATIENCE, "the controller still waits for a node that is gone", || {
        let plan = scene.world.ctl(&["policy", "plan", "/run/nothing.toml"]).ok()?;
        plan.contains("live flows to echo are not counted").then_some(plan)
    })?;
    ensure!(told.contains("loses   echo udp/7000"), "{told}");
    Ok(())
}

#[test]
fn revoking_a_session_cuts_established_tcp_and_udp() -> Result<()> {
    revoking_cuts("rev-session", &["session", "alice/laptop"])
}

#[test]
fn revoking_a_device_cuts_established_tcp_and_udp() -> Result<()> {
    revoking_cuts("rev-device", &["device", "laptop"])
}

#[test]
fn revoking_a_subject_cuts_established_tcp_and_udp() -> Result<()> {
    revoking_cuts("rev-subject", &["subject", "alice"])
}

#[test]
fn revoking_a_rule_cuts_established_tcp_and_udp() -> Result<()> {
    revoking_cuts("rev-rule", &["rule", "staff use echo"])
}

/// The controller is gone, nobody sends a packet, and still the connection ends at its lease's end: at both ends.
#[test]
fn an_idle_flow_is_reset_at_its_deadline_with_the_controller_stopped() -> Result<()> {
    let scene = scene("deadline")?;
    let mut idle =
        scene.laptop.host.command("socat").args(["-u", &format!("TCP6:[{}]:7000", scene.at), "-"]).spawn()?;
    let established = |node: &Node| -> Option<String> {
        let sockets =
            node.host.command("ss").args(["-Htn", "state", "established", "( sport = :7000 or dport = :7000 )"]);
        sockets.run().ok().map(|output| output.stdout.trim().to_owned())
    };
    eventually(PATIENCE, "no idle connection", || established(&scene.server).filter(|s| !s.is_empty()))?;
    scene.world.stop_controller(Signal::Kill)?;
    let capture = scene.world.lab.capture()?;
    let resources = scene.laptop.json(&["resources"])?;
    let began = Instant::now();
    eventually(Duration::from_secs(45), "the idle connection outlives its lease", || {
        (!idle.is_running()).then_some(())
    })
    .with_context(|| format!("{resources}"))?;
    let lived = began.elapsed();
    ensure!(lived <= Duration::from_secs(32), "a lease of 30 s ended after {lived:?}");
    eventually(Duration::from_secs(2), "the server still holds the connection", || {
        established(&scene.server).filter(String::is_empty)
    })?;
    ensure!(!can_connect(&scene.laptop.host, scene.at, 7000), "a door is open with no lease");
    drop(capture);
    Ok(())
}
