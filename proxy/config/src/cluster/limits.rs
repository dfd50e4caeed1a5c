//! Circuit breakers and connections ahead of requests.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::DoubleValue;

use super::{CircuitBreakers, PreconnectPolicy, RetryBudget, Thresholds};
use crate::decode::{Context, u32_value};
use crate::route::MetadataMatcher;

impl PreconnectPolicy {
    pub(super) fn decode(cx: &mut Context, message: &pb::cluster::PreconnectPolicy) -> Option<Self> {
        let ratio =
            |ratio: &Option<DoubleValue>| ratio.as_ref().map_or(1000, |ratio| (ratio.value * 1000.0).round() as u32);
        Some(PreconnectPolicy {
            per_upstream_ratio: ratio(&message.per_upstream_preconnect_ratio),
            predictive_ratio: ratio(&message.predictive_preconnect_ratio),
            enabled_metadata: cx
                .optional("preconnect_enabled_metadata", &message.preconnect_enabled_metadata, MetadataMatcher::decode)
                .map(Arc::new),
        })
    }
}

impl CircuitBreakers {
    pub(super) fn decode(cx: &mut Context, message: &pb::CircuitBreakers) -> Option<Self> {
        use core::RoutingPriority as Priority;
        // The first entry of a priority counts, as in Envoy.
        let place = |list: &[pb::circuit_breakers::Thresholds], priority| {
            list.iter().position(|thresholds| thresholds.priority() == priority)
        };
        let thresholds = cx.each("thresholds", &message.thresholds, |cx, one| Some(Thresholds::decode(cx, one)));
        let of = |priority| {
            place(&message.thresholds, priority).and_then(|at| thresholds.get(at).cloned()).unwrap_or_default()
        };
        let (default, high) = (of(Priority::Default), of(Priority::High));
        for (at, thresholds) in message.per_host_thresholds.iter().enumerate() {
            let others = [&thresholds.max_pending_requests, &thresholds.max_requests, &thresholds.max_retries];
            let pools = thresholds.max_connection_pools.is_some() || thresholds.retry_budget.is_some();
            if pools || others.into_iter().any(Option::is_some) {
                let text = "Unsupported field in per_host_thresholds";
                cx.at("per_host_thresholds", |cx| cx.at_index(at, |cx| cx.error(text)));
            }
        }
        Some(CircuitBreakers {
            default,
            high,
            per_host_max_connections: place(&message.per_host_thresholds, Priority::Default)
                .and_then(|at| u32_value(&message.per_host_thresholds[at].max_connections)),
        })
    }
}

impl Thresholds {
    pub(super) fn decode(cx: &mut Context, message: &pb::circuit_breakers::Thresholds) -> Self {
        let default = Thresholds::default();
        Thresholds {
            max_connections: u32_value(&message.max_connections).unwrap_or(default.max_connections),
            max_pending_requests: u32_value(&message.max_pending_requests).unwrap_or(default.max_pending_requests),
            max_requests: u32_value(&message.max_requests).unwrap_or(default.max_requests),
            max_retries: u32_value(&message.max_retries).unwrap_or(default.max_retries),
            retry_budget: cx.optional("retry_budget", &message.retry_budget, |cx, budget| {
                Some(RetryBudget {
                    percent: budget.budget_percent.as_ref().map_or(20.0, |percent| percent.value),
                    min_concurrency: u32_value(&budget.min_retry_concurrency).unwrap_or(3),
                    interval: cx.duration("budget_interval", &budget.budget_interval).unwrap_or_default(),
                })
            }),
            track_remaining: message.track_remaining,
            max_connection_pools: u32_value(&message.max_connection_pools),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::decode::tests::{cluster, decode};
    use envoy_types::pb::google::protobuf as google;
    use pb::cluster::DiscoveryType;

    #[test]
    fn the_first_threshold_of_a_priority_counts() {
        let threshold = |connections, priority| pb::circuit_breakers::Thresholds {
            priority,
            max_connections: Some(google::UInt32Value { value: connections }),
            ..Default::default()
        };
        let breakers = pb::CircuitBreakers {
            thresholds: vec![threshold(1, 0), threshold(2, 0), threshold(3, 1)],
            ..Default::default()
        };
        let message = pb::Cluster { circuit_breakers: Some(breakers), ..cluster(DiscoveryType::Static, &[]) };
        let breakers = decode(&message).unwrap().circuit_breakers;
        assert_eq!((breakers.default.max_connections, breakers.high.max_connections), (1, 3));
        assert_eq!(breakers.high.max_pending_requests, 1024);
    }
}
