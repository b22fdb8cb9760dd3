//! One strict view of an IPv4 or IPv6 packet.
//!
//! [`PacketView::parse`] either finds the transport header with certainty or refuses: every length must agree with
//! every other and with the buffer, and whatever could hide the header (tiny first fragments, unknown extension
//! headers, source routes, jumbograms) is a [`ParseError`]. The view borrows the bytes and holds what it found.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use postern_common::{
    net::{FiveTuple, Protocol},
    reason::DenyReason,
};

pub use super::extension::{Fragment, FragmentPlace};
use super::extension::{check_fragment, check_ipv4_options, walk_ipv6};

/// IP protocol numbers (IANA).
pub const ICMP: u8 = 1;
/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;
/// ICMPv6's protocol number.
pub const ICMPV6: u8 = 58;

/// Why a packet could not be classified. Every one of them means: drop, count, do not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ParseError {
    /// The buffer ends before a header does.
    #[error("a header is cut off")]
    Truncated,
    /// The version is neither 4 nor 6.
    #[error("the IP version is neither 4 nor 6")]
    Version,
    /// Two lengths contradict each other.
    #[error("lengths contradict each other")]
    Length,
    /// The IPv4 header's checksum is wrong.
    #[error("the IPv4 header checksum is wrong")]
    HeaderChecksum,
    /// A fragment that no honest sender makes, or a first fragment without its whole transport header.
    #[error("the fragment is tiny, ragged or beyond the end")]
    Fragment,
    /// An extension header that hides the transport header or stands where it may not.
    #[error("extension header {0} hides the transport header")]
    ExtensionHeader(u8),
    /// More extension headers than an honest packet has.
    #[error("too many extension headers")]
    TooManyExtensionHeaders,
    /// The packet chooses its own way or another source address.
    #[error("source routing")]
    SourceRoute,
    /// A payload longer than the length field can say.
    #[error("jumbogram")]
    Jumbogram,
    /// An address that no packet inside the overlay may carry: multicast or unspecified source, loopback.
    #[error("an address that cannot be a source or destination here")]
    Address,
    /// An ICMP error whose quoted packet cannot be read, or was not sent by the error's receiver.
    #[error("the ICMP error quotes nothing that its receiver sent")]
    Quote,
    /// A TCP header that contradicts itself.
    #[error("the TCP header contradicts itself")]
    TcpHeader,
}

impl ParseError {
    /// Every kind, for counters and their labels.
    pub const LABELS: [&'static str; 12] = [
        "truncated",
        "version",
        "length",
        "header_checksum",
        "fragment",
        "extension_header",
        "too_many_extension_headers",
        "source_route",
        "jumbogram",
        "address",
        "quote",
        "tcp_header",
    ];

    /// Returns the index of this kind in [`ParseError::LABELS`].
    pub const fn index(self) -> usize {
        match self {
            Self::Truncated => 0,
            Self::Version => 1,
            Self::Length => 2,
            Self::HeaderChecksum => 3,
            Self::Fragment => 4,
            Self::ExtensionHeader(_) => 5,
            Self::TooManyExtensionHeaders => 6,
            Self::SourceRoute => 7,
            Self::Jumbogram => 8,
            Self::Address => 9,
            Self::Quote => 10,
            Self::TcpHeader => 11,
        }
    }

    /// Returns the reason for the refusal.
    pub const fn deny_reason(self) -> DenyReason {
        DenyReason::Unclassifiable
    }
}

/// TCP's control bits (RFC 9293 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// ECN echo.
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced.
    pub const CWR: u8 = 0x80;

    /// Tells whether every bit of `bits` is set.
    pub const fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }

    /// Tells whether any bit of `bits` is set.
    pub const fn has_any(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    /// Tells whether this segment opens a connection: SYN without ACK.
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN
    }

    /// Tells whether this segment answers one that opens: SYN with ACK.
    pub const fn answers_opening(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN | Self::ACK
    }
}

