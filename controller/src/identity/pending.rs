//! Half-finished sign-ins: bounded, short-lived, taken out once.
//!
//! They live in memory. A controller that restarts forgets them, and the person begins again.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use postern_common::time::WallTime;

use super::random::{Token, TokenHash};

/// A table of half-finished sign-ins, keyed by the hash of a token in the browser's cookie.
#[derive(Debug)]
pub struct Pending<T> {
    capacity: usize,
    lifetime: Duration,
    table: Mutex<HashMap<TokenHash, (WallTime, T)>>,
}

impl<T> Pending<T> {
    /// Makes an empty table. When `capacity` is reached, what expires first goes first.
    pub fn new(capacity: usize, lifetime: Duration) -> Self {
        Self { capacity: capacity.max(1), lifetime, table: Mutex::new(HashMap::new()) }
    }

    /// Keeps `value` under a token.
    pub fn put(&self, token: &Token, value: T, now: WallTime) {
        let mut table = self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if table.len() >= self.capacity {
            table.retain(|_, (expires, _)| *expires > now);
        }
        if table.len() >= self.capacity
            && let Some(oldest) = table.iter().min_by_key(|(_, (expires, _))| *expires).map(|(hash, _)| *hash)
        {
            table.remove(&oldest);
        }
        table.insert(token.hash(), (now.saturating_add(self.lifetime), value));
    }

    /// Takes out what was kept under a token, if it has not expired.
    pub fn take(&self, token: &Token, now: WallTime) -> Option<T> {
        let mut table = self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (expires, value) = table.remove(&token.hash())?;
        (now < expires).then_some(value)
    }

    /// Shows what is kept under a token, if it has not expired.
    pub fn peek<R>(&self, token: &Token, now: WallTime, look: impl FnOnce(&mut T) -> R) -> Option<R> {
        let mut table = self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (expires, value) = table.get_mut(&token.hash())?;
        (now < *expires).then(|| look(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_taken_once_and_only_in_time() {
        let pending = Pending::new(2, Duration::from_secs(60));
        let [a, b, c] = [(); 3].map(|()| Token::draw());
        let at = |seconds: i64| WallTime::from_millis(seconds * 1_000);
        pending.put(&a, 1, at(0));
        assert_eq!(pending.take(&a, at(59)), Some(1));
        assert_eq!(pending.take(&a, at(59)), None, "once");
        pending.put(&a, 2, at(0));
        assert_eq!(pending.take(&a, at(60)), None, "in time");
        pending.put(&a, 3, at(0));
        pending.put(&b, 4, at(1));
        pending.put(&c, 5, at(2));
        assert_eq!(pending.take(&a, at(3)), None, "the oldest made room");
        assert_eq!((pending.take(&b, at(3)), pending.take(&c, at(3))), (Some(4), Some(5)));
    }
}
