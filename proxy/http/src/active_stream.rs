//! One request and its response, from the head to the access log.
//!
//! ```text
//!  head -> checks -> path -> forwarded headers -> route -> decoder filters -> terminal filter
//!                                                                                  |
//!  access log <- flush <- codec <- server/date/via <- encoder filters <- response -+
//! ```
//!
//! The stream is one future on one worker: no locks, no queues. The terminal filter drives it through the methods below
//! and pulls the request body only when it has room for it, so back-pressure reaches the peers by not reading. What
//! ends a stream early (the peer leaves, a timer fires, the body is malformed) is an [`Abort`]: [`ActiveStream::poll_abort`]
//! reports it, the terminal filter returns, and the stream answers or resets.

mod on_demand;
mod prepare;
mod recreate;
mod replies;

pub use recreate::Redirects;

use crate::codec::{BytesMeter, Frame, Protocol, ResetReason, ServerStream, StreamError};
use crate::conn_manager::ConnectionContext;
use crate::filter::{DataAction, FilterChain, HeadersAction, LocalFuture, Slot, StreamView};
use crate::filter_chains::FilterChains;
use crate::formatter::{AccessLogType, FormatContext};
use crate::header_rules;
use crate::headers::{HeaderValue, Headers, names};
use crate::local_reply::{LocalReply, grpc_status_of_http};
use crate::route::{ActiveRoute, RouteOutcome, RouteRequest, RouteTable};
use crate::stream_info::{ResponseFlags, StreamInfo};
use bytes::{Bytes, BytesMut};
use nuncio_base::clock;
use nuncio_base::timer::{self, Sleep};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Why a stream ends before its response does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Abort {
    /// The peer left or reset the stream.
    Downstream(StreamError),
    /// The request's body is malformed; answered with the error's status if nothing was sent.
    Malformed(StreamError),
    /// `stream_idle_timeout`.
    IdleTimeout,
    /// `request_timeout`.
    RequestTimeout,
    /// `max_stream_duration`.
    MaxDuration,
}

/// Timers of a stream; those that are not configured cost nothing.
struct Timers {
    idle: Option<(Sleep, Duration)>,
    request: Option<Sleep>,
    duration: Option<Sleep>,
}

/// One stream. See the module's documentation.
pub struct ActiveStream<'a> {
    /// The connection it belongs to.
    pub connection: &'a ConnectionContext,
    /// Request headers as they are now; they stay after the request was sent.
    pub request: Headers,
    /// Response headers as sent; empty before.
    pub response: Headers,
    /// Response trailers as sent.
    pub response_trailers: Headers,
    /// What is known about the stream.
    pub info: StreamInfo,
    /// The route; None before routing and where nothing matched.
    pub route: Option<ActiveRoute>,
    /// `location` of a redirect that `require_tls` asks for.
    pub tls_redirect: Option<HeaderValue>,
    /// The request comes from an internal address.
    pub internal: bool,
    /// Internal redirects that the request has gone through.
    pub redirects: Redirects,
    downstream: &'a mut dyn ServerStream,
    /// As they were when the stream began.
    chains: &'a FilterChains,
    chain: &'a FilterChain,
    slots: SmallVec<[Slot; 4]>,
    /// Body read ahead of the terminal filter, because a filter asked for it.
    buffered: VecDeque<Frame>,
    request_complete: bool,
    response_started: bool,
    response_complete: bool,
    upgrade: bool,
    /// `downstream_cx_upgrades_active` counts this stream.
    upgrade_counted: bool,
    head_request: bool,
    grpc: bool,
    /// `downstream_rq_rx_reset` has counted this stream.
    rx_reset: bool,
    /// The response was ended before it was complete.
    cut: bool,
    /// The response does not go through the encoder filters: it is the answer of one of them.
    bypass: bool,
    /// Counted and logged.
    completed: bool,
    timers: Timers,
    abort: Option<Abort>,
    /// The body with which the stream begins anew.
    recreated: Option<VecDeque<Frame>>,
}

