//! Files of resources, and the JSON of polls: texts to messages by the descriptors of the configuration.

use bytes::Bytes;
use envoy_types::pb::envoy::config::listener::v3::ListenerCollection;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource};
use envoy_types::pb::xds::core::v3::collection_entry::ResourceSpecifier;
use nuncio_config::descriptors;
use nuncio_config::ingest::{self, Syntax};
use prost::Message as _;
use std::path::Path;
use xds_client::JsonCodec;

const RESPONSE: &str = "envoy.service.discovery.v3.DiscoveryResponse";
const RESOURCE: &str = "envoy.service.discovery.v3.Resource";
const REQUEST: &str = "envoy.service.discovery.v3.DiscoveryRequest";

/// Reads a file that holds a `DiscoveryResponse`: by its name JSON, binary, or else YAML.
pub(crate) fn parse(path: &Path, content: &[u8]) -> Result<DiscoveryResponse, String> {
    parse_as(RESPONSE, path, content)
}

/// Reads a file that holds a `Resource` with a collection, whose entries are in place.
pub(crate) fn parse_collection(path: &Path, content: &[u8]) -> Result<DiscoveryResponse, String> {
    let resource: Resource = parse_as(RESOURCE, path, content)?;
    let any = resource.resource.unwrap_or_default();
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    let descriptor = descriptors::message(name).ok_or_else(|| format!("Unknown collection type {name}"))?;
    let entries = descriptor.get_field(1).filter(|field| field.is_list());
    let kind = entries.and_then(|field| field.kind().as_message().map(|message| message.full_name().to_owned()));
    if kind.as_deref() != Some("xds.core.v3.CollectionEntry") {
        return Err(format!("Invalid structure for collection type {name}"));
    }
    // All collections that pass have this form.
    let collection = ListenerCollection::decode(any.value.as_slice()).map_err(|error| error.to_string())?;
    let entries = collection.entries.into_iter().filter_map(|entry| match entry.resource_specifier {
        Some(ResourceSpecifier::InlineEntry(entry)) => entry.resource,
        // As in Envoy, what is only pointed to is left out.
        _ => None,
    });
    Ok(DiscoveryResponse { version_info: resource.version, resources: entries.collect(), ..Default::default() })
}

/// Reads a message by the name of its file: JSON, binary, or else YAML.
fn parse_as<M: prost::Message + Default>(message: &str, path: &Path, content: &[u8]) -> Result<M, String> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if extension == "pb" {
        return M::decode(content).map_err(|error| error.to_string());
    }
    let text = std::str::from_utf8(content).map_err(|error| error.to_string())?;
    read(message, text, if extension == "json" { Syntax::Json } else { Syntax::Yaml })
}

fn read<M: prost::Message + Default>(message: &str, text: &str, syntax: Syntax) -> Result<M, String> {
    let descriptor = descriptors::message(message).ok_or_else(|| format!("{message} is not known"))?;
    let parsed = ingest::parse(&descriptor, text, syntax, 0, false);
    if !parsed.errors.is_empty() {
        return Err(super::text(&parsed.errors));
    }
    M::decode(Bytes::from(parsed.bytes)).map_err(|error| error.to_string())
}

/// proto3 JSON with the original field names, as Envoy posts it.
pub(crate) struct Json;

impl JsonCodec for Json {
    fn encode(&self, request: &DiscoveryRequest) -> Result<Vec<u8>, String> {
        let json = descriptors::to_json(REQUEST, &request.encode_to_vec());
        serde_json::to_vec(&json).map_err(|error| error.to_string())
    }

    fn decode(&self, json: &[u8]) -> Result<DiscoveryResponse, String> {
        let text = std::str::from_utf8(json).map_err(|error| error.to_string())?;
        read(RESPONSE, text, Syntax::Json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_and_json_files_hold_the_same() {
        let yaml = "version_info: \"1\"\nresources:\n- \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: a\n";
        let json = r#"{"version_info": "1", "resources": [{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "a"}]}"#;
        let from_yaml = parse(Path::new("x.yaml"), yaml.as_bytes()).unwrap();
        assert_eq!(from_yaml, parse(Path::new("x.json"), json.as_bytes()).unwrap());
        assert_eq!(from_yaml, parse(Path::new("x.pb"), &from_yaml.encode_to_vec()).unwrap());
        assert_eq!((from_yaml.version_info.as_str(), from_yaml.resources.len()), ("1", 1));
        assert!(parse(Path::new("x.yaml"), b"resources: 7\nfoo: 1\n").unwrap_err().contains("foo"));
    }

    #[test]
    fn the_entries_of_a_collection_are_its_resources() {
        let yaml = "version: '7'\nresource:\n  \"@type\": type.googleapis.com/envoy.config.listener.v3.ListenerCollection\n  \
                    entries:\n  - inline_entry: {name: x, resource: {\"@type\": \
                    type.googleapis.com/envoy.config.listener.v3.Listener, name: a}}\n  - locator: {}\n";
        let response = parse_collection(Path::new("c.yaml"), yaml.as_bytes()).unwrap();
        assert_eq!((response.version_info.as_str(), response.resources.len()), ("7", 1));
        // That of clusters has room for one entry only, with which Envoy does nothing.
        for other in ["cluster.v3.Cluster", "cluster.v3.ClusterCollection"] {
            let text = format!("resource: {{'@type': type.googleapis.com/envoy.config.{other}}}");
            let error = parse_collection(Path::new("c.yaml"), text.as_bytes()).unwrap_err();
            assert_eq!(error, format!("Invalid structure for collection type envoy.config.{other}"));
        }
    }

    #[test]
    fn a_poll_is_posted_with_original_field_names() {
        let request = DiscoveryRequest { version_info: "7".into(), type_url: "t".into(), ..Default::default() };
        let text = String::from_utf8(Json.encode(&request).unwrap()).unwrap();
        assert!(text.contains("\"version_info\":\"7\"") && text.contains("\"type_url\":\"t\""), "{text}");
    }
}
