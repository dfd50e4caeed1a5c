//! A stream that the codec has refused and reset. The connection manager logs its request through the same code as any
//! other; nothing is read from it and nothing is sent.

use std::task::{Context, Poll};

use bytes::Bytes;

use crate::codec::{BytesMeter, Frame, Protocol, ResetReason, ServerStream, Stream, StreamError};
use crate::headers::Headers;

/// The stream.
#[derive(Debug)]
pub struct RefusedStream {
    /// Bytes of the RST_STREAM that the peer was sent, if it was.
    pub bytes_sent: u64,
}

fn gone() -> StreamError {
    StreamError::new(ResetReason::LocalReset)
}

impl Stream for RefusedStream {
    fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Result<Frame, StreamError>> {
        Poll::Ready(Err(gone()))
    }

    fn poll_capacity(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Poll::Ready(Err(gone()))
    }

    fn send_data(&mut self, _: Bytes, _: bool) -> Result<(), StreamError> {
        Err(gone())
    }

    fn send_trailers(&mut self, _: &Headers) -> Result<(), StreamError> {
        Err(gone())
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        // Nothing waits.
        Poll::Ready(Ok(()))
    }

    fn poll_reset(&mut self, _: &mut Context<'_>) -> Poll<StreamError> {
        Poll::Ready(gone())
    }

    fn reset(&mut self, _: ResetReason) {}

    fn protocol(&self) -> Protocol {
        Protocol::Http2
    }

    fn bytes_meter(&self) -> BytesMeter {
        BytesMeter { wire_bytes_sent: self.bytes_sent, ..BytesMeter::default() }
    }
}

impl ServerStream for RefusedStream {
    fn send_informational(&mut self, _: &Headers) -> Result<(), StreamError> {
        Err(gone())
    }

    fn send_headers(&mut self, _: &Headers, _: bool) -> Result<(), StreamError> {
        Err(gone())
    }

    fn close_after(&mut self) {}
}
