//! The timeouts of one request: from the route, the client's `x-envoy-upstream-rq-*` headers and gRPC deadlines.
//! Pure; Envoy's `FilterUtility::finalTimeout`.

use nuncio_config::route::RouteAction;
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

/// Works out the timeouts, removes the headers that set them and, unless `suppress`, tells the upstream its deadline.
pub(crate) fn of_request(
    action: &RouteAction,
    headers: &mut Headers,
    grpc: bool,
    per_try_of_retries: (Option<Duration>, Option<Duration>),
    cluster_max_stream_duration: Option<Duration>,
    respect_expected: bool,
    suppress: bool,
) -> Timeouts {
    let mut t = Timeouts {
        // A route that limits the whole stream has no other limit unless the client asks for one.
        global: action.timeout.filter(|_| action.max_stream_duration.is_none()),
        per_try: per_try_of_retries.0,
        per_try_idle: per_try_of_retries.1,
        max_stream_duration: cluster_max_stream_duration,
    };
    if grpc {
        grpc_timeout(action, headers, &mut t);
    }
    let expected = headers.get(&names::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS).and_then(millis).filter(|_| respect_expected);
    match expected {
        Some(d) => t.global = nonzero(d),
        None => {
            if let Some(d) = headers.get(&names::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS).and_then(millis) {
                t.global = nonzero(d);
            }
        }
    }
    headers.remove(&names::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS);
    if let Some(d) = headers.get(&names::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS).and_then(millis) {
        t.per_try = nonzero(d);
    }
    if let Some(d) = headers.get(&names::X_ENVOY_UPSTREAM_STREAM_DURATION_MS).and_then(millis) {
        t.max_stream_duration = nonzero(d);
        headers.remove(&names::X_ENVOY_UPSTREAM_STREAM_DURATION_MS);
    }
    // A try cannot take longer than all of them.
    if let (Some(global), Some(per_try)) = (t.global, t.per_try)
        && per_try >= global
    {
        t.per_try = None;
    }
    let expected = t.per_try.or(t.global);
    if !suppress && let Some(expected) = expected {
        headers.set(names::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS, expected_value(expected));
    }
    t
}

/// Texts of common route timeouts are static.
fn expected_value(d: Duration) -> HeaderValue {
    match d.as_millis() {
        15_000 => HeaderValue::from_static("15000"),
        ms => HeaderValue::from(ms as u64),
    }
}

fn grpc_timeout(action: &RouteAction, headers: &Headers, t: &mut Timeouts) {
    let asked = headers.str(&names::GRPC_TIMEOUT).and_then(parse_grpc_timeout);
    let limits = action.max_stream_duration;
    if let Some(max) = limits.and_then(|d| d.grpc_timeout_header_max) {
        if let Some(asked) = asked {
            let capped = if max.is_zero() { asked } else { asked.min(max) };
            let offset = limits.and_then(|d| d.grpc_timeout_header_offset).unwrap_or_default();
            t.max_stream_duration = nonzero(capped.saturating_sub(offset).max(Duration::from_millis(1)));
            t.global = None;
        }
    } else if let Some(max) = action.max_grpc_timeout {
        let asked = asked.unwrap_or_default();
        let capped = if max.is_zero() || (!asked.is_zero() && asked < max) { asked } else { max };
        t.global = nonzero(capped.saturating_sub(action.grpc_timeout_offset.unwrap_or_default()));
    }
}

/// `grpc-timeout`: up to 8 digits and a unit.
fn parse_grpc_timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let n: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        // Envoy rounds up to whole milliseconds.
        "u" => Duration::from_millis(n.div_ceil(1000)),
        "n" => Duration::from_millis(n.div_ceil(1_000_000)),
        _ => return None,
    })
}

fn millis(value: &HeaderValue) -> Option<Duration> {
    value.to_str()?.parse().ok().map(Duration::from_millis)
}

fn nonzero(d: Duration) -> Option<Duration> {
    (!d.is_zero()).then_some(d)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_have_six_units() {
        assert_eq!(parse_grpc_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse_grpc_timeout("1500u"), Some(Duration::from_millis(2)));
        assert_eq!(parse_grpc_timeout("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(parse_grpc_timeout("123456789m"), None);
        assert_eq!(parse_grpc_timeout("5"), None);
        assert_eq!(parse_grpc_timeout(""), None);
    }
}
