//! Clocks that somebody sets: an hour forward and back, at the controller and at a node, while a lease runs. Nothing opens that was
//! closed, what is beyond its deadline is cut, and when the clock is right again access works again by itself.
//!
//! The wall clocks are moved through the programs' test seam ([`WALL_OFFSET`]); monotonic clocks have none.

use std::{
    net::IpAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, ensure};
use postern_tests::{
    Background, Echo, Signal,
    deployment::{Deployment, Family, Node, PATIENCE, WALL_OFFSET},
    eventually,
    lab::host::Host,
    programs::can_connect,
};

const HOUR: i64 = 3_600_000;
/// A lease of 30 seconds, and what a busy machine needs to notice.
const LEASE: Duration = Duration::from_secs(40);

const POLICY: &str = r#"
[resource.echo]
nodes = ["tag:echo"]
ports = ["tcp/7000"]

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

fn scene(name: &str) -> Result<Scene> {
    let world = Deployment::start(name)?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["staff"])?;
    let server = world.server("echo", &["echo"], None)?;
    let echo = server.echo(&[7000, 7001])?;
    let laptop = world.laptop("laptop")?;
    world.sign_in(&laptop, "alice")?;
    let at = server.overlay(Family::V6)?;
    let scene = Scene { world, laptop, server, _echo: echo, at };
    scene.opens("echo is not reached")?;
    Ok(scene)
}

fn set_clock(host: &Host, offset: i64) -> Result<()> {
    host.write(WALL_OFFSET, offset.to_string())
}

impl Scene {
    fn connects(&self) -> bool {
        can_connect(&self.laptop.host, self.at, 7000)
    }

    /// Waits until the permitted port opens; the one that no rule names stays shut.
    fn opens(&self, otherwise: &str) -> Result<()> {
        eventually(PATIENCE, otherwise, || self.connects().then_some(()))?;
        self.stays_shut()
    }

    fn closes(&self, otherwise: &str) -> Result<()> {
        eventually(LEASE, otherwise, || (!self.connects()).then_some(()))?;
        self.stays_shut()
    }

    fn stays_shut(&self) -> Result<()> {
        ensure!(!can_connect(&self.laptop.host, self.at, 7001), "a clock opened a port that no rule names");
        Ok(())
    }

    /// A connection on which nobody speaks.
    fn idle(&self) -> Result<Background> {
        let idle = self.laptop.host.command("socat").args(["-u", &format!("TCP6:[{}]:7000", self.at), "-"]).spawn()?;
        eventually(PATIENCE, "no idle connection", || established(&self.server).then_some(()))?;
        Ok(idle)
    }
}

fn established(node: &Node) -> bool {
    let sockets = node.host.command("ss").args(["-Htn", "state", "established", "( sport = :7000 or dport = :7000 )"]);
    sockets.run().is_ok_and(|output| !output.stdout.trim().is_empty())
}

fn ends(idle: &mut Background, within: Duration, otherwise: &str) -> Result<()> {
    eventually(within, otherwise, || (!idle.is_running()).then_some(()))
}

#[test]
fn a_controllers_clock_that_jumps_opens_nothing_and_access_comes_back() -> Result<()> {
    let scene = scene("clock-ctl")?;
    let controller = &scene.world.controller;

    // An hour ahead: its leases are over by its clock and are decided anew. Connections may be cut by that; nothing else opens, and
    // who is entitled gets in again while the clock is still wrong.
    set_clock(controller, HOUR)?;
    let began = Instant::now();
    while began.elapsed() < LEASE {
        scene.stays_shut()?;
    }
    scene.opens("an hour forward at the controller keeps a door closed that a lease opens")?;
    let mut idle = scene.idle()?;

    // An hour behind: what it signs then is over before it arrives, so the doors close with the lease that ran.
    set_clock(controller, -HOUR)?;
    ends(&mut idle, LEASE, "a connection outlives its lease while the controller's clock is behind")?;
    scene.closes("a door is open although every grant is from an hour ago")?;

    set_clock(controller, 0)?;
    scene.opens("access does not come back after the controller's clock is right again")?;
    let sessions = scene.world.ctl(&["session", "list"])?;
    ensure!(sessions.contains("alice/laptop"), "the login session ended with the clock: {sessions}");
    Ok(())
}

