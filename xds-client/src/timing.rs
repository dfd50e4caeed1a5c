//! Time and randomness for the machines: all of it is passed in.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use rustc_hash::FxHashMap;

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For deadlines.
    pub instant: Instant,
    /// For what people read.
    pub wall: SystemTime,
}

/// The jittered exponential back-off between two attempts to open a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The upper bound of the first wait. Envoy's default is 500 ms.
    pub base: Duration,
    /// The upper bound of every wait. Envoy's default is 30 s.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { base: Duration::from_millis(500), max: Duration::from_secs(30) }
    }
}

impl Backoff {
    /// The wait after `failures` attempts in a row without a response, the first of which is number 0: anything below a
    /// bound that doubles each time (full jitter). `random` is uniform.
    pub fn wait(&self, failures: u32, random: u64) -> Duration {
        let bound = self.base.saturating_mul(1u32.checked_shl(failures.min(31)).unwrap_or(u32::MAX)).min(self.max);
        let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(random % nanos.max(1))
    }
}

/// A limit on requests: a token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// How many requests may go at once. Envoy's default is 100.
    pub max_tokens: u32,
    /// How many more may go each second. Envoy's default is 10.
    pub fill_rate: f64,
}

impl Default for RateLimit {
    fn default() -> RateLimit {
        RateLimit { max_tokens: 100, fill_rate: 10.0 }
    }
}

/// The tokens of a [`RateLimit`].
#[derive(Debug)]

pub(crate) struct TokenBucket {
    limit: RateLimit,
    tokens: f64,
    last: Option<Instant>,
}

impl TokenBucket {
    pub(crate) fn new(limit: RateLimit) -> TokenBucket {
        TokenBucket { limit, tokens: f64::from(limit.max_tokens), last: None }
    }

    /// Takes one token, or says when there will be one.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let rate = self.limit.fill_rate.max(1e-3);
        if let Some(last) = self.last {
            let filled = now.saturating_duration_since(last).as_secs_f64() * rate;
            self.tokens = (self.tokens + filled).min(f64::from(self.limit.max_tokens));
        }
        self.last = Some(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(now + Duration::from_secs_f64((1.0 - self.tokens) / rate) + Duration::from_nanos(1))
    }
}

/// Deadlines by key: the expiry of resources, the first fetch of subscriptions.
#[derive(Debug)]

pub(crate) struct Deadlines<K> {
    queue: BTreeSet<(Instant, K)>,
    by_key: FxHashMap<K, Instant>,
}

impl<K> Default for Deadlines<K> {
    fn default() -> Self {
        Deadlines { queue: BTreeSet::new(), by_key: FxHashMap::default() }
    }
}

impl<K: Clone + Ord + std::hash::Hash> Deadlines<K> {
    /// Sets the deadline of `key`, in place of the one it had.
    pub(crate) fn set(&mut self, key: K, at: Instant) {
        if let Some(old) = self.by_key.insert(key.clone(), at) {
            self.queue.remove(&(old, key.clone()));
        }
        self.queue.insert((at, key));
    }

    pub(crate) fn clear(&mut self, key: &K) {
        if let Some((key, at)) = self.by_key.remove_entry(key) {
            self.queue.remove(&(at, key));
        }
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes out all that are due.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<K> {
        let mut due = Vec::new();
        while self.queue.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.queue.pop_first() else { break };
            self.by_key.remove(&key);
            due.push(key);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_doubles_up_to_its_maximum_with_full_jitter() {
        let backoff = Backoff::default();
        let nanos = |ms: u64| ms * 1_000_000;
        for (failures, bound) in [(0, 500), (1, 1000), (2, 2000), (5, 16_000), (6, 30_000), (40, 30_000)] {
            let longest = backoff.wait(failures, nanos(bound) - 1);
            assert_eq!(longest, Duration::from_nanos(nanos(bound) - 1));
            assert_eq!(backoff.wait(failures, nanos(bound)), Duration::ZERO);
        }
    }

    #[test]
    fn a_hundred_requests_go_at_once_and_then_ten_a_second() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(RateLimit::default());
        for _ in 0..100 {
            bucket.take(start).unwrap();
        }
        let at = bucket.take(start).unwrap_err();
        assert_eq!((at - start).as_millis(), 100);
        bucket.take(at).unwrap();
        assert!(bucket.take(at).is_err());
        let later = at + Duration::from_secs(3600);
        for _ in 0..100 {
            bucket.take(later).unwrap();
        }
        assert!(bucket.take(later).is_err());
    }

    #[test]
    fn a_deadline_that_is_set_again_counts_once() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut deadlines = Deadlines::default();
        deadlines.set("a", at(1));
        deadlines.set("b", at(2));
        deadlines.set("a", at(3));
        assert_eq!(deadlines.next(), Some(at(2)));
        assert_eq!(deadlines.due(at(2)), ["b"]);
        deadlines.clear(&"a");
        assert_eq!((deadlines.next(), deadlines.due(at(9))), (None, vec![]));
    }
}
