//! Answers that this node makes itself: TCP RST, ICMP 'administratively prohibited', ICMP 'packet too big'.
//!
//! An answer stands in for the host that was asked: its source is the refused packet's destination. Nothing is ever answered to
//! an ICMP error, to any ICMP message but an echo request, to a later fragment, or to a packet for many (RFC 1122 §3.2.2,
//! RFC 4443 §2.4 (e)), so that no answer begets another. Callers limit the rate.

use std::net::{IpAddr, Ipv4Addr};

use postern_common::net::FiveTuple;

use super::{
    checksum::Sum,
    split::write_ipv4_checksum,
    view::{EchoKind, ICMP, ICMPV6, Layout, PacketView, TCP, TcpFlags, Transport},
};

/// The longest answer in bytes: the minimum MTU of IPv6, which also bounds an ICMPv6 error (RFC 4443 §2.4 (c)).
pub const MAX_REPLY: usize = 1_280;
/// The longest ICMP error for IPv4 (RFC 1812 §4.3.2.3).
const MAX_ICMPV4: usize = 576;
const HOP_LIMIT: u8 = 64;

/// An answer as bytes, in a buffer of its own on the stack.
#[derive(Clone)]
pub struct Reply {
    bytes: [u8; MAX_REPLY],
    length: usize,
}

impl Reply {
    /// Returns the packet.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reply({} bytes)", self.length)
    }
}

/// Builds the answer to a packet that is refused with words: RST for TCP, 'administratively prohibited' for the rest.
/// `None` where silence is the only answer.
pub fn reject(view: &PacketView<'_>) -> Option<Reply> {
    match view.transport() {
        Transport::Tcp(_) => reset(view),
        Transport::Udp(_)
        | Transport::IcmpEcho { .. }
        | Transport::IcmpError(_)
        | Transport::OtherIcmp { .. }
        | Transport::LaterFragment(_)
        | Transport::Unsupported(_) => prohibited(view),
    }
}

/// Builds the RST that a closed port would answer (RFC 9293 §3.10.7.1). `None` for a segment that is an RST itself,
/// for a packet to many, and for other protocols.
pub fn reset(view: &PacketView<'_>) -> Option<Reply> {
    let Transport::Tcp(tcp) = view.transport() else { return None };
    if tcp.flags.has(TcpFlags::RST) || !answerable(view) {
        return None;
    }
    let (sequence, acknowledgement, flags) = if tcp.flags.has(TcpFlags::ACK) {
        (tcp.acknowledgement, 0, TcpFlags::RST)
    } else {
        (0, tcp.sequence.wrapping_add(tcp.sequence_length()), TcpFlags::RST | TcpFlags::ACK)
    };
    let back = view.five_tuple()?.reversed();
    Some(tcp_segment(&back, sequence, acknowledgement, flags))
}

/// Builds the RST that ends a known flow at one of its ends. `from_to` is the direction of the RST itself; `sequence` is the next
/// that its receiver expects (RFC 5961 §3.2 accepts no other), `acknowledgement` what the receiver has sent.
pub fn reset_flow(from_to: &FiveTuple, sequence: u32, acknowledgement: u32) -> Reply {
    tcp_segment(from_to, sequence, acknowledgement, TcpFlags::RST | TcpFlags::ACK)
}

/// Builds a TCP keepalive probe of a known flow (RFC 9293 §3.8.4): empty, its `sequence` the last that the receiver has.
pub fn keepalive_probe(from_to: &FiveTuple, sequence: u32, acknowledgement: u32) -> Reply {
    tcp_segment(from_to, sequence, acknowledgement, TcpFlags::ACK)
}

/// Builds ICMP 'communication administratively prohibited': type 3 code 13 (RFC 1812 §5.2.7.1), ICMPv6 type 1 code 1
/// (RFC 4443 §3.1).
pub fn prohibited(view: &PacketView<'_>) -> Option<Reply> {
    match view.destination() {
        IpAddr::V4(_) => icmp_error(view, 3, 13, 0),
        IpAddr::V6(_) => icmp_error(view, 1, 1, 0),
    }
}

