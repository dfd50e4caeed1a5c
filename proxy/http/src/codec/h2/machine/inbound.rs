//! Frames that come in: cut out of the bytes, checked, and dealt with; bodies are delivered as they arrive.

use bytes::BytesMut;

use super::limits::Flood;
use super::message::{self, HeadReader, Kind, Refusal, Rules};
use super::streams::Stream;
use super::{Accepted, Connection, End, Goodbye, SHUTDOWN_PING, advance};
use crate::codec::h2::Config;
use crate::codec::h2::frame::{self, ErrorCode, FrameHead, flag, kind, setting};
use crate::codec::{ResetReason, StreamError};
use crate::headers::names;

/// What a header block may have in encoded form beyond twice the limit, before the connection ends for it.
const BLOCK_SPARE: usize = 128 * 1024;
/// What the encoding of a field adds to its name and value, at most.
const FIELD_SPARE: usize = 16;
/// Settings in one frame.
const MAX_SETTINGS: usize = 32;
/// Informational heads that wait to be taken.
const MAX_INFORMATIONAL: usize = 16;

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

/// Where the fields of a header block go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// A new request.
    Request,
    /// A response or trailers of this stream.
    Stream(usize),
    /// Nowhere; the table must be kept right.
    Nowhere,
}

/// A header block that is not complete.
#[derive(Debug)]
pub(super) struct Block {
    id: u32,
    target: Target,
    end_stream: bool,
    data: Vec<u8>,
}

