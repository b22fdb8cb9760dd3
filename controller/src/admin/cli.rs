//! The commands of `postern-controller`.
//!
//! Exit codes: 0 done, 1 refused or failed, 2 not a command (clap's own).

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use serde_json::Value;

use super::{client, print, request::Request};
use crate::config::{self, Config};

mod break_glass;
mod care;
mod clock;
mod init;
mod machines;
mod people;
mod plan;
mod policy;
mod posture;
mod quarantine;
mod requests;
mod restraint;
mod revoke;
mod scim;
mod serve;

/// Postern's controller: signs people and services in, decides who may reach what, and tells the nodes.
#[derive(Debug, Parser)]
#[command(
    name = "postern-controller",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "First minutes:\n  postern-controller init --url https://ctl.corp.example\n  postern-controller serve\n  postern-controller user add you@corp.example --admin"
)]
struct Cli {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", env = "POSTERN_CONTROLLER_CONFIG", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
    /// Answer in JSON, for machines.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a configuration, an empty policy and the controller's keys.
    Init(init::Init),
    /// Run the controller.
    Serve(serve::Serve),
    /// Check controller.toml, the files that it names, and policy.toml.
    #[command(after_help = "Example:\n  postern-controller check --config /etc/postern-controller/controller.toml")]
    Check,
    /// The controller and every node at a glance: who is connected, what they enforce.
    #[command(
        after_help = "Example:\n  postern-controller status --json\n\nFlows are recorded on the nodes: postern-controller flows --to RESOURCE says on which."
    )]
    Status,
    /// What is measured and counted, in the Prometheus text format.
    #[command(after_help = "Example:\n  postern-controller metrics > /var/lib/node_exporter/postern.prom")]
    Metrics,
    /// Who and what is known here, and is not used.
    #[command(subcommand)]
    Identities(people::Identities),
    /// Local accounts, and people who signed in through a provider.
    #[command(subcommand)]
    User(people::User),
    /// Groups of local accounts.
    #[command(subcommand)]
    Group(people::Group),
    /// Enrolment tokens, with which servers join.
    #[command(subcommand)]
    Token(machines::Token),
    /// People and groups that the identity provider provisions.
    #[command(subcommand)]
    Scim(scim::Scim),
    /// Machines.
    #[command(subcommand)]
    Device(machines::Device),
    /// What device-management systems say of machines.
    #[command(subcommand)]
    Posture(posture::Posture),
    /// Login sessions.
    #[command(subcommand)]
    Session(machines::Session),
    /// Leases: what each session and service may reach now.
    #[command(subcommand)]
    Lease(machines::Lease),
    /// Let a tag (or the name) that a machine claims count.
    Approve(machines::Claims),
    /// Refuse a tag (or the name) that a machine claims, or take it away.
    Refuse(machines::Claims),
    /// Cut something everywhere, now: a session, device, subject, node or rule.
    Revoke(revoke::Revoke),
    /// Lift a revocation.
    Lift(revoke::Lift),
    /// Hold something: nothing in and nothing out until it is released.
    #[command(subcommand)]
    Quarantine(quarantine::Quarantine),
    /// Ask for a fresh sign-in, leave only some resources, end sessions; release.
    #[command(subcommand)]
    Restraint(restraint::Restraint),
    /// Open something past the rules, for a short time, loudly.
    #[command(subcommand)]
    BreakGlass(break_glass::BreakGlass),
    /// Requests for access for a time: list, approve, refuse.
    #[command(subcommand)]
    Request(requests::Requests),
    /// The policy document: check, plan, apply, show.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Why may, or may not, somebody reach something?
    Explain(policy::Explain),
    /// Where flows to something are recorded, and how to read them there.
    Flows(policy::Flows),
    /// Write a consistent copy of everything while the controller serves.
    Backup(care::Backup),
    /// Put a backup in the place of the database. Every login session ends.
    Restore(care::Restore),
    /// What time it is, after somebody set the clock.
    Clock(clock::ClockCommand),
    /// The audit log: verify it, follow it.
    #[command(subcommand)]
    Audit(care::Audit),
    /// The link that machines join with.
    #[command(after_help = "Example:\n  postern up \"$(postern-controller join-url)\" --token-file /run/token")]
    JoinUrl,
    /// Write a shell's completions to standard output.
    #[command(
        after_help = "Example:\n  postern-controller completions bash > /etc/bash_completion.d/postern-controller"
    )]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// What every command works with.
