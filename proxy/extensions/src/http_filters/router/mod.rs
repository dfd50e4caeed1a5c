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
//!
//! Reading order: `timeouts`, `retry` (decisions, without I/O), `granting`, `connect`, `attempt` (one try), `deliver` (its
//! response), `per_try` and `filtered` (what few configurations add to it), `hedge` (several at once), `failure`,
//! `counting`, `redirect`, `mirror`, `mirror_task`, `strict`.

mod attempt;
mod connect;
mod counting;
mod deliver;
mod failure;
mod filtered;
mod granting;
mod hedge;
mod mirror;
mod mirror_task;
mod outlier;
mod per_try;
mod redirect;
mod replay;
mod retry;
mod strict;
mod timeouts;

use crate::registry::{BuildError, FactoryContext, HttpFilterEntry, path_of, upstream_chain};
use attempt::{Attempt, Outcome};
use counting::{Counted, Responses, charge, count_budget};
use failure::{Failure, charge_abort, timeout_reply};
use granting::{Decision, Held, Refresh, back_off, decide};
use mirror::AsyncClientStats;
use nuncio_base::clock;
use nuncio_base::random;
use nuncio_base::timer;
use nuncio_config::decode::Context as DecodeContext;
use nuncio_config::hcm::{HttpFilterConfig, ROUTER_UPSTREAM};
use nuncio_config::route::RouteAction;
use nuncio_config::router::StrictHeader;
use nuncio_http::access_log::AccessLogs;
use nuncio_http::active_stream::ActiveStream;
use nuncio_http::codec::Frame;
use nuncio_http::filter::{LocalFuture, TerminalFilter};
use nuncio_http::formatter::FormatContext;
use nuncio_http::headers::{HeaderValue, names};
use nuncio_http::local_reply::LocalReply;
use nuncio_http::route::{ActiveRoute, HashPolicies};
use nuncio_http::stream_info::{ResponseFlags, StreamInfo};
use nuncio_http::upstream_filters::UpstreamFilters;
use nuncio_upstream::stats::AltStats;
use nuncio_upstream::{Cluster, ClusterManager, Host, ResourcePriority};
use replay::Replay;
use retry::RetryState;
use smallvec::SmallVec;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;
use timeouts::Timeouts;

/// `envoy.extensions.filters.http.router.v3.Router`, compiled.
#[derive(Debug, Clone, Default)]
pub struct RouterConfig {
    /// What is counted of responses to other requests than gRPC, and to gRPC.
    pub(crate) counted: [Counted; 2],
    /// `suppress_grpc_request_failure_code_stats`.
    pub suppress_grpc_codes: bool,
    /// `suppress_envoy_headers`.
    pub suppress_envoy_headers: bool,
    /// `respect_expected_rq_timeout`.
    pub respect_expected_rq_timeout: bool,
    /// `strict_check_headers`.
    pub strict_check_headers: Box<[StrictHeader]>,
    /// `upstream_http_filters`: for clusters that have none of their own.
    pub filters: Option<UpstreamFilters>,
    /// `upstream_log`.
    pub logs: AccessLogs,
    /// Tries are logged also when their streams begin.
    pub log_on_upstream_stream: bool,
    /// And again and again while they go on.
    pub log_interval: Option<Duration>,
}

impl RouterConfig {
    /// What is counted of the response to a request.
    #[inline]
    pub(crate) fn counted(&self, grpc: bool) -> Counted {
        self.counted[usize::from(grpc)]
    }

    /// Whether tries need more than to be made.
    #[inline]
    fn is_extended(&self) -> bool {
        self.filters.is_some() || !self.logs.is_empty()
    }

    fn build(filter: &HttpFilterConfig, context: &FactoryContext) -> Result<RouterConfig, BuildError> {
        use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router as Message;
        let message = <Message as prost::Message>::decode(filter.config.value.clone()).map_err(|e| e.to_string())?;
        let mut cx = DecodeContext::new(path_of(&filter.config));
        let config = cx.run(|cx| nuncio_config::router::RouterConfig::decode(cx, &message))?;
        let counted = match (config.without_dynamic_stats, config.suppress_grpc_codes) {
            (true, _) => [Counted::Nothing; 2],
            (false, false) => [Counted::ByCode; 2],
            (false, true) => [Counted::ByCode, Counted::WithoutCode],
        };
        Ok(RouterConfig {
            counted,
            suppress_grpc_codes: config.suppress_grpc_codes,
            suppress_envoy_headers: config.suppress_envoy_headers,
            respect_expected_rq_timeout: config.respect_expected_rq_timeout,
            strict_check_headers: config.strict_check_headers.into(),
            filters: upstream_chain(&config.upstream_http_filters, ROUTER_UPSTREAM, context)?,
            logs: context.access_logs.build(&config.upstream_logs)?,
            log_on_upstream_stream: config.log_on_upstream_stream,
            log_interval: config.log_interval,
        })
    }
}

