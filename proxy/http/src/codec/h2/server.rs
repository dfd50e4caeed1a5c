//! The downstream end of HTTP/2 connections.
//!
//! The connection manager polls [`H2Server::poll_accept`], which drives the whole connection (reads, writes, pings), and
//! works on each [`H2ServerStream`]; both may live in the same task. It owns the timeouts, except for keepalive pings.
//! After [`H2Server::graceful_shutdown`] the connection ends by itself when its streams have, if the peer answers it; what
//! is not answered is ended with [`H2Server::end_shutdown`].

use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use nuncio_net::connection::ByteMeter;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Config;
use super::driver::{Driver, Progress};
use super::handle::Handle;
use super::machine::{Accepted, End, Role, reset_code};
use crate::codec::{BytesMeter, Frame, Protocol, ResetReason, ServerStream, Stream, StreamError};
use crate::headers::{Headers, names};

/// A request that has arrived.
pub struct H2Request {
    /// Pseudo-headers, then headers; cookies joined. An extended CONNECT looks like an HTTP/1 upgrade.
    pub headers: Headers,
    /// There is no body.
    pub end_stream: bool,
    /// `expect: 100-continue`.
    pub expect_continue: bool,
    /// An upgrade (extended CONNECT) or CONNECT.
    pub upgrade: bool,
    /// The stream.
    pub stream: H2ServerStream,
}

impl std::fmt::Debug for H2Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("H2Request").field("headers", &self.headers).finish_non_exhaustive()
    }
}

/// An HTTP/2 server connection.
pub struct H2Server<I> {
    driver: Driver<I>,
    /// Its end was reported.
    closed: bool,
}

impl<I: AsyncRead + AsyncWrite + Unpin> H2Server<I> {
    /// A connection that has not said anything yet. `io` yields the client's preface.
    pub fn new(io: I, config: Rc<Config>) -> H2Server<I> {
        H2Server { driver: Driver::new(io, Role::Server, config), closed: false }
    }

    fn accept(&self) -> Option<H2Request> {
        let connection = self.driver.connection();
        let accepted = connection.borrow_mut().accept()?;
        let Accepted { key, headers, end_stream, upgrade, connect } = accepted;
        let expect_continue =
            !end_stream && headers.bytes(&names::EXPECT).is_some_and(|v| v.eq_ignore_ascii_case(b"100-continue"));
        let handle = Handle { connection: Rc::clone(connection), key };
        Some(H2Request {
            headers,
            end_stream: end_stream && !upgrade && !connect,
            expect_continue,
            upgrade: upgrade || connect,
            stream: H2ServerStream { handle, upgrade },
        })
    }

