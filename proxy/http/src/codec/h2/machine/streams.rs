//! The streams of a connection: their state, in one table that is reused, and the numbers by which frames name them.

use std::collections::VecDeque;
use std::task::Waker;

use bytes::{Bytes, BytesMut};
use rustc_hash::FxHashMap;
use slab::Slab;
use tokio::time::Instant;

use super::blocks::{BLOCK, Block};
use crate::codec::{BytesMeter, StreamError};
use crate::headers::{HeaderValue, Headers};

/// From this size on a payload is kept as a piece of the read buffer, while the consumer keeps up.
const SLICE_MIN: usize = 4 * 1024;
/// Bytes of a queue from which on its consumer is slow: then all is copied into blocks that are filled to their last byte,
/// so that no read buffer is held back.
const SLOW: usize = 256 * 1024;
/// Places for streams that an idle connection keeps.
const KEEP: usize = 128;
/// Streams that this side reset, whose late frames are still recognised.
const REMEMBERED_RESETS: usize = 256;

/// Body bytes in order.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    queue: VecDeque<Bytes>,
    /// After the queue: what was copied, while the consumer keeps up.
    tail: BytesMut,
    /// After that: the same of a slow consumer.
    block: Option<Block>,
    len: usize,
}

impl Chunks {
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes `n` bytes off the front of a read buffer.
    pub(super) fn read(&mut self, buf: &mut BytesMut, n: usize) {
        self.len += n;
        if n >= SLICE_MIN && self.len < SLOW {
            self.close_tail();
            self.queue.push_back(buf.split_to(n).freeze());
            return;
        }
        let mut left = n;
        while left > 0 {
            let part = self.append(&buf[..left]);
            bytes::Buf::advance(buf, part);
            left -= part;
        }
    }

    /// Copies some of `data`, which is not empty, to the end; how much that is.
    fn append(&mut self, data: &[u8]) -> usize {
        if self.block.is_none()
            && self.len > SLOW
            && let Some(block) = Block::take()
        {
            self.close_tail();
            self.block = Some(block);
        }
        if let Some(block) = &mut self.block {
            let n = block.put(data);
            if block.is_full() {
                self.close_tail();
            }
            return n;
        }
        if self.tail.len() >= BLOCK {
            self.close_tail();
        }
        let n = data.len().min(BLOCK - self.tail.len());
        self.tail.extend_from_slice(&data[..n]);
        n
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.queue.push_back(std::mem::take(&mut self.tail).freeze());
        }
        if let Some(block) = self.block.take().filter(|block| !block.is_empty()) {
            self.queue.push_back(block.freeze());
        }
    }

    pub(super) fn push(&mut self, data: Bytes) {
        self.len += data.len();
        self.queue.push_back(data);
    }

    /// The next piece.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let piece = match self.queue.pop_front() {
            Some(piece) => piece,
            None if !self.tail.is_empty() => std::mem::take(&mut self.tail).freeze(),
            None => self.block.take().filter(|block| !block.is_empty())?.freeze(),
        };
        self.len -= piece.len();
        Some(piece)
    }

    /// The next piece, at most `most` bytes of it.
    pub(super) fn pop_some(&mut self, most: usize) -> Option<Bytes> {
        let front = self.queue.front_mut()?;
        let piece = if front.len() > most { front.split_to(most) } else { self.queue.pop_front()? };
        self.len -= piece.len();
        Some(piece)
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.tail = BytesMut::new();
        self.block = None;
        self.len = 0;
    }
}

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    /// 0 while a client's request has not been sent.
    pub(super) id: u32,
    /// The task that works on it.
    pub(super) task: Option<Waker>,
    pub(super) opened: Instant,

    /// A handle exists.
    pub(super) held: bool,
    /// Frames may still come or go.
    pub(super) open: bool,
    /// It waits in the list of those that have something to send.
    pub(super) queued: bool,

    /// The final head has come (client) or gone (server).
    pub(super) answered: bool,
    /// The request is HEAD, or CONNECT: which decides about bodies of responses.
    pub(super) head_request: bool,
    pub(super) connect: bool,
    /// The protocol of an extended CONNECT that this side sent.
    pub(super) upgrade: Option<HeaderValue>,

    /// Response heads that were not taken yet (client).
    pub(super) informational: VecDeque<Headers>,
    pub(super) head: Option<Headers>,
    pub(super) recv: Chunks,
    pub(super) recv_trailers: Option<Headers>,
    /// END_STREAM has come.
    pub(super) recv_end: bool,
    /// What the peer may still send.
    pub(super) recv_window: i64,
    /// Bytes taken by the consumer that the peer was not told of.
    pub(super) consumed: u32,
    /// `content-length` that has not come yet.
    pub(super) expected: Option<u64>,

    pub(super) send: Chunks,
    pub(super) send_trailers: Option<Headers>,
    /// The end is queued.
    pub(super) send_end: bool,
    /// END_STREAM has gone.
    pub(super) sent_end: bool,
    /// Above the high watermark and not yet below the low one.
    pub(super) above: bool,
    pub(super) send_window: i64,
    /// Its task waits for the end to go.
    pub(super) flushing: bool,

    pub(super) error: Option<StreamError>,
    /// The peer reset it.
    pub(super) reset_by_peer: bool,
    pub(super) meter: BytesMeter,
}

