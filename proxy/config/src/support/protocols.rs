//! As [`super::everything`], for the HTTP connection manager, routes, matchers, TLS, discovery and the bootstrap itself.

use super::everything::mistakes_of_bootstraps;

const HCM: &str =
    "'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// Fields of connection managers.
const MANAGERS: &[&str] = &[
    "route_config: {}, http_filters: [{name: r, typed_config: {'@type': type.googleapis.com/google.protobuf.Empty}}],
     upgrade_configs: [{upgrade_type: websocket}], set_current_client_cert_details: {}",
    "route_config: {}, internal_address_config: {}, access_log_options: {}, proxy_status_config: {}, forward_proto_config: {},
     request_id_extension: {typed_config: {'@type': EXT.request_id.uuid.v3.UuidRequestIdConfig}}",
    "route_config: {}, local_reply_config: {mappers: [{status_code: 404, filter: {status_code_filter: {comparison: {op: GE, value: {default_value: 400, runtime_key: k}}}}}]}",
    "route_config: {}, original_ip_detection_extensions: [{name: c, typed_config: {'@type': EXT.http.original_ip_detection.custom_header.v3.CustomHeaderConfig, header_name: x-ip}}]",
    "route_config: {}, original_ip_detection_extensions: [{name: c, typed_config: {'@type': EXT.http.original_ip_detection.xff.v3.XffConfig}}]",
    "route_config: {}, original_ip_detection_extensions: [{name: c, typed_config: {'@type': EXT.http.original_ip_detection.xff.v3.XffConfig, xff_trusted_cidrs: {cidrs: [{address_prefix: 10.0.0.0, prefix_len: 8}]}}}]",
    "route_config: {}, path_normalization_options: {}, early_header_mutation_extensions: [{name: e, typed_config: {
       '@type': EXT.http.early_header_mutation.header_mutation.v3.HeaderMutation, mutations: [{remove: x}]}}]",
    "route_config: {}, http_protocol_options: {header_key_format: {stateful_formatter: {name: p, typed_config: {'@type': EXT.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig}}}}",
    "rds: {route_config_name: r, config_source: {ads: {}}}",
    "route_config: {}, forward_client_cert_matcher: {on_no_match: {action: {name: a, typed_config: {
       '@type': EXT.filters.network.http_connection_manager.v3.HttpConnectionManager.ForwardClientCertConfig, set_current_client_cert_details: {}}}}}",
    "scoped_routes: {name: s, rds_config_source: {ads: {}}, scope_key_builder: {fragments: [
       {header_value_extractor: {name: h, element_separator: ';', element: {separator: '=', key: k}}}, {header_value_extractor: {name: h, element_separator: ';', index: 1}}]},
     scoped_route_configurations_list: {scoped_route_configurations: [{name: a, route_configuration: {}, key: {fragments: [{string_key: s1}, {string_key: s2}]}},
       {name: b, key: {fragments: [{string_key: z}, {string_key: s2}]}, route_configuration: {}}]}}",
    "scoped_routes: {name: s, rds_config_source: {ads: {}}, scope_key_builder: {fragments: [{header_value_extractor: {name: h, index: 0}}]}, scoped_rds: {scoped_rds_config_source: {ads: {}}}}",
];

/// Fields of the decoded connection manager that nothing uses yet.
const CARRIED_OF_MANAGERS: &[&str] = &[
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.append_local_overload",
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.tracing",
    "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig.pack_trace_reason",
];

/// Fields of the decoded bootstrap that nothing uses yet.
const CARRIED_OF_BOOTSTRAP: &[&str] = &[
    "envoy.config.bootstrap.v3.Admin.profile_path",
    "envoy.config.bootstrap.v3.Bootstrap.bootstrap_extensions",
    "envoy.config.bootstrap.v3.Bootstrap.header_prefix",
    "envoy.config.bootstrap.v3.Bootstrap.overload_manager",
    "envoy.config.bootstrap.v3.Bootstrap.stats_sinks",
];

