//! Answers of other people's servers: none of them may give an overlay address (DNS rebinding).
//!
//! Threat: a page from `evil.example` whose name turns, on the second question, into the overlay address of an internal
//! resource. The browser takes both for one origin, and the page reads through the person's own machine what its author
//! may not reach. Only our own names lead into the overlay, so records that say otherwise are left out; what is left out is
//! counted. An answer that cannot be read could hold such a record for a more lenient reader, so it is none.

use std::net::{IpAddr, Ipv6Addr};

use hickory_proto::{
    op::Message,
    rr::{
        RData, Record,
        rdata::svcb::{SVCB, SvcParamValue},
    },
};

use super::answer::Names;

/// What becomes of somebody else's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Foreign {
    /// It passes as it came.
    Clean,
    /// So many records led into the overlay; this is the answer without them.
    Without(usize, Vec<u8>),
    /// It cannot be read: the query has no answer.
    Unreadable,
}

/// Looks through an answer of another server. Never panics, whatever the bytes.
pub(super) fn judge(names: &Names, response: &[u8]) -> Foreign {
    let Ok(mut message) = Message::from_vec(response) else { return Foreign::Unreadable };
    let mut left_out = 0;
    for section in [&mut message.answers, &mut message.authorities, &mut message.additionals] {
        let before = section.len();
        section.retain(|record| !leads_inside(names, record));
        left_out += before - section.len();
    }
    match (left_out, message.to_vec()) {
        (0, _) => Foreign::Clean,
        (_, Ok(bytes)) => Foreign::Without(left_out, bytes),
        (_, Err(_)) => Foreign::Unreadable,
    }
}

fn leads_inside(names: &Names, record: &Record) -> bool {
    let inside = |address: IpAddr| names.holds(address);
    let v6_inside = |address: Ipv6Addr| inside(IpAddr::V6(address).to_canonical());
    let hinted = |svcb: &SVCB| {
        svcb.svc_params.iter().any(|(_, value)| match value {
            SvcParamValue::Ipv4Hint(hint) => hint.0.iter().any(|address| inside(address.0.into())),
            SvcParamValue::Ipv6Hint(hint) => hint.0.iter().any(|address| v6_inside(address.0)),
            _ => false,
        })
    };
    match &record.data {
        RData::A(address) => inside(address.0.into()),
        RData::AAAA(address) => v6_inside(address.0),
        RData::HTTPS(https) => hinted(&https.0),
        RData::SVCB(svcb) => hinted(svcb),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{OpCode, Query, ResponseCode},
        rr::{
            Name, RecordType,
            rdata::{
                HTTPS,
                svcb::{IpHint, SvcParamKey},
            },
        },
    };
    use postern_common::time::Deadline;

    use super::{super::answer::NameEntry, *};

    fn names() -> Names {
        let overlay = vec!["fd5a::/48".parse().unwrap(), "100.64.0.0/16".parse().unwrap()];
        let entry =
            NameEntry { name: "wiki".into(), addresses: vec!["fd5a::9".parse().unwrap()], until: Deadline::NEVER };
        Names::new("internal", overlay, [entry])
    }

    fn response(data: &[RData]) -> Message {
        let name = Name::from_ascii("evil.example.").unwrap();
        let mut message = Message::response(7, OpCode::Query);
        message.metadata.response_code = ResponseCode::NoError;
        message.add_queries([Query::query(name.clone(), RecordType::A)]);
        message.add_answers(data.iter().map(|data| Record::from_rdata(name.clone(), 60, data.clone())));
        message
    }

    fn address(text: &str) -> RData {
        match text.parse().unwrap() {
            IpAddr::V4(address) => RData::A(address.into()),
            IpAddr::V6(address) => RData::AAAA(address.into()),
        }
    }

    fn https(hint: &str) -> RData {
        let (key, value) = match hint.parse().unwrap() {
            IpAddr::V4(address) => (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(vec![address.into()]))),
            IpAddr::V6(address) => (SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint(vec![address.into()]))),
        };
        RData::HTTPS(HTTPS(SVCB::new(1, Name::root(), vec![(key, value)])))
    }

    #[test]
    fn no_other_servers_answer_leads_into_the_overlay() {
        for inside in ["100.64.3.4", "fd5a::9", "::ffff:100.64.3.4"] {
            for record in [address(inside), https(inside)] {
                let sent = response(&[address("192.0.2.1"), record.clone(), address("2001:db8::1")]);
                let Foreign::Without(1, bytes) = judge(&names(), &sent.to_vec().unwrap()) else {
                    panic!("{record:?} passed")
                };
                let left = Message::from_vec(&bytes).unwrap();
                let kept: Vec<_> = left.answers.iter().map(|record| record.data.clone()).collect();
                assert_eq!(kept, [address("192.0.2.1"), address("2001:db8::1")]);
                assert_eq!((left.metadata.id, left.queries), (7, sent.queries), "it is still the answer");
            }
        }
        let mut beside = response(&[]);
        beside.add_additional(Record::from_rdata(Name::root(), 60, address("fd5a::1")));
        beside.add_authority(Record::from_rdata(Name::root(), 60, address("100.64.0.1")));
        assert!(matches!(judge(&names(), &beside.to_vec().unwrap()), Foreign::Without(2, _)));
    }

    #[test]
    fn what_leads_elsewhere_passes_as_it_came_and_what_cannot_be_read_does_not() {
        let elsewhere = response(&[address("100.65.0.1"), address("fd5b::1"), https("192.0.2.1")]).to_vec().unwrap();
        assert_eq!(judge(&names(), &elsewhere), Foreign::Clean);
        let inside = response(&[address("fd5a::9")]).to_vec().unwrap();
        assert_eq!(judge(&names().without_entries(), &inside), judge(&names(), &inside), "shut doors change nothing");
        assert_eq!(judge(&names(), &elsewhere[..elsewhere.len() - 1]), Foreign::Unreadable);
    }
}
