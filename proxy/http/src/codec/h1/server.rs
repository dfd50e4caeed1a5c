//! The downstream end of an HTTP/1 connection.
//!
//! [`H1Server`] owns the connection and is, one request after the other, the [`ServerStream`] of the current request:
//!
//! ```text
//! poll_request -> Request -> poll_frame.. / send_headers, send_data.. -> poll_finish -> KeepAlive -> poll_request
//!              \-> Malformed, Closed                                                \-> Close
//! ```
//!
//! Called by the HTTP connection manager, which owns all timeouts and decides about local replies. A 1.1 request without
//! Host arrives without `:authority`: refusing it is the connection manager's work, as in Envoy. After [`Finish::Close`]
//! it calls [`H1Server::poll_shutdown`] and, for a delayed close, [`H1Server::poll_drain`].

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes};
use nuncio_base::buffer_pool;
use nuncio_config::hcm::{HeaderKeyFormat, Http1Options, UnderscoresAction};
use nuncio_net::connection::ByteMeter;
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::{Decoder, Piece};
use super::encode::{self, Output};
use super::input::Input;
use super::parse::{self, Framing, Limits, errors};
use super::request;
use crate::codec::stats::Http1Stats;
use crate::codec::{BytesMeter, Frame, Protocol, ResetReason, ServerStream, Stream, StreamError};
use crate::headers::{HeaderValue, Headers, names};

/// Bytes of pipelined requests that are read while a request is worked on.
const READ_AHEAD: usize = buffer_pool::SMALL;

/// Decides whether an `upgrade` value is ignored, by `ignore_http_11_upgrade`.
pub type IgnoreUpgrade = Box<dyn Fn(&str) -> bool>;

/// What all connections of a listener's filter chain share.
pub struct ServerConfig {
    /// Take absolute-form targets.
    pub allow_absolute_url: bool,
    /// Take HTTP/1.0.
    pub accept_http_10: bool,
    /// Host for 1.0 requests without one.
    pub default_host: Option<HeaderValue>,
    /// How names are written.
    pub header_key_format: HeaderKeyFormat,
    /// Deliver and send trailers.
    pub enable_trailers: bool,
    /// Chunked wins over Content-Length instead of being refused with it.
    pub allow_chunked_length: bool,
    /// Any token is a method.
    pub allow_custom_methods: bool,
    /// Size of a head.
    pub limits: Limits,
    /// What is done with names that have underscores.
    pub underscores: UnderscoresAction,
    /// High watermark of what waits to be written; 0 is no limit.
    pub buffer_limit: usize,
    /// Upgrades that are ignored besides `h2c`.
    pub ignore_upgrade: Option<IgnoreUpgrade>,
    /// Counters.
    pub stats: Http1Stats,
}

impl ServerConfig {
    /// From the options of an HTTP connection manager. `limits` is its `max_request_headers_kb` in bytes and
    /// `max_headers_count`. `ignore_upgrade` is left empty.
    pub fn new(
        options: &Http1Options,
        limits: Limits,
        underscores: UnderscoresAction,
        buffer_limit: usize,
        stats: Http1Stats,
    ) -> ServerConfig {
        let host = &options.default_host_for_http_10;
        ServerConfig {
            allow_absolute_url: options.allow_absolute_url,
            accept_http_10: options.accept_http_10,
            default_host: if host.is_empty() { None } else { HeaderValue::parse(host.as_bytes().to_vec()) },
            header_key_format: options.header_key_format,
            enable_trailers: options.enable_trailers,
            allow_chunked_length: options.allow_chunked_length,
            allow_custom_methods: options.allow_custom_methods,
            limits,
            underscores,
            buffer_limit,
            ignore_upgrade: None,
            stats,
        }
    }

    pub(super) fn ignores_upgrade(&self, upgrade: &[u8]) -> bool {
        upgrade.eq_ignore_ascii_case(b"h2c")
            || self.ignore_upgrade.as_ref().is_some_and(|ignored| std::str::from_utf8(upgrade).is_ok_and(ignored))
    }
}

