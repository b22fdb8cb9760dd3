//! How machines join when a person who has signed in confirms them. Servers with a token: `enrol`.
//!
//! ```text
//! Join --signature, limits--> code --> page: signed-in person sees machine, key, address --confirm--> device, session
//! ```
//!
//! Threats: codes are guessed (limits by address, bounded pending joins, short life, one use); a person is talked into
//! confirming a stranger's machine (the page shows which machine asks, from where; the confirmation names the key that
//! was shown, so that the machine behind a code cannot be swapped); a machine takes the name of a server (a name counts
//! as a place only when an administrator or a token vouches for it); a machine changes hands (only after its doors were
//! closed, and it keeps no tag).

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
};

use postern_common::{
    id::{DeviceId, MachineName, Nonce, SessionId, SubjectId},
    key::{DevicePublicKey, SigningPurpose, WireGuardPublicKey},
    protocol::{Join, PROTOCOL_VERSION, Refusal, ToNode, join_payload},
    time::{Monotonic, Now, WallTime},
};

use super::{
    api::{CoreError, StreamId},
    core::Core,
    greeting::StreamState,
    limits::{Stranger, site},
    timers::Due,
};
use crate::{
    decision::Extend,
    identity::user_code::UserCode,
    records::{
        Assurance, AuditEvent, DeviceKind, DeviceRecord, NameClaim, Person, SessionEnd, SessionRecord, Standing,
        SubjectRecord,
    },
    web::doors::{Acquaintance, JoinedMachine, PendingJoin, TurnedAway},
};

/// The most machines that wait for a person at once, and of one address.
const MAX_PENDING: usize = 256;
const MAX_PENDING_OF_ADDRESS: usize = 16;
/// How many spent codes are remembered, to tell 'expired' from 'never was'.
const MAX_SPENT: usize = 256;
/// The most devices of one person.
const MAX_DEVICES_OF_PERSON: usize = 64;
/// How long a machine that was told that it has joined may keep its stream.
pub(super) const LINGER: std::time::Duration = std::time::Duration::from_secs(15);

/// A machine that waits for a person.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    stream: StreamId,
    join: Join,
    from: IpAddr,
    asked: WallTime,
    /// When its code expires, for people.
    expires: WallTime,
    /// When it does, by the clock that nobody sets: one that is set back must not let codes expire before they are shown.
    over: Monotonic,
}

/// The machines that wait, by their code.
#[derive(Debug, Default)]
pub(crate) struct Joins {
    waiting: HashMap<UserCode, Waiting>,
    by_stream: HashMap<StreamId, UserCode>,
    spent: VecDeque<UserCode>,
}

impl Joins {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    fn take(&mut self, code: UserCode) -> Option<Waiting> {
        let waiting = self.waiting.remove(&code)?;
        self.by_stream.remove(&waiting.stream);
        if self.spent.len() == MAX_SPENT {
            self.spent.pop_front();
        }
        self.spent.push_back(code);
        Some(waiting)
    }

    /// Forgets the join of a stream that has ended.
    pub(super) fn abandon(&mut self, stream: StreamId) {
        if let Some(code) = self.by_stream.get(&stream).copied() {
            self.take(code);
        }
    }
}

/// Returns the name in lower case: names are compared as host names are.
pub(super) fn lower(name: &MachineName) -> MachineName {
    name.as_str().to_ascii_lowercase().parse().expect("a name in lower case is a name")
}

impl Core {
    fn draw_code(&mut self) -> UserCode {
        const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
        loop {
            // 64 random bits, reduced: the bias of the modulus is below 2^-33.
            let mut rest = u64::from_be_bytes(self.draw());
            let mut code = String::with_capacity(9);
            for i in 0..8 {
                let (alphabet, size): (&[u8], u64) = if i < 4 { (LETTERS, 20) } else { (b"0123456789", 10) };
                code.push(char::from(alphabet[usize::try_from(rest % size).expect("a remainder below 20")]));
                rest /= size;
            }
            let code: UserCode = code.parse().expect("four of the letters and four digits");
            if !self.joins.waiting.contains_key(&code) && !self.joins.spent.contains(&code) {
                return code;
            }
        }
    }

