//! `RouteAction` and what hangs on it: cluster choice, rewrites, hash and retry policies, mirrors.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;
use envoy_types::pb::envoy::extensions::router::cluster_specifiers::matcher::v3::{
    ClusterAction, MatcherClusterSpecifier,
};
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::google::protobuf::Any;
use pb::route_action as action;

use super::{
    ClusterSpecifier, ConnectConfig, HashPolicy, HashPolicyKind, HostRewrite, MaxStreamDuration, MirrorPolicy,
    PathMatch, PathRewrite, PerFilterConfig, RateLimit, RegexRewrite, RetryPolicy, RouteAction, RouteUpgrade,
    UriTemplateRewrite, WeightedClusterEntry, WeightedClusters, internal_redirect,
};
use crate::decode::{Context, bool_value, json, lower, type_name, u32_value};
use crate::extensions::type_of;
use crate::header_mutation::{HeaderMutation, HeaderMutations};
use crate::listener::ProxyProtocolVersion;
use crate::matchers::{RuntimeFraction, unanchored};
use crate::matching::{MatchInput, MatchTree};

/// What a route inherits from the levels above it.
pub(super) struct Inherited<'a> {
    /// Whether references to clusters are checked.
    pub(super) validate_clusters: bool,
    /// `cluster_specifier_plugins` of the route configuration.
    pub(super) plugins: &'a [pb::ClusterSpecifierPlugin],
    /// `hedge_policy` of the virtual host.
    pub(super) hedge_policy: Option<&'a pb::HedgePolicy>,
    /// Limit of direct response bodies.
    pub(super) max_body: u32,
}

impl RouteAction {
    pub(super) fn decode(
        cx: &mut Context,
        message: &pb::RouteAction,
        inherited: &Inherited<'_>,
        path: &PathMatch,
    ) -> Option<Self> {
        let hedge = message.hedge_policy.as_ref().or(inherited.hedge_policy);
        // Every field is decoded before the first failure returns, so that no error hides another.
        let mut cluster = cluster_specifier(cx, message, inherited);
        let path_rewrite = path_rewrite(cx, message, path);
        let host_rewrite = host_rewrite(cx, message);
        let upgrades = upgrades(cx, &message.upgrade_configs);
        let mirrors = cx.each("request_mirror_policies", &message.request_mirror_policies, |cx, mirror| {
            MirrorPolicy::decode(cx, mirror, inherited.validate_clusters)
        });
        let hash_policy = cx.each("hash_policy", &message.hash_policy, HashPolicy::decode);
        let retry_policy = cx.optional("retry_policy", &message.retry_policy, RetryPolicy::decode);
        let metadata_match = json::metadata_namespace(&message.metadata_match, "envoy.lb");
        if let Some(ClusterSpecifier::Weighted(weighted)) = &mut cluster {
            for entry in &mut weighted.clusters {
                entry.metadata_match = json::merged(metadata_match.as_ref(), entry.metadata_match.take());
            }
        }
        // No request is sent as early data, whatever the policy says; but it has to be one.
        cx.optional("early_data_policy", &message.early_data_policy, |cx, policy| -> Option<()> {
            let any = policy.typed_config.as_ref();
            if any.map_or("", |any| type_name(&any.type_url)) != "envoy.extensions.early_data.v3.DefaultEarlyDataPolicy"
            {
                cx.unregistered(&policy.name, any);
            }
            None
        });
        let max_stream_duration = cx.optional("max_stream_duration", &message.max_stream_duration, |cx, limits| {
            Some(MaxStreamDuration {
                max_stream_duration: cx.duration("max_stream_duration", &limits.max_stream_duration),
                grpc_timeout_header_max: cx.duration("grpc_timeout_header_max", &limits.grpc_timeout_header_max),
                grpc_timeout_header_offset: cx
                    .duration("grpc_timeout_header_offset", &limits.grpc_timeout_header_offset),
            })
        });
        let not_found = match message.cluster_not_found_response_code() {
            action::ClusterNotFoundResponseCode::ServiceUnavailable => 503,
            action::ClusterNotFoundResponseCode::NotFound => 404,
            action::ClusterNotFoundResponseCode::InternalServerError => 500,
        };
        Some(RouteAction {
            cluster_not_found_response_code: not_found,
            metadata_match,
            append_x_forwarded_host: message.append_x_forwarded_host,
            timeout: cx.timeout("timeout", &message.timeout, Some(Duration::from_secs(15))),
            idle_timeout: cx
                .duration("idle_timeout", &message.idle_timeout)
                .map(|timeout| Some(timeout).filter(|timeout| !timeout.is_zero())),
            flush_timeout: cx
                .duration("flush_timeout", &message.flush_timeout)
                .map(|timeout| Some(timeout).filter(|timeout| !timeout.is_zero())),
            retry_policy: retry_policy.map(Arc::new),
            high_priority: message.priority() == core::RoutingPriority::High,
            hash_policy,
            upgrades,
            max_stream_duration,
            request_mirror_policies: mirrors,
            internal_redirect_policy: internal_redirect::decode(cx, message),
            hedge_on_per_try_timeout: hedge.is_some_and(|hedge| hedge.hedge_on_per_try_timeout),
            max_grpc_timeout: cx.duration("max_grpc_timeout", &message.max_grpc_timeout),
            grpc_timeout_offset: cx.duration("grpc_timeout_offset", &message.grpc_timeout_offset),
            rate_limits: cx.each("rate_limits", &message.rate_limits, RateLimit::decode),
            include_vh_rate_limits: bool_value(&message.include_vh_rate_limits).unwrap_or(false),
            cluster: cluster?,
            path_rewrite: path_rewrite?,
            host_rewrite: host_rewrite?,
        })
    }
}

