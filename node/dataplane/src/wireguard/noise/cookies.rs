//! MACs and cookies: what a handshake message must show before anything is computed for it (whitepaper §5.3, §5.4.4,
//! §5.4.7).
//!
//! mac1 shows that the sender knows our public key. Under load, mac2 shows that it holds a cookie, which we gave to its address: so
//! it can be reached there, and each address has a share of its own ([`PER_SECOND`]). Both come before any key agreement.
//!
//! Bounds: [`MAX_ADDRESSES`] addresses have a share in one second; the others wait for the next.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use blake2::{
    Blake2sMac,
    digest::{FixedOutput, KeyInit, Update, consts::U16},
};
use chacha20poly1305::{AeadInPlace, Tag, XChaCha20Poly1305, XNonce};
use postern_common::time::Monotonic;
use subtle::ConstantTimeEq;

use super::{
    super::{COOKIE_REPLY, COOKIE_REPLY_LENGTH},
    handshake::hash,
};
use crate::counters::DropReason;

/// How long a cookie may be used, and how long the secret behind it lives (whitepaper §6.1; five seconds less for the
/// user of a cookie, so that it does not arrive too late).
const SECRET_LIFE: Duration = Duration::from_secs(120);
const COOKIE_LIFE: Duration = Duration::from_secs(115);
/// Handshake messages of one address under load, each second.
const PER_SECOND: u32 = 20;
/// Addresses with a share.
const MAX_ADDRESSES: usize = 1_024;

pub(super) type Mac = [u8; 16];

/// What is said of a handshake message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    /// The first so many bytes of the buffer are a cookie reply.
    Cookie(usize),
    Shut(DropReason),
}

/// The gate before one of our keys.
pub(super) struct Cookies {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
    secret: [u8; 32],
    secret_since: Option<Monotonic>,
    /// The second that is counted, and the messages in it.
    second: Monotonic,
    heard: u64,
    limit: u64,
    shares: HashMap<IpAddr, u32>,
}

/// What we know about the gate of a peer: which key its mac1 wants, and a cookie, if it gave us one.
pub(super) struct Stamps {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
    /// The message that a cookie may answer: its index and mac1.
    last: Option<(u32, Mac)>,
    cookie: Option<(Mac, Monotonic)>,
}

impl Cookies {
    /// Guards `public`; beyond `limit` messages in a second, cookies are asked for.
    pub(super) fn new(public: &[u8; 32], limit: u64) -> Self {
        Self {
            mac1_key: mac1_key(public),
            cookie_key: cookie_key(public),
            secret: [0; 32],
            secret_since: None,
            second: Monotonic::default(),
            heard: 0,
            limit,
            shares: HashMap::new(),
        }
    }

    /// Looks at a handshake message whose MACs stand in its last 32 bytes.
    pub(super) fn check(&mut self, message: &[u8], from: IpAddr, buffer: &mut [u8], now: Monotonic) -> Gate {
        let Some(at) = message.len().checked_sub(32) else { return Gate::Shut(DropReason::NotWireGuard) };
        let mac1 = mac(&self.mac1_key, &message[..at]);
        if !bool::from(mac1.ct_eq(&message[at..at + 16])) {
            return Gate::Shut(DropReason::WrongMac);
        }
        if now.since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.heard = 0;
            self.shares.clear();
        }
        self.heard += 1;
        if self.heard <= self.limit {
            return Gate::Open;
        }
        if self.secret_since.is_none_or(|since| now.since(since) >= SECRET_LIFE) {
            if getrandom::fill(&mut self.secret).is_err() {
                return Gate::Shut(DropReason::UnderLoad); // a cookie that can be foreseen proves nothing
            }
            self.secret_since = Some(now);
        }
        let cookie = address_mac(&self.secret, from);
        if bool::from(mac(&cookie, &message[..at + 16]).ct_eq(&message[at + 16..])) {
            return if self.has_share(from) { Gate::Open } else { Gate::Shut(DropReason::UnderLoad) };
        }
        self.reply(message, &mac1, &cookie, buffer).map_or(Gate::Shut(DropReason::UnderLoad), Gate::Cookie)
    }

    fn has_share(&mut self, from: IpAddr) -> bool {
        let from = network(from);
        if self.shares.len() >= MAX_ADDRESSES && !self.shares.contains_key(&from) {
            return false;
        }
        let taken = self.shares.entry(from).or_default();
        *taken += 1;
        *taken <= PER_SECOND
    }

    fn reply(&self, message: &[u8], mac1: &Mac, cookie: &Mac, buffer: &mut [u8]) -> Option<usize> {
        let reply = buffer.get_mut(..COOKIE_REPLY_LENGTH)?;
        let mut nonce = [0; 24];
        getrandom::fill(&mut nonce).ok()?;
        reply[..4].copy_from_slice(&[COOKIE_REPLY, 0, 0, 0]);
        reply[4..8].copy_from_slice(message.get(4..8)?);
        reply[8..32].copy_from_slice(&nonce);
        reply[32..48].copy_from_slice(cookie);
        let cipher = XChaCha20Poly1305::new(&self.cookie_key.into());
        let tag = cipher.encrypt_in_place_detached(XNonce::from_slice(&nonce), mac1, &mut reply[32..48]).ok()?;
        reply[48..].copy_from_slice(&tag);
        Some(COOKIE_REPLY_LENGTH)
    }
}

impl Stamps {
    /// For messages to the holder of `public`.
    pub(super) fn new(public: &[u8; 32]) -> Self {
        Self { mac1_key: mac1_key(public), cookie_key: cookie_key(public), last: None, cookie: None }
    }

