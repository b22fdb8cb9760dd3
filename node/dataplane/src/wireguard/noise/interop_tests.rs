//! Our tunnels beside boringtun's, an implementation by others, and beside each other in virtual time.

use std::{net::Ipv4Addr, sync::Arc};

use boringtun::{
    noise::{Tunn, TunnResult, rate_limiter::RateLimiter},
    x25519,
};
use postern_common::{
    key::PresharedKey,
    time::{Monotonic, Now, WallTime},
};

use super::*;
use crate::wireguard::{Due, HEADER, INITIATION_LENGTH, Opening, Received, Tunnel, padded_length};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn at(ms: u64) -> Monotonic {
    Monotonic::from_millis(ms)
}

fn key(byte: u8) -> WireGuardPrivateKey {
    WireGuardPrivateKey::from_bytes([byte; 32])
}

fn ours(local: u8, remote: u8, preshared: u8) -> (WireGuard, NoiseTunnel) {
    let mut wireguard = WireGuard::new(Now { wall: WallTime::from_millis(1_700_000_000_000), monotonic: at(0) });
    wireguard.set_local_keys(&[key(local)], 1_000);
    let pair = KeyPair {
        local: key(local).public(),
        remote: key(remote).public(),
        preshared: PresharedKey::from_bytes([preshared; 32]),
    };
    let tunnel = wireguard.open(&pair, 0x00ab_cdef, at(0)).unwrap();
    (wireguard, tunnel)
}

fn theirs(local: u8, remote: u8, preshared: u8, limiter: Option<Arc<RateLimiter>>) -> Tunn {
    let public = x25519::PublicKey::from(*key(remote).public().as_bytes());
    Tunn::new(x25519::StaticSecret::from([local; 32]), public, Some([preshared; 32]), None, 5, limiter)
}

/// An IPv4 packet of `length` bytes.
fn packet(length: usize, fill: u8) -> Vec<u8> {
    let mut packet = vec![fill; length];
    packet[..4].copy_from_slice(&[0x45, 0, (length >> 8) as u8, length as u8]);
    packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    packet
}

fn seal(tunnel: &mut NoiseTunnel, packet: &[u8], now: Monotonic) -> Option<Vec<u8>> {
    let padded = padded_length(packet.len(), 1_420);
    let mut message = vec![0; padded + 32];
    message[HEADER..HEADER + packet.len()].copy_from_slice(packet);
    let length = tunnel.seal(&mut message, padded, now)?;
    assert_eq!(length, message.len());
    Some(message)
}

fn open(tunnel: &mut NoiseTunnel, message: &[u8], now: Monotonic) -> Option<Vec<u8>> {
    let mut message = message.to_vec();
    match tunnel.open(&mut message, now) {
        Opening::Packet(length) => Some(message[HEADER..HEADER + length].to_vec()),
        Opening::Keepalive => Some(vec![]),
        Opening::Refused => None,
    }
}

fn written(result: TunnResult<'_>) -> Vec<u8> {
    match result {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("{other:?}"),
    }
}

fn exchange(ours: &mut NoiseTunnel, theirs: &mut Tunn, now: Monotonic) {
    let mut buffer = vec![0; 2_000];
    for length in [20, 100, 333, 1_419, 1_420] {
        let out = packet(length, 7);
        let sealed = seal(ours, &out, now).unwrap();
        match theirs.decapsulate(None, &sealed, &mut buffer) {
            TunnResult::WriteToTunnelV4(opened, _) => assert_eq!(opened, out),
            other => panic!("{other:?}"),
        }
        let back = packet(length, 9);
        let sealed = written(theirs.encapsulate(&back, &mut buffer));
        assert_eq!(open(ours, &sealed, now).as_deref(), Some(&back[..]));
    }
}

fn we_begin(ours: &mut NoiseTunnel, theirs: &mut Tunn, now: Monotonic) {
    let (mut message, mut buffer) = (vec![0; 2_000], vec![0; 2_000]);
    let length = ours.initiate(&mut message, now).unwrap();
    assert_eq!(length, INITIATION_LENGTH);
    let response = written(theirs.decapsulate(None, &message[..length], &mut buffer));
    let Received::Established(length) = ours.receive(&response, &mut message, now) else { panic!("no session") };
    assert!(matches!(theirs.decapsulate(None, &message[..length], &mut buffer), TunnResult::Done));
}

