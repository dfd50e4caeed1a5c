//! `Bootstrap` decoded: secrets first, then the names of clusters, then all that refers to them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::bootstrap::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::metrics::v3 as metrics;
use envoy_types::pb::google::protobuf::{Struct, Value as PbValue, value::Kind};
use rustc_hash::FxHashSet;

use super::{
    AdminConfig, BootstrapConfig, LogFormatChoice, NodeConfig, RuntimeLayer, RuntimeLayerKind, StatsConfig,
    StatsMatcher, TagKind, TagSpecifier,
};
use crate::access_log::{AccessLogConfig, AccessLogSink, LogFormat, LogFormatKind};
use crate::address::Address;
use crate::cluster::{BindConfig, ClusterConfig, DnsDefaults, Locality};
use crate::config_source::{ApiConfigSource, ConfigSource, DynamicResources};
use crate::decode::{Context, StaticSecret, bool_value, json, serialized, sorted, u64_value};
use crate::diagnostics::ConfigError;
use crate::listener::{ListenerConfig, SocketOption};
use crate::matchers::StringMatcher;
use crate::overload;

impl BootstrapConfig {
    /// Decodes a bootstrap that has passed the constraints; every error is reported. Afterwards `cx` knows the static
    /// secrets and the names of the clusters.
    pub fn decode(message: &pb::Bootstrap, cx: &mut Context) -> Result<Self, Vec<ConfigError>> {
        cx.run(|cx| Self::from_message(cx, message))
    }

    pub(crate) fn from_message(cx: &mut Context, message: &pb::Bootstrap) -> Option<Self> {
        let empty = pb::bootstrap::StaticResources::default();
        let resources = message.static_resources.as_ref().unwrap_or(&empty);
        let node = NodeConfig::decode(message.node.as_ref(), cx);
        cx.at("static_resources", |cx| secrets(cx, resources));
        cx.default_dns = DnsDefaults::decode(cx, message);
        cx.set_clusters(resources.clusters.iter().map(|cluster| cluster.name.as_str().into()));
        let manager = message.cluster_manager.as_ref();
        let local_cluster_name: Option<Box<str>> =
            manager.map(|manager| manager.local_cluster_name.as_str()).filter(|name| !name.is_empty()).map(Into::into);
        if let Some(name) = local_cluster_name.as_deref().filter(|name| cx.is_unknown_cluster(name)) {
            let text = format!("local cluster '{name}' must be defined");
            cx.at("cluster_manager", |cx| cx.at("local_cluster_name", |cx| cx.unknown_cluster(text, name)));
        }
        let (clusters, listeners) = cx.at("static_resources", |cx| (clusters(cx, resources), listeners(cx, resources)));
        let stats_flush_on_admin =
            matches!(message.stats_flush, Some(pb::bootstrap::StatsFlush::StatsFlushOnAdmin(true)));
        if stats_flush_on_admin && message.stats_flush_interval.is_some() {
            cx.error("Only one of stats_flush_interval or stats_flush_on_admin should be set!");
        }
        Some(BootstrapConfig {
            node,
            dns: cx.default_dns.clone(),
            admin: cx.optional("admin", &message.admin, AdminConfig::decode),
            listeners,
            clusters,
            stats: cx
                .optional("stats_config", &message.stats_config, StatsConfig::decode)
                .unwrap_or_else(|| StatsConfig { use_all_default_tags: true, ..StatsConfig::default() }),
            stats_sinks: cx.each("stats_sinks", &message.stats_sinks, |cx, sink| {
                let any = sink.config_type.as_ref().map(|metrics::stats_sink::ConfigType::TypedConfig(any)| any);
                Some(cx.typed_config(&sink.name, any))
            }),
            stats_flush_interval: cx
                .duration("stats_flush_interval", &message.stats_flush_interval)
                .unwrap_or(Duration::from_secs(5)),
            stats_flush_on_admin,
            stats_server_version: u64_value(&message.stats_server_version_override),
            flags_path: Some(message.flags_path.as_str()).filter(|path| !path.is_empty()).map(Into::into),
            runtime: cx.optional("layered_runtime", &message.layered_runtime, runtime_layers).unwrap_or_default(),
            overload_manager: cx.optional("overload_manager", &message.overload_manager, |cx, manager| {
                overload::check(cx, manager);
                Some(serialized(manager))
            }),
            dynamic: DynamicResources::of_bootstrap(cx, message),
            upstream_bind: manager
                .and_then(|manager| {
                    cx.at("cluster_manager", |cx| {
                        cx.optional("upstream_bind_config", &manager.upstream_bind_config, |cx, bind| {
                            BindConfig::decode(cx, bind, "Bootstrap")
                        })
                    })
                })
                .unwrap_or_default(),
            load_stats: manager.and_then(|manager| {
                let source = manager.load_stats_config.as_ref();
                if source.is_some_and(|source| source.grpc_services.is_empty() && source.cluster_names.is_empty()) {
                    // Envoy's validation accepts it, and its server skips what would report.
                    tracing::warn!(
                        "cluster_manager.load_stats_config names no gRPC service: loads are not reported; add grpc_services"
                    );
                    return None;
                }
                cx.at("cluster_manager", |cx| {
                    cx.optional("load_stats_config", &manager.load_stats_config, ApiConfigSource::decode)
                })
            }),
            local_cluster_name,
            outlier_event_log_path: manager
                .and_then(|manager| manager.outlier_detection.as_ref())
                .map(|detection| detection.event_log_path.as_str())
                .filter(|path| !path.is_empty())
                .map(Into::into),
            header_prefix: match message.header_prefix.as_str() {
                "" => "x-envoy",
                prefix => prefix,
            }
            .into(),
            bootstrap_extensions: cx.each("bootstrap_extensions", &message.bootstrap_extensions, |cx, extension| {
                Some(cx.extension(extension))
            }),
            application_log_format: log_format(cx, message),
            default_socket_options: Vec::new(),
            message: if cx.encoded.is_empty() { serialized(message) } else { cx.encoded.clone() },
        })
    }
}

