//! How much each local user may ask of the controller through this machine, so that one of them cannot use up what all share.
//!
//! Explanations and step-ups are for every local user, and each is a question to the controller, which limits them by machine. So
//! each user has a budget here: [`AT_ONCE`] questions, one more in [`APART`]. Root has none: it may do worse.
//!
//! Bounds: [`MAX_USERS`] users; the one with the fullest budget is forgotten first, which costs nobody anything.

use std::{collections::BTreeMap, time::Duration};

use postern_common::time::Monotonic;

/// Questions at once.
pub(super) const AT_ONCE: u32 = 6;
/// After which time there may be one more.
pub(super) const APART: Duration = Duration::from_secs(2);
/// Users that are remembered.
const MAX_USERS: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Budget {
    left: u32,
    filled: Monotonic,
}

/// The budgets of local users.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    users: BTreeMap<u32, Budget>,
}

impl Budgets {
    /// Tells whether a user may ask now, and takes note that they did.
    pub(super) fn take(&mut self, uid: u32, now: Monotonic) -> bool {
        if uid == 0 {
            return true;
        }
        if self.users.len() >= MAX_USERS && !self.users.contains_key(&uid) {
            for budget in self.users.values_mut() {
                budget.fill(now);
            }
            let fullest = self.users.iter().max_by_key(|(_, budget)| budget.left).map(|(uid, _)| *uid);
            fullest.map(|uid| self.users.remove(&uid));
        }
        let budget = self.users.entry(uid).or_insert(Budget { left: AT_ONCE, filled: now });
        budget.fill(now);
        let permitted = budget.left > 0;
        budget.left -= u32::from(permitted);
        permitted
    }
}

impl Budget {
    fn fill(&mut self, now: Monotonic) {
        let gained = now.since(self.filled).as_millis() / APART.as_millis();
        if gained > 0 {
            self.left = u32::try_from(gained).unwrap_or(AT_ONCE).saturating_add(self.left).min(AT_ONCE);
            self.filled = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_millis(seconds * 1_000)
    }

    #[test]
    fn one_user_who_asks_all_the_time_takes_nothing_from_another() {
        let mut budgets = Budgets::default();
        let granted = (0..1_000).filter(|_| budgets.take(1000, at(1))).count();
        assert_eq!(granted, AT_ONCE as usize);
        assert!(budgets.take(1001, at(1)), "another user");
        assert!(budgets.take(0, at(1)), "root");
        assert!(!budgets.take(1000, at(2)));
        assert!(budgets.take(1000, at(3)), "one more after a while");
        assert!(!budgets.take(1000, at(3)));
    }

    #[test]
    fn many_users_push_out_nobody_who_has_used_their_budget() {
        let mut budgets = Budgets::default();
        assert!((0..=AT_ONCE).any(|_| !budgets.take(1000, at(1))));
        for uid in 2000..2500 {
            assert!(budgets.take(uid, at(1)));
        }
        assert!(budgets.users.len() <= MAX_USERS);
        assert!(!budgets.take(1000, at(1)), "it is still remembered");
    }
}
