//! The core of the controller: what every node is told, and when. Sans-IO.
//!
//! ```text
//! shell: connect, receive, disconnect, observe_probe ----\
//! pages: confirm_join, portal, export --------------------+--> Core --poll_effect--> Effect::{Store, Audit, Send, Close}
//! administration: apply_policy, revoke, approve, ... -----+      `--poll_timeout--> when to call handle_timeout
//! clock: handle_timeout ----------------------------------/
//!
//! a lease, from sign-in to a packet's permit:
//!   joins: confirm -> login session -> leases: decide (policy) -> set_edge -> peering: wanted, pair of keys
//!   -> flush: the destination's document -> Enforced -> peering: acknowledged -> flush: the source's document
//! ```
//!
//! Invariants:
//! - **Durable before told.** Whatever a message rests on was queued for the store and the audit log before it.
//! - **Opening**: a source is told of a destination only what that destination has acknowledged ([`peering`]).
//!   **Closing**: destinations are told first, the last of a chain before the others, and no window holds a closing document
//!   back.
//! - **A node is told a function of the newest state**, computed when it has room. Nothing queues for a slow node.
//! - **A change touches those whom it concerns**: one device's decision, and the nodes that the index names for it.
//! - **Bounded**: streams, pending joins, devices of a person, keys of a device, unacknowledged documents, remembered
//!   revocations; each constant stands in the module that enforces it.
//!
//! Threats: a node that lies about itself (it can harm only its own doors: every claim it makes is about its own keys,
//! addresses and acknowledgements); a stranger's flood (limits by address, bounded greetings); a replayed or stolen
//! stream (fresh challenge, device key); an old backup (epoch).
//!
//! Rejected: recomputing the whole map for every change and sending what differs. It is simpler, and costs everybody's
//! work for one sign-in; the tests compare with exactly that recomputation instead.
//!
//! | module | holds |
//! | --- | --- |
//! | `api` | configuration, effects, errors, views |
//! | `core` | the state, its start and clock, login sessions, the index of places |
//! | `registry` | durable records and their indexes |
//! | `greeting` | streams: challenge, hello, messages, outer addresses, ends |
//! | `joins`, `enrol`, `platform`, `shown` | machines that join: by a person, with an enrolment token, with a token of their platform |
//! | `leases` | deciding, renewing, ending; edges between devices; restart |
//! | `peering`, `keys` | two devices that may meet; pairs of keys and their rotation |
//! | `node`, `flush` | what one node was told and acknowledged; documents |
//! | `step_up` | stronger or fresher proof of sign-in for a session that is open |
//! | `revocation` | cutting everywhere, with progress |
//! | `requests` | access for a time, on request |
//! | `alarms`, `habits` | what alerts are raised for; what is new of a service, keys that are too old |
//! | `stale` | what nobody uses |
//! | `events` | what security events of other systems change |
//! | `event_streams` | when streams of them were heard, and their silence |
//! | `browsers` | a browser's login session goes with the machine that it let in |
//! | `credentials` | passwords and second factors that were set anew, passkeys that were copied |
//! | `overtaken` | the door behind them: sign-ins from before that were under way |
//! | `break_glass` | access past the rules, loud and short |
//! | `speed` | how fast what is closed is closed |
//! | `quarantine` | nothing in and nothing out, until it is released |
//! | `behaviour` | limits: what nodes tell, what follows |
//! | `restraint` | challenge, restrict, terminate: less than quarantine |
//! | `posture` | reports of posture: heard, asked for, imported; who is decided anew for them |
//! | `plan` | what another policy would change, and which live flows it would cut |
//! | `admin`, `list`, `explain`, `portal`, `stock` | what people ask |
//! | `provisioning` | what SCIM does to people |
//! | `limits`, `timers`, `outbox` | small parts |

mod admin;
mod alarms;
mod api;
mod behaviour;
mod break_glass;
mod browsers;
mod clock;
mod core;
mod credentials;
mod enrol;
mod event_streams;
mod events;
mod explain;
mod flush;
mod greeting;
mod habits;
mod joins;
mod keys;
mod leases;
mod limits;
mod list;
mod node;
mod openings;
mod outbox;
mod overtaken;
mod peering;
mod plan;
mod platform;
mod portal;
mod posture;
mod provisioning;
mod quarantine;
mod registry;
mod requests;
mod restraint;
mod revocation;
mod shown;
mod speed;
mod stale;
mod step_up;
mod stock;
mod timers;
mod views;

pub use api::*;

pub use self::{
    clock::ClockView,
    core::{Core, restored},
    events::{Counted, TakenEvent},
    limits::Stranger,
    provisioning::{ScimClient, ScimClosed, ScimClosedPerson, ScimGroupView, ScimPersonView, ScimView},
    requests::{Decider, Decision},
    restraint::SignalResponse,
    speed::{BUCKETS_MS, SpeedView},
};

#[cfg(test)]
mod tests;
