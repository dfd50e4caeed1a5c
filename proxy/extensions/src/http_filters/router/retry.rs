//! Whether, when and where a failed attempt is tried again. Sans-io: outcomes in, decisions out; randomness and the time of
//! day are injected.
//!
//! Made once per request that may be retried. Knows conditions, counts, back-off and hosts to avoid; circuit breakers and
//! timers belong to the caller.

use nuncio_config::route::{RetryHostPredicate, RetryOn, RetryPolicy};
use nuncio_http::codec::ResetReason;
use nuncio_http::headers::{HeaderName, HeaderValue, Headers, names};
use nuncio_http::route::RetryConditions;
use nuncio_upstream::lb::priority::PriorityLoad;
use nuncio_upstream::{Cluster, Host};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not retriable.
    No,
    /// Try again after the back-off.
    Retry,
    /// It would be, but all retries are used up (`URX`).
    LimitExceeded,
}

/// What the retry headers of a request add to the policy.
#[derive(Default)]
struct Asked {
    statuses: Vec<u16>,
    headers: Vec<HeaderName>,
}

/// State of the retries of one request.
pub(crate) struct RetryState {
    on: RetryOn,
    remaining: u32,
    retries: u32,
    /// A retry was granted and nothing was decided since.
    armed: bool,
    /// What a response asked for: the least time until the next try.
    reset_after: Option<Duration>,
    policy: Option<Arc<RetryPolicy>>,
    conditions: Option<Arc<RetryConditions>>,
    asked: Option<Box<Asked>>,
}

impl RetryState {
    /// The state for a request, or None when it can never be retried. Consumes the retry headers of the request.
    pub(crate) fn new(
        policy: Option<&Arc<RetryPolicy>>,
        conditions: Option<&Arc<RetryConditions>>,
        headers: &mut Headers,
        alt_stat_name: &mut Option<HeaderValue>,
    ) -> Option<RetryState> {
        let mut on = policy.map_or(RetryOn::default(), |policy| policy.retry_on);
        if let Some(list) = headers.str(&names::X_ENVOY_RETRY_ON) {
            on = on.union(RetryOn::parse_http(list));
        }
        if let Some(list) = headers.str(&names::X_ENVOY_RETRY_GRPC_ON) {
            on = on.union(RetryOn::parse_grpc(list));
        }
        if on.is_empty() {
            consume_headers(headers, alt_stat_name);
            return None;
        }
        let wanted = conditions.map_or(&[][..], |c| &c.request_headers);
        if !wanted.is_empty() && !wanted.iter().any(|matcher| matcher.matches(headers)) {
            consume_headers(headers, alt_stat_name);
            return None;
        }
        let asked_number = headers.str(&names::X_ENVOY_MAX_RETRIES).and_then(|text| text.parse::<u64>().ok());
        let remaining = asked_number.map(|number| u32::try_from(number).unwrap_or(u32::MAX));
        let asked = Asked::of(headers);
        consume_headers(headers, alt_stat_name);
        Some(RetryState {
            on,
            remaining: remaining.unwrap_or_else(|| policy.map_or(1, |policy| policy.num_retries)),
            retries: 0,
            armed: false,
            reset_after: None,
            policy: policy.cloned(),
            conditions: conditions.cloned(),
            asked,
        })
    }

    /// Whether a retry was granted of which nothing has been decided yet; it is over then.
    pub(crate) fn disarm(&mut self) -> bool {
        std::mem::take(&mut self.armed)
    }

    /// Says that the retry just decided on is made.
    pub(crate) fn arm(&mut self) {
        self.armed = true;
        self.retries += 1;
    }

    /// Whether a response head asks for another try.
    pub(crate) fn on_response(&mut self, response: &Headers) -> Verdict {
        let wanted = self.wants_response(response);
        if wanted {
            self.reset_after = self.reset_interval(response, SystemTime::now());
        }
        self.decide(wanted)
    }

    /// Whether a stream that ended without a response does. `started`: a part of the request was sent.
    pub(crate) fn on_reset(&mut self, reason: ResetReason, started: bool) -> Verdict {
        let wanted = self.wants_reset(reason, started);
        self.decide(wanted)
    }

