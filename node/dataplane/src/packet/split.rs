//! One frame of the TUN into packets that fit the tunnel.
//!
//! A TUN with offloads hands over super-packets of up to 64 KiB whose checksums are only begun. [`Segmenter`] writes one
//! finished packet after another straight into a buffer of the caller's: headers with their own lengths, identification,
//! sequence number, control bits and checksums. FIN and PSH stand on the last segment only, CWR on the first only
//! (RFC 3168 §6.1.2); ECN and DSCP are kept on all.

use super::{
    checksum::Sum,
    offload::{Gso, OffloadError, VirtioHeader},
    view::{Layout, PacketView, TCP, TcpFlags, Transport, UDP},
};

/// Cuts one TUN frame into packets.
#[derive(Debug)]
pub struct Segmenter<'a> {
    packet: &'a [u8],
    view: PacketView<'a>,
    work: Work,
}

#[derive(Debug)]
enum Work {
    /// One packet as it is.
    Copy,
    /// One packet whose checksum has to be completed: the field's place.
    Complete { field: usize },
    /// Many packets.
    Cut { size: usize, headers: usize, done: usize, index: u32 },
    /// Nothing is left.
    Done,
}

impl<'a> Segmenter<'a> {
    /// Prepares to cut the packet behind `view`, which stood behind `header` in its frame.
    ///
    /// # Errors
    /// [`OffloadError::Contradiction`] if header and packet do not fit each other.
    pub fn new(header: VirtioHeader, view: PacketView<'a>) -> Result<Self, OffloadError> {
        header.check(&view)?;
        let packet = view.bytes();
        let headers = match view.transport() {
            Transport::Tcp(tcp) => tcp.payload_offset,
            Transport::Udp(udp) => udp.payload_offset,
            Transport::IcmpEcho { .. }
            | Transport::IcmpError(_)
            | Transport::OtherIcmp { .. }
            | Transport::LaterFragment(_)
            | Transport::Unsupported(_) => view.transport_offset(),
        };
        let payload = packet.len() - headers;
        let work = match (header.gso, header.checksum) {
            (Gso::TcpV4 { size } | Gso::TcpV6 { size } | Gso::Udp { size }, _) if payload > usize::from(size) => {
                Work::Cut { size: size.into(), headers, done: 0, index: 0 }
            }
            (Gso::None | Gso::TcpV4 { .. } | Gso::TcpV6 { .. } | Gso::Udp { .. }, Some(partial)) => {
                Work::Complete { field: usize::from(partial.start) + usize::from(partial.offset) }
            }
            (Gso::None | Gso::TcpV4 { .. } | Gso::TcpV6 { .. } | Gso::Udp { .. }, None) => Work::Copy,
        };
        Ok(Self { packet, view, work })
    }

    /// Returns the length in bytes of the longest packet that will come: what the caller's buffer must hold.
    pub fn longest(&self) -> usize {
        match self.work {
            Work::Copy | Work::Complete { .. } => self.packet.len(),
            Work::Cut { size, headers, .. } => headers + size,
            Work::Done => 0,
        }
    }

    /// Returns how many packets are still to come.
    pub fn remaining(&self) -> usize {
        match self.work {
            Work::Copy | Work::Complete { .. } => 1,
            Work::Cut { size, headers, done, .. } => (self.packet.len() - headers - done).div_ceil(size),
            Work::Done => 0,
        }
    }

    /// Returns how many bytes the next `count` packets have together.
    pub fn bytes_of(&self, count: usize) -> usize {
        match self.work {
            Work::Copy | Work::Complete { .. } => self.packet.len() * count.min(1),
            Work::Cut { size, headers, done, .. } => {
                let count = count.min(self.remaining());
                count * headers + (count * size).min(self.packet.len() - headers - done)
            }
            Work::Done => 0,
        }
    }

