//! Transport data: a session's keys, its counters, and packets sealed and opened where they stand (whitepaper §5.4.6).
//!
//! ```text
//! 0        4          8         16                        16 + n      16 + n + 16
//! │ 4 0 0 0│ receiver │ counter │ packet, padded          │ tag       │
//! ```
//!
//! Nothing is copied: the caller leaves [`DATA`] bytes before the packet and a tag's room behind it.

use std::{ops::Range, sync::Arc, time::Duration};

use postern_aead::{Key, Sealed, Ways};
use postern_common::time::Monotonic;

use super::{
    super::{Opener, Opening, REJECT_AFTER_MESSAGES, Run, Sealer, TRANSPORT, TRANSPORT_OVERHEAD},
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
    sending: Arc<Key>,
    receiving: Arc<Key>,
    /// The counter of the next message.
    next: u64,
    window: Window,
}

impl Session {
    pub(super) fn new(keys: &Keys, (local, remote): (u32, u32), role: Role, cipher: Ways, now: Monotonic) -> Self {
        Self {
            local_index: local,
            remote_index: remote,
            role,
            born: now,
            sending: Arc::new(Key::with(&keys.sending, cipher)),
            receiving: Arc::new(Key::with(&keys.receiving, cipher)),
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

    /// Sets the counters of `count` messages apart. `None` if the session has not so many left.
    pub(super) fn sealer(&mut self, count: u64) -> Option<SessionSealer> {
        let first = self.next;
        self.next = first.checked_add(count).filter(|next| *next <= REJECT_AFTER_MESSAGES)?;
        Some(SessionSealer { key: self.sending.clone(), remote_index: self.remote_index, counters: first..self.next })
    }

    /// Seals a keepalive; returns its length.
    pub(super) fn seal_keepalive(&mut self, message: &mut [u8]) -> Option<usize> {
        let run = Run { stride: TRANSPORT_OVERHEAD, last: 0, count: 1 };
        self.sealer(1)?.seal_run(message, &run)?;
        Some(TRANSPORT_OVERHEAD)
    }

    pub(super) fn opener(&self) -> SessionOpener {
        SessionOpener { key: self.receiving.clone() }
    }

    /// Notes the counter of a message that opened. Only what opened moves the window: a forger cannot shut anybody out. One counter
    /// twice is refused the second time.
    pub(super) fn accept(&mut self, counter: u64) -> bool {
        counter < REJECT_AFTER_MESSAGES && self.window.accept(counter)
    }
}

/// Counters of a session that nobody else has: neither it nor a copy of it can seal twice with one.
pub struct SessionSealer {
    key: Arc<Key>,
    remote_index: u32,
    counters: Range<u64>,
}

impl std::fmt::Debug for SessionSealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionSealer").field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl Sealer for SessionSealer {
    fn seal_run(self, messages: &mut [u8], run: &Run) -> Option<()> {
        let Range { start, end } = self.counters;
        if run.count as u64 > end - start {
            return None;
        }
        let layout = postern_aead::Run {
            stride: run.stride,
            header: DATA,
            length: run.stride.checked_sub(TRANSPORT_OVERHEAD)?,
            last_length: run.last,
            count: run.count,
        };
        self.key.seal_run(start, messages, &layout).ok()?;
        for (counter, message) in (start..end).zip(messages.chunks_mut(run.stride).take(run.count)) {
            let header = message.first_chunk_mut::<DATA>()?;
            header[..4].copy_from_slice(&[TRANSPORT, 0, 0, 0]);
            header[4..8].copy_from_slice(&self.remote_index.to_le_bytes());
            header[8..].copy_from_slice(&counter.to_le_bytes());
        }
        Some(())
    }
}

/// Opens the messages of one session.
pub struct SessionOpener {
    key: Arc<Key>,
}

impl std::fmt::Debug for SessionOpener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionOpener").finish_non_exhaustive()
    }
}

