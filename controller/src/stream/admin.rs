//! What administrators do, apart from revoking: policy, tokens, approvals, devices, subjects.
//!
//! `by` is the operating system's user, as the shell learned it from the peer credentials of the Unix socket.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use postern_common::{
    id::{DeviceId, MachineName, SessionId, SubjectId, Tag},
    policy::{Policy, RequestContext},
    time::Now,
};
use sha2::{Digest as _, Sha256};

use super::{
    api::{CoreError, NewToken, PersonNow, RevocationId, SubjectUpdate, TokenView},
    core::Core,
    leases::{Turn, Urgency},
};
use crate::{
    decision::{Extend, Whence, context},
    records::{
        AuditEvent, DeviceKind, DeviceRecord, LeaseEnd, NameClaim, Person, Quarantined, RevokeTarget, StoreChange,
        SubjectKind, SubjectRecord, TokenHash, TokenRecord,
    },
    signals::place::Atlas,
};

/// The alphabet of tokens: Crockford's base 32, in capitals.
const TOKEN_ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// How tokens begin, so that scanners for leaked secrets find them.
const TOKEN_PREFIX: &str = "pst_join_";
const MAX_TOKENS: usize = 10_000;
/// What follows the name of a person whose account was removed. No login has a space in it.
const REMOVED: &str = " (removed)";

/// Tells whether a person's account is gone for good.
pub(super) fn is_removed(subject: &SubjectRecord) -> bool {
    subject.name.ends_with(REMOVED)
}

impl Core {
    // --- policy

    /// Makes `policy` the one in force and returns its number. Every lease is decided again; only differences are sent.
    pub fn apply_policy(&mut self, policy: Arc<Policy>, text: String, by: &str, now: Now) -> u64 {
        self.policy = policy;
        self.meta.policy_revision += 1;
        self.meta.policy_applied = now.wall;
        by.clone_into(&mut self.meta.policy_applied_by);
        let sha256 = hex::encode(Sha256::digest(text.as_bytes()));
        self.meta.policy_text = text;
        self.out.store(StoreChange::PutMeta(self.meta.clone()));
        let revision = self.meta.policy_revision;
        self.out.audit(AuditEvent::PolicyApplied { revision, sha256, by: by.to_owned() });
        self.rebuild_targets();
        self.decide_all(now);
        self.ask_all_for_posture(now);
        self.flush(now);
        revision
    }

    pub(super) fn context_of(&self, device: &DeviceRecord, now: Now) -> Option<RequestContext> {
        let owner = self.registry.subject(device.owner)?;
        let assurance = self.registry.session_on(device.id).map(|session| &session.assurance);
        let assurance = self.provisioned_assurance(&owner.kind, owner.provisioned_as.as_ref(), assurance);
        let address = self.nodes.get(&device.id).map(|node| node.from.ip()).or(device.last_address);
        let posture = self.evidence_of(device.id, now);
        let from = self.whence(address);
        let context =
            context(&self.config.url, device, owner, assurance.as_ref(), posture, from, self.clock.times(now));
        let (approved, restraints) = (self.registry.approvals(device), self.restraints_on(device));
        let also = self.probed(device.id).map(|address| (address, self.atlas.place_of(address)));
        Some(RequestContext { approved, restraints, also: also.into_iter().collect(), ..context })
    }

    pub(super) fn whence(&self, address: Option<IpAddr>) -> Whence {
        Whence { address, place: address.map(|address| self.atlas.place_of(address)).unwrap_or_default() }
    }

    /// Takes new maps of addresses; every lease is decided again.
    pub fn set_atlas(&mut self, atlas: Arc<dyn Atlas>, now: Now) {
        self.atlas = atlas;
        self.decide_all(now);
        self.flush(now);
    }

    // --- tokens

