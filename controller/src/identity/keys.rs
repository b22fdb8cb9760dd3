//! The keys of whoever signs: read, kept, and read again when they were changed. One cache for the provider at which people sign in,
//! for transmitters of security events, and for the platforms of machines.
//!
//! ```text
//! current --younger than AGE--> as they are      --older--> read again; who comes meanwhile goes by the old ones
//! freshen --older than half of AGE--> read again, while nobody waits
//! signed --by none of them--> read again, once, as often as FETCHES lets --> Good | Unknown | Unread
//! cannot be read --> the last good ones, until they are STALE, and then none
//! ```
//!
//! Invariants:
//! - Ages are counted on the monotonic clock, which nobody sets. Keys that cannot be read again are used for a day ([`STALE`]) and then
//!   no longer: whoever took a key back must be believed at some time.
//! - **What was read well is believed, also if it is empty.** A set without a key that can be used is a rotation to none: tokens of
//!   the keys before it are refused from then on. An answer that is no set, or none at all, is a failure, and the last good keys stay.
//! - Names of keys that strangers invent do not become requests: one allowance of fetches for each cache, and one fetch at a time, which
//!   serves all who wait for it, [`WAITERS`] at most. Tokens that known keys have signed wait for no fetch.
//! - A token that names no key can only mean an only key (of the algorithm's kind): nobody has every key tried.
//!
//! Bounds: [`MAX_KEYS`]; the sizes of RSA moduli (a short one can be broken, a long one costs us minutes); the answer's size and time
//! (`oidc::http`).
//!
//! Rejected: to keep the last good keys when an empty set comes, as some do against a slip of the publisher's. The way to say that a
//! key was stolen is to publish it no longer, and there may be no other yet; the slip costs refusals until it is mended, and no more.

use std::{
    future::Future,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use openidconnect::{
    JsonWebKey, JsonWebKeyAlgorithm, JwsSigningAlgorithm,
    core::{CoreJsonWebKey, CoreJsonWebKeySet, CoreJsonWebKeyUse, CoreJwsSigningAlgorithm},
};
use postern_common::time::{Monotonic, Now};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};

use super::rate::{Allowance, Buckets};

/// The most keys of one set; the others count for nothing.
const MAX_KEYS: usize = 64;
/// How old keys may be before they are read again, and before they are used no longer.
const AGE: Duration = Duration::from_secs(3_600);
const STALE: Duration = Duration::from_secs(86_400);
/// How young they are current for sure: who names none of them was not signed by a newer one.
const CURRENT: Duration = Duration::from_secs(60);
/// How often they are read at most: unknown key identifiers must not become a flood.
const FETCHES: Allowance = Allowance { burst: 6, interval: Duration::from_secs(10) };
/// How many tokens may wait for the keys to be read.
const WAITERS: usize = 64;
/// The least and the greatest RSA modulus, bytes (NIST SP 800-131A: 2048 bits at least).
const RSA_MODULUS: std::ops::RangeInclusive<usize> = 256..=1_024;

/// What is published: keys, and what else stands with them.
pub(crate) trait Published: Send + Sync {
    /// Returns the keys.
    fn keys(&self) -> &CoreJsonWebKeySet;
}

impl Published for CoreJsonWebKeySet {
    fn keys(&self) -> &CoreJsonWebKeySet {
        self
    }
}

/// Where it is published.
pub(crate) trait Source: Send + Sync {
    /// What is read there.
    type Found: Published;

    /// Reads it. What is returned is believed; see the module's words on an empty set.
    ///
    /// # Errors
    /// Why it cannot be read now, for the operator's log.
    fn read(&self) -> impl Future<Output = Result<Self::Found, String>> + Send;
}

/// A token's signature, and what it is said to be of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signed<'a> {
    /// The algorithm; it was looked up among those that are accepted.
    pub(crate) algorithm: &'a CoreJwsSigningAlgorithm,
    /// The key that the token names.
    pub(crate) key: Option<&'a str>,
    /// What is signed.
    pub(crate) text: &'a str,
    /// The signature.
    pub(crate) signature: &'a [u8],
}

