//! `Listener` decoded: addresses, filter chains, listener and network filters.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3 as proxy_protocol;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3 as tls_inspector;
use envoy_types::pb::envoy::extensions::filters::network;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::google::protobuf::{Any, StringValue};
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use rustc_hash::FxHashMap;

use super::chain_match::check_overlaps;
use super::{
    ConnectionPredicate, FilterChainConfig, FilterChainMatch, ListenAddress, ListenerConfig, ListenerFilterConfig,
    NetworkFilterConfig, ProxyProtocolConfig, SniForwardProxyConfig, SocketOption, TlsInspectorConfig,
    TrafficDirection,
};
use crate::access_log::AccessLogConfig;
use crate::address::{Address, SocketAddress};
use crate::bootstrap::StatsMatcher;
use crate::cluster::{DEFAULT_BUFFER_LIMIT, DnsCacheConfig, TcpKeepalive};
use crate::decode::{Context, bool_value, json, type_name, u32_value};
use crate::diagnostics::ConfigError;
use crate::discovered::Discovered;
use crate::extensions::unregistered;
use crate::hcm::{CodecType, HcmConfig};
use crate::matching::{MatchInput, MatchTree};
use crate::proxy_protocol::PassThroughTlvs;
use crate::tcp_proxy::TcpProxyConfig;
use crate::tls::DownstreamTlsContext;
use crate::typed_config::TypedConfig;

impl ListenerConfig {
    /// Decodes a listener that came by LDS.
    pub fn decode(message: &pb::Listener, cx: &mut Context) -> Result<Self, Vec<ConfigError>> {
        cx.run(|cx| Self::from_message(cx, message))
    }

    pub(crate) fn from_message(cx: &mut Context, message: &pb::Listener) -> Option<Self> {
        let addresses = addresses(cx, message);
        let shown = addresses.as_ref().and_then(|list| list.first()).map_or(String::new(), ListenAddress::to_string);
        let filter_chains = cx.each("filter_chains", &message.filter_chains, |cx, chain| {
            FilterChainConfig::decode(cx, chain, message.filter_chain_matcher.is_none()).map(Arc::new)
        });
        let default_filter_chain = cx.optional("default_filter_chain", &message.default_filter_chain, |cx, chain| {
            FilterChainConfig::decode(cx, chain, true)
        });
        // A matcher tree chooses among the chains by name, and their own matches are not looked at.
        let filter_chain_matcher = match &message.filter_chain_matcher {
            Some(matcher) => chain_matcher(cx, matcher, &message.filter_chains, &shown),
            None => {
                check_overlaps(cx, &message.filter_chains, &filter_chains, &shown);
                None
            }
        };
        check_chains(cx, message, addresses.as_deref().unwrap_or_default(), &shown);
        check_codecs(cx, message, filter_chains.iter().map(|chain| &**chain).chain(default_filter_chain.as_ref()));
        let deprecated_bind = message.deprecated_v1.as_ref().and_then(|v1| bool_value(&v1.bind_to_port));
        Some(ListenerConfig {
            name: name(message),
            stat_prefix: (!message.stat_prefix.is_empty()).then(|| message.stat_prefix.as_str().into()),
            metadata: json::metadata(&message.metadata),
            filter_chains,
            filter_chain_matcher: filter_chain_matcher.map(Arc::new),
            default_filter_chain: default_filter_chain.map(Arc::new),
            use_original_dst: bool_value(&message.use_original_dst).unwrap_or(false),
            per_connection_buffer_limit_bytes: u32_value(&message.per_connection_buffer_limit_bytes)
                .unwrap_or(DEFAULT_BUFFER_LIMIT),
            stats_matcher: cx
                .optional("stats_matcher", &message.stats_matcher, |cx, matcher| {
                    Some(StatsMatcher::decode(cx, matcher))
                })
                .map(Arc::new),
            listener_filters: listener_filters(cx, message),
            listener_filters_disabled: filters_disabled(cx, message),
            listener_filters_timeout: cx
                .duration("listener_filters_timeout", &message.listener_filters_timeout)
                .unwrap_or(Duration::from_secs(15)),
            continue_on_listener_filters_timeout: message.continue_on_listener_filters_timeout,
            transparent: bool_value(&message.transparent),
            freebind: bool_value(&message.freebind),
            socket_options: cx.each("socket_options", &message.socket_options, SocketOption::decode),
            tcp_keepalive: message.tcp_keepalive.as_ref().and_then(TcpKeepalive::of_listener),
            tcp_fast_open_queue_length: u32_value(&message.tcp_fast_open_queue_length),
            traffic_direction: match message.traffic_direction() {
                core::TrafficDirection::Unspecified => TrafficDirection::Unspecified,
                core::TrafficDirection::Inbound => TrafficDirection::Inbound,
                core::TrafficDirection::Outbound => TrafficDirection::Outbound,
            },
            enable_reuse_port: bool_value(&message.enable_reuse_port).unwrap_or(true),
            bind_to_port: bool_value(&message.bind_to_port).or(deprecated_bind).unwrap_or(true),
            tcp_backlog_size: u32_value(&message.tcp_backlog_size),
            drain_modify_only: message.drain_type() == pb::listener::DrainType::ModifyOnly,
            ignore_global_conn_limit: message.ignore_global_conn_limit,
            max_connections_to_accept_per_socket_event: u32_value(&message.max_connections_to_accept_per_socket_event),
            connection_limit: None,
            access_logs: cx.each("access_log", &message.access_log, AccessLogConfig::decode),
            frame_fingerprint: frame_fingerprint(message),
            path: cx.path_text(),
            addresses: addresses?,
        })
    }
}

