//! How things look: colour and symbols on a terminal alone, times as people read them, nothing that a terminal would obey.

use std::io::{IsTerminal, Write};

use postern_common::{
    diagnostics::printable,
    time::{WallTime, with_instants},
};

/// A mark before a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// It worked.
    Good,
    /// It did not.
    Bad,
    /// Look here.
    Watch,
}

/// Whether standard output may have colour.
pub(super) fn is_colourful() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Prints a line to standard output; a reader that has gone ends the process quietly, as `head` expects.
pub(super) fn line(text: &str) {
    if writeln!(std::io::stdout().lock(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// Prints a line with a mark.
pub(super) fn marked(mark: Mark, text: &str) {
    let (symbol, colour) = match mark {
        Mark::Good => ("\u{2713}", "32"),
        Mark::Bad => ("\u{2717}", "31"),
        Mark::Watch => ("!", "33"),
    };
    line(&format!("{} {text}", paint(symbol, colour)));
}

/// Colours a text on a terminal.
pub(super) fn paint(text: &str, colour: &str) -> String {
    if is_colourful() { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Prints JSON.
pub(super) fn json(value: &impl serde::Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => line(&text),
        Err(error) => error_line(&error.to_string()),
    }
}

/// Prints an error, one for each failure.
pub(super) fn error(text: &str, as_json: bool) {
    if as_json {
        json(&serde_json::json!({ "error": text }));
    } else {
        error_line(text);
    }
}

fn error_line(text: &str) {
    let text: Vec<String> = text.lines().map(safe).collect();
    let text = text.join("\n");
    let text = text.strip_prefix("error: ").unwrap_or(&text).to_owned();
    let colourful = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let label = if colourful { "\x1b[31merror\x1b[0m" } else { "error" };
    let _ = writeln!(std::io::stderr(), "{label}: {text}"); // nowhere else to say it
}

/// Makes what somebody else wrote safe to print, with its instants as [`time`] writes them.
pub(super) fn safe(text: &str) -> String {
    with_instants(&printable(text), time)
}

/// Writes a time as a person reads it, in the zone of this machine: `18:00 CET` today, with the date otherwise.
pub(super) fn time(time: WallTime) -> String {
    let zone = jiff::tz::TimeZone::try_system().unwrap_or(jiff::tz::TimeZone::UTC);
    time_in(&zone, time, jiff::Timestamp::now())
}

fn time_in(zone: &jiff::tz::TimeZone, time: WallTime, now: jiff::Timestamp) -> String {
    let Some(timestamp) = time.to_timestamp().filter(|_| time != WallTime::NEVER) else { return "no end".into() };
    let (then, now) = (timestamp.to_zoned(zone.clone()), now.to_zoned(zone.clone()));
    let form = if then.date() == now.date() { "%H:%M %Z" } else { "%Y-%m-%d %H:%M %Z" };
    then.strftime(form).to_string()
}

/// Writes a span: `41 min`.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Writes a size: `1.2 GiB`.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// Writes `1 peer`, `2 peers`.
pub(super) fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Aligns rows into columns, two spaces apart.
pub(super) fn columns(rows: &[Vec<String>], indent: &str) -> Vec<String> {
    let widths: Vec<usize> = (0..rows.iter().map(Vec::len).max().unwrap_or(0))
        .map(|at| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            format!("{indent}{}", cells.collect::<Vec<_>>().join("   ").trim_end())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect::<Vec<_>>();
        let lines = columns(&[row(&["git", "tcp/22"]), row(&["payroll-app", "tcp/443"])], "  ");
        assert_eq!(lines, ["  git           tcp/22", "  payroll-app   tcp/443"]);
    }

    #[test]
    fn sizes_and_spans_are_short() {
        assert_eq!(size(512), "512 B");
        assert_eq!(size(1_288_490_189), "1.2 GiB");
        assert_eq!(span(41 * 60), "41 min");
        assert_eq!(span(3), "3 s");
    }

    #[test]
    fn times_are_those_of_the_zone_and_say_which() {
        let berlin = jiff::tz::TimeZone::get("Europe/Berlin").expect("a zone");
        let now: jiff::Timestamp = "2026-11-22T14:00:00Z".parse().expect("a time");
        let at = |text: &str| {
            let at: jiff::Timestamp = text.parse().expect("a time");
            time_in(&berlin, WallTime::from_millis(at.as_millisecond()), now)
        };
        assert_eq!(at("2026-11-22T17:00:00Z"), "18:00 CET");
        assert_eq!(at("2026-07-01T22:30:00Z"), "2026-07-02 00:30 CEST");
        assert_eq!(time_in(&berlin, WallTime::NEVER, now), "no end");
        assert!(!safe("held since 2026-11-22T17:00:00Z: it scans").contains("17:00:00Z"));
    }

    #[test]
    fn a_name_cannot_write_escape_sequences() {
        assert!(!safe("a\x1b[31mb\u{202e}").contains('\x1b'));
    }
}
