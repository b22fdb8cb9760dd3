//! Durations and sizes with their units, as people write them in TOML: `"10m"`, `"1h30m"`, `"2GiB"`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration that is written with its unit. Prints for people: `10 min`, `1 h 30 min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HumanDuration(Duration);

/// Tells why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// A number without a unit.
    #[error("`{0}` has no unit: did you mean \"{0}s\", \"{0}m\" or \"{0}h\"?")]
    MissingUnit(String),
    /// A unit that is none.
    #[error("`{0}` is not a unit of time: use ms, s, m, h, d or w")]
    Unit(String),
    /// Not a duration at all.
    #[error("`{0}` is not a duration: use a number with a unit, such as \"30s\", \"10m\" or \"1h30m\"")]
    Malformed(String),
    /// More than 10 years.
    #[error("`{0}` is too long: use at most ten years")]
    TooLong(String),
}

const MAX_SECONDS: u128 = 10 * 366 * 86_400;

/// Milliseconds of each unit, the longest first.
const TIME_UNITS: [(&str, &str, u128); 6] = [
    ("w", "weeks", 604_800_000),
    ("d", "d", 86_400_000),
    ("h", "h", 3_600_000),
    ("m", "min", 60_000),
    ("s", "s", 1_000),
    ("ms", "ms", 1),
];

impl HumanDuration {
    /// Wraps a duration.
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    /// Wraps a duration cut to the one unit that says enough of it: `119 s`, `26 min`, `3 h`, `2 d`.
    pub fn rounded(duration: Duration) -> Self {
        let seconds = duration.as_secs();
        let unit = match seconds {
            0..120 => 1,
            120..7_200 => 60,
            7_200..172_800 => 3_600,
            _ => 86_400,
        };
        Self(Duration::from_secs(seconds / unit * unit))
    }

    /// Returns the duration.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// Writes the duration as it is written in TOML: `1h30m`.
    pub fn to_toml(self) -> String {
        let parts = self.parts(|(toml, _, _)| toml, "");
        if parts.is_empty() { "0s".into() } else { parts.concat() }
    }

    fn parts(self, name: impl Fn((&'static str, &'static str, u128)) -> &'static str, space: &str) -> Vec<String> {
        let mut rest = self.0.as_millis();
        let mut parts = Vec::new();
        for unit in TIME_UNITS.into_iter().skip(1) {
            if rest >= unit.2 {
                parts.push(format!("{}{space}{}", rest / unit.2, name(unit)));
                rest %= unit.2;
            }
        }
        parts
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.parts(|(_, people, _)| people, " ");
        f.write_str(&if parts.is_empty() { "0 s".into() } else { parts.join(" ") })
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

impl FromStr for HumanDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let malformed = || DurationError::Malformed(shortened(text));
        let mut rest = text.trim();
        let mut milliseconds: u128 = 0;
        let mut longest = u128::MAX;
        if rest.is_empty() {
            return Err(malformed());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (number, after) = rest.split_at(digits);
            let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
            let (unit, after) = after.split_at(letters);
            if number.is_empty() || number.len() > 15 {
                return Err(malformed());
            }
            if unit.is_empty() {
                return Err(if after.is_empty() && longest == u128::MAX {
                    DurationError::MissingUnit(shortened(number))
                } else {
                    malformed()
                });
            }
            let size = TIME_UNITS.iter().find(|(toml, _, _)| *toml == unit).map(|(_, _, size)| *size);
            let size = size.ok_or_else(|| DurationError::Unit(shortened(unit)))?;
            if size >= longest {
                return Err(malformed()); // "1m1h" and "1m1m" are slips of the pen
            }
            longest = size;
            milliseconds += number.parse::<u128>().map_err(|_| malformed())? * size;
            rest = after.trim_start();
        }
        if milliseconds > MAX_SECONDS * 1_000 {
            return Err(DurationError::TooLong(shortened(text)));
        }
        u64::try_from(milliseconds).map(|ms| Self(Duration::from_millis(ms))).map_err(|_| malformed())
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_toml())
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_with_unit(deserializer, "a duration with its unit, such as \"10m\"")
    }
}

/// A number of bytes that is written with its unit: `"512KiB"`, `"2GiB"`, `"10MB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(u64);

