//! What `status` and the others show, made from the core, the book, the worker and the host.

use postern_common::{flow_record::Originator, grant::Mode, reason::DenyReason, time::Now};
use postern_dataplane::{Counters, Direction, DropReason, FlowStatus, packet::join::Joining};

use super::Agent;
use crate::{
    agent::{
        api::{FlowReport, PacketsReport, PostureReport, ResourceReport, SignIn, StatusReport, StepUpReport},
        core::{Core, Phase, book::Book, identity::Login},
    },
    io::worker::WorkerStatus,
};

/// Says in one line what the node is doing.
pub(super) fn phase_line(phase: &Phase) -> String {
    match phase {
        Phase::Down => "down".into(),
        Phase::NotEnrolled => "not enrolled".into(),
        Phase::SignedOut { reason } => format!("signed out: {reason}"),
        Phase::Joining { .. } => "joining".into(),
        Phase::Offline { error: None, .. } => "connecting to the controller".into(),
        Phase::Offline { error: Some(error), .. } => format!("without the controller: {error}"),
        Phase::Connected { .. } => "connected".into(),
    }
}

/// Lists what may be reached.
pub(super) fn resources(book: &Book, now: Now) -> Vec<ResourceReport> {
    let domain = book.stand().map(|stand| stand.own.domain.clone()).unwrap_or_default();
    book.reachable(now)
        .into_iter()
        .map(|reachable| ResourceReport {
            host: format!("{}.{domain}", reachable.resource),
            name: reachable.resource.to_string(),
            machine: reachable.machine,
            addresses: reachable.addresses,
            services: reachable.services,
            rule: reachable.rule.to_string(),
            until: reachable.until.wall,
            would_deny: match reachable.mode {
                Mode::Enforce => None,
                Mode::Monitor { would_deny } => Some(would_deny),
            },
        })
        .collect()
}

/// Lists what stronger or fresher proof of sign-in would open.
pub(super) fn step_ups(core: &Core, now: Now) -> Vec<StepUpReport> {
    let domain = core.book().stand().map(|stand| stand.own.domain.clone()).unwrap_or_default();
    core.offers()
        .map(|offer| {
            let pending = core.pending_step_up(&offer.resource, now.wall);
            StepUpReport {
                name: offer.resource.to_string(),
                host: format!("{}.{domain}", offer.resource),
                services: offer.services.clone(),
                demand: offer.demand.clone(),
                url: pending.map(|pending| pending.url.clone()),
                url_until: pending.map(|pending| pending.expires),
            }
        })
        .collect()
}

/// Shows a live flow.
pub(super) fn flow(flow: FlowStatus, now: Now) -> FlowReport {
    FlowReport {
        direction: match flow.originator {
            Originator::Local => "out".into(),
            Originator::Peer => "in".into(),
        },
        flow: flow.flow,
        peer: flow.peer,
        permit: flow.permit,
        age_seconds: now.monotonic.since(flow.begun).as_secs(),
        silent_seconds: now.monotonic.since(flow.last_seen).as_secs(),
        until: flow.until.wall,
        bytes_out: flow.bytes_out,
        bytes_back: flow.bytes_back,
    }
}

/// Lists what was dropped, by reason; zeros are left out.
fn drops(counters: &Counters) -> Vec<(String, u64)> {
    let denied = DenyReason::ALL.into_iter().map(|reason| {
        let both = [Direction::Inbound, Direction::Outbound].map(|direction| counters.denied(direction, reason));
        (reason.label().to_owned(), both[0] + both[1])
    });
    let dropped = DropReason::ALL.into_iter().map(|reason| (reason.label().to_owned(), counters.dropped(reason)));
    denied.chain(dropped).filter(|(_, count)| *count > 0).collect()
}

impl Agent {
    /// Lists what is wrong, one line each.
    fn problems(&self) -> Vec<String> {
        let mut problems = self.troubles.list();
        if let Some(farewell) = &self.core.identity().farewell {
            problems.push(format!(
                "{} has not confirmed the sign-out yet; this machine goes on telling it while the agent runs",
                farewell.controller.authority()
            ));
        }
        if self.core.posture_wanted() && !self.config.posture.report && !self.core.posture_unmet().is_empty() {
            let why = "`report = false` under [posture] in node.toml keeps this machine's posture at home: rules that ask for one let it into nothing";
            problems.push(why.to_owned());
        }
        if let Some(trouble) = self.core.platform_trouble() {
            problems.push(match self.core.platform_until() {
                Some(until) => format!("the platform's token cannot be renewed: {trouble}; this machine's session ends {until} unless that is mended"),
                None => format!("this machine cannot sign in by its platform: {trouble}; it is tried again and again"),
            });
        }
        problems.extend(self.posture.iter().flat_map(|posture| posture.problems(std::time::Instant::now())));
        problems
    }

