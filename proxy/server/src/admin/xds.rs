//! `/xds`: every source, type and resource that is fetched, with its versions, times and errors. Envoy has no such page.

use std::fmt::Write as _;
use std::time::SystemTime;

use serde_json::{Map, Value, json};
use xds_client::status::{ResourceState, SourceState, TypeState};

use super::AdminResponse;
use super::certs::timestamp;
use super::commands::Call;

/// `/xds`, as text or JSON.
pub(super) fn xds(call: &Call<'_>) -> AdminResponse {
    let sources = call.sources.discovery();
    let now = SystemTime::now();
    if call.query.get("format") == Some("json") {
        let all: Vec<Value> = sources.iter().map(|source| source_json(source, now)).collect();
        return AdminResponse::json(&json!({ "sources": all }));
    }
    let mut out = String::new();
    if sources.is_empty() {
        out.push_str("nothing is fetched\n");
    }
    for source in &sources {
        source_text(&mut out, source, now);
    }
    AdminResponse::text(200, out)
}

/// Seconds since `at`, with one decimal.
fn age(at: Option<SystemTime>, now: SystemTime) -> Option<f64> {
    let seconds = now.duration_since(at?).unwrap_or_default().as_secs_f64();
    Some((seconds * 10.0).round() / 10.0)
}

fn source_json(source: &SourceState, now: SystemTime) -> Value {
    let mut out = Map::new();
    out.insert("kind".into(), source.kind.into());
    out.insert("name".into(), source.name.as_str().into());
    out.insert("delta".into(), source.delta.into());
    out.insert("connected".into(), source.connected.into());
    text_field(&mut out, "control_plane", &source.control_plane);
    text_field(&mut out, "last_failure", &source.last_failure);
    out.insert("types".into(), source.types.iter().map(|kind| type_json(kind, now)).collect());
    out.into()
}

fn type_json(kind: &TypeState, now: SystemTime) -> Value {
    let mut out = Map::new();
    out.insert("type_url".into(), kind.type_url.as_str().into());
    text_field(&mut out, "version", &kind.version);
    text_field(&mut out, "nonce", &kind.nonce);
    text_field(&mut out, "error", kind.error.trim_end());
    time_field(&mut out, "requested", kind.requested);
    time_field(&mut out, "received", kind.received);
    time_field(&mut out, "accepted", kind.accepted);
    time_field(&mut out, "rejected", kind.rejected);
    out.insert("subscriptions".into(), kind.subscriptions.into());
    out.insert("paused".into(), kind.paused.into());
    out.insert("resources".into(), kind.resources.iter().map(|resource| resource_json(resource, now)).collect());
    out.into()
}

fn resource_json(resource: &ResourceState, now: SystemTime) -> Value {
    let mut out = Map::new();
    out.insert("name".into(), resource.name.as_str().into());
    out.insert("status".into(), resource.status.name().into());
    text_field(&mut out, "version", &resource.version);
    time_field(&mut out, "requested", resource.requested);
    time_field(&mut out, "received", resource.received);
    time_field(&mut out, "accepted", resource.accepted);
    time_field(&mut out, "rejected", resource.rejected);
    text_field(&mut out, "rejected_version", &resource.rejected_version);
    text_field(&mut out, "error", &resource.error);
    if let Some(age) = age(resource.accepted, now) {
        out.insert("age_seconds".into(), age.into());
    }
    out.into()
}

fn text_field(out: &mut Map<String, Value>, name: &str, value: &str) {
    if !value.is_empty() {
        out.insert(name.into(), value.into());
    }
}

fn time_field(out: &mut Map<String, Value>, name: &str, at: Option<SystemTime>) {
    if let Some(at) = at {
        out.insert(name.into(), timestamp(at).into());
    }
}

