//! Where the controller is and how its certificate is known: what a join link says.
//!
//! `https://ctl.corp.example:8443#k=<64 hexadecimal digits>`: the fragment never leaves the machine, and it names the
//! SHA-256 of the public key (SubjectPublicKeyInfo, RFC 5280 §4.1) that must stand in the controller's certificate
//! chain. Without it only a certificate that the system's roots accept will do. There is no third way: a prompt that
//! asks a person to accept a fingerprint is accepted by reflex.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The SHA-256 of a certificate's SubjectPublicKeyInfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpkiPin(pub [u8; 32]);

/// A controller's address, with the pin of its join link if it had one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ControllerTarget {
    host: String,
    port: u16,
    pin: Option<SpkiPin>,
}

/// Why a text is not a controller's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not a URL at all.
    #[error("`{0}` is not the controller's address: expected something like https://ctl.corp.example#k=4f9a...")]
    Url(String),
    /// Another scheme, most likely `http`.
    #[error("the controller is reached by https alone, and this address says `{0}`: write https://")]
    Scheme(String),
    /// The fragment is there and is not a pin: a cut-off link must not silently become an unpinned one.
    #[error("what follows `#` is not `k=` and 64 hexadecimal digits: was the link cut off when it was copied?")]
    Pin,
    /// A path, query or user in the address.
    #[error("the controller's address has no {0}: expected something like https://ctl.corp.example#k=4f9a...")]
    Extra(&'static str),
}

impl ControllerTarget {
    /// Returns the host: a name, or an address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the TCP port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Returns the pin of the join link.
    pub const fn pin(&self) -> Option<SpkiPin> {
        self.pin
    }

    /// Returns `host` or `host:port`, as it stands in a URL.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == 443 { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for ControllerTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())?;
        match self.pin {
            Some(pin) => write!(f, "#k={}", hex::encode(pin.0)),
            None => Ok(()),
        }
    }
}

impl FromStr for ControllerTarget {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let not_an_url = || TargetError::Url(text.chars().take(80).collect());
        let url = url::Url::parse(text.trim()).map_err(|_| not_an_url())?;
        if url.scheme() != "https" {
            return Err(match url.has_host() {
                true => TargetError::Scheme(url.scheme().chars().take(80).collect()),
                false => not_an_url(),
            });
        }
        if !matches!(url.path(), "" | "/") {
            return Err(TargetError::Extra("path"));
        }
        if url.query().is_some() {
            return Err(TargetError::Extra("query"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(TargetError::Extra("user name"));
        }
        let pin = match url.fragment() {
            None => None,
            Some(fragment) => {
                let digits = fragment.strip_prefix("k=").ok_or(TargetError::Pin)?;
                let mut pin = [0; 32];
                hex::decode_to_slice(digits, &mut pin).map_err(|_| TargetError::Pin)?;
                Some(SpkiPin(pin))
            }
        };
        let host = match url.host().ok_or_else(not_an_url)? {
            url::Host::Domain(name) => name.to_owned(),
            url::Host::Ipv4(address) => address.to_string(),
            url::Host::Ipv6(address) => address.to_string(),
        };
        Ok(Self { host, port: url.port_or_known_default().unwrap_or(443), pin })
    }
}

impl Serialize for ControllerTarget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ControllerTarget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_link_prints_and_parses_to_itself() {
        let pin = "4f".repeat(32);
        for text in [
            format!("https://ctl.corp.example#k={pin}"),
            format!("https://10.0.0.1:8443#k={pin}"),
            "https://[fd00::1]:8443".to_owned(),
            "https://ctl.corp.example".to_owned(),
        ] {
            assert_eq!(text.parse::<ControllerTarget>().map(|target| target.to_string()), Ok(text));
        }
    }

    #[test]
    fn a_cut_off_pin_never_becomes_no_pin() {
        for bad in ["#k=4f9a", "#k=", "#", "#x", &format!("#k={}", "g".repeat(64)), &format!("#k={}", "4f".repeat(33))]
        {
            let text = format!("https://ctl.corp.example/{bad}");
            assert_eq!(text.parse::<ControllerTarget>(), Err(TargetError::Pin), "{bad}");
        }
    }

    #[test]
    fn plain_http_and_strange_addresses_are_refused() {
        assert_eq!("http://ctl".parse::<ControllerTarget>(), Err(TargetError::Scheme("http".into())));
        assert!(matches!("ctl.corp.example".parse::<ControllerTarget>(), Err(TargetError::Url(_))));
        assert!(matches!("ctl:8443".parse::<ControllerTarget>(), Err(TargetError::Url(_))));
        assert_eq!("https://ctl/admin".parse::<ControllerTarget>(), Err(TargetError::Extra("path")));
        assert_eq!("https://ctl/?k=1".parse::<ControllerTarget>(), Err(TargetError::Extra("query")));
        assert_eq!("https://a:b@ctl".parse::<ControllerTarget>(), Err(TargetError::Extra("user name")));
    }
}
