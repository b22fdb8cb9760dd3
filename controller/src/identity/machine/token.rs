//! Tokens of platforms (RFC 7519, RFC 8725): what is read of one, and what it has to be. No keys, no network, no clock.
//!
//! ```text
//! text --parse--> Unverified --(the signature holds over exactly these bytes)--> check(terms, now) --> Checked --> a match
//! ```
//!
//! Threats: `none` and symmetric algorithms (an allow-list of asymmetric ones; the key must be of the algorithm's kind), keys
//! named by the token itself (`jku`, `jwk`, `x5u` count for nothing; `crit` is refused), a token for somebody else that is
//! passed on (`aud` is ours and nobody else's), one of another kind that the same keys sign (`typ`), one that lives for
//! ever, that is from the future, or of which two readers read different things (a key that stands twice).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use postern_common::{protocol::MAX_PLATFORM_TOKEN_BYTES, time::WallTime};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{identity::json, records::TokenHash};

/// How far a platform's clock may go ahead of ours, seconds.
pub(super) const CLOCK_SKEW: i64 = 60;
/// The longest text that is compared with a claim, or read as `sub`, `kid`, `jti`, bytes.
const MAX_WORD: usize = 1_024;
/// Tokens of other kinds say so in `typ` (RFC 8725 §3.11); those of platforms say `JWT` or nothing.
const TYPE: &str = "jwt";

/// A token as it came, in its parts. Nothing in it is believed yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Unverified<'a> {
    /// The signature algorithm that it names.
    pub(super) algorithm: String,
    /// The key that it names.
    pub(super) key: Option<String>,
    /// What is signed.
    pub(super) signed: &'a str,
    /// The signature.
    pub(super) signature: Vec<u8>,
    claims: Map<String, Value>,
}

/// What one issuer's tokens have to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms<'a> {
    /// The issuer.
    pub(super) issuer: &'a str,
    /// The audience.
    pub(super) audience: &'a str,
    /// The longest life, from `iat` to `exp`, seconds.
    pub(super) max_lifetime: i64,
}

/// A token whose claims about itself hold.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Checked {
    /// Names the token: SHA-256 of issuer and `jti`, or of what is signed where there is no `jti`.
    pub(super) hash: TokenHash,
    /// When it was issued.
    pub(super) issued: WallTime,
    /// When it ends.
    pub(super) expires: WallTime,
    /// What the platform calls the workload.
    pub(super) subject: String,
    claims: Map<String, Value>,
}

/// Takes a token apart.
///
/// # Errors
/// Why it cannot be one, as a constant text.
pub(super) fn parse(text: &str) -> Result<Unverified<'_>, &'static str> {
    if text.len() > MAX_PLATFORM_TOKEN_BYTES {
        return Err("it is too long");
    }
    let (signed, signature) = text.rsplit_once('.').ok_or("it has not three parts")?;
    let (header, payload) = signed.split_once('.').ok_or("it has not three parts")?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| "it is not base 64 for URLs");
    let header = json::object(&decode(header)?).ok_or("its header cannot be read")?;
    let claims = json::object(&decode(payload)?).ok_or("its claims cannot be read")?;
    let word = |name: &str| match header.get(name) {
        None => Ok(None),
        Some(Value::String(text)) if text.len() <= MAX_WORD => Ok(Some(text.clone())),
        Some(_) => Err("its header cannot be read"),
    };
    if header.contains_key("crit") {
        return Err("it has critical headers that nobody here knows"); // RFC 7515 §4.1.11
    }
    if word("typ")?.is_some_and(|kind| !kind.eq_ignore_ascii_case(TYPE)) {
        return Err("it is of another type");
    }
    let algorithm = word("alg")?.ok_or("it names no algorithm")?;
    Ok(Unverified { algorithm, key: word("kid")?, signed, signature: decode(signature)?, claims })
}