fn secrets(cx: &mut Context, resources: &pb::bootstrap::StaticResources) {
    cx.each("secrets", &resources.secrets, |cx, message| {
        let secret = StaticSecret::decode(cx, message)?;
        let kind = secret.kind();
        if !cx.add_secret(&message.name, secret) {
            cx.error_at("name", format!("Duplicate static {kind} secret name {}", message.name));
        }
        Some(())
    });
}

fn clusters(cx: &mut Context, resources: &pb::bootstrap::StaticResources) -> Vec<Arc<ClusterConfig>> {
    let mut seen = FxHashSet::default();
    cx.each("clusters", &resources.clusters, |cx, message| {
        if !seen.insert(message.name.as_str()) {
            cx.error_at("name", format!("cluster manager: duplicate cluster '{}'", message.name));
        }
        ClusterConfig::from_message(cx, message).map(Arc::new)
    })
}

fn listeners(cx: &mut Context, resources: &pb::bootstrap::StaticResources) -> Vec<Arc<ListenerConfig>> {
    let mut names = FxHashSet::default();
    // An address in another network namespace is another address.
    let mut bound: FxHashSet<(Address, Box<str>)> = FxHashSet::default();
    cx.each("listeners", &resources.listeners, |cx, message| {
        // Envoy lets the later one take the place of the earlier, whose traffic is then lost without a word.
        if !message.name.is_empty() && !names.insert(message.name.as_str()) {
            cx.error_at("name", format!("duplicate listener {} found", message.name));
        }
        let listener = ListenerConfig::from_message(cx, message)?;
        let namespaces = network_namespaces(message);
        let mut own = Vec::new();
        for (index, address) in listener.addresses.iter().enumerate().filter(|_| listener.bind_to_port) {
            if matches!(&address.address, Address::Socket(socket) if socket.addr.port() == 0) {
                continue;
            }
            let namespace = namespaces.get(index).copied().unwrap_or_default();
            let key = (address.address.clone(), namespace.into());
            if bound.contains(&key) {
                cx.error_at(
                    "address",
                    format!(
                        "error adding listener: '{}' has duplicate address '{address}' as existing listener, to check if the listener has duplicated addresses with other listeners or 'enable_reuse_port' is set to 'false' for the listener",
                        message.name
                    ),
                );
            }
            own.push(key);
        }
        bound.extend(own);
        Some(Arc::new(listener))
    })
}

/// `network_namespace_filepath` of the listener's addresses, in their order.
fn network_namespaces(message: &listener::Listener) -> Vec<&str> {
    let additional = message.additional_addresses.iter().map(|additional| additional.address.as_ref());
    std::iter::once(message.address.as_ref())
        .chain(additional)
        .map(|address| match address.and_then(|address| address.address.as_ref()) {
            Some(core::address::Address::SocketAddress(socket)) => socket.network_namespace_filepath.as_str(),
            _ => "",
        })
        .collect()
}

