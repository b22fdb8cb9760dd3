//! The system calls that no safe crate offers in the shape the packet path needs: the one module with `unsafe`.
//!
//! Every function takes borrowed descriptors and slices and returns `io::Result`, so that its callers stay safe code.
//! Rejected: `nix` (allocates for control messages on each call), `rustix` (no `UDP_SEGMENT`, no TUN ioctls), `tun-rs` and
//! `quinn-udp` (see `docs/decisions/0001-tun.md`).
#![allow(unsafe_code)]
// Other C libraries than glibc give these fields other widths.
#![allow(clippy::unnecessary_cast)]

use std::{
    ffi::{c_int, c_uint, c_void},
    io::{self, IoSlice},
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

use tokio::io::{Interest, unix::AsyncFd};

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_length(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Reads a clock in nanoseconds.
fn clock(id: libc::clockid_t) -> i128 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the kernel to fill. It cannot fail for the two clocks below.
    unsafe { libc::clock_gettime(id, &mut time) };
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

/// Returns nanoseconds since boot, suspend included (`CLOCK_BOOTTIME`).
pub(super) fn boot_time_nanos() -> u64 {
    u64::try_from(clock(libc::CLOCK_BOOTTIME)).unwrap_or(0)
}

/// Returns milliseconds since 1970 (`CLOCK_REALTIME`).
pub(super) fn real_time_millis() -> i64 {
    i64::try_from(clock(libc::CLOCK_REALTIME) / 1_000_000).unwrap_or(i64::MAX)
}

/// Makes an eventfd: a counter to wake a thread that polls.
pub(super) fn event_fd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
    // SAFETY: the call has just returned this descriptor and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds one to an eventfd.
pub(super) fn event_signal(fd: BorrowedFd<'_>) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: the pointer and length describe `one`. A full counter (EAGAIN) has woken the reader already.
    unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

/// Sets an eventfd back to zero.
pub(super) fn event_clear(fd: BorrowedFd<'_>) {
    let mut count = [0u8; 8];
    // SAFETY: the pointer and length describe `count`. EAGAIN means that it was zero.
    unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
}

/// Waits for many descriptors at once (epoll, level-triggered).
#[derive(Debug)]
pub(super) struct Poller {
    fd: OwnedFd,
    ready: Vec<libc::epoll_event>,
}

impl Poller {
    /// Makes one that reports at most `capacity` descriptors at a time.
    pub(super) fn new(capacity: usize) -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the call has just returned this descriptor and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, ready: Vec::with_capacity(capacity.max(1)) })
    }

    /// Watches `fd` for something to read, under the name `token`. Closing `fd` ends that.
    pub(super) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.watch(fd, token, libc::EPOLLIN)
    }

    /// As [`Poller::add`], for a descriptor that several pollers watch: one that waits is woken, not all (`EPOLLEXCLUSIVE`).
    pub(super) fn add_shared(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.watch(fd, token, libc::EPOLLIN | libc::EPOLLEXCLUSIVE)
    }

    fn watch(&self, fd: BorrowedFd<'_>, token: u64, events: c_int) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: `event` lives through the call.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &mut event) })
            .map(drop)
    }

    /// Waits until something is readable or in error, or `timeout` is over (to the millisecond, never less), and lists the names of
    /// what is ready. A signal ends the wait early.
    pub(super) fn wait(&mut self, timeout: Duration) -> io::Result<impl Iterator<Item = u64> + '_> {
        let timeout = c_int::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX);
        let capacity = self.ready.capacity() as c_int;
        self.ready.clear();
        // SAFETY: the buffer has room for `capacity` events.
        let result = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), self.ready.as_mut_ptr(), capacity, timeout) };
        match check(result) {
            // SAFETY: the kernel has filled so many events, and at most `capacity`.
            Ok(count) => unsafe { self.ready.set_len(count as usize) },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(self.ready.iter().map(|event| event.u64))
    }
}

/// How many queues the TUN has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queues {
    One,
    Many,
}

