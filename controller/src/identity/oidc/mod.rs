//! Sign-in at an OpenID provider, with the controller as the relying party: authorization code with PKCE.
//!
//! ```text
//! Provider::begin(next, browser) --> URL at the provider; state, nonce and verifier wait in `Pending`
//! callback(state, code, iss, browser) --Provider::finish--> token request --> ID token, verified --> Proof
//! ```
//!
//! With [`Ask::Anew`] the provider is asked for `prompt=login` and `max_age`, and `auth_time` must say that it did.
//!
//! Checked: `state` (drawn here, taken once, and only by the browser that began: its cookie's hash is kept with it);
//! `iss` in the callback (RFC 9207); PKCE S256 (RFC 7636); of the ID token (OIDC Core §3.1.3.7) `iss`, `aud` with no
//! other audience, `azp`, an asymmetric signature by a key of the provider's, `exp`, `iat`, `nonce`, `at_hash`.
//!
//! Symmetric algorithms are not accepted even where they would be sound (a confidential client), because the same
//! secret would then both ask for tokens and make them. Only the ID token is read, never the user-info endpoint: one
//! signed statement is easier to reason about than two answers.

mod claims;
mod fuzzing;
pub(crate) mod http;
mod later;
mod settings;

pub(crate) use claims::is_misleading;
pub(in crate::identity) use claims::presentable;
pub use fuzzing::fuzz_claims;
pub(crate) use later::accepted;
pub use later::{LogoutError, Refusal};
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use openidconnect::{
    AccessTokenHash, AuthType, AuthenticationContextClass, AuthorizationCode, Client, ClientId, ClientSecret,
    CsrfToken, EndpointMaybeSet, EndpointNotSet, EndpointSet, IssuerUrl, Nonce, OAuth2TokenResponse, PkceCodeChallenge,
    PkceCodeVerifier, RedirectUrl, RequestTokenError, Scope, SignatureVerificationError, TokenResponse,
    core::{
        CoreAuthDisplay, CoreAuthPrompt, CoreAuthenticationFlow, CoreClientAuthMethod, CoreGenderClaim, CoreJsonWebKey,
        CoreJsonWebKeySet, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm, CoreRevocableToken,
        CoreRevocationErrorResponse, CoreTokenIntrospectionResponse,
    },
};
use postern_common::{
    policy::{Demand, Phishing},
    time::{Now, WallTime},
};
pub use settings::ProviderSettings;
use url::Url;
use zeroize::Zeroizing;

use self::claims::{Metadata, OtherClaims, TokenAnswer, TokenErrorAnswer};
use super::{
    Proof,
    keys::{Keys, Published, Source},
    pending::Pending,
    random::{Token, TokenHash},
};
use crate::{serve::clock, signals::provider::Vouching};

type RelyingParty = Client<
    OtherClaims,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    TokenErrorAnswer,
    TokenAnswer,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

/// Signature algorithms of ID tokens that are accepted, where the provider says that it uses them.
const ALGORITHMS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

/// The most sign-ins that may be under way at the provider; what expires first makes room.
const MAX_PENDING: usize = 4_096;
/// How long a person may take at the provider.
const PENDING_LIFETIME: Duration = Duration::from_secs(15 * 60);
/// How far a provider's clock may go ahead of ours, and how old a fresh token may be, seconds.
const CLOCK_SKEW: i64 = 60;
const TOKEN_AGE: i64 = 600;
/// What providers answer where the scopes, the client or its secret are not what they know.
const SET_UP: [&str; 4] = ["invalid_scope", "unauthorized_client", "invalid_client", "unsupported_response_type"];

/// A provider, ready to be asked. It is discovered at the first sign-in, not at start, so that a provider that is away
/// does not keep the controller down.
#[derive(Debug)]
pub struct Provider {
    settings: ProviderSettings,
    issuer: IssuerUrl,
    callback: RedirectUrl,
    http: http::Http,
    known: Keys<Discovery>,
    pending: Pending<PendingSignIn>,
}

