//! About whom an event is: subject identifiers (RFC 9493, Shared Signals Framework 1.0 §3).
//!
//! What a transmitter calls somebody is read here and understood later, against the people of *one* provider: an identifier
//! never reaches people of another ([`Identifier::Person`] carries its issuer, and the others have none to carry).

use serde_json::{Map, Value};

/// The longest identifier, bytes.
const MAX_NAME: usize = 320;
/// The most identifiers in one `aliases`, and the most members of a complex subject.
const MAX_ALIASES: usize = 8;
const MAX_MEMBERS: usize = 16;

/// One identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identifier {
    /// `iss_sub`: the only form that surely names one person.
    Person {
        /// The provider.
        issuer: String,
        /// Its name for the person.
        sub: String,
    },
    /// `opaque`: what only the transmitter understands: a person, a session, a device or a stream, by where it stands.
    Opaque(String),
    /// `email` or `account` (`acct:` without its scheme): a name that may have been somebody else's.
    Name(String),
    /// `aliases`: several of the above for the same one.
    Aliases(Vec<Self>),
    /// Of a form that names nobody here: a telephone number, a token, an assertion.
    Elsewhere,
}

/// The subject of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// One identifier.
    Simple(Identifier),
    /// The meeting of several: each member that is there narrows it.
    Complex(Box<Members>),
}

/// The members of a complex subject.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// The person.
    pub user: Option<Identifier>,
    /// The session at the provider.
    pub session: Option<Identifier>,
    /// The device.
    pub device: Option<Identifier>,
    /// Whether the tenant is named. A stream speaks of one provider's people, whichever tenant that is.
    pub tenant: Option<Identifier>,
    /// Names of members that are not understood, cut short.
    pub others: Vec<String>,
}

impl Identifier {
    /// Reads an identifier.
    ///
    /// # Errors
    /// Why it cannot be one, as a constant text.
    pub fn read(value: &Value) -> Result<Self, &'static str> {
        Self::read_one(value, true)
    }

    fn read_one(value: &Value, may_nest: bool) -> Result<Self, &'static str> {
        let members = value.as_object().ok_or("a subject is no object")?;
        let text = |name: &str| match members.get(name) {
            Some(Value::String(text))
                if !text.is_empty() && text.len() <= MAX_NAME && !text.chars().any(char::is_control) =>
            {
                Ok(text.clone())
            }
            Some(_) | None => Err("a subject names somebody in a way that cannot be"),
        };
        match text("format")?.as_str() {
            "iss_sub" => Ok(Self::Person { issuer: text("iss")?, sub: text("sub")? }),
            "opaque" => Ok(Self::Opaque(text("id")?)),
            "email" => Ok(Self::Name(text("email")?)),
            "account" => {
                let uri = text("uri")?;
                let name = uri.strip_prefix("acct:").filter(|name| !name.is_empty());
                Ok(Self::Name(name.ok_or("an account without `acct:`")?.to_owned()))
            }
            "aliases" if may_nest => {
                let all = members.get("identifiers").and_then(Value::as_array).ok_or("aliases without identifiers")?;
                if all.is_empty() || all.len() > MAX_ALIASES {
                    return Err("no aliases, or too many");
                }
                Ok(Self::Aliases(all.iter().map(|one| Self::read_one(one, false)).collect::<Result<_, _>>()?))
            }
            "aliases" => Err("aliases within aliases"), // RFC 9493 §3.2.8
            "complex" => Err("a complex subject within another"),
            _registered_or_not => Ok(Self::Elsewhere),
        }
    }

    /// Lists the identifiers that are no aliases.
    pub fn each(&self) -> &[Self] {
        match self {
            Self::Aliases(all) => all,
            Self::Person { .. } | Self::Opaque(_) | Self::Name(_) | Self::Elsewhere => std::slice::from_ref(self),
        }
    }

    /// Lists opaque texts.
    pub fn opaque(&self) -> impl Iterator<Item = &str> {
        self.each().iter().filter_map(|one| match one {
            Self::Opaque(id) => Some(id.as_str()),
            Self::Person { .. } | Self::Name(_) | Self::Aliases(_) | Self::Elsewhere => None,
        })
    }

    /// Lists what may name a machine or a session: opaque texts, and what one of `issuers` calls it.
    pub fn handles<'a>(&'a self, issuers: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
        self.each().iter().filter_map(|one| match one {
            Self::Opaque(id) => Some(id.as_str()),
            Self::Person { issuer, sub } => issuers.contains(&issuer.as_str()).then_some(sub.as_str()),
            Self::Name(_) | Self::Aliases(_) | Self::Elsewhere => None,
        })
    }
}

