//! `Cluster` decoded: discovery, protocol options, transport sockets, circuit breakers, DNS.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream;
use envoy_types::pb::google::protobuf::DoubleValue;

use super::transport_sockets::{socket_match, socket_matcher, transport_socket};
use super::{
    BindConfig, CircuitBreakers, ClusterConfig, ClusterLoadAssignment, CommonLbConfig, Discovery, DnsConfig,
    DnsDefaults, DnsLookupFamily, HappyEyeballs, HealthCheckConfig, HealthCheckKind, HttpPolicies, LbPolicy,
    OutlierDetectionConfig, PreconnectPolicy, RetryBudget, TcpKeepalive, Thresholds, UpstreamHttpOptions,
    UpstreamProtocol, UpstreamSocket, ZoneAwareConfig, discovery, dynamic_forward_proxy,
};
use crate::address::{Address, EndpointAddress};
use crate::bootstrap::StatsMatcher;
use crate::decode::{Context, bool_value, json, type_name, u32_value};
use crate::diagnostics::ConfigError;
use crate::hcm::decode::{CLUSTER_UPSTREAM, http_filters, share};
use crate::hcm::{Http1Options, Http2Options};
use crate::listener::IpVersion;
use crate::route::MetadataMatcher;

/// Soft limit of a connection's buffers unless configured, bytes.
pub(crate) const DEFAULT_BUFFER_LIMIT: u32 = 1024 * 1024;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

impl ClusterConfig {
    /// Decodes a cluster that came by CDS.
    pub fn decode(message: &pb::Cluster, cx: &mut Context) -> Result<Self, Vec<ConfigError>> {
        cx.run(|cx| Self::from_message(cx, message)).map(|cluster| ClusterConfig { added_via_api: true, ..cluster })
    }

    pub(crate) fn from_message(cx: &mut Context, message: &pb::Cluster) -> Option<Self> {
        let mut dns = dns_config(cx, message);
        let discovery = discovery::discovery(cx, message, &mut dns);
        let mut lb_common = lb_common(cx, message);
        let lb_policy = LbPolicy::decode(cx, message, &mut lb_common);
        if let (Some(discovery), Some(lb_policy)) = (&discovery, &lb_policy) {
            check_policy(cx, message, discovery, lb_policy);
        }
        // Other kinds want addresses.
        let names = !matches!(discovery, Some(Discovery::Static | Discovery::Eds { .. } | Discovery::OriginalDst(_)));
        let endpoints = match &message.load_assignment {
            Some(assignment) => {
                cx.at("load_assignment", |cx| ClusterLoadAssignment::from_message(cx, assignment, names))?
            }
            None => ClusterLoadAssignment { cluster_name: message.name.as_str().into(), ..Default::default() },
        };
        check_endpoints(cx, message, discovery.as_ref(), &endpoints);
        let (socket, transport_socket) = match &message.transport_socket {
            Some(socket) => cx.at("transport_socket", |cx| transport_socket(cx, socket)),
            None => (UpstreamSocket::default(), None),
        };
        let UpstreamSocket { tls, proxy_protocol } = socket;
        let matches = cx.each("transport_socket_matches", &message.transport_socket_matches, socket_match);
        let matcher =
            message.transport_socket_matcher.as_ref().and_then(|matcher| socket_matcher(cx, message, matcher));
        let (mut http, policies) = http_options(cx, message);
        if let Some(Discovery::DynamicForwardProxy { allow_insecure, .. }) = &discovery {
            let typed = message.typed_extension_protocol_options.contains_key(HTTP_OPTIONS);
            dynamic_forward_proxy::check_names(cx, message, *allow_insecure, typed, &mut http);
        }
        if http.protocol == UpstreamProtocol::Auto && tls.is_none() && transport_socket.is_none() && matches.is_empty()
        {
            cx.error(format!("ALPN configured for cluster {} which has a non-ALPN transport socket", message.name));
        }
        let health_check = HealthCheckConfig::of_cluster(cx, &message.health_checks).map(Arc::new);
        let grpc = health_check.as_ref().is_some_and(|check| matches!(check.kind, HealthCheckKind::Grpc { .. }));
        if grpc && !matches!(http.protocol, UpstreamProtocol::Http2 | UpstreamProtocol::Auto) {
            cx.error_at(
                "health_checks",
                format!("{} cluster must support HTTP/2 for gRPC healthchecking", message.name),
            );
        }
        cx.optional("upstream_config", &message.upstream_config, upstream_config);
        let keepalive = message.upstream_connection_options.as_ref().and_then(|o| o.tcp_keepalive.as_ref());
        let stats = message.track_cluster_stats.as_ref();
        Some(ClusterConfig {
            name: cx.cluster_name(&message.name),
            alt_stat_name: (!message.alt_stat_name.is_empty()).then(|| message.alt_stat_name.as_str().into()),
            connect_timeout: cx.duration("connect_timeout", &message.connect_timeout).unwrap_or(Duration::from_secs(5)),
            per_connection_buffer_limit_bytes: u32_value(&message.per_connection_buffer_limit_bytes)
                .unwrap_or(DEFAULT_BUFFER_LIMIT),
            lb_common,
            stats_matcher: cx
                .optional("stats_matcher", &message.stats_matcher, |cx, matcher| {
                    Some(StatsMatcher::decode(cx, matcher))
                })
                .map(Arc::new),
            endpoints,
            http,
            circuit_breakers: cx
                .optional("circuit_breakers", &message.circuit_breakers, CircuitBreakers::decode)
                .unwrap_or_default(),
            tls,
            proxy_protocol,
            transport_socket,
            transport_socket_matches: matches,
            transport_socket_matcher: matcher.map(Arc::new),
            happy_eyeballs: happy_eyeballs(message),
            bind: cx
                .optional("upstream_bind_config", &message.upstream_bind_config, |cx, bind| {
                    BindConfig::decode(cx, bind, &format!("Cluster {}", message.name))
                })
                .unwrap_or_default(),
            tcp_keepalive: keepalive.map(TcpKeepalive::decode),
            dns,
            close_connections_on_host_health_failure: message.close_connections_on_host_health_failure,
            ignore_health_on_host_removal: message.ignore_health_on_host_removal,
            health_check,
            outlier_detection: cx.optional(
                "outlier_detection",
                &message.outlier_detection,
                OutlierDetectionConfig::decode,
            ),
            metadata: json::metadata(&message.metadata),
            connection_pool_per_downstream_connection: message.connection_pool_per_downstream_connection,
            preconnect: cx
                .optional("preconnect_policy", &message.preconnect_policy, PreconnectPolicy::decode)
                .unwrap_or_default(),
            lrs_report_endpoint_metrics: message
                .lrs_report_endpoint_metrics
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
            track_timeout_budgets: message.track_timeout_budgets || stats.is_some_and(|stats| stats.timeout_budgets),
            track_sizes: stats.is_some_and(|stats| stats.request_response_sizes),
            per_endpoint_stats: stats.is_some_and(|stats| stats.per_endpoint_stats),
            policies: policies.map(Arc::new),
            added_via_api: false,
            path: cx.path_text(),
            discovery: discovery?,
            lb_policy: lb_policy?,
        })
    }
}