impl<'a> ActiveStream<'a> {
    pub(crate) fn new(
        connection: &'a ConnectionContext,
        chains: &'a FilterChains,
        downstream: &'a mut dyn ServerStream,
        request: Headers,
        end_stream: bool,
    ) -> Self {
        let hcm = &connection.hcm;
        let config = &hcm.config;
        let protocol = downstream.protocol();
        let info = StreamInfo::new(connection.info.clone(), connection.next_stream_id(), Some(protocol));
        connection.set_delay_close(false);
        hcm.stats.downstream_rq_total().inc();
        hcm.stats.downstream_rq_active().inc();
        match protocol {
            Protocol::Http10 | Protocol::Http11 => hcm.stats.downstream_rq_http1_total().inc(),
            Protocol::Http2 => hcm.stats.downstream_rq_http2_total().inc(),
            Protocol::Http3 => hcm.stats.downstream_rq_http3_total().inc(),
        }
        let timers = Timers {
            idle: config.stream_idle_timeout.map(|d| (timer::sleep(d), d)),
            request: config.request_timeout.filter(|_| !end_stream).map(timer::sleep),
            duration: config.max_stream_duration.map(timer::sleep),
        };
        let mut stream = ActiveStream {
            connection,
            head_request: request.method() == b"HEAD",
            grpc: is_grpc(&request),
            request,
            response: Headers::new(),
            response_trailers: Headers::new(),
            info,
            route: None,
            tls_redirect: None,
            internal: false,
            redirects: Redirects::default(),
            downstream,
            chains,
            chain: &chains.ordinary,
            slots: SmallVec::new(),
            buffered: VecDeque::new(),
            request_complete: end_stream,
            response_started: false,
            response_complete: false,
            upgrade: false,
            upgrade_counted: false,
            rx_reset: false,
            cut: false,
            bypass: false,
            completed: false,
            timers,
            abort: None,
            recreated: None,
        };
        if end_stream {
            stream.info.request_complete = Some(stream.info.start);
        }
        stream
    }

    /// Serves the stream to its end and logs it. By reference, as its like below: a future that takes `self` holds it twice,
    /// and a stream is large.
    pub(crate) async fn run(&mut self, malformed: Option<StreamError>) {
        match malformed {
            Some(error) => self.answer_malformed(&error),
            None => loop {
                if self.prepare() && self.decode_headers().await {
                    self.serve().await;
                }
                if !self.begin_anew() {
                    break;
                }
            },
        }
        self.finish().await;
    }

    /// Ends a stream whose head did not arrive before one of its timers fired.
    pub(crate) async fn run_aborted(&mut self, abort: Abort) {
        self.abort = Some(abort);
        self.finish().await;
    }

    /// Answers a head that did not arrive in time.
    pub(crate) async fn run_header_timeout(&mut self) {
        self.local_reply(LocalReply::new(408, "request header timeout", "request_header_timeout").close());
        self.finish().await;
    }

