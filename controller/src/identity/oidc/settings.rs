//! How the operator names a provider.

use std::path::PathBuf;

use url::Url;
use zeroize::Zeroizing;

/// A provider, as the operator names it in `controller.toml`.
#[derive(Clone)]
pub struct ProviderSettings {
    /// The issuer's URL; discovery appends `/.well-known/openid-configuration`. HTTPS, or HTTP on a loopback address.
    pub issuer: Url,
    /// What the button on the sign-in page says: `Sign in with LABEL`.
    pub label: String,
    /// This controller's client identifier at the provider.
    pub client_id: String,
    /// The client's secret, read from a file or the environment; `None` for a public client (PKCE protects it).
    pub client_secret: Option<Zeroizing<String>>,
    /// Scopes to ask for, beyond `openid`; `None` for the usual ones, as far as the provider says that it has them.
    pub scopes: Option<Vec<String>>,
    /// The claim that holds the person's groups.
    pub groups_claim: String,
    /// The claim by which provisioning knows people; `sub` needs none.
    pub provisioned_claim: Option<String>,
    /// Authentication context classes to ask for (`acr_values`), best first.
    pub acr_values: Vec<String>,
    /// A PEM file of further certificate authorities for the provider's own TLS.
    pub ca_file: Option<PathBuf>,
}

impl ProviderSettings {
    /// What is asked for where nobody chose. Stock Keycloak and Entra have no `groups`, and refuse whoever asks for it.
    pub(super) const USUAL_SCOPES: [&str; 3] = ["profile", "email", "groups"];

    /// Names a provider with the usual scopes and the claim `groups`.
    pub fn new(issuer: Url, client_id: impl Into<String>) -> Self {
        Self {
            label: issuer.host_str().unwrap_or("your provider").to_owned(),
            issuer,
            client_id: client_id.into(),
            client_secret: None,
            scopes: None,
            groups_claim: "groups".into(),
            provisioned_claim: None,
            acr_values: Vec::new(),
            ca_file: None,
        }
    }
}

impl std::fmt::Debug for ProviderSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProviderSettings")
            .field("issuer", &self.issuer.as_str())
            .field("client_id", &self.client_id)
            .field("client_secret", &self.client_secret.as_ref().map(|_| "[redacted]"))
            .field("scopes", &self.scopes)
            .field("groups_claim", &self.groups_claim)
            .field("acr_values", &self.acr_values)
            .field("ca_file", &self.ca_file)
            .finish_non_exhaustive()
    }
}
