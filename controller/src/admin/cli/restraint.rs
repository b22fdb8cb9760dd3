//! `restraint`: ask for a fresh sign-in, leave only some resources, release, list.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::Desk;
use crate::{
    admin::{
        print::{self, text, time},
        request::{Request, Restrainable},
    },
    serve::clock,
};

/// Take something from somebody until they sign in anew, or until it is released.
///
/// Limits in the policy do the same by themselves. It outlives restarts, sign-ins and policies.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  postern-controller restraint list\n  postern-controller restraint challenge subject bob@corp.example --reason \"password on a paste site\"\n  postern-controller restraint release subject bob@corp.example"
)]
pub(super) enum Restraint {
    /// List what is taken from whom, why and since when.
    #[command(after_help = "Example:\n  postern-controller restraint list --json")]
    List,
    /// Ask for a fresh sign-in before anything goes on. A service, which cannot sign in, is closed until it is released.
    #[command(after_help = "Example:\n  postern-controller restraint challenge device bob-laptop --reason incident-17")]
    Challenge(Take),
    /// Leave nothing but the named resources, until it is released.
    #[command(
        after_help = "Example:\n  postern-controller restraint restrict subject bob@corp.example --to helpdesk --to wiki --reason incident-17"
    )]
    Restrict {
        #[command(flatten)]
        take: Take,
        /// A resource that stays; may be repeated.
        #[arg(long, required = true, value_name = "RESOURCE")]
        to: Vec<String>,
    },
    /// End every login session, and take no sign-in from before.
    #[command(after_help = "Example:\n  postern-controller restraint terminate subject bob@corp.example --reason left")]
    Terminate(Take),
    /// Release somebody from every restraint: what policy gives opens again.
    #[command(after_help = "Example:\n  postern-controller restraint release subject bob@corp.example")]
    Release {
        /// What is restrained.
        what: Restrainable,
        /// Which: a name or an identifier.
        name: String,
    },
}

/// From whom, and why.
#[derive(Debug, Args)]
pub(super) struct Take {
    /// A subject, everywhere, or whoever signs in on a device.
    what: Restrainable,
    /// Which: a name or an identifier.
    name: String,
    /// Why; recorded, and shown to the person concerned.
    #[arg(long)]
    reason: String,
}

impl Restraint {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        match self {
            Self::List => desk.ask_and(&Request::RestraintList, |value| {
                let now = clock::now().wall;
                let rows = value.as_array().into_iter().flatten().map(|view| {
                    let record = &view["record"];
                    vec![
                        text(&view["name"]),
                        takes(&record["takes"]),
                        text(&view["machines"]),
                        time(&record["since"]).map_or_else(|| "-".into(), |at| print::clock_time(at, now)),
                        text(&record["by"]),
                        text(&record["reason"]),
                    ]
                });
                let head = ["of", "takes", "on", "since", "by", "reason"];
                print::table(&head, rows.collect(), "Nothing is taken from anybody.");
            }),
            Self::Challenge(Take { what, name, reason }) => {
                let said = format!("{} {name} has to sign in anew", what.word());
                let request = Request::Restrain { what, name, to: None, terminate: false, reason };
                desk.ask_and(&request, |_| print::done(&said))
            }
            Self::Restrict { take: Take { what, name, reason }, to } => {
                let said = format!("{} {name} reaches nothing but {}", what.word(), to.join(", "));
                let request = Request::Restrain { what, name, to: Some(to), terminate: false, reason };
                desk.ask_and(&request, |_| print::done(&said))
            }
            Self::Terminate(Take { what, name, reason }) => {
                let said = format!("every login session of {} {name} has ended", what.word());
                let request = Request::Restrain { what, name, to: None, terminate: true, reason };
                desk.ask_and(&request, |_| print::done(&said))
            }
            Self::Release { what, name } => {
                let said = format!("{} {name} is released", what.word());
                desk.ask_and(&Request::RestraintRelease { what, name }, |_| print::done(&said))
            }
        }
    }
}

/// Says what is taken.
fn takes(takes: &serde_json::Value) -> String {
    let reach = &takes["reach"];
    match (text(&takes["kind"]).as_str(), text(&reach["kind"]).as_str()) {
        ("proof", "everything") => "everything until a fresh sign-in".into(),
        ("proof", "access_on") => format!("{} on one machine until a fresh sign-in", text(&reach["resource"])),
        ("proof", _) => format!("{} until a fresh sign-in", text(&reach["resource"])),
        (_, _) => format!("all but {}", text(&takes["resources"])),
    }
}
