//! An HTTP/2 connection without I/O and without a clock: bytes go in, bytes come out, streams change.
//!
//! `inbound` takes frames apart, `heads` those that carry header blocks, `message` judges header lists, `outbound` makes frames and shares the windows out, `send` is where messages are handed in, `receive` is where bodies are taken,
//! `streams` keeps the streams, `blocks` what waits for slow consumers, `limits` counts frames against Envoy's bounds, `output` queues. The driver feeds and
//! writes it; stream handles work on it directly, as all of them live on one thread. What is an error, and whether it
//! ends a stream or the connection and with which words, follows Envoy with nghttp2; where nghttp2 lets pass what RFC 9113
//! forbids (numbers of streams that go back, frames on closed streams) this is stricter.

mod blocks;
mod heads;
mod inbound;
mod limits;
mod message;
mod outbound;
mod output;
mod receive;
mod send;
mod streams;

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;

use bytes::Buf;
use tokio::time::Instant;

use super::Config;
use super::frame::{self, ErrorCode, flag, kind, setting};
use super::hpack::{Decoder, Encoder};
use super::premature::{PrematureResets, ResetRate};
use crate::codec::StreamError;
use crate::headers::Headers;
use heads::Block;
use inbound::DataFrame;
use limits::Constraints;
use streams::{Stream, Streams};

pub(super) use limits::Flood;
pub(super) use output::{MAX_SLICES, Output};
pub(super) use send::reset_code;

/// The server's own pings, which are no keepalive: after its answer the peer knows of the first GOAWAY.
const SHUTDOWN_PING: [u8; 8] = *b"shutdown";
const KEEPALIVE_PING: [u8; 8] = *b"keepaliv";
/// Refused requests that are remembered between two polls.
const MAX_REJECTED: usize = 128;

/// A request that has arrived.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) key: usize,
    pub(super) headers: Headers,
    pub(super) end_stream: bool,
    pub(super) upgrade: bool,
    pub(super) connect: bool,
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The peer closed, or the socket failed.
    Closed,
    /// All that was asked for is done.
    Graceful,
    /// The peer broke the protocol.
    Protocol(StreamError),
    /// The peer broke a limit on frames.
    Flood(Flood),
    /// Most of the streams were reset before they could be answered.
    TooManyResets,
    /// The peer did not answer a ping.
    Silent,
}

/// How far a server is with its goodbye.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goodbye {
    No,
    /// GOAWAY without a limit and a ping are sent.
    Announced,
    /// The ping was answered, and another is sent. Peers answer pings before they send what their streams have queued, so
    /// that streams which were opened before GOAWAY was read may stand behind the first answer.
    Heard,
    /// GOAWAY with the last stream is sent.
    Said,
}

/// Which end it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Client,
}

/// One connection. See the module's documentation.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) config: Rc<Config>,
    server: bool,
    streams: Streams,
    pub(super) out: Output,
    decoder: Decoder,
    encoder: Encoder,
    /// Where header blocks are written.
    block: Vec<u8>,
    constraints: Constraints,

    /// Bytes of the client's preface that have not come yet.
    preface: usize,
    /// The peer's first SETTINGS have come.
    settled: bool,
    settings_acked: bool,
    /// Bytes of a frame that nobody wants.
    skip: usize,
    data: Option<DataFrame>,
    headers: Option<Block>,

    send_window: i64,
    recv_window: i64,
    consumed: u32,
    peer_window: i64,
    peer_max_streams: Option<u32>,
    peer_connect: bool,
    /// Streams that have something to send and a window to send it.
    ready: VecDeque<usize>,
    pending_bytes: usize,

    /// The highest number that the peer has used.
    last_peer_stream: u32,
    next_stream: u32,
    goodbye: Goodbye,
    goaway_received: bool,
    accepted: VecDeque<Accepted>,
    rejected: Vec<StreamError>,
    resets: PrematureResets,
    reset_rate: ResetRate,
    end: Option<End>,
    /// What the connection is about to end for.
    offence: Option<StreamError>,
    /// Nothing could be written when it was last tried.
    pub(super) blocked: bool,

    driver: Option<Waker>,
    /// The driver is at work, or was woken: it looks at everything before it sleeps.
    busy: bool,
    pub(super) now: Instant,
    /// When bytes came last.
    pub(super) last_received: Instant,
    /// A frame other than the answer to a ping has come since this was cleared.
    pub(super) heard: bool,
    /// The answer to a keepalive ping has come since this was cleared.
    pub(super) pong: bool,
    pub(super) ping_wanted: bool,
    gauges: Gauges,
}

