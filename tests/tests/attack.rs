//! What an attacker with root and a device's own keys can do, and gets nothing from.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Host,
    deployment::{Deployment, Family, Node, PATIENCE},
    eventually,
    lab::binaries,
    programs::{can_connect, http_get, http_server, nmap_open_ports},
};
use serde_json::Value;

const POLICY: &str = r#"
[resource.wiki]
nodes = ["tag:wiki"]
ports = ["tcp/8080"]

[resource.git]
nodes = ["tag:git"]
ports = ["tcp/22"]

[[access]]
name = "staff read the wiki"
from = ["group:staff"]
to = ["wiki"]
stock_clients = true

[[access]]
name = "engineers use git"
from = ["group:engineers"]
to = ["git"]
"#;

struct Scene {
    world: Deployment,
    wiki: Node,
    git: Node,
    mallory: Node,
    _servers: Vec<postern_tests::Background>,
}

fn scene(name: &str) -> Result<Scene> {
    let world = Deployment::start(name)?;
    world.apply_policy(POLICY)?;
    world.add_user("mallory", &["staff"])?;
    world.add_user("erin", &["engineers"])?;
    let wiki = world.server("wiki", &["wiki"], None)?;
    let git = world.server("git", &["git"], None)?;
    let servers = vec![
        http_server(&wiki.host, 8080, "pages")?,
        http_server(&wiki.host, 9090, "hidden")?,
        http_server(&git.host, 22, "code")?,
    ];
    let mallory = world.laptop("mallory-laptop")?;
    world.sign_in(&mallory, "mallory")?;
    let at = wiki.overlay(Family::V4)?;
    eventually(PATIENCE, "the wiki is not reached", || can_connect(&mallory.host, at, 8080).then_some(()))?;
    Ok(Scene { world, wiki, git, mallory, _servers: servers })
}

fn attack(host: &Host, arguments: &[&str]) -> Result<Value> {
    let program: PathBuf = binaries::find("postern-attack")?;
    let text = host.command(program).args(arguments).run()?.ok()?;
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}

/// Root on the laptop gives itself routes, addresses and a clear way to everything; the servers do not care.
#[test]
fn routes_and_addresses_by_hand_open_nothing() -> Result<()> {
    let scene = scene("by-hand")?;
    let Scene { wiki, git, mallory, .. } = &scene;
    for family in Family::BOTH {
        let (at_wiki, at_git) = (wiki.overlay(family)?, git.overlay(family)?);
        let width = if at_git.is_ipv4() { 32 } else { 128 };
        // everything through the tunnel, and everybody's address on it
        mallory.host.sh(&format!(
            "nft flush ruleset; ip route replace {at_git}/{width} dev postern0; ip addr add {at_git}/{width} dev lo || true"
        ))?;
        ensure!(nmap_open_ports(&mallory.host, at_wiki, "1-1000,8080,9090")? == [8080], "{family:?}");
        mallory.host.sh(&format!("ip addr del {at_git}/{width} dev lo"))?;
        ensure!(nmap_open_ports(&mallory.host, at_git, "1-1000,8080")?.is_empty(), "{family:?}");
        // overlay addresses over the plain network, to the other machine's own link
        let outer = if at_git.is_ipv4() { git.host.ipv4() } else { git.host.ipv6() };
        mallory.host.sh(&format!("ip route replace {at_git}/{width} via {outer} dev eth0 onlink"))?;
        ensure!(!can_connect(&mallory.host, at_git, 22), "over the plain network, {family:?}");
        let own = mallory.overlay(family)?;
        ensure!(
            !mallory
                .host
                .command("nc")
                .args(["-z", "-w", "2", "-s", &own.to_string(), &outer.to_string(), "22"])
                .run()?
                .success(),
            "an overlay source over the plain network, {family:?}"
        );
    }
    Ok(())
}

