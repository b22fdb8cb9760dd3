//! Machines, networks, programs in them, and what went over the wire.

pub mod binaries;
pub mod capture;
pub mod host;
pub mod link;
pub mod network;
pub mod process;
pub mod topology;
pub mod wait;