    /// Checks what every join has to satisfy.
    pub(super) fn check_join(&mut self, challenge: Nonce, join: &Join) -> Result<(), (Refusal, String)> {
        if join.protocol != PROTOCOL_VERSION {
            let message =
                format!("the controller speaks protocol {PROTOCOL_VERSION}: install the same version of postern");
            return Err((Refusal::Version, message));
        }
        let payload = join_payload(challenge, &join.device_key, &join.wireguard_key, &join.name);
        if join.device_key.verify(SigningPurpose::Join, &payload, &join.signature).is_err() {
            return Err((Refusal::BadSignature, "the signature is not this device key's".into()));
        }
        let known = self.registry.device_by_key(&join.device_key);
        if let Some(Standing::Revoked { .. }) = known.map(|device| &device.standing) {
            let message = "an administrator has revoked this machine: only an administrator can lift that";
            return Err((Refusal::JoinRefused, message.into()));
        }
        // Whether its WireGuard key is somebody's is looked at when a person confirms, or a token was good: strangers could
        // find out here which keys are known.
        Ok(())
    }

    pub(super) fn join(&mut self, stream: StreamId, remote: SocketAddr, challenge: Nonce, join: Join, now: Now) {
        let from = remote.ip();
        if !self.ask_limit.take(from, now.monotonic) {
            self.counters.rate_limited += 1;
            let message = "too many machines ask from this address: try again in a minute";
            return self.refuse_stream(stream, None, Refusal::Busy, message, now);
        }
        if let Err((refusal, message)) = self.check_join(challenge, &join) {
            if self.records_stranger(Stranger::Join, from, now) {
                self.audit_join_refused(&join.name, from, &message);
            }
            return self.refuse_stream(stream, None, refusal, &message, now);
        }
        let of_address = self.joins.waiting.values().filter(|waiting| site(waiting.from) == site(from)).count();
        if self.joins.len() >= MAX_PENDING || of_address >= MAX_PENDING_OF_ADDRESS {
            self.counters.rate_limited += 1;
            let message = "too many machines wait for their sign-in: try again in some minutes";
            return self.refuse_stream(stream, None, Refusal::Busy, message, now);
        }
        let code = self.draw_code();
        let expires = now.wall.saturating_add(self.config.join_code_life);
        self.out.audit(AuditEvent::JoinAsked {
            machine: join.name.clone(),
            fingerprint: join.device_key.fingerprint(),
            from,
        });
        if let Some(known) = self.streams.get_mut(&stream) {
            known.state = StreamState::Joining;
        }
        self.timers.set(Due::Greeting(stream), now.monotonic.saturating_add(self.config.join_code_life));
        let url = format!("{}/join", self.config.url);
        let url_with_code = format!("{url}?code={code}");
        self.out.send(stream, ToNode::JoinPending { code: code.to_string(), url, url_with_code, expires });
        self.joins.by_stream.insert(stream, code);
        let over = now.monotonic.saturating_add(self.config.join_code_life);
        self.joins.waiting.insert(code, Waiting { stream, join, from, asked: now.wall, expires, over });
    }

    fn audit_join_refused(&mut self, machine: &MachineName, from: IpAddr, reason: &str) {
        self.out.audit(AuditEvent::JoinRefused { machine: machine.clone(), from, reason: reason.to_owned() });
    }

    /// The time of a joining stream is over: nobody confirmed it, or it has joined and should come back with its Hello.
    pub(super) fn join_expired(&mut self, stream: StreamId, now: Now) {
        let Some(waiting) = self.joins.by_stream.get(&stream).and_then(|code| self.joins.waiting.get(code)) else {
            if self.platform.abandon(stream) {
                let message = "the platform's token could not be checked in time: the controller's log says why";
                return self.refuse_stream(stream, None, Refusal::Busy, message, now);
            }
            self.streams.remove(&stream);
            return self.out.close(
                stream,
                Refusal::Closing,
                "this machine has joined: it comes back with its device key",
            );
        };
        let (machine, from) = (waiting.join.name.clone(), waiting.from);
        self.audit_join_refused(&machine, from, "nobody confirmed it in time");
        let message = "nobody confirmed this machine in time: `postern up` shows a new code";
        self.refuse_stream(stream, None, Refusal::JoinRefused, message, now);
    }

    fn waiting(&mut self, code: UserCode, from: IpAddr, now: Now) -> Result<Waiting, CoreError> {
        if !self.guess_limit.permits(from, now.monotonic) {
            self.counters.rate_limited += 1;
            return Err(CoreError::NotPermitted("too many wrong codes from this address: wait a minute".into()));
        }
        match self.joins.waiting.get(&code) {
            Some(waiting) if now.monotonic < waiting.over => Ok(waiting.clone()),
            Some(_) => Err(CoreError::Expired),
            None => {
                self.guess_limit.take(from, now.monotonic);
                if self.joins.spent.contains(&code) {
                    Err(CoreError::Expired)
                } else {
                    Err(CoreError::NotFound { what: "machine that waits under the code", name: code.to_string() })
                }
            }
        }
    }

