//! Request mirroring: copies of a request go to other clusters, fire and forget.
//!
//! ```text
//! request ──► the try that answers
//!    └─copy─► queue ──► a task of this worker ──► mirror's cluster      (its response is read and thrown away)
//! ```
//! The main stream never waits for a copy: one whose queue is over the limit is given up. When the main stream ends before
//! its request does, so do the copies. What becomes of a copy is in `mirror_task`.

use super::mirror_task::{Task, Terms};
use super::{Request, RouterConfig};
use nuncio_http::active_stream::ActiveStream;
use nuncio_http::codec::Frame;
use nuncio_http::formatter::FormatContext;
use nuncio_http::header_rules::LocalInfo;
use nuncio_http::headers::{HeaderValue, Headers, names};
use nuncio_http::matchers::Runtime;
use nuncio_http::route::Mirror;
use nuncio_http::stream_info::StreamInfo;
use nuncio_upstream::ClusterManager;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

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

/// How often a copy is copied by the cluster that it goes to. Envoy has no end of it where clusters name each other.
const MOST_COPIES_OF_COPIES: u8 = 4;

/// The request's end of a copy's queue.
pub(crate) struct Copy(Rc<Queue>);

/// A copy's end of its queue.
#[derive(Default)]
pub(crate) struct Queue {
    frames: RefCell<VecDeque<Frame>>,
    bytes: Cell<usize>,
    limit: usize,
    ended: Cell<bool>,
    /// The copy is not to be finished.
    cancelled: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Queue {
    /// Whether nothing more will come.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended.get()
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// The next frame; None when the copy is given up.
    pub(crate) fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
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

/// What all copies of a request share.
pub(crate) struct Origin {
    pub(crate) config: Arc<RouterConfig>,
    clusters: Arc<ClusterManager>,
    stats: AsyncClientStats,
    runtime: Arc<dyn Runtime>,
    local: Arc<LocalInfo>,
    /// Bytes that are kept of a body.
    pub(crate) limit: usize,
}

impl Origin {
    /// Begins the copies of a request with these headers, one for each of the policies that applies. Those are returned that
    /// want the rest of the body. `end`: there is none.
    fn begin(
        self: &Rc<Self>,
        mirrors: &[Mirror],
        headers: &Headers,
        info: &StreamInfo,
        end: bool,
        terms: &Terms,
    ) -> Vec<Copy> {
        let random = nuncio_base::random::u64();
        let mut copies = Vec::new();
        for mirror in mirrors.iter().filter(|mirror| mirror.applies(&*self.runtime, random)) {
            let cluster = mirror.cluster(headers).and_then(|name| self.clusters.cluster(name));
            let Some(cluster) = cluster else { continue };
            let mut own = headers.clone();
            mirror.finalize(&mut own, &FormatContext::new(info));
            own.set(names::X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
            own.append_joined(names::X_FORWARDED_FOR, self.local.address.as_bytes(), ",");
            self.stats.rq_total().inc();
            let queue = Rc::new(Queue { limit: self.limit.max(1), ..Queue::default() });
            queue.ended.set(end);
            let info = StreamInfo::new(info.connection.clone(), 0, None);
            let task = Task::new(self.clone(), cluster, own, info, queue.clone(), terms.clone());
            if !end {
                copies.push(Copy(queue));
            }
            tokio::task::spawn_local(task.run());
        }
        copies
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
    let hcm = &stream.connection.hcm;
    let origin = Rc::new(Origin {
        config: config.clone(),
        clusters: clusters.clone(),
        stats: stats.clone(),
        runtime: hcm.runtime.clone(),
        local: hcm.local.clone(),
        limit,
    });
    let terms = Terms {
        timeout: request.timeouts.global,
        priority: request.priority,
        protocol: stream.protocol(),
        grpc: stream.is_grpc(),
        counted: request.counted,
        retried_without_code: request.retried_without_code,
        metadata_match: request.route.metadata_match().cloned(),
        metadata: request.metadata.clone(),
        depth: 0,
    };
    let end = stream.request_complete();
    request.copies.extend(origin.begin(mirrors, &stream.request, &stream.info, end, &terms));
}

/// Begins the copies of a copy that the policies of its own cluster want.
pub(crate) fn copy_again(task: &Task) -> Vec<Copy> {
    let wanted = task.cluster.policies().map(|own| &*own.mirrors).unwrap_or_default();
    if wanted.is_empty() || task.terms.depth >= MOST_COPIES_OF_COPIES {
        return Vec::new();
    }
    let terms = Terms { metadata_match: None, metadata: None, depth: task.terms.depth + 1, ..task.terms.clone() };
    task.origin.begin(wanted, &task.headers, &task.info, task.end(), &terms)
}
