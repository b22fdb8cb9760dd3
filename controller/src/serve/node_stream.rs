//! One node's WebSocket: bytes to messages and back, with limits on both.
//!
//! ```text
//! WebSocket text --JSON--> FromNode --> Handle::receive          ToStream --JSON--> WebSocket text
//! ```
//!
//! Bounds: a message has at most [`MAX_NODE_MESSAGE_BYTES`]; a stream that says nothing for [`SILENCE`] is closed (the
//! controller pings every [`PING_EVERY`]), one that has not asked for anything after [`FIRST_MESSAGE`] too; a message that
//! the node does not take within [`WRITE`] ends the stream. A message that cannot be read ends it with a refusal.

use std::{net::SocketAddr, time::Duration};

use axum::extract::ws::{Message, WebSocket};
use postern_common::protocol::{FromNode, Refusal, ToNode};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    actor::{Handle, STREAM_QUEUE, ToStream},
    listener::ConnectionPermit,
};

#[cfg(doc)]
use postern_common::protocol::MAX_NODE_MESSAGE_BYTES;

/// How often the controller pings.
const PING_EVERY: Duration = Duration::from_secs(15);
/// How long a stream may be silent, pongs included.
const SILENCE: Duration = Duration::from_secs(45);
/// How long a new stream may take to its first message.
const FIRST_MESSAGE: Duration = Duration::from_secs(15);
/// How long a node may take to accept one message.
const WRITE: Duration = Duration::from_secs(30);

/// Serves one node's stream to its end.
pub async fn serve(mut socket: WebSocket, remote: SocketAddr, handle: Handle, permit: ConnectionPermit) {
    let (outbox, mut inbox) = mpsc::channel(STREAM_QUEUE);
    let Ok(stream) = handle.connect(remote, outbox).await else { return };
    let mut ping = interval(PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let mut limit = FIRST_MESSAGE;
    loop {
        tokio::select! {
            told = inbox.recv() => match told {
                None => break,
                Some(ToStream::Message(message)) => if send(&mut socket, &message).await.is_err() { break },
                Some(ToStream::Close { refusal, message }) => {
                    let _ = send(&mut socket, &ToNode::Refused { refusal, message }).await;
                    break;
                }
            },
            received = socket.recv() => match received {
                Some(Ok(Message::Text(text))) => {
                    heard = Instant::now();
                    limit = SILENCE;
                    let Ok(message) = serde_json::from_str::<FromNode>(&text) else {
                        tracing::debug!(%remote, "a message that cannot be read");
                        let message = "the controller cannot read this message: is the node's software current?".into();
                        let _ = send(&mut socket, &ToNode::Refused { refusal: Refusal::Protocol, message }).await;
                        break;
                    };
                    if handle.receive(stream, message).await.is_err() { break }
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => heard = Instant::now(),
                Some(Ok(Message::Binary(_) | Message::Close(_)) | Err(_)) | None => break,
            },
            _ = ping.tick() => {
                if heard.elapsed() > limit { break }
                let sent = timeout(WRITE, socket.send(Message::Ping(axum::body::Bytes::new()))).await;
                if !matches!(sent, Ok(Ok(()))) { break }
            }
        }
    }
    let _ = handle.disconnect(stream).await;
    drop(timeout(Duration::from_secs(2), socket.send(Message::Close(None))).await);
    drop(permit);
}

async fn send(socket: &mut WebSocket, message: &ToNode) -> Result<(), ()> {
    let text = serde_json::to_string(message).map_err(drop)?;
    match timeout(WRITE, socket.send(Message::Text(text.into()))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(()),
    }
}
