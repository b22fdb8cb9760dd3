//! Waiting on a condition with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Tries `condition` until it gives a value, at first every 10 ms, then more slowly.
///
/// # Errors
/// Fails with `what` when `deadline` has passed and the condition still gives nothing.
pub fn eventually<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(10);
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if began.elapsed() >= deadline {
            bail!("waited {deadline:?} in vain: {what}");
        }
        std::thread::sleep(pause.min(deadline.saturating_sub(began.elapsed())));
        pause = (pause * 3 / 2).min(Duration::from_millis(200));
    }
}