    /// Logs a request that the codec refused; its stream has been reset already.
    pub(crate) async fn run_refused(&mut self, error: &StreamError) {
        let limit = matches!(
            error.details,
            "http2.too_many_headers" | "http2.header_list_size_too_large" | "http2.unexpected_underscore"
        );
        if limit {
            self.info.flags.insert(ResponseFlags::DOWNSTREAM_REMOTE_RESET);
        } else {
            self.info.flags.insert(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
        }
        self.connection.hcm.stats.downstream_rq_rx_reset().inc();
        self.info.response_code_details = Some(error.details.into());
        self.response_complete = true;
        self.finish().await;
    }

    /// Logs a head that the peer did not finish.
    pub(crate) async fn run_disconnected(&mut self) {
        self.abort = Some(Abort::Downstream(StreamError::new(ResetReason::ConnectionTermination)));
        self.finish().await;
    }

    /// Runs the decoder filters; false when one answered.
    async fn decode_headers(&mut self) -> bool {
        let chain = self.chain;
        if chain.entries.is_empty() {
            return true;
        }
        chain.slots(self.route.as_ref(), &mut self.slots);
        if !chain.any.decode_headers {
            return true;
        }
        for (i, entry) in chain.entries.iter().enumerate() {
            if !entry.hooks.decode_headers || self.slots[i].is_off() {
                continue;
            }
            let end = self.request_complete && self.buffered.is_empty();
            let mut view = StreamView { request: &mut self.request, info: &mut self.info, route: self.route.as_ref() };
            let mut action = entry.filter.decode_headers(&mut self.slots[i], &mut view, end);
            loop {
                match action {
                    HeadersAction::Continue => break,
                    HeadersAction::Respond(reply) => {
                        self.local_reply(reply);
                        return false;
                    }
                    HeadersAction::Buffer => {
                        if !self.buffer_body().await {
                            return false;
                        }
                        break;
                    }
                    HeadersAction::OnDemand(cluster) => {
                        if !self.on_demand(cluster).await {
                            return false;
                        }
                        break;
                    }
                    HeadersAction::Wait(future) => {
                        let Some(resume) = self.wait(future).await else { return false };
                        let mut view =
                            StreamView { request: &mut self.request, info: &mut self.info, route: self.route.as_ref() };
                        action = resume(&mut view);
                    }
                }
            }
        }
        true
    }

    /// Waits for a filter's future; None when the stream ends first.
    async fn wait<T>(&mut self, mut future: LocalFuture<'static, T>) -> Option<T> {
        let done = poll_fn(|cx| match self.poll_abort(cx) {
            Poll::Ready(abort) => Poll::Ready(Err(abort)),
            Poll::Pending => future.as_mut().poll(cx).map(Ok),
        });
        match done.await {
            Ok(value) => Some(value),
            Err(abort) => {
                self.abort = Some(abort);
                None
            }
        }
    }

    /// Reads the whole body; false when it is too large or the stream ended.
    async fn buffer_body(&mut self) -> bool {
        let limit = self.connection.buffer_limit();
        let mut size = 0;
        while !self.request_complete {
            match poll_fn(|cx| self.poll_decoded_frame(cx)).await {
                Ok(frame) => {
                    if let Frame::Data(data, _) = &frame {
                        size += data.len();
                    }
                    self.buffered.push_back(frame);
                }
                Err(abort) => {
                    self.abort = Some(abort);
                    return false;
                }
            }
            // A filter has answered what it saw of the body.
            if self.is_over() {
                return false;
            }
            if size > limit {
                self.connection.hcm.stats.downstream_rq_too_large().inc();
                self.local_reply(LocalReply::new(413, "Payload Too Large", "request_payload_too_large"));
                return false;
            }
        }
        true
    }

    async fn serve(&mut self) {
        match &self.chain.terminal {
            Some(terminal) => {
                // The chain outlives the stream, which has only borrowed it.
                let terminal: &dyn crate::filter::TerminalFilter = terminal.as_ref();
                terminal.serve(self).await;
            }
            None => self.local_reply(LocalReply::new(404, "", "no_terminal_filter")),
        }
    }

    /// Whether the whole request has been read.
    pub fn request_complete(&self) -> bool {
        self.request_complete && self.buffered.is_empty()
    }

    /// Whether the response head has gone out.
    pub fn response_started(&self) -> bool {
        self.response_started
    }

    /// Whether the response has ended, or the stream was aborted.
    pub fn is_over(&self) -> bool {
        self.response_complete || self.abort.is_some()
    }

    /// Whether the request is an upgrade or CONNECT that was let through.
    pub fn is_upgrade(&self) -> bool {
        self.upgrade
    }

    /// Bytes that the downstream connection has moved for the stream so far.
    pub fn downstream_meter(&self) -> BytesMeter {
        self.downstream.bytes_meter()
    }

    /// What filters may read and change of it.
    pub fn view(&mut self) -> StreamView<'_> {
        StreamView { request: &mut self.request, info: &mut self.info, route: self.route.as_ref() }
    }

    /// Whether filters have seen the request's head, and may have taken something from it.
    pub fn is_filtered(&self) -> bool {
        self.chain.any.decode_headers
    }

    /// Whether the request is gRPC.
    pub fn is_grpc(&self) -> bool {
        self.grpc
    }

    /// Protocol of the downstream side.
    pub fn protocol(&self) -> Protocol {
        self.downstream.protocol()
    }

    /// Bytes that may wait in a buffer on one side.
    pub fn buffer_limit(&self) -> usize {
        self.connection.buffer_limit()
    }

    /// Ready when the stream has to end early.
    pub fn poll_abort(&mut self, cx: &mut Context<'_>) -> Poll<Abort> {
        if let Poll::Ready(error) = self.downstream.poll_reset(cx) {
            return Poll::Ready(Abort::Downstream(error));
        }
        if let Some((sleep, _)) = &mut self.timers.idle
            && Pin::new(sleep).poll(cx).is_ready()
        {
            return Poll::Ready(Abort::IdleTimeout);
        }
        if let Some(sleep) = &mut self.timers.request
            && Pin::new(sleep).poll(cx).is_ready()
        {
            return Poll::Ready(Abort::RequestTimeout);
        }
        if let Some(sleep) = &mut self.timers.duration
            && Pin::new(sleep).poll(cx).is_ready()
        {
            return Poll::Ready(Abort::MaxDuration);
        }
        Poll::Pending
    }