fn check_policy(cx: &mut Context, message: &pb::Cluster, discovery: &Discovery, policy: &LbPolicy) {
    let provided = *policy == LbPolicy::ClusterProvided;
    match discovery {
        Discovery::OriginalDst(_) if !provided => cx.error_at(
            "lb_policy",
            format!(
                "cluster: LB policy {} is not valid for Cluster type ORIGINAL_DST. Only 'CLUSTER_PROVIDED' is allowed with cluster type 'ORIGINAL_DST'",
                message.lb_policy().as_str_name()
            ),
        ),
        Discovery::Aggregate { .. } | Discovery::DynamicForwardProxy { .. } if !provided => cx.error_at(
            "lb_policy",
            format!(
                "cluster manager: cluster provided LB not specified but cluster '{}' provided one. Check cluster documentation.",
                message.name
            ),
        ),
        Discovery::OriginalDst(_)
        | Discovery::Aggregate { .. }
        | Discovery::DynamicForwardProxy { .. }
        | Discovery::Extension(_) => {}
        _ if provided => cx.error_at(
            "lb_policy",
            format!(
                "cluster manager: cluster provided LB specified but cluster '{}' did not provide one. Check cluster documentation.",
                message.name
            ),
        ),
        _ => {}
    }
}

fn check_endpoints(
    cx: &mut Context,
    message: &pb::Cluster,
    discovery: Option<&Discovery>,
    endpoints: &ClusterLoadAssignment,
) {
    if let Some(collection) = endpoints.localities.iter().find_map(|locality| locality.collection.as_ref()) {
        let what = "endpoints are fetched one by one (LEDS) only for assignments that came by EDS: it would be empty";
        cx.error_at("load_assignment", format!("collection '{}': {what}", collection.name));
    }
    match discovery {
        Some(Discovery::LogicalDns) => {
            let single = message.load_assignment.as_ref().is_some_and(|assignment| {
                assignment.endpoints.len() == 1 && assignment.endpoints[0].lb_endpoints.len() == 1
            });
            if !single {
                cx.error_at(
                    "load_assignment",
                    "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint",
                );
            }
        }
        Some(Discovery::OriginalDst(_)) if message.load_assignment.is_some() => {
            cx.error_at("load_assignment", "ORIGINAL_DST clusters must have no load assignment configured");
        }
        _ => {}
    }
    if matches!(discovery, Some(Discovery::StrictDns | Discovery::LogicalDns)) {
        let is_socket = |address: &EndpointAddress| {
            matches!(address, EndpointAddress::Name { .. } | EndpointAddress::Resolved(Address::Socket(_)))
        };
        if endpoints.localities.iter().flat_map(|l| &l.endpoints).any(|endpoint| !is_socket(&endpoint.address)) {
            cx.error_at("load_assignment", "the endpoints of a DNS cluster have to be socket addresses");
        }
    }
}

