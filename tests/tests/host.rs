//! What the node does to its machine: the guard, routes, names. Each defence is also taken out here, and shown to matter.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result};
use postern_tests::{Background, Host, Lab, eventually, lab::binaries, programs};

const SOON: Duration = Duration::from_secs(10);
/// The overlay of these scenarios.
const OVERLAY: &str = "fd5a:1::/48,100.64.0.0/16";

fn host_tool(host: &Host, arguments: &[&str]) -> Result<postern_tests::HostCommand> {
    Ok(host.command(binaries::find("postern-lab-host")?).args(arguments))
}

/// Two machines with a tunnel interface that leads nowhere, and overlay addresses on it: 1 and 2.
fn pair(name: &str) -> Result<(Lab, Host, Host)> {
    let lab = Lab::new(name)?;
    let hosts = [lab.host("victim")?, lab.host("neighbour")?];
    for (host, number) in hosts.iter().zip(["1", "2"]) {
        host.sh("ip tuntap add postern0 mode tun")?;
        let own = format!("fd5a:1::{number},100.64.0.{number}");
        host_tool(host, &["net", "postern0", "1280", &own, OVERLAY])?.run()?.ok()?;
    }
    let [victim, neighbour] = hosts;
    Ok((lab, victim, neighbour))
}

fn guard(host: &Host, own: &str, more: &[&str]) -> Result<()> {
    let arguments = [&["guard", "postern0", OVERLAY, own], more].concat();
    host_tool(host, &arguments)?.stdin("").run()?.ok().map(drop)
}

fn reaches(from: &Host, address: &str) -> bool {
    from.command("ping").args(["-c1", "-W1", address]).run().is_ok_and(|output| output.success())
}

#[test]
fn the_guard_drops_overlay_addresses_from_the_plain_network_and_without_it_they_pass() -> Result<()> {
    let (_lab, victim, neighbour) = pair("guard-in")?;
    // The neighbour routes the victim's overlay addresses over the plain network: the weak host model answers it.
    neighbour.sh(&format!(
        "ip route replace 100.64.0.1/32 via {} src {}; ip -6 route replace fd5a:1::1/128 via {} src {}",
        victim.ipv4(),
        neighbour.ipv4(),
        victim.ipv6(),
        neighbour.ipv6()
    ))?;
    for address in ["100.64.0.1", "fd5a:1::1"] {
        assert!(reaches(&neighbour, address), "{address}: without the guard this machine answers");
    }
    guard(&victim, "fd5a:1::1,100.64.0.1", &[])?;
    for address in ["100.64.0.1", "fd5a:1::1"] {
        assert!(!reaches(&neighbour, address), "{address}: the guard lets it in");
        assert!(reaches(&victim, address), "{address}: the machine does not reach itself");
    }
    assert!(reaches(&neighbour, &victim.ipv4().to_string()), "the plain network stays as it was");
    host_tool(&victim, &["unguard"])?.run()?.ok()?;
    assert!(reaches(&neighbour, "100.64.0.1"), "down takes the guard out");
    Ok(())
}

#[test]
fn nothing_for_the_overlay_leaves_in_the_clear_even_with_a_route_for_it() -> Result<()> {
    let (lab, victim, neighbour) = pair("guard-out")?;
    let leak = |host: &Host| -> Result<()> {
        host.sh(&format!(
            "ip route replace 100.64.0.2/32 via {}; ip -6 route replace fd5a:1::2/128 via {}",
            neighbour.ipv4(),
            neighbour.ipv6()
        ))?;
        for address in ["100.64.0.2", "fd5a:1::2"] {
            host.command("ping").args(["-c2", "-W1", address]).run()?;
        }
        Ok(())
    };
    let filter = "net 100.64.0.0/16 or net fd5a:1::/48";
    let capture = lab.capture()?;
    leak(&victim)?;
    assert!(!capture.stop()?.packets(filter)?.is_empty(), "without the guard it leaks");
    guard(&victim, "fd5a:1::1,100.64.0.1", &[])?;
    let capture = lab.capture()?;
    leak(&victim)?;
    capture.stop()?.expect_none(filter)
}

