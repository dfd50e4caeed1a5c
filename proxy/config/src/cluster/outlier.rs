//! `OutlierDetection` decoded.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;

use crate::decode::{Context, bool_value, u32_value};

/// `OutlierDetection` with Envoy's defaults. Percentages are whole numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetectionConfig {
    /// Errors (5xx) in a row; default 5.
    pub consecutive_5xx: u32,
    /// Gateway errors (502, 503, 504) in a row; default 5.
    pub consecutive_gateway_failure: u32,
    /// Failures of this side (connect, timeout) in a row, with `split_external_local_origin_errors`; default 5.
    pub consecutive_local_origin_failure: u32,
    /// Failures of this side are counted apart from the hosts' errors.
    pub split_external_local_origin_errors: bool,
    /// Between two looks at success rates and at hosts whose time is over; default 10 s.
    pub interval: Duration,
    /// First ejection; each further one is longer by as much. Default 30 s.
    pub base_ejection_time: Duration,
    /// Default 300 s, or the base where that is longer.
    pub max_ejection_time: Duration,
    /// Random addition to each ejection; default none.
    pub max_ejection_time_jitter: Duration,
    /// Hosts that may be ejected at once; default 10.
    pub max_ejection_percent: u32,
    /// One host may be ejected whatever the percentage says.
    pub always_eject_one_host: bool,
    /// A passed health check ends an ejection; default true.
    pub successful_active_health_check_uneject_host: bool,
    /// Hosts whose answers call them degraded (`x-envoy-degraded`) count as that for a while.
    pub detect_degraded_hosts: bool,
    /// Percentage of detections that eject; default 100.
    pub enforcing_consecutive_5xx: u32,
    /// Default 0.
    pub enforcing_consecutive_gateway_failure: u32,
    /// Default 100.
    pub enforcing_consecutive_local_origin_failure: u32,
    /// Default 100.
    pub enforcing_success_rate: u32,
    /// Default 100.
    pub enforcing_local_origin_success_rate: u32,
    /// Default 0.
    pub enforcing_failure_percentage: u32,
    /// Default 0.
    pub enforcing_failure_percentage_local_origin: u32,
    /// Hosts with enough requests that the success rate needs; default 5.
    pub success_rate_minimum_hosts: u32,
    /// Requests in an interval for a host to count; default 100.
    pub success_rate_request_volume: u32,
    /// Thousandths of the standard deviation below the mean; default 1900.
    pub success_rate_stdev_factor: u32,
    /// Failures in percent that eject; default 85.
    pub failure_percentage_threshold: u32,
    /// Default 5.
    pub failure_percentage_minimum_hosts: u32,
    /// Default 50.
    pub failure_percentage_request_volume: u32,
}

impl Default for OutlierDetectionConfig {
    fn default() -> Self {
        OutlierDetectionConfig {
            consecutive_5xx: 5,
            consecutive_gateway_failure: 5,
            consecutive_local_origin_failure: 5,
            split_external_local_origin_errors: false,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_time_jitter: Duration::ZERO,
            max_ejection_percent: 10,
            always_eject_one_host: false,
            successful_active_health_check_uneject_host: true,
            detect_degraded_hosts: false,
            enforcing_consecutive_5xx: 100,
            enforcing_consecutive_gateway_failure: 0,
            enforcing_consecutive_local_origin_failure: 100,
            enforcing_success_rate: 100,
            enforcing_local_origin_success_rate: 100,
            enforcing_failure_percentage: 0,
            enforcing_failure_percentage_local_origin: 0,
            success_rate_minimum_hosts: 5,
            success_rate_request_volume: 100,
            success_rate_stdev_factor: 1900,
            failure_percentage_threshold: 85,
            failure_percentage_minimum_hosts: 5,
            failure_percentage_request_volume: 50,
        }
    }
}