impl NodeConfig {
    /// The node; what the context knows from flags goes before what the file says.
    fn decode(message: Option<&core::Node>, cx: &Context) -> Self {
        let choose = |flag: &str, file: &str| -> Box<str> { if flag.is_empty() { file } else { flag }.into() };
        let empty = core::Node::default();
        let message = message.unwrap_or(&empty);
        NodeConfig {
            id: choose(&cx.node_id, &message.id),
            cluster: choose(&cx.node_cluster, &message.cluster),
            locality: message.locality.as_ref().map_or_else(Locality::default, Locality::decode),
            message: serialized(message),
        }
    }
}

impl AdminConfig {
    /// None without an address: then there is no admin interface.
    fn decode(cx: &mut Context, message: &pb::Admin) -> Option<Self> {
        let mut access_logs = cx.each("access_log", &message.access_log, AccessLogConfig::decode);
        if !message.access_log_path.is_empty() {
            let format = cx.at("access_log_path", |cx| LogFormat::simple(cx, LogFormatKind::Default));
            let sink = AccessLogSink::File { path: message.access_log_path.as_str().into(), format };
            access_logs.push(AccessLogConfig { name: "envoy.access_loggers.file".into(), filter: None, sink });
        }
        let address = cx.optional("address", &message.address, Address::decode);
        Some(AdminConfig {
            access_logs,
            socket_options: cx.each("socket_options", &message.socket_options, SocketOption::decode),
            ignore_global_conn_limit: message.ignore_global_conn_limit,
            profile_path: message.profile_path.as_str().into(),
            allow_paths: cx.each("allow_paths", &message.allow_paths, StringMatcher::decode),
            address: address?,
        })
    }
}

impl StatsConfig {
    fn decode(cx: &mut Context, message: &metrics::StatsConfig) -> Option<Self> {
        let matcher = match message.stats_matcher.as_ref() {
            Some(matcher) => cx.at("stats_matcher", |cx| StatsMatcher::decode(cx, matcher)),
            None => StatsMatcher::All,
        };
        Some(StatsConfig {
            tags: cx.each("stats_tags", &message.stats_tags, TagSpecifier::decode),
            use_all_default_tags: bool_value(&message.use_all_default_tags).unwrap_or(true),
            allow_default_tag_overrides: bool_value(&message.allow_default_tag_overrides).unwrap_or(false),
            matcher,
            histogram_buckets: cx.each("histogram_bucket_settings", &message.histogram_bucket_settings, |cx, m| {
                let matcher = cx.required("match", &m.r#match, StringMatcher::decode)?;
                let mut buckets = m.buckets.clone();
                buckets.sort_by(f64::total_cmp);
                Some((matcher, buckets))
            }),
            fixed_tags: Vec::new(),
        })
    }
}

impl StatsMatcher {
    /// Whether a stat of this name exists.
    pub fn includes(&self, name: &str) -> bool {
        let any = |list: &[StringMatcher]| list.iter().any(|matcher| matcher.matches(name.as_bytes()));
        match self {
            StatsMatcher::All => true,
            StatsMatcher::None => false,
            StatsMatcher::Inclusion(list) => any(list),
            StatsMatcher::Exclusion(list) => !any(list),
        }
    }

