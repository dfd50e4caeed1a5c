//! The four ends of HTTP: server and client, HTTP/1 and HTTP/2, behind two traits that the rest of the proxy uses.
//!
//! A codec delivers a stream as a head, body frames and trailers, and takes the same back. All calls are polled by the
//! one task that owns the stream, so there is no lock and no queue between codec and filters: back-pressure is simply
//! not polling. Upgrades and CONNECT look the same whatever the protocol: HTTP/2 extended CONNECT arrives as an
//! HTTP/1 style upgrade request and a `101` answer leaves as `200` (RFC 8441), as in Envoy.

pub mod h1;
pub mod h2;
pub mod raw;
mod single;
pub mod stats;

use crate::headers::Headers;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::task::{Context, Poll};

/// Protocol of one side of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2
    Http2,
    /// HTTP/3
    Http3,
}

impl Protocol {
    /// `%PROTOCOL%`.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Http10 => "HTTP/1.0",
            Protocol::Http11 => "HTTP/1.1",
            Protocol::Http2 => "HTTP/2",
            Protocol::Http3 => "HTTP/3",
        }
    }
}

/// A piece of a body, or what ends it.
#[derive(Debug)]
pub enum Frame {
    /// Bytes (perhaps none); true when the message ends with them.
    Data(Bytes, bool),
    /// Trailers; the message ends with them.
    Trailers(Headers),
}

impl Frame {
    /// True when nothing follows.
    pub fn is_end(&self) -> bool {
        matches!(self, Frame::Data(_, true) | Frame::Trailers(_))
    }
}

/// Why a stream ended early; Envoy's `StreamResetReason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResetReason {
    /// This proxy reset it.
    LocalReset,
    /// This proxy refused it.
    LocalRefusedStreamReset,
    /// The peer reset it.
    RemoteReset,
    /// The peer refused it: safe to retry.
    RemoteRefusedStreamReset,
    /// The connection could not be made, for a reason on this side.
    LocalConnectionFailure,
    /// The connection could not be made: refused or unreachable.
    RemoteConnectionFailure,
    /// The connection was not made in time.
    ConnectionTimeout,
    /// The connection ended with the stream open.
    ConnectionTermination,
    /// A limit of the pool was reached.
    Overflow,
    /// CONNECT was answered with an error or reset.
    ConnectError,
    /// The peer broke the protocol.
    ProtocolError,
    /// The overload manager.
    OverloadManager,
}

impl ResetReason {
    /// Envoy's text, as in `upstream_reset_before_response_started{...}` and in local reply bodies.
    pub fn as_str(self) -> &'static str {
        match self {
            ResetReason::LocalReset => "local reset",
            ResetReason::LocalRefusedStreamReset => "local refused stream reset",
            ResetReason::RemoteReset => "remote reset",
            ResetReason::RemoteRefusedStreamReset => "remote refused stream reset",
            ResetReason::LocalConnectionFailure => "local connection failure",
            ResetReason::RemoteConnectionFailure => "remote connection failure",
            ResetReason::ConnectionTimeout => "connection timeout",
            ResetReason::ConnectionTermination => "connection termination",
            ResetReason::Overflow => "overflow",
            ResetReason::ConnectError => "remote error with CONNECT request",
            ResetReason::ProtocolError => "protocol error",
            ResetReason::OverloadManager => "overload manager reset",
        }
    }
}

/// An error that ends a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} ({details})", reason.as_str())]
pub struct StreamError {
    /// Kind.
    pub reason: ResetReason,
    /// Response code details of Envoy, such as `http1.codec_error`; empty when there are none.
    pub details: &'static str,
    /// Status that a codec asks to answer a malformed request with (400, 413, 431...); 0 for none.
    pub status: u16,
}

impl StreamError {
    /// An error without details.
    pub fn new(reason: ResetReason) -> StreamError {
        StreamError { reason, details: "", status: 0 }
    }

    /// A protocol error with Envoy's detail string and the status to answer with.
    pub fn protocol(details: &'static str, status: u16) -> StreamError {
        StreamError { reason: ResetReason::ProtocolError, details, status }
    }
}