impl OutlierDetectionConfig {
    pub(super) fn decode(cx: &mut Context, message: &pb::OutlierDetection) -> Option<Self> {
        let default = OutlierDetectionConfig::default();
        let number = |value, default| u32_value(value).unwrap_or(default);
        let interval = cx.duration("interval", &message.interval).unwrap_or(default.interval);
        let base = cx.duration("base_ejection_time", &message.base_ejection_time).unwrap_or(default.base_ejection_time);
        let max = cx
            .duration("max_ejection_time", &message.max_ejection_time)
            .unwrap_or_else(|| default.max_ejection_time.max(base));
        if max < base {
            cx.error("outlier detector's max_ejection_time cannot be smaller than base_ejection_time");
            return None;
        }
        let m = message;
        Some(OutlierDetectionConfig {
            interval,
            base_ejection_time: base,
            max_ejection_time: max,
            max_ejection_time_jitter: cx
                .duration("max_ejection_time_jitter", &m.max_ejection_time_jitter)
                .unwrap_or_default(),
            consecutive_5xx: number(&m.consecutive_5xx, default.consecutive_5xx),
            consecutive_gateway_failure: number(&m.consecutive_gateway_failure, default.consecutive_gateway_failure),
            consecutive_local_origin_failure: number(
                &m.consecutive_local_origin_failure,
                default.consecutive_local_origin_failure,
            ),
            split_external_local_origin_errors: m.split_external_local_origin_errors,
            max_ejection_percent: number(&m.max_ejection_percent, default.max_ejection_percent).min(100),
            always_eject_one_host: bool_value(&m.always_eject_one_host).unwrap_or(false),
            detect_degraded_hosts: bool_value(&message.detect_degraded_hosts).unwrap_or(false),
            successful_active_health_check_uneject_host: bool_value(&m.successful_active_health_check_uneject_host)
                .unwrap_or(true),
            enforcing_consecutive_5xx: number(&m.enforcing_consecutive_5xx, default.enforcing_consecutive_5xx),
            enforcing_consecutive_gateway_failure: number(
                &m.enforcing_consecutive_gateway_failure,
                default.enforcing_consecutive_gateway_failure,
            ),
            enforcing_consecutive_local_origin_failure: number(
                &m.enforcing_consecutive_local_origin_failure,
                default.enforcing_consecutive_local_origin_failure,
            ),
            enforcing_success_rate: number(&m.enforcing_success_rate, default.enforcing_success_rate),
            enforcing_local_origin_success_rate: number(
                &m.enforcing_local_origin_success_rate,
                default.enforcing_local_origin_success_rate,
            ),
            enforcing_failure_percentage: number(&m.enforcing_failure_percentage, default.enforcing_failure_percentage),
            enforcing_failure_percentage_local_origin: number(
                &m.enforcing_failure_percentage_local_origin,
                default.enforcing_failure_percentage_local_origin,
            ),
            success_rate_minimum_hosts: number(&m.success_rate_minimum_hosts, default.success_rate_minimum_hosts),
            success_rate_request_volume: number(&m.success_rate_request_volume, default.success_rate_request_volume),
            success_rate_stdev_factor: number(&m.success_rate_stdev_factor, default.success_rate_stdev_factor),
            failure_percentage_threshold: number(&m.failure_percentage_threshold, default.failure_percentage_threshold),
            failure_percentage_minimum_hosts: number(
                &m.failure_percentage_minimum_hosts,
                default.failure_percentage_minimum_hosts,
            ),
            failure_percentage_request_volume: number(
                &m.failure_percentage_request_volume,
                default.failure_percentage_request_volume,
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::google::protobuf::Duration as PbDuration;

    fn decode(message: &pb::OutlierDetection) -> Result<OutlierDetectionConfig, Vec<crate::diagnostics::ConfigError>> {
        Context::default().run(|cx| OutlierDetectionConfig::decode(cx, message))
    }

    fn seconds(seconds: i64) -> Option<PbDuration> {
        Some(PbDuration { seconds, nanos: 0 })
    }

    #[test]
    fn an_empty_message_has_envoys_defaults() {
        assert_eq!(decode(&pb::OutlierDetection::default()).unwrap(), OutlierDetectionConfig::default());
    }

    #[test]
    fn the_maximum_follows_a_base_that_is_longer() {
        let message = pb::OutlierDetection { base_ejection_time: seconds(400), ..Default::default() };
        assert_eq!(decode(&message).unwrap().max_ejection_time, Duration::from_secs(400));
        let message = pb::OutlierDetection { max_ejection_time: seconds(3), ..message };
        assert_eq!(
            errors(decode(&message)),
            ["outlier detector's max_ejection_time cannot be smaller than base_ejection_time"]
        );
    }
}
