//! Route configuration (`envoy.config.route.v3`). The HTTP floor builds its index from these types.

use crate::data_source::DataSource;
use crate::header_mutation::{HeaderMutation, HeaderMutations};
use crate::listener::ProxyProtocolVersion;
use crate::matchers::{CidrRange, CookieMatcher, HeaderMatcher, QueryParameterMatcher, RuntimeFraction, StringMatcher};
use crate::matching::MatchTree;
use crate::typed_config::TypedConfig;
use regex::bytes::Regex;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

mod action;
mod decode;
mod internal_redirect;
mod metadata;
mod rate_limit;
mod retry;
mod uri_template;

pub use internal_redirect::{InternalRedirectPolicy, RedirectPredicate};
pub use rate_limit::{HitsAddend, MetadataSource, RateLimit, RateLimitAction, RateLimitOverride};
pub use retry::{RateLimitedBackOff, RetryHostPredicate, RetryOn, RetryPolicy};
pub use uri_template::{RewritePiece, UriTemplate, UriTemplateRewrite};

/// `RouteConfiguration`.
#[derive(Debug, Clone)]
pub struct RouteConfiguration {
    /// Name.
    pub name: Arc<str>,
    /// Virtual hosts in configuration order.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Headers that only internal requests may carry (`internal_only_headers`), lower-cased.
    pub internal_only_headers: Vec<Box<str>>,
    /// Mutations of this level.
    pub headers: HeaderMutations,
    /// Apply levels from the most general to the most specific, so that specific values win.
    pub most_specific_header_mutations_wins: bool,
    /// A route to a missing cluster is an error when true; default true for static configuration.
    pub validate_clusters: bool,
    /// Per-filter configuration of this level.
    pub typed_per_filter_config: Vec<PerFilterConfig>,
    /// Bytes of a direct response body at most; default 4096.
    pub max_direct_response_body_size_bytes: u32,
    /// Host without its port is matched.
    pub ignore_port_in_host_matching: bool,
    /// Path without parameters after `;` is matched.
    pub ignore_path_parameters_in_path_matching: bool,
    /// Header consulted instead of the host.
    pub vhost_header: Option<Box<str>>,
    /// Mirrors of the virtual hosts without their own.
    pub request_mirror_policies: Vec<MirrorPolicy>,
    /// Serialized `ConfigSource` of virtual hosts that come beside those here (`vhds`).
    pub vhds: Option<bytes::Bytes>,
    /// Path in the configuration.
    pub path: Box<str>,
}

/// Configuration of one filter at a route, virtual host or route configuration.
#[derive(Debug, Clone)]
pub struct PerFilterConfig {
    /// Name of the filter in the chain.
    pub filter: Arc<str>,
    /// The message; empty type name when only `disabled` is said.
    pub config: TypedConfig,
    /// Switches the filter off.
    pub disabled: bool,
    /// Ignored when the extension is not known.
    pub is_optional: bool,
}

/// `VirtualHost`.
#[derive(Debug, Clone)]
pub struct VirtualHost {
    /// Name, used in stats and logs.
    pub name: Arc<str>,
    /// Exact, `*.suffix`, `prefix.*` or `*`.
    pub domains: Vec<Box<str>>,
    /// Routes; the first that matches wins. With a matcher these are the routes of its actions.
    pub routes: Vec<Route>,
    /// Metadata as JSON.
    pub metadata: Option<Arc<serde_json::Value>>,
    /// Leads to the routes that may match, as positions in `routes`.
    pub matcher: Option<MatchTree<Range<u32>>>,
    /// TLS demanded by redirect.
    pub require_tls: RequireTls,
    /// Virtual clusters.
    pub virtual_clusters: Vec<VirtualCluster>,
    /// Mutations of this level.
    pub headers: HeaderMutations,
    /// Per-filter configuration of this level.
    pub typed_per_filter_config: Vec<PerFilterConfig>,
    /// Default retry policy of the routes.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// Add `x-envoy-attempt-count` to requests.
    pub include_request_attempt_count: bool,
    /// Add it to responses.
    pub include_attempt_count_in_response: bool,
    /// Add `x-envoy-is-timeout-retry`.
    pub include_is_timeout_retry_header: bool,
    /// Bytes of a request kept for retries (`request_body_buffer_limit`, `per_request_buffer_limit_bytes`).
    pub per_request_buffer_limit_bytes: Option<u64>,
    /// Mirrors of the routes without their own.
    pub request_mirror_policies: Vec<MirrorPolicy>,
    /// What rate-limit filters are told of requests.
    pub rate_limits: Vec<RateLimit>,
    /// Path in the configuration.
    pub path: Box<str>,
}

/// `require_tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequireTls {
    /// Not required.
    #[default]
    None,
    /// Redirect external requests only.
    ExternalOnly,
    /// Redirect all.
    All,
}

