//! The push endpoint for security events (RFC 8935): `/events/NAME`.
//!
//! This is no page: a server sends it, without cookies. Who does not show the stream's token is turned away before the body is read;
//! a body is read within [`BODY`] and [`MAX_TOKEN`], and takes no place among the requests at work while it comes.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    body::{Body, to_bytes},
    extract::{ConnectInfo, Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::Pages;
use crate::{
    identity::rate::AddressPrefix,
    signals::events::{
        Outcome,
        set::{ErrorCode, MAX_TOKEN, Refused},
    },
};

/// How long a body may take to come.
pub(super) const BODY: Duration = Duration::from_secs(10);
/// RFC 8935 §2.1.
const MEDIA_TYPE: &str = "application/secevent+jwt";

pub(super) async fn receive(
    State(pages): State<Arc<Pages>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let (address, now) = (from.ip().to_canonical(), (pages.web.clock)());
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let receiver = pages.web.events.named(&name);
    let Some(receiver) = receiver.filter(|receiver| receiver.is_from_transmitter(text(header::AUTHORIZATION))) else {
        // Strangers have their own limit, so that they use up nothing of the transmitter's.
        if pages.limits.strangers.take(&AddressPrefix::from(address), now).is_err() {
            return plain(StatusCode::TOO_MANY_REQUESTS);
        }
        let Some(receiver) = receiver else { return plain(StatusCode::NOT_FOUND) };
        let Ok(_permit) = pages.in_flight.try_acquire() else { return plain(StatusCode::SERVICE_UNAVAILABLE) };
        let refused = Refused { code: ErrorCode::AuthenticationFailed, why: "the transmitter's token is not shown" };
        receiver.refused(refused, Some(address)).await;
        let mut answer = refusal(StatusCode::UNAUTHORIZED, refused);
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        return answer;
    };
    if pages.limits.events.take(&name, now).is_err() {
        return plain(StatusCode::TOO_MANY_REQUESTS);
    }
    let refuse = async |why: &'static str| {
        let refused = Refused { code: ErrorCode::InvalidRequest, why };
        receiver.refused(refused, Some(address)).await;
        refusal(StatusCode::BAD_REQUEST, refused)
    };
    let kind = text(header::CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case(MEDIA_TYPE) {
        return refuse("not of the media type application/secevent+jwt").await;
    }
    if super::security::is_too_long(&body, MAX_TOKEN) {
        return refuse("too long, or broken off").await;
    }
    let token = match tokio::time::timeout(BODY, to_bytes(body, MAX_TOKEN)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => return refuse("too long, or broken off").await,
        Err(_) => return refuse("it did not come in time").await,
    };
    let Ok(token) = String::from_utf8(token.into()) else { return refuse("no text").await };
    let receiver = Arc::clone(receiver);
    // A transmitter that does not wait for the answer may not ask again either.
    let taken = super::to_its_end(async move {
        let Ok(_permit) = pages.in_flight.try_acquire() else { return Outcome::Later };
        receiver.take(&token, None, Some(address)).await
    });
    match taken.await.unwrap_or(Outcome::Later) {
        Outcome::Taken => plain(StatusCode::ACCEPTED),
        Outcome::Refused(refused) => refusal(StatusCode::BAD_REQUEST, refused),
        Outcome::Later => plain(StatusCode::SERVICE_UNAVAILABLE),
    }
}

fn plain(status: StatusCode) -> Response {
    (status, [(header::CACHE_CONTROL, "no-store")]).into_response()
}

/// RFC 8935 §2.3.
fn refusal(status: StatusCode, refused: Refused) -> Response {
    let body = json!({ "err": refused.code.word(), "description": refused.why }).to_string();
    let headers = [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_TYPE, "application/json"),
        (header::CONTENT_LANGUAGE, "en"),
    ];
    (status, headers, body).into_response()
}
