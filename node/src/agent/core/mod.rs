//! The agent's control logic: sans-IO, so that many nodes run in one test in virtual time.
//!
//! ```text
//! handle_command      up, down, logout, explain        --.
//! handle_connected / handle_disconnected / handle_message |--> [`Core`] --poll_effect--> Connect, Send, Apply, Persist..,
//! handle_persisted / handle_compiled / handle_endpoints   |                              SetLocalKeys, Notify, ...
//! handle_timeout  <-- poll_timeout ---------------------'
//! ```
//!
//! | file | holds |
//! | --- | --- |
//! | [`identity`] | who the machine is: device key, enrolment, login |
//! | [`keyring`] | WireGuard keys: proposed, listed, wiped |
//! | [`book`] | the merged documents: for people and for a restart |
//! | [`backoff`] | when to try again |
//! | `stream` | the states of the stream to the controller and what each message does |
//!
//! Invariants:
//! - A document is acknowledged only when it is durable *and* compiled: a crash after the acknowledgement can not bring
//!   back what it took away.
//! - A key is on disk before the controller hears of it; an enrolment token is spent only when the disk took the
//!   device key.
//! - Nothing here opens anything: what the data plane enforces are [`VerifiedGrants`], which only the verifier makes.
//!   With the controller away the data plane runs leases to their end by itself.
//! - One stream at a time; every wait has an end; every list has a bound.
//!
//! Rejected: an async task per concern (renewal, rotation, reports). Their interleavings cannot be replayed, and the
//! order 'durable, compiled, acknowledged' would hang on channel order.

pub mod backoff;
pub mod book;
pub mod identity;
pub mod keyring;
mod stream;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use postern_common::{
    grant::{GrantVerifier, Position, SavedGrants, VerifiedGrants},
    id::{BootId, MachineName, Nonce},
    key::WireGuardPrivateKey,
    net::Service,
    probe::ProbeKey,
    protocol::{Explanation, FromNode, MAX_ENDPOINTS},
    time::{Monotonic, Now, WallTime},
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use self::stream::Retry;
use self::{
    backoff::Backoff,
    book::Book,
    identity::{DeviceSeed, Identity, Login, Wanted},
    stream::{JoinAttempt, Purpose, Stream},
};
use super::target::ControllerTarget;

/// How often the node draws a new nonce while it is connected.
pub const FRESHEN_INTERVAL: Duration = Duration::from_secs(120);
/// How long a question to the controller may stay open.
pub const EXPLAIN_PATIENCE: Duration = Duration::from_secs(5);
/// How many questions may be open.
pub const MAX_OPEN_QUESTIONS: usize = 64;
const PERSIST_RETRY: Duration = Duration::from_secs(5);
const ENDPOINT_SPACING: Duration = Duration::from_secs(1);

/// Where random bytes come from: the operating system, or a seed in tests.
pub trait Entropy {
    /// Fills `bytes` with random bytes.
    fn fill(&mut self, bytes: &mut [u8]);
}

/// What the core is told once.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a WireGuard key is the newest.
    pub rotation: Duration,
    /// The boot of the machine.
    pub boot: BootId,
    /// The UDP port of the WireGuard socket.
    pub listen_port: u16,
    /// The version of this software.
    pub version: String,
}

/// What a local client asks for.
#[derive(Debug)]
pub enum Command {
    /// Be up; join first if need be.
    Up {
        /// The join link; may be absent on an enrolled machine.
        target: Option<ControllerTarget>,
        /// An enrolment token, for machines without a person.
        token: Option<Zeroizing<String>>,
        /// The name that the machine would like.
        name: MachineName,
    },
    /// The client that asked for [`Command::Up`] went away: a sign-in that waits for a person is given up.
    AbandonJoin,
    /// Be down; stay enrolled.
    Down,
    /// The person signs out.
    Logout,
    /// Ask the controller why something may or may not be reached.
    Explain {
        /// Comes back with the answer.
        question: u64,
        /// A resource name, machine name or overlay address.
        to: String,
        /// What is asked about.
        service: Option<Service>,
    },
}

