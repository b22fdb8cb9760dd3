//! Who people and services are to the controller.

use std::collections::BTreeSet;

use postern_common::{
    id::{ServiceName, SessionId, SubjectId},
    time::WallTime,
};
use serde::{Deserialize, Serialize};

use crate::identity::SignedIn;

/// By which name a provider provisions a person, as a sign-in told: the value of one claim. Of another claim it says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisionedName {
    /// The claim.
    pub claim: String,
    /// Its value.
    pub value: String,
}

/// What the core takes from a proven sign-in. The shell makes it from [`SignedIn`] alone, which only
/// [`crate::identity`] can make; tests and simulations write it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// The identity provider's issuer URL; the controller's own URL for local accounts.
    pub issuer: String,
    /// The issuer's name for the person: never given to somebody else (OpenID Connect Core §2).
    pub sub: String,
    /// What people call them. For display; a key only for local accounts, whose names are unique here.
    pub name: String,
    /// Their groups; `None` if the issuer did not say, which satisfies every deny and no access.
    pub groups: Option<BTreeSet<String>>,
    /// The authentication context class, if the issuer said (OpenID Connect Core §2).
    pub acr: Option<String>,
    /// The authentication methods, such as `pwd`, `otp`, `mfa` (RFC 8176).
    pub amr: Vec<String>,
    /// When the person last proved who they are, if the issuer said.
    pub auth_time: Option<WallTime>,
    /// By which name the provider provisions them, if the sign-in told.
    pub provisioned_as: Option<ProvisionedName>,
    /// The browser's login session in which this was done.
    pub web_session: SessionId,
    /// When that ends at the latest.
    pub web_session_until: WallTime,
    /// The session at the provider (`sid`), if it said.
    pub provider_session: Option<String>,
}

impl From<&SignedIn> for Person {
    fn from(proven: &SignedIn) -> Self {
        Self {
            issuer: proven.issuer().to_owned(),
            sub: proven.subject().to_owned(),
            name: proven.name().to_owned(),
            groups: proven.groups().cloned(),
            acr: proven.acr().map(str::to_owned),
            amr: proven.amr().to_vec(),
            auth_time: proven.auth_time(),
            provisioned_as: proven.provisioned_as().cloned(),
            web_session: proven.session(),
            web_session_until: proven.session_until(),
            provider_session: proven.provider_session().map(str::to_owned),
        }
    }
}

impl Person {
    /// Returns the key of the person's record.
    pub fn kind(&self) -> SubjectKind {
        SubjectKind::Person { issuer: self.issuer.clone(), sub: self.sub.clone() }
    }

    /// Returns what a login session keeps of it.
    pub fn assurance(&self) -> Assurance {
        Assurance {
            groups: self.groups.clone(),
            acr: self.acr.clone(),
            amr: self.amr.clone(),
            auth_time: self.auth_time,
        }
    }
}

/// What the identity provider vouched for at a sign-in: input of every decision about the login session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assurance {
    /// The person's groups; `None` if unknown.
    pub groups: Option<BTreeSet<String>>,
    /// The authentication context class.
    pub acr: Option<String>,
    /// The authentication methods.
    pub amr: Vec<String>,
    /// When the person last proved who they are; `None` if unknown.
    pub auth_time: Option<WallTime>,
}

/// What was verified at a sign-in, while it counts for less.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proven {
    /// The authentication context class.
    pub acr: Option<String>,
    /// The authentication methods.
    pub amr: Vec<String>,
    /// When it came to count for less, or for more again.
    pub told: WallTime,
    /// Which security event told so; `None` if that was before this was kept.
    #[serde(default)]
    pub by: Option<String>,
}

/// What a subject is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum SubjectKind {
    /// A person, keyed by issuer and `sub`: never by e-mail, which providers give to somebody else.
    Person {
        /// The issuer URL.
        issuer: String,
        /// The issuer's name for the person.
        sub: String,
    },
    /// A service identity.
    Service {
        /// Its name, without `service:`.
        name: ServiceName,
    },
}

/// A subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubjectRecord {
    /// The subject.
    pub id: SubjectId,
    /// What it is.
    pub kind: SubjectKind,
    /// Its name for people: `alice@corp.example`, `service:billing`.
    pub name: String,
    /// Why it may not take part, if it may not.
    pub disabled: Option<String>,
    /// When it was first seen.
    pub created: WallTime,
    /// When a person last signed in, or a machine of the service was last enrolled.
    pub last_sign_in: WallTime,
    /// By which name the provider provisions a person, as their last sign-in told.
    #[serde(default)]
    pub provisioned_as: Option<ProvisionedName>,
    /// Only a sign-in that was proven after this opens anything: the provider has revoked those before.
    #[serde(default)]
    pub proven_after: Option<WallTime>,
}
