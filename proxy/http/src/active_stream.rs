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

use crate::codec::{Frame, Protocol, ResetReason, ServerStream, StreamError};
use crate::conn_manager::ConnectionContext;
use crate::filter::{DataAction, FilterChain, HeadersAction, Slot, StreamView};
use crate::formatter::{AccessLogType, FormatContext};
use crate::header_rules;
use crate::headers::{HeaderValue, Headers, names};
use crate::local_reply::{LocalReply, grpc_status_of_http};
use crate::route::{ActiveRoute, RouteOutcome, RouteRequest, RouteTable};
use crate::stream_info::{ResponseFlags, StreamInfo};
use bytes::{Bytes, BytesMut};
use nuncio_base::timer::{self, Sleep};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

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
    downstream: &'a mut dyn ServerStream,
    chain: &'a FilterChain,
    slots: SmallVec<[Slot; 4]>,
    /// Body read ahead of the terminal filter, because a filter asked for it.
    buffered: VecDeque<Frame>,
    request_complete: bool,
    response_started: bool,
    response_complete: bool,
    upgrade: bool,
    head_request: bool,
    grpc: bool,
    /// `downstream_rq_rx_reset` has counted this stream.
    rx_reset: bool,
    timers: Timers,
    abort: Option<Abort>,
}

