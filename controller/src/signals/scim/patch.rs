//! PATCH (RFC 7644 §3.5.2), with the habits of real providers: operations in any case (`Replace`), truth values as texts
//! (`"False"`), no path but an object whose keys are paths, members to remove as values.
//!
//! ```text
//! body --parse--> Vec<Operation>, each with one path --apply_user--> the user's attributes, all or nothing
//!                                                    `--of_group--> Vec<GroupOperation>
//! ```
//!
//! One leniency: `replace` of a value that is not there (`emails[type eq "work"].value`) makes it, where RFC 7644 §3.5.2.3 refuses.
//! Providers send it in the same request with `active`, and a refused request would leave somebody in for the sake of an e-mail
//! address that means nothing here.

use serde_json::{Map, Value};

use super::{
    filter::Comparison,
    path::{self, Path, Within},
    refusal::{Refusal, ScimType, quoted},
    schema::{self, Attribute, ENTERPRISE, Keep, Kind, Plurality, Type},
    value,
};
use crate::records::ScimId;

/// The schema of the body.
const PATCH_OP: &str = "urn:ietf:params:scim:api:messages:2.0:PatchOp";
/// The most operations of one request on a group, each of which names members or changes a name.
const MAX_OPERATIONS: usize = 1_000;
/// The most operations of one request on a user, each of which goes through the user.
const MAX_USER_OPERATIONS: usize = 100;
/// The most members that one request names.
pub(super) const MAX_MEMBERS: usize = 20_000;

/// What is done at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Replace,
    Remove,
}

/// One operation at one path.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Operation {
    verb: Verb,
    at: Target,
    value: Option<Value>,
}

#[derive(Debug, Clone, PartialEq)]
enum Target {
    /// The resource's own identifier, which some providers repeat.
    Id,
    Path(Path),
}

/// An operation on a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GroupOperation {
    /// The identifier that the client thinks it has.
    Is(String),
    Name(String),
    ExternalId(Option<String>),
    Add(Vec<ScimId>),
    Remove(Vec<ScimId>),
    Members(Vec<ScimId>),
}

pub(super) fn field<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn only(object: &Map<String, Value>, known: &[&str]) -> Result<(), Refusal> {
    match object.keys().find(|key| !known.iter().any(|known| key.eq_ignore_ascii_case(known))) {
        None => Ok(()),
        Some(strange) => Err(Refusal::syntax(format!("a PATCH has no {}", quoted(strange)))),
    }
}

