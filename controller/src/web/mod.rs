//! The pages that people see: sign-in, confirm a machine, my resources and machines, a configuration for a stock
//! WireGuard client.

use std::sync::Arc;

use url::Url;

use crate::identity::{Clock, local::Accounts, oidc::Provider, sessions::WebSessions};

pub mod doors;
pub mod event;

pub use doors::Doors;

/// How people may sign in.
#[derive(Debug, Clone)]
pub struct SignInWays {
    /// A provider, if one is configured.
    pub provider: Option<Arc<Provider>>,
    /// Local accounts.
    pub local: LocalAccounts,
}

/// Whether people may sign in with local accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalAccounts {
    /// The page shows no form.
    Off,
    /// A second factor is asked for where one was set up.
    SecondFactorOptional,
    /// Who has none yet sets one up at the first sign-in.
    SecondFactorRequired,
}

/// Everything that the pages work with.
pub struct Web {
    /// The controller's own URL: scheme, host and port, no path.
    pub public_url: Url,
    /// How people may sign in.
    pub ways: SignInWays,
    /// The local accounts.
    pub accounts: Arc<Accounts>,
    /// The login sessions of browsers.
    pub sessions: WebSessions,
    /// The rest of the controller.
    pub doors: Arc<dyn Doors>,
    /// The wall clock.
    pub clock: Clock,
}

/// Makes the router of all pages.
///
/// The server that mounts it puts [`axum::extract::ConnectInfo`]`<SocketAddr>` into each request's extensions (the
/// browser's address, for limits and the audit log), speaks TLS, and sets a time limit on request heads.
pub fn router(web: Arc<Web>) -> axum::Router {
    drop(web);
    axum::Router::new()
}
