//! The one task that owns the core: calls in, durable effects, then messages out.
//!
//! ```text
//! streams, pages, administration --Handle (bounded queue)--> turn: every waiting call, then
//!     Effect::{Store, Audit} --one transaction, audit file synced--> Effect::{Send, Close} and the callers' answers
//! ```
//!
//! Invariants:
//! - Whatever a turn decided is durable before any message or answer of that turn leaves. Waiting calls share a turn, so one sync
//!   serves all of them (group commit).
//! - If that fails, nothing leaves and the actor ends: the core then knows more than the store, and only a new
//!   start from the store makes them agree again.
//! - A turn ends after [`WORK`] of work: whatever its calls have closed is on its way then, and a call that is expensive delays those
//!   behind it by itself alone, not by everything that waited with them.
//! - The queue of calls is bounded ([`QUEUE`]); who calls waits. A node that does not read its messages is disconnected
//!   ([`STREAM_QUEUE`]).
//!
//! Rejected: a lock around the core. Group commit and the order of effects would have to be rebuilt around it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use postern_common::{
    protocol::{FromNode, Refusal, ToNode},
    time::{Monotonic, Now},
};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use super::clock;
use crate::{
    audit::{AuditError, AuditLog, Line, chain},
    identity::machine::{Question, TokenRefusal},
    records::{AuditEvent, Meta, StoreChange},
    store::{Store, StoreError},
    stream::{Core, Effect, StreamId},
};

/// How many calls may wait. Who calls beyond that waits until there is room.
pub const QUEUE: usize = 1_024;
/// How many messages may wait for one node. A node with more is disconnected and comes back for a snapshot.
pub const STREAM_QUEUE: usize = 256;
/// How many calls one turn takes at most, so that its effects stay bounded.
const TURN: usize = 128;
/// After so much work a turn takes no further call: what it has closed leaves, and the other calls are the next turn's.
const WORK: Duration = Duration::from_millis(20);

/// What the task of one stream is told.
#[derive(Debug)]
pub enum ToStream {
    /// Send this.
    Message(Box<ToNode>),
    /// Send a refusal and close.
    Close {
        /// What kind of refusal.
        refusal: Refusal,
        /// What happened and what to do.
        message: String,
    },
}

/// What ended the actor.
#[derive(Debug, thiserror::Error)]
pub enum ActorError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The audit log failed.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// The actor has ended: the controller is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the controller is stopping and did not answer: its log says why; start it again and see whether this was done"
)]
pub struct Stopped;

type Answer = Box<dyn FnOnce() + Send>;
type Call = Box<dyn FnOnce(&mut Turn<'_>, Now) -> Answer + Send>;

enum Command {
    Call(Call),
    Connect { remote: SocketAddr, outbox: mpsc::Sender<ToStream>, answer: oneshot::Sender<StreamId> },
    Receive { stream: StreamId, message: Box<FromNode> },
    Disconnect { stream: StreamId },
    Probe { datagram: Vec<u8>, from: SocketAddr },
    Stop { answer: oneshot::Sender<()> },
}

/// What a call may do: ask the core, and record what is not the core's.
pub struct Turn<'a> {
    /// The core.
    pub core: &'a mut Core,
    /// What there is once, as it is durable: the epoch and the policy in force.
    pub meta: &'a Meta,
    events: &'a mut Vec<serde_json::Value>,
}

impl Turn<'_> {
    /// Records an event in the audit log, durably before the call is answered.
    pub fn record(&mut self, event: &impl Serialize) {
        self.events.push(serde_json::to_value(event).expect("an audit event has no part without a JSON form"));
    }

    /// Records something that an administrator did and the core has no event for.
    pub fn record_administration(&mut self, by: &str, action: &str, detail: &str) {
        self.record(&AuditEvent::Administration { by: by.into(), action: action.into(), detail: detail.into() });
    }
}

/// Asks the actor; cheap to copy.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    turns: watch::Receiver<u64>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handle")
    }
}

