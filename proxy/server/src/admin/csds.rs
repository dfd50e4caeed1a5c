//! Client status discovery (`envoy.service.status.v3.ClientStatusDiscoveryService`): what is fetched and where it stands,
//! as messages for programs. `admin_listener` serves it as gRPC; the table of commands has its REST form.
//!
//! The contents are those of `/config_dump`, what is sensitive hidden; what is written in the bootstrap is marked static.

use std::collections::HashMap;
use std::time::SystemTime;

use envoy_types::pb::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::{ClientConfig, ClientStatusRequest, ClientStatusResponse};
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::google::protobuf::{Any, Timestamp};
use nuncio_config::decode::Context;
use nuncio_config::descriptors;
use nuncio_config::matchers::StringMatcher;
use nuncio_config::route::MetadataMatcher;
use nuncio_http::matchers::{metadata_matches, string_matches};
use prost::Message as _;
use prost_reflect::DynamicMessage;
use xds_client::status::{ResourceState, ResourceStatus};

use super::commands::Call;
use super::redact::redact;
use super::sources::{ConfigDump, ConfigEntry, UpdateFailure};
use super::{AdminResponse, AdminSources, JSON};

/// The unary method.
pub(crate) const FETCH: &str = "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus";
/// The streaming method: an answer to each request.
pub(crate) const STREAM: &str = "/envoy.service.status.v3.ClientStatusDiscoveryService/StreamClientStatus";

const REQUEST: &str = "envoy.service.status.v3.ClientStatusRequest";
const RESPONSE: &str = "envoy.service.status.v3.ClientStatusResponse";

/// `POST /v3/discovery:client_status`, with a request in JSON or without a body.
pub(super) fn rest(call: &Call<'_>) -> AdminResponse {
    let request = match parse(&call.request.body) {
        Ok(request) => request,
        Err(error) => return AdminResponse::text(400, format!("not a {REQUEST}: {error}\n")),
    };
    match client_status(&request, call.sources) {
        Ok(response) => {
            let mut text = descriptors::to_json(RESPONSE, &response.encode_to_vec()).to_string();
            text.push('\n');
            AdminResponse::new(200, JSON, text)
        }
        Err(error) => AdminResponse::text(400, format!("{error}\n")),
    }
}

fn parse(body: &[u8]) -> Result<ClientStatusRequest, String> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(ClientStatusRequest::default());
    }
    let descriptor = descriptors::message(REQUEST).ok_or("unknown type")?;
    let mut json = serde_json::Deserializer::from_slice(body);
    let message = DynamicMessage::deserialize(descriptor, &mut json).map_err(|error| error.to_string())?;
    json.end().map_err(|error| error.to_string())?;
    ClientStatusRequest::decode(message.encode_to_vec().as_slice()).map_err(|error| error.to_string())
}

/// Answers a request. One client at most is in the answer: this process, if the request's matchers fit it.
///
/// # Errors
/// A matcher of the request that cannot be.
pub(crate) fn client_status(
    request: &ClientStatusRequest,
    sources: &dyn AdminSources,
) -> Result<ClientStatusResponse, String> {
    let bytes = sources.server_info().node;
    let node = Node::decode(bytes.clone()).unwrap_or_default();
    // Several matchers mean any of them.
    let mut chosen = request.node_matchers.is_empty();
    for matcher in &request.node_matchers {
        chosen |= node_matches(matcher, &node, &bytes)?;
    }
    if !chosen {
        return Ok(ClientStatusResponse::default());
    }
    let dump = sources.config_dump(true);
    let contents = !request.exclude_resource_contents;
    let mut configs = statics(&dump, contents);
    configs.extend(fetched(&dump, sources, contents));
    let config = ClientConfig { node: Some(node), generic_xds_configs: configs, ..Default::default() };
    Ok(ClientStatusResponse { config: vec![config] })
}

