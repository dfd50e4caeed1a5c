//! One copy of a request on its way: its tries, until a response was read and thrown away.
//!
//! What the protocol options of a mirror's cluster say of requests (hash policies, retries, mirrors) counts for copies too; what
//! the route says of them does not, but for `metadata_match`.

use super::connect::pick;
use super::counting::{Counted, Responses, count_retried, record_budget};
use super::granting::{Grant, Held, back_off, grant};
use super::mirror::{Copy, Origin, Queue, copy_again};
use super::per_try::{Begin, PerTry};
use super::replay::{Next, Replay};
use super::retry::{RetryState, Verdict};
use super::{hash_policies, outlier, refused};
use nuncio_base::clock;
use nuncio_base::timer::{self, Sleep};
use nuncio_http::codec::{BytesMeter, Frame, Protocol, ResetReason, StreamError};
use nuncio_http::filter::{HeadersAction, StreamView};
use nuncio_http::headers::{HeaderValue, Headers, names};
use nuncio_http::stream_info::StreamInfo;
use nuncio_http::upstream_filters::missing_header;
use nuncio_upstream::{Cluster, Host, LbContext, PooledStream, Resource, ResourcePriority, StreamOptions, http_stream};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// See the module.
pub(crate) struct Task {
    pub(super) origin: Rc<Origin>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) headers: Headers,
    /// What filters and logs see.
    pub(super) info: StreamInfo,
    pub(super) terms: Terms,
    /// There is no body.
    end: bool,
    queue: Rc<Queue>,
    /// Copies that want what is read of the body.
    copies: Vec<Copy>,
    hash: Option<u64>,
    retry: Option<RetryState>,
    /// What was read of the body, as long as there may be another try.
    replay: Option<Replay>,
    /// Hosts that were tried.
    hosts: Vec<Arc<Host>>,
    canary: bool,
    /// When the request was complete.
    complete: Option<Instant>,
    /// Counts from then on.
    deadline: Option<Sleep>,
    /// Of the try: what runs with it, frames that were sent, whether that was all, its own deadline.
    per_try: Option<Box<PerTry>>,
    sent: usize,
    sent_all: bool,
    informed: bool,
    /// Only the end of the response tells how the host has done.
    grpc_status_due: bool,
    try_deadline: Option<Sleep>,
}

/// What the request says of its copies.
#[derive(Clone)]
pub(crate) struct Terms {
    pub(crate) timeout: Option<Duration>,
    pub(crate) priority: ResourcePriority,
    pub(crate) protocol: Protocol,
    pub(crate) grpc: bool,
    pub(crate) counted: Counted,
    pub(crate) retried_without_code: bool,
    /// Of the route.
    pub(crate) metadata_match: Option<Arc<serde_json::Value>>,
    /// What the choice of a subset reads of the request's own.
    pub(crate) metadata: Option<Box<serde_json::Map<String, serde_json::Value>>>,
    /// A copy of how many copies it is.
    pub(crate) depth: u8,
}

/// How a try ended without a response that counts.
enum Failed {
    /// The copy is over.
    Cancelled,
    /// The time for all tries is.
    Timeout,
    /// The time for one is.
    TryTimeout,
    /// There was no connection, or no response. Whether a part of the request was sent.
    Reset(ResetReason, bool),
    /// The response asks for another try, which is granted.
    Retry,
}

impl Failed {
    fn status(&self) -> u16 {
        match self {
            Failed::Timeout | Failed::TryTimeout => 504,
            Failed::Reset(ResetReason::ProtocolError, _) => 502,
            _ => 503,
        }
    }
}

impl Task {
    /// A copy with these headers, whose body comes through `queue`.
    pub(super) fn new(
        origin: Rc<Origin>,
        cluster: Arc<Cluster>,
        headers: Headers,
        info: StreamInfo,
        queue: Rc<Queue>,
        terms: Terms,
    ) -> Task {
        Task {
            end: queue.is_ended(),
            origin,
            cluster,
            headers,
            info,
            queue,
            terms,
            copies: Vec::new(),
            hash: None,
            retry: None,
            replay: None,
            hosts: Vec::new(),
            canary: false,
            complete: None,
            deadline: None,
            per_try: None,
            sent: 0,
            sent_all: true,
            informed: false,
            grpc_status_due: false,
            try_deadline: None,
        }
    }

    /// There is no body.
    pub(super) fn end(&self) -> bool {
        self.end
    }

