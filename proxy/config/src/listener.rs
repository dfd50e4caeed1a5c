//! Listeners and filter chains (`envoy.config.listener.v3`).

use crate::access_log::AccessLogConfig;
use crate::address::Address;
use crate::bootstrap::StatsMatcher;
use crate::cluster::{DnsCacheConfig, TcpKeepalive};
use crate::discovered::Discovered;
use crate::matchers::CidrRange;
use crate::matching::MatchTree;
use crate::proxy_protocol::PassThroughTlvs;
use crate::tls::DownstreamTlsContext;
use crate::typed_config::TypedConfig;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

mod chain_match;
mod decode;

/// One listener.
#[derive(Debug, Clone)]
pub struct ListenerConfig {
    /// Unique name; Envoy makes a UUID when it is empty.
    pub name: Arc<str>,
    /// First is `address`, the others `additional_addresses`.
    pub addresses: Vec<ListenAddress>,
    /// `stat_prefix`; the address with `_` for `:` otherwise.
    pub stat_prefix: Option<Box<str>>,
    /// Metadata as JSON.
    pub metadata: Option<Arc<serde_json::Value>>,
    /// Chains in configuration order.
    pub filter_chains: Vec<Arc<FilterChainConfig>>,
    /// `filter_chain_matcher`: chooses among `filter_chains` by position in place of their own matches; None is a name
    /// that no chain has, for which a connection is closed.
    pub filter_chain_matcher: Option<Arc<MatchTree<Option<usize>>>>,
    /// Taken when no chain matches.
    pub default_filter_chain: Option<Arc<FilterChainConfig>>,
    /// `use_original_dst`.
    pub use_original_dst: bool,
    /// Soft limit on buffers of a connection, bytes; Envoy's default 1 MiB.
    pub per_connection_buffer_limit_bytes: u32,
    /// Filters that look at the first bytes.
    pub listener_filters: Vec<ListenerFilterConfig>,
    /// Which stats of the listener exist, where that is not left to the bootstrap.
    pub stats_matcher: Option<Arc<StatsMatcher>>,
    /// By the place of a filter: connections that it does not look at (`filter_disabled`).
    pub listener_filters_disabled: Vec<Option<ConnectionPredicate>>,
    /// Default 15 s; zero switches it off.
    pub listener_filters_timeout: Duration,
    /// Go on without the filters when they time out.
    pub continue_on_listener_filters_timeout: bool,
    /// IP_TRANSPARENT.
    pub transparent: Option<bool>,
    /// IP_FREEBIND.
    pub freebind: Option<bool>,
    /// Raw socket options.
    pub socket_options: Vec<SocketOption>,
    /// Keep-alive of accepted connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// TCP_FASTOPEN queue length; 0 switches it off.
    pub tcp_fast_open_queue_length: Option<u32>,
    /// `traffic_direction`.
    pub traffic_direction: TrafficDirection,
    /// One SO_REUSEPORT socket per worker; Envoy's default true.
    pub enable_reuse_port: bool,
    /// false: only reachable by hand-off from another listener.
    pub bind_to_port: bool,
    /// Backlog; 128 in Envoy, or the system's limit.
    pub tcp_backlog_size: Option<u32>,
    /// `drain_type: MODIFY_ONLY`.
    pub drain_modify_only: bool,
    /// Accepted connections beyond the global downstream limit are exempt.
    pub ignore_global_conn_limit: bool,
    /// At most this many new connections per wake-up.
    pub max_connections_to_accept_per_socket_event: Option<u32>,
    /// From runtime `envoy.resource_limits.listener.NAME.connection_limit`, or the connection limit of the listener.
    pub connection_limit: Option<u64>,
    /// Access logs of the listener itself.
    pub access_logs: Vec<AccessLogConfig>,
    /// Tells listeners apart that differ in more than their filter chains; within one run of the process.
    pub frame_fingerprint: u64,
    /// Path in the configuration.
    pub path: Box<str>,
}

/// An address with its own options.
#[derive(Debug, Clone)]
pub struct ListenAddress {
    /// Where to bind.
    pub address: Address,
    /// Options of this address in place of the listener's.
    pub socket_options: Option<Vec<SocketOption>>,
    /// Keep-alive of connections to this address in place of the listener's; the inner None switches it off.
    pub tcp_keepalive: Option<Option<TcpKeepalive>>,
}

impl From<Address> for ListenAddress {
    /// With the listener's options.
    fn from(address: Address) -> Self {
        ListenAddress { address, socket_options: None, tcp_keepalive: None }
    }
}

/// `SocketOption`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketOption {
    /// Level, as setsockopt wants it.
    pub level: i32,
    /// Option name.
    pub name: i32,
    /// Value.
    pub value: SocketOptionValue,
    /// When it is set.
    pub state: SocketOptionState,
    /// For sockets of this IP version only.
    pub ip_version: Option<IpVersion>,
}

/// Version of the Internet Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpVersion {
    /// 4
    V4,
    /// 6
    V6,
}

impl SocketOption {
    /// Whether it is meant for a socket of this address; None for a Unix socket.
    pub fn is_for(&self, ip: Option<std::net::IpAddr>) -> bool {
        match self.ip_version {
            None => true,
            Some(IpVersion::V4) => ip.is_some_and(|ip| ip.is_ipv4()),
            Some(IpVersion::V6) => ip.is_some_and(|ip| ip.is_ipv6()),
        }
    }
}

/// Value of a socket option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketOptionValue {
    /// An int.
    Int(i32),
    /// Raw bytes.
    Bytes(Vec<u8>),
}

/// When a socket option is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketOptionState {
    /// Before bind.
    Prebind,
    /// After bind.
    Bound,
    /// After listen.
    Listening,
}

