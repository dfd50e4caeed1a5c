//! The byte stream under a connection: a socket, a TLS session over one, or memory in tests.
//!
//! An enum instead of a trait object, so that reads and writes are direct calls. Bytes that listener filters have read
//! already are served first. Idle timeouts, buffering and protocols are the users' work.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{client, server};

use crate::meter::ByteMeter;

/// A connection's byte stream.
pub struct Io {
    stream: Stream,
    meter: Rc<ByteMeter>,
    /// Decrypted bytes that were put back; without TLS they are in the socket's prefix.
    ahead: Bytes,
}

enum Stream {
    Plain(Plain),
    TlsServer(Box<server::TlsStream<Plain>>),
    TlsClient(Box<client::TlsStream<Plain>>),
}

/// A socket without TLS, with the bytes that were read from it ahead of its user.
pub struct Plain {
    prefix: Bytes,
    socket: Socket,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Memory(DuplexStream),
}

impl Plain {
    /// Local and remote IP, as far as there are any.
    pub(crate) fn ips(&self) -> (Option<IpAddr>, Option<IpAddr>) {
        match &self.socket {
            Socket::Tcp(stream) => {
                (stream.local_addr().ok().map(|at| at.ip()), stream.peer_addr().ok().map(|at| at.ip()))
            }
            Socket::Unix(_) | Socket::Memory(_) => (None, None),
        }
    }

    /// A TCP socket.
    pub fn tcp(stream: TcpStream) -> Self {
        Self { prefix: Bytes::new(), socket: Socket::Tcp(stream) }
    }

    /// A Unix socket.
    pub fn unix(stream: UnixStream) -> Self {
        Self { prefix: Bytes::new(), socket: Socket::Unix(stream) }
    }

    /// One end of a pipe in memory, for tests and internal listeners.
    pub fn memory(stream: DuplexStream) -> Self {
        Self { prefix: Bytes::new(), socket: Socket::Memory(stream) }
    }

    /// Puts back bytes that were read already; they come before what the socket still has.
    pub fn unread(&mut self, bytes: Bytes) {
        self.prefix = if self.prefix.is_empty() {
            bytes
        } else if bytes.is_empty() {
            return;
        } else {
            [&*bytes, &*self.prefix].concat().into()
        };
    }

    /// Bytes put back and not read again yet.
    pub fn prefix(&self) -> &Bytes {
        &self.prefix
    }

    /// The TCP socket, if it is one.
    #[inline]
    pub fn tcp_stream(&self) -> Option<&TcpStream> {
        match &self.socket {
            Socket::Tcp(stream) => Some(stream),
            _ => None,
        }
    }