    /// Tries until there is a response, or none will be.
    pub(super) async fn run(mut self) {
        let cluster = self.cluster.clone();
        if refused(&cluster, true).is_some() {
            return self.charge(None, 503, false);
        }
        let own = cluster.policies();
        let hashes = hash_policies(&cluster);
        // Nobody would see a cookie that is made.
        self.hash = hashes.and_then(|hashes| hashes.hash(&self.headers, &self.info, None));
        if let Some((policy, own)) = own.and_then(|own| own.retry.as_ref().map(|policy| (policy, own))) {
            let conditions = own.retry_conditions.as_ref();
            self.retry = RetryState::new(Some(policy), conditions, &mut self.headers, &mut None);
            self.replay = self.retry.is_some().then(|| Replay::new(self.origin.limit));
        }
        self.copies = copy_again(&self);
        self.complete = self.end.then(clock::now);
        let mut held = None;
        loop {
            let Some(host) = self.choose_host(&cluster) else {
                cluster.stats.upstream_cx_none_healthy().inc();
                return self.charge(None, 503, false);
            };
            self.hosts.push(host.clone());
            let result = self.attempt(&cluster, &host).await;
            let failed = match result {
                Ok(()) | Err(Failed::Cancelled) => return,
                Err(failed) => failed,
            };
            drop(held.take());
            if matches!(failed, Failed::TryTimeout) {
                cluster.stats.upstream_rq_per_try_timeout().inc();
            }
            if matches!(failed, Failed::Timeout | Failed::TryTimeout) {
                host.stats.rq_timeout.fetch_add(1, Relaxed);
            }
            if matches!(failed, Failed::Timeout) {
                cluster.stats.upstream_rq_timeout().inc();
            }
            let again = match &failed {
                Failed::Retry => true,
                Failed::Reset(reason, started) => self.wants(|retry| retry.on_reset(*reason, *started)),
                Failed::TryTimeout => self.wants(|retry| retry.on_reset(ResetReason::LocalReset, true)),
                Failed::Timeout | Failed::Cancelled => false,
            };
            if !again {
                return self.charge(Some(&host), failed.status(), false);
            }
            host.stats.rq_error.fetch_add(1, Relaxed);
            held = Some(Held::of(&cluster, self.terms.priority, Resource::Retries));
            if !self.back_off(&cluster).await {
                return;
            }
        }
    }

    fn choose_host(&self, cluster: &Cluster) -> Option<Arc<Host>> {
        let context = LbContext {
            hash: self.hash,
            metadata_match: self.terms.metadata_match.as_ref().and_then(|criteria| criteria.as_object()),
            dynamic_metadata: self.terms.metadata.as_deref(),
            headers: Some(&self.headers),
            info: Some(&self.info),
            ..LbContext::default()
        };
        pick(cluster, context, self.retry.as_ref(), &self.hosts)
    }

    /// Whether what `verdict` says is done: another try is made.
    fn wants(&mut self, verdict: impl FnOnce(&mut RetryState) -> Verdict) -> bool {
        let keeps = self.replay.as_ref().is_some_and(|kept| !kept.is_abandoned());
        let Some(retry) = self.retry.as_mut().filter(|_| keeps) else { return false };
        let verdict = verdict(retry);
        grant(retry, verdict, &self.cluster, self.terms.priority) == Grant::Granted
    }

    /// Waits before the next try; false when there will be none.
    async fn back_off(&mut self, cluster: &Cluster) -> bool {
        let Some(retry) = &mut self.retry else { return false };
        let mut sleep = back_off(retry, Some(cluster));
        poll_fn(|cx| {
            if let Some(deadline) = &mut self.deadline
                && Pin::new(deadline).poll(cx).is_ready()
            {
                return Poll::Ready(false);
            }
            Pin::new(&mut sleep).poll(cx).map(|()| true)
        })
        .await
    }

    /// One try.
    async fn attempt(&mut self, cluster: &Arc<Cluster>, host: &Arc<Host>) -> Result<(), Failed> {
        (self.sent, self.sent_all, self.informed, self.try_deadline) = (0, self.end, false, None);
        self.info.upstream.host = Some(host.address_text.clone());
        let mut view = StreamView { request: &mut self.headers, info: &mut self.info, route: None };
        let begin = Begin { config: &self.origin.config, cluster, host, per_try_timeout: None };
        self.per_try = PerTry::begin(begin, &mut view);
        let result = match self.filter_head().await {
            true => self.exchange(cluster, host).await,
            false => Err(Failed::Cancelled),
        };
        if let Some(mut per_try) = self.per_try.take() {
            let meters = (BytesMeter::default(), self.info.upstream.meter);
            let mut view = StreamView { request: &mut self.headers, info: &mut self.info, route: None };
            per_try.end(&self.origin.config, cluster, &mut view, meters);
        }
        result
    }

