//! From a verified ID token to what it proves.

use std::collections::{BTreeMap, BTreeSet};

use openidconnect::{
    AdditionalClaims, AdditionalProviderMetadata, IdTokenClaims, IdTokenFields, ProviderMetadata,
    StandardErrorResponse, StandardTokenResponse,
    core::{
        CoreAuthDisplay, CoreClaimName, CoreClaimType, CoreClientAuthMethod, CoreErrorResponseType, CoreGenderClaim,
        CoreGrantType, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm,
        CoreJwsSigningAlgorithm, CoreResponseMode, CoreResponseType, CoreSubjectIdentifierType, CoreTokenType,
    },
};
use postern_common::time::WallTime;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{identity::Proof, records::ProvisionedName};

/// The most groups that are read from a token, and the longest name of one, bytes.
const MAX_GROUPS: usize = 2_000;
const MAX_GROUP_BYTES: usize = 256;
/// The longest class or method that is read, bytes.
const MAX_WORD_BYTES: usize = 256;

/// How names of other things than people begin, in rules and in what the controller prints.
const SELECTORS: [&str; 9] = ["service", "user", "group", "tag", "device", "node", "rule", "session", "resource"];
/// Characters that look like a colon.
const LIKE_COLONS: [char; 6] = ['\u{ff1a}', '\u{fe55}', '\u{a789}', '\u{2236}', '\u{2d0}', '\u{589}'];

/// Every claim beyond the standard ones: the groups are among them, under a name of the operator's choice.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct OtherClaims {
    #[serde(flatten)]
    claims: BTreeMap<String, Value>,
}

impl AdditionalClaims for OtherClaims {}

/// What we read of a provider's metadata beyond OpenID Connect Discovery.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct OtherMetadata {
    /// RFC 9207 §3.
    #[serde(default)]
    pub(super) authorization_response_iss_parameter_supported: bool,
}

impl AdditionalProviderMetadata for OtherMetadata {}

pub(super) type Metadata = ProviderMetadata<
    OtherMetadata,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

pub(super) type Claims = IdTokenClaims<OtherClaims, CoreGenderClaim>;

pub(super) type TokenAnswer = StandardTokenResponse<
    IdTokenFields<
        OtherClaims,
        openidconnect::EmptyExtraTokenFields,
        CoreGenderClaim,
        CoreJweContentEncryptionAlgorithm,
        CoreJwsSigningAlgorithm,
    >,
    CoreTokenType,
>;

pub(super) type TokenErrorAnswer = StandardErrorResponse<CoreErrorResponseType>;

/// Reads what a verified token proves; `None` if its subject is empty.
/// A sign-in after `latest` has not been yet: its time is unknown. One after `now` is of now: by a provider's clock that is ahead, what
/// was proven before something happened must not count as proven after it.
pub(super) fn proof(
    claims: &Claims,
    groups_claim: &str,
    provisioned_claim: Option<&str>,
    now: WallTime,
    latest: WallTime,
) -> Option<Proof> {
    let subject = claims.subject().as_str();
    if subject.is_empty() || subject.len() > 255 {
        return None; // OIDC Core §2: at most 255 ASCII characters
    }
    // An address that the provider calls unverified may be anybody's, and a name that looks like an address misleads.
    let email = claims.email().filter(|_| claims.email_verified() != Some(false)).map(|email| email.as_str());
    let username = claims.preferred_username().map(|name| name.as_str());
    let username = username.filter(|name| email.is_some() || !name.contains('@') || claims.email().is_none());
    let name = email.or(username).map(presentable).filter(|name| !name.is_empty());
    Some(Proof {
        issuer: claims.issuer().as_str().to_owned(),
        subject: subject.to_owned(),
        name: name.unwrap_or_else(|| presentable(subject)),
        groups: groups(claims.additional_claims().claims.get(groups_claim)),
        acr: claims.auth_context_ref().map(|acr| acr.as_str().to_owned()).filter(|acr| acr.len() <= MAX_WORD_BYTES),
        amr: claims
            .auth_method_refs()
            .into_iter()
            .flatten()
            .map(|method| method.as_str().to_owned())
            .filter(|method| method.len() <= MAX_WORD_BYTES)
            .take(16)
            .collect(),
        auth_time: claims
            .auth_time()
            .map(|time| WallTime::from_millis(time.timestamp_millis()))
            .filter(|at| *at <= latest)
            .map(|at| at.min(now)),
        provisioned_as: provisioned_claim
            .and_then(|claim| name_at(claims, claim).map(|value| ProvisionedName { claim: claim.to_owned(), value })),
        sid: sid(claims),
    })
}

