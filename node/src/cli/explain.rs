//! `postern explain`: why something may, or may not, be reached, as the controller decides it and as this machine enforces it.

use std::process::ExitCode;

use clap::Args;
use postern_common::net::{Protocol, Service};

use super::{Failure, Outcome, Places, client, show, status};
use crate::agent::api::{ExplainReport, Reply, Request};

/// Tell why something may, or may not, be reached
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  postern explain git.internal:22\n  postern explain payroll-app\n  postern explain wiki:udp/53\n\nExit code 0 if it is allowed, 1 if it is not."
)]
pub(super) struct Explain {
    /// A resource, machine or overlay address; with `:PORT`, `:udp/PORT` or `:icmp` for one service
    #[arg(value_name = "TARGET[:PORT]")]
    target: String,
}

impl Explain {
    pub(super) fn run(self, places: &Places) -> Outcome {
        let (to, service) = parse(&self.target).map_err(Failure::Usage)?;
        let Reply::Explain(report) = client::ask(places, &Request::Explain { to: to.clone(), service })?.only()? else {
            return Err(client::confused());
        };
        let allowed = is_allowed(&report);
        if places.json {
            show::json(&serde_json::json!({ "allowed": allowed, "report": report }));
        } else {
            // Whoever is signed out or down needs no word about rules.
            let told_nothing = report.controller.is_none() && report.local.is_empty();
            let state = if told_nothing { Some(status::in_words(places)?) } else { None };
            for line in lines(&report, &to, service, state.as_deref()) {
                show::line(&line);
            }
        }
        Ok(if allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Splits `git.internal:22`, `[fd00::1]:443`, `wiki:udp/53`, `git`.
fn parse(text: &str) -> Result<(String, Option<Service>), String> {
    let (to, service) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (address, None),
        Some((address, rest)) => (address, rest.strip_prefix(':')),
        None if text.matches(':').count() > 1 => (text, None), // a bare IPv6 address
        None => match text.split_once(':') {
            Some((to, service)) => (to, Some(service)),
            None => (text, None),
        },
    };
    if to.is_empty() {
        return Err(format!("`{}` names nothing: try git.internal:22", show::safe(text)));
    }
    let service = match service {
        None => None,
        Some(text) if text.bytes().all(|c| c.is_ascii_digit()) => Some(format!("tcp/{text}").parse::<Service>()),
        Some(text) => Some(text.parse::<Service>()),
    };
    let service = service.transpose().map_err(|error| error.to_string())?;
    Ok((to.to_owned(), service))
}

fn is_allowed(report: &ExplainReport) -> bool {
    match &report.controller {
        // What counts is what is enforced: the controller's yes that has not arrived is not a yes yet.
        Some(explanation) => explanation.allowed && report.local.iter().any(|local| local.allowed),
        None => report.local.iter().any(|local| local.allowed),
    }
}

fn lines(report: &ExplainReport, to: &str, service: Option<Service>, state: Option<&str>) -> Vec<String> {
    let allowed = is_allowed(report);
    let word = if allowed { show::paint("allowed", "32") } else { show::paint("denied", "31") };
    let mut lines = Vec::new();
    let mut row = |label: &str, text: &str| lines.push(format!("{label:<7}  {}", show::safe(text)));
    match &report.controller {
        Some(explanation) => {
            let until = explanation.valid_until.filter(|_| allowed);
            let until = until.map(|until| format!("   until {}, then renewed", show::time(until))).unwrap_or_default();
            let head = format!("{} -> {}{until}", explanation.who, explanation.what);
            let location = explanation.location.as_ref().map(|at| format!("   ({at})")).unwrap_or_default();
            row("", &head);
            row("reason", &format!("{}{location}", explanation.reason));
            for (at, because) in explanation.because.iter().enumerate() {
                row(if at == 0 { "because" } else { "" }, because);
            }
            if let Some(fix) = &explanation.fix {
                row("fix", fix);
            }
            if explanation.allowed && !allowed {
                row(
                    "here",
                    "this machine does not enforce it yet: its grants have not arrived, or the ceiling of the other end forbids it",
                );
            }
        }
        None => {
            let service = service.map(|service| format!(" {service}")).unwrap_or_default();
            row("", &format!("{} -> {to}{service}", report.who));
            if let Some(notice) = &report.quarantine {
                row("reason", &status::quarantine(notice));
            }
            for local in &report.local {
                row("reason", &local.reason);
            }
            if report.local.is_empty() && report.quarantine.is_none() {
                row("reason", "nothing that this machine was told entitles it to reach that");
            }
            for (at, line) in state.unwrap_or_default().lines().enumerate() {
                row(if at == 0 { "because" } else { "" }, line);
            }
        }
    }
    let shown = report.local.len() > 1 || report.controller.is_none() || !allowed;
    for local in report.local.iter().filter(|_| shown) {
        let port = if local.protocol == Protocol::Icmp { String::new() } else { format!("/{}", local.port) };
        let machine = local.machine.as_ref().map_or(local.address.to_string(), ToString::to_string);
        let verdict = if local.allowed { "passes" } else { "is refused" };
        row("here", &format!("{machine} {}{port} {verdict}: {}", local.protocol, local.reason));
    }
    if let Some(error) = &report.controller_error {
        row("note", &format!("only this machine's view: {error}"));
    }
    if let Some(first) = lines.first_mut() {
        *first = format!("{word:<7}  {}", first.trim_start());
    }
    lines
}

#[cfg(test)]
mod tests {
    use postern_common::protocol::Explanation;

    use super::*;

    #[test]
    fn targets_are_read_as_people_write_them() {
        let tcp22 = Some("tcp/22".parse().expect("a service"));
        assert_eq!(parse("git.internal:22"), Ok(("git.internal".into(), tcp22)));
        assert_eq!(parse("git"), Ok(("git".into(), None)));
        assert_eq!(parse("[fd00::1]:22"), Ok(("fd00::1".into(), tcp22)));
        assert_eq!(parse("fd00::1"), Ok(("fd00::1".into(), None)));
        assert_eq!(parse("wiki:icmp"), Ok(("wiki".into(), Some("icmp".parse().expect("a service")))));
        assert!(parse(":22").is_err() && parse("git:70000").is_err() && parse("git:ssh").is_err());
    }

    #[test]
    fn a_refusal_says_who_what_why_and_what_to_do() {
        let report = ExplainReport {
            local: vec![],
            controller: Some(Explanation {
                allowed: false,
                who: "alice@corp.example on alice-laptop".into(),
                what: "git tcp/22".into(),
                reason: "proof of sign-in is 3 h old; rule \"engineers use git\" asks for MFA within 15 min".into(),
                rule: Some("engineers use git".into()),
                location: Some("policy.toml:41".into()),
                because: vec![],
                fix: Some("postern step-up git".into()),
                valid_until: None,
            }),
            controller_error: None,
            who: "alice@corp.example on alice-laptop".into(),
            quarantine: None,
        };
        assert_eq!(
            lines(&report, "git", None, None),
            [
                "denied   alice@corp.example on alice-laptop -> git tcp/22",
                "reason   proof of sign-in is 3 h old; rule \"engineers use git\" asks for MFA within 15 min   (policy.toml:41)",
                "fix      postern step-up git",
            ]
        );
        assert!(!is_allowed(&report));
    }
}