/// A stock client's keys in the hands of an attacker: the session is real, what it carries is not believed.
#[test]
fn a_real_session_carries_no_borrowed_address_and_no_other_port() -> Result<()> {
    let scene = scene("borrowed")?;
    let Scene { world, wiki, git, mallory, .. } = &scene;
    let tool = world.lab.host("attacker")?;
    let (private, configuration) = stock_configuration(world, &tool, "mallory")?;
    let peer =
        |name: &str| configuration.lines().find_map(|line| line.strip_prefix(name).map(str::trim).map(str::to_owned));
    let (public, preshared) =
        (peer("PublicKey =").context("no peer key")?, peer("PresharedKey =").context("no pre-shared key")?);
    let endpoint = std::net::SocketAddr::new(wiki.host.ipv4(), 51820).to_string();
    let addresses: Vec<IpAddr> = peer("Address =")
        .context("no address")?
        .split(',')
        .filter_map(|a| a.trim().split('/').next().and_then(|a| a.parse().ok()))
        .collect();
    let own = *addresses.iter().find(|a| a.is_ipv4()).context("no IPv4 address")?;
    let keys = ["--private", &private, "--public", &public, "--preshared", &preshared, "--to", &endpoint];
    let to_wiki = wiki.overlay(Family::V4)?.to_string();
    let next_port = std::cell::Cell::new(40_000u16);
    let send = |source: &str, destination: &str, kind: &str, ports: &str| -> Result<Value> {
        let port = next_port.get().to_string();
        next_port.set(next_port.get() + 1);
        let way = ["--source", source, "--destination", destination, "--source-port", &port];
        let rest = [&way[..], &["--kind", kind, "--ports", ports]].concat();
        attack(&tool, &[&["send"][..], &keys, &rest].concat())
    };
    // the server sends its answer to the good packet again for a while, because nobody takes it
    let good_answer = "syn-ack from 8080 to 40000";
    let received = |report: &Value| {
        report["received"].as_array().map_or(0, |list| list.iter().filter(|packet| **packet != good_answer).count())
    };

    let good = send(&own.to_string(), &to_wiki, "tcp-syn", "8080")?;
    ensure!(good["received"][0] == good_answer, "the way that a rule names: {good}");
    for (what, source, destination, kind, ports) in [
        ("another port", own.to_string(), to_wiki.clone(), "tcp-syn", "9090,22,51820"),
        ("a segment in mid-stream to another port", own.to_string(), to_wiki.clone(), "tcp-ack", "9090"),
        ("another protocol", own.to_string(), to_wiki.clone(), "udp", "8080"),
        ("a ping that no rule names", own.to_string(), to_wiki.clone(), "icmp-echo", "0"),
        ("a fragment that hides its ports", own.to_string(), to_wiki.clone(), "tiny-fragment", "8080"),
        ("the laptop's address", mallory.overlay(Family::V4)?.to_string(), to_wiki.clone(), "tcp-syn", "8080"),
        ("the server's own address", to_wiki.clone(), to_wiki.clone(), "tcp-syn", "8080"),
        ("the server's loopback", "127.0.0.1".into(), to_wiki.clone(), "tcp-syn", "8080"),
        ("through the server to git", own.to_string(), git.overlay(Family::V4)?.to_string(), "tcp-syn", "22"),
        ("through the server to git's plain address", own.to_string(), git.host.ipv4().to_string(), "tcp-syn", "22"),
    ] {
        let report = send(&source, &destination, kind, ports)?;
        ensure!(report["session"] == true && received(&report) == 0, "{what}: {report}");
    }

    // The same keys at a node that has nothing to do with this device: a correct initiation gets no answer.
    let git_key = public_key_of(world, "git")?;
    let at_git = std::net::SocketAddr::new(git.host.ipv4(), 51820).to_string();
    let knock =
        |public: &str, to: &str| attack(&tool, &["knock", "--private", &private, "--public", public, "--to", to]);
    ensure!(knock(&public, &endpoint)?["answers"] != 0, "the knock itself is good");
    let silence = knock(&git_key, &at_git)?;
    ensure!(silence["answers"] == 0, "git answered a stranger: {silence}");
    Ok(())
}

/// Everything that was captured is sent again, to both ends: counted and dropped.
#[test]
fn replayed_datagrams_open_nothing() -> Result<()> {
    let scene = scene("replay")?;
    let Scene { world, wiki, mallory, .. } = &scene;
    let at = wiki.overlay(Family::V4)?;
    let capture = world.lab.capture()?;
    for _ in 0..5 {
        http_get(&mallory.host, &format!("http://{at}:8080/"), Duration::from_secs(5))?;
    }
    let recording = capture.stop()?;
    recording.expect_none(&format!("host {at}"))?;
    ensure!(!recording.contains(b"pages")?, "the page crossed the outer network in clear");
    let tool = world.lab.host("attacker")?;
    tool.write("/run/capture.pcap", recording.pcap()?)?;
    let requests = |node: &Node| node.host.sh("ss -Htn state established '( sport = :8080 )' | wc -l");
    let before = requests(wiki)?;
    for node in [wiki, mallory] {
        let to = std::net::SocketAddr::new(node.host.ipv4(), 51820).to_string();
        let report = attack(&tool, &["replay", "--pcap", "/run/capture.pcap", "--port", "51820", "--to", &to])?;
        ensure!(report["sent"].as_u64() > Some(5), "{report}");
        ensure!(report["answers"] == 0, "a replay was answered: {report}");
    }
    ensure!(requests(wiki)? == before, "a replay made a connection");
    http_get(&mallory.host, &format!("http://{at}:8080/"), Duration::from_secs(5)).map(drop)
}

/// Takes a configuration for a stock client from the pages, with a key made here.
fn stock_configuration(world: &Deployment, host: &Host, login: &str) -> Result<(String, String)> {
    let private = host.sh("wg genkey")?.trim().to_owned();
    let public = host.command("wg").arg("pubkey").stdin(private.clone()).run()?.ok()?.trim().to_owned();
    let browser = world.browser(host)?;
    let page = browser.get("https://ctl/wireguard")?;
    let page = browser
        .submit(&page.form("password")?, &[("login", login), ("password", postern_tests::deployment::PASSWORD)])?;
    let form = page.form("public_key")?;
    let page = browser.submit(&form, &[("name", "attacker-phone"), ("public_key", &public)])?;
    ensure!(page.status == 200, "{}", page.text());
    let start = page.body.find("[Interface]").with_context(|| page.text())?;
    let end = page.body[start..].find("</").map_or(page.body.len(), |end| start + end);
    Ok((private, page.body[start..end].to_owned()))
}

/// Returns a machine's newest WireGuard key, as the administrator sees it.
fn public_key_of(world: &Deployment, device: &str) -> Result<String> {
    let shown = world.ctl_json(&["device", "show", device])?;
    find_key(&shown).with_context(|| format!("no WireGuard key in {shown}"))
}

fn find_key(value: &Value) -> Option<String> {
    match value {
        Value::Object(map) => map.iter().find_map(|(name, value)| {
            let text = value.as_str().or_else(|| value[0].as_str()).or_else(|| value[0]["key"].as_str());
            match text {
                Some(text) if name.contains("wireguard") && text.len() == 44 => Some(text.to_owned()),
                _other => find_key(value),
            }
        }),
        Value::Array(list) => list.iter().find_map(find_key),
        _scalar => None,
    }
}
