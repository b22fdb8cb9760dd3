//! Body of the fuzz target for what the network brings: forged, changed, repeated and honest datagrams, from anywhere.
//!
//! The input is a list of orders to an attacker between a laptop and a server that have a session: `kind, which, length,
//! change...`. An order lets an honest datagram through, sends it again, sends it with bytes changed, or sends bytes of the
//! attacker's own. However they are mixed, the server's programs get each packet of the laptop's at most once and nothing
//! else, only an honest datagram of a session moves the endpoint, and the server still answers at the end.

use std::net::SocketAddr;

use crate::{Settings, testing::*, wireguard::WireGuard};

const HOUR: u64 = 3_600_000;

fn question(number: u8) -> Vec<u8> {
    let [source, destination] = [inner(1)[1], inner(2)[1]];
    let octets = |address| match address {
        std::net::IpAddr::V4(address) => address.octets(),
        std::net::IpAddr::V6(_) => unreachable!("the second inner address is IPv4"),
    };
    let mut packet = vec![0x45, 0, 0, 32, 0, number, 0x40, 0, 64, 17, 0, 0];
    packet.extend_from_slice(&octets(source));
    packet.extend_from_slice(&octets(destination));
    packet.extend_from_slice(&[0x9c, 0x40, 0, 53, 0, 12, 0, 0]);
    packet.extend_from_slice(&[number; 4]);
    let sum = crate::packet::checksum::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum);
    packet
}

/// Any bytes as orders to an attacker on the path.
///
/// # Panics
/// If something holds no longer that must hold for any bytes: that is a finding.
pub fn fuzz_datagrams(mut bytes: &[u8]) {
    let settings = Settings { greetings: 0, ..Settings::default() };
    let mut laptop = Node::new(1, settings.clone(), WireGuard::new(at(0)), at(0));
    let mut server = Node::new(2, settings, WireGuard::new(at(0)), at(0));
    server.snapshot(vec![peer(2, 1, vec![permission("rule", &["udp/53"], HOUR)], vec![])], at(0));
    laptop.snapshot(vec![peer(1, 2, vec![], vec![permission("rule", &["udp/53"], HOUR)])], at(0));
    laptop.local_sends(&question(0), at(1));
    let initiation = laptop.sent[0].1.clone();
    settle(&mut [&mut laptop, &mut server], at(1));
    assert_eq!(server.take_delivered(), [question(0)]);
    let mut honest = vec![initiation];
    for number in 1..=8 {
        laptop.local_sends(&question(number), at(2));
        honest.extend(laptop.sent.drain(..).map(|(_, datagram)| datagram));
    }
    assert_eq!(honest.len(), 9);

    let mut delivered = vec![question(0)];
    let mut heard = [outer(1)].to_vec();
    let mut ms = 10;
    while let Some((&[kind, which, length], rest)) = bytes.split_first_chunk::<3>() {
        let (change, rest) = rest.split_at(usize::from(length).min(rest.len()));
        bytes = rest;
        ms += u64::from(kind >> 2);
        let from = SocketAddr::from(([203, 0, 113, which], 7));
        let original = &honest[usize::from(which) % honest.len()];
        let mut datagram = original.clone();
        match kind & 3 {
            0 => {}
            1 => datagram.iter_mut().zip(change).for_each(|(byte, change)| *byte ^= change),
            2 => datagram.truncate(usize::from(length)),
            _ => datagram = change.to_vec(),
        }
        let is_honest = datagram == *original;
        server.network_brings(&datagram, from, at(ms));
        let news = server.take_delivered();
        assert!(news.len() <= 1 && (news.is_empty() || is_honest), "a forged datagram brought a packet");
        if is_honest && !news.is_empty() {
            heard.push(from);
        }
        for packet in news {
            assert!(!delivered.contains(&packet), "a packet came twice");
            assert!((1..=8).any(|number| question(number) == packet), "nobody sent this");
            delivered.push(packet);
        }
        for (to, answer) in server.sent.drain(..) {
            assert!(answer.len() <= datagram.len(), "an answer that is longer than its question is worth spoofing");
            assert!(to == from || heard.contains(&to), "an answer to somebody else");
        }
        assert_eq!(server.plane.peers(at(ms))[0].endpoint, heard.last().copied());
    }
    laptop.local_sends(&question(9), at(ms));
    settle(&mut [&mut laptop, &mut server], at(ms));
    assert_eq!(server.take_delivered(), [question(9)], "the session lives");
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kept_corpus_of_the_attacker_on_the_path_passes() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/datagrams");
        let files: Vec<_> = std::fs::read_dir(folder).expect("the corpus").collect();
        assert!(files.len() >= 3, "{folder} has lost its corpus");
        for file in files {
            super::fuzz_datagrams(&std::fs::read(file.unwrap().path()).unwrap());
        }
    }
}
