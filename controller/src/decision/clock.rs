//! What time it is, for decisions: by the wall clock, and as if nobody had set that since it was last believed.
//!
//! ```text
//! wall clock ------------------------------------------------> Times::wall     -\
//! anchor (a believed moment) + monotonic clock --Clock::steady-> Times::instead  -+-> RequestContext: what opens must hold at both
//! anchor --every minute--> ClockRecord: the next start goes on from it
//! ```
//!
//! A step of the wall clock, by whoever keeps it right or wrong, looks the same from here: an hour that was set, or an hour that is
//! put right. So it is believed by nobody but an administrator (`postern-controller clock accept`); until then both times count
//! ([`Clock::doubt`]): hours, ends of rules, approvals and exceptions, and the age of a proof open what they open only if they do so
//! at both, and close at either. Slewing is no step: it moves both clocks.
//!
//! Invariants:
//! - Within one boot the steady time moves only by an administrator, also over restarts of the controller. The record holds the boot.
//! - Over a boot it never goes behind what was recorded, to a minute. The wall clock counts if it is later: nobody can tell for how long
//!   the machine was off.
//! - In the first minutes of a boot ([`SETTLES`]) it follows the wall clock forward: a machine without a clock of its own begins where
//!   it was switched off, and is set over the network.
//!
//! Threats: a time source that lies by an hour to the controller, or to everybody at once; a paused virtual machine that comes back
//! (its monotonic clock stood still: a real step, and both times count until somebody looks). Not: root on the controller's machine.
//!
//! Rejected: following slowly, or after a day: then a lie holds that is told long enough, and nobody looks. The steady time alone: a
//! real correction would leave a controller whose grants are over for every node before they arrive, and whose tokens nobody accepts.

use std::time::Duration;

use postern_common::{
    id::BootId,
    time::{Monotonic, Now, WallTime},
};

use crate::records::ClockRecord;

/// How far the two times may be apart and count as one, so that steps of a second change nothing.
pub(crate) const SAME: Duration = Duration::from_secs(10);
/// For how long after the boot of the machine its clock is set without a question, forward.
const SETTLES: Duration = Duration::from_secs(300);
/// How often the record is written.
const KEPT_EVERY: Duration = Duration::from_secs(60);

/// What time a decision is made at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    /// By the wall clock.
    pub(crate) wall: WallTime,
    /// What it may be instead, if the wall clock was set.
    pub(crate) instead: Option<WallTime>,
}

/// The time that goes on whatever somebody sets the wall clock to.
#[derive(Debug)]
pub(crate) struct Clock {
    boot: Option<BootId>,
    anchor: Now,
    kept: Option<Monotonic>,
    /// How far the clocks were apart when somebody was told, milliseconds, and when that was.
    pub(crate) told: Option<(i64, Monotonic)>,
}

impl Clock {
    /// Takes up what was kept.
    pub(crate) fn load(kept: Option<ClockRecord>, boot: Option<BootId>, now: Now) -> Self {
        let anchor = match kept {
            Some(ClockRecord { boot: Some(before), monotonic, wall })
                if Some(before) == boot && monotonic <= now.monotonic =>
            {
                Now { monotonic, wall }
            }
            Some(ClockRecord { wall, .. }) => Now { wall: wall.max(now.wall), ..now },
            None => now,
        };
        Self { boot, anchor, kept: None, told: None }
    }

    /// Returns what time it is if nobody has set the clock since it was last believed.
    pub(crate) fn steady(&self, now: Now) -> WallTime {
        self.anchor.wall.saturating_add(now.monotonic.since(self.anchor.monotonic))
    }

    /// Returns the steady time if the wall clock tells another one.
    pub(crate) fn doubt(&self, now: Now) -> Option<WallTime> {
        let steady = self.steady(now);
        (steady.since(now.wall).max(now.wall.since(steady)) > SAME).then_some(steady)
    }

    /// Returns the times at which a decision is made.
    pub(crate) fn times(&self, now: Now) -> Times {
        Times { wall: now.wall, instead: self.doubt(now) }
    }

    /// Returns the later of both times: what has an end is over by it.
    pub(crate) fn latest(&self, now: Now) -> WallTime {
        self.doubt(now).map_or(now.wall, |steady| steady.max(now.wall))
    }

