//! The upstream end of an HTTP/1 connection.
//!
//! [`H1Client`] owns a connection and is, one request after the other, the [`ClientStream`] of the current request:
//! `begin`, the exchange, then back into the pool while [`H1Client::is_reusable`]. Called by the connection pool and the
//! router, which own all timeouts.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes};
use nuncio_config::hcm::{HeaderKeyFormat, Http1Options};
use nuncio_net::connection::ByteMeter;
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::{Decoder, Piece};
use super::encode::{self, Output};
use super::input::Input;
use super::parse::{self, Framing, Limits, errors};
use super::response::{self, RequestKind, ResponseHead};
use crate::codec::{BytesMeter, ClientStream, Frame, Protocol, ResetReason, Stream, StreamError};
use crate::headers::{Headers, names};

/// Informational responses accepted before the final one.
const MAX_INFORMATIONAL: u32 = 100;

/// What all connections of a cluster share.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// How names are written.
    pub header_key_format: HeaderKeyFormat,
    /// Deliver and send trailers.
    pub enable_trailers: bool,
    /// Chunked wins over Content-Length instead of being refused with it.
    pub allow_chunked_length: bool,
    /// Write absolute-form targets.
    pub send_fully_qualified_url: bool,
    /// Size of a response head.
    pub limits: Limits,
    /// High watermark of what waits to be written; 0 is no limit.
    pub buffer_limit: usize,
}

