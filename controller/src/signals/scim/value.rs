//! From what a client writes to the form in which it is kept: names as the schema writes them, types checked, nothing unknown.

use serde_json::{Map, Value};

use super::{
    refusal::{Refusal, quoted},
    schema::{self, Attribute, ENTERPRISE, ENTERPRISE_ATTRIBUTES, Keep, Kind, Plurality, Type, USER_ATTRIBUTES},
};

/// The longest text, bytes: a certificate fits.
const MAX_TEXT: usize = 8 << 10;
/// The most values of one attribute.
const MAX_VALUES: usize = 64;
/// The longest name of a person or a group, bytes.
const MAX_NAME: usize = 255;
/// The most that is kept of one user, bytes of JSON.
pub(super) const MAX_USER: usize = 16 << 10;

/// Reads a truth value; providers also write it as a text.
pub(super) fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(truth) => Some(*truth),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        Value::String(_) | Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Reads a name by which people or groups are found: one line, neither empty nor long.
pub(super) fn name(attribute: &str, value: &Value) -> Result<String, Refusal> {
    let named = value.as_str().filter(|text| !text.trim().is_empty() && text.len() <= MAX_NAME);
    let named = named.filter(|text| !text.chars().any(char::is_control) && text.trim() == *text);
    let why = || {
        Refusal::value(format!("{attribute} is a text of 1 to {MAX_NAME} bytes in one line, without spaces around it"))
    };
    named.map(str::to_owned).ok_or_else(why)
}

/// Reads an `externalId`; an empty one is none.
pub(super) fn external_id(value: &Value) -> Result<Option<String>, Refusal> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) if text.is_empty() => Ok(None),
        Value::String(_) | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            name("externalId", value).map(Some)
        }
    }
}

/// Brings a value of an attribute into its canonical form; `None` if it says that there is none (RFC 7643 §2.5).
pub(super) fn canonical(attribute: &'static Attribute, value: &Value) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    match attribute.plurality {
        Plurality::One => single(attribute, value),
        Plurality::Many => {
            let one = [value.clone()];
            let values = value.as_array().map_or(&one[..], Vec::as_slice);
            if values.len() > MAX_VALUES {
                return Err(Refusal::value(format!("more than {MAX_VALUES} values of {}", attribute.name)));
            }
            let mut kept = Vec::with_capacity(values.len());
            for value in values {
                kept.extend(single(attribute, value)?.filter(|value| !kept.contains(value)));
            }
            one_primary(&mut kept);
            Ok((!kept.is_empty()).then_some(Value::Array(kept)))
        }
    }
}

fn single(attribute: &'static Attribute, value: &Value) -> Result<Option<Value>, Refusal> {
    let wrong = |expected: &str| Refusal::value(format!("{} is {expected}", attribute.name));
    match (attribute.kind, value) {
        (_, Value::Null) => Ok(None),
        (Type::Text, Value::String(text)) if text.len() <= MAX_TEXT => Ok(Some(value.clone())),
        (Type::Text, _) => Err(wrong(&format!("a text of at most {MAX_TEXT} bytes"))),
        (Type::Truth, value) => truth(value).map(|truth| Some(truth.into())).ok_or_else(|| wrong("true or false")),
        (Type::Complex, Value::Object(object)) => {
            let kept = parts(attribute, object)?;
            Ok((!kept.is_empty()).then_some(Value::Object(kept)))
        }
        // Providers write the manager, and values of other attributes, without their object around it.
        (Type::Complex, Value::String(_)) => match schema::find(attribute.parts, "value") {
            Some(part) => {
                let kept = single(part, value)?.map(|value| ("value".to_owned(), value));
                Ok(kept.map(|kept| Value::Object(Map::from_iter([kept]))))
            }
            None => Err(wrong("an object")),
        },
        (Type::Complex, Value::Array(values)) if attribute.plurality == Plurality::One && values.len() == 1 => {
            match &values[0] {
                Value::Object(_) => single(attribute, &values[0]),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                    Err(wrong("an object"))
                }
            }
        }
        (Type::Complex, Value::Bool(_) | Value::Number(_) | Value::Array(_)) => Err(wrong("an object")),
    }
}