/// What the keys say of a token.
#[derive(Debug)]
pub(crate) enum Signature<F> {
    /// One of them signed it.
    Good(Arc<F>),
    /// None of them did, and they are those of today.
    Unknown,
    /// None of those that are known did; there may be newer ones, which cannot be read now, and why.
    Unread(String),
    /// There are none to go by, and why.
    Unavailable(String),
}

/// The keys of one publisher.
#[derive(Debug)]
pub(crate) struct Keys<S: Source> {
    source: S,
    known: RwLock<Option<Known<S::Found>>>,
    /// Held by whoever reads them.
    reading: Mutex<()>,
    waiters: Semaphore,
    fetches: Buckets<()>,
}

#[derive(Debug)]
struct Known<F> {
    found: Arc<F>,
    read_at: Monotonic,
}

impl<F> Clone for Known<F> {
    fn clone(&self) -> Self {
        Self { found: Arc::clone(&self.found), read_at: self.read_at }
    }
}

impl<S: Source> Keys<S> {
    pub(crate) fn new(source: S) -> Self {
        Self {
            source,
            known: RwLock::default(),
            reading: Mutex::default(),
            waiters: Semaphore::new(WAITERS),
            fetches: Buckets::new(FETCHES, 1),
        }
    }

    /// Checks a token's signature; reads the keys again, once, if none of those that are known made it.
    pub(crate) async fn signed(&self, token: Signed<'_>, now: Now) -> Signature<S::Found> {
        let found = match self.current(now).await {
            Ok(found) => found,
            Err(why) => return Signature::Unavailable(why),
        };
        if is_signed(found.keys(), token) {
            return Signature::Good(found);
        }
        match self.again(&found, now).await {
            Ok(found) if is_signed(found.keys(), token) => Signature::Good(found),
            Ok(_) => Signature::Unknown,
            Err(why) => {
                tracing::debug!(%why, "keys are not read again");
                let is_current = self.known().is_some_and(|known| now.monotonic.since(known.read_at) <= CURRENT);
                // A key may be another one under its old name.
                if is_current && lists(found.keys(), token.key) { Signature::Unknown } else { Signature::Unread(why) }
            }
        }
    }

    /// Returns what is published, at most [`AGE`] old where it can be read, and [`STALE`] where it cannot.
    ///
    /// # Errors
    /// Why there is nothing to go by.
    pub(crate) async fn current(&self, now: Now) -> Result<Arc<S::Found>, String> {
        let younger = |than: Duration| {
            self.known().filter(|known| now.monotonic.since(known.read_at) < than).map(|known| known.found)
        };
        if let Some(found) = younger(AGE) {
            return Ok(found);
        }
        // Those who come while they are read again go by the old ones.
        let _turn = match (younger(STALE), self.reading.try_lock()) {
            (Some(found), Err(_)) => return Ok(found),
            (Some(_), Ok(reading)) => (None, reading),
            (None, reading) => {
                drop(reading);
                let (place, reading) = self.turn().await?;
                (Some(place), reading)
            }
        };
        if let Some(found) = younger(AGE) {
            return Ok(found); // somebody else has just read them
        }
        match (self.read(now).await, younger(STALE)) {
            (Ok(found), _) => Ok(found),
            (Err(why), Some(found)) => {
                tracing::warn!(%why, "published keys are out of date and cannot be read again");
                Ok(found)
            }
            (Err(why), None) => Err(why),
        }
    }

    /// Reads what is known again at half its age: whoever comes with a token need not wait for it. Nothing while nobody has asked for it.
    pub(crate) async fn freshen(&self, now: Now) {
        let is_due = || self.known().is_some_and(|known| now.monotonic.since(known.read_at) >= AGE / 2);
        if !is_due() {
            return;
        }
        let Ok(_turn) = self.reading.try_lock() else { return };
        if !is_due() {
            return; // somebody else has just read them
        }
        if let Err(why) = self.read(now).await {
            tracing::debug!(%why, "keys are not read again");
        }
    }

