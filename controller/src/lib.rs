//! Postern's controller: sign-in, decisions, leases, and the streams to nodes.

pub mod admin;
pub mod audit;
pub mod config;
pub mod decision;
pub mod fuzzing;
pub mod identity;
pub mod records;
pub mod serve;
pub mod signals;
pub mod store;
pub mod stream;
pub mod web;
