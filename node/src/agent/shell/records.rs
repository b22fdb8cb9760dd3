//! The spool of flow records: JSON lines in a file with a bound and rotation, written by a thread of its own.
//!
//! Bound: [`QUEUE`] records wait; one more is dropped and counted, as is what the disk does not take. `keep` full files of
//! `max_size` stay beside the present one.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use postern_common::flow_record::FlowRecord;

/// Records that wait for the disk.
pub const QUEUE: usize = 4096;

/// The writing thread. Dropped, it finishes what is queued.
#[derive(Debug)]
pub struct Spool {
    queue: Option<mpsc::SyncSender<FlowRecord>>,
    thread: Option<thread::JoinHandle<()>>,
    dropped: Arc<AtomicU64>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Spool {
    /// Opens the file, made if need be, and starts the thread.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn open(path: PathBuf, max_bytes: u64, keep: u8) -> io::Result<Self> {
        let mut file = Rotating::open(path, max_bytes, keep)?;
        let (queue, records) = mpsc::sync_channel::<FlowRecord>(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let trouble = Arc::new(Mutex::new(None));
        let (lost, note) = (dropped.clone(), trouble.clone());
        let work = move || {
            let mut unflushed = 0;
            let mut next = records.recv().ok();
            while let Some(record) = next {
                let mut result = file.write(&record);
                unflushed += 1;
                next = match records.try_recv() {
                    Ok(record) => Some(record),
                    Err(_) => {
                        result = result.and_then(|()| file.flush());
                        if result.is_ok() {
                            unflushed = 0;
                        }
                        let text = result.as_ref().err().map(|error| file.describe(error));
                        *note.lock().expect("no thread panics while it holds this") = text;
                        records.recv().ok()
                    }
                };
                if result.is_err() {
                    lost.fetch_add(std::mem::take(&mut unflushed), Ordering::Relaxed);
                }
            }
        };
        let thread = thread::Builder::new().name("postern-records".into()).stack_size(256 << 10).spawn(work)?;
        Ok(Self { queue: Some(queue), thread: Some(thread), dropped, trouble })
    }

    /// Queues a record, or drops and counts it.
    pub fn push(&self, record: FlowRecord) {
        if self.queue.as_ref().is_some_and(|queue| queue.try_send(record).is_err()) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns how many records were lost.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Returns what is wrong with the file.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().expect("no thread panics while it holds this").clone()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Rotating {
    path: PathBuf,
    file: BufWriter<File>,
    length: u64,
    max_bytes: u64,
    keep: u8,
}

impl Rotating {
    fn open(path: PathBuf, max_bytes: u64, keep: u8) -> io::Result<Self> {
        let (file, length) = append(&path)?;
        Ok(Self { path, file, length, max_bytes, keep })
    }

    fn write(&mut self, record: &FlowRecord) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        if self.length > 0 && self.length + line.len() as u64 > self.max_bytes {
            self.rotate()?;
        }
        self.file.write_all(&line)?;
        self.length += line.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        if self.keep == 0 {
            std::fs::remove_file(&self.path)?;
        }
        for number in (1..self.keep).rev() {
            let older = numbered(&self.path, number);
            if older.exists() {
                std::fs::rename(older, numbered(&self.path, number + 1))?;
            }
        }
        if self.keep > 0 {
            std::fs::rename(&self.path, numbered(&self.path, 1))?;
        }
        (self.file, self.length) = append(&self.path)?;
        Ok(())
    }

    fn describe(&self, error: &io::Error) -> String {
        format!("flow records cannot be written to {}: {error}; they are dropped and counted", self.path.display())
    }
}

fn append(path: &Path) -> io::Result<(BufWriter<File>, u64)> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    Ok((BufWriter::with_capacity(16 << 10, file), length))
}

fn numbered(path: &Path, number: u8) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use postern_common::{
        flow_record::{FlowEvent, Originator},
        net::{FiveTuple, Protocol},
        time::WallTime,
    };

    use super::*;

    fn record(at: i64) -> FlowRecord {
        FlowRecord {
            at: WallTime::from_millis(at),
            event: FlowEvent::Start,
            originator: Originator::Local,
            flow: FiveTuple {
                protocol: Protocol::Tcp,
                source: "fd00::1".parse().expect("an address"),
                source_port: 1,
                destination: "fd00::2".parse().expect("an address"),
                destination_port: 443,
            },
            peer: None,
            peer_outer: None,
            permit: None,
            generation: 1,
        }
    }

    fn read(path: &Path) -> Vec<i64> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str::<FlowRecord>(line).expect("a record").at.as_millis()).collect()
    }

    #[test]
    fn the_spool_is_bounded_and_keeps_the_newest_records_in_order() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("flows.jsonl");
        let spool = Spool::open(path.clone(), 4096, 2).expect("opens");
        for at in 0..100 {
            spool.push(record(at));
        }
        drop(spool);
        let files = [numbered(&path, 2), numbered(&path, 1), path.clone()];
        let kept: Vec<i64> = files.iter().flat_map(|file| read(file)).collect();
        assert_eq!(kept.last(), Some(&99));
        assert!(kept.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{kept:?}");
        assert!(files.iter().all(|file| std::fs::metadata(file).expect("a file").len() <= 4096));
        assert!(!numbered(&path, 3).exists());
        let spool = Spool::open(path.clone(), 4096, 2).expect("opens again");
        spool.push(record(100));
        drop(spool);
        assert_eq!(read(&path).last(), Some(&100), "appended");
    }

    #[test]
    fn what_the_disk_does_not_take_is_counted() {
        let full = PathBuf::from("/dev/full");
        let spool = Spool::open(full, u64::MAX, 1).expect("opens");
        let dropped = spool.dropped.clone();
        let trouble = spool.trouble.clone();
        spool.push(record(1));
        drop(spool);
        assert!(dropped.load(Ordering::Relaxed) >= 1);
        assert!(trouble.lock().expect("unpoisoned").as_ref().is_some_and(|text| text.contains("/dev/full")));
    }
}
