//! Step-up by packet: the first packet is refused with a reason, the person is told where to prove their sign-in, and the
//! same connection attempt gets through.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Echo, Host,
    browser::{Browser, Page},
    deployment::{Deployment, Family, Node, PASSWORD, PATIENCE},
    eventually,
    programs::can_connect,
};
use serde_json::Value;

const POLICY: &str = r#"
[resource.git]
nodes = ["tag:git"]
ports = ["tcp/7000"]

[resource.wiki]
nodes = ["tag:git"]
ports = ["tcp/7001"]

[[access]]
name = "engineers use git"
from = ["group:engineers"]
to = ["git"]
when = { mfa_within = "15m" }

[[access]]
name = "everybody reads the wiki"
from = ["user:*"]
to = ["wiki"]
"#;

/// What the desktop of the person would show.
const NOTICES: &str = "/run/notices";

struct Scene {
    world: Deployment,
    laptop: Node,
    server: Node,
    at: IpAddr,
    _echo: Echo,
}

fn scene(name: &str, policy: &str) -> Result<Scene> {
    let world = Deployment::start(name)?;
    world.add_user("alice", &["engineers"])?;
    world.add_user("bob", &["engineers"])?;
    let server = world.server("git-1", &["git"], None)?;
    world.apply_policy(policy)?;
    let echo = server.echo(&[7000, 7001])?;
    let laptop = world.machine("laptop", "notify_command = \"/run/notify\"\n")?;
    laptop.host.write("/run/notify", format!("#!/bin/sh\nprintf '%s | %s\\n' \"$@\" >> {NOTICES}\n"))?;
    laptop.host.sh("chmod 755 /run/notify")?;
    world.sign_in(&laptop, "alice")?; // with a password alone
    let at = server.overlay(Family::V6)?;
    eventually(PATIENCE, "the wiki is not reached", || can_connect(&laptop.host, at, 7001).then_some(()))?;
    Ok(Scene { world, laptop, server, at, _echo: echo })
}

/// Answers with what an authenticator with this secret shows now (RFC 6238), and waits for the next if `used` was it.
fn code(host: &Host, secret: &str, used: &str) -> Result<String> {
    let script = "import base64,hmac,struct,sys,time\n\
        key=base64.b32decode(sys.argv[1])\n\
        mac=hmac.new(key,struct.pack('>Q',int(time.time())//30),'sha1').digest()\n\
        at=mac[-1]&15\n\
        print('%06d'%((struct.unpack('>I',mac[at:at+4])[0]&0x7fffffff)%1000000))";
    eventually(Duration::from_secs(40), "no new code", || {
        let said = host.command("python3").args(["-c", script, secret]).run().ok()?.stdout.trim().to_owned();
        (said.len() == 6 && said != used).then_some(said)
    })
}

/// Signs in on the pages with the password, and sets up an authenticator; returns its secret and the code that was used.
fn with_second_factor(scene: &Scene, login: &str) -> Result<(Browser, String, String)> {
    let browser = scene.world.browser(&scene.laptop.host)?;
    let page = browser.get("https://ctl/sign-in?next=/second-factor")?;
    let page = browser.submit(&page.form("password")?, &[("login", login), ("password", PASSWORD)])?;
    let secret = page.body.split("class=\"secret\">").nth(1).and_then(|rest| rest.split('<').next());
    let secret: String = secret.context("no secret on the page")?.chars().filter(|c| !c.is_whitespace()).collect();
    let used = code(&scene.laptop.host, &secret, "")?;
    let page = browser.submit(&page.form("code")?, &[("code", &used)])?;
    ensure!(page.status == 200, "({}) {}", page.status, page.text());
    Ok((browser, secret, used))
}

/// Waits until the machine's status shows a page for the resource, and returns its address.
fn page_for(node: &Node, resource: &str) -> Result<String> {
    eventually(PATIENCE, "status shows no page for a step-up", || {
        let status = node.json(&["status"]).ok()?;
        let wants = status["step_ups"].as_array()?.iter().find(|wants| wants["name"] == resource)?.clone();
        wants["url"].as_str().map(str::to_owned)
    })
}

fn denied_for_step_up(node: &Node) -> u64 {
    let Ok(status) = node.json(&["status"]) else { return 0 };
    let drops = status["drops"].as_array().cloned().unwrap_or_default();
    drops.iter().find(|drop| drop[0] == "step_up").and_then(|drop| drop[1].as_u64()).unwrap_or(0)
}

fn says(page: &Page, status: u16, words: &[&str]) -> Result<()> {
    let text = page.text();
    ensure!(page.status == status && words.iter().all(|word| text.contains(word)), "({}) {text}", page.status);
    Ok(())
}

