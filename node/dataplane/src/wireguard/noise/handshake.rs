//! The handshake: Noise IKpsk2 with WireGuard's framing (whitepaper §5.4.1 to §5.4.5).
//!
//! ```text
//! Initiation::write ─> 116 bytes ─> identify (whose static key?) ─> Claim::verify (timestamp) ─> respond ─> 60 bytes
//!        └─ Initiation::finish(response) ─> Keys                                  └─ Keys
//! ```
//!
//! Pure functions over bytes: randomness and time are handed in. MACs stand in [`super::cookies`]. A Diffie-Hellman result of
//! zero (a peer's key of small order) ends the handshake, as in the kernel's implementation.

use blake2::{Blake2s256, Digest};
use hmac::{Mac, SimpleHmac};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const TAG: usize = 16;

/// Bytes of an initiation and of a response before their MACs.
pub(super) const INITIATION_BODY: usize = 116;
pub(super) const RESPONSE_BODY: usize = 60;
/// A TAI64N label (whitepaper §5.4.2): bytes that compare as time does.
pub(super) type Timestamp = [u8; 12];

type Secret = Zeroizing<[u8; 32]>;

/// A session's two keys, seen from one end.
pub(super) struct Keys {
    pub(super) sending: Secret,
    pub(super) receiving: Secret,
}

/// What both ends bring along: their static keys, the product of these, and the pre-shared key.
pub(super) struct Statics {
    pub(super) secret: StaticSecret,
    pub(super) public: PublicKey,
    pub(super) remote: PublicKey,
    /// DH of the static keys, made once.
    shared: Secret,
    preshared: Secret,
}

/// Noise's symmetric state: chaining key and hash.
#[derive(Clone)]
struct Symmetric {
    chain: Secret,
    hash: [u8; 32],
}

/// An initiation that waits for its response.
pub(super) struct Initiation {
    state: Symmetric,
    ephemeral: StaticSecret,
}

/// An initiation whose static key was opened: somebody who knows our public key claims to be `remote`.
pub(super) struct Claim {
    state: Symmetric,
    ephemeral: PublicKey,
    pub(super) remote: PublicKey,
}

/// An initiation whose sender holds the static key that it shows.
pub(super) struct Verified {
    state: Symmetric,
    ephemeral: PublicKey,
    pub(super) timestamp: Timestamp,
}

impl Statics {
    /// Joins the keys of both ends; `None` if the remote key is of small order.
    pub(super) fn new(secret: StaticSecret, remote: PublicKey, preshared: [u8; 32]) -> Option<Self> {
        let shared = agree(&secret, &remote)?;
        let public = PublicKey::from(&secret);
        Some(Self { secret, public, remote, shared, preshared: Zeroizing::new(preshared) })
    }
}

impl Initiation {
    /// Writes the body of an initiation behind the type and before the MACs.
    pub(super) fn write(
        statics: &Statics,
        index: u32,
        ephemeral: [u8; 32],
        timestamp: &Timestamp,
        body: &mut [u8; INITIATION_BODY],
    ) -> Option<Self> {
        let ephemeral = StaticSecret::from(ephemeral);
        let public = PublicKey::from(&ephemeral);
        let mut state = Symmetric::new(&statics.remote);
        body[..8].copy_from_slice(&header(super::super::INITIATION, index));
        body[8..40].copy_from_slice(public.as_bytes());
        state.mix_key(public.as_bytes());
        state.mix_hash(public.as_bytes());
        let key = state.mix_key_twice(&*agree(&ephemeral, &statics.remote)?);
        state.seal(&key, statics.public.as_bytes(), &mut body[40..88]);
        let key = state.mix_key_twice(&*statics.shared);
        state.seal(&key, timestamp, &mut body[88..116]);
        Some(Self { state, ephemeral })
    }

    /// Takes the body of the response; `None` if it does not fit.
    pub(super) fn finish(&self, statics: &Statics, body: &[u8; RESPONSE_BODY]) -> Option<Keys> {
        let mut state = self.state.clone();
        let theirs = key_at(body, 12);
        state.mix_key(theirs.as_bytes());
        state.mix_hash(theirs.as_bytes());
        state.mix_key(&*agree(&self.ephemeral, &theirs)?);
        state.mix_key(&*agree(&statics.secret, &theirs)?);
        let key = state.mix_preshared(&statics.preshared);
        state.open(&key, &body[44..60], &mut [])?;
        let [sending, receiving] = state.split();
        Some(Keys { sending, receiving })
    }
}

