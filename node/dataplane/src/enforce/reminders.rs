//! What to tell a peer that may have been restarted, about connections that this node's programs opened and that are silent.
//!
//! A restarted node has no flows. It takes a segment in mid-stream of an entitled originator for a flow again, and nothing
//! else: when the originator's program is silent, the answers of the other end are dropped, and the connection hangs until it speaks. So
//! this end speaks for it: a TCP keepalive probe (RFC 9293 §3.8.4), empty and one number behind, which the other end's
//! policy judges as any packet of the originator's.

use std::time::Duration;

use postern_common::{
    flow_record::Originator,
    net::{FiveTuple, Protocol},
    time::Now,
};

use super::{
    Enforcer,
    facts::PeerSlot,
    flow::{Flow, TcpState},
};

/// The most connections of one peer of which is spoken at once.
const MAX_REMINDERS: usize = 64;
/// How long a connection was silent; the others speak for themselves.
const SILENT: Duration = Duration::from_secs(2);

/// A probe to send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reminder {
    /// From this node's program to the peer's.
    pub(crate) flow: FiveTuple,
    /// The last sequence number that the program has sent.
    pub(crate) sequence: u32,
    /// What the program has acknowledged.
    pub(crate) acknowledgement: u32,
}

impl Enforcer {
    /// Lists the probes for a peer's silent connections that may go on.
    pub(crate) fn reminders(&mut self, slot: PeerSlot, now: Now) -> Vec<Reminder> {
        let mut reminders = Vec::new();
        let mut next = self.table.first_of_peer(slot);
        while let Some(index) = next.filter(|_| reminders.len() < MAX_REMINDERS) {
            next = self.table.next_of_peer(index);
            if let Some(reminder) = reminder_of(self.table.flow(index), now)
                && self.check(index, now).is_ok()
            {
                reminders.push(reminder);
            }
        }
        reminders
    }
}

fn reminder_of(flow: &Flow, now: Now) -> Option<Reminder> {
    let silent = now.monotonic.since(flow.last_seen) >= SILENT && !flow.is_idle(now.monotonic);
    if flow.key.protocol != Protocol::Tcp || flow.originator != Originator::Local || !silent {
        return None;
    }
    let tcp = flow.tcp.as_ref().filter(|tcp| tcp.state == TcpState::Established)?;
    Some(Reminder {
        flow: flow.key.as_opened_by(Originator::Local),
        sequence: tcp.local_next?.wrapping_sub(1),
        acknowledgement: tcp.local_expects?,
    })
}
