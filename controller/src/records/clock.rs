//! What is kept of the time.

use postern_common::{
    id::BootId,
    time::{Monotonic, WallTime},
};
use serde::{Deserialize, Serialize};

/// A moment on the time that goes on whatever somebody sets the wall clock to. There is one; the newest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockRecord {
    /// The boot whose monotonic clock this was; absent if the machine does not tell.
    pub boot: Option<BootId>,
    /// The moment on that clock.
    pub monotonic: Monotonic,
    /// What time it was then.
    pub wall: WallTime,
}
