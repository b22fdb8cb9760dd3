//! The pages that people see: sign-in, confirm a machine, my resources and machines, a configuration for a stock
//! WireGuard client.
//!
//! ```text
//! request --security::guard--> headers, limits, same-site check --> visit::Visit (cookie -> SignedIn)
//!         --> sign_in | oidc | second_factor | password | join | home | stock --> doors::Doors --> layout --> HTML
//! ```
//!
//! Invariants:
//! - Nothing changes by GET, but for the return from the provider, which is bound to the browser that left.
//! - A form reaches its handler only as [`visit::Posted`]: same site, with the token of this very session.
//! - What machines and providers say is hostile text; every page is made with maud, which escapes all of it.
//! - Pages are whole without scripts. One script makes WireGuard keys in the browser, so that the controller
//!   never sees a private key; another asks the browser for a passkey.
//! - `next` is one of our own paths by name ([`visit::Next`]); there is no way to redirect elsewhere.
//!
//! Threats: device-code phishing (RFC 8628 §5.4: the page shows which machine asks, from where and since when, warns,
//! and confirms only the key that was shown), cross-site requests, session fixation, scripts smuggled in through
//! names, framing, guessing (limits in [`crate::identity`] and here).
//!
//! | module | holds |
//! | --- | --- |
//! | [`doors`], [`event`] | what the pages need from the rest of the controller; what they record |
//! | `security` | headers, limits, the same-site check |
//! | `visit` | who sends a request; forms; cookies |
//! | `layout`, `words`, `assets`, `fault` | the frame of a page; times and codes as text; style, script, icon; refusals |
//! | `sign_in`, `oidc`, `second_factor`, `passkey`, `password` | signing in and out |
//! | `back_channel`, `events` | what the provider, and transmitters of security events, tell by themselves |
//! | `step_up` | stronger or fresher proof for a machine's login session |
//! | `join`, `home`, `stock` | confirm a machine; resources and machines; stock WireGuard clients |

use std::{sync::Arc, time::Duration};

use axum::{
    Router, middleware,
    routing::{get, post},
};
use url::Url;

use crate::identity::{
    Clock,
    local::{Account, Accounts, Enrolment, WaitingRegistration, WaitingSignIn},
    oidc::Provider,
    pending::Pending,
    rate::{AddressPrefix, Allowance, Buckets},
    sessions::WebSessions,
};
use crate::signals::{events::Receivers, provider::Vouchers};

mod assets;
mod back_channel;
pub mod doors;
pub mod event;
mod events;
mod fault;
pub mod fuzzing;
mod home;
mod join;
mod layout;
mod oidc;
mod passkey;
mod password;
mod requests;
mod second_factor;
mod security;
mod sign_in;
mod step_up;
mod stock;
#[cfg(test)]
mod tests;
mod visit;
mod words;

pub use doors::Doors;
pub use stock::{PRIVATE_KEY_PLACE, configuration};

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
    /// What `postern up` is given: the URL, and what the machine shall pin if the certificate is of the controller's own authority.
    pub join_link: String,
    /// How people may sign in.
    pub ways: SignInWays,
    /// The local accounts.
    pub accounts: Arc<Accounts>,
    /// The login sessions of browsers.
    pub sessions: WebSessions,
    /// What the provider vouches for after sign-in.
    pub vouchers: Vouchers,
    /// Streams of security events.
    pub events: Receivers,
    /// The rest of the controller.
    pub doors: Arc<dyn Doors>,
    /// The wall clock.
    pub clock: Clock,
}

/// The most requests at work at once; more are told to come back.
const MAX_IN_FLIGHT: usize = 256;
/// The most half-finished local sign-ins, and how long they wait.
const MAX_HALF: usize = 4_096;
const HALF_LIFETIME: Duration = Duration::from_secs(10 * 60);

/// Does something to its end although its client may go away, with whose connection a handler is dropped. `None` if it broke off itself.
async fn to_its_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    tokio::spawn(work).await.ok()
}

/// The pages' own state: what is half done, and the limits.
struct Pages {
    web: Arc<Web>,
    /// Local sign-ins after the password, by the browser's visit cookie.
    half: Pending<HalfSignIn>,
    /// Authenticators being set up by people who are signed in, by their session cookie.
    enrolments: Pending<Enrolment>,
    /// Passkeys being added, by the session cookie; sign-ins with one, by the cookie of the visit or the session.
    passkeys: Pending<WaitingRegistration>,
    passkey_sign_ins: Pending<WaitingSignIn>,
    limits: Limits,
    in_flight: tokio::sync::Semaphore,
}