/// Fields of decoded routes that nothing uses yet, or that are refused before they are decoded.
const CARRIED_OF_ROUTES: &[&str] = &[
    "envoy.config.route.v3.Route.decorator",
    "envoy.config.route.v3.RouteAction.RequestMirrorPolicy.trace_sampled",
    "envoy.config.route.v3.RouteAction.early_data_policy",
    "envoy.config.route.v3.RouteAction.include_vh_rate_limits",
    "envoy.config.route.v3.VirtualHost.rate_limits",
    "envoy.config.route.v3.RouteAction.rate_limits",
    "envoy.config.route.v3.RouteConfiguration.metadata",
    "envoy.config.route.v3.RouteConfiguration.route_specifiers",
];

/// Done fields that only name things for people; messages of trees over responses, which stand nowhere yet.
const NAMES_OF_ROUTES: &[&str] = &[
    "envoy.config.route.v3.RetryPolicy.RetryHostPredicate.name has no effect",
    "envoy.config.route.v3.RetryPolicy.RetryPriority.name has no effect",
    "envoy.type.matcher.v3.HttpRequestTrailerMatchInput is in no sample",
    "envoy.type.matcher.v3.HttpResponseHeaderMatchInput is in no sample",
    "envoy.type.matcher.v3.HttpResponseTrailerMatchInput is in no sample",
    "xds.core.v3.TypedExtensionConfig.name has no effect",
];

/// Routes, each the only one of its virtual host.
const ROUTES: &[&str] = &[
    "{match: {prefix: /, grpc: {}, tls_context: {}, headers: [{name: h}], query_parameters: [{name: q}], cookies: [{name: c, string_match: {exact: x}}]}, route: {cluster: c}}",
    "{match: {prefix: /, headers: [{name: h, range_match: {start: 1, end: 9}}, {name: h, string_match: {exact: x}}], query_parameters: [{name: q, string_match: {exact: x}}]}, route: {cluster: c}}",
    "{match: {prefix: /, headers: [{name: h, present_match: false}], query_parameters: [{name: q, present_match: false}]}, route: {cluster: c, internal_redirect_action: HANDLE_INTERNAL_REDIRECT}}",
    "{match: {path: /, filter_state: [{key: k, string_match: {exact: x}}, {key: k, address_match: {ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}}]}, route: {cluster: c}}",
    "{match: {prefix: /, dynamic_metadata: [{filter: f, path: [{key: k}], value: {null_match: {}}}, {filter: f, path: [{key: k}], value: {double_match: {range: {start: 1, end: 2}}}},
       {filter: f, path: [{key: k}], value: {list_match: {one_of: {present_match: true}}}}, {filter: f, path: [{key: k}], value: {or_match: {value_matchers: [{present_match: true}, {string_match: {exact: x}}]}}},
       {filter: f, path: [{key: k}], value: {double_match: {exact: 2}}}]}, route: {cluster: c}}",
    "{match: {connect_matcher: {}}, route: {cluster: c, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {proxy_protocol_config: {}}}]}}",
    "{match: {path_match_policy: {name: m, typed_config: {'@type': EXT.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: '/a/{b}'}}},
      route: {cluster: c, path_rewrite_policy: {name: w, typed_config: {'@type': EXT.path.rewrite.uri_template.v3.UriTemplateRewriteConfig, path_template_rewrite: '/{b}'}}}}",
    "{match: {prefix: /}, redirect: {}}",
    "{match: {prefix: /}, redirect: {regex_rewrite: {pattern: {regex: a}, substitution: b}}}",
    "{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: x}}}",
    "{match: {prefix: /}, non_forwarding_action: {}}",
    "{match: {prefix: /}, filter_action: {}}",
    "{match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: c, weight: 3}, {cluster_header: h, weight: 1}]}}}",
    "{match: {prefix: /}, route: {cluster: c, max_stream_duration: {}, hedge_policy: {}, metadata_match: {filter_metadata: {envoy.lb: {a: b}}},
       internal_redirect_policy: {predicates: [
         {name: a, typed_config: {'@type': EXT.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig, allowed_route_names: [r1]}},
         {name: p, typed_config: {'@type': EXT.internal_redirect.previous_routes.v3.PreviousRoutesConfig}},
         {name: s, typed_config: {'@type': EXT.internal_redirect.safe_cross_scheme.v3.SafeCrossSchemeConfig}}]}}}",
    "{match: {prefix: /}, route: {cluster: c, retry_policy: {retry_on: 5xx, retry_back_off: {base_interval: 1s, max_interval: 5s},
       rate_limited_retry_back_off: {reset_headers: [{name: a}], max_interval: 5s}}}}",
    "{match: {prefix: /}, route: {cluster: c, retry_policy: {retry_on: 5xx,
       retry_priority: {name: p, typed_config: {'@type': EXT.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig, update_frequency: 1}},
       retry_host_predicate: [{name: p, typed_config: {'@type': EXT.retry.host.previous_hosts.v3.PreviousHostsPredicate}},
         {name: o, typed_config: {'@type': EXT.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate}},
         {name: m, typed_config: {'@type': EXT.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig, metadata_match: {filter_metadata: {envoy.lb: {a: b}}}}}]}}}",
    "{match: {prefix: /}, route: {cluster: c, request_mirror_policies: [{cluster: c, request_headers_mutations: [{remove: x}, {append: {header: {key: a, value: b}}},
       {remove_on_match: {key_matcher: {prefix: x}}}]}, {cluster_header: h}]}}",
    "{match: {prefix: /}, route: {cluster: c, hash_policy: [{header: {header_name: h, regex_rewrite: {pattern: {regex: a}, substitution: b}}},
       {cookie: {name: r1, ttl: 3s, attributes: [{name: a, value: b}]}}, {connection_properties: {source_ip: true}}, {query_parameter: {name: q}}, {filter_state: {key: k}}]}}",
    "{match: {prefix: /}, typed_per_filter_config: {f: {'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, config: {'@type': type.googleapis.com/google.protobuf.Empty}}}, route: {cluster: c}}",
    "{match: {prefix: /}, route: {inline_cluster_specifier_plugin: {extension: {name: m, typed_config: {'@type': EXT.router.cluster_specifiers.matcher.v3.MatcherClusterSpecifier, cluster_matcher: {
       on_no_match: {action: {name: a, typed_config: {'@type': EXT.router.cluster_specifiers.matcher.v3.ClusterAction, cluster: c}}}}}}}}}",
];

