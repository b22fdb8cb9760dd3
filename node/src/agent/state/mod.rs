//! What the agent keeps on disk, and in which of two places.
//!
//! ```text
//! state directory (/var/lib/postern)            runtime directory (/run/postern, memory-backed)
//!   lock                 one agent at a time      grants      SavedGrants: what was enforced; within one boot
//!   identity             device key, WireGuard    postern.sock
//!                        keys, enrolment
//!   position             mark: newest position
//!   sealing/{key,CACHEDIR.TAG}  the sealing key
//! ```
//!
//! Every file is sealed ([`seal`]) and replaced atomically ([`files`]). Grants count only if they are of this boot and
//! if their position equals the mark in the *other* directory: whoever puts an old copy of either back gets a node that
//! is closed until the controller has spoken. Whoever copies the state directory without the sealing key (backup tools
//! skip a folder that has a `CACHEDIR.TAG`; or the key is a systemd credential) gets nothing to read.
//!
//! A file that cannot be read is kept aside under another name and reported: it is never overwritten, and the agent does
//! not go on as if the machine had never joined.
//!
//! Rejected: one directory for both. A copy of it, taken before a revocation and put back within the same boot, would
//! open what was closed.

pub mod files;
mod fuzzing;
pub mod identity_file;
pub mod seal;
pub mod writer;

pub use self::fuzzing::fuzz_sealed;

use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use postern_common::{
    grant::{Position, SavedGrants},
    id::BootId,
};

use self::{
    files::FileError,
    identity_file::IdentityFile,
    seal::{SealKey, Unsealable},
};
use super::core::identity::Identity;

const IDENTITY: &str = "identity";
const POSITION: &str = "position";
const GRANTS: &str = "grants";

