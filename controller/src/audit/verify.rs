//! Checking the chain from its first line to the store's head.

use std::{fmt, path::Path};

use super::{AuditError, Entry, Head, Line, Lines, files, hash_line, split_hash};

/// What is wrong with the log, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A line is not a line of the log.
    Unreadable {
        /// The file's name.
        file: String,
        /// The line in the file, from 1.
        line: u64,
    },
    /// A line does not carry the number that follows.
    Order {
        /// The file's name.
        file: String,
        /// The line in the file, from 1.
        line: u64,
        /// The number that follows.
        expected: u64,
        /// The number that the line has.
        found: u64,
    },
    /// A line's hash does not fit its text and its predecessor.
    Changed {
        /// The file's name.
        file: String,
        /// The line in the file, from 1.
        line: u64,
        /// The number that the line has.
        seq: u64,
    },
    /// The log begins later than it should: files were archived or removed.
    Begins {
        /// The number of the first line that is there.
        first: u64,
    },
    /// The log ends before the store's head: its tail was cut off.
    Truncated {
        /// The last number in the files.
        last: u64,
        /// The store's head.
        head: u64,
    },
    /// The line that the store's head names has another hash: the chain was rewritten.
    Rewritten {
        /// The head's number.
        seq: u64,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, line } => write!(f, "{file}:{line}: not a line of the log"),
            Self::Order { file, line, expected, found } if found > expected => {
                write!(f, "{file}:{line}: record {found} follows, {expected} was expected: removed or reordered")
            }
            Self::Order { file, line, expected, found } => {
                write!(f, "{file}:{line}: record {found} follows, {expected} was expected: repeated or reordered")
            }
            Self::Changed { file, line, seq } => {
                write!(f, "{file}:{line}: record {seq} was changed, or the one before it")
            }
            Self::Begins { first } => {
                write!(f, "the log begins with record {first}: the records before it were archived or removed")
            }
            Self::Truncated { last, head } => {
                write!(f, "the log ends with record {last}, and the database knows {head}: its tail was cut off")
            }
            Self::Rewritten { seq } => {
                write!(f, "record {seq} is not the one that the database knows: the log was rewritten")
            }
        }
    }
}

/// What [`verify`] saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How many lines were read.
    pub lines: u64,
    /// How many files were read.
    pub files: usize,
    /// The last line's place; [`Head::START`] if there is none.
    pub last: Head,
    /// What is wrong, in the order of the log; at most [`Report::MAX_FINDINGS`].
    pub findings: Vec<Finding>,
}

impl Report {
    /// The most findings that a report holds; verification ends there.
    pub const MAX_FINDINGS: usize = 100;

    /// Tells whether the log is whole.
    pub fn is_whole(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Checks every line in `dir` against its predecessor, and the end against the store's `head` and `outbox` (lines that are
/// durable in the store and perhaps not yet in the file). `first` is the number that the log should begin with: 1, unless
/// older files were archived.
///
/// # Errors
/// [`AuditError::Io`] if a file cannot be read.
pub fn verify(dir: &Path, head: Head, outbox: &[Line], first: u64) -> Result<Report, AuditError> {
    let mut report = Report { lines: 0, files: 0, last: Head::START, findings: Vec::new() };
    let mut at_head = (head == Head::START).then_some(head.hash);
    for (_, path) in files(dir)? {
        report.files += 1;
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut lines = Lines::open(&path)?;
        let mut number = 0;
        while let Some(text) = lines.next_line()? {
            number += 1;
            if report.findings.len() >= Report::MAX_FINDINGS {
                return Ok(report);
            }
            let parsed = serde_json::from_str::<Entry>(&text).ok().zip(split_hash(&text));
            let Some((entry, (hashed, hash))) = parsed else {
                report.findings.push(Finding::Unreadable { file: file.clone(), line: number });
                continue;
            };
            let beginning = report.lines == 0;
            let prev = if beginning && entry.seq == first && first > 1 {
                let mut prev = [0; 32]; // archived files: the first line's own word is the anchor
                hex::decode_to_slice(&entry.prev, &mut prev).ok().map(|()| prev).unwrap_or_default()
            } else {
                report.last.hash
            };
            let expected = if beginning { first } else { report.last.seq + 1 };
            if beginning && entry.seq > first {
                report.findings.push(Finding::Begins { first: entry.seq });
            } else if entry.seq != expected {
                report.findings.push(Finding::Order { file: file.clone(), line: number, expected, found: entry.seq });
            } else if hash_line(&prev, hashed) != hash || hex::encode(prev) != entry.prev {
                report.findings.push(Finding::Changed { file: file.clone(), line: number, seq: entry.seq });
            }
            if entry.seq == head.seq {
                at_head = Some(hash);
            }
            report.lines += 1;
            report.last = Head { seq: entry.seq, hash };
        }
    }
    for line in outbox {
        let fits = split_hash(&line.text).is_some_and(|(hashed, hash)| hash_line(&report.last.hash, hashed) == hash);
        if fits && line.head.seq == report.last.seq + 1 && line.head.seq <= head.seq {
            report.last = line.head;
            if line.head.seq == head.seq {
                at_head = Some(line.head.hash);
            }
        }
    }
    if report.last.seq < head.seq {
        report.findings.push(Finding::Truncated { last: report.last.seq, head: head.seq });
    } else if at_head != Some(head.hash) {
        report.findings.push(Finding::Rewritten { seq: head.seq });
    }
    Ok(report)
}
