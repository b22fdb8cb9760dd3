//! Postern's policy enforcement point: a sans-IO WireGuard data plane that judges every flow.
#![forbid(unsafe_code)]

pub mod enforce;
pub mod packet;
pub mod pipeline;
pub mod wireguard;
