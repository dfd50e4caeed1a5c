//! The upstream end of HTTP/2 connections.
//!
//! [`H2Client::new`] gives a sender and a connection. The connection is a future to be spawned on the worker: it reads,
//! writes and pings until the end. [`H2Sender`] is cheap to clone and opens streams. Called by the connection pool,
//! which keeps to [`H2Sender::max_streams`], and by the router.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use nuncio_net::connection::ByteMeter;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Config;
use super::driver::{Driver, Progress, Shared};
use super::frame::ErrorCode;
use super::handle::Handle;
use super::machine::{End, Role};
use crate::codec::{BytesMeter, ClientStream, Frame, Protocol, ResetReason, Stream, StreamError};
use crate::headers::Headers;

/// An HTTP/2 client connection: a future that ends with the connection.
pub struct H2Client<I> {
    driver: Driver<I>,
}

impl<I: AsyncRead + AsyncWrite + Unpin> H2Client<I> {
    /// Queues the preface. The connection must be polled from then on for anything to happen.
    pub fn new(io: I, config: Rc<Config>) -> (H2Sender, H2Client<I>) {
        let driver = Driver::new(io, Role::Client, config);
        let sender = H2Sender { connection: Rc::clone(driver.connection()) };
        (sender, H2Client { driver })
    }

    /// Tells `meter` what waits for the socket.
    pub fn count_waiting(&mut self, meter: Rc<ByteMeter>) {
        self.driver.count_waiting(meter);
    }

    /// Number of streams that are held or still being sent.
    pub fn active_streams(&self) -> usize {
        self.driver.connection().borrow().active_streams()
    }
}

impl<I> std::fmt::Debug for H2Client<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("H2Client").finish_non_exhaustive()
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Future for H2Client<I> {
    /// Ok when it ended in good order.
    type Output = Result<(), StreamError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if this.driver.poll(cx) == Progress::Idle {
            return Poll::Pending;
        }
        Poll::Ready(match this.driver.connection().borrow().end() {
            None | Some(End::Closed | End::Graceful) => Ok(()),
            Some(End::Silent | End::TooManyResets) => Err(StreamError::new(ResetReason::ConnectionTermination)),
            Some(End::Protocol(error)) => Err(error.clone()),
            Some(End::Flood(flood)) => Err(StreamError::protocol(flood.details(), 0)),
        })
    }
}

impl<I> Drop for H2Client<I> {
    fn drop(&mut self) {
        self.driver.close();
    }
}

/// Opens streams on a connection.
#[derive(Clone)]
pub struct H2Sender {
    connection: Shared,
}

impl std::fmt::Debug for H2Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("H2Sender").field("usable", &self.is_usable()).finish_non_exhaustive()
    }
}

impl H2Sender {
    /// Streams that the server takes at a time.
    pub fn max_streams(&self) -> usize {
        self.connection.borrow().max_streams()
    }

    /// False once the server said GOAWAY or the connection has ended: no new streams.
    pub fn is_usable(&self) -> bool {
        self.connection.borrow().is_usable()
    }

    /// True when the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.connection.borrow().end().is_some()
    }

    /// True once the server said GOAWAY.
    pub fn goaway_received(&self) -> bool {
        self.connection.borrow().goaway_received()
    }

    /// Number of streams that are held or still being sent on this connection.
    pub fn active_streams(&self) -> usize {
        self.connection.borrow().active_streams()
    }

    /// True when the server takes extended CONNECT (RFC 8441).
    pub fn takes_extended_connect(&self) -> bool {
        self.connection.borrow().takes_extended_connect()
    }

    /// A stream whose request is sent by [`ClientStream::send_headers`].
    pub fn stream(&self) -> H2ClientStream {
        H2ClientStream { connection: Rc::clone(&self.connection), handle: None, error: None }
    }

    /// Opens a stream with a request.
    ///
    /// # Errors
    /// When the request cannot be sent.
    pub fn new_stream(&self, headers: &Headers, end_stream: bool) -> Result<H2ClientStream, StreamError> {
        let mut stream = self.stream();
        stream.send_headers(headers, end_stream)?;
        Ok(stream)
    }
}

