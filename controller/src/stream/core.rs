//! The core's state.

use std::{
    collections::{BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use postern_common::{
    id::{DeviceId, MachineName, SessionId, SubjectId, Tag},
    key::{ControllerSigningKey, DevicePublicKey},
    net::Service,
    policy::{Policy, RequestContext, Targets},
    protocol::{Explanation, FromNode},
    time::{Monotonic, Now},
};

use super::api::*;
use crate::{
    identity::user_code::UserCode,
    records::{Loaded, Person, RevokeTarget, TokenHash},
    web::doors::{JoinedMachine, PendingJoin, Portal, StockConfiguration, StockRequest},
};

/// Everything that the controller decides, in memory.
pub struct Core {
    config: CoreConfig,
    signing: ControllerSigningKey,
    policy: Arc<Policy>,
    random: Random,
    effects: VecDeque<Effect>,
    loaded: Loaded,
}

impl Core {
    /// Takes up what the store kept.
    pub fn new(
        config: CoreConfig,
        signing: ControllerSigningKey,
        policy: Arc<Policy>,
        loaded: Loaded,
        random: Random,
        _now: Now,
    ) -> Self {
        Self { config, signing, policy, random, effects: VecDeque::new(), loaded }
    }

    /// Takes the next effect. The shell takes all of them after every call.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Returns when [`Core::handle_timeout`] wants to be called at the latest.
    pub fn poll_timeout(&self) -> Monotonic {
        Monotonic::NEVER
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, _now: Now) {}

    /// Begins a stream: a WebSocket that a machine has opened.
    pub fn connect(&mut self, _remote: SocketAddr, _now: Now) -> StreamId {
        StreamId(0)
    }

    /// Takes a message of a stream.
    pub fn receive(&mut self, _stream: StreamId, _message: FromNode, _now: Now) {}

    /// Forgets a stream that has ended.
    pub fn disconnect(&mut self, _stream: StreamId, _now: Now) {}

    /// Takes a datagram that came to the receiver of probes.
    pub fn observe_probe(&mut self, _datagram: &[u8], _from: SocketAddr, _now: Now) {}

    /// Looks up the machine that waits under a code. `from` is the browser's address: guesses are limited by it.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Expired`], [`CoreError::NotPermitted`] after too many guesses.
    pub fn pending_join(
        &mut self,
        _code: UserCode,
        _who: &Person,
        _from: IpAddr,
        _now: Now,
    ) -> Result<PendingJoin, CoreError> {
        Err(CoreError::Expired)
    }

    /// Lets the machine in as a device of this person and opens a login session on it. The code is spent.
    ///
    /// # Errors
    /// [`CoreError::Changed`] if the machine's key is not the one that was `shown`, and each refusal with its reason.
    pub fn confirm_join(
        &mut self,
        _code: UserCode,
        _shown: DevicePublicKey,
        _who: &Person,
        _from: IpAddr,
        _now: Now,
    ) -> Result<JoinedMachine, CoreError> {
        Err(CoreError::Expired)
    }

    /// Turns the machine away. The code is spent.
    ///
    /// # Errors
    /// As [`Core::pending_join`].
    pub fn refuse_join(&mut self, _code: UserCode, _who: &Person, _from: IpAddr, _now: Now) -> Result<(), CoreError> {
        Err(CoreError::Expired)
    }

    /// Shows what this person may reach and which machines are theirs.
    pub fn portal(&mut self, _who: &Person, _now: Now) -> Portal {
        Portal::default()
    }

    /// Ends a login session on one of this person's machines.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] if it is not theirs.
    pub fn end_own_session(&mut self, _session: SessionId, _who: &Person, _now: Now) -> Result<(), CoreError> {
        Err(CoreError::Expired)
    }

    /// Removes one of this person's machines.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] if it is not theirs.
    pub fn remove_own_device(&mut self, _device: DeviceId, _who: &Person, _now: Now) -> Result<(), CoreError> {
        Err(CoreError::Expired)
    }

    /// Lets a stock WireGuard client in.
    ///
    /// # Errors
    /// [`CoreError::NotPermitted`] if no rule permits it, the key is in use, or the person has too many of them.
    pub fn export(
        &mut self,
        _asked: &StockRequest,
        _who: &Person,
        _from: IpAddr,
        _now: Now,
    ) -> Result<StockConfiguration, CoreError> {
        Err(CoreError::Expired)
    }

    /// Ends everything that hangs on a browser's login session.
    pub fn web_session_ended(&mut self, _web_session: SessionId, _now: Now) {}

    /// Makes `policy` the one in force.
    pub fn apply_policy(&mut self, policy: Arc<Policy>, _text: String, _by: &str, _now: Now) -> u64 {
        self.policy = policy;
        self.loaded.meta.policy_revision
    }

    /// Tells what applying `next` would change for whoever holds a lease now.
    pub fn plan(&mut self, _next: &Policy, _now: Now) -> PolicyPlan {
        PolicyPlan::default()
    }

    /// Returns every context that the controller knows now, for [`Policy`]'s own plan and simulation.
    pub fn contexts(&self, _now: Now) -> (Vec<RequestContext>, Arc<Targets>) {
        (vec![], Arc::new(Targets::default()))
    }

    /// Makes an enrolment token and returns its text, which is kept nowhere.
    ///
    /// # Errors
    /// [`CoreError::NotPermitted`] if it asks for no use or no life.
    pub fn create_token(&mut self, _new: NewToken, _by: &str, _now: Now) -> Result<(String, TokenView), CoreError> {
        Err(CoreError::Expired)
    }

    /// Takes a token back.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn delete_token(&mut self, _token: TokenHash, _by: &str, _now: Now) -> Result<(), CoreError> {
        Err(CoreError::Expired)
    }

    /// Lists enrolment tokens that still work.
    pub fn list_tokens(&self, _now: Now) -> Vec<TokenView> {
        vec![]
    }

    /// Lists devices by name.
    pub fn list_devices(&self) -> Vec<DeviceView> {
        vec![]
    }

    /// Lists open login sessions, newest first.
    pub fn list_sessions(&self) -> Vec<SessionView> {
        vec![]
    }

    /// Lists live leases.
    pub fn list_leases(&self) -> Vec<LeaseView> {
        vec![]
    }

    /// Lists subjects by name.
    pub fn list_subjects(&self) -> Vec<SubjectView> {
        vec![]
    }

    /// Finds a device by identifier or machine name.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn find_device(&self, _name: &str) -> Result<DeviceId, CoreError> {
        Err(CoreError::Expired)
    }

    /// Finds a subject by identifier, by name, or by `service:NAME`.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Ambiguous`].
    pub fn find_subject(&self, _name: &str) -> Result<SubjectId, CoreError> {
        Err(CoreError::Expired)
    }

    /// Finds an open login session by identifier or as `alice@corp.example/alice-laptop`.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Ambiguous`].
    pub fn find_session(&self, _name: &str) -> Result<SessionId, CoreError> {
        Err(CoreError::Expired)
    }

    /// Finds a token by its short name or hash.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Ambiguous`].
    pub fn find_token(&self, _name: &str) -> Result<TokenHash, CoreError> {
        Err(CoreError::Expired)
    }

    /// Approves what a device claims: waiting tags, further tags that the administrator names, and its name.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn approve(
        &mut self,
        _device: DeviceId,
        _tags: &BTreeSet<Tag>,
        _name: bool,
        _by: &str,
        _now: Now,
    ) -> Result<(), CoreError> {
        Err(CoreError::Expired)
    }

    /// Refuses or takes away tags of a device, and with `name` the standing of its name.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn refuse(
        &mut self,
        _device: DeviceId,
        _tags: &BTreeSet<Tag>,
        _name: bool,
        _by: &str,
        _now: Now,
    ) -> Result<(), CoreError> {
        Err(CoreError::Expired)
    }

    /// Gives a device another name, which counts as approved.
    ///
    /// # Errors
    /// [`CoreError::NotPermitted`] if the name is taken.
    pub fn rename_device(
        &mut self,
        _device: DeviceId,
        _name: MachineName,
        _by: &str,
        _now: Now,
    ) -> Result<(), CoreError> {
        Err(CoreError::Expired)
    }

    /// Cuts something everywhere. Its progress is [`Core::revocation`].
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn revoke(
        &mut self,
        _target: RevokeTarget,
        _reason: &str,
        _by: &str,
        _now: Now,
    ) -> Result<RevocationId, CoreError> {
        Err(CoreError::Expired)
    }

    /// Lifts a revocation of a device, subject, node or rule.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] if nothing of that name is revoked.
    pub fn lift(&mut self, _target: RevokeTarget, _by: &str, _now: Now) -> Result<(), CoreError> {
        Err(CoreError::Expired)
    }

    /// Tells how far a revocation has come; `None` if it is unknown or long done.
    pub fn revocation(&self, _id: RevocationId, _now: Now) -> Option<RevocationView> {
        None
    }

    /// Removes a device. Its addresses are held back for a while.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn remove_device(&mut self, _device: DeviceId, _by: &str, _now: Now) -> Result<RevocationId, CoreError> {
        Err(CoreError::Expired)
    }

    /// Takes over what identity has learned of a person: new groups, disabled, enabled.
    pub fn update_subject(&mut self, _issuer: &str, _sub: &str, _change: SubjectUpdate, _by: &str, _now: Now) {}

    /// Explains to an administrator why a subject, on a device if one is named, may or may not reach something.
    ///
    /// `as_` is `alice@corp.example`, `service:billing`, `alice@corp.example/alice-laptop` or a machine name.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] if there is no such subject.
    pub fn explain(
        &mut self,
        _as: &str,
        _to: &str,
        _service: Option<Service>,
        _now: Now,
    ) -> Result<Explanation, CoreError> {
        Err(CoreError::Expired)
    }

    /// Shows the controller at a glance.
    pub fn status(&self) -> CoreStatus {
        CoreStatus {
            epoch: self.loaded.meta.epoch,
            policy_revision: self.loaded.meta.policy_revision,
            connected: 0,
            current: 0,
            devices: 0,
            awaiting_approval: vec![],
            sessions: 0,
            leases: 0,
            pending_joins: 0,
            revoked_rules: vec![],
            counters: Counters::default(),
        }
    }

    /// Returns what the core is configured with.
    pub fn config(&self) -> &CoreConfig {
        &self.config
    }

    /// Returns the key that nodes pin.
    pub fn public_key(&self) -> postern_common::key::ControllerPublicKey {
        let _ = &self.random;
        self.signing.public()
    }
}

/// Turns what a backup holds into the start of a new life: a new epoch, and every login session over.
pub fn restored(loaded: Loaded, _now: Now) -> (Loaded, Vec<Effect>) {
    (loaded, vec![])
}
