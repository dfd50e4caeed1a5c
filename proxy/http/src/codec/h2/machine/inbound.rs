//! Frames that come in: cut out of the bytes, checked, and dealt with; bodies are delivered as they arrive.

use bytes::BytesMut;

use super::limits::Flood;
use super::message;
use super::{Connection, End, Goodbye, SHUTDOWN_PING, advance};
use crate::codec::h2::frame::{self, ErrorCode, FrameHead, flag, kind, setting};
use crate::codec::{ResetReason, StreamError};

/// Settings in one frame.
const MAX_SETTINGS: usize = 32;

/// Why a connection cannot go on.
#[derive(Debug)]
pub(super) enum Fail {
    /// Without a word, as Envoy does where its library asks it.
    Quiet,
    /// With GOAWAY.
    GoAway(ErrorCode, &'static str),
    Flood(Flood),
    TooManyResets,
}

impl From<Flood> for Fail {
    fn from(flood: Flood) -> Fail {
        Fail::Flood(flood)
    }
}

/// A DATA frame that is being read.
#[derive(Debug)]
pub(super) struct DataFrame {
    /// Whose; None when nobody wants it.
    key: Option<usize>,
    /// Payload still to come.
    left: usize,
    padding: usize,
    end: bool,
}

impl DataFrame {
    /// The stream is gone: nobody wants the rest.
    pub(super) fn detach(&mut self, key: usize) {
        if self.key == Some(key) {
            self.key = None;
        }
    }
}

impl Connection {
    /// Takes what has come. What is left in `buf` is the beginning of a frame.
    pub(in crate::codec::h2) fn recv(&mut self, buf: &mut BytesMut) {
        if self.end.is_some() {
            buf.clear();
            return;
        }
        self.last_received = self.now;
        match self.take(buf) {
            Ok(()) => {}
            Err(Fail::Quiet) => {
                let error = self.offence.take().unwrap_or_else(message::connection_error);
                self.finish(End::Protocol(error));
            }
            Err(Fail::GoAway(code, debug)) => {
                self.goaway(self.last_peer_stream, code, debug);
                self.finish(End::Protocol(message::connection_error()));
            }
            Err(Fail::Flood(flood)) => {
                // Envoy's library ends floods of pings that come faster than they can be answered, without a counter.
                if flood != Flood::OutboundControl || self.blocked {
                    flood.count(&self.config.stats);
                }
                self.out.clear();
                self.finish(End::Flood(flood));
            }
            Err(Fail::TooManyResets) => {
                self.out.clear();
                self.finish(End::TooManyResets);
            }
        }
    }

    fn take(&mut self, buf: &mut BytesMut) -> Result<(), Fail> {
        if self.preface > 0 {
            let n = self.preface.min(buf.len());
            let at = frame::PREFACE.len() - self.preface;
            if buf[..n] != frame::PREFACE[at..at + n] {
                self.out.clear();
                return Err(Fail::Quiet);
            }
            advance(buf, n);
            self.preface -= n;
        }
        loop {
            if self.data.is_some() {
                self.data_bytes(buf)?;
                if self.data.is_some() {
                    return Ok(());
                }
            }
            if self.skip > 0 {
                let n = self.skip.min(buf.len());
                advance(buf, n);
                self.skip -= n;
                if self.skip > 0 {
                    return Ok(());
                }
            }
            let Some(head) = FrameHead::parse(buf) else { return Ok(()) };
            if head.length > frame::MAX_FRAME_SIZE {
                return Err(Fail::GoAway(ErrorCode::FRAME_SIZE_ERROR, "too large frame size"));
            }
            if !self.settled && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
                return Err(Fail::GoAway(ErrorCode::PROTOCOL_ERROR, "SETTINGS expected"));
            }
            if let Some(block) = &self.headers
                && (head.kind != kind::CONTINUATION || head.stream != block.id)
            {
                return Err(Fail::GoAway(ErrorCode::PROTOCOL_ERROR, "unexpected non-CONTINUATION frame"));
            }
            if !(head.kind == kind::PING && head.has(flag::ACK)) {
                self.heard = true;
            }
            if head.kind == kind::DATA {
                // The pad length is needed with the header.
                let padded = head.has(flag::PADDED);
                if buf.len() < frame::HEADER_SIZE + usize::from(padded) {
                    if head.length > 0 {
                        return Ok(());
                    }
                    return Err(Fail::GoAway(ErrorCode::PROTOCOL_ERROR, "DATA: insufficient padding space"));
                }
                let pad = padded.then(|| usize::from(buf[frame::HEADER_SIZE]));
                advance(buf, frame::HEADER_SIZE + usize::from(padded));
                self.data_head(head, pad)?;
                continue;
            }
            if head.kind > kind::CONTINUATION {
                advance(buf, frame::HEADER_SIZE);
                self.skip = head.length;
                continue;
            }
            let size = frame::HEADER_SIZE + head.length;
            if buf.len() < size {
                return Ok(());
            }
            self.frame(head, &buf[frame::HEADER_SIZE..size])?;
            advance(buf, size);
        }
    }

