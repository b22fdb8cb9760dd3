//! WireGuard: peers, pairs of keys, sessions, endpoints, and packets that wait for a handshake.
//!
//! ```text
//! datagram ─> links: which message, which tunnel ─┬ Opener: decrypted in place ─> Tunnel::accept: replayed? ─> Authenticated
//!                                                 └ handshake: mac1, load, whose key? ─ unknown: silence
//! Permit + packet ─> links: first pair with a session ─> Tunnel::sealer: counters ─> Sealer: sealed in place ─> UdpBatch
//!                     └─ none: the packet waits, the newest pair begins a handshake
//! ```
//!
//! A peer is a device. A tunnel is a pair of keys, one of this node's and one of the peer's, with the pair's
//! pre-shared key. While either end rotates its key a peer has several pairs; sending prefers the newest with a
//! confirmed session, and what arrives is accepted on each. A pair or peer that is taken away loses its sessions in
//! the same call.
//!
//! The protocol itself stands behind [`Tunnels`] and [`Tunnel`]: [`WireGuard`] is the real one ([`noise`]), [`simulated`] has
//! no cryptography. Both run in virtual time. [`links`] does the rest: finding the tunnel of a message, padding to 16 bytes
//! (whitepaper §5.4.6), the least time between initiations of one key, queues, endpoints.
//!
//! Transport data is sealed and opened where it stands: outbound in the room of the UDP batch, inbound in the room of
//! the TUN batch, into which it was received. Both need nothing of the tunnel but a [`Sealer`] or an [`Opener`], so threads that share
//! a data plane encrypt at the same time; counters and the replay window stay with the tunnel.
//!
//! Threats: scans and floods of handshakes (mac1, cookies, least time between initiations, all before a session
//! exists); replayed initiations, also after a restart (they may be answered, but neither move the endpoint nor
//! replace a session: only what proves a live session does); a key without a grant (silence).
//!
//! Rejected: one tunnel per peer whose own key is exchanged on rotation. It drops every session at that moment.

mod endpoint;
pub(crate) mod links;
mod noise;
#[cfg(any(test, feature = "simulation"))]
pub mod simulated;

use std::net::IpAddr;

use postern_common::{
    grant::KeyPair,
    key::{WireGuardPrivateKey, WireGuardPublicKey},
    time::Monotonic,
};

pub use self::noise::WireGuard;
use crate::counters::DropReason;

/// Message types (whitepaper §5.4).
pub(crate) const INITIATION: u8 = 1;
pub(crate) const RESPONSE: u8 = 2;
pub(crate) const COOKIE_REPLY: u8 = 3;
pub(crate) const TRANSPORT: u8 = 4;
/// Lengths of the messages in bytes; of transport data, the least (whitepaper §5.4.2 to §5.4.7).
pub(crate) const INITIATION_LENGTH: usize = 148;
pub(crate) const RESPONSE_LENGTH: usize = 92;
pub(crate) const COOKIE_REPLY_LENGTH: usize = 64;
pub(crate) const TRANSPORT_OVERHEAD: usize = 32;
/// Bytes before the packet in transport data; its tag of as many bytes stands behind it.
pub(crate) const HEADER: usize = 16;
/// Plaintext is padded to a multiple of this (whitepaper §5.4.6).
pub(crate) const PADDING: usize = 16;
/// After so many messages a session is replaced, and after so many it is used no more (whitepaper §6.1).
pub(crate) const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
pub(crate) const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// What a handshake message turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is meant for `local` and comes from `remote`, as far as that can be known before the handshake.
    Admitted {
        /// This node's key.
        local: WireGuardPublicKey,
        /// The peer's key.
        remote: WireGuardPublicKey,
    },
    /// There are too many: the first so many bytes of the buffer are a cookie reply.
    Cookie(usize),
    /// It is dropped without an answer.
    Refused(DropReason),
}

/// What a handshake message or a cookie brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// The answer to an initiation, so many bytes in the buffer. The session is not confirmed yet.
    Response(usize),
    /// The session that we asked for exists: send so many bytes of the buffer, which confirm it.
    Established(usize),
    /// A cookie for the next handshake message.
    Cookie,
    /// It fits nothing, does not open, or was replayed.
    Refused,
}

/// What transport data brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// A packet of so many bytes, without its padding, stands [`HEADER`] bytes into the message.
    Packet(usize),
    /// A keepalive.
    Keepalive,
    /// It fits no session, does not open, or was replayed.
    Refused,
}

/// Packets of one super-packet, padded, at a fixed distance in one buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Bytes from the beginning of one message to that of the next: header, packet, tag.
    pub stride: usize,
    /// Bytes of the last packet; the others fill their stride.
    pub last: usize,
    /// How many.
    pub count: usize,
}

impl Run {
    /// Returns the bytes of a packet, without header and tag.
    pub const fn length_of(&self, index: usize) -> usize {
        if index + 1 == self.count { self.last } else { self.stride - TRANSPORT_OVERHEAD }
    }
}

/// What time brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// A keepalive of so many bytes in the buffer.
    Keepalive(usize),
    /// An initiation of so many bytes in the buffer.
    Initiation(usize),
    /// The handshake got no answer for the whole attempt time.
    GaveUp,
}

/// The protocol: makes tunnels and looks at handshake messages before a tunnel is known. Randomness comes from here.
pub trait Tunnels: std::fmt::Debug {
    /// One pair of keys.
    type Tunnel: Tunnel;

    /// Takes this node's private keys, newest first, and wipes those that are not named any more. Beyond
    /// `handshakes_per_second` initiations and responses for a key, cookies are asked for.
    fn set_local_keys(&mut self, keys: &[WireGuardPrivateKey], handshakes_per_second: u64);

