//! Wakers of idle connections: made once per connection, they mark it and wake the pool's janitor.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// The janitor's side.
#[derive(Default)]
pub(super) struct JanitorWake {
    waker: Mutex<Option<Waker>>,
}

impl JanitorWake {
    /// Remembers the janitor's own waker.
    pub(super) fn set(&self, waker: &Waker) {
        let mut own = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        match &*own {
            Some(old) if old.will_wake(waker) => {}
            _ => *own = Some(waker.clone()),
        }
    }

    /// Wakes the janitor.
    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            waker.wake_by_ref();
        }
    }
}

/// One connection's side.
pub(super) struct ConnectionWake {
    fired: AtomicBool,
    janitor: Arc<JanitorWake>,
}

impl ConnectionWake {
    pub(super) fn new(janitor: &Arc<JanitorWake>) -> Arc<Self> {
        Arc::new(ConnectionWake { fired: AtomicBool::new(false), janitor: janitor.clone() })
    }

    /// Whether something happened on the connection since [`ConnectionWake::clear`].
    #[inline]
    pub(super) fn fired(&self) -> bool {
        self.fired.load(Relaxed)
    }

    #[inline]
    pub(super) fn clear(&self) {
        self.fired.store(false, Relaxed);
    }
}

impl Wake for ConnectionWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.fired.store(true, Relaxed);
        self.janitor.wake();
    }
}
