//! Containment: what is held is held at once, both ways, whatever anybody does afterwards.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Chatter, Echo, Signal,
    deployment::{Deployment, Family, Node, PASSWORD, PATIENCE, WALL_OFFSET},
    eventually,
    programs::can_connect,
};

const POLICY: &str = r#"
[resource.app]
node = "app"
ports = ["tcp/7000"]

[resource.db]
node = "db"
ports = ["tcp/7000"]

[[access]]
name = "staff use the app"
from = ["group:staff"]
to = ["app"]
lease = "30s"

[[access]]
name = "the app uses its database"
from = ["service:app"]
to = ["db"]
lease = "30s"
"#;

/// A server that joined with a token made for its name, with echoes, and its address.
fn server(world: &Deployment, name: &str) -> Result<(Node, Echo, IpAddr)> {
    let node = world.machine(name, "")?;
    let token = world.ctl_json(&["token", "create", "--machine", name, "--service", name])?;
    node.host.write("/run/token", token["token"].as_str().unwrap_or_default())?;
    node.postern(&["up", world.join_url(), "--token-file", "/run/token"])?;
    let echo = node.echo(&[7000, 7001])?;
    let at = node.overlay(Family::V6)?;
    Ok((node, echo, at))
}

/// A server that was taken over is held: the connections that others have to it and those that it has to others are cut, and it
/// moves nowhere; it is told why. Neither its restart nor the controller's nor another policy lets it out.
#[test]
fn quarantine_cuts_open_connections_both_ways_and_nothing_but_a_release_opens_them() -> Result<()> {
    let world = Deployment::start("quarantine")?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["staff"])?;
    let (app, _app_echo, app_at) = server(&world, "app")?;
    let (db, _db_echo, db_at) = server(&world, "db")?;
    let laptop = world.laptop("laptop")?;
    world.sign_in(&laptop, "alice")?;
    let mut inbound = laptop.chatter(app_at, 7000)?;
    let mut outbound = app.chatter(db_at, 7000)?;

    let said = world.ctl(&["quarantine", "node", "app", "--reason", "it scans"])?;
    ensure!(said.starts_with("in quarantine on 3 of 3 nodes in ") && said.contains("2 live flows cut"), "{said}");
    inbound.is_cut("into it")?;
    outbound.is_cut("out of it")?;
    let closed = |when: &str| -> Result<()> {
        ensure!(!can_connect(&laptop.host, app_at, 7000), "{when}: the laptop reaches it");
        ensure!(!can_connect(&app.host, db_at, 7000), "{when}: it reaches the database");
        Ok(())
    };
    closed("at once")?;

    // It is told, and so is whoever asks.
    let status = app.command().arg("status").run()?.stdout;
    ensure!(
        status.contains("IN QUARANTINE") && status.contains("it scans") && status.contains("connected"),
        "{status}"
    );
    for (asks, what) in [(&app, "db:7000"), (&laptop, "app:7000")] {
        let why = asks.command().args(["explain", what]).run()?.stdout;
        ensure!(why.contains("app is in quarantine since") && why.contains("it scans"), "{what}: {why}");
    }
    let why = world.ctl(&["explain", "--as", "alice", "--to", "app:7000"]).unwrap_or_else(|error| error.to_string());
    ensure!(why.contains("app is in quarantine since"), "{why}");
    let listed = world.ctl(&["quarantine", "list"])?;
    ensure!(listed.contains("app") && listed.contains("it scans"), "{listed}");

    world.stop_controller(Signal::Kill)?;
    let alone = app.command().args(["explain", "db:7000"]).run()?.stdout;
    ensure!(alone.contains("IN QUARANTINE") && alone.contains("it scans"), "without the controller: {alone}");
    app.stop(Signal::Kill)?;
    app.start()?;
    closed("after a restart without the controller")?;
    world.start_controller()?;
    world.apply_policy(&POLICY.replace("staff use the app", "everybody in staff uses the app"))?;
    world.ctl(&["session", "list"])?;
    let back = || world.ctl(&["status"]).ok().filter(|status| status.contains("3 of 3 machines connected, 3 current"));
    eventually(PATIENCE, "not everybody came back", back)?;
    closed("after the controller's restart and another policy")?;

    world.ctl(&["quarantine", "release", "node", "app"])?;
    laptop.chatter(app_at, 7000)?;
    app.chatter(db_at, 7000)?;

    // Past the rules, loudly, and cut when it is closed.
    ensure!(!can_connect(&laptop.host, db_at, 7000), "no rule opens the database to a laptop");
    let reasons = ["--reason", "incident 17", "--why-past-the-rules", "nobody answers"];
    let opened = world.ctl(
        &[&["break-glass", "open", "laptop", "db", "--subject", "alice", "--for", "30m"][..], &reasons].concat(),
    )?;
    ensure!(opened.contains("db is open to alice on laptop until"), "{opened}");
    let mut client = laptop.chatter(db_at, 7000)?;
    for (what, text) in [
        ("the controller's status", world.ctl(&["status"])?),
        ("resources", laptop.postern(&["resources", "--json"])?),
        ("flows on the destination", db.postern(&["flows", "--json"])?),
    ] {
        ensure!(text.contains("BREAK-GLASS") && text.contains("incident 17"), "{what}: {text}");
    }
    let list = world.ctl_json(&["break-glass", "list"])?;
    world.ctl(&["break-glass", "close", list[0]["record"]["id"].as_str().unwrap_or_default()])?;
    client.is_cut("break-glass that was closed")?;
    Ok(())
}