    /// A try that goes on beside the next one is retried whatever the conditions.
    pub(crate) fn on_soft_timeout(&mut self) -> Verdict {
        self.decide(true)
    }

    fn decide(&mut self, wanted: bool) -> Verdict {
        if !wanted {
            return Verdict::No;
        }
        if self.remaining == 0 {
            return Verdict::LimitExceeded;
        }
        self.remaining -= 1;
        Verdict::Retry
    }

    /// Whether a response is one that would be retried.
    pub(crate) fn wants_response(&self, response: &Headers) -> bool {
        let status = response.status();
        let on = self.on;
        // It comes from a proxy upstream that limits its rate: only who asks for it retries that.
        if response.contains(&names::X_ENVOY_RATELIMITED) {
            return on.has(RetryOn::ENVOY_RATELIMITED);
        }
        if on.has(RetryOn::ANY_5XX) && (500..600).contains(&status) {
            return true;
        }
        if on.has(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status) {
            return true;
        }
        if on.has(RetryOn::RETRIABLE_4XX) && status == 409 {
            return true;
        }
        if on.has(RetryOn::RETRIABLE_STATUS_CODES) {
            let listed = self.policy.as_ref().is_some_and(|policy| policy.retriable_status_codes.contains(&status));
            if listed || self.asked.as_ref().is_some_and(|asked| asked.statuses.contains(&status)) {
                return true;
            }
        }
        if on.has(RetryOn::RETRIABLE_HEADERS) {
            let matched = self.conditions.iter().flat_map(|c| &c.response_headers).any(|m| m.matches(response));
            if matched || self.asked.iter().flat_map(|asked| &asked.headers).any(|name| response.contains(name)) {
                return true;
            }
        }
        match response.str(&names::GRPC_STATUS) {
            Some("1") => on.has(RetryOn::GRPC_CANCELLED),
            Some("4") => on.has(RetryOn::GRPC_DEADLINE_EXCEEDED),
            Some("8") => on.has(RetryOn::GRPC_RESOURCE_EXHAUSTED),
            Some("13") => on.has(RetryOn::GRPC_INTERNAL),
            Some("14") => on.has(RetryOn::GRPC_UNAVAILABLE),
            _ => false,
        }
    }

    fn wants_reset(&self, reason: ResetReason, started: bool) -> bool {
        use ResetReason as R;
        let on = self.on;
        // A full pool or an overloaded proxy is not helped by more requests.
        if matches!(reason, R::Overflow | R::OverloadManager) {
            return false;
        }
        if on.has(RetryOn::RESET) || (on.has(RetryOn::RESET_BEFORE_REQUEST) && !started) {
            return true;
        }
        if on.has(RetryOn::ANY_5XX) || on.has(RetryOn::GATEWAY_ERROR) {
            return true;
        }
        if on.has(RetryOn::REFUSED_STREAM) && reason == R::RemoteRefusedStreamReset {
            return true;
        }
        on.has(RetryOn::CONNECT_FAILURE)
            && matches!(reason, R::LocalConnectionFailure | R::RemoteConnectionFailure | R::ConnectionTimeout)
    }

    /// How long a rate-limited upstream asks to wait.
    fn reset_interval(&self, response: &Headers, now: SystemTime) -> Option<Duration> {
        let max = self.policy.as_ref()?.rate_limited_back_off.as_ref()?.max_interval;
        let interval = |(name, time_of_day): &(HeaderName, bool)| {
            let number: u64 = response.str(name)?.trim().parse().ok()?;
            let seconds = if *time_of_day {
                number.checked_sub(now.duration_since(UNIX_EPOCH).ok()?.as_secs()).filter(|left| *left > 0)?
            } else {
                number
            };
            Some(Duration::from_secs(seconds)).filter(|interval| *interval <= max)
        };
        let found = self.conditions.as_ref()?.reset_headers.iter().find_map(interval);
        found.filter(|interval| *interval > Duration::from_millis(1))
    }