/// The router filter.
pub struct Router {
    config: Arc<RouterConfig>,
    clusters: Arc<ClusterManager>,
    async_client: AsyncClientStats,
}

impl Router {
    /// A router over the clusters of the process.
    pub fn new(config: RouterConfig, clusters: Arc<ClusterManager>, stats: &nuncio_base::stats::Registry) -> Router {
        Router { config: Arc::new(config), clusters, async_client: AsyncClientStats::new(stats, "http.async-client.") }
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
    /// What is counted of its responses.
    pub(crate) counted: Counted,
    /// Those that lead to another try are counted without their codes.
    pub(crate) retried_without_code: bool,
    pub(crate) canary: bool,
    pub(crate) hash: Option<u64>,
    /// How many of the hosts that the request names were tried.
    pub(crate) overrides_used: Cell<u32>,
    /// A response to it has told the load of its host.
    pub(crate) load_reported: bool,
    /// Of the request's dynamic metadata, what the choice of a subset reads.
    pub(crate) metadata: Option<Box<serde_json::Map<String, serde_json::Value>>>,
    pub(crate) set_cookie: Vec<HeaderValue>,
    pub(crate) hosts: SmallVec<[Arc<Host>; 1]>,
    pub(crate) timeout_at: Option<timer::Sleep>,
    /// Status of a timeout: 504, unless the request asks for 204.
    pub(crate) timeout_status: u16,
    /// Late tries go on beside the next one.
    pub(crate) hedge: bool,
    /// Those that do.
    pub(crate) hedged: Vec<Attempt>,
    /// Copies for mirrors that want the rest of the body.
    pub(crate) copies: Vec<mirror::Copy>,
    /// The retry in progress, as the circuit breaker counts it.
    retry_slot: Option<Held>,
    /// Retries choose their cluster anew.
    pub(crate) refresh: Option<Box<Refresh>>,
    /// Statistics under a name that the request brought.
    alternative: Option<Arc<AltStats>>,
}

impl Request {
    /// A piece of the body was read: it goes to the copies, and is kept for other tries while it is not too large.
    pub(crate) fn keep(&mut self, frame: &Frame) {
        self.copies.iter().for_each(|copy| copy.push(frame));
        if frame.is_end() {
            self.copies.clear();
        }
        if let Some(replay) = &mut self.replay
            && !replay.keep(frame)
        {
            self.cluster.stats.retry_or_shadow_abandoned().inc();
            self.copies.clear();
            self.release_retries();
        }
    }

    /// Where its responses count in its cluster; `host` has sent them, or was to.
    pub(crate) fn responses<'a>(&'a self, host: Option<&'a Host>) -> Responses<'a> {
        let Request { cluster, internal, canary, counted, .. } = self;
        Responses { cluster, host, internal: *internal, canary: *canary, counted: *counted }
    }

    /// The host of the last try.
    pub(crate) fn last_host(&self) -> Option<&Host> {
        self.hosts.last().map(|host| &**host)
    }

