//! Sign-in at a real OpenID provider, as a browser does it: the groups that it vouches for decide who gets in.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Background,
    browser::{Browser, Page},
    corp::Corp,
    deployment::{Family, Node, PATIENCE},
    eventually,
    programs::{CONTROLLER_AUTHORITY, can_connect, http_get, http_server, openid_provider},
};

const POLICY: &str = r#"
[resource.payroll-app]
nodes = ["tag:payroll"]
ports = ["tcp/8080"]

[resource.wiki]
nodes = ["tag:payroll"]
ports = ["tcp/80"]

[[access]]
name = "payroll people use payroll"
from = ["group:payroll"]
to = ["payroll-app"]

[[access]]
name = "everybody reads the wiki"
from = ["user:*"]
to = ["wiki"]

[[deny]]
name = "contractors never read the wiki"
from = ["group:contractors"]
to = ["wiki"]
"#;

#[test]
fn groups_that_the_provider_vouches_for_decide_who_reaches_what() -> Result<()> {
    let corp = Corp::start("oidc", POLICY)?;
    let payroll = corp.world.server("payroll", &["payroll"], None)?;
    let _pages = [http_server(&payroll.host, 8080, "salaries")?, http_server(&payroll.host, 80, "how we do it")?];
    let at = payroll.overlay(Family::V6)?;
    let get = |node: &Node, port: u16| {
        let url = format!("http://[{at}]:{port}/");
        eventually(PATIENCE, &format!("{} gets no {url}", node.host.name()), || {
            http_get(&node.host, &url, Duration::from_secs(3)).ok()
        })
    };

    // the group, and no contractor: both
    let alice = corp.world.laptop("alice-laptop")?;
    let said = corp.sign_in(&alice, "alice")?;
    ensure!(said.contains("payroll-app") && said.contains("wiki"), "{said}");
    ensure!(get(&alice, 8080)?.contains("salaries"));
    ensure!(get(&alice, 80)?.contains("how we do it"));

    // no group at all, which is known: what everybody may
    let bob = corp.world.laptop("bob-laptop")?;
    let said = corp.sign_in(&bob, "bob")?;
    ensure!(!said.contains("payroll-app") && said.contains("wiki"), "{said}");
    ensure!(get(&bob, 80)?.contains("how we do it"));
    ensure!(!can_connect(&bob.host, at, 8080), "bob reaches payroll without its group");

    // the provider says nothing about groups: they are unknown, satisfy no access and every deny
    let mallory = corp.world.laptop("mallory-laptop")?;
    let said = corp.sign_in(&mallory, "mallory")?;
    ensure!(!said.contains("payroll-app") && !said.contains("wiki"), "{said}");
    for port in [80, 8080] {
        ensure!(!can_connect(&mallory.host, at, port), "mallory reaches port {port} with unknown groups");
    }
    let explained = corp.world.controller_command()?.args(["explain", "--as", "mallory@corp.example", "--to", "wiki"]);
    let explained = explained.run()?.text();
    ensure!(explained.contains("contractors never read the wiki"), "{explained}");
    Ok(())
}