    /// Shows the head to the filters; false where the copy ends there.
    async fn filter_head(&mut self) -> bool {
        let Some(per_try) = &mut self.per_try else { return true };
        let mut view = StreamView { request: &mut self.headers, info: &mut self.info, route: None };
        loop {
            let mut action = per_try.decode_headers(&mut view, self.end);
            while let HeadersAction::Wait(future) = action {
                let resume = future.await;
                action = resume(&mut view);
            }
            match action {
                HeadersAction::Continue => break,
                HeadersAction::Respond(_) => return false,
                // A copy goes on with what is there of its body.
                _ => {}
            }
        }
        missing_header(&self.headers).is_none()
    }

    async fn exchange(&mut self, cluster: &Arc<Cluster>, host: &Arc<Host>) -> Result<(), Failed> {
        let authority = self.headers.get(&names::AUTHORITY).cloned();
        let options = StreamOptions {
            priority: self.terms.priority,
            downstream_protocol: Some(self.terms.protocol),
            authority: authority.as_ref().and_then(HeaderValue::to_str),
            ..StreamOptions::default()
        };
        let checkout = http_stream(cluster, host, &options);
        let checked = match self.terms.timeout {
            Some(timeout) => timer::timeout(timeout, checkout).await.map_err(|_| Failed::Timeout)?,
            None => checkout.await,
        };
        let mut upstream = checked.map_err(|failure| Failed::Reset(failure.reason, false))?;
        if let Some(per_try) = &mut self.per_try {
            per_try.connected(&self.origin.config, &upstream, &self.headers);
        }
        let result = self.converse(cluster, host, &mut upstream).await;
        self.info.upstream.meter = upstream.bytes_meter();
        result
    }

    async fn converse(
        &mut self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        upstream: &mut PooledStream,
    ) -> Result<(), Failed> {
        upstream.send_headers(&self.headers, self.end).map_err(|error| failed(&error))?;
        let (head, end) = match poll_fn(|cx| self.poll_head(host, upstream, cx)).await {
            Ok(head) => head,
            Err(failed) => {
                upstream.reset(ResetReason::LocalReset);
                return Err(failed);
            }
        };
        let status = head.status();
        if self.wants(|retry| retry.on_response(&head)) {
            count_retried(cluster, self.terms.retried_without_code, status);
            if !(end && self.sent_all) {
                upstream.reset(ResetReason::LocalReset);
            }
            return Err(Failed::Retry);
        }
        self.retry = None;
        self.canary = host.is_canary() || head.bytes(&names::X_ENVOY_UPSTREAM_CANARY) == Some(b"true");
        // What a gRPC response says of its host is known at its end.
        self.grpc_status_due = false;
        match self.terms.grpc && status < 500 {
            false => self.charge(Some(host), status, true),
            true => {
                self.responses(Some(host)).count_code(status);
                match end {
                    true => host.stats.count_request(outlier::is_grpc_success(&head)),
                    false => self.grpc_status_due = true,
                }
            }
        }
        let complete = end || poll_fn(|cx| self.poll_rest(host, upstream, cx)).await.is_ok();
        self.grpc_status(host, None);
        if !complete || !self.sent_all {
            upstream.reset(ResetReason::LocalReset);
        }
        if let Some(since) = self.complete {
            self.note_time(cluster, host, clock::now().saturating_duration_since(since));
        }
        Ok(())
    }

    fn note_time(&self, cluster: &Cluster, host: &Host, time: Duration) {
        record_budget(cluster, time, self.terms.timeout);
        self.responses(Some(host)).record_time(time.as_millis() as u64);
    }

