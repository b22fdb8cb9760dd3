//! Identifiers and names.
//!
//! An identifier is 16 random bytes that its maker drew; it prints as a short prefix and 26 characters of
//! Crockford's base 32, so that a log line says what kind of thing it names. A name is what a person wrote in
//! TOML; it is checked once, when it is parsed, and can then be compared and printed without further thought.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Tells why a text is not an identifier or a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text lacks the prefix of its kind.
    #[error("expected an identifier that begins with `{expected}`")]
    Prefix {
        /// The prefix, with its underscore.
        expected: &'static str,
    },
    /// What follows the prefix is not 26 characters of base 32 for 128 bits.
    #[error("expected 26 letters and digits after the prefix")]
    Body,
    /// A name is empty, too long, or has a character outside its alphabet.
    #[error("`{name}` is not a name: use 1 to {max} of a-z, A-Z, 0-9, `.`, `_`, `-`, beginning with a letter or digit")]
    Name {
        /// The text as it was written, cut to 80 characters.
        name: String,
        /// The longest permitted length in bytes.
        max: usize,
    },
}

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

fn encode_base32(bytes: &[u8; 16]) -> String {
    let value = u128::from_be_bytes(*bytes);
    (0..26).rev().map(|i| ALPHABET[((value >> (5 * i)) & 31) as usize] as char).collect()
}

fn decode_base32(text: &str) -> Option<[u8; 16]> {
    if text.len() != 26 {
        return None;
    }
    let mut value: u128 = 0;
    for (i, c) in text.bytes().enumerate() {
        let digit = ALPHABET.iter().position(|a| *a == c.to_ascii_lowercase())? as u128;
        if i == 0 && digit > 7 {
            return None; // 26 x 5 bits hold 130: the top two must be clear
        }
        value = (value << 5) | digit;
    }
    Some(value.to_be_bytes())
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 16]);

        impl $name {
            /// Makes an identifier of 16 random bytes; the caller draws them.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Returns the 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), encode_base32(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let body = text.strip_prefix($prefix).ok_or(IdError::Prefix { expected: $prefix })?;
                decode_base32(body).map(Self).ok_or(IdError::Body)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

identifier! {
    /// Names one machine of a subject. A node is named by the identifier of its device.
    DeviceId, "dev_"
}
identifier! {
    /// Names a subject: a person, keyed by `(iss, sub)` at the controller, or a service.
    SubjectId, "sub_"
}
identifier! {
    /// Names a lease: what one login session or service on one device is entitled to, until it expires.
    LeaseId, "lse_"
}
identifier! {
    /// Names a login session: one sign-in of a person on one device.
    SessionId, "ses_"
}
identifier! {
    /// Names a request for access for a time.
    RequestId, "req_"
}
identifier! {
    /// Names what an administrator opened past the rules for a time.
    BreakGlassId, "bg_"
}
identifier! {
    /// Names one boot of a machine, as the kernel's `/proc/sys/kernel/random/boot_id` tells it.
    BootId, "boo_"
}
identifier! {
    /// A number that a node draws once, so that an answer can be tied to the moment of the question.
    Nonce, "non_"
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// The longest name, in bytes.
            pub const MAX: usize = $max;

            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
                let begins = text.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
                if begins && text.len() <= Self::MAX && text.bytes().all(good) {
                    Ok(Self(text.into()))
                } else {
                    Err(IdError::Name { name: text.chars().take(80).collect(), max: Self::MAX })
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name! {
    /// The name of a resource, as `[resource.NAME]` gives it; also its host name under the overlay's domain.
    ResourceName, 63
}
name! {
    /// A tag on a device, without the leading `tag:`.
    Tag, 63
}
name! {
    /// The name of a machine: a host name of one label or several.
    MachineName, 63
}
name! {
    /// The name of a service identity, without the leading `service:`.
    ServiceName, 63
}

name! {
    /// The name of a fact that an administrator chose: an endpoint agent, a check by command, a device-management system.
    FactName, 63
}

/// The name of a rule: free text for people, 1 to 120 characters, no control characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct RuleName(std::sync::Arc<str>);

impl RuleName {
    /// The most characters.
    pub const MAX_CHARS: usize = 120;

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl FromStr for RuleName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let length = text.chars().count();
        if (1..=Self::MAX_CHARS).contains(&length) && !text.chars().any(char::is_control) {
            Ok(Self(text.into()))
        } else {
            Err(IdError::Name { name: text.chars().take(80).collect(), max: Self::MAX_CHARS })
        }
    }
}

impl<'de> Deserialize<'de> for RuleName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_prints_and_parses_to_itself() {
        for byte in [0u8, 1, 0x5a, 0xff] {
            let id = DeviceId::from_bytes([byte; 16]);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn an_identifier_of_another_kind_is_refused() {
        let lease = LeaseId::from_bytes([7; 16]).to_string();
        assert_eq!(lease.parse::<DeviceId>(), Err(IdError::Prefix { expected: "dev_" }));
        assert_eq!("dev_zzzzzzzzzzzzzzzzzzzzzzzzzz".parse::<DeviceId>(), Err(IdError::Body));
    }

    #[test]
    fn names_refuse_what_a_shell_or_a_page_could_trip_over() {
        for bad in ["", "-a", "a b", "a/b", "a\n", "ä", "<b>", &"x".repeat(64)] {
            assert!(bad.parse::<ResourceName>().is_err(), "{bad:?}");
        }
        assert!("payroll-app.v2".parse::<ResourceName>().is_ok());
    }
}