impl std::fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerConfig").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// A request that has arrived: its head.
#[derive(Debug)]
pub struct Request {
    /// Pseudo-headers, then headers. `transfer-encoding` and what Connection nominates are gone already; `connection`
    /// itself is still there.
    pub headers: Headers,
    /// There is no body: [`Stream::poll_frame`] must not be called.
    pub end_stream: bool,
    /// HTTP/1.0 or HTTP/1.1.
    pub protocol: Protocol,
    /// `expect: 100-continue` on a request with a body.
    pub expect_continue: bool,
    /// An upgrade or CONNECT: the body is the tunnel, silent until it is accepted with a 101 or, for CONNECT, a 2xx.
    pub upgrade: bool,
    /// The client asked for the connection to be closed after the response.
    pub close: bool,
}

/// What [`H1Server::poll_request`] ends with.
#[derive(Debug)]
pub enum RequestEvent {
    /// A request.
    Request(Request),
    /// Not HTTP: to be answered with the error's status, then closed. [`ServerStream::send_headers`] may be used for it.
    Malformed(StreamError),
    /// The peer has closed; `partial` is true in the middle of a head.
    Closed {
        /// A part of a head had arrived.
        partial: bool,
    },
}

/// What becomes of the connection after a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// It takes the next request.
    KeepAlive,
    /// It must be closed. `request_complete` is false when the peer may still be sending: a delayed close is due.
    Close {
        /// The whole request had arrived.
        request_complete: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tunnel {
    /// An ordinary request.
    No,
    /// Asked for, not accepted: nothing is read for it.
    Asked,
    Open,
}

/// How the response body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    /// No final head was sent.
    Head,
    /// Body bytes are dropped: HEAD, 204, 304.
    NoBody,
    Chunked,
    Length(u64),
    UntilClose,
    Done,
}

/// An HTTP/1 server connection.
pub struct H1Server<I> {
    io: I,
    config: Rc<ServerConfig>,
    tls: bool,
    input: Input,
    output: Output,
    body: Decoder,
    sending: Sending,
    tunnel: Tunnel,
    protocol: Protocol,
    head: bool,
    connect: bool,
    /// A request is being worked on.
    active: bool,
    /// The connection ends after the current response.
    close: bool,
    /// Set once something is wrong: no further request.
    error: Option<StreamError>,
    meter: BytesMeter,
}

impl<I: AsyncRead + AsyncWrite + Unpin> H1Server<I> {
    /// A connection that waits for its first request. `tls` decides about `:scheme`.
    pub fn new(io: I, config: Rc<ServerConfig>, tls: bool) -> H1Server<I> {
        let limits = config.limits;
        config.stats.appear();
        H1Server {
            io,
            config,
            tls,
            input: Input::default(),
            output: Output::default(),
            body: Decoder::new(Framing::None, limits, false),
            sending: Sending::Done,
            tunnel: Tunnel::No,
            protocol: Protocol::Http11,
            head: false,
            connect: false,
            active: false,
            close: false,
            error: None,
            meter: BytesMeter::default(),
        }
    }

    /// Tells `meter` what waits for the socket.
    pub fn count_waiting(&mut self, meter: Rc<ByteMeter>) {
        self.output.count_waiting(meter);
    }

    /// Bytes that were read before the codec took over.
    pub fn unread(&mut self, bytes: &[u8]) {
        let mut all = bytes::BytesMut::with_capacity(bytes.len() + self.input.buf.len());
        all.extend_from_slice(bytes);
        all.extend_from_slice(&self.input.buf);
        self.input.buf = all;
    }

    /// The byte stream.
    pub fn io(&self) -> &I {
        &self.io
    }

    /// The byte stream, to be changed.
    pub fn io_mut(&mut self) -> &mut I {
        &mut self.io
    }

    /// True when a part of the next head has arrived.
    pub fn has_partial_request(&self) -> bool {
        !self.active && !self.input.buf.is_empty()
    }

    /// True when the whole request has been read.
    pub fn request_complete(&self) -> bool {
        self.body.is_done() && self.tunnel == Tunnel::No
    }

