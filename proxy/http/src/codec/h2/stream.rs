//! What both ends of an HTTP/2 stream have in common: bodies, trailers, flow control, resets.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use nuncio_config::hcm::UnderscoresAction;

use super::fields::{self, Rules};
use super::guard::Shared;
use crate::codec::h1::parse::Limits;
use crate::codec::{BytesMeter, Frame, ResetReason, StreamError};
use crate::headers::Headers;

/// Bytes that may be queued before flow control is asked: most messages are smaller.
const FREE: u64 = 16 * 1024;
/// What is asked of flow control at a time.
const RESERVE: usize = 64 * 1024;
/// Frame header.
const FRAME: u64 = 9;

/// A stream's state on the proxy's side.
pub(super) struct Body {
    pub(super) recv: Option<RecvStream>,
    pub(super) send: Option<SendStream<Bytes>>,
    pub(super) shared: Rc<Shared>,
    limits: Limits,
    sent: u64,
    pub(super) send_done: bool,
    pub(super) recv_done: bool,
    pub(super) error: Option<StreamError>,
    pub(super) meter: BytesMeter,
}

impl Body {
    pub(super) fn new(shared: Rc<Shared>, limits: Limits) -> Body {
        shared.stats().streams_active().inc();
        shared.active.set(shared.active.get() + 1);
        Body {
            recv: None,
            send: None,
            shared,
            limits,
            sent: 0,
            send_done: false,
            recv_done: false,
            error: None,
            meter: BytesMeter::default(),
        }
    }

    pub(super) fn rules(&self) -> Rules<'_> {
        Rules { limits: self.limits, underscores: UnderscoresAction::Allow, stats: self.shared.stats() }
    }

    pub(super) fn fail(&mut self, error: StreamError) -> StreamError {
        self.error.get_or_insert(error).clone()
    }

    pub(super) fn fail_h2(&mut self, error: &h2::Error) -> StreamError {
        let error = stream_error(error, &self.shared);
        self.fail(error)
    }

    /// Head bytes, roughly: what HPACK made of them is not known.
    pub(super) fn head_received(&mut self, headers: &Headers) {
        let n = headers.byte_size() as u64;
        self.meter.header_bytes_received += n;
        self.meter.wire_bytes_received += n + FRAME;
    }

    pub(super) fn head_sent(&mut self, headers: &Headers) {
        let n = headers.byte_size() as u64;
        self.meter.header_bytes_sent += n;
        self.meter.wire_bytes_sent += n + FRAME;
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, StreamError>> {
        if let Some(error) = &self.error {
            return Poll::Ready(Err(error.clone()));
        }
        let Some(recv) = &mut self.recv else {
            return Poll::Ready(Ok(Frame::Data(Bytes::new(), true)));
        };
        match ready!(recv.poll_data(cx)) {
            Some(Ok(data)) => {
                // The caller takes data only when it can pass it on: the window opens now.
                let released = recv.flow_control().release_capacity(data.len());
                let end = recv.is_end_stream();
                self.meter.wire_bytes_received += data.len() as u64 + FRAME;
                if end {
                    self.recv_done = true;
                }
                if let Err(e) = released {
                    return Poll::Ready(Err(self.fail_h2(&e)));
                }
                Poll::Ready(Ok(Frame::Data(data, end)))
            }
            Some(Err(e)) => Poll::Ready(Err(self.fail_h2(&e))),
            None => match ready!(recv.poll_trailers(cx)) {
                Ok(trailers) => {
                    self.recv_done = true;
                    let Some(map) = trailers else { return Poll::Ready(Ok(Frame::Data(Bytes::new(), true))) };
                    // Envoy counts those of requests only.
                    if self.shared.is_server() {
                        self.shared.stats().trailers().inc();
                    }
                    match fields::decode_trailers(&map, &self.rules()) {
                        Ok(trailers) if trailers.is_empty() => Poll::Ready(Ok(Frame::Data(Bytes::new(), true))),
                        Ok(trailers) => {
                            self.head_received(&trailers);
                            Poll::Ready(Ok(Frame::Trailers(trailers)))
                        }
                        Err(e) => {
                            self.reset(Reason::PROTOCOL_ERROR);
                            Poll::Ready(Err(self.fail(e)))
                        }
                    }
                }
                Err(e) => Poll::Ready(Err(self.fail_h2(&e))),
            },
        }
    }

    pub(super) fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if let Some(error) = &self.error {
            return Poll::Ready(Err(error.clone()));
        }
        let Some(send) = &mut self.send else { return Poll::Ready(Ok(())) };
        if self.sent < FREE || self.send_done || send.capacity() > 0 {
            return Poll::Ready(Ok(()));
        }
        send.reserve_capacity(RESERVE);
        loop {
            match ready!(send.poll_capacity(cx)) {
                Some(Ok(0)) => {}
                Some(Ok(_)) => return Poll::Ready(Ok(())),
                Some(Err(e)) => return Poll::Ready(Err(self.fail_h2(&e))),
                None => {
                    return Poll::Ready(Err(self.fail(StreamError::new(ResetReason::RemoteReset))));
                }
            }
        }
    }

    pub(super) fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), StreamError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        if self.send_done || (data.is_empty() && !end) {
            return Ok(());
        }
        let Some(send) = &mut self.send else { return Err(StreamError::new(ResetReason::LocalReset)) };
        let n = data.len() as u64;
        self.sent += n;
        self.send_done = end;
        if let Err(e) = send.send_data(data, end) {
            return Err(self.fail_h2(&e));
        }
        self.meter.wire_bytes_sent += n + FRAME;
        Ok(())
    }

    pub(super) fn send_trailers(&mut self, trailers: &Headers) -> Result<(), StreamError> {
        if trailers.is_empty() {
            return self.send_data(Bytes::new(), true);
        }
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let Some(send) = &mut self.send else { return Err(StreamError::new(ResetReason::LocalReset)) };
        let mut map = http::HeaderMap::with_capacity(trailers.len());
        fields::encode_fields(trailers, &mut map);
        self.send_done = true;
        if let Err(e) = send.send_trailers(map) {
            return Err(self.fail_h2(&e));
        }
        self.head_sent(trailers);
        Ok(())
    }

    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        if let Some(error) = &self.error {
            return Poll::Ready(error.clone());
        }
        let Some(send) = &mut self.send else { return Poll::Pending };
        match ready!(send.poll_reset(cx)) {
            // The peer has all it wants: not a failure once everything is queued.
            Ok(Reason::NO_ERROR) if self.send_done => Poll::Pending,
            Ok(reason) => {
                let error = reset_error(reason);
                Poll::Ready(self.fail(error))
            }
            Err(e) => Poll::Ready(self.fail_h2(&e)),
        }
    }

    pub(super) fn reset(&mut self, reason: Reason) {
        if let Some(send) = &mut self.send {
            send.send_reset(reason);
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.shared.stats().streams_active().dec();
        self.shared.active.set(self.shared.active.get() - 1);
    }
}