/// Where a provider says what it is: its discovery document, and the keys that are named there.
#[derive(Debug)]
struct Discovery {
    issuer: IssuerUrl,
    http: http::Http,
}

impl Published for Metadata {
    fn keys(&self) -> &CoreJsonWebKeySet {
        self.jwks()
    }
}

impl Source for Discovery {
    type Found = Metadata;

    async fn read(&self) -> Result<Metadata, String> {
        Metadata::discover_async(self.issuer.clone(), &self.http).await.map_err(|error| chain(&error))
    }
}

#[derive(Debug)]
struct PendingSignIn {
    browser: TokenHash,
    nonce: Nonce,
    verifier: PkceCodeVerifier,
    next: String,
    /// The earliest moment at which the person may have proven who they are.
    proven_after: Option<WallTime>,
}

/// What the provider is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Ask<'a> {
    /// Who this is.
    SignIn,
    /// To have the person prove it anew, as strongly as this.
    Anew(&'a Demand),
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
    /// The HTTP client cannot be made.
    #[error("the HTTP client for the provider cannot be made: {0}")]
    Client(String),
}

/// What came back with the person from the provider (RFC 6749 §4.1.2, RFC 9207).
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct Callback {
    state: Option<String>,
    code: Option<String>,
    iss: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

/// Tells why a sign-in at the provider came to nothing. [`OidcError::word`] is for the audit log, the source for the
/// operator's log; the person sees neither.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// The provider does not answer, or answers with something else than OpenID Connect.
    #[error("the provider cannot be asked: {0}")]
    Unavailable(String),
    /// No sign-in of this browser waits under this state: forged, too late, used, or another browser's.
    #[error("no sign-in waits for this answer")]
    State,
    /// The answer names another issuer, or none where the provider promises one (RFC 9207 §2.4).
    #[error("the answer is not this provider's")]
    Issuer,
    /// The provider said no; the person may have.
    #[error("the provider refused: {0}")]
    Refused(String),
    /// It refused because of how the controller or the client at the provider is set up: to try again does not help.
    #[error("the provider does not take how sign-in is set up: {error}: {described}")]
    NotSetUp {
        /// Its word, a constant of this module.
        error: &'static str,
        /// What it says of it, cleaned and cut.
        described: String,
    },
    /// The code was not exchanged for a token.
    #[error("the code was not accepted: {0}")]
    Code(String),
    /// The ID token does not hold.
    #[error("the ID token was refused: {0}")]
    Token(String),
}

impl OidcError {
    /// Returns a constant word for the audit log.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "provider_unavailable",
            Self::State => "oidc_state",
            Self::Issuer => "oidc_issuer",
            Self::Refused(_) => "provider_refused",
            Self::NotSetUp { .. } => "provider_set_up",
            Self::Code(_) => "oidc_code",
            Self::Token(_) => "oidc_token",
        }
    }
}

/// Reads the value of a groups claim, as in an ID token.
pub(crate) fn claims_groups(value: &serde_json::Value) -> Option<std::collections::BTreeSet<String>> {
    claims::groups(Some(value))
}

/// Tells whether a provider's word (RFC 6749 §4.1.2.1, §5.2) means that something is not set up as it should be.
fn not_set_up(error: &str, described: &str) -> Option<OidcError> {
    let error = SET_UP.into_iter().find(|word| *word == error)?;
    Some(OidcError::NotSetUp { error, described: short(described) })
}

/// Cuts and cleans a provider's word for a log.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// Writes an error with its sources, for the operator's log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    short(&text)
}

