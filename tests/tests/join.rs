//! How machines get in: a person looks and confirms, or a token vouches; nothing else, and nothing twice.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use postern_tests::{
    browser::{Browser, Page},
    deployment::{Deployment, Family, Node, PASSWORD, PATIENCE},
    eventually,
    programs::{can_connect, http_get, http_server},
};

const POLICY: &str = r#"
[resource.payroll-app]
node = "payroll-1"
ports = ["tcp/8080"]

[resource.wiki]
nodes = ["tag:wiki"]
ports = ["tcp/8080"]

[[access]]
name = "payroll people use payroll and the wiki"
from = ["group:payroll"]
to = ["payroll-app", "wiki"]
"#;

/// Names of the machines that the controller knows.
fn machines(world: &Deployment) -> Result<Vec<String>> {
    let list = world.ctl_json(&["device", "list"])?;
    let list = list.as_array().context("a list")?;
    Ok(list.iter().filter_map(|view| view["record"]["name"].as_str().map(str::to_owned)).collect())
}

/// Signs a browser in with a local account.
fn signed_in(browser: &Browser, login: &str) -> Result<Page> {
    let page = browser.get("https://ctl/sign-in")?;
    let page = browser.submit(&page.form("password")?, &[("login", login), ("password", PASSWORD)])?;
    ensure!(page.status == 200 && page.text().contains(login), "{} {}", page.status, page.text());
    Ok(page)
}

fn says(page: &Page, status: u16, words: &[&str]) -> Result<()> {
    let text = page.text();
    ensure!(page.status == status && words.iter().all(|word| text.contains(word)), "({}) {text}", page.status);
    Ok(())
}

fn page_comes(from: &Node, at: IpAddr, what: &str) -> Result<()> {
    let url = format!("http://{}/", std::net::SocketAddr::new(at, 8080));
    eventually(PATIENCE, &format!("{} gets no {url}", from.host.name()), || {
        http_get(&from.host, &url, Duration::from_secs(3)).ok().filter(|page| page.contains(what))
    })
    .map(drop)
}

#[test]
fn a_person_sees_which_machine_asks_before_anything_happens_and_refusing_leaves_nothing() -> Result<()> {
    let world = Deployment::start("join-page")?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["payroll"])?;
    let laptop = world.laptop("alice-laptop")?;
    let (mut up, code) = world.begin_sign_in(&laptop)?;

    // from another machine, as with a stranger's code
    let desk = world.lab.host("desk")?;
    let browser = world.browser(&desk)?;
    let page = world.confirm_page(&browser, &code, "alice")?;
    let text = page.text();
    let print = page.body.split("class=\"fingerprint\">").nth(1).and_then(|rest| rest.split('<').next());
    let print = print.context("the page shows no fingerprint")?;
    ensure!(up.output().contains(print), "the machine shows another key than the page, {print}: {}", up.output());
    let (v4, v6) = (laptop.host.ipv4().to_string(), laptop.host.ipv6().to_string());
    ensure!(text.contains("alice-laptop") && (text.contains(&v4) || text.contains(&v6)), "{text}");
    ensure!(text.contains("not your address") && text.contains("Confirm only a machine in front of you"), "{text}");
    ensure!(machines(&world)?.is_empty(), "looking at the question let the machine in");
    // the agent waits still, and has no tunnel address
    ensure!(up.is_running(), "{}", up.output());

    let page = browser.submit(&page.form("/join/refuse")?, &[])?;
    says(&page, 200, &["Refused", "tell your administrator"])?;
    let ended = up.wait(PATIENCE)?;
    ensure!(!ended.success() && up.output().contains("did not confirm"), "{ended}: {}", up.output());
    ensure!(machines(&world)?.is_empty(), "a refused machine is in the list");
    ensure!(world.ctl_json(&["session", "list"])?.as_array().is_some_and(Vec::is_empty), "a session is open");
    says(&browser.get(&format!("https://ctl/join?code={code}"))?, 410, &["expired", "postern up"])?;
    Ok(())
}