fn cluster_specifier(
    cx: &mut Context,
    message: &pb::RouteAction,
    inherited: &Inherited<'_>,
) -> Option<ClusterSpecifier> {
    use action::ClusterSpecifier as Specifier;
    Some(match message.cluster_specifier.as_ref()? {
        Specifier::Cluster(name) => {
            if inherited.validate_clusters && cx.is_unknown_cluster(name) {
                cx.at("cluster", |cx| cx.unknown_cluster(format!("route: unknown cluster '{name}'"), name));
            }
            ClusterSpecifier::Cluster(cx.cluster_name(name))
        }
        Specifier::ClusterHeader(header) => ClusterSpecifier::Header(lower(header)),
        Specifier::WeightedClusters(weighted) => ClusterSpecifier::Weighted(
            cx.at("weighted_clusters", |cx| WeightedClusters::decode(cx, weighted, inherited.validate_clusters))?,
        ),
        Specifier::ClusterSpecifierPlugin(name) => {
            let named = |plugin: &&pb::ClusterSpecifierPlugin| {
                plugin.extension.as_ref().is_some_and(|extension| extension.name == *name)
            };
            let Some(found) = inherited.plugins.iter().find(named) else {
                cx.error_at("cluster_specifier_plugin", format!("unknown cluster specifier plugin name \"{name}\""));
                return None;
            };
            cx.at("cluster_specifier_plugin", |cx| plugin(cx, found))?
        }
        Specifier::InlineClusterSpecifierPlugin(inline) => {
            cx.at("inline_cluster_specifier_plugin", |cx| plugin(cx, inline))?
        }
    })
}

fn plugin(cx: &mut Context, message: &pb::ClusterSpecifierPlugin) -> Option<ClusterSpecifier> {
    let any = message.extension.as_ref().and_then(|extension| extension.typed_config.as_ref());
    match any.map_or("", |any| type_name(&any.type_url)) {
        "envoy.extensions.router.cluster_specifiers.matcher.v3.MatcherClusterSpecifier" => {
            let tree = cx.at("extension", |cx| cx.at("typed_config", |cx| cluster_tree(cx, any?)))?;
            Some(ClusterSpecifier::Matcher(tree))
        }
        _ if message.is_optional => Some(ClusterSpecifier::Unavailable),
        other => {
            let name = message.extension.as_ref().map_or("", |extension| &extension.name);
            cx.refuse_extension("envoy.router.cluster_specifier_plugin", name, other);
            None
        }
    }
}

