//! The audit log: JSON lines, hash-chained, in files that are only ever appended to.
//!
//! ```text
//! event --AuditLog::append--> line {seq, at, prev, event, hash} --store--> outbox, in the transaction of what it records
//!                                                             --write--> audit/audit-<first seq>.jsonl, fsync
//! ```
//!
//! A line's hash is SHA-256 over a label, the hash of the line before it and the exact bytes of the line up to its
//! hash. So a changed, removed, inserted or reordered line breaks the chain at that place. Cutting off the tail
//! leaves a chain that is whole: against that, the store keeps the [`Head`] (the last number and hash), written in
//! the same transaction as the change that the line records, and the lines of that last transaction beside it.
//!
//! Invariants:
//! - A change and its record become durable in one transaction; nothing is told to anybody before the line is also in the
//!   file and synced. After a crash between the two, [`AuditLog::open`] writes the missing lines from the store.
//! - A partial last line (a crash in mid-write) is cut off and its text recorded in a line of its own, never dropped quietly.
//! - If the file cannot be brought together with the head, the log goes on from the head: [`verify`] shows the break for ever.
//!
//! Threat: somebody with write access to the log hides what they did. Whoever may also write the database can recompute
//! everything; sending the lines to another machine defends against that.
//!
//! Rejected: canonical JSON as the hashed form. Two implementations never agree on it for long; bytes are bytes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, Write},
    path::{Path, PathBuf},
};

use postern_common::time::WallTime;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

mod verify;

pub use verify::{Finding, Report, verify};

/// The label that begins what is hashed, so that the hash serves no other purpose.
const LABEL: &[u8] = b"postern audit v1\0";
/// What stands between the hashed bytes of a line and its hash.
const HASH_KEY: &str = ",\"hash\":\"";
/// The bytes of a line that are not hashed: the key, 64 hexadecimal digits, the closing quote and brace.
const HASH_TAIL: usize = HASH_KEY.len() + 64 + 2;
/// The longest line that is read back, in bytes.
const MAX_LINE: usize = 1 << 20;
/// How much of a partial line is kept in the record of its repair, in characters.
const MAX_PARTIAL: usize = 4_096;

/// The last line of the chain: its number and its hash. The first line's predecessor has number 0 and a zero hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The line's number; lines count from 1.
    pub seq: u64,
    /// The line's hash.
    pub hash: [u8; 32],
}

impl Head {
    /// What comes before the first line.
    pub const START: Self = Self { seq: 0, hash: [0; 32] };
    /// What stands for a last line that cannot be read.
    const UNREADABLE: Self = Self { seq: u64::MAX, hash: [0xff; 32] };

    /// Tells whether the line could be read.
    pub const fn is_known(&self) -> bool {
        self.seq != Self::UNREADABLE.seq
    }
}

/// A line that was given its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The line's number and hash.
    pub head: Head,
    /// The line, without its line feed.
    pub text: String,
}

impl Line {
    /// Reads a line's place from its text; `None` if it is not a line of ours. The hash is not checked.
    pub fn parse(text: String) -> Option<Self> {
        let (_, hash) = split_hash(&text)?;
        let seq = serde_json::from_str::<Entry>(&text).ok()?.seq;
        Some(Self { head: Head { seq, hash }, text })
    }
}

/// Why the audit log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Reading or writing failed.
    #[error("cannot {action} the audit log {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AuditError {
    let path = path.to_owned();
    move |source| AuditError::Io { action, path, source }
}

#[derive(Serialize)]
struct Body<'a, E> {
    seq: u64,
    at: String,
    prev: String,
    event: &'a E,
}

/// What a line says beside its event, as it is read back.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Entry {
    /// The line's number.
    pub seq: u64,
    /// When it was written, in RFC 3339.
    pub at: String,
    /// The hash of the line before it, in hexadecimal.
    pub prev: String,
    /// What happened.
    pub event: serde_json::Value,
    /// The line's hash, in hexadecimal.
    pub hash: String,
}

fn hash_line(prev: &[u8; 32], hashed: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(LABEL).chain_update(prev).chain_update(hashed).finalize().into()
}

