//! Who sends a request: the address, the session's or the visit's cookie, and forms that carry its token.
//!
//! Two cookies, both `__Host-`: the session's after sign-in, and before it a visit's, which ties a half-finished
//! sign-in to one browser. A form's token is the SHA-256 of the cookie's secret under a label: only a page of that
//! very session can have it, and nothing is stored for it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, Form, FromRequest, FromRequestParts, Request},
    http::{Extensions, HeaderMap, HeaderValue, header, request::Parts},
    response::{IntoResponse, Redirect, Response},
};
use postern_common::time::WallTime;
use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{
    Pages,
    event::{IdentityAction, IdentityEvent, Who},
    fault::Fault,
};
use crate::identity::{
    SignedIn,
    random::{self, Token},
    user_code::UserCode,
};

pub(super) const SESSION_COOKIE: &str = "__Host-postern";
pub(super) const VISIT_COOKIE: &str = "__Host-postern-visit";
/// How long a browser keeps the visit's cookie, seconds: as long as a sign-in may take.
const VISIT_SECONDS: u64 = 3_600;

/// One request, as far as it is known who sends it.
pub(super) struct Visit {
    pub(super) pages: Arc<Pages>,
    pub(super) address: IpAddr,
    pub(super) now: WallTime,
    pub(super) session: Option<(Token, SignedIn)>,
    pub(super) visit: Option<Token>,
}

/// A request of somebody who is signed in; others are sent to sign in first.
pub(super) struct Person {
    pub(super) visit: Visit,
    pub(super) cookie: Token,
    pub(super) who: SignedIn,
}

/// A form from one of our own pages, with the right token.
pub(super) struct Posted<T> {
    pub(super) visit: Visit,
    pub(super) fields: T,
}

/// Where a person goes after sign-in: one of our own pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Next {
    #[default]
    Home,
    Join(Option<UserCode>),
    WireGuard,
    Requests,
    SecondFactor,
    Passkeys,
    StepUp(Link),
}

/// The secret of a step-up's page, in its address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Link([u8; Token::LENGTH]);

impl Link {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Token::presented(text)?;
        text.as_bytes().try_into().ok().map(Self)
    }

    pub(super) fn token(self) -> Token {
        Token::presented(&self.to_string()).expect("it was one when it was read")
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(std::str::from_utf8(&self.0).unwrap_or_default()) // letters, digits, - and _
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Next {
    /// Reads a path; everything that is not exactly one of ours is the home page.
    pub(super) fn parse(path: &str) -> Self {
        match path {
            "/join" => Self::Join(None),
            "/wireguard" => Self::WireGuard,
            "/requests" => Self::Requests,
            "/second-factor" => Self::SecondFactor,
            "/passkeys" => Self::Passkeys,
            other => match (other.strip_prefix("/join?code=").map(str::parse), other.strip_prefix("/step-up/")) {
                (Some(Ok(code)), _) => Self::Join(Some(code)),
                (_, Some(link)) => Link::parse(link).map_or(Self::Home, Self::StepUp),
                (Some(Err(_)) | None, None) => Self::Home,
            },
        }
    }

    pub(super) fn path(self) -> String {
        match self {
            Self::Home => "/".into(),
            Self::Join(None) => "/join".into(),
            Self::Join(Some(code)) => format!("/join?code={code}"),
            Self::WireGuard => "/wireguard".into(),
            Self::Requests => "/requests".into(),
            Self::SecondFactor => "/second-factor".into(),
            Self::Passkeys => "/passkeys".into(),
            Self::StepUp(link) => format!("/step-up/{link}"),
        }
    }

    pub(super) fn redirect(self) -> Redirect {
        Redirect::to(&self.path())
    }

    /// Returns the sign-in page that leads here.
    pub(super) fn sign_in(self) -> String {
        match self {
            Self::Home => "/sign-in".into(),
            Self::Join(_)
            | Self::WireGuard
            | Self::Requests
            | Self::SecondFactor
            | Self::Passkeys
            | Self::StepUp(_) => {
                format!("/sign-in?next={}", self.encoded())
            }
        }
    }

    /// Returns the path for a query parameter.
    pub(super) fn encoded(self) -> String {
        url::form_urlencoded::byte_serialize(self.path().as_bytes()).collect()
    }
}

pub(super) fn address(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip().to_canonical())
}

pub(super) fn cookie(headers: &HeaderMap, name: &str) -> Option<Token> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).and_then(|(_, value)| Token::presented(value))
}

fn form_token(cookie: &Token) -> String {
    hex::encode(Sha256::new().chain_update(b"postern form token v1\0").chain_update(cookie.expose()).finalize())
}

pub(super) fn set_cookie(name: &str, value: &str, seconds: u64) -> HeaderValue {
    let text = format!("{name}={value}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={seconds}");
    HeaderValue::try_from(text).expect("tokens are base 64 for URLs")
}

/// Adds cookies to an answer.
pub(super) trait WithCookies {
    fn with_session(self, token: &Token, who: &SignedIn, now: WallTime) -> Response;
    fn with_visit(self, token: &Token) -> Response;
    fn without_session(self) -> Response;
}