fn they_begin(wireguard: &mut WireGuard, ours: &mut NoiseTunnel, theirs: &mut Tunn, now: Monotonic) {
    let (mut message, mut buffer) = (vec![0; 2_000], vec![0; 2_000]);
    let initiation = written(theirs.format_handshake_initiation(&mut buffer, true));
    let admitted = wireguard.admit_initiation(&initiation, HERE, &mut message, now);
    let expected = Admission::Admitted {
        local: WireGuardPublicKey::from_bytes(ours.public()),
        remote: WireGuardPublicKey::from_bytes(
            *x25519::PublicKey::from(&x25519::StaticSecret::from([2; 32])).as_bytes(),
        ),
    };
    assert_eq!(admitted, expected);
    let Received::Response(length) = ours.receive(&initiation, &mut message, now) else { panic!("no answer") };
    assert!(!ours.is_ready(now) || ours.current_is_older(), "an unconfirmed session does not send");
    let confirmation = written(theirs.decapsulate(None, &message[..length], &mut buffer));
    assert_eq!(open(ours, &confirmation, now), Some(vec![]));
    assert!(ours.is_ready(now));
}

#[test]
fn boringtun_and_we_understand_each_other_whoever_begins() {
    let (mut wireguard, mut a) = ours(1, 2, 3);
    let mut b = theirs(2, 1, 3, None);
    we_begin(&mut a, &mut b, at(10));
    exchange(&mut a, &mut b, at(20));
    they_begin(&mut wireguard, &mut a, &mut b, at(30));
    exchange(&mut a, &mut b, at(40));
    we_begin(&mut a, &mut b, at(50));
    exchange(&mut a, &mut b, at(60));
}

#[test]
fn boringtun_under_load_gives_us_a_cookie_and_takes_it() {
    let (_, mut a) = ours(1, 2, 3);
    let public = x25519::PublicKey::from(*key(2).public().as_bytes());
    let limiter = Arc::new(RateLimiter::new(&public, 0));
    let mut b = theirs(2, 1, 3, Some(limiter));
    let (mut message, mut buffer) = (vec![0; 2_000], vec![0; 2_000]);
    let length = a.initiate(&mut message, at(0)).unwrap();
    // `None` would mean that it does not know whom to give a cookie to.
    let cookie = written(b.decapsulate(Some(HERE), &message[..length], &mut buffer));
    assert_eq!((cookie[0], cookie.len()), (3, 64));
    assert_eq!(a.receive(&cookie, &mut message, at(10)), Received::Cookie);
    let Due::Initiation(length) = a.handle_timeout(&mut message, at(5_400)) else { panic!("no second attempt") };
    let response = written(b.decapsulate(Some(HERE), &message[..length], &mut buffer));
    assert!(matches!(a.receive(&response, &mut message, at(5_500)), Received::Established(_)));
}

#[test]
fn we_under_load_give_boringtun_a_cookie_and_take_it() {
    let (mut wireguard, mut a) = ours(1, 2, 3);
    wireguard.set_local_keys(&[], 0);
    wireguard.set_local_keys(&[key(1)], 0);
    let mut b = theirs(2, 1, 3, None);
    let (mut message, mut buffer) = (vec![0; 2_000], vec![0; 2_000]);
    let first = written(b.format_handshake_initiation(&mut buffer, true));
    let Admission::Cookie(length) = wireguard.admit_initiation(&first, HERE, &mut message, at(0)) else {
        panic!("no cookie")
    };
    assert!(matches!(b.decapsulate(Some(HERE), &message[..length], &mut buffer), TunnResult::Done));
    let second = written(b.format_handshake_initiation(&mut buffer, true));
    let admitted = wireguard.admit_initiation(&second, HERE, &mut message, at(10));
    assert!(matches!(admitted, Admission::Admitted { .. }), "{admitted:?}");
    assert!(matches!(a.receive(&second, &mut message, at(10)), Received::Response(_)));
}

/// Two of ours with a session of a's.
fn couple() -> (NoiseTunnel, NoiseTunnel) {
    let ((_, mut a), (_, mut b)) = (ours(1, 2, 3), ours(2, 1, 3));
    shake(&mut a, &mut b, at(0));
    (a, b)
}

fn shake(a: &mut NoiseTunnel, b: &mut NoiseTunnel, now: Monotonic) {
    let mut message = vec![0; 200];
    let length = a.initiate(&mut message, now).unwrap();
    finish(a, b, &message[..length], now);
}

