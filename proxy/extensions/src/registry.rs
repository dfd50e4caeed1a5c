//! The only list of extensions: what each type of configuration message makes.
//!
//! Extensions are found by the type of their message, as in Envoy; names are informative. A type that Envoy knows and
//! this table does not is refused by name, so that nobody believes a filter runs that does not.

use crate::http_filters;
use crate::on_demand::ClusterSources;
use nuncio_base::stats::Registry as Stats;
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::discovered::ExtensionSource;
use nuncio_config::hcm::HttpFilterConfig;
use nuncio_config::paths::FieldPath;
use nuncio_config::route::PerFilterConfig;
use nuncio_config::typed_config::TypedConfig;
use nuncio_http::filter::FilterChain;
use nuncio_http::route::PerFilterDecoder;
use nuncio_upstream::ClusterManager;
use std::any::Any;
use std::sync::Arc;

/// What extensions may use when they are built.
pub struct FactoryContext {
    /// Clusters of the process.
    pub clusters: Arc<ClusterManager>,
    /// Stats of the process.
    pub stats: Stats,
    /// Where clusters are asked for that are not there.
    pub on_demand: Arc<dyn ClusterSources>,
}

/// One HTTP filter of the list.
pub struct HttpFilterEntry {
    /// Envoy's name of the extension.
    pub name: &'static str,
    /// Full name of its configuration message.
    pub message: &'static str,
    /// The filter answers requests: it stands last.
    pub terminal: bool,
    /// Decodes the message and adds the filter to a chain.
    pub build: fn(&HttpFilterConfig, &FactoryContext, &mut FilterChain) -> Result<(), String>,
}

/// HTTP filters.
pub const HTTP_FILTERS: &[HttpFilterEntry] =
    &[http_filters::dynamic_forward_proxy::ENTRY, http_filters::on_demand::ENTRY, http_filters::router::ENTRY];

/// Reads a message of `typed_per_filter_config`.
pub type DecodePerRoute = fn(&TypedConfig) -> Result<Arc<dyn Any + Send + Sync>, String>;

/// Messages of `typed_per_filter_config`, by their names.
pub const PER_ROUTE: &[(&str, DecodePerRoute)] = &[
    (
        "envoy.extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig",
        http_filters::dynamic_forward_proxy::per_route,
    ),
    ("envoy.extensions.filters.http.on_demand.v3.PerRouteConfig", http_filters::on_demand::per_route),
];

/// Decodes what routes say to filters, by [`PER_ROUTE`]. Messages of other filters are left alone.
pub struct PerRouteDecoder;

impl PerFilterDecoder for PerRouteDecoder {
    fn decode(&self, config: &PerFilterConfig) -> Result<Option<Arc<dyn Any + Send + Sync>>, String> {
        let known = PER_ROUTE.iter().find(|(message, _)| *message == &*config.config.type_name);
        known.map(|(_, decode)| decode(&config.config)).transpose()
    }
}

