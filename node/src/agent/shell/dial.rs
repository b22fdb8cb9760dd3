//! Reaching the controller over TCP: every address of its name, IPv6 and IPv4 in turn, the next one begun while the one
//! before still hangs (Happy Eyeballs, RFC 8305 §5), first come first served.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

/// How long an attempt has before the next address is tried beside it, RFC 8305 §5.
const STAGGER: Duration = Duration::from_millis(250);
/// How long one address has.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(8);
/// How long the resolver has.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(6);
/// How many addresses of one name are tried.
const MAX_ADDRESSES: usize = 8;

/// Every address failed, or there is none.
#[derive(Debug)]
pub struct DialError {
    host: String,
    port: u16,
    tried: Vec<(SocketAddr, String)>,
    resolve: Option<String>,
}

impl std::error::Error for DialError {}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, tried, resolve } = self;
        match resolve {
            Some(why) => {
                write!(
                    f,
                    "the controller's name `{host}` cannot be resolved: {why}. Check the name, and this machine's DNS"
                )
            }
            None => {
                let tried: Vec<String> = tried.iter().map(|(address, why)| format!("{address} ({why})")).collect();
                write!(
                    f,
                    "the controller {host} cannot be reached on TCP port {port}; tried {}. Check that it runs and that no firewall is in between",
                    tried.join(", ")
                )
            }
        }
    }
}

/// Connects to the first address of `host` that answers.
///
/// # Errors
/// [`DialError`] with every address that was tried and why it failed.
pub async fn dial(host: &str, port: u16) -> Result<TcpStream, DialError> {
    let unresolved = |why: String| DialError { host: host.to_owned(), port, tried: vec![], resolve: Some(why) };
    let addresses: Vec<SocketAddr> = match host.parse::<IpAddr>() {
        Ok(address) => vec![SocketAddr::new(address, port)],
        Err(_) => timeout(RESOLVE_PATIENCE, tokio::net::lookup_host((host, port)))
            .await
            .map_err(|_| unresolved(format!("no answer within {} s", RESOLVE_PATIENCE.as_secs())))?
            .map_err(|error| unresolved(error.to_string()))?
            .collect(),
    };
    if addresses.is_empty() {
        return Err(unresolved("it has no address".into()));
    }
    race(interleave(addresses)).await.map_err(|tried| DialError { host: host.to_owned(), port, tried, resolve: None })
}

/// Orders addresses IPv6, IPv4, IPv6, ... so that a broken family costs one stagger.
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let (v6, v4): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    let longest = v6.len().max(v4.len());
    let mut ordered = Vec::new();
    for at in 0..longest {
        ordered.extend([v6.get(at), v4.get(at)].into_iter().flatten().copied());
    }
    ordered.truncate(MAX_ADDRESSES);
    ordered
}

async fn race(addresses: Vec<SocketAddr>) -> Result<TcpStream, Vec<(SocketAddr, String)>> {
    let mut waiting = addresses.into_iter();
    let mut running: JoinSet<(SocketAddr, io::Result<TcpStream>)> = JoinSet::new();
    let mut tried = Vec::new();
    let begin = |running: &mut JoinSet<_>, address: SocketAddr| {
        running.spawn(async move {
            let connected = match timeout(ADDRESS_PATIENCE, TcpStream::connect(address)).await {
                Ok(result) => result,
                Err(_) => Err(io::Error::other(format!("no answer within {} s", ADDRESS_PATIENCE.as_secs()))),
            };
            (address, connected)
        });
    };
    if let Some(first) = waiting.next() {
        begin(&mut running, first);
    }
    let mut next_at = Instant::now() + STAGGER;
    loop {
        tokio::select! {
            ended = running.join_next() => match ended {
                Some(Ok((_, Ok(stream)))) => return Ok(stream),
                Some(Ok((address, Err(error)))) => {
                    tried.push((address, plain(&error)));
                    if let Some(address) = waiting.next() {
                        begin(&mut running, address);
                        next_at = Instant::now() + STAGGER;
                    }
                }
                Some(Err(_)) => {} // a task that was aborted or panicked counts as no answer
                None => return Err(tried),
            },
            () = sleep_until(next_at), if waiting.len() > 0 => {
                if let Some(address) = waiting.next() {
                    begin(&mut running, address);
                }
                next_at = Instant::now() + STAGGER;
            }
        }
    }
}

fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::NetworkUnreachable => "network unreachable".into(),
        io::ErrorKind::HostUnreachable => "host unreachable".into(),
        io::ErrorKind::TimedOut => "no answer".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    }

    #[test]
    fn a_refused_address_does_not_keep_the_next_one_from_being_tried() {
        runtime().block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
            let good = listener.local_addr().expect("its address");
            let closed = {
                let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
                gone.local_addr().expect("its address")
            };
            let stream = race(vec![closed, good]).await.expect("connects");
            assert_eq!(stream.peer_addr().expect("an address"), good);
        });
    }

    #[test]
    fn the_error_names_every_address_and_what_to_do() {
        runtime().block_on(async {
            let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
            let port = gone.local_addr().expect("its address").port();
            drop(gone);
            let error = dial("127.0.0.1", port).await.expect_err("refused").to_string();
            assert!(error.contains(&format!("127.0.0.1:{port} (connection refused)")), "{error}");
            assert!(error.contains("firewall"), "{error}");
            let error = dial("no-such-name.invalid", 443).await.expect_err("no such name").to_string();
            assert!(error.contains("no-such-name.invalid"), "{error}");
        });
    }

    #[test]
    fn families_take_turns() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let ordered = interleave(vec![address("10.0.0.1:1"), address("10.0.0.2:1"), address("[fd00::1]:1")]);
        assert_eq!(ordered, [address("[fd00::1]:1"), address("10.0.0.1:1"), address("10.0.0.2:1")]);
    }
}