    fn with_socket<R>(&self, run: impl FnOnce(socket2::SockRef<'_>) -> io::Result<R>) -> Option<io::Result<R>> {
        match &self.socket {
            Socket::Tcp(stream) => Some(run(socket2::SockRef::from(stream))),
            Socket::Unix(stream) => Some(run(socket2::SockRef::from(stream))),
            Socket::Memory(_) => None,
        }
    }

    /// Makes the close that follows a reset (RST) instead of an orderly end.
    pub fn reset_on_close(&self) {
        if matches!(self.socket, Socket::Tcp(_)) {
            // A failure leaves an orderly close, which is the worst that can happen.
            let _ = self.with_socket(|socket| socket.set_linger(Some(Duration::ZERO)));
        }
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            return Poll::Ready(Ok(()));
        }
        match &self.socket {
            Socket::Tcp(stream) => stream.poll_read_ready(cx),
            Socket::Unix(stream) => stream.poll_read_ready(cx),
            Socket::Memory(_) => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncRead for Plain {
    #[inline]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let count = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(count));
            if self.prefix.is_empty() {
                // Frees the buffer that it was part of.
                self.prefix = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Memory(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Plain {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Memory(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Socket::Memory(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        !matches!(self.socket, Socket::Memory(_))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Memory(stream) => Pin::new(stream).poll_flush(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = match &mut self.socket {
            Socket::Tcp(stream) => ready!(Pin::new(stream).poll_shutdown(cx)),
            Socket::Unix(stream) => ready!(Pin::new(stream).poll_shutdown(cx)),
            Socket::Memory(stream) => ready!(Pin::new(stream).poll_shutdown(cx)),
        };
        Poll::Ready(match result {
            // The peer is gone already: there is nothing left to shut down.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            other => other,
        })
    }
}

/// Waits until a session has decrypted bytes, or its end, or until bytes for it have come.
fn poll_decrypted<D>(
    socket: &mut Plain,
    session: &mut rustls::ConnectionCommon<D>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    match session.process_new_packets() {
        Ok(state) if state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed() => socket.poll_read_ready(cx),
        _ => Poll::Ready(Ok(())),
    }
}

impl Io {
    /// A socket without TLS.
    pub fn plain(plain: Plain) -> Self {
        Self { stream: Stream::Plain(plain), meter: Rc::default(), ahead: Bytes::new() }
    }

    /// A TCP socket.
    pub fn tcp(stream: TcpStream) -> Self {
        Self::plain(Plain::tcp(stream))
    }

    /// A Unix socket.
    pub fn unix(stream: UnixStream) -> Self {
        Self::plain(Plain::unix(stream))
    }

    /// One end of a pipe in memory.
    pub fn memory(stream: DuplexStream) -> Self {
        Self::plain(Plain::memory(stream))
    }

    /// A TLS session in which this process is the server.
    pub fn tls_server(stream: server::TlsStream<Plain>) -> Self {
        Self { stream: Stream::TlsServer(Box::new(stream)), meter: Rc::default(), ahead: Bytes::new() }
    }

    /// A TLS session in which this process is the client.
    pub fn tls_client(stream: client::TlsStream<Plain>) -> Self {
        Self { stream: Stream::TlsClient(Box::new(stream)), meter: Rc::default(), ahead: Bytes::new() }
    }

    /// Counters of the bytes that pass; shared with [`ConnectionInfo`](crate::connection::ConnectionInfo).
    pub fn meter(&self) -> &Rc<ByteMeter> {
        &self.meter
    }

    /// Counts into `meter` from now on.
    pub fn set_meter(&mut self, meter: Rc<ByteMeter>) {
        self.meter = meter;
    }

    /// Whether a TLS session is between the socket and the user.
    pub fn is_tls(&self) -> bool {
        !matches!(self.stream, Stream::Plain(_))
    }

    #[inline]
    fn socket(&self) -> &Plain {
        match &self.stream {
            Stream::Plain(plain) => plain,
            Stream::TlsServer(tls) => tls.get_ref().0,
            Stream::TlsClient(tls) => tls.get_ref().0,
        }
    }

    /// The TCP socket when nothing is between it and the user (no TLS); what `splice(2)` needs. Bytes may be waiting in
    /// [`prefix`](Self::prefix).
    #[inline]
    pub fn tcp_stream(&self) -> Option<&TcpStream> {
        match &self.stream {
            Stream::Plain(plain) => plain.tcp_stream(),
            _ => None,
        }
    }

    /// Puts back bytes that were read from this stream; they are read again first.
    pub fn unread(&mut self, bytes: Bytes) {
        self.meter.unread(bytes.len());
        match &mut self.stream {
            Stream::Plain(plain) => plain.unread(bytes),
            _ => self.ahead = if self.ahead.is_empty() { bytes } else { [&*bytes, &*self.ahead].concat().into() },
        }
    }

    /// Takes the bytes put back and not read again; empty under TLS.
    pub fn take_prefix(&mut self) -> Bytes {
        match &mut self.stream {
            Stream::Plain(plain) => {
                let prefix = std::mem::take(&mut plain.prefix);
                self.meter.add_received(prefix.len());
                prefix
            }
            _ => Bytes::new(),
        }
    }

    /// Bytes put back and not read again; empty under TLS.
    pub fn prefix(&self) -> &[u8] {
        match &self.stream {
            Stream::Plain(plain) => &plain.prefix,
            _ => &[],
        }
    }

    /// Makes the drop that follows a reset (RST) instead of an orderly end.
    pub fn reset_on_close(&self) {
        self.socket().reset_on_close();
    }

    /// Closes at once with a reset (RST).
    pub fn abort(self) {
        self.reset_on_close();
    }

    /// SO_LINGER; `None` closes in the background.
    ///
    /// # Errors
    /// What the system says; streams in memory always succeed.
    pub fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        self.socket().with_socket(|socket| socket.set_linger(linger)).unwrap_or(Ok(()))
    }

    /// Ends the writing side; the reading side stays open. Under TLS a close_notify goes first.
    ///
    /// # Errors
    /// What the flush or the shutdown meets.
    pub async fn shutdown_write(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_shutdown(cx)).await
    }

    /// Waits until a read may make progress, without reading. Under TLS, decrypted bytes count.
    pub fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(plain) => plain.poll_read_ready(cx),
            Stream::TlsServer(tls) => {
                let (socket, session) = tls.get_mut();
                poll_decrypted(socket, session, cx)
            }
            Stream::TlsClient(tls) => {
                let (socket, session) = tls.get_mut();
                poll_decrypted(socket, session, cx)
            }
        }
    }

    /// Smoothed round-trip time as the kernel sees it; none for other sockets than TCP.
    pub fn round_trip_time(&self) -> Option<Duration> {
        self.socket().tcp_stream().and_then(crate::sys::round_trip_time)
    }
}

macro_rules! each {
    ($self:expr, $stream:ident => $call:expr) => {
        match &mut $self.stream {
            Stream::Plain($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Stream::TlsServer($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $call
            }
            Stream::TlsClient($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $call
            }
        }
    };
}

impl AsyncRead for Io {
    #[inline]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(count));
            self.meter.add_received(count);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let result = ready!(each!(self, stream => stream.poll_read(cx, buf)));
        self.meter.add_received(buf.filled().len() - before);
        Poll::Ready(match result {
            // A peer that closes the socket without close_notify: Envoy takes it as the end of the stream.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && self.is_tls() => Ok(()),
            other => other,
        })
    }
}

impl AsyncWrite for Io {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(each!(self, stream => stream.poll_write(cx, buf)))?;
        self.meter.add_sent(count);
        Poll::Ready(Ok(count))
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(each!(self, stream => stream.poll_write_vectored(cx, bufs)))?;
        self.meter.add_sent(count);
        Poll::Ready(Ok(count))
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(plain) => plain.is_write_vectored(),
            Stream::TlsServer(tls) => tls.is_write_vectored(),
            Stream::TlsClient(tls) => tls.is_write_vectored(),
        }
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_shutdown(cx))
    }
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match (&self.stream, &self.socket().socket) {
            (Stream::TlsServer(_), _) => "TlsServer",
            (Stream::TlsClient(_), _) => "TlsClient",
            (_, Socket::Tcp(_)) => "Tcp",
            (_, Socket::Unix(_)) => "Unix",
            (_, Socket::Memory(_)) => "Memory",
        };
        f.debug_tuple("Io").field(&kind).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn bytes_put_back_come_first_and_are_counted() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut plain = Plain::memory(near);
        plain.unread(Bytes::from_static(b"world "));
        plain.unread(Bytes::from_static(b"hello "));
        let mut io = Io::plain(plain);
        far.write_all(b"again").await.expect("room for it");
        drop(far);
        let mut text = String::new();
        io.read_to_string(&mut text).await.expect("text");
        assert_eq!(text, "hello world again");
        assert_eq!(io.meter().received.get(), 17);
    }

    #[tokio::test]
    async fn an_abort_is_seen_as_a_reset() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
        let (mut far, _) = listener.accept().await.expect("accepts");
        Io::tcp(near).abort();
        let error = far.read(&mut [0; 8]).await.expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn half_close_keeps_the_reading_side() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
        let (mut far, _) = listener.accept().await.expect("accepts");
        let mut io = Io::tcp(near);
        io.write_all(b"ping").await.expect("sent");
        io.shutdown_write().await.expect("half closed");
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.expect("reads to the end");
        assert_eq!(got, b"ping");
        far.write_all(b"pong").await.expect("sent");
        drop(far);
        got.clear();
        io.read_to_end(&mut got).await.expect("reads to the end");
        assert_eq!(got, b"pong");
        assert_eq!(io.meter().sent.get(), 4);
    }
}