impl ClientConfig {
    /// From a cluster's options. Envoy's limits are 80 KiB and 100 headers.
    pub fn new(options: &Http1Options, limits: Limits, buffer_limit: usize) -> ClientConfig {
        ClientConfig {
            header_key_format: options.header_key_format,
            enable_trailers: options.enable_trailers,
            allow_chunked_length: options.allow_chunked_length,
            send_fully_qualified_url: options.send_fully_qualified_url,
            limits,
            buffer_limit,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Head,
    Chunked,
    Length(u64),
    /// An upgrade or CONNECT request: bytes as they are, once the server has agreed.
    Tunnel,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receiving {
    Head,
    Body,
    Done,
}

/// An HTTP/1 client connection.
pub struct H1Client<I> {
    io: I,
    config: Rc<ClientConfig>,
    input: Input,
    output: Output,
    body: Decoder,
    kind: RequestKind,
    sending: Sending,
    receiving: Receiving,
    /// Both sides are raw bytes.
    tunnel: bool,
    keep_alive: bool,
    close_announced: bool,
    protocol: Protocol,
    informational: u32,
    error: Option<StreamError>,
    meter: BytesMeter,
    /// What the tunnel's other end sent before the server agreed.
    early: Vec<Bytes>,
    early_end: bool,
    early_bytes: usize,
}

impl<I: AsyncRead + AsyncWrite + Unpin> H1Client<I> {
    /// A connection without a request.
    pub fn new(io: I, config: Rc<ClientConfig>) -> H1Client<I> {
        let limits = config.limits;
        H1Client {
            io,
            config,
            input: Input::default(),
            output: Output::default(),
            body: Decoder::new(Framing::None, limits, false),
            kind: RequestKind::default(),
            sending: Sending::Done,
            receiving: Receiving::Done,
            tunnel: false,
            keep_alive: true,
            close_announced: false,
            protocol: Protocol::Http11,
            informational: 0,
            error: None,
            meter: BytesMeter::default(),
            early: Vec::new(),
            early_end: false,
            early_bytes: 0,
        }
    }

    /// Tells `meter` what waits for the socket.
    pub fn count_waiting(&mut self, meter: Rc<ByteMeter>) {
        self.output.count_waiting(meter);
    }

    /// The byte stream.
    pub fn io(&self) -> &I {
        &self.io
    }

    /// Starts an exchange; [`ClientStream::send_headers`] is next.
    pub fn begin(&mut self) {
        debug_assert!(self.is_reusable());
        self.sending = Sending::Head;
        self.receiving = Receiving::Head;
        self.kind = RequestKind::default();
        self.tunnel = false;
        self.informational = 0;
        self.meter = BytesMeter::default();
    }

    /// True when the last exchange is over on both sides and the server keeps the connection.
    pub fn is_reusable(&self) -> bool {
        self.sending == Sending::Done
            && self.receiving == Receiving::Done
            && self.keep_alive
            && !self.tunnel
            && self.error.is_none()
            && self.output.is_empty()
            && self.input.buf.is_empty()
            && !self.input.eof
    }

    /// True when the server said that it closes (`connection: close`, HTTP/1.0).
    pub fn close_announced(&self) -> bool {
        self.close_announced
    }

    /// True when the request has been sent, or at least queued, to its end.
    pub fn request_complete(&self) -> bool {
        self.sending == Sending::Done
    }

    /// True when the response has been read to its end.
    pub fn response_complete(&self) -> bool {
        self.receiving == Receiving::Done
    }

    /// True when the server has ended its side.
    pub fn peer_closed(&self) -> bool {
        self.input.eof
    }

    /// True when the server said something after its last answer that nobody had asked for. A `408` is none of that:
    /// servers take leave of idle connections with it.
    pub fn has_unasked(&self) -> bool {
        let left = &self.input.buf;
        let late = left.starts_with(b"HTTP/1.") && left.get(8..12).is_some_and(|status| status == b" 408");
        self.receiving == Receiving::Done && !self.tunnel && !left.is_empty() && !late
    }

    /// What ended the exchange early.
    pub fn error(&self) -> Option<&StreamError> {
        self.error.as_ref()
    }

    /// Between exchanges: pending while the connection is healthy, ready when it has ended or the server sent something
    /// that nobody asked for. Gives all buffers back; costs no system call while nothing happens.
    pub fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.input.buf.is_empty() || self.input.eof {
            return Poll::Ready(());
        }
        self.input.poll_read(&mut self.io, cx, false).map(|_| ())
    }

    /// Ends the writing side.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.output.poll_flush(&mut self.io, cx))?;
        std::pin::Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// The byte stream.
    pub fn into_io(self) -> I {
        self.io
    }

    fn fail(&mut self, error: StreamError) -> StreamError {
        self.keep_alive = false;
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
            Sending::Length(left) if left > 0 => self.keep_alive = false,
            _ => {}
        }
        self.sending = Sending::Done;
    }

    fn received(&mut self) {
        self.receiving = Receiving::Done;
        if self.sending != Sending::Done {
            // An early answer: the rest of the request may never be read.
            self.keep_alive = false;
        }
    }

    fn parse_head(&mut self) -> Result<Option<ResponseHead>, StreamError> {
        let ClientConfig { limits, allow_chunked_length, header_key_format, .. } = *self.config;
        let kind = self.kind;
        if header_key_format == HeaderKeyFormat::PreserveCase {
            let parse = |copy: &mut _| response::parse_response(copy, limits, allow_chunked_length, kind);
            return Ok(parse::preserving(&mut self.input.buf, parse)?.map(|(mut head, original)| {
                head.headers.set_original_names(parse::original_names(&original));
                head
            }));
        }
        response::parse_response(&mut self.input.buf, limits, allow_chunked_length, kind)
    }

    fn open_tunnel(&mut self) {
        self.tunnel = true;
        for data in std::mem::take(&mut self.early) {
            self.meter.wire_bytes_sent += data.len() as u64;
            self.output.data(data);
        }
        self.early_bytes = 0;
        // The length of a body that came with the request says nothing about the tunnel.
        if self.sending != Sending::Done {
            self.sending = if self.early_end { Sending::Done } else { Sending::Tunnel };
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Stream for H1Client<I> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, StreamError>> {
        if let Some(error) = &self.error {
            return Poll::Ready(Err(error.clone()));
        }
        loop {
            let framing = self.body.framing_bytes;
            let piece = self.body.decode(&mut self.input.buf);
            self.meter.wire_bytes_received += self.body.framing_bytes - framing;
            match piece {
                Ok(Piece::Data(data, end)) => {
                    self.meter.wire_bytes_received += data.len() as u64;
                    if end {
                        self.received();
                    }
                    return Poll::Ready(Ok(Frame::Data(data, end)));
                }
                Ok(Piece::Trailers(trailers)) => {
                    self.received();
                    return Poll::Ready(Ok(Frame::Trailers(trailers)));
                }
                Ok(Piece::NeedMore) => {}
                Err(error) => return Poll::Ready(Err(self.fail(error))),
            }
            match ready!(self.input.poll_read(&mut self.io, cx, !self.tunnel)) {
                Ok(0) if self.body.is_until_close() => {
                    self.received();
                    return Poll::Ready(Ok(Frame::Data(Bytes::new(), true)));
                }
                // A short body is a broken message, not only a closed connection.
                Ok(0) => return Poll::Ready(Err(self.fail(errors::codec_error()))),
                Err(_) => return Poll::Ready(Err(self.terminated())),
                Ok(_) => {}
            }
        }
    }

    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let limit = self.config.buffer_limit;
        if self.sending == Sending::Tunnel && !self.tunnel {
            // Kept back until the server agrees, and bounded.
            return if limit == 0 || self.early_bytes <= limit { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        if self.output.has_capacity(limit) {
            return Poll::Ready(Ok(()));
        }
        match self.output.poll_flush(&mut self.io, cx) {
            Poll::Ready(Err(_)) => Poll::Ready(Err(self.terminated())),
            _ if self.output.has_capacity(limit) => Poll::Ready(Ok(())),
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
                    // More than announced would be read as the next request.
                    return Err(self.fail(StreamError::new(ResetReason::LocalReset)));
                };
                *left = rest;
                self.output.data(data);
                self.meter.wire_bytes_sent += n;
            }
            Sending::Tunnel if self.tunnel => {
                self.output.data(data);
                self.meter.wire_bytes_sent += n;
            }
            Sending::Tunnel => {
                self.early_bytes += data.len();
                self.early.push(data);
                self.early_end |= end_stream;
                return Ok(());
            }
            Sending::Done => {}
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
            // A server may answer and close without reading: its answer counts more.
            return if self.receiving == Receiving::Done {
                Poll::Ready(Ok(()))
            } else {
                Poll::Ready(Err(self.terminated()))
            };
        }
        if self.tunnel
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
        if self.receiving == Receiving::Done || self.tunnel || self.body.is_until_close() {
            return Poll::Pending;
        }
        // Something to read is for `poll_headers` and `poll_frame`; only an end before it is a reset.
        while self.input.buf.is_empty() {
            match ready!(self.input.poll_read(&mut self.io, cx, true)) {
                Ok(0) | Err(_) => return Poll::Ready(self.terminated()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    fn reset(&mut self, reason: ResetReason) {
        self.keep_alive = false;
        self.output.clear();
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

impl<I: AsyncRead + AsyncWrite + Unpin> ClientStream for H1Client<I> {
    fn send_headers(&mut self, headers: &Headers, end_stream: bool) -> Result<(), StreamError> {
        if self.sending != Sending::Head {
            return Err(self.fail(StreamError::new(ResetReason::LocalReset)));
        }
        let method = headers.method();
        let connect = method == b"CONNECT";
        let upgrade = !connect
            && headers.contains(&names::UPGRADE)
            && headers
                .bytes(&names::CONNECTION)
                .is_some_and(|v| parse::tokens(v).any(|t| t.eq_ignore_ascii_case(b"upgrade")));
        self.kind = RequestKind { head: method == b"HEAD", connect, upgrade };
        let length = if connect { None } else { headers.bytes(&names::CONTENT_LENGTH) };
        let mut bodiless_length = false;
        let sending = if let Some(length) = length {
            match parse::parse_decimal(length) {
                Some(n) => Sending::Length(n),
                None => return Err(self.fail(StreamError::new(ResetReason::LocalReset))),
            }
        } else if connect || upgrade {
            Sending::Tunnel
        } else if end_stream {
            // Methods without a body by nature need no length (RFC 9110 8.6).
            bodiless_length = !matches!(method, b"GET" | b"HEAD" | b"DELETE" | b"TRACE");
            Sending::Length(0)
        } else {
            Sending::Chunked
        };

        let format = self.config.header_key_format;
        let out = self.output.scratch(512);
        let before = out.len();
        out.reserve(method.len() + headers.path().len() + headers.authority().len() + 32);
        out.put_slice(method);
        out.put_u8(b' ');
        if connect {
            out.put_slice(headers.authority());
        } else {
            if self.config.send_fully_qualified_url {
                out.put_slice(headers.bytes(&names::SCHEME).unwrap_or(b"http"));
                out.put_slice(b"://");
                out.put_slice(headers.authority());
            }
            out.put_slice(headers.path());
        }
        out.put_slice(b" HTTP/1.1\r\n");
        let fields = out.len();
        encode::put_headers(out, headers, format, connect);
        if bodiless_length {
            encode::put_line(out, b"content-length", b"0", format);
        } else if sending == Sending::Chunked {
            encode::put_line(out, b"transfer-encoding", b"chunked", format);
        }
        self.meter.header_bytes_sent += (out.len() - fields) as u64;
        out.put_slice(b"\r\n");
        self.meter.wire_bytes_sent += (out.len() - before) as u64;
        self.output.wrote();
        self.sending = sending;
        if end_stream {
            if sending == Sending::Tunnel {
                self.early_end = true;
            } else {
                self.end();
            }
        }
        Ok(())
    }

    fn poll_headers(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Headers, bool), StreamError>> {
        if let Some(error) = &self.error {
            return Poll::Ready(Err(error.clone()));
        }
        let mut fresh = !self.input.buf.is_empty();
        loop {
            if fresh {
                let parsed = self.parse_head();
                match parsed {
                    Ok(Some(head)) => {
                        self.meter.header_bytes_received += head.field_bytes as u64;
                        self.meter.wire_bytes_received += head.wire_bytes as u64;
                        self.protocol = head.protocol;
                        if head.status < 200 && head.framing != Framing::Raw {
                            self.informational += 1;
                            if self.informational > MAX_INFORMATIONAL {
                                return Poll::Ready(Err(self.fail(errors::codec_error())));
                            }
                            return Poll::Ready(Ok((head.headers, false)));
                        }
                        self.keep_alive = head.keep_alive;
                        self.close_announced = head.closes;
                        self.body = Decoder::new(head.framing, self.config.limits, self.config.enable_trailers);
                        self.receiving = Receiving::Body;
                        if head.framing == Framing::Raw {
                            self.open_tunnel();
                        } else if self.sending == Sending::Tunnel {
                            // Refused: what was kept back is for nobody.
                            self.keep_alive = false;
                            self.early = Vec::new();
                            self.sending = Sending::Done;
                        }
                        let end = self.body.is_done();
                        if end {
                            self.received();
                        }
                        return Poll::Ready(Ok((head.headers, end)));
                    }
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Err(self.fail(error))),
                }
            }
            let before = self.input.buf.len();
            match ready!(self.input.poll_read(&mut self.io, cx, true)) {
                // Half a head is a broken message, not only a closed connection.
                Ok(0) if before > 0 => return Poll::Ready(Err(self.fail(errors::codec_error()))),
                Ok(0) | Err(_) => return Poll::Ready(Err(self.terminated())),
                Ok(_) => {
                    fresh = before == 0
                        || self.input.buf[before..].contains(&b'\n')
                        || self.input.buf.len() > self.config.limits.max_bytes;
                }
            }
        }
    }
}