/// The client's end of a stream. Dropping it before the response is complete cancels the stream.
pub struct H2ClientStream {
    connection: Shared,
    /// None before the request is sent.
    handle: Option<Handle>,
    /// What ended it before that.
    error: Option<StreamError>,
}

impl std::fmt::Debug for H2ClientStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("H2ClientStream").field("sent", &self.handle.is_some()).finish_non_exhaustive()
    }
}

impl H2ClientStream {
    /// True when the request has been queued to its end.
    pub fn request_complete(&self) -> bool {
        self.handle.as_ref().is_some_and(|h| h.sides_done().1)
    }

    /// True when the response has come to its end.
    pub fn response_complete(&self) -> bool {
        self.handle.as_ref().is_some_and(|h| h.sides_done().0)
    }

    /// What ended the stream early.
    pub fn error(&self) -> Option<StreamError> {
        match &self.handle {
            Some(handle) => handle.error(),
            None => self.error.clone(),
        }
    }

    fn sent(&mut self) -> Result<&mut Handle, StreamError> {
        match &mut self.handle {
            Some(handle) => Ok(handle),
            None => Err(self.error.get_or_insert(StreamError::new(ResetReason::LocalReset)).clone()),
        }
    }
}

impl Stream for H2ClientStream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, StreamError>> {
        self.sent()?.poll_frame(cx)
    }

    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.sent()?.poll_capacity(cx)
    }

    fn send_data(&mut self, data: Bytes, end_stream: bool) -> Result<(), StreamError> {
        self.sent()?.send_data(data, end_stream);
        Ok(())
    }

    fn send_trailers(&mut self, trailers: &Headers) -> Result<(), StreamError> {
        self.sent()?.send_trailers(trailers);
        Ok(())
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        // The connection writes for all of its streams.
        Poll::Ready(self.error().map_or(Ok(()), Err))
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        match self.sent() {
            Ok(handle) => handle.poll_reset(cx),
            Err(error) => Poll::Ready(error),
        }
    }

    fn reset(&mut self, reason: ResetReason) {
        // What the proxy no longer wants is cancelled, whatever the reason is on its other side.
        let code = if reason == ResetReason::ProtocolError { ErrorCode::PROTOCOL_ERROR } else { ErrorCode::CANCEL };
        match &mut self.handle {
            Some(handle) => handle.reset(reason, code),
            None => {
                self.error.get_or_insert(StreamError::new(reason));
            }
        }
    }

    fn protocol(&self) -> Protocol {
        Protocol::Http2
    }

    fn bytes_meter(&self) -> BytesMeter {
        self.handle.as_ref().map_or_else(BytesMeter::default, Handle::meter)
    }
}

impl ClientStream for H2ClientStream {
    fn send_headers(&mut self, headers: &Headers, end_stream: bool) -> Result<(), StreamError> {
        let reason = match self.handle {
            Some(_) => ResetReason::LocalReset,
            None => {
                let mut connection = self.connection.borrow_mut();
                if let Some(key) = connection.send_request(headers, end_stream) {
                    drop(connection);
                    self.handle = Some(Handle { connection: Rc::clone(&self.connection), key });
                    return Ok(());
                }
                match connection.end() {
                    // It ended between the pool's choice and this: nothing was sent.
                    Some(_) => ResetReason::ConnectionTermination,
                    None if connection.goaway_received() => ResetReason::RemoteRefusedStreamReset,
                    None => ResetReason::LocalReset,
                }
            }
        };
        Err(self.error.get_or_insert(StreamError::new(reason)).clone())
    }

    fn poll_headers(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Headers, bool), StreamError>> {
        let handle = self.sent()?;
        handle.connection.borrow_mut().poll_head(handle.key, cx.waker())
    }
}
