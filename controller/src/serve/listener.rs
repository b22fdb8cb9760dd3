//! Accepting connections: limits, TLS, HTTP/1.1.
//!
//! ```text
//! TCP accept --limits--> (from a trusted proxy: PROXY header --limits-->) TLS 1.3 (10 s) --> HTTP/1.1 (heads within 10 s) --> router: pages, or the upgrade to a stream
//! ```
//!
//! Every connection holds a [`ConnectionPermit`] from accept to end, an upgraded one included. What exceeds the limits is
//! closed before any cryptography, so a flood costs accept and close. IPv6 addresses count by their /64, and by their /48, which
//! one customer can hold too: for [`SITES`] times the share.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{Request, Response, StatusCode},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::proxy_protocol::{self, TrustedProxies};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the head of a request may take, the idle time between requests included.
const HEAD: Duration = Duration::from_secs(10);
/// How long a request may take, its body included. An upgraded stream is no request any more.
const REQUEST: Duration = Duration::from_secs(60);
/// The longest head of a request, in bytes.
const HEAD_BYTES: usize = 32 << 10;
/// How many times the share of one address the networks of one IPv6 /48 have together.
const SITES: usize = 8;
/// How long connections may take to finish when the controller stops.
const DRAIN: Duration = Duration::from_secs(5);

tokio::task_local! {
    /// The address from which the request comes that this task answers.
    pub static REMOTE: IpAddr;
}

/// What the listeners count.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections closed at once because of a limit.
    pub refused: AtomicU64,
    /// Handshakes that failed or took too long.
    pub handshakes_failed: AtomicU64,
}

/// The most connections at a time.
#[derive(Debug)]
pub struct Limits {
    total: usize,
    per_address: usize,
    open: Mutex<Open>,
    /// What was counted.
    pub counters: Counters,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    /// By the addresses and networks of [`counted`]: at most two entries a connection.
    by_network: HashMap<IpNet, usize>,
}

impl Limits {
    /// Makes limits: `total` connections at a time, `per_address` from one address.
    pub fn new(total: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self { total, per_address, open: Mutex::default(), counters: Counters::default() })
    }

    /// Takes a place for a connection from `address`; `None` if there is none left.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Option<ConnectionPermit> {
        self.take(counted(address))
    }

    /// Takes a place for a connection from a trusted proxy, whose client is not known yet; `None` if there is none left.
    pub fn admit_proxied(self: &Arc<Self>) -> Option<ConnectionPermit> {
        self.take(vec![])
    }

    fn take(self: &Arc<Self>, from: Vec<Share>) -> Option<ConnectionPermit> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |share: &Share| {
            let here = open.by_network.get(&share.network).copied().unwrap_or(0);
            here >= self.per_address.saturating_mul(share.times)
        };
        if open.total >= self.total || from.iter().any(full) {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        open.total += 1;
        for share in &from {
            *open.by_network.entry(share.network).or_insert(0) += 1;
        }
        self.counters.accepted.fetch_add(1, Ordering::Relaxed);
        Some(ConnectionPermit(Arc::new(Place { limits: Arc::clone(self), from })))
    }

    /// Returns how many connections are open.
    pub fn open(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

/// A network whose connections are counted together, and how many times the share of one address it has.
#[derive(Debug, Clone, Copy)]
struct Share {
    network: IpNet,
    times: usize,
}

/// Returns the networks by which a connection is counted: an IPv6 /64 belongs to one site, a /48 mostly to one customer.
fn counted(address: IpAddr) -> Vec<Share> {
    let network = |length, times| {
        let network = IpNet::new_assert(address.to_canonical(), length).trunc();
        Share { network, times }
    };
    match address.to_canonical() {
        IpAddr::V4(_) => vec![network(32, 1)],
        IpAddr::V6(_) => vec![network(64, 1), network(48, SITES)],
    }
}

/// A connection's place among the limits; the place is free when the last clone is dropped.
#[derive(Debug, Clone)]
#[expect(dead_code, reason = "held for its drop")]
pub struct ConnectionPermit(Arc<Place>);

#[derive(Debug)]
struct Place {
    limits: Arc<Limits>,
    from: Vec<Share>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.limits.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.total -= 1;
        for Share { network, .. } in &self.from {
            if let Some(here) = open.by_network.get_mut(network) {
                *here -= 1;
                if *here == 0 {
                    open.by_network.remove(network);
                }
            }
        }
    }
}

