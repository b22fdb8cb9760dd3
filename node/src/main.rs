//! The `postern` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    postern_node::cli::main(std::env::args_os())
}
