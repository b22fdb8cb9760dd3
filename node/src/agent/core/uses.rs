//! What peers used here for the first time, and from where they speak, told to the controller: what a service never did before is worth
//! an alert there.
//!
//! Bounds: [`MAX_KNOWN`] are remembered; when there are more, the memory begins anew. On each stream everything that is known is
//! told once more, [`MAX_FIRST_USES`] every [`APART`], so that nothing is lost with a stream; the controller knows what is new.

use std::{collections::BTreeSet, time::Duration};

use postern_common::{
    protocol::{FirstUse, FromNode, MAX_FIRST_USES, SeenPeer},
    time::{Monotonic, Now},
};

use super::{Core, Effect, stream::Stream};

const MAX_KNOWN: usize = 4_096;
const APART: Duration = Duration::from_secs(2);

/// What was used, and how far the controller was told.
#[derive(Debug, Default)]
pub(super) struct Uses {
    known: BTreeSet<FirstUse>,
    untold: BTreeSet<FirstUse>,
    due: Option<Monotonic>,
}

impl Core {
    /// Tells whether the controller serves this stream: it has answered with a document, and takes what it is told.
    pub fn is_served(&self) -> bool {
        matches!(&self.stream, Stream::Live(live) if live.snapshot_by.is_none())
    }

    /// Tells the controller from which outer addresses peers speak. What nobody hears is said again within a minute.
    pub fn handle_seen(&mut self, peers: Vec<SeenPeer>) {
        if let (Stream::Live(_), false) = (&self.stream, peers.is_empty()) {
            self.effects.push_back(Effect::Send(FromNode::Seen { peers }));
        }
    }

    /// Takes note that a peer has used something here.
    pub fn handle_use(&mut self, used: FirstUse, now: Now) {
        if self.uses.known.contains(&used) {
            return;
        }
        if self.uses.known.len() >= MAX_KNOWN {
            self.uses.known.clear();
            self.uses.untold.clear();
        }
        self.uses.known.insert(used.clone());
        self.uses.untold.insert(used);
        self.uses.due.get_or_insert(now.monotonic);
    }

    /// A new stream: everything is told again.
    pub(super) fn tell_uses_again(&mut self, now: Now) {
        self.uses.untold.clone_from(&self.uses.known);
        self.uses.due = (!self.uses.untold.is_empty()).then(|| now.monotonic.saturating_add(APART));
    }

    pub(super) fn uses_due(&self) -> Option<Monotonic> {
        self.uses.due.filter(|_| matches!(self.stream, Stream::Live(_)))
    }

    pub(super) fn uses_timeout(&mut self, now: Now) {
        if self.uses_due().is_none_or(|at| at > now.monotonic) {
            return;
        }
        let told: Vec<FirstUse> = self.uses.untold.iter().take(MAX_FIRST_USES).cloned().collect();
        self.uses.untold.retain(|used| !told.contains(used));
        self.uses.due = (!self.uses.untold.is_empty()).then(|| now.monotonic.saturating_add(APART));
        if !told.is_empty() {
            self.effects.push_back(Effect::Send(FromNode::FirstUses { uses: told }));
        }
    }
}
