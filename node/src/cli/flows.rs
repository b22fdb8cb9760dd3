//! `postern flows`: live flows, or records as they come.

use std::process::ExitCode;

use clap::Args;
use postern_common::flow_record::{FlowEnd, FlowEvent, FlowRecord, Originator, PeerIdentity};

use super::{Outcome, Places, client, show};
use crate::agent::api::{FlowReport, Reply, Request};

/// Show live flows, or records as they come
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sudo postern flows\n  sudo postern flows -f\n  sudo postern flows -f --denied --json"
)]
pub(super) struct Flows {
    /// Stay, and show records of flows as they begin, end or are denied
    #[arg(long, short)]
    follow: bool,
    /// Of the records, show refusals alone
    #[arg(long, requires = "follow")]
    denied: bool,
}

impl Flows {
    pub(super) fn run(self, places: &Places) -> Outcome {
        let mut exchange = client::ask(places, &Request::Flows { follow: self.follow })?;
        let mut rows = Vec::new();
        while let Some(reply) = exchange.next()? {
            match reply {
                Reply::Flow(flow) if places.json => show::json(&flow),
                Reply::Flow(flow) => rows.push(row(&flow)),
                Reply::Record { record } if self.denied && !is_refusal(&record) => {}
                Reply::Record { record } if places.json => show::json(&record),
                Reply::Record { record } => show::line(&describe(&record)),
                Reply::Status(_)
                | Reply::Resources { .. }
                | Reply::Whois(_)
                | Reply::Explain(_)
                | Reply::Access { .. }
                | Reply::Notice { .. }
                | Reply::Done
                | Reply::Refused { .. } => return Err(client::confused()),
            }
        }
        if rows.is_empty() && !places.json {
            show::line("no live flows");
        }
        for line in show::columns(&rows, "") {
            show::line(&line);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn is_refusal(record: &FlowRecord) -> bool {
    match record.event {
        FlowEvent::Deny { .. } => true,
        FlowEvent::Start | FlowEvent::End { .. } => false,
    }
}

fn row(flow: &FlowReport) -> Vec<String> {
    vec![
        flow.direction.clone(),
        who(&flow.peer),
        flow.flow.to_string(),
        flow.permit.resource.to_string(),
        format!("rule \"{}\"", show::safe(flow.permit.rule.as_str())),
        format!("{}, silent {}", show::span(flow.age_seconds), show::span(flow.silent_seconds)),
        format!("{} out, {} back", show::size(flow.bytes_out), show::size(flow.bytes_back)),
    ]
}

/// Names a peer. A machine that joined without a service is its own subject, whose name says nothing to people.
fn who(peer: &PeerIdentity) -> String {
    if peer.subject_name == format!("service:{}", peer.device) {
        return peer.machine.to_string();
    }
    format!("{} on {}", show::safe(&peer.subject_name), peer.machine)
}

fn describe(record: &FlowRecord) -> String {
    let peer = match &record.peer {
        Some(peer) => who(peer),
        None => "nobody known".into(),
    };
    let direction = match record.originator {
        Originator::Local => "to",
        Originator::Peer => "from",
    };
    let permit = record.permit.as_ref();
    let rule = permit.map(|permit| format!("   rule \"{}\"", show::safe(permit.rule.as_str()))).unwrap_or_default();
    let watched = permit.and_then(|permit| permit.would_deny.as_ref());
    let watched = watched.map(|why| format!("   would be denied: {}", show::safe(why))).unwrap_or_default();
    let what = match &record.event {
        FlowEvent::Start => show::paint("begins", "32"),
        FlowEvent::End { why, duration_ms, bytes_out, bytes_back, .. } => format!(
            "ends ({})   {}, {} out, {} back",
            end(*why),
            show::span(duration_ms / 1000),
            show::size(*bytes_out),
            show::size(*bytes_back)
        ),
        FlowEvent::Deny { reason, repeated } => {
            let more = if *repeated > 0 { format!(", and {repeated} more") } else { String::new() };
            format!("{} ({reason}{more})", show::paint("denied", "31"))
        }
    };
    format!("{}   {direction} {peer}   {}   {what}{rule}{watched}", clock(record), record.flow)
}

fn clock(record: &FlowRecord) -> String {
    let zone = jiff::tz::TimeZone::try_system().unwrap_or(jiff::tz::TimeZone::UTC);
    match record.at.to_timestamp() {
        Some(timestamp) => timestamp.to_zoned(zone).strftime("%H:%M:%S %Z").to_string(),
        None => "--:--:--".into(),
    }
}

const fn end(why: FlowEnd) -> &'static str {
    match why {
        FlowEnd::Closed => "closed",
        FlowEnd::Reset => "reset",
        FlowEnd::Idle => "idle",
        FlowEnd::Expired => "its lease ran out",
        FlowEnd::Revoked => "revoked",
        FlowEnd::Limit => "a limit of its rule was passed",
        FlowEnd::SubjectChanged => "another subject uses the device",
        FlowEnd::Evicted => "made room for another",
        FlowEnd::Shutdown => "the node stopped",
    }
}
