//! Hours of the week in a time zone: `"Mon-Fri 07:00-20:00 Europe/Berlin"`.
//!
//! A window is turned into instants before anything is compared, so that the days on which clocks change are right by
//! themselves: a window opens and closes when the clocks on the wall there say so (a time that is skipped in spring
//! counts as the moment after the jump; one that occurs twice in autumn counts as the first). Windows that touch or
//! overlap are one. The time zone database is compiled in, so that an answer does not depend on the machine.

use std::{fmt, str::FromStr};

use jiff::{Timestamp, civil::Date, tz::TimeZone};

use super::subject::Truth;
use crate::time::WallTime;

const DAY_NAMES: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MINUTES_PER_DAY: u16 = 24 * 60;
/// How many days ahead windows are looked at: one week and a day, so that every weekly window is seen.
const HORIZON_DAYS: i64 = 9;

/// One weekly window.
#[derive(Debug, Clone)]
pub(super) struct Hours {
    text: String,
    days: [bool; 7],
    /// Minutes after midnight.
    opens: u16,
    /// Minutes after the midnight of the day on which it opens; above 24 hours if it closes on the next day.
    closes: u16,
    zone: TimeZone,
}

/// Tells why a text is no weekly window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HoursError {
    /// Not three parts.
    #[error("`{0}` is not a window: write days, hours and time zone, such as \"Mon-Fri 07:00-20:00 Europe/Berlin\"")]
    Shape(String),
    /// No such day.
    #[error("`{0}` is not a day: use Mon, Tue, Wed, Thu, Fri, Sat, Sun, as in \"Mon-Fri\" or \"Mon,Wed\"")]
    Day(String),
    /// No such time of day.
    #[error("`{0}` is not a time of day: use 00:00 to 24:00")]
    Time(String),
    /// The window is empty.
    #[error("`{0}` opens and closes at the same time: use 00:00-24:00 for a whole day")]
    Empty(String),
    /// No such time zone.
    #[error("unknown time zone `{name}`: {help}")]
    Zone {
        /// The name.
        name: String,
        /// The likely meaning.
        help: String,
    },
}

/// Finds a time zone by its IANA name.
///
/// # Errors
/// [`HoursError::Zone`], with the nearest name.
pub(super) fn time_zone(name: &str) -> Result<TimeZone, HoursError> {
    let database = jiff::tz::db();
    if let Ok(zone) = database.get(name) {
        return Ok(zone);
    }
    let names: Vec<String> = database.available().map(|known| known.to_string()).collect();
    // People often remember the city and not the continent.
    let by_city =
        names.iter().find(|known| known.rsplit('/').next().is_some_and(|city| city.eq_ignore_ascii_case(name)));
    let near = by_city.map(String::as_str);
    let near = near.or_else(|| crate::diagnostics::did_you_mean(name, names.iter().map(String::as_str)));
    let help = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => "use an IANA name such as Europe/Berlin, or UTC".into(),
    };
    Err(HoursError::Zone { name: name.chars().take(60).collect(), help })
}

fn day(text: &str) -> Result<usize, HoursError> {
    let found = DAY_NAMES.iter().position(|name| name.eq_ignore_ascii_case(text));
    found.ok_or_else(|| HoursError::Day(text.chars().take(40).collect()))
}

fn minutes(text: &str) -> Result<u16, HoursError> {
    let bad = || HoursError::Time(text.chars().take(40).collect());
    let (hour, minute) = text.split_once(':').ok_or_else(bad)?;
    let number = |part: &str| match part.len() {
        2 if part.bytes().all(|c| c.is_ascii_digit()) => part.parse::<u16>().map_err(|_| bad()),
        _ => Err(bad()),
    };
    let (hour, minute) = (number(hour)?, number(minute)?);
    let total = hour * 60 + minute;
    if minute > 59 || total > MINUTES_PER_DAY { Err(bad()) } else { Ok(total) }
}

impl FromStr for Hours {
    type Err = HoursError;