/// Inputs of trees that choose a cluster.
const INPUTS: &[&str] = &[
    "'@type': EXT.matching.common_inputs.environment_variable.v3.Config, name: HOME",
    "'@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestQueryParamMatchInput, query_param: q",
];

/// Matchers of virtual hosts.
const TREES: &[&str] = &[
    "matcher_list: {matchers: [{predicate: {or_matcher: {predicate: [INPUT_IS_X, {and_matcher: {predicate: [INPUT_IS_X, {not_matcher: INPUT_IS_X}]}}]}}, on_match: ACTION}]}, on_no_match: ACTION",
    "matcher_list: {matchers: [{predicate: {single_predicate: {input: INPUT, custom_match: {name: i, typed_config: {'@type': EXT.matching.input_matchers.ip.v3.Ip, stat_prefix: i,
       cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}}}}, on_match: {matcher: {on_no_match: ACTION}}}]}",
    "matcher_list: {matchers: [{predicate: {single_predicate: {input: INPUT, custom_match: {name: i, typed_config: {'@type': EXT.matching.input_matchers.runtime_fraction.v3.RuntimeFraction,
       runtime_fraction: {default_value: {numerator: 3}, runtime_key: k}}}}}, on_match: ACTION}]}",
    "matcher_list: {matchers: [{predicate: {single_predicate: {input: INPUT, custom_match: {name: i, typed_config: {'@type': EXT.matching.input_matchers.consistent_hashing.v3.ConsistentHashing,
       threshold: 1, modulo: 9}}}}, on_match: ACTION}]}",
    "matcher_tree: {input: INPUT, exact_match_map: {map: {x: ACTION}}}",
    "matcher_tree: {input: INPUT, prefix_match_map: {map: {x: ACTION}}}",
    "matcher_tree: {input: INPUT, custom_match: {name: i, typed_config: {'@type': type.googleapis.com/xds.type.matcher.v3.IPMatcher, range_matchers: [{ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}], on_match: ACTION}]}}}",
    "matcher_tree: {input: INPUT, custom_match: {name: i, typed_config: {'@type': type.googleapis.com/xds.type.matcher.v3.ServerNameMatcher, domain_matchers: [{domains: [a], on_match: ACTION}]}}}",
];

