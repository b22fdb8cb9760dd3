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
//! | `posture` | what the machine says of its state: when it is signed and sent |
//! | `words` | commands, effects, notices, phases |
//! | `commands` | what each command does |
//! | `step_up` | resources that want stronger or fresher proof of sign-in |
//! | `platform` | a service that signs in with a token of its platform |
//! | `uses` | what peers used here for the first time |
//! | `farewell` | a sign-out that is told and confirmed |
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
mod commands;
mod entropy;
mod farewell;
pub mod identity;
pub mod keyring;
mod overlay;
mod platform;
mod posture;
mod rotation;
mod step_up;
mod stream;
mod uses;
mod words;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use ipnet::IpNet;
use postern_common::{
    grant::{GrantVerifier, Position, SavedGrants},
    id::{BootId, Nonce},
    key::WireGuardPrivateKey,
    limit::{Scan, Usage},
    protocol::{AccessRequest, FlowGroup, FromNode, MAX_ENDPOINTS, MAX_SCANS, MAX_USAGES, MachineKind},
    time::{Monotonic, Now, WallTime},
};
use zeroize::Zeroizing;

pub use self::entropy::Entropy;
#[cfg(test)]
pub(crate) use self::entropy::SeededEntropy;
pub use self::platform::PlatformSettings;
pub use self::step_up::{PendingStepUp, QUIET};
pub use self::words::{Command, Effect, Notice, Persisted, Phase, ProbeOrder, Retry};
use self::{
    backoff::Backoff,
    book::Book,
    identity::{DeviceSeed, Identity, Login, Wanted},
    posture::Posture,
    stream::{Purpose, Stream},
};
use crate::agent::target::ControllerTarget;

/// How often the node draws a new nonce while it is connected.
pub const FRESHEN_INTERVAL: Duration = Duration::from_secs(120);
/// How long a question to the controller may stay open.
pub const EXPLAIN_PATIENCE: Duration = Duration::from_secs(5);
/// How many questions may be open.
pub const MAX_OPEN_QUESTIONS: usize = 64;
/// How many may be open for one more explanation, which every local user may ask for: the other places are for requests of
/// those who may change things.
pub const MAX_OPEN_EXPLANATIONS: usize = 48;
/// How many refused packets within a minute the controller is told of, and how seldom.
const REFUSALS_BURST: u64 = 100;
const REFUSALS_APART: Duration = Duration::from_secs(300);
const MAX_CUTS: usize = 64;
const PERSIST_RETRY: Duration = Duration::from_secs(5);
const ENDPOINT_SPACING: Duration = Duration::from_secs(1);

