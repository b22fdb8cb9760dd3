//! `postern-controller posture`: what device-management systems say of machines; and how a machine's posture is shown.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Subcommand;
use postern_common::{posture::Facts, time::WallTime};
use serde_json::Value;

use super::Desk;
use crate::admin::{
    print::{self, text, time},
    request::Request,
};

/// The most bytes of one import: some hundred thousand machines.
const MAX_IMPORT: u64 = 32 << 20;

/// What device-management systems say of machines.
#[derive(Debug, Subcommand)]
pub(super) enum Posture {
    /// Take what a device-management system says, as JSON lines. Rules with `attested` take its word instead of the machine's.
    #[command(
        after_help = "Examples:\n  mdm-export --json | postern-controller posture import -\n  postern-controller posture import /var/lib/mdm/export.jsonl\n\nA line:\n  {\"serial\": \"PF3ABC12\", \"observed\": \"2026-11-22T08:00:00Z\", \"facts\": {\"disk_encrypted\": true}}\nInstead of \"serial\": \"device_key\" (base 64) or \"device\" (name or identifier)."
    )]
    Import {
        /// The file; `-` reads standard input.
        file: PathBuf,
    },
    /// Bind a serial number to a machine: what is imported for the serial counts for the machine.
    #[command(after_help = "Example:\n  postern-controller posture bind alice-laptop --serial PF3ABC12")]
    Bind {
        /// The machine's name or identifier.
        device: String,
        /// The serial number, as the device management knows it.
        #[arg(long)]
        serial: String,
    },
}

impl Posture {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        match self {
            Self::Import { file } => {
                let value = desk.ask(&Request::PostureImport { lines: read(&file)? })?;
                desk.show(&value, imported);
                let refused = value["refused_count"].as_u64().unwrap_or(0);
                Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Self::Bind { device, serial } => {
                let said = format!("{device} is the machine with the serial {serial}");
                desk.ask_and(&Request::PostureBind { device, serial }, |_| print::done(&said))
            }
        }
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    let mut lines = String::new();
    let source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).with_context(|| format!("cannot open {}", file.display()))?)
    };
    source
        .take(MAX_IMPORT + 1)
        .read_to_string(&mut lines)
        .with_context(|| format!("cannot read {}", file.display()))?;
    anyhow::ensure!(lines.len() as u64 <= MAX_IMPORT, "{} is larger than {}", file.display(), print::size(MAX_IMPORT));
    Ok(lines)
}

fn imported(value: &Value) {
    let taken = value["taken"].as_u64().unwrap_or(0);
    let changed = value["changed"].as_array().map_or(0, Vec::len) as u64;
    print::done(&format!("{} taken, {} with other facts than before", print::count(taken, "line"), changed));
    for refused in value["refused"].as_array().into_iter().flatten() {
        print::error(&format!("line {}: {}", text(&refused[0]), text(&refused[1])));
    }
    let told = value["refused"].as_array().map_or(0, Vec::len) as u64;
    let untold = value["refused_count"].as_u64().unwrap_or(0).saturating_sub(told);
    if untold > 0 {
        print::error(&format!("{} more were refused", print::count(untold, "line")));
    }
}

/// Shows a machine's posture in lines: who said what, how long ago, and what of it is not as rules ask.
pub(super) fn lines(posture: &Value, now: WallTime) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, who) in [("own", "says itself"), ("attested", "says its management")] {
        let report = &posture[key];
        let facts: Option<Facts> = serde_json::from_value(report["facts"].clone()).ok();
        let (Some(facts), Some(at)) = (facts, time(&report["observed_at"])) else { continue };
        lines.push(format!("{who}, {}:", print::ago(at, now)));
        lines.extend(facts.lines().into_iter().map(|(name, value)| format!("  {name:<18} {value}")));
    }
    if let Some(serial) = posture["serial"].as_str() {
        lines.push(format!("bound serial {serial}"));
    }
    for unmet in posture["unmet"].as_array().into_iter().flatten() {
        lines.push(format!("posture {}: {}", text(&unmet["posture"]), text(&unmet["what"])));
        lines.push(format!("  fix  {}", text(&unmet["fix"])));
    }
    if lines.is_empty() {
        lines.push("nothing is known of its posture".into());
    }
    lines.iter().map(|line| postern_common::diagnostics::printable(line)).collect()
}
