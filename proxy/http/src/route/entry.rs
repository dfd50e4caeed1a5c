//! A compiled route, its virtual host and what their levels say.
//!
//! The IR stays the store of everything that needs no compilation: entries hold the route configuration and their position in
//! it, so that a request that pins an entry pins all of it.

use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use nuncio_config::data_source::DataSource;
use nuncio_config::route::{
    ClusterSpecifier, FilterStateCondition, FilterStateMatcher, HostRewrite, PathMatch, PathRewrite, PerFilterConfig,
    RedirectPath, RetryPolicy, Route, RouteAction, RouteActionKind, RouteConfiguration, VirtualHost,
};
use rustc_hash::FxHashMap;

use super::matching::{self, RequestTree};
use super::policies::{HashPolicies, InternalRedirect, Mirror, RetryConditions};
use super::rate_limit::RateLimits;
use super::redirect;
use super::rewrite::{self, Substitution};
use super::stats::RequestStats;
use super::table::{BuildError, RouteRequest};
use crate::formatter::Formatter;
use crate::header_mutation::HeaderRules;
use crate::headers::{HeaderName, HeaderValue, Headers, names};
use crate::local_reply::BodyFormatter;
use crate::matchers::{
    HeaderMatch, build_header_matches, cookie_matches, header_name, in_runtime_fraction, is_grpc_request,
    metadata_matches, query_matches, starts_with_ignore_case, string_matches,
};
use crate::stream_info::{FilterState, StreamInfo};
use nuncio_base::stats::Registry;

/// Decodes a filter's per-route message; the server implements it over its registry of filters.
pub trait PerFilterDecoder {
    /// The decoded message, None where the filter wants none, or what is wrong with it.
    fn decode(&self, config: &PerFilterConfig) -> Result<Option<Arc<dyn Any + Send + Sync>>, String>;
}

/// What a table is built with, beside its configuration.
#[derive(Clone, Copy, Default)]
pub struct BuildContext<'a> {
    /// Decodes per-filter configuration; without it there is none.
    pub decoder: Option<&'a dyn PerFilterDecoder>,
    /// Where statistics of virtual clusters and routes live; without it there are none.
    pub registry: Option<&'a Registry>,
}

/// Per-filter configuration of one level.
#[derive(Default)]
pub struct FilterConfigs(FxHashMap<Arc<str>, FilterEntry>);

struct FilterEntry {
    disabled: bool,
    decoded: Option<Arc<dyn Any + Send + Sync>>,
}

impl std::fmt::Debug for FilterConfigs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl FilterConfigs {
    pub(super) fn build(
        list: &[PerFilterConfig],
        decoder: Option<&dyn PerFilterDecoder>,
        path: &str,
        errors: &mut Vec<BuildError>,
    ) -> Self {
        let mut map = FxHashMap::default();
        for config in list {
            let decoded = match decoder.map(|decoder| decoder.decode(config)) {
                None => None,
                Some(Ok(decoded)) => decoded,
                Some(Err(text)) => {
                    errors.push((format!("{path}.typed_per_filter_config[{}]", config.filter), text));
                    None
                }
            };
            map.insert(config.filter.clone(), FilterEntry { disabled: config.disabled, decoded });
        }
        Self(map)
    }

    /// The decoded message for a filter.
    pub fn get(&self, filter: &str) -> Option<&Arc<dyn Any + Send + Sync>> {
        if self.0.is_empty() { None } else { self.0.get(filter)?.decoded.as_ref() }
    }

    /// Whether this level switches a filter off or on; None where it says nothing.
    pub fn disabled(&self, filter: &str) -> Option<bool> {
        if self.0.is_empty() { None } else { self.0.get(filter).map(|entry| entry.disabled) }
    }
}

/// Both directions of one level's mutations.
#[derive(Debug, Default)]
pub(super) struct LevelRules {
    pub(super) request: HeaderRules,
    pub(super) response: HeaderRules,
}

