//! What provisioning (SCIM) does to people: who may not take part, who is in which group, and who asks for it.
//!
//! ```text
//! scim_client: a token, here and now --> ScimClient --scim: a command--> the realm of its provider changes
//!   --> the people concerned, by the name under which they sign in --> out: doors closed, as a revocation of the subject
//!                                                                  `-> in: decided anew, a portion a turn
//! ```
//!
//! Invariants:
//! - The directory is asked for every decision ([`Core::provisioned_assurance`]) and every admission ([`Core::turned_away`]); what
//!   [`super::registry::Registry`] remembers of who is out is worked out from it at the start and at every change.
//! - Who is out is held apart from who was disabled by an administrator: neither lets in whom the other keeps out.
//! - A command decides those people anew whom it concerns, [`AT_ONCE`] devices in its own turn and the others in as small portions
//!   afterwards, so that nobody waits for a group of ten thousand.
//!
//! - Whom nobody can be told to be is out: a person whose last sign-in had no name by which provisioning knows people
//!   ([`Core::withdrawn`]) could be anybody, also somebody who has left.
//!
//! Bounds: tokens, see [`clients`]; refusals are counted as those of other signals ([`crate::signals::refusals`]).

mod clients;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use postern_common::{
    id::{DeviceId, SubjectId},
    time::{Now, WallTime},
};

use super::{api::CoreError, core::Core, timers::Due};
use crate::{
    decision::Extend,
    records::{
        Assurance, AuditEvent, Loaded, Person, ProvisionedName, RevokeTarget, ScimKey, ScimToken, ScimUser,
        SubjectKind, SubjectRecord, TokenHash,
    },
    signals::scim::{
        Answer, Command, Counts, Moment, Refusal,
        directory::{Concerned, Directory, Realm, Standing},
        settings::{Admission, GroupSource},
    },
};

/// The claim that everybody has, and by which people are known anyway.
const SUB: &str = "sub";
/// How many devices are decided anew in one turn.
const AT_ONCE: usize = 32;

/// A client whose token was good a moment ago. Only [`Core::scim_client`] makes one, and [`Core::scim`] looks again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScimClient {
    token: TokenHash,
    issuer: String,
}

impl ScimClient {
    /// Returns the token's hash.
    pub const fn token(&self) -> TokenHash {
        self.token
    }
}

/// People who are out: what the shell has to end besides.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScimClosed {
    /// The issuer of their provider.
    pub issuer: String,
    /// Which of their names it is.
    pub key: Option<ScimKey>,
    /// Who.
    pub people: Vec<ScimClosedPerson>,
}

/// A person who is out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScimClosedPerson {
    /// By which name they are provisioned.
    pub name: String,
    /// By which names (`sub`) they signed in.
    pub subjects: Vec<String>,
}

/// What is provisioned, for people.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct ScimView {
    /// The issuer of the provider; absent if there is no `[oidc.scim]`.
    pub issuer: Option<String>,
    /// How much there is.
    pub counts: Counts,
    /// Active people who match nobody who ever signed in here: to put them out would concern nobody.
    pub unmatched: usize,
    /// When a client with a good token was last heard; within an hour, if that was before the controller started.
    pub last_heard: Option<WallTime>,
    /// When the last token expires; absent if there is none that works.
    pub token_until: Option<WallTime>,
    /// Requests that were refused since then, for want of authority or for what they asked.
    pub refused: u64,
    /// Devices that wait to be decided anew.
    pub waiting: usize,
}

/// A person of the directory, for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ScimPersonView {
    /// `userName`.
    pub user_name: String,
    /// `externalId`.
    pub external_id: Option<String>,
    /// Whether they may take part.
    pub active: bool,
    /// Their groups.
    pub groups: BTreeSet<String>,
    /// Under which names they signed in here.
    pub subjects: Vec<String>,
}

/// A group of the directory, for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ScimGroupView {
    /// Its name, as rules name it.
    pub name: String,
    /// How many people are in it.
    pub people: usize,
}