impl Subject {
    /// Reads `sub_id`.
    ///
    /// # Errors
    /// Why it cannot be one, as a constant text.
    pub fn read(value: &Value) -> Result<Self, &'static str> {
        let members = value.as_object().ok_or("a subject is no object")?;
        match members.get("format").and_then(Value::as_str) {
            Some("complex") => Self::read_complex(members),
            Some(_) | None => Identifier::read(value).map(Self::Simple),
        }
    }

    fn read_complex(members: &Map<String, Value>) -> Result<Self, &'static str> {
        if members.len() > MAX_MEMBERS {
            return Err("a subject of too many members");
        }
        let mut complex = Members::default();
        for (name, value) in members {
            let place = match name.as_str() {
                "format" => continue,
                "user" => &mut complex.user,
                "session" => &mut complex.session,
                "device" => &mut complex.device,
                "tenant" => &mut complex.tenant,
                other => {
                    complex.others.push(other.chars().filter(|c| !c.is_control()).take(40).collect());
                    continue;
                }
            };
            *place = Some(Identifier::read(value)?);
        }
        Ok(Self::Complex(Box::new(complex)))
    }

    /// Returns the person who is named: a simple subject is one unless the event says otherwise.
    pub fn user(&self) -> Option<&Identifier> {
        match self {
            Self::Simple(one) => Some(one),
            Self::Complex(members) => members.user.as_ref(),
        }
    }

    /// Returns the device that is named beside others.
    pub fn device(&self) -> Option<&Identifier> {
        match self {
            Self::Simple(_) => None,
            Self::Complex(members) => members.device.as_ref(),
        }
    }

    /// Returns the session that is named beside others.
    pub fn session(&self) -> Option<&Identifier> {
        match self {
            Self::Simple(_) => None,
            Self::Complex(members) => members.session.as_ref(),
        }
    }

    /// Tells whether a member that the transmitter calls critical is not understood: such an event is discarded (SSF 1.0 §3.6).
    pub fn lacks(&self, critical: &std::collections::BTreeSet<String>) -> bool {
        match self {
            Self::Simple(_) => false,
            Self::Complex(members) => members.others.iter().any(|name| critical.contains(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_form_that_names_somebody_here_is_read() {
        let person = || Identifier::Person { issuer: "https://idp".into(), sub: "7".into() };
        let name = || Identifier::Name("alice@corp.example".into());
        for (value, expected) in [
            (json!({"format": "iss_sub", "iss": "https://idp", "sub": "7"}), person()),
            (json!({"format": "opaque", "id": "x|7"}), Identifier::Opaque("x|7".into())),
            (json!({"format": "email", "email": "alice@corp.example"}), name()),
            (json!({"format": "account", "uri": "acct:alice@corp.example"}), name()),
            (json!({"format": "phone_number", "phone_number": "+12065550100"}), Identifier::Elsewhere),
            (json!({"format": "jwt_id", "iss": "https://idp", "jti": "9"}), Identifier::Elsewhere),
            (
                json!({"format": "aliases", "identifiers": [{"format": "email", "email": "alice@corp.example"},
                    {"format": "iss_sub", "iss": "https://idp", "sub": "7"}]}),
                Identifier::Aliases(vec![name(), person()]),
            ),
        ] {
            assert_eq!(Identifier::read(&value), Ok(expected), "{value}");
        }
    }

    #[test]
    fn what_cannot_be_a_subject_is_refused() {
        let alias = json!({"format": "email", "email": "a"});
        let nested = json!({"format": "aliases", "identifiers": [alias]});
        for value in [
            json!(null),
            json!("alice"),
            json!({}),
            json!({"format": 7}),
            json!({"format": "iss_sub", "iss": "https://idp"}),
            json!({"format": "iss_sub", "iss": "https://idp", "sub": ""}),
            json!({"format": "email", "email": ["a"]}),
            json!({"format": "email", "email": "a\u{1b}[2J"}),
            json!({"format": "opaque", "id": "x".repeat(MAX_NAME + 1)}),
            json!({"format": "account", "uri": "alice@corp.example"}),
            json!({"format": "aliases", "identifiers": []}),
            json!({"format": "aliases", "identifiers": vec![alias.clone(); MAX_ALIASES + 1]}),
            json!({"format": "aliases", "identifiers": [nested]}),
            json!({"format": "complex", "user": {"format": "complex"}}),
        ] {
            assert!(Subject::read(&value).is_err(), "{value}");
        }
        let many: Map<String, Value> = (0..=MAX_MEMBERS).map(|n| (format!("m{n}"), json!({}))).collect();
        assert!(Subject::read_complex(&many).is_err());
    }

    #[test]
    fn a_complex_subject_keeps_its_members_apart() {
        let value = json!({"format": "complex", "user": {"format": "opaque", "id": "7"},
            "session": {"format": "opaque", "id": "s"}, "device": {"format": "opaque", "id": "d"},
            "tenant": {"format": "opaque", "id": "t"}, "org_unit": {"format": "opaque", "id": "o"}});
        let subject = Subject::read(&value).expect("a subject");
        assert_eq!(subject.user(), Some(&Identifier::Opaque("7".into())));
        assert_eq!(subject.session().map(|one| one.opaque().collect::<Vec<_>>()), Some(vec!["s"]));
        assert!(subject.lacks(&["org_unit".to_owned()].into()) && !subject.lacks(&["tenant".to_owned()].into()));
    }
}
