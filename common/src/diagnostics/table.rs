//! Walks a spanned TOML table key by key and collects every mistake, not only the first.
//!
//! A reader takes the keys that it knows; what is left when it ends is unknown. A value that does not fit is reported
//! and counts as absent, so that the walk goes on.

use std::{fmt, ops::Range, str::FromStr};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Diagnostic, Diagnostics, HumanDuration, unknown_key};

/// Reads one table. Call [`TableReader::finish`] at the end.
pub(crate) struct TableReader<'t, 'i> {
    table: &'t DeTable<'i>,
    /// The table as people know it: `[resource.git]`.
    title: String,
    span: Range<usize>,
    known: Vec<&'static str>,
    refused: Vec<(&'static str, &'static str)>,
}

impl<'t, 'i> TableReader<'t, 'i> {
    /// Begins to read a table.
    pub(crate) fn new(table: &'t DeTable<'i>, title: impl Into<String>, span: Range<usize>) -> Self {
        Self { table, title: title.into(), span, known: Vec::new(), refused: Vec::new() }
    }

    /// Begins to read a value as a table; reports it and returns `None` if it is none.
    pub(crate) fn of_value(
        value: &'t Spanned<DeValue<'i>>,
        title: impl Into<String>,
        diagnostics: &mut Diagnostics,
    ) -> Option<Self> {
        match value.get_ref() {
            DeValue::Table(table) => Some(Self::new(table, title, value.span())),
            other => {
                diagnostics.push(wrong_type(value.span(), "a table", other));
                None
            }
        }
    }

    /// Returns the table's own place.
    pub(crate) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Returns the table's title.
    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// Names a key that would make sense and is refused all the same, with the reason.
    pub(crate) fn refuse(&mut self, key: &'static str, why: &'static str) {
        self.refused.push((key, why));
    }

    /// Takes a value as it is.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'i>>> {
        self.known.push(key);
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    /// Takes a text.
    pub(crate) fn text(&mut self, key: &'static str, diagnostics: &mut Diagnostics) -> Option<Spanned<&'t str>> {
        let value = self.take(key)?;
        text_of(value, diagnostics)
    }

    /// Takes a text and parses it.
    pub(crate) fn parsed<T>(&mut self, key: &'static str, diagnostics: &mut Diagnostics) -> Option<Spanned<T>>
    where
        T: FromStr<Err: fmt::Display>,
    {
        let text = self.text(key, diagnostics)?;
        parse_at(text.span(), text.get_ref(), diagnostics).map(|value| Spanned::new(text.span(), value))
    }

    /// Takes a duration; a bare number is told that it lacks a unit.
    pub(crate) fn duration(
        &mut self,
        key: &'static str,
        diagnostics: &mut Diagnostics,
    ) -> Option<Spanned<HumanDuration>> {
        let value = self.take(key)?;
        let number;
        let text = match value.get_ref() {
            DeValue::Integer(integer) => {
                number = integer.to_string();
                number.as_str()
            }
            _ => text_of(value, diagnostics)?.into_inner(),
        };
        parse_at(value.span(), text, diagnostics).map(|duration| Spanned::new(value.span(), duration))
    }

    /// Takes a truth value.
    pub(crate) fn flag(&mut self, key: &'static str, diagnostics: &mut Diagnostics) -> Option<bool> {
        let value = self.take(key)?;
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            diagnostics.push(wrong_type(value.span(), "true or false", value.get_ref()));
        }
        flag
    }

    /// Takes one of a few words.
    pub(crate) fn word<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&'static str, T)],
        diagnostics: &mut Diagnostics,
    ) -> Option<T> {
        let text = self.text(key, diagnostics)?;
        let found = words.iter().find(|(word, _)| word == text.get_ref()).map(|(_, value)| *value);
        if found.is_none() {
            let known = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ");
            let message = format!("`{}` is not a value of `{key}`", text.get_ref());
            let near = super::did_you_mean(text.get_ref(), words.iter().map(|(word, _)| *word));
            let help = near.map_or_else(|| format!("use {known}"), |near| format!("did you mean \"{near}\"?"));
            diagnostics.push(Diagnostic::at(text.span(), message).help(help));
        }
        found
    }

    /// Takes a list of texts, which must not be empty. Absent: `None`. Elements that are no texts are reported.
    pub(crate) fn list(&mut self, key: &'static str, diagnostics: &mut Diagnostics) -> Option<Vec<Spanned<&'t str>>> {
        let value = self.take(key)?;
        let DeValue::Array(array) = value.get_ref() else {
            let mut wrong = wrong_type(value.span(), "a list of texts", value.get_ref());
            if let DeValue::String(text) = value.get_ref() {
                wrong = wrong.help(format!("did you mean [\"{text}\"]?"));
            }
            diagnostics.push(wrong);
            return None;
        };
        if array.is_empty() {
            diagnostics.push(Diagnostic::at(value.span(), format!("`{key}` in {} is empty", self.title)));
            return None;
        }
        Some(array.iter().filter_map(|element| text_of(element, diagnostics)).collect())
    }

    /// Takes one text or a list of texts.
    pub(crate) fn one_or_more(
        &mut self,
        key: &'static str,
        diagnostics: &mut Diagnostics,
    ) -> Option<Vec<Spanned<&'t str>>> {
        match self.take(key)?.get_ref() {
            DeValue::String(_) => self.text(key, diagnostics).map(|text| vec![text]),
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => self.list(key, diagnostics),
        }
    }

    /// Reports that a key is missing.
    pub(crate) fn missing(&self, key: &str, help: &str, diagnostics: &mut Diagnostics) {
        let message = format!("{} has no `{key}`", self.title);
        diagnostics.push(Diagnostic::at(self.span(), message).help(help));
    }

    /// Tells whether the table has a key, whatever its value.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.iter().any(|(name, _)| name.get_ref() == key)
    }

    /// Reports every key that was not taken.
    pub(crate) fn finish(self, diagnostics: &mut Diagnostics) {
        for (name, _) in self.table.iter() {
            let key = name.get_ref().as_ref();
            if self.known.contains(&key) {
                continue;
            }
            diagnostics.push(match self.refused.iter().find(|(refused, _)| *refused == key) {
                Some((_, why)) => {
                    Diagnostic::at(name.span(), format!("`{key}` in {} is not supported yet", self.title)).help(*why)
                }
                None => unknown_key(name.span(), key, &self.title, self.known.iter().copied()),
            });
        }
    }
}

/// Returns a value's text, or reports that it is none.
pub(crate) fn text_of<'t>(value: &'t Spanned<DeValue<'_>>, diagnostics: &mut Diagnostics) -> Option<Spanned<&'t str>> {
    match value.get_ref() {
        DeValue::String(text) => Some(Spanned::new(value.span(), text.as_ref())),
        other => {
            diagnostics.push(wrong_type(value.span(), "a text in quotes", other));
            None
        }
    }
}

/// Parses a text, or reports why it does not fit.
pub(crate) fn parse_at<T>(span: Range<usize>, text: &str, diagnostics: &mut Diagnostics) -> Option<T>
where
    T: FromStr<Err: fmt::Display>,
{
    text.parse().map_err(|error: T::Err| diagnostics.push(Diagnostic::of_error(span, &error.to_string()))).ok()
}

/// Makes the error for a value of a wrong type.
pub(crate) fn wrong_type(span: Range<usize>, expected: &str, found: &DeValue<'_>) -> Diagnostic {
    let found = match found {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    Diagnostic::at(span, format!("expected {expected}, found {found}"))
}
