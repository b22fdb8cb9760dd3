//! The watch of the machine's state: started when the controller first asks, configured as `node.toml` is read again.

use postern_common::id::DeviceId;
use tokio::sync::mpsc;
use tracing::warn;

use super::Agent;
use crate::posture::{Root, Seen, Watch};

/// A watch and what comes from it.
pub(super) struct PostureWatch {
    watch: Watch,
    seen: mpsc::Receiver<Seen>,
    /// What the person at the machine should know, as the last look found it.
    pub(super) problems: Vec<String>,
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
                Ok((watch, seen)) => self.posture = Some(PostureWatch { watch, seen, problems: vec![] }),
                Err(error) => {
                    warn!(%error, "the machine's posture cannot be watched; none is reported");
                    return;
                }
            }
        }
        self.follow_posture();
        if let Some(posture) = &self.posture {
            posture.watch.look();
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
        }
        self.core.handle_posture(seen.facts, seen.at, self.clock.now());
    }
}
