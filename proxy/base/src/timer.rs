//! One coarse timer wheel per thread, for request, idle and header timeouts.
//!
//! A [`Sleep`] costs a slab entry and two list links; there is no allocation in a steady state, and dropping it cancels it.
//! Moving a deadline later only writes it down: the entry is moved when its old slot comes up. One task per thread
//! sleeps on tokio's clock until the earliest slot and is re-armed only for an earlier deadline, so that a busy worker does
//! not touch tokio's timers for each request, and a worker without timers is never woken.
//!
//! Deadlines are rounded up: to the millisecond below 100 ms, else by at most 1 %. The clock is tokio's, so tests can pause it.
//! The calling thread must run a tokio current-thread runtime. Timers are not `Send`.
//!
//! Six levels of 64 slots, a millisecond to two years; an entry sits on the level of the highest bit in which its
//! deadline differs from the wheel's time, and falls one level or more when its slot comes up.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

use crate::clock;

const LEVELS: usize = 6;
const SLOTS: usize = 64;
const SLOT_BITS: u32 = 6;
/// Longest delay that the wheel holds, in ticks of a millisecond (34 years would need one level more).
const MAX_TICKS: u64 = (1 << (SLOT_BITS * LEVELS as u32)) - 1;
const NONE: u32 = u32::MAX;
const NANOS_PER_TICK: u64 = 1_000_000;

thread_local! {
    static WHEEL: RefCell<Wheel> = RefCell::new(Wheel::new());
}

/// Waits for `delay`.
pub fn sleep(delay: Duration) -> Sleep {
    sleep_until_tick(deadline_tick(delay))
}

/// A timer that has ended.
pub fn over() -> Sleep {
    sleep_until_tick(0)
}

fn sleep_until_tick(deadline: u64) -> Sleep {
    Sleep { deadline, key: NONE, not_send: PhantomData }
}

/// Starts the calling thread's timer task now instead of with its first timer.
pub fn start() {
    WHEEL.with_borrow_mut(Wheel::ensure_driver);
}

/// Waits for `future`, at most for `delay`.
///
/// # Errors
/// [`Elapsed`] when the time ran out first; the future is dropped then.
pub async fn timeout<F: Future>(delay: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = std::pin::pin!(future);
    // Most are ready at once, and then no deadline is needed.
    let mut timer = None;
    std::future::poll_fn(move |context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(timer.get_or_insert_with(|| sleep(delay))).poll(context).map(|()| Err(Elapsed))
    })
    .await
}

/// The time ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deadline has elapsed")]
pub struct Elapsed;

/// A timer; ready when its delay has passed. Made by [`sleep`].
#[derive(Debug)]
#[must_use = "a timer does nothing unless polled"]
pub struct Sleep {
    deadline: u64,
    /// Entry in the wheel; none before the first poll and after it fired.
    key: u32,
    /// The entry belongs to this thread's wheel.
    not_send: PhantomData<*const ()>,
}

impl Sleep {
    /// Starts the wait again, for `delay` from now. Also for a timer that fired; poll it again to be woken.
    pub fn reset(&mut self, delay: Duration) {
        self.deadline = deadline_tick(delay);
        if self.key != NONE {
            WHEEL.with_borrow_mut(|wheel| wheel.move_to(self.key, self.deadline));
        }
    }

    /// Whether the delay has passed.
    pub fn is_elapsed(&self) -> bool {
        WHEEL.with_borrow(|wheel| wheel.current_tick()) >= self.deadline
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        WHEEL.with_borrow_mut(|wheel| {
            if this.key == NONE {
                if wheel.current_tick() >= this.deadline {
                    return Poll::Ready(());
                }
                wheel.ensure_driver();
                this.key = wheel.insert(this.deadline, context.waker().clone());
                return Poll::Pending;
            }
            let Some(entry) = wheel.entries.get_mut(this.key as usize) else {
                return Poll::Ready(());
            };
            if entry.slot == FIRED && entry.deadline == this.deadline {
                wheel.entries.remove(this.key as usize);
                this.key = NONE;
                return Poll::Ready(());
            }
            match &mut entry.waker {
                Some(waker) if waker.will_wake(context.waker()) => {}
                waker => *waker = Some(context.waker().clone()),
            }
            Poll::Pending
        })
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if self.key == NONE {
            return;
        }
        // The wheel may be gone when a thread ends with timers left.
        let waker = WHEEL.try_with(|wheel| wheel.try_borrow_mut().ok().and_then(|mut wheel| wheel.remove(self.key)));
        drop(waker);
    }
}

fn deadline_tick(delay: Duration) -> u64 {
    WHEEL.with_borrow(|wheel| wheel.deadline_tick(delay))
}