/// `VirtualCluster`.
#[derive(Debug, Clone)]
pub struct VirtualCluster {
    /// Matchers that all must hold.
    pub headers: Vec<HeaderMatcher>,
    /// Stat name.
    pub name: Box<str>,
}

/// `Route`.
#[derive(Debug, Clone)]
pub struct Route {
    /// Name, `%ROUTE_NAME%`.
    pub name: Arc<str>,
    /// When it applies.
    pub matches: RouteMatch,
    /// What it does.
    pub action: RouteActionKind,
    /// Mutations of this level.
    pub headers: HeaderMutations,
    /// Per-filter configuration of this level.
    pub typed_per_filter_config: Vec<PerFilterConfig>,
    /// Metadata as filter name to struct (JSON).
    pub metadata: Option<Arc<serde_json::Value>>,
    /// Serialized `decorator`.
    pub decorator_operation: Option<Box<str>>,
    /// `per_request_buffer_limit_bytes`.
    pub per_request_buffer_limit_bytes: Option<u64>,
    /// `stat_prefix`.
    pub stat_prefix: Option<Box<str>>,
    /// Path in the configuration.
    pub path: Box<str>,
}

/// `RouteMatch`.
#[derive(Debug, Clone)]
pub struct RouteMatch {
    /// Path condition.
    pub path: PathMatch,
    /// Case-sensitive paths; default true.
    pub case_sensitive: bool,
    /// Share of requests.
    pub runtime_fraction: Option<RuntimeFraction>,
    /// Header conditions, all must hold.
    pub headers: Vec<HeaderMatcher>,
    /// Query conditions, all must hold.
    pub query_parameters: Vec<QueryParameterMatcher>,
    /// Cookie conditions, all must hold.
    pub cookies: Vec<CookieMatcher>,
    /// gRPC requests only.
    pub grpc: bool,
    /// TLS client certificate conditions.
    pub tls_context: Option<TlsContextMatch>,
    /// Dynamic metadata conditions.
    pub dynamic_metadata: Vec<MetadataMatcher>,
    /// Filter state conditions, all must hold.
    pub filter_state: Vec<FilterStateMatcher>,
}

/// `FilterStateMatcher`.
#[derive(Debug, Clone)]
pub struct FilterStateMatcher {
    /// Key of the object.
    pub key: Box<str>,
    /// What it must satisfy.
    pub value: FilterStateCondition,
}

/// The condition of a [`FilterStateMatcher`].
#[derive(Debug, Clone)]
pub enum FilterStateCondition {
    /// The object as text.
    String(StringMatcher),
    /// The object as an IP address within one of these ranges, or within none of them.
    Address {
        /// Ranges.
        ranges: Vec<CidrRange>,
        /// `invert_match`.
        invert: bool,
    },
}

/// `TlsContextMatchOptions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsContextMatch {
    /// A certificate was presented.
    pub presented: Option<bool>,
    /// It was validated.
    pub validated: Option<bool>,
}

/// `MetadataMatcher`: filter, path of keys, and the condition as JSON of the `ValueMatcher` message.
#[derive(Debug, Clone)]
pub struct MetadataMatcher {
    /// Metadata namespace.
    pub filter: Box<str>,
    /// Keys down to the value.
    pub path: Vec<Box<str>>,
    /// Condition.
    pub value: ValueMatcher,
    /// `invert`.
    pub invert: bool,
}

/// `ValueMatcher`.
#[derive(Debug, Clone)]
pub enum ValueMatcher {
    /// Value is null.
    Null,
    /// Number in `[start, end)` or equal.
    Range(f64, f64),
    /// Number equal.
    Number(f64),
    /// String condition.
    String(StringMatcher),
    /// Bool equal.
    Bool(bool),
    /// Any non-null value (or none when false).
    Present(bool),
    /// One element matches.
    ListOneOf(Box<ValueMatcher>),
    /// One of these.
    Or(Vec<ValueMatcher>),
}

/// `path_specifier`.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// `prefix`.
    Prefix(Box<str>),
    /// `path`.
    Exact(Box<str>),
    /// `safe_regex`, anchored; matches the path without its query.
    Regex(Regex),
    /// `path_separated_prefix`.
    SeparatedPrefix(Box<str>),
    /// `connect_matcher`.
    Connect,
    /// `path_match_policy` with a URI template.
    Template(UriTemplate),
}

/// The action of a route.
#[derive(Debug, Clone)]
pub enum RouteActionKind {
    /// Forward.
    Route(Box<RouteAction>),
    /// Redirect.
    Redirect(Box<RedirectAction>),
    /// Answer here.
    DirectResponse(DirectResponse),
    /// `non_forwarding_action`, `filter_action`: left to filters.
    NonForwarding,
}

