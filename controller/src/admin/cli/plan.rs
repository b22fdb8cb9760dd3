//! How a plan is printed: one line for each change, with the live flows that it cuts.
//!
//! ```text
//!   + group:contractors   gains   wiki tcp/443   6 people
//!   - service:reporting   loses   db tcp/5432    2 machines, 1 live flow would be cut (reporting-1 -> db, 41 min, 1.2 GiB)
//!   ! group:ops would keep git tcp/22 only until 2026-12-01 00:00   bob@corp.example on bob-laptop
//!   + rule "staff use files"   limits   files to 2GiB down within 1 h, then a fresh sign-in is asked for   6 people
//! ```

use std::time::Duration;

use postern_common::diagnostics::{HumanDuration, printable};
use serde_json::Value;

use crate::{
    admin::print::{self, text},
    serve::clock,
};

/// How many groups of live flows one line names.
const NAMED: usize = 3;

/// Whether a plan is only a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tense {
    /// It has not been applied.
    Would,
    /// It was applied just now.
    Does,
}

/// Prints a plan as the controller answers it.
pub(super) fn show(plan: &Value, tense: Tense) {
    lines(plan, tense).iter().for_each(|line| println!("{}", printable(line)));
}

fn lines(plan: &Value, tense: Tense) -> Vec<String> {
    let empty = Vec::new();
    let changes = plan["lines"].as_array().unwrap_or(&empty);
    let what = |line: &Value| format!("{} {}", text(&line["resource"]), text(&line["services"]));
    let moved = |line: &Value| matches!(line["kind"].as_str(), Some("gains" | "loses"));
    let width = |of: &dyn Fn(&Value) -> String| {
        changes.iter().filter(|line| moved(line)).map(|line| of(line).chars().count()).max().unwrap_or(0)
    };
    let (via, whats) = (width(&|line| text(&line["via"])), width(&what));
    let mut shown = Vec::new();
    for line in changes {
        let (by, of) = (text(&line["via"]), what(line));
        let who = subjects(line);
        let (would, keep, have) = match tense {
            Tense::Would => ("would ", "keep", "have"),
            Tense::Does => ("", "keeps", "has"),
        };
        shown.push(match line["kind"].as_str() {
            Some("gains") => format!("  + {by:via$}   gains   {of:whats$}   {who}{}", later(line)),
            Some("loses") => {
                format!("  - {by:via$}   loses   {of:whats$}   {who}{}{}", flows(line, tense), later(line))
            }
            Some("until") => {
                let until = print::time(&line["until"]).map(|at| print::clock_time(at, clock::now().wall));
                format!("  ! {by} {would}{keep} {of} only until {}   {who}", until.unwrap_or_default())
            }
            Some("only_watched") => format!("  ! {by} {would}{have} {of} only by a rule that is watched   {who}"),
            Some("earned") => {
                format!("  + {by} {would}{have} {of} by right, not only by a rule that is watched   {who}")
            }
            other => format!("  ? {by}   {}   {of}   {who}", other.unwrap_or("changes")),
        });
    }
    shown.extend(limits(plan));
    if changes.is_empty() {
        shown.push("  nobody who is signed in now gains or loses anything".into());
    }
    for warning in plan["warnings"].as_array().into_iter().flatten() {
        shown.push(format!("  ! {}", text(warning)));
    }
    if tense == Tense::Would {
        shown.extend(gaps(&plan["live"]));
    }
    shown
}

/// Says which limits are new, gone or others.
fn limits(plan: &Value) -> Vec<String> {
    let said = |limit: &Value| {
        let rule = format!("rule \"{}\"", text(&limit["rule"]));
        let of = match limit["resources"].as_array().map(Vec::as_slice) {
            Some([_, ..]) => format!("{} to ", text(&limit["resources"])),
            Some([]) | None => "everything to ".into(),
        };
        let who = subjects(limit);
        match (limit["before"].as_str(), limit["after"].as_str()) {
            (None, Some(after)) => format!("  + {rule}   limits   {of}{after}   {who}"),
            (Some(before), None) => format!("  - {rule}   limits no more   {of}{before}   {who}"),
            (Some(before), Some(after)) => format!("  ! {rule}   limits   {of}{after}   (now {before})   {who}"),
            (None, None) => format!("  ? {rule}   limits   {of}   {who}"),
        }
        .trim_end()
        .to_owned()
    };
    plan["limits"].as_array().into_iter().flatten().map(said).collect()
}

/// Says whom a line is about: by name if they are few.
fn subjects(line: &Value) -> String {
    let names: Vec<String> = line["subjects"].as_array().into_iter().flatten().map(text).collect();
    if names.len() <= 2 {
        return names.join(", ");
    }
    let counted = [("people", "person", "people"), ("machines", "machine", "machines")];
    let counted = counted.into_iter().filter_map(|(key, one, many)| match line[key].as_u64() {
        Some(0) | None => None,
        Some(1) => Some(format!("1 {one}")),
        Some(number) => Some(format!("{number} {many}")),
    });
    counted.collect::<Vec<_>>().join(" and ")
}

