//! Where time comes from: the one seam through which the node reads clocks.
//!
//! [`SystemClock`] reads `CLOCK_BOOTTIME` and `CLOCK_REALTIME`. Tests jump the *wall* clock with a file that holds an offset in
//! milliseconds. The monotonic clock has no such seam, and a deadline has passed as soon as either clock reaches it
//! ([`postern_common::time::Deadline`]), so nothing that is set here can make a permission live longer than its span.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

use postern_common::time::{Monotonic, Now, WallTime};

use super::sys;

/// Names the file with the offset of the wall clock; looked at in builds with debug assertions only.
pub const WALL_OFFSET_VARIABLE: &str = "POSTERN_TEST_WALL_OFFSET_FILE";

/// How often the file is read again.
const OFFSET_LIFETIME: Duration = Duration::from_millis(50);

/// Reads both clocks.
pub trait Clock: Send + Sync {
    /// Returns the time.
    fn now(&self) -> Now;
}

/// The clocks of the machine.
#[derive(Debug, Default)]
pub struct SystemClock {
    offset: Option<WallOffset>,
}

#[derive(Debug)]
struct WallOffset {
    file: PathBuf,
    milliseconds: AtomicI64,
    read_at: AtomicU64,
}

impl SystemClock {
    /// Makes a clock. In a build with debug assertions it obeys [`WALL_OFFSET_VARIABLE`].
    pub fn new() -> Self {
        let file = if cfg!(debug_assertions) { std::env::var_os(WALL_OFFSET_VARIABLE) } else { None };
        Self { offset: file.map(|file| WallOffset::new(Path::new(&file))) }
    }

    /// Makes a clock whose wall time is moved by the milliseconds that stand in `file`; a missing or unreadable file moves nothing.
    pub fn with_wall_offset_file(file: &Path) -> Self {
        Self { offset: Some(WallOffset::new(file)) }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let monotonic = Monotonic::from_nanos(sys::boot_time_nanos());
        let offset = self.offset.as_ref().map_or(0, |offset| offset.at(monotonic));
        Now { monotonic, wall: WallTime::from_millis(sys::real_time_millis().saturating_add(offset)) }
    }
}

impl WallOffset {
    fn new(file: &Path) -> Self {
        Self { file: file.into(), milliseconds: AtomicI64::new(0), read_at: AtomicU64::new(0) }
    }

    fn at(&self, now: Monotonic) -> i64 {
        let read_at = Monotonic::from_nanos(self.read_at.load(Ordering::Relaxed));
        if now.since(read_at) >= OFFSET_LIFETIME {
            let text = std::fs::read_to_string(&self.file).unwrap_or_default();
            self.milliseconds.store(text.trim().parse().unwrap_or(0), Ordering::Relaxed);
            self.read_at.store(now.as_nanos(), Ordering::Relaxed);
        }
        self.milliseconds.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_moves_the_wall_clock_and_never_the_monotonic_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("offset");
        std::fs::write(&file, "-3600000").unwrap();
        let (plain, moved) = (SystemClock::default().now(), SystemClock::with_wall_offset_file(&file).now());
        let difference = plain.wall.as_millis() - moved.wall.as_millis();
        assert!((3_590_000..=3_600_000).contains(&difference), "{difference}");
        assert!(moved.monotonic >= plain.monotonic && moved.monotonic.since(plain.monotonic) < Duration::from_secs(10));
    }
}
