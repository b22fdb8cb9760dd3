//! The sockets of the resolver: UDP and TCP on one address, and a fresh socket for every query that is forwarded.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use postern_common::time::Now;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinHandle,
    time::timeout,
};

use super::{
    answer::{Action, Names, Transport, answer, server_failure},
    foreign::{self, Foreign},
};

/// Queries that may wait for an answer from elsewhere at once; more are answered `SERVFAIL`.
const MAX_FORWARDED: usize = 256;
/// TCP connections at once; more are closed.
const MAX_TCP_CONNECTIONS: usize = 32;
/// How long one former server may take.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a TCP client may be silent.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// The most former servers that are asked for one query.
const MAX_UPSTREAM: usize = 3;
/// Length of the DNS header, RFC 1035 §4.1.1.
const HEADER_BYTES: usize = 12;

/// Reads both clocks.
pub type Clock = Arc<dyn Fn() -> Now + Send + Sync>;

/// What the resolver did, since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Counters {
    /// Queries answered from the names, positively or not.
    pub answered: u64,
    /// Queries forwarded.
    pub forwarded: u64,
    /// Forwarded queries that nobody answered in time.
    pub unanswered: u64,
    /// Queries refused because too many were waiting.
    pub overloaded: u64,
    /// Records of other servers' answers that led into the overlay, and were left out.
    pub withheld: u64,
    /// Messages that were no queries.
    pub ignored: u64,
}

/// What keeps the resolver from listening.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// The address is taken or not ours.
    #[error("cannot listen for names on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, Default)]
struct AtomicCounters {
    answered: AtomicU64,
    forwarded: AtomicU64,
    unanswered: AtomicU64,
    overloaded: AtomicU64,
    withheld: AtomicU64,
    ignored: AtomicU64,
}

struct Shared {
    names: Arc<ArcSwap<Names>>,
    upstream: ArcSwap<Vec<SocketAddr>>,
    clock: Clock,
    waiting: Semaphore,
    counters: AtomicCounters,
}

