//! The endpoints below `/scim/v2/`: who asks, what, how much at a time.
//!
//! Nothing of a body is read before the token is known to be good here and now. No page, no cookie, no same-site check: a server
//! sends this, and a browser cannot have the token. What has begun is done to its end, also if the client goes away meanwhile.
//!
//! Strangers may come from the provider's own networks, which are those of all customers of a cloud. So a token that was good before
//! has a door of its own, past the limits for those of which nothing is known: its hash is compared in constant time.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request as HttpRequest, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use http_body_util::{BodyExt, Collected, LengthLimitError, Limited};
use postern_common::time::WallTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    directory::Answer,
    refusal::Refusal,
    render::Rendered,
    request::{self, Command, Request},
};
use crate::{
    identity::{
        Clock,
        rate::{AddressPrefix, Allowance, Buckets},
        sessions::WebSessions,
    },
    records::{Person, ScimId, TokenHash},
    serve::actor::Handle,
    stream::{ScimClient, ScimClosed},
};

/// Where the service is.
pub const PATH: &str = "/scim/v2";
/// The longest body, bytes: a group of the most members, with a name beside each.
const MAX_BODY: usize = 8 << 20;
/// The most requests at a time; each may have a body of that length.
const MAX_IN_FLIGHT: usize = 6;
/// The most requests at a time whose token is being looked at.
const MAX_AT_THE_DOOR: usize = 32;
/// The most requests at a time with a token that was good before, while it is looked at.
const MAX_KNOWN_AT_THE_DOOR: usize = 16;
/// The most tokens that are known to have been good: as many as there are.
const MAX_KNOWN: usize = 16;
/// The longest token, bytes.
const MAX_TOKEN: usize = 256;
/// How long a request may take, its body's arrival included: less than what the listener gives every request, so that the answer is
/// one of SCIM's.
const PATIENCE: Duration = Duration::from_secs(50);
/// How many people who are signed in on the pages are looked at in one turn of the core's.
const PAGE: u32 = 1_000;

/// What the endpoints work with.
pub struct Service {
    handle: Handle,
    sessions: WebSessions,
    clock: Clock,
    base: String,
    /// Requests before their token is known, and those with a good one.
    strangers: Buckets<AddressPrefix>,
    clients: Buckets<TokenHash>,
    in_flight: Arc<Semaphore>,
    /// Requests whose token is being looked at: a flood of strangers fills no queue of the core's.
    at_the_door: Semaphore,
    known: Mutex<Vec<TokenHash>>,
    known_at_the_door: Semaphore,
}

impl Service {
    /// Makes the service of a controller at `url`.
    pub fn new(handle: Handle, sessions: WebSessions, clock: Clock, url: &str) -> Arc<Self> {
        let every = |burst, millis| Allowance { burst, interval: Duration::from_millis(millis) };
        Arc::new(Self {
            handle,
            sessions,
            clock,
            base: format!("{}{PATH}", url.trim_end_matches('/')),
            strangers: Buckets::new(every(600, 10), 4_096),
            clients: Buckets::new(every(600, 10), 64),
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            at_the_door: Semaphore::new(MAX_AT_THE_DOOR),
            known: Mutex::new(vec![]),
            known_at_the_door: Semaphore::new(MAX_KNOWN_AT_THE_DOOR),
        })
    }
}

/// Makes the router of the endpoints.
pub fn router(service: Arc<Service>) -> Router {
    Router::new().route(PATH, any(serve)).route(&format!("{PATH}/{{*path}}"), any(serve)).with_state(service)
}

async fn serve(
    State(service): State<Arc<Service>>,
    ConnectInfo(remote): ConnectInfo<SocketAddr>,
    request: HttpRequest,
) -> Response {
    let answered = tokio::time::timeout(PATIENCE, service.answer(remote.ip().to_canonical(), request)).await;
    answered.unwrap_or_else(|_| refused(&Refusal::unavailable()))
}

