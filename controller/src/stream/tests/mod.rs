//! The core among simulated nodes, in virtual time.
//!
//! `world` is the clock, the network and the store; `node` a small honest node that verifies what it is told with the
//! real verifier; the others are claims about them.

mod alarms;
mod behaviour;
mod break_glass;
mod browsers;
mod claims;
mod clock;
mod documents;
mod enrolling;
mod events;
mod events_meant;
mod explaining;
mod joining;
mod keys;
mod limits;
mod node;
mod overtaken;
mod places;
mod plans;
mod platform;
mod postures;
mod property;
mod provisioning;
mod quarantine;
mod requests;
mod restart;
mod restraints;
mod sessions;
mod speed;
mod step_up;
mod stock;
mod streams;
mod word;
mod world;