/// Tells why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// A number without a unit.
    #[error("`{0}` has no unit: did you mean \"{0}B\", \"{0}KiB\", \"{0}MiB\" or \"{0}GiB\"?")]
    MissingUnit(String),
    /// A unit that is none.
    #[error("`{0}` is not a unit of size: use B, KiB, MiB, GiB, TiB, or KB, MB, GB, TB")]
    Unit(String),
    /// Not a size at all.
    #[error("`{0}` is not a size: use a whole number with a unit, such as \"64MiB\" or \"2GiB\"")]
    Malformed(String),
}

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl ByteSize {
    /// Wraps a number of bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns the number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = SIZE_UNITS
            .into_iter()
            .find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / size)
    }
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let malformed = || SizeError::Malformed(shortened(text));
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| malformed())?;
        let unit = unit.trim_start();
        if unit.is_empty() {
            return Err(SizeError::MissingUnit(shortened(text)));
        }
        let size = SIZE_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, size)| *size);
        let size = size.ok_or_else(|| SizeError::Unit(shortened(unit)))?;
        number.checked_mul(size).map(Self).ok_or_else(malformed)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_with_unit(deserializer, "a size with its unit, such as \"64MiB\"")
    }
}

/// Reads a text by `FromStr`; a bare number gets the error that names its missing unit.
fn text_with_unit<'de, D, T>(deserializer: D, expected: &'static str) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    struct Visitor<T>(&'static str, std::marker::PhantomData<T>);

    impl<T: FromStr<Err: fmt::Display>> serde::de::Visitor<'_> for Visitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }
    }

    deserializer.deserialize_any(Visitor(expected, std::marker::PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_with_their_units() {
        for (text, seconds, people) in [
            ("30s", 30, "30 s"),
            ("10m", 600, "10 min"),
            ("1h30m", 5_400, "1 h 30 min"),
            ("12h", 43_200, "12 h"),
            ("7d", 604_800, "7 d"),
            ("0s", 0, "0 s"),
        ] {
            let duration: HumanDuration = text.parse().expect("a duration");
            assert_eq!(duration.get(), Duration::from_secs(seconds), "{text}");
            assert_eq!((duration.to_string().as_str(), duration.to_toml().as_str()), (people, text));
        }
        assert_eq!("2w".parse(), Ok(HumanDuration::new(Duration::from_secs(1_209_600))));
        assert_eq!("250ms".parse(), Ok(HumanDuration::new(Duration::from_millis(250))));
    }

    #[test]
    fn a_bad_duration_says_what_is_wrong_with_it() {
        assert_eq!("10".parse::<HumanDuration>(), Err(DurationError::MissingUnit("10".into())));
        assert_eq!("10min".parse::<HumanDuration>(), Err(DurationError::Unit("min".into())));
        assert_eq!("900000d".parse::<HumanDuration>(), Err(DurationError::TooLong("900000d".into())));
        for bad in ["", "m", "-1s", "1.5h", "1m1h", "5s5s", "1h 30", "99999999999999999999s", "１s"] {
            assert!(bad.parse::<HumanDuration>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn rounding_keeps_the_unit_that_says_enough() {
        for (seconds, shown) in [(59, "59 s"), (1_585, "26 min"), (10_900, "3 h"), (200_000, "2 d")] {
            assert_eq!(HumanDuration::rounded(Duration::from_secs(seconds)).to_string(), shown);
        }
    }

    #[test]
    fn sizes_are_read_and_written_with_their_units() {
        for (text, bytes) in [("2GiB", 2 << 30), ("512KiB", 512 << 10), ("10MB", 10_000_000), ("1B", 1)] {
            let size: ByteSize = text.parse().expect("a size");
            assert_eq!((size.get(), size.to_string().as_str()), (bytes, text));
        }
        assert_eq!("64".parse::<ByteSize>(), Err(SizeError::MissingUnit("64".into())));
        assert_eq!("64mb".parse::<ByteSize>(), Err(SizeError::Unit("mb".into())));
        assert!("99999999999TiB".parse::<ByteSize>().is_err() && "-1B".parse::<ByteSize>().is_err());
    }
}