    /// Reads what is published again, because a token fits nothing of `old`; nothing is asked if somebody else has just done so.
    ///
    /// # Errors
    /// Why it cannot be read now.
    pub(crate) async fn again(&self, old: &Arc<S::Found>, now: Now) -> Result<Arc<S::Found>, String> {
        let _turn = self.turn().await?;
        if let Some(known) = self.known().filter(|known| !Arc::ptr_eq(&known.found, old)) {
            return Ok(known.found);
        }
        self.read(now).await
    }

    fn known(&self) -> Option<Known<S::Found>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until nobody else reads the keys.
    async fn turn(&self) -> Result<(SemaphorePermit<'_>, MutexGuard<'_, ()>), String> {
        let place =
            self.waiters.try_acquire().map_err(|_| "too many tokens wait for the keys to be read".to_owned())?;
        Ok((place, self.reading.lock().await))
    }

    /// Reads, for whoever holds the turn.
    async fn read(&self, now: Now) -> Result<Arc<S::Found>, String> {
        self.fetches.take(&(), now.wall).map_err(|error| error.to_string())?;
        let found = Arc::new(self.source.read().await?);
        if found.keys().keys().is_empty() {
            tracing::warn!("no key is published that can be used: no token is good until there is one");
        }
        let known = Known { found: Arc::clone(&found), read_at: now.monotonic };
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(known);
        Ok(found)
    }
}

/// Reads a key set (RFC 7517 §5); keys that cannot sign safely are left out, and there may be none at all.
///
/// # Errors
/// Why it is no key set.
pub(crate) fn usable(bytes: &[u8]) -> Result<CoreJsonWebKeySet, String> {
    let document: Value = serde_json::from_slice(bytes).map_err(|_| "the keys are not JSON".to_owned())?;
    let keys = document["keys"].as_array().ok_or("this is no JSON Web Key Set: it has no `keys`")?;
    let safe = |key: &&Value| match key["kty"].as_str() {
        Some("RSA") => {
            let modulus = key["n"].as_str().and_then(|n| URL_SAFE_NO_PAD.decode(n).ok()).unwrap_or_default();
            RSA_MODULUS.contains(&modulus.iter().skip_while(|byte| **byte == 0).count())
        }
        Some("EC") => key["x"].is_string() && key["y"].is_string(),
        Some("OKP") => key["x"].is_string(),
        Some(_) | None => false, // symmetric ones, above all
    };
    let keys = keys.iter().filter(safe).filter_map(|key| serde_json::from_value::<CoreJsonWebKey>(key.clone()).ok());
    Ok(CoreJsonWebKeySet::new(keys.take(MAX_KEYS).collect()))
}

/// Tells whether one of the keys made the token's signature.
pub(crate) fn is_signed(keys: &CoreJsonWebKeySet, token: Signed<'_>) -> bool {
    let signs = |key: &&CoreJsonWebKey| key.key_use().is_none_or(|purpose| *purpose == CoreJsonWebKeyUse::Signature);
    let kind = token.algorithm.key_type();
    let fits = |key: &&CoreJsonWebKey| {
        Some(key.key_type()) == kind.as_ref()
            && match key.signing_alg() {
                JsonWebKeyAlgorithm::Algorithm(only) => only == token.algorithm,
                JsonWebKeyAlgorithm::Unspecified => true,
                JsonWebKeyAlgorithm::Unsupported => false,
            }
    };
    let good =
        |key: &CoreJsonWebKey| key.verify_signature(token.algorithm, token.text.as_bytes(), token.signature).is_ok();
    let mut able = keys.keys().iter().filter(signs).filter(fits);
    match token.key {
        Some(name) => able.filter(|key| key.key_id().is_some_and(|id| id.as_str() == name)).any(good),
        None => matches!((able.next(), able.next()), (Some(only), None) if good(only)),
    }
}

/// Tells whether a key of that name is known; whoever names none means those that are.
fn lists(keys: &CoreJsonWebKeySet, name: Option<&str>) -> bool {
    name.is_none_or(|name| keys.keys().iter().any(|key| key.key_id().is_some_and(|id| id.as_str() == name)))
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
