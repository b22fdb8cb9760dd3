//! What the node does to its machine: the guard, addresses and routes, names, and what it needs to be allowed to do so.
//!
//! ```text
//! up:    privileges::check -> guard::Guard::install -> net::HostNet::configure -> dns::setup::DnsSetup::install
//! while: watch::MachineChanges::changed, and every few seconds: Guard::ensure, HostNet::is_as_planned, DnsSetup::ensure
//! down:  DnsSetup::restore -> HostNet::remove -> Guard::remove
//! crash: the guard and the blackhole routes stay and keep the doors closed; `resolv.conf` is repaired at the next
//!        start or by `down`, and names still resolve meanwhile, because the former servers stand behind ours
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | [`guard`] | the nftables table that keeps overlay packets off every other interface, and can close the plain network |
//! | [`net`] | addresses, routes and blackholes of the tunnel; outer addresses of the machine and their changes |
//! | [`dns`] | names of resources, answered only while this node's subject is entitled to them |
//! | [`watch`] | when somebody may have taken something of that away |
//! | [`privileges`] | whether the machine lets us |
//!
//! Everything that changes the machine is idempotent and knows its own marks (a table name, a route protocol number, a
//! marker file), so that a node that starts after a crash finds and replaces what the former one left behind.

pub mod dns;
pub mod guard;
pub mod net;
pub mod privileges;
pub mod watch;
