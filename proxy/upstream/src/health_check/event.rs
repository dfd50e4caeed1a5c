//! Lines of the health check event log: `envoy.data.core.v3.HealthCheckEvent` as JSON, fields in Envoy's order.

use super::state::{FailureType, HealthEvent};
use crate::host::Host;
use crate::outlier::timestamp;
use nuncio_config::cluster::HealthCheckKind;
use nuncio_net::address::Address;
use serde_json::json;
use std::fmt::Write as _;
use std::time::SystemTime;

fn failure(kind: FailureType) -> &'static str {
    match kind {
        FailureType::Active => "ACTIVE",
        FailureType::Passive => "PASSIVE",
        FailureType::Network => "NETWORK",
        FailureType::NetworkTimeout => "NETWORK_TIMEOUT",
    }
}

/// The line of `event`, with its line feed.
pub(super) fn line(event: HealthEvent, kind: &HealthCheckKind, cluster: &str, host: &Host, now: SystemTime) -> String {
    let checker = match kind {
        HealthCheckKind::Http(_) => "HTTP",
        HealthCheckKind::Tcp { .. } => "TCP",
        HealthCheckKind::Grpc { .. } => "GRPC",
        HealthCheckKind::Redis { .. } => "REDIS",
    };
    let (before, after) = match event {
        HealthEvent::EjectUnhealthy(kind, status) => (
            format!(
                ",\"eject_unhealthy_event\":{{\"failure_type\":\"{}\",\"http_status_code\":{status}}}",
                failure(kind)
            ),
            String::new(),
        ),
        HealthEvent::AddHealthy(first) => {
            (format!(",\"add_healthy_event\":{{\"first_check\":{first}}}"), String::new())
        }
        HealthEvent::Failure(kind, first, status) => (
            String::new(),
            format!(
                ",\"health_check_failure_event\":{{\"failure_type\":\"{}\",\"first_check\":{first},\
                 \"http_status_code\":{status}}}",
                failure(kind)
            ),
        ),
        HealthEvent::Degraded => (String::new(), ",\"degraded_healthy_host\":{}".to_owned()),
        HealthEvent::NoLongerDegraded => (String::new(), ",\"no_longer_degraded_host\":{}".to_owned()),
        HealthEvent::Successful => (String::new(), String::new()),
    };
    let mut out = format!(
        "{{\"health_checker_type\":\"{checker}\",\"host\":{},\"cluster_name\":{}{before},\"timestamp\":\"{}\"{after}",
        address(&host.address),
        json!(cluster),
        timestamp(now),
    );
    if let Some(metadata) = host.metadata() {
        let _ = write!(out, ",\"metadata\":{}", json!({"filter_metadata": *metadata, "typed_filter_metadata": {}}));
    }
    let locality = &host.locality;
    let _ = write!(
        out,
        ",\"locality\":{{\"region\":{},\"zone\":{},\"sub_zone\":{}}}",
        json!(&*locality.region),
        json!(&*locality.zone),
        json!(&*locality.sub_zone)
    );
    if event == HealthEvent::Successful {
        out.push_str(",\"successful_health_check_event\":{}");
    }
    out.push_str("}\n");
    out
}

fn address(address: &Address) -> String {
    match address.socket_addr() {
        Some(socket) => format!(
            "{{\"socket_address\":{{\"protocol\":\"TCP\",\"address\":\"{}\",\"port_value\":{},\"resolver_name\":\"\",\
             \"ipv4_compat\":false,\"network_namespace_filepath\":\"\"}}}}",
            socket.ip(),
            socket.port()
        ),
        None => format!("{{\"pipe\":{{\"path\":{},\"mode\":0}}}}", json!(address.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::host;
    use std::sync::Arc;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn lines_are_envoys() {
        let now = UNIX_EPOCH + Duration::from_millis(1_795_408_918_806);
        let kind = HealthCheckKind::Tcp { send: bytes::Bytes::new(), receive: Vec::new(), proxy_protocol: None };
        let host = host(7, 1, &Arc::default());
        let line = |event| line(event, &kind, "c", &host, now);
        let head = "{\"health_checker_type\":\"TCP\",\"host\":{\"socket_address\":{\"protocol\":\"TCP\",\
                    \"address\":\"127.0.0.1\",\"port_value\":7,\"resolver_name\":\"\",\"ipv4_compat\":false,\
                    \"network_namespace_filepath\":\"\"}},\"cluster_name\":\"c\"";
        let time = ",\"timestamp\":\"2026-11-23T04:41:58.806Z\"";
        let tail = ",\"locality\":{\"region\":\"\",\"zone\":\"\",\"sub_zone\":\"\"}";
        assert_eq!(
            line(HealthEvent::Failure(FailureType::Network, true, 0)),
            format!(
                "{head}{time},\"health_check_failure_event\":{{\"failure_type\":\"NETWORK\",\"first_check\":true,\
                 \"http_status_code\":0}}{tail}}}\n"
            )
        );
        let added = ",\"add_healthy_event\":{\"first_check\":false}";
        assert_eq!(line(HealthEvent::AddHealthy(false)), format!("{head}{added}{time}{tail}}}\n"));
        let passed = ",\"successful_health_check_event\":{}";
        assert_eq!(line(HealthEvent::Successful), format!("{head}{time}{tail}{passed}}}\n"));
    }
}
