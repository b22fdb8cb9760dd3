//! What is known of a transmitter: its keys, where it takes requests for a verification, which members of a subject are critical.
//!
//! Metadata are found by discovery (SSF 1.0 §7.2) unless the operator names the keys; they are kept for an hour, used older while the
//! transmitter is away, and read again when a token is signed by a key that is not known. How often is limited, so that tokens with
//! invented keys do not become requests.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use openidconnect::{AsyncHttpClient, JsonWebKey, core::CoreJsonWebKeySet};
use postern_common::time::WallTime;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use url::Url;
use zeroize::Zeroizing;

use super::set::{ErrorCode, Refused};
use crate::{
    identity::{
        oidc::{
            SettingsError, accepted, chain,
            http::{self, Http},
            is_signed,
        },
        rate::{Allowance, Buckets},
    },
    signals::jws::Unverified,
};

/// How old metadata and keys may be before they are read again.
const AGE: Duration = Duration::from_secs(3_600);
/// How old they may become while they cannot be read again; and how young they are current for sure.
const LONGEST_AGE: Duration = Duration::from_secs(24 * 3_600);
const CURRENT: Duration = Duration::from_secs(60);
/// How often they are read at most.
const FETCHES: Allowance = Allowance { burst: 6, interval: Duration::from_secs(10) };
/// The most keys that are tried, and members that are critical.
const MAX_LISTED: usize = 64;
/// How long a transmitter may take to accept a request for a verification.
const ASK: Duration = Duration::from_secs(10);

/// A transmitter.
#[derive(Debug)]
pub(super) struct Transmitter {
    issuer: String,
    jwks_url: Option<Url>,
    pub(super) http: Http,
    known: Mutex<Option<Arc<Known>>>,
    /// Where the bearer may go beside the issuer's own host.
    poll_url: Option<Url>,
    fetches: Buckets<()>,
}

/// What is known of it.
#[derive(Debug)]
pub(super) struct Known {
    keys: CoreJsonWebKeySet,
    verification: Option<Url>,
    pub(super) critical: BTreeSet<String>,
    /// When they were read: on the monotonic clock, which nobody sets.
    read_at: Instant,
}

impl Known {
    /// Tells whether a key of that name is known; whoever names none means those that are.
    fn lists(&self, name: Option<&str>) -> bool {
        let is_named =
            |name: &str| self.keys.keys().iter().any(|key| key.key_id().is_some_and(|id| id.as_str() == name));
        name.is_none_or(is_named)
    }
}

/// Why a token was not verified.
#[derive(Debug)]
pub(super) enum Unverifiable {
    /// It does not hold.
    Refused(Refused),
    /// The transmitter's keys cannot be read now.
    Unavailable(String),
}

impl Transmitter {
    pub(super) fn new(
        issuer: &str,
        jwks_url: Option<Url>,
        poll_url: Option<Url>,
        ca_file: Option<&std::path::Path>,
    ) -> Result<Self, SettingsError> {
        Ok(Self {
            issuer: issuer.to_owned(),
            jwks_url,
            poll_url,
            http: http::client(ca_file)?,
            known: Mutex::new(None),
            fetches: Buckets::new(FETCHES, 1),
        })
    }

    /// Checks a token's signature by the transmitter's keys.
    pub(super) async fn verify(&self, token: &Unverified<'_>, now: WallTime) -> Result<Arc<Known>, Unverifiable> {
        let refused = |why| Unverifiable::Refused(Refused { code: ErrorCode::InvalidKey, why });
        let algorithm = accepted(&token.algorithm).ok_or(refused("signed by an algorithm that is not accepted"))?;
        let known = self.known(now).await.map_err(Unverifiable::Unavailable)?;
        if is_signed(&known.keys, token, &algorithm) {
            return Ok(known);
        }
        match self.again(&known, now).await {
            Ok(known) if is_signed(&known.keys, token, &algorithm) => Ok(known),
            Ok(_) => Err(refused("not signed by the transmitter")),
            // It may be signed by a new key, also by one under an old name: the transmitter sends it again when keys can be read again.
            Err(why) if !known.lists(token.key.as_deref()) || known.read_at.elapsed() > CURRENT => {
                Err(Unverifiable::Unavailable(why))
            }
            Err(_) => Err(refused("not signed by the transmitter")),
        }
    }

