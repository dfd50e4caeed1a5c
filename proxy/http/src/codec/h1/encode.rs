//! The write side of a connection: formatted heads, chunk framing, and a queue that is written with one `writev`.
//!
//! Small pieces are copied next to the head so that a small message is one contiguous write; large ones are queued as
//! they are. The scratch buffer comes from the worker's pool and goes back when everything is written.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use nuncio_base::buffer_pool;
use nuncio_config::hcm::HeaderKeyFormat;
use nuncio_net::connection::ByteMeter;
use tokio::io::AsyncWrite;

use crate::codec::gather;
use crate::headers::{Headers, Known};

/// Up to this size data is copied: cheaper than another slice to write and a buffer held back.
const COPY_MAX: usize = 8 * 1024;
/// The highest high watermark: more than this at once only costs memory, and the cache.
const HIGH: usize = 256 * 1024;
/// Slices of one `writev`.
const MAX_SLICES: usize = 32;

/// What is to be written.
#[derive(Default)]
pub(in crate::codec) struct Output {
    /// Finished pieces, before `scratch`.
    queue: VecDeque<Bytes>,
    /// Where formatting goes.
    scratch: BytesMut,
    /// Bytes in both.
    pending: usize,
    /// Bytes of `queue` alone.
    queued: usize,
    /// Above the high watermark and not yet below the low one.
    above: bool,
    failed: bool,
    /// Who is told what waits.
    meter: Option<Rc<ByteMeter>>,
}

impl Output {
    /// Tells `meter` from now on what waits for the socket.
    pub(super) fn count_waiting(&mut self, meter: Rc<ByteMeter>) {
        self.meter = Some(meter);
    }

