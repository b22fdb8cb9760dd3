//! The watch of the machine's state: started when the controller first asks, configured as `node.toml` is read again.

use std::time::{Duration, Instant};

use postern_common::id::DeviceId;
use tokio::sync::mpsc;
use tracing::warn;

use super::Agent;
use crate::posture::{Root, Seen, Watch};

/// How long a look may take before the person at the machine is told: a file system that hangs takes every fact away.
const LOOKS_WITHIN: Duration = Duration::from_secs(30);

/// A watch and what comes from it.
pub(super) struct PostureWatch {
    watch: Watch,
    seen: mpsc::Receiver<Seen>,
    /// What the person at the machine should know, as the last look found it.
    problems: Vec<String>,
    /// Since when a look that was asked for has brought nothing.
    looking: Option<Instant>,
}

impl PostureWatch {
    /// Lists what the person at the machine should know.
    pub(super) fn problems(&self, now: Instant) -> Vec<String> {
        let slow = self.looking.map(|since| now.saturating_duration_since(since)).filter(|time| *time >= LOOKS_WITHIN);
        let slow = slow.map(|time| {
            format!(
                "looking at this machine's posture has taken {} s so far, and what was seen before grows old: does a file system or a program hang?",
                time.as_secs()
            )
        });
        self.problems.iter().cloned().chain(slow).collect()
    }
}

/// Waits for what the watch sees next; for ever if there is none.
pub(super) async fn next_seen(posture: &mut Option<PostureWatch>) -> Option<Seen> {
    match posture {
        Some(posture) => posture.seen.recv().await,
        None => std::future::pending().await,
    }
}

impl Agent {
    /// Looks at the machine's posture; the outcome comes by itself.
    pub(super) fn look_at_posture(&mut self) {
        if !self.config.posture.report {
            return; // its owner keeps it at home
        }
        if self.posture.is_none() {
            let started =
                Watch::start(Root::of_machine(), self.config.posture.clone(), self.device(), self.clock.clone());
            match started {
                Ok((watch, seen)) => self.posture = Some(PostureWatch { watch, seen, problems: vec![], looking: None }),
                Err(error) => {
                    warn!(%error, "the machine's posture cannot be watched; none is reported");
                    return;
                }
            }
        }
        self.follow_posture();
        if let Some(posture) = &mut self.posture {
            posture.watch.look();
            posture.looking.get_or_insert_with(Instant::now);
        }
    }

    /// Takes `node.toml` and the enrolment over as they are now.
    pub(super) fn follow_posture(&mut self) {
        if !self.config.posture.report || !self.core.posture_wanted() {
            self.posture = None; // nobody asks: nothing is looked at
        }
        if let Some(posture) = &self.posture {
            posture.watch.configure(self.config.posture.clone(), self.device());
        }
    }

    fn device(&self) -> Option<DeviceId> {
        self.core.identity().enrolment.as_ref().map(|enrolment| enrolment.device)
    }

    pub(super) fn posture_seen(&mut self, seen: Option<Seen>) {
        let Some(seen) = seen else {
            warn!("the watch of the machine's posture has ended; it is started again when it is needed");
            self.posture = None;
            return;
        };
        if let Some(posture) = &mut self.posture {
            posture.problems.clone_from(&seen.problems);
            posture.looking = None;
        }
        self.core.handle_posture(seen.facts, seen.at, self.clock.now());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{io::clock::SystemClock, posture::PostureConfig};

    #[test]
    fn a_look_that_brings_nothing_is_told_of_after_a_while() {
        let folder = tempfile::tempdir().expect("a folder");
        let started =
            Watch::start(Root::at(folder.path()), PostureConfig::default(), None, Arc::new(SystemClock::new()));
        let (watch, seen) = started.expect("a watch");
        let begun = Instant::now();
        let mut posture = PostureWatch { watch, seen, problems: vec!["another".into()], looking: Some(begun) };
        assert_eq!(posture.problems(begun + LOOKS_WITHIN - Duration::from_millis(1)).len(), 1);
        assert!(posture.problems(begun + LOOKS_WITHIN)[1].contains("30 s"));
        posture.looking = None;
        assert_eq!(posture.problems(begun + 2 * LOOKS_WITHIN), ["another"]);
    }
}