/// What the gauges were told of this connection.
#[derive(Debug, Default)]
struct Gauges {
    pending: usize,
    frames: usize,
    control: usize,
}

impl Connection {
    /// A connection that has not said anything; its SETTINGS are queued.
    pub(super) fn new(role: Role, config: Rc<Config>, now: Instant) -> Connection {
        let server = role == Role::Server;
        let options = &config.options;
        let stats = &config.stats;
        if server { stats.nghttp2_downstream_connections() } else { stats.nghttp2_upstream_connections() }.inc();
        let table = options.hpack_table_size as usize;
        let mut connection = Connection {
            server,
            streams: Streams::default(),
            out: Output::default(),
            // A smaller table is due once the peer knows of it.
            decoder: Decoder::new(table.max(4096)),
            encoder: Encoder::with_max_table_size(table),
            block: Vec::new(),
            constraints: Constraints::new(options.into()),
            preface: if server { frame::PREFACE.len() } else { 0 },
            settled: false,
            settings_acked: false,
            skip: 0,
            data: None,
            headers: None,
            send_window: frame::INITIAL_WINDOW,
            recv_window: i64::from(options.initial_connection_window_size).max(frame::INITIAL_WINDOW),
            consumed: 0,
            peer_window: frame::INITIAL_WINDOW,
            peer_max_streams: None,
            peer_connect: false,
            ready: VecDeque::new(),
            pending_bytes: 0,
            last_peer_stream: 0,
            next_stream: 1,
            goodbye: Goodbye::No,
            goaway_received: false,
            accepted: VecDeque::new(),
            rejected: Vec::new(),
            resets: PrematureResets::default(),
            reset_rate: ResetRate::new(options.stream_reset_burst, options.stream_reset_rate, now),
            end: None,
            offence: None,
            blocked: false,
            driver: None,
            busy: false,
            now,
            last_received: now,
            heard: false,
            pong: false,
            ping_wanted: false,
            gauges: Gauges::default(),
            config,
        };
        if let Some(kb) = connection.config.options.max_header_field_size_kb {
            connection.decoder.set_max_literal(kb as usize * 1024);
        }
        connection.begin();
        connection
    }

    fn begin(&mut self) {
        let options = &self.config.options;
        let mut settings = Vec::with_capacity(30);
        let mut put = |id: u16, value: u32| {
            settings.extend_from_slice(&id.to_be_bytes());
            settings.extend_from_slice(&value.to_be_bytes());
        };
        if !self.server {
            self.out.raw(frame::PREFACE);
            if options.custom_settings.iter().all(|(id, _)| *id != setting::ENABLE_PUSH) {
                put(setting::ENABLE_PUSH, 0);
            }
        }
        // Frames above 16 KiB are not taken, whatever is configured.
        for (id, value) in options.custom_settings.iter().filter(|(id, _)| *id != setting::MAX_FRAME_SIZE) {
            put(*id, *value);
        }
        put(setting::HEADER_TABLE_SIZE, options.hpack_table_size);
        put(setting::ENABLE_CONNECT_PROTOCOL, u32::from(options.allow_connect));
        put(setting::MAX_CONCURRENT_STREAMS, options.max_concurrent_streams);
        put(setting::INITIAL_WINDOW_SIZE, options.initial_stream_window_size);
        self.out.frame(kind::SETTINGS, 0, 0, &settings, false);
        let more = self.recv_window - frame::INITIAL_WINDOW;
        if more > 0 {
            self.out.frame(kind::WINDOW_UPDATE, 0, 0, &(more as u32).to_be_bytes(), false);
        }
    }

