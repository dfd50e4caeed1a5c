//! `/clusters`.

use std::fmt::Write as _;

use nuncio_base::stats::output::general;
use serde_json::{Map, Value, json};

use super::AdminResponse;
use super::commands::Call;
use super::listeners::address_json;
use super::sources::{CircuitBreakerStatus, ClusterStatus, EdsHealth, HealthFlags, HostStatus};

/// `/clusters`, as text or JSON.
pub(super) fn clusters(call: &Call<'_>) -> AdminResponse {
    let filter = match call.query.get("filter").map(regex::Regex::new) {
        None => None,
        Some(Ok(regex)) => Some(regex),
        Some(Err(_)) => return AdminResponse::text(400, "Invalid re2 regex"),
    };
    let mut clusters = call.sources.clusters();
    clusters.retain(|cluster| filter.as_ref().is_none_or(|filter| filter.is_match(&cluster.name)));
    if call.query.get("format") == Some("json") {
        let mut out = Map::new();
        if !clusters.is_empty() {
            out.insert("cluster_statuses".into(), clusters.iter().map(cluster_json).collect());
        }
        return AdminResponse::json(&Value::Object(out));
    }
    let mut out = String::new();
    for cluster in &clusters {
        write_cluster(&mut out, cluster);
    }
    AdminResponse::text(200, out)
}

fn write_cluster(out: &mut String, cluster: &ClusterStatus) {
    let name = &cluster.name;
    let _ = writeln!(out, "{name}::observability_name::{}", cluster.observability_name);
    if let Some(outlier) = &cluster.outlier {
        for (stat, value) in [
            ("success_rate_average", outlier.success_rate_average),
            ("success_rate_ejection_threshold", outlier.success_rate_ejection_threshold),
            ("local_origin_success_rate_average", outlier.local_origin_success_rate_average),
            ("local_origin_success_rate_ejection_threshold", outlier.local_origin_success_rate_ejection_threshold),
        ] {
            let _ = writeln!(out, "{name}::outlier::{stat}::{}", general(value, 6));
        }
    }
    for (priority, limits) in [("default", &cluster.default_priority), ("high", &cluster.high_priority)] {
        let _ = writeln!(out, "{name}::{priority}_priority::max_connections::{}", limits.max_connections);
        let _ = writeln!(out, "{name}::{priority}_priority::max_pending_requests::{}", limits.max_pending_requests);
        let _ = writeln!(out, "{name}::{priority}_priority::max_requests::{}", limits.max_requests);
        let _ = writeln!(out, "{name}::{priority}_priority::max_retries::{}", limits.max_retries);
    }
    let _ = writeln!(out, "{name}::added_via_api::{}", cluster.added_via_api);
    if !cluster.eds_service_name.is_empty() {
        let _ = writeln!(out, "{name}::eds_service_name::{}", cluster.eds_service_name);
    }
    for host in &cluster.hosts {
        write_host(out, &format!("{name}::{}", host.address), host);
    }
}

fn write_host(out: &mut String, prefix: &str, host: &HostStatus) {
    for (name, value) in [
        ("cx_active", host.cx_active),
        ("cx_connect_fail", host.cx_connect_fail),
        ("cx_total", host.cx_total),
        ("rq_active", host.rq_active),
        ("rq_error", host.rq_error),
        ("rq_pending_active", host.rq_pending_active),
        ("rq_success", host.rq_success),
        ("rq_timeout", host.rq_timeout),
        ("rq_total", host.rq_total),
    ] {
        let _ = writeln!(out, "{prefix}::{name}::{value}");
    }
    let _ = writeln!(out, "{prefix}::hostname::{}", host.hostname);
    let _ = writeln!(out, "{prefix}::health_flags::{}", health_text(&host.health_flags));
    let _ = writeln!(out, "{prefix}::weight::{}", host.weight);
    let _ = writeln!(out, "{prefix}::region::{}", host.region);
    let _ = writeln!(out, "{prefix}::zone::{}", host.zone);
    let _ = writeln!(out, "{prefix}::sub_zone::{}", host.sub_zone);
    let _ = writeln!(out, "{prefix}::canary::{}", host.canary);
    let _ = writeln!(out, "{prefix}::priority::{}", host.priority);
    let _ = writeln!(out, "{prefix}::success_rate::{}", host.success_rate);
    let _ = writeln!(out, "{prefix}::local_origin_success_rate::{}", host.local_origin_success_rate);
}