#[test]
fn a_forged_state_a_used_answer_and_a_cancelled_login_get_nobody_in() -> Result<()> {
    let corp = Corp::start("oidc-refused", POLICY)?;
    let person = corp.world.lab.host("person")?;
    let refused = |page: &Page, words: &[&str]| -> Result<()> {
        let text = page.text();
        ensure!(page.status >= 400 && words.iter().all(|word| text.contains(word)), "({}) {text}", page.status);
        Ok(())
    };
    let stranger = |browser: &Browser| -> Result<()> {
        let page = browser.get("https://ctl/")?;
        ensure!(page.url.contains("/sign-in"), "somebody is signed in: {} {}", page.url, page.text());
        Ok(())
    };

    // answers that nobody waits for
    let browser = corp.browser(&person)?;
    for query in
        ["", "?state=&code=x", "?state=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa&code=x", "?code=x", "?error=x"]
    {
        let page = browser.get(&format!("https://ctl/oidc/callback{query}"))?;
        refused(&page, &["no longer waiting", "Begin again"]).with_context(|| query.to_owned())?;
    }
    stranger(&browser)?;

    // the person says no at the provider
    let page = corp.to_provider(&browser, "https://ctl/sign-in")?;
    let page = browser.submit(&page.form("Cancel")?, &[])?;
    ensure!(page.url.starts_with("https://ctl/oidc/callback"), "{}", page.url);
    refused(&page, &["You are not signed in", "Try again"])?;
    stranger(&browser)?;
    // and a wrong password stays at the provider
    let page = corp.to_provider(&browser, "https://ctl/sign-in")?;
    let page = browser.submit(&page.form("password")?, &[("login", "alice"), ("password", "wrong")])?;
    ensure!(page.url.starts_with("https://idp:9443/") && page.status == 403, "{} ({})", page.url, page.status);
    stranger(&browser)?;

    // another browser's state: a person is not signed in as somebody else by following a link
    let begun = corp.to_provider(&browser, "https://ctl/sign-in")?;
    let filled = [("login", "alice"), ("password", "alice-password")];
    let stopped = browser.submit_until(&begun.form("password")?, &filled, "https://ctl/")?;
    ensure!(stopped.url.starts_with("https://ctl/oidc/callback?"), "{}", stopped.url);
    let other = corp.browser(&person)?;
    corp.to_provider(&other, "https://ctl/sign-in")?; // it waits for an answer of its own
    refused(&other.get(&stopped.url)?, &["no longer waiting", "Begin again"])?;
    stranger(&other)?;
    // the attempt spent it: it is no good in the first browser either
    refused(&browser.get(&stopped.url)?, &["no longer waiting"])?;
    stranger(&browser)?;

    // a good one works, once
    let browser = corp.browser(&person)?; // the provider knows the first one by now
    let begun = corp.to_provider(&browser, "https://ctl/sign-in")?;
    let stopped = browser.submit_until(&begun.form("password")?, &filled, "https://ctl/")?;
    let page = browser.get(&stopped.url)?;
    ensure!(page.status == 200 && page.text().contains("alice@corp.example"), "({}) {}", page.status, page.text());
    refused(&corp.browser(&person)?.get(&stopped.url)?, &["no longer waiting"])?;

    // a code that the provider never gave, under a state that waits
    let third = corp.browser(&person)?;
    let begun = corp.to_provider(&third, "https://ctl/sign-in")?;
    let stopped = third.submit_until(&begun.form("password")?, &filled, "https://ctl/")?;
    let code = stopped.url.split(['?', '&']).find(|part| part.starts_with("code=")).context("no code")?;
    let forged = stopped.url.replace(code, "code=forged");
    refused(&third.get(&forged)?, &["You are not signed in"])?;
    stranger(&third)?;

    let audit = corp.world.controller.sh("cat /etc/postern-controller/state/audit/*")?;
    for word in ["oidc_state", "provider_refused", "oidc_code"] {
        ensure!(audit.contains(word), "the audit log says nothing of {word}");
    }
    ensure!(!audit.contains("a-client-secret-for-tests"), "a secret is in the audit log");
    Ok(())
}

#[test]
fn a_provider_that_is_away_is_said_and_nothing_else_stops() -> Result<()> {
    let mut corp = Corp::start("oidc-away", POLICY)?;
    corp.provider.signal(postern_tests::Signal::Kill)?;
    corp.provider.wait(PATIENCE)?;
    let person = corp.world.lab.host("person")?;
    let browser = corp.browser(&person)?;
    let page = browser.get("https://ctl/oidc/start")?;
    ensure!(page.status == 502 && page.text().contains("does not answer"), "({}) {}", page.status, page.text());
    // it comes back, and nobody had to restart anything
    let files = ("/run/pki/idp.pem", "/run/pki/idp.key");
    let _provider = openid_provider(&corp.idp, 9443, files, "https://ctl/oidc/callback", &[])?;
    corp.to_provider(&browser, "https://ctl/sign-in").map(drop)
}

const OFFLINE: &str = "scopes = [\"profile\", \"email\", \"groups\", \"offline_access\"]\ncheck_interval = \"5s\"\n";

/// Why nobody is signed in on a machine any more, if so.
fn signed_out(node: &Node) -> Option<String> {
    let status = node.json(&["status"]).ok()?;
    status["phase"]["reason"].as_str().map(str::to_owned)
}

fn payroll(corp: &Corp) -> Result<(Node, Background, std::net::IpAddr)> {
    let server = corp.world.server("payroll", &["payroll"], None)?;
    let page = http_server(&server.host, 80, "how we do it")?;
    let at = server.overlay(Family::V6)?;
    Ok((server, page, at))
}

