//! Request mirroring: copies of a request go to other clusters, fire and forget.
//!
//! ```text
//! request ──► the try that answers
//!    └─copy─► queue ──► a task of this worker ──► mirror's cluster      (its response is read and thrown away)
//! ```
//! The main stream never waits for a copy: one whose queue is over the limit is given up. When the main stream ends before
//! its request does, so do the copies.

use super::per_try::{Begin, PerTry};
use super::{Request, RouterConfig};
use nuncio_base::clock;
use nuncio_base::timer::{self, Sleep};
use nuncio_http::active_stream::ActiveStream;
use nuncio_http::codec::{BytesMeter, Frame, Protocol, ResetReason, StreamError};
use nuncio_http::filter::{HeadersAction, StreamView};
use nuncio_http::formatter::FormatContext;
use nuncio_http::headers::{HeaderValue, Headers, names};
use nuncio_http::stream_info::StreamInfo;
use nuncio_http::upstream_filters::missing_header;
use nuncio_upstream::{
    Cluster, ClusterManager, Host, LbContext, PooledStream, ResourcePriority, StreamOptions, http_stream,
};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::Instant;

nuncio_base::stat_family! {
    /// `http.async-client.`: requests that the proxy makes itself.
    pub(crate) struct AsyncClientStats {
        counters {
            no_cluster, no_route,
            passthrough_internal_redirect_bad_location, passthrough_internal_redirect_no_route,
            passthrough_internal_redirect_predicate, passthrough_internal_redirect_too_many_redirects,
            passthrough_internal_redirect_unsafe_scheme,
            rq_direct_response, rq_overload_local_reply, rq_redirect, rq_reset_after_downstream_response_started,
            rq_total,
        }
    }
}

/// The request's end of a copy's queue.
pub(crate) struct Copy(Rc<Queue>);

