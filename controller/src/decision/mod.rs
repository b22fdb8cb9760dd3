//! The policy decision point: who may reach what, now, until when (NIST SP 800-207 §3.1). Sans-IO.
//!
//! ```text
//! records + address + wall time --context--> RequestContext
//! RequestContext + Targets --Policy::entitlements--> entitlements         (the one evaluator, postern_common::policy)
//! entitlements + the lease before --lease::grant--> Granted, each with a deadline of its own
//! Granted --Lease::by_destination--> permissions of one device on each node that it may reach
//! what is wanted, what the destination has acknowledged --permissions::covered--> what the source may be told
//! ```
//!
//! Invariants:
//! - A permission ends at the earliest of: the rule's lease from the last renewal, `valid_until` of the decision, the
//!   end of the login session. Checking again never moves it later; only a renewal does.
//! - What is not decided is not granted: there is no default entitlement, and an error in a context is a missing fact,
//!   which satisfies every deny and no access.
//! - A decision about one device reads nothing of other devices but their names and tags ([`Targets`]). So a change of
//!   one login session decides that one again and nothing else.
//!
//! Rejected: deciding at the moment of a request (a callout from the node). It would put the controller on the packet
//! path, and every outage of it would cut or, worse, wave through.
//!
//! [`Targets`]: postern_common::policy::Targets

mod clock;
mod context;
mod lease;
mod permissions;

pub(crate) use clock::Clock;
pub(crate) use context::{Whence, context, hypothetical, policy_assurance};
pub(crate) use lease::{Extend, Granted, Lease, Terms, deadline, grant, held_before};
pub(crate) use permissions::{Permissions, covered, earliest, latest, live, loses, narrows};