/// Reads the token of a header `Authorization: Bearer …` (RFC 6750 §2.1).
fn bearer(headers: &HeaderMap) -> Option<TokenHash> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(only), None) = (all.next(), all.next()) else { return None };
    let (scheme, token) = only.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= MAX_TOKEN)
        .then(|| TokenHash::of(token))
}

impl Service {
    async fn answer(&self, from: IpAddr, request: HttpRequest) -> Response {
        let now: WallTime = (self.clock)();
        let presented = bearer(request.headers());
        let is_known = presented.is_some_and(|hash| self.is_known(hash));
        if !is_known && self.strangers.take(&AddressPrefix::from(from), now).is_err() {
            return refused(&Refusal::too_many());
        }
        let door = if is_known { &self.known_at_the_door } else { &self.at_the_door };
        let Ok(door) = door.try_acquire() else { return refused(&Refusal::too_many()) };
        let client = match self.handle.call(move |turn, now| turn.core.scim_client(presented, from, now)).await {
            Ok(Ok(client)) => client,
            Ok(Err(refusal)) => {
                self.forget(presented);
                return refused(&refusal);
            }
            Err(_) => return refused(&Refusal::unavailable()),
        };
        drop(door);
        self.remember(client.token());
        // Held until the answer is written: a body and what is made of it have the same bound.
        let room = match (self.clients.take(&client.token(), now), Arc::clone(&self.in_flight).try_acquire_owned()) {
            (Ok(()), Ok(room)) => Arc::new(room),
            (Err(_), _) | (_, Err(_)) => return refused(&Refusal::too_many()),
        };
        let answer = match self.done(&client, from, request, &room).await {
            Ok(rendered) => written(rendered),
            Err((refusal, leaver)) => {
                let (told, why) = (client.clone(), refusal.clone());
                tracing::warn!(status = refusal.status, reason = %refusal.detail, "a SCIM request was refused");
                match self.handle.call(move |turn, now| turn.core.scim_refused(&told, from, &why, leaver, now)).await {
                    Ok(()) => refused(&refusal),
                    Err(_) => refused(&Refusal::unavailable()),
                }
            }
        };
        drop(room);
        answer
    }

    fn is_known(&self, presented: TokenHash) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().fold(false, |found, hash| hash.is_same(&presented) | found)
    }

    fn remember(&self, token: TokenHash) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(&token) {
            if known.len() >= MAX_KNOWN {
                known.remove(0);
            }
            known.push(token);
        }
    }

    fn forget(&self, token: Option<TokenHash>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|hash| Some(*hash) != token);
    }

    /// Does what is asked; if it is refused, says besides whom the client wanted out.
    async fn done(
        &self,
        client: &ScimClient,
        from: IpAddr,
        request: HttpRequest,
        room: &Arc<OwnedSemaphorePermit>,
    ) -> Result<Rendered, (Refusal, Option<ScimId>)> {
        let (parts, body) = request.into_parts();
        let body = self.body(&parts.headers, body).await.map_err(|refusal| (refusal, None))?;
        let text = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let asked = Request {
            method: parts.method.as_str(),
            path: parts.uri.path().strip_prefix(PATH).unwrap_or_default(),
            query: parts.uri.query().unwrap_or_default(),
            if_match: text(header::IF_MATCH),
            if_none_match: text(header::IF_NONE_MATCH),
            body: &body,
        };
        // A body of megabytes takes its time: the other tasks of this thread need not wait for it.
        let done = match tokio::task::block_in_place(|| request::parse(&asked)) {
            Ok(command) => self.to_its_end(client.clone(), command, from, Arc::clone(room)).await,
            Err(refusal) => Err(refusal),
        };
        match done {
            Ok(answer) => Ok(tokio::task::block_in_place(|| answer.render(&self.base))),
            Err(refusal) => Err((refusal, request::leaver(&asked))),
        }
    }

    /// Does a command, and what follows of it outside the core. A client that goes away, or whose patience ends, must not leave
    /// somebody out of the directory and in on the pages.
    async fn to_its_end(
        &self,
        client: ScimClient,
        command: Command,
        from: IpAddr,
        room: Arc<OwnedSemaphorePermit>,
    ) -> Result<Answer, Refusal> {
        let (handle, sessions) = (self.handle.clone(), self.sessions.clone());
        let done = tokio::spawn(async move {
            let done = handle.call(move |turn, now| turn.core.scim(&client, command, from, now)).await;
            let (answer, closed) = done.map_err(|_| Refusal::unavailable())??;
            end_browsers(&sessions, &closed).await?;
            drop(room);
            Ok(answer)
        });
        done.await.unwrap_or_else(|_| Err(Refusal::unavailable()))
    }

    async fn body(&self, headers: &HeaderMap, body: Body) -> Result<Vec<u8>, Refusal> {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        let large = || Refusal::too_large(format!("a body has at most {MAX_BODY} bytes"));
        if length.is_some_and(|length| length > MAX_BODY) {
            return Err(large());
        }
        let collected = Limited::new(body, MAX_BODY).collect().await;
        let bytes = collected.map(Collected::to_bytes).map_err(|error| match error.is::<LengthLimitError>() {
            true => large(),
            false => Refusal::syntax("the body did not arrive whole"),
        })?;
        if bytes.is_empty() {
            return Ok(vec![]);
        }
        let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        match ["application/scim+json", "application/json"].iter().any(|known| kind.eq_ignore_ascii_case(known)) {
            true => Ok(bytes.into()),
            false => Err(Refusal::not_served(415, "a body is application/scim+json")),
        }
    }
}