fn finish(a: &mut NoiseTunnel, b: &mut NoiseTunnel, initiation: &[u8], now: Monotonic) {
    let (mut message, mut buffer) = (vec![0; 200], vec![0; 200]);
    let Received::Response(length) = b.receive(initiation, &mut buffer, now) else { panic!("no response") };
    let Received::Established(length) = a.receive(&buffer[..length], &mut message, now) else { panic!("no session") };
    assert_eq!(open(b, &message[..length], now), Some(vec![]));
}

fn carry(from: &mut NoiseTunnel, to: &mut NoiseTunnel, now: Monotonic) -> bool {
    seal(from, &packet(60, 1), now).is_some_and(|message| open(to, &message, now).is_some())
}

#[test]
fn another_preshared_key_or_another_static_key_gets_no_session() {
    let mut message = vec![0; 200];
    let mut buffer = vec![0; 200];
    let ((_, mut a), (_, mut b)) = (ours(1, 2, 3), ours(2, 1, 4));
    let length = a.initiate(&mut message, at(0)).unwrap();
    // The pre-shared key comes in with the response (IKpsk2).
    let Received::Response(length) = b.receive(&message[..length], &mut buffer, at(0)) else { panic!("no response") };
    assert_eq!(a.receive(&buffer[..length], &mut message, at(0)), Received::Refused);
    let (_, mut stranger) = ours(9, 2, 3);
    let length = stranger.initiate(&mut message, at(0)).unwrap();
    assert_eq!(b.receive(&message[..length], &mut buffer, at(0)), Received::Refused);
}

#[test]
fn an_old_initiation_is_not_answered_again() {
    let ((_, mut a), (_, mut b)) = (ours(1, 2, 3), ours(2, 1, 3));
    let (mut message, mut buffer) = (vec![0; 200], vec![0; 200]);
    let length = a.initiate(&mut message, at(0)).unwrap();
    let old = message[..length].to_vec();
    finish(&mut a, &mut b, &old, at(0));
    assert_eq!(b.receive(&old, &mut buffer, at(30)), Received::Refused);
    shake(&mut a, &mut b, at(40));
    assert_eq!(b.receive(&old, &mut buffer, at(50)), Received::Refused);
}

#[test]
fn two_who_begin_at_once_both_get_a_session() {
    let ((_, mut a), (_, mut b)) = (ours(1, 2, 3), ours(2, 1, 3));
    let mut messages = [vec![0; 200], vec![0; 200]];
    let from_a = a.initiate(&mut messages[0], at(0)).map(|length| messages[0][..length].to_vec()).unwrap();
    let from_b = b.initiate(&mut messages[1], at(0)).map(|length| messages[1][..length].to_vec()).unwrap();
    let [to_b, to_a] = &mut messages;
    assert!(matches!(b.receive(&from_a, to_a, at(10)), Received::Response(92)));
    assert!(matches!(a.receive(&from_b, to_b, at(10)), Received::Response(92)));
    let (response_a, response_b) = (to_a[..92].to_vec(), to_b[..92].to_vec());
    assert!(matches!(a.receive(&response_a, to_b, at(20)), Received::Established(_)));
    assert!(matches!(b.receive(&response_b, to_a, at(20)), Received::Established(_)));
    let (confirm_a, confirm_b) = (to_b[..32].to_vec(), to_a[..32].to_vec());
    assert_eq!((open(&mut b, &confirm_a, at(30)), open(&mut a, &confirm_b, at(30))), (Some(vec![]), Some(vec![])));
    assert!(carry(&mut a, &mut b, at(40)) && carry(&mut b, &mut a, at(40)));
}

#[test]
fn an_initiation_that_is_never_confirmed_displaces_no_session() {
    let (mut a, mut b) = couple();
    let late = seal(&mut b, &packet(60, 1), at(100)).unwrap();
    let (mut message, mut buffer) = (vec![0; 200], vec![0; 200]);
    let length = b.initiate(&mut message, at(150)).unwrap();
    assert!(matches!(a.receive(&message[..length], &mut buffer, at(160)), Received::Response(_)));
    // The answer is lost, or the initiation was recorded by somebody else: nobody confirms it.
    shake(&mut a, &mut b, at(200));
    assert!(open(&mut a, &late, at(300)).is_some());
    assert!(carry(&mut a, &mut b, at(400)) && carry(&mut b, &mut a, at(400)));
}

