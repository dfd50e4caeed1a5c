//! `RouteConfiguration`, virtual hosts, routes and their matches decoded.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use rustc_hash::FxHashSet;

use super::action::Inherited;
use super::{
    DirectResponse, FilterStateMatcher, MetadataMatcher, MirrorPolicy, PathMatch, PerFilterConfig, RateLimit,
    RedirectAction, RedirectPath, RedirectScheme, RegexRewrite, RequireTls, RetryPolicy, Route, RouteAction,
    RouteActionKind, RouteConfiguration, RouteMatch, TlsContextMatch, UriTemplate, VirtualCluster, VirtualHost,
};
use crate::data_source::DataSource;
use crate::decode::{Context, bool_value, json, lower, serialized, sorted, type_name, u32_value, u64_value};
use crate::diagnostics::ConfigError;
use crate::extensions::type_of;
use crate::hcm::BodyFormat;
use crate::header_mutation::HeaderMutations;
use crate::matchers::{CookieMatcher, HeaderMatcher, QueryParameterMatcher, RuntimeFraction, anchored};
use crate::matching::{MatchInput, MatchTree};
use crate::typed_config::TypedConfig;

/// Largest direct response body unless the route configuration says otherwise, bytes.
const DEFAULT_MAX_BODY: u32 = 4096;

impl RouteConfiguration {
    /// Decodes a route configuration that came by RDS: clusters are checked only where it asks for that.
    pub fn decode(message: &pb::RouteConfiguration, cx: &mut Context) -> Result<Self, Vec<ConfigError>> {
        cx.run(|cx| Self::from_message(cx, message, false))
    }

    /// `validate_default` is what `validate_clusters` means when it is not set: true in a static `route_config`.
    pub(crate) fn from_message(
        cx: &mut Context,
        message: &pb::RouteConfiguration,
        validate_default: bool,
    ) -> Option<Self> {
        let validate_clusters = bool_value(&message.validate_clusters).unwrap_or(validate_default);
        let max_body = u32_value(&message.max_direct_response_body_size_bytes).unwrap_or(DEFAULT_MAX_BODY);
        let mut domains = Domains::new(&message.name);
        let virtual_hosts = cx.each("virtual_hosts", &message.virtual_hosts, |cx, host| {
            let inherited = Inherited {
                validate_clusters,
                plugins: &message.cluster_specifier_plugins,
                hedge_policy: host.hedge_policy.as_ref(),
                max_body,
            };
            VirtualHost::decode(cx, host, &inherited, &mut domains)
        });
        Some(RouteConfiguration {
            name: message.name.as_str().into(),
            virtual_hosts,
            internal_only_headers: message.internal_only_headers.iter().map(|name| lower(name)).collect(),
            headers: HeaderMutations::decode(
                cx,
                &message.request_headers_to_add,
                &message.request_headers_to_remove,
                &message.response_headers_to_add,
                &message.response_headers_to_remove,
            ),
            most_specific_header_mutations_wins: message.most_specific_header_mutations_wins,
            validate_clusters,
            typed_per_filter_config: PerFilterConfig::decode_map(cx, &message.typed_per_filter_config),
            max_direct_response_body_size_bytes: max_body,
            ignore_port_in_host_matching: message.ignore_port_in_host_matching,
            ignore_path_parameters_in_path_matching: message.ignore_path_parameters_in_path_matching,
            vhost_header: (!message.vhost_header.is_empty()).then(|| lower(&message.vhost_header)),
            request_mirror_policies: cx.each("request_mirror_policies", &message.request_mirror_policies, |cx, m| {
                MirrorPolicy::decode(cx, m, validate_clusters)
            }),
            vhds: message.vhds.as_ref().map(|vhds| cx.at("vhds", |cx| virtual_hosts_source(cx, vhds))),
            path: cx.path_text(),
        })
    }

