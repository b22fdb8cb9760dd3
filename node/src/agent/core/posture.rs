//! When the machine's posture is looked at, signed and sent.
//!
//! ```text
//! ToNode::Posture {report_within} --> LookAtPosture --shell--> handle_posture(facts) --changed, asked--> Send(Posture)
//! the machine's watch (a file, a mount, a firewall rule changed) --> handle_posture(facts) --changed----^
//! poll_timeout: before the last report is too old --> LookAtPosture
//! ```
//!
//! Invariants: nothing is sent that the controller did not ask for on this stream; a report tells when the machine looked, never
//! when it was sent, so that a slow disk or a queue cannot make old facts young; at most one report in [`SPACING`].

use std::time::Duration;

use postern_common::{
    id::Nonce,
    posture::{Facts, PostureDocument, sign_posture},
    protocol::{FromNode, MAX_UNMET_POSTURES, UnmetPosture},
    time::{Monotonic, Now},
};

use super::{Core, Effect, Stream, backoff::fraction};

/// The least time between two reports: a fact that flickers is told as it is when the time is over.
pub(crate) const SPACING: Duration = Duration::from_secs(1);
/// The least that a controller can ask for.
const LEAST: Duration = Duration::from_secs(2);

/// What is known across streams.
#[derive(Debug, Default)]
pub(super) struct Posture {
    /// What the machine last saw, and when.
    seen: Option<(Facts, Monotonic)>,
    /// Whether the controller asked, and has not said since that it wants none.
    wanted: bool,
    /// What the controller said is not as rules ask.
    unmet: Vec<UnmetPosture>,
}

/// The reports on one stream.
#[derive(Debug)]
pub(super) struct Reporting {
    challenge: Nonce,
    challenged: Monotonic,
    number: u64,
    /// No report may be older; none is wanted if absent.
    within: Option<Duration>,
    /// What was sent last, and when.
    sent: Option<(Facts, Monotonic)>,
    /// When the machine is looked at again.
    look_at: Option<Monotonic>,
    /// When what was seen is sent, because it changed too soon after the last report.
    send_at: Option<Monotonic>,
    /// The next look is to be told of, whatever it shows.
    owed: bool,
}

impl Reporting {
    pub(super) const fn new(challenge: Nonce, challenged: Monotonic) -> Self {
        Self { challenge, challenged, number: 0, within: None, sent: None, look_at: None, send_at: None, owed: false }
    }

    fn due(&self) -> Option<Monotonic> {
        self.look_at.into_iter().chain(self.send_at).min()
    }
}

/// Returns milliseconds from `from` to `to`, which may be earlier.
fn millis(from: Monotonic, to: Monotonic) -> i64 {
    let span = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    if to >= from { span(to.since(from)) } else { -span(from.since(to)) }
}

impl Core {
    /// Takes what the machine saw of its own posture when it looked at `seen_at`.
    pub fn handle_posture(&mut self, facts: Facts, seen_at: Monotonic, now: Now) {
        self.posture.seen = Some((facts.clone(), seen_at));
        let Stream::Live(live) = &mut self.stream else { return };
        let reporting = &mut live.reporting;
        if reporting.within.is_none() {
            return;
        }
        let changed = reporting.sent.as_ref().is_none_or(|(sent, _)| !sent.same_state(&facts));
        if !changed && !reporting.owed {
            return;
        }
        let room = reporting.sent.as_ref().map(|(_, at)| at.saturating_add(SPACING));
        match room.filter(|room| *room > now.monotonic) {
            Some(room) => reporting.send_at = Some(room),
            None => self.send_posture(now),
        }
    }

    /// Returns what the machine last saw, and when.
    pub fn posture_seen(&self) -> Option<(&Facts, Monotonic)> {
        self.posture.seen.as_ref().map(|(facts, at)| (facts, *at))
    }

    /// Tells whether the controller wants to know the machine's posture, as it last said.
    pub const fn posture_wanted(&self) -> bool {
        self.posture.wanted
    }

    /// Returns what of the posture is not as rules ask, as the controller last said.
    pub fn posture_unmet(&self) -> &[UnmetPosture] {
        &self.posture.unmet
    }

    pub(super) fn posture_asked(&mut self, within_ms: Option<u64>, mut unmet: Vec<UnmetPosture>, now: Now) {
        let Stream::Live(live) = &mut self.stream else { return };
        unmet.truncate(MAX_UNMET_POSTURES);
        self.posture.unmet = unmet;
        self.posture.wanted = within_ms.is_some();
        let before = live.reporting.within;
        live.reporting.within = within_ms.map(|within| Duration::from_millis(within).max(LEAST));
        match (before, live.reporting.within) {
            (_, None) => (live.reporting.look_at, live.reporting.send_at) = (None, None),
            (before, within) if before == within => {}
            (_, Some(_)) => self.look_at_posture(now),
        }
    }

    pub(super) fn posture_timeout(&mut self, now: Now) {
        let Stream::Live(live) = &mut self.stream else { return };
        let due = |at: Option<Monotonic>| at.is_some_and(|at| at <= now.monotonic);
        if due(live.reporting.send_at) {
            live.reporting.send_at = None;
            self.send_posture(now);
        } else if due(live.reporting.look_at) {
            self.look_at_posture(now);
        }
    }

    /// Returns when [`Core::posture_timeout`] has something to do.
    pub(super) fn posture_due(&self) -> Option<Monotonic> {
        match &self.stream {
            Stream::Live(live) => live.reporting.due(),
            Stream::Resting { .. }
            | Stream::Connecting { .. }
            | Stream::Greeting { .. }
            | Stream::Joining { .. }
            | Stream::Leaving { .. } => None,
        }
    }

    fn look_at_posture(&mut self, now: Now) {
        let early = fraction(&mut *self.entropy);
        let Stream::Live(live) = &mut self.stream else { return };
        let Some(within) = live.reporting.within else { return };
        live.reporting.owed = true;
        // A thousand nodes that were asked in one moment do not answer in one moment for ever.
        let wait = within.mul_f64(1.0 - 0.3 * early);
        live.reporting.look_at = Some(now.monotonic.saturating_add(wait));
        self.effects.push_back(Effect::LookAtPosture);
    }

    fn send_posture(&mut self, now: Now) {
        let (Some((facts, seen_at)), Some(enrolment)) = (&self.posture.seen, &self.identity.enrolment) else { return };
        let Stream::Live(live) = &mut self.stream else { return };
        let reporting = &mut live.reporting;
        reporting.number += 1;
        let document = PostureDocument {
            device: enrolment.device,
            challenge: reporting.challenge,
            number: reporting.number,
            taken_ms: millis(reporting.challenged, *seen_at),
            facts: facts.clone(),
        };
        let signed = sign_posture(&document, &self.identity.device_seed.key());
        reporting.sent = Some((document.facts, now.monotonic));
        (reporting.owed, reporting.send_at) = (false, None);
        self.effects.push_back(Effect::Send(FromNode::Posture { signed }));
    }
}
