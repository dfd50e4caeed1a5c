//! One try: a host, a connection, and the request out until the response's head is there. `deliver` goes on from it.

use super::connect::{choose_host, connect, note_host};
use super::counting::charge_retried;
use super::failure::{Failure, FailureKind};
use super::filtered::{filter_head, unconnected};
use super::granting::{Decision, decide};
use super::per_try::{Begin, PerTry};
use super::replay::Next;
use super::retry::Verdict;
use super::{Request, RouterConfig, hedge, outlier, poll_request_timers};
use nuncio_base::clock;
use nuncio_base::timer::{self, Sleep};
use nuncio_http::active_stream::{Abort, ActiveStream};
use nuncio_http::codec::{Frame, ResetReason, StreamError};
use nuncio_http::headers::Headers;
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
    pub(super) upstream: PooledStream,
    pub(super) host: Arc<Host>,
    pub(super) per_try_timer: Option<Sleep>,
    /// Runs from the moment at which the whole request is there.
    pub(super) per_try_due: Option<Duration>,
    pub(super) per_try_idle: Option<(Sleep, Duration)>,
    pub(super) duration: Option<Sleep>,
    /// Frames of the replay that were sent on this connection.
    pub(super) replayed: usize,
    pub(super) request_sent: bool,
    /// The request waits for the upstream to take more.
    pub(super) request_paused: bool,
    /// The response waits for downstream to take more.
    pub(super) response_paused: bool,
    /// The head of the response has arrived.
    pub(super) answered: bool,
    /// And it is the whole response.
    pub(super) ended: bool,
    /// Only then it is known whether the host has done well.
    pub(super) grpc_status_due: bool,
    /// An informational head has come before.
    pub(super) informed: bool,
    /// Its response is the one that downstream gets: nobody else needs what is kept of the body.
    pub(super) delivers: bool,
    /// Another try has taken this one's place.
    pub(super) retried: bool,
    /// Outlier detection was told that it is late.
    pub(super) late: bool,
    /// Filters, log and histograms of this try.
    pub(super) per_try: Option<Box<PerTry>>,
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
    pub(super) fn poll_request(
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
    pub(super) fn pause_response(&mut self, request: &Request, paused: bool) {
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

    pub(super) fn failed(&self, error: &StreamError) -> Outcome {
        Outcome::Failed(Failure { retried: self.retried, ..Failure::of(error, true) })
    }

    pub(super) fn poll_timers(
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
            return self.try_timeout(FailureKind::PerTryTimeout, stream, request);
        }
        if let Some((sleep, _)) = &mut self.per_try_idle
            && Pin::new(sleep).poll(cx).is_ready()
        {
            self.per_try_idle = None;
            return self.try_timeout(FailureKind::PerTryIdleTimeout, stream, request);
        }
        if let Some(sleep) = &mut self.duration
            && Pin::new(sleep).poll(cx).is_ready()
        {
            request.cluster.stats.upstream_rq_max_duration_reached().inc();
            return Poll::Ready(Outcome::Failed(Failure::timed(FailureKind::MaxDuration, true)));
        }
        Poll::Pending
    }

    /// The try is past one of its limits: it has failed, or, where tries are hedged, goes on beside another one if retries
    /// are left.
    fn try_timeout(
        &mut self,
        kind: FailureKind,
        stream: &mut ActiveStream<'_>,
        request: &mut Request,
    ) -> Poll<Outcome> {
        let failure = Failure::timed(kind, true);
        if !request.hedge {
            let stats = &request.cluster.stats;
            match kind {
                FailureKind::PerTryIdleTimeout => stats.upstream_rq_per_try_idle_timeout().inc(),
                _ => stats.upstream_rq_per_try_timeout().inc(),
            }
            self.host.stats.rq_timeout.fetch_add(1, Relaxed);
            return Poll::Ready(Outcome::Failed(failure));
        }
        if stream.response_started() {
            return Poll::Pending;
        }
        self.flag(failure.flag());
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
        // The next try may go to another cluster than the one that has answered.
        let answered = request.refresh.is_some().then(|| request.cluster.clone());
        match decide(stream, request, verdict) {
            Decision::Granted => {
                charge_retried(answered.as_ref().unwrap_or(&request.cluster), request, head.status());
                Some(Outcome::Retry)
            }
            Decision::Refused if !request.hedged.is_empty() && verdict != Verdict::No => {
                self.host.stats.rq_error.fetch_add(1, Relaxed);
                Some(Outcome::Discarded)
            }
            Decision::Refused => None,
        }
    }
}