/// Opens the static key in an initiation to the holder of `secret`.
pub(super) fn identify(secret: &StaticSecret, public: &PublicKey, body: &[u8; INITIATION_BODY]) -> Option<Claim> {
    let ephemeral = key_at(body, 8);
    let mut state = Symmetric::new(public);
    state.mix_key(ephemeral.as_bytes());
    state.mix_hash(ephemeral.as_bytes());
    let key = state.mix_key_twice(&*agree(secret, &ephemeral)?);
    let mut remote = [0; 32];
    state.open(&key, &body[40..88], &mut remote)?;
    Some(Claim { state, ephemeral, remote: PublicKey::from(remote) })
}

impl Claim {
    /// Opens the timestamp, which only the holder of the claimed key can have sealed.
    pub(super) fn verify(mut self, statics: &Statics, body: &[u8; INITIATION_BODY]) -> Option<Verified> {
        if self.remote != statics.remote {
            return None;
        }
        let key = self.state.mix_key_twice(&*statics.shared);
        let mut timestamp = [0; 12];
        self.state.open(&key, &body[88..116], &mut timestamp)?;
        Some(Verified { state: self.state, ephemeral: self.ephemeral, timestamp })
    }
}

impl Verified {
    /// Writes the body of the response: `index` is ours, `to` the initiator's.
    pub(super) fn respond(
        mut self,
        statics: &Statics,
        (index, to): (u32, u32),
        ephemeral: [u8; 32],
        body: &mut [u8; RESPONSE_BODY],
    ) -> Option<Keys> {
        let ephemeral = StaticSecret::from(ephemeral);
        let public = PublicKey::from(&ephemeral);
        body[..8].copy_from_slice(&header(super::super::RESPONSE, index));
        body[8..12].copy_from_slice(&to.to_le_bytes());
        body[12..44].copy_from_slice(public.as_bytes());
        self.state.mix_key(public.as_bytes());
        self.state.mix_hash(public.as_bytes());
        self.state.mix_key(&*agree(&ephemeral, &self.ephemeral)?);
        self.state.mix_key(&*agree(&ephemeral, &statics.remote)?);
        let key = self.state.mix_preshared(&statics.preshared);
        self.state.seal(&key, &[], &mut body[44..60]);
        let [receiving, sending] = self.state.split();
        Some(Keys { sending, receiving })
    }
}

impl Symmetric {
    fn new(responder: &PublicKey) -> Self {
        let chain: [u8; 32] = Blake2s256::digest(CONSTRUCTION).into();
        let hash = hash(&chain, IDENTIFIER);
        Self { chain: Zeroizing::new(chain), hash: self::hash(&hash, responder.as_bytes()) }
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = hash(&self.hash, data);
    }

    /// The whitepaper's KDF1.
    fn mix_key(&mut self, input: &[u8]) {
        let [chain] = derive(&self.chain, input);
        self.chain = chain;
    }

    /// KDF2: the second output is a key.
    fn mix_key_twice(&mut self, input: &[u8]) -> Secret {
        let [chain, key] = derive(&self.chain, input);
        self.chain = chain;
        key
    }

    /// KDF3 with the pre-shared key: the second output goes into the hash, the third is a key.
    fn mix_preshared(&mut self, preshared: &[u8; 32]) -> Secret {
        let [chain, mixed, key] = derive(&self.chain, preshared);
        self.chain = chain;
        self.mix_hash(&*mixed);
        key
    }

    fn seal(&mut self, key: &Secret, plaintext: &[u8], sealed: &mut [u8]) {
        let (text, tag) = sealed.split_at_mut(plaintext.len());
        text.copy_from_slice(plaintext);
        let made = aead(key)
            .seal_in_place_separate_tag(nonce(0), Aad::from(self.hash), text)
            .expect("a few bytes are not beyond what the cipher can seal");
        tag.copy_from_slice(made.as_ref());
        self.mix_hash(sealed);
    }

    fn open(&mut self, key: &Secret, sealed: &[u8], plaintext: &mut [u8]) -> Option<()> {
        let mut room = Zeroizing::new([0; 32 + TAG]);
        let text = room.get_mut(..sealed.len())?;
        text.copy_from_slice(sealed);
        let opened = aead(key).open_in_place(nonce(0), Aad::from(self.hash), text).ok()?;
        plaintext.copy_from_slice(opened);
        self.mix_hash(sealed);
        Some(())
    }

    fn split(self) -> [Secret; 2] {
        derive(&self.chain, &[])
    }
}

