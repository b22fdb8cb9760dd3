//! Mistakes in the TOML files that people write, shown with their place and their likely meaning.
//!
//! ```text
//! bytes --decode--> text --toml (spans)--> a serde struct, or a reader that walks the spanned tree
//!                                   \--> Diagnostics: message, file:line:column, the line, carets, help
//! ```
//!
//! ```text
//! error: unknown key `port` in [resource.payroll-app]
//!    --> policy.toml:23:1
//! 23 | port = ["tcp/443"]
//!    | ^^^^ did you mean `ports`?
//! ```
//!
//! [`from_toml`] serves every configuration that is a serde struct; the struct carries
//! `#[serde(deny_unknown_fields)]`, and unknown keys are then all reported at once. The policy document has a reader
//! of its own ([`crate::policy`]), which collects every mistake.
//!
//! Everything that is shown passes through [`printable`]: a file (or a name in it) must not be able to write escape
//! sequences to the terminal of the person who checks it.

pub(crate) mod table;
mod units;

use std::{fmt, ops::Range};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

pub use units::{ByteSize, DurationError, HumanDuration, SizeError};

/// The most bytes of a file that is read: 10,000 rules fit four times over.
pub const MAX_FILE_BYTES: usize = 16 << 20;
/// The most mistakes that are kept of one file; further ones are counted.
pub const MAX_DIAGNOSTICS: usize = 50;
/// The most characters of a line that are shown around the carets.
const MAX_SHOWN_COLUMNS: usize = 110;
/// The most carets under a line.
const MAX_CARETS: usize = 40;
/// The most syntax errors that are shown: what follows the first is often its consequence.
const MAX_SYNTAX_ERRORS: usize = 3;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong, lower case, no full stop.
    pub message: String,
    /// Where, in bytes of the text; absent if it concerns the file as a whole.
    pub span: Option<Range<usize>>,
    /// The likely meaning, or what to do; one line or several.
    pub help: Option<String>,
}

impl Diagnostic {
    /// Makes a diagnostic with a place.
    pub fn at(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { message: message.into(), span: Some(span), help: None }
    }

    /// Makes a diagnostic of the file as a whole.
    pub fn whole(message: impl Into<String>) -> Self {
        Self { message: message.into(), span: None, help: None }
    }

    /// Adds the likely meaning.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds the likely meaning if there is one.
    #[must_use]
    pub fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help = help.or(self.help);
        self
    }

    /// Makes a diagnostic of an error's text; what follows `: did you mean`, `: use` or `: write` becomes the help.
    pub fn of_error(span: Range<usize>, error: &str) -> Self {
        for mark in [": did you mean ", ": use ", ": write "] {
            if let Some(at) = error.find(mark) {
                return Self::at(span, &error[..at]).help(&error[at + 2..]);
            }
        }
        Self::at(span, error)
    }
}

/// Every mistake of one file, ready to print. It is an error as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics {
    file: String,
    text: String,
    found: Vec<Diagnostic>,
    omitted: usize,
}

