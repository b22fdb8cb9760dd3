//! Postern's node: packet workers, agent, host integration and the `postern` command.

pub mod agent;
pub mod cli;
pub mod config;
pub mod host;
pub mod io;
pub mod posture;
