//! Whether and when a failed attempt is tried again. Sans-io: outcomes in, decisions out; randomness is injected.
//!
//! Made once per request that may be retried. Knows conditions, counts and back-off; circuit breakers and timers belong
//! to the caller.

use nuncio_config::route::RetryPolicy;
use nuncio_http::codec::ResetReason;
use nuncio_http::headers::{HeaderName, Headers, names};
use nuncio_http::route::RetryConditions;
use std::sync::Arc;
use std::time::Duration;

/// Conditions of `retry_on` as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RetryOn(u32);

macro_rules! conditions {
    ($($konst:ident = $bit:literal, $name:literal;)+) => {
        impl RetryOn {
            $(#[doc = $name] pub(crate) const $konst: RetryOn = RetryOn(1 << $bit);)+
            const NAMES: &'static [(&'static str, RetryOn)] = &[$(($name, RetryOn::$konst)),+];
        }
    };
}

conditions! {
    ANY_5XX = 0, "5xx";
    GATEWAY_ERROR = 1, "gateway-error";
    CONNECT_FAILURE = 2, "connect-failure";
    ENVOY_RATELIMITED = 3, "envoy-ratelimited";
    RETRIABLE_4XX = 4, "retriable-4xx";
    REFUSED_STREAM = 5, "refused-stream";
    RETRIABLE_STATUS_CODES = 6, "retriable-status-codes";
    RESET = 7, "reset";
    RETRIABLE_HEADERS = 8, "retriable-headers";
    RESET_BEFORE_REQUEST = 9, "reset-before-request";
    HTTP3_POST_CONNECT_FAILURE = 10, "http3-post-connect-failure";
    GRPC_CANCELLED = 11, "cancelled";
    GRPC_DEADLINE_EXCEEDED = 12, "deadline-exceeded";
    GRPC_RESOURCE_EXHAUSTED = 13, "resource-exhausted";
    GRPC_UNAVAILABLE = 14, "unavailable";
    GRPC_INTERNAL = 15, "internal";
}

impl RetryOn {
    /// Adds the conditions of a comma-separated list; unknown names are passed over, as in Envoy.
    pub(crate) fn add(&mut self, list: &str) {
        for name in list.split(',').map(str::trim) {
            if let Some((_, bit)) = RetryOn::NAMES.iter().find(|(n, _)| *n == name) {
                self.0 |= bit.0;
            }
        }
    }

    fn has(self, other: RetryOn) -> bool {
        self.0 & other.0 != 0
    }
}

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not retriable, or no policy.
    No,
    /// Try again after the back-off.
    Retry,
    /// It would be, but all retries are used up (`URX`).
    LimitExceeded,
}

/// Retries of one request.
#[derive(Debug)]
pub(crate) struct RetryState {
    on: RetryOn,
    remaining: u32,
    retries: u32,
    base: Duration,
    max: Duration,
    statuses: Vec<u16>,
    policy: Option<Arc<RetryPolicy>>,
    conditions: Option<Arc<RetryConditions>>,
}

impl RetryState {
    /// The state for a request, or None when it can never be retried. Consumes the retry headers of the request.
    pub(crate) fn new(
        policy: Option<&Arc<RetryPolicy>>,
        conditions: Option<&Arc<RetryConditions>>,
        headers: &mut Headers,
    ) -> Option<RetryState> {
        let mut on = RetryOn::default();
        for name in policy.iter().flat_map(|p| p.retry_on.iter()) {
            on.add(name);
        }
        let mut statuses = policy.map(|p| p.retriable_status_codes.clone()).unwrap_or_default();
        let mut max_retries = policy.map(|p| p.num_retries);
        let asked = headers.contains(&names::X_ENVOY_RETRY_ON) || headers.contains(&names::X_ENVOY_RETRY_GRPC_ON);
        if asked || policy.is_some() {
            for name in [&names::X_ENVOY_RETRY_ON, &names::X_ENVOY_RETRY_GRPC_ON] {
                if let Some(list) = headers.str(name) {
                    on.add(list);
                }
            }
            if let Some(n) = headers.str(&names::X_ENVOY_MAX_RETRIES).and_then(|v| v.parse().ok()) {
                max_retries = Some(n);
            }
            if let Some(list) = headers.str(&names::X_ENVOY_RETRIABLE_STATUS_CODES) {
                statuses.extend(list.split(',').filter_map(|c| c.trim().parse::<u16>().ok()));
            }
        }
        consume_headers(headers);
        if on == RetryOn::default() {
            return None;
        }
        let requests = conditions.map_or(&[][..], |c| &c.request_headers);
        if !requests.is_empty() && !requests.iter().any(|m| m.matches(headers)) {
            return None;
        }
        Some(RetryState {
            on,
            remaining: max_retries.unwrap_or(1),
            retries: 0,
            base: policy.map_or(Duration::from_millis(25), |p| p.back_off_base),
            max: policy.map_or(Duration::from_millis(250), |p| p.back_off_max),
            statuses,
            policy: policy.cloned(),
            conditions: conditions.cloned(),
        })
    }

