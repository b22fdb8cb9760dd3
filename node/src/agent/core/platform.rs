//! A service that signs in with a token of the platform that it runs on: it joins by itself, and renews in time.
//!
//! ```text
//! challenge --> ReadToken --shell--> handle_platform_token --> Platform{join, token} --> Joined, until U
//! half of the life is over --> ReadToken, again and again --> another token than the last --> PlatformToken --> Renewed, until U'
//! the session has ended, or the machine was forgotten --> doors shut --> join again, for as long as it takes
//! ```
//!
//! Nothing is kept: the token is read when it is needed, sent, and wiped; of the last one there is a hash, so that the same is not
//! sent twice. A platform that gives no fresh token has taken this machine's access away, and that is what then happens.

use std::time::Duration;

use postern_common::{
    id::{MachineName, Nonce},
    key::{SigningPurpose, WireGuardPrivateKey},
    protocol::{FromNode, Join, PROTOCOL_VERSION, PlatformJoin, PlatformToken, join_payload},
    time::{Deadline, Monotonic, Now, WallTime},
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{
    AfterIdentity, Core, Effect, Notice, Retry,
    identity::{Login, Wanted},
    stream::{Credential, JoinAttempt, Purpose, Stream},
};
use crate::agent::target::ControllerTarget;

/// How long the controller has to check a token; its issuer may have to be asked for keys.
const CHECKED_WITHIN: Duration = Duration::from_secs(35);
/// The least and the greatest time between two looks for a fresh token.
const LOOK_AT_LEAST: Duration = Duration::from_secs(1);
const LOOK_AT_MOST: Duration = Duration::from_secs(60);
/// How often a machine whose token was refused looks whether there is another.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// The least time until a token is shown again that was refused.
const AFTER_REFUSAL: Duration = Duration::from_secs(10);

/// What `node.toml` says of the platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformSettings {
    /// The controller that the machine joins by itself.
    pub join: Option<ControllerTarget>,
    /// The name that the machine would like.
    pub name: MachineName,
    /// Whether looking costs nothing: a file, in which the platform leaves each token for a while.
    pub watch: bool,
}

/// What a token is being read for.
#[derive(Debug)]
enum Reading {
    /// To join, in answer to this challenge.
    Join(Nonce),
    /// To renew.
    Renewal,
    /// To see whether there is another than the one that was refused.
    Watch,
}

/// Where a machine stands with its platform's tokens.
#[derive(Debug, Default)]
pub(super) struct Platform {
    reading: Option<Reading>,
    look_at: Option<Monotonic>,
    /// When the login session ends unless it is renewed.
    until: Option<Deadline>,
    /// The SHA-256 of the token that was shown last and not refused.
    shown: Option<[u8; 32]>,
    trouble: Option<String>,
}

impl Core {
    /// Returns why no fresh token opens a session, if that is so.
    pub fn platform_trouble(&self) -> Option<&str> {
        self.platform.trouble.as_deref()
    }

    /// Returns until when the login session of a platform's token lasts.
    pub fn platform_until(&self) -> Option<WallTime> {
        self.platform.until.map(|until| until.wall)
    }

    /// Changes what `node.toml` says of the platform.
    pub fn set_platform(&mut self, platform: Option<PlatformSettings>) {
        self.settings.platform = platform;
    }

    /// Joins by a token of the platform, if the machine shall be up, signs in that way, and nobody is signed in. Tells whether it
    /// does.
    pub(super) fn join_by_platform(&mut self, now: Now) -> bool {
        let Some(settings) = self.settings.platform.clone().filter(|_| self.identity.wanted == Wanted::Up) else {
            return false;
        };
        let enrolment = self.identity.enrolment.as_ref();
        let known = enrolment.map(|enrolment| (enrolment.controller.clone(), enrolment.name.clone()));
        let Some((target, name)) = known.or_else(|| Some((settings.join?, settings.name))) else { return false };
        if self.signed_in() || self.is_joining() {
            return self.is_joining();
        }
        self.begin_join(target, Credential::Platform, name, now);
        true
    }

