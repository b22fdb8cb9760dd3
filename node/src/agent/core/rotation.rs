//! When this node draws another WireGuard key, and that the controller is offered it.

use super::*;

impl Core {
    /// Returns how long a WireGuard key is the newest: well within what the controller lets it get.
    pub(super) fn rotation(&self) -> Duration {
        self.key_within.map_or(self.settings.rotation, |within| self.settings.rotation.min(within / 2))
    }

    pub(super) fn rotate_if_due(&mut self, now: Now) {
        let live = matches!(self.stream, Stream::Live(_));
        let due = self.identity.keyring.rotation_due(self.rotation(), now) == Some(Duration::ZERO);
        if live && due {
            let mut secret = Zeroizing::new([0; 32]);
            self.entropy.fill(&mut *secret);
            self.identity.keyring.propose(WireGuardPrivateKey::from_bytes(*secret), now.wall);
            self.after_identity.push(AfterIdentity::OfferNewestKey);
            self.write_identity();
        }
    }

    pub(super) fn offer_newest_key(&mut self) {
        self.effects.push_back(Effect::SetLocalKeys(self.identity.keyring.private_keys()));
        if let (Stream::Live(_), Some(newest)) = (&self.stream, self.identity.keyring.keys().first()) {
            self.effects.push_back(Effect::Send(FromNode::RotateKey { key: newest.public }));
        }
    }
}
