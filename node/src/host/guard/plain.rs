//! What the guard does with the plain network: nothing, or close it but for a list.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use postern_common::net::{Service, ServiceError};
use serde::{Deserialize, Deserializer};

/// Whether other interfaces than the tunnel's stay as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlainNetwork {
    /// Only overlay addresses are guarded.
    Open,
    /// What arrives by other interfaces for this machine is dropped, but for answers, WireGuard's datagrams, what
    /// keeps the network itself alive (ICMP errors, neighbour discovery, DHCP), and the operator's list.
    Closed {
        /// The UDP port of the WireGuard socket.
        wireguard_port: u16,
        /// What the operator wants open all the same.
        allow: Vec<PlainAllow>,
    },
}

/// One entry of the operator's list: `tcp/22 from 10.0.0.0/8`, or `tcp/22` from anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainAllow {
    /// What stays open.
    pub service: Service,
    /// From where; anywhere if absent.
    pub from: Option<IpNet>,
}

/// Why a text is not an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlainAllowError {
    /// The service is none.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// What follows `from` is neither an address nor a prefix.
    #[error("`{0}` is not a network: use 10.0.0.0/8, 2001:db8::/32 or one address")]
    Network(String),
    /// There is something else than `from` after the service.
    #[error("expected `SERVICE` or `SERVICE from NETWORK`, such as `tcp/22 from 10.0.0.0/8`")]
    Shape,
}

impl FromStr for PlainAllow {
    type Err = PlainAllowError;

    fn from_str(text: &str) -> Result<Self, PlainAllowError> {
        let mut words = text.split_whitespace();
        let service = words.next().ok_or(PlainAllowError::Shape)?.parse()?;
        let from = match (words.next(), words.next(), words.next()) {
            (None, _, _) => None,
            (Some("from"), Some(network), None) => Some(
                network
                    .parse::<IpNet>()
                    .or_else(|_| network.parse::<IpAddr>().map(IpNet::from))
                    .map_err(|_| PlainAllowError::Network(network.chars().take(60).collect()))?
                    .trunc(),
            ),
            _ => return Err(PlainAllowError::Shape),
        };
        Ok(Self { service, from })
    }
}

impl fmt::Display for PlainAllow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from {
            Some(network) => write!(f, "{} from {network}", self.service),
            None => write!(f, "{}", self.service),
        }
    }
}

impl<'de> Deserialize<'de> for PlainAllow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_print_and_parse_to_themselves() {
        for text in ["tcp/22 from 10.0.0.0/8", "icmp", "udp/6000-6010 from 2001:db8::/32", "tcp/22 from 10.1.2.3/32"] {
            assert_eq!(text.parse::<PlainAllow>().map(|entry| entry.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn an_entry_that_means_nothing_is_refused() {
        for bad in ["", "tcp/22 to 10.0.0.0/8", "tcp/22 from", "tcp/22 from here", "tcp/22 from ::/0 x", "tcp"] {
            assert!(bad.parse::<PlainAllow>().is_err(), "{bad:?}");
        }
    }
}