    fn posture_report(&self, now: Now) -> Option<PostureReport> {
        let seen = self.core.posture_seen();
        let unmet = self.core.posture_unmet().to_vec();
        if !self.core.posture_wanted() || (seen.is_none() && unmet.is_empty()) {
            return None;
        }
        Some(PostureReport {
            facts: seen.map(|(facts, _)| facts.lines()).unwrap_or_default(),
            seen_seconds_ago: seen.map(|(_, at)| now.monotonic.since(at).as_secs()),
            unmet,
        })
    }

    pub(super) async fn status(&mut self) -> StatusReport {
        let now = self.clock.now();
        let worker = match &self.plane {
            Some(plane) => plane.worker.status().await.ok(),
            None => None,
        };
        let denied = worker.as_ref().zip(self.plane.as_ref());
        let denied = denied.map_or(0, |(status, plane)| plane.refusals.until(status.plane.denied_total()));
        let identity = self.core.identity();
        let enrolment = identity.enrolment.as_ref();
        let stand = self.core.book().stand();
        let own = stand.map(|stand| &stand.own);
        let live = |until: &postern_common::time::Deadline| !until.has_passed(now);
        let mut outbound = self.core.book().reachable(now);
        outbound.dedup_by(|a, b| a.resource == b.resource);
        StatusReport {
            phase: self.core.phase(),
            sign_in: match enrolment.map(|enrolment| &enrolment.login) {
                None | Some(Login::Ended { .. }) => SignIn::Nobody,
                Some(Login::Service) => SignIn::Enrolment,
                Some(Login::Session { .. }) => SignIn::Person,
                Some(Login::Platform { .. }) => SignIn::Platform,
            },
            machine: own.map(|own| own.name.clone()).or_else(|| enrolment.map(|enrolment| enrolment.name.clone())),
            device: enrolment.map(|enrolment| enrolment.device),
            subject: own
                .map(|own| own.subject_name.clone())
                .or_else(|| enrolment.map(|enrolment| enrolment.subject_name.clone())),
            tags: own.map(|own| own.tags.iter().map(|tag| format!("tag:{tag}")).collect()).unwrap_or_default(),
            addresses: own.map(|own| own.addresses.clone()).unwrap_or_default(),
            controller: enrolment.map(|enrolment| enrolment.controller.authority()),
            generation: self.core.enforced().map(|position| position.generation),
            policy_revision: stand.map(|stand| stand.policy_revision),
            session_until: own.and_then(|own| own.session_until).map(|until| until.wall),
            leases_until: stand.and_then(|stand| {
                let permissions = stand.peers.values().flat_map(|peer| peer.inbound.iter().chain(&peer.outbound));
                permissions.filter(|permission| live(&permission.until)).map(|permission| permission.until.wall).max()
            }),
            quarantine: own.and_then(|own| own.quarantine.clone()),
            requests: self.core.requests().to_vec(),
            withheld: false,
            peers_in: stand.map_or(0, |stand| {
                let may_come =
                    |peer: &&postern_common::grant::PeerGrant<_>| peer.inbound.iter().any(|p| live(&p.until));
                stand.peers.values().filter(may_come).count()
            }),
            resources_out: outbound.len(),
            step_ups: step_ups(&self.core, now),
            live_flows: worker.as_ref().map_or(0, |status| status.flows),
            denied_last_minute: denied,
            drops: worker.as_ref().map(|status| drops(&status.plane)).unwrap_or_default(),
            packets: worker.as_ref().map(packets),
            keys: identity.keyring.public_keys().iter().map(ToString::to_string).collect(),
            endpoints: self.endpoints.clone(),
            posture: self.posture_report(now),
            problems: self.problems(),
            records_dropped: self.spool.as_ref().map_or(0, super::records::Spool::dropped)
                + worker.as_ref().map_or(0, |status| status.plane.records_dropped),
            documents_refused: self.core.refused_documents(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// Says in words what `[packets]` came to.
fn packets(status: &WorkerStatus) -> PacketsReport {
    let offload = match status.joining {
        Joining::Nothing => "off",
        Joining::Tcp => "tcp",
        Joining::TcpAndUdp => "tcp and udp",
    };
    let cipher = if status.takes_several { "several at once" } else { "one by one" };
    PacketsReport { workers: status.workers, offload: offload.into(), cipher: cipher.into() }
}