    async fn known(&self, now: WallTime) -> Result<Arc<Known>, String> {
        let mut known = self.known.lock().await; // held while asking: one fetch serves all who wait
        if let Some(metadata) = known.as_ref()
            && metadata.read_at.elapsed() < AGE
        {
            return Ok(metadata.clone());
        }
        match (self.read(now).await, known.as_ref()) {
            (Ok(fresh), _) => {
                let fresh = Arc::new(fresh);
                *known = Some(fresh.clone());
                Ok(fresh)
            }
            (Err(why), Some(metadata)) if metadata.read_at.elapsed() < LONGEST_AGE => {
                tracing::warn!(why, "a transmitter's metadata are out of date and cannot be read again");
                Ok(metadata.clone())
            }
            (Err(why), Some(_) | None) => Err(why),
        }
    }

    async fn again(&self, old: &Arc<Known>, now: WallTime) -> Result<Arc<Known>, String> {
        let mut known = self.known.lock().await;
        if let Some(metadata) = known.as_ref()
            && !Arc::ptr_eq(metadata, old)
        {
            return Ok(metadata.clone()); // somebody else has just read them
        }
        let fresh = Arc::new(self.read(now).await?);
        *known = Some(fresh.clone());
        Ok(fresh)
    }

    async fn read(&self, now: WallTime) -> Result<Known, String> {
        self.fetches.take(&(), now).map_err(|error| error.to_string())?;
        let (jwks_url, verification, critical) = match &self.jwks_url {
            Some(url) => (url.clone(), None, BTreeSet::new()),
            None => self.discover().await?,
        };
        let keys: Value = self.get(&jwks_url).await?;
        let count = keys["keys"].as_array().map_or(0, Vec::len);
        if count == 0 || count > MAX_LISTED {
            return Err(format!("{count} keys at {jwks_url}"));
        }
        let keys = serde_json::from_value(keys).map_err(|error| format!("the keys at {jwks_url}: {error}"))?;
        Ok(Known { keys, verification, critical, read_at: Instant::now() })
    }

    /// Reads `/.well-known/ssf-configuration`.
    async fn discover(&self) -> Result<(Url, Option<Url>, BTreeSet<String>), String> {
        let configuration = configuration_url(&self.issuer).ok_or("the issuer is no URL")?;
        let metadata = self.get(&configuration).await?;
        if metadata["issuer"].as_str() != Some(&self.issuer) {
            return Err(format!("the metadata at {configuration} are of another issuer")); // SSF 1.0 §7.2.4
        }
        let url = |key: &str| {
            let url = Url::parse(metadata[key].as_str()?).ok()?;
            // Metadata from afar do not send us to our own machine.
            let is_near = url.scheme() == "http" && url.host_str() == Some("127.0.0.1");
            (url.scheme() == "https" || (is_near && url.host() == configuration.host())).then_some(url)
        };
        let jwks = url("jwks_uri").ok_or_else(|| format!("the metadata at {configuration} name no keys"))?;
        let critical = metadata["critical_subject_members"].as_array().into_iter().flatten();
        let critical = critical.filter_map(Value::as_str).take(MAX_LISTED).map(str::to_owned).collect();
        Ok((jwks, url("verification_endpoint"), critical))
    }

    async fn get(&self, url: &Url) -> Result<Value, String> {
        let request = axum::http::Request::get(url.as_str()).header("accept", "application/json").body(Vec::new());
        let request = request.map_err(|error| error.to_string())?;
        let answer = self.http.call(request).await.map_err(|error| format!("{url}: {}", chain(&error)))?;
        if answer.status() != 200 {
            return Err(format!("{url} answers with {}", answer.status()));
        }
        serde_json::from_slice(answer.body()).map_err(|error| format!("{url}: {error}"))
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
        now: WallTime,
    ) -> Result<bool, String> {
        let known = self.known(now).await?;
        let Some(endpoint) = &known.verification else { return Ok(false) };
        if !self.may_have_bearer(endpoint) {
            return Err(format!(
                "the metadata name {endpoint} as `verification_endpoint`: that is neither the issuer's nor the poll's host, \
                 so the token is not shown there"
            ));
        }
        let body = json!({ "stream_id": stream_id, "state": state });
        match self.http.post_json(endpoint, Some(bearer), &body, ASK).await {
            Ok((200..=299, _)) => Ok(true),
            Ok((status, _)) => Err(format!("{endpoint} answers with {status}")),
            Err(error) => Err(format!("{endpoint}: {}", chain(&error))),
        }
    }
}

impl Transmitter {
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
        let transmitter = Transmitter::new("https://tr.example.com/a", None, Some(poll), None).expect("a transmitter");
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
