//! What goes out: frames of this side, bodies as far as windows and the queue allow, resets.

use std::task::{Poll, Waker};

use bytes::Bytes;

use super::inbound::Fail;
use super::limits::Flood;
use super::message::is_sent;
use super::streams::Stream;
use super::{Connection, End, end_flag};
use crate::codec::h1::parse::tokens;
use crate::codec::h2::frame::{self, ErrorCode, HEADER_SIZE, MAX_FRAME_SIZE, flag, kind};
use crate::codec::{ResetReason, StreamError};
use crate::headers::{HeaderValue, Headers, Known, names, status_value};

/// Bytes of the queue beyond which bodies wait in their streams, so that none of them can keep the others waiting.
const QUEUE_SOFT: usize = 128 * 1024;
/// Small ends of messages pass up to this size of the queue.
const QUEUE_HARD: usize = 1024 * 1024;
const SMALL: usize = 1024;
/// The high watermark of a stream, unless `per_connection_buffer_limit_bytes` is lower.
const STREAM_HIGH: usize = 256 * 1024;

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
    fn buffer_limit(&self, most: usize) -> usize {
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
            return Err(Flood::OutboundFrames);
        }
        if self.out.control_frames() > self.constraints.limits.outbound_control {
            return Err(Flood::OutboundControlFrames);
        }
        Ok(())
    }

    /// As [`Connection::check_queue`], for frames that the proxy's side made.
    fn end_if_flooded(&mut self) {
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
    fn reset_locally(&mut self, key: usize, code: ErrorCode) {
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
            stream.error.get_or_insert(reset_error(code));
            stream.reset_by_peer = true;
            early = !stream.answered;
        }
        // Else the response is complete, and the server does not want the rest of the request.
        let age = self.now.saturating_duration_since(stream.opened);
        stream.wake();
        self.close_stream(key);
        if self.server && early && self.resets.stream_closed(age, true) {
            return Err(Fail::TooManyResets);
        }
        Ok(())
    }

    /// Ends a stream whose both sides are done.
    pub(super) fn settle(&mut self, key: usize) {
        let Some(stream) = self.streams.get(key).filter(|s| s.open) else { return };
        if stream.sent_end && stream.recv_end {
            // Only the share of resets counts from here; the limit is theirs to break.
            let _ = self.server && self.resets.stream_closed(std::time::Duration::ZERO, false);
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
    fn send_the_end(&mut self, key: usize) {
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
    fn ended(&mut self, key: usize) {
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
    fn encode(
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

    /// A response head, informational or final. `upgrade`: 101 goes out as 200.
    pub(in crate::codec::h2) fn send_response(&mut self, key: usize, headers: &Headers, end: bool, upgrade: bool) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let status = headers.status();
        let last = status >= 200 || (upgrade && status == 101);
        if last {
            stream.answered = true;
            stream.send_end |= end;
        }
        if !stream.open || stream.sent_end {
            stream.sent_end |= stream.send_end;
            return;
        }
        let upgraded = upgrade && status == 101;
        self.encode(key, end && last, |encoder, out| {
            for (name, value) in headers.iter() {
                match name.known() {
                    Some(Known::STATUS) if upgraded => encoder.field(name, &status_value(200), out),
                    Some(Known::STATUS) => encoder.field(name, value, out),
                    Some(Known::TE) => {}
                    _ if is_sent(name) => encoder.field(name, value, out),
                    _ => {}
                }
            }
        });
        if end && last {
            self.ended(key);
        }
        self.end_if_flooded();
        self.notify();
    }

    /// Opens a stream with a request head. None: it cannot be sent.
    pub(in crate::codec::h2) fn send_request(&mut self, headers: &Headers, end: bool) -> Option<usize> {
        let upgrade = upgrade_of(headers);
        let method = headers.method();
        let connect = method == b"CONNECT" && upgrade.is_none();
        if !self.is_usable() || method.is_empty() || (!connect && headers.path().is_empty()) {
            return None;
        }
        let options = &self.config.options;
        let window = i64::from(options.initial_stream_window_size);
        if let Some(idle) = options.keepalive_idle_interval.filter(|i| !i.is_zero())
            && self.last_received.elapsed() > idle
        {
            self.ping_wanted = true;
        }
        let id = self.next_stream;
        self.next_stream += 2;
        let mut stream = Stream::new(id, self.now, window, self.peer_window);
        stream.held = true;
        stream.head_request = method == b"HEAD";
        stream.connect = connect;
        stream.send_end = end;
        let extended = upgrade.is_some();
        stream.upgrade = upgrade.clone();
        let key = self.insert(stream);
        self.constraints.opened();
        let scheme = headers.contains(&names::SCHEME);
        self.encode(key, end, |encoder, out| {
            for (name, value) in headers.iter() {
                match name.known() {
                    Some(Known::METHOD) if extended => {
                        encoder.field(name, &HeaderValue::from_static("CONNECT"), out);
                        if let Some(protocol) = &upgrade {
                            encoder.field(&names::PROTOCOL, protocol, out);
                        }
                    }
                    Some(Known::METHOD | Known::AUTHORITY) => encoder.field(name, value, out),
                    Some(Known::PATH) if !connect => {
                        encoder.field(name, value, out);
                        if !scheme {
                            encoder.field(&names::SCHEME, &HeaderValue::from_static("http"), out);
                        }
                    }
                    Some(Known::SCHEME) if !connect => encoder.field(name, value, out),
                    Some(Known::TE) => {
                        if tokens(value.as_bytes()).any(|t| t.eq_ignore_ascii_case(b"trailers")) {
                            encoder.field(name, &HeaderValue::from_static("trailers"), out);
                        }
                    }
                    Some(Known::CONTENT_LENGTH) if extended && value.as_bytes() == b"0" => {}
                    _ if is_sent(name) => encoder.field(name, value, out),
                    _ => {}
                }
            }
        });
        if end {
            self.ended(key);
        }
        self.end_if_flooded();
        self.notify();
        Some(key)
    }

    /// Body bytes of this side.
    pub(in crate::codec::h2) fn send_data(&mut self, key: usize, data: Bytes, end: bool) {
        let high = self.buffer_limit(STREAM_HIGH);
        let soft = self.buffer_limit(QUEUE_SOFT);
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.send_end || (data.is_empty() && !end) {
            return;
        }
        stream.send_end = end;
        if !stream.open {
            // The peer does not want it; whoever sends learns that when it looks.
            stream.sent_end |= end;
            return;
        }
        let n = data.len();
        let window = stream.send_window.min(self.send_window);
        if stream.send.is_empty()
            && self.ready.is_empty()
            && n <= MAX_FRAME_SIZE
            && n as i64 <= window.max(0)
            && self.out.len() + n <= soft
        {
            stream.send_window -= n as i64;
            self.send_window -= n as i64;
            stream.meter.wire_bytes_sent += (n + HEADER_SIZE) as u64;
            let id = stream.id;
            self.constraints.data_sent();
            self.out.head(n, kind::DATA, end_flag(end), id);
            self.out.payload(data);
            if end {
                self.ended(key);
            }
            self.end_if_flooded();
            self.notify();
            return;
        }
        if n > 0 {
            self.pending_bytes += n;
            stream.send.push(data);
            stream.above = stream.above || stream.send.len() > high;
        }
        self.make_ready(key);
        self.notify();
    }

    /// Trailers of this side.
    pub(in crate::codec::h2) fn send_trailers(&mut self, key: usize, trailers: &Headers) {
        if !trailers.iter().any(|(name, _)| is_sent(name)) {
            return self.send_data(key, Bytes::new(), true);
        }
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.send_end {
            return;
        }
        stream.send_end = true;
        if !stream.open {
            stream.sent_end = true;
            return;
        }
        stream.send_trailers = Some(trailers.clone());
        if stream.send.is_empty() {
            self.send_the_end(key);
            self.end_if_flooded();
        }
        self.make_ready(key);
        self.notify();
    }

    /// Ready while a stream's queue is below its high watermark.
    pub(in crate::codec::h2) fn poll_capacity(&mut self, key: usize, waker: &Waker) -> Poll<Result<(), StreamError>> {
        let Some(stream) = self.streams.get_mut(key) else { return Poll::Ready(Ok(())) };
        if let Some(error) = &stream.error {
            return Poll::Ready(Err(error.clone()));
        }
        if !stream.above || !stream.open {
            return Poll::Ready(Ok(()));
        }
        stream.wait(waker);
        Poll::Pending
    }

    /// Ready when all that a stream has to send is on its way, as far as its end is known.
    pub(in crate::codec::h2) fn poll_flush(&mut self, key: usize, waker: &Waker) -> Poll<Result<(), StreamError>> {
        let Some(stream) = self.streams.get_mut(key) else { return Poll::Ready(Ok(())) };
        if stream.send_end && (stream.sent_end || !stream.open) && !stream.wants_flush_error() {
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = &stream.error {
            return Poll::Ready(Err(error.clone()));
        }
        if !stream.open || !stream.wants_to_send() {
            return Poll::Ready(Ok(()));
        }
        stream.flushing = true;
        stream.wait(waker);
        Poll::Pending
    }

    /// Ends a stream on behalf of its handle.
    pub(in crate::codec::h2) fn reset(&mut self, key: usize, reason: ResetReason, code: ErrorCode) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if !stream.open {
            stream.error.get_or_insert(StreamError::new(reason));
            return;
        }
        if stream.send_end && !stream.sent_end && stream.error.is_none() && self.server {
            self.config.stats.tx_flush_timeout().inc();
        }
        stream.error.get_or_insert(StreamError::new(reason));
        self.reset_locally(key, code);
    }

    /// A stream's handle is gone.
    pub(in crate::codec::h2) fn release(&mut self, key: usize) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.held = false;
        stream.task = None;
        if !stream.open {
            self.give_back_unread(key);
            self.forget(key);
            return;
        }
        if self.server && stream.send_end {
            // What is queued still goes out.
            let early = stream.sent_end && !stream.recv_end;
            self.give_back_unread(key);
            if early {
                self.reset_locally(key, ErrorCode::NO_ERROR);
            }
            return;
        }
        self.reset_locally(key, ErrorCode::CANCEL);
    }
}

/// What an HTTP/1 style upgrade request asks for.
fn upgrade_of(headers: &Headers) -> Option<HeaderValue> {
    let connection = headers.bytes(&names::CONNECTION)?;
    let upgrade = headers.get(&names::UPGRADE)?;
    tokens(connection).any(|t| t.eq_ignore_ascii_case(b"upgrade")).then(|| upgrade.clone())
}

/// What this side tells the peer when a server ends a stream early.
pub(in crate::codec::h2) fn reset_code(reason: ResetReason) -> ErrorCode {
    match reason {
        ResetReason::LocalRefusedStreamReset | ResetReason::Overflow => ErrorCode::REFUSED_STREAM,
        ResetReason::ConnectError => ErrorCode::CONNECT_ERROR,
        ResetReason::ProtocolError => ErrorCode::PROTOCOL_ERROR,
        _ => ErrorCode::INTERNAL_ERROR,
    }
}
