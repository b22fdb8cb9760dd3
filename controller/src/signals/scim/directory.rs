//! The directory: who is provisioned and in which group, and what a command changes of that. Sans-IO.
//!
//! A client's commands reach one [`Realm`], that of its provider, and nothing else: there is no way to name a resource of another
//! one, so none can be read, changed or even told from one that is not there.
//!
//! Bounds: [`MAX_USERS`], [`MAX_GROUPS`], [`MAX_MEMBERSHIPS`] and [`MAX_BYTES`] of one provider; names of people who were taken away,
//! [`MAX_GONE`]. What would be more is refused, but never that somebody is put out: each person has room kept for their names among
//! those of people who were taken away, so that it is newcomers and new names that are refused.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use postern_common::time::WallTime;
use serde_json::Value;

use super::request::Shown;
use crate::records::{Loaded, ScimGone, ScimGroup, ScimId, ScimKey, ScimUser, StoreChange};

pub(super) const MAX_USERS: usize = 50_000;
pub(super) const MAX_GROUPS: usize = 5_000;
pub(super) const MAX_MEMBERSHIPS: usize = 1_000_000;
/// The most names of people who were taken away, and of those who may yet be.
pub(super) const MAX_GONE: usize = 200_000;
/// The most that is kept of one provider's people, bytes.
pub(super) const MAX_BYTES: usize = 256 << 20;
/// How many names a person has: `userName` and `externalId`.
const NAMES: usize = 2;

/// What is answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    pub(super) content: Content,
    pub(super) shown: Shown,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    User(Arc<ScimUser>),
    Group {
        group: Arc<ScimGroup>,
        /// Absent if they are not shown.
        members: Option<Vec<ScimId>>,
    },
    List {
        total: usize,
        start: usize,
        resources: Vec<Content>,
    },
    Document(Value),
    /// The client has this version.
    Unchanged(u64),
    Nothing,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Done {
    /// What is answered.
    pub(crate) answer: Answer,
    /// What has to become durable.
    pub(crate) store: Vec<StoreChange>,
    /// The people for whom something is different, or was asked for again.
    pub(crate) people: Concerned,
    /// What happened, for people; empty if nothing changed.
    pub(crate) said: String,
}

/// Whom a command concerns.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Concerned {
    /// A person: as they were, if they were there, and as they are.
    One { old: Option<Arc<ScimUser>>, new: Arc<ScimUser> },
    /// The members of a group, of whom nobody is put out by it.
    Several(Vec<Arc<ScimUser>>),
}

impl Concerned {
    /// Lists the records, as they were and as they are.
    pub(crate) fn each(&self) -> impl Iterator<Item = &Arc<ScimUser>> {
        let (one, several) = match self {
            Self::One { old, new } => (old.iter().chain(Some(new)), [].iter()),
            Self::Several(people) => (None.iter().chain(None), people.iter()),
        };
        one.chain(several)
    }
}

/// How a person who signs in stands with provisioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The provider never named them.
    Unknown,
    /// They may take part.
    Active(ScimId),
    /// They are deactivated.
    Inactive,
    /// They were taken away.
    Gone,
    /// Somebody who may take part is called the same but for its case.
    Otherwise,
}

#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) record: Arc<ScimGroup>,
    pub(super) members: BTreeSet<ScimId>,
}

/// The people and groups of one provider.
#[derive(Debug, Clone, Default)]
pub(crate) struct Realm {
    pub(super) users: BTreeMap<ScimId, Arc<ScimUser>>,
    pub(super) groups: BTreeMap<ScimId, Group>,
    pub(super) by_user_name: HashMap<String, ScimId>,
    pub(super) by_external_id: HashMap<String, ScimId>,
    pub(super) group_by_name: HashMap<String, ScimId>,
    pub(super) group_by_external_id: HashMap<String, BTreeSet<ScimId>>,
    pub(super) groups_of: HashMap<ScimId, BTreeSet<ScimId>>,
    gone: HashSet<(ScimKey, String)>,
    pub(super) memberships: usize,
    /// How much is kept of the users, bytes.
    pub(super) bytes: usize,
    pub(super) room: Room,
}

