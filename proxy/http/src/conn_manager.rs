//! One downstream HTTP connection: chooses the codec, takes requests, runs a stream for each, and decides when the
//! connection ends. Called with every connection whose filter chain ends in an HTTP connection manager.
//!
//! ```text
//! HTTP/1:  idle -> head -> stream -> idle ...        HTTP/2:  accept -> one task per stream
//!            \-- idle timeout, drain, max duration -> close (GOAWAY on HTTP/2)
//! ```
//!
//! HTTP/1 streams run in the connection's own task, one after the other; an idle connection owns no buffers.

use crate::active_stream::{Abort, ActiveStream};
use crate::codec::Protocol;
use crate::codec::h1::{Finish, H1Server, RequestEvent, ServerConfig};
use crate::codec::h2;
use crate::hcm::Hcm;
use crate::headers::Headers;
use bytes::BytesMut;
use nuncio_base::clock;
use nuncio_base::drain::DrainSignal;
use nuncio_base::random;
use nuncio_base::timer::{self, Sleep};
use nuncio_config::hcm::CodecType;
use nuncio_net::connection::{ByteStats, Connection, ConnectionInfo, Io, Spoken};
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};

/// The first bytes of an HTTP/2 connection (RFC 9113 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the streams of a connection share.
pub struct ConnectionContext {
    /// The connection manager.
    pub hcm: Arc<Hcm>,
    /// The connection.
    pub info: Rc<ConnectionInfo>,
    drain: DrainSignal,
    requests: Cell<u32>,
    /// Set when no further request is wanted: idle timeout, maximum duration.
    closing: Cell<bool>,
    active: Cell<u32>,
    /// The last response was made here: the close that follows it is a delayed one.
    delay_close: Cell<bool>,
    /// The drain sequence has begun: the close that ends it is a delayed one.
    drain_sequence: Cell<bool>,
    /// The peer left in the middle of a request.
    left_active: Cell<bool>,
    /// The maximum duration is over, and the next response is the last one.
    soft_drain: Cell<bool>,
    waker: Cell<Option<Waker>>,
    buffer_limit: usize,
}

impl ConnectionContext {
    fn new(hcm: Arc<Hcm>, info: Rc<ConnectionInfo>, drain: DrainSignal) -> ConnectionContext {
        let buffer_limit = info.listener.as_ref().map_or(1024 * 1024, |l| l.buffer_limit as usize);
        ConnectionContext {
            hcm,
            info,
            drain,
            requests: Cell::new(0),
            closing: Cell::new(false),
            active: Cell::new(0),
            delay_close: Cell::new(false),
            drain_sequence: Cell::new(false),
            left_active: Cell::new(false),
            soft_drain: Cell::new(false),
            waker: Cell::new(None),
            buffer_limit,
        }
    }

    /// Bytes that may wait in a buffer on one side; Envoy's `per_connection_buffer_limit_bytes`.
    pub fn buffer_limit(&self) -> usize {
        if self.buffer_limit == 0 { usize::MAX } else { self.buffer_limit }
    }

    /// What is left of `max_connection_duration`.
    pub(crate) fn duration_left(&self) -> Option<Duration> {
        let config = &self.hcm.config;
        let limit = random::jittered(
            config.max_connection_duration?,
            config.max_connection_duration_jitter,
            // The same whenever it is asked for.
            self.info.id,
        );
        Some(limit.saturating_sub(clock::now().saturating_duration_since(self.info.start)))
    }

    /// How long the connection is served once it drains.
    pub(crate) fn drain_grace(&self) -> Duration {
        let config = &self.hcm.config;
        random::jittered(config.drain_timeout, config.drain_timeout_jitter, random::u64())
    }

    /// The next response is the last one, however long it takes until then.
    fn begin_soft_drain(&self) {
        if !self.soft_drain.replace(true) {
            self.hcm.stats.downstream_cx_http1_soft_drain().inc();
            self.set_closing();
        }
    }

    pub(crate) fn next_stream_id(&self) -> u64 {
        random::u64()
    }