    fn frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fail> {
        match head.kind {
            kind::HEADERS => self.headers_frame(head, payload),
            kind::PRIORITY => self.priority_frame(head, payload),
            kind::RST_STREAM => self.rst_stream(head, payload),
            kind::SETTINGS => self.settings(head, payload),
            kind::PING => self.ping(head, payload),
            kind::GOAWAY => self.goaway_frame(head, payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            kind::CONTINUATION => self.continuation(head, payload),
            // PUSH_PROMISE was forbidden by SETTINGS, and clients never may.
            _ => Err(Fail::Quiet),
        }
    }

    /// Whether no frame but HEADERS and PRIORITY may name this stream yet.
    pub(super) fn is_idle(&self, id: u32) -> bool {
        let mine = (id % 2 == 1) != self.server;
        if mine { self.server || id >= self.next_stream } else { id > self.last_peer_stream }
    }

    /// A stream whose frame ends the connection has its own details.
    pub(super) fn offend(&mut self, key: usize, details: &'static str) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.error.get_or_insert(StreamError::protocol(details, 0));
        }
        self.offence = Some(StreamError::protocol(details, 0));
    }

    fn data_head(&mut self, head: FrameHead, pad: Option<usize>) -> Result<(), Fail> {
        let protocol = |debug| Err(Fail::GoAway(ErrorCode::PROTOCOL_ERROR, debug));
        if head.stream == 0 {
            return protocol("DATA: stream_id == 0");
        }
        let padding = pad.map_or(0, |pad| pad + 1);
        if padding > head.length {
            return protocol("DATA: invalid padding");
        }
        let end = head.has(flag::END_STREAM);
        let key = self.streams.find(head.stream);
        self.constraints.payload(head.length == padding && !end).inspect_err(|flood| {
            if let Some(stream) = key.and_then(|key| self.streams.get_mut(key)) {
                stream.error.get_or_insert(StreamError::protocol(flood.details(), 0));
            }
        })?;
        self.recv_window -= head.length as i64;
        if self.recv_window < 0 {
            return Err(Fail::GoAway(ErrorCode::FLOW_CONTROL_ERROR, ""));
        }
        let mut frame = DataFrame { key, left: head.length - padding, padding: padding.saturating_sub(1), end };
        let Some(stream) = key.and_then(|key| self.streams.get_mut(key)) else {
            if self.is_idle(head.stream) {
                return protocol("DATA: stream in idle");
            }
            if self.server && head.stream <= self.last_peer_stream && !self.streams.was_reset(head.stream) {
                return Err(Fail::GoAway(ErrorCode::STREAM_CLOSED, "DATA: stream closed"));
            }
            self.consume_connection(padding);
            self.data = Some(frame);
            return Ok(());
        };
        if stream.recv_end {
            return Err(Fail::GoAway(ErrorCode::STREAM_CLOSED, "DATA: stream in half-closed(remote)"));
        }
        stream.recv_window -= head.length as i64;
        let code = if stream.recv_window < 0 {
            Some(ErrorCode::FLOW_CONTROL_ERROR)
        } else if !self.server && !stream.answered {
            return Err(Fail::GoAway(ErrorCode::PROTOCOL_ERROR, "DATA: no HEADERS"));
        } else {
            // More than content-length says, or less at the end.
            let left = stream.expected.map(|n| n.checked_sub(frame.left as u64));
            stream.expected = left.flatten();
            let short = end && stream.expected.is_some_and(|n| n > 0);
            (short || left == Some(None)).then_some(ErrorCode::PROTOCOL_ERROR)
        };
        if let (Some(code), Some(key)) = (code, key) {
            stream.error.get_or_insert(StreamError {
                reason: ResetReason::RemoteReset,
                details: "http2.remote_reset",
                status: 0,
            });
            frame.key = None;
            self.reset_stream(key, code)?;
            self.consume_connection(padding);
        } else {
            self.count_frame(head);
            if let Some(key) = key.filter(|_| padding > 0) {
                self.consume(key, padding);
            }
        }
        self.data = Some(frame);
        Ok(())
    }