    /// There will be no further try.
    pub(crate) fn release_retries(&mut self) {
        self.retry = None;
        self.retry_slot = None;
    }
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
            entry.rewrite_redirected_path(&mut stream.request, !self.config.suppress_envoy_headers);
            stream.routed_reply(reply);
            return;
        }
        let action = entry.route_action();
        let cluster = route.cluster().and_then(|name| self.clusters.cluster(name));
        // A route that does not forward leads to no cluster.
        let (Some(action), Some(cluster)) = (action, cluster) else {
            stats.no_cluster().inc();
            stream.info.upstream.cluster = None;
            stream.info.upstream.cluster_alt_name = None;
            let status = action.map_or(503, |action| action.cluster_not_found_response_code);
            stream
                .routed_reply(LocalReply::new(status, "", "cluster_not_found").flags(ResponseFlags::NO_CLUSTER_FOUND));
            return;
        };
        note_cluster(&mut stream.info, &cluster);
        if let Some(reply) = strict::refusal(&self.config.strict_check_headers, &stream.request) {
            return stream.local_reply(reply);
        }
        if let Some(reply) = refused(&cluster, self.config.suppress_envoy_headers) {
            let counted = self.config.counted(stream.is_grpc());
            let internal = stream.internal;
            Responses { cluster: &cluster, host: None, internal, canary: false, counted }.count_code(503);
            if counted != Counted::Nothing {
                route.request_stats().for_each(|stats| stats.charge(503));
            }
            stream.routed_reply(reply);
            return;
        }
        let mut request = self.prepare(stream, route.clone(), action, cluster);
        self.run(stream, &mut request).await;
        // Whoever has answered, no other try goes on.
        hedge::reset_all(&self.config, stream, &mut request);
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
        let own = cluster.policies();
        let (policy, conditions) = match own.and_then(|own| own.retry.as_ref().map(|policy| (policy, own))) {
            Some((policy, own)) => (Some(policy), own.retry_conditions.as_ref()),
            None => (entry.retry_policy(), entry.retry_conditions()),
        };
        let per_try = policy.map_or((None, None), |p| (p.per_try_timeout, p.per_try_idle_timeout));
        let hedge = match stream.request.bytes(&names::X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT) {
            Some(b"true") => true,
            Some(b"false") => false,
            _ => action.hedge_on_per_try_timeout,
        };
        let rules = self.timeout_rules(stream, action, hedge);
        let limit = cluster.config.http.max_stream_duration;
        let timeouts = timeouts::of_request(rules, &mut stream.request, per_try, limit);
        let no_content = stream.request.remove(&names::X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE);
        if entry.virtual_host().config().include_request_attempt_count {
            stream.request.set(names::X_ENVOY_ATTEMPT_COUNT, HeaderValue::from_static("1"));
        }
        let mut set_cookie = Vec::new();
        let hash = hash_of(stream, &route, &cluster, Some(&mut |cookie| set_cookie.push(cookie)));
        stream.info.attempt_count = 1;
        route.finalize_request_headers(&mut stream.request, &FormatContext::new(&stream.info), !suppress);
        let mut alt_stat_name = None;
        let retry = RetryState::new(policy, conditions, &mut stream.request, &mut alt_stat_name);
        let alternative = alt_stat_name.as_ref().and_then(HeaderValue::to_str);
        let alternative = alternative.and_then(|name| cluster.stats.alternative(name));
        let limit = self.buffer_limit(stream, &route);
        let kept = retry.is_some() || entry.internal_redirect().is_some();
        let priority = if action.high_priority { ResourcePriority::High } else { ResourcePriority::Default };
        let metadata = subset_metadata(&stream.info, &cluster);
        let refreshes = policy.is_some_and(|policy| policy.refresh_cluster_on_retry) && route.chooses_anew();
        let clusters = refreshes.then(|| self.clusters.clone());
        let refresh = clusters.map(|clusters| Box::new(Refresh { clusters, alt_stat_name, missing: false }));
        let mut request = Request {
            metadata,
            route,
            cluster,
            priority,
            timeouts,
            retry,
            replay: kept.then(|| Replay::new(limit)),
            internal: stream.internal,
            counted: self.config.counted(stream.is_grpc()),
            retried_without_code: self.config.suppress_grpc_codes && stream.is_grpc(),
            canary: false,
            hash,
            overrides_used: Cell::new(0),
            load_reported: false,
            set_cookie,
            hosts: SmallVec::new(),
            timeout_at: None,
            timeout_status: if no_content { 204 } else { 504 },
            hedge,
            hedged: Vec::new(),
            copies: Vec::new(),
            retry_slot: None,
            refresh,
            alternative,
        };
        mirror::start(&self.config, stream, &mut request, &self.clusters, &self.async_client, limit);
        request
    }

    fn timeout_rules<'a>(
        &self,
        stream: &ActiveStream<'_>,
        action: &'a RouteAction,
        hedge: bool,
    ) -> timeouts::Rules<'a> {
        timeouts::Rules {
            action,
            grpc: stream.is_grpc(),
            hedge,
            respect_expected: self.config.respect_expected_rq_timeout,
            suppress: self.config.suppress_envoy_headers,
        }
    }

    /// Bytes of a request that are kept; the route can only lower what the connection allows.
    fn buffer_limit(&self, stream: &ActiveStream<'_>, route: &ActiveRoute) -> usize {
        let limit = route.entry().per_request_buffer_limit_bytes();
        limit.map_or(stream.buffer_limit(), |limit| usize::try_from(limit).unwrap_or(usize::MAX))
    }

    async fn run(&self, stream: &mut ActiveStream<'_>, request: &mut Request) {
        let mut attempts = 0;
        loop {
            attempts += 1;
            stream.info.attempt_count = attempts;
            if attempts > 1 && request.route.entry().virtual_host().config().include_request_attempt_count {
                stream.request.set(names::X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(u64::from(attempts)));
            }
            let mut outcome = Attempt::run(&self.config, stream, request).await;
            let timed_out = loop {
                outcome = match outcome {
                    Outcome::Done | Outcome::Redirected | Outcome::Answered => return,
                    Outcome::Abort(abort) => {
                        hedge::reset_all(&self.config, stream, request);
                        return stream.abort(abort);
                    }
                    Outcome::NoHost => return self.no_healthy_upstream(stream, request),
                    Outcome::NoPool => return self.no_upstream(stream, request),
                    Outcome::GlobalTimeout => return self.global_timeout(stream, request, true),
                    Outcome::Retry => break false,
                    Outcome::Hedge => break true,
                    Outcome::Won(won) => Attempt::run_won(*won, &self.config, stream, request).await,
                    Outcome::Discarded => hedge::wait(&self.config, stream, request).await,
                    Outcome::Failed(failure) => {
                        if self.may_retry(stream, request, &failure) {
                            break failure.is_try_timeout();
                        }
                        if !failure.is_counted() {
                            let status = failure.status(request);
                            let host = request.last_host().filter(|_| !failure.hostless);
                            charge_abort(stream, request, host, status);
                        }
                        if request.hedged.is_empty() || stream.response_started() {
                            return failure.answer(&self.config, stream, request);
                        }
                        hedge::wait(&self.config, stream, request).await
                    }
                };
            };
            match self.back_off(stream, request).await {
                None => {}
                Some(BackOffEnd::Over) => return,
                Some(BackOffEnd::Abort(abort)) => {
                    hedge::reset_all(&self.config, stream, request);
                    return stream.abort(abort);
                }
                Some(BackOffEnd::Timeout) => return self.global_timeout(stream, request, false),
                Some(BackOffEnd::TooLarge) => {
                    let text = "exceeded request buffer limit while retrying upstream";
                    return stream.routed_reply(LocalReply::new(
                        507,
                        text,
                        "request_payload_exceeded_retry_buffer_limit",
                    ));
                }
                Some(BackOffEnd::Won(won)) => {
                    // Only a response ends the wait for another try.
                    match Attempt::run_won(*won, &self.config, stream, request).await {
                        Outcome::Abort(abort) => stream.abort(abort),
                        Outcome::GlobalTimeout => self.global_timeout(stream, request, true),
                        Outcome::Failed(failure) => failure.answer(&self.config, stream, request),
                        _ => {}
                    }
                    return;
                }
            }
            self.prepare_retry(stream, request, timed_out);
            if request.refresh.as_ref().is_some_and(|refresh| refresh.missing) {
                stream.info.attempt_count = attempts + 1;
                stream.info.upstream.cluster = None;
                stream.info.upstream.cluster_alt_name = None;
                return self.no_upstream(stream, request);
            }
            // The cluster may have been replaced or removed since the try before.
            if request.cluster.is_removed() {
                match self.clusters.cluster(request.cluster.name()) {
                    Some(cluster) => request.cluster = cluster,
                    None => return self.no_upstream(stream, request),
                }
            }
        }
    }

    /// Headers of the next try.
    fn prepare_retry(&self, stream: &mut ActiveStream<'_>, request: &Request, timed_out: bool) {
        let entry = request.route.entry().clone();
        if entry.virtual_host().config().include_is_timeout_retry_header {
            let value = HeaderValue::from_static(if timed_out { "true" } else { "false" });
            stream.request.set(names::X_ENVOY_IS_TIMEOUT_RETRY, value);
        }
        let Some(action) = entry.route_action() else { return };
        let elapsed =
            stream.info.request_complete.map(|at| clock::now().saturating_duration_since(at)).unwrap_or_default();
        let rules = self.timeout_rules(stream, action, request.hedge);
        request.timeouts.tell(rules, elapsed, &mut stream.request);
    }

    /// Whether a try that failed without a response is repeated.
    fn may_retry(&self, stream: &mut ActiveStream<'_>, request: &mut Request, failure: &Failure) -> bool {
        if failure.retried || stream.response_started() {
            return false;
        }
        let Some(retry) = &mut request.retry else { return false };
        let verdict = retry.on_reset(failure.reason, failure.started);
        let granted = decide(stream, request, verdict) == Decision::Granted;
        if granted && let Some(host) = request.hosts.last() {
            host.stats.rq_error.fetch_add(1, Relaxed);
        }
        granted
    }

    /// Waits until the next try may begin. What arrives of the body meanwhile is kept.
    async fn back_off(&self, stream: &mut ActiveStream<'_>, request: &mut Request) -> Option<BackOffEnd> {
        let retry = request.retry.as_mut()?;
        let counting = request.refresh.as_ref().is_none_or(|refresh| !refresh.missing);
        let mut sleep = back_off(retry, counting.then_some(&*request.cluster));
        poll_fn(|cx| {
            if let Poll::Ready(abort) = stream.poll_abort(cx) {
                return Poll::Ready(Some(BackOffEnd::Abort(abort)));
            }
            while !stream.request_complete() {
                match stream.poll_request_frame(cx) {
                    Poll::Ready(Ok(frame)) => request.keep(&frame),
                    Poll::Ready(Err(abort)) => return Poll::Ready(Some(BackOffEnd::Abort(abort))),
                    Poll::Pending => break,
                }
                if stream.is_over() {
                    return Poll::Ready(Some(BackOffEnd::Over));
                }
                if request.replay.as_ref().is_none_or(Replay::is_abandoned) {
                    return Poll::Ready(Some(BackOffEnd::TooLarge));
                }
            }
            if let Some(Outcome::GlobalTimeout) = poll_request_timers(stream, request, cx) {
                return Poll::Ready(Some(BackOffEnd::Timeout));
            }
            if let Poll::Ready(outcome) = hedge::poll_winner(&self.config, stream, request, true, cx) {
                return Poll::Ready(Some(match outcome {
                    Outcome::Won(won) => BackOffEnd::Won(won),
                    Outcome::Abort(abort) => BackOffEnd::Abort(abort),
                    // Failures are passed over while the next try is to come: somebody else has answered.
                    _ => BackOffEnd::Over,
                }));
            }
            Pin::new(&mut sleep).poll(cx).map(|()| None)
        })
        .await
    }
}

