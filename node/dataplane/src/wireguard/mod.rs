//! Tunnels: WireGuard sessions with peers.
//!
//! Being written.

/// The seam.
pub trait Tunnels {}
/// WireGuard.
#[derive(Debug, Default)]
pub struct WireGuard {}
impl Tunnels for WireGuard {}
