//! Stock WireGuard clients: real ones, with a configuration from the pages, and only where a rule permits them.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Background, Host,
    browser::Browser,
    deployment::{Deployment, Family, Node, PASSWORD, PATIENCE},
    eventually,
    programs::{boringtun, can_connect, http_get, http_server, wireguard_go},
};

const POLICY: &str = r#"
[resource.payroll-app]
nodes = ["tag:payroll"]
ports = ["tcp/8080"]

[resource.payroll-admin]
nodes = ["tag:payroll"]
ports = ["tcp/9090"]

[resource.git]
nodes = ["tag:git"]
ports = ["tcp/8080"]

[[access]]
name = "payroll people use payroll, from any WireGuard client"
from = ["group:payroll"]
to = ["payroll-app"]
stock_clients = true
lease = "30s"

[[access]]
name = "payroll people administer payroll and read git, from machines with an agent"
from = ["group:payroll"]
to = ["payroll-admin", "git"]

[[access]]
name = "staff use git"
from = ["group:staff"]
to = ["git"]
"#;

struct Scene {
    world: Deployment,
    payroll: Node,
    git: Node,
    phone: Host,
    browser: Browser,
    _pages: [Background; 3],
}

/// Servers, a phone without an agent, and a browser on it where alice is signed in.
fn scene(name: &str) -> Result<Scene> {
    let world = Deployment::start(name)?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["payroll"])?;
    world.add_user("bob", &["staff"])?;
    let payroll = world.server_with("payroll", &["payroll"], None, "key_rotation = \"5s\"\n")?;
    let git = world.server("git", &["git"], None)?;
    let pages = [
        http_server(&payroll.host, 8080, "salaries")?,
        http_server(&payroll.host, 9090, "administration")?,
        http_server(&git.host, 8080, "code")?,
    ];
    let phone = world.lab.host("phone")?;
    let browser = signed_in(&world, &phone, "alice")?;
    Ok(Scene { world, payroll, git, phone, browser, _pages: pages })
}

fn signed_in(world: &Deployment, host: &Host, login: &str) -> Result<Browser> {
    let browser = world.browser(host)?;
    let page = browser.get("https://ctl/sign-in?next=/wireguard")?;
    let page = browser.submit(&page.form("password")?, &[("login", login), ("password", PASSWORD)])?;
    ensure!(page.url.ends_with("/wireguard"), "{} {}", page.url, page.text());
    Ok(browser)
}

/// Takes a configuration from the page, for the public half of a fresh key pair on the phone, and puts the private half in.
fn configuration(scene: &Scene) -> Result<String> {
    scene.phone.sh("umask 077; wg genkey > /run/private; wg pubkey < /run/private > /run/public")?;
    let public = scene.phone.read("/run/public")?;
    // a server that has just joined may not have reported its address yet
    eventually(PATIENCE, "payroll reports no address", || {
        let list = scene.world.ctl_json(&["device", "list"]).ok()?;
        let payroll = list.as_array()?.iter().find(|view| view["record"]["name"] == "payroll")?;
        (!payroll["record"]["endpoints"].as_array()?.is_empty()).then_some(())
    })?;
    let form = scene.browser.get("https://ctl/wireguard")?.form("public_key")?;
    let page = scene.browser.submit(&form, &[("name", "my-phone"), ("public_key", public.trim())])?;
    let text = page.body.split("<pre").nth(1).and_then(|rest| rest.split_once('>')).map(|(_, rest)| rest);
    let text = text.and_then(|rest| rest.split("</pre>").next());
    let text = text.with_context(|| format!("no configuration: ({}) {}", page.status, page.text()))?;
    ensure!(text.matches("[Peer]").count() == 1, "one server's rule permits stock clients: {text}");
    Ok(text.replace("PASTE-YOUR-PRIVATE-KEY-HERE", scene.phone.read("/run/private")?.trim()))
}

/// Sets the interface up as `wg-quick` does: what `wg` knows goes to `wg`, the rest to `ip`.
fn set_up(phone: &Host, configuration: &str) -> Result<()> {
    let value = |key: &str| {
        let line = configuration.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_prefix('='));
        line.map(str::trim).with_context(|| format!("no {key} in {configuration}"))
    };
    let for_wg: String = configuration
        .lines()
        .filter(|line| !line.starts_with("Address") && !line.starts_with("MTU"))
        .map(|line| format!("{line}\n"))
        .collect();
    phone.write("/run/wg0.conf", for_wg)?;
    let mut script = format!("wg setconf wg0 /run/wg0.conf\nip link set wg0 mtu {} up\n", value("MTU")?);
    value("Address")?.split(", ").for_each(|address| script += &format!("ip address replace {address} dev wg0\n"));
    value("AllowedIPs")?.split(", ").for_each(|prefix| script += &format!("ip route replace {prefix} dev wg0\n"));
    phone.sh(&script).map(drop)
}

fn url(at: IpAddr, port: u16) -> String {
    format!("http://{}/", std::net::SocketAddr::new(at, port))
}