#[test]
fn a_packet_of_the_session_before_is_still_opened_after_a_rekey() {
    let (mut a, mut b) = couple();
    let late = seal(&mut b, &packet(60, 1), at(100)).unwrap();
    shake(&mut a, &mut b, at(200));
    assert!(open(&mut a, &late, at(300)).is_some() && open(&mut a, &late, at(300)).is_none());
    assert!(carry(&mut b, &mut a, at(400)));
}

#[test]
fn an_attempt_is_repeated_every_five_seconds_and_given_up_after_ninety() {
    let (_, mut a) = ours(1, 2, 3);
    let mut buffer = vec![0; 200];
    a.initiate(&mut buffer, at(0)).unwrap();
    let (mut sent, mut gave_up) = (Vec::new(), None);
    for ms in (0..120_000).step_by(250) {
        match a.handle_timeout(&mut buffer, at(ms)) {
            Due::Nothing => {}
            Due::Initiation(_) => sent.push(ms),
            Due::GaveUp => gave_up = Some(ms),
            Due::Keepalive(_) => panic!("without a session"),
        }
    }
    assert_eq!(gave_up, Some(90_000));
    assert!((15..=17).contains(&sent.len()), "{sent:?}");
    assert!(sent.iter().zip(&sent[1..]).all(|(one, next)| (5_000..=5_500).contains(&(next - one))), "{sent:?}");
}

#[test]
fn the_one_who_began_renews_after_120_s_of_sending_and_a_session_ends_after_180() {
    let (mut a, mut b) = couple();
    let mut buffer = vec![0; 200];
    let renewal = (0..).step_by(250).find(|ms| {
        assert!(carry(&mut a, &mut b, at(*ms)) && carry(&mut b, &mut a, at(*ms)));
        assert_eq!(b.handle_timeout(&mut buffer, at(*ms)), Due::Nothing, "the one who answered does not renew");
        a.handle_timeout(&mut buffer, at(*ms)) != Due::Nothing
    });
    assert_eq!(renewal, Some(120_000));
    assert!(carry(&mut a, &mut b, at(179_999)) && a.is_ready(at(179_999)));
    let late = seal(&mut b, &packet(60, 1), at(179_999)).unwrap();
    assert!(!a.is_ready(at(180_000)) && seal(&mut a, &packet(60, 1), at(180_000)).is_none());
    assert!(open(&mut a, &late, at(180_000)).is_none());
}

#[test]
fn whoever_hears_and_answers_by_keepalives_renews_with_the_first_after_120_s() {
    let (mut a, mut b) = couple();
    let mut buffer = vec![0; 200];
    let renewal = (0..).step_by(250).find(|ms| {
        assert!(carry(&mut b, &mut a, at(*ms)));
        matches!(a.handle_timeout(&mut buffer, at(*ms)), Due::Initiation(_))
    });
    assert!((120_000..=131_000).contains(&renewal.unwrap()), "{renewal:?}");
}

#[test]
fn whoever_only_hears_renews_before_the_end_if_he_began() {
    let (mut a, mut b) = couple();
    let mut buffer = vec![0; 200];
    let renewal = (0..).step_by(250).find(|ms| {
        // A keepalive asks for no answer.
        let length = b.seal_keepalive(&mut buffer, at(*ms)).unwrap();
        assert_eq!(open(&mut a, &buffer[..length], at(*ms)), Some(vec![]));
        matches!(a.handle_timeout(&mut buffer, at(*ms)), Due::Initiation(_))
    });
    assert_eq!(renewal, Some(165_000));
}

#[test]
fn silence_is_answered_by_a_keepalive_and_a_dead_peer_by_a_new_handshake() {
    let (mut a, mut b) = couple();
    let mut buffer = vec![0; 200];
    assert!(carry(&mut a, &mut b, at(1_000)));
    let mut events = Vec::new();
    for ms in (1_000..40_000).step_by(250) {
        match b.handle_timeout(&mut buffer, at(ms)) {
            Due::Keepalive(length) => {
                events.push(("keepalive", ms));
                assert_eq!(open(&mut a, &buffer[..length], at(ms)), Some(vec![]));
            }
            Due::Nothing => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(a.handle_timeout(&mut buffer, at(ms)), Due::Nothing);
    }
    assert_eq!(events, [("keepalive", 11_000)]);
    seal(&mut a, &packet(60, 1), at(50_000)).unwrap();
    let again = (50_000..).step_by(250).find(|ms| matches!(a.handle_timeout(&mut buffer, at(*ms)), Due::Initiation(_)));
    assert_eq!(again, Some(65_000));
}
