//! The `postern-controller` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    postern_controller::admin::cli::main()
}
