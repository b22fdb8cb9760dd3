//! A sign-out: told to the controller, and confirmed by it.

use postern_common::{
    protocol::{Refusal, ToNode},
    time::Now,
};

use super::{
    Core, Effect,
    stream::{ANSWER_PATIENCE, Stream},
};

impl Core {
    /// Waits for the controller to confirm a sign-out that was just told.
    pub(super) fn await_farewell(&mut self, now: Now) {
        self.effects.push_back(Effect::StopProbes);
        self.fail_questions("the person signed out");
        self.stream = Stream::Leaving { deadline: now.monotonic.saturating_add(ANSWER_PATIENCE) };
    }

    pub(super) fn farewell_done(&mut self) {
        self.identity.farewell = None;
        self.write_identity();
    }

    /// Only the end of the session counts: what else is on its way is for a node that is there no more.
    pub(super) fn heard_while_leaving(&mut self, message: ToNode, now: Now) {
        match message {
            ToNode::SessionEnded { .. } | ToNode::Refused { refusal: Refusal::UnknownDevice, .. } => {
                self.close_stream();
                self.farewell_done();
            }
            ToNode::Refused { refusal, message } => self.refused(refusal, message, now),
            ToNode::Challenge { .. }
            | ToNode::JoinPending { .. }
            | ToNode::Joined { .. }
            | ToNode::Grants { .. }
            | ToNode::Probe { .. }
            | ToNode::Observed { .. }
            | ToNode::CountFlows { .. }
            | ToNode::AccessRequested { .. }
            | ToNode::Requests { .. }
            | ToNode::StepUpPending { .. }
            | ToNode::StepUpRefused { .. }
            | ToNode::Posture { .. }
            | ToNode::PlatformRenewed { .. }
            | ToNode::PlatformRefused { .. }
            | ToNode::KeyDeadline { .. }
            | ToNode::Explained { .. } => {}
        }
    }
}
