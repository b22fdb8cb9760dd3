//! `quarantine`: hold somebody or something, release it, list what is held.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use postern_common::diagnostics::HumanDuration;

use super::{Desk, revoke};
use crate::{
    admin::{
        print::{self, text, time},
        request::{Holdable, Request},
    },
    serve::clock,
};

/// Hold something: nothing in and nothing out until it is released.
///
/// It outlives restarts, sign-ins, renewals and policies, and has no exceptions. A machine in quarantine keeps its stream to the
/// controller, so that it is told why.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  postern-controller quarantine node payroll-1 --reason \"beacons to 203.0.113.9\"\n  postern-controller quarantine subject bob@corp.example --reason incident-17\n  postern-controller quarantine release node payroll-1\n  postern-controller quarantine list"
)]
pub(super) enum Quarantine {
    /// A person or service: every machine of theirs.
    #[command(after_help = "Example:\n  postern-controller quarantine subject bob@corp.example --reason incident-17")]
    Subject(Hold),
    /// A machine, whoever signs in there.
    #[command(after_help = "Example:\n  postern-controller quarantine device bob-laptop --reason incident-17")]
    Device(Hold),
    /// A machine that runs our agent.
    #[command(after_help = "Example:\n  postern-controller quarantine node payroll-1 --reason incident-17")]
    Node(Hold),
    /// A resource: nobody may open it, by whatever name.
    #[command(after_help = "Example:\n  postern-controller quarantine resource payroll-app --reason incident-17")]
    Resource(Hold),
    /// Release somebody or something: what policy gives opens again.
    #[command(after_help = "Example:\n  postern-controller quarantine release node payroll-1")]
    Release {
        /// What is held.
        what: Holdable,
        /// Which.
        name: String,
    },
    /// List what is held, why and since when.
    #[command(after_help = "Example:\n  postern-controller quarantine list --json")]
    List,
}

/// Whom or what, and why.
#[derive(Debug, Args)]
pub(super) struct Hold {
    /// Which: a name or an identifier.
    name: String,
    /// Why; recorded, and shown on the machines concerned.
    #[arg(long)]
    reason: String,
    /// How long to wait for the nodes.
    #[arg(long, default_value = "10s", value_name = "DURATION")]
    wait: HumanDuration,
}

impl Quarantine {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        match self {
            Self::Subject(hold) => hold.run(desk, Holdable::Subject),
            Self::Device(hold) => hold.run(desk, Holdable::Device),
            Self::Node(hold) => hold.run(desk, Holdable::Node),
            Self::Resource(hold) => hold.run(desk, Holdable::Resource),
            Self::Release { what, name } => {
                let said = format!("{} {name} is released from quarantine", what.word());
                desk.ask_and(&Request::QuarantineRelease { what, name }, |_| print::done(&said))
            }
            Self::List => desk.ask_and(&Request::QuarantineList, |value| {
                let now = clock::now().wall;
                let rows = value.as_array().into_iter().flatten().map(|view| {
                    let record = &view["record"];
                    vec![
                        text(&record["target"]["kind"]),
                        text(&view["name"]),
                        time(&record["since"]).map_or_else(|| "-".into(), |at| print::clock_time(at, now)),
                        text(&record["by"]),
                        text(&record["reason"]),
                    ]
                });
                print::table(&["what", "name", "since", "by", "reason"], rows.collect(), "Nothing is in quarantine.");
            }),
        }
    }
}

impl Hold {
    fn run(self, desk: &Desk, what: Holdable) -> anyhow::Result<ExitCode> {
        let wait_ms = u64::try_from(self.wait.get().as_millis()).unwrap_or(u64::MAX);
        let request = Request::Quarantine { what, name: self.name, reason: self.reason, wait_ms };
        let value = desk.ask(&request)?;
        desk.show(&value, |value| revoke::progress(value, "in quarantine"));
        Ok(revoke::verdict(&value))
    }
}
