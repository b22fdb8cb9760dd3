//! Transport data: a session's keys, its counters, and packets sealed and opened where they stand (whitepaper §5.4.6).
//!
//! ```text
//! 0        4          8         16                        16 + n      16 + n + 16
//! │ 4 0 0 0│ receiver │ counter │ packet, padded          │ tag       │
//! ```
//!
//! Nothing is copied: the caller leaves [`DATA`] bytes before the packet and a tag's room behind it.

use std::time::Duration;

use postern_common::time::Monotonic;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, UnboundKey};

use super::{
    super::{REJECT_AFTER_MESSAGES, TRANSPORT, TRANSPORT_OVERHEAD},
    handshake::{Keys, nonce},
    window::Window,
};

/// After this time a session is used no more, in either direction (whitepaper §6.1).
pub(super) const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// Where the packet begins.
const DATA: usize = 16;

/// Which end began the handshake of a session: only that end renews it by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Initiator,
    Responder,
}

/// One session. ring does not wipe the keys that it holds.
pub(super) struct Session {
    pub(super) local_index: u32,
    remote_index: u32,
    pub(super) role: Role,
    born: Monotonic,
    sending: LessSafeKey,
    receiving: LessSafeKey,
    /// The counter of the next message.
    next: u64,
    window: Window,
}

impl Session {
    pub(super) fn new(keys: &Keys, (local, remote): (u32, u32), role: Role, now: Monotonic) -> Self {
        let key = |bytes: &[u8; 32]| {
            LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, bytes).expect("the key has 32 bytes"))
        };
        Self {
            local_index: local,
            remote_index: remote,
            role,
            born: now,
            sending: key(&keys.sending),
            receiving: key(&keys.receiving),
            next: 0,
            window: Window::new(),
        }
    }

    pub(super) fn age(&self, now: Monotonic) -> Duration {
        now.since(self.born)
    }

    pub(super) fn is_usable(&self, now: Monotonic) -> bool {
        self.age(now) < REJECT_AFTER_TIME && self.next < REJECT_AFTER_MESSAGES
    }

    /// How many messages were sealed.
    pub(super) const fn sealed(&self) -> u64 {
        self.next
    }

    /// Seals the packet of `length` bytes that stands 16 bytes into `message`; returns the message's length. `None` if
    /// the session is used up or the room is too small.
    pub(super) fn seal(&mut self, message: &mut [u8], length: usize) -> Option<usize> {
        let counter = self.next;
        if counter >= REJECT_AFTER_MESSAGES {
            return None;
        }
        let message = message.get_mut(..length + TRANSPORT_OVERHEAD)?;
        let (header, rest) = message.split_at_mut(DATA);
        let (text, tag) = rest.split_at_mut(length);
        header[..4].copy_from_slice(&[TRANSPORT, 0, 0, 0]);
        header[4..8].copy_from_slice(&self.remote_index.to_le_bytes());
        header[8..].copy_from_slice(&counter.to_le_bytes());
        self.next += 1;
        tag.copy_from_slice(self.sending.seal_in_place_separate_tag(nonce(counter), Aad::empty(), text).ok()?.as_ref());
        Some(length + TRANSPORT_OVERHEAD)
    }

    /// Opens a message in place: the packet, with its padding, stands 16 bytes into it. Returns the packet's length;
    /// `None` if it is forged, replayed or too late.
    pub(super) fn open(&mut self, message: &mut [u8]) -> Option<usize> {
        let (header, sealed) = message.split_at_mut_checked(DATA)?;
        let counter = u64::from_le_bytes(header[8..].try_into().ok()?);
        if counter >= REJECT_AFTER_MESSAGES || !self.window.may_accept(counter) {
            return None;
        }
        let length = self.receiving.open_in_place(nonce(counter), Aad::empty(), sealed).ok()?.len();
        // Only what opened moves the window: a forger cannot shut anybody out.
        self.window.accept(counter).then_some(length)
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    fn pair() -> (Session, Session) {
        let keys = |sending: u8, receiving: u8| Keys {
            sending: Zeroizing::new([sending; 32]),
            receiving: Zeroizing::new([receiving; 32]),
        };
        let now = Monotonic::from_millis(0);
        (
            Session::new(&keys(1, 2), (7, 8), Role::Initiator, now),
            Session::new(&keys(2, 1), (8, 7), Role::Responder, now),
        )
    }

    #[test]
    fn what_one_end_seals_the_other_opens_once_and_only_unchanged() {
        let (mut a, mut b) = pair();
        let mut message = [0; 16 + 48 + 16];
        message[16..64].fill(9);
        let length = a.seal(&mut message, 48).unwrap();
        assert_eq!((length, &message[..8]), (80, &[4, 0, 0, 0, 8, 0, 0, 0][..]));
        for at in 8..80 {
            let mut bent = message;
            bent[at] ^= 1;
            assert_eq!(b.open(&mut bent), None, "byte {at}");
        }
        let mut again = message;
        assert_eq!(b.open(&mut message), Some(48));
        assert_eq!(message[16..64], [9; 48]);
        assert_eq!(b.open(&mut again), None);
    }

    #[test]
    fn a_session_ends_with_its_messages_and_with_its_time() {
        let (mut a, _) = pair();
        a.next = REJECT_AFTER_MESSAGES - 1;
        assert!(a.is_usable(Monotonic::from_millis(0)) && a.seal(&mut [0; 32], 0).is_some());
        assert!(!a.is_usable(Monotonic::from_millis(0)) && a.seal(&mut [0; 32], 0).is_none());
        let (a, _) = pair();
        assert!(a.is_usable(Monotonic::from_millis(179_999)) && !a.is_usable(Monotonic::from_millis(180_000)));
    }

    #[test]
    fn a_message_beyond_the_limit_is_not_opened() {
        let (mut a, mut b) = pair();
        let mut message = [0; 32];
        a.next = REJECT_AFTER_MESSAGES - 1;
        a.seal(&mut message, 0).unwrap();
        message[8..16].copy_from_slice(&REJECT_AFTER_MESSAGES.to_le_bytes());
        assert_eq!(b.open(&mut message), None);
    }
}