    /// Whether a response head asks for another try.
    pub(crate) fn on_response(&mut self, response: &Headers) -> Verdict {
        let wanted = self.wants_response(response);
        self.decide(wanted)
    }

    /// Whether a stream that ended without a response does.
    pub(crate) fn on_reset(&mut self, reason: ResetReason, request_sent: bool) -> Verdict {
        let wanted = self.wants_reset(reason, request_sent);
        self.decide(wanted)
    }

    /// Whether a try that ran out of time does: Envoy counts it as a reset of this side and as a 5xx.
    pub(crate) fn on_per_try_timeout(&mut self) -> Verdict {
        let wanted =
            self.on.has(RetryOn::ANY_5XX) || self.on.has(RetryOn::RESET) || self.on.has(RetryOn::GATEWAY_ERROR);
        self.decide(wanted)
    }

    fn decide(&mut self, wanted: bool) -> Verdict {
        if !wanted {
            return Verdict::No;
        }
        if self.remaining == 0 {
            return Verdict::LimitExceeded;
        }
        self.remaining -= 1;
        self.retries += 1;
        Verdict::Retry
    }

    fn wants_response(&self, response: &Headers) -> bool {
        let status = response.status();
        if response.contains(&names::X_ENVOY_RATELIMITED) && !self.on.has(RetryOn::ENVOY_RATELIMITED) {
            return false;
        }
        if self.on.has(RetryOn::ENVOY_RATELIMITED) && response.contains(&names::X_ENVOY_RATELIMITED) {
            return true;
        }
        if self.on.has(RetryOn::ANY_5XX) && (500..600).contains(&status) {
            return true;
        }
        if self.on.has(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status) {
            return true;
        }
        if self.on.has(RetryOn::RETRIABLE_4XX) && status == 409 {
            return true;
        }
        if self.on.has(RetryOn::RETRIABLE_STATUS_CODES) && self.statuses.contains(&status) {
            return true;
        }
        if self.on.has(RetryOn::RETRIABLE_HEADERS)
            && self.conditions.iter().flat_map(|c| &c.response_headers).any(|m| m.matches(response))
        {
            return true;
        }
        match response.str(&names::GRPC_STATUS) {
            Some("1") => self.on.has(RetryOn::GRPC_CANCELLED),
            Some("4") => self.on.has(RetryOn::GRPC_DEADLINE_EXCEEDED),
            Some("8") => self.on.has(RetryOn::GRPC_RESOURCE_EXHAUSTED),
            Some("13") => self.on.has(RetryOn::GRPC_INTERNAL),
            Some("14") => self.on.has(RetryOn::GRPC_UNAVAILABLE),
            _ => false,
        }
    }

    fn wants_reset(&self, reason: ResetReason, request_sent: bool) -> bool {
        use ResetReason as R;
        // A full pool or an overloaded proxy is not helped by more requests.
        if matches!(reason, R::Overflow | R::OverloadManager) {
            return false;
        }
        if self.on.has(RetryOn::RESET) {
            return true;
        }
        if self.on.has(RetryOn::RESET_BEFORE_REQUEST) && !request_sent {
            return true;
        }
        if self.on.has(RetryOn::ANY_5XX) || self.on.has(RetryOn::GATEWAY_ERROR) {
            return true;
        }
        if self.on.has(RetryOn::REFUSED_STREAM) && reason == R::RemoteRefusedStreamReset {
            return true;
        }
        self.on.has(RetryOn::CONNECT_FAILURE)
            && matches!(reason, R::LocalConnectionFailure | R::RemoteConnectionFailure | R::ConnectionTimeout)
    }