impl Opener for SessionOpener {
    fn open_run(&self, messages: &mut [u8], segment: usize, openings: &mut [Opening]) {
        for (messages, openings) in messages.chunks_mut(segment * TOGETHER).zip(openings.chunks_mut(TOGETHER)) {
            let mut sealed: [Sealed<'_>; TOGETHER] = std::array::from_fn(|_| Sealed::new(0, &mut []));
            let mut places = [0; TOGETHER];
            let mut count = 0;
            for (place, message) in messages.chunks_mut(segment).enumerate() {
                openings[place] = Opening::Refused;
                let Some((header, bytes)) = message.split_first_chunk_mut::<DATA>() else { continue };
                let [.., a, b, c, d, e, f, g, h] = *header;
                sealed[count] = Sealed::new(u64::from_le_bytes([a, b, c, d, e, f, g, h]), bytes);
                places[count] = place;
                count += 1;
            }
            self.key.open_many(&mut sealed[..count]);
            for (sealed, place) in sealed.into_iter().zip(places).take(count) {
                openings[place] = match sealed.into_text() {
                    None => Opening::Refused,
                    Some([]) => Opening::Keepalive,
                    Some(text) => Opening::Packet(inner_length(text)),
                };
            }
        }
    }
}

/// Returns the length that the packet's own header tells, without the padding. One that does not fit is left whole, for
/// the view to refuse.
fn inner_length(packet: &[u8]) -> usize {
    let number = |at: usize| packet.get(at..at + 2).map(|bytes| usize::from(u16::from_be_bytes([bytes[0], bytes[1]])));
    let length = match packet.first().map(|first| first >> 4) {
        Some(4) => number(2),
        Some(6) => number(4).map(|payload| payload + 40),
        Some(_) | None => None,
    };
    length.filter(|length| (1..=packet.len()).contains(length)).unwrap_or(packet.len())
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::wireguard::read_counter;

    fn pair() -> (Session, Session) {
        let keys = |sending: u8, receiving: u8| Keys {
            sending: Zeroizing::new([sending; 32]),
            receiving: Zeroizing::new([receiving; 32]),
        };
        let now = Monotonic::from_millis(0);
        (
            Session::new(&keys(1, 2), (7, 8), Role::Initiator, Ways::Fastest, now),
            Session::new(&keys(2, 1), (8, 7), Role::Responder, Ways::PacketByPacket, now),
        )
    }

    impl Session {
        fn seal(&mut self, message: &mut [u8], length: usize) -> Option<usize> {
            let stride = length + TRANSPORT_OVERHEAD;
            self.seal_run(message, &Run { stride, last: length, count: 1 })?;
            Some(stride)
        }

        fn seal_run(&mut self, messages: &mut [u8], run: &Run) -> Option<()> {
            self.sealer(run.count as u64)?.seal_run(messages, run)
        }

        fn open(&mut self, message: &mut [u8]) -> Option<usize> {
            let segment = message.len();
            let mut length = [None];
            self.open_run(message, segment, &mut length);
            length[0]
        }

        fn open_run(&mut self, messages: &mut [u8], segment: usize, lengths: &mut [Option<usize>]) {
            let mut openings = vec![Opening::Refused; lengths.len()];
            let counters: Vec<_> = messages.chunks(segment).map(|message| read_counter(message).unwrap()).collect();
            self.opener().open_run(messages, segment, &mut openings);
            for ((length, opening), counter) in lengths.iter_mut().zip(openings).zip(counters) {
                *length = match opening {
                    Opening::Packet(length) => self.accept(counter).then_some(length),
                    Opening::Keepalive => self.accept(counter).then_some(0),
                    Opening::Refused => None,
                };
            }
        }
    }

    #[test]
    fn counters_that_were_set_apart_are_nobody_elses_and_seal_no_more_than_they_are() {
        let (mut a, mut b) = pair();
        let (first, second) = (a.sealer(2).unwrap(), a.sealer(1).unwrap());
        let mut late = vec![0; 3 * 48];
        let run = Run { stride: 48, last: 16, count: 2 };
        assert!(second.seal_run(&mut late, &run).is_none(), "two with the counter of one");
        assert_eq!(late, vec![0; 3 * 48]);
        let mut early = vec![0; 96];
        first.seal_run(&mut early, &run).unwrap();
        let mut third = [0; 48];
        a.seal(&mut third, 16).unwrap();
        let counters: Vec<_> = early.chunks(48).chain([&third[..]]).map(read_counter).collect();
        assert_eq!(counters, [Some(0), Some(1), Some(3)]);
        assert_eq!(b.open(&mut third), Some(16));
        let mut lengths = [None; 2];
        b.open_run(&mut early, 48, &mut lengths);
        assert_eq!(lengths, [Some(16); 2], "what was sealed later may come first");
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
    fn a_message_beyond_the_limit_is_not_taken() {
        let (a, mut b) = pair();
        for (counter, expected) in [(REJECT_AFTER_MESSAGES, None), (REJECT_AFTER_MESSAGES - 1, Some(0))] {
            let mut message = [0; 32];
            let counters = counter..counter + 1;
            let beyond = SessionSealer { key: a.sending.clone(), remote_index: a.remote_index, counters };
            beyond.seal_run(&mut message, &Run { stride: 32, last: 0, count: 1 }).unwrap();
            assert_eq!(b.open(&mut message), expected);
        }
    }
}
