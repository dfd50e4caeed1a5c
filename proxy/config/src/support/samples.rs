//! Configurations that together contain every message of an area; see [`super::effects`].

use prost::Message as _;
use prost_reflect::DynamicMessage;

use super::effects::mistakes;
use crate::cluster::ClusterConfig;
use crate::decode::Context;
use crate::descriptors;
use crate::ingest::{self, Syntax};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;

const CLUSTERS: &[&str] = &[
    // Everything that a cluster may hold.
    "{name: c, type: STATIC, connect_timeout: 1s,
      circuit_breakers: {thresholds: [{retry_budget: {budget_percent: {value: 30}}}], per_host_thresholds: [{max_connections: 3}]},
      common_lb_config: {locality_weighted_lb_config: {}},
      upstream_connection_options: {tcp_keepalive: {}, happy_eyeballs_config: {}},
      transport_socket_matches: [{name: m, match: {a: b}, transport_socket: {name: envoy.transport_sockets.raw_buffer}}],
      preconnect_policy: {preconnect_enabled_metadata: {filter: f, path: [{key: k}], value: {present_match: true}}},
      load_assignment: {cluster_name: c, policy: {drop_overloads: [{category: a, drop_percentage: {numerator: 3}}]},
        named_endpoints: {x: {address: {socket_address: {address: 127.0.0.3, port_value: 3}}}},
        endpoints: [{locality: {zone: z}, lb_endpoints: [{endpoint: {hostname: h, health_check_config: {},
          address: {socket_address: {address: 127.0.0.1, port_value: 1}},
          additional_addresses: [{address: {socket_address: {address: 127.0.0.2, port_value: 2}}}]}}]}]}}",
    "{name: c, type: STATIC, common_lb_config: {zone_aware_lb_config: {}},
      load_assignment: {cluster_name: c, named_endpoints: {x: {address: {socket_address: {address: 127.0.0.3, port_value: 3}}}},
        endpoints: [{lb_endpoints: [{endpoint_name: x}]}]}}",
    "{name: c, type: STATIC,
      load_assignment: {cluster_name: c, endpoints: [{load_balancer_endpoints: {lb_endpoints: [
        {endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}}]}}",
    "{name: c, type: STATIC,
      load_assignment: {cluster_name: c, endpoints: [{leds_cluster_locality_config: {leds_config: {ads: {}}}}]}}",
    "{name: c, type: STATIC, common_lb_config: {consistent_hashing_lb_config: {}}, lb_policy: RING_HASH, ring_hash_lb_config: {}}",
    "{name: c, type: STATIC, common_lb_config: {consistent_hashing_lb_config: {}}, lb_policy: MAGLEV, maglev_lb_config: {table_size: 11}}",
    "{name: c, type: STATIC, lb_policy: LEAST_REQUEST, least_request_lb_config: {active_request_bias: {}, slow_start_config: {slow_start_window: 9s, aggression: {}, min_weight_percent: {}}}}",
    "{name: c, type: STATIC, lb_policy: ROUND_ROBIN, round_robin_lb_config: {slow_start_config: {slow_start_window: 9s, aggression: {}, min_weight_percent: {}}}}",
    "{name: c, type: STATIC, lb_subset_config: {subset_selectors: [{keys: [a, b]}, {keys: [a, b], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [a]}]}}",
    "{name: c, type: EDS, eds_cluster_config: {}}",
    "{name: c, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, original_dst_lb_config: {use_http_header: true, metadata_key: {key: a, path: [{key: b}]}}}",
    "{name: c, cluster_type: {name: envoy.clusters.dns, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster, dns_failure_refresh_rate: {base_interval: 1s}}}}",
    "{name: c, type: STRICT_DNS, connect_timeout: 1s, dns_failure_refresh_rate: {base_interval: 2s, max_interval: 4s}}",
    "{name: c, type: STATIC, http2_protocol_options: {}}",
    "{name: c, type: STATIC, transport_socket_matches: [{name: a, transport_socket: {name: envoy.transport_sockets.raw_buffer}}],
      transport_socket_matcher: {matcher_list: {matchers: [
        {predicate: {single_predicate: {value_match: {exact: b}, input: {name: i, typed_config: {
          '@type': type.googleapis.com/envoy.extensions.matching.common_inputs.transport_socket.v3.EndpointMetadataInput, filter: f, path: [{key: k}]}}}},
         on_match: {action: {name: act, typed_config: {
          '@type': type.googleapis.com/envoy.extensions.matching.common_inputs.transport_socket.v3.TransportSocketNameAction, name: a}}}},
        {predicate: {single_predicate: {value_match: {exact: b}, input: {name: i, typed_config: {
          '@type': type.googleapis.com/envoy.extensions.matching.common_inputs.transport_socket.v3.LocalityMetadataInput, filter: f, path: [{key: k}]}}}},
         on_match: {action: {name: act, typed_config: {
          '@type': type.googleapis.com/envoy.extensions.matching.common_inputs.transport_socket.v3.TransportSocketNameAction, name: x}}}}]}},
      load_assignment: {cluster_name: c, endpoints: [{metadata: {filter_metadata: {a: {b: c}}}, lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]}}",
    "{name: c, type: STATIC, outlier_detection: {}}",
    "{name: c, type: STATIC, transport_socket: {name: p, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport,
      config: {pass_through_tlvs: {match_type: INCLUDE, tlv_type: [3]}, added_tlvs: [{type: 4, value: YQ==}, {type: 5, format_string: {text_format: a}}]},
      transport_socket: {name: envoy.transport_sockets.raw_buffer}}},
      load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}},
        metadata: {typed_filter_metadata: {envoy.transport_sockets.proxy_protocol: {
          '@type': type.googleapis.com/envoy.config.core.v3.PerHostConfig, added_tlvs: [{type: 6, value: YQ==}]}}}}]}]}}",
    "{name: c, type: STATIC, health_checks: [{timeout: 1s, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1,
      tls_options: {}, event_logger: [{name: e, typed_config: {
        '@type': type.googleapis.com/envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink, event_log_path: p}}],
      http_health_check: {path: /, method: POST, send: {text: '61'}, receive: [{text: '62'}],
        expected_statuses: [{start: 200, end: 300}], service_name_matcher: {exact: x}}}]}",
    "{name: c, type: STATIC, health_checks: [{tcp_health_check: {send: {text: '61'}, receive: [{binary: YQ==}], proxy_protocol_config: {}}}]}",
    "{name: c, type: STATIC, http2_protocol_options: {}, health_checks: [{grpc_health_check: {}}]}",
    "{name: c, type: STATIC, health_checks: [{custom_health_check: {name: envoy.health_checkers.redis, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.health_checkers.redis.v3.Redis, key: k}}}]}",
    "{name: c, lb_policy: CLUSTER_PROVIDED, cluster_type: {name: envoy.clusters.aggregate, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [a, b]}}}",
    "{name: c, lb_policy: CLUSTER_PROVIDED, cluster_type: {name: envoy.clusters.dynamic_forward_proxy, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig,
      dns_cache_config: {name: a, dns_cache_circuit_breaker: {}, dns_failure_refresh_rate: {base_interval: 2s, max_interval: 4s}}}}}",
    "{name: c, lb_policy: CLUSTER_PROVIDED, cluster_type: {name: envoy.clusters.dynamic_forward_proxy, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, sub_clusters_config: {dns_cluster_config: {}}}}}",
    "{name: c, lb_policy: CLUSTER_PROVIDED, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {
      '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http_protocol_options: {}}}},
      cluster_type: {name: envoy.clusters.dynamic_forward_proxy, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig,
      allow_insecure_cluster_options: true, dns_cache_config: {name: a}}}}",
    "{name: c, cluster_type: {name: other.cluster}}",
    "{name: c, cluster_type: {name: other.cluster}, load_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided}}}]}}",
    // Protocol options.
    "{name: c, type: STATIC, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {
      '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
      explicit_http_config: {http_protocol_options: {}}, common_http_protocol_options: {}}}}",
    "{name: c, type: STATIC, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {
      '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
      use_downstream_protocol_config: {}}}}",
    "{name: c, type: STATIC, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {
      '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
      auto_config: {}}}}",
    "{name: c, type: STATIC, track_cluster_stats: {}, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {
      '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
      explicit_http_config: {http_protocol_options: {}}, request_mirror_policies: [{cluster: m}],
      hash_policy: [{header: {header_name: a}}], retry_policy: {retry_on: 5xx},
      outlier_detection: {error_matcher: {or_match: {rules: [{any_match: true}, {not_match: {and_match: {rules: [
        {any_match: true}, {http_response_headers_match: {headers: [{name: a, string_match: {exact: b}}]}}]}}}]}}},
      http_filters: [{name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec}}]}}}",
    "{name: c, type: STATIC, typed_extension_protocol_options: {envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions: {
      '@type': type.googleapis.com/envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions}}}",
    // Policies as extensions.
    "{name: c, type: STATIC, load_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin,
      slow_start_config: {slow_start_window: 9s, aggression: {}, min_weight_percent: {}}, locality_lb_config: {zone_aware_lb_config: {force_local_zone: {}}}}}}]}}",
    "{name: c, type: STATIC, load_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest,
      slow_start_config: {slow_start_window: 9s, aggression: {}, min_weight_percent: {}}, locality_lb_config: {locality_weighted_lb_config: {}}}}}]}}",
    "{name: c, type: STATIC, load_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random,
      locality_lb_config: {zone_aware_lb_config: {}}}}}]}}",
    "{name: c, type: STATIC, load_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash,
      consistent_hashing_lb_config: {}}}}]}}",
    "{name: c, type: STATIC, load_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.maglev.v3.Maglev,
      consistent_hashing_lb_config: {}}}}]}}",
    "{name: c, type: STATIC, load_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash}}}]}}",
    "{name: c, type: STATIC, load_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality,
      endpoint_picking_policy: {policies: [{typed_extension_config: {name: p, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin}}}]}}}}]}}",
    "{name: c, type: STATIC, load_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost,
      override_host_sources: [{header: a}, {metadata: {key: a, path: [{key: b}]}}],
      fallback_policy: {policies: [{typed_extension_config: {name: p, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random}}}]}}}}]}}",
    "{name: c, type: STATIC, load_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin,
      enable_oob_load_report: true, oob_reporting_config: {},
      slow_start_config: {slow_start_window: 9s, aggression: {}, min_weight_percent: {}}}}}]}}",
    "{name: c, type: STATIC, load_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.subset.v3.Subset,
      subset_selectors: [{keys: [a, b]}, {keys: [a, b], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [a]}],
      subset_lb_policy: {policies: [{typed_extension_config: {name: p, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random}}}]}}}}]}}",
];