    /// Decodes the message at the current path; errors are reported to `cx`.
    pub(crate) fn decode(cx: &mut Context, message: &metrics::StatsMatcher) -> Self {
        use metrics::stats_matcher::StatsMatcher as Kind;
        match &message.stats_matcher {
            Some(Kind::RejectAll(true)) => StatsMatcher::None,
            Some(Kind::RejectAll(false)) | None => StatsMatcher::All,
            Some(Kind::InclusionList(list)) => StatsMatcher::Inclusion(
                cx.at("inclusion_list", |cx| cx.each("patterns", &list.patterns, StringMatcher::decode)),
            ),
            Some(Kind::ExclusionList(list)) => StatsMatcher::Exclusion(
                cx.at("exclusion_list", |cx| cx.each("patterns", &list.patterns, StringMatcher::decode)),
            ),
        }
    }
}

impl TagSpecifier {
    fn decode(cx: &mut Context, message: &metrics::TagSpecifier) -> Option<Self> {
        use metrics::tag_specifier::TagValue;
        let kind = match &message.tag_value {
            Some(TagValue::Regex(regex)) if !regex.is_empty() => TagKind::Regex(regex.as_str().into()),
            Some(TagValue::FixedValue(value)) => TagKind::Fixed(value.as_str().into()),
            _ if message.tag_name.starts_with("envoy.") => TagKind::Default,
            _ => {
                cx.error(format!(
                    "No regex specified for tag specifier and no default regex for name: '{}'",
                    message.tag_name
                ));
                return None;
            }
        };
        Some(TagSpecifier { name: message.tag_name.as_str().into(), kind })
    }
}

fn runtime_layers(cx: &mut Context, message: &pb::LayeredRuntime) -> Option<Vec<RuntimeLayer>> {
    use pb::runtime_layer::LayerSpecifier;
    let mut names = FxHashSet::default();
    let mut admin = false;
    Some(cx.each("layers", &message.layers, |cx, layer| {
        if !names.insert(layer.name.as_str()) {
            cx.error_at("name", format!("Duplicate layer name: {}", layer.name));
        }
        let kind = match &layer.layer_specifier {
            Some(LayerSpecifier::StaticLayer(values)) => {
                let mut entries = Vec::new();
                cx.at("static_layer", |cx| flatten(cx, "", values, &mut entries));
                RuntimeLayerKind::Static(entries)
            }
            Some(LayerSpecifier::DiskLayer(disk)) => RuntimeLayerKind::Disk {
                symlink_root: disk.symlink_root.as_str().into(),
                subdirectory: disk.subdirectory.as_str().into(),
                append_service_cluster: disk.append_service_cluster,
            },
            Some(LayerSpecifier::AdminLayer(_)) => {
                if std::mem::replace(&mut admin, true) {
                    cx.error("Too many admin layers specified in LayeredRuntime, at most one may be specified");
                }
                RuntimeLayerKind::Admin
            }
            Some(LayerSpecifier::RtdsLayer(rtds)) => {
                // Read now for its errors, and again when it is fetched from.
                cx.at("rtds_layer", |cx| cx.required("rtds_config", &rtds.rtds_config, ConfigSource::decode));
                RuntimeLayerKind::Rtds {
                    resource: rtds.name.as_str().into(),
                    source: rtds.rtds_config.as_ref().map(serialized).unwrap_or_default(),
                }
            }
            None => {
                cx.error(
                    "Field 'layer_specifier' is missing: one of static_layer, disk_layer, admin_layer, rtds_layer",
                );
                return None;
            }
        };
        Some(RuntimeLayer { name: layer.name.as_str().into(), kind })
    }))
}

/// The keys and values of a layer that was fetched.
///
/// # Errors
/// Values that are none.
pub fn runtime_values(
    cx: &mut Context,
    layer: Option<&Struct>,
) -> Result<Vec<(Box<str>, serde_json::Value)>, Vec<ConfigError>> {
    cx.run(|cx| {
        let mut entries = Vec::new();
        if let Some(values) = layer {
            cx.at("layer", |cx| flatten(cx, "", values, &mut entries));
        }
        Some(entries)
    })
}

/// Nested objects become keys joined by dots; an object that is a fraction stays one value.
fn flatten(cx: &mut Context, prefix: &str, values: &Struct, out: &mut Vec<(Box<str>, serde_json::Value)>) {
    for (name, value) in sorted(&values.fields) {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match &value.kind {
            Some(Kind::StructValue(inner)) if !is_fraction(&inner.fields) => flatten(cx, &key, inner, out),
            Some(Kind::ListValue(_) | Kind::NullValue(_)) | None => {
                cx.error(format!("Invalid runtime entry value for {key}"));
            }
            _ => out.push((key.into(), json::from_value(value))),
        }
    }
}

fn is_fraction(fields: &HashMap<String, PbValue>) -> bool {
    fields.contains_key("numerator") && fields.keys().all(|key| key == "numerator" || key == "denominator")
}

fn log_format(cx: &mut Context, message: &pb::Bootstrap) -> Option<LogFormatChoice> {
    use pb::bootstrap::application_log_config::log_format::LogFormat;
    match message.application_log_config.as_ref()?.log_format.as_ref()?.log_format.as_ref()? {
        LogFormat::TextFormat(text) => Some(LogFormatChoice::Text(text.as_str().into())),
        LogFormat::JsonFormat(format) => {
            let format = json::from_struct(format);
            let text = format.to_string();
            if let Some(flag) = ["%v", "%_"].into_iter().find(|flag| text.contains(flag)) {
                let text = format!(
                    "setJsonLogFormat error: INVALID_ARGUMENT: Usage of {flag} is unavailable for JSON log formats"
                );
                cx.at("application_log_config", |cx| cx.error_at("log_format", text));
                return None;
            }
            Some(LogFormatChoice::Json(format))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use envoy_types::pb::envoy::config::core::v3 as pbcore;
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
    use envoy_types::pb::google::protobuf as google;

    fn decode(message: &pb::Bootstrap) -> Result<BootstrapConfig, Vec<ConfigError>> {
        BootstrapConfig::decode(message, &mut Context::default())
    }

    fn with(static_resources: pb::bootstrap::StaticResources) -> pb::Bootstrap {
        pb::Bootstrap { static_resources: Some(static_resources), ..Default::default() }
    }

    fn address(port: u32) -> Option<pbcore::Address> {
        let address = pbcore::SocketAddress {
            address: "127.0.0.1".into(),
            port_specifier: Some(pbcore::socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        };
        Some(pbcore::Address { address: Some(pbcore::address::Address::SocketAddress(address)) })
    }

    fn listen(name: &str, port: u32) -> listener::Listener {
        listener::Listener {
            name: name.into(),
            address: address(port),
            filter_chains: vec![Default::default()],
            ..Default::default()
        }
    }

    #[test]
    fn an_empty_bootstrap_has_envoys_defaults() {
        let bootstrap = decode(&pb::Bootstrap::default()).unwrap();
        assert!(bootstrap.admin.is_none() && bootstrap.runtime.is_empty());
        assert_eq!(bootstrap.stats_flush_interval, Duration::from_secs(5));
        assert_eq!(&*bootstrap.header_prefix, "x-envoy");
        assert!(bootstrap.stats.use_all_default_tags);
    }

    #[test]
    fn a_cluster_name_stands_once() {
        let cluster = |name: &str| Cluster { name: name.into(), ..Default::default() };
        let message =
            with(pb::bootstrap::StaticResources { clusters: vec![cluster("c"), cluster("c")], ..Default::default() });
        assert_eq!(
            errors(decode(&message)),
            ["static_resources.clusters[1].name: cluster manager: duplicate cluster 'c'"]
        );
    }

    #[test]
    fn an_address_is_bound_once_unless_the_kernel_chooses_the_port() {
        let listeners = vec![listen("a", 80), listen("b", 80)];
        let result = decode(&with(pb::bootstrap::StaticResources { listeners, ..Default::default() }));
        assert!(errors(result)[0].starts_with(
            "static_resources.listeners[1].address: error adding listener: 'b' has duplicate address '127.0.0.1:80' as existing listener"
        ));
        let listeners = vec![listen("a", 0), listen("b", 0)];
        assert!(decode(&with(pb::bootstrap::StaticResources { listeners, ..Default::default() })).is_ok());
    }

    #[test]
    fn a_listener_name_stands_once() {
        let listeners = vec![listen("a", 80), listen("a", 81)];
        let result = decode(&with(pb::bootstrap::StaticResources { listeners, ..Default::default() }));
        assert_eq!(errors(result), ["static_resources.listeners[1].name: duplicate listener a found"]);
    }

    #[test]
    fn secrets_of_one_kind_have_names_of_their_own() {
        let generic = |name: &str| tls::Secret {
            name: name.into(),
            r#type: Some(tls::secret::Type::GenericSecret(Default::default())),
        };
        let tickets =
            tls::Secret { name: "a".into(), r#type: Some(tls::secret::Type::SessionTicketKeys(Default::default())) };
        let secrets = vec![generic("a"), tickets, generic("a")];
        let result = decode(&with(pb::bootstrap::StaticResources { secrets, ..Default::default() }));
        assert_eq!(errors(result), ["static_resources.secrets[2].name: Duplicate static GenericSecret secret name a"]);
    }

    #[test]
    fn the_local_cluster_has_to_exist() {
        let manager = pb::ClusterManager { local_cluster_name: "foo".into(), ..Default::default() };
        let message = pb::Bootstrap { cluster_manager: Some(manager), ..Default::default() };
        assert_eq!(
            errors(decode(&message)),
            ["cluster_manager.local_cluster_name: local cluster 'foo' must be defined"]
        );
    }

    #[test]
    fn flags_go_before_the_node_of_the_file() {
        let node = pbcore::Node { id: "file".into(), cluster: "edge".into(), ..Default::default() };
        let message = pb::Bootstrap { node: Some(node), ..Default::default() };
        let mut cx = Context::default();
        cx.node_id = "flag".into();
        let node = BootstrapConfig::decode(&message, &mut cx).unwrap().node;
        assert_eq!((&*node.id, &*node.cluster), ("flag", "edge"));
    }

    fn value(kind: Kind) -> PbValue {
        PbValue { kind: Some(kind) }
    }

    fn object(fields: &[(&str, PbValue)]) -> Struct {
        Struct { fields: fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect() }
    }

    fn static_layer(name: &str, values: Struct) -> pb::RuntimeLayer {
        pb::RuntimeLayer {
            name: name.into(),
            layer_specifier: Some(pb::runtime_layer::LayerSpecifier::StaticLayer(values)),
        }
    }

    fn runtime(layers: Vec<pb::RuntimeLayer>) -> Result<Vec<RuntimeLayer>, Vec<ConfigError>> {
        let message = pb::Bootstrap { layered_runtime: Some(pb::LayeredRuntime { layers }), ..Default::default() };
        decode(&message).map(|bootstrap| bootstrap.runtime)
    }

    #[test]
    fn runtime_objects_are_flattened_but_fractions_stay_whole() {
        let fraction = object(&[("numerator", value(Kind::NumberValue(5.0)))]);
        let inner = object(&[("b", value(Kind::BoolValue(true))), ("f", value(Kind::StructValue(fraction)))]);
        let layers = runtime(vec![static_layer("s", object(&[("a", value(Kind::StructValue(inner)))]))]).unwrap();
        let RuntimeLayerKind::Static(entries) = &layers[0].kind else { panic!("{layers:?}") };
        assert_eq!(
            *entries,
            [("a.b".into(), serde_json::json!(true)), ("a.f".into(), serde_json::json!({"numerator": 5})),]
        );
    }

    #[test]
    fn runtime_layers_are_checked() {
        let admin = |name: &str| pb::RuntimeLayer {
            name: name.into(),
            layer_specifier: Some(pb::runtime_layer::LayerSpecifier::AdminLayer(Default::default())),
        };
        let null = object(&[("x", value(Kind::NullValue(0)))]);
        assert_eq!(
            errors(runtime(vec![admin("a"), admin("a"), static_layer("s", null)])),
            [
                "layered_runtime.layers[1].name: Duplicate layer name: a",
                "layered_runtime.layers[1]: Too many admin layers specified in LayeredRuntime, at most one may be specified",
                "layered_runtime.layers[2].static_layer: Invalid runtime entry value for x",
            ]
        );
    }

    #[test]
    fn the_admins_deprecated_log_path_is_a_file_log() {
        let admin = pb::Admin { access_log_path: "/dev/null".into(), address: address(1), ..Default::default() };
        let message = pb::Bootstrap { admin: Some(admin), ..Default::default() };
        let admin = decode(&message).unwrap().admin.unwrap();
        assert!(matches!(&admin.access_logs[0].sink, AccessLogSink::File { path, .. } if &**path == "/dev/null"));
    }

    #[test]
    fn a_tag_needs_a_source() {
        let tag = |name: &str| metrics::TagSpecifier { tag_name: name.into(), tag_value: None };
        let config =
            metrics::StatsConfig { stats_tags: vec![tag("envoy.cluster_name"), tag("foo")], ..Default::default() };
        let message = pb::Bootstrap { stats_config: Some(config), ..Default::default() };
        assert_eq!(
            errors(decode(&message)),
            ["stats_config.stats_tags[1]: No regex specified for tag specifier and no default regex for name: 'foo'"]
        );
    }

    #[test]
    fn the_two_ways_to_flush_stats_exclude_each_other() {
        let message = pb::Bootstrap {
            stats_flush_interval: Some(google::Duration { seconds: 1, nanos: 0 }),
            stats_flush: Some(pb::bootstrap::StatsFlush::StatsFlushOnAdmin(true)),
            ..Default::default()
        };
        assert_eq!(
            errors(decode(&message)),
            ["Only one of stats_flush_interval or stats_flush_on_admin should be set!"]
        );
    }
}
