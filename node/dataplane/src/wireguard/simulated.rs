//! [`Tunnels`] without cryptography, in virtual time: for simulations of many nodes and for tests of everything
//! around the tunnels.
//!
//! Messages have WireGuard's types, lengths and indices, and its timers (whitepaper §6): rekey after 120 s, reject
//! after 180 s, retry after 5 s, give up after 90 s, keepalive after 10 s. Who holds which keys is checked by plain
//! comparison; a session's 'key' is a number that both ends know. **It protects nothing.** It is built only for tests
//! or with the feature `simulation`.

use std::{net::IpAddr, time::Duration};

use postern_common::{
    grant::KeyPair,
    key::{WireGuardPrivateKey, WireGuardPublicKey},
    time::Monotonic,
};

use super::{
    Admission, Due, HEADER, INITIATION, INITIATION_LENGTH, Opener, Opening, RESPONSE, RESPONSE_LENGTH, Received, Run,
    Sealer, TRANSPORT, TRANSPORT_OVERHEAD, Tunnel, Tunnels, read_index,
};
use crate::counters::DropReason;

const REKEY_AFTER: Duration = Duration::from_secs(120);
const REJECT_AFTER: Duration = Duration::from_secs(180);
const ATTEMPT: Duration = Duration::from_secs(90);
const RETRY: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Tunnels that protect nothing.
#[derive(Debug)]
pub struct Simulated {
    keys: Vec<WireGuardPublicKey>,
    state: u64,
}

impl Simulated {
    /// Makes tunnels whose random numbers follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { keys: Vec::new(), state: seed ^ 0x9e37_79b9_7f4a_7c15 }
    }
}

impl Tunnels for Simulated {
    type Tunnel = SimulatedTunnel;

    fn set_local_keys(&mut self, keys: &[WireGuardPrivateKey], _handshakes_per_second: u64) {
        self.keys = keys.iter().map(WireGuardPrivateKey::public).collect();
    }

    fn has_local_key(&self, local: &WireGuardPublicKey) -> bool {
        self.keys.contains(local)
    }

    fn open(&mut self, pair: &KeyPair, index: u32, _now: Monotonic) -> Option<SimulatedTunnel> {
        let secret = u64::from_le_bytes(*pair.preshared.expose().first_chunk()?);
        self.has_local_key(&pair.local).then(|| SimulatedTunnel {
            local: pair.local,
            remote: pair.remote,
            preshared: secret,
            index: index << 8,
            draw: self.draw(),
            sessions: Vec::new(),
            handshake: None,
            last_initiation: None,
            data_sent: None,
            last_sent: Monotonic::default(),
            last_received: Monotonic::default(),
            owes_answer: false,
        })
    }

    fn admit_initiation(&mut self, message: &[u8], _from: IpAddr, _buffer: &mut [u8], _now: Monotonic) -> Admission {
        let key = |at: usize| {
            let bytes: Option<[u8; 32]> = message.get(at..at + 32).and_then(|bytes| bytes.try_into().ok());
            bytes.map(WireGuardPublicKey::from_bytes)
        };
        match (key(8), key(40)) {
            (Some(remote), Some(local)) if self.has_local_key(&local) => Admission::Admitted { local, remote },
            (Some(_) | None, Some(_) | None) => Admission::Refused(DropReason::WrongMac),
        }
    }

    fn admit_response(
        &mut self,
        _message: &[u8],
        (local, remote): (WireGuardPublicKey, WireGuardPublicKey),
        _from: IpAddr,
        _buffer: &mut [u8],
        _now: Monotonic,
    ) -> Admission {
        Admission::Admitted { local, remote }
    }

