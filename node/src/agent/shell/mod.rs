//! The shell.
pub mod dial;
pub mod link;
pub mod local;
pub mod tls;