/// Reads the operations of a body.
///
/// # Errors
/// [`Refusal`] for the first that cannot be read or is not known; none is done then.
pub(super) fn parse(kind: Kind, body: &Value) -> Result<Vec<Operation>, Refusal> {
    let body = body.as_object().ok_or_else(|| Refusal::syntax("the body is no object"))?;
    value::schemas(body, PATCH_OP, &[])?;
    only(body, &["schemas", "Operations"])?;
    let listed = field(body, "Operations").and_then(Value::as_array).filter(|listed| !listed.is_empty());
    let listed = listed.ok_or_else(|| Refusal::syntax("`Operations` is missing or empty"))?;
    let most = match kind {
        Kind::User => MAX_USER_OPERATIONS,
        Kind::Group => MAX_OPERATIONS,
    };
    let mut operations = Vec::new();
    for written in listed {
        let written = written.as_object().ok_or_else(|| Refusal::syntax("an operation is an object"))?;
        only(written, &["op", "path", "value"])?;
        let op = field(written, "op").and_then(Value::as_str).unwrap_or_default();
        let verb = [("add", Verb::Add), ("replace", Verb::Replace), ("remove", Verb::Remove)]
            .into_iter()
            .find(|(word, _)| op.eq_ignore_ascii_case(word));
        let (_, verb) = verb.ok_or_else(|| Refusal::syntax(format!("there is no operation {}", quoted(op))))?;
        let value = field(written, "value");
        let (value, is_null) = (value.filter(|value| !value.is_null()), value.is_some_and(Value::is_null));
        match (field(written, "path").filter(|path| !path.is_null()), verb) {
            (Some(Value::String(path)), _) if !path.is_empty() => {
                let at = target(kind, path)?;
                // To leave it out means all of them; to write `null` mostly that somebody was not found.
                if verb == Verb::Remove && is_null && at.is("members") {
                    return Err(Refusal::value("`value` is null: which members are removed has to be said"));
                }
                operations.push(Operation { verb, at, value: value.cloned() });
            }
            (None, Verb::Add | Verb::Replace) => spread(kind, verb, value, &mut operations)?,
            (None, Verb::Remove) => {
                return Err(Refusal::bad(ScimType::NoTarget, "`remove` needs a path"));
            }
            (Some(_), _) => return Err(Refusal::path("a path is a text")),
        }
        if operations.len() > most {
            return Err(Refusal::too_large(format!("more than {most} operations in one request")));
        }
    }
    for operation in &operations {
        let forbidden = match &operation.at {
            Target::Path(Path::Attribute { attribute, .. }) if attribute.keep != Keep::Kept => Some(attribute.name),
            Target::Path(Path::Attribute { .. } | Path::Enterprise) | Target::Id => None,
        };
        if let Some(name) = forbidden {
            return Err(Refusal::bad(ScimType::Mutability, format!("{name} cannot be changed here")));
        }
        if operation.verb != Verb::Remove && operation.value.is_none() && !operation.clears() {
            return Err(Refusal::value("`value` is missing"));
        }
    }
    Ok(operations)
}

fn target(kind: Kind, path: &str) -> Result<Target, Refusal> {
    if path.eq_ignore_ascii_case("id") { Ok(Target::Id) } else { path::parse(kind, path).map(Target::Path) }
}

/// Makes an operation of each key of an object that came without a path.
fn spread(kind: Kind, verb: Verb, value: Option<&Value>, into: &mut Vec<Operation>) -> Result<(), Refusal> {
    let object = value.and_then(Value::as_object);
    let object = object.ok_or_else(|| Refusal::value("without a path, `value` is an object of attributes"))?;
    for (key, value) in object {
        if key.eq_ignore_ascii_case("schemas") || key.eq_ignore_ascii_case("meta") {
            continue;
        }
        let at = target(kind, key)?;
        into.push(Operation { verb, at, value: (!value.is_null()).then(|| value.clone()) });
    }
    Ok(())
}

impl Target {
    /// Tells whether it is the whole of an attribute with this name.
    fn is(&self, name: &str) -> bool {
        match self {
            Self::Path(Path::Attribute { attribute, filter, .. }) => filter.is_empty() && attribute.name == name,
            Self::Path(Path::Enterprise) | Self::Id => false,
        }
    }
}

impl Operation {
    /// Tells whether a missing value takes the attribute away (`null`, RFC 7643 §2.5) rather than being a mistake. Never for what
    /// decides who is who and who is in.
    fn clears(&self) -> bool {
        match &self.at {
            Target::Path(Path::Attribute { attribute, .. }) => {
                self.verb == Verb::Replace && !matches!(attribute.name, "userName" | "active" | "members")
            }
            Target::Path(Path::Enterprise) | Target::Id => false,
        }
    }
}

/// Tells whether a value is one of those that a filter names.
fn holds(attribute: &'static Attribute, filter: &[Comparison], entry: &Value) -> bool {
    filter.iter().all(|comparison| {
        let Some(part) = schema::find(attribute.parts, &comparison.attribute) else { return false };
        match (part.kind, &comparison.value, &entry[part.name]) {
            (Type::Truth, wanted, there) => value::truth(wanted).is_some_and(|wanted| *there == wanted),
            (Type::Text, Value::String(wanted), Value::String(there)) => wanted.eq_ignore_ascii_case(there),
            (Type::Text | Type::Complex, ..) => false,
        }
    })
}