/// A listener without a name gets one that nothing else has, as in Envoy.
fn name(message: &pb::Listener) -> Arc<str> {
    match message.name.as_str() {
        "" => String::from_utf8_lossy(&nuncio_base::random::uuid_v4()).into(),
        name => name.into(),
    }
}

/// Of everything but the filter chains. Metadata is a map, whose encoding has no fixed order, and goes by its JSON.
fn frame_fingerprint(message: &pb::Listener) -> u64 {
    let mut frame = pb::Listener {
        filter_chains: Vec::new(),
        default_filter_chain: None,
        filter_chain_matcher: None,
        ..message.clone()
    };
    let metadata = json::metadata(&frame.metadata.take());
    fingerprint(&frame, metadata)
}

fn chain_fingerprint(message: &pb::FilterChain) -> u64 {
    let mut chain = message.clone();
    let metadata = json::metadata(&chain.metadata.take());
    fingerprint(&chain, metadata)
}

fn fingerprint(message: &impl prost::Message, metadata: Option<Arc<serde_json::Value>>) -> u64 {
    use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
    let metadata = metadata.map(|value| value.to_string());
    BuildHasherDefault::<DefaultHasher>::default().hash_one((message.encode_to_vec(), metadata))
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.address {
            Address::Socket(socket) => write!(f, "{}", socket.addr),
            Address::Pipe { path, .. } => write!(f, "{}", path.display()),
            Address::Internal { listener_name, endpoint_id } => {
                write!(f, "envoy://{listener_name}/{endpoint_id}")
            }
        }
    }
}

fn addresses(cx: &mut Context, message: &pb::Listener) -> Option<Vec<ListenAddress>> {
    let first = match &message.address {
        Some(address) => cx.at("address", |cx| listen_address(cx, address)),
        None if matches!(message.listener_specifier, Some(pb::listener::ListenerSpecifier::InternalListener(_))) => {
            Some(Address::Internal { listener_name: message.name.clone(), endpoint_id: String::new() })
        }
        // An API listener, which the proxy of a mobile application uses, is bound to nothing.
        None if message.api_listener.is_some() => return Some(Vec::new()),
        None => {
            cx.error(format!("error adding listener named '{}': address is necessary", message.name));
            None
        }
    };
    let additional = cx.each("additional_addresses", &message.additional_addresses, |cx, additional| {
        let address = cx.required("address", &additional.address, listen_address);
        let socket_options = cx.optional("socket_options", &additional.socket_options, |cx, options| {
            Some(cx.each("socket_options", &options.socket_options, SocketOption::decode))
        });
        let tcp_keepalive = additional.tcp_keepalive.as_ref().map(TcpKeepalive::of_listener);
        Some(ListenAddress { address: address?, socket_options, tcp_keepalive })
    });
    let mut addresses = vec![ListenAddress::from(first?)];
    addresses.extend(additional);
    Some(addresses)
}

fn listen_address(cx: &mut Context, message: &core::Address) -> Option<Address> {
    let address = Address::decode(cx, message)?;
    if let Address::Socket(SocketAddress { addr, ipv4_compat: true, .. }) = &address {
        let fits = match addr.ip() {
            std::net::IpAddr::V4(_) => false,
            std::net::IpAddr::V6(ip) => ip.is_unspecified() || ip.to_ipv4_mapped().is_some(),
        };
        if !fits {
            cx.error(format!("Only IPv6 address '::' or valid IPv4-mapped IPv6 address can set ipv4_compat: {addr}"));
        }
    }
    Some(address)
}