/// Opens `/dev/net/tun` and attaches it to the interface `name`, making it if it does not exist.
///
/// Layer 3, no packet information, a virtio-net header of 10 bytes before each frame, non-blocking. With [`Queues::Many`] each call
/// adds a queue.
pub(super) fn open_tun(name: &str, queues: Queues) -> io::Result<OwnedFd> {
    let file = std::os::unix::fs::OpenOptionsExt::custom_flags(
        std::fs::OpenOptions::new().read(true).write(true),
        libc::O_NONBLOCK | libc::O_CLOEXEC,
    )
    .open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an interface name has 1 to 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let many = match queues {
        Queues::One => 0,
        Queues::Many => libc::IFF_MULTI_QUEUE,
    };
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | many) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
    Ok(file.into())
}

/// Tells the kernel which offloads the reader of the TUN understands (`TUN_F_*`).
pub(super) fn set_tun_offload(fd: BorrowedFd<'_>, flags: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) }).map(drop)
}

/// Lets the interface live on, or not, when the descriptor closes.
pub(super) fn set_tun_persist(fd: BorrowedFd<'_>, persist: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persist)) }).map(drop)
}

/// Reads once.
pub(super) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe `buffer`.
    check_length(unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) })
}

/// Writes all slices by one call: one TUN frame.
pub(super) fn write_vectored(fd: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let count = slices.len().min(1_024) as c_int;
    // SAFETY: `IoSlice` is guaranteed to have the layout of iovec on Unix; the slices live through the call.
    check_length(unsafe { libc::writev(fd.as_raw_fd(), slices.as_ptr().cast(), count) })
}

/// Sets an integer socket option.
pub(super) fn set_option(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let length = mem::size_of::<c_int>() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), length) }).map(drop)
}

/// Reads an integer socket option.
pub(super) fn option(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<c_int> {
    let (mut value, mut length): (c_int, _) = (0, mem::size_of::<c_int>() as libc::socklen_t);
    // SAFETY: pointer and length describe `value`; the kernel writes no more than `length` bytes.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length) })?;
    Ok(value)
}

/// Opens a netlink socket that hears the messages of one multicast group.
pub(crate) fn open_netlink(protocol: c_int, group: c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) })?;
    // SAFETY: the call has just returned this descriptor and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero bytes are a valid sockaddr_nl; port 0 lets the kernel choose one.
    let mut name: libc::sockaddr_nl = unsafe { mem::zeroed() };
    name.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    let length = mem::size_of_val(&name) as libc::socklen_t;
    // SAFETY: pointer and length describe `name`.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const name).cast(), length) })?;
    set_option(fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group)?;
    Ok(fd)
}