impl Handle {
    /// Asks the core something, or changes something; the answer comes when everything that it caused is durable.
    ///
    /// # Errors
    /// [`Stopped`] if the controller is stopping: nothing may be assumed about what was asked.
    pub async fn call<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Turn<'_>, Now) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |turn, now| {
            let value = ask(turn, now);
            Box::new(move || drop(answer.send(value)))
        });
        self.send(Command::Call(call)).await?;
        answered.await.map_err(|_| Stopped)
    }

    /// Begins a stream.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn connect(&self, remote: SocketAddr, outbox: mpsc::Sender<ToStream>) -> Result<StreamId, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Connect { remote, outbox, answer }).await?;
        answered.await.map_err(|_| Stopped)
    }

    /// Passes on a message of a stream.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn receive(&self, stream: StreamId, message: FromNode) -> Result<(), Stopped> {
        self.send(Command::Receive { stream, message: Box::new(message) }).await
    }

    /// Ends a stream.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn disconnect(&self, stream: StreamId) -> Result<(), Stopped> {
        self.send(Command::Disconnect { stream }).await
    }

    /// Passes on a probe; drops it if the queue is full, because the node sends another.
    pub fn probe(&self, datagram: &[u8], from: SocketAddr) {
        drop(self.commands.try_send(Command::Probe { datagram: datagram.to_vec(), from }));
    }

    /// Closes every stream and ends the actor.
    pub async fn stop(&self) {
        let (answer, answered) = oneshot::channel();
        if self.send(Command::Stop { answer }).await.is_ok() {
            drop(answered.await);
        }
    }

    /// Returns a receiver that changes after every turn in which a node spoke or time passed: who waits for a condition asks
    /// again then. Calls alone do not count, so that asking again does not cause asking again.
    pub fn turns(&self) -> watch::Receiver<u64> {
        self.turns.clone()
    }

    /// Returns how many calls the queue has room for.
    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.commands.capacity()
    }

    /// Makes a handle of an actor that has ended, for tests of what does not need it.
    #[cfg(test)]
    pub(crate) fn ended() -> Self {
        Self { commands: mpsc::channel(1).0, turns: watch::channel(0).1 }
    }

    async fn send(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).await.map_err(|_| Stopped)
    }
}

/// The task's state.
pub struct Actor<S> {
    core: Core,
    meta: Meta,
    store: S,
    audit: AuditLog,
    commands: mpsc::Receiver<Command>,
    streams: HashMap<StreamId, mpsc::Sender<ToStream>>,
    turns: watch::Sender<u64>,
    tokens: mpsc::Sender<Question>,
}

impl<S: Store> Actor<S> {
    /// Makes the actor and its handle. Tokens of platforms that have to be checked go to `tokens`.
    pub fn new(core: Core, meta: Meta, store: S, audit: AuditLog, tokens: mpsc::Sender<Question>) -> (Self, Handle) {
        let (sender, commands) = mpsc::channel(QUEUE);
        let (turns, watched) = watch::channel(0);
        let actor = Self { core, meta, store, audit, commands, streams: HashMap::new(), turns, tokens };
        (actor, Handle { commands: sender, turns: watched })
    }

    /// Runs until it is stopped, or until something cannot be made durable.
    ///
    /// # Errors
    /// [`ActorError`]: the process must end, and start again from the store.
    pub async fn run(mut self) -> Result<(), ActorError> {
        let mut waiting = Vec::with_capacity(TURN);
        loop {
            let now = clock::now();
            let due = self.core.poll_timeout();
            let wake = async {
                match due {
                    Monotonic::NEVER => std::future::pending().await,
                    due => tokio::time::sleep(due.since(now.monotonic)).await,
                }
            };
            if waiting.is_empty() {
                tokio::select! {
                    received = self.commands.recv_many(&mut waiting, TURN) => if received == 0 { return Ok(()) },
                    () = wake => {}
                }
            }
            if let Some(stopped) = self.turn(&mut waiting).await? {
                let _ = stopped.send(());
                return Ok(());
            }
        }
    }

