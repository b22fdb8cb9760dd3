//! Which way to a peer: the one seam for choosing outer addresses.
//!
//! At present the choice is simple. The controller lists candidates, best first; the data plane tries them in order until a
//! handshake succeeds and roams to wherever an authenticated datagram came from. What is chosen here is the rest of the
//! path: which local address answers ([`Sources`]) and how long an inner packet may be. NAT traversal with ICE
//! and a relay will come in here, as further candidates and as a wrapper around sending.
//!
//! How long: the tunnel's interface takes what the machine's own links take ([`inner_mtu`]). What a single path takes less is
//! learnt from the kernel ([`path_mtu`]), which hears ICMP 'fragmentation needed' about the outer datagrams and keeps it
//! for ten minutes; the data plane then tells local programs (`docs/decisions/0007-path-mtu.md`).

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
};

use super::sys;

/// Remote addresses whose local address is remembered; the oldest is forgotten.
pub const MAX_SOURCES: usize = 4_096;

/// The inner MTU unless the underlay is narrower: 1,500 bytes less 80 for IPv6, UDP and WireGuard.
pub const DEFAULT_INNER_MTU: u16 = 1_420;
/// The least inner MTU: IPv6 allows no less (RFC 8200 §5). Over a narrower underlay the outer datagrams are fragmented.
pub const LEAST_INNER_MTU: u16 = 1_280;
/// UDP header, WireGuard header and tag.
const TUNNEL: u16 = 8 + 32;
/// The same with the longer outer header, IPv6's.
const OVERHEAD: u16 = 40 + TUNNEL;

/// Returns the inner MTU for the narrowest underlay interface's MTU.
pub const fn inner_mtu(outer: u16) -> u16 {
    let inner = outer.saturating_sub(OVERHEAD);
    if inner < LEAST_INNER_MTU {
        LEAST_INNER_MTU
    } else if inner > DEFAULT_INNER_MTU {
        DEFAULT_INNER_MTU
    } else {
        inner
    }
}

/// Returns the longest inner packet, in bytes, that leaves for `peer` in one datagram, as far as the kernel knows: it
/// asks the route, with what the kernel has learnt of the path. Sends nothing.
///
/// # Errors
/// What the kernel says: there is no route, or no such family.
pub fn path_mtu(peer: SocketAddr) -> io::Result<u16> {
    let (any, level, name, header): (IpAddr, _, _, u16) = match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), libc::IPPROTO_IP, libc::IP_MTU, 20),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), libc::IPPROTO_IPV6, libc::IPV6_MTU, 40),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(peer)?;
    let outer = sys::option(socket.as_fd(), level, name)?;
    let outer = u16::try_from(outer).unwrap_or(u16::MAX); // loopback's MTU is greater
    Ok(outer.saturating_sub(header + TUNNEL))
}

/// The local address to which each authenticated peer address talked last.
///
/// A host with several underlay interfaces would otherwise answer from the address that its routes prefer, and the peer's
/// firewall or NAT, which expects the address that it sent to, would drop the answer.
#[derive(Debug, Default)]
pub struct Sources {
    local: HashMap<SocketAddr, IpAddr>,
    order: VecDeque<SocketAddr>,
}

impl Sources {
    /// Remembers that an authenticated datagram from `remote` was sent to `local`.
    pub fn learn(&mut self, remote: SocketAddr, local: IpAddr) {
        if self.local.insert(remote, local).is_some() {
            return;
        }
        if self.order.len() == MAX_SOURCES
            && let Some(oldest) = self.order.pop_front()
        {
            self.local.remove(&oldest);
        }
        self.order.push_back(remote);
    }

    /// Returns the local address that answers `remote`.
    pub fn answer(&self, remote: &SocketAddr) -> Option<IpAddr> {
        self.local.get(remote).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inner_mtu_leaves_room_for_the_tunnel_and_never_falls_below_ipv6s_least() {
        assert_eq!(inner_mtu(1_500), 1_420);
        assert_eq!(inner_mtu(9_000), 1_420);
        assert_eq!(inner_mtu(1_400), 1_320);
        assert_eq!(inner_mtu(576), 1_280);
    }

    #[test]
    fn the_kernel_tells_what_a_path_takes() {
        // Loopback takes 65,536 bytes, in every namespace.
        assert_eq!(path_mtu("127.0.0.1:9".parse().unwrap()).unwrap(), 65_535 - 60);
        assert_eq!(path_mtu("[::1]:9".parse().unwrap()).unwrap(), 65_535 - 80);
    }

    #[test]
    fn sources_are_bounded_and_forget_the_oldest() {
        let mut sources = Sources::default();
        let remote = |n: usize| SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 51_820));
        for n in 0..=MAX_SOURCES {
            sources.learn(remote(n), IpAddr::from([192, 0, 2, 1]));
        }
        assert_eq!(sources.answer(&remote(0)), None);
        assert_eq!(sources.answer(&remote(MAX_SOURCES)), Some(IpAddr::from([192, 0, 2, 1])));
    }
}
