//! Many nodes in one process, for measurements of a controller: each with its own keys, a real TLS 1.3 WebSocket of its own, and a
//! verifier that checks every document before it is acknowledged. There is no data plane behind them.
//!
//! ```text
//! nodes  --token T --count N      enrol, then keep their streams: `ready N`
//! people --count N                ask to join: `code KTRM-4821` each; come back when somebody has confirmed
//! ask SOCKET                      one administration request from standard input: `{"begun_ns":..,"ended_ns":..,"answer":..}`
//! send ADDRESS / receive PORT     a flow of a packet every half millisecond, and the time of the last one that came
//! ```
//!
//! Times are of the suspend-aware monotonic clock, in nanoseconds, which all namespaces of a machine share.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use futures_util::{SinkExt, StreamExt};
use postern_common::{
    grant::GrantVerifier,
    id::{BootId, DeviceId, Nonce},
    key::{ControllerPublicKey, DeviceSigningKey, SigningPurpose, WireGuardPrivateKey},
    protocol::{Enrol, FromNode, Hello, Join, PROTOCOL_VERSION, STREAM_PATH, ToNode, hello_payload, join_payload},
    time::Monotonic,
};
use postern_node::io::clock::{Clock as _, SystemClock};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

/// How many machines join at the same time: the controller is not what is measured then.
const JOINING: usize = 16;
/// How long a flow must be silent before its last packet counts as the last.
const SILENCE: Duration = Duration::from_millis(700);

#[derive(Parser)]
#[command(about = "Simulated nodes for measurements")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Servers that join with a token.
    Nodes {
        #[command(flatten)]
        fleet: Fleet,
        /// The enrolment token.
        #[arg(long)]
        token: String,
    },
    /// Machines of people: each prints its code and waits until somebody has confirmed it.
    People {
        #[command(flatten)]
        fleet: Fleet,
    },
    /// Passes one administration request on and tells when.
    Ask {
        /// The administration socket.
        socket: PathBuf,
    },
    /// Sends a packet every half millisecond.
    Send {
        /// Where to.
        to: SocketAddr,
    },
    /// Tells when the last packet came, each time that a flow falls silent.
    Receive {
        /// The UDP port.
        port: u16,
    },
}

#[derive(Args, Clone)]
struct Fleet {
    /// The controller's certificate authority.
    #[arg(long)]
    authority: PathBuf,
    /// The controller's name.
    #[arg(long, default_value = "ctl")]
    name: String,
    /// How machines are called: NAME-0, NAME-1.
    #[arg(long)]
    called: String,
    /// How many.
    #[arg(long)]
    count: u16,
    /// The second byte of their loopback addresses.
    #[arg(long, default_value_t = 1)]
    block: u8,
}

fn monotonic() -> Monotonic {
    SystemClock::new().now().monotonic
}

fn monotonic_ns() -> u64 {
    u64::try_from(monotonic().since(Monotonic::from_nanos(0)).as_nanos()).unwrap_or(u64::MAX)
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Nodes { fleet, token } => run(fleet, Some(token)),
        Command::People { fleet } => run(fleet, None),
        Command::Ask { socket } => ask(&socket),
        Command::Send { to } => send_packets(to),
        Command::Receive { port } => receive_packets(port),
    }
}

fn ask(socket: &std::path::Path) -> Result<()> {
    let mut request = String::new();
    std::io::stdin().read_to_string(&mut request)?;
    let begun = monotonic_ns();
    let mut stream = UnixStream::connect(socket).context("the administration socket")?;
    stream.write_all(format!("{}\n", request.trim()).as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    println!("{{\"begun_ns\":{begun},\"ended_ns\":{},\"answer\":{}}}", monotonic_ns(), answer.trim());
    Ok(())
}

fn send_packets(to: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(("::", 0))?;
    let mut next = std::time::Instant::now();
    loop {
        drop(socket.send_to(&monotonic_ns().to_be_bytes(), to)); // refused once the door is closed: it goes on knocking
        next += Duration::from_micros(500);
        std::thread::sleep(next.saturating_duration_since(std::time::Instant::now()));
    }
}

fn receive_packets(port: u16) -> Result<()> {
    let socket = UdpSocket::bind(("::", port))?;
    socket.set_read_timeout(Some(SILENCE))?;
    let (mut last, mut packet) = (None, [0; 64]);
    loop {
        match socket.recv_from(&mut packet) {
            Ok(_) => {
                if last.is_none() {
                    println!("flowing");
                }
                last = Some(monotonic_ns());
            }
            Err(_) => {
                if let Some(at) = last.take() {
                    println!("last {at}");
                }
            }
        }
    }
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

struct Machine {
    number: u16,
    fleet: Fleet,
    tls: Arc<ClientConfig>,
    ready: Arc<AtomicUsize>,
}

#[tokio::main(flavor = "current_thread")]
async fn run(fleet: Fleet, token: Option<String>) -> Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&fleet.authority)?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let tls = Arc::new(builder?.with_root_certificates(roots).with_no_client_auth());
    let (places, ready) = (Arc::new(Semaphore::new(JOINING)), Arc::new(AtomicUsize::new(0)));
    let mut machines = tokio::task::JoinSet::new();
    for number in 0..fleet.count {
        let machine = Machine { number, fleet: fleet.clone(), tls: tls.clone(), ready: ready.clone() };
        let (places, token) = (places.clone(), token.clone());
        machines.spawn(async move { machine.live(token, &places).await });
    }
    while let Some(ended) = machines.join_next().await {
        ended?.context("a machine ended")?;
    }
    Ok(())
}

