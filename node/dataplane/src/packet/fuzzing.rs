//! Bodies of the fuzz targets: plain functions, so that the ordinary test command replays the kept corpus.
//!
//! Each asserts what must hold for any bytes; a panic is a finding.

use std::net::SocketAddr;

use postern_common::time::Monotonic;

use super::{
    batch::UdpBatch,
    fragments::{DatagramKey, FragmentTable},
    join::{Joining, MAX_JOINED, TunBatch},
    offload::{MAX_PACKET, VIRTIO_HEADER_LENGTH, VirtioHeader},
    replies,
    split::Segmenter,
    view::{PacketView, Transport, packet_length},
};

/// Any bytes as a packet: offsets lie inside, an answer parses and is itself answered by nothing.
pub fn fuzz_view(bytes: &[u8]) {
    let _length = packet_length(bytes);
    let Ok(view) = PacketView::parse(bytes) else { return };
    assert_eq!(packet_length(bytes), Ok(bytes.len()));
    assert!(view.transport_offset() <= bytes.len());
    assert_eq!(view.source().is_ipv4(), view.destination().is_ipv4());
    match view.transport() {
        Transport::Tcp(tcp) => assert_eq!(tcp.payload_offset + tcp.payload_length, bytes.len()),
        Transport::Udp(udp) => assert!(udp.payload_offset <= bytes.len()),
        Transport::IcmpError(error) => assert_eq!(error.quoted.source, view.destination()),
        Transport::LaterFragment(fragment) => assert!(fragment.offset > 0 && view.five_tuple().is_none()),
        Transport::IcmpEcho { .. } | Transport::OtherIcmp { .. } | Transport::Unsupported(_) => {}
    }
    for reply in [replies::reject(&view), replies::too_big(&view, 1_280)].into_iter().flatten() {
        let answer = PacketView::parse(reply.as_bytes());
        if let Ok(answer) = answer {
            assert!(replies::reject(&answer).is_none(), "an answer to an answer");
        }
    }
}

/// Any bytes as a TUN frame: what is cut parses again, is no longer than announced, and adds up.
pub fn fuzz_frame(frame: &[u8]) {
    let Ok((header, packet)) = VirtioHeader::parse(frame) else { return };
    let Ok(view) = PacketView::parse(packet) else { return };
    let Ok(mut segmenter) = Segmenter::new(header, view) else { return };
    let (count, longest) = (segmenter.remaining(), segmenter.longest());
    let mut out = vec![0; longest];
    let mut seen = 0;
    while let Some(length) = segmenter.next_into(&mut out) {
        assert!(length <= longest);
        let cut = PacketView::parse(&out[..length]).expect("a cut packet parses");
        assert_eq!(cut.five_tuple(), view.five_tuple());
        seen += 1;
    }
    assert_eq!(seen, count);
}

/// Any bytes as a sequence of packets (each behind its length in two bytes) through the joining batch: nothing is lost or grown.
pub fn fuzz_join(mut bytes: &[u8]) {
    let mut batch = TunBatch::new(Joining::TcpAndUdp);
    let mut datagrams = UdpBatch::new();
    let endpoint = SocketAddr::from(([192, 0, 2, 1], 51_820));
    let mut pushed = 0;
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let (packet, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        bytes = rest;
        if let Ok(view) = PacketView::parse(packet) {
            pushed += usize::from(batch.push(&view).is_ok());
            let _full = datagrams.push(endpoint, packet);
        }
    }
    let mut segments = 0;
    for frame in batch.frames() {
        segments += frame.segments();
        assert!(frame.segments() <= MAX_JOINED && frame.length() <= MAX_PACKET + VIRTIO_HEADER_LENGTH);
        let whole: Vec<u8> = frame.slices().flatten().copied().collect();
        let (header, packet) = VirtioHeader::parse(&whole).expect("our own header parses");
        let view = PacketView::parse(packet).expect("a joined packet parses");
        header.check(&view).expect("our own header fits its packet");
    }
    assert_eq!(segments, pushed);
}

/// Any bytes as a sequence of packets through the fragment table: no fragment passes without its first, none overlaps it.
pub fn fuzz_fragments(mut bytes: &[u8]) {
    let mut table = FragmentTable::new();
    let mut clock = 0;
    while let Some((head, rest)) = bytes.split_first_chunk::<3>() {
        let (packet, rest) = rest.split_at(usize::from(u16::from_be_bytes([head[0], head[1]])).min(rest.len()));
        bytes = rest;
        clock += u64::from(head[2]) * 16;
        let now = Monotonic::from_millis(clock);
        let Ok(view) = PacketView::parse(packet) else { continue };
        let (source, destination, protocol) = (view.source(), view.destination(), view.protocol());
        let key = |id| DatagramKey { source, destination, id, protocol };
        if let Some(first) = view.first_fragment() {
            let _overlap = table.admit(key(first.id), first, first.length, now);
        } else if let Transport::LaterFragment(later) = view.transport()
            && let Ok(end) = table.check(key(later.id), later, now)
        {
            assert!(later.offset >= end);
        }
    }
}

#[cfg(test)]
mod tests {
    /// Replays every kept input of one target.
    fn replay(target: &str, body: fn(&[u8])) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/").to_owned() + target;
        let files: Vec<_> = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}")).collect();
        assert!(files.len() >= 3, "{folder} has lost its corpus");
        for file in files {
            body(&std::fs::read(file.unwrap().path()).unwrap());
        }
    }

    #[test]
    fn the_kept_corpus_of_every_packet_parser_passes() {
        replay("packet_view", super::fuzz_view);
        replay("tun_frame", super::fuzz_frame);
        replay("tun_join", super::fuzz_join);
        replay("fragments", super::fuzz_fragments);
    }
}
