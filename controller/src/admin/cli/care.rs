//! `check`, `status`, `backup`, `restore`, `audit`.

use std::{
    io::{BufRead, BufReader, Seek},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{Args, Subcommand};
use postern_common::diagnostics::HumanDuration;
use serde_json::Value;

use super::{Desk, machines};
use crate::{
    admin::{
        client,
        print::{self, text},
        request::Request,
    },
    audit,
    serve::{self, clock, files},
    store::{SqliteStore, Store, backup},
    stream::BUCKETS_MS,
};

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

/// Checks everything that `serve` reads, and tells every mistake.
pub(super) fn check(desk: &Desk) -> anyhow::Result<ExitCode> {
    let config = desk.config()?;
    let mut wrong = config.check_files();
    match files::read(&config.policy) {
        Ok(text) => {
            if let Err(error) = serve::parse_policy(&config.policy, &text) {
                wrong.push(error.to_string());
            }
        }
        Err(error) => wrong.push(error.to_string()),
    }
    if desk.json {
        print::json(&serde_json::json!({ "good": wrong.is_empty(), "errors": wrong }));
    } else if wrong.is_empty() {
        print::done(&format!("{} and {} check", config.file.display(), config.policy.display()));
    } else {
        wrong.iter().for_each(|error| print::error(error));
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints what is measured and counted, in the Prometheus text format (version 0.0.4).
pub(super) fn metrics(desk: &Desk) -> anyhow::Result<ExitCode> {
    desk.ask_and(&Request::Status, |value| print!("{}", exposition(&value["core"])))
}

fn exposition(core: &Value) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let closing = &core["closing"];
    let name = "postern_closing_seconds";
    let help = "from accepting what closes something to the last node that enforces it";
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    for (bound, count) in BUCKETS_MS.iter().zip(closing["buckets"].as_array().into_iter().flatten()) {
        let _ = writeln!(text, "{name}_bucket{{le=\"{}\"}} {}", *bound as f64 / 1e3, number(count));
    }
    let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {}", number(&closing["count"]));
    let _ = writeln!(
        text,
        "{name}_sum {}\n{name}_count {}",
        number(&closing["sum_us"]) as f64 / 1e6,
        number(&closing["count"])
    );
    for (name, kind, help, value) in [
        (
            "postern_closing_max_seconds",
            "gauge",
            "the longest closing since the start",
            number(&closing["max_us"]) as f64 / 1e6,
        ),
        (
            "postern_closing_open",
            "gauge",
            "closings that some node has not enforced yet",
            number(&closing["open"]) as f64,
        ),
        (
            "postern_closing_interrupted_total",
            "counter",
            "closings that a node left before it answered: its leases end by themselves",
            number(&closing["interrupted"]) as f64,
        ),
        ("postern_nodes_connected", "gauge", "nodes with a stream", number(&core["connected"]) as f64),
        (
            "postern_nodes_current",
            "gauge",
            "nodes that enforce everything that they should",
            number(&core["current"]) as f64,
        ),
        ("postern_leases", "gauge", "live leases", number(&core["leases"]) as f64),
    ] {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
    for (counter, value) in core["counters"].as_object().into_iter().flatten() {
        let name = format!("postern_{counter}_total");
        if let Some((_, help)) = COUNTERS.iter().find(|(known, _)| known == counter) {
            let _ = writeln!(text, "# HELP {name} {help}");
        }
        let _ = writeln!(text, "# TYPE {name} counter\n{name} {}", number(value));
    }
    text
}

/// What each counter of [`crate::stream::Counters`] counts, in the words of its documentation.
const COUNTERS: [(&str, &str); 16] = [
    ("decisions", "evaluations of policy for one subject on one device"),
    ("snapshots", "snapshots sent to nodes"),
    ("deltas", "deltas sent to nodes"),
    ("delta_peers", "peers within sent deltas"),
    ("streams_refused", "streams of nodes refused"),
    ("messages_refused", "messages of nodes dropped because they made no sense or came too often"),
    ("rate_limited", "attempts turned away by a rate limit"),
    ("probes_refused", "address probes with a code that did not fit, for no stream, or out of order"),
    ("keys_refused", "keys that a node wanted to add beyond the number that a node may have"),
    ("postures_refused", "reports of posture that were forged, shown again, too large, or came too often"),
    ("signals_refused", "signals of other systems that were refused, or had no effect"),
    (
        "behaviour_refused",
        "reports of behaviour about somebody who has no such limit there now, or of a budget that is over",
    ),
    ("doors_forgotten", "doors to sign-ins from before a logout or revocation, forgotten for want of room"),
    ("tokens_refused", "platform tokens refused"),
    ("uses_refused", "first uses that a node told of and that no lease of the peer opens there"),
    ("places_listed", "walks over all machines for those that policy can name"),
];

/// Shows the controller and every node.
pub(super) fn status(desk: &Desk) -> anyhow::Result<ExitCode> {
    desk.ask_and(&Request::Status, |value| {
        let now = clock::now().wall;
        let (core, policy) = (&value["core"], &value["policy"]);
        let up = HumanDuration::rounded(Duration::from_secs(value["uptime_s"].as_u64().unwrap_or(0)));
        println!("{}   up {up}   policy revision {}", text(&value["url"]), text(&policy["revision"]));
        println!(
            "{} of {} machines connected, {} current; {} login sessions, {} leases, {} joins wait",
            text(&core["connected"]),
            text(&core["devices"]),
            text(&core["current"]),
            text(&core["sessions"]),
            text(&core["leases"]),
            text(&core["pending_joins"])
        );
        if let Some(count) = core["closing"]["count"].as_u64().filter(|count| *count > 0) {
            let ms = |key: &str| core["closing"][key].as_f64().unwrap_or(0.0) / 1e3;
            println!(
                "{} closed on every node: p50 {:.1} ms, p99 {:.1} ms, at most {:.1} ms",
                print::count(count, "change"),
                ms("p50_us"),
                ms("p99_us"),
                ms("max_us")
            );
        }
        if policy["document_differs"].as_bool() == Some(true) {
            println!(
                "! the policy document on disk is not the one in force: postern-controller policy plan, then apply"
            );
        }
        if text(&core["awaiting_approval"]) != "-" {
            println!("! waits for approval: {}", text(&core["awaiting_approval"]));
        }
        if text(&core["revoked_rules"]) != "-" {
            println!("! revoked rules: {}", text(&core["revoked_rules"]));
        }
        if value["clock"]["in_doubt"].as_bool() == Some(true) {
            println!("! the clock was set: conditions on time hold only where they do by both times (postern-controller clock)");
        }
        for view in value["break_glass"].as_array().into_iter().flatten() {
            let record = &view["record"];
            let until = print::time(&record["until"]).map_or_else(|| "-".into(), |at| print::clock_time(at, now));
            println!(
                "! BREAK-GLASS: {} is open to {} on {} until {until} ({}): {}",
                text(&record["resource"]),
                text(&view["subject_name"]),
                text(&view["machine"]),
                text(&record["by"]),
                text(&record["reason"])
            );
        }
        for stream in value["events"].as_array().into_iter().flatten() {
            if let Some(line) = event_stream_line(stream, now) {
                println!("{line}");
            }
        }
        if text(&core["quarantines"]) != "-" {
            println!("! in quarantine: {}", text(&core["quarantines"]));
        }
        if text(&core["restrained"]) != "-" {
            println!("! restrained: {} (postern-controller restraint list)", text(&core["restrained"]));
        }
        let rows = machines::device_rows(&value["nodes"], now);
        if !rows.is_empty() {
            println!();
            print::table(&["machine", "of", "tags", "addresses", ""], rows, "");
        }
    })
}

/// Says how a stream of security events is.
fn event_stream_line(stream: &Value, now: postern_common::time::WallTime) -> Option<String> {
    let at = |key: &str| print::time(&stream[key]).map(|at| print::clock_time(at, now));
    let (name, delivery) = (text(&stream["name"]), text(&stream["delivery"]));
    let status = text(&stream["status"]);
    let heard = at("last_heard").map_or_else(|| "never heard".to_owned(), |at| format!("last heard {at}"));
    if status != "enabled" {
        let why = stream["why"].as_str().map(|why| format!(": {}", postern_common::diagnostics::printable(why)));
        return Some(format!("! events {name}: the transmitter calls it {status}{}; {heard}", why.unwrap_or_default()));
    }
    match at("silent_since") {
        Some(since) => Some(format!("! events {name} ({delivery}): silent since {since}, {heard}: docs/signals.md")),
        None => Some(format!("events {name} ({delivery}): {heard}, {} taken since the start", text(&stream["taken"]))),
    }
}

/// Write a consistent copy of everything while the controller serves.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  postern-controller backup /var/backups/postern-2026-11-22.backup\n\nPrivate keys stay out unless --with-keys is given: who has them and the backup is the controller.\nThe audit log's files are not in it; copy them as they are."
)]
pub(super) struct Backup {
    /// The file to write; it must not exist.
    file: PathBuf,
    /// Put the signing key and the authority's key into it.
    #[arg(long)]
    with_keys: bool,
}

impl Backup {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let file = std::path::absolute(&self.file).context("cannot tell the current folder")?;
        let config = desk.config()?;
        let written = runtime()?.block_on(backup::write(&config, &file, self.with_keys))?;
        let record = Request::BackupWritten { file: file.display().to_string(), with_keys: self.with_keys };
        if let Err(error) = client::ask(&config.admin_socket, &record) {
            print::error(&format!("the backup is whole; it is not in the audit log, because {error}"));
        }
        desk.show(&serde_json::to_value(&written)?, |value| {
            print::done(&format!(
                "{}   {} bytes: the database, {}",
                text(&value["file"]),
                text(&value["bytes"]),
                text(&value["holds"])
            ));
            println!("Not in it, keep it elsewhere: {}", text(&value["left_out"]));
        });
        Ok(ExitCode::SUCCESS)
    }
}