    /// Drives the connection and waits for the next request. None: the connection has ended in good order.
    ///
    /// # Errors
    /// Why the connection ended: a broken protocol or limit (with Envoy's details) or a peer that does not answer.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<H2Request, StreamError>>> {
        if let Some(request) = self.accept() {
            return Poll::Ready(Some(Ok(request)));
        }
        if self.closed {
            return Poll::Ready(None);
        }
        let progress = self.driver.poll(cx);
        if let Some(request) = self.accept() {
            return Poll::Ready(Some(Ok(request)));
        }
        if progress == Progress::Idle {
            return Poll::Pending;
        }
        self.closed = true;
        Poll::Ready(match self.driver.connection().borrow().end() {
            // A peer that just closes is no error.
            None | Some(End::Closed | End::Graceful) => None,
            Some(End::Silent) => Some(Err(StreamError::new(ResetReason::ConnectionTermination))),
            Some(End::TooManyResets) => Some(Err(StreamError::protocol("too_many_premature_resets", 0))),
            Some(End::Protocol(error)) => Some(Err(error.clone())),
            Some(End::Flood(flood)) => Some(Err(StreamError::protocol(flood.details(), 0))),
        })
    }

    /// Why requests were refused (and their streams reset) since the last call. Envoy logs such requests without a
    /// response code, with the flag `DR` and these details. To be asked whenever `poll_accept` returned.
    pub fn take_rejected(&mut self) -> Vec<StreamError> {
        self.driver.connection().borrow_mut().take_rejected()
    }

    /// After an error: reads and forgets what the peer still sends; ready when the peer has closed too.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.driver.poll_drain(cx)
    }

    /// Says goodbye on the socket, at the very end.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // A peer that is gone needs no goodbye.
        self.driver.poll_shutdown(cx).map(|_| ())
    }

    /// Sends GOAWAY twice: first to stop new streams, after a round trip with the last stream's number; the connection
    /// ends when its streams have.
    pub fn graceful_shutdown(&mut self) {
        self.driver.connection().borrow_mut().graceful_shutdown();
    }

    /// The second GOAWAY of a graceful shutdown, for peers that do not answer the first one.
    pub fn end_shutdown(&mut self) {
        self.driver.connection().borrow_mut().end_shutdown();
    }

    /// Sends GOAWAY without an error and ends all streams.
    pub fn abrupt_shutdown(&mut self) {
        self.driver.connection().borrow_mut().abrupt_shutdown();
    }

    /// True while there are streams.
    pub fn has_streams(&self) -> bool {
        self.driver.connection().borrow().has_streams()
    }

    /// True when the peer has sent anything at all.
    pub fn peer_has_spoken(&self) -> bool {
        self.driver.peer_has_spoken()
    }

    /// False while the peer has not shown that it speaks HTTP/2.
    pub fn has_begun(&self) -> bool {
        self.driver.connection().borrow().has_begun()
    }

    /// True when the peer broke a limit on frames.
    pub fn is_flooded(&self) -> bool {
        matches!(self.driver.connection().borrow().end(), Some(End::Flood(_)))
    }

    /// True when the peer reset most of what it asked for, before it could be answered.
    pub fn has_too_many_resets(&self) -> bool {
        matches!(self.driver.connection().borrow().end(), Some(End::TooManyResets))
    }

    /// Tells `meter` what waits for the socket.
    pub fn count_waiting(&mut self, meter: Rc<ByteMeter>) {
        self.driver.count_waiting(meter);
    }

    /// Number of streams that are held or still being sent.
    pub fn active_streams(&self) -> usize {
        self.driver.connection().borrow().active_streams()
    }

    /// True when the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.closed
    }
}

impl<I> Drop for H2Server<I> {
    fn drop(&mut self) {
        self.driver.close();
    }
}

/// The server's end of a stream. Dropping it before both sides are done resets the stream.
pub struct H2ServerStream {
    handle: Handle,
    /// An extended CONNECT: 101 goes out as 200.
    upgrade: bool,
}

impl std::fmt::Debug for H2ServerStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("H2ServerStream").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl H2ServerStream {
    /// Its number.
    pub fn id(&self) -> u32 {
        self.handle.connection.borrow().id(self.handle.key)
    }

    /// True when the whole request has come.
    pub fn request_complete(&self) -> bool {
        self.handle.sides_done().0
    }

    /// True when the peer reset the stream before the response was complete.
    pub fn reset_by_peer(&self) -> bool {
        self.handle.connection.borrow().was_reset_by_peer(self.handle.key)
    }

    /// True when the end of the response is queued or sent.
    pub fn response_complete(&self) -> bool {
        self.handle.sides_done().1
    }
}

impl Stream for H2ServerStream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, StreamError>> {
        self.handle.poll_frame(cx)
    }

    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.handle.poll_capacity(cx)
    }

    fn send_data(&mut self, data: Bytes, end_stream: bool) -> Result<(), StreamError> {
        self.handle.send_data(data, end_stream);
        Ok(())
    }

    fn send_trailers(&mut self, trailers: &Headers) -> Result<(), StreamError> {
        self.handle.send_trailers(trailers);
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.handle.poll_flush(cx)
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.handle.poll_reset(cx)
    }

    fn reset(&mut self, reason: ResetReason) {
        self.handle.reset(reason, reset_code(reason));
    }

    fn protocol(&self) -> Protocol {
        Protocol::Http2
    }

    fn bytes_meter(&self) -> BytesMeter {
        self.handle.meter()
    }
}

impl ServerStream for H2ServerStream {
    fn send_informational(&mut self, headers: &Headers) -> Result<(), StreamError> {
        self.handle.connection.borrow_mut().send_response(self.handle.key, headers, false, false);
        Ok(())
    }

    fn send_headers(&mut self, headers: &Headers, end_stream: bool) -> Result<(), StreamError> {
        // What a peer that has left is not told, it does not miss: whoever sends learns of it when it looks.
        self.handle.connection.borrow_mut().send_response(self.handle.key, headers, end_stream, self.upgrade);
        Ok(())
    }

    fn close_after(&mut self) {}
}
