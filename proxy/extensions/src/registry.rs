//! The only list of extensions: what each type of configuration message makes.
//!
//! Extensions are found by the type of their message, as in Envoy; names are informative. A type that Envoy knows and
//! this table does not is refused by name, so that nobody believes a filter runs that does not.

use crate::http_filters;
use crate::on_demand::ClusterSources;
use nuncio_base::stats::Registry as Stats;
use nuncio_config::access_log::AccessLogConfig;
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::discovered::ExtensionSource;
use nuncio_config::hcm::HttpFilterConfig;
use nuncio_config::paths::FieldPath;
use nuncio_config::route::PerFilterConfig;
use nuncio_config::typed_config::TypedConfig;
use nuncio_http::access_log::AccessLogs;
use nuncio_http::filter::FilterChain;
use nuncio_http::route::PerFilterDecoder;
use nuncio_http::upstream_filters::UpstreamFilters;
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
    /// Makes access loggers.
    pub access_logs: Arc<dyn AccessLogBuilder>,
    /// Makes filters whose configuration is fetched.
    pub fetched: Arc<dyn FetchedFilters>,
}

/// Makes chains of filters towards upstreams of which some are fetched.
pub trait FetchedFilters: Send + Sync {
    /// A chain that is swapped as configurations come; `kind` is Envoy's word for it in errors. Whoever asked for it is told
    /// what has to come before it serves.
    ///
    /// # Errors
    /// As [`http_filter`], all of them; and sources that cannot be used.
    fn upstream_chain(
        &self,
        filters: &[HttpFilterConfig],
        kind: &'static str,
    ) -> Result<UpstreamFilters, Vec<ConfigError>>;
}

/// Makes access loggers for extensions that have some of their own.
pub trait AccessLogBuilder: Send + Sync {
    /// The loggers.
    ///
    /// # Errors
    /// What is wrong with them.
    fn build(&self, configs: &[AccessLogConfig]) -> Result<AccessLogs, String>;
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
    pub build: fn(&HttpFilterConfig, &FactoryContext, &mut FilterChain) -> Result<(), BuildError>,
}

/// What is wrong with a filter.
#[derive(Debug)]
pub enum BuildError {
    /// Something with all of it.
    Text(String),
    /// Things at places of their own.
    Errors(Vec<ConfigError>),
}

impl BuildError {
    /// As errors of a configuration; what has no place of its own is at `path`.
    fn at(self, path: &FieldPath) -> Vec<ConfigError> {
        match self {
            BuildError::Text(text) => vec![ConfigError::new(path.clone(), text)],
            BuildError::Errors(errors) => errors,
        }
    }
}

impl From<String> for BuildError {
    fn from(text: String) -> Self {
        BuildError::Text(text)
    }
}

impl From<Vec<ConfigError>> for BuildError {
    fn from(errors: Vec<ConfigError>) -> Self {
        BuildError::Errors(errors)
    }
}

/// HTTP filters.
pub const HTTP_FILTERS: &[HttpFilterEntry] = &[
    http_filters::dynamic_forward_proxy::ENTRY,
    http_filters::header_mutation::ENTRY,
    http_filters::on_demand::ENTRY,
    http_filters::router::ENTRY,
];

/// HTTP filters that may stand between the router and an upstream.
pub const UPSTREAM_HTTP_FILTERS: &[HttpFilterEntry] =
    &[http_filters::header_mutation::ENTRY, http_filters::upstream_codec::ENTRY];