/// A place in a text, counted from one; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// Finds the place of a byte offset; an offset beyond the end counts as the end.
pub fn place(text: &str, offset: usize) -> Place {
    let before = &text[..floor_boundary(text, offset)];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Place { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
}

fn floor_boundary(text: &str, offset: usize) -> usize {
    (0..=offset.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// Replaces what a terminal would obey or what hides text: control characters and marks of writing direction.
pub fn printable(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    text.chars().map(|c| if hidden(c) { '\u{fffd}' } else { c }).collect()
}

/// Writes a text as one word of a shell's command line: names that people chose stand in commands that others paste.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./_-".contains(c);
    let text = printable(text);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Returns the candidate that is nearest to a misspelt word, if one is near.
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

impl Diagnostics {
    /// Begins an empty list for a file.
    pub fn new(file: impl Into<String>, text: impl Into<String>) -> Self {
        Self { file: file.into(), text: text.into(), found: Vec::new(), omitted: 0 }
    }

    /// Adds a mistake; beyond [`MAX_DIAGNOSTICS`] it is only counted.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        if self.found.len() < MAX_DIAGNOSTICS {
            self.found.push(diagnostic);
        } else {
            self.omitted += 1;
        }
    }

    /// Tells whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Returns the mistakes.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.found.iter()
    }

    /// Returns how many mistakes were found beyond those that are kept.
    pub const fn omitted(&self) -> usize {
        self.omitted
    }

    /// Returns `value` if nothing is wrong.
    ///
    /// # Errors
    /// The mistakes, in the order of their places.
    pub fn into_result<T>(mut self, value: T) -> Result<T, Self> {
        if self.found.is_empty() {
            return Ok(value);
        }
        self.found.sort_by_key(|diagnostic| diagnostic.span.as_ref().map(|span| span.start));
        Err(self)
    }

    fn render(&self, f: &mut fmt::Formatter<'_>, diagnostic: &Diagnostic) -> fmt::Result {
        writeln!(f, "error: {}", printable(&diagnostic.message))?;
        let help: Vec<String> = diagnostic.help.iter().flat_map(|help| help.lines()).map(printable).collect();
        let Some(span) = &diagnostic.span else {
            write!(f, "   --> {}", printable(&self.file))?;
            return help.iter().try_for_each(|line| write!(f, "\n   = {line}"));
        };
        let start = floor_boundary(&self.text, span.start);
        let Place { line, column } = place(&self.text, start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_text = self.text[line_start..].split(['\n', '\r']).next().unwrap_or_default();
        let in_line = (span.end.max(start) - line_start).min(line_text.len());
        let marked = self.text[start..floor_boundary(&self.text, line_start + in_line).max(start)].chars().count();

        // A long line is cut so that the carets stay in view.
        let skipped = if column > MAX_SHOWN_COLUMNS - 20 { column - 20 } else { 0 };
        let shown: String = line_text.chars().skip(skipped).take(MAX_SHOWN_COLUMNS).collect();
        let ellipsis = if skipped > 0 { "..." } else { "" };
        let before: String = shown.chars().take(column - 1 - skipped).collect();
        let padding: String =
            before.chars().map(|c| if c == '\t' { '\t' } else { ' ' }).chain(ellipsis.chars().map(|_| ' ')).collect();
        let carets = "^".repeat(marked.clamp(1, MAX_CARETS));

        let gutter = line.to_string().len().max(2);
        let shown = shown.split('\t').map(printable).collect::<Vec<_>>().join("\t");
        writeln!(f, "{:gutter$} --> {}:{line}:{column}", "", printable(&self.file))?;
        writeln!(f, "{line:gutter$} | {ellipsis}{}", shown.trim_end())?;
        write!(f, "{:gutter$} | {padding}{carets}", "")?;
        if let Some(first) = help.first() {
            write!(f, " {first}")?;
        }
        help.iter().skip(1).try_for_each(|line| write!(f, "\n{:gutter$} | {padding}{:2$} {line}", "", "", carets.len()))
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.found.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            self.render(f, diagnostic)?;
        }
        match self.omitted {
            0 => Ok(()),
            more => write!(f, "\n\nand {more} more"),
        }
    }
}

impl std::error::Error for Diagnostics {}

/// Reads a file's bytes as text.
///
/// # Errors
/// If the file is longer than [`MAX_FILE_BYTES`] or is not UTF-8; the place of the first bad byte is shown.
pub fn decode<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a str, Diagnostics> {
    if bytes.len() > MAX_FILE_BYTES {
        let mut diagnostics = Diagnostics::new(file, "");
        diagnostics
            .push(Diagnostic::whole(format!("the file is larger than {}", ByteSize::new(MAX_FILE_BYTES as u64))));
        return diagnostics.into_result("");
    }
    std::str::from_utf8(bytes).or_else(|error| {
        let good = error.valid_up_to();
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut diagnostics = Diagnostics::new(file, text);
        diagnostics.push(Diagnostic::at(good..good + 3, "this is not UTF-8 text").help("save the file as UTF-8"));
        diagnostics.into_result("")
    })
}

/// Parses TOML into a tree that knows its places.
///
/// # Errors
/// The first few errors of syntax.
pub fn parse_tree<'a>(file: &str, text: &'a str) -> Result<DeTable<'a>, Diagnostics> {
    let mut diagnostics = Diagnostics::new(file, "");
    if text.len() > MAX_FILE_BYTES {
        let size = ByteSize::new(MAX_FILE_BYTES as u64);
        diagnostics.push(Diagnostic::whole(format!("the file is larger than {size}")));
        return diagnostics.into_result(DeTable::new());
    }
    let (tree, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        diagnostics.text = text.to_owned();
    }
    let mut duplicate = None;
    let told = errors.iter().filter(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let again = duplicate.is_some_and(|table| is_in_table(text, table, at));
        if !again && is_duplicate(error) {
            duplicate = Some(at);
        }
        !(again && is_duplicate(error))
    });
    for error in told.take(MAX_SYNTAX_ERRORS) {
        let span = error.span().unwrap_or(0..0);
        let message = match text.get(span.clone()).filter(|key| is_duplicate(error) && !key.is_empty()) {
            Some(key) => format!("duplicate key `{key}`"),
            None => error.message().to_owned(),
        };
        diagnostics.push(Diagnostic::at(span, message).maybe_help(syntax_help(error)));
    }
    diagnostics.into_result(tree.into_inner())
}