    #[inline]
    fn tell(&self) {
        if let Some(meter) = &self.meter {
            meter.set_waiting(self.pending);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending == 0
    }

    /// Whether more may be queued: the high watermark is `limit`, but at most [`HIGH`], the low one half of it; 0 is no
    /// limit.
    pub(in crate::codec) fn has_capacity(&mut self, limit: usize) -> bool {
        if limit == 0 {
            return true;
        }
        let limit = limit.min(HIGH);
        if self.above {
            self.above = self.pending > limit / 2;
        } else {
            self.above = self.pending > limit;
        }
        !self.above
    }

    /// The buffer to format into, with room for about `size` bytes. Call [`Output::wrote`] afterwards.
    pub(super) fn scratch(&mut self, size: usize) -> &mut BytesMut {
        if self.scratch.capacity() == 0 {
            self.scratch = buffer_pool::take(size);
        }
        &mut self.scratch
    }

    /// Counts what was formatted.
    pub(super) fn wrote(&mut self) {
        self.pending = self.queued + self.scratch.len();
    }

    /// Queues body bytes.
    pub(in crate::codec) fn data(&mut self, data: Bytes) {
        let n = data.len();
        if n == 0 {
            return;
        }
        if n <= COPY_MAX && (self.scratch.is_empty() || self.scratch.capacity() - self.scratch.len() >= n) {
            self.scratch(n).put_slice(&data);
        } else {
            if !self.scratch.is_empty() {
                let head = self.scratch.split().freeze();
                self.queued += head.len();
                self.queue.push_back(head);
            }
            self.queued += n;
            self.queue.push_back(data);
        }
        self.wrote();
    }

    /// Queues body bytes as a chunk.
    pub(super) fn chunk(&mut self, data: Bytes) -> usize {
        if data.is_empty() {
            return 0;
        }
        let size = data.len();
        let scratch = self.scratch(size + 32);
        let before = scratch.len();
        put_hex(scratch, size);
        scratch.put_slice(b"\r\n");
        let framing = scratch.len() - before + 2;
        self.data(data);
        self.scratch(2).put_slice(b"\r\n");
        self.wrote();
        framing
    }

    /// Writes. Ready when nothing is left.
    pub(in crate::codec) fn poll_flush<I: AsyncWrite + Unpin>(
        &mut self,
        io: &mut I,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.failed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.pending == 0 {
            return Poll::Ready(Ok(()));
        }
        while self.pending > 0 {
            let written = if self.queue.is_empty() {
                Pin::new(&mut *io).poll_write(cx, &self.scratch)
            } else if io.is_write_vectored() {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let n = gather(&self.queue, &self.scratch, &mut slices);
                Pin::new(&mut *io).poll_write_vectored(cx, &slices[..n])
            } else {
                Pin::new(&mut *io).poll_write(cx, &self.queue[0])
            };
            match written {
                Poll::Ready(Ok(0)) => return self.fail(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => self.advance(n),
                Poll::Ready(Err(e)) => return self.fail(e),
                Poll::Pending => {
                    self.tell();
                    return Poll::Pending;
                }
            }
        }
        self.tell();
        self.release();
        // TLS sessions may hold records back.
        Pin::new(io).poll_flush(cx)
    }

    fn fail(&mut self, error: io::Error) -> Poll<io::Result<()>> {
        self.failed = true;
        self.clear();
        Poll::Ready(Err(error))
    }

    fn advance(&mut self, mut n: usize) {
        self.pending -= n;
        while let Some(front) = self.queue.front_mut() {
            if n < front.len() {
                front.advance(n);
                self.queued -= n;
                return;
            }
            n -= front.len();
            self.queued -= front.len();
            self.queue.pop_front();
        }
        self.scratch.advance(n);
    }

    /// All that is queued, for tests without a byte stream.
    #[cfg(test)]
    pub(super) fn take_all(&mut self) -> Vec<u8> {
        let mut all: Vec<u8> = self.queue.iter().flatten().copied().collect();
        all.extend_from_slice(&self.scratch);
        self.clear();
        all
    }

    /// Forgets what is queued.
    pub(in crate::codec) fn clear(&mut self) {
        self.queue = VecDeque::new();
        let n = self.scratch.len();
        self.scratch.advance(n);
        self.pending = 0;
        self.queued = 0;
        self.tell();
        self.release();
    }

    fn release(&mut self) {
        if self.scratch.capacity() > 0 {
            buffer_pool::give(std::mem::take(&mut self.scratch));
        }
        if self.queue.capacity() > 64 {
            self.queue = VecDeque::new();
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.release();
    }
}

fn put_hex(out: &mut BytesMut, n: usize) {
    let digits = (usize::BITS - n.leading_zeros()).div_ceil(4).max(1);
    for i in (0..digits).rev() {
        out.put_u8(b"0123456789abcdef"[n >> (4 * i) & 15]);
    }
}

/// Formats the lines of `headers` that are no pseudo-headers and no framing of another hop.
/// `:authority` becomes `host`; `skip_length` leaves out `content-length` where the message may not have it.
pub(super) fn put_headers(out: &mut BytesMut, headers: &Headers, format: HeaderKeyFormat, skip_length: bool) {
    for (name, value) in headers.iter() {
        let text: &[u8] = match name.known() {
            Some(Known::AUTHORITY) => b"host",
            Some(Known::TRANSFER_ENCODING) => continue,
            Some(Known::CONTENT_LENGTH) if skip_length => continue,
            _ if name.is_pseudo() => continue,
            _ => name.as_bytes(),
        };
        // Names that the peer wrote keep its case, whatever this side's format is.
        match headers.original_name(text) {
            Some(original) => put_line(out, original, value.as_bytes(), HeaderKeyFormat::Lower),
            None => put_line(out, text, value.as_bytes(), format),
        }
    }
}

/// Formats one line.
#[inline]
pub(super) fn put_line(out: &mut BytesMut, name: &[u8], value: &[u8], format: HeaderKeyFormat) {
    out.reserve(name.len() + value.len() + 4);
    if format == HeaderKeyFormat::ProperCase {
        put_proper_case(out, name);
    } else {
        out.put_slice(name);
    }
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// `content-type` as `Content-Type`: Envoy's `proper_case_words`, upper case after anything that is no letter or digit.
fn put_proper_case(out: &mut BytesMut, name: &[u8]) {
    let mut upper = true;
    for &b in name {
        out.put_u8(if upper { b.to_ascii_uppercase() } else { b });
        upper = !b.is_ascii_alphanumeric();
    }
}

/// Reason phrases of Envoy; `Unknown` for codes that it does not name.
pub(super) fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Payload Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Entity",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        599 => "Last Unassigned Server Error Code",
        _ => "Unknown",
    }
}
