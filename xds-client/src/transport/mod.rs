//! The seams between the client and the network. An owner that has connections, clusters or an HTTP client of its own
//! implements one of these; the modules below are complete implementations for those that do not.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

pub mod file;
pub mod grpc;

/// A future on the thread of the client.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// A connection: TCP, TLS, a Unix socket, a pipe in a test.
pub trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// Opens connections to one target, with whatever addresses, TLS and deadlines its owner decides.
pub trait Connect {
    /// Opens one. The future ends by itself if the peer does not answer: its implementor sets the deadline.
    fn connect(&self) -> LocalFuture<io::Result<Box<dyn Io>>>;
}

impl<F: Fn() -> LocalFuture<io::Result<Box<dyn Io>>>> Connect for F {
    fn connect(&self) -> LocalFuture<io::Result<Box<dyn Io>>> {
        self()
    }
}

/// How a gRPC call ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}, {message}")]
pub struct GrpcStatus {
    /// The status code of gRPC.
    pub code: u32,
    /// The text that came with it.
    pub message: String,
}

impl GrpcStatus {
    /// `OK`: the server ended the stream.
    pub const OK: u32 = 0;
    /// `UNKNOWN`.
    pub const UNKNOWN: u32 = 2;
    /// `RESOURCE_EXHAUSTED`.
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    /// `UNIMPLEMENTED`.
    pub const UNIMPLEMENTED: u32 = 12;
    /// `INTERNAL`, which is also the code of a NACK.
    pub const INTERNAL: u32 = 13;
    /// `UNAVAILABLE`.
    pub const UNAVAILABLE: u32 = 14;

    /// The status for people: its code by name, and the text.
    pub fn named(&self) -> String {
        const NAMES: [&str; 17] = [
            "OK",
            "CANCELLED",
            "UNKNOWN",
            "INVALID_ARGUMENT",
            "DEADLINE_EXCEEDED",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "RESOURCE_EXHAUSTED",
            "FAILED_PRECONDITION",
            "ABORTED",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
            "INTERNAL",
            "UNAVAILABLE",
            "DATA_LOSS",
            "UNAUTHENTICATED",
        ];
        let name = NAMES.get(self.code as usize).map_or_else(|| self.code.to_string(), |name| (*name).to_owned());
        if self.message.is_empty() { name } else { format!("{name}: {}", self.message) }
    }

    /// A status of that code.
    pub fn new(code: u32, message: impl Into<String>) -> GrpcStatus {
        GrpcStatus { code, message: message.into() }
    }

    /// `UNAVAILABLE`.
    pub fn unavailable(message: impl Into<String>) -> GrpcStatus {
        GrpcStatus::new(GrpcStatus::UNAVAILABLE, message)
    }
}

/// Opens bidirectional gRPC streams to one control plane.
pub trait GrpcTransport {
    /// Opens a stream to the method at `path`, without waiting for the server's answer. Connecting has a deadline.
    fn open(&self, path: &str) -> LocalFuture<Result<Box<dyn GrpcStream>, GrpcStatus>>;
}

/// One bidirectional stream of messages, without their gRPC framing. Dropped, it is reset.
pub trait GrpcStream {
    /// Ready once what was sent before has been taken by the peer's flow control.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), GrpcStatus>>;

    /// Sends one message. Only after `poll_ready` was ready.
    fn send(&mut self, message: Bytes) -> Result<(), GrpcStatus>;

    /// The next message. The end of the stream is an error, with the status of the server.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, GrpcStatus>>;
}

/// The answer to a poll.
#[derive(Clone, Debug)]
pub struct RestResponse {
    /// The status code of HTTP.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

/// Posts polls to one control plane.
pub trait RestTransport {
    /// Posts `body`, of type `application/json`, to `path`. The client sets the deadline (`request_timeout`).
    fn post(&self, path: &str, body: Bytes) -> LocalFuture<Result<RestResponse, String>>;
}
