//! ChaCha20-Poly1305 (RFC 8439) as WireGuard uses it, for several packets under one key at once.
//!
//! ```text
//! seal_run:  eight of a run ─┬─ AVX-512, and cost says so ─> wide: together ───┬─> sealed, with tags
//!                            └─ otherwise ─────────────────> ring: one by one ──┘
//! open_many: packets ─── the same two ways ─> each authentic and opened, or refused
//! ```
//!
//! The cipher is most of what a data plane costs. `ring` works packet by packet and has to keep the lanes of a register busy within
//! one; packets that come together fill them better (a third of the time, where long packets come by eight). What is not worth
//! it, and every processor without AVX-512 IFMA, takes `ring`.
//!
//! WireGuard's form (whitepaper §5.4.6): no additional data, and a nonce of four zero bytes and the 64-bit counter, little-endian. That a
//! counter is used once per key is the caller's duty.
//!
//! Invariants: both ways give the same bytes and refuse the same packets; a packet that is refused is never left decrypted, and does
//! not disturb the others of the call; no call allocates; no time depends on a secret.
//!
//! Threat: cryptography of our own can be wrong where `ring` is not. So it does nothing but what RFC 8439 says, is tested against `ring`
//! for every length, and can be left out: with [`Ways::PacketByPacket`], or without the feature `several-at-once`, which also leaves
//! out all unsafe code. See `docs/decisions/0009-several-packets-at-once.md`.
//!
//! Rejected: giving several packets to threads, since the data plane's workers already use all processors; AVX2, for which
//! `ring`'s own code is good; assembler of other projects, which works packet by packet or needs a toolchain of its own.
//!
//! | module | holds |
//! | --- | --- |
//! | [`Run`], [`Sealed`] | what callers hand in |
//! | `cost` | which way is faster for some packets |
//! | `wide` | eight packets at once, and all unsafe code; `absent` stands in where it is left out |
#![deny(unsafe_op_in_unsafe_fn)]
#![cfg_attr(not(feature = "several-at-once"), forbid(unsafe_code))]

mod cost;
mod group;
mod run;
mod sealed;
#[cfg_attr(not(all(target_arch = "x86_64", feature = "several-at-once")), path = "absent.rs")]
mod wide;

use group::{Group, LANES};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
pub use run::{Run, RunError};
use sealed::Outcome;
pub use sealed::Sealed;
use wide::Wide;
use zeroize::ZeroizeOnDrop;

/// Bytes of a tag (RFC 8439 §2.8).
pub const TAG: usize = 16;
/// The longest text, in bytes: what fits a UDP datagram, and so far less than ChaCha20's block counter allows.
pub const MAX_TEXT: usize = 65_535;

/// Which code may work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ways {
    /// Several packets at once where the processor can and it is faster.
    #[default]
    Fastest,
    /// `ring` for everything.
    PacketByPacket,
}

impl Ways {
    /// Tells whether packets are ever taken several at once, on this machine: for a node's status.
    pub fn take_several(self) -> bool {
        self == Self::Fastest && Wide::detect().is_some()
    }
}

/// A key for one direction of one session. Prints no key; the words of its own are zeroized on drop.
pub struct Key {
    ring: LessSafeKey,
    several: Option<(Wide, Words)>,
}

/// The key as ChaCha20 takes it.
#[derive(ZeroizeOnDrop)]
struct Words([u32; 8]);

impl std::fmt::Debug for Key {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Key([redacted])")
    }
}

impl Key {
    /// Takes the fastest way there is.
    pub fn new(key: &[u8; 32]) -> Self {
        Self::with(key, Ways::Fastest)
    }

    /// Takes only these ways.
    pub fn with(key: &[u8; 32], ways: Ways) -> Self {
        let unbound = UnboundKey::new(&CHACHA20_POLY1305, key).expect("a key of ChaCha20-Poly1305 is 32 bytes");
        Self {
            ring: LessSafeKey::new(unbound),
            several: match ways {
                Ways::Fastest => Wide::detect().map(|wide| (wide, Words::new(key))),
                Ways::PacketByPacket => None,
            },
        }
    }

    /// Seals the packets of `run` in place, with counters from `first_counter` on, and writes their tags behind them.
    ///
    /// # Errors
    /// If the run does not fit the buffer or the counters; then nothing was written.
    pub fn seal_run(&self, first_counter: u64, buffer: &mut [u8], run: &Run) -> Result<(), RunError> {
        run.check(first_counter, buffer.len())?;
        if run.count == 0 {
            return Ok(());
        }
        let end = (run.count - 1) * run.stride + run.header + run.last_length + TAG;
        let mut packets = Packets { rest: &mut buffer[..end], run, index: 0 };
        let mut counter = first_counter;
        while packets.index < run.count {
            match &self.several {
                Some((wide, Words(words))) if cost::together(packets.lengths().take(LANES)) => {
                    seal_group(*wide, words, counter, &mut packets);
                }
                Some(_) | None => self.seal_each(counter, packets.by_ref().take(LANES)),
            }
            counter = counter.wrapping_add(LANES as u64);
        }
        Ok(())
    }

