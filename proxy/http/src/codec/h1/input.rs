//! The read side of a connection: a buffer from the worker's pool that exists only while there is something in it.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use nuncio_base::buffer_pool::{self, ReadSize};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Room that makes a read worth its system call.
const MIN_ROOM: usize = 2048;

/// Bytes read and not consumed yet.
#[derive(Default)]
pub(in crate::codec) struct Input {
    pub(in crate::codec) buf: BytesMut,
    size: ReadSize,
    /// The peer has ended its side.
    pub(in crate::codec) eof: bool,
}

impl Input {
    /// Reads once. Ready with the number of bytes; 0 at the end. While nothing comes, an empty buffer is given back,
    /// unless `hold`: during a message the buffer still carries its head and could not be used again.
    pub(in crate::codec) fn poll_read<I: AsyncRead + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
        hold: bool,
    ) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        self.make_room();
        let before = self.buf.len();
        // The future of `read_buf` keeps no state between polls.
        let read = pin!(Pin::new(io).read_buf(&mut self.buf)).poll(cx);
        match read {
            Poll::Ready(Ok(n)) => {
                if n == 0 {
                    self.eof = true;
                    self.release();
                }
                self.size.record(self.buf.len() - before);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(e)) => {
                self.eof = true;
                self.release();
                Poll::Ready(Err(e))
            }
            Poll::Pending => {
                if !hold {
                    self.release();
                }
                Poll::Pending
            }
        }
    }

    fn make_room(&mut self) {
        let room = self.buf.capacity() - self.buf.len();
        if room >= MIN_ROOM {
            return;
        }
        if self.buf.is_empty() {
            let want = self.size.bytes();
            if self.buf.capacity() == 0 {
                self.buf = buffer_pool::take(want);
            } else if !self.buf.try_reclaim(want) {
                buffer_pool::give(std::mem::replace(&mut self.buf, buffer_pool::take(want)));
            }
            return;
        }
        // A head or a chunk line goes on: the rest must follow in one piece.
        let want = (self.buf.len() + MIN_ROOM).max(self.size.bytes()).max(2 * self.buf.len());
        if !self.buf.try_reclaim(want - self.buf.len()) {
            let mut larger = buffer_pool::take(want);
            larger.extend_from_slice(&self.buf);
            buffer_pool::give(std::mem::replace(&mut self.buf, larger));
        }
    }

    /// Gives the buffer back when it is empty.
    pub(in crate::codec) fn release(&mut self) {
        if self.buf.is_empty() && self.buf.capacity() > 0 {
            buffer_pool::give(std::mem::take(&mut self.buf));
        }
    }

    /// Forgets all bytes.
    pub(in crate::codec) fn discard(&mut self) {
        let n = self.buf.len();
        self.buf.advance(n);
        self.release();
    }

    /// Reads and forgets until the peer ends its side.
    pub(in crate::codec) fn poll_drain<I: AsyncRead + Unpin>(&mut self, io: &mut I, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.discard();
            match ready!(self.poll_read(io, cx, false)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        if self.buf.capacity() > 0 {
            buffer_pool::give(std::mem::take(&mut self.buf));
        }
    }
}
