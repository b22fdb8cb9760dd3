//! One token, from its text to what is answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use url::Url;
use zeroize::Zeroizing;

use super::{
    Binding, Named, SpeaksOfDevices, Whom,
    event::Told,
    memory::{Look, Watched},
    set::{self, ErrorCode, Expected, Refused, SecurityEvent, Unread},
    settings::EventStream,
    subject::{Identifier, Subject},
    transmitter::{Addresses, Transmitter, Unverifiable},
};
use crate::{
    identity::{StoreFailed, sessions::WebSessions},
    serve::{
        actor::{Handle, Stopped},
        clock, files, listener,
    },
    signals::provider::Vouchers,
    stream::{Counted, TakenEvent},
};

/// How often within the time after which a stream is silent a verification is asked for, and how often at most.
const ASKED_WITHIN: u32 = 3;
const ASK_LEAST: Duration = Duration::from_secs(2);
/// The longest token of a file, bytes.
const LEAST_TOKEN: usize = 16;

/// What became of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is durable, with what it changed: acknowledge it. One that was taken before is acknowledged again.
    Taken,
    /// It does not hold: say so.
    Refused(Refused),
    /// Nobody knows yet: let the transmitter send it again.
    Later,
}

/// Why a stream cannot be received.
#[derive(Debug, thiserror::Error)]
#[error("[[events]] `{stream}`: {why}")]
pub struct CannotReceive {
    stream: String,
    why: String,
}

/// The receivers of all streams, by their names.
#[derive(Debug, Clone, Default)]
pub struct Receivers(BTreeMap<String, Arc<Receiver>>);

/// What is needed of the rest of the controller.
#[derive(Debug, Clone)]
pub(crate) struct Around {
    pub(crate) handle: Handle,
    pub(crate) sessions: WebSessions,
    pub(crate) vouchers: Vouchers,
    /// The claim with the groups, as `[oidc]` names it.
    pub(crate) groups_claim: String,
}

/// The receiver of one stream.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(super) settings: EventStream,
    binding: Arc<Binding>,
    pub(super) transmitter: Transmitter,
    push_token: Option<[u8; 32]>,
    pub(super) bearer: Option<Zeroizing<String>>,
    around: Around,
}

impl Receivers {
    /// Opens every stream, and tells the core of them.
    pub(crate) async fn open(streams: &[EventStream], around: &Around) -> Result<Self, CannotReceive> {
        let mut receivers = BTreeMap::new();
        for settings in streams {
            let receiver = Receiver::new(settings.clone(), around.clone());
            let receiver = receiver.map_err(|why| CannotReceive { stream: settings.name.clone(), why })?;
            receivers.insert(settings.name.clone(), Arc::new(receiver));
        }
        let watched: Vec<Watched> = streams
            .iter()
            .map(|stream| Watched {
                name: stream.name.clone(),
                delivery: stream.delivery.word(),
                silent_after: stream.silent_after.get(),
                max_age: stream.max_age.get(),
            })
            .collect();
        if around.handle.call(move |turn, now| turn.core.watch_events(watched, now)).await.is_err() {
            tracing::error!("the core has ended: it says why itself");
        }
        Ok(Self(receivers))
    }

    /// Finds the receiver of a stream.
    pub(crate) fn named(&self, name: &str) -> Option<&Arc<Receiver>> {
        self.0.get(name)
    }

    /// Lists all.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Receiver>> {
        self.0.values()
    }
}

fn token(path: &std::path::Path) -> Result<Zeroizing<String>, String> {
    let text = Zeroizing::new(files::read_secret(path).map_err(|error| error.to_string())?);
    let token = Zeroizing::new(text.trim().to_owned());
    match token.len() >= LEAST_TOKEN && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(token),
        false => Err(format!("{} has to hold one token of {LEAST_TOKEN} characters or more", path.display())),
    }
}

impl Receiver {
    fn new(settings: EventStream, around: Around) -> Result<Self, String> {
        let read = |key: &str, url: &Option<String>| {
            url.as_deref().map(Url::parse).transpose().map_err(|error| format!("{key}: {error}"))
        };
        let addresses = Addresses {
            jwks_url: read("jwks_url", &settings.jwks_url)?,
            poll_url: read("poll_url", &settings.poll_url)?,
            verification_url: read("verification_url", &settings.verification_url)?,
        };
        let transmitter = Transmitter::new(&settings.issuer, addresses, settings.ca_file.as_deref());
        let push_token = settings.push_token_file.as_deref().map(token).transpose()?;
        let bearer = settings.api_token_file.as_deref().map(token).transpose()?;
        Ok(Self {
            binding: Arc::new(Binding {
                name: settings.name.clone(),
                issuer: settings.issuer.clone(),
                people_of: settings.people_of.clone(),
                devices: if settings.devices { SpeaksOfDevices::Yes } else { SpeaksOfDevices::No },
                groups_claim: around.groups_claim.clone(),
            }),
            transmitter: transmitter.map_err(|error| error.to_string())?,
            push_token: push_token.map(|token| Sha256::digest(token.as_bytes()).into()),
            bearer: bearer.map(|token| Zeroizing::new(format!("Bearer {}", *token))),
            settings,
            around,
        })
    }