    /// Makes an enrolment token and returns its text, which is kept nowhere.
    ///
    /// # Errors
    /// [`CoreError::NotPermitted`] if it asks for no use or no life.
    pub fn create_token(&mut self, new: NewToken, by: &str, now: Now) -> Result<(String, TokenView), CoreError> {
        self.registry.sweep(self.clock.earliest(now), &mut self.out);
        if new.uses == 0 || new.life.is_zero() {
            return Err(CoreError::NotPermitted("a token needs at least one use and some time to live".into()));
        }
        if self.registry.tokens().count() >= MAX_TOKENS {
            return Err(CoreError::Exhausted(format!("there are {MAX_TOKENS} tokens: delete some first")));
        }
        if new.machine.is_some() && new.uses > 1 {
            return Err(CoreError::NotPermitted("a token for one machine name has one use".into()));
        }
        let expires = self.end_after(new.life, now)?;
        let token = self.draw_token(TOKEN_PREFIX);
        let record = TokenRecord {
            hash: TokenHash::of(&token),
            service: new.service,
            tags: new.tags,
            machine: new.machine,
            networks: new.networks,
            uses_left: new.uses,
            expires,
            created_by: by.to_owned(),
            created: now.wall,
            last_used: None,
        };
        let short = record.hash.short();
        self.registry.put_token(record.clone(), &mut self.out);
        self.out.audit(AuditEvent::TokenCreated {
            token: short.clone(),
            tags: record.tags.iter().cloned().collect(),
            service: record.service.clone(),
            machine: record.machine.clone(),
            networks: record.networks.clone(),
            uses: record.uses_left,
            expires: record.expires,
            by: by.to_owned(),
        });
        Ok((token, TokenView { record, short }))
    }

    /// Draws a token of 160 random bits.
    pub(super) fn draw_token(&mut self, prefix: &str) -> String {
        let random: [u8; 32] = self.draw();
        let body: String = random.iter().map(|byte| char::from(TOKEN_ALPHABET[usize::from(byte % 32)])).collect();
        format!("{prefix}{body}")
    }

