//! The pool of one host on one worker, for one priority, protocol and set of transport options.
//!
//! ```text
//!             stream()                 connected
//! request ──► ready? ──yes──► stream       ▲
//!               │no                        │
//!               ▼                          │
//!            pending ◄── served oldest first, by connections that become ready
//!               └──► connect, if pending > capacity of what connects already
//! ```
//! A connection belongs to the pool: giving up a pending request leaves it connecting, for the next.

use super::connect::{self, ConnectFailure, CountedConnection, CountedPending, Ended};
use super::h1::H1Connection;
use super::h2::H2Connection;
use super::wake::JanitorWake;
use super::{Kind, PoolFailure, PoolKey, PooledStream};
use crate::circuit_breakers::{Resource, ResourcePriority};
use crate::cluster::Cluster;
use crate::host::{Health, Host};
use crate::transport::TransportOptions;
use nuncio_base::clock;
use nuncio_base::timer;
use nuncio_http::codec::stats::Http1Stats;
use nuncio_http::codec::{ResetReason, h1, h2};
use nuncio_http::matchers::metadata_matches;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use tokio::time::Instant;

/// Protocol of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum PoolProtocol {
    Http1,
    Http2,
    /// Agreed upon by ALPN.
    Auto,
}

/// Codec settings of a cluster, shared by its pools on a worker.
#[derive(Clone)]
pub(crate) struct Codecs {
    pub(crate) h1: Rc<h1::ClientConfig>,
    /// Shown from the first connection on.
    pub(crate) h1_stats: Http1Stats,
    pub(crate) h2: Rc<h2::Config>,
}

pub(super) struct HttpPool {
    pub(super) cluster: Arc<Cluster>,
    pub(super) host: Arc<Host>,
    pub(super) priority: ResourcePriority,
    pub(super) protocol: PoolProtocol,
    pub(super) options: TransportOptions,
    pub(super) key: PoolKey,
    codecs: Codecs,
    inner: RefCell<Inner>,
    janitor: Arc<JanitorWake>,
    janitor_runs: Cell<bool>,
    /// Failures of the host that connections have been drained for.
    failures_seen: Cell<u32>,
    own: Weak<HttpPool>,
}

#[derive(Default)]
struct Inner {
    /// Idle HTTP/1 connections, the most recently used last. Boxed, as they move between here and streams.
    #[allow(clippy::vec_box, reason = "a connection is large and moves with each request")]
    idle: Vec<Box<H1Connection>>,
    /// HTTP/1 connections with a stream.
    busy: u32,
    /// HTTP/2 connections, also those that drain; the front is used first.
    multiplexed: VecDeque<Rc<H2Connection>>,
    connecting: u32,
    /// Streams that the connecting connections are expected to serve.
    connecting_capacity: u64,
    active_streams: u32,
    pending: VecDeque<Rc<Waiter>>,
    draining: bool,
    /// The janitor has a timer for an idle connection.
    timed: bool,
    /// Whether HTTP/1 was agreed upon last; for pools that choose by ALPN.
    seen_http1: bool,
}

/// Streams of a pool or of several, and those that their connections have room for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Demand {
    /// That wait or are active.
    pub(super) streams: u64,
    /// That there is room for, those that are active included.
    pub(super) capacity: u64,
}

impl Demand {
    /// Whether `ratio` thousandths of the streams are more than there is room for.
    pub(super) fn exceeds(self, ratio: u32) -> bool {
        self.streams * u64::from(ratio) > self.capacity * 1000
    }
}

/// A request that waits for a connection.
pub(super) struct Waiter {
    state: RefCell<WaitState>,
    counted: RefCell<Option<CountedPending>>,
}

enum WaitState {
    Waiting(Option<Waker>),
    Ready(Ready),
    Failed(PoolFailure),
    Taken,
}

/// A connection that can take a stream now.
enum Ready {
    Http1(Box<H1Connection>),
    Http2(Rc<H2Connection>),
}

impl Waiter {
    fn resolve(&self, state: WaitState) {
        let before = self.state.replace(state);
        self.counted.take();
        if let WaitState::Waiting(Some(waker)) = before {
            waker.wake();
        }
    }
}