fn later(line: &Value) -> &'static str {
    if line["at_once"].as_bool() == Some(false) { "   (when its conditions hold)" } else { "" }
}

fn flows(line: &Value, tense: Tense) -> String {
    let groups = line["flows"].as_array().map(Vec::as_slice).unwrap_or_default();
    let number: u64 = groups.iter().filter_map(|group| group["flows"].as_u64()).sum();
    if number == 0 {
        return String::new();
    }
    let one = |group: &Value| {
        let age = Duration::from_millis(group["oldest_ms"].as_u64().unwrap_or(0));
        let several = match group["flows"].as_u64() {
            Some(0 | 1) | None => String::new(),
            Some(number) => format!("{number} x "),
        };
        format!(
            "{several}{} -> {}, {}, {}",
            text(&group["from"]),
            text(&group["to"]),
            HumanDuration::rounded(age),
            print::size(group["bytes"].as_u64().unwrap_or(0))
        )
    };
    let mut named: Vec<String> = groups.iter().take(NAMED).map(one).collect();
    if groups.len() > NAMED {
        named.push("...".into());
    }
    let verb = if tense == Tense::Would { "would be" } else { "is" };
    format!(", {} {verb} cut ({})", print::count(number, "live flow"), named.join("; "))
}

/// Says what the count of live flows leaves out.
fn gaps(live: &Value) -> Vec<String> {
    let mut gaps = Vec::new();
    if text(&live["silent"]) != "-" {
        gaps.push(format!("  ! live flows to {} are not counted: no answer within a second", text(&live["silent"])));
    }
    if text(&live["away"]) != "-" {
        gaps.push(format!("  ! live flows to {} are not counted: not connected", text(&live["away"])));
    }
    if let Some(number @ 1..) = live["unlisted"].as_u64() {
        gaps.push(format!(
            "  ! {} more may be cut: the nodes had no room to name them",
            print::count(number, "live flow")
        ));
    }
    gaps
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plan_shows_limits_that_are_new_gone_or_others() {
        let limit = |rule: &str, resources: &[&str], before: Value, after: Value| {
            json!({ "rule": rule, "resources": resources, "before": before, "after": after, "people": 6, "machines": 0,
                    "subjects": ["a", "b", "c"] })
        };
        let plan = json!({
            "lines": [],
            "warnings": [],
            "limits": [
                limit("files", &["files", "git"], json!(null), json!("2GiB down within 1 h, then the session ends")),
                limit("files", &["files"], json!("9 connections within 1 h, then the session ends"), json!(null)),
                limit("scans", &[], json!("20 refused, then A"), json!("9 refused, then B")),
            ],
            "live": { "answered": 0, "silent": [], "away": [], "unlisted": 0 },
        });
        assert_eq!(
            lines(&plan, Tense::Would),
            [
                "  + rule \"files\"   limits   files, git to 2GiB down within 1 h, then the session ends   6 people",
                "  - rule \"files\"   limits no more   files to 9 connections within 1 h, then the session ends   6 people",
                "  ! rule \"scans\"   limits   everything to 9 refused, then B   (now 20 refused, then A)   6 people",
                "  nobody who is signed in now gains or loses anything",
            ]
        );
    }

    #[test]
    fn a_plan_names_who_gains_and_loses_and_which_live_flows_would_be_cut() {
        let flows = json!({ "from": "reporting-1", "to": "db", "service": "tcp/5432", "flows": 1,
                            "oldest_ms": 2_460_000, "bytes": 1_288_490_189u64 });
        let line = |kind: &str, via: &str, what: [&str; 2], flows: Value| {
            json!({ "kind": kind, "via": via, "resource": what[0], "services": [what[1]], "people": 0, "machines": 3,
                    "subjects": ["a", "b", "c"], "flows": flows, "at_once": true, "until": null })
        };
        let plan = json!({
            "lines": [
                line("gains", "group:contractors", ["wiki", "tcp/443"], json!([])),
                line("loses", "service:reporting", ["db", "tcp/5432"], json!([flows])),
            ],
            "warnings": [],
            "live": { "answered": 1, "silent": ["db-2"], "away": [], "unlisted": 0 },
        });
        assert_eq!(
            lines(&plan, Tense::Would),
            [
                "  + group:contractors   gains   wiki tcp/443   3 machines",
                "  - service:reporting   loses   db tcp/5432    3 machines, 1 live flow would be cut (reporting-1 -> db, 41 min, 1.2 GiB)",
                "  ! live flows to db-2 are not counted: no answer within a second",
            ]
        );
    }
}
