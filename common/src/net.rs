//! Protocols, ports, services and 5-tuples: one vocabulary for IPv4 and IPv6.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Returns the address space in which an overlay lies unless the owners of the machines say otherwise: unique local IPv6
/// (RFC 4193), and for IPv4 private (RFC 1918), shared (RFC 6598) and benchmarking addresses (RFC 2544). Whatever lies
/// outside belongs to somebody, and a controller must not be able to draw the traffic to them into the tunnel.
pub fn private_space() -> [IpNet; 6] {
    let v4 = |address: [u8; 4], length| IpNet::new(Ipv4Addr::from(address).into(), length);
    [
        IpNet::new(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0).into(), 7),
        v4([10, 0, 0, 0], 8),
        v4([172, 16, 0, 0], 12),
        v4([192, 168, 0, 0], 16),
        v4([100, 64, 0, 0], 10),
        v4([198, 18, 0, 0], 15),
    ]
    .map(|prefix| prefix.expect("a length within its family's"))
}

/// A transport protocol that a rule can name. ICMP means ICMP for IPv4 and ICMPv6 for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Transmission Control Protocol, IP protocol 6.
    Tcp,
    /// User Datagram Protocol, IP protocol 17.
    Udp,
    /// ICMP echo and its replies: IP protocol 1, and 58 for IPv6. It has no ports.
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

/// An inclusive range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// Makes the range `first..=last`; `None` if it is upside down.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first <= last { Some(Self { first, last }) } else { None }
    }

    /// Makes the range of one port.
    pub const fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// Returns the lowest port.
    pub const fn first(&self) -> u16 {
        self.first
    }

    /// Returns the highest port.
    pub const fn last(&self) -> u16 {
        self.last
    }

    /// Tells whether `port` lies in the range.
    pub const fn contains(&self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// Returns the ports in both ranges, if any.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }
}

/// What a rule opens on a node: a protocol and, for TCP and UDP, a range of destination ports.
///
/// Written `tcp/443`, `udp/6000-6010`, `tcp/*`, `icmp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    protocol: Protocol,
    ports: PortRange,
}

impl Service {
    /// Makes a service; ICMP takes every 'port', because it has none.
    pub const fn new(protocol: Protocol, ports: PortRange) -> Self {
        match protocol {
            Protocol::Icmp => Self { protocol, ports: PortRange::ALL },
            Protocol::Tcp | Protocol::Udp => Self { protocol, ports },
        }
    }

    /// Returns the protocol.
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Returns the destination ports; all of them for ICMP.
    pub const fn ports(&self) -> PortRange {
        self.ports
    }

    /// Tells whether a packet to `port` by `protocol` belongs to the service; `port` does not matter for ICMP.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol == protocol && (protocol == Protocol::Icmp || self.ports.contains(port))
    }

    /// Returns what both services open, if anything.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        if self.protocol != other.protocol {
            return None;
        }
        self.ports.intersection(&other.ports).map(|ports| Self { protocol: self.protocol, ports })
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.protocol, self.ports) {
            (Protocol::Icmp, _) => f.write_str("icmp"),
            (protocol, PortRange::ALL) => write!(f, "{protocol}/*"),
            (protocol, PortRange { first, last }) if first == last => write!(f, "{protocol}/{first}"),
            (protocol, PortRange { first, last }) => write!(f, "{protocol}/{first}-{last}"),
        }
    }
}

/// Tells why a text is not a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// The protocol is none of `tcp`, `udp`, `icmp`.
    #[error("unknown protocol `{0}`: use tcp/PORT, udp/PORT or icmp")]
    Protocol(String),
    /// TCP or UDP without a port.
    #[error("`{0}` needs a port: {0}/443, {0}/6000-6010 or {0}/*")]
    MissingPort(Protocol),
    /// ICMP with a port.
    #[error("icmp has no ports: write just `icmp`")]
    IcmpPort,
    /// A port is not a number from 1 to 65535.
    #[error("`{0}` is not a port: use a number from 1 to 65535")]
    Port(String),
    /// The range is upside down.
    #[error("port range {first}-{last} is upside down: did you mean {last}-{first}?")]
    UpsideDown {
        /// What stands first.
        first: u16,
        /// What stands last.
        last: u16,
    },
}

