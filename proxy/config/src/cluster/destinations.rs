//! Clusters whose hosts come with the requests: what says where they go.

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::extensions::load_balancing_policies::override_host::v3::override_host;
use envoy_types::pb::envoy::r#type::metadata::v3 as metadata;

use crate::decode::{Context, u32_value};
use serde_json::{Map, Value};
use std::time::Duration;

/// `original_dst_lb_config` and `cleanup_interval`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginalDstConfig {
    /// The request header that may name the address; None for none.
    pub header: Option<Box<str>>,
    /// Port instead of that of the address.
    pub port: Option<u16>,
    /// Dynamic metadata that may name the address.
    pub metadata_key: Option<MetadataKey>,
    /// How often unused hosts are looked for; default 5 s.
    pub cleanup_interval: Duration,
}

impl Default for OriginalDstConfig {
    fn default() -> Self {
        OriginalDstConfig { header: None, port: None, metadata_key: None, cleanup_interval: Duration::from_secs(5) }
    }
}

/// `MetadataKey`: a value below a namespace of metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataKey {
    /// Namespace.
    pub key: Box<str>,
    /// Steps from there to the value.
    pub path: Box<[MetadataStep]>,
}

/// `OverrideHostSource`: where a request names hosts, as addresses separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OverrideSource {
    /// The first value of this header.
    Header(Box<str>),
    /// Text in the dynamic metadata.
    Metadata(MetadataKey),
}

impl OverrideSource {
    pub(super) fn decode(cx: &mut Context, message: &override_host::OverrideHostSource) -> Option<Self> {
        match (&*message.header, &message.metadata) {
            ("", None) => cx.error("Empty override source"),
            ("", Some(key)) => return Some(OverrideSource::Metadata(MetadataKey::decode(key))),
            (name, None) => return Some(OverrideSource::Header(name.into())),
            (_, Some(_)) => cx.error("Only one override source must be set"),
        }
        None
    }
}

/// `MetadataKey.PathSegment`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataStep {
    /// Into an object.
    Key(Box<str>),
    /// Into a list.
    Index(usize),
}

impl MetadataKey {
    /// The value in `metadata`, by namespace.
    pub fn find<'a>(&self, metadata: &'a Map<String, Value>) -> Option<&'a Value> {
        self.path.iter().try_fold(metadata.get(&*self.key)?, |value, step| match step {
            MetadataStep::Key(key) => value.get(&**key),
            MetadataStep::Index(index) => value.get(index),
        })
    }

    pub(crate) fn decode(message: &metadata::MetadataKey) -> Self {
        use metadata::metadata_key::path_segment::Segment;
        let segment = |segment: &metadata::metadata_key::PathSegment| match &segment.segment {
            Some(Segment::Key(key)) => Some(MetadataStep::Key(key.as_str().into())),
            Some(Segment::Index(index)) => Some(MetadataStep::Index(*index as usize)),
            None => None,
        };
        MetadataKey { key: message.key.as_str().into(), path: message.path.iter().filter_map(segment).collect() }
    }
}

impl OriginalDstConfig {
    pub(super) fn of_cluster(cx: &mut Context, message: &pb::Cluster) -> Self {
        let default = OriginalDstConfig::default();
        let cleanup_interval = cx.duration("cleanup_interval", &message.cleanup_interval);
        let cleanup_interval = cleanup_interval.unwrap_or(default.cleanup_interval);
        let Some(pb::cluster::LbConfig::OriginalDstLbConfig(config)) = &message.lb_config else {
            return OriginalDstConfig { cleanup_interval, ..default };
        };
        let name = config.http_header_name.as_str();
        if !config.use_http_header && !name.is_empty() {
            cx.error_at(
                "original_dst_lb_config",
                format!(
                    "ORIGINAL_DST cluster: invalid config http_header_name={name} and use_http_header is false. Set use_http_header to true if http_header_name is desired."
                ),
            );
        }
        let header = if name.is_empty() { "x-envoy-original-dst-host" } else { name };
        OriginalDstConfig {
            header: config.use_http_header.then(|| header.into()),
            port: u32_value(&config.upstream_port_override).and_then(|port| u16::try_from(port).ok()),
            metadata_key: config.metadata_key.as_ref().map(MetadataKey::decode),
            cleanup_interval,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;

    fn decode(
        config: pb::cluster::OriginalDstLbConfig,
    ) -> Result<OriginalDstConfig, Vec<crate::diagnostics::ConfigError>> {
        let lb_config = Some(pb::cluster::LbConfig::OriginalDstLbConfig(config));
        let message = pb::Cluster { lb_config, ..Default::default() };
        Context::default().run(|cx| Some(OriginalDstConfig::of_cluster(cx, &message)))
    }

    #[test]
    fn a_header_has_to_be_asked_for() {
        let config = |use_http_header, name: &str| pb::cluster::OriginalDstLbConfig {
            use_http_header,
            http_header_name: name.into(),
            ..Default::default()
        };
        assert_eq!(decode(config(true, "")).unwrap().header.as_deref(), Some("x-envoy-original-dst-host"));
        assert_eq!(decode(config(true, "x-to")).unwrap().header.as_deref(), Some("x-to"));
        assert_eq!(decode(config(false, "")).unwrap().header, None);
        assert_eq!(
            errors(decode(config(false, "x-to"))),
            [
                "original_dst_lb_config: ORIGINAL_DST cluster: invalid config http_header_name=x-to and use_http_header is false. Set use_http_header to true if http_header_name is desired."
            ]
        );
    }

    #[test]
    fn a_metadata_key_finds_what_is_below_a_namespace() {
        let key = MetadataKey { key: "a".into(), path: [MetadataStep::Key("b".into()), MetadataStep::Index(1)].into() };
        let metadata = serde_json::json!({"a": {"b": ["w", "x"]}});
        assert_eq!(key.find(metadata.as_object().unwrap()), Some(&Value::from("x")));
        assert_eq!(key.find(&Map::new()), None);
    }
}
