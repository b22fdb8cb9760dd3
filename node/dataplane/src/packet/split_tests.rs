use super::super::{build::*, offload::PartialChecksum};
use super::*;

/// A super-packet as a kernel hands it over: the checksum only begun.
fn superpacket(mut packet: Vec<u8>, gso: Gso) -> (VirtioHeader, Vec<u8>) {
    let view = PacketView::parse(&packet).unwrap();
    let (start, offset) = (view.transport_offset(), if view.protocol() == TCP { 16 } else { 6 });
    let length = packet.len() - start;
    let partial = Sum::ZERO.add_pseudo_header(view.source(), view.destination(), view.protocol(), length).partial();
    packet[start + offset..start + offset + 2].copy_from_slice(&partial);
    let checksum = Some(PartialChecksum { start: start as u16, offset: offset as u16 });
    (VirtioHeader { gso, header_length: 0, checksum }, packet)
}

fn cut(header: VirtioHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut segmenter = Segmenter::new(header, PacketView::parse(packet).unwrap()).unwrap();
    let expected = segmenter.remaining();
    let mut out = vec![0; segmenter.longest()];
    let mut packets = Vec::new();
    while let Some(length) = segmenter.next_into(&mut out) {
        packets.push(out[..length].to_vec());
    }
    assert_eq!(packets.len(), expected);
    packets
}

#[test]
fn tcp_is_cut_into_what_a_slow_sender_would_have_sent() {
    for (a, b) in [(A4, B4), (A6, B6)] {
        let payload: Vec<u8> = (0..3_500u32).map(|n| n as u8).collect();
        let options = [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
        let flags = TcpFlags::ACK | TcpFlags::PSH | TcpFlags::FIN | TcpFlags::CWR | TcpFlags::ECE;
        let whole = Tcp { options: &options, sequence: u32::MAX - 1_000, ..tcp(a, b, flags, &payload) };
        let gso = if a.is_ipv4() { Gso::TcpV4 { size: 1_000 } } else { Gso::TcpV6 { size: 1_000 } };
        let mut packet = whole.packet();
        if a.is_ipv4() {
            packet[1] = 0x03; // ECN
            packet[4..6].copy_from_slice(&0xffffu16.to_be_bytes());
            write_ipv4_checksum(&mut packet);
        }
        let (header, packet) = superpacket(packet, gso);
        let packets = cut(header, &packet);
        let parts: Vec<&[u8]> = payload.chunks(1_000).collect();
        assert_eq!(packets.len(), parts.len());
        for (index, (got, part)) in packets.iter().zip(&parts).enumerate() {
            let flags = match index {
                0 => TcpFlags::ACK | TcpFlags::ECE | TcpFlags::CWR,
                3 => TcpFlags::ACK | TcpFlags::ECE | TcpFlags::PSH | TcpFlags::FIN,
                _ => TcpFlags::ACK | TcpFlags::ECE,
            };
            let sequence = whole.sequence.wrapping_add(index as u32 * 1_000);
            let mut want = Tcp { payload: part, flags, sequence, ..whole.clone() }.packet();
            if a.is_ipv4() {
                want[1] = 0x03;
                want[4..6].copy_from_slice(&0xffffu16.wrapping_add(index as u16).to_be_bytes());
                write_ipv4_checksum(&mut want);
            }
            assert_eq!(got, &want, "segment {index}");
        }
    }
}

#[test]
fn udp_is_cut_into_datagrams_of_their_own() {
    for (a, b) in [(A4, B4), (A6, B6)] {
        let payload: Vec<u8> = (0..2_100u32).map(|n| (n / 7) as u8).collect();
        let (header, packet) = superpacket(udp(a, b, &payload), Gso::Udp { size: 1_000 });
        let mut want: Vec<_> = payload.chunks(1_000).map(|part| udp(a, b, part)).collect();
        if a.is_ipv4() {
            for (index, packet) in want.iter_mut().enumerate() {
                packet[4..6].copy_from_slice(&(index as u16).to_be_bytes());
                write_ipv4_checksum(packet);
            }
        }
        assert_eq!(cut(header, &packet), want);
    }
}

#[test]
fn a_begun_checksum_is_completed() {
    for (a, b) in [(A4, B4), (A6, B6)] {
        for want in [tcp(a, b, TcpFlags::ACK, b"abc").packet(), udp(a, b, b"abc")] {
            let (header, packet) = superpacket(want.clone(), Gso::None);
            assert_ne!(packet, want);
            assert_eq!(cut(header, &packet), [want]);
        }
    }
}

#[test]
fn a_header_that_does_not_fit_its_packet_is_refused() {
    let packet = tcp(A4, B4, TcpFlags::ACK, &[0; 3_000]).packet();
    let refused = |gso, start, offset| {
        let header = VirtioHeader { gso, header_length: 0, checksum: Some(PartialChecksum { start, offset }) };
        assert!(Segmenter::new(header, PacketView::parse(&packet).unwrap()).is_err());
    };
    refused(Gso::TcpV6 { size: 1_000 }, 20, 16);
    refused(Gso::Udp { size: 1_000 }, 20, 16);
    refused(Gso::TcpV4 { size: 1_000 }, 24, 16);
    refused(Gso::TcpV4 { size: 1_000 }, 20, 18);
    let header = VirtioHeader { gso: Gso::TcpV4 { size: 9 }, header_length: 0, checksum: None };
    assert!(Segmenter::new(header, PacketView::parse(&packet).unwrap()).is_err());
}

#[test]
fn a_buffer_that_is_too_short_ends_the_work() {
    let (header, packet) = superpacket(tcp(A4, B4, TcpFlags::ACK, &[0; 3_000]).packet(), Gso::TcpV4 { size: 1_000 });
    let mut segmenter = Segmenter::new(header, PacketView::parse(&packet).unwrap()).unwrap();
    assert_eq!(segmenter.next_into(&mut [0; 1_039]), None);
    assert_eq!(segmenter.remaining(), 0);
}
