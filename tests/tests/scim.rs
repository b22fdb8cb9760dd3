//! Provisioning: people sign in at a real OpenID provider, and a SCIM client, as Entra and Okta have one, says who is in which group
//! and who is out.

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Background, Echo, Host,
    browser::{Browser, Page},
    deployment::{Deployment, Family, Node, PATIENCE},
    eventually, pki,
    programs::{CONTROLLER_AUTHORITY, can_connect, openid_provider},
};
use serde_json::{Value, json};

const POLICY: &str = r#"
[resource.payroll-app]
nodes = ["tag:payroll"]
ports = ["tcp/8080"]

[resource.wiki]
nodes = ["tag:payroll"]
ports = ["tcp/7000"]

[[access]]
name = "payroll people use payroll"
from = ["group:payroll"]
to = ["payroll-app"]
lease = "30s"

[[access]]
name = "staff read the wiki"
from = ["group:people"]
to = ["wiki"]
lease = "30s"
"#;

const USER: &str = "urn:ietf:params:scim:schemas:core:2.0:User";
const GROUP: &str = "urn:ietf:params:scim:schemas:core:2.0:Group";
const PATCH: &str = "urn:ietf:params:scim:api:messages:2.0:PatchOp";

/// A controller, the provider of its people, and that provider's SCIM client on the same host.
struct Corp {
    world: Deployment,
    idp: Host,
    token: String,
    _provider: Background,
}

impl Corp {
    fn start(name: &str, scim: &str) -> Result<Self> {
        let world = Deployment::start_with(name, |controller, config| {
            pki::make(controller, "idp")?;
            controller.write("/etc/postern-controller/keys/oidc.secret", "a-client-secret-for-tests\n")?;
            controller.sh("chmod 600 /etc/postern-controller/keys/oidc.secret")?;
            Ok(config
                + &format!(
                    "\n[oidc]\nissuer = \"https://idp:9443\"\nname = \"Corp SSO\"\nclient_id = \"postern\"\n\
                     client_secret_file = \"keys/oidc.secret\"\nca_file = \"/run/pki/ca.pem\"\n\n[oidc.scim]\n{scim}"
                ))
        })?;
        let idp = world.lab.host("idp")?;
        idp.write(CONTROLLER_AUTHORITY, world.controller.read("/etc/postern-controller/keys/ca.crt")?)?;
        let files = pki::hand_over(&world.controller, &idp, "idp")?;
        let provider = openid_provider(&idp, 9443, (&files.0, &files.1), "https://ctl/oidc/callback", &[])?;
        world.apply_policy(POLICY)?;
        let made = world.ctl_json(&["scim", "token", "create", "--ttl", "1h"])?;
        ensure!(made["base_url"] == "https://ctl/scim/v2", "{made}");
        let token = made["token"].as_str().context("no token")?.to_owned();
        Ok(Self { world, idp, token, _provider: provider })
    }

    /// Sends a request with this token from this host; returns the status and the body.
    fn send(&self, from: &Host, token: &str, method: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
        from.write(CONTROLLER_AUTHORITY, self.world.controller.read("/etc/postern-controller/keys/ca.crt")?)?;
        from.write("/run/scim-body", body.to_string())?;
        let data = if body.is_null() { "" } else { "--data-binary @/run/scim-body" };
        let answer = from.sh(&format!(
            "curl -sg --cacert {CONTROLLER_AUTHORITY} -X {method} -w '\\n%{{http_code}}' {data} \
             -H 'Authorization: Bearer {token}' -H 'Content-Type: application/scim+json' 'https://ctl/scim/v2{path}'"
        ))?;
        let (body, status) = answer.trim_end().rsplit_once('\n').unwrap_or(("", answer.trim()));
        Ok((status.parse().context(answer.clone())?, serde_json::from_str(body).unwrap_or_default()))
    }

    /// Sends a request that has to succeed.
    fn scim(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let (status, answer) = self.send(&self.idp, &self.token, method, path, body)?;
        ensure!((200..300).contains(&status), "{method} {path}: {status} {answer}\n{}", self.world.controller_log());
        Ok(answer)
    }

    fn made(&self, path: &str, body: &Value) -> Result<String> {
        Ok(self.scim("POST", path, body)?["id"].as_str().context("no id")?.to_owned())
    }

    fn user(&self, login: &str) -> Result<String> {
        let user_name = format!("{login}@corp.example");
        self.made("/Users", &json!({"schemas": [USER], "userName": user_name, "externalId": login, "active": true}))
    }

