//! What the commands of a node say and with which code they end, in every state that a person meets.

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Output, Signal,
    deployment::{Deployment, Family, Node, PATIENCE},
    eventually,
    programs::{can_connect, http_server},
};

const POLICY: &str = r#"
[resource.app]
nodes = ["tag:app"]
ports = ["tcp/8080"]

[[access]]
name = "staff use the app"
from = ["group:staff"]
to = ["app"]
"#;

fn run(node: &Node, arguments: &[&str]) -> Result<Output> {
    let output = node.command().args(arguments).run()?;
    println!("$ postern {}   [{:?}]\n{}", arguments.join(" "), output.status, output.text());
    Ok(output)
}

/// Runs a command as people and as machines do; both must end alike, and the machine's words must be JSON.
fn both(node: &Node, arguments: &[&str], ends_well: bool, says: &str) -> Result<()> {
    let plain = run(node, arguments)?;
    ensure!(plain.success() == ends_well, "{arguments:?}: {}", plain.text());
    ensure!(plain.text().contains(says), "{arguments:?} does not say `{says}`: {}", plain.text());
    let machine = run(node, &[&["--json"], arguments].concat())?;
    ensure!(machine.success() == ends_well, "{arguments:?} with --json: {}", machine.text());
    for line in machine.stdout.lines().filter(|_| arguments[0] == "flows") {
        serde_json::from_str::<serde_json::Value>(line).with_context(|| format!("{arguments:?}: {line}"))?;
    }
    if arguments[0] != "flows" && !machine.stdout.is_empty() {
        serde_json::from_str::<serde_json::Value>(&machine.stdout)
            .with_context(|| format!("{arguments:?}: {}", machine.stdout))?;
    }
    ensure!(ends_well || !machine.text().is_empty(), "{arguments:?} with --json says nothing");
    Ok(())
}

#[test]
fn every_command_says_what_is_the_matter_in_every_state() -> Result<()> {
    let world = Deployment::start("commands")?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["staff"])?;
    let app = world.server("app", &["app"], None)?;
    let _page = http_server(&app.host, 8080, "page")?;
    let laptop = world.laptop("laptop")?;

    both(&laptop, &["status"], true, "not enrolled: postern up")?;
    both(&laptop, &["status", "--check"], false, "not enrolled")?;
    both(&laptop, &["resources"], true, "not enrolled")?;
    both(&laptop, &["explain", "app:8080"], false, "not enrolled")?;
    both(&laptop, &["whois", "100.64.0.1:1"], false, "postern up")?;
    both(&laptop, &["logout"], false, "nobody is signed in")?;

    world.sign_in(&laptop, "alice")?;
    let at = app.overlay(Family::V4)?;
    eventually(PATIENCE, "the app is not reached", || can_connect(&laptop.host, at, 8080).then_some(()))?;
    let held = laptop.host.command("bash").args(["-c", &format!("exec 3<>/dev/tcp/{at}/8080; echo open; read")]);
    let mut held = held.spawn()?;
    held.wait_for_output("open", PATIENCE)?;
    both(&laptop, &["status"], true, "connected to ctl")?;
    both(&laptop, &["status", "--check"], true, "")?;
    both(&laptop, &["status", "--verbose"], true, "WireGuard keys")?;
    both(&laptop, &["resources"], true, "app.internal")?;
    both(&laptop, &["explain", "app:8080"], true, "allowed")?;
    both(&laptop, &["explain", "app:9090"], false, "denied")?;
    both(&laptop, &["explain", "nothing-such"], false, "denied")?;
    both(&laptop, &["explain", "app:ssh"], false, "ssh")?;
    both(&laptop, &["flows"], true, "staff use the app")?;
    let flows = run(&app, &["--json", "flows"])?.ok()?;
    let flow: serde_json::Value = serde_json::from_str(flows.lines().next().context("a flow")?)?;
    let port = flow["flow"]["source_port"].as_u64().context("a port")?;
    let client = laptop.overlay(Family::V4)?;
    both(&app, &["whois", &format!("{client}:{port}")], true, "alice")?;
    both(&app, &["whois", "100.127.0.1:1"], false, "belongs to no peer")?;
    run(&app, &["flows"])?;

    world.stop_controller(Signal::Kill)?;
    eventually(PATIENCE, "the loss is not seen", || {
        run(&laptop, &["status"]).ok()?.stdout.contains("without ctl").then_some(())
    })?;
    both(&laptop, &["status", "--check"], false, "the last at")?;
    both(&laptop, &["resources"], true, "app.internal")?;
    both(&laptop, &["explain", "app:8080"], true, "only this machine's view")?;
    both(&laptop, &["explain", "app:9090"], false, "only this machine's view")?;

    both(&laptop, &["down"], true, "")?;
    both(&laptop, &["status"], true, "down: postern up")?;
    both(&laptop, &["resources"], true, "down")?;
    both(&laptop, &["explain", "app:8080"], false, "down")?;
    both(&laptop, &["flows"], true, "")?;
    run(&laptop, &["logout"])?.ok()?;
    both(&laptop, &["status"], true, "signed out")?;
    both(&laptop, &["resources"], true, "signed out")?;
    ensure!(run(&laptop, &["status"])?.text().contains("not confirmed the sign-out"), "the controller does not know");

    world.start_controller()?;
    eventually(PATIENCE, "the controller is not told of the sign-out", || {
        let sessions = world.ctl(&["session", "list"]).ok()?;
        let told = !run(&laptop, &["status"]).ok()?.text().contains("not confirmed");
        (told && !sessions.contains("laptop")).then_some(())
    })
    .with_context(|| laptop.log())?;

    laptop.stop(Signal::Terminate)?;
    for command in [&["status"][..], &["resources"], &["explain", "app"], &["flows"], &["whois", "100.64.0.1:1"]] {
        both(&laptop, command, false, "postern")?;
    }
    Ok(())
}
