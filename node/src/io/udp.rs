//! The WireGuard sockets: one for IPv4 and one for IPv6 on one port, on every underlay interface; with several workers a pair for
//! each, among which the kernel spreads the peers ([`UdpSockets::siblings`]).
//!
//! Runs of equal datagrams leave by one `UDP_SEGMENT` send; the kernel joins what arrives (`UDP_GRO`). Where an interface refuses
//! segmentation (`EIO`), or a datagram is longer than the path's MTU (`EMSGSIZE`, `EINVAL`), the run is sent one by one, and the
//! kernel fragments; the socket remembers `EIO` and stops asking.
//!
//! The outer header copies nothing from the inner one: DSCP and ECN of a protected flow are not for the network
//! between. Buffers are bounded ([`RECEIVE_BUFFER`], [`SEND_BUFFER`]): deep ones buy throughput with delay for everybody else.
//!
//! The local address to which an authenticated peer talks is the one that answers it ([`super::path::Sources`]), so that a
//! host with several interfaces does not answer from another door.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use postern_dataplane::packet::batch::UdpRun;
use socket2::{Domain, Protocol, Socket, Type};

use super::sys;

/// Bytes of each socket's receive buffer, as asked for (the kernel doubles it for its book-keeping). Whatever a bulk flow puts into it
/// keeps every other packet waiting: this is half a millisecond at several Gbit/s (`docs/decisions/0008-lanes.md`).
pub const RECEIVE_BUFFER: usize = 384 << 10;
/// Bytes of each socket's send buffer, as asked for.
pub const SEND_BUFFER: usize = 1 << 20;
/// Bytes of one receive: the longest that the kernel joins.
pub const MAX_RECEIVE: usize = 65_535;

/// Why the sockets cannot be opened, for the person at the machine.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// The port is taken.
    #[error(
        "UDP port {port} is in use by another program: stop that program, or choose another port with `listen_port` in node.toml"
    )]
    Occupied {
        /// The port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// Neither family works.
    #[error("cannot open a UDP socket on port {port}")]
    Open {
        /// The port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Whether to ask for GSO and GRO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Segmentation {
    /// Where the kernel has it.
    #[default]
    Offloaded,
    /// One datagram a call.
    Off,
}

/// What happened to the datagrams that were to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendCounters {
    /// Datagrams that the kernel took.
    pub sent: u64,
    /// Bytes that the kernel took.
    pub bytes: u64,
    /// Calls.
    pub calls: u64,
    /// Datagrams that found the socket's buffer full.
    pub full: u64,
    /// Datagrams that failed for another reason: no route, host unreachable.
    pub failed: u64,
    /// Runs that were sent one by one, because the kernel refused them as a whole.
    pub split: u64,
}

/// One family's socket.
#[derive(Debug)]
struct FamilySocket {
    door: Door,
    segmentation: Segmentation,
}

/// The receiving side of one socket; clones are the same one.
#[derive(Debug, Clone)]
pub struct Door(Arc<Socket>);

/// Whether a port is for one socket of a family alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Alone,
    WithSiblings,
}

/// Both families' sockets.
#[derive(Debug)]
pub struct UdpSockets {
    ipv4: Option<FamilySocket>,
    ipv6: Option<FamilySocket>,
    port: u16,
    counters: SendCounters,
}

/// A family of outer addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Datagrams that arrived together: `segment` bytes each, the last may be shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The sender.
    pub from: SocketAddr,
    /// The local address that they were sent to.
    pub to: Option<IpAddr>,
    /// Bytes in the buffer.
    pub length: usize,
    /// Bytes of each datagram but the last.
    pub segment: usize,
}

impl UdpSockets {
    /// Opens both families on `port`; with 0 the kernel chooses one for both. A machine without one family does without.
    ///
    /// # Errors
    /// [`UdpError`].
    pub fn bind(port: u16, segmentation: Segmentation) -> Result<Self, UdpError> {
        // With port 0 the second family may find the first one's port taken: then another is drawn.
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _attempt in 0..16 {
            match Self::bind_once(port, segmentation) {
                Ok(sockets) => return Ok(sockets),
                Err(error) => last = error,
            }
            if port != 0 || last.kind() != io::ErrorKind::AddrInUse {
                break;
            }
        }
        Err(match last.kind() {
            io::ErrorKind::AddrInUse => UdpError::Occupied { port, source: last },
            _other => UdpError::Open { port, source: last },
        })
    }

