//! Two workers, real TUN interfaces and a veth pair between two network namespaces. Needs root.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use postern_common::flow_record::{FlowEnd, FlowEvent};

use super::{
    super::{
        bench, sys,
        tun::{Offloads, Tun, TunError},
        udp::Segmentation,
    },
    *,
};

const INNER: [[IpAddr; 2]; 2] = [
    [IpAddr::V4(std::net::Ipv4Addr::new(100, 80, 0, 1)), IpAddr::V4(std::net::Ipv4Addr::new(100, 80, 0, 2))],
    [
        IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0x80, 0, 0, 0, 0, 0, 1)),
        IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0x80, 0, 0, 0, 0, 0, 2)),
    ],
];

/// Runs `ip` and panics with what it said if it fails.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Namespaces that end with the test.
struct Namespaces(Vec<String>);

impl Namespaces {
    fn new(count: usize) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |side| format!("pio-{}-{number}-{side}", std::process::id());
        let names: Vec<_> = (0..count).map(name).collect();
        for name in &names {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
        }
        Self(names)
    }

    /// Runs something on a thread of its own inside.
    fn inside<T: Send + 'static>(
        &self,
        side: usize,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let name = self.0[side].clone();
        thread::spawn(move || {
            sys::enter_network_namespace(&name).expect("root may enter a namespace");
            run()
        })
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.0 {
            let _gone = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// Two nodes that may open TCP and UDP 5000 to 60000 on each other.
struct Pair {
    namespaces: Namespaces,
    nodes: Vec<(WorkerHandle, mpsc::Receiver<WorkerEvent>)>,
    keys: Vec<postern_common::key::WireGuardPrivateKey>,
}

impl Pair {
    fn new(offloads: Offloads, segmentation: Segmentation, outer_mtu: u16, outer: [&str; 2], workers: usize) -> Self {
        let workers = NonZeroUsize::new(workers).unwrap();
        let namespaces = Namespaces::new(2);
        let [a, b] = [&namespaces.0[0], &namespaces.0[1]];
        ip(&format!("-n {a} link add outer mtu {outer_mtu} type veth peer name outer mtu {outer_mtu} netns {b}"));
        for (side, name) in namespaces.0.iter().enumerate() {
            let length = if outer[side].contains(':') { "64 nodad" } else { "24" };
            ip(&format!("-n {name} addr add {}/{length} dev outer", outer[side]));
            ip(&format!("-n {name} link set outer up"));
        }
        let directory = tempfile::tempdir().unwrap();
        let endpoint = |side: usize| SocketAddr::new(outer[side].parse().unwrap(), 51_820);
        bench::prepare(directory.path(), [endpoint(0), endpoint(1)], 20, 3).unwrap();
        let start = |side: usize| {
            let file = directory.path().join(["a.json", "b.json"][side]);
            let modes = (offloads, segmentation);
            let run = move || bench::start(&file, "inner", 1_420, modes, workers, bench::Judging::On).unwrap();
            namespaces.inside(side, run).join().unwrap()
        };
        let keys = ["a.json", "b.json"].map(|name| bench::private_key(&directory.path().join(name)).unwrap()).to_vec();
        let nodes = vec![start(0), start(1)];
        for (side, name) in namespaces.0.iter().enumerate() {
            ip(&format!("-n {name} addr add {}/16 dev inner", INNER[0][side]));
            ip(&format!("-n {name} addr add {}/64 dev inner nodad", INNER[1][side]));
            ip(&format!("-n {name} link set inner mtu 1420 up"));
        }
        Self { namespaces, nodes, keys }
    }

    /// Sends `length` bytes over TCP from the first node to the second and gets them back.
    fn tcp_echoes(&self, family: usize, length: usize) {
        let address = SocketAddr::new(INNER[family][1], 5_201);
        let listener = self.namespaces.inside(1, move || TcpListener::bind(address).unwrap()).join().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = stream.try_clone().unwrap();
            std::io::copy(&mut reader, &mut stream).unwrap();
        });
        let client = self.namespaces.inside(0, move || {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let sent: Vec<u8> = (0..length as u32).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
            let mut writer = stream.try_clone().unwrap();
            let bytes = sent.clone();
            let writing = thread::spawn(move || {
                writer.write_all(&bytes).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut back = Vec::new();
            stream.read_to_end(&mut back).unwrap();
            writing.join().unwrap();
            assert!(back == sent, "{} of {length} bytes came back, or others", back.len());
        });
        client.join().unwrap();
        server.join().unwrap();
    }

    fn udp_echoes(&self, family: usize, sizes: &'static [usize]) {
        let address = SocketAddr::new(INNER[family][1], 5_300);
        let server = self.namespaces.inside(1, move || UdpSocket::bind(address).unwrap()).join().unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let echo = thread::spawn(move || {
            let mut buffer = [0; 65_535];
            for _datagram in sizes {
                let (length, from) = server.recv_from(&mut buffer).unwrap();
                server.send_to(&buffer[..length], from).unwrap();
            }
        });
        let client = self.namespaces.inside(0, move || {
            let socket = UdpSocket::bind(SocketAddr::new(INNER[family][0], 0)).unwrap();
            socket.connect(address).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            for (index, size) in sizes.iter().enumerate() {
                let sent = vec![index as u8; *size];
                socket.send(&sent).unwrap();
                let mut buffer = [0; 65_535];
                let length = socket.recv(&mut buffer).unwrap();
                assert!(buffer[..length] == sent[..], "datagram {index} of {size} bytes came back as {length}");
            }
        });
        client.join().unwrap();
        echo.join().unwrap();
    }
}

const OUTER_V4: [&str; 2] = ["10.97.0.1", "10.97.0.2"];
const OUTER_V6: [&str; 2] = ["fd00:97::1", "fd00:97::2"];

#[test]
fn everything_passes_whole_with_offloads() {
    everything_passes_with_offloads(1);
}

#[test]
fn everything_passes_whole_with_offloads_and_several_workers() {
    everything_passes_with_offloads(4);
}

fn everything_passes_with_offloads(workers: usize) {
    let pair = Pair::new(Offloads::All, Segmentation::Offloaded, 1_500, OUTER_V4, workers);
    for family in 0..2 {
        pair.tcp_echoes(family, 8 << 20);
        pair.udp_echoes(family, &[0, 1, 1_000, 1_392, 9_000, 60_000]); // the last two in fragments
    }
    let io = pair.nodes[0].0.status_blocking().unwrap().io;
    assert!(io.tun_read_bytes / io.tun_reads > 5_000, "the TUN gave super-packets: {io:?}");
    assert!(io.sent.sent > 4 * io.sent.calls, "runs left by one call: {io:?}");
    assert!(io.tun_packets > 2 * io.tun_writes, "segments were joined: {io:?}");
    assert_eq!((io.tun_refused, io.sent.failed, io.sent.split), (0, 0, 0), "{io:?}");
}

#[test]
fn a_gigabyte_costs_both_workers_few_system_calls() {
    let pair = Pair::new(Offloads::All, Segmentation::Offloaded, 1_500, OUTER_V4, 1);
    let calls = || -> u64 {
        let of = |io: IoCounters| io.rounds + io.tun_reads + io.tun_writes + io.udp_receives + io.sent.calls;
        pair.nodes.iter().map(|(handle, _)| of(handle.status_blocking().unwrap().io)).sum()
    };
    let before = calls();
    pair.tcp_echoes(0, 64 << 20);
    let carried = 2 * (64 << 20); // there and back
    let per_gigabyte = (calls() - before) * 1_000_000_000 / carried;
    // One call a packet in each of four places would be three million.
    assert!(per_gigabyte < 600_000, "{per_gigabyte} calls for a gigabyte");
}

#[test]
fn everything_passes_whole_without_offloads() {
    everything_passes_without_offloads(1);
}

#[test]
fn everything_passes_whole_without_offloads_and_several_workers() {
    everything_passes_without_offloads(4);
}

fn everything_passes_without_offloads(workers: usize) {
    let pair = Pair::new(Offloads::None, Segmentation::Off, 1_500, OUTER_V6, workers);
    for family in 0..2 {
        pair.tcp_echoes(family, 2 << 20);
        pair.udp_echoes(family, &[0, 1, 1_000, 1_392, 9_000, 60_000]);
    }
    let io = pair.nodes[0].0.status_blocking().unwrap().io;
    assert_eq!(io.sent.sent, io.sent.calls, "{io:?}");
    assert_eq!((io.tun_packets, io.tun_refused), (io.tun_writes, 0), "{io:?}");
}

#[test]
fn an_underlay_that_is_too_narrow_costs_fragments_and_loses_nothing() {
    for outer in [OUTER_V4, OUTER_V6] {
        let pair = Pair::new(Offloads::All, Segmentation::Offloaded, 1_300, outer, 2);
        pair.tcp_echoes(0, 1 << 20);
        let io = pair.nodes[0].0.status_blocking().unwrap().io;
        assert!(io.sent.split > 0, "runs were refused and sent one by one: {io:?}");
    }
}

/// Datagrams with numbers, in both directions and on several flows at once: more than the cores can carry.
#[test]
fn nothing_overtakes_within_a_flow_however_many_workers_there_are() {
    const ENOUGH: u32 = 5_000;
    let pair = Pair::new(Offloads::All, Segmentation::Offloaded, 1_500, OUTER_V4, 4);
    let stop = Arc::new(AtomicBool::new(false));
    let heard: Arc<[AtomicU32; 6]> = Arc::default();
    let mut receivers = Vec::new();
    let mut senders = Vec::new();
    for flow in 0..6_u16 {
        let (from, to) = (usize::from(flow % 2), usize::from(1 - flow % 2));
        let address = SocketAddr::new(INNER[usize::from(flow % 3 == 0)][to], 5_400 + flow);
        let socket = pair.namespaces.inside(to, move || UdpSocket::bind(address).unwrap()).join().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let heard = heard.clone();
        receivers.push(thread::spawn(move || {
            let (mut last, mut overtaken, mut buffer) = (0, 0_u64, [0; 2_000]);
            while let Ok(length) = socket.recv(&mut buffer) {
                let number = u64::from_be_bytes(buffer[..8].try_into().unwrap());
                assert!(length >= 200);
                overtaken += u64::from(number <= last);
                last = number;
                heard[usize::from(flow)].fetch_add(1, Ordering::Relaxed);
            }
            overtaken
        }));
        let stop = stop.clone();
        senders.push(pair.namespaces.inside(from, move || {
            let socket = UdpSocket::bind(SocketAddr::new(INNER[usize::from(flow % 3 == 0)][from], 0)).unwrap();
            socket.connect(address).unwrap();
            let mut datagram = [7; 1_300];
            for number in 1_u64.. {
                datagram[..8].copy_from_slice(&number.to_be_bytes());
                // Full buffers refuse some; that is no matter here.
                let _full = socket.send(&datagram[..200 + usize::from(flow) * 200]);
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        }));
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while heard.iter().any(|count| count.load(Ordering::Relaxed) < ENOUGH) {
        assert!(Instant::now() < deadline, "some flow gets nothing through: {heard:?}");
        thread::sleep(Duration::from_millis(20));
    }
    stop.store(true, Ordering::Relaxed);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    let overtaken: Vec<u64> = receivers.into_iter().map(|receiver| receiver.join().unwrap()).collect();
    assert_eq!(overtaken, [0; 6], "of {heard:?}");
}

/// The order takes the sessions away while four workers send as fast as they can.
#[test]
fn when_an_order_returns_nothing_leaves_that_it_forbids() {
    let pair = Pair::new(Offloads::All, Segmentation::Offloaded, 1_500, OUTER_V4, 4);
    pair.udp_echoes(0, &[10]);
    let stop = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (0..4_u16)
        .map(|flow| {
            let stop = stop.clone();
            pair.namespaces.inside(0, move || {
                let socket = UdpSocket::bind(SocketAddr::new(INNER[0][0], 0)).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let _full = socket.send_to(&[7; 1_300], SocketAddr::new(INNER[0][1], 5_500 + flow));
                }
            })
        })
        .collect();
    let handle = &pair.nodes[0].0;
    let sent = || {
        let io = handle.status_blocking().unwrap().io;
        (io.sent.sent + io.sent.full + io.sent.failed, io.tun_reads)
    };
    for round in 0..40 {
        let (before, _) = sent();
        let deadline = Instant::now() + Duration::from_secs(10);
        while sent().0 < before + 500 {
            assert!(Instant::now() < deadline, "round {round}: nothing is sent");
        }
        handle.set_local_keys_blocking(Vec::new()).unwrap();
        let (at_once, reads) = sent();
        while sent().1 < reads + 500 {
            assert!(Instant::now() < deadline, "round {round}: nothing is read");
        }
        assert_eq!(sent().0, at_once, "round {round}");
        handle.set_local_keys_blocking(vec![pair.keys[0].clone()]).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
}

#[test]
fn the_end_of_the_worker_ends_flows_with_records_and_closes_the_channel() {
    let mut pair = Pair::new(Offloads::All, Segmentation::Offloaded, 1_500, OUTER_V4, 3);
    pair.tcp_echoes(0, 1_000);
    pair.udp_echoes(0, &[10]);
    let (handle, mut events) = pair.nodes.remove(1);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(handle.shut_down()).unwrap();
    let mut ends = Vec::new();
    while let Some(event) = events.blocking_recv() {
        if let WorkerEvent::Record(record) = event
            && let FlowEvent::End { why, .. } = record.event
        {
            ends.push(why);
        }
    }
    assert!(ends.contains(&FlowEnd::Shutdown), "{ends:?}");
    assert_eq!(handle.status_blocking(), Err(WorkerGone));
}

#[test]
fn when_a_worker_has_ended_its_port_and_its_interface_are_free() {
    let mut pair = Pair::new(Offloads::All, Segmentation::Offloaded, 1_500, OUTER_V4, 3);
    pair.udp_echoes(0, &[10]);
    let (handle, _events) = pair.nodes.remove(0);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(handle.shut_down()).unwrap();
    let again = pair.namespaces.inside(0, || {
        super::super::udp::UdpSockets::bind(51_820, Segmentation::Offloaded).unwrap();
        Tun::open("inner", Offloads::All).unwrap();
    });
    again.join().unwrap();
}

/// More records than the channel has room for, and nobody reads before the end.
#[test]
fn the_last_records_wait_for_their_reader() {
    const FLOWS: u16 = 1_500;
    let mut pair = Pair::new(Offloads::All, Segmentation::Offloaded, 1_500, OUTER_V4, 2);
    pair.udp_echoes(0, &[10]);
    let sender = pair.namespaces.inside(0, || {
        let socket = UdpSocket::bind(SocketAddr::new(INNER[0][0], 0)).unwrap();
        for port in 0..FLOWS {
            socket.send_to(&[7; 10], SocketAddr::new(INNER[0][1], 6_000 + port)).unwrap();
        }
    });
    sender.join().unwrap();
    let (handle, mut events) = pair.nodes.remove(0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while handle.status_blocking().unwrap().flows < usize::from(FLOWS) {
        assert!(Instant::now() < deadline, "{} flows", handle.status_blocking().unwrap().flows);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(handle.shut_down()).unwrap();
    let mut ends = 0;
    while let Some(event) = events.blocking_recv() {
        let WorkerEvent::Record(record) = event else { continue };
        ends += usize::from(matches!(record.event, FlowEvent::End { why: FlowEnd::Shutdown, .. }));
    }
    assert!(ends >= usize::from(FLOWS), "{ends}");
}

#[test]
fn an_interface_that_is_taken_away_is_reported() {
    let mut pair = Pair::new(Offloads::All, Segmentation::Offloaded, 1_500, OUTER_V4, 3);
    ip(&format!("-n {} link del inner", pair.namespaces.0[0]));
    let deadline = Instant::now() + Duration::from_secs(10);
    let lost = std::iter::from_fn(|| pair.nodes[0].1.blocking_recv())
        .take_while(|_| Instant::now() < deadline)
        .any(|event| matches!(event, WorkerEvent::TunLost { .. }));
    assert!(lost);
}

#[test]
fn the_interface_outlives_its_process_and_is_attached_again() {
    let namespaces = Namespaces::new(1);
    let name = namespaces.0[0].clone();
    let test = namespaces.inside(0, move || {
        let tun = Tun::open("door", Offloads::All).unwrap();
        assert!(matches!(Tun::open("door", Offloads::All), Err(TunError::Busy { .. })), "one process at a time");
        ip(&format!("-n {name} addr add 100.80.0.1/16 dev door"));
        ip(&format!("-n {name} link set door up"));
        drop(tun); // as by kill -9
        assert!(ip(&format!("-n {name} addr show dev door")).contains("100.80.0.1/16"));
        assert!(ip(&format!("-n {name} route")).contains("100.80.0.0/16"), "the route stands");
        let tun = Tun::open("door", Offloads::All).unwrap();
        tun.remove().unwrap();
        assert!(!ip(&format!("-n {name} link")).contains("door"), "`down` removes it");
        let taken = Tun::open("lo", Offloads::All).unwrap_err();
        assert!(matches!(taken, TunError::Name { .. }), "{taken}");
    });
    test.join().unwrap();
}