#[test]
fn a_killed_node_leaves_the_guard_and_a_flushed_guard_comes_back() -> Result<()> {
    let (_lab, victim, _) = pair("guard-back")?;
    let present = |host: &Host| host.command("nft").args(["list", "table", "inet", "postern"]).run();
    let fifo = "mkfifo -m 600 /run/lines; exec 3<>/run/lines; exec \"$0\" \"$@\" <&3";
    let mut node = victim
        .command("sh")
        .args(["-c", fifo])
        .arg(binaries::find("postern-lab-host")?)
        .args(["guard", "postern0", OVERLAY, "100.64.0.1"])
        .spawn()?;
    node.wait_for_output("ready", SOON)?;
    let look = |node: &mut Background, times: usize| -> Result<String> {
        victim.sh("echo look > /run/lines")?;
        let lines = |node: &Background| node.output().lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
        eventually(SOON, "the node looks", || lines(node).get(times).cloned())
    };
    assert!(look(&mut node, 0)?.starts_with("InPlace"));
    victim.sh("nft flush ruleset")?;
    assert!(look(&mut node, 1)?.starts_with("Reinstalled"));
    victim.sh("nft flush chain inet postern prerouting")?;
    assert!(look(&mut node, 2)?.starts_with("Reinstalled"), "a table without its rules is no guard");
    assert!(look(&mut node, 3)?.starts_with("InPlace"));
    node.kill();
    present(&victim)?.ok()?;
    guard(&victim, "100.64.0.1", &[])?; // the next node replaces it
    present(&victim)?.ok().map(drop)
}

#[test]
fn a_closed_plain_network_answers_nothing_but_the_operators_list() -> Result<()> {
    let (_lab, victim, neighbour) = pair("guard-closed")?;
    let _servers = [
        programs::http_server(&victim, 8080, "closed")?,
        programs::http_server(&victim, 8081, "open")?,
        programs::http_server(&neighbour, 8082, "outside")?,
    ];
    // Another firewall that lets everything in, and publishes a port by destination NAT as container engines do.
    victim
        .command("nft")
        .args(["-f", "-"])
        .stdin(
            "table inet other {\n chain welcome {\n type filter hook input priority 0;\n accept\n }\n chain published {\n \
             type nat hook prerouting priority -100;\n tcp dport 9090 redirect to :8080\n }\n}\n",
        )
        .run()?
        .ok()?;
    let open = |host: &Host, to: IpAddr, port: u16| programs::can_connect(host, to, port);
    let victims = [victim.ipv4(), victim.ipv6()];
    for address in victims {
        assert!(open(&neighbour, address, 8080) && open(&neighbour, address, 9090), "nothing is closed yet");
    }
    let from = format!("tcp/8081 from {}/32", neighbour.ipv4());
    guard(&victim, "fd5a:1::1,100.64.0.1", &["51820", &from, "tcp/8081 from 2001:db8::/32"])?;
    for address in victims {
        assert!(!open(&neighbour, address, 8080), "{address}: closed");
        assert!(!open(&neighbour, address, 9090), "{address}: a published port is closed as well");
        assert!(open(&neighbour, address, 8081), "{address}: on the operator's list");
        assert!(open(&victim, address, 8080), "{address}: the machine reaches itself");
    }
    for address in [neighbour.ipv4(), neighbour.ipv6()] {
        assert!(open(&victim, address, 8082), "{address}: answers come in");
    }
    // Neighbour discovery still works from nothing.
    victim.sh("ip neigh flush all; ip -6 neigh flush all")?;
    neighbour.sh("ip neigh flush all; ip -6 neigh flush all")?;
    assert!(open(&neighbour, victim.ipv6(), 8081));
    Ok(())
}

