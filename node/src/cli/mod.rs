//! The `postern` command.
//!
//! ```text
//! arguments --clap--> [`Cli`] --> one file a command --local socket--> agent
//!                                 `run` is the agent itself
//! ```
//!
//! Exit codes: 0 it worked, 1 it did not (or the answer is no), 2 the command line or `node.toml` is wrong. What a person reads goes to
//! standard output, progress and errors to standard error; with `--json` standard output has JSON alone.

mod client;
mod completions;
mod down;
mod explain;
mod flows;
mod logout;
mod qr;
mod request;
mod resources;
mod run;
mod show;
mod status;
mod step_up;
mod up;
mod whois;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::{agent::api::SOCKET, config};

/// Identity-aware WireGuard overlay: a small door in front of each resource
#[derive(Debug, Parser)]
#[command(
    name = "postern",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  sudo postern up https://ctl.corp.example#k=4f9a...\n  postern resources\n  postern explain git.internal:22"
)]
pub struct Cli {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    command: Command,
}

/// Where things are.
#[derive(Debug, Clone, Args)]
pub(crate) struct Places {
    /// The configuration file [default: /etc/postern/node.toml]
    #[arg(long, global = true, value_name = "FILE", env = "POSTERN_CONFIG", help_heading = "Places")]
    config: Option<PathBuf>,
    /// Where the machine's identity is kept
    #[arg(long, global = true, value_name = "DIR", env = "POSTERN_STATE_DIR", default_value = config::DEFAULT_STATE, help_heading = "Places")]
    state_dir: PathBuf,
    /// Where what counts within one boot is kept
    #[arg(long, global = true, value_name = "DIR", env = "POSTERN_RUNTIME_DIR", default_value = config::DEFAULT_RUNTIME, help_heading = "Places")]
    runtime_dir: PathBuf,
    /// The agent's socket [default: postern.sock in the runtime directory]
    #[arg(long, global = true, value_name = "FILE", env = "POSTERN_SOCKET", help_heading = "Places")]
    socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

impl Places {
    fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.runtime_dir.join(SOCKET))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Connect this machine; join first if it has not yet
    Up(up::Up),
    /// Disconnect: remove tunnel, guard, routes and names; stay enrolled
    Down(down::Down),
    /// Show how the node is
    Status(status::Status),
    /// Show what this machine may reach
    Resources(resources::Resources),
    /// Show live flows, or records as they come
    Flows(flows::Flows),
    /// Tell why something may, or may not, be reached
    Explain(explain::Explain),
    /// Prove your sign-in anew for a resource that asks for it
    StepUp(step_up::StepUp),
    /// Ask for access for a time
    Request(request::Request),
    /// Tell who is behind a connection
    Whois(whois::Whois),
    /// Sign out on this machine and disconnect it
    Logout(logout::Logout),
    /// Run the agent in the foreground, for service managers
    Run(run::Run),
    /// Write completions for a shell
    Completions(completions::Completions),
    /// Run the packet path by itself, to measure it
    #[command(hide = true)]
    BenchPlane(crate::io::bench::BenchPlane),
}

/// What a command comes to.
pub(crate) type Outcome = Result<ExitCode, Failure>;

/// Why a command did not work, and so its exit code.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Exit code 1.
    Failed(String),
    /// Exit code 2.
    Usage(String),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(crate::agent::shell::host::chain(&error))
    }
}

impl From<config::ConfigError> for Failure {
    fn from(error: config::ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Runs the command line of this process.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print(); // nowhere else to say it
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let places = cli.places;
    let outcome = match cli.command {
        Command::Up(up) => up.run(&places),
        Command::Down(down) => down.run(&places),
        Command::Status(status) => status.run(&places),
        Command::Resources(resources) => resources.run(&places),
        Command::Flows(flows) => flows.run(&places),
        Command::Explain(explain) => explain.run(&places),
        Command::StepUp(step_up) => step_up.run(&places),
        Command::Request(request) => request.run(&places),
        Command::Whois(whois) => whois.run(&places),
        Command::Logout(logout) => logout.run(&places),
        Command::Run(run) => run.run(&places),
        Command::Completions(completions) => completions.run(),
        Command::BenchPlane(bench) => bench.run().map(|()| ExitCode::SUCCESS).map_err(Failure::from),
    };
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            let (text, code) = match failure {
                Failure::Failed(text) => (text, 1),
                Failure::Usage(text) => (text, 2),
            };
            show::error(&text, places.json);
            ExitCode::from(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_has_help_with_an_example() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for sub in command.get_subcommands() {
            let help = sub.clone().render_long_help().to_string();
            assert!(help.contains("Example"), "{}: {help}", sub.get_name());
            assert!(help.contains(&format!("postern {}", sub.get_name())), "{}", sub.get_name());
        }
    }
}