    fn bind_once(port: u16, segmentation: Segmentation) -> io::Result<Self> {
        let ipv6 = match open((Ipv6Addr::UNSPECIFIED, port).into(), segmentation, Sharing::Alone) {
            Ok(socket) => Some(socket),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(_no_ipv6) => None,
        };
        let bound = |socket: &FamilySocket| socket.door.0.local_addr().ok()?.as_socket().map(|a| a.port());
        let port = ipv6.as_ref().and_then(bound).unwrap_or(port);
        let ipv4 = match open((Ipv4Addr::UNSPECIFIED, port).into(), segmentation, Sharing::Alone) {
            Ok(socket) => Some(socket),
            Err(error) if ipv6.is_none() || error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(_no_ipv4) => None,
        };
        let port = ipv4.as_ref().and_then(bound).unwrap_or(port);
        Ok(Self { ipv4, ipv6, port, counters: SendCounters::default() })
    }

    /// Returns the port on which both families listen.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Returns the counters of what was sent.
    pub const fn counters(&self) -> &SendCounters {
        &self.counters
    }

    /// Returns a family's receiving side.
    pub fn door(&self, family: Family) -> Option<&Door> {
        match family {
            Family::V4 => self.ipv4.as_ref(),
            Family::V6 => self.ipv6.as_ref(),
        }
        .map(|socket| &socket.door)
    }

