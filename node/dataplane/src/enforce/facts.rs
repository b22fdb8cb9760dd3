//! What the enforcement needs to know about a packet, as this node sees it: local end, remote end, and what it does.

use std::{
    hash::{Hash, Hasher},
    net::IpAddr,
};

use postern_common::{
    flow_record::Originator,
    net::{FiveTuple, Protocol},
    reason::DenyReason,
};

use crate::{
    counters::Direction,
    packet::view::{EchoKind, Layout, TcpView, Transport},
};

/// The peer's place in the tables of this data plane. It stands for the peer's device for as long as the device is a
/// peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PeerSlot(pub(crate) u32);

/// A flow's canonical key: the same for both directions.
///
/// An ICMP echo identifier is chosen by whoever asks, so both ends may choose the same one: there, the key says who
/// asks. For TCP and UDP `asker` is always [`Originator::Local`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowKey {
    pub(crate) peer: PeerSlot,
    pub(crate) protocol: Protocol,
    pub(crate) asker: Originator,
    pub(crate) local: IpAddr,
    pub(crate) remote: IpAddr,
    pub(crate) local_port: u16,
    pub(crate) remote_port: u16,
}

/// In one piece: field by field the hasher takes three times as many instructions.
impl Hash for FlowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut bytes = [0; 44];
        bytes[..4].copy_from_slice(&self.peer.0.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.local_port.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.remote_port.to_ne_bytes());
        for (place, address) in [(8, self.local), (24, self.remote)] {
            match address {
                IpAddr::V4(address) => bytes[place..place + 4].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => bytes[place..place + 16].copy_from_slice(&address.octets()),
            }
        }
        bytes[40] = match self.protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1,
            Protocol::Icmp => 2,
        };
        bytes[41] = u8::from(self.asker == Originator::Local);
        bytes[42] = u8::from(self.local.is_ipv4());
        state.write(&bytes);
    }
}

impl FlowKey {
    /// Returns the 5-tuple as the originator's first packet shows it.
    pub(crate) fn as_opened_by(&self, originator: Originator) -> FiveTuple {
        let local_first = FiveTuple {
            protocol: self.protocol,
            source: self.local,
            source_port: self.local_port,
            destination: self.remote,
            destination_port: self.remote_port,
        };
        match originator {
            Originator::Local => local_first,
            Originator::Peer => local_first.reversed(),
        }
    }

    /// Returns the port that a rule must name for `originator` to open this.
    pub(crate) fn service_port(&self, originator: Originator) -> u16 {
        match originator {
            Originator::Local => self.remote_port,
            Originator::Peer => self.local_port,
        }
    }

    fn new(peer: PeerSlot, tuple: &FiveTuple, direction: Direction, asker: Originator) -> Self {
        let FiveTuple { protocol, source, source_port, destination, destination_port } = *tuple;
        match direction {
            Direction::Outbound => Self {
                peer,
                protocol,
                asker,
                local: source,
                remote: destination,
                local_port: source_port,
                remote_port: destination_port,
            },
            Direction::Inbound => Self {
                peer,
                protocol,
                asker,
                local: destination,
                remote: source,
                local_port: destination_port,
                remote_port: source_port,
            },
        }
    }
}

/// What a packet does in its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// A TCP segment.
    Segment(TcpView),
    /// A datagram or an echo request: it may open a flow.
    Message,
    /// An echo reply: it may only answer.
    Answer,
    /// An ICMP error about a packet of the flow that went the other way.
    Error,
}

/// A packet with its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) key: FlowKey,
    pub(crate) direction: Direction,
    pub(crate) act: Act,
}

impl Facts {
    /// Reads the facts off a packet.
    ///
    /// # Errors
    /// [`DenyReason::UnsupportedProtocol`] for what no rule can name. A later fragment is the caller's business; here
    /// it is [`DenyReason::Unclassifiable`].
    pub(crate) fn read(peer: PeerSlot, layout: &Layout, direction: Direction) -> Result<Self, DenyReason> {
        let sender = match direction {
            Direction::Outbound => Originator::Local,
            Direction::Inbound => Originator::Peer,
        };
        let (act, asker) = match layout.transport() {
            Transport::Tcp(tcp) => (Act::Segment(*tcp), Originator::Local),
            Transport::Udp(_) => (Act::Message, Originator::Local),
            Transport::IcmpEcho { kind: EchoKind::Request, .. } => (Act::Message, sender),
            Transport::IcmpEcho { kind: EchoKind::Reply, .. } => (Act::Answer, other(sender)),
            Transport::IcmpError(error) => {
                // The quoted packet went the other way, and its sender asked if it is an echo request.
                let quoted_direction = match direction {
                    Direction::Outbound => Direction::Inbound,
                    Direction::Inbound => Direction::Outbound,
                };
                let asker = match error.quoted.protocol {
                    Protocol::Icmp => other(sender),
                    Protocol::Tcp | Protocol::Udp => Originator::Local,
                };
                let key = FlowKey::new(peer, &error.quoted, quoted_direction, asker);
                return Ok(Self { key, direction, act: Act::Error });
            }
            Transport::LaterFragment(_) => return Err(DenyReason::Unclassifiable),
            Transport::OtherIcmp { .. } | Transport::Unsupported(_) => return Err(DenyReason::UnsupportedProtocol),
        };
        let tuple = layout.five_tuple().ok_or(DenyReason::UnsupportedProtocol)?;
        Ok(Self { key: FlowKey::new(peer, &tuple, direction, asker), direction, act })
    }

    /// Returns who sent the packet.
    pub(crate) fn sender(&self) -> Originator {
        match self.direction {
            Direction::Outbound => Originator::Local,
            Direction::Inbound => Originator::Peer,
        }
    }
}

/// Returns the other end.
pub(crate) const fn other(end: Originator) -> Originator {
    match end {
        Originator::Local => Originator::Peer,
        Originator::Peer => Originator::Local,
    }
}