#[test]
fn who_is_disabled_at_the_provider_is_out_within_the_interval_and_a_provider_that_is_away_ends_nobody() -> Result<()> {
    let mut corp = Corp::start_with("oidc-refresh", POLICY, OFFLINE, &[])?;
    let (_server, _page, at) = payroll(&corp)?;
    let (alice, bob) = (corp.world.laptop("alice-laptop")?, corp.world.laptop("bob-laptop")?);
    let browser = corp.browser(&alice.host)?;
    corp.sign_in_with(&browser, &alice, "alice")?;
    corp.sign_in(&bob, "bob")?;
    for node in [&alice, &bob] {
        eventually(PATIENCE, "the wiki is not reached", || can_connect(&node.host, at, 80).then_some(()))?;
    }
    let stored = corp.world.controller.sh("strings -n 20 /etc/postern-controller/state/*.db* | grep -c eyJ || true")?;
    ensure!(stored.trim() == "0", "something that looks like a token is in the database in clear");
    // exchanged twice, so that the one that took the first one's place was kept
    eventually(PATIENCE, "the provider was not asked twice about each", || {
        let counted = corp.idp.sh("curl -sk https://localhost:9443/test/refreshes").ok()?;
        let counted: std::collections::BTreeMap<String, u64> = serde_json::from_str(&counted).ok()?;
        ["alice", "bob"].iter().all(|login| counted.get(*login) >= Some(&2)).then_some(())
    })?;
    ensure!(signed_out(&alice).is_none() && signed_out(&bob).is_none());

    corp.idp.sh("curl -sk https://localhost:9443/test/disable -d alice")?;
    let said = || format!("{}\n{}", corp.provider.output(), corp.world.controller_log());
    let reason = eventually(Duration::from_secs(20), "alice is still in", || signed_out(&alice)).with_context(said)?;
    ensure!(reason.contains("identity provider has ended this sign-in"), "{reason}");
    ensure!(!can_connect(&alice.host, at, 80) && can_connect(&bob.host, at, 80));
    let page = browser.get("https://ctl/")?;
    ensure!(page.url.contains("/sign-in"), "her browser is still signed in: {}", page.url);

    corp.provider.signal(postern_tests::Signal::Kill)?;
    corp.provider.wait(PATIENCE)?;
    let in_vain = "the identity provider cannot be asked whether a sign-in still stands";
    let before = corp.world.controller_log().matches(in_vain).count();
    eventually(PATIENCE, "the provider that is away was not asked twice", || {
        (corp.world.controller_log().matches(in_vain).count() >= before + 2).then_some(())
    })?;
    ensure!(signed_out(&bob).is_none() && can_connect(&bob.host, at, 80), "bob fell with the provider");
    let audit = corp.world.controller.sh("cat /etc/postern-controller/state/audit/*")?;
    ensure!(audit.contains("the identity provider has ended this sign-in"), "the audit log says nothing");
    Ok(())
}

/// Has the provider sign a logout token with these claims over what a good one says, and tells it to the controller.
fn tell(corp: &Corp, header: &str, claims: &str) -> Result<String> {
    let script = format!(
        "import json,subprocess,time\n\
         now=int(time.time())\n\
         claims={{'iss':'https://idp:9443','aud':'postern','iat':now,'exp':now+100,'jti':'j-%d'%time.time_ns(),'sub':'bob',\
         'events':{{'http://schemas.openid.net/event/backchannel-logout':{{}}}}}}\n\
         claims.update({claims})\n\
         claims={{k:v for k,v in claims.items() if v is not None}}\n\
         asked=json.dumps({{'header':{header},'claims':claims}})\n\
         token=subprocess.run(['curl','-sk','https://localhost:9443/test/logout-token','-d',asked],capture_output=True,text=True).stdout\n\
         open('/run/token','w').write(token)\n"
    );
    corp.idp.command("python3").args(["-c", &script]).run()?.ok()?;
    tell_again(corp)
}

fn tell_again(corp: &Corp) -> Result<String> {
    corp.idp.sh(&format!(
        "curl -s --cacert {CONTROLLER_AUTHORITY} -o /dev/null -w '%{{http_code}}' https://ctl/oidc/backchannel-logout \
         --data-urlencode logout_token@/run/token"
    ))
}