impl Unverified<'_> {
    /// Returns whom it claims to be of, to find the keys by which that is checked.
    pub(super) fn claimed_issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Value::as_str)
    }

    /// Returns whom it claims to be for, if that is exactly one: whoever else it is for could have passed it on.
    pub(super) fn claimed_audience(&self) -> Option<&str> {
        match self.claims.get("aud")? {
            Value::String(one) => Some(one),
            Value::Array(all) if all.len() == 1 => all[0].as_str(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) | Value::Array(_) => None,
        }
    }

    /// Checks what the token says of itself. Only for a token whose signature was checked.
    ///
    /// # Errors
    /// What does not hold, as a constant text.
    pub(super) fn check(self, terms: Terms<'_>, now: WallTime) -> Result<Checked, &'static str> {
        if self.claimed_issuer() != Some(terms.issuer) {
            return Err("it is of another issuer");
        }
        if self.claimed_audience() != Some(terms.audience) {
            return Err("it is for another audience, or not for this one alone");
        }
        let seconds = now.as_millis().div_euclid(1_000);
        let time = |name: &str| match self.claims.get(name).map(Value::as_i64) {
            None => Ok(None),
            // Times that no clock of ours can show would overflow what is computed of them.
            Some(Some(at)) if (0..=1 << 40).contains(&at) => Ok(Some(at)),
            Some(_) => Err("its times cannot be read"),
        };
        let issued = time("iat")?.ok_or("it does not say when it was issued")?;
        let expires = time("exp")?.ok_or("it never expires")?;
        if issued > seconds + CLOCK_SKEW || time("nbf")?.is_some_and(|at| at > seconds + CLOCK_SKEW) {
            return Err("it is from the future: is a clock wrong?");
        }
        // No skew here: the login session that it opens would be over already.
        if expires <= seconds {
            return Err("it has expired");
        }
        if expires - issued > terms.max_lifetime {
            return Err("it lives longer than is taken: ask the platform for a shorter one, or raise `max_lifetime`");
        }
        let name = |claim: &str| match self.claims.get(claim) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() && text.len() <= MAX_WORD => Ok(Some(text.as_str())),
            Some(_) => Err("it names somebody in a way that cannot be"),
        };
        let subject = name("sub")?.ok_or("it names nobody")?.to_owned();
        let id = name("jti")?;
        let digest = Sha256::new().chain_update(terms.issuer).chain_update([0]);
        let digest = match id {
            Some(id) => digest.chain_update([1]).chain_update(id),
            None => digest.chain_update([2]).chain_update(self.signed),
        };
        Ok(Checked {
            hash: TokenHash::from_bytes(digest.finalize().into()),
            issued: WallTime::from_millis(issued.saturating_mul(1_000)),
            expires: WallTime::from_millis(expires.saturating_mul(1_000)),
            subject,
            claims: self.claims,
        })
    }
}

impl Checked {
    /// Tells whether the claim at a path is exactly one of these texts. `kubernetes.io.pod.uid` is the claim `uid` in `pod`
    /// in `kubernetes.io`; where a path could mean two claims it means none.
    pub(super) fn says(&self, path: &str, any_of: &[String]) -> bool {
        self.word(path).is_some_and(|found| any_of.iter().any(|text| text == found))
    }

    /// Returns the text at a path, as [`Checked::says`] finds it.
    pub(super) fn word(&self, path: &str) -> Option<&str> {
        let mut found = Vec::new();
        find(&self.claims, path, &mut found);
        match found.as_slice() {
            [Value::String(text)] => Some(text),
            _ => None,
        }
    }
}

/// Finds what a path can mean: at each level the rest is one key, or a key and a path in what stands under it.
fn find<'a>(object: &'a Map<String, Value>, path: &str, found: &mut Vec<&'a Value>) {
    found.extend(object.get(path));
    for (at, _) in path.match_indices('.') {
        if let Some(Value::Object(inner)) = object.get(&path[..at]) {
            find(inner, &path[at + 1..], found);
        }
    }
}

