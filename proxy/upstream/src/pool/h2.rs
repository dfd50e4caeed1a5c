//! One pooled HTTP/2 connection and the task that drives it.

use super::connect::{Connected, CountedConnection, Ended};
use super::http::HttpPool;
use crate::stats::ClusterStats;
use nuncio_base::clock;
use nuncio_base::timer;
use nuncio_config::cluster::UpstreamHttpOptions;
use nuncio_http::codec::ResetReason;
use nuncio_http::codec::h2::{Config, H2Client, H2ClientStream, H2Sender};
use nuncio_net::connection::{ConnectionInfo, Io};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use tokio::time::Instant;

/// Streams at a time that the configuration allows.
pub(super) fn concurrent_limit(http: &UpstreamHttpOptions) -> u32 {
    http.http2.max_concurrent_streams.max(1)
}

/// A connection that serves many streams.
pub(super) struct H2Connection {
    sender: H2Sender,
    pub(super) info: Rc<ConnectionInfo>,
    counted: RefCell<CountedConnection>,
    limit: u32,
    /// Streams now, and places promised to requests that have not taken theirs yet.
    active: Cell<u32>,
    reserved: Cell<u32>,
    remaining: Cell<u32>,
    served: Cell<u32>,
    draining: Cell<bool>,
    idle_since: Cell<Instant>,
    driver: Cell<Option<Waker>>,
}

impl H2Connection {
    /// Starts the driver, whose first words are the preface.
    pub(super) fn start(
        pool: &Rc<HttpPool>,
        connected: Connected,
        counted: CountedConnection,
        config: &Rc<Config>,
    ) -> Rc<Self> {
        let (sender, mut client) = H2Client::new(connected.io, Rc::clone(config));
        client.count_waiting(connected.info.bytes.clone());
        let http = &counted.cluster.config.http;
        let start = counted.start();
        let connection = Rc::new(H2Connection {
            sender,
            info: Rc::new(connected.info),
            limit: concurrent_limit(http),
            active: Cell::new(0),
            reserved: Cell::new(0),
            remaining: Cell::new(http.max_requests_per_connection.filter(|max| *max > 0).unwrap_or(u32::MAX)),
            served: Cell::new(0),
            draining: Cell::new(false),
            idle_since: Cell::new(clock::now()),
            driver: Cell::new(None),
            counted: RefCell::new(counted),
        });
        tokio::task::spawn_local(Driver {
            client: Some(client),
            deadline: super::connection_duration(&pool.cluster.config.http).map(|length| start + length),
            pool: Rc::downgrade(pool),
            connection: connection.clone(),
            sleep: None,
        });
        connection
    }

    /// Whether one more stream may be opened.
    pub(super) fn has_capacity(&self) -> bool {
        let limit = u64::from(self.limit).min(self.sender.max_streams() as u64);
        !self.draining.get()
            && self.remaining.get() > self.reserved.get()
            && u64::from(self.active.get() + self.reserved.get()) < limit
            && self.sender.is_usable()
    }

    /// How many more streams may be opened.
    pub(super) fn free(&self) -> u64 {
        if !self.has_capacity() {
            return 0;
        }
        let limit = u64::from(self.limit).min(self.sender.max_streams() as u64);
        let used = u64::from(self.active.get() + self.reserved.get());
        (limit - used).min(u64::from(self.remaining.get() - self.reserved.get()))
    }

    /// Keeps a place.
    pub(super) fn reserve(&self) {
        self.reserved.set(self.reserved.get() + 1);
    }

    /// Gives a kept place back.
    pub(super) fn unreserve(&self) {
        self.reserved.set(self.reserved.get() - 1);
    }

    /// A stream; None when the connection has ended or is ending.
    pub(super) fn open(&self, stats: &ClusterStats) -> Option<H2ClientStream> {
        if !self.sender.is_usable() || self.remaining.get() == 0 {
            return None;
        }
        self.remaining.set(self.remaining.get() - 1);
        self.served.set(self.served.get() + 1);
        self.active.set(self.active.get() + 1);
        if self.remaining.get() == 0 {
            stats.upstream_cx_max_requests().inc();
            self.draining.set(true);
        }
        Some(self.sender.stream())
    }