#[test]
fn the_first_packet_is_refused_with_a_reason_and_after_the_second_factor_the_same_attempt_gets_through() -> Result<()> {
    let scene = scene("step-up", POLICY)?;
    let (laptop, at) = (&scene.laptop, scene.at);
    let listed = laptop.postern(&["resources"])?;
    ensure!(listed.contains("needs MFA within 15 min: postern step-up git"), "{listed}");
    let peers = scene.server.json(&["status"])?;
    ensure!(peers["peers_in"] == 1, "{peers}");

    // by its name: it has to lead somewhere before a packet can be refused for it
    let attempt = "echo through | socat -t10 -T90 - TCP:git.internal:7000,connect-timeout=90";
    let mut attempt = laptop.host.command("sh").args(["-c", attempt]).spawn()?;
    let url = page_for(laptop, "git")?;
    ensure!(attempt.is_running(), "the attempt was reset: {}", attempt.output());
    ensure!(denied_for_step_up(laptop) > 0);
    let explained = laptop.command().args(["explain", "git:7000"]).run()?.text();
    ensure!(
        explained.contains("the sign-in had no second factor") && explained.contains("postern step-up git"),
        "{explained}"
    );
    let status = laptop.postern(&["status"])?;
    ensure!(status.contains("git needs MFA within 15 min: https://ctl/step-up/"), "{status}");
    let notices = eventually(PATIENCE, "no notice on the desktop", || {
        laptop.host.read(NOTICES).ok().filter(|text| text.contains("git needs MFA"))
    })?;
    ensure!(notices.contains(&url), "{notices}");
    ensure!(!laptop.log().contains(&url), "the secret is in the log");

    // somebody else gets nothing of it
    let stranger = scene.world.browser(&laptop.host)?;
    let page = stranger.get(&url)?;
    let page = stranger.submit(&page.form("password")?, &[("login", "bob"), ("password", PASSWORD)])?;
    says(&page, 403, &["somebody else", "Nothing was changed"])?;

    let (browser, secret, used) = with_second_factor(&scene, "alice")?;
    let page = browser.get(&url)?;
    says(&page, 200, &["laptop", "git", "MFA within 15 min", "Confirm only what you are just doing"])?;
    ensure!(page.form("Yes, it is me").is_err(), "a password alone is offered as enough");
    let form = page.form("/prove")?;
    let wrong = browser.submit(&form, &[("password", PASSWORD), ("code", &used)])?;
    says(&wrong, 403, &["wrong, expired, or was used"])?;
    let fresh = code(&laptop.host, &secret, &used)?;
    let page = browser.submit(&wrong.form("/prove")?, &[("password", PASSWORD), ("code", &fresh)])?;
    says(&page, 200, &["git is open", "laptop"])?;
    attempt.wait_for_output("through", Duration::from_secs(60)).context("the same attempt did not get through")?;

    // the page is spent, and the command sees that it is open
    says(&browser.get(&url)?, 410, &["This page has expired"])?;
    let by_hand = laptop.postern(&["step-up", "git"])?;
    ensure!(by_hand.contains("git is open"), "{by_hand}");
    ensure!(can_connect(&laptop.host, at, 7000));
    let audit = scene.world.controller.sh("cat /etc/postern-controller/state/audit/*")?;
    for word in ["step_up_asked", "stepped_up", "step_up_refused", "proven_anew"] {
        ensure!(audit.contains(word), "the audit log says nothing of {word}");
    }
    let secret = url.rsplit('/').next().unwrap_or_default();
    ensure!(!audit.contains(secret), "a page's secret is in the audit log");
    Ok(())
}

#[test]
fn proof_that_grows_old_cuts_the_flow_says_so_and_one_notice_comes_in_a_minute() -> Result<()> {
    let scene = scene("step-up-lapse", &POLICY.replace("15m", "20s"))?;
    let (laptop, at) = (&scene.laptop, scene.at);
    let (browser, secret, used) = with_second_factor(&scene, "alice")?;
    let mut command = laptop.command().args(["step-up", "git.internal", "--no-browser"]).spawn()?;
    let url = page_for(laptop, "git")?;
    let page = browser.get(&url)?;
    let fresh = code(&laptop.host, &secret, &used)?;
    let page = browser.submit(&page.form("/prove")?, &[("password", PASSWORD), ("code", &fresh)])?;
    says(&page, 200, &["git is open"])?;
    let status = command.wait(PATIENCE)?;
    ensure!(status.success() && command.output().contains("git is open"), "{status}: {}", command.output());

    let mut chat = laptop.chatter(at, 7000)?;
    chat.is_cut_within(Duration::from_secs(30), "the proof is too old")?;
    ensure!(can_connect(&laptop.host, at, 7001), "the wiki asks for nothing");
    let again = page_for(laptop, "git")?;
    ensure!(again != url);
    let explained = laptop.command().args(["explain", "git:7000"]).run()?.text();
    ensure!(explained.contains("proof of sign-in is") && explained.contains("postern step-up git"), "{explained}");
    let notices = || laptop.host.read(NOTICES).unwrap_or_default().lines().count();
    let before = eventually(PATIENCE, "no notice of the cut", || Some(notices()).filter(|count| *count >= 2))?;
    for _ in 0..3 {
        can_connect(&laptop.host, at, 7000);
    }
    ensure!(notices() == before, "a burst of packets is a burst of notices");
    Ok(())
}

#[test]
fn a_step_up_at_nothing_says_why() -> Result<()> {
    let scene = scene("step-up-nothing", POLICY)?;
    let refused = |name: &str| -> Result<String> {
        let output = scene.laptop.command().args(["step-up", name]).run()?;
        ensure!(!output.status.success(), "{}", output.text());
        Ok(output.text())
    };
    ensure!(refused("no-such")?.contains("no stronger proof"), "{}", refused("no-such")?);
    scene.world.stop_controller(postern_tests::Signal::Kill)?;
    let away =
        eventually(PATIENCE, "still connected", || refused("git").ok().filter(|text| text.contains("not connected")))?;
    ensure!(away.contains("controller"), "{away}");
    let _: Value = scene.laptop.json(&["status"])?;
    Ok(())
}
