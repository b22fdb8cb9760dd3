//! The core of the controller: what every node is told, and when. Sans-IO.
//!
//! ```text
//! shell: connect, receive, disconnect, observe_probe ---\
//! pages: confirm_join, portal, export ------------------ +--> Core --poll_effect--> Effect::{Store, Audit, Send, Close}
//! administration: apply_policy, revoke, approve -------- +      `--poll_timeout--> when to call handle_timeout
//! clock: handle_timeout -------------------------------- /
//! ```
mod api;
mod core;

pub use api::*;

pub use self::core::{Core, restored};
