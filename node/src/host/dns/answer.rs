//! What to do with one query: sans-IO.

use std::{collections::HashMap, net::IpAddr};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{PTR, SOA},
    },
};
use ipnet::IpNet;
use postern_common::time::{Deadline, Now};

/// The longest time, in seconds, for which anybody may keep one of our answers: a revoked name shall vanish soon.
const MAX_TTL_SECONDS: u64 = 5;
/// The most bytes of a UDP answer where the query has no EDNS record, RFC 1035 §4.2.1.
const PLAIN_UDP_BYTES: usize = 512;
/// The most bytes of a UDP answer of ours, whatever the query offers: one datagram of the smallest IPv6 MTU.
const MAX_UDP_BYTES: usize = 1232;

/// One name that may be resolved now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameEntry {
    /// The name without the domain: `payroll-app`.
    pub name: String,
    /// The overlay addresses of the nodes that serve it.
    pub addresses: Vec<IpAddr>,
    /// Until when this node's subject is entitled to it.
    pub until: Deadline,
}

/// The names that this node's subject is entitled to, by the agent's newest grants.
#[derive(Debug, Clone, Default)]
pub struct Names {
    domain: Option<Name>,
    overlay: Vec<IpNet>,
    /// Each address with each deadline of its own: one that ends takes nothing else with it, and nothing keeps it.
    forward: HashMap<Name, Vec<(IpAddr, Deadline)>>,
    reverse: HashMap<IpAddr, Vec<(Name, Deadline)>>,
}

impl Names {
    /// Makes the table: the domain (`internal`), the overlay's prefixes, and the names. Entries whose name is none in
    /// DNS are left out; of several entries with one name, each address counts until its own deadlines are over.
    pub fn new(domain: &str, overlay: Vec<IpNet>, entries: impl IntoIterator<Item = NameEntry>) -> Self {
        let domain = Name::from_ascii(format!("{}.", domain.trim_matches('.'))).ok().map(|name| name.to_lowercase());
        let mut names = Self { domain, overlay, forward: HashMap::new(), reverse: HashMap::new() };
        let Some(domain) = names.domain.clone() else { return names };
        for entry in entries {
            let Ok(relative) = Name::from_ascii(&entry.name) else { continue };
            let Ok(name) = relative.append_domain(&domain) else { continue };
            let mut name = name.to_lowercase();
            name.set_fqdn(true);
            for address in entry.addresses {
                names.forward.entry(name.clone()).or_default().push((address, entry.until));
                names.reverse.entry(address).or_default().push((name.clone(), entry.until));
            }
        }
        names
    }

    /// Makes the table of a node whose doors are shut: it answers for the same domain and prefixes and knows no name.
    /// Without them, questions for the domain would be asked of strangers, or come back from systemd-resolved for ever.
    #[must_use]
    pub fn without_entries(&self) -> Self {
        let (domain, overlay) = (self.domain.clone(), self.overlay.clone());
        Self { domain, overlay, forward: HashMap::new(), reverse: HashMap::new() }
    }

    /// Tells whether an address is an overlay address.
    pub(super) fn holds(&self, address: IpAddr) -> bool {
        self.overlay.iter().any(|overlay| overlay.contains(&address))
    }

    /// Returns how many names there are, expired ones included.
    pub fn len(&self) -> usize {
        self.forward.len()
    }

    /// Tells whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.forward.is_empty()
    }

    /// Returns the domain that systemd-resolved and people know, without dots at its ends.
    pub fn domain(&self) -> Option<String> {
        self.domain.as_ref().map(|name| name.to_ascii().trim_end_matches('.').to_owned())
    }
}

/// Returns what has not ended, each once, with how many seconds an answer may be kept.
fn live<T: PartialEq>(entries: &[(T, Deadline)], now: Now) -> Vec<(&T, u32)> {
    let mut found: Vec<(&T, u32)> = Vec::new();
    for (what, until) in entries.iter().filter(|(_, until)| !until.has_passed(now)) {
        let ttl = ttl(*until, now);
        match found.iter_mut().find(|(known, _)| *known == what) {
            Some((_, longest)) => *longest = (*longest).max(ttl),
            None => found.push((what, ttl)),
        }
    }
    found
}

/// What to do with a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Answer with these bytes.
    Reply(Vec<u8>),
    /// Ask the machine's former servers.
    Forward,
    /// Not a query: drop and count.
    Ignore,
}

/// How a query came, and so how long its answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// A stream with lengths, RFC 1035 §4.2.2.
    Tcp,
}

