//! The stream to the controller: its states, and what each message does in each.
//!
//! ```text
//! Resting --due--> Connecting --connected--> Greeting --Challenge--> Joining --Joined--> (identity durable) --.
//!    ^                                          '------Challenge--> Live                                      |
//!    '------------- disconnected, refused, timed out: back-off ----'   <------------ Connecting -------------'
//! ```

mod documents;

use std::time::Duration;

use postern_common::{
    grant::{Change, GrantError, GrantVerifier, SignedDocument},
    id::{DeviceId, MachineName, Nonce},
    key::{SigningPurpose, WireGuardPublicKey},
    probe::ProbeKey,
    protocol::{
        Enrol, FromNode, Hello, MAX_COUNTED_PEERS, MAX_OWN_REQUESTS, PROTOCOL_VERSION, Refusal, ToNode, hello_payload,
    },
    time::{Monotonic, Now},
};
use zeroize::Zeroizing;

use super::{
    AfterIdentity, Core, Effect, FRESHEN_INTERVAL, Notice, PendingStepUp, ProbeOrder, Retry,
    identity::{Enrolment, Login, Wanted},
    overlay,
    posture::Reporting,
};
use crate::agent::target::ControllerTarget;

/// How long a connection attempt may take, all addresses together.
pub(crate) const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
pub(super) const ANSWER_PATIENCE: Duration = Duration::from_secs(15);
const SIGN_IN_SLACK: Duration = Duration::from_secs(30);
const SIGN_IN_AT_MOST: Duration = Duration::from_secs(3600);
/// How long after the end of a session the controller has for the document that closes the doors.
const SHUT_PATIENCE: Duration = Duration::from_secs(2);
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(10);
/// A stream that lived this long counts as a success, and the back-off starts over.
const STABLE: Duration = Duration::from_secs(10);
/// How often a join tries to reach the controller before it tells the person that it does not work.
const JOIN_ATTEMPTS: u32 = 3;
/// Whatever the controller says, a key is not changed all the time.
const MIN_KEY_LIFE_MS: u64 = 10_000;

/// What a stream is for.
#[derive(Debug)]
pub(super) enum Purpose {
    Join(Box<JoinAttempt>),
    Serve,
    /// To tell of a sign-out.
    Farewell,
}

/// What confirms a join.
#[derive(Debug)]
pub(super) enum Credential {
    /// A person, on a page.
    Person,
    /// An enrolment token.
    Enrolment(Zeroizing<String>),
    /// A token of the platform, read when it is needed.
    Platform,
}

/// A join under way.
#[derive(Debug)]
pub(super) struct JoinAttempt {
    pub(super) target: ControllerTarget,
    pub(super) credential: Credential,
    pub(super) name: MachineName,
    pub(super) key: WireGuardPublicKey,
    pub(super) failures: u32,
}

/// The stream's states.
#[derive(Debug)]
pub(super) enum Stream {
    /// None; the next attempt, if one is wanted.
    Resting { next: Option<(Monotonic, Purpose)> },
    /// The shell is connecting.
    Connecting { purpose: Purpose, deadline: Monotonic },
    /// Connected; the controller speaks first.
    Greeting { purpose: Purpose, deadline: Monotonic },
    /// The join is sent.
    Joining { attempt: Box<JoinAttempt>, deadline: Monotonic, shown: Option<(String, String)> },
    /// The node is known and receives documents.
    Live(Box<Live>),
    /// The sign-out was told; the controller confirms it.
    Leaving { deadline: Monotonic },
}

/// A live stream.
#[derive(Debug)]
pub(super) struct Live {
    since: Monotonic,
    freshen_at: Monotonic,
    /// When another snapshot is asked for, while one is awaited.
    pub(super) snapshot_by: Option<Monotonic>,
    /// The session has ended: the doors close here at the latest, whatever the controller sends.
    shut_by: Option<Monotonic>,
    /// The reports of posture on this stream.
    pub(super) reporting: Reporting,
}

impl Stream {
    pub(super) fn deadline(&self) -> Option<Monotonic> {
        match self {
            Self::Resting { next } => next.as_ref().map(|(at, _)| *at),
            Self::Connecting { deadline, .. }
            | Self::Greeting { deadline, .. }
            | Self::Joining { deadline, .. }
            | Self::Leaving { deadline } => Some(*deadline),
            Self::Live(live) => {
                let never = Monotonic::NEVER;
                Some(live.snapshot_by.unwrap_or(never).min(live.shut_by.unwrap_or(never)).min(live.freshen_at))
            }
        }
    }

