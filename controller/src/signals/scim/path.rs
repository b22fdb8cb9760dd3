//! Paths of PATCH (RFC 7644 §3.5.2): `name.givenName`, `emails[type eq "work"].value`, `urn:...:User:department`.

use super::{
    filter::{self, Comparison},
    refusal::{Refusal, quoted},
    schema::{self, Attribute, ENTERPRISE, ENTERPRISE_ATTRIBUTES, Kind, Plurality},
};

/// Which schema an attribute is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Within {
    Core,
    Enterprise,
}

/// What a path names.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Path {
    /// The whole extension.
    Enterprise,
    /// An attribute.
    Attribute {
        within: Within,
        attribute: &'static Attribute,
        /// Which of several values; all if empty.
        filter: Vec<Comparison>,
        part: Option<&'static Attribute>,
    },
}

/// Takes `prefix` off, whatever its case.
fn after<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Finds the bracket that closes a value filter: not one within a quoted text.
fn closing(text: &str) -> Option<usize> {
    let (mut quotes, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quotes => escaped = true,
            b'"' => quotes = !quotes,
            b']' if !quotes => return Some(at),
            _ => {}
        }
    }
    None
}

/// Reads a path.
///
/// # Errors
/// `invalidPath` if there is no such attribute, `invalidFilter` for a value filter that is no equality.
pub(super) fn parse(kind: Kind, text: &str) -> Result<Path, Refusal> {
    let unknown = || {
        let help = "take it out of the attribute mapping of the provider";
        Refusal::path(format!("there is no attribute {} of a {}: {help}", quoted(text), kind.word()))
    };
    if text.len() > filter::MAX_TEXT {
        return Err(Refusal::path("the path is too long"));
    }
    let (within, among, rest) = match (after(text, kind.schema()), after(text, ENTERPRISE), kind) {
        (Some(rest), ..) => (Within::Core, kind.attributes(), rest.strip_prefix(':').ok_or_else(unknown)?),
        (None, Some(""), Kind::User) => return Ok(Path::Enterprise),
        (None, Some(rest), Kind::User) => {
            (Within::Enterprise, ENTERPRISE_ATTRIBUTES, rest.strip_prefix(':').ok_or_else(unknown)?)
        }
        (None, Some(_) | None, Kind::User | Kind::Group) => (Within::Core, kind.attributes(), text),
    };
    let end = rest.find(['[', '.']).unwrap_or(rest.len());
    let (name, rest) = rest.split_at(end);
    let attribute = schema::find(among, name).ok_or_else(unknown)?;
    let (filter, rest) = match rest.strip_prefix('[') {
        None => (vec![], rest),
        Some(_) if attribute.plurality == Plurality::One => {
            return Err(Refusal::path(format!("{} has one value: it takes no filter", attribute.name)));
        }
        Some(inner) => {
            let close = closing(inner).ok_or_else(unknown)?;
            let filter = filter::comparisons(&inner[..close])?;
            if let Some(strange) = filter.iter().find(|c| schema::find(attribute.parts, &c.attribute).is_none()) {
                let detail = format!("{} have no {}", attribute.name, quoted(&strange.attribute));
                return Err(Refusal::filter(detail));
            }
            (filter, &inner[close + 1..])
        }
    };
    let part = match rest.strip_prefix('.') {
        None if rest.is_empty() => None,
        None => return Err(unknown()),
        Some(part) => Some(schema::find(attribute.parts, part).ok_or_else(unknown)?),
    };
    Ok(Path::Attribute { within, attribute, filter, part })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(kind: Kind, text: &str) -> Result<String, &'static str> {
        match parse(kind, text) {
            Ok(Path::Enterprise) => Ok("enterprise".to_owned()),
            Ok(Path::Attribute { within, attribute, filter, part }) => {
                let filter: Vec<_> = filter.iter().map(|c| format!("{}={}", c.attribute, c.value)).collect();
                let part = part.map_or("", |part| part.name);
                Ok(format!("{within:?} {} [{}] {part}", attribute.name, filter.join(",")))
            }
            Err(refusal) => Err(refusal.word()),
        }
    }

    #[test]
    fn the_paths_that_providers_send_are_read() {
        for (kind, text, expected) in [
            (Kind::User, "active", "Core active [] "),
            (Kind::User, "ACTIVE", "Core active [] "),
            (Kind::User, "name.givenName", "Core name [] givenName"),
            (Kind::User, r#"emails[type eq "work"].value"#, r#"Core emails [type="work"] value"#),
            (Kind::User, r#"emails[type eq "wo]rk\"]"].value"#, r#"Core emails [type="wo]rk\"]"] value"#),
            (Kind::User, r#"addresses[type eq "work"].formatted"#, r#"Core addresses [type="work"] formatted"#),
            (Kind::User, r#"roles[primary eq "True"].value"#, r#"Core roles [primary="True"] value"#),
            (Kind::User, "urn:ietf:params:scim:schemas:core:2.0:User:userName", "Core userName [] "),
            (
                Kind::User,
                "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:department",
                "Enterprise department [] ",
            ),
            (
                Kind::User,
                "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:manager.value",
                "Enterprise manager [] value",
            ),
            (Kind::User, "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User", "enterprise"),
            (Kind::Group, "members", "Core members [] "),
            (Kind::Group, r#"members[value eq "3"]"#, r#"Core members [value="3"] "#),
        ] {
            assert_eq!(read(kind, text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_path_that_is_not_known_is_refused() {
        for (kind, text, word) in [
            (Kind::User, "", "invalidPath"),
            (Kind::User, "shoeSize", "invalidPath"),
            (Kind::User, "name.shoeSize", "invalidPath"),
            (Kind::User, "name.givenName.x", "invalidPath"),
            (Kind::User, "members", "invalidPath"),
            (Kind::Group, "userName", "invalidPath"),
            (Kind::Group, "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:department", "invalidPath"),
            (Kind::User, "urn:ietf:params:scim:schemas:core:2.0:User", "invalidPath"),
            (Kind::User, "urn:ietf:params:scim:schemas:extension:corp:2.0:User:badge", "invalidPath"),
            (Kind::User, r#"userName[type eq "work"]"#, "invalidPath"),
            (Kind::User, r#"emails[type eq "work""#, "invalidPath"),
            (Kind::User, r#"emails[type eq "work"]value"#, "invalidPath"),
            (Kind::User, r#"emails[type eq "work"].value.x"#, "invalidPath"),
            (Kind::User, r#"emails[]"#, "invalidFilter"),
            (Kind::User, r#"emails[type ne "work"].value"#, "invalidFilter"),
            (Kind::User, r#"emails[shoeSize eq "work"].value"#, "invalidFilter"),
            (Kind::Group, r#"members[value sw ""]"#, "invalidFilter"),
        ] {
            assert_eq!(read(kind, text), Err(word), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_path_is_too_strange(text in ".{0,120}", inner in ".{0,60}") {
            for kind in [Kind::User, Kind::Group] {
                let _ = parse(kind, &text);
                let _ = parse(kind, &format!("members[{inner}].value"));
                let _ = parse(kind, &format!("emails[{inner}]{text}"));
            }
        }
    }
}