#[test]
fn a_nodes_clock_that_jumps_opens_nothing_and_access_comes_back() -> Result<()> {
    let scene = scene("clock-node")?;

    // The destination an hour ahead: everything that it was told is over, at once and with no packet sent.
    let idle = scene.idle()?;
    set_clock(&scene.server.host, HOUR)?;
    scene.closes("a door of a node is open beyond its absolute deadline")?;
    eventually(Duration::from_secs(5), "a connection lives at a node beyond its absolute deadline", || {
        (!established(&scene.server)).then_some(())
    })?;
    idle.signal(Signal::Kill)?;
    set_clock(&scene.server.host, 0)?;
    scene.opens("access does not come back after the node's clock is right again")?;

    // The source an hour behind, and the controller gone: the lease still ends by the clock that nobody can set.
    let mut idle = scene.idle()?;
    set_clock(&scene.laptop.host, -HOUR)?;
    set_clock(&scene.server.host, -HOUR)?;
    scene.opens("an hour back closed a door that a lease holds open")?;
    scene.world.stop_controller(Signal::Kill)?;
    ends(&mut idle, LEASE, "a connection outlives its lease because clocks were set back")?;
    scene.closes("a door outlives its lease because clocks were set back")?;

    set_clock(&scene.laptop.host, 0)?;
    set_clock(&scene.server.host, 0)?;
    scene.world.start_controller()?;
    // The nodes' waits between attempts have grown meanwhile.
    eventually(3 * PATIENCE, "access does not come back with the controller", || scene.connects().then_some(()))?;
    scene.stays_shut()
}

/// A time of the day, so many minutes from now: `HH:MM`, UTC.
fn in_minutes(minutes: u64) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / 60;
    let minute = (now + minutes) % (24 * 60);
    Ok(format!("{:02}:{:02}", minute / 60, minute % 60))
}

/// Conditions on time, with one time source that lies to everybody, and to the controller alone: hours that have not begun stay shut an
/// hour ahead, and what was approved for a minute stays shut an hour back, also after a restart of the controller.
#[test]
fn hours_and_approvals_open_nothing_when_clocks_are_set() -> Result<()> {
    let scene = scene("clock-time")?;
    let (begins, ends) = (in_minutes(30)?, in_minutes(90)?);
    let policy = |more: &str| {
        format!(
            "[resource.echo]\nnodes = [\"tag:echo\"]\nports = [\"tcp/7000\"]\n[[access]]\nname = \"staff\"\nfrom = [\"group:staff\"]\nto = [\"echo\"]\nlease = \"30s\"\n{more}\n"
        )
    };
    let hosts = [&scene.world.controller, &scene.laptop.host, &scene.server.host];
    // A policy that is applied decides everything at once: nobody has to wait for the next full minute.
    let stays_shut = |text: &str, when: &str| -> Result<()> {
        scene.world.apply_policy(text)?;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(4) {
            ensure!(!scene.connects(), "{when}: it is open");
        }
        Ok(())
    };

    let hours = policy(&format!("when = {{ hours = \"Mon-Sun {begins}-{ends} UTC\" }}"));
    scene.world.apply_policy(&hours)?;
    scene.closes("hours that have not begun are open")?;
    set_clock(hosts[0], HOUR)?;
    stays_shut(&hours, "the controller an hour ahead")?;
    for host in hosts {
        set_clock(host, HOUR)?;
    }
    stays_shut(&hours, "everybody an hour ahead")?;
    let why = scene.laptop.command().args(["explain", "echo:7000"]).run()?.stdout;
    ensure!(why.contains("clock was set"), "{why}");
    let status = scene.world.ctl(&["status"])?;
    ensure!(status.contains("! the clock was set"), "{status}");
    // Whoever knows that the clock is right says so.
    scene.world.ctl(&["clock", "accept", "--reason", "the lab says so"])?;
    scene.world.apply_policy(&hours)?;
    scene.opens("hours that have begun stay shut although an administrator believes the clock")?;
    for host in hosts {
        set_clock(host, 0)?;
    }
    scene.world.ctl(&["clock", "accept", "--reason", "and it was not"])?;
    scene.world.apply_policy(&hours)?;
    scene.closes("hours that have not begun are open")?;

    let on_request = policy("request = { approvers = [\"group:leads\"], longest = \"1h\" }");
    scene.world.apply_policy(&on_request)?;
    let _asking = scene.laptop.command().args(["request", "echo", "--for", "1m", "--reason", "incident 17"]).spawn()?;
    let waiting = eventually(PATIENCE, "no request came", || {
        let listed = scene.world.ctl_json(&["request", "list"]).ok()?;
        listed[0]["record"]["id"].as_str().map(str::to_owned)
    })?;
    scene.world.ctl(&["request", "approve", &waiting, "--reason", "on call"])?;
    scene.opens("what was approved does not open")?;
    eventually(Duration::from_secs(75), "an approval of a minute is open after it", || {
        (!scene.connects()).then_some(())
    })?;
    for host in hosts {
        set_clock(host, -HOUR)?;
    }
    stays_shut(&on_request, "everybody an hour back")?;
    scene.world.stop_controller(Signal::Kill)?;
    scene.world.start_controller()?;
    eventually(3 * PATIENCE, "the laptop does not come back", || {
        let status = scene.world.ctl(&["status"]).ok()?;
        status.contains("2 of 2 machines connected").then_some(())
    })?;
    stays_shut(&on_request, "after a restart with a clock an hour back")
}
