//! `break-glass`: access past the rules, loud and short.

use std::process::ExitCode;

use clap::Subcommand;
use postern_common::diagnostics::HumanDuration;

use super::Desk;
use crate::{
    admin::{
        print::{self, text, time},
        request::Request,
    },
    serve::clock,
};

/// Open something past the rules, for a short time, loudly.
///
/// Two reasons are asked for, an alert goes out, and the opening is named for what it is on both machines and in every record. It
/// ends by itself, after 4 hours at most. Who is signed out, disabled or in quarantine gets nothing by it.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  postern-controller break-glass open alice-laptop db --subject alice@corp.example --for 30m --reason \"incident 17: disk full\" --why-past-the-rules \"no approver answers\"\n  postern-controller break-glass list\n  postern-controller break-glass close bg_4k2m..."
)]
pub(super) enum BreakGlass {
    /// Open a resource to whoever is signed in on a machine.
    #[command(
        after_help = "Example:\n  postern-controller break-glass open alice-laptop db --subject alice@corp.example --for 30m --reason \"incident 17: disk full\" --why-past-the-rules \"no approver answers\""
    )]
    Open {
        /// The machine: its identifier, or its name.
        machine: String,
        /// To whom the machine belongs. It is needed where the machine's name is only what the machine calls itself.
        #[arg(long)]
        subject: Option<String>,
        /// The resource.
        resource: String,
        /// For how long.
        #[arg(long = "for", value_name = "DURATION")]
        length: HumanDuration,
        /// Why it is needed.
        #[arg(long)]
        reason: String,
        /// Why no rule and no request would do.
        #[arg(long)]
        why_past_the_rules: String,
    },
    /// Close an opening before its time.
    #[command(after_help = "Example:\n  postern-controller break-glass close bg_4k2m")]
    Close {
        /// Its identifier, as `break-glass list` shows it, or the beginning.
        id: String,
    },
    /// List what is open.
    #[command(after_help = "Example:\n  postern-controller break-glass list")]
    List,
}

impl BreakGlass {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let now = clock::now().wall;
        match self {
            Self::Open { machine, subject, resource, length, reason, why_past_the_rules } => {
                let length_ms = u64::try_from(length.get().as_millis()).unwrap_or(u64::MAX);
                let request =
                    Request::BreakGlassOpen { machine, subject, resource, length_ms, reason, why_past_the_rules };
                desk.ask_and(&request, |view| {
                    let record = &view["record"];
                    let until = time(&record["until"]).map_or_else(|| "-".into(), |at| print::clock_time(at, now));
                    print::done(&format!(
                        "{} is open to {} on {} until {until}; an alert was raised ({})",
                        text(&record["resource"]),
                        text(&view["subject_name"]),
                        text(&view["machine"]),
                        text(&record["id"])
                    ));
                })
            }
            Self::Close { id } => {
                let said = format!("{id} is closed");
                desk.ask_and(&Request::BreakGlassClose { id }, |_| print::done(&said))
            }
            Self::List => desk.ask_and(&Request::BreakGlassList, |value| {
                let rows = value.as_array().into_iter().flatten().map(|view| {
                    let record = &view["record"];
                    vec![
                        text(&record["id"]),
                        format!("{} on {}", text(&view["subject_name"]), text(&view["machine"])),
                        text(&record["resource"]),
                        time(&record["until"]).map_or_else(|| "-".into(), |at| print::clock_time(at, now)),
                        text(&record["by"]),
                        text(&record["reason"]),
                    ]
                });
                let head = ["id", "of", "resource", "until", "by", "reason"];
                print::table(&head, rows.collect(), "Nothing is open past the rules.");
            }),
        }
    }
}