impl Stream {
    pub(super) fn new(id: u32, opened: Instant, recv_window: i64, send_window: i64) -> Stream {
        Stream {
            id,
            task: None,
            opened,
            held: false,
            open: true,
            queued: false,
            answered: false,
            head_request: false,
            connect: false,
            upgrade: None,
            informational: VecDeque::new(),
            head: None,
            recv: Chunks::default(),
            recv_trailers: None,
            recv_end: false,
            recv_window,
            consumed: 0,
            expected: None,
            send: Chunks::default(),
            send_trailers: None,
            send_end: false,
            sent_end: false,
            above: false,
            send_window,
            flushing: false,
            error: None,
            reset_by_peer: false,
            meter: BytesMeter::default(),
        }
    }

    /// Wakes the task that works on it.
    #[inline]
    pub(super) fn wake(&mut self) {
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }

    /// Remembers whom to wake.
    #[inline]
    pub(super) fn wait(&mut self, waker: &Waker) {
        match &self.task {
            Some(task) if task.will_wake(waker) => {}
            _ => self.task = Some(waker.clone()),
        }
    }

    /// The end never went, and why is known.
    pub(super) fn wants_flush_error(&self) -> bool {
        !self.sent_end && self.error.is_some()
    }

    /// Counts the frames of a header block.
    pub(super) fn head_received(&mut self, size: usize) {
        self.meter.header_bytes_received += size as u64;
        self.meter.wire_bytes_received += size as u64;
    }

    /// Something waits to be sent.
    pub(super) fn wants_to_send(&self) -> bool {
        !self.send.is_empty() || self.send_trailers.is_some() || (self.send_end && !self.sent_end)
    }
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Streams {
    slab: Slab<Stream>,
    by_id: FxHashMap<u32, usize>,
    resets: VecDeque<u32>,
    /// The highest number that was forgotten of them.
    forgotten: u32,
}

impl Streams {
    pub(super) fn insert(&mut self, stream: Stream) -> usize {
        let id = stream.id;
        let key = self.slab.insert(stream);
        if id != 0 {
            self.by_id.insert(id, key);
        }
        key
    }

    /// Streams of which frames may come or go.
    #[inline]
    pub(super) fn open(&self) -> usize {
        self.by_id.len()
    }

    /// Streams in the table, also those that only have a handle.
    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    #[inline]
    pub(super) fn find(&self, id: u32) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    #[inline]
    pub(super) fn get(&self, key: usize) -> Option<&Stream> {
        self.slab.get(key)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, key: usize) -> Option<&mut Stream> {
        self.slab.get_mut(key)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Stream)> {
        self.slab.iter_mut()
    }

    /// No frame belongs to it any more.
    pub(super) fn close(&mut self, id: u32) {
        self.by_id.remove(&id);
    }

    pub(super) fn remove(&mut self, key: usize) -> Option<Stream> {
        let stream = self.slab.try_remove(key);
        if self.slab.is_empty() && self.slab.capacity() > KEEP {
            // One rush must not be paid for as long as the connection lives.
            self.slab = Slab::new();
            self.by_id = FxHashMap::default();
        }
        stream
    }

    /// Remembers that this side reset a stream.
    pub(super) fn remember_reset(&mut self, id: u32) {
        if self.resets.len() >= REMEMBERED_RESETS
            && let Some(oldest) = self.resets.pop_front()
        {
            self.forgotten = self.forgotten.max(oldest);
        }
        self.resets.push_back(id);
    }

    /// Whether late frames of a closed stream are to be expected, because this side reset it. Where that is no longer
    /// known the peer is given the benefit of the doubt.
    pub(super) fn was_reset(&self, id: u32) -> bool {
        id <= self.forgotten || self.resets.contains(&id)
    }
}
