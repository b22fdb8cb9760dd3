//! What a command does to the directory of one provider, and what is answered. Sans-IO.

use std::{collections::BTreeSet, sync::Arc};

use postern_common::time::WallTime;
use serde_json::{Map, Value};

use super::{
    directory::{Answer, Concerned, Content, Done, Group, MAX_GROUPS, MAX_MEMBERSHIPS, MAX_USERS, Realm, weight},
    patch::{self, GroupOperation, MAX_MEMBERS, Operation},
    refusal::{Refusal, quoted},
    request::{Command, GroupParts, OnlyIf, Page, Shown, Wanted, What},
    schema::Kind,
    value::{self, UserParts},
};
use crate::records::{ScimGroup, ScimId, ScimKey, ScimUser};

/// What says that there is no room (RFC 4918 §11.5), as [`Refusal::full`] does.
const NO_ROOM: u16 = 507;
/// The most members that one page of groups shows; a page ends early rather than to be longer.
const MAX_SHOWN_MEMBERS: usize = 20_000;
/// The most names of members in the audit log for one change.
const MAX_SAID: usize = 20;

/// What a change is made with.
pub(crate) struct Moment<'a> {
    /// The issuer of the provider.
    pub(crate) issuer: &'a str,
    /// By which attribute people who sign in are found.
    pub(crate) key: ScimKey,
    /// The time.
    pub(crate) now: WallTime,
    /// Random bytes, for the one identifier that a command may need.
    pub(crate) random: [u8; 10],
}

fn only_if(condition: &OnlyIf, version: u64) -> Result<(), Refusal> {
    match condition {
        Some(versions) if !versions.contains(&version) => Err(Refusal::changed()),
        Some(_) | None => Ok(()),
    }
}

impl Realm {
    /// Does a command: all of it, or nothing.
    ///
    /// # Errors
    /// [`Refusal`]; nothing changed then.
    pub(crate) fn run(&mut self, command: Command, at: Moment<'_>) -> Result<Done, Refusal> {
        let Command { what, shown } = command;
        match what {
            What::Document(document) => Ok(found(200, Content::Document(document), shown)),
            What::List { kind, wanted, page } => Ok(found(200, self.list(kind, &wanted, page, &shown), shown)),
            What::Read { kind, id, unless } => {
                let (content, version) = self.read(kind, id, &shown)?;
                match unless.is_some_and(|known| known.contains(&version)) {
                    true => Ok(found(304, Content::Unchanged(version), shown)),
                    false => Ok(found(200, content, shown)),
                }
            }
            What::CreateUser(parts) => {
                if self.users.len() >= MAX_USERS {
                    return Err(Refusal::full(format!("a provider may have {MAX_USERS} users")));
                }
                self.check_user(None, &parts)?;
                if !self.has_room(1, 0) {
                    return Err(no_room_for_names());
                }
                let id = ScimId::new(at.now, at.random);
                let user = ScimUser {
                    id,
                    issuer: at.issuer.to_owned(),
                    user_name: parts.user_name,
                    external_id: parts.external_id,
                    active: parts.active.unwrap_or(true),
                    attributes: parts.attributes,
                    created: at.now,
                    modified: at.now,
                    version: 1,
                };
                self.user_changed(None, user, &at, 201, shown)
            }
            What::ReplaceUser { id, parts, only_if: condition } => {
                let old = self.user(id)?;
                only_if(&condition, old.version)?;
                // A name that is left out stays: without it, who signs in would be somebody whom nobody provisioned.
                let external_id = parts.external_id.clone().or_else(|| old.external_id.clone());
                self.replace_user(&old, UserParts { external_id, ..parts }, &at, shown)
            }
            What::PatchUser { id, operations, only_if: condition } => {
                let old = self.user(id)?;
                only_if(&condition, old.version)?;
                let parts = patched(&old, &operations)?;
                self.replace_user(&old, parts, &at, shown)
            }
            What::CreateGroup(parts) => self.create_group(parts, &at, shown),
            What::ReplaceGroup { id, parts, only_if: condition } => {
                let mut operations = vec![GroupOperation::Name(parts.display_name)];
                // Who is in it stays as well, unless it is said.
                operations.extend(parts.members.map(GroupOperation::Members));
                operations.extend(parts.external_id.map(|id| GroupOperation::ExternalId(Some(id))));
                let mut done = self.change_group(id, &operations, &condition, at.now)?;
                done.answer = Answer { status: 200, content: self.read(Kind::Group, id, &shown)?.0, shown };
                Ok(done)
            }
            What::PatchGroup { id, operations, only_if: condition } => {
                self.change_group(id, &operations, &condition, at.now)
            }
            What::Delete { kind: Kind::User, id, only_if: condition } => {
                let old = self.user(id)?;
                only_if(&condition, old.version)?;
                let mut store = vec![];
                self.delete_user(id, at.now, &mut store);
                let said = format!("deleted the user {}", described(&old));
                Ok(Done {
                    store,
                    people: Concerned::One { old: None, new: old },
                    said,
                    ..found(204, Content::Nothing, shown)
                })
            }
            What::Delete { kind: Kind::Group, id, only_if: condition } => {
                only_if(&condition, self.group(id)?.record.version)?;
                let mut store = vec![];
                let gone = self.delete_group(id, &mut store).ok_or_else(|| Refusal::not_found("Group"))?;
                let said = format!("deleted the group {}", quoted(&gone.record.display_name));
                let people = Concerned::Several(self.people(&gone.members));
                Ok(Done { store, people, said, ..found(204, Content::Nothing, shown) })
            }
        }
    }

