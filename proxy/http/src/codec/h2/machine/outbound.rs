//! What goes out: frames of this side, bodies as far as windows and the queue allow, resets.

use super::inbound::Fail;
use super::limits::Flood;
use super::message::is_sent;
use super::{Connection, End, end_flag};
use crate::codec::h2::frame::{self, ErrorCode, HEADER_SIZE, MAX_FRAME_SIZE, flag, kind};
use crate::codec::{ResetReason, StreamError};

/// Bytes of the queue beyond which bodies wait in their streams, so that none of them can keep the others waiting.
pub(super) const QUEUE_SOFT: usize = 128 * 1024;
/// Small ends of messages pass up to this size of the queue.
const QUEUE_HARD: usize = 1024 * 1024;
const SMALL: usize = 1024;
/// The high watermark of a stream, unless `per_connection_buffer_limit_bytes` is lower.
pub(super) const STREAM_HIGH: usize = 256 * 1024;

/// What the peer's RST_STREAM means.
pub(super) fn reset_error(code: ErrorCode) -> StreamError {
    let (reason, details) = match code {
        ErrorCode::REFUSED_STREAM => (ResetReason::RemoteRefusedStreamReset, "http2.remote_refuse"),
        ErrorCode::CONNECT_ERROR => (ResetReason::ConnectError, "http2.remote_reset"),
        _ => (ResetReason::RemoteReset, "http2.remote_reset"),
    };
    StreamError { reason, details, status: 0 }
}

impl Connection {
    pub(super) fn buffer_limit(&self, most: usize) -> usize {
        match self.config.buffer_limit {
            0 => most,
            limit => limit.min(most),
        }
    }

    /// A frame that only answers the peer.
    pub(super) fn queue_control(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<(), Fail> {
        self.out.frame(kind, flags, stream, payload, true);
        self.check_queue()?;
        Ok(())
    }

    fn check_queue(&self) -> Result<(), Flood> {
        if self.out.frames() > self.constraints.limits.outbound {
            return Err(Flood::Outbound);
        }
        if self.out.control_frames() > self.constraints.limits.outbound_control {
            return Err(Flood::OutboundControl);
        }
        Ok(())
    }

    /// As [`Connection::check_queue`], for frames that the proxy's side made.
    pub(super) fn end_if_flooded(&mut self) {
        if self.end.is_none()
            && let Err(flood) = self.check_queue()
        {
            flood.count(&self.config.stats);
            self.out.clear();
            self.finish(End::Flood(flood));
        }
    }

    /// RST_STREAM, whether there is such a stream or not.
    pub(super) fn send_rst(&mut self, id: u32, code: ErrorCode) -> Result<(), Fail> {
        self.config.stats.tx_reset().inc();
        self.streams.remember_reset(id);
        self.queue_control(kind::RST_STREAM, 0, id, &code.0.to_be_bytes())
    }

    /// Ends a stream with RST_STREAM.
    pub(super) fn reset_stream(&mut self, key: usize, code: ErrorCode) -> Result<(), Fail> {
        let Some(stream) = self.streams.get_mut(key).filter(|s| s.open) else { return Ok(()) };
        let id = stream.id;
        stream.meter.wire_bytes_sent += 4 + HEADER_SIZE as u64;
        self.close_stream(key);
        if id == 0 { Ok(()) } else { self.send_rst(id, code) }
    }

    /// As [`Connection::reset_stream`], on behalf of a stream's handle.
    pub(super) fn reset_locally(&mut self, key: usize, code: ErrorCode) {
        // The only failure is a flood.
        if self.reset_stream(key, code).is_err() {
            self.end_if_flooded();
        }
        self.notify();
    }

    /// The peer has reset a stream.
    pub(super) fn reset_by_peer(&mut self, key: usize, code: ErrorCode) -> Result<(), Fail> {
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        let mut early = false;
        if self.server || !stream.recv_end {
            let mut error = reset_error(code);
            if self.server && code == ErrorCode::NO_ERROR {
                // Envoy has no name for this.
                error.details = "";
            }
            stream.error.get_or_insert(error);
            stream.reset_by_peer = true;
            early = !stream.answered;
        }
        // Else the response is complete, and the server does not want the rest of the request.
        let age = self.now.saturating_duration_since(stream.opened);
        stream.wake();
        self.close_stream(key);
        if self.server && early && self.resets.stream_reset(age, self.config.premature_limits()) {
            return Err(Fail::TooManyResets);
        }
        Ok(())
    }

    /// Ends a stream whose both sides are done.
    pub(super) fn settle(&mut self, key: usize) {
        let Some(stream) = self.streams.get(key).filter(|s| s.open) else { return };
        if stream.sent_end && stream.recv_end {
            self.resets.stream_closed();
            self.close_stream(key);
        }
    }

    /// No frame of this stream comes or goes any more.
    fn close_stream(&mut self, key: usize) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let id = stream.id;
        stream.open = false;
        self.pending_bytes -= stream.send.len();
        stream.send.clear();
        stream.send_trailers = None;
        if stream.flushing || stream.above {
            stream.wake();
        }
        let held = stream.held;
        self.streams.close(id);
        if !held {
            self.give_back_unread(key);
            self.forget(key);
        }
        if self.goodbye != super::Goodbye::No {
            self.notify();
        }
    }

    /// Streams above the last one that the peer works on may be tried elsewhere.
    pub(super) fn refuse_above(&mut self, last: u32) {
        let refused: Vec<usize> =
            self.streams.iter_mut().filter(|(_, s)| s.open && s.id > last).map(|(key, _)| key).collect();
        for key in refused {
            if let Some(stream) = self.streams.get_mut(key) {
                stream.error.get_or_insert(reset_error(ErrorCode::REFUSED_STREAM));
                stream.wake();
            }
            self.close_stream(key);
        }
    }