    /// Tells whether an `Authorization` header is the transmitter's. Hashes are compared, in constant time.
    pub(crate) fn is_from_transmitter(&self, authorization: Option<&str>) -> bool {
        let shown = authorization.and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| <[u8; 32]>::from(Sha256::digest(token.trim().as_bytes())))
        });
        match (&self.push_token, shown) {
            (Some(expected), Some(shown)) => bool::from(expected.ct_eq(&shown)),
            (None, _) | (_, None) => false,
        }
    }

    /// Counts a refusal, for the audit log; a log line is written as often as one there.
    pub(crate) async fn refused(&self, refused: Refused, from: Option<IpAddr>) {
        let source = format!("events {}", self.binding.name);
        let counted =
            self.around.handle.call(move |turn, now| turn.core.refuse_signal(&source, refused.why, from, now));
        match counted.await {
            Ok(Counted::First) => {
                tracing::warn!(stream = self.binding.name, reason = refused.why, "a security event was refused");
            }
            Ok(Counted::Again) => {}
            Err(_) => tracing::debug!("the core has ended: it says why itself"),
        }
    }

    /// Takes a token. `named` is the name under which a poll's answer has it.
    pub(crate) async fn take(&self, text: &str, named: Option<&str>, from: Option<IpAddr>) -> Outcome {
        match self.consider(text, named).await {
            Ok(()) => Outcome::Taken,
            Err(NotTaken::Refused(refused)) => {
                self.refused(refused, from).await;
                Outcome::Refused(refused)
            }
            Err(NotTaken::Later(why)) => {
                tracing::warn!(stream = self.binding.name, why, "a security event cannot be taken now");
                Outcome::Later
            }
        }
    }

    async fn consider(&self, text: &str, named: Option<&str>) -> Result<(), NotTaken> {
        let now = clock::now();
        let token = set::parse(text)?;
        let known = self.transmitter.verify(&token, now).await?;
        let audience = self.settings.audience.as_deref().unwrap_or_default();
        let (issuer, stream_id) = (self.settings.issuer.as_str(), self.settings.stream_id.as_deref());
        let max_age = i64::try_from(self.settings.max_age.get().as_secs()).unwrap_or(i64::MAX);
        let expected = Expected { issuer, audience, stream_id, max_age, stream: &self.settings.name };
        let event = match set::read(&token.payload, expected, now.wall) {
            Ok(event) => event,
            Err(Unread::Refused(refused)) => return Err(refused.into()),
            Err(Unread::NotYet) => {
                let name = self.binding.name.clone();
                self.around.handle.call(move |turn, now| turn.core.event_not_yet(&name, now)).await?;
                return Err(NotTaken::Later("issued in the future: one of the clocks is wrong".into()));
            }
        };
        if named.is_some_and(|named| named != event.jti) {
            return Err(Refused { code: ErrorCode::InvalidRequest, why: "it stands under another name" }.into());
        }
        let event = Arc::new(event);
        let (asked, binding) = (event.clone(), self.binding.clone());
        let (look, whom) = self.around.handle.call(move |turn, _| turn.core.look_at_event(&binding, &asked)).await?;
        let understood = !event.subject.lacks(&known.critical);
        let whom = match look {
            Look::New if understood => Some(self.end_browsers(&event, whom).await?),
            Look::New | Look::Replayed | Look::Forgotten => None,
        };
        let (taken, binding) = (event.clone(), self.binding.clone());
        let taken = self.around.handle.call(move |turn, now| turn.core.take_event(&binding, &taken, whom, now)).await?;
        match taken {
            TakenEvent::Done | TakenEvent::Replayed => Ok(()),
            TakenEvent::Forgotten => {
                Err(Refused { code: ErrorCode::InvalidRequest, why: "older than what is remembered" }.into())
            }
            TakenEvent::NobodyAsked => {
                Err(Refused { code: ErrorCode::InvalidState, why: "a verification that nobody asked for" }.into())
            }
        }
    }

    /// Ends the browsers' sign-ins that an event overtakes, and adds to `whom` what only the pages know.
    async fn end_browsers(&self, event: &Arc<SecurityEvent>, mut whom: Whom) -> Result<Whom, NotTaken> {
        let Some(people_of) = self.binding.people_of.as_deref().filter(|_| event.told.is_of_people()) else {
            return Ok(whom);
        };
        let (sessions, vouchers) = (&self.around.sessions, &self.around.vouchers);
        let user = event.subject.user().map(|user| user.each()).unwrap_or_default();
        for one in user {
            let is_found = match one {
                Identifier::Name(name) => {
                    let named = sessions.subjects_named(people_of, name).await?;
                    let is_found = !named.is_empty();
                    whom.perhaps.extend(named);
                    is_found
                }
                Identifier::Opaque(sub) => sessions.knows(people_of, sub).await?,
                Identifier::Person { .. } | Identifier::Aliases(_) | Identifier::Elsewhere => false,
            };
            if is_found {
                whom.user = Named::Known;
            }
        }
        if whom.user == Named::Elsewhere {
            return Ok(whom);
        }
        let everybody: BTreeSet<String> = whom.everybody().cloned().collect();
        let ends = event.told.overtakes_sign_ins();
        if ends {
            // First the door, then the rooms: a sign-in that finds its way in meanwhile is turned away when it asks.
            let shut = (people_of.to_owned(), Arc::clone(event), whom.clone());
            self.around.handle.call(move |turn, now| turn.core.overtake(&shut.0, &shut.1, &shut.2, now)).await?;
        }
        let named_session = match (&event.subject, &event.told) {
            (Subject::Complex(members), _) => members.session.as_ref(),
            // CAEP 1.0 §3.1: an opaque subject may be the session itself.
            (Subject::Simple(one), Told::SessionRevoked) => Some(one),
            (Subject::Simple(_), _) => None,
        };
        if let Some(session) = named_session {
            // A simple subject is the session *or* the person: whose the session is does not matter then.
            let people = match (&event.subject, whom.user) {
                (Subject::Complex(_), Named::Known) => everybody,
                (Subject::Complex(_), Named::NotAtAll | Named::Elsewhere | Named::Unresolved)
                | (Subject::Simple(_), _) => Default::default(),
            };
            let browsers = vouchers.browsers_of(people_of, session.handles(&[people_of]), &people).await?;
            for browser in browsers.iter().filter(|_| ends) {
                whom.browsers_ended += usize::from(sessions.end(*browser).await?);
            }
            whom.exactly = vouchers.browsers_of(people_of, session.handles(&[people_of]), &BTreeSet::new()).await?;
            let is_narrowed = event.subject.session().is_some() && !browsers.is_empty();
            whom.browsers = Some(browsers);
            if is_narrowed {
                return Ok(whom);
            }
        }
        for person in whom.surely.union(&whom.perhaps).filter(|_| ends) {
            let (ended, kept) = sessions.end_proven_until(people_of, person, event.at).await?;
            whom.browsers_ended += ended;
            whom.kept.extend(kept);
        }
        Ok(whom)
    }
}

