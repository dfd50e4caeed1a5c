//! As [`super::samples`], for listeners, core types, TCP proxies and access logs: samples are whole bootstraps.

use prost::Message as _;

use super::effects::mistakes;
use super::samples::sample;
use crate::bootstrap::BootstrapConfig;
use crate::decode::Context;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;

/// Listeners, each the only one of its bootstrap; `FILTERS` stands for a TCP proxy.
const LISTENERS: &[&str] = &[
    "{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 1}}, filter_chains: [{filters: FILTERS}],
      additional_addresses: [{address: {socket_address: {address: 127.0.0.2, port_value: 1}}, tcp_keepalive: {},
        socket_options: {socket_options: [{level: 1, name: 2, int_value: 3, type: {stream: {}}}]}}],
      tcp_keepalive: {keepalive_time: 1}, socket_options: [{level: 1, name: 2, int_value: 3, type: {datagram: {}}}, {level: 1, name: 2, int_value: 3, type: {stream: {}}}]}",
    "{name: l, address: {socket_address: {address: '::', port_value: 1}}, filter_chains: [{filters: FILTERS}]}",
    "{name: l, address: {pipe: {path: /p}}, deprecated_v1: {}, filter_chains: [{filters: FILTERS, name: a, filter_chain_match: {server_names: [a],
        prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}, transport_socket: {name: r, typed_config: {
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}]}",
    "{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 1}}, filter_chains: [{filters: FILTERS}], listener_filters: [
      {name: a, filter_disabled: {or_match: {rules: [{any_match: true}, {not_match: {destination_port_range: {start: 1, end: 9}}}]}},
        typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}},
      {name: b, filter_disabled: {and_match: {rules: [{any_match: true}, {destination_port_range: {start: 1, end: 9}}]}}, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}},
      {name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}},
      {name: d, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol,
        rules: [{tlv_type: 2, on_tlv_present: {metadata_namespace: ns, key: k}}], pass_through_tlvs: {match_type: INCLUDE, tlv_type: [3]}}}]}",
    "{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 1}}, filter_chains: [{filters: [{name: s, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig, port_value: 1,
      dns_cache_config: {name: a}}}, {name: t, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: c}}]}]}",
    // Connection managers: protocol options.
    "{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 1}}, filter_chains: [{filters: [{name: h, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: s,
      http_protocol_options: {header_key_format: {proper_case_words: {}}, accept_http_10: true},
      http2_protocol_options: {custom_settings_parameters: [{identifier: 16, value: 5}], connection_keepalive: {interval: 1s, timeout: 1s, interval_jitter: {value: 5}}},
      common_http_protocol_options: {}, scheme_header_transformation: {scheme_to_overwrite: http},
      route_config: {response_headers_to_add: [{header: {key: a, value: b}}], virtual_hosts: [{name: v, domains: ['*'], routes: [
        {match: {prefix: /, runtime_fraction: {default_value: {numerator: 3}, runtime_key: k}},
         direct_response: {status: 200, body: {inline_string: x}}}]}]}}}]}]}",
    "{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 1}}, filter_chains: [{filters: [{name: h, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: s,
      codec_type: HTTP1, http_protocol_options: {header_key_format: {stateful_formatter: {name: p, typed_config: {
        '@type': type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig}}}},
      local_reply_config: {body_format: {json_format: {a: b}, json_format_options: {}, content_type: a}},
      route_config: {}}}]}]}",
    "{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 1}}, filter_chains: [{filters: [{name: h, typed_config: {
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: s,
      local_reply_config: {body_format: {text_format_source: {inline_string: a}}},
      route_config: {}}}]}]}",
];

/// Fields of a TCP proxy.
const TCP_PROXIES: &[&str] = &[
    "cluster: c, metadata_match: {filter_metadata: {envoy.lb: {a: b}}}, access_log_options: {}, tunneling_config: {hostname: h, headers_to_add: [{header: {key: a, value: b}}]}",
    "cluster: c, on_demand: {odcds_config: {ads: {}, resource_api_version: V3}, timeout: 3s}",
    "cluster: c, hash_policy: [{source_ip: {}}], backoff_options: {base_interval: 1s, max_interval: 2s}, max_downstream_connection_duration: 3s,
      max_downstream_connection_duration_jitter_percentage: {value: 5}, upstream_connect_mode: ON_DOWNSTREAM_DATA, max_early_data_bytes: 5,
      check_drain_close: true, access_log_options: {flush_access_log_on_start: true}, tunneling_config: {hostname: h,
        propagate_response_headers: true, propagate_response_trailers: true, request_id_header: a, request_id_metadata_key: b,
        request_id_extension: {typed_config: {'@type': type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig}},
        formatters: [{name: m, typed_config: {'@type': type.googleapis.com/envoy.extensions.formatter.metadata.v3.Metadata}}]}",
    "cluster: c, hash_policy: [{filter_state: {key: k}}]",
    "weighted_clusters: {clusters: [{name: c, weight: 3, metadata_match: {filter_metadata: {envoy.lb: {a: b}}}}]}",
];

