//! Refusals in SCIM's own words (RFC 7644 §3.12).

use serde_json::{Value, json};

/// The kind of a refusal with status 400 or 409 (RFC 7644 §3.12, table 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScimType {
    /// A filter that cannot be read, or of an attribute or operator that is not served.
    InvalidFilter,
    /// The name is taken.
    Uniqueness,
    /// The attribute is not the client's to change.
    Mutability,
    /// The body is not of the schema.
    InvalidSyntax,
    /// A path that cannot be read, or of an attribute that is not known.
    InvalidPath,
    /// There is nothing at the path.
    NoTarget,
    /// A value that is missing or of the wrong type.
    InvalidValue,
}

impl ScimType {
    /// Returns the word of the specification.
    pub const fn word(self) -> &'static str {
        match self {
            Self::InvalidFilter => "invalidFilter",
            Self::Uniqueness => "uniqueness",
            Self::Mutability => "mutability",
            Self::InvalidSyntax => "invalidSyntax",
            Self::InvalidPath => "invalidPath",
            Self::NoTarget => "noTarget",
            Self::InvalidValue => "invalidValue",
        }
    }
}

/// Why a request was not done. Nothing changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// The status of the answer.
    pub status: u16,
    /// Which kind, where the specification has one.
    pub scim_type: Option<ScimType>,
    /// What happened and what to do, for the provider's administrator.
    pub detail: String,
    /// The methods that there are, with status 405.
    pub allow: Option<&'static str>,
}

/// The longest piece of a client's own words in a refusal, characters.
const MAX_QUOTED: usize = 80;

/// Cuts and cleans what a client wrote, to be shown back to it and in logs.
pub(super) fn quoted(text: &str) -> String {
    let kept: String = text.chars().filter(|c| !c.is_control()).take(MAX_QUOTED).collect();
    format!("`{kept}`")
}

impl Refusal {
    fn of(status: u16, scim_type: Option<ScimType>, detail: impl Into<String>) -> Self {
        Self { status, scim_type, detail: detail.into(), allow: None }
    }

    pub(super) fn bad(scim_type: ScimType, detail: impl Into<String>) -> Self {
        Self::of(400, Some(scim_type), detail)
    }

    pub(super) fn syntax(detail: impl Into<String>) -> Self {
        Self::bad(ScimType::InvalidSyntax, detail)
    }

    pub(super) fn value(detail: impl Into<String>) -> Self {
        Self::bad(ScimType::InvalidValue, detail)
    }

    pub(super) fn path(detail: impl Into<String>) -> Self {
        Self::bad(ScimType::InvalidPath, detail)
    }

    pub(super) fn filter(detail: impl Into<String>) -> Self {
        Self::bad(ScimType::InvalidFilter, detail)
    }

    pub(super) fn taken(detail: impl Into<String>) -> Self {
        Self::of(409, Some(ScimType::Uniqueness), detail)
    }

    /// There is no such resource, or none of this client's provider.
    pub fn not_found(what: &str) -> Self {
        Self::of(404, None, format!("there is no {what}"))
    }

    /// No authority: one answer for every reason.
    pub fn unauthorized() -> Self {
        Self::of(401, None, "no bearer token that may be used here and now")
    }

    pub(super) fn changed() -> Self {
        Self::of(412, None, "the resource has changed since: read it again")
    }

    /// The body, or a group, is too large.
    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::of(413, None, detail)
    }

    /// Too many requests at a time.
    pub fn too_many() -> Self {
        Self::of(429, None, "too many requests: try again in a moment")
    }

    /// The method or the feature is not served.
    pub fn not_served(status: u16, detail: impl Into<String>) -> Self {
        Self::of(status, None, detail)
    }

    /// The resource is there, the method is not.
    pub(super) fn not_by_this_method(allow: &'static str) -> Self {
        Self { allow: Some(allow), ..Self::of(405, None, "not by this method") }
    }

    /// There is no room for more.
    pub fn full(detail: impl Into<String>) -> Self {
        Self::of(507, None, detail)
    }

    /// The controller cannot do it now.
    pub fn unavailable() -> Self {
        Self::of(503, None, "the controller cannot do this now: try again in a moment")
    }

    /// Returns a constant word for logs and counts.
    pub const fn word(&self) -> &'static str {
        match (self.scim_type, self.status) {
            (Some(kind), _) => kind.word(),
            (None, 401) => "unauthorized",
            (None, 404) => "not found",
            (None, 412) => "changed meanwhile",
            (None, 413) => "too large",
            (None, 429) => "too many",
            (None, 507) => "full",
            (None, _) => "not served",
        }
    }

    /// Returns the body of the answer.
    pub fn body(&self) -> Value {
        let mut body = json!({
            "schemas": ["urn:ietf:params:scim:api:messages:2.0:Error"],
            "status": self.status.to_string(),
            "detail": self.detail,
        });
        if let Some(kind) = self.scim_type {
            body["scimType"] = kind.word().into();
        }
        body
    }
}