/// Lets the async runtime wait until a descriptor is readable.
pub(crate) fn await_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open descriptor until it is dropped, and `AsyncFd` lends it out only by shared reference.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// Throws away what waits in a netlink socket. Tells whether the socket still works.
pub(crate) fn drain_netlink(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut buffer = [0; 8_192];
    loop {
        match read(fd, &mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // Messages were lost: they are worth no more than those that were read.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Room for the control messages of one datagram, aligned as the kernel wants it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 128]);

/// What came with a receive besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    /// The sender.
    pub(super) from: SocketAddr,
    /// The local address that it was sent to, if the kernel told.
    pub(super) to: Option<IpAddr>,
    /// Bytes in the buffer.
    pub(super) length: usize,
    /// Bytes of each datagram but the last: `length` if it is only one.
    pub(super) segment: usize,
}

/// Receives one datagram, or several of equal size from one sender that the kernel joined (`UDP_GRO`).
pub(super) fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    // SAFETY: all-zero bytes are a valid sockaddr_storage and msghdr.
    let (mut name, mut message): (libc::sockaddr_storage, libc::msghdr) = unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut control = Control([0; 128]);
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = mem::size_of_val(&name) as libc::socklen_t;
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: every pointer in `message` describes a live local or `buffer`, with its length.
    let length = check_length(unsafe { libc::recvmsg(fd.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) })?;
    let Some(from) = socket_address(&name) else { return Ok(None) };
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return Ok(None); // longer than any datagram of ours
    }
    let mut received = Received { from, to: None, length, segment: length };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR walk the control buffer that the kernel has just filled, within
    // `msg_controllen`; each payload is read unaligned and only if its header says that it is long enough.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while let Some(current) = header.as_ref() {
            let payload = libc::CMSG_DATA(header).cast_const();
            let room = (current.cmsg_len as usize).saturating_sub(payload.addr() - header.addr());
            match (current.cmsg_level, current.cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) if room >= 4 => {
                    let size = payload.cast::<c_int>().read_unaligned();
                    received.segment = usize::try_from(size).ok().filter(|size| *size > 0).unwrap_or(length);
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) if room >= mem::size_of::<libc::in_pktinfo>() => {
                    let info = payload.cast::<libc::in_pktinfo>().read_unaligned();
                    received.to = Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if room >= mem::size_of::<libc::in6_pktinfo>() => {
                    let info = payload.cast::<libc::in6_pktinfo>().read_unaligned();
                    received.to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                (_level, _kind) => {}
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    Ok(Some(received))
}

/// Sends `bytes` to `to` by one call: as datagrams of `segment` bytes if it is given (`UDP_SEGMENT`), from the local
/// address `from` if it is given.
pub(super) fn send(
    fd: BorrowedFd<'_>,
    to: SocketAddr,
    from: Option<IpAddr>,
    bytes: &[u8],
    segment: Option<u16>,
) -> io::Result<usize> {
    let name = socket2::SockAddr::from(to);
    let mut control = Control([0; 128]);
    let mut slice = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = name.as_ptr().cast_mut().cast();
    message.msg_namelen = name.len();
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = 0;
    if let Some(segment) = segment {
        push_control(&mut message, libc::SOL_UDP, libc::UDP_SEGMENT, &segment);
    }
    match (from, to) {
        (Some(IpAddr::V4(from)), SocketAddr::V4(_)) => {
            let source = libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) };
            let none = libc::in_addr { s_addr: 0 };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: none };
            push_control(&mut message, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        (Some(IpAddr::V6(from)), SocketAddr::V6(to)) => {
            let source = libc::in6_addr { s6_addr: from.octets() };
            let info = libc::in6_pktinfo { ipi6_addr: source, ipi6_ifindex: to.scope_id() as _ };
            push_control(&mut message, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
        (None | Some(_), _) => {}
    }
    if message.msg_controllen == 0 {
        message.msg_control = std::ptr::null_mut();
    }
    // SAFETY: every pointer in `message` describes a live local or `bytes`, with its length; sendmsg writes to none of them.
    check_length(unsafe { libc::sendmsg(fd.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
}

/// Appends one control message. `message.msg_control` points to a [`Control`], which holds the two that are ever pushed:
/// at most 24 and 40 bytes of its 128.
fn push_control<T: Copy>(message: &mut libc::msghdr, level: c_int, kind: c_int, value: &T) {
    let length = mem::size_of::<T>() as c_uint;
    // SAFETY: CMSG_SPACE and CMSG_LEN only compute. The buffer is zeroed, 8-byte aligned and 128 bytes long; what was
    // pushed before ends at `msg_controllen`, a multiple of the header's alignment.
    unsafe {
        let header = message.msg_control.cast::<u8>().add(message.msg_controllen as usize).cast::<libc::cmsghdr>();
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(length) as _;
        libc::CMSG_DATA(header).cast::<T>().write_unaligned(*value);
        message.msg_controllen += libc::CMSG_SPACE(length) as libc::size_t as usize;
    }
}

fn socket_address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let at: *const c_void = (name as *const libc::sockaddr_storage).cast();
    match c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the storage holds a sockaddr_in, and it is aligned for every address.
            let name = unsafe { &*at.cast::<libc::sockaddr_in>() };
            let address = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(address, u16::from_be(name.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for sockaddr_in6.
            let name = unsafe { &*at.cast::<libc::sockaddr_in6>() };
            let address = Ipv6Addr::from(name.sin6_addr.s6_addr);
            // The flow label is not part of an endpoint; the scope is only for link-local addresses.
            let scope = if address.is_unicast_link_local() { name.sin6_scope_id } else { 0 };
            Some(SocketAddrV6::new(address, u16::from_be(name.sin6_port), 0, scope).into())
        }
        _other => None,
    }
}

/// Moves the calling thread into a network namespace, so that tests can open sockets and interfaces there.
#[cfg(test)]
pub(super) fn enter_network_namespace(name: &str) -> io::Result<()> {
    let file = std::fs::File::open(format!("/run/netns/{name}"))?;
    // SAFETY: setns takes a descriptor, which lives through the call, and a flag.
    check(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}