fn lb_common(cx: &mut Context, message: &pb::Cluster) -> CommonLbConfig {
    use pb::cluster::common_lb_config::LocalityConfigSpecifier as Locality;
    let mut common = CommonLbConfig::default();
    if let Some(config) = &message.common_lb_config {
        cx.at("common_lb_config", |cx| {
            if let Some(threshold) = &config.healthy_panic_threshold {
                common.healthy_panic_threshold = threshold.value;
            }
            if let Some(window) = cx.duration("update_merge_window", &config.update_merge_window) {
                common.update_merge_window = window;
            }
        });
        let hashing = config.consistent_hashing_lb_config.as_ref();
        if hashing.is_some_and(|hashing| hashing.use_hostname_for_hashing) {
            check_hostname_hashing(cx, message);
        }
        common.ignore_new_hosts_until_first_hc = config.ignore_new_hosts_until_first_hc;
        common.close_connections_on_host_set_change = config.close_connections_on_host_set_change;
        match &config.locality_config_specifier {
            Some(Locality::LocalityWeightedLbConfig(_)) => common.locality_weighted = true,
            Some(Locality::ZoneAwareLbConfig(zone)) => {
                common.fail_traffic_on_panic = zone.fail_traffic_on_panic;
                common.zone_aware = ZoneAwareConfig::new(&zone.routing_enabled, &zone.min_cluster_size);
            }
            None => {}
        }
    }
    let policy = message.load_assignment.as_ref().and_then(|assignment| assignment.policy.as_ref());
    if let Some(factor) = policy.and_then(|policy| u32_value(&policy.overprovisioning_factor)) {
        common.overprovisioning_factor = factor;
    }
    common.weighted_priority_health = policy.is_some_and(|policy| policy.weighted_priority_health);
    common
}

/// Names can be hashed where each stands for its hosts.
fn check_hostname_hashing(cx: &mut Context, message: &pb::Cluster) {
    use pb::cluster::{ClusterDiscoveryType, DiscoveryType};
    let kind = match message.cluster_discovery_type {
        Some(ClusterDiscoveryType::ClusterType(_)) => "",
        Some(ClusterDiscoveryType::Type(kind)) => match DiscoveryType::try_from(kind) {
            Ok(DiscoveryType::StrictDns) => return,
            Ok(DiscoveryType::LogicalDns) => "envoy.cluster.logical_dns",
            Ok(DiscoveryType::Eds) => "envoy.cluster.eds",
            Ok(DiscoveryType::OriginalDst) => "envoy.cluster.original_dst",
            Ok(DiscoveryType::Static) | Err(_) => "envoy.cluster.static",
        },
        None => "envoy.cluster.static",
    };
    cx.error_at(
        "common_lb_config",
        format!("Cannot use hostname for consistent hashing loadbalancing for cluster of type: '{kind}'"),
    );
}

/// Kinds of upstreams: those that are named here are what a route asks for without any.
fn upstream_config(cx: &mut Context, message: &core::TypedExtensionConfig) -> Option<()> {
    const GENERIC: [&str; 3] = [
        "envoy.extensions.upstreams.http.generic.v3.GenericConnectionPoolProto",
        "envoy.extensions.upstreams.http.http.v3.HttpConnectionPoolProto",
        "envoy.extensions.upstreams.tcp.generic.v3.GenericConnectionPoolProto",
    ];
    let kind = message.typed_config.as_ref().map(|any| type_name(&any.type_url)).unwrap_or_default();
    if kind.starts_with("envoy.") && !GENERIC.contains(&kind) {
        cx.error(format!("upstream '{kind}' is not implemented"));
    } else if !GENERIC.contains(&kind) {
        cx.error(format!("Didn't find a registered implementation for '{}' with type URL: '{kind}'", message.name));
    }
    None
}

fn happy_eyeballs(message: &pb::Cluster) -> HappyEyeballs {
    use pb::upstream_connection_options::FirstAddressFamilyVersion as Version;
    let options = message.upstream_connection_options.as_ref();
    options.and_then(|options| options.happy_eyeballs_config.as_ref()).map_or_else(HappyEyeballs::default, |config| {
        HappyEyeballs {
            first: match config.first_address_family_version() {
                Version::V4 => Some(IpVersion::V4),
                Version::V6 => Some(IpVersion::V6),
                _ => None,
            },
            count: u32_value(&config.first_address_family_count).unwrap_or(1),
        }
    })
}

/// Refuses options that are of no extension. Those of Envoy's that are not there have no effect: no filter could use the cluster.
fn check_options_names(cx: &mut Context, message: &pb::Cluster) {
    cx.at("typed_extension_protocol_options", |cx| {
        let mut unknown: Vec<_> =
            message.typed_extension_protocol_options.keys().filter(|name| !name.starts_with("envoy.")).collect();
        unknown.sort();
        for name in unknown {
            let text = "Didn't find a registered network or http filter or protocol options implementation for name";
            cx.at_key(name, |cx| cx.error(format!("{text}: '{name}'")));
        }
    });
}

/// The options of `typed_extension_protocol_options`, or of the deprecated fields of the cluster where it has none.
fn http_options(cx: &mut Context, message: &pb::Cluster) -> (UpstreamHttpOptions, Option<HttpPolicies>) {
    check_options_names(cx, message);
    let per_cluster = u32_value(&message.max_requests_per_connection);
    let mut policies = None;
    let decoded = match message.typed_extension_protocol_options.get(HTTP_OPTIONS) {
        Some(any) => cx.at("typed_extension_protocol_options", |cx| {
            cx.at_key(HTTP_OPTIONS, |cx| {
                let options: upstream::HttpProtocolOptions = cx.unpack(any)?;
                policies = HttpPolicies::decode(cx, &options);
                Some(typed_options(cx, &options))
            })
        }),
        None => Some(deprecated_options(cx, message)),
    };
    let mut options = decoded.unwrap_or_default();
    options.max_requests_per_connection = options.max_requests_per_connection.or(per_cluster).filter(|max| *max > 0);
    (options, policies)
}