    /// How long to wait before the retry just granted, `random` uniform over `u64`; true when the upstream asked for it.
    pub(crate) fn back_off(&mut self, random: u64) -> (Duration, bool) {
        if let Some(least) = self.reset_after.take() {
            let millis = least.as_millis() as u64;
            return (Duration::from_millis(millis + random % (millis / 2).max(1)), true);
        }
        let policy = self.policy.as_ref();
        let base = policy.map_or(Duration::from_millis(25), |policy| policy.back_off_base);
        let max = policy.map_or(Duration::from_millis(250), |policy| policy.back_off_max);
        // Full jitter over an interval that doubles.
        let doublings = self.retries.saturating_sub(1).min(20);
        let interval = (base.as_millis() as u64).saturating_mul(1 << doublings).min(max.as_millis() as u64);
        (Duration::from_millis(random % interval.max(1)), false)
    }

    /// Whether the next try is a retry.
    pub(crate) fn is_retry(&self) -> bool {
        self.retries > 0
    }

    /// Whether the policy has a say in the choice of hosts.
    pub(crate) fn chooses_hosts(&self) -> bool {
        self.policy
            .as_ref()
            .is_some_and(|policy| !policy.retry_host_predicate.is_empty() || policy.previous_priorities.is_some())
    }

    /// Attempts at choosing a host that the predicates accept.
    pub(crate) fn host_selection_attempts(&self) -> u32 {
        self.policy.as_ref().map_or(1, |policy| policy.host_selection_retry_max_attempts)
    }

    /// Whether a retry should go to another host than this one.
    pub(crate) fn refuses_host(&self, host: &Host, tried: &[Arc<Host>]) -> bool {
        let predicates = self.policy.iter().flat_map(|policy| &policy.retry_host_predicate);
        predicates.into_iter().any(|predicate| match predicate {
            RetryHostPredicate::PreviousHosts => tried.iter().any(|other| other.address_text == host.address_text),
            RetryHostPredicate::OmitCanaryHosts => host.is_canary(),
            RetryHostPredicate::OmitHostMetadata(labels) => has_labels(host, labels),
        })
    }

    /// `previous_priorities`: the load without the priorities that were tried. None where the cluster's own is used.
    pub(crate) fn priority_load(&self, cluster: &Cluster, tried: &[Arc<Host>]) -> Option<PriorityLoad> {
        let frequency = self.policy.as_ref()?.previous_priorities? as usize;
        let state = cluster.state();
        // Only whole batches of tries count; with all priorities tried it begins anew.
        let mut excluded = vec![false; state.level_count()];
        for batch in tried.chunks_exact(frequency) {
            for host in batch {
                if let Some(level) = state.level_of(host).and_then(|level| excluded.get_mut(level)) {
                    *level = true;
                }
            }
            if state.load_excluding(&excluded).is_none() {
                excluded.fill(false);
            }
        }
        if tried.len() < frequency || !excluded.contains(&true) {
            return None;
        }
        state.load_excluding(&excluded)
    }
}

impl Asked {
    fn of(headers: &Headers) -> Option<Box<Asked>> {
        let statuses = headers.str(&names::X_ENVOY_RETRIABLE_STATUS_CODES);
        let list = headers.str(&names::X_ENVOY_RETRIABLE_HEADER_NAMES);
        if statuses.is_none() && list.is_none() {
            return None;
        }
        let split = |text: Option<&str>| -> Vec<String> {
            text.into_iter().flat_map(|text| text.split(',')).map(|part| part.trim().to_owned()).collect()
        };
        Some(Box::new(Asked {
            statuses: split(statuses).iter().filter_map(|code| code.parse().ok()).collect(),
            headers: split(list).iter().filter_map(|name| HeaderName::parse(name)).collect(),
        }))
    }
}

/// Whether the host's metadata under `envoy.lb` has all of these values, itself or in a list; without labels every host
/// has them.
fn has_labels(host: &Host, labels: &serde_json::Value) -> bool {
    let Some(labels) = labels.as_object() else { return false };
    let metadata = host.metadata();
    let metadata = metadata.as_ref().and_then(|metadata| metadata.get("envoy.lb"));
    labels.iter().all(|(key, wanted)| {
        let Some(value) = metadata.and_then(|metadata| metadata.get(key)) else { return false };
        value == wanted || value.as_array().is_some_and(|list| list.contains(wanted))
    })
}

