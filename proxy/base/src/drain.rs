//! The drain signal: how workers learn that a server, a listener or a filter chain is going away.
//!
//! The control thread holds a [`DrainHandle`] and starts the drain; connections hold a [`DrainSignal`], ask it for each
//! response whether to close ([`DrainSignal::drain_close`]) and wait on it while idle. Handles nest: starting the
//! server's drain starts every listener's. What a drain does to a connection is not decided here.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::random;

/// How connections are closed during a drain (`--drain-strategy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainStrategy {
    /// The share of responses that close their connection grows over the drain time.
    Gradual,
    /// Every response closes its connection.
    Immediate,
}

const IDLE: u8 = 0;
const GRADUAL: u8 = 1;
const IMMEDIATE: u8 = 2;

struct State {
    phase: AtomicU8,
    /// Close every connection although no drain runs (the admin failed the health check).
    close_all: AtomicBool,
    /// Whether that may happen here and below.
    may_close_all: bool,
    /// Milliseconds since `epoch`, and length in milliseconds; valid once `phase` is not idle.
    started: AtomicU64,
    length: AtomicU64,
    epoch: Instant,
    notify: Notify,
    children: Mutex<Vec<Weak<State>>>,
}

impl State {
    fn new(may_close_all: bool) -> Self {
        Self {
            phase: AtomicU8::new(IDLE),
            close_all: AtomicBool::new(false),
            may_close_all,
            started: AtomicU64::new(0),
            length: AtomicU64::new(0),
            epoch: Instant::now(),
            notify: Notify::new(),
            children: Mutex::default(),
        }
    }

    fn children(&self) -> MutexGuard<'_, Vec<Weak<State>>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, strategy: DrainStrategy, length: Duration, at: Instant) {
        let children: Vec<_> = {
            let mut children = self.children();
            if self.phase.load(Ordering::Relaxed) == IDLE {
                let since = at.saturating_duration_since(self.epoch);
                self.started.store(since.as_millis() as u64, Ordering::Relaxed);
                self.length.store(length.as_millis() as u64, Ordering::Relaxed);
                let phase = if strategy == DrainStrategy::Gradual { GRADUAL } else { IMMEDIATE };
                self.phase.store(phase, Ordering::Release);
                self.notify.notify_waiters();
            }
            children.retain(|child| child.strong_count() > 0);
            children.iter().filter_map(Weak::upgrade).collect()
        };
        for child in children {
            child.start(strategy, length, at);
        }
    }

    fn set_close_all(&self, on: bool) {
        if !self.may_close_all {
            return;
        }
        let children: Vec<_> = {
            let children = self.children();
            self.close_all.store(on, Ordering::Relaxed);
            children.iter().filter_map(Weak::upgrade).collect()
        };
        for child in children {
            child.set_close_all(on);
        }
    }
}

/// The sending side: starts a drain. Held by the control thread.
#[derive(Clone)]
pub struct DrainHandle {
    state: Arc<State>,
}

impl Default for DrainHandle {
    fn default() -> Self {
        Self::new()
    }
}

impl DrainHandle {
    /// A handle under no other.
    pub fn new() -> Self {
        Self { state: Arc::new(State::new(true)) }
    }

    /// A handle that drains when this one does, and can also drain alone (a listener under the server).
    pub fn child(&self) -> Self {
        self.child_that(true)
    }

    /// As [`child`](Self::child), without what [`set_close_all`](Self::set_close_all) does (`drain_type: MODIFY_ONLY`).
    pub fn child_for_modifications(&self) -> Self {
        self.child_that(false)
    }

    fn child_that(&self, may_close_all: bool) -> Self {
        let child = Self { state: Arc::new(State::new(may_close_all)) };
        let mut children = self.state.children();
        children.retain(|child| child.strong_count() > 0);
        children.push(Arc::downgrade(&child.state));
        child.state.set_close_all(self.state.close_all.load(Ordering::Relaxed));
        let phase = self.state.phase.load(Ordering::Acquire);
        if phase != IDLE {
            let strategy = if phase == GRADUAL { DrainStrategy::Gradual } else { DrainStrategy::Immediate };
            let at = self.state.epoch + Duration::from_millis(self.state.started.load(Ordering::Relaxed));
            child.state.start(strategy, Duration::from_millis(self.state.length.load(Ordering::Relaxed)), at);
        }
        child
    }

