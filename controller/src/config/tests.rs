//! Mistakes in `controller.toml`, one table.
use super::*;