fn node_matches(wanted: &matcher::NodeMatcher, node: &Node, bytes: &[u8]) -> Result<bool, String> {
    let mut cx = Context::default();
    let fail =
        |errors: Vec<nuncio_config::ConfigError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if let Some(id) = &wanted.node_id {
        let id = cx.run(|cx| StringMatcher::decode(cx, id)).map_err(fail)?;
        if !string_matches(&id, node.id.as_bytes()) {
            return Ok(false);
        }
    }
    if wanted.node_metadatas.is_empty() {
        return Ok(true);
    }
    let shown = descriptors::to_json("envoy.config.core.v3.Node", bytes);
    let metadata =
        serde_json::Map::from_iter([("node".to_owned(), shown.get("metadata").cloned().unwrap_or_default())]);
    for wanted in &wanted.node_metadatas {
        // The same matcher on a map with one more level.
        let segment = |key: &str| matcher::metadata_matcher::PathSegment {
            segment: Some(matcher::metadata_matcher::path_segment::Segment::Key(key.to_owned())),
        };
        let keys = wanted.path.iter().filter_map(|step| {
            step.segment.as_ref().map(|matcher::struct_matcher::path_segment::Segment::Key(key)| segment(key))
        });
        let same = matcher::MetadataMatcher {
            filter: "node".to_owned(),
            path: keys.collect(),
            value: wanted.value.clone(),
            invert: false,
        };
        let decoded = cx.run(|cx| MetadataMatcher::decode(cx, &same)).map_err(fail)?;
        if !metadata_matches(&decoded, Some(&metadata)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What is written in the bootstrap.
fn statics(dump: &ConfigDump, contents: bool) -> Vec<GenericXdsConfig> {
    let lists = [&dump.static_clusters, &dump.static_listeners, &dump.static_route_configs, &dump.static_secrets];
    let entries = lists.into_iter().flatten().chain(dump.static_endpoint_configs.iter().flatten());
    let config = |entry: &ConfigEntry| GenericXdsConfig {
        type_url: descriptors::type_url(&entry.message),
        name: entry.name.clone(),
        xds_config: contents.then(|| any(&entry.message, &entry.bytes)),
        last_updated: Some(timestamp(entry.last_updated)),
        client_status: ClientResourceStatus::Acked.into(),
        is_static_resource: true,
        ..Default::default()
    };
    entries.map(config).collect()
}

/// What was asked for, with the contents of what is in use.
fn fetched(dump: &ConfigDump, sources: &dyn AdminSources, contents: bool) -> Vec<GenericXdsConfig> {
    let services: HashMap<String, String> = sources
        .clusters()
        .into_iter()
        .filter(|cluster| !cluster.eds_service_name.is_empty())
        .map(|cluster| (cluster.name, cluster.eds_service_name))
        .collect();
    let mut known: HashMap<(&str, &str), &ConfigEntry> = HashMap::new();
    let lists = [
        &dump.dynamic_warming_clusters,
        &dump.dynamic_active_clusters,
        &dump.dynamic_listeners,
        &dump.dynamic_route_configs,
        &dump.dynamic_active_secrets,
    ];
    for entry in lists.into_iter().flatten().chain(dump.ecds_filters.iter().flatten()) {
        known.insert((&entry.message, &entry.name), entry);
    }
    for entry in &dump.dynamic_endpoint_configs {
        let name = services.get(&entry.name).unwrap_or(&entry.name);
        known.insert((&entry.message, name), entry);
    }
    let all = sources.discovery();
    let types = all.iter().flat_map(|source| &source.types);
    let resources = types.flat_map(|kind| kind.resources.iter().map(move |resource| (kind, resource)));
    let config = |message: &str, type_url: &str, resource: &ResourceState| {
        let entry = known.get(&(message, resource.name.as_str())).copied();
        GenericXdsConfig {
            type_url: type_url.to_owned(),
            name: resource.name.clone(),
            version_info: resource.version.clone(),
            xds_config: entry.filter(|entry| contents && entry.active).map(|entry| any(&entry.message, &entry.bytes)),
            last_updated: resource.accepted.map(timestamp),
            client_status: status(resource.status).into(),
            error_state: error_state(resource, entry, contents),
            ..Default::default()
        }
    };
    resources.map(|(kind, resource)| config(kind.type_url.message(), kind.type_url.as_str(), resource)).collect()
}

fn error_state(resource: &ResourceState, entry: Option<&ConfigEntry>, contents: bool) -> Option<UpdateFailureState> {
    if resource.status != ResourceStatus::Nacked {
        return None;
    }
    let refused: Option<(&ConfigEntry, &UpdateFailure)> = entry.and_then(|entry| Some((entry, entry.error.as_ref()?)));
    Some(UpdateFailureState {
        failed_configuration: refused.filter(|_| contents).map(|(entry, failure)| any(&entry.message, &failure.bytes)),
        last_update_attempt: resource.rejected.map(timestamp),
        details: resource.error.clone(),
        version_info: resource.rejected_version.clone(),
    })
}

fn status(status: ResourceStatus) -> ClientResourceStatus {
    match status {
        ResourceStatus::Requested => ClientResourceStatus::Requested,
        ResourceStatus::DoesNotExist => ClientResourceStatus::DoesNotExist,
        ResourceStatus::Acked => ClientResourceStatus::Acked,
        ResourceStatus::Nacked => ClientResourceStatus::Nacked,
        ResourceStatus::Timeout => ClientResourceStatus::Timeout,
    }
}

/// The message, with what is sensitive hidden; empty where it cannot be read, and so cannot be searched for secrets.
fn any(message: &str, bytes: &bytes::Bytes) -> Any {
    let decoded =
        descriptors::message(message).and_then(|descriptor| DynamicMessage::decode(descriptor, bytes.clone()).ok());
    let value = decoded.map(|mut message| {
        redact(&mut message);
        message.encode_to_vec()
    });
    Any { type_url: descriptors::type_url(message), value: value.unwrap_or_default() }
}

fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds, nanos: since.subsec_nanos().cast_signed() }
}