    /// SETTINGS_INITIAL_WINDOW_SIZE changes the windows of all streams.
    pub(super) fn peer_initial_window(&mut self, window: i64) -> Result<(), Fail> {
        let more = window - self.peer_window;
        self.peer_window = window;
        let mut ready = Vec::new();
        for (key, stream) in self.streams.iter_mut().filter(|(_, s)| s.open) {
            stream.send_window += more;
            if stream.send_window > frame::MAX_WINDOW {
                return Err(Fail::Quiet);
            }
            if more > 0 && stream.wants_to_send() {
                ready.push(key);
            }
        }
        for key in ready {
            self.make_ready(key);
        }
        Ok(())
    }

    /// Puts a stream that has something to send, and may, into the list of such streams.
    pub(super) fn make_ready(&mut self, key: usize) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let may = stream.send_window > 0 || stream.send.is_empty();
        if stream.open && !stream.queued && may && stream.wants_to_send() {
            stream.queued = true;
            self.ready.push_back(key);
            self.notify();
        }
    }

    /// Makes frames of what streams have to send, each stream in its turn. True: there is more, which waits for room.
    pub(in crate::codec::h2) fn pump(&mut self) -> bool {
        let soft = self.buffer_limit(QUEUE_SOFT);
        while let Some(key) = self.ready.pop_front() {
            let Some(stream) = self.streams.get_mut(key) else { continue };
            stream.queued = false;
            if !stream.open {
                continue;
            }
            let waiting = stream.send.len();
            if waiting == 0 {
                self.send_the_end(key);
                continue;
            }
            if stream.send_window <= 0 {
                // WINDOW_UPDATE makes it ready again.
                continue;
            }
            let n = waiting.min(MAX_FRAME_SIZE).min(stream.send_window as usize);
            let small = waiting <= SMALL && self.out.len() < QUEUE_HARD;
            let no_window = self.send_window < n as i64 && self.send_window <= 0;
            if no_window || (self.out.len() + n > soft && !self.out.is_empty() && !small) {
                stream.queued = true;
                self.ready.push_front(key);
                return !no_window;
            }
            let n = n.min(self.send_window as usize);
            self.send_frame(key, n);
            self.make_ready(key);
        }
        false
    }

    /// One DATA frame of `n` bytes from a stream's queue.
    fn send_frame(&mut self, key: usize, n: usize) {
        let low = self.buffer_limit(STREAM_HIGH) / 2;
        let Some(stream) = self.streams.get_mut(key) else { return };
        let end = stream.send_end && stream.send_trailers.is_none() && n == stream.send.len();
        self.send_window -= n as i64;
        stream.send_window -= n as i64;
        stream.meter.wire_bytes_sent += (n + HEADER_SIZE) as u64;
        self.pending_bytes -= n;
        self.constraints.data_sent();
        self.out.head(n, kind::DATA, end_flag(end), stream.id);
        let mut left = n;
        while left > 0 {
            let Some(piece) = stream.send.pop_some(left) else { break };
            left -= piece.len();
            self.out.payload(piece);
        }
        if stream.above && stream.send.len() <= low {
            stream.above = false;
            stream.wake();
        }
        if end {
            self.ended(key);
        }
    }

    /// The trailers or the empty frame that end a message whose body is sent.
    pub(super) fn send_the_end(&mut self, key: usize) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if let Some(trailers) = stream.send_trailers.take() {
            self.encode(key, true, |c, out| {
                for (name, value) in trailers.iter().filter(|(name, _)| is_sent(name)) {
                    c.field(name, value, out);
                }
            });
            self.ended(key);
        } else if stream.send_end && !stream.sent_end {
            stream.meter.wire_bytes_sent += HEADER_SIZE as u64;
            let id = stream.id;
            self.constraints.data_sent();
            self.out.head(0, kind::DATA, flag::END_STREAM, id);
            self.ended(key);
        }
    }

    /// END_STREAM has gone.
    pub(super) fn ended(&mut self, key: usize) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.sent_end = true;
        if stream.flushing {
            stream.flushing = false;
            stream.wake();
        }
        if self.server && !stream.held && !stream.recv_end {
            // Answered early: the rest of the request is not wanted.
            self.reset_locally(key, ErrorCode::NO_ERROR);
            return;
        }
        self.settle(key);
    }

    /// HEADERS, with CONTINUATION where one frame does not hold them.
    pub(super) fn encode(
        &mut self,
        key: usize,
        end: bool,
        fields: impl FnOnce(&mut crate::codec::h2::hpack::Encoder, &mut Vec<u8>),
    ) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        self.block.clear();
        self.encoder.begin(&mut self.block);
        fields(&mut self.encoder, &mut self.block);
        let mut kind = kind::HEADERS;
        let mut flags = end_flag(end);
        let mut rest = &self.block[..];
        loop {
            let (part, after) = rest.split_at(rest.len().min(MAX_FRAME_SIZE));
            if after.is_empty() {
                flags |= flag::END_HEADERS;
            }
            self.out.frame(kind, flags, stream.id, part, false);
            let n = (part.len() + HEADER_SIZE) as u64;
            stream.meter.header_bytes_sent += n;
            stream.meter.wire_bytes_sent += n;
            if after.is_empty() {
                break;
            }
            rest = after;
            kind = kind::CONTINUATION;
            flags = 0;
        }
        if self.block.capacity() > MAX_FRAME_SIZE {
            self.block = Vec::new();
        }
    }
}