    /// Decodes a virtual host that came by VHDS, under the rules of the route configuration that it belongs to: a route
    /// configuration with this virtual host alone. `shell` is that route configuration without virtual hosts and VHDS.
    pub fn decode_virtual_host(
        shell: &pb::RouteConfiguration,
        host: pb::VirtualHost,
        cx: &mut Context,
    ) -> Result<Self, Vec<ConfigError>> {
        let mut alone = shell.clone();
        alone.virtual_hosts = vec![host];
        Self::decode(&alone, cx)
    }
}

/// Where virtual hosts are asked for: only of a server that speaks of changes.
fn virtual_hosts_source(cx: &mut Context, message: &pb::Vhds) -> bytes::Bytes {
    use core::config_source::ConfigSourceSpecifier as Specifier;
    let Some(source) = &message.config_source else { return bytes::Bytes::new() };
    let possible = match &source.config_source_specifier {
        Some(Specifier::ApiConfigSource(api)) => matches!(
            api.api_type(),
            core::api_config_source::ApiType::DeltaGrpc | core::api_config_source::ApiType::AggregatedDeltaGrpc
        ),
        Some(Specifier::Ads(_)) | None => true,
        Some(_) => false,
    };
    if !possible {
        cx.error_at(
            "config_source",
            "vhds: only 'DELTA_GRPC' or 'ADS' (which uses Delta xDS) is supported as a config source.",
        );
    }
    serialized(source)
}

/// The domains seen so far in one route configuration; each may stand once.
struct Domains<'a> {
    route_config: &'a str,
    seen: FxHashSet<Box<str>>,
}

impl<'a> Domains<'a> {
    fn new(route_config: &'a str) -> Self {
        Domains { route_config, seen: FxHashSet::default() }
    }

    fn add(&mut self, cx: &mut Context, domain: &str) -> Box<str> {
        let domain = lower(domain);
        if !self.seen.insert(domain.clone()) {
            cx.error(if &*domain == "*" {
                format!("Only a single wildcard domain is permitted in route {}", self.route_config)
            } else {
                format!(
                    "Only unique values for domains are permitted. Duplicate entry of domain {domain} in route {}",
                    self.route_config
                )
            });
        }
        domain
    }
}

impl VirtualHost {
    fn decode(
        cx: &mut Context,
        message: &pb::VirtualHost,
        inherited: &Inherited<'_>,
        domains: &mut Domains<'_>,
    ) -> Option<Self> {
        use pb::virtual_host::TlsRequirementType;
        let mut routes = cx.each("routes", &message.routes, |cx, route| Route::decode(cx, route, inherited));
        if message.matcher.is_some() && !message.routes.is_empty() {
            cx.error("cannot set both matcher and routes on virtual host");
        }
        let matcher = match &message.matcher {
            Some(matcher) => Some(cx.at("matcher", |cx| route_tree(cx, matcher, inherited, &mut routes))?),
            None => None,
        };
        Some(VirtualHost {
            matcher,
            metadata: json::metadata(&message.metadata),
            name: message.name.as_str().into(),
            domains: cx.each("domains", &message.domains, |cx, domain| Some(domains.add(cx, domain))),
            routes,
            require_tls: match message.require_tls() {
                TlsRequirementType::None => RequireTls::None,
                TlsRequirementType::ExternalOnly => RequireTls::ExternalOnly,
                TlsRequirementType::All => RequireTls::All,
            },
            virtual_clusters: cx.each("virtual_clusters", &message.virtual_clusters, |cx, cluster| {
                Some(VirtualCluster {
                    headers: cx.each("headers", &cluster.headers, HeaderMatcher::decode),
                    name: cluster.name.as_str().into(),
                })
            }),
            headers: HeaderMutations::decode(
                cx,
                &message.request_headers_to_add,
                &message.request_headers_to_remove,
                &message.response_headers_to_add,
                &message.response_headers_to_remove,
            ),
            typed_per_filter_config: PerFilterConfig::decode_map(cx, &message.typed_per_filter_config),
            retry_policy: cx.optional("retry_policy", &message.retry_policy, RetryPolicy::decode).map(Arc::new),
            include_request_attempt_count: message.include_request_attempt_count,
            include_attempt_count_in_response: message.include_attempt_count_in_response,
            include_is_timeout_retry_header: message.include_is_timeout_retry_header,
            per_request_buffer_limit_bytes: u64_value(&message.request_body_buffer_limit)
                .or_else(|| u32_value(&message.per_request_buffer_limit_bytes).map(u64::from)),
            request_mirror_policies: cx.each("request_mirror_policies", &message.request_mirror_policies, |cx, m| {
                MirrorPolicy::decode(cx, m, inherited.validate_clusters)
            }),
            rate_limits: cx.each("rate_limits", &message.rate_limits, RateLimit::decode),
            path: cx.path_text(),
        })
    }
}