fn fill(text: &str) -> String {
    text.replace("EXT", "type.googleapis.com/envoy.extensions")
}

fn manager(fields: &str) -> String {
    fill(&format!(
        "{{static_resources: {{clusters: [{{name: c, type: STATIC}}], listeners: [{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}},
          filter_chains: [{{filters: [{{name: h, typed_config: {{{HCM}, stat_prefix: s, {fields}}}}}]}}]}}]}}}}"
    ))
}

fn host(fields: &str) -> String {
    manager(&format!("route_config: {{name: rc, virtual_hosts: [{{name: v, domains: ['*'], {fields}}}]}}"))
}

#[test]
fn what_the_table_says_of_connection_managers_is_true() {
    let texts: Vec<String> = MANAGERS.iter().map(|fields| manager(fields)).collect();
    let mut found = mistakes_of_bootstraps(&["HTTP connection manager and HTTP filters"], &texts, CARRIED_OF_MANAGERS);
    // The registry decodes the messages of filters, a floor up.
    found.retain(|mistake| {
        let filters = ["envoy.extensions.filters.http.", "envoy.config.core.v3.KeyValue"];
        !(filters.iter().any(|start| mistake.starts_with(start)) && mistake.ends_with("is in no sample"))
    });
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn what_the_table_says_of_routes_and_matchers_is_true() {
    let routes = ROUTES.iter().map(|route| host(&format!("routes: [{route}]")));
    let input = "{name: i, typed_config: {'@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: h}}";
    let action = "{action: {name: a, typed_config: {'@type': type.googleapis.com/envoy.config.route.v3.Route, match: {prefix: /}, route: {cluster: c}}}}";
    let list = "{action: {name: a, typed_config: {'@type': type.googleapis.com/envoy.config.route.v3.RouteList, routes: [{match: {prefix: /}, route: {cluster: c}}]}}}";
    let is_x = "{single_predicate: {input: INPUT, value_match: {exact: x}}}";
    let trees = TREES
        .iter()
        .map(|tree| tree.replace("INPUT_IS_X", is_x))
        .chain([format!("on_no_match: {list}"), is_x.replace("exact: x", "safe_regex: {google_re2: {}, regex: x}")]);
    let trees = trees.map(|tree| {
        let tree = if tree.starts_with("{single") {
            format!("matcher_list: {{matchers: [{{predicate: {tree}, on_match: ACTION}}]}}")
        } else {
            tree
        };
        host(&format!("matcher: {{{}}}", tree.replace("INPUT", input).replace("ACTION", action)))
    });
    let more = [
        host("virtual_clusters: [{name: a, headers: [{name: ':path', string_match: {exact: /}}]}], retry_policy: {retry_on: 5xx}, hedge_policy: {}, routes: []"),
        manager("route_config: {name: rc, vhds: {config_source: {api_config_source: {api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: c}}]}}}, cluster_specifier_plugins: [{extension: {name: m, typed_config: {'@type': EXT.router.cluster_specifiers.matcher.v3.MatcherClusterSpecifier, cluster_matcher: {}}}}], request_mirror_policies: [{cluster: c}]}"),
        manager("route_config: {name: rc, virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {inline_cluster_specifier_plugin: {is_optional: true, extension: {name: m, typed_config: {'@type': type.googleapis.com/google.protobuf.Empty}}}}}]}]}"),
        "{node: {user_agent_build_version: {version: {major_number: 1}}, dynamic_parameters: {x: {params: {a: b}}}}, stats_config: {stats_matcher: {inclusion_list: {patterns: [{exact: a}]}}}}".to_owned(),
        "{static_resources: {clusters: [{name: c, type: STATIC, common_lb_config: {healthy_panic_threshold: {value: 3}}}],
          listeners: [{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 1}}, listener_filters: [{name: i, filter_disabled: {destination_port_range: {start: 1, end: 2}}}], filter_chains: [{}]}]}}".to_owned(),
        manager("route_config: {}, original_ip_detection_extensions: [{name: c, typed_config: {'@type': EXT.http.original_ip_detection.custom_header.v3.CustomHeaderConfig, header_name: x-ip, reject_with_status: {code: 404}}}]"),
        manager("scoped_routes: {name: s, rds_config_source: {api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: c}}]}}, scope_key_builder: {fragments: [{header_value_extractor: {name: h, index: 0}}]},
          scoped_route_configurations_list: {scoped_route_configurations: [{name: a, route_configuration: {}, key: {fragments: [{string_key: s1}]}}]}}"),
    ];
    let inputs = INPUTS.iter().map(|input| {
        let action = "{action: {name: a, typed_config: {'@type': EXT.router.cluster_specifiers.matcher.v3.ClusterAction, cluster: c}}}";
        host(&format!(
            "routes: [{{match: {{prefix: /}}, route: {{inline_cluster_specifier_plugin: {{extension: {{name: m, typed_config: {{
               '@type': EXT.router.cluster_specifiers.matcher.v3.MatcherClusterSpecifier, cluster_matcher: {{matcher_tree: {{
                 input: {{name: i, typed_config: {{{input}}}}}, exact_match_map: {{map: {{x: {action}}}}}}}}}}}}}}}}}}}]"
        ))
    });
    let texts: Vec<String> = routes.chain(trees).chain(inputs).chain(more).collect();
    let areas = ["Routes", "Matchers and other shared types"];
    let mut found = mistakes_of_bootstraps(&areas, &texts, CARRIED_OF_ROUTES);
    for expected in NAMES_OF_ROUTES {
        assert!(found.iter().any(|mistake| mistake == expected), "{expected}");
    }
    found.retain(|mistake| !NAMES_OF_ROUTES.contains(&mistake.as_str()));
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn what_the_table_says_of_tls_is_true() {
    let downstream = |fields: &str| {
        format!(
            "{{static_resources: {{listeners: [{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}, filter_chains: [{{
              transport_socket: {{name: t, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, {fields}}}}}}}]}}],
              secrets: [{{name: s, tls_certificate: {{certificate_chain: {{inline_string: a}}, private_key: {{inline_string: b}}}}}}, {{name: v, validation_context: {{}}}},
                {{name: k, session_ticket_keys: {{keys: [{{inline_string: a}}]}}}}, {{name: g, generic_secret: {{secret: {{inline_string: a}}, secrets: {{}}}}}}]}}}}"
        )
    };
    let upstream = |fields: &str| {
        format!(
            "{{static_resources: {{clusters: [{{name: c, type: STATIC, transport_socket: {{name: t, typed_config: {{
              '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, {fields}}}}}}}]}}}}"
        )
    };
    let certificate = "tls_certificates: [{certificate_chain: {filename: /c}, private_key: {filename: /k}, watched_directory: {path: /d}}]";
    let texts = [
        downstream(&format!(
            "common_tls_context: {{{certificate}, tls_params: {{}}, key_log: {{path: /log}}, validation_context: {{
               trusted_ca: {{filename: /ca, watched_directory: {{path: /d}}}}, match_typed_subject_alt_names: [{{san_type: DNS, matcher: {{exact: a}}}}, {{san_type: OTHER_NAME, oid: '1.2', matcher: {{exact: a}}}}]}}}},
             session_ticket_keys: {{keys: [{{inline_string: a}}]}}"
        )),
        downstream(&format!(
            "common_tls_context: {{{certificate}, combined_validation_context: {{default_validation_context: {{system_root_certs: {{}}}},
               validation_context_sds_secret_config: {{name: v}}}}}}, session_ticket_keys_sds_secret_config: {{name: k}}"
        )),
        downstream("common_tls_context: {tls_certificate_sds_secret_configs: [{name: s, sds_config: {ads: {}}}], validation_context_sds_secret_config: {name: v, sds_config: {ads: {}}}}"),
        upstream("common_tls_context: {validation_context: {trusted_ca: {filename: /ca}, watched_directory: {path: /d}, crl: {filename: /crl}}}, sni: a"),
    ];
    assert_eq!(mistakes_of_bootstraps(&["TLS"], &texts, &[]), Vec::<String>::new());
}