    /// Takes a token back.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn delete_token(&mut self, token: TokenHash, by: &str) -> Result<(), CoreError> {
        let deleted = self.registry.delete_token(token, &mut self.out);
        let record = deleted.ok_or_else(|| CoreError::NotFound { what: "token", name: token.short() })?;
        self.out.audit(AuditEvent::TokenDeleted { token: record.hash.short(), by: by.to_owned() });
        Ok(())
    }

    // --- devices

    /// Approves what a device claims: tags, and with `name` its machine name as a place. Without either, everything
    /// that waits is approved.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn approve(
        &mut self,
        id: DeviceId,
        tags: &BTreeSet<Tag>,
        name: bool,
        by: &str,
        now: Now,
    ) -> Result<(), CoreError> {
        let device = self.known(id)?;
        let everything = tags.is_empty() && !name;
        let tags = if everything { device.tags_pending.clone() } else { tags.clone() };
        let name = name || (everything && self.policy.is_destination_name(&device.name));
        self.registry.change_device(id, &mut self.out, |device| {
            device.tags_pending.retain(|tag| !tags.contains(tag));
            device.tags.extend(tags.iter().cloned());
            if name {
                device.name_claim = NameClaim::Approved;
            }
        });
        self.claims_decided(id, tags.into_iter().collect(), vec![], by, now);
        Ok(())
    }

    /// Refuses or takes away tags of a device, and with `name` the standing of its name.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn refuse(
        &mut self,
        id: DeviceId,
        tags: &BTreeSet<Tag>,
        name: bool,
        by: &str,
        now: Now,
    ) -> Result<(), CoreError> {
        self.known(id)?;
        self.registry.change_device(id, &mut self.out, |device| {
            device.tags_pending.retain(|tag| !tags.contains(tag));
            device.tags.retain(|tag| !tags.contains(tag));
            if name {
                device.name_claim = NameClaim::Claimed;
            }
        });
        self.claims_decided(id, vec![], tags.iter().cloned().collect(), by, now);
        Ok(())
    }

    fn claims_decided(&mut self, id: DeviceId, approved: Vec<Tag>, refused: Vec<Tag>, by: &str, now: Now) {
        if let Some(device) = self.registry.device(id) {
            let name_approved = device.name_claim == NameClaim::Approved;
            let (machine, by) = (device.name.clone(), by.to_owned());
            let event = AuditEvent::ClaimsDecided { device: id, machine, approved, refused, name_approved, by };
            self.out.audit(event);
        }
        self.record_changed(id, now);
    }

    /// Lets everybody concerned know that a device's name or tags are different.
    fn record_changed(&mut self, id: DeviceId, now: Now) {
        self.tell_own(id);
        for peer in self.peers(id) {
            self.mark(peer, id, Urgency::Opens, Turn::Second);
        }
        self.targets_changed(now);
        if self.leases.contains_key(&id) {
            self.decide(id, Extend::No, now); // its tags may be selectors of rules
        }
        self.flush(now);
    }

    /// Gives a device another name, which counts as approved.
    ///
    /// # Errors
    /// [`CoreError::NotPermitted`] if the name is taken.
    pub fn rename_device(&mut self, id: DeviceId, name: MachineName, by: &str, now: Now) -> Result<(), CoreError> {
        let device = self.known(id)?;
        let lower: MachineName = name.as_str().to_ascii_lowercase().parse().expect("a name in lower case is a name");
        if let Some(holder) = self.registry.device_by_name(&lower).filter(|holder| holder.id != device.id) {
            let message = format!("{lower} is the name of a machine of {}", self.registry.subject_name(holder.owner));
            return Err(CoreError::NotPermitted(message));
        }
        self.registry.change_device(id, &mut self.out, |device| {
            device.name = lower;
            device.name_claim = NameClaim::Approved;
        });
        self.claims_decided(id, vec![], vec![], by, now);
        Ok(())
    }

    fn known(&self, id: DeviceId) -> Result<DeviceRecord, CoreError> {
        let device = self.registry.device(id).cloned();
        device.ok_or_else(|| CoreError::NotFound { what: "device", name: id.to_string() })
    }

    /// Removes a device. Its addresses are held back for a while.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn remove_device(&mut self, id: DeviceId, by: &str, now: Now) -> Result<RevocationId, CoreError> {
        let device = self.known(id)?;
        // It would come back as another machine, of which nobody knows why it was held.
        if let Some(held) = self.registry.quarantine_on(&device) {
            let name = device.name;
            let what = match &held.target {
                Quarantined::Device(_) | Quarantined::Resource(_) => format!("device {name}"),
                Quarantined::Subject(subject) => format!("subject {}", self.registry.subject_name(*subject)),
            };
            let message = format!("{name} is in quarantine: `postern-controller quarantine release {what}` first");
            return Err(CoreError::NotPermitted(message));
        }
        let event = AuditEvent::DeviceRemoved { device: id, machine: device.name, by: by.to_owned() };
        self.out.audit(event);
        let revocation = self.while_noting(RevokeTarget::Device(id), "removed", by, now, |core| {
            match core.registry.session_on(id).map(|session| session.id) {
                Some(session) => core.end_session(session, "the machine was removed", now),
                None => core.end_lease(id, LeaseEnd::Device { reason: "removed".into() }, now),
            }
            if core.registry.device(id).is_some() {
                core.forget_device(id, now); // a stock client goes with its login session
            }
        });
        self.flush(now);
        Ok(revocation)
    }

    // --- subjects

    /// Takes over what identity has learned of a person: new groups, disabled, enabled. An unknown person is no error:
    /// they never joined a machine. One who is disabled gets a record that says so.
    pub fn update_subject(&mut self, issuer: &str, sub: &str, change: SubjectUpdate, by: &str, now: Now) {
        let kind = SubjectKind::Person { issuer: issuer.to_owned(), sub: sub.to_owned() };
        if let Some(groups) = &change.groups {
            self.groups_now.insert(kind.clone(), groups.clone());
        }
        let known = self.registry.subject_of(&kind).cloned();
        let Some(mut subject) = known.or_else(|| match change.disabled {
            Some(Some(_)) => self.unknown_subject(kind, now),
            Some(None) | None => None,
        }) else {
            return;
        };
        let mut what = Vec::new();
        if let Some(groups) = change.groups {
            let groups_text = groups.iter().cloned().collect::<Vec<_>>().join(", ");
            what.push(format!("groups are now: {groups_text}"));
            let sessions: Vec<_> =
                self.registry.sessions().filter(|session| session.subject == subject.id).cloned().collect();
            for mut session in sessions {
                session.assurance.groups = Some(groups.clone());
                let device = session.device;
                self.registry.put_session(session, &mut self.out);
                self.decide(device, Extend::No, now);
            }
        }
        match change.disabled {
            Some(Some(reason)) => {
                let already = subject.disabled.as_ref() == Some(&reason);
                self.disable_subject(subject.id, &reason, by, now);
                if !already {
                    what.push(format!("disabled: {reason}"));
                }
            }
            Some(None) if subject.disabled.is_some() => {
                subject.disabled = None;
                self.registry.put_subject(subject.clone(), &mut self.out);
                what.push("enabled".into());
            }
            Some(None) | None => {}
        }
        if !what.is_empty() {
            let (id, subject_name, by) = (subject.id, subject.name, by.to_owned());
            self.out.audit(AuditEvent::SubjectChanged { subject: id, subject_name, what: what.join("; "), by });
        }
        self.flush(now);
    }

    /// Makes the record of a person who never joined a machine and is shut out now: whoever is about to confirm one, with a
    /// browser's sign-in from before, is turned away then.
    fn unknown_subject(&mut self, kind: SubjectKind, now: Now) -> Option<SubjectRecord> {
        let SubjectKind::Person { sub, .. } = &kind else { return None };
        let name = sub.clone();
        let (id, created, last_sign_in) = (SubjectId::from_bytes(self.draw()), now.wall, now.wall);
        let (provisioned_as, proven_after) = (None, None);
        let subject =
            SubjectRecord { id, kind, name, disabled: None, created, last_sign_in, provisioned_as, proven_after };
        self.registry.put_subject(subject.clone(), &mut self.out);
        Some(subject)
    }

    /// Takes over that a person's account is gone for good: everything of theirs ends, and their record gives up its name,
    /// by which rules know people with local accounts. Whoever gets the login next is another person, and the only one whom
    /// `user:LOGIN` means then.
    pub fn person_removed(&mut self, issuer: &str, sub: &str, by: &str, now: Now) {
        let reason = "the account was removed";
        let change = SubjectUpdate { groups: None, disabled: Some(Some(reason.to_owned())) };
        self.update_subject(issuer, sub, change, by, now);
        let kind = SubjectKind::Person { issuer: issuer.to_owned(), sub: sub.to_owned() };
        self.groups_now.remove(&kind);
        let Some(mut subject) = self.registry.subject_of(&kind).cloned() else { return };
        if is_removed(&subject) {
            return;
        }
        let what = match subject.name == sub {
            true => "removed".to_owned(), // never seen here: the login is not known
            false => format!("removed: user:{} means whoever gets that login next", subject.name),
        };
        subject.name.push_str(REMOVED);
        self.registry.put_subject(subject.clone(), &mut self.out);
        let (id, subject_name, by) = (subject.id, subject.name, by.to_owned());
        self.out.audit(AuditEvent::SubjectChanged { subject: id, subject_name, what, by });
    }

    /// Lists who had a login before: people whose accounts were removed.
    pub fn former_holders(&self, login: &str) -> Vec<SubjectId> {
        let had = |subject: &&SubjectRecord| subject.name.strip_suffix(REMOVED) == Some(login);
        self.registry.subjects().filter(had).map(|subject| subject.id).collect()
    }

    /// Takes over what the accounts of `issuer` say: all of them, by their `sub`. What was changed there and did not reach
    /// the core before a crash closes here what it should have closed. Nothing is enabled: an administrator may have
    /// disabled a subject without its account.
    pub fn reconcile_people(&mut self, issuer: &str, accounts: &BTreeMap<String, PersonNow>, by: &str, now: Now) {
        let people: Vec<(SubjectId, String)> = self
            .registry
            .subjects()
            .filter_map(|subject| match &subject.kind {
                SubjectKind::Person { issuer: of, sub } if of == issuer => Some((subject.id, sub.clone())),
                SubjectKind::Person { .. } | SubjectKind::Service { .. } => None,
            })
            .collect();
        for (id, sub) in people {
            let Some(account) = accounts.get(&sub) else {
                self.person_removed(issuer, &sub, by, now);
                continue;
            };
            let enabled = self.registry.subject(id).is_some_and(|subject| subject.disabled.is_none());
            let disabled = (enabled && account.disabled).then(|| Some("the account is disabled".to_owned()));
            let differ = self
                .registry
                .sessions()
                .any(|session| session.subject == id && session.assurance.groups.as_ref() != Some(&account.groups));
            let groups = differ.then(|| account.groups.clone());
            if groups.is_some() || disabled.is_some() {
                self.update_subject(issuer, &sub, SubjectUpdate { groups, disabled }, by, now);
            }
            if let Some(secured) = account.secured {
                self.credentials_known(issuer, &sub, secured, now);
            }
        }
    }

    // --- what a person does with their own

    pub(super) fn own_devices<'a>(&'a self, who: &Person) -> impl Iterator<Item = &'a DeviceRecord> + use<'a> {
        let own = self.registry.subject_of(&who.kind()).map(|subject| subject.id);
        own.into_iter().flat_map(|own| self.registry.devices_of(own))
    }

    /// Ends a login session on one of this person's machines.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] if it is not theirs.
    pub fn end_own_session(&mut self, session: SessionId, who: &Person, now: Now) -> Result<(), CoreError> {
        let on = self.registry.session(session).map(|session| session.device);
        if on.is_none_or(|on| !self.own_devices(who).any(|device| device.id == on)) {
            return Err(CoreError::NotFound { what: "login session", name: session.to_string() });
        }
        self.end_session(session, "signed out on the web page", now);
        self.flush(now);
        Ok(())
    }

    /// Removes one of this person's machines.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] if it is not theirs.
    pub fn remove_own_device(&mut self, device: DeviceId, who: &Person, now: Now) -> Result<(), CoreError> {
        if !self.own_devices(who).any(|own| own.id == device) {
            return Err(CoreError::NotFound { what: "device", name: device.to_string() });
        }
        if self.is_restricted(device) {
            let name = self.registry.machine_name(device);
            let message = format!("{name} is kept to a few resources: ask an administrator to release it first");
            return Err(CoreError::NotPermitted(message));
        }
        self.remove_device(device, &who.name, now).map(|_| ())
    }

    /// Ends everything that hangs on a browser's login session: the stock clients that it let in.
    pub fn web_session_ended(&mut self, web_session: SessionId, now: Now) {
        let hanging = self.registry.sessions().filter(|session| session.web_session == Some(web_session));
        let hanging = hanging.map(|session| session.id).collect();
        self.end_sessions(hanging, "signed out on the web page", now);
        self.flush(now);
    }

    /// Returns the browsers' login sessions in which login sessions on machines were confirmed.
    pub fn vouched_sessions(&self) -> BTreeSet<SessionId> {
        self.registry.sessions().filter_map(|session| session.vouched).collect()
    }

    /// Ends the login sessions on machines that were confirmed in these browsers' login sessions; returns how many.
    pub fn end_vouched(&mut self, vouched: &BTreeSet<SessionId>, reason: &str, now: Now) -> usize {
        let hanging = self.registry.sessions().filter(|s| s.vouched.is_some_and(|browser| vouched.contains(&browser)));
        let hanging: Vec<SessionId> = hanging.map(|session| session.id).collect();
        self.end_all(hanging, reason, now)
    }

    /// Ends every login session of a person on machines; returns how many.
    pub fn end_person(&mut self, issuer: &str, sub: &str, reason: &str, now: Now) -> usize {
        let kind = SubjectKind::Person { issuer: issuer.to_owned(), sub: sub.to_owned() };
        let Some(subject) = self.registry.subject_of(&kind).map(|subject| subject.id) else { return 0 };
        let theirs = self.registry.sessions().filter(|session| session.subject == subject);
        let theirs: Vec<SessionId> = theirs.map(|session| session.id).collect();
        self.end_all(theirs, reason, now)
    }

    fn end_all(&mut self, sessions: Vec<SessionId>, reason: &str, now: Now) -> usize {
        let count = sessions.len();
        self.end_sessions(sessions, reason, now);
        self.flush(now);
        count
    }

    /// Returns the browsers' login sessions on which stock clients hang.
    pub fn web_sessions_in_use(&self) -> BTreeSet<SessionId> {
        self.registry.sessions().filter_map(|session| session.web_session).collect()
    }

    /// Ends what hangs on browsers' login sessions that are over without a sign-out: unused, or displaced by others.
    pub fn web_sessions_over(&mut self, over: &BTreeSet<SessionId>, now: Now) {
        let hanging = self.registry.sessions().filter(|s| s.web_session.is_some_and(|web| over.contains(&web)));
        let hanging = hanging.map(|session| session.id).collect();
        self.end_sessions(hanging, "the sign-in in the browser is over", now);
        self.flush(now);
    }

    // --- names for things

    pub(super) fn stock_devices_of(&self, who: &Person) -> usize {
        self.own_devices(who).filter(|device| device.kind == DeviceKind::StockClient).count()
    }

    pub(super) fn devices_of(&self, who: &Person) -> Vec<DeviceRecord> {
        self.own_devices(who).cloned().collect()
    }
}
