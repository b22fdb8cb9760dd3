//! [`Tunnels`] over boringtun's `noise`.
//!
//! boringtun reads `CLOCK_BOOTTIME` and the system's randomness by itself; nothing of that leaves this file. It may
//! queue packets when it has no session, and would then send what nobody judged again: it is never asked to seal
//! without one.

use std::{net::IpAddr, sync::Arc};

use boringtun::{
    noise::{
        Packet, Tunn, TunnResult, errors::WireGuardError, handshake::parse_handshake_anon, rate_limiter::RateLimiter,
    },
    x25519,
};
use postern_common::{
    grant::KeyPair,
    key::{WireGuardPrivateKey, WireGuardPublicKey},
    time::Monotonic,
};

use super::{
    Admission, Due, INITIATION, REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES, RESPONSE, Received, TRANSPORT, Tunnel,
    Tunnels,
};
use crate::counters::DropReason;

/// WireGuard as boringtun speaks it.
#[derive(Default)]
pub struct WireGuard {
    keys: Vec<LocalKey>,
}

struct LocalKey {
    public: WireGuardPublicKey,
    secret: x25519::StaticSecret,
    /// Counts handshake messages and asks for cookies.
    limiter: RateLimiter,
    /// What tunnels use inside: it checks mac1 again and never asks, since `limiter` has spoken.
    inner: Arc<RateLimiter>,
}

impl std::fmt::Debug for WireGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| key.public)).finish()
    }
}

impl Tunnels for WireGuard {
    type Tunnel = NoiseTunnel;

    fn set_local_keys(&mut self, keys: &[WireGuardPrivateKey], handshakes_per_second: u64) {
        let mut known = std::mem::take(&mut self.keys);
        for key in keys {
            let public = key.public();
            if self.has_local_key(&public) {
                continue;
            }
            if let Some(place) = known.iter().position(|known| known.public == public) {
                self.keys.push(known.swap_remove(place));
                continue;
            }
            let dalek_public = x25519::PublicKey::from(*public.as_bytes());
            self.keys.push(LocalKey {
                public,
                secret: x25519::StaticSecret::from(*key.expose()),
                limiter: RateLimiter::new(&dalek_public, handshakes_per_second),
                inner: Arc::new(RateLimiter::new(&dalek_public, u64::MAX)),
            });
        }
    }

    fn has_local_key(&self, local: &WireGuardPublicKey) -> bool {
        self.keys.iter().any(|key| key.public == *local)
    }

    fn open(&mut self, pair: &KeyPair, index: u32, _now: Monotonic) -> Option<NoiseTunnel> {
        let key = self.keys.iter().find(|key| key.public == pair.local)?;
        let remote = x25519::PublicKey::from(*pair.remote.as_bytes());
        let preshared = Some(*pair.preshared.expose());
        let tunn = Tunn::new(key.secret.clone(), remote, preshared, None, index, Some(key.inner.clone()));
        Some(NoiseTunnel { tunn: Box::new(tunn), sent: 0, handshaking: false })
    }

    fn admit_initiation(&mut self, message: &[u8], from: IpAddr, buffer: &mut [u8], _now: Monotonic) -> Admission {
        for key in &self.keys {
            let packet = match admit(key, message, from, buffer) {
                Ok(packet) => packet,
                Err(Admission::Refused(DropReason::WrongMac)) => continue,
                Err(other) => return other,
            };
            let Packet::HandshakeInit(initiation) = &packet else {
                return Admission::Refused(DropReason::NotWireGuard);
            };
            let local = x25519::PublicKey::from(*key.public.as_bytes());
            return match parse_handshake_anon(&key.secret, &local, initiation) {
                Ok(half) => Admission::Admitted {
                    local: key.public,
                    remote: WireGuardPublicKey::from_bytes(half.peer_static_public),
                },
                Err(_) => Admission::Refused(DropReason::BadHandshake),
            };
        }
        Admission::Refused(DropReason::WrongMac)
    }

    fn admit_response(
        &mut self,
        message: &[u8],
        (local, remote): (WireGuardPublicKey, WireGuardPublicKey),
        from: IpAddr,
        buffer: &mut [u8],
    ) -> Admission {
        let Some(key) = self.keys.iter().find(|key| key.public == local) else {
            return Admission::Refused(DropReason::BadHandshake);
        };
        match admit(key, message, from, buffer) {
            Ok(_) => Admission::Admitted { local, remote },
            Err(refused) => refused,
        }
    }