impl Router {
    fn no_healthy_upstream(&self, stream: &mut ActiveStream<'_>, request: &mut Request) {
        request.cluster.stats.upstream_cx_none_healthy().inc();
        self.no_upstream(stream, request);
    }

    fn no_upstream(&self, stream: &mut ActiveStream<'_>, request: &mut Request) {
        hedge::reset_all(&self.config, stream, request);
        charge(request, None, 503, false);
        let reply = LocalReply::new(503, "no healthy upstream", "no_healthy_upstream");
        stream.routed_reply(reply.flags(ResponseFlags::NO_HEALTHY_UPSTREAM));
    }

    /// The route's timeout. With `waiting` a try is in progress that has not answered.
    fn global_timeout(&self, stream: &mut ActiveStream<'_>, request: &mut Request, waiting: bool) {
        let last = request.hosts.last().filter(|_| waiting);
        let late: SmallVec<[Arc<Host>; 2]> = request.hedged.iter().map(Attempt::host).chain(last).cloned().collect();
        for attempt in &mut request.hedged {
            attempt.forget_budget();
        }
        hedge::reset_all(&self.config, stream, request);
        for host in &late {
            request.cluster.stats.upstream_rq_timeout().inc();
            request.route.request_stats().for_each(|stats| stats.upstream_rq_timeout().inc());
            host.stats.rq_timeout.fetch_add(1, Relaxed);
            charge_abort(stream, request, Some(host), request.timeout_status);
        }
        count_budget(stream, request, clock::now());
        stream.routed_reply(timeout_reply(request, "response_timeout").flags(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT));
    }
}