    /// Whether the response at hand is the last one of the connection.
    pub(crate) fn wants_close(&self) -> bool {
        let stats = &self.hcm.stats;
        if self.closing.get() {
            return true;
        }
        if self.drain.drain_close() {
            stats.downstream_cx_drain_close().inc();
            self.set_closing();
            return true;
        }
        let limit = self.hcm.config.max_requests_per_connection;
        if limit.is_some_and(|max| max > 0 && self.requests.get() >= max) {
            stats.downstream_cx_max_requests_reached().inc();
            self.set_closing();
            return true;
        }
        false
    }

    pub(crate) fn count_request(&self) {
        self.requests.set(self.requests.get().saturating_add(1));
    }

    pub(crate) fn drain_signal(&self) -> &DrainSignal {
        &self.drain
    }

    /// Whether the close after this response is a delayed one: it was made by the proxy.
    pub(crate) fn set_delay_close(&self, delay: bool) {
        self.delay_close.set(delay);
    }

    /// Says that the peer ended the connection in the middle of a request.
    pub(crate) fn set_left_active(&self) {
        self.left_active.set(true);
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// No further request is wanted; HTTP/2 connections are told with GOAWAY.
    pub(crate) fn set_closing(&self) {
        if !self.closing.replace(true)
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }

    /// A request still counts as active when the connection ends.
    pub(crate) fn leave_unfinished(&self) {
        self.active.set(self.active.get() + 1);
    }

    pub(crate) fn active_streams(&self) -> u32 {
        self.active.get()
    }

    /// The connection's task, to be woken when its streams end or ask for a close.
    pub(crate) fn keep_waker(&self, cx: &Context<'_>) {
        let kept = self.waker.take().filter(|w| w.will_wake(cx.waker()));
        self.waker.set(Some(kept.unwrap_or_else(|| cx.waker().clone())));
    }

    /// Counts a stream of an HTTP/2 connection while the guard lives.
    pub(crate) fn begin_stream(self: &Rc<Self>) -> StreamGuard {
        self.active.set(self.active.get() + 1);
        StreamGuard(self.clone())
    }
}

/// Counts one stream of an HTTP/2 connection.
pub(crate) struct StreamGuard(Rc<ConnectionContext>);

impl StreamGuard {
    pub(crate) fn connection(&self) -> &ConnectionContext {
        &self.0
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let left = self.0.active.get().saturating_sub(1);
        self.0.active.set(left);
        // The idle timeout begins with the last stream's end.
        if left == 0
            && let Some(waker) = self.0.waker.take()
        {
            waker.wake();
        }
    }
}

/// Counts a connection while it lives.
struct ConnectionStats {
    hcm: Arc<Hcm>,
    info: Rc<ConnectionInfo>,
    active: Rc<ConnectionContext>,
    remote: Cell<bool>,
}

impl ConnectionStats {
    fn new(context: &Rc<ConnectionContext>, bytes: &Rc<HcmBytes>) -> ConnectionStats {
        let (hcm, info) = (context.hcm.clone(), context.info.clone());
        let stats = &hcm.stats;
        stats.downstream_cx_total().inc();
        stats.downstream_cx_active().inc();
        if info.is_tls() {
            stats.downstream_cx_ssl_total().inc();
            stats.downstream_cx_ssl_active().inc();
        }
        info.bytes.attach(bytes.clone());
        ConnectionStats { hcm, info, active: context.clone(), remote: Cell::new(false) }
    }

    /// The peer ended it.
    fn closed_by_peer(&self) {
        self.remote.set(true);
    }
}

impl Drop for ConnectionStats {
    fn drop(&mut self) {
        let stats = &self.hcm.stats;
        let busy = self.active.active.get() > 0 || self.active.left_active.get();
        stats.downstream_cx_active().dec();
        stats.downstream_cx_destroy().inc();
        match self.remote.get() {
            true => stats.downstream_cx_destroy_remote().inc(),
            false => stats.downstream_cx_destroy_local().inc(),
        }
        if busy {
            stats.downstream_cx_destroy_active_rq().inc();
            match self.remote.get() {
                true => stats.downstream_cx_destroy_remote_active_rq().inc(),
                false => stats.downstream_cx_destroy_local_active_rq().inc(),
            }
        }
        if self.info.is_tls() {
            stats.downstream_cx_ssl_active().dec();
        }
        if self.active.soft_drain.get() {
            stats.downstream_cx_http1_soft_drain().dec();
        }
        match self.info.bytes.spoken() {
            Spoken::Http2 => stats.downstream_cx_http2_active().dec(),
            Spoken::Http1 => stats.downstream_cx_http1_active().dec(),
            Spoken::Nothing => {}
        }
        self.info.bytes.detach();
        let length = clock::now().saturating_duration_since(self.info.start).as_millis() as u64;
        stats.downstream_cx_length_ms().record(length);
    }
}

/// Where the bytes of connections are counted.
struct HcmBytes(Arc<Hcm>);

impl ByteStats for HcmBytes {
    fn received(&self, count: u64) {
        self.0.stats.downstream_cx_rx_bytes_total().add(count);
    }

