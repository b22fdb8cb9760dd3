//! Signals: what is learned of a subject or a device while a session lasts, and reaches every decision through its context.
//!
//! | module | holds |
//! | --- | --- |
//! | [`alerts`] | what a person should look at now: spooled, signed, delivered |
//! | [`events`] | security events of other systems: CAEP by Shared Signals |
//! | [`jws`] | signed tokens, taken apart before anybody believes them |
//! | [`behaviour`] | how much subjects use, summed over nodes; who scans |
//! | [`habits`] | what services are known to do, and what is new |
//! | [`place`] | where an outer address is |
//! | [`posture`] | what devices, and the systems that manage them, say of their state |
//! | [`provider`] | what the identity provider says of people after they signed in |
//! | `refusals` | refused signals, counted, so that a flood of them does not fill the audit log |
//! | [`scim`] | people and groups that the identity provider provisions |

pub mod alerts;
pub mod behaviour;
pub mod events;
pub mod habits;
pub mod jws;
pub mod place;
pub mod posture;
pub mod provider;
pub(crate) mod refusals;
pub mod scim;
