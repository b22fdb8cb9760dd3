use super::super::build::*;
use super::*;
use crate::packet::view::IcmpErrorKind;

fn parsed(reply: &Reply) -> PacketView<'_> {
    let view = PacketView::parse(reply.as_bytes()).unwrap();
    let rest = &reply.as_bytes()[view.transport_offset()..];
    let sum = match view.protocol() {
        ICMP => Sum::ZERO,
        protocol => Sum::ZERO.add_pseudo_header(view.source(), view.destination(), protocol, rest.len()),
    };
    assert!(sum.add_bytes(rest).is_right(), "the answer's checksum");
    view
}

#[test]
fn a_refused_syn_gets_the_rst_of_a_closed_port() {
    for (a, b) in [(A4, B4), (A6, B6)] {
        let packet = tcp(a, b, TcpFlags::SYN, b"").packet();
        let view = PacketView::parse(&packet).unwrap();
        let reply = reject(&view).unwrap();
        let answer = parsed(&reply);
        assert_eq!(answer.five_tuple(), view.five_tuple().map(|flow| flow.reversed()));
        let Transport::Tcp(rst) = answer.transport() else { panic!() };
        assert_eq!((rst.sequence, rst.acknowledgement), (0, 1_001));
        assert_eq!(rst.flags.0, TcpFlags::RST | TcpFlags::ACK);
    }
}

#[test]
fn a_refused_segment_with_ack_gets_an_rst_that_its_sender_believes() {
    let packet = tcp(A4, B4, TcpFlags::ACK | TcpFlags::FIN, b"abc").packet();
    let reply = reject(&PacketView::parse(&packet).unwrap()).unwrap();
    let Transport::Tcp(rst) = *parsed(&reply).transport() else { panic!() };
    assert_eq!((rst.sequence, rst.flags.0), (2_000, TcpFlags::RST));
}

#[test]
fn an_rst_is_never_answered() {
    let packet = tcp(A4, B4, TcpFlags::RST | TcpFlags::ACK, b"").packet();
    assert!(reject(&PacketView::parse(&packet).unwrap()).is_none());
}

#[test]
fn a_known_flow_is_cut_at_the_sequence_number_that_its_end_expects() {
    for (a, b) in [(A4, B4), (A6, B6)] {
        let packet = tcp(a, b, TcpFlags::ACK, b"").packet();
        let flow = PacketView::parse(&packet).unwrap().five_tuple().unwrap();
        let reply = reset_flow(&flow, 77, 88);
        let view = parsed(&reply);
        assert_eq!(view.five_tuple(), Some(flow));
        let Transport::Tcp(rst) = view.transport() else { panic!() };
        assert_eq!((rst.sequence, rst.acknowledgement), (77, 88));
    }
}

#[test]
fn other_protocols_get_administratively_prohibited_about_their_own_packet() {
    for (a, b, kind, request) in
        [(A4, B4, IcmpErrorKind::Unreachable(13), 8), (A6, B6, IcmpErrorKind::Unreachable(1), 128)]
    {
        for packet in [udp(a, b, &[7; 1_390]), udp(a, b, b""), icmp(a, b, request, 0, &[1, 2, 0, 0])] {
            let view = PacketView::parse(&packet).unwrap();
            let reply = reject(&view).unwrap();
            let answer = parsed(&reply);
            let Transport::IcmpError(error) = answer.transport() else { panic!("{:?}", answer.transport()) };
            assert_eq!((error.kind, Some(error.quoted)), (kind, view.five_tuple()));
            assert!(reply.as_bytes().len() <= if a.is_ipv4() { 576 } else { 1_280 });
        }
    }
}

#[test]
fn too_big_tells_the_mtu() {
    for (a, b) in [(A4, B4), (A6, B6)] {
        let packet = udp(a, b, &[7; 1_390]);
        let reply = too_big(&PacketView::parse(&packet).unwrap(), 1_280).unwrap();
        let Transport::IcmpError(error) = *parsed(&reply).transport() else { panic!() };
        assert_eq!(error.kind, IcmpErrorKind::PacketTooBig(1_280));
    }
}

#[test]
fn nothing_is_answered_to_errors_replies_fragments_and_packets_for_many() {
    let sent = udp(B4, A4, b"");
    let quote = [&[0; 4], &sent[..]].concat();
    for packet in [
        icmp(A4, B4, 3, 3, &quote),
        icmp(A4, B4, 0, 0, &[0, 1, 0, 0]),
        icmp(A6, B6, 135, 0, &[0; 20]),
        fragment(A4, B4, 17, 800, false, &[0; 100]),
        udp(A4, "255.255.255.255".parse().unwrap(), b""),
        udp(A4, "224.0.0.251".parse().unwrap(), b""),
        udp(A6, "ff02::fb".parse().unwrap(), b""),
    ] {
        assert!(reject(&PacketView::parse(&packet).unwrap()).is_none());
    }
}