#[test]
fn back_channel_logout_ends_what_it_names_and_what_does_not_hold_changes_nothing() -> Result<()> {
    let corp = Corp::start_with("oidc-logout", POLICY, "", &["--logout", "https://ctl/oidc/backchannel-logout"])?;
    let (_server, _page, at) = payroll(&corp)?;
    let (alice, bob) = (corp.world.laptop("alice-laptop")?, corp.world.laptop("bob-laptop")?);
    let browser = corp.browser(&alice.host)?;
    corp.sign_in_with(&browser, &alice, "alice")?;
    corp.sign_in(&bob, "bob")?;
    for node in [&alice, &bob] {
        eventually(PATIENCE, "the wiki is not reached", || can_connect(&node.host, at, 80).then_some(()))?;
    }

    // she signs out at the provider, which tells the controller by itself
    let page = browser.get("https://idp:9443/session/end")?;
    let mut form = page.forms().into_iter().next().context("no form to sign out")?;
    form.fields.insert("logout".into(), "yes".into());
    let page = browser.submit(&form, &[])?;
    let said =
        || format!("({}) {}\n{}\n{}", page.status, page.text(), corp.provider.output(), corp.world.controller_log());
    let reason = eventually(Duration::from_secs(10), "alice is still in", || signed_out(&alice)).with_context(said)?;
    ensure!(reason.contains("signed out at the identity provider"), "{reason}");
    ensure!(!can_connect(&alice.host, at, 80) && signed_out(&bob).is_none());
    ensure!(browser.get("https://ctl/")?.url.contains("/sign-in"), "her browser is still signed in");

    for (header, claims) in [
        ("{}", "{'aud':'another'}"),
        ("{}", "{'aud':['postern','another']}"),
        ("{}", "{'iss':'https://evil.example'}"),
        ("{}", "{'iat':now-90000,'exp':now-89900}"),
        ("{}", "{'events':{}}"),
        ("{}", "{'nonce':'n'}"),
        ("{}", "{'jti':None}"),
        ("{}", "{'sub':None}"),
        ("{'typ':'JWT'}", "{}"),
        ("{'alg':'none'}", "{}"),
        ("{'alg':'HS256'}", "{}"),
        ("{'kid':'nobody'}", "{}"),
    ] {
        let status = tell(&corp, header, claims)?;
        ensure!(status == "400", "{header} {claims}: {status}");
    }
    // of another time: one of the clocks is wrong, which somebody has to hear of
    ensure!(tell(&corp, "{}", "{'iat':now-3600,'exp':now-3500}")? == "503");
    // signed by the provider for another person, and changed on the way
    tell(&corp, "{}", "{'sub':'nobody'}")?;
    corp.idp.sh("python3 - <<'EOF'\nimport base64,json\nh,p,s=open('/run/token').read().split('.')\n\
        c=json.loads(base64.urlsafe_b64decode(p+'==='));c['sub']='bob';c['jti']='forged'\n\
        open('/run/token','w').write('.'.join([h,base64.urlsafe_b64encode(json.dumps(c).encode()).decode().rstrip('='),s]))\nEOF")?;
    ensure!(tell_again(&corp)? == "400", "a forged token was taken");
    ensure!(signed_out(&bob).is_none() && can_connect(&bob.host, at, 80), "bob is out by a token that does not hold");

    // one that holds, once
    ensure!(tell(&corp, "{}", "{}")? == "200");
    let reason = eventually(PATIENCE, "bob is still in", || signed_out(&bob))?;
    ensure!(reason.contains("signed out at the identity provider"), "{reason}");
    corp.wait_for_the_next_second()?;
    corp.sign_in(&bob, "bob")?;
    ensure!(tell_again(&corp)? == "400", "a used token was taken again");
    ensure!(signed_out(&bob).is_none(), "a replayed token ended the next sign-in");
    let audit = corp.world.controller.sh("cat /etc/postern-controller/state/audit/*")?;
    for word in ["provider_logout", "replayed", "for another client", "not signed by the provider"] {
        ensure!(audit.contains(word), "the audit log says nothing of {word}");
    }
    Ok(())
}

