//! From the configuration of a listener to the object that workers run: filter chains with their network filters.

use crate::hcm_builder::{self, HttpFactory};
use crate::init::{InitTarget, InitTargets};
use crate::server::Context;
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::listener::{ListenerConfig, NetworkFilterConfig};
use nuncio_config::paths::FieldPath;
use nuncio_extensions::network_filters::tcp_proxy::{TcpProxy, TcpProxyFactory};
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
        targets.add(&InitTarget::shared(format!("SdsApi {}", secret.name), secret.readiness()));
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
    let mut errors = Vec::new();
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
        listener_filter: &|extension| {
            let path = registry::path_of(extension);
            found.borrow_mut().push(registry::not_implemented("listener filter", extension, path));
            Err(String::new())
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

/// The factory of a filter chain. Network filters before the terminal one are not implemented yet.
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
    let mut factory: Option<Arc<dyn FilterChainFactory>> = None;
    let last = chain.filters.len().saturating_sub(1);
    for (i, filter) in chain.filters.iter().enumerate() {
        match filter {
            NetworkFilterConfig::Extension(extension) => {
                errors.push(registry::not_implemented("network filter", extension, registry::path_of(extension)));
            }
            _ if i != last => errors.push(ConfigError::new(
                FieldPath::parse(&chain.path).field("filters").index(i),
                "Error: terminal filter must be the last filter in a network filter chain.",
            )),
            NetworkFilterConfig::Http(config) => {
                if let Some((hcm, routes)) = hcm_builder::build(config, prefix, context, targets, errors) {
                    let buffer_limit = listener.per_connection_buffer_limit_bytes as usize;
                    factory = Some(Arc::new(HttpFactory { hcm, buffer_limit, routes }));
                }
            }
            NetworkFilterConfig::TcpProxy(config) => {
                let logs = hcm_builder::access_logs(&config.access_logs, context, errors);
                match TcpProxy::new(config.clone(), context.clusters.clone(), &context.registry, logs) {
                    Ok(filter) => factory = Some(Arc::new(TcpProxyFactory::new(filter))),
                    Err(message) => {
                        let path = FieldPath::parse(&config.path).field("tunneling_config");
                        errors.push(ConfigError::new(path, message));
                    }
                }
            }
        }
    }
    if chain.filters.is_empty() {
        // Envoy accepts such a chain and closes its connections.
        factory = Some(Arc::new(crate::empty_chain::EmptyChain));
    }
    factory.filter(|_| errors.is_empty())
}
