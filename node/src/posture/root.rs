//! The folder below which collectors read: `/`, or a tree of files in which a test shows a state.
//!
//! Threat: where people may write, they may put a pipe that nobody writes to, a device, or a link. Nothing but a regular file is read,
//! opening one never waits. What people keep in their homes is read by [`Homes`](super::homes::Homes) alone.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Names a folder that stands for `/`; looked at in builds with debug assertions only, and only while the folder exists.
pub const ROOT_VARIABLE: &str = "POSTERN_TEST_POSTURE_ROOT";

/// The most bytes of one file that are read.
const MAX_BYTES: u64 = 4 << 20;
/// The most entries of one folder that are looked at.
const MAX_ENTRIES: usize = 65_536;

/// A text as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whole {
    /// It is not there, may not be opened, or is empty.
    Absent,
    /// All of it.
    Text(String),
    /// It is there, and too large or not to be read to its end.
    Unreadable,
}

/// Where `/` is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// Takes the machine's own files; in a build with debug assertions it obeys [`ROOT_VARIABLE`].
    pub fn of_machine() -> Self {
        let named = if cfg!(debug_assertions) { std::env::var_os(ROOT_VARIABLE) } else { None };
        let folder = named.map(PathBuf::from).filter(|folder| folder.is_dir());
        Self(folder.unwrap_or_else(|| "/".into()))
    }

    /// Takes the files below a folder.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// Tells whether this is the machine itself, of which the kernel can be asked too.
    pub fn is_machine(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// Returns where an absolute path is.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Reads a file's bytes; `None` if it is not there, not readable or too large.
    pub fn bytes(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        bounded(self.open(path)?)
    }

    /// Opens a regular file; `None` if it is not there, not readable or anything else.
    pub fn open(&self, path: impl AsRef<Path>) -> Option<File> {
        open_regular(&self.path(path), libc::O_NONBLOCK).ok()?
    }

    /// Reads a text; what is no UTF-8 in it is replaced.
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        self.bytes(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Reads a text of which an end that is missing could hide something: too large is another answer than not there.
    pub fn whole_text(&self, path: impl AsRef<Path>) -> Whole {
        let Some(file) = self.open(path) else { return Whole::Absent };
        match bounded(file) {
            Some(bytes) if bytes.is_empty() => Whole::Absent,
            Some(bytes) => Whole::Text(String::from_utf8_lossy(&bytes).into_owned()),
            None => Whole::Unreadable,
        }
    }

    /// Tells whether something is there, or cannot be told.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    /// Lists the names in a folder, sorted; none if it is not there.
    pub fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(path)) else { return vec![] };
        let mut names: Vec<String> =
            entries.take(MAX_ENTRIES).filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    }

    /// Lists the folders in a folder, sorted; links are none.
    pub fn folders(&self, path: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(path)) else { return vec![] };
        let folder = |entry: std::io::Result<std::fs::DirEntry>| {
            let entry = entry.ok()?;
            entry.file_type().ok()?.is_dir().then(|| entry.file_name().into_string().ok()).flatten()
        };
        let mut names: Vec<String> = entries.take(MAX_ENTRIES).filter_map(folder).collect();
        names.sort_unstable();
        names
    }

    /// Reads where a symbolic link points, as it is written.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn link(&self, path: impl AsRef<Path>) -> std::io::Result<PathBuf> {
        std::fs::read_link(self.path(path))
    }

    /// Returns when a file was last written.
    pub fn written(&self, path: impl AsRef<Path>) -> Option<SystemTime> {
        std::fs::metadata(self.path(path)).ok()?.modified().ok()
    }
}

fn open_regular(path: &Path, flags: i32) -> std::io::Result<Option<File>> {
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let regular = file.metadata()?.is_file();
    Ok(regular.then_some(file))
}

pub(super) fn bounded(file: File) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes).ok()?;
    (read as u64 <= MAX_BYTES).then_some(bytes)
}

/// A tree of files for tests.
#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A root in a temporary folder.
    pub(crate) struct Tree {
        folder: tempfile::TempDir,
    }

    impl Tree {
        pub(crate) fn new(files: &[(&str, &str)]) -> Self {
            let tree = Self { folder: tempfile::tempdir().expect("a folder") };
            files.iter().for_each(|(path, text)| tree.write(path, text));
            tree
        }

        pub(crate) fn root(&self) -> Root {
            Root::at(self.folder.path())
        }

        pub(crate) fn write(&self, path: &str, text: impl AsRef<[u8]>) {
            let path = self.root().path(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        }

        pub(crate) fn link(&self, path: &str, to: &str) {
            let path = self.root().path(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::os::unix::fs::symlink(to, path).expect("a link");
        }

        pub(crate) fn folder(&self, path: &str) {
            std::fs::create_dir_all(self.root().path(path)).expect("a folder");
        }

        pub(crate) fn remove(&self, path: &str) {
            std::fs::remove_file(self.root().path(path)).expect("a file");
        }

        pub(crate) fn set_written(&self, path: &str, at: SystemTime) {
            let file = File::options().write(true).open(self.root().path(path)).expect("a file");
            file.set_modified(at).expect("a time");
        }
    }
}
