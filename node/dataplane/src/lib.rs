//! Postern's policy enforcement point: a sans-IO WireGuard data plane that judges every flow.
//!
//! ```text
//! TUN frame ─> handle_tun ─> packet::view ─> whose destination ─> enforce: verdict ─Permit─> split ─> seal ─> UdpBatch
//! datagram ─> handle_udp ─> wireguard: open ─> Authenticated ─> enforce: verdict ─Permit─> TunBatch (joins) ─> TUN
//! VerifiedGrants ─> apply ─> peers, pairs of keys, compiled rules; flows that may not go on are cut
//! time ─> handle_timeout ─> deadlines, silence, handshakes, keepalives
//! ```
//!
//! [`DataPlane`] takes bytes and [`Now`](postern_common::time::Now) and gives bytes and effects: no socket, no file,
//! no runtime, no clock; only the randomness of handshakes comes from the system, and simulations use
//! [`wireguard::simulated`] there. It runs without root, in tests and under fuzzers, in virtual time.
//!
//! Invariants, each with tests that go red without it: nothing passes that no live grant names; a key that no live
//! grant names is answered nothing; nothing outlives its grant, established or idle, in either direction; a packet
//! belongs to whom the session that opened it and the source address both name; every drop is counted under a closed
//! reason. Everything is bounded: see [`Settings`].
//!
//! | module | holds |
//! | --- | --- |
//! | [`packet`] | bytes: views, fragments, answers, cutting and joining, batches |
//! | [`wireguard`] | tunnels, sessions, endpoints, packets that wait for a handshake |
//! | `enforce` | rules, flow table, verdicts, records |
//! | [`pipeline`] | the way of a packet through the other three |
#![forbid(unsafe_code)]

mod counters;
mod enforce;
pub mod packet;
pub mod pipeline;
mod settings;
mod status;
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, reason = "what is made here is right, or the test is wrong")]
mod testing;
pub mod wireguard;

pub use counters::{Counters, Direction, DropReason};
pub use pipeline::{DataPlane, Intake, Out, Released, Sealing};
pub use settings::{Ceiling, LocalRefusal, Settings, Ways};
pub use status::{
    Applied, Behaviour, FlowStatus, InboundFlows, LocalExplanation, LocalVerdict, PeerStatus, PermissionStatus,
    PlaneEvent, WhoIs,
};
