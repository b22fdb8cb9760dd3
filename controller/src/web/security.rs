//! What holds for every request: limits, the same-site check, and the headers of every answer.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Pages, fault::Fault, visit};
use crate::identity::rate::AddressPrefix;

/// The longest form, bytes.
pub(super) const MAX_BODY: usize = 8 << 10;
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
    let answer = match admit(&pages, &request) {
        Err(fault) => fault.into_response(),
        Ok(_permit) => match tokio::time::timeout(ANSWER_TIMEOUT, next.run(request)).await {
            Ok(answer) => answer,
            Err(_) => Fault::Busy.into_response(),
        },
    };
    with_headers(answer, pages.web.public_url.scheme() == "https")
}

fn admit<'a>(pages: &'a Pages, request: &Request) -> Result<tokio::sync::SemaphorePermit<'a>, Fault> {
    let address = visit::address(request.extensions()).ok_or(Fault::Bug("the server gave no address"))?;
    pages.limits.requests.take(&AddressPrefix::from(address), (pages.web.clock)())?;
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !reads && !is_same_site(request.headers(), &pages.web.public_url.origin().ascii_serialization()) {
        return Err(Fault::OtherSite);
    }
    pages.in_flight.try_acquire().map_err(|_| Fault::Busy)
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