/// Access logs of a TCP proxy.
const ACCESS_LOGS: &[&str] = &[
    "{name: a, typed_config: {'@type': TYPE.file.v3.FileAccessLog, path: p, log_format: {text_format_source: {inline_string: x}}}}",
    "{name: a, typed_config: {'@type': TYPE.file.v3.FileAccessLog, path: p, log_format: {json_format: {a: b}, json_format_options: {}}}}",
    "{name: a, typed_config: {'@type': TYPE.stream.v3.StdoutAccessLog, log_format: {text_format_source: {inline_string: x}}}}",
    "{name: a, typed_config: {'@type': TYPE.stream.v3.StderrAccessLog, log_format: {text_format_source: {inline_string: x}}}}",
    "{name: a, typed_config: {'@type': TYPE.grpc.v3.HttpGrpcAccessLogConfig, common_config: {log_name: l, transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: c}}}}}",
    "{name: a, filter: {status_code_filter: {comparison: {op: GE, value: {default_value: 400, runtime_key: k}}}}, typed_config: {'@type': TYPE.stream.v3.StdoutAccessLog}}",
    "{name: a, filter: {duration_filter: {comparison: {op: GE, value: {default_value: 400, runtime_key: k}}}}, typed_config: {'@type': TYPE.stream.v3.StdoutAccessLog}}",
    "{name: a, filter: {not_health_check_filter: {}}, typed_config: {'@type': TYPE.stream.v3.StdoutAccessLog}}",
    "{name: a, filter: {traceable_filter: {}}, typed_config: {'@type': TYPE.stream.v3.StdoutAccessLog}}",
    "{name: a, filter: {runtime_filter: {runtime_key: k, percent_sampled: {numerator: 4}}}, typed_config: {'@type': TYPE.stream.v3.StdoutAccessLog}}",
    "{name: a, filter: {and_filter: {filters: [{traceable_filter: {}}, {or_filter: {filters: [{traceable_filter: {}}, {response_flag_filter: {flags: [NR]}}]}}]}}, typed_config: {'@type': TYPE.stream.v3.StdoutAccessLog}}",
    "{name: a, filter: {header_filter: {header: {name: a, string_match: {exact: b}}}}, typed_config: {'@type': TYPE.stream.v3.StdoutAccessLog}}",
    "{name: a, filter: {grpc_status_filter: {statuses: [OK]}}, typed_config: {'@type': TYPE.stream.v3.StdoutAccessLog}}",
    "{name: a, filter: {extension_filter: {name: e, typed_config: {'@type': type.googleapis.com/google.protobuf.Empty}}}, typed_config: {'@type': TYPE.stream.v3.StdoutAccessLog}}",
    "{name: a, filter: {metadata_filter: {matcher: {filter: f, path: [{key: k}], value: {string_match: {exact: a}}}, match_if_key_not_found: false}}, typed_config: {'@type': TYPE.stream.v3.StdoutAccessLog}}",
    "{name: a, filter: {log_type_filter: {types: [TcpConnectionEnd]}}, typed_config: {'@type': TYPE.stream.v3.StdoutAccessLog}}",
];

