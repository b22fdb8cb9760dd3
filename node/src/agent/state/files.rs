//! Files that are whole or not there: written beside, synced, renamed, and the directory synced (a crash at any point
//! leaves the old file or the new one). Mode 0600.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The most bytes of a file that is read.
pub const MAX_FILE_BYTES: u64 = 128 << 20;
const MAX_KEPT_ASIDE: u32 = 100;

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {}", path.display(), describe(source))]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    /// Makes the error of doing `action` to `path`.
    pub fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: path.to_owned(), source }
    }
}

/// Says what to do about the errors that a person can do something about.
fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full; nothing was lost, free some space and postern goes on".into()
        }
        io::ErrorKind::PermissionDenied => "permission denied; run it as root (sudo postern ...)".into(),
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only; choose another --state-dir".into(),
        _ => error.to_string(),
    }
}

/// Makes a directory with `mode` if it is not there, and refuses one in which somebody else may write: files are replaced
/// there by root, and a link of somebody else's in the place of one would lead that write anywhere.
///
/// A folder above it in which everybody may write is made sticky first, if it is root's or our own (a Kubernetes `emptyDir` is such a
/// one): otherwise anybody could move this directory away and put another one there. Somebody else's is refused.
///
/// # Errors
/// [`FileError`].
pub fn make_directory(path: &Path, mode: u32) -> Result<(), FileError> {
    let failed = |error| FileError::new("make the directory", path, error);
    keep_in_place(path)?;
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed)?;
    let found = fs::metadata(path).map_err(failed)?;
    let own = own_user().map_err(failed)?;
    let refused = |why: String| Err(FileError::new("use the directory", path, io::Error::other(why)));
    if found.uid() != 0 && found.uid() != own {
        return refused(format!(
            "it belongs to user {}, who could put links there: chown it, or choose another",
            found.uid()
        ));
    }
    if found.mode() & 0o022 != 0 {
        let mode = found.mode() & 0o7777;
        return refused(format!("others may write in it (mode {mode:o}) and could put links there: chmod go-w it"));
    }
    Ok(())
}

/// Returns the effective user.
fn own_user() -> io::Result<u32> {
    Ok(fs::metadata("/proc/self")?.uid())
}

/// Makes sure that nobody else can take a directory's name away from it.
fn keep_in_place(path: &Path) -> Result<(), FileError> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
    let Ok(found) = fs::metadata(parent) else { return Ok(()) }; // it is made with the directory, for us alone to write in
    if found.mode() & 0o002 == 0 {
        return Ok(());
    }
    let failed = |error| FileError::new("make sticky the directory", parent, error);
    if found.uid() != 0 && found.uid() != own_user().map_err(failed)? {
        let why = format!("everybody may write in it, and it belongs to user {}: choose another", found.uid());
        return Err(FileError::new("use the directory", parent, io::Error::other(why)));
    }
    if found.mode() & 0o1000 == 0 {
        fs::set_permissions(parent, fs::Permissions::from_mode((found.mode() & 0o7777) | 0o1000)).map_err(failed)?;
    }
    Ok(())
}

/// Opens a private file for reading and writing, made if need be.
///
/// # Errors
/// [`FileError`].
pub fn open_private(path: &Path) -> Result<File, FileError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| FileError::new("open", path, error))
}

/// Reads a whole file; `None` if it is not there.
///
/// # Errors
/// [`FileError`], also for a file beyond [`MAX_FILE_BYTES`].
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let failed = |error| FileError::new("read", path, error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(failed(io::Error::other("it is far too long to be one of postern's files")));
    }
    Ok(Some(bytes))
}

/// Replaces `directory/name` by a file with these contents, durably.
///
/// # Errors
/// [`FileError`]; the former file is untouched then.
pub fn replace(directory: &Path, name: &str, contents: &[u8]) -> Result<(), FileError> {
    let beside = directory.join(format!(".{name}.new"));
    let path = directory.join(name);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        sync_directory(directory)
    })();
    written.map_err(|error| {
        let _ = fs::remove_file(&beside); // it may not even be there
        FileError::new("write", &path, error)
    })
}

/// Removes `directory/name` durably; one that is not there is fine.
///
/// # Errors
/// [`FileError`].
pub fn remove(directory: &Path, name: &str) -> Result<(), FileError> {
    let path = directory.join(name);
    match fs::remove_file(&path).and_then(|()| sync_directory(directory)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::new("remove", &path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Renames a file to `NAME.corrupt-N` beside itself and returns the new path.
///
/// # Errors
/// The rename's, or that there are too many of them already.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for number in 1..=MAX_KEPT_ASIDE {
        let kept = path.with_file_name(format!("{name}.corrupt-{number}"));
        if !kept.exists() {
            fs::rename(path, &kept)?;
            return Ok(kept);
        }
    }
    Err(io::Error::other(format!("{MAX_KEPT_ASIDE} damaged copies are kept already: look at them and remove them")))
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").mode() & 0o7777
    }

    #[test]
    fn a_volume_in_which_everybody_may_write_is_made_sticky_and_holds_a_folder() {
        let volume = tempfile::tempdir().expect("a folder");
        fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o777)).expect("as kubelet makes it");
        let state = volume.path().join("state");
        make_directory(&state, 0o700).expect("made");
        assert_eq!((mode(volume.path()), mode(&state)), (0o1777, 0o700), "nobody else can move it away");
        make_directory(&state, 0o700).expect("and taken again");
        assert!(make_directory(volume.path(), 0o700).is_err(), "not the volume itself");
    }

    #[test]
    fn a_folder_below_somebody_elses_open_one_is_refused() {
        let theirs = tempfile::tempdir().expect("a folder");
        chown(theirs.path(), Some(61_001), Some(61_001)).expect("root gives it away");
        for open in [0o777, 0o1777] {
            fs::set_permissions(theirs.path(), fs::Permissions::from_mode(open)).expect("set");
            let refused =
                make_directory(&theirs.path().join("state"), 0o700).expect_err("its owner can move what is in it");
            assert!(refused.to_string().contains("user 61001"), "{refused}");
            assert_eq!(mode(theirs.path()), open, "nothing was changed");
        }
    }
}