fn health_text(flags: &HealthFlags) -> String {
    let list = [
        (flags.failed_active_hc, "/failed_active_hc"),
        (flags.failed_outlier_check, "/failed_outlier_check"),
        (flags.eds == EdsHealth::Unhealthy, "/failed_eds_health"),
        (flags.degraded_active_hc, "/degraded_active_hc"),
        (flags.eds == EdsHealth::Degraded, "/degraded_eds_health"),
        (flags.pending_dynamic_removal, "/pending_dynamic_removal"),
        (flags.pending_active_hc, "/pending_active_hc"),
        (flags.excluded_via_immediate_hc_fail, "/excluded_via_immediate_hc_fail"),
        (flags.active_hc_timeout, "/active_hc_timeout"),
        (flags.eds == EdsHealth::Draining, "/eds_status_draining"),
        (flags.degraded_outlier_detection, "/degraded_outlier_detection"),
    ];
    let text: String = list.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
    if text.is_empty() { "healthy".to_owned() } else { text }
}

/// `envoy.admin.v3.ClusterStatus`.
fn cluster_json(cluster: &ClusterStatus) -> Value {
    let mut out = Map::new();
    out.insert("name".into(), cluster.name.clone().into());
    if cluster.added_via_api {
        out.insert("added_via_api".into(), true.into());
    }
    let outlier = cluster.outlier.unwrap_or_default();
    if outlier.success_rate_ejection_threshold > 0.0 {
        out.insert("success_rate_ejection_threshold".into(), percent(outlier.success_rate_ejection_threshold));
    }
    if !cluster.hosts.is_empty() {
        out.insert("host_statuses".into(), cluster.hosts.iter().map(host_json).collect());
    }
    if outlier.local_origin_success_rate_ejection_threshold > 0.0 {
        let value = percent(outlier.local_origin_success_rate_ejection_threshold);
        out.insert("local_origin_success_rate_ejection_threshold".into(), value);
    }
    let thresholds = [limits_json(None, &cluster.default_priority), limits_json(Some("HIGH"), &cluster.high_priority)];
    out.insert("circuit_breakers".into(), json!({ "thresholds": thresholds }));
    out.insert("observability_name".into(), cluster.observability_name.clone().into());
    if !cluster.eds_service_name.is_empty() {
        out.insert("eds_service_name".into(), cluster.eds_service_name.clone().into());
    }
    Value::Object(out)
}

fn limits_json(priority: Option<&str>, limits: &CircuitBreakerStatus) -> Value {
    let mut out = Map::new();
    if let Some(priority) = priority {
        out.insert("priority".into(), priority.into());
    }
    out.insert("max_connections".into(), limits.max_connections.into());
    out.insert("max_pending_requests".into(), limits.max_pending_requests.into());
    out.insert("max_requests".into(), limits.max_requests.into());
    out.insert("max_retries".into(), limits.max_retries.into());
    Value::Object(out)
}

/// `envoy.admin.v3.HostStatus`.
fn host_json(host: &HostStatus) -> Value {
    let mut out = Map::new();
    out.insert("address".into(), address_json(&host.address));
    let counters = [
        ("cx_connect_fail", host.cx_connect_fail),
        ("cx_total", host.cx_total),
        ("rq_error", host.rq_error),
        ("rq_success", host.rq_success),
        ("rq_timeout", host.rq_timeout),
        ("rq_total", host.rq_total),
    ];
    let gauges =
        [("cx_active", host.cx_active), ("rq_active", host.rq_active), ("rq_pending_active", host.rq_pending_active)];
    let counters = counters.into_iter().map(|(name, value)| metric(None, name, value));
    let gauges = gauges.into_iter().map(|(name, value)| metric(Some("GAUGE"), name, value));
    out.insert("stats".into(), counters.chain(gauges).collect());
    out.insert("health_status".into(), health_json(&host.health_flags));
    if host.success_rate >= 0.0 {
        out.insert("success_rate".into(), percent(host.success_rate));
    }
    if host.weight != 0 {
        out.insert("weight".into(), host.weight.into());
    }
    if !host.hostname.is_empty() {
        out.insert("hostname".into(), host.hostname.clone().into());
    }
    if host.priority != 0 {
        out.insert("priority".into(), host.priority.into());
    }
    if host.local_origin_success_rate >= 0.0 {
        out.insert("local_origin_success_rate".into(), percent(host.local_origin_success_rate));
    }
    let mut locality = Map::new();
    for (name, value) in [("region", &host.region), ("zone", &host.zone), ("sub_zone", &host.sub_zone)] {
        if !value.is_empty() {
            locality.insert(name.into(), value.clone().into());
        }
    }
    out.insert("locality".into(), locality.into());
    Value::Object(out)
}

fn metric(kind: Option<&str>, name: &str, value: u64) -> Value {
    let mut out = Map::new();
    if let Some(kind) = kind {
        out.insert("type".into(), kind.into());
    }
    if value != 0 {
        out.insert("value".into(), value.to_string().into());
    }
    out.insert("name".into(), name.into());
    Value::Object(out)
}