/// Network filters: these two are decoded with the listener; their messages are listed for the documentation.
pub const NETWORK_FILTERS: &[(&str, &str)] = &[
    (
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    ),
    ("envoy.filters.network.tcp_proxy", "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
];

/// Listener filters.
pub const LISTENER_FILTERS: &[(&str, &str)] = &[
    ("envoy.filters.listener.tls_inspector", "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"),
    ("envoy.filters.listener.http_inspector", "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"),
    ("envoy.filters.listener.original_dst", "envoy.extensions.filters.listener.original_dst.v3.OriginalDst"),
    ("envoy.filters.listener.proxy_protocol", "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"),
];

/// Load balancing policies: decoded with the cluster.
pub const LOAD_BALANCING_POLICIES: &[(&str, &str)] = &[
    (
        "envoy.load_balancing_policies.client_side_weighted_round_robin",
        "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin",
    ),
    (
        "envoy.load_balancing_policies.cluster_provided",
        "envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided",
    ),
    (
        "envoy.load_balancing_policies.least_request",
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
    ),
    ("envoy.load_balancing_policies.maglev", "envoy.extensions.load_balancing_policies.maglev.v3.Maglev"),
    (
        "envoy.load_balancing_policies.override_host",
        "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost",
    ),
    ("envoy.load_balancing_policies.random", "envoy.extensions.load_balancing_policies.random.v3.Random"),
    ("envoy.load_balancing_policies.ring_hash", "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash"),
    ("envoy.load_balancing_policies.round_robin", "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin"),
    ("envoy.load_balancing_policies.subset", "envoy.extensions.load_balancing_policies.subset.v3.Subset"),
    (
        "envoy.load_balancing_policies.wrr_locality",
        "envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality",
    ),
];

/// Clusters of types of their own: decoded with the cluster.
pub const CLUSTERS: &[(&str, &str)] = &[
    ("envoy.clusters.aggregate", "envoy.extensions.clusters.aggregate.v3.ClusterConfig"),
    ("envoy.clusters.dynamic_forward_proxy", "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig"),
    ("envoy.clusters.dns", "envoy.extensions.clusters.dns.v3.DnsCluster"),
];

/// Access loggers.
pub const ACCESS_LOGGERS: &[(&str, &str)] = &[
    ("envoy.access_loggers.file", "envoy.extensions.access_loggers.file.v3.FileAccessLog"),
    ("envoy.access_loggers.stdout", "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"),
    ("envoy.access_loggers.stderr", "envoy.extensions.access_loggers.stream.v3.StderrAccessLog"),
    ("envoy.access_loggers.http_grpc", "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig"),
];

/// Transport sockets.
pub const TRANSPORT_SOCKETS: &[(&str, &str)] = &[
    ("envoy.transport_sockets.raw_buffer", "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"),
    ("envoy.transport_sockets.tls", "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
    ("envoy.transport_sockets.tls", "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
];

/// Refusal of an extension that is not in the list.
///
/// The text begins as Envoy's does for a type that it does not know.
pub fn not_implemented(kind: &str, config: &TypedConfig, path: FieldPath) -> ConfigError {
    let name = &config.name;
    let message = if config.type_name.is_empty() {
        format!(
            "Didn't find a registered implementation for '{name}' with type URL: ''; the {kind} has no typed_config"
        )
    } else {
        let url = &config.type_name;
        // Only what is an extension of Envoy may come.
        let yet =
            if url.starts_with("envoy.") { format!("; this {kind} is not implemented yet") } else { String::new() };
        format!("Didn't find a registered implementation for '{name}' with type URL: '{url}'{yet}")
    };
    ConfigError::new(path, message)
}

/// Builds the filters of an HTTP connection manager or of an upgrade. All errors are reported, each with its path.
///
/// # Errors
/// Filters that are not implemented or refuse their configuration, unless they are optional.
pub fn http_chain(filters: &[HttpFilterConfig], context: &FactoryContext) -> Result<FilterChain, Vec<ConfigError>> {
    let mut chain = FilterChain::new();
    let mut errors = Vec::new();
    let last = filters.len().saturating_sub(1);
    for (i, filter) in filters.iter().enumerate() {
        match http_filter(filter, i == last, context) {
            Ok(part) => chain.extend(&part),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(chain) } else { Err(errors) }
}

/// Builds one filter, as a chain of its own to be made part of another; of one that is left out nothing is in it. `last`:
/// it stands at the end.
///
/// # Errors
/// As [`http_chain`].
pub fn http_filter(
    filter: &HttpFilterConfig,
    last: bool,
    context: &FactoryContext,
) -> Result<FilterChain, ConfigError> {
    let mut chain = FilterChain::new();
    let path = path_of(&filter.config);
    let Some(entry) = HTTP_FILTERS.iter().find(|e| e.message == &*filter.config.type_name) else {
        if filter.is_optional {
            tracing::warn!(target: "config", "optional HTTP filter '{}' is not implemented and is skipped", filter.name);
            return Ok(chain);
        }
        return Err(not_implemented("HTTP filter", &filter.config, path));
    };
    if entry.terminal != last {
        return Err(ConfigError::new(path, terminal_error(filter, entry.terminal)));
    }
    if !filter.disabled || entry.terminal {
        (entry.build)(filter, context, &mut chain).map_err(|message| ConfigError::new(path, message))?;
    }
    Ok(chain)
}

/// Refusal of the first type in a list that no filter of the kind has, in Envoy's words.
pub fn unknown_type(source: &ExtensionSource, kind: &str, known: impl Fn(&str) -> bool) -> Option<String> {
    let unknown = source.type_names.iter().find(|name| !known(name))?;
    let yet =
        if unknown.starts_with("envoy.") { format!("; this {kind} is not implemented yet") } else { String::new() };
    Some(format!("Error: no factory found for a required type URL {unknown}{yet}."))
}

/// Envoy's two texts about the last filter.
fn terminal_error(filter: &HttpFilterConfig, terminal: bool) -> String {
    let (name, kind) = (&filter.name, &filter.config.type_name);
    if terminal {
        format!("Error: terminal filter named {name} of type {kind} must be the last filter in a http filter chain.")
    } else {
        format!("Error: non-terminal filter named {name} of type {kind} is the last filter in a http filter chain.")
    }
}

/// The path of an extension's configuration.
pub fn path_of(config: &TypedConfig) -> FieldPath {
    FieldPath::parse(&config.path)
}
