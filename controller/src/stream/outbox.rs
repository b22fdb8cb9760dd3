//! The effects that wait for the shell, in order.

use std::collections::VecDeque;

use postern_common::protocol::{Refusal, ToNode};

use super::api::{Effect, StreamId};
use crate::records::{AuditEvent, StoreChange};

/// A queue of effects. The shell empties it after every call; one call adds at most a few effects for each node.
#[derive(Debug, Default)]
pub(crate) struct Outbox(VecDeque<Effect>);

impl Outbox {
    pub(crate) fn store(&mut self, change: StoreChange) {
        self.0.push_back(Effect::Store(change));
    }

    pub(crate) fn audit(&mut self, event: AuditEvent) {
        self.0.push_back(Effect::Audit(event));
    }

    pub(crate) fn send(&mut self, stream: StreamId, message: ToNode) {
        self.0.push_back(Effect::Send { stream, message });
    }

    pub(crate) fn close(&mut self, stream: StreamId, refusal: Refusal, message: impl Into<String>) {
        self.0.push_back(Effect::Close { stream, refusal, message: message.into() });
    }

    pub(crate) fn ask(&mut self, question: Effect) {
        self.0.push_back(question);
    }

    pub(crate) fn pop(&mut self) -> Option<Effect> {
        let effect = self.0.pop_front();
        if self.0.is_empty() {
            self.0.shrink_to(64); // a restart tells every node at once; that room is not needed again
        }
        effect
    }
}
