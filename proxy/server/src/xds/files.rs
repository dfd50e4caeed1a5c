//! Files of resources, and the JSON of polls: texts to messages by the descriptors of the configuration.

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use nuncio_config::descriptors;
use nuncio_config::ingest::{self, Syntax};
use prost::Message as _;
use std::path::Path;
use xds_client::JsonCodec;

const RESPONSE: &str = "envoy.service.discovery.v3.DiscoveryResponse";
const REQUEST: &str = "envoy.service.discovery.v3.DiscoveryRequest";

/// Reads a file that holds a `DiscoveryResponse`: by its name JSON, binary, or else YAML.
pub(crate) fn parse(path: &Path, content: &[u8]) -> Result<DiscoveryResponse, String> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if extension == "pb" {
        return DiscoveryResponse::decode(content).map_err(|error| error.to_string());
    }
    let text = std::str::from_utf8(content).map_err(|error| error.to_string())?;
    let syntax = if extension == "json" { Syntax::Json } else { Syntax::Yaml };
    read(text, syntax)
}

fn read(text: &str, syntax: Syntax) -> Result<DiscoveryResponse, String> {
    let descriptor = descriptors::message(RESPONSE).ok_or("DiscoveryResponse is not known")?;
    let parsed = ingest::parse(&descriptor, text, syntax, 0, false);
    if !parsed.errors.is_empty() {
        return Err(super::text(&parsed.errors));
    }
    DiscoveryResponse::decode(Bytes::from(parsed.bytes)).map_err(|error| error.to_string())
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
        read(text, Syntax::Json)
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
    fn a_poll_is_posted_with_original_field_names() {
        let request = DiscoveryRequest { version_info: "7".into(), type_url: "t".into(), ..Default::default() };
        let text = String::from_utf8(Json.encode(&request).unwrap()).unwrap();
        assert!(text.contains("\"version_info\":\"7\"") && text.contains("\"type_url\":\"t\""), "{text}");
    }
}
