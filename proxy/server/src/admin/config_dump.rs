//! `/config_dump`: the configuration as it was given, section by section.
//!
//! Each section is one of Envoy's `*ConfigDump` messages, built as JSON from the kept bytes of its resources. Sensitive
//! fields are hidden. Masks are checked against the descriptors, then applied to the JSON.

use bytes::Bytes;
use nuncio_config::descriptors;
use prost_reflect::DynamicMessage;
use serde_json::{Map, Value};

use super::certs::timestamp;
use super::commands::Call;
use super::field_mask::FieldMask;
use super::query::regex_error;
use super::redact::redact;
use super::sources::{ConfigDump, ConfigEntry, UpdateFailure};
use super::{AdminResponse, PLAIN};

/// How an element of a repeated field holds its resource.
#[derive(Clone, Copy)]
enum Shape {
    /// `version_info`, the resource, `last_updated`.
    Plain,
    /// The resource alone.
    Bare,
    /// `name`, and the rest in `active_state`.
    Listener,
    /// `name`, `version_info`, `last_updated`, the resource.
    Secret,
    /// `name`, `version_info`, the parts, `last_updated`.
    List,
}

/// One repeated field of a section.
struct Field<'a> {
    name: &'static str,
    /// Message of the elements, within the section's.
    element: &'static str,
    /// The element's field with the resource.
    resource: &'static str,
    shape: Shape,
    entries: &'a [ConfigEntry],
}

/// One `*ConfigDump` message.
struct Section<'a> {
    message: &'static str,
    /// Only clusters and listeners have one.
    version_info: &'a str,
    fields: Vec<Field<'a>>,
}

fn field<'a>(
    name: &'static str,
    element: &'static str,
    resource: &'static str,
    entries: &'a [ConfigEntry],
) -> Field<'a> {
    let shape = match resource {
        "secret" => Shape::Secret,
        "scoped_route_configs" => Shape::List,
        _ if element == "DynamicListener" => Shape::Listener,
        _ if element == "StaticEndpointConfig" => Shape::Bare,
        _ => Shape::Plain,
    };
    Field { name, element, resource, shape, entries }
}

fn sections(dump: &ConfigDump) -> Vec<Section<'_>> {
    let section = |message, version_info, fields| Section { message, version_info, fields };
    let mut out = vec![section(
        "ClustersConfigDump",
        dump.clusters_version_info.as_str(),
        vec![
            field("static_clusters", "StaticCluster", "cluster", &dump.static_clusters),
            field("dynamic_active_clusters", "DynamicCluster", "cluster", &dump.dynamic_active_clusters),
            field("dynamic_warming_clusters", "DynamicCluster", "cluster", &dump.dynamic_warming_clusters),
        ],
    )];
    for filters in &dump.ecds_filters {
        let fields = vec![field("ecds_filters", "EcdsFilterConfig", "ecds_filter", filters)];
        out.push(section("EcdsConfigDump", "", fields));
    }
    if let Some(endpoints) = &dump.static_endpoint_configs {
        let dynamic = &dump.dynamic_endpoint_configs;
        out.push(section(
            "EndpointsConfigDump",
            "",
            vec![
                field("static_endpoint_configs", "StaticEndpointConfig", "endpoint_config", endpoints),
                field("dynamic_endpoint_configs", "DynamicEndpointConfig", "endpoint_config", dynamic),
            ],
        ));
    }
    out.push(section(
        "ListenersConfigDump",
        dump.listeners_version_info.as_str(),
        vec![
            field("static_listeners", "StaticListener", "listener", &dump.static_listeners),
            field("dynamic_listeners", "DynamicListener", "listener", &dump.dynamic_listeners),
        ],
    ));
    let (inline, dynamic) = (&dump.inline_scoped_route_configs, &dump.dynamic_scoped_route_configs);
    out.push(section(
        "ScopedRoutesConfigDump",
        "",
        vec![
            field("inline_scoped_route_configs", "InlineScopedRouteConfigs", "scoped_route_configs", inline),
            field("dynamic_scoped_route_configs", "DynamicScopedRouteConfigs", "scoped_route_configs", dynamic),
        ],
    ));
    out.push(section(
        "RoutesConfigDump",
        "",
        vec![
            field("static_route_configs", "StaticRouteConfig", "route_config", &dump.static_route_configs),
            field("dynamic_route_configs", "DynamicRouteConfig", "route_config", &dump.dynamic_route_configs),
        ],
    ));
    out.push(section(
        "SecretsConfigDump",
        "",
        vec![
            field("static_secrets", "StaticSecret", "secret", &dump.static_secrets),
            field("dynamic_active_secrets", "DynamicSecret", "secret", &dump.dynamic_active_secrets),
            field("dynamic_warming_secrets", "DynamicSecret", "secret", &dump.dynamic_warming_secrets),
        ],
    ));
    out
}

