//! Sign-in at an OpenID provider, with the controller as the relying party.

mod settings;

use std::sync::Arc;

pub use settings::ProviderSettings;
use url::Url;

/// A provider, ready to be asked. It is discovered at the first sign-in, not at start, so that a provider that is away
/// does not keep the controller down.
#[derive(Debug)]
pub struct Provider {
    settings: ProviderSettings,
    callback: Url,
}

/// Tells why a provider's settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The issuer is neither HTTPS nor on a loopback address.
    #[error("the issuer `{0}` is not HTTPS: tokens would travel in clear")]
    Insecure(Url),
    /// The file of certificate authorities cannot be read.
    #[error("the certificate authorities in {path} cannot be used: {why}")]
    Authorities {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl Provider {
    /// Prepares a provider. `public_url` is the controller's own; the provider sends people back to `/oidc/callback` there.
    ///
    /// # Errors
    /// If the settings cannot be used.
    pub fn new(settings: ProviderSettings, public_url: &Url) -> Result<Arc<Self>, SettingsError> {
        let mut callback = public_url.clone();
        callback.set_path("/oidc/callback");
        Ok(Arc::new(Self { settings, callback }))
    }
}
