//! Transport data: a session's keys, its counters, and packets sealed and opened where they stand (whitepaper §5.4.6).
//!
//! ```text
//! 0        4          8         16                        16 + n      16 + n + 16
//! │ 4 0 0 0│ receiver │ counter │ packet, padded          │ tag       │
//! ```
//!
//! Nothing is copied: the caller leaves [`DATA`] bytes before the packet and a tag's room behind it.

use std::time::Duration;

use postern_aead::{Key, Sealed};
use postern_common::time::Monotonic;

use super::{
    super::{REJECT_AFTER_MESSAGES, Run, TRANSPORT, TRANSPORT_OVERHEAD},
    handshake::Keys,
    window::Window,
};

/// After this time a session is used no more, in either direction (whitepaper §6.1).
pub(super) const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// Where the packet begins.
const DATA: usize = 16;
/// Messages that are opened at once.
const TOGETHER: usize = 8;

/// Which end began the handshake of a session: only that end renews it by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Initiator,
    Responder,
}

/// One session. `ring` does not wipe the keys that it holds.
pub(super) struct Session {
    pub(super) local_index: u32,
    remote_index: u32,
    pub(super) role: Role,
    born: Monotonic,
    sending: Key,
    receiving: Key,
    /// The counter of the next message.
    next: u64,
    window: Window,
}

impl Session {
    pub(super) fn new(keys: &Keys, (local, remote): (u32, u32), role: Role, now: Monotonic) -> Self {
        Self {
            local_index: local,
            remote_index: remote,
            role,
            born: now,
            sending: Key::new(&keys.sending),
            receiving: Key::new(&keys.receiving),
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
        let stride = length + TRANSPORT_OVERHEAD;
        self.seal_run(message, &Run { stride, last: length, count: 1 })?;
        Some(stride)
    }

    /// Seals the packets of a run. `None` if the session has not so many messages left, or the room is too small: then nothing was
    /// sealed, and no counter is used twice.
    pub(super) fn seal_run(&mut self, messages: &mut [u8], run: &Run) -> Option<()> {
        let first = self.next;
        let next = first.checked_add(run.count as u64).filter(|next| *next <= REJECT_AFTER_MESSAGES)?;
        let layout = postern_aead::Run {
            stride: run.stride,
            header: DATA,
            length: run.stride.checked_sub(TRANSPORT_OVERHEAD)?,
            last_length: run.last,
            count: run.count,
        };
        self.sending.seal_run(first, messages, &layout).ok()?;
        self.next = next;
        for (counter, message) in (first..next).zip(messages.chunks_mut(run.stride)) {
            let header = message.first_chunk_mut::<DATA>()?;
            header[..4].copy_from_slice(&[TRANSPORT, 0, 0, 0]);
            header[4..8].copy_from_slice(&self.remote_index.to_le_bytes());
            header[8..].copy_from_slice(&counter.to_le_bytes());
        }
        Some(())
    }

    #[cfg(test)]
    fn open(&mut self, message: &mut [u8]) -> Option<usize> {
        let segment = message.len().max(1);
        let mut length = [None];
        self.open_run(message, segment, &mut length);
        length[0]
    }

    /// Opens messages of `segment` bytes each, the last may be shorter, in place: a packet, with its padding, stands 16 bytes into its
    /// message. Tells the packets' lengths; `None` if one is forged, replayed or too late.
    pub(super) fn open_run(&mut self, messages: &mut [u8], segment: usize, lengths: &mut [Option<usize>]) {
        for (messages, lengths) in messages.chunks_mut(segment * TOGETHER).zip(lengths.chunks_mut(TOGETHER)) {
            let mut sealed: [Sealed<'_>; TOGETHER] = std::array::from_fn(|_| Sealed::new(0, &mut []));
            let mut places = [0; TOGETHER];
            let mut count = 0;
            for (place, message) in messages.chunks_mut(segment).enumerate() {
                lengths[place] = None;
                let Some((header, bytes)) = message.split_first_chunk_mut::<DATA>() else { continue };
                let [.., a, b, c, d, e, f, g, h] = *header;
                let counter = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                if counter < REJECT_AFTER_MESSAGES && self.window.may_accept(counter) {
                    sealed[count] = Sealed::new(counter, bytes);
                    places[count] = place;
                    count += 1;
                }
            }
            self.receiving.open_many(&mut sealed[..count]);
            for (sealed, place) in sealed.into_iter().zip(places).take(count) {
                let counter = sealed.counter();
                // Only what opened moves the window: a forger cannot shut anybody out. One counter twice is refused the second time.
                lengths[place] = sealed.into_text().filter(|_| self.window.accept(counter)).map(|text| text.len());
            }
        }
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
    fn a_run_opens_as_its_messages_would_whatever_stands_between_them() {
        let (mut a, mut b) = pair();
        let run = Run { stride: 112, last: 16, count: 20 };
        let mut messages = vec![0; 19 * 112 + 48];
        for (index, message) in messages.chunks_mut(112).enumerate() {
            message[16] = index as u8;
        }
        a.seal_run(&mut messages, &run).unwrap();
        messages[5 * 112 + 40] ^= 1; // forged
        let twice = messages[7 * 112..8 * 112].to_vec();
        messages[9 * 112..10 * 112].copy_from_slice(&twice); // replayed within the run
        let mut lengths = [None; 20];
        b.open_run(&mut messages, 112, &mut lengths);
        let mut expected = [Some(80); 20];
        (expected[5], expected[9], expected[19]) = (None, None, Some(16));
        assert_eq!(lengths, expected);
        assert!(
            messages
                .chunks(112)
                .enumerate()
                .all(|(index, m)| expected[index].is_none() || m[16] == index as u8 || index == 9)
        );
        assert_eq!(b.open(&mut twice.clone()), None, "and later");
    }

    #[test]
    fn a_run_that_would_pass_the_limit_is_not_sealed_at_all() {
        let (mut a, _) = pair();
        a.next = REJECT_AFTER_MESSAGES - 2;
        let mut messages = vec![0; 3 * 48];
        assert_eq!(a.seal_run(&mut messages, &Run { stride: 48, last: 16, count: 3 }), None);
        assert_eq!((a.next, &messages), (REJECT_AFTER_MESSAGES - 2, &vec![0; 3 * 48]));
        assert!(a.seal_run(&mut messages, &Run { stride: 48, last: 16, count: 2 }).is_some());
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