/// Reads a claim that names the person; nothing that is not one text.
fn name_at(claims: &Claims, claim: &str) -> Option<String> {
    let name = match claim {
        "sub" => claims.subject().as_str(),
        claim => claims.additional_claims().claims.get(claim)?.as_str()?,
    };
    (!name.is_empty() && name.len() <= MAX_WORD_BYTES).then(|| name.to_owned())
}

/// Reads the session at the provider.
pub(super) fn sid(claims: &Claims) -> Option<String> {
    let sid = claims.additional_claims().claims.get("sid")?.as_str()?;
    (!sid.is_empty() && sid.len() <= MAX_WORD_BYTES).then(|| sid.to_owned())
}

/// Reads groups: a list of texts, or one text. `None`, unknown, for anything else and for what is missing.
pub(super) fn groups(claim: Option<&Value>) -> Option<BTreeSet<String>> {
    let text = |value: &Value| value.as_str().filter(|text| text.len() <= MAX_GROUP_BYTES).map(str::to_owned);
    match claim? {
        Value::Array(values) if values.len() <= MAX_GROUPS => values.iter().map(text).collect(),
        Value::String(_) => claim.and_then(text).map(|group| BTreeSet::from([group])),
        Value::Array(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

/// Tells whether a character could reorder, hide or break text in a page, a terminal or a log.
pub(crate) fn is_misleading(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Leaves out what is misleading ([`is_misleading`]), and cuts at 120 characters. A name that
/// reads like one of our own selectors (`service:billing`) is shown as what it is, a name at the provider.
pub(in crate::identity) fn presentable(name: &str) -> String {
    let kept: String = name.chars().filter(|c| !is_misleading(*c)).take(120).collect();
    let kept = kept.trim();
    // Colons of other scripts look the same on a terminal.
    let plain: String = kept.chars().map(|c| if LIKE_COLONS.contains(&c) { ':' } else { c }).collect();
    let first = plain.split_once(':').map(|(word, _)| word.trim().to_lowercase());
    if first.is_some_and(|word| SELECTORS.contains(&word.as_str())) { format!("oidc/{plain}") } else { kept.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn groups_that_are_missing_or_malformed_are_unknown_and_an_empty_list_is_not() {
        let set = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>());
        assert_eq!(groups(Some(&json!(["a", "b", "a"]))), set(&["a", "b"]));
        assert_eq!(groups(Some(&json!("a"))), set(&["a"]));
        assert_eq!(groups(Some(&json!([]))), set(&[]));
        for unknown in [json!(null), json!({"a": true}), json!(["a", 7]), json!(true), json!(["x".repeat(257)])] {
            assert_eq!(groups(Some(&unknown)), None, "{unknown}");
        }
        assert_eq!(groups(Some(&json!(vec!["a"; MAX_GROUPS + 1]))), None);
        assert_eq!(groups(None), None);
    }

    #[test]
    fn names_cannot_turn_a_line_around() {
        assert_eq!(presentable("ali\u{202e}ce\n\x1b[2J\u{200b}"), "alice[2J");
        assert_eq!(presentable(&"x".repeat(500)).len(), 120);
        assert_eq!(presentable("a\u{61c}l\u{ad}i\u{e0041}ce\u{fe0f}\u{3164} "), "alice");
    }

    #[test]
    fn a_persons_name_does_not_read_like_a_service() {
        for name in
            ["service:billing", " Service : billing", "service\u{ff1a}billing", "ser\u{200b}vice:billing", "group:ops"]
        {
            let shown = presentable(name);
            assert!(shown.starts_with("oidc/") && !shown.contains('\u{200b}'), "{name} is shown as {shown}");
        }
        for name in ["alice@corp.example", "auth0|service", "urn:example:7"] {
            assert_eq!(presentable(name), name);
        }
    }
}
