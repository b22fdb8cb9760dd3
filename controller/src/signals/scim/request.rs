//! From an HTTP request to a command: what is asked, checked as far as it can be without the directory. Sans-IO.

use serde_json::{Map, Value};

use super::{
    filter,
    patch::{self, GroupOperation, Operation},
    refusal::{Refusal, quoted},
    schema::{self, Kind},
    value::{self, UserParts},
};
use crate::records::ScimId;

/// The most resources on one page, and how many unless the client says.
pub(super) const MAX_COUNT: usize = 1_000;
const DEFAULT_COUNT: usize = 100;
/// The most attributes that a client chooses or leaves out.
const MAX_CHOSEN: usize = 64;
/// Flags that one provider leaves in the query of every request. What they ask for is what is done anyway.
const FLAGS: [&str; 3] = ["aadoptscim062020", "azureadscimpatch062020", "azureadscimpatch2017"];
/// The longest body about a user, bytes: a user of the most attributes, each said several times.
const MAX_USER_BODY: usize = 256 << 10;

/// A request, as the HTTP server has it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `GET`, `POST`, `PUT`, `PATCH` or `DELETE`.
    pub method: &'a str,
    /// The path below `/scim/v2`, such as `/Users/…`.
    pub path: &'a str,
    /// The query, without its question mark; empty if there is none.
    pub query: &'a str,
    /// The header `If-Match`.
    pub if_match: Option<&'a str>,
    /// The header `If-None-Match`.
    pub if_none_match: Option<&'a str>,
    /// The body; empty if there is none.
    pub body: &'a [u8],
}

/// Which resources of a list: all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Wanted {
    pub(super) id: Option<String>,
    pub(super) user_name: Option<String>,
    pub(super) external_id: Option<String>,
    pub(super) display_name: Option<String>,
    pub(super) member: Option<String>,
}

/// Which part of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Page {
    /// The first, from 1.
    pub(super) start: usize,
    pub(super) count: usize,
}

/// Which attributes are shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Shown {
    #[default]
    All,
    /// These, in lower case, and `id`.
    Only(Vec<String>),
    /// All but these, in lower case.
    Without(Vec<String>),
}

impl Shown {
    /// Tells whether an attribute is shown; whatever always is, is not asked for here.
    pub(super) fn shows(&self, name: &str) -> bool {
        // A part of an attribute brings the whole of it.
        let named = |chosen: &String| {
            let bare = chosen.strip_prefix(&format!("{}:", schema::GROUP.to_ascii_lowercase())).unwrap_or(chosen);
            let bare = bare.strip_prefix(&format!("{}:", schema::USER.to_ascii_lowercase())).unwrap_or(bare);
            let name = name.to_ascii_lowercase();
            bare == name || bare.strip_prefix(&name).is_some_and(|part| part.starts_with(['.', ':']))
        };
        match self {
            Self::All => true,
            Self::Only(chosen) => chosen.iter().any(named),
            Self::Without(chosen) => !chosen.iter().any(|chosen| {
                let bare = chosen.rsplit_once(':').map_or(chosen.as_str(), |(_, bare)| bare);
                bare.eq_ignore_ascii_case(name) || chosen.eq_ignore_ascii_case(name)
            }),
        }
    }
}

/// Versions of which the resource has to be one; no condition if absent.
pub(super) type OnlyIf = Option<Vec<u64>>;

/// A group as POST and PUT bring it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GroupParts {
    pub(super) display_name: String,
    pub(super) external_id: Option<String>,
    /// `None` if nothing was said.
    pub(super) members: Option<Vec<ScimId>>,
}

/// What is asked of the directory.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    pub(super) what: What,
    pub(super) shown: Shown,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    /// A document that depends on nobody.
    Document(Value),
    List {
        kind: Kind,
        wanted: Wanted,
        page: Page,
    },
    Read {
        kind: Kind,
        id: ScimId,
        unless: OnlyIf,
    },
    CreateUser(UserParts),
    CreateGroup(GroupParts),
    ReplaceUser {
        id: ScimId,
        parts: UserParts,
        only_if: OnlyIf,
    },
    ReplaceGroup {
        id: ScimId,
        parts: GroupParts,
        only_if: OnlyIf,
    },
    PatchUser {
        id: ScimId,
        operations: Vec<Operation>,
        only_if: OnlyIf,
    },
    PatchGroup {
        id: ScimId,
        operations: Vec<GroupOperation>,
        only_if: OnlyIf,
    },
    Delete {
        kind: Kind,
        id: ScimId,
        only_if: OnlyIf,
    },
}