    /// Writes the next packet to the front of `out` and returns its length; `None` at the end.
    ///
    /// A buffer shorter than [`Segmenter::longest`] ends the work: the rest is lost, as on a link that is too narrow.
    pub fn next_into(&mut self, out: &mut [u8]) -> Option<usize> {
        if out.len() < self.longest() {
            self.work = Work::Done;
        }
        match &mut self.work {
            Work::Done => None,
            Work::Copy => {
                out[..self.packet.len()].copy_from_slice(self.packet);
                self.work = Work::Done;
                Some(self.packet.len())
            }
            Work::Complete { field } => {
                let field = *field;
                let out = &mut out[..self.packet.len()];
                out.copy_from_slice(self.packet);
                finish_checksum(out, &self.view, field);
                self.work = Work::Done;
                Some(out.len())
            }
            Work::Cut { size, headers, done, index } => {
                let payload = self.packet.len() - *headers;
                let take = (*size).min(payload - *done);
                let out = &mut out[..*headers + take];
                out[..*headers].copy_from_slice(&self.packet[..*headers]);
                out[*headers..].copy_from_slice(&self.packet[*headers + *done..][..take]);
                let place = Place { index: *index, done: *done as u32, last: *done + take == payload };
                fix_headers(out, &self.view, place);
                *done += take;
                *index += 1;
                if place.last {
                    self.work = Work::Done;
                }
                Some(out.len())
            }
        }
    }
}

/// Where a segment stands in its super-packet.
#[derive(Clone, Copy)]
struct Place {
    index: u32,
    done: u32,
    last: bool,
}

fn fix_headers(out: &mut [u8], view: &PacketView<'_>, place: Place) {
    let total = out.len();
    let transport = view.transport_offset();
    if out[0] >> 4 == 4 {
        out[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        let id = u16::from_be_bytes([out[4], out[5]]).wrapping_add(place.index as u16);
        out[4..6].copy_from_slice(&id.to_be_bytes());
        write_ipv4_checksum(out);
    } else {
        out[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
    }
    match view.transport() {
        Transport::Tcp(tcp) => {
            let sequence = tcp.sequence.wrapping_add(place.done);
            out[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
            let mut flags = tcp.flags.0;
            if !place.last {
                flags &= !(TcpFlags::FIN | TcpFlags::PSH);
            }
            if place.index > 0 {
                flags &= !TcpFlags::CWR;
            }
            out[transport + 13] = flags;
            finish_checksum(out, view, transport + 16);
        }
        Transport::Udp(_) => {
            let length = (total - transport) as u16;
            out[transport + 4..transport + 6].copy_from_slice(&length.to_be_bytes());
            finish_checksum(out, view, transport + 6);
        }
        // `VirtioHeader::check` lets nothing else be cut.
        Transport::IcmpEcho { .. }
        | Transport::IcmpError(_)
        | Transport::OtherIcmp { .. }
        | Transport::LaterFragment(_)
        | Transport::Unsupported(_) => {}
    }
}

/// Computes the checksum of an IPv4 header in place.
pub(super) fn write_ipv4_checksum(packet: &mut [u8]) {
    let header = usize::from(packet[0] & 0x0f) * 4;
    packet[10..12].fill(0);
    let sum = super::checksum::checksum(&packet[..header]);
    packet[10..12].copy_from_slice(&sum);
}

/// Computes the transport checksum in place, anew; `field` is where it stands in the packet.
fn finish_checksum(packet: &mut [u8], view: &PacketView<'_>, field: usize) {
    let transport = view.transport_offset();
    packet[field..field + 2].fill(0);
    let length = packet.len() - transport;
    let sum = match view.protocol() {
        super::view::ICMP => Sum::ZERO, // ICMP for IPv4 has no pseudo-header
        protocol => Sum::ZERO.add_pseudo_header(view.source(), view.destination(), protocol, length),
    };
    let mut checksum = sum.add_bytes(&packet[transport..]).finish();
    if view.protocol() == UDP && checksum == [0, 0] {
        checksum = [0xff, 0xff]; // zero means 'none' (RFC 768)
    }
    packet[field..field + 2].copy_from_slice(&checksum);
}

/// Tells whether the transport checksum of a whole TCP or UDP packet is right. UDP without a checksum is not.
pub(super) fn transport_checksum_is_right(packet: &[u8], layout: &Layout) -> bool {
    let rest = &packet[layout.transport_offset()..];
    match layout.protocol() {
        UDP if rest[6..8] == [0, 0] => false,
        TCP | UDP => Sum::ZERO
            .add_pseudo_header(layout.source(), layout.destination(), layout.protocol(), rest.len())
            .add_bytes(rest)
            .is_right(),
        _other => false,
    }
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
