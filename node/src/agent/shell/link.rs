//! One stream to the controller: TCP, TLS, WebSocket (RFC 6455), messages as JSON texts. A task of its own, which ends with
//! the stream and says why.
//!
//! Bounds: [`OUTGOING`] messages wait to be sent (one more drops the link), [`INCOMING`] wait to be handled (then the
//! controller is slowed by TCP), one message has at most [`MAX_MESSAGE_BYTES`]. A link on which nothing was heard for
//! [`SILENCE`] is dead: pings make sure that a living one is heard.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{SinkExt, StreamExt};
use postern_common::{
    grant::MAX_DOCUMENT_BYTES,
    protocol::{FromNode, STREAM_PATH, ToNode},
};
use rustls::pki_types::ServerName;
use tokio::{
    net::TcpStream,
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, interval_at, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error as WebSocketError, Message,
        client::IntoClientRequest,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{dial, tls};
use crate::agent::{core::Retry, target::ControllerTarget};

/// Messages that wait to be sent.
pub const OUTGOING: usize = 256;
/// Messages that wait to be handled.
pub const INCOMING: usize = 8;
/// The most bytes of one message: a document, escaped inside a JSON text.
pub const MAX_MESSAGE_BYTES: usize = 2 * MAX_DOCUMENT_BYTES;
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long nothing at all may be heard. The shortest lease is 30 s and renewed at 20 s: a stream that died unnoticed
/// must be open again before the rest has passed.
pub const SILENCE: Duration = Duration::from_secs(9);
const SEND_PATIENCE: Duration = Duration::from_secs(20);
const LAST_WORDS: Duration = Duration::from_millis(300);
const FAREWELL: Duration = Duration::from_secs(2);

/// What happens on a link. The number tells links apart: a late word of a closed one is not taken for the present one's.
#[derive(Debug)]
pub struct LinkEvent {
    /// The link's number.
    pub link: u64,
    /// What happened.
    pub what: Happened,
}

/// What happened on a link.
#[derive(Debug)]
pub enum Happened {
    /// It is open.
    Opened {
        /// The controller's address.
        remote: SocketAddr,
        /// This machine's address towards it.
        local: SocketAddr,
    },
    /// The controller said something.
    Said(Box<ToNode>),
    /// It could not be opened, or it ended.
    Ended {
        /// Why, for people.
        error: String,
        /// Whether it may mend by itself.
        retry: Retry,
    },
}

/// The sending end of a link. Dropped, it lets what is queued go out and closes the stream.
#[derive(Debug)]
pub struct Link {
    /// Tells links apart.
    pub number: u64,
    outgoing: mpsc::Sender<FromNode>,
    task: JoinHandle<()>,
}

impl Link {
    /// Begins to open a stream.
    pub fn open(number: u64, target: ControllerTarget, events: mpsc::Sender<LinkEvent>) -> Self {
        let (outgoing, queue) = mpsc::channel(OUTGOING);
        let task = tokio::spawn(async move {
            let end = run(number, &target, queue, &events).await;
            if let Err((error, retry)) = end {
                let _ = events.send(LinkEvent { link: number, what: Happened::Ended { error, retry } }).await;
            }
        });
        Self { number, outgoing, task }
    }

    /// Lets what is queued go out, closes the stream, and returns the task that does so.
    pub fn close(self) -> JoinHandle<()> {
        self.task
    }

    /// Queues a message; returns false when the queue is full or the link has ended.
    pub fn send(&self, message: FromNode) -> bool {
        self.outgoing.try_send(message).is_ok()
    }
}

type Failure = (String, Retry);
type Socket = WebSocketStream<TlsStream<TcpStream>>;

async fn run(
    number: u64,
    target: &ControllerTarget,
    mut queue: mpsc::Receiver<FromNode>,
    events: &mpsc::Sender<LinkEvent>,
) -> Result<(), Failure> {
    let (mut socket, remote, local) = tokio::select! {
        opened = open(target) => opened?,
        () = gone(&mut queue) => return Ok(()),
    };
    let tell = |what| events.send(LinkEvent { link: number, what });
    if tell(Happened::Opened { remote, local }).await.is_err() {
        return Ok(());
    }
    let mut pings = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let hear = async |text: &str| -> Result<bool, Failure> {
        let message = serde_json::from_str(text).map_err(|_| {
            let error = "the controller sent a message that this version does not know: update postern";
            (error.to_owned(), Retry::Slowly)
        })?;
        Ok(tell(Happened::Said(Box::new(message))).await.is_ok())
    };
    loop {
        let sent = tokio::select! {
            message = queue.recv() => match message {
                Some(message) => send(&mut socket, &message).await,
                None => {
                    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                    let _ = timeout(FAREWELL, socket.close(Some(frame))).await; // politeness, not needed
                    return Ok(());
                }
            },
            received = socket.next() => {
                heard = Instant::now();
                match received {
                    Some(Ok(Message::Text(text))) => {
                        if !hear(&text).await? {
                            return Ok(());
                        }
                        Ok(())
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(()),
                    Some(Ok(Message::Binary(_))) => {
                        return Err(("the controller sent bytes where a text belongs".into(), Retry::Slowly));
                    }
                    Some(Ok(Message::Close(_))) | None => {
                        return Err(("the controller closed the stream".into(), Retry::Soon));
                    }
                    Some(Err(error)) => return Err((broken(&error), Retry::Soon)),
                }
            },
            _ = pings.tick() => {
                if heard.elapsed() > SILENCE {
                    return Err((format!("the controller was silent for {} s", SILENCE.as_secs()), Retry::Soon));
                }
                within(socket.send(Message::Ping(Default::default()))).await
            }
        };
        if let Err(failure) = sent {
            // The controller's last words, a refusal with its reason, may have arrived before the stream closed.
            for _word in 0..INCOMING {
                let Ok(Some(Ok(message))) = timeout(LAST_WORDS, socket.next()).await else { break };
                if let Message::Text(text) = message {
                    hear(&text).await?;
                }
            }
            return Err(failure);
        }
    }
}

/// Waits until the sending end is dropped; messages before the stream is open have nowhere to go.
async fn gone(queue: &mut mpsc::Receiver<FromNode>) {
    while queue.recv().await.is_some() {}
}

async fn send(socket: &mut Socket, message: &FromNode) -> Result<(), Failure> {
    let text = serde_json::to_string(message).expect("every message has a JSON form");
    within(socket.send(Message::text(text))).await
}

/// Says how a stream ended that nobody closed.
fn broken(error: &WebSocketError) -> String {
    match error {
        WebSocketError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the controller went away without a word: it was killed, or something in between cut the connection".into()
        }
        other => format!("the stream to the controller broke: {other}"),
    }
}

async fn within<E: std::fmt::Display>(sending: impl Future<Output = Result<(), E>>) -> Result<(), Failure> {
    match timeout(SEND_PATIENCE, sending).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err((format!("the stream to the controller broke: {error}"), Retry::Soon)),
        Err(_) => Err(("the controller takes no more messages".into(), Retry::Soon)),
    }
}

