//! From the command line to a decoded bootstrap: files, overrides, and one report of everything that is wrong.

use crate::options::Options;
use bytes::Bytes;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap as Message;
use envoy_types::pb::envoy::config::core::v3::{BuildVersion, node::UserAgentVersionType};
use envoy_types::pb::envoy::config::metrics::v3::{TagSpecifier, tag_specifier::TagValue};
use envoy_types::pb::envoy::r#type::v3::SemanticVersion;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use nuncio_config::bootstrap::BootstrapConfig;
use nuncio_config::decode::Context;
use nuncio_config::diagnostics::{ConfigError, Report};
use nuncio_config::ingest::{self, Loaded, Source, SourceMap};
use nuncio_config::paths::FieldPath;
use prost::Message as _;

/// A bootstrap ready to be built.
pub struct Bootstrap {
    /// What the proxy runs on.
    pub config: BootstrapConfig,
    /// The message with the flags' overrides, encoded: what the admin interface shows.
    pub bytes: Bytes,
    /// The node, encoded.
    pub node: Bytes,
    /// Lines for the start: fields without effect, unknown fields, warnings.
    pub notices: Vec<String>,
    /// Positions for errors that are found while building; dropped once the server is built.
    source_map: Option<SourceMap>,
}

impl Bootstrap {
    /// A report of errors found while building.
    pub fn report(&self, errors: Vec<ConfigError>) -> Report {
        match &self.source_map {
            Some(map) => map.report(errors),
            None => Report::new(errors, Vec::new()),
        }
    }

    /// Frees what only errors need.
    pub fn release(&mut self) {
        self.source_map = None;
    }
}

/// Loads and decodes the bootstrap that the options name.
///
/// # Errors
/// A report with everything that is wrong.
pub fn load(options: &Options) -> Result<Bootstrap, Report> {
    if options.config_path.is_none() && options.config_yaml.as_deref().is_none_or(str::is_empty) {
        return Err(Report::general(
            "At least one of --config-path or --config-yaml or Options::configProto() should be non-empty. \
             Give a bootstrap with -c FILE, or try `nuncio demo`",
        ));
    }
    let loaded = ingest::load(&Source {
        path: options.config_path.as_deref(),
        overlay_yaml: options.config_yaml.as_deref().filter(|t| !t.is_empty()),
        allow_unknown: options.allow_unknown_static_fields || options.allow_unknown_fields,
    })?;
    let notices = notices(&loaded, options);
    let Loaded { mut bootstrap, source_map, .. } = loaded;
    apply_flags(&mut bootstrap, options);
    let mut context = Context::new(FieldPath::root());
    match BootstrapConfig::decode(&bootstrap, &mut context) {
        Ok(config) => Ok(Bootstrap {
            config,
            bytes: bootstrap.encode_to_vec().into(),
            node: bootstrap.node.as_ref().map(|n| n.encode_to_vec()).unwrap_or_default().into(),
            notices,
            source_map: Some(source_map),
        }),
        Err(errors) => Err(source_map.report(errors)),
    }
}

/// Flags override the node of the file and add tags. The node says what kind of proxy it is, as Envoy's does: control
/// planes choose by it.
fn apply_flags(bootstrap: &mut Message, options: &Options) {
    let node = bootstrap.node.get_or_insert_default();
    node.user_agent_name = "envoy".into();
    node.user_agent_version_type = Some(UserAgentVersionType::UserAgentBuildVersion(user_agent_build_version()));
    if options.service_node.is_some() || options.service_cluster.is_some() || options.service_zone.is_some() {
        let node = bootstrap.node.get_or_insert_default();
        if let Some(id) = &options.service_node {
            node.id.clone_from(id);
        }
        if let Some(cluster) = &options.service_cluster {
            node.cluster.clone_from(cluster);
        }
        if let Some(zone) = &options.service_zone {
            node.locality.get_or_insert_default().zone.clone_from(zone);
        }
    }
    for (name, value) in options.stats_tag.iter().filter_map(|tag| tag.split_once(':')) {
        bootstrap
            .stats_config
            .get_or_insert_default()
            .stats_tags
            .push(TagSpecifier { tag_name: name.to_owned(), tag_value: Some(TagValue::FixedValue(value.to_owned())) });
    }
}

/// The version of Envoy that is spoken, and what the binary is made of.
fn user_agent_build_version() -> BuildVersion {
    let mut numbers = crate::options::ENVOY_VERSION.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let fields = [
        ("revision.sha", crate::options::REVISION),
        ("revision.status", crate::options::REVISION_STATUS),
        ("build.type", "RELEASE"),
        ("ssl.version", crate::options::TLS_LIBRARY),
    ];
    BuildVersion {
        version: Some(SemanticVersion { major_number: next(), minor_number: next(), patch: next() }),
        metadata: Some(Struct { fields: fields.map(|(name, value)| (name.to_owned(), text(value))).into() }),
    }
}

/// Notices about fields that are set and have no effect, one line each, and other warnings.
fn notices(loaded: &Loaded, options: &Options) -> Vec<String> {
    let mut out = Vec::new();
    for field in &loaded.ignored {
        out.push(format!("{} has no effect: {}", field.path, field.reason));
    }
    for field in &loaded.unknown {
        out.push(format!("{}: unknown field, passed over", field.path));
    }
    for warning in &loaded.warnings {
        out.push(format!("{}: {}", warning.path, warning.message));
    }
    if !options.skip_deprecated_logs {
        for field in &loaded.deprecated {
            out.push(format!("{} is deprecated", field));
        }
    }
    out
}