    /// Ends the stream early; the terminal filter returns after it.
    pub fn abort(&mut self, abort: Abort) {
        self.abort = Some(abort);
    }

    fn touch(&mut self) {
        if let Some((sleep, delay)) = &mut self.timers.idle {
            sleep.reset(*delay);
        }
    }

    /// Next piece of the request's body, after the decoder filters. Not to be called once the request is complete.
    pub fn poll_request_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, Abort>> {
        if let Some(frame) = self.buffered.pop_front() {
            return Poll::Ready(Ok(frame));
        }
        self.poll_decoded_frame(cx)
    }

    fn poll_decoded_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, Abort>> {
        let mut frame = match std::task::ready!(self.downstream.poll_frame(cx)) {
            Ok(frame) => frame,
            Err(error) if error.status != 0 => return Poll::Ready(Err(Abort::Malformed(error))),
            Err(error) => return Poll::Ready(Err(Abort::Downstream(error))),
        };
        self.touch();
        let h1 = matches!(self.downstream.protocol(), Protocol::Http10 | Protocol::Http11);
        if self.upgrade && h1 && matches!(&frame, Frame::Data(data, true) if data.is_empty()) {
            // The connection was the tunnel: its end is the client's leaving, as in Envoy.
            return Poll::Ready(Err(Abort::Downstream(StreamError::new(ResetReason::ConnectionTermination))));
        }
        if let Frame::Data(data, _) = &frame {
            self.info.bytes_received += data.len() as u64;
        }
        if frame.is_end() {
            self.request_complete = true;
            self.timers.request = None;
            self.info.request_complete = Some(clock::now());
        }
        if self.chain.any.decode_body {
            self.decode_body(&mut frame);
        }
        Poll::Ready(Ok(frame))
    }

    fn decode_body(&mut self, frame: &mut Frame) {
        let chain = self.chain;
        let mut answer = None;
        for (filter, slot) in chain.with_hook(&mut self.slots, |hooks| hooks.decode_body) {
            let mut view = StreamView { request: &mut self.request, info: &mut self.info, route: self.route.as_ref() };
            match frame {
                Frame::Data(data, end) => {
                    if let DataAction::Respond(reply) = filter.decode_data(slot, &mut view, data, *end) {
                        answer = Some(reply);
                        break;
                    }
                }
                Frame::Trailers(trailers) => filter.decode_trailers(slot, &mut view, trailers),
            }
        }
        if let Some(reply) = answer {
            self.local_reply(reply);
        }
    }

    /// Sends a `1xx` head other than 101.
    pub fn send_informational(&mut self, headers: &Headers) {
        self.connection.hcm.charge(headers.status());
        // A peer that has left is noticed by the next poll.
        let _ = self.downstream.send_informational(headers);
    }

    /// Sends the response head through the encoder filters. With `end_stream` there is no body.
    pub fn send_response_headers(&mut self, mut response: Headers, mut end_stream: bool) {
        if self.response_started {
            return;
        }
        let chain = self.chain;
        if chain.any.encode_headers && !self.bypass {
            let mut answer = None;
            for (filter, slot) in chain.with_hook(&mut self.slots, |hooks| hooks.encode_headers).rev() {
                let mut view =
                    StreamView { request: &mut self.request, info: &mut self.info, route: self.route.as_ref() };
                let action = filter.encode_headers(slot, &mut view, &mut response, end_stream);
                if let DataAction::Respond(reply) = action {
                    answer = Some(reply);
                    break;
                }
            }
            if answer.is_none() && !response.contains(&names::STATUS) {
                answer = Some(missing_status());
            }
            if let Some(reply) = answer {
                self.direct_reply(reply);
                return;
            }
        }
        let connection = self.connection;
        let hcm = &connection.hcm;
        header_rules::mutate_response(&mut response, &self.request, &hcm.config, &hcm.server_name);
        if let Some(status) = hcm.rules.as_deref().and_then(|rules| rules.proxy_status.as_ref()) {
            status.apply(&mut response, &self.info);
        }
        let code = response.status();
        if self.upgrade && !(code == 101 || (code / 100 == 2 && self.request.method() == b"CONNECT")) {
            // The peer did not switch protocols: the codec must not take what follows for tunnelled bytes.
            self.downstream.close_after();
        }
        if connection.wants_close() {
            self.downstream.close_after();
        }
        hcm.charge(code);
        self.info.response_code = code;
        self.response_started = true;
        self.info.response_first_tx = Some(clock::now());
        if self.head_request {
            end_stream = true;
        }
        self.touch();
        if let Err(error) = self.downstream.send_headers(&response, end_stream) {
            self.abort = Some(Abort::Downstream(error));
        }
        self.response = response;
        if self.upgrade && hcm.config.flush_access_log_on_tunnel && self.is_tunnel() {
            self.log_tunnel();
        }
        if end_stream {
            self.response_ended();
        }
    }