impl Pages {
    fn new(web: Arc<Web>) -> Self {
        Self {
            web,
            half: Pending::new(MAX_HALF, HALF_LIFETIME),
            enrolments: Pending::new(MAX_HALF, HALF_LIFETIME),
            passkeys: Pending::new(MAX_HALF, HALF_LIFETIME),
            passkey_sign_ins: Pending::new(MAX_HALF, HALF_LIFETIME),
            limits: Limits::new(),
            in_flight: tokio::sync::Semaphore::new(MAX_IN_FLIGHT),
        }
    }
}

/// A local sign-in whose password was right.
struct HalfSignIn {
    account: Account,
    /// Set while the account's first authenticator is being set up.
    enrolment: Option<Enrolment>,
    next: visit::Next,
}

struct Limits {
    /// Any request.
    requests: Buckets<AddressPrefix>,
    /// Join codes, by address and by person.
    codes_from: Buckets<AddressPrefix>,
    codes_by: Buckets<(String, String)>,
    /// Sign-ins at the provider, begun or returned from.
    provider: Buckets<AddressPrefix>,
    /// Configurations for stock clients.
    stock: Buckets<(String, String)>,
    /// One-time links.
    links: Buckets<AddressPrefix>,
    /// Logout tokens.
    logouts: Buckets<AddressPrefix>,
    /// Security events, by stream, and those who try to send some without being its transmitter.
    events: Buckets<String>,
    strangers: Buckets<AddressPrefix>,
}

impl Limits {
    fn new() -> Self {
        let every = |burst, millis| Allowance { burst, interval: Duration::from_millis(millis) };
        Self {
            requests: Buckets::new(every(200, 200), 8_192),
            // more than one person's, so that nobody can keep colleagues behind the same address from joining
            codes_from: Buckets::new(every(60, 1_000), 8_192),
            codes_by: Buckets::new(every(10, 6_000), 4_096),
            provider: Buckets::new(every(30, 5_000), 8_192),
            stock: Buckets::new(every(10, 30_000), 4_096),
            links: Buckets::new(every(20, 6_000), 8_192),
            // a provider that signs everybody out at once tells each of them
            logouts: Buckets::new(every(500, 20), 1_024),
            events: Buckets::new(every(1_000, 10), 16),
            strangers: Buckets::new(every(20, 1_000), 1_024),
        }
    }
}

/// What servers tell: no page, no cookies, and no same-site check.
fn told_by_servers() -> Router<Arc<Pages>> {
    Router::new()
        .route("/oidc/backchannel-logout", post(back_channel::receive))
        .route("/events/{stream}", post(events::receive))
        .layer(axum::extract::DefaultBodyLimit::max(2 * crate::signals::provider::logout::MAX_TOKEN))
}

/// Makes the router of all pages.
///
/// The server that mounts it puts [`axum::extract::ConnectInfo`]`<SocketAddr>` into each request's extensions (the
/// browser's address, for limits and the audit log), speaks TLS, and sets a time limit on request heads.
pub fn router(web: Arc<Web>) -> Router {
    let pages = Arc::new(Pages::new(web));
    Router::new()
        .route("/", get(home::show))
        .route("/sign-in", get(sign_in::show).post(sign_in::submit))
        .route("/sign-in/code", get(second_factor::show).post(second_factor::submit))
        .route("/sign-in/passkey", post(passkey::sign_in))
        .route("/passkeys", get(passkey::show).post(passkey::add))
        .route("/passkeys/remove", post(passkey::remove))
        .route("/step-up/{secret}/passkey", post(step_up::by_passkey))
        .route("/sign-out", post(sign_in::sign_out))
        .route("/oidc/start", get(oidc::start))
        .route("/oidc/callback", get(oidc::callback))
        .route("/second-factor", get(second_factor::show_enrolment).post(second_factor::submit_enrolment))
        .route("/password/{link}", get(password::show).post(password::submit))
        .route("/join", get(join::show).post(join::submit_code))
        .route("/join/confirm", post(join::confirm))
        .route("/join/refuse", post(join::refuse))
        .route("/step-up/{secret}", get(step_up::show).post(step_up::confirm))
        .route("/step-up/{secret}/prove", post(step_up::prove))
        .route("/step-up/{secret}/provider", get(step_up::to_provider))
        .route("/wireguard", get(stock::show).post(stock::submit))
        .route("/requests", get(requests::show))
        .route("/requests/decide", post(requests::decide))
        .route("/sessions/end", post(home::end_session))
        .route("/devices/remove", post(home::remove_device))
        .route("/assets/{name}", get(assets::serve))
        .fallback(fault::not_found)
        .method_not_allowed_fallback(fault::wrong_method)
        .layer(axum::extract::DefaultBodyLimit::max(security::MAX_BODY))
        .layer(middleware::from_fn_with_state(pages.clone(), security::guard))
        .merge(told_by_servers())
        .with_state(pages)
}