/// Reads a message of `typed_per_filter_config`.
pub type DecodePerRoute = fn(&TypedConfig, &PerRouteDecoder<'_>) -> Result<Arc<dyn Any + Send + Sync>, String>;

/// Messages of `typed_per_filter_config`, by their names.
pub const PER_ROUTE: &[(&str, DecodePerRoute)] = &[
    ("envoy.extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig", |config, _| {
        http_filters::dynamic_forward_proxy::per_route(config)
    }),
    ("envoy.extensions.filters.http.on_demand.v3.PerRouteConfig", |config, decoder| {
        http_filters::on_demand::per_route(config, decoder.on_demand)
    }),
    ("envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute", |config, _| {
        http_filters::header_mutation::per_route(config)
    }),
];

/// Decodes what routes say to filters, by [`PER_ROUTE`]. Messages of filters that are not there are left alone: they have
/// no effect without their filter, which a chain cannot have.
#[derive(Clone, Copy)]
pub struct PerRouteDecoder<'a> {
    /// Sources of clusters on demand.
    pub on_demand: &'a dyn ClusterSources,
}

impl PerFilterDecoder for PerRouteDecoder<'_> {
    fn decode(&self, config: &PerFilterConfig) -> Result<Option<Arc<dyn Any + Send + Sync>>, String> {
        let (name, message) = (&config.filter, &*config.config.type_name);
        if let Some((_, decode)) = PER_ROUTE.iter().find(|(known, _)| *known == message) {
            return decode(&config.config, self).map(Some);
        }
        if config.is_optional || message.is_empty() {
            return Ok(None);
        }
        if HTTP_FILTERS.iter().chain(UPSTREAM_HTTP_FILTERS).any(|filter| filter.message == message) {
            return Err(format!("The filter {name} doesn't support virtual host or route specific configurations"));
        }
        // Whatever configures a filter is an extension of Envoy's.
        if message.starts_with("envoy.") || message.ends_with(".TypedStruct") {
            return Ok(None);
        }
        Err(format!("Didn't find a registered implementation for '{name}' with type URL: '{message}'"))
    }
}