fn is_udp(addresses: &[ListenAddress]) -> bool {
    matches!(addresses.first(), Some(ListenAddress { address: Address::Socket(SocketAddress { udp: true, .. }), .. }))
}

fn is_quic(message: &pb::Listener) -> bool {
    message.udp_listener_config.as_ref().is_some_and(|config| config.quic_options.is_some())
}

fn check_chains(cx: &mut Context, message: &pb::Listener, addresses: &[ListenAddress], shown: &str) {
    let chains = message.filter_chains.len();
    if is_udp(addresses) {
        if chains > 0 && !is_quic(message) {
            cx.error(format!(
                "error adding listener '{shown}': {chains} filter chain(s) specified for connection-less UDP listener."
            ));
        }
    } else if chains == 0
        && message.default_filter_chain.is_none()
        && message.fcds_config.is_none()
        && !addresses.is_empty()
    {
        cx.error(format!("error adding listener '{shown}': no filter chains specified"));
    }
}

/// The tree with the names of its actions made positions in `chains`.
fn chain_matcher(
    cx: &mut Context,
    message: &Matcher,
    chains: &[pb::FilterChain],
    shown: &str,
) -> Option<MatchTree<Option<usize>>> {
    let mut positions: FxHashMap<&str, usize> = FxHashMap::default();
    cx.at("filter_chains", |cx| {
        for (index, chain) in chains.iter().enumerate() {
            let problem = match &*chain.name {
                "" => "\"name\" field is required when using a listener matcher".to_owned(),
                name if positions.insert(name, index).is_some() => {
                    format!("\"name\" field is duplicated with value '{name}'")
                }
                _ => continue,
            };
            cx.at_index(index, |cx| cx.error_at("name", format!("error adding listener '{shown}': {problem}")));
        }
    });
    cx.at("filter_chain_matcher", |cx| {
        MatchTree::decode(cx, message, &MatchInput::is_of_connection, &mut |cx, action| {
            let any = action.typed_config.as_ref()?;
            if type_name(&any.type_url) != "google.protobuf.StringValue" {
                let error = unregistered(&action.name, type_name(&any.type_url));
                cx.error(format!("cannot create a filter chain matcher: {error}"));
                return None;
            }
            let name: StringValue = cx.at("typed_config", |cx| cx.unpack(any))?;
            Some(positions.get(&*name.value).copied())
        })
    })
}

fn check_codecs<'a>(cx: &mut Context, message: &pb::Listener, chains: impl Iterator<Item = &'a FilterChainConfig>) {
    if is_quic(message) {
        return;
    }
    let http3 = chains
        .flat_map(|chain| &chain.filters)
        .any(|filter| matches!(filter, NetworkFilterConfig::Http(hcm) if hcm.codec_type == CodecType::Http3));
    if http3 {
        cx.error("HTTP/3 codec configured on non-QUIC listener.");
    }
}

impl FilterChainConfig {
    /// `by_match`: its own match says when it is chosen.
    fn decode(cx: &mut Context, message: &pb::FilterChain, by_match: bool) -> Option<Self> {
        let matches = cx.optional("filter_chain_match", &message.filter_chain_match, |cx, matches| {
            FilterChainMatch::check(cx, matches, &message.name);
            if by_match { FilterChainMatch::decode(cx, matches) } else { None }
        });
        let (tls, transport_socket) = match &message.transport_socket {
            Some(socket) => cx.at("transport_socket", |cx| transport_socket(cx, socket)),
            None => (None, None),
        };
        Some(FilterChainConfig {
            name: message.name.as_str().into(),
            matches: matches.unwrap_or_default(),
            filters: network_filters(cx, &message.filters),
            tls,
            transport_socket,
            transport_socket_connect_timeout: cx
                .duration("transport_socket_connect_timeout", &message.transport_socket_connect_timeout)
                .unwrap_or_default(),
            metadata: json::metadata(&message.metadata),
            fingerprint: chain_fingerprint(message),
            path: cx.path_text(),
        })
    }
}

/// TLS, plain text (`raw_buffer`), or a socket that the registry knows.
fn transport_socket(
    cx: &mut Context,
    message: &core::TransportSocket,
) -> (Option<Arc<DownstreamTlsContext>>, Option<TypedConfig>) {
    let any = message.config_type.as_ref().map(|core::transport_socket::ConfigType::TypedConfig(any)| any);
    match any.map(|any| (type_name(&any.type_url), any)) {
        Some(("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", any)) => {
            let context = cx.at("typed_config", |cx| {
                let message: tls::DownstreamTlsContext = cx.unpack(any)?;
                DownstreamTlsContext::from_message(cx, &message)
            });
            (context.map(Arc::new), None)
        }
        Some(("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer", _)) => (None, None),
        None if message.name == "envoy.transport_sockets.raw_buffer" => (None, None),
        _ => (None, Some(cx.typed_config(&message.name, any))),
    }
}