    /// The next request that has arrived.
    pub(super) fn accept(&mut self) -> Option<Accepted> {
        self.accepted.pop_front()
    }

    /// Why requests were refused since the last call.
    pub(super) fn take_rejected(&mut self) -> Vec<StreamError> {
        std::mem::take(&mut self.rejected)
    }

    fn reject(&mut self, error: StreamError) {
        if self.rejected.len() < MAX_REJECTED {
            self.rejected.push(error);
        }
    }

    /// Why the connection has ended, if it has.
    pub(super) fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// The peer has shown that it speaks HTTP/2.
    pub(super) fn has_begun(&self) -> bool {
        self.preface == 0 && self.settled
    }

    /// No new streams are wanted by the server.
    pub(super) fn goaway_received(&self) -> bool {
        self.goaway_received
    }

    /// True while there are streams of which frames may come or go.
    pub(super) fn has_streams(&self) -> bool {
        self.streams.open() > 0
    }

    /// Streams that are known, also those that only have a handle.
    pub(super) fn active_streams(&self) -> usize {
        self.streams.len()
    }

    /// Streams that the peer takes at a time.
    pub(super) fn max_streams(&self) -> usize {
        self.peer_max_streams.unwrap_or(self.config.options.max_concurrent_streams) as usize
    }

    /// The server takes extended CONNECT.
    pub(super) fn takes_extended_connect(&self) -> bool {
        self.peer_connect
    }

    /// Whether a client may open one more stream at all.
    pub(super) fn is_usable(&self) -> bool {
        self.end.is_none() && !self.goaway_received && self.next_stream <= 0x7fff_ffff
    }

    /// Server: GOAWAY twice, first to stop new streams, then after two round trips with the last stream's number.
    pub(super) fn graceful_shutdown(&mut self) {
        if self.goodbye != Goodbye::No || self.end.is_some() {
            return;
        }
        self.goodbye = Goodbye::Announced;
        self.goaway(0x7fff_ffff, ErrorCode::NO_ERROR, "");
        self.out.frame(kind::PING, 0, 0, &SHUTDOWN_PING, false);
        self.notify();
    }

    /// Server: the second GOAWAY, with the last stream's number.
    pub(super) fn say_goodbye(&mut self) {
        if self.goodbye == Goodbye::Said || self.end.is_some() {
            return;
        }
        self.goodbye = Goodbye::Said;
        self.goaway(self.last_peer_stream, ErrorCode::NO_ERROR, "");
        self.notify();
    }

    /// Server: the time in which the peer may answer the first GOAWAY is over. Envoy says its second one only now, and
    /// counts it.
    pub(super) fn end_shutdown(&mut self) {
        self.config.stats.goaway_sent().inc();
        self.say_goodbye();
    }

    /// GOAWAY with the last stream, and the end as soon as it is written.
    pub(super) fn abrupt_shutdown(&mut self) {
        if self.end.is_none() {
            self.goodbye = Goodbye::Said;
            self.goaway(self.last_peer_stream, ErrorCode::NO_ERROR, "");
            self.finish(End::Graceful);
        }
    }

    /// A server that has said goodbye ends with its last stream.
    pub(super) fn is_done(&self) -> bool {
        self.goodbye == Goodbye::Said && self.streams.open() == 0 && self.accepted.is_empty()
    }

    fn goaway(&mut self, last: u32, code: ErrorCode, debug: &str) {
        let mut payload = Vec::with_capacity(8 + debug.len());
        payload.extend_from_slice(&last.to_be_bytes());
        payload.extend_from_slice(&code.0.to_be_bytes());
        payload.extend_from_slice(debug.as_bytes());
        self.out.frame(kind::GOAWAY, 0, 0, &payload, false);
    }

    /// Sends a keepalive ping.
    pub(super) fn keepalive_ping(&mut self) {
        self.pong = false;
        self.heard = false;
        self.out.frame(kind::PING, 0, 0, &KEEPALIVE_PING, false);
    }

