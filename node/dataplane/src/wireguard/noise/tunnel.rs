//! One pair of keys: its handshakes, its sessions, and what time does to them (whitepaper §6).
//!
//! | when | what |
//! | --- | --- |
//! | an initiation got no answer for 5 s and a bit | it is sent again, with new keys |
//! | 90 s after the first of them | the attempt is given up |
//! | we began the session, it is 120 s old, and something is sent | a new handshake |
//! | we began the session, it is 165 s old, and something is heard | a new handshake |
//! | something was sent and nothing heard for 15 s and a bit | a new handshake |
//! | something was heard and nothing sent for 10 s | a keepalive |
//! | a session is 180 s old | it is dropped with its keys |

use std::time::Duration;

use postern_aead::Ways;
use postern_common::time::Monotonic;

use super::{
    Stamper,
    cookies::Stamps,
    handshake::{INITIATION_BODY, Initiation, RESPONSE_BODY, Statics, Timestamp, identify},
    transport::{REJECT_AFTER_TIME, Role, Session, SessionOpener, SessionSealer},
};
use crate::wireguard::{
    COOKIE_REPLY, Due, INITIATION, INITIATION_LENGTH, Opening, REKEY_AFTER_MESSAGES, RESPONSE, RESPONSE_LENGTH,
    Received, TRANSPORT_OVERHEAD, Tunnel, read_index,
};

const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Up to so much is added to waits for an answer, so that two ends do not ask at once for ever.
const JITTER_MS: u8 = 255;

/// One pair of keys, with at most three sessions and one handshake under way.
pub struct NoiseTunnel {
    statics: Statics,
    stamps: Stamps,
    stamper: Stamper,
    cipher: Ways,
    /// The upper 24 bits of our session indices; the lower 8 count up.
    index: u32,
    attempt: Option<Attempt>,
    /// The newest timestamp that the peer has shown: only a newer one is answered.
    newest: Option<Timestamp>,
    /// Confirmed by its first message: what we send with.
    current: Option<Session>,
    previous: Option<Session>,
    /// We answered for it; the first message with it confirms it.
    unconfirmed: Option<Session>,
    /// Since when we have sent without hearing anything.
    unanswered: Option<Monotonic>,
    /// Since when we have heard without sending anything.
    owed: Option<Monotonic>,
    /// Whether packets were sent and heard since time was last looked at.
    has_sent: bool,
    has_heard: bool,
}

struct Attempt {
    index: u32,
    initiation: Initiation,
    begun: Monotonic,
    again: Monotonic,
}

impl std::fmt::Debug for NoiseTunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sealed = self.current.as_ref().map(Session::sealed);
        f.debug_struct("NoiseTunnel").field("sealed", &sealed).finish_non_exhaustive()
    }
}

impl NoiseTunnel {
    pub(super) fn new(statics: Statics, index: u32, stamper: Stamper, cipher: Ways) -> Self {
        Self {
            stamps: Stamps::new(statics.remote.as_bytes()),
            statics,
            stamper,
            cipher,
            index: index << 8,
            attempt: None,
            newest: None,
            current: None,
            previous: None,
            unconfirmed: None,
            unanswered: None,
            owed: None,
            has_sent: false,
            has_heard: false,
        }
    }

    fn next_index(&mut self) -> u32 {
        self.index = (self.index & !0xff) | u32::from((self.index as u8).wrapping_add(1));
        self.index
    }

    fn begin(&mut self, buffer: &mut [u8], begun: Monotonic, now: Monotonic) -> Option<usize> {
        let message = buffer.first_chunk_mut::<INITIATION_LENGTH>()?;
        let (index, ephemeral) = (self.next_index(), random()?);
        let body = message.first_chunk_mut::<INITIATION_BODY>()?;
        let stamp = self.stamper.stamp(now);
        let initiation = Initiation::write(&self.statics, index, ephemeral, &stamp, body)?;
        self.stamps.stamp(message, index, now);
        let [jitter] = random()?;
        let wait = REKEY_TIMEOUT + Duration::from_millis(u64::from(jitter & JITTER_MS));
        self.attempt = Some(Attempt { index, initiation, begun, again: now.saturating_add(wait) });
        self.owed = None;
        Some(INITIATION_LENGTH)
    }

    fn take_initiation(&mut self, message: &[u8], buffer: &mut [u8], now: Monotonic) -> Option<Received> {
        let body = message.first_chunk::<INITIATION_BODY>()?;
        let claim = identify(&self.statics.secret, &self.statics.public, body)?;
        let verified = claim.verify(&self.statics, body)?;
        if self.newest.is_some_and(|newest| verified.timestamp <= newest) {
            return None;
        }
        let timestamp = verified.timestamp;
        let (index, ephemeral, to) = (self.next_index(), random()?, read_index(message, 4)?);
        let response = buffer.first_chunk_mut::<RESPONSE_LENGTH>()?;
        let body = response.first_chunk_mut::<RESPONSE_BODY>()?;
        let keys = verified.respond(&self.statics, (index, to), ephemeral, body)?;
        self.stamps.stamp(response, index, now);
        self.newest = Some(timestamp);
        // An attempt of our own goes on: if both ends began at once, both get a session.
        self.unconfirmed = Some(Session::new(&keys, (index, to), Role::Responder, self.cipher, now));
        self.owed = None;
        Some(Received::Response(RESPONSE_LENGTH))
    }

