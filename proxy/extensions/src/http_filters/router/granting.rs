//! Whether a retry that the policy wants is made: circuit breakers and what is counted of it, for requests and their copies.

use super::retry::{RetryState, Verdict};
use super::{Request, hash_of, note_cluster, subset_metadata};
use nuncio_base::random;
use nuncio_base::timer::{self, Sleep};
use nuncio_http::active_stream::ActiveStream;
use nuncio_http::headers::HeaderValue;
use nuncio_http::route::RouteRequest;
use nuncio_http::stream_info::ResponseFlags;
use nuncio_upstream::{Cluster, ClusterManager, Resource, ResourcePriority};
use std::sync::Arc;

/// What became of a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Another try is made.
    Granted,
    /// None is.
    Refused,
}

/// A unit of a circuit breaker's resource, given back when dropped.
pub(crate) struct Held {
    cluster: Arc<Cluster>,
    priority: ResourcePriority,
    resource: Resource,
}

impl Held {
    pub(crate) fn of(cluster: &Arc<Cluster>, priority: ResourcePriority, resource: Resource) -> Held {
        cluster.resource_manager(priority).inc(resource);
        Held { cluster: cluster.clone(), priority, resource }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.cluster.resource_manager(self.priority).dec(self.resource);
    }
}

/// What a verdict comes to, as the cluster counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grant {
    Granted,
    /// All retries are used up.
    LimitExceeded,
    /// The circuit breaker is full.
    Overflow,
    /// No other try is wanted. True: one that was made before has been of use.
    Unwanted(bool),
}

/// Applies what limits retries beside their number, and counts it for the cluster.
pub(crate) fn grant(retry: &mut RetryState, verdict: Verdict, cluster: &Cluster, priority: ResourcePriority) -> Grant {
    let stats = &cluster.stats;
    match verdict {
        Verdict::No => {
            // A retry of which nothing more is wanted has been of use, as Envoy counts.
            let useful = retry.disarm();
            if useful {
                stats.upstream_rq_retry_success().inc();
            }
            Grant::Unwanted(useful)
        }
        Verdict::LimitExceeded => {
            stats.upstream_rq_retry_limit_exceeded().inc();
            Grant::LimitExceeded
        }
        Verdict::Retry if !cluster.resource_manager(priority).can_create(Resource::Retries) => {
            stats.upstream_rq_retry_overflow().inc();
            Grant::Overflow
        }
        Verdict::Retry if random::u64() % 100 >= u64::from(cluster.retry_percent()) => Grant::Unwanted(false),
        Verdict::Retry => {
            stats.upstream_rq_retry().inc();
            retry.arm();
            Grant::Granted
        }
    }
}

/// The same for a request: its routes count too, and its flags tell what was refused.
pub(crate) fn decide(stream: &mut ActiveStream<'_>, request: &mut Request, verdict: Verdict) -> Decision {
    request.retry_slot = None;
    let leads = verdict != Verdict::Retry || choose_cluster_anew(stream, request);
    let Some(retry) = &mut request.retry else { return Decision::Refused };
    if !leads {
        // There is no cluster that could count the try, or refuse it: its answer is given when its time has come.
        retry.arm();
        return Decision::Granted;
    }
    let granted = grant(retry, verdict, &request.cluster, request.priority);
    for stats in request.route.request_stats() {
        match granted {
            Grant::Granted => stats.upstream_rq_retry().inc(),
            Grant::LimitExceeded => stats.upstream_rq_retry_limit_exceeded().inc(),
            Grant::Overflow => stats.upstream_rq_retry_overflow().inc(),
            Grant::Unwanted(true) => stats.upstream_rq_retry_success().inc(),
            Grant::Unwanted(false) => {}
        }
    }
    match granted {
        Grant::Granted => {
            request.retry_slot = Some(Held::of(&request.cluster, request.priority, Resource::Retries));
            return Decision::Granted;
        }
        Grant::LimitExceeded => stream.info.flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED),
        Grant::Overflow => stream.info.flags.insert(ResponseFlags::UPSTREAM_OVERFLOW),
        Grant::Unwanted(_) => {}
    }
    Decision::Refused
}

/// The pause before a retry that was granted, as the cluster that it goes to counts it.
pub(crate) fn back_off(retry: &mut RetryState, cluster: Option<&Cluster>) -> Sleep {
    let (delay, asked_for) = retry.back_off(random::u64());
    if let Some(cluster) = cluster {
        match asked_for {
            true => cluster.stats.upstream_rq_retry_backoff_ratelimited().inc(),
            false => cluster.stats.upstream_rq_retry_backoff_exponential().inc(),
        }
    }
    timer::sleep(delay)
}

/// `refresh_cluster_on_retry`: what it takes to choose the cluster anew.
pub(crate) struct Refresh {
    pub(crate) clusters: Arc<ClusterManager>,
    pub(crate) alt_stat_name: Option<HeaderValue>,
    /// The last choice is not there.
    pub(crate) missing: bool,
}

/// Where the route wants it, the next try goes where the request leads as the last one has left it. False where no such
/// cluster is there.
fn choose_cluster_anew(stream: &mut ActiveStream<'_>, request: &mut Request) -> bool {
    let Some(refresh) = &mut request.refresh else { return true };
    let runtime = &*stream.connection.hcm.runtime;
    request.route.choose_anew(&RouteRequest::new(&stream.request, &stream.info, random::u64(), runtime));
    let cluster = request.route.cluster().and_then(|name| refresh.clusters.cluster(name));
    refresh.missing = cluster.is_none();
    let Some(cluster) = cluster else { return false };
    if !Arc::ptr_eq(&cluster, &request.cluster) {
        note_cluster(&mut stream.info, &cluster);
        let name = refresh.alt_stat_name.as_ref().and_then(HeaderValue::to_str);
        request.alternative = name.and_then(|name| cluster.stats.alternative(name));
        request.metadata = subset_metadata(&stream.info, &cluster);
        request.cluster = cluster;
        // A cookie that was made for the first try is the client's by now: it is not made again.
        if request.set_cookie.is_empty() {
            request.hash = hash_of(stream, &request.route, &request.cluster, None);
        }
    }
    true
}