/// `/config_dump`.
pub(super) fn config_dump(call: &Call<'_>) -> AdminResponse {
    let query = &call.query;
    let names = match query.get("name_regex").filter(|pattern| !pattern.is_empty()) {
        None => None,
        Some(pattern) => match regex::Regex::new(&format!(r"\A(?:{pattern})\z")) {
            Ok(regex) => Some(regex),
            Err(_) => {
                let reason = regex::Regex::new(pattern).err().map(|error| regex_error(pattern, &error));
                let reason = reason.unwrap_or_else(|| format!("bad regex: {pattern}"));
                let text = format!("INVALID_ARGUMENT: Error while parsing name_regex from {pattern}: {reason}");
                return AdminResponse::new(400, PLAIN, text);
            }
        },
    };
    let mask = query.get("mask").map(|mask| (mask, FieldMask::parse(mask)));
    let dump = call.sources.config_dump(query.has("include_eds"));
    let configs = match query.get("resource").filter(|resource| !resource.is_empty()) {
        Some(resource) => resource_configs(&dump, resource, mask.as_ref().map(|(_, mask)| mask), names.as_ref()),
        None => all_configs(&dump, mask.as_ref(), names.as_ref()),
    };
    match configs {
        Err((status, text)) => AdminResponse::new(status, PLAIN, text),
        Ok(configs) => {
            let mut out = Map::new();
            if !configs.is_empty() {
                out.insert("configs".into(), configs.into());
            }
            AdminResponse::json(&Value::Object(out))
        }
    }
}

type Failure = (u16, String);

fn all_configs(
    dump: &ConfigDump,
    mask: Option<&(&str, FieldMask)>,
    names: Option<&regex::Regex>,
) -> Result<Vec<Value>, Failure> {
    let mut configs = Vec::new();
    let mut push = |message: &str, build: &dyn Fn() -> Map<String, Value>| {
        let fits = |mask: &FieldMask| descriptors::message(&full_name(message)).is_some_and(|known| mask.fits(&known));
        if mask.is_some_and(|(_, mask)| !fits(mask)) {
            return;
        }
        let mut value = Value::Object(build());
        if let Some((_, mask)) = mask {
            mask.trim(&mut value);
        }
        configs.push(typed(&full_name(message), value));
    };
    if let Some(bootstrap) = &dump.bootstrap {
        push("BootstrapConfigDump", &|| bootstrap_json(bootstrap));
    }
    for section in sections(dump) {
        push(section.message, &|| section_json(&section, names));
    }
    match mask {
        Some((text, _)) if configs.is_empty() => {
            Err((400, format!("FieldMask {text} could not be successfully applied to any configs.")))
        }
        _ => Ok(configs),
    }
}

fn resource_configs(
    dump: &ConfigDump,
    resource: &str,
    mask: Option<&FieldMask>,
    names: Option<&regex::Regex>,
) -> Result<Vec<Value>, Failure> {
    let sections = sections(dump);
    let messages = std::iter::once("BootstrapConfigDump").chain(sections.iter().map(|section| section.message));
    let known = |message: &str| descriptors::message(&full_name(message))?.get_field_by_name(resource);
    let Some(descriptor) = messages.into_iter().find_map(known) else {
        return Err((404, format!("{resource} not found in config dump")));
    };
    if !descriptor.is_list() {
        let text = format!("{resource} is not a repeated field. Use ?mask={resource} to get only this field");
        return Err((400, text));
    }
    let found = sections.iter().find_map(|section| {
        let field = section.fields.iter().find(|field| field.name == resource)?;
        Some((format!("{}.{}", full_name(section.message), field.element), field))
    });
    // Repeated fields that are never filled here have no table entry.
    let Some((message, field)) = found else { return Ok(Vec::new()) };
    let mut configs = Vec::new();
    for entry in wanted(field, names) {
        let mut value = Value::Object(element_json(field, entry, names));
        if let Some(mask) = mask {
            trim_element(&mut value, mask, &message, field, entry)?;
        }
        configs.push(typed(&message, value));
    }
    Ok(configs)
}