/// `DirectResponseAction`.
#[derive(Debug, Clone, PartialEq)]
pub struct DirectResponse {
    /// Status, 200..=599.
    pub status: u16,
    /// Body; `%LOCAL_REPLY_BODY%` of the format where there is one.
    pub body: Option<DataSource>,
    /// Format of the body.
    pub body_format: Option<crate::hcm::BodyFormat>,
}

/// `RedirectAction`.
#[derive(Debug, Clone)]
pub struct RedirectAction {
    /// `https_redirect` / `scheme_redirect`.
    pub scheme: RedirectScheme,
    /// Host; empty keeps it.
    pub host: Box<str>,
    /// Port; 0 keeps it.
    pub port: u16,
    /// What happens to the path.
    pub path: RedirectPath,
    /// 301, 302, 303, 307 or 308.
    pub response_code: u16,
    /// Remove the query.
    pub strip_query: bool,
}

/// Scheme of a redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectScheme {
    /// Keep it.
    Keep,
    /// `https_redirect`.
    Https,
    /// `scheme_redirect`.
    Scheme(Box<str>),
}

/// Path of a redirect.
#[derive(Debug, Clone)]
pub enum RedirectPath {
    /// Keep it.
    Keep,
    /// `path_redirect`.
    Replace(Box<str>),
    /// `prefix_rewrite`.
    Prefix(Box<str>),
    /// `regex_rewrite`.
    Regex(RegexRewrite),
    /// `path_rewrite`: a format string for the path.
    Format(Box<str>),
}

/// `RegexMatchAndSubstitute`. The substitution uses `\N` groups, kept as written.
#[derive(Debug, Clone)]
pub struct RegexRewrite {
    /// Unanchored pattern.
    pub pattern: Regex,
    /// Replacement with `\1`.
    pub substitution: Box<str>,
}

impl PartialEq for RegexRewrite {
    fn eq(&self, other: &Self) -> bool {
        self.pattern.as_str() == other.pattern.as_str() && self.substitution == other.substitution
    }
}

/// `RouteAction`.
#[derive(Debug, Clone)]
pub struct RouteAction {
    /// Which cluster.
    pub cluster: ClusterSpecifier,
    /// Status when the cluster is missing; default 503.
    pub cluster_not_found_response_code: u16,
    /// `metadata_match` of the subset load balancer, as JSON of `envoy.lb`.
    pub metadata_match: Option<Arc<serde_json::Value>>,
    /// Path rewrite.
    pub path_rewrite: PathRewrite,
    /// Host rewrite.
    pub host_rewrite: HostRewrite,
    /// Keep the old host in `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    /// Route timeout; default 15 s, None when 0.
    pub timeout: Option<Duration>,
    /// Overrides the HCM's stream idle timeout: None not said, Some(None) off.
    pub idle_timeout: Option<Option<Duration>>,
    /// Overrides the HCM's stream flush timeout, in the same way.
    pub flush_timeout: Option<Option<Duration>>,
    /// Retries; None falls back to the virtual host's.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// `priority: HIGH`.
    pub high_priority: bool,
    /// Hash policies.
    pub hash_policy: Vec<HashPolicy>,
    /// Upgrades switched on or off here.
    pub upgrades: Vec<RouteUpgrade>,
    /// `max_stream_duration`.
    pub max_stream_duration: Option<MaxStreamDuration>,
    /// Mirrors.
    pub request_mirror_policies: Vec<MirrorPolicy>,
    /// Internal redirects.
    pub internal_redirect_policy: Option<InternalRedirectPolicy>,
    /// `hedge_policy.hedge_on_per_try_timeout`.
    pub hedge_on_per_try_timeout: bool,
    /// Deprecated `max_grpc_timeout`: None not said.
    pub max_grpc_timeout: Option<Duration>,
    /// Deprecated `grpc_timeout_offset`.
    pub grpc_timeout_offset: Option<Duration>,
    /// What rate-limit filters are told of requests.
    pub rate_limits: Vec<RateLimit>,
    /// Those of the virtual host count too (`include_vh_rate_limits`).
    pub include_vh_rate_limits: bool,
}

/// Where a route sends requests.
#[derive(Debug, Clone)]
pub enum ClusterSpecifier {
    /// One cluster.
    Cluster(Arc<str>),
    /// Named by a request header.
    Header(Box<str>),
    /// Chosen by weight.
    Weighted(WeightedClusters),
    /// A matcher tree (`envoy.router.cluster_specifier_plugin.matcher`).
    Matcher(MatchTree<Arc<str>>),
    /// An optional plugin that does not exist here: the route has no answer.
    Unavailable,
}