    fn sent(&self, count: u64) {
        self.0.stats.downstream_cx_tx_bytes_total().add(count);
    }

    fn receive_buffered(&self, change: u64) {
        self.0.stats.downstream_cx_rx_bytes_buffered().add(change);
    }

    fn send_buffered(&self, change: u64) {
        self.0.stats.downstream_cx_tx_bytes_buffered().add(change);
    }

    fn spoken(&self, protocol: Spoken) {
        let stats = &self.0.stats;
        match protocol {
            Spoken::Http2 => {
                stats.downstream_cx_http2_total().inc();
                stats.downstream_cx_http2_active().inc();
            }
            Spoken::Http1 => {
                stats.downstream_cx_http1_total().inc();
                stats.downstream_cx_http1_active().inc();
            }
            Spoken::Nothing => {}
        }
    }
}

/// What a worker keeps for one connection manager: what cannot be shared between threads.
pub struct HcmWorker {
    hcm: Arc<Hcm>,
    h1: Rc<ServerConfig>,
    h2: Rc<h2::Config>,
    bytes: Rc<HcmBytes>,
}

impl HcmWorker {
    /// The worker's part of `hcm`.
    pub fn new(hcm: Arc<Hcm>, buffer_limit: usize) -> HcmWorker {
        let config = &hcm.config;
        let limits = crate::codec::h1::parse::Limits {
            max_bytes: config.max_request_headers_kb as usize * 1024,
            max_count: config.max_headers_count as usize,
        };
        let underscores = config.headers_with_underscores_action;
        let mut h1 = ServerConfig::new(&config.http1, limits, underscores, buffer_limit, hcm.codec_stats.http1.clone());
        if !config.http1.ignore_http_11_upgrade.is_empty() {
            let ignored = config.http1.ignore_http_11_upgrade.clone();
            h1.ignore_upgrade = Some(Box::new(move |value| {
                ignored.iter().any(|m| crate::matchers::string_matches(&m.0, value.as_bytes()))
            }));
        }
        let h2 = h2::Config {
            stream_error_on_invalid_http_message: config
                .http2
                .stream_error_on_invalid_http_message
                .unwrap_or(config.stream_error_on_invalid_http_message),
            options: config.http2.clone(),
            limits,
            underscores,
            buffer_limit,
            runtime: Some(hcm.runtime.clone()),
            stats: hcm.codec_stats.http2.clone(),
        };
        HcmWorker { h1: Rc::new(h1), h2: Rc::new(h2), bytes: Rc::new(HcmBytes(hcm.clone())), hcm }
    }

    /// Serves a connection to its end.
    pub async fn serve(&self, connection: Connection) {
        let Connection { mut io, info, drain } = connection;
        let context = Rc::new(ConnectionContext::new(self.hcm.clone(), info, drain));
        let stats = ConnectionStats::new(&context, &self.bytes);
        let (protocol, head) = match self.choose_codec(&mut io, &context).await {
            Sniffed::Protocol(protocol, head) => (protocol, head),
            Sniffed::Closed => {
                stats.closed_by_peer();
                return;
            }
            Sniffed::TimedOut => return,
        };
        let spoken = if protocol == Protocol::Http2 { Spoken::Http2 } else { Spoken::Http1 };
        context.info.bytes.expect(spoken);
        if protocol == Protocol::Http2 {
            // Boxed, so that HTTP/1 connections, idle ones above all, do not carry the size of this.
            let remote = Box::pin(crate::conn_manager_h2::serve(&context, io, self.h2.clone())).await;
            stats.remote.set(remote);
        } else {
            let remote = serve_h1(&context, io, self.h1.clone(), head).await;
            stats.remote.set(remote);
        }
    }

