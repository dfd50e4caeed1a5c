//! The upstream end of HTTP/2 connections.
//!
//! [`H2Client::new`] gives a sender and a connection. The connection is a future to be spawned on the worker: it reads,
//! writes and pings until the end. [`H2Sender`] is cheap to clone and opens streams. Called by the connection pool,
//! which keeps to [`H2Sender::max_streams`], and by the router.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::Reason;
use h2::client::{Connection, ResponseFuture, SendRequest};
use nuncio_config::hcm::{Http2Options, UnderscoresAction};
use tokio::io::{AsyncRead, AsyncWrite};

use super::fields::{self, Rules};
use super::guard::{FrameGuard, FrameLimits, Shared};
use super::keepalive::Keepalive;
use super::server::{REMEMBERED_RESETS, RESET_MEMORY, header_list_size};
use super::stream::{Body, stream_error};
use crate::codec::h1::parse::Limits;
use crate::codec::stats::Http2Stats;
use crate::codec::{BytesMeter, ClientStream, Frame, Protocol, ResetReason, Stream, StreamError};
use crate::headers::{HeaderValue, Headers};

/// What all connections of a cluster share.
#[derive(Clone)]
pub struct ClientConfig {
    /// The options.
    pub options: Http2Options,
    /// Size of a response head.
    pub limits: Limits,
    /// High watermark of what waits to be written, per stream; 0 for `h2`'s own.
    pub buffer_limit: usize,
    /// Counters.
    pub stats: Http2Stats,
}

impl std::fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientConfig").field("options", &self.options).finish_non_exhaustive()
    }
}

/// An HTTP/2 client connection: a future that ends with the connection.
pub struct H2Client<I: AsyncRead + AsyncWrite + Unpin> {
    connection: Connection<FrameGuard<I>, Bytes>,
    keepalive: Option<Keepalive>,
    shared: Rc<Link>,
}

struct Link {
    guard: Rc<Shared>,
    /// Why the connection ended.
    end: RefCell<Option<StreamError>>,
    limits: Limits,
}

impl<I: AsyncRead + AsyncWrite + Unpin> H2Client<I> {
    /// Sends the preface. The connection must be polled from then on for anything to happen.
    ///
    /// # Errors
    /// When the first write fails.
    pub async fn new(io: I, config: &ClientConfig) -> Result<(H2Sender, H2Client<I>), StreamError> {
        let options = &config.options;
        let guard = Shared::new(FrameLimits::from(options), false, config.stats.clone());
        config.stats.nghttp2_upstream_connections().inc();
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(options.initial_stream_window_size)
            .initial_connection_window_size(options.initial_connection_window_size)
            .header_table_size(options.hpack_table_size)
            .max_header_list_size(header_list_size(config.limits))
            // Until the server says otherwise (RFC 9113 6.5.2 sets no limit).
            .initial_max_send_streams(options.max_concurrent_streams as usize)
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            .reset_stream_duration(RESET_MEMORY)
            .enable_push(false);
        if config.buffer_limit > 0 {
            builder.max_send_buffer_size(config.buffer_limit);
        }
        let handshake = builder.handshake(FrameGuard::new(Rc::new(RefCell::new(io)), Rc::clone(&guard))).await;
        let (send, mut connection) = handshake.map_err(|e| stream_error(&e, &guard))?;
        let keepalive = Keepalive::new(options, connection.ping_pong());
        let shared = Rc::new(Link { guard, end: RefCell::new(None), limits: config.limits });
        let sender = H2Sender { send, link: Rc::clone(&shared) };
        Ok((sender, H2Client { connection, keepalive, shared }))
    }

    /// Number of [`H2ClientStream`]s that are held.
    pub fn active_streams(&self) -> usize {
        self.shared.guard.active.get()
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> std::fmt::Debug for H2Client<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("H2Client").field("active_streams", &self.active_streams()).finish_non_exhaustive()
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Future for H2Client<I> {
    /// Ok when it ended in good order.
    type Output = Result<(), StreamError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let result = if this.keepalive.as_mut().is_some_and(|k| k.poll(cx).is_ready()) {
            this.shared.guard.stats().keepalive_timeout().inc();
            Err(StreamError::new(ResetReason::ConnectionTermination))
        } else {
            ready!(Pin::new(&mut this.connection).poll(cx)).map_err(|e| stream_error(&e, &this.shared.guard))
        };
        let end = result.clone().err().unwrap_or(StreamError::new(ResetReason::ConnectionTermination));
        *this.shared.end.borrow_mut() = Some(end);
        Poll::Ready(result)
    }
}

/// Opens streams on a connection.
#[derive(Clone)]
pub struct H2Sender {
    send: SendRequest<Bytes>,
    link: Rc<Link>,
}

impl std::fmt::Debug for H2Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("H2Sender").field("usable", &self.is_usable()).finish_non_exhaustive()
    }
}

