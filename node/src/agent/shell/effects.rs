//! How each effect of the core is done.

use std::sync::Arc;

use postern_common::grant::{Change, VerifiedGrants};
use postern_dataplane::InboundFlows;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    Agent, Course, Probing,
    host::{self, Trouble, chain},
    link::Link,
    plane,
};
use crate::agent::{
    api::Reply,
    core::{Effect, Notice, Retry, identity::Wanted},
    state::writer::Job,
};

impl Agent {
    pub(super) async fn perform_all(&mut self) {
        while let Some(effect) = self.core.poll_effect() {
            self.perform(effect).await;
        }
        if std::mem::take(&mut self.waiting.reloaded) {
            if let Some(plane) = &self.plane {
                let _ = plane.worker.set_ceiling(self.config.ceiling()).await; // an ended worker is told by its events
            }
            self.follow_host().await;
            self.shut_overlay().await;
            self.look_for_endpoints().await;
        }
    }

    async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Connect(target) => {
                self.shut_overlay().await; // after `down` and `up`, too, nothing leaves in the clear meanwhile
                self.link_number += 1;
                self.link = Some(Link::open(self.link_number, target, self.link_events.clone()));
            }
            Effect::Close => self.closing = self.link.take().map(Link::close).or(self.closing.take()),
            Effect::Send(message) => {
                if self.link.as_ref().is_some_and(|link| !link.send(message)) {
                    self.link = None;
                    let error = "the stream to the controller takes no more messages".into();
                    self.core.handle_disconnected(error, Retry::Soon, self.clock.now());
                }
            }
            Effect::SetLocalKeys(keys) => {
                if let Some(plane) = &self.plane {
                    let _ = plane.worker.set_local_keys(keys).await; // an ended worker is told by its events
                }
            }
            Effect::Apply(grants) => self.apply(grants).await,
            Effect::CloseDoors => {
                self.writer.submit(Job::RemoveGrants);
                self.follow_names();
                self.stop_plane().await;
                // An empty worker in its place: there is no way to forget to take something out of it.
                let identity = self.core.identity();
                if identity.wanted == Wanted::Up && identity.enrolment.is_some() {
                    let started = self.start_plane().await;
                    self.troubles.note(Trouble::Plane, started);
                }
            }
            Effect::PersistIdentity(identity) => self.writer.submit(Job::Identity(identity)),
            Effect::PersistGrants(saved) => self.writer.submit(Job::Grants(saved)),
            Effect::HostDown => self.down().await,
            Effect::Settled(result) => self.settled(result),
            Effect::Probe(order) => {
                self.probe = Some(Probing { order, sequence: 0, next: Instant::now() });
            }
            Effect::CountFlows { question, peers } => {
                let counted = match &self.plane {
                    Some(plane) => plane.worker.inbound_flows(peers).await.unwrap_or_default(), // ended: no flow lives
                    None => InboundFlows::default(),
                };
                self.core.handle_flows(question, counted.groups, counted.unlisted);
            }
            Effect::ReadPlatformToken => self.read_platform_token(),
            Effect::LookAtPosture => self.look_at_posture(),
            Effect::StopProbes => self.probe = None,
            Effect::Notify(notice) => {
                log_notice(&notice);
                self.waiting.tell(&notice);
                self.tell_people(&notice);
                if let Notice::Failed { .. } = notice {
                    self.end_if_useless().await;
                }
            }
            Effect::StepUp { client, notice } => self.waiting.tell_of_step_up(client, notice),
            Effect::AccessRequested { question, answer } => self.access_requested(question, answer),
            Effect::RequestsChanged => self.requests_changed(),
            Effect::Explained { question, answer } => self.explained(question, answer).await,
        }
    }

    async fn apply(&mut self, grants: VerifiedGrants) {
        let position = grants.position();
        let was_running = self.plane.is_some();
        let started = self.start_plane().await;
        let failed = started.is_err();
        self.troubles.note(Trouble::Plane, started);
        let Some(plane) = self.plane.as_ref().filter(|_| !failed) else { return };
        if !was_running && matches!(grants.change(), Change::Delta { .. }) {
            // It could not be started when the snapshot came: a difference to nothing must not be acknowledged.
            return self.core.handle_plane_lost(self.clock.now());
        }
        match plane.worker.apply(grants).await {
            Ok(applied) => {
                info!(
                    generation = position.generation,
                    epoch = position.epoch,
                    compiled = applied.compiled.len(),
                    removed = applied.removed.len(),
                    renewed = applied.renewed,
                    cut = applied.cut,
                    "grants are enforced"
                );
                self.core.handle_compiled(position, applied.cut_inbound);
            }
            Err(_) => return self.lose_plane(),
        }
        self.follow_names();
        self.follow_host().await;
    }

    pub(super) fn follow_names(&self) {
        let names = host::names_of(self.core.book(), self.clock.now());
        self.names.store(Arc::new(names.unwrap_or_else(|| self.names.load().without_entries())));
    }

    /// Keeps the overlay shut, as it was last known, while the node shall be up and has been told nothing.
    pub(super) async fn shut_overlay(&mut self) {
        let identity = self.core.identity();
        let Some(enrolment) = &identity.enrolment else { return };
        if identity.wanted == Wanted::Up && !enrolment.overlay.is_empty() && self.core.book().stand().is_none() {
            self.host.shut(enrolment.overlay.clone(), &self.config).await;
        }
    }

    async fn follow_host(&mut self) {
        if let Some(stand) = self.core.book().stand() {
            self.host.follow(&stand.own, &self.config).await;
        }
    }

    /// An agent that `up` started for a join that did not come about leaves nothing behind.
    pub(super) async fn end_if_useless(&mut self) {
        if self.options.detached && self.core.identity().enrolment.is_none() && !self.core.is_joining() {
            self.stop_plane().await;
            self.troubles.note(Trouble::Net, plane::remove_interface(&self.config.interface));
            self.course = Course::Finished;
        }
    }

    async fn down(&mut self) {
        self.stop_plane().await;
        let removed = self.host.remove().await;
        let interface = plane::remove_interface(&self.config.interface);
        let result = removed.and(interface);
        self.waiting.taken_down = Some(match &result {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Refused { message: format!("not everything could be taken away: {}", chain(error)) },
        });
        self.troubles.note(Trouble::Net, result);
    }

    /// Answers who asked for `down` or `logout`, now that the disk has it.
    fn settled(&mut self, result: Result<(), String>) {
        let taken_down = self.waiting.taken_down.take().unwrap_or(Reply::Done);
        let durable = result.is_ok();
        self.waiting.answer_down(&match result {
            Ok(()) => taken_down,
            Err(error) => Reply::Refused {
                message: format!(
                    "the tunnel is down, but that could not be written: after a restart of the machine it would come up again. It is tried again every few seconds: {error}"
                ),
            },
        });
        if durable && self.options.detached {
            self.course = Course::Finished;
        }
    }
}

fn log_notice(notice: &Notice) {
    match notice {
        Notice::Connecting { controller } => info!(controller, "connecting"),
        Notice::Retrying { error, after_ms } => warn!(%error, after_ms, "the stream is down; it is tried again"),
        Notice::SignIn { url, expires, .. } => info!(url, %expires, "waiting for a person to sign in"),
        Notice::Joined { subject, machine, .. } => info!(subject, machine, "joined"),
        Notice::Enforcing { generation } => tracing::debug!(generation, "acknowledged"),
        // The page's address is for people at this machine, who may see it; logs go to other places.
        Notice::StepUp { resource, demand, expires, .. } => info!(
            %resource, demand, %expires,
            "a resource asks for stronger or fresher proof of sign-in; `postern status` shows where to give it"
        ),
        Notice::SteppedUp { resource } => info!(%resource, "the resource is open after a step-up"),
        Notice::StepUpFailed { resource, message } => warn!(%resource, message, "no step-up"),
        Notice::SessionEnded { reason } => info!(reason, "the login session has ended"),
        Notice::Failed { message } => warn!(message, "what was asked for does not happen"),
    }
}
