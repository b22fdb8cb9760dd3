//! The measured node: a worker with the whole policy path on, and no controller.
//!
//! `postern bench-plane prepare` makes a throw-away controller key, signs one snapshot for each of two nodes and writes them to
//! files; `postern bench-plane run` verifies such a file as any node verifies its controller, and runs the worker on it.
//! Nothing of the real path is replaced or left out: the same verifier, the same rules, flow table and deadlines. Only the
//! key that signs is made for the occasion, and it is thrown away: nothing trusts it but the process that was given the file.

use std::{
    fs,
    io::Write,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use postern_common::{
    grant::{
        Change, DOCUMENT_VERSION, GrantDocument, GrantVerifier, KeyPair, Mode, OnDeny, OwnGrant, PeerGrant, Permission,
        Position, SignedDocument, sign,
    },
    id::{DeviceId, LeaseId, Nonce, SubjectId},
    key::{ControllerPublicKey, ControllerSigningKey, PresharedKey, WireGuardPrivateKey, WireGuardPublicKey},
    time::Lifetime,
};
use postern_dataplane::{DataPlane, Settings};
use serde::{Deserialize, Serialize};

use super::{
    clock::{Clock, SystemClock},
    tun::{DEFAULT_NAME, Offloads, Tun},
    udp::{Segmentation, UdpSockets},
    worker,
};

/// Flows of one peer: all of the load's come from one.
const FLOWS: usize = 60_000;
/// How long the throw-away grants hold.
const LIFETIME: Duration = Duration::from_secs(24 * 3_600);

/// Run the packet path by itself, to measure it
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  postern bench-plane prepare /tmp/bench --a 10.0.0.1:51820 --b 10.0.0.2:51820\n  sudo postern bench-plane run /tmp/bench/a.json\n\nscripts/bench does all of it."
)]
pub struct BenchPlane {
    #[command(subcommand)]
    step: Step,
}

#[derive(Debug, Subcommand)]
enum Step {
    /// Writes signed grants and keys for two nodes: DIR/a.json and DIR/b.json.
    Prepare {
        /// Where to write.
        directory: PathBuf,
        /// Node a's outer address and port.
        #[arg(long)]
        a: SocketAddr,
        /// Node b's outer address and port.
        #[arg(long)]
        b: SocketAddr,
        /// Rules between the two nodes; only the last lets the traffic pass.
        #[arg(long, default_value_t = 50)]
        rules: usize,
        /// Further peers of each node, with as many rules each.
        #[arg(long, default_value_t = 50)]
        peers: usize,
    },
    /// Runs one node until it is killed.
    Run {
        /// The node's file.
        file: PathBuf,
        /// The TUN interface.
        #[arg(long, default_value = DEFAULT_NAME)]
        interface: String,
        /// The inner MTU.
        #[arg(long, default_value_t = super::path::DEFAULT_INNER_MTU)]
        mtu: u16,
        /// Do without TUN offloads, GSO and GRO.
        #[arg(long)]
        plain: bool,
        /// Threads that handle packets.
        #[arg(long, default_value_t = NonZeroUsize::MIN)]
        workers: NonZeroUsize,
        /// Judge nothing: what the policy path is compared with.
        #[arg(long, hide = true)]
        unjudged: bool,
        /// Print the counters every second.
        #[arg(long)]
        counters: bool,
    },
}

/// One node's file.
#[derive(Debug, Serialize, Deserialize)]
struct NodeFile {
    port: u16,
    device: DeviceId,
    controller: ControllerPublicKey,
    nonce: Nonce,
    private_key: [u8; 32],
    grants: SignedDocument,
}

impl BenchPlane {
    /// Does what was asked.
    ///
    /// # Errors
    /// In words for the person who measures.
    pub fn run(self) -> anyhow::Result<()> {
        match self.step {
            Step::Prepare { directory, a, b, rules, peers } => prepare(&directory, [a, b], rules, peers),
            Step::Run { file, interface, mtu, plain, workers, unjudged, counters } => {
                let (offloads, segmentation) = match plain {
                    false => (Offloads::All, Segmentation::Offloaded),
                    true => (Offloads::None, Segmentation::Off),
                };
                let judging = if unjudged { Judging::Off } else { Judging::On };
                let (handle, mut events) = start(&file, &interface, mtu, (offloads, segmentation), workers, judging)?;
                if counters {
                    let handle = handle.clone();
                    std::thread::spawn(move || {
                        while let Ok(status) = handle.status_blocking() {
                            eprintln!("{status:?}");
                            std::thread::sleep(Duration::from_secs(1));
                        }
                    });
                }
                while let Some(event) = events.blocking_recv() {
                    if let worker::WorkerEvent::TunLost { reason } = event {
                        bail!("the interface {interface} is gone: {reason}");
                    }
                }
                Ok(())
            }
        }
    }
}

/// Whether packets are judged. Only this module knows the other way, and only for a key that it made itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judging {
    On,
    Off,
}