/// `WeightedCluster`.
#[derive(Debug, Clone)]
pub struct WeightedClusters {
    /// Entries; weights sum to `total`.
    pub clusters: Vec<WeightedClusterEntry>,
    /// Sum of weights, at least 1.
    pub total: u32,
    /// `header_name`: request header with the random value.
    pub random_value_header: Option<Box<str>>,
    /// `use_hash_policy`: the hash of the route's policies takes the place of the random value.
    pub use_hash_policy: bool,
    /// `runtime_key_prefix`.
    pub runtime_key_prefix: Box<str>,
}

/// One weighted cluster.
#[derive(Debug, Clone)]
pub struct WeightedClusterEntry {
    /// Cluster; empty when `header` is used.
    pub name: Arc<str>,
    /// Request header that names it.
    pub header: Option<Box<str>>,
    /// Weight.
    pub weight: u32,
    /// Mutations of this level.
    pub headers: HeaderMutations,
    /// Literal host.
    pub host_rewrite_literal: Option<Box<str>>,
    /// `metadata_match`: the route's, where this one does not say otherwise.
    pub metadata_match: Option<Arc<serde_json::Value>>,
    /// Per-filter configuration of this level.
    pub typed_per_filter_config: Vec<PerFilterConfig>,
}

/// Path rewrite of a forwarded request.
#[derive(Debug, Clone)]
pub enum PathRewrite {
    /// Leave it.
    None,
    /// Replace what matched.
    Prefix(Box<str>),
    /// Substitute.
    Regex(RegexRewrite),
    /// Replace the path, keep the query (`path_rewrite` format string).
    Format(Box<str>),
    /// `path_rewrite_policy` with a URI template.
    Template(Box<UriTemplateRewrite>),
}

/// Host rewrite of a forwarded request.
#[derive(Debug, Clone)]
pub enum HostRewrite {
    /// Leave it.
    None,
    /// Literal.
    Literal(Box<str>),
    /// The chosen host's name.
    Auto,
    /// From a header.
    Header(Box<str>),
    /// From the path.
    PathRegex(RegexRewrite),
    /// `host_rewrite` format string.
    Format(Box<str>),
}

/// `HashPolicy`.
#[derive(Debug, Clone, PartialEq)]
pub struct HashPolicy {
    /// Stop when this yields a hash.
    pub terminal: bool,
    /// Source.
    pub kind: HashPolicyKind,
}

/// Source of a hash.
#[derive(Debug, Clone, PartialEq)]
pub enum HashPolicyKind {
    /// A header, optionally rewritten.
    Header(Box<str>, Option<RegexRewrite>),
    /// A cookie, made when missing if it has a TTL.
    Cookie {
        /// Name.
        name: Box<str>,
        /// TTL of a generated one; Some(ZERO) for a session cookie.
        ttl: Option<Duration>,
        /// Path attribute.
        path: Box<str>,
        /// Further attributes.
        attributes: Vec<(Box<str>, Box<str>)>,
    },
    /// Source IP.
    SourceIp,
    /// Query parameter.
    QueryParameter(Box<str>),
    /// Filter state key.
    FilterState(Box<str>),
}

/// `RouteAction.UpgradeConfig`.
#[derive(Debug, Clone)]
pub struct RouteUpgrade {
    /// Lower-cased type.
    pub upgrade_type: Box<str>,
    /// Default true.
    pub enabled: bool,
    /// CONNECT ends here.
    pub connect_config: Option<ConnectConfig>,
}

/// `ConnectConfig`: the payload goes to the upstream over a plain connection, not as a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectConfig {
    /// POST requests are ended in the same way.
    pub allow_post: bool,
    /// The connection begins with a PROXY header of this version.
    pub proxy_protocol: Option<ProxyProtocolVersion>,
}

/// `MaxStreamDuration`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxStreamDuration {
    /// `max_stream_duration`.
    pub max_stream_duration: Option<Duration>,
    /// `grpc_timeout_header_max`: ZERO means "as the client asks".
    pub grpc_timeout_header_max: Option<Duration>,
    /// `grpc_timeout_header_offset`.
    pub grpc_timeout_header_offset: Option<Duration>,
}

/// `RequestMirrorPolicy`.
#[derive(Debug, Clone)]
pub struct MirrorPolicy {
    /// Target cluster.
    pub cluster: Arc<str>,
    /// Header that names it instead.
    pub cluster_header: Option<Box<str>>,
    /// Share of requests.
    pub runtime_fraction: Option<RuntimeFraction>,
    /// Share of traced requests.
    pub trace_sampled: Option<bool>,
    /// Do not append `-shadow`.
    pub disable_shadow_host_suffix_append: bool,
    /// Host of the mirrored request; nothing is appended to it.
    pub host_rewrite_literal: Option<Box<str>>,
    /// Changes of the mirrored request's headers, in order.
    pub header_mutations: Vec<HeaderMutation>,
    /// Path in the configuration.
    pub path: Box<str>,
}