    /// Payload of the current DATA frame, as much as there is.
    fn data_bytes(&mut self, buf: &mut BytesMut) -> Result<(), Fail> {
        let Some(frame) = &mut self.data else { return Ok(()) };
        let n = frame.left.min(buf.len());
        let key = frame.key;
        frame.left -= n;
        if n > 0 {
            match key.and_then(|key| self.streams.get_mut(key)) {
                Some(stream) if stream.held && stream.open => {
                    stream.recv.read(buf, n);
                    stream.wake();
                }
                _ => {
                    advance(buf, n);
                    self.consume_connection(n);
                }
            }
        }
        let Some(frame) = &mut self.data else { return Ok(()) };
        if frame.left > 0 {
            return Ok(());
        }
        let pad = frame.padding.min(buf.len());
        advance(buf, pad);
        frame.padding -= pad;
        if frame.padding > 0 {
            return Ok(());
        }
        let end = frame.end;
        self.data = None;
        if end
            && let Some(key) = key
            && let Some(stream) = self.streams.get_mut(key)
            && stream.open
        {
            stream.recv_end = true;
            stream.wake();
            self.settle(key);
        }
        Ok(())
    }

    fn priority_frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fail> {
        self.constraints.priority()?;
        if payload.len() != 5 {
            return Err(Fail::GoAway(ErrorCode::FRAME_SIZE_ERROR, ""));
        }
        // What it says is not looked at, nor whether it makes sense.
        self.count_frame(head);
        Ok(())
    }

    /// Counts a small frame with its stream.
    fn count_frame(&mut self, head: FrameHead) {
        if let Some(stream) = self.streams.find(head.stream).and_then(|key| self.streams.get_mut(key)) {
            stream.meter.wire_bytes_received += (head.length + frame::HEADER_SIZE) as u64;
        }
    }

    fn rst_stream(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fail> {
        if payload.len() != 4 {
            return Err(Fail::GoAway(ErrorCode::FRAME_SIZE_ERROR, ""));
        }
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err(Fail::Quiet);
        }
        if let Some(key) = self.streams.find(head.stream) {
            self.config.stats.rx_reset().inc();
            self.count_frame(head);
            self.reset_by_peer(key, ErrorCode(frame::number(payload)))?;
        }
        // Resets of streams that are over count as well.
        if self.server && !self.reset_rate.take(self.now) {
            return Err(Fail::GoAway(ErrorCode::INTERNAL_ERROR, ""));
        }
        Ok(())
    }

