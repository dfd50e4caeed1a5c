//! `Cluster` decoded: how its parts go together. Most parts have files of their own.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;

use super::dns::dns_config;
use super::http_options::{HTTP_OPTIONS, http_options};
use super::transport_sockets::{socket_match, socket_matcher, transport_socket};
use super::{
    BindConfig, CircuitBreakers, ClusterConfig, ClusterLoadAssignment, CommonLbConfig, Discovery, HappyEyeballs,
    HealthCheckConfig, HealthCheckKind, LbPolicy, OutlierDetectionConfig, PreconnectPolicy, TcpKeepalive,
    UpstreamProtocol, UpstreamSocket, ZoneAwareConfig, discovery, dynamic_forward_proxy,
};
use crate::address::{Address, EndpointAddress};
use crate::bootstrap::StatsMatcher;
use crate::decode::{Context, json, u32_value};
use crate::diagnostics::ConfigError;
use crate::extensions::{type_of, unregistered};
use crate::listener::IpVersion;

/// Soft limit of a connection's buffers unless configured, bytes.
pub(crate) const DEFAULT_BUFFER_LIMIT: u32 = 1024 * 1024;

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
        if let Some(config) = &message.upstream_config {
            cx.at("upstream_config", |cx| check_upstream(cx, config));
        }
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
fn check_upstream(cx: &mut Context, message: &core::TypedExtensionConfig) {
    const GENERIC: [&str; 3] = [
        "envoy.extensions.upstreams.http.generic.v3.GenericConnectionPoolProto",
        "envoy.extensions.upstreams.http.http.v3.HttpConnectionPoolProto",
        "envoy.extensions.upstreams.tcp.generic.v3.GenericConnectionPoolProto",
    ];
    // Envoy finds out with the first request.
    let kind = type_of(message);
    if kind.starts_with("envoy.extensions.upstreams.") && !GENERIC.contains(&kind) {
        cx.error(format!("upstream '{kind}' is not implemented"));
    } else if !GENERIC.contains(&kind) {
        cx.error(unregistered(&message.name, kind));
    }
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
#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cluster::{DnsConfig, UpstreamHttpOptions};
    use crate::decode::tests::errors;
    use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
    use envoy_types::pb::envoy::extensions::clusters::aggregate::v3::ClusterConfig as AggregateCluster;
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

    pub(in crate::cluster) fn cluster(kind: DiscoveryType, hosts: &[&str]) -> pb::Cluster {
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

    pub(in crate::cluster) fn decode(message: &pb::Cluster) -> Result<ClusterConfig, Vec<ConfigError>> {
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
