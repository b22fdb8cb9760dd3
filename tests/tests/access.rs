//! Who reaches what: an allowed flow passes in both families, and nothing else is there.

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, ensure};
use postern_tests::{
    deployment::{Deployment, Family, Node, PATIENCE},
    eventually,
    programs::{can_connect, http_get, http_server},
};

const POLICY: &str = r#"
[resource.payroll-app]
nodes = ["tag:payroll"]
ports = ["tcp/8080", "icmp"]

[resource.payslips]
nodes = ["tag:payroll"]
ports = ["udp/8081"]

[resource.ledger]
nodes = ["tag:ledger"]
ports = ["tcp/5432"]

[[access]]
name = "payroll people use payroll"
from = ["group:payroll"]
to = ["payroll-app", "payslips"]

[[access]]
name = "payroll writes the ledger"
from = ["service:payroll-batch"]
to = ["ledger"]
"#;

fn url(address: IpAddr, port: u16) -> String {
    format!("http://{}/", std::net::SocketAddr::new(address, port))
}

fn reaches(from: &Node, address: IpAddr, port: u16) -> Result<()> {
    let what = format!("{} does not reach {address} port {port}", from.host.name());
    eventually(PATIENCE, &what, || http_get(&from.host, &url(address, port), Duration::from_secs(3)).ok()).map(drop)
}

#[test]
fn a_signed_in_person_reaches_what_a_rule_names_and_nothing_else() -> Result<()> {
    let world = Deployment::start("access")?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["payroll"])?;
    let payroll = world.server("payroll", &["payroll"], None)?;
    let git = world.server("git", &["git"], None)?;
    let _pages = [http_server(&payroll.host, 8080, "salaries")?, http_server(&payroll.host, 9090, "other")?];
    let _git_pages = [http_server(&git.host, 8080, "code")?];
    // The same answers by UDP, on the port that is open by TCP alone and on one that a rule names.
    let echo = |port: u16| {
        payroll
            .host
            .command("socat")
            .args([&format!("UDP6-LISTEN:{port},fork,reuseaddr,ipv6only=0"), "EXEC:cat"])
            .spawn()
    };
    let _echoes = [echo(8080)?, echo(8081)?];
    let laptop = world.laptop("alice-laptop")?;
    let said = world.sign_in(&laptop, "alice")?;
    ensure!(said.contains("payroll-app") && !said.contains("ledger"), "{said}");

    for family in Family::BOTH {
        let (at_payroll, at_git) = (payroll.overlay(family)?, git.overlay(family)?);
        reaches(&laptop, at_payroll, 8080)?;
        ensure!(!can_connect(&laptop.host, at_payroll, 9090), "another port, {family:?}");
        ensure!(!can_connect(&laptop.host, at_git, 8080), "another node, {family:?}");
        ensure!(!can_connect(&payroll.host, laptop.overlay(family)?, 22), "the other direction, {family:?}");
        let by_udp = |port: u16| -> Result<String> {
            let to = std::net::SocketAddr::new(at_payroll, port);
            laptop.host.sh(&format!("echo mellon | timeout 4 socat -t1 - UDP:{to} || true"))
        };
        ensure!(by_udp(8081)?.trim() == "mellon", "UDP that a rule names, {family:?}: {}", by_udp(8081)?);
        ensure!(by_udp(8080)?.is_empty(), "another protocol, {family:?}: {}", by_udp(8080)?);
        let ping = laptop.host.command("ping").args(["-c1", "-W3", &at_payroll.to_string()]).run()?;
        ensure!(ping.success(), "{family:?}: {}", ping.text());
        let ping = laptop.host.command("ping").args(["-c1", "-W1", &at_git.to_string()]).run()?;
        ensure!(!ping.success(), "{family:?}: {}", ping.text());
    }
    // by its name, for who may; for who may not, there is no such name
    ensure!(http_get(&laptop.host, "http://payroll-app.internal:8080/", Duration::from_secs(5))?.contains("salaries"));
    ensure!(!laptop.host.command("getent").args(["ahosts", "ledger.internal"]).run()?.success());
    ensure!(!git.host.command("getent").args(["ahosts", "payroll-app.internal"]).run()?.success());

    let explained = laptop.command().args(["explain", "payroll-app:8080"]).run()?.text();
    ensure!(explained.contains("allowed") && explained.contains("payroll people use payroll"), "{explained}");
    let explained = laptop.command().args(["explain", "payroll-app:9090"]).run()?.text();
    ensure!(explained.contains("denied"), "{explained}");
    Ok(())
}

#[test]
fn a_service_reaches_what_its_rule_names_in_that_direction_only() -> Result<()> {
    let world = Deployment::start("service")?;
    world.apply_policy(POLICY)?;
    let batch = world.server("batch", &[], Some("payroll-batch"))?;
    let ledger = world.server("ledger", &["ledger"], None)?;
    let other = world.server("other", &[], Some("reporting"))?;
    let _servers = [http_server(&ledger.host, 5432, "rows")?, http_server(&ledger.host, 22, "shell")?];
    let _back = http_server(&batch.host, 5432, "back")?;
    for family in Family::BOTH {
        let at_ledger = ledger.overlay(family)?;
        reaches(&batch, at_ledger, 5432)?;
        ensure!(!can_connect(&batch.host, at_ledger, 22), "another port, {family:?}");
        ensure!(!can_connect(&ledger.host, batch.overlay(family)?, 5432), "backwards, {family:?}");
        ensure!(!can_connect(&other.host, at_ledger, 5432), "another service, {family:?}");
    }
    Ok(())
}
