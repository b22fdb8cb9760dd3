//! `policy`, `explain`.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use postern_common::net::Service;

use super::{
    Desk,
    plan::{self, Tense},
};
use crate::{
    admin::{
        print::{self, text},
        request::Request,
    },
    serve::{self, clock, files},
};

/// The policy document.
#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Check a document and run its tests. Needs no controller.
    #[command(after_help = "Example:\n  postern-controller policy check next.toml")]
    Check {
        /// The document; the one that controller.toml names unless given.
        file: Option<PathBuf>,
    },
    /// Show who would gain and lose what, and which live flows would be cut.
    #[command(after_help = "Example:\n  postern-controller policy plan next.toml")]
    Plan {
        /// The document.
        file: PathBuf,
    },
    /// Make a document the policy in force, at once, on every node.
    #[command(
        after_help = "Example:\n  postern-controller policy apply policy.toml\n\nA document that does not check, or whose tests fail, changes nothing."
    )]
    Apply {
        /// The document.
        file: PathBuf,
    },
    /// Print the policy in force.
    #[command(after_help = "Example:\n  postern-controller policy show > now.toml")]
    Show,
}

fn read(file: &std::path::Path) -> anyhow::Result<(String, String)> {
    let text = files::read(file)?;
    let name = file.file_name().map_or_else(|| file.display().to_string(), |name| name.to_string_lossy().into_owned());
    Ok((name, text))
}

impl PolicyCommand {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check { file } => {
                let file = match file {
                    Some(file) => file,
                    None => desk.config()?.policy,
                };
                let (_, text) = read(&file)?;
                serve::parse_policy(&file, &text)?;
                desk.show(&serde_json::json!({ "good": true }), |_| {
                    print::done(&format!("{} checks, and its tests pass", file.display()));
                });
                Ok(ExitCode::SUCCESS)
            }
            Self::Plan { file } => {
                let shown = file.display().to_string();
                let (name, text) = read(&file)?;
                desk.ask_and(&Request::PolicyPlan { file: name, text }, |value| {
                    plan::show(&value["plan"], Tense::Would);
                    match value["tests"].as_u64() {
                        Some(0) | None => print!("The document has no tests. "),
                        Some(tests) => print!("{} passed. ", print::count(tests, "test")),
                    }
                    println!("Apply with: postern-controller policy apply {shown}");
                })
            }
            Self::Apply { file } => {
                let (name, text) = read(&file)?;
                let said = format!("{name} is in force");
                desk.ask_and(&Request::PolicyApply { file: name, text }, |value| {
                    plan::show(&value["plan"], Tense::Does);
                    print::done(&format!("{said}: revision {}", crate::admin::print::text(&value["revision"])));
                })
            }
            Self::Show => desk.ask_and(&Request::PolicyShow, |value| {
                let applied = print::time(&value["policy_applied"]);
                let applied = applied.map_or_else(String::new, |at| print::clock_time(at, clock::now().wall));
                eprintln!(
                    "# revision {}, applied {applied} by {}",
                    text(&value["policy_revision"]),
                    text(&value["policy_applied_by"])
                );
                print!("{}", value["policy_text"].as_str().unwrap_or_default());
            }),
        }
    }
}

/// Why may, or may not, somebody reach something?
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  postern-controller explain --as service:billing --to db:5432\n  postern-controller explain --as alice@corp.example/alice-laptop --to wiki"
)]
pub(super) struct Explain {
    /// Who: a person, PERSON/MACHINE, service:NAME, or a machine.
    #[arg(long = "as", value_name = "WHO")]
    subject: String,
    /// What: a resource, a machine or an overlay address, with :PORT or :PROTOCOL/PORT if one is asked about.
    #[arg(long, value_name = "WHAT")]
    to: String,
}

/// Where are flows recorded?
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  postern-controller flows --to db\n\nFlows are recorded on the machines at their ends, not at the controller. This says on which, and with which command\nthey are read there."
)]
pub(super) struct Flows {
    /// A resource, a machine or an overlay address.
    #[arg(long, value_name = "WHAT")]
    to: String,
}

impl Flows {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let (to, _) = split_port(&self.to);
        desk.ask_and(&Request::Places { to: to.clone() }, |value| {
            println!("Flows to {to} are recorded on {}. There:", text(&value["recorded_at"]));
            println!("  sudo postern flows                 those that live now");
            println!("  sudo postern flows -f --denied     refusals, as they come");
        })
    }
}

/// Takes `db:5432`, `db:udp/53` or `[fd00::1]:443` apart.
fn split_port(to: &str) -> (String, Option<Service>) {
    let service = |port: &str| {
        let text = if port.contains('/') || port == "icmp" { port.to_owned() } else { format!("tcp/{port}") };
        text.parse().ok()
    };
    if let Some((inside, port)) = to.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        return (inside.to_owned(), service(port));
    }
    match to.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && service(port).is_some() => (name.to_owned(), service(port)),
        _ => (to.trim_matches(['[', ']']).to_owned(), None),
    }
}

impl Explain {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let (to, service) = split_port(&self.to);
        let value = desk.ask(&Request::Explain { subject: self.subject, to, service })?;
        let allowed = value["allowed"].as_bool() == Some(true);
        desk.show(&value, |value| {
            let verdict = if allowed { "allowed" } else { "denied " };
            println!("{verdict}  {} -> {}", text(&value["who"]), text(&value["what"]));
            let place = value["location"].as_str().map(|at| format!("   ({at})")).unwrap_or_default();
            println!("reason   {}{place}", text(&value["reason"]));
            for fact in value["because"].as_array().into_iter().flatten() {
                println!("because  {}", text(fact));
            }
            if let Some(fix) = value["fix"].as_str() {
                println!("fix      {}", print::told(fix));
            }
            if let Some(until) = print::time(&value["valid_until"]) {
                println!("until    {}", print::clock_time(until, clock::now().wall));
            }
            if !allowed && text(&value["recorded_at"]) != "-" {
                println!("attempts sudo postern flows -f --denied   on {}", text(&value["recorded_at"]));
            }
        });
        Ok(if allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_taken_apart_as_people_write_it() {
        for (text, name, service) in [
            ("db:5432", "db", Some("tcp/5432")),
            ("dns:udp/53", "dns", Some("udp/53")),
            ("wiki", "wiki", None),
            ("fd00::1", "fd00::1", None),
            ("[fd00::1]:443", "fd00::1", Some("tcp/443")),
        ] {
            assert_eq!(split_port(text), (name.into(), service.map(|s| s.parse().unwrap())), "{text}");
        }
    }
}