fn typed_options(cx: &mut Context, message: &upstream::HttpProtocolOptions) -> UpstreamHttpOptions {
    use upstream::http_protocol_options::UpstreamProtocolOptions as Kind;
    use upstream::http_protocol_options::explicit_http_config::ProtocolConfig;
    let mut options = UpstreamHttpOptions::default();
    match &message.upstream_protocol_options {
        Some(Kind::ExplicitHttpConfig(explicit)) => {
            cx.at("explicit_http_config", |cx| match &explicit.protocol_config {
                Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                    options.protocol = UpstreamProtocol::Http2;
                    protocols(cx, &mut options, &None, &Some(http2.clone()));
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => options.protocol = UpstreamProtocol::Http3,
                Some(ProtocolConfig::HttpProtocolOptions(http1)) => {
                    protocols(cx, &mut options, &Some(http1.clone()), &None);
                }
                None => {}
            })
        }
        Some(Kind::UseDownstreamProtocolConfig(config)) => cx.at("use_downstream_protocol_config", |cx| {
            options.protocol = UpstreamProtocol::UseDownstream;
            protocols(cx, &mut options, &config.http_protocol_options, &config.http2_protocol_options);
        }),
        Some(Kind::AutoConfig(config)) => cx.at("auto_config", |cx| {
            options.protocol = UpstreamProtocol::Auto;
            protocols(cx, &mut options, &config.http_protocol_options, &config.http2_protocol_options);
        }),
        None => {}
    }
    common_options(cx, &mut options, &message.common_http_protocol_options, &message.upstream_http_protocol_options);
    options.http_filters = http_filters(cx, "http_filters", &message.http_filters, CLUSTER_UPSTREAM);
    options
}

fn deprecated_options(cx: &mut Context, message: &pb::Cluster) -> UpstreamHttpOptions {
    use pb::cluster::ClusterProtocolSelection;
    let mut options = UpstreamHttpOptions::default();
    let downstream = message.protocol_selection() == ClusterProtocolSelection::UseDownstreamProtocol;
    if downstream {
        options.protocol = UpstreamProtocol::UseDownstream;
    } else if message.http2_protocol_options.is_some() {
        options.protocol = UpstreamProtocol::Http2;
        if message.http_protocol_options.is_some() {
            cx.error(
                "cluster: Both HTTP1 and HTTP2 options may only be configured with non-default 'protocol_selection' values",
            );
        }
    }
    protocols(cx, &mut options, &message.http_protocol_options, &message.http2_protocol_options);
    common_options(cx, &mut options, &message.common_http_protocol_options, &message.upstream_http_protocol_options);
    options
}

fn protocols(
    cx: &mut Context,
    options: &mut UpstreamHttpOptions,
    http1: &Option<core::Http1ProtocolOptions>,
    http2: &Option<core::Http2ProtocolOptions>,
) {
    let decoded = cx.optional("http_protocol_options", http1, |cx, m| Http1Options::decode(cx, m, None));
    options.http1 = decoded.unwrap_or_default();
    let decoded = cx.optional("http2_protocol_options", http2, |cx, m| Http2Options::decode(cx, m, None));
    options.http2 = decoded.unwrap_or_default();
}

fn common_options(
    cx: &mut Context,
    options: &mut UpstreamHttpOptions,
    common: &Option<core::HttpProtocolOptions>,
    upstream: &Option<core::UpstreamHttpProtocolOptions>,
) {
    if let Some(common) = common {
        cx.at("common_http_protocol_options", |cx| {
            options.idle_timeout = cx.timeout("idle_timeout", &common.idle_timeout, options.idle_timeout);
            options.max_connection_duration =
                cx.timeout("max_connection_duration", &common.max_connection_duration, None);
            options.max_connection_duration_jitter = share(common.max_connection_duration_jitter.as_ref());
            options.max_stream_duration = cx.timeout("max_stream_duration", &common.max_stream_duration, None);
        });
        options.max_requests_per_connection = u32_value(&common.max_requests_per_connection);
        options.max_headers_count = u32_value(&common.max_headers_count).unwrap_or(options.max_headers_count);
        options.max_response_headers_kb = u32_value(&common.max_response_headers_kb);
    }
    if let Some(upstream) = upstream {
        options.auto_sni = upstream.auto_sni;
        options.auto_san_validation = upstream.auto_san_validation;
        options.override_auto_sni_header = (!upstream.override_auto_sni_header.is_empty())
            .then(|| upstream.override_auto_sni_header.to_ascii_lowercase().into());
    }
}

impl PreconnectPolicy {
    fn decode(cx: &mut Context, message: &pb::cluster::PreconnectPolicy) -> Option<Self> {
        let ratio =
            |ratio: &Option<DoubleValue>| ratio.as_ref().map_or(1000, |ratio| (ratio.value * 1000.0).round() as u32);
        Some(PreconnectPolicy {
            per_upstream_ratio: ratio(&message.per_upstream_preconnect_ratio),
            predictive_ratio: ratio(&message.predictive_preconnect_ratio),
            enabled_metadata: cx
                .optional("preconnect_enabled_metadata", &message.preconnect_enabled_metadata, MetadataMatcher::decode)
                .map(Arc::new),
        })
    }
}