    fn draw(&mut self) -> u64 {
        // splitmix64
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// One pair of keys.
#[derive(Debug)]
pub struct SimulatedTunnel {
    local: WireGuardPublicKey,
    remote: WireGuardPublicKey,
    preshared: u64,
    index: u32,
    draw: u64,
    /// Newest last; at most three.
    sessions: Vec<Session>,
    handshake: Option<Handshake>,
    last_initiation: Option<u64>,
    data_sent: Option<Monotonic>,
    last_sent: Monotonic,
    last_received: Monotonic,
    owes_answer: bool,
}

#[derive(Debug)]
struct Session {
    local_index: u32,
    remote_index: u32,
    secret: u64,
    born: Monotonic,
    initiator: bool,
    confirmed: bool,
    counter: u64,
    /// The highest counter received plus one, and which of the 128 below it were.
    next: u64,
    window: u128,
}

#[derive(Debug)]
struct Handshake {
    index: u32,
    secret: u64,
    begun: Monotonic,
    sent: Monotonic,
}

impl SimulatedTunnel {
    fn current(&self, now: Monotonic) -> Option<usize> {
        self.sessions.iter().rposition(|session| session.confirmed && now.since(session.born) < REJECT_AFTER)
    }

    fn next_index(&mut self) -> u32 {
        self.index = (self.index & !0xff) | u32::from((self.index as u8).wrapping_add(1));
        self.index
    }

    fn push_session(&mut self, session: Session) {
        if self.sessions.len() == 3 {
            self.sessions.remove(0);
        }
        self.sessions.push(session);
    }

    fn write_initiation(&mut self, datagram: &mut [u8], begun: Monotonic, now: Monotonic) -> Option<usize> {
        let index = self.next_index();
        self.draw = self.draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let secret = self.draw;
        let message = datagram.get_mut(..INITIATION_LENGTH)?;
        message.fill(0);
        message[0] = INITIATION;
        message[4..8].copy_from_slice(&index.to_le_bytes());
        message[8..40].copy_from_slice(self.local.as_bytes());
        message[40..72].copy_from_slice(self.remote.as_bytes());
        message[72..80].copy_from_slice(&now.as_nanos().to_le_bytes());
        message[80..88].copy_from_slice(&secret.to_le_bytes());
        self.handshake = Some(Handshake { index, secret, begun, sent: now });
        self.last_sent = now;
        Some(INITIATION_LENGTH)
    }

    fn sealer_of(&mut self, place: usize, count: u64, now: Monotonic) -> SimulatedSealer {
        let session = &mut self.sessions[place];
        let sealer = SimulatedSealer {
            remote_index: session.remote_index,
            first: session.counter,
            count,
            tag: [session.secret, self.preshared],
        };
        session.counter += count;
        self.last_sent = now;
        self.owes_answer = false;
        sealer
    }

    fn write_keepalive(&mut self, place: usize, message: &mut [u8], now: Monotonic) -> Option<usize> {
        let run = Run { stride: TRANSPORT_OVERHEAD, last: 0, count: 1 };
        self.sealer_of(place, 1, now).seal_run(message, &run)?;
        Some(TRANSPORT_OVERHEAD)
    }

    fn receive_initiation(&mut self, message: &[u8], buffer: &mut [u8], now: Monotonic) -> Option<Received> {
        let number = |at: usize| message.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let (remote_index, stamp, secret) = (read_index(message, 4)?, number(72)?, number(80)?);
        if message.get(8..40)? != self.remote.as_bytes() || self.last_initiation.is_some_and(|last| stamp <= last) {
            return None;
        }
        self.last_initiation = Some(stamp);
        self.handshake = None;
        let local_index = self.next_index();
        let response = buffer.get_mut(..RESPONSE_LENGTH)?;
        response.fill(0);
        response[0] = RESPONSE;
        response[4..8].copy_from_slice(&local_index.to_le_bytes());
        response[8..12].copy_from_slice(&remote_index.to_le_bytes());
        response[12..20].copy_from_slice(&(secret ^ self.preshared).to_le_bytes());
        self.push_session(Session::new(local_index, remote_index, secret, false, now));
        self.last_sent = now;
        Some(Received::Response(RESPONSE_LENGTH))
    }

    fn receive_response(&mut self, message: &[u8], buffer: &mut [u8], now: Monotonic) -> Option<Received> {
        let (remote_index, local_index) = (read_index(message, 4)?, read_index(message, 8)?);
        let handshake = self.handshake.take_if(|handshake| handshake.index == local_index)?;
        if message.get(12..20)? != (handshake.secret ^ self.preshared).to_le_bytes() {
            return None;
        }
        self.push_session(Session::new(local_index, remote_index, handshake.secret, true, now));
        self.last_received = now;
        self.data_sent = None;
        let place = self.sessions.len() - 1;
        self.write_keepalive(place, buffer, now).map(Received::Established)
    }

    fn session(&self, index: u32, now: Monotonic) -> Option<usize> {
        let live = |session: &Session| session.local_index == index && now.since(session.born) < REJECT_AFTER;
        self.sessions.iter().position(live)
    }
}

/// Counters of a session.
#[derive(Debug)]
pub struct SimulatedSealer {
    remote_index: u32,
    first: u64,
    count: u64,
    tag: [u64; 2],
}

impl Sealer for SimulatedSealer {
    fn seal_run(self, messages: &mut [u8], run: &Run) -> Option<()> {
        if run.count as u64 > self.count {
            return None;
        }
        for (index, message) in messages.chunks_mut(run.stride).take(run.count).enumerate() {
            let length = run.length_of(index);
            let message = message.get_mut(..length + TRANSPORT_OVERHEAD)?;
            message[..4].copy_from_slice(&[TRANSPORT, 0, 0, 0]);
            message[4..8].copy_from_slice(&self.remote_index.to_le_bytes());
            message[8..16].copy_from_slice(&(self.first + index as u64).to_le_bytes());
            let tag = &mut message[HEADER + length..];
            tag[..8].copy_from_slice(&self.tag[0].to_le_bytes());
            tag[8..].copy_from_slice(&self.tag[1].to_le_bytes());
        }
        Some(())
    }
}

/// Opens the messages of one session.
#[derive(Debug)]
pub struct SimulatedOpener {
    tag: [u64; 2],
}

impl SimulatedOpener {
    fn open_one(&self, message: &[u8]) -> Option<Opening> {
        let (body, tag) = message.get(HEADER..)?.split_at_checked(message.len().checked_sub(TRANSPORT_OVERHEAD)?)?;
        if tag[..8] != self.tag[0].to_le_bytes() || tag[8..] != self.tag[1].to_le_bytes() {
            return None;
        }
        let Some(first) = body.first() else { return Some(Opening::Keepalive) };
        let length = match first >> 4 {
            4 => usize::from(u16::from_be_bytes([*body.get(2)?, *body.get(3)?])),
            _six => usize::from(u16::from_be_bytes([*body.get(4)?, *body.get(5)?])) + 40,
        };
        (length <= body.len()).then_some(Opening::Packet(length))
    }
}

impl Opener for SimulatedOpener {
    fn open_run(&self, messages: &mut [u8], segment: usize, openings: &mut [Opening]) {
        for (message, opening) in messages.chunks(segment).zip(openings) {
            *opening = self.open_one(message).unwrap_or(Opening::Refused);
        }
    }
}

impl Session {
    fn new(local_index: u32, remote_index: u32, secret: u64, initiator: bool, born: Monotonic) -> Self {
        let confirmed = initiator;
        Self { local_index, remote_index, secret, born, initiator, confirmed, counter: 0, next: 0, window: 0 }
    }

    /// Accepts each counter once.
    fn take(&mut self, counter: u64) -> bool {
        if counter >= self.next {
            let ahead = counter - self.next + 1;
            self.window = if ahead >= 128 { 0 } else { self.window << ahead };
            self.window |= 1;
            self.next = counter + 1;
            return true;
        }
        let behind = self.next - 1 - counter;
        let fresh = behind < 128 && self.window & (1 << behind) == 0;
        if fresh {
            self.window |= 1 << behind;
        }
        fresh
    }
}

impl Tunnel for SimulatedTunnel {
    type Sealer = SimulatedSealer;
    type Opener = SimulatedOpener;

    fn is_ready(&self, now: Monotonic) -> bool {
        self.current(now).is_some()
    }

    fn sealer(&mut self, count: u64, now: Monotonic) -> Option<SimulatedSealer> {
        let place = self.current(now)?;
        self.data_sent.get_or_insert(now);
        Some(self.sealer_of(place, count, now))
    }

    fn seal_keepalive(&mut self, message: &mut [u8], now: Monotonic) -> Option<usize> {
        let place = self.current(now)?;
        self.write_keepalive(place, message, now)
    }

    fn opener(&self, index: u32, now: Monotonic) -> Option<SimulatedOpener> {
        let session = &self.sessions[self.session(index, now)?];
        Some(SimulatedOpener { tag: [session.secret, self.preshared] })
    }

    fn accept(&mut self, index: u32, counter: u64, opening: Opening, now: Monotonic) -> Opening {
        let Some(place) = self.session(index, now).filter(|_| opening != Opening::Refused) else {
            return Opening::Refused;
        };
        let session = &mut self.sessions[place];
        if !session.take(counter) {
            return Opening::Refused;
        }
        session.confirmed = true;
        self.last_received = now;
        self.data_sent = None;
        self.owes_answer |= opening != Opening::Keepalive;
        opening
    }

    fn wants_rekey(&self) -> bool {
        false
    }

    fn initiate(&mut self, datagram: &mut [u8], now: Monotonic) -> Option<usize> {
        if self.handshake.is_some() { None } else { self.write_initiation(datagram, now, now) }
    }

    fn receive(&mut self, message: &[u8], buffer: &mut [u8], now: Monotonic) -> Received {
        let received = match message.first().copied() {
            Some(INITIATION) => self.receive_initiation(message, buffer, now),
            Some(RESPONSE) => self.receive_response(message, buffer, now),
            Some(_) | None => None,
        };
        received.unwrap_or(Received::Refused)
    }

    fn handle_timeout(&mut self, buffer: &mut [u8], now: Monotonic) -> Due {
        self.sessions.retain(|session| now.since(session.born) < REJECT_AFTER);
        if let Some(handshake) = &self.handshake {
            if now.since(handshake.begun) >= ATTEMPT {
                self.handshake = None;
                return Due::GaveUp;
            }
            if now.since(handshake.sent) >= RETRY {
                let begun = handshake.begun;
                return self.write_initiation(buffer, begun, now).map_or(Due::Nothing, Due::Initiation);
            }
            return Due::Nothing;
        }
        let current = self.current(now);
        let old = current.is_some_and(|place| {
            let session = &self.sessions[place];
            session.initiator && now.since(session.born) >= REKEY_AFTER && self.last_sent > session.born
        });
        let silent = self.data_sent.is_some_and(|since| now.since(since) >= KEEPALIVE + RETRY);
        if old || silent {
            self.data_sent = None;
            return self.write_initiation(buffer, now, now).map_or(Due::Nothing, Due::Initiation);
        }
        match current {
            Some(place) if self.owes_answer && now.since(self.last_received) >= KEEPALIVE => {
                self.write_keepalive(place, buffer, now).map_or(Due::Nothing, Due::Keepalive)
            }
            Some(_) | None => Due::Nothing,
        }
    }
}