#[test]
fn blackholes_stay_when_the_tunnel_goes() -> Result<()> {
    let lab = Lab::new("blackhole")?;
    let (host, neighbour) = (lab.host("a")?, lab.host("b")?);
    host.sh(&format!(
        "ip route add default via {}; ip -6 route add default via {}; ip tuntap add postern0 mode tun",
        neighbour.ipv4(),
        neighbour.ipv6()
    ))?;
    let net = ["net", "postern0", "1280", "fd5a:1::1,100.64.0.1", OVERLAY];
    host_tool(&host, &net)?.run()?.ok()?;
    host_tool(&host, &net)?.run()?.ok()?; // again changes nothing
    assert!(host.sh("ip route get 100.64.0.9")?.contains("dev postern0 src 100.64.0.1"));
    assert!(host.sh("ip -6 route get fd5a:1::9")?.contains("dev postern0"));
    let moved = ["net", "postern0", "1300", "fd5a:1::7,100.64.0.7", OVERLAY];
    host_tool(&host, &moved)?.run()?.ok()?;
    let addresses = host.sh("ip addr show postern0")?;
    assert!(addresses.contains("100.64.0.7/32") && addresses.contains("mtu 1300"), "{addresses}");
    assert!(!addresses.contains("100.64.0.1/"), "an address that is no longer planned goes");
    host.sh("ip link del postern0")?;
    let capture = lab.capture()?;
    for address in ["100.64.0.9", "fd5a:1::9"] {
        assert!(!host.command("ping").args(["-c1", "-W1", address]).run()?.success());
    }
    capture.stop()?.expect_none("icmp or (icmp6 and ip6[40] == 128)")?;
    host_tool(&host, &["unnet"])?.run()?.ok()?;
    assert!(!host.sh("ip route; ip -6 route")?.contains("blackhole"), "down takes them out");
    Ok(())
}

#[test]
fn candidates_are_outer_addresses_and_follow_a_roam() -> Result<()> {
    let (lab, host, _) = pair("candidates")?;
    let mut watcher = host_tool(&host, &["underlay", "postern0", OVERLAY])?.spawn()?;
    let first = watcher.wait_for_output("candidates", SOON)?;
    assert_eq!(first, format!("candidates [{}, {}]", host.ipv6(), host.ipv4()));
    lab.network().roam(&host, "eth0")?;
    let expected = format!("candidates [{}, {}]", host.ipv6(), host.ipv4());
    watcher.wait_for_output(&expected, SOON).map(drop)
}

/// Asks for A records with dig, as the machine is configured or at a server.
fn dig(host: &Host, arguments: &[&str]) -> Result<String> {
    host.command("dig").args(["+time=2", "+tries=1"]).args(arguments).run()?.ok()
}