/// What the shell has to do, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Open a stream; answer with `handle_connected` or `handle_disconnected`.
    Connect(ControllerTarget),
    /// Close the stream; no `handle_disconnected` follows.
    Close,
    /// Send a message on the stream.
    Send(FromNode),
    /// Give the data plane these private keys, newest first, instead of those that it has.
    SetLocalKeys(Vec<WireGuardPrivateKey>),
    /// Compile and enforce a document; answer with `handle_compiled`.
    Apply(VerifiedGrants),
    /// Enforce nothing any more and remove what is saved of it: everything is closed.
    CloseDoors,
    /// Write the identity durably; answer with `handle_persisted`.
    PersistIdentity(Box<Identity>),
    /// Write the sealed grants and then the position mark durably; answer with `handle_persisted`.
    PersistGrants(Box<SavedGrants>),
    /// Take the tunnel, guard and names away: `down`.
    HostDown,
    /// Send probes from the WireGuard socket to this port of the controller.
    Probe(ProbeOrder),
    /// Send probes no more.
    StopProbes,
    /// Tell local clients.
    Notify(Notice),
    /// Answer a client's question.
    Explained {
        /// The question.
        question: u64,
        /// The answer, or why there is none.
        answer: Result<Explanation, String>,
    },
}

/// Where to send probes and how to make them.
#[derive(Debug, Clone)]
pub struct ProbeOrder {
    /// The controller's UDP port.
    pub port: u16,
    /// Names the stream.
    pub stream: Nonce,
    /// The key of the probes.
    pub key: ProbeKey,
}

/// What became durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persisted {
    /// The identity.
    Identity,
    /// The grants up to a position, with the mark.
    Grants(Position),
}

/// What a local client may want to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "notice")]
pub enum Notice {
    /// Trying to reach the controller.
    Connecting {
        /// The controller.
        controller: String,
    },
    /// It did not work; another attempt follows.
    Retrying {
        /// Why.
        error: String,
        /// Milliseconds until the next attempt.
        after_ms: u64,
    },
    /// A person has to sign in.
    SignIn {
        /// The short code.
        code: String,
        /// The page.
        url: String,
        /// The page with the code in it.
        url_with_code: String,
        /// The fingerprint of this machine's key, as the page shows it: the person compares the two.
        fingerprint: String,
        /// When the code expires.
        expires: WallTime,
    },
    /// The machine joined, or its person signed in again.
    Joined {
        /// Who.
        subject: String,
        /// The machine's name.
        machine: String,
        /// Whether a person signed in.
        person: bool,
    },
    /// A document is enforced.
    Enforcing {
        /// Its generation.
        generation: u64,
    },
    /// The login session ended.
    SessionEnded {
        /// Why.
        reason: String,
    },
    /// What was asked for will not happen.
    Failed {
        /// What happened and what to do.
        message: String,
    },
}

/// What the machine is doing, for `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// `down` was the last word.
    Down,
    /// Not enrolled.
    NotEnrolled,
    /// Nobody is signed in.
    SignedOut {
        /// Why.
        reason: String,
    },
    /// A join is under way.
    Joining {
        /// The code, once the controller gave one.
        code: Option<String>,
        /// The page, once the controller gave one.
        url: Option<String>,
    },
    /// Connecting, or waiting to try again.
    Offline {
        /// Since when, by the wall clock.
        since: Option<WallTime>,
        /// The last failure.
        error: Option<String>,
    },
    /// The stream is live.
    Connected {
        /// Whether everything that the controller sent is enforced.
        current: bool,
    },
}

/// The agent's control logic for one node.
pub struct Core {
    settings: Settings,
    entropy: Box<dyn Entropy + Send>,
    identity: Identity,
    verifier: Option<GrantVerifier>,
    book: Book,
    stream: Stream,
    backoff: Backoff,
    offline_since: Option<WallTime>,
    last_error: Option<String>,
    durable: Option<Position>,
    compiled: Option<Position>,
    acknowledged: Option<Position>,
    grants_write: Write,
    identity_write: Write,
    after_identity: Vec<AfterIdentity>,
    endpoints: Vec<SocketAddr>,
    endpoints_due: Option<Monotonic>,
    endpoints_sent: Option<Monotonic>,
    questions: BTreeMap<u64, Monotonic>,
    effects: VecDeque<Effect>,
    refused_documents: u64,
}

