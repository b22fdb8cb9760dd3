//! What devices say of themselves, and what device-management systems say of devices. Sans-IO.
//!
//! ```text
//! node: SignedPosture --PostureVerifier (of its stream)--> VerifiedPosture --.
//! posture import: JSON lines --import--> Attestation -------------------------|--> Book --evidence(now)--> decision::context
//! store: PostureRecord ------------------------------------------------------'     '--> PostureRecord, what changed
//! ```
//!
//! Invariants:
//! - Facts age on both clocks, and the older age counts: setting the controller's wall clock back makes nothing fresh, setting it
//!   forward makes things too old.
//! - A device-management system's word never gives way to an older one: an export from yesterday that is imported again changes
//!   nothing.
//! - A serial number is what an administrator bound to a device, never what the device says: a machine that claims a neighbour's
//!   serial gains nothing.
//!
//! Bounded: one record a device, facts within [`postern_common::posture::Facts::within_bounds`]; imports by the size of a
//! request of administration.

pub(crate) mod book;
pub(crate) mod import;

pub(crate) use book::{Book, Evidence};
pub use import::{Attestation, ImportError, Keyed, fuzz_import};
