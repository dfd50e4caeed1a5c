//! The bootstrap: everything a static data plane starts from.

use crate::access_log::AccessLogConfig;
use crate::address::Address;
use crate::cluster::ClusterConfig;
use crate::config_source::{ApiConfigSource, DynamicResources};
use crate::listener::{ListenerConfig, SocketOption};
use crate::matchers::StringMatcher;
use crate::typed_config::TypedConfig;
use std::sync::Arc;
use std::time::Duration;

mod decode;

pub use decode::runtime_values;

/// `envoy.config.bootstrap.v3.Bootstrap`, decoded.
#[derive(Debug, Clone)]
pub struct BootstrapConfig {
    /// The node; id, cluster and zone may be overridden by flags.
    pub node: NodeConfig,
    /// Admin interface; None when it has no address.
    pub admin: Option<AdminConfig>,
    /// Static listeners.
    pub listeners: Vec<Arc<ListenerConfig>>,
    /// Static clusters.
    pub clusters: Vec<Arc<ClusterConfig>>,
    /// Stat settings.
    pub stats: StatsConfig,
    /// Stat sinks, resolved by the registry.
    pub stats_sinks: Vec<TypedConfig>,
    /// Default 5 s.
    pub stats_flush_interval: Duration,
    /// Flush only when the admin interface is asked (`stats_flush_on_admin`).
    pub stats_flush_on_admin: bool,
    /// What `server.version` says, instead of 0 (`stats_server_version_override`).
    pub stats_server_version: Option<u64>,
    /// Where a file `drain` makes the health check fail from the start (`flags_path`).
    pub flags_path: Option<Box<str>>,
    /// Runtime layers in order; later ones win.
    pub runtime: Vec<RuntimeLayer>,
    /// Overload manager, serialized.
    pub overload_manager: Option<bytes::Bytes>,
    /// What is fetched while the process runs.
    pub dynamic: DynamicResources,
    /// Source address of all upstream connections.
    pub upstream_bind: crate::cluster::BindConfig,
    /// Where load reports go (`cluster_manager.load_stats_config`).
    pub load_stats: Option<ApiConfigSource>,
    /// `cluster_manager.local_cluster_name`.
    pub local_cluster_name: Option<Box<str>>,
    /// `cluster_manager.outlier_detection.event_log_path`; None for no log.
    pub outlier_event_log_path: Option<Box<str>>,
    /// `header_prefix`; default `x-envoy`.
    pub header_prefix: Box<str>,
    /// Bootstrap extensions, resolved by the registry.
    pub bootstrap_extensions: Vec<TypedConfig>,
    /// `inline_headers` need no action; `default_socket_interface` is informative.
    pub application_log_format: Option<LogFormatChoice>,
    /// Options of every listener's sockets (runtime `envoy...`); empty by default.
    pub default_socket_options: Vec<SocketOption>,
    /// Resolvers of clusters that name none.
    pub dns: crate::cluster::DnsDefaults,
    /// The whole message, for `/config_dump`.
    pub message: bytes::Bytes,
}

/// `application_log_config.log_format`.
#[derive(Debug, Clone, PartialEq)]
pub enum LogFormatChoice {
    /// spdlog pattern.
    Text(Box<str>),
    /// One JSON object per line.
    Json(serde_json::Value),
}

/// `Node`.
#[derive(Debug, Clone, Default)]
pub struct NodeConfig {
    /// Node id.
    pub id: Box<str>,
    /// Cluster the node belongs to.
    pub cluster: Box<str>,
    /// Locality.
    pub locality: crate::cluster::Locality,
    /// Serialized message, as written.
    pub message: bytes::Bytes,
}

/// `Admin`.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// Where it listens.
    pub address: Address,
    /// Access logs.
    pub access_logs: Vec<AccessLogConfig>,
    /// Socket options.
    pub socket_options: Vec<SocketOption>,
    /// Does not count toward the global connection limit.
    pub ignore_global_conn_limit: bool,
    /// `profile_path`.
    pub profile_path: Box<str>,
    /// Paths served; empty for all.
    pub allow_paths: Vec<StringMatcher>,
}

/// `StatsConfig`.
#[derive(Debug, Clone, Default)]
pub struct StatsConfig {
    /// Tags added to the default ones, in order.
    pub tags: Vec<TagSpecifier>,
    /// `use_all_default_tags`; default true.
    pub use_all_default_tags: bool,
    /// A tag goes before the default one of its name.
    pub allow_default_tag_overrides: bool,
    /// Which stats exist.
    pub matcher: StatsMatcher,
    /// Buckets by stat name.
    pub histogram_buckets: Vec<(StringMatcher, Vec<f64>)>,
    /// Flags `--stats-tag NAME:VALUE`.
    pub fixed_tags: Vec<(Box<str>, Box<str>)>,
}

/// `TagSpecifier`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagSpecifier {
    /// Tag name.
    pub name: Box<str>,
    /// Where the value comes from.
    pub kind: TagKind,
}

/// Source of a tag value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagKind {
    /// Regex with one or two groups; may use look-around.
    Regex(Box<str>),
    /// Fixed.
    Fixed(Box<str>),
    /// The default extractor of that name.
    Default,
}

/// `StatsMatcher`.
#[derive(Debug, Clone, Default)]
pub enum StatsMatcher {
    /// All stats exist.
    #[default]
    All,
    /// `reject_all`.
    None,
    /// Only those that match one.
    Inclusion(Vec<StringMatcher>),
    /// All but those that match one.
    Exclusion(Vec<StringMatcher>),
}

/// `RuntimeLayer`.
#[derive(Debug, Clone)]
pub struct RuntimeLayer {
    /// Name.
    pub name: Box<str>,
    /// Kind.
    pub kind: RuntimeLayerKind,
}

/// Kinds of runtime layers.
#[derive(Debug, Clone)]
pub enum RuntimeLayerKind {
    /// Flattened keys and values as JSON scalars.
    Static(Vec<(Box<str>, serde_json::Value)>),
    /// Files below a directory.
    Disk {
        /// `symlink_root`.
        symlink_root: Box<str>,
        /// `subdirectory`.
        subdirectory: Box<str>,
        /// `append_service_cluster`.
        append_service_cluster: bool,
    },
    /// Changed through the admin interface.
    Admin,
    /// Fetched (RTDS).
    Rtds {
        /// Name of the resource.
        resource: Box<str>,
        /// Serialized `ConfigSource`.
        source: bytes::Bytes,
    },
}