/// Starts one node from its file.
pub(super) fn start(
    file: &Path,
    interface: &str,
    mtu: u16,
    (offloads, segmentation): (Offloads, Segmentation),
    workers: NonZeroUsize,
    judging: Judging,
) -> anyhow::Result<(worker::WorkerHandle, tokio::sync::mpsc::Receiver<worker::WorkerEvent>)> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let node: NodeFile = serde_json::from_str(&text).with_context(|| format!("cannot parse {}", file.display()))?;
    let clock = Arc::new(SystemClock::new());
    let now = clock.now();
    let mut verifier = GrantVerifier::new(node.device, node.controller);
    verifier.remember_nonce(node.nonce, now.monotonic);
    let grants = verifier.verify(&node.grants)?;
    let tun = Tun::open(interface, offloads)?;
    let sockets = UdpSockets::bind(node.port, segmentation)?;
    let mut plane = DataPlane::new(Settings { mtu, flows_per_peer: FLOWS, ..Settings::default() }, now);
    if judging == Judging::Off {
        plane.stop_judging_to_measure();
    }
    let (handle, events) = worker::spawn(plane, tun, sockets, clock, workers)?;
    handle.set_local_keys_blocking(vec![WireGuardPrivateKey::from_bytes(node.private_key)])?;
    handle.apply_blocking(grants)?;
    Ok((handle, events))
}

/// Reads the private key in a node's file.
#[cfg(test)]
pub(super) fn private_key(file: &Path) -> anyhow::Result<WireGuardPrivateKey> {
    let node: NodeFile = serde_json::from_str(&fs::read_to_string(file)?)?;
    Ok(WireGuardPrivateKey::from_bytes(node.private_key))
}

/// Writes both nodes' files.
pub(super) fn prepare(directory: &Path, outer: [SocketAddr; 2], rules: usize, peers: usize) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let controller = ControllerSigningKey::from_seed(&random()?);
    let private = [WireGuardPrivateKey::from_bytes(random()?), WireGuardPrivateKey::from_bytes(random()?)];
    let public = [private[0].public(), private[1].public()];
    let preshared = PresharedKey::from_bytes(random()?);
    for side in 0..2 {
        let other = 1 - side;
        let keys = KeyPair { local: public[side], remote: public[other], preshared: preshared.clone() };
        let mut all = vec![peer(other, keys, vec![outer[other]], rules)?];
        for index in 0..peers {
            let remote = WireGuardPublicKey::from_bytes(random()?);
            let preshared = PresharedKey::from_bytes(random()?);
            all.push(peer(index + 2, KeyPair { local: public[side], remote, preshared }, vec![], rules)?);
        }
        let nonce = Nonce::from_bytes(random()?);
        let now = SystemClock::default().now().wall;
        let lifetime = Lifetime { remaining_ms: LIFETIME.as_millis() as u64, not_after: now.saturating_add(LIFETIME) };
        let own = OwnGrant {
            name: "bench".parse()?,
            subject: SubjectId::from_bytes([0; 16]),
            subject_name: "service:bench".into(),
            tags: vec![],
            addresses: addresses(side),
            overlay: vec!["100.80.0.0/16".parse()?, "fd00:80::/64".parse()?],
            domain: "internal".into(),
            keys: vec![public[side]],
            session_until: None,
            quarantine: None,
            step_up: vec![],
            scan: None,
        };
        let document = GrantDocument {
            version: DOCUMENT_VERSION,
            audience: device(side),
            position: Position { epoch: 1, generation: 1 },
            nonce,
            issued_at: now,
            policy_revision: 1,
            change: Change::Snapshot { own, peers: all },
        };
        // `peer` leaves every lifetime for this place to fill.
        let document = GrantDocument { change: document.change.map_time(&|_: Lifetime| lifetime), ..document };
        let node = NodeFile {
            port: outer[side].port(),
            device: device(side),
            controller: controller.public(),
            nonce,
            private_key: *private[side].expose(),
            grants: sign(&document, &controller),
        };
        let path = directory.join(["a.json", "b.json"][side]);
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(serde_json::to_string(&node)?.as_bytes())?;
    }
    Ok(())
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(bytes)
}

fn device(index: usize) -> DeviceId {
    DeviceId::from_bytes((index as u128 + 1).to_be_bytes())
}

/// Node a owns 100.80.0.1 and fd00:80::1, node b the next ones.
fn addresses(index: usize) -> Vec<IpAddr> {
    let host = index as u16 + 1;
    vec![IpAddr::from([100, 80, (host >> 8) as u8, host as u8]), IpAddr::from([0xfd00, 0x80, 0, 0, 0, 0, 0, host])]
}

fn peer(index: usize, keys: KeyPair, endpoints: Vec<SocketAddr>, rules: usize) -> anyhow::Result<PeerGrant<Lifetime>> {
    let permission = |number: usize, services: &[&str]| -> anyhow::Result<Permission<Lifetime>> {
        Ok(Permission {
            rule: format!("rule {number}").parse()?,
            resource: format!("resource-{number}").parse()?,
            lease: LeaseId::from_bytes([1; 16]),
            services: services.iter().map(|service| service.parse()).collect::<Result<_, _>>()?,
            until: Lifetime { remaining_ms: 0, not_after: postern_common::time::WallTime::from_millis(0) },
            on_deny: OnDeny::Reject,
            mode: Mode::Enforce,
            limits: Default::default(),
        })
    };
    // Rules that name a few low ports each, then the one that the traffic needs: the evaluator has to look at them all.
    let mut permissions = (1..rules)
        .map(|number| {
            let port = 1 + number % 1_000;
            permission(number, &[&format!("tcp/{port}"), &format!("udp/{port}")])
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    permissions.push(permission(rules, &["tcp/5000-60000", "udp/5000-60000", "icmp"])?);
    Ok(PeerGrant {
        device: device(index),
        name: format!("peer-{index}").parse()?,
        subject: SubjectId::from_bytes([2; 16]),
        subject_name: format!("service:peer-{index}"),
        tags: vec![],
        addresses: addresses(index),
        pairs: vec![keys],
        endpoints,
        inbound: permissions.clone(),
        outbound: permissions,
        scan: None,
    })
}