impl HttpPool {
    /// Whether the cluster's TLS context names protocols itself, or there is none.
    fn has_alpn_names(&self) -> bool {
        self.cluster.config.tls.as_ref().is_none_or(|tls| !tls.common.alpn_protocols.is_empty())
    }

    pub(super) fn new(
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        priority: ResourcePriority,
        protocol: PoolProtocol,
        options: TransportOptions,
        key: PoolKey,
        codecs: Codecs,
    ) -> Rc<Self> {
        cluster.resource_manager(priority).inc(Resource::ConnectionPools);
        Rc::new_cyclic(|own| HttpPool {
            cluster: cluster.clone(),
            host: host.clone(),
            priority,
            protocol,
            options,
            key,
            codecs,
            inner: RefCell::default(),
            janitor: Arc::default(),
            janitor_runs: Cell::new(false),
            failures_seen: Cell::new(host.failures()),
            own: own.clone(),
        })
    }

    /// A stream on a connection that is ready; None when there is none.
    #[inline]
    pub(super) fn ready_stream(self: &Rc<Self>) -> Option<Result<PooledStream, PoolFailure>> {
        let ready = self.take_ready()?;
        let result = self.attach(ready);
        if self.cluster.config.preconnect.per_upstream_ratio > 1000 {
            self.create_connections();
        }
        Some(result)
    }

    fn take_ready(&self) -> Option<Ready> {
        loop {
            let mut inner = self.inner.borrow_mut();
            if let Some(mut connection) = inner.idle.pop() {
                if connection.woken() && connection.has_ended() {
                    drop(inner);
                    connection.count_idle_end();
                    continue;
                }
                inner.busy += 1;
                return Some(Ready::Http1(connection));
            }
            return inner.multiplexed.iter().find(|c| c.has_capacity()).map(|c| Ready::Http2(c.clone()));
        }
    }

    /// Starts a stream on `ready`, within the limit on requests.
    fn attach(self: &Rc<Self>, ready: Ready) -> Result<PooledStream, PoolFailure> {
        let limits = self.cluster.resource_manager(self.priority);
        let stats = &self.cluster.stats;
        if !limits.can_create(Resource::Requests) {
            stats.upstream_rq_active_overflow().inc();
            self.put_back(ready);
            return Err(PoolFailure::overflow(Some(self.host.clone())));
        }
        let kind = match ready {
            Ready::Http1(mut connection) => {
                connection.remaining -= 1;
                connection.served += 1;
                if connection.remaining == 0 {
                    stats.upstream_cx_max_requests().inc();
                    connection.draining = true;
                }
                connection.client.begin();
                Kind::Http1 { connection: Some(connection), pool: self.clone() }
            }
            Ready::Http2(connection) => match connection.open(stats) {
                Some(stream) => Kind::Http2 { stream: Box::new(stream), connection, pool: self.clone() },
                None => {
                    // It ended between being found and being used.
                    return Err(PoolFailure {
                        reason: ResetReason::ConnectionTermination,
                        transport_failure_reason: None,
                        host: Some(self.host.clone()),
                        no_pool: false,
                    });
                }
            },
        };
        self.inner.borrow_mut().active_streams += 1;
        self.host.stats.rq_total.fetch_add(1, Relaxed);
        self.host.stats.rq_active.fetch_add(1, Relaxed);
        stats.upstream_rq_total().inc();
        stats.upstream_rq_active().inc();
        limits.inc(Resource::Requests);
        Ok(PooledStream { kind })
    }

    /// Gives back a connection whose stream never began.
    fn put_back(self: &Rc<Self>, ready: Ready) {
        match ready {
            Ready::Http1(connection) => self.release_h1(connection),
            Ready::Http2(_) => self.serve_pending(),
        }
    }

    /// Counts a stream out.
    pub(super) fn stream_ended(&self) {
        self.inner.borrow_mut().active_streams -= 1;
        self.host.stats.rq_active.fetch_sub(1, Relaxed);
        self.cluster.stats.upstream_rq_active().dec();
        self.cluster.resource_manager(self.priority).dec(Resource::Requests);
    }

