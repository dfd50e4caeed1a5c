//! What outlier detection is told of the tries at a host.

use super::attempt::Outcome;
use super::failure::FailureKind;
use nuncio_http::codec::ResetReason;
use nuncio_http::headers::{HeaderValue, Headers, names};
use nuncio_upstream::host::health_flag;
use nuncio_upstream::{Cluster, Host, OutlierResult};

/// A connection was there.
pub(crate) fn connected(host: &Host) {
    if let Some(monitor) = host.outlier_monitor() {
        monitor.put_result(OutlierResult::ConnectSuccess, None);
    }
}

/// A response's head has arrived.
pub(crate) fn answered(cluster: &Cluster, host: &Host, head: &Headers, grpc: bool) {
    if head.contains(&names::X_ENVOY_IMMEDIATE_HEALTH_CHECK_FAIL) {
        host.fail_health_check();
    }
    if let Some(monitor) = host.outlier_monitor() {
        let own = cluster.policies().and_then(|policies| policies.outlier_code(head));
        monitor.put_code(own.unwrap_or_else(|| outcome_code(head, head.status(), grpc)));
        let already = health_flag::DEGRADED_OUTLIER_DETECTION;
        if head.contains(&names::X_ENVOY_DEGRADED) && host.health_flags() & already == 0 {
            monitor.put_degraded();
        }
    }
}

/// The try is late, and goes on. `status`: that of a timeout.
pub(crate) fn late(host: &Host, status: u16) {
    if let Some(monitor) = host.outlier_monitor() {
        monitor.put_result(OutlierResult::Timeout, Some(status));
    }
}

/// A try has ended without a response, or broke off in one.
pub(crate) fn ended(host: &Host, outcome: &Outcome, timeout_status: u16, answered: bool) {
    let Some(monitor) = host.outlier_monitor() else { return };
    match outcome {
        // A full circuit breaker says nothing about the host.
        Outcome::Failed(failure) if failure.reason == ResetReason::Overflow => {}
        Outcome::Failed(failure) if failure.kind == FailureKind::MaxDuration => {}
        Outcome::Failed(failure) if failure.is_try_timeout() => {
            monitor.put_result(OutlierResult::Timeout, Some(timeout_status));
        }
        Outcome::Failed(_) => failed(host),
        Outcome::GlobalTimeout if !answered => monitor.put_result(OutlierResult::Timeout, Some(timeout_status)),
        _ => {}
    }
}

/// A try has ended without a response although it had a connection.
pub(crate) fn failed(host: &Host) {
    if let Some(monitor) = host.outlier_monitor() {
        monitor.put_result(OutlierResult::ConnectFailed, None);
    }
}

/// The code that outlier detection counts: gRPC errors in the head as the HTTP code that they stand for.
fn outcome_code(head: &Headers, status: u16, grpc: bool) -> u16 {
    if !grpc {
        return status;
    }
    let code = head.get(&names::GRPC_STATUS).and_then(HeaderValue::to_str).and_then(|text| text.parse().ok());
    code.map_or(status, grpc_to_http)
}

/// Whether the status of a gRPC request in its head or trailers is one that does not speak against the host.
pub(crate) fn is_grpc_success(headers: &Headers) -> bool {
    let code = headers.str(&names::GRPC_STATUS).and_then(|text| text.parse().ok());
    code.is_some_and(|code| grpc_to_http(code) < 500)
}

/// The HTTP code that a gRPC status stands for.
fn grpc_to_http(code: u32) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}