    fn from_str(text: &str) -> Result<Self, HoursError> {
        let shape = || HoursError::Shape(text.chars().take(80).collect());
        let parts: Vec<&str> = text.split_whitespace().collect();
        let [named_days, times, zone] = parts[..] else { return Err(shape()) };
        let mut days = [false; 7];
        for part in named_days.split(',') {
            match part.split_once('-') {
                None => days[day(part)?] = true,
                Some((first, last)) => {
                    let (first, last) = (day(first)?, day(last)?);
                    let count = (last + 7 - first) % 7; // "Fri-Mon" goes round the end of the week
                    (0..=count).for_each(|offset| days[(first + offset) % 7] = true);
                }
            }
        }
        let (opens, closes) = times.split_once('-').ok_or_else(shape)?;
        let (opens, closes) = (minutes(opens)?, minutes(closes)?);
        if opens == closes || opens == MINUTES_PER_DAY {
            return Err(HoursError::Empty(times.into()));
        }
        let closes = if closes < opens { closes + MINUTES_PER_DAY } else { closes };
        Ok(Self { text: parts.join(" "), days, opens, closes, zone: time_zone(zone)? })
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a set of windows says at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HoursState {
    /// Whether some window is open.
    pub(super) open: Truth,
    /// When this may change; [`WallTime::NEVER`] if no window opens within nine days.
    pub(super) until: WallTime,
}

impl Hours {
    fn instant(&self, date: Date, minutes: u16) -> Option<Timestamp> {
        let date = date.checked_add(jiff::Span::new().days(i64::from(minutes / MINUTES_PER_DAY))).ok()?;
        let minutes = minutes % MINUTES_PER_DAY;
        let at = date.at(i8::try_from(minutes / 60).ok()?, i8::try_from(minutes % 60).ok()?, 0, 0);
        Some(at.to_zoned(self.zone.clone()).ok()?.timestamp())
    }

    /// Adds the window's openings from two days before `now` to the horizon, in milliseconds.
    fn openings(&self, now: Timestamp, into: &mut Vec<(i64, i64)>) -> Option<()> {
        let today = now.to_zoned(self.zone.clone()).date();
        for offset in -2..=HORIZON_DAYS {
            let date = today.checked_add(jiff::Span::new().days(offset)).ok()?;
            let weekday = usize::try_from(date.weekday().to_monday_zero_offset()).ok()?;
            if self.days[weekday] {
                let opens = self.instant(date, self.opens)?.as_millisecond();
                let closes = self.instant(date, self.closes)?.as_millisecond();
                if opens < closes {
                    into.push((opens, closes));
                }
            }
        }
        Some(())
    }

    /// Tells whether any of the windows is open at `now`, and when that changes.
    pub(super) fn state(windows: &[Self], now: WallTime) -> HoursState {
        let unknown = HoursState { open: Truth::Unknown, until: WallTime::NEVER };
        let Some(timestamp) = now.to_timestamp() else { return unknown };
        let mut openings = Vec::new();
        for window in windows {
            if window.openings(timestamp, &mut openings).is_none() {
                return unknown; // at the ends of the calendar
            }
        }
        openings.sort_unstable();
        let now = now.as_millis();
        let mut closes = None;
        for (from, to) in openings {
            match closes {
                None if to <= now => {}
                None if from <= now => closes = Some(to),
                None => return HoursState { open: Truth::False, until: WallTime::from_millis(from) },
                Some(end) if from <= end => closes = Some(end.max(to)),
                Some(_) => break,
            }
        }
        match closes {
            Some(end) => HoursState { open: Truth::True, until: WallTime::from_millis(end) },
            None => HoursState { open: Truth::False, until: WallTime::NEVER },
        }
    }

    /// Writes a moment as the clocks in this window's time zone show it: `Mon 2026-11-23 07:00 Europe/Berlin`.
    pub(super) fn local(&self, moment: WallTime) -> String {
        let zoned = moment.to_timestamp().map(|timestamp| timestamp.to_zoned(self.zone.clone()));
        let zone = self.text.rsplit(' ').next().unwrap_or_default();
        zoned.map_or_else(|| "never".into(), |zoned| format!("{} {zone}", zoned.strftime("%a %Y-%m-%d %H:%M")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> WallTime {
        WallTime::from_millis(text.parse::<Timestamp>().expect("a timestamp").as_millisecond())
    }

    fn state(windows: &[&str], now: &str) -> (bool, WallTime) {
        let windows: Vec<Hours> = windows.iter().map(|text| text.parse().expect(text)).collect();
        let HoursState { open, until } = Hours::state(&windows, at(now));
        (open == Truth::True, until)
    }

    #[test]
    fn windows_open_and_close_by_the_clocks_of_their_zone() {
        let office = ["Mon-Fri 07:00-20:00 Europe/Berlin"];
        for (now, open, until) in [
            ("2026-11-23T06:00:00Z", true, "2026-11-23T19:00:00Z"), // Monday 07:00 in winter
            ("2026-11-23T05:59:59Z", false, "2026-11-23T06:00:00Z"),
            ("2026-11-23T18:59:59.999Z", true, "2026-11-23T19:00:00Z"),
            ("2026-11-23T19:00:00Z", false, "2026-11-24T06:00:00Z"),
            ("2026-11-27T19:00:00Z", false, "2026-11-30T06:00:00Z"), // Friday evening to Monday
            ("2026-07-01T05:00:00Z", true, "2026-07-01T18:00:00Z"),  // summer
        ] {
            assert_eq!(state(&office, now), (open, at(until)), "{now}");
        }
    }

    #[test]
    fn nights_and_weekends_go_round_midnight_and_the_week() {
        let night = ["Fri-Mon 22:00-06:00 UTC"];
        assert_eq!(state(&night, "2026-11-24T05:00:00Z"), (true, at("2026-11-24T06:00:00Z")), "Monday's night");
        assert_eq!(state(&night, "2026-11-24T23:00:00Z"), (false, at("2026-11-27T22:00:00Z")), "Tuesday");
    }

    #[test]
    fn windows_that_touch_are_one() {
        let all_week = ["Mon-Fri 00:00-24:00 UTC", "Sat,Sun 00:00-24:00 UTC"];
        let (open, until) = state(&all_week, "2026-11-22T12:00:00Z");
        assert!(open && until >= at("2026-11-29T00:00:00Z"), "{until}");
        let touching = ["Sun 08:00-12:00 UTC", "Sun 12:00-14:00 UTC", "Sun 13:00-15:00 UTC"];
        assert_eq!(state(&touching, "2026-11-22T09:00:00Z"), (true, at("2026-11-22T15:00:00Z")));
    }

    #[test]
    fn the_days_on_which_clocks_change_are_right() {
        // Berlin: 2026-03-29 02:00 -> 03:00, 2026-10-25 03:00 -> 02:00.
        let night = ["Sat 20:00-04:00 Europe/Berlin"];
        assert_eq!(state(&night, "2026-03-28T20:00:00Z"), (true, at("2026-03-29T02:00:00Z")), "one hour shorter");
        assert_eq!(state(&night, "2026-10-24T20:00:00Z"), (true, at("2026-10-25T03:00:00Z")), "one hour longer");
        let skipped = ["Sun 02:15-02:45 Europe/Berlin"];
        assert_eq!(state(&skipped, "2026-03-29T00:59:00Z"), (false, at("2026-03-29T01:15:00Z")));
        let into_skipped = ["Sun 02:30-03:15 Europe/Berlin"];
        let (open, until) = state(&into_skipped, "2026-03-29T00:50:00Z");
        assert!(!open && until == at("2026-04-05T00:30:00Z"), "a window that the jump swallows stays shut: {until}");
    }

    #[test]
    fn a_window_that_means_nothing_is_refused_with_its_reason() {
        for (text, part) in [
            ("Mon-Fri 07:00-20:00", "write days, hours and time zone"),
            ("Mo-Fr 07:00-20:00 UTC", "`Mo` is not a day"),
            ("Mon 7:00-20:00 UTC", "`7:00` is not a time of day"),
            ("Mon 07:00-24:01 UTC", "`24:01` is not a time of day"),
            ("Mon 07:00-07:00 UTC", "opens and closes at the same time"),
            ("Mon 24:00-07:00 UTC", "opens and closes at the same time"),
            ("Mon 07:00-20:00 Europe/Berln", "did you mean `Europe/Berlin`?"),
            ("Mon 07:00-20:00 Berlin", "did you mean `Europe/Berlin`?"),
        ] {
            let error = text.parse::<Hours>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_ends_of_the_calendar_are_unknown() {
        let hours: Hours = "Mon-Sun 00:00-24:00 UTC".parse().expect("a window");
        for millis in [i64::MAX, i64::MIN, Timestamp::MAX.as_millisecond()] {
            assert_eq!(Hours::state(std::slice::from_ref(&hours), WallTime::from_millis(millis)).open, Truth::Unknown);
        }
    }
}
