//! One flow: who opened it, under what it passes, what TCP is doing in it, and how much went through.

use std::{sync::Arc, time::Duration};

use postern_common::{
    flow_record::{FlowEnd, Originator, PermitRecord},
    net::Protocol,
    time::Monotonic,
};

use super::{facts::FlowKey, meters::MeterIndex, rules::PermissionIndex};
use crate::packet::{
    batch::Lane,
    view::{TcpFlags, TcpView},
};

/// How long an unanswered TCP opening is remembered.
const OPENING: Duration = Duration::from_secs(60);
/// How long a silent, established TCP connection is remembered. Longer than RFC 5382 §5 asks (2 h 4 min): an SSH
/// session over a night lives.
const ESTABLISHED: Duration = Duration::from_secs(24 * 3_600);
/// How long a connection that one end has closed is remembered.
const HALF_CLOSED: Duration = Duration::from_secs(600);
/// How long a closed connection is remembered, for its last acknowledgements.
const CLOSED: Duration = Duration::from_secs(5);
/// How long a UDP flow without an answer is remembered, and one with answers (RFC 4787 §4.3: two minutes or more).
const UDP_ONE_WAY: Duration = Duration::from_secs(60);
const UDP_BOTH_WAYS: Duration = Duration::from_secs(300);
/// How long a ping is remembered.
const ICMP: Duration = Duration::from_secs(30);

/// An entry of the flow table.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    pub(crate) key: FlowKey,
    pub(crate) originator: Originator,
    /// Where the permission stands in the peer's list for the originator's direction, as of `generation`.
    pub(crate) permission: PermissionIndex,
    /// Rule, resource, lease: for records, also when the permission is gone.
    pub(crate) basis: Arc<PermitRecord>,
    pub(crate) generation: u64,
    /// Where its bytes are counted.
    pub(crate) meter: MeterIndex,
    pub(crate) begun: Monotonic,
    pub(crate) last_seen: Monotonic,
    pub(crate) from_originator: Traffic,
    pub(crate) to_originator: Traffic,
    pub(crate) tcp: Option<TcpTrack>,
    /// Where the kernel hands over its packets.
    pub(crate) lane: Lane,
}

/// Packets and their bytes in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Traffic {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Flow {
    /// Tells how long the flow may be silent before it is forgotten.
    pub(crate) fn idle_time(&self) -> Duration {
        match (self.key.protocol, &self.tcp) {
            (Protocol::Tcp, Some(tcp)) => match tcp.state {
                TcpState::Opening => OPENING,
                TcpState::Established => ESTABLISHED,
                TcpState::HalfClosed(_) => HALF_CLOSED,
                TcpState::Closed | TcpState::Reset => CLOSED,
            },
            (Protocol::Tcp, None) => OPENING,
            (Protocol::Udp, _) if self.to_originator.packets == 0 => UDP_ONE_WAY,
            (Protocol::Udp, _) => UDP_BOTH_WAYS,
            (Protocol::Icmp, _) => ICMP,
        }
    }

    /// Tells whether the flow has been silent for its idle time.
    pub(crate) fn is_idle(&self, now: Monotonic) -> bool {
        now.since(self.last_seen) >= self.idle_time()
    }

    /// Tells why the flow ends when it has been silent for [`Flow::idle_time`].
    pub(crate) fn end_when_idle(&self) -> FlowEnd {
        match self.tcp.as_ref().map(|tcp| tcp.state) {
            Some(TcpState::Closed) => FlowEnd::Closed,
            Some(TcpState::Reset) => FlowEnd::Reset,
            Some(TcpState::Opening | TcpState::Established | TcpState::HalfClosed(_)) | None => FlowEnd::Idle,
        }
    }

    /// Tells whether the connection is over: only its last acknowledgements may still come.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.tcp.as_ref().map(|tcp| tcp.state), Some(TcpState::Closed | TcpState::Reset))
    }
}

/// What TCP is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TcpState {
    /// The originator asks; it has not acknowledged an answer yet.
    Opening,
    /// Data goes both ways.
    Established,
    /// This end has sent its FIN.
    HalfClosed(Originator),
    /// Both ends have sent their FIN.
    Closed,
    /// One end has sent an RST.
    Reset,
}

impl TcpState {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::HalfClosed(_) => "half-closed",
            Self::Closed => "closed",
            Self::Reset => "reset",
        }
    }
}

/// TCP's state, and the numbers that an RST to the local socket must carry to be believed (RFC 5961 §3.2: exactly the
/// next sequence number that the socket expects).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TcpTrack {
    pub(crate) state: TcpState,
    /// One past the last sequence number that the local socket has sent.
    pub(crate) local_next: Option<u32>,
    /// The last acknowledgement of the local socket: what it expects next.
    pub(crate) local_expects: Option<u32>,
    /// One past the last sequence number that the peer has sent.
    pub(crate) remote_next: Option<u32>,
}

impl TcpTrack {
    /// Begins to watch, with a segment of the originator's.
    pub(crate) fn new(originator: Originator, segment: &TcpView) -> Self {
        let state = if segment.flags.opens() { TcpState::Opening } else { TcpState::Established };
        let mut track = Self { state, local_next: None, local_expects: None, remote_next: None };
        track.follow(originator, originator, segment);
        track
    }

    /// Follows a segment that `sender` sent.
    pub(crate) fn follow(&mut self, originator: Originator, sender: Originator, segment: &TcpView) {
        let next = segment.sequence.wrapping_add(segment.sequence_length());
        let seen = match sender {
            Originator::Local => &mut self.local_next,
            Originator::Peer => &mut self.remote_next,
        };
        // A bare RST may carry any number; a retransmission must not turn the clock back.
        if !segment.flags.has(TcpFlags::RST) && seen.is_none_or(|seen| next.wrapping_sub(seen) < 1 << 31) {
            *seen = Some(next);
        }
        if sender == Originator::Local && segment.flags.has(TcpFlags::ACK) {
            self.local_expects = Some(segment.acknowledgement);
        }
        self.state = self.next_state(originator, sender, segment.flags);
    }

    fn next_state(&self, originator: Originator, sender: Originator, flags: TcpFlags) -> TcpState {
        if flags.has(TcpFlags::RST) {
            return TcpState::Reset;
        }
        if flags.opens() {
            return TcpState::Opening;
        }
        let fin = flags.has(TcpFlags::FIN);
        match self.state {
            TcpState::Opening if sender == originator && flags.has(TcpFlags::ACK) && !flags.has(TcpFlags::SYN) => {
                if fin { TcpState::HalfClosed(sender) } else { TcpState::Established }
            }
            TcpState::Opening => TcpState::Opening,
            TcpState::Established if fin => TcpState::HalfClosed(sender),
            TcpState::HalfClosed(first) if fin && first != sender => TcpState::Closed,
            // Somebody speaks on: the RST was not believed.
            TcpState::Reset if fin => TcpState::HalfClosed(sender),
            TcpState::Reset => TcpState::Established,
            TcpState::Established | TcpState::HalfClosed(_) | TcpState::Closed => self.state,
        }
    }
}
