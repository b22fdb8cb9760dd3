//! A second reader of packets, for the fuzzer and for tests: slow, obvious, and written without looking at [`super::view`].
//!
//! It reads as RFC 791, RFC 8200, RFC 9293 and RFC 768 tell it, byte by byte, and keeps nothing but what a verdict rests on.
//! [`PacketView`](super::view::PacketView) may refuse more than this reader; what it accepts, this reader must read alike.

use std::net::IpAddr;

/// What a packet is, as far as a verdict rests on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slow {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The transport protocol's number.
    pub protocol: u8,
    /// Where the transport header, or a later fragment's payload, begins.
    pub transport: usize,
    /// Identification, offset in bytes, and whether more follow; absent for a whole datagram.
    pub fragment: Option<(u32, u32, bool)>,
    /// Source and destination port of TCP and UDP in what is not a later fragment.
    pub ports: Option<(u16, u16)>,
}

fn number(bytes: &[u8], at: usize, count: usize) -> Option<u32> {
    let mut value = 0u32;
    for index in at..at + count {
        value = value * 256 + u32::from(*bytes.get(index)?);
    }
    Some(value)
}

/// Reads a packet; `None` if it is cut off or contradicts itself.
pub fn read(bytes: &[u8]) -> Option<Slow> {
    let (source, destination, protocol, transport, fragment) = match number(bytes, 0, 1)? / 16 {
        4 => read_v4(bytes)?,
        6 => read_v6(bytes)?,
        _ => return None,
    };
    let later = fragment.is_some_and(|(_, offset, _)| offset > 0);
    let ports = match protocol {
        6 | 17 if !later => Some((number(bytes, transport, 2)? as u16, number(bytes, transport + 2, 2)? as u16)),
        _ => None,
    };
    if protocol == 6 && !later {
        let header = number(bytes, transport + 12, 1)? / 16 * 4;
        if header < 20 || transport + header as usize > bytes.len() {
            return None;
        }
    }
    if protocol == 17 && fragment.is_none() && number(bytes, transport + 4, 2)? as usize != bytes.len() - transport {
        return None;
    }
    Some(Slow { source, destination, protocol, transport, fragment, ports })
}

type Network = (IpAddr, IpAddr, u8, usize, Option<(u32, u32, bool)>);

fn read_v4(bytes: &[u8]) -> Option<Network> {
    let header = (number(bytes, 0, 1)? % 16 * 4) as usize;
    if header < 20 || header > bytes.len() || number(bytes, 2, 2)? as usize != bytes.len() {
        return None;
    }
    let mut sum = 0;
    for at in (0..header).step_by(2) {
        sum += number(bytes, at, 2)?;
    }
    if sum % 0xffff != 0 || sum == 0 {
        return None;
    }
    let address = |at| Some(IpAddr::from(number(bytes, at, 4)?.to_be_bytes()));
    let flags = number(bytes, 6, 2)?;
    let (offset, more) = (flags % 0x2000 * 8, flags / 0x2000 % 2 == 1);
    let fragment = (offset > 0 || more).then_some((number(bytes, 4, 2)?, offset, more));
    Some((address(12)?, address(16)?, number(bytes, 9, 1)? as u8, header, fragment))
}

fn read_v6(bytes: &[u8]) -> Option<Network> {
    if number(bytes, 4, 2)? as usize + 40 != bytes.len() {
        return None;
    }
    let address = |at: usize| {
        let mut octets = [0u8; 16];
        for (index, octet) in octets.iter_mut().enumerate() {
            *octet = number(bytes, at + index, 1)? as u8;
        }
        Some(IpAddr::from(octets))
    };
    let (mut next, mut at, mut fragment) = (number(bytes, 6, 1)? as u8, 40, None);
    loop {
        match next {
            0 | 60 => {
                next = number(bytes, at, 1)? as u8;
                at += (number(bytes, at + 1, 1)? as usize + 1) * 8;
            }
            44 => {
                next = number(bytes, at, 1)? as u8;
                let word = number(bytes, at + 2, 2)?;
                let (offset, more) = (word / 8 * 8, word % 2 == 1);
                if offset > 0 || more {
                    fragment = Some((number(bytes, at + 4, 4)?, offset, more));
                }
                at += 8;
                if offset > 0 {
                    break;
                }
            }
            _ => break,
        }
        if at > bytes.len() {
            return None;
        }
    }
    Some((address(8)?, address(24)?, next, at, fragment))
}
