//! Rapid reset (CVE-2023-44487), paced or not: what a client may reset before its connection is ended.
//!
//! Two rules, both Envoy's: [`PrematureResets`] judges which share of the streams was reset before it could be answered,
//! [`ResetRate`] how many RST_STREAM frames come in a time. The machine asks them; no I/O, no clock.

use std::time::Duration;

use tokio::time::Instant;

use crate::matchers::Runtime;

/// When resets are too many and too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrematureLimits {
    /// `overload.premature_reset_total_stream_count`: streams after which the share of resets counts. Default 500.
    pub streams: u64,
    /// `overload.premature_reset_min_stream_lifetime_seconds`: whole seconds up to which a reset is early. Default 1.
    pub lifetime: u64,
}

impl Default for PrematureLimits {
    fn default() -> Self {
        PrematureLimits { streams: 500, lifetime: 1 }
    }
}

impl PrematureLimits {
    /// As a runtime has them now.
    pub fn of(runtime: &dyn Runtime) -> PrematureLimits {
        let default = PrematureLimits::default();
        let or = |key: &str, default| runtime.integer(key).unwrap_or(default);
        PrematureLimits {
            streams: or("overload.premature_reset_total_stream_count", default.streams),
            lifetime: or("overload.premature_reset_min_stream_lifetime_seconds", default.lifetime),
        }
    }
}

/// Counts the streams of one connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct PrematureResets {
    closed: u64,
    premature: u64,
}

impl PrematureResets {
    /// Notes the end of a stream that the peer did not reset early.
    pub fn stream_closed(&mut self) {
        self.closed += 1;
    }

    /// Notes that the peer reset a stream before a response had a status. True: the connection is to be closed and
    /// `downstream_rq_too_many_premature_resets` counted.
    #[must_use]
    pub fn stream_reset(&mut self, age: Duration, limits: PrematureLimits) -> bool {
        self.closed += 1;
        if age.as_secs() <= limits.lifetime {
            self.premature += 1;
        }
        // Below the limit: would half of the streams be bad even if all to come were good?
        self.premature > 0 && self.premature * 2 >= self.closed.max(limits.streams)
    }
}

/// `stream_reset_burst` and `stream_reset_rate`: a bucket that each RST_STREAM takes a token from, filled up by whole
/// seconds.
#[derive(Debug, Clone, Copy)]
pub struct ResetRate {
    tokens: u64,
    burst: u64,
    rate: u64,
    filled: Instant,
}

impl ResetRate {
    /// A full bucket.
    pub fn new(burst: u64, rate: u64, now: Instant) -> ResetRate {
        ResetRate { tokens: burst, burst, rate, filled: now }
    }

    /// Takes a token. False: there is none, and the connection is to be ended.
    #[must_use]
    pub fn take(&mut self, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.filled).as_secs();
        if seconds > 0 {
            self.filled += Duration::from_secs(seconds);
            self.tokens = self.tokens.saturating_add(self.rate.saturating_mul(seconds)).min(self.burst);
        }
        let some = self.tokens > 0;
        self.tokens -= u64::from(some);
        some
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    #[test]
    fn half_of_the_limit_in_early_resets_ends_the_connection() {
        let mut resets = PrematureResets::default();
        let ended = (1..=500).find(|_| resets.stream_reset(SOON, PrematureLimits::default()));
        assert_eq!(ended, Some(250));
        let mut resets = PrematureResets::default();
        let limits = PrematureLimits { streams: 20, lifetime: 0 };
        assert_eq!((1..=20).find(|_| resets.stream_reset(SOON, limits)), Some(10));
    }

    #[test]
    fn late_resets_and_answered_streams_do_not_count() {
        let mut resets = PrematureResets::default();
        let limits = PrematureLimits::default();
        assert!((0..10_000).all(|_| !resets.stream_reset(Duration::from_secs(2), limits)));
        for _ in 0..10_000 {
            resets.stream_closed();
        }
        assert!(!resets.stream_reset(Duration::from_millis(1_999), limits));
    }

    #[test]
    fn after_the_limit_the_share_decides() {
        let mut resets = PrematureResets::default();
        let limits = PrematureLimits::default();
        for i in 0..2_000 {
            if i % 3 == 0 {
                assert!(!resets.stream_reset(Duration::ZERO, limits));
            } else {
                resets.stream_closed();
            }
        }
        let mut bad = 0;
        while !resets.stream_reset(Duration::ZERO, limits) {
            bad += 1;
        }
        assert_eq!(2 * (667 + bad + 1), 2_000 + bad + 1);
    }

    #[test]
    fn a_runtime_sets_the_limits() {
        struct Twenty;
        impl Runtime for Twenty {
            fn integer(&self, key: &str) -> Option<u64> {
                key.ends_with("total_stream_count").then_some(20)
            }
        }
        assert_eq!(PrematureLimits::of(&Twenty), PrematureLimits { streams: 20, lifetime: 1 });
    }

    #[test]
    fn the_bucket_fills_up_each_second_and_never_beyond_its_burst() {
        let start = Instant::now();
        let mut bucket = ResetRate::new(5, 2, start);
        let taken = |bucket: &mut ResetRate, at: u64| {
            (0..100).take_while(|_| bucket.take(start + Duration::from_millis(at))).count()
        };
        assert_eq!(taken(&mut bucket, 0), 5);
        assert_eq!(taken(&mut bucket, 999), 0);
        assert_eq!(taken(&mut bucket, 1_000), 2);
        assert_eq!(taken(&mut bucket, 2_500), 2);
        assert_eq!(taken(&mut bucket, 3_000), 2);
        assert_eq!(taken(&mut bucket, 60_000), 5);
    }
}
