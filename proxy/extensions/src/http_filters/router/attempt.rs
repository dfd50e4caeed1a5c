//! One try: a host, a connection, the request out and the response back.

use super::{Request, RouterConfig, charge, charge_retried, flag_of, granted, lb_context, service_time};
use bytes::Bytes;
use nuncio_base::timer::{self, Sleep};
use nuncio_http::active_stream::{Abort, ActiveStream};
use nuncio_http::codec::{Frame, ResetReason, StreamError};
use nuncio_http::formatter::FormatContext;
use nuncio_http::headers::{HeaderValue, Headers, names};
use nuncio_http::local_reply::LocalReply;
use nuncio_http::route::rewrite::update_authority;
use nuncio_http::stream_info::ResponseFlags;
use nuncio_net::proxy_protocol_header::proxy_protocol_header;
use nuncio_upstream::{
    Cluster, Host, OutlierResult, PoolFailure, PooledStream, StreamOptions, http_stream, raw_stream,
};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// The request body as far as it was read, kept while the request may be tried again.
pub(crate) struct Replay {
    frames: Vec<Frame>,
    size: usize,
    limit: usize,
    abandoned: bool,
}

impl Replay {
    pub(crate) fn new(limit: usize) -> Replay {
        Replay { frames: Vec::new(), size: 0, limit, abandoned: false }
    }

    /// A body over the limit is streamed and then not retried.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    fn keep(&mut self, frame: &Frame) -> bool {
        if self.abandoned {
            return true;
        }
        let copy = match frame {
            Frame::Data(data, end) => {
                self.size += data.len();
                Frame::Data(data.clone(), *end)
            }
            Frame::Trailers(t) => Frame::Trailers(t.clone()),
        };
        if self.size > self.limit {
            self.abandoned = true;
            self.frames = Vec::new();
            return false;
        }
        self.frames.push(copy);
        true
    }
}

/// What came of a try.
pub(crate) enum Outcome {
    /// The response was sent, or the stream has ended otherwise.
    Done,
    /// Downstream ended the stream.
    Abort(Abort),
    /// The load balancer had no host.
    NoHost,
    /// The route's timeout.
    GlobalTimeout,
    /// `max_stream_duration` of the route.
    MaxDuration,
    /// The response asked for another try, which is granted.
    Retry,
    /// It failed.
    Failed(Failure),
}

/// A try that failed without, or in the middle of, a response.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) reason: ResetReason,
    pub(crate) transport: Option<Box<str>>,
    pub(crate) request_sent: bool,
    pub(crate) per_try_timeout: bool,
    pub(crate) idle: bool,
}

impl Failure {
    fn of(error: &StreamError, request_sent: bool) -> Failure {
        Failure { reason: error.reason, transport: None, request_sent, per_try_timeout: false, idle: false }
    }

    /// Answers downstream, or resets a response that has begun.
    pub(crate) fn answer(self, stream: &mut ActiveStream<'_>, request: &Request) {
        let started = stream.response_started();
        if self.per_try_timeout {
            charge(request, 504);
            let details = if self.idle { "upstream_per_try_idle_timeout" } else { "upstream_per_try_timeout" };
            let flags =
                if self.idle { ResponseFlags::STREAM_IDLE_TIMEOUT } else { ResponseFlags::UPSTREAM_REQUEST_TIMEOUT };
            stream.routed_reply(LocalReply::new(504, "upstream request timeout", details).flags(flags));
            return;
        }
        let mut inner = self.reason.as_str().replace(' ', "_");
        if let Some(text) = &self.transport {
            inner.push('|');
            inner.push_str(&text.replace(' ', "_"));
        }
        let when = if started { "after" } else { "before" };
        let details = format!("upstream_reset_{when}_response_started{{{inner}}}");
        // Envoy counts it only for streams whose success it waits to learn: gRPC.
        if started && stream.is_grpc() {
            stream.connection.hcm.stats.rq_reset_after_downstream_response_started().inc();
        }
        let overflow = self.reason == ResetReason::Overflow;
        let status = if self.reason == ResetReason::ProtocolError { 502 } else { 503 };
        let mut reply = LocalReply::new(status, "", details).flags(flag_of(self.reason));
        let retried = if stream.info.attempt_count > 1 { "retried and the latest " } else { "" };
        reply.body = Bytes::from(format!(
            "upstream connect error or disconnect/reset before headers. {retried}reset reason: {}",
            self.reason.as_str()
        ));
        if overflow {
            reply = reply.header(names::X_ENVOY_OVERLOADED, HeaderValue::from_static("true"));
        }
        if !started {
            charge(request, status);
        }
        stream.routed_reply(reply);
    }
}