fn nanos_of(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(duration.subsec_nanos().into())
}

/// Not linked: the deadline has passed.
const FIRED: u16 = u16::MAX;

struct Entry {
    deadline: u64,
    /// Level * 64 + slot where the entry is linked, or [`FIRED`].
    slot: u16,
    next: u32,
    prev: u32,
    waker: Option<Waker>,
}

struct Wheel {
    start: Instant,
    /// The last reading of the clock, and what it is in nanoseconds since the start.
    reading: Cell<(Instant, u64)>,
    /// Every tick up to this one has been handled.
    now: u64,
    entries: Slab<Entry>,
    heads: [u32; LEVELS * SLOTS],
    occupied: [u64; LEVELS],
    /// When the driver will wake up; none while it waits to be armed.
    armed: Option<u64>,
    driver: DriverState,
}

enum DriverState {
    Absent,
    Running(Option<Waker>),
}

impl Wheel {
    fn new() -> Self {
        let start = Instant::now();
        Self {
            start,
            reading: Cell::new((start, 0)),
            now: 0,
            entries: Slab::new(),
            heads: [NONE; LEVELS * SLOTS],
            occupied: [0; LEVELS],
            armed: None,
            driver: DriverState::Absent,
        }
    }

    /// Whole milliseconds since the wheel's start.
    fn current_tick(&self) -> u64 {
        self.nanos() / NANOS_PER_TICK
    }

    /// Nanoseconds since the wheel's start (584 years at most). Several timers of a request ask within one reading of the
    /// clock.
    fn nanos(&self) -> u64 {
        let now = clock::now();
        let (at, nanos) = self.reading.get();
        if at == now {
            return nanos;
        }
        let nanos = nanos_of(now.saturating_duration_since(self.start));
        self.reading.set((now, nanos));
        nanos
    }

    fn deadline_tick(&self, delay: Duration) -> u64 {
        let delay = nanos_of(delay);
        let ticks = self.nanos().saturating_add(delay).div_ceil(NANOS_PER_TICK);
        let millis = delay / NANOS_PER_TICK;
        // At most 1/128 of the delay, so that the deadlines of many requests share slots. A power of two.
        let grain = if millis < 100 { 1 } else { 1u64 << (millis / 128).max(1).ilog2() };
        ticks.saturating_add(grain - 1) & !(grain - 1)
    }

    fn insert(&mut self, deadline: u64, waker: Waker) -> u32 {
        let key = self.entries.insert(Entry { deadline, slot: FIRED, next: NONE, prev: NONE, waker: Some(waker) });
        self.link(key as u32);
        self.arm();
        key as u32
    }

    fn remove(&mut self, key: u32) -> Option<Waker> {
        let entry = self.entries.get(key as usize)?;
        if entry.slot != FIRED {
            self.unlink(key);
        }
        self.entries.remove(key as usize).waker
    }

    fn move_to(&mut self, key: u32, deadline: u64) {
        let Some(entry) = self.entries.get_mut(key as usize) else { return };
        let earlier = deadline < entry.deadline;
        entry.deadline = deadline;
        if entry.slot == FIRED {
            self.link(key);
            self.arm();
        } else if earlier {
            self.unlink(key);
            self.link(key);
            self.arm();
        }
    }

    fn link(&mut self, key: u32) {
        let deadline = self.entries[key as usize].deadline.clamp(self.now + 1, self.now.saturating_add(MAX_TICKS));
        let masked = (deadline ^ self.now) | 1;
        let level = ((masked.ilog2() / SLOT_BITS) as usize).min(LEVELS - 1);
        let slot = (deadline >> (SLOT_BITS as usize * level)) as usize % SLOTS;
        let at = level * SLOTS + slot;
        let head = self.heads[at];
        if head != NONE {
            self.entries[head as usize].prev = key;
        }
        let entry = &mut self.entries[key as usize];
        (entry.slot, entry.next, entry.prev) = (at as u16, head, NONE);
        self.heads[at] = key;
        self.occupied[level] |= 1 << slot;
    }

    fn unlink(&mut self, key: u32) {
        let entry = &self.entries[key as usize];
        let (slot, next, prev) = (usize::from(entry.slot), entry.next, entry.prev);
        if prev == NONE {
            self.heads[slot] = next;
            if next == NONE {
                self.occupied[slot / SLOTS] &= !(1 << (slot % SLOTS));
            }
        } else {
            self.entries[prev as usize].next = next;
        }
        if next != NONE {
            self.entries[next as usize].prev = prev;
        }
        let entry = &mut self.entries[key as usize];
        (entry.slot, entry.next, entry.prev) = (FIRED, NONE, NONE);
    }