/// What a restore brings back that nobody may want back.
const RETURNS: &str = "what was disabled, removed or revoked after the backup is enabled again, and passwords are those \
                       of then: do it again right after the start; `postern-controller audit tail -n 1000` shows what it was";

/// Put a backup in the place of the database.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  systemctl stop postern-controller\n  postern-controller restore /var/backups/postern-2026-11-22.backup\n\nA new epoch begins: every login session ends, machines stay enrolled. The present database is put aside.\nWhat was disabled, removed or revoked after the backup comes back enabled: revoke it again."
)]
pub(super) struct Restore {
    /// The backup.
    file: PathBuf,
}

impl Restore {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let runtime = runtime()?;
        if !desk.file.exists() {
            let text = runtime.block_on(backup::read_file(&self.file, "controller.toml"))?;
            let text =
                text.with_context(|| format!("{} does not exist, and the backup has none", desk.file.display()))?;
            if let Some(dir) = desk.file.parent() {
                std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
            }
            files::write_new(&desk.file, &text, files::PUBLIC)?;
        }
        let config = desk.config()?;
        let restored = runtime.block_on(backup::restore(&config, &self.file))?;
        let value = serde_json::to_value(&restored)?;
        desk.show(&value, |value| {
            print::done(&format!("restored, epoch {}: every login session has ended", text(&value["epoch"])));
            for (key, said) in [
                ("previous", "the database that was here lies at"),
                ("wrote", "written"),
                ("kept", "was here and stays"),
                ("missing", "put these keys there before serving:"),
            ] {
                if text(&value[key]) != "-" {
                    println!("  {said} {}", text(&value[key]));
                }
            }
            println!("! {RETURNS}");
        });
        Ok(ExitCode::SUCCESS)
    }
}