/// A try in progress.
pub(crate) struct Attempt<'r> {
    upstream: PooledStream,
    host: Arc<Host>,
    per_try: Option<Sleep>,
    per_try_idle: Option<(Sleep, Duration)>,
    /// Frames of the replay that were sent on this connection.
    replayed: usize,
    request_sent: bool,
    /// The request waits for the upstream to take more.
    request_paused: bool,
    /// The response waits for downstream to take more.
    response_paused: bool,
    /// The head of the response has arrived.
    answered: bool,
    /// And it is the whole response.
    head_only: bool,
    request: &'r mut Request,
}

/// What the phase before the response's head ends with.
enum Head {
    Response(Headers, bool),
    Outcome(Outcome),
}

impl<'r> Attempt<'r> {
    /// Runs one try to its end.
    pub(crate) async fn run(
        config: &RouterConfig,
        stream: &mut ActiveStream<'_>,
        request: &'r mut Request,
        number: u32,
    ) -> Outcome {
        let Some(host) = choose_host(request) else { return Outcome::NoHost };
        note_host(stream, request, &host, !config.suppress_envoy_headers);
        let mut per_try = request.timeouts.per_try.map(timer::sleep);
        let started = Instant::now();
        let upstream = match connect(stream, request, &host, &mut per_try).await {
            Ok(upstream) => upstream,
            Err(outcome) => {
                report(&host, &outcome, false);
                return outcome;
            }
        };
        if let Some(monitor) = host.outlier_monitor() {
            monitor.put_result(OutlierResult::ConnectSuccess, None);
        }
        let info = &mut stream.info.upstream;
        info.pool_ready = Some(started.elapsed());
        if info.hosts_attempted.is_empty() {
            info.hosts_attempted.push(host.address_text.clone());
        }
        info.connection = Some(upstream.connection().clone());
        info.connection_ids_attempted.push(upstream.connection().id);
        info.protocol = upstream.http_protocol();
        let per_try_idle = request.timeouts.per_try_idle.map(|d| (timer::sleep(d), d));
        let mut attempt = Attempt {
            upstream,
            host,
            per_try,
            per_try_idle,
            replayed: 0,
            request_sent: false,
            request_paused: false,
            response_paused: false,
            answered: false,
            head_only: false,
            request,
        };
        let outcome = attempt.exchange(config, stream, number).await;
        report(&attempt.host, &outcome, attempt.answered);
        stream.info.upstream.meter = attempt.upstream.bytes_meter();
        // A whole response that is thrown away for another try leaves its connection usable.
        let usable = matches!(outcome, Outcome::Done) || (matches!(outcome, Outcome::Retry) && attempt.head_only);
        if !usable {
            attempt.upstream.reset(ResetReason::LocalReset);
        }
        outcome
    }

    async fn exchange(&mut self, config: &RouterConfig, stream: &mut ActiveStream<'_>, number: u32) -> Outcome {
        let end = stream.request_complete() && self.replay_is_empty();
        stream.info.upstream.first_tx = Some(Instant::now());
        if let Err(error) = self.upstream.send_headers(&stream.request, end) {
            return Outcome::Failed(Failure::of(&error, false));
        }
        if end {
            self.sent(stream);
        }
        let (head, end) = loop {
            match poll_fn(|cx| self.poll_head(stream, cx)).await {
                Head::Outcome(outcome) => return outcome,
                Head::Response(head, _) if (100..200).contains(&head.status()) && head.status() != 101 => {
                    self.request.cluster.stats.responses().codes.count(head.status());
                    if head.status() == 100 && stream.connection.hcm.config.proxy_100_continue {
                        stream.send_informational(&head);
                    }
                }
                Head::Response(head, end) => break (head, end),
            }
        };
        if let Some(outcome) = self.on_head(config, stream, head, end, number) {
            return outcome;
        }
        let outcome = poll_fn(|cx| self.poll_body(stream, cx)).await;
        let now = Instant::now();
        stream.info.upstream.last_rx = Some(now);
        if matches!(outcome, Outcome::Done) {
            self.complete(stream, now);
        }
        outcome
    }

