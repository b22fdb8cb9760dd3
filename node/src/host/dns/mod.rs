//! Names for resources: a small resolver on a loopback address, and the machine's configuration that asks it.
//!
//! ```text
//! agent: grants -> Names (with deadlines) --ArcSwap--> server::Resolver
//! query --answer::answer(&Names, bytes, now)--> Reply   in our domain, or the reverse name of an overlay address
//!                                          --> Forward  anything else, byte for byte, to the machine's former servers --foreign--> their answer
//! setup::DnsSetup: systemd-resolved (`~internal` on the tunnel's link) or /etc/resolv.conf, repaired after a crash
//! ```
//!
//! Invariants: a name resolves only while this node's subject is entitled to the resource; every other name of the
//! domain does not exist (NXDOMAIN, the same whether there is such a resource or not), and is never asked of anybody
//! else. Everything is bounded: queries in flight, TCP connections, bytes, time.
//!
//! Threats: an upstream answer forged by somebody off the path (each forwarded query leaves from a socket of its own
//! with a random port and a random identifier); an upstream answer that leads into the overlay (`foreign`); a local program that floods the resolver (bounded, dropped, counted); a
//! node that dies while `resolv.conf` names its resolver (the former servers stand behind it there).
//!
//! Rejected: hickory-resolver for other people's names. It would validate, cache and retry in its own way, where the
//! machine's stub resolver and its servers already do so in theirs.

mod answer;
mod foreign;
pub mod fuzzing;
mod server;
pub mod setup;

pub use self::{
    answer::{Action, NameEntry, Names, Transport, answer},
    server::{Clock, Counters, Resolver, ResolverError},
};