impl Provider {
    /// Prepares a provider. `public_url` is the controller's own; the provider sends people back to `/oidc/callback` there.
    ///
    /// # Errors
    /// If the settings cannot be used.
    pub fn new(settings: ProviderSettings, public_url: &Url) -> Result<Arc<Self>, SettingsError> {
        let loopback = match settings.issuer.host() {
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            Some(url::Host::Domain(_)) | None => false,
        };
        if settings.issuer.scheme() != "https" && !loopback {
            return Err(SettingsError::Insecure(settings.issuer));
        }
        let mut callback = public_url.clone();
        callback.set_path("/oidc/callback");
        // An issuer is compared as text (OIDC Discovery §4.3); `Url` writes a slash after a bare host, issuers do not.
        let issuer = match settings.issuer.path() {
            "/" => settings.issuer.as_str().trim_end_matches('/'),
            _ => settings.issuer.as_str(),
        };
        let issuer = IssuerUrl::new(issuer.to_owned()).map_err(|error| SettingsError::Client(error.to_string()))?;
        let http = http::client(settings.ca_file.as_deref())?;
        Ok(Arc::new(Self {
            callback: RedirectUrl::from_url(callback),
            known: Keys::new(Discovery { issuer: issuer.clone(), http: http.clone() }),
            issuer,
            http,
            pending: Pending::new(MAX_PENDING, PENDING_LIFETIME),
            settings,
        }))
    }

    /// Returns what the button says after `Sign in with`.
    pub fn label(&self) -> &str {
        &self.settings.label
    }

    /// Returns the scheme, host and port to which the sign-in form redirects, for the page's form-action.
    pub fn origin(&self) -> String {
        self.settings.issuer.origin().ascii_serialization()
    }

    /// Begins a sign-in of one browser and returns the provider's URL for it. `next` comes back from [`Self::finish`].
    ///
    /// # Errors
    /// [`OidcError::Unavailable`] if the provider cannot be discovered.
    pub async fn begin(&self, browser: &Token, next: &str, ask: Ask<'_>, now: WallTime) -> Result<Url, OidcError> {
        let metadata = self.metadata(now).await?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let state = Token::draw();
        let csrf = CsrfToken::new(state.expose().to_owned());
        let client = self.relying_party(&metadata);
        let mut request = client
            .authorize_url(CoreAuthenticationFlow::AuthorizationCode, move || csrf, Nonce::new_random)
            .set_pkce_challenge(challenge)
            .add_scopes(self.scopes(&metadata).into_iter().map(Scope::new));
        let mut classes = self.settings.acr_values.clone();
        if let Ask::Anew(demand) = ask {
            // Asking is only a hint (OIDC Core §3.1.2.1): what comes back is verified, here and by policy.
            let max_age = demand.mfa_within.unwrap_or_default();
            request = request.add_prompt(CoreAuthPrompt::Login).set_max_age(max_age);
            match (demand.acr.is_empty(), demand.phishing) {
                (false, _) => classes.clone_from(&demand.acr),
                (true, Phishing::Resistant) => classes.splice(0..0, ["phrh", "phr"].map(str::to_owned)).for_each(drop),
                (true, Phishing::Any) => {}
            }
        }
        for acr in classes {
            request = request.add_auth_context_value(AuthenticationContextClass::new(acr));
        }
        let (url, _, nonce) = request.url();
        let proven_after = match ask {
            Ask::SignIn => None,
            Ask::Anew(_) => Some(WallTime::from_millis(now.as_millis() - CLOCK_SKEW * 1_000)),
        };
        let waiting = PendingSignIn { browser: browser.hash(), nonce, verifier, next: next.to_owned(), proven_after };
        self.pending.put(&state, waiting, now);
        Ok(url)
    }

