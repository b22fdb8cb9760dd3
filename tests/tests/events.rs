//! Security events from a real transmitter, by push and by poll: each flips its verdict and cuts what is open, and what does not hold
//! changes nothing.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Echo, Signal,
    corp::{CA, Corp, PUSH_TOKEN, TRANSMITTER},
    deployment::{Family, Node, PATIENCE},
    eventually,
    programs::{CONTROLLER_AUTHORITY, can_connect},
};
use serde_json::{Value, json};

const POLICY: &str = r#"
[posture.content]
compliant = true

[resource.wiki]
nodes = ["tag:payroll"]
ports = ["tcp/7000"]

[resource.hr]
nodes = ["tag:payroll"]
ports = ["tcp/7001"]

[resource.vault]
nodes = ["tag:payroll"]
ports = ["tcp/7002"]

[[access]]
name = "everybody reads the wiki"
from = ["user:*"]
to = ["wiki"]

[[access]]
name = "machines in order see hr"
from = ["user:*"]
to = ["hr"]
when = { posture = "content" }

[[access]]
name = "two factors open the vault"
from = ["user:*"]
to = ["vault"]
when = { mfa_within = "12h" }

[[deny]]
name = "contractors never read the wiki"
from = ["group:contractors"]
to = ["wiki"]
"#;
const WIKI: u16 = 7000;
const HR: u16 = 7001;
const VAULT: u16 = 7002;
const PROVIDER: &str = "https://idp:9443";
const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type/";
/// With a place to tell of logouts the provider names its sessions in ID tokens.
const LOGOUT: [&str; 2] = ["--logout", "https://ctl/oidc/backchannel-logout"];
const AUDIT: &str = "cat /etc/postern-controller/state/audit/*";

fn streams(silent_after: &str) -> String {
    let stream = |name: &str, further: &str| {
        format!(
            "\n[[events]]\nname = \"{name}\"\nissuer = \"{TRANSMITTER}\"\npeople_of = \"{PROVIDER}\"\nca_file = \"{CA}\"\n\
             api_token_file = \"keys/events-api.token\"\n{further}"
        )
    };
    let push = format!(
        "delivery = \"push\"\ndevices = true\npush_token_file = \"keys/events.token\"\nstream_id = \"s-1\"\n\
         verification_url = \"https://idp:9445/verify\"\nsilent_after = \"{silent_after}\"\n"
    );
    let poll =
        "delivery = \"poll\"\npoll_url = \"https://idp:9444/poll\"\npoll_interval = \"1s\"\nsilent_after = \"24h\"\n";
    stream("corp", &push) + &stream("fetched", poll) + "\n[alerts]\nlog = \"alerts.jsonl\"\n"
}

/// What the transmitter is asked for, with a body.
fn ask(corp: &Corp, path: &str, body: &str) -> Result<String> {
    corp.idp.write("/run/asked", body)?;
    let said =
        corp.idp.sh(&format!("curl -sk --max-time 30 https://localhost:9444{path} --data-binary @/run/asked"))?;
    Ok(said)
}

fn user(login: &str) -> Value {
    json!({"format": "iss_sub", "iss": PROVIDER, "sub": login})
}

/// A token that tells of an event; `claims` are put over those of a good one.
fn token(corp: &Corp, kind: &str, payload: Value, subject: Value, claims: Value) -> Result<String> {
    let mut all = json!({"sub_id": subject, "events": {kind: payload}});
    let header = claims.get("header").cloned().unwrap_or(json!({}));
    for (name, value) in claims.as_object().into_iter().flatten().filter(|(name, _)| *name != "header") {
        all[name] = value.clone();
    }
    ask(corp, "/test/token", &json!({"header": header, "claims": all}).to_string())
}

/// Pushes a token; the status and the code of the refusal.
fn push(corp: &Corp, token: &str) -> Result<(u64, String)> {
    let said: Value = serde_json::from_str(&ask(corp, "/test/push", token)?)?;
    let body: Value = serde_json::from_str(said["body"].as_str().unwrap_or_default()).unwrap_or_default();
    Ok((said["status"].as_u64().context("no status")?, body["err"].as_str().unwrap_or_default().to_owned()))
}