    /// Starts the drain, here and below. A drain that already runs goes on as it is.
    pub fn start(&self, strategy: DrainStrategy, length: Duration) {
        self.state.start(strategy, length, Instant::now());
    }

    /// Makes [`DrainSignal::drain_close`] say yes for every response, here and below, without a drain: what the admin's
    /// `/healthcheck/fail` does, until `/healthcheck/ok`.
    pub fn set_close_all(&self, on: bool) {
        self.state.set_close_all(on);
    }

    /// The receiving side.
    pub fn signal(&self) -> DrainSignal {
        DrainSignal { state: self.state.clone() }
    }
}

/// The receiving side, for workers. Cheap to clone and to ask.
#[derive(Clone)]
pub struct DrainSignal {
    state: Arc<State>,
}

impl DrainSignal {
    /// Whether a drain runs.
    #[inline]
    pub fn is_draining(&self) -> bool {
        self.state.phase.load(Ordering::Acquire) != IDLE
    }

    /// Whether the connection should be closed after the response at hand. Under [`DrainStrategy::Gradual`] the
    /// probability is the share of the drain time that has passed, as in Envoy.
    #[inline]
    pub fn drain_close(&self) -> bool {
        if self.state.close_all.load(Ordering::Relaxed) {
            return true;
        }
        match self.state.phase.load(Ordering::Acquire) {
            IDLE => false,
            GRADUAL => self.gradual(Instant::now(), random::u64()),
            _ => true,
        }
    }

    fn gradual(&self, now: Instant, random: u64) -> bool {
        let length = self.state.length.load(Ordering::Relaxed);
        let since = now.saturating_duration_since(self.state.epoch).as_millis() as u64;
        let elapsed = since.saturating_sub(self.state.started.load(Ordering::Relaxed));
        elapsed >= length || elapsed > random % length
    }

    /// Waits until a drain starts; ready at once if one runs.
    pub async fn draining(&self) {
        let notified = self.state.notify.notified();
        if self.is_draining() {
            return;
        }
        notified.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn starting_the_parent_starts_the_children() {
        let server = DrainHandle::new();
        let listener = server.child();
        let signal = listener.signal();
        assert!(!signal.is_draining() && !signal.drain_close());
        let waiter = tokio::spawn({
            let signal = signal.clone();
            async move { signal.draining().await }
        });
        tokio::task::yield_now().await;
        server.start(DrainStrategy::Immediate, Duration::from_secs(600));
        waiter.await.expect("the waiter ends");
        assert!(signal.drain_close());
        signal.draining().await;
        assert!(server.child().signal().is_draining());
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_can_drain_alone() {
        let server = DrainHandle::new();
        let (one, two) = (server.child(), server.child());
        one.start(DrainStrategy::Immediate, Duration::from_secs(1));
        assert!(one.signal().is_draining());
        assert!(!two.signal().is_draining() && !server.signal().is_draining());
    }

    #[tokio::test(start_paused = true)]
    async fn gradual_closing_grows_with_time() {
        let handle = DrainHandle::new();
        let signal = handle.signal();
        handle.start(DrainStrategy::Gradual, Duration::from_secs(100));
        let share = |signal: &DrainSignal| {
            (0..100_000).step_by(1000).filter(|random| signal.gradual(Instant::now(), *random)).count()
        };
        assert_eq!(share(&signal), 0);
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!(share(&signal), 50);
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!(share(&signal), 100);
    }

    #[test]
    fn a_failed_health_check_closes_without_a_drain() {
        let server = DrainHandle::new();
        let signal = server.child().signal();
        server.set_close_all(true);
        assert!(signal.drain_close() && !signal.is_draining());
        server.set_close_all(false);
        assert!(!signal.drain_close());
    }

    #[test]
    fn a_failed_health_check_closes_nothing_where_only_modifications_drain() {
        let server = DrainHandle::new();
        let (usual, other) = (server.child().signal(), server.child_for_modifications());
        let below = other.child().signal();
        server.set_close_all(true);
        assert!(usual.drain_close() && server.child().signal().drain_close());
        assert!(!other.signal().drain_close() && !below.drain_close());
        assert!(!server.child_for_modifications().signal().drain_close());
        server.start(DrainStrategy::Immediate, Duration::from_secs(600));
        assert!(below.drain_close());
    }
}