/// Bytes of one stream on the wire, for stats and access logs; Envoy's `BytesMeter`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BytesMeter {
    /// Fields of head and trailers sent: in HTTP/1 without the first line and the empty one, as Envoy counts.
    pub header_bytes_sent: u64,
    /// Fields of head and trailers received: in HTTP/1 names and values, and three bytes for each field, as Envoy counts.
    pub header_bytes_received: u64,
    /// All bytes sent, framing included.
    pub wire_bytes_sent: u64,
    /// All bytes received, framing included.
    pub wire_bytes_received: u64,
    /// Name and value of the `connection` field that the codec added to a response, which Envoy has in the response itself.
    pub connection_field_bytes: u64,
}

impl BytesMeter {
    /// Adds what another stream has moved.
    pub fn add(&mut self, other: BytesMeter) {
        self.header_bytes_sent += other.header_bytes_sent;
        self.header_bytes_received += other.header_bytes_received;
        self.wire_bytes_sent += other.wire_bytes_sent;
        self.wire_bytes_received += other.wire_bytes_received;
        self.connection_field_bytes += other.connection_field_bytes;
    }
}

/// What both ends of a stream can do: read a body, write a message, end early.
pub trait Stream {
    /// Next piece of the body of the message being received. Must not be called after the end was returned.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, StreamError>>;

    /// Ready when the write side is below its high watermark: only then may more data be sent.
    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>>;

    /// Queues body bytes. May be called only while there is capacity; never blocks and never drops.
    fn send_data(&mut self, data: Bytes, end_stream: bool) -> Result<(), StreamError>;

    /// Queues trailers and ends the message. Dropped where the peer cannot take them, as in Envoy.
    fn send_trailers(&mut self, trailers: &Headers) -> Result<(), StreamError>;

    /// Writes what is queued; ready when nothing is left.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>>;

    /// Ready when the peer has gone or reset the stream. Costs no system call while nothing has happened.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError>;

    /// Ends the stream now; on HTTP/1 this condemns the connection. What is queued need not be sent.
    fn reset(&mut self, reason: ResetReason);

    /// Protocol of this side.
    fn protocol(&self) -> Protocol;

    /// Bytes so far.
    fn bytes_meter(&self) -> BytesMeter;
}

/// Downstream end of a stream: the request comes in, the response goes out.
pub trait ServerStream: Stream {
    /// Queues a `1xx` head other than 101.
    fn send_informational(&mut self, headers: &Headers) -> Result<(), StreamError>;

    /// Queues the response head. `:status` is the first entry. The codec adds framing (`content-length` is kept,
    /// `transfer-encoding: chunked` added where needed) and what the connection needs (`connection: close` after
    /// [`ServerStream::close_after`]).
    fn send_headers(&mut self, headers: &Headers, end_stream: bool) -> Result<(), StreamError>;

    /// HTTP/1: close the connection after this response. HTTP/2: nothing, the connection is drained by GOAWAY.
    fn close_after(&mut self);

    /// Ends the stream now, and with it what is queued: the peer does not take it, or is not there any more.
    fn abandon(&mut self) {
        self.reset(ResetReason::LocalReset);
    }
}

/// Upstream end of a stream: the request goes out, the response comes in.
pub trait ClientStream: Stream {
    /// Queues the request head.
    fn send_headers(&mut self, headers: &Headers, end_stream: bool) -> Result<(), StreamError>;

    /// The response head, `:status` first; true when there is no body. After a `1xx` head (not 101) it is called again.
    fn poll_headers(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Headers, bool), StreamError>>;
}

/// Fills `slices` with what one write should take of an output, bodies in `queue` before what is gathered in `scratch`; the
/// number of slices.
fn gather<'a>(queue: &'a VecDeque<Bytes>, scratch: &'a BytesMut, slices: &mut [IoSlice<'a>]) -> usize {
    let mut n = 0;
    for (slice, piece) in slices.iter_mut().zip(queue) {
        *slice = IoSlice::new(piece);
        n += 1;
    }
    if n < slices.len() && !scratch.is_empty() {
        slices[n] = IoSlice::new(scratch);
        n += 1;
    }
    n
}
