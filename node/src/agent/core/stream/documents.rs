//! Grants that come: verified, taken over, acknowledged, or asked for anew.

use super::*;

impl Core {
    pub(super) fn document(&mut self, signed: &SignedDocument, now: Now) {
        let (Stream::Live(live), Some(verifier)) = (&mut self.stream, &mut self.verifier) else {
            return self.nonsense(now);
        };
        match verifier.verify(signed) {
            // After the doors were shut there is nothing that a delta could continue.
            Ok(grants) if self.book.stand().is_none() && matches!(grants.change(), Change::Delta { .. }) => {
                self.want_snapshot(now);
            }
            Ok(grants) => {
                let held = self.book.stand().map(|stand| stand.own.overlay.as_slice());
                if let Err(beyond) = overlay::check(&self.settings.overlay_within, grants.change(), held) {
                    return self.refuse_document(&beyond.to_string(), now);
                }
                live.snapshot_by = None;
                self.offline_since = None;
                self.last_error = None;
                self.book.apply(&grants);
                self.effects.push_back(Effect::Apply(grants));
                self.follow_step_ups(now);
                let listed = self.book.stand().map(|stand| stand.own.keys.clone()).unwrap_or_default();
                let settled = self.identity.keyring.settle(&listed);
                if settled {
                    self.effects.push_back(Effect::SetLocalKeys(self.identity.keyring.private_keys()));
                }
                if self.keep_overlay() || settled {
                    self.write_identity();
                }
                self.write_grants();
            }
            Err(GrantError::Gap { .. } | GrantError::Stale { .. }) => {
                self.refused_documents += 1;
                self.want_snapshot(now);
            }
            Err(GrantError::Nonce) => {
                self.refused_documents += 1;
                let nonce = self.draw_nonce(now);
                self.effects.push_back(Effect::Send(FromNode::Freshen { nonce }));
                self.want_snapshot(now);
            }
            Err(
                error @ (GrantError::Signature
                | GrantError::Malformed(_)
                | GrantError::Audience(_)
                | GrantError::NotResumable),
            ) => {
                self.refuse_document(
                    &format!(
                        "a document of the controller was refused and is not enforced: {error}. If the controller was made anew, with other keys: `postern logout`, and join again"
                    ),
                    now,
                );
            }
        }
    }

    pub(super) fn refuse_document(&mut self, error: &str, now: Now) {
        self.refused_documents += 1;
        self.effects.push_back(Effect::Close);
        self.handle_disconnected(error.to_owned(), Retry::Slowly, now);
    }

    /// Asks for a snapshot, once per [`SNAPSHOT_PATIENCE`]: a controller that answers nothing but gaps gets no storm.
    pub(super) fn want_snapshot(&mut self, now: Now) {
        if let Stream::Live(live) = &mut self.stream
            && live.snapshot_by.is_none()
        {
            live.snapshot_by = Some(now.monotonic.saturating_add(SNAPSHOT_PATIENCE));
            self.effects.push_back(Effect::Send(FromNode::SnapshotWanted));
        }
    }

    pub(in crate::agent::core) fn acknowledge(&mut self) {
        let Some(position) = self.enforced() else { return };
        if self.acknowledged.is_some_and(|acknowledged| acknowledged >= position) {
            return;
        }
        if let Stream::Live(_) = self.stream {
            self.acknowledged = Some(position);
            let covered = self.cuts.iter().take_while(|(at, _)| *at <= position).count();
            let cut = self.cuts.drain(..covered).map(|(_, cut)| cut).sum();
            self.effects.push_back(Effect::Send(FromNode::Enforced { position, cut }));
            self.notify(Notice::Enforcing { generation: position.generation });
        }
    }
}