    /// By configuration, ALPN, or the first bytes. Ends early when the peer leaves or stays silent.
    async fn choose_codec(&self, io: &mut Io, context: &ConnectionContext) -> Sniffed {
        match self.hcm.config.codec_type {
            CodecType::Http1 => return Sniffed::Protocol(Protocol::Http11, None),
            CodecType::Http2 | CodecType::Http3 => return Sniffed::Protocol(Protocol::Http2, None),
            CodecType::Auto => {}
        }
        let info = &context.info;
        if info.negotiated(b"h2") {
            return Sniffed::Protocol(Protocol::Http2, None);
        }
        if info.negotiated(b"http/1.1") || info.negotiated(b"http/1.0") {
            return Sniffed::Protocol(Protocol::Http11, None);
        }
        let mut seen = BytesMut::with_capacity(PREFACE.len());
        let first = sniff_preface(io, &mut seen, true);
        let (idle, duration) = (self.hcm.config.idle_timeout, context.duration_left());
        let found = match idle.into_iter().chain(duration).min() {
            Some(limit) => match timer::timeout(limit, first).await {
                Ok(found) => found,
                Err(_) => {
                    match duration == Some(limit) {
                        true => self.hcm.stats.downstream_cx_max_duration_reached().inc(),
                        false => self.hcm.stats.downstream_cx_idle_timeout().inc(),
                    }
                    return Sniffed::TimedOut;
                }
            },
            None => first.await,
        };
        let mut head = None;
        let protocol = match found {
            Sight::Closed => return Sniffed::Closed,
            Sight::Protocol(protocol) => protocol,
            Sight::Partial => {
                // From its first byte on this may be the head of a request, which has its timers.
                let timers = head.insert(HeadTimers::new(&self.hcm));
                let mut rest = pin!(sniff_preface(io, &mut seen, false));
                poll_fn(|cx| match rest.as_mut().poll(cx) {
                    Poll::Ready(Sight::Protocol(protocol)) => Poll::Ready(protocol),
                    // Half a head: the HTTP/1 codec answers it, or learns that the peer has left.
                    Poll::Ready(Sight::Partial | Sight::Closed) => Poll::Ready(Protocol::Http11),
                    Poll::Pending => timers.poll(cx).map(|_| Protocol::Http11),
                })
                .await
            }
        };
        io.unread(seen.freeze());
        Sniffed::Protocol(protocol, head)
    }
}

/// What the first bytes of a connection told.
enum Sniffed {
    /// The protocol; and timers, where it took more than one look at what may be the head of a request.
    Protocol(Protocol, Option<HeadTimers>),
    /// The peer left before it said anything.
    Closed,
    /// The idle timeout or the maximum duration came first.
    TimedOut,
}

/// What bytes look like.
enum Sight {
    Protocol(Protocol),
    /// The beginning of HTTP/2, or of a request whose method begins like it.
    Partial,
    /// There are none, and no more will come.
    Closed,
}

/// Reads into `seen` until the bytes can only be HTTP/2 or can only be something else; `once`: no more than what one
/// read gives.
async fn sniff_preface(io: &mut Io, seen: &mut BytesMut, once: bool) -> Sight {
    loop {
        let mut chunk = [0u8; 24];
        let mut buf = ReadBuf::new(&mut chunk[..PREFACE.len() - seen.len()]);
        let read = poll_fn(|cx| Pin::new(&mut *io).poll_read(cx, &mut buf)).await;
        let got = buf.filled();
        // A failed read shows the codec nothing more: it closes.
        let ended = read.is_err() || got.is_empty();
        if ended && seen.is_empty() {
            return Sight::Closed;
        }
        seen.extend_from_slice(got);
        if !PREFACE.starts_with(seen) || ended {
            return Sight::Protocol(Protocol::Http11);
        }
        if seen.len() == PREFACE.len() {
            return Sight::Protocol(Protocol::Http2);
        }
        if once {
            return Sight::Partial;
        }
    }
}

/// Timers of a connection between requests.
struct Idle {
    timeout: Option<(Sleep, Duration)>,
    duration: Option<Sleep>,
    /// Run while a head has begun and is not complete.
    head: Option<HeadTimers>,
    /// Runs once the connection drains while idle.
    draining: Option<Sleep>,
}

/// Timers of a request whose head is not complete.
struct HeadTimers {
    headers: Option<Sleep>,
    idle: Option<Sleep>,
    request: Option<Sleep>,
}

impl HeadTimers {
    fn new(hcm: &Hcm) -> HeadTimers {
        HeadTimers {
            headers: hcm.config.request_headers_timeout.map(timer::sleep),
            idle: hcm.config.stream_idle_timeout.map(timer::sleep),
            request: hcm.config.request_timeout.map(timer::sleep),
        }
    }