    /// Begins a join: with a new WireGuard key, once that is on disk.
    pub(super) fn begin_join(&mut self, target: ControllerTarget, credential: Credential, name: MachineName, now: Now) {
        let mut secret = Zeroizing::new([0; 32]);
        self.entropy.fill(&mut *secret);
        let key = self.identity.keyring.propose(WireGuardPrivateKey::from_bytes(*secret), now.wall);
        let attempt = JoinAttempt { target, credential, name, key, failures: 0 };
        self.after_identity.push(AfterIdentity::Connect(Purpose::Join(Box::new(attempt))));
        self.write_identity();
    }

    /// The controller has asked who joins: a token is read.
    pub(super) fn read_token_for(&mut self, challenge: Nonce) {
        self.platform.look_at = None;
        self.platform.reading = Some(Reading::Join(challenge));
        self.effects.push_back(Effect::ReadPlatformToken);
    }

    /// Takes the token that [`Effect::ReadPlatformToken`] asked for, or why there is none.
    pub fn handle_platform_token(&mut self, token: Result<PlatformToken, String>, now: Now) {
        match (self.platform.reading.take(), token) {
            (None, _) => {}
            (Some(Reading::Watch), Err(_)) => self.platform.look_at = Some(now.monotonic.saturating_add(WATCH_EVERY)),
            (Some(Reading::Watch), Ok(token)) => {
                let hash: [u8; 32] = Sha256::digest(token.expose()).into();
                self.platform.look_at = Some(now.monotonic.saturating_add(WATCH_EVERY));
                if let (Stream::Resting { next: Some((at, _)) }, true) =
                    (&mut self.stream, self.platform.shown != Some(hash))
                {
                    *at = now.monotonic;
                    self.platform.look_at = None;
                }
            }
            (Some(Reading::Join(challenge)), token) => self.token_for_join(challenge, token, now),
            (Some(Reading::Renewal), Err(why)) => {
                self.platform.trouble = Some(why);
                self.look_later(LOOK_AT_LEAST, now);
            }
            (Some(Reading::Renewal), Ok(token)) => {
                let hash: [u8; 32] = Sha256::digest(token.expose()).into();
                let fresh = self.platform.shown != Some(hash);
                if let (Stream::Live(_), true) = (&self.stream, fresh) {
                    self.platform.shown = Some(hash);
                    self.effects.push_back(Effect::Send(FromNode::PlatformToken { token }));
                }
                self.look_later(if fresh { AFTER_REFUSAL } else { LOOK_AT_LEAST }, now);
            }
        }
    }

    fn token_for_join(&mut self, challenge: Nonce, token: Result<PlatformToken, String>, now: Now) {
        let attempt = match std::mem::replace(&mut self.stream, Stream::Resting { next: None }) {
            Stream::Joining { attempt, .. } => attempt,
            other => {
                self.stream = other;
                return;
            }
        };
        match token {
            Ok(token) => {
                self.platform.shown = Some(Sha256::digest(token.expose()).into());
                let join = self.join_message(challenge, &attempt);
                self.effects.push_back(Effect::Send(FromNode::Platform(PlatformJoin { join, token })));
                let deadline = now.monotonic.saturating_add(CHECKED_WITHIN);
                self.stream = Stream::Joining { attempt, deadline, shown: None };
            }
            Err(why) => {
                self.effects.push_back(Effect::Close);
                self.join_failed(attempt, why, Retry::Soon, now);
            }
        }
    }

    /// Makes the join that a challenge asks for.
    pub(super) fn join_message(&self, challenge: Nonce, attempt: &JoinAttempt) -> Join {
        let key = self.identity.device_seed.key();
        let payload = join_payload(challenge, &key.public(), &attempt.key, &attempt.name);
        Join {
            protocol: PROTOCOL_VERSION,
            device_key: key.public(),
            wireguard_key: attempt.key,
            name: attempt.name.clone(),
            signature: key.sign(SigningPurpose::Join, &payload),
        }
    }

