//! Running the controller: opening what it needs, in an order in which every failure is clear, and closing it again.
//!
//! ```text
//! config --> keys, certificate --> store (locked, checked) --> audit log --> policy --> actor
//!        --> TCP listeners (pages, streams) + UDP probes + administration socket --> READY=1
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | [`actor`] | the one task that owns the core |
//! | [`doors`] | what the pages ask of it |
//! | [`listener`] | TCP, TLS, HTTP, limits |
//! | [`node_stream`] | one node's WebSocket |
//! | [`proxy_protocol`] | who connects through a load balancer |
//! | [`tls`], [`files`], [`clock`] | certificates, files, clocks |
//!
//! What must hold: nothing is served before the store, the audit log and the policy are whole; a failure of the store or
//! the audit log ends the process with a clear error rather than going on with memory that the disk does not know.

pub mod actor;
pub mod clock;
pub mod doors;
pub mod files;
pub mod listener;
pub mod node_stream;
pub mod proxy_protocol;
mod start;
#[cfg(test)]
mod tests;
pub mod tls;

pub use start::{AtStart, Running, ServeError, parse_policy, start};
