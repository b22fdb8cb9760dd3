//! `postern step-up`: prove the sign-in anew for a resource that asks for it, and wait until it is open.

use std::process::ExitCode;

use clap::Args;

use super::{
    Outcome, Places, client, qr,
    show::{self, Mark},
    up,
};
use crate::agent::{
    api::{Reply, Request},
    core::Notice,
};

/// Prove your sign-in anew for a resource that asks for stronger or fresher proof
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  postern step-up git\n  postern step-up git.internal --no-browser")]
pub(super) struct StepUp {
    /// The resource
    resource: String,
    /// Open no browser
    #[arg(long)]
    no_browser: bool,
}

impl StepUp {
    pub(super) fn run(self, places: &Places) -> Outcome {
        let mut exchange = client::ask(places, &Request::StepUp { resource: self.resource.clone() })?;
        while let Some(reply) = exchange.next()? {
            let Reply::Notice { notice } = reply else { return Err(client::confused()) };
            if places.json {
                show::json(&notice);
                continue;
            }
            match &notice {
                Notice::StepUp { resource, demand, url, expires } => {
                    show::line(&format!("{resource} needs {}", show::safe(demand)));
                    show::line(&format!("Confirm it is you:  {}   (until {})", show::safe(url), show::time(*expires)));
                    qr::print(url);
                    if !self.no_browser && up::open_browser(url) {
                        show::line("(a browser was opened)");
                    }
                }
                Notice::SteppedUp { resource } => show::marked(Mark::Good, &format!("{resource} is open.")),
                Notice::StepUpFailed { .. }
                | Notice::Connecting { .. }
                | Notice::Retrying { .. }
                | Notice::SignIn { .. }
                | Notice::Joined { .. }
                | Notice::Enforcing { .. }
                | Notice::SessionEnded { .. }
                | Notice::Failed { .. } => {}
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