/// The state of provisioning.
#[derive(Debug, Default)]
pub(super) struct Provisioning {
    directory: Directory,
    tokens: BTreeMap<TokenHash, ScimToken>,
    /// Who signs in under a name of the directory, and the name of each.
    subjects: HashMap<String, BTreeSet<SubjectId>>,
    names: HashMap<SubjectId, String>,
    /// Devices to be decided anew: at most all that there are.
    waiting: VecDeque<DeviceId>,
    queued: BTreeSet<DeviceId>,
    refused: u64,
    last_heard: Option<WallTime>,
    /// Whether people were told that the provider is silent.
    is_silent: bool,
    told: clients::Told,
}

impl Provisioning {
    pub(super) fn load(loaded: &mut Loaded) -> Self {
        let directory = Directory::load(loaded);
        let tokens = loaded.scim_tokens.drain(..).map(|token| (token.hash, token)).collect();
        Self { directory, tokens, ..Self::default() }
    }

    /// Takes note of the name under which a subject signs in now: whoever gets a former one is somebody else.
    fn known_as(&mut self, subject: SubjectId, name: String) {
        let before = self.names.insert(subject, name.clone()).filter(|before| *before != name);
        if let Some(before) = before
            && let Some(others) = self.subjects.get_mut(&before)
        {
            others.remove(&subject);
            if others.is_empty() {
                self.subjects.remove(&before);
            }
        }
        self.subjects.entry(name).or_default().insert(subject);
    }
}

impl Core {
    // --- who is who

    /// Returns by which name of the directory a person is known, as they are called; `None` if provisioning is not about them, or if
    /// no sign-in has told yet.
    fn provisioned_name(&self, kind: &SubjectKind, told: Option<&ProvisionedName>) -> Option<String> {
        let settings = self.config.scim.as_ref()?;
        match kind {
            SubjectKind::Person { issuer, sub } if *issuer == settings.issuer => {
                // What another claim said, before the configuration changed, may name somebody else here.
                let told = told.filter(|told| told.claim == settings.claim).map(|told| told.value.as_str());
                let name = if settings.claim == SUB { Some(sub.as_str()) } else { told };
                name.map(str::to_owned)
            }
            SubjectKind::Person { .. } | SubjectKind::Service { .. } => None,
        }
    }

    /// Tells whether provisioning is about a subject at all.
    pub(super) fn is_provisioned(&self, kind: &SubjectKind) -> bool {
        self.config
            .scim
            .as_ref()
            .is_some_and(|settings| matches!(kind, SubjectKind::Person { issuer, .. } if *issuer == settings.issuer))
    }

    fn scim_standing(&self, name: &str) -> Standing {
        let Some(settings) = &self.config.scim else { return Standing::Unknown };
        let realm = self.provisioning.directory.realm(&settings.issuer);
        realm.map_or(Standing::Unknown, |realm| realm.standing(settings.key, name))
    }

    /// Says why the provider keeps a subject out; `None` if it does not.
    fn withdrawn(&self, kind: &SubjectKind, told: Option<&ProvisionedName>) -> Option<String> {
        let settings = self.config.scim.as_ref().filter(|_| self.is_provisioned(kind))?;
        let unknown = match settings.admission {
            Admission::Anybody => None,
            Admission::Provisioned => Some("the identity provider has not provisioned this person (SCIM)".to_owned()),
        };
        let Some(name) = self.provisioned_name(kind, told) else {
            let claim = &settings.claim;
            return Some(format!(
                "sign in again: the last sign-in had no `{claim}`, by which provisioning knows people"
            ));
        };
        match self.scim_standing(&name) {
            Standing::Active(_) => None,
            Standing::Inactive => Some("deactivated at the identity provider (SCIM)".into()),
            Standing::Gone => Some("removed at the identity provider (SCIM)".into()),
            Standing::Otherwise => Some(format!(
                "the sign-in says `{name}`, and the identity provider provisioned (SCIM) that name in another case: it has to be the same"
            )),
            Standing::Unknown => unknown,
        }
    }

    /// Returns those of many people, by their `sub`, who are turned away.
    pub fn turned_away_of(&self, people: &[Person]) -> Vec<String> {
        people.iter().filter(|person| self.turned_away(person).is_some()).map(|person| person.sub.clone()).collect()
    }

