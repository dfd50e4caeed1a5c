//! The consumer's side of what came in: bodies, trailers and heads are taken from their streams, and the peer is told
//! of the room that makes. A window opens only as its bytes are taken: a slow consumer stops the peer.

use std::task::{Poll, Waker};

use bytes::Bytes;

use super::Connection;
use crate::codec::h2::frame::{HEADER_SIZE, kind};
use crate::codec::{BytesMeter, Frame, ResetReason, StreamError};
use crate::headers::Headers;

impl Connection {
    /// `n` bytes of a stream's window are free again.
    pub(super) fn consume(&mut self, key: usize, n: usize) {
        let window = self.config.options.initial_stream_window_size;
        if let Some(stream) = self.streams.get_mut(key).filter(|s| s.open && !s.recv_end) {
            stream.consumed += n as u32;
            if stream.consumed >= window / 2 {
                let more = std::mem::take(&mut stream.consumed);
                stream.recv_window += i64::from(more);
                stream.meter.wire_bytes_sent += 4 + HEADER_SIZE as u64;
                let id = stream.id;
                self.out.frame(kind::WINDOW_UPDATE, 0, id, &more.to_be_bytes(), false);
                self.notify();
            }
        }
        self.consume_connection(n);
    }

    /// `n` bytes of the connection's window are free again.
    pub(super) fn consume_connection(&mut self, n: usize) {
        self.consumed += n as u32;
        let window = self.config.options.initial_connection_window_size.max(65_535);
        if self.consumed >= window / 2 && self.end.is_none() {
            let more = std::mem::take(&mut self.consumed);
            self.recv_window += i64::from(more);
            self.out.frame(kind::WINDOW_UPDATE, 0, 0, &more.to_be_bytes(), false);
            self.notify();
        }
    }

    /// What a stream's consumer never took.
    pub(super) fn give_back_unread(&mut self, key: usize) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let unread = stream.recv.len();
        stream.recv.clear();
        stream.recv_trailers = None;
        if unread > 0 {
            self.consume_connection(unread);
        }
    }

    /// The next piece of a body.
    pub(in crate::codec::h2) fn poll_frame(&mut self, key: usize, waker: &Waker) -> Poll<Result<Frame, StreamError>> {
        let Some(stream) = self.streams.get_mut(key) else {
            return Poll::Ready(Err(StreamError::new(ResetReason::LocalReset)));
        };
        if let Some(data) = stream.recv.pop() {
            let end = stream.recv_end && stream.recv.is_empty() && stream.recv_trailers.is_none();
            self.consume(key, data.len());
            return Poll::Ready(Ok(Frame::Data(data, end)));
        }
        if let Some(trailers) = stream.recv_trailers.take() {
            return Poll::Ready(Ok(Frame::Trailers(trailers)));
        }
        if let Some(error) = &stream.error {
            return Poll::Ready(Err(error.clone()));
        }
        if stream.recv_end {
            return Poll::Ready(Ok(Frame::Data(Bytes::new(), true)));
        }
        stream.wait(waker);
        Poll::Pending
    }

    /// The next response head; true when nothing follows it.
    pub(in crate::codec::h2) fn poll_head(
        &mut self,
        key: usize,
        waker: &Waker,
    ) -> Poll<Result<(Headers, bool), StreamError>> {
        let Some(stream) = self.streams.get_mut(key) else {
            return Poll::Ready(Err(StreamError::new(ResetReason::LocalReset)));
        };
        if let Some(head) = stream.informational.pop_front() {
            return Poll::Ready(Ok((head, false)));
        }
        if let Some(head) = stream.head.take() {
            let end =
                stream.recv_end && stream.recv.is_empty() && stream.recv_trailers.is_none() && stream.error.is_none();
            return Poll::Ready(Ok((head, end)));
        }
        if let Some(error) = &stream.error {
            return Poll::Ready(Err(error.clone()));
        }
        stream.wait(waker);
        Poll::Pending
    }

    /// Ready when a stream has ended early.
    pub(in crate::codec::h2) fn poll_reset(&mut self, key: usize, waker: &Waker) -> Poll<StreamError> {
        let Some(stream) = self.streams.get_mut(key) else { return Poll::Pending };
        if let Some(error) = &stream.error {
            return Poll::Ready(error.clone());
        }
        stream.wait(waker);
        Poll::Pending
    }

    /// What ended a stream early.
    pub(in crate::codec::h2) fn error(&self, key: usize) -> Option<StreamError> {
        self.streams.get(key).and_then(|s| s.error.clone())
    }

    /// The peer's END_STREAM has come, and our end is queued.
    pub(in crate::codec::h2) fn sides_done(&self, key: usize) -> (bool, bool) {
        self.streams.get(key).map_or((true, true), |s| (s.recv_end, s.send_end))
    }

    /// The peer reset a stream before the end of our message was queued.
    pub(in crate::codec::h2) fn was_reset_by_peer(&self, key: usize) -> bool {
        self.streams.get(key).is_some_and(|s| s.reset_by_peer && !s.send_end)
    }

    /// Bytes of a stream so far.
    pub(in crate::codec::h2) fn meter(&self, key: usize) -> BytesMeter {
        self.streams.get(key).map_or_else(BytesMeter::default, |s| s.meter)
    }

    /// A stream's number.
    pub(in crate::codec::h2) fn id(&self, key: usize) -> u32 {
        self.streams.get(key).map_or(0, |s| s.id)
    }
}
