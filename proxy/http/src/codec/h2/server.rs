//! The downstream end of HTTP/2 connections.
//!
//! The connection manager polls [`H2Server::poll_accept`], which drives the whole connection (reads, writes, pings), and
//! works on each [`H2ServerStream`]; both may live in the same task. It owns the timeouts, except for keepalive pings.
//! After [`H2Server::graceful_shutdown`] the connection ends by itself when its streams have.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::{Connection, Handshake, SendResponse};
use nuncio_config::hcm::{Http2Options, UnderscoresAction};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::fields::{self, Rules};
use super::guard::{FrameGuard, FrameLimits, Shared};
use super::keepalive::Keepalive;
use super::stream::{Body, reset_code, stream_error};
use crate::codec::h1::parse::Limits;
use crate::codec::stats::Http2Stats;
use crate::codec::{BytesMeter, Frame, Protocol, ResetReason, ServerStream, Stream, StreamError};
use crate::headers::{Headers, names};

/// Streams that a peer may reset before they were looked at; rapid resets are judged by `PrematureResets`.
const PENDING_RESETS: usize = 1024;
/// Errors of the peer that reset a stream, before the connection ends, when one stream's error is not all's.
const STREAM_ERRORS: usize = 1024;

/// Streams reset by this side whose late frames are still ignored, and for how long: a peer may have been sending.
pub(super) const REMEMBERED_RESETS: usize = 1024;
pub(super) const RESET_MEMORY: Duration = Duration::from_secs(30);
/// What `h2` takes of a message beyond twice the limit, so that most lists that are too large are refused as Envoy does.
const HEADER_LIST_SPARE: usize = 64 * 1024;
/// Refused requests that are remembered between two polls.
const MAX_REJECTED: usize = 128;

/// What all connections of a filter chain share.
#[derive(Clone)]
pub struct ServerConfig {
    /// The options.
    pub options: Http2Options,
    /// Size of a request head.
    pub limits: Limits,
    /// What is done with names that have underscores.
    pub underscores: UnderscoresAction,
    /// An invalid message resets its stream instead of ending the connection.
    pub stream_error_on_invalid_http_message: bool,
    /// High watermark of what waits to be written, per stream; 0 for `h2`'s own.
    pub buffer_limit: usize,
    /// Counters.
    pub stats: Http2Stats,
}

impl std::fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerConfig").field("options", &self.options).finish_non_exhaustive()
    }
}

enum State<I> {
    Handshake(Box<Handshake<FrameGuard<I>, Bytes>>),
    Open(Box<Connection<FrameGuard<I>, Bytes>>),
    Closed,
}

/// A request that has arrived.
pub struct H2Request {
    /// Pseudo-headers, then headers; cookies joined. An extended CONNECT looks like an HTTP/1 upgrade.
    pub headers: Headers,
    /// There is no body.
    pub end_stream: bool,
    /// `expect: 100-continue`.
    pub expect_continue: bool,
    /// An upgrade (extended CONNECT) or CONNECT.
    pub upgrade: bool,
    /// The stream.
    pub stream: H2ServerStream,
}

impl std::fmt::Debug for H2Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("H2Request").field("headers", &self.headers).finish_non_exhaustive()
    }
}

/// An HTTP/2 server connection.
pub struct H2Server<I> {
    io: Rc<RefCell<I>>,
    state: State<I>,
    config: Rc<ServerConfig>,
    shared: Rc<Shared>,
    keepalive: Option<Keepalive>,
    /// Asked for before the handshake was done.
    shutdown: bool,
    /// Requests that were refused, for the log.
    rejected: Vec<StreamError>,
    /// A refused request that ends the connection.
    fatal: Option<StreamError>,
    /// The peer's preface has come.
    began: bool,
}