enum NotTaken {
    Refused(Refused),
    Later(String),
}

impl From<Refused> for NotTaken {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Unverifiable> for NotTaken {
    fn from(why: Unverifiable) -> Self {
        match why {
            Unverifiable::Refused(refused) => Self::Refused(refused),
            Unverifiable::Unavailable(why) => Self::Later(why),
        }
    }
}

impl From<Stopped> for NotTaken {
    fn from(why: Stopped) -> Self {
        Self::Later(why.to_string())
    }
}

impl From<StoreFailed> for NotTaken {
    fn from(why: StoreFailed) -> Self {
        Self::Later(why.to_string())
    }
}

/// Asks the transmitter for a verification so often that a stream that works is never silent, until the controller stops.
pub(crate) async fn verify_now_and_then(receiver: Arc<Receiver>, mut stop: watch::Receiver<bool>) {
    let (Some(stream_id), Some(bearer)) = (receiver.settings.stream_id.clone(), receiver.bearer.clone()) else {
        return;
    };
    let round = (receiver.settings.silent_after.get() / ASKED_WITHIN).max(ASK_LEAST);
    let (mut wait, mut after_failure) = (Duration::ZERO, ASK_LEAST);
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = listener::told(&mut stop) => return,
        }
        wait = round;
        let name = receiver.binding.name.clone();
        let Ok(state) = receiver.around.handle.call(move |turn, _| turn.core.expect_verification(&name)).await else {
            return;
        };
        match receiver.transmitter.ask_for_verification(&stream_id, &state, &bearer, clock::now()).await {
            Ok(true) => after_failure = ASK_LEAST,
            Ok(false) => tracing::debug!(stream = receiver.binding.name, "the transmitter offers no verification"),
            Err(why) => {
                tracing::warn!(stream = receiver.binding.name, why, "a verification cannot be asked for");
                wait = after_failure.min(round);
                after_failure = (after_failure * 2).min(round);
            }
        }
    }
}

#[cfg(test)]
#[path = "receiver_tests.rs"]
mod tests;
