//! `clock`: what time the controller takes it to be, after somebody set its clock.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::Desk;
use crate::admin::{
    print::{self, text, time},
    request::Request,
};

/// What time the controller takes it to be, and how to believe a clock that was set.
///
/// A clock that is set, forward or back, is not believed by itself: until an administrator does so, conditions on time (hours, dates of
/// rules, approvals, the age of a sign-in) open only what they open by the time that it shows and by the time that has passed.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  postern-controller clock\n  postern-controller clock accept --reason \"the host was suspended\""
)]
pub(super) struct ClockCommand {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Believe the clock as it stands now.
    #[command(
        after_help = "Example:\n  postern-controller clock accept --reason \"the time server was wrong until 14:00\""
    )]
    Accept {
        /// Why it is right.
        #[arg(long)]
        reason: String,
    },
}

impl ClockCommand {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        match self.action {
            None => desk.ask_and(&Request::Clock, |view| {
                let at = |key: &str| time(&view[key]).map_or_else(|| "-".into(), |at| at.to_string());
                println!("the clock shows  {}", at("shows"));
                println!("time passed      {}", at("steady"));
                if view["in_doubt"].as_bool() == Some(true) {
                    println!();
                    println!("! somebody set the clock: conditions on time open only what they open at both.");
                    println!("! If the clock is right now: postern-controller clock accept --reason ...");
                }
            }),
            Some(Action::Accept { reason }) => desk.ask_and(&Request::ClockAccept { reason }, |view| {
                print::done(&format!(
                    "the clock is believed: {}",
                    time(&view["shows"]).map_or_else(|| text(&view["shows"]), |at| at.to_string())
                ));
            }),
        }
    }
}