impl<I: AsyncRead + AsyncWrite + Unpin> H2Server<I> {
    /// A connection that has not said anything yet. `io` yields the client's preface.
    pub fn new(io: I, config: Rc<ServerConfig>) -> H2Server<I> {
        let options = &config.options;
        let io = Rc::new(RefCell::new(io));
        let shared = Shared::new(FrameLimits::from(options), true, config.stats.clone());
        config.stats.nghttp2_downstream_connections().inc();
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(options.initial_stream_window_size)
            .initial_connection_window_size(options.initial_connection_window_size)
            .max_concurrent_streams(options.max_concurrent_streams)
            .header_table_size(options.hpack_table_size)
            // Above the limit, which is checked afterwards: what `h2` finds too large it answers with 431 itself.
            .max_header_list_size(header_list_size(config.limits))
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            .reset_stream_duration(RESET_MEMORY)
            .max_local_error_reset_streams(Some(if config.stream_error_on_invalid_http_message {
                STREAM_ERRORS
            } else {
                0
            }));
        if config.buffer_limit > 0 {
            builder.max_send_buffer_size(config.buffer_limit);
        }
        if options.allow_connect {
            builder.enable_connect_protocol();
        }
        let handshake = builder.handshake(FrameGuard::new(Rc::clone(&io), Rc::clone(&shared)));
        H2Server {
            io,
            state: State::Handshake(Box::new(handshake)),
            config,
            shared,
            keepalive: None,
            shutdown: false,
            rejected: Vec::new(),
            fatal: None,
            began: false,
        }
    }