#[test]
fn a_code_works_once_and_not_for_long() -> Result<()> {
    let world = Deployment::start_with("join-code", |_host, config| {
        let short = config.replace("join_code = \"10m\"", "join_code = \"60s\"");
        ensure!(short != config, "controller.toml has no join_code");
        Ok(short)
    })?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["payroll"])?;
    let (forgotten, laptop) = (world.laptop("forgotten")?, world.laptop("laptop")?);
    let (mut late, late_code) = world.begin_sign_in(&forgotten)?;

    // one use
    let (mut up, code) = world.begin_sign_in(&laptop)?;
    let browser = world.browser(&laptop.host)?;
    let question = world.confirm_page(&browser, &code, "alice")?.form("/join/confirm")?;
    says(&browser.submit(&question, &[])?, 200, &["laptop is in"])?;
    ensure!(up.wait(PATIENCE)?.success(), "{}", up.output());
    says(&browser.submit(&question, &[])?, 410, &["expired", "postern up"])?;
    says(&browser.get(&format!("https://ctl/join?code={code}"))?, 410, &["expired", "postern up"])?;
    ensure!(machines(&world)? == ["laptop"], "{:?}", machines(&world)?);

    // never given, and not a code at all
    let wrong = if late_code == "BBBB-0000" { "BBBB-0001" } else { "BBBB-0000" };
    says(&browser.get(&format!("https://ctl/join?code={wrong}"))?, 404, &["No machine waits", "postern up"])?;
    says(&browser.get("https://ctl/join?code=%3Cscript%3E")?, 422, &["four letters and four digits"])?;

    // a question that was open when the time ran out confirms nothing
    let question = browser.get(&format!("https://ctl/join?code={late_code}"))?.form("/join/confirm")?;
    let ended = late.wait(Duration::from_secs(90))?;
    ensure!(!ended.success() && late.output().contains("in time"), "{ended}: {}", late.output());
    says(&browser.submit(&question, &[])?, 410, &["expired", "postern up"])?;
    ensure!(machines(&world)? == ["laptop"], "{:?}", machines(&world)?);
    Ok(())
}

#[test]
fn guessing_codes_is_limited_and_locks_nobody_else_out() -> Result<()> {
    let world = Deployment::start("join-guess")?;
    world.apply_policy(POLICY)?;
    world.add_user("mallory", &[])?;
    world.add_user("alice", &["payroll"])?;
    let (victim, elsewhere) = (world.laptop("victim")?, world.lab.host("elsewhere")?);
    let (up, _code) = world.begin_sign_in(&victim)?;
    let browser = world.browser(&elsewhere)?;
    signed_in(&browser, "mallory")?;
    let mut tried = 0;
    let limited = eventually(PATIENCE, "guesses are not limited", || {
        tried += 1;
        browser.get(&format!("https://ctl/join?code=BBBB-{tried:04}")).ok().filter(|page| page.status != 404)
    })?;
    // ten at once, and one more every six seconds that this took
    ensure!((10..=25).contains(&tried), "{tried} guesses before the limit");
    says(&limited, 429, &["Too many attempts", "wait"])?;
    let audit = world.controller.sh("cat /etc/postern-controller/state/audit/*")?;
    ensure!(audit.contains("rate_limited"), "the audit log does not tell");
    drop(up);

    // the person at the machine is not concerned
    world.sign_in(&victim, "alice")?;
    Ok(())
}

#[test]
fn a_token_used_twice_at_once_lets_exactly_one_machine_in() -> Result<()> {
    let world = Deployment::start("token-race")?;
    world.apply_policy(POLICY)?;
    let created = world.ctl_json(&["token", "create", "--tag", "wiki"])?;
    let token = created["token"].as_str().context("a token")?;
    let nodes = [world.laptop("one")?, world.laptop("two")?, world.laptop("three")?];
    for node in &nodes {
        node.host.write("/run/token", token)?;
    }
    let start = |node: &Node| node.command().args(["up", world.join_url(), "--token-file", "/run/token"]).spawn();
    let mut both = [start(&nodes[0])?, start(&nodes[1])?];
    let mut winners = 0;
    for up in &mut both {
        match up.wait(PATIENCE)?.success() {
            true => winners += 1,
            false => ensure!(up.output().contains("wrong, expired or used"), "{}", up.output()),
        }
    }
    ensure!(winners == 1, "{winners} machines got in with one use: {} | {}", both[0].output(), both[1].output());
    ensure!(machines(&world)?.len() == 1, "{:?}", machines(&world)?);
    let mut again = start(&nodes[2])?;
    ensure!(!again.wait(PATIENCE)?.success() && again.output().contains("token create"), "{}", again.output());
    // the secret itself is nowhere on the controller's disk
    let kept = world.controller.sh(&format!("grep -rlaF {token} /etc/postern-controller/state || true"))?;
    ensure!(kept.is_empty(), "the token is in {kept}");
    Ok(())
}

