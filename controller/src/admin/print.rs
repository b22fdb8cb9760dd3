//! What people see on a terminal, and machines otherwise.

use std::io::IsTerminal;

use comfy_table::{Table, presets};
use postern_common::{
    diagnostics::{HumanDuration, printable},
    time::{WallTime, with_instants},
};
use serde_json::Value;

use crate::serve::clock;

/// Whether marks and colours are wanted: only on a terminal, and not where `NO_COLOR` is set.
pub fn is_decorated() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Prints a line that says that something was done.
pub fn done(text: &str) {
    if is_decorated() {
        println!("\u{1b}[32m✓\u{1b}[0m {text}");
    } else {
        println!("{text}");
    }
}

/// Prints an error to standard error, once, in the shape of all our errors.
pub fn error(text: &str) {
    let now = clock::now().wall;
    let text = with_instants(text.strip_prefix("error: ").unwrap_or(text), |at| clock_time(at, now));
    if std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        eprintln!("\u{1b}[31merror:\u{1b}[0m {text}");
    } else {
        eprintln!("error: {text}");
    }
}

/// Prints an answer for machines.
pub fn json(value: &Value) {
    println!("{value:#}");
}

/// Prints rows under a head, or a sentence if there are none.
pub fn table(head: &[&str], rows: Vec<Vec<String>>, none: &str) {
    if rows.is_empty() {
        println!("{none}");
        return;
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(head.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for line in table.to_string().lines() {
        println!("{}", line.trim_end().strip_prefix(' ').unwrap_or(line));
    }
}

/// Returns a text of a JSON value: strings without quotes and without what a terminal would obey, their instants in the zone of
/// this machine, lists with commas, nothing as `-`.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => told(text),
        Value::Array(items) if items.is_empty() => "-".into(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        other => other.to_string(),
    }
}

/// Makes a text that somebody else wrote safe to print, its instants in the zone of this machine.
pub fn told(text: &str) -> String {
    let now = clock::now().wall;
    with_instants(&printable(text), |at| clock_time(at, now))
}

/// Reads a time of an answer.
pub fn time(value: &Value) -> Option<WallTime> {
    value.as_i64().map(WallTime::from_millis)
}

/// Writes a time as people read it at `now`, in the zone of this machine: the hour if it is within a day, else with its date.
pub fn clock_time(at: WallTime, now: WallTime) -> String {
    let zone = jiff::tz::TimeZone::try_system().unwrap_or(jiff::tz::TimeZone::UTC);
    let Some(zoned) = at.to_timestamp().map(|at| at.to_zoned(zone)) else {
        return "never".into();
    };
    let near = at.since(now).max(now.since(at)) < std::time::Duration::from_secs(20 * 3_600);
    zoned.strftime(if near { "%H:%M %Z" } else { "%Y-%m-%d %H:%M %Z" }).to_string()
}

/// Writes a number of bytes as people read it: `1.2 GiB`.
pub fn size(bytes: u64) -> String {
    let unit = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match unit.into_iter().find(|(_, size)| bytes >= *size) {
        Some((name, size)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(size);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

/// Writes a count with its noun: `1 live flow`, `3 live flows`.
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Writes how long ago something was.
pub fn ago(at: WallTime, now: WallTime) -> String {
    format!("{} ago", HumanDuration::rounded(now.since(at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_from_outside_cannot_speak_to_the_terminal() {
        let shown = text(&serde_json::json!(["ali\u{202e}ce", "\u{1b}[2Jbob", "new\nline"]));
        assert!(!shown.chars().any(|c| c.is_control() || c == '\u{202e}'), "{shown:?}");
        assert_eq!(text(&Value::Null), "-");
        assert!(
            !text(&serde_json::json!("since 2026-11-22T17:00:00Z")).contains("17:00:00Z"),
            "in the zone of this machine"
        );
    }

    #[test]
    fn sizes_and_counts_read_like_sentences() {
        assert_eq!([0, 1_023, 1_024, 1_288_490_189].map(size), ["0 B", "1023 B", "1.0 KiB", "1.2 GiB"]);
        assert_eq!([0, 1, 2].map(|n| count(n, "live flow")), ["0 live flows", "1 live flow", "2 live flows"]);
    }
}