fn source_text(out: &mut String, source: &SourceState, now: SystemTime) {
    let mode = if source.delta { " delta" } else { "" };
    let state = if source.connected { "connected" } else { "not connected" };
    let _ = write!(out, "{}{mode} {}: {state}", source.kind, source.name);
    if !source.control_plane.is_empty() {
        let _ = write!(out, " to {}", source.control_plane);
    }
    if !source.last_failure.is_empty() {
        let _ = write!(out, ", last failure: {}", source.last_failure);
    }
    out.push('\n');
    for kind in &source.types {
        let _ = write!(out, "  {} version '{}'", kind.type_url.message(), kind.version);
        times_text(out, now, [("asked", kind.requested), ("received", kind.received), ("accepted", kind.accepted)]);
        if kind.paused {
            out.push_str(", paused");
        }
        if !kind.error.is_empty() {
            refusal_text(out, now, kind.rejected, "", kind.error.trim_end());
        }
        out.push('\n');
        for resource in &kind.resources {
            let _ = write!(out, "    {} {} '{}'", resource.name, resource.status.name(), resource.version);
            let times =
                [("asked", resource.requested), ("received", resource.received), ("accepted", resource.accepted)];
            times_text(out, now, times);
            if !resource.error.is_empty() {
                let version = format!("version '{}' ", resource.rejected_version);
                refusal_text(out, now, resource.rejected, &version, resource.error.trim_end());
            }
            out.push('\n');
        }
    }
}

fn times_text(out: &mut String, now: SystemTime, times: [(&str, Option<SystemTime>); 3]) {
    for (what, at) in times {
        if let Some(age) = age(at, now) {
            let _ = write!(out, ", {what} {age} s ago");
        }
    }
}

fn refusal_text(out: &mut String, now: SystemTime, at: Option<SystemTime>, version: &str, why: &str) {
    let _ = write!(out, ", {version}refused");
    if let Some(age) = age(at, now) {
        let _ = write!(out, " {age} s ago");
    }
    let _ = write!(out, ": {why}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use xds_client::TypeUrl;
    use xds_client::status::ResourceStatus;

    fn source(now: SystemTime) -> SourceState {
        let resource = ResourceState {
            name: "a".into(),
            status: ResourceStatus::Nacked,
            version: "1".into(),
            requested: None,
            received: Some(now - Duration::from_secs(2)),
            accepted: Some(now - Duration::from_secs(10)),
            rejected: Some(now - Duration::from_secs(2)),
            error: "bad".into(),
            rejected_version: "2".into(),
        };
        let kind = TypeState {
            type_url: TypeUrl::CLUSTER,
            version: "1".into(),
            nonce: "n".into(),
            error: "bad\n".into(),
            requested: Some(now - Duration::from_secs(12)),
            received: Some(now - Duration::from_secs(2)),
            accepted: None,
            rejected: Some(now - Duration::from_secs(2)),
            subscriptions: 1,
            paused: false,
            resources: vec![resource],
        };
        SourceState {
            kind: "ads",
            name: "xds".into(),
            delta: true,
            connected: true,
            control_plane: "cp".into(),
            last_failure: String::new(),
            types: vec![kind],
        }
    }

    #[test]
    fn the_text_says_what_was_refused_and_why() {
        let now = SystemTime::now();
        let mut out = String::new();
        source_text(&mut out, &source(now), now);
        assert_eq!(
            out,
            "ads delta xds: connected to cp\n  envoy.config.cluster.v3.Cluster version '1', asked 12 s ago, received 2 s ago, \
             refused 2 s ago: bad\n    a NACKED '1', received 2 s ago, accepted 10 s ago, version '2' refused 2 s ago: bad\n"
        );
    }

    #[test]
    fn the_json_has_the_same_facts() {
        let now = SystemTime::now();
        let value = source_json(&source(now), now);
        let resource = &value["types"][0]["resources"][0];
        assert_eq!((resource["status"].as_str(), resource["rejected_version"].as_str()), (Some("NACKED"), Some("2")));
        assert_eq!(resource["age_seconds"], 10.0);
        assert!(resource.get("requested").is_none());
    }
}
