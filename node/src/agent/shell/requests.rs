//! What each local request does, and who waits for what.

use std::collections::BTreeMap;

use postern_common::{
    id::{MachineName, RequestId, ResourceName},
    net::{FiveTuple, PortRange, Protocol, Service},
    protocol::{AccessRequest, AccessRequestState, Explanation},
};
use postern_dataplane::LocalVerdict;
use tokio::sync::{broadcast, mpsc};
use zeroize::Zeroizing;

use super::{Agent, budgets::Budgets, host::chain, report};
use crate::agent::{
    api::{ExplainReport, LocalReport, Reply, Request, Right, WhoisReport},
    core::{Command, Notice},
    target::ControllerTarget,
};

/// Machines and services that one question may mean.
const MAX_EXPLAINED: usize = 32;

type Replies = mpsc::Sender<Reply>;

/// Clients that wait for something.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    ups: BTreeMap<u64, Replies>,
    downs: Vec<Replies>,
    logouts: Vec<Replies>,
    /// Clients that asked for a step-up; the core knows which waits for what, and ends each wait.
    step_ups: BTreeMap<u64, Replies>,
    budgets: Budgets,
    questions: BTreeMap<u64, (Replies, ExplainReport, Right)>,
    /// Who asked for access, whether they stay, and the request once it is known.
    asks: BTreeMap<u64, Asking>,
    next_question: u64,
    /// How taking the tunnel down went, until the disk has it too.
    pub(super) taken_down: Option<Reply>,
    /// `node.toml` was read again, and worker and host do not follow it yet.
    pub(super) reloaded: bool,
}

/// A client that asked for access.
#[derive(Debug)]
struct Asking {
    replies: Replies,
    wait: bool,
    request: Option<RequestId>,
}

/// The most clients that wait for a decision; the longest waiting is let go first.
const MAX_ASKING: usize = 64;

impl Waiting {
    /// Tells the clients that asked for `up`.
    pub(super) fn tell(&mut self, notice: &Notice) {
        let last = match notice {
            Notice::Enforcing { .. } => Some(Reply::Done),
            Notice::Failed { message } => Some(Reply::Refused { message: message.clone() }),
            Notice::Connecting { .. }
            | Notice::Retrying { .. }
            | Notice::SignIn { .. }
            | Notice::Joined { .. }
            | Notice::SessionEnded { .. } => None,
            // Who waits for one is told by an effect of its own.
            Notice::StepUp { .. } | Notice::SteppedUp { .. } | Notice::StepUpFailed { .. } => return,
        };
        for replies in self.ups.values() {
            let _ = replies.try_send(Reply::Notice { notice: notice.clone() }); // a client that does not read misses it
            if let Some(last) = &last {
                let _ = replies.try_send(last.clone());
            }
        }
        if last.is_some() {
            self.ups.clear();
        }
    }

    /// Tells a client that asked for a step-up.
    pub(super) fn tell_of_step_up(&mut self, client: u64, notice: Notice) {
        let Some(replies) = self.step_ups.get(&client) else { return };
        let last = match &notice {
            Notice::SteppedUp { .. } => Some(Reply::Done),
            Notice::StepUpFailed { message, .. } => Some(Reply::Refused { message: message.clone() }),
            Notice::StepUp { .. }
            | Notice::Connecting { .. }
            | Notice::Retrying { .. }
            | Notice::SignIn { .. }
            | Notice::Joined { .. }
            | Notice::Enforcing { .. }
            | Notice::SessionEnded { .. }
            | Notice::Failed { .. } => None,
        };
        let _ = replies.try_send(Reply::Notice { notice }); // a client that does not read misses it
        if let Some(last) = last {
            let _ = replies.try_send(last);
            self.step_ups.remove(&client);
        }
    }

    pub(super) fn answer_down(&mut self, reply: &Reply) {
        for replies in self.downs.drain(..).chain(self.logouts.drain(..)) {
            let _ = replies.try_send(reply.clone()); // the client may have gone
        }
    }
}

