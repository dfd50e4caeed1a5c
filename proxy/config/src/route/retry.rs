//! `RetryPolicy` and `HedgePolicy` decoded: conditions as bits, predicates as enums.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::retry::host::omit_host_metadata::v3::OmitHostMetadataConfig;
use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use pb::retry_policy as policy;

use crate::decode::{Context, json, lower, type_name, u32_value};
use crate::matchers::HeaderMatcher;

/// Conditions of `retry_on`, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn(u32);

macro_rules! conditions {
    ($($konst:ident = $bit:literal, $name:literal;)+) => {
        impl RetryOn {
            $(#[doc = concat!("`", $name, "`")] pub const $konst: RetryOn = RetryOn(1 << $bit);)+
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

/// The conditions that look at `grpc-status`.
const GRPC: u32 = RetryOn::GRPC_CANCELLED.0
    | RetryOn::GRPC_DEADLINE_EXCEEDED.0
    | RetryOn::GRPC_RESOURCE_EXHAUSTED.0
    | RetryOn::GRPC_UNAVAILABLE.0
    | RetryOn::GRPC_INTERNAL.0;

impl RetryOn {
    /// The conditions of a comma-separated list; unknown names are passed over, as in Envoy.
    pub fn parse(list: &str) -> RetryOn {
        let mut on = RetryOn::default();
        for name in list.split(',').map(str::trim) {
            if let Some((_, bit)) = RetryOn::NAMES.iter().find(|(known, _)| *known == name) {
                on.0 |= bit.0;
            }
        }
        on
    }

    /// Those of `x-envoy-retry-on`: without the ones for gRPC.
    pub fn parse_http(list: &str) -> RetryOn {
        RetryOn(Self::parse(list).0 & !GRPC)
    }

    /// Those of `x-envoy-retry-grpc-on`: only the ones for gRPC.
    pub fn parse_grpc(list: &str) -> RetryOn {
        RetryOn(Self::parse(list).0 & GRPC)
    }

    /// These and those.
    #[must_use]
    pub fn union(self, other: RetryOn) -> RetryOn {
        RetryOn(self.0 | other.0)
    }

    /// Whether one of `other` is among them.
    pub fn has(self, other: RetryOn) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is no condition.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// `RetryPolicy`.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Conditions.
    pub retry_on: RetryOn,
    /// Default 1.
    pub num_retries: u32,
    /// None: the route timeout rules.
    pub per_try_timeout: Option<Duration>,
    /// `per_try_idle_timeout`.
    pub per_try_idle_timeout: Option<Duration>,
    /// Statuses for `retriable-status-codes`.
    pub retriable_status_codes: Box<[u16]>,
    /// Default 25 ms.
    pub back_off_base: Duration,
    /// Default ten times the base.
    pub back_off_max: Duration,
    /// Hosts that a retry passes over.
    pub retry_host_predicate: Box<[RetryHostPredicate]>,
    /// Attempts at host selection; default 1.
    pub host_selection_retry_max_attempts: u32,
    /// `previous_priorities`: after so many tries the priorities that were tried get no load; None without it.
    pub previous_priorities: Option<u32>,
    /// Response headers that make a response retriable.
    pub retriable_headers: Vec<HeaderMatcher>,
    /// Request headers of which one must match for a retry.
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// `rate_limited_retry_back_off`.
    pub rate_limited_back_off: Option<RateLimitedBackOff>,
    /// `refresh_cluster_on_retry`: each try goes where the route leads then.
    pub refresh_cluster_on_retry: bool,
}

/// One `retry_host_predicate`.
#[derive(Debug, Clone, PartialEq)]
pub enum RetryHostPredicate {
    /// Hosts that were tried.
    PreviousHosts,
    /// Hosts marked as canaries.
    OmitCanaryHosts,
    /// Hosts whose metadata under `envoy.lb` has these values.
    OmitHostMetadata(Arc<serde_json::Value>),
}

/// `RateLimitedRetryBackOff`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitedBackOff {
    /// Lower-cased header name; true for UNIX_TIMESTAMP.
    pub reset_headers: Vec<(Box<str>, bool)>,
    /// Default 300 s.
    pub max_interval: Duration,
}

impl RetryPolicy {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &pb::RetryPolicy) -> Option<Self> {
        let (back_off_base, back_off_max) = back_off(cx, message.retry_back_off.as_ref());
        let rate_limited_back_off =
            cx.optional("rate_limited_retry_back_off", &message.rate_limited_retry_back_off, |cx, back_off| {
                let reset_headers = back_off
                    .reset_headers
                    .iter()
                    .map(|h| (lower(&h.name), h.format() == policy::ResetHeaderFormat::UnixTimestamp))
                    .collect();
                let max = cx.duration("max_interval", &back_off.max_interval);
                Some(RateLimitedBackOff { reset_headers, max_interval: max.unwrap_or(Duration::from_secs(300)) })
            });
        let codes = message.retriable_status_codes.iter();
        Some(RetryPolicy {
            retry_on: RetryOn::parse(&message.retry_on),
            num_retries: u32_value(&message.num_retries).unwrap_or(1),
            per_try_timeout: cx.timeout("per_try_timeout", &message.per_try_timeout, None),
            per_try_idle_timeout: cx.timeout("per_try_idle_timeout", &message.per_try_idle_timeout, None),
            retriable_status_codes: codes.filter_map(|code| u16::try_from(*code).ok()).collect(),
            back_off_base,
            back_off_max,
            retry_host_predicate: cx.each("retry_host_predicate", &message.retry_host_predicate, host_predicate).into(),
            host_selection_retry_max_attempts: match message.host_selection_retry_max_attempts {
                0 => 1,
                attempts => u32::try_from(attempts).unwrap_or(1),
            },
            previous_priorities: cx.optional("retry_priority", &message.retry_priority, priority),
            retriable_headers: cx.each("retriable_headers", &message.retriable_headers, HeaderMatcher::decode),
            retriable_request_headers: cx.each(
                "retriable_request_headers",
                &message.retriable_request_headers,
                HeaderMatcher::decode,
            ),
            rate_limited_back_off,
            refresh_cluster_on_retry: message.refresh_cluster_on_retry,
        })
    }
}

fn back_off(cx: &mut Context, message: Option<&policy::RetryBackOff>) -> (Duration, Duration) {
    const BASE: Duration = Duration::from_millis(25);
    let Some(back_off) = message else { return (BASE, BASE * 10) };
    cx.at("retry_back_off", |cx| {
        let base = cx.duration("base_interval", &back_off.base_interval).unwrap_or(BASE);
        let max = cx.duration("max_interval", &back_off.max_interval);
        if max.is_some_and(|max| max < base) {
            cx.error("retry_policy.max_interval must greater than or equal to the base_interval");
        }
        // Below a millisecond there is nothing to jitter; Envoy rounds up to one.
        let base = base.max(Duration::from_millis(1));
        (base, max.unwrap_or(base * 10).max(base))
    })
}

fn host_predicate(cx: &mut Context, message: &policy::RetryHostPredicate) -> Option<RetryHostPredicate> {
    let any = message.config_type.as_ref().map(|policy::retry_host_predicate::ConfigType::TypedConfig(any)| any);
    match any.map_or("", |any| type_name(&any.type_url)) {
        "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate" => {
            Some(RetryHostPredicate::PreviousHosts)
        }
        "envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate" => {
            Some(RetryHostPredicate::OmitCanaryHosts)
        }
        "envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig" => {
            let config: OmitHostMetadataConfig = cx.at("typed_config", |cx| cx.unpack(any?))?;
            let labels = json::metadata_namespace(&config.metadata_match, "envoy.lb");
            Some(RetryHostPredicate::OmitHostMetadata(
                labels.unwrap_or_else(|| Arc::new(serde_json::Value::Object(serde_json::Map::new()))),
            ))
        }
        other => {
            cx.refuse_extension("envoy.retry_host_predicates", &message.name, other);
            None
        }
    }
}

fn priority(cx: &mut Context, message: &policy::RetryPriority) -> Option<u32> {
    let any = message.config_type.as_ref().map(|policy::retry_priority::ConfigType::TypedConfig(any)| any);
    match any.map_or("", |any| type_name(&any.type_url)) {
        "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig" => {
            let config: PreviousPrioritiesConfig = cx.at("typed_config", |cx| cx.unpack(any?))?;
            Some(u32::try_from(config.update_frequency).unwrap_or(0).max(1))
        }
        other => {
            cx.refuse_extension("envoy.retry_priorities", &message.name, other);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::google::protobuf::Any;
    use prost::Message;

    fn predicate(name: &str, value: &impl Message) -> policy::RetryHostPredicate {
        let any = Any { type_url: format!("type.googleapis.com/{name}"), value: value.encode_to_vec() };
        policy::RetryHostPredicate {
            name: "p".into(),
            config_type: Some(policy::retry_host_predicate::ConfigType::TypedConfig(any)),
        }
    }

    #[test]
    fn conditions_are_told_apart_by_the_header_that_lists_them() {
        let list = "5xx, unavailable,nonsense";
        assert!(RetryOn::parse(list).has(RetryOn::ANY_5XX) && RetryOn::parse(list).has(RetryOn::GRPC_UNAVAILABLE));
        assert_eq!(RetryOn::parse_http(list), RetryOn::ANY_5XX);
        assert_eq!(RetryOn::parse_grpc(list), RetryOn::GRPC_UNAVAILABLE);
        assert!(RetryOn::parse("nonsense").is_empty());
    }

    #[test]
    fn host_predicates_are_found_by_type() {
        let list = vec![
            predicate("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate", &()),
            predicate("envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate", &()),
        ];
        let message = pb::RetryPolicy { retry_host_predicate: list, ..Default::default() };
        let decoded = RetryPolicy::decode(&mut Context::default(), &message).unwrap();
        let wanted = [RetryHostPredicate::PreviousHosts, RetryHostPredicate::OmitCanaryHosts];
        assert_eq!(*decoded.retry_host_predicate, wanted);
    }

    #[test]
    fn an_unknown_predicate_is_an_error() {
        let message = pb::RetryPolicy { retry_host_predicate: vec![predicate("x.Y", &())], ..Default::default() };
        let result = Context::default().run(|cx| RetryPolicy::decode(cx, &message));
        assert_eq!(
            errors(result),
            ["retry_host_predicate[0]: Didn't find a registered implementation for 'p' with type URL: 'x.Y'"]
        );
    }
}
