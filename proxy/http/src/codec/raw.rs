//! The upstream end of a terminated CONNECT: the request's body is what is written to the connection, and what the host
//! sends is the body of a `200` that the host never wrote.
//!
//! The connection serves one stream and half-closes with it. Whether a request is to be ended so is the router's decision.

use super::h1::encode::Output;
use super::h1::input::Input;
use super::{BytesMeter, ClientStream, Frame, Protocol, ResetReason, Stream, StreamError};
use crate::headers::Headers;
use bytes::Bytes;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};

/// A stream that is a connection.
pub struct RawClient<I> {
    io: I,
    input: Input,
    output: Output,
    buffer_limit: usize,
    /// The `200` was handed out.
    answered: bool,
    /// The request is complete: the connection's write side ends when all is written.
    ending: bool,
    shut: bool,
    /// The host has ended its side.
    received: bool,
    error: Option<StreamError>,
    meter: BytesMeter,
}

impl<I: AsyncRead + AsyncWrite + Unpin> RawClient<I> {
    /// A stream over `io` that begins with `preface` (a PROXY header, or nothing) and takes at most about `buffer_limit`
    /// bytes ahead of the host; 0 is no limit.
    pub fn new(io: I, preface: Bytes, buffer_limit: usize) -> RawClient<I> {
        let mut client = RawClient {
            io,
            input: Input::default(),
            output: Output::default(),
            buffer_limit,
            answered: false,
            ending: false,
            shut: false,
            received: false,
            error: None,
            meter: BytesMeter::default(),
        };
        client.queue(preface);
        client
    }

    /// Whether the host has ended its side in order.
    pub fn response_complete(&self) -> bool {
        self.received
    }

    /// Whether the request was complete and is written.
    pub fn request_complete(&self) -> bool {
        self.shut
    }

    /// The error that ended the stream.
    pub fn error(&self) -> Option<&StreamError> {
        self.error.as_ref()
    }

    fn queue(&mut self, data: Bytes) {
        self.meter.wire_bytes_sent += data.len() as u64;
        self.output.data(data);
    }

    fn terminated(&mut self) -> StreamError {
        self.error.get_or_insert_with(|| StreamError::new(ResetReason::ConnectionTermination)).clone()
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Stream for RawClient<I> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, StreamError>> {
        if let Some(error) = &self.error {
            return Poll::Ready(Err(error.clone()));
        }
        match ready!(self.input.poll_read(&mut self.io, cx, false)) {
            Ok(0) => {
                self.received = true;
                Poll::Ready(Ok(Frame::Data(Bytes::new(), true)))
            }
            Ok(n) => {
                self.meter.wire_bytes_received += n as u64;
                Poll::Ready(Ok(Frame::Data(self.input.buf.split().freeze(), false)))
            }
            Err(_) => Poll::Ready(Err(self.terminated())),
        }
    }

    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if self.output.has_capacity(self.buffer_limit) {
            return Poll::Ready(Ok(()));
        }
        match self.output.poll_flush(&mut self.io, cx) {
            Poll::Ready(Err(_)) => Poll::Ready(Err(self.terminated())),
            _ if self.output.has_capacity(self.buffer_limit) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    }

    fn send_data(&mut self, data: Bytes, end_stream: bool) -> Result<(), StreamError> {
        self.queue(data);
        self.ending |= end_stream;
        Ok(())
    }

    fn send_trailers(&mut self, _trailers: &Headers) -> Result<(), StreamError> {
        self.ending = true;
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if ready!(self.output.poll_flush(&mut self.io, cx)).is_err() {
            return Poll::Ready(Err(self.terminated()));
        }
        if self.ending && !self.shut {
            if ready!(Pin::new(&mut self.io).poll_shutdown(cx)).is_err() {
                return Poll::Ready(Err(self.terminated()));
            }
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_reset(&mut self, _cx: &mut Context<'_>) -> Poll<StreamError> {
        // Every end of the connection is seen by reading.
        self.error.clone().map_or(Poll::Pending, Poll::Ready)
    }

    fn reset(&mut self, reason: ResetReason) {
        self.output.clear();
        self.error.get_or_insert_with(|| StreamError::new(reason));
    }

    fn protocol(&self) -> Protocol {
        Protocol::Http11
    }

    fn bytes_meter(&self) -> BytesMeter {
        self.meter
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> ClientStream for RawClient<I> {
    fn send_headers(&mut self, _headers: &Headers, end_stream: bool) -> Result<(), StreamError> {
        self.ending |= end_stream;
        Ok(())
    }

    fn poll_headers(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(Headers, bool), StreamError>> {
        if let Some(error) = &self.error {
            return Poll::Ready(Err(error.clone()));
        }
        debug_assert!(!self.answered);
        self.answered = true;
        let mut head = Headers::with_capacity(4);
        head.set_status(200);
        Poll::Ready(Ok((head, false)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_connection_is_a_stream_with_a_made_up_answer() {
        let (own, mut host) = tokio::io::duplex(1024);
        let mut client = RawClient::new(own, Bytes::from_static(b"PROXY UNKNOWN\r\n"), 1024);
        client.send_headers(&Headers::with_capacity(0), false).expect("taken");
        let (head, end) = poll_fn(|cx| client.poll_headers(cx)).await.expect("a head");
        assert_eq!((head.status(), end), (200, false));
        client.send_data(Bytes::from_static(b"ping"), true).expect("taken");
        poll_fn(|cx| client.poll_flush(cx)).await.expect("written");
        let mut got = Vec::new();
        host.read_to_end(&mut got).await.expect("the whole request");
        assert_eq!(got, b"PROXY UNKNOWN\r\nping");
        host.write_all(b"pong").await.expect("sent");
        drop(host);
        let mut body = Vec::new();
        loop {
            match poll_fn(|cx| client.poll_frame(cx)).await.expect("a frame") {
                Frame::Data(data, end) => {
                    body.extend_from_slice(&data);
                    if end {
                        break;
                    }
                }
                Frame::Trailers(_) => panic!("there are none"),
            }
        }
        assert_eq!(body, b"pong");
        assert!(client.request_complete() && client.response_complete());
    }

    #[tokio::test]
    async fn a_host_that_does_not_read_stops_the_request() {
        let (own, _host) = tokio::io::duplex(16);
        let mut client = RawClient::new(own, Bytes::new(), 64);
        client.send_headers(&Headers::with_capacity(0), false).expect("taken");
        client.send_data(Bytes::from(vec![0; 100]), false).expect("taken");
        let waits = poll_fn(|cx| Poll::Ready(client.poll_capacity(cx).is_pending())).await;
        assert!(waits);
        client.reset(ResetReason::LocalReset);
        assert!(poll_fn(|cx| client.poll_frame(cx)).await.is_err());
    }
}
