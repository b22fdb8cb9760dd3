//! Somebody set the controller's clock: who is told, and how it is believed. What that means for decisions: [`crate::decision::Clock`].

use std::time::Duration;

use postern_common::time::{Monotonic, Now, WallTime};
use serde::Serialize;

use super::{api::CoreError, core::Core, requests::checked_reason};
use crate::{
    records::{AuditEvent, StoreChange},
    signals::alerts::{About, AlertKind},
};

/// How far apart the clocks are when somebody is told.
const TOLD_FROM: i64 = 60_000;
/// The least time from one alert to the next: a clock that wanders all the time is one story.
const TOLD_APART: Duration = Duration::from_secs(600);

/// What time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ClockView {
    /// What the wall clock shows.
    pub shows: WallTime,
    /// What time it is if nobody has set the clock since it was last believed.
    pub steady: WallTime,
    /// Whether both count, because they differ.
    pub in_doubt: bool,
}

impl Core {
    /// Tells what time it is.
    pub fn clock_view(&self, now: Now) -> ClockView {
        ClockView { shows: now.wall, steady: self.clock.steady(now), in_doubt: self.clock.doubt(now).is_some() }
    }

    /// Believes the wall clock as it stands; returns how both stood before. Leases are decided with it when they are looked at next:
    /// within a minute.
    ///
    /// # Errors
    /// [`CoreError::NotPermitted`] without a reason.
    pub fn accept_clock(&mut self, reason: &str, now: Now) -> Result<ClockView, CoreError> {
        checked_reason(reason)?;
        let before = self.clock_view(now);
        self.clock.accept(now);
        self.watch_clock(now);
        self.flush(now);
        Ok(before)
    }

    /// Returns when what is given now for a while ends, whichever of both times is right.
    ///
    /// # Errors
    /// [`CoreError::NotPermitted`] if it would be over at once by one of them.
    pub(super) fn end_after(&self, length: Duration, now: Now) -> Result<WallTime, CoreError> {
        let until = self.clock.earliest(now).saturating_add(length);
        if self.clock.doubt(now).is_some() && until <= self.clock.latest(now) {
            let message = "the controller's clock is in doubt: postern-controller clock accept";
            return Err(CoreError::NotPermitted(message.into()));
        }
        Ok(until)
    }

    /// Follows the time, keeps it on record, and tells when somebody has set the clock.
    pub(super) fn watch_clock(&mut self, now: Now) {
        self.clock.settle(now);
        if let Some(record) = self.clock.record(now) {
            self.out.store(StoreChange::PutClock(record));
        }
        if self.clock.doubt(now).is_none() {
            self.lower_what_is_to_come(now);
        }
        let steady = self.clock.steady(now);
        let apart = now.wall.as_millis().saturating_sub(steady.as_millis());
        let (told, lately) = match self.clock.told {
            Some((told, at)) => (told, now.monotonic.since(at) < TOLD_APART),
            None => (0, false),
        };
        if apart.abs() < TOLD_FROM && told == 0 || (apart - told).abs() < TOLD_FROM {
            return;
        }
        if apart.abs() < TOLD_FROM {
            self.clock.told = Some((0, self.clock.told.map_or(Monotonic::default(), |(_, at)| at)));
            return self.out.audit(AuditEvent::ClockSet { shows: now.wall, steady });
        }
        if lately {
            return;
        }
        self.clock.told = Some((apart, now.monotonic));
        self.out.audit(AuditEvent::ClockSet { shows: now.wall, steady });
        let by = postern_common::diagnostics::HumanDuration::rounded(Duration::from_millis(apart.unsigned_abs()));
        let way = if apart > 0 { "forward" } else { "back" };
        let text = format!(
            "the controller's clock was set {way} by {by}: it shows {}, and it is {steady} if that was wrong; until somebody looks, conditions on time hold only at both: postern-controller clock",
            now.wall
        );
        self.alert(AlertKind::ClockSet, text, About::default(), now);
    }
}
