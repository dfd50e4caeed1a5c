//! HEADERS and CONTINUATION that come in: whose they are, the block when it is complete, and what the message does to its
//! stream.

use std::ops::ControlFlow;
use std::rc::Rc;

use super::inbound::Fail;
use super::message::{self, HeadReader, Kind, Refusal, RequestHead, Rules};
use super::streams::Stream;
use super::{Accepted, Connection, Goodbye};
use crate::codec::StreamError;
use crate::codec::h2::Config;
use crate::codec::h2::frame::{self, ErrorCode, FrameHead, flag};
use crate::headers::{HeaderValue, Headers, names};

/// What a header block may have in encoded form beyond twice the limit, before the connection ends for it.
const BLOCK_SPARE: usize = 128 * 1024;
/// What the encoding of a field adds to its name and value, at most.
const FIELD_SPARE: usize = 16;
/// Informational heads that wait to be taken.
const MAX_INFORMATIONAL: usize = 16;

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
    pub(super) id: u32,
    target: Target,
    end_stream: bool,
    /// Bytes of its frames, as Envoy counts them: with one header.
    size: usize,
    data: Vec<u8>,
}

impl Block {
    pub(super) fn is_new(&self) -> bool {
        self.target == Target::Request
    }

    /// The stream is gone: the list only keeps the table right.
    pub(super) fn detach(&mut self, key: usize) {
        if self.target == Target::Stream(key) {
            self.target = Target::Nowhere;
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.data.len()
    }
}

impl Connection {
    pub(super) fn headers_frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fail> {
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
        let size = head.length + frame::HEADER_SIZE;
        let block = Block { id: head.stream, target, end_stream: end, size, data: Vec::new() };
        if head.has(flag::END_HEADERS) {
            return self.block(&block, fragment);
        }
        self.headers = Some(Block { data: fragment.to_vec(), ..block });
        Ok(())
    }

    /// A request that had begun when the connection ended is one that was refused.
    fn begun(&mut self, target: Target) {
        if target == Target::Request {
            self.headers = Some(Block { id: 0, target, end_stream: false, size: 0, data: Vec::new() });
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
        if id.is_multiple_of(2) {
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

    pub(super) fn continuation(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fail> {
        let Some(mut block) = self.headers.take() else {
            return Err(Fail::GoAway(ErrorCode::PROTOCOL_ERROR, "CONTINUATION: unexpected"));
        };
        if let Err(flood) = self.constraints.payload(payload.is_empty()) {
            self.headers = Some(block);
            return Err(flood.into());
        }
        block.size += payload.len();
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
        let config = Rc::clone(&self.config);
        let mut reader = HeadReader::new(kind, rules(&config));
        let decoded = self
            .decoder
            .decode(data, |field, size| if nowhere { ControlFlow::Break(()) } else { reader.field(field, size) });
        match (block.target, key) {
            _ if decoded.is_err() => {
                self.begun(block.target);
                Err(Fail::GoAway(ErrorCode::COMPRESSION_ERROR, ""))
            }
            (Target::Request, _) => {
                let head = reader.request(block.end_stream);
                self.request(block, head)
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

    fn request(&mut self, block: &Block, head: Result<RequestHead, Refusal>) -> Result<(), Fail> {
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
        stream.head_received(block.size);
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

    fn response(&mut self, block: &Block, key: usize, mut headers: Headers, length: Option<u64>) -> Result<(), Fail> {
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
                headers.push(names::CONNECTION, HeaderValue::from_static("upgrade"));
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
        } else if stream.informational.len() >= MAX_INFORMATIONAL {
            return self.refuse(Some(key), block.id, Refusal { error: message::errors::messaging(), malformed: true });
        }
        if status >= 200 {
            stream.head = Some(headers);
        } else {
            stream.informational.push_back(headers);
        }
        stream.head_received(block.size);
        stream.wake();
        self.settle(key);
        Ok(())
    }

    fn trailers(&mut self, block: &Block, key: usize, trailers: Result<Headers, Refusal>) -> Result<(), Fail> {
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
        stream.head_received(block.size);
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
}

/// What is accepted of the peer.
fn rules(config: &Config) -> Rules<'_> {
    Rules {
        limits: config.limits,
        underscores: config.underscores,
        extended_connect: config.options.allow_connect,
        disallow_obs_text: config.options.disallow_obs_text,
        stats: &config.stats,
    }
}
