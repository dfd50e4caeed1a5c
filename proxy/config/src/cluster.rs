//! Clusters and their endpoints (`envoy.config.cluster.v3`, `envoy.config.endpoint.v3`).

use crate::address::{Address, EndpointAddress};
use crate::bootstrap::StatsMatcher;
use crate::hcm::{Http1Options, Http2Options};
use crate::listener::{IpVersion, SocketOption};
use crate::matchers::HeaderMatcher;
use crate::matching::MatchTree;
use crate::proxy_protocol::{Tlv, UpstreamProxyProtocol};
use crate::route::{HashPolicy, MetadataMatcher, MirrorPolicy, RetryPolicy};
use crate::tls::UpstreamTlsContext;
use crate::typed_config::TypedConfig;
use std::sync::Arc;
use std::time::Duration;

mod client_weights;
mod decode;
mod destinations;
mod discovery;
mod dns;
mod dynamic_forward_proxy;
mod endpoints;
mod health_check;
mod http_options;
mod limits;
mod load_balancing;
mod outlier;
mod policies;
mod subset;
mod transport_sockets;

pub use client_weights::{ClientWeightsConfig, OobReporting};
pub(crate) use decode::DEFAULT_BUFFER_LIMIT;
pub use destinations::{MetadataKey, MetadataStep, OriginalDstConfig, OverrideSource};
pub use dynamic_forward_proxy::{DnsCacheConfig, ForwardProxyNames, SubClustersConfig};
pub use endpoints::check_weights;
pub use health_check::{EndpointHealthCheck, HealthCheckConfig, HealthCheckKind, HttpHealthCheck};
pub use outlier::OutlierDetectionConfig;
pub use subset::{FALLBACK_LIST, SelectorFallback, SubsetConfig, SubsetFallback, SubsetSelector};

/// One cluster.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Unique name.
    pub name: Arc<str>,
    /// Name in stats, `:` replaced by `_`; the name where not set.
    pub alt_stat_name: Option<Box<str>>,
    /// How hosts are found.
    pub discovery: Discovery,
    /// Default 5 s.
    pub connect_timeout: Duration,
    /// Soft limit on buffers of a connection, bytes; default 1 MiB.
    pub per_connection_buffer_limit_bytes: u32,
    /// Load balancing policy.
    pub lb_policy: LbPolicy,
    /// Settings common to policies.
    pub lb_common: CommonLbConfig,
    /// Which stats of the cluster exist, where that is not left to the bootstrap.
    pub stats_matcher: Option<Arc<StatsMatcher>>,
    /// Endpoints written in the cluster.
    pub endpoints: ClusterLoadAssignment,
    /// Protocol toward the hosts.
    pub http: UpstreamHttpOptions,
    /// Connection limits.
    pub circuit_breakers: CircuitBreakers,
    /// TLS, or None for plain text.
    pub tls: Option<Arc<UpstreamTlsContext>>,
    /// The PROXY header that goes before TLS or plain text; None for no header.
    pub proxy_protocol: Option<Arc<UpstreamProxyProtocol>>,
    /// Another transport socket, resolved by the registry.
    pub transport_socket: Option<TypedConfig>,
    /// `transport_socket_matches`.
    pub transport_socket_matches: Vec<TransportSocketMatch>,
    /// Chooses among them by more than their criteria: leads to a position; None for a name that none has.
    pub transport_socket_matcher: Option<Arc<MatchTree<Option<u32>>>>,
    /// In which order addresses of both IP versions are tried.
    pub happy_eyeballs: HappyEyeballs,
    /// Local address and options of connections.
    pub bind: BindConfig,
    /// TCP keep-alive: probes, idle time and interval, in seconds.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// DNS settings.
    pub dns: DnsConfig,
    /// Close connections to a host as soon as health checks fail (`close_connections_on_host_health_failure`).
    pub close_connections_on_host_health_failure: bool,
    /// Drop a removed host at once although its health check still passes.
    pub ignore_health_on_host_removal: bool,
    /// Active health checking; None where there is none.
    pub health_check: Option<Arc<HealthCheckConfig>>,
    /// `outlier_detection`; None for no detector.
    pub outlier_detection: Option<OutlierDetectionConfig>,
    /// Cluster metadata as JSON.
    pub metadata: Option<Arc<serde_json::Value>>,
    /// `connection_pool_per_downstream_connection`.
    pub connection_pool_per_downstream_connection: bool,
    /// `preconnect_policy`.
    pub preconnect: PreconnectPolicy,
    /// `track_cluster_stats` / `track_timeout_budgets`.
    pub track_timeout_budgets: bool,
    /// Metrics of endpoints that load reports tell (`lrs_report_endpoint_metrics`); empty for none.
    pub lrs_report_endpoint_metrics: Arc<[Box<str>]>,
    /// `track_cluster_stats.request_response_sizes`.
    pub track_sizes: bool,
    /// The numbers of single hosts are shown with the stats (`track_cluster_stats.per_endpoint_stats`).
    pub per_endpoint_stats: bool,
    /// What goes before the routes' policies; None where the cluster has none of its own.
    pub policies: Option<Arc<HttpPolicies>>,
    /// Added through an API (shown by the admin).
    pub added_via_api: bool,
    /// Path in the configuration.
    pub path: Box<str>,
}

