//! `[oidc]` of `controller.toml`.

use std::{path::PathBuf, time::Duration};

use postern_common::diagnostics::HumanDuration;
use serde::Deserialize;

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
    /// Scopes beside `openid`.
    #[serde(default = "default_scopes")]
    pub scopes: Vec<String>,
    /// Authentication context classes to ask for, best first.
    #[serde(default)]
    pub acr_values: Vec<String>,
    /// How often the provider is asked whether it still vouches for who signed in, where it gave a refresh token.
    #[serde(default = "default_check_interval")]
    pub check_interval: HumanDuration,
    /// How long the provider may be away before what it vouched for ends.
    #[serde(default = "default_check_grace")]
    pub check_grace: HumanDuration,
    /// PEM certificates that vouch for the provider, beside the system's roots.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
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
fn default_scopes() -> Vec<String> {
    ["profile", "email", "groups"].map(String::from).to_vec()
}
