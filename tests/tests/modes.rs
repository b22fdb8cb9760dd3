//! What policy says holds in every way in which packets can be handled: with the kernel's offloads and without, with one worker and
//! with several, with packets sealed several at once and one by one.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use postern_tests::{
    deployment::{Deployment, Family, Node, PATIENCE},
    eventually,
    programs::can_connect,
};

const POLICY: &str = r#"
[resource.echo]
nodes = ["tag:echo"]
ports = ["tcp/7000", "udp/7000", "icmp"]

[[access]]
name = "staff use echo"
from = ["group:staff"]
to = ["echo"]
lease = "30s"

[[deny]]
name = "contractors never reach echo"
from = ["group:contractors"]
to = ["echo"]
"#;

/// How both ends handle packets.
struct Mode {
    name: &'static str,
    workers: usize,
    offload: &'static str,
    cipher: &'static str,
}

impl Mode {
    fn node_toml(&self) -> String {
        let Self { name: _, workers, offload, cipher } = self;
        format!("[packets]\nworkers = {workers}\noffload = \"{offload}\"\ncipher = \"{cipher}\"\n")
    }

    /// The mode is what was asked for, as far as this machine has it.
    fn is_in_force(&self, node: &Node) -> Result<()> {
        let packets = &node.json(&["status"])?["packets"];
        ensure!(packets["workers"] == self.workers, "{packets}");
        ensure!((packets["offload"] == "off") == (self.offload == "off"), "{packets}");
        ensure!(self.cipher == "auto" || packets["cipher"] == "one by one", "{packets}");
        Ok(())
    }
}

fn echo(from: &Node, protocol: &str, at: IpAddr, port: u16) -> Result<bool> {
    let to = std::net::SocketAddr::new(at, port);
    let said = from.host.sh(&format!("echo mellon | timeout 4 socat -t1 - {protocol}:{to} || true"))?;
    Ok(said.trim() == "mellon")
}

fn policy_holds(mode: &Mode) -> Result<()> {
    let world = Deployment::start(mode.name)?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["staff"])?;
    world.add_user("carol", &["staff", "contractors"])?;
    let toml = mode.node_toml();
    let echo_server = world.server_with("echo", &["echo"], None, &toml)?;
    let other = world.server_with("other", &["other"], None, &toml)?;
    let _echoes = [echo_server.echo(&[7000, 7001])?, other.echo(&[7000])?];
    let laptop = world.machine("laptop", &toml)?;
    world.sign_in(&laptop, "alice")?;
    let contractor = world.machine("contractor", &toml)?;
    world.sign_in(&contractor, "carol")?;
    for node in [&echo_server, &laptop] {
        mode.is_in_force(node)?;
    }
    for family in Family::BOTH {
        let (at, at_other) = (echo_server.overlay(family)?, other.overlay(family)?);
        eventually(PATIENCE, "echo is not reached", || can_connect(&laptop.host, at, 7000).then_some(()))?;
        for protocol in ["TCP", "UDP"] {
            ensure!(echo(&laptop, protocol, at, 7000)?, "{protocol}, {family:?}");
            ensure!(!echo(&laptop, protocol, at, 7001)?, "another port by {protocol}, {family:?}");
            ensure!(!echo(&contractor, protocol, at, 7000)?, "who is denied, by {protocol}, {family:?}");
        }
        ensure!(!can_connect(&laptop.host, at_other, 7000), "another node, {family:?}");
        ensure!(!can_connect(&echo_server.host, laptop.overlay(family)?, 22), "the other direction, {family:?}");
        let ping = laptop.host.command("ping").args(["-c1", "-W3", "-s", "4000", &at.to_string()]).run()?;
        ensure!(ping.success(), "a ping in fragments, {family:?}: {}", ping.text());
        let whole = laptop.host.sh(&format!(
            "head -c 3000000 /dev/urandom > /run/sent; timeout 30 socat -t10 - TCP:{} < /run/sent > /run/back; cmp /run/sent /run/back && echo same",
            std::net::SocketAddr::new(at, 7000)
        ))?;
        ensure!(whole.contains("same"), "three megabytes there and back, {family:?}: {whole}");
    }
    // What lives is cut, and stays cut.
    let at = echo_server.overlay(Family::V6)?;
    let mut tcp = laptop.chatter(at, 7000)?;
    let mut udp = laptop.chatter_by_udp(at, 7000)?;
    let said = world.ctl(&["revoke", "session", "alice/laptop", "--reason", "test"])?;
    ensure!(said.starts_with("revoked on 2 of 2 nodes in "), "{said}");
    let before = [tcp.lines(), udp.lines()];
    tcp.falls_silent("revoked")?;
    udp.falls_silent("revoked")?;
    for (client, before) in [&tcp, &udp].into_iter().zip(before) {
        let after = client.lines() - before;
        ensure!(after <= 2, "{after} lines after the revocation");
    }
    ensure!(!can_connect(&laptop.host, at, 7000), "a new connection after the revocation");
    Ok(())
}

#[test]
fn policy_holds_with_several_workers() -> Result<()> {
    policy_holds(&Mode { name: "mode-workers", workers: 4, offload: "auto", cipher: "auto" })
}

#[test]
fn policy_holds_without_offloads() -> Result<()> {
    policy_holds(&Mode { name: "mode-plain", workers: 1, offload: "off", cipher: "auto" })
}

#[test]
fn policy_holds_without_offloads_with_several_workers_and_packet_by_packet() -> Result<()> {
    policy_holds(&Mode { name: "mode-slow", workers: 3, offload: "off", cipher: "one-by-one" })
}

#[test]
fn policy_holds_with_one_worker_and_packet_by_packet() -> Result<()> {
    policy_holds(&Mode { name: "mode-single", workers: 1, offload: "auto", cipher: "one-by-one" })
}