impl ClusterConfig {
    /// A static cluster of this name with Envoy's defaults and no endpoint.
    pub fn new(name: &str) -> Self {
        ClusterConfig {
            name: name.into(),
            alt_stat_name: None,
            discovery: Discovery::Static,
            connect_timeout: Duration::from_secs(5),
            per_connection_buffer_limit_bytes: 1 << 20,
            lb_policy: LbPolicy::RoundRobin,
            lb_common: CommonLbConfig::default(),
            stats_matcher: None,
            endpoints: ClusterLoadAssignment::default(),
            http: UpstreamHttpOptions::default(),
            circuit_breakers: CircuitBreakers::default(),
            tls: None,
            proxy_protocol: None,
            transport_socket: None,
            transport_socket_matches: Vec::new(),
            transport_socket_matcher: None,
            happy_eyeballs: HappyEyeballs::default(),
            bind: BindConfig::default(),
            tcp_keepalive: None,
            dns: DnsConfig::default(),
            close_connections_on_host_health_failure: false,
            ignore_health_on_host_removal: false,
            health_check: None,
            outlier_detection: None,
            metadata: None,
            connection_pool_per_downstream_connection: false,
            preconnect: PreconnectPolicy::default(),
            track_timeout_budgets: false,
            lrs_report_endpoint_metrics: Arc::default(),
            track_sizes: false,
            per_endpoint_stats: false,
            policies: None,
            added_via_api: false,
            path: "".into(),
        }
    }
}

/// Policies for all requests of a cluster (`HttpProtocolOptions`); each goes before the one of the route.
#[derive(Debug, Clone, Default)]
pub struct HttpPolicies {
    /// `request_mirror_policies`; empty for the route's.
    pub mirrors: Vec<MirrorPolicy>,
    /// `hash_policy`; empty for the route's.
    pub hash: Vec<HashPolicy>,
    /// `retry_policy`; None for the route's.
    pub retry: Option<Arc<RetryPolicy>>,
    /// `outlier_detection.error_matcher`: which responses count as errors; None for those of status 5xx.
    pub error_matcher: Option<ResponsePredicate>,
    /// Path in the configuration.
    pub path: Box<str>,
}

/// A condition on the head of a response (`MatchPredicate`).
#[derive(Debug, Clone)]
pub enum ResponsePredicate {
    /// One of them.
    Any(Vec<ResponsePredicate>),
    /// All of them.
    All(Vec<ResponsePredicate>),
    /// Not this one.
    Not(Box<ResponsePredicate>),
    /// Always, or never: never for conditions on what is not looked at.
    Constant(bool),
    /// All of these headers.
    Headers(Vec<HeaderMatcher>),
}

/// A transport socket towards upstreams, as far as there are kinds of them.
#[derive(Debug, Clone, Default)]
pub struct UpstreamSocket {
    /// TLS, or None for plain text.
    pub tls: Option<Arc<UpstreamTlsContext>>,
    /// The PROXY header that goes before either; None for no header.
    pub proxy_protocol: Option<Arc<UpstreamProxyProtocol>>,
}

/// `HappyEyeballsConfig`: which addresses of a host go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HappyEyeballs {
    /// The IP version that goes first; None for that of the first address.
    pub first: Option<IpVersion>,
    /// How many addresses of it are tried before one of the other version; at least 1.
    pub count: u32,
}

impl Default for HappyEyeballs {
    fn default() -> Self {
        HappyEyeballs { first: None, count: 1 }
    }
}