    /// Finishes a sign-in: takes what waits under the answer's state, exchanges the code and verifies the ID token.
    /// Returns what it proves, and the `next` of [`Self::begin`].
    ///
    /// # Errors
    /// Each check has its own [`OidcError`].
    pub(crate) async fn finish(
        &self,
        callback: Callback,
        browser: Option<&Token>,
        now: WallTime,
    ) -> Result<(Proof, Vouching, String), OidcError> {
        let state = callback.state.as_deref().and_then(Token::presented).ok_or(OidcError::State)?;
        let waiting = self.pending.take(&state, now).ok_or(OidcError::State)?;
        if browser.map(Token::hash) != Some(waiting.browser) {
            return Err(OidcError::State);
        }
        let metadata = self.metadata(now).await?;
        let promised = metadata.additional_metadata().authorization_response_iss_parameter_supported;
        match &callback.iss {
            Some(issuer) if issuer != self.issuer.as_str() => return Err(OidcError::Issuer),
            None if promised => return Err(OidcError::Issuer),
            Some(_) | None => {}
        }
        if let Some(error) = &callback.error {
            let described = callback.error_description.as_deref().unwrap_or_default();
            let both = if described.is_empty() { error.clone() } else { format!("{error}: {described}") };
            let refused = || OidcError::Refused(short(&both));
            return Err(not_set_up(error, described).unwrap_or_else(refused));
        }
        let code = callback.code.filter(|code| !code.is_empty()).ok_or_else(|| OidcError::Code("no code".into()))?;
        let answer = self.exchange(&metadata, code, waiting.verifier).await?;
        let verified = match self.verify(&metadata, &answer, &waiting.nonce, now) {
            Err(Unverified::UnknownKey) => {
                let metadata = self.refreshed_keys(&metadata, now).await?;
                self.verify(&metadata, &answer, &waiting.nonce, now)
            }
            other => other,
        };
        match verified {
            Ok((proof, vouching)) => match waiting.proven_after {
                // A provider may ignore `prompt` and `max_age`; then nothing was proven anew.
                Some(after) if proof.auth_time.is_none_or(|at| at < after) => {
                    Err(OidcError::Token("nothing was proven anew".into()))
                }
                Some(_) | None => Ok((proof, vouching, waiting.next)),
            },
            Err(Unverified::UnknownKey) => {
                Err(OidcError::Token("signed by a key that the provider does not list".into()))
            }
            Err(Unverified::Refused(why)) => Err(OidcError::Token(why)),
        }
    }

    /// Returns the scopes to ask for: those that the operator chose, or the usual ones that the provider lists. One that lists none at all
    /// (OIDC Discovery §3 only recommends it) is asked for what every provider has (OIDC Core §5.4).
    fn scopes(&self, metadata: &Metadata) -> Vec<String> {
        if let Some(chosen) = &self.settings.scopes {
            return chosen.clone();
        }
        let lists = |name: &str| match metadata.scopes_supported() {
            Some(listed) => listed.iter().any(|scope| scope.as_str() == name),
            None => matches!(name, "profile" | "email"),
        };
        ProviderSettings::USUAL_SCOPES.into_iter().filter(|name| lists(name)).map(str::to_owned).collect()
    }

    fn relying_party(&self, metadata: &Metadata) -> RelyingParty {
        let secret = self.settings.client_secret.as_ref().map(|secret| ClientSecret::new(secret.to_string()));
        let client_id = ClientId::new(self.settings.client_id.clone());
        // RFC 6749 §2.3.1 prefers HTTP Basic, which is also the default where the provider lists nothing.
        let in_body = metadata.token_endpoint_auth_methods_supported().is_some_and(|methods| {
            methods.contains(&CoreClientAuthMethod::ClientSecretPost)
                && !methods.contains(&CoreClientAuthMethod::ClientSecretBasic)
        });
        Client::from_provider_metadata(metadata.clone(), client_id, secret)
            .set_redirect_uri(self.callback.clone())
            .set_auth_type(if in_body { AuthType::RequestBody } else { AuthType::BasicAuth })
    }

    async fn exchange(
        &self,
        metadata: &Metadata,
        code: String,
        verifier: PkceCodeVerifier,
    ) -> Result<TokenAnswer, OidcError> {
        let client = self.relying_party(metadata);
        let request = client
            .exchange_code(AuthorizationCode::new(code))
            .map_err(|error| OidcError::Unavailable(error.to_string()))?
            .set_pkce_verifier(verifier);
        let asked = request.request_async(&self.http).await;
        asked.map_err(|error| match &error {
            RequestTokenError::ServerResponse(refusal) => {
                let described = refusal.error_description().map(String::as_str).unwrap_or_default();
                let other = || OidcError::Code(short(&refusal.to_string()));
                not_set_up(refusal.error().as_ref(), described).unwrap_or_else(other)
            }
            RequestTokenError::Request(why) => OidcError::Unavailable(chain(why)),
            RequestTokenError::Parse(why, _) => OidcError::Unavailable(chain(why)),
            RequestTokenError::Other(why) => OidcError::Unavailable(short(why)),
        })
    }