fn is_duplicate(error: &toml::de::Error) -> bool {
    error.message().contains("duplicate key")
}

/// Tells whether `at` is below the header of a table at `header`: where a table is there twice, so are its keys.
fn is_in_table(text: &str, header: usize, at: usize) -> bool {
    let line = text.get(..header).map_or(0, |before| before.rfind('\n').map_or(0, |end| end + 1));
    let below = text.get(header..at);
    text.get(line..).is_some_and(|line| line.trim_start().starts_with('['))
        && below.is_some_and(|below| !below.lines().skip(1).any(|line| line.trim_start().starts_with('[')))
}

fn syntax_help(error: &toml::de::Error) -> Option<String> {
    if is_duplicate(error) {
        return Some("the same name stands above already: rename one, or join the two".into());
    }
    None
}

/// Reads a configuration that is a serde struct. Its types carry `#[serde(deny_unknown_fields)]`.
///
/// # Errors
/// Errors of syntax; or every unknown key, with its table and the nearest known one, and the first value that does
/// not fit.
pub fn from_toml<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, Diagnostics> {
    let mut tree = parse_tree(file, text)?;
    let mut diagnostics = Diagnostics::new(file, text);
    loop {
        let whole = toml::Spanned::new(0..text.len(), tree.clone());
        let error = match T::deserialize(toml::de::Deserializer::from(whole)) {
            Ok(value) => return diagnostics.into_result(value),
            Err(error) => error,
        };
        let span = error.span().unwrap_or(0..0);
        let unknown = unknown_field(error.message()).and_then(|(key, known)| {
            remove_key(&mut tree, &key, &span, &mut Vec::new()).map(|path| (key, known, path))
        });
        let Some((key, known, path)) = unknown else {
            diagnostics.push(Diagnostic::of_error(span, error.message()));
            break;
        };
        diagnostics.push(unknown_key(span, &key, &path, known.iter().map(String::as_str)));
        if diagnostics.found.len() == MAX_DIAGNOSTICS {
            break;
        }
    }
    Err(diagnostics.into_result(()).expect_err("a mistake was pushed before the loop ended"))
}

/// Makes the error for an unknown key: names its table and the nearest known key, or all of them if they are few.
pub fn unknown_key<'a>(
    span: Range<usize>,
    key: &str,
    table: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Diagnostic {
    let place = if table.is_empty() { String::from("here") } else { format!("in {table}") };
    let help = match did_you_mean(key, known.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known here: {}", known.collect::<Vec<_>>().join(", ")),
    };
    Diagnostic::at(span, format!("unknown key `{key}` {place}")).help(help)
}

/// Takes serde's message for an unknown field apart: the field, and the known ones.
fn unknown_field(message: &str) -> Option<(String, Vec<String>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (key, rest) = rest.split_once("`, ")?;
    let known = rest.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    Some((key.to_owned(), known))
}

/// Removes the key at `span` and returns its table's name as it is written: `[resource.payroll-app]`.
fn remove_key(table: &mut DeTable<'_>, key: &str, span: &Range<usize>, path: &mut Vec<String>) -> Option<String> {
    let here =
        table.iter().find(|(name, _)| name.span() == *span && name.get_ref() == key).map(|(name, _)| name.clone());
    if let Some(name) = here {
        table.remove(&name);
        return Some(if path.is_empty() { String::new() } else { format!("[{}]", path.join(".")) });
    }
    for (name, value) in table.iter_mut() {
        path.push(name.get_ref().to_string());
        let found = remove_key_in_value(value.get_mut(), key, span, path);
        path.pop();
        if found.is_some() {
            return found;
        }
    }
    None
}

fn remove_key_in_value(
    value: &mut DeValue<'_>,
    key: &str,
    span: &Range<usize>,
    path: &mut Vec<String>,
) -> Option<String> {
    match value {
        DeValue::Table(table) => remove_key(table, key, span, path),
        DeValue::Array(array) => {
            array.iter_mut().find_map(|value| remove_key_in_value(value.get_mut(), key, span, path))
        }
        DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {
            None
        }
    }
}

#[cfg(test)]
mod tests;
