//! SCIM 2.0 (RFC 7643, RFC 7644): an identity provider provisions and, above all, deprovisions people and groups.
//!
//! ```text
//! HTTP --http--> bearer token --core: scim_client--> ScimClient (one provider)
//!      --request::parse--> Command (pure: path, filter, patch, value against schema)
//!      --core: scim--> directory::Realm::run --> Done {what is durable, whom it concerns, answer}
//!                  --> the people concerned: doors closed, or decided anew --render--> JSON
//! ```
//!
//! Invariants:
//! - **One provider.** A client has the realm of its token's provider, and no way to name anything else. Local accounts are in no
//!   realm: their issuer is the controller itself.
//! - **Durable before answered**, and all or nothing: directory, effects and audit record are one transaction.
//! - **Deactivation closes, reactivation opens nothing.** `active: false` and DELETE end sessions, leases, approvals and openings at
//!   once and refuse sign-in; afterwards somebody has to sign in and ask again. Who was taken away stays out until provisioned anew.
//! - **Nothing unknown is answered with success.** An attribute, operator, path, operation or parameter that is not known is
//!   refused, with SCIM's own kind of error.
//! - **The order of things holds**: who is out does not come in by what a request leaves out (`active`, `externalId`).
//!
//! Threats: a stolen token (bound to networks, expires, can be taken back; can deactivate and regroup the people of one provider,
//! never make a session); two people under one name (`userName`, `externalId` and a group's `displayName` are unique here, whatever
//! the provider thinks); an e-mail address that somebody else gets (never a key: see [`settings`]); floods (limits before anything is
//! read, refusals counted in one record); huge groups (bounded, one statement for all members, decisions in small portions).
//!
//! Rejected: keeping only what Postern needs of a user. Providers compare what they read with what they wrote, and would write it
//! again for ever.
//!
//! | module | holds |
//! | --- | --- |
//! | [`http`] | the endpoints: limits, token, body, answer |
//! | [`settings`] | `[oidc.scim]`: by which name people are found, whose groups count |
//! | `request` | from HTTP to a command |
//! | `schema`, `value` | which attributes there are; values in their canonical form |
//! | `filter`, `path`, `patch` | what lists want; what PATCH changes |
//! | `directory`, `service` | people and groups of a provider; what a command does to them |
//! | `render`, `refusal` | answers and errors |
//!
//! The effects on people are in [`crate::stream`] (`provisioning`).

pub(crate) mod directory;
mod filter;
pub mod fuzzing;
pub mod http;
mod patch;
mod path;
mod refusal;
mod render;
mod request;
mod schema;
mod service;
pub mod settings;
#[cfg(test)]
mod tests;
mod value;

pub use directory::{Answer, Counts};
pub use refusal::{Refusal, ScimType};
pub use render::Rendered;
#[cfg(test)]
pub(crate) use request::leaver;
pub use request::{Command, Request, parse};
pub(crate) use service::{Moment, described};