    /// Takes the waiting calls in their order, as many as fit into [`WORK`] and at least one, makes durable what they caused, then lets
    /// messages and answers go. What did not fit stays in `waiting`.
    async fn turn(&mut self, waiting: &mut Vec<Command>) -> Result<Option<oneshot::Sender<()>>, ActorError> {
        let now = clock::now();
        let mut answers: Vec<Answer> = Vec::new();
        let mut events = Vec::new();
        let mut stopped = None;
        let mut progress = waiting.is_empty();
        let began = Instant::now();
        let mut commands = std::mem::take(waiting).into_iter();
        for command in commands.by_ref() {
            progress |= !matches!(command, Command::Call(_));
            match command {
                Command::Call(call) => {
                    let mut turn = Turn { core: &mut self.core, meta: &self.meta, events: &mut events };
                    answers.push(call(&mut turn, now));
                }
                Command::Connect { remote, outbox, answer } => {
                    let stream = self.core.connect(remote, now);
                    self.streams.insert(stream, outbox);
                    answers.push(Box::new(move || {
                        let _ = answer.send(stream);
                    }));
                }
                Command::Receive { stream, message } => {
                    if self.streams.contains_key(&stream) {
                        self.core.receive(stream, *message, now);
                    }
                }
                Command::Disconnect { stream } => {
                    if self.streams.remove(&stream).is_some() {
                        self.core.disconnect(stream, now);
                    }
                }
                Command::Probe { datagram, from } => self.core.observe_probe(&datagram, from, now),
                Command::Stop { answer } => stopped = Some(answer),
            }
            if stopped.is_some() || began.elapsed() >= WORK {
                break;
            }
        }
        waiting.extend(commands);
        if self.core.poll_timeout() <= now.monotonic {
            self.core.handle_timeout(now);
        }
        self.effects(events, now).await?;
        answers.into_iter().for_each(|answer| answer());
        if progress {
            self.turns.send_modify(|turn| *turn += 1);
        }
        if stopped.is_some() {
            for (_, outbox) in self.streams.drain() {
                let message = "the controller is going down; try again in a moment".into();
                drop(outbox.try_send(ToStream::Close { refusal: Refusal::Closing, message }));
            }
        }
        Ok(stopped)
    }

    async fn effects(&mut self, events: Vec<serde_json::Value>, now: Now) -> Result<(), ActorError> {
        let mut events = events;
        loop {
            let mut changes = Vec::new();
            let mut messages = Vec::new();
            let mut questions = Vec::new();
            while let Some(effect) = self.core.poll_effect() {
                match effect {
                    Effect::Store(change) => {
                        if let StoreChange::PutMeta(meta) = &change {
                            self.meta = meta.clone();
                        }
                        changes.push(change);
                    }
                    Effect::Audit(event) => {
                        events.push(serde_json::to_value(&event).expect("an audit event has a JSON form"));
                    }
                    Effect::VerifyToken { stream, token } => questions.push(Question { stream, token }),
                    Effect::Send { stream, message } => messages.push((stream, ToStream::Message(Box::new(message)))),
                    Effect::Close { stream, refusal, message } => {
                        messages.push((stream, ToStream::Close { refusal, message }));
                    }
                }
            }
            self.make_durable(&changes, &std::mem::take(&mut events), now).await?;
            let overflowed = self.deliver(messages);
            let unasked = self.ask(questions);
            if overflowed.is_empty() && unasked.is_empty() {
                return Ok(());
            }
            for stream in unasked {
                let busy = TokenRefusal::Unavailable("too many tokens wait to be checked".into());
                self.core.token_verified(stream, Err(busy), now);
            }
            for stream in overflowed {
                self.core.disconnect(stream, now); // has effects of its own: once more
            }
        }
    }

    async fn make_durable(
        &mut self,
        changes: &[StoreChange],
        events: &[serde_json::Value],
        now: Now,
    ) -> Result<(), ActorError> {
        if changes.is_empty() && events.is_empty() {
            return Ok(());
        }
        let mut head = self.audit.head();
        let mut lines: Vec<Line> = Vec::with_capacity(events.len());
        for event in events {
            let line = chain(head, now.wall, event);
            head = line.head;
            lines.push(line);
        }
        self.store.commit(changes, &lines).await?;
        tokio::task::block_in_place(|| self.audit.write(&lines))?;
        Ok(())
    }

    /// Hands tokens to whoever checks them; returns the streams of those that there is no room for.
    fn ask(&mut self, questions: Vec<Question>) -> Vec<StreamId> {
        let full = |question| self.tokens.try_send(question).err();
        questions.into_iter().filter_map(full).map(|refused| refused.into_inner().stream).collect()
    }

    /// Hands messages to the streams' tasks; returns streams whose queue is full.
    fn deliver(&mut self, messages: Vec<(StreamId, ToStream)>) -> Vec<StreamId> {
        let mut overflowed = Vec::new();
        for (stream, message) in messages {
            let closing = matches!(message, ToStream::Close { .. });
            let Some(outbox) = self.streams.get(&stream) else { continue };
            let full = matches!(outbox.try_send(message), Err(mpsc::error::TrySendError::Full(_)));
            if closing {
                self.streams.remove(&stream); // the core has forgotten it already
            } else if full {
                tracing::warn!(stream = stream.0, "a node does not read its messages: disconnected");
                self.streams.remove(&stream);
                overflowed.push(stream);
            }
        }
        overflowed
    }
}