    /// Fills the last 32 bytes of a handshake message of ours.
    pub(super) fn stamp(&mut self, message: &mut [u8], index: u32, now: Monotonic) {
        let at = message.len() - 32;
        let mac1 = mac(&self.mac1_key, &message[..at]);
        message[at..at + 16].copy_from_slice(&mac1);
        self.cookie.take_if(|(_, since)| now.since(*since) >= COOKIE_LIFE);
        let mac2 = self.cookie.as_ref().map_or([0; 16], |(cookie, _)| mac(cookie, &message[..at + 16]));
        message[at + 16..].copy_from_slice(&mac2);
        self.last = Some((index, mac1));
    }

    /// Takes a cookie reply; tells whether it answers our last message.
    pub(super) fn take(&mut self, reply: &[u8], now: Monotonic) -> bool {
        let Ok(reply) = <&[u8; COOKIE_REPLY_LENGTH]>::try_from(reply) else { return false };
        let Some((index, mac1)) = self.last else { return false };
        if reply[4..8] != index.to_le_bytes() {
            return false;
        }
        let mut cookie = [0; 16];
        cookie.copy_from_slice(&reply[32..48]);
        let cipher = XChaCha20Poly1305::new(&self.cookie_key.into());
        let (nonce, tag) = (XNonce::from_slice(&reply[8..32]), Tag::from_slice(&reply[48..]));
        if cipher.decrypt_in_place_detached(nonce, &mac1, &mut cookie, tag).is_err() {
            return false;
        }
        self.cookie = Some((cookie, now));
        true
    }
}

fn mac1_key(public: &[u8; 32]) -> [u8; 32] {
    hash(b"mac1----", public)
}

fn cookie_key(public: &[u8; 32]) -> [u8; 32] {
    hash(b"cookie--", public)
}

/// The keyed BLAKE2s of 16 bytes (whitepaper §5.4: MAC).
fn mac(key: &[u8], message: &[u8]) -> Mac {
    let mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("keys of 16 and 32 bytes fit");
    mac.chain(message).finalize_fixed().into()
}

fn address_mac(secret: &[u8; 32], from: IpAddr) -> Mac {
    match from {
        IpAddr::V4(from) => mac(secret, &from.octets()),
        IpAddr::V6(from) => mac(secret, &from.octets()),
    }
}

/// One subscriber has an IPv4 address, or an IPv6 /64.
fn network(from: IpAddr) -> IpAddr {
    match from {
        IpAddr::V4(_) => from,
        IpAddr::V6(from) => Ipv6Addr::from_bits(from.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn at(ms: u64) -> Monotonic {
        Monotonic::from_millis(ms)
    }

    fn stamped(stamps: &mut Stamps, now: Monotonic) -> [u8; 148] {
        let mut message = [7; 148];
        message[4..8].copy_from_slice(&5_u32.to_le_bytes());
        stamps.stamp(&mut message, 5, now);
        message
    }

    #[test]
    fn without_our_public_key_the_gate_is_shut() {
        let mut cookies = Cookies::new(&[1; 32], 10);
        let mut buffer = [0; 148];
        let message = stamped(&mut Stamps::new(&[2; 32]), at(0));
        assert_eq!(cookies.check(&message, HERE, &mut buffer, at(0)), Gate::Shut(DropReason::WrongMac));
        assert_eq!(cookies.check(&message[..20], HERE, &mut buffer, at(0)), Gate::Shut(DropReason::NotWireGuard));
    }

    #[test]
    fn under_load_a_cookie_opens_for_the_address_that_it_was_given_to_until_it_is_old() {
        let mut cookies = Cookies::new(&[1; 32], 1);
        let mut stamps = Stamps::new(&[1; 32]);
        let mut buffer = [0; 148];
        assert_eq!(cookies.check(&stamped(&mut stamps, at(0)), HERE, &mut buffer, at(0)), Gate::Open);
        let second = stamped(&mut stamps, at(0));
        assert_eq!(cookies.check(&second, HERE, &mut buffer, at(0)), Gate::Cookie(64));
        assert!(!Stamps::new(&[1; 32]).take(&buffer[..64], at(0)), "somebody who did not ask");
        let mut bent = buffer;
        bent[40] ^= 1;
        assert!(!stamps.take(&bent[..64], at(0)) && stamps.take(&buffer[..64], at(0)));
        let third = stamped(&mut stamps, at(1));
        assert_eq!(cookies.check(&third, THERE, &mut buffer, at(1)), Gate::Cookie(64));
        assert_eq!(cookies.check(&third, HERE, &mut buffer, at(1)), Gate::Open);
        assert_eq!(stamped(&mut stamps, at(115_000))[132..], [0; 16]);
        for _ in 0..2 {
            cookies.check(&third, THERE, &mut buffer, at(120_000));
        }
        assert_eq!(cookies.check(&third, HERE, &mut buffer, at(120_000)), Gate::Cookie(64), "the secret has changed");
    }

    #[test]
    fn one_address_under_load_gets_its_share_and_others_theirs() {
        let mut cookies = Cookies::new(&[1; 32], 0);
        let mut buffer = [0; 148];
        let mut opened = HashMap::new();
        for from in [HERE, THERE] {
            let mut stamps = Stamps::new(&[1; 32]);
            assert_eq!(cookies.check(&stamped(&mut stamps, at(0)), from, &mut buffer, at(0)), Gate::Cookie(64));
            assert!(stamps.take(&buffer[..64], at(0)));
            for _ in 0..100 {
                let gate = cookies.check(&stamped(&mut stamps, at(1)), from, &mut buffer, at(1));
                *opened.entry(from).or_insert(0) += u32::from(gate == Gate::Open);
            }
        }
        assert_eq!(opened, HashMap::from([(HERE, PER_SECOND), (THERE, PER_SECOND)]));
    }
}
