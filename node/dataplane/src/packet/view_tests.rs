use super::super::build::*;
use super::*;
use proptest::prelude::*;

fn parse(packet: &[u8]) -> Result<Transport, ParseError> {
    PacketView::parse(packet).map(|view| *view.transport())
}

fn pairs() -> [(IpAddr, IpAddr); 2] {
    [(A4, B4), (A6, B6)]
}

#[test]
fn both_families_give_one_5_tuple() {
    for (a, b) in pairs() {
        let packet = tcp(a, b, TcpFlags::SYN, b"").packet();
        let view = PacketView::parse(&packet).unwrap();
        let flow = FiveTuple {
            protocol: Protocol::Tcp,
            source: a,
            source_port: 40_000,
            destination: b,
            destination_port: 443,
        };
        assert_eq!(view.five_tuple(), Some(flow));
        let packet = udp(a, b, b"hello");
        let view = PacketView::parse(&packet).unwrap();
        assert_eq!(view.five_tuple().unwrap().destination_port, 53);
        assert_eq!(&packet[packet.len() - 5..], b"hello");
    }
}

#[test]
fn an_echo_reply_belongs_to_the_flow_of_its_request() {
    for (a, b, request, reply) in [(A4, B4, 8, 0), (A6, B6, 128, 129)] {
        let asked = icmp(a, b, request, 0, &[0x12, 0x34, 0, 1]);
        let answered = icmp(b, a, reply, 0, &[0x12, 0x34, 0, 1]);
        let asked = PacketView::parse(&asked).unwrap().five_tuple().unwrap();
        let answered = PacketView::parse(&answered).unwrap().five_tuple().unwrap();
        assert_eq!(asked, answered.reversed());
        assert_eq!(asked.source_port, 0x1234);
    }
}

#[test]
fn an_icmp_error_names_the_flow_that_it_quotes() {
    for (a, b, kind, code) in [(A4, B4, 3, 1), (A6, B6, 1, 4)] {
        let sent = tcp(a, b, TcpFlags::SYN, b"").packet();
        let mut rest = vec![0; 4];
        rest.extend(&sent);
        let error = icmp(b, a, kind, code, &rest);
        let Ok(Transport::IcmpError(found)) = parse(&error) else { panic!("{:?}", parse(&error)) };
        assert_eq!(found.quoted, PacketView::parse(&sent).unwrap().five_tuple().unwrap());
        // The receiver of the error did not send the quoted packet.
        let error = icmp(
            b,
            if a.is_ipv4() { IpAddr::from([100, 80, 0, 9]) } else { "fd00::9".parse().unwrap() },
            kind,
            code,
            &rest,
        );
        assert_eq!(parse(&error), Err(ParseError::Quote));
        // Cut off before the ports.
        let network = if a.is_ipv4() { 20 } else { 40 };
        let error = icmp(b, a, kind, code, &rest[..4 + network + 7]);
        assert_eq!(parse(&error), Err(ParseError::Quote));
        // An error about an error names no flow.
        let mut nested = vec![0; 4];
        nested.extend(icmp(a, b, kind, code, &rest));
        assert_eq!(parse(&icmp(b, a, kind, code, &nested)), Err(ParseError::Quote));
    }
}

#[test]
fn neighbour_discovery_redirects_and_foreign_icmp_are_no_flow() {
    assert!(matches!(parse(&icmp(A6, B6, 135, 0, &[0; 20])), Ok(Transport::OtherIcmp { kind: 135, code: 0 })));
    assert!(matches!(parse(&icmp(A4, B4, 5, 1, &[0; 40])), Ok(Transport::OtherIcmp { kind: 5, code: 1 })));
    assert!(matches!(parse(&ip(A4, B4, 58, &[128, 0, 0, 0, 0, 0, 0, 0])), Ok(Transport::Unsupported(58))));
    assert!(matches!(parse(&ip(A6, B6, 1, &[8, 0, 0, 0, 0, 0, 0, 0])), Ok(Transport::Unsupported(1))));
    assert!(matches!(parse(&ip(A4, B4, 132, &[0; 12])), Ok(Transport::Unsupported(132))));
}

#[test]
fn lengths_that_contradict_each_other_are_refused() {
    for (a, b) in pairs() {
        let mut packet = udp(a, b, b"hello");
        packet.push(0);
        assert_eq!(parse(&packet), Err(ParseError::Length), "longer than it says");
        assert_eq!(packet_length(&packet), Ok(packet.len() - 1));
        let packet = udp(a, b, b"hello");
        assert_eq!(parse(&packet[..packet.len() - 1]), Err(ParseError::Length), "shorter than it says");
        let mut body = udp_body((a, 1), (b, 2), b"hello");
        body[5] -= 1;
        assert_eq!(parse(&ip(a, b, 17, &body)), Err(ParseError::Length), "UDP's own length");
        let mut body = tcp(a, b, TcpFlags::ACK, b"").body();
        body[12] = 4 << 4;
        assert_eq!(parse(&ip(a, b, 6, &body)), Err(ParseError::TcpHeader));
        body[12] = 6 << 4;
        assert_eq!(parse(&ip(a, b, 6, &body)), Err(ParseError::Truncated));
    }
    let mut packet = udp(A4, B4, b"");
    packet[10] ^= 1;
    assert_eq!(parse(&packet), Err(ParseError::HeaderChecksum));
    assert_eq!(parse(&[]), Err(ParseError::Truncated));
    assert_eq!(parse(&[0x50; 40]), Err(ParseError::Version));
}