/// The answer to a request that the runtime, or the policy of the endpoints, wants to be refused, and that is.
#[inline]
pub(crate) fn refused(cluster: &Cluster, suppress: bool) -> Option<LocalReply> {
    const ALL: u32 = 1_000_000;
    let (percent, per_million) = (cluster.maintenance_percent(), cluster.drop_per_million());
    if percent == 0 && per_million == 0 {
        return None;
    }
    let hit = |share: u32, of: u32| share > 0 && random::below(u64::from(of)) < u64::from(share);
    let (body, details, flag, header) = if hit(percent, 100) {
        cluster.stats.upstream_rq_maintenance_mode().inc();
        let flag = ResponseFlags::UPSTREAM_OVERFLOW;
        ("maintenance mode", "maintenance_mode", flag, names::X_ENVOY_OVERLOADED)
    } else if !hit(per_million, ALL) {
        return None;
    } else {
        cluster.load.drop_overload.fetch_add(1, Relaxed);
        match per_million {
            ALL => (
                "unconditional drop overload",
                "unconditional_drop_overload",
                ResponseFlags::UNCONDITIONAL_DROP_OVERLOAD,
                names::X_ENVOY_UNCONDITIONAL_DROP_OVERLOAD,
            ),
            _ => ("drop overload", "drop_overload", ResponseFlags::DROP_OVERLOAD, names::X_ENVOY_DROP_OVERLOAD),
        }
    };
    cluster.load.dropped.fetch_add(1, Relaxed);
    let reply = LocalReply::new(503, body, details).flags(flag);
    Some(match suppress {
        true => reply,
        false => reply.last_header(header, HeaderValue::from_static("true")),
    })
}

