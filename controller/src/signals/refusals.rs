//! Refused signals in the audit log: the first of a kind at once, the others counted.
//!
//! Whoever can reach the controller can send it tokens that nobody signed. Each would be a line on disk, so what is the same within
//! [`WINDOW`] becomes one line that says how many there were. Sans-IO; the core owns one and writes what it is told to.
//!
//! **Bounded**: [`MAX_KINDS`] kinds at a time; what does not fit is counted under the kind of no name. A crash loses the counts of
//! one window, never a first line.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use postern_common::time::Monotonic;

/// For how long the same refusal is one line.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);
/// The most kinds of refusals that are told apart at a time.
pub(crate) const MAX_KINDS: usize = 256;

/// A line for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// Whose signals.
    pub(crate) source: String,
    /// Why they were refused.
    pub(crate) reason: String,
    /// From where the last of them came; `None` for what the controller fetched itself.
    pub(crate) from: Option<IpAddr>,
    /// How many there were that no line has told of.
    pub(crate) times: u64,
}

#[derive(Debug)]
struct Kind {
    since: Monotonic,
    from: Option<IpAddr>,
    untold: u64,
}

/// The refusals of the last minute, by source and reason.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    kinds: BTreeMap<(String, &'static str), Kind>,
}

impl Refusals {
    /// Counts a refusal; returns a line to write now, if it is the first of its kind.
    pub(crate) fn count(
        &mut self,
        source: &str,
        reason: &'static str,
        from: Option<IpAddr>,
        now: Monotonic,
    ) -> Option<Line> {
        let mut name = (source.to_owned(), reason);
        if self.kinds.len() >= MAX_KINDS && !self.kinds.contains_key(&name) {
            name = (String::new(), "too many kinds of refusals to tell apart");
        }
        if let Some(known) = self.kinds.get_mut(&name) {
            (known.untold, known.from) = (known.untold + 1, from);
            return None;
        }
        let line = Line { source: name.0.clone(), reason: name.1.to_owned(), from, times: 1 };
        self.kinds.insert(name, Kind { since: now, from, untold: 0 });
        Some(line)
    }

    /// Returns the lines of what was counted and whose window is over.
    pub(crate) fn flush(&mut self, now: Monotonic) -> Vec<Line> {
        let mut lines = Vec::new();
        self.kinds.retain(|(source, reason), kind| {
            if now.since(kind.since) < WINDOW {
                return true;
            }
            if kind.untold == 0 {
                return false;
            }
            let (source, reason) = (source.clone(), (*reason).to_owned());
            lines.push(Line { source, reason, from: kind.from, times: kind.untold });
            (kind.since, kind.untold) = (now, 0);
            true
        });
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_millis(seconds * 1_000)
    }

    #[test]
    fn a_flood_of_one_kind_is_two_lines_a_minute_and_none_is_lost() {
        let mut refusals = Refusals::default();
        let from = "192.0.2.1".parse().ok();
        let mut lines: Vec<Line> = (0..1_000).filter_map(|_| refusals.count("logout", "forged", from, at(1))).collect();
        lines.extend(refusals.count("okta", "forged", from, at(2)));
        assert!(refusals.flush(at(59)).is_empty());
        lines.extend(refusals.flush(at(70)));
        assert_eq!(
            lines.iter().map(|l| (l.source.as_str(), l.times)).collect::<Vec<_>>(),
            [("logout", 1), ("okta", 1), ("logout", 999)]
        );
        assert_eq!(refusals.count("logout", "forged", from, at(71)), None, "the flood goes on");
        assert_eq!(refusals.flush(at(140)).len(), 1);
        assert!(refusals.flush(at(300)).is_empty() && refusals.kinds.is_empty());
        assert!(refusals.count("logout", "forged", from, at(301)).is_some());
    }

    #[test]
    fn kinds_are_bounded() {
        let mut refusals = Refusals::default();
        let lines = (0..1_000).filter_map(|n| refusals.count(&n.to_string(), "forged", None, at(1))).count();
        assert_eq!((lines, refusals.kinds.len()), (MAX_KINDS + 1, MAX_KINDS + 1));
        let told: u64 = refusals.flush(at(100)).iter().map(|line| line.times).sum();
        assert_eq!(told, 1_000 - u64::try_from(lines).expect("a number"));
    }
}
