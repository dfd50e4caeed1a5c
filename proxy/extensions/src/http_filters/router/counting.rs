//! What is counted of responses: their codes, the time that they took, and what they say of their hosts.
//!
//! Requests and their copies count alike in their cluster; routes and alternative names count requests alone.

use super::{Request, per_try};
use nuncio_base::stats::CodeStats;
use nuncio_http::active_stream::ActiveStream;
use nuncio_upstream::{Cluster, Host};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::Instant;

/// What is counted of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Counted {
    /// Everything.
    #[default]
    ByCode,
    /// Its code only where a part of the responses is counted: internal ones, those of a zone or of a virtual cluster.
    WithoutCode,
    /// Nothing.
    Nothing,
}

impl Counted {
    /// Counts a response among all of a cluster.
    #[inline]
    fn count(self, codes: &CodeStats, code: u16) {
        match self {
            Counted::ByCode => codes.count(code),
            Counted::WithoutCode => codes.count_uncoded(),
            Counted::Nothing => {}
        }
    }
}

/// Where the responses to a request count in its cluster.
pub(crate) struct Responses<'a> {
    pub(crate) cluster: &'a Cluster,
    /// Who has answered, or was to.
    pub(crate) host: Option<&'a Host>,
    pub(crate) internal: bool,
    pub(crate) canary: bool,
    pub(crate) counted: Counted,
}

impl Responses<'_> {
    /// Counts a response by its code.
    pub(crate) fn count_code(&self, code: u16) {
        if self.counted == Counted::Nothing {
            return;
        }
        let stats = &self.cluster.stats;
        self.counted.count(&stats.responses().codes, code);
        match self.internal {
            true => stats.internal().codes.count(code),
            false => stats.external().codes.count(code),
        }
        if self.canary {
            stats.canary().codes.count(code);
        }
        if let Some(zone) = self.host.and_then(|host| stats.zone(&host.locality.zone)) {
            zone.codes.count(code);
        }
    }

    /// Counts for the host what a code says of it. `answered`: the upstream sent it.
    pub(crate) fn judge_host(&self, code: u16, answered: bool) {
        // Errors are counted with their codes.
        let uncounted = code >= 500 && self.counted == Counted::Nothing;
        if let Some(host) = self.host.filter(|_| !uncounted) {
            host.stats.count_request(code < 500 && answered);
        }
    }

    /// Counts how long a response took.
    pub(crate) fn record_time(&self, millis: u64) {
        if self.counted == Counted::Nothing {
            return;
        }
        let stats = &self.cluster.stats;
        stats.responses().time.upstream_rq_time().record(millis);
        match self.internal {
            true => stats.internal().time.upstream_rq_time().record(millis),
            false => stats.external().time.upstream_rq_time().record(millis),
        }
        if self.canary {
            stats.canary().time.upstream_rq_time().record(millis);
        }
        if let Some(zone) = self.host.and_then(|host| stats.zone(&host.locality.zone)) {
            zone.time.upstream_rq_time().record(millis);
        }
    }
}

/// Counts a response of the cluster by its code; local replies about the upstream count too, as in Envoy. `answered`: the
/// upstream sent it.
pub(crate) fn charge(request: &Request, host: Option<&Host>, code: u16, answered: bool) {
    charge_codes(request, host, code);
    request.responses(host).judge_host(code, answered);
}

/// Counts a response by its code wherever such are counted.
pub(crate) fn charge_codes(request: &Request, host: Option<&Host>, code: u16) {
    let counted = request.counted;
    if counted == Counted::Nothing {
        return;
    }
    request.responses(host).count_code(code);
    request.route.request_stats().for_each(|stats| stats.charge(code));
    if let Some(other) = &request.alternative {
        let mut all = other.each(request.internal, request.canary);
        if let Some(stats) = all.next() {
            counted.count(&stats.codes, code);
        }
        all.for_each(|stats| stats.codes.count(code));
    }
}

/// Counts a response that is thrown away for another try: apart from those that downstream gets.
pub(crate) fn charge_retried(cluster: &Cluster, request: &Request, code: u16) {
    count_retried(cluster, request.retried_without_code, code);
    if let Some(host) = request.hosts.last() {
        host.stats.rq_error.fetch_add(1, Relaxed);
    }
}

/// Counts such a response of a request or a copy, whatever `dynamic_stats` says.
pub(crate) fn count_retried(cluster: &Cluster, without_code: bool, code: u16) {
    let codes = &cluster.stats.retried().codes;
    match without_code {
        true => codes.count_uncoded(),
        false => codes.count(code),
    }
}

/// Counts how long the response to a request took.
pub(crate) fn complete(stream: &ActiveStream<'_>, request: &Request, now: Instant) {
    count_budget(stream, request, now);
    if request.counted == Counted::Nothing {
        return;
    }
    let ms = service_time(stream, now);
    request.responses(request.last_host()).record_time(ms);
    request.route.request_stats().for_each(|stats| stats.record_time(ms));
    if let Some(other) = &request.alternative {
        other.each(request.internal, request.canary).for_each(|stats| stats.time.upstream_rq_time().record(ms));
    }
}

/// Counts how much of the route's timeout was used.
#[inline]
pub(crate) fn count_budget(stream: &ActiveStream<'_>, request: &Request, now: Instant) {
    if let Some(since) = stream.info.request_complete {
        record_budget(&request.cluster, now.saturating_duration_since(since), request.timeouts.global);
    }
}

/// Counts how much of its limit a request or a copy has used.
pub(crate) fn record_budget(cluster: &Cluster, used: Duration, limit: Option<Duration>) {
    if cluster.config.track_timeout_budgets {
        let share = per_try::percentage(used, limit.unwrap_or_default());
        cluster.stats.timeout_budgets().upstream_rq_timeout_budget_percent_used().record(share);
    }
}

/// Time since the whole request had arrived, as `upstream_rq_time` and `x-envoy-upstream-service-time` tell it.
pub(crate) fn service_time(stream: &ActiveStream<'_>, now: Instant) -> u64 {
    let since = stream.info.request_complete.unwrap_or(stream.info.start);
    now.saturating_duration_since(since).as_millis() as u64
}
