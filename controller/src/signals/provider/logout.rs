//! Logout tokens (OpenID Connect Back-Channel Logout 1.0 §2.4, §2.6): what is read of one, and what it has to be.
//!
//! Parsing and checking are here, without keys or network; the signature is checked by the provider's part
//! ([`crate::identity::oidc::Provider::verify_logout`]) over exactly these bytes, before the claims are believed.
//!
//! Threats: an ID token passed off as a logout token (explicit type, `events`, no `nonce`), a token for another client
//! (`aud`), of another provider (`iss`), an old or a replayed one (`iat`, `exp`, `jti`), one that names nobody.

use postern_common::time::WallTime;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::signals::jws::{self, Unverified};

/// The longest token, bytes.
pub const MAX_TOKEN: usize = 16 << 10;
/// How far the provider's clock may go ahead of ours, and for how long a token is fresh, seconds.
const CLOCK_SKEW: i64 = 60;
const FRESH: i64 = 300;
/// How far the clocks may be apart before a token is only an old one, seconds.
const APART: i64 = 86_400;
/// The longest `sub`, `sid` or `jti`, bytes.
const MAX_NAME: usize = 255;
/// Back-Channel Logout §2.4.
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
const TYPE: &str = "logout+jwt";

/// What a logout token that holds says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogoutToken {
    /// The provider.
    pub issuer: String,
    /// The person.
    pub subject: Option<String>,
    /// The session at the provider.
    pub sid: Option<String>,
    /// Names the token: SHA-256 of issuer and `jti`.
    pub hash: [u8; 32],
    /// When it was issued, by the provider's clock.
    pub issued: WallTime,
    /// Until when it would be taken, if it had not been used.
    pub fresh_until: WallTime,
}

/// Why a token does nothing whose signature holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unheld {
    /// It does not hold. A constant text, for the audit log.
    Refused(&'static str),
    /// Everything of it holds but its time, which is up to a day from now: it is an old one, or one of the two clocks is wrong, and then
    /// every logout is lost.
    NotOfNow,
}

impl From<&'static str> for Unheld {
    fn from(why: &'static str) -> Self {
        Self::Refused(why)
    }
}

/// Takes a token apart.
///
/// # Errors
/// Why it cannot be one, as a constant text.
pub fn parse(text: &str) -> Result<Unverified<'_>, &'static str> {
    jws::parse(text, TYPE, MAX_TOKEN)
}

impl Unverified<'_> {
    /// Reads the claims. Only for a token whose signature was checked.
    ///
    /// # Errors
    /// What does not hold.
    pub fn claims(&self, issuer: &str, client: &str, now: WallTime) -> Result<LogoutToken, Unheld> {
        let claims: Map<String, Value> =
            serde_json::from_slice(&self.payload).map_err(|_| "its claims cannot be read")?;
        if claims.get("iss").and_then(Value::as_str) != Some(issuer) {
            return Err("of another issuer".into());
        }
        let audience = match claims.get("aud") {
            Some(Value::String(one)) => one == client,
            Some(Value::Array(all)) => all.len() == 1 && all[0].as_str() == Some(client),
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => false,
        };
        if !audience {
            return Err("for another client".into());
        }
        let seconds = now.as_millis().div_euclid(1_000);
        let issued = claims.get("iat").and_then(Value::as_i64).ok_or("it does not tell when it was issued")?;
        if !claims.get("events").and_then(Value::as_object).is_some_and(|e| e.get(EVENT).is_some_and(Value::is_object))
        {
            return Err("it tells of no logout".into());
        }
        if claims.contains_key("nonce") {
            return Err("it has a nonce, as ID tokens have".into()); // §2.4: MUST NOT
        }
        let name = |claim: &str| match claims.get(claim) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() && text.len() <= MAX_NAME => Ok(Some(text.clone())),
            Some(_) => Err("it names somebody in a way that cannot be"),
        };
        let (subject, sid) = (name("sub")?, name("sid")?);
        if subject.is_none() && sid.is_none() {
            return Err("it names neither a person nor a session".into());
        }
        let jti = name("jti")?.ok_or("it has no name of its own")?;
        let expires = match claims.get("exp").map(Value::as_i64) {
            None => i64::MAX,
            Some(Some(expires)) => expires,
            Some(None) => return Err("it does not tell when it expires".into()),
        };
        let age = seconds.saturating_sub(issued);
        match (-CLOCK_SKEW..=FRESH).contains(&age) {
            true if expires > seconds - CLOCK_SKEW => {}
            true => return Err("expired".into()),
            false if (-APART..=APART).contains(&age) => return Err(Unheld::NotOfNow),
            false => return Err("not fresh".into()),
        }
        let hash = Sha256::new().chain_update(issuer).chain_update([0]).chain_update(&jti).finalize().into();
        let fresh_until = WallTime::from_millis(issued.saturating_add(FRESH + CLOCK_SKEW).saturating_mul(1_000));
        let issued = WallTime::from_millis(issued.saturating_mul(1_000));
        Ok(LogoutToken { issuer: issuer.to_owned(), subject, sid, hash, issued, fresh_until })
    }
}