impl Agent {
    pub(super) async fn asked(&mut self, (client, uid, right): (u64, u32, Right), request: Request, replies: Replies) {
        let now = self.clock.now();
        if request.asks_controller() && !self.waiting.budgets.take(uid, now.monotonic) {
            let message = "you ask the controller too much: try again in a few seconds".into();
            let _ = replies.try_send(Reply::Refused { message }); // the client may have gone
            return;
        }
        let answer = match request {
            Request::Status => {
                let status = self.status().await;
                Reply::Status(Box::new(match right {
                    Right::Change => status,
                    Right::Read => status.for_everybody(),
                }))
            }
            Request::Resources => Reply::Resources {
                resources: report::resources(self.core.book(), now),
                step_ups: report::step_ups(&self.core, now),
            },
            Request::Whois { remote } => self.whois(remote).await,
            Request::Flows { follow: false } => return self.list_flows(replies).await,
            Request::Flows { follow: true } => {
                tokio::spawn(follow(self.followers.subscribe(), replies));
                return;
            }
            Request::Explain { to, service } => return self.explain(to, service, right, replies).await,
            Request::RequestAccess { resource, length_ms, reason, wait } => {
                self.waiting.next_question += 1;
                let question = self.waiting.next_question;
                if self.waiting.asks.len() >= MAX_ASKING
                    && let Some((_, longest)) = self.waiting.asks.pop_first()
                {
                    let message = "too many wait for a decision: `postern request` shows what became of it".into();
                    let _ = longest.replies.try_send(Reply::Refused { message }); // it may have gone
                }
                self.waiting.asks.insert(question, Asking { replies, wait, request: None });
                let command = Command::RequestAccess { question, resource, length_ms, reason };
                return self.core.handle_command(command, now);
            }
            Request::Up { target, token, name } => return self.up(client, target, token, name, replies).await,
            Request::StepUp { resource } => {
                let domain = self.core.book().stand().map(|stand| format!(".{}", stand.own.domain)).unwrap_or_default();
                let name = resource.strip_suffix(domain.as_str()).unwrap_or(&resource);
                match name.parse::<ResourceName>() {
                    Ok(resource) => {
                        self.waiting.step_ups.insert(client, replies);
                        return self.core.handle_command(Command::StepUp { client, resource }, now);
                    }
                    Err(error) => Reply::Refused { message: error.to_string() },
                }
            }
            Request::Down => {
                self.waiting.downs.push(replies);
                return self.core.handle_command(Command::Down, now);
            }
            Request::Logout => {
                if self.core.identity().enrolment.is_none() {
                    let message = "nobody is signed in on this machine".into();
                    let _ = replies.try_send(Reply::Refused { message });
                    return;
                }
                self.waiting.logouts.push(replies);
                return self.core.handle_command(Command::Logout, now);
            }
        };
        let done = !matches!(answer, Reply::Refused { .. });
        let _ = replies.try_send(answer); // the client may have gone
        if done {
            let _ = replies.try_send(Reply::Done);
        }
    }

    /// Takes note that a client went away; tells whether it was the last that waited for `up`.
    pub(super) fn gone(&mut self, client: u64) -> bool {
        if self.waiting.step_ups.remove(&client).is_some() {
            self.core.handle_command(Command::AbandonStepUp { client }, self.clock.now());
        }
        let last = self.waiting.ups.remove(&client).is_some() && self.waiting.ups.is_empty();
        if last {
            self.core.handle_command(Command::AbandonJoin, self.clock.now());
        }
        last
    }