    /// A stream is over; counts how it ended.
    pub(super) fn close_stream(&self, stream: &H2ClientStream) {
        self.active.set(self.active.get() - 1);
        let counted = self.counted.borrow();
        let stats = &counted.cluster.stats;
        match stream.error().map(|error| error.reason) {
            Some(ResetReason::RemoteReset) => stats.upstream_rq_rx_reset().inc(),
            Some(ResetReason::ConnectionTermination) => stats.upstream_rq_pending_failure_eject().inc(),
            Some(ResetReason::LocalReset | ResetReason::ProtocolError | ResetReason::OverloadManager) => {
                stats.upstream_rq_tx_reset().inc();
            }
            None if !stream.request_complete() || !stream.response_complete() => stats.upstream_rq_tx_reset().inc(),
            _ => {}
        }
        drop(counted);
        if self.active.get() == 0 {
            self.idle_since.set(clock::now());
            if self.draining.get() {
                self.wake();
            }
        }
    }

    /// No new streams; closed when the last one ends.
    pub(super) fn drain(&self) {
        self.draining.set(true);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }
}

/// Drives a connection until it ends.
struct Driver {
    client: Option<H2Client<Io>>,
    pool: Weak<HttpPool>,
    connection: Rc<H2Connection>,
    deadline: Option<Instant>,
    sleep: Option<timer::Sleep>,
}

impl Driver {
    /// Says why this side should close now, if it should; else when to look again.
    fn should_close(&mut self, context: &mut Context<'_>) -> bool {
        let connection = &self.connection;
        let counted = connection.counted.borrow();
        let (http, stats) = (&counted.cluster.config.http, &counted.cluster.stats);
        loop {
            let now = clock::now();
            if self.deadline.is_some_and(|deadline| deadline <= now) {
                self.deadline = None;
                stats.upstream_cx_max_duration_reached().inc();
                connection.draining.set(true);
            }
            let idle = connection.active.get() == 0 && connection.reserved.get() == 0;
            if idle && connection.draining.get() {
                return true;
            }
            let idle_end = http.idle_timeout.filter(|_| idle).map(|timeout| connection.idle_since.get() + timeout);
            if idle_end.is_some_and(|end| end <= now) {
                stats.upstream_cx_idle_timeout().inc();
                return true;
            }
            // While streams are active the idle timer runs on, and is looked at again when it fires.
            let check = http.idle_timeout.filter(|_| !idle).map(|timeout| now + timeout);
            let Some(next) = [idle_end, check, self.deadline].into_iter().flatten().min() else { return false };
            let sleep = match &mut self.sleep {
                Some(sleep) if !sleep.is_elapsed() => sleep,
                _ => self.sleep.insert(timer::sleep(next.saturating_duration_since(now))),
            };
            if Pin::new(sleep).poll(context).is_pending() {
                return false;
            }
        }
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let connection = this.connection.clone();
        connection.driver.set(Some(context.waker().clone()));
        let Some(client) = &mut this.client else { return Poll::Ready(()) };
        let result = Pin::new(client).poll(context);
        if connection.sender.goaway_received() && !connection.draining.replace(true) {
            connection.counted.borrow().cluster.stats.upstream_cx_close_notify().inc();
        }
        let who = match &result {
            Poll::Pending if this.should_close(context) => Ended::Local,
            Poll::Pending => {
                // New settings may have made room.
                if let Some(pool) = this.pool.upgrade() {
                    pool.serve_pending();
                }
                return Poll::Pending;
            }
            Poll::Ready(Err(error)) if error.reason == ResetReason::ProtocolError => {
                connection.counted.borrow().cluster.stats.upstream_cx_protocol_error().inc();
                Ended::Local
            }
            // Given up: no answer to a ping, or too much of something.
            Poll::Ready(Err(_)) => Ended::Local,
            Poll::Ready(Ok(())) => Ended::Remote,
        };
        connection.draining.set(true);
        connection.counted.borrow_mut().ended(who, connection.active.get() > 0);
        this.client = None;
        if let Some(pool) = this.pool.upgrade() {
            pool.h2_ended(&connection);
        }
        Poll::Ready(())
    }
}

impl Drop for H2Connection {
    fn drop(&mut self) {
        let counted = self.counted.get_mut();
        counted.cluster.stats.upstream_rq_per_cx().record(u64::from(self.served.get()));
    }
}
