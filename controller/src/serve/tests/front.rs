//! What strangers meet: TLS, limits, messages that make no sense.

use postern_common::protocol::{MAX_NODE_MESSAGE_BYTES, Refusal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn only_tls_1_3_is_spoken_and_a_hybrid_key_exchange_is_preferred() {
    let controller = Controller::start("").await;
    let tcp = TcpStream::connect(controller.address()).await.unwrap();
    let old = TlsConnector::from(controller.client_config(&[&rustls::version::TLS12]));
    assert!(old.connect(ServerName::try_from("127.0.0.1").unwrap(), tcp).await.is_err());

    let stream = controller.tls().await;
    let (_, session) = stream.get_ref();
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let group = session.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(session.peer_certificates().unwrap().len(), 2, "the authority is presented, for pins");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_makes_no_sense_ends_the_stream_with_a_refusal() {
    let controller = Controller::start("").await;
    for nonsense in ["", "{}", "[]", "{\"type\":\"nonsense\"}", "{\"type\":\"hello\"}", "\u{0}"] {
        let mut stream = controller.stream().await;
        stream.send_text(nonsense.into()).await;
        let answer = stream.until(|message| matches!(message, ToNode::Refused { .. }).then_some(message)).await;
        assert!(matches!(answer, ToNode::Refused { refusal: Refusal::Protocol, .. }), "{nonsense:?}: {answer:?}");
        assert!(stream.next().await.is_none(), "{nonsense:?}: the stream ends");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_long_ends_the_stream() {
    let controller = Controller::start("").await;
    let mut stream = controller.stream().await;
    let long = format!("{{\"type\":\"{}\"}}", "x".repeat(MAX_NODE_MESSAGE_BYTES));
    drop(stream.socket.send(Message::Text(long.into())).await);
    while let Some(message) = stream.next().await {
        assert!(!matches!(message, ToNode::Refused { .. }), "it is dropped before it is read");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_gets_only_its_share_of_connections() {
    let mut controller = Controller::prepare("");
    let file = controller.file("controller.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("connections_per_address = 128", "connections_per_address = 4")).unwrap();
    controller.serve().await.unwrap();
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(controller.stream().await);
    }
    let mut fifth = TcpStream::connect(controller.address()).await.unwrap();
    drop(fifth.write_all(b"\x16\x03\x01").await);
    let read = timeout(PATIENCE, fifth.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "closed at once");
    assert_eq!(controller.ask(Request::Status).await.unwrap()["connections"]["refused"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_connects_and_says_nothing_is_shown_out() {
    let controller = Controller::start("").await;
    let mut silent = TcpStream::connect(controller.address()).await.unwrap();
    let mut slow = controller.tls().await;
    slow.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap(); // and never more
    let closed = |read: std::io::Result<usize>| matches!(read, Ok(0) | Err(_));
    assert!(closed(timeout(PATIENCE, silent.read(&mut [0; 1])).await.unwrap()));
    let mut rest = Vec::new();
    drop(timeout(PATIENCE, slow.read_to_end(&mut rest)).await.expect("it is closed"));
    assert!(!rest.starts_with(b"HTTP/1.1 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_served_beside_streams() {
    let controller = Controller::start("").await;
    let mut tls = controller.tls().await;
    tls.write_all(b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    drop(timeout(PATIENCE, tls.read_to_end(&mut answer)).await.unwrap());
    assert!(answer.starts_with(b"HTTP/1.1 404"), "{}", String::from_utf8_lossy(&answer));
}
