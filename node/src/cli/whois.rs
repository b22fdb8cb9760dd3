//! `postern whois`: which subject and device are behind a connection, for applications and people.

use std::{net::SocketAddr, process::ExitCode};

use clap::Args;

use super::{Outcome, Places, client, show};
use crate::agent::api::{Reply, Request};

/// Tell who is behind a connection
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  postern whois [fd5e:7a11::3]:50212\n  postern whois 100.96.0.3:50212 --json")]
pub(super) struct Whois {
    /// The remote end, as the local program sees it
    #[arg(value_name = "ADDR:PORT")]
    remote: SocketAddr,
}

impl Whois {
    pub(super) fn run(self, places: &Places) -> Outcome {
        let request = Request::Whois { remote: self.remote };
        let Reply::Whois(report) = client::ask(places, &request)?.only()? else { return Err(client::confused()) };
        if places.json {
            show::json(&report);
            return Ok(ExitCode::SUCCESS);
        }
        let peer = &report.peer;
        let mut rows = vec![
            vec!["subject".into(), format!("{}   {}", show::safe(&peer.subject_name), peer.subject)],
            vec!["device".into(), format!("{}   {}", peer.machine, peer.device)],
        ];
        if !report.tags.is_empty() {
            rows.push(vec!["tags".into(), report.tags.join(", ")]);
        }
        if let Some(outer) = report.outer {
            rows.push(vec!["from".into(), outer.to_string()]);
        }
        match (&report.flow, &report.permit) {
            (Some(flow), Some(permit)) => {
                rows.push(vec!["flow".into(), flow.to_string()]);
                let rule = show::safe(permit.rule.as_str());
                rows.push(vec![
                    "permit".into(),
                    format!("{} by rule \"{rule}\", lease {}", permit.resource, permit.lease),
                ]);
            }
            (_, _) => rows.push(vec!["flow".into(), "no live flow at that port: the address is this peer's".into()]),
        }
        for line in show::columns(&rows, "") {
            show::line(&line);
        }
        Ok(ExitCode::SUCCESS)
    }
}