    /// Says why a person who signs in is turned away; `None` if they are not.
    pub fn turned_away(&self, who: &Person) -> Option<String> {
        let kind = who.kind();
        let settings = self.config.scim.as_ref().filter(|_| self.is_provisioned(&kind))?;
        // Whom the token does not name could be anybody, also somebody who is out.
        if self.provisioned_name(&kind, who.provisioned_as.as_ref()).is_none() {
            return Some(format!("the sign-in has no `{}`, by which provisioning knows people", settings.claim));
        }
        self.withdrawn(&kind, who.provisioned_as.as_ref())
    }

    /// Returns what counts of a sign-in: its groups as the settings say where they come from.
    pub(super) fn provisioned_assurance(
        &self,
        kind: &SubjectKind,
        told: Option<&ProvisionedName>,
        assurance: Option<&Assurance>,
    ) -> Option<Assurance> {
        let settings = self.config.scim.as_ref().filter(|_| self.is_provisioned(kind));
        let Some(settings) = settings else { return assurance.cloned() };
        let claims = assurance.and_then(|known| known.groups.clone());
        let provisioned = || {
            let name = self.provisioned_name(kind, told)?;
            let realm = self.provisioning.directory.realm(&settings.issuer)?;
            match realm.standing(settings.key, &name) {
                Standing::Active(id) => Some(realm.groups_of(id)),
                Standing::Inactive | Standing::Gone | Standing::Otherwise | Standing::Unknown => None,
            }
        };
        let groups = match settings.groups {
            GroupSource::Claims => claims,
            GroupSource::Scim => provisioned(),
            // A part that is unknown could hold a group that is denied: then nobody knows.
            GroupSource::Both => claims.zip(provisioned()).map(|(one, other)| &one | &other),
        };
        let known = assurance.cloned();
        let known = known
            .or_else(|| groups.is_some().then(|| Assurance { groups: None, acr: None, amr: vec![], auth_time: None }));
        known.map(|known| Assurance { groups, ..known })
    }

    /// Takes note of the name under which a person is provisioned, and of whether they are out.
    pub(super) fn index_provisioned(&mut self, subject: &SubjectRecord) {
        let name = self.provisioned_name(&subject.kind, subject.provisioned_as.as_ref());
        if let (Some(name), Some(settings)) = (name, &self.config.scim) {
            let name = settings.key.compared(&name);
            self.provisioning.known_as(subject.id, name);
        }
        let reason = self.withdrawn(&subject.kind, subject.provisioned_as.as_ref());
        self.registry.set_withdrawn(subject.id, reason);
    }

    /// Works out at the start who is who and who is out.
    pub(super) fn index_all_provisioned(&mut self) {
        let people: Vec<SubjectRecord> =
            self.registry.subjects().filter(|s| self.is_provisioned(&s.kind)).cloned().collect();
        people.iter().for_each(|subject| self.index_provisioned(subject));
    }

    /// Closes at the start what is still open to people who are out: the configuration may be another one than before.
    pub(super) fn close_withdrawn(&mut self, now: Now) {
        let open: BTreeSet<SubjectId> = self.registry.sessions().map(|session| session.subject).collect();
        for (id, reason) in self.registry.withdrawn_people() {
            if open.contains(&id) {
                self.close_person(id, &reason, "start", now);
            }
        }
    }

    // --- commands

    /// Does what a client asks.
    ///
    /// # Errors
    /// [`Refusal`]; nothing changed then.
    pub fn scim(
        &mut self,
        client: &ScimClient,
        command: Command,
        from: IpAddr,
        now: Now,
    ) -> Result<(Answer, ScimClosed), Refusal> {
        // It may have been taken back while the body came.
        let client = self.scim_client(Some(client.token), from, now)?;
        let random = self.draw();
        let realm = self.provisioning.directory.realm_mut(&client.issuer);
        let key = self.config.scim.as_ref().map_or(ScimKey::ExternalId, |settings| settings.key);
        let mut done = realm.run(command, Moment { issuer: &client.issuer, key, now: now.wall, random })?;
        for change in done.store {
            self.out.store(change);
        }
        let token = client.token.short();
        if !done.said.is_empty() {
            if self.puts_nobody_out(&done.people) {
                done.said.push_str("; nobody who signed in here goes by that name");
            }
            let (issuer, token) = (client.issuer.clone(), token.clone());
            self.out.audit(AuditEvent::Provisioned { issuer, token, from, what: done.said });
        }
        let closed = self.people_changed(&client.issuer, &done.people, &format!("SCIM client {token}"), now);
        self.flush(now);
        Ok((done.answer, closed))
    }