/// The running resolver; dropping it stops it.
pub struct Resolver {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Resolver({})", self.address)
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Resolver {
    /// Listens on `address` and answers from `names`, which the agent replaces as its grants change; asks `upstream`
    /// for everything else.
    ///
    /// # Errors
    /// Fails when the address cannot be bound for UDP and TCP.
    pub async fn listen(
        address: SocketAddr,
        names: Arc<ArcSwap<Names>>,
        upstream: Vec<SocketAddr>,
        clock: Clock,
    ) -> Result<Self, ResolverError> {
        let failed = |source| ResolverError::Bind { address, source };
        let udp = UdpSocket::bind(address).await.map_err(failed)?;
        let address = udp.local_addr().map_err(failed)?;
        let tcp = TcpListener::bind(address).await.map_err(failed)?;
        let shared = Arc::new(Shared {
            names,
            upstream: ArcSwap::default(),
            clock,
            waiting: Semaphore::new(MAX_FORWARDED),
            counters: AtomicCounters::default(),
        });
        let tasks = [tokio::spawn(serve_udp(udp, shared.clone())), tokio::spawn(serve_tcp(tcp, shared.clone()))];
        let resolver = Self { address, shared, tasks };
        resolver.set_upstream(upstream);
        Ok(resolver)
    }

    /// Returns the address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the servers that are asked for everything else; at most three, never ourselves.
    pub fn set_upstream(&self, mut upstream: Vec<SocketAddr>) {
        upstream.retain(|server| *server != self.address);
        upstream.truncate(MAX_UPSTREAM);
        self.shared.upstream.store(Arc::new(upstream));
    }

    /// Returns what it did.
    pub fn counters(&self) -> Counters {
        let counters = &self.shared.counters;
        Counters {
            answered: counters.answered.load(Relaxed),
            forwarded: counters.forwarded.load(Relaxed),
            unanswered: counters.unanswered.load(Relaxed),
            overloaded: counters.overloaded.load(Relaxed),
            withheld: counters.withheld.load(Relaxed),
            ignored: counters.ignored.load(Relaxed),
        }
    }
}

impl Shared {
    fn count(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    /// Answers at once, or tells that the query has to be forwarded.
    fn decide(&self, query: &[u8], transport: Transport) -> Action {
        let action = answer(&self.names.load(), query, transport, (self.clock)());
        match action {
            Action::Reply(_) => self.count(&self.counters.answered),
            Action::Forward => self.count(&self.counters.forwarded),
            Action::Ignore => self.count(&self.counters.ignored),
        }
        action
    }

    /// Asks the former servers in turn. The answer carries the query's own identifier.
    async fn forward(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let Ok(_permit) = self.waiting.try_acquire() else {
            self.count(&self.counters.overloaded);
            return server_failure(query, transport);
        };
        let upstream = self.upstream.load_full();
        for server in upstream.iter() {
            let asked = match transport {
                Transport::Udp => timeout(UPSTREAM_TIMEOUT, ask_udp(*server, query)).await,
                Transport::Tcp => timeout(UPSTREAM_TIMEOUT, ask_tcp(*server, query)).await,
            };
            if let Ok(Ok(mut response)) = asked {
                match foreign::judge(&self.names.load(), &response) {
                    Foreign::Clean => {}
                    Foreign::Without(records, rest) => {
                        self.counters.withheld.fetch_add(records as u64, Relaxed);
                        response = rest;
                    }
                    Foreign::Unreadable => match cut_short(query, &response) {
                        Some(asked_again) => response = asked_again,
                        None => continue,
                    },
                }
                response[..2].copy_from_slice(&query[..2]);
                return Some(response);
            }
        }
        self.count(&self.counters.unanswered);
        server_failure(query, transport)
    }
}

async fn serve_udp(socket: UdpSocket, shared: Arc<Shared>) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; 4096];
    loop {
        // An error here is an ICMP error about an earlier answer of ours: it ends nothing.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let query = &buffer[..length];
        match shared.decide(query, Transport::Udp) {
            Action::Reply(response) => {
                let _ = socket.send_to(&response, client).await;
            }
            Action::Ignore => {}
            Action::Forward => {
                let (socket, shared, query) = (socket.clone(), shared.clone(), query.to_vec());
                // At most MAX_FORWARDED of these wait; the others answer at once.
                tokio::spawn(async move {
                    if let Some(response) = shared.forward(&query, Transport::Udp).await {
                        let _ = socket.send_to(&response, client).await;
                    }
                });
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let connections = Arc::new(Semaphore::new(MAX_TCP_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await; // out of file descriptors: let others close some
            continue;
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else {
            shared.count(&shared.counters.overloaded);
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let _ = serve_connection(stream, &shared).await;
        });
    }
}

async fn serve_connection(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let query = timeout(TCP_IDLE, read_message(&mut stream)).await??;
        let response = match shared.decide(&query, Transport::Tcp) {
            Action::Reply(response) => Some(response),
            Action::Forward => shared.forward(&query, Transport::Tcp).await,
            Action::Ignore => return Ok(()),
        };
        match response {
            Some(response) => timeout(TCP_IDLE, write_message(&mut stream, &response)).await??,
            None => return Ok(()),
        }
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let framed = [&length.to_be_bytes(), message].concat();
    stream.write_all(&framed).await
}

/// Gives the query an identifier that nobody off the path can guess.
fn with_random_identifier(query: &[u8]) -> io::Result<Vec<u8>> {
    let mut query = query.to_vec();
    let identifier = query.get_mut(..2).ok_or(io::ErrorKind::InvalidData)?;
    getrandom::fill(identifier).map_err(|_| io::Error::other("no randomness"))?;
    Ok(query)
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?; // the kernel draws the port at random
    socket.connect(server).await?; // so that only this server's datagrams arrive
    let query = with_random_identifier(query)?;
    socket.send(&query).await?;
    let mut response = vec![0; 65_535];
    loop {
        let length = socket.recv(&mut response).await?;
        if is_answer_to(&query, &response[..length]) {
            response.truncate(length);
            return Ok(response);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let query = with_random_identifier(query)?;
    write_message(&mut stream, &query).await?;
    let response = read_message(&mut stream).await?;
    if is_answer_to(&query, &response) { Ok(response) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Tells whether `response` is a response, with the identifier and the question of `query`.
pub(super) fn is_answer_to(query: &[u8], response: &[u8]) -> bool {
    let Some(end) = question_end(query) else { return false };
    response.len() >= HEADER_BYTES
        && response[..2] == query[..2]
        && response[2] & 0x80 != 0
        // A server that cannot read the query may leave its question out (RFC 1035 §4.1.1).
        && (response[4..6] == [0, 0] || response.get(HEADER_BYTES..end).is_some_and(|question| {
            question.eq_ignore_ascii_case(&query[HEADER_BYTES..end])
        }))
}

/// Keeps of an answer that was cut off in the middle only that it was: the client asks again by TCP (RFC 2181 §9).
fn cut_short(query: &[u8], response: &[u8]) -> Option<Vec<u8>> {
    const TRUNCATED: u8 = 0x02;
    let mut head = response.get(..question_end(query)?)?.to_vec();
    let truncated = head[2] & TRUNCATED != 0 && head[4..6] == [0, 1];
    head[6..HEADER_BYTES].fill(0);
    truncated.then_some(head)
}

/// Returns where the first question ends. Questions of queries are not compressed; one that is, is not matched.
fn question_end(query: &[u8]) -> Option<usize> {
    let mut at = HEADER_BYTES;
    loop {
        match *query.get(at)? {
            0 => return query.get(..at + 5).map(|_| at + 5),
            length if length < 64 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{Message, MessageType, OpCode, Query, ResponseCode},
        rr::{Name, RData, Record, RecordType},
    };
    use postern_common::time::{Monotonic, WallTime};

    use super::*;

    fn query() -> Message {
        let mut query = Message::new(99, MessageType::Query, OpCode::Query);
        query.add_queries([Query::query(Name::from_ascii("evil.example.").unwrap(), RecordType::A)]);
        query
    }

    /// Asks a resolver whose former server answers every query with what `answer` makes of it.
    async fn asked_through(answer: impl Fn(Message) -> Vec<u8> + Send + 'static) -> (Message, Counters) {
        let former = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let upstream = former.local_addr().unwrap();
        let former = tokio::spawn(async move {
            let mut buffer = [0; 512];
            let (length, from) = former.recv_from(&mut buffer).await.unwrap();
            let heard = Message::from_vec(&buffer[..length]).unwrap();
            former.send_to(&answer(heard), from).await.unwrap();
        });
        let overlay = vec!["100.64.0.0/16".parse().unwrap()];
        let names = Arc::new(ArcSwap::from_pointee(Names::new("internal", overlay, [])));
        let clock: Clock = Arc::new(|| Now { monotonic: Monotonic::default(), wall: WallTime::default() });
        let resolver = Resolver::listen("127.0.0.1:0".parse().unwrap(), names, vec![upstream], clock).await.unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(&query().to_vec().unwrap(), resolver.address()).await.unwrap();
        let mut buffer = [0; 512];
        let length = timeout(Duration::from_secs(20), client.recv(&mut buffer)).await.unwrap().unwrap();
        former.await.unwrap();
        (Message::from_vec(&buffer[..length]).unwrap(), resolver.counters())
    }

    fn answers(query: &Message, addresses: &[[u8; 4]]) -> Message {
        let mut response = Message::response(query.metadata.id, OpCode::Query);
        response.add_queries(query.queries.iter().cloned());
        let name = query.queries[0].name().clone();
        let record =
            |address: &[u8; 4]| Record::from_rdata(name.clone(), 60, RData::A(Ipv4Addr::from(*address).into()));
        response.add_answers(addresses.iter().map(record));
        response
    }

    #[tokio::test]
    async fn a_former_servers_answer_comes_without_overlay_addresses() {
        let both = |query: Message| answers(&query, &[[192, 0, 2, 1], [100, 64, 3, 4]]).to_vec().unwrap();
        let (answer, counters) = asked_through(both).await;
        assert_eq!(answer.metadata.id, 99);
        let left: Vec<_> = answer.answers.iter().map(|record| record.data.clone()).collect();
        assert_eq!(left, [RData::A(Ipv4Addr::new(192, 0, 2, 1).into())]);
        assert_eq!((counters.forwarded, counters.withheld), (1, 1));
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_read_is_none_and_one_cut_short_is_asked_again_by_tcp() {
        let broken = |query: Message| {
            let mut bytes = answers(&query, &[[100, 64, 3, 4]]).to_vec().unwrap();
            bytes.pop();
            bytes
        };
        let (answer, counters) = asked_through(broken).await;
        assert_eq!((answer.metadata.response_code, counters.unanswered), (ResponseCode::ServFail, 1));
        let cut = move |query: Message| {
            let mut bytes = broken(query);
            bytes[2] |= 0x02;
            bytes
        };
        let (answer, _) = asked_through(cut).await;
        assert!(answer.metadata.truncation && answer.answers.is_empty());
        assert_eq!((answer.metadata.response_code, answer.queries), (ResponseCode::NoError, query().queries));
    }
}