/// `TrafficDirection`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrafficDirection {
    /// Not said.
    #[default]
    Unspecified,
    /// Toward this host.
    Inbound,
    /// Away from this host.
    Outbound,
}

/// `ListenerFilterChainMatchPredicate`: a condition on connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionPredicate {
    /// One of them holds.
    Or(Box<[ConnectionPredicate]>),
    /// All of them hold.
    And(Box<[ConnectionPredicate]>),
    /// It does not hold.
    Not(Box<ConnectionPredicate>),
    /// Always.
    Any,
    /// The destination port, as far as filters before have restored it, is in here.
    DestinationPort(Range<i32>),
}

impl ConnectionPredicate {
    /// Whether it holds for a connection to `port`; None where there are no ports.
    pub fn holds(&self, port: Option<u16>) -> bool {
        match self {
            Self::Or(rules) => rules.iter().any(|rule| rule.holds(port)),
            Self::And(rules) => rules.iter().all(|rule| rule.holds(port)),
            Self::Not(rule) => !rule.holds(port),
            Self::Any => true,
            Self::DestinationPort(range) => port.is_some_and(|port| range.contains(&i32::from(port))),
        }
    }
}

/// A listener filter.
#[derive(Debug, Clone)]
pub enum ListenerFilterConfig {
    /// `tls_inspector`.
    TlsInspector(TlsInspectorConfig),
    /// `http_inspector`.
    HttpInspector,
    /// `original_dst`.
    OriginalDst,
    /// `proxy_protocol`.
    ProxyProtocol(ProxyProtocolConfig),
    /// One whose configuration is fetched.
    Discovered(Arc<Discovered<ListenerFilterConfig>>),
    /// Any other; resolved by the registry.
    Extension(TypedConfig),
}

/// `envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsInspectorConfig {
    /// `enable_ja3_fingerprinting`; default false.
    pub ja3: bool,
    /// `enable_ja4_fingerprinting`; default false.
    pub ja4: bool,
    /// `close_connection_on_client_hello_parsing_errors`; default false.
    pub close_on_errors: bool,
    /// `max_client_hello_size` in bytes; default 16 KiB, which is also the most.
    pub max_client_hello_size: u32,
}

impl Default for TlsInspectorConfig {
    fn default() -> Self {
        TlsInspectorConfig { ja3: false, ja4: false, close_on_errors: false, max_client_hello_size: 16 * 1024 }
    }
}

/// `envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyProtocolConfig {
    /// Let connections without a PROXY header pass.
    pub allow_requests_without_proxy_protocol: bool,
    /// TLVs that are kept: type, metadata namespace and key.
    pub rules: Vec<(u8, Box<str>, Box<str>)>,
    /// They are kept as filter state, not as metadata.
    pub tlvs_in_filter_state: bool,
    /// Versions refused (1, 2).
    pub disallowed_versions: Vec<u8>,
    /// TLVs that are kept for the headers of upstream connections.
    pub pass_through: PassThroughTlvs,
    /// `stat_prefix`.
    pub stat_prefix: Box<str>,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocolVersion {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// One filter chain.
#[derive(Debug, Clone)]
pub struct FilterChainConfig {
    /// Name; may be empty.
    pub name: Arc<str>,
    /// When it is chosen.
    pub matches: FilterChainMatch,
    /// Network filters in order; the last is terminal.
    pub filters: Vec<NetworkFilterConfig>,
    /// TLS, or None for plain text.
    pub tls: Option<Arc<DownstreamTlsContext>>,
    /// Another transport socket, resolved by the registry.
    pub transport_socket: Option<TypedConfig>,
    /// Default 15 s in Envoy is "disabled"; zero means none.
    pub transport_socket_connect_timeout: Duration,
    /// Its metadata, as JSON.
    pub metadata: Option<Arc<serde_json::Value>>,
    /// Tells chains apart that differ in anything; within one run of the process.
    pub fingerprint: u64,
    /// Path in the configuration.
    pub path: Box<str>,
}

/// `envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SniForwardProxyConfig {
    /// The cache of names.
    pub cache: Arc<DnsCacheConfig>,
    /// Port of the hosts.
    pub port: u16,
}

/// A network filter.
#[derive(Debug, Clone)]
pub enum NetworkFilterConfig {
    /// HTTP connection manager.
    Http(Arc<crate::hcm::HcmConfig>),
    /// TCP proxy.
    TcpProxy(Arc<crate::tcp_proxy::TcpProxyConfig>),
    /// Looks up the host that TLS names, before the TCP proxy.
    SniForwardProxy(Arc<SniForwardProxyConfig>),
    /// One whose configuration is fetched.
    Discovered(Arc<Discovered<NetworkFilterConfig>>),
    /// Any other; resolved by the registry.
    Extension(TypedConfig),
}

/// `FilterChainMatch`; an empty list or None matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterChainMatch {
    /// Destination port.
    pub destination_port: Option<u16>,
    /// Destination ranges.
    pub prefix_ranges: Vec<CidrRange>,
    /// SNI names, lower-cased; `*.example.com` is a suffix.
    pub server_names: Vec<Box<str>>,
    /// "tls", "raw_buffer" or empty.
    pub transport_protocol: Box<str>,
    /// ALPN names.
    pub application_protocols: Vec<Box<str>>,
    /// Directly connected source ranges.
    pub direct_source_prefix_ranges: Vec<CidrRange>,
    /// Source kind.
    pub source_type: SourceType,
    /// Source ranges.
    pub source_prefix_ranges: Vec<CidrRange>,
    /// Source ports.
    pub source_ports: Vec<u16>,
}

/// `ConnectionSourceType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum SourceType {
    /// Any.
    #[default]
    Any,
    /// Loopback or the same address.
    SameIpOrLoopback,
    /// Anything else.
    External,
}