/// Any bytes as a token, and as the claims of one: no panic, and what is taken is for this audience, lives, and not too long.
pub fn fuzz_platform_token(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let now = WallTime::from_millis(1_795_424_400_000);
    let terms = Terms { issuer: "https://issuer.example", audience: "https://ctl.example", max_lifetime: 3_600 };
    // The signature is not what is looked for: bare claims, too, reach their checks.
    let bare = json::object(bytes).map(|claims| Unverified {
        algorithm: String::new(),
        key: None,
        signed: "",
        signature: vec![],
        claims,
    });
    for unverified in [parse(text).ok(), bare].into_iter().flatten() {
        let unverified_audience = unverified.claimed_audience().map(str::to_owned);
        if let Ok(checked) = unverified.check(terms, now) {
            let left = checked.expires.since(now).as_secs();
            assert!((1..=3_600 + CLOCK_SKEW as u64).contains(&left), "{left}");
            assert!(!checked.subject.is_empty() && checked.subject.len() <= MAX_WORD);
            assert!(
                checked.claims["iss"] == "https://issuer.example"
                    && unverified_audience.as_deref() == Some(terms.audience)
            );
            let _ = checked.says("kubernetes.io.serviceaccount.uid", &["u".to_owned()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    pub(super) const NOW: i64 = 1_795_424_400;
    const TERMS: Terms<'static> =
        Terms { issuer: "https://issuer.example", audience: "https://ctl.example", max_lifetime: 3_600 };

    fn good() -> Value {
        json!({"iss": "https://issuer.example", "aud": ["https://ctl.example"], "sub": "system:serviceaccount:pay:billing",
            "iat": NOW - 60, "nbf": NOW - 60, "exp": NOW + 3_000, "jti": "j-1",
            "kubernetes.io": {"namespace": "pay", "serviceaccount": {"name": "billing", "uid": "u-1"}}})
    }

    fn text(header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2ln", part(header), part(claims))
    }

    fn read(claims: &Value) -> Result<Checked, &'static str> {
        let text = text(&json!({"alg": "RS256", "kid": "k"}), claims);
        parse(&text)?.check(TERMS, WallTime::from_millis(NOW * 1_000))
    }

    #[test]
    fn a_token_has_to_hold_in_every_part() {
        let checked = read(&good()).expect("good");
        assert_eq!(checked.expires.as_millis(), (NOW + 3_000) * 1_000);
        type Change = (&'static str, Value);
        let wrong: [Change; 24] = [
            ("iss", json!("https://issuer.example/")),
            ("iss", json!(["https://issuer.example"])),
            ("aud", json!("https://other.example")),
            ("aud", json!(["https://ctl.example", "https://other.example"])),
            ("aud", json!([])),
            ("aud", json!({"https://ctl.example": true})),
            ("iat", json!(NOW + 61)),
            ("iat", json!("now")),
            ("iat", json!(-1)),
            ("iat", json!(NOW - 601)),
            ("nbf", json!(NOW + 61)),
            ("nbf", json!(true)),
            ("exp", json!(NOW)),
            ("exp", json!(NOW - 3_000)),
            ("exp", json!(NOW + 3_600)),
            ("exp", json!(i64::MAX)),
            ("exp", json!(1.5e300)),
            ("exp", json!(null)),
            ("sub", json!("")),
            ("sub", json!(7)),
            ("sub", json!("x".repeat(MAX_WORD + 1))),
            ("jti", json!("")),
            ("jti", json!(["j"])),
            ("jti", json!("x".repeat(MAX_WORD + 1))),
        ];
        for (claim, value) in wrong {
            let mut claims = good();
            claims[claim] = value.clone();
            assert!(read(&claims).is_err(), "{claim}: {value}");
        }
        for missing in ["iss", "aud", "iat", "exp", "sub"] {
            let mut claims = good();
            claims.as_object_mut().expect("an object").remove(missing);
            assert!(read(&claims).is_err(), "without {missing}");
        }
        for fine in [("iat", json!(NOW + 59)), ("exp", json!(NOW + 1)), ("aud", json!("https://ctl.example"))] {
            let mut claims = good();
            claims[fine.0] = fine.1;
            assert!(read(&claims).is_ok(), "{}", fine.0);
        }
    }

    #[test]
    fn a_header_that_asks_for_something_else_is_refused() {
        for header in [
            json!({}),
            json!({"alg": 7}),
            json!({"alg": "RS256", "typ": "at+jwt"}),
            json!({"alg": "RS256", "typ": "logout+jwt"}),
            json!({"alg": "RS256", "crit": ["x"]}),
            json!({"alg": "RS256", "kid": ["k"]}),
            json!({"alg": "RS256", "kid": "k".repeat(MAX_WORD + 1)}),
        ] {
            assert!(parse(&text(&header, &good())).is_err(), "{header}");
        }
        assert!(parse(&text(&json!({"alg": "RS256", "typ": "JWT", "jku": "https://evil.example"}), &good())).is_ok());
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["", "a", "a.b", "a.b.c", "....", "e30.e30.e30.e30", &"x".repeat(MAX_PLATFORM_TOKEN_BYTES + 1)] {
            assert!(parse(text).is_err(), "{text}");
            fuzz_platform_token(text.as_bytes());
        }
        let twice = URL_SAFE_NO_PAD.encode(good().to_string().replacen('{', "{\"aud\":\"https://other.example\",", 1));
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256"}"#);
        assert!(parse(&format!("{header}.{twice}.c2ln")).is_err(), "a claim stands twice");
        fuzz_platform_token(good().to_string().as_bytes());
    }

    #[test]
    fn a_claim_is_found_by_its_path_and_an_ambiguous_one_is_none() {
        let says = |claims: Value, path: &str, text: &str| {
            let mut all = good();
            all.as_object_mut().expect("an object").extend(claims.as_object().expect("an object").clone());
            read(&all).expect("good").says(path, &[text.to_owned()])
        };
        assert!(says(json!({}), "kubernetes.io.serviceaccount.uid", "u-1"));
        assert!(says(json!({}), "sub", "system:serviceaccount:pay:billing"));
        assert!(says(json!({"repository_id": "74"}), "repository_id", "74"));
        for (claims, path, text) in [
            (json!({}), "kubernetes.io.serviceaccount.uid", "u-2"),
            (json!({}), "kubernetes.io.serviceaccount", "u-1"),
            (json!({}), "kubernetes.io", "u-1"),
            (json!({"repository_id": 74}), "repository_id", "74"),
            (json!({"repository_id": ["74"]}), "repository_id", "74"),
            (json!({"kubernetes": {"io": {"namespace": "pay"}}}), "kubernetes.io.namespace", "pay"),
            (json!({"kubernetes.io.namespace": "pay"}), "kubernetes.io.namespace", "pay"),
        ] {
            assert!(!says(claims, path, text), "{path} {text}");
        }
    }

    #[test]
    fn tokens_are_told_apart_by_their_name_or_by_what_is_signed() {
        let hash = |change: &dyn Fn(&mut Value)| {
            let mut claims = good();
            change(&mut claims);
            read(&claims).expect("good").hash
        };
        let first = hash(&|_| {});
        assert_eq!(first, hash(&|claims| claims["exp"] = json!(NOW + 1_000)), "the same name is the same token");
        assert_ne!(first, hash(&|claims| claims["jti"] = json!("j-2")));
        let unnamed = |claims: &mut Value| drop(claims.as_object_mut().expect("an object").remove("jti"));
        assert_ne!(hash(&unnamed), first);
        assert_ne!(
            hash(&unnamed),
            hash(&|claims| {
                unnamed(claims);
                claims["exp"] = json!(NOW + 1_000);
            })
        );
    }
}
