//! Filters (RFC 7644 §3.4.2.2): equalities, joined by `and`. What providers do not send is refused by name, never guessed.

use serde_json::Value;

use super::refusal::{Refusal, quoted};

/// The longest filter or path, bytes.
pub(super) const MAX_TEXT: usize = 1_024;
/// The most equalities of one filter.
const MAX_COMPARISONS: usize = 4;

/// One equality: an attribute, as it was written, and a value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Comparison {
    pub(super) attribute: String,
    pub(super) value: Value,
}

/// Takes a word up to a space.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start_matches(' ');
    text.split_once(' ').unwrap_or((text, ""))
}

/// Takes a literal: a JSON string, number, or one of the words `true`, `false`, `null`.
fn literal(text: &str) -> Option<(Value, &str)> {
    let text = text.trim_start_matches(' ');
    let end = if text.starts_with('"') {
        let mut escaped = false;
        let close = text.bytes().enumerate().skip(1).find(|(_, byte)| {
            let closes = *byte == b'"' && !escaped;
            escaped = *byte == b'\\' && !escaped;
            closes
        });
        close?.0 + 1
    } else {
        text.find(' ').unwrap_or(text.len())
    };
    let (written, rest) = text.split_at(end);
    let written = if written.starts_with('"') { written.to_owned() } else { written.to_ascii_lowercase() };
    let value: Value = serde_json::from_str(&written).ok()?;
    let simple = matches!(value, Value::String(_) | Value::Bool(_) | Value::Number(_));
    (simple && (rest.is_empty() || rest.starts_with(' '))).then_some((value, rest))
}

/// Reads equalities.
///
/// # Errors
/// [`Refusal`] with `invalidFilter` for everything else.
pub(super) fn comparisons(text: &str) -> Result<Vec<Comparison>, Refusal> {
    let refused = |why: &str| Refusal::filter(format!("{why} in the filter {}", quoted(text)));
    if text.len() > MAX_TEXT {
        return Err(Refusal::filter("the filter is too long"));
    }
    let mut rest = text.trim_matches(' ');
    if let Some(inner) = rest.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        rest = inner;
    }
    let mut found = Vec::new();
    loop {
        let (attribute, after) = word(rest);
        let named = !attribute.is_empty()
            && attribute.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"$._-:".contains(&byte));
        if !named {
            return Err(refused("no attribute where one has to be"));
        }
        let (operator, after) = word(after);
        if !operator.eq_ignore_ascii_case("eq") {
            return Err(refused("an operator other than `eq`"));
        }
        let (value, after) = literal(after).ok_or_else(|| refused("no value where one has to be"))?;
        found.push(Comparison { attribute: attribute.to_owned(), value });
        if found.len() > MAX_COMPARISONS {
            return Err(refused("too many comparisons"));
        }
        let after = after.trim_start_matches(' ');
        if after.is_empty() {
            return Ok(found);
        }
        let (join, after) = word(after);
        if !join.eq_ignore_ascii_case("and") {
            return Err(refused("something other than `and`"));
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<Vec<(String, Value)>, &'static str> {
        let read = comparisons(text);
        read.map(|all| all.into_iter().map(|c| (c.attribute, c.value)).collect()).map_err(|refusal| refusal.word())
    }

    #[test]
    fn equalities_are_read_and_everything_else_is_refused() {
        let one = |name: &str, value: Value| Ok(vec![(name.to_owned(), value)]);
        assert_eq!(read(r#"userName eq "Alice@corp.example""#), one("userName", json!("Alice@corp.example")));
        assert_eq!(read(r#"userName EQ "a \"b\" c\\""#), one("userName", json!("a \"b\" c\\")));
        assert_eq!(read(r#"  active eq True"#), one("active", json!(true)));
        assert_eq!(
            read(r#"(id eq "1" and members eq "2")"#),
            Ok(vec![("id".to_owned(), json!("1")), ("members".to_owned(), json!("2"))])
        );
        for wrong in [
            "",
            " ",
            "userName",
            "userName eq",
            "userName eq alice",
            r#"userName eq "alice"#,
            r#"userName eq "alice" or userName eq "bob""#,
            r#"userName sw "a""#,
            r#"not (userName eq "a")"#,
            r#"userName pr"#,
            r#"userName eq "a" and"#,
            r#"userName eq "a"x"#,
            r#"userName eq {"a":1}"#,
            r#"userName eq null"#,
            r#"emails[type eq "work"] eq "a""#,
            r#"a eq "1" and b eq "2" and c eq "3" and d eq "4" and e eq "5""#,
        ] {
            assert_eq!(read(wrong), Err("invalidFilter"), "{wrong}");
        }
        assert_eq!(read(&format!("userName eq \"{}\"", "x".repeat(MAX_TEXT))), Err("invalidFilter"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_as_it_was_written(value in ".{0,60}", name in "[A-Za-z][A-Za-z.]{0,20}") {
            let written = format!("{name} eq {}", serde_json::to_string(&value).unwrap());
            let read = comparisons(&written).unwrap();
            prop_assert_eq!(&read[0].attribute, &name);
            prop_assert_eq!(&read[0].value, &Value::String(value));
        }

        #[test]
        fn no_text_is_too_strange(text in ".{0,200}") {
            let _ = comparisons(&text);
        }
    }
}