#[test]
fn names_resolve_while_the_node_runs_and_after_it_crashed_and_resolv_conf_comes_back() -> Result<()> {
    let lab = Lab::new("dns")?;
    let (laptop, server) = (lab.host("laptop")?, lab.host("nameserver")?);
    // A real server for the rest of the world: the same resolver code would prove less, and dnsmasq is not needed.
    let _world = host_tool(&server, &["dns", "/run", &server.ipv4().to_string(), "example", "www=192.0.2.80"])?
        .stdin("")
        .spawn()?;
    programs::wait_for_tcp_listener(&server, 53, SOON)?;
    let original = format!("search corp.example\nnameserver {}\noptions timeout:1\n", server.ipv4());
    laptop.write("/etc/resolv.conf", &original)?;
    laptop.sh("mkdir -p /var/lib/postern")?;
    let start = || -> Result<Background> {
        let mut node =
            host_tool(&laptop, &["dns", "/var/lib/postern", "127.83.0.1", "internal", "payroll-app=100.64.0.9"])?
                .spawn()?;
        node.wait_for_output("ready", SOON)?;
        Ok(node)
    };
    let resolve = |name: &str| laptop.command("getent").args(["ahostsv4", name]).run();
    let node = start()?;
    assert!(resolve("payroll-app.internal")?.ok()?.contains("100.64.0.9"));
    assert!(resolve("www.example")?.ok()?.contains("192.0.2.80"), "the rest of the world goes to its server");
    assert!(dig(&laptop, &["+tcp", "www.example"])?.contains("192.0.2.80"), "over TCP as well");
    assert!(dig(&laptop, &["git.internal"])?.contains("NXDOMAIN"), "what nobody may know does not exist");
    assert!(dig(&laptop, &["AAAA", "payroll-app.internal"])?.contains("status: NOERROR"));
    assert!(dig(&laptop, &["-x", "100.64.0.9"])?.contains("payroll-app.internal."));
    assert!(dig(&laptop, &["-x", "100.64.0.8"])?.contains("NXDOMAIN"));
    node.kill();
    assert!(resolve("www.example")?.ok()?.contains("192.0.2.80"), "the machine still has names after a crash");
    let node = start()?; // repairs, and takes over again
    assert_eq!(laptop.read("/etc/resolv.conf")?.matches("nameserver").count(), 2);
    assert!(resolve("payroll-app.internal")?.success());
    node.kill();
    let restored = host_tool(&laptop, &["undns", "/var/lib/postern"])?.run()?.ok()?;
    assert_eq!(restored, "Original\n");
    assert_eq!(laptop.read("/etc/resolv.conf")?, original);
    assert_eq!(host_tool(&laptop, &["undns", "/var/lib/postern"])?.run()?.ok()?, "Nothing\n");
    Ok(())
}

#[test]
fn a_resolv_conf_that_is_a_link_or_somebody_elses_is_respected() -> Result<()> {
    let lab = Lab::new("dns-link")?;
    let laptop = lab.host("laptop")?;
    laptop.sh("mkdir -p /run/net /var/lib/postern; echo 'nameserver 192.0.2.1' > /run/net/resolv.conf")?;
    laptop.sh("rm /etc/resolv.conf; ln -s ../run/net/resolv.conf /etc/resolv.conf")?;
    let arguments = ["dns", "/var/lib/postern", "127.83.0.1", "internal"];
    let mut node = host_tool(&laptop, &arguments)?.spawn()?;
    node.wait_for_output("ready", SOON)?;
    assert_eq!(laptop.read("/run/net/resolv.conf")?, "nameserver 192.0.2.1\n", "the target is not ours to write");
    let text = laptop.read("/etc/resolv.conf")?;
    assert!(text.contains("nameserver 127.83.0.1\nnameserver 192.0.2.1\n"), "{text}");
    node.kill();
    host_tool(&laptop, &["undns", "/var/lib/postern"])?.run()?.ok()?;
    assert_eq!(laptop.sh("readlink /etc/resolv.conf")?, "../run/net/resolv.conf\n");
    let mut node = host_tool(&laptop, &arguments)?.spawn()?;
    node.wait_for_output("ready", SOON)?;
    node.kill();
    laptop.sh("echo 'nameserver 192.0.2.2' > /etc/dhcp.new; mv /etc/dhcp.new /etc/resolv.conf")?;
    assert_eq!(host_tool(&laptop, &["undns", "/var/lib/postern"])?.run()?.ok()?, "Foreign\n");
    assert_eq!(laptop.read("/etc/resolv.conf")?, "nameserver 192.0.2.2\n");
    Ok(())
}

#[test]
fn missing_privileges_are_named() -> Result<()> {
    let lab = Lab::new("privileges")?;
    let host = lab.host("a")?;
    let output = host
        .command("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
        .arg(binaries::find("postern-lab-host")?)
        .args(["guard", "postern0", OVERLAY, "100.64.0.1"])
        .run()
        .context("setpriv is part of util-linux")?;
    assert!(!output.success() && output.stderr.contains("nft refuses the guard"), "{}", output.text());
    Ok(())
}