    fn verify(
        &self,
        metadata: &Metadata,
        answer: &TokenAnswer,
        nonce: &Nonce,
        now: WallTime,
    ) -> Result<(Proof, Vouching), Unverified> {
        let refused = |why: &str| Unverified::Refused(why.to_owned());
        let client = self.relying_party(metadata);
        let offered = metadata.id_token_signing_alg_values_supported();
        let seconds = now.as_millis().div_euclid(1_000);
        let verifier = client
            .id_token_verifier()
            .set_allowed_algs(ALGORITHMS.into_iter().filter(|algorithm| offered.contains(algorithm)))
            .set_issue_time_verifier_fn(|issued| match seconds - issued.timestamp() {
                age if (-CLOCK_SKEW..=TOKEN_AGE).contains(&age) => Ok(()),
                age => Err(format!("issued {age} s ago")),
            });
        let token = answer.id_token().ok_or_else(|| refused("there is none"))?;
        let claims = token.claims(&verifier, nonce).map_err(|error| match &error {
            openidconnect::ClaimsVerificationError::SignatureVerification(
                SignatureVerificationError::NoMatchingKey | SignatureVerificationError::CryptoError(_),
            ) => Unverified::UnknownKey, // also a key that was replaced under its old identifier, or without one
            _ => Unverified::Refused(chain(&error)),
        })?;
        if claims.expiration().timestamp() <= seconds {
            return Err(refused("expired"));
        }
        // The library leaves `azp` to its callers (OIDC Core §3.1.3.7, 4 and 5).
        if claims.authorized_party().is_some_and(|party| party.as_str() != self.settings.client_id) {
            return Err(refused("issued to another client"));
        }
        if let Some(expected) = claims.access_token_hash() {
            let algorithm = token.signing_alg().map_err(|error| Unverified::Refused(chain(&error)))?;
            let key = token.signing_key(&verifier).map_err(|error| Unverified::Refused(chain(&error)))?;
            let actual = AccessTokenHash::from_token(answer.access_token(), algorithm, key)
                .map_err(|error| Unverified::Refused(chain(&error)))?;
            if actual != *expected {
                return Err(refused("the access token is another one's"));
            }
        }
        let proof = claims::proof(
            claims,
            &self.settings.groups_claim,
            self.settings.provisioned_claim.as_deref(),
            now,
            now.saturating_add(Duration::from_secs(CLOCK_SKEW as u64)),
        )
        .ok_or_else(|| refused("no usable subject"))?;
        let refresh_token = answer.refresh_token().map(|token| Zeroizing::new(token.secret().clone()));
        Ok((proof, Vouching { sid: claims::sid(claims), refresh_token }))
    }

    /// Returns the provider's metadata, read at most an hour ago where it answers, and not older than a day where it does not.
    async fn metadata(&self, now: WallTime) -> Result<Arc<Metadata>, OidcError> {
        self.known.current(both(now)).await.map_err(OidcError::Unavailable)
    }

    /// Reads the provider's metadata and keys again before they are out of date: a logout token that waits for them may come too late.
    pub(crate) async fn freshen(&self, now: WallTime) {
        self.known.freshen(both(now)).await;
    }

    /// Reads the provider's metadata and keys again, because a token names a key that is not known.
    async fn refreshed_keys(&self, old: &Arc<Metadata>, now: WallTime) -> Result<Arc<Metadata>, OidcError> {
        self.known.again(old, both(now)).await.map_err(OidcError::Unavailable)
    }
}

/// Adds the monotonic clock, by which keys grow old, to the time of a request.
fn both(wall: WallTime) -> Now {
    Now { wall, ..clock::now() }
}

enum Unverified {
    UnknownKey,
    Refused(String),
}
