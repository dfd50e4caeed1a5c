//! The time as the data path sees it: read once each time a task is polled.
//!
//! A request passes some twenty points that want the time: its timers, its durations, the pool's. Between two of them in
//! one poll lie microseconds, so they share one reading of the clock. Tasks that serve connections and streams run in
//! [`once_per_poll`]; elsewhere [`now`] reads the clock each time, so that nothing ever sees the time of another task.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::time::Instant;

#[derive(Clone, Copy)]
enum Reading {
    /// Outside of a task that shares readings.
    Each,
    /// The poll has not asked yet.
    Wanted,
    At(Instant),
}

thread_local! {
    static READING: Cell<Reading> = const { Cell::new(Reading::Each) };
}

/// The time, on tokio's clock: within [`once_per_poll`] that of the first call in this poll.
#[inline]
pub fn now() -> Instant {
    READING.with(|reading| match reading.get() {
        Reading::At(at) => at,
        Reading::Each => Instant::now(),
        Reading::Wanted => {
            let at = Instant::now();
            reading.set(Reading::At(at));
            at
        }
    })
}

/// Polls `future` so that all that it runs shares one reading of the clock per poll.
pub fn once_per_poll<F: Future>(future: F) -> OncePerPoll<F> {
    OncePerPoll { future }
}

pin_project! {
    /// See [`once_per_poll`].
    #[must_use = "a future does nothing unless polled"]
    pub struct OncePerPoll<F> {
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for OncePerPoll<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // Put back also when the future panics.
        let _outer = Outer(READING.replace(Reading::Wanted));
        self.project().future.poll(cx)
    }
}

struct Outer(Reading);

impl Drop for Outer {
    fn drop(&mut self) {
        READING.set(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_poll_sees_one_time_and_the_next_poll_a_later_one() {
        let hour = Duration::from_secs(3600);
        let start = Instant::now();
        let (first, second) = once_per_poll(async {
            let first = now();
            assert_eq!(now(), first);
            tokio::time::sleep(hour).await;
            (first, now())
        })
        .await;
        assert_eq!(first, start);
        assert!(second >= start + hour);
    }

    #[tokio::test(start_paused = true)]
    async fn outside_of_such_a_task_every_call_reads_the_clock() {
        once_per_poll(async { now() }).await;
        let before = now();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(now() - before, Duration::from_secs(1));
    }

    #[test]
    fn a_panic_does_not_leave_a_reading_behind() {
        let panicked = std::panic::catch_unwind(|| {
            let mut future = std::pin::pin!(once_per_poll(async {
                now();
                panic!("on purpose");
            }));
            let _ = future.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
        });
        assert!(panicked.is_err());
        assert!(matches!(READING.get(), Reading::Each));
    }
}