#[test]
fn a_first_fragment_must_show_its_whole_transport_header() {
    for (a, b) in pairs() {
        let body = tcp(a, b, TcpFlags::SYN, &[0; 40]).body();
        for cut in [0, 8, 16] {
            let tiny = fragment(a, b, 6, 0, true, &body[..cut]);
            assert_eq!(parse(&tiny), Err(ParseError::Fragment), "{cut}");
        }
        let first = fragment(a, b, 6, 0, true, &body[..24]);
        let view = PacketView::parse(&first).unwrap();
        assert_eq!(view.first_fragment().map(|f| (f.id, f.length)), Some((77, 24)));
        assert!(view.five_tuple().is_some());
        let later = fragment(a, b, 6, 24, false, &body[24..]);
        let Ok(Transport::LaterFragment(found)) = parse(&later) else { panic!() };
        assert_eq!((found.offset, found.place), (24, FragmentPlace::Last));
        assert_eq!(PacketView::parse(&later).unwrap().protocol(), 6);
        assert_eq!(parse(&fragment(a, b, 6, 24, true, &body[24..31])), Err(ParseError::Fragment), "ragged");
        assert_eq!(parse(&fragment(a, b, 6, 65_528, false, &[0; 16])), Err(ParseError::Fragment), "ping of death");
    }
}

#[test]
fn extension_headers_are_walked_with_a_bound() {
    let body = udp_body((A6, 1), (B6, 2), b"x");
    let with = |headers: &[(u8, Vec<u8>)]| {
        let mut bytes = Vec::new();
        for (index, (_, header)) in headers.iter().enumerate() {
            let next = headers.get(index + 1).map_or(17, |(kind, _)| *kind);
            bytes.push(next);
            bytes.extend(&header[1..]);
        }
        bytes.extend(&body);
        ip(A6, B6, headers.first().map_or(17, |(kind, _)| *kind), &bytes)
    };
    let options = || vec![0, 0, 1, 4, 0, 0, 0, 0];
    assert!(matches!(parse(&with(&[(0, options()), (60, options())])), Ok(Transport::Udp(_))));
    let many = |count| with(&vec![(60, options()); count]);
    assert!(matches!(parse(&many(8)), Ok(Transport::Udp(_))));
    assert_eq!(parse(&many(9)), Err(ParseError::TooManyExtensionHeaders));
    assert_eq!(parse(&with(&[(60, options()), (0, options())])), Err(ParseError::ExtensionHeader(0)));
    for kind in [43u8, 51, 135, 139, 140, 253, 254] {
        assert!(parse(&with(&[(kind, options())])).is_err(), "{kind}");
    }
    assert_eq!(parse(&with(&[(43, options())])), Err(ParseError::SourceRoute));
    let jumbo = vec![0, 0, 0xc2, 4, 0, 1, 0, 0];
    assert_eq!(parse(&with(&[(0, jumbo)])), Err(ParseError::Jumbogram));
    let mut home = vec![0, 2, 0xc9, 16];
    home.extend([0xfd; 16]);
    home.extend([1, 2, 0, 0]);
    assert_eq!(parse(&with(&[(60, home)])), Err(ParseError::SourceRoute));
    let long = {
        let mut header = vec![0u8, 79];
        header.extend([0; 638]);
        header
    };
    assert_eq!(parse(&with(&[(60, long)])), Err(ParseError::TooManyExtensionHeaders));
    assert!(matches!(parse(&ip(A6, B6, 59, &[])), Ok(Transport::Unsupported(59))));
}

#[test]
fn an_atomic_fragment_is_a_whole_datagram() {
    let packet = fragment(A6, B6, 17, 0, false, &udp_body((A6, 1), (B6, 2), b"x"));
    let view = PacketView::parse(&packet).unwrap();
    assert!(view.first_fragment().is_none() && matches!(view.transport(), Transport::Udp(_)));
}

#[test]
fn ipv4_options_are_allowed_but_not_source_routes() {
    let with = |options: &[u8]| {
        let mut packet = udp(A4, B4, b"x");
        packet.splice(20..20, options.iter().copied());
        packet[0] = 0x40 | (5 + options.len() / 4) as u8;
        let total = packet.len() as u16;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        super::super::split::write_ipv4_checksum(&mut packet);
        packet
    };
    assert!(matches!(parse(&with(&[148, 4, 0, 0])), Ok(Transport::Udp(_))));
    assert_eq!(parse(&with(&[131, 3, 4, 0])), Err(ParseError::SourceRoute));
    assert_eq!(parse(&with(&[1, 137, 3, 4])), Err(ParseError::SourceRoute));
    assert_eq!(parse(&with(&[7, 9, 0, 0])), Err(ParseError::Length));
    assert_eq!(parse(&with(&[7, 0, 0, 0])), Err(ParseError::Length));
}

#[test]
fn addresses_that_cannot_be_a_source_are_refused() {
    for source in ["224.0.0.1", "255.255.255.255", "0.0.0.0", "127.0.0.1"] {
        assert_eq!(parse(&udp(source.parse().unwrap(), B4, b"")), Err(ParseError::Address), "{source}");
    }
    for source in ["ff02::1", "::", "::1", "::ffff:100.80.0.1"] {
        assert_eq!(parse(&udp(source.parse().unwrap(), B6, b"")), Err(ParseError::Address), "{source}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic_or_point_outside(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), six in any::<bool>(), next in any::<u8>()) {
        if bytes.len() >= 40 {
            if six {
                bytes[0] = 0x60;
                let length = (bytes.len() - 40) as u16;
                bytes[4..6].copy_from_slice(&length.to_be_bytes());
                bytes[6] = next;
            } else {
                bytes[0] = 0x45 + (next & 3);
                let length = bytes.len() as u16;
                bytes[2..4].copy_from_slice(&length.to_be_bytes());
                super::super::split::write_ipv4_checksum(&mut bytes);
            }
        }
        super::super::fuzzing::fuzz_view(&bytes);
    }
}
