//! What is known of a transmitter: its keys, where it takes requests for a verification, which members of a subject are critical.
//!
//! Metadata are found by discovery (SSF 1.0 §7.2) unless the operator names the keys; how long they are kept, and when they are read
//! again, is the cache's ([`keys`]). A token that may be of a key which cannot be read now is left with the transmitter.
//!
//! The operator's token is shown where the operator said, and at the issuer: metadata alone do not decide who gets it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use openidconnect::{AsyncHttpClient, core::CoreJsonWebKeySet};
use postern_common::time::Now;
use serde_json::{Value, json};
use url::Url;
use zeroize::Zeroizing;

use super::set::{ErrorCode, Refused};
use crate::{
    identity::{
        keys::{self, Keys, Published, Signature, Source},
        oidc::{
            SettingsError, accepted, chain,
            http::{self, Http},
        },
    },
    signals::jws::Unverified,
};

/// The most members of a subject that are called critical.
const MAX_CRITICAL: usize = 64;
/// How long a transmitter may take to accept a request for a verification.
const ASK: Duration = Duration::from_secs(10);

/// A transmitter.
#[derive(Debug)]
pub(super) struct Transmitter {
    issuer: String,
    pub(super) http: Http,
    known: Keys<Metadata>,
    /// Where the bearer may go beside the issuer's own host.
    poll_url: Option<Url>,
    /// Where a verification is asked for, if the operator says so.
    verification_url: Option<Url>,
}

/// Where what is known of it is read.
#[derive(Debug)]
struct Metadata {
    issuer: String,
    jwks_url: Option<Url>,
    http: Http,
}

/// What is known of it.
#[derive(Debug)]
pub(super) struct Known {
    keys: CoreJsonWebKeySet,
    verification: Option<Url>,
    pub(super) critical: BTreeSet<String>,
}

impl Published for Known {
    fn keys(&self) -> &CoreJsonWebKeySet {
        &self.keys
    }
}

impl Source for Metadata {
    type Found = Known;

    async fn read(&self) -> Result<Known, String> {
        let (jwks_url, verification, critical) = match &self.jwks_url {
            Some(url) => (url.clone(), None, BTreeSet::new()),
            None => self.discover().await?,
        };
        let keys = keys::usable(&self.get(&jwks_url).await?).map_err(|why| format!("{jwks_url}: {why}"))?;
        Ok(Known { keys, verification, critical })
    }
}

/// Where a transmitter is asked, as the operator says.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    pub(super) jwks_url: Option<Url>,
    pub(super) poll_url: Option<Url>,
    pub(super) verification_url: Option<Url>,
}

/// Why a token was not verified.
#[derive(Debug)]
pub(super) enum Unverifiable {
    /// It does not hold.
    Refused(Refused),
    /// The transmitter's keys cannot be read now.
    Unavailable(String),
}

impl Metadata {
    /// Reads `/.well-known/ssf-configuration`.
    async fn discover(&self) -> Result<(Url, Option<Url>, BTreeSet<String>), String> {
        let configuration = configuration_url(&self.issuer).ok_or("the issuer is no URL")?;
        let metadata: Value = serde_json::from_slice(&self.get(&configuration).await?)
            .map_err(|error| format!("{configuration}: {error}"))?;
        if metadata["issuer"].as_str() != Some(&self.issuer) {
            return Err(format!("the metadata at {configuration} are of another issuer")); // SSF 1.0 §7.2.4
        }
        let url = |key: &str| {
            let url = Url::parse(metadata[key].as_str()?).ok()?;
            http::may_lead_to(&configuration, &url).then_some(url)
        };
        let jwks = url("jwks_uri").ok_or_else(|| format!("the metadata at {configuration} name no keys"))?;
        let critical = metadata["critical_subject_members"].as_array().into_iter().flatten();
        let critical = critical.filter_map(Value::as_str).take(MAX_CRITICAL).map(str::to_owned).collect();
        Ok((jwks, url("verification_endpoint"), critical))
    }

    async fn get(&self, url: &Url) -> Result<Vec<u8>, String> {
        let request = axum::http::Request::get(url.as_str()).header("accept", "application/json").body(Vec::new());
        let request = request.map_err(|error| error.to_string())?;
        let answer = self.http.call(request).await.map_err(|error| format!("{url}: {}", chain(&error)))?;
        if answer.status() != 200 {
            return Err(format!("{url} answers with {}", answer.status()));
        }
        Ok(answer.into_body())
    }
}