    async fn up(
        &mut self,
        client: u64,
        target: Option<String>,
        token: Option<String>,
        name: Option<String>,
        replies: Replies,
    ) {
        let refuse = |message: String| {
            let _ = replies.try_send(Reply::Refused { message }); // the client may have gone
        };
        let target = match target.map(|target| target.parse::<ControllerTarget>()).transpose() {
            Ok(target) => target,
            Err(error) => return refuse(error.to_string()),
        };
        let name = name.unwrap_or_else(host_name);
        let name: MachineName = match name.parse() {
            Ok(name) => name,
            Err(error) => return refuse(format!("{error}; give the machine one with --name")),
        };
        if let Err(error) = self.start_plane().await {
            refuse(chain(&error));
            return self.end_if_useless().await;
        }
        self.waiting.ups.insert(client, replies);
        let command = Command::Up { target, token: token.map(Zeroizing::new), name };
        self.core.handle_command(command, self.clock.now());
    }

    async fn whois(&mut self, remote: std::net::SocketAddr) -> Reply {
        let Some(plane) = &self.plane else {
            return Reply::Refused { message: "the node is down: postern up".into() };
        };
        match plane.worker.whois(remote).await {
            Ok(Some(who)) => Reply::Whois(Box::new(WhoisReport {
                remote,
                peer: who.peer,
                tags: who.tags.iter().map(ToString::to_string).collect(),
                outer: who.endpoint,
                flow: who.flow.as_ref().map(|flow| flow.flow),
                permit: who.flow.map(|flow| flow.permit),
            })),
            Ok(None) => Reply::Refused { message: format!("{} belongs to no peer of this node", remote.ip()) },
            Err(error) => Reply::Refused { message: error.to_string() },
        }
    }

    async fn list_flows(&mut self, replies: Replies) {
        let flows = match &self.plane {
            Some(plane) => plane.worker.flows().await.unwrap_or_default(),
            None => vec![],
        };
        let now = self.clock.now();
        // More flows than replies may wait for a reader: a task feeds it.
        tokio::spawn(async move {
            for flow in flows {
                if replies.send(Reply::Flow(Box::new(report::flow(flow, now)))).await.is_err() {
                    return;
                }
            }
            let _ = replies.send(Reply::Done).await;
        });
    }

    async fn explain(&mut self, to: String, service: Option<Service>, right: Right, replies: Replies) {
        let local = self.explain_locally(&to, service).await;
        let who = match self.core.book().stand() {
            Some(stand) => format!("{} on {}", stand.own.subject_name, stand.own.name),
            None => "this machine".into(),
        };
        self.waiting.next_question += 1;
        let question = self.waiting.next_question;
        let quarantine = self.core.book().stand().and_then(|stand| stand.own.quarantine.clone());
        let report = ExplainReport { local, controller: None, controller_error: None, who, quarantine };
        self.waiting.questions.insert(question, (replies, report, right));
        self.core.handle_command(Command::Explain { question, to, service }, self.clock.now());
    }