/// The bounds that tests make smaller.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) gone: usize,
    pub(super) bytes: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self { gone: MAX_GONE, bytes: MAX_BYTES }
    }
}

/// Tells how much is kept of a user, bytes.
pub(super) fn weight(user: &ScimUser) -> usize {
    let attributes = serde_json::to_vec(&user.attributes).map_or(usize::MAX / 2, |bytes| bytes.len());
    attributes + user.user_name.len() + user.external_id.as_ref().map_or(0, String::len)
}

/// Everything that providers have provisioned.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    realms: BTreeMap<String, Realm>,
}

/// How much there is of one provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Counts {
    /// People.
    pub users: usize,
    /// Of those, active ones.
    pub active: usize,
    /// Groups.
    pub groups: usize,
    /// Names of people who were taken away.
    pub gone: usize,
}

impl Directory {
    /// Takes up what the store kept.
    pub(crate) fn load(loaded: &mut Loaded) -> Self {
        let mut directory = Self::default();
        for user in loaded.scim_users.drain(..) {
            directory.realm_mut(&user.issuer.clone()).index_user(Arc::new(user));
        }
        let mut issuers = HashMap::new();
        for group in loaded.scim_groups.drain(..) {
            issuers.insert(group.id, group.issuer.clone());
            let issuer = group.issuer.clone();
            directory.realm_mut(&issuer).index_group(Arc::new(group));
        }
        for (group, user) in loaded.scim_members.drain(..) {
            if let Some(realm) = issuers.get(&group).and_then(|issuer| directory.realms.get_mut(issuer))
                && realm.users.contains_key(&user)
            {
                realm.index_member(group, user);
            }
        }
        for gone in loaded.scim_gone.drain(..) {
            directory.realm_mut(&gone.issuer).gone.insert((gone.key, gone.value));
        }
        directory
    }

    /// Returns what one provider has provisioned.
    pub(crate) fn realm(&self, issuer: &str) -> Option<&Realm> {
        self.realms.get(issuer)
    }

    pub(crate) fn realm_mut(&mut self, issuer: &str) -> &mut Realm {
        if !self.realms.contains_key(issuer) {
            self.realms.insert(issuer.to_owned(), Realm::default());
        }
        self.realms.get_mut(issuer).expect("it was just made")
    }
}

impl Realm {
    /// Tells how a person stands, by a name as their sign-in told it. Who is out is out however it is written; who may take part has to be
    /// called exactly so, because a claim may tell two people by the case alone.
    pub(crate) fn standing(&self, key: ScimKey, value: &str) -> Standing {
        let compared = key.compared(value);
        let index = match key {
            ScimKey::ExternalId => &self.by_external_id,
            ScimKey::UserName => &self.by_user_name,
        };
        match index.get(&compared).and_then(|id| self.users.get(id)) {
            Some(user) if !user.active => Standing::Inactive,
            Some(user) if key == ScimKey::UserName && user.user_name != value => Standing::Otherwise,
            Some(user) => Standing::Active(user.id),
            None if self.gone.contains(&(key, compared)) => Standing::Gone,
            None => Standing::Unknown,
        }
    }

    /// Lists the names of a person's groups.
    pub(crate) fn groups_of(&self, user: ScimId) -> BTreeSet<String> {
        let groups = self.groups_of.get(&user).into_iter().flatten();
        groups.filter_map(|id| self.groups.get(id)).map(|group| group.record.display_name.clone()).collect()
    }

