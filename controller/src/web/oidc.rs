//! To the provider and back.

use axum::{
    extract::Query,
    response::{IntoResponse, Redirect, Response},
};
use postern_common::policy::Demand;
use serde::Deserialize;

use super::{
    event::IdentityAction,
    fault::{Fault, ProviderFault},
    sign_in::{self, Vouched},
    step_up,
    visit::{Next, Person, Visit, WithCookies},
};
use crate::identity::{
    oidc::{Ask, Callback, OidcError},
    random::Token,
    rate::AddressPrefix,
};

#[derive(Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    next: String,
    /// Whether the provider is asked not to go by a session that it has: what was proven there before counts no more.
    #[serde(default)]
    anew: String,
}

pub(super) async fn start(visit: Visit, Query(asked): Query<Asked>) -> Result<Response, Fault> {
    let next = Next::parse(&asked.next);
    let provider = visit.pages.web.ways.provider.as_ref().ok_or(Fault::NotFound)?;
    visit.pages.limits.provider.take(&AddressPrefix::from(visit.address), visit.now)?;
    // The visit's cookie stays the same over several tabs, so that each of their sign-ins can come back.
    let browser = visit.visit.clone().unwrap_or_else(Token::draw);
    let anything = Demand::default();
    let ask = if asked.anew.is_empty() { Ask::SignIn } else { Ask::Anew(&anything) };
    match provider.begin(&browser, &next.path(), ask, visit.now).await {
        Ok(url) => Ok(Redirect::to(url.as_str()).with_visit(&browser)),
        Err(error) => Err(refused(&visit, error).await?),
    }
}

/// Sends somebody who is signed in to the provider, to prove anew who they are.
pub(super) async fn prove_anew(person: Person, next: Next, demand: &Demand) -> Result<Response, Fault> {
    let visit = &person.visit;
    let provider = visit.pages.web.ways.provider.as_ref().ok_or(Fault::NotFound)?;
    visit.pages.limits.provider.take(&AddressPrefix::from(visit.address), visit.now)?;
    let browser = visit.visit.clone().unwrap_or_else(Token::draw);
    match provider.begin(&browser, &next.path(), Ask::Anew(demand), visit.now).await {
        Ok(url) => Ok(Redirect::to(url.as_str()).with_visit(&browser)),
        Err(error) => Err(refused(visit, error).await?),
    }
}

pub(super) async fn callback(visit: Visit, Query(callback): Query<Callback>) -> Result<Response, Fault> {
    let provider = visit.pages.web.ways.provider.as_ref().ok_or(Fault::NotFound)?;
    visit.pages.limits.provider.take(&AddressPrefix::from(visit.address), visit.now)?;
    match provider.finish(callback, visit.visit.as_ref(), visit.now).await {
        Ok((proof, vouching, next)) => {
            if let (Next::StepUp(link), Some((cookie, who))) = (Next::parse(&next), &visit.session) {
                let (cookie, who) = step_up::renew(&visit, cookie, who, proof, None).await?;
                sign_in::note(&visit, &who, &vouching).await?;
                return Ok(step_up::back(link).with_session(&cookie, &who, visit.now));
            }
            let answer = sign_in::finish(&visit, proof, Vouched::ByProvider(&vouching), Next::parse(&next)).await?;
            Ok(answer.into_response())
        }
        Err(error) => Err(refused(&visit, error).await?),
    }
}

/// Records a refusal, and tells the person only what they can do about it.
async fn refused(visit: &Visit, error: OidcError) -> Result<Fault, Fault> {
    tracing::warn!(%error, "a sign-in at the provider was refused");
    visit.audit(None, IdentityAction::SignInRefused { reason: error.word() }).await?;
    Ok(Fault::Provider(match error {
        OidcError::Unavailable(_) => ProviderFault::Away,
        OidcError::State => ProviderFault::Restart,
        OidcError::NotSetUp { error, .. } => ProviderFault::NotSetUp(error),
        OidcError::Issuer | OidcError::Refused(_) | OidcError::Code(_) | OidcError::Token(_) => ProviderFault::Refused,
    }))
}
