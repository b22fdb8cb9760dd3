//! The `postern-controller` command.

fn main() {}