#[test]
fn an_expired_or_foreign_token_lets_nobody_in() -> Result<()> {
    let world = Deployment::start("token-expired")?;
    world.apply_policy(POLICY)?;
    let create = |arguments: &[&str]| -> Result<String> {
        let created = world.ctl_json(&[&["token", "create"], arguments].concat())?;
        Ok(created["token"].as_str().context("a token")?.to_owned())
    };
    let expired = create(&["--ttl", "1s"])?;
    eventually(PATIENCE, "the token does not expire", || {
        world.ctl_json(&["token", "list"]).ok()?.as_array()?.is_empty().then_some(())
    })?;
    let foreign = create(&["--machine", "payroll-1"])?;
    let elsewhere = create(&["--from", "192.0.2.0/24", "--from", "2001:db8:77::/48"])?;
    let node = world.laptop("web")?;
    for (token, words) in [
        (expired.as_str(), "wrong, expired or used"),
        ("pst_join_NOBODYEVERMADETHISONE", "wrong, expired or used"),
        (&foreign, "for a machine named payroll-1"),
        (&elsewhere, "the token is not for machines at"),
    ] {
        node.host.write("/run/token", token)?;
        let said = node.command().args(["up", world.join_url(), "--token-file", "/run/token"]).run()?;
        ensure!(said.code() == Some(1) && said.text().contains(words), "{words}: {:?} {}", said.code(), said.text());
        ensure!(machines(&world)?.is_empty(), "{words}: {:?}", machines(&world)?);
    }
    // the one that was made for another machine still works there
    node.host.write("/run/token", &foreign)?;
    node.postern(&["up", world.join_url(), "--token-file", "/run/token", "--name", "payroll-1"])?;
    ensure!(machines(&world)? == ["payroll-1"], "{:?}", machines(&world)?);

    // One that is bound to the network where it is used lets in.
    let other = world.laptop("web-2")?;
    other.host.write("/run/token", create(&["--from", "198.18.0.0/16", "--from", "2001:db8::/48"])?)?;
    other.postern(&["up", world.join_url(), "--token-file", "/run/token"])?;
    let mut all = machines(&world)?;
    all.sort();
    ensure!(all == ["payroll-1", "web-2"], "{all:?}");
    let audit = world.controller.sh("cat /etc/postern-controller/state/audit/*")?;
    ensure!(audit.contains("the token is not for machines at"), "the audit log says nothing of a token from elsewhere");
    Ok(())
}

#[test]
fn a_machine_that_calls_itself_like_a_server_is_no_destination() -> Result<()> {
    let world = Deployment::start("join-name")?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["payroll"])?;
    world.add_user("mallory", &[])?;
    // mallory's laptop takes the server's name first, and waits for people who mean the server
    let impostor = world.laptop("payroll-1")?;
    world.sign_in(&impostor, "mallory")?;
    let _trap = http_server(&impostor.host, 8080, "give me your password")?;
    let laptop = world.laptop("alice-laptop")?;
    let said = world.sign_in(&laptop, "alice")?;
    ensure!(!said.contains("payroll-app"), "{said}");
    for family in Family::BOTH {
        ensure!(!can_connect(&laptop.host, impostor.overlay(family)?, 8080), "the impostor is reached by {family:?}");
    }
    ensure!(
        !laptop.host.command("getent").args(["ahosts", "payroll-app.internal"]).run()?.success(),
        "it has the name"
    );
    let told = world.ctl(&["status"])? + &world.ctl(&["device", "show", "payroll-1"])?;
    ensure!(told.contains("waits for approval: payroll-1"), "nobody is told that a name waits for approval: {told}");

    // the server itself, with a token that vouches for its name, takes it over
    let real = world.laptop("debian")?;
    let created = world.ctl_json(&["token", "create", "--machine", "payroll-1"])?;
    real.host.write("/run/token", created["token"].as_str().context("a token")?)?;
    real.postern(&["up", world.join_url(), "--token-file", "/run/token", "--name", "payroll-1"])?;
    let _page = http_server(&real.host, 8080, "salaries")?;
    for family in Family::BOTH {
        page_comes(&laptop, real.overlay(family)?, "salaries")?;
        ensure!(!can_connect(&laptop.host, impostor.overlay(family)?, 8080), "the impostor is reached by {family:?}");
    }
    let by_name = http_get(&laptop.host, "http://payroll-app.internal:8080/", Duration::from_secs(5))?;
    ensure!(by_name.contains("salaries"), "{by_name}");
    Ok(())
}

#[test]
fn a_tag_counts_once_an_administrator_has_approved_it_and_no_longer() -> Result<()> {
    let world = Deployment::start("join-tag")?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["payroll"])?;
    let server = world.server("web", &["other"], None)?;
    let _page = http_server(&server.host, 8080, "how we do it")?;
    let laptop = world.laptop("alice-laptop")?;
    let said = world.sign_in(&laptop, "alice")?;
    ensure!(!said.contains("wiki"), "{said}");
    let at = server.overlay(Family::V6)?;
    ensure!(!can_connect(&laptop.host, at, 8080), "a server without the tag is reached");
    world.ctl(&["approve", "web", "tag:wiki"])?;
    page_comes(&laptop, at, "how we do it")?;
    world.ctl(&["refuse", "web", "tag:wiki"])?;
    eventually(PATIENCE, "a tag that was taken away still opens", || {
        (!can_connect(&laptop.host, at, 8080)).then_some(())
    })?;
    let audit = world.controller.sh("cat /etc/postern-controller/state/audit/*")?;
    ensure!(audit.contains("wiki") && audit.contains("root"), "the audit log does not tell who approved");
    Ok(())
}