/// What a TCP header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpView {
    /// The source port.
    pub source_port: u16,
    /// The destination port.
    pub destination_port: u16,
    /// The sequence number of the first byte, or of the SYN.
    pub sequence: u32,
    /// The acknowledgement number; means nothing without ACK.
    pub acknowledgement: u32,
    /// The control bits.
    pub flags: TcpFlags,
    /// Where the payload begins in the packet.
    pub payload_offset: usize,
    /// Bytes of payload.
    pub payload_length: usize,
}

impl TcpView {
    /// Returns how much sequence space the segment takes: payload, SYN and FIN (RFC 9293 §3.4).
    pub const fn sequence_length(&self) -> u32 {
        self.payload_length as u32 + self.flags.has(TcpFlags::SYN) as u32 + self.flags.has(TcpFlags::FIN) as u32
    }
}

/// What a UDP header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpView {
    /// The source port.
    pub source_port: u16,
    /// The destination port.
    pub destination_port: u16,
    /// Where the payload begins in the packet.
    pub payload_offset: usize,
}

/// Whether an ICMP echo asks or answers. An answer opens no flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EchoKind {
    /// It asks.
    Request,
    /// It answers. It may only pass as the reply direction of a flow; a request in that direction may not.
    Reply,
}

/// What an ICMP error reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpErrorKind {
    /// Destination unreachable, with the code of its family.
    Unreachable(u8),
    /// The packet was too big for a link with this MTU in bytes (IPv4 'fragmentation needed', ICMPv6 type 2).
    PacketTooBig(u32),
    /// Hop limit or reassembly time ran out.
    TimeExceeded,
    /// A header field made no sense to its receiver.
    ParameterProblem,
}

/// An ICMP error and the flow of the packet that it quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpErrorView {
    /// What it reports.
    pub kind: IcmpErrorKind,
    /// The 5-tuple of the quoted packet, in the quoted packet's direction: its source is the error's destination.
    pub quoted: FiveTuple,
}

/// What the packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A TCP segment.
    Tcp(TcpView),
    /// A UDP datagram.
    Udp(UdpView),
    /// An ICMP echo request or reply.
    IcmpEcho {
        /// Whether it asks or answers.
        kind: EchoKind,
        /// The identifier: it stands in both ports of the 5-tuple.
        identifier: u16,
    },
    /// An ICMP error about another packet.
    IcmpError(IcmpErrorView),
    /// Any other ICMP message (neighbour discovery, redirect, timestamp ...): no rule can name it.
    OtherIcmp {
        /// The type.
        kind: u8,
        /// The code.
        code: u8,
    },
    /// A fragment without a transport header: it may only follow its admitted first fragment.
    LaterFragment(Fragment),
    /// A protocol that no rule can name.
    Unsupported(u8),
}

/// What was found in a packet, without its bytes: it can be kept while the buffer moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    transport_offset: usize,
    transport: Transport,
    first_fragment: Option<Fragment>,
}

/// A packet that was parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketView<'a> {
    bytes: &'a [u8],
    layout: Layout,
}

/// Returns the length in bytes that the IP header gives to the packet at the front of `bytes`, so that the padding of
/// WireGuard's plaintext can be cut off before [`PacketView::parse`].
///
/// # Errors
/// [`ParseError::Truncated`], [`ParseError::Version`], or [`ParseError::Length`] if the buffer is shorter.
pub fn packet_length(bytes: &[u8]) -> Result<usize, ParseError> {
    let length = match bytes.first().ok_or(ParseError::Truncated)? >> 4 {
        4 => usize::from(read_u16(bytes, 2)?),
        6 => usize::from(read_u16(bytes, 4)?) + 40,
        _other => return Err(ParseError::Version),
    };
    if length > bytes.len() { Err(ParseError::Length) } else { Ok(length) }
}