impl FromStr for Service {
    type Err = ServiceError;

    fn from_str(text: &str) -> Result<Self, ServiceError> {
        let (protocol, ports) = match text.split_once('/') {
            Some((protocol, ports)) => (protocol, Some(ports)),
            None => (text, None),
        };
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "icmp" => Protocol::Icmp,
            other => return Err(ServiceError::Protocol(other.chars().take(40).collect())),
        };
        let ports = match (protocol, ports) {
            (Protocol::Icmp, None) => PortRange::ALL,
            (Protocol::Icmp, Some(_)) => return Err(ServiceError::IcmpPort),
            (Protocol::Tcp | Protocol::Udp, None) => return Err(ServiceError::MissingPort(protocol)),
            (Protocol::Tcp | Protocol::Udp, Some("*")) => PortRange::ALL,
            (Protocol::Tcp | Protocol::Udp, Some(range)) => {
                let port = |text: &str| match text.parse::<u16>() {
                    Ok(_) if !text.bytes().all(|c| c.is_ascii_digit()) => Err(ServiceError::Port(text.into())),
                    Ok(port) if port > 0 => Ok(port),
                    Ok(_) | Err(_) => Err(ServiceError::Port(text.chars().take(40).collect())),
                };
                let (first, last) = match range.split_once('-') {
                    Some((first, last)) => (port(first)?, port(last)?),
                    None => (port(range)?, port(range)?),
                };
                PortRange::new(first, last).ok_or(ServiceError::UpsideDown { first, last })?
            }
        };
        Ok(Self { protocol, ports })
    }
}

impl Serialize for Service {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Service {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A conversation as its originator's first packet shows it.
///
/// For ICMP echo both ports hold the identifier, so that two pings of one host are two flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FiveTuple {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The source address.
    pub source: IpAddr,
    /// The source port.
    pub source_port: u16,
    /// The destination address, of the source's family.
    pub destination: IpAddr,
    /// The destination port.
    pub destination_port: u16,
}

impl FiveTuple {
    /// Returns the 5-tuple of the replies.
    pub const fn reversed(&self) -> Self {
        Self {
            protocol: self.protocol,
            source: self.destination,
            source_port: self.destination_port,
            destination: self.source,
            destination_port: self.source_port,
        }
    }
}

impl fmt::Display for FiveTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |address: IpAddr, port: u16| std::net::SocketAddr::new(address, port);
        write!(
            f,
            "{} {} -> {}",
            self.protocol,
            end(self.source, self.source_port),
            end(self.destination, self.destination_port)
        )
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match &*std::borrow::Cow::<'de, str>::deserialize(deserializer)? {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "icmp" => Ok(Self::Icmp),
            other => Err(serde::de::Error::custom(format_args!("unknown protocol `{other}`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_print_and_parse_to_themselves() {
        for text in ["tcp/443", "udp/6000-6010", "tcp/*", "udp/*", "icmp"] {
            assert_eq!(text.parse::<Service>().map(|s| s.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn a_service_that_means_nothing_is_refused_with_its_reason() {
        assert_eq!("tcp/9-7".parse::<Service>(), Err(ServiceError::UpsideDown { first: 9, last: 7 }));
        assert_eq!("tcp".parse::<Service>(), Err(ServiceError::MissingPort(Protocol::Tcp)));
        assert_eq!("icmp/8".parse::<Service>(), Err(ServiceError::IcmpPort));
        for bad in ["tcp/0", "tcp/65536", "tcp/", "tcp/-", "tcp/http", "tcp/1-", "tcp/+1", "sctp/1", ""] {
            assert!(bad.parse::<Service>().is_err(), "{bad:?}");
        }
    }
}