/// What is wrong with the agent's files, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory or a file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another agent runs with the same state.
    #[error(
        "another postern agent already runs with {}: use `postern status`, or give this one its own --state-dir and --runtime-dir", .0.display()
    )]
    Locked(PathBuf),
    /// A file is damaged, or sealed with another key.
    #[error(
        "{} cannot be read: {reason}\nThe file was kept as {}. Put it (or its sealing key) back from a copy, or join again with `postern up`", path.display(), kept.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where it is now.
        kept: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file is damaged and could not even be kept aside.
    #[error("{} cannot be read ({reason}) nor set aside: {source}", path.display())]
    CorruptAndStuck {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// Why it could not be set aside.
        source: io::Error,
    },
    /// The identity is there and the key that seals it is not.
    #[error(
        "{} is there but its sealing key {} is not: put the key back from where it was kept apart, or remove the state directory and join again", identity.display(), key.display()
    )]
    KeyMissing {
        /// The sealed file.
        identity: PathBuf,
        /// Where its key should be.
        key: PathBuf,
    },
    /// The kernel does not tell its boot.
    #[error("cannot read the boot id from {path}: {reason}")]
    Boot {
        /// Where it should stand.
        path: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// The agent's two directories, locked for this process.
#[derive(Debug)]
pub struct State {
    state: PathBuf,
    runtime: PathBuf,
    key: SealKey,
    _locks: [File; 2],
}

/// What was found at the start.
#[derive(Debug)]
pub struct Found {
    /// Who the machine is, if it ever ran.
    pub identity: Option<Identity>,
    /// What was enforced before.
    pub saved: Option<SavedGrants>,
    /// The mark.
    pub mark: Option<Position>,
    /// Files of the past that count for nothing and why: for the log.
    pub ignored: Vec<String>,
}

impl State {
    /// Makes the directories if need be, locks them, and reads or makes the sealing key.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open(state: &Path, runtime: &Path) -> Result<Self, StateError> {
        files::make_directory(state, 0o700)?;
        files::make_directory(runtime, 0o755)?;
        let locks = [lock(state)?, lock(runtime)?];
        let key = SealKey::load_or_make(state, &state.join(IDENTITY))?;
        Ok(Self { state: state.to_owned(), runtime: runtime.to_owned(), key, _locks: locks })
    }

    /// Reads everything.
    ///
    /// # Errors
    /// [`StateError::Corrupt`] if the identity cannot be read. Grants or a mark that cannot be read only mean that the
    /// doors stay closed until the controller has spoken.
    pub fn load(&self) -> Result<Found, StateError> {
        let mut ignored = Vec::new();
        let identity = self.read_identity()?;
        let mark = self.read_lenient::<Position>(&self.state, POSITION, &mut ignored)?;
        let saved = self.read_lenient::<SavedGrants>(&self.runtime, GRANTS, &mut ignored)?;
        Ok(Found { identity, saved, mark, ignored })
    }

    fn read_identity(&self) -> Result<Option<Identity>, StateError> {
        let path = self.state.join(IDENTITY);
        let Some(sealed) = files::read(&path)? else { return Ok(None) };
        let read = self.key.open(IDENTITY, &sealed).map_err(|error: Unsealable| error.to_string()).and_then(|plain| {
            let file: IdentityFile = serde_json::from_slice(&plain).map_err(|error| error.to_string())?;
            Ok(file.into_identity())
        });
        read.map(Some).map_err(|reason| set_aside(path, reason))
    }

    fn read_lenient<T: serde::de::DeserializeOwned>(
        &self,
        directory: &Path,
        name: &str,
        ignored: &mut Vec<String>,
    ) -> Result<Option<T>, StateError> {
        let path = directory.join(name);
        let Some(sealed) = files::read(&path)? else { return Ok(None) };
        let read = self
            .key
            .open(name, &sealed)
            .map_err(|error| error.to_string())
            .and_then(|plain| serde_json::from_slice(&plain).map_err(|error| error.to_string()));
        match read {
            Ok(value) => Ok(Some(value)),
            Err(reason) => {
                ignored.push(set_aside(path, reason).to_string());
                Ok(None)
            }
        }
    }

    /// Writes the identity durably.
    ///
    /// # Errors
    /// [`FileError`], and the former file stays.
    pub fn write_identity(&self, identity: &Identity) -> Result<(), FileError> {
        let file = IdentityFile::from_identity(identity);
        let plain = zeroize::Zeroizing::new(serde_json::to_vec(&file).expect("an identity has a JSON form"));
        files::replace(&self.state, IDENTITY, &self.key.seal(IDENTITY, &plain))
    }

    /// Writes the grants, then the mark that makes them count.
    ///
    /// # Errors
    /// [`FileError`]; what is on disk then does not fit together and counts for nothing.
    pub fn write_grants(&self, saved: &SavedGrants) -> Result<(), FileError> {
        let plain = zeroize::Zeroizing::new(serde_json::to_vec(saved).expect("grants have a JSON form"));
        let mark = serde_json::to_vec(&saved.position).expect("a position has a JSON form");
        files::replace(&self.runtime, GRANTS, &self.key.seal(GRANTS, &plain))?;
        files::replace(&self.state, POSITION, &self.key.seal(POSITION, &mark))
    }

    /// Removes what is saved of grants: a restart begins closed.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn remove_grants(&self) -> Result<(), FileError> {
        files::remove(&self.runtime, GRANTS)?;
        files::remove(&self.state, POSITION)
    }
}

fn set_aside(path: PathBuf, reason: String) -> StateError {
    match files::set_aside(&path) {
        Ok(kept) => StateError::Corrupt { path, kept, reason },
        Err(source) => StateError::CorruptAndStuck { path, reason, source },
    }
}

/// Locks a directory for this process; the kernel lets go of it however the process ends.
fn lock(directory: &Path) -> Result<File, StateError> {
    let file = files::open_private(&directory.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StateError::Locked(directory.to_owned())),
        Err(TryLockError::Error(source)) => Err(FileError::new("lock", &directory.join("lock"), source).into()),
    }
}

/// Tells whether an agent holds the lock of `state`.
pub fn is_locked(state: &Path) -> bool {
    match File::open(state.join("lock")) {
        Ok(file) => matches!(file.try_lock(), Err(TryLockError::WouldBlock)),
        Err(_) => false,
    }
}

/// Reads the kernel's boot id.
///
/// # Errors
/// [`StateError::Boot`].
pub fn boot_id() -> Result<BootId, StateError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text =
        std::fs::read_to_string(PATH).map_err(|error| StateError::Boot { path: PATH, reason: error.to_string() })?;
    let mut bytes = [0; 16];
    hex::decode_to_slice(text.trim().replace('-', ""), &mut bytes)
        .map_err(|_| StateError::Boot { path: PATH, reason: "it is not a UUID".into() })?;
    Ok(BootId::from_bytes(bytes))
}

#[cfg(test)]
mod tests;