impl<'a> PacketView<'a> {
    /// Parses `bytes`, which must be exactly one packet.
    ///
    /// # Errors
    /// A [`ParseError`] for everything whose transport header cannot be found with certainty.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        match bytes.first().ok_or(ParseError::Truncated)? >> 4 {
            4 => Self::parse_ipv4(bytes),
            6 => Self::parse_ipv6(bytes),
            _other => Err(ParseError::Version),
        }
    }

    /// Tells whether a router may cut this packet into fragments: IPv4 without DF (RFC 791 §3.1). IPv6 routers never do.
    pub fn may_be_fragmented(&self) -> bool {
        self.destination().is_ipv4() && self.bytes.get(6).is_some_and(|flags| flags & 0x40 == 0)
    }

    fn parse_ipv4(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let fixed: &[u8; 20] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        let header_length = usize::from(fixed[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if header_length < 20 || total < header_length || total != bytes.len() {
            return Err(ParseError::Length);
        }
        if !super::checksum::Sum::ZERO.add_bytes(&bytes[..header_length]).is_right() {
            return Err(ParseError::HeaderChecksum);
        }
        check_ipv4_options(&bytes[20..header_length])?;
        let source = Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]);
        let destination = Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]);
        if source.is_multicast() || source.is_broadcast() || source.is_unspecified() || source.is_loopback() {
            return Err(ParseError::Address);
        }
        if destination.is_loopback() || destination.is_unspecified() {
            return Err(ParseError::Address);
        }
        let word = u16::from_be_bytes([fixed[6], fixed[7]]);
        let fragment = Fragment {
            id: u32::from(u16::from_be_bytes([fixed[4], fixed[5]])),
            offset: u32::from(word & 0x1fff) * 8,
            length: (total - header_length) as u32,
            place: if word & 0x2000 == 0 { FragmentPlace::Last } else { FragmentPlace::More },
        };
        let fragment = (fragment.offset > 0 || fragment.place == FragmentPlace::More).then_some(fragment);
        if let Some(fragment) = &fragment {
            check_fragment(fragment)?;
        }
        let frame = Frame { bytes, source: source.into(), destination: destination.into(), icmp: ICMP };
        frame.finish(fixed[9], header_length, fragment)
    }

    fn parse_ipv6(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let fixed: &[u8; 40] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        if usize::from(u16::from_be_bytes([fixed[4], fixed[5]])) + 40 != bytes.len() {
            return Err(ParseError::Length);
        }
        let source = Ipv6Addr::from(<[u8; 16]>::try_from(&fixed[8..24]).expect("sixteen bytes"));
        let destination = Ipv6Addr::from(<[u8; 16]>::try_from(&fixed[24..40]).expect("sixteen bytes"));
        if source.is_multicast() || source.is_unspecified() || source.is_loopback() {
            return Err(ParseError::Address);
        }
        // An IPv4-mapped address would be a second name for an IPv4 host.
        if destination.is_loopback() || destination.is_unspecified() || mapped(source) || mapped(destination) {
            return Err(ParseError::Address);
        }
        let walked = walk_ipv6(bytes)?;
        let frame = Frame { bytes, source: source.into(), destination: destination.into(), icmp: ICMPV6 };
        frame.finish(walked.protocol, walked.offset, walked.fragment)
    }

    /// Returns the packet's bytes.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns what was found, without the bytes.
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }
}

impl std::ops::Deref for PacketView<'_> {
    type Target = Layout;

    fn deref(&self) -> &Layout {
        &self.layout
    }
}

impl Layout {
    /// Returns the source address.
    pub const fn source(&self) -> IpAddr {
        self.source
    }

    /// Returns the destination address.
    pub const fn destination(&self) -> IpAddr {
        self.destination
    }