/// `TransportSocketMatch`.
#[derive(Debug, Clone)]
pub struct TransportSocketMatch {
    /// Name, for its counter.
    pub name: Box<str>,
    /// Endpoint metadata to match, as JSON.
    pub criteria: serde_json::Value,
    /// What endpoints with that metadata get.
    pub socket: UpstreamSocket,
}

/// How hosts are found.
#[derive(Debug, Clone, PartialEq)]
pub enum Discovery {
    /// STATIC.
    Static,
    /// STRICT_DNS.
    StrictDns,
    /// LOGICAL_DNS.
    LogicalDns,
    /// EDS: service name and serialized `ConfigSource`.
    Eds {
        /// `service_name`, the cluster's name where empty.
        service_name: Box<str>,
        /// Serialized `ConfigSource`.
        source: bytes::Bytes,
    },
    /// ORIGINAL_DST.
    OriginalDst(OriginalDstConfig),
    /// `envoy.clusters.dynamic_forward_proxy`: a host for each name of a DNS cache.
    DynamicForwardProxy {
        /// What is kept of the names.
        names: ForwardProxyNames,
        /// Names need not be checked against certificates.
        allow_insecure: bool,
    },
    /// `envoy.clusters.aggregate`: no hosts of its own but those of these clusters, which need not exist.
    Aggregate {
        /// Names; the first is preferred.
        clusters: Box<[Box<str>]>,
    },
    /// `cluster_type`.
    Extension(TypedConfig),
}

/// Load balancing policy with its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum LbPolicy {
    /// Round robin.
    RoundRobin,
    /// Least request.
    LeastRequest {
        /// Hosts compared; default 2.
        choice_count: u32,
        /// Exponent of active requests in weighted mode; default 1.
        active_request_bias: f64,
        /// All hosts are compared (`selection_method: FULL_SCAN`).
        full_scan: bool,
    },
    /// Random.
    Random,
    /// Ring hash.
    RingHash {
        /// Default 1024.
        minimum_ring_size: u64,
        /// Default 8 Mi.
        maximum_ring_size: u64,
        /// MURMUR_HASH_2 instead of xxHash64.
        murmur: bool,
    },
    /// Maglev.
    Maglev {
        /// Prime; default 65537.
        table_size: u64,
    },
    /// CLUSTER_PROVIDED.
    ClusterProvided,
    /// Any other, resolved by the registry.
    Extension(TypedConfig),
}

/// `CommonLbConfig`.
#[derive(Debug, Clone, PartialEq)]
pub struct CommonLbConfig {
    /// How localities are told apart where the process knows its local cluster.
    pub zone_aware: ZoneAwareConfig,
    /// Percent of healthy hosts below which all are used; default 50.
    pub healthy_panic_threshold: f64,
    /// Do not use the unhealthy when panicking.
    pub fail_traffic_on_panic: bool,
    /// Locality weights are respected.
    pub locality_weighted: bool,
    /// Default 140.
    pub overprovisioning_factor: u32,
    /// The health of a priority is counted in weights instead of hosts.
    pub weighted_priority_health: bool,
    /// Updates are merged over this window; default 1 s.
    pub update_merge_window: Duration,
    /// New hosts are not used before their first health check.
    pub ignore_new_hosts_until_first_hc: bool,
    /// Close all connections of a pool when the host set changes.
    pub close_connections_on_host_set_change: bool,
    /// Hosts that have become healthy get their weight little by little; None for at once.
    pub slow_start: Option<SlowStartConfig>,
    /// Weights follow what hosts report (`client_side_weighted_round_robin`).
    pub client_weights: Option<Arc<ClientWeightsConfig>>,
    /// Where requests name hosts that go before every pick (`override_host`).
    pub override_host: Option<Arc<[OverrideSource]>>,
    /// Where the address of the host that was picked is told (`override_host`'s `selected_host_key`).
    pub selected_host_key: Option<MetadataKey>,
    /// How hosts are hashed.
    pub hashing: HashingConfig,
    /// Hosts are divided into subsets, and the policy picks within one; None for no division.
    pub subsets: Option<Arc<SubsetConfig>>,
    /// Runtime keys of numbers above.
    pub runtime_keys: LbRuntimeKeys,
}