    /// Opens `count` further pairs of sockets on the same port (`SO_REUSEPORT`): the kernel gives all datagrams of a peer's address to
    /// one of them. Until now nobody else could take the port; from now on a process of the same user could.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn siblings(&self, count: usize) -> io::Result<Vec<Self>> {
        let again = |own: &Option<FamilySocket>, any: IpAddr| {
            let Some(own) = own else { return Ok(None) };
            sys::set_option(own.door.descriptor(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
            open((any, self.port).into(), own.segmentation, Sharing::WithSiblings).map(Some)
        };
        let sibling = |_| {
            let ipv4 = again(&self.ipv4, Ipv4Addr::UNSPECIFIED.into())?;
            let ipv6 = again(&self.ipv6, Ipv6Addr::UNSPECIFIED.into())?;
            Ok(Self { ipv4, ipv6, port: self.port, counters: SendCounters::default() })
        };
        (0..count).map(sibling).collect()
    }

    /// Sends one run, from the local address `from` if it is given. What the kernel does not take is lost and counted, as on
    /// any link.
    pub fn send(&mut self, run: &UdpRun<'_>, from: Option<IpAddr>) {
        let family = if run.endpoint.is_ipv4() { Family::V4 } else { Family::V6 };
        let socket = match family {
            Family::V4 => &mut self.ipv4,
            Family::V6 => &mut self.ipv6,
        };
        let counters = &mut self.counters;
        let Some(socket) = socket else {
            counters.failed += run.datagrams as u64;
            return;
        };
        if run.datagrams > 1 && socket.segmentation == Segmentation::Offloaded {
            let result = send_once(socket, run.endpoint, from, run.bytes, u16::try_from(run.segment).ok());
            counters.calls += 1;
            match result {
                Ok(()) => {
                    counters.sent += run.datagrams as u64;
                    counters.bytes += run.bytes.len() as u64;
                    return;
                }
                Err(error) if is_full(&error) => {
                    counters.full += run.datagrams as u64;
                    return;
                }
                Err(error) => match error.raw_os_error() {
                    // The interface cannot segment or cannot checksum: it will not learn it.
                    Some(libc::EIO) => socket.segmentation = Segmentation::Off,
                    // Longer than the path's MTU: the kernel fragments single datagrams.
                    Some(libc::EMSGSIZE | libc::EINVAL) => {}
                    Some(_) | None => {
                        counters.failed += run.datagrams as u64;
                        return;
                    }
                },
            }
            counters.split += 1;
        }
        for datagram in run.bytes.chunks(run.segment.max(1)) {
            counters.calls += 1;
            match send_once(socket, run.endpoint, from, datagram, None) {
                Ok(()) => {
                    counters.sent += 1;
                    counters.bytes += datagram.len() as u64;
                }
                Err(error) if is_full(&error) => counters.full += 1,
                Err(_) => counters.failed += 1,
            }
        }
    }
}

impl Door {
    /// Returns the descriptor, to wait for.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Receives what the kernel joined; `None` when there is no more at present.
    ///
    /// # Errors
    /// What the kernel says. Errors that an ICMP message caused are reported once and say nothing about the socket.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Arrival>> {
        loop {
            match sys::receive(self.descriptor(), buffer) {
                Ok(Some(sys::Received { from, to, length, segment })) => {
                    return Ok(Some(Arrival { from, to, length, segment }));
                }
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

fn send_once(
    socket: &FamilySocket,
    to: SocketAddr,
    from: Option<IpAddr>,
    bytes: &[u8],
    segment: Option<u16>,
) -> io::Result<()> {
    // The first error may be an ICMP message's about an earlier datagram; the second is this one's own. A local
    // address that went away is given up.
    let mut from = from;
    for _attempt in 0..2 {
        match sys::send(socket.door.descriptor(), to, from, bytes, segment) {
            Ok(_) => return Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EINTR) => {}
                Some(libc::EADDRNOTAVAIL | libc::EINVAL) if from.is_some() => from = None,
                Some(_) | None => return Err(error),
            },
        }
    }
    sys::send(socket.door.descriptor(), to, None, bytes, segment).map(drop)
}

fn open(address: SocketAddr, segmentation: Segmentation, sharing: Sharing) -> io::Result<FamilySocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        sys::set_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
    } else {
        sys::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
    }
    // Beyond net.core.rmem_max only with CAP_NET_ADMIN; less is slower, not wrong.
    for (forced, plain, size) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER as i32),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER as i32),
    ] {
        if sys::set_option(socket.as_fd(), libc::SOL_SOCKET, forced, size).is_err() {
            sys::set_option(socket.as_fd(), libc::SOL_SOCKET, plain, size)?;
        }
    }
    match sharing {
        Sharing::Alone => {}
        Sharing::WithSiblings => sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?,
    }
    socket.bind(&address.into())?;
    let segmentation = match segmentation {
        Segmentation::Off => Segmentation::Off,
        Segmentation::Offloaded => {
            // GRO came with Linux 5.0; without it every datagram arrives by itself.
            let _without = sys::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1);
            Segmentation::Offloaded
        }
    };
    Ok(FamilySocket { door: Door(Arc::new(socket)), segmentation })
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_dataplane::packet::batch::UdpBatch;

    fn wait_for(fd: BorrowedFd<'_>, milliseconds: u64) {
        let mut poller = sys::Poller::new(1).unwrap();
        poller.add(fd, 0).unwrap();
        poller.wait(std::time::Duration::from_millis(milliseconds)).unwrap().for_each(drop);
    }

    fn receive_all(sockets: &UdpSockets, family: Family, want: usize) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        let mut buffer = vec![0; MAX_RECEIVE];
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while datagrams.len() < want && std::time::Instant::now() < deadline {
            let door = sockets.door(family).unwrap();
            wait_for(door.descriptor(), 100);
            while let Some(arrival) = door.receive(&mut buffer).unwrap() {
                datagrams.extend(buffer[..arrival.length].chunks(arrival.segment).map(<[u8]>::to_vec));
            }
        }
        datagrams
    }

    fn runs_arrive_whole(segmentation: Segmentation, to: IpAddr, family: Family) {
        let receiver = UdpSockets::bind(0, segmentation).unwrap();
        let mut sender = UdpSockets::bind(0, segmentation).unwrap();
        let endpoint = SocketAddr::new(to, receiver.port());
        let mut batch = UdpBatch::new();
        for index in 0..40u8 {
            batch.push(endpoint, &[index; 1_000]).unwrap();
        }
        batch.push(endpoint, &[40; 333]).unwrap();
        for run in batch.runs() {
            sender.send(&run, None);
        }
        let datagrams = receive_all(&receiver, family, 41);
        let expected: Vec<_> = (0..40).map(|index| vec![index; 1_000]).chain([vec![40; 333]]).collect();
        assert_eq!(datagrams, expected);
        assert_eq!(sender.counters().sent, 41);
    }

    #[test]
    fn a_run_arrives_as_its_datagrams_with_and_without_segmentation_offload() {
        for segmentation in [Segmentation::Offloaded, Segmentation::Off] {
            runs_arrive_whole(segmentation, Ipv4Addr::LOCALHOST.into(), Family::V4);
            runs_arrive_whole(segmentation, Ipv6Addr::LOCALHOST.into(), Family::V6);
        }
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked() {
        let (asked, mut asker) =
            (UdpSockets::bind(0, Segmentation::Off), UdpSockets::bind(0, Segmentation::Off).unwrap());
        let mut asked = asked.unwrap();
        let mut batch = UdpBatch::new();
        batch.push(SocketAddr::from(([127, 0, 0, 7], asked.port())), b"who is there").unwrap();
        asker.send(&batch.runs().next().unwrap(), None);
        let mut buffer = [0; 100];
        let door = asked.door(Family::V4).unwrap().clone();
        wait_for(door.descriptor(), 5_000);
        let arrival = door.receive(&mut buffer).unwrap().unwrap();
        assert_eq!(arrival.to, Some(IpAddr::from([127, 0, 0, 7])));
        batch.clear();
        batch.push(arrival.from, b"a small door").unwrap();
        asked.send(&batch.runs().next().unwrap(), arrival.to);
        let door = asker.door(Family::V4).unwrap();
        wait_for(door.descriptor(), 5_000);
        let answer = door.receive(&mut buffer).unwrap().unwrap();
        assert_eq!(answer.from.ip(), IpAddr::from([127, 0, 0, 7]));
    }

    #[test]
    fn an_occupied_port_is_named() {
        let first = UdpSockets::bind(0, Segmentation::Off).unwrap();
        let error = UdpSockets::bind(first.port(), Segmentation::Off).unwrap_err();
        assert!(error.to_string().contains(&first.port().to_string()), "{error}");
    }

    #[test]
    fn siblings_share_the_port_and_each_peer_address_has_one_of_them() {
        let first = UdpSockets::bind(0, Segmentation::Off).unwrap();
        let mut all = first.siblings(3).unwrap();
        all.push(first);
        let to = SocketAddr::from(([127, 0, 0, 1], all[0].port()));
        let mut heard = vec![std::collections::HashMap::<SocketAddr, usize>::new(); all.len()];
        for _peer in 0..40 {
            let mut peer = UdpSockets::bind(0, Segmentation::Off).unwrap();
            for _datagram in 0..5 {
                let mut batch = UdpBatch::new();
                batch.push(to, b"who is there").unwrap();
                peer.send(&batch.runs().next().unwrap(), None);
            }
        }
        let mut buffer = [0; 100];
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while heard.iter().flat_map(|heard| heard.values()).sum::<usize>() < 40 * 5 {
            assert!(std::time::Instant::now() < deadline, "{heard:?}");
            for (socket, heard) in all.iter().zip(&mut heard) {
                while let Some(arrival) = socket.door(Family::V4).unwrap().receive(&mut buffer).unwrap() {
                    *heard.entry(arrival.from).or_default() += 1;
                }
            }
        }
        assert_eq!(heard.iter().map(|heard| heard.len()).sum::<usize>(), 40, "each peer has one socket");
        assert!(heard.iter().flat_map(|heard| heard.values()).all(|count| *count == 5));
        assert!(heard.iter().filter(|heard| !heard.is_empty()).count() >= 2, "and not all the same");
        let taken = UdpSockets::bind(to.port(), Segmentation::Off).unwrap_err();
        assert!(matches!(taken, UdpError::Occupied { .. }), "a second node that does not know better: {taken}");
    }
}