/// Gives an event the place after `head`.
///
/// # Panics
/// Never: an event of the controller has no part without a JSON form.
pub fn chain(head: Head, at: WallTime, event: &impl Serialize) -> Line {
    let seq = head.seq + 1;
    let body = Body { seq, at: at.to_string(), prev: hex::encode(head.hash), event };
    let mut text = serde_json::to_string(&body).expect("an audit event has no part without a JSON form");
    text.pop(); // the closing brace: the hash follows inside the object
    let hash = hash_line(&head.hash, text.as_bytes());
    text.push_str(HASH_KEY);
    text.push_str(&hex::encode(hash));
    text.push_str("\"}");
    Line { head: Head { seq, hash }, text }
}

/// Splits a line into what is hashed and the hash that it claims; `None` if it does not end like a line of ours.
fn split_hash(text: &str) -> Option<(&[u8], [u8; 32])> {
    let at = text.len().checked_sub(HASH_TAIL)?;
    let (hashed, tail) = text.as_bytes().split_at(at);
    let digits = tail.strip_prefix(HASH_KEY.as_bytes())?.strip_suffix(b"\"}")?;
    let mut hash = [0; 32];
    hex::decode_to_slice(digits, &mut hash).ok()?;
    Some((hashed, hash))
}

/// Where the controller's audit log stands: the last line's place, and the open file.
#[derive(Debug)]
pub struct AuditLog {
    dir: PathBuf,
    file: File,
    path: PathBuf,
    size: u64,
    max_size: u64,
    head: Head,
}

/// What [`AuditLog::open`] found and did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Opened {
    /// How many lines of the store's last transaction were missing in the file and were written.
    pub recovered: usize,
    /// The text of a partial last line that was cut off.
    pub partial: Option<String>,
    /// The file and the store's head could not be brought together: what the file ended with.
    pub broken: Option<Head>,
}

impl AuditLog {
    /// Opens the log in `dir`, brings it together with the store's `head` and `outbox` (the lines of the last
    /// transaction), and returns what had to be repaired. The caller records that with lines of its own.
    ///
    /// `max_size` is the size in bytes at which a new file is begun.
    ///
    /// # Errors
    /// [`AuditError::Io`] if the folder or its files cannot be read or written.
    pub fn open(dir: &Path, max_size: u64, head: Head, outbox: &[Line]) -> Result<(Self, Opened), AuditError> {
        fs::create_dir_all(dir).map_err(io_error("make the folder of", dir))?;
        let mut opened = Opened::default();
        let begin = outbox.first().map_or(head.seq, |line| line.head.seq - 1) + 1;
        let (first, path) = files(dir)?.pop().unwrap_or_else(|| (begin, dir.join(file_name(begin))));
        let mut file = open_append(&path)?;
        opened.partial = cut_partial_line(&mut file).map_err(io_error("repair", &path))?;
        let size = file.metadata().map_err(io_error("read", &path))?.len();
        let end = match last_line(&path)? {
            Some(end) => end,
            None => before(first, head, outbox),
        };
        let mut log = Self { dir: dir.to_owned(), file, path, size, max_size, head: end };
        if end == head {
            return Ok((log, opened));
        }
        let missing: Vec<_> = outbox.iter().filter(|line| line.head.seq > end.seq).cloned().collect();
        let continues = missing.first().is_some_and(|line| {
            line.head.seq == end.seq + 1
                && split_hash(&line.text).is_some_and(|(hashed, hash)| hash_line(&end.hash, hashed) == hash)
        });
        if continues {
            log.write(&missing)?;
            opened.recovered = missing.len();
        }
        if log.head != head {
            opened.broken = Some(log.head);
            log.head = head;
        }
        Ok((log, opened))
    }

    /// Returns the last line's place.
    pub const fn head(&self) -> Head {
        self.head
    }

    /// Appends lines that follow the head, in order, and syncs the file. On success they are durable.
    ///
    /// # Errors
    /// [`AuditError::Io`]; the log then is behind the store and the process must not go on.
    ///
    /// # Panics
    /// If the lines do not follow the head: they were made by [`chain`] from another one.
    pub fn write(&mut self, lines: &[Line]) -> Result<(), AuditError> {
        let Some(last) = lines.last() else { return Ok(()) };
        assert_eq!(lines[0].head.seq, self.head.seq + 1, "lines are chained from the head of this log");
        if self.size >= self.max_size {
            self.path = self.dir.join(file_name(lines[0].head.seq));
            self.file = open_append(&self.path)?;
            self.size = 0;
            File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", &self.dir))?;
        }
        let mut bytes = Vec::with_capacity(lines.iter().map(|line| line.text.len() + 1).sum());
        for line in lines {
            bytes.extend_from_slice(line.text.as_bytes());
            bytes.push(b'\n');
        }
        self.file.write_all(&bytes).map_err(io_error("write", &self.path))?;
        self.file.sync_data().map_err(io_error("sync", &self.path))?;
        self.size += bytes.len() as u64;
        self.head = last.head;
        Ok(())
    }
}