    fn group(&self, name: &str, members: &[&str]) -> Result<String> {
        let members: Vec<Value> = members.iter().map(|id| json!({"value": id})).collect();
        self.made("/Groups", &json!({"schemas": [GROUP], "displayName": name, "members": members}))
    }

    fn patch(&self, path: &str, operations: Value) -> Result<()> {
        self.scim("PATCH", path, &json!({"schemas": [PATCH], "Operations": operations})).map(drop)
    }

    fn browser(&self, host: &Host) -> Result<Browser> {
        self.world.browser(host)?;
        let both = host.read("/run/postern-ca.pem")? + &self.world.controller.read("/run/pki/ca.pem")?;
        host.write("/run/browser-ca.pem", both)?;
        Browser::open(host, "/run/browser-ca.pem")
    }

    /// Goes through the provider's login form, as far as the controller lets somebody.
    fn at_provider(&self, browser: &Browser, url: &str, login: &str) -> Result<Page> {
        let page = browser.get(url)?;
        let page = browser.get(&page.link("/oidc/start")?)?;
        let filled = [("login", login), ("password", &format!("{login}-password"))];
        browser.submit(&page.form("password")?, &filled)
    }

    fn sign_in(&self, browser: &Browser, node: &Node, login: &str) -> Result<()> {
        let (mut up, code) = self.world.begin_sign_in(node)?;
        let page = self.at_provider(browser, &format!("https://ctl/join?code={code}"), login)?;
        let page = browser.submit(&page.form("/join/confirm")?, &[])?;
        ensure!(page.status == 200, "{} {}", page.status, page.text());
        let status = up.wait(PATIENCE)?;
        ensure!(status.success(), "`postern up` ended with {status}\n{}", up.output());
        Ok(())
    }
}

fn server(corp: &Corp) -> Result<(Node, Echo)> {
    let node = corp.world.server("payroll", &["payroll"], None)?;
    let echoes = node.echo(&[7000, 8080])?;
    Ok((node, echoes))
}