    /// Tells whether somebody was put out whom nobody here is known to be.
    fn puts_nobody_out(&self, people: &Concerned) -> bool {
        let (Some(settings), Concerned::One { old, new }) = (&self.config.scim, people) else { return false };
        let was_in = old.as_ref().unwrap_or(new).active;
        let is_out = new
            .name_by(settings.key)
            .is_none_or(|name| matches!(self.scim_standing(&name), Standing::Inactive | Standing::Gone));
        let mut names = people.each().filter_map(|user| user.name_by(settings.key));
        was_in && is_out && !names.any(|name| self.provisioning.subjects.contains_key(&name))
    }

    /// Takes over what is different about people.
    fn people_changed(&mut self, issuer: &str, people: &Concerned, by: &str, now: Now) -> ScimClosed {
        let Some(key) = self.config.scim.as_ref().map(|settings| settings.key) else { return ScimClosed::default() };
        let names: BTreeSet<String> = people.each().filter_map(|user| user.name_by(key)).collect();
        let mut anew = BTreeSet::new();
        let mut closed = ScimClosed { issuer: issuer.to_owned(), key: Some(key), people: vec![] };
        for name in names {
            let subjects = self.provisioning.subjects.get(&name).cloned().unwrap_or_default();
            let mut subs = Vec::new();
            for id in subjects {
                let Some(subject) = self.registry.subject(id).cloned() else { continue };
                let reason = self.withdrawn(&subject.kind, subject.provisioned_as.as_ref());
                self.registry.set_withdrawn(id, reason.clone());
                match reason {
                    Some(reason) => self.close_person(id, &reason, by, now),
                    None => drop(anew.insert(id)),
                }
                if let SubjectKind::Person { sub, .. } = subject.kind {
                    subs.push(sub);
                }
            }
            // A group's members come and go without anybody's being put out.
            let is_one = matches!(people, Concerned::One { .. });
            if is_one && matches!(self.scim_standing(&name), Standing::Inactive | Standing::Gone) {
                closed.people.push(ScimClosedPerson { name, subjects: subs });
            }
        }
        self.decide_people(&anew, now);
        closed
    }

    /// Closes every door of a person: login sessions, leases, approvals, requests and openings past the rules.
    fn close_person(&mut self, id: SubjectId, reason: &str, by: &str, now: Now) {
        let asked = |of: SubjectId| of == id;
        let was_given =
            self.registry.requests_of(id).next().is_some() || self.registry.break_glass().any(|r| asked(r.subject));
        let nothing_open = !self.registry.sessions().any(|session| asked(session.subject))
            && !self.leases.values().any(|lease| asked(lease.record.subject));
        if nothing_open && !was_given {
            return;
        }
        self.while_noting(RevokeTarget::Subject(id), reason, by, now, |core| {
            core.take_back_given(id, by);
            core.shut(id, reason, now);
        });
    }

    fn decide_people(&mut self, people: &BTreeSet<SubjectId>, now: Now) {
        let source = self.config.scim.as_ref().map(|settings| settings.groups);
        if people.is_empty() || source == Some(GroupSource::Claims) {
            return;
        }
        let theirs = self.registry.sessions().filter(|session| people.contains(&session.subject));
        let theirs: Vec<DeviceId> = theirs.map(|session| session.device).collect();
        for device in theirs {
            if self.provisioning.queued.insert(device) {
                self.provisioning.waiting.push_back(device);
            }
        }
        self.decide_waiting(now);
    }

