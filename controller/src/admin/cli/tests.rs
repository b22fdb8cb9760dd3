//! The command line as people type it.

use clap::CommandFactory;

use super::*;

#[test]
fn the_command_line_is_well_formed_and_every_command_shows_an_example() {
    fn walk(command: &clap::Command, path: &str) {
        for sub in command.get_subcommands() {
            let path = format!("{path} {}", sub.get_name());
            if sub.get_subcommands().next().is_some() {
                walk(sub, &path);
            } else {
                let help = sub.clone().render_long_help().to_string();
                assert!(help.contains("Example"), "`{path}` has no example");
            }
        }
    }
    Cli::command().debug_assert();
    walk(&Cli::command(), "postern-controller");
}

#[test]
fn a_misspelt_command_is_told_what_was_meant() {
    let error = Cli::try_parse_from(["postern-controller", "polcy"]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("policy"), "{error}");
}
