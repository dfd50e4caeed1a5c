//! What passes through a connection and what waits in it: numbers for access logs, and the stats of whoever owns it.
//!
//! [`Io`](crate::io::Io) counts reads and writes here, codecs say what they could not write yet. The owner of the
//! connection (a connection manager, a cluster, a TCP proxy) says where all of it is counted while the connection lives.
//! No clock and no I/O.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

/// The stats of an owner of connections. Amounts of gauges may be negative, in two's complement.
pub trait ByteStats {
    /// `*_cx_rx_bytes_total`
    fn received(&self, count: u64);
    /// `*_cx_tx_bytes_total`
    fn sent(&self, count: u64);
    /// `*_cx_rx_bytes_buffered`
    fn receive_buffered(&self, change: u64);
    /// `*_cx_tx_bytes_buffered`
    fn send_buffered(&self, change: u64);
    /// The first byte of a connection came, whose protocol was said to [`ByteMeter::expect`].
    fn spoken(&self, _protocol: Spoken) {}
}

/// What an owner speaks over a connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// No HTTP, or nothing was received yet.
    #[default]
    Nothing,
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// How far bytes that were put back have been read again.
#[derive(Debug, Default, Clone, Copy)]
enum Rejoin {
    #[default]
    No,
    First,
    Second,
}

/// Whether the peer broke the protocol.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Failure {
    #[default]
    None,
    /// With the first bytes that came.
    AtOnce,
    Later,
}

/// Bytes that passed through a connection, after decryption.
#[derive(Default)]
pub struct ByteMeter {
    /// From the peer.
    pub received: Cell<u64>,
    /// To the peer.
    pub sent: Cell<u64>,
    /// What the last read brought: Envoy's gauge is of the moment between reading and working on it.
    last_read: Cell<u32>,
    /// What was read to be looked at has been put back: two reads that follow are one.
    rejoin: Cell<Rejoin>,
    /// What waits for the socket.
    waiting: Cell<u32>,
    /// What is `spoken` once a byte comes.
    awaited: Cell<Spoken>,
    spoken: Cell<Spoken>,
    failure: Cell<Failure>,
    stats: RefCell<Option<Rc<dyn ByteStats>>>,
}

impl fmt::Debug for ByteMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteMeter").field("received", &self.received).field("sent", &self.sent).finish_non_exhaustive()
    }
}

impl ByteMeter {
    /// Counts into `stats` until [`ByteMeter::detach`], beginning with what has passed already.
    pub fn attach(&self, stats: Rc<dyn ByteStats>) {
        stats.received(self.received.get());
        stats.sent(self.sent.get());
        // A gauge that never moves is not in use.
        if self.last_read.get() > 0 {
            stats.receive_buffered(self.last_read.get().into());
        }
        if self.waiting.get() > 0 {
            stats.send_buffered(self.waiting.get().into());
        }
        *self.stats.borrow_mut() = Some(stats);
    }

    /// The connection is over: nothing is buffered in it any more.
    pub fn detach(&self) {
        let (last_read, waiting) = (self.last_read.take(), self.waiting.take());
        if let Some(stats) = self.stats.take() {
            if last_read > 0 {
                stats.receive_buffered(u64::from(last_read).wrapping_neg());
            }
            if waiting > 0 {
                stats.send_buffered(u64::from(waiting).wrapping_neg());
            }
        }
    }

    /// Says which protocol the connection is going to speak. As in Envoy it is spoken from the first byte on.
    pub fn expect(&self, protocol: Spoken) {
        self.awaited.set(protocol);
        if self.received.get() > 0 {
            self.begin();
        }
    }

    fn begin(&self) {
        let protocol = self.awaited.take();
        self.spoken.set(protocol);
        if let Some(stats) = &*self.stats.borrow() {
            stats.spoken(protocol);
        }
    }

    /// The protocol that is spoken.
    pub fn spoken(&self) -> Spoken {
        self.spoken.get()
    }

    /// The peer has broken the protocol.
    pub fn fail(&self) {
        let first = self.received.get() == u64::from(self.last_read.get());
        self.failure.set(if first { Failure::AtOnce } else { Failure::Later });
    }

