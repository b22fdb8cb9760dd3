//! `[oidc.scim]` of `controller.toml`: how people whom a provider provisions meet people who sign in there.
//!
//! A person who signs in is found in the directory by one claim of their token and one attribute of SCIM's, which have to have the
//! same value. Both have to be names that the provider gives to one person for ever: whoever gets somebody else's name gets their
//! groups, and whoever leaves while somebody else has their name is not let go. An e-mail address is such a name nowhere; people
//! marry, leave and come back, and mailboxes are handed on. So claims that people or help desks can change are refused.

use std::time::Duration;

use postern_common::diagnostics::HumanDuration;
use serde::Deserialize;

use crate::records::ScimKey;

/// Claims that name one person for ever: OpenID Connect Core §2, and the object's identifier at Entra.
const PERMANENT: [&str; 2] = ["sub", "oid"];
/// The shortest silence that means something: providers work in cycles.
const LEAST_SILENCE: Duration = Duration::from_secs(600);
/// Claims that name nobody for ever, whatever an operator says (OpenID Connect Core §5.7: only `iss` and `sub` together do).
const CHANGING: [&str; 11] = [
    "email",
    "preferred_username",
    "upn",
    "unique_name",
    "name",
    "nickname",
    "given_name",
    "family_name",
    "phone_number",
    "login_hint",
    "verified_primary_email",
];

/// Whose word counts about who is in which group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupSource {
    /// The directory alone: a change there counts at once.
    #[default]
    Scim,
    /// The token of the sign-in alone.
    Claims,
    /// Both: whoever is in a group by either. Who is unknown to one of them is in groups that nobody knows.
    Both,
}

/// Whether people have to be provisioned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "bool")]
pub enum Admission {
    /// Whoever the provider signs in may come, unless they were deactivated or taken away.
    #[default]
    Anybody,
    /// Only who is provisioned and active.
    Provisioned,
}

impl From<bool> for Admission {
    fn from(required: bool) -> Self {
        if required { Self::Provisioned } else { Self::Anybody }
    }
}

/// The section, as the file says it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScimSection {
    /// The attribute of SCIM's.
    #[serde(default = "default_key", rename = "match")]
    pub key: ScimKey,
    /// The claim of the sign-in's token that has the same value.
    #[serde(default = "default_claim")]
    pub claim: String,
    /// Whose word counts about groups.
    #[serde(default)]
    pub groups: GroupSource,
    /// Whether only people whom SCIM knows may sign in.
    #[serde(default, rename = "required")]
    pub admission: Admission,
    /// Whether the claim, other than those that are known to, names one person for ever.
    #[serde(default, rename = "claim_is_permanent")]
    pub permanence: Permanence,
    /// After how long without a request of the provider's there is an alert.
    #[serde(default = "default_silent_after")]
    pub silent_after: HumanDuration,
}

/// What the operator says of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "bool")]
pub enum Permanence {
    /// Nothing.
    #[default]
    Unknown,
    /// It names one person for ever.
    Promised,
}

impl From<bool> for Permanence {
    fn from(permanent: bool) -> Self {
        if permanent { Self::Promised } else { Self::Unknown }
    }
}

fn default_silent_after() -> HumanDuration {
    HumanDuration::new(Duration::from_secs(7 * 86_400))
}

const fn default_key() -> ScimKey {
    ScimKey::ExternalId
}

fn default_claim() -> String {
    "sub".into()
}

impl ScimSection {
    /// Says what is wrong with the section of the provider with this issuer, and what to do.
    pub fn mistake(&self, issuer: &str) -> Option<(String, String)> {
        let claim = self.claim.as_str();
        if claim.is_empty() || claim.len() > 255 || claim.chars().any(char::is_control) {
            return Some(("`claim` is the name of a claim".into(), "write claim = \"sub\"".into()));
        }
        let entra =
            ["https://login.microsoftonline.", "https://sts.windows.net/", "https://login.partner.microsoftonline."];
        if claim == "sub" && entra.iter().any(|host| issuer.starts_with(host)) {
            let what =
                "Entra's `sub` is another value for each application, and its SCIM client does not know it".to_owned();
            return Some((what, "write claim = \"oid\", and map objectId to externalId at Entra".into()));
        }
        if self.silent_after.get() < LEAST_SILENCE {
            let help = "Entra works in cycles of 40 minutes, and Okta comes when something changes: write some days";
            return Some(("`silent_after` is at least \"10m\"".into(), help.into()));
        }
        if CHANGING.iter().any(|changing| changing.eq_ignore_ascii_case(claim)) {
            let what = format!(
                "`{claim}` does not name a person for ever: somebody else can get it, and with it their groups"
            );
            let help = "write claim = \"sub\" (Okta) or claim = \"oid\" (Entra), and let the provider send the same value as externalId";
            return Some((what, help.into()));
        }
        (!PERMANENT.contains(&claim) && self.permanence == Permanence::Unknown).then(|| {
            let what = format!("does `{claim}` name one person for ever? Whoever else gets the name gets their groups");
            let help = "write claim = \"sub\" (Okta) or claim = \"oid\" (Entra); if nobody but its owner can ever have it, add claim_is_permanent = true";
            (what, help.into())
        })
    }
}

/// What the core goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScimSettings {
    /// The issuer of the provider.
    pub issuer: String,
    /// The attribute of SCIM's.
    pub key: ScimKey,
    /// The claim with the same value.
    pub claim: String,
    /// Whose word counts about groups.
    pub groups: GroupSource,
    /// Whether people have to be provisioned.
    pub admission: Admission,
    /// After how long without a request of the provider's there is an alert.
    pub silent_after: Duration,
}

impl ScimSettings {
    /// Takes the section of the provider with this issuer.
    pub fn new(issuer: String, section: &ScimSection) -> Self {
        let ScimSection { key, claim, groups, admission, permanence: _, silent_after } = section.clone();
        Self { issuer, key, claim, groups, admission, silent_after: silent_after.get() }
    }
}