    /// Looks up the machine that waits under a code. `from` is the browser's address: guesses are limited by it.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Expired`], [`CoreError::NotPermitted`] after too many guesses.
    pub fn pending_join(
        &mut self,
        code: UserCode,
        who: &Person,
        from: IpAddr,
        now: Now,
    ) -> Result<PendingJoin, CoreError> {
        let waiting = self.waiting(code, from, now)?;
        let owner = self.registry.device_by_key(&waiting.join.device_key).map(|device| device.owner);
        let own = self.registry.subject_of(&who.kind()).map(|subject| subject.id);
        let acquaintance = match owner {
            None => Acquaintance::New,
            owner if owner == own => Acquaintance::Yours,
            Some(_) => Acquaintance::SomebodyElses,
        };
        Ok(PendingJoin {
            machine: lower(&waiting.join.name),
            device_key: waiting.join.device_key,
            address: waiting.from,
            asked_at: waiting.asked,
            expires: waiting.expires,
            acquaintance,
        })
    }

    /// Lets the machine in as a device of this person and opens a login session on it. The code is spent.
    ///
    /// # Errors
    /// [`CoreError::Changed`] if the machine's key is not the one that was `shown`, and each refusal with its reason.
    pub fn confirm_join(
        &mut self,
        code: UserCode,
        shown: DevicePublicKey,
        who: &Person,
        from: IpAddr,
        now: Now,
    ) -> Result<JoinedMachine, CoreError> {
        let waiting = self.waiting(code, from, now)?;
        if waiting.join.device_key != shown {
            return Err(CoreError::Changed);
        }
        let until = self.end_after(self.config.session_length, now)?;
        let found =
            self.person(who, now).and_then(|subject| Ok((self.device_for(subject.id, &waiting, now)?, subject)));
        let (device, subject) = match found {
            Ok(found) => found,
            Err(error) => {
                self.audit_join_refused(&waiting.join.name, waiting.from, &error.to_string());
                return Err(error);
            }
        };
        self.joins.take(code);
        let (id, machine) = (device.id, device.name.clone());
        let session = self.begin_session(&device, who, from, until, None, now);
        self.bring_key(id, waiting.join.wireguard_key, now);
        self.out.audit(AuditEvent::JoinConfirmed {
            subject: subject.id,
            subject_name: subject.name.clone(),
            device: id,
            machine: machine.clone(),
            session,
            from,
            asked_from: waiting.from,
        });
        self.targets_changed(now);
        self.decide(id, Extend::Yes, now);
        self.tell_own(id);
        self.out.send(
            waiting.stream,
            ToNode::Joined {
                device: id,
                name: machine.clone(),
                session: Some(session),
                subject_name: subject.name,
                controller: self.signing.public(),
                session_until: Some(until),
            },
        );
        self.timers.set(Due::Greeting(waiting.stream), now.monotonic.saturating_add(LINGER));
        self.flush(now);
        Ok(JoinedMachine { device: id, machine, until })
    }

    /// Turns the machine away. The code is spent.
    ///
    /// # Errors
    /// As [`Core::pending_join`].
    pub fn refuse_join(&mut self, code: UserCode, who: &Person, from: IpAddr, now: Now) -> Result<(), CoreError> {
        let waiting = self.waiting(code, from, now)?;
        self.joins.take(code);
        self.audit_join_refused(&waiting.join.name, waiting.from, &format!("refused by {}", who.name));
        let message = "the person did not confirm this machine";
        self.refuse_stream(waiting.stream, None, Refusal::JoinRefused, message, now);
        Ok(())
    }

    /// Lets somebody in to the pages who has just signed in, and keeps that they were there: so that an administrator can stop also whoever
    /// never joins a machine. Says why, if they are turned away.
    pub fn admit_person(&mut self, who: &Person, now: Now) -> Option<TurnedAway> {
        let disabled = self.registry.subject_of(&who.kind()).and_then(|subject| subject.disabled.clone());
        let reason = self
            .turned_away(who)
            .map(TurnedAway::NotProvisioned)
            .or_else(|| self.overtaken(who, now).map(TurnedAway::Overtaken))
            .or_else(|| self.is_cut_off(who, now).or(disabled).map(TurnedAway::Stopped));
        if reason.is_none() && (self.registry.subject_of(&who.kind()).is_some() || self.registry.has_room_for_people())
        {
            self.keep_person(who, now);
        }
        reason
    }

