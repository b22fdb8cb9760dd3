//! The main job, shown and checked with real programs: `scripts/demo`.
//!
//! A controller, servers `payroll`, `git` and `wiki`, a laptop. A person signs in at the real pages and opens a real page
//! on `payroll`; nothing comes from `git`; `payroll`, taken over by an attacker with root, scans the others; a long
//! download is cut when the session is revoked. Each claim gets a tick or a cross; any cross makes the exit code 1.

use std::{
    io::IsTerminal,
    net::IpAddr,
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use postern_tests::{
    Background, Host, Signal,
    deployment::{Deployment, Family, Node, PASSWORD},
    eventually, programs,
};

const PERSON: &str = "alice@corp.example";
const PAGE: &str = "Salaries of November";
/// What stays open on the servers' plain network: for administrators, whatever becomes of Postern.
const OPERATORS_LIST: &str = "tcp/2222 from 198.18.0.0/24";
/// Every port that anything listens on here, and some thousand more.
const SCANNED: &str = "1-2500,3000-3100,5000-5500,8000-8100,9000-9100,51820";
const SOON: Duration = Duration::from_secs(20);

const POLICY: &str = r#"# Who may reach what. Nobody may reach anything that no rule below names.
[resource.payroll-app]
nodes = ["tag:payroll"]
ports = ["tcp/8080"]

[resource.git]
nodes = ["tag:git"]
ports = ["tcp/22"]

[resource.wiki]
nodes = ["tag:wiki"]
ports = ["tcp/80"]

[[access]]
name = "payroll managers use payroll"
reason = "monthly payroll run"
from = ["group:payroll"]
to = ["payroll-app"]

[[access]]
name = "engineers use git"
from = ["group:engineers"]
to = ["git"]

[[access]]
name = "payroll reads the wiki"
from = ["service:payroll"]
to = ["wiki"]
"#;

/// Prints what happens, and counts crosses.
struct Story {
    colours: bool,
    failed: u32,
    passed: u32,
}

impl Story {
    fn step(&self, text: &str) {
        let (bold, plain) = if self.colours { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        println!("\n{bold}{text}{plain}");
    }

    fn note(&self, text: &str) {
        for line in text.lines() {
            println!("    {line}");
        }
    }

    /// Prints a claim with a tick if `shown` is fine, else with a cross and what was seen instead.
    fn claim<T>(&mut self, text: &str, shown: Result<T>) -> Option<T> {
        let (green, red, plain) = if self.colours { ("\x1b[32m", "\x1b[31m", "\x1b[0m") } else { ("", "", "") };
        match shown {
            Ok(value) => {
                self.passed += 1;
                println!("  {green}✓{plain} {text}");
                Some(value)
            }
            Err(error) => {
                self.failed += 1;
                println!("  {red}✗{plain} {text}");
                self.note(&format!("{error:#}"));
                None
            }
        }
    }
}

/// Makes a claim's outcome out of what was seen.
fn check(holds: bool, seen: impl std::fmt::Display) -> Result<()> {
    if holds { Ok(()) } else { Err(anyhow!("{seen}")) }
}

/// The servers and the laptop.
struct Cast {
    corp: Deployment,
    payroll: Node,
    git: Node,
    wiki: Node,
    laptop: Node,
    /// Programs on the servers.
    _programs: Vec<Background>,
}

fn main() -> ExitCode {
    let keep = std::env::args().nth(1).is_some_and(|argument| argument == "--keep");
    let mut story = Story { colours: std::io::stdout().is_terminal(), failed: 0, passed: 0 };
    let result = tell(&mut story).map(|cast| {
        if keep {
            leave_running(&story, &cast);
        }
    });
    if let Err(error) = result {
        story.claim::<()>("the story comes to its end", Err(error));
    }
    println!("\n{} claims hold, {} do not.", story.passed, story.failed);
    if story.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tell(story: &mut Story) -> Result<Cast> {
    let cast = set_the_stage(story)?;
    sign_in_and_use(story, &cast)?;
    attack(story, &cast)?;
    revoke(story, &cast)?;
    take_the_guard_out(story, &cast)?;
    Ok(cast)
}

fn set_the_stage(story: &mut Story) -> Result<Cast> {
    story.step("Four machines in a data centre and a laptop, each in its own network namespaces");
    let corp = Deployment::start("demo")?;
    let lab = &corp.lab;
    let servers = [lab.host("payroll")?, lab.host("git")?, lab.host("wiki")?];
    let [payroll, git, wiki] = &servers;
    let mut running = vec![
        programs::http_server(payroll, 8080, PAGE)?,
        programs::http_server(git, 22, "the sources of everything")?,
        programs::http_server(wiki, 80, "how we do things here")?,
    ];
    for host in &servers {
        running.push(programs::http_server(host, 2222, "for administrators")?); // stands for their SSH
        running.push(programs::http_server(host, 9090, "metrics that nobody thought of")?);
    }
    let before = programs::nmap_open_ports(payroll, git.ipv4(), SCANNED)?;
    let scan_works = check(before == [22, 2222, 9090], format!("nmap found {before:?}"));
    story.claim("before Postern, nmap on payroll finds every port of git: 22, 2222, 9090", scan_works);

    story.step("The controller: init, serve; a policy with three rules; servers join with single-use tokens");
    corp.apply_policy(POLICY)?;
    corp.add_user(PERSON, &["payroll"])?;
    let closed = format!("[plain_network]\ninbound = \"closed\"\nallow = [\"{OPERATORS_LIST}\"]\n");
    let join = |host: Host| -> Result<Node> {
        let name = host.name().to_owned();
        let node = corp.adopt(host, &closed)?;
        corp.enrol(&node, &[&name], Some(&name))?;
        Ok(node)
    };
    let [payroll, git, wiki] = servers;
    let (payroll, git, wiki) = (join(payroll)?, join(git)?, join(wiki)?);
    story.note(&format!("policy: payroll managers -> payroll, engineers -> git, service:payroll -> wiki\nplain network of the servers: closed but for {}", OPERATORS_LIST));
    let laptop = corp.laptop("alice-laptop")?;
    Ok(Cast { corp, payroll, git, wiki, laptop, _programs: running })
}

/// Returns a node's overlay addresses, the IPv6 one first.
fn overlay(node: &Node) -> Result<(IpAddr, IpAddr)> {
    Ok((node.overlay(Family::V6)?, node.overlay(Family::V4)?))
}

/// Waits until a page comes, as a person would.
fn wait_for_page(node: &Node, url: &str) -> Result<()> {
    let mut last = String::new();
    let comes = eventually(SOON, "the page does not come", || {
        match programs::http_get(&node.host, url, Duration::from_secs(5)) {
            Ok(body) if body.contains(PAGE) => Some(()),
            Ok(other) => {
                last = other;
                None
            }
            Err(error) => {
                last = error.to_string();
                None
            }
        }
    });
    comes.with_context(|| format!("{url}: {last}"))
}

/// Runs a command that may well say no, and returns everything that it says.
fn words_of(node: &Node, arguments: &[&str]) -> Result<String> {
    Ok(node.command().args(arguments).run()?.text())
}

fn payroll_url(cast: &Cast) -> Result<[String; 2]> {
    let (v6, v4) = overlay(&cast.payroll)?;
    Ok([format!("http://[{v6}]:8080"), format!("http://{v4}:8080")])
}

fn sign_in_and_use(story: &mut Story, cast: &Cast) -> Result<()> {
    story.step("Alice, of group payroll, joins with her laptop");
    let laptop = &cast.laptop;
    let [over_v6, over_v4] = payroll_url(cast)?;
    let refused = programs::http_get(&laptop.host, &over_v4, Duration::from_secs(3));
    story.claim(
        "before she signs in, payroll answers nothing",
        refused.map_or(Ok(()), |page| bail!("it said {page:?}")),
    );
    let signed_in = cast.corp.sign_in(laptop, PERSON);
    story
        .claim("she signs in at the controller's pages and confirms her machine", signed_in)
        .context("nobody signed in")?;
    story.note(&words_of(laptop, &["resources"])?);
    story.claim(
        "payroll-app.internal opens with curl, by its name",
        wait_for_page(laptop, "http://payroll-app.internal:8080/"),
    );
    story.claim("the same over IPv6 and IPv4 inside the tunnel", {
        wait_for_page(laptop, &over_v6).and_then(|()| wait_for_page(laptop, &over_v4))
    });
    let (v6, v4) = overlay(&cast.git)?;
    let mut silent = Ok(());
    for address in [v6, v4, cast.git.host.ipv4(), cast.git.host.ipv6()] {
        if programs::can_connect(&laptop.host, address, 22) {
            silent = Err(anyhow!("{address} answers"));
        }
    }
    story.claim("the same laptop gets nothing from git, neither in the overlay nor on the plain network", silent);
    let no_name = laptop.host.command("getent").args(["hosts", "git.internal"]).run()?;
    story.claim("git.internal does not even exist for her", check(!no_name.success(), &no_name.stdout));
    let no_door = programs::can_connect(&laptop.host, overlay(&cast.payroll)?.1, 9090);
    story.claim("nor does another port of payroll open", check(!no_door, "9090 is open"));
    explain(story, cast);
    Ok(())
}

fn explain(story: &mut Story, cast: &Cast) {
    story.step("Why? `postern explain` on her laptop, and on the controller for anybody");
    let mut asked = |arguments: &[&str], words: &[&str], claim: &str| {
        let said = words_of(&cast.laptop, arguments);
        let right = said.and_then(|said| {
            ensure!(words.iter().all(|word| said.contains(word)), "it said:\n{said}");
            Ok(said)
        });
        if let Some(said) = story.claim(claim, right) {
            story.note(&said);
        }
    };
    asked(
        &["explain", "payroll-app:8080"],
        &["allowed", "payroll managers use payroll"],
        "payroll is allowed, with the rule that allows it",
    );
    asked(&["explain", "git:22"], &["denied"], "git is refused, with the reason");
    let arguments = ["explain", "--as", "service:payroll", "--to", "git:22"];
    let said =
        cast.corp.controller_command().and_then(|command| command.args(arguments).run()).map(|output| output.text());
    let right = said.and_then(|said| {
        ensure!(said.contains("denied") && said.contains("git"), "it said:\n{said}");
        Ok(said)
    });
    if let Some(said) = story.claim("at three in the morning the operator learns the same about any machine", right) {
        story.note(&said);
    }
}

fn attack(story: &mut Story, cast: &Cast) -> Result<()> {
    story.step("payroll is taken over: an attacker with root scans the others with nmap, overlay and plain");
    let payroll = &cast.payroll.host;
    let mut targets: Vec<(String, IpAddr, Vec<u16>)> = Vec::new();
    for (name, node, in_overlay) in
        [("git", &cast.git, vec![]), ("wiki", &cast.wiki, vec![80_u16]), ("alice-laptop", &cast.laptop, vec![])]
    {
        let (v6, v4) = overlay(node)?;
        let plain = if name == "alice-laptop" { vec![] } else { vec![2222] };
        targets.extend([
            (format!("{name} in the overlay, IPv6"), v6, in_overlay.clone()),
            (format!("{name} in the overlay, IPv4"), v4, in_overlay),
            (format!("{name} on the plain network, IPv4"), node.host.ipv4(), plain.clone()),
            (format!("{name} on the plain network, IPv6"), node.host.ipv6(), Vec::new()),
        ]);
    }
    for (target, address, named) in targets {
        let found = programs::nmap_open_ports(payroll, address, SCANNED);
        let claim = match named.as_slice() {
            [] => format!("{target}: nothing"),
            [80] => format!("{target}: 80, which the rule \"payroll reads the wiki\" names, and nothing else"),
            _ => format!("{target}: 2222, which the operator's list names, and nothing else"),
        };
        let right = found.and_then(|found| check(found == named, format!("nmap found {found:?}")));
        story.claim(&claim, right);
    }
    Ok(())
}

fn revoke(story: &mut Story, cast: &Cast) -> Result<()> {
    story.step("A long download runs while Alice's session is revoked");
    let laptop = &cast.laptop.host;
    let [_, url] = payroll_url(cast)?;
    let seen = "/run/download.pcap";
    let mut watch = laptop
        .command("tcpdump")
        .args(["-i", "postern0", "-n", "-s", "96", "-U", "--immediate-mode", "-B", "65536", "-Z", "root", "-w", seen])
        .arg("src port 8080 and greater 200")
        .spawn()?;
    watch.wait_for_output("listening on", SOON)?;
    let mut download = laptop
        .command("curl")
        .args(["--silent", "--show-error", "--output", "/dev/null", &format!("{url}/big")])
        .spawn()?;
    let recorded = || std::fs::metadata(laptop.path(seen)).map_or(0, |file| file.len());
    eventually(SOON, "the download does not begin", || (recorded() > 100_000).then_some(()))?;
    let session = format!("{PERSON}/alice-laptop");
    let (began, began_at) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64());
    let said = cast.corp.ctl(&["revoke", "session", &session, "--reason", "laptop lost"]);
    let returned = began.elapsed();
    if let Some(said) = story.claim("the operator revokes her session", said) {
        story.note(&said);
    }
    let ended = download.wait(SOON).and_then(|_| {
        let said = download.output();
        check(said.contains("reset"), format!("curl said: {said}"))
    });
    story.claim("curl is told at once: connection reset", ended);
    // Nothing more may come: the download would go on for minutes. Two seconds show it; being early only loses a cross.
    std::thread::sleep(Duration::from_secs(2));
    watch.signal(Signal::Interrupt)?;
    watch.wait(SOON)?;
    let packets = laptop.command("tcpdump").args(["-n", "-tt", "-Z", "root", "-r", seen]).run()?.ok()?;
    let times: Vec<f64> = packets.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
    let last = times.iter().copied().fold(0.0_f64, f64::max) - began_at;
    let flowing = times.iter().filter(|time| **time > began_at - 0.25).count();
    let claim = format!(
        "of the download, in full flow until then, the last packet came {:.0} ms after the command was typed \
         (the command came back after {:.0} ms)",
        last * 1000.0,
        returned.as_secs_f64() * 1000.0
    );
    story
        .claim(&claim, check(last < 1.0 && flowing > 20, format!("{flowing} packets in the last quarter of a second")));
    let again = programs::http_get(laptop, &url, Duration::from_secs(3));
    story.claim("payroll answers her no more", again.map_or(Ok(()), |page| bail!("it said {page:?}")));
    let said = words_of(&cast.laptop, &["explain", "payroll-app:8080"])?;
    story.note(&said);
    Ok(())
}

fn take_the_guard_out(story: &mut Story, cast: &Cast) -> Result<()> {
    story.step(
        "The attacker kills the agent on payroll, flushes its firewall and routes the overlay over the plain network",
    );
    let payroll = &cast.payroll.host;
    let ((git6, git4), (own6, own4)) = (overlay(&cast.git)?, overlay(&cast.payroll)?);
    cast.payroll.stop(Signal::Kill)?;
    payroll.sh(&format!(
        "nft flush ruleset; ip link del postern0 2>/dev/null || true
         ip addr replace {own4}/32 dev eth0; ip -6 addr replace {own6}/128 dev eth0 nodad
         ip route replace {git4}/32 via {} src {own4}; ip -6 route replace {git6}/128 via {} src {own6}",
        cast.git.host.ipv4(),
        cast.git.host.ipv6(),
    ))?;
    let capture = cast.corp.lab.capture()?;
    let mut found = Vec::new();
    for address in [git4, git6, cast.git.host.ipv4(), cast.git.host.ipv6()] {
        let ports = programs::nmap_open_ports(payroll, address, "22,80,2222,8080,9090")?;
        let named: &[u16] = if address == cast.git.host.ipv4() { &[2222] } else { &[] };
        if ports != named {
            found.push(format!("{address}: {ports:?}"));
        }
    }
    let recording = capture.stop()?;
    let tried = recording.packets(&format!("dst host {git4} or dst host {git6}"))?.len();
    story.claim("its packets with overlay addresses are on the wire in the clear", check(tried > 0, "none was seen"));
    story.claim("git answers none of them", check(found.is_empty(), found.join("; ")));
    let dropped = cast.git.host.sh("nft list counter inet postern arrived")?;
    let counted = dropped.contains("packets") && !dropped.contains("packets 0 ");
    story.claim("git's guard dropped and counted them", check(counted, &dropped));
    Ok(())
}

fn leave_running(story: &Story, cast: &Cast) {
    story.step("Everything stays. A shell on a machine, from another terminal, as root:");
    let nodes = [&cast.payroll, &cast.git, &cast.wiki, &cast.laptop];
    for host in std::iter::once(&cast.corp.controller).chain(nodes.map(|node| &node.host)) {
        println!("  {:13} {}", host.name(), host.shell_command());
    }
    let logs = cast.corp.lab.logs();
    println!("Logs: {}\n{PERSON} has the password {PASSWORD:?}.\nEnter, or Control-C, ends it.", logs.display());
    let _ = std::io::stdin().read_line(&mut String::new());
}
