//! How fast the whole closes what is closed: a real controller under 10,000 rules with 1,000 connected nodes, and two real nodes with
//! a real flow whose last packet is timed.
//!
//! ```text
//! host ctl:     the controller; 1,000 simulated servers and 100 simulated laptops of twenty people, over TLS and WebSockets
//! host echo:    a real node that receives a packet every half millisecond      host laptop: the real node that sends them
//!
//! sessions  revoke session, one after another: each may reach a hundred of the servers
//! rule      revoke rule, lift, again: it gives each of the 1,000 servers something on the real node
//! flow      revoke session of the real laptop: when did its last packet arrive?
//! ```
//!
//! The figure of the controller goes from accepting the command to the last acknowledgement, and a node acknowledges what it
//! enforces; the figure of the flow goes from writing the command to the socket to the arrival of the last packet.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use postern_tests::{
    binary,
    deployment::{Deployment, Family, PATIENCE},
    eventually,
};
use serde_json::{Value, json};

const SOCKET: &str = "/etc/postern-controller/run/admin.sock";
const AUTHORITY: &str = "/etc/postern-controller/keys/ca.crt";
/// The pages let one person look at ten codes at once, and each machine takes two looks.
const LAPTOPS_OF_ONE: u16 = 5;
const FLEET_RULE: &str = "the fleet reports to the collector";

#[derive(Parser)]
#[command(about = "Measures revocation")]
struct Cli {
    /// How many simulated servers.
    #[arg(long, default_value_t = 1_000)]
    nodes: u16,
    /// How many rules.
    #[arg(long, default_value_t = 10_000)]
    rules: usize,
    /// How many sessions are revoked; at most 100.
    #[arg(long, default_value_t = 100)]
    sessions: u16,
    /// How often the rule is revoked.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// How often the real laptop is cut.
    #[arg(long, default_value_t = 10)]
    flows: usize,
    /// Also write the figures as JSON.
    #[arg(long)]
    json: Option<std::path::PathBuf>,
}

fn policy(rules: usize) -> String {
    let mut text = format!(
        "[resource.collector]\nnodes = [\"tag:echo\"]\nports = [\"tcp/9000\", \"udp/9000\"]\n\
         [resource.echo]\nnodes = [\"tag:echo\"]\nports = [\"udp/7000\"]\n\
         [[access]]\nname = \"{FLEET_RULE}\"\nfrom = [\"tag:fleet\"]\nto = [\"collector\"]\nlease = \"1h\"\n\
         [[access]]\nname = \"staff use echo\"\nfrom = [\"group:staff\"]\nto = [\"echo\"]\nlease = \"1h\"\n"
    );
    for i in 0..2_000 {
        // Two in a hundred are on machines that are there: a person of one group reaches a hundred of them.
        let at =
            if i == 0 || i == 50 { format!("nodes = [\"tag:t{}\"]", i / 50) } else { format!("node = \"absent-{i}\"") };
        text += &format!("[resource.r{i}]\n{at}\nports = [\"tcp/{}\"]\n", 10_000 + i);
    }
    for i in 0..rules {
        let (group, to) = (i % 50, i % 2_000);
        text += &format!(
            "[[access]]\nname = \"rule {i}\"\nfrom = [\"group:g{group}\"]\nto = [\"r{to}\"]\nlease = \"1h\"\n"
        );
    }
    text
}

struct Bench {
    world: Deployment,
    program: std::path::PathBuf,
}

impl Bench {
    /// Asks the controller over its socket; returns when the request was written, and the answer.
    fn ask(&self, request: &Value) -> Result<(u64, Value)> {
        let asked = self.world.controller.command(&self.program).args(["ask", SOCKET]).stdin(request.to_string());
        let said: Value = serde_json::from_str(&asked.time_limit(PATIENCE).run()?.ok()?)?;
        ensure!(said["answer"]["answer"] == "done", "{said}");
        Ok((said["begun_ns"].as_u64().context("a time")?, said["answer"]["value"].clone()))
    }