/// Does the operations on a user's attributes, in order: all of them, or none.
///
/// # Errors
/// [`Refusal`] for the first that cannot be done.
pub(super) fn apply_user(operations: &[Operation], id: ScimId, whole: &mut Map<String, Value>) -> Result<(), Refusal> {
    let mut next = whole.clone();
    for operation in operations {
        match &operation.at {
            Target::Id => is_own(id, operation.value.as_ref().and_then(Value::as_str).unwrap_or_default())?,
            Target::Path(Path::Enterprise) => {
                let given = value::enterprise(operation.value.as_ref().unwrap_or_default())?;
                match operation.verb {
                    Verb::Remove => drop(next.remove(ENTERPRISE)),
                    Verb::Add | Verb::Replace => given.into_iter().for_each(|(key, value)| {
                        extension(&mut next).insert(key, value);
                    }),
                }
            }
            Target::Path(Path::Attribute { within, attribute, filter, part }) => {
                let among = match within {
                    Within::Core => &mut next,
                    Within::Enterprise => extension(&mut next),
                };
                change(among, operation.verb, attribute, filter, *part, operation.value.as_ref())?;
            }
        }
        if next.get(ENTERPRISE).and_then(Value::as_object).is_some_and(Map::is_empty) {
            next.remove(ENTERPRISE);
        }
        value::check_size(&next)?; // before the next one goes through it
    }
    *whole = next;
    Ok(())
}

/// Checks the identifier that a client repeats.
pub(super) fn is_own(id: ScimId, given: &str) -> Result<(), Refusal> {
    match given.eq_ignore_ascii_case(&id.to_string()) {
        true => Ok(()),
        false => Err(Refusal::bad(ScimType::Mutability, "`id` is given once and never changed")),
    }
}

fn extension(whole: &mut Map<String, Value>) -> &mut Map<String, Value> {
    let entry = whole.entry(ENTERPRISE).or_insert_with(|| Value::Object(Map::new()));
    entry.as_object_mut().expect("an extension is kept as an object")
}

fn change(
    among: &mut Map<String, Value>,
    verb: Verb,
    attribute: &'static Attribute,
    filter: &[Comparison],
    part: Option<&'static Attribute>,
    given: Option<&Value>,
) -> Result<(), Refusal> {
    let name = attribute.name;
    match (attribute.plurality, part) {
        (Plurality::One, Some(part)) => {
            let mut object = among.remove(name).and_then(as_object).unwrap_or_default();
            put(&mut object, part, verb, given)?;
            put_back(among, name, object);
        }
        (Plurality::One, None) => match (verb, given) {
            (Verb::Remove, _) | (_, None) => {
                if matches!(name, "userName" | "active") {
                    return Err(Refusal::bad(ScimType::Mutability, format!("{name} cannot be taken away")));
                }
                among.remove(name);
            }
            (Verb::Add | Verb::Replace, Some(given)) => match value::canonical(attribute, given)? {
                // What is not named of a complex attribute stays (RFC 7644 §3.5.2.3).
                Some(Value::Object(new)) => {
                    let mut object = among.remove(name).and_then(as_object).unwrap_or_default();
                    object.extend(new);
                    put_back(among, name, object);
                }
                Some(new) => drop(among.insert(name.to_owned(), new)),
                None => drop(among.remove(name)),
            },
        },
        (Plurality::Many, _) => {
            let mut values = among.remove(name).and_then(as_array).unwrap_or_default();
            change_many(&mut values, verb, attribute, filter, part, given)?;
            value::one_primary(&mut values);
            if let Some(values) = value::canonical(attribute, &Value::Array(values))? {
                among.insert(name.to_owned(), values);
            }
        }
    }
    Ok(())
}