    /// Takes a connection back: for the next request, for the idle list, or to close it.
    pub(super) fn release_h1(self: &Rc<Self>, mut connection: Box<H1Connection>) {
        let now = clock::now();
        if connection.deadline.is_some_and(|deadline| deadline <= now) && !connection.draining {
            self.cluster.stats.upstream_cx_max_duration_reached().inc();
            connection.draining = true;
        }
        let mut inner = self.inner.borrow_mut();
        inner.busy -= 1;
        // Who waits is served even when the pool drains: a new connection would be closed just the same.
        let unwanted = inner.draining && inner.pending.is_empty();
        if connection.draining || unwanted || !connection.client.is_reusable() {
            drop(inner);
            connection.count_end();
            drop(connection);
            self.connection_lost();
            return;
        }
        if let Some(waiter) = inner.pending.pop_front() {
            inner.busy += 1;
            drop(inner);
            waiter.resolve(WaitState::Ready(Ready::Http1(connection)));
            // Who still waits may get one of its own: other hosts may have closed connections since.
            self.connect_for_pending();
            return;
        }
        if connection.has_ended() {
            drop(inner);
            connection.count_idle_end();
            drop(connection);
            self.connection_lost();
            return;
        }
        connection.idle_since = now;
        inner.idle.push(connection);
        let timed = std::mem::replace(&mut inner.timed, true);
        drop(inner);
        self.run_janitor();
        if !timed {
            self.janitor.wake();
        }
    }

    /// A place on an HTTP/2 connection is free, or a new one is ready: serve who waits.
    pub(super) fn serve_pending(self: &Rc<Self>) {
        loop {
            if self.inner.borrow().pending.is_empty() {
                return;
            }
            let Some(ready) = self.take_ready() else { return };
            let Some(waiter) = self.inner.borrow_mut().pending.pop_front() else { return self.put_back(ready) };
            // Counted when the waiter takes it; until then the place is held, so that it is not given away twice.
            if let Ready::Http2(connection) = &ready {
                connection.reserve();
            }
            waiter.resolve(WaitState::Ready(ready));
        }
    }

    /// Puts a request in the queue and makes sure that something connects for it.
    ///
    /// # Errors
    /// Overflow, when too many wait.
    pub(super) fn wait(self: &Rc<Self>) -> Result<Wait, PoolFailure> {
        let stats = &self.cluster.stats;
        if !self.cluster.resource_manager(self.priority).can_create(Resource::PendingRequests) {
            stats.upstream_rq_pending_overflow().inc();
            return Err(PoolFailure::overflow(None));
        }
        let counted = CountedPending::new(&self.cluster, &self.host, self.priority);
        let waiter =
            Rc::new(Waiter { state: RefCell::new(WaitState::Waiting(None)), counted: RefCell::new(Some(counted)) });
        self.inner.borrow_mut().pending.push_back(waiter.clone());
        self.create_connections();
        Ok(Wait { pool: self.clone(), waiter })
    }

    /// Opens connections while more is wanted than connects already.
    fn create_connections(self: &Rc<Self>) {
        // The number per call is bounded as in Envoy, for the sake of preconnecting.
        for _ in 0..3 {
            if !self.create_connection(None) {
                return;
            }
        }
    }

    /// Opens a connection for a stream that is expected here, by the cluster's `ratio` (in thousandths). False where it
    /// has enough.
    pub(super) fn preconnect(self: &Rc<Self>, ratio: u32) -> bool {
        self.create_connection(Some(ratio))
    }

    /// What it has and what it wants.
    pub(super) fn demand(&self) -> Demand {
        let inner = self.inner.borrow();
        let free = inner.idle.len() as u64 + inner.multiplexed.iter().map(|connection| connection.free()).sum::<u64>();
        Demand {
            streams: inner.pending.len() as u64 + u64::from(inner.active_streams),
            capacity: inner.connecting_capacity + free + u64::from(inner.active_streams),
        }
    }

    /// Whether connections may be opened before they are needed.
    fn may_preconnect(&self) -> bool {
        let matcher = self.cluster.config.preconnect.enabled_metadata.as_deref();
        let matches = |matcher| {
            let metadata = self.host.metadata();
            metadata_matches(matcher, metadata.as_deref().and_then(serde_json::Value::as_object))
        };
        self.host.health() == Health::Healthy && matcher.is_none_or(matches)
    }