    /// Ready with what is due; and again, when asked again.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Wake> {
        let mut fired = |sleep: &mut Option<Sleep>| sleep.as_mut().is_some_and(|s| Pin::new(s).poll(cx).is_ready());
        if fired(&mut self.headers) {
            return Poll::Ready(Wake::HeaderTimeout);
        }
        if fired(&mut self.idle) {
            return Poll::Ready(Wake::HeadAborted(Abort::IdleTimeout));
        }
        if fired(&mut self.request) {
            return Poll::Ready(Wake::HeadAborted(Abort::RequestTimeout));
        }
        Poll::Pending
    }
}

enum Wake {
    Event(RequestEvent),
    /// A timer of the stream fired before the head was complete.
    HeadAborted(Abort),
    HeaderTimeout,
    /// The drain sequence is over.
    Drained,
    Close,
}

/// Serves HTTP/1 requests until the connection ends; true when the peer ended it.
/// `head` runs where the first head has begun.
async fn serve_h1(context: &Rc<ConnectionContext>, io: Io, config: Rc<ServerConfig>, head: Option<HeadTimers>) -> bool {
    let hcm = &context.hcm;
    let mut server = H1Server::new(io, config, context.info.is_tls());
    server.count_waiting(context.info.bytes.clone());
    let mut idle = Idle {
        timeout: hcm.config.idle_timeout.map(|d| (timer::sleep(d), d)),
        duration: context.duration_left().map(timer::sleep),
        head,
        draining: None,
    };
    // Polled once: it leaves the task's waker with the drain signal, which is all that is needed.
    let mut drain = Box::pin(async { context.drain.draining().await });
    let mut drain_registered = false;
    loop {
        if let Some((sleep, delay)) = &mut idle.timeout {
            sleep.reset(*delay);
        }
        let wake = poll_fn(|cx| {
            if !drain_registered {
                drain_registered = true;
                let _ = drain.as_mut().poll(cx);
            }
            poll_next(&mut server, &mut idle, context, cx)
        })
        .await;
        idle.head = None;
        let drained = matches!(wake, Wake::Drained);
        match wake {
            Wake::Event(RequestEvent::Closed { partial }) => {
                if partial {
                    partial_request(context, &mut server).await;
                }
                return true;
            }
            Wake::Event(RequestEvent::Request(request)) => {
                context.count_request();
                context.active.set(1);
                let downstream = &mut server;
                Box::pin(async move {
                    let chains = context.hcm.chains.pin();
                    ActiveStream::new(context, &chains, downstream, request.headers, request.end_stream)
                        .run(None)
                        .await;
                })
                .await;
                context.active.set(0);
            }
            Wake::Event(RequestEvent::Malformed(error)) => {
                context.count_request();
                Box::pin(async {
                    ActiveStream::new(context, &context.hcm.chains.pin(), &mut server, Headers::new(), false)
                        .run(Some(error))
                        .await;
                })
                .await;
            }
            Wake::HeaderTimeout => {
                hcm.stats.downstream_rq_header_timeout().inc();
                server.begin_unparsed();
                Box::pin(async {
                    ActiveStream::new(context, &context.hcm.chains.pin(), &mut server, Headers::new(), false)
                        .run_header_timeout()
                        .await;
                })
                .await;
            }
            Wake::HeadAborted(abort) => {
                server.begin_unparsed();
                Box::pin(async {
                    ActiveStream::new(context, &context.hcm.chains.pin(), &mut server, Headers::new(), false)
                        .run_aborted(abort)
                        .await;
                })
                .await;
            }
            Wake::Drained => {}
            Wake::Close => return false,
        }
        let delay = if drained {
            hcm.config.delayed_close_timeout
        } else {
            match poll_fn(|cx| server.poll_finish(cx)).await {
                Finish::KeepAlive if !context.closing.get() => continue,
                Finish::KeepAlive => Duration::ZERO,
                // The peer may still be sending, or be about to read an answer that it did not expect: it gets time.
                Finish::Close { request_complete }
                    if !request_complete || context.delay_close.get() || context.drain_sequence.get() =>
                {
                    hcm.config.delayed_close_timeout
                }
                Finish::Close { .. } => Duration::ZERO,
            }
        };
        if !delay.is_zero() {
            if timer::timeout(delay, poll_fn(|cx| server.poll_drain(cx))).await.is_ok() {
                return true;
            }
            hcm.stats.downstream_cx_delayed_close_timeout().inc();
        }
        // A peer that is gone needs no farewell.
        let _ = timer::timeout(Duration::from_secs(1), poll_fn(|cx| server.poll_shutdown(cx))).await;
        return false;
    }
}