fn cluster_tree(cx: &mut Context, any: &Any) -> Option<MatchTree<Arc<str>>> {
    let message: MatcherClusterSpecifier = cx.unpack(any)?;
    cx.required("cluster_matcher", &message.cluster_matcher, |cx, matcher| {
        MatchTree::decode(cx, matcher, &MatchInput::is_of_request, &mut |cx, action| {
            let any = action.typed_config.as_ref();
            cx.at("typed_config", |cx| match any.map_or("", |any| type_name(&any.type_url)) {
                "envoy.extensions.router.cluster_specifiers.matcher.v3.ClusterAction" => {
                    let action: ClusterAction = cx.unpack(any?)?;
                    Some(cx.cluster_name(&action.cluster))
                }
                other => {
                    cx.error(format!("action '{other}' is not implemented: an action is a ClusterAction"));
                    None
                }
            })
        })
    })
}

impl WeightedClusters {
    fn decode(cx: &mut Context, message: &pb::WeightedCluster, validate: bool) -> Option<Self> {
        use pb::weighted_cluster::RandomValueSpecifier;
        let clusters =
            cx.each("clusters", &message.clusters, |cx, entry| WeightedClusterEntry::decode(cx, entry, validate));
        let sum: u64 = clusters.iter().map(|entry| u64::from(entry.weight)).sum();
        let Ok(total) = u32::try_from(sum) else {
            cx.error(format!("The sum of weights of all weighted clusters of route exceeds {}", u32::MAX));
            return None;
        };
        if total == 0 && clusters.len() == message.clusters.len() {
            cx.error("Sum of weights in the weighted_cluster must be greater than 0.");
        }
        let random_value_header = match &message.random_value_specifier {
            Some(RandomValueSpecifier::HeaderName(name)) => Some(lower(name)),
            _ => None,
        };
        let use_hash_policy = match &message.random_value_specifier {
            Some(RandomValueSpecifier::UseHashPolicy(value)) => value.value,
            _ => false,
        };
        Some(WeightedClusters {
            clusters,
            total,
            random_value_header,
            use_hash_policy,
            runtime_key_prefix: message.runtime_key_prefix.as_str().into(),
        })
    }
}

impl WeightedClusterEntry {
    fn decode(cx: &mut Context, message: &pb::weighted_cluster::ClusterWeight, validate: bool) -> Option<Self> {
        use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier;
        match (message.name.is_empty(), message.cluster_header.is_empty()) {
            (true, true) => cx.error("At least one of name or cluster_header need to be specified"),
            (false, false) => cx.error("Only one of name or cluster_header can be specified"),
            _ => {}
        }
        if validate && !message.name.is_empty() && cx.is_unknown_cluster(&message.name) {
            let text = format!("route: unknown weighted cluster '{}'", message.name);
            cx.at("name", |cx| cx.unknown_cluster(text, &message.name));
        }
        Some(WeightedClusterEntry {
            name: cx.cluster_name(&message.name),
            header: (!message.cluster_header.is_empty()).then(|| lower(&message.cluster_header)),
            weight: u32_value(&message.weight).unwrap_or(0),
            headers: HeaderMutations::decode(
                cx,
                &message.request_headers_to_add,
                &message.request_headers_to_remove,
                &message.response_headers_to_add,
                &message.response_headers_to_remove,
            ),
            host_rewrite_literal: message
                .host_rewrite_specifier
                .as_ref()
                .map(|HostRewriteSpecifier::HostRewriteLiteral(host)| host.as_str().into()),
            metadata_match: json::metadata_namespace(&message.metadata_match, "envoy.lb"),
            typed_per_filter_config: PerFilterConfig::decode_map(cx, &message.typed_per_filter_config),
        })
    }
}

