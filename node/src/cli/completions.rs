//! `postern completions`: what a shell needs to complete commands and options.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Outcome};

/// Write completions for a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  postern completions bash | sudo tee /etc/bash_completion.d/postern\n  postern completions zsh > ~/.zfunc/_postern"
)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Outcome {
        clap_complete::generate(self.shell, &mut Cli::command(), "postern", &mut std::io::stdout());
        Ok(ExitCode::SUCCESS)
    }
}
