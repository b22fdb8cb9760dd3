//! The short code that a waiting machine shows and a signed-in person types: `KTRM-4821`.
//!
//! Four consonants and four digits: no vowels, so that no words come out; letters and digits stand apart, so that
//! `O` and `0` cannot be confused. 20⁴ × 10⁴ = 1.6 × 10⁹ codes; with the limits on attempts (RFC 8628 §5.1) a guess
//! at one of a hundred waiting machines succeeds about once in a million tries at ten tries a minute.

use std::{fmt, str::FromStr};

use super::random;

const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

/// A join code in its canonical form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserCode([u8; 8]);

/// Tells that a text is not a join code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a code has four letters and four digits, like KTRM-4821")]
pub struct NotACode;

impl UserCode {
    /// Draws a code.
    pub fn draw() -> Self {
        // 64 random bits, reduced: the bias of the modulus is below 2^-33.
        let mut rest = u64::from_be_bytes(random::bytes());
        let mut code = [0; 8];
        for (i, c) in code.iter_mut().enumerate() {
            let (alphabet, size): (&[u8], u64) = if i < 4 { (LETTERS, 20) } else { (b"0123456789", 10) };
            *c = alphabet[usize::try_from(rest % size).expect("a remainder below 20")];
            rest /= size;
        }
        Self(code)
    }
}

impl fmt::Display for UserCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &[u8]| bytes.iter().map(|c| char::from(*c)).collect::<String>();
        write!(f, "{}-{}", text(&self.0[..4]), text(&self.0[4..]))
    }
}

impl fmt::Debug for UserCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[join code]")
    }
}

impl FromStr for UserCode {
    type Err = NotACode;

    /// Takes what a person typed: in either case, with or without hyphen and spaces.
    fn from_str(text: &str) -> Result<Self, NotACode> {
        if text.len() > 32 {
            return Err(NotACode);
        }
        let mut code = [0; 8];
        let mut length = 0;
        for c in text.chars().filter(|c| !c.is_whitespace() && !matches!(c, '-' | '‐' | '–')) {
            let c = u8::try_from(c).map_err(|_| NotACode)?.to_ascii_uppercase();
            let good = if length < 4 { LETTERS.contains(&c) } else { c.is_ascii_digit() };
            if length == 8 || !good {
                return Err(NotACode);
            }
            code[length] = c;
            length += 1;
        }
        if length == 8 { Ok(Self(code)) } else { Err(NotACode) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_code_reads_back_however_it_is_typed() {
        for _ in 0..1_000 {
            let code = UserCode::draw();
            let shown = code.to_string();
            assert_eq!(shown.len(), 9);
            assert_eq!(shown.parse(), Ok(code));
            assert_eq!(shown.to_lowercase().replace('-', " ").parse(), Ok(code));
            assert_eq!(shown.replace('-', "").parse(), Ok(code));
        }
    }

    #[test]
    fn what_is_not_a_code_is_refused() {
        for bad in
            ["", "KTRM", "KTRM-482", "KTRM-48211", "KTAM-4821", "4821-KTRM", "KTRM-482l", "ＫTRM-4821", "KTRM-4821\0"]
        {
            assert_eq!(bad.parse::<UserCode>(), Err(NotACode), "{bad:?}");
        }
    }
}