    /// Whether the downstream side takes more.
    pub fn poll_response_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Abort>> {
        self.downstream.poll_capacity(cx).map_err(Abort::Downstream)
    }

    /// Sends a piece of the response body through the encoder filters. Only while there is capacity.
    pub fn send_response_data(&mut self, mut data: Bytes, end_stream: bool) {
        if self.response_complete {
            return;
        }
        if self.chain.any.encode_body && !self.bypass {
            for (filter, slot) in self.chain.with_hook(&mut self.slots, |hooks| hooks.encode_body).rev() {
                let mut view =
                    StreamView { request: &mut self.request, info: &mut self.info, route: self.route.as_ref() };
                filter.encode_data(slot, &mut view, &mut data, end_stream);
            }
        }
        self.info.bytes_sent += data.len() as u64;
        self.touch();
        if let Err(error) = self.downstream.send_data(data, end_stream) {
            self.abort = Some(Abort::Downstream(error));
        }
        if end_stream {
            self.response_ended();
        }
    }

    /// Sends trailers through the encoder filters and ends the response.
    pub fn send_response_trailers(&mut self, mut trailers: Headers) {
        if self.response_complete {
            return;
        }
        if self.chain.any.encode_body {
            for (filter, slot) in self.chain.with_hook(&mut self.slots, |hooks| hooks.encode_body).rev() {
                let mut view =
                    StreamView { request: &mut self.request, info: &mut self.info, route: self.route.as_ref() };
                filter.encode_trailers(slot, &mut view, &mut trailers);
            }
        }
        if let Err(error) = self.downstream.send_trailers(&trailers) {
            self.abort = Some(Abort::Downstream(error));
        }
        self.response_trailers = trailers;
        self.response_ended();
    }

    fn response_ended(&mut self) {
        self.response_complete = true;
        self.info.response_last_tx = Some(clock::now());
    }

    /// Writes what is queued; ready when all is written.
    pub fn poll_response_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Abort>> {
        self.downstream.poll_flush(cx).map_err(Abort::Downstream)
    }
}

impl Drop for ActiveStream<'_> {
    fn drop(&mut self) {
        let stats = &self.connection.hcm.stats;
        stats.downstream_rq_active().dec();
        if self.upgrade_counted {
            stats.downstream_cx_upgrades_active().dec();
        }
        // A stream that broke is left as it is.
        if !self.completed && !std::thread::panicking() {
            self.end_with_connection();
        }
    }
}

/// What a response is replaced with from which filters have taken its status.
pub(crate) fn missing_status() -> LocalReply {
    let details = "filter_removed_required_response_headers{missing_required_header:_:status}";
    LocalReply::new(502, "missing required header: :status", details)
}

/// Envoy's `Grpc::Common::isGrpcRequestHeaders`.
fn is_grpc(headers: &Headers) -> bool {
    let Some(kind) = headers.bytes(&names::CONTENT_TYPE) else { return false };
    kind.strip_prefix(b"application/grpc").is_some_and(|rest| rest.is_empty() || rest[0] == b'+')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::HeaderValue;

    #[test]
    fn only_grpc_content_types_are_grpc() {
        let with = |v: &'static str| {
            let mut h = Headers::new();
            h.append(names::CONTENT_TYPE, HeaderValue::from_static(v));
            is_grpc(&h)
        };
        assert!(with("application/grpc"));
        assert!(with("application/grpc+proto"));
        assert!(!with("application/grpc-web"));
        assert!(!with("text/plain"));
    }
}