/// Ends the browsers' login sessions of people who are out. The core, asked before, lets nobody of them do anything any more; if this
/// fails the provider is told so and asks again.
async fn end_browsers(sessions: &WebSessions, closed: &ScimClosed) -> Result<(), Refusal> {
    let Some(key) = closed.key else { return Ok(()) };
    for person in &closed.people {
        let ended = sessions.end_provisioned(&closed.issuer, key, &person.name, &person.subjects).await;
        if let Err(error) = ended {
            tracing::error!(error = &error as &dyn std::error::Error, "browsers cannot be signed out");
            return Err(Refusal::unavailable());
        }
    }
    Ok(())
}

/// Ends the browsers' login sessions of people whom their provider keeps out: a stop may have come between the directory and them.
pub(crate) async fn end_turned_away(sessions: &WebSessions, handle: &Handle, issuer: &str) {
    let mut after = String::new();
    loop {
        let people = match sessions.people_of(issuer, &after, PAGE).await {
            Ok(people) => people,
            Err(error) => return tracing::warn!(%error, "cannot tell who is signed in on the pages"),
        };
        let Some(last) = people.last() else { return };
        after = last.subject().to_owned();
        let people: Vec<Person> = people.iter().map(Person::from).collect();
        // One question for all of a page: each is a turn of the core's.
        let Ok(out) = handle.call(move |turn, _| turn.core.turned_away_of(&people)).await else { return };
        for subject in out {
            if let Err(error) = sessions.end_of_person(issuer, &subject).await {
                tracing::warn!(%error, "browsers cannot be signed out");
            }
        }
    }
}

fn written(rendered: Rendered) -> Response {
    let status = StatusCode::from_u16(rendered.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = match rendered.body {
        Some(body) => Body::from(tokio::task::block_in_place(|| body.to_string())),
        None => Body::empty(),
    };
    let mut response = (status, [(header::CACHE_CONTROL, "no-store")], body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/scim+json"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    for (name, value) in [(header::ETAG, rendered.etag), (header::LOCATION, rendered.location)] {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    }
    response
}

fn refused(refusal: &Refusal) -> Response {
    let body = Some(refusal.body());
    let mut response = written(Rendered { status: refusal.status, body, etag: None, location: None });
    match refusal.status {
        401 => {
            let asked = HeaderValue::from_static("Bearer realm=\"scim\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, asked);
        }
        405 => {
            if let Some(allow) = refusal.allow {
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
            }
        }
        429 | 503 => drop(response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"))),
        _ => {}
    }
    response
}
