//! What peers did lately, from the data plane to the controller: every few seconds, and at once when a limit is passed.
//!
//! A controller that serves a new stream knows nothing of where peers speak from: it is told of all of them. Before it serves the stream it
//! would take none of it.

use super::Agent;

impl Agent {
    /// Tells the controller how much of what is limited was used here, and who scans.
    pub(super) async fn tell_behaviour(&mut self) {
        let stream = self.core.is_served().then_some(self.link_number);
        let is_new = stream.is_some_and(|number| number != self.told_link);
        if let Some(plane) = &self.plane
            && let Ok(behaviour) = plane.worker.take_behaviour(is_new).await
        {
            self.told_link = stream.unwrap_or(self.told_link);
            let postern_dataplane::Behaviour { process, usages, scans, refused, seen } = behaviour;
            self.core.handle_behaviour(process, usages, scans, refused);
            self.core.handle_seen(seen);
        }
    }
}