    /// Returns the transport protocol's number, after the extension headers.
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Returns where the transport header (or a later fragment's payload) begins.
    pub const fn transport_offset(&self) -> usize {
        self.transport_offset
    }

    /// Returns what the packet carries.
    pub const fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Returns the fragment's place if this is the first fragment of a datagram: admit it in the fragment table.
    pub const fn first_fragment(&self) -> Option<&Fragment> {
        self.first_fragment.as_ref()
    }

    /// Returns the 5-tuple in this packet's own direction, for what a rule can name.
    ///
    /// ICMP echo has its identifier in both ports, so the reply's tuple reversed is the request's.
    pub fn five_tuple(&self) -> Option<FiveTuple> {
        let (protocol, source_port, destination_port) = match self.transport {
            Transport::Tcp(tcp) => (Protocol::Tcp, tcp.source_port, tcp.destination_port),
            Transport::Udp(udp) => (Protocol::Udp, udp.source_port, udp.destination_port),
            Transport::IcmpEcho { identifier, kind: EchoKind::Request | EchoKind::Reply } => {
                (Protocol::Icmp, identifier, identifier)
            }
            Transport::IcmpError(_)
            | Transport::OtherIcmp { .. }
            | Transport::LaterFragment(_)
            | Transport::Unsupported(_) => return None,
        };
        Some(FiveTuple { protocol, source: self.source, source_port, destination: self.destination, destination_port })
    }
}

fn mapped(address: Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some()
}

fn read_u16(bytes: &[u8], at: usize) -> Result<u16, ParseError> {
    match bytes.get(at..at + 2) {
        Some(&[high, low]) => Ok(u16::from_be_bytes([high, low])),
        _short => Err(ParseError::Truncated),
    }
}

/// A packet whose network header is read and whose transport is not.
#[derive(Clone, Copy)]
struct Frame<'a> {
    bytes: &'a [u8],
    source: IpAddr,
    destination: IpAddr,
    /// The ICMP of the packet's family; the other family's is an unsupported protocol.
    icmp: u8,
}

impl<'a> Frame<'a> {
    fn finish(self, protocol: u8, offset: usize, fragment: Option<Fragment>) -> Result<PacketView<'a>, ParseError> {
        let view = |transport, first_fragment| {
            let Self { bytes, source, destination, icmp: _ } = self;
            let transport_offset = offset;
            let layout = Layout { source, destination, protocol, transport_offset, transport, first_fragment };
            PacketView { bytes, layout }
        };
        if let Some(fragment) = fragment.filter(|fragment| fragment.offset > 0) {
            return Ok(view(Transport::LaterFragment(fragment), None));
        }
        let rest = self.bytes.get(offset..).ok_or(ParseError::Truncated)?;
        let whole = fragment.is_none();
        let transport = match protocol {
            TCP => parse_tcp(rest, offset).map(Transport::Tcp),
            UDP => parse_udp(rest, offset, whole).map(Transport::Udp),
            number if number == self.icmp => self.parse_icmp(rest, whole),
            number => Ok(Transport::Unsupported(number)),
        };
        match transport {
            // RFC 1858, RFC 8200 §5: a first fragment without its whole transport header hides it.
            Err(ParseError::Truncated) if !whole => Err(ParseError::Fragment),
            other => other.map(|transport| view(transport, fragment)),
        }
    }

    fn parse_icmp(self, rest: &[u8], whole: bool) -> Result<Transport, ParseError> {
        let header: &[u8; 8] = rest.first_chunk().ok_or(ParseError::Truncated)?;
        let [kind, code] = [header[0], header[1]];
        let identifier = u16::from_be_bytes([header[4], header[5]]);
        let word = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let error = match (self.icmp, kind, code) {
            (ICMP, 8, 0) | (ICMPV6, 128, 0) => {
                return Ok(Transport::IcmpEcho { kind: EchoKind::Request, identifier });
            }
            (ICMP, 0, 0) | (ICMPV6, 129, 0) => return Ok(Transport::IcmpEcho { kind: EchoKind::Reply, identifier }),
            (ICMP, 3, 4) => IcmpErrorKind::PacketTooBig(word & 0xffff),
            (ICMP, 3, _) | (ICMPV6, 1, _) => IcmpErrorKind::Unreachable(code),
            (ICMPV6, 2, _) => IcmpErrorKind::PacketTooBig(word),
            (ICMP, 11, _) | (ICMPV6, 3, _) => IcmpErrorKind::TimeExceeded,
            (ICMP, 12, _) | (ICMPV6, 4, _) => IcmpErrorKind::ParameterProblem,
            (_, kind, code) => return Ok(Transport::OtherIcmp { kind, code }),
        };
        if !whole {
            return Err(ParseError::Fragment); // an error message is never long enough to be cut
        }
        let quoted = parse_quoted(&rest[8..]).ok_or(ParseError::Quote)?;
        if quoted.source != self.destination {
            return Err(ParseError::Quote);
        }
        Ok(Transport::IcmpError(IcmpErrorView { kind: error, quoted }))
    }
}