struct Desk {
    file: PathBuf,
    json: bool,
}

impl Desk {
    fn config(&self) -> anyhow::Result<Config> {
        Ok(Config::read(&self.file)?)
    }

    /// Asks the controller that serves.
    fn ask(&self, request: &Request) -> anyhow::Result<Value> {
        Ok(client::ask(&self.config()?.admin_socket, request)?)
    }

    /// Asks, and prints the answer: as JSON, or as `show` does it.
    fn ask_and(&self, request: &Request, show: impl FnOnce(&Value)) -> anyhow::Result<ExitCode> {
        let value = self.ask(request)?;
        self.show(&value, show);
        Ok(ExitCode::SUCCESS)
    }

    fn show(&self, value: &Value, show: impl FnOnce(&Value)) {
        if self.json { print::json(value) } else { show(value) }
    }
}

/// Describes every command, for the page of them in the documentation.
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let desk = Desk { file: cli.config, json: cli.json };
    match run(&desk, cli.command) {
        Ok(code) => code,
        Err(error) => {
            if desk.json {
                print::json(&serde_json::json!({ "error": told(&error) }));
            } else {
                print::error(&told(&error));
            }
            ExitCode::FAILURE
        }
    }
}

/// Writes an error with its causes, each once: an error for people often says its cause already.
fn told(error: &anyhow::Error) -> String {
    error
        .chain()
        .skip(1)
        .map(ToString::to_string)
        .fold(error.to_string(), |text, cause| if text.contains(&cause) { text } else { format!("{text}: {cause}") })
}

/// Runs a command as its words are typed, for tests.
#[cfg(test)]
pub(crate) fn typed(words: &[&str]) -> anyhow::Result<ExitCode> {
    let cli = Cli::try_parse_from(std::iter::once("postern-controller").chain(words.iter().copied()))?;
    run(&Desk { file: cli.config, json: cli.json }, cli.command)
}

fn run(desk: &Desk, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Init(command) => command.run(desk),
        Command::Serve(command) => command.run(desk),
        Command::Check => care::check(desk),
        Command::Status => care::status(desk),
        Command::Metrics => care::metrics(desk),
        Command::Identities(command) => command.run(desk),
        Command::User(command) => command.run(desk),
        Command::Group(command) => command.run(desk),
        Command::Token(command) => command.run(desk),
        Command::Scim(command) => command.run(desk),
        Command::Device(command) => command.run(desk),
        Command::Posture(command) => command.run(desk),
        Command::Session(command) => command.run(desk),
        Command::Lease(command) => command.run(desk),
        Command::Approve(command) => command.approve(desk),
        Command::Refuse(command) => command.refuse(desk),
        Command::Revoke(command) => command.run(desk),
        Command::Lift(command) => command.run(desk),
        Command::Quarantine(command) => command.run(desk),
        Command::Request(command) => command.run(desk),
        Command::Restraint(command) => command.run(desk),
        Command::BreakGlass(command) => command.run(desk),
        Command::Policy(command) => command.run(desk),
        Command::Explain(command) => command.run(desk),
        Command::Flows(command) => command.run(desk),
        Command::Backup(command) => command.run(desk),
        Command::Restore(command) => command.run(desk),
        Command::Clock(command) => command.run(desk),
        Command::Audit(command) => command.run(desk),
        Command::JoinUrl => desk.ask_and(&Request::JoinUrl, |value| println!("{}", print::text(&value["join_url"]))),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut self::command(), "postern-controller", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
pub(crate) use machines::standings;

#[cfg(test)]
mod tests;
