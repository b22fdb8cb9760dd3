//! Back-channel logout (OpenID Connect Back-Channel Logout 1.0 §2.5): the provider tells that somebody signed out there.
//!
//! This is no page: a server sends it, without cookies, so it stands outside the pages' same-site check. It changes nothing
//! without a logout token that the provider signed for this controller, and its refusals say nothing.
//!
//! Providers wait for an answer for a few seconds and do not ask twice. What has come whole is therefore done to its end, also if
//! nobody waits for it any more: the provider's keys may have to be read first.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    Form,
    extract::{ConnectInfo, FromRequest, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use postern_common::time::WallTime;
use serde::Deserialize;

use super::{
    Pages,
    event::{IdentityAction, IdentityEvent, Who},
};
use crate::{identity::rate::AddressPrefix, signals::provider::Ends};

#[derive(Deserialize)]
pub(super) struct Told {
    logout_token: String,
}

pub(super) async fn receive(
    State(pages): State<Arc<Pages>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let now = (pages.web.clock)();
    let address = from.ip().to_canonical();
    if pages.limits.logouts.take(&AddressPrefix::from(address), now).is_err() {
        return answer(StatusCode::TOO_MANY_REQUESTS);
    }
    // Whoever lets the token trickle in holds no place among the requests at work.
    let form = tokio::time::timeout(super::events::BODY, Form::<Told>::from_request(request, &pages)).await;
    let Ok(Ok(Form(told))) = form else { return answer(StatusCode::BAD_REQUEST) };
    let done = super::to_its_end(take(pages, told, address, now)).await;
    answer(done.unwrap_or(StatusCode::SERVICE_UNAVAILABLE))
}

async fn take(pages: Arc<Pages>, told: Told, address: IpAddr, now: WallTime) -> StatusCode {
    let Some(provider) = &pages.web.ways.provider else { return StatusCode::BAD_REQUEST };
    let Ok(_permit) = pages.in_flight.try_acquire() else { return StatusCode::SERVICE_UNAVAILABLE };
    let audit = async |who: Option<Who>, what: IdentityAction| {
        let event = IdentityEvent { at: now, address, who, what };
        pages.web.doors.audit(event).await.is_ok()
    };
    let refused = async |reason: &'static str| {
        tracing::warn!(reason, "a logout token was refused");
        // A line for each would let anybody fill the audit log.
        drop(pages.web.doors.signal_refused("back-channel logout", reason, address).await);
        StatusCode::BAD_REQUEST
    };
    let token = match provider.verify_logout(&told.logout_token, now).await {
        Ok(token) => token,
        Err(crate::identity::oidc::LogoutError::Refused(why)) => return refused(why).await,
        Err(crate::identity::oidc::LogoutError::NotOfNow) => {
            tracing::warn!("a logout token is not of now: one of the clocks is wrong");
            drop(pages.web.doors.logout_not_of_now(address).await);
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        Err(crate::identity::oidc::LogoutError::Unavailable(why)) => {
            tracing::warn!(why, "a logout token cannot be checked");
            return StatusCode::SERVICE_UNAVAILABLE;
        }
    };
    let vouchers = &pages.web.vouchers;
    match vouchers.ends(&token).await {
        Ok(None) => return refused("replayed").await,
        Ok(Some(_)) => {}
        Err(_) => return StatusCode::SERVICE_UNAVAILABLE,
    }
    // First the door, then the rooms: a sign-in that finds its way in meanwhile is turned away when it asks.
    if pages.web.doors.signed_out_at_provider(&token).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let ends = match vouchers.ends(&token).await {
        Ok(Some(ends)) => ends,
        Ok(None) => return refused("replayed").await, // told twice at the same time, and the other one is done
        Err(_) => return StatusCode::SERVICE_UNAVAILABLE,
    };
    // First closed, then noted as used: after a crash in between the provider tells it again, and it is done again.
    if end_browsers(&pages, &ends).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let Ok(machines) = pages.web.doors.provider_ended(&ends).await else {
        return StatusCode::SERVICE_UNAVAILABLE;
    };
    let subject = token.subject.clone().unwrap_or_default();
    let who = Who { issuer: token.issuer.clone(), name: subject.clone(), subject };
    let told = audit(Some(who), IdentityAction::ProviderLogout { machines }).await;
    match told && vouchers.used(&token, &ends).await.is_ok() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn end_browsers(pages: &Pages, ends: &Ends) -> Result<(), crate::identity::StoreFailed> {
    match ends {
        Ends::Sessions(sessions) => {
            for session in sessions {
                pages.web.sessions.end(*session).await?;
            }
        }
        Ends::Person { issuer, subject } => drop(pages.web.sessions.end_of_person(issuer, subject).await?),
    }
    Ok(())
}

fn answer(status: StatusCode) -> Response {
    // §2.8: no-store in every answer.
    (status, [(header::CACHE_CONTROL, "no-store")]).into_response()
}
