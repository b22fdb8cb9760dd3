//! A hostile WireGuard client for the attack scenarios: it holds a device's keys and has no agent, no rules and no manners.
//!
//! ```text
//! knock     one correct handshake initiation; is there any answer?
//! send      a session, then inner packets of the attacker's choice: any source, any destination, any port
//! replay    every UDP payload of a capture again, as it was
//! spray     malformed datagrams, from a fixed seed
//! ```
//!
//! Each command prints one line of JSON that says what was sent and what came back, and exits 0: judging is the
//! scenario's work. It sends only to the address that it is given.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use clap::{Args, Parser, Subcommand};
use postern_common::key::WireGuardPublicKey;
use serde_json::json;

#[derive(Parser)]
#[command(about = "A hostile WireGuard client for tests")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends correct handshake initiations and tells whether anything answers.
    Knock(Keys),
    /// Makes a session and sends inner packets through it.
    Send {
        #[command(flatten)]
        keys: Keys,
        /// The inner source address.
        #[arg(long)]
        source: IpAddr,
        /// The inner destination address.
        #[arg(long)]
        destination: IpAddr,
        /// What to send to each port.
        #[arg(long, default_value = "tcp-syn")]
        kind: Kind,
        /// Destination ports.
        #[arg(long, value_delimiter = ',', default_value = "80")]
        ports: Vec<u16>,
        /// The source port.
        #[arg(long, default_value_t = 40_000)]
        source_port: u16,
    },
    /// Sends every UDP payload of a classic pcap file to the target, as it was.
    Replay {
        /// The capture (Ethernet, raw IP or Linux cooked).
        #[arg(long)]
        pcap: PathBuf,
        /// Only payloads that were sent to this port.
        #[arg(long)]
        port: u16,
        /// Where to.
        #[arg(long)]
        to: SocketAddr,
        /// How long to listen for answers, in milliseconds.
        #[arg(long, default_value_t = 1500)]
        listen_ms: u64,
    },
    /// Sends malformed datagrams made from a seed.
    Spray {
        /// Where to.
        #[arg(long)]
        to: SocketAddr,
        /// How many.
        #[arg(long, default_value_t = 2000)]
        count: u32,
        /// The seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    TcpSyn,
    TcpAck,
    Udp,
    IcmpEcho,
    /// A first IPv4 fragment that cuts the TCP header off.
    TinyFragment,
}

#[derive(Args)]
struct Keys {
    /// The attacker's WireGuard private key, base 64.
    #[arg(long)]
    private: String,
    /// The target's WireGuard public key, base 64.
    #[arg(long)]
    public: WireGuardPublicKey,
    /// The pre-shared key of the pair, base 64.
    #[arg(long)]
    preshared: Option<String>,
    /// The target's outer address.
    #[arg(long)]
    to: SocketAddr,
    /// How long to wait for answers, in milliseconds.
    #[arg(long, default_value_t = 1500)]
    listen_ms: u64,
}

impl Keys {
    fn tunnel(&self) -> Result<Tunn> {
        let secret = StaticSecret::from(decode(&self.private)?);
        let preshared = self.preshared.as_deref().map(decode).transpose()?;
        Ok(Tunn::new(secret, PublicKey::from(*self.public.as_bytes()), preshared, None, 77, None))
    }
}

fn decode(text: &str) -> Result<[u8; 32]> {
    // a private key is base 64 like a public one; the attacker does not care for its secrecy
    Ok(*text.parse::<WireGuardPublicKey>()?.as_bytes())
}

fn main() -> Result<()> {
    let report = match Cli::parse().command {
        Command::Knock(keys) => knock(&keys)?,
        Command::Send { keys, source, destination, kind, ports, source_port } => {
            let packets: Vec<_> = ports
                .iter()
                .map(|port| inner_packet(kind, source, source_port, destination, *port))
                .collect::<Result<_>>()?;
            send(&keys, &packets)?
        }
        Command::Replay { pcap, port, to, listen_ms } => replay(&pcap, port, to, listen_ms)?,
        Command::Spray { to, count, seed } => spray(to, count, seed)?,
    };
    println!("{report}");
    Ok(())
}

fn socket(to: SocketAddr) -> Result<UdpSocket> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to).with_context(|| format!("no way to {to}"))?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    Ok(socket)
}

/// Collects datagrams until `until`, or the first that `stop` accepts.
fn listen(socket: &UdpSocket, until: Instant, mut stop: impl FnMut(&mut [u8]) -> bool) -> usize {
    let mut buffer = vec![0u8; 65_536];
    let mut count = 0;
    while Instant::now() < until {
        // a refused port shows up as an error on a connected socket: silence as far as WireGuard goes
        if let Ok(length) = socket.recv(&mut buffer) {
            count += 1;
            if stop(&mut buffer[..length]) {
                break;
            }
        }
    }
    count
}