impl LevelRules {
    pub(super) fn build(
        mutations: &nuncio_config::header_mutation::HeaderMutations,
        path: &str,
        errors: &mut Vec<BuildError>,
    ) -> Self {
        let mut rules = |add: &_, remove: &_, direction: &str| {
            HeaderRules::build(add, remove).unwrap_or_else(|list| {
                errors.extend(list.into_iter().map(|(at, text)| {
                    let (kind, index) = at.split_at(at.find('[').unwrap_or(at.len()));
                    (format!("{path}.{direction}_headers_to_{kind}{index}"), text)
                }));
                HeaderRules::default()
            })
        };
        Self {
            request: rules(&mutations.request_add, &mutations.request_remove, "request"),
            response: rules(&mutations.response_add, &mutations.response_remove, "response"),
        }
    }
}

/// What all virtual hosts of a table share.
#[derive(Debug)]
pub(super) struct Global {
    pub(super) config: Arc<RouteConfiguration>,
    pub(super) rules: LevelRules,
    pub(super) filters: FilterConfigs,
    pub(super) internal_only: Box<[HeaderName]>,
    pub(super) mirrors: Box<[Mirror]>,
}

/// A virtual cluster: requests of a virtual host that are counted together.
#[derive(Debug)]
pub struct VirtualCluster {
    headers: Box<[HeaderMatch]>,
    /// Its name; `other` for the requests that belong to no other one.
    pub name: Arc<str>,
    /// Its statistics.
    pub stats: Option<RequestStats>,
}

impl VirtualCluster {
    /// Whether it is the one of the requests that belong to no other.
    pub fn is_rest(&self) -> bool {
        self.headers.is_empty()
    }
}

/// A compiled virtual host, without its routes.
#[derive(Debug)]
pub struct VirtualHostEntry {
    pub(super) global: Arc<Global>,
    pub(super) position: usize,
    pub(super) rules: LevelRules,
    pub(super) filters: FilterConfigs,
    /// With those that are configured, a last one without conditions.
    virtual_clusters: Box<[VirtualCluster]>,
    mirrors: Box<[Mirror]>,
    pub(super) rate_limits: RateLimits,
}

impl VirtualHostEntry {
    pub(super) fn build(
        global: &Arc<Global>,
        position: usize,
        context: BuildContext<'_>,
        errors: &mut Vec<BuildError>,
    ) -> Self {
        let config = &global.config.virtual_hosts[position];
        let mut virtual_clusters = Vec::new();
        let entry = |headers, name: &str| {
            let prefix = format!("vhost.{}.vcluster.{name}.", config.name);
            let stats = context.registry.map(|registry| RequestStats::new(registry, prefix));
            VirtualCluster { headers, name: name.into(), stats }
        };
        for (at, cluster) in config.virtual_clusters.iter().enumerate() {
            let path = format!("{}.virtual_clusters[{at}].headers", config.path);
            if cluster.headers.is_empty() {
                errors.push((path, "virtual clusters must define 'headers'".into()));
                continue;
            }
            match build_header_matches(&cluster.headers) {
                Ok(headers) => virtual_clusters.push(entry(headers, &cluster.name)),
                Err(text) => errors.push((path, text)),
            }
        }
        if !virtual_clusters.is_empty() {
            virtual_clusters.push(entry(Box::default(), "other"));
        }
        Self {
            rules: LevelRules::build(&config.headers, &config.path, errors),
            filters: FilterConfigs::build(&config.typed_per_filter_config, context.decoder, &config.path, errors),
            mirrors: Mirror::build_all(&config.request_mirror_policies, errors),
            rate_limits: RateLimits::build(&config.rate_limits, errors),
            virtual_clusters: virtual_clusters.into(),
            global: Arc::clone(global),
            position,
        }
    }

    /// The configuration.
    pub fn config(&self) -> &VirtualHost {
        &self.global.config.virtual_hosts[self.position]
    }

    /// The route configuration that it belongs to.
    pub fn route_configuration(&self) -> &RouteConfiguration {
        &self.global.config
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.config().name
    }

