//! `client_side_weighted_round_robin` decoded.

use envoy_types::pb::envoy::extensions::load_balancing_policies::client_side_weighted_round_robin::v3 as pb;

use crate::decode::{Context, json};
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
    /// Hosts report on streams of their own, too; None where they do not.
    pub oob: Option<OobReporting>,
}

/// `enable_oob_load_report`, `oob_reporting_period` and `oob_reporting_config`.
#[derive(Debug, Clone, PartialEq)]
pub struct OobReporting {
    /// How often hosts are asked to report; default 10 s, not zero.
    pub period: Duration,
    /// The port instead of that of the host.
    pub port: Option<u16>,
    /// The authority instead of the host's name or address; empty for none.
    pub authority: Box<str>,
    /// Labels that choose the transport socket match, as JSON; None for that of the host.
    pub transport_socket_match: Option<serde_json::Value>,
}

impl OobReporting {
    fn decode(cx: &mut Context, message: &pb::ClientSideWeightedRoundRobin) -> Option<Self> {
        if !message.enable_oob_load_report.as_ref().is_some_and(|enabled| enabled.value) {
            return None;
        }
        let period = cx.duration("oob_reporting_period", &message.oob_reporting_period);
        let own = message.oob_reporting_config.clone().unwrap_or_default();
        Some(OobReporting {
            period: period.filter(|period| period.as_millis() > 0).unwrap_or(Duration::from_secs(10)),
            port: u16::try_from(own.port_value).ok().filter(|port| *port != 0),
            authority: own.authority.as_str().into(),
            transport_socket_match: own.transport_socket_match_criteria.as_ref().map(json::from_struct),
        })
    }
}

impl Default for ClientWeightsConfig {
    fn default() -> Self {
        ClientWeightsConfig {
            blackout_period: Duration::from_secs(10),
            weight_expiration_period: Duration::from_secs(180),
            weight_update_period: Duration::from_secs(1),
            error_utilization_penalty: 1.0,
            metric_names: Box::default(),
            oob: None,
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
            oob: OobReporting::decode(cx, message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::google::protobuf::{BoolValue, Duration as Message};

    #[test]
    fn hosts_report_on_their_own_where_that_is_enabled() {
        use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3::OrcaOobReportingConfig;
        let decode = |enabled, seconds| {
            let message = pb::ClientSideWeightedRoundRobin {
                enable_oob_load_report: Some(BoolValue { value: enabled }),
                oob_reporting_period: Some(Message { seconds, nanos: 0 }),
                oob_reporting_config: Some(OrcaOobReportingConfig { port_value: 9, ..Default::default() }),
                ..Default::default()
            };
            ClientWeightsConfig::decode(&mut Context::default(), &message).oob
        };
        let oob = |seconds| decode(true, seconds).map(|oob| (oob.period.as_secs(), oob.port));
        assert_eq!((oob(3), oob(0)), (Some((3, Some(9))), Some((10, Some(9)))));
        assert_eq!(decode(false, 3), None);
    }

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