/// The matcher tree of a virtual host; the routes of its actions are added to `routes`.
fn route_tree(
    cx: &mut Context,
    message: &Matcher,
    inherited: &Inherited<'_>,
    routes: &mut Vec<Route>,
) -> Option<MatchTree<Range<u32>>> {
    // As in Envoy, routes are found by request headers, and by what is there before them.
    let allowed = |input: &MatchInput| {
        matches!(input, MatchInput::RequestHeader(_) | MatchInput::FilterState(_) | MatchInput::Fixed(_))
    };
    MatchTree::decode_final(cx, message, &allowed, &mut |cx, action| {
        let any = action.typed_config.as_ref();
        let first = routes.len();
        cx.at("typed_config", |cx| match any.map_or("", |any| type_name(&any.type_url)) {
            "envoy.config.route.v3.Route" => {
                let route: pb::Route = cx.unpack(any?)?;
                routes.push(Route::decode(cx, &route, inherited)?);
                Some(())
            }
            "envoy.config.route.v3.RouteList" => {
                let list: pb::RouteList = cx.unpack(any?)?;
                routes.extend(cx.each("routes", &list.routes, |cx, route| Route::decode(cx, route, inherited)));
                Some(())
            }
            other => {
                cx.error(format!("action '{other}' is not implemented: an action is a Route or a RouteList"));
                None
            }
        })?;
        Some(u32::try_from(first).ok()?..u32::try_from(routes.len()).ok()?)
    })
}