    /// Decides a portion of those who wait anew; returns how many.
    pub(super) fn decide_waiting(&mut self, now: Now) -> usize {
        let count = self.provisioning.waiting.len().min(AT_ONCE);
        for device in self.provisioning.waiting.drain(..count).collect::<Vec<_>>() {
            self.provisioning.queued.remove(&device);
            self.decide(device, Extend::No, now);
        }
        if !self.provisioning.waiting.is_empty() {
            self.timers.set(Due::Provisioning, now.monotonic);
        }
        count
    }

    // --- what people ask

    /// Tells how provisioning stands.
    pub fn scim_view(&self, now: Now) -> ScimView {
        let issuer = self.config.scim.as_ref().map(|settings| settings.issuer.clone());
        let realm = issuer.as_ref().and_then(|issuer| self.provisioning.directory.realm(issuer));
        ScimView {
            counts: realm.map(Realm::counts).unwrap_or_default(),
            issuer,
            unmatched: realm
                .into_iter()
                .flat_map(Realm::users)
                .filter(|user| user.active && self.is_unmatched(user))
                .count(),
            last_heard: self.provider_last_heard(),
            token_until: self.provisioning.tokens.values().map(|token| token.expires).filter(|at| *at > now.wall).max(),
            refused: self.provisioning.refused,
            waiting: self.provisioning.waiting.len(),
        }
    }

    fn is_unmatched(&self, user: &ScimUser) -> bool {
        let name = self.config.scim.as_ref().and_then(|settings| user.name_by(settings.key));
        name.is_none_or(|name| !self.provisioning.subjects.contains_key(&name))
    }

    /// Lists who may take part as the provider says and who never came, by their `userName`, and since when.
    pub(super) fn provisioned_and_never_seen(&self) -> Vec<(String, WallTime)> {
        let issuer = self.config.scim.as_ref().map(|settings| settings.issuer.as_str()).unwrap_or_default();
        let realm = self.provisioning.directory.realm(issuer);
        let people = realm.into_iter().flat_map(Realm::users).filter(|user| user.active && self.is_unmatched(user));
        people.map(|user| (user.user_name.clone(), user.created)).collect()
    }

    /// Lists the people of the directory; with `inactive`, those who are deactivated.
    pub fn scim_people(&self, inactive: bool) -> Vec<ScimPersonView> {
        let Some(settings) = &self.config.scim else { return vec![] };
        let Some(realm) = self.provisioning.directory.realm(&settings.issuer) else { return vec![] };
        let view = |user: &Arc<ScimUser>| {
            let known = user.name_by(settings.key).and_then(|name| self.provisioning.subjects.get(&name));
            let subjects = known.into_iter().flatten().map(|id| self.registry.subject_name(*id)).collect();
            ScimPersonView {
                user_name: user.user_name.clone(),
                external_id: user.external_id.clone(),
                active: user.active,
                groups: realm.groups_of(user.id),
                subjects,
            }
        };
        realm.users().filter(|user| !inactive || !user.active).map(view).collect()
    }

    /// Lists the groups of the directory and how many are in each.
    pub fn scim_groups(&self) -> Vec<ScimGroupView> {
        let issuer = self.config.scim.as_ref().map(|settings| settings.issuer.as_str()).unwrap_or_default();
        let realm = self.provisioning.directory.realm(issuer);
        realm
            .into_iter()
            .flat_map(Realm::groups)
            .map(|(group, people)| ScimGroupView { name: group.display_name.clone(), people })
            .collect()
    }

    /// Says how a subject stands with provisioning, in a few words; nothing if that is not about it.
    pub fn scim_note(&self, subject: &SubjectRecord) -> Option<String> {
        if !self.is_provisioned(&subject.kind) {
            return None;
        }
        let told = subject.provisioned_as.as_ref();
        if let Some(reason) = self.withdrawn(&subject.kind, told) {
            return Some(reason);
        }
        let name = self.provisioned_name(&subject.kind, told);
        Some(match name.map(|name| self.scim_standing(&name)) {
            Some(Standing::Active(_)) => "provisioned (SCIM)".into(),
            Some(Standing::Inactive | Standing::Gone | Standing::Otherwise | Standing::Unknown) | None => {
                "not provisioned (SCIM)".into()
            }
        })
    }
}