impl Transmitter {
    pub(super) fn new(
        issuer: &str,
        addresses: Addresses,
        ca_file: Option<&std::path::Path>,
    ) -> Result<Self, SettingsError> {
        let http = http::client(ca_file)?;
        let Addresses { jwks_url, poll_url, verification_url } = addresses;
        let known = Keys::new(Metadata { issuer: issuer.to_owned(), jwks_url, http: http.clone() });
        Ok(Self { issuer: issuer.to_owned(), http, known, poll_url, verification_url })
    }

    /// Checks a token's signature by the transmitter's keys.
    pub(super) async fn verify(&self, token: &Unverified<'_>, now: Now) -> Result<Arc<Known>, Unverifiable> {
        let refused = |why| Unverifiable::Refused(Refused { code: ErrorCode::InvalidKey, why });
        let algorithm = accepted(&token.algorithm).ok_or(refused("signed by an algorithm that is not accepted"))?;
        match self.known.signed(token.signed_by(&algorithm), now).await {
            Signature::Good(known) => Ok(known),
            Signature::Unknown => Err(refused("not signed by the transmitter")),
            // It may be signed by a new key, also by one under an old name: the transmitter sends it again when keys can be read again.
            Signature::Unread(why) | Signature::Unavailable(why) => Err(Unverifiable::Unavailable(why)),
        }
    }

    /// Asks for a verification, if the transmitter offers that. Returns whether it does.
    ///
    /// # Errors
    /// What went wrong.
    pub(super) async fn ask_for_verification(
        &self,
        stream_id: &str,
        state: &str,
        bearer: &Zeroizing<String>,
        now: Now,
    ) -> Result<bool, String> {
        let Some(endpoint) = self.verification_endpoint(now).await? else { return Ok(false) };
        let body = json!({ "stream_id": stream_id, "state": state });
        match self.http.post_json(&endpoint, Some(bearer), &body, ASK).await {
            Ok((200..=299, _)) => Ok(true),
            Ok((status, _)) => Err(format!("{endpoint} answers with {status}")),
            Err(error) => Err(format!("{endpoint}: {}", chain(&error))),
        }
    }
}

impl Transmitter {
    /// Returns where a verification is asked for: where the operator says, else where the metadata say, if the operator's token may be
    /// shown there.
    async fn verification_endpoint(&self, now: Now) -> Result<Option<Url>, String> {
        if let Some(endpoint) = &self.verification_url {
            return Ok(Some(endpoint.clone()));
        }
        let known = self.known.current(now).await?;
        match &known.verification {
            Some(endpoint) if !self.may_have_bearer(endpoint) => Err(format!(
                "the metadata name {endpoint} as `verification_endpoint`: that is neither the issuer's nor the poll's host, \
                 so the token is not shown there; if that is right, write verification_url = \"{endpoint}\""
            )),
            Some(endpoint) => Ok(Some(endpoint.clone())),
            None => Ok(None),
        }
    }

    /// Tells whether the operator's token may be shown there: metadata alone do not decide who gets it.
    fn may_have_bearer(&self, endpoint: &Url) -> bool {
        let issuer = Url::parse(&self.issuer).ok();
        issuer.iter().chain(&self.poll_url).any(|known| known.origin() == endpoint.origin())
    }
}

/// Puts `/.well-known/ssf-configuration` between host and path (SSF 1.0 §7.2.1).
fn configuration_url(issuer: &str) -> Option<Url> {
    let mut url = Url::parse(issuer).ok()?;
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&format!("/.well-known/ssf-configuration{path}"));
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bearer_goes_to_hosts_that_the_operator_named_alone() {
        let poll = Url::parse("https://poll.example.com/p").expect("a URL");
        let addresses = Addresses { poll_url: Some(poll), ..Addresses::default() };
        let transmitter = Transmitter::new("https://tr.example.com/a", addresses, None).expect("a transmitter");
        for (endpoint, may) in [
            ("https://tr.example.com/verify", true),
            ("https://poll.example.com/verify", true),
            ("https://tr.example.com:8443/verify", false),
            ("https://evil.example.com/verify", false),
            ("http://127.0.0.1/verify", false),
        ] {
            let endpoint = Url::parse(endpoint).expect("a URL");
            assert_eq!(transmitter.may_have_bearer(&endpoint), may, "{endpoint}");
        }
    }

    #[test]
    fn the_configuration_stands_between_host_and_path() {
        for (issuer, expected) in [
            ("https://tr.example.com", "https://tr.example.com/.well-known/ssf-configuration"),
            ("https://tr.example.com/", "https://tr.example.com/.well-known/ssf-configuration"),
            ("https://tr.example.com/a/b/", "https://tr.example.com/.well-known/ssf-configuration/a/b"),
        ] {
            assert_eq!(configuration_url(issuer).map(String::from).as_deref(), Some(expected));
        }
    }
}