/// Writes down which cluster a request goes to.
fn note_cluster(info: &mut StreamInfo, cluster: &Cluster) {
    info.upstream.cluster = Some(cluster.name().clone());
    info.upstream.cluster_alt_name = Some(cluster.observability_name.clone());
    info.upstream.cluster_metadata.clone_from(&cluster.config.metadata);
}

/// Of the request's dynamic metadata, what the choice of a subset reads.
fn subset_metadata(info: &StreamInfo, cluster: &Cluster) -> Option<Box<serde_json::Map<String, serde_json::Value>>> {
    let dynamic = info.dynamic_metadata.as_ref().filter(|_| cluster.reads_metadata())?;
    dynamic.get("envoy.lb")?.as_object().cloned().map(Box::new)
}

/// The hash of a request; `set_cookie` is given the cookie that is made for it.
fn hash_of(
    stream: &ActiveStream<'_>,
    route: &ActiveRoute,
    cluster: &Cluster,
    set_cookie: Option<&mut dyn FnMut(HeaderValue)>,
) -> Option<u64> {
    let policies = hash_policies(cluster).or_else(|| route.entry().hash_policies())?;
    policies.hash(&stream.request, &stream.info, set_cookie)
}

/// The hash policies of a cluster. The load balancer's own go before those of its protocol options.
pub(crate) fn hash_policies(cluster: &Cluster) -> Option<&HashPolicies> {
    let own = || cluster.policies().map(|own| &own.hash).filter(|own| !own.is_empty());
    cluster.hash_policies().or_else(own)
}

/// Timers that run over all tries. The route's timeout counts from the end of the request.
pub(crate) fn poll_request_timers(
    stream: &ActiveStream<'_>,
    request: &mut Request,
    cx: &mut Context<'_>,
) -> Option<Outcome> {
    if request.timeout_at.is_none()
        && let Some(timeout) = request.timeouts.global
        && stream.request_complete()
    {
        let since =
            stream.info.request_complete.map(|at| clock::now().saturating_duration_since(at)).unwrap_or_default();
        request.timeout_at = Some(timer::sleep(timeout.saturating_sub(since)));
    }
    let sleep = request.timeout_at.as_mut()?;
    Pin::new(sleep).poll(cx).is_ready().then_some(Outcome::GlobalTimeout)
}

enum BackOffEnd {
    /// A filter has answered what it saw of the body.
    Over,
    Abort(nuncio_http::active_stream::Abort),
    Timeout,
    /// The body has grown too large to be sent again.
    TooLarge,
    /// A try that went on has the response.
    Won(Box<attempt::Won>),
}

/// The router in the registry.
pub const ENTRY: HttpFilterEntry = HttpFilterEntry {
    name: "envoy.filters.http.router",
    message: "envoy.extensions.filters.http.router.v3.Router",
    terminal: true,
    build: |filter, context, chain| {
        let config = RouterConfig::build(filter, context)?;
        chain.set_terminal(Box::new(Router::new(config, context.clusters.clone(), &context.stats)));
        Ok(())
    },
};