impl Block {
    pub(super) fn is_new(&self) -> bool {
        self.target == Target::Request
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.data.len()
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
                if flood != Flood::OutboundControlFrames || self.blocked {
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
                    return Err(Fail::GoAway(ErrorCode::FRAME_SIZE_ERROR, ""));
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
    fn is_idle(&self, id: u32) -> bool {
        let mine = (id % 2 == 1) != self.server;
        if mine { !self.server && id >= self.next_stream || self.server } else { id > self.last_peer_stream }
    }

    fn headers_frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fail> {
        let wrong_size = || Fail::GoAway(ErrorCode::FRAME_SIZE_ERROR, "HEADERS: padding");
        let mut fragment = payload;
        let mut padding = 0;
        if head.has(flag::PADDED) {
            let (&pad, rest) = fragment.split_first().ok_or_else(wrong_size)?;
            let size = rest.len().checked_sub(usize::from(pad));
            let Some(size) = size else {
                return Err(Fail::GoAway(ErrorCode::PROTOCOL_ERROR, "HEADERS: invalid padding"));
            };
            fragment = &rest[..size];
            padding = usize::from(pad) + 1;
        }
        let end = head.has(flag::END_STREAM);
        if head.stream == 0 {
            return Err(Fail::Quiet);
        }
        if head.has(flag::PRIORITY) {
            let (dependency, rest) = fragment.split_at_checked(5).ok_or_else(wrong_size)?;
            if frame::number(dependency) & 0x7fff_ffff == head.stream {
                return Err(Fail::Quiet);
            }
            fragment = rest;
        }
        let target = self.target(&head)?;
        if target == Target::Request {
            self.constraints.opened();
        }
        self.constraints.payload(head.length == padding && !end).inspect_err(|_| self.begun(target))?;
        if let Target::Stream(key) = target
            && let Some(stream) = self.streams.get_mut(key)
        {
            let n = (head.length + frame::HEADER_SIZE) as u64;
            stream.meter.header_bytes_received += n;
            stream.meter.wire_bytes_received += n;
        }
        let block = Block { id: head.stream, target, end_stream: end, data: Vec::new() };
        if head.has(flag::END_HEADERS) {
            return self.block(&block, fragment);
        }
        self.headers = Some(Block { data: fragment.to_vec(), ..block });
        Ok(())
    }

    /// A request that had begun when the connection ended is one that was refused.
    fn begun(&mut self, target: Target) {
        if target == Target::Request {
            self.headers = Some(Block { id: 0, target, end_stream: false, data: Vec::new() });
        }
    }

    /// Whose HEADERS these are.
    fn target(&mut self, head: &FrameHead) -> Result<Target, Fail> {
        let id = head.stream;
        if let Some(key) = self.streams.find(id) {
            let stream = self.streams.get_mut(key);
            if stream.is_some_and(|s| s.recv_end) {
                self.offend(key, "http2.unknown.nghttp2.error");
                return Err(Fail::Quiet);
            }
            return Ok(Target::Stream(key));
        }
        if !self.server {
            if self.is_idle(id) {
                return Err(Fail::Quiet);
            }
            return Ok(Target::Nowhere);
        }
        if id % 2 == 0 {
            return Err(Fail::Quiet);
        }
        if id <= self.last_peer_stream {
            if self.streams.was_reset(id) {
                return Ok(Target::Nowhere);
            }
            // RFC 9113 5.1.1: numbers only grow; and 5.1: nothing but PRIORITY comes on a closed stream.
            return Err(Fail::GoAway(ErrorCode::STREAM_CLOSED, "HEADERS: stream closed"));
        }
        if self.goodbye == Goodbye::Said {
            // The peer was told that these are not worked on.
            return Ok(Target::Nowhere);
        }
        self.last_peer_stream = id;
        if self.streams.open() >= self.config.options.max_concurrent_streams as usize {
            if self.settings_acked {
                return Err(Fail::Quiet);
            }
            self.config.stats.stream_refused_errors().inc();
            self.send_rst(id, ErrorCode::REFUSED_STREAM)?;
            return Ok(Target::Nowhere);
        }
        Ok(Target::Request)
    }

    fn continuation(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fail> {
        let Some(mut block) = self.headers.take() else {
            return Err(Fail::GoAway(ErrorCode::PROTOCOL_ERROR, "CONTINUATION: unexpected"));
        };
        if let Err(flood) = self.constraints.payload(payload.is_empty()) {
            self.headers = Some(block);
            return Err(flood.into());
        }
        if let Target::Stream(key) = block.target
            && let Some(stream) = self.streams.get_mut(key)
        {
            stream.meter.header_bytes_received += payload.len() as u64;
            stream.meter.wire_bytes_received += payload.len() as u64;
        }
        block.data.extend_from_slice(payload);
        if block.target != Target::Nowhere && block.data.len() > self.longest_block() {
            // It can only be too large, whatever its end is.
            self.config.stats.header_list_size_too_large().inc();
            let key = match block.target {
                Target::Stream(key) => Some(key),
                _ => None,
            };
            block.target = Target::Nowhere;
            self.refuse(key, block.id, Refusal { error: message::errors::too_large(), malformed: false })?;
        }
        if block.data.len() > self.config.limits.max_bytes.saturating_mul(2).saturating_add(BLOCK_SPARE) {
            self.headers = Some(block);
            return Err(Fail::GoAway(ErrorCode::ENHANCE_YOUR_CALM, "header block too large"));
        }
        if !head.has(flag::END_HEADERS) {
            self.headers = Some(block);
            return Ok(());
        }
        let data = std::mem::take(&mut block.data);
        self.block(&block, &data)
    }

    /// Bytes of an encoded list that is within the limits, at most.
    fn longest_block(&self) -> usize {
        let limits = self.config.limits;
        limits.max_bytes.saturating_add(limits.max_count.saturating_mul(FIELD_SPARE)).saturating_add(FIELD_SPARE)
    }

    /// A whole header block.
    fn block(&mut self, block: &Block, data: &[u8]) -> Result<(), Fail> {
        let (kind, key) = match block.target {
            Target::Request => (Kind::Request, None),
            Target::Stream(key) => {
                let answered = self.streams.get(key).is_some_and(|s| s.answered);
                (if self.server || answered { Kind::Trailers } else { Kind::Response }, Some(key))
            }
            Target::Nowhere => (Kind::Trailers, None),
        };
        let nowhere = block.target == Target::Nowhere;
        let config = std::rc::Rc::clone(&self.config);
        let mut reader = HeadReader::new(kind, rules(&config));
        let decoded = self.decoder.decode(data, |field, size| {
            if nowhere { std::ops::ControlFlow::Break(()) } else { reader.field(field, size) }
        });
        match (block.target, key) {
            _ if decoded.is_err() => {
                self.begun(block.target);
                Err(Fail::GoAway(ErrorCode::COMPRESSION_ERROR, ""))
            }
            (Target::Request, _) => {
                let head = reader.request(block.end_stream);
                self.request(block, head, data.len())
            }
            (_, Some(key)) if kind == Kind::Trailers => {
                let trailers = reader.trailers();
                self.trailers(block, key, trailers)
            }
            (_, Some(key)) => {
                let head = reader.response(block.end_stream);
                match head {
                    Ok((headers, length)) => self.response(block, key, headers, length),
                    Err(refusal) => self.refuse(Some(key), block.id, refusal),
                }
            }
            (_, None) => Ok(()),
        }
    }

    fn request(
        &mut self,
        block: &Block,
        head: Result<message::RequestHead, Refusal>,
        length: usize,
    ) -> Result<(), Fail> {
        let head = match head {
            Ok(head) => head,
            Err(refusal) => return self.refuse(None, block.id, refusal),
        };
        let window = i64::from(self.config.options.initial_stream_window_size);
        let mut stream = Stream::new(block.id, self.now, window, self.peer_window);
        stream.recv_end = block.end_stream;
        stream.expected = head.content_length;
        stream.head_request = head.headers.method() == b"HEAD";
        stream.connect = head.connect;
        stream.held = true;
        if head.connect {
            stream.expected = None;
        }
        let n = (length + frame::HEADER_SIZE) as u64;
        stream.meter.header_bytes_received = n;
        stream.meter.wire_bytes_received = n;
        let key = self.insert(stream);
        self.accepted.push_back(Accepted {
            key,
            headers: head.headers,
            end_stream: block.end_stream,
            upgrade: head.upgrade,
            connect: head.connect,
        });
        Ok(())
    }

    fn response(
        &mut self,
        block: &Block,
        key: usize,
        mut headers: crate::headers::Headers,
        length: Option<u64>,
    ) -> Result<(), Fail> {
        let status = headers.status();
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        if status >= 200 {
            stream.answered = true;
            stream.recv_end = block.end_stream;
            stream.expected = length;
            if stream.connect && status < 300 {
                stream.expected = None;
            } else if stream.head_request || matches!(status, 204 | 304) {
                stream.expected = Some(0);
            }
            if status == 200
                && let Some(protocol) = stream.upgrade.clone()
            {
                headers.set_status(101);
                headers.push(names::CONNECTION, crate::headers::HeaderValue::from_static("upgrade"));
                headers.push(names::UPGRADE, protocol);
                stream.expected = None;
            }
            if block.end_stream && stream.expected.is_some_and(|n| n > 0) {
                return self.refuse(
                    Some(key),
                    block.id,
                    Refusal { error: message::errors::messaging(), malformed: true },
                );
            }
        } else if stream.heads.len() >= MAX_INFORMATIONAL {
            return self.refuse(Some(key), block.id, Refusal { error: message::errors::messaging(), malformed: true });
        }
        stream.heads.push_back(headers);
        stream.wake();
        self.settle(key);
        Ok(())
    }

    fn trailers(
        &mut self,
        block: &Block,
        key: usize,
        trailers: Result<crate::headers::Headers, Refusal>,
    ) -> Result<(), Fail> {
        if self.server {
            // Envoy counts those of requests only.
            self.config.stats.trailers().inc();
        }
        let trailers = match trailers {
            Ok(trailers) if block.end_stream => trailers,
            // Neither a second head nor trailers that are not the end.
            Ok(_) => {
                let refusal = Refusal { error: message::errors::messaging(), malformed: true };
                return self.refuse(Some(key), block.id, refusal);
            }
            Err(refusal) => return self.refuse(Some(key), block.id, refusal),
        };
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        if stream.expected.is_some_and(|n| n > 0) {
            return self.refuse(Some(key), block.id, Refusal { error: message::errors::messaging(), malformed: true });
        }
        stream.recv_end = true;
        if !trailers.is_empty() && stream.held {
            stream.recv_trailers = Some(trailers);
        }
        stream.wake();
        self.settle(key);
        Ok(())
    }

    /// A message that is not taken. Limits end the stream only; what is no HTTP, the connection, unless told otherwise.
    fn refuse(&mut self, key: Option<usize>, id: u32, refusal: Refusal) -> Result<(), Fail> {
        let Refusal { error, malformed } = refusal;
        if malformed {
            self.config.stats.rx_messaging_error().inc();
        }
        let details = error.details;
        if let Some(stream) = key.and_then(|key| self.streams.get_mut(key)) {
            stream.error.get_or_insert(error);
            stream.wake();
        } else {
            self.reject(error);
        }
        if malformed && !self.config.stream_error_on_invalid_http_message {
            self.offence = Some(StreamError::protocol(details, 0));
            return Err(Fail::Quiet);
        }
        let code = if malformed { ErrorCode::PROTOCOL_ERROR } else { ErrorCode::INTERNAL_ERROR };
        match key {
            Some(key) => self.reset_stream(key, code),
            None => self.send_rst(id, code),
        }
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
        stream.meter.wire_bytes_received += (head.length + frame::HEADER_SIZE) as u64;
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
        } else if padding > 0
            && let Some(key) = key
        {
            self.consume(key, padding);
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
        if head.stream == 0 {
            return Err(Fail::Quiet);
        }
        self.count_frame(head);
        if frame::number(payload) & 0x7fff_ffff == head.stream {
            // RFC 7540 5.3.1: a stream error.
            return match self.streams.find(head.stream) {
                Some(key) => self.reset_stream(key, ErrorCode::PROTOCOL_ERROR),
                None => self.send_rst(head.stream, ErrorCode::PROTOCOL_ERROR),
            };
        }
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
        let Some(key) = self.streams.find(head.stream) else { return Ok(()) };
        self.config.stats.rx_reset().inc();
        self.count_frame(head);
        self.reset_by_peer(key, ErrorCode(frame::number(payload)))
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
            if !self.settings_acked {
                self.settings_acked = true;
                let table = self.config.options.hpack_table_size as usize;
                self.decoder.set_max_table_size(table);
            }
            return Ok(());
        }
        if payload.len() % 6 != 0 {
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
        if payload == SHUTDOWN_PING && self.goodbye == Goodbye::Announced {
            self.goodbye = Goodbye::Said;
            self.goaway(self.last_peer_stream, ErrorCode::NO_ERROR, "");
        } else {
            self.pong = true;
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

/// What is accepted of the peer.
fn rules(config: &Config) -> Rules<'_> {
    Rules {
        limits: config.limits,
        max_field: config.options.max_header_field_size_kb.map_or(0, |kb| kb as usize * 1024),
        underscores: config.underscores,
        extended_connect: config.options.allow_connect,
        stats: &config.stats,
    }
}