const ON_REQUEST: &str = r#"
[resource.db]
node = "db"
ports = ["tcp/7000"]

[resource.logs]
node = "db"
ports = ["tcp/7001"]

[[access]]
name = "on call reaches the database"
from = ["group:sre"]
to = ["db"]
lease = "10m"
request = { approvers = ["group:leads"], longest = "1h" }
"#;

/// Access for a time: asked for on the machine, approved on a page by somebody else, and over at its end although the controller is
/// gone and the lease would have lasted ten minutes. Break-glass ends so too.
#[test]
fn access_on_request_is_given_by_another_person_and_ends_on_the_nodes_without_the_controller() -> Result<()> {
    let world = Deployment::start("request")?;
    world.apply_policy(ON_REQUEST)?;
    world.add_user("ann", &["sre", "leads"])?;
    world.add_user("lea", &["leads"])?;
    let (db, _echo, at) = server(&world, "db")?;
    let laptop = world.laptop("laptop")?;
    world.sign_in(&laptop, "ann")?;
    ensure!(!can_connect(&laptop.host, at, 7000), "it is open before anybody asked");
    let why = laptop.command().args(["explain", "db:7000"]).run()?.stdout;
    ensure!(why.contains("postern request db"), "{why}");

    let mut asking = laptop.command().args(["request", "db", "--for", "1m", "--reason", "incident 17"]).spawn()?;
    asking.wait_for_output("waits for group:leads", PATIENCE)?;
    let own = world.browser(&laptop.host)?;
    let page = own.get("https://ctl/requests")?;
    let page = own.submit(&page.form("password")?, &[("login", "ann"), ("password", PASSWORD)])?;
    ensure!(
        page.body.contains("No request waits for your decision"),
        "her own request is shown to her: {}",
        page.text()
    );

    let browser = world.browser(&db.host)?;
    let page = browser.get("https://ctl/requests")?;
    let page = browser.submit(&page.form("password")?, &[("login", "lea"), ("password", PASSWORD)])?;
    ensure!(page.text().contains("ann asks for db") && page.text().contains("incident 17"), "{}", page.text());
    let mut form = page.form("/requests/decide")?;
    form.fields.insert("decision".into(), String::new()); // the button that is pressed says which
    let forged = own.submit(&form, &[("reason", "on call"), ("decision", "approve")])?;
    ensure!(
        forged.status != 200 && !can_connect(&laptop.host, at, 7000),
        "a form of another session: {}",
        forged.status
    );
    let approved = std::time::Instant::now();
    let page = browser.submit(&form, &[("reason", "on call"), ("decision", "approve")])?;
    let shown = page.text();
    ensure!(page.status == 200 && shown.contains("approved by lea") && shown.contains("Take it back now"), "{shown}");
    asking.wait_for_output("approved by lea", PATIENCE)?;
    let mut client = laptop.chatter(at, 7000)?;
    let status = laptop.command().arg("status").run()?.stdout;
    ensure!(status.contains("db: approved by lea until"), "{status}");
    let audit = world.ctl(&["audit", "tail", "-n", "50"])?;
    ensure!(audit.contains("access_decided") && audit.contains("on call"), "{audit}");

    let reasons = ["--reason", "incident 17", "--why-past-the-rules", "nobody answers"];
    let opened = std::time::Instant::now();
    world
        .ctl(&[&["break-glass", "open", "laptop", "logs", "--subject", "ann", "--for", "1m"][..], &reasons].concat())?;
    let mut past_the_rules = laptop.chatter(at, 7001)?;

    world.stop_controller(Signal::Kill)?;
    for (flow, begun, what) in [(&mut client, approved, "an approval"), (&mut past_the_rules, opened, "break-glass")] {
        flow.is_cut_within(Duration::from_secs(75), what)?;
        let lived = begun.elapsed();
        // A busy machine tells of the end later, and sends no more lines for that: ten a second at most.
        ensure!(lived >= Duration::from_secs(55), "{what} of one minute ended after {lived:?}");
        ensure!(flow.lines() <= 630, "{} lines came back by {what} of one minute", flow.lines());
    }
    for port in [7000, 7001] {
        ensure!(!can_connect(&laptop.host, at, port), "port {port} is open after its end");
    }
    Ok(())
}