#[derive(Default)]
struct Queue {
    frames: RefCell<VecDeque<Frame>>,
    bytes: Cell<usize>,
    limit: usize,
    ended: Cell<bool>,
    /// The copy is not to be finished.
    cancelled: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Queue {
    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// The next frame; None when the copy is given up.
    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        if self.cancelled.get() {
            return Poll::Ready(None);
        }
        if let Some(frame) = self.frames.borrow_mut().pop_front() {
            if let Frame::Data(data, _) = &frame {
                self.bytes.set(self.bytes.get() - data.len());
            }
            return Poll::Ready(Some(frame));
        }
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Copy {
    /// Adds a frame; a queue that grows over its limit ends the copy.
    pub(crate) fn push(&self, frame: &Frame) {
        let queue = &*self.0;
        if queue.cancelled.get() {
            return;
        }
        if let Frame::Data(data, _) = frame {
            queue.bytes.set(queue.bytes.get() + data.len());
        }
        if queue.bytes.get() > queue.limit {
            queue.cancelled.set(true);
            queue.frames.borrow_mut().clear();
        } else {
            queue.frames.borrow_mut().push_back(super::replay::copy(frame));
            queue.ended.set(frame.is_end());
        }
        queue.wake();
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if !self.0.ended.get() {
            self.0.cancelled.set(true);
            self.0.wake();
        }
    }
}

/// Begins the copies of a request whose headers are ready to be sent.
pub(crate) fn start(
    config: &Arc<RouterConfig>,
    stream: &ActiveStream<'_>,
    request: &mut Request,
    clusters: &Arc<ClusterManager>,
    stats: &AsyncClientStats,
    limit: usize,
) {
    let entry = request.route.entry().clone();
    let cluster = request.cluster.clone();
    let own = cluster.policies().map(|own| &*own.mirrors).filter(|own| !own.is_empty());
    let mirrors = own.unwrap_or_else(|| entry.mirrors());
    if mirrors.is_empty() || stream.request.method() == b"CONNECT" {
        return;
    }
    let random = nuncio_base::random::u64();
    for mirror in mirrors.iter().filter(|mirror| mirror.applies(&*stream.connection.hcm.runtime, random)) {
        let Some(cluster) = mirror.cluster(&stream.request).and_then(|name| clusters.cluster(name)) else { continue };
        let mut headers = stream.request.clone();
        mirror.finalize(&mut headers, &FormatContext::new(&stream.info));
        headers.set(names::X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
        let local = stream.connection.hcm.local.address.as_bytes();
        headers.append_joined(names::X_FORWARDED_FOR, local, ", ");
        stats.rq_total().inc();
        let queue = Rc::new(Queue { limit: limit.max(1), ..Queue::default() });
        let end = stream.request_complete();
        queue.ended.set(end);
        let task = Task {
            config: config.clone(),
            info: StreamInfo::new(stream.info.connection.clone(), 0, None),
            per_try: None,
            cluster,
            headers,
            end,
            queue: queue.clone(),
            timeout: request.timeouts.global,
            priority: request.priority,
            protocol: stream.protocol(),
            complete: end.then(Instant::now),
            deadline: None,
        };
        if !end {
            request.copies.push(Copy(queue));
        }
        tokio::task::spawn_local(task.run());
    }
}

/// One copy on its way.
struct Task {
    config: Arc<RouterConfig>,
    /// What filters and logs see.
    info: StreamInfo,
    /// Those that there are.
    per_try: Option<Box<PerTry>>,
    cluster: Arc<Cluster>,
    headers: Headers,
    end: bool,
    queue: Rc<Queue>,
    timeout: Option<Duration>,
    priority: ResourcePriority,
    protocol: Protocol,
    /// When the request was complete.
    complete: Option<Instant>,
    /// Counts from then on.
    deadline: Option<Sleep>,
}

/// How a copy ended without a response.
enum Failed {
    Cancelled,
    Status(u16),
}

impl Task {
    async fn run(mut self) {
        let Some(host) = self.cluster.choose_host(&LbContext { headers: Some(&self.headers), ..LbContext::default() })
        else {
            self.cluster.stats.upstream_cx_none_healthy().inc();
            return self.charge(503);
        };
        let cluster = self.cluster.clone();
        self.info.upstream.host = Some(host.address_text.clone());
        let mut view = StreamView { request: &mut self.headers, info: &mut self.info, route: None };
        let begin = Begin { config: &self.config, cluster: &cluster, host: &host, per_try_timeout: None };
        self.per_try = PerTry::begin(begin, &mut view);
        let result = match self.filter_head().await {
            true => self.exchange(&cluster, &host).await,
            false => Err(Failed::Cancelled),
        };
        if let Some(mut per_try) = self.per_try.take() {
            let meters = (BytesMeter::default(), self.info.upstream.meter);
            let mut view = StreamView { request: &mut self.headers, info: &mut self.info, route: None };
            per_try.end(&self.config, &cluster, &mut view, meters);
        }
        match result {
            Ok(()) | Err(Failed::Cancelled) => {}
            Err(Failed::Status(status)) => {
                if status == 504 {
                    cluster.stats.upstream_rq_timeout().inc();
                    host.stats.rq_timeout.fetch_add(1, Relaxed);
                }
                host.stats.rq_error.fetch_add(1, Relaxed);
                self.charge(status);
            }
        }
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
            priority: self.priority,
            downstream_protocol: Some(self.protocol),
            authority: authority.as_ref().and_then(HeaderValue::to_str),
            ..StreamOptions::default()
        };
        let checkout = http_stream(cluster, host, &options);
        let checked = match self.timeout {
            Some(timeout) => timer::timeout(timeout, checkout).await.map_err(|_| Failed::Status(504))?,
            None => checkout.await,
        };
        let mut upstream = checked.map_err(|_| Failed::Status(503))?;
        if let Some(per_try) = &mut self.per_try {
            per_try.connected(&self.config, &upstream, &self.headers);
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
        let result = poll_fn(|cx| self.poll_head(upstream, cx)).await;
        let (status, end) = match result {
            Ok(head) => head,
            Err(failed) => {
                upstream.reset(ResetReason::LocalReset);
                return Err(failed);
            }
        };
        self.charge(status);
        host.stats.rq_success.fetch_add(u64::from(status < 500), Relaxed);
        host.stats.rq_error.fetch_add(u64::from(status >= 500), Relaxed);
        let complete = end || poll_fn(|cx| self.poll_rest(upstream, cx)).await.is_ok();
        if !complete || !self.end {
            upstream.reset(ResetReason::LocalReset);
        }
        if let Some(since) = self.complete {
            let millis = clock::now().saturating_duration_since(since).as_millis() as u64;
            cluster.stats.responses().time.upstream_rq_time().record(millis);
            cluster.stats.internal().time.upstream_rq_time().record(millis);
        }
        Ok(())
    }

    /// Sends what is queued. Ready only when the copy has to end.
    fn poll_request(&mut self, upstream: &mut PooledStream, cx: &mut Context<'_>) -> Poll<Failed> {
        while !self.end {
            match upstream.poll_capacity(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(failed(&error)),
                Poll::Pending => break,
            }
            let mut frame = match self.queue.poll_frame(cx) {
                Poll::Ready(Some(frame)) => frame,
                Poll::Ready(None) => return Poll::Ready(Failed::Cancelled),
                Poll::Pending => break,
            };
            self.end = frame.is_end();
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
            if self.end {
                self.complete = Some(clock::now());
            }
        }
        // Reading tells what became of a request that could not be written.
        let _ = upstream.poll_flush(cx);
        if self.end && self.deadline.is_none() {
            self.deadline = self.timeout.map(timer::sleep);
        }
        match &mut self.deadline {
            Some(deadline) => Pin::new(deadline).poll(cx).map(|()| Failed::Status(504)),
            None => Poll::Pending,
        }
    }

    /// Ready with the status of the response, and whether it has no body.
    fn poll_head(&mut self, upstream: &mut PooledStream, cx: &mut Context<'_>) -> Poll<Result<(u16, bool), Failed>> {
        if let Poll::Ready(failed) = self.poll_request(upstream, cx) {
            return Poll::Ready(Err(failed));
        }
        loop {
            match upstream.poll_headers(cx) {
                Poll::Ready(Ok((head, _))) if (100..200).contains(&head.status()) => {}
                Poll::Ready(Ok((mut head, end))) => {
                    if let Some(per_try) = &mut self.per_try {
                        let mut view = StreamView { request: &mut self.headers, info: &mut self.info, route: None };
                        if per_try.encode_headers(&mut view, &mut head, end).is_some() {
                            return Poll::Ready(Err(Failed::Cancelled));
                        }
                    }
                    return Poll::Ready(Ok((head.status(), end)));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(failed(&error))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Reads the body to its end.
    fn poll_rest(&mut self, upstream: &mut PooledStream, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        if let Poll::Ready(failed) = self.poll_request(upstream, cx) {
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
                        return Poll::Ready(Ok(()));
                    }
                }
                Err(error) => return Poll::Ready(Err(failed(&error))),
            }
        }
    }

    fn charge(&self, status: u16) {
        self.cluster.stats.responses().codes.count(status);
        self.cluster.stats.internal().codes.count(status);
    }
}

/// What a stream's error counts as.
fn failed(error: &StreamError) -> Failed {
    Failed::Status(if error.reason == ResetReason::ProtocolError { 502 } else { 503 })
}
