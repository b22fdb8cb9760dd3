//! Who a rule speaks of: the entries of `from`.

use std::{fmt, str::FromStr};

use super::subject::{RequestContext, Subject, Truth, UserIdentity};
use crate::id::{ServiceName, Tag};

/// The most bytes of a login name, a `sub` or a group in a selector.
const MAX_NAME_BYTES: usize = 255;

/// One entry of a rule's `from`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Selector {
    /// `user:NAME`: a local account by its login name. Never an e-mail address that a provider claims.
    LocalUser(String),
    /// `user:oidc/SUB`: a person of the configured provider by the subject identifier `sub`.
    OidcUser(String),
    /// `user:*`: every signed-in person.
    AnyUser,
    /// `group:NAME`: whoever is in a group, of the provider or local.
    Group(String),
    /// `service:NAME`: a service identity.
    Service(ServiceName),
    /// `service:*`: every service identity.
    AnyService,
    /// `tag:NAME`: whoever asks on a device with this approved tag.
    Tag(Tag),
}

impl Selector {
    /// Tells whether whoever `other` names is named by this one too. Only people are in groups.
    pub(super) fn includes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::AnyUser, Self::LocalUser(_) | Self::OidcUser(_) | Self::Group(_)) => true,
            (Self::AnyService, Self::Service(_)) => true,
            (one, other) => one == other,
        }
    }
}

/// Tells why a text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The kind is missing or unknown.
    #[error("`{text}` does not say who it names: {help}")]
    Kind {
        /// The text.
        text: String,
        /// The likely meaning.
        help: String,
    },
    /// What follows the kind is empty, too long, or has characters that no name has.
    #[error(
        "`{0}` is not a selector: use user:NAME, user:oidc/SUB, user:*, group:NAME, service:NAME, service:* or tag:NAME"
    )]
    Name(String),
    /// A star where it would mean too much or nothing.
    #[error("`{0}` is not a selector: use user:* for every person and service:* for every service")]
    Star(String),
}

const KINDS: [&str; 4] = ["user", "group", "service", "tag"];

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let shown = || text.chars().take(80).collect::<String>();
        let Some((kind, name)) = text.split_once(':') else {
            let help = if text == "*" {
                "did you mean \"user:*\"?".to_owned()
            } else {
                format!("did you mean \"group:{0}\" or \"user:{0}\"?", shown())
            };
            return Err(SelectorError::Kind { text: shown(), help });
        };
        let good = |name: &str| {
            (1..=MAX_NAME_BYTES).contains(&name.len()) && name.trim() == name && !name.chars().any(char::is_control)
        };
        let bad = || SelectorError::Name(shown());
        match kind {
            "user" if name == "*" => Ok(Self::AnyUser),
            "service" if name == "*" => Ok(Self::AnyService),
            "group" | "tag" if name == "*" => Err(SelectorError::Star(shown())),
            "user" => match name.split_once('/') {
                Some(("oidc", sub)) if good(sub) => Ok(Self::OidcUser(sub.into())),
                None if good(name) => Ok(Self::LocalUser(name.into())),
                Some(_) | None => Err(bad()),
            },
            "group" if good(name) => Ok(Self::Group(name.into())),
            "group" => Err(bad()),
            "service" => name.parse().map(Self::Service).map_err(|_| bad()),
            "tag" => name.parse().map(Self::Tag).map_err(|_| bad()),
            other => {
                let near = crate::diagnostics::did_you_mean(other, KINDS);
                let help = match near {
                    Some(near) => format!("did you mean \"{near}:{}\"?", name.chars().take(80).collect::<String>()),
                    None => "use user:, group:, service: or tag:".into(),
                };
                Err(SelectorError::Kind { text: shown(), help })
            }
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LocalUser(name) => write!(f, "user:{name}"),
            Self::OidcUser(sub) => write!(f, "user:oidc/{sub}"),
            Self::AnyUser => f.write_str("user:*"),
            Self::Group(name) => write!(f, "group:{name}"),
            Self::Service(name) => write!(f, "service:{name}"),
            Self::AnyService => f.write_str("service:*"),
            Self::Tag(tag) => write!(f, "tag:{tag}"),
        }
    }
}

impl Selector {
    /// Tells whether the selector names who asks; unknown if it names a group and the groups are unknown.
    pub fn matches(&self, context: &RequestContext) -> Truth {
        match (self, &context.subject) {
            (Self::Tag(tag), _) => Truth::known(context.tags.contains(tag)),
            (Self::AnyUser, Subject::User { .. }) | (Self::AnyService, Subject::Service { .. }) => Truth::True,
            (Self::LocalUser(wanted), Subject::User { identity: UserIdentity::Local { name }, .. }) => {
                Truth::known(wanted == name)
            }
            (Self::OidcUser(wanted), Subject::User { identity: UserIdentity::Oidc { sub, .. }, .. }) => {
                Truth::known(wanted == sub)
            }
            (Self::Group(wanted), Subject::User { groups, .. }) => match groups {
                Some(groups) => Truth::known(groups.contains(wanted)),
                None => Truth::Unknown,
            },
            (Self::Service(wanted), Subject::Service { name }) => Truth::known(wanted == name),
            (Self::LocalUser(_) | Self::OidcUser(_), Subject::User { .. })
            | (Self::Service(_) | Self::AnyService, Subject::User { .. })
            | (Self::LocalUser(_) | Self::OidcUser(_) | Self::AnyUser | Self::Group(_), Subject::Service { .. }) => {
                Truth::False
            }
        }
    }

    /// Returns every selector that names who asks for certain.
    pub(super) fn naming(context: &RequestContext) -> Vec<Self> {
        let mut selectors: Vec<Self> = context.tags.iter().cloned().map(Self::Tag).collect();
        match &context.subject {
            Subject::User { identity, groups, .. } => {
                selectors.push(match identity {
                    UserIdentity::Local { name } => Self::LocalUser(name.clone()),
                    UserIdentity::Oidc { sub, .. } => Self::OidcUser(sub.clone()),
                });
                selectors.push(Self::AnyUser);
                selectors.extend(groups.iter().flatten().cloned().map(Self::Group));
            }
            Subject::Service { name } => selectors.extend([Self::Service(name.clone()), Self::AnyService]),
        }
        selectors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_print_and_parse_to_themselves() {
        for text in [
            "user:bob@corp.example",
            "user:oidc/a|b/c",
            "user:*",
            "group:Ops/EU team",
            "service:batch",
            "service:*",
            "tag:db",
        ] {
            assert_eq!(text.parse::<Selector>().map(|s| s.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn a_selector_that_names_nobody_is_refused_with_its_likely_meaning() {
        for (text, part) in [
            ("contractors", "did you mean \"group:contractors\" or \"user:contractors\"?"),
            ("gruop:ops", "did you mean \"group:ops\"?"),
            ("*", "did you mean \"user:*\"?"),
            ("group:*", "use user:*"),
            ("tag:a b", "is not a selector"),
            ("user:", "is not a selector"),
            ("user:saml/x", "is not a selector"),
            ("host:x", "use user:, group:, service: or tag:"),
        ] {
            let error = text.parse::<Selector>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