impl Route {
    fn decode(cx: &mut Context, message: &pb::Route, inherited: &Inherited<'_>) -> Option<Self> {
        let matches = cx.required("match", &message.r#match, RouteMatch::decode);
        // With a match that failed, the action is still decoded for its own errors.
        let any_path = PathMatch::Prefix("/".into());
        let path = matches.as_ref().map_or(&any_path, |matches| &matches.path);
        let action = action(cx, message, inherited, path);
        Some(Route {
            name: message.name.as_str().into(),
            headers: HeaderMutations::decode(
                cx,
                &message.request_headers_to_add,
                &message.request_headers_to_remove,
                &message.response_headers_to_add,
                &message.response_headers_to_remove,
            ),
            typed_per_filter_config: PerFilterConfig::decode_map(cx, &message.typed_per_filter_config),
            metadata: json::metadata(&message.metadata),
            decorator_operation: message.decorator.as_ref().map(|decorator| decorator.operation.as_str().into()),
            per_request_buffer_limit_bytes: u64_value(&message.request_body_buffer_limit)
                .or_else(|| u32_value(&message.per_request_buffer_limit_bytes).map(u64::from)),
            stat_prefix: (!message.stat_prefix.is_empty()).then(|| message.stat_prefix.as_str().into()),
            path: cx.path_text(),
            matches: matches?,
            action: action?,
        })
    }
}

fn action(
    cx: &mut Context,
    message: &pb::Route,
    inherited: &Inherited<'_>,
    path: &PathMatch,
) -> Option<RouteActionKind> {
    use pb::route::Action;
    Some(match &message.action {
        Some(Action::Route(route)) => {
            RouteActionKind::Route(Box::new(cx.at("route", |cx| RouteAction::decode(cx, route, inherited, path))?))
        }
        Some(Action::Redirect(redirect)) => {
            RouteActionKind::Redirect(Box::new(cx.at("redirect", |cx| RedirectAction::decode(cx, redirect, path))?))
        }
        Some(Action::DirectResponse(response)) => RouteActionKind::DirectResponse(
            cx.at("direct_response", |cx| DirectResponse::decode(cx, response, inherited.max_body))?,
        ),
        // No filter reads what a `filter_action` says: as in Envoy it leads nowhere.
        Some(Action::NonForwardingAction(_) | Action::FilterAction(_)) => RouteActionKind::NonForwarding,
        None => {
            cx.error("Field 'action' is missing: one of route, redirect, direct_response, non_forwarding_action");
            return None;
        }
    })
}

impl RouteMatch {
    fn decode(cx: &mut Context, message: &pb::RouteMatch) -> Option<Self> {
        let path = path_match(cx, message);
        Some(RouteMatch {
            case_sensitive: bool_value(&message.case_sensitive).unwrap_or(true),
            runtime_fraction: message.runtime_fraction.as_ref().map(RuntimeFraction::decode),
            headers: cx.each("headers", &message.headers, HeaderMatcher::decode),
            query_parameters: cx.each("query_parameters", &message.query_parameters, QueryParameterMatcher::decode),
            cookies: cx.each("cookies", &message.cookies, CookieMatcher::decode),
            grpc: message.grpc.is_some(),
            tls_context: message.tls_context.as_ref().map(|tls| TlsContextMatch {
                presented: bool_value(&tls.presented),
                validated: bool_value(&tls.validated),
            }),
            dynamic_metadata: cx.each("dynamic_metadata", &message.dynamic_metadata, MetadataMatcher::decode),
            filter_state: cx.each("filter_state", &message.filter_state, FilterStateMatcher::decode),
            path: path?,
        })
    }
}

fn path_match(cx: &mut Context, message: &pb::RouteMatch) -> Option<PathMatch> {
    use pb::route_match::PathSpecifier as Specifier;
    Some(match message.path_specifier.as_ref()? {
        Specifier::Prefix(prefix) => PathMatch::Prefix(prefix.as_str().into()),
        Specifier::Path(path) => PathMatch::Exact(path.as_str().into()),
        Specifier::SafeRegex(regex) => PathMatch::Regex(cx.at("safe_regex", |cx| anchored(cx, regex))?),
        Specifier::PathSeparatedPrefix(prefix) => PathMatch::SeparatedPrefix(prefix.as_str().into()),
        Specifier::ConnectMatcher(_) => PathMatch::Connect,
        Specifier::PathMatchPolicy(policy) => cx.at("path_match_policy", |cx| match_policy(cx, policy))?,
    })
}

fn match_policy(cx: &mut Context, policy: &core::TypedExtensionConfig) -> Option<PathMatch> {
    match type_of(policy) {
        "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig" => cx.at("typed_config", |cx| {
            let config: UriTemplateMatchConfig = cx.unpack(policy.typed_config.as_ref()?)?;
            UriTemplate::decode(cx, &config.path_template).map(PathMatch::Template)
        }),
        other => {
            cx.refuse_extension("envoy.path.match", &policy.name, other);
            None
        }
    }
}

impl RedirectAction {
    fn decode(cx: &mut Context, message: &pb::RedirectAction, path_match: &PathMatch) -> Option<Self> {
        use pb::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
        let scheme = match &message.scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => RedirectScheme::Https,
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) if !scheme.is_empty() => {
                RedirectScheme::Scheme(scheme.as_str().into())
            }
            _ => RedirectScheme::Keep,
        };
        let path = match &message.path_rewrite_specifier {
            Some(PathRewriteSpecifier::PathRedirect(path)) if !path.is_empty() => {
                RedirectPath::Replace(path.as_str().into())
            }
            Some(PathRewriteSpecifier::PrefixRewrite(prefix)) if !prefix.is_empty() => {
                if matches!(path_match, PathMatch::Template(_)) {
                    cx.error_at("prefix_rewrite", "Cannot use redirect.prefix_rewrite with path_match_policy");
                }
                RedirectPath::Prefix(prefix.as_str().into())
            }
            Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
                RedirectPath::Regex(cx.at("regex_rewrite", |cx| RegexRewrite::decode(cx, rewrite))?)
            }
            Some(PathRewriteSpecifier::PathRewrite(format)) if !format.is_empty() => {
                RedirectPath::Format(format.as_str().into())
            }
            _ => RedirectPath::Keep,
        };
        let Ok(port) = u16::try_from(message.port_redirect) else {
            cx.error_at("port_redirect", "port value missed or out of range");
            return None;
        };
        Some(RedirectAction {
            scheme,
            host: message.host_redirect.as_str().into(),
            port,
            path,
            response_code: match message.response_code() {
                RedirectResponseCode::MovedPermanently => 301,
                RedirectResponseCode::Found => 302,
                RedirectResponseCode::SeeOther => 303,
                RedirectResponseCode::TemporaryRedirect => 307,
                RedirectResponseCode::PermanentRedirect => 308,
            },
            strip_query: message.strip_query,
        })
    }
}