    /// The next frame of the body; None when the copy is given up.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        match self.replay.as_ref().map_or(Next::Unread, |replay| replay.next(self.sent)) {
            Next::Kept(frame) => Poll::Ready(Some(frame)),
            Next::Lost => Poll::Ready(None),
            Next::Unread => {
                let frame = std::task::ready!(self.queue.poll_frame(cx));
                if let Some(frame) = &frame {
                    self.copies.iter().for_each(|copy| copy.push(frame));
                    if let Some(replay) = &mut self.replay
                        && !replay.keep(frame)
                    {
                        self.cluster.stats.retry_or_shadow_abandoned().inc();
                    }
                    if frame.is_end() {
                        self.copies.clear();
                        self.complete = Some(clock::now());
                    }
                }
                Poll::Ready(frame)
            }
        }
    }

    /// Sends what is there. Ready only when the try has to end.
    fn poll_request(&mut self, upstream: &mut PooledStream, cx: &mut Context<'_>) -> Poll<Failed> {
        while !self.sent_all {
            match upstream.poll_capacity(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(failed(&error)),
                Poll::Pending => break,
            }
            let mut frame = match self.poll_frame(cx) {
                Poll::Ready(Some(frame)) => frame,
                Poll::Ready(None) => return Poll::Ready(Failed::Cancelled),
                Poll::Pending => break,
            };
            self.sent += 1;
            self.sent_all = frame.is_end();
            if let Some(per_try) = &mut self.per_try {
                let mut view = StreamView { request: &mut self.headers, info: &mut self.info, route: None };
                if per_try.decode_frame(&mut view, &mut frame).is_some() {
                    return Poll::Ready(Failed::Cancelled);
                }
            }
            let sent = match frame {
                Frame::Data(data, end) => upstream.send_data(data, end),
                Frame::Trailers(trailers) => upstream.send_trailers(&trailers),
            };
            if let Err(error) = sent {
                return Poll::Ready(failed(&error));
            }
        }
        // Reading tells what became of a request that could not be written.
        let _ = upstream.poll_flush(cx);
        if self.complete.is_some() {
            if self.deadline.is_none() {
                self.deadline = self.terms.timeout.map(timer::sleep);
            }
            if self.try_deadline.is_none() && self.retry.is_some() {
                let policy = self.cluster.policies().and_then(|own| own.retry.as_ref());
                self.try_deadline = policy.and_then(|policy| policy.per_try_timeout).map(timer::sleep);
            }
        }
        if let Some(deadline) = &mut self.deadline
            && Pin::new(deadline).poll(cx).is_ready()
        {
            return Poll::Ready(Failed::Timeout);
        }
        match &mut self.try_deadline {
            Some(deadline) if self.retry.is_some() => Pin::new(deadline).poll(cx).map(|()| Failed::TryTimeout),
            _ => Poll::Pending,
        }
    }

    /// Ready with the head of the response, and whether it has no body.
    fn poll_head(
        &mut self,
        host: &Host,
        upstream: &mut PooledStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Headers, bool), Failed>> {
        if let Poll::Ready(failed) = self.poll_request(upstream, cx) {
            return Poll::Ready(Err(failed));
        }
        loop {
            match upstream.poll_headers(cx) {
                Poll::Ready(Ok((head, _))) if (100..200).contains(&head.status()) => {
                    if !self.informed && matches!(head.status(), 100 | 102..=104) {
                        self.informed = true;
                        self.responses(Some(host)).count_code(head.status());
                    }
                }
                Poll::Ready(Ok((mut head, end))) => {
                    if let Some(per_try) = &mut self.per_try {
                        let mut view = StreamView { request: &mut self.headers, info: &mut self.info, route: None };
                        if per_try.encode_headers(&mut view, &mut head, end).is_some() {
                            return Poll::Ready(Err(Failed::Cancelled));
                        }
                    }
                    return Poll::Ready(Ok((head, end)));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(failed(&error))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Reads the body to its end.
    fn poll_rest(
        &mut self,
        host: &Host,
        upstream: &mut PooledStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failed>> {
        if let Poll::Ready(failed) = self.poll_request(upstream, cx) {
            if matches!(failed, Failed::Timeout) {
                self.cluster.stats.upstream_rq_timeout().inc();
                host.stats.rq_timeout.fetch_add(1, Relaxed);
            }
            return Poll::Ready(Err(failed));
        }
        loop {
            match std::task::ready!(upstream.poll_frame(cx)) {
                Ok(mut frame) => {
                    if let Some(per_try) = &mut self.per_try {
                        let mut view = StreamView { request: &mut self.headers, info: &mut self.info, route: None };
                        per_try.encode_frame(&mut view, &mut frame);
                    }
                    if frame.is_end() {
                        self.grpc_status(
                            host,
                            match &frame {
                                Frame::Trailers(trailers) => Some(trailers),
                                Frame::Data(..) => None,
                            },
                        );
                        return Poll::Ready(Ok(()));
                    }
                }
                Err(error) => return Poll::Ready(Err(failed(&error))),
            }
        }
    }

    /// The gRPC status has come, or will not.
    fn grpc_status(&mut self, host: &Host, trailers: Option<&Headers>) {
        if std::mem::take(&mut self.grpc_status_due) {
            host.stats.count_request(trailers.is_some_and(outlier::is_grpc_success));
        }
    }

    /// Where responses count.
    fn responses<'a>(&'a self, host: Option<&'a Host>) -> Responses<'a> {
        // Nobody outside has asked for a copy.
        let (canary, counted) = (self.canary, self.terms.counted);
        Responses { cluster: &self.cluster, host, internal: true, canary, counted }
    }

    /// Counts a response, or what stands for one.
    fn charge(&self, host: Option<&Host>, status: u16, answered: bool) {
        let responses = self.responses(host);
        responses.count_code(status);
        responses.judge_host(status, answered);
    }
}

/// What a stream's error counts as.
fn failed(error: &StreamError) -> Failed {
    Failed::Reset(error.reason, true)
}