#[test]
fn who_had_proven_it_before_a_logout_opens_nothing_after_it_and_other_sessions_are_not_shut_out() -> Result<()> {
    // with a place to tell of logouts the provider names its sessions in ID tokens
    let corp = Corp::start_with("oidc-logout-door", POLICY, "", &["--logout", "https://ctl/oidc/backchannel-logout"])?;
    let (_server, _page, at) = payroll(&corp)?;
    let (first, second) = (corp.world.laptop("bob-first")?, corp.world.laptop("bob-second")?);
    let (browser, other) = (corp.browser(&first.host)?, corp.browser(&second.host)?);
    corp.sign_in_with(&browser, &first, "bob")?;
    let sid = corp.provider_sessions("bob")?.pop().context("the provider names no session")?;
    corp.sign_in_with(&other, &second, "bob")?;
    for node in [&first, &second] {
        eventually(PATIENCE, "the wiki is not reached", || can_connect(&node.host, at, 80).then_some(()))?;
    }
    // a sign-in that the provider has answered, and that is not finished yet
    let late = corp.browser(&first.host)?;
    let begun = corp.to_provider(&late, "https://ctl/sign-in")?;
    let filled = [("login", "bob"), ("password", "bob-password")];
    let stopped = late.submit_until(&begun.form("password")?, &filled, "https://ctl/")?;
    ensure!(stopped.url.starts_with("https://ctl/oidc/callback?"), "{}", stopped.url);

    ensure!(tell(&corp, "{}", &format!("{{'sid':'{sid}'}}"))? == "200");
    let reason = eventually(PATIENCE, "bob is still in", || signed_out(&first))?;
    ensure!(reason.contains("signed out at the identity provider"), "{reason}");
    ensure!(signed_out(&second).is_none() && can_connect(&second.host, at, 80), "another session ended");
    // by the session that the provider still has nothing opens, also after a restart; another session's sign-in is not shut out
    let turned_away = |browser: &Browser| -> Result<()> {
        let page = corp.sign_in_by_the_session_there(browser)?;
        ensure!(page.status == 403 && page.text().contains("you signed out at"), "{} {}", page.status, page.text());
        Ok(())
    };
    turned_away(&browser)?;
    let page = late.get(&stopped.url)?;
    ensure!(page.status == 200 && page.text().contains("bob@corp.example"), "{} {}", page.status, page.text());
    corp.world.stop_controller(postern_tests::Signal::Kill)?;
    corp.world.start_controller()?;
    turned_away(&browser)?;

    // of the whole person: nothing that was proven before it, in whatever session
    let begun = corp.browser(&first.host)?;
    let page = corp.to_provider(&begun, "https://ctl/sign-in")?;
    let stopped = begun.submit_until(&page.form("password")?, &filled, "https://ctl/")?;
    ensure!(tell(&corp, "{}", "{}")? == "200");
    eventually(PATIENCE, "bob is still in", || signed_out(&second))?;
    let page = begun.get(&stopped.url)?;
    ensure!(page.status == 403 && page.text().contains("you signed out at"), "{} {}", page.status, page.text());
    corp.world.stop_controller(postern_tests::Signal::Kill)?;
    corp.world.start_controller()?;
    for browser in [&browser, &other, &late, &begun] {
        turned_away(browser)?;
    }
    corp.wait_for_the_next_second()?;
    corp.sign_in(&second, "bob")?;
    let audit = corp.world.controller.sh("cat /etc/postern-controller/state/audit/*")?;
    ensure!(audit.contains("signed_out_at_provider") && !audit.contains("not_provisioned"));
    Ok(())
}

#[test]
fn keys_that_the_provider_changes_are_taken_up_and_a_sign_out_there_cuts_what_is_open() -> Result<()> {
    let corp = Corp::start_with("oidc-keys", POLICY, OFFLINE, &["--logout", "https://ctl/oidc/backchannel-logout"])?;
    let server = corp.world.server("payroll", &["payroll"], None)?;
    let (_echo, at) = (server.echo(&[80])?, server.overlay(Family::V6)?);
    let (alice, bob) = (corp.world.laptop("alice-laptop")?, corp.world.laptop("bob-laptop")?);
    corp.sign_in(&alice, "alice")?;
    corp.sign_in(&bob, "bob")?;
    let (mut of_alice, mut of_bob) = (alice.chatter(at, 80)?, bob.chatter(at, 80)?);

    corp.idp.sh("curl -skf -X POST https://localhost:9443/test/rotate")?;
    let exchanged = || -> Option<std::collections::BTreeMap<String, u64>> {
        serde_json::from_str(&corp.idp.sh("curl -sk https://localhost:9443/test/refreshes").ok()?).ok()
    };
    // twice: the second is by a token that came under the new key
    let before = exchanged().context("the provider counts nothing")?;
    eventually(PATIENCE, "sign-ins are not checked any more", || {
        let counted = exchanged()?;
        let more = |login: &str| counted.get(login) >= Some(&(before.get(login).copied().unwrap_or(0) + 2));
        (more("alice") && more("bob")).then_some(())
    })
    .with_context(|| format!("{}\n{}", corp.provider.output(), corp.world.controller_log()))?;
    of_alice.goes_on("a sign-in under the key before")?;
    let second = corp.world.laptop("alice-second")?;
    corp.sign_in(&second, "alice").context("a sign-in under the new key")?;

    // whoever has the old key ends nothing and opens nothing
    ensure!(tell(&corp, "{'kid':'test-1'}", "{}")? == "400", "a token of a key that is not published was taken");
    of_bob.goes_on("a logout that the provider did not sign")?;
    ensure!(tell(&corp, "{}", "{}")? == "200", "{}", corp.world.controller_log());
    of_bob.is_cut("a sign-out at the provider")?;
    let why = bob.explain("wiki");
    ensure!(why.contains("signed out at the identity provider"), "explain does not name the sign-out: {why}");
    of_alice.goes_on("another person's sign-out")?;

    // disabled there: the next check finds it, and what is open is cut
    corp.idp.sh("curl -skf https://localhost:9443/test/disable -d alice")?;
    of_alice.is_cut_within(PATIENCE, "a person who is disabled at the provider")?;
    let why = alice.explain("wiki");
    ensure!(why.contains("identity provider has ended this sign-in"), "explain does not name the end: {why}");
    Ok(())
}