/// Decides about one query. Never panics, whatever the bytes.
pub fn answer(names: &Names, query: &[u8], transport: Transport, now: Now) -> Action {
    let Ok(message) = Message::from_vec(query) else {
        return unreadable(query);
    };
    if message.metadata.message_type != MessageType::Query {
        return Action::Ignore;
    }
    let (Some(question), None) = (message.queries.first(), message.queries.get(1)) else {
        return reply(&message, ResponseCode::FormErr, Vec::new(), None, transport);
    };
    if message.metadata.op_code != OpCode::Query {
        return reply(&message, ResponseCode::NotImp, Vec::new(), None, transport);
    }
    let mut name = question.name().to_lowercase();
    name.set_fqdn(true);
    let kind = question.query_type();
    let any_class = matches!(question.query_class(), DNSClass::IN | DNSClass::ANY);
    if let Some(domain) = names.domain.as_ref().filter(|domain| domain.zone_of(&name)) {
        let known = names.forward.get(&name).filter(|_| any_class).map(|entries| live(entries, now));
        let soa = Some(domain.clone());
        return match known.filter(|addresses| !addresses.is_empty()) {
            Some(addresses) => {
                let record = |address: &IpAddr| match (address, kind) {
                    (IpAddr::V4(address), RecordType::A | RecordType::ANY) => Some(RData::A((*address).into())),
                    (IpAddr::V6(address), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA((*address).into())),
                    _ => None,
                };
                let answers: Vec<Record> = addresses
                    .into_iter()
                    .filter_map(|(address, ttl)| Some((record(address)?, ttl)))
                    .map(|(data, ttl)| Record::from_rdata(question.name().clone(), ttl, data))
                    .collect();
                reply(&message, ResponseCode::NoError, answers, soa, transport)
            }
            // The domain itself, and a name that only has names below it, exist without records (RFC 8020).
            None if name == *domain
                || names
                    .forward
                    .iter()
                    .any(|(below, entries)| name.zone_of(below) && !live(entries, now).is_empty()) =>
            {
                reply(&message, ResponseCode::NoError, Vec::new(), soa, transport)
            }
            None => reply(&message, ResponseCode::NXDomain, Vec::new(), soa, transport),
        };
    }
    if let Ok(prefix) = name.parse_arpa_name()
        && names.overlay.iter().any(|overlay| overlay.contains(&prefix))
    {
        let whole = prefix.prefix_len() == prefix.max_prefix_len();
        let known = names.reverse.get(&prefix.addr()).filter(|_| whole && any_class);
        let known = known.and_then(|entries| live(entries, now).into_iter().next());
        return match (known, kind) {
            (Some((target, ttl)), RecordType::PTR | RecordType::ANY) => {
                let data = RData::PTR(PTR(target.clone()));
                let record = Record::from_rdata(question.name().clone(), ttl, data);
                reply(&message, ResponseCode::NoError, vec![record], Some(name), transport)
            }
            (Some(_), _) => reply(&message, ResponseCode::NoError, Vec::new(), Some(name), transport),
            (None, _) if !whole => reply(&message, ResponseCode::NoError, Vec::new(), Some(name), transport),
            (None, _) => reply(&message, ResponseCode::NXDomain, Vec::new(), Some(name), transport),
        };
    }
    Action::Forward
}

/// Answers `SERVFAIL` to a query that could not be forwarded; nothing to what is no query.
pub(super) fn server_failure(query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let message = Message::from_vec(query).ok()?;
    match reply(&message, ResponseCode::ServFail, Vec::new(), None, transport) {
        Action::Reply(bytes) => Some(bytes),
        Action::Forward | Action::Ignore => None,
    }
}

/// A query whose header can be read gets `FORMERR`; answers and shorter bytes get nothing.
fn unreadable(query: &[u8]) -> Action {
    match query {
        [high, low, flags, _, _, _, _, _, _, _, _, _, ..] if flags & 0x80 == 0 => {
            let message = Message::error_msg(u16::from_be_bytes([*high, *low]), OpCode::Query, ResponseCode::FormErr);
            message.to_vec().map_or(Action::Ignore, Action::Reply)
        }
        _ => Action::Ignore,
    }
}

fn ttl(until: Deadline, now: Now) -> u32 {
    u32::try_from(until.remaining(now).as_secs().min(MAX_TTL_SECONDS)).unwrap_or(0)
}

