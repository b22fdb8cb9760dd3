//! Streams of security events: when they were heard, their silence, and what of theirs is refused.
//!
//! ```text
//! a token that is taken --stream_heard--> not silent, or no more: alert, and what it vouched for is decided anew
//! clock --Due::Silence--> silence_due: alert once, and what the stream vouched for counts for nothing
//! a token that is refused --refuse_signal--> the first of a kind in the audit log, and each minute how many more
//! ```

use postern_common::time::{Now, WallTime};

use super::{
    core::Core,
    events::{Applied, Counted, Effect},
    limits::Stranger,
    timers::Due,
};
use crate::{
    decision::Extend,
    records::{AuditEvent, StoreChange},
    signals::{
        alerts::{About, AlertKind},
        events::{Binding, event::StreamStatus, memory::StreamView},
        refusals::Line,
    },
};

/// The most names of tokens that one look at the clock forgets.
const FORGOTTEN_AT_ONCE: usize = 512;

impl Core {
    pub(super) fn stream_heard(&mut self, binding: &Binding, issued: WallTime, now: Now) {
        let Some((record, silent_since)) = self.event_streams.heard(&binding.name, issued, now) else { return };
        self.out.store(StoreChange::PutEventStream(record));
        self.watch_for_silence();
        let Some(since) = silent_since else { return };
        let silent = postern_common::diagnostics::HumanDuration::rounded(now.wall.since(since));
        let vouched = self.postures.vouched_by(&binding.name).len();
        let mut text = format!("the stream of events {} speaks again, after {silent} of alarm", binding.name);
        if vouched > 0 {
            text += &format!(": what it said before of {vouched} machines counts again");
        }
        self.stream_changed(&binding.name, text, now);
    }

    pub(super) fn stream_updated(
        &mut self,
        binding: &Binding,
        status: StreamStatus,
        reason: Option<&str>,
        now: Now,
    ) -> Applied {
        if let Some(record) = self.event_streams.update(&binding.name, status, reason.map(str::to_owned)) {
            self.out.store(StoreChange::PutEventStream(record));
            let why = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            let text = format!("the transmitter of {} calls the stream {}{why}", binding.name, status.word());
            let text = text.chars().filter(|c| !c.is_control()).take(300).collect();
            self.alert(AlertKind::StreamSilent, text, About::default(), now);
            self.decide_vouched(&binding.name, now);
        }
        let what = format!("the stream is {}", status.word());
        Applied::Done(Effect { subject: None, device: None, what, sessions: 0 })
    }

    fn stream_changed(&mut self, stream: &str, text: String, now: Now) {
        self.out.audit(AuditEvent::SignalStream { stream: stream.to_owned(), what: text.clone() });
        self.alert(AlertKind::StreamSilent, text, About::default(), now);
        self.decide_vouched(stream, now);
    }

    /// What a stream vouches for counts, or counts no more.
    fn decide_vouched(&mut self, stream: &str, now: Now) {
        for device in self.postures.vouched_by(stream) {
            self.decide(device, Extend::No, now);
        }
    }

    pub(super) fn watch_for_silence(&mut self) {
        match self.event_streams.next_silence() {
            Some(at) => self.timers.set(Due::Silence, at),
            None => self.timers.cancel(Due::Silence),
        }
    }

    /// Looks which streams say nothing.
    pub(super) fn silence_due(&mut self, now: Now) {
        for (record, limit) in self.event_streams.fall_silent(now) {
            let limit = postern_common::diagnostics::HumanDuration::rounded(limit);
            let text = format!("the stream of events {} has been silent for {limit}", record.name);
            let name = record.name.clone();
            self.out.store(StoreChange::PutEventStream(record));
            self.stream_changed(&name, text, now);
        }
        self.watch_for_silence();
    }

    /// Draws what is given along with a request for a verification.
    pub fn expect_verification(&mut self, stream: &str) -> String {
        let state = hex::encode(self.draw::<16>());
        self.event_streams.ask(stream, state.clone());
        state
    }

    /// Lists the streams.
    pub fn list_event_streams(&self) -> Vec<StreamView> {
        self.event_streams.list()
    }

    pub(super) fn sweep_events(&mut self, now: Now) {
        for change in self.event_streams.sweep(now.wall, FORGOTTEN_AT_ONCE) {
            self.out.store(change);
        }
        for line in self.refusals.flush(now.monotonic) {
            self.audit_refusal(line);
        }
    }

    // --- refusals

    /// Counts a signal that was refused, or that had no effect; the first of a kind within a minute is audited at once.
    pub fn refuse_signal(
        &mut self,
        source: &str,
        reason: &'static str,
        from: Option<std::net::IpAddr>,
        now: Now,
    ) -> Counted {
        self.counters.signals_refused += 1;
        let Some(line) = self.refusals.count(source, reason, from, now.monotonic) else { return Counted::Again };
        self.audit_refusal(line);
        Counted::First
    }

    /// Counts an event that was issued later than now: it is left with the transmitter, and somebody has to set a clock right.
    pub fn event_not_yet(&mut self, stream: &str, now: Now) {
        let why = "issued in the future";
        if self.refuse_signal(&format!("events {stream}"), why, None, now) == Counted::First {
            let text = format!(
                "an event of the stream {stream} was issued in the future: set the clock of the controller right, or the transmitter's; \
                 what it tells waits there meanwhile"
            );
            self.alert(AlertKind::StreamSilent, text, About::default(), now);
        }
        self.flush(now);
    }

    /// Counts a logout token of the provider's that holds but for its time: somebody has to set a clock right, or no logout is taken.
    pub fn logout_not_of_now(&mut self, from: std::net::IpAddr, now: Now) {
        if self.refuse_signal("back-channel logout", "not of now", Some(from), now) == Counted::First {
            let text = "a logout token of the identity provider was not issued now: set the clock of the controller right, or the provider's; \
                        who signs out there stays signed in here meanwhile";
            self.alert(AlertKind::StreamSilent, text.to_owned(), About::default(), now);
        }
        self.flush(now);
    }

    /// Tells whether the refusal of somebody who has not proven who they are is recorded by itself. If not, it is counted: a line
    /// a minute says how many there were.
    pub fn records_stranger(&mut self, kind: Stranger, from: std::net::IpAddr, now: Now) -> bool {
        if self.recorded.take(kind, from, now.monotonic) {
            return true;
        }
        let source = match kind {
            Stranger::Stream => "streams",
            Stranger::Join => "machines that join",
            Stranger::Enrol => "enrolment tokens",
            Stranger::Platform => "platform tokens",
            Stranger::Page => "pages",
        };
        let line = self.refusals.count(source, "refused too often to record each", Some(from), now.monotonic);
        line.into_iter().for_each(|line| self.audit_refusal(line));
        false
    }

    fn audit_refusal(&mut self, line: Line) {
        let Line { source, reason, from, times } = line;
        self.out.audit(AuditEvent::SignalRefused { source, reason, from, times });
    }
}