const HTTP_CONNECTION_MANAGER: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const SNI_FORWARD_PROXY: &str = "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig";

/// Network filters of Envoy that never end a chain.
const NON_TERMINAL: [&str; 15] = [
    "connection_limit",
    "ext_authz",
    "ext_proc",
    "geoip",
    "kafka_broker",
    "local_ratelimit",
    "mongo_proxy",
    "mysql_proxy",
    "postgres_proxy",
    "ratelimit",
    "rbac",
    "set_filter_state",
    "sni_cluster",
    "sni_dynamic_forward_proxy",
    "zookeeper_proxy",
];

fn network_filters(cx: &mut Context, messages: &[pb::Filter]) -> Vec<NetworkFilterConfig> {
    let last = messages.len().saturating_sub(1);
    let mut index = 0;
    cx.each("filters", messages, |cx, message| {
        let position = index;
        index += 1;
        match &message.config_type {
            Some(pb::filter::ConfigType::ConfigDiscovery(source)) => {
                let last = position == last;
                let discovered = Discovered::decode(cx, &message.name, source, last, |cx, any| {
                    check_position(cx, &message.name, type_name(&any.type_url), last);
                    network_filter(cx, &message.name, Some(any))
                });
                discovered.map(|filter| NetworkFilterConfig::Discovered(Arc::new(filter)))
            }
            Some(pb::filter::ConfigType::TypedConfig(any)) => {
                check_position(cx, &message.name, type_name(&any.type_url), position == last);
                cx.at("typed_config", |cx| network_filter(cx, &message.name, Some(any)))
            }
            None => cx.at("typed_config", |cx| network_filter(cx, &message.name, None)),
        }
    })
}

/// Says whether a filter of this type stands in the wrong place of its chain.
fn check_position(cx: &mut Context, name: &str, type_name: &str, last: bool) {
    let short = type_name
        .strip_prefix("envoy.extensions.filters.network.")
        .and_then(|rest| rest.split('.').next())
        .unwrap_or_default();
    if !last && matches!(type_name, HTTP_CONNECTION_MANAGER | TCP_PROXY) {
        cx.error(format!(
            "Error: terminal filter named {name} of type envoy.filters.network.{short} must be the last filter in a network filter chain."
        ));
    }
    if last && NON_TERMINAL.contains(&short) {
        cx.error(format!(
            "Error: non-terminal filter named {name} of type envoy.filters.network.{short} is the last filter in a network filter chain."
        ));
    }
}

/// At the path of the configuration.
fn network_filter(cx: &mut Context, name: &str, any: Option<&Any>) -> Option<NetworkFilterConfig> {
    match any.map(|any| (type_name(&any.type_url), any)) {
        Some((HTTP_CONNECTION_MANAGER, any)) => {
            let message: network::http_connection_manager::v3::HttpConnectionManager = cx.unpack(any)?;
            HcmConfig::from_message(cx, &message).map(|hcm| NetworkFilterConfig::Http(Arc::new(hcm)))
        }
        Some((TCP_PROXY, any)) => {
            let message: network::tcp_proxy::v3::TcpProxy = cx.unpack(any)?;
            TcpProxyConfig::from_message(cx, &message).map(|proxy| NetworkFilterConfig::TcpProxy(Arc::new(proxy)))
        }
        Some((SNI_FORWARD_PROXY, any)) => {
            use network::sni_dynamic_forward_proxy::v3 as sni;
            let message: sni::FilterConfig = cx.unpack(any)?;
            let cache = cx.required("dns_cache_config", &message.dns_cache_config, |cx, cache| {
                Some(DnsCacheConfig::decode(cx, cache))
            })?;
            let port = message.port_specifier.map_or(0, |sni::filter_config::PortSpecifier::PortValue(port)| port);
            let port = u16::try_from(port).unwrap_or(0);
            Some(NetworkFilterConfig::SniForwardProxy(Arc::new(SniForwardProxyConfig { cache, port })))
        }
        _ => Some(NetworkFilterConfig::Extension(cx.typed_config_at(name, any, &[]))),
    }
}

