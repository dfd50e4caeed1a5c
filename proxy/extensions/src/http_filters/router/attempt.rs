//! One try: a host, a connection, the request out and the response back.

use super::connect::{choose_host, connect, note_host};
use super::failure::{Failure, FailureKind};
use super::per_try::{Begin, PerTry};
use super::replay::{Next, Replay};
use super::retry::Verdict;
use super::{
    Counted, Decision, Request, RouterConfig, charge, charge_codes, charge_retried, count_budget, decide, hedge,
    outlier, poll_request_timers, redirect, service_time,
};
use nuncio_base::clock;
use nuncio_base::timer::{self, Sleep};
use nuncio_http::active_stream::{Abort, ActiveStream};
use nuncio_http::codec::{Frame, ResetReason, StreamError};
use nuncio_http::filter::HeadersAction;
use nuncio_http::formatter::FormatContext;
use nuncio_http::headers::{HeaderValue, Headers, names};
use nuncio_http::local_reply::LocalReply;
use nuncio_http::stream_info::ResponseFlags;
use nuncio_http::upstream_filters::missing_header;
use nuncio_upstream::{Host, PooledStream};
use smallvec::smallvec;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// What came of a try.
pub(crate) enum Outcome {
    /// The response was sent, or the stream has ended otherwise.
    Done,
    /// Downstream ended the stream.
    Abort(Abort),
    /// The load balancer had no host.
    NoHost,
    /// There may be no more pools, and the host has none for the request.
    NoPool,
    /// The route's timeout.
    GlobalTimeout,
    /// The response asked for another try, which is granted.
    Retry,
    /// The try is past its timeout and goes on beside another one, which is granted.
    Hedge,
    /// The response is bad and cannot be retried, but other tries go on.
    Discarded,
    /// A try that went on beside this one has the response.
    Won(Box<Won>),
    /// The response was a redirect that is followed here.
    Redirected,
    /// A filter towards the upstream has answered.
    Answered,
    /// It failed.
    Failed(Failure),
}

/// A try that has the response which is to be sent.
pub(crate) struct Won {
    pub(crate) attempt: Attempt,
    pub(crate) head: Headers,
    pub(crate) end: bool,
}

/// A try in progress.
pub(crate) struct Attempt {
    upstream: PooledStream,
    host: Arc<Host>,
    per_try_timer: Option<Sleep>,
    /// Runs from the moment at which the whole request is there.
    per_try_due: Option<Duration>,
    per_try_idle: Option<(Sleep, Duration)>,
    duration: Option<Sleep>,
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
    ended: bool,
    /// Only then it is known whether the host has done well.
    grpc_status_due: bool,
    /// An informational head has come before.
    informed: bool,
    /// Its response is the one that downstream gets: nobody else needs what is kept of the body.
    delivers: bool,
    /// Another try has taken this one's place.
    retried: bool,
    /// Outlier detection was told that it is late.
    late: bool,
    /// Filters, log and histograms of this try.
    per_try: Option<Box<PerTry>>,
}

/// What the phase before the response's head ends with.
pub(crate) enum Head {
    Response(Headers, bool),
    Outcome(Outcome),
}