    /// Revokes something and returns when the request was written, the controller's milliseconds, and how many nodes closed it.
    fn revoke(&self, what: &str, name: &str) -> Result<(u64, f64, usize)> {
        let request = json!({"ask": "revoke", "what": what, "name": name, "reason": "bench", "wait_ms": 60_000});
        let (begun, value) = self.ask(&request)?;
        let view = &value["revocation"];
        ensure!(view["done"] == true, "{}", view["nodes"]);
        let acknowledged = view["acknowledged"].as_u64().unwrap_or(0) as usize;
        Ok((begun, view["elapsed_us"].as_f64().context("a time")? / 1e3, acknowledged))
    }

    fn status(&self) -> Result<Value> {
        self.ask(&json!({"ask": "status"})).map(|(_, value)| value)
    }

    /// Waits until every connected machine enforces everything.
    fn settled(&self, connected: u64) -> Result<()> {
        eventually(Duration::from_secs(60), "not every machine is current", || {
            let core = self.status().ok()?["core"].clone();
            (core["connected"].as_u64()? >= connected && core["current"] == core["connected"]).then_some(())
        })
        .with_context(|| match self.status() {
            Ok(status) => status["core"].to_string(),
            Err(error) => format!("{error:#}"),
        })
    }
}

fn tell(what: &str, unit: &str, mut samples: Vec<f64>) -> Value {
    samples.sort_by(f64::total_cmp);
    let rank = |percent: usize| samples[(samples.len() * percent).div_ceil(100).saturating_sub(1)];
    let (p50, p99, max) = (rank(50), rank(99), rank(100));
    println!(
        "{what:<58} p50 {p50:>7.1}  p90 {:>7.1}  p99 {p99:>7.1}  max {max:>7.1} {unit}  (n = {})",
        rank(90),
        samples.len()
    );
    json!({"what": what, "p50": p50, "p90": rank(90), "p99": p99, "max": max, "n": samples.len()})
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let world = Deployment::start("bench-revocation")?;
    let bench = Bench { world, program: binary("postern-simulated-nodes")? };
    let world = &bench.world;
    world.apply_policy(&policy(cli.rules))?;
    world.add_user("alice", &["staff"])?;
    let people = cli.sessions.div_ceil(LAPTOPS_OF_ONE);
    for person in 0..people {
        world.add_user(&format!("p{person}"), &["g0"])?;
    }
    println!("{} rules in force; {} simulated servers join", cli.rules, cli.nodes);
    let echo = world.server("echo", &["echo"], None)?;
    let mut fleets = Vec::new();
    for block in 0..20u8 {
        let tag = format!("t{block}");
        let count = cli.nodes / 20;
        let uses = count.to_string();
        let token = world.ctl_json(&["token", "create", "--tag", "fleet", "--tag", &tag, "--uses", &uses])?;
        let token = token["token"].as_str().context("a token")?.to_owned();
        let called = format!("fleet-{block}");
        let arguments = ["nodes", "--authority", AUTHORITY, "--token", &token, "--called", &called, "--count", &uses];
        let block = (block + 1).to_string();
        let fleet = world.controller.command(&bench.program).args(arguments).args(["--block", &block]);
        let mut fleet = fleet.spawn()?;
        fleet.wait_for_output(&format!("ready {count}"), Duration::from_secs(240))?;
        fleets.push(fleet);
    }
    bench.settled(u64::from(cli.nodes / 20 * 20) + 1)?;
    println!("{} simulated laptops join, each confirmed on the pages", cli.sessions);
    let mut names = Vec::new();
    let mut browsers = Vec::new();
    for person in 0..people {
        if person % 5 == 0 {
            browsers.push(world.lab.host(&format!("browser{person}"))?); // an address, too, has its limit
        }
        let browser_host = browsers.last().context("a browser")?;
        let count = LAPTOPS_OF_ONE.min(cli.sessions - person * LAPTOPS_OF_ONE);
        let (called, block) = (format!("laptop-{person}"), (30 + person).to_string());
        // Sixteen at a time may wait for a person, so that many join at a time.
        let arguments = ["people", "--authority", AUTHORITY, "--called", &called, "--block", &block];
        let fleet = world.controller.command(&bench.program).args(arguments).args(["--count", &count.to_string()]);
        let fleet = fleet.spawn()?;
        let browser = world.browser(browser_host)?;
        for confirmed in 0..usize::from(count) {
            let code = eventually(PATIENCE, "no code", || {
                fleet.output().lines().filter_map(|line| line.strip_prefix("code ")).nth(confirmed).map(str::to_owned)
            })
            .with_context(|| fleet.output())?;
            // The pages let one network look at sixty codes at once and at one a second after that; beyond it they say so.
            let page = match confirmed {
                0 => world.confirm_page(&browser, &code, &format!("p{person}"))?,
                _ => browser.patiently(|| browser.get(&format!("https://ctl/join?code={code}")))?,
            };
            let form = page.form("/join/confirm")?;
            let page = browser.patiently(|| browser.submit(&form, &[]))?;
            ensure!(page.status == 200, "{}", page.text());
        }
        fleets.push(fleet);
        names.extend((0..count).map(|i| format!("p{person}/{called}-{i}")));
    }
    bench.settled(u64::from(cli.nodes / 20 * 20) + 1 + u64::from(cli.sessions))?;

    let mut figures = Vec::new();
    let (mut samples, mut touched) = (Vec::new(), Vec::new());
    for name in &names {
        let (_, took, nodes) = bench.revoke("session", name)?;
        samples.push(took);
        touched.push(nodes);
    }
    let nodes = touched.iter().max().copied().unwrap_or(0);
    figures.push(tell(&format!("one session revoked, on {nodes} nodes at most (controller)"), "ms", samples));

    let (mut samples, mut nodes) = (Vec::new(), 0);
    for _ in 0..cli.rounds {
        let (_, took, touched) = bench.revoke("rule", FLEET_RULE)?;
        samples.push(took);
        nodes = touched;
        bench.ask(&json!({"ask": "lift", "what": "rule", "name": FLEET_RULE}))?;
        bench.settled(u64::from(cli.nodes / 20 * 20) + 1)?;
    }
    figures.push(tell(&format!("one rule revoked, on {nodes} nodes (controller)"), "ms", samples));

    let laptop = world.laptop("laptop")?;
    let at = echo.overlay(Family::V6)?;
    let mut receiver = echo.host.command(&bench.program).args(["receive", "7000"]).spawn()?;
    let to = format!("[{at}]:7000");
    let _sender = laptop.host.command(&bench.program).args(["send", &to]).spawn()?;
    let (mut samples, mut told) = (Vec::new(), Vec::new());
    for round in 1..=cli.flows {
        world.sign_in(&laptop, "alice")?;
        let flowing = |receiver: &str| receiver.lines().filter(|line| *line == "flowing").count() >= round;
        eventually(PATIENCE, "no packet arrives", || flowing(&receiver.output()).then_some(()))?;
        let (begun, took, _) = bench.revoke("session", "alice/laptop")?;
        told.push(took);
        let last = eventually(PATIENCE, "the flow goes on", || {
            receiver.output().lines().filter_map(|line| line.strip_prefix("last ")).nth(round - 1).map(str::to_owned)
        })?;
        samples.push((last.parse::<u64>()?.saturating_sub(begun)) as f64 / 1e6);
        ensure!(receiver.is_running(), "the receiver ended");
    }
    figures.push(tell("a real session revoked, until its last packet arrived", "ms", samples));
    figures.push(tell("a real session revoked (controller)", "ms", told));

    let status = bench.status()?;
    println!("the controller's own figure: {}", status["core"]["closing"]);
    println!("resident memory of the controller: {} MB", status["resident_bytes"].as_u64().unwrap_or(0) >> 20);
    if let Some(file) = cli.json {
        std::fs::write(
            file,
            serde_json::to_string_pretty(&json!({"figures": figures, "status": status["core"]["closing"]}))?,
        )?;
    }
    Ok(())
}
