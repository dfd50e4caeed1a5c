//! Lines of the outlier event log: `envoy.data.cluster.v3.OutlierDetectionEvent` as JSON, fields in Envoy's order.

use super::{EjectionType, Event};
use serde_json::json;
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// The line of `event`, with its line feed.
pub(super) fn line(event: &Event, cluster: &str, now: SystemTime) -> String {
    let kind = match event.ejected {
        None | Some(EjectionType::Consecutive5xx) => "CONSECUTIVE_5XX",
        Some(EjectionType::ConsecutiveGatewayFailure) => "CONSECUTIVE_GATEWAY_FAILURE",
        Some(EjectionType::SuccessRate) => "SUCCESS_RATE",
        Some(EjectionType::ConsecutiveLocalOriginFailure) => "CONSECUTIVE_LOCAL_ORIGIN_FAILURE",
        Some(EjectionType::SuccessRateLocalOrigin) => "SUCCESS_RATE_LOCAL_ORIGIN",
        Some(EjectionType::FailurePercentage) => "FAILURE_PERCENTAGE",
        Some(EjectionType::FailurePercentageLocalOrigin) => "FAILURE_PERCENTAGE_LOCAL_ORIGIN",
    };
    let mut out = format!("{{\"type\":\"{kind}\",\"timestamp\":\"{}\"", timestamp(now));
    if let Some(since) = event.since_last_action {
        let _ = write!(out, ",\"secs_since_last_action\":\"{}\"", since.as_secs());
    }
    let _ = write!(
        out,
        ",\"cluster_name\":{},\"upstream_url\":{},\"action\":\"{}\",\"num_ejections\":{},\"enforced\":{}",
        json!(cluster),
        json!(&*event.host),
        if event.ejected.is_some() { "EJECT" } else { "UNEJECT" },
        event.num_ejections,
        event.enforced,
    );
    // Envoy's fields are unsigned numbers.
    let (host, average, threshold) = event.rates;
    let whole = |rate: f64| rate.max(0.0) as u32;
    match event.ejected {
        None => {}
        Some(EjectionType::SuccessRate | EjectionType::SuccessRateLocalOrigin) => {
            let _ = write!(
                out,
                ",\"eject_success_rate_event\":{{\"host_success_rate\":{},\"cluster_average_success_rate\":{},\
                 \"cluster_success_rate_ejection_threshold\":{}}}",
                whole(host),
                whole(average),
                whole(threshold)
            );
        }
        Some(EjectionType::FailurePercentage | EjectionType::FailurePercentageLocalOrigin) => {
            let _ = write!(out, ",\"eject_failure_percentage_event\":{{\"host_success_rate\":{}}}", whole(host));
        }
        Some(_) => out.push_str(",\"eject_consecutive_event\":{}"),
    }
    out.push_str("}\n");
    out
}

/// RFC 3339 with milliseconds.
pub(crate) fn timestamp(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let whole = prost_types::Timestamp { seconds: since.as_secs() as i64, nanos: 0 }.to_string();
    let whole = whole.trim_end_matches('Z');
    match since.subsec_millis() {
        0 => format!("{whole}Z"),
        millis => format!("{whole}.{millis:03}Z"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn event(ejected: Option<EjectionType>) -> Event {
        Event {
            host: "127.0.0.1:1".into(),
            ejected,
            enforced: true,
            num_ejections: 2,
            since_last_action: Some(Duration::from_millis(12_900)),
            rates: (50.0, 90.0, 52.0),
        }
    }

    #[test]
    fn lines_are_envoys() {
        let now = UNIX_EPOCH + Duration::from_millis(1_795_408_918_806);
        assert_eq!(
            line(&event(Some(EjectionType::ConsecutiveGatewayFailure)), "c", now),
            "{\"type\":\"CONSECUTIVE_GATEWAY_FAILURE\",\"timestamp\":\"2026-11-23T04:41:58.806Z\",\
             \"secs_since_last_action\":\"12\",\"cluster_name\":\"c\",\"upstream_url\":\"127.0.0.1:1\",\
             \"action\":\"EJECT\",\"num_ejections\":2,\"enforced\":true,\"eject_consecutive_event\":{}}\n"
        );
        assert!(line(&event(Some(EjectionType::SuccessRate)), "c", now).ends_with(
            "\"eject_success_rate_event\":{\"host_success_rate\":50,\"cluster_average_success_rate\":90,\
             \"cluster_success_rate_ejection_threshold\":52}}\n"
        ));
        let back = Event { enforced: false, ..event(None) };
        assert!(line(&back, "c", now).ends_with("\"action\":\"UNEJECT\",\"num_ejections\":2,\"enforced\":false}\n"));
    }
}
