//! The replay window (whitepaper §5.4.6; RFC 6479): each counter is accepted once, and not when it lies too far back.

/// How far a message may lie behind the newest one.
pub(super) const WINDOW: u64 = 8_192;
const WORD: u64 = u64::BITS as u64;
/// One word more than the window: the newest word is only partly filled.
const WORDS: u64 = WINDOW / WORD + 1;

/// Which counters have been seen.
#[derive(Debug, Clone)]
pub(super) struct Window {
    /// One past the highest counter seen.
    next: u64,
    seen: Box<[u64; WORDS as usize]>,
}

impl Window {
    pub(super) fn new() -> Self {
        Self { next: 0, seen: Box::new([0; WORDS as usize]) }
    }

    /// Tells whether a message with this counter is worth opening.
    pub(super) fn may_accept(&self, counter: u64) -> bool {
        if counter >= self.next {
            return true;
        }
        self.next - counter <= WINDOW && self.seen[word(counter)] & bit(counter) == 0
    }

    /// Notes the counter of a message that opened; tells whether it is the first with it.
    pub(super) fn accept(&mut self, counter: u64) -> bool {
        if !self.may_accept(counter) {
            return false;
        }
        if counter >= self.next {
            let newest = self.next.saturating_sub(1) / WORD;
            let fresh = (counter / WORD - newest).min(WORDS);
            for ahead in 1..=fresh {
                self.seen[((newest + ahead) % WORDS) as usize] = 0;
            }
            self.next = counter + 1;
        }
        self.seen[word(counter)] |= bit(counter);
        true
    }
}

const fn word(counter: u64) -> usize {
    (counter / WORD % WORDS) as usize
}

const fn bit(counter: u64) -> u64 {
    1 << (counter % WORD)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A set of all counters says the same.
        #[test]
        fn a_counter_is_accepted_once_and_within_the_window(steps in prop::collection::vec((0_u8..5, 0_u64..20_000), 1..400)) {
            let (mut window, mut seen, mut highest) = (Window::new(), HashSet::new(), None::<u64>);
            for (kind, amount) in steps {
                let base = highest.unwrap_or(0);
                let counter = match kind {
                    0 => base + 1,
                    1 => base.saturating_sub(amount % 70),
                    2 => base.saturating_sub(amount),
                    3 => base + amount % 200,
                    _far => base + amount,
                };
                let near = highest.is_none_or(|highest| counter > highest || highest + 1 - counter <= WINDOW);
                let expected = near && !seen.contains(&counter);
                prop_assert_eq!(window.may_accept(counter), expected);
                prop_assert_eq!(window.accept(counter), expected);
                if expected {
                    seen.insert(counter);
                    highest = Some(highest.map_or(counter, |highest| highest.max(counter)));
                }
            }
        }
    }

    #[test]
    fn the_window_holds_at_its_edges_and_at_the_last_counters() {
        let mut window = Window::new();
        assert!(window.accept(0) && !window.accept(0));
        assert!(window.accept(WINDOW));
        assert!(window.accept(1) && !window.may_accept(0));
        assert!(window.accept(WINDOW + 1) && !window.accept(1));
        assert!(window.accept(u64::MAX - 1) && !window.accept(u64::MAX - 1) && !window.accept(WINDOW + 2));
        assert!(window.accept(u64::MAX - 1 - WINDOW + 1));
    }
}
