//! Connections live on through everything that must not end them: renewals, key rotations, a roam, restarts.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use postern_tests::{
    Signal,
    deployment::{Deployment, Family, Node, PATIENCE},
    eventually,
    programs::{can_connect, iperf_server, ssh_arguments, ssh_server},
};

const POLICY: &str = r#"
[resource.build-host]
nodes = ["tag:build"]
ports = ["tcp/22", "tcp/5201"]

[[access]]
name = "engineers use the build host"
from = ["group:engineers"]
to = ["build-host"]
lease = "30s"
"#;

/// Keys are rotated every 40 seconds here, so that three rotations and ten renewals take little over three minutes.
const NODE: &str = "key_rotation = \"40s\"\n";

/// Watches which WireGuard keys a node has had.
fn keys_of(world: &Deployment, device: &str, seen: &mut BTreeSet<String>) -> Result<()> {
    let shown = world.ctl_json(&["device", "show", device])?;
    collect_keys(&shown, seen);
    Ok(())
}

/// Every WireGuard key in a JSON value: the values below a key whose name speaks of WireGuard.
fn collect_keys(value: &serde_json::Value, seen: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (name, value) in map {
                if name.contains("wireguard") {
                    strings(value, seen);
                } else {
                    collect_keys(value, seen);
                }
            }
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| collect_keys(value, seen)),
        _scalar => {}
    }
}

fn strings(value: &serde_json::Value, seen: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::String(text) if text.len() == 44 => {
            seen.insert(text.clone());
        }
        serde_json::Value::Object(map) => map.values().for_each(|value| strings(value, seen)),
        serde_json::Value::Array(list) => list.iter().for_each(|value| strings(value, seen)),
        _scalar => {}
    }
}

fn restart(node: &Node) -> Result<()> {
    node.stop(Signal::Kill)?;
    node.start()
}

/// A line each 100 ms goes to a server that echoes, through a restart of one end, then of the other.
#[test]
fn a_busy_connection_survives_a_restart_of_each_end() -> Result<()> {
    let world = Deployment::start("restarts")?;
    world.apply_policy(POLICY)?;
    world.add_user("erin", &["engineers"])?;
    let build = world.server("build", &["build"], None)?;
    let laptop = world.laptop("erin-laptop")?;
    world.sign_in(&laptop, "erin")?;
    let at = build.overlay(Family::V4)?;
    let _echo = build.host.command("socat").args(["TCP4-LISTEN:5201,fork,reuseaddr", "EXEC:cat"]).spawn()?;
    eventually(PATIENCE, "the build host is not reached", || can_connect(&laptop.host, at, 5201).then_some(()))?;
    let script = format!("i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done | socat -t60 - TCP4:{at}:5201");
    let mut client = laptop.host.command("sh").args(["-c", &script]).spawn()?;
    client.wait_for_output("line 5", PATIENCE)?;
    let _iperf = iperf_server(&build.host, 22)?;
    let mut iperf = laptop
        .host
        .command("iperf3")
        .args(["--client", &at.to_string(), "--port", "22", "--time", "600", "--bitrate", "20M", "--forceflush"])
        .spawn()?;
    iperf.wait_for_output("sec", PATIENCE).with_context(|| {
        format!(
            "{:?}\n{:?}\n{}\n{}\n{}",
            laptop.host.sh("postern() { :; }; ss -tanp; ip route; ip addr show postern0"),
            laptop.postern(&["explain", &format!("{at}:22")]),
            build.host.sh("ss -ltnp").unwrap_or_default(),
            laptop.host.sh("cat /var/lib/postern/flows.jsonl").unwrap_or_default(),
            build.host.sh("cat /var/lib/postern/flows.jsonl").unwrap_or_default()
        )
    })?;
    for node in [&laptop, &build] {
        let capture = |host: &postern_tests::Host| {
            host.command("tcpdump")
                .args(["-Unni", "postern0", "tcp[tcpflags] & (tcp-rst|tcp-syn|tcp-fin) != 0 or icmp"])
                .spawn()
        };
        let captures = [capture(&laptop.host)?, capture(&build.host)?];
        restart(node)?;
        let lines = |text: &str| text.lines().filter(|line| line.starts_with("line ")).count();
        let before = lines(&client.output());
        eventually(PATIENCE, "no line comes back", || (lines(&client.output()) > before + 20).then_some(()))
            .with_context(|| {
                let name = node.host.name();
                let [at_laptop, at_build] = [captures[0].output(), captures[1].output()];
                format!(
                    "iperf {}\nafter a restart of {name}\n{}\n{at_laptop}\n{at_build}\n{}",
                    iperf.output(),
                    client.output(),
                    node.log()
                )
            })?;
        ensure!(
            iperf.is_running(),
            "{}\n{}\n{}\n{}\n{}",
            iperf.output(),
            node.log(),
            node.host.name(),
            captures[0].output(),
            captures[1].output()
        );
    }
    Ok(())
}