impl CircuitBreakers {
    fn decode(cx: &mut Context, message: &pb::CircuitBreakers) -> Option<Self> {
        use core::RoutingPriority as Priority;
        // The first entry of a priority counts, as in Envoy.
        let find = |list: &'_ [pb::circuit_breakers::Thresholds], priority| {
            list.iter().find(|thresholds| thresholds.priority() == priority).cloned()
        };
        let mut of = |priority| {
            let found = find(&message.thresholds, priority);
            found.map(|thresholds| cx.at("thresholds", |cx| Thresholds::decode(cx, &thresholds))).unwrap_or_default()
        };
        let (default, high) = (of(Priority::Default), of(Priority::High));
        for (at, thresholds) in message.per_host_thresholds.iter().enumerate() {
            let others = [&thresholds.max_pending_requests, &thresholds.max_requests, &thresholds.max_retries];
            let pools = thresholds.max_connection_pools.is_some() || thresholds.retry_budget.is_some();
            if pools || others.into_iter().any(Option::is_some) {
                let text = "Unsupported field in per_host_thresholds";
                cx.at("per_host_thresholds", |cx| cx.at_index(at, |cx| cx.error(text)));
            }
        }
        Some(CircuitBreakers {
            default,
            high,
            per_host_max_connections: find(&message.per_host_thresholds, Priority::Default)
                .and_then(|thresholds| u32_value(&thresholds.max_connections)),
        })
    }
}

impl Thresholds {
    fn decode(cx: &mut Context, message: &pb::circuit_breakers::Thresholds) -> Self {
        let default = Thresholds::default();
        Thresholds {
            max_connections: u32_value(&message.max_connections).unwrap_or(default.max_connections),
            max_pending_requests: u32_value(&message.max_pending_requests).unwrap_or(default.max_pending_requests),
            max_requests: u32_value(&message.max_requests).unwrap_or(default.max_requests),
            max_retries: u32_value(&message.max_retries).unwrap_or(default.max_retries),
            retry_budget: cx.optional("retry_budget", &message.retry_budget, |cx, budget| {
                Some(RetryBudget {
                    percent: budget.budget_percent.as_ref().map_or(20.0, |percent| percent.value),
                    min_concurrency: u32_value(&budget.min_retry_concurrency).unwrap_or(3),
                    interval: cx.duration("budget_interval", &budget.budget_interval).unwrap_or_default(),
                })
            }),
            track_remaining: message.track_remaining,
            max_connection_pools: u32_value(&message.max_connection_pools),
        }
    }
}

fn dns_config(cx: &mut Context, message: &pb::Cluster) -> DnsConfig {
    let mut dns = DnsConfig {
        respect_ttl: message.respect_dns_ttl,
        use_tcp: message.use_tcp_for_dns_lookups,
        wait_for_warm_on_init: bool_value(&message.wait_for_warm_on_init).unwrap_or(true),
        family: family(message.dns_lookup_family()),
        resolvers: resolvers(cx, "dns_resolvers", &message.dns_resolvers),
        ..DnsConfig::default()
    };
    if let Some(rate) = cx.duration("dns_refresh_rate", &message.dns_refresh_rate) {
        dns.refresh_rate = rate;
    }
    dns.jitter = cx.duration("dns_jitter", &message.dns_jitter).unwrap_or_default();
    if let Some(rate) = &message.dns_failure_refresh_rate {
        dns.failure_refresh =
            cx.at("dns_failure_refresh_rate", |cx| failure_refresh(cx, &rate.base_interval, &rate.max_interval));
    }
    if let Some(config) = &message.dns_resolution_config {
        cx.at("dns_resolution_config", |cx| dns.resolvers = resolvers(cx, "resolvers", &config.resolvers));
        resolver_options(&config.dns_resolver_options, &mut dns);
    }
    if let Some(resolver) = &message.typed_dns_resolver_config {
        cx.at("typed_dns_resolver_config", |cx| typed_resolver(cx, resolver, &mut dns));
    }
    let own = message.typed_dns_resolver_config.is_some()
        || message.dns_resolution_config.is_some()
        || !message.dns_resolvers.is_empty()
        || message.use_tcp_for_dns_lookups;
    if !own {
        dns.take_defaults(cx.default_dns.clone());
    }
    dns
}

impl DnsConfig {
    pub(super) fn take_defaults(&mut self, defaults: DnsDefaults) {
        self.resolvers = defaults.resolvers;
        self.use_tcp = defaults.use_tcp;
        self.no_default_search_domain = defaults.no_default_search_domain;
    }
}

impl DnsDefaults {
    /// Of the bootstrap.
    pub(crate) fn decode(cx: &mut Context, message: &Bootstrap) -> Self {
        let mut dns = DnsConfig { use_tcp: message.use_tcp_for_dns_lookups, ..DnsConfig::default() };
        if let Some(config) = &message.dns_resolution_config {
            cx.at("dns_resolution_config", |cx| dns.resolvers = resolvers(cx, "resolvers", &config.resolvers));
            resolver_options(&config.dns_resolver_options, &mut dns);
        }
        if let Some(resolver) = &message.typed_dns_resolver_config {
            cx.at("typed_dns_resolver_config", |cx| typed_resolver(cx, resolver, &mut dns));
        }
        let DnsConfig { resolvers, use_tcp, no_default_search_domain, .. } = dns;
        DnsDefaults { resolvers, use_tcp, no_default_search_domain }
    }
}

