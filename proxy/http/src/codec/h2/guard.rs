//! The frame guard: an adapter between the socket and `h2` that reads the 9-byte frame headers of both directions.
//!
//! `h2` does not show frames, so Envoy's limits on empty, PRIORITY, WINDOW_UPDATE and control frames and the counters
//! that belong to them live here. A violation makes the next read or write fail: the connection ends at once, as in
//! Envoy. [`Tracker`] is the counting alone, without I/O; payloads are never looked at beyond the pad length.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use nuncio_config::hcm::Http2Options;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::codec::stats::Http2Stats;

const PREFACE: usize = 24;
const HEADER: usize = 9;
/// Bytes that are read ahead, to count them, while nothing can be written.
const READ_AHEAD: usize = 64 * 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const PADDED: u8 = 8;

/// A limit that the peer broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flood {
    /// `max_consecutive_inbound_frames_with_empty_payload`
    #[error("Too many consecutive frames with an empty payload")]
    EmptyFrames,
    /// `max_inbound_priority_frames_per_stream`
    #[error("Too many PRIORITY frames")]
    PriorityFrames,
    /// `max_inbound_window_update_frames_per_data_frame_sent`
    #[error("Too many WINDOW_UPDATE frames")]
    WindowUpdateFrames,
    /// `max_outbound_control_frames`
    #[error("Too many control frames in the outbound queue.")]
    OutboundControlFrames,
}

impl Flood {
    /// Envoy's response code details.
    pub fn details(self) -> &'static str {
        match self {
            Flood::EmptyFrames => "http2.inbound_empty_frames_flood",
            Flood::OutboundControlFrames => "http2.outbound_frames_flood",
            Flood::PriorityFrames | Flood::WindowUpdateFrames => "http2.unknown.nghttp2.error",
        }
    }
}

/// The limits, from [`Http2Options`].
#[derive(Debug, Clone, Copy)]
pub struct FrameLimits {
    /// Frames in a row without payload or END_STREAM.
    pub empty: u32,
    /// PRIORITY frames per stream.
    pub priority: u32,
    /// WINDOW_UPDATE frames per DATA frame sent.
    pub window_update: u32,
    /// Unsent PING and SETTINGS acknowledgements.
    pub outbound_control: u32,
}

impl From<&Http2Options> for FrameLimits {
    fn from(o: &Http2Options) -> Self {
        FrameLimits {
            empty: o.max_consecutive_inbound_frames_with_empty_payload,
            priority: o.max_inbound_priority_frames_per_stream,
            window_update: o.max_inbound_window_update_frames_per_data_frame_sent,
            outbound_control: o.max_outbound_control_frames,
        }
    }
}

/// Cuts one direction into frame headers.
#[derive(Debug, Default)]
struct Scanner {
    /// Bytes of the current payload, or of the preface, still to come.
    skip: usize,
    header: [u8; HEADER],
    have: usize,
    /// The current frame waits for its pad length.
    padded: bool,
}

/// A frame header; `empty` is true when the payload without padding is.
#[derive(Debug, Clone, Copy)]
struct FrameHead {
    kind: u8,
    flags: u8,
    stream: u32,
    empty: bool,
}

impl Scanner {
    fn scan(&mut self, mut bytes: &[u8], mut frame: impl FnMut(FrameHead)) {
        while !bytes.is_empty() {
            if self.padded {
                self.padded = false;
                let length = self.length();
                frame(self.head(length == usize::from(bytes[0]) + 1));
            }
            if self.skip > 0 {
                let n = self.skip.min(bytes.len());
                self.skip -= n;
                bytes = &bytes[n..];
                continue;
            }
            let n = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have < HEADER {
                return;
            }
            self.have = 0;
            let length = self.length();
            self.skip = length;
            let [_, _, _, kind, flags, ..] = self.header;
            if matches!(kind, DATA | HEADERS) && flags & PADDED != 0 && length > 0 {
                self.padded = true;
            } else {
                frame(self.head(length == 0));
            }
        }
    }

    fn length(&self) -> usize {
        let [a, b, c, ..] = self.header;
        usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)
    }

    fn head(&self, empty: bool) -> FrameHead {
        let [_, _, _, kind, flags, a, b, c, d] = self.header;
        FrameHead { kind, flags, stream: u32::from_be_bytes([a & 0x7f, b, c, d]), empty }
    }
}

/// Counts the frames of a connection against the limits.
#[derive(Debug)]
pub struct Tracker {
    inbound: Scanner,
    outbound: Scanner,
    limits: FrameLimits,
    server: bool,
    last_stream: u32,
    opened_streams: u64,
    consecutive_empty: u32,
    priority: u64,
    window_updates: u64,
    outbound_data: u64,
    /// Acknowledgements that the peer is owed.
    owed: u64,
    /// A GOAWAY has come in.
    pub goaway_received: bool,
    violation: Option<Flood>,
    /// RST_STREAM frames in and out since the last [`Tracker::take_counts`].
    counts: Counts,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    rx_reset: u64,
    tx_reset: u64,
}

