//! Frames for the TUN, with consecutive segments joined: see [`super::batch`] for the rules.

use std::ops::Range;

use postern_common::net::FiveTuple;

use super::{
    batch::Full,
    checksum::Sum,
    offload::{Gso, MAX_PACKET, PartialChecksum, VIRTIO_HEADER_LENGTH, VirtioHeader},
    split::{transport_checksum_is_right, write_ipv4_checksum},
    view::{Layout, PacketView, TcpFlags, Transport},
};

/// Bytes of one [`TunBatch`].
pub const TUN_BATCH_BYTES: usize = 256 << 10;
/// Pieces in one [`TunBatch`]: each packet is one.
pub const MAX_PIECES: usize = 2_048;
/// Packets in one super-packet.
pub const MAX_JOINED: usize = 64;
/// Flows that may have an open frame at once; beyond it the one that was opened first is closed.
pub const MAX_OPEN_FLOWS: usize = 16;

const NONE: u32 = u32::MAX;

/// What the TUN on the other side of the batch can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joining {
    /// Plain packets only.
    Nothing,
    /// TCP super-packets.
    Tcp,
    /// TCP and UDP super-packets.
    TcpAndUdp,
}

/// The queue of the TUN that a flow uses, of as many as the shell has (modulo their number). The kernel sends a flow's packets to the
/// queue on which its answers were written last: so the flow stays where it is, in order, and away from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lane(pub u8);

/// Packets to be written to the TUN, as frames with their virtio headers.
#[derive(Debug)]
pub struct TunBatch {
    arena: Box<[u8]>,
    used: usize,
    pieces: Vec<Piece>,
    frames: Vec<Building>,
    /// Indices of frames that a segment may still join, oldest first.
    open: Vec<u32>,
    joining: Joining,
    refused: u64,
    packets: u64,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    start: usize,
    length: usize,
    next: u32,
}

#[derive(Debug, Clone, Copy)]
struct Building {
    flow: Option<FiveTuple>,
    first: u32,
    last: u32,
    /// Bytes of the packet without the virtio header.
    length: usize,
    transport_offset: usize,
    header_length: usize,
    /// Payload bytes of each segment but the last.
    size: usize,
    segments: usize,
    next_sequence: u32,
    push: bool,
    lane: Lane,
}

/// One TUN write.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    batch: &'a TunBatch,
    building: &'a Building,
}

/// The parts of one TUN write, in order; the first begins with the virtio header.
#[derive(Debug, Clone)]
pub struct Slices<'a> {
    batch: &'a TunBatch,
    next: u32,
    first: bool,
}

impl TunBatch {
    /// Makes an empty batch of [`TUN_BATCH_BYTES`].
    pub fn new(joining: Joining) -> Self {
        Self {
            arena: vec![0; TUN_BATCH_BYTES].into_boxed_slice(),
            used: 0,
            pieces: Vec::with_capacity(MAX_PIECES),
            frames: Vec::with_capacity(MAX_PIECES),
            open: Vec::with_capacity(MAX_OPEN_FLOWS),
            joining,
            refused: 0,
            packets: 0,
        }
    }

    /// Lends `length` bytes to write one packet into; follow with [`TunBatch::commit`].
    ///
    /// # Errors
    /// [`Full`], counted.
    pub fn reserve(&mut self, length: usize) -> Result<&mut [u8], Full> {
        let start = self.used + VIRTIO_HEADER_LENGTH;
        if self.arena.len() < start + length || self.pieces.len() == MAX_PIECES {
            self.refused += 1;
            return Err(Full);
        }
        Ok(&mut self.arena[start..start + length])
    }

    /// Keeps the first `length` bytes of what was lent last as one packet, whose view had `layout`.
    pub fn commit(&mut self, length: usize, layout: &Layout) {
        let start = self.used + VIRTIO_HEADER_LENGTH;
        let length = length.min(self.arena.len() - start);
        self.used = start + length;
        self.keep(start, length, layout, Lane::default());
    }

