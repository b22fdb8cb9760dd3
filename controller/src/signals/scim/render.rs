//! Resources and answers as the protocol writes them (RFC 7643 §3, RFC 7644 §3.4.2).

use postern_common::time::WallTime;
use serde_json::{Map, Value, json};

use super::{
    directory::{Answer, Content},
    request::Shown,
    schema::{ENTERPRISE, GROUP, Kind, USER},
};
use crate::records::{ScimGroup, ScimId, ScimUser};

/// An answer, ready for the wire.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// The status.
    pub status: u16,
    /// The body, if there is one.
    pub body: Option<Value>,
    /// The entity tag of the resource.
    pub etag: Option<String>,
    /// Where a resource that was made is.
    pub location: Option<String>,
}

pub(super) fn list(total: usize, start: usize, resources: Vec<Value>) -> Value {
    json!({
        "schemas": ["urn:ietf:params:scim:api:messages:2.0:ListResponse"],
        "totalResults": total,
        "startIndex": start,
        "itemsPerPage": resources.len(),
        "Resources": resources,
    })
}

fn location(base: &str, kind: Kind, id: ScimId) -> String {
    format!("{base}{}/{id}", kind.endpoint())
}

fn etag(version: u64) -> String {
    format!("W/\"{version}\"")
}

fn meta(base: &str, kind: Kind, id: ScimId, created: WallTime, modified: WallTime, version: u64) -> Value {
    json!({
        "resourceType": kind.word(),
        "created": created.to_string(),
        "lastModified": modified.to_string(),
        "version": etag(version),
        "location": location(base, kind, id),
    })
}

fn user(base: &str, user: &ScimUser, shown: &Shown) -> Value {
    let mut schemas = vec![USER];
    schemas.extend(user.attributes.contains_key(ENTERPRISE).then_some(ENTERPRISE));
    let mut body = Map::new();
    body.insert("schemas".into(), json!(schemas));
    body.insert("id".into(), json!(user.id));
    let mut put = |name: &str, value: Value| drop(shown.shows(name).then(|| body.insert(name.to_owned(), value)));
    put("userName", json!(user.user_name));
    put("active", json!(user.active));
    if let Some(external_id) = &user.external_id {
        put("externalId", json!(external_id));
    }
    for (name, value) in &user.attributes {
        put(name, value.clone());
    }
    put("meta", meta(base, Kind::User, user.id, user.created, user.modified, user.version));
    Value::Object(body)
}

fn group(base: &str, group: &ScimGroup, members: Option<&[ScimId]>, shown: &Shown) -> Value {
    let mut body = Map::new();
    body.insert("schemas".into(), json!([GROUP]));
    body.insert("id".into(), json!(group.id));
    let mut put = |name: &str, value: Value| drop(shown.shows(name).then(|| body.insert(name.to_owned(), value)));
    put("displayName", json!(group.display_name));
    if let Some(external_id) = &group.external_id {
        put("externalId", json!(external_id));
    }
    if let Some(members) = members {
        let member = |id: &ScimId| json!({"value": id, "$ref": location(base, Kind::User, *id), "type": "User"});
        put("members", members.iter().map(member).collect());
    }
    put("meta", meta(base, Kind::Group, group.id, group.created, group.modified, group.version));
    Value::Object(body)
}

impl Answer {
    /// Writes the answer; `base` is the service's URL, without a slash at its end.
    pub fn render(&self, base: &str) -> Rendered {
        let resource = |content: &Content| match content {
            Content::User(of) => user(base, of, &self.shown),
            Content::Group { group: of, members } => group(base, of, members.as_deref(), &self.shown),
            Content::Document(document) => document.clone(),
            Content::List { .. } | Content::Unchanged(_) | Content::Nothing => Value::Null,
        };
        let (body, version, at) = match &self.content {
            Content::User(of) => (Some(resource(&self.content)), Some(of.version), Some((Kind::User, of.id))),
            Content::Group { group, .. } => {
                (Some(resource(&self.content)), Some(group.version), Some((Kind::Group, group.id)))
            }
            Content::Document(document) => (Some(document.clone()), None, None),
            Content::List { total, start, resources } => {
                (Some(list(*total, *start, resources.iter().map(resource).collect())), None, None)
            }
            Content::Unchanged(version) => (None, Some(*version), None),
            Content::Nothing => (None, None, None),
        };
        let location = at.filter(|_| self.status == 201).map(|(kind, id)| location(base, kind, id));
        Rendered { status: self.status, body, etag: version.map(etag), location }
    }
}
