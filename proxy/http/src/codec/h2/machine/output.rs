//! What a connection has to send: frames in their order, as bytes for one `writev`.
//!
//! Small frames stand in one contiguous buffer from the worker's pool; large payloads are queued as they are. The
//! number of frames that wait is known exactly, since Envoy bounds it. No I/O.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use nuncio_base::buffer_pool;

use crate::codec::gather;
use crate::codec::h2::frame;

/// Up to this size a payload is copied next to its frame header.
const COPY_MAX: usize = 4 * 1024;
/// Slices of one write.
pub(in crate::codec::h2) const MAX_SLICES: usize = 64;

/// The queue.
#[derive(Debug, Default)]
pub(in crate::codec::h2) struct Output {
    /// Finished pieces, before `scratch`.
    queue: VecDeque<Bytes>,
    scratch: BytesMut,
    /// Bytes in both.
    len: usize,
    /// Sizes of the frames that are not wholly written, the lowest bit set for control frames.
    frames: VecDeque<u32>,
    /// Bytes of the first of them that are written already.
    written: usize,
    control: usize,
}

impl Output {
    /// Bytes that wait.
    #[inline]
    pub(in crate::codec::h2) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(in crate::codec::h2) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Frames that wait.
    pub(in crate::codec::h2) fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Frames that wait and that only answer the peer: acknowledgements and resets.
    pub(in crate::codec::h2) fn control_frames(&self) -> usize {
        self.control
    }

    fn scratch(&mut self, size: usize) -> &mut BytesMut {
        if self.scratch.capacity() == 0 {
            self.scratch = buffer_pool::take(size);
        }
        &mut self.scratch
    }

    fn began(&mut self, payload: usize, control: bool) {
        let size = payload + frame::HEADER_SIZE;
        self.frames.push_back((size as u32) << 1 | u32::from(control));
        self.control += usize::from(control);
    }

    /// Bytes that belong to no frame: the client's preface.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.scratch(bytes.len()).put_slice(bytes);
        self.len += bytes.len();
        self.frames.push_back((bytes.len() as u32) << 1);
    }

    /// A whole frame. `control`: it counts against `max_outbound_control_frames`.
    #[inline]
    pub(super) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8], control: bool) {
        self.began(payload.len(), control);
        let scratch = self.scratch(payload.len() + frame::HEADER_SIZE);
        frame::put_head(scratch, payload.len(), kind, flags, stream);
        scratch.put_slice(payload);
        self.len += payload.len() + frame::HEADER_SIZE;
    }

    /// A frame's header; `length` bytes of payload follow by [`Output::payload`].
    pub(super) fn head(&mut self, length: usize, kind: u8, flags: u8, stream: u32) {
        self.began(length, false);
        frame::put_head(self.scratch(length.min(COPY_MAX) + frame::HEADER_SIZE), length, kind, flags, stream);
        self.len += frame::HEADER_SIZE;
    }

    /// Bytes of a frame whose header was written.
    pub(super) fn payload(&mut self, data: Bytes) {
        let n = data.len();
        if n == 0 {
            return;
        }
        self.len += n;
        if n <= COPY_MAX {
            self.scratch.put_slice(&data);
            return;
        }
        if !self.scratch.is_empty() {
            let head = self.scratch.split().freeze();
            self.queue.push_back(head);
        }
        self.queue.push_back(data);
    }

    /// What a write should take next; the number of slices.
    pub(in crate::codec::h2) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        gather(&self.queue, &self.scratch, slices)
    }

    /// Notes that `n` bytes are written.
    pub(in crate::codec::h2) fn advance(&mut self, n: usize) {
        self.len -= n;
        if self.len == 0 {
            self.clear();
            return;
        }
        self.written += n;
        while let Some(&front) = self.frames.front() {
            let size = (front >> 1) as usize;
            if self.written < size {
                break;
            }
            self.written -= size;
            self.control -= (front & 1) as usize;
            self.frames.pop_front();
        }
        let mut left = n;
        while let Some(front) = self.queue.front_mut() {
            if left < front.len() {
                front.advance(left);
                return;
            }
            left -= front.len();
            self.queue.pop_front();
        }
        self.scratch.advance(left);
    }

    /// Forgets everything and gives the buffer back.
    pub(in crate::codec::h2) fn clear(&mut self) {
        self.queue.clear();
        self.frames.clear();
        if self.queue.capacity() > 64 {
            self.queue = VecDeque::new();
        }
        if self.frames.capacity() > 1024 {
            self.frames = VecDeque::new();
        }
        if self.scratch.capacity() > 0 {
            buffer_pool::give(std::mem::take(&mut self.scratch));
        }
        self.len = 0;
        self.written = 0;
        self.control = 0;
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_until_their_last_byte_is_written() {
        let mut out = Output::default();
        out.frame(6, 1, 0, &[0; 8], true);
        out.head(20_000, 0, 0, 1);
        out.payload(Bytes::from(vec![1; 20_000]));
        out.frame(6, 1, 0, &[0; 8], true);
        assert_eq!((out.frames(), out.control_frames(), out.len()), (3, 2, 17 + 20_009 + 17));
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        assert_eq!(out.slices(&mut slices), 3);
        out.advance(16);
        assert_eq!((out.frames(), out.control_frames()), (3, 2));
        out.advance(1);
        assert_eq!((out.frames(), out.control_frames()), (2, 1));
        out.advance(20_009 + 16);
        assert_eq!((out.frames(), out.control_frames()), (1, 1));
        out.advance(1);
        assert_eq!((out.frames(), out.control_frames(), out.is_empty()), (0, 0, true));
    }
}