impl NetworkFilterConfig {
    /// Decodes a configuration that has come for the filter `name`, which is the last of its chain or not.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn decode(cx: &mut Context, name: &str, any: &Any, last: bool) -> Result<Self, Vec<ConfigError>> {
        cx.run(|cx| {
            cx.at("typed_config", |cx| {
                check_position(cx, name, type_name(&any.type_url), last);
                network_filter(cx, name, Some(any))
            })
        })
    }
}
/// Those that are listed, and as in Envoy those that old fields stand for.
fn listener_filters(cx: &mut Context, message: &pb::Listener) -> Vec<ListenerFilterConfig> {
    let mut filters = cx.each("listener_filters", &message.listener_filters, ListenerFilterConfig::from_message);
    let is_original = |filter: &ListenerFilterConfig| matches!(filter, ListenerFilterConfig::OriginalDst);
    if bool_value(&message.use_original_dst) == Some(true) && !filters.iter().any(is_original) {
        filters.push(ListenerFilterConfig::OriginalDst);
    }
    let first = message.filter_chains.first();
    if first.and_then(|chain| bool_value(&chain.use_proxy_proto)) == Some(true) {
        filters.push(ListenerFilterConfig::ProxyProtocol(ProxyProtocolConfig::default()));
    }
    filters
}

fn filters_disabled(cx: &mut Context, message: &pb::Listener) -> Vec<Option<ConnectionPredicate>> {
    if message.listener_filters.iter().all(|filter| filter.filter_disabled.is_none()) {
        return Vec::new();
    }
    cx.each("listener_filters", &message.listener_filters, |cx, filter| {
        Some(cx.optional("filter_disabled", &filter.filter_disabled, predicate))
    })
}

fn predicate(cx: &mut Context, message: &pb::ListenerFilterChainMatchPredicate) -> Option<ConnectionPredicate> {
    use pb::listener_filter_chain_match_predicate::{MatchSet, Rule};
    let set = |cx: &mut Context, field, set: &MatchSet| -> Box<[ConnectionPredicate]> {
        cx.at(field, |cx| cx.each("rules", &set.rules, predicate)).into()
    };
    Some(match message.rule.as_ref()? {
        Rule::OrMatch(rules) => ConnectionPredicate::Or(set(cx, "or_match", rules)),
        Rule::AndMatch(rules) => ConnectionPredicate::And(set(cx, "and_match", rules)),
        Rule::NotMatch(rule) => ConnectionPredicate::Not(Box::new(cx.at("not_match", |cx| predicate(cx, rule))?)),
        Rule::AnyMatch(_) => ConnectionPredicate::Any,
        Rule::DestinationPortRange(range) => ConnectionPredicate::DestinationPort(range.start..range.end),
    })
}

impl ListenerFilterConfig {
    /// Decodes a configuration that has come for the filter `name`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn decode(cx: &mut Context, name: &str, any: &Any) -> Result<Self, Vec<ConfigError>> {
        cx.run(|cx| cx.at("typed_config", |cx| listener_filter(cx, name, Some(any))))
    }

    fn from_message(cx: &mut Context, message: &pb::ListenerFilter) -> Option<Self> {
        use pb::listener_filter::ConfigType;
        let name = &message.name;
        match &message.config_type {
            Some(ConfigType::ConfigDiscovery(source)) => {
                let decode = |cx: &mut Context, any: &Any| listener_filter(cx, name, Some(any));
                let discovered = Discovered::decode(cx, name, source, false, decode);
                discovered.map(|filter| ListenerFilterConfig::Discovered(Arc::new(filter)))
            }
            Some(ConfigType::TypedConfig(any)) => cx.at("typed_config", |cx| listener_filter(cx, name, Some(any))),
            None => cx.at("typed_config", |cx| listener_filter(cx, name, None)),
        }
    }
}

/// At the path of the configuration.
fn listener_filter(cx: &mut Context, name: &str, any: Option<&Any>) -> Option<ListenerFilterConfig> {
    let short = any.and_then(|any| type_name(&any.type_url).strip_prefix("envoy.extensions.filters.listener."));
    Some(match (short, any) {
        (Some("tls_inspector.v3.TlsInspector"), Some(any)) => {
            let message: tls_inspector::TlsInspector = cx.unpack(any)?;
            ListenerFilterConfig::TlsInspector(TlsInspectorConfig {
                ja3: bool_value(&message.enable_ja3_fingerprinting).unwrap_or(false),
                ja4: bool_value(&message.enable_ja4_fingerprinting).unwrap_or(false),
                close_on_errors: message.close_connection_on_client_hello_parsing_errors,
                max_client_hello_size: u32_value(&message.max_client_hello_size)
                    .unwrap_or(TlsInspectorConfig::default().max_client_hello_size),
            })
        }
        (Some("http_inspector.v3.HttpInspector"), _) => ListenerFilterConfig::HttpInspector,
        (Some("original_dst.v3.OriginalDst"), _) => ListenerFilterConfig::OriginalDst,
        (Some("proxy_protocol.v3.ProxyProtocol"), Some(any)) => {
            let message: proxy_protocol::ProxyProtocol = cx.unpack(any)?;
            let config = ProxyProtocolConfig::decode(&message);
            if [1, 2].iter().all(|version| config.disallowed_versions.contains(version)) {
                cx.error_at(
                    "disallowed_versions",
                    "Proxy Protocol filter is misconfigured: all proxy protocol versions are disallowed.",
                );
            }
            ListenerFilterConfig::ProxyProtocol(config)
        }
        _ => ListenerFilterConfig::Extension(cx.typed_config_at(name, any, &[])),
    })
}