    fn settings(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fail> {
        let wrong_size = || Fail::GoAway(ErrorCode::FRAME_SIZE_ERROR, "");
        if head.stream != 0 {
            return Err(Fail::Quiet);
        }
        self.settled = true;
        if head.has(flag::ACK) {
            if !payload.is_empty() {
                return Err(wrong_size());
            }
            if self.settings_acked {
                // SETTINGS are sent once.
                return Err(Fail::Quiet);
            }
            self.settings_acked = true;
            self.decoder.set_max_table_size(self.config.options.hpack_table_size as usize);
            return Ok(());
        }
        if !payload.len().is_multiple_of(6) {
            return Err(wrong_size());
        }
        if payload.len() / 6 > MAX_SETTINGS {
            return Err(Fail::GoAway(ErrorCode::ENHANCE_YOUR_CALM, "SETTINGS: too many setting entries"));
        }
        for entry in payload.chunks_exact(6) {
            let id = u16::from_be_bytes([entry[0], entry[1]]);
            self.setting(id, frame::number(&entry[2..]))?;
        }
        self.queue_control(kind::SETTINGS, flag::ACK, 0, &[])
    }

    fn setting(&mut self, id: u16, value: u32) -> Result<(), Fail> {
        match id {
            setting::HEADER_TABLE_SIZE => self.encoder.set_peer_table_size(value as usize),
            setting::ENABLE_PUSH if value > 1 || (!self.server && value == 1) => return Err(Fail::Quiet),
            setting::MAX_CONCURRENT_STREAMS => self.peer_max_streams = Some(value),
            setting::INITIAL_WINDOW_SIZE => {
                if i64::from(value) > frame::MAX_WINDOW {
                    return Err(Fail::Quiet);
                }
                self.peer_initial_window(i64::from(value))?;
            }
            setting::MAX_FRAME_SIZE if !(16_384..=0xff_ffff).contains(&value) => return Err(Fail::Quiet),
            setting::ENABLE_CONNECT_PROTOCOL => {
                if value > 1 || (value == 0 && self.peer_connect) {
                    return Err(Fail::Quiet);
                }
                self.peer_connect = value == 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn ping(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fail> {
        if payload.len() != 8 {
            return Err(Fail::GoAway(ErrorCode::FRAME_SIZE_ERROR, ""));
        }
        if head.stream != 0 {
            return Err(Fail::Quiet);
        }
        if !head.has(flag::ACK) {
            return self.queue_control(kind::PING, flag::ACK, 0, payload);
        }
        match self.goodbye {
            Goodbye::Announced if payload == SHUTDOWN_PING => {
                self.goodbye = Goodbye::Heard;
                self.out.frame(kind::PING, 0, 0, &SHUTDOWN_PING, false);
            }
            Goodbye::Heard if payload == SHUTDOWN_PING => self.say_goodbye(),
            _ => self.pong = true,
        }
        Ok(())
    }

    fn goaway_frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fail> {
        if head.stream != 0 {
            return Err(Fail::Quiet);
        }
        if payload.len() < 8 {
            return Err(Fail::GoAway(ErrorCode::FRAME_SIZE_ERROR, ""));
        }
        self.goaway_received = true;
        if !self.server {
            self.refuse_above(frame::number(payload) & 0x7fff_ffff);
        }
        Ok(())
    }

    fn window_update(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fail> {
        self.constraints.window_update()?;
        if payload.len() != 4 {
            return Err(Fail::GoAway(ErrorCode::FRAME_SIZE_ERROR, ""));
        }
        let more = i64::from(frame::number(payload) & 0x7fff_ffff);
        if head.stream == 0 {
            self.send_window += more;
            if more == 0 || self.send_window > frame::MAX_WINDOW {
                return Err(Fail::Quiet);
            }
            return Ok(());
        }
        let Some(key) = self.streams.find(head.stream) else {
            return if self.is_idle(head.stream) { Err(Fail::Quiet) } else { Ok(()) };
        };
        self.count_frame(head);
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        stream.send_window += more;
        if more == 0 || stream.send_window > frame::MAX_WINDOW {
            self.offend(key, "http2.unknown.nghttp2.error");
            return Err(Fail::Quiet);
        }
        self.make_ready(key);
        Ok(())
    }
}
