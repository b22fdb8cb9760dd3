//! What holds for every request: limits, the same-site check, and the headers of every answer.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Pages, fault::Fault, visit};
use crate::identity::rate::AddressPrefix;

/// The longest form, bytes.
pub(super) const MAX_BODY: usize = 8 << 10;
/// How long a form may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take; beyond it the person is told to try again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(25);

/// `form-action` is checked along redirects too, so sign-in at the provider begins with a link, not a form.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
     form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

const HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
];

/// Stands around every page.
pub(super) async fn guard(State(pages): State<Arc<Pages>>, request: Request, next: Next) -> Response {
    let answer = answer(&pages, request, next).await.unwrap_or_else(Fault::into_response);
    with_headers(answer, pages.web.public_url.scheme() == "https")
}

async fn answer(pages: &Pages, request: Request, next: Next) -> Result<Response, Fault> {
    admit(pages, &request)?;
    // The body comes before a place among the requests at work is taken: whoever lets it trickle in holds none.
    let (head, body) = request.into_parts();
    if is_too_long(&body, MAX_BODY) {
        return Err(Fault::BadForm);
    }
    let form = match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(form)) => form,
        Ok(Err(_)) | Err(_) => return Err(Fault::BadForm),
    };
    let _permit = pages.in_flight.try_acquire().map_err(|_| Fault::Busy)?;
    let request = Request::from_parts(head, Body::from(form));
    tokio::time::timeout(ANSWER_TIMEOUT, next.run(request)).await.map_err(|_| Fault::Busy)
}

/// Tells whether a body says of itself that it is too long: it is refused at once, and nobody waits for it.
pub(super) fn is_too_long(body: &Body, most: usize) -> bool {
    usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX) > most
}

fn admit(pages: &Pages, request: &Request) -> Result<(), Fault> {
    let address = visit::address(request.extensions()).ok_or(Fault::Bug("the server gave no address"))?;
    pages.limits.requests.take(&AddressPrefix::from(address), (pages.web.clock)())?;
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !reads && !is_same_site(request.headers(), &pages.web.public_url.origin().ascii_serialization()) {
        return Err(Fault::OtherSite);
    }
    Ok(())
}

/// Tells whether a browser says that a page of ours sent the request. A page cannot forge either header; with
/// `no-referrer`, browsers write `Origin: null` even for our own forms, so `Sec-Fetch-Site` speaks first.
fn is_same_site(headers: &HeaderMap, own_origin: &str) -> bool {
    match (headers.get("sec-fetch-site"), headers.get(header::ORIGIN)) {
        (Some(site), _) => site == "same-origin",
        (None, Some(origin)) => origin == own_origin,
        (None, None) => false,
    }
}

fn with_headers(mut answer: Response, tls: bool) -> Response {
    let headers = answer.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if tls {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_pages_may_change_things() {
        let own = "https://ctl.corp.example";
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs.iter();
            pairs.map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect::<HeaderMap>()
        };
        for (pairs, allowed) in [
            (&[("sec-fetch-site", "same-origin"), ("origin", "null")][..], true),
            (&[("origin", "https://ctl.corp.example")], true),
            (&[("sec-fetch-site", "same-site"), ("origin", "https://ctl.corp.example")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("origin", "https://evil.example")], false),
            (&[("origin", "https://ctl.corp.example.evil.example")], false),
            (&[("origin", "http://ctl.corp.example")], false),
            (&[("origin", "null")], false),
            (&[], false),
        ] {
            assert_eq!(is_same_site(&headers(pairs), own), allowed, "{pairs:?}");
        }
    }
}