impl<'a> ActiveStream<'a> {
    pub(crate) fn new(
        connection: &'a ConnectionContext,
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
            downstream,
            chain: &hcm.chain,
            slots: SmallVec::new(),
            buffered: VecDeque::new(),
            request_complete: end_stream,
            response_started: false,
            response_complete: false,
            upgrade: false,
            rx_reset: false,
            timers,
            abort: None,
        };
        if end_stream {
            stream.info.request_complete = Some(stream.info.start);
        }
        stream
    }

    /// Serves the stream to its end and logs it.
    pub(crate) async fn run(mut self, malformed: Option<StreamError>) {
        match malformed {
            Some(error) => self.answer_malformed(&error),
            None => {
                if self.prepare() && self.decode_headers().await {
                    self.serve().await;
                }
            }
        }
        self.finish().await;
    }

    /// Ends a stream whose head did not arrive before one of its timers fired.
    pub(crate) async fn run_aborted(mut self, abort: Abort) {
        self.abort = Some(abort);
        self.finish().await;
    }

    /// Answers a head that did not arrive in time.
    pub(crate) async fn run_header_timeout(mut self) {
        self.local_reply(LocalReply::new(408, "request header timeout", "request_header_timeout").close());
        self.finish().await;
    }

    /// Logs a request that the codec refused; its stream has been reset already.
    pub(crate) async fn run_refused(mut self, error: &StreamError) {
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
    pub(crate) async fn run_disconnected(mut self) {
        self.abort = Some(Abort::Downstream(StreamError::new(ResetReason::ConnectionTermination)));
        self.finish().await;
    }

    /// The checks before routing; false when the stream has been answered.
    fn prepare(&mut self) -> bool {
        let connection = self.connection;
        let hcm = &connection.hcm;
        let config = &hcm.config;
        if !config.proxy_100_continue && self.request.bytes(&names::EXPECT).is_some_and(is_100_continue) {
            self.request.remove(&names::EXPECT);
            self.send_continue();
        }
        if header_rules::has_token(&self.request, &names::PROXY_CONNECTION, b"close") {
            self.downstream.close_after();
        }
        if !self.request.contains(&names::AUTHORITY) {
            let close = !config.stream_error_on_invalid_http_message;
            let reply = LocalReply::new(400, "", "missing_host_header");
            self.local_reply(if close { reply.close() } else { reply });
            return false;
        }
        let connect = self.request.method() == b"CONNECT";
        let path = self.request.path();
        if !connect || !path.is_empty() {
            let details = match path.first() {
                None => Some("missing_path_rejected"),
                Some(b'/') => None,
                Some(_) => Some("absolute_path_rejected"),
            };
            if let Some(details) = details {
                hcm.stats.downstream_rq_non_relative_path().inc();
                self.local_reply(LocalReply::new(404, "", details));
                return false;
            }
            if let Some(reply) = self.normalize_path() {
                self.local_reply(reply);
                return false;
            }
        }
        self.normalize_host();
        self.upgrade = connect || header_rules::is_upgrade(&self.request);
        if self.upgrade && self.upgrade_ignored() {
            self.upgrade = connect;
        }
        let table = hcm.routes.load();
        let facts = header_rules::mutate_request(
            &mut self.request,
            &connection.info,
            config,
            table.internal_only_headers(),
            &hcm.local,
            matches!(self.downstream.protocol(), Protocol::Http10 | Protocol::Http11),
        );
        self.info.remote_address = facts.remote;
        self.internal = facts.internal;
        if let Some(id) = self.request.bytes(&names::X_REQUEST_ID) {
            self.info.request_id = id.try_into().ok();
        }
        if let Some(status) = facts.rejected {
            hcm.stats.downstream_rq_rejected_via_ip_detection().inc();
            self.local_reply(LocalReply::new(status, "", "rejecting_because_detection_failed"));
            return false;
        }
        drop(table);
        self.refresh_route();
        // A CONNECT that no route takes is a request without a route.
        let unrouted = self.route.is_none() && self.request.method() == b"CONNECT";
        if self.upgrade && !unrouted && !self.choose_upgrade_chain() {
            hcm.stats.downstream_rq_ws_on_non_ws_route().inc();
            self.local_reply(LocalReply::new(403, "", "upgrade_failed").close());
            return false;
        }
        true
    }

    fn send_continue(&mut self) {
        let mut head = Headers::with_capacity(1);
        head.set_status(100);
        self.connection.hcm.charge(100);
        // A peer that has left is noticed by the next poll.
        let _ = self.downstream.send_informational(&head);
    }

    fn upgrade_ignored(&self) -> bool {
        let ignored = &self.connection.hcm.config.http1.ignore_http_11_upgrade;
        let Some(value) = self.request.bytes(&names::UPGRADE) else { return false };
        value.eq_ignore_ascii_case(b"h2c") || ignored.iter().any(|m| crate::matchers::string_matches(&m.0, value))
    }

    fn normalize_path(&mut self) -> Option<LocalReply> {
        use crate::path::{Normalized, PathRules, normalize};
        let hcm = &self.connection.hcm;
        let path = self.request.path();
        let failed = || Some(LocalReply::new(400, "", "path_normalization_failed").close());
        if memchr::memchr(b'#', path).is_some() {
            hcm.stats.downstream_rq_failed_path_normalization().inc();
            return failed();
        }
        let rules = PathRules {
            normalize: hcm.config.normalize_path,
            merge_slashes: hcm.config.merge_slashes,
            escaped_slashes: hcm.config.escaped_slashes_action,
        };
        match normalize(path, rules) {
            Normalized::Same => None,
            Normalized::Changed(new) => {
                self.request.set(names::PATH, HeaderValue::parse(new)?);
                None
            }
            Normalized::Rejected(seen) => {
                hcm.stats.downstream_rq_failed_path_normalization().inc();
                if let Some(seen) = seen.and_then(HeaderValue::parse) {
                    self.request.set(names::PATH, seen);
                }
                failed()
            }
            Normalized::Redirect(new) => {
                hcm.stats.downstream_rq_redirected_with_normalized_path().inc();
                let location = HeaderValue::parse(new)?;
                self.request.set(names::PATH, location.clone());
                Some(LocalReply::new(307, "", "path_normalization_failed").header(names::LOCATION, location))
            }
        }
    }

    fn normalize_host(&mut self) {
        use nuncio_config::hcm::StripPort;
        let config = &self.connection.hcm.config;
        if config.strip_port == StripPort::No && !config.strip_trailing_host_dot {
            return;
        }
        let Some(value) = self.request.get(&names::AUTHORITY).cloned() else { return };
        let mut host = value.bytes().clone();
        if config.strip_port != StripPort::No && self.request.method() != b"CONNECT" {
            let own = self.connection.info.local_address.port();
            if let Some((at, port)) = split_port(&host)
                && (config.strip_port == StripPort::Any || own == Some(port))
            {
                host.truncate(at);
            }
        }
        if config.strip_trailing_host_dot {
            match split_port(&host) {
                Some((at, _)) if host[..at].ends_with(b".") => {
                    let mut joined = BytesMut::from(&host[..at - 1]);
                    joined.extend_from_slice(&host[at..]);
                    host = joined.freeze();
                }
                None if host.ends_with(b".") => host.truncate(host.len() - 1),
                _ => {}
            }
        }
        self.request.set(names::AUTHORITY, HeaderValue::from_checked(host));
    }

    /// Chooses the route anew; filters that change what routes look at call it.
    pub fn refresh_route(&mut self) {
        let hcm = &self.connection.hcm;
        let table = hcm.routes.load();
        let random = nuncio_base::random::u64();
        let request = RouteRequest::new(&self.request, &self.info, random, &*hcm.runtime);
        self.tls_redirect = None;
        self.route = match table.route(&request, None) {
            RouteOutcome::Route(route) => Some(route),
            RouteOutcome::NotFound => None,
            RouteOutcome::TlsRedirect(_) => {
                self.tls_redirect = RouteTable::tls_location(&self.request);
                None
            }
        };
        let Some(route) = &self.route else { return };
        self.info.upstream.cluster = route.cluster().cloned();
        self.info.upstream.cluster_alt_name.clone_from(&self.info.upstream.cluster);
        let entry = route.entry();
        let host = entry.virtual_host();
        self.info.route_name = Some(entry.name().clone()).filter(|name| !name.is_empty());
        self.info.virtual_host = Some(host.name().clone());
        self.info.virtual_cluster = host.virtual_cluster(&self.request).map(|(_, name)| name.clone());
        self.info.route_metadata.clone_from(&entry.config().metadata);
        if let Some(idle) = entry.route_action().and_then(|action| action.idle_timeout) {
            self.timers.idle = idle.map(|d| (timer::sleep(d), d));
        }
        let limits = entry.route_action().and_then(|action| action.max_stream_duration);
        if let Some(max) = limits.and_then(|limits| limits.max_stream_duration) {
            let left = max.saturating_sub(self.info.start.elapsed());
            self.timers.duration = (!max.is_zero()).then(|| timer::sleep(left));
        }
    }

    /// False when the route and the connection manager do not allow the upgrade.
    fn choose_upgrade_chain(&mut self) -> bool {
        let hcm = &self.connection.hcm;
        let connect = self.request.method() == b"CONNECT";
        let kind: &[u8] = if connect { b"CONNECT" } else { self.request.bytes(&names::UPGRADE).unwrap_or_default() };
        let action = self.route.as_ref().and_then(|r| r.entry().route_action());
        let by_route = action
            .and_then(|a| a.upgrades.iter().find(|u| u.upgrade_type.as_bytes().eq_ignore_ascii_case(kind)))
            .map(|u| u.enabled);
        let by_hcm = hcm.config.upgrades.iter().find(|u| u.upgrade_type.as_bytes().eq_ignore_ascii_case(kind));
        let allowed = match (by_route, by_hcm) {
            (Some(on), _) => on,
            (None, Some(u)) => u.enabled,
            (None, None) => false,
        };
        if allowed
            && let Some((_, chain)) =
                hcm.upgrade_chains.iter().find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(kind))
        {
            self.chain = chain;
        }
        if allowed {
            hcm.stats.downstream_cx_upgrades_total().inc();
            hcm.stats.downstream_cx_upgrades_active().inc();
        }
        self.upgrade = allowed;
        allowed
    }

    /// Runs the decoder filters; false when one answered.
    async fn decode_headers(&mut self) -> bool {
        let chain = self.chain;
        if chain.entries.is_empty() {
            return true;
        }
        self.slots.resize_with(chain.entries.len(), Slot::default);
        if !chain.any.decode_headers {
            return true;
        }
        for (i, entry) in chain.entries.iter().enumerate() {
            if !entry.hooks.decode_headers {
                continue;
            }
            let end = self.request_complete && self.buffered.is_empty();
            let mut view = StreamView { request: &mut self.request, info: &mut self.info };
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
                    HeadersAction::Wait(mut future) => {
                        let resume = poll_fn(|cx| match self.poll_abort(cx) {
                            Poll::Ready(abort) => Poll::Ready(Err(abort)),
                            Poll::Pending => future.as_mut().poll(cx).map(Ok),
                        })
                        .await;
                        match resume {
                            Ok(resume) => {
                                let mut view = StreamView { request: &mut self.request, info: &mut self.info };
                                action = resume(&mut view);
                            }
                            Err(abort) => {
                                self.abort = Some(abort);
                                return false;
                            }
                        }
                    }
                }
            }
        }
        true
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
                // The chain outlives the stream: it belongs to the connection manager.
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
            self.info.request_complete = Some(Instant::now());
        }
        if self.chain.any.decode_body {
            self.decode_body(&mut frame);
        }
        Poll::Ready(Ok(frame))
    }

    fn decode_body(&mut self, frame: &mut Frame) {
        let chain = self.chain;
        for (entry, slot) in chain.entries.iter().zip(self.slots.iter_mut()).filter(|(e, _)| e.hooks.decode_body) {
            let mut view = StreamView { request: &mut self.request, info: &mut self.info };
            match frame {
                Frame::Data(data, end) => {
                    if let DataAction::Respond(reply) = entry.filter.decode_data(slot, &mut view, data, *end) {
                        self.local_reply(reply);
                        return;
                    }
                }
                Frame::Trailers(trailers) => entry.filter.decode_trailers(slot, &mut view, trailers),
            }
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
        if chain.any.encode_headers {
            for (entry, slot) in chain.entries.iter().zip(self.slots.iter_mut()).rev() {
                if !entry.hooks.encode_headers {
                    continue;
                }
                let mut view = StreamView { request: &mut self.request, info: &mut self.info };
                let action = entry.filter.encode_headers(slot, &mut view, &mut response, end_stream);
                if let DataAction::Respond(reply) = action {
                    self.local_reply(reply);
                    return;
                }
            }
        }
        let connection = self.connection;
        let hcm = &connection.hcm;
        header_rules::mutate_response(&mut response, &self.request, &hcm.config, &hcm.server_name);
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
        self.info.response_first_tx = Some(Instant::now());
        if self.head_request {
            end_stream = true;
        }
        self.touch();
        if let Err(error) = self.downstream.send_headers(&response, end_stream) {
            self.abort = Some(Abort::Downstream(error));
        }
        self.response = response;
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
        if self.chain.any.encode_body {
            for (entry, slot) in self.chain.entries.iter().zip(self.slots.iter_mut()).rev() {
                if entry.hooks.encode_body {
                    let mut view = StreamView { request: &mut self.request, info: &mut self.info };
                    entry.filter.encode_data(slot, &mut view, &mut data, end_stream);
                }
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
            for (entry, slot) in self.chain.entries.iter().zip(self.slots.iter_mut()).rev() {
                if entry.hooks.encode_body {
                    let mut view = StreamView { request: &mut self.request, info: &mut self.info };
                    entry.filter.encode_trailers(slot, &mut view, &mut trailers);
                }
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
        self.info.response_last_tx = Some(Instant::now());
    }

    /// Writes what is queued; ready when all is written.
    pub fn poll_response_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Abort>> {
        self.downstream.poll_flush(cx).map_err(Abort::Downstream)
    }

    /// Ends a response that has begun and cannot go on: the peer sees an incomplete message.
    pub fn reset(&mut self, reason: ResetReason) {
        if !self.response_complete {
            // Envoy counts the end of a stream that it resets itself as the peer's too.
            self.connection.hcm.stats.downstream_rq_rx_reset().inc();
            self.rx_reset = true;
            self.connection.hcm.stats.downstream_rq_tx_reset().inc();
            self.downstream.reset(reason);
            self.response_complete = true;
        }
    }

    /// Answers with a reply made here. A response that has begun is reset instead.
    pub fn local_reply(&mut self, reply: LocalReply) {
        self.reply(reply, false);
    }

    /// As [`ActiveStream::local_reply`], with the route's changes to response headers applied.
    pub fn routed_reply(&mut self, reply: LocalReply) {
        self.reply(reply, true);
    }

    fn reply(&mut self, reply: LocalReply, routed: bool) {
        self.info.flags.insert(reply.flags);
        self.info.response_code_details = Some(reply.details.clone());
        self.connection.set_delay_close(true);
        if self.response_started {
            self.reset(ResetReason::LocalReset);
            return;
        }
        if reply.close {
            self.downstream.close_after();
        }
        let mut response = Headers::with_capacity(6 + reply.headers.len());
        response.set_status(reply.status);
        if let Some(kind) = reply.content_type.filter(|kind| kind.as_bytes() != b"text/plain") {
            response.append(names::CONTENT_TYPE, kind);
        }
        for (name, value) in reply.headers {
            response.append(name, value);
        }
        if routed && let Some(route) = &self.route {
            let cx = FormatContext { request: Some(&self.request), ..FormatContext::new(&self.info) };
            route.finalize_response_headers(&mut response, &cx);
            let forwards = self.info.attempt_count > 0;
            if forwards && route.entry().virtual_host().config().include_attempt_count_in_response {
                response.set(names::X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(u64::from(self.info.attempt_count)));
            }
        }
        let mut body = reply.body.clone();
        let mut content_type = HeaderValue::from_static("text/plain");
        let rules = &self.connection.hcm.local_reply;
        let mut own_type = true;
        if !rules.is_empty() {
            let before = response.get(&names::CONTENT_TYPE).cloned();
            self.info.response_code = reply.status;
            if let Some(kind) = rules.apply(&mut response, &mut body, &self.request, &mut self.info) {
                content_type = kind;
            }
            // A body that was made anew has its format's type, unless the mapper's headers say otherwise.
            own_type = body == reply.body || before.as_ref() != response.get(&names::CONTENT_TYPE);
        }
        // Formats of the access log do not see it.
        self.info.local_reply_body = None;
        if self.grpc {
            return self.grpc_local_reply(response, body, &content_type, reply.grpc_status);
        }
        if body.is_empty() {
            response.remove(&names::CONTENT_LENGTH);
            response.remove(&names::CONTENT_TYPE);
        } else {
            response.set(names::CONTENT_LENGTH, HeaderValue::from(body.len() as u64));
            if !own_type || !response.contains(&names::CONTENT_TYPE) {
                response.set(names::CONTENT_TYPE, content_type);
            }
        }
        let body = if self.head_request { Bytes::new() } else { body };
        self.send_response_headers(response, body.is_empty());
        if !body.is_empty() {
            self.send_response_data(body, true);
        }
    }

    /// gRPC clients get a trailers-only response.
    fn grpc_local_reply(
        &mut self,
        mut response: Headers,
        mut body: Bytes,
        content_type: &HeaderValue,
        grpc_status: Option<u32>,
    ) {
        let status = grpc_status.unwrap_or_else(|| grpc_status_of_http(response.status()));
        response.set_status(200);
        response.set(names::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if response.bytes(&names::GRPC_STATUS).is_none_or(<[u8]>::is_empty) {
            response.set(names::GRPC_STATUS, HeaderValue::from(u64::from(status)));
        }
        if !body.is_empty() && !self.head_request {
            if content_type.as_bytes() == b"application/json" && body.ends_with(b"\n") {
                body.truncate(body.len() - 1);
            }
            response.set(names::GRPC_MESSAGE, HeaderValue::from_checked(percent_encode_grpc(&body)));
        }
        response.remove(&names::CONTENT_LENGTH);
        self.send_response_headers(response, true);
    }

    fn answer_malformed(&mut self, error: &StreamError) {
        let hcm = &self.connection.hcm;
        hcm.stats.downstream_cx_protocol_error().inc();
        if error.status != 0 && !self.response_started {
            // A reset counts it itself.
            hcm.stats.downstream_rq_rx_reset().inc();
            self.rx_reset = true;
        }
        self.info.flags.insert(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
        let body = crate::local_reply::reason_phrase(error.status);
        if error.status == 0 {
            self.info.response_code_details = Some(error.details.into());
            self.reset(ResetReason::LocalReset);
            return;
        }
        self.local_reply(LocalReply::new(error.status, body, error.details).close());
    }

    fn answer_abort(&mut self, abort: Abort) {
        let stats = &self.connection.hcm.stats;
        match abort {
            Abort::Downstream(error) => {
                stats.downstream_rq_rx_reset().inc();
                self.rx_reset = true;
                let h2 = self.downstream.protocol() == Protocol::Http2 && error.reason == ResetReason::RemoteReset;
                let (flag, details) = if error.details.is_empty() {
                    if h2 {
                        (ResponseFlags::DOWNSTREAM_REMOTE_RESET, "http2.remote_reset")
                    } else {
                        (ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION, "downstream_remote_disconnect")
                    }
                } else {
                    (ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, error.details)
                };
                if self.protocol() != Protocol::Http2 {
                    self.connection.set_left_active();
                }
                self.info.flags.insert(flag);
                self.info.response_code_details = Some(details.into());
                self.downstream.reset(ResetReason::LocalReset);
                self.response_complete = true;
            }
            Abort::Malformed(error) => self.answer_malformed(&error),
            Abort::IdleTimeout => {
                stats.downstream_rq_idle_timeout().inc();
                let status = if self.request_complete { 504 } else { 408 };
                self.local_reply(
                    LocalReply::new(status, "stream timeout", "stream_idle_timeout")
                        .flags(ResponseFlags::STREAM_IDLE_TIMEOUT)
                        .close_if(status == 408),
                );
            }
            Abort::RequestTimeout => {
                stats.downstream_rq_timeout().inc();
                self.local_reply(LocalReply::new(408, "request timeout", "request_overall_timeout").close());
            }
            Abort::MaxDuration => {
                stats.downstream_rq_max_duration_reached().inc();
                let status = if self.request_complete { 504 } else { 408 };
                self.local_reply(
                    LocalReply::new(status, "downstream duration timeout", "max_duration_timeout")
                        .close_if(status == 408),
                );
            }
        }
    }

    /// Answers what aborted the stream, writes what is queued, counts and logs.
    async fn finish(mut self) {
        if let Some(abort) = self.abort.take() {
            self.answer_abort(abort);
        }
        if !self.response_complete {
            // The terminal filter ended without an end of the response: nothing more will come.
            self.reset(ResetReason::LocalReset);
        }
        if !self.request_complete && self.response_started {
            let stats = &self.connection.hcm.stats;
            stats.downstream_rq_response_before_rq_complete().inc();
            // Envoy counts the end of such a request as a reset of the peer.
            if !self.rx_reset {
                stats.downstream_rq_rx_reset().inc();
            }
        }
        let flush = poll_fn(|cx| self.downstream.poll_flush(cx));
        let limit = self.connection.hcm.config.stream_flush_timeout;
        let flushed = match limit {
            Some(limit) => timer::timeout(limit, flush).await.unwrap_or(Err(StreamError::new(ResetReason::LocalReset))),
            None => flush.await,
        };
        if flushed.is_err() {
            self.downstream.reset(ResetReason::LocalReset);
            if self.info.flags.is_empty() {
                self.info.flags.insert(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
            }
        }
        self.complete();
    }

    fn complete(&mut self) {
        let connection = self.connection;
        let hcm = &connection.hcm;
        if self.chain.any.complete {
            for (entry, slot) in self.chain.entries.iter().zip(self.slots.iter_mut()) {
                if entry.hooks.complete {
                    let mut view = StreamView { request: &mut self.request, info: &mut self.info };
                    entry.filter.complete(slot, &mut view);
                }
            }
        }
        let now = Instant::now();
        self.info.complete = Some(now);
        self.info.meter = self.downstream.bytes_meter();
        let elapsed = now.duration_since(self.info.start);
        hcm.stats.downstream_rq_time().record(elapsed.as_millis() as u64);
        if !hcm.access_logs.is_empty() {
            let cx = FormatContext {
                request: Some(&self.request),
                response: Some(&self.response),
                trailers: Some(&self.response_trailers),
                info: &self.info,
                log_type: AccessLogType::DownstreamEnd,
            };
            hcm.access_logs.log(&cx);
        }
    }
}

impl Drop for ActiveStream<'_> {
    fn drop(&mut self) {
        let stats = &self.connection.hcm.stats;
        stats.downstream_rq_active().dec();
        if self.upgrade {
            stats.downstream_cx_upgrades_active().dec();
        }
    }
}

fn is_100_continue(value: &[u8]) -> bool {
    value.eq_ignore_ascii_case(b"100-continue")
}

/// Envoy's `Grpc::Common::isGrpcRequestHeaders`.
fn is_grpc(headers: &Headers) -> bool {
    let Some(kind) = headers.bytes(&names::CONTENT_TYPE) else { return false };
    kind.strip_prefix(b"application/grpc").is_some_and(|rest| rest.is_empty() || rest[0] == b'+')
}

/// Position of the `:` before a port, and the port.
fn split_port(host: &[u8]) -> Option<(usize, u16)> {
    let at = memchr::memrchr(b':', host)?;
    // The colons of an IPv6 literal are inside brackets.
    if memchr::memchr(b']', &host[at..]).is_some() {
        return None;
    }
    let port = std::str::from_utf8(&host[at + 1..]).ok()?.parse().ok()?;
    Some((at, port))
}

/// gRPC's percent encoding of a message: printable ASCII but `%` stays.
fn percent_encode_grpc(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len());
    for &b in message {
        if (0x20..0x7f).contains(&b) && b != b'%' {
            out.extend_from_slice(&[b]);
        } else {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            out.extend_from_slice(&[b'%', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
        }
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_split_off_a_host_but_not_off_an_ipv6_literal() {
        assert_eq!(split_port(b"a.example:80"), Some((9, 80)));
        assert_eq!(split_port(b"[::1]:443"), Some((5, 443)));
        assert_eq!(split_port(b"[::1]"), None);
        assert_eq!(split_port(b"a.example"), None);
        assert_eq!(split_port(b"a:b"), None);
    }

    #[test]
    fn grpc_messages_are_percent_encoded() {
        assert_eq!(&percent_encode_grpc(b"a b%\n")[..], b"a b%25%0A");
    }

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