/// Applies a mask whose paths may go on inside the element's resource.
fn trim_element(
    value: &mut Value,
    mask: &FieldMask,
    message: &str,
    field: &Field<'_>,
    entry: &ConfigEntry,
) -> Result<(), Failure> {
    let failure = || {
        let paths: String = mask.paths.iter().map(|path| format!("paths: {path:?}\n")).collect();
        (400, format!("FieldMask {paths} could not be successfully used."))
    };
    let prefix = format!("{}.", field.resource);
    let (mut outer, mut inner) = (FieldMask::default(), FieldMask::default());
    for path in &mask.paths {
        match path.strip_prefix(&prefix) {
            Some(rest) => {
                inner.paths.push(rest.to_owned());
                outer.paths.push(field.resource.to_owned());
            }
            None => outer.paths.push(path.clone()),
        }
    }
    let fits = |mask: &FieldMask, message: &str| descriptors::message(message).is_some_and(|known| mask.fits(&known));
    if !fits(&outer, message) || !fits(&inner, &entry.message) {
        return Err(failure());
    }
    if !inner.paths.is_empty()
        && let Some(resource) = value.get_mut(field.resource)
    {
        let kind = resource.get("@type").cloned();
        inner.trim(resource);
        if let (Some(kind), Value::Object(fields)) = (kind, &mut *resource) {
            fields.shift_insert(0, "@type".into(), kind);
        }
    }
    outer.trim(value);
    Ok(())
}

fn full_name(message: &str) -> String {
    format!("envoy.admin.v3.{message}")
}

/// `value` as the contents of an `Any`.
fn typed(message: &str, value: Value) -> Value {
    let mut out = Map::new();
    out.insert("@type".into(), format!("type.googleapis.com/{message}").into());
    if let Value::Object(fields) = value {
        out.extend(fields);
    }
    Value::Object(out)
}

fn bootstrap_json(entry: &ConfigEntry) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("bootstrap".into(), message_json(entry));
    out.insert("last_updated".into(), timestamp(entry.last_updated).into());
    out
}

fn section_json(section: &Section<'_>, names: Option<&regex::Regex>) -> Map<String, Value> {
    let mut out = Map::new();
    if !section.version_info.is_empty() {
        out.insert("version_info".into(), section.version_info.into());
    }
    for field in &section.fields {
        let list: Vec<Value> =
            wanted(field, names).map(|entry| Value::Object(element_json(field, entry, names))).collect();
        if !list.is_empty() {
            out.insert(field.name.into(), list.into());
        }
    }
    out
}

/// Of lists each is shown, and of its parts those with the name.
fn wanted<'a>(field: &Field<'a>, names: Option<&regex::Regex>) -> impl Iterator<Item = &'a ConfigEntry> {
    let all = matches!(field.shape, Shape::List);
    field.entries.iter().filter(move |entry| all || names.is_none_or(|names| names.is_match(&entry.name)))
}

/// `UpdateFailureState`.
fn failure_json(message: &str, failure: &UpdateFailure) -> Value {
    let mut out = Map::new();
    out.insert("failed_configuration".into(), typed(message, bytes_json(message, &failure.bytes)));
    out.insert("last_update_attempt".into(), timestamp(failure.last_update_attempt).into());
    out.insert("details".into(), failure.details.as_str().into());
    if !failure.version_info.is_empty() {
        out.insert("version_info".into(), failure.version_info.as_str().into());
    }
    out.into()
}

fn element_json(field: &Field<'_>, entry: &ConfigEntry, names: Option<&regex::Regex>) -> Map<String, Value> {
    let error = entry.error.as_ref().map(|failure| failure_json(&entry.message, failure));
    let resource = typed(&entry.message, message_json(entry));
    let updated = Value::from(timestamp(entry.last_updated));
    // Envoy does not keep when these came.
    let updated = (!matches!(field.element, "StaticEndpointConfig" | "StaticSecret")).then_some(updated);
    let version = (!entry.version_info.is_empty()).then(|| Value::from(entry.version_info.as_str()));
    let fill = |pairs: Vec<(&str, Option<Value>)>| -> Map<String, Value> {
        pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    };
    let name = Some(Value::from(entry.name.as_str()));
    match field.shape {
        Shape::Plain => fill(vec![
            ("version_info", version),
            (field.resource, Some(resource)),
            ("last_updated", updated),
            ("error_state", error),
        ]),
        Shape::Bare => fill(vec![(field.resource, Some(resource))]),
        Shape::Listener => {
            let state = fill(vec![("version_info", version), ("listener", Some(resource)), ("last_updated", updated)]);
            let warming =
                entry.warming.as_ref().and_then(|warming| element_json(field, warming, names).remove("active_state"));
            let draining = entry
                .draining
                .as_ref()
                .and_then(|draining| element_json(field, draining, names).remove("active_state"));
            fill(vec![
                ("name", name),
                ("active_state", entry.active.then(|| state.into())),
                ("warming_state", warming),
                ("draining_state", draining),
                ("error_state", error),
            ])
        }
        Shape::List => {
            let parts = entry.parts.iter().filter(|part| names.is_none_or(|names| names.is_match(&part.name)));
            let parts: Vec<Value> = parts.map(|part| typed(&part.message, message_json(part))).collect();
            fill(vec![
                ("name", name),
                ("version_info", version),
                (field.resource, (!parts.is_empty()).then(|| parts.into())),
                ("last_updated", updated),
            ])
        }
        Shape::Secret => fill(vec![
            ("name", name),
            ("version_info", version),
            ("last_updated", updated),
            ("secret", Some(resource)),
            ("error_state", error),
        ]),
    }
}

