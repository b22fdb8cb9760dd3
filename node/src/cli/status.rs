//! `postern status`: how the node is, in two lines when all is well.

use std::process::ExitCode;

use clap::Args;
use postern_common::grant::QuarantineNotice;

use super::{
    Failure, Outcome, Places, client, request,
    show::{self, Mark},
};
use crate::agent::{
    api::{Reply, Request, StatusReport, StepUpReport},
    core::Phase,
};

/// Show how the node is
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  postern status\n  postern status --verbose\n  postern status --check --json")]
pub(super) struct Status {
    /// Also show addresses, keys, and what was dropped and why
    #[arg(long, short)]
    verbose: bool,
    /// Exit with 1 unless all is well, for monitoring
    #[arg(long)]
    check: bool,
}

impl Status {
    pub(super) fn run(self, places: &Places) -> Outcome {
        let Reply::Status(report) = client::ask(places, &Request::Status)?.only()? else {
            return Err(client::confused());
        };
        if places.json {
            show::json(&report);
        } else {
            for line in lines(&report) {
                show::line(&line);
            }
            for line in waiting(&report) {
                show::marked(Mark::Watch, &line);
            }
            for line in posture(&report) {
                show::marked(Mark::Bad, &show::safe(&line));
            }
            for request in &report.requests {
                show::marked(Mark::Watch, &request::in_words(request));
            }
            for problem in &report.problems {
                show::marked(Mark::Bad, &show::safe(problem));
            }
            if self.verbose {
                details(&report);
            }
        }
        Ok(if self.check && !is_well(&report) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn is_well(report: &StatusReport) -> bool {
    let phase = match &report.phase {
        Phase::Connected { .. } | Phase::Down => true,
        Phase::NotEnrolled | Phase::SignedOut { .. } | Phase::Joining { .. } | Phase::Offline { .. } => false,
    };
    phase && report.problems.is_empty() && posture(report).is_empty() && report.quarantine.is_none()
}

/// Says what of the machine's posture is not as rules ask, each with what to do.
fn posture(report: &StatusReport) -> Vec<String> {
    let unmet = report.posture.iter().flat_map(|posture| &posture.unmet);
    unmet.map(|unmet| format!("posture \"{}\": {}   fix: {}", unmet.posture, unmet.what, unmet.fix)).collect()
}

/// Asks the agent what the machine is doing, and says it in the words of `status`: for commands that would otherwise say
/// only that there is nothing.
pub(super) fn in_words(places: &Places) -> Result<String, Failure> {
    let Reply::Status(report) = client::ask(places, &Request::Status)?.only()? else {
        return Err(client::confused());
    };
    Ok(state(&report))
}

fn lines(report: &StatusReport) -> Vec<String> {
    let machine = report.machine.as_ref().map_or("this machine", |name| name.as_str());
    let mut who: Vec<String> = report.subject.iter().map(|subject| show::safe(subject)).collect();
    who.extend(report.tags.iter().cloned());
    let state = state(report);
    let mut lines =
        vec![format!("{machine}   {}{state}", who.iter().map(|who| format!("{who}   ")).collect::<String>())];
    if let Some(notice) = &report.quarantine {
        lines.push(show::paint(&quarantine(notice), "31"));
    }
    match &report.phase {
        Phase::Connected { .. } | Phase::Offline { .. } => lines.push(format!(
            "{} may come in, {} may be reached, {}, {} denied in the last minute",
            show::count(report.peers_in, "peer", "peers"),
            show::count(report.resources_out, "resource", "resources"),
            show::count(report.live_flows, "live flow", "live flows"),
            report.denied_last_minute,
        )),
        Phase::Down | Phase::NotEnrolled | Phase::SignedOut { .. } | Phase::Joining { .. } => {}
    }
    lines
}

/// Says that a machine is in quarantine.
pub(super) fn quarantine(notice: &QuarantineNotice) -> String {
    let (what, since, reason) = (show::safe(&notice.what), show::time(notice.since), show::safe(&notice.reason));
    format!("IN QUARANTINE: nothing passes to or from {what} since {since}: {reason}")
}

/// Says which step-ups wait for the person: those that a packet, or they themselves, have asked for.
fn waiting(report: &StatusReport) -> Vec<String> {
    let asked = report.step_ups.iter().filter_map(|wants| Some((wants, wants.url.as_ref()?, wants.url_until?)));
    let line = |(wants, url, until): (&StepUpReport, &String, _)| {
        format!("{} needs {}: {} (until {})", wants.name, show::safe(&wants.demand), show::safe(url), show::time(until))
    };
    asked.map(line).collect()
}

fn state(report: &StatusReport) -> String {
    let controller = report.controller.as_deref().unwrap_or("no controller");
    let enforcing = |current: &str| match report.generation {
        Some(generation) => format!("enforcing generation {generation} ({current})"),
        None => "nothing to enforce yet: every door is closed".into(),
    };
    match &report.phase {
        Phase::Down => "down: postern up".into(),
        Phase::NotEnrolled => "not enrolled: postern up https://CONTROLLER#k=...".into(),
        Phase::SignedOut { reason } => format!("signed out ({}): postern up", show::safe(reason)),
        Phase::Joining { code: Some(code), url: Some(url) } => {
            format!("waiting for a person to sign in at {}, code {}", show::safe(url), show::safe(code))
        }
        Phase::Joining { .. } => "joining".into(),
        Phase::Offline { since, error } => {
            let since = since.map(|since| format!(" since {}", show::time(since))).unwrap_or_default();
            let error = error.as_ref().map(|error| format!("\n{}", show::safe(error))).unwrap_or_default();
            let end = match report.leases_until {
                Some(until) => format!("its leases run to their end, the last at {}", show::time(until)),
                None => "its leases have run out: every door is closed".into(),
            };
            format!("without {controller}{since}   {}{error}", enforcing(&end))
        }
        Phase::Connected { current } => {
            let current = if *current { "current" } else { "a newer one is being taken over" };
            format!("connected to {controller}   {}", enforcing(current))
        }
    }
}

fn details(report: &StatusReport) {
    let join = |items: Vec<String>| if items.is_empty() { "none".into() } else { items.join(", ") };
    let mut rows = vec![
        vec!["device".into(), report.device.map(|device| device.to_string()).unwrap_or_else(|| "none".into())],
        vec!["addresses".into(), join(report.addresses.iter().map(ToString::to_string).collect())],
        vec!["outer addresses".into(), join(report.endpoints.iter().map(ToString::to_string).collect())],
        vec!["WireGuard keys".into(), join(report.keys.clone())],
        vec!["policy".into(), report.policy_revision.map_or("none".into(), |revision| format!("revision {revision}"))],
        vec!["version".into(), report.version.clone()],
    ];
    if let Some(until) = report.session_until {
        rows.push(vec!["session until".into(), show::time(until)]);
    }
    if report.records_dropped > 0 {
        rows.push(vec!["flow records lost".into(), report.records_dropped.to_string()]);
    }
    if report.documents_refused > 0 {
        rows.push(vec!["documents refused".into(), report.documents_refused.to_string()]);
    }
    if let Some(posture) = &report.posture {
        let age = match posture.seen_seconds_ago {
            Some(seconds) => format!("posture, seen {seconds} s ago"),
            None => "posture, not looked at".into(),
        };
        rows.push(vec![age, String::new()]);
        rows.extend(posture.facts.iter().map(|(fact, value)| vec![format!("  {fact}"), show::safe(value)]));
    }
    rows.extend(report.drops.iter().map(|(reason, count)| vec![format!("dropped: {reason}"), count.to_string()]));
    for line in show::columns(&rows, "") {
        show::line(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::api::SignIn;

    fn report(phase: Phase) -> StatusReport {
        StatusReport {
            sign_in: SignIn::Enrolment,
            withheld: false,
            phase,
            machine: Some("payroll-1".parse().expect("a name")),
            device: None,
            subject: None,
            tags: vec!["tag:payroll".into()],
            addresses: vec![],
            controller: Some("ctl.corp.example".into()),
            generation: Some(118),
            policy_revision: Some(7),
            session_until: None,
            leases_until: None,
            quarantine: None,
            requests: vec![],
            peers_in: 41,
            resources_out: 2,
            step_ups: vec![],
            live_flows: 128,
            denied_last_minute: 0,
            drops: vec![],
            packets: None,
            keys: vec![],
            endpoints: vec![],
            posture: None,
            problems: vec![],
            records_dropped: 0,
            documents_refused: 0,
            version: "0.1.0".into(),
        }
    }

    #[test]
    fn all_is_well_in_two_lines() {
        assert_eq!(
            lines(&report(Phase::Connected { current: true })),
            [
                "payroll-1   tag:payroll   connected to ctl.corp.example   enforcing generation 118 (current)",
                "41 peers may come in, 2 resources may be reached, 128 live flows, 0 denied in the last minute",
            ]
        );
    }

    #[test]
    fn a_machine_in_quarantine_says_so_with_the_reason_and_is_not_well() {
        let since = postern_common::time::WallTime::from_millis(0);
        let notice = QuarantineNotice { what: "payroll-1".into(), reason: "it scans".into(), since };
        let report = StatusReport { quarantine: Some(notice), ..report(Phase::Connected { current: true }) };
        let shown = lines(&report).join("\n");
        assert!(
            shown.contains("IN QUARANTINE") && shown.contains("payroll-1") && shown.contains("it scans"),
            "{shown}"
        );
        assert!(!is_well(&report));
    }

    #[test]
    fn what_of_the_posture_is_unmet_is_shown_with_its_fix_and_is_not_well() {
        let mut report = report(Phase::Connected { current: true });
        assert!(is_well(&report) && posture(&report).is_empty());
        let unmet = postern_common::protocol::UnmetPosture {
            posture: "managed-laptop".into(),
            what: "the firewall is off, and must be on".into(),
            fix: "turn a firewall on".into(),
        };
        let facts = vec![("firewall".into(), "off".into())];
        report.posture =
            Some(crate::agent::api::PostureReport { facts, seen_seconds_ago: Some(3), unmet: vec![unmet] });
        let line = "posture \"managed-laptop\": the firewall is off, and must be on   fix: turn a firewall on";
        assert_eq!(posture(&report), [line]);
        assert!(!is_well(&report));
    }

    #[test]
    fn an_ended_session_never_shows_as_connected() {
        let phase = Phase::SignedOut { reason: "revoked: laptop lost".into() };
        let shown = lines(&report(phase.clone())).join("\n");
        assert!(shown.contains("signed out (revoked: laptop lost): postern up") && !shown.contains("connected"));
        assert!(!is_well(&report(phase)));
    }
}