    /// Finds the record of a person, or makes one; takes over the name that the issuer gives them today.
    pub(super) fn person(&mut self, who: &Person, now: Now) -> Result<SubjectRecord, CoreError> {
        if let Some(why) = self.overtaken(who, now) {
            return Err(CoreError::NotPermitted(format!("{}: sign in again", why.told())));
        }
        if let Some(reason) = self.is_cut_off(who, now) {
            return Err(CoreError::NotPermitted(reason));
        }
        let disabled = self.registry.subject_of(&who.kind()).and_then(|subject| subject.disabled.clone());
        if let Some(reason) = disabled.or_else(|| self.turned_away(who)) {
            return Err(CoreError::NotPermitted(format!("{} may not take part: {reason}", who.name)));
        }
        Ok(self.keep_person(who, now))
    }

    fn keep_person(&mut self, who: &Person, now: Now) -> SubjectRecord {
        let known = self.registry.subject_of(&who.kind()).cloned();
        if let Some(known) = &known {
            let last_used = self.subject_used(known, now);
            self.subject_wakes(known, last_used, now);
        }
        let subject = match known {
            Some(subject) => SubjectRecord {
                name: who.name.clone(),
                last_sign_in: now.wall,
                // Without provisioning nothing is told, and what was known stays.
                provisioned_as: who.provisioned_as.clone().or_else(|| subject.provisioned_as.clone()),
                ..subject
            },
            None => SubjectRecord {
                id: SubjectId::from_bytes(self.draw()),
                kind: who.kind(),
                name: who.name.clone(),
                disabled: None,
                created: now.wall,
                last_sign_in: now.wall,
                provisioned_as: who.provisioned_as.clone(),
                proven_after: None,
            },
        };
        self.registry.put_subject(subject.clone(), &mut self.out);
        self.index_provisioned(&subject);
        subject
    }

    /// Returns what counts of a sign-in: its groups give way to newer ones, if they were changed while its request was under way.
    pub(super) fn assurance(&self, who: &Person) -> Assurance {
        let mut assurance = who.assurance();
        if let Some(groups) = self.groups_now.get(&who.kind()) {
            assurance.groups = Some(groups.clone());
        }
        assurance
    }

    /// Returns what counts of a sign-in at this moment: as [`Core::assurance`], with the groups that are provisioned.
    pub(super) fn present_assurance(&self, who: &Person) -> Assurance {
        let signed_in = self.assurance(who);
        let present = self.provisioned_assurance(&who.kind(), who.provisioned_as.as_ref(), Some(&signed_in));
        present.unwrap_or(signed_in)
    }

    /// Finds the device of a waiting machine, or makes one for this person.
    fn device_for(&mut self, owner: SubjectId, waiting: &Waiting, now: Now) -> Result<DeviceRecord, CoreError> {
        let known = self.registry.device_by_key(&waiting.join.device_key).cloned();
        if !self.key_is_free(known.as_ref().map(|device| device.id), waiting.join.wireguard_key) {
            return Err(CoreError::NotPermitted("the machine's WireGuard key is another machine's".into()));
        }
        if let Some(Standing::Revoked { .. }) = known.as_ref().map(|device| &device.standing) {
            // It was not yet when the machine asked.
            return Err(CoreError::NotPermitted("an administrator has revoked this machine".into()));
        }
        match known {
            Some(device) if device.owner == owner => Ok(device),
            Some(device) => {
                let owner_name = self.registry.subject_name(device.owner);
                // Its doors must be closed before somebody else gets it.
                if self.registry.may_take_part(&device) || self.leases.contains_key(&device.id) {
                    return Err(CoreError::NotPermitted(format!(
                        "{} belongs to {owner_name}, who is signed in on it: sign out there first (`postern logout`)",
                        device.name
                    )));
                }
                if device.standing != Standing::Good || self.registry.quarantine_on(&device).is_some() {
                    return Err(CoreError::NotPermitted(format!("an administrator has stopped {}", device.name)));
                }
                if self.is_held(&device) {
                    return Err(CoreError::NotPermitted(format!(
                        "{} is kept to a few resources: an administrator has to release it first",
                        device.name
                    )));
                }
                self.keep_challenges_of(device.id, now);
                self.share_with_nobody_before(device.id, now);
                self.registry.change_device(device.id, &mut self.out, |device| {
                    device.owner = owner;
                    device.platform = None;
                    device.tags.clear();
                    device.tags_pending.clear();
                    device.name_claim = NameClaim::Claimed;
                });
                self.registry.device(device.id).cloned().ok_or(CoreError::Expired)
            }
            None => {
                let count = self.registry.devices_of(owner).count();
                if count >= MAX_DEVICES_OF_PERSON {
                    return Err(CoreError::NotPermitted(format!(
                        "a person may have {MAX_DEVICES_OF_PERSON} machines: remove one first"
                    )));
                }
                let name = self.registry.free_name(&waiting.join.name);
                let key = Some(waiting.join.device_key);
                self.new_device(DeviceKind::Agent, key, name, owner, Some(waiting.from), now)
            }
        }
    }

