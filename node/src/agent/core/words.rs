//! What goes in and comes out: commands, effects, notices, phases.

use postern_common::{
    grant::{Position, SavedGrants, VerifiedGrants},
    id::{DeviceId, MachineName, Nonce, ResourceName},
    key::WireGuardPrivateKey,
    net::Service,
    probe::ProbeKey,
    protocol::{AccessRequest, Explanation, FromNode},
    time::WallTime,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::identity::Identity;
use crate::agent::target::ControllerTarget;

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
    /// The person wants to prove their sign-in anew for a resource.
    StepUp {
        /// Who asks: answered with [`Effect::StepUp`].
        client: u64,
        /// The resource.
        resource: ResourceName,
    },
    /// The client that asked for [`Command::StepUp`] went away.
    AbandonStepUp {
        /// Who asked.
        client: u64,
    },
    /// Ask the controller why something may or may not be reached.
    Explain {
        /// Comes back with the answer.
        question: u64,
        /// A resource name, machine name or overlay address.
        to: String,
        /// What is asked about.
        service: Option<Service>,
    },
    /// Ask for access for a time.
    RequestAccess {
        /// Comes back with the answer.
        question: u64,
        /// The resource.
        resource: String,
        /// For how long, milliseconds.
        length_ms: u64,
        /// Why.
        reason: String,
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
    /// Take the tunnel, guard and names away: `down`. Whoever asked is answered after [`Effect::Settled`].
    HostDown,
    /// What `down` or `logout` changed is durable, or why it is not.
    Settled(Result<(), String>),
    /// Send probes from the WireGuard socket to this port of the controller.
    Probe(ProbeOrder),
    /// Count live flows that these peers have opened to this node; answer with `handle_flows`.
    CountFlows {
        /// Comes back with the answer.
        question: u64,
        /// The peers.
        peers: Vec<DeviceId>,
    },
    /// Read a token of the platform; answer with `handle_platform_token`.
    ReadPlatformToken,
    /// Look at the machine's posture; answer with `handle_posture`.
    LookAtPosture,
    /// Send probes no more.
    StopProbes,
    /// Tell local clients.
    Notify(Notice),
    /// Tell one client that asked for a step-up; [`Notice::SteppedUp`] and [`Notice::StepUpFailed`] are the last.
    StepUp {
        /// Who asked.
        client: u64,
        /// What there is.
        notice: Notice,
    },
    /// Answer a client that asked for access.
    AccessRequested {
        /// The question.
        question: u64,
        /// The request that waits now, or why there is none.
        answer: Result<AccessRequest, String>,
    },
    /// What became of requests for access has changed: [`super::Core::requests`].
    RequestsChanged,
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
    /// A resource wants stronger or fresher proof of sign-in: the person can give it on that page.
    StepUp {
        /// The resource.
        resource: ResourceName,
        /// What is asked: `MFA within 15 min`.
        demand: String,
        /// The page.
        url: String,
        /// When it works no more.
        expires: WallTime,
    },
    /// The resource is open.
    SteppedUp {
        /// The resource.
        resource: ResourceName,
    },
    /// There is no page for a step-up.
    StepUpFailed {
        /// The resource.
        resource: ResourceName,
        /// Why, and what to do.
        message: String,
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

/// Whether a failure may mend by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// With growing waits.
    Soon,
    /// Only somebody's action mends it: a wrong certificate, a refusal.
    Slowly,
}