impl ProxyProtocolConfig {
    fn decode(message: &proxy_protocol::ProxyProtocol) -> Self {
        let rule = |rule: &proxy_protocol::proxy_protocol::Rule| {
            let target = rule.on_tlv_present.as_ref()?;
            let namespace = match target.metadata_namespace.as_str() {
                "" => "envoy.filters.listener.proxy_protocol",
                namespace => namespace,
            };
            Some((u8::try_from(rule.tlv_type).ok()?, namespace.into(), target.key.as_str().into()))
        };
        ProxyProtocolConfig {
            allow_requests_without_proxy_protocol: message.allow_requests_without_proxy_protocol,
            rules: message.rules.iter().filter_map(rule).collect(),
            tlvs_in_filter_state: message.tlv_location() == proxy_protocol::proxy_protocol::TlvLocation::FilterState,
            disallowed_versions: message
                .disallowed_versions
                .iter()
                .map(|version| match core::proxy_protocol_config::Version::try_from(*version) {
                    Ok(core::proxy_protocol_config::Version::V2) => 2,
                    _ => 1,
                })
                .collect(),
            pass_through: PassThroughTlvs::decode(&message.pass_through_tlvs),
            stat_prefix: message.stat_prefix.as_str().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::SourceType;
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::envoy::config::core::v3 as pbcore;
    use prost::Message;

    fn address(host: &str) -> Option<pbcore::Address> {
        let address = pbcore::SocketAddress {
            address: host.into(),
            port_specifier: Some(pbcore::socket_address::PortSpecifier::PortValue(80)),
            ..Default::default()
        };
        Some(pbcore::Address { address: Some(pbcore::address::Address::SocketAddress(address)) })
    }

    fn filter<M: Message>(name: &str, type_name: &str, message: &M) -> pb::Filter {
        let any = Any { type_url: format!("type.googleapis.com/{type_name}"), value: message.encode_to_vec() };
        pb::Filter { name: name.into(), config_type: Some(pb::filter::ConfigType::TypedConfig(any)) }
    }

    fn tcp() -> pb::Filter {
        let message = network::tcp_proxy::v3::TcpProxy {
            stat_prefix: "t".into(),
            cluster_specifier: Some(network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier::Cluster("c".into())),
            ..Default::default()
        };
        filter("tcp", TCP_PROXY, &message)
    }

    fn chain(name: &str, matches: pb::FilterChainMatch) -> pb::FilterChain {
        pb::FilterChain {
            name: name.into(),
            filter_chain_match: Some(matches),
            filters: vec![tcp()],
            ..Default::default()
        }
    }

    fn sni(names: &[&str]) -> pb::FilterChainMatch {
        pb::FilterChainMatch {
            server_names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        }
    }

    fn listener(filter_chains: Vec<pb::FilterChain>) -> pb::Listener {
        pb::Listener { name: "l".into(), address: address("127.0.0.1"), filter_chains, ..Default::default() }
    }

    fn decode(message: &pb::Listener) -> Result<ListenerConfig, Vec<ConfigError>> {
        ListenerConfig::decode(message, &mut Context::default())
    }

    #[test]
    fn the_defaults_are_envoys() {
        let listener = decode(&listener(vec![chain("", sni(&[]))])).unwrap();
        assert_eq!(listener.per_connection_buffer_limit_bytes, 1024 * 1024);
        assert_eq!(listener.listener_filters_timeout, Duration::from_secs(15));
        assert!(listener.enable_reuse_port && listener.bind_to_port && !listener.drain_modify_only);
        let chain = &listener.filter_chains[0];
        assert!(chain.tls.is_none() && chain.transport_socket.is_none());
        assert!(matches!(chain.filters[0], NetworkFilterConfig::TcpProxy(_)));
        assert_eq!(chain.matches.source_type, SourceType::Any);
    }

    #[test]
    fn a_listener_needs_an_address_and_a_chain() {
        assert_eq!(
            errors(decode(&pb::Listener { address: None, ..listener(vec![chain("", sni(&[]))]) })),
            ["error adding listener named 'l': address is necessary"]
        );
        assert_eq!(
            errors(decode(&listener(vec![]))),
            ["error adding listener '127.0.0.1:80': no filter chains specified"]
        );
        let only_default = pb::Listener { default_filter_chain: Some(chain("", sni(&[]))), ..listener(vec![]) };
        assert!(decode(&only_default).is_ok());
    }

    #[test]
    fn chains_with_the_same_rules_are_told_by_name() {
        let message = listener(vec![chain("x", sni(&["a"])), chain("y", sni(&["a"]))]);
        assert_eq!(
            errors(decode(&message)),
            [
                "filter_chains[1].filter_chain_match: error adding listener '127.0.0.1:80': filter chain 'y' has the same matching rules defined as 'x'"
            ]
        );
    }

    #[test]
    fn chains_that_share_one_combination_overlap() {
        let overlap = [
            "filter_chains[1].filter_chain_match: error adding listener '127.0.0.1:80': multiple filter chains with overlapping matching rules are defined",
        ];
        let pair = |a, b| decode(&listener(vec![chain("x", a), chain("y", b)]));
        assert_eq!(errors(pair(sni(&["a"]), sni(&["a", "b"]))), overlap);
        assert_eq!(errors(pair(sni(&["A"]), sni(&["a"]))), overlap);
        let source = pb::FilterChainMatch { source_ports: vec![1], ..sni(&["a"]) };
        assert!(pair(sni(&["a"]), source).is_ok());
        assert!(pair(sni(&["a", "c"]), sni(&["b"])).is_ok());
    }

    #[test]
    fn a_server_name_is_whole_or_begins_with_a_wildcard_label() {
        let names = |name| decode(&listener(vec![chain("x", sni(&[name]))]));
        assert!(names("*.a.com").is_ok());
        for bad in ["*", "a*.com", "*.*.com"] {
            assert_eq!(
                errors(names(bad)),
                [
                    "filter_chains[0].filter_chain_match.server_names[0]: partial wildcards are not supported in \"server_names\""
                ]
            );
        }
    }

    fn by_matcher(chains: Vec<pb::FilterChain>, type_url: &str) -> pb::Listener {
        use envoy_types::pb::xds::core::v3::TypedExtensionConfig;
        use envoy_types::pb::xds::r#type::matcher::v3::matcher::{OnMatch, on_match};
        let value = StringValue { value: "b".into() }.encode_to_vec();
        let action = TypedExtensionConfig {
            name: "action".into(),
            typed_config: Some(Any { type_url: format!("type.googleapis.com/{type_url}"), value }),
        };
        let on_no_match = OnMatch { keep_matching: false, on_match: Some(on_match::OnMatch::Action(action)) };
        let matcher = Matcher { matcher_type: None, on_no_match: Some(Box::new(on_no_match)) };
        pb::Listener { filter_chain_matcher: Some(matcher), ..listener(chains) }
    }

    #[test]
    fn a_matcher_tree_names_chains_whose_own_matches_are_not_looked_at() {
        struct Nothing;
        impl crate::matching::MatchData<MatchInput> for Nothing {
            fn value<'a>(&'a self, _: &'a MatchInput) -> Option<std::borrow::Cow<'a, [u8]>> {
                None
            }
            fn in_fraction(&self, _: &crate::matchers::RuntimeFraction, _: u64) -> bool {
                false
            }
        }
        let string = "google.protobuf.StringValue";
        let find = |chains| {
            let listener = decode(&by_matcher(chains, string)).unwrap();
            *listener.filter_chain_matcher.unwrap().find(&Nothing).unwrap()
        };
        assert_eq!(find(vec![chain("a", sni(&["*"])), chain("b", sni(&["*"]))]), Some(1));
        assert_eq!(find(vec![chain("a", sni(&[]))]), None);
        let twice = by_matcher(vec![chain("b", sni(&[])), chain("", sni(&[])), chain("b", sni(&[]))], string);
        assert_eq!(
            errors(decode(&twice)),
            [
                "filter_chains[1].name: error adding listener '127.0.0.1:80': \"name\" field is required when using a listener matcher",
                "filter_chains[2].name: error adding listener '127.0.0.1:80': \"name\" field is duplicated with value 'b'",
            ]
        );
        let other = errors(decode(&by_matcher(vec![chain("b", sni(&[]))], "google.protobuf.Int32Value")));
        assert!(other[0].starts_with("filter_chain_matcher.on_no_match.action: cannot create a filter chain matcher: Didn't find a registered implementation for 'action' with type URL: 'google.protobuf.Int32Value'"), "{other:?}");
    }

    #[test]
    fn terminal_network_filters_stand_last() {
        let with = |filters| decode(&listener(vec![pb::FilterChain { filters, ..Default::default() }]));
        assert_eq!(
            errors(with(vec![tcp(), tcp()])),
            [
                "filter_chains[0].filters[0]: Error: terminal filter named tcp of type envoy.filters.network.tcp_proxy must be the last filter in a network filter chain."
            ]
        );
        let rbac = filter("x", "envoy.extensions.filters.network.rbac.v3.RBAC", &());
        assert_eq!(
            errors(with(vec![rbac])),
            [
                "filter_chains[0].filters[0]: Error: non-terminal filter named x of type envoy.filters.network.rbac is the last filter in a network filter chain."
            ]
        );
        assert!(with(vec![]).is_ok());
    }

    #[test]
    fn http3_needs_quic() {
        use network::http_connection_manager::v3 as hcm;
        let message = hcm::HttpConnectionManager {
            codec_type: hcm::http_connection_manager::CodecType::Http3.into(),
            route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(Default::default())),
            ..Default::default()
        };
        let filters = vec![filter("hcm", HTTP_CONNECTION_MANAGER, &message)];
        let chain = pb::FilterChain { filters, ..Default::default() };
        assert_eq!(errors(decode(&listener(vec![chain]))), ["HTTP/3 codec configured on non-QUIC listener."]);
    }

    #[test]
    fn known_listener_filters_are_told_from_extensions() {
        let with = |name: &str| {
            let any = Any { type_url: format!("x/envoy.extensions.filters.listener.{name}"), value: vec![] };
            let filter = pb::ListenerFilter {
                name: "f".into(),
                config_type: Some(pb::listener_filter::ConfigType::TypedConfig(any)),
                ..Default::default()
            };
            let message = pb::Listener { listener_filters: vec![filter], ..listener(vec![chain("", sni(&[]))]) };
            decode(&message).unwrap().listener_filters.remove(0)
        };
        assert!(
            matches!(with("tls_inspector.v3.TlsInspector"), ListenerFilterConfig::TlsInspector(config) if config == TlsInspectorConfig::default())
        );
        assert!(matches!(with("original_dst.v3.OriginalDst"), ListenerFilterConfig::OriginalDst));
        assert!(matches!(with("original_src.v3.OriginalSrc"), ListenerFilterConfig::Extension(_)));
    }

    #[test]
    fn old_fields_stand_for_listener_filters() {
        let mut message = listener(vec![chain("", sni(&[]))]);
        message.use_original_dst = Some(envoy_types::pb::google::protobuf::BoolValue { value: true });
        message.filter_chains[0].use_proxy_proto = message.use_original_dst;
        let filters = decode(&message).unwrap().listener_filters;
        assert!(
            matches!(&*filters, [ListenerFilterConfig::OriginalDst, ListenerFilterConfig::ProxyProtocol(_)]),
            "{filters:?}"
        );
    }

    #[test]
    fn a_tlv_rule_has_the_filters_namespace_by_default() {
        use proxy_protocol::proxy_protocol::{KeyValuePair, Rule};
        let rule =
            Rule { tlv_type: 0xea, on_tlv_present: Some(KeyValuePair { key: "k".into(), ..Default::default() }) };
        let message =
            proxy_protocol::ProxyProtocol { rules: vec![rule], disallowed_versions: vec![1], ..Default::default() };
        let config = ProxyProtocolConfig::decode(&message);
        assert_eq!(config.rules, [(0xea, "envoy.filters.listener.proxy_protocol".into(), "k".into())]);
        assert_eq!(config.disallowed_versions, [2]);
    }

    #[test]
    fn ipv4_compat_is_for_ipv6() {
        let message = |host: &str| {
            let mut message = pb::Listener { address: address(host), ..listener(vec![chain("", sni(&[]))]) };
            if let Some(pbcore::address::Address::SocketAddress(socket)) =
                message.address.as_mut().and_then(|address| address.address.as_mut())
            {
                socket.ipv4_compat = true;
            }
            message
        };
        assert!(decode(&message("::")).is_ok());
        assert_eq!(
            errors(decode(&message("127.0.0.1"))),
            ["address: Only IPv6 address '::' or valid IPv4-mapped IPv6 address can set ipv4_compat: 127.0.0.1:80"]
        );
    }
}