#[test]
fn who_is_deactivated_is_cut_and_turned_away_and_a_group_that_is_taken_away_cuts_its_rule_alone() -> Result<()> {
    let corp = Corp::start("scim", "required = true\n")?;
    let (payroll, _echoes) = server(&corp)?;
    let at = payroll.overlay(Family::V6)?;
    let (alice, bob) = (corp.world.laptop("alice-laptop")?, corp.world.laptop("bob-laptop")?);

    // Nobody is provisioned yet: the provider signs them in, and the controller turns them away.
    let browser = corp.browser(&alice.host)?;
    let page = corp.at_provider(&browser, "https://ctl/sign-in", "alice")?;
    ensure!(page.status == 403 && page.text().contains("has not provisioned"), "({}) {}", page.status, page.text());
    let stranger = |browser: &Browser| browser.get("https://ctl/").map(|page| page.url.contains("/sign-in"));
    ensure!(stranger(&browser)?, "she is signed in all the same");

    let (alice_id, bob_id) = (corp.user("alice")?, corp.user("bob")?);
    corp.group("people", &[&alice_id, &bob_id])?;
    let managers = corp.group("payroll", &[&alice_id])?;
    let browser = corp.browser(&alice.host)?; // the provider knows the first one by now
    corp.sign_in(&browser, &alice, "alice")?;
    corp.sign_in(&corp.browser(&bob.host)?, &bob, "bob")?;
    let mut wiki = alice.chatter(at, 7000)?;
    let mut salaries = alice.chatter(at, 8080)?;
    let mut of_bob = bob.chatter(at, 7000)?;
    ensure!(!can_connect(&bob.host, at, 8080), "bob reaches payroll without its group");

    // Without authority nothing happens to anybody.
    let off = json!({"schemas": [PATCH], "Operations": [{"op": "Replace", "path": "active", "value": "False"}]});
    let target = format!("/Users/{alice_id}");
    let bound = corp.world.ctl_json(&["scim", "token", "create", "--from", "192.0.2.0/24"])?;
    for token in ["x", "pst_scim_0000000000000000000000000000000", bound["token"].as_str().unwrap_or_default()] {
        let (status, answer) = corp.send(&bob.host, token, "PATCH", &target, &off)?;
        ensure!(status == 401 && answer["status"] == "401", "{token}: {status} {answer}");
    }
    ensure!(wiki.is_running() && salaries.is_running(), "cut without authority");

    // Out of a group, as Entra says it: that rule's connection alone.
    let gone = json!([{"op": "Remove", "path": "members", "value": [{"$ref": null, "value": alice_id}]}]);
    corp.patch(&format!("/Groups/{managers}"), gone)?;
    salaries.is_cut("out of the group")?;
    ensure!(wiki.is_running() && of_bob.is_running(), "more was cut than the group gave");
    ensure!(!can_connect(&alice.host, at, 8080));

    // Deactivated, as Entra says it.
    corp.scim("PATCH", &target, &off)?;
    wiki.is_cut("deactivated")?;
    ensure!(of_bob.is_running() && can_connect(&bob.host, at, 7000), "bob fell with her");
    ensure!(!can_connect(&alice.host, at, 7000));
    ensure!(stranger(&browser)?, "her browser is still signed in");
    let why = alice.json(&["status"])?;
    ensure!(why["phase"]["reason"].to_string().contains("deactivated at the identity provider"), "{why}");
    let page = corp.at_provider(&corp.browser(&alice.host)?, "https://ctl/sign-in", "alice")?;
    ensure!(page.status == 403 && page.text().contains("deactivated"), "({}) {}", page.status, page.text());
    let audit = corp.world.controller.sh("cat /etc/postern-controller/state/audit/*")?;
    let done = |event: &Value, kind: &str| event["event"] == kind;
    let events: Vec<Value> =
        audit.lines().filter_map(|line| Some(serde_json::from_str::<Value>(line).ok()?["event"].clone())).collect();
    let of_scim = |event: &&Value| done(event, "revoked") && event["by"].to_string().contains("SCIM client");
    let revoked = events.iter().find(of_scim).context("no revocation by SCIM")?;
    let acknowledged =
        events.iter().find(|event| done(event, "revocation_done") && event["revocation"] == revoked["revocation"]);
    let acknowledged = acknowledged.context("the nodes have not acknowledged it")?;
    println!("cut on {} nodes in {} ms", acknowledged["acknowledged"], acknowledged["elapsed_ms"]);
    ensure!(acknowledged["flows_cut"].as_u64() >= Some(1), "{acknowledged}");
    let people = corp.world.ctl(&["scim", "people", "--inactive"])?;
    ensure!(people.contains("alice@corp.example") && !people.contains("bob@"), "{people}");
    let listed = corp.world.ctl(&["user", "list"])?;
    ensure!(listed.contains("deactivated at the identity provider (SCIM)"), "{listed}");

    // Back again, as Okta says it: nothing opens before she signs in.
    corp.patch(&target, json!([{"op": "replace", "value": {"active": true}}]))?;
    ensure!(!can_connect(&alice.host, at, 7000), "open without a sign-in");
    corp.sign_in(&corp.browser(&alice.host)?, &alice, "alice")?;
    let mut again = alice.chatter(at, 7000)?;

    // Neither a restart nor what was taken back changes any of it.
    corp.world.stop_controller(postern_tests::Signal::Kill)?;
    corp.world.start_controller()?;
    eventually(PATIENCE, "the provider is not served after a restart", || {
        corp.scim("GET", &target, &Value::Null).ok().filter(|user| user["active"] == true)
    })?;
    corp.scim("DELETE", &target, &Value::Null)?;
    again.is_cut("an account that is deleted")?;
    ensure!(of_bob.is_running(), "bob fell with her");
    let tokens = corp.world.ctl_json(&["scim", "token", "list"])?;
    let own = tokens.as_array().into_iter().flatten().find(|view| view["record"]["networks"] == json!([]));
    let own = own.and_then(|view| view["short"].as_str()).context("no token of ours")?.to_owned();
    corp.world.ctl(&["scim", "token", "revoke", &own])?;
    let (status, _) = corp.send(&corp.idp, &corp.token, "DELETE", &format!("/Users/{bob_id}"), &Value::Null)?;
    ensure!(status == 401 && of_bob.is_running(), "a token that was taken back still works: {status}");
    of_bob.goes_on("a token that was taken back")?;

    let audit = corp.world.controller.sh("cat /etc/postern-controller/state/audit/*")?;
    for words in [
        "deactivated `alice@corp.example`",
        "reactivated `alice@corp.example`",
        "deleted the user `alice@corp.example`",
        "removed alice@corp.example",
        "not_provisioned",
        "with a token that nobody knows",
        "from a network that the token is not for",
    ] {
        ensure!(audit.contains(words), "the audit log says nothing of {words}");
    }
    ensure!(!audit.contains(&corp.token), "a token is in the audit log");
    Ok(())
}