fn knock(keys: &Keys) -> Result<serde_json::Value> {
    let socket = socket(keys.to)?;
    let mut tunnel = keys.tunnel()?;
    let mut buffer = vec![0u8; 2048];
    let TunnResult::WriteToNetwork(initiation) = tunnel.format_handshake_initiation(&mut buffer, true) else {
        bail!("no initiation was made");
    };
    socket.send(initiation)?;
    let mut response = false;
    let answers = listen(&socket, Instant::now() + Duration::from_millis(keys.listen_ms), |datagram| {
        response |= datagram.first() == Some(&2);
        response
    });
    Ok(json!({ "answers": answers, "handshake_response": response }))
}

/// Makes a session, sends `packets` and reports which inner packets came back.
fn send(keys: &Keys, packets: &[Vec<u8>]) -> Result<serde_json::Value> {
    let socket = socket(keys.to)?;
    let mut tunnel = keys.tunnel()?;
    let mut out = vec![0u8; 65_536];
    if let TunnResult::WriteToNetwork(initiation) = tunnel.format_handshake_initiation(&mut out, true) {
        socket.send(initiation)?;
    }
    let until = Instant::now() + Duration::from_millis(keys.listen_ms);
    let mut session = false;
    listen(&socket, until, |datagram| {
        if datagram.first() == Some(&2)
            && let TunnResult::WriteToNetwork(keepalive) = tunnel.decapsulate(None, datagram, &mut out)
        {
            session = socket.send(keepalive).is_ok();
        }
        session
    });
    if !session {
        return Ok(json!({ "session": false, "sent": 0, "received": [] }));
    }
    for packet in packets {
        if let TunnResult::WriteToNetwork(datagram) = tunnel.encapsulate(packet, &mut out) {
            socket.send(datagram)?;
        }
    }
    let mut received = Vec::new();
    listen(&socket, Instant::now() + Duration::from_millis(keys.listen_ms), |datagram| {
        match tunnel.decapsulate(None, datagram, &mut out) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                received.push(describe(packet))
            }
            TunnResult::WriteToNetwork(reply) => {
                let _ = socket.send(reply);
            }
            TunnResult::Done | TunnResult::Err(_) => {}
        }
        false
    });
    Ok(json!({ "session": true, "sent": packets.len(), "received": received }))
}

/// Names an inner packet: `syn-ack from 80 to 40000`, `rst from 81 to 40000`, `icmp type 3`, `udp from 53`.
fn describe(packet: &[u8]) -> String {
    let (protocol, transport) = match packet.first().map(|b| b >> 4) {
        Some(4) if packet.len() >= 20 => (packet[9], packet.get(usize::from(packet[0] & 15) * 4..)),
        Some(6) if packet.len() >= 40 => (packet[6], packet.get(40..)),
        _ => return "malformed".into(),
    };
    let port = |at: &[u8]| u16::from_be_bytes([at[0], at[1]]);
    match (protocol, transport) {
        (6, Some(tcp)) if tcp.len() >= 20 => {
            let what = match tcp[13] {
                flags if flags & 0x04 != 0 => "rst",
                flags if flags & 0x12 == 0x12 => "syn-ack",
                _ => "tcp",
            };
            format!("{what} from {} to {}", port(tcp), port(&tcp[2..]))
        }
        (17, Some(udp)) if udp.len() >= 8 => format!("udp from {}", port(udp)),
        (1 | 58, Some(icmp)) if !icmp.is_empty() => format!("icmp type {}", icmp[0]),
        (other, _) => format!("protocol {other}"),
    }
}