fn poll_next(
    server: &mut H1Server<Io>,
    idle: &mut Idle,
    context: &ConnectionContext,
    cx: &mut Context<'_>,
) -> Poll<Wake> {
    let stats = &context.hcm.stats;
    if let Some(timers) = &mut idle.head
        && let Poll::Ready(wake) = timers.poll(cx)
    {
        return Poll::Ready(wake);
    }
    if let Poll::Ready(event) = server.poll_request(cx) {
        return Poll::Ready(Wake::Event(event));
    }
    let partial = server.has_partial_request();
    if partial {
        let timers = idle.head.get_or_insert_with(|| HeadTimers::new(&context.hcm));
        if let Poll::Ready(wake) = timers.poll(cx) {
            return Poll::Ready(wake);
        }
    }
    if let Some((sleep, _)) = &mut idle.timeout
        && !partial
        && Pin::new(sleep).poll(cx).is_ready()
    {
        stats.downstream_cx_idle_timeout().inc();
        if context.requests.get() == 0 {
            return Poll::Ready(Wake::Close);
        }
        idle.timeout = None;
        begin_drain(idle, context);
    }
    if let Some(sleep) = &mut idle.duration
        && Pin::new(sleep).poll(cx).is_ready()
    {
        idle.duration = None;
        stats.downstream_cx_max_duration_reached().inc();
        if context.requests.get() == 0 && !partial {
            return Poll::Ready(Wake::Close);
        }
        if context.hcm.config.http1_safe_max_connection_duration {
            context.begin_soft_drain();
        } else {
            begin_drain(idle, context);
        }
    }
    if context.drain.is_draining() && idle.draining.is_none() {
        // A request may be on its way: it is answered with `connection: close`.
        idle.draining = Some(timer::sleep(context.drain_grace()));
    }
    if let Some(sleep) = &mut idle.draining {
        ready!(Pin::new(sleep).poll(cx));
        let wake = if context.drain_sequence.get() { Wake::Drained } else { Wake::Close };
        return Poll::Ready(wake);
    }
    Poll::Pending
}

/// The connection serves what still comes within the drain timeout and then ends.
fn begin_drain(idle: &mut Idle, context: &ConnectionContext) {
    context.closing.set(true);
    context.drain_sequence.set(true);
    let grace = context.drain_grace();
    idle.draining.get_or_insert_with(|| timer::sleep(grace));
}

/// A connection that ended inside a head is logged as a request without one, as in Envoy.
async fn partial_request(context: &ConnectionContext, server: &mut H1Server<Io>) {
    server.begin_unparsed();
    Box::pin(async {
        ActiveStream::new(context, &context.hcm.chains.pin(), server, Headers::new(), false).run_disconnected().await;
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<F>(_: impl Fn(&'static HcmWorker, Connection) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_future_of_a_connection_is_small() {
        let future = size(HcmWorker::serve);
        assert!(future <= 1300, "{future} bytes, {} of codec", size_of::<H1Server<Io>>());
    }
}