/// Reads a request.
///
/// # Errors
/// [`Refusal`] in the words of the protocol. Nothing unknown is passed over.
pub fn parse(request: &Request<'_>) -> Result<Command, Refusal> {
    let path = request.path.trim_end_matches('/');
    let mut segments = path.trim_start_matches('/').split('/');
    let (first, second, more) = (segments.next().unwrap_or_default(), segments.next(), segments.next());
    if more.is_some() {
        return Err(Refusal::not_found("such endpoint"));
    }
    let kind = match first {
        "Users" => Kind::User,
        "Groups" => Kind::Group,
        "ServiceProviderConfig" | "ResourceTypes" | "Schemas" => return document(request, first, second),
        "Bulk" | "Me" | ".search" => {
            return Err(Refusal::not_served(501, format!("{} is not served", quoted(first))));
        }
        _ => return Err(Refusal::not_found("such endpoint")),
    };
    if kind == Kind::User && request.body.len() > MAX_USER_BODY {
        return Err(Refusal::too_large(format!("a body about a user has at most {MAX_USER_BODY} bytes")));
    }
    let query = query(kind, request.query, second.is_none() && request.method == "GET")?;
    // An identifier that cannot be one of ours is nobody's.
    let id = second.map(|id| id.parse::<ScimId>().map_err(|_| Refusal::not_found(kind.word()))).transpose()?;
    let only_if = request.if_match.and_then(versions);
    let unless = request.if_none_match.and_then(versions);
    let what = match (request.method, id, kind) {
        ("GET", None, _) => What::List { kind, wanted: query.wanted, page: query.page },
        ("GET", Some(id), _) => What::Read { kind, id, unless },
        ("POST", None, Kind::User) => What::CreateUser(user(&body(request)?)?),
        ("POST", None, Kind::Group) => What::CreateGroup(group(&body(request)?)?),
        ("PUT", Some(id), Kind::User) => What::ReplaceUser { id, parts: user(&body(request)?)?, only_if },
        ("PUT", Some(id), Kind::Group) => What::ReplaceGroup { id, parts: group(&body(request)?)?, only_if },
        ("PATCH", Some(id), Kind::User) => {
            What::PatchUser { id, operations: patch::parse(kind, &body(request)?)?, only_if }
        }
        ("PATCH", Some(id), Kind::Group) => {
            let operations = patch::of_group(&patch::parse(kind, &body(request)?)?)?;
            What::PatchGroup { id, operations, only_if }
        }
        ("DELETE", Some(id), _) => What::Delete { kind, id, only_if },
        (_, None, _) => return Err(Refusal::not_by_this_method("GET, POST")),
        (_, Some(_), _) => return Err(Refusal::not_by_this_method("GET, PUT, PATCH, DELETE")),
    };
    Ok(Command { what, shown: query.shown })
}

/// Tells whom a request wants out, as far as it can be told of one that is refused: never for anything but to tell people.
pub(crate) fn leaver(request: &Request<'_>) -> Option<ScimId> {
    let id = request.path.trim_end_matches('/').strip_prefix("/Users/")?.parse().ok()?;
    if request.method == "DELETE" {
        return Some(id);
    }
    if !["PUT", "PATCH"].contains(&request.method) || request.body.len() > MAX_USER_BODY {
        return None;
    }
    let body: Value = serde_json::from_slice(request.body).ok()?;
    let is_active = |name: &str| name.rsplit(':').next().is_some_and(|name| name.eq_ignore_ascii_case("active"));
    let off = |object: &Map<String, Value>| {
        object.iter().any(|(name, value)| is_active(name) && value::truth(value) == Some(false))
    };
    let body = body.as_object()?;
    let operations = patch::field(body, "Operations").and_then(Value::as_array);
    let mut written = operations.into_iter().flatten().filter_map(Value::as_object);
    let is_out = off(body)
        || written.any(|operation| {
            let value = patch::field(operation, "value").unwrap_or_default();
            match patch::field(operation, "path").and_then(Value::as_str).filter(|path| !path.is_empty()) {
                Some(path) => is_active(path) && value::truth(value) == Some(false),
                None => value.as_object().is_some_and(off),
            }
        });
    is_out.then_some(id)
}

fn document(request: &Request<'_>, which: &str, name: Option<&str>) -> Result<Command, Refusal> {
    if request.method != "GET" {
        return Err(Refusal::not_by_this_method("GET"));
    }
    if which == "ServiceProviderConfig" {
        return match name {
            None => Ok(Command { what: What::Document(schema::service_provider_config(MAX_COUNT)), shown: Shown::All }),
            Some(_) => Err(Refusal::not_found("such endpoint")),
        };
    }
    let all = if which == "Schemas" { schema::schemas() } else { schema::resource_types() };
    let found = match name {
        None => super::render::list(all.len(), 1, all.into_iter().map(|(_, said)| said).collect()),
        Some(name) => {
            let found = all.into_iter().find(|(id, _)| *id == name).map(|(_, said)| said);
            found.ok_or_else(|| Refusal::not_found("such document"))?
        }
    };
    Ok(Command { what: What::Document(found), shown: Shown::All })
}

fn body(request: &Request<'_>) -> Result<Value, Refusal> {
    serde_json::from_slice(request.body).map_err(|_| Refusal::syntax("the body is not JSON"))
}