fn change_many(
    values: &mut Vec<Value>,
    verb: Verb,
    attribute: &'static Attribute,
    filter: &[Comparison],
    part: Option<&'static Attribute>,
    given: Option<&Value>,
) -> Result<(), Refusal> {
    if filter.is_empty() {
        if part.is_some() {
            let detail = format!("say which of several {}: {}[type eq \"work\"]", attribute.name, attribute.name);
            return Err(Refusal::path(detail));
        }
        let new = given.map(|given| value::canonical(attribute, given)).transpose()?.flatten().and_then(as_array);
        let new = new.unwrap_or_default();
        match verb {
            Verb::Add => values.extend(new.into_iter().filter(|value| !values.contains(value)).collect::<Vec<_>>()),
            Verb::Replace => *values = new,
            Verb::Remove if given.is_none() => values.clear(),
            // The value says which: the habit of providers for members, taken for everything. Addresses have no `value`.
            Verb::Remove => values.retain(|value| {
                !new.iter().any(|gone| match gone.get("value") {
                    Some(named) => value.get("value") == Some(named),
                    None => gone == value,
                })
            }),
        }
        return Ok(());
    }
    let chosen: Vec<usize> = (0..values.len()).filter(|at| holds(attribute, filter, &values[*at])).collect();
    if verb == Verb::Remove && part.is_none() {
        values.retain(|value| !holds(attribute, filter, value));
        return Ok(());
    }
    if verb != Verb::Remove && chosen.is_empty() {
        let mut made = Map::new();
        for comparison in filter {
            if let Some(part) = schema::find(attribute.parts, &comparison.attribute) {
                made.extend(value::canonical(part, &comparison.value)?.map(|value| (part.name.to_owned(), value)));
            }
        }
        change_one(&mut made, verb, attribute, part, given)?;
        values.push(Value::Object(made));
        return Ok(());
    }
    for at in chosen {
        if let Some(object) = values[at].as_object_mut() {
            change_one(object, verb, attribute, part, given)?;
        }
    }
    values.retain(|value| value.as_object().is_some_and(|object| !object.is_empty()));
    Ok(())
}

fn change_one(
    object: &mut Map<String, Value>,
    verb: Verb,
    attribute: &'static Attribute,
    part: Option<&'static Attribute>,
    given: Option<&Value>,
) -> Result<(), Refusal> {
    match (part, given.and_then(Value::as_object)) {
        (Some(part), _) => put(object, part, verb, given),
        (None, Some(given)) => {
            object.extend(value::parts(attribute, given)?);
            Ok(())
        }
        (None, None) => Err(Refusal::value(format!("{} are objects", attribute.name))),
    }
}

fn put(
    object: &mut Map<String, Value>,
    part: &'static Attribute,
    verb: Verb,
    given: Option<&Value>,
) -> Result<(), Refusal> {
    let given = match verb {
        Verb::Remove => None,
        Verb::Add | Verb::Replace => given.map(|given| value::canonical(part, given)).transpose()?.flatten(),
    };
    match given {
        Some(given) => drop(object.insert(part.name.to_owned(), given)),
        None => drop(object.remove(part.name)),
    }
    Ok(())
}

fn put_back(among: &mut Map<String, Value>, name: &str, object: Map<String, Value>) {
    if !object.is_empty() {
        among.insert(name.to_owned(), Value::Object(object));
    }
}

fn as_object(value: Value) -> Option<Map<String, Value>> {
    if let Value::Object(object) = value { Some(object) } else { None }
}

fn as_array(value: Value) -> Option<Vec<Value>> {
    if let Value::Array(array) = value { Some(array) } else { None }
}

