//! What ends, ends everywhere: revocation and deadlines cut flows that are established, both ways.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Background, Signal,
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
    _servers: Vec<Background>,
    at: IpAddr,
}

/// A laptop with a live TCP and a live UDP conversation with a server that echoes.
fn scene(name: &str) -> Result<Scene> {
    let world = Deployment::start(name)?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["staff"])?;
    let server = world.server("echo", &["echo"], None)?;
    let servers = vec![
        server.host.command("socat").args(["TCP6-LISTEN:7000,fork,reuseaddr,ipv6only=0", "EXEC:cat"]).spawn()?,
        server.host.command("socat").args(["UDP6-LISTEN:7000,fork,reuseaddr,ipv6only=0", "EXEC:cat"]).spawn()?,
    ];
    let laptop = world.laptop("laptop")?;
    world.sign_in(&laptop, "alice")?;
    let at = server.overlay(Family::V6)?;
    eventually(PATIENCE, "echo is not reached", || can_connect(&laptop.host, at, 7000).then_some(()))?;
    Ok(Scene { world, laptop, server, _servers: servers, at })
}

/// A client that sends a line every 100 ms and prints what comes back, until its connection ends.
fn chatter(node: &Node, protocol: &str, at: IpAddr) -> Result<Background> {
    let script =
        format!("i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done | socat -t5 -T30 - {protocol}:[{at}]:7000");
    let mut client = node.host.command("sh").args(["-c", &script]).spawn()?;
    client.wait_for_output("line 5", PATIENCE)?;
    Ok(client)
}

fn silent_for(client: &Background, quiet: Duration) -> Result<()> {
    let mut last = (client.output().len(), Instant::now());
    eventually(PATIENCE, "the conversation goes on", || {
        let length = client.output().len();
        if length != last.0 {
            last = (length, Instant::now());
        }
        (last.1.elapsed() >= quiet).then_some(())
    })
}

fn revoking_cuts(name: &str, revoke: &[&str]) -> Result<()> {
    let scene = scene(name)?;
    let tcp = chatter(&scene.laptop, "TCP6", scene.at)?;
    let udp = chatter(&scene.laptop, "UDP6", scene.at)?;
    let said = scene.world.ctl(&[&["revoke"], revoke, &["--reason", "test"]].concat())?;
    // Each flow lives in the tables of both ends and is told of once.
    ensure!(said.starts_with("revoked on 2 of 2 nodes in ") && said.contains(" ms; 2 live flows cut"), "{said}");
    let lines = |client: &Background| client.output().lines().filter(|line| line.starts_with("line ")).count();
    let (tcp_before, udp_before) = (lines(&tcp), lines(&udp));
    silent_for(&tcp, Duration::from_secs(2))?;
    silent_for(&udp, Duration::from_secs(2))?;
    // what had come back when the command returned may still have been on its way to the screen, and no more
    for (client, before, what) in [(&tcp, tcp_before, "TCP"), (&udp, udp_before, "UDP")] {
        let after = lines(client) - before;
        ensure!(after <= 2, "{what} brought {after} lines after the revocation\n{}", client.output());
    }
    ensure!(!can_connect(&scene.laptop.host, scene.at, 7000), "a new connection after the revocation");
    Ok(())
}

/// What `policy plan` says would be cut is what `policy apply` cuts, and a plan itself cuts nothing.
#[test]
fn a_plan_names_the_live_flow_that_applying_it_cuts() -> Result<()> {
    let scene = scene("plan-flows")?;
    let mut tcp = chatter(&scene.laptop, "TCP6", scene.at)?;
    let mut udp = chatter(&scene.laptop, "UDP6", scene.at)?;
    let next = POLICY.replace("[\"tcp/7000\", \"udp/7000\"]", "[\"udp/7000\"]");
    scene.world.controller.write("/run/next.toml", &next)?;
    let plan = scene.world.ctl(&["policy", "plan", "/run/next.toml"])?;
    ensure!(
        plan.contains("- group:staff   loses   echo tcp/7000   alice on laptop, 1 live flow would be cut"),
        "{plan}"
    );
    ensure!(plan.contains("(laptop -> echo, ") && !plan.contains("not counted"), "{plan}");
    for client in [&mut tcp, &mut udp] {
        let lines = client.output().lines().count();
        client.wait_for_output(&format!("line {}", lines + 10), PATIENCE)?;
    }
    scene.world.ctl(&["policy", "apply", "/run/next.toml"])?;
    silent_for(&tcp, Duration::from_secs(2))?;
    let lines = udp.output().lines().count();
    udp.wait_for_output(&format!("line {}", lines + 10), PATIENCE)?;
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