impl Attempt {
    /// Runs one try to its end, or to the point where another one has to go on.
    pub(crate) async fn run(config: &RouterConfig, stream: &mut ActiveStream<'_>, request: &mut Request) -> Outcome {
        let Some(host) = choose_host(stream, request) else { return Outcome::NoHost };
        note_host(stream, request, &host, !config.suppress_envoy_headers);
        let per_try_timeout = request.timeouts.per_try;
        let begin = Begin { config, cluster: &request.cluster, host: &host, per_try_timeout };
        let mut per_try = PerTry::begin(begin, &mut stream.view());
        if let Some(per_try) = per_try.as_deref_mut().filter(|per_try| per_try.is_filtered()) {
            // Boxed, as few requests need it.
            if let Some(outcome) = Box::pin(filter_head(config, stream, request, per_try)).await {
                return outcome;
            }
        }
        if (per_try.is_some() || stream.is_filtered())
            && let Some(reply) = missing_header(&stream.request)
        {
            stream.local_reply(reply);
            if let Some(mut per_try) = per_try {
                unconnected(config, stream, request, &mut per_try, &Outcome::Answered);
            }
            return Outcome::Answered;
        }
        let started = clock::now();
        let upstream = match connect(config, &mut per_try, stream, request, &host).await {
            Ok(upstream) => upstream,
            Err(outcome) => {
                outlier::ended(&host, &outcome, request.timeout_status, false);
                if let Some(mut per_try) = per_try {
                    unconnected(config, stream, request, &mut per_try, &outcome);
                }
                return outcome;
            }
        };
        outlier::connected(&host);
        request.route.request_stats().for_each(|stats| stats.upstream_rq_total().inc());
        let info = &mut stream.info.upstream;
        info.pool_ready = Some(clock::now().saturating_duration_since(started));
        info.hosts_attempted.push((host.address_text.clone(), host.hostname.clone()));
        info.connection_ids_attempted.push(upstream.connection().id);
        let timeouts = &request.timeouts;
        let mut attempt = Attempt {
            upstream,
            host,
            per_try_timer: None,
            per_try_due: timeouts.per_try,
            per_try_idle: timeouts.per_try_idle.map(|d| (timer::sleep(d), d)),
            duration: timeouts.max_stream_duration.map(timer::sleep),
            replayed: 0,
            request_sent: false,
            request_paused: false,
            response_paused: false,
            answered: false,
            ended: false,
            grpc_status_due: false,
            informed: false,
            delivers: false,
            retried: false,
            late: false,
            per_try,
        };
        attempt.note_connection(stream);
        if let Some(per_try) = &mut attempt.per_try {
            per_try.connected(config, &attempt.upstream, &stream.request);
        }
        let outcome = attempt.exchange(config, stream, request).await;
        if matches!(outcome, Outcome::Hedge) {
            request.hedged.push(attempt);
            return outcome;
        }
        attempt.over(config, stream, request, &outcome);
        outcome
    }

    /// The try has come to this outcome.
    fn over(&mut self, config: &RouterConfig, stream: &mut ActiveStream<'_>, request: &mut Request, outcome: &Outcome) {
        let told = self.late && matches!(outcome, Outcome::GlobalTimeout);
        if !told {
            outlier::ended(&self.host, outcome, request.timeout_status, self.answered);
        }
        if !matches!(outcome, Outcome::Done) {
            self.reset();
        }
        if matches!(outcome, Outcome::Failed(_) | Outcome::GlobalTimeout) {
            self.grpc_status(None);
        }
        if let Some(per_try) = &mut self.per_try {
            match outcome {
                Outcome::Failed(failure) => per_try.flag(failure.flag()),
                Outcome::GlobalTimeout => per_try.forget_budget(),
                _ => {}
            }
        }
        self.end(config, stream, request);
    }

    /// It is over: what it has moved is counted, and what is left to say of it is said.
    #[inline]
    pub(super) fn end(&mut self, config: &RouterConfig, stream: &mut ActiveStream<'_>, request: &Request) {
        stream.info.upstream.meter.add(self.upstream.bytes_meter());
        if let Some(per_try) = &mut self.per_try {
            let meters = (stream.downstream_meter(), stream.info.upstream.meter);
            per_try.end(config, &request.cluster, &mut stream.view(), meters);
        }
    }

    /// The lines in its log while it goes on.
    pub(super) fn poll_log(&mut self, config: &RouterConfig, stream: &mut ActiveStream<'_>, cx: &mut Context<'_>) {
        if let Some(per_try) = &mut self.per_try {
            let (downstream, before) = (stream.downstream_meter(), stream.info.upstream.meter);
            let upstream = &self.upstream;
            let meters = || {
                let mut meter = before;
                meter.add(upstream.bytes_meter());
                (downstream, meter)
            };
            per_try.poll_log(config, &stream.view(), meters, cx);
        }
    }

    /// Something has happened that the flags of its log tell.
    pub(super) fn flag(&mut self, flags: ResponseFlags) {
        if let Some(per_try) = &mut self.per_try {
            per_try.flag(flags);
        }
    }

    /// The route's timeout has ended it: its own did not come into play.
    pub(super) fn forget_budget(&mut self) {
        if let Some(per_try) = &mut self.per_try {
            per_try.forget_budget();
        }
    }

