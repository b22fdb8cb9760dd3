//! Body of the fuzz target for sealed files: bytes that somebody else put there, and whatever the seal may hold.

use postern_common::{
    grant::{GrantVerifier, SavedGrants},
    id::DeviceId,
    key::ControllerSigningKey,
    time::{Monotonic, Now, WallTime},
};

use super::{GRANTS, IDENTITY, POSITION, identity_file::IdentityFile, seal::SealKey};

/// Any bytes as a sealed file, and as what a seal of ours holds. Nobody without the key makes a file that opens; what opens is
/// what was sealed, under its name alone; and what is read of it says the same again.
pub fn fuzz_sealed(bytes: &[u8]) {
    let key = SealKey::from_bytes([3; 32]);
    for name in [IDENTITY, GRANTS, POSITION] {
        assert!(key.open(name, bytes).is_err(), "a forged file opened");
    }
    let mut sealed = key.seal(GRANTS, bytes);
    assert_eq!(key.open(GRANTS, &sealed).as_deref().map(Vec::as_slice), Ok(bytes));
    assert!(key.open(IDENTITY, &sealed).is_err(), "a file under another's name");
    let changed = usize::from(bytes.first().copied().unwrap_or(0)) % sealed.len();
    sealed[changed] ^= 1;
    assert!(key.open(GRANTS, &sealed).is_err(), "byte {changed} was changed");

    if let Ok(file) = serde_json::from_slice::<IdentityFile>(bytes) {
        let write = |file: &IdentityFile| serde_json::to_string(file).expect("an identity has a JSON form");
        let taken_over = IdentityFile::from_identity(&file.into_identity());
        let again: IdentityFile = serde_json::from_str(&write(&taken_over)).expect("what was written is read");
        assert_eq!(write(&IdentityFile::from_identity(&again.into_identity())), write(&taken_over));
    }
    if let Ok(saved) = serde_json::from_slice::<SavedGrants>(bytes) {
        let (boot, mark) = (saved.boot, saved.position);
        let now = Now { monotonic: Monotonic::from_millis(1 << 20), wall: WallTime::from_millis(1 << 40) };
        let controller = ControllerSigningKey::from_seed(&[5; 32]).public();
        let mut verifier = GrantVerifier::new(DeviceId::from_bytes([1; 16]), controller);
        let resumed = verifier.resume(saved, boot, mark, now).expect("of this boot, and the newest");
        let postern_common::grant::Change::Snapshot { peers, .. } = resumed.change() else {
            panic!("a restart begins with everything")
        };
        for permission in peers.iter().flat_map(|peer| peer.inbound.iter().chain(&peer.outbound)) {
            assert!(!permission.until.has_passed(now), "what had ended opened again");
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_holds_an_identity() {
        let text = include_str!("../../../fuzz/corpus/sealed/identity");
        assert!(serde_json::from_str::<super::IdentityFile>(text).is_ok());
    }
}