/// What the core is told once.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a WireGuard key is the newest.
    pub rotation: Duration,
    /// The boot of the machine.
    pub boot: BootId,
    /// The UDP port of the WireGuard socket.
    pub listen_port: u16,
    /// The address space in which the overlay may lie, by the owner of the machine.
    pub overlay_within: Vec<IpNet>,
    /// The version of this software.
    pub version: String,
    /// What kind of machine this is.
    pub machine: MachineKind,
    /// The platform whose tokens this machine signs in with.
    pub platform: Option<PlatformSettings>,
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
    /// What compiling cut since the last acknowledgement, for the controller; at most [`MAX_CUTS`] documents.
    cuts: VecDeque<(Position, u64)>,
    grants_write: Write,
    identity_write: Write,
    after_identity: Vec<AfterIdentity>,
    endpoints: Vec<SocketAddr>,
    endpoints_due: Option<Monotonic>,
    endpoints_sent: Option<Monotonic>,
    questions: BTreeMap<u64, Monotonic>,
    /// Another link to the same controller, taken over once it proved good.
    trial: Option<ControllerTarget>,
    effects: VecDeque<Effect>,
    refused_documents: u64,
    step_ups: step_up::StepUps,
    /// What this machine's subject has asked for here, as the controller last told.
    requests: Vec<AccessRequest>,
    /// When the controller was last told of a burst of refusals.
    refusals_told: Option<Monotonic>,
    /// Scans that were noticed without a stream; at most [`MAX_SCANS`].
    scans_untold: Vec<Scan>,
    /// Where the controller last saw this node's WireGuard socket.
    observed: Option<SocketAddr>,
    posture: Posture,
    platform: platform::Platform,
    uses: uses::Uses,
    /// The oldest that a WireGuard key may get, as the controller says.
    key_within: Option<Duration>,
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
    /// Tell who asked for `down` or `logout` that it is so for good.
    Settle,
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
            farewell: None,
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
            cuts: VecDeque::new(),
            grants_write: Write::Clean,
            identity_write: Write::Clean,
            after_identity: Vec::new(),
            endpoints: Vec::new(),
            endpoints_due: None,
            endpoints_sent: None,
            questions: BTreeMap::new(),
            trial: None,
            effects: VecDeque::new(),
            refused_documents: 0,
            step_ups: step_up::StepUps::default(),
            requests: Vec::new(),
            refusals_told: None,
            scans_untold: vec![],
            observed: None,
            posture: Posture::default(),
            platform: platform::Platform::default(),
            uses: uses::Uses::default(),
            key_within: None,
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
        let saved = saved.filter(|saved| {
            let (own, bound) = (&saved.own, &self.settings.overlay_within);
            let beyond = overlay::places(bound, Some(own), &own.overlay, &saved.peers).err();
            self.last_error = beyond.map(|beyond| beyond.to_string());
            self.last_error.is_none()
        });
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
        if self.keep_overlay() {
            self.write_identity();
        }
        if resumed.is_err() {
            self.effects.push_back(Effect::CloseDoors);
        }
        self.offline_since = Some(now.wall);
        self.resume_platform(now);
        self.connect_if_wanted(now);
        resumed
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
                        AfterIdentity::Settle => self.effects.push_back(Effect::Settled(Ok(()))),
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
        let settling = self.after_identity.len();
        self.after_identity.retain(|after| !matches!(after, AfterIdentity::Settle));
        if self.after_identity.len() < settling {
            self.effects.push_back(Effect::Settled(Err(error.to_owned())));
        }
        if !self.after_identity.is_empty() {
            let waits_for_nobody = self.settings.platform.is_some();
            let join = |after: &AfterIdentity| matches!(after, AfterIdentity::Connect(Purpose::Join(_)));
            self.after_identity.retain(|after| waits_for_nobody || !join(after));
            self.notify(Notice::Failed { message: error.to_owned() });
        }
    }

    /// Takes note that the data plane enforces everything up to `position`, and that doing so cut so many flows that peers
    /// had opened.
    pub fn handle_compiled(&mut self, position: Position, cut: u64) {
        if cut > 0 {
            if self.cuts.len() == MAX_CUTS {
                self.cuts.pop_front(); // the controller cannot have so many documents on their way
            }
            self.cuts.push_back((position, cut));
        }
        self.compiled = self.compiled.max(Some(position));
        self.acknowledge();
    }

    /// Passes on how many live flows peers have opened, as [`Effect::CountFlows`] asked.
    pub fn handle_flows(&mut self, question: u64, groups: Vec<FlowGroup>, unlisted: u64) {
        if let Stream::Live(_) = self.stream {
            self.effects.push_back(Effect::Send(FromNode::LiveFlows { id: question, groups, unlisted }));
        }
    }

    /// Tells the controller of a burst of refused packets, once in a while: `refused` within the last minute.
    pub fn handle_refusals(&mut self, refused: u64, now: Now) {
        let lately = self.refusals_told.is_some_and(|told| now.monotonic.since(told) < REFUSALS_APART);
        if refused < REFUSALS_BURST || lately {
            return;
        }
        if let Stream::Live(_) = self.stream {
            self.refusals_told = Some(now.monotonic);
            self.effects.push_back(Effect::Send(FromNode::Refusals { refused }));
        }
    }

    /// Tells the controller how much of what is limited was used here since this start (`process`) of the data plane, and who scans.
    /// Usage that nobody hears, and `refused` destinations that are no scan here, are said again with the next; a scan waits for the
    /// next stream.
    pub fn handle_behaviour(&mut self, process: u64, usages: Vec<Usage>, scans: Vec<Scan>, refused: Vec<Scan>) {
        for scan in scans {
            if self.scans_untold.len() < MAX_SCANS && !self.scans_untold.contains(&scan) {
                self.scans_untold.push(scan);
            }
        }
        let Stream::Live(_) = self.stream else { return };
        let mut scans = std::mem::take(&mut self.scans_untold);
        scans.extend(refused);
        scans.truncate(MAX_SCANS);
        let mut usages = usages.into_iter().peekable();
        while usages.peek().is_some() || !scans.is_empty() {
            let usages = usages.by_ref().take(MAX_USAGES).collect();
            let scans = std::mem::take(&mut scans);
            self.effects.push_back(Effect::Send(FromNode::Behaviour { process, usages, scans }));
        }
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

    /// Returns what this machine's subject has asked for here, as the controller last told.
    pub fn requests(&self) -> &[AccessRequest] {
        &self.requests
    }

    /// Changes how long a WireGuard key is the newest.
    pub fn set_rotation(&mut self, rotation: Duration) {
        self.settings.rotation = rotation;
    }

    /// Changes the address space in which the overlay may lie: for whatever the controller says from now on.
    pub fn set_overlay_within(&mut self, bound: Vec<IpNet>) {
        self.settings.overlay_within = bound;
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
        self.posture_timeout(now);
        self.platform_timeout(now);
        self.uses_timeout(now);
        self.step_ups_timeout(now);
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
                .rotation_due(self.rotation(), now)
                .map(|after| now.monotonic.saturating_add(after)),
            Stream::Resting { .. }
            | Stream::Connecting { .. }
            | Stream::Greeting { .. }
            | Stream::Joining { .. }
            | Stream::Leaving { .. } => None,
        };
        [
            failed(self.identity_write),
            failed(self.grants_write),
            self.questions.values().min().copied(),
            self.endpoints_due,
            rotation,
            self.posture_due(),
            self.platform_due(),
            self.uses_due(),
            self.step_ups.due(),
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

    /// Returns where the controller saw this node's WireGuard socket, if it said so on the present or last stream.
    pub const fn observed(&self) -> Option<SocketAddr> {
        self.observed
    }

    /// Tells whether a join is under way.
    pub fn is_joining(&self) -> bool {
        let waits = |after: &AfterIdentity| matches!(after, AfterIdentity::Connect(Purpose::Join(_)));
        self.stream.is_join() || self.after_identity.iter().any(waits)
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
            Stream::Resting { .. }
            | Stream::Connecting { .. }
            | Stream::Greeting { .. }
            | Stream::Joining { .. }
            | Stream::Leaving { .. } => Phase::Offline { since: self.offline_since, error: self.last_error.clone() },
        }
    }

    fn notify(&mut self, notice: Notice) {
        self.effects.push_back(Effect::Notify(notice));
    }

    /// Closes every door and forgets what was told; the verifier keeps its position, so that nothing old opens them again.
    fn shut(&mut self) {
        self.book.clear();
        (self.durable, self.compiled, self.acknowledged) = (None, None, None);
        self.cuts.clear();
        self.fail_step_ups("every door of this machine was closed: `postern status` tells why");
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
}