impl H2Sender {
    /// Ready when a stream may be opened.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.send.poll_ready(cx).map_err(|e| stream_error(&e, &self.link.guard))
    }

    /// Streams that the server takes at a time.
    pub fn max_streams(&self) -> usize {
        self.send.current_max_send_streams()
    }

    /// False once the server said GOAWAY or the connection has ended: no new streams.
    pub fn is_usable(&self) -> bool {
        !self.is_closed() && !self.goaway_received()
    }

    /// True when the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.link.end.borrow().is_some() || self.link.guard.ended.get()
    }

    /// True once the server said GOAWAY.
    pub fn goaway_received(&self) -> bool {
        self.link.guard.goaway_received()
    }

    /// Number of [`H2ClientStream`]s that are held on this connection.
    pub fn active_streams(&self) -> usize {
        self.link.guard.active.get()
    }

    /// True when the server takes extended CONNECT (RFC 8441).
    pub fn takes_extended_connect(&self) -> bool {
        self.send.is_extended_connect_protocol_enabled()
    }

    /// A stream whose request is sent by [`ClientStream::send_headers`].
    pub fn stream(&self) -> H2ClientStream {
        H2ClientStream {
            send: Some(self.send.clone()),
            response: None,
            body: Body::new(Rc::clone(&self.link.guard), self.link.limits),
            upgrade: None,
        }
    }

    /// Opens a stream and sends its request head.
    ///
    /// # Errors
    /// When the connection has ended or the head cannot be said in HTTP/2.
    pub fn new_stream(&self, headers: &Headers, end_stream: bool) -> Result<H2ClientStream, StreamError> {
        let mut stream = self.stream();
        stream.send_headers(headers, end_stream)?;
        Ok(stream)
    }
}

/// The client's end of a stream. Dropping it before both sides are done cancels the request.
pub struct H2ClientStream {
    send: Option<SendRequest<Bytes>>,
    response: Option<ResponseFuture>,
    body: Body,
    /// Protocol of an extended CONNECT.
    upgrade: Option<HeaderValue>,
}

impl std::fmt::Debug for H2ClientStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("H2ClientStream").field("done", &self.response_complete()).finish_non_exhaustive()
    }
}

impl H2ClientStream {
    /// True when the request has been queued to its end.
    pub fn request_complete(&self) -> bool {
        self.body.send_done
    }

    /// True when the response has been read to its end.
    pub fn response_complete(&self) -> bool {
        self.body.recv_done
    }

    /// What ended the stream early.
    pub fn error(&self) -> Option<&StreamError> {
        self.body.error.as_ref()
    }

    fn decode(&mut self, status: http::StatusCode, map: &http::HeaderMap) -> Result<Headers, StreamError> {
        let upgraded = if status == http::StatusCode::OK { self.upgrade.as_ref() } else { None };
        let rules = Rules {
            limits: self.body.rules().limits,
            underscores: UnderscoresAction::Allow,
            stats: self.body.shared.stats(),
        };
        match fields::decode_response(status, map, &rules, upgraded) {
            Ok(headers) => {
                self.body.head_received(&headers);
                Ok(headers)
            }
            Err(error) => {
                self.body.shared.stats().rx_messaging_error().inc();
                self.body.reset(Reason::PROTOCOL_ERROR);
                Err(self.body.fail(error))
            }
        }
    }
}

impl Stream for H2ClientStream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, StreamError>> {
        self.body.poll_frame(cx)
    }

    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.body.poll_capacity(cx)
    }

    fn send_data(&mut self, data: Bytes, end_stream: bool) -> Result<(), StreamError> {
        self.body.send_data(data, end_stream)
    }

    fn send_trailers(&mut self, trailers: &Headers) -> Result<(), StreamError> {
        self.body.send_trailers(trailers)
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Poll::Ready(self.body.error.clone().map_or(Ok(()), Err))
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.body.poll_reset(cx)
    }

    fn reset(&mut self, reason: ResetReason) {
        if self.body.send_done && self.body.recv_done {
            return;
        }
        // What the proxy no longer wants is cancelled, whatever the reason is on its other side.
        self.body.reset(match reason {
            ResetReason::ProtocolError => Reason::PROTOCOL_ERROR,
            _ => Reason::CANCEL,
        });
        self.body.fail(StreamError::new(reason));
    }

    fn protocol(&self) -> Protocol {
        Protocol::Http2
    }

    fn bytes_meter(&self) -> BytesMeter {
        self.body.meter
    }
}

impl ClientStream for H2ClientStream {
    fn send_headers(&mut self, headers: &Headers, end_stream: bool) -> Result<(), StreamError> {
        let Some(mut send) = self.send.take() else {
            return Err(self.body.fail(StreamError::new(ResetReason::LocalReset)));
        };
        let Some((request, upgrade)) = fields::encode_request(headers) else {
            return Err(self.body.fail(StreamError::new(ResetReason::LocalReset)));
        };
        match send.send_request(request, end_stream) {
            Ok((response, stream)) => {
                self.response = Some(response);
                self.body.send = Some(stream);
                self.body.send_done = end_stream;
                self.body.head_sent(headers);
                self.upgrade = upgrade;
                Ok(())
            }
            Err(e) => Err(self.body.fail_h2(&e)),
        }
    }

    fn poll_headers(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Headers, bool), StreamError>> {
        if let Some(error) = &self.body.error {
            return Poll::Ready(Err(error.clone()));
        }
        let Some(response) = &mut self.response else {
            return Poll::Ready(Err(self.body.fail(StreamError::new(ResetReason::LocalReset))));
        };
        match response.poll_informational(cx) {
            Poll::Ready(Some(Ok(head))) => {
                let (head, ()) = head.into_parts();
                return Poll::Ready(self.decode(head.status, &head.headers).map(|h| (h, false)));
            }
            Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(self.body.fail_h2(&e))),
            Poll::Ready(None) | Poll::Pending => {}
        }
        match ready!(Pin::new(response).poll(cx)) {
            Ok(head) => {
                self.response = None;
                let (head, recv) = head.into_parts();
                let headers = match self.decode(head.status, &head.headers) {
                    Ok(headers) => headers,
                    Err(error) => return Poll::Ready(Err(error)),
                };
                let end = recv.is_end_stream();
                self.body.recv_done = end;
                self.body.recv = Some(recv);
                Poll::Ready(Ok((headers, end)))
            }
            Err(e) => Poll::Ready(Err(self.body.fail_h2(&e))),
        }
    }
}
