//! Who a person is: sign-in at a provider (OIDC) or with a local account, login sessions of browsers, join codes,
//! and the limits on guessing.
//!
//! ```text
//! browser --/sign-in--> local::Accounts: password, then code --+
//! browser --/oidc-----> oidc::Provider::begin                  +--> SignedIn --> sessions::WebSessions --> web pages
//! provider --callback-> oidc::Provider::finish ---------------+
//! ```
//!
//! Invariants:
//! - A person is `(issuer, subject)`. Names and e-mail addresses are shown and never compared (an address can be
//!   reassigned, and a second provider can claim it).
//! - [`SignedIn`] is made here alone, after every check; whoever holds one need not check again.
//! - Nothing here is unbounded: pending sign-ins, rate-limit tables and sessions of one person have stated bounds.
//! - Secrets that we must recognise but not read (cookies, links) are stored as SHA-256 of 256 random bits;
//!   passwords as Argon2id.
//!
//! Threats: a forged or replayed callback (state bound to the browser, PKCE, nonce, `iss`), a token meant for another
//! client (`aud`, `azp`), key confusion and `alg: none` (allow-list of asymmetric algorithms), guessing of passwords,
//! one-time codes and join codes (limits by account and by address), locking somebody out on purpose (a lock ends by
//! itself and does not hold for an address from which that account signed in before), a stolen database (hashes only).
//!
//! Rejected: sealed cookies in place of rows in the database, because a session must be revocable at once.
//!
//! | module | holds |
//! | --- | --- |
//! | [`oidc`] | the relying party: discovery, authorization code with PKCE, verification of ID tokens |
//! | `keys` | published keys: one cache for providers, transmitters and platforms |
//! | [`machine`] | tokens of the platforms on which services run |
//! | [`local`] | local accounts: passwords, one-time codes, administration |
//! | [`sessions`] | login sessions of browsers |
//! | [`user_code`] | the short code that ties a waiting machine to a signed-in person |
//! | [`pending`] | half-finished sign-ins |
//! | [`rate`] | bounded token buckets |
//! | [`random`] | random tokens and their hashes |

use std::{collections::BTreeSet, sync::Arc};

use postern_common::{id::SessionId, time::WallTime};
use serde::{Deserialize, Serialize};

use crate::records::ProvisionedName;

pub(crate) mod json;
pub(crate) mod keys;
pub mod local;
pub mod machine;
pub mod oidc;
pub mod pending;
pub mod random;
pub mod rate;
pub mod sessions;
pub mod user_code;

/// Reads the wall clock; tests pass a clock of their own.
pub type Clock = Arc<dyn Fn() -> WallTime + Send + Sync>;

/// Returns the clock of the operating system.
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        WallTime::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    })
}

/// What a provider or a local account proves about a person at one sign-in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proof {
    pub(crate) issuer: String,
    pub(crate) subject: String,
    pub(crate) name: String,
    pub(crate) groups: Option<BTreeSet<String>>,
    pub(crate) acr: Option<String>,
    pub(crate) amr: Vec<String>,
    pub(crate) auth_time: Option<WallTime>,
    /// By which name the provider provisions the person.
    #[serde(default)]
    pub(crate) provisioned_as: Option<ProvisionedName>,
    /// The session at the provider (`sid`), if it said.
    #[serde(default)]
    pub(crate) sid: Option<String>,
}

/// A person who has signed in, with a login session that was live when this value was made.
///
/// Only this module makes one: from a fresh sign-in or from a live login session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedIn {
    proof: Proof,
    session: SessionId,
    session_until: WallTime,
}

impl SignedIn {
    /// Returns who vouches for the person: the provider's issuer, or the controller's own URL for a local account.
    pub fn issuer(&self) -> &str {
        &self.proof.issuer
    }

    /// Returns the issuer's own, never reassigned name of the person (OIDC Core §2, `sub`).
    pub fn subject(&self) -> &str {
        &self.proof.subject
    }

    /// Returns the name for people: an e-mail address or login. Never an identity.
    pub fn name(&self) -> &str {
        &self.proof.name
    }

    /// Returns the person's groups; `None` if the issuer did not say, which is not the same as no groups.
    pub fn groups(&self) -> Option<&BTreeSet<String>> {
        self.proof.groups.as_ref()
    }

    /// Returns the authentication context class (OIDC Core §2, `acr`).
    pub fn acr(&self) -> Option<&str> {
        self.proof.acr.as_deref()
    }

    /// Returns the authentication methods (RFC 8176), such as `pwd` and `otp`.
    pub fn amr(&self) -> &[String] {
        &self.proof.amr
    }

    /// Returns when the person proved who they are; `None` if the issuer did not say.
    pub const fn auth_time(&self) -> Option<WallTime> {
        self.proof.auth_time
    }

    /// Returns by which name the provider provisions the person (SCIM), if the sign-in told.
    pub const fn provisioned_as(&self) -> Option<&ProvisionedName> {
        self.proof.provisioned_as.as_ref()
    }

    /// Returns the session at the provider (`sid`), if the sign-in told.
    pub fn provider_session(&self) -> Option<&str> {
        self.proof.sid.as_deref()
    }

    /// Returns the identifier of the browser's login session (not its cookie).
    pub const fn session(&self) -> SessionId {
        self.session
    }

    /// Returns when the browser's login session ends at the latest.
    pub const fn session_until(&self) -> WallTime {
        self.session_until
    }

    /// Makes a person for tests of what comes after sign-in.
    #[cfg(test)]
    pub(crate) fn for_test(issuer: &str, subject: &str, name: &str, groups: &[&str]) -> Self {
        Self {
            proof: Proof {
                issuer: issuer.into(),
                subject: subject.into(),
                name: name.into(),
                groups: Some(groups.iter().map(|group| (*group).to_owned()).collect()),
                acr: None,
                amr: vec!["pwd".into(), "otp".into()],
                auth_time: None,
                provisioned_as: None,
                sid: None,
            },
            session: SessionId::from_bytes([1; 16]),
            session_until: WallTime::NEVER,
        }
    }
}

/// A failure of the store under the identity functions: the operator's to mend, and a refusal to the person.
#[derive(Debug, thiserror::Error)]
#[error("the identity store failed")]
pub struct StoreFailed(#[from] sqlx::Error);