fn path_rewrite(cx: &mut Context, message: &pb::RouteAction, path: &PathMatch) -> Option<PathRewrite> {
    let set = [
        !message.prefix_rewrite.is_empty(),
        message.regex_rewrite.is_some(),
        message.path_rewrite_policy.is_some(),
        !message.path_rewrite.is_empty(),
    ];
    if set.iter().filter(|set| **set).count() > 1 {
        cx.error("Specify only one of prefix_rewrite, regex_rewrite or path_rewrite_policy");
        return None;
    }
    if let Some(rewrite) = &message.regex_rewrite {
        return cx.at("regex_rewrite", |cx| RegexRewrite::decode(cx, rewrite)).map(PathRewrite::Regex);
    }
    if let Some(policy) = &message.path_rewrite_policy {
        return cx.at("path_rewrite_policy", |cx| rewrite_policy(cx, policy, path));
    }
    if !message.path_rewrite.is_empty() {
        return Some(PathRewrite::Format(message.path_rewrite.as_str().into()));
    }
    if message.prefix_rewrite.is_empty() {
        return Some(PathRewrite::None);
    }
    if matches!(path, PathMatch::Template(_)) {
        cx.error_at("prefix_rewrite", "Cannot use prefix_rewrite with matcher extension");
        return None;
    }
    Some(PathRewrite::Prefix(message.prefix_rewrite.as_str().into()))
}

fn rewrite_policy(cx: &mut Context, policy: &core::TypedExtensionConfig, path: &PathMatch) -> Option<PathRewrite> {
    let kind = type_of(policy);
    if kind != "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig" {
        cx.refuse_extension("envoy.path.rewrite", &policy.name, kind);
        return None;
    }
    let any = policy.typed_config.as_ref()?;
    let rewrite: UriTemplateRewriteConfig = cx.at("typed_config", |cx| cx.unpack(any))?;
    let PathMatch::Template(template) = path else {
        cx.error("unable to use envoy.path.rewrite.uri_template.uri_template_rewriter extension without envoy.path.match.uri_template.uri_template_matcher extension");
        return None;
    };
    let rewrite =
        cx.at("typed_config", |cx| UriTemplateRewrite::decode(cx, &rewrite.path_template_rewrite, template))?;
    Some(PathRewrite::Template(Box::new(rewrite)))
}

fn host_rewrite(cx: &mut Context, message: &pb::RouteAction) -> Option<HostRewrite> {
    use action::HostRewriteSpecifier as Specifier;
    Some(match &message.host_rewrite_specifier {
        None => HostRewrite::None,
        Some(Specifier::HostRewriteLiteral(host)) => HostRewrite::Literal(host.as_str().into()),
        Some(Specifier::AutoHostRewrite(flag)) if flag.value => HostRewrite::Auto,
        Some(Specifier::AutoHostRewrite(_)) => HostRewrite::None,
        Some(Specifier::HostRewriteHeader(header)) => HostRewrite::Header(lower(header)),
        Some(Specifier::HostRewritePathRegex(rewrite)) => {
            HostRewrite::PathRegex(cx.at("host_rewrite_path_regex", |cx| RegexRewrite::decode(cx, rewrite))?)
        }
        Some(Specifier::HostRewrite(format)) => HostRewrite::Format(format.as_str().into()),
    })
}

impl RegexRewrite {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &matcher::RegexMatchAndSubstitute) -> Option<Self> {
        Some(RegexRewrite {
            pattern: cx.required("pattern", &message.pattern, unanchored)?,
            substitution: message.substitution.as_str().into(),
        })
    }
}