fn tell(corp: &Corp, kind: &str, mut payload: Value, subject: Value) -> Result<()> {
    // to the millisecond: of two events of one moment the one that takes away counts
    payload["event_timestamp"] = corp.idp.sh("date +%s.%3N")?.trim().parse::<f64>()?.into();
    let text = token(corp, &format!("{CAEP}{kind}"), payload, subject, json!({}))?;
    let said = push(corp, &text)?;
    ensure!(said.0 == 202, "{kind}: {said:?}\n{}", corp.world.controller_log());
    Ok(())
}

/// A server with an echo on each port.
fn server(corp: &Corp) -> Result<(Node, Echo, IpAddr)> {
    let server = corp.world.server("payroll", &["payroll"], None)?;
    let echoes = server.echo(&[WIKI, HR, VAULT])?;
    let at = server.overlay(Family::V6)?;
    Ok((server, echoes, at))
}

fn signed_out(node: &Node) -> Option<String> {
    let status = node.json(&["status"]).ok()?;
    status["phase"]["reason"].as_str().map(str::to_owned)
}

#[test]
fn each_event_flips_its_verdict_and_cuts_what_is_open() -> Result<()> {
    let corp = Corp::start_with("events", POLICY, &streams("10m"), &[])?;
    let _transmitter = corp.transmitter()?;
    let (_server, _echoes, at) = server(&corp)?;
    let (alice, bob) = (corp.world.laptop("alice-laptop")?, corp.world.laptop("bob-laptop")?);
    corp.sign_in(&alice, "alice")?;
    corp.sign_in(&bob, "bob")?;
    let closed = |node: &Node, port: u16| !can_connect(&node.host, at, port);
    let names = |node: &Node, to: &str, event: &str| -> Result<()> {
        let why = node.command().args(["explain", to]).run()?.stdout;
        ensure!(why.contains(event), "{event} is not named: {why}");
        Ok(())
    };

    // the transmitter was asked for a verification, and it came
    eventually(PATIENCE, "no verification came", || {
        let status = corp.world.ctl_json(&["status"]).ok()?;
        let streams = status["events"].as_array()?.clone();
        let corp = streams.into_iter().find(|stream| stream["name"] == "corp")?;
        (!corp["last_heard"].is_null()).then_some(())
    })
    .with_context(|| corp.world.controller_log())?;

    // a device
    corp.world.ctl(&["posture", "bind", "alice-laptop", "--serial", "SN1"])?;
    let device = json!({"format": "complex", "device": {"format": "opaque", "id": "SN1"}, "tenant": {"format": "opaque", "id": "t"}});
    let status = |status: &str| json!({"previous_status": "compliant", "current_status": status});
    ensure!(closed(&alice, HR));
    tell(&corp, "device-compliance-change", status("compliant"), device.clone())?;
    let mut open = alice.chatter(at, HR)?;
    tell(&corp, "device-compliance-change", status("not-compliant"), device)?;
    open.is_cut("a device that is not compliant")?;
    names(&alice, "hr:7001", "not compliant")?;
    names(&alice, "hr:7001", "device-compliance-change")?;
    ensure!(closed(&alice, HR) && !closed(&alice, WIKI));

    // how strongly it was proven
    let level = |level: &str, direction: &str| json!({"namespace": "NIST-AAL", "current_level": level, "change_direction": direction});
    let (mut vault, mut wiki) = (alice.chatter(at, VAULT)?, alice.chatter(at, WIKI)?);
    tell(&corp, "assurance-level-change", level("nist-aal1", "decrease"), user("alice"))?;
    vault.is_cut("a proof that counts for less")?;
    ensure!(closed(&alice, VAULT) && wiki.is_running());
    names(&alice, "vault:7002", "assurance-level-change")?;
    tell(&corp, "assurance-level-change", level("nist-aal2", "increase"), user("alice"))?;
    eventually(PATIENCE, "the vault stays closed", || (!closed(&alice, VAULT)).then_some(()))?;
    tell(&corp, "assurance-level-change", level("nist-aal3", "increase"), user("bob"))?;
    ensure!(closed(&bob, VAULT), "an event proved what bob did not");

    // groups
    let mut open = bob.chatter(at, WIKI)?;
    tell(&corp, "token-claims-change", json!({"claims": {"groups": ["contractors"]}}), user("bob"))?;
    open.is_cut("a new group")?;
    names(&bob, "wiki:7000", "token-claims-change")?;
    let why =
        corp.world.controller_command()?.args(["explain", "--as", "bob@corp.example", "--to", "wiki"]).run()?.text();
    ensure!(why.contains("contractors never read the wiki"), "{why}");
    tell(&corp, "token-claims-change", json!({"claims": {"groups": []}}), user("bob"))?;
    let mut open = bob.chatter(at, WIKI)?;

    // credentials: a fresh sign-in is asked for
    tell(&corp, "credential-change", json!({"credential_type": "password", "change_type": "update"}), user("bob"))?;
    open.is_cut("changed credentials")?;
    names(&bob, "wiki:7000", "credential-change")?;
    ensure!(wiki.is_running(), "alice was not meant");

    // sessions, by push and by poll
    tell(&corp, "session-revoked", json!({"reason_admin": {"en": "lost laptop"}}), user("alice"))?;
    wiki.is_cut("a revoked session")?;
    let reason = eventually(PATIENCE, "alice is still in", || signed_out(&alice))?;
    ensure!(reason.contains("ended by the identity provider") && reason.contains("lost laptop"), "{reason}");
    ensure!(reason.contains("session-revoked"), "{reason}");
    let fetched = json!({"aud": "https://ctl/events/fetched", "jti": "poll-1"});
    let text = token(&corp, &format!("{CAEP}session-revoked"), json!({}), user("bob"), fetched)?;
    let said = ask(&corp, "/test/offer", &json!({"jti": "poll-1", "token": text}).to_string())?;
    ensure!(said.contains("\"ack\":true"), "{said}");
    eventually(PATIENCE, "bob is still in", || signed_out(&bob))?;
    // what does not hold is told with the next question
    let wrong = json!({"aud": "https://ctl/events/corp", "jti": "poll-2"});
    let text = token(&corp, &format!("{CAEP}session-revoked"), json!({}), user("bob"), wrong)?;
    let said = ask(&corp, "/test/offer", &json!({"jti": "poll-2", "token": text}).to_string())?;
    ensure!(said.contains("invalid_audience"), "{said}");

    let audit = corp.world.controller.sh(AUDIT)?;
    for word in ["signal_taken", "device-compliance-change", "lost laptop", "for another audience"] {
        ensure!(audit.contains(word), "the audit log says nothing of {word}");
    }
    Ok(())
}

