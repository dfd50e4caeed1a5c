//! What both ends of an HTTP/2 stream have in common: its place in the connection's machine.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::driver::Shared;
use super::frame::ErrorCode;
use crate::codec::{BytesMeter, Frame, ResetReason, StreamError};
use crate::headers::Headers;

/// A stream of a connection. Dropping it before both sides are done resets the stream.
pub(super) struct Handle {
    pub(super) connection: Shared,
    pub(super) key: usize,
}

impl Handle {
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, StreamError>> {
        self.connection.borrow_mut().poll_frame(self.key, cx.waker())
    }

    pub(super) fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.connection.borrow_mut().poll_capacity(self.key, cx.waker())
    }

    pub(super) fn send_data(&mut self, data: Bytes, end: bool) {
        self.connection.borrow_mut().send_data(self.key, data, end);
    }

    pub(super) fn send_trailers(&mut self, trailers: &Headers) {
        self.connection.borrow_mut().send_trailers(self.key, trailers);
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.connection.borrow_mut().poll_flush(self.key, cx.waker())
    }

    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.connection.borrow_mut().poll_reset(self.key, cx.waker())
    }

    pub(super) fn reset(&mut self, reason: ResetReason, code: ErrorCode) {
        self.connection.borrow_mut().reset(self.key, reason, code);
    }

    pub(super) fn error(&self) -> Option<StreamError> {
        self.connection.borrow().error(self.key)
    }

    /// The peer's end has come; our end is queued.
    pub(super) fn sides_done(&self) -> (bool, bool) {
        self.connection.borrow().sides_done(self.key)
    }

    pub(super) fn meter(&self) -> BytesMeter {
        self.connection.borrow().meter(self.key)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.connection.borrow_mut().release(self.key);
    }
}
