//! Signals: what is learned of a subject or a device while a session lasts, and reaches every decision through its context.
//!
//! | module | holds |
//! | --- | --- |
//! | [`alerts`] | what a person should look at now: spooled, signed, delivered |
//! | [`place`] | where an outer address is |
//! | [`posture`] | what devices, and the systems that manage them, say of their state |
//! | [`provider`] | what the identity provider says of people after they signed in |

pub mod alerts;
pub mod place;
pub mod posture;
pub mod provider;