    /// Lends room to receive `length` bytes of datagrams into; follow with [`TunBatch::received`].
    ///
    /// # Errors
    /// [`Full`], counted.
    pub fn receive_room(&mut self, length: usize) -> Result<&mut [u8], Full> {
        if self.arena.len() - self.used < length {
            self.refused += 1;
            return Err(Full);
        }
        Ok(&mut self.arena[self.used..self.used + length])
    }

    /// Keeps the first `length` bytes of what was lent last for [`TunBatch::commit_in_place`], and tells where they begin.
    pub fn received(&mut self, length: usize) -> usize {
        let start = self.used;
        self.used = self.arena.len().min(start + length);
        start
    }

    /// Lends bytes that were received.
    pub(crate) fn received_bytes(&mut self, range: Range<usize>) -> &mut [u8] {
        &mut self.arena[range]
    }

    /// Tells whether there is room for one more packet beside its bytes.
    pub(crate) fn has_piece(&self) -> bool {
        self.pieces.len() < MAX_PIECES
    }

    /// Keeps a packet that stands at `start`, among bytes that were received; a virtio header's room before it must hold
    /// nothing that is needed any more.
    pub(crate) fn commit_in_place(&mut self, start: usize, length: usize, layout: &Layout, lane: Lane) {
        debug_assert!(start >= VIRTIO_HEADER_LENGTH && start + length <= self.used);
        self.keep(start, length, layout, lane);
    }

    fn keep(&mut self, start: usize, length: usize, layout: &Layout, lane: Lane) {
        self.packets += 1;
        let candidate = self.candidate(start, length, layout);
        match layout.five_tuple() {
            Some(flow) if layout.first_fragment().is_none() => {
                let open = self.open.iter().rposition(|index| self.frames[*index as usize].flow == Some(flow));
                if let (Some(place), Some(candidate)) = (open, &candidate) {
                    let index = self.open[place] as usize;
                    if self.fits(index, start, candidate) {
                        self.join(index, start, candidate);
                        if candidate.ends(self.frames[index].size) || self.frames[index].segments == MAX_JOINED {
                            self.open.remove(place);
                        }
                        return;
                    }
                }
                if let Some(place) = open {
                    self.open.remove(place);
                }
                self.begin(start, length, Some(flow), candidate, lane);
            }
            // A fragment belongs to a flow that it does not name: nothing that comes after may overtake it.
            _fragment_or_other => {
                self.open.clear();
                self.begin(start, length, None, None, lane);
            }
        }
    }

    /// Copies one packet in, as a frame of its own or joined.
    ///
    /// # Errors
    /// [`Full`], counted.
    pub fn push(&mut self, packet: &PacketView<'_>) -> Result<(), Full> {
        self.reserve(packet.bytes().len())?.copy_from_slice(packet.bytes());
        self.commit(packet.bytes().len(), packet.layout());
        Ok(())
    }

    /// Copies in one packet that this program made itself; it is never joined.
    ///
    /// # Errors
    /// [`Full`], counted.
    pub fn push_own(&mut self, packet: &[u8]) -> Result<(), Full> {
        self.reserve(packet.len())?.copy_from_slice(packet);
        let start = self.used + VIRTIO_HEADER_LENGTH;
        self.used = start + packet.len();
        self.packets += 1;
        self.open.clear();
        self.begin(start, packet.len(), None, None, Lane::default());
        Ok(())
    }

