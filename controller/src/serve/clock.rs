//! The clocks of the operating system, read together.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use postern_common::time::{Monotonic, Now, WallTime};

/// Reads both clocks. The monotonic one goes on during suspend (`CLOCK_BOOTTIME`).
///
/// # Panics
/// Never on a kernel that the project supports: both clocks exist since Linux 2.6.39.
pub fn now() -> Now {
    let read = |clock| Duration::from(clock_gettime(clock).expect("the kernel has this clock"));
    let boot = read(ClockId::CLOCK_BOOTTIME);
    let wall = read(ClockId::CLOCK_REALTIME);
    Now {
        monotonic: Monotonic::from_nanos(u64::try_from(boot.as_nanos()).unwrap_or(u64::MAX)),
        wall: WallTime::from_millis(i64::try_from(wall.as_millis()).unwrap_or(i64::MAX)),
    }
}