fn reply(
    query: &Message,
    code: ResponseCode,
    answers: Vec<Record>,
    zone: Option<Name>,
    transport: Transport,
) -> Action {
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata.authoritative = zone.is_some();
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.add_queries(query.queries.iter().cloned());
    if answers.is_empty()
        && let Some(zone) = zone
    {
        // A negative answer may be kept as long as its SOA says (RFC 2308 §5): not long, since access may begin.
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 60, 60, 60, 1);
        response.add_authority(Record::from_rdata(zone, 1, RData::SOA(soa)));
    }
    response.add_answers(answers);
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_BYTES as u16);
        response.set_edns(edns);
    }
    let limit = match transport {
        Transport::Udp if query.edns.is_some() => {
            usize::from(query.max_payload()).clamp(PLAIN_UDP_BYTES, MAX_UDP_BYTES)
        }
        Transport::Udp => PLAIN_UDP_BYTES,
        Transport::Tcp => usize::from(u16::MAX),
    };
    match response.to_vec() {
        Ok(bytes) if bytes.len() <= limit => Action::Reply(bytes),
        Ok(_) => response.truncate().to_vec().map_or(Action::Ignore, Action::Reply),
        Err(_) => Action::Ignore,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use postern_common::time::{Monotonic, WallTime};
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Now {
        Now { monotonic: Monotonic::from_millis(seconds * 1000), wall: WallTime::from_millis(seconds as i64 * 1000) }
    }

    fn names() -> Names {
        let until = |seconds| Deadline { monotonic: at(seconds).monotonic, wall: WallTime::NEVER };
        let entry = |name: &str, addresses: &[&str], seconds| NameEntry {
            name: name.into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            until: until(seconds),
        };
        let overlay = vec!["fd5a::/48".parse().unwrap(), "100.64.0.0/16".parse().unwrap()];
        Names::new(
            "internal",
            overlay,
            [
                entry("payroll-app", &["100.64.0.9", "fd5a::9"], 100),
                entry("wiki.eu", &["100.64.0.8"], 100),
                entry(
                    "wide",
                    &(0..100)
                        .map(|n| format!("fd5a::{n}"))
                        .collect::<Vec<_>>()
                        .iter()
                        .map(String::as_str)
                        .collect::<Vec<_>>(),
                    100,
                ),
            ],
        )
    }

    fn ask(name: &str, kind: RecordType, now: Now) -> Option<Message> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        match answer(&names(), &message.to_vec().unwrap(), Transport::Udp, now) {
            Action::Reply(bytes) => {
                let reply = Message::from_vec(&bytes).unwrap();
                assert_eq!(reply.metadata.id, message.metadata.id);
                assert_eq!(reply.queries, message.queries);
                Some(reply)
            }
            Action::Forward => None,
            Action::Ignore => panic!("a query was ignored"),
        }
    }

    #[test]
    fn only_entitled_names_of_the_domain_exist_and_nobody_else_is_asked_for_the_others() {
        use ResponseCode::{NXDomain, NoError};
        for (name, kind, code, answers) in [
            ("payroll-app.internal.", RecordType::A, NoError, 1),
            ("PayRoll-App.Internal.", RecordType::AAAA, NoError, 1),
            ("payroll-app.internal.", RecordType::ANY, NoError, 2),
            ("payroll-app.internal.", RecordType::MX, NoError, 0),
            ("wiki.eu.internal.", RecordType::AAAA, NoError, 0),
            ("eu.internal.", RecordType::A, NoError, 0),
            ("internal.", RecordType::A, NoError, 0),
            ("git.internal.", RecordType::A, NXDomain, 0),
            ("x.payroll-app.internal.", RecordType::A, NXDomain, 0),
            ("9.0.64.100.in-addr.arpa.", RecordType::PTR, NoError, 1),
            ("7.0.64.100.in-addr.arpa.", RecordType::PTR, NXDomain, 0),
            ("0.64.100.in-addr.arpa.", RecordType::PTR, NoError, 0),
        ] {
            let reply = ask(name, kind, at(0)).unwrap_or_else(|| panic!("{name} was forwarded"));
            assert_eq!((reply.metadata.response_code, reply.answers.len()), (code, answers), "{name} {kind}");
            assert_eq!(reply.authorities.len(), usize::from(answers == 0), "a negative answer carries its SOA: {name}");
        }
        for name in ["example.com.", "internal.example.", "xinternal.", "9.0.65.100.in-addr.arpa.", "."] {
            assert!(ask(name, RecordType::A, at(0)).is_none(), "{name} is not ours");
        }
    }

    #[test]
    fn a_name_is_gone_the_moment_its_entitlement_is() {
        let code = |now| ask("payroll-app.internal.", RecordType::A, now).unwrap().metadata.response_code;
        assert_eq!(code(at(99)), ResponseCode::NoError);
        assert_eq!(code(at(100)), ResponseCode::NXDomain);
        let ttl = |now| ask("payroll-app.internal.", RecordType::A, now).unwrap().answers[0].ttl;
        assert_eq!((ttl(at(0)), ttl(at(98))), (5, 2), "nobody keeps an answer longer than it holds");
    }

    #[test]
    fn another_entitlement_to_the_same_name_or_machine_keeps_nothing_alive() {
        let entry = |name: &str, address: &str, seconds| NameEntry {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            until: Deadline { monotonic: at(seconds).monotonic, wall: WallTime::NEVER },
        };
        let entries = [
            entry("app", "100.64.0.1", 10),
            entry("app", "100.64.0.2", 100),
            entry("old", "100.64.0.3", 10),
            entry("new", "100.64.0.3", 100),
        ];
        let names = Names::new("internal", vec!["100.64.0.0/16".parse().unwrap()], entries);
        let answers = |name: &str, kind, now| {
            let mut message = Message::query();
            message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
            let Action::Reply(bytes) = answer(&names, &message.to_vec().unwrap(), Transport::Udp, now) else {
                panic!()
            };
            Message::from_vec(&bytes).unwrap().answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(answers("app.internal.", RecordType::A, at(9)).len(), 2);
        assert_eq!(answers("app.internal.", RecordType::A, at(10)), ["100.64.0.2"]);
        assert!(answers("old.internal.", RecordType::A, at(10)).is_empty());
        assert_eq!(answers("3.0.64.100.in-addr.arpa.", RecordType::PTR, at(10)), ["new.internal."]);
    }

    #[test]
    fn shut_doors_resolve_nothing_and_ask_nobody_else() {
        for name in ["payroll-app.internal.", "git.internal.", "9.0.64.100.in-addr.arpa."] {
            let mut message = Message::query();
            message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::ANY));
            let query = message.to_vec().unwrap();
            let Action::Reply(bytes) = answer(&names().without_entries(), &query, Transport::Udp, at(0)) else {
                panic!("{name} was asked elsewhere")
            };
            assert_eq!(Message::from_vec(&bytes).unwrap().metadata.response_code, ResponseCode::NXDomain, "{name}");
        }
    }

    #[test]
    fn an_answer_that_does_not_fit_says_so() {
        let reply = ask("wide.internal.", RecordType::AAAA, at(0)).unwrap();
        assert!(reply.metadata.truncation && reply.answers.is_empty());
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii("wide.internal.").unwrap(), RecordType::AAAA));
        let Action::Reply(bytes) = answer(&names(), &message.to_vec().unwrap(), Transport::Tcp, at(0)) else {
            panic!()
        };
        assert_eq!(Message::from_vec(&bytes).unwrap().answers.len(), 100);
    }

    #[test]
    fn what_is_no_query_is_refused_or_ignored() {
        let mut message = Message::query();
        let bytes = |message: &Message| message.to_vec().unwrap();
        let code = |bytes: &[u8]| match answer(&names(), bytes, Transport::Udp, at(0)) {
            Action::Reply(bytes) => Message::from_vec(&bytes).unwrap().metadata.response_code,
            other => panic!("{other:?}"),
        };
        assert_eq!(code(&bytes(&message)), ResponseCode::FormErr, "no question");
        message.add_query(Query::query(Name::from_ascii("a.internal.").unwrap(), RecordType::A));
        assert_eq!(answer(&names(), &bytes(&message.clone().into_response()), Transport::Udp, at(0)), Action::Ignore);
        let mut update = message.clone();
        update.metadata.op_code = OpCode::Update;
        assert!(matches!(code(&bytes(&update)), ResponseCode::NotImp | ResponseCode::FormErr));
        message.add_query(Query::query(Name::from_ascii("b.internal.").unwrap(), RecordType::A));
        assert_eq!(code(&bytes(&message)), ResponseCode::FormErr, "two questions");
        assert_eq!(answer(&names(), b"short", Transport::Udp, at(0)), Action::Ignore);
        assert_eq!(code(&[0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0]), ResponseCode::FormErr, "questions that are not there");
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_no_answer_is_longer_than_a_datagram(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Action::Reply(reply) = answer(&names(), &bytes, Transport::Udp, at(0)) {
                prop_assert!(reply.len() <= MAX_UDP_BYTES);
            }
        }

        #[test]
        fn a_broken_query_does_not_panic(at_byte in 0_usize..40, value: u8) {
            let mut message = Message::query();
            message.add_query(Query::query(Name::from_ascii("payroll-app.internal.").unwrap(), RecordType::A));
            let mut bytes = message.to_vec().unwrap();
            let position = at_byte % bytes.len();
            bytes[position] = value;
            let _ = answer(&names(), &bytes, Transport::Udp, at(0));
        }
    }
}