    /// The response of a try that went on beside others is sent.
    pub(crate) async fn run_won(
        won: Won,
        config: &RouterConfig,
        stream: &mut ActiveStream<'_>,
        request: &mut Request,
    ) -> Outcome {
        let Won { mut attempt, head, end } = won;
        let (address, name) = (attempt.host.address_text.clone(), attempt.host.hostname.clone());
        let info = &mut stream.info.upstream;
        info.host_metadata = attempt.host.metadata();
        info.hosts_attempted = smallvec![(address.clone(), name.clone())];
        info.connection_ids_attempted = smallvec![attempt.upstream.connection().id];
        (info.host, info.host_name) = (Some(address), Some(name));
        attempt.note_connection(stream);
        request.hosts.push(attempt.host.clone());
        let outcome = attempt.deliver(config, stream, request, head, end).await;
        attempt.over(config, stream, request, &outcome);
        outcome
    }

    /// Where it goes.
    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Ends the try; a connection on which all has been said is kept.
    pub(super) fn reset(&mut self) {
        if !(self.ended && self.request_sent) {
            self.upstream.reset(ResetReason::LocalReset);
        }
    }

    fn note_connection(&self, stream: &mut ActiveStream<'_>) {
        let info = &mut stream.info.upstream;
        info.connection = Some(self.upstream.connection().clone());
        info.protocol = self.upstream.http_protocol();
    }

    async fn exchange(
        &mut self,
        config: &RouterConfig,
        stream: &mut ActiveStream<'_>,
        request: &mut Request,
    ) -> Outcome {
        let end = stream.request_complete() && request.replay.as_ref().is_none_or(|replay| replay.is_empty());
        stream.info.upstream.first_tx = Some(clock::now());
        if let Err(error) = self.upstream.send_headers(&stream.request, end) {
            return Outcome::Failed(Failure::of(&error, true));
        }
        if end {
            self.sent(stream);
        }
        let (head, end) = match poll_fn(|cx| self.poll_head(config, stream, request, cx)).await {
            Head::Outcome(outcome) => return outcome,
            Head::Response(head, end) => (head, end),
        };
        match self.judge(stream, request, &head) {
            Some(outcome) => outcome,
            None => self.deliver(config, stream, request, head, end).await,
        }
    }

    fn sent(&mut self, stream: &mut ActiveStream<'_>) {
        self.request_sent = true;
        stream.info.upstream.last_tx = Some(clock::now());
        if let Some(per_try) = &mut self.per_try {
            per_try.request_sent();
        }
    }