    fn replay_is_empty(&self) -> bool {
        self.request.replay.as_ref().is_none_or(|r| r.frames.is_empty())
    }

    fn sent(&mut self, stream: &mut ActiveStream<'_>) {
        self.request_sent = true;
        let now = Instant::now();
        stream.info.upstream.last_tx = Some(now);
        if self.request.timeout_at.is_none() {
            self.request.timeout_at = self.request.timeouts.global.map(timer::sleep);
        }
    }

    /// Moves the request body upstream as far as both sides allow.
    fn poll_request(&mut self, stream: &mut ActiveStream<'_>, cx: &mut Context<'_>) -> Poll<Outcome> {
        while !self.request_sent {
            match self.upstream.poll_capacity(cx) {
                Poll::Ready(Ok(())) => self.pause_request(stream, false),
                Poll::Ready(Err(error)) => return Poll::Ready(self.failed(&error)),
                Poll::Pending => {
                    self.pause_request(stream, true);
                    break;
                }
            }
            let frame = match self.next_replayed() {
                Some(frame) => frame,
                None => match stream.poll_request_frame(cx) {
                    Poll::Ready(Ok(frame)) => {
                        if stream.is_over() {
                            return Poll::Ready(Outcome::Done);
                        }
                        if let Some(replay) = &mut self.request.replay
                            && !replay.keep(&frame)
                        {
                            self.request.cluster.stats.retry_or_shadow_abandoned().inc();
                        } else {
                            self.replayed += 1;
                        }
                        frame
                    }
                    Poll::Ready(Err(abort)) => return Poll::Ready(Outcome::Abort(abort)),
                    Poll::Pending => break,
                },
            };
            let end = frame.is_end();
            let sent = match frame {
                Frame::Data(data, end) => self.upstream.send_data(data, end),
                Frame::Trailers(trailers) => self.upstream.send_trailers(&trailers),
            };
            if let Err(error) = sent {
                return Poll::Ready(self.failed(&error));
            }
            if end {
                self.sent(stream);
            }
        }
        if let Poll::Ready(Err(error)) = self.upstream.poll_flush(cx) {
            // The response may be there although the request could not be written: reading decides.
            if !matches!(error.reason, ResetReason::ConnectionTermination | ResetReason::RemoteReset) {
                return Poll::Ready(self.failed(&error));
            }
        }
        Poll::Pending
    }

    /// Counts the beginning and the end of waits for the upstream.
    #[inline]
    fn pause_request(&mut self, stream: &ActiveStream<'_>, paused: bool) {
        if std::mem::replace(&mut self.request_paused, paused) == paused {
            return;
        }
        let (downstream, upstream) = (&stream.connection.hcm.stats, &self.request.cluster.stats);
        if paused {
            downstream.downstream_flow_control_paused_reading_total().inc();
            upstream.upstream_flow_control_backed_up_total().inc();
        } else {
            downstream.downstream_flow_control_resumed_reading_total().inc();
            upstream.upstream_flow_control_drained_total().inc();
        }
    }

    /// Counts the beginning and the end of waits for downstream.
    #[inline]
    fn pause_response(&mut self, paused: bool) {
        if std::mem::replace(&mut self.response_paused, paused) == paused {
            return;
        }
        let upstream = &self.request.cluster.stats;
        if paused {
            upstream.upstream_flow_control_paused_reading_total().inc();
        } else {
            upstream.upstream_flow_control_resumed_reading_total().inc();
        }
    }

    fn next_replayed(&mut self) -> Option<Frame> {
        let frame = self.request.replay.as_ref()?.frames.get(self.replayed)?;
        self.replayed += 1;
        Some(match frame {
            Frame::Data(data, end) => Frame::Data(data.clone(), *end),
            Frame::Trailers(t) => Frame::Trailers(t.clone()),
        })
    }

    fn failed(&self, error: &StreamError) -> Outcome {
        Outcome::Failed(Failure::of(error, self.request_sent))
    }

