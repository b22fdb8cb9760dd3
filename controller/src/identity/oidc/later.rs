//! What the provider is asked, and what it tells, after a sign-in: whether it still vouches, and that somebody signed out.

use openidconnect::{
    OAuth2TokenResponse, RefreshToken, RequestTokenError,
    core::{CoreErrorResponseType, CoreJwsSigningAlgorithm},
};
use postern_common::time::WallTime;
use zeroize::Zeroizing;

use super::{ALGORITHMS, OidcError, Provider, both, chain, short};
use crate::{
    identity::keys::Signature,
    signals::provider::logout::{self, LogoutToken, Unheld},
};

/// Why the provider did not vouch again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It refused this very refresh token: the sign-in is over there (RFC 6749 §5.2, `invalid_grant`).
    Ended,
    /// It could not be asked, or refused for a reason that is not the person's.
    Away(String),
}

/// Why a logout token does nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogoutError {
    /// It does not hold. A constant text, for the audit log.
    Refused(&'static str),
    /// It holds, and is not of now: a clock is wrong, or it is an old one.
    NotOfNow,
    /// The provider's keys cannot be read now.
    Unavailable(String),
}

impl Provider {
    /// Asks whether the provider still vouches for whom it gave this refresh token (RFC 6749 §6). Returns the token that takes
    /// its place, if it gave one.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) async fn still_vouches(&self, token: &str, now: WallTime) -> Result<Option<Zeroizing<String>>, Refusal> {
        let away = |error: OidcError| Refusal::Away(error.to_string());
        let metadata = self.metadata(now).await.map_err(away)?;
        let client = self.relying_party(&metadata);
        let token = RefreshToken::new(token.to_owned());
        let request = client.exchange_refresh_token(&token).map_err(|error| Refusal::Away(error.to_string()))?;
        match request.request_async(&self.http).await {
            Ok(answer) => Ok(answer.refresh_token().map(|token| Zeroizing::new(token.secret().clone()))),
            Err(RequestTokenError::ServerResponse(refusal)) => match refusal.error() {
                CoreErrorResponseType::InvalidGrant => Err(Refusal::Ended),
                _other => Err(Refusal::Away(short(&refusal.to_string()))),
            },
            Err(RequestTokenError::Request(why)) => Err(Refusal::Away(chain(&why))),
            Err(RequestTokenError::Parse(why, _)) => Err(Refusal::Away(chain(&why))),
            Err(RequestTokenError::Other(why)) => Err(Refusal::Away(short(&why))),
        }
    }

    /// Checks a logout token in every part (Back-Channel Logout 1.0 §2.6).
    ///
    /// # Errors
    /// [`LogoutError`].
    pub(crate) async fn verify_logout(&self, text: &str, now: WallTime) -> Result<LogoutToken, LogoutError> {
        let token = logout::parse(text).map_err(LogoutError::Refused)?;
        let algorithm = accepted(&token.algorithm);
        let algorithm = algorithm.ok_or(LogoutError::Refused("signed by an algorithm that is not accepted"))?;
        match self.known.signed(token.signed_by(&algorithm), both(now)).await {
            Signature::Good(metadata) if metadata.id_token_signing_alg_values_supported().contains(&algorithm) => {}
            Signature::Good(_) => {
                return Err(LogoutError::Refused("signed by an algorithm that the provider does not use"));
            }
            Signature::Unknown => return Err(LogoutError::Refused("not signed by the provider")),
            Signature::Unread(why) | Signature::Unavailable(why) => return Err(LogoutError::Unavailable(why)),
        }
        token.claims(self.issuer.as_str(), &self.settings.client_id, now).map_err(|why| match why {
            Unheld::Refused(why) => LogoutError::Refused(why),
            Unheld::NotOfNow => LogoutError::NotOfNow,
        })
    }
}

/// Finds the algorithm of that name among those that are accepted.
pub(crate) fn accepted(name: &str) -> Option<CoreJwsSigningAlgorithm> {
    ALGORITHMS
        .into_iter()
        .find(|algorithm| serde_json::to_value(algorithm).is_ok_and(|known| known.as_str() == Some(name)))
}