    fn user(&self, id: ScimId) -> Result<Arc<ScimUser>, Refusal> {
        self.users.get(&id).cloned().ok_or_else(|| Refusal::not_found("User"))
    }

    fn group(&self, id: ScimId) -> Result<&Group, Refusal> {
        self.groups.get(&id).ok_or_else(|| Refusal::not_found("Group"))
    }

    fn people<'a>(&self, ids: impl IntoIterator<Item = &'a ScimId>) -> Vec<Arc<ScimUser>> {
        ids.into_iter().filter_map(|id| self.users.get(id).cloned()).collect()
    }

    // --- reading

    fn read(&self, kind: Kind, id: ScimId, shown: &Shown) -> Result<(Content, u64), Refusal> {
        match kind {
            Kind::User => self.user(id).map(|user| (Content::User(Arc::clone(&user)), user.version)),
            Kind::Group => {
                let group = self.group(id)?;
                let members = shown.shows("members").then(|| group.members.iter().copied().collect());
                let version = group.record.version;
                Ok((Content::Group { group: Arc::clone(&group.record), members }, version))
            }
        }
    }

    fn list(&self, kind: Kind, wanted: &Wanted, page: Page, shown: &Shown) -> Content {
        let ids = self.wanted(kind, wanted);
        let total = ids.as_ref().map_or(self.total(kind), BTreeSet::len);
        let from = page.start - 1;
        let chosen: Vec<ScimId> = match (&ids, kind) {
            (Some(ids), _) => ids.iter().skip(from).take(page.count).copied().collect(),
            (None, Kind::User) => self.users.keys().skip(from).take(page.count).copied().collect(),
            (None, Kind::Group) => self.groups.keys().skip(from).take(page.count).copied().collect(),
        };
        let mut resources = Vec::with_capacity(chosen.len());
        let mut members = 0;
        for id in chosen {
            let Ok((content, _)) = self.read(kind, id, shown) else { continue };
            if let Content::Group { members: Some(shown), .. } = &content {
                members += shown.len();
            }
            if members > MAX_SHOWN_MEMBERS && !resources.is_empty() {
                break;
            }
            resources.push(content);
        }
        Content::List { total, start: page.start, resources }
    }

    fn total(&self, kind: Kind) -> usize {
        match kind {
            Kind::User => self.users.len(),
            Kind::Group => self.groups.len(),
        }
    }

    /// Finds by the indexes what a filter wants; `None` without a filter.
    fn wanted(&self, kind: Kind, wanted: &Wanted) -> Option<BTreeSet<ScimId>> {
        let exactly = |id: Option<ScimId>| id.into_iter().collect::<BTreeSet<_>>();
        let is_there = |id: &ScimId| match kind {
            Kind::User => self.users.contains_key(id),
            Kind::Group => self.groups.contains_key(id),
        };
        let mut sets = Vec::new();
        if let Some(id) = &wanted.id {
            sets.push(exactly(id.parse().ok().filter(is_there)));
        }
        if let Some(name) = &wanted.user_name {
            sets.push(exactly(self.by_user_name.get(&ScimKey::UserName.compared(name)).copied()));
        }
        if let Some(external_id) = &wanted.external_id {
            sets.push(match kind {
                Kind::User => exactly(self.by_external_id.get(external_id).copied()),
                Kind::Group => self.group_by_external_id.get(external_id).cloned().unwrap_or_default(),
            });
        }
        if let Some(name) = &wanted.display_name {
            sets.push(exactly(self.group_by_name.get(&name.to_lowercase()).copied()));
        }
        if let Some(member) = &wanted.member {
            let member = member.parse().ok();
            sets.push(member.and_then(|member: ScimId| self.groups_of.get(&member)).cloned().unwrap_or_default());
        }
        sets.into_iter().reduce(|one, other| &one & &other)
    }

    // --- users

    fn check_user(&self, own: Option<ScimId>, parts: &UserParts) -> Result<(), Refusal> {
        let other = |found: Option<&ScimId>| found.is_some_and(|id| Some(*id) != own);
        if other(self.by_user_name.get(&ScimKey::UserName.compared(&parts.user_name))) {
            return Err(Refusal::taken(format!("the userName {} is another user's", quoted(&parts.user_name))));
        }
        let taken = parts.external_id.as_ref().filter(|external_id| other(self.by_external_id.get(*external_id)));
        match taken {
            None => Ok(()),
            // It may say who somebody is: two people under one would be one person.
            Some(taken) => Err(Refusal::taken(format!("the externalId {} is another user's", quoted(taken)))),
        }
    }

    fn replace_user(
        &mut self,
        old: &Arc<ScimUser>,
        parts: UserParts,
        at: &Moment<'_>,
        shown: Shown,
    ) -> Result<Done, Refusal> {
        self.check_user(Some(old.id), &parts)?;
        let goes = old.active && parts.active == Some(false);
        match self.renew_user(old, parts, at, shown.clone()) {
            // Somebody who leaves goes out, whatever else there is no room for; the answer shows what is kept.
            Err(refusal) if goes && refusal.status == NO_ROOM => {
                let user =
                    ScimUser { active: false, modified: at.now, version: old.version + 1, ..ScimUser::clone(old) };
                let mut done = self.user_changed(Some(old), user, at, 200, shown)?;
                done.said.push_str(&format!("; nothing else of the request was taken over: {}", refusal.detail));
                Ok(done)
            }
            done => done,
        }
    }

    fn renew_user(
        &mut self,
        old: &Arc<ScimUser>,
        parts: UserParts,
        at: &Moment<'_>,
        shown: Shown,
    ) -> Result<Done, Refusal> {
        let user = ScimUser {
            user_name: parts.user_name,
            external_id: parts.external_id,
            active: parts.active.unwrap_or(old.active),
            attributes: parts.attributes,
            ..ScimUser::clone(old)
        };
        if user == **old {
            // Who is out and is put out again may still have something open, if the first time was cut short.
            let people = Concerned::One { old: None, new: Arc::clone(old) };
            return Ok(Done { people, ..found(200, Content::User(Arc::clone(old)), shown) });
        }
        let user = ScimUser { modified: at.now, version: old.version + 1, ..user };
        let dropped = Self::dropped(old, &user);
        if dropped > 0 && !self.has_room(0, dropped) {
            return Err(no_room_for_names());
        }
        self.user_changed(Some(old), user, at, 200, shown)
    }

    fn user_changed(
        &mut self,
        old: Option<&Arc<ScimUser>>,
        user: ScimUser,
        at: &Moment<'_>,
        status: u16,
        shown: Shown,
    ) -> Result<Done, Refusal> {
        // Whom nobody can be found to be, nobody can let go either. It is still heard that somebody like that is out.
        if user.name_by(at.key).is_none() && (user.active || old.is_none_or(|old| old.name_by(at.key).is_some())) {
            let (key, help) = (at.key.word(), "map an attribute that names one person for ever to it at the provider");
            return Err(Refusal::value(format!("{key} is missing, by which people are found here: {help}")));
        }
        let (was, is) = (old.map_or(0, |old| weight(old)), weight(&user));
        if is > was && self.bytes - was + is > self.room.bytes {
            return Err(Refusal::full("the provider's users have more attributes than there is room for"));
        }
        let mut store = vec![];
        let mut said = said_of_user(old.map(|old| &**old), &user);
        // The client has found an old record by another name, such as an address that somebody new has got, and makes it theirs. What
        // its groups open was given to somebody else.
        if let Some(old) = old.filter(|old| old.external_id.is_some() && old.external_id != user.external_id) {
            let groups = self.groups_of(old.id);
            for group in self.groups_of.get(&old.id).cloned().unwrap_or_default() {
                self.change_members(group, &[], &[old.id], at.now, &mut store);
            }
            if !groups.is_empty() {
                let (few, count) = (groups.iter().take(MAX_SAID).map(|name| quoted(name)), groups.len());
                let few: Vec<String> = few.collect();
                said.push_str(&format!("; somebody else now, so out of {count} groups: {}", few.join(", ")));
            }
        }
        let user = self.put_user(user, &mut store);
        let people = Concerned::One { old: old.cloned(), new: Arc::clone(&user) };
        Ok(Done { store, people, said, ..found(status, Content::User(user), shown) })
    }

    // --- groups

    fn check_group_name(&self, own: Option<ScimId>, name: &str) -> Result<(), Refusal> {
        match self.group_by_name.get(&name.to_lowercase()).is_some_and(|id| Some(*id) != own) {
            false => Ok(()),
            // Rules name groups by it: whoever can make a second one of that name must not get what the first one gets.
            true => Err(Refusal::taken(format!("the displayName {} is another group's", quoted(name)))),
        }
    }

    fn check_members(&self, members: &[ScimId]) -> Result<(), Refusal> {
        match members.iter().find(|id| !self.users.contains_key(id)) {
            None => Ok(()),
            Some(stranger) => Err(patch::no_such_member(&stranger.to_string())),
        }
    }

    fn create_group(&mut self, parts: GroupParts, at: &Moment<'_>, shown: Shown) -> Result<Done, Refusal> {
        if self.groups.len() >= MAX_GROUPS {
            return Err(Refusal::full(format!("a provider may have {MAX_GROUPS} groups")));
        }
        self.check_group_name(None, &parts.display_name)?;
        let members = parts.members.unwrap_or_default();
        self.check_members(&members)?;
        self.check_room(members.len())?;
        let group = ScimGroup {
            id: ScimId::new(at.now, at.random),
            issuer: at.issuer.to_owned(),
            display_name: parts.display_name,
            external_id: parts.external_id,
            created: at.now,
            modified: at.now,
            version: 1,
        };
        let id = group.id;
        let mut said = format!("created the group {}", quoted(&group.display_name));
        let mut store = vec![];
        self.put_group(group, &mut store);
        let (came, _) = self.change_members(id, &members, &[], at.now, &mut store);
        said.push_str(&self.said_of_members("with", &came));
        let people = Concerned::Several(self.people(&came));
        let (content, _) = self.read(Kind::Group, id, &shown)?;
        Ok(Done { store, people, said, ..found(201, content, shown) })
    }

    fn check_room(&self, more: usize) -> Result<(), Refusal> {
        match self.memberships + more > MAX_MEMBERSHIPS {
            false => Ok(()),
            true => Err(Refusal::full(format!("a provider may have {MAX_MEMBERSHIPS} memberships in groups"))),
        }
    }

    /// Changes a group. What it comes to is worked out first, so that a refusal leaves it as it was.
    fn change_group(
        &mut self,
        id: ScimId,
        operations: &[GroupOperation],
        condition: &OnlyIf,
        now: WallTime,
    ) -> Result<Done, Refusal> {
        let group = self.group(id)?;
        only_if(condition, group.record.version)?;
        let old = Arc::clone(&group.record);
        let mut record = ScimGroup::clone(&old);
        // As differences, in order: the group itself may be large, what is said of it mostly is not. It is gone through at most once,
        // however many operations name all of its members.
        let (mut come, mut go, mut anew) = (BTreeSet::new(), BTreeSet::new(), false);
        for operation in operations {
            match operation {
                GroupOperation::Is(given) => patch::is_own(id, given)?,
                GroupOperation::Name(name) => record.display_name.clone_from(name),
                GroupOperation::ExternalId(external_id) => record.external_id.clone_from(external_id),
                GroupOperation::Add(members) => {
                    self.check_members(members)?;
                    members.iter().for_each(|member| {
                        go.remove(member);
                        come.insert(*member);
                    });
                }
                GroupOperation::Remove(members) => members.iter().for_each(|member| {
                    come.remove(member);
                    go.insert(*member);
                }),
                GroupOperation::Members(members) => {
                    self.check_members(members)?;
                    (come, anew) = (members.iter().copied().collect(), true);
                    go.clear();
                }
            }
        }
        self.check_group_name(Some(id), &record.display_name)?;
        if anew {
            go = group.members.difference(&come).copied().collect();
        }
        let come: Vec<ScimId> = come.into_iter().filter(|member| !group.members.contains(member)).collect();
        let go: Vec<ScimId> = go.into_iter().filter(|member| group.members.contains(member)).collect();
        if group.members.len() + come.len() - go.len() > MAX_MEMBERS {
            return Err(Refusal::too_large(format!("a group has at most {MAX_MEMBERS} members")));
        }
        self.check_room(come.len())?;
        let renamed = record.display_name != old.display_name;
        let before = if renamed { self.people(&group.members) } else { vec![] };
        let mut store = vec![];
        let mut said = String::new();
        if record != *old {
            (record.modified, record.version) = (now, old.version + 1);
            if renamed {
                said = format!("renamed the group {} to {}", quoted(&old.display_name), quoted(&record.display_name));
            } else {
                said = format!("changed the group {}", quoted(&record.display_name));
            }
            self.put_group(record.clone(), &mut store);
        }
        let (came, went) = self.change_members(id, &come, &go, now, &mut store);
        if !came.is_empty() || !went.is_empty() {
            if said.is_empty() {
                said = format!("group {}", quoted(&record.display_name));
            }
            said.push_str(&self.said_of_members("added", &came));
            said.push_str(&self.said_of_members("removed", &went));
        }
        let mut people = self.people(came.iter().chain(&went));
        people.extend(before);
        Ok(Done { store, people: Concerned::Several(people), said, ..found(204, Content::Nothing, Shown::All) })
    }

    fn said_of_members(&self, how: &str, members: &[ScimId]) -> String {
        if members.is_empty() {
            return String::new();
        }
        let known = members.iter().take(MAX_SAID).filter_map(|id| self.users.get(id));
        let names: Vec<&str> = known.map(|user| user.user_name.as_str()).collect();
        let more = members.len().saturating_sub(MAX_SAID);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("; {how} {}{more}", names.join(", "))
    }
}