    /// The number of a request's virtual cluster; None where the virtual host has none.
    pub fn virtual_cluster_of(&self, headers: &Headers) -> Option<usize> {
        self.virtual_clusters.iter().position(|cluster| cluster.headers.iter().all(|matcher| matcher.matches(headers)))
    }

    /// A virtual cluster by its number.
    pub fn virtual_cluster(&self, number: usize) -> Option<&VirtualCluster> {
        self.virtual_clusters.get(number)
    }
}

/// Status and body of a direct response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectResponseBody {
    /// Status.
    pub status: u16,
    /// Body, read when the table was built.
    pub body: Bytes,
}

/// Why a route does not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// The path, or the method of a CONNECT route.
    Path,
    /// `runtime_fraction` left this request out.
    RuntimeFraction,
    /// Not a gRPC request.
    Grpc,
    /// This header condition.
    Header(usize),
    /// This query parameter condition.
    QueryParameter(usize),
    /// This cookie condition.
    Cookie(usize),
    /// The client certificate.
    TlsContext,
    /// This dynamic metadata condition.
    DynamicMetadata(usize),
    /// This filter state condition.
    FilterState(usize),
}

/// A compiled route.
#[derive(Debug)]
pub struct RouteEntry {
    pub(super) host: Arc<VirtualHostEntry>,
    pub(super) position: usize,
    headers: Box<[HeaderMatch]>,
    pub(super) rules: LevelRules,
    pub(super) filters: FilterConfigs,
    pub(super) compiled: Compiled,
    stats: Option<RequestStats>,
}

/// What an action needs beyond its configuration.
#[derive(Debug)]
pub(super) enum Compiled {
    Nothing,
    Forward(Box<Forward>),
    Redirect(RedirectParts),
    Direct(DirectResponseBody, Option<Box<BodyFormatter>>),
}

/// Compiled parts of a redirect's path.
#[derive(Debug, Default)]
pub(super) struct RedirectParts {
    pub(super) substitution: Option<Substitution>,
    pub(super) format: Option<Formatter>,
}

#[derive(Debug, Default)]
pub(super) struct Forward {
    pub(super) path: Option<Substitution>,
    pub(super) path_format: Option<Formatter>,
    pub(super) host_path: Option<Substitution>,
    pub(super) host_format: Option<Formatter>,
    pub(super) host: Option<HeaderValue>,
    pub(super) host_header: Option<HeaderName>,
    pub(super) cluster_header: Option<HeaderName>,
    pub(super) random_header: Option<HeaderName>,
    pub(super) cluster_tree: Option<RequestTree<Arc<str>>>,
    pub(super) weighted: Box<[WeightedEntry]>,
    pub(super) retry: Option<Arc<RetryConditions>>,
    pub(super) hash: HashPolicies,
    pub(super) mirrors: Box<[Mirror]>,
    pub(super) redirect: Option<Box<InternalRedirect>>,
    pub(super) rate_limits: RateLimits,
}

/// A weighted cluster's compiled part.
#[derive(Debug, Default)]
pub(super) struct WeightedEntry {
    pub(super) rules: LevelRules,
    pub(super) filters: FilterConfigs,
    pub(super) host: Option<HeaderValue>,
    pub(super) header: Option<HeaderName>,
    pub(super) runtime_key: Box<str>,
}

