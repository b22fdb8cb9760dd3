//! The virtio-net header that stands before each frame of a TUN opened with `IFF_VNET_HDR`
//! (virtio 1.2 §5.1.6; Linux `include/uapi/linux/virtio_net.h`, `struct virtio_net_hdr`), in the host's byte order.

use std::net::IpAddr;

use super::view::{PacketView, Transport};

/// Bytes of the header.
pub const VIRTIO_HEADER_LENGTH: usize = 10;
/// The longest frame without its virtio header.
pub const MAX_PACKET: usize = 65_535;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Why a virtio header contradicts itself or its packet. It comes from our own kernel, so it is a bug or an
/// unsupported offload; the frame is dropped and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum OffloadError {
    /// The frame is shorter than its virtio header.
    #[error("the frame is shorter than its virtio header")]
    Truncated,
    /// A kind of segmentation that was not asked for.
    #[error("segmentation kind {0} was not asked for")]
    Kind(u8),
    /// The header and the packet contradict each other.
    #[error("the virtio header and the packet contradict each other")]
    Contradiction,
}

/// How a super-packet is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gso {
    /// It is one packet.
    None,
    /// TCP over IPv4, `size` bytes of payload a segment.
    TcpV4 {
        /// Payload bytes a segment.
        size: u16,
    },
    /// TCP over IPv6.
    TcpV6 {
        /// Payload bytes a segment.
        size: u16,
    },
    /// UDP: each `size` bytes of payload are a datagram of their own.
    Udp {
        /// Payload bytes a datagram.
        size: u16,
    },
}

/// Where a checksum that is only begun has to be completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where the sum begins: the transport header.
    pub start: u16,
    /// Where the field stands, counted from `start`.
    pub offset: u16,
}

/// A parsed virtio-net header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioHeader {
    /// How the packet is to be cut.
    pub gso: Gso,
    /// Bytes of all headers, a hint.
    pub header_length: u16,
    /// The checksum to complete; absent if the packet's checksum is whole.
    pub checksum: Option<PartialChecksum>,
}

impl VirtioHeader {
    /// A plain packet with a whole checksum.
    pub const PLAIN: Self = Self { gso: Gso::None, header_length: 0, checksum: None };

    /// Cuts a TUN frame into its header and its packet.
    ///
    /// # Errors
    /// [`OffloadError::Truncated`], [`OffloadError::Kind`].
    pub fn parse(frame: &[u8]) -> Result<(Self, &[u8]), OffloadError> {
        let (head, packet) = frame.split_first_chunk::<VIRTIO_HEADER_LENGTH>().ok_or(OffloadError::Truncated)?;
        let word = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        let size = word(4);
        let gso = match head[1] & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCPV4 => Gso::TcpV4 { size },
            GSO_TCPV6 => Gso::TcpV6 { size },
            GSO_UDP_L4 => Gso::Udp { size },
            kind => return Err(OffloadError::Kind(kind)),
        };
        if gso != Gso::None && size == 0 {
            return Err(OffloadError::Contradiction);
        }
        let checksum = (head[0] & NEEDS_CSUM != 0).then(|| PartialChecksum { start: word(6), offset: word(8) });
        Ok((Self { gso, header_length: word(2), checksum }, packet))
    }

    /// As [`VirtioHeader::parse`], for a frame that may be changed.
    ///
    /// # Errors
    /// [`OffloadError::Truncated`], [`OffloadError::Kind`].
    pub fn split_frame(frame: &mut [u8]) -> Result<(Self, &mut [u8]), OffloadError> {
        let (header, _) = Self::parse(frame)?;
        Ok((header, &mut frame[VIRTIO_HEADER_LENGTH..]))
    }

    /// Writes the header as the kernel reads it. The checksum of a plain packet travels with it, and the kernel verifies it.
    pub fn to_bytes(self) -> [u8; VIRTIO_HEADER_LENGTH] {
        let mut out = [0; VIRTIO_HEADER_LENGTH];
        let (kind, size) = match self.gso {
            Gso::None => (GSO_NONE, 0),
            Gso::TcpV4 { size } => (GSO_TCPV4, size),
            Gso::TcpV6 { size } => (GSO_TCPV6, size),
            Gso::Udp { size } => (GSO_UDP_L4, size),
        };
        out[1] = kind;
        out[2..4].copy_from_slice(&self.header_length.to_ne_bytes());
        out[4..6].copy_from_slice(&size.to_ne_bytes());
        if let Some(PartialChecksum { start, offset }) = self.checksum {
            out[0] = NEEDS_CSUM;
            out[6..8].copy_from_slice(&start.to_ne_bytes());
            out[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        out
    }

    /// Checks the header against the packet that it stands before: a segmentation of another transport, a checksum
    /// that begins elsewhere than at the transport header or lies beyond the end are refused.
    ///
    /// # Errors
    /// [`OffloadError::Contradiction`].
    pub fn check(&self, view: &PacketView<'_>) -> Result<(), OffloadError> {
        let field = match view.transport() {
            Transport::Tcp(_) => Some(16),
            Transport::Udp(_) => Some(6),
            Transport::IcmpEcho { .. } | Transport::IcmpError(_) | Transport::OtherIcmp { .. } => Some(2),
            Transport::LaterFragment(_) | Transport::Unsupported(_) => None,
        };
        let gso_fits = match (self.gso, view.transport(), view.source()) {
            (Gso::None, _, _) => true,
            (Gso::TcpV4 { .. }, Transport::Tcp(_), IpAddr::V4(_)) => view.first_fragment().is_none(),
            (Gso::TcpV6 { .. }, Transport::Tcp(_), IpAddr::V6(_)) => view.first_fragment().is_none(),
            (Gso::Udp { .. }, Transport::Udp(_), _) => view.first_fragment().is_none(),
            (Gso::TcpV4 { .. } | Gso::TcpV6 { .. } | Gso::Udp { .. }, _, _) => false,
        };
        let checksum_fits = match self.checksum {
            None => self.gso == Gso::None,
            Some(PartialChecksum { start, offset }) => {
                usize::from(start) == view.transport_offset() && field == Some(offset)
            }
        };
        if gso_fits && checksum_fits { Ok(()) } else { Err(OffloadError::Contradiction) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_written_as_it_was_read() {
        let header = VirtioHeader {
            gso: Gso::TcpV6 { size: 1_208 },
            header_length: 72,
            checksum: Some(PartialChecksum { start: 40, offset: 16 }),
        };
        let mut frame = header.to_bytes().to_vec();
        frame.push(0x60);
        assert_eq!(VirtioHeader::parse(&frame), Ok((header, &[0x60][..])));
    }

    #[test]
    fn segmentation_that_was_not_asked_for_is_refused() {
        let mut frame = VirtioHeader::PLAIN.to_bytes();
        frame[1] = 3; // UFO
        assert_eq!(VirtioHeader::parse(&frame), Err(OffloadError::Kind(3)));
        frame[1] = GSO_TCPV4; // with a size of zero it would never end
        assert_eq!(VirtioHeader::parse(&frame), Err(OffloadError::Contradiction));
        assert_eq!(VirtioHeader::parse(&frame[..9]), Err(OffloadError::Truncated));
    }
}