    /// How long to wait before the retry just granted: full jitter, `random` uniform over `u64`.
    pub(crate) fn back_off(&self, random: u64) -> Duration {
        let shift = self.retries.min(20);
        let ceiling = (self.base.as_millis() as u64).saturating_mul((1 << shift) - 1).max(1);
        Duration::from_millis(random % ceiling).min(self.max)
    }

    /// Attempts at choosing a host that the predicates accept.
    pub(crate) fn host_selection_attempts(&self) -> u32 {
        self.policy.as_ref().map_or(1, |p| p.host_selection_retry_max_attempts)
    }

    /// Whether a try must go to a host that was not tried before.
    pub(crate) fn avoids_previous_hosts(&self) -> bool {
        const PREVIOUS_HOSTS: &str = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
        self.policy.as_ref().is_some_and(|p| {
            p.retry_host_predicate.iter().any(|c| c.name.contains("previous_hosts") || &*c.type_name == PREVIOUS_HOSTS)
        })
    }
}

/// Removes the headers that steer retries; upstreams never see them.
fn consume_headers(headers: &mut Headers) {
    const CONSUMED: nuncio_http::headers::NameSet = nuncio_http::headers::NameSet::of(&[
        "x-envoy-retry-on",
        "x-envoy-retry-grpc-on",
        "x-envoy-max-retries",
        "x-envoy-hedge-on-per-try-timeout",
        "x-envoy-retriable-header-names",
        "x-envoy-retriable-status-codes",
        "x-envoy-upstream-rq-per-try-timeout-ms",
    ]);
    headers.remove_if(|name: &HeaderName, _| CONSUMED.contains(name));
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_http::headers::HeaderValue;

    fn state(retry_on: &'static str) -> RetryState {
        let mut headers = Headers::new();
        headers.append(names::X_ENVOY_RETRY_ON, HeaderValue::from_static(retry_on));
        headers.append(names::X_ENVOY_MAX_RETRIES, HeaderValue::from_static("2"));
        let state = RetryState::new(None, None, &mut headers).unwrap();
        assert!(headers.is_empty(), "retry headers are consumed");
        state
    }

    fn status(code: u16) -> Headers {
        let mut h = Headers::new();
        h.set_status(code);
        h
    }

    #[test]
    fn no_condition_means_no_state() {
        assert!(RetryState::new(None, None, &mut Headers::new()).is_none());
    }

    #[test]
    fn retries_stop_at_their_number() {
        let mut s = state("5xx");
        assert_eq!(s.on_response(&status(503)), Verdict::Retry);
        assert_eq!(s.on_response(&status(503)), Verdict::Retry);
        assert_eq!(s.on_response(&status(503)), Verdict::LimitExceeded);
    }

    #[test]
    fn a_good_response_is_not_retried() {
        assert_eq!(state("5xx,gateway-error,reset").on_response(&status(200)), Verdict::No);
        assert_eq!(state("gateway-error").on_response(&status(500)), Verdict::No);
    }

    #[test]
    fn connect_failures_are_told_from_resets() {
        assert_eq!(state("connect-failure").on_reset(ResetReason::RemoteConnectionFailure, false), Verdict::Retry);
        assert_eq!(state("connect-failure").on_reset(ResetReason::RemoteReset, true), Verdict::No);
        assert_eq!(state("refused-stream").on_reset(ResetReason::RemoteRefusedStreamReset, true), Verdict::Retry);
        assert_eq!(state("reset-before-request").on_reset(ResetReason::ConnectionTermination, true), Verdict::No);
        assert_eq!(state("reset-before-request").on_reset(ResetReason::ConnectionTermination, false), Verdict::Retry);
    }

    #[test]
    fn overflow_is_never_retried() {
        assert_eq!(state("5xx,reset,connect-failure").on_reset(ResetReason::Overflow, false), Verdict::No);
    }

    #[test]
    fn back_off_grows_and_is_capped() {
        let mut s = state("5xx");
        s.on_response(&status(503));
        assert!(s.back_off(u64::MAX) < Duration::from_millis(25));
        s.on_response(&status(503));
        assert!(s.back_off(74) == Duration::from_millis(74));
        s.retries = 12;
        assert_eq!(s.back_off(60_000), Duration::from_millis(250));
    }
}
