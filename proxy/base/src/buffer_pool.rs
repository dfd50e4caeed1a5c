//! Read buffers from a worker's pool, so that idle connections own none.
//!
//! A connection takes a buffer when its socket becomes readable and gives it back when it is empty. The pool is
//! thread-local and bounded.

use std::cell::RefCell;

use bytes::BytesMut;

/// Size of a read buffer.
pub const SMALL: usize = 16 * 1024;
/// Size of a read buffer for streams that fill small ones.
pub const LARGE: usize = 64 * 1024;
/// Buffers of each size that a worker keeps: at most 1 MiB small and 1 MiB large.
const KEEP_SMALL: usize = 64;
const KEEP_LARGE: usize = 16;

#[derive(Default)]
struct Pool {
    small: Vec<BytesMut>,
    large: Vec<BytesMut>,
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { small: Vec::new(), large: Vec::new() }) };
}

/// An empty buffer with room for at least `size` bytes: [`SMALL`], or [`LARGE`] for more than that.
pub fn take(size: usize) -> BytesMut {
    let pooled = POOL.with_borrow_mut(|pool| if size <= SMALL { pool.small.pop() } else { pool.large.pop() });
    match pooled {
        Some(buffer) if buffer.capacity() >= size => buffer,
        _ => BytesMut::with_capacity(if size <= SMALL { SMALL } else { size.max(LARGE) }),
    }
}

/// Gives a buffer back. Its content is discarded. If parts of it are still referenced elsewhere, its memory is not
/// reused but freed with the last part.
pub fn give(mut buffer: BytesMut) {
    buffer.clear();
    if !buffer.try_reclaim(SMALL) {
        return;
    }
    // Only of a large buffer there can be more than a small one left or regained.
    let large = buffer.capacity() > SMALL && buffer.try_reclaim(LARGE);
    POOL.with_borrow_mut(|pool| {
        let (list, keep) = if large { (&mut pool.large, KEEP_LARGE) } else { (&mut pool.small, KEEP_SMALL) };
        if list.len() < keep {
            list.push(buffer);
        }
    });
}

/// How much a connection should read next: grows when reads fill the buffer, shrinks when they stay small.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadSize {
    large: bool,
    /// Reads in a row that a small buffer would have held.
    small_reads: u8,
}

impl ReadSize {
    /// Bytes to ask [`take`] for.
    pub fn bytes(self) -> usize {
        if self.large { LARGE } else { SMALL }
    }

    /// Notes that a read returned `count` bytes.
    pub fn record(&mut self, count: usize) {
        if count >= SMALL {
            *self = Self { large: true, small_reads: 0 };
        } else if self.large {
            self.small_reads += 1;
            if self.small_reads >= 4 {
                *self = Self::default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_was_given_back_is_used_again() {
        let mut buffer = take(100);
        buffer.extend_from_slice(b"hello");
        let start = buffer.as_ptr();
        give(buffer);
        let again = take(100);
        assert_eq!((again.as_ptr(), again.len()), (start, 0));
        assert!(again.capacity() >= SMALL);
    }

    #[test]
    fn a_buffer_whose_parts_live_on_is_not_kept() {
        let mut buffer = take(SMALL);
        buffer.extend_from_slice(b"hello");
        let part = buffer.split_to(5).freeze();
        give(buffer);
        let mut other = take(SMALL);
        other.extend_from_slice(b"WORLD");
        assert_eq!(part, "hello");
    }

    #[test]
    fn the_read_size_follows_the_stream() {
        let mut size = ReadSize::default();
        assert_eq!(size.bytes(), SMALL);
        size.record(SMALL);
        assert_eq!(size.bytes(), LARGE);
        for _ in 0..4 {
            size.record(10);
        }
        assert_eq!(size.bytes(), SMALL);
    }
}
