//! `client_side_weighted_round_robin` decoded.

use envoy_types::pb::envoy::extensions::load_balancing_policies::client_side_weighted_round_robin::v3 as pb;

use crate::decode::Context;
use std::time::Duration;

/// How reports of hosts become their weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientWeightsConfig {
    /// A host has to report for so long before its weight counts; default 10 s.
    pub blackout_period: Duration,
    /// After so long without a report the weight counts no more; default 3 min.
    pub weight_expiration_period: Duration,
    /// How often weights are computed; default 1 s, at least 100 ms.
    pub weight_update_period: Duration,
    /// How much errors count as utilization; default 1.
    pub error_utilization_penalty: f64,
    /// Metrics that are the utilization, before that of the application and of the CPU.
    pub metric_names: Box<[Box<str>]>,
}

impl Default for ClientWeightsConfig {
    fn default() -> Self {
        ClientWeightsConfig {
            blackout_period: Duration::from_secs(10),
            weight_expiration_period: Duration::from_secs(180),
            weight_update_period: Duration::from_secs(1),
            error_utilization_penalty: 1.0,
            metric_names: Box::default(),
        }
    }
}

impl ClientWeightsConfig {
    pub(super) fn decode(cx: &mut Context, message: &pb::ClientSideWeightedRoundRobin) -> Self {
        let default = ClientWeightsConfig::default();
        let update = cx.duration("weight_update_period", &message.weight_update_period);
        ClientWeightsConfig {
            blackout_period: cx
                .duration("blackout_period", &message.blackout_period)
                .unwrap_or(default.blackout_period),
            weight_expiration_period: cx
                .duration("weight_expiration_period", &message.weight_expiration_period)
                .unwrap_or(default.weight_expiration_period),
            weight_update_period: update.unwrap_or(default.weight_update_period).max(Duration::from_millis(100)),
            error_utilization_penalty: message
                .error_utilization_penalty
                .as_ref()
                .map_or(default.error_utilization_penalty, |penalty| f64::from(penalty.value)),
            metric_names: message
                .metric_names_for_computing_utilization
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::google::protobuf::Duration as Message;

    #[test]
    fn weights_are_computed_ten_times_a_second_at_most() {
        let period = |nanos| {
            let message = pb::ClientSideWeightedRoundRobin {
                weight_update_period: Some(Message { seconds: 0, nanos }),
                ..Default::default()
            };
            ClientWeightsConfig::decode(&mut Context::default(), &message).weight_update_period.as_millis()
        };
        assert_eq!((period(1_000_000), period(300_000_000)), (100, 300));
        let default = ClientWeightsConfig::decode(&mut Context::default(), &Default::default());
        assert_eq!(default, ClientWeightsConfig::default());
    }
}
