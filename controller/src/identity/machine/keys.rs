//! The keys of one issuer: read, kept, and read again when the issuer has changed them.
//!
//! ```text
//! discovery (OpenID Connect Discovery §4) --jwks_uri--> keys --.
//! a file that the operator gives --------------------> keys ----+--> Set, at most an hour old where it can be read again
//! a token names a key that is not among them --> read again, as often as the allowance lets
//! ```
//!
//! Ages are counted on the monotonic clock. Keys that cannot be read again are used for a day ([`STALE`]) and then no longer:
//! an issuer that took a key back must be believed at some time. One fetch at a time serves all who wait for it, [`WAITERS`] of an
//! issuer at most; tokens that known keys have signed wait for no fetch.
//!
//! Bounds: the answer's size and time (`http`), [`MAX_KEYS`], the sizes of RSA moduli (a short one can be broken, a long one
//! costs us minutes), one allowance of fetches an issuer.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use openidconnect::{
    AsyncHttpClient, JsonWebKey, JsonWebKeySet,
    core::{CoreJsonWebKey, CoreJsonWebKeyUse, CoreJwsSigningAlgorithm},
};
use postern_common::time::{Monotonic, Now};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};

use super::token::Unverified;
use crate::{
    identity::{
        oidc::http::Http,
        rate::{Allowance, Buckets},
    },
    serve::files,
};

/// The most keys of one issuer; the others count for nothing.
const MAX_KEYS: usize = 64;
/// How old keys may be before they are read again, and before they are used no longer.
const AGE: Duration = Duration::from_secs(3_600);
const STALE: Duration = Duration::from_secs(86_400);
/// How often an issuer's keys are read at most: unknown key identifiers must not become a flood.
const FETCHES: Allowance = Allowance { burst: 6, interval: Duration::from_secs(10) };
/// How many tokens of one issuer may wait for its keys to be read: the places of [`super::WAITING`] are for all issuers.
const WAITERS: usize = 64;
/// The least and the greatest RSA modulus, bytes (NIST SP 800-131A: 2048 bits at least).
const RSA_MODULUS: std::ops::RangeInclusive<usize> = 256..=1_024;

type Set = JsonWebKeySet<CoreJsonWebKey>;

/// Where keys come from.
#[derive(Debug)]
pub(super) enum Source {
    /// The issuer's discovery document.
    Discovery {
        /// The issuer, as tokens name it.
        issuer: String,
        /// Asks it.
        http: Http,
    },
    /// A file with a JSON Web Key Set (RFC 7517 §5).
    File(PathBuf),
}

/// The keys of one issuer.
#[derive(Debug)]
pub(super) struct Keys {
    source: Source,
    known: RwLock<Option<(Arc<Set>, Monotonic)>>,
    /// Held by whoever reads them.
    reading: Mutex<()>,
    waiters: Semaphore,
    fetches: Buckets<()>,
}

/// What the keys say of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Signature {
    /// One of them signed it.
    Good,
    /// None of them did.
    Unknown,
    /// They cannot be read now.
    Unavailable(String),
}

impl Keys {
    pub(super) fn new(source: Source) -> Self {
        Self {
            source,
            known: RwLock::default(),
            reading: Mutex::default(),
            waiters: Semaphore::new(WAITERS),
            fetches: Buckets::new(FETCHES, 1),
        }
    }

    /// Checks a token's signature; reads the keys again, once, if none of those that are known made it.
    pub(super) async fn signed(
        &self,
        token: &Unverified<'_>,
        algorithm: &CoreJwsSigningAlgorithm,
        now: Now,
    ) -> Signature {
        let keys = match self.current(now).await {
            Ok(keys) => keys,
            Err(why) => return Signature::Unavailable(why),
        };
        if is_signed(&keys, token, algorithm) {
            return Signature::Good;
        }
        match self.again(&keys, now).await {
            Ok(keys) if is_signed(&keys, token, algorithm) => Signature::Good,
            Ok(_) => Signature::Unknown,
            // The keys that are known are good ones: nothing is missing but an excuse for this token.
            Err(why) => {
                tracing::debug!(%why, "keys are not read again");
                Signature::Unknown
            }
        }
    }

    fn known(&self) -> Option<(Arc<Set>, Monotonic)> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn learned(&self, keys: Set, now: Now) -> Arc<Set> {
        let keys = Arc::new(keys);
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some((Arc::clone(&keys), now.monotonic));
        keys
    }

    /// Waits until nobody else reads the keys.
    async fn turn(&self) -> Result<(SemaphorePermit<'_>, MutexGuard<'_, ()>), String> {
        let place = self.waiters.try_acquire().map_err(|_| "too many tokens wait for the issuer's keys".to_owned())?;
        Ok((place, self.reading.lock().await))
    }