    /// Finishes the headers and lists the frames in the order of writing.
    pub fn frames(&mut self) -> impl ExactSizeIterator<Item = Frame<'_>> {
        self.open.clear();
        for index in 0..self.frames.len() {
            self.finish(index);
        }
        let batch = &*self;
        batch.frames.iter().map(move |building| Frame { batch, building })
    }

    /// Tells whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Returns how many bytes still fit; zero when there are no more pieces.
    pub fn room(&self) -> usize {
        if self.pieces.len() == MAX_PIECES { 0 } else { self.arena.len() - self.used }
    }

    /// Returns how many packets had no room since the beginning.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// Returns how many packets were taken since the beginning.
    pub const fn packets(&self) -> u64 {
        self.packets
    }

    /// Forgets every packet; the buffer stays.
    pub fn clear(&mut self) {
        self.used = 0;
        self.pieces.clear();
        self.frames.clear();
        self.open.clear();
    }

    fn begin(
        &mut self,
        start: usize,
        length: usize,
        flow: Option<FiveTuple>,
        candidate: Option<Candidate>,
        lane: Lane,
    ) {
        let piece = self.pieces.len() as u32;
        self.pieces.push(Piece { start, length, next: NONE });
        let index = self.frames.len() as u32;
        self.frames.push(Building {
            flow,
            first: piece,
            last: piece,
            length,
            transport_offset: candidate.map_or(0, |candidate| candidate.transport_offset),
            header_length: candidate.map_or(0, |candidate| candidate.header_length),
            size: candidate.map_or(0, |candidate| candidate.payload),
            segments: 1,
            next_sequence: candidate.map_or(0, |candidate| candidate.next_sequence()),
            push: candidate.is_some_and(|candidate| candidate.push),
            lane,
        });
        if candidate.is_some_and(|candidate| !candidate.push) {
            if self.open.len() == MAX_OPEN_FLOWS {
                self.open.remove(0);
            }
            self.open.push(index);
        }
    }

    /// Returns what a packet must offer to join or to be joined; `None` if it stands alone.
    fn candidate(&self, start: usize, length: usize, layout: &Layout) -> Option<Candidate> {
        let packet = &self.arena[start..start + length];
        let udp = match (self.joining, layout.transport()) {
            (Joining::Tcp | Joining::TcpAndUdp, Transport::Tcp(_)) => false,
            (Joining::TcpAndUdp, Transport::Udp(_)) => true,
            (Joining::Nothing | Joining::Tcp | Joining::TcpAndUdp, _other) => return None,
        };
        let plain_header = match packet[0] >> 4 {
            4 => layout.transport_offset() == 20,
            _six => layout.transport_offset() == 40,
        };
        let (header_length, sequence, flags) = match layout.transport() {
            Transport::Tcp(tcp) => (tcp.payload_offset, tcp.sequence, tcp.flags),
            Transport::Udp(udp) => (udp.payload_offset, 0, TcpFlags(TcpFlags::ACK)),
            Transport::IcmpEcho { .. }
            | Transport::IcmpError(_)
            | Transport::OtherIcmp { .. }
            | Transport::LaterFragment(_)
            | Transport::Unsupported(_) => return None,
        };
        let payload = length - header_length;
        let ordinary = flags.has(TcpFlags::ACK)
            && !flags.has_any(TcpFlags::FIN | TcpFlags::SYN | TcpFlags::RST | TcpFlags::URG | TcpFlags::CWR);
        if !plain_header || !ordinary || payload == 0 || layout.first_fragment().is_some() {
            return None;
        }
        if !transport_checksum_is_right(packet, layout) {
            return None;
        }
        let push = flags.has(TcpFlags::PSH);
        Some(Candidate { udp, transport_offset: layout.transport_offset(), header_length, payload, sequence, push })
    }

    fn fits(&self, index: usize, start: usize, candidate: &Candidate) -> bool {
        let frame = &self.frames[index];
        if frame.header_length != candidate.header_length
            || candidate.payload > frame.size
            || frame.length + candidate.payload > MAX_PACKET
            || (!candidate.udp && frame.next_sequence != candidate.sequence)
        {
            return false;
        }
        let ours = &self.arena[self.pieces[frame.first as usize].start..][..frame.header_length];
        let theirs = &self.arena[start..][..candidate.header_length];
        let network = if ours[0] >> 4 == 4 {
            let id = |header: &[u8]| u16::from_be_bytes([header[4], header[5]]);
            let dont_fragment = ours[6] & 0x40 != 0;
            // Cutting numbers the segments one after another; with DF the number means nothing (RFC 6864 §4.1).
            let id_fits = dont_fragment || id(theirs) == id(ours).wrapping_add(frame.segments as u16);
            ours[..2] == theirs[..2] && ours[6..10] == theirs[6..10] && id_fits
        } else {
            ours[..4] == theirs[..4] && ours[6..8] == theirs[6..8]
        };
        let at = candidate.transport_offset;
        let transport = candidate.udp
            || (ours[at + 8..at + 13] == theirs[at + 8..at + 13]
                && (ours[at + 13] | TcpFlags::PSH) == (theirs[at + 13] | TcpFlags::PSH)
                && ours[at + 14..at + 16] == theirs[at + 14..at + 16]
                && ours[at + 18..] == theirs[at + 18..]);
        network && transport
    }

    fn join(&mut self, index: usize, start: usize, candidate: &Candidate) {
        let piece = self.pieces.len() as u32;
        self.pieces.push(Piece { start: start + candidate.header_length, length: candidate.payload, next: NONE });
        let frame = &mut self.frames[index];
        self.pieces[frame.last as usize].next = piece;
        frame.last = piece;
        frame.length += candidate.payload;
        frame.segments += 1;
        frame.next_sequence = candidate.next_sequence();
        frame.push |= candidate.push;
    }

    fn finish(&mut self, index: usize) {
        let frame = self.frames[index];
        let start = self.pieces[frame.first as usize].start;
        let (head, packet) = self.arena[start - VIRTIO_HEADER_LENGTH..].split_at_mut(VIRTIO_HEADER_LENGTH);
        let Some(flow) = frame.flow.filter(|_| frame.segments > 1) else {
            head.copy_from_slice(&VirtioHeader::PLAIN.to_bytes());
            return;
        };
        let header = &mut packet[..frame.header_length];
        let at = frame.transport_offset;
        let tcp = header.len() - at > 8;
        let ipv4 = header[0] >> 4 == 4;
        if ipv4 {
            header[2..4].copy_from_slice(&(frame.length as u16).to_be_bytes());
            write_ipv4_checksum(header);
        } else {
            header[4..6].copy_from_slice(&((frame.length - 40) as u16).to_be_bytes());
        }
        let transport_length = frame.length - at;
        if tcp {
            if frame.push {
                header[at + 13] |= TcpFlags::PSH;
            }
        } else {
            header[at + 4..at + 6].copy_from_slice(&(transport_length as u16).to_be_bytes());
        }
        let (protocol, offset) = if tcp { (super::view::TCP, 16) } else { (super::view::UDP, 6) };
        let partial = Sum::ZERO.add_pseudo_header(flow.source, flow.destination, protocol, transport_length).partial();
        header[at + offset..at + offset + 2].copy_from_slice(&partial);
        let size = frame.size as u16;
        let gso = match (tcp, ipv4) {
            (true, true) => Gso::TcpV4 { size },
            (true, false) => Gso::TcpV6 { size },
            (false, true | false) => Gso::Udp { size },
        };
        let checksum = Some(PartialChecksum { start: at as u16, offset: offset as u16 });
        let virtio = VirtioHeader { gso, header_length: frame.header_length as u16, checksum };
        head.copy_from_slice(&virtio.to_bytes());
    }
}

