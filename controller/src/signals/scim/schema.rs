//! Which attributes there are (RFC 7643 §4, §7), and what the service says of itself (RFC 7643 §5, §6).
//!
//! The tables drive everything: what a body may hold, what a path may name, and what `/Schemas` answers.

use serde_json::{Value, json};

/// The core schema of users.
pub(super) const USER: &str = "urn:ietf:params:scim:schemas:core:2.0:User";
/// The extension of users that providers fill by default.
pub(super) const ENTERPRISE: &str = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User";
/// The core schema of groups.
pub(super) const GROUP: &str = "urn:ietf:params:scim:schemas:core:2.0:Group";

/// What Entra writes beside the schema of groups; no attribute is of it.
pub(super) const ENTRA_GROUP: &str = "http://schemas.microsoft.com/2006/11/ResourceManagement/ADSCIM/2.0/Group";

/// What a resource is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A person.
    User,
    /// A group of people.
    Group,
}

impl Kind {
    /// Returns the core schema.
    pub(super) const fn schema(self) -> &'static str {
        match self {
            Self::User => USER,
            Self::Group => GROUP,
        }
    }

    /// Returns the name of the resource type.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::User => "User",
            Self::Group => "Group",
        }
    }

    /// Returns the path of its resources.
    pub(super) const fn endpoint(self) -> &'static str {
        match self {
            Self::User => "/Users",
            Self::Group => "/Groups",
        }
    }

    pub(super) const fn attributes(self) -> &'static [Attribute] {
        match self {
            Self::User => USER_ATTRIBUTES,
            Self::Group => GROUP_ATTRIBUTES,
        }
    }
}

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    /// A text, which may have several lines.
    Text,
    /// `true` or `false`, also as a text.
    Truth,
    /// Further attributes.
    Complex,
}

/// How many values there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plurality {
    One,
    Many,
}

/// What becomes of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// It is kept and given back.
    Kept,
    /// It is the service's to say; what a client writes is ignored (RFC 7644 §3.5.1).
    ReadOnly,
    /// It is forgotten at once and never given back.
    Secret,
}

/// One attribute.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Attribute {
    pub(super) name: &'static str,
    pub(super) kind: Type,
    pub(super) plurality: Plurality,
    pub(super) keep: Keep,
    pub(super) parts: &'static [Attribute],
}

const fn text(name: &'static str) -> Attribute {
    Attribute { name, kind: Type::Text, plurality: Plurality::One, keep: Keep::Kept, parts: &[] }
}

const fn truth(name: &'static str) -> Attribute {
    Attribute { kind: Type::Truth, ..text(name) }
}

const fn complex(name: &'static str, parts: &'static [Attribute]) -> Attribute {
    Attribute { kind: Type::Complex, parts, ..text(name) }
}

const fn many(name: &'static str, parts: &'static [Attribute]) -> Attribute {
    Attribute { plurality: Plurality::Many, ..complex(name, parts) }
}

/// RFC 7643 §2.4.
const VALUES: &[Attribute] = &[text("value"), text("display"), text("type"), truth("primary"), text("$ref")];

const NAME: &[Attribute] = &[
    text("formatted"),
    text("familyName"),
    text("givenName"),
    text("middleName"),
    text("honorificPrefix"),
    text("honorificSuffix"),
];

const ADDRESS: &[Attribute] = &[
    text("formatted"),
    text("streetAddress"),
    text("locality"),
    text("region"),
    text("postalCode"),
    text("country"),
    text("type"),
    truth("primary"),
];

/// RFC 7643 §4.1, with `externalId` of §3.1.
pub(super) const USER_ATTRIBUTES: &[Attribute] = &[
    text("userName"),
    text("externalId"),
    truth("active"),
    complex("name", NAME),
    text("displayName"),
    text("nickName"),
    text("profileUrl"),
    text("title"),
    text("userType"),
    text("preferredLanguage"),
    text("locale"),
    text("timezone"),
    many("emails", VALUES),
    many("phoneNumbers", VALUES),
    many("ims", VALUES),
    many("photos", VALUES),
    many("addresses", ADDRESS),
    many("entitlements", VALUES),
    many("roles", VALUES),
    many("x509Certificates", VALUES),
    Attribute { keep: Keep::Secret, ..text("password") },
    Attribute { keep: Keep::ReadOnly, ..many("groups", VALUES) },
];

