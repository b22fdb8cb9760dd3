//! A controller on loopback, and machines that speak to it over real TLS and WebSockets.

mod administration;
mod durability;
mod front;
mod nodes;
mod provisioning;
mod turns;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{SinkExt, StreamExt};
use postern_common::{
    grant::{GrantVerifier, VerifiedGrants},
    id::{BootId, DeviceId, MachineName, Nonce},
    key::{ControllerPublicKey, DeviceSigningKey, SigningPurpose, WireGuardPrivateKey, WireGuardPublicKey},
    protocol::{Enrol, FromNode, Hello, Join, PROTOCOL_VERSION, STREAM_PATH, ToNode, hello_payload, join_payload},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::{AtStart, Running, ServeError, clock, start};
use crate::{
    admin::{cli::typed, client, request::Request},
    config::Config,
};

/// How long anything in a test may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A policy in which every machine with the tag `app` may open tcp/5432 on machines with the tag `db`.
const POLICY: &str = r#"
[resource.db]
nodes = ["tag:db"]
ports = ["tcp/5432"]

[[access]]
name = "the application reads its database"
from = ["service:app"]
to = ["db"]
"#;

struct Controller {
    running: Option<Running>,
    dir: tempfile::TempDir,
}

impl Controller {
    /// Makes a controller's files as `init` does, with a policy.
    fn prepare(policy: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display().to_string();
        typed(&["init", "--dir", &at, "--url", "https://127.0.0.1", "--listen", "127.0.0.1:0"]).unwrap();
        std::fs::write(dir.path().join("policy.toml"), policy).unwrap();
        Self { running: None, dir }
    }

    async fn start(policy: &str) -> Self {
        let mut controller = Self::prepare(policy);
        controller.serve().await.unwrap();
        controller
    }

    async fn serve(&mut self) -> Result<(), ServeError> {
        self.running = Some(start(self.config(), AtStart::KeepPolicy).await?);
        Ok(())
    }

    async fn stop(&mut self) {
        self.running.take().unwrap().stop().await;
    }

    fn config(&self) -> Config {
        Config::read(&self.file("controller.toml")).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    fn address(&self) -> SocketAddr {
        self.running().listening[0]
    }

    async fn ask(&self, request: Request) -> Result<Value, client::ClientError> {
        let socket = self.config().admin_socket;
        tokio::task::spawn_blocking(move || client::ask(&socket, &request)).await.unwrap()
    }

    async fn token(&self, service: &str, tag: &str, uses: u32) -> String {
        let request = Request::TokenCreate {
            tags: [tag.parse().unwrap()].into(),
            service: Some(service.parse().unwrap()),
            machine: None,
            networks: vec![],
            uses,
            ttl_s: 3_600,
        };
        self.ask(request).await.unwrap()["token"].as_str().unwrap().to_owned()
    }

    fn client_config(&self, versions: &[&'static rustls::SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.file("keys/ca.crt")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    }

    async fn tls(&self) -> TlsStream<TcpStream> {
        let tcp = TcpStream::connect(self.address()).await.unwrap();
        let connector = TlsConnector::from(self.client_config(&[&rustls::version::TLS13]));
        connector.connect(ServerName::try_from("127.0.0.1").unwrap(), tcp).await.unwrap()
    }

    /// Opens a stream and takes the challenge.
    async fn stream(&self) -> Stream {
        let url = format!("wss://127.0.0.1{STREAM_PATH}");
        let (socket, _) = tokio_tungstenite::client_async(url, self.tls().await).await.unwrap();
        let mut stream = Stream { socket, challenge: Nonce::from_bytes([0; 16]) };
        let Some(ToNode::Challenge { nonce, .. }) = stream.next().await else { panic!("no challenge") };
        stream.challenge = nonce;
        stream
    }
}

struct Stream {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    challenge: Nonce,
}

impl Stream {
    async fn send(&mut self, message: &FromNode) {
        self.send_text(serde_json::to_string(message).unwrap()).await;
    }

    async fn send_text(&mut self, text: String) {
        self.socket.send(Message::Text(text.into())).await.unwrap();
    }

    /// Returns the next message; `None` once the stream has ended.
    async fn next(&mut self) -> Option<ToNode> {
        loop {
            match timeout(PATIENCE, self.socket.next()).await.expect("the controller answers") {
                Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// Returns the next message that `pick` takes.
    async fn until<T>(&mut self, pick: impl Fn(ToNode) -> Option<T>) -> T {
        loop {
            let message = self.next().await.expect("the stream goes on");
            if let Some(found) = pick(message) {
                return found;
            }
        }
    }
}

/// A machine with our agent's keys.
struct Machine {
    name: MachineName,
    key: DeviceSigningKey,
    wireguard: WireGuardPublicKey,
    enrolled: Option<(DeviceId, ControllerPublicKey)>,
}

impl Machine {
    fn new(name: &str, seed: u8) -> Self {
        Self {
            name: name.parse().unwrap(),
            key: DeviceSigningKey::from_seed(&[seed; 32]),
            wireguard: WireGuardPrivateKey::from_bytes([seed; 32]).public(),
            enrolled: None,
        }
    }

    /// Tries to join with a token, and returns the controller's answer.
    async fn enrol(&mut self, controller: &Controller, token: &str) -> ToNode {
        let mut stream = controller.stream().await;
        let payload = join_payload(stream.challenge, &self.key.public(), &self.wireguard, &self.name);
        let join = Join {
            protocol: PROTOCOL_VERSION,
            device_key: self.key.public(),
            wireguard_key: self.wireguard,
            name: self.name.clone(),
            signature: self.key.sign(SigningPurpose::Join, &payload),
        };
        stream.send(&FromNode::Enrol(Enrol { join, token: token.to_owned() })).await;
        let answer = stream
            .until(|message| matches!(message, ToNode::Joined { .. } | ToNode::Refused { .. }).then_some(message))
            .await;
        if let ToNode::Joined { device, controller, .. } = &answer {
            self.enrolled = Some((*device, *controller));
        }
        answer
    }

    /// Says hello and returns the stream with what is verified of the first document.
    async fn hello(&self, controller: &Controller) -> (Stream, GrantVerifier, VerifiedGrants) {
        let (device, key) = self.enrolled.unwrap();
        let mut stream = controller.stream().await;
        let (nonce, boot) = (Nonce::from_bytes([5; 16]), BootId::from_bytes([6; 16]));
        let payload = hello_payload(stream.challenge, device, boot, nonce);
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            device,
            signature: self.key.sign(SigningPurpose::StreamHello, &payload),
            nonce,
            boot,
            enforced: None,
            keys: vec![self.wireguard],
            listen_port: 51820,
            endpoints: vec![],
            version: "test".into(),
            machine: Default::default(),
        };
        let mut verifier = GrantVerifier::new(device, key);
        verifier.remember_nonce(nonce, clock::now().monotonic);
        stream.send(&FromNode::Hello(hello)).await;
        let signed = stream
            .until(|message| match message {
                ToNode::Grants { signed } => Some(signed),
                ToNode::Refused { message, .. } => panic!("refused: {message}"),
                _ => None,
            })
            .await;
        let verified = verifier.verify(&signed).unwrap();
        (stream, verifier, verified)
    }
}