pub(super) fn family(family: pb::cluster::DnsLookupFamily) -> DnsLookupFamily {
    use pb::cluster::DnsLookupFamily as Family;
    match family {
        Family::Auto => DnsLookupFamily::Auto,
        Family::V4Only => DnsLookupFamily::V4Only,
        Family::V6Only => DnsLookupFamily::V6Only,
        Family::V4Preferred => DnsLookupFamily::V4Preferred,
        Family::All => DnsLookupFamily::All,
    }
}

pub(super) fn failure_refresh(
    cx: &mut Context,
    base: &Option<envoy_types::pb::google::protobuf::Duration>,
    max: &Option<envoy_types::pb::google::protobuf::Duration>,
) -> Option<(Duration, Duration)> {
    let base = cx.duration("base_interval", base)?;
    let max = cx.duration("max_interval", max).unwrap_or(base * 10);
    if max < base {
        cx.error("dns_failure_refresh_rate must have max_interval greater than or equal to the base_interval");
    }
    Some((base, max))
}

pub(super) fn resolvers(
    cx: &mut Context,
    field: &'static str,
    messages: &[core::Address],
) -> Vec<std::net::SocketAddr> {
    cx.each(field, messages, |cx, message| match Address::decode(cx, message)? {
        Address::Socket(address) => Some(address.addr),
        _ => {
            cx.error("a DNS resolver has a socket address");
            None
        }
    })
}

fn resolver_options(options: &Option<core::DnsResolverOptions>, dns: &mut DnsConfig) {
    if let Some(options) = options {
        dns.use_tcp = options.use_tcp_for_dns_lookups;
        dns.no_default_search_domain = options.no_default_search_domain;
    }
}