    fn poll_timers(&mut self, stream: &mut ActiveStream<'_>, cx: &mut Context<'_>) -> Poll<Outcome> {
        if let Poll::Ready(abort) = stream.poll_abort(cx) {
            return Poll::Ready(Outcome::Abort(abort));
        }
        if let Some(outcome) = poll_request_timers(self.request, cx) {
            return Poll::Ready(outcome);
        }
        if let Some(sleep) = &mut self.per_try
            && Pin::new(sleep).poll(cx).is_ready()
        {
            self.request.cluster.stats.upstream_rq_per_try_timeout().inc();
            self.host.stats.rq_timeout.fetch_add(1, Relaxed);
            return Poll::Ready(self.try_timed_out(false));
        }
        if let Some((sleep, _)) = &mut self.per_try_idle
            && Pin::new(sleep).poll(cx).is_ready()
        {
            self.request.cluster.stats.upstream_rq_per_try_idle_timeout().inc();
            return Poll::Ready(self.try_timed_out(true));
        }
        Poll::Pending
    }

    fn try_timed_out(&self, idle: bool) -> Outcome {
        let request_sent = self.request_sent;
        Outcome::Failed(Failure {
            reason: ResetReason::LocalReset,
            transport: None,
            request_sent,
            per_try_timeout: true,
            idle,
        })
    }

    fn poll_head(&mut self, stream: &mut ActiveStream<'_>, cx: &mut Context<'_>) -> Poll<Head> {
        if let Poll::Ready(outcome) = self.poll_request(stream, cx) {
            return Poll::Ready(Head::Outcome(outcome));
        }
        match self.upstream.poll_headers(cx) {
            Poll::Ready(Ok((head, end))) => return Poll::Ready(Head::Response(head, end)),
            Poll::Ready(Err(error)) => return Poll::Ready(Head::Outcome(self.failed(&error))),
            Poll::Pending => {}
        }
        self.poll_timers(stream, cx).map(Head::Outcome)
    }

    /// The response's head: retried, or passed on.
    fn on_head(
        &mut self,
        config: &RouterConfig,
        stream: &mut ActiveStream<'_>,
        mut head: Headers,
        end: bool,
        number: u32,
    ) -> Option<Outcome> {
        let now = Instant::now();
        stream.info.upstream.first_rx = Some(now);
        self.answered = true;
        self.head_only = end;
        let status = head.status();
        if let Some(monitor) = self.host.outlier_monitor() {
            monitor.put_code(outcome_code(&head, status, stream.is_grpc()));
        }
        if let Some(retry) = &mut self.request.retry {
            let verdict = retry.on_response(&head);
            if granted(stream, self.request, verdict) {
                charge_retried(self.request, status);
                return Some(Outcome::Retry);
            }
        }
        // From here on the response belongs to downstream: the body need not be kept any more.
        self.request.replay = None;
        self.per_try = None;
        // A 2xx to an upgrade is no upgrade and no answer either: Envoy passes on its status alone.
        let mut failed_upgrade = false;
        if stream.is_upgrade() {
            let connect = stream.request.method() == b"CONNECT";
            failed_upgrade = status / 100 == 2 && !connect;
            if failed_upgrade {
                stream.info.response_code_details = Some("websocket_handshake_unsuccessful".into());
                head.remove(&names::CONTENT_LENGTH);
            }
            if status == 101 || (connect && status / 100 == 2) {
                self.request.timeout_at = None;
            }
        }
        if !failed_upgrade {
            charge(self.request, status);
        }
        if !config.suppress_envoy_headers && !stream.is_upgrade() && stream.info.request_complete.is_some() {
            let ms = service_time(stream, now);
            head.set(names::X_ENVOY_UPSTREAM_SERVICE_TIME, service_time_value(ms));
        }
        if self.request.route.entry().virtual_host().config().include_attempt_count_in_response {
            head.set(names::X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(u64::from(number)));
        }
        for cookie in self.request.set_cookie.drain(..) {
            head.append(names::SET_COOKIE, cookie);
        }
        stream.info.response_code = status;
        if stream.info.response_code_details.is_none() {
            stream.info.response_code_details = Some("via_upstream".into());
        }
        let cx = FormatContext { request: Some(&stream.request), ..FormatContext::new(&stream.info) };
        self.request.route.finalize_response_headers(&mut head, &cx);
        stream.send_response_headers(head, end || failed_upgrade);
        if end || failed_upgrade {
            stream.info.upstream.last_rx = Some(now);
            if failed_upgrade && !end {
                self.upstream.reset(ResetReason::LocalReset);
            }
            self.complete(stream, now);
            // The rest of a request that was answered early is not wanted.
            if !self.request_sent {
                self.upstream.reset(ResetReason::LocalReset);
            }
            return Some(Outcome::Done);
        }
        None
    }