    async fn current(&self, now: Now) -> Result<Arc<Set>, String> {
        let younger = |than: Duration| {
            self.known().filter(|(_, read_at)| now.monotonic.since(*read_at) < than).map(|(keys, _)| keys)
        };
        if let Some(keys) = younger(AGE) {
            return Ok(keys);
        }
        // Those who come while they are read again go by the old ones.
        let _turn = match (younger(STALE), self.reading.try_lock()) {
            (Some(keys), Err(_)) => return Ok(keys),
            (Some(_), Ok(reading)) => (None, reading),
            (None, reading) => {
                drop(reading);
                let (place, reading) = self.turn().await?;
                (Some(place), reading)
            }
        };
        if let Some(keys) = younger(AGE) {
            return Ok(keys); // somebody else has just read them
        }
        match (self.read(now).await, younger(STALE)) {
            (Ok(keys), _) => Ok(self.learned(keys, now)),
            (Err(why), Some(keys)) => {
                tracing::warn!(%why, "a machine issuer's keys are out of date and cannot be read again");
                Ok(keys)
            }
            (Err(why), None) => Err(why),
        }
    }

    async fn again(&self, old: &Arc<Set>, now: Now) -> Result<Arc<Set>, String> {
        let _turn = self.turn().await?;
        if let Some((keys, _)) = self.known().filter(|(keys, _)| !Arc::ptr_eq(keys, old)) {
            return Ok(keys); // somebody else has just read them
        }
        Ok(self.learned(self.read(now).await?, now))
    }

    async fn read(&self, now: Now) -> Result<Set, String> {
        self.fetches.take(&(), now.wall).map_err(|error| error.to_string())?;
        match &self.source {
            Source::File(path) => usable(files::read(path).map_err(|error| error.to_string())?.as_bytes()),
            Source::Discovery { issuer, http } => {
                let at = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
                let document: Value = serde_json::from_slice(&fetch(http, &at).await?)
                    .map_err(|_| "the issuer's discovery document is not JSON".to_owned())?;
                // OpenID Connect Discovery §4.3: a document of another issuer must not lend us its keys.
                if document["issuer"].as_str() != Some(issuer) {
                    return Err("the issuer's discovery document names another issuer".into());
                }
                let keys = document["jwks_uri"].as_str().ok_or("the issuer's discovery document names no keys")?;
                if !is_safe(keys) {
                    return Err("the issuer's keys are not at an https URL".into());
                }
                usable(&fetch(http, keys).await?)
            }
        }
    }
}

/// Tells whether what is read from an URL cannot be changed on its way: HTTPS, or this machine.
pub(super) fn is_safe(url: &str) -> bool {
    let Ok(url) = url::Url::parse(url) else { return false };
    let loopback = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(_)) | None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && loopback)
}

async fn fetch(http: &Http, url: &str) -> Result<Vec<u8>, String> {
    let request = axum::http::Request::get(url).header("accept", "application/json").body(vec![]);
    let request = request.map_err(|_| format!("{url} cannot be asked"))?;
    let answer =
        http.call(request).await.map_err(|error| format!("{url}: {}", crate::identity::oidc::chain(&error)))?;
    if !answer.status().is_success() {
        let hint = match answer.status().as_u16() {
            401 | 403 => ": it lets nobody read that without signing in; give the keys by `keys_file`",
            _ => "",
        };
        return Err(format!("{url} answers {}{hint}", answer.status()));
    }
    Ok(answer.into_body())
}

/// Reads a key set; keys that cannot sign safely are left out.
pub(super) fn usable(bytes: &[u8]) -> Result<Set, String> {
    let document: Value = serde_json::from_slice(bytes).map_err(|_| "the keys are not JSON".to_owned())?;
    let keys = document["keys"].as_array().ok_or("this is no JSON Web Key Set: it has no `keys`")?;
    let safe = |key: &&Value| match key["kty"].as_str() {
        Some("RSA") => {
            let modulus = key["n"].as_str().and_then(|n| URL_SAFE_NO_PAD.decode(n).ok()).unwrap_or_default();
            RSA_MODULUS.contains(&modulus.iter().skip_while(|byte| **byte == 0).count())
        }
        Some("EC" | "OKP") => true,
        Some(_) | None => false, // symmetric ones, above all
    };
    let keys = keys.iter().filter(safe).filter_map(|key| serde_json::from_value::<CoreJsonWebKey>(key.clone()).ok());
    let keys: Vec<CoreJsonWebKey> = keys.take(MAX_KEYS).collect();
    if keys.is_empty() {
        return Err("there is no key among them that can be used".into());
    }
    Ok(Set::new(keys))
}

/// Tells whether one of the keys made the token's signature. A token that names no key can only mean an only key.
fn is_signed(keys: &Set, token: &Unverified<'_>, algorithm: &CoreJwsSigningAlgorithm) -> bool {
    let keys = keys.keys();
    keys.iter().any(|key| {
        let named = match &token.key {
            Some(name) => key.key_id().is_some_and(|id| id.as_str() == name),
            None => keys.len() == 1,
        };
        let signs = key.key_use().is_none_or(|purpose| *purpose == CoreJsonWebKeyUse::Signature);
        named && signs && key.verify_signature(algorithm, token.signed.as_bytes(), &token.signature).is_ok()
    })
}
