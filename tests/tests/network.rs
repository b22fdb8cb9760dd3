//! The network under the tunnel: narrow paths, NAT, and somebody who takes things away on the machine itself.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Background, Host, Network,
    deployment::{Deployment, Family, Node, PATIENCE},
    eventually,
    programs::{can_connect, http_server, iperf_server},
};

const POLICY: &str = r#"
[resource.app]
nodes = ["tag:app"]
ports = ["tcp/8080", "tcp/5201", "icmp"]

[resource.db]
nodes = ["tag:db"]
ports = ["tcp/5432"]

[[access]]
name = "staff use the app"
from = ["group:staff"]
to = ["app"]

[[access]]
name = "batch reads the database"
from = ["service:batch"]
to = ["db"]
"#;
/// How soon what somebody took away must be there again.
const SOON: Duration = Duration::from_secs(5);

fn opens(from: &Node, to: IpAddr, port: u16) -> Result<()> {
    let what = format!("{} does not reach {to} port {port}", from.host.name());
    eventually(PATIENCE, &what, || can_connect(&from.host, to, port).then_some(())).with_context(|| from.log())
}

/// Puts a router between the first network and another, both of whose ways take `mtu` bytes; returns a machine behind it.
fn behind_a_narrow_hop(world: &Deployment, name: &str, mtu: u32) -> Result<(Host, Network)> {
    let (near, far) = (world.lab.network(), world.lab.new_network(&format!("far-{name}"))?);
    let router = world.lab.unconnected_host(&format!("router-{name}"))?;
    far.connect(&router, "far")?;
    let gateways = [router.ipv4(), router.ipv6()];
    near.connect(&router, "near")?;
    router.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")?;
    // A link with a smaller MTU would do the same; a cable of the lab swallows what is too long for its far end.
    router.sh(&format!(
        "for dev in near far; do
           for family in -4 -6; do
             for net in $(ip $family route show dev $dev proto kernel | cut -d' ' -f1 | grep -v fe80); do
               ip $family route replace $net dev $dev mtu lock {mtu} $([ $family = -4 ] || echo metric 256)
             done
           done
         done"
    ))?;
    let host = world.lab.host_on(name, &far)?;
    host.sh(&format!("ip route add default via {}; ip -6 route add default via {}", gateways[0], gateways[1]))?;
    let nets =
        ["ipv4", "ipv6"].map(|family| if family == "ipv4" { far.ipv4(0).to_string() } else { far.ipv6(0).to_string() });
    let back = format!(
        "ip route add {}/24 via {}; ip -6 route add {}/64 via {}",
        nets[0],
        router.ipv4(),
        nets[1],
        router.ipv6()
    );
    world.controller.sh(&back)?;
    host.write("/run/way-back", back)?;
    Ok((host, far))
}

/// Both families outside, and both inside: a download passes, and a packet that is too long is answered with what fits.
#[test]
fn a_narrow_path_is_no_black_hole_and_programs_are_told_what_it_takes() -> Result<()> {
    let world = Deployment::start("narrow")?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["staff"])?;
    let app = world.server("app", &["app"], None)?;
    let _iperf = iperf_server(&app.host, 5201)?;
    for (outer, mtu, header) in [(Family::V4, 1_400, 20), (Family::V6, 1_400, 40), (Family::V6, 1_280, 40)] {
        let name = format!("laptop-{}", mtu + header);
        let (host, _network) = behind_a_narrow_hop(&world, &name, mtu)?;
        app.host.sh(&host.read("/run/way-back")?)?;
        host.sh(match outer {
            Family::V4 => "ip -6 addr flush dev eth0 scope global",
            Family::V6 => "ip -4 addr flush dev eth0 scope global",
        })?;
        let laptop = world.adopt(host, "")?;
        world.sign_in(&laptop, "alice")?;
        for inner in Family::BOTH {
            let at = app.overlay(inner)?;
            opens(&laptop, at, 5201)?;
            for direction in ["--reverse", "--bidir"] {
                let load = ["-c", &at.to_string(), "-n", "3M", direction, "--connect-timeout", "5000"];
                let run = laptop.host.command("timeout").args(["40", "iperf3"]).args(load).run()?;
                ensure!(run.success(), "{outer:?} of {mtu}, {inner:?} inside, {direction}: {}", run.text());
            }
            let least = if inner == Family::V4 { 576 } else { 1_280 };
            let fits = (mtu - header - 40).max(least);
            let headers = if inner == Family::V4 { 28 } else { 48 };
            let ping = |length: u32| {
                let size = (length - headers).to_string();
                laptop.host.command("ping").args(["-M", "do", "-c1", "-W2", "-s", &size, &at.to_string()]).run()
            };
            let asked = || {
                let said = ping(fits + 1).ok()?.text();
                ["mtu=", "mtu = ", "mtu: "].iter().any(|word| said.contains(&format!("{word}{fits}"))).then_some(())
            };
            eventually(PATIENCE, "a ping that is too long is not told what fits", asked)
                .with_context(|| format!("{outer:?} of {mtu}, {inner:?} inside, {fits}: {:?}", ping(fits + 1)))?;
            let passes = || ping(fits).ok()?.success().then_some(());
            eventually(PATIENCE, "what fits does not pass", passes)
                .with_context(|| format!("{outer:?} of {mtu}, {inner:?} inside, {fits}"))?;
        }
    }
    Ok(())
}