const HOLDING: &str = r#"
[resource.app]
node = "app"
ports = ["tcp/7000"]

[resource.db]
node = "db"
ports = ["tcp/7000"]

[resource.vault]
node = "db"
ports = ["tcp/7001"]

[[access]]
name = "staff use the app and its database"
from = ["group:staff"]
to = ["app", "db"]
lease = "10m"

[[access]]
name = "on call opens the vault"
from = ["group:sre"]
to = ["vault"]
lease = "10m"
request = { approvers = ["group:leads"], longest = "1h" }
"#;

/// What is open while something is held.
struct Flows<'a> {
    alice: &'a Node,
    bob: &'a Node,
    app_at: IpAddr,
    db_at: IpAddr,
    open: BTreeMap<Flow, Chatter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Flow {
    AliceToApp,
    AliceToDb,
    BobToApp,
}

impl Flows<'_> {
    fn open(&mut self, flow: Flow) -> Result<()> {
        let chatter = match flow {
            Flow::AliceToApp => self.alice.chatter(self.app_at, 7000),
            Flow::AliceToDb => self.alice.chatter(self.db_at, 7000),
            Flow::BobToApp => self.bob.chatter(self.app_at, 7000),
        };
        self.open.insert(flow, chatter?);
        Ok(())
    }

    /// Those that are named are cut, and all others go on.
    fn are_cut(&mut self, cut: &[Flow], what: &str) -> Result<()> {
        for (flow, chatter) in &mut self.open {
            match cut.contains(flow) {
                true => chatter.is_cut(&format!("{what}, {flow:?}")).map(drop)?,
                false => chatter.goes_on(&format!("{what}, {flow:?}"))?,
            }
        }
        Ok(())
    }
}

/// Quarantine and restraint of each kind, by hand: what is named is cut and explained, everything else goes on, and a release opens it
/// again.
#[test]
fn whatever_is_held_is_cut_alone_and_explained_and_opens_when_it_is_released() -> Result<()> {
    use Flow::{AliceToApp, AliceToDb, BobToApp};
    let world = Deployment::start("holding")?;
    world.apply_policy(HOLDING)?;
    world.add_user("alice", &["staff"])?;
    world.add_user("bob", &["staff"])?;
    let (_app, _app_echo, app_at) = server(&world, "app")?;
    let (_db, _db_echo, db_at) = server(&world, "db")?;
    let (alice, bob) = (world.laptop("laptop-a")?, world.laptop("laptop-b")?);
    world.sign_in(&alice, "alice")?;
    world.sign_in(&bob, "bob")?;
    let mut flows = Flows { alice: &alice, bob: &bob, app_at, db_at, open: BTreeMap::new() };
    for flow in [AliceToApp, AliceToDb, BobToApp] {
        flows.open(flow)?;
    }
    let all_of_alice = [AliceToApp, AliceToDb];
    let holds: [(&str, &str, &[Flow], &str); 5] = [
        ("quarantine subject alice", "quarantine release subject alice", &all_of_alice, "alice is in quarantine since"),
        (
            "quarantine device laptop-a",
            "quarantine release device laptop-a",
            &all_of_alice,
            "laptop-a is in quarantine since",
        ),
        (
            "quarantine resource app",
            "quarantine release resource app",
            &[AliceToApp, BobToApp],
            "app is in quarantine since",
        ),
        (
            "restraint challenge subject alice",
            "restraint release subject alice",
            &all_of_alice,
            "asks for a fresh sign-in",
        ),
        (
            "restraint restrict device laptop-a --to db",
            "restraint release device laptop-a",
            &[AliceToApp],
            "gives nothing until an administrator releases it",
        ),
    ];
    let words = |line: &'static str| line.split(' ').collect::<Vec<_>>();
    for (hold, release, cut, named) in holds {
        world.ctl(&[&words(hold)[..], &["--reason", "incident-17"]].concat())?;
        flows.are_cut(cut, hold)?;
        ensure!(!can_connect(&alice.host, app_at, 7000), "{hold}: it opens again");
        for said in [alice.explain("app:7000"), world.explain("alice", "app")] {
            let explained = said.starts_with("denied") && said.contains(named) && said.contains("incident-17");
            ensure!(explained, "{hold} is not explained: {said}");
        }
        world.ctl(&words(release))?;
        cut.iter().try_for_each(|flow| flows.open(*flow))?;
    }
    // Nothing but a sign-in opens again after this one.
    world.ctl(&["restraint", "terminate", "subject", "alice", "--reason", "incident-17"])?;
    flows.are_cut(&all_of_alice, "terminate")?;
    let status = eventually(PATIENCE, "the machine is not told of its end", || {
        alice.command().arg("status").run().ok().map(|output| output.text()).filter(|text| text.contains("incident-17"))
    })?;
    ensure!(status.contains("postern up"), "{status}");
    for said in [alice.explain("app:7000"), world.explain("alice", "app")] {
        ensure!(said.contains("incident-17"), "the end of the session is not explained: {said}");
    }
    world.sign_in(&alice, "alice")?;
    flows.open(AliceToApp)?;
    Ok(())
}

