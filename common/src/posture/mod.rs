//! What is required of a device, and what is known of it.
//!
//! ```text
//! device:      collectors -> Facts -> PostureDocument --sign_posture--> SignedPosture --stream--.
//! controller:  PostureVerifier::verify --> VerifiedPosture -> Report (facts, since when)  <------'
//! management:  attestation -> Report                        both -> Requirement::evaluate -> PostureVerdict
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | [`facts`] | what can be known of a device |
//! | [`requirement`] | what `[posture.NAME]` asks, and how far it is met |
//! | [`signed`] | the report as the device signs it and the controller verifies it |
//! | [`version`] | versions, distributions |
//!
//! Invariants:
//! - A fact that was not reported is not a fact that is false: it is *unknown*, and so is everything that is older than the
//!   requirement accepts. What is unknown meets no requirement.
//! - A report counts from when the device looked, not from when it arrived: who carries it can neither forge it, nor show it
//!   again, nor make it younger by holding it back.
//!
//! Threat: a device is the only witness of its own posture. A machine whose root is hostile can claim any fact, so posture
//! narrows what honest machines may do; it never widens what a rule's `from` gives. Where that is not enough a requirement takes
//! the word of a device-management system instead (`attested`).
//!
//! Rejected: a remote attestation by TPM quotes. It would prove what was booted and nothing of what is looked at here (a
//! firewall, updates, a lock), and it needs an inventory of good measurements that few who own machines have.

pub mod facts;
pub mod requirement;
pub mod signed;
pub mod version;
mod words;

pub use facts::{CheckResult, FactKind, Facts, OsKind, Report};
pub use requirement::{DEFAULT_ATTESTED_AGE, DEFAULT_MAX_AGE, Finding, MIN_MAX_AGE, PostureVerdict, Requirement};
pub use signed::{
    MAX_POSTURE_BYTES, PostureDocument, PostureRefusal, PostureVerifier, SignedPosture, VerifiedPosture, sign_posture,
};
pub use version::{Distribution, Version, VersionError};