/// Reads the parts of a complex attribute.
pub(super) fn parts(attribute: &'static Attribute, object: &Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
    let mut kept = Map::new();
    for (key, value) in object {
        let Some(part) = schema::find(attribute.parts, key) else {
            return Err(Refusal::syntax(format!("{} have no {}", attribute.name, quoted(key))));
        };
        put_once(&mut kept, part.name, canonical(part, value)?)?;
    }
    Ok(kept)
}

/// At most one value is the primary one: the last that says so.
pub(super) fn one_primary(values: &mut [Value]) {
    let last = values.iter().rposition(|value| value["primary"] == true);
    for (at, value) in values.iter_mut().enumerate() {
        if Some(at) != last && value["primary"] == true {
            value["primary"] = false.into();
        }
    }
}

fn put_once(kept: &mut Map<String, Value>, name: &'static str, value: Option<Value>) -> Result<(), Refusal> {
    let Some(value) = value else { return Ok(()) };
    match kept.insert(name.to_owned(), value) {
        None => Ok(()),
        // Names differ by more than their case: two of the same would leave it to chance which counts.
        Some(_) => Err(Refusal::syntax(format!("{name} is written twice"))),
    }
}

/// Checks what a body says of its schemas.
pub(super) fn schemas(body: &Map<String, Value>, needed: &str, also: &[&str]) -> Result<(), Refusal> {
    let listed =
        body.iter().find(|(key, _)| key.eq_ignore_ascii_case("schemas")).and_then(|(_, value)| value.as_array());
    let listed = listed.ok_or_else(|| Refusal::syntax("`schemas` is missing"))?;
    let is = |value: &Value, schema: &str| value.as_str().is_some_and(|text| text.eq_ignore_ascii_case(schema));
    if let Some(strange) =
        listed.iter().find(|value| !is(value, needed) && !also.iter().any(|schema| is(value, schema)))
    {
        let detail = format!("the schema {} is not served", quoted(strange.as_str().unwrap_or_default()));
        return Err(Refusal::syntax(detail));
    }
    match listed.iter().any(|value| is(value, needed)) {
        true => Ok(()),
        false => Err(Refusal::syntax(format!("`schemas` does not name {needed}"))),
    }
}

/// Reads a whole user, as POST and PUT bring it: every attribute in its canonical form, `userName`, `externalId` and `active`
/// among them. A password is forgotten here.
pub(super) fn user(body: &Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
    schemas(body, Kind::User.schema(), &[ENTERPRISE])?;
    let mut kept = Map::new();
    for (key, value) in body {
        if is_common(key) {
            continue;
        }
        if key.eq_ignore_ascii_case(ENTERPRISE) {
            let extension = enterprise(value)?;
            put_once(&mut kept, ENTERPRISE, (!extension.is_empty()).then_some(Value::Object(extension)))?;
            continue;
        }
        let Some(attribute) = schema::find(USER_ATTRIBUTES, key) else {
            let help = "take it out of the attribute mapping of the provider";
            return Err(Refusal::syntax(format!("there is no attribute {} of a User: {help}", quoted(key))));
        };
        match attribute.keep {
            Keep::Kept => put_once(&mut kept, attribute.name, canonical(attribute, value)?)?,
            Keep::ReadOnly | Keep::Secret => {}
        }
    }
    Ok(kept)
}

/// Tells whether an attribute is the service's own, which clients send back as they read it (RFC 7643 §3.1).
pub(super) fn is_common(key: &str) -> bool {
    ["schemas", "id", "meta"].iter().any(|common| key.eq_ignore_ascii_case(common))
}

/// Reads an extension.
pub(super) fn enterprise(value: &Value) -> Result<Map<String, Value>, Refusal> {
    let object = match value {
        Value::Object(object) => object,
        Value::Null => return Ok(Map::new()),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            return Err(Refusal::syntax("an extension is an object"));
        }
    };
    let mut kept = Map::new();
    for (key, value) in object {
        let Some(attribute) = schema::find(ENTERPRISE_ATTRIBUTES, key) else {
            return Err(Refusal::syntax(format!("the enterprise extension has no {}", quoted(key))));
        };
        put_once(&mut kept, attribute.name, canonical(attribute, value)?)?;
    }
    Ok(kept)
}

/// Checks that a user is not too large to be kept.
pub(super) fn check_size(whole: &Map<String, Value>) -> Result<(), Refusal> {
    match serde_json::to_vec(whole).is_ok_and(|bytes| bytes.len() <= MAX_USER) {
        true => Ok(()),
        false => Err(Refusal::too_large(format!("a user has at most {MAX_USER} bytes of attributes"))),
    }
}

