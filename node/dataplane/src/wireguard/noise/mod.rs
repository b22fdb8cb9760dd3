//! WireGuard's protocol, written from the whitepaper: [`Tunnels`] of our own.
//!
//! ```text
//! handshake message ─> cookies: mac1, load ─> handshake: whose key? ─> NoiseTunnel ─> two keys ─> transport::Session
//! packet ─> Session::seal, in place ─> datagram          datagram ─> Session::open, in place ─> packet
//! ```
//!
//! It reads no clock: time comes with each call, so it runs in virtual time, and a timestamp (whitepaper §5.1) is the wall
//! clock at the start plus monotonic time since then; a clock that is set meanwhile does not turn it back. Randomness is the
//! operating system's; without it no handshake begins.
//!
//! A tunnel holds at most three sessions: the newest that its peer has confirmed, the one before, and one that waits to be
//! confirmed by its first message. A session is used for 180 s and for 2^64 - 2^13 messages at most, with a replay window of
//! 8,192; what is older than its time is dropped with its keys.
//!
//! boringtun, which spoke for us before, is what the tests compare with. It copies each packet once in each direction, reads the
//! clock twice for each, and has a window of 1,024; `docs/decisions/0006-own-transport.md` has the measurement.
//!
//! | module | holds |
//! | --- | --- |
//! | [`handshake`] | Noise IKpsk2 over bytes |
//! | [`transport`] | sessions: seal and open in place |
//! | [`window`] | the replay window |
//! | [`cookies`] | MACs, cookies, load |
//! | [`tunnel`] | one pair of keys: attempts, sessions, timers |

mod cookies;
mod handshake;
mod transport;
mod tunnel;
mod window;

use std::{net::IpAddr, time::Duration};

use postern_aead::Ways;
use postern_common::{
    grant::KeyPair,
    key::{WireGuardPrivateKey, WireGuardPublicKey},
    time::{Monotonic, Now},
};
use x25519_dalek::{PublicKey, StaticSecret};

pub(crate) use self::tunnel::NoiseTunnel;
use self::{
    cookies::{Cookies, Gate},
    handshake::{INITIATION_BODY, Statics, Timestamp, identify},
};
use super::{Admission, Tunnels};
use crate::counters::DropReason;

/// WireGuard's tunnels.
pub struct WireGuard {
    keys: Vec<LocalKey>,
    stamper: Stamper,
    cipher: Ways,
}

struct LocalKey {
    public: WireGuardPublicKey,
    secret: StaticSecret,
    cookies: Cookies,
}

/// Makes timestamps that only grow.
#[derive(Debug, Clone, Copy)]
struct Stamper {
    start: Now,
}

impl Stamper {
    /// TAI64N, with ten leap seconds as everywhere in WireGuard.
    fn stamp(self, now: Monotonic) -> Timestamp {
        let since_epoch = Duration::from_millis(u64::try_from(self.start.wall.as_millis()).unwrap_or(0));
        let time = since_epoch + now.since(self.start.monotonic);
        let mut stamp = [0; 12];
        stamp[..8].copy_from_slice(&((1_u64 << 62) + 10 + time.as_secs()).to_be_bytes());
        stamp[8..].copy_from_slice(&time.subsec_nanos().to_be_bytes());
        stamp
    }
}

impl WireGuard {
    /// Makes tunnels without any key.
    pub const fn new(now: Now) -> Self {
        Self { keys: Vec::new(), stamper: Stamper { start: now }, cipher: Ways::Fastest }
    }

    /// Sets how packets are sealed and opened.
    #[must_use]
    pub fn with_cipher(self, cipher: Ways) -> Self {
        Self { cipher, ..self }
    }
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
            self.keys.push(LocalKey {
                public,
                secret: StaticSecret::from(*key.expose()),
                cookies: Cookies::new(public.as_bytes(), handshakes_per_second),
            });
        }
    }

    fn has_local_key(&self, local: &WireGuardPublicKey) -> bool {
        self.keys.iter().any(|key| key.public == *local)
    }

    fn open(&mut self, pair: &KeyPair, index: u32, _now: Monotonic) -> Option<NoiseTunnel> {
        let key = self.keys.iter().find(|key| key.public == pair.local)?;
        let remote = PublicKey::from(*pair.remote.as_bytes());
        let statics = Statics::new(key.secret.clone(), remote, *pair.preshared.expose())?;
        Some(NoiseTunnel::new(statics, index, self.stamper, self.cipher))
    }

    fn admit_initiation(&mut self, message: &[u8], from: IpAddr, buffer: &mut [u8], now: Monotonic) -> Admission {
        for key in &mut self.keys {
            match key.cookies.check(message, from, buffer, now) {
                Gate::Open => {}
                Gate::Shut(DropReason::WrongMac) => continue, // it may be for another key of ours
                Gate::Shut(reason) => return Admission::Refused(reason),
                Gate::Cookie(length) => return Admission::Cookie(length),
            }
            let Some(body) = message.first_chunk::<INITIATION_BODY>() else {
                return Admission::Refused(DropReason::NotWireGuard);
            };
            return match identify(&key.secret, &PublicKey::from(*key.public.as_bytes()), body) {
                Some(claim) => Admission::Admitted {
                    local: key.public,
                    remote: WireGuardPublicKey::from_bytes(claim.remote.to_bytes()),
                },
                None => Admission::Refused(DropReason::BadHandshake),
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
        now: Monotonic,
    ) -> Admission {
        let Some(key) = self.keys.iter_mut().find(|key| key.public == local) else {
            return Admission::Refused(DropReason::BadHandshake);
        };
        match key.cookies.check(message, from, buffer, now) {
            Gate::Open => Admission::Admitted { local, remote },
            Gate::Shut(reason) => Admission::Refused(reason),
            Gate::Cookie(length) => Admission::Cookie(length),
        }
    }

    fn draw(&mut self) -> u64 {
        let mut bytes = [0; 8];
        // For indices and jitter alone; without randomness both are merely foreseeable.
        let _ = getrandom::fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

#[cfg(test)]
mod interop_tests;
#[cfg(test)]
mod tests {
    use postern_common::time::WallTime;

    use super::*;

    #[test]
    fn a_timestamp_grows_with_monotonic_time_from_the_wall_clock_at_the_start() {
        let start = Now { wall: WallTime::from_millis(1_000_000_123_456), monotonic: Monotonic::from_millis(50) };
        let stamper = Stamper { start };
        let first = stamper.stamp(Monotonic::from_millis(50));
        assert_eq!(first[..8], [0x40, 0, 0, 0, 0x3b, 0x9a, 0xca, 0x85]);
        assert_eq!(first[8..], 456_000_000_u32.to_be_bytes());
        assert!(stamper.stamp(Monotonic::from_nanos(50_000_001)) > first);
        assert!(stamper.stamp(Monotonic::from_millis(600_000)) > stamper.stamp(Monotonic::from_millis(599_999)));
    }
}