fn parse_tcp(rest: &[u8], offset: usize) -> Result<TcpView, ParseError> {
    let header: &[u8; 20] = rest.first_chunk().ok_or(ParseError::Truncated)?;
    let header_length = usize::from(header[12] >> 4) * 4;
    if header_length < 20 {
        return Err(ParseError::TcpHeader);
    }
    if header_length > rest.len() {
        return Err(ParseError::Truncated);
    }
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    Ok(TcpView {
        source_port: u16::from_be_bytes([header[0], header[1]]),
        destination_port: u16::from_be_bytes([header[2], header[3]]),
        sequence: word(4),
        acknowledgement: word(8),
        flags: TcpFlags(header[13]),
        payload_offset: offset + header_length,
        payload_length: rest.len() - header_length,
    })
}

fn parse_udp(rest: &[u8], offset: usize, whole: bool) -> Result<UdpView, ParseError> {
    let header: &[u8; 8] = rest.first_chunk().ok_or(ParseError::Truncated)?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let fits = if whole { length == rest.len() } else { length > rest.len() };
    if length < 8 || !fits {
        return Err(ParseError::Length);
    }
    Ok(UdpView {
        source_port: u16::from_be_bytes([header[0], header[1]]),
        destination_port: u16::from_be_bytes([header[2], header[3]]),
        payload_offset: offset + 8,
    })
}

/// Reads the flow of a quoted packet, which may be cut off after 8 bytes of its transport header (RFC 792).
fn parse_quoted(quote: &[u8]) -> Option<FiveTuple> {
    let (source, destination, protocol, rest, icmp): (IpAddr, IpAddr, u8, &[u8], u8) = match quote.first()? >> 4 {
        4 => {
            let fixed: &[u8; 20] = quote.first_chunk()?;
            if u16::from_be_bytes([fixed[6], fixed[7]]) & 0x1fff != 0 {
                return None; // a later fragment names no flow
            }
            let rest = quote.get(usize::from(fixed[0] & 0x0f).max(5) * 4..)?;
            let address = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
            (address(12).into(), address(16).into(), fixed[9], rest, ICMP)
        }
        6 => {
            let fixed: &[u8; 40] = quote.first_chunk()?;
            let walked = walk_ipv6(quote).ok()?;
            if walked.fragment.is_some_and(|fragment| fragment.offset > 0) {
                return None;
            }
            let address = |at: usize| fixed[at..at + 16].try_into().map(|octets: [u8; 16]| Ipv6Addr::from(octets)).ok();
            (address(8)?.into(), address(24)?.into(), walked.protocol, quote.get(walked.offset..)?, ICMPV6)
        }
        _other => return None,
    };
    let head: &[u8; 8] = rest.first_chunk()?;
    let (protocol, source_port, destination_port) = match protocol {
        TCP | UDP => {
            let protocol = if protocol == TCP { Protocol::Tcp } else { Protocol::Udp };
            (protocol, u16::from_be_bytes([head[0], head[1]]), u16::from_be_bytes([head[2], head[3]]))
        }
        number if number == icmp && matches!((icmp, head[0]), (ICMP, 0 | 8) | (ICMPV6, 128 | 129)) => {
            let identifier = u16::from_be_bytes([head[4], head[5]]);
            (Protocol::Icmp, identifier, identifier)
        }
        _other => return None, // including errors about errors
    };
    Some(FiveTuple { protocol, source, source_port, destination, destination_port })
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
