//! From the configuration of a listener to the object that workers run: filter chains with their network filters.

use crate::discovered;
use crate::hcm_builder::{self, HttpFactory, HttpParts};
use crate::init::{InitTarget, InitTargets};
use crate::server::Context;
use nuncio_base::stats::NameMatcher;
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::listener::{ListenerConfig, ListenerFilterConfig, NetworkFilterConfig};
use nuncio_config::paths::FieldPath;
use nuncio_config::tcp_proxy::TcpProxyConfig;
use nuncio_extensions::network_filters::sni_dynamic_forward_proxy::SniForwardProxy;
use nuncio_extensions::network_filters::tcp_proxy::{TcpProxy, TcpProxyFactory};
use nuncio_extensions::on_demand::ClusterSources as _;
use nuncio_extensions::registry;
use nuncio_http::matchers::in_runtime_fraction;
use nuncio_net::chain_matcher::FractionCheck;
use nuncio_net::listener::{FilterChain, FilterChainFactory, Listener, ListenerError, ListenerParts};
use std::cell::RefCell;
use std::sync::Arc;

/// Builds a listener; what it waits for is added to `targets`.
///
/// # Errors
/// Everything that is wrong with it.
pub(crate) fn listener(
    config: &Arc<ListenerConfig>,
    context: &Context,
    targets: &InitTargets,
) -> Result<Arc<Listener>, Vec<ConfigError>> {
    let listener = with_parts(config, context, targets, |parts| Listener::new(config.clone(), parts))?;
    wait_for_secrets(&listener.filter_chains(), targets);
    let key = connection_limit_key(&config.name);
    if let Some(limit) = context.runtime.integer(&key) {
        listener.set_connection_limit(Some(limit));
    }
    Ok(listener)
}

/// The runtime key with the limit on a listener's connections.
pub(crate) fn connection_limit_key(listener: &str) -> String {
    format!("envoy.resource_limits.listener.{listener}.connection_limit")
}

/// Adds the secrets that filter chains need.
pub(super) fn wait_for_secrets(chains: &[Arc<FilterChain>], targets: &InitTargets) {
    for secret in chains.iter().filter_map(|chain| chain.tls.as_ref()).flat_map(|tls| tls.secrets()) {
        targets.add(&InitTarget::shared(format!("shared target SdsApi {}", secret.name), secret.readiness()));
    }
}

/// Calls `make` with what a listener is built from; collects every error.
pub(super) fn with_parts<T>(
    config: &Arc<ListenerConfig>,
    context: &Context,
    targets: &InitTargets,
    make: impl FnOnce(ListenerParts<'_>) -> Result<T, ListenerError>,
) -> Result<T, Vec<ConfigError>> {
    let found = RefCell::new(Vec::new());
    let prefix = stat_prefix(config);
    let matcher = config.stats_matcher.clone();
    context
        .registry
        .set_matcher(&prefix, matcher.map(|matcher| Box::new(move |name: &str| matcher.includes(name)) as NameMatcher));
    let mut errors = Vec::new();
    context.sources.listener(config, &mut errors);
    let access_logs = hcm_builder::access_logs(&config.access_logs, context, &mut errors);
    let parts = ListenerParts {
        registry: &context.registry,
        global: context.global.clone(),
        drain: &context.drain,
        contexts: &context.contexts,
        filter_chain: &|chain| {
            let mut chain_errors = Vec::new();
            let built = build_chain(chain, config, &prefix, context, targets, &mut chain_errors);
            found.borrow_mut().extend(chain_errors);
            built.ok_or_else(String::new)
        },
        listener_filter: &|filter| {
            let built = match filter {
                ListenerFilterConfig::Extension(extension) => {
                    let path = registry::path_of(extension);
                    Err(registry::not_implemented("listener filter", extension, path))
                }
                ListenerFilterConfig::Discovered(filter) => {
                    discovered::listener_filter::build(filter, context, targets)
                }
                // The network floor has those that it knows.
                _ => return Err("no such listener filter".to_owned()),
            };
            built.map_err(|error| {
                found.borrow_mut().push(error);
                String::new()
            })
        },
        in_fraction: in_fraction(context),
        access_logs: crate::listener_log::of(access_logs),
    };
    let made = make(parts);
    errors.extend(found.into_inner());
    match made {
        Ok(made) if errors.is_empty() => Ok(made),
        Err(e) if errors.is_empty() => Err(vec![listener_error(e, &config.path)]),
        _ => Err(errors),
    }
}

fn in_fraction(context: &Context) -> FractionCheck {
    let runtime = context.runtime.clone();
    Arc::new(move |fraction, hash| in_runtime_fraction(fraction, &*runtime, hash))
}

/// The path is in front of the message in some of the network floor's errors: it is told apart here.
fn listener_error(error: ListenerError, listener: &str) -> ConfigError {
    let text = error.to_string();
    let path = match &error {
        ListenerError::Chains { path, .. } | ListenerError::Filter { path, .. } => &**path,
        ListenerError::Tls(_) => text.split_once(": ").map_or(listener, |(path, _)| path),
        ListenerError::Bind { .. } => listener,
    };
    let message = text.strip_prefix(path).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&text);
    ConfigError::new(FieldPath::parse(path), message)
}

fn stat_prefix(config: &ListenerConfig) -> String {
    let address = config.addresses.first().map(|a| nuncio_net::address::Address::from(&a.address).stat_name());
    let name = config.stat_prefix.as_deref().map(str::to_owned).or(address);
    format!("listener.{}.", name.unwrap_or_else(|| config.name.to_string()))
}

