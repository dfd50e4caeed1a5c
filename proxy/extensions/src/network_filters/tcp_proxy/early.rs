//! What a client sends before its upstream is connected (`max_early_data_bytes`).
//!
//! Read while hosts are tried, at most so much, and put back in front of what follows when one is connected. No
//! decision about the session is made here.

use bytes::BytesMut;
use nuncio_net::connection::Io;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead as _, ReadBuf};

/// Bytes that one read brings at most.
const READ: usize = 16 * 1024;

/// The first bytes of a client.
pub(super) struct Early {
    /// Nothing is read beyond so much; a first read is always made.
    room: usize,
    data: BytesMut,
    ended: bool,
}

impl Early {
    /// Nothing yet.
    pub(super) fn new(room: u32) -> Early {
        Early { room: room as usize, data: BytesMut::new(), ended: false }
    }

    /// Whether something came.
    pub(super) fn has_data(&self) -> bool {
        !self.data.is_empty()
    }

    /// Reads what is there. Ready when something came, if only the end; pending, and perhaps for ever, otherwise.
    ///
    /// # Errors
    /// The connection broke.
    pub(super) fn poll(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut came = false;
        while !self.ended && self.data.len() < self.room.max(1) {
            let before = self.data.len();
            self.data.resize(before + READ, 0);
            let mut read = ReadBuf::new(&mut self.data[before..]);
            let polled = Pin::new(&mut *io).poll_read(cx, &mut read);
            let count = read.filled().len();
            self.data.truncate(before + count);
            match polled {
                Poll::Ready(Ok(())) => {
                    came = true;
                    self.ended = count == 0;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        if came { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Puts everything back; the end will be read again.
    pub(super) fn put_back(self, io: &mut Io) {
        if !self.data.is_empty() {
            io.unread(self.data.freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn first_bytes_are_read_as_far_as_there_is_room_and_read_again() {
        let (own, mut client) = tokio::io::duplex(64 * 1024);
        let mut io = Io::memory(own);
        client.write_all(&[7; 40_000]).await.expect("sent");
        let mut early = Early::new(20_000);
        poll_fn(|cx| early.poll(&mut io, cx)).await.expect("read");
        // The room is looked at between reads.
        assert_eq!((early.data.len(), early.ended), (2 * READ, false));
        client.shutdown().await.expect("ended");
        early.put_back(&mut io);
        let mut all = Vec::new();
        io.read_to_end(&mut all).await.expect("read");
        assert_eq!(all, [7; 40_000]);
    }

    #[tokio::test]
    async fn without_room_one_read_is_made_and_an_end_is_noticed() {
        let (own, mut client) = tokio::io::duplex(1024);
        let mut io = Io::memory(own);
        let mut early = Early::new(0);
        let waits = poll_fn(|cx| Poll::Ready(early.poll(&mut io, cx).is_pending())).await;
        assert!(waits && !early.has_data());
        client.shutdown().await.expect("ended");
        poll_fn(|cx| early.poll(&mut io, cx)).await.expect("read");
        assert!(early.ended && !early.has_data());
    }
}