/// What the peer's RST_STREAM means.
pub(super) fn reset_error(reason: Reason) -> StreamError {
    match reason {
        Reason::REFUSED_STREAM => {
            StreamError { reason: ResetReason::RemoteRefusedStreamReset, details: "http2.remote_refuse", status: 0 }
        }
        Reason::CONNECT_ERROR => {
            StreamError { reason: ResetReason::ConnectError, details: "http2.remote_reset", status: 0 }
        }
        _ => StreamError { reason: ResetReason::RemoteReset, details: "http2.remote_reset", status: 0 },
    }
}

/// What an error of `h2` means for a stream.
pub(super) fn stream_error(error: &h2::Error, shared: &Shared) -> StreamError {
    if let Some(flood) = shared.violation() {
        return StreamError { reason: ResetReason::ProtocolError, details: flood.details(), status: 0 };
    }
    if error.is_io() || error.get_io().is_some() {
        return StreamError::new(ResetReason::ConnectionTermination);
    }
    match error.reason() {
        Some(reason) if error.is_reset() && error.is_remote() => reset_error(reason),
        // The stream was above the last one that the peer works on: it may be tried again.
        Some(_) if error.is_go_away() && error.is_remote() => StreamError::new(ResetReason::RemoteRefusedStreamReset),
        // A malformed message, which the limit on errors turns into the end of the connection.
        Some(Reason::ENHANCE_YOUR_CALM) if error.is_library() && shared.is_server() => {
            shared.stats().rx_messaging_error().inc();
            StreamError::protocol("http2.invalid.header.field", 0)
        }
        Some(_) if error.is_library() => StreamError::protocol("http2.violation.of.messaging.rule", 0),
        _ => StreamError::new(ResetReason::ConnectionTermination),
    }
}

/// What this side tells the peer when it ends a stream early.
pub(super) fn reset_code(reason: ResetReason) -> Reason {
    match reason {
        ResetReason::LocalRefusedStreamReset | ResetReason::Overflow => Reason::REFUSED_STREAM,
        ResetReason::ConnectError => Reason::CONNECT_ERROR,
        ResetReason::ProtocolError => Reason::PROTOCOL_ERROR,
        _ => Reason::INTERNAL_ERROR,
    }
}