    /// Counts what there is.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            users: self.users.len(),
            active: self.users.values().filter(|user| user.active).count(),
            groups: self.groups.len(),
            gone: self.gone.len(),
        }
    }

    /// Finds somebody who may take part.
    pub(crate) fn active(&self, id: ScimId) -> Option<&Arc<ScimUser>> {
        self.users.get(&id).filter(|user| user.active)
    }

    /// Lists people, in the order in which they were provisioned.
    pub(crate) fn users(&self) -> impl Iterator<Item = &Arc<ScimUser>> {
        self.users.values()
    }

    /// Lists groups and how many are in each.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (&ScimGroup, usize)> {
        self.groups.values().map(|group| (&*group.record, group.members.len()))
    }

    // --- indexes

    fn index_user(&mut self, user: Arc<ScimUser>) {
        self.by_user_name.insert(ScimKey::UserName.compared(&user.user_name), user.id);
        if let Some(external_id) = &user.external_id {
            self.by_external_id.insert(external_id.clone(), user.id);
        }
        self.bytes += weight(&user);
        if let Some(old) = self.users.insert(user.id, user) {
            self.bytes -= weight(&old);
        }
    }

    fn index_group(&mut self, record: Arc<ScimGroup>) {
        self.group_by_name.insert(record.display_name.to_lowercase(), record.id);
        if let Some(external_id) = &record.external_id {
            self.group_by_external_id.entry(external_id.clone()).or_default().insert(record.id);
        }
        let id = record.id;
        let members = self.groups.remove(&id).map(|group| group.members).unwrap_or_default();
        self.groups.insert(id, Group { record, members });
    }

    fn index_member(&mut self, group: ScimId, user: ScimId) {
        if let Some(group) = self.groups.get_mut(&group)
            && group.members.insert(user)
        {
            self.groups_of.entry(user).or_default().insert(group.record.id);
            self.memberships += 1;
        }
    }

    fn names(user: &ScimUser) -> impl Iterator<Item = (ScimKey, String)> {
        let keys = [ScimKey::UserName, ScimKey::ExternalId].into_iter();
        keys.filter_map(|key| user.name_by(key).map(|name| (key, name)))
    }

    /// Tells whether there is room among the names of people who were taken away for those of everybody, with `more` people, and
    /// `dropped` names that somebody has no longer.
    pub(super) fn has_room(&self, more: usize, dropped: usize) -> bool {
        self.gone.len() + dropped + NAMES * (self.users.len() + more) <= self.room.gone
    }

    /// Counts the names that a user would have no longer.
    pub(super) fn dropped(old: &ScimUser, new: &ScimUser) -> usize {
        Self::names(old).filter(|(key, name)| new.name_by(*key).as_ref() != Some(name)).count()
    }

    /// Writes a user; names that it has no longer stay out until somebody is provisioned under them again.
    pub(super) fn put_user(&mut self, user: ScimUser, store: &mut Vec<StoreChange>) -> Arc<ScimUser> {
        if let Some(old) = self.users.get(&user.id).cloned() {
            self.forget_names(&old, store);
        }
        for (key, value) in Self::names(&user) {
            if self.gone.remove(&(key, value.clone())) {
                store.push(StoreChange::DeleteScimGone(ScimGone { issuer: user.issuer.clone(), key, value }));
            }
        }
        let user = Arc::new(user);
        store.push(StoreChange::PutScimUser(ScimUser::clone(&user)));
        self.index_user(Arc::clone(&user));
        user
    }

    fn forget_names(&mut self, user: &ScimUser, store: &mut Vec<StoreChange>) {
        for (key, value) in Self::names(user) {
            match key {
                ScimKey::ExternalId => self.by_external_id.remove(&value),
                ScimKey::UserName => self.by_user_name.remove(&value),
            };
            // Nothing is forgotten here for want of room: see [`Realm::has_room`].
            if self.gone.insert((key, value.clone())) {
                store.push(StoreChange::PutScimGone(ScimGone { issuer: user.issuer.clone(), key, value }));
            }
        }
    }

    /// Takes a user away; the groups lose them.
    pub(super) fn delete_user(
        &mut self,
        id: ScimId,
        now: WallTime,
        store: &mut Vec<StoreChange>,
    ) -> Option<Arc<ScimUser>> {
        let user = self.users.get(&id).cloned()?;
        for group in self.groups_of.get(&id).cloned().unwrap_or_default() {
            self.change_members(group, &[], &[id], now, store);
        }
        self.forget_names(&user, store);
        self.users.remove(&id);
        self.bytes -= weight(&user);
        store.push(StoreChange::DeleteScimUser(id));
        Some(user)
    }

    /// Writes a group's own attributes.
    pub(super) fn put_group(&mut self, group: ScimGroup, store: &mut Vec<StoreChange>) {
        if let Some(old) = self.groups.get(&group.id).map(|group| Arc::clone(&group.record)) {
            self.group_by_name.remove(&old.display_name.to_lowercase());
            self.forget_group_external_id(&old);
        }
        store.push(StoreChange::PutScimGroup(group.clone()));
        self.index_group(Arc::new(group));
    }

    fn forget_group_external_id(&mut self, group: &ScimGroup) {
        if let Some(external_id) = &group.external_id
            && let Some(of) = self.group_by_external_id.get_mut(external_id)
        {
            of.remove(&group.id);
            if of.is_empty() {
                self.group_by_external_id.remove(external_id);
            }
        }
    }

    /// Takes a group away.
    pub(super) fn delete_group(&mut self, id: ScimId, store: &mut Vec<StoreChange>) -> Option<Group> {
        let group = self.groups.remove(&id)?;
        self.group_by_name.remove(&group.record.display_name.to_lowercase());
        self.forget_group_external_id(&group.record);
        self.memberships -= group.members.len();
        for user in &group.members {
            self.leave(*user, id);
        }
        store.push(StoreChange::DeleteScimGroup(id));
        Some(group)
    }

    fn leave(&mut self, user: ScimId, group: ScimId) {
        if let Some(groups) = self.groups_of.get_mut(&user) {
            groups.remove(&group);
            if groups.is_empty() {
                self.groups_of.remove(&user);
            }
        }
    }

    /// Puts people into a group and takes others out; returns who came and who went.
    pub(super) fn change_members(
        &mut self,
        id: ScimId,
        come: &[ScimId],
        go: &[ScimId],
        now: WallTime,
        store: &mut Vec<StoreChange>,
    ) -> (Vec<ScimId>, Vec<ScimId>) {
        let Some(group) = self.groups.get_mut(&id) else { return (vec![], vec![]) };
        let went: Vec<ScimId> = go.iter().copied().filter(|user| group.members.remove(user)).collect();
        let came: Vec<ScimId> = come.iter().copied().filter(|user| group.members.insert(*user)).collect();
        if went.is_empty() && came.is_empty() {
            return (came, went);
        }
        let record = Arc::make_mut(&mut group.record);
        (record.modified, record.version) = (now, record.version + 1);
        store.push(StoreChange::PutScimGroup(record.clone()));
        store.push(StoreChange::ScimMembers { group: id, added: came.clone(), removed: went.clone() });
        self.memberships = self.memberships + came.len() - went.len();
        for user in &went {
            self.leave(*user, id);
        }
        for user in &came {
            self.groups_of.entry(*user).or_default().insert(id);
        }
        (came, went)
    }

    /// Checks that the indexes say what the records say: for tests.
    ///
    /// # Panics
    /// If they do not.
    pub(super) fn check(&self) {
        assert_eq!(self.by_user_name.len(), self.users.len(), "one user a userName");
        assert!(self.has_room(0, 0), "nobody's names are without room");
        assert_eq!(self.bytes, self.users.values().map(|user| weight(user)).sum::<usize>());
        for user in self.users.values() {
            for (key, value) in Self::names(user) {
                let standing = if user.active { Standing::Active(user.id) } else { Standing::Inactive };
                let written = if key == ScimKey::UserName { &user.user_name } else { &value };
                assert_eq!(self.standing(key, written), standing);
                assert!(!self.gone.contains(&(key, value)));
            }
        }
        let named = self.users.values().filter(|user| user.external_id.is_some()).count();
        assert_eq!(self.by_external_id.len(), named, "one user an externalId");
        assert_eq!(self.group_by_name.len(), self.groups.len(), "one group a displayName");
        assert_eq!(self.memberships, self.groups.values().map(|group| group.members.len()).sum::<usize>());
        assert_eq!(self.memberships, self.groups_of.values().map(BTreeSet::len).sum::<usize>());
        for (id, group) in &self.groups {
            for member in &group.members {
                assert!(self.users.contains_key(member) && self.groups_of[member].contains(id));
            }
        }
    }
}