    /// Makes a device with addresses of its own.
    pub(super) fn new_device(
        &mut self,
        kind: DeviceKind,
        key: Option<DevicePublicKey>,
        name: MachineName,
        owner: SubjectId,
        from: Option<IpAddr>,
        now: Now,
    ) -> Result<DeviceRecord, CoreError> {
        let mut random = self.draw();
        let (v6, v4) = (self.config.overlay_v6, self.config.overlay_v4);
        let addresses = self.registry.free_addresses(v6, v4, &mut random).ok_or_else(|| {
            CoreError::Exhausted(format!(
                "no address is left in the pool {v4}: remove devices, wait until held addresses are free again, or configure a larger pool"
            ))
        })?;
        let device = DeviceRecord {
            id: DeviceId::from_bytes(self.draw()),
            kind,
            key,
            name,
            name_claim: NameClaim::Claimed,
            owner,
            tags: BTreeSet::new(),
            tags_pending: BTreeSet::new(),
            addresses,
            wireguard_keys: vec![],
            standing: Standing::Good,
            created: now.wall,
            last_seen: now.wall,
            last_address: from,
            spoke_from: None,
            endpoints: vec![],
            version: String::new(),
            platform: None,
            key_since: Some(now.wall),
            last_session: None,
        };
        self.registry.put_device(device.clone(), &mut self.out);
        Ok(device)
    }

    /// Ends the record of the login session on a device, if one is open there, for a newer one: no door closes by it.
    pub(super) fn replace_session(&mut self, device: DeviceId, now: Now) {
        let Some(before) = self.registry.session_on(device).cloned() else { return };
        self.timers.cancel(Due::Session(before.id));
        let reason = "replaced by a newer sign-in".to_owned();
        self.registry.end_session(before.id, SessionEnd { at: now.wall, reason: reason.clone() }, &mut self.out);
        let subject_name = self.registry.subject_name(before.subject);
        let (session, subject) = (before.id, before.subject);
        self.out.audit(AuditEvent::SessionEnded { session, subject, subject_name, device, reason });
    }

    /// Takes the WireGuard key that a machine joins with: as its only one, or beside those that keep its doors open.
    pub(super) fn bring_key(&mut self, id: DeviceId, key: WireGuardPublicKey, now: Now) {
        self.registry.change_device(id, &mut self.out, |device| {
            if device.wireguard_keys.is_empty() {
                device.wireguard_keys.push(key);
                device.key_since = Some(now.wall);
            }
        });
        self.add_key(id, key, now);
    }

    /// Opens a login session on a device. One of the same person that is open there is replaced without closing doors.
    pub(super) fn begin_session(
        &mut self,
        device: &DeviceRecord,
        who: &Person,
        from: IpAddr,
        expires: WallTime,
        web_session: Option<SessionId>,
        now: Now,
    ) -> SessionId {
        self.replace_session(device.id, now);
        self.views.forget_told(device.id);
        self.registry.change_device(device.id, &mut self.out, |device| device.spoke_from = None);
        let id = SessionId::from_bytes(self.draw());
        let record = SessionRecord {
            id,
            subject: device.owner,
            device: device.id,
            assurance: self.assurance(who),
            started: now.wall,
            from,
            web_session,
            vouched: Some(who.web_session),
            proven: None,
            claims_told: None,
            expires,
            ended: None,
        };
        self.registry.put_session(record, &mut self.out);
        self.registry.change_device(device.id, &mut self.out, |device| device.last_session = Some(now.wall));
        self.schedule_session(id, expires, now);
        id
    }
}