fn health_json(flags: &HealthFlags) -> Value {
    let mut out = Map::new();
    let mut set = |name: &str, on: bool| {
        if on {
            out.insert(name.into(), true.into());
        }
    };
    set("failed_active_health_check", flags.failed_active_hc);
    set("failed_outlier_check", flags.failed_outlier_check);
    let eds = match flags.eds {
        EdsHealth::Healthy => "HEALTHY",
        EdsHealth::Unhealthy => "UNHEALTHY",
        EdsHealth::Draining => "DRAINING",
        EdsHealth::Degraded => "DEGRADED",
    };
    out.insert("eds_health_status".into(), eds.into());
    let mut set = |name: &str, on: bool| {
        if on {
            out.insert(name.into(), true.into());
        }
    };
    set("failed_active_degraded_check", flags.degraded_active_hc);
    set("pending_dynamic_removal", flags.pending_dynamic_removal);
    set("pending_active_hc", flags.pending_active_hc);
    set("excluded_via_immediate_hc_fail", flags.excluded_via_immediate_hc_fail);
    set("active_hc_timeout", flags.active_hc_timeout);
    set("failed_degraded_outlier_detection", flags.degraded_outlier_detection);
    Value::Object(out)
}

/// `envoy.type.v3.Percent`.
fn percent(value: f64) -> Value {
    if value == 0.0 { json!({}) } else { json!({ "value": value }) }
}

#[cfg(test)]
mod tests {
    use super::super::sources::{AddressStatus, OutlierStatus};
    use super::super::testing::{FakeSources, get, text_of};
    use super::*;

    fn sources() -> FakeSources {
        let mut first = HostStatus::new(AddressStatus::Socket(([127, 0, 0, 1], 19199).into()));
        first.hostname = "h1".into();
        first.health_flags.failed_active_hc = true;
        first.weight = 3;
        (first.region, first.zone, first.sub_zone) = ("r1".into(), "z1".into(), "s1".into());
        first.canary = true;
        let mut second = HostStatus::new(AddressStatus::Pipe("/run/x.sock".into()));
        second.health_flags =
            HealthFlags { failed_active_hc: true, eds: EdsHealth::Draining, ..HealthFlags::default() };
        second.priority = 1;
        let foo = ClusterStatus {
            name: "foo".into(),
            observability_name: "foo".into(),
            outlier: Some(OutlierStatus::default()),
            high_priority: CircuitBreakerStatus { max_connections: 7, ..CircuitBreakerStatus::default() },
            hosts: vec![first, second],
            ..ClusterStatus::default()
        };
        let mut host = HostStatus::new(AddressStatus::Socket(([127, 0, 0, 1], 19199).into()));
        (host.cx_total, host.rq_active, host.success_rate) = (5, 2, 99.5);
        let bar = ClusterStatus {
            name: "bar".into(),
            observability_name: "baralt".into(),
            hosts: vec![host],
            ..ClusterStatus::default()
        };
        let sources = FakeSources::default();
        *sources.clusters.borrow_mut() = vec![foo, bar];
        sources
    }

    #[test]
    fn clusters_are_shown_as_envoy_shows_them() {
        let sources = sources();
        let expected = include_str!("testdata/clusters.txt");
        assert_eq!(get(&sources, "/clusters"), AdminResponse::text(200, expected));
        let bar: String =
            expected.lines().filter(|line| line.starts_with("bar::")).map(|line| format!("{line}\n")).collect();
        assert_eq!(text_of(&get(&sources, "/clusters?filter=ba")), bar);
        assert_eq!(get(&sources, "/clusters?filter=("), AdminResponse::text(400, "Invalid re2 regex"));
    }

    #[test]
    fn clusters_in_json_are_envoys_message() {
        let sources = sources();
        let response = get(&sources, "/clusters?format=json");
        assert_eq!(response.content_type, super::super::JSON);
        assert_eq!(text_of(&response), include_str!("testdata/clusters.json"));
        assert_eq!(text_of(&get(&sources, "/clusters?format=json&filter=zz")), "{}\n");
    }

    #[test]
    fn all_health_flags_have_a_name() {
        let flags = HealthFlags {
            failed_active_hc: true,
            failed_outlier_check: true,
            eds: EdsHealth::Unhealthy,
            degraded_active_hc: true,
            pending_dynamic_removal: true,
            pending_active_hc: true,
            excluded_via_immediate_hc_fail: true,
            active_hc_timeout: true,
            degraded_outlier_detection: true,
        };
        let expected = "/failed_active_hc/failed_outlier_check/failed_eds_health/degraded_active_hc\
                        /pending_dynamic_removal/pending_active_hc/excluded_via_immediate_hc_fail/active_hc_timeout\
                        /degraded_outlier_detection";
        assert_eq!(health_text(&flags), expected);
        assert_eq!(health_text(&HealthFlags::default()), "healthy");
    }
}
