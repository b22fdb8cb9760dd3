//! `postern logout`: the person signs out; what was given to the machine ends at once.

use std::process::ExitCode;

use clap::Args;

use super::{
    Failure, Outcome, Places, client,
    show::{self, Mark},
};
use crate::agent::api::{Reply, Request, SignIn};

/// Sign out on this machine and disconnect it
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  sudo postern logout\n\nA machine that joined with an enrolment token forgets its enrolment and needs a new token: confirm with --forget."
)]
pub(super) struct Logout {
    /// Also on a machine that joined with a token: forget its enrolment
    #[arg(long)]
    forget: bool,
}

impl Logout {
    pub(super) fn run(self, places: &Places) -> Outcome {
        let Reply::Status(status) = client::ask(places, &Request::Status)?.only()? else {
            return Err(client::confused());
        };
        let needs_a_token = match status.sign_in {
            SignIn::Enrolment => true,
            // A platform's service signs in anew with the next token, a person with their own hands.
            SignIn::Platform | SignIn::Person | SignIn::Nobody => false,
        };
        if needs_a_token && !self.forget {
            let message =
                "this machine joined with an enrolment token and would need a new one: postern logout --forget";
            return Err(Failure::Failed(message.into()));
        }
        let mut exchange = client::ask(places, &Request::Logout)?;
        while exchange.next()?.is_some() {}
        if places.json {
            show::json(&serde_json::json!({ "signed_out": true }));
        } else {
            show::marked(Mark::Good, "Signed out; this machine reaches nothing any more.");
        }
        Ok(ExitCode::SUCCESS)
    }
}
