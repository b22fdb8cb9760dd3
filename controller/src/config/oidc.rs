//! `[oidc]` of `controller.toml`.

use std::{path::PathBuf, time::Duration};

use postern_common::diagnostics::{Diagnostic, Diagnostics, HumanDuration};
use serde::Deserialize;
use toml::Spanned;
use url::Url;

use crate::signals::scim::settings::{ScimSection, ScimSettings};

/// A provider for sign-in (OpenID Connect), as the file says it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oidc {
    /// The issuer URL.
    pub issuer: String,
    /// What people call the provider on the sign-in page.
    #[serde(default = "default_provider_name")]
    pub name: String,
    /// The controller's client identifier at the provider.
    pub client_id: String,
    /// A file with the client secret; a public client if absent.
    #[serde(default)]
    pub client_secret_file: Option<PathBuf>,
    /// The claim that lists a person's groups.
    #[serde(default = "default_groups_claim")]
    pub groups_claim: String,
    /// Scopes beside `openid`; if absent `profile`, `email` and `groups`, as far as the provider says that it has them.
    #[serde(default)]
    pub scopes: Option<Vec<String>>,
    /// Authentication context classes to ask for, best first.
    #[serde(default)]
    pub acr_values: Vec<String>,
    /// How often the provider is asked whether it still vouches for who signed in, where it gave a refresh token.
    #[serde(default = "default_check_interval")]
    pub check_interval: HumanDuration,
    /// How long the provider may be away before what it vouched for ends.
    #[serde(default = "default_check_grace")]
    pub check_grace: HumanDuration,
    /// What the provider provisions by SCIM, if it does.
    #[serde(default)]
    pub scim: Option<ScimSection>,
    /// PEM certificates that vouch for the provider, beside the system's roots.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

impl Oidc {
    /// Returns what the core goes by about people whom the provider provisions.
    pub fn scim_settings(&self) -> Option<ScimSettings> {
        // As the provider's tokens say it: `Url` writes a slash after a bare host, issuers do not.
        let issuer = match Url::parse(&self.issuer) {
            Ok(url) if url.path() == "/" => url.as_str().trim_end_matches('/').to_owned(),
            Ok(url) => url.into(),
            Err(_) => self.issuer.clone(),
        };
        self.scim.as_ref().map(|section| ScimSettings::new(issuer, section))
    }
}

/// Explains what is wrong with the section; `own` is the controller's URL.
pub(super) fn check(written: &Spanned<Oidc>, own: &str, wrong: &mut Diagnostics) {
    let (oidc, at) = (written.get_ref(), written.span());
    if !oidc.issuer.starts_with("https://") && !oidc.issuer.starts_with("http://127.0.0.1") {
        wrong.push(Diagnostic::at(at.clone(), "the issuer must begin with https://"));
    }
    if oidc.check_interval.get() < Duration::from_secs(5) {
        wrong.push(Diagnostic::at(at.clone(), "`check_interval` is at least \"5s\""));
    }
    if let Some((what, help)) = oidc.scim.as_ref().and_then(|scim| scim.mistake(&oidc.issuer)) {
        wrong.push(Diagnostic::at(at.clone(), format!("[oidc.scim]: {what}")).help(help));
    }
    if same_issuer(&oidc.issuer, own) {
        let what = "the issuer is the controller's own URL, which names local accounts";
        let help = "`user:NAME` in the policy would mean the provider's people too: write the provider's issuer";
        wrong.push(Diagnostic::at(at, what).help(help));
    }
}

/// Tells whether two URLs name one issuer, however they are written.
fn same_issuer(one: &str, other: &str) -> bool {
    let plain = |text: &str| Url::parse(text).map(|url| url.as_str().trim_end_matches('/').to_owned());
    matches!((plain(one), plain(other)), (Ok(one), Ok(other)) if one == other)
}

fn default_check_interval() -> HumanDuration {
    HumanDuration::new(Duration::from_secs(300))
}
fn default_check_grace() -> HumanDuration {
    HumanDuration::new(Duration::from_secs(4 * 3_600))
}
fn default_provider_name() -> String {
    "single sign-on".into()
}
fn default_groups_claim() -> String {
    "groups".into()
}
