//! Bodies of the fuzz targets: plain functions, so that the ordinary test command replays the kept corpus.
//!
//! Each asserts what must hold for any bytes; a panic is a finding.

use hickory_proto::op::{Message, MessageType};
use postern_common::time::{Deadline, Monotonic, Now, WallTime};

use super::{
    answer::{Action, NameEntry, Names, Transport, answer},
    server::is_answer_to,
};

/// Any bytes as a query: what is answered is a response to it, and what is forwarded is not about our domain.
pub fn fuzz_query(bytes: &[u8]) {
    let entry = |name: &str| NameEntry {
        name: name.into(),
        addresses: vec![[100, 64, 0, 9].into(), [0xfd5a, 0, 0, 0, 0, 0, 0, 9].into()],
        until: Deadline::NEVER,
    };
    let overlay = ["fd5a::/48", "100.64.0.0/16"].iter().filter_map(|prefix| prefix.parse().ok()).collect();
    let names = Names::new("internal", overlay, [entry("payroll-app"), entry("wiki.eu")]);
    let now = Now { monotonic: Monotonic::default(), wall: WallTime::default() };
    for transport in [Transport::Udp, Transport::Tcp] {
        match answer(&names, bytes, transport, now) {
            Action::Reply(reply) => {
                assert_eq!(reply[..2], bytes[..2], "another identifier");
                let reply = Message::from_vec(&reply).expect("our answer parses");
                assert_eq!(reply.metadata.message_type, MessageType::Response);
            }
            Action::Forward => {
                let query = Message::from_vec(bytes).expect("only what parses is forwarded");
                let name = query.queries[0].name();
                let last = name.iter().next_back().unwrap_or_default();
                assert!(!last.eq_ignore_ascii_case(b"internal"), "{name} was asked of somebody else");
            }
            Action::Ignore => {}
        }
    }
}

/// A query (behind its length in two bytes) and any bytes that come back for it.
pub fn fuzz_exchange(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (query, response) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
    if is_answer_to(query, response) {
        assert_eq!(query[..2], response[..2]);
        assert!(response.len() >= 12);
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
    fn the_kept_corpus_of_the_resolver_passes() {
        replay("dns_query", super::fuzz_query);
        replay("dns_exchange", super::fuzz_exchange);
    }
}