/// Fields of the decoded configuration that nothing uses yet.
const CARRIED: &[&str] = &[
    "envoy.config.cluster.v3.Cluster.upstream_config",
    "envoy.config.common.matcher.v3.MatchPredicate.http_request_generic_body_match",
    "envoy.config.common.matcher.v3.MatchPredicate.http_request_headers_match",
    "envoy.config.common.matcher.v3.MatchPredicate.http_request_trailers_match",
    "envoy.config.common.matcher.v3.MatchPredicate.http_response_generic_body_match",
    "envoy.config.common.matcher.v3.MatchPredicate.http_response_trailers_match",
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig.http3_protocol_options",
];

pub(super) fn sample(name: &str, text: &str) -> DynamicMessage {
    let descriptor = descriptors::message(name).expect("the message is known");
    let parsed = ingest::parse(&descriptor, text, Syntax::Yaml, 0, false);
    assert!(parsed.errors.is_empty(), "{text}: {:?}", parsed.errors);
    DynamicMessage::decode(descriptor, parsed.bytes.as_slice()).expect("what was encoded can be decoded")
}

#[test]
fn what_the_table_says_of_clusters_is_true() {
    let samples: Vec<_> = CLUSTERS.iter().map(|text| sample("envoy.config.cluster.v3.Cluster", text)).collect();
    let decode = |bytes: &[u8]| {
        let message = Cluster::decode(bytes).unwrap_or_default();
        format!("{:?}", Context::default().run(|cx| ClusterConfig::from_message(cx, &message)))
    };
    let mut found = mistakes(&["Clusters and endpoints"], &samples, CARRIED, &decode);
    // What it is, the type of its configuration says.
    let named = "envoy.config.core.v3.HealthCheck.CustomHealthCheck.name has no effect";
    assert!(found.iter().any(|mistake| mistake == named), "the name has an effect");
    found.retain(|mistake| mistake != named);
    assert_eq!(found, Vec::<String>::new());
}