    /// Takes a join by a token of the platform that did not work: it is tried for as long as it takes.
    pub(super) fn platform_join_failed(&mut self, attempt: Box<JoinAttempt>, error: String, retry: Retry, now: Now) {
        self.platform.reading = None;
        self.platform.trouble = Some(error.clone());
        self.last_error = Some(error.clone());
        let wait = match retry {
            Retry::Soon => self.backoff.next(&mut *self.entropy),
            Retry::Slowly => self.backoff.slow(&mut *self.entropy),
        };
        self.notify(Notice::Retrying { error, after_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) });
        self.stream = Stream::Resting { next: Some((now.monotonic.saturating_add(wait), Purpose::Join(attempt))) };
        let watch = retry == Retry::Slowly && self.settings.platform.as_ref().is_some_and(|settings| settings.watch);
        self.platform.look_at = watch.then(|| now.monotonic.saturating_add(WATCH_EVERY));
    }

    /// Takes in how long the login session of a platform's token lasts now.
    pub(super) fn platform_session(&mut self, until: WallTime, now: Now) {
        let left = until.since(now.wall);
        let ends = Deadline { monotonic: now.monotonic.saturating_add(left), wall: until };
        let later = self.platform.until.is_none_or(|before| before.wall < until);
        self.platform.until = Some(ends);
        if later {
            self.platform.trouble = None;
            self.platform.look_at = Some(now.monotonic.saturating_add(left / 2));
        }
    }

    /// Takes up the session that the state file tells of.
    pub(super) fn resume_platform(&mut self, now: Now) {
        let login = self.identity.enrolment.as_ref().map(|enrolment| enrolment.login.clone());
        if let Some(Login::Platform { until, .. }) = login {
            self.platform_session(until, now);
        }
    }

    pub(super) fn platform_renewed(&mut self, until: WallTime, now: Now) {
        if let Some(enrolment) = &mut self.identity.enrolment
            && let Login::Platform { until: known, .. } = &mut enrolment.login
        {
            *known = until;
            self.write_identity();
            self.platform_session(until, now);
        }
    }

    pub(super) fn platform_refused(&mut self, message: String, now: Now) {
        self.platform.trouble = Some(message);
        self.platform.shown = None; // it may be taken later: the controller could not ask the issuer, or a rule was mended
        self.look_later(AFTER_REFUSAL, now);
    }

    /// The login session is over: nothing of it is left, and the next one is sought.
    pub(super) fn platform_session_ended(&mut self, now: Now) {
        self.platform.until = None;
        self.platform.look_at = None;
        self.platform.reading = None;
        if self.settings.platform.is_some() && self.identity.wanted == Wanted::Up {
            self.close_stream();
            self.shut();
            self.join_by_platform(now);
        }
    }

    fn look_later(&mut self, least: Duration, now: Now) {
        let left = self.platform.until.map_or(LOOK_AT_MOST, |until| until.remaining(now));
        let wait = (left / 10).clamp(LOOK_AT_LEAST, LOOK_AT_MOST).max(least.min(left / 2)).max(LOOK_AT_LEAST);
        self.platform.look_at = Some(now.monotonic.saturating_add(wait));
    }

    pub(super) fn platform_due(&self) -> Option<Monotonic> {
        self.platform.look_at.filter(|_| self.platform.reading.is_none() && self.settings.platform.is_some())
    }

    pub(super) fn platform_timeout(&mut self, now: Now) {
        if self.platform_due().is_none_or(|at| at > now.monotonic) {
            return;
        }
        match self.stream {
            Stream::Live(_) => {
                self.platform.look_at = None;
                self.platform.reading = Some(Reading::Renewal);
                self.effects.push_back(Effect::ReadPlatformToken);
            }
            Stream::Resting { next: Some((_, Purpose::Join(_))) } => {
                self.platform.look_at = None;
                self.platform.reading = Some(Reading::Watch);
                self.effects.push_back(Effect::ReadPlatformToken);
            }
            Stream::Resting { .. }
            | Stream::Connecting { .. }
            | Stream::Greeting { .. }
            | Stream::Joining { .. }
            | Stream::Leaving { .. } => self.look_later(LOOK_AT_LEAST, now),
        }
    }
}
