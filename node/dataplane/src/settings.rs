//! The bounds and times of the data plane, and the owner's ceiling.

use std::time::Duration;

pub use postern_aead::Ways;
use postern_common::{
    id::Tag,
    net::{Protocol, Service},
};

/// Bounds and times. The defaults fit a server with some thousands of peers in 32 MB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Flows in all. When the table is full, the peer with the most flows loses its least recently used one.
    pub flow_capacity: usize,
    /// Flows of one peer. Beyond it, the peer's own least recently used flow gives way.
    pub flows_per_peer: usize,
    /// Packets of one peer that wait for a handshake. Beyond it, the oldest is dropped.
    pub pending_per_peer: usize,
    /// Bytes of all packets that wait for a handshake.
    pub pending_bytes: usize,
    /// How long a packet waits for a handshake.
    pub pending_lifetime: Duration,
    /// How long after the start a refused TCP segment in mid-stream is dropped without an RST.
    pub settle: Duration,
    /// The tunnel's MTU in bytes: padding does not go beyond it.
    pub mtu: u16,
    /// Flow records that wait for the caller. Beyond it, the newest is dropped and counted.
    pub record_capacity: usize,
    /// Events that wait for the caller. Beyond it, the oldest is dropped and counted.
    pub event_capacity: usize,
    /// Refusals that are recorded singly in one second; beyond it they are only counted.
    pub deny_records_per_second: u32,
    /// How long repeated refusals of one kind are gathered before they are recorded again.
    pub deny_repeat: Duration,
    /// Handshake initiations and responses in one second, for each local key, before cookies are asked for
    /// (WireGuard whitepaper §5.3).
    pub handshakes_per_second: u64,
    /// Handshakes that this node begins by itself after its start, so that peers notice at once that their old
    /// sessions are gone.
    pub greetings: usize,
    /// Over how long these greetings are spread.
    pub greeting_spread: Duration,
    /// What a refused packet of this machine's own programs gets.
    pub refuse_local: LocalRefusal,
    /// How packets are sealed and opened.
    pub cipher: Ways,
    /// A number that no other start of a data plane of this node has, drawn at random: whoever sums what was counted here has to know when
    /// counting began at nothing.
    pub process: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            flow_capacity: 65_536,
            flows_per_peer: 4_096,
            pending_per_peer: 32,
            pending_bytes: 4 << 20,
            pending_lifetime: Duration::from_secs(10),
            settle: Duration::from_secs(120),
            mtu: 1_420,
            record_capacity: 4_096,
            event_capacity: 1_024,
            deny_records_per_second: 50,
            deny_repeat: Duration::from_secs(10),
            handshakes_per_second: 200,
            greetings: 256,
            greeting_spread: Duration::from_secs(3),
            refuse_local: LocalRefusal::Reject,
            cipher: Ways::default(),
            process: 0,
        }
    }
}

/// What a refused packet of this machine's own programs gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalRefusal {
    /// A TCP RST, or an ICMP 'administratively prohibited': the program notices at once.
    Reject,
    /// Silence.
    Drop,
}

/// The most that this node will ever let in, whatever a grant says: `[ceiling]` in `node.toml`. It bounds what peers
/// open here, not what this node opens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ceiling {
    /// Services that may be let in; absent means every service, empty means none.
    pub services: Option<Vec<Service>>,
    /// The peer must have one of these tags; absent means any peer, empty means none.
    pub tags: Option<Vec<Tag>>,
}

impl Ceiling {
    /// Tells whether a peer with `tags` may ever open `protocol` and `port` here.
    pub fn admits(&self, tags: &[Tag], protocol: Protocol, port: u16) -> bool {
        let service = |services: &Vec<Service>| services.iter().any(|service| service.contains(protocol, port));
        let tagged = |wanted: &Vec<Tag>| wanted.iter().any(|tag| tags.contains(tag));
        self.services.as_ref().is_none_or(service) && self.tags.as_ref().is_none_or(tagged)
    }
}
