//! Extensions that are no filters: parts of clusters, routes, matchers and discovery, decoded where they are used.
//!
//! Nothing is made from this list. Control planes are told it with the node, beside what the registry has; a test holds it
//! against what Envoy tells, and against the support table.

/// Names and messages of one category of Envoy's; no message where the configuration is an enum or a field.
pub type Category = (&'static str, &'static [(&'static str, &'static str)]);

/// All of them.
pub const PARTS: &[Category] = &[
    (
        "envoy.clusters",
        &[
            ("envoy.cluster.eds", ""),
            ("envoy.cluster.logical_dns", ""),
            ("envoy.cluster.original_dst", "envoy.extensions.clusters.original_dst.v3.OriginalDstCluster"),
            ("envoy.cluster.static", ""),
            ("envoy.cluster.strict_dns", ""),
        ],
    ),
    (
        "envoy.config_subscription",
        &[
            ("envoy.config_subscription.ads", ""),
            ("envoy.config_subscription.ads_collection", ""),
            ("envoy.config_subscription.aggregated_grpc_collection", ""),
            ("envoy.config_subscription.delta_grpc", ""),
            ("envoy.config_subscription.delta_grpc_collection", ""),
            ("envoy.config_subscription.filesystem", ""),
            ("envoy.config_subscription.filesystem_collection", ""),
            ("envoy.config_subscription.grpc", ""),
            ("envoy.config_subscription.rest", ""),
        ],
    ),
    (
        "envoy.formatter",
        &[
            ("envoy.formatter.metadata", "envoy.extensions.formatter.metadata.v3.Metadata"),
            ("envoy.formatter.req_without_query", "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery"),
        ],
    ),
    (
        "envoy.health_check.event_sinks",
        &[(
            "envoy.health_check.event_sink.file",
            "envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink",
        )],
    ),
    (
        "envoy.health_checkers",
        &[
            ("envoy.health_checkers.grpc", "envoy.config.core.v3.HealthCheck.GrpcHealthCheck"),
            ("envoy.health_checkers.http", "envoy.config.core.v3.HealthCheck.HttpHealthCheck"),
            ("envoy.health_checkers.redis", "envoy.extensions.health_checkers.redis.v3.Redis"),
            ("envoy.health_checkers.tcp", "envoy.config.core.v3.HealthCheck.TcpHealthCheck"),
        ],
    ),
    (
        "envoy.http.early_header_mutation",
        &[(
            "envoy.http.early_header_mutation.header_mutation",
            "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        )],
    ),
    (
        "envoy.http.forward_client_cert_details",
        &[(
            "forward_client_cert",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.ForwardClientCertConfig",
        )],
    ),
    (
        "envoy.http.original_ip_detection",
        &[
            (
                "envoy.http.original_ip_detection.custom_header",
                "envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig",
            ),
            ("envoy.http.original_ip_detection.xff", "envoy.extensions.http.original_ip_detection.xff.v3.XffConfig"),
        ],
    ),
    (
        "envoy.http.stateful_header_formatters",
        &[(
            "envoy.http.stateful_header_formatters.preserve_case",
            "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig",
        )],
    ),
    (
        "envoy.internal_redirect_predicates",
        &[
            (
                "envoy.internal_redirect_predicates.allow_listed_routes",
                "envoy.extensions.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig",
            ),
            (
                "envoy.internal_redirect_predicates.previous_routes",
                "envoy.extensions.internal_redirect.previous_routes.v3.PreviousRoutesConfig",
            ),
            (
                "envoy.internal_redirect_predicates.safe_cross_scheme",
                "envoy.extensions.internal_redirect.safe_cross_scheme.v3.SafeCrossSchemeConfig",
            ),
        ],
    ),
    (
        "envoy.matching.action",
        &[
            (
                "envoy.matching.action.transport_socket.name",
                "envoy.extensions.matching.common_inputs.transport_socket.v3.TransportSocketNameAction",
            ),
            ("envoy.matching.actions.format_string", "envoy.config.core.v3.SubstitutionFormatString"),
        ],
    ),
    (
        "envoy.matching.common_inputs",
        &[(
            "envoy.matching.common_inputs.environment_variable",
            "envoy.extensions.matching.common_inputs.environment_variable.v3.Config",
        )],
    ),
    ("envoy.matching.http.custom_matchers", CUSTOM_MATCHERS),
    ("envoy.matching.http.input", NETWORK_INPUTS),
    (
        "envoy.matching.http.input",
        &[
            (
                "envoy.matching.inputs.dynamic_metadata",
                "envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput",
            ),
            ("envoy.matching.inputs.request_headers", "envoy.type.matcher.v3.HttpRequestHeaderMatchInput"),
            ("envoy.matching.inputs.request_trailers", "envoy.type.matcher.v3.HttpRequestTrailerMatchInput"),
            ("envoy.matching.inputs.response_headers", "envoy.type.matcher.v3.HttpResponseHeaderMatchInput"),
            ("envoy.matching.inputs.response_trailers", "envoy.type.matcher.v3.HttpResponseTrailerMatchInput"),
            (
                "envoy.matching.inputs.status_code_class_input",
                "envoy.type.matcher.v3.HttpResponseStatusCodeClassMatchInput",
            ),
            ("envoy.matching.inputs.status_code_input", "envoy.type.matcher.v3.HttpResponseStatusCodeMatchInput"),
            ("query_params", "envoy.type.matcher.v3.HttpRequestQueryParamMatchInput"),
        ],
    ),
    (
        "envoy.matching.input_matchers",
        &[
            (
                "envoy.matching.matchers.consistent_hashing",
                "envoy.extensions.matching.input_matchers.consistent_hashing.v3.ConsistentHashing",
            ),
            ("envoy.matching.matchers.ip", "envoy.extensions.matching.input_matchers.ip.v3.Ip"),
            (
                "envoy.matching.matchers.runtime_fraction",
                "envoy.extensions.matching.input_matchers.runtime_fraction.v3.RuntimeFraction",
            ),
        ],
    ),
    ("envoy.matching.network.custom_matchers", CUSTOM_MATCHERS),
    ("envoy.matching.network.input", NETWORK_INPUTS),
    (
        "envoy.matching.network.input",
        &[
            (
                "envoy.matching.inputs.application_protocol",
                "envoy.extensions.matching.common_inputs.network.v3.ApplicationProtocolInput",
            ),
            (
                "envoy.matching.inputs.transport_protocol",
                "envoy.extensions.matching.common_inputs.network.v3.TransportProtocolInput",
            ),
        ],
    ),
    (
        "envoy.matching.transport_socket.input",
        &[
            (
                "envoy.matching.inputs.endpoint_metadata",
                "envoy.extensions.matching.common_inputs.transport_socket.v3.EndpointMetadataInput",
            ),
            (
                "envoy.matching.inputs.locality_metadata",
                "envoy.extensions.matching.common_inputs.transport_socket.v3.LocalityMetadataInput",
            ),
        ],
    ),
    (
        "envoy.network.dns_resolver",
        &[(
            "envoy.network.dns_resolver.cares",
            "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        )],
    ),
    (
        "envoy.path.match",
        &[(
            "envoy.path.match.uri_template.uri_template_matcher",
            "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
        )],
    ),
    (
        "envoy.path.rewrite",
        &[(
            "envoy.path.rewrite.uri_template.uri_template_rewriter",
            "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig",
        )],
    ),
    ("envoy.regex_engines", &[("envoy.regex_engines.google_re2", "envoy.extensions.regex_engines.v3.GoogleRE2")]),
    ("envoy.request_id", &[("envoy.request_id.uuid", "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig")]),
    (
        "envoy.retry_host_predicates",
        &[
            (
                "envoy.retry_host_predicates.omit_canary_hosts",
                "envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate",
            ),
            (
                "envoy.retry_host_predicates.omit_host_metadata",
                "envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig",
            ),
            (
                "envoy.retry_host_predicates.previous_hosts",
                "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            ),
        ],
    ),
    (
        "envoy.retry_priorities",
        &[(
            "envoy.retry_priorities.previous_priorities",
            "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
        )],
    ),
    (
        "envoy.router.cluster_specifier_plugin",
        &[(
            "envoy.router.cluster_specifier_plugin.matcher",
            "envoy.extensions.router.cluster_specifiers.matcher.v3.MatcherClusterSpecifier",
        )],
    ),
    (
        "envoy.upstream.local_address_selector",
        &[(
            "envoy.upstream.local_address_selector.default_local_address_selector",
            "envoy.config.upstream.local_address_selector.v3.DefaultLocalAddressSelector",
        )],
    ),
    (
        "envoy.upstream_options",
        &[
            (
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            ),
            (
                "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions",
                "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions",
            ),
        ],
    ),
];

/// Of trees that match connections and of those that match requests.
const CUSTOM_MATCHERS: &[(&str, &str)] = &[
    ("envoy.matching.custom_matchers.domain_matcher", "xds.type.matcher.v3.ServerNameMatcher"),
    ("envoy.matching.custom_matchers.ip_range_matcher", "xds.type.matcher.v3.IPMatcher"),
];

/// What both may ask of a connection.
const NETWORK_INPUTS: &[(&str, &str)] = &[
    ("envoy.matching.inputs.destination_ip", "envoy.extensions.matching.common_inputs.network.v3.DestinationIPInput"),
    (
        "envoy.matching.inputs.destination_port",
        "envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput",
    ),
    (
        "envoy.matching.inputs.direct_source_ip",
        "envoy.extensions.matching.common_inputs.network.v3.DirectSourceIPInput",
    ),
    ("envoy.matching.inputs.dns_san", "envoy.extensions.matching.common_inputs.ssl.v3.DnsSanInput"),
    ("envoy.matching.inputs.filter_state", "envoy.extensions.matching.common_inputs.network.v3.FilterStateInput"),
    (
        "envoy.matching.inputs.network_namespace",
        "envoy.extensions.matching.common_inputs.network.v3.NetworkNamespaceInput",
    ),
    ("envoy.matching.inputs.server_name", "envoy.extensions.matching.common_inputs.network.v3.ServerNameInput"),
    ("envoy.matching.inputs.source_ip", "envoy.extensions.matching.common_inputs.network.v3.SourceIPInput"),
    ("envoy.matching.inputs.source_port", "envoy.extensions.matching.common_inputs.network.v3.SourcePortInput"),
    ("envoy.matching.inputs.source_type", "envoy.extensions.matching.common_inputs.network.v3.SourceTypeInput"),
    ("envoy.matching.inputs.subject", "envoy.extensions.matching.common_inputs.ssl.v3.SubjectInput"),
    ("envoy.matching.inputs.uri_san", "envoy.extensions.matching.common_inputs.ssl.v3.UriSanInput"),
];