/// A user's attributes, apart.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct UserParts {
    pub(super) user_name: String,
    pub(super) external_id: Option<String>,
    /// `None` if nothing was said: who is out does not come in by an omission.
    pub(super) active: Option<bool>,
    pub(super) attributes: Map<String, Value>,
}

/// Takes a whole user apart, and checks what has to hold of it.
pub(super) fn settled(mut whole: Map<String, Value>) -> Result<UserParts, Refusal> {
    check_size(&whole)?;
    let user_name = whole.remove("userName").unwrap_or_default();
    let user_name = name("userName", &user_name)?;
    let external_id = external_id(&whole.remove("externalId").unwrap_or_default())?;
    let active = whole.remove("active").as_ref().and_then(Value::as_bool);
    Ok(UserParts { user_name, external_id, active, attributes: whole })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: &Value) -> Result<Value, (u16, &'static str)> {
        let read = user(body.as_object().expect("an object")).and_then(|whole| settled(whole.clone()).map(|_| whole));
        read.map(Value::Object).map_err(|refusal| (refusal.status, refusal.word()))
    }

    #[test]
    fn names_types_and_truths_are_brought_into_one_form() {
        let read = read(&json!({
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User", "URN:ietf:params:scim:schemas:extension:enterprise:2.0:User"],
            "id": "ignored", "meta": {"resourceType": "User"}, "groups": [{"value": "x"}], "password": "hunter2",
            "USERNAME": "alice@corp.example", "externalId": "00u1", "active": "False", "nickName": null,
            "Emails": [{"TYPE": "work", "primary": "True", "value": "a@x"}, {"type": "home", "primary": true, "value": "b@x"}],
            "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User": {"Department": "Sales", "manager": "42"},
        }))
        .expect("taken");
        assert_eq!(
            read,
            json!({
                "userName": "alice@corp.example", "externalId": "00u1", "active": false,
                "emails": [{"type": "work", "primary": false, "value": "a@x"}, {"type": "home", "primary": true, "value": "b@x"}],
                "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User": {"department": "Sales", "manager": {"value": "42"}},
            })
        );
    }

    #[test]
    fn what_is_not_of_the_schema_is_refused_with_its_kind() {
        let with = |key: &str, value: Value| {
            let mut body = json!({"schemas": [schema::USER], "userName": "alice"});
            body[key] = value;
            body
        };
        for (body, expected) in [
            (json!({"userName": "alice"}), (400, "invalidSyntax")),
            (json!({"schemas": [schema::GROUP], "userName": "alice"}), (400, "invalidSyntax")),
            (json!({"schemas": [schema::USER, "urn:corp"], "userName": "alice"}), (400, "invalidSyntax")),
            (json!({"schemas": [schema::USER]}), (400, "invalidValue")),
            (with("userName", json!("")), (400, "invalidValue")),
            (with("userName", json!(" alice")), (400, "invalidValue")),
            (with("userName", json!("ali\nce")), (400, "invalidValue")),
            (with("userName", json!("x".repeat(256))), (400, "invalidValue")),
            (with("username", json!("bob")), (400, "invalidSyntax")),
            (with("active", json!("maybe")), (400, "invalidValue")),
            (with("active", json!(1)), (400, "invalidValue")),
            (with("shoeSize", json!(45)), (400, "invalidSyntax")),
            (with("name", json!("Alice")), (400, "invalidValue")),
            (with("name", json!({"nick": "Al"})), (400, "invalidSyntax")),
            (with("emails", json!([{"value": "a", "shoe": 1}])), (400, "invalidSyntax")),
            (with("emails", json!([7])), (400, "invalidValue")),
            (with("urn:corp:badge", json!({"n": 1})), (400, "invalidSyntax")),
            (with("externalId", json!(7)), (400, "invalidValue")),
            (with("title", json!("x".repeat(MAX_TEXT + 1))), (400, "invalidValue")),
            (
                with("emails", (0..=MAX_VALUES).map(|n| json!({"value": n.to_string()})).collect()),
                (400, "invalidValue"),
            ),
            (
                with("photos", json!([{"value": "x".repeat(MAX_TEXT)}, {"value": "y".repeat(MAX_TEXT)}])),
                (413, "too large"),
            ),
        ] {
            assert_eq!(read(&body), Err(expected), "{body}");
        }
    }
}