/// Checks that the client reaches what its rule names, and nothing else however it bends its own configuration.
fn reaches_its_resource_alone(scene: &Scene) -> Result<()> {
    let Scene { phone, payroll, git, .. } = scene;
    for family in Family::BOTH {
        let at = payroll.overlay(family)?;
        let page = eventually(PATIENCE, &format!("payroll is not reached, {family:?}"), || {
            http_get(phone, &url(at, 8080), Duration::from_secs(3)).ok()
        });
        ensure!(page.with_context(|| phone.sh("wg show wg0").unwrap_or_default())?.contains("salaries"));
        ensure!(!can_connect(phone, at, 9090), "a resource whose rule permits no stock client, {family:?}");
    }
    for family in Family::BOTH {
        let at = git.overlay(family)?;
        let bent = phone.read("/run/wg0.conf")?.replace("AllowedIPs = ", &format!("AllowedIPs = {at}, "));
        phone.write("/run/bent.conf", bent)?;
        phone.sh(&format!("wg setconf wg0 /run/bent.conf; ip route replace {at} dev wg0"))?;
        ensure!(!can_connect(phone, at, 8080), "another node through the same door, {family:?}");
        let at = payroll.overlay(family)?;
        eventually(PATIENCE, "bent, the client reaches nothing at all", || can_connect(phone, at, 8080).then_some(()))?;
    }
    Ok(())
}

/// Waits until the server has used three keys since; the client knows none but the one that it was told.
fn outlives_key_rotations(scene: &Scene) -> Result<()> {
    let mut seen = BTreeSet::new();
    eventually(PATIENCE, "the server does not rotate its keys", || {
        let status = scene.payroll.json(&["status"]).ok()?;
        seen.extend(status["keys"].as_array()?.iter().map(ToString::to_string));
        (seen.len() >= 4).then_some(())
    })
}

fn is_cut(scene: &Scene) -> Result<()> {
    let at = scene.payroll.overlay(Family::V6)?;
    let established = || {
        let ss = scene.payroll.host.command("ss").args(["-Htn", "state", "established", "( sport = :8080 )"]);
        ss.run().ok().map(|output| output.stdout.trim().to_owned())
    };
    eventually(PATIENCE, "the server still holds a connection", || established().filter(String::is_empty))?;
    ensure!(!can_connect(&scene.phone, at, 8080), "the door is still open");
    Ok(())
}

/// Opens a connection that stays: a download that never ends by itself.
fn download(scene: &Scene) -> Result<Background> {
    let big = format!("{}big", url(scene.payroll.overlay(Family::V6)?, 8080));
    let client = scene.phone.command("curl").args(["-sS", "--limit-rate", "1k", "-o", "/dev/null", &big]).spawn()?;
    eventually(PATIENCE, "no download", || {
        let ss = scene.phone.command("ss").args(["-Htn", "state", "established", "( dport = :8080 )"]).run().ok()?;
        (!ss.stdout.trim().is_empty()).then_some(())
    })?;
    Ok(client)
}

#[test]
fn wireguard_go_reaches_what_a_rule_permits_until_its_person_signs_out() -> Result<()> {
    let scene = scene("stock-go")?;
    let configuration = configuration(&scene)?;
    let interface = wireguard_go(&scene.phone, "wg0")?;
    set_up(&scene.phone, &configuration)?;
    reaches_its_resource_alone(&scene)?;
    outlives_key_rotations(&scene)?;
    // a fresh start: a new handshake, with the key that the configuration names
    interface.kill();
    let _interface = wireguard_go(&scene.phone, "wg0")?;
    set_up(&scene.phone, &configuration)?;
    reaches_its_resource_alone(&scene)?;
    let _download = download(&scene)?;
    let page = scene.browser.get("https://ctl/")?;
    let page = scene.browser.submit(&page.form("/sign-out")?, &[])?;
    ensure!(page.text().contains("Signed out"), "{}", page.text());
    is_cut(&scene)
}

#[test]
fn boringtun_reaches_what_a_rule_permits_until_its_device_is_revoked() -> Result<()> {
    let scene = scene("stock-bt")?;
    let configuration = configuration(&scene)?;
    let interface = boringtun(&scene.phone, "wg0")?;
    set_up(&scene.phone, &configuration)?;
    reaches_its_resource_alone(&scene)?;
    outlives_key_rotations(&scene)?;
    interface.kill();
    let _interface = boringtun(&scene.phone, "wg0")?;
    set_up(&scene.phone, &configuration)?;
    reaches_its_resource_alone(&scene)?;
    let _download = download(&scene)?;
    scene.world.ctl(&["revoke", "device", "my-phone", "--reason", "lost"])?;
    is_cut(&scene)
}

#[test]
fn a_person_without_a_rule_for_stock_clients_gets_no_configuration() -> Result<()> {
    let scene = scene("stock-none")?;
    let desk = scene.world.lab.host("desk")?;
    let browser = signed_in(&scene.world, &desk, "bob")?;
    let page = browser.get("https://ctl/wireguard")?;
    ensure!(page.text().contains("No rule for you permits stock WireGuard clients"), "{}", page.text());
    // the form that others see, sent by somebody to whom the page did not offer it
    let mut form = scene.browser.get("https://ctl/wireguard")?.form("public_key")?;
    let own = browser.get("https://ctl/join")?.form("code")?;
    form.fields.insert("token".into(), own.fields.get("token").context("no form token")?.clone());
    let key = desk.sh("wg genkey | wg pubkey")?;
    let page = browser.submit(&form, &[("name", "bobs"), ("public_key", key.trim())])?;
    ensure!(page.status == 422 && page.text().contains("no rule lets you"), "({}) {}", page.status, page.text());
    let devices = scene.world.ctl_json(&["device", "list"])?.to_string();
    ensure!(!devices.contains("bobs"), "{devices}");
    Ok(())
}