/// The provider ends the session of whoever was signed in there before, by a form that sends itself where scripts are on.
fn out_of_the_session_there(browser: &Browser, page: Page) -> Result<Page> {
    match page.form("/session/end/confirm") {
        Ok(form) => browser.submit(&form, &[]),
        Err(_) => Ok(page),
    }
}

#[test]
fn a_step_up_at_the_provider_asks_for_the_password_again_and_takes_the_same_person_alone() -> Result<()> {
    let policy =
        POLICY.replace("to = [\"wiki\"]\n\n[[deny]]", "to = [\"wiki\"]\nwhen = { mfa_within = \"20s\" }\n\n[[deny]]");
    ensure!(policy != POLICY);
    let corp = Corp::start_with("oidc-step-up", &policy, "", &[])?;
    let (_server, _page, at) = payroll(&corp)?;
    let alice = corp.world.laptop("alice-laptop")?;
    let browser = corp.browser(&alice.host)?;
    corp.sign_in_with(&browser, &alice, "alice")?;
    eventually(Duration::from_secs(40), "the proof does not grow old", || {
        (!can_connect(&alice.host, at, 80)).then_some(())
    })?;
    let mut command = alice.command().args(["--json", "step-up", "wiki"]).spawn()?;
    let url = eventually(PATIENCE, "no page", || {
        let line = command.output().lines().find(|line| line.contains("\"url\""))?.to_owned();
        let notice: serde_json::Value = serde_json::from_str(&line).ok()?;
        notice["url"].as_str().map(str::to_owned)
    })?;
    let page = browser.get(&url)?;
    ensure!(page.form("Yes, it is me").is_err(), "an old sign-in is offered as enough: {}", page.text());
    let at_provider = |browser: &Browser| -> Result<Page> {
        let page = browser.get(&browser.get(&url)?.link("/provider")?)?;
        ensure!(page.url.starts_with("https://idp:9443/interaction/"), "the provider asks for nothing: {}", page.url);
        Ok(page)
    };
    // somebody else at her desk: she stays who she is, and nothing opens
    let filled = [("login", "bob"), ("password", "bob-password")];
    let page = browser.submit(&at_provider(&browser)?.form("password")?, &filled)?;
    let page = out_of_the_session_there(&browser, page)?;
    ensure!(page.status == 403 && page.text().contains("somebody else"), "({}) {}", page.status, page.text());
    ensure!(browser.get("https://ctl/")?.text().contains("alice@corp.example"));
    ensure!(!can_connect(&alice.host, at, 80));

    let filled = [("login", "alice"), ("password", "alice-password")];
    let page = browser.submit(&at_provider(&browser)?.form("password")?, &filled)?;
    let page = out_of_the_session_there(&browser, page)?;
    let page = browser.submit(&page.form("Yes, it is me")?, &[])?;
    ensure!(page.status == 200 && page.text().contains("wiki is open"), "({}) {}", page.status, page.text());
    ensure!(command.wait(PATIENCE)?.success(), "{}", command.output());
    ensure!(can_connect(&alice.host, at, 80));
    let audit = corp.world.controller.sh("cat /etc/postern-controller/state/audit/*")?;
    ensure!(audit.contains("step_up_other_person"), "the audit log does not say that somebody else was refused");
    Ok(())
}
