//! The clocks of the operating system, read together.
//!
//! A test seam: in a build with debug assertions, [`WALL_OFFSET_VARIABLE`] names a file with milliseconds by which the *wall* clock is
//! moved, so that a test can set the controller's clock without setting the machine's. A build for use does not know the variable at
//! all, and no setting of `controller.toml` reaches it. The monotonic clock has no seam: deadlines that are counted by it hold
//! whatever stands in that file, as they hold when somebody really sets the clock.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use postern_common::{
    id::BootId,
    time::{Monotonic, Now, WallTime},
};

/// Names the file with the offset of the wall clock; looked at in builds with debug assertions only.
pub const WALL_OFFSET_VARIABLE: &str = "POSTERN_TEST_WALL_OFFSET_FILE";

/// Reads both clocks. The monotonic one goes on during suspend (`CLOCK_BOOTTIME`).
///
/// # Panics
/// Never on a kernel that the project supports: both clocks exist since Linux 2.6.39.
pub fn now() -> Now {
    let read = |clock| Duration::from(clock_gettime(clock).expect("the kernel has this clock"));
    let boot = read(ClockId::CLOCK_BOOTTIME);
    let wall = read(ClockId::CLOCK_REALTIME);
    let monotonic = Monotonic::from_nanos(u64::try_from(boot.as_nanos()).unwrap_or(u64::MAX));
    let wall = i64::try_from(wall.as_millis()).unwrap_or(i64::MAX);
    Now { monotonic, wall: WallTime::from_millis(wall.saturating_add(offset(monotonic))) }
}

/// Names this boot of the machine, if the kernel tells.
pub fn boot() -> Option<BootId> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let mut bytes = [0; 16];
    hex::decode_to_slice(text.trim().replace('-', ""), &mut bytes).ok()?;
    Some(BootId::from_bytes(bytes))
}

#[cfg(not(debug_assertions))]
const fn offset(_now: Monotonic) -> i64 {
    0
}

/// Returns how far a test has moved the wall clock, milliseconds.
#[cfg(debug_assertions)]
fn offset(now: Monotonic) -> i64 {
    use std::{
        path::PathBuf,
        sync::{
            LazyLock,
            atomic::{AtomicI64, AtomicU64, Ordering},
        },
    };

    /// How often the file is read again.
    const OFFSET_LIFETIME: Duration = Duration::from_millis(50);
    static FILE: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let file = std::env::var_os(WALL_OFFSET_VARIABLE).map(PathBuf::from);
        if let Some(file) = &file {
            tracing::warn!(file = %file.display(), "the wall clock is moved by a test's file");
        }
        file
    });
    static MILLISECONDS: AtomicI64 = AtomicI64::new(0);
    static READ_AT: AtomicU64 = AtomicU64::new(0);
    let Some(file) = &*FILE else { return 0 };
    if now.since(Monotonic::from_nanos(READ_AT.load(Ordering::Relaxed))) >= OFFSET_LIFETIME {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        MILLISECONDS.store(text.trim().parse().unwrap_or(0), Ordering::Relaxed);
        READ_AT.store(now.as_nanos(), Ordering::Relaxed);
    }
    MILLISECONDS.load(Ordering::Relaxed)
}
