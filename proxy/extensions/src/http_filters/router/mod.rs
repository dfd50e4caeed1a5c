//! The router: answers a request from the upstream that its route names.
//!
//! ```text
//! route -> direct response / redirect
//!       -> cluster -> timeouts -> rewrite -> [ host -> connection -> request -> head ] -> body -> trailers
//!                                              ^-- back-off <-- retry? --'
//! ```
//!
//! One future per request on its worker. The request body is pulled from downstream only while the upstream takes it
//! and the response body the other way round, so a slow peer stops the fast one and memory stays bounded. A response
//! that has begun downstream is never retried. Details, flags and bodies are Envoy's (`Router::Filter`).

mod attempt;
mod hash;
mod retry;
mod timeouts;

use crate::registry::HttpFilterEntry;
use attempt::{Attempt, Outcome, Replay};
use nuncio_base::random;
use nuncio_base::timer;
use nuncio_config::route::RouteAction;
use nuncio_http::active_stream::ActiveStream;
use nuncio_http::codec::ResetReason;
use nuncio_http::filter::{LocalFuture, TerminalFilter};
use nuncio_http::formatter::FormatContext;
use nuncio_http::headers::{HeaderValue, names};
use nuncio_http::local_reply::LocalReply;
use nuncio_http::route::ActiveRoute;
use nuncio_http::stream_info::ResponseFlags;
use nuncio_upstream::{Cluster, ClusterManager, LbContext, Resource, ResourcePriority};
use retry::{RetryState, Verdict};
use smallvec::SmallVec;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use timeouts::Timeouts;
use tokio::time::Instant;

/// `envoy.extensions.filters.http.router.v3.Router`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouterConfig {
    /// `suppress_envoy_headers`.
    pub suppress_envoy_headers: bool,
    /// `respect_expected_rq_timeout`.
    pub respect_expected_rq_timeout: bool,
    /// `dynamic_stats`; default true.
    pub dynamic_stats: bool,
}

/// The router filter.
pub struct Router {
    config: RouterConfig,
    clusters: Arc<ClusterManager>,
}

impl Router {
    /// A router over the clusters of the process.
    pub fn new(config: RouterConfig, clusters: Arc<ClusterManager>) -> Router {
        Router { config, clusters }
    }
}

impl TerminalFilter for Router {
    fn serve<'a>(&'a self, stream: &'a mut ActiveStream<'_>) -> LocalFuture<'a, ()> {
        Box::pin(self.route(stream))
    }
}

/// What the tries of one request share.
pub(crate) struct Request {
    pub(crate) route: ActiveRoute,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) priority: ResourcePriority,
    pub(crate) timeouts: Timeouts,
    pub(crate) retry: Option<RetryState>,
    pub(crate) replay: Option<Replay>,
    pub(crate) internal: bool,
    pub(crate) hash: Option<u64>,
    pub(crate) set_cookie: Vec<HeaderValue>,
    pub(crate) hosts: SmallVec<[Arc<nuncio_upstream::Host>; 1]>,
    pub(crate) timeout_at: Option<timer::Sleep>,
    pub(crate) duration_at: Option<timer::Sleep>,
}

