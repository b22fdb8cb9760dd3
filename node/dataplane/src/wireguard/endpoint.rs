//! Where a peer is: candidates that the controller told, and the address from which it was heard last.

use std::net::SocketAddr;

/// The outer addresses of a peer. At most [`MAX_CANDIDATES`] candidates are kept.
#[derive(Debug, Default)]
pub(crate) struct Endpoint {
    heard: Option<SocketAddr>,
    candidates: Vec<SocketAddr>,
    attempts: usize,
}

/// The most candidates that are tried.
const MAX_CANDIDATES: usize = 16;

impl Endpoint {
    /// Takes the candidates, best first.
    pub(crate) fn set_candidates(&mut self, candidates: &[SocketAddr]) {
        let kept = &candidates[..candidates.len().min(MAX_CANDIDATES)];
        if self.candidates != kept {
            self.candidates = kept.to_vec();
            self.attempts = 0;
        }
    }

    /// Returns where to send: where the peer was heard last, or else the best candidate.
    pub(crate) fn current(&self) -> Option<SocketAddr> {
        self.heard.or_else(|| self.candidates.first().copied())
    }

    /// Returns where to try a handshake next: each known address in turn.
    pub(crate) fn next_attempt(&mut self) -> Option<SocketAddr> {
        let others = self.candidates.iter().copied().filter(|candidate| Some(*candidate) != self.heard);
        let all = self.heard.into_iter().chain(others);
        let count = all.clone().count();
        let attempt = self.attempts;
        self.attempts = self.attempts.wrapping_add(1);
        all.clone().nth(attempt.checked_rem(count)?)
    }

    /// Notes that the peer proved to be at `from`; tells whether that is news.
    pub(crate) fn hear(&mut self, from: SocketAddr) -> bool {
        self.attempts = 0;
        self.heard.replace(from) != Some(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_go_round_and_what_was_heard_comes_first() {
        let at = |port: u16| SocketAddr::from(([192, 0, 2, 1], port));
        let mut endpoint = Endpoint::default();
        assert_eq!((endpoint.current(), endpoint.next_attempt()), (None, None));
        endpoint.set_candidates(&[at(1), at(2)]);
        assert_eq!(endpoint.current(), Some(at(1)));
        let tries = |count: usize, endpoint: &mut Endpoint| -> Vec<u16> {
            (0..count).filter_map(|_| endpoint.next_attempt()).map(|address| address.port()).collect()
        };
        assert_eq!(tries(3, &mut endpoint), [1, 2, 1]);
        assert!(endpoint.hear(at(2)) && !endpoint.hear(at(2)));
        assert_eq!(endpoint.current(), Some(at(2)));
        assert_eq!(tries(3, &mut endpoint), [2, 1, 2]);
    }
}