    /// Returns the earlier of both times: what is forgotten after a while is old enough by it, and what is given for a while begins then.
    pub(crate) fn earliest(&self, now: Now) -> WallTime {
        self.doubt(now).map_or(now.wall, |steady| steady.min(now.wall))
    }

    /// Believes the wall clock.
    pub(crate) fn accept(&mut self, now: Now) {
        (self.anchor, self.kept) = (now, None);
    }

    /// Follows the wall clock if the machine has just begun.
    pub(crate) fn settle(&mut self, now: Now) {
        if now.monotonic < Monotonic::default().saturating_add(SETTLES) && now.wall > self.steady(now) {
            self.accept(now);
        }
    }

    /// Returns what has to be written, if it is time.
    pub(crate) fn record(&mut self, now: Now) -> Option<ClockRecord> {
        if self.kept.is_some_and(|kept| now.monotonic.since(kept) < KEPT_EVERY) {
            return None;
        }
        self.kept = Some(now.monotonic);
        Some(ClockRecord { boot: self.boot, monotonic: now.monotonic, wall: self.steady(now) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;
    const START: i64 = 1_795_424_400_000;

    fn now(minutes: u64, set: i64) -> Now {
        let passed = i64::try_from(minutes * 60_000).expect("a few minutes");
        Now {
            monotonic: Monotonic::from_millis(10_000_000 + minutes * 60_000),
            wall: WallTime::from_millis(START + passed + set),
        }
    }

    fn boot(number: u8) -> Option<BootId> {
        Some(BootId::from_bytes([number; 16]))
    }

    #[test]
    fn a_step_is_not_believed_until_an_administrator_does() {
        let mut clock = Clock::load(None, boot(1), now(0, 0));
        assert_eq!(clock.doubt(now(30, 5_000)), None, "seconds are one time");
        for set in [HOUR, -HOUR] {
            assert_eq!(clock.doubt(now(30, set)), Some(now(30, 0).wall));
            assert_eq!(clock.latest(now(30, set)), now(30, set.max(0)).wall);
        }
        clock.accept(now(40, HOUR));
        assert_eq!(clock.doubt(now(50, HOUR)), None);
        assert_eq!(clock.doubt(now(50, 0)), Some(now(50, HOUR).wall));
    }

    #[test]
    fn small_steps_add_up() {
        let clock = Clock::load(None, boot(1), now(0, 0));
        assert_eq!(clock.doubt(now(1, 9_000)), None);
        assert!(clock.doubt(now(2, 18_000)).is_some());
    }

    #[test]
    fn a_restart_does_not_believe_a_step_and_a_boot_goes_on_where_the_record_ended() {
        let kept = Clock::load(None, boot(1), now(0, 0)).record(now(20, HOUR));
        assert_eq!(Clock::load(kept, boot(1), now(30, HOUR)).doubt(now(30, HOUR)), Some(now(30, 0).wall));
        let behind = Clock::load(kept, boot(2), now(30, -HOUR));
        assert_eq!(behind.doubt(now(30, -HOUR)), Some(now(20, 0).wall));
        let ahead = Clock::load(kept, boot(2), now(30, HOUR));
        assert_eq!(ahead.doubt(now(30, HOUR)), None, "nobody can tell for how long it was off");
        let unnamed = Clock::load(kept, None, now(30, -HOUR));
        assert_eq!(unnamed.doubt(now(30, -HOUR)), Some(now(20, 0).wall));
    }

    #[test]
    fn a_machine_that_has_just_begun_is_set_forward_and_never_back() {
        let at = |seconds: u64, wall: i64| Now {
            monotonic: Monotonic::from_millis(seconds * 1_000),
            wall: WallTime::from_millis(START + wall),
        };
        let mut clock = Clock::load(None, boot(1), at(20, 0));
        clock.settle(at(40, HOUR));
        assert_eq!(clock.doubt(at(41, HOUR)), None);
        clock.settle(at(60, -HOUR));
        assert!(clock.doubt(at(60, -HOUR)).is_some());
        clock.settle(at(301, 3 * HOUR));
        assert!(clock.doubt(at(301, 3 * HOUR)).is_some(), "after that it asks");
    }

    #[test]
    fn it_is_written_once_a_minute() {
        let mut clock = Clock::load(None, boot(1), now(0, 0));
        let written = (0..120).filter(|half| {
            clock.record(Now { monotonic: Monotonic::from_millis(half * 30_000), ..now(0, 0) }).is_some()
        });
        assert_eq!(written.count(), 60);
    }
}