    /// Level, slot and start tick of the slot that comes up first.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        let mut best: Option<(usize, usize, u64)> = None;
        for level in 0..LEVELS {
            if self.occupied[level] == 0 {
                continue;
            }
            let shift = SLOT_BITS * level as u32;
            let here = (self.now >> shift) as u32 % SLOTS as u32;
            let distance = self.occupied[level].rotate_right(here).trailing_zeros();
            let slot = (here + distance) as usize % SLOTS;
            // Only the top level wraps: an entry in the current slot is one full turn away.
            let distance = if distance == 0 && level == LEVELS - 1 { SLOTS as u32 } else { distance };
            let start = ((self.now >> shift) + u64::from(distance)) << shift;
            if best.is_none_or(|(_, _, tick)| start < tick) {
                best = Some((level, slot, start));
            }
        }
        best
    }

    /// Handles every slot up to `tick`; moves the wakers of what fired to `wakers`.
    fn advance(&mut self, tick: u64, wakers: &mut Vec<Waker>) {
        while let Some((level, slot, start)) = self.next_slot() {
            if start > tick {
                break;
            }
            self.now = self.now.max(start);
            let at = level * SLOTS + slot;
            let mut key = std::mem::replace(&mut self.heads[at], NONE);
            self.occupied[level] &= !(1 << slot);
            while key != NONE {
                let entry = &mut self.entries[key as usize];
                let next = entry.next;
                (entry.slot, entry.next, entry.prev) = (FIRED, NONE, NONE);
                if entry.deadline <= self.now {
                    wakers.extend(entry.waker.take());
                } else {
                    self.link(key);
                }
                key = next;
            }
        }
        self.now = self.now.max(tick);
    }

    /// Wakes the driver if the first slot comes up before it would wake by itself.
    fn arm(&mut self) {
        let Some((_, _, first)) = self.next_slot() else { return };
        if self.armed.is_none_or(|armed| first < armed)
            && let DriverState::Running(waker) = &mut self.driver
            && let Some(waker) = waker.take()
        {
            waker.wake();
        }
    }

    fn ensure_driver(&mut self) {
        if matches!(self.driver, DriverState::Running(_)) {
            return;
        }
        if self.entries.is_empty() {
            // A new runtime on this thread may have another (paused) clock.
            self.start = self.start.min(Instant::now());
            self.reading.set((self.start, 0));
            self.now = self.now.min(self.current_tick());
        }
        self.driver = DriverState::Running(None);
        self.armed = None;
        tokio::spawn(Driver { sleep: None, guard: DriverGuard, wakers: Vec::new() });
    }
}

/// The one task per thread that waits on tokio's clock. Holds nothing of the wheel, which it finds by its thread.
struct Driver {
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
    #[expect(dead_code, reason = "marks the driver absent when the runtime drops it")]
    guard: DriverGuard,
    wakers: Vec<Waker>,
}

struct DriverGuard;