impl Machine {
    fn seed(&self, purpose: u8) -> [u8; 32] {
        let mut seed = [purpose; 32];
        seed[..2].copy_from_slice(&self.number.to_be_bytes());
        seed[2] = self.fleet.block;
        seed
    }

    async fn open(&self) -> Result<(Socket, Nonce)> {
        let socket = TcpSocket::new_v4()?;
        let [high, low] = self.number.to_be_bytes();
        // Each machine has an address of its own, as machines have: limits count by address.
        socket.bind((Ipv4Addr::new(127, self.fleet.block, low, high.saturating_add(1)), 0).into())?;
        let tcp = socket.connect(SocketAddr::from(([127, 0, 0, 1], 443))).await.context("connect")?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(self.fleet.name.clone())?;
        let tls = TlsConnector::from(self.tls.clone()).connect(name, tcp).await.context("TLS")?;
        let (mut socket, _) =
            tokio_tungstenite::client_async(format!("wss://{}{STREAM_PATH}", self.fleet.name), tls).await?;
        match next(&mut socket).await? {
            ToNode::Challenge { nonce, .. } => Ok((socket, nonce)),
            other => bail!("no challenge: {other:?}"),
        }
    }

    async fn live(self, token: Option<String>, places: &Semaphore) -> Result<()> {
        let place = places.acquire().await?;
        let key = DeviceSigningKey::from_seed(&self.seed(1));
        let wireguard_key = WireGuardPrivateKey::from_bytes(self.seed(2)).public();
        let name = format!("{}-{}", self.fleet.called, self.number).parse()?;
        let (mut socket, challenge) = self.open().await?;
        let payload = join_payload(challenge, &key.public(), &wireguard_key, &name);
        let signature = key.sign(SigningPurpose::Join, &payload);
        let join = Join { protocol: PROTOCOL_VERSION, device_key: key.public(), wireguard_key, name, signature };
        let (device, controller) = match token {
            Some(token) => {
                send(&mut socket, &FromNode::Enrol(Enrol { join, token })).await?;
                joined(&mut socket).await?
            }
            None => {
                send(&mut socket, &FromNode::Join(join)).await?;
                match next(&mut socket).await? {
                    ToNode::JoinPending { code, .. } => println!("code {code}"),
                    other => bail!("no code: {other:?}"),
                }
                joined(&mut socket).await?
            }
        };
        drop(socket);
        let (mut socket, challenge) = self.open().await?;
        let (nonce, boot) = (Nonce::from_bytes([7; 16]), BootId::from_bytes([6; 16]));
        let mut verifier = GrantVerifier::new(device, controller);
        verifier.remember_nonce(nonce, monotonic());
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            device,
            signature: key.sign(SigningPurpose::StreamHello, &hello_payload(challenge, device, boot, nonce)),
            nonce,
            boot,
            enforced: None,
            keys: vec![wireguard_key],
            listen_port: 51_820,
            endpoints: vec![],
            version: "simulated".into(),
            machine: Default::default(),
        };
        send(&mut socket, &FromNode::Hello(hello)).await?;
        drop(place);
        loop {
            match next(&mut socket).await? {
                ToNode::Grants { signed } => {
                    let position = verifier.verify(&signed)?.position();
                    send(&mut socket, &FromNode::Enforced { position, cut: 0 }).await?;
                    if position.generation == 1 {
                        let ready = self.ready.fetch_add(1, Ordering::Relaxed) + 1;
                        if ready.is_multiple_of(100) || ready == usize::from(self.fleet.count) {
                            println!("ready {ready}");
                        }
                    }
                }
                ToNode::Refused { message, .. } => bail!("refused: {message}"),
                _ => {}
            }
        }
    }
}

async fn joined(socket: &mut Socket) -> Result<(DeviceId, ControllerPublicKey)> {
    match next(socket).await? {
        ToNode::Joined { device, controller, .. } => Ok((device, controller)),
        other => bail!("did not join: {other:?}"),
    }
}

async fn send(socket: &mut Socket, message: &FromNode) -> Result<()> {
    Ok(socket.send(Message::Text(serde_json::to_string(message)?.into())).await?)
}

async fn next(socket: &mut Socket) -> Result<ToNode> {
    loop {
        match socket.next().await.context("the stream ended")?? {
            Message::Text(text) => return Ok(serde_json::from_str(&text)?),
            Message::Close(_) => bail!("the controller closed the stream"),
            _ => {}
        }
    }
}