#[test]
fn what_does_not_hold_changes_nothing_and_what_was_taken_is_remembered_over_a_restart() -> Result<()> {
    let corp = Corp::start_with("events-refused", POLICY, &streams("20s"), &[])?;
    let mut transmitter = corp.transmitter()?;
    let (_server, _echoes, at) = server(&corp)?;
    let bob = corp.world.laptop("bob-laptop")?;
    corp.sign_in(&bob, "bob")?;
    let mut open = bob.chatter(at, WIKI)?;

    let revoked = format!("{CAEP}session-revoked");
    let now = corp.idp.sh("date +%s")?.trim().parse::<i64>()?;
    let with = |claims: Value| token(&corp, &revoked, json!({}), user("bob"), claims);
    for (claims, code) in [
        (json!({"aud": "https://ctl/events/fetched"}), "invalid_audience"),
        (json!({"aud": null}), "invalid_audience"),
        (json!({"iss": PROVIDER}), "invalid_issuer"),
        (json!({"iat": now - 8 * 86_400}), "invalid_request"),
        (json!({"jti": null}), "invalid_request"),
        (json!({"sub": "bob"}), "invalid_request"),
        (json!({"exp": now + 600}), "invalid_request"),
        (json!({"sub_id": null}), "invalid_request"),
        (json!({"events": {}}), "invalid_request"),
        (json!({"padding": "x".repeat(40_000)}), "invalid_request"),
        (json!({"header": {"typ": "JWT"}}), "invalid_request"),
        (json!({"header": {"typ": "logout+jwt"}}), "invalid_request"),
        (json!({"header": {"crit": ["x"]}}), "invalid_request"),
        (json!({"header": {"alg": "none"}}), "invalid_key"),
        (json!({"header": {"alg": "HS256"}}), "invalid_key"),
        (json!({"header": {"kid": "nobody"}}), "invalid_key"), // read again, and not there
    ] {
        let said = push(&corp, &with(claims.clone())?)?;
        let shown: String = claims.to_string().chars().take(80).collect();
        ensure!(said == (400, code.to_owned()), "{shown}: {said:?}");
    }
    // from the future: a clock is wrong, and to refuse it would lose it
    ensure!(push(&corp, &with(json!({"iat": now + 600}))?)?.0 == 503);
    let alerts =
        || corp.world.controller.sh("grep stream_silent /etc/postern-controller/alerts.jsonl").unwrap_or_default();
    eventually(PATIENCE, "nobody is told of the clock", || alerts().contains("set the clock").then_some(()))?;
    // the signature of one token under the claims of another, many times
    let (one, other) = (with(json!({}))?, with(json!({"sub_id": user("nobody")}))?);
    let forged =
        format!("{}.{}", one.rsplit_once('.').context("a token")?.0, other.rsplit_once('.').context("a token")?.1);
    for _ in 0..30 {
        ensure!(push(&corp, &forged)? == (400, "invalid_key".into()));
    }
    // without the transmitter's token, with another media type
    corp.idp.write("/run/token", &one)?;
    let post = |headers: &str| {
        corp.idp.sh(&format!(
            "curl -s --cacert {CONTROLLER_AUTHORITY} -o /dev/null -w '%{{http_code}}' https://ctl/events/corp {headers} --data-binary @/run/token"
        ))
    };
    let kind = "-H 'content-type: application/secevent+jwt'";
    ensure!(post(kind)? == "401" && post(&format!("{kind} -H 'authorization: Bearer a-wrong-token-for-it'"))? == "401");
    ensure!(post(&format!("-H 'authorization: Bearer {PUSH_TOKEN}'"))? == "400");
    // what is not for us to judge is acknowledged, and changes nothing
    for subject in [
        json!({"format": "iss_sub", "iss": "https://evil.example", "sub": "bob"}),
        json!({"format": "phone_number", "phone_number": "+12065550100"}),
        json!({"format": "complex", "user": user("bob"), "org_unit": {"format": "opaque", "id": "critical"}}),
    ] {
        tell(&corp, "session-revoked", json!({}), subject)?;
    }
    ensure!(push(&corp, &token(&corp, "https://example.com/own", json!({}), user("bob"), json!({}))?)?.0 == 202);
    ensure!(open.is_running() && signed_out(&bob).is_none(), "something that does not hold ended bob's session");
    let forgeries = corp.world.controller.sh(&format!("{AUDIT} | grep -c 'not signed by the transmitter'"))?;
    ensure!(forgeries.trim().parse::<u32>()? <= 4, "{forgeries} lines for 31 forgeries");

    // the transmitter has new keys; the event is taken once
    ask(&corp, "/test/rotate", "")?;
    // its time is whenever it is taken: were it taken twice, it would end the next session too
    let good = token(&corp, &revoked, json!({"event_timestamp": now + 3_600}), user("bob"), json!({}))?;
    // it has to come again where keys were read too often just now: a forger's keys do not lose a true event
    eventually(PATIENCE, "an event under a new key is not taken", || {
        push(&corp, &good).ok().filter(|said| said.0 == 202).map(drop)
    })?;
    open.is_cut("a revoked session")?;
    corp.wait_for_the_next_second()?;
    corp.world.stop_controller(Signal::Kill)?;
    corp.world.start_controller()?;
    corp.sign_in(&bob, "bob")?;
    let mut open = bob.chatter(at, WIKI)?;
    ensure!(push(&corp, &good)?.0 == 202, "it is acknowledged again");
    std::thread::sleep(Duration::from_secs(1));
    ensure!(open.is_running() && signed_out(&bob).is_none(), "a replayed event ended the next session");
    let audit = corp.world.controller.sh(AUDIT)?;
    for word in ["replayed", "the transmitter's token is not shown", "a critical part of its subject is not understood"]
    {
        ensure!(audit.contains(word), "the audit log says nothing of {word}");
    }

    // silence is told once, and that it is over
    transmitter.signal(Signal::Kill)?;
    transmitter.wait(PATIENCE)?;
    eventually(PATIENCE, "nobody says that the stream is silent", || alerts().contains("silent for").then_some(()))?;
    let status = corp.world.ctl(&["status"])?;
    ensure!(status.contains("! events corp (push): silent since"), "{status}");
    let _transmitter = corp.transmitter()?;
    eventually(PATIENCE, "nobody says that it speaks again", || alerts().contains("speaks again").then_some(()))?;
    ensure!(
        alerts().lines().count() == 3, // the clock, the silence, its end
        "{}",
        alerts()
    );
    Ok(())
}