impl Router {
    async fn route(&self, stream: &mut ActiveStream<'_>) {
        let stats = &stream.connection.hcm.stats;
        stats.rq_total().inc();
        if let Some(location) = stream.tls_redirect.clone() {
            stats.rq_direct_response().inc();
            stream.local_reply(LocalReply::new(301, "", "direct_response").header(names::LOCATION, location));
            return;
        }
        let Some(route) = stream.route.clone() else {
            stats.no_route().inc();
            stream.local_reply(LocalReply::new(404, "", "route_not_found").flags(ResponseFlags::NO_ROUTE_FOUND));
            return;
        };
        let entry = route.entry();
        if let Some(direct) = entry.direct_response() {
            stats.rq_direct_response().inc();
            let mut reply = LocalReply::new(direct.status, "", "direct_response");
            reply.body = direct.body;
            if let Some(format) = entry.direct_response_format() {
                stream.info.local_reply_body = Some(reply.body);
                let cx = FormatContext { request: Some(&stream.request), ..FormatContext::new(&stream.info) };
                reply.body = format.body(&cx);
                reply.content_type = Some(format.content_type().clone());
            }
            if let Some(location) = entry.new_location(&stream.request, &stream.info) {
                reply = reply.header(names::LOCATION, location);
            }
            stream.routed_reply(reply);
            return;
        }
        let Some(action) = entry.route_action() else {
            stream.local_reply(LocalReply::new(404, "", "route_not_found").flags(ResponseFlags::NO_ROUTE_FOUND));
            return;
        };
        let cluster = route.cluster().and_then(|name| self.clusters.cluster(name));
        let Some(cluster) = cluster else {
            stats.no_cluster().inc();
            stream.info.upstream.cluster = None;
            stream.info.upstream.cluster_alt_name = None;
            let status = action.cluster_not_found_response_code;
            stream
                .routed_reply(LocalReply::new(status, "", "cluster_not_found").flags(ResponseFlags::NO_CLUSTER_FOUND));
            return;
        };
        stream.info.upstream.cluster = Some(cluster.name().clone());
        stream.info.upstream.cluster_alt_name = Some(cluster.observability_name.clone());
        let mut request = self.prepare(stream, route.clone(), action, cluster);
        self.run(stream, &mut request).await;
    }

    /// Timeouts, retries, rewrites: everything that is done once per request.
    fn prepare(
        &self,
        stream: &mut ActiveStream<'_>,
        route: ActiveRoute,
        action: &RouteAction,
        cluster: Arc<Cluster>,
    ) -> Request {
        let suppress = self.config.suppress_envoy_headers;
        let entry = route.entry().clone();
        let policy = entry.retry_policy();
        let per_try = policy.map_or((None, None), |p| (p.per_try_timeout, p.per_try_idle_timeout));
        let grpc = stream.is_grpc();
        let timeouts = timeouts::of_request(
            action,
            &mut stream.request,
            grpc,
            per_try,
            cluster.config.http.max_stream_duration,
            self.config.respect_expected_rq_timeout,
            suppress,
        );
        let retry = RetryState::new(policy, entry.retry_conditions(), &mut stream.request);
        let mut set_cookie = Vec::new();
        let hash = match action.hash_policy.is_empty() {
            true => None,
            false => hash::of_request(&action.hash_policy, &stream.request, &stream.info, &mut set_cookie),
        };
        route.finalize_request_headers(&mut stream.request, &FormatContext::new(&stream.info), !suppress);
        let limit = entry.per_request_buffer_limit_bytes().map_or(stream.buffer_limit(), |l| l as usize);
        let replay = retry.as_ref().map(|_| Replay::new(limit));
        let priority = if action.high_priority { ResourcePriority::High } else { ResourcePriority::Default };
        Request {
            duration_at: timeouts.max_stream_duration.map(timer::sleep),
            route,
            cluster,
            priority,
            timeouts,
            retry,
            replay,
            internal: stream.internal,
            hash,
            set_cookie,
            hosts: SmallVec::new(),
            timeout_at: None,
        }
    }