    /// Drives the connection and waits for the next request. None: the connection has ended in good order.
    ///
    /// # Errors
    /// Why the connection ended: a broken protocol or limit (with Envoy's details) or a closed socket.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<H2Request, StreamError>>> {
        loop {
            match &mut self.state {
                State::Handshake(handshake) => match ready!(Pin::new(&mut **handshake).poll(cx)) {
                    Ok(mut connection) => {
                        self.began = true;
                        self.keepalive = Keepalive::new(&self.config.options, connection.ping_pong());
                        if self.shutdown {
                            connection.graceful_shutdown();
                        }
                        self.state = State::Open(Box::new(connection));
                    }
                    Err(e) => return self.failed(&e),
                },
                State::Open(connection) => {
                    if self.keepalive.as_mut().is_some_and(|k| k.poll(cx).is_ready()) {
                        self.shared.stats().keepalive_timeout().inc();
                        self.state = State::Closed;
                        return Poll::Ready(Some(Err(StreamError::new(ResetReason::ConnectionTermination))));
                    }
                    match ready!(connection.poll_accept(cx)) {
                        Some(Ok((request, respond))) => {
                            if let Some(request) = self.request(request, respond) {
                                return Poll::Ready(Some(Ok(request)));
                            }
                            if let Some(error) = self.fatal.take() {
                                self.state = State::Closed;
                                return Poll::Ready(Some(Err(error)));
                            }
                        }
                        Some(Err(e)) => return self.failed(&e),
                        None => {
                            self.state = State::Closed;
                            return Poll::Ready(None);
                        }
                    }
                }
                State::Closed => return Poll::Ready(None),
            }
        }
    }

    fn failed(&mut self, error: &h2::Error) -> Poll<Option<Result<H2Request, StreamError>>> {
        self.state = State::Closed;
        // A peer that just closes is no error.
        if self.shared.violation().is_none() && self.shared.ended.get() && error.is_io() {
            return Poll::Ready(None);
        }
        let error = stream_error(error, &self.shared);
        if error.details == "http2.invalid.header.field" && self.rejected.len() < MAX_REJECTED {
            self.rejected.push(error.clone());
        }
        Poll::Ready(Some(Err(error)))
    }

    fn request(
        &mut self,
        request: http::Request<h2::RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<H2Request> {
        let (head, recv) = request.into_parts();
        let rules =
            Rules { limits: self.config.limits, underscores: self.config.underscores, stats: self.shared.stats() };
        let decoded = match fields::decode_request(head, &rules) {
            Ok(decoded) => decoded,
            Err(error) => {
                // Limits and names end the stream only; what is no HTTP, the connection.
                let malformed = matches!(
                    error.details,
                    "http2.violation.of.messaging.rule" | "http2.invalid.header.field" | "http.invalid_authority"
                );
                respond.send_reset(if malformed { Reason::PROTOCOL_ERROR } else { Reason::INTERNAL_ERROR });
                if malformed {
                    self.shared.stats().rx_messaging_error().inc();
                    if !self.config.stream_error_on_invalid_http_message {
                        self.fatal = Some(error.clone());
                    }
                }
                if self.rejected.len() < MAX_REJECTED {
                    self.rejected.push(error);
                }
                return None;
            }
        };
        let tunnel = decoded.upgrade || decoded.connect;
        let end_stream = recv.is_end_stream();
        let mut body = Body::new(Rc::clone(&self.shared), self.config.limits);
        body.head_received(&decoded.headers);
        body.recv_done = end_stream;
        body.recv = Some(recv);
        let expect_continue = !end_stream
            && decoded.headers.bytes(&names::EXPECT).is_some_and(|v| v.eq_ignore_ascii_case(b"100-continue"));
        Some(H2Request {
            headers: decoded.headers,
            end_stream: end_stream && !tunnel,
            expect_continue,
            upgrade: tunnel,
            stream: H2ServerStream { respond, body, upgrade: decoded.upgrade },
        })
    }

    /// Why requests were refused (and their streams reset) since the last call. Envoy logs such requests without a
    /// response code, with the flag `DR` and these details. To be asked whenever `poll_accept` returned.
    pub fn take_rejected(&mut self) -> Vec<StreamError> {
        std::mem::take(&mut self.rejected)
    }

    /// After an error: reads and forgets what the peer still sends; ready when the peer has closed too.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut space = [0u8; 4096];
        // A peer that sends for ever must not keep the worker: it gets its turn again.
        for _ in 0..64 {
            let mut buf = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut *self.io.borrow_mut()).poll_read(cx, &mut buf));
            if read.is_err() || buf.filled().is_empty() {
                return Poll::Ready(());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Says goodbye on the socket, at the very end.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // A peer that is gone needs no goodbye.
        Pin::new(&mut *self.io.borrow_mut()).poll_shutdown(cx).map(|_| ())
    }

    /// Sends GOAWAY twice: first to stop new streams, after a round trip with the last stream's number; the connection
    /// ends when its streams have.
    pub fn graceful_shutdown(&mut self) {
        self.shutdown = true;
        if let State::Open(connection) = &mut self.state {
            connection.graceful_shutdown();
        }
    }

    /// Sends GOAWAY with `reason` and ends all streams.
    pub fn abrupt_shutdown(&mut self, reason: Reason) {
        match &mut self.state {
            State::Open(connection) => connection.abrupt_shutdown(reason),
            _ => self.state = State::Closed,
        }
    }

    /// True while there are streams.
    pub fn has_streams(&self) -> bool {
        match &self.state {
            State::Open(connection) => connection.has_streams(),
            _ => false,
        }
    }

    /// False while the peer has not shown that it speaks HTTP/2.
    pub fn has_begun(&self) -> bool {
        self.began
    }

    /// True when the peer broke a limit on frames.
    pub fn is_flooded(&self) -> bool {
        self.shared.violation().is_some()
    }

    /// Number of [`H2ServerStream`]s that are held.
    pub fn active_streams(&self) -> usize {
        self.shared.active.get()
    }

    /// True when the connection has ended.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }
}

pub(super) fn header_list_size(limits: Limits) -> u32 {
    let size = limits.max_bytes.saturating_mul(2).saturating_add(HEADER_LIST_SPARE);
    u32::try_from(size.saturating_add(32 * limits.max_count.min(1 << 16))).unwrap_or(u32::MAX)
}