/// Reads members: an array of objects with `value`, or one object.
///
/// # Errors
/// `invalidValue` for one that is no person of SCIM's by its form; 413 for too many.
pub(super) fn members(given: Option<&Value>) -> Result<Vec<ScimId>, Refusal> {
    let one;
    let listed = match given {
        None => return Ok(vec![]),
        Some(Value::Array(listed)) => listed.as_slice(),
        Some(other) => {
            one = [other.clone()];
            &one[..]
        }
    };
    if listed.len() > MAX_MEMBERS {
        return Err(Refusal::too_large(format!("a group has at most {MAX_MEMBERS} members")));
    }
    let attribute = schema::find(schema::GROUP_ATTRIBUTES, "members").expect("groups have members");
    let member = |value: &Value| {
        let object = value.as_object().ok_or_else(|| Refusal::value("a member is an object with `value`"))?;
        let known = value::parts(attribute, object)?;
        match known.get("type").and_then(Value::as_str) {
            None => {}
            Some(kind) if kind.eq_ignore_ascii_case("User") => {}
            Some(_) => return Err(Refusal::value("members are users: groups in groups are not served")),
        }
        let id = known.get("value").and_then(Value::as_str).unwrap_or_default();
        id.parse().map_err(|_| no_such_member(id))
    };
    listed.iter().map(member).collect()
}

/// The refusal of a member who is not there.
pub(super) fn no_such_member(id: &str) -> Refusal {
    Refusal::value(format!("there is no user {}: members are provisioned before they are put into a group", quoted(id)))
}

/// Reads operations as those of a group.
///
/// # Errors
/// [`Refusal`] for what a group cannot have.
pub(super) fn of_group(operations: &[Operation]) -> Result<Vec<GroupOperation>, Refusal> {
    let operations = operations.iter().map(group_operation).collect::<Result<Vec<_>, _>>()?;
    let named: usize = operations.iter().map(GroupOperation::members).sum();
    match named > MAX_MEMBERS {
        false => Ok(operations),
        true => Err(Refusal::too_large(format!("more than {MAX_MEMBERS} members in one request"))),
    }
}

impl GroupOperation {
    /// Counts the members that it names.
    fn members(&self) -> usize {
        match self {
            Self::Add(members) | Self::Remove(members) | Self::Members(members) => members.len(),
            Self::Is(_) | Self::Name(_) | Self::ExternalId(_) => 0,
        }
    }
}

fn group_operation(operation: &Operation) -> Result<GroupOperation, Refusal> {
    let given = operation.value.as_ref();
    let (attribute, filter, part) = match &operation.at {
        Target::Id => {
            return Ok(GroupOperation::Is(given.and_then(Value::as_str).unwrap_or_default().to_owned()));
        }
        Target::Path(Path::Enterprise) => return Err(Refusal::path("groups have no extension")),
        Target::Path(Path::Attribute { attribute, filter, part, .. }) => (attribute.name, filter, part),
    };
    let nothing = Value::Null;
    match (attribute, operation.verb) {
        ("displayName", Verb::Add | Verb::Replace) => {
            value::name(attribute, given.unwrap_or(&nothing)).map(GroupOperation::Name)
        }
        ("externalId", Verb::Add | Verb::Replace) => {
            value::external_id(given.unwrap_or(&nothing)).map(GroupOperation::ExternalId)
        }
        ("externalId", Verb::Remove) => Ok(GroupOperation::ExternalId(None)),
        ("members", verb) => {
            if part.is_some() {
                return Err(Refusal::path("a member is taken or left as a whole"));
            }
            match (filter.as_slice(), verb) {
                ([], Verb::Add) => members(given).map(GroupOperation::Add),
                ([], Verb::Replace) => members(given).map(GroupOperation::Members),
                ([], Verb::Remove) if given.is_none() => Ok(GroupOperation::Members(vec![])),
                ([], Verb::Remove) => members(given).map(GroupOperation::Remove),
                ([Comparison { attribute, value: Value::String(id) }], Verb::Remove)
                    if attribute.eq_ignore_ascii_case("value") =>
                {
                    // Who is not there is not a member; what is no identifier of ours was meant to name somebody.
                    let id = id.parse().map_err(|_| no_such_member(id))?;
                    Ok(GroupOperation::Remove(vec![id]))
                }
                (_, Verb::Add | Verb::Replace | Verb::Remove) => {
                    Err(Refusal::filter("members are named as members[value eq \"ID\"], to remove one"))
                }
            }
        }
        _ => Err(Refusal::bad(ScimType::Mutability, format!("{attribute} cannot be taken away"))),
    }
}
