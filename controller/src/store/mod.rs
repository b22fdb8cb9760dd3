//! What is durable: one transaction for each batch of changes, with the audit lines that record them.
//!
//! ```text
//! start:  Store::load --> Loaded --> stream::Core
//! later:  Effect::Store, Effect::Audit --actor--> Store::commit (one transaction, synced) --> audit file --> messages
//! backup: Store::backup (a consistent copy while running)      restore: backup::restore (a new epoch)
//! ```
//!
//! Invariants:
//! - After [`Store::commit`] returns, the changes survive a power cut; if it fails, none of them happened.
//! - One process writes the core's tables (a lock file beside the database); one task of it does.
//! - The database is checked when it is opened. A damaged one is refused with what to do, never repaired by guessing.
//!
//! Rejected: columns for every field. The core reads everything at start and decides from memory, so the database
//! answers no questions; records in JSON change with the code, and keys and constraints are columns.

pub mod backup;
mod sqlite;

use std::path::PathBuf;

use crate::{
    audit::{Head, Line},
    records::{Loaded, StoreChange},
};

pub use sqlite::SqliteStore;

/// Why the store did not do what it should. Nothing of the batch happened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full.
    #[error("the disk is full: nothing of this change was written; make room at {0} and start again")]
    Full(PathBuf),
    /// The database is damaged.
    #[error(
        "the database {path} is damaged: {what}; keep a copy of it and of its -wal file, then restore a backup with `postern-controller restore FILE`"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the check said.
        what: String,
    },
    /// It was written by a newer version.
    #[error("the database {0} was written by a newer version of this program: use that version")]
    Newer(PathBuf),
    /// Another process serves from this folder.
    #[error("another postern-controller serves from {0}: stop it first")]
    Locked(PathBuf),
    /// Anything else that the database says.
    #[error("the database {path} failed: {cause}")]
    Database {
        /// The file.
        path: PathBuf,
        /// What it says.
        cause: sqlx::Error,
    },
    /// A file beside it.
    #[error(transparent)]
    File(#[from] crate::serve::files::FileError),
}

/// Where the controller's durable state lives.
///
/// SQLite is the embedded default; the trait is the seam for a shared database with several controllers.
pub trait Store: Send + 'static {
    /// Reads everything.
    ///
    /// # Errors
    /// [`StoreError`]; a record that cannot be read is [`StoreError::Corrupt`].
    fn load(&mut self) -> impl Future<Output = Result<Loaded, StoreError>> + Send;

    /// Reads the audit chain's head, and the lines that may not be in the file yet.
    ///
    /// # Errors
    /// [`StoreError`].
    fn audit_state(&mut self) -> impl Future<Output = Result<(Head, Vec<Line>), StoreError>> + Send;

    /// Applies changes in order and records `lines`, which follow the head, in one durable transaction.
    ///
    /// # Errors
    /// [`StoreError`]; nothing happened then.
    fn commit(
        &mut self,
        changes: &[StoreChange],
        lines: &[Line],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}
