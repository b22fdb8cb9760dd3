//! How somebody signed in, by a real provider: each thing that a rule may ask for, alone, and while connections are open.

use anyhow::{Result, ensure};
use postern_tests::{
    corp::{Corp, stream_of_events},
    deployment::Family,
    programs::can_connect,
};
use serde_json::json;

const POLICY: &str = r#"
[resource.vault]
nodes = ["tag:payroll"]
ports = ["tcp/7000"]

[resource.bank]
nodes = ["tag:payroll"]
ports = ["tcp/7001"]

[resource.wiki]
nodes = ["tag:payroll"]
ports = ["tcp/7002"]

[[access]]
name = "keys open the vault"
from = ["user:*"]
to = ["vault"]
when = { phishing_resistant = true }

[[access]]
name = "a high class opens the bank"
from = ["user:*"]
to = ["bank"]
when = { acr = "urn:corp:high" }

[[access]]
name = "everybody reads the wiki"
from = ["user:*"]
to = ["wiki"]
"#;
const VAULT: u16 = 7000;
const BANK: u16 = 7001;
const WIKI: u16 = 7002;

/// A password and a code are neither a key nor of the class; a key is; and what the provider says later takes away one of them alone.
#[test]
fn each_demand_on_the_sign_in_alone_opens_and_cuts_and_is_named() -> Result<()> {
    let corp = Corp::start_with("assurance", POLICY, &stream_of_events("corp"), &[])?;
    let _transmitter = corp.transmitter()?;
    let server = corp.world.server("payroll", &["payroll"], None)?;
    let _echo = server.echo(&[VAULT, BANK, WIKI])?;
    let at = server.overlay(Family::V6)?;
    let alice = corp.world.laptop("alice-laptop")?;
    let explained = |name: &str, words: &[&str]| -> Result<()> {
        for said in [alice.explain(name), corp.world.explain("alice@corp.example", name)] {
            ensure!(
                said.starts_with("denied") && words.iter().all(|word| said.contains(word)),
                "not {words:?}: {said}"
            );
        }
        Ok(())
    };
    let signed_in_with = |acr: &str, amr: &[&str]| -> Result<()> {
        corp.provider_says_of("alice", acr, amr)?;
        alice.postern(&["logout"])?;
        corp.sign_in(&alice, "alice").map(drop)
    };

    // A password and a code, as the provider says of her until it is told otherwise.
    corp.sign_in(&alice, "alice")?;
    drop(alice.chatter(at, WIKI)?);
    for port in [VAULT, BANK] {
        ensure!(!can_connect(&alice.host, at, port), "port {port} opens to a code");
    }
    explained("vault", &["the sign-in could have been phished", "keys open the vault", "postern step-up vault"])?;
    explained("bank", &["the sign-in is of class \"urn:corp:mfa\"", "asks for a sign-in of class urn:corp:high"])?;

    // By a key, in another class: the vault alone.
    signed_in_with("urn:corp:mfa", &["pwd", "hwk"])?;
    let (mut vault, mut wiki) = (alice.chatter(at, VAULT)?, alice.chatter(at, WIKI)?);
    ensure!(!can_connect(&alice.host, at, BANK), "the bank opens to another class");
    let level =
        |level: &str, way: &str| json!({"namespace": "NIST-AAL", "current_level": level, "change_direction": way});
    corp.tell("assurance-level-change", level("nist-aal2", "decrease"), "alice")?;
    vault.is_cut("it counts as phishable now")?;
    wiki.goes_on("it asks for nothing")?;
    explained("vault", &["the sign-in could have been phished"])?;
    corp.tell("assurance-level-change", level("nist-aal3", "increase"), "alice")?;
    drop(alice.chatter(at, VAULT)?);

    // In the class, by what can be phished: the bank alone.
    signed_in_with("urn:corp:high", &["pwd", "otp"])?;
    let (mut bank, mut wiki) = (alice.chatter(at, BANK)?, alice.chatter(at, WIKI)?);
    ensure!(!can_connect(&alice.host, at, VAULT), "the vault opens to a class");
    corp.tell("token-claims-change", json!({"claims": {"acr": "urn:corp:mfa"}}), "alice")?;
    bank.is_cut("another class")?;
    wiki.goes_on("it asks for nothing")?;
    explained("bank", &["the sign-in does not tell its class", "asks for a sign-in of class urn:corp:high"])?;
    corp.tell("token-claims-change", json!({"claims": {"acr": "urn:corp:high"}}), "alice")?;
    alice.chatter(at, BANK).map(drop)
}