    /// The connection is over: all streams learn it.
    pub(super) fn finish(&mut self, end: End) {
        if self.end.is_some() {
            return;
        }
        let error = match &end {
            End::Protocol(error) => error.clone(),
            End::Flood(flood) => StreamError::protocol(flood.details(), 0),
            _ => StreamError::new(crate::codec::ResetReason::ConnectionTermination),
        };
        if self.server && self.headers.take().is_some_and(|block| block.is_new()) {
            self.reject(error.clone());
        }
        // What one stream did wrong is not what the others are told.
        let error = match &end {
            End::Protocol(_) => message::connection_error(),
            _ => error,
        };
        let mut gone = Vec::new();
        for (key, stream) in self.streams.iter_mut() {
            if stream.open {
                stream.open = false;
                let complete = if self.server { stream.sent_end } else { stream.recv_end };
                if stream.error.is_none() && !complete {
                    stream.error = Some(error.clone());
                }
            }
            stream.wake();
            if !stream.held {
                gone.push((key, stream.id));
            }
        }
        for (key, id) in gone {
            self.streams.close(id);
            self.forget(key);
        }
        self.end = Some(end);
        self.notify();
    }

    /// Takes a stream out of the table.
    fn forget(&mut self, key: usize) {
        // The next stream may get this key: what is still to come of a frame must not become its.
        if let Some(data) = &mut self.data {
            data.detach(key);
        }
        if let Some(block) = &mut self.headers {
            block.detach(key);
        }
        if let Some(stream) = self.streams.remove(key) {
            self.pending_bytes -= stream.send.len();
            self.config.stats.streams_active().dec();
        }
    }

    fn insert(&mut self, stream: Stream) -> usize {
        self.config.stats.streams_active().inc();
        self.streams.insert(stream)
    }

    /// Wakes the driver, once.
    #[inline]
    fn notify(&mut self) {
        if !self.busy {
            self.busy = true;
            if let Some(driver) = self.driver.take() {
                driver.wake();
            }
        }
    }

    /// The driver looks at everything from now on.
    pub(super) fn driver_begins(&mut self) {
        self.busy = true;
    }

    /// The driver sleeps until it is woken.
    pub(super) fn driver_sleeps(&mut self, waker: &Waker) {
        self.busy = false;
        match &self.driver {
            Some(driver) if driver.will_wake(waker) => {}
            _ => self.driver = Some(waker.clone()),
        }
        self.tell_gauges();
    }

    /// Brings the gauges up to date.
    fn tell_gauges(&mut self) {
        let now = Gauges { pending: self.pending_bytes, frames: self.out.frames(), control: self.out.control_frames() };
        let stats = &self.config.stats;
        let then = &self.gauges;
        if now.pending != then.pending {
            stats.pending_send_bytes().add(now.pending as u64);
            stats.pending_send_bytes().sub(then.pending as u64);
        }
        if now.frames != then.frames {
            stats.outbound_frames_active().add(now.frames as u64);
            stats.outbound_frames_active().sub(then.frames as u64);
        }
        if now.control != then.control {
            stats.outbound_control_frames_active().add(now.control as u64);
            stats.outbound_control_frames_active().sub(then.control as u64);
        }
        self.gauges = now;
    }

    /// Bytes that wait in this connection, for tests of its bounds.
    #[cfg(test)]
    pub(super) fn held_bytes(&mut self) -> usize {
        let streams: usize = self.streams.iter_mut().map(|(_, s)| s.recv.len() + s.send.len()).sum();
        streams + self.out.len() + self.headers.as_ref().map_or(0, Block::len)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.pending_bytes = 0;
        self.out.clear();
        self.tell_gauges();
        for _ in 0..self.streams.len() {
            self.config.stats.streams_active().dec();
        }
    }
}

/// Forgets `n` bytes of the input.
fn advance(buf: &mut bytes::BytesMut, n: usize) {
    buf.advance(n);
}

/// A flag, if a condition holds.
#[inline]
fn end_flag(end: bool) -> u8 {
    if end { flag::END_STREAM } else { 0 }
}