/// RFC 7643 §4.3.
pub(super) const ENTERPRISE_ATTRIBUTES: &[Attribute] = &[
    text("employeeNumber"),
    text("costCenter"),
    text("organization"),
    text("division"),
    text("department"),
    complex("manager", &[text("value"), text("$ref"), text("displayName")]),
];

/// RFC 7643 §4.2.
pub(super) const GROUP_ATTRIBUTES: &[Attribute] = &[
    text("displayName"),
    text("externalId"),
    many("members", &[text("value"), text("$ref"), text("display"), text("type")]),
];

/// Finds an attribute by its name, whatever its case (RFC 7643 §2.1).
pub(super) fn find(among: &'static [Attribute], name: &str) -> Option<&'static Attribute> {
    among.iter().find(|attribute| attribute.name.eq_ignore_ascii_case(name))
}

/// Describes an attribute of users, of groups, or of another one (`None`).
fn described(of: Option<Kind>, attribute: &Attribute) -> Value {
    let unique = match of {
        Some(Kind::User) => matches!(attribute.name, "userName" | "externalId"),
        Some(Kind::Group) => attribute.name == "displayName",
        None => false,
    };
    let required = match of {
        Some(Kind::User) => attribute.name == "userName",
        Some(Kind::Group) => attribute.name == "displayName",
        None => false,
    };
    let kind = match attribute.kind {
        Type::Text => "string",
        Type::Truth => "boolean",
        Type::Complex => "complex",
    };
    let (mutability, returned) = match attribute.keep {
        Keep::Kept => ("readWrite", "default"),
        Keep::ReadOnly => ("readOnly", "never"),
        Keep::Secret => ("writeOnly", "never"),
    };
    let mut said = json!({
        "name": attribute.name,
        "type": kind,
        "multiValued": attribute.plurality == Plurality::Many,
        "required": required,
        "caseExact": matches!(attribute.name, "externalId"),
        "mutability": mutability,
        "returned": returned,
        "uniqueness": if unique { "server" } else { "none" },
    });
    if !attribute.parts.is_empty() {
        said["subAttributes"] = attribute.parts.iter().map(|part| described(None, part)).collect();
    }
    said
}

const SCHEMA: &str = "urn:ietf:params:scim:schemas:core:2.0:Schema";

/// Lists the schemas: identifier, description.
pub(super) fn schemas() -> Vec<(&'static str, Value)> {
    let schema = |id: &'static str, name: &str, of: Option<Kind>, attributes: &[Attribute]| {
        let attributes: Vec<Value> = attributes.iter().map(|attribute| described(of, attribute)).collect();
        (id, json!({"schemas": [SCHEMA], "id": id, "name": name, "attributes": attributes}))
    };
    vec![
        schema(USER, "User", Some(Kind::User), USER_ATTRIBUTES),
        schema(ENTERPRISE, "EnterpriseUser", None, ENTERPRISE_ATTRIBUTES),
        schema(GROUP, "Group", Some(Kind::Group), GROUP_ATTRIBUTES),
    ]
}

/// Lists the types of resources.
pub(super) fn resource_types() -> Vec<(&'static str, Value)> {
    let kinds = [Kind::User, Kind::Group].into_iter();
    let said = kinds.map(|kind| {
        let mut said = json!({
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:ResourceType"],
            "id": kind.word(),
            "name": kind.word(),
            "endpoint": kind.endpoint(),
            "schema": kind.schema(),
        });
        if kind == Kind::User {
            said["schemaExtensions"] = json!([{"schema": ENTERPRISE, "required": false}]);
        }
        (kind.word(), said)
    });
    said.collect()
}

/// Says what the service can do (RFC 7643 §5).
pub(super) fn service_provider_config(max_results: usize) -> Value {
    json!({
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"],
        "patch": {"supported": true},
        "bulk": {"supported": false, "maxOperations": 0, "maxPayloadSize": 0},
        "filter": {"supported": true, "maxResults": max_results},
        "changePassword": {"supported": false},
        "sort": {"supported": false},
        "etag": {"supported": true},
        "authenticationSchemes": [{
            "type": "oauthbearertoken",
            "name": "OAuth Bearer Token",
            "description": "a token of `postern-controller scim token create`",
            "primary": true,
        }],
    })
}