async fn open(target: &ControllerTarget) -> Result<(Socket, SocketAddr, SocketAddr), Failure> {
    let authority = target.authority();
    let stream = dial::dial(target.host(), target.port()).await.map_err(|error| (error.to_string(), Retry::Soon))?;
    let broke = |error: std::io::Error| (format!("the connection to {authority} broke: {error}"), Retry::Soon);
    stream.set_nodelay(true).map_err(broke)?;
    let (remote, local) = (stream.peer_addr().map_err(broke)?, stream.local_addr().map_err(broke)?);
    let config = tls::client_config(target.pin()).map_err(|error| (error.to_string(), Retry::Slowly))?;
    let name = ServerName::try_from(target.host().to_owned())
        .map_err(|_| (format!("`{}` is not a name that a certificate can have", target.host()), Retry::Slowly))?;
    let silent = || (format!("{authority} accepted the connection and then said nothing"), Retry::Soon);
    let stream = timeout(HANDSHAKE_PATIENCE, TlsConnector::from(Arc::new(config)).connect(name, stream))
        .await
        .map_err(|_| silent())?
        .map_err(|error| {
            let (text, may_mend) = tls::explain(&error, &authority, target.pin());
            (text, if may_mend { Retry::Soon } else { Retry::Slowly })
        })?;
    let request = format!("wss://{authority}{STREAM_PATH}")
        .into_client_request()
        .map_err(|error| (format!("`{authority}` makes no request: {error}"), Retry::Slowly))?;
    let mut limits = WebSocketConfig::default();
    limits.read_buffer_size = 16 << 10;
    limits.write_buffer_size = 16 << 10;
    limits.max_write_buffer_size = 1 << 20;
    limits.max_message_size = Some(MAX_MESSAGE_BYTES);
    limits.max_frame_size = Some(MAX_MESSAGE_BYTES);
    let (socket, _) =
        timeout(HANDSHAKE_PATIENCE, tokio_tungstenite::client_async_with_config(request, stream, Some(limits)))
            .await
            .map_err(|_| silent())?
            .map_err(|error| (format!("{authority} is no Postern controller: {error}"), Retry::Soon))?;
    Ok((socket, remote, local))
}