    async fn explain_locally(&mut self, to: &str, service: Option<Service>) -> Vec<LocalReport> {
        let (Some(plane), Some(stand)) = (&self.plane, self.core.book().stand()) else { return vec![] };
        let domain = format!(".{}", stand.own.domain);
        let name = to.strip_suffix(domain.as_str()).unwrap_or(to);
        let mut asked = Vec::new();
        for peer in stand.peers.values() {
            let address = to.parse().ok().filter(|address| peer.addresses.contains(address));
            let named = peer.name.as_str() == name;
            for permission in &peer.outbound {
                let meant = address.is_some() || named || permission.resource.as_str() == name;
                if let (true, Some(address)) = (meant, address.or(peer.addresses.first().copied())) {
                    asked.extend(permission.services.iter().map(|service| (address, peer.name.clone(), *service)));
                }
            }
            if let (true, Some(address)) = (named || address.is_some(), address.or(peer.addresses.first().copied())) {
                asked.extend(service.map(|service| (address, peer.name.clone(), service)));
            }
        }
        let mut reports: Vec<LocalReport> = Vec::new();
        for (address, machine, known) in asked {
            let service = service.unwrap_or(known);
            let (protocol, port) = (service.protocol(), one_port(service.protocol(), service.ports()));
            let again =
                |report: &LocalReport| (report.address, report.protocol, report.port) == (address, protocol, port);
            if reports.len() == MAX_EXPLAINED || reports.iter().any(again) {
                continue;
            }
            let own = stand.own.addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4());
            let Some(source) = own.copied() else { continue };
            let flow =
                FiveTuple { protocol, source, source_port: 50_000, destination: address, destination_port: port };
            let Ok(explanation) = plane.worker.explain(flow).await else { break };
            let (allowed, reason, until) = match explanation.verdict {
                LocalVerdict::Allow { permit, until } => (true, format!("rule \"{}\"", permit.rule), Some(until.wall)),
                LocalVerdict::Deny { reason } => (false, reason.to_string(), None),
            };
            reports.push(LocalReport { address, machine: Some(machine), protocol, port, allowed, reason, until });
        }
        reports
    }

    pub(super) fn access_requested(&mut self, question: u64, answer: Result<AccessRequest, String>) {
        let Some(asking) = self.waiting.asks.get_mut(&question) else { return };
        let done = match answer {
            Ok(request) => {
                asking.request = Some(request.id);
                let _ = asking.replies.try_send(Reply::Access { request: Box::new(request) });
                if !asking.wait {
                    let _ = asking.replies.try_send(Reply::Done);
                }
                !asking.wait
            }
            Err(message) => {
                let _ = asking.replies.try_send(Reply::Refused { message });
                true
            }
        };
        if done {
            self.waiting.asks.remove(&question);
        }
    }

    /// Tells the clients that wait for a decision.
    pub(super) fn requests_changed(&mut self) {
        let known = self.core.requests();
        self.waiting.asks.retain(|_, asking| {
            let Some(id) = asking.request else { return !asking.replies.is_closed() };
            let reply = match known.iter().find(|request| request.id == id) {
                Some(AccessRequest { state: AccessRequestState::Waiting { .. }, .. }) => {
                    return !asking.replies.is_closed();
                }
                Some(decided) => Reply::Access { request: Box::new(decided.clone()) },
                None => Reply::Refused { message: "nobody decided in time: ask again".into() },
            };
            let done = !matches!(reply, Reply::Refused { .. });
            let _ = asking.replies.try_send(reply);
            if done {
                let _ = asking.replies.try_send(Reply::Done);
            }
            false
        });
    }

    pub(super) async fn explained(&mut self, question: u64, answer: Result<Explanation, String>) {
        let Some((replies, mut report, right)) = self.waiting.questions.remove(&question) else {
            if let (Some(asking), Err(message)) = (self.waiting.asks.remove(&question), answer) {
                let _ = asking.replies.try_send(Reply::Refused { message }); // the client may have gone
            }
            return;
        };
        match answer {
            Ok(explanation) => report.controller = Some(explanation),
            Err(error) => report.controller_error = Some(error),
        }
        let report = match right {
            Right::Change => report,
            Right::Read => report.for_everybody(),
        };
        let _ = replies.try_send(Reply::Explain(Box::new(report))); // the client may have gone
        let _ = replies.try_send(Reply::Done);
    }
}

const fn one_port(protocol: Protocol, ports: PortRange) -> u16 {
    match protocol {
        Protocol::Icmp => 0,
        Protocol::Tcp | Protocol::Udp => {
            if ports.first() == 0 {
                1
            } else {
                ports.first()
            }
        }
    }
}

async fn follow(
    mut records: broadcast::Receiver<std::sync::Arc<postern_common::flow_record::FlowRecord>>,
    replies: Replies,
) {
    loop {
        tokio::select! {
            record = records.recv() => match record {
                Ok(record) => {
                    let record = Box::new(record.as_ref().clone());
                    if replies.send(Reply::Record { record }).await.is_err() {
                        return;
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {} // the spool has them
                Err(broadcast::error::RecvError::Closed) => return,
            },
            () = replies.closed() => return,
        }
    }
}

/// Returns the machine's host name with what a name cannot have left out.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let good = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    name.trim().chars().filter(good).take(MachineName::MAX).collect()
}
