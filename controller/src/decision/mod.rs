//! The policy decision point. Being written.
