//! The bounded walk to the transport header: IPv6 extension headers (RFC 8200 §4) and IPv4 options (RFC 791 §3.1).

use super::view::ParseError;

/// How many IPv6 extension headers a packet may have.
pub const MAX_EXTENSION_HEADERS: usize = 8;
/// How many bytes of IPv6 extension headers a packet may have: more than any honest sender needs.
pub const MAX_EXTENSION_BYTES: usize = 512;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;
const EXPERIMENT_1: u8 = 253;
const EXPERIMENT_2: u8 = 254;

/// Where a packet stands in a datagram that was cut into fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// The datagram's identification: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// The first byte of this fragment's payload within the datagram's payload.
    pub offset: u32,
    /// The bytes of this fragment's payload.
    pub length: u32,
    /// Whether it is the last.
    pub place: FragmentPlace,
}

/// Whether more fragments follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FragmentPlace {
    /// More fragments follow.
    More,
    /// The last fragment.
    Last,
}

/// What the walk found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Walked {
    pub(super) protocol: u8,
    pub(super) offset: usize,
    pub(super) fragment: Option<Fragment>,
}

/// Walks from the end of the fixed IPv6 header to the transport header.
///
/// A later fragment ends the walk: what follows its fragment header is payload, whatever its next-header field says.
pub(super) fn walk_ipv6(packet: &[u8]) -> Result<Walked, ParseError> {
    let mut protocol = packet[6];
    let mut offset = 40;
    let mut fragment = None;
    for seen in 0..=MAX_EXTENSION_HEADERS {
        let header = packet.get(offset..).unwrap_or(&[]);
        let length = match protocol {
            HOP_BY_HOP if seen > 0 => return Err(ParseError::ExtensionHeader(protocol)),
            HOP_BY_HOP | DESTINATION_OPTIONS => {
                let length = extension_length(header, 8)?;
                check_options(&header[2..length])?;
                length
            }
            // Type 0 lets the sender choose the way (RFC 5095); the other types mean nothing inside an overlay.
            ROUTING => return Err(ParseError::SourceRoute),
            FRAGMENT if fragment.is_some() => return Err(ParseError::ExtensionHeader(protocol)),
            FRAGMENT => {
                let header: &[u8; 8] = header.first_chunk().ok_or(ParseError::Truncated)?;
                let word = u16::from_be_bytes([header[2], header[3]]);
                let here = Fragment {
                    id: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
                    offset: u32::from(word & 0xfff8),
                    length: (packet.len() - offset - 8) as u32,
                    place: if word & 1 == 1 { FragmentPlace::More } else { FragmentPlace::Last },
                };
                check_fragment(&here)?;
                if here.offset > 0 {
                    return Ok(Walked { protocol: header[0], offset: offset + 8, fragment: Some(here) });
                }
                // An 'atomic' fragment (RFC 6946) is a whole datagram.
                if here.place == FragmentPlace::More {
                    fragment = Some(here);
                }
                8
            }
            // They wrap or replace the transport header; no rule can name what they carry.
            AUTHENTICATION | MOBILITY | HOST_IDENTITY | SHIM6 | EXPERIMENT_1 | EXPERIMENT_2 => {
                return Err(ParseError::ExtensionHeader(protocol));
            }
            _transport => return Ok(Walked { protocol, offset, fragment }),
        };
        protocol = header[0];
        offset += length;
        if offset - 40 > MAX_EXTENSION_BYTES {
            return Err(ParseError::TooManyExtensionHeaders);
        }
    }
    Err(ParseError::TooManyExtensionHeaders)
}

/// Refuses a fragment that no honest sender makes: empty, not a multiple of eight before the end, beyond 65,535 bytes.
pub(super) fn check_fragment(fragment: &Fragment) -> Result<(), ParseError> {
    let more = fragment.place == FragmentPlace::More;
    let ragged = more && !fragment.length.is_multiple_of(8);
    let lone = fragment.offset == 0 && !more;
    if (fragment.length == 0 && !lone) || ragged || fragment.offset + fragment.length > 65_535 {
        return Err(ParseError::Fragment);
    }
    Ok(())
}

fn extension_length(header: &[u8], unit: usize) -> Result<usize, ParseError> {
    let length = (usize::from(*header.get(1).ok_or(ParseError::Truncated)?) + 1) * unit;
    if header.len() < length { Err(ParseError::Truncated) } else { Ok(length) }
}

/// Walks type-length-value options; refuses the jumbo payload (RFC 2675), which would give the packet a second length.
fn check_options(mut options: &[u8]) -> Result<(), ParseError> {
    const PAD1: u8 = 0;
    const JUMBO: u8 = 0xc2;
    const HOME_ADDRESS: u8 = 0xc9;
    while let Some((&kind, rest)) = options.split_first() {
        if kind == PAD1 {
            options = rest;
            continue;
        }
        match kind {
            JUMBO => return Err(ParseError::Jumbogram),
            // It makes the receiver put another source address in the place of the one that was checked (RFC 6275).
            HOME_ADDRESS => return Err(ParseError::SourceRoute),
            _harmless => {}
        }
        let (&length, rest) = rest.split_first().ok_or(ParseError::Truncated)?;
        options = rest.get(usize::from(length)..).ok_or(ParseError::Truncated)?;
    }
    Ok(())
}

/// Walks IPv4 options: each must lie inside the header, and none may choose the way of the packet.
pub(super) fn check_ipv4_options(mut options: &[u8]) -> Result<(), ParseError> {
    const END: u8 = 0;
    const NOP: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    while let Some((&kind, rest)) = options.split_first() {
        match kind {
            END => return Ok(()),
            NOP => {
                options = rest;
                continue;
            }
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Err(ParseError::SourceRoute),
            _other => {}
        }
        let length = usize::from(*rest.first().ok_or(ParseError::Truncated)?);
        if length < 2 || length > options.len() {
            return Err(ParseError::Length);
        }
        options = &options[length..];
    }
    Ok(())
}
