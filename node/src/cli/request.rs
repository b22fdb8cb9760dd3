//! `postern request`: access for a time, and what became of it.

use std::process::ExitCode;

use clap::Args;
use postern_common::{
    diagnostics::HumanDuration,
    protocol::{AccessRequest, AccessRequestState},
};

use super::{
    Failure, Outcome, Places, client,
    show::{self, Mark},
};
use crate::agent::api::{Reply, Request as Asked};

/// Ask for access for a time
///
/// Whoever the policy names as an approver decides, on the controller's pages or by command. What is approved ends by itself.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  postern request db --for 1h --reason \"incident 17: a stuck migration\"\n  postern request db --for 30m --reason \"look at a slow query\" --no-wait\n  postern request\n\nExit code 0 if it is approved or, with --no-wait, taken; 1 if it is refused."
)]
pub(super) struct Request {
    /// The resource; without one, what was asked for is listed
    resource: Option<String>,
    /// For how long
    #[arg(long = "for", value_name = "DURATION", requires = "resource")]
    length: Option<HumanDuration>,
    /// Why, for whoever decides and for the record
    #[arg(long, requires = "resource")]
    reason: Option<String>,
    /// Do not wait for the decision
    #[arg(long)]
    no_wait: bool,
}

impl Request {
    pub(super) fn run(self, places: &Places) -> Outcome {
        let Some(resource) = self.resource else { return list(places) };
        let (Some(length), Some(reason)) = (self.length, self.reason) else {
            return Err(Failure::Usage("say for how long and why: --for 1h --reason \"...\"".into()));
        };
        let length_ms = u64::try_from(length.get().as_millis()).unwrap_or(u64::MAX);
        let request = Asked::RequestAccess { resource, length_ms, reason, wait: !self.no_wait };
        let mut exchange = client::ask(places, &request)?;
        let mut code = ExitCode::SUCCESS;
        while let Some(reply) = exchange.next()? {
            let Reply::Access { request } = reply else { return Err(client::confused()) };
            if places.json {
                show::json(&request);
            } else {
                tell(&request, self.no_wait);
            }
            if let AccessRequestState::Refused { .. } = request.state {
                code = ExitCode::FAILURE;
            }
        }
        Ok(code)
    }
}

fn tell(request: &AccessRequest, leaves: bool) {
    match &request.state {
        AccessRequestState::Waiting { .. } => {
            let approvers: Vec<String> = request.approvers.iter().map(|name| show::safe(name)).collect();
            let next = if leaves {
                "; postern request shows what became of it"
            } else {
                "; Ctrl-C stops waiting, not the request"
            };
            show::line(&format!("{}  waits for {}{next}", request.id, approvers.join(" or ")));
        }
        AccessRequestState::Approved { .. } => show::marked(Mark::Good, &in_words(request)),
        AccessRequestState::Refused { .. } => show::marked(Mark::Bad, &in_words(request)),
    }
}

/// Says what became of a request.
pub(super) fn in_words(request: &AccessRequest) -> String {
    let resource = &request.resource;
    match &request.state {
        AccessRequestState::Waiting { .. } => {
            let approvers: Vec<String> = request.approvers.iter().map(|name| show::safe(name)).collect();
            format!("{resource}: waits for {}", approvers.join(" or "))
        }
        AccessRequestState::Approved { by, reason, until, .. } => {
            format!("{resource}: approved by {} until {}: {}", show::safe(by), show::time(*until), show::safe(reason))
        }
        AccessRequestState::Refused { by, reason, .. } => {
            format!("{resource}: refused by {}: {}", show::safe(by), show::safe(reason))
        }
    }
}

fn list(places: &Places) -> Outcome {
    let Reply::Status(status) = client::ask(places, &Asked::Status)?.only()? else { return Err(client::confused()) };
    if status.withheld {
        return Err(Failure::Failed(
            "what was asked for is for root and the group of node.toml: sudo postern request".into(),
        ));
    }
    if places.json {
        show::json(&status.requests);
    } else if status.requests.is_empty() {
        show::line("nothing was asked for on this machine lately");
    } else {
        status.requests.iter().for_each(|request| show::line(&in_words(request)));
    }
    Ok(ExitCode::SUCCESS)
}
