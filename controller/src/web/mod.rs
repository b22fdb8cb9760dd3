//! The pages that people see: sign-in, confirm a machine, my resources and machines, a configuration for a stock
//! WireGuard client.

pub mod doors;
pub mod event;