/// The server's end of a stream. Dropping it before both sides are done resets the stream.
pub struct H2ServerStream {
    respond: SendResponse<Bytes>,
    body: Body,
    /// An extended CONNECT: 101 goes out as 200.
    upgrade: bool,
}

impl std::fmt::Debug for H2ServerStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("H2ServerStream").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl H2ServerStream {
    /// Its number.
    pub fn id(&self) -> u32 {
        self.respond.stream_id().as_u32()
    }

    /// True when the whole request has been read.
    pub fn request_complete(&self) -> bool {
        self.body.recv_done
    }

    /// True when the peer reset the stream before the response was complete.
    pub fn reset_by_peer(&self) -> bool {
        !self.body.send_done
            && self.body.error.as_ref().is_some_and(|e| {
                matches!(
                    e.reason,
                    ResetReason::RemoteReset | ResetReason::RemoteRefusedStreamReset | ResetReason::ConnectError
                )
            })
    }

    /// True when the end of the response is queued or sent.
    pub fn response_complete(&self) -> bool {
        self.body.send_done
    }
}

impl Stream for H2ServerStream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, StreamError>> {
        self.body.poll_frame(cx)
    }

    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.body.poll_capacity(cx)
    }

    fn send_data(&mut self, data: Bytes, end_stream: bool) -> Result<(), StreamError> {
        self.body.send_data(data, end_stream)
    }

    fn send_trailers(&mut self, trailers: &Headers) -> Result<(), StreamError> {
        self.body.send_trailers(trailers)
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        // The connection writes for all of its streams.
        Poll::Ready(self.body.error.clone().map_or(Ok(()), Err))
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        if self.body.send.is_some() || self.body.error.is_some() {
            return self.body.poll_reset(cx);
        }
        match ready!(self.respond.poll_reset(cx)) {
            Ok(Reason::NO_ERROR) if self.body.send_done => Poll::Pending,
            Ok(reason) => Poll::Ready(self.body.fail(super::stream::reset_error(reason))),
            Err(e) => Poll::Ready(self.body.fail_h2(&e)),
        }
    }

    fn reset(&mut self, reason: ResetReason) {
        if self.body.send_done && self.body.recv_done {
            return;
        }
        let code = reset_code(reason);
        if self.body.send.is_some() {
            self.body.reset(code);
        } else {
            self.respond.send_reset(code);
        }
        self.body.fail(StreamError::new(reason));
    }

    fn protocol(&self) -> Protocol {
        Protocol::Http2
    }

    fn bytes_meter(&self) -> BytesMeter {
        self.body.meter
    }
}

impl ServerStream for H2ServerStream {
    fn send_informational(&mut self, headers: &Headers) -> Result<(), StreamError> {
        let Some(response) = fields::encode_response(headers, headers.status()) else {
            return Ok(());
        };
        match self.respond.send_informational(response) {
            Ok(()) => {
                self.body.head_sent(headers);
                Ok(())
            }
            Err(e) => Err(self.body.fail_h2(&e)),
        }
    }

    fn send_headers(&mut self, headers: &Headers, end_stream: bool) -> Result<(), StreamError> {
        if let Some(error) = &self.body.error {
            return Err(error.clone());
        }
        let status = match headers.status() {
            101 if self.upgrade => 200,
            status => status,
        };
        let Some(response) = fields::encode_response(headers, status) else {
            self.reset(ResetReason::LocalReset);
            return Err(StreamError::new(ResetReason::LocalReset));
        };
        match self.respond.send_response(response, end_stream) {
            Ok(send) => {
                self.body.send = Some(send);
                self.body.send_done = end_stream;
                self.body.head_sent(headers);
                Ok(())
            }
            Err(e) => Err(self.body.fail_h2(&e)),
        }
    }

    fn close_after(&mut self) {}
}