/// Any bytes as a logout token: no panic, and what is taken names this client, this issuer and somebody, and is fresh.
pub fn fuzz_logout_token(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let now = WallTime::from_millis(1_795_424_400_000);
    // The signature is not what is looked for: bare claims, too, reach their checks.
    let bare =
        Unverified { algorithm: String::new(), key: None, signed: "", signature: vec![], payload: bytes.to_vec() };
    for unverified in [parse(text).ok(), Some(bare)].into_iter().flatten() {
        if let Ok(token) = unverified.claims("https://idp.example", "postern", now) {
            assert!(token.subject.is_some() || token.sid.is_some());
            assert!(
                token.fresh_until > now && token.fresh_until.since(now).as_secs() <= (FRESH + 2 * CLOCK_SKEW) as u64
            );
            let claims: Value = serde_json::from_slice(&unverified.payload).expect("it was read");
            assert!(claims["nonce"].is_null() && claims["events"][EVENT].is_object());
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_795_424_400;

    fn good() -> Value {
        json!({"iss": "https://idp.example", "aud": "postern", "iat": NOW - 5, "exp": NOW + 100, "jti": "j-1",
            "events": {EVENT: {}}, "sub": "alice", "sid": "s-1"})
    }

    fn token(header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2ln", part(header), part(claims))
    }

    fn read(header: &Value, claims: &Value) -> Result<LogoutToken, Unheld> {
        let text = token(header, claims);
        parse(&text)?.claims("https://idp.example", "postern", WallTime::from_millis(NOW * 1_000))
    }

    #[test]
    fn a_logout_token_has_to_hold_in_every_part() {
        let header = json!({"alg": "RS256", "typ": "logout+jwt"});
        let read_good = read(&header, &good()).expect("good");
        assert_eq!((read_good.subject.as_deref(), read_good.sid.as_deref()), (Some("alice"), Some("s-1")));
        assert!(read(&json!({"alg": "RS256", "typ": "application/LOGOUT+JWT"}), &good()).is_ok());
        for wrong in [
            json!({"alg": "RS256"}),
            json!({"alg": "RS256", "typ": "JWT"}),
            json!({"alg": "RS256", "typ": "logout+jwt", "crit": ["x"]}),
        ] {
            assert!(read(&wrong, &good()).is_err(), "{wrong}");
        }
        type Change = (&'static str, Value);
        let wrong: [Change; 17] = [
            ("iss", json!("https://evil.example")),
            ("aud", json!("another")),
            ("aud", json!(["postern", "another"])),
            ("aud", json!([])),
            ("iat", json!(NOW - 301)),
            ("iat", json!(NOW + 61)),
            ("iat", json!("now")),
            ("exp", json!(NOW - 61)),
            ("exp", json!("never")),
            ("events", json!({})),
            ("events", json!({EVENT: true})),
            ("events", json!([EVENT])),
            ("nonce", json!("n")),
            ("sub", json!("")),
            ("sub", json!(7)),
            ("jti", json!("")),
            ("jti", json!("x".repeat(256))),
        ];
        for (claim, value) in wrong {
            let mut claims = good();
            claims[claim] = value.clone();
            assert!(read(&header, &claims).is_err(), "{claim}: {value}");
        }
        for missing in ["iss", "aud", "iat", "events", "jti"] {
            let mut claims = good();
            claims.as_object_mut().expect("an object").remove(missing);
            assert!(read(&header, &claims).is_err(), "without {missing}");
        }
        for (left_out, both) in [("sub", false), ("sid", false), ("sub", true)] {
            let mut claims = good();
            claims.as_object_mut().expect("an object").remove(left_out);
            if both {
                claims.as_object_mut().expect("an object").remove("sid");
            }
            assert_eq!(read(&header, &claims).is_ok(), !both, "{claims}");
        }
    }

    #[test]
    fn a_token_of_another_time_is_told_apart_from_a_bad_one_and_counts_as_nothing() {
        let header = json!({"alg": "RS256", "typ": "logout+jwt"});
        let at = |ago: i64| {
            let mut claims = good();
            (claims["iat"], claims["exp"]) = (json!(NOW - ago), json!(NOW - ago + 120));
            claims
        };
        for (ago, expected) in [
            (0, None),
            (-61, Some(Unheld::NotOfNow)),
            (301, Some(Unheld::NotOfNow)),
            (86_400, Some(Unheld::NotOfNow)),
            (86_401, Some(Unheld::Refused("not fresh"))),
            (-86_401, Some(Unheld::Refused("not fresh"))),
            (200, Some(Unheld::Refused("expired"))),
        ] {
            assert_eq!(read(&header, &at(ago)).err(), expected, "issued {ago} s ago");
        }
        let mut bad = at(400);
        bad["aud"] = json!("another");
        assert!(matches!(read(&header, &bad), Err(Unheld::Refused(_))), "only if everything else holds");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["", "a", "a.b", "a.b.c", "....", &"x".repeat(MAX_TOKEN + 1)] {
            assert!(parse(text).is_err());
            fuzz_logout_token(text.as_bytes());
        }
        fuzz_logout_token(good().to_string().as_bytes());
    }
}
