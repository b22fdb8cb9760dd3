//! The agent.
pub mod api;
pub mod core;
pub mod fuzzing;
pub mod shell;
pub mod state;
pub mod target;