/// Builds ICMP 'fragmentation needed' (RFC 1191 §4) or ICMPv6 'packet too big' (RFC 4443 §3.2); `mtu` in bytes of the
/// inner packet.
pub fn too_big(view: &PacketView<'_>, mtu: u16) -> Option<Reply> {
    match view.destination() {
        IpAddr::V4(_) => icmp_error(view, 3, 4, u32::from(mtu)),
        IpAddr::V6(_) => icmp_error(view, 2, 0, u32::from(mtu)),
    }
}

fn answerable(layout: &Layout) -> bool {
    let one = match layout.destination() {
        IpAddr::V4(address) => !address.is_multicast() && address != Ipv4Addr::BROADCAST,
        IpAddr::V6(address) => !address.is_multicast(),
    };
    one && match layout.transport() {
        Transport::Tcp(_) | Transport::Udp(_) | Transport::Unsupported(_) => true,
        Transport::IcmpEcho { kind: EchoKind::Request, .. } => true,
        Transport::IcmpEcho { kind: EchoKind::Reply, .. }
        | Transport::IcmpError(_)
        | Transport::OtherIcmp { .. }
        | Transport::LaterFragment(_) => false,
    }
}

fn icmp_error(view: &PacketView<'_>, kind: u8, code: u8, word: u32) -> Option<Reply> {
    if !answerable(view) {
        return None;
    }
    let (protocol, limit) = if view.destination().is_ipv4() { (ICMP, MAX_ICMPV4) } else { (ICMPV6, MAX_REPLY) };
    let mut reply = Reply { bytes: [0; MAX_REPLY], length: 0 };
    let at = network_length(view.destination());
    let quote = view.bytes().len().min(limit - at - 8);
    reply.length = at + 8 + quote;
    let body = &mut reply.bytes[at..reply.length];
    body[0] = kind;
    body[1] = code;
    body[4..8].copy_from_slice(&word.to_be_bytes());
    body[8..].copy_from_slice(&view.bytes()[..quote]);
    let sum = match view.destination() {
        IpAddr::V4(_) => Sum::ZERO,
        IpAddr::V6(_) => Sum::ZERO.add_pseudo_header(view.destination(), view.source(), ICMPV6, body.len()),
    };
    let checksum = sum.add_bytes(body).finish();
    body[2..4].copy_from_slice(&checksum);
    write_network(&mut reply, view.destination(), view.source(), protocol);
    Some(reply)
}

fn tcp_segment(flow: &FiveTuple, sequence: u32, acknowledgement: u32, flags: u8) -> Reply {
    let at = network_length(flow.source);
    let mut reply = Reply { bytes: [0; MAX_REPLY], length: at + 20 };
    let segment = &mut reply.bytes[at..at + 20];
    segment[0..2].copy_from_slice(&flow.source_port.to_be_bytes());
    segment[2..4].copy_from_slice(&flow.destination_port.to_be_bytes());
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    segment[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = flags;
    let checksum = Sum::ZERO.add_pseudo_header(flow.source, flow.destination, TCP, 20).add_bytes(segment).finish();
    segment[16..18].copy_from_slice(&checksum);
    write_network(&mut reply, flow.source, flow.destination, TCP);
    reply
}

const fn network_length(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => 20,
        IpAddr::V6(_) => 40,
    }
}

fn write_network(reply: &mut Reply, source: IpAddr, destination: IpAddr, protocol: u8) {
    let length = reply.length;
    let header = &mut reply.bytes;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            header[0] = 0x45;
            header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            header[6] = 0x40; // DF: the identification means nothing
            header[8] = HOP_LIMIT;
            header[9] = protocol;
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            write_ipv4_checksum(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            header[0] = 0x60;
            header[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            header[6] = protocol;
            header[7] = HOP_LIMIT;
            header[8..24].copy_from_slice(&source.octets());
            header[24..40].copy_from_slice(&destination.octets());
        }
        // A 5-tuple has one family; an answer to none is not sent.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => reply.length = 0,
    }
}

#[cfg(test)]
#[path = "replies_tests.rs"]
mod tests;
