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
    forward: HashMap<Name, (Vec<IpAddr>, Deadline)>,
    reverse: HashMap<IpAddr, (Name, Deadline)>,
}

impl Names {
    /// Makes the table: the domain (`internal`), the overlay's prefixes, and the names. Entries whose name is none in
    /// DNS are left out; of several entries with one name, all addresses count until the latest deadline.
    pub fn new(domain: &str, overlay: Vec<IpNet>, entries: impl IntoIterator<Item = NameEntry>) -> Self {
        let domain = Name::from_ascii(format!("{}.", domain.trim_matches('.'))).ok().map(|name| name.to_lowercase());
        let mut names = Self { domain, overlay, forward: HashMap::new(), reverse: HashMap::new() };
        let Some(domain) = names.domain.clone() else { return names };
        for entry in entries {
            let Ok(relative) = Name::from_ascii(&entry.name) else { continue };
            let Ok(name) = relative.append_domain(&domain) else { continue };
            let mut name = name.to_lowercase();
            name.set_fqdn(true);
            let known = names.forward.entry(name.clone()).or_insert_with(|| (Vec::new(), entry.until));
            known.1 = later(known.1, entry.until);
            for address in entry.addresses {
                if !known.0.contains(&address) {
                    known.0.push(address);
                }
                let back = names.reverse.entry(address).or_insert_with(|| (name.clone(), entry.until));
                back.1 = later(back.1, entry.until);
            }
        }
        names
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

fn later(a: Deadline, b: Deadline) -> Deadline {
    Deadline { monotonic: a.monotonic.max(b.monotonic), wall: a.wall.max(b.wall) }
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
        let known = names.forward.get(&name).filter(|(_, until)| any_class && !until.has_passed(now));
        let soa = Some(domain.clone());
        return match known {
            Some((addresses, until)) => {
                let ttl = ttl(*until, now);
                let record = |address: &IpAddr| match (address, kind) {
                    (IpAddr::V4(address), RecordType::A | RecordType::ANY) => Some(RData::A((*address).into())),
                    (IpAddr::V6(address), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA((*address).into())),
                    _ => None,
                };
                let answers: Vec<Record> = addresses
                    .iter()
                    .filter_map(record)
                    .map(|data| Record::from_rdata(question.name().clone(), ttl, data))
                    .collect();
                reply(&message, ResponseCode::NoError, answers, soa, transport)
            }
            // The domain itself, and a name that only has names below it, exist without records (RFC 8020).
            None if name == *domain
                || names.forward.iter().any(|(n, (_, u))| name.zone_of(n) && !u.has_passed(now)) =>
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
        let known = names.reverse.get(&prefix.addr()).filter(|(_, until)| whole && any_class && !until.has_passed(now));
        return match (known, kind) {
            (Some((target, until)), RecordType::PTR | RecordType::ANY) => {
                let data = RData::PTR(PTR(target.clone()));
                let record = Record::from_rdata(question.name().clone(), ttl(*until, now), data);
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