impl<R: IntoResponse> WithCookies for R {
    /// Hands out a session's cookie and takes the visit's back.
    fn with_session(self, token: &Token, who: &SignedIn, now: WallTime) -> Response {
        let mut answer = self.into_response();
        let seconds = who.session_until().since(now).as_secs();
        answer.headers_mut().append(header::SET_COOKIE, set_cookie(SESSION_COOKIE, token.expose(), seconds));
        answer.headers_mut().append(header::SET_COOKIE, set_cookie(VISIT_COOKIE, "", 0));
        answer
    }

    fn with_visit(self, token: &Token) -> Response {
        let mut answer = self.into_response();
        answer.headers_mut().append(header::SET_COOKIE, set_cookie(VISIT_COOKIE, token.expose(), VISIT_SECONDS));
        answer
    }

    fn without_session(self) -> Response {
        let mut answer = self.into_response();
        answer.headers_mut().append(header::SET_COOKIE, set_cookie(SESSION_COOKIE, "", 0));
        answer.headers_mut().append(header::SET_COOKIE, set_cookie(VISIT_COOKIE, "", 0));
        answer
    }
}

impl FromRequestParts<Arc<Pages>> for Visit {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, pages: &Arc<Pages>) -> Result<Self, Fault> {
        let now = (pages.web.clock)();
        let address = address(&parts.extensions).ok_or(Fault::Bug("the server gave no address"))?;
        let session = match cookie(&parts.headers, SESSION_COOKIE) {
            Some(token) => pages.web.sessions.find(&token, now).await?.map(|who| (token, who)),
            None => None,
        };
        let visit = cookie(&parts.headers, VISIT_COOKIE);
        Ok(Self { pages: pages.clone(), address, now, session, visit })
    }
}

impl Visit {
    /// Returns the token that forms of this visit carry, and the visit's cookie to hand out if there is none yet.
    pub(super) fn form_token(&self) -> (String, Option<Token>) {
        match (&self.session, &self.visit) {
            (Some((cookie, _)), _) | (None, Some(cookie)) => (form_token(cookie), None),
            (None, None) => {
                let cookie = Token::draw();
                (form_token(&cookie), Some(cookie))
            }
        }
    }

    /// Goes on only for somebody who is signed in.
    pub(super) fn signed_in(mut self, next: Next) -> Result<Person, Fault> {
        let (cookie, who) = self.session.take().ok_or(Fault::SignInFirst(next))?;
        Ok(Person { visit: self, cookie, who })
    }

    /// Writes an event into the audit log.
    pub(super) async fn audit(&self, who: Option<Who>, what: IdentityAction) -> Result<(), Fault> {
        let event = IdentityEvent { at: self.now, address: self.address, who, what };
        Ok(self.pages.web.doors.audit(event).await?)
    }
}

impl Person {
    /// Returns the token that forms of this session carry.
    pub(super) fn form_token(&self) -> String {
        form_token(&self.cookie)
    }

    /// Returns the person as a key for limits.
    pub(super) fn key(&self) -> (String, String) {
        (self.who.issuer().to_owned(), self.who.subject().to_owned())
    }
}

impl Who {
    pub(super) fn of(who: &SignedIn) -> Self {
        Self { issuer: who.issuer().into(), subject: who.subject().into(), name: who.name().into() }
    }
}

#[derive(Deserialize)]
pub(super) struct WithToken<T> {
    pub(super) token: String,
    #[serde(flatten)]
    pub(super) fields: T,
}

impl<T: DeserializeOwned + Send> FromRequest<Arc<Pages>> for Posted<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, pages: &Arc<Pages>) -> Result<Self, Fault> {
        let (mut parts, body) = request.into_parts();
        // The body first: whoever holds it back must not go on with a session that ended meanwhile.
        let whole = Request::from_parts(parts.clone(), body);
        let Form(form) = Form::<WithToken<T>>::from_request(whole, pages).await.map_err(|_| Fault::BadForm)?;
        let visit = Visit::from_request_parts(&mut parts, pages).await?;
        let expected = match (&visit.session, &visit.visit) {
            (Some((cookie, _)), _) | (None, Some(cookie)) => form_token(cookie),
            (None, None) => return Err(Fault::Stale),
        };
        if !random::same(&form.token, &expected) {
            return Err(Fault::Stale);
        }
        Ok(Self { visit, fields: form.fields })
    }
}

/// Returns the form token of a cookie's value, for tests that have no form to read it from.
#[cfg(test)]
pub(super) fn form_token_for_test(cookie: &str) -> String {
    form_token(&Token::presented(cookie).expect("a token"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_is_never_another_place() {
        for bad in [
            "/step-up/",
            "/step-up/x",
            "/step-up/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/../",
            "//evil.example",
            "https://evil.example",
            "/\\evil.example",
            "/join?code=//x",
            "/join/../x",
            "",
            "/x",
        ] {
            assert_eq!(Next::parse(bad), Next::Home, "{bad:?}");
        }
        for good in [
            "/",
            "/step-up/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-_",
            "/join",
            "/join?code=KTRM-4821",
            "/wireguard",
            "/requests",
            "/second-factor",
        ] {
            assert_eq!(Next::parse(good).path(), good);
        }
    }

    #[test]
    fn cookies_are_host_bound_secure_and_out_of_scripts_reach() {
        let cookie = set_cookie(SESSION_COOKIE, "x", 7);
        assert_eq!(cookie, "__Host-postern=x; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=7");
    }
}
