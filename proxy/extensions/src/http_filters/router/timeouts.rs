//! The timeouts of one request: from the route, the client's `x-envoy-upstream-rq-*` headers and gRPC deadlines.
//! Pure; Envoy's `FilterUtility::finalTimeout`.

use nuncio_config::route::RouteAction;
use nuncio_http::grpc_timeout;
use nuncio_http::headers::{HeaderValue, Headers, names};
use std::time::Duration;

/// Timeouts of one request; None is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Timeouts {
    /// From the end of the request to the end of the response.
    pub(crate) global: Option<Duration>,
    /// One try.
    pub(crate) per_try: Option<Duration>,
    /// Silence within one try.
    pub(crate) per_try_idle: Option<Duration>,
    /// The whole stream, as the cluster limits it; the route's limit belongs to the downstream side.
    pub(crate) max_stream_duration: Option<Duration>,
}

/// What bears on the timeouts of a request beside its headers.
#[derive(Clone, Copy)]
pub(crate) struct Rules<'a> {
    /// The route.
    pub(crate) action: &'a RouteAction,
    /// The request is gRPC.
    pub(crate) grpc: bool,
    /// Late tries go on beside the next one.
    pub(crate) hedge: bool,
    /// `respect_expected_rq_timeout`.
    pub(crate) respect_expected: bool,
    /// `suppress_envoy_headers`: the upstream is not told its deadline.
    pub(crate) suppress: bool,
}

/// Works out the timeouts, removes the headers that set them and tells the upstream its deadline.
pub(crate) fn of_request(
    rules: Rules<'_>,
    headers: &mut Headers,
    per_try_of_retries: (Option<Duration>, Option<Duration>),
    cluster_max_stream_duration: Option<Duration>,
) -> Timeouts {
    let action = rules.action;
    let mut t = Timeouts {
        // A route that limits the whole stream has no other limit unless the client asks for one.
        global: action.timeout.filter(|_| action.max_stream_duration.is_none()),
        per_try: per_try_of_retries.0,
        per_try_idle: per_try_of_retries.1,
        max_stream_duration: cluster_max_stream_duration,
    };
    if rules.grpc && action.max_stream_duration.is_none() {
        grpc_timeout(action, headers, &mut t);
    }
    let expected = headers.get(&names::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS).filter(|_| rules.respect_expected);
    let asked = match expected {
        Some(expected) => millis(expected),
        None => headers.get(&names::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS).and_then(millis),
    };
    if let Some(asked) = asked {
        t.global = nonzero(asked);
    }
    headers.remove(&names::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS);
    if let Some(d) = headers.get(&names::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS).and_then(millis) {
        t.per_try = nonzero(d);
    }
    headers.remove(&names::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS);
    if let Some(value) = headers.get(&names::X_ENVOY_UPSTREAM_STREAM_DURATION_MS).cloned() {
        if let Some(d) = millis(&value) {
            t.max_stream_duration = nonzero(d);
        }
        headers.remove(&names::X_ENVOY_UPSTREAM_STREAM_DURATION_MS);
    }
    // A try cannot take longer than all of them.
    if let (Some(global), Some(per_try)) = (t.global, t.per_try)
        && per_try >= global
    {
        t.per_try = None;
    }
    t.tell(rules, Duration::ZERO, headers);
    t
}

impl Timeouts {
    /// Tells the upstream how long it has, `elapsed` after the request was complete.
    pub(crate) fn tell(&self, rules: Rules<'_>, elapsed: Duration, headers: &mut Headers) {
        // A try that is late goes on: it has as long as all of them.
        let Some(mut expected) = self.per_try.filter(|_| !rules.hedge).or(self.global) else { return };
        if let Some(global) = self.global {
            let left = global.saturating_sub(elapsed);
            // Zero would be no limit at all.
            expected = if left.as_millis() == 0 { Duration::from_millis(1) } else { expected.min(left) };
        }
        if !rules.suppress {
            headers.set(names::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS, expected_value(expected));
        }
        let action = rules.action;
        if rules.grpc && action.max_stream_duration.is_none() && action.max_grpc_timeout.is_some() {
            headers.set(names::GRPC_TIMEOUT, grpc_timeout::value(expected));
        }
    }
}

/// Texts of common route timeouts are static.
fn expected_value(d: Duration) -> HeaderValue {
    match d.as_millis() {
        15_000 => HeaderValue::from_static("15000"),
        ms => HeaderValue::from(ms as u64),
    }
}

/// The deprecated `max_grpc_timeout`: the client's own deadline counts, up to a limit.
fn grpc_timeout(action: &RouteAction, headers: &Headers, t: &mut Timeouts) {
    let Some(max) = action.max_grpc_timeout else { return };
    let mut asked = headers.str(&names::GRPC_TIMEOUT).and_then(grpc_timeout::parse).unwrap_or_default();
    // The offset never makes a deadline into none.
    asked -= action.grpc_timeout_offset.filter(|offset| *offset < asked).unwrap_or_default();
    let capped = if !max.is_zero() && (asked.is_zero() || asked > max) { max } else { asked };
    t.global = nonzero(capped);
}

fn millis(value: &HeaderValue) -> Option<Duration> {
    value.to_str()?.parse().ok().map(Duration::from_millis)
}

fn nonzero(d: Duration) -> Option<Duration> {
    (!d.is_zero()).then_some(d)
}