fn user(body: &Value) -> Result<UserParts, Refusal> {
    let body = body.as_object().ok_or_else(|| Refusal::syntax("the body is no object"))?;
    value::settled(value::user(body)?)
}

fn group(body: &Value) -> Result<GroupParts, Refusal> {
    let body = body.as_object().ok_or_else(|| Refusal::syntax("the body is no object"))?;
    value::schemas(body, schema::GROUP, &[schema::ENTRA_GROUP])?;
    let mut known: Map<String, Value> = Map::new();
    for (key, value) in body.iter().filter(|(key, _)| !value::is_common(key)) {
        let attribute = schema::find(schema::GROUP_ATTRIBUTES, key);
        let attribute = attribute.ok_or_else(|| {
            let help = "take it out of the attribute mapping of the provider";
            Refusal::syntax(format!("there is no attribute {} of a Group: {help}", quoted(key)))
        })?;
        if known.insert(attribute.name.to_owned(), value.clone()).is_some() {
            return Err(Refusal::syntax(format!("{} is written twice", attribute.name)));
        }
    }
    Ok(GroupParts {
        display_name: value::name("displayName", known.get("displayName").unwrap_or_default())?,
        external_id: value::external_id(known.get("externalId").unwrap_or_default())?,
        members: match known.get("members") {
            None => None,
            Some(Value::Null) => return Err(Refusal::value("members are a list: leave them out, or name them")),
            Some(listed) => Some(patch::members(Some(listed))?),
        },
    })
}

/// Reads entity tags; `None` for `*`, which every version meets. A tag that is not ours names no version.
fn versions(header: &str) -> OnlyIf {
    if header.trim() == "*" {
        return None;
    }
    let tag = |tag: &str| {
        let tag = tag.trim();
        tag.strip_prefix("W/").unwrap_or(tag).strip_prefix('"')?.strip_suffix('"')?.parse().ok()
    };
    Some(header.split(',').filter_map(tag).take(16).collect())
}

struct Query {
    wanted: Wanted,
    page: Page,
    shown: Shown,
}

fn query(kind: Kind, text: &str, list: bool) -> Result<Query, Refusal> {
    let mut read =
        Query { wanted: Wanted::default(), page: Page { start: 1, count: DEFAULT_COUNT }, shown: Shown::All };
    let number = |name: &str, value: &str| {
        let number: i64 = value.trim().parse().map_err(|_| Refusal::value(format!("{name} is a number")))?;
        Ok::<_, Refusal>(usize::try_from(number.max(0)).unwrap_or(usize::MAX))
    };
    for (name, value) in url::form_urlencoded::parse(text.as_bytes()) {
        match name.to_ascii_lowercase().as_str() {
            "filter" if list => read.wanted = wanted(kind, &value)?,
            "startindex" if list => read.page.start = number("startIndex", &value)?.max(1),
            "count" if list => read.page.count = number("count", &value)?.min(MAX_COUNT),
            "attributes" => read.shown = Shown::Only(chosen(&value)?),
            "excludedattributes" => read.shown = Shown::Without(chosen(&value)?),
            flag if FLAGS.contains(&flag) => {}
            _ => return Err(Refusal::value(format!("there is no parameter {} here", quoted(&name)))),
        }
    }
    Ok(read)
}

fn chosen(text: &str) -> Result<Vec<String>, Refusal> {
    let chosen: Vec<String> = text.split(',').map(|name| name.trim().to_ascii_lowercase()).collect();
    let fit = text.len() <= 4_096 && chosen.len() <= MAX_CHOSEN;
    fit.then_some(chosen).ok_or_else(|| Refusal::value("too many attributes"))
}

/// Reads which resources a filter wants: by the names that are indexed.
fn wanted(kind: Kind, text: &str) -> Result<Wanted, Refusal> {
    let mut wanted = Wanted::default();
    for comparison in filter::comparisons(text)? {
        let refused = || {
            let detail = format!("{} of a {} cannot be searched for", quoted(&comparison.attribute), kind.word());
            Refusal::filter(detail)
        };
        let Value::String(value) = &comparison.value else { return Err(refused()) };
        let bare = comparison.attribute.to_ascii_lowercase();
        let bare = bare.strip_prefix(&format!("{}:", kind.schema().to_ascii_lowercase())).unwrap_or(&bare);
        let place = match (bare, kind) {
            ("id", _) => &mut wanted.id,
            ("externalid", _) => &mut wanted.external_id,
            ("username", Kind::User) => &mut wanted.user_name,
            ("displayname", Kind::Group) => &mut wanted.display_name,
            ("members" | "members.value", Kind::Group) => &mut wanted.member,
            _ => return Err(refused()),
        };
        if place.replace(value.clone()).is_some() {
            return Err(Refusal::filter("the same attribute is compared twice"));
        }
    }
    Ok(wanted)
}