impl RouteEntry {
    pub(super) fn build(
        host: &Arc<VirtualHostEntry>,
        position: usize,
        context: BuildContext<'_>,
        errors: &mut Vec<BuildError>,
    ) -> Self {
        let route = &host.config().routes[position];
        let path = &*route.path;
        let headers = build_header_matches(&route.matches.headers).unwrap_or_else(|text| {
            errors.push((format!("{path}.match.headers"), text));
            Box::default()
        });
        let limit = host.global.config.max_direct_response_body_size_bytes;
        let compiled = match &route.action {
            RouteActionKind::Route(action) => {
                let mut forward = Box::new(Forward::build(action, path, context.decoder, errors));
                let policy = action.retry_policy.as_ref().or(host.config().retry_policy.as_ref());
                forward.retry = policy.and_then(|policy| RetryConditions::build(policy, path, errors));
                Compiled::Forward(forward)
            }
            RouteActionKind::Redirect(action) => Compiled::Redirect(match &action.path {
                RedirectPath::Regex(rewrite) => RedirectParts {
                    substitution: Substitution::build(rewrite)
                        .map_err(|text| errors.push((format!("{path}.redirect.regex_rewrite.substitution"), text)))
                        .ok(),
                    format: None,
                },
                RedirectPath::Format(format) => RedirectParts {
                    substitution: None,
                    format: Formatter::new(format, true)
                        .map_err(|error| errors.push((format!("{path}.redirect.path_rewrite"), error.0)))
                        .ok(),
                },
                _ => RedirectParts::default(),
            }),
            RouteActionKind::DirectResponse(direct) => {
                let body = direct.body.as_ref().map_or(Ok(Bytes::new()), |source| read(source, limit));
                let body = body.unwrap_or_else(|text| {
                    errors.push((format!("{path}.direct_response.body"), text));
                    Bytes::new()
                });
                let format = direct.body_format.as_ref().and_then(|format| {
                    BodyFormatter::new(format).map(Box::new).map_err(|error| errors.push(error)).ok()
                });
                Compiled::Direct(DirectResponseBody { status: direct.status, body }, format)
            }
            RouteActionKind::NonForwarding => Compiled::Nothing,
        };
        Self {
            host: Arc::clone(host),
            position,
            headers,
            rules: LevelRules::build(&route.headers, path, errors),
            filters: FilterConfigs::build(&route.typed_per_filter_config, context.decoder, path, errors),
            stats: context.registry.zip(route.stat_prefix.as_deref()).map(|(registry, prefix)| {
                RequestStats::new(registry, format!("vhost.{}.route.{prefix}.", host.name()))
            }),
            compiled,
        }
    }

    /// The configuration.
    pub fn config(&self) -> &Route {
        &self.host.config().routes[self.position]
    }

    /// Its virtual host.
    pub fn virtual_host(&self) -> &Arc<VirtualHostEntry> {
        &self.host
    }

    /// Its name; empty if it has none.
    pub fn name(&self) -> &Arc<str> {
        &self.config().name
    }

    /// The action when it forwards.
    pub fn route_action(&self) -> Option<&RouteAction> {
        match &self.config().action {
            RouteActionKind::Route(action) => Some(action),
            _ => None,
        }
    }

    /// Retries: the route's own, or the virtual host's.
    pub fn retry_policy(&self) -> Option<&Arc<RetryPolicy>> {
        self.route_action()?.retry_policy.as_ref().or(self.host.config().retry_policy.as_ref())
    }

    /// Header conditions of [`RouteEntry::retry_policy`]; None where it has none.
    pub fn retry_conditions(&self) -> Option<&Arc<RetryConditions>> {
        self.forward()?.retry.as_ref()
    }

    /// Mirrors: the route's own, the virtual host's, or those of the whole configuration.
    pub fn mirrors(&self) -> &[Mirror] {
        let own = self.forward().map_or(&[][..], |forward| &forward.mirrors);
        match (own, &self.host.mirrors[..]) {
            ([], []) => &self.host.global.mirrors,
            ([], host) => host,
            (own, _) => own,
        }
    }

    /// Hash policies; None where there are none.
    pub fn hash_policies(&self) -> Option<&HashPolicies> {
        self.forward().map(|forward| &forward.hash).filter(|hash| !hash.is_empty())
    }

    /// Internal redirects, where the route handles them.
    pub fn internal_redirect(&self) -> Option<&InternalRedirect> {
        self.forward()?.redirect.as_deref()
    }

    /// Statistics of its own (`stat_prefix`).
    pub fn stats(&self) -> Option<&RequestStats> {
        self.stats.as_ref()
    }

    fn forward(&self) -> Option<&Forward> {
        match &self.compiled {
            Compiled::Forward(forward) => Some(forward),
            _ => None,
        }
    }

    /// Bytes of a request kept for retries.
    pub fn per_request_buffer_limit_bytes(&self) -> Option<u64> {
        self.config().per_request_buffer_limit_bytes.or(self.host.config().per_request_buffer_limit_bytes)
    }