    /// Moves the request body upstream as far as both sides allow.
    fn poll_request(
        &mut self,
        stream: &mut ActiveStream<'_>,
        request: &mut Request,
        cx: &mut Context<'_>,
    ) -> Poll<Outcome> {
        while !self.request_sent {
            match self.upstream.poll_capacity(cx) {
                Poll::Ready(Ok(())) => self.pause_request(stream, request, false),
                Poll::Ready(Err(error)) => return Poll::Ready(self.failed(&error)),
                Poll::Pending => {
                    self.pause_request(stream, request, true);
                    break;
                }
            }
            let frame = match request.replay.as_ref().map_or(Next::Unread, |replay| replay.next(self.replayed)) {
                Next::Kept(frame) => frame,
                // Another try has gone on with a body that is too large to be kept.
                Next::Lost => {
                    let failure = Failure::timed(FailureKind::Reset, true);
                    return Poll::Ready(Outcome::Failed(Failure { retried: self.retried, ..failure }));
                }
                Next::Unread => match stream.poll_request_frame(cx) {
                    Poll::Ready(Ok(frame)) => {
                        if self.delivers {
                            request.replay = None;
                        }
                        if stream.is_over() {
                            return Poll::Ready(Outcome::Done);
                        }
                        request.keep(&frame);
                        frame
                    }
                    Poll::Ready(Err(abort)) => return Poll::Ready(Outcome::Abort(abort)),
                    Poll::Pending => break,
                },
            };
            self.replayed += 1;
            let mut frame = frame;
            if let Some(per_try) = &mut self.per_try
                && let Some(reply) = per_try.decode_frame(&mut stream.view(), &mut frame)
            {
                stream.local_reply(reply);
                return Poll::Ready(Outcome::Answered);
            }
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
    fn pause_request(&mut self, stream: &ActiveStream<'_>, request: &Request, paused: bool) {
        if std::mem::replace(&mut self.request_paused, paused) == paused {
            return;
        }
        let (downstream, upstream) = (&stream.connection.hcm.stats, &request.cluster.stats);
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
    fn pause_response(&mut self, request: &Request, paused: bool) {
        if std::mem::replace(&mut self.response_paused, paused) == paused {
            return;
        }
        let upstream = &request.cluster.stats;
        if paused {
            upstream.upstream_flow_control_paused_reading_total().inc();
        } else {
            upstream.upstream_flow_control_resumed_reading_total().inc();
        }
    }

    fn failed(&self, error: &StreamError) -> Outcome {
        Outcome::Failed(Failure { retried: self.retried, ..Failure::of(error, true) })
    }

    fn poll_timers(
        &mut self,
        config: &RouterConfig,
        stream: &mut ActiveStream<'_>,
        request: &mut Request,
        cx: &mut Context<'_>,
    ) -> Poll<Outcome> {
        if let Poll::Ready(abort) = stream.poll_abort(cx) {
            return Poll::Ready(Outcome::Abort(abort));
        }
        if let Some(outcome) = poll_request_timers(stream, request, cx) {
            return Poll::Ready(outcome);
        }
        if self.per_try.is_some() {
            self.poll_log(config, stream, cx);
        }
        if self.per_try_due.is_some() && stream.request_complete() {
            self.per_try_timer = self.per_try_due.take().map(timer::sleep);
        }
        if let Some(sleep) = &mut self.per_try_timer
            && Pin::new(sleep).poll(cx).is_ready()
        {
            self.per_try_timer = None;
            if request.hedge {
                return self.soft_timeout(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT, stream, request);
            }
            request.cluster.stats.upstream_rq_per_try_timeout().inc();
            self.host.stats.rq_timeout.fetch_add(1, Relaxed);
            return Poll::Ready(Outcome::Failed(Failure::timed(FailureKind::PerTryTimeout, true)));
        }
        if let Some((sleep, _)) = &mut self.per_try_idle
            && Pin::new(sleep).poll(cx).is_ready()
        {
            self.per_try_idle = None;
            if request.hedge {
                return self.soft_timeout(ResponseFlags::STREAM_IDLE_TIMEOUT, stream, request);
            }
            request.cluster.stats.upstream_rq_per_try_idle_timeout().inc();
            self.host.stats.rq_timeout.fetch_add(1, Relaxed);
            return Poll::Ready(Outcome::Failed(Failure::timed(FailureKind::PerTryIdleTimeout, true)));
        }
        if let Some(sleep) = &mut self.duration
            && Pin::new(sleep).poll(cx).is_ready()
        {
            request.cluster.stats.upstream_rq_max_duration_reached().inc();
            return Poll::Ready(Outcome::Failed(Failure::timed(FailureKind::MaxDuration, true)));
        }
        Poll::Pending
    }

    /// The try is late but not given up: another one is begun beside it if retries are left.
    fn soft_timeout(
        &mut self,
        flag: ResponseFlags,
        stream: &mut ActiveStream<'_>,
        request: &mut Request,
    ) -> Poll<Outcome> {
        if stream.response_started() {
            return Poll::Pending;
        }
        self.flag(flag);
        self.late = true;
        outlier::late(&self.host, request.timeout_status);
        let Some(retry) = &mut request.retry else { return Poll::Pending };
        let verdict = retry.on_soft_timeout();
        if decide(stream, request, verdict) == Decision::Granted {
            self.retried = true;
            return Poll::Ready(Outcome::Hedge);
        }
        Poll::Pending
    }

    /// The request out and the response's head in, without timers.
    pub(super) fn poll_response(
        &mut self,
        stream: &mut ActiveStream<'_>,
        request: &mut Request,
        cx: &mut Context<'_>,
    ) -> Poll<Head> {
        if let Poll::Ready(outcome) = self.poll_request(stream, request, cx) {
            return Poll::Ready(Head::Outcome(outcome));
        }
        loop {
            match self.upstream.poll_headers(cx) {
                Poll::Ready(Ok((head, _))) if (100..200).contains(&head.status()) && head.status() != 101 => {
                    self.inform(stream, request, &head);
                }
                Poll::Ready(Ok((mut head, end))) => {
                    self.answered = true;
                    self.ended = end;
                    if let Some(per_try) = &mut self.per_try
                        && let Some(reply) = per_try.encode_headers(&mut stream.view(), &mut head, end)
                    {
                        stream.local_reply(reply);
                        return Poll::Ready(Head::Outcome(Outcome::Answered));
                    }
                    outlier::answered(&request.cluster, &self.host, &head, stream.is_grpc());
                    request.load_reported = request.load_reported || self.host.read_load_report(&head);
                    return Poll::Ready(Head::Response(head, end));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Head::Outcome(self.failed(&error))),
                Poll::Pending => break,
            }
        }
        // What was passed on goes out before the response is there.
        if self.informed
            && let Poll::Ready(Err(abort)) = stream.poll_response_flush(cx)
        {
            return Poll::Ready(Head::Outcome(Outcome::Abort(abort)));
        }
        Poll::Pending
    }

    /// Of informational heads only the first one counts, and only if it is of the kinds that are known.
    fn inform(&mut self, stream: &mut ActiveStream<'_>, request: &mut Request, head: &Headers) {
        if self.informed || !matches!(head.status(), 100 | 102..=104) {
            return;
        }
        self.informed = true;
        charge_codes(request, Some(&self.host), head.status());
        if stream.connection.hcm.config.proxy_100_continue {
            stream.info.response_code = head.status();
            stream.send_informational(head);
            // What was passed on cannot be taken back.
            request.retry = None;
        }
    }

    fn poll_head(
        &mut self,
        config: &RouterConfig,
        stream: &mut ActiveStream<'_>,
        request: &mut Request,
        cx: &mut Context<'_>,
    ) -> Poll<Head> {
        if let Poll::Ready(head) = self.poll_response(stream, request, cx) {
            return Poll::Ready(head);
        }
        if !request.hedged.is_empty()
            && let Poll::Ready(outcome) = hedge::poll_winner(config, stream, request, true, cx)
        {
            return Poll::Ready(Head::Outcome(outcome));
        }
        self.poll_timers(config, stream, request, cx).map(Head::Outcome)
    }

    /// Whether a response is thrown away: for another try, or because other tries go on.
    fn judge(&self, stream: &mut ActiveStream<'_>, request: &mut Request, head: &Headers) -> Option<Outcome> {
        let retry = request.retry.as_mut()?;
        let verdict = retry.on_response(head);
        match decide(stream, request, verdict) {
            Decision::Granted => {
                charge_retried(request, head.status());
                Some(Outcome::Retry)
            }
            Decision::Refused if !request.hedged.is_empty() && verdict != Verdict::No => {
                self.host.stats.rq_error.fetch_add(1, Relaxed);
                Some(Outcome::Discarded)
            }
            Decision::Refused => None,
        }
    }

    /// Sends the response, or follows it where it is a redirect.
    async fn deliver(
        &mut self,
        config: &RouterConfig,
        stream: &mut ActiveStream<'_>,
        request: &mut Request,
        head: Headers,
        end: bool,
    ) -> Outcome {
        hedge::reset_all(config, stream, request);
        stream.info.upstream.first_rx = Some(clock::now());
        if redirect::follow(stream, request, &head) {
            return Outcome::Redirected;
        }
        if let Some(outcome) = self.on_head(config, stream, request, head, end) {
            return outcome;
        }
        let outcome = poll_fn(|cx| self.poll_body(config, stream, request, cx)).await;
        let now = clock::now();
        stream.info.upstream.last_rx = Some(now);
        if matches!(outcome, Outcome::Done) {
            complete(stream, request, now);
        }
        outcome
    }

    /// Counts a response. What a gRPC request says of its host is known at its end.
    fn charge_head(&mut self, stream: &ActiveStream<'_>, request: &Request, head: &Headers, end: bool) {
        let status = head.status();
        if !stream.is_grpc() || status >= 500 {
            return charge(request, Some(&self.host), status, true);
        }
        charge_codes(request, Some(&self.host), status);
        match end {
            true => self.host.stats.count_request(outlier::is_grpc_success(head)),
            false => self.grpc_status_due = true,
        }
    }

    /// The gRPC status has come, or will not.
    fn grpc_status(&mut self, trailers: Option<&Headers>) {
        if std::mem::take(&mut self.grpc_status_due) {
            self.host.stats.count_request(trailers.is_some_and(outlier::is_grpc_success));
        }
    }

    /// Passes the response's head on.
    fn on_head(
        &mut self,
        config: &RouterConfig,
        stream: &mut ActiveStream<'_>,
        request: &mut Request,
        mut head: Headers,
        end: bool,
    ) -> Option<Outcome> {
        let now = clock::now();
        let status = head.status();
        // From here on the response belongs to downstream: of the body, only what this try has not sent yet is needed.
        request.release_retries();
        self.delivers = true;
        if self.request_sent {
            request.replay = None;
        }
        self.per_try_timer = None;
        self.per_try_due = None;
        request.canary = self.host.is_canary() || head.bytes(&names::X_ENVOY_UPSTREAM_CANARY) == Some(b"true");
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
                request.timeout_at = None;
                request.timeouts.global = None;
            }
        }
        if !failed_upgrade {
            self.charge_head(stream, request, &head, end);
        }
        if !config.suppress_envoy_headers && !stream.is_upgrade() && stream.info.request_complete.is_some() {
            let ms = service_time(stream, now);
            head.set(names::X_ENVOY_UPSTREAM_SERVICE_TIME, service_time_value(ms));
        }
        if request.route.entry().virtual_host().config().include_attempt_count_in_response {
            head.set(names::X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(u64::from(stream.info.attempt_count)));
        }
        for cookie in request.set_cookie.drain(..) {
            head.append(names::SET_COOKIE, cookie);
        }
        stream.info.response_code = status;
        if stream.info.response_code_details.is_none() {
            stream.info.response_code_details = Some("via_upstream".into());
        }
        let cx = FormatContext { request: Some(&stream.request), ..FormatContext::new(&stream.info) };
        request.route.finalize_response_headers(&mut head, &cx);
        stream.send_response_headers(head, end || failed_upgrade);
        // A filter may have answered in the response's place.
        let replaced = stream.is_over() && !end;
        if end || failed_upgrade || replaced {
            stream.info.upstream.last_rx = Some(now);
            if (failed_upgrade || replaced) && !end {
                self.reset();
            }
            complete(stream, request, now);
            // The rest of a request that was answered early is not wanted.
            if !self.request_sent {
                self.reset();
            }
            return Some(Outcome::Done);
        }
        None
    }

    /// Moves bodies both ways until the response has ended.
    fn poll_body(
        &mut self,
        config: &RouterConfig,
        stream: &mut ActiveStream<'_>,
        request: &mut Request,
        cx: &mut Context<'_>,
    ) -> Poll<Outcome> {
        if let Poll::Ready(outcome) = self.poll_request(stream, request, cx) {
            return Poll::Ready(outcome);
        }
        loop {
            match stream.poll_response_capacity(cx) {
                Poll::Ready(Ok(())) => self.pause_response(request, false),
                Poll::Ready(Err(abort)) => return Poll::Ready(Outcome::Abort(abort)),
                Poll::Pending => {
                    self.pause_response(request, true);
                    break;
                }
            }
            match self.upstream.poll_frame(cx) {
                Poll::Ready(Ok(mut frame)) => {
                    let end = frame.is_end();
                    if let Some((sleep, delay)) = &mut self.per_try_idle {
                        sleep.reset(*delay);
                    }
                    if let Some(per_try) = &mut self.per_try {
                        per_try.encode_frame(&mut stream.view(), &mut frame);
                    }
                    if end && self.grpc_status_due {
                        self.grpc_status(match &frame {
                            Frame::Trailers(trailers) => Some(trailers),
                            Frame::Data(..) => None,
                        });
                    }
                    match frame {
                        Frame::Data(data, end) => stream.send_response_data(data, end),
                        Frame::Trailers(trailers) => {
                            if !request.load_reported {
                                self.host.read_load_report(&trailers);
                            }
                            stream.send_response_trailers(trailers);
                        }
                    }
                    if end || stream.is_over() {
                        if !self.request_sent {
                            self.reset();
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
        self.poll_timers(config, stream, request, cx)
    }
}

/// Shows the request's head to the filters of a try. Some: it ends there.
#[cold]
async fn filter_head(
    config: &RouterConfig,
    stream: &mut ActiveStream<'_>,
    request: &mut Request,
    per_try: &mut PerTry,
) -> Option<Outcome> {
    let mut action = HeadersAction::Continue;
    loop {
        let end = stream.request_complete() && request.replay.as_ref().is_none_or(Replay::is_empty);
        if matches!(action, HeadersAction::Continue) {
            action = per_try.decode_headers(&mut stream.view(), end);
        }
        match std::mem::replace(&mut action, HeadersAction::Continue) {
            // Clusters on demand are for the filters before the router.
            HeadersAction::Continue | HeadersAction::OnDemand(_) => return None,
            HeadersAction::Respond(reply) => {
                stream.local_reply(reply);
                return Some(answered(config, stream, request, per_try, Outcome::Answered));
            }
            HeadersAction::Buffer => {
                if let Some(outcome) = buffer(stream, request).await {
                    return Some(answered(config, stream, request, per_try, outcome));
                }
            }
            HeadersAction::Wait(mut future) => {
                let done = poll_fn(|cx| {
                    if let Poll::Ready(abort) = stream.poll_abort(cx) {
                        return Poll::Ready(Err(Outcome::Abort(abort)));
                    }
                    if let Some(outcome) = poll_request_timers(stream, request, cx) {
                        return Poll::Ready(Err(outcome));
                    }
                    future.as_mut().poll(cx).map(Ok)
                });
                match done.await {
                    Ok(resume) => action = resume(&mut stream.view()),
                    Err(outcome) => return Some(answered(config, stream, request, per_try, outcome)),
                }
            }
        }
    }
}

/// A try ends before it has a connection, with this outcome.
fn answered(
    config: &RouterConfig,
    stream: &mut ActiveStream<'_>,
    request: &Request,
    per_try: &mut PerTry,
    outcome: Outcome,
) -> Outcome {
    unconnected(config, stream, request, per_try, &outcome);
    outcome
}

#[cold]
fn unconnected(
    config: &RouterConfig,
    stream: &mut ActiveStream<'_>,
    request: &Request,
    per_try: &mut PerTry,
    outcome: &Outcome,
) {
    match outcome {
        Outcome::Failed(failure) => {
            per_try.flag(failure.flag());
            per_try.not_connected(failure.transport.as_deref());
        }
        Outcome::GlobalTimeout => per_try.forget_budget(),
        _ => {}
    }
    let meters = (stream.downstream_meter(), stream.info.upstream.meter);
    per_try.end(config, &request.cluster, &mut stream.view(), meters);
}

/// Reads the whole body of the request, within the limit on what is kept of it. Some: the try ends there.
async fn buffer(stream: &mut ActiveStream<'_>, request: &mut Request) -> Option<Outcome> {
    if request.replay.is_none() {
        request.replay = Some(Replay::new(stream.buffer_limit()));
    }
    poll_fn(|cx| {
        while !stream.request_complete() {
            match std::task::ready!(stream.poll_request_frame(cx)) {
                Ok(frame) => request.keep(&frame),
                Err(abort) => return Poll::Ready(Some(Outcome::Abort(abort))),
            }
            if stream.is_over() {
                return Poll::Ready(Some(Outcome::Answered));
            }
            if request.replay.as_ref().is_none_or(Replay::is_abandoned) {
                stream.local_reply(LocalReply::new(413, "Payload Too Large", "request_payload_too_large"));
                return Poll::Ready(Some(Outcome::Answered));
            }
        }
        Poll::Ready(None)
    })
    .await
}

/// Counts how long the response took.
fn complete(stream: &ActiveStream<'_>, request: &Request, now: Instant) {
    count_budget(stream, request, now);
    if request.counted == Counted::Nothing {
        return;
    }
    let ms = service_time(stream, now);
    let stats = &request.cluster.stats;
    stats.responses().time.upstream_rq_time().record(ms);
    match request.internal {
        true => stats.internal().time.upstream_rq_time().record(ms),
        false => stats.external().time.upstream_rq_time().record(ms),
    }
    if request.canary {
        stats.canary().time.upstream_rq_time().record(ms);
    }
    if let Some(zone) = request.hosts.last().and_then(|host| stats.zone(&host.locality.zone)) {
        zone.time.upstream_rq_time().record(ms);
    }
    request.route.request_stats().for_each(|stats| stats.record_time(ms));
    if let Some(other) = &request.alternative {
        other.each(request.internal, request.canary).for_each(|stats| stats.time.upstream_rq_time().record(ms));
    }
}

/// The texts of short times are static: most responses take a few milliseconds.
fn service_time_value(ms: u64) -> HeaderValue {
    const SHORT: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    match SHORT.get(ms as usize) {
        Some(text) => HeaderValue::from_static(text),
        None => HeaderValue::from(ms),
    }
}
