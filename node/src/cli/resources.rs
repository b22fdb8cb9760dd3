//! `postern resources`: what this machine may reach.

use std::process::ExitCode;

use clap::Args;
use postern_common::net::{Protocol, Service};

use super::{Outcome, Places, client, show, status};
use crate::agent::api::{Reply, Request, ResourceReport, StepUpReport};

/// Show what this machine may reach
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  postern resources\n  postern resources --json")]
pub(super) struct Resources {}

impl Resources {
    pub(super) fn run(self, places: &Places) -> Outcome {
        let Reply::Resources { resources, step_ups } = client::ask(places, &Request::Resources)?.only()? else {
            return Err(client::confused());
        };
        if places.json {
            show::json(&resources);
        } else if resources.is_empty() && step_ups.is_empty() {
            show::line(&format!("Nothing may be reached from this machine now: {}", status::in_words(places)?));
            show::line("`postern explain NAME` tells why something may not.");
        } else {
            table(&resources, &step_ups, "");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints one line for each resource.
pub(super) fn table(resources: &[ResourceReport], step_ups: &[StepUpReport], indent: &str) {
    let mut rows: Vec<Vec<String>> = rows(resources);
    rows.extend(step_ups.iter().map(|wants| {
        let services: Vec<String> = wants.services.iter().map(ToString::to_string).collect();
        let note = format!("needs {}: postern step-up {}", show::safe(&wants.demand), wants.name);
        vec![wants.name.clone(), wants.host.clone(), services.join(" "), note]
    }));
    for line in show::columns(&rows, indent) {
        show::line(&line);
    }
}

fn rows(resources: &[ResourceReport]) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for resource in resources {
        let services: Vec<String> = resource.services.iter().map(ToString::to_string).collect();
        let note = match &resource.would_deny {
            Some(why) => format!("only while its rule is watched: {}", show::safe(why)),
            None => String::new(),
        };
        let row = vec![resource.name.clone(), address(resource), services.join(" "), note];
        if !rows.contains(&row) {
            rows.push(row); // one line, however many machines serve it
        }
    }
    rows
}

/// Writes where to find it: a URL where the service has one.
fn address(resource: &ResourceReport) -> String {
    let has = |port| resource.services.iter().any(|service: &Service| service.contains(Protocol::Tcp, port));
    if has(443) {
        format!("https://{}", resource.host)
    } else if has(80) {
        format!("http://{}", resource.host)
    } else {
        resource.host.clone()
    }
}

#[cfg(test)]
mod tests {
    use postern_common::time::WallTime;

    use super::*;

    #[test]
    fn a_resource_is_one_line_with_its_address() {
        let resource = |name: &str, service: &str| ResourceReport {
            name: name.into(),
            host: format!("{name}.internal"),
            machine: "m".parse().expect("a name"),
            addresses: vec![],
            services: vec![service.parse().expect("a service")],
            rule: "r".into(),
            until: WallTime::NEVER,
            would_deny: None,
        };
        let two_machines = [resource("wiki", "tcp/443"), resource("wiki", "tcp/443"), resource("git", "tcp/22")];
        assert_eq!(
            show::columns(&rows(&two_machines), "    "),
            ["    wiki   https://wiki.internal   tcp/443", "    git    git.internal            tcp/22"]
        );
    }
}