/// What a network filter is told about its listener.
#[derive(Clone)]
pub(crate) struct Place {
    /// `listener.<address>.`
    pub(crate) prefix: Arc<str>,
    /// `per_connection_buffer_limit_bytes`.
    pub(crate) buffer_limit: usize,
}

const BEFORE_TCP_PROXY: &str = "envoy.filters.network.sni_dynamic_forward_proxy is implemented before a TCP proxy only";

/// The factory of a filter chain. Of filters before the terminal one there is the one that looks up hosts by SNI.
fn build_chain(
    chain: &nuncio_config::listener::FilterChainConfig,
    listener: &ListenerConfig,
    prefix: &str,
    context: &Context,
    targets: &InitTargets,
    errors: &mut Vec<ConfigError>,
) -> Option<Arc<dyn FilterChainFactory>> {
    if let Some(socket) = &chain.transport_socket {
        errors.push(registry::not_implemented("transport socket", socket, registry::path_of(socket)));
    }
    let place = Place { prefix: prefix.into(), buffer_limit: listener.per_connection_buffer_limit_bytes as usize };
    let mut factory: Option<Arc<dyn FilterChainFactory>> = None;
    let last = chain.filters.len().saturating_sub(1);
    let mut names = None;
    for (i, filter) in chain.filters.iter().enumerate() {
        if let NetworkFilterConfig::SniForwardProxy(config) = filter
            && matches!(chain.filters.get(i + 1), Some(NetworkFilterConfig::TcpProxy(_)))
        {
            match SniForwardProxy::new(config, &context.clusters) {
                Ok(found) => names = Some(found),
                Err(message) => {
                    let path = FieldPath::parse(&chain.path).field("filters").index(i);
                    errors.push(ConfigError::new(path, message));
                }
            }
            continue;
        }
        if i != last && !matches!(filter, NetworkFilterConfig::Extension(_) | NetworkFilterConfig::SniForwardProxy(_)) {
            let terminal = || {
                ConfigError::new(
                    FieldPath::parse(&chain.path).field("filters").index(i),
                    "Error: terminal filter must be the last filter in a network filter chain.",
                )
            };
            // Those that may stand before others are not there yet.
            errors.push(match filter {
                NetworkFilterConfig::Discovered(filter) => {
                    discovered::network::unknown_type(filter).unwrap_or_else(terminal)
                }
                _ => terminal(),
            });
            continue;
        }
        factory = match filter {
            NetworkFilterConfig::TcpProxy(config) => tcp_proxy(config, names.take(), context, errors),
            NetworkFilterConfig::SniForwardProxy(_) => {
                let path = FieldPath::parse(&chain.path).field("filters").index(i);
                errors.push(ConfigError::new(path, BEFORE_TCP_PROXY));
                None
            }
            _ => network_filter(filter, &place, context, targets, errors),
        };
    }
    if chain.filters.is_empty() {
        // Envoy accepts such a chain and closes its connections.
        factory = Some(Arc::new(crate::empty_chain::EmptyChain));
    }
    factory.filter(|_| errors.is_empty())
}

/// The factory of a filter that ends its chain. What it waits for is added to `targets`, all errors to `errors`.
pub(crate) fn network_filter(
    filter: &NetworkFilterConfig,
    place: &Place,
    context: &Context,
    targets: &InitTargets,
    errors: &mut Vec<ConfigError>,
) -> Option<Arc<dyn FilterChainFactory>> {
    match filter {
        NetworkFilterConfig::Extension(extension) => {
            errors.push(registry::not_implemented("network filter", extension, registry::path_of(extension)));
            None
        }
        NetworkFilterConfig::Http(config) => {
            let HttpParts { hcm, routes, usages } =
                hcm_builder::build(config, &place.prefix, context, targets, errors)?;
            Some(Arc::new(HttpFactory { hcm, buffer_limit: place.buffer_limit, routes, discovered: usages }))
        }
        NetworkFilterConfig::TcpProxy(config) => tcp_proxy(config, None, context, errors),
        NetworkFilterConfig::SniForwardProxy(_) => {
            // Fetched; who fetches it says which it is.
            errors.push(ConfigError::new(FieldPath::root(), BEFORE_TCP_PROXY));
            None
        }
        NetworkFilterConfig::Discovered(filter) => discovered::network::build(filter, place, context, targets, errors),
    }
}

/// A TCP proxy; `names` looks up what TLS names before.
fn tcp_proxy(
    config: &Arc<TcpProxyConfig>,
    names: Option<SniForwardProxy>,
    context: &Context,
    errors: &mut Vec<ConfigError>,
) -> Option<Arc<dyn FilterChainFactory>> {
    let logs = hcm_builder::access_logs(&config.access_logs, context, errors);
    let source = match config.on_demand.as_ref().map(|on_demand| context.on_demand.source(on_demand)).transpose() {
        Ok(source) => source,
        Err(message) => {
            let path = FieldPath::parse(&config.path).field("on_demand").field("odcds_config");
            errors.push(ConfigError::new(path, message));
            return None;
        }
    };
    match TcpProxy::new(config.clone(), context.clusters.clone(), &context.registry, logs) {
        Ok(filter) => Some(Arc::new(TcpProxyFactory::new(filter.with_source(source).with_names(names)))),
        Err((field, message)) => {
            errors.push(ConfigError::new(FieldPath::parse(&config.path).field(field), message));
            None
        }
    }
}