    /// Whether the peer has broken the protocol.
    pub fn has_failed(&self) -> bool {
        self.failure.get() != Failure::None
    }

    /// The protocol that the log of a listener tells: none where the first bytes were an error.
    pub fn logged_protocol(&self) -> Spoken {
        if self.failure.get() == Failure::AtOnce { Spoken::Nothing } else { self.spoken.get() }
    }

    #[inline]
    pub(crate) fn add_received(&self, count: usize) {
        if count == 0 {
            return;
        }
        self.received.set(self.received.get() + count as u64);
        if self.awaited.get() != Spoken::Nothing {
            self.begin();
        }
        let mut now = u32::try_from(count).unwrap_or(u32::MAX);
        match self.rejoin.take() {
            Rejoin::No => {}
            Rejoin::First => self.rejoin.set(Rejoin::Second),
            Rejoin::Second => now = now.saturating_add(self.last_read.get()),
        }
        let before = self.last_read.replace(now);
        if let Some(stats) = &*self.stats.borrow() {
            stats.received(count as u64);
            if now != before {
                stats.receive_buffered(u64::from(now).wrapping_sub(before.into()));
            }
        }
    }

    /// Takes back what was counted of bytes that will be read again.
    pub(crate) fn unread(&self, count: usize) {
        if count > 0 {
            self.rejoin.set(Rejoin::First);
        }
        let left = self.received.get().saturating_sub(count as u64);
        let less = self.received.replace(left) - left;
        if let Some(stats) = &*self.stats.borrow() {
            stats.received(less.wrapping_neg());
        }
    }

    #[inline]
    pub(crate) fn add_sent(&self, count: usize) {
        self.sent.set(self.sent.get() + count as u64);
        if let Some(stats) = &*self.stats.borrow() {
            stats.sent(count as u64);
        }
    }

    /// Says how many bytes could not be written yet.
    #[inline]
    pub fn set_waiting(&self, count: usize) {
        let now = u32::try_from(count).unwrap_or(u32::MAX);
        let before = self.waiting.replace(now);
        if now != before
            && let Some(stats) = &*self.stats.borrow()
        {
            stats.send_buffered(u64::from(now).wrapping_sub(before.into()));
        }
    }
}

impl Drop for ByteMeter {
    fn drop(&mut self) {
        self.detach();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen([Cell<u64>; 4]);

    impl Seen {
        fn add(&self, at: usize, amount: u64) {
            self.0[at].set(self.0[at].get().wrapping_add(amount));
        }

        fn all(&self) -> [u64; 4] {
            [0, 1, 2, 3].map(|at| self.0[at].get())
        }
    }

    impl ByteStats for Seen {
        fn received(&self, count: u64) {
            self.add(0, count);
        }
        fn sent(&self, count: u64) {
            self.add(1, count);
        }
        fn receive_buffered(&self, change: u64) {
            self.add(2, change);
        }
        fn send_buffered(&self, change: u64) {
            self.add(3, change);
        }
    }

    #[test]
    fn an_owner_sees_what_passed_before_it_and_what_waits_now() {
        let (meter, seen) = (ByteMeter::default(), Rc::new(Seen::default()));
        meter.add_received(10);
        meter.add_sent(3);
        meter.attach(seen.clone());
        assert_eq!(seen.all(), [10, 3, 10, 0]);
        meter.add_received(4);
        meter.add_sent(5);
        meter.set_waiting(100);
        assert_eq!(seen.all(), [14, 8, 4, 100]);
        meter.unread(4);
        meter.add_received(4);
        meter.set_waiting(0);
        assert_eq!(seen.all(), [14, 8, 4, 0]);
    }

    #[test]
    fn nothing_stays_buffered_in_a_connection_that_is_gone() {
        let (meter, seen) = (Rc::new(ByteMeter::default()), Rc::new(Seen::default()));
        meter.attach(seen.clone());
        meter.add_received(7);
        meter.set_waiting(9);
        let other = meter.clone();
        meter.detach();
        assert_eq!(seen.all(), [7, 0, 0, 0]);
        // What holds on to the connection's numbers changes no stats any more.
        other.set_waiting(1);
        drop((meter, other));
        assert_eq!(seen.all(), [7, 0, 0, 0]);
    }
}