#[test]
fn the_tunnels_mtu_follows_the_machines_links_unless_it_is_fixed() -> Result<()> {
    let world = Deployment::start("mtu")?;
    let (follows, fixed) =
        (world.server("follows", &[], None)?, world.server_with("fixed", &[], None, "mtu = 1390\n")?);
    let mtu = |node: &Node| Some(node.host.read("/sys/class/net/postern0/mtu").ok()?.trim().to_owned());
    let becomes = |node: &Node, wanted: &str| {
        let is = || (mtu(node)? == wanted).then_some(());
        eventually(SOON, &format!("{}: the MTU does not become {wanted}", node.host.name()), is)
            .with_context(|| node.log())
    };
    follows.overlay(Family::V4)?;
    fixed.overlay(Family::V4)?;
    becomes(&follows, "1420")?;
    becomes(&fixed, "1390")?;
    for node in [&follows, &fixed] {
        node.host.sh("ip link set eth0 mtu 1400")?;
    }
    becomes(&follows, "1320")?;
    follows.host.sh("ip link set postern0 mtu 9000")?;
    becomes(&follows, "1320").context("somebody else changed it")?;
    follows.host.sh("ip link set eth0 mtu 1500")?;
    becomes(&follows, "1420")?;
    becomes(&fixed, "1390")
}

/// Servers behind a home router, and a service outside that calls them: nothing but a keepalive holds the way open.
#[test]
fn a_node_behind_a_nat_is_reached_after_its_mapping_would_be_forgotten() -> Result<()> {
    let world = Deployment::start("nat")?;
    world.apply_policy(POLICY)?;
    let home = world.lab.new_network("home")?;
    let router = world.lab.nat_router("router", world.lab.network(), &home)?;
    let remembers = Duration::from_secs(30);
    router.sh(&format!(
        "cd /proc/sys/net/netfilter
         for file in nf_conntrack_udp_timeout nf_conntrack_udp_timeout_stream; do echo {} > $file; done",
        remembers.as_secs()
    ))?;
    let batch = world.server("batch", &[], Some("batch"))?;
    let inside = |name: &str, toml: &str| -> Result<(Node, Background)> {
        let host = world.lab.host_on(name, &home)?;
        world.lab.via_router(&host, &router)?;
        let node = world.adopt(host, toml)?;
        world.enrol(&node, &["db"], None)?;
        let server = http_server(&node.host, 5432, "rows")?;
        Ok((node, server))
    };
    let (by_itself, _rows) = inside("by-itself", "")?;
    let (silent, _rows) = inside("silent", "keepalive = 0\n")?;
    let at = [by_itself.overlay(Family::V4)?, silent.overlay(Family::V4)?];
    opens(&batch, at[0], 5432)?;
    // The claim is about time: what the NAT remembers, and more, passes in silence.
    let began = Instant::now();
    let over = || (began.elapsed() > remembers.mul_f32(1.5)).then_some(());
    eventually(PATIENCE, "time stands still", over)?;
    ensure!(can_connect(&batch.host, at[0], 5432), "{}", by_itself.log());
    ensure!(!can_connect(&batch.host, at[1], 5432), "without keepalives nobody gets through the NAT");
    Ok(())
}

#[test]
fn what_somebody_takes_away_on_the_machine_is_put_back() -> Result<()> {
    let world = Deployment::start("put-back")?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["staff"])?;
    let app = world.server("app", &["app"], None)?;
    let _page = http_server(&app.host, 8080, "secret-word")?;
    let laptop = world.laptop("laptop")?;
    world.sign_in(&laptop, "alice")?;
    let at = [app.overlay(Family::V4)?, app.overlay(Family::V6)?];
    let capture = world.lab.capture()?;
    for taken in [
        "ip link set postern0 down; ip link set postern0 up",
        "ip link set postern0 down",
        "ip addr flush dev postern0",
        "ip route flush proto 112; ip -6 route flush proto 112",
        "nft flush ruleset",
        "nft delete table inet postern",
        "nft flush chain inet postern output",
        "ip link del postern0",
    ] {
        at.iter().try_for_each(|at| opens(&laptop, *at, 8080)).with_context(|| format!("before: {taken}"))?;
        for node in [&laptop, &app] {
            node.host.sh(taken)?;
            let whole = || {
                let links = node.host.sh("ip -o addr show dev postern0 scope global").ok()?;
                let routes = node.host.sh("ip route show proto 112; ip -6 route show proto 112").ok()?;
                let table = node.host.sh("nft list chain inet postern output").ok()?;
                let whole = links.lines().count() == 2
                    && routes.matches("dev postern0").count() == 2
                    && routes.matches("blackhole").count() == 2
                    && table.contains("@overlay4");
                whole.then_some(())
            };
            let what = format!("{}: not put back: {taken}", node.host.name());
            eventually(SOON, &what, whole).with_context(|| node.log())?;
        }
        at.iter().try_for_each(|at| opens(&laptop, *at, 8080)).with_context(|| format!("after: {taken}"))?;
    }
    let recording = capture.stop()?;
    at.iter().try_for_each(|at| recording.expect_none(&format!("host {at}")))?;
    ensure!(!recording.contains(b"secret-word")?, "a page crossed the outer network in clear");
    Ok(())
}