    fn draw(&mut self) -> u64 {
        let mut bytes = [0; 8];
        // Randomness is for indices and jitter alone; without it both are merely foreseeable.
        let _ = getrandom::fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

fn admit<'a>(key: &LocalKey, message: &'a [u8], from: IpAddr, buffer: &mut [u8]) -> Result<Packet<'a>, Admission> {
    key.limiter.reset_count();
    key.limiter.verify_packet(Some(from), message, buffer).map_err(|refused| match refused {
        TunnResult::WriteToNetwork(cookie) => Admission::Cookie(cookie.len()),
        TunnResult::Err(WireGuardError::InvalidMac) => Admission::Refused(DropReason::WrongMac),
        TunnResult::Err(WireGuardError::UnderLoad) => Admission::Refused(DropReason::UnderLoad),
        TunnResult::Err(_) | TunnResult::Done | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
            Admission::Refused(DropReason::NotWireGuard)
        }
    })
}

/// One pair of keys.
pub struct NoiseTunnel {
    tunn: Box<Tunn>,
    /// The counter of the last message of the present session.
    sent: u64,
    handshaking: bool,
}

impl std::fmt::Debug for NoiseTunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NoiseTunnel").field("sent", &self.sent).finish_non_exhaustive()
    }
}

impl Tunnel for NoiseTunnel {
    fn is_ready(&self, _now: Monotonic) -> bool {
        self.tunn.time_since_last_handshake().is_some() && self.sent < REJECT_AFTER_MESSAGES
    }

    fn seal(&mut self, plaintext: &[u8], datagram: &mut [u8], now: Monotonic) -> Option<usize> {
        if !self.is_ready(now)
            || datagram.len() < (plaintext.len() + super::TRANSPORT_OVERHEAD).max(super::INITIATION_LENGTH)
        {
            return None;
        }
        match self.tunn.encapsulate(plaintext, datagram) {
            TunnResult::WriteToNetwork(sealed) if sealed.first() == Some(&TRANSPORT) => {
                let counter =
                    sealed.get(8..16).and_then(|bytes| bytes.try_into().ok()).map_or(u64::MAX, u64::from_le_bytes);
                self.sent = counter;
                (counter < REJECT_AFTER_MESSAGES).then_some(sealed.len())
            }
            TunnResult::WriteToNetwork(_)
            | TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    fn wants_rekey(&self) -> bool {
        self.sent >= REKEY_AFTER_MESSAGES
    }

    fn initiate(&mut self, datagram: &mut [u8], _now: Monotonic) -> Option<usize> {
        match self.tunn.format_handshake_initiation(datagram, false) {
            TunnResult::WriteToNetwork(message) => {
                self.handshaking = true;
                Some(message.len())
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    fn receive(&mut self, message: &[u8], buffer: &mut [u8], _now: Monotonic) -> Received {
        if buffer.len() < message.len().max(super::INITIATION_LENGTH) {
            return Received::Refused;
        }
        let kind = message.first().copied();
        // `None` for the address: cookies were asked for before, and the inner limiter never does.
        match (kind, self.tunn.decapsulate(None, message, buffer)) {
            (Some(INITIATION), TunnResult::WriteToNetwork(response)) => Received::Response(response.len()),
            (Some(RESPONSE), TunnResult::WriteToNetwork(keepalive)) => {
                self.handshaking = false;
                self.sent = 0;
                Received::Established(keepalive.len())
            }
            (_, TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _)) => {
                Received::Packet(packet.len())
            }
            (Some(TRANSPORT), TunnResult::Done) => Received::Keepalive,
            (_, TunnResult::Done) => Received::Cookie,
            (_, TunnResult::Err(_) | TunnResult::WriteToNetwork(_)) => Received::Refused,
        }
    }

    fn handle_timeout(&mut self, buffer: &mut [u8], _now: Monotonic) -> Due {
        match self.tunn.update_timers(buffer) {
            TunnResult::WriteToNetwork(message) if message.first() == Some(&INITIATION) => {
                self.handshaking = true;
                Due::Initiation(message.len())
            }
            TunnResult::WriteToNetwork(keepalive) => Due::Keepalive(keepalive.len()),
            TunnResult::Err(WireGuardError::ConnectionExpired) if std::mem::take(&mut self.handshaking) => Due::GaveUp,
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => Due::Nothing,
        }
    }
}
