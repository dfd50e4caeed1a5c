//! Rapid reset (CVE-2023-44487), paced or not: a connection most of whose streams are reset before they could be
//! answered is ended. Envoy's rule, `overload.premature_reset_total_stream_count` and its companion.
//!
//! The connection manager asks this after each stream; no I/O, no clock.

use std::time::Duration;

/// Counts the streams of one connection.
#[derive(Debug, Clone, Copy)]
pub struct PrematureResets {
    closed: u64,
    premature: u64,
    /// `overload.premature_reset_total_stream_count`; default 500.
    limit: u64,
    /// `overload.premature_reset_min_stream_lifetime_seconds`; default 1 s.
    lifetime: Duration,
}

impl Default for PrematureResets {
    fn default() -> Self {
        PrematureResets::new(500, Duration::from_secs(1))
    }
}

impl PrematureResets {
    /// With other limits than the defaults.
    pub fn new(limit: u64, lifetime: Duration) -> PrematureResets {
        PrematureResets { closed: 0, premature: 0, limit, lifetime }
    }

    /// Notes the end of a stream. `reset_by_peer`: the peer reset it before a response had a status. True: the
    /// connection is to be closed and `downstream_rq_too_many_premature_resets` counted.
    #[must_use]
    pub fn stream_closed(&mut self, age: Duration, reset_by_peer: bool) -> bool {
        self.closed += 1;
        if reset_by_peer && age <= self.lifetime {
            self.premature += 1;
        }
        // Below the limit: would half of `limit` streams be bad even if all to come were good?
        self.premature > 0 && self.premature * 2 >= self.closed.max(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_limit_in_early_resets_ends_the_connection() {
        let mut resets = PrematureResets::default();
        let ended = (1..=500).find(|_| resets.stream_closed(Duration::from_millis(1), true));
        assert_eq!(ended, Some(250));
    }

    #[test]
    fn late_resets_and_answered_streams_do_not_count() {
        let mut resets = PrematureResets::default();
        assert!((0..10_000).all(|_| !resets.stream_closed(Duration::from_secs(2), true)));
        assert!((0..10_000).all(|_| !resets.stream_closed(Duration::from_millis(1), false)));
    }

    #[test]
    fn after_the_limit_the_share_decides() {
        let mut resets = PrematureResets::default();
        assert!((0..2_000).all(|i| !resets.stream_closed(Duration::ZERO, i % 3 == 0)));
        let mut bad = 0;
        while !resets.stream_closed(Duration::ZERO, true) {
            bad += 1;
        }
        assert_eq!(2 * (667 + bad + 1), 2_000 + bad + 1);
    }
}