fn no_room_for_names() -> Refusal {
    let help = "people who are there can still be deactivated and deleted";
    Refusal::full(format!("there are too many names of people who were taken away to take up new ones: {help}"))
}

fn found(status: u16, content: Content, shown: Shown) -> Done {
    Done {
        answer: Answer { status, content, shown },
        store: vec![],
        people: Concerned::Several(vec![]),
        said: String::new(),
    }
}

/// Puts a user together as a client sees it, does the operations, and takes it apart again.
fn patched(old: &ScimUser, operations: &[Operation]) -> Result<UserParts, Refusal> {
    let mut whole: Map<String, Value> = old.attributes.clone();
    whole.insert("userName".into(), old.user_name.clone().into());
    whole.insert("active".into(), old.active.into());
    if let Some(external_id) = &old.external_id {
        whole.insert("externalId".into(), external_id.clone().into());
    }
    patch::apply_user(operations, old.id, &mut whole)?;
    value::settled(whole)
}

/// Names a person, for people.
pub(crate) fn described(user: &ScimUser) -> String {
    let external_id = user.external_id.as_ref().map(|id| format!(" (externalId {})", quoted(id)));
    format!("{}{}", quoted(&user.user_name), external_id.unwrap_or_default())
}

fn said_of_user(old: Option<&ScimUser>, user: &ScimUser) -> String {
    let Some(old) = old else {
        let state = if user.active { "active" } else { "inactive" };
        return format!("created the user {}, {state}", described(user));
    };
    let mut said = match (old.active, user.active) {
        (true, false) => format!("deactivated {}", described(user)),
        (false, true) => format!("reactivated {}", described(user)),
        (true, true) | (false, false) => format!("changed the user {}", described(user)),
    };
    if old.user_name != user.user_name {
        said.push_str(&format!("; userName was {}", quoted(&old.user_name)));
    }
    if old.external_id != user.external_id {
        said.push_str(&format!("; externalId was {}", quoted(old.external_id.as_deref().unwrap_or_default())));
    }
    said
}