    async fn run(&self, stream: &mut ActiveStream<'_>, request: &mut Request) {
        let mut attempts = 0;
        loop {
            attempts += 1;
            stream.info.attempt_count = attempts;
            if request.route.entry().virtual_host().config().include_request_attempt_count {
                stream.request.set(names::X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(u64::from(attempts)));
            }
            let outcome = Attempt::run(&self.config, stream, request, attempts).await;
            match outcome {
                Outcome::Done => return self.retried(request, stream, attempts),
                Outcome::Abort(abort) => return stream.abort(abort),
                Outcome::NoHost => return no_healthy_upstream(stream, request),
                Outcome::GlobalTimeout => return timed_out(stream, request),
                Outcome::MaxDuration => {
                    request.cluster.stats.upstream_rq_max_duration_reached().inc();
                    let flags = ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED;
                    let reply = LocalReply::new(
                        504,
                        "upstream max stream duration reached",
                        "upstream_max_stream_duration_reached",
                    );
                    charge(request, 504);
                    return stream.routed_reply(reply.flags(flags));
                }
                Outcome::Retry => {}
                Outcome::Failed(failure) => {
                    if !self.may_retry(stream, request, &failure) {
                        return failure.answer(stream, request);
                    }
                }
            }
            request.cluster.stats.upstream_rq_retry().inc();
            request.cluster.stats.upstream_rq_retry_backoff_exponential().inc();
            let _held = Held::new(request, Resource::Retries);
            let delay = request.retry.as_ref().map_or(std::time::Duration::ZERO, |r| r.back_off(random::u64()));
            if let Some(end) = back_off(stream, request, delay).await {
                match end {
                    BackOffEnd::Abort(abort) => return stream.abort(abort),
                    BackOffEnd::Timeout => return timed_out(stream, request),
                }
            }
        }
    }

    /// A response arrived after retries.
    fn retried(&self, request: &Request, stream: &ActiveStream<'_>, attempts: u32) {
        if attempts > 1 && stream.info.response_code < 500 {
            request.cluster.stats.upstream_rq_retry_success().inc();
        }
    }

    /// Whether a try that failed without a response is repeated.
    fn may_retry(&self, stream: &mut ActiveStream<'_>, request: &mut Request, failure: &attempt::Failure) -> bool {
        let Some(retry) = &mut request.retry else { return false };
        if stream.response_started() {
            return false;
        }
        let verdict = match failure.per_try_timeout {
            true => retry.on_per_try_timeout(),
            false => retry.on_reset(failure.reason, failure.request_sent),
        };
        granted(stream, request, verdict)
    }
}

/// Applies what limits retries beside their number: buffered bodies and circuit breakers.
pub(crate) fn granted(stream: &mut ActiveStream<'_>, request: &mut Request, verdict: Verdict) -> bool {
    let stats = &request.cluster.stats;
    match verdict {
        Verdict::No => false,
        Verdict::LimitExceeded => {
            stats.upstream_rq_retry_limit_exceeded().inc();
            stream.info.flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
            false
        }
        Verdict::Retry => {
            if request.replay.as_ref().is_none_or(Replay::is_abandoned) {
                return false;
            }
            if !request.cluster.resource_manager(request.priority).can_create(Resource::Retries) {
                stats.upstream_rq_retry_overflow().inc();
                return false;
            }
            true
        }
    }
}

/// A unit of a circuit breaker's resource, given back when dropped.
struct Held {
    cluster: Arc<Cluster>,
    priority: ResourcePriority,
    resource: Resource,
}

impl Held {
    fn new(request: &Request, resource: Resource) -> Held {
        request.cluster.resource_manager(request.priority).inc(resource);
        Held { cluster: request.cluster.clone(), priority: request.priority, resource }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.cluster.resource_manager(self.priority).dec(self.resource);
    }
}

enum BackOffEnd {
    Abort(nuncio_http::active_stream::Abort),
    Timeout,
}

async fn back_off(
    stream: &mut ActiveStream<'_>,
    request: &mut Request,
    delay: std::time::Duration,
) -> Option<BackOffEnd> {
    let mut sleep = timer::sleep(delay);
    poll_fn(|cx| {
        if let Poll::Ready(abort) = stream.poll_abort(cx) {
            return Poll::Ready(Some(BackOffEnd::Abort(abort)));
        }
        if let Some(timeout) = &mut request.timeout_at
            && Pin::new(timeout).poll(cx).is_ready()
        {
            return Poll::Ready(Some(BackOffEnd::Timeout));
        }
        Pin::new(&mut sleep).poll(cx).map(|()| None)
    })
    .await
}