/// Whole bootstraps: where core types stand elsewhere.
const BOOTSTRAPS: &[&str] = &[
    "{dynamic_resources: {cds_config: {path_config_source: {path: /p, watched_directory: {path: /d}}}}}",
    "{node: {id: a, cluster: b, metadata: {a: b}, locality: {region: r}, user_agent_build_version: {version: {major_number: 1}},
       extensions: [{name: e, version: {}}], listening_addresses: [{pipe: {path: /p}}], dynamic_parameters: {x: {params: {a: b}}}}}",
    "{static_resources: {clusters: [{name: c, type: STATIC, upstream_bind_config: {local_address_selector: {name: s, typed_config: {
       '@type': type.googleapis.com/envoy.config.upstream.local_address_selector.v3.DefaultLocalAddressSelector}},
       source_address: {address: 127.0.0.1, port_value: 0, network_namespace_filepath: /no/such/namespace}}}]}}",
    "{dns_resolution_config: {resolvers: [{socket_address: {address: 127.0.0.1, port_value: 53}}], dns_resolver_options: {}}}",
    "{typed_dns_resolver_config: {name: dns, typed_config: {'@type': type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig,
       resolvers: [{socket_address: {address: 127.0.0.1, port_value: 53}}], dns_resolver_options: {}}}}",
    "{static_resources: {clusters: [{name: c, type: STATIC, transport_socket: {name: t, typed_config: {
       '@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}},
       upstream_connection_options: {tcp_keepalive: {}},
       upstream_bind_config: {source_address: {address: 127.0.0.1, port_value: 0}, extra_source_addresses: [{address: {address: '::1', port_value: 0}, socket_options: {}}]},
       typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, upstream_http_protocol_options: {},
        common_http_protocol_options: {}, explicit_http_config: {http_protocol_options: {}}}}}]}}",
    "{static_resources: {clusters: [{name: c, type: STATIC, load_assignment: {cluster_name: c, endpoints: [{metadata: {}, locality: {region: r},
       lb_endpoints: [{metadata: {filter_metadata: {envoy.lb: {a: b}}}, endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]},
       upstream_bind_config: {source_address: {address: 127.0.0.1, port_value: 0}},
       lb_policy: LEAST_REQUEST, least_request_lb_config: {active_request_bias: {default_value: 2, runtime_key: k}}}]}}",
    "{static_resources: {clusters: [{name: c, type: STATIC, transport_socket: {name: t, typed_config: {
       '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {validation_context: {
         trusted_ca: {filename: /ca, watched_directory: {path: /d}}}}}}}]}}",
];

/// Fields of the decoded configuration that nothing uses yet.
const CARRIED: &[&str] = &[
    "envoy.config.core.v3.Address.envoy_internal_address",
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TunnelingConfig.formatters",
];

/// Done fields that only name things for people: what an extension is, its type says.
const NAMES: &[&str] = &[
    "envoy.config.core.v3.SocketOption.description",
    "envoy.config.core.v3.TransportSocket.name",
    "envoy.config.core.v3.TypedExtensionConfig.name",
    "envoy.config.listener.v3.Filter.name",
    "envoy.config.listener.v3.ListenerFilter.name",
];

#[test]
fn what_the_table_says_of_listeners_logs_and_core_types_is_true() {
    let tcp = |fields: &str| {
        format!(
            "[{{name: t, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, {fields}}}}}]"
        )
    };
    let cluster = "clusters: [{name: c, type: STATIC}]";
    let listener = |text: &str, filters: &str| {
        format!("{{static_resources: {{{cluster}, listeners: [{}]}}}}", text.replace("FILTERS", filters))
    };
    let listeners = LISTENERS.iter().map(|text| listener(text, &tcp("cluster: c")));
    let proxies = TCP_PROXIES.iter().map(|fields| listener(LISTENERS[1], &tcp(fields)));
    let logs = ACCESS_LOGS.iter().map(|log| {
        let log = log.replace("TYPE", "type.googleapis.com/envoy.extensions.access_loggers");
        listener(LISTENERS[1], &tcp(&format!("cluster: c, access_log: [{log}]")))
    });
    let texts: Vec<String> =
        listeners.chain(proxies).chain(logs).chain(BOOTSTRAPS.iter().map(|text| (*text).to_owned())).collect();
    let areas = ["Listeners and listener filters", "Core types", "TCP proxy", "Access logs"];
    let mut found = mistakes_of_bootstraps(&areas, &texts, CARRIED);
    for name in NAMES {
        let expected = format!("{name} has no effect");
        assert!(found.contains(&expected), "{name} has an effect");
        found.retain(|mistake| *mistake != expected);
    }
    assert_eq!(found, Vec::<String>::new());
}

/// Mistakes of `areas` with whole bootstraps as samples.
pub(super) fn mistakes_of_bootstraps(areas: &[&str], texts: &[String], carried: &[&str]) -> Vec<String> {
    let samples: Vec<_> = texts.iter().map(|text| sample("envoy.config.bootstrap.v3.Bootstrap", text)).collect();
    // They are made from whole messages, whatever is read of them.
    let fingerprint = regex::Regex::new("fingerprint: [0-9]+").unwrap();
    let decode = |bytes: &[u8]| {
        let message = Bootstrap::decode(bytes).unwrap_or_default();
        // The message itself is kept for the configuration dump.
        let mut cx = Context::default();
        cx.encoded = "kept".into();
        let text = format!("{:?}", cx.run(|cx| BootstrapConfig::from_message(cx, &message)));
        fingerprint.replace_all(&text, "").into_owned()
    };
    for (sample, source) in samples.iter().zip(texts) {
        let text = decode(&sample.encode_to_vec());
        // Some are there for what is refused in them.
        assert!(!text.starts_with("Err") || text.contains("not implemented"), "{source}: {text}");
    }
    mistakes(areas, &samples, carried, &decode)
}