/// What a packet offers to a super-packet.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    udp: bool,
    transport_offset: usize,
    header_length: usize,
    payload: usize,
    sequence: u32,
    push: bool,
}

impl Candidate {
    const fn next_sequence(&self) -> u32 {
        self.sequence.wrapping_add(self.payload as u32)
    }

    /// Tells whether nothing may follow this in a super-packet of segments of `size`.
    const fn ends(&self, size: usize) -> bool {
        self.push || self.payload < size
    }
}

impl<'a> Frame<'a> {
    /// Returns the length in bytes with the virtio header.
    pub const fn length(&self) -> usize {
        self.building.length + VIRTIO_HEADER_LENGTH
    }

    /// Returns the lane of its flow.
    pub const fn lane(&self) -> Lane {
        self.building.lane
    }

    /// Returns how many packets were joined.
    pub const fn segments(&self) -> usize {
        self.building.segments
    }

    /// Lists the parts in order; the first begins with the virtio header.
    pub fn slices(&self) -> Slices<'a> {
        Slices { batch: self.batch, next: self.building.first, first: true }
    }
}

impl<'a> Iterator for Slices<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let piece = self.batch.pieces.get(self.next as usize)?;
        let headroom = if std::mem::take(&mut self.first) { VIRTIO_HEADER_LENGTH } else { 0 };
        self.next = piece.next;
        Some(&self.batch.arena[piece.start - headroom..piece.start + piece.length])
    }
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