fn upgrades(cx: &mut Context, messages: &[action::UpgradeConfig]) -> Vec<RouteUpgrade> {
    let mut upgrades: Vec<RouteUpgrade> = Vec::with_capacity(messages.len());
    cx.at("upgrade_configs", |cx| {
        for (index, message) in messages.iter().enumerate() {
            let upgrade_type = lower(&message.upgrade_type);
            cx.at_index(index, |cx| {
                if upgrades.iter().any(|known| known.upgrade_type == upgrade_type) {
                    cx.error_at("upgrade_type", format!("Duplicate upgrade {}", message.upgrade_type));
                }
                if message.connect_config.is_some() && !matches!(&*upgrade_type, "connect" | "connect-udp") {
                    cx.error_at(
                        "connect_config",
                        format!("Non-CONNECT upgrade type {} has ConnectConfig", message.upgrade_type),
                    );
                }
            });
            upgrades.push(RouteUpgrade {
                upgrade_type,
                enabled: bool_value(&message.enabled).unwrap_or(true),
                connect_config: message.connect_config.as_ref().map(connect_config),
            });
        }
    });
    upgrades
}

fn connect_config(message: &action::upgrade_config::ConnectConfig) -> ConnectConfig {
    ConnectConfig {
        allow_post: message.allow_post,
        proxy_protocol: message.proxy_protocol_config.as_ref().map(ProxyProtocolVersion::decode),
    }
}

impl MirrorPolicy {
    pub(crate) fn decode(cx: &mut Context, message: &action::RequestMirrorPolicy, validate: bool) -> Option<Self> {
        match (message.cluster.is_empty(), message.cluster_header.is_empty()) {
            (true, true) => {
                cx.error("Exactly one of cluster or cluster_header in request mirror policy need to be specified");
            }
            (false, false) => cx.error(format!(
                "Only one of cluster '{}' or cluster_header '{}' in request mirror policy can be specified",
                message.cluster, message.cluster_header
            )),
            _ => {}
        }
        if validate && !message.cluster.is_empty() && cx.is_unknown_cluster(&message.cluster) {
            let text = format!("route: unknown shadow cluster '{}'", message.cluster);
            cx.at("cluster", |cx| cx.unknown_cluster(text, &message.cluster));
        }
        Some(MirrorPolicy {
            cluster: cx.cluster_name(&message.cluster),
            cluster_header: (!message.cluster_header.is_empty()).then(|| lower(&message.cluster_header)),
            runtime_fraction: message.runtime_fraction.as_ref().map(RuntimeFraction::decode),
            trace_sampled: bool_value(&message.trace_sampled),
            disable_shadow_host_suffix_append: message.disable_shadow_host_suffix_append,
            host_rewrite_literal: (!message.host_rewrite_literal.is_empty())
                .then(|| message.host_rewrite_literal.as_str().into()),
            header_mutations: cx.each(
                "request_headers_mutations",
                &message.request_headers_mutations,
                HeaderMutation::decode,
            ),
            path: cx.path_text(),
        })
    }
}

impl HashPolicy {
    pub(crate) fn decode(cx: &mut Context, message: &action::HashPolicy) -> Option<Self> {
        use action::hash_policy::PolicySpecifier as Specifier;
        let kind = match message.policy_specifier.as_ref()? {
            Specifier::Header(header) => {
                let rewrite =
                    cx.at("header", |cx| cx.optional("regex_rewrite", &header.regex_rewrite, RegexRewrite::decode));
                HashPolicyKind::Header(lower(&header.header_name), rewrite)
            }
            Specifier::Cookie(cookie) => HashPolicyKind::Cookie {
                name: cookie.name.as_str().into(),
                ttl: cx.at("cookie", |cx| cx.duration("ttl", &cookie.ttl)),
                path: cookie.path.as_str().into(),
                attributes: cookie
                    .attributes
                    .iter()
                    .map(|attribute| (attribute.name.as_str().into(), attribute.value.as_str().into()))
                    .collect(),
            },
            // `source_ip: false` yields no hash at all, so that the policy does nothing.
            Specifier::ConnectionProperties(properties) if !properties.source_ip => return None,
            Specifier::ConnectionProperties(_) => HashPolicyKind::SourceIp,
            Specifier::QueryParameter(parameter) => HashPolicyKind::QueryParameter(parameter.name.as_str().into()),
            Specifier::FilterState(state) => HashPolicyKind::FilterState(state.key.as_str().into()),
        };
        Some(HashPolicy { terminal: message.terminal, kind })
    }
}
