//! Bodies of the fuzz targets for what browsers send: cookies, forms, and where they would like to go.
//!
//! Each asserts what must hold for any bytes; a panic is a finding.

use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use axum::{
    body::Body,
    extract::{Form, FromRequest, Request},
    http::{HeaderMap, HeaderValue, header},
};
use postern_common::key::{DevicePublicKey, WireGuardPublicKey};
use serde::de::DeserializeOwned;

use super::{
    join, stock,
    visit::{self, Next, SESSION_COOKIE, VISIT_COOKIE, WithToken},
};
use crate::identity::{random::Token, user_code::UserCode};

/// Any bytes as the `Cookie` header, and as a place to go to after sign-in.
pub fn fuzz_cookie(bytes: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, value);
        for name in [SESSION_COOKIE, VISIT_COOKIE] {
            let Some(token) = visit::cookie(&headers, name) else { continue };
            let text = token.expose();
            assert_eq!(text.len(), Token::LENGTH);
            let presented = format!("{name}={text}");
            assert!(bytes.windows(presented.len()).any(|window| window == presented.as_bytes()), "of another cookie");
            visit::set_cookie(name, text, 1); // what we took, we can write
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let path = Next::parse(text).path();
    assert_eq!(Next::parse(&path).path(), path);
    let own = ["/", "/join", "/wireguard", "/requests", "/second-factor", "/passkeys"].contains(&path.as_str())
        || path.strip_prefix("/step-up/").is_some_and(|secret| secret.len() == Token::LENGTH);
    assert!(own || path.strip_prefix("/join?code=").is_some_and(|code| code.parse::<UserCode>().is_ok()), "{path}");
}

/// Any bytes as the body of a form: what is read has the token that it was sent with.
pub fn fuzz_form(bytes: &[u8]) {
    if let Some(form) = form::<join::Decision>(bytes) {
        if let Ok(key) = form.fields.key.parse::<DevicePublicKey>() {
            assert_eq!(key.to_string(), form.fields.key, "one way to write a key");
        }
        assert!(form.token.len() + form.fields.code.len() <= bytes.len());
    }
    if let Some(form) = form::<stock::Wanted>(bytes) {
        if let Ok(key) = form.fields.public_key.parse::<WireGuardPublicKey>() {
            assert_eq!(key.to_string(), form.fields.public_key, "one way to write a key");
        }
        assert!(form.fields.name.len() <= bytes.len());
    }
    if let Ok(code) = std::str::from_utf8(bytes).unwrap_or_default().parse::<UserCode>() {
        assert_eq!(code.to_string().parse(), Ok(code));
    }
}

/// Reads a form as the pages do.
fn form<T: DeserializeOwned>(bytes: &[u8]) -> Option<WithToken<T>> {
    let request = Request::post("/join").header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    let request = request.body(Body::from(bytes.to_vec())).expect("a request");
    let reading = pin!(Form::<WithToken<T>>::from_request(request, &()));
    match reading.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(read) => read.ok().map(|Form(form)| form),
        Poll::Pending => panic!("a body that is there has to be waited for"),
    }
}