    /// True when the end of the response is queued or written.
    pub fn response_complete(&self) -> bool {
        self.sending == Sending::Done
    }

    /// True when a final response head is queued or written.
    pub fn response_started(&self) -> bool {
        self.sending != Sending::Head
    }

    /// True when the connection ends after the current response.
    pub fn closes(&self) -> bool {
        self.close
    }

    /// True while nothing is held: no buffer, no request.
    pub fn is_idle(&self) -> bool {
        !self.active && self.input.buf.capacity() == 0 && self.output.is_empty()
    }

    /// Ready when the first byte of the next request is there, or the connection has ended: then
    /// [`H1Server::poll_request`] makes progress.
    pub fn poll_idle_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.input.buf.is_empty() || self.input.eof {
            return Poll::Ready(());
        }
        self.input.poll_read(&mut self.io, cx, false).map(|_| ())
    }

    /// Waits for the next request. Only after [`H1Server::poll_finish`] said [`Finish::KeepAlive`], or first of all.
    pub fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<RequestEvent> {
        if self.active || self.close || self.error.is_some() {
            return Poll::Ready(RequestEvent::Closed { partial: false });
        }
        let mut fresh = !self.input.buf.is_empty();
        loop {
            if fresh {
                match request::parse_request(&mut self.input.buf, &self.config, self.tls) {
                    Ok(Some(head)) => return Poll::Ready(RequestEvent::Request(self.begin(head))),
                    Ok(None) => {}
                    Err(error) => {
                        self.start(false, false, Protocol::Http11);
                        self.meter.wire_bytes_received = self.input.buf.len() as u64;
                        self.close = true;
                        self.error = Some(error.clone());
                        return Poll::Ready(RequestEvent::Malformed(error));
                    }
                }
            }
            let before = self.input.buf.len();
            match ready!(self.input.poll_read(&mut self.io, cx, false)) {
                Ok(0) | Err(_) => return Poll::Ready(RequestEvent::Closed { partial: before > 0 }),
                // Without a line end there is nothing new to parse, unless it is the first look at it.
                Ok(n) => {
                    fresh = before == 0
                        || self.input.buf[before..].contains(&b'\n')
                        || self.input.buf.len() > self.config.limits.max_bytes
                        || before < 64 && n > 0;
                }
            }
        }
    }

    /// Makes the connection answer a request whose head never became complete; it is closed after that.
    pub fn begin_unparsed(&mut self) {
        self.start(false, false, Protocol::Http11);
        self.meter.wire_bytes_received = self.input.buf.len() as u64;
        self.close = true;
        self.error = Some(StreamError::new(ResetReason::ConnectionTermination));
    }

    fn start(&mut self, head: bool, connect: bool, protocol: Protocol) {
        self.active = true;
        self.sending = Sending::Head;
        self.tunnel = Tunnel::No;
        self.head = head;
        self.connect = connect;
        self.protocol = protocol;
        self.meter = BytesMeter::default();
    }

    fn begin(&mut self, head: request::RequestHead) -> Request {
        self.start(head.head, head.connect, head.protocol);
        self.meter.header_bytes_received = head.field_bytes as u64;
        self.meter.wire_bytes_received = head.wire_bytes as u64;
        self.body = Decoder::new(head.framing, self.config.limits, self.config.enable_trailers);
        self.close = !head.keep_alive;
        let upgrade = head.upgrade || head.connect;
        if upgrade {
            self.tunnel = Tunnel::Asked;
        }
        let has_body = head.framing != Framing::None;
        let expect_continue = has_body
            && head.protocol == Protocol::Http11
            && head.headers.bytes(&names::EXPECT).is_some_and(|v| v.eq_ignore_ascii_case(b"100-continue"));
        Request {
            headers: head.headers,
            end_stream: !has_body && !upgrade,
            protocol: head.protocol,
            expect_continue,
            upgrade,
            close: self.close,
        }
    }

    /// Queues `100 Continue`.
    pub fn send_continue(&mut self) {
        const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
        self.output.scratch(CONTINUE.len()).put_slice(CONTINUE);
        self.output.wrote();
        self.meter.wire_bytes_sent += CONTINUE.len() as u64;
    }

    /// Writes the end of the response and says what becomes of the connection. Only after the response's end is queued
    /// or the stream was reset. Whoever sets a deadline ends what did not meet it with [`ServerStream::abandon`].
    pub fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Finish> {
        let written = ready!(self.output.poll_flush(&mut self.io, cx));
        // What has arrived of an unread body is dropped; if that is all of it, nothing stands in the way.
        while self.error.is_none() && self.tunnel == Tunnel::No && !self.body.is_done() {
            match self.body.decode(&mut self.input.buf) {
                Ok(Piece::NeedMore) => break,
                Ok(_) => {}
                Err(error) => self.error = Some(error),
            }
        }
        let request_complete = self.request_complete() && self.error.is_none();
        let keep =
            written.is_ok() && !self.close && self.error.is_none() && request_complete && self.sending == Sending::Done;
        if !keep {
            return Poll::Ready(Finish::Close { request_complete });
        }
        self.active = false;
        Poll::Ready(Finish::KeepAlive)
    }

    /// Writes what is queued and ends the writing side.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.output.poll_flush(&mut self.io, cx))?;
        std::pin::Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Reads and drops until the peer ends its side too, for a delayed close. The deadline is the caller's.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.input.poll_drain(&mut self.io, cx)
    }

    fn fail(&mut self, error: StreamError) -> StreamError {
        self.close = true;
        self.error = Some(error.clone());
        error
    }

    fn terminated(&mut self) -> StreamError {
        self.fail(StreamError::new(ResetReason::ConnectionTermination))
    }

    fn end(&mut self) {
        match self.sending {
            Sending::Chunked => {
                self.output.scratch(8).put_slice(b"0\r\n\r\n");
                self.output.wrote();
                self.meter.wire_bytes_sent += 5;
            }
            // The peer still waits for bytes: only a close tells it that the message is incomplete.
            Sending::Length(left) if left > 0 => self.close = true,
            _ => {}
        }
        self.sending = Sending::Done;
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Stream for H1Server<I> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, StreamError>> {
        if let Some(error) = &self.error {
            return Poll::Ready(Err(error.clone()));
        }
        loop {
            if self.tunnel == Tunnel::Open {
                if !self.input.buf.is_empty() {
                    let data = self.input.buf.split().freeze();
                    self.meter.wire_bytes_received += data.len() as u64;
                    return Poll::Ready(Ok(Frame::Data(data, false)));
                }
            } else if self.tunnel == Tunnel::Asked && self.body.is_done() {
                // Bytes after the head may be for another protocol or for nobody: they wait for the answer.
                return Poll::Pending;
            } else {
                let framing = self.body.framing_bytes;
                let piece = self.body.decode(&mut self.input.buf);
                self.meter.wire_bytes_received += self.body.framing_bytes - framing;
                match piece {
                    Ok(Piece::Data(data, end)) => {
                        self.meter.wire_bytes_received += data.len() as u64;
                        if self.tunnel == Tunnel::Asked {
                            if data.is_empty() {
                                continue;
                            }
                            return Poll::Ready(Ok(Frame::Data(data, false)));
                        }
                        return Poll::Ready(Ok(Frame::Data(data, end)));
                    }
                    Ok(Piece::Trailers(trailers)) => return Poll::Ready(Ok(Frame::Trailers(trailers))),
                    Ok(Piece::NeedMore) => {}
                    Err(error) => return Poll::Ready(Err(self.fail(error))),
                }
            }
            let hold = self.tunnel != Tunnel::Open;
            match ready!(self.input.poll_read(&mut self.io, cx, hold)) {
                Ok(0) if self.tunnel == Tunnel::Open => {
                    return Poll::Ready(Ok(Frame::Data(Bytes::new(), true)));
                }
                Ok(0) | Err(_) => return Poll::Ready(Err(self.terminated())),
                Ok(_) => {}
            }
        }
    }

    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if self.output.has_capacity(self.config.buffer_limit) {
            return Poll::Ready(Ok(()));
        }
        match self.output.poll_flush(&mut self.io, cx) {
            Poll::Ready(Err(_)) => Poll::Ready(Err(self.terminated())),
            _ if self.output.has_capacity(self.config.buffer_limit) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    }

    fn send_data(&mut self, data: Bytes, end_stream: bool) -> Result<(), StreamError> {
        let n = data.len() as u64;
        match &mut self.sending {
            Sending::Chunked => {
                let framing = self.output.chunk(data);
                self.meter.wire_bytes_sent += n + framing as u64;
            }
            Sending::Length(left) => {
                let Some(rest) = left.checked_sub(n) else {
                    // More than announced would be read as the next response.
                    return Err(self.fail(errors::codec_error()));
                };
                *left = rest;
                self.output.data(data);
                self.meter.wire_bytes_sent += n;
            }
            Sending::UntilClose => {
                self.output.data(data);
                self.meter.wire_bytes_sent += n;
            }
            Sending::NoBody | Sending::Done => {}
            Sending::Head => return Err(self.fail(StreamError::new(ResetReason::LocalReset))),
        }
        if end_stream {
            self.end();
        }
        Ok(())
    }

    fn send_trailers(&mut self, trailers: &Headers) -> Result<(), StreamError> {
        if self.sending == Sending::Chunked && self.config.enable_trailers && !trailers.is_empty() {
            let out = self.output.scratch(256);
            let before = out.len();
            out.put_slice(b"0\r\n");
            encode::put_headers(out, trailers, self.config.header_key_format, true);
            out.put_slice(b"\r\n");
            let n = (out.len() - before) as u64;
            self.output.wrote();
            self.meter.wire_bytes_sent += n;
            self.meter.header_bytes_sent += n;
            self.sending = Sending::Done;
        } else {
            self.end();
        }
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if ready!(self.output.poll_flush(&mut self.io, cx)).is_err() {
            return Poll::Ready(Err(self.terminated()));
        }
        // The other side of the tunnel has ended: so does this one; the peer may go on sending.
        if self.tunnel == Tunnel::Open
            && self.sending == Sending::Done
            && ready!(std::pin::Pin::new(&mut self.io).poll_shutdown(cx)).is_err()
        {
            return Poll::Ready(Err(self.terminated()));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        if let Some(error) = &self.error {
            return Poll::Ready(error.clone());
        }
        if self.tunnel == Tunnel::Open {
            return Poll::Pending;
        }
        if self.input.eof {
            return Poll::Ready(self.terminated());
        }
        // An unread body keeps its back-pressure; a next request may wait in the buffer.
        let limit = if self.body.is_done() { READ_AHEAD } else { 1 };
        while self.input.buf.len() < limit {
            match ready!(self.input.poll_read(&mut self.io, cx, true)) {
                Ok(0) | Err(_) => return Poll::Ready(self.terminated()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    fn reset(&mut self, reason: ResetReason) {
        if self.sending == Sending::Done && self.request_complete() {
            return;
        }
        self.close = true;
        if self.error.is_none() {
            self.error = Some(StreamError::new(reason));
        }
    }

    fn protocol(&self) -> Protocol {
        self.protocol
    }

    fn bytes_meter(&self) -> BytesMeter {
        self.meter
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> ServerStream for H1Server<I> {
    fn send_informational(&mut self, headers: &Headers) -> Result<(), StreamError> {
        // HTTP/1.0 knows no 1xx.
        if self.protocol == Protocol::Http10 || self.sending != Sending::Head {
            return Ok(());
        }
        let out = self.output.scratch(256);
        let before = out.len();
        put_status_line(out, "HTTP/1.1 ", headers.status());
        encode::put_headers(out, headers, self.config.header_key_format, true);
        out.put_slice(b"\r\n");
        self.meter.wire_bytes_sent += (out.len() - before) as u64;
        self.output.wrote();
        Ok(())
    }

    fn send_headers(&mut self, headers: &Headers, end_stream: bool) -> Result<(), StreamError> {
        if self.sending != Sending::Head {
            return Err(self.fail(StreamError::new(ResetReason::LocalReset)));
        }
        let status = headers.status();
        let http10 = self.protocol == Protocol::Http10;
        let tunnel = self.tunnel == Tunnel::Asked
            && ((status == 101 && !self.connect) || (self.connect && (200..300).contains(&status)));
        if self.tunnel == Tunnel::Asked && !tunnel {
            // What the client sends next may belong to the tunnel that it did not get.
            self.close = true;
        }
        if self.tunnel == Tunnel::No && !self.body.is_done() {
            // An early answer: what is left of the request is not waited for.
            self.close = true;
        }
        let no_body = self.head || status == 204 || status == 304 || status < 200;
        let skip_length = tunnel || status == 204 || status < 200;
        let length = if skip_length { None } else { headers.bytes(&names::CONTENT_LENGTH) };
        let sending = if tunnel {
            Sending::UntilClose
        } else if no_body {
            Sending::NoBody
        } else if let Some(length) = length {
            match parse::parse_decimal(length) {
                Some(n) => Sending::Length(n),
                None => return Err(self.fail(errors::codec_error())),
            }
        } else if end_stream {
            Sending::Length(0)
        } else if http10 {
            self.close = true;
            Sending::UntilClose
        } else {
            Sending::Chunked
        };
        let connection = headers.bytes(&names::CONNECTION);
        if connection.is_some_and(|v| parse::tokens(v).any(|t| t.eq_ignore_ascii_case(b"close"))) {
            self.close = true;
        }

        let format = self.config.header_key_format;
        let out = self.output.scratch(512);
        let before = out.len();
        put_status_line(out, if http10 { "HTTP/1.0 " } else { "HTTP/1.1 " }, status);
        let fields = out.len();
        encode::put_headers(out, headers, format, skip_length);
        if !tunnel && connection.is_none() {
            if self.close {
                encode::put_line(out, b"connection", b"close", format);
                self.meter.connection_field_bytes = "connectionclose".len() as u64;
            } else if http10 {
                encode::put_line(out, b"connection", b"keep-alive", format);
                self.meter.connection_field_bytes = "connectionkeep-alive".len() as u64;
            }
        }
        if length.is_none() && !tunnel && status >= 200 && status != 204 && status != 304 {
            if end_stream && !self.head {
                encode::put_line(out, b"content-length", b"0", format);
            } else if !http10 {
                encode::put_line(out, b"transfer-encoding", b"chunked", format);
            }
        }
        self.meter.header_bytes_sent += (out.len() - fields) as u64;
        out.put_slice(b"\r\n");
        self.meter.wire_bytes_sent += (out.len() - before) as u64;
        self.output.wrote();
        self.sending = sending;
        if tunnel {
            self.tunnel = Tunnel::Open;
            self.close = true;
        }
        if end_stream {
            self.end();
        }
        Ok(())
    }

    fn close_after(&mut self) {
        self.close = true;
    }

    fn abandon(&mut self) {
        self.reset(ResetReason::LocalReset);
        if !self.output.is_empty() {
            self.output.clear();
            self.close = true;
            self.error.get_or_insert(StreamError::new(ResetReason::LocalReset));
        }
    }
}

fn put_status_line(out: &mut bytes::BytesMut, version: &str, status: u16) {
    if status == 200 && version == "HTTP/1.1 " {
        out.put_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.put_slice(version.as_bytes());
    out.put_slice(itoa::Buffer::new().format(status).as_bytes());
    out.put_u8(b' ');
    out.put_slice(encode::reason(status).as_bytes());
    out.put_slice(b"\r\n");
}

impl<I> H1Server<I> {
    /// The byte stream and the bytes read from it but not consumed.
    pub fn into_parts(mut self) -> (I, Bytes) {
        let n = self.input.buf.len();
        let rest = Bytes::copy_from_slice(&self.input.buf);
        self.input.buf.advance(n);
        (self.io, rest)
    }
}