impl Tracker {
    /// A new connection, of which this is the server or the client.
    pub fn new(limits: FrameLimits, server: bool) -> Tracker {
        let preface = |on| Scanner { skip: if on { PREFACE } else { 0 }, ..Scanner::default() };
        Tracker {
            inbound: preface(server),
            outbound: preface(!server),
            limits,
            server,
            last_stream: 0,
            opened_streams: 0,
            consecutive_empty: 0,
            priority: 0,
            window_updates: 0,
            outbound_data: 0,
            owed: 0,
            goaway_received: false,
            violation: None,
            counts: Counts::default(),
        }
    }

    /// Bytes that came in. False once a limit is broken.
    pub fn received(&mut self, bytes: &[u8]) -> Result<(), Flood> {
        let mut scanner = std::mem::take(&mut self.inbound);
        scanner.scan(bytes, |frame| self.inbound_frame(frame));
        self.inbound = scanner;
        self.violation.map_or(Ok(()), Err)
    }

    /// Bytes that went out.
    pub fn sent(&mut self, bytes: &[u8]) {
        let mut scanner = std::mem::take(&mut self.outbound);
        scanner.scan(bytes, |frame| self.outbound_frame(frame));
        self.outbound = scanner;
    }

    /// The first limit that was broken.
    pub fn violation(&self) -> Option<Flood> {
        self.violation
    }

    fn broken(&mut self, flood: Flood) {
        self.violation.get_or_insert(flood);
    }

    fn opened(&mut self, stream: u32) {
        if stream > self.last_stream {
            self.last_stream = stream;
            self.opened_streams += 1;
        }
    }

    fn inbound_frame(&mut self, frame: FrameHead) {
        if frame.kind == HEADERS && self.server {
            self.opened(frame.stream);
        }
        match frame.kind {
            DATA | HEADERS | CONTINUATION => {
                if frame.empty && (frame.kind == CONTINUATION || frame.flags & END_STREAM == 0) {
                    self.consecutive_empty += 1;
                    if self.consecutive_empty > self.limits.empty {
                        self.broken(Flood::EmptyFrames);
                    }
                } else {
                    self.consecutive_empty = 0;
                }
            }
            PRIORITY => {
                self.priority += 1;
                if self.priority > u64::from(self.limits.priority) * (1 + self.opened_streams) {
                    self.broken(Flood::PriorityFrames);
                }
            }
            WINDOW_UPDATE => {
                self.window_updates += 1;
                let per_data = u64::from(self.limits.window_update);
                if self.window_updates > 5 + 2 * (self.opened_streams + per_data * self.outbound_data) {
                    self.broken(Flood::WindowUpdateFrames);
                }
            }
            PING | SETTINGS if frame.flags & ACK == 0 => {
                self.owed += 1;
                if self.owed > u64::from(self.limits.outbound_control) {
                    self.broken(Flood::OutboundControlFrames);
                }
            }
            RST_STREAM => self.counts.rx_reset += 1,
            GOAWAY => self.goaway_received = true,
            _ => {}
        }
    }

    fn outbound_frame(&mut self, frame: FrameHead) {
        match frame.kind {
            DATA => self.outbound_data += 1,
            HEADERS if !self.server => self.opened(frame.stream),
            PING | SETTINGS if frame.flags & ACK != 0 => self.owed = self.owed.saturating_sub(1),
            RST_STREAM => self.counts.tx_reset += 1,
            _ => {}
        }
    }
}

/// What the ends of a connection share with its guard.
#[derive(Debug)]
pub(super) struct Shared {
    tracker: RefCell<Tracker>,
    stats: Http2StatsRef,
    /// The socket failed or ended.
    pub(super) ended: Cell<bool>,
    /// Streams that the proxy holds.
    pub(super) active: Cell<usize>,
}

/// [`Http2Stats`] has no `Debug`.
struct Http2StatsRef(Http2Stats);

impl std::fmt::Debug for Http2StatsRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Http2Stats")
    }
}

impl Shared {
    pub(super) fn new(limits: FrameLimits, server: bool, stats: Http2Stats) -> Rc<Shared> {
        Rc::new(Shared {
            tracker: RefCell::new(Tracker::new(limits, server)),
            stats: Http2StatsRef(stats),
            ended: Cell::new(false),
            active: Cell::new(0),
        })
    }

    pub(super) fn stats(&self) -> &Http2Stats {
        &self.stats.0
    }

    pub(super) fn violation(&self) -> Option<Flood> {
        self.tracker.borrow().violation()
    }

    pub(super) fn is_server(&self) -> bool {
        self.tracker.borrow().server
    }