    /// `anticipated`: one more stream is expected, with this ratio in place of the host's.
    fn create_connection(self: &Rc<Self>, anticipated: Option<u32>) -> bool {
        let ratio = anticipated.unwrap_or(self.cluster.config.preconnect.per_upstream_ratio);
        let wanted = if ratio > 1000 && self.may_preconnect() {
            let mut demand = self.demand();
            demand.streams += u64::from(anticipated.is_some());
            demand.exceeds(ratio)
        } else {
            let inner = self.inner.borrow();
            inner.pending.len() as u64 > inner.connecting_capacity
        };
        let none = {
            let inner = self.inner.borrow();
            inner.idle.is_empty() && inner.busy == 0 && inner.multiplexed.is_empty() && inner.connecting == 0
        };
        if !wanted {
            return false;
        }
        let limits = self.cluster.resource_manager(self.priority);
        let within = limits.can_create(Resource::Connections)
            && self.host.stats.cx_active.load(Relaxed) < limits.max_connections_per_host();
        if !within {
            self.cluster.stats.upstream_cx_overflow().inc();
        }
        // A pool without any connection always gets one: else its requests would wait for ever.
        if within || none {
            self.spawn_connection();
        }
        within
    }

    fn spawn_connection(self: &Rc<Self>) {
        let stats = &self.cluster.stats;
        let assumed = match self.protocol {
            PoolProtocol::Http1 => {
                stats.upstream_cx_http1_total().inc();
                self.codecs.h1_stats.appear();
                1
            }
            PoolProtocol::Http2 => {
                stats.upstream_cx_http2_total().inc();
                self.codecs.h2.stats.appear();
                self.codecs.h2_capacity(&self.cluster)
            }
            PoolProtocol::Auto if self.inner.borrow().seen_http1 => 1,
            PoolProtocol::Auto => self.codecs.h2_capacity(&self.cluster),
        };
        {
            let mut inner = self.inner.borrow_mut();
            inner.connecting += 1;
            inner.connecting_capacity += assumed;
        }
        let counted = CountedConnection::new(&self.cluster, &self.host, self.priority);
        let pool = self.clone();
        tokio::task::spawn_local(async move {
            let mut guard = Connecting { pool, assumed, counted: Some(counted) };
            let pool = guard.pool.clone();
            let alpn: Option<&[&[u8]]> = match pool.protocol {
                // Names of the context are kept; without any, Envoy says what it will speak.
                PoolProtocol::Http1 if pool.has_alpn_names() => None,
                PoolProtocol::Http1 => Some(&[b"http/1.1"]),
                PoolProtocol::Http2 => Some(&[b"h2"]),
                PoolProtocol::Auto => Some(&[b"h2", b"http/1.1"]),
            };
            let result = connect::connect(&pool.cluster, &pool.host, &pool.options, alpn).await;
            let Some(counted) = guard.counted.take() else { return };
            drop(guard);
            match result {
                Ok(connected) => pool.connected(connected, counted).await,
                Err(failure) => pool.connect_failed(&failure, counted),
            }
        });
    }

    async fn connected(self: &Rc<Self>, connected: connect::Connected, mut counted: CountedConnection) {
        counted.connected(&connected.info);
        let stats = &self.cluster.stats;
        let http2 = match self.protocol {
            PoolProtocol::Http1 => false,
            PoolProtocol::Http2 => true,
            PoolProtocol::Auto => {
                // Envoy counts such a connection once as TCP and once with its protocol.
                stats.upstream_cx_total().inc();
                let http2 = connected.info.negotiated(b"h2");
                if http2 {
                    stats.upstream_cx_http2_total().inc();
                } else {
                    stats.upstream_cx_http1_total().inc();
                }
                self.inner.borrow_mut().seen_http1 = !http2;
                http2
            }
        };
        if http2 {
            let connection = H2Connection::start(self, connected, counted, &self.codecs.h2);
            self.inner.borrow_mut().multiplexed.push_front(connection);
            self.serve_pending();
            self.create_connections();
            let draining = self.inner.borrow().draining;
            if draining {
                self.drain();
            }
            return;
        }
        self.codecs.h1_stats.appear();
        let connection = H1Connection::new(connected, counted, &self.codecs.h1, &self.janitor);
        self.inner.borrow_mut().busy += 1;
        self.release_h1(connection);
    }