    /// Status and body when the route answers itself. A redirect has no body.
    pub fn direct_response(&self) -> Option<DirectResponseBody> {
        match (&self.compiled, &self.config().action) {
            (Compiled::Direct(direct, _), _) => Some(direct.clone()),
            (_, RouteActionKind::Redirect(action)) => {
                Some(DirectResponseBody { status: action.response_code, body: Bytes::new() })
            }
            _ => None,
        }
    }

    /// The format of a direct response's body, where it has one.
    pub fn direct_response_format(&self) -> Option<&BodyFormatter> {
        match &self.compiled {
            Compiled::Direct(_, format) => format.as_deref(),
            _ => None,
        }
    }

    /// The `location` of a redirect, or of a direct response with status 201 or 3xx. The headers' path must be the one that
    /// matched, not rewritten.
    pub fn new_location(&self, headers: &Headers, info: &StreamInfo) -> Option<HeaderValue> {
        match (&self.config().action, &self.compiled) {
            (RouteActionKind::Redirect(action), Compiled::Redirect(parts)) => {
                redirect::location(action, parts, self.matched_len(headers), headers, info)
            }
            (RouteActionKind::DirectResponse(direct), _) if direct.status == 201 || direct.status / 100 == 3 => {
                headers.get(&names::PATH)?;
                redirect::self_location(headers)
            }
            _ => None,
        }
    }

    /// Where the action redirects to another path by its prefix or a regular expression: that path in the headers, as logs
    /// and formats of the response show it. After [`Self::new_location`].
    pub fn rewrite_redirected_path(&self, headers: &mut Headers, keep_original: bool) {
        if let (RouteActionKind::Redirect(action), Compiled::Redirect(parts)) = (&self.config().action, &self.compiled)
            && let Some(path) = redirect::rewritten_path(action, parts, self.matched_len(headers), headers)
        {
            rewrite::update_path(headers, path, keep_original);
        }
    }

    /// How much of the path is what matched; None where it is written otherwise, with parameters.
    pub(super) fn matched_len(&self, headers: &Headers) -> Option<usize> {
        match &self.config().matches.path {
            PathMatch::Prefix(path) | PathMatch::Exact(path) | PathMatch::SeparatedPrefix(path) => {
                let same = headers.path().get(..path.len())?.eq_ignore_ascii_case(path.as_bytes());
                same.then_some(path.len())
            }
            PathMatch::Regex(_) | PathMatch::Connect | PathMatch::Template(_) => {
                Some(crate::path::without_query(headers.path()).len())
            }
        }
    }

    /// Whether the route matches. `path` is what path conditions see; with `path_known` they are known to hold.
    pub(super) fn matches(
        &self,
        request: &RouteRequest<'_>,
        path: Option<&[u8]>,
        path_known: bool,
    ) -> Result<(), Mismatch> {
        let route = &self.config().matches;
        // Templates see parameters whatever the table says, as in Envoy.
        let whole = matches!(route.path, PathMatch::Template(_)).then(|| request.headers.bytes(&names::PATH)).flatten();
        let path = whole.map(crate::path::without_query).or(path);
        if !path_known && !path_matches(&route.path, route.case_sensitive, path, request.headers) {
            return Err(Mismatch::Path);
        }
        if let Some(fraction) = &route.runtime_fraction
            && !in_runtime_fraction(fraction, request.runtime, request.random)
        {
            return Err(Mismatch::RuntimeFraction);
        }
        if route.grpc && !is_grpc_request(request.headers) {
            return Err(Mismatch::Grpc);
        }
        if let Some(at) = self.headers.iter().position(|matcher| !matcher.matches(request.headers)) {
            return Err(Mismatch::Header(at));
        }
        if !route.query_parameters.is_empty() {
            let path = request.headers.path();
            if let Some(at) = route.query_parameters.iter().position(|matcher| !query_matches(matcher, path)) {
                return Err(Mismatch::QueryParameter(at));
            }
        }
        if let Some(at) = route.cookies.iter().position(|matcher| !cookie_matches(matcher, request.headers)) {
            return Err(Mismatch::Cookie(at));
        }
        if let Some(wanted) = route.tls_context {
            let presented = request.tls.is_some_and(|tls| tls.peer_certificate_presented());
            let validated = presented && request.tls.is_some_and(|tls| tls.peer_validated);
            if wanted.presented.is_some_and(|wanted| wanted != presented)
                || wanted.validated.is_some_and(|wanted| wanted != validated)
            {
                return Err(Mismatch::TlsContext);
            }
        }
        if let Some(at) =
            route.dynamic_metadata.iter().position(|matcher| !metadata_matches(matcher, request.dynamic_metadata))
        {
            return Err(Mismatch::DynamicMetadata(at));
        }
        if let Some(at) =
            route.filter_state.iter().position(|matcher| !filter_state_matches(matcher, request.filter_state))
        {
            return Err(Mismatch::FilterState(at));
        }
        Ok(())
    }
}