/// Binds a TCP port; an IPv6 wildcard takes IPv4 too.
///
/// # Errors
/// The system's answer.
pub fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(1_024)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// Waits until the controller is told to stop.
pub async fn told(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

/// Accepts connections until `stop` changes, then lets the open ones finish for a moment.
pub async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    router: Router,
    limits: Arc<Limits>,
    proxies: Arc<TrustedProxies>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = told(&mut stop) => break,
        };
        match accepted {
            Ok((tcp, remote)) => {
                let proxied = proxies.contain(remote.ip());
                let admitted = if proxied { limits.admit_proxied() } else { limits.admit(remote.ip()) };
                let Some(permit) = admitted else { continue };
                let (tls, router, limits, stop) = (tls.clone(), router.clone(), Arc::clone(&limits), stop.clone());
                tokio::spawn(async move {
                    let known = match proxied {
                        true => introduced(tcp, remote, &limits, permit).await,
                        false => Some((tcp, remote, permit)),
                    };
                    if let Some((tcp, remote, permit)) = known {
                        connection(tcp, remote, tls, router, limits, permit, stop).await;
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: let some connections end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let drained = async {
        while limits.open() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    drop(timeout(DRAIN, drained).await);
}

/// Learns from a trusted proxy whose connection this is, and counts it by that address.
async fn introduced(
    mut tcp: TcpStream,
    proxy: SocketAddr,
    limits: &Arc<Limits>,
    permit: ConnectionPermit,
) -> Option<(TcpStream, SocketAddr, ConnectionPermit)> {
    let Ok(Ok(client)) = timeout(HANDSHAKE, proxy_protocol::read(&mut tcp)).await else {
        limits.counters.handshakes_failed.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(%proxy, "a trusted proxy did not say by the PROXY protocol whose connection it passes on");
        return None;
    };
    match client {
        Some(client) => limits.admit(client.ip()).map(|permit| (tcp, client, permit)),
        None => Some((tcp, proxy, permit)),
    }
}

async fn connection(
    tcp: TcpStream,
    remote: SocketAddr,
    tls: TlsAcceptor,
    router: Router,
    limits: Arc<Limits>,
    permit: ConnectionPermit,
    mut stop: watch::Receiver<bool>,
) {
    drop(tcp.set_nodelay(true));
    drop(socket2::SockRef::from(&tcp).set_keepalive(true));
    let Ok(Ok(stream)) = timeout(HANDSHAKE, tls.accept(tcp)).await else {
        limits.counters.handshakes_failed.fetch_add(1, Ordering::Relaxed);
        return;
    };
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, permit) = (router.clone(), permit.clone());
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(remote));
            request.extensions_mut().insert(permit);
            let answer = timeout(REQUEST, REMOTE.scope(remote.ip(), router.oneshot(request))).await;
            Ok::<_, std::convert::Infallible>(match answer {
                Ok(Ok(response)) => response,
                Err(_) => plain(StatusCode::REQUEST_TIMEOUT),
            })
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = told(&mut stop) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%remote, %error, "connection ended");
    }
}

fn plain(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_every_place_and_places_come_back() {
        let limits = Limits::new(3, 2);
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let first = limits.admit(one).unwrap();
        let _second = limits.admit(one).unwrap();
        assert!(limits.admit(one).is_none());
        assert!(limits.admit("::ffff:192.0.2.1".parse().unwrap()).is_none(), "the same address in other clothes");
        let other = limits.admit("192.0.2.2".parse().unwrap()).unwrap();
        assert!(limits.admit("192.0.2.3".parse().unwrap()).is_none(), "three in all");
        drop((first, other));
        assert!(limits.admit(one).is_some());
        assert_eq!(limits.counters.refused.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn what_comes_through_a_proxy_counts_by_its_client() {
        let limits = Limits::new(3, 1);
        let proxied = [limits.admit_proxied().unwrap(), limits.admit_proxied().unwrap()];
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        let first = limits.admit(client).unwrap();
        assert!(limits.admit_proxied().is_none(), "three in all");
        drop(proxied);
        assert!(limits.admit(client).is_none(), "one of each client");
        drop(first);
        assert_eq!(limits.open(), 0);
    }

    #[test]
    fn one_ipv6_site_counts_as_one() {
        let limits = Limits::new(10, 1);
        let _held = limits.admit("2001:db8::1".parse().unwrap()).unwrap();
        assert!(limits.admit("2001:db8::ffff:2".parse().unwrap()).is_none());
        assert!(limits.admit("2001:db8:0:1::1".parse().unwrap()).is_some());
    }

    #[test]
    fn one_ipv6_customer_cannot_take_every_place_with_its_many_networks() {
        let limits = Limits::new(1_000, 2);
        let customer = |site: u16| IpAddr::from([0x2001, 0xdb8, 1, site, 0, 0, 0, 1]);
        let held: Vec<_> = (0..1_000).filter_map(|site| limits.admit(customer(site))).collect();
        assert_eq!(held.len(), 2 * SITES);
        assert!(limits.admit("2001:db8:2::1".parse().unwrap()).is_some(), "another customer has a share of its own");
        drop(held);
        assert!(limits.open.lock().unwrap().by_network.is_empty());
        assert!(limits.admit(customer(999)).is_some());
    }
}
