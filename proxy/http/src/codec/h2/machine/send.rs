//! What stream handles send: heads, bodies, trailers and resets, put into frames at once where nothing stands in the way.

use std::task::{Poll, Waker};

use bytes::Bytes;

use super::message::is_sent;
use super::outbound::{QUEUE_SOFT, STREAM_HIGH};
use super::streams::Stream;
use super::{Connection, end_flag};
use crate::codec::h1::parse::tokens;
use crate::codec::h2::frame::{ErrorCode, HEADER_SIZE, MAX_FRAME_SIZE, kind};
use crate::codec::{ResetReason, StreamError};
use crate::headers::{HeaderValue, Headers, Known, names, status_value};

impl Connection {
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
                    Some(Known::TE) if !takes_trailers(value) => {}
                    Some(Known::TE) => encoder.field(name, &HeaderValue::from_static("trailers"), out),
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

/// Whether a `te` field has what HTTP/2 still knows of it.
fn takes_trailers(te: &HeaderValue) -> bool {
    tokens(te.as_bytes()).any(|t| t.eq_ignore_ascii_case(b"trailers"))
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