/// c-ares' settings are taken over; other resolvers of Envoy (getaddrinfo, Apple) have none that matter here.
pub(super) fn typed_resolver(cx: &mut Context, resolver: &core::TypedExtensionConfig, dns: &mut DnsConfig) {
    let Some(any) = &resolver.typed_config else { return };
    if type_name(&any.type_url) == "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig" {
        cx.at("typed_config", |cx| {
            if let Some(config) = cx.unpack::<CaresDnsResolverConfig>(any) {
                dns.resolvers = resolvers(cx, "resolvers", &config.resolvers);
                resolver_options(&config.dns_resolver_options, dns);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
    use envoy_types::pb::envoy::extensions::clusters::aggregate::v3::ClusterConfig as AggregateCluster;
    use envoy_types::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as NewFamily;
    use envoy_types::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
    use envoy_types::pb::google::protobuf as google;
    use google::Any;
    use pb::cluster::{ClusterDiscoveryType, DiscoveryType};
    use prost::Message;

    type Core = envoy_types::pb::envoy::config::core::v3::Address;

    fn address(host: &str) -> Core {
        use envoy_types::pb::envoy::config::core::v3 as core;
        Core {
            address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                address: host.into(),
                port_specifier: Some(core::socket_address::PortSpecifier::PortValue(80)),
                ..Default::default()
            })),
        }
    }

    fn cluster(kind: DiscoveryType, hosts: &[&str]) -> pb::Cluster {
        let lb_endpoints = hosts
            .iter()
            .map(|host| endpoint::LbEndpoint {
                host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
                    address: Some(address(host)),
                    ..Default::default()
                })),
                ..Default::default()
            })
            .collect();
        pb::Cluster {
            name: "c".into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind.into())),
            load_assignment: Some(endpoint::ClusterLoadAssignment {
                cluster_name: "c".into(),
                endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints, ..Default::default() }],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn decode(message: &pb::Cluster) -> Result<ClusterConfig, Vec<ConfigError>> {
        Context::default().run(|cx| ClusterConfig::from_message(cx, message))
    }

    #[test]
    fn only_names_that_dns_resolves_are_hashed() {
        let decode = |kind| {
            let hashing = pb::cluster::common_lb_config::ConsistentHashingLbConfig {
                use_hostname_for_hashing: true,
                ..Default::default()
            };
            let common =
                pb::cluster::CommonLbConfig { consistent_hashing_lb_config: Some(hashing), ..Default::default() };
            decode(&pb::Cluster { common_lb_config: Some(common), ..cluster(kind, &["10.0.0.1"]) })
        };
        assert!(decode(DiscoveryType::StrictDns).is_ok());
        let text = "common_lb_config: Cannot use hostname for consistent hashing loadbalancing for cluster of type: \
                    'envoy.cluster.static'";
        assert_eq!(errors(decode(DiscoveryType::Static)), [text]);
    }

    #[test]
    fn the_defaults_are_envoys() {
        let cluster = decode(&cluster(DiscoveryType::Static, &["10.0.0.1"])).unwrap();
        assert_eq!(cluster.connect_timeout, Duration::from_secs(5));
        assert_eq!(cluster.per_connection_buffer_limit_bytes, 1024 * 1024);
        assert_eq!(cluster.lb_policy, LbPolicy::RoundRobin);
        assert_eq!(cluster.lb_common, CommonLbConfig::default());
        assert_eq!(cluster.circuit_breakers, CircuitBreakers::default());
        assert_eq!(cluster.http, UpstreamHttpOptions::default());
        assert_eq!(cluster.dns, DnsConfig::default());
        assert_eq!(cluster.endpoints.localities[0].endpoints[0].weight, 1);
        assert!(!cluster.added_via_api);
    }

    #[test]
    fn a_static_cluster_has_no_host_names() {
        assert_eq!(
            errors(decode(&cluster(DiscoveryType::Static, &["foo.com"]))),
            [
                "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: malformed IP address: foo.com. Consider setting resolver_name or setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS'"
            ]
        );
        assert!(decode(&cluster(DiscoveryType::StrictDns, &["foo.com"])).is_ok());
    }

    #[test]
    fn logical_dns_has_a_single_endpoint() {
        let text =
            "load_assignment: LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint";
        assert_eq!(errors(decode(&cluster(DiscoveryType::LogicalDns, &["a", "b"]))), [text]);
        assert_eq!(errors(decode(&cluster(DiscoveryType::LogicalDns, &[]))), [text]);
        assert!(decode(&cluster(DiscoveryType::LogicalDns, &["a"])).is_ok());
    }

    #[test]
    fn eds_needs_its_config_and_no_other_type_has_one() {
        assert_eq!(
            errors(decode(&cluster(DiscoveryType::Eds, &[]))),
            ["cannot create an EDS cluster without an EDS config"]
        );
        let config = Some(pb::cluster::EdsClusterConfig::default());
        let eds = pb::Cluster { eds_cluster_config: config.clone(), ..cluster(DiscoveryType::Eds, &[]) };
        assert!(
            matches!(decode(&eds).unwrap().discovery, Discovery::Eds { service_name, .. } if &*service_name == "c")
        );
        let fixed = pb::Cluster { eds_cluster_config: config, ..cluster(DiscoveryType::Static, &[]) };
        assert_eq!(errors(decode(&fixed)), ["eds_cluster_config: eds_cluster_config set in a non-EDS cluster"]);
    }

    #[test]
    fn original_dst_brings_its_own_policy_and_hosts() {
        let message = cluster(DiscoveryType::OriginalDst, &["10.0.0.1"]);
        assert_eq!(
            errors(decode(&message)),
            [
                "lb_policy: cluster: LB policy ROUND_ROBIN is not valid for Cluster type ORIGINAL_DST. Only 'CLUSTER_PROVIDED' is allowed with cluster type 'ORIGINAL_DST'",
                "load_assignment: ORIGINAL_DST clusters must have no load assignment configured",
            ]
        );
    }

    fn typed(options: &upstream::HttpProtocolOptions) -> pb::Cluster {
        let any = Any { type_url: format!("type.googleapis.com/{HTTP_OPTIONS}"), value: options.encode_to_vec() };
        pb::Cluster {
            typed_extension_protocol_options: [(HTTP_OPTIONS.to_owned(), any)].into(),
            ..cluster(DiscoveryType::Static, &[])
        }
    }

    #[test]
    fn options_of_what_is_no_extension_are_refused() {
        let named = |name: &str| pb::Cluster {
            typed_extension_protocol_options: [(name.to_owned(), Any::default())].into(),
            ..cluster(DiscoveryType::Static, &[])
        };
        assert!(decode(&named("envoy.filters.network.thrift_proxy")).is_ok());
        assert_eq!(
            errors(decode(&named("some.name"))),
            [
                "typed_extension_protocol_options[\"some.name\"]: Didn't find a registered network or http filter or protocol options implementation for name: 'some.name'"
            ]
        );
    }

    #[test]
    fn explicit_http2_is_http2() {
        use upstream::http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config};
        let http2 = envoy_types::pb::envoy::config::core::v3::Http2ProtocolOptions {
            max_concurrent_streams: Some(google::UInt32Value { value: 7 }),
            ..Default::default()
        };
        let message = typed(&upstream::HttpProtocolOptions {
            upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
                protocol_config: Some(explicit_http_config::ProtocolConfig::Http2ProtocolOptions(http2)),
            })),
            ..Default::default()
        });
        let http = decode(&message).unwrap().http;
        assert_eq!((http.protocol, http.http2.max_concurrent_streams), (UpstreamProtocol::Http2, 7));
    }

    #[test]
    fn the_automatic_protocol_needs_tls() {
        use upstream::http_protocol_options::UpstreamProtocolOptions;
        let message = typed(&upstream::HttpProtocolOptions {
            upstream_protocol_options: Some(UpstreamProtocolOptions::AutoConfig(Default::default())),
            ..Default::default()
        });
        assert_eq!(errors(decode(&message)), ["ALPN configured for cluster c which has a non-ALPN transport socket"]);
    }

    #[test]
    fn the_deprecated_http2_options_still_choose_http2() {
        let mut message =
            pb::Cluster { http2_protocol_options: Some(Default::default()), ..cluster(DiscoveryType::Static, &[]) };
        assert_eq!(decode(&message).unwrap().http.protocol, UpstreamProtocol::Http2);
        message.http_protocol_options = Some(Default::default());
        assert_eq!(
            errors(decode(&message)),
            [
                "cluster: Both HTTP1 and HTTP2 options may only be configured with non-default 'protocol_selection' values"
            ]
        );
        message.protocol_selection = pb::cluster::ClusterProtocolSelection::UseDownstreamProtocol.into();
        assert_eq!(decode(&message).unwrap().http.protocol, UpstreamProtocol::UseDownstream);
    }

    #[test]
    fn max_requests_per_connection_of_the_options_goes_before_the_clusters() {
        use envoy_types::pb::envoy::config::core::v3::HttpProtocolOptions;
        let mut message = typed(&upstream::HttpProtocolOptions {
            common_http_protocol_options: Some(HttpProtocolOptions {
                max_requests_per_connection: Some(google::UInt32Value { value: 5 }),
                ..Default::default()
            }),
            ..Default::default()
        });
        message.max_requests_per_connection = Some(google::UInt32Value { value: 9 });
        assert_eq!(decode(&message).unwrap().http.max_requests_per_connection, Some(5));
    }

    #[test]
    fn the_newer_dns_cluster_carries_its_settings() {
        let config = DnsCluster {
            dns_refresh_rate: Some(google::Duration { seconds: 7, nanos: 0 }),
            dns_lookup_family: NewFamily::V4Only.into(),
            all_addresses_in_single_endpoint: true,
            ..Default::default()
        };
        let any = Any {
            type_url: "type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster".into(),
            value: config.encode_to_vec(),
        };
        let kind = pb::cluster::CustomClusterType { name: "envoy.cluster.dns".into(), typed_config: Some(any) };
        let message = pb::Cluster {
            cluster_discovery_type: Some(ClusterDiscoveryType::ClusterType(kind)),
            ..cluster(DiscoveryType::Static, &["a.example"])
        };
        let cluster = decode(&message).unwrap();
        assert_eq!(cluster.discovery, Discovery::LogicalDns);
        assert_eq!((cluster.dns.refresh_rate.as_secs(), cluster.dns.family), (7, DnsLookupFamily::V4Only));
    }

    #[test]
    fn an_aggregate_cluster_names_others_and_leaves_picking_to_them() {
        let config = AggregateCluster { clusters: vec!["a".into(), "b".into()] };
        let any = Any {
            type_url: "type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig".into(),
            value: config.encode_to_vec(),
        };
        let kind = pb::cluster::CustomClusterType { name: "envoy.clusters.aggregate".into(), typed_config: Some(any) };
        let mut message = pb::Cluster {
            cluster_discovery_type: Some(ClusterDiscoveryType::ClusterType(kind)),
            ..cluster(DiscoveryType::Static, &[])
        };
        assert_eq!(
            errors(decode(&message)),
            [
                "lb_policy: cluster manager: cluster provided LB not specified but cluster 'c' provided one. Check cluster documentation."
            ]
        );
        message.lb_policy = pb::cluster::LbPolicy::ClusterProvided.into();
        assert_eq!(
            decode(&message).unwrap().discovery,
            Discovery::Aggregate { clusters: ["a".into(), "b".into()].into() }
        );
    }

    #[test]
    fn a_failure_refresh_maximum_below_its_base_is_an_error() {
        let rate = pb::cluster::RefreshRate {
            base_interval: Some(google::Duration { seconds: 5, nanos: 0 }),
            max_interval: Some(google::Duration { seconds: 1, nanos: 0 }),
        };
        let message = pb::Cluster { dns_failure_refresh_rate: Some(rate), ..cluster(DiscoveryType::StrictDns, &["a"]) };
        assert_eq!(
            errors(decode(&message)),
            [
                "dns_failure_refresh_rate: dns_failure_refresh_rate must have max_interval greater than or equal to the base_interval"
            ]
        );
    }

    #[test]
    fn the_first_threshold_of_a_priority_counts() {
        let threshold = |connections, priority| pb::circuit_breakers::Thresholds {
            priority,
            max_connections: Some(google::UInt32Value { value: connections }),
            ..Default::default()
        };
        let breakers = pb::CircuitBreakers {
            thresholds: vec![threshold(1, 0), threshold(2, 0), threshold(3, 1)],
            ..Default::default()
        };
        let message = pb::Cluster { circuit_breakers: Some(breakers), ..cluster(DiscoveryType::Static, &[]) };
        let breakers = decode(&message).unwrap().circuit_breakers;
        assert_eq!((breakers.default.max_connections, breakers.high.max_connections), (1, 3));
        assert_eq!(breakers.high.max_pending_requests, 1024);
    }

    #[test]
    fn a_raw_buffer_is_plain_text_and_other_sockets_are_left_to_the_registry() {
        use envoy_types::pb::envoy::config::core::v3::{TransportSocket, transport_socket::ConfigType};
        let with = |name: &str| {
            let any = Any { type_url: format!("x/envoy.extensions.transport_sockets.{name}"), value: vec![] };
            let socket = TransportSocket { name: "t".into(), config_type: Some(ConfigType::TypedConfig(any)) };
            decode(&pb::Cluster { transport_socket: Some(socket), ..cluster(DiscoveryType::Static, &[]) }).unwrap()
        };
        let plain = with("raw_buffer.v3.RawBuffer");
        assert!(plain.tls.is_none() && plain.transport_socket.is_none());
        assert!(with("tls.v3.UpstreamTlsContext").tls.is_some());
        assert!(with("tap.v3.Tap").transport_socket.is_some());
    }

    #[test]
    fn a_cluster_from_an_api_says_so() {
        let message = cluster(DiscoveryType::Static, &[]);
        assert!(ClusterConfig::decode(&message, &mut Context::default()).unwrap().added_via_api);
    }
}