fn message_json(entry: &ConfigEntry) -> Value {
    bytes_json(&entry.message, &entry.bytes)
}

fn bytes_json(message: &str, bytes: &Bytes) -> Value {
    let decoded =
        descriptors::message(message).and_then(|descriptor| DynamicMessage::decode(descriptor, bytes.clone()).ok());
    let shown = decoded.and_then(|mut message| {
        redact(&mut message);
        descriptors::dynamic_to_json(&message)
    });
    // A message that cannot be read cannot be redacted either.
    shown.unwrap_or_else(|| Value::Object(Map::new()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use prost::Message as _;
    use serde_json::json;

    use super::super::testing::{FakeSources, get, text_of};
    use super::*;

    fn entry(name: &str, message: &str, value: Value) -> ConfigEntry {
        let descriptor = descriptors::message(message).expect("a known message");
        let message_value = DynamicMessage::deserialize(descriptor, value).expect("a valid message");
        ConfigEntry {
            name: name.into(),
            version_info: String::new(),
            message: message.into(),
            bytes: message_value.encode_to_vec().into(),
            last_updated: SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_397_856_784),
            active: true,
            warming: None,
            draining: None,
            error: None,
            parts: Vec::new(),
        }
    }

    #[test]
    fn a_listener_is_shown_with_what_warms_and_what_was_refused() {
        let listener =
            |prefix: &str| entry("l", "envoy.config.listener.v3.Listener", json!({"name": "l", "stat_prefix": prefix}));
        let (active, mut warming) = (listener("a"), listener("w"));
        warming.version_info = "2".into();
        let refused = listener("r");
        let error = UpdateFailure {
            bytes: refused.bytes,
            last_update_attempt: SystemTime::UNIX_EPOCH,
            details: "why".into(),
            version_info: "3".into(),
        };
        let draining = Some(Box::new(listener("d")));
        let shown = ConfigEntry { warming: Some(Box::new(warming)), draining, error: Some(error), ..active };
        let only_failed = ConfigEntry { active: false, warming: None, draining: None, ..shown.clone() };
        let field = field("dynamic_listeners", "DynamicListener", "listener", &[]);
        let value = Value::Object(element_json(&field, &shown, None));
        assert_eq!(value["active_state"]["listener"]["stat_prefix"], "a");
        assert_eq!(value["warming_state"]["listener"]["stat_prefix"], "w");
        assert_eq!(value["warming_state"]["version_info"], "2");
        assert_eq!(value["error_state"]["failed_configuration"]["stat_prefix"], "r");
        assert_eq!(value["error_state"]["details"], "why");
        assert!(element_json(&field, &only_failed, None).get("active_state").is_none());
    }

    fn cluster(name: &str) -> ConfigEntry {
        entry(name, "envoy.config.cluster.v3.Cluster", json!({"name": name, "connect_timeout": "1s"}))
    }

    fn sources() -> FakeSources {
        let bootstrap =
            json!({"node": {"id": "n1", "cluster": "c1"}, "static_resources": {"clusters": [{"name": "a"}]}});
        let listener =
            json!({"name": "main", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}}});
        let mut dynamic = entry("dyn", "envoy.config.listener.v3.Listener", json!({"name": "dyn"}));
        dynamic.version_info = "7".into();
        let sources = FakeSources::default();
        *sources.dump.borrow_mut() = ConfigDump {
            bootstrap: Some(entry("", "envoy.config.bootstrap.v3.Bootstrap", bootstrap)),
            static_clusters: vec![cluster("a"), cluster("b")],
            listeners_version_info: "7".into(),
            static_listeners: vec![entry("main", "envoy.config.listener.v3.Listener", listener)],
            dynamic_listeners: vec![dynamic],
            ..ConfigDump::default()
        };
        sources
    }

    #[test]
    fn the_whole_dump_has_envoys_sections_and_form() {
        let response = get(&sources(), "/config_dump");
        assert_eq!((response.status, response.content_type), (200, super::super::JSON));
        assert_eq!(text_of(&response), include_str!("testdata/config_dump.json"));
    }

    #[test]
    fn one_resource_can_be_asked_for_and_masked() {
        let sources = sources();
        let element = |name: &str| {
            format!(
                "  {{\n   \"@type\": \"type.googleapis.com/envoy.admin.v3.ClustersConfigDump.StaticCluster\",\n   \
                 \"cluster\": {{\n    \"@type\": \"type.googleapis.com/envoy.config.cluster.v3.Cluster\",\n    \
                 \"name\": \"{name}\"\n   }}\n  }}"
            )
        };
        assert_eq!(
            text_of(&get(&sources, "/config_dump?resource=static_clusters&mask=cluster.name")),
            format!("{{\n \"configs\": [\n{},\n{}\n ]\n}}\n", element("a"), element("b"))
        );
        assert_eq!(
            text_of(&get(&sources, "/config_dump?resource=static_clusters&mask=cluster.name&name_regex=b")),
            format!("{{\n \"configs\": [\n{}\n ]\n}}\n", element("b"))
        );
        assert_eq!(text_of(&get(&sources, "/config_dump?resource=dynamic_active_clusters")), "{}\n");
        let updated = get(&sources, "/config_dump?resource=static_clusters&mask=last_updated&name_regex=a");
        assert!(text_of(&updated).contains("StaticCluster\",\n   \"last_updated\": \"2026-11-23T01:37:36.784Z\"\n  }"));
    }

    #[test]
    fn masks_choose_sections_and_fields() {
        let sources = sources();
        let expected = "{\n \"configs\": [\n  {\n   \
                        \"@type\": \"type.googleapis.com/envoy.admin.v3.BootstrapConfigDump\",\n   \
                        \"bootstrap\": {\n    \"node\": {\n     \"id\": \"n1\"\n    }\n   }\n  }\n ]\n}\n";
        assert_eq!(text_of(&get(&sources, "/config_dump?mask=bootstrap.node.id")), expected);
        let clusters = get(&sources, "/config_dump?mask=static_clusters");
        assert!(text_of(&clusters).contains("ClustersConfigDump") && !text_of(&clusters).contains("Bootstrap"));
    }

    #[test]
    fn what_does_not_exist_is_said_as_envoy_says_it() {
        let sources = sources();
        for (query, status, expected) in [
            ("resource=bogus", 404, "bogus not found in config dump"),
            ("resource=static_endpoint_configs", 404, "static_endpoint_configs not found in config dump"),
            (
                "resource=bootstrap&mask=node.id",
                400,
                "bootstrap is not a repeated field. Use ?mask=bootstrap to get only this field",
            ),
            ("mask=bogus", 400, "FieldMask bogus could not be successfully applied to any configs."),
            (
                "mask=static_clusters,bootstrap",
                400,
                "FieldMask static_clusters,bootstrap could not be successfully applied to any configs.",
            ),
            (
                "resource=static_clusters&mask=bogus",
                400,
                "FieldMask paths: \"bogus\"\n could not be successfully used.",
            ),
            ("name_regex=(", 400, "INVALID_ARGUMENT: Error while parsing name_regex from (: missing ): ("),
        ] {
            let response = get(&sources, &format!("/config_dump?{query}"));
            assert_eq!((response.status, text_of(&response)), (status, expected), "{query}");
            assert_eq!(response.content_type, "text/plain");
        }
    }

    #[test]
    fn names_are_matched_as_a_whole() {
        let sources = sources();
        sources.dump.borrow_mut().static_clusters.push(cluster("ab"));
        let shown = get(&sources, "/config_dump?resource=static_clusters&name_regex=a");
        assert_eq!(text_of(&shown).matches("\"cluster\"").count(), 1);
        let shown = get(&sources, "/config_dump?resource=static_clusters&name_regex=a.*");
        assert_eq!(text_of(&shown).matches("\"cluster\"").count(), 2);
    }

    #[test]
    fn endpoints_are_shown_if_asked_for() {
        let sources = sources();
        let assignment = json!({"cluster_name": "a"});
        sources.dump.borrow_mut().static_endpoint_configs =
            Some(vec![entry("a", "envoy.config.endpoint.v3.ClusterLoadAssignment", assignment)]);
        let shown = get(&sources, "/config_dump?include_eds&mask=static_endpoint_configs");
        assert!(text_of(&shown).contains("\"cluster_name\": \"a\""));
        assert_eq!(*sources.actions.borrow(), ["dump with eds: true"]);
    }
}
