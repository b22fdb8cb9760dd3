//! How much memory a controller with a hundred nodes takes: the program itself, with its real database, audit log and TLS, and a
//! hundred streams of simulated nodes that verify and acknowledge every document.
//!
//! The bound is [`LIMIT_KIB`] of resident memory in whatever build the test runs; it prints the build and the figure.

#![allow(clippy::unwrap_used)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use postern_common::{
    grant::GrantVerifier,
    id::{BootId, Nonce},
    key::{DeviceSigningKey, SigningPurpose, WireGuardPrivateKey},
    protocol::{Enrol, FromNode, Hello, Join, PROTOCOL_VERSION, STREAM_PATH, ToNode, hello_payload, join_payload},
};
use postern_controller::{
    admin::{client, request::Request},
    serve::clock,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

const NODES: u8 = 100;
/// Every one of them may be reached by all the others.
const DATABASES: u8 = 10;
const LIMIT_KIB: u64 = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(120);

const POLICY: &str = r#"
[resource.db]
nodes = ["tag:db"]
ports = ["tcp/5432"]

[[access]]
name = "the application reads its databases"
from = ["service:app"]
to = ["db"]
lease = "30s"
"#;

struct Program {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern-controller"));
    command.arg("--config").arg(dir.join("controller.toml")).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Program {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let (at, listen) = (dir.path().display().to_string(), format!("127.0.0.1:{port}"));
        let init = ["init", "--dir", &at, "--url", "https://127.0.0.1", "--listen", &listen];
        assert!(command(dir.path()).args(init).status().unwrap().success());
        std::fs::write(dir.path().join("policy.toml"), POLICY).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = command(dir.path()).arg("serve").stderr(log).spawn().unwrap();
        let mut program = Self { child, dir, port };
        let began = Instant::now();
        while program.try_ask(&Request::Status).is_none() {
            assert!(program.child.try_wait().unwrap().is_none() && began.elapsed() < PATIENCE, "{}", program.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        program
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn socket(&self) -> PathBuf {
        postern_controller::config::Config::read(&self.dir.path().join("controller.toml")).unwrap().admin_socket
    }

    fn try_ask(&self, request: &Request) -> Option<Value> {
        client::ask(&self.socket(), request).ok()
    }

    fn ask(&self, request: &Request) -> Value {
        self.try_ask(request).unwrap_or_else(|| panic!("no answer\n{}", self.log()))
    }

    fn token(&self, service: &str) -> String {
        let request = Request::TokenCreate {
            tags: [service.parse().unwrap()].into(),
            service: Some(service.parse().unwrap()),
            machine: None,
            networks: vec![],
            uses: u32::from(NODES),
            ttl_s: 3_600,
        };
        self.ask(&request)["token"].as_str().unwrap().to_owned()
    }

    /// Returns the resident memory, KiB.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// One machine: joins with a token, then keeps its stream and acknowledges whatever verifies.
struct Node {
    number: u8,
    tls: Arc<ClientConfig>,
    port: u16,
}

impl Node {
    async fn open(&self) -> (Socket, Nonce) {
        let socket = TcpSocket::new_v4().unwrap();
        // Each from an address of its own, as machines are: the limits count by address.
        socket.bind((Ipv4Addr::new(127, 0, 1, self.number), 0).into()).unwrap();
        let tcp = socket.connect(SocketAddr::from(([127, 0, 0, 1], self.port))).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = TlsConnector::from(self.tls.clone()).connect(name, tcp).await.unwrap();
        let url = format!("wss://127.0.0.1{STREAM_PATH}");
        let (mut socket, _) = tokio_tungstenite::client_async(url, tls).await.unwrap();
        let Some(ToNode::Challenge { nonce, .. }) = next(&mut socket).await else { panic!("no challenge") };
        (socket, nonce)
    }

    async fn live(self, token: String) {
        let key = DeviceSigningKey::from_seed(&[self.number; 32]);
        let wireguard_key = WireGuardPrivateKey::from_bytes([self.number; 32]).public();
        let name = format!("node-{}", self.number).parse().unwrap();
        let (mut socket, challenge) = self.open().await;
        let payload = join_payload(challenge, &key.public(), &wireguard_key, &name);
        let signature = key.sign(SigningPurpose::Join, &payload);
        let join = Join { protocol: PROTOCOL_VERSION, device_key: key.public(), wireguard_key, name, signature };
        send(&mut socket, &FromNode::Enrol(Enrol { join, token })).await;
        let (device, controller) = match next(&mut socket).await {
            Some(ToNode::Joined { device, controller, .. }) => (device, controller),
            other => panic!("node {} did not join: {other:?}", self.number),
        };
        drop(socket);

        let (mut socket, challenge) = self.open().await;
        let (nonce, boot) = (Nonce::from_bytes([self.number; 16]), BootId::from_bytes([6; 16]));
        let payload = hello_payload(challenge, device, boot, nonce);
        let mut verifier = GrantVerifier::new(device, controller);
        verifier.remember_nonce(nonce, clock::now().monotonic);
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            device,
            signature: key.sign(SigningPurpose::StreamHello, &payload),
            nonce,
            boot,
            enforced: None,
            keys: vec![wireguard_key],
            listen_port: 51820,
            endpoints: vec![([192, 0, 2, self.number], 51820).into()],
            version: "simulated".into(),
            machine: Default::default(),
        };
        send(&mut socket, &FromNode::Hello(hello)).await;
        while let Some(message) = next(&mut socket).await {
            if let ToNode::Grants { signed } = message {
                let position = verifier.verify(&signed).unwrap().position();
                send(&mut socket, &FromNode::Enforced { position, cut: 0 }).await;
            }
        }
    }
}

async fn send(socket: &mut Socket, message: &FromNode) {
    socket.send(Message::Text(serde_json::to_string(message).unwrap().into())).await.unwrap();
}

async fn next(socket: &mut Socket) -> Option<ToNode> {
    loop {
        match socket.next().await? {
            Ok(Message::Text(text)) => return Some(serde_json::from_str(&text).unwrap()),
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_with_a_hundred_nodes_stays_below_64_mb() {
    let program = tokio::task::spawn_blocking(Program::start).await.unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(program.dir.path().join("keys/ca.crt")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let tls = Arc::new(builder.unwrap().with_root_certificates(roots).with_no_client_auth());
    let (db, app) = (program.token("db"), program.token("app"));

    let mut nodes = tokio::task::JoinSet::new();
    for number in 1..=NODES {
        let token = if number <= DATABASES { db.clone() } else { app.clone() };
        nodes.spawn(Node { number, tls: tls.clone(), port: program.port }.live(token));
    }

    // All are connected, know each other, and have had their leases renewed at least once.
    let began = Instant::now();
    let (status, most) = loop {
        let status = program.ask(&Request::Status);
        let resident = program.resident();
        assert!(resident < LIMIT_KIB, "{resident} KiB resident with {} nodes connected", status["core"]["connected"]);
        let core = &status["core"];
        let renewed = began.elapsed() > Duration::from_secs(25);
        let known = |view: &Value| view["stream"]["peers"].as_u64() >= Some(u64::from(DATABASES));
        let all_know = status["nodes"].as_array().unwrap().iter().all(known);
        if core["connected"] == NODES && core["current"] == NODES && all_know && renewed {
            break (status, resident);
        }
        assert!(nodes.try_join_next().is_none(), "a node ended\n{}", program.log());
        assert!(began.elapsed() < PATIENCE, "{core}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    println!("{build} build: {most} KiB resident with {NODES} nodes; {}", status["core"]["counters"]);
    nodes.abort_all();
}