impl Drop for DriverGuard {
    fn drop(&mut self) {
        let _ = WHEEL.try_with(|wheel| {
            if let Ok(mut wheel) = wheel.try_borrow_mut() {
                wheel.driver = DriverState::Absent;
                wheel.armed = None;
            }
        });
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            let first = WHEEL.with_borrow_mut(|wheel| {
                wheel.advance(wheel.current_tick(), &mut this.wakers);
                let first = wheel.next_slot().map(|(_, _, tick)| tick);
                wheel.armed = first;
                wheel.driver = DriverState::Running(Some(context.waker().clone()));
                first.map(|tick| wheel.start + Duration::from_millis(tick))
            });
            for waker in this.wakers.drain(..) {
                waker.wake();
            }
            let Some(deadline) = first else { return Poll::Pending };
            let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if sleep.deadline() != deadline {
                sleep.as_mut().reset(deadline);
            }
            if sleep.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elapsed_ms(since: Instant) -> u64 {
        since.elapsed().as_millis() as u64
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_ends_on_time_or_at_most_one_percent_late() {
        for millis in [0, 1, 2, 7, 63, 64, 65, 99, 100, 500, 4095, 4096, 15_000, 300_000, 3_600_000, 90_000_000] {
            let start = Instant::now();
            sleep(Duration::from_millis(millis)).await;
            let took = elapsed_ms(start);
            assert!(took >= millis && took <= millis + 2 + millis / 100, "{millis} took {took}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_sleeps_end_in_order() {
        let start = Instant::now();
        let delays = (0..500u64).map(|n| n * n * 37 % 70_000).collect::<Vec<_>>();
        let tasks = tokio::task::LocalSet::new();
        let ends = std::rc::Rc::new(RefCell::new(Vec::new()));
        for delay in delays {
            let ends = ends.clone();
            tasks.spawn_local(async move {
                sleep(Duration::from_millis(delay)).await;
                ends.borrow_mut().push((delay, elapsed_ms(start)));
            });
        }
        tasks.await;
        assert_eq!(ends.borrow().len(), 500);
        for (delay, end) in ends.borrow().iter() {
            assert!(end >= delay && *end <= delay + 2 + delay / 100, "{delay} ended at {end}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_moves_the_end_both_ways() {
        let start = Instant::now();
        let mut timer = sleep(Duration::from_secs(10));
        let mut pinned = std::pin::pin!(&mut timer);
        assert!(futures_poll(&mut pinned).await.is_pending());
        timer.reset(Duration::from_secs(20));
        sleep(Duration::from_secs(11)).await;
        let mut pinned = std::pin::pin!(&mut timer);
        assert!(futures_poll(&mut pinned).await.is_pending());
        timer.reset(Duration::from_secs(1));
        (&mut timer).await;
        let took = elapsed_ms(start);
        assert!((12_000..12_250).contains(&took), "{took}");
        timer.reset(Duration::from_millis(50));
        timer.await;
        assert!(elapsed_ms(start) - took >= 50);
    }

    #[tokio::test(start_paused = true)]
    async fn any_mix_of_waits_resets_and_drops_ends_on_time() {
        let on_time = |start: Instant, delay: u64| {
            let took = elapsed_ms(start);
            assert!(took >= delay && took <= delay + 2 + delay / 100, "{delay} took {took}");
        };
        let tasks = tokio::task::LocalSet::new();
        for seed in 0..200 {
            tasks.spawn_local(async move {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut pick = move || 1u64 << rng.u64(0..22);
                for _ in 0..50 {
                    let (first, second) = (pick() + pick() % 1000, pick() + pick() % 97);
                    let mut timer = sleep(Duration::from_millis(first));
                    assert!(futures_poll(&mut std::pin::pin!(&mut timer)).await.is_pending());
                    match second % 3 {
                        0 => {
                            let start = Instant::now();
                            timer.await;
                            on_time(start, first);
                        }
                        1 => {
                            let _ = timeout(Duration::from_millis(second), &mut timer).await;
                            let start = Instant::now();
                            timer.reset(Duration::from_millis(second));
                            (&mut timer).await;
                            on_time(start, second);
                        }
                        _ => drop(timer),
                    }
                }
            });
        }
        tasks.await;
        WHEEL.with_borrow(|wheel| assert!(wheel.entries.is_empty() && wheel.occupied == [0; LEVELS]));
    }

    async fn futures_poll<F: Future>(future: &mut Pin<&mut F>) -> Poll<F::Output> {
        std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_sleep_leaves_nothing_behind() {
        for round in 0..3 {
            let mut timers: Vec<_> = (0..100).map(|n| sleep(Duration::from_millis(1 + n * 50))).collect();
            for timer in &mut timers {
                assert!(futures_poll(&mut std::pin::pin!(timer)).await.is_pending());
            }
            drop(timers);
            WHEEL.with_borrow(|wheel| {
                assert!(wheel.entries.is_empty() && wheel.occupied == [0; LEVELS], "round {round}");
                assert!(wheel.entries.capacity() <= 128);
            });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_timer_does_not_wake_the_driver() {
        let mut first = sleep(Duration::from_secs(5));
        assert!(futures_poll(&mut std::pin::pin!(&mut first)).await.is_pending());
        tokio::task::yield_now().await;
        let mut later = sleep(Duration::from_secs(50));
        assert!(futures_poll(&mut std::pin::pin!(&mut later)).await.is_pending());
        WHEEL.with_borrow(|wheel| assert!(matches!(wheel.driver, DriverState::Running(Some(_)))));
        let mut earlier = sleep(Duration::from_millis(5));
        assert!(futures_poll(&mut std::pin::pin!(&mut earlier)).await.is_pending());
        WHEEL.with_borrow(|wheel| assert!(matches!(wheel.driver, DriverState::Running(None))));
    }

    #[test]
    fn a_second_runtime_on_the_thread_has_timers_too() {
        for _ in 0..3 {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            runtime.expect("a runtime").block_on(async {
                let start = Instant::now();
                sleep(Duration::from_secs(100)).await;
                assert!((100_000..101_000).contains(&elapsed_ms(start)));
            });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_gives_the_output_or_elapsed() {
        assert_eq!(timeout(Duration::from_secs(1), async { 7 }).await, Ok(7));
        assert_eq!(timeout(Duration::from_secs(1), std::future::pending::<()>()).await, Err(Elapsed));
    }
}
