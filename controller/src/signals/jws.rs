//! Signed tokens of servers (JWS, RFC 7515, in its compact form), taken apart before anybody believes them.
//!
//! What is checked here needs no key: the size, the form, the explicit type (RFC 8725 §3.11), that nothing critical is in the
//! header, and that no claim stands twice. Whoever holds the keys checks the signature over exactly [`Unverified::signed`], and only then reads the claims.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use openidconnect::core::CoreJwsSigningAlgorithm;
use serde_json::Value;

use crate::identity::{json, keys::Signed};

/// A token as it came, in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unverified<'a> {
    /// The signature algorithm that it names.
    pub algorithm: String,
    /// The key that it names.
    pub key: Option<String>,
    /// What is signed.
    pub signed: &'a str,
    /// The signature.
    pub signature: Vec<u8>,
    /// The claims, as JSON: to be read only after the signature was checked.
    pub payload: Vec<u8>,
}

impl Unverified<'_> {
    /// Returns what keys are asked about.
    pub(crate) fn signed_by<'a>(&'a self, algorithm: &'a CoreJwsSigningAlgorithm) -> Signed<'a> {
        Signed { algorithm, key: self.key.as_deref(), text: self.signed, signature: &self.signature }
    }
}

/// Takes a token apart that has to be of the type `kind`, such as `logout+jwt`, and at most `most` bytes long.
///
/// # Errors
/// Why it cannot be one, as a constant text.
pub fn parse<'a>(text: &'a str, kind: &str, most: usize) -> Result<Unverified<'a>, &'static str> {
    if text.len() > most {
        return Err("too long");
    }
    let (signed, signature) = text.rsplit_once('.').ok_or("not three parts")?;
    let (header, payload) = signed.split_once('.').ok_or("not three parts")?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| "not base 64 for URLs");
    let header = json::object(&decode(header)?).ok_or("its header cannot be read")?;
    let word = |name: &str| match header.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err("its header cannot be read"),
    };
    let named = word("typ")?.unwrap_or_default().to_ascii_lowercase();
    // RFC 7515 §4.1.9: `application/` may be left out.
    if named.strip_prefix("application/").unwrap_or(&named) != kind {
        return Err("not of the right type");
    }
    if header.contains_key("crit") {
        return Err("it has critical headers that nobody here knows"); // RFC 7515 §4.1.11
    }
    let payload = decode(payload)?;
    // Whoever checked it before may have read the other one of two claims of one name.
    json::object(&payload).ok_or("its claims cannot be read")?;
    Ok(Unverified {
        algorithm: word("alg")?.ok_or("its header cannot be read")?,
        key: word("kid")?,
        signed,
        signature: decode(signature)?,
        payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_in_which_a_claim_or_a_header_stands_twice_is_none() {
        let token = |header: &str, claims: &str| {
            let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
            format!("{}.{}.c2ln", part(header), part(claims))
        };
        let head = r#"{"alg": "RS256", "typ": "logout+jwt"}"#;
        assert!(parse(&token(head, r#"{"sub": "alice", "events": {"x": {}}}"#), "logout+jwt", 1 << 10).is_ok());
        for (header, claims) in [
            (head, r#"{"sub": "alice", "sub": "bob"}"#),
            (head, r#"{"events": {"x": {"a": 1, "a": 2}}}"#),
            (head, "[]"),
            (r#"{"alg": "none", "alg": "RS256", "typ": "logout+jwt"}"#, "{}"),
        ] {
            assert!(parse(&token(header, claims), "logout+jwt", 1 << 10).is_err(), "{header} {claims}");
        }
    }
}
