//! Files of the controller: written whole or not at all, keys for their owner alone.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The mode of files that hold secrets.
pub const SECRET: u32 = 0o600;
/// The mode of files that may be read by everybody.
pub const PUBLIC: u32 = 0o644;
/// The longest file that is read, in bytes: the longest policy document.
const MAX_FILE: u64 = postern_common::diagnostics::MAX_FILE_BYTES as u64;

/// Why a file cannot be used. The environment or the operator can mend it.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is not there.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// It is there already, and would be overwritten.
    #[error("{0} exists already; it is not overwritten")]
    Exists(PathBuf),
    /// Others may read a secret.
    #[error("{path} can be read by others (mode {mode:04o}): chmod 600 {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The disk is full.
    #[error("cannot write {0}: the disk is full; nothing was changed")]
    Full(PathBuf),
    /// The system refused.
    #[error("cannot {action} {path}: {cause}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |cause| match cause.kind() {
        io::ErrorKind::NotFound if action == "read" => FileError::Missing(path),
        io::ErrorKind::AlreadyExists => FileError::Exists(path),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FileError::Full(path),
        _ => FileError::Io { action, path, cause },
    }
}

/// Reads a text file.
///
/// # Errors
/// [`FileError`] if it is missing, too long, not UTF-8 or not readable.
pub fn read(path: &Path) -> Result<String, FileError> {
    let size = fs::metadata(path).map_err(failed("read", path))?.len();
    if size > MAX_FILE {
        return Err(failed("read", path)(io::Error::other(format!("{size} bytes are more than {MAX_FILE}"))));
    }
    fs::read_to_string(path).map_err(failed("read", path))
}

/// Reads a text file that nobody but its owner may read.
///
/// # Errors
/// [`FileError::Open`] if others may read or write it, and as [`read`].
pub fn read_secret(path: &Path) -> Result<String, FileError> {
    let mode = fs::metadata(path).map_err(failed("read", path))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::Open { path: path.to_owned(), mode });
    }
    read(path)
}

/// Writes a file that must not exist yet, durably.
///
/// # Errors
/// [`FileError::Exists`] if it does; a file that could not be written whole is removed again.
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed("write", path))?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    written.map_err(|error| {
        drop(fs::remove_file(path));
        failed("write", path)(error)
    })?;
    sync_folder(path)
}

/// Replaces a file: readers see the old content or the new one, also after a crash.
///
/// # Errors
/// [`FileError`]; the old file then stands.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let next = path.with_file_name(name);
    drop(fs::remove_file(&next)); // of an earlier crash
    write_new(&next, content, mode)?;
    fs::rename(&next, path).map_err(failed("write", path))?;
    sync_folder(path)
}

/// Makes a folder for its owner alone, and its parents. One that exists keeps its mode.
///
/// # Errors
/// [`FileError::Io`] if the system refuses.
pub fn make_private_folder(path: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make the folder", path))
}

/// Tells whether files can be made in a folder, by making one.
///
/// # Errors
/// [`FileError`] if not.
pub fn check_writable(dir: &Path) -> Result<(), FileError> {
    let probe = dir.join(format!(".writable-{}", std::process::id()));
    drop(fs::remove_file(&probe));
    let made = write_new(&probe, b"x", SECRET);
    drop(fs::remove_file(&probe));
    made
}

fn sync_folder(path: &Path) -> Result<(), FileError> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync the folder of", path))
}