/// Whether a file is being written: at most one write of each is under way, and a newer one follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Write {
    Clean,
    Running,
    RunningAndDirty,
    FailedUntil(Monotonic),
}

/// What waits for the identity to be durable.
#[derive(Debug)]
enum AfterIdentity {
    Connect(Purpose),
    OfferNewestKey,
}

impl Core {
    /// Makes the logic of a machine that has never joined.
    pub fn new(settings: Settings, mut entropy: Box<dyn Entropy + Send>) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        entropy.fill(&mut *seed);
        let identity = Identity {
            device_seed: DeviceSeed::from_bytes(*seed),
            keyring: keyring::Keyring::default(),
            enrolment: None,
            wanted: Wanted::Up,
        };
        Self::restore(settings, entropy, identity)
    }

    /// Makes the logic of a machine from what its state file holds. Nothing is connected or enforced before
    /// [`Core::start`].
    pub fn restore(settings: Settings, entropy: Box<dyn Entropy + Send>, identity: Identity) -> Self {
        let verifier =
            identity.enrolment.as_ref().map(|enrolment| GrantVerifier::new(enrolment.device, enrolment.controller_key));
        Self {
            settings,
            entropy,
            identity,
            verifier,
            book: Book::default(),
            stream: Stream::Resting { next: None },
            backoff: Backoff::default(),
            offline_since: None,
            last_error: None,
            durable: None,
            compiled: None,
            acknowledged: None,
            grants_write: Write::Clean,
            identity_write: Write::Clean,
            after_identity: Vec::new(),
            endpoints: Vec::new(),
            endpoints_due: None,
            endpoints_sent: None,
            questions: BTreeMap::new(),
            effects: VecDeque::new(),
            refused_documents: 0,
        }
    }

    /// Begins: takes up what was enforced before a restart within this boot, and connects.
    ///
    /// `saved` and `mark` come from the two places of [`GrantVerifier::resume`]; what does not fit is not enforced, and
    /// the reason is returned for the log.
    pub fn start(
        &mut self,
        saved: Option<SavedGrants>,
        mark: Option<Position>,
        now: Now,
    ) -> Result<(), postern_common::grant::GrantError> {
        self.effects.push_back(Effect::SetLocalKeys(self.identity.keyring.private_keys()));
        let serving = self.signed_in() && self.identity.wanted == Wanted::Up;
        let resumed = match (saved, mark, &mut self.verifier) {
            (Some(saved), Some(mark), Some(verifier)) if serving => {
                verifier.resume(saved, self.settings.boot, mark, now).map(|grants| {
                    self.durable = Some(grants.position());
                    self.book.apply(&grants);
                    self.effects.push_back(Effect::Apply(grants));
                })
            }
            (None, None, _) => Ok(()),
            // Nobody is signed in, or half of it is missing: it must not open anything after a later sign-in either.
            _ => {
                self.effects.push_back(Effect::CloseDoors);
                Ok(())
            }
        };
        if resumed.is_err() {
            self.effects.push_back(Effect::CloseDoors);
        }
        self.offline_since = Some(now.wall);
        self.connect_if_wanted(now);
        resumed
    }

    /// Takes a command of a local client.
    pub fn handle_command(&mut self, command: Command, now: Now) {
        match command {
            Command::Up { target, token, name } => self.up(target, token, name, now),
            Command::AbandonJoin => {
                if self.stream.is_join() {
                    self.close_stream();
                }
                self.after_identity.retain(|after| !matches!(after, AfterIdentity::Connect(Purpose::Join(_))));
            }
            Command::Down => {
                self.identity.wanted = Wanted::Down;
                self.write_identity();
                self.close_stream();
                self.shut();
                self.effects.push_back(Effect::HostDown);
            }
            Command::Logout => self.logout(),
            Command::Explain { question, to, service } => self.ask(question, to, service, now),
        }
    }

    fn up(&mut self, target: Option<ControllerTarget>, token: Option<Zeroizing<String>>, name: MachineName, now: Now) {
        let enrolled = self.identity.enrolment.as_ref();
        if let (Some(enrolment), Some(target)) = (enrolled, &target)
            && enrolment.controller != *target
        {
            let message = format!(
                "this machine has joined {}: run `postern logout` before it joins another controller",
                enrolment.controller.authority()
            );
            return self.notify(Notice::Failed { message });
        }
        if enrolled.is_some_and(|enrolment| enrolment.login.is_open()) {
            if self.identity.wanted != Wanted::Up {
                self.identity.wanted = Wanted::Up;
                self.write_identity();
            }
            match &self.stream {
                Stream::Resting { .. } => {
                    self.backoff.reset();
                    self.connect_if_wanted(now);
                }
                Stream::Live(_) => {
                    if let Some(generation) = self.enforced().map(|position| position.generation) {
                        self.notify(Notice::Enforcing { generation });
                    }
                }
                Stream::Connecting { .. } | Stream::Greeting { .. } | Stream::Joining { .. } => {}
            }
            return;
        }
        let Some(target) = target.or_else(|| enrolled.map(|enrolment| enrolment.controller.clone())) else {
            let message = "this machine has not joined a controller yet: postern up https://CONTROLLER#k=...".into();
            return self.notify(Notice::Failed { message });
        };
        self.close_stream();
        self.after_identity.clear();
        self.identity.wanted = Wanted::Up;
        self.backoff.reset();
        let mut secret = Zeroizing::new([0; 32]);
        self.entropy.fill(&mut *secret);
        let key = self.identity.keyring.propose(WireGuardPrivateKey::from_bytes(*secret), now.wall);
        let attempt = JoinAttempt { target, token, name, key, failures: 0 };
        self.after_identity.push(AfterIdentity::Connect(Purpose::Join(Box::new(attempt))));
        self.write_identity();
    }

    fn logout(&mut self) {
        if let Stream::Live(_) = self.stream {
            self.effects.push_back(Effect::Send(FromNode::Logout));
        }
        self.close_stream();
        self.identity.keyring.wipe();
        self.identity.wanted = Wanted::Down;
        match self.identity.enrolment.as_mut() {
            Some(enrolment) if enrolment.login != Login::Service => {
                enrolment.login = Login::Ended { reason: "signed out on this machine".into() };
            }
            // A service's only credential is its enrolment, so signing it out forgets that.
            Some(_) | None => {
                self.identity.enrolment = None;
                self.verifier = None;
            }
        }
        self.write_identity();
        self.shut();
        self.effects.push_back(Effect::SetLocalKeys(vec![]));
        self.effects.push_back(Effect::HostDown);
    }

    fn ask(&mut self, question: u64, to: String, service: Option<Service>, now: Now) {
        let refusal = match &self.stream {
            Stream::Live(_) if self.questions.len() < MAX_OPEN_QUESTIONS => None,
            Stream::Live(_) => Some("too many questions are open: try again in a moment"),
            Stream::Resting { .. } | Stream::Connecting { .. } | Stream::Greeting { .. } | Stream::Joining { .. } => {
                Some("the controller is not connected")
            }
        };
        match refusal {
            Some(why) => self.effects.push_back(Effect::Explained { question, answer: Err(why.into()) }),
            None => {
                self.questions.insert(question, now.monotonic.saturating_add(EXPLAIN_PATIENCE));
                self.effects.push_back(Effect::Send(FromNode::Explain { id: question, to, service }));
            }
        }
    }

    /// Takes note of what became durable.
    pub fn handle_persisted(&mut self, what: Persisted, now: Now) {
        match what {
            Persisted::Identity => {
                if std::mem::replace(&mut self.identity_write, Write::Clean) == Write::RunningAndDirty {
                    self.write_identity(); // what waits goes on after the newer write
                    return;
                }
                for after in std::mem::take(&mut self.after_identity) {
                    match after {
                        AfterIdentity::Connect(purpose) => self.connect(purpose, now),
                        AfterIdentity::OfferNewestKey => self.offer_newest_key(),
                    }
                }
            }
            Persisted::Grants(position) => {
                self.durable = self.durable.max(Some(position));
                if std::mem::replace(&mut self.grants_write, Write::Clean) == Write::RunningAndDirty {
                    self.write_grants();
                }
                self.acknowledge();
            }
        }
    }

    /// Takes note that a file could not be written; it is tried again.
    pub fn handle_persist_failed(&mut self, what: Persisted, error: &str, now: Now) {
        let until = Write::FailedUntil(now.monotonic.saturating_add(PERSIST_RETRY));
        match what {
            Persisted::Identity => self.identity_write = until,
            Persisted::Grants(_) => self.grants_write = until,
        }
        self.last_error = Some(error.to_owned());
        if !self.after_identity.is_empty() {
            self.after_identity.retain(|after| !matches!(after, AfterIdentity::Connect(Purpose::Join(_))));
            self.notify(Notice::Failed { message: error.to_owned() });
        }
    }

    /// Takes note that the data plane enforces everything up to `position`.
    pub fn handle_compiled(&mut self, position: Position) {
        self.compiled = self.compiled.max(Some(position));
        self.acknowledge();
    }

    /// Takes note of the outer addresses at which this node may be found, best first.
    pub fn handle_endpoints(&mut self, mut endpoints: Vec<SocketAddr>, now: Now) {
        endpoints.truncate(MAX_ENDPOINTS);
        if endpoints == self.endpoints {
            return;
        }
        self.endpoints = endpoints;
        let spaced = self.endpoints_sent.map(|sent| sent.saturating_add(ENDPOINT_SPACING));
        self.endpoints_due = Some(spaced.unwrap_or(now.monotonic).max(now.monotonic));
        if let Stream::Resting { next: Some((at, _)) } = &mut self.stream {
            *at = now.monotonic; // the network changed: what failed before may work now
        }
        self.backoff.reset();
    }

    /// Takes note that the data plane has lost everything: what it enforced must be told again.
    pub fn handle_plane_lost(&mut self, now: Now) {
        self.close_stream();
        self.shut();
        self.connect_if_wanted(now);
    }

    /// Changes how long a WireGuard key is the newest.
    pub fn set_rotation(&mut self, rotation: Duration) {
        self.settings.rotation = rotation;
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        let due = |at: Monotonic| at <= now.monotonic;
        if let Write::FailedUntil(at) = self.identity_write
            && due(at)
        {
            self.identity_write = Write::Clean;
            self.write_identity();
        }
        if let Write::FailedUntil(at) = self.grants_write
            && due(at)
        {
            self.grants_write = Write::Clean;
            self.write_grants();
        }
        let late: Vec<u64> = self.questions.iter().filter(|(_, at)| due(**at)).map(|(id, _)| *id).collect();
        for question in late {
            self.questions.remove(&question);
            let answer = Err(format!("the controller did not answer within {} s", EXPLAIN_PATIENCE.as_secs()));
            self.effects.push_back(Effect::Explained { question, answer });
        }
        if self.endpoints_due.is_some_and(due) {
            self.endpoints_due = None;
            if let Stream::Live(_) = self.stream {
                self.endpoints_sent = Some(now.monotonic);
                self.effects.push_back(Effect::Send(FromNode::Endpoints { endpoints: self.endpoints.clone() }));
            }
        }
        self.rotate_if_due(now);
        self.stream_timeout(now);
    }

    /// Returns when `handle_timeout` is due.
    pub fn poll_timeout(&self, now: Now) -> Option<Monotonic> {
        let failed = |write: Write| match write {
            Write::FailedUntil(at) => Some(at),
            Write::Clean | Write::Running | Write::RunningAndDirty => None,
        };
        let rotation = match self.stream {
            Stream::Live(_) => self
                .identity
                .keyring
                .rotation_due(self.settings.rotation, now)
                .map(|after| now.monotonic.saturating_add(after)),
            Stream::Resting { .. } | Stream::Connecting { .. } | Stream::Greeting { .. } | Stream::Joining { .. } => {
                None
            }
        };
        [
            failed(self.identity_write),
            failed(self.grants_write),
            self.questions.values().min().copied(),
            self.endpoints_due,
            rotation,
            self.stream.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Returns the next thing that the shell has to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Returns what the node was told to enforce.
    pub const fn book(&self) -> &Book {
        &self.book
    }

    /// Returns who the machine is.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the newest position that is durable and compiled.
    pub fn enforced(&self) -> Option<Position> {
        Some(self.durable?.min(self.compiled?))
    }

    /// Returns how many documents were refused since the start.
    pub const fn refused_documents(&self) -> u64 {
        self.refused_documents
    }

    /// Returns what the machine is doing.
    pub fn phase(&self) -> Phase {
        if let Some((code, url)) = self.stream.join_code() {
            return Phase::Joining { code, url };
        }
        let Some(enrolment) = &self.identity.enrolment else { return Phase::NotEnrolled };
        if let Login::Ended { reason } = &enrolment.login {
            return Phase::SignedOut { reason: reason.clone() };
        }
        if self.identity.wanted == Wanted::Down {
            return Phase::Down;
        }
        match &self.stream {
            Stream::Live(_) => {
                let told = self.book.stand().map(|stand| stand.position);
                Phase::Connected { current: told.is_some() && told == self.enforced() }
            }
            Stream::Resting { .. } | Stream::Connecting { .. } | Stream::Greeting { .. } | Stream::Joining { .. } => {
                Phase::Offline { since: self.offline_since, error: self.last_error.clone() }
            }
        }
    }

    fn notify(&mut self, notice: Notice) {
        self.effects.push_back(Effect::Notify(notice));
    }

    /// Closes every door and forgets what was told; the verifier keeps its position, so that nothing old opens them again.
    fn shut(&mut self) {
        self.book.clear();
        (self.durable, self.compiled, self.acknowledged) = (None, None, None);
        self.effects.push_back(Effect::CloseDoors);
    }

    fn write_identity(&mut self) {
        match self.identity_write {
            Write::Clean | Write::FailedUntil(_) => {
                self.identity_write = Write::Running;
                self.effects.push_back(Effect::PersistIdentity(Box::new(self.identity.clone())));
            }
            Write::Running | Write::RunningAndDirty => self.identity_write = Write::RunningAndDirty,
        }
    }

    fn write_grants(&mut self) {
        match self.grants_write {
            Write::Clean | Write::FailedUntil(_) => {
                let Some(saved) = self.book.save(self.settings.boot) else { return };
                self.grants_write = Write::Running;
                self.effects.push_back(Effect::PersistGrants(Box::new(saved)));
            }
            Write::Running | Write::RunningAndDirty => self.grants_write = Write::RunningAndDirty,
        }
    }

    fn draw_nonce(&mut self, now: Now) -> Nonce {
        let mut bytes = [0; 16];
        self.entropy.fill(&mut bytes);
        let nonce = Nonce::from_bytes(bytes);
        if let Some(verifier) = &mut self.verifier {
            verifier.remember_nonce(nonce, now.monotonic);
        }
        nonce
    }

    fn rotate_if_due(&mut self, now: Now) {
        let live = matches!(self.stream, Stream::Live(_));
        let due = self.identity.keyring.rotation_due(self.settings.rotation, now) == Some(Duration::ZERO);
        if live && due {
            let mut secret = Zeroizing::new([0; 32]);
            self.entropy.fill(&mut *secret);
            self.identity.keyring.propose(WireGuardPrivateKey::from_bytes(*secret), now.wall);
            self.after_identity.push(AfterIdentity::OfferNewestKey);
            self.write_identity();
        }
    }

    fn offer_newest_key(&mut self) {
        self.effects.push_back(Effect::SetLocalKeys(self.identity.keyring.private_keys()));
        if let (Stream::Live(_), Some(newest)) = (&self.stream, self.identity.keyring.keys().first()) {
            self.effects.push_back(Effect::Send(FromNode::RotateKey { key: newest.public }));
        }
    }
}

/// Entropy from a seed, for virtual time: the same seed draws the same bytes.
#[cfg(test)]
pub(crate) struct SeededEntropy(u64);

#[cfg(test)]
impl SeededEntropy {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1))
    }
}

#[cfg(test)]
impl Entropy for SeededEntropy {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            // splitmix64
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *byte = (z ^ (z >> 31)) as u8;
        }
    }
}