#[test]
fn a_session_that_is_revoked_at_the_provider_is_cut_alone_and_comes_back_by_a_fresh_sign_in() -> Result<()> {
    let corp = Corp::start_with("events-session", POLICY, &streams("10m"), &LOGOUT)?;
    let _transmitter = corp.transmitter()?;
    let (_server, _echoes, at) = server(&corp)?;
    let (lost, kept) = (corp.world.laptop("alice-laptop")?, corp.world.laptop("alice-desktop")?);
    let (browser, at_home) = (corp.browser(&lost.host)?, corp.browser(&kept.host)?);
    corp.sign_in_with(&browser, &lost, "alice")?;
    let named = corp.provider_sessions("alice")?;
    let [sid] = named.as_slice() else { anyhow::bail!("sessions at the provider: {named:?}") };
    corp.sign_in_with(&at_home, &kept, "alice")?;
    ensure!(corp.provider_sessions("alice")?.len() == 2, "the provider calls both sessions the same");
    let (mut open, mut stays) = (lost.chatter(at, WIKI)?, kept.chatter(at, WIKI)?);

    let session = json!({"format": "complex", "user": user("alice"), "session": {"format": "opaque", "id": sid}});
    tell(&corp, "session-revoked", json!({"reason_admin": {"en": "lost laptop"}}), session)?;
    open.is_cut("a revoked session")?;
    let reason = eventually(PATIENCE, "the lost laptop is still in", || signed_out(&lost))?;
    ensure!(reason.contains("session-revoked") && reason.contains("lost laptop"), "{reason}");
    ensure!(stays.is_running() && signed_out(&kept).is_none(), "another session was cut");

    // the provider still has the session, and signs in by it: it opens nothing, and the person is told why
    let turned_away = || -> Result<()> {
        let page = corp.sign_in_by_the_session_there(&browser)?;
        ensure!(
            page.status == 403 && page.text().contains("has revoked this sign-in"),
            "{} {}",
            page.status,
            page.text()
        );
        Ok(())
    };
    turned_away()?;
    corp.world.stop_controller(Signal::Kill)?;
    corp.world.start_controller()?;
    turned_away()?;
    // her other session is not shut out, neither on the machine nor in the browser
    let page = at_home.get("https://ctl/")?;
    ensure!(page.text().contains("alice@corp.example") && stays.is_running(), "{}", page.text());
    let second = corp.world.laptop("alice-second")?;
    let (mut up, code) = corp.world.begin_sign_in(&second)?;
    let page = at_home.get(&format!("https://ctl/join?code={code}"))?;
    let page = at_home.submit(&page.form("/join/confirm")?, &[])?;
    ensure!(page.status == 200 && up.wait(PATIENCE)?.success(), "{} {}", page.status, page.text());
    // who proves anew who they are comes in
    let page = corp.sign_in_by_the_session_there(&browser)?;
    let page = browser.get(&page.link("/oidc/start?anew=yes")?)?;
    ensure!(page.url.starts_with("https://idp:9443/interaction/"), "the provider asks for nothing: {}", page.url);
    let page = browser.submit(&page.form("password")?, &[("login", "alice"), ("password", "alice-password")])?;
    ensure!(page.status == 200 && page.text().contains("alice@corp.example"), "{} {}", page.status, page.text());
    let audit = corp.world.controller.sh(AUDIT)?;
    ensure!(audit.contains("\"session_revoked\"") && !audit.contains("not_provisioned"), "{audit}");
    Ok(())
}
