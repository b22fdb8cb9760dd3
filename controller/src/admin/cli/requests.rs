//! `request`: what people ask for, and the decision.

use std::process::ExitCode;

use clap::Subcommand;
use postern_common::diagnostics::HumanDuration;
use serde_json::Value;

use super::Desk;
use crate::{
    admin::{
        print::{self, text, time},
        request::Request,
    },
    serve::clock,
    stream::Decision,
};

/// Requests for access for a time: list, approve, refuse, withdraw.
///
/// Approvers whom the policy names decide on the pages; an administrator of the controller's host can decide here, and is
/// recorded as that.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  postern-controller request list\n  postern-controller request approve req_4k2m --reason \"on call, incident 17\"\n  postern-controller request refuse req_4k2m --reason \"use the replica\""
)]
pub(super) enum Requests {
    /// List requests, the newest first.
    #[command(after_help = "Example:\n  postern-controller request list --json")]
    List,
    /// Give what was asked for, until its time is over.
    #[command(after_help = "Example:\n  postern-controller request approve req_4k2m --reason \"on call\"")]
    Approve {
        /// The request, or the beginning of its identifier.
        request: String,
        /// Why; recorded, and shown to the person who asked.
        #[arg(long)]
        reason: String,
    },
    /// Do not give it.
    #[command(after_help = "Example:\n  postern-controller request refuse req_4k2m --reason \"use the replica\"")]
    Refuse {
        /// The request, or the beginning of its identifier.
        request: String,
        /// Why; recorded, and shown to the person who asked.
        #[arg(long)]
        reason: String,
    },
    /// Take back what was given: it closes, and its connections are cut.
    #[command(
        after_help = "Example:\n  postern-controller request withdraw req_4k2m --reason \"the incident is over\""
    )]
    Withdraw {
        /// The request, or the beginning of its identifier.
        request: String,
        /// Why; recorded, and shown to the person who asked.
        #[arg(long)]
        reason: String,
    },
}

impl Requests {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let (request, decision, reason) = match self {
            Self::List => return desk.ask_and(&Request::RequestList, list),
            Self::Approve { request, reason } => (request, Decision::Approve, reason),
            Self::Refuse { request, reason } => (request, Decision::Refuse, reason),
            Self::Withdraw { request, reason } => (request, Decision::Withdraw, reason),
        };
        desk.ask_and(&Request::RequestDecide { request, decision, reason }, |view| {
            let record = &view["record"];
            let (who, machine, what) = (text(&view["subject_name"]), text(&view["machine"]), text(&record["resource"]));
            let end = time(&record["state"]["until"]).map(|until| print::clock_time(until, clock::now().wall));
            print::done(&match (end, decision) {
                (Some(until), _) => format!("{who} on {machine} may use {what} until {until}"),
                (None, Decision::Withdraw) => format!("{what} is taken back from {who} on {machine}"),
                (None, Decision::Approve | Decision::Refuse) => format!("{what} is refused to {who} on {machine}"),
            });
        })
    }
}

fn list(value: &Value) {
    let now = clock::now().wall;
    let rows = value.as_array().into_iter().flatten().map(|view| {
        let record = &view["record"];
        let length = std::time::Duration::from_millis(record["length_ms"].as_u64().unwrap_or(0));
        let state = &record["state"];
        let became = match state["kind"].as_str() {
            Some("approved") => format!("approved by {}", text(&state["by"])),
            Some("refused") => format!("refused by {}", text(&state["by"])),
            Some(_) | None => format!("waits for {}", text(&record["approvers"])),
        };
        let until = time(&state["until"]).map_or_else(|| "-".into(), |at| print::clock_time(at, now));
        vec![
            text(&record["id"]),
            format!("{} on {}", text(&view["subject_name"]), text(&view["machine"])),
            text(&record["resource"]),
            HumanDuration::rounded(length).to_string(),
            became,
            until,
            text(&record["reason"]),
        ]
    });
    let head = ["request", "of", "resource", "for", "state", "until", "reason"];
    print::table(&head, rows.collect(), "Nobody has asked for anything.");
}