    /// Moves bodies both ways until the response has ended.
    fn poll_body(&mut self, stream: &mut ActiveStream<'_>, cx: &mut Context<'_>) -> Poll<Outcome> {
        if let Poll::Ready(outcome) = self.poll_request(stream, cx) {
            return Poll::Ready(outcome);
        }
        loop {
            match stream.poll_response_capacity(cx) {
                Poll::Ready(Ok(())) => self.pause_response(false),
                Poll::Ready(Err(abort)) => return Poll::Ready(Outcome::Abort(abort)),
                Poll::Pending => {
                    self.pause_response(true);
                    break;
                }
            }
            match self.upstream.poll_frame(cx) {
                Poll::Ready(Ok(frame)) => {
                    let end = frame.is_end();
                    if let Some((sleep, delay)) = &mut self.per_try_idle {
                        sleep.reset(*delay);
                    }
                    match frame {
                        Frame::Data(data, end) => stream.send_response_data(data, end),
                        Frame::Trailers(trailers) => stream.send_response_trailers(trailers),
                    }
                    if end || stream.is_over() {
                        if !self.request_sent {
                            self.upstream.reset(ResetReason::LocalReset);
                        }
                        return Poll::Ready(Outcome::Done);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(self.failed(&error)),
                Poll::Pending => break,
            }
        }
        if let Poll::Ready(Err(abort)) = stream.poll_response_flush(cx) {
            return Poll::Ready(Outcome::Abort(abort));
        }
        self.poll_timers(stream, cx)
    }

    fn complete(&mut self, stream: &ActiveStream<'_>, now: Instant) {
        let ms = service_time(stream, now);
        let stats = &self.request.cluster.stats;
        stats.responses().time.upstream_rq_time().record(ms);
        match self.request.internal {
            true => stats.internal().time.upstream_rq_time().record(ms),
            false => stats.external().time.upstream_rq_time().record(ms),
        }
    }
}

/// The code that outlier detection counts: gRPC errors in the head as the HTTP code that they stand for.
fn outcome_code(head: &Headers, status: u16, grpc: bool) -> u16 {
    if !grpc {
        return status;
    }
    let code = head.get(&names::GRPC_STATUS).and_then(HeaderValue::to_str).and_then(|text| text.parse().ok());
    code.map_or(status, grpc_to_http)
}

/// The HTTP code that a gRPC status stands for.
fn grpc_to_http(code: u32) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// Tells outlier detection of a try that ended without a response, or broke off in one.
fn report(host: &Host, outcome: &Outcome, answered: bool) {
    let Some(monitor) = host.outlier_monitor() else { return };
    match outcome {
        // A full circuit breaker says nothing about the host.
        Outcome::Failed(failure) if failure.reason == ResetReason::Overflow => {}
        Outcome::Failed(failure) if failure.per_try_timeout => monitor.put_result(OutlierResult::Timeout, Some(504)),
        Outcome::Failed(_) => monitor.put_result(OutlierResult::ConnectFailed, None),
        Outcome::GlobalTimeout if !answered => monitor.put_result(OutlierResult::Timeout, Some(504)),
        _ => {}
    }
}

/// Timers that run over all tries.
fn poll_request_timers(request: &mut Request, cx: &mut Context<'_>) -> Option<Outcome> {
    if let Some(sleep) = &mut request.timeout_at
        && Pin::new(sleep).poll(cx).is_ready()
    {
        return Some(Outcome::GlobalTimeout);
    }
    if let Some(sleep) = &mut request.duration_at
        && Pin::new(sleep).poll(cx).is_ready()
    {
        return Some(Outcome::MaxDuration);
    }
    None
}

fn choose_host(request: &Request) -> Option<Arc<Host>> {
    let context = lb_context(request);
    let avoid = request.retry.as_ref().filter(|r| r.avoids_previous_hosts() && !request.hosts.is_empty());
    let Some(retry) = avoid else { return request.cluster.choose_host(&context) };
    let tried = |host: &Host| request.hosts.iter().any(|h| std::ptr::eq(&**h, host));
    let context = nuncio_upstream::LbContext {
        should_select_another_host: Some(&tried),
        host_selection_retry_count: retry.host_selection_attempts(),
        ..context
    };
    request.cluster.choose_host(&context)
}

fn note_host(stream: &mut ActiveStream<'_>, request: &mut Request, host: &Arc<Host>, keep_original: bool) {
    let info = &mut stream.info.upstream;
    info.host = Some(host.address_text.clone());
    info.host_name = Some(host.hostname.clone());
    info.host_metadata = host.metadata.clone();
    if request.retry.is_some() || !info.hosts_attempted.is_empty() {
        info.hosts_attempted.push(host.address_text.clone());
    }
    request.hosts.push(host.clone());
    if let Some(append) = request.route.auto_host_rewrite()
        && !host.hostname.is_empty()
        && let Some(name) = HeaderValue::parse(host.hostname.to_string())
    {
        update_authority(&mut stream.request, name, append, keep_original);
    }
}

async fn connect(
    stream: &mut ActiveStream<'_>,
    request: &mut Request,
    host: &Arc<Host>,
    per_try: &mut Option<Sleep>,
) -> Result<PooledStream, Outcome> {
    let named = stream.request.get(request.cluster.auto_sni_header()).filter(|value| !value.as_bytes().is_empty());
    let authority = named.or_else(|| stream.request.get(&names::AUTHORITY)).cloned();
    let options = StreamOptions {
        priority: request.priority,
        downstream_protocol: Some(stream.protocol()),
        authority: authority.as_ref().and_then(HeaderValue::to_str),
        downstream_connection: stream.connection.info.id,
    };
    let cluster = request.cluster.clone();
    let tunnel = tunnel(stream, request);
    let mut checkout = pin!(checkout(&cluster, host, &options, tunnel));
    let checked = poll_fn(|cx| {
        if let Poll::Ready(result) = checkout.as_mut().poll(cx) {
            return Poll::Ready(Ok(result));
        }
        if let Poll::Ready(abort) = stream.poll_abort(cx) {
            return Poll::Ready(Err(Outcome::Abort(abort)));
        }
        if request.timeout_at.is_none() && stream.request_complete() {
            request.timeout_at = request.timeouts.global.map(timer::sleep);
        }
        if let Some(outcome) = poll_request_timers(request, cx) {
            return Poll::Ready(Err(outcome));
        }
        if let Some(sleep) = per_try
            && Pin::new(sleep).poll(cx).is_ready()
        {
            request.cluster.stats.upstream_rq_per_try_timeout().inc();
            let reason = ResetReason::LocalReset;
            let failure = Failure { reason, transport: None, request_sent: false, per_try_timeout: true, idle: false };
            return Poll::Ready(Err(Outcome::Failed(failure)));
        }
        Poll::Pending
    })
    .await?;
    checked.map_err(|failure| {
        stream.info.upstream.transport_failure_reason.clone_from(&failure.transport_failure_reason);
        if failure.host.is_none() {
            // The request never got as far as a host: it could not even wait for one.
            stream.info.upstream.host = None;
            stream.info.upstream.host_name = None;
        }
        Outcome::Failed(Failure {
            reason: failure.reason,
            transport: failure.transport_failure_reason,
            request_sent: false,
            per_try_timeout: false,
            idle: false,
        })
    })
}

async fn checkout(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    options: &StreamOptions<'_>,
    tunnel: Option<Bytes>,
) -> Result<PooledStream, PoolFailure> {
    match tunnel {
        None => http_stream(cluster, host, options).await,
        // Boxed, as few requests need it.
        Some(preface) => Box::pin(raw_stream(cluster, host, options, preface)).await,
    }
}

/// What the upstream connection of a CONNECT that ends here begins with; None for requests that are forwarded as such.
fn tunnel(stream: &ActiveStream<'_>, request: &Request) -> Option<Bytes> {
    let upgrades = &request.route.entry().route_action()?.upgrades;
    let config = upgrades.iter().find_map(|upgrade| upgrade.connect_config)?;
    match stream.request.method() {
        b"CONNECT" => {}
        b"POST" if config.allow_post => {}
        _ => return None,
    }
    let info = &stream.connection.info;
    Some(config.proxy_protocol.map_or_else(Bytes::new, |version| {
        proxy_protocol_header(version, &info.remote_address, &info.local_address).into()
    }))
}

/// The texts of short times are static: most responses take a few milliseconds.
fn service_time_value(ms: u64) -> HeaderValue {
    const SHORT: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    match SHORT.get(ms as usize) {
        Some(text) => HeaderValue::from_static(text),
        None => HeaderValue::from(ms),
    }
}