    /// Opens packets in place, each under its own counter. Those that are refused are left sealed, or wiped.
    pub fn open_many(&self, packets: &mut [Sealed<'_>]) {
        for packets in packets.chunks_mut(LANES) {
            let lengths = packets.iter().map(|packet| packet.bytes.len().saturating_sub(TAG));
            match &self.several {
                Some((wide, Words(words))) if cost::together(lengths) => open_group(*wide, words, packets),
                Some(_) | None => self.open_each(packets),
            }
        }
    }

    fn seal_each<'b>(&self, first_counter: u64, packets: impl Iterator<Item = (&'b mut [u8], &'b mut [u8; TAG])>) {
        for (index, (text, tag)) in (0..).zip(packets) {
            let nonce = nonce(first_counter.wrapping_add(index));
            let computed = self.ring.seal_in_place_separate_tag(nonce, Aad::empty(), text);
            let computed = computed.expect("a text of at most 65,535 bytes is within ChaCha20-Poly1305's bounds");
            tag.copy_from_slice(computed.as_ref());
        }
    }

    fn open_each(&self, packets: &mut [Sealed<'_>]) {
        for packet in packets {
            packet.outcome = if packet.bytes.len() <= MAX_TEXT + TAG
                && self.ring.open_in_place(nonce(packet.counter), Aad::empty(), packet.bytes).is_ok()
            {
                Outcome::Authentic
            } else {
                Outcome::Refused
            };
        }
    }
}

fn seal_group(wide: Wide, words: &[u32; 8], first_counter: u64, packets: &mut Packets<'_, '_>) {
    let mut group = Group::new();
    let mut tags: [Option<&mut [u8; TAG]>; LANES] = Default::default();
    for (index, (text, tag)) in (0..).zip(packets.take(LANES)) {
        tags[group.add(first_counter.wrapping_add(index), text)] = Some(tag);
    }
    for (tag, computed) in tags.into_iter().flatten().zip(wide.seal(words, &mut group)) {
        *tag = computed;
    }
}

fn open_group(wide: Wide, words: &[u32; 8], packets: &mut [Sealed<'_>]) {
    let mut group = Group::new();
    let mut tags = [[0; TAG]; LANES];
    // Which packet a lane is: those too short or too long have none.
    let mut outcomes: [Option<&mut Outcome>; LANES] = Default::default();
    for packet in packets {
        packet.outcome = Outcome::Refused;
        let Some((text, tag)) = packet.bytes.split_last_chunk_mut::<TAG>() else { continue };
        if text.len() > MAX_TEXT {
            continue;
        }
        let lane = group.add(packet.counter, text);
        tags[lane] = *tag;
        outcomes[lane] = Some(&mut packet.outcome);
    }
    if group.count == 0 {
        return;
    }
    let authentic = wide.open(words, &mut group, &tags);
    for (outcome, authentic) in outcomes.into_iter().flatten().zip(authentic) {
        *outcome = if authentic { Outcome::Authentic } else { Outcome::Refused };
    }
}

impl Words {
    fn new(key: &[u8; 32]) -> Self {
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(key.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Self(words)
    }
}

/// WireGuard whitepaper §5.4.6.
fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// The texts of a checked run and where their tags go, one after another.
struct Packets<'b, 'r> {
    rest: &'b mut [u8],
    run: &'r Run,
    index: usize,
}

impl Packets<'_, '_> {
    /// Lengths of the texts that are still to come.
    fn lengths(&self) -> impl Iterator<Item = usize> {
        (self.index..self.run.count).map(|index| self.run.text_of(index))
    }
}

impl<'b> Iterator for Packets<'b, '_> {
    type Item = (&'b mut [u8], &'b mut [u8; TAG]);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = std::mem::take(&mut self.rest);
        if self.index == self.run.count {
            return None;
        }
        let text = self.run.text(self.index);
        // The last one may be longer than the stride: nothing comes behind it.
        let room = if self.index + 1 == self.run.count { rest.len() } else { self.run.stride };
        let (packet, rest) = rest.split_at_mut(room);
        self.rest = rest;
        self.index += 1;
        let (text, behind) = packet[text.start..].split_at_mut(text.len());
        Some((text, behind.first_chunk_mut::<TAG>()?))
    }
}