    pub(super) const fn is_join(&self) -> bool {
        match self {
            Self::Joining { .. } => true,
            Self::Connecting { purpose, .. }
            | Self::Greeting { purpose, .. }
            | Self::Resting { next: Some((_, purpose)) } => matches!(purpose, Purpose::Join(_)),
            Self::Resting { next: None } | Self::Live(_) | Self::Leaving { .. } => false,
        }
    }

    /// Returns code and page of a join under way.
    pub(super) fn join_code(&self) -> Option<(Option<String>, Option<String>)> {
        match self {
            Self::Joining { shown: Some((code, url)), .. } => Some((Some(code.clone()), Some(url.clone()))),
            other if other.is_join() => Some((None, None)),
            Self::Resting { .. } | Self::Connecting { .. } | Self::Greeting { .. } | Self::Joining { .. } => None,
            Self::Live(_) | Self::Leaving { .. } => None,
        }
    }
}

impl Core {
    pub(super) fn connect_if_wanted(&mut self, now: Now) {
        if self.signed_in() && self.identity.wanted == Wanted::Up {
            self.connect(Purpose::Serve, now);
        } else if self.identity.farewell.is_some() {
            self.connect(Purpose::Farewell, now);
        } else {
            self.join_by_platform(now);
        }
    }

    pub(super) fn connect(&mut self, purpose: Purpose, now: Now) {
        let target = match (&purpose, &self.identity.enrolment, &self.identity.farewell) {
            (Purpose::Join(attempt), _, _) => attempt.target.clone(),
            (Purpose::Serve, Some(enrolment), _) => self.trial.clone().unwrap_or_else(|| enrolment.controller.clone()),
            (Purpose::Farewell, _, Some(farewell)) => {
                if farewell.until.is_some_and(|until| until <= now.wall) {
                    return self.farewell_done(); // the session has ended by itself
                }
                farewell.controller.clone()
            }
            (Purpose::Serve, None, _) | (Purpose::Farewell, _, None) => return,
        };
        self.notify(Notice::Connecting { controller: target.authority() });
        self.effects.push_back(Effect::Connect(target));
        let deadline = now.monotonic.saturating_add(CONNECT_PATIENCE + Duration::from_secs(5));
        self.stream = Stream::Connecting { purpose, deadline };
    }

    /// Closes the stream and rests without an end.
    pub(super) fn close_stream(&mut self) {
        match std::mem::replace(&mut self.stream, Stream::Resting { next: None }) {
            Stream::Resting { .. } => {}
            Stream::Connecting { .. }
            | Stream::Greeting { .. }
            | Stream::Joining { .. }
            | Stream::Live(_)
            | Stream::Leaving { .. } => {
                self.effects.push_back(Effect::StopProbes);
                self.effects.push_back(Effect::Close);
            }
        }
        self.fail_questions("the stream to the controller closed");
    }

    pub(super) fn fail_questions(&mut self, why: &str) {
        for question in std::mem::take(&mut self.questions).into_keys() {
            self.effects.push_back(Effect::Explained { question, answer: Err(why.to_owned()) });
        }
        self.fail_step_ups(why);
    }

    /// Takes note that the stream is open.
    pub fn handle_connected(&mut self, now: Now) {
        self.stream = match std::mem::replace(&mut self.stream, Stream::Resting { next: None }) {
            Stream::Connecting { purpose, .. } => {
                Stream::Greeting { purpose, deadline: now.monotonic.saturating_add(ANSWER_PATIENCE) }
            }
            other => other,
        };
    }

    /// Takes note that the stream could not be opened, or ended. `retry` tells whether it may mend by itself.
    pub fn handle_disconnected(&mut self, error: String, retry: Retry, now: Now) {
        self.fail_questions("the stream to the controller closed");
        self.effects.push_back(Effect::StopProbes);
        let before = std::mem::replace(&mut self.stream, Stream::Resting { next: None });
        self.last_error = Some(error.clone());
        match before {
            Stream::Resting { next } => self.stream = Stream::Resting { next },
            Stream::Connecting { purpose: Purpose::Join(attempt), .. }
            | Stream::Greeting { purpose: Purpose::Join(attempt), .. }
            | Stream::Joining { attempt, .. } => self.join_failed(attempt, error, retry, now),
            Stream::Connecting { purpose: Purpose::Serve, .. } | Stream::Greeting { purpose: Purpose::Serve, .. } => {
                if self.trial.take().is_some() {
                    let message = format!("the new join link does not work and was not taken over: {error}");
                    self.notify(Notice::Failed { message });
                    return self.connect_if_wanted(now); // by the former one
                }
                self.rest(Purpose::Serve, error, retry, now);
            }
            Stream::Connecting { purpose: Purpose::Farewell, .. }
            | Stream::Greeting { purpose: Purpose::Farewell, .. }
            | Stream::Leaving { .. } => self.rest(Purpose::Farewell, error, retry, now),
            Stream::Live(live) => {
                self.offline_since = Some(now.wall);
                if now.monotonic.since(live.since) >= STABLE {
                    self.backoff.reset();
                }
                if self.signed_in() {
                    self.rest(Purpose::Serve, error, retry, now);
                } else {
                    self.shut();
                }
            }
        }
    }

