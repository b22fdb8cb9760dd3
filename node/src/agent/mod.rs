//! The agent.
pub mod core;
pub mod state;
pub mod target;