    pub(super) fn goaway_received(&self) -> bool {
        self.tracker.borrow().goaway_received
    }

    fn count(&self, tracker: &mut Tracker) {
        // Envoy 1.40 never counts `goaway_sent`.
        let Counts { rx_reset, tx_reset } = std::mem::take(&mut tracker.counts);
        for (n, counter) in [(rx_reset, self.stats().rx_reset()), (tx_reset, self.stats().tx_reset())] {
            if n > 0 {
                counter.add(n);
            }
        }
    }

    /// `blocked`: nothing can be written at present.
    fn received(&self, bytes: &[u8], blocked: bool) -> io::Result<()> {
        let mut tracker = self.tracker.borrow_mut();
        let before = tracker.violation();
        let result = tracker.received(bytes);
        self.count(&mut tracker);
        let Err(flood) = result else { return Ok(()) };
        if before.is_none() {
            let stats = self.stats();
            match flood {
                // Counted when the answers pile up because the peer does not read.
                Flood::OutboundControlFrames if !blocked => return Err(io::Error::other(flood)),
                Flood::EmptyFrames => stats.inbound_empty_frames_flood(),
                Flood::PriorityFrames => stats.inbound_priority_frames_flood(),
                Flood::WindowUpdateFrames => stats.inbound_window_update_frames_flood(),
                Flood::OutboundControlFrames => stats.outbound_control_flood(),
            }
            .inc();
        }
        Err(io::Error::other(flood))
    }

    fn sent(&self, bytes: &[u8]) {
        let mut tracker = self.tracker.borrow_mut();
        tracker.sent(bytes);
        self.count(&mut tracker);
    }
}

/// The adapter.
#[derive(Debug)]
pub struct FrameGuard<I> {
    /// Shared with the end of the connection that closes it in good order.
    io: Rc<RefCell<I>>,
    shared: Rc<Shared>,
    /// Read while nothing could be written, and counted already.
    ahead: BytesMut,
    /// The end of `ahead` is the end of the stream.
    eof: bool,
}

impl<I: AsyncRead + AsyncWrite + Unpin> FrameGuard<I> {
    pub(super) fn new(io: Rc<RefCell<I>>, shared: Rc<Shared>) -> FrameGuard<I> {
        FrameGuard { io, shared, ahead: BytesMut::new(), eof: false }
    }

    /// `h2` reads nothing while it cannot write its answers; what the peer sends meanwhile must still be counted, since
    /// a peer that asks and never reads is a flood.
    fn read_ahead(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut space = [0u8; 4096];
        while !self.eof && self.ahead.len() < READ_AHEAD {
            let mut buf = ReadBuf::new(&mut space);
            let read = Pin::new(&mut *self.io.borrow_mut()).poll_read(cx, &mut buf);
            match read {
                Poll::Pending => break,
                Poll::Ready(Err(e)) => return Err(e),
                Poll::Ready(Ok(())) => {
                    self.eof = buf.filled().is_empty();
                    self.ahead.extend_from_slice(buf.filled());
                    self.shared.received(buf.filled(), true)?;
                }
            }
        }
        Ok(())
    }

    fn blocked(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self.read_ahead(cx) {
            Ok(()) => Poll::Pending,
            Err(e) => Poll::Ready(Err(e)),
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for FrameGuard<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            let n = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..n]);
            this.ahead.advance(n);
            if this.ahead.is_empty() {
                this.ahead = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        if this.eof {
            this.shared.ended.set(true);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut *this.io.borrow_mut()).poll_read(cx, buf));
        let new = &buf.filled()[before..];
        if result.is_err() || new.is_empty() {
            this.shared.ended.set(true);
            return Poll::Ready(result);
        }
        Poll::Ready(this.shared.received(new, false))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for FrameGuard<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut *this.io.borrow_mut()).poll_write(cx, buf);
        match written {
            Poll::Ready(Ok(n)) => {
                this.shared.sent(&buf[..n]);
                Poll::Ready(Ok(n))
            }
            Poll::Pending => this.blocked(cx),
            failed => failed,
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut *this.io.borrow_mut()).poll_write_vectored(cx, bufs);
        match written {
            Poll::Ready(Ok(n)) => {
                let mut left = n;
                for slice in bufs {
                    let part = left.min(slice.len());
                    this.shared.sent(&slice[..part]);
                    left -= part;
                    if left == 0 {
                        break;
                    }
                }
                Poll::Ready(Ok(n))
            }
            Poll::Pending => this.blocked(cx),
            failed => failed,
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shared.is_server() {
            // The end of the connection decides when: after an error it lets the peer read first.
            return Pin::new(&mut *self.io.borrow_mut()).poll_flush(cx);
        }
        Pin::new(&mut *self.io.borrow_mut()).poll_shutdown(cx)
    }
}
