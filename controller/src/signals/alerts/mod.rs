//! Alerts: what a person should look at now.
//!
//! ```text
//! core: Effect::Store(PutAlert) --same transaction as the change itself--> table `alerts` (the spool)
//!   --every second, and at once when something is there--> JSON log, webhook --delivered--> out of the spool
//! ```
//!
//! Invariants:
//! - An alert is durable with the event that caused it: a crash between the two is not possible.
//! - At least once, in order: what was not acknowledged (2xx) is sent again, with growing waits, also after a restart. A receiver
//!   knows repetitions by `id` and gaps by `sequence`.
//! - **Bounded**: at most [`spool::MAX_SPOOLED`] wait; the oldest are dropped, and the next delivered alert says how many
//!   (`dropped_before`).
//! - Every request is signed with its time ([`webhook::signature`]): a receiver refuses forged and old ones.
//!
//! Threats: whoever can cause alerts floods the receiver (each cause has its own limit, one alert is sent at a time); the
//! webhook's answer leads elsewhere (redirects are not followed); the secret is guessed from a signature (HMAC-SHA-256 under a
//! file of at least 16 bytes).
//!
//! Rejected: sending from the core's turn. A slow receiver would hold up revocations.

use postern_common::{
    id::{DeviceId, ResourceName, SubjectId},
    time::WallTime,
};
use serde::{Deserialize, Serialize};

pub mod settings;
pub mod spool;
pub mod webhook;

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertKind {
    /// A subject tries many destinations that it may not reach.
    Scan,
    /// A node refuses many packets within a minute.
    DenyBurst,
    /// A subject moves more than its rule's limit.
    Volume,
    /// A subject opens more connections than its rule's limit.
    Rate,
    /// A subject or device speaks from a place never seen.
    NewPlace,
    /// A subject or device is used again that was not for long.
    DormantAwake,
    /// Somebody or something came into quarantine, or was released.
    Quarantine,
    /// An administrator restrained somebody or something, or released it.
    Restrained,
    /// Somebody opened something past the rules.
    BreakGlass,
    /// A stream of signals that should speak is silent.
    StreamSilent,
    /// A provider that provisions people (SCIM) is silent, comes in vain, or is refused that somebody goes out.
    Provisioning,
    /// A platform's token was shown by a second machine.
    TokenReplayed,
    /// A machine has not changed its WireGuard key in time.
    KeyOverdue,
    /// A service speaks from a kind of machine never seen of it, or signs in another way.
    NewKind,
    /// A service uses something that it never used.
    FirstUse,
    /// Somebody or something has set the controller's clock.
    ClockSet,
    /// There may be two of a passkey: its counter went back.
    PasskeyCopied,
}

/// One alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// 32 hexadecimal digits, the same in every repetition.
    pub id: String,
    /// What kind.
    pub kind: AlertKind,
    /// When it happened.
    pub at: WallTime,
    /// What happened, for people, in one line.
    pub text: String,
    /// The subject concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<SubjectId>,
    /// The device concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// The resource concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<ResourceName>,
}

/// Whom and what an alert is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct About {
    /// The subject concerned.
    pub subject: Option<SubjectId>,
    /// The device concerned.
    pub device: Option<DeviceId>,
    /// The resource concerned.
    pub resource: Option<ResourceName>,
}