fn file_name(first_seq: u64) -> String {
    format!("audit-{first_seq:012}.jsonl")
}

/// Lists the log's files, by the number of their first line.
///
/// # Errors
/// [`AuditError::Io`] if the folder cannot be read.
pub fn files(dir: &Path) -> Result<Vec<(u64, PathBuf)>, AuditError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error("read the folder of", dir))? {
        let path = entry.map_err(io_error("read the folder of", dir))?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("audit-")?.strip_suffix(".jsonl")?.parse().ok());
        if let Some(number) = number {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Returns the place of the last line in the log's files; `None` if there is none.
///
/// # Errors
/// [`AuditError::Io`] if they cannot be read.
pub fn end(dir: &Path) -> Result<Option<Head>, AuditError> {
    if !dir.exists() {
        return Ok(None);
    }
    for (_, path) in files(dir)?.into_iter().rev() {
        if let Some(head) = last_line(&path)? {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

fn open_append(path: &Path) -> Result<File, AuditError> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path).map_err(io_error("open", path))
}

/// Cuts what follows the last line feed and returns it.
fn cut_partial_line(file: &mut File) -> io::Result<Option<String>> {
    let length = file.metadata()?.len();
    let mut end = length;
    let mut chunk = [0u8; 4096];
    let keep = loop {
        if end == 0 {
            break 0;
        }
        let begin = end.saturating_sub(chunk.len() as u64);
        let part = &mut chunk[..(end - begin) as usize];
        file.seek(io::SeekFrom::Start(begin))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            break begin + at as u64 + 1;
        }
        end = begin;
    };
    if keep == length {
        return Ok(None);
    }
    file.seek(io::SeekFrom::Start(keep))?;
    let mut partial = Vec::new();
    Read::take(&*file, MAX_LINE as u64).read_to_end(&mut partial)?;
    file.set_len(keep)?;
    file.sync_data()?;
    Ok(Some(String::from_utf8_lossy(&partial).chars().take(MAX_PARTIAL).collect()))
}

/// Returns the place of a file's last line; a file that is empty has none.
fn last_line(path: &Path) -> Result<Option<Head>, AuditError> {
    let mut last = None;
    let mut lines = Lines::open(path)?;
    while let Some(text) = lines.next_line()? {
        last = Some(text);
    }
    Ok(last.map(|text| {
        let seq = serde_json::from_str::<Entry>(&text).map_or(Head::UNREADABLE.seq, |entry| entry.seq);
        let hash = split_hash(&text).map_or(Head::UNREADABLE.hash, |(_, hash)| hash);
        Head { seq, hash }
    }))
}

/// Returns what an empty file continues, whose first line will have the number `first`.
fn before(first: u64, head: Head, outbox: &[Line]) -> Head {
    if first == head.seq + 1 {
        return head;
    }
    let claimed = outbox.iter().find(|line| line.head.seq == first).and_then(|line| {
        let entry = serde_json::from_str::<Entry>(&line.text).ok()?;
        let mut hash = [0; 32];
        hex::decode_to_slice(&entry.prev, &mut hash).ok()?;
        Some(Head { seq: first - 1, hash })
    });
    claimed.unwrap_or(Head::START)
}

/// Reads lines with a bound on their length.
#[derive(Debug)]
pub struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
}

impl Lines {
    /// Opens a file of the log.
    ///
    /// # Errors
    /// [`AuditError::Io`] if it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let file = File::open(path).map_err(io_error("open", path))?;
        Ok(Self { reader: BufReader::new(file), path: path.to_owned() })
    }

    /// Returns the next line without its line feed; `None` at the end. Bytes that are not UTF-8 are replaced, which
    /// no hash survives.
    ///
    /// # Errors
    /// [`AuditError::Io`] if reading fails.
    pub fn next_line(&mut self) -> Result<Option<String>, AuditError> {
        let mut bytes = Vec::new();
        let read = (&mut self.reader).take(MAX_LINE as u64).read_until(b'\n', &mut bytes);
        if read.map_err(io_error("read", &self.path))? == 0 {
            return Ok(None);
        }
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

#[cfg(test)]
mod tests;