    /// Opens what those need who wait after a place has become free.
    pub(super) fn connect_for_pending(self: &Rc<Self>) {
        if !self.inner.borrow().pending.is_empty() {
            self.create_connections();
        }
    }

    /// Every request that waits fails with the connection, as in Envoy.
    fn connect_failed(self: &Rc<Self>, failure: &ConnectFailure, mut counted: CountedConnection) {
        counted.failed(failure);
        drop(counted);
        let pending = std::mem::take(&mut self.inner.borrow_mut().pending);
        for waiter in pending {
            self.cluster.stats.upstream_rq_pending_failure_eject().inc();
            waiter.resolve(WaitState::Failed(PoolFailure {
                reason: failure.reason,
                transport_failure_reason: failure.text.clone(),
                host: Some(self.host.clone()),
                no_pool: false,
            }));
        }
        self.connection_lost();
    }

    /// A connection is gone: who waits needs another.
    fn connection_lost(self: &Rc<Self>) {
        self.connect_for_pending();
        self.forget_if_empty();
    }

    /// An HTTP/2 connection has ended.
    pub(super) fn h2_ended(self: &Rc<Self>, connection: &Rc<H2Connection>) {
        self.inner.borrow_mut().multiplexed.retain(|other| !Rc::ptr_eq(other, connection));
        self.connection_lost();
    }

    /// A pool with its own SNI, of one downstream connection, or of a host that is gone, goes when it has no connection left.
    fn forget_if_empty(&self) {
        let unused = {
            let inner = self.inner.borrow();
            (inner.draining || self.options != TransportOptions::default() || self.key.downstream != 0)
                && inner.idle.is_empty()
                && inner.busy == 0
                && inner.connecting == 0
                && inner.multiplexed.is_empty()
                && inner.pending.is_empty()
        };
        if unused {
            super::forget(&self.cluster, self.key);
        }
    }

    /// Whether no request uses it or waits for it.
    pub(super) fn is_idle(&self) -> bool {
        let inner = self.inner.borrow();
        inner.active_streams == 0 && inner.busy == 0 && inner.connecting == 0 && inner.pending.is_empty()
    }

    /// Goes as soon as nothing is left in it: its cluster is gone already.
    pub(super) fn drain_from_the_start(&self) {
        self.inner.borrow_mut().draining = true;
    }

    /// Closes what is idle and lets the rest end.
    pub(super) fn drain(self: &Rc<Self>) {
        let (idle, multiplexed) = {
            let mut inner = self.inner.borrow_mut();
            inner.draining = true;
            (std::mem::take(&mut inner.idle), inner.multiplexed.clone())
        };
        drop(idle);
        for connection in multiplexed {
            connection.drain();
        }
        self.forget_if_empty();
    }

    /// Drains what exists; new requests get new connections.
    pub(super) fn drain_existing(self: &Rc<Self>) {
        self.drain();
        self.inner.borrow_mut().draining = false;
    }

    /// Whether the host was found to be failing since the last call.
    pub(super) fn host_failed(&self) -> bool {
        let failures = self.host.failures();
        self.failures_seen.replace(failures) != failures
    }

    fn run_janitor(&self) {
        if !self.janitor_runs.replace(true) {
            tokio::task::spawn_local(Janitor { pool: self.own.clone(), wake: self.janitor.clone(), sleep: None });
        }
    }