/// Removes the headers that steer retries, and the name of statistics that comes the same way; upstreams never see them.
fn consume_headers(headers: &mut Headers, alt_stat_name: &mut Option<HeaderValue>) {
    const CONSUMED: nuncio_http::headers::NameSet = nuncio_http::headers::NameSet::of(&[
        "x-envoy-retry-on",
        "x-envoy-retry-grpc-on",
        "x-envoy-max-retries",
        "x-envoy-hedge-on-per-try-timeout",
        "x-envoy-retriable-header-names",
        "x-envoy-retriable-status-codes",
        "x-envoy-upstream-rq-per-try-timeout-ms",
        "x-envoy-upstream-alt-stat-name",
    ]);
    if let Some(name) = headers.get_all(&names::X_ENVOY_UPSTREAM_ALT_STAT_NAME).last() {
        *alt_stat_name = Some(name.clone());
    }
    headers.remove_all(CONSUMED);
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_config::route::RateLimitedBackOff;

    fn asking(list: &[(&'static str, &'static str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in list {
            headers.append(HeaderName::parse(name).unwrap(), HeaderValue::from_static(value));
        }
        headers
    }

    fn state(retry_on: &'static str) -> RetryState {
        let mut headers = asking(&[("x-envoy-retry-on", retry_on), ("x-envoy-max-retries", "2")]);
        let state = RetryState::new(None, None, &mut headers, &mut None).unwrap();
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
        assert!(RetryState::new(None, None, &mut Headers::new(), &mut None).is_none());
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
    fn a_rate_limited_response_is_retried_only_where_that_is_asked_for() {
        let mut limited = status(503);
        limited.append(names::X_ENVOY_RATELIMITED, HeaderValue::from_static("true"));
        assert_eq!(state("5xx").on_response(&limited), Verdict::No);
        assert_eq!(state("envoy-ratelimited").on_response(&limited), Verdict::Retry);
    }

    #[test]
    fn a_client_can_name_statuses_and_headers() {
        let mut headers = asking(&[
            ("x-envoy-retry-on", "retriable-status-codes,retriable-headers"),
            ("x-envoy-retriable-status-codes", "418, 425"),
            ("x-envoy-retriable-header-names", "x-again"),
        ]);
        let s = RetryState::new(None, None, &mut headers, &mut None).unwrap();
        assert!(s.wants_response(&status(425)) && !s.wants_response(&status(503)));
        let mut again = status(200);
        again.append(HeaderName::parse("x-again").unwrap(), HeaderValue::from_static(""));
        assert!(s.wants_response(&again));
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
        s.arm();
        assert_eq!(s.back_off(26), (Duration::from_millis(1), false));
        s.arm();
        assert_eq!(s.back_off(74), (Duration::from_millis(24), false));
        s.retries = 12;
        assert_eq!(s.back_off(60_249).0, Duration::from_millis(249));
    }

    #[test]
    fn the_upstream_can_ask_for_a_longer_back_off() {
        let message =
            envoy_types::pb::envoy::config::route::v3::RetryPolicy { retry_on: "5xx".into(), ..Default::default() };
        let mut cx = nuncio_config::decode::Context::default();
        let mut policy = RetryPolicy::decode(&mut cx, &message).unwrap();
        let max_interval = Duration::from_secs(10);
        policy.rate_limited_back_off = Some(RateLimitedBackOff { reset_headers: Vec::new(), max_interval });
        let name = |text| HeaderName::parse(text).unwrap();
        let conditions = RetryConditions {
            reset_headers: [(name("retry-after"), false), (name("x-reset"), true)].into(),
            ..Default::default()
        };
        let conditions = Arc::new(conditions);
        let mut s =
            RetryState::new(Some(&Arc::new(policy)), Some(&conditions), &mut Headers::new(), &mut None).unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let interval = |name: &'static str, value| s.reset_interval(&asking(&[(name, value)]), now);
        assert_eq!(interval("retry-after", "3"), Some(Duration::from_secs(3)));
        assert_eq!(interval("retry-after", "11"), None);
        assert_eq!(interval("x-reset", "1007"), Some(Duration::from_secs(7)));
        assert_eq!(interval("x-reset", "999"), None);
        s.reset_after = Some(Duration::from_secs(3));
        assert_eq!(s.back_off(1501), (Duration::from_millis(3001), true));
    }
}