/// The audit log.
#[derive(Debug, Subcommand)]
pub(super) enum Audit {
    /// Check the chain from its first record to the database's head.
    #[command(
        after_help = "Example:\n  postern-controller audit verify\n  postern-controller audit verify --first 120394      # older files were archived"
    )]
    Verify {
        /// The number with which the log should begin.
        #[arg(long, default_value_t = 1, value_name = "N")]
        first: u64,
    },
    /// Print the last records.
    #[command(after_help = "Example:\n  postern-controller audit tail -f")]
    Tail {
        /// Go on with new records.
        #[arg(short, long)]
        follow: bool,
        /// How many records.
        #[arg(short = 'n', long, default_value_t = 10, value_name = "N")]
        lines: usize,
    },
}

impl Audit {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let config = desk.config()?;
        match self {
            Self::Verify { first } => {
                let database = config.database();
                let (head, outbox) =
                    runtime()?.block_on(async { SqliteStore::open_beside(&database).await?.audit_state().await })?;
                let report = audit::verify(&config.audit_dir(), head, &outbox, first)?;
                let findings: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
                let value = serde_json::json!({
                    "whole": report.is_whole(), "records": report.lines, "files": report.files, "findings": findings,
                    "last": report.last.seq, "head": hex::encode(report.last.hash),
                });
                desk.show(&value, |_| {
                    if report.is_whole() {
                        print::done(&format!("{} records in {} files, whole", report.lines, report.files));
                    } else {
                        findings.iter().for_each(|finding| print::error(finding));
                    }
                });
                Ok(if report.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Self::Tail { follow, lines } => tail(&config.audit_dir(), lines, follow, desk.json),
        }
    }
}

/// The most lines that `tail` shows of the past.
const MAX_TAIL: usize = 100_000;

fn tail(dir: &std::path::Path, wanted: usize, follow: bool, json: bool) -> anyhow::Result<ExitCode> {
    let mut last = std::collections::VecDeque::new();
    let all = audit::files(dir)?;
    // The newest files hold the last lines; files are read whole, oldest first, only as far back as needed.
    let mut begin = all.len();
    while begin > 0 && last.len() < wanted.min(MAX_TAIL) {
        begin -= 1;
        let mut lines = audit::Lines::open(&all[begin].1)?;
        let mut here = std::collections::VecDeque::new();
        while let Some(line) = lines.next_line()? {
            here.push_back(line);
            if here.len() > wanted.min(MAX_TAIL) {
                here.pop_front();
            }
        }
        here.extend(last);
        last = here;
    }
    while last.len() > wanted {
        last.pop_front();
    }
    last.iter().for_each(|line| show(line, json));
    let Some((mut number, mut path)) = all.last().cloned().filter(|_| follow) else { return Ok(ExitCode::SUCCESS) };
    let mut reader = BufReader::new(std::fs::File::open(&path)?);
    reader.seek(std::io::SeekFrom::End(0))?;
    let mut line = String::new();
    loop {
        if reader.read_line(&mut line)? > 0 {
            if line.ends_with('\n') {
                show(line.trim_end(), json);
                line.clear();
            }
            continue;
        }
        if let Some((next, next_path)) = audit::files(dir)?.into_iter().find(|(next, _)| *next > number) {
            (number, path) = (next, next_path);
            reader = BufReader::new(std::fs::File::open(&path)?);
            line.clear();
            continue;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn show(line: &str, json: bool) {
    let entry = serde_json::from_str::<audit::Entry>(line).ok().filter(|_| !json);
    let Some(entry) = entry else {
        println!("{line}");
        return;
    };
    let mut event = entry.event;
    let kind = event.as_object_mut().and_then(|event| event.remove("event"));
    let what = kind.as_ref().map(text).unwrap_or_else(|| text(&event["what"]["kind"]));
    let facts: Vec<String> = event
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| format!("{key}={}", fact(value)))
        .collect();
    println!("{} {:>6} {what}  {}", entry.at, entry.seq, postern_common::diagnostics::printable(&facts.join(" ")));
}

fn fact(value: &Value) -> String {
    match value {
        Value::String(text) if text.contains(' ') || text.is_empty() => format!("{text:?}"),
        Value::Object(_) => value.to_string(),
        other => text(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_a_histogram_with_cumulative_buckets_and_every_counter() {
        let core = serde_json::json!({
            "closing": { "count": 3, "buckets": [0, 1, 1, 2], "sum_us": 34_500, "max_us": 20_000, "open": 1 },
            "connected": 7,
            "counters": { "decisions": 12 },
        });
        let text = exposition(&core);
        for line in [
            "postern_closing_seconds_bucket{le=\"0.002\"} 1",
            "postern_closing_seconds_bucket{le=\"0.01\"} 2",
            "postern_closing_seconds_bucket{le=\"+Inf\"} 3",
            "postern_closing_seconds_sum 0.0345",
            "postern_closing_seconds_count 3",
            "postern_nodes_connected 7",
            "postern_decisions_total 12",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
    }

    #[test]
    fn status_says_of_each_stream_of_events_when_it_was_heard_and_that_it_is_silent() {
        let now = postern_common::time::WallTime::from_millis(1_795_424_400_000);
        let at = |seconds: i64| serde_json::to_value(now.as_millis() - seconds * 1_000).expect("a number");
        let stream = |further: Value| {
            let mut stream = serde_json::json!({"name": "corp", "delivery": "push", "last_heard": at(60), "silent_since": null,
                "silent_after_s": 600, "status": "enabled", "why": null, "taken": 7, "replayed": 0, "remembered": 7});
            for (key, value) in further.as_object().expect("an object") {
                stream[key] = value.clone();
            }
            event_stream_line(&stream, now).expect("a line")
        };
        let good = stream(serde_json::json!({}));
        assert!(
            good.starts_with("events corp (push): last heard ") && good.ends_with(", 7 taken since the start"),
            "{good}"
        );
        let never = stream(serde_json::json!({"last_heard": null, "taken": 0}));
        assert_eq!(never, "events corp (push): never heard, 0 taken since the start");
        let silent = stream(serde_json::json!({"silent_since": at(30)}));
        assert!(
            silent.starts_with("! events corp (push): silent since ") && silent.contains(", last heard "),
            "{silent}"
        );
        let paused = stream(serde_json::json!({"status": "paused", "why": "tired\u{1b}[2J", "silent_since": at(30)}));
        assert!(paused.starts_with("! events corp: the transmitter calls it paused: tired"), "{paused}");
        assert!(paused.contains("last heard") && !paused.contains('\u{1b}'), "{paused}");
    }

    #[test]
    fn every_metric_says_what_it_is_and_is_in_the_documentation() {
        let counters = serde_json::to_value(crate::stream::Counters::default()).expect("numbers");
        let text = exposition(&serde_json::json!({ "counters": counters }));
        let page = include_str!("../../../../docs/records.md");
        let metrics: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        assert!(metrics.len() > 7 + 10, "{text}");
        for metric in metrics {
            assert!(text.contains(&format!("# HELP {metric} ")), "{metric} says not what it is");
            assert!(page.contains(&format!("`{metric}`")), "{metric} is not in docs/records.md");
        }
    }
}