/// Runtime keys that go before what the configuration says (`RuntimeDouble`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LbRuntimeKeys {
    /// Of the bias of [`LbPolicy::LeastRequest`].
    pub active_request_bias: Option<Box<str>>,
    /// Of [`SlowStartConfig::aggression`].
    pub aggression: Option<Box<str>>,
}

impl LbRuntimeKeys {
    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.active_request_bias.is_none() && self.aggression.is_none()
    }
}

impl Default for CommonLbConfig {
    fn default() -> Self {
        CommonLbConfig {
            zone_aware: ZoneAwareConfig::default(),
            healthy_panic_threshold: 50.0,
            fail_traffic_on_panic: false,
            locality_weighted: false,
            overprovisioning_factor: 140,
            weighted_priority_health: false,
            update_merge_window: Duration::from_secs(1),
            ignore_new_hosts_until_first_hc: false,
            close_connections_on_host_set_change: false,
            slow_start: None,
            client_weights: None,
            override_host: None,
            selected_host_key: None,
            hashing: HashingConfig::default(),
            subsets: None,
            runtime_keys: LbRuntimeKeys::default(),
        }
    }
}

/// `ConsistentHashingLbConfig`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HashingConfig {
    /// Hosts are hashed by their names instead of their addresses.
    pub use_hostname: bool,
    /// Active requests that a host may have, in percent of the average; None for any number.
    pub balance_factor: Option<u32>,
    /// What requests are hashed by, instead of what their routes say; empty for what routes say.
    pub policies: Arc<[HashPolicy]>,
}

/// `ZoneAwareLbConfig`, without what it says of panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZoneAwareConfig {
    /// Percent of requests that are routed so; default 100.
    pub routing_enabled: u32,
    /// Healthy hosts that there have to be; default 6.
    pub min_cluster_size: u64,
    /// With so many healthy hosts in the own locality everything stays there; None to share evenly.
    pub force_local_zone: Option<u32>,
    /// Shares go by the weights of hosts instead of their number.
    pub by_weight: bool,
}

impl Default for ZoneAwareConfig {
    fn default() -> Self {
        ZoneAwareConfig { routing_enabled: 100, min_cluster_size: 6, force_local_zone: None, by_weight: false }
    }
}

/// `SlowStartConfig`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowStartConfig {
    /// How long the weight grows; not zero.
    pub window: Duration,
    /// Default 1; greater is faster.
    pub aggression: f64,
    /// Least share of the weight; default 10.
    pub min_weight_percent: f64,
}

/// `ClusterLoadAssignment`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClusterLoadAssignment {
    /// Name of the assignment.
    pub cluster_name: Box<str>,
    /// Localities in configuration order.
    pub localities: Vec<LocalityEndpoints>,
    /// Overrides the cluster's factor.
    pub overprovisioning_factor: Option<u32>,
    /// The health of a priority is counted in weights instead of hosts.
    pub weighted_priority_health: bool,
    /// `drop_overloads`: how many of a million requests are refused.
    pub drop_per_million: u32,
    /// What the requests that are refused are called in load reports.
    pub drop_category: Option<Arc<str>>,
    /// `endpoint_stale_after`: without an update for this long the endpoints are given up.
    pub stale_after: Option<Duration>,
}

/// `LocalityLbEndpoints`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LocalityEndpoints {
    /// Region, zone, sub-zone.
    pub locality: Locality,
    /// 0 is the highest.
    pub priority: u32,
    /// Weight of the locality.
    pub weight: Option<u32>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Where they come from one by one; there are no others then.
    pub collection: Option<Arc<EndpointCollection>>,
}

/// `LedsClusterLocalityConfig`.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointCollection {
    /// Name of the collection: an `xdstp://` or `file://` locator.
    pub name: Box<str>,
    /// The serialized `ConfigSource`.
    pub source: bytes::Bytes,
    /// That of the locality, which its endpoints have, too.
    pub locality_metadata: Option<Arc<serde_json::Value>>,
}

/// `Locality`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    /// Region.
    pub region: Box<str>,
    /// Zone.
    pub zone: Box<str>,
    /// Sub-zone.
    pub sub_zone: Box<str>,
}

