//! Bodies of the fuzz targets: plain functions, so that the ordinary test command replays the kept corpus.
//!
//! Each asserts what must hold for any bytes; a panic is a finding.

use std::{collections::HashMap, net::SocketAddr};

use postern_common::{
    net::{FiveTuple, Protocol},
    time::Monotonic,
};

use super::{
    batch::UdpBatch,
    fragments::{DatagramKey, FragmentTable},
    join::{Joining, MAX_JOINED, TunBatch},
    offload::{MAX_PACKET, VIRTIO_HEADER_LENGTH, VirtioHeader},
    replies,
    slow::{self, Slow},
    split::{Segmenter, transport_checksum_is_right},
    view::{PacketView, Transport, packet_length},
};

/// Returns what a verdict rests on, in the words of the slow reader.
fn as_slow(view: &PacketView<'_>) -> Slow {
    let fragment = match view.transport() {
        Transport::LaterFragment(fragment) => Some(fragment),
        _ => view.first_fragment(),
    };
    let ports = view.five_tuple().filter(|tuple| tuple.protocol != Protocol::Icmp);
    Slow {
        source: view.source(),
        destination: view.destination(),
        protocol: view.protocol(),
        transport: view.transport_offset(),
        fragment: fragment.map(|part| (part.id, part.offset, part.place == super::view::FragmentPlace::More)),
        ports: ports.map(|tuple| (tuple.source_port, tuple.destination_port)),
    }
}

/// Any bytes as a packet: the slow reader reads it alike, offsets lie inside, an answer parses and is itself answered by
/// nothing.
pub fn fuzz_view(bytes: &[u8]) {
    let _length = packet_length(bytes);
    let Ok(view) = PacketView::parse(bytes) else { return };
    assert_eq!(packet_length(bytes), Ok(bytes.len()));
    assert_eq!(slow::read(bytes), Some(as_slow(&view)));
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

/// Returns a packet as its receiver understands it: two checksums that are both right, and identifications where they
/// mean nothing (RFC 6864 §4.1), are the same.
fn understood(packet: &[u8]) -> (Option<FiveTuple>, Vec<u8>) {
    let view = PacketView::parse(packet).expect("what goes in and what comes out parses");
    let mut bytes = packet.to_vec();
    if bytes[0] >> 4 == 4 {
        bytes[10..12].fill(0); // a wrong one does not parse
        if bytes[6] & 0x40 != 0 {
            bytes[4..6].fill(0);
        }
    }
    let flow = view.five_tuple().filter(|_| view.first_fragment().is_none());
    if flow.is_some() && transport_checksum_is_right(packet, view.layout()) {
        let field = view.transport_offset() + if matches!(view.transport(), Transport::Tcp(_)) { 16 } else { 6 };
        bytes[field..field + 2].fill(0);
    }
    (flow, bytes)
}

/// Any bytes as a sequence of packets (each behind its length in two bytes) through the joining batch: what is cut out of the
/// frames again is what went in, in each flow's order.
pub fn fuzz_join(mut bytes: &[u8]) {
    let mut batch = TunBatch::new(Joining::TcpAndUdp);
    let mut datagrams = UdpBatch::new();
    let endpoint = SocketAddr::from(([192, 0, 2, 1], 51_820));
    let mut pushed: HashMap<Option<FiveTuple>, Vec<Vec<u8>>> = HashMap::new();
    let mut count = 0;
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let (packet, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        bytes = rest;
        if let Ok(view) = PacketView::parse(packet) {
            if batch.push(&view).is_ok() {
                let (flow, packet) = understood(packet);
                pushed.entry(flow).or_default().push(packet);
                count += 1;
            }
            let _full = datagrams.push(endpoint, packet);
        }
    }
    let mut segments = 0;
    let mut cut: HashMap<Option<FiveTuple>, Vec<Vec<u8>>> = HashMap::new();
    for frame in batch.frames() {
        segments += frame.segments();
        assert!(frame.segments() <= MAX_JOINED && frame.length() <= MAX_PACKET + VIRTIO_HEADER_LENGTH);
        let whole: Vec<u8> = frame.slices().flatten().copied().collect();
        let (header, packet) = VirtioHeader::parse(&whole).expect("our own header parses");
        let view = PacketView::parse(packet).expect("a joined packet parses");
        let mut segmenter = Segmenter::new(header, view).expect("our own header fits its packet");
        assert_eq!(segmenter.remaining(), frame.segments());
        let mut out = vec![0; segmenter.longest()];
        while let Some(length) = segmenter.next_into(&mut out) {
            let (flow, packet) = understood(&out[..length]);
            cut.entry(flow).or_default().push(packet);
        }
    }
    assert_eq!(segments, count);
    assert_eq!(cut, pushed);
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