/// Network filters: they are decoded with the listener; their messages are listed for the documentation.
pub const NETWORK_FILTERS: &[(&str, &str)] = &[
    (
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    ),
    (
        "envoy.filters.network.sni_dynamic_forward_proxy",
        "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig",
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
    ("envoy.cluster.dns", "envoy.extensions.clusters.dns.v3.DnsCluster"),
];

/// Access loggers.
pub const ACCESS_LOGGERS: &[(&str, &str)] = &[
    ("envoy.access_loggers.file", "envoy.extensions.access_loggers.file.v3.FileAccessLog"),
    ("envoy.access_loggers.stdout", "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"),
    ("envoy.access_loggers.stderr", "envoy.extensions.access_loggers.stream.v3.StderrAccessLog"),
    ("envoy.access_loggers.http_grpc", "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig"),
];

/// Transport sockets towards clients.
pub const DOWNSTREAM_TRANSPORT_SOCKETS: &[(&str, &str)] = &[
    ("envoy.transport_sockets.raw_buffer", "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"),
    ("envoy.transport_sockets.tls", "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
];

/// Transport sockets towards upstreams.
pub const UPSTREAM_TRANSPORT_SOCKETS: &[(&str, &str)] = &[
    ("envoy.transport_sockets.raw_buffer", "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"),
    ("envoy.transport_sockets.tls", "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
    (
        "envoy.transport_sockets.upstream_proxy_protocol",
        "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
    ),
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

/// Which filters a list may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterPlace {
    /// Those of a connection manager.
    Downstream,
    /// Those between the router and an upstream.
    Upstream,
}

impl FilterPlace {
    /// The filters that are known there.
    pub fn entries(self) -> &'static [HttpFilterEntry] {
        match self {
            FilterPlace::Downstream => HTTP_FILTERS,
            FilterPlace::Upstream => UPSTREAM_HTTP_FILTERS,
        }
    }

    /// What its filters are called in errors.
    pub fn filters(self) -> &'static str {
        match self {
            FilterPlace::Downstream => "HTTP filter",
            FilterPlace::Upstream => "upstream HTTP filter",
        }
    }
}

/// Builds one filter, as a chain of its own to be made part of another; of one that is left out nothing is in it. `last`:
/// it stands at the end.
///
/// # Errors
/// Filters that are not implemented or refuse their configuration, unless they are optional.
pub fn http_filter(
    filter: &HttpFilterConfig,
    last: bool,
    place: FilterPlace,
    context: &FactoryContext,
) -> Result<FilterChain, Vec<ConfigError>> {
    let mut chain = FilterChain::new();
    let path = path_of(&filter.config);
    let Some(entry) = place.entries().iter().find(|e| e.message == &*filter.config.type_name) else {
        if filter.is_optional {
            tracing::warn!(target: "config", "optional HTTP filter '{}' is not implemented and is skipped", filter.name);
            return Ok(chain);
        }
        let known =
            place == FilterPlace::Upstream && HTTP_FILTERS.iter().any(|e| e.message == &*filter.config.type_name);
        return Err(vec![match known {
            true => ConfigError::new(path, not_upstream(&filter.config)),
            false => not_implemented("HTTP filter", &filter.config, path),
        }]);
    };
    if entry.terminal != last {
        return Err(vec![ConfigError::new(path, terminal_error(filter, entry.terminal))]);
    }
    (entry.build)(filter, context, &mut chain).map_err(|error| error.at(&path))?;
    if filter.disabled {
        chain.disable();
    }
    Ok(chain)
}

/// Builds the filters of an HTTP connection manager or of an upgrade. All errors are reported, each with its path.
///
/// # Errors
/// As [`http_filter`].
pub fn http_chain(filters: &[HttpFilterConfig], context: &FactoryContext) -> Result<FilterChain, Vec<ConfigError>> {
    chain_at(filters, FilterPlace::Downstream, context)
}

fn chain_at(
    filters: &[HttpFilterConfig],
    place: FilterPlace,
    context: &FactoryContext,
) -> Result<FilterChain, Vec<ConfigError>> {
    let (mut chain, mut errors) = (FilterChain::new(), Vec::new());
    for (at, filter) in filters.iter().enumerate() {
        match http_filter(filter, at + 1 == filters.len(), place, context) {
            Ok(part) => chain.extend(&part),
            Err(found) => errors.extend(found),
        }
    }
    if errors.is_empty() { Ok(chain) } else { Err(errors) }
}

/// Builds the filters between the router and an upstream; None where nothing is left of them. `kind` is Envoy's word for the
/// chain.
///
/// # Errors
/// As [`http_filter`], all of them.
pub fn upstream_chain(
    filters: &[HttpFilterConfig],
    kind: &'static str,
    context: &FactoryContext,
) -> Result<Option<UpstreamFilters>, Vec<ConfigError>> {
    if filters.iter().any(|filter| filter.config_discovery.is_some()) {
        return context.fetched.upstream_chain(filters, kind).map(Some);
    }
    let chain = chain_at(filters, FilterPlace::Upstream, context)?;
    // Filters that are not there need no run.
    Ok((!chain.is_empty()).then(|| UpstreamFilters::Fixed(Arc::new(chain))))
}

/// Envoy's text about a filter that it does not know at this place.
fn not_upstream(config: &TypedConfig) -> String {
    format!("Didn't find a registered implementation for '{}' with type URL: '{}'", config.name, config.type_name)
}

/// Refusal of the first type in a list that no filter of the kind has, in Envoy's words.
pub fn unknown_type(source: &ExtensionSource, kind: &str, known: impl Fn(&str) -> bool) -> Option<String> {
    let unknown = source.type_names.iter().find(|name| !known(name))?;
    // One that is there, but not at this place, is as unknown to Envoy.
    let elsewhere = HTTP_FILTERS.iter().any(|entry| *entry.message == **unknown);
    let yet = if unknown.starts_with("envoy.") && !elsewhere {
        format!("; this {kind} is not implemented yet")
    } else {
        String::new()
    };
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