/// `LbEndpoint`.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// Where.
    pub address: EndpointAddress,
    /// Further addresses for happy eyeballs.
    pub additional_addresses: Vec<Address>,
    /// `hostname`.
    pub hostname: Box<str>,
    /// What stats say in place of its address; None for that (`observability_name`).
    pub observability_name: Option<Arc<str>>,
    /// Health by configuration.
    pub health: HealthStatus,
    /// Weight; default 1.
    pub weight: u32,
    /// Metadata (namespace to struct) as JSON.
    pub metadata: Option<Arc<serde_json::Value>>,
    /// Metadata of its locality.
    pub locality_metadata: Option<Arc<serde_json::Value>>,
    /// `health_check_config`.
    pub own_health_check: Option<Arc<EndpointHealthCheck>>,
    /// TLVs of PROXY headers, by its typed metadata.
    pub added_tlvs: Option<Arc<[Tlv]>>,
}

impl Endpoint {
    /// An endpoint of weight 1 of which nothing but the address is known.
    pub fn new(address: EndpointAddress) -> Self {
        Endpoint {
            address,
            additional_addresses: Vec::new(),
            hostname: "".into(),
            observability_name: None,
            health: HealthStatus::Unknown,
            weight: 1,
            metadata: None,
            locality_metadata: None,
            own_health_check: None,
            added_tlvs: None,
        }
    }
}

/// `HealthStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum HealthStatus {
    /// UNKNOWN counts as healthy.
    #[default]
    Unknown,
    /// HEALTHY.
    Healthy,
    /// UNHEALTHY.
    Unhealthy,
    /// DRAINING counts as unhealthy.
    Draining,
    /// TIMEOUT counts as unhealthy.
    Timeout,
    /// DEGRADED.
    Degraded,
}

/// `HttpProtocolOptions` of an upstream.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamHttpOptions {
    /// Protocol choice.
    pub protocol: UpstreamProtocol,
    /// HTTP/1 options.
    pub http1: Http1Options,
    /// HTTP/2 options.
    pub http2: Http2Options,
    /// Idle timeout of pooled connections; default 1 h, None when 0.
    pub idle_timeout: Option<Duration>,
    /// `max_connection_duration`.
    pub max_connection_duration: Option<Duration>,
    /// It is longer by up to this share.
    pub max_connection_duration_jitter: f64,
    /// `max_requests_per_connection`.
    pub max_requests_per_connection: Option<u32>,
    /// `max_headers_count` of responses; default 100.
    pub max_headers_count: u32,
    /// `max_response_headers_kb`; default 60 (80 for HTTP/1 in Envoy when unset).
    pub max_response_headers_kb: Option<u32>,
    /// `max_stream_duration`.
    pub max_stream_duration: Option<Duration>,
    /// `headers_with_underscores_action` does not apply upstream; kept for completeness of the common options.
    pub auto_sni: bool,
    /// `auto_san_validation`.
    pub auto_san_validation: bool,
    /// `override_auto_sni_header`.
    pub override_auto_sni_header: Option<Box<str>>,
    /// Upstream HTTP filters.
    pub http_filters: Vec<crate::hcm::HttpFilterConfig>,
}

impl Default for UpstreamHttpOptions {
    fn default() -> Self {
        UpstreamHttpOptions {
            protocol: UpstreamProtocol::Http1,
            http1: Http1Options::default(),
            http2: Http2Options::default(),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_connection_duration_jitter: 0.0,
            max_requests_per_connection: None,
            max_headers_count: 100,
            max_response_headers_kb: None,
            max_stream_duration: None,
            auto_sni: false,
            auto_san_validation: false,
            override_auto_sni_header: None,
            http_filters: Vec::new(),
        }
    }
}

/// Protocol toward hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// HTTP/3.
    Http3,
    /// By ALPN (`auto_config`).
    Auto,
    /// Same as the downstream request (`use_downstream_protocol_config`).
    UseDownstream,
}

/// `PreconnectPolicy`: connections that are opened ahead of requests. Ratios are in thousandths.
#[derive(Debug, Clone)]
pub struct PreconnectPolicy {
    /// Streams to be ready for at each host for each that there is; 1000 for no more.
    pub per_upstream_ratio: u32,
    /// The same for the cluster: connections go to the hosts that are picked next; 1000 for no more.
    pub predictive_ratio: u32,
    /// Only hosts with such metadata get connections ahead; None for all.
    pub enabled_metadata: Option<Arc<MetadataMatcher>>,
}

impl Default for PreconnectPolicy {
    fn default() -> Self {
        PreconnectPolicy { per_upstream_ratio: 1000, predictive_ratio: 1000, enabled_metadata: None }
    }
}