fn no_healthy_upstream(stream: &mut ActiveStream<'_>, request: &Request) {
    request.cluster.stats.upstream_cx_none_healthy().inc();
    charge(request, 503);
    stream.routed_reply(
        LocalReply::new(503, "no healthy upstream", "no_healthy_upstream").flags(ResponseFlags::NO_HEALTHY_UPSTREAM),
    );
}

fn timed_out(stream: &mut ActiveStream<'_>, request: &Request) {
    request.cluster.stats.upstream_rq_timeout().inc();
    if let Some(host) = request.hosts.last() {
        host.stats.rq_timeout.fetch_add(1, Relaxed);
    }
    if !stream.response_started() {
        charge(request, 504);
    }
    stream.routed_reply(
        LocalReply::new(504, "upstream request timeout", "response_timeout")
            .flags(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT),
    );
}

/// Counts a response of the cluster by its code; local replies about the upstream count too, as in Envoy.
pub(crate) fn charge(request: &Request, code: u16) {
    let stats = &request.cluster.stats;
    stats.responses().codes.count(code);
    match request.internal {
        true => stats.internal().codes.count(code),
        false => stats.external().codes.count(code),
    }
    if let Some(host) = request.hosts.last() {
        let _ = match code >= 500 {
            true => host.stats.rq_error.fetch_add(1, Relaxed),
            false => host.stats.rq_success.fetch_add(1, Relaxed),
        };
    }
}

/// Counts a response that is thrown away for another try: apart from those that downstream gets.
pub(crate) fn charge_retried(request: &Request, code: u16) {
    request.cluster.stats.retried().codes.count(code);
    if code >= 500
        && let Some(host) = request.hosts.last()
    {
        host.stats.rq_error.fetch_add(1, Relaxed);
    }
}

/// Time since the whole request had arrived, as `upstream_rq_time` and `x-envoy-upstream-service-time` tell it.
pub(crate) fn service_time(stream: &ActiveStream<'_>, now: Instant) -> u64 {
    let since = stream.info.request_complete.unwrap_or(stream.info.start);
    now.saturating_duration_since(since).as_millis() as u64
}

/// The response flag of a reset, as Envoy maps them.
pub(crate) fn flag_of(reason: ResetReason) -> ResponseFlags {
    use ResetReason as R;
    match reason {
        R::LocalConnectionFailure | R::RemoteConnectionFailure | R::ConnectionTimeout => {
            ResponseFlags::UPSTREAM_CONNECTION_FAILURE
        }
        R::ConnectionTermination => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
        R::LocalReset | R::LocalRefusedStreamReset => ResponseFlags::LOCAL_RESET,
        R::Overflow => ResponseFlags::UPSTREAM_OVERFLOW,
        R::RemoteReset | R::RemoteRefusedStreamReset | R::ConnectError => ResponseFlags::UPSTREAM_REMOTE_RESET,
        R::ProtocolError => ResponseFlags::UPSTREAM_PROTOCOL_ERROR,
        R::OverloadManager => ResponseFlags::OVERLOAD_MANAGER,
    }
}

/// What the load balancer is told about a request.
pub(crate) fn lb_context(request: &Request) -> LbContext<'_> {
    LbContext { hash: request.hash, ..LbContext::default() }
}

/// The router in the registry.
pub const ENTRY: HttpFilterEntry = HttpFilterEntry {
    name: "envoy.filters.http.router",
    message: "envoy.extensions.filters.http.router.v3.Router",
    terminal: true,
    build: |filter, context, chain| {
        use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router as Message;
        let message = <Message as prost::Message>::decode(filter.config.value.clone()).map_err(|e| e.to_string())?;
        let config = RouterConfig {
            suppress_envoy_headers: message.suppress_envoy_headers,
            respect_expected_rq_timeout: message.respect_expected_rq_timeout,
            dynamic_stats: message.dynamic_stats.is_none_or(|v| v.value),
        };
        chain.set_terminal(Box::new(Router::new(config, context.clusters.clone())));
        Ok(())
    },
};