fn header(kind: u8, index: u32) -> [u8; 8] {
    let [a, b, c, d] = index.to_le_bytes();
    [kind, 0, 0, 0, a, b, c, d]
}

fn key_at(message: &[u8], at: usize) -> PublicKey {
    let bytes: [u8; 32] = message[at..at + 32].try_into().expect("the bodies' lengths are fixed");
    PublicKey::from(bytes)
}

fn agree(secret: &StaticSecret, public: &PublicKey) -> Option<Secret> {
    let shared = secret.diffie_hellman(public);
    shared.was_contributory().then(|| Zeroizing::new(shared.to_bytes()))
}

fn aead(key: &Secret) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &**key).expect("the key has 32 bytes"))
}

/// The nonce of a message: four zero bytes and the counter (whitepaper §5.4).
pub(super) fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// BLAKE2s of two parts.
pub(super) fn hash(first: &[u8], second: &[u8]) -> [u8; 32] {
    Blake2s256::new().chain_update(first).chain_update(second).finalize().into()
}

/// HKDF with HMAC-BLAKE2s (whitepaper §5.4: KDF1, KDF2, KDF3).
fn derive<const N: usize>(key: &[u8; 32], input: &[u8]) -> [Secret; N] {
    let extracted = hmac(key, &[input]);
    let mut outputs: [Secret; N] = std::array::from_fn(|_| Zeroizing::new([0; 32]));
    for place in 0..N {
        let number = [place as u8 + 1];
        outputs[place] = match place.checked_sub(1) {
            None => hmac(&extracted, &[&number]),
            Some(before) => hmac(&extracted, &[&*outputs[before], &number]),
        };
    }
    outputs
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Secret {
    let mut mac = SimpleHmac::<Blake2s256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(byte: u8) -> StaticSecret {
        StaticSecret::from([byte; 32])
    }

    fn statics(local: u8, remote: u8, preshared: u8) -> Statics {
        Statics::new(secret(local), PublicKey::from(&secret(remote)), [preshared; 32]).unwrap()
    }

    fn shake(preshared: [u8; 2]) -> Option<(Keys, Keys)> {
        let (a, b) = (statics(1, 2, preshared[0]), statics(2, 1, preshared[1]));
        let (mut first, mut second) = ([0; INITIATION_BODY], [0; RESPONSE_BODY]);
        let initiation = Initiation::write(&a, 7, [3; 32], &[9; 12], &mut first)?;
        let claim = identify(&b.secret, &b.public, &first)?;
        assert_eq!(claim.remote, a.public);
        let verified = claim.verify(&b, &first)?;
        assert_eq!(verified.timestamp, [9; 12]);
        let theirs = verified.respond(&b, (8, 7), [4; 32], &mut second)?;
        Some((initiation.finish(&a, &second)?, theirs))
    }

    #[test]
    fn both_ends_derive_the_same_keys() {
        let (a, b) = shake([5, 5]).unwrap();
        assert_eq!((a.sending, a.receiving), (b.receiving.clone(), b.sending.clone()));
        assert_ne!(b.sending, b.receiving);
    }

    #[test]
    fn another_preshared_key_ends_the_handshake() {
        assert!(shake([5, 6]).is_none());
    }

    #[test]
    fn an_initiation_of_somebody_else_or_for_somebody_else_is_not_verified() {
        let (a, b, c) = (statics(1, 2, 0), statics(2, 1, 0), statics(2, 3, 0));
        let mut body = [0; INITIATION_BODY];
        Initiation::write(&a, 7, [3; 32], &[9; 12], &mut body).unwrap();
        assert!(identify(&b.secret, &b.public, &body).unwrap().verify(&c, &body).is_none());
        assert!(identify(&secret(4), &PublicKey::from(&secret(4)), &body).is_none());
        for at in 8..INITIATION_BODY {
            let mut bent = body;
            bent[at] ^= 1;
            let verified = identify(&b.secret, &b.public, &bent).and_then(|claim| claim.verify(&b, &bent));
            assert!(verified.is_none(), "byte {at}");
        }
    }

    #[test]
    fn a_key_of_small_order_is_refused() {
        assert!(Statics::new(secret(1), PublicKey::from([0; 32]), [0; 32]).is_none());
        let b = statics(2, 1, 0);
        let mut body = [0; INITIATION_BODY];
        Initiation::write(&statics(1, 2, 0), 7, [3; 32], &[9; 12], &mut body).unwrap();
        body[8..40].fill(0);
        assert!(identify(&b.secret, &b.public, &body).is_none());
    }
}