/// `RetryBudget`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Share of the requests that may be retries; default 20.
    pub percent: f64,
    /// So many may be at least; default 3.
    pub min_concurrency: u32,
    /// Requests count from their start for so long, whether they last or not; zero for those that are active.
    pub interval: Duration,
}

/// Circuit breakers of both priorities.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CircuitBreakers {
    /// DEFAULT priority.
    pub default: Thresholds,
    /// HIGH priority.
    pub high: Thresholds,
    /// `per_host_thresholds.max_connections` of DEFAULT.
    pub per_host_max_connections: Option<u32>,
}

/// `Thresholds` with Envoy's defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    /// Default 1024.
    pub max_connections: u32,
    /// Default 1024.
    pub max_pending_requests: u32,
    /// Default 1024.
    pub max_requests: u32,
    /// Default 3.
    pub max_retries: u32,
    /// `retry_budget`; None for `max_retries`.
    pub retry_budget: Option<RetryBudget>,
    /// Report remaining gauges.
    pub track_remaining: bool,
    /// None for no limit.
    pub max_connection_pools: Option<u32>,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
            track_remaining: false,
            max_connection_pools: None,
        }
    }
}

/// `BindConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BindConfig {
    /// Source addresses: `source_address`, and one of the other IP version.
    pub sources: Vec<SourceAddress>,
    /// IP_FREEBIND.
    pub freebind: bool,
    /// Options.
    pub socket_options: Vec<SocketOption>,
}

/// A source address of outgoing connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceAddress {
    /// Address and port; port 0 leaves it to the kernel.
    pub addr: std::net::SocketAddr,
    /// File of the Linux network namespace in which the socket is made.
    pub network_namespace: Option<Arc<str>>,
    /// In place of those of the [`BindConfig`].
    pub socket_options: Option<Vec<SocketOption>>,
}

impl BindConfig {
    /// The source address for a connection to `target`: of the same IP version if there is one.
    pub fn source_for(&self, target: std::net::SocketAddr) -> Option<&SourceAddress> {
        let same = self.sources.iter().find(|source| source.addr.is_ipv4() == target.is_ipv4());
        same.or_else(|| self.sources.first())
    }
}

/// `TcpKeepalive`; None leaves the system's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// Probes before giving up.
    pub probes: Option<u32>,
    /// Seconds of silence before the first.
    pub time: Option<u32>,
    /// Seconds between probes.
    pub interval: Option<u32>,
}

/// DNS settings of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// Default 5 s.
    pub refresh_rate: Duration,
    /// Base and maximum after a failure; the refresh rate otherwise.
    pub failure_refresh: Option<(Duration, Duration)>,
    /// Random addition to the rate.
    pub jitter: Duration,
    /// Use the records' TTL instead of the rate.
    pub respect_ttl: bool,
    /// A shorter TTL counts as this.
    pub min_refresh_rate: Duration,
    /// Families asked for.
    pub family: DnsLookupFamily,
    /// Resolvers to ask instead of the system's.
    pub resolvers: Vec<std::net::SocketAddr>,
    /// Ask over TCP.
    pub use_tcp: bool,
    /// Ignore search domains.
    pub no_default_search_domain: bool,
    /// Resolve before the cluster counts as initialised; default true.
    pub wait_for_warm_on_init: bool,
}

/// What the bootstrap says of DNS, for clusters that say nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsDefaults {
    /// Resolvers to ask instead of the system's.
    pub resolvers: Vec<std::net::SocketAddr>,
    /// Ask over TCP.
    pub use_tcp: bool,
    /// Ignore search domains.
    pub no_default_search_domain: bool,
}

impl Default for DnsConfig {
    fn default() -> Self {
        DnsConfig {
            refresh_rate: Duration::from_secs(5),
            failure_refresh: None,
            jitter: Duration::ZERO,
            respect_ttl: false,
            min_refresh_rate: Duration::ZERO,
            family: DnsLookupFamily::Auto,
            resolvers: Vec::new(),
            use_tcp: false,
            no_default_search_domain: false,
            wait_for_warm_on_init: true,
        }
    }
}

/// `DnsLookupFamily`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DnsLookupFamily {
    /// IPv6 first, IPv4 when there is none.
    #[default]
    Auto,
    /// IPv4 only.
    V4Only,
    /// IPv6 only.
    V6Only,
    /// IPv4 first.
    V4Preferred,
    /// Both.
    All,
}