/// What was given for a time is taken back by command, and ends by itself while the controller is there; neither touches anything else.
#[test]
fn access_on_request_is_cut_when_it_is_withdrawn_and_when_its_time_is_over() -> Result<()> {
    let world = Deployment::start("on-request")?;
    world.apply_policy(HOLDING)?;
    world.add_user("bob", &["staff", "sre"])?;
    let (db, _echo, at) = server(&world, "db")?;
    let laptop = world.laptop("laptop")?;
    world.sign_in(&laptop, "bob")?;
    let give = || -> Result<(String, Chatter)> {
        laptop.postern(&["request", "vault", "--for", "1m", "--reason", "incident 17", "--no-wait"])?;
        let list = world.ctl_json(&["request", "list"])?;
        let waiting = list.as_array().into_iter().flatten().find(|view| view["record"]["state"]["kind"] == "waiting");
        let id = waiting.and_then(|view| view["record"]["id"].as_str()).with_context(|| list.to_string())?.to_owned();
        world.ctl(&["request", "approve", &id, "--reason", "on call"])?;
        Ok((id, laptop.chatter(at, 7001)?))
    };
    let explained = |what: &str, ended: &str| -> Result<()> {
        for said in [laptop.explain("vault:7001"), world.explain("bob", "vault")] {
            let words = ["on call opens the vault", "postern request vault", ended];
            ensure!(said.starts_with("denied") && words.iter().all(|word| said.contains(word)), "{what}: {said}");
        }
        Ok(())
    };
    let mut beside = laptop.chatter(at, 7000)?;
    let (request, mut vault) = give()?;
    world.ctl(&["request", "withdraw", &request, "--reason", "it is over"])?;
    vault.is_cut("withdrawn")?;
    beside.goes_on("something else was withdrawn")?;
    explained("withdrawn", "after an approval")?;

    // All clocks go forward, so that the minute is short.
    let (_request, mut vault) = give()?;
    for host in [&laptop.host, &db.host, &world.controller] {
        host.write(WALL_OFFSET, "50000")?;
    }
    vault.is_cut_within(Duration::from_secs(20), "a minute that is over")?;
    beside.goes_on("something else was over")?;
    explained("over", "the last one ended at")?;
    ensure!(!can_connect(&laptop.host, at, 7001), "it opens again");
    Ok(())
}

/// A receiver of alerts: prints each body and answers 204.
const RECEIVER: &str = r#"
import http.server, sys
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        print(self.headers["Postern-Signature"], body, flush=True)
        self.send_response(204)
        self.end_headers()
    def log_message(self, *arguments):
        pass
http.server.HTTPServer(("127.0.0.1", 9099), Receiver).serve_forever()
"#;

/// An alert that was raised while its receiver was away, and before the controller was killed, arrives when the receiver is back.
#[test]
fn an_alert_reaches_the_webhook_after_an_outage_and_a_crash() -> Result<()> {
    let world = Deployment::start_with("alerts", |host, config| {
        host.write("/etc/postern-controller/keys/alerts.secret", "a secret of enough characters")?;
        host.sh("chmod 600 /etc/postern-controller/keys/alerts.secret")?;
        let alerts = "[alerts]\nwebhook = \"http://127.0.0.1:9099/\"\nsecret_file = \"keys/alerts.secret\"\nlog = \"alerts.jsonl\"\n";
        Ok(format!("{config}\n{alerts}"))
    })?;
    world.apply_policy(POLICY)?;
    let (_app, _echo, _at) = server(&world, "app")?;
    world.ctl(&["quarantine", "node", "app", "--reason", "it scans"])?;
    let log = || world.controller.read("/etc/postern-controller/alerts.jsonl").unwrap_or_default();
    eventually(PATIENCE, "the alert is not in the log", || log().contains("it scans").then_some(()))?;
    world.stop_controller(Signal::Kill)?;
    let mut receiver = world.controller.command("python3").args(["-c", RECEIVER]).spawn()?;
    world.start_controller()?;
    let said = receiver.wait_for_output("it scans", PATIENCE)?;
    ensure!(said.contains("t=") && said.contains(",v1=") && said.contains("\"kind\":\"quarantine\""), "{said}");
    Ok(())
}