impl DirectResponse {
    fn decode(cx: &mut Context, message: &pb::DirectResponseAction, max_body: u32) -> Option<Self> {
        let body = cx.optional("body", &message.body, DataSource::decode);
        if let Some(DataSource::Inline(bytes)) = &body
            && bytes.len() > max_body as usize
        {
            cx.error_at("body", format!("response body size is {} bytes; maximum is {max_body}", bytes.len()));
        }
        let body_format = cx.optional("body_format", &message.body_format, BodyFormat::decode);
        Some(DirectResponse { status: u16::try_from(message.status).ok()?, body, body_format })
    }
}

impl PerFilterConfig {
    /// `typed_per_filter_config` of any level, in the order of the filters' names.
    pub(crate) fn decode_map(cx: &mut Context, map: &HashMap<String, Any>) -> Vec<Self> {
        if map.is_empty() {
            return Vec::new();
        }
        cx.at("typed_per_filter_config", |cx| {
            let entries = sorted(map);
            entries.into_iter().filter_map(|(name, any)| cx.at_key(name, |cx| Self::decode(cx, name, any))).collect()
        })
    }

    fn decode(cx: &mut Context, name: &str, any: &Any) -> Option<Self> {
        let plain = |config: TypedConfig, is_optional| PerFilterConfig {
            filter: config.name.clone(),
            config,
            disabled: false,
            is_optional,
        };
        if type_name(&any.type_url) != "envoy.config.route.v3.FilterConfig" {
            return Some(plain(cx.typed_config_at(name, Some(any), &[]), false));
        }
        let wrapper: pb::FilterConfig = cx.unpack(any)?;
        let step = [crate::paths::Segment::Field("config".into())];
        let config = cx.typed_config_at(name, wrapper.config.as_ref(), &step);
        if wrapper.config.is_none() && !wrapper.disabled {
            cx.error(format!("Empty route/virtual host per filter configuration for {name} filter"));
            return None;
        }
        Some(PerFilterConfig { disabled: wrapper.disabled, ..plain(config, wrapper.is_optional) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use crate::route::{ClusterSpecifier, HostRewrite, PathRewrite, RetryOn};
    use envoy_types::pb::google::protobuf as google;
    use pb::route_action as act;
    use prost::Message;
    use std::time::Duration;

    fn prefix(prefix: &str) -> Option<pb::RouteMatch> {
        let path_specifier = Some(pb::route_match::PathSpecifier::Prefix(prefix.into()));
        Some(pb::RouteMatch { path_specifier, ..Default::default() })
    }

    fn to(cluster: &str) -> pb::RouteAction {
        pb::RouteAction {
            cluster_specifier: Some(act::ClusterSpecifier::Cluster(cluster.into())),
            ..Default::default()
        }
    }

    fn route(action: pb::RouteAction) -> pb::Route {
        pb::Route { r#match: prefix("/"), action: Some(pb::route::Action::Route(action)), ..Default::default() }
    }

    fn host(domains: &[&str], routes: Vec<pb::Route>) -> pb::VirtualHost {
        let domains = domains.iter().map(|domain| (*domain).to_owned()).collect();
        pb::VirtualHost { name: "v".into(), domains, routes, ..Default::default() }
    }

    fn config(virtual_hosts: Vec<pb::VirtualHost>) -> pb::RouteConfiguration {
        pb::RouteConfiguration { name: "r1".into(), virtual_hosts, ..Default::default() }
    }

    fn decode(message: &pb::RouteConfiguration) -> Result<RouteConfiguration, Vec<ConfigError>> {
        let mut cx = Context::default();
        cx.set_clusters(["backend".into(), "other".into()]);
        cx.run(|cx| RouteConfiguration::from_message(cx, message, true))
    }

    fn one(message: pb::Route) -> Result<Route, Vec<ConfigError>> {
        decode(&config(vec![host(&["*"], vec![message])])).map(|mut config| config.virtual_hosts[0].routes.remove(0))
    }

    fn forward(action: pb::RouteAction) -> RouteAction {
        match one(route(action)).unwrap().action {
            RouteActionKind::Route(action) => *action,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn duplicate_domains_are_told_in_envoys_words() {
        let message = config(vec![host(&["a.com", "*"], vec![]), host(&["A.com", "*"], vec![])]);
        assert_eq!(
            errors(decode(&message)),
            [
                "virtual_hosts[1].domains[0]: Only unique values for domains are permitted. Duplicate entry of domain a.com in route r1",
                "virtual_hosts[1].domains[1]: Only a single wildcard domain is permitted in route r1",
            ]
        );
    }

    #[test]
    fn a_route_to_an_unknown_cluster_is_an_error_with_a_suggestion() {
        assert_eq!(
            errors(one(route(to("backned")))),
            ["virtual_hosts[0].routes[0].route.cluster: route: unknown cluster 'backned'; did you mean 'backend'?"]
        );
    }

    #[test]
    fn routes_from_rds_may_name_clusters_that_come_later() {
        let mut cx = Context::default();
        cx.set_clusters([]);
        let message = config(vec![host(&["*"], vec![route(to("later"))])]);
        assert!(RouteConfiguration::decode(&message, &mut cx).is_ok());
        let strict = pb::RouteConfiguration { validate_clusters: Some(google::BoolValue { value: true }), ..message };
        assert!(RouteConfiguration::decode(&strict, &mut cx).is_err());
    }

    #[test]
    fn all_errors_of_a_configuration_are_reported() {
        let routes = vec![route(to("x1")), route(to("x2"))];
        assert_eq!(errors(decode(&config(vec![host(&["*"], routes)]))).len(), 2);
    }

    #[test]
    fn the_timeout_defaults_to_15_seconds_and_zero_is_off() {
        assert_eq!(forward(to("backend")).timeout, Some(Duration::from_secs(15)));
        let zero = Some(google::Duration { seconds: 0, nanos: 0 });
        let action = forward(pb::RouteAction { timeout: zero, idle_timeout: zero, ..to("backend") });
        assert_eq!(action.timeout, None);
        assert_eq!(action.idle_timeout, Some(None));
    }

    fn weighted(entries: &[(&str, u32)]) -> pb::RouteAction {
        let clusters = entries
            .iter()
            .map(|(name, weight)| pb::weighted_cluster::ClusterWeight {
                name: (*name).into(),
                weight: Some(google::UInt32Value { value: *weight }),
                ..Default::default()
            })
            .collect();
        let weighted = pb::WeightedCluster { clusters, ..Default::default() };
        pb::RouteAction {
            cluster_specifier: Some(act::ClusterSpecifier::WeightedClusters(weighted)),
            ..Default::default()
        }
    }

    #[test]
    fn weights_are_summed() {
        let ClusterSpecifier::Weighted(clusters) = forward(weighted(&[("backend", 3), ("other", 1)])).cluster else {
            panic!("not weighted")
        };
        assert_eq!(clusters.total, 4);
    }

    #[test]
    fn weights_that_sum_to_zero_or_too_much_are_errors() {
        let at = "virtual_hosts[0].routes[0].route.weighted_clusters";
        assert_eq!(
            errors(one(route(weighted(&[("backend", 0)])))),
            [format!("{at}: Sum of weights in the weighted_cluster must be greater than 0.")]
        );
        assert_eq!(
            errors(one(route(weighted(&[("backend", u32::MAX), ("other", 1)])))),
            [format!("{at}: The sum of weights of all weighted clusters of route exceeds 4294967295")]
        );
        assert_eq!(
            errors(one(route(weighted(&[("nowhere", 1)])))),
            [format!("{at}.clusters[0].name: route: unknown weighted cluster 'nowhere'")]
        );
    }

    #[test]
    fn only_one_path_rewrite_may_be_set() {
        let action =
            pb::RouteAction { prefix_rewrite: "/a".into(), regex_rewrite: Some(Default::default()), ..to("backend") };
        assert_eq!(
            errors(one(route(action))),
            [
                "virtual_hosts[0].routes[0].route: Specify only one of prefix_rewrite, regex_rewrite or path_rewrite_policy"
            ]
        );
    }

    #[test]
    fn a_regex_rewrite_is_not_anchored() {
        use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
        let rewrite = matcher::RegexMatchAndSubstitute {
            pattern: Some(matcher::RegexMatcher { regex: "b+".into(), ..Default::default() }),
            substitution: r"\0".into(),
        };
        let action = forward(pb::RouteAction { regex_rewrite: Some(rewrite), ..to("backend") });
        assert!(matches!(action.path_rewrite, PathRewrite::Regex(rewrite) if rewrite.pattern.is_match(b"abc")));
    }

    #[test]
    fn auto_host_rewrite_false_leaves_the_host() {
        let specifier = |value| Some(act::HostRewriteSpecifier::AutoHostRewrite(google::BoolValue { value }));
        let rewrite =
            |value| forward(pb::RouteAction { host_rewrite_specifier: specifier(value), ..to("backend") }).host_rewrite;
        assert!(matches!(rewrite(false), HostRewrite::None));
        assert!(matches!(rewrite(true), HostRewrite::Auto));
    }

    #[test]
    fn upgrades_are_unique_and_only_connect_has_its_config() {
        let upgrade = |name: &str, connect: bool| act::UpgradeConfig {
            upgrade_type: name.into(),
            connect_config: connect.then(Default::default),
            ..Default::default()
        };
        let upgrade_configs = vec![upgrade("websocket", false), upgrade("WebSocket", true), upgrade("CONNECT", true)];
        let result = one(route(pb::RouteAction { upgrade_configs, ..to("backend") }));
        let at = "virtual_hosts[0].routes[0].route.upgrade_configs[1]";
        assert_eq!(
            errors(result),
            [
                format!("{at}.upgrade_type: Duplicate upgrade WebSocket"),
                format!("{at}.connect_config: Non-CONNECT upgrade type WebSocket has ConnectConfig"),
            ]
        );
    }

    #[test]
    fn a_retry_policy_has_envoys_defaults() {
        let policy = pb::RetryPolicy { retry_on: "5xx, reset,".into(), ..Default::default() };
        let policy = forward(pb::RouteAction { retry_policy: Some(policy), ..to("backend") }).retry_policy.unwrap();
        assert_eq!(policy.retry_on, RetryOn::ANY_5XX.union(RetryOn::RESET));
        assert_eq!((policy.num_retries, policy.per_try_timeout), (1, None));
        assert_eq!((policy.back_off_base.as_millis(), policy.back_off_max.as_millis()), (25, 250));
    }

    #[test]
    fn a_back_off_maximum_below_its_base_is_an_error() {
        let back_off = pb::retry_policy::RetryBackOff {
            base_interval: Some(google::Duration { seconds: 2, nanos: 0 }),
            max_interval: Some(google::Duration { seconds: 1, nanos: 0 }),
        };
        let policy = pb::RetryPolicy { retry_back_off: Some(back_off), ..Default::default() };
        assert_eq!(
            errors(one(route(pb::RouteAction { retry_policy: Some(policy), ..to("backend") }))),
            [
                "virtual_hosts[0].routes[0].route.retry_policy.retry_back_off: retry_policy.max_interval must greater than or equal to the base_interval"
            ]
        );
    }

    #[test]
    fn a_mirror_names_exactly_one_target() {
        let mirror =
            act::RequestMirrorPolicy { cluster: "backend".into(), cluster_header: "x".into(), ..Default::default() };
        let policies = vec![mirror, Default::default()];
        let result = errors(one(route(pb::RouteAction { request_mirror_policies: policies, ..to("backend") })));
        assert!(result[0].ends_with(
            "Only one of cluster 'backend' or cluster_header 'x' in request mirror policy can be specified"
        ));
        assert!(
            result[1]
                .ends_with("Exactly one of cluster or cluster_header in request mirror policy need to be specified")
        );
    }

    fn direct(body: &str) -> pb::Route {
        let body = core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString(body.into())),
            ..Default::default()
        };
        let action = pb::DirectResponseAction { status: 200, body: Some(body), ..Default::default() };
        pb::Route {
            r#match: prefix("/"),
            action: Some(pb::route::Action::DirectResponse(action)),
            ..Default::default()
        }
    }

    #[test]
    fn a_direct_response_body_has_a_limit() {
        assert_eq!(
            errors(one(direct(&"a".repeat(4097)))),
            ["virtual_hosts[0].routes[0].direct_response.body: response body size is 4097 bytes; maximum is 4096"]
        );
        let mut message = config(vec![host(&["*"], vec![direct(&"a".repeat(4097))])]);
        message.max_direct_response_body_size_bytes = Some(google::UInt32Value { value: 5000 });
        assert!(decode(&message).is_ok());
    }

    #[test]
    fn a_per_filter_config_may_only_switch_off() {
        let any = |message: &pb::FilterConfig| Any {
            type_url: "type.googleapis.com/envoy.config.route.v3.FilterConfig".into(),
            value: message.encode_to_vec(),
        };
        let with = |any| pb::Route { typed_per_filter_config: [("f".to_owned(), any)].into(), ..route(to("backend")) };
        let off = one(with(any(&pb::FilterConfig { disabled: true, ..Default::default() }))).unwrap();
        assert!(off.typed_per_filter_config[0].disabled);
        assert_eq!(
            errors(one(with(any(&pb::FilterConfig::default())))),
            [
                "virtual_hosts[0].routes[0].typed_per_filter_config[\"f\"]: Empty route/virtual host per filter configuration for f filter"
            ]
        );
    }

    #[test]
    fn the_hedge_policy_of_the_virtual_host_is_inherited() {
        let mut message = config(vec![host(&["*"], vec![route(to("backend"))])]);
        message.virtual_hosts[0].hedge_policy =
            Some(pb::HedgePolicy { hedge_on_per_try_timeout: true, ..Default::default() });
        let RouteActionKind::Route(action) = &decode(&message).unwrap().virtual_hosts[0].routes[0].action else {
            panic!("no route")
        };
        assert!(action.hedge_on_per_try_timeout);
    }

    #[test]
    fn routes_share_the_names_of_clusters() {
        let mut cx = Context::default();
        let name: Arc<str> = "backend".into();
        cx.set_clusters([name.clone()]);
        let message = config(vec![host(&["*"], vec![route(to("backend"))])]);
        let config = RouteConfiguration::decode(&message, &mut cx).unwrap();
        let RouteActionKind::Route(action) = &config.virtual_hosts[0].routes[0].action else { panic!("no route") };
        assert!(matches!(&action.cluster, ClusterSpecifier::Cluster(used) if Arc::ptr_eq(used, &name)));
    }
}
