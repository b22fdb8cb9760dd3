//! Packets for tests, built field by field with right checksums: the slow and obvious way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;

pub(crate) const A4: IpAddr = IpAddr::V4(Ipv4Addr::new(100, 80, 0, 1));
pub(crate) const B4: IpAddr = IpAddr::V4(Ipv4Addr::new(100, 80, 0, 2));
pub(crate) const A6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
pub(crate) const B6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));

/// Puts an IP header before `body`; IPv4 gets DF and identification 0.
pub(crate) fn ip(source: IpAddr, destination: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0]);
            packet.extend((20 + body.len() as u16).to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            super::split::write_ipv4_checksum(&mut packet);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((body.len() as u16).to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("two families"),
    }
    packet.extend(body);
    packet
}

fn with_checksum(source: IpAddr, destination: IpAddr, protocol: u8, mut body: Vec<u8>, field: usize) -> Vec<u8> {
    let sum = match protocol {
        1 => Sum::ZERO,
        protocol => Sum::ZERO.add_pseudo_header(source, destination, protocol, body.len()),
    };
    let checksum = sum.add_bytes(&body).finish();
    body[field..field + 2].copy_from_slice(&checksum);
    body
}

#[derive(Debug, Clone)]
pub(crate) struct Tcp<'a> {
    pub(crate) source: (IpAddr, u16),
    pub(crate) destination: (IpAddr, u16),
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: u8,
    pub(crate) options: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl Tcp<'_> {
    pub(crate) fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend(self.source.1.to_be_bytes());
        body.extend(self.destination.1.to_be_bytes());
        body.extend(self.sequence.to_be_bytes());
        body.extend(self.acknowledgement.to_be_bytes());
        body.extend([(((20 + self.options.len()) / 4) << 4) as u8, self.flags]);
        body.extend([0x10, 0, 0, 0, 0, 0]);
        body.extend(self.options);
        body.extend(self.payload);
        with_checksum(self.source.0, self.destination.0, 6, body, 16)
    }

    pub(crate) fn packet(&self) -> Vec<u8> {
        ip(self.source.0, self.destination.0, 6, &self.body())
    }
}

pub(crate) fn tcp(source: IpAddr, destination: IpAddr, flags: u8, payload: &[u8]) -> Tcp<'_> {
    let (source, destination) = ((source, 40_000), (destination, 443));
    Tcp { source, destination, sequence: 1_000, acknowledgement: 2_000, flags, options: &[], payload }
}

pub(crate) fn udp_body(source: (IpAddr, u16), destination: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(source.1.to_be_bytes());
    body.extend(destination.1.to_be_bytes());
    body.extend((8 + payload.len() as u16).to_be_bytes());
    body.extend([0, 0]);
    body.extend(payload);
    with_checksum(source.0, destination.0, 17, body, 6)
}

pub(crate) fn udp(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    ip(source, destination, 17, &udp_body((source, 5_000), (destination, 53), payload))
}

pub(crate) fn icmp(source: IpAddr, destination: IpAddr, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let protocol = if source.is_ipv4() { 1 } else { 58 };
    let mut body = vec![kind, code, 0, 0];
    body.extend(rest);
    ip(source, destination, protocol, &with_checksum(source, destination, protocol, body, 2))
}

/// Cuts a packet's IP payload: a fragment with these bytes of it.
pub(crate) fn fragment(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    offset: u16,
    more: bool,
    part: &[u8],
) -> Vec<u8> {
    let word = (offset & 0xfff8) | u16::from(more);
    if source.is_ipv4() {
        let mut packet = ip(source, destination, protocol, part);
        packet[4..6].copy_from_slice(&77u16.to_be_bytes());
        packet[6..8].copy_from_slice(&((offset >> 3) | u16::from(more) << 13).to_be_bytes());
        super::split::write_ipv4_checksum(&mut packet);
        packet
    } else {
        let mut body = vec![protocol, 0];
        body.extend(word.to_be_bytes());
        body.extend(77u32.to_be_bytes());
        body.extend(part);
        ip(source, destination, 44, &body)
    }
}