fn path_matches(matcher: &PathMatch, case_sensitive: bool, path: Option<&[u8]>, headers: &Headers) -> bool {
    if let PathMatch::Connect = matcher {
        return headers.method() == b"CONNECT"
            || headers.bytes(&names::UPGRADE).is_some_and(|value| value.eq_ignore_ascii_case(b"connect-udp"));
    }
    let Some(path) = path else { return false };
    let starts = |prefix: &str| {
        if case_sensitive {
            path.starts_with(prefix.as_bytes())
        } else {
            starts_with_ignore_case(path, prefix.as_bytes())
        }
    };
    match matcher {
        PathMatch::Prefix(prefix) => starts(prefix),
        PathMatch::Exact(exact) if case_sensitive => path == exact.as_bytes(),
        PathMatch::Exact(exact) => path.eq_ignore_ascii_case(exact.as_bytes()),
        PathMatch::SeparatedPrefix(prefix) => starts(prefix) && matches!(path.get(prefix.len()), None | Some(b'/')),
        PathMatch::Regex(regex) => regex.is_match(path),
        PathMatch::Template(template) => template.regex.is_match(path),
        PathMatch::Connect => false,
    }
}

/// Whether filter state satisfies a matcher; an object that is not there does not.
fn filter_state_matches(matcher: &FilterStateMatcher, state: Option<&FilterState>) -> bool {
    let found = state.and_then(|state| state.iter().find(|(key, _)| **key == *matcher.key));
    let Some((_, value)) = found else { return false };
    match &matcher.value {
        FilterStateCondition::String(matcher) => string_matches(matcher, value.as_bytes()),
        FilterStateCondition::Address { ranges, invert } => {
            let address = value.parse().or_else(|_| value.parse::<SocketAddr>().map(|address| address.ip()));
            address.is_ok_and(|ip: IpAddr| ranges.iter().any(|range| range.contains(&ip)) != *invert)
        }
    }
}