    pub(super) fn signed_in(&self) -> bool {
        self.identity.enrolment.as_ref().is_some_and(|enrolment| enrolment.login.is_open())
    }

    fn rest(&mut self, purpose: Purpose, error: String, retry: Retry, now: Now) {
        let wait = match retry {
            Retry::Soon => self.backoff.next(&mut *self.entropy),
            Retry::Slowly => self.backoff.slow(&mut *self.entropy),
        };
        self.notify(Notice::Retrying { error, after_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) });
        self.stream = Stream::Resting { next: Some((now.monotonic.saturating_add(wait), purpose)) };
    }

    pub(super) fn join_failed(&mut self, mut attempt: Box<JoinAttempt>, error: String, retry: Retry, now: Now) {
        if let Credential::Platform = attempt.credential {
            return self.platform_join_failed(attempt, error, retry, now);
        }
        attempt.failures += 1;
        if retry == Retry::Slowly || attempt.failures >= JOIN_ATTEMPTS {
            return self.notify(Notice::Failed { message: error });
        }
        let wait = self.backoff.next(&mut *self.entropy);
        self.notify(Notice::Retrying { error, after_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) });
        self.stream = Stream::Resting { next: Some((now.monotonic.saturating_add(wait), Purpose::Join(attempt))) };
    }

    pub(super) fn stream_timeout(&mut self, now: Now) {
        if self.stream.deadline().is_none_or(|deadline| deadline > now.monotonic) {
            return;
        }
        match std::mem::replace(&mut self.stream, Stream::Resting { next: None }) {
            Stream::Resting { next: None } => {}
            Stream::Resting { next: Some((_, Purpose::Serve | Purpose::Farewell)) } => self.connect_if_wanted(now),
            Stream::Resting { next: Some((_, join @ Purpose::Join(_))) } => self.connect(join, now),
            Stream::Joining { shown: Some(_), .. } => {
                self.effects.push_back(Effect::Close);
                let message = "nobody signed in before the code expired: run `postern up` again for a new one".into();
                self.notify(Notice::Failed { message });
            }
            Stream::Live(mut live) => {
                if live.freshen_at <= now.monotonic {
                    let nonce = self.draw_nonce(now);
                    self.effects.push_back(Effect::Send(FromNode::Freshen { nonce }));
                    live.freshen_at = now.monotonic.saturating_add(FRESHEN_INTERVAL);
                }
                if live.snapshot_by.is_some_and(|by| by <= now.monotonic) {
                    self.effects.push_back(Effect::Send(FromNode::SnapshotWanted));
                    live.snapshot_by = Some(now.monotonic.saturating_add(SNAPSHOT_PATIENCE));
                }
                if live.shut_by.is_some_and(|by| by <= now.monotonic) {
                    live.shut_by = None;
                    self.shut();
                }
                self.stream = Stream::Live(live);
            }
            silent @ (Stream::Connecting { .. }
            | Stream::Greeting { .. }
            | Stream::Joining { .. }
            | Stream::Leaving { .. }) => {
                self.effects.push_back(Effect::Close);
                self.stream = silent;
                self.handle_disconnected("the controller did not answer in time".into(), Retry::Soon, now);
            }
        }
    }

    /// Takes a message of the controller.
    pub fn handle_message(&mut self, message: ToNode, now: Now) {
        if let Stream::Leaving { .. } = self.stream {
            return self.heard_while_leaving(message, now);
        }
        match message {
            ToNode::Challenge { nonce, protocol } => self.challenged(nonce, protocol, now),
            ToNode::JoinPending { code, url, url_with_code, expires } => {
                let fingerprint = self.identity.device_seed.key().public().fingerprint();
                if let Stream::Joining { deadline, shown, .. } = &mut self.stream {
                    let patience = expires.since(now.wall).min(SIGN_IN_AT_MOST) + SIGN_IN_SLACK;
                    *deadline = now.monotonic.saturating_add(patience);
                    *shown = Some((code.clone(), url.clone()));
                    self.notify(Notice::SignIn { code, url, url_with_code, fingerprint, expires });
                }
            }
            ToNode::Joined { device, name, session, subject_name, controller, session_until } => {
                let Stream::Joining { attempt, .. } =
                    std::mem::replace(&mut self.stream, Stream::Resting { next: None })
                else {
                    return self.nonsense(now);
                };
                self.effects.push_back(Effect::Close);
                let login = match (session, &attempt.credential, session_until) {
                    (Some(session), Credential::Platform, Some(until)) => Login::Platform { session, until },
                    (Some(session), _, until) => Login::Session { session, until },
                    (None, _, _) => Login::Service,
                };
                let person = matches!(login, Login::Session { .. });
                let (subject, machine) = (subject_name.clone(), name.to_string());
                let same = self
                    .identity
                    .enrolment
                    .as_ref()
                    .is_some_and(|enrolment| enrolment.device == device && enrolment.controller_key == controller);
                let former = self.identity.enrolment.take().filter(|_| same);
                let enrolment = Enrolment {
                    controller: attempt.target,
                    device,
                    name,
                    subject_name,
                    controller_key: controller,
                    login,
                    overlay: former.map(|former| former.overlay).unwrap_or_default(),
                };
                self.identity.enrolment = Some(enrolment);
                self.resume_platform(now);
                self.identity.farewell = None; // the new sign-in has taken the former one's place
                self.identity.keyring.keep_newest();
                if !same {
                    self.key_within = None; // another controller's word
                    self.verifier = Some(GrantVerifier::new(device, controller));
                    self.shut();
                }
                self.effects.push_back(Effect::SetLocalKeys(self.identity.keyring.private_keys()));
                self.notify(Notice::Joined { subject, machine, person });
                self.after_identity.push(AfterIdentity::Connect(Purpose::Serve));
                self.write_identity();
            }
            ToNode::Grants { signed } => self.document(&signed, now),
            ToNode::Probe { port, id, key } => {
                if let (Stream::Live(_), Ok(key)) = (&self.stream, ProbeKey::from_base64(&key)) {
                    self.effects.push_back(Effect::Probe(ProbeOrder { port, stream: id, key }));
                }
            }
            ToNode::Observed { endpoint } => {
                if let Stream::Live(_) = self.stream {
                    self.observed = Some(endpoint);
                }
            }
            ToNode::Explained { id, explanation } => {
                if self.questions.remove(&id).is_some() {
                    self.effects.push_back(Effect::Explained { question: id, answer: Ok(explanation) });
                }
            }
            ToNode::StepUpPending { resource, demand, url, expires } => {
                self.step_up_pending(resource, PendingStepUp { demand, url, expires }, now);
            }
            ToNode::StepUpRefused { resource, message } => self.step_up_refused(resource, message, now),
            ToNode::AccessRequested { id, answer } => {
                if self.questions.remove(&id).is_some() {
                    self.effects.push_back(Effect::AccessRequested { question: id, answer });
                }
            }
            ToNode::Requests { mut requests } => {
                if let Stream::Live(_) = self.stream {
                    requests.truncate(MAX_OWN_REQUESTS);
                    self.requests = requests;
                    self.effects.push_back(Effect::RequestsChanged);
                }
            }
            ToNode::CountFlows { id, mut peers } => {
                if let Stream::Live(_) = self.stream {
                    peers.truncate(MAX_COUNTED_PEERS);
                    self.effects.push_back(Effect::CountFlows { question: id, peers });
                }
            }
            ToNode::Posture { report_within_ms, unmet } => self.posture_asked(report_within_ms, unmet, now),
            ToNode::SessionEnded { reason } => self.session_ended(reason, now),
            ToNode::PlatformRenewed { until } => self.platform_renewed(until, now),
            ToNode::PlatformRefused { message } => self.platform_refused(message, now),
            ToNode::KeyDeadline { within_ms } => {
                self.key_within = Some(Duration::from_millis(within_ms.max(MIN_KEY_LIFE_MS)));
            }
            ToNode::Refused { refusal, message } => self.refused(refusal, message, now),
        }
    }

    fn challenged(&mut self, challenge: Nonce, protocol: u16, now: Now) {
        let Stream::Greeting { purpose, .. } = std::mem::replace(&mut self.stream, Stream::Resting { next: None })
        else {
            return self.nonsense(now);
        };
        if protocol != PROTOCOL_VERSION {
            self.effects.push_back(Effect::Close);
            self.stream = Stream::Greeting { purpose, deadline: now.monotonic };
            let error = format!(
                "the controller speaks version {protocol} of the protocol and this machine {PROTOCOL_VERSION}: update the older one"
            );
            return self.handle_disconnected(error, Retry::Slowly, now);
        }
        match purpose {
            Purpose::Join(attempt) => {
                let join = self.join_message(challenge, &attempt);
                match &attempt.credential {
                    Credential::Enrolment(token) => {
                        let enrol = Enrol { join, token: token.to_string() };
                        self.effects.push_back(Effect::Send(FromNode::Enrol(enrol)));
                    }
                    Credential::Person => self.effects.push_back(Effect::Send(FromNode::Join(join))),
                    Credential::Platform => self.read_token_for(challenge),
                }
                let deadline = now.monotonic.saturating_add(ANSWER_PATIENCE);
                self.stream = Stream::Joining { attempt, deadline, shown: None };
            }
            Purpose::Serve => {
                if let (Some(enrolment), Some(link)) = (&mut self.identity.enrolment, self.trial.take()) {
                    enrolment.controller = link;
                    self.write_identity();
                }
                let Some(device) = self.identity.enrolment.as_ref().map(|enrolment| enrolment.device) else {
                    return self.close_stream();
                };
                self.hello(device, challenge, now);
                self.step_ups.forget_pages();
                self.stream = Stream::Live(Box::new(Live {
                    since: now.monotonic,
                    freshen_at: now.monotonic.saturating_add(FRESHEN_INTERVAL),
                    snapshot_by: Some(now.monotonic.saturating_add(SNAPSHOT_PATIENCE)),
                    shut_by: None,
                    reporting: Reporting::new(challenge, now.monotonic),
                }));
                self.tell_uses_again(now);
            }
            Purpose::Farewell => {
                let Some(device) = self.identity.farewell.as_ref().map(|farewell| farewell.device) else {
                    return self.close_stream();
                };
                self.hello(device, challenge, now);
                self.effects.push_back(Effect::Send(FromNode::Logout));
                self.await_farewell(now);
            }
        }
    }

    fn hello(&mut self, device: DeviceId, challenge: Nonce, now: Now) {
        let nonce = self.draw_nonce(now);
        let payload = hello_payload(challenge, device, self.settings.boot, nonce);
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            device,
            signature: self.identity.device_seed.key().sign(SigningPurpose::StreamHello, &payload),
            nonce,
            boot: self.settings.boot,
            // Not only what is enforced: a document that was seen and not yet written, or forgotten when the doors were
            // shut, can not be sent again, and a controller that was restarted would number from below it.
            enforced: self.verifier.as_ref().and_then(GrantVerifier::position),
            keys: self.identity.keyring.public_keys(),
            listen_port: self.settings.listen_port,
            endpoints: self.endpoints.clone(),
            version: self.settings.version.clone(),
            machine: self.settings.machine.clone(),
        };
        self.acknowledged = self.enforced();
        self.endpoints_due = None;
        self.endpoints_sent = Some(now.monotonic);
        self.effects.push_back(Effect::Send(FromNode::Hello(hello)));
    }

    fn session_ended(&mut self, reason: String, now: Now) {
        if let Stream::Live(live) = &mut self.stream {
            live.shut_by = Some(now.monotonic.saturating_add(SHUT_PATIENCE));
        }
        let mut of_platform = false;
        if let Some(enrolment) = &mut self.identity.enrolment {
            of_platform = matches!(enrolment.login, Login::Platform { .. });
            enrolment.login = Login::Ended { reason: reason.clone() };
            self.write_identity();
        }
        self.notify(Notice::SessionEnded { reason });
        if of_platform {
            self.platform_session_ended(now);
        }
    }

    pub(super) fn refused(&mut self, refusal: Refusal, message: String, now: Now) {
        self.effects.push_back(Effect::Close);
        match refusal {
            Refusal::UnknownDevice => {
                self.shut();
                if let Some(enrolment) = &mut self.identity.enrolment {
                    enrolment.login = Login::Ended { reason: message.clone() };
                    self.write_identity();
                }
                self.close_stream();
                self.last_error = Some(message.clone());
                if !self.join_by_platform(now) {
                    self.notify(Notice::Failed { message });
                }
            }
            Refusal::BadToken | Refusal::JoinRefused | Refusal::BadSignature | Refusal::Version | Refusal::Protocol => {
                self.handle_disconnected(message, Retry::Slowly, now);
            }
            Refusal::Busy | Refusal::Closing => self.handle_disconnected(message, Retry::Soon, now),
        }
    }

    fn nonsense(&mut self, now: Now) {
        self.effects.push_back(Effect::Close);
        self.handle_disconnected("the controller sent a message that makes no sense here".into(), Retry::Slowly, now);
    }
}
