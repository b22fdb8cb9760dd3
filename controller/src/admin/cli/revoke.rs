//! `revoke`, `lift`.

use std::process::ExitCode;

use clap::Args;
use postern_common::diagnostics::HumanDuration;
use serde_json::Value;

use super::Desk;
use crate::{
    admin::{
        print::{self, text},
        request::{Request, Revocable},
    },
    serve::clock,
};

/// Cut something everywhere, now.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  postern-controller revoke session alice@corp.example/alice-laptop --reason \"laptop lost\"\n  postern-controller revoke device alice-laptop --reason stolen\n  postern-controller revoke rule \"engineers use git\" --reason incident-17\n\nWaits until every connected node has cut what was revoked."
)]
pub(super) struct Revoke {
    /// What to revoke.
    what: Revocable,
    /// Which: a session as PERSON/MACHINE, a machine's name, a person, service:NAME, a rule's name, or an identifier.
    name: String,
    /// Why; recorded, and shown to the person.
    #[arg(long)]
    reason: String,
    /// How long to wait for the nodes.
    #[arg(long, default_value = "10s", value_name = "DURATION")]
    wait: HumanDuration,
}

/// Lift a revocation.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  postern-controller lift device alice-laptop")]
pub(super) struct Lift {
    /// What was revoked.
    what: Revocable,
    /// Which.
    name: String,
}

impl Revoke {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let wait_ms = u64::try_from(self.wait.get().as_millis()).unwrap_or(u64::MAX);
        let request = Request::Revoke { what: self.what, name: self.name, reason: self.reason, wait_ms };
        let value = desk.ask(&request)?;
        desk.show(&value, |value| progress(value, "revoked"));
        Ok(verdict(&value))
    }
}

impl Lift {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let said = format!("{} {} is no longer revoked", self.what.word(), self.name);
        desk.ask_and(&Request::Lift { what: self.what, name: self.name }, |_| print::done(&said))
    }
}

/// Returns success if no connected node still owes its acknowledgement.
pub(super) fn verdict(value: &Value) -> ExitCode {
    let nodes = value["revocation"]["nodes"].as_array();
    let owes = nodes.into_iter().flatten().any(|node| node["progress"]["kind"] == "told");
    if owes { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Tells how far a revocation has come.
pub(super) fn progress(value: &Value, done: &str) {
    let view = &value["revocation"];
    let empty = Vec::new();
    let nodes = view["nodes"].as_array().unwrap_or(&empty);
    if nodes.is_empty() {
        print::done(&format!("{done}; no node had to cut anything"));
        return;
    }
    let line = format!(
        "{done} on {} of {} nodes in {} ms; {}",
        text(&view["acknowledged"]),
        nodes.len(),
        text(&view["elapsed_ms"]),
        match view["flows_cut"].as_u64() {
            Some(0) | None => "no live flow was open".to_owned(),
            Some(cut) => format!("{} cut", print::count(cut, "live flow")),
        }
    );
    if view["acknowledged"].as_u64() == Some(nodes.len() as u64) {
        print::done(&line)
    } else {
        println!("{line}")
    }
    let now = clock::now().wall;
    for node in nodes {
        let name = text(&node["name"]);
        match node["progress"]["kind"].as_str() {
            Some("told") => println!("  {name} was told and has not answered yet; its leases end by themselves"),
            Some("away") => {
                let by = print::time(&node["progress"]["closes_by"]);
                let by = by.map_or_else(|| "soon".into(), |by| print::clock_time(by, now));
                println!("  {name} is not connected; what it enforces ends by itself at {by}");
            }
            Some("expired") => println!("  {name} was away until its leases had ended"),
            _ => {}
        }
    }
}
