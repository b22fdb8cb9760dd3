//! What the pages record in the audit log.

use std::net::IpAddr;

use postern_common::{id::SessionId, time::WallTime};
use serde::Serialize;

/// Something that happened at sign-in or on a page, for the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IdentityEvent {
    /// When.
    pub at: WallTime,
    /// The browser's address.
    pub address: IpAddr,
    /// Who, as far as it is known.
    pub who: Option<Who>,
    /// What.
    pub what: IdentityAction,
}

/// A person in an audit record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Who {
    /// The issuer; the controller's URL for a local account.
    pub issuer: String,
    /// The issuer's name of the person; empty if an attempt named no account that exists.
    pub subject: String,
    /// The name for people, as typed or as the issuer gave it.
    pub name: String,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum IdentityAction {
    /// A person signed in.
    SignedIn {
        /// The browser's login session.
        session: SessionId,
        /// The authentication methods.
        amr: Vec<String>,
    },
    /// A person who was signed in proved anew who they are.
    ProvenAnew {
        /// The browser's login session.
        session: SessionId,
        /// The authentication methods.
        amr: Vec<String>,
    },
    /// The provider told that somebody signed out there.
    ProviderLogout {
        /// How many login sessions on machines ended.
        machines: usize,
    },
    /// A sign-in was refused.
    SignInRefused {
        /// Why, as a constant word.
        reason: &'static str,
    },
    /// A person signed out.
    SignedOut {
        /// The browser's login session.
        session: SessionId,
    },
    /// A person set up a second factor.
    SecondFactorEnrolled,
    /// A person added a passkey.
    PasskeyAdded,
    /// A person removed a passkey.
    PasskeyRemoved,
    /// A person set a password by a one-time link.
    PasswordSet {
        /// How many passkeys went with the old one.
        passkeys_removed: u64,
    },
    /// A page was asked for too often.
    RateLimited {
        /// Which page, as a constant word.
        page: &'static str,
    },
}