    /// Tells whether this node has the private key of `local`.
    fn has_local_key(&self, local: &WireGuardPublicKey) -> bool;

    /// Makes a tunnel without a session; `index` has 24 bits and stands in the upper bits of its session indices.
    /// `None` without the private key.
    fn open(&mut self, pair: &KeyPair, index: u32, now: Monotonic) -> Option<Self::Tunnel>;

    /// Looks at an initiation: mac1 against each local key, the load, and whose key it shows. `buffer` takes a cookie
    /// reply.
    fn admit_initiation(&mut self, message: &[u8], from: IpAddr, buffer: &mut [u8], now: Monotonic) -> Admission;

    /// Looks at a response for a tunnel of these keys: mac1 and the load.
    fn admit_response(
        &mut self,
        message: &[u8],
        pair: (WireGuardPublicKey, WireGuardPublicKey),
        from: IpAddr,
        buffer: &mut [u8],
        now: Monotonic,
    ) -> Admission;

    /// Draws a number that nobody can foresee.
    fn draw(&mut self) -> u64;
}

/// Counters of a session that were set apart: they seal without the tunnel, on any thread, and nobody else has them.
pub trait Sealer: std::fmt::Debug + Send {
    /// Seals packets where they stand: each [`HEADER`] bytes into its stride of `messages`, padded by the caller, with room for
    /// 16 bytes behind it. `None` if they are more than the counters, or the room is too small: then nothing was sealed.
    fn seal_run(self, messages: &mut [u8], run: &Run) -> Option<()>;
}

/// What opens the messages of one session, on any thread. It knows nothing of replays: [`Tunnel::accept`] does.
pub trait Opener: std::fmt::Debug + Send {
    /// Opens messages of `segment` bytes each, the last may be shorter, where they stand; `openings` has a place for each.
    fn open_run(&self, messages: &mut [u8], segment: usize, openings: &mut [Opening]);
}

/// One pair of keys with its sessions.
pub trait Tunnel: std::fmt::Debug {
    /// Seals with this tunnel's session.
    type Sealer: Sealer;
    /// Opens for one of this tunnel's sessions.
    type Opener: Opener;

    /// Tells whether there is a session to send with.
    fn is_ready(&self, now: Monotonic) -> bool;

    /// Sets the counters of `count` messages apart. `None` if there is no session or it has used up its messages.
    fn sealer(&mut self, count: u64, now: Monotonic) -> Option<Self::Sealer>;

    /// Returns what opens the messages of the session `index`; `None` if there is none, or it is too old.
    fn opener(&self, index: u32, now: Monotonic) -> Option<Self::Opener>;

    /// Takes what an opener of the session `index` made of the message with this counter. What was replayed, came too late or
    /// belongs to a session that has ended meanwhile is refused.
    fn accept(&mut self, index: u32, counter: u64, opening: Opening, now: Monotonic) -> Opening;

    /// Seals a keepalive, to which nobody owes an answer (whitepaper §6.5): silence after it is no sign of a dead session. Returns
    /// its length.
    fn seal_keepalive(&mut self, message: &mut [u8], now: Monotonic) -> Option<usize>;

    /// Seals the packet of `length` bytes that stands [`HEADER`] bytes into `message`; returns the message's length. See
    /// [`Sealer::seal_run`].
    fn seal(&mut self, message: &mut [u8], length: usize, now: Monotonic) -> Option<usize> {
        let stride = length + TRANSPORT_OVERHEAD;
        self.sealer(1, now)?.seal_run(message, &Run { stride, last: length, count: 1 })?;
        Some(stride)
    }

    /// Opens one message where it stands.
    fn open(&mut self, message: &mut [u8], now: Monotonic) -> Opening {
        let (Some(index), Some(counter)) = (read_index(message, 4), read_counter(message)) else {
            return Opening::Refused;
        };
        let mut opening = [Opening::Refused];
        if let Some(opener) = self.opener(index, now) {
            let segment = message.len();
            opener.open_run(message, segment, &mut opening);
        }
        self.accept(index, counter, opening[0], now)
    }

    /// Tells whether the session should be replaced because of the number of its messages.
    fn wants_rekey(&self) -> bool;

    /// Begins a handshake: writes an initiation into `datagram`. `None` if one is under way.
    fn initiate(&mut self, datagram: &mut [u8], now: Monotonic) -> Option<usize>;

    /// Takes a handshake message or a cookie for this tunnel; `buffer` takes the answer and must hold 148 bytes.
    fn receive(&mut self, message: &[u8], buffer: &mut [u8], now: Monotonic) -> Received;

    /// Does what is due: retries, rekeys, keepalives, the end of sessions. `buffer` must hold 148 bytes.
    fn handle_timeout(&mut self, buffer: &mut [u8], now: Monotonic) -> Due;
}

/// What seals for tunnels of a kind.
pub type SealerOf<W> = <<W as Tunnels>::Tunnel as Tunnel>::Sealer;
/// What opens for tunnels of a kind.
pub type OpenerOf<W> = <<W as Tunnels>::Tunnel as Tunnel>::Opener;

/// Reads a little-endian index at `at`.
pub(crate) fn read_index(message: &[u8], at: usize) -> Option<u32> {
    message.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
}

/// Reads the counter of transport data.
pub(crate) fn read_counter(message: &[u8]) -> Option<u64> {
    message.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes)
}

/// Returns the length to which a packet of `length` bytes is padded: a multiple of 16, not beyond the MTU (whitepaper
/// §5.4.6).
pub(crate) fn padded_length(length: usize, mtu: usize) -> usize {
    length.next_multiple_of(PADDING).min(mtu.max(length))
}