#[test]
fn iperf_and_an_idle_ssh_survive_renewals_rotations_a_roam_and_restarts() -> Result<()> {
    let world = Deployment::start("endurance")?;
    world.apply_policy(POLICY)?;
    world.add_user("erin", &["engineers"])?;
    let build = world.server_with("build", &["build"], None, NODE)?;
    let laptop = world.machine("erin-laptop", NODE)?;
    world.sign_in(&laptop, "erin")?;
    let at = build.overlay(Family::V4)?;
    let _sshd = ssh_server(&build.host, &laptop.host, 22)?;
    let _iperf = iperf_server(&build.host, 5201)?;
    eventually(PATIENCE, "the build host is not reached", || can_connect(&laptop.host, at, 22).then_some(()))?;

    // An SSH connection on which nobody says anything for the whole time, until the person types again.
    let ssh = format!("ssh {} root@{at} 'echo ready; read line; echo got $line'", ssh_arguments(22).join(" "));
    let typing = "while [ ! -e /run/type ]; do sleep 0.2; done; echo hello";
    let mut ssh = laptop.host.command("sh").args(["-c", &format!("({typing}) | {ssh}")]).spawn()?;
    ssh.wait_for_output("ready", PATIENCE)?;
    // A stream of bytes for the whole time, slow enough to leave the machine some air.
    let mut iperf = laptop
        .host
        .command("iperf3")
        .args(["--client", &at.to_string(), "--time", "600", "--interval", "1", "--bitrate", "20M", "--forceflush"])
        .spawn()?;
    iperf.wait_for_output("sec", PATIENCE)?;

    let (mut at_build, mut at_laptop) = (BTreeSet::new(), BTreeSet::new());
    let began = Instant::now();
    let mut done = BTreeSet::new();
    let mut once = |name: &'static str, due: bool| due && done.insert(name);
    eventually(Duration::from_secs(420), "three rotations of each end", || {
        let mut step = || -> Result<bool> {
            keys_of(&world, "build", &mut at_build)?;
            keys_of(&world, "erin-laptop", &mut at_laptop)?;
            let rotations = at_build.len().min(at_laptop.len()).saturating_sub(1);
            if once("roam", rotations >= 1) {
                world.lab.network().roam(&laptop.host, "eth0")?;
            }
            if once("restart of the laptop", rotations >= 1 && began.elapsed() > Duration::from_secs(70)) {
                restart(&laptop)?;
            }
            if once("restart of the server", rotations >= 2) {
                restart(&build)?;
            }
            // ten renewals of a 30 s lease, one every 20 s
            Ok(rotations >= 3 && began.elapsed() >= Duration::from_secs(205))
        };
        match step() {
            Ok(true) => Some(Ok(())),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    })
    .with_context(|| format!("keys seen: {at_build:?} {at_laptop:?}\n{}", laptop.log()))??;

    let intervals = |output: &str| output.matches("Mbits/sec").count();
    let before = intervals(&iperf.output());
    if !iperf.is_running() {
        let records = |node: &Node| node.host.sh("tail -n 30 /var/lib/postern/flows.jsonl").unwrap_or_default();
        let both = [&laptop, &build].map(|node| format!("{}\n{}\n{}", node.host.name(), node.log(), records(node)));
        bail!("iperf3 ended: {}\n{}", iperf.output(), both.join("\n"));
    }
    eventually(PATIENCE, "iperf3 stands still", || {
        let output = iperf.output();
        let moving = output.lines().rev().take(3).any(|line| line.contains("Mbits/sec") && !line.contains("0.00 "));
        (moving && intervals(&output) > before + 2).then_some(())
    })
    .with_context(|| iperf.output())?;
    laptop.host.sh("touch /run/type")?;
    ssh.wait_for_output("got hello", PATIENCE)?;
    Ok(())
}