    /// Closes idle connections that have ended or are too old; returns when to look again.
    fn sweep(&self) -> Option<Instant> {
        let now = clock::now();
        let idle_timeout = self.cluster.config.http.idle_timeout;
        let stats = &self.cluster.stats;
        let mut ended = Vec::new();
        let mut next: Option<Instant> = None;
        let mut inner = self.inner.borrow_mut();
        let mut at = 0;
        while at < inner.idle.len() {
            let connection = &mut inner.idle[at];
            let expiry = idle_timeout.map(|timeout| connection.idle_since + timeout);
            let close = if connection.woken() && connection.has_ended() {
                connection.count_idle_end();
                Some(Ended::Remote)
            } else if expiry.is_some_and(|expiry| expiry <= now) {
                stats.upstream_cx_idle_timeout().inc();
                Some(Ended::Local)
            } else if connection.deadline.is_some_and(|deadline| deadline <= now) {
                stats.upstream_cx_max_duration_reached().inc();
                Some(Ended::Local)
            } else {
                next = [next, expiry, connection.deadline].into_iter().flatten().min();
                None
            };
            match close {
                Some(who) => {
                    let mut connection = inner.idle.remove(at);
                    connection.counted.ended(who, false);
                    ended.push(connection);
                }
                None => at += 1,
            }
        }
        inner.timed = next.is_some() || (idle_timeout.is_none() && inner.timed);
        if inner.idle.is_empty() {
            inner.timed = false;
            inner.idle.shrink_to(4);
        }
        drop(inner);
        if !ended.is_empty() {
            drop(ended);
            self.forget_if_empty();
        }
        next
    }
}

impl Codecs {
    /// Streams that a new HTTP/2 connection is expected to serve.
    fn h2_capacity(&self, cluster: &Cluster) -> u64 {
        let http = &cluster.config.http;
        let requests = http.max_requests_per_connection.filter(|max| *max > 0).unwrap_or(u32::MAX);
        u64::from(super::h2::concurrent_limit(http).min(requests))
    }
}

impl Drop for HttpPool {
    fn drop(&mut self) {
        self.cluster.resource_manager(self.priority).dec(Resource::ConnectionPools);
        self.janitor.wake();
    }
}

/// Counts a connection as connecting until dropped.
struct Connecting {
    pool: Rc<HttpPool>,
    assumed: u64,
    counted: Option<CountedConnection>,
}

impl Drop for Connecting {
    fn drop(&mut self) {
        let mut inner = self.pool.inner.borrow_mut();
        inner.connecting -= 1;
        inner.connecting_capacity -= self.assumed;
    }
}

/// Waits for a connection. Dropping it takes the request out of the queue.
pub(super) struct Wait {
    pool: Rc<HttpPool>,
    waiter: Rc<Waiter>,
}

impl Future for Wait {
    type Output = Result<PooledStream, PoolFailure>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let state = self.waiter.state.replace(WaitState::Taken);
        match state {
            WaitState::Ready(ready) => {
                if let Ready::Http2(connection) = &ready {
                    connection.unreserve();
                }
                Poll::Ready(self.pool.attach(ready))
            }
            WaitState::Failed(failure) => Poll::Ready(Err(failure)),
            WaitState::Waiting(waker) => {
                let waker = match waker {
                    Some(waker) if waker.will_wake(context.waker()) => waker,
                    _ => context.waker().clone(),
                };
                self.waiter.state.replace(WaitState::Waiting(Some(waker)));
                Poll::Pending
            }
            WaitState::Taken => Poll::Pending,
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        match self.waiter.state.replace(WaitState::Taken) {
            WaitState::Taken | WaitState::Failed(_) => {}
            WaitState::Waiting(_) => {
                self.pool.inner.borrow_mut().pending.retain(|other| !Rc::ptr_eq(other, &self.waiter));
                self.waiter.counted.take();
                self.pool.cluster.stats.upstream_rq_cancelled().inc();
            }
            WaitState::Ready(ready) => {
                if let Ready::Http2(connection) = &ready {
                    connection.unreserve();
                }
                self.pool.cluster.stats.upstream_rq_cancelled().inc();
                self.pool.put_back(ready);
            }
        }
    }
}

/// Watches the idle connections of a pool.
struct Janitor {
    pool: Weak<HttpPool>,
    wake: Arc<JanitorWake>,
    sleep: Option<timer::Sleep>,
}

impl Future for Janitor {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.wake.set(context.waker());
        loop {
            let Some(pool) = self.pool.upgrade() else { return Poll::Ready(()) };
            let Some(next) = pool.sweep() else {
                self.sleep = None;
                return Poll::Pending;
            };
            drop(pool);
            let delay = next.saturating_duration_since(clock::now());
            let sleep = match &mut self.sleep {
                Some(sleep) => {
                    sleep.reset(delay);
                    sleep
                }
                none => none.insert(timer::sleep(delay)),
            };
            if Pin::new(sleep).poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