impl Forward {
    fn build(
        action: &RouteAction,
        path: &str,
        decoder: Option<&dyn PerFilterDecoder>,
        errors: &mut Vec<BuildError>,
    ) -> Self {
        let mut out = Forward::default();
        let mut fail = |field: &str, text: String| errors.push((format!("{path}.route.{field}"), text));
        let value = |text: &str| HeaderValue::parse(Bytes::copy_from_slice(text.as_bytes()));
        match &action.path_rewrite {
            PathRewrite::None | PathRewrite::Prefix(_) | PathRewrite::Template(_) => {}
            PathRewrite::Regex(rewrite) => match Substitution::build(rewrite) {
                Ok(substitution) => out.path = Some(substitution),
                Err(text) => fail("regex_rewrite.substitution", text),
            },
            PathRewrite::Format(format) => match Formatter::new(format, true) {
                Ok(format) => out.path_format = Some(format),
                Err(error) => fail("path_rewrite", error.0),
            },
        }
        match &action.host_rewrite {
            HostRewrite::None | HostRewrite::Auto => {}
            HostRewrite::Literal(host) => match value(host) {
                Some(host) => out.host = Some(host),
                None => fail("host_rewrite_literal", "not a header value".into()),
            },
            HostRewrite::Header(name) => match header_name(name) {
                Some(name) => out.host_header = Some(name),
                None => fail("host_rewrite_header", format!("invalid header name: {name:?}")),
            },
            HostRewrite::PathRegex(rewrite) => match Substitution::build(rewrite) {
                Ok(substitution) => out.host_path = Some(substitution),
                Err(text) => fail("host_rewrite_path_regex.substitution", text),
            },
            // What has no value shows as `-` here, unlike in paths.
            HostRewrite::Format(format) => match Formatter::new(format, false) {
                Ok(format) => out.host_format = Some(format),
                Err(error) => fail("host_rewrite", error.0),
            },
        }
        match &action.cluster {
            ClusterSpecifier::Cluster(_) => {}
            ClusterSpecifier::Header(name) => match header_name(name) {
                Some(name) => out.cluster_header = Some(name),
                None => fail("cluster_header", format!("invalid header name: {name:?}")),
            },
            ClusterSpecifier::Unavailable => {}
            ClusterSpecifier::Matcher(tree) => match matching::compile(tree) {
                Ok(tree) => out.cluster_tree = Some(tree),
                Err(text) => fail("cluster_specifier_plugin", text),
            },
            ClusterSpecifier::Weighted(weighted) => {
                if let Some(name) = &weighted.random_value_header {
                    match header_name(name) {
                        Some(name) => out.random_header = Some(name),
                        None => fail("weighted_clusters.header_name", format!("invalid header name: {name:?}")),
                    }
                }
                let mut list = Vec::new();
                for (at, cluster) in weighted.clusters.iter().enumerate() {
                    let path = format!("{path}.route.weighted_clusters.clusters[{at}]");
                    let header = cluster.header.as_deref().and_then(|name| {
                        let found = header_name(name);
                        if found.is_none() {
                            errors.push((format!("{path}.cluster_header"), format!("invalid header name: {name:?}")));
                        }
                        found
                    });
                    let prefix = &weighted.runtime_key_prefix;
                    list.push(WeightedEntry {
                        rules: LevelRules::build(&cluster.headers, &path, errors),
                        filters: FilterConfigs::build(&cluster.typed_per_filter_config, decoder, &path, errors),
                        host: cluster.host_rewrite_literal.as_deref().and_then(value),
                        header,
                        runtime_key: if prefix.is_empty() {
                            Box::default()
                        } else {
                            format!("{prefix}.{}", cluster.name).into()
                        },
                    });
                }
                out.weighted = list.into();
            }
        }
        out.hash = HashPolicies::build(&action.hash_policy, &format!("{path}.route"), errors);
        out.mirrors = Mirror::build_all(&action.request_mirror_policies, errors);
        out.rate_limits = RateLimits::build(&action.rate_limits, errors);
        let redirect = action.internal_redirect_policy.as_ref();
        out.redirect = redirect.map(|policy| Box::new(InternalRedirect::build(policy, path, errors)));
        out
    }
}

/// Bytes of a direct response.
pub(crate) fn read(source: &DataSource, limit: u32) -> Result<Bytes, String> {
    let body = match source {
        DataSource::Inline(bytes) => bytes.clone(),
        DataSource::File { path, .. } => {
            let size = std::fs::metadata(path).map_err(|_| format!("file {} does not exist", path.display()))?.len();
            too_large(size, limit)?;
            std::fs::read(path).map_err(|error| format!("unable to read file {}: {error}", path.display()))?
        }
        DataSource::Environment(name) => std::env::var_os(name)
            .map(std::os::unix::ffi::OsStringExt::into_vec)
            .ok_or_else(|| format!("Environment variable doesn't exist: {name}"))?,
    };
    too_large(body.len() as u64, limit)?;
    Ok(body.into())
}

fn too_large(size: u64, limit: u32) -> Result<(), String> {
    if size > u64::from(limit) {
        return Err(format!("response body size is {size} bytes; maximum is {limit}"));
    }
    Ok(())
}
