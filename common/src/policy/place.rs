//! Conditions on the place: known networks, countries, autonomous systems.
//!
//! The place is where the controller sees the device's outer address; country and system come from a file that the operator
//! gives. An address that the file does not know (every private one) has an *unknown* place, which opens nothing.
//!
//! A place is never enough to open something: addresses are borrowed with a rented machine or a phone on somebody's table. A
//! rule whose only condition is a place is refused when it is read; a deny may go by the place alone.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    condition::{State, Unmet},
    subject::{RequestContext, Truth},
};

/// A country by its two letters (ISO 3166-1 alpha-2): `DE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

/// Tells that a text is no country.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a country: use its two letters (ISO 3166-1), such as \"DE\"")]
pub struct CountryError(String);

impl FromStr for Country {
    type Err = CountryError;

    fn from_str(text: &str) -> Result<Self, CountryError> {
        match text.as_bytes() {
            [a @ b'A'..=b'Z', b @ b'A'..=b'Z'] => Ok(Self([*a, *b])),
            _other => Err(CountryError(text.chars().take(40).collect())),
        }
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", char::from(self.0[0]), char::from(self.0[1]))
    }
}

impl Serialize for Country {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Country {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An autonomous system by its number (RFC 6793): `AS3320`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AutonomousSystem(pub u32);

/// Tells that a text is no autonomous system.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an autonomous system: write \"AS3320\"")]
pub struct AutonomousSystemError(String);

impl FromStr for AutonomousSystem {
    type Err = AutonomousSystemError;

    fn from_str(text: &str) -> Result<Self, AutonomousSystemError> {
        let number = text.strip_prefix("AS").unwrap_or(text);
        let digits = !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit());
        let number = digits.then(|| number.parse().ok()).flatten();
        number.map(Self).ok_or_else(|| AutonomousSystemError(text.chars().take(40).collect()))
    }
}

impl fmt::Display for AutonomousSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AS{}", self.0)
    }
}

/// Where an address is, as far as is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The country.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<Country>,
    /// The autonomous system that announces the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asn: Option<AutonomousSystem>,
}

impl Place {
    /// Tells whether both places are known in a part, and differ there.
    pub fn differs_from(&self, other: &Self) -> bool {
        fn differ<T: PartialEq>(one: Option<T>, two: Option<T>) -> bool {
            matches!((one, two), (Some(one), Some(two)) if one != two)
        }
        differ(self.country, other.country) || differ(self.asn, other.asn)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.country, self.asn) {
            (Some(country), Some(asn)) => write!(f, "{country}, {asn}"),
            (Some(country), None) => write!(f, "{country}"),
            (None, Some(asn)) => write!(f, "{asn}"),
            (None, None) => f.write_str("an unknown place"),
        }
    }
}

/// Where a device must be: any of each list; an empty list asks nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) network: Vec<IpNet>,
    pub(super) country: Vec<Country>,
    pub(super) asn: Vec<AutonomousSystem>,
}

impl Places {
    pub(super) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn state(&self, context: &RequestContext) -> State {
        let by_first = self.holds(context.address, context.place);
        let agree = context.also.iter().all(|(address, place)| self.holds(Some(*address), *place) == by_first);
        State::forever(if agree { by_first } else { Truth::Unknown })
    }

    fn holds(&self, address: Option<IpAddr>, place: Place) -> Truth {
        let network = match address {
            _ if self.network.is_empty() => Truth::True,
            None => Truth::Unknown,
            Some(address) => Truth::known(self.contains(address)),
        };
        network.and(is_one_of(&self.country, place.country)).and(is_one_of(&self.asn, place.asn))
    }

    fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical(); // ::ffff:192.0.2.1 is 192.0.2.1
        self.network.iter().any(|network| network.contains(&address))
    }

    /// Tells in words what of it is not true.
    pub(super) fn unmet(&self, context: &RequestContext) -> Vec<Unmet> {
        let first = match context.address {
            Some(address) => format!("the device speaks from {address}"),
            None => "it is not known from which address the device speaks".into(),
        };
        let first = self.unmet_from(first, context.address, context.place);
        let others = context.also.iter().map(|(address, place)| {
            self.unmet_from(format!("packets of the device come from {address}"), Some(*address), *place)
        });
        [first].into_iter().chain(others).find(|unmet| !unmet.is_empty()).unwrap_or_default()
    }

    fn unmet_from(&self, from: String, address: Option<IpAddr>, place: Place) -> Vec<Unmet> {
        let unmet = |fact, demand| Unmet { fact, demand, fix: None, mended_by_step_up: false };
        let mut list = Vec::new();
        if !self.network.is_empty() && !address.is_some_and(|address| self.contains(address)) {
            list.push(unmet(from.clone(), format!("asks for an address in {}", any_of(&self.network))));
        }
        if is_one_of(&self.country, place.country) != Truth::True {
            let fact = match place.country {
                Some(country) => format!("{from}, in {country}"),
                None => format!("{from}, in a country that is not known"),
            };
            list.push(unmet(fact, format!("asks for an address in {}", any_of(&self.country))));
        }
        if is_one_of(&self.asn, place.asn) != Truth::True {
            let fact = match place.asn {
                Some(asn) => format!("{from}, of {asn}"),
                None => format!("{from}, of a provider that is not known"),
            };
            list.push(unmet(fact, format!("asks for an address of {}", any_of(&self.asn))));
        }
        list
    }
}

fn is_one_of<T: PartialEq>(accepted: &[T], there: Option<T>) -> Truth {
    match there {
        _ if accepted.is_empty() => Truth::True,
        None => Truth::Unknown,
        Some(there) => Truth::known(accepted.contains(&there)),
    }
}

fn any_of<T: fmt::Display>(list: &[T]) -> String {
    list.iter().map(T::to_string).collect::<Vec<_>>().join(" or ")
}