#[test]
fn what_the_table_says_of_discovery_is_true() {
    let api = |fields: &str| format!("{{api_config_source: {{api_type: GRPC, transport_api_version: V3, {fields}}}}}");
    let cds = |source: &str| {
        format!(
            "{{static_resources: {{clusters: [{{name: c, type: STATIC}}]}}, dynamic_resources: {{cds_config: {source}}}}}"
        )
    };
    let texts = [
        cds("{path_config_source: {path: /p, watched_directory: {path: /d}}}"),
        cds("{path: /p}"),
        cds("{ads: {}, authorities: [{name: a}]}").replace("dynamic_resources: {", "dynamic_resources: {lds_config: {ads: {}}, ads_config: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: c}}]}, "),
        cds(&api("rate_limit_settings: {max_tokens: 3}, grpc_services: [{envoy_grpc: {cluster_name: c, retry_policy: {retry_back_off: {base_interval: 1s}}}}]")),
        cds(&api("grpc_services: [{google_grpc: {target_uri: 'a:1', stat_prefix: s, channel_credentials: {ssl_credentials: {root_certs: {filename: /r}}}}}]")),
        cds(&api("grpc_services: [{google_grpc: {target_uri: 'a:1', stat_prefix: s, channel_credentials: {ssl_credentials: {}}, call_credentials: [{access_token: t}]}}]")),
        cds(&api("grpc_services: [{google_grpc: {target_uri: 'a:1', stat_prefix: s, channel_credentials: {local_credentials: {}}}}]")),
        cds("{api_config_source: {api_type: REST, transport_api_version: V3, cluster_names: [c], refresh_delay: 3s}}"),
        "{static_resources: {clusters: [{name: c, type: EDS, eds_cluster_config: {eds_config: {self: {}}}}]}}".to_owned(),
        "{dynamic_resources: {cds_resources_locator: 'file:///c', lds_resources_locator: 'file:///l'}}".to_owned(),
        manager("rds: {route_config_name: r, config_source: {ads: {}}}, http_filters: [{name: f, config_discovery: {config_source: {ads: {}}, type_urls: [envoy.extensions.filters.http.router.v3.Router]}}]"),
        manager("scoped_routes: {name: s, rds_config_source: {ads: {}}, scope_key_builder: {fragments: [{header_value_extractor: {name: h, index: 0}}]}, scoped_rds: {scoped_rds_config_source: {ads: {}}, srds_resources_locator: 'file:///s'}}"),
    ];
    let mut found = mistakes_of_bootstraps(&["Discovery (xDS)"], &texts, &[]);
    // They come from servers.
    let answers = [
        "envoy.service.discovery.v3.DiscoveryResponse",
        "envoy.config.core.v3.ControlPlane",
        "envoy.service.runtime.v3.Runtime",
    ];
    found.retain(|mistake| !answers.iter().any(|name| *mistake == format!("{name} is in no sample")));
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn what_the_table_says_of_the_bootstrap_is_true() {
    let texts = [
        "{admin: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}, cluster_manager: {outlier_detection: {}}, static_resources: {}}".to_owned(),
        "{stats_config: {stats_matcher: {inclusion_list: {patterns: [{exact: a}]}}, stats_tags: [{tag_name: a, fixed_value: b}],
           histogram_bucket_settings: [{match: {prefix: a}, buckets: [1, 2]}]}}".to_owned(),
        "{layered_runtime: {layers: [{name: a, disk_layer: {symlink_root: /r}}, {name: b, rtds_layer: {name: r1, rtds_config: {ads: {}}}}, {name: c, admin_layer: {}}, {name: d, static_layer: {a: 1}}]}}".to_owned(),
        "{application_log_config: {log_format: {text_format: '%v'}}}".to_owned(),
    ];
    let areas = ["Bootstrap, admin, runtime, statistics"];
    assert_eq!(mistakes_of_bootstraps(&areas, &texts, CARRIED_OF_BOOTSTRAP), Vec::<String>::new());
}