fn inner_packet(kind: Kind, source: IpAddr, source_port: u16, destination: IpAddr, port: u16) -> Result<Vec<u8>> {
    let ports = [source_port.to_be_bytes(), port.to_be_bytes()].concat();
    let tcp = |flags: u8| {
        let mut tcp = ports.clone();
        tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
        tcp
    };
    let (protocol, mut payload, checksum_at) = match (kind, destination) {
        (Kind::TcpSyn | Kind::TinyFragment, _) => (6, tcp(0x02), 16),
        (Kind::TcpAck, _) => (6, tcp(0x10), 16),
        (Kind::Udp, _) => (17, [ports.as_slice(), &[0, 12, 0, 0], b"hi!\n"].concat(), 6),
        (Kind::IcmpEcho, IpAddr::V4(_)) => (1, vec![8, 0, 0, 0, 0x12, 0x34, 0, 1], 2),
        (Kind::IcmpEcho, IpAddr::V6(_)) => (58, vec![128, 0, 0, 0, 0x12, 0x34, 0, 1], 2),
    };
    let length = u16::try_from(payload.len())?;
    let (mut packet, pseudo) = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let addresses = [source.octets(), destination.octets()].concat();
            let mut header = vec![0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, protocol, 0, 0];
            header[2..4].copy_from_slice(&(length + 20).to_be_bytes());
            header.extend(&addresses);
            let pseudo = if protocol == 1 {
                Vec::new()
            } else {
                [addresses.as_slice(), &[0, protocol], &length.to_be_bytes()].concat()
            };
            (header, pseudo)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let addresses = [source.octets(), destination.octets()].concat();
            let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            header[4..6].copy_from_slice(&length.to_be_bytes());
            header.extend(&addresses);
            (header, [addresses.as_slice(), &[0, 0], &length.to_be_bytes(), &[0, 0, 0, protocol]].concat())
        }
        _ => bail!("source and destination are of different families"),
    };
    let sum = checksum(&[pseudo.as_slice(), &payload].concat());
    payload[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    if matches!(kind, Kind::TinyFragment) && destination.is_ipv4() {
        payload.truncate(8);
        packet[2..4].copy_from_slice(&28u16.to_be_bytes());
        packet[6] |= 0x20; // more fragments
    }
    if destination.is_ipv4() {
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet.extend(payload);
    Ok(packet)
}

/// The internet checksum (RFC 1071), plainly.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("two folded bytes fit")
}

fn replay(pcap: &std::path::Path, port: u16, to: SocketAddr, listen_ms: u64) -> Result<serde_json::Value> {
    let bytes = std::fs::read(pcap).with_context(|| format!("cannot read {}", pcap.display()))?;
    let payloads = udp_payloads(&bytes, port)?;
    let socket = socket(to)?;
    for payload in &payloads {
        socket.send(payload)?;
    }
    let answers = listen(&socket, Instant::now() + Duration::from_millis(listen_ms), |_| false);
    Ok(json!({ "sent": payloads.len(), "answers": answers }))
}

/// Returns the payloads of UDP datagrams to `port` in a classic pcap file (little-endian, as tcpdump writes it here).
fn udp_payloads(bytes: &[u8], port: u16) -> Result<Vec<Vec<u8>>> {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    if !matches!(word(0), Some(0xa1b2_c3d4 | 0xa1b2_3c4d)) {
        bail!("not a little-endian pcap file");
    }
    let link_header = match word(20) {
        Some(1) => 14,
        Some(12 | 101) => 0,
        Some(113) => 16,
        Some(276) => 20,
        other => bail!("link type {other:?} is not known"),
    };
    let mut payloads = Vec::new();
    let mut at = 24;
    while let Some(length) = word(at + 8) {
        let start = at + 16;
        at = start + length as usize;
        let Some(packet) = bytes.get(start + link_header..at) else { break };
        let transport = match packet.first().map(|b| b >> 4) {
            Some(4) if packet.len() >= 20 && packet[9] == 17 => packet.get(usize::from(packet[0] & 15) * 4..),
            Some(6) if packet.len() >= 40 && packet[6] == 17 => packet.get(40..),
            _ => None,
        };
        if let Some(udp) = transport.filter(|udp| udp.len() > 8 && udp[2..4] == port.to_be_bytes()) {
            payloads.push(udp[8..].to_vec());
        }
    }
    Ok(payloads)
}

fn spray(to: SocketAddr, count: u32, seed: u64) -> Result<serde_json::Value> {
    let socket = socket(to)?;
    let mut state = seed | 1;
    let mut random = move || {
        // xorshift64*: the same datagrams for the same seed
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    for i in 0..count {
        let length = (random() % 1600) as usize;
        let mut datagram: Vec<u8> = (0..length).map(|_| random() as u8).collect();
        if let (Some(first), true) = (datagram.first_mut(), i % 4 != 0) {
            *first = (i % 6) as u8; // message types 0 to 5
        }
        if i % 3 == 0 {
            datagram.iter_mut().skip(1).take(3).for_each(|reserved| *reserved = 0);
        }
        let _ = socket.send(&datagram); // a full buffer is no matter
    }
    let answers = listen(&socket, Instant::now() + Duration::from_millis(500), |_| false);
    Ok(json!({ "sent": count, "answers": answers }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crafted_packets_have_right_checksums() {
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
            for kind in [Kind::TcpSyn, Kind::TcpAck, Kind::Udp, Kind::IcmpEcho] {
                let packet = inner_packet(kind, source, 1000, destination, 80).unwrap();
                if destination.is_ipv4() {
                    assert_eq!(checksum(&packet[..20]), 0);
                    assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
                }
                assert!(!describe(&packet).contains("malformed"));
            }
        }
    }
}