    fn take_response(&mut self, message: &[u8], buffer: &mut [u8], now: Monotonic) -> Option<Received> {
        let body = message.first_chunk::<RESPONSE_BODY>()?;
        let (from, to) = (read_index(message, 4)?, read_index(message, 8)?);
        let attempt = self.attempt.as_ref().filter(|attempt| attempt.index == to)?;
        let keys = attempt.initiation.finish(&self.statics, body)?;
        self.attempt = None;
        let mut session = Session::new(&keys, (to, from), Role::Initiator, self.cipher, now);
        let length = session.seal_keepalive(buffer)?;
        // What the peer may still send with stays: the session before, and the one that it asked for meanwhile. The latter may be the
        // fruit of a replay, so it displaces nothing.
        if let Some(before) = self.current.replace(session) {
            self.previous = Some(before);
        }
        self.unanswered = None;
        self.owed = None;
        Some(Received::Established(length))
    }

    #[cfg(test)]
    pub(super) fn public(&self) -> [u8; 32] {
        self.statics.public.to_bytes()
    }

    #[cfg(test)]
    pub(super) fn current_is_older(&self) -> bool {
        self.current.is_some() && self.unconfirmed.is_some()
    }

    fn session_of(&mut self, index: u32) -> Option<&mut Session> {
        [&mut self.current, &mut self.unconfirmed, &mut self.previous]
            .into_iter()
            .flatten()
            .find(|session| session.local_index == index)
    }
}

impl Tunnel for NoiseTunnel {
    type Sealer = SessionSealer;
    type Opener = SessionOpener;

    fn is_ready(&self, now: Monotonic) -> bool {
        self.current.as_ref().is_some_and(|session| session.is_usable(now))
    }

    fn sealer(&mut self, count: u64, now: Monotonic) -> Option<SessionSealer> {
        let sealer = self.current.as_mut().filter(|session| session.is_usable(now))?.sealer(count)?;
        if self.unanswered.is_none() {
            self.unanswered = Some(now);
        }
        self.owed = None;
        self.has_sent = true;
        Some(sealer)
    }

    fn seal_keepalive(&mut self, message: &mut [u8], now: Monotonic) -> Option<usize> {
        let session = self.current.as_mut().filter(|session| session.is_usable(now))?;
        let sealed = session.seal_keepalive(message.get_mut(..TRANSPORT_OVERHEAD)?)?;
        // It asks for no answer, but it uses the session, whose age counts (whitepaper §6.2).
        self.owed = None;
        self.has_sent = true;
        Some(sealed)
    }

    fn opener(&self, index: u32, now: Monotonic) -> Option<SessionOpener> {
        let sessions = [&self.current, &self.unconfirmed, &self.previous].into_iter().flatten();
        let session = sessions.into_iter().find(|session| session.local_index == index)?;
        (session.age(now) < REJECT_AFTER_TIME).then(|| session.opener())
    }

    fn accept(&mut self, index: u32, counter: u64, opening: Opening, now: Monotonic) -> Opening {
        if opening == Opening::Refused {
            return opening;
        }
        let session = self.session_of(index).filter(|session| session.age(now) < REJECT_AFTER_TIME);
        if !session.is_some_and(|session| session.accept(counter)) {
            return Opening::Refused;
        }
        if self.unconfirmed.as_ref().is_some_and(|session| session.local_index == index) {
            self.previous = self.current.take();
            self.current = self.unconfirmed.take();
            self.attempt = None;
        }
        self.unanswered = None;
        self.has_heard = true;
        if opening != Opening::Keepalive {
            self.owed.get_or_insert(now);
        }
        opening
    }

    fn wants_rekey(&self) -> bool {
        self.current.as_ref().is_some_and(|session| session.sealed() >= REKEY_AFTER_MESSAGES)
    }

    fn initiate(&mut self, message: &mut [u8], now: Monotonic) -> Option<usize> {
        if self.attempt.is_some() { None } else { self.begin(message, now, now) }
    }

    fn receive(&mut self, message: &[u8], buffer: &mut [u8], now: Monotonic) -> Received {
        let received = match message.first().copied() {
            Some(INITIATION) => self.take_initiation(message, buffer, now),
            Some(RESPONSE) => self.take_response(message, buffer, now),
            Some(COOKIE_REPLY) => self.stamps.take(message, now).then_some(Received::Cookie),
            Some(_) | None => None,
        };
        received.unwrap_or(Received::Refused)
    }

    fn handle_timeout(&mut self, buffer: &mut [u8], now: Monotonic) -> Due {
        for session in [&mut self.current, &mut self.previous, &mut self.unconfirmed] {
            session.take_if(|session| session.age(now) >= REJECT_AFTER_TIME);
        }
        let (has_sent, has_heard) = (std::mem::take(&mut self.has_sent), std::mem::take(&mut self.has_heard));
        if let Some(attempt) = &self.attempt {
            let begun = attempt.begun;
            if now.since(begun) >= REKEY_ATTEMPT_TIME {
                self.attempt = None;
                self.unanswered = None;
                return Due::GaveUp;
            }
            if now >= attempt.again {
                return self.begin(buffer, begun, now).map_or(Due::Nothing, Due::Initiation);
            }
        } else {
            let is_old =
                self.current.as_ref().filter(|session| session.role == Role::Initiator).is_some_and(|session| {
                    let before_the_end = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT;
                    (has_sent && session.age(now) >= REKEY_AFTER_TIME)
                        || (has_heard && session.age(now) >= before_the_end)
                });
            let is_unanswered =
                self.unanswered.is_some_and(|since| now.since(since) >= KEEPALIVE_TIMEOUT + REKEY_TIMEOUT);
            if is_old || is_unanswered {
                self.unanswered = None;
                return self.begin(buffer, now, now).map_or(Due::Nothing, Due::Initiation);
            }
        }
        if self.owed.is_some_and(|since| now.since(since) >= KEEPALIVE_TIMEOUT) {
            self.owed = None;
            return self.seal_keepalive(buffer, now).map_or(Due::Nothing, Due::Keepalive);
        }
        Due::Nothing
    }
}

fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).ok().map(|()| bytes)
}
