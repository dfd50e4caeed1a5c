//! What the admin interface shows and does, as the server gives it: plain snapshots and a trait.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};
use xds_client::status::SourceState;

use bytes::Bytes;
use nuncio_base::stats::{HostMetric, Registry};

/// Where the admin interface gets its data from, and what it can make the server do. Called on the control thread.
pub trait AdminSources {
    /// The stats.
    fn stats(&self) -> &Registry;
    /// Called before stats are shown: bring derived gauges up to date, flush if `stats_flush_on_admin` says so.
    fn prepare_stats(&self);

    /// The numbers of single hosts that are shown with the stats.
    fn host_metrics(&self) -> Vec<HostMetric> {
        Vec::new()
    }

    /// What `/ready` says.
    fn server_state(&self) -> ServerState;
    /// What `/server_info` says.
    fn server_info(&self) -> ServerInfo;
    /// `disabled`, or the version that the hot restart protocol speaks.
    fn hot_restart_version(&self) -> String;
    /// What initialization waits for.
    fn unready_targets(&self) -> Vec<InitManagerStatus>;
    /// Memory in use.
    fn memory(&self) -> MemoryStatus;

    /// The active clusters.
    fn clusters(&self) -> Vec<ClusterStatus>;
    /// The active listeners.
    fn listeners(&self) -> Vec<ListenerStatus>;
    /// Certificates of all contexts.
    fn certificates(&self) -> Vec<CertificateSet>;
    /// The configuration in use; endpoints only if asked for.
    fn config_dump(&self, include_eds: bool) -> ConfigDump;

    /// Runtime layers, lowest first.
    fn runtime_layers(&self) -> Vec<RuntimeLayerStatus>;
    /// Sets values in the admin layer; an empty value removes one.
    ///
    /// # Errors
    /// What to tell the client, if there is no admin layer.
    fn modify_runtime(&self, values: &[(String, String)]) -> Result<(), String>;

    /// Loggers and their levels, in the order to show.
    fn log_levels(&self) -> Vec<(String, LogLevel)>;
    /// Sets the level of loggers that [`AdminSources::log_levels`] names.
    fn set_log_levels(&self, levels: &[(String, LogLevel)]);

    /// Makes health checks fail (and connections close after their response), or succeed again.
    fn fail_health_check(&self, fail: bool);
    /// Drains the listeners.
    fn drain_listeners(&self, how: DrainListeners);
    /// Stops the server, after the response to this request was sent.
    fn quit(&self);
    /// Opens access logs anew.
    fn reopen_logs(&self);
    /// What is known about every source of configuration and every resource of it.
    fn discovery(&self) -> Vec<SourceState> {
        Vec::new()
    }
}

/// The server's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerState {
    /// Serving.
    #[default]
    Live,
    /// Draining, or told to fail health checks.
    Draining,
    /// Clusters are still being warmed.
    PreInitializing,
    /// Listeners are still being warmed.
    Initializing,
}

impl ServerState {
    /// Envoy's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::PreInitializing => "PRE_INITIALIZING",
            Self::Initializing => "INITIALIZING",
        }
    }
}

/// `/server_info`.
#[derive(Clone, Debug, Default)]
pub struct ServerInfo {
    /// `sha/version/status/type/tls`.
    pub version: String,
    /// Since this process started.
    pub uptime_current_epoch: Duration,
    /// Since the first process of a chain of hot restarts started.
    pub uptime_all_epochs: Duration,
    /// The command line.
    pub options: CommandLineOptions,
    /// `envoy.config.core.v3.Node`, encoded.
    pub node: Bytes,
}

/// The command line as `/server_info` shows it. Defaults are Envoy's.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // The names are those of the flags.
pub struct CommandLineOptions {
    pub base_id: u64,
    pub use_dynamic_base_id: bool,
    pub base_id_path: String,
    pub concurrency: u32,
    pub config_path: String,
    pub config_yaml: String,
    pub allow_unknown_static_fields: bool,
    pub reject_unknown_dynamic_fields: bool,
    pub ignore_unknown_dynamic_fields: bool,
    pub skip_deprecated_logs: bool,
    pub admin_address_path: String,
    /// `v4` or `v6`.
    pub local_address_ip_version: String,
    pub log_level: String,
    pub component_log_level: String,
    pub log_format: String,
    pub log_format_escaped: bool,
    pub log_path: String,
    pub log_stacktrace_single_entry: bool,
    pub service_cluster: String,
    pub service_node: String,
    pub service_zone: String,
    pub file_flush_interval: Duration,
    pub file_flush_min_size: u32,
    pub drain_time: Duration,
    /// `Gradual` or `Immediate`.
    pub drain_strategy: String,
    pub parent_shutdown_time: Duration,
    /// `Serve`, `Validate` or `InitOnly`.
    pub mode: String,
    pub disable_hot_restart: bool,
    pub skip_hot_restart_on_no_parent: bool,
    pub skip_hot_restart_parent_stats: bool,
    pub enable_mutex_tracing: bool,
    pub restart_epoch: u32,
    pub cpuset_threads: bool,
    pub disabled_extensions: Vec<String>,
    pub enable_fine_grain_logging: bool,
    pub socket_path: String,
    pub socket_mode: u32,
    pub enable_core_dump: bool,
    pub stats_tag: Vec<String>,
}

impl Default for CommandLineOptions {
    fn default() -> Self {
        Self {
            base_id: 0,
            use_dynamic_base_id: false,
            base_id_path: String::new(),
            concurrency: 1,
            config_path: String::new(),
            config_yaml: String::new(),
            allow_unknown_static_fields: false,
            reject_unknown_dynamic_fields: false,
            ignore_unknown_dynamic_fields: false,
            skip_deprecated_logs: false,
            admin_address_path: String::new(),
            local_address_ip_version: "v4".into(),
            log_level: "info".into(),
            component_log_level: String::new(),
            log_format: "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v".into(),
            log_format_escaped: false,
            log_path: String::new(),
            log_stacktrace_single_entry: false,
            service_cluster: String::new(),
            service_node: String::new(),
            service_zone: String::new(),
            file_flush_interval: Duration::from_secs(10),
            file_flush_min_size: 0,
            drain_time: Duration::from_secs(600),
            drain_strategy: "Gradual".into(),
            parent_shutdown_time: Duration::from_secs(900),
            mode: "Serve".into(),
            disable_hot_restart: false,
            skip_hot_restart_on_no_parent: false,
            skip_hot_restart_parent_stats: false,
            enable_mutex_tracing: false,
            restart_epoch: 0,
            cpuset_threads: false,
            disabled_extensions: Vec::new(),
            enable_fine_grain_logging: false,
            socket_path: "@envoy_domain_socket".into(),
            socket_mode: 0,
            enable_core_dump: false,
            stats_tag: Vec::new(),
        }
    }
}

/// One part of the server that is not ready yet.
#[derive(Clone, Debug, Default)]
pub struct InitManagerStatus {
    /// What a mask names: `listener`, `cluster`, `server`.
    pub component: String,
    /// Name to show.
    pub name: String,
    /// What it waits for.
    pub targets: Vec<String>,
}

/// `/memory`, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryStatus {
    /// In use by the program.
    pub allocated: u64,
    /// Taken from the system.
    pub heap_size: u64,
    /// Returned to the system, address space kept.
    pub pageheap_unmapped: u64,
    /// Kept by the allocator for later.
    pub pageheap_free: u64,
    /// In the allocator's thread caches.
    pub total_thread_cache: u64,
    /// Resident.
    pub total_physical_bytes: u64,
}

/// Address of a host or listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressStatus {
    /// IP and port.
    Socket(SocketAddr),
    /// The same in the network namespace of a file.
    InNetwork(SocketAddr, String),
    /// Unix socket.
    Pipe(String),
}

impl From<SocketAddr> for AddressStatus {
    fn from(address: SocketAddr) -> Self {
        Self::Socket(address)
    }
}

impl fmt::Display for AddressStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) | Self::InNetwork(address, _) => address.fmt(f),
            Self::Pipe(path) => f.write_str(path),
        }
    }
}

/// A cluster in `/clusters`.
#[derive(Clone, Debug, Default)]
pub struct ClusterStatus {
    /// Name.
    pub name: String,
    /// `alt_stat_name`, or the name.
    pub observability_name: String,
    /// Came over xDS.
    pub added_via_api: bool,
    /// Name at the endpoint discovery service; empty if none.
    pub eds_service_name: String,
    /// Set if outlier detection is configured.
    pub outlier: Option<OutlierStatus>,
    /// Limits for default priority.
    pub default_priority: CircuitBreakerStatus,
    /// Limits for high priority.
    pub high_priority: CircuitBreakerStatus,
    /// Hosts of all priorities, in order.
    pub hosts: Vec<HostStatus>,
}

/// Limits of one priority. Defaults are Envoy's.
#[derive(Clone, Copy, Debug)]
pub struct CircuitBreakerStatus {
    /// Connections.
    pub max_connections: u64,
    /// Requests that wait for a connection.
    pub max_pending_requests: u64,
    /// Requests.
    pub max_requests: u64,
    /// Retries.
    pub max_retries: u64,
}

impl Default for CircuitBreakerStatus {
    fn default() -> Self {
        Self { max_connections: 1024, max_pending_requests: 1024, max_requests: 1024, max_retries: 3 }
    }
}

/// What outlier detection found in its last interval; -1 where it has nothing to say.
#[derive(Clone, Copy, Debug)]
pub struct OutlierStatus {
    /// Average success rate.
    pub success_rate_average: f64,
    /// Success rate below which hosts are ejected.
    pub success_rate_ejection_threshold: f64,
    /// The same for errors on this side of the connection.
    pub local_origin_success_rate_average: f64,
    /// The same for errors on this side of the connection.
    pub local_origin_success_rate_ejection_threshold: f64,
}

impl Default for OutlierStatus {
    fn default() -> Self {
        Self {
            success_rate_average: -1.0,
            success_rate_ejection_threshold: -1.0,
            local_origin_success_rate_average: -1.0,
            local_origin_success_rate_ejection_threshold: -1.0,
        }
    }
}

/// A host in `/clusters`.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // The counters have the names of the stats.
pub struct HostStatus {
    /// Where it is.
    pub address: AddressStatus,
    /// Configured or resolved name; may be empty.
    pub hostname: String,
    pub cx_active: u64,
    pub cx_connect_fail: u64,
    pub cx_total: u64,
    pub rq_active: u64,
    pub rq_error: u64,
    pub rq_pending_active: u64,
    pub rq_success: u64,
    pub rq_timeout: u64,
    pub rq_total: u64,
    /// Why it is not healthy.
    pub health_flags: HealthFlags,
    /// Load-balancing weight.
    pub weight: u32,
    /// Locality's region.
    pub region: String,
    /// Locality's zone.
    pub zone: String,
    /// Locality's sub-zone.
    pub sub_zone: String,
    /// Has the canary metadata.
    pub canary: bool,
    /// Priority, 0 highest.
    pub priority: u32,
    /// Of the last outlier interval; -1 if unknown.
    pub success_rate: f64,
    /// Of the last outlier interval; -1 if unknown.
    pub local_origin_success_rate: f64,
}

impl HostStatus {
    /// A healthy host without traffic.
    pub fn new(address: AddressStatus) -> Self {
        Self {
            address,
            hostname: String::new(),
            cx_active: 0,
            cx_connect_fail: 0,
            cx_total: 0,
            rq_active: 0,
            rq_error: 0,
            rq_pending_active: 0,
            rq_success: 0,
            rq_timeout: 0,
            rq_total: 0,
            health_flags: HealthFlags::default(),
            weight: 1,
            region: String::new(),
            zone: String::new(),
            sub_zone: String::new(),
            canary: false,
            priority: 0,
            success_rate: -1.0,
            local_origin_success_rate: -1.0,
        }
    }
}

/// Health that endpoint discovery or the configuration gave a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EdsHealth {
    /// Nothing said, or healthy.
    #[default]
    Healthy,
    /// Unhealthy, or timed out.
    Unhealthy,
    /// Draining.
    Draining,
    /// Degraded.
    Degraded,
}

/// Why a host is not healthy. Default: it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct HealthFlags {
    /// Fails active health checks.
    pub failed_active_hc: bool,
    /// Ejected by outlier detection.
    pub failed_outlier_check: bool,
    /// What endpoint discovery said.
    pub eds: EdsHealth,
    /// Active health checks say degraded.
    pub degraded_active_hc: bool,
    /// Removed, but kept while it passes active health checks.
    pub pending_dynamic_removal: bool,
    /// Not checked yet.
    pub pending_active_hc: bool,
    /// Asked for it with `x-envoy-immediate-health-check-fail`.
    pub excluded_via_immediate_hc_fail: bool,
    /// Its last active health check timed out.
    pub active_hc_timeout: bool,
    /// Outlier detection says degraded.
    pub degraded_outlier_detection: bool,
}

/// A listener in `/listeners`.
#[derive(Clone, Debug)]
pub struct ListenerStatus {
    /// Name.
    pub name: String,
    /// Bound addresses: the main one first.
    pub addresses: Vec<AddressStatus>,
}

/// The certificates of one TLS context.
#[derive(Clone, Debug, Default)]
pub struct CertificateSet {
    /// Trusted authorities.
    pub ca: Vec<CertificateStatus>,
    /// Certificates that this side shows.
    pub chain: Vec<CertificateStatus>,
}

/// One certificate.
#[derive(Clone, Debug)]
pub struct CertificateStatus {
    /// File, or `<inline>`.
    pub path: String,
    /// Hexadecimal, lower case.
    pub serial_number: String,
    /// Subject alternative names; shown in the order DNS, URI, IP.
    pub subject_alt_names: Vec<SubjectAltName>,
    /// Start of validity.
    pub valid_from: SystemTime,
    /// End of validity.
    pub expiration_time: SystemTime,
}

/// A subject alternative name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubjectAltName {
    /// DNS name.
    Dns(String),
    /// URI.
    Uri(String),
    /// IP address.
    Ip(String),
}

/// A layer of the runtime.
#[derive(Clone, Debug, Default)]
pub struct RuntimeLayerStatus {
    /// Name.
    pub name: String,
    /// Keys and values as text.
    pub values: Vec<(String, String)>,
}

/// Level of a logger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warning,
    Error,
    Critical,
    Off,
}

impl LogLevel {
    /// All levels, from the most talkative.
    pub const ALL: [Self; 7] =
        [Self::Trace, Self::Debug, Self::Info, Self::Warning, Self::Error, Self::Critical, Self::Off];

    /// Envoy's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Off => "off",
        }
    }

    /// The level of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str() == name)
    }
}

/// How listeners are drained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainListeners {
    /// Over the drain time, then close.
    pub graceful: bool,
    /// Drain connections, but keep listening.
    pub skip_exit: bool,
    /// Only inbound listeners.
    pub inbound_only: bool,
}

/// One resource of `/config_dump`.
#[derive(Clone, Debug)]
pub struct ConfigEntry {
    /// Name that `name_regex` is held against.
    pub name: String,
    /// Version of the discovery response; empty for static resources.
    pub version_info: String,
    /// Full message name, for example `envoy.config.cluster.v3.Cluster`.
    pub message: String,
    /// The message as it was configured, encoded.
    pub bytes: Bytes,
    /// When it was taken into use.
    pub last_updated: SystemTime,
    /// It is in use; false where only `warming` or `error` says anything.
    pub active: bool,
    /// A listener's next configuration, which waits for what it needs.
    pub warming: Option<Box<ConfigEntry>>,
    /// The one that drains, of listeners.
    pub draining: Option<Box<ConfigEntry>>,
    /// What was refused last.
    pub error: Option<UpdateFailure>,
    /// What a list is made of.
    pub parts: Vec<ConfigEntry>,
}

/// `UpdateFailureState`.
#[derive(Clone, Debug)]
pub struct UpdateFailure {
    /// What was refused, encoded; of the entry's type.
    pub bytes: Bytes,
    /// When.
    pub last_update_attempt: SystemTime,
    /// Why.
    pub details: String,
    /// Its version.
    pub version_info: String,
}

/// `/config_dump`.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)] // The names are those of the messages' fields.
pub struct ConfigDump {
    /// `envoy.config.bootstrap.v3.Bootstrap`.
    pub bootstrap: Option<ConfigEntry>,
    /// Version of the last cluster discovery response.
    pub clusters_version_info: String,
    pub static_clusters: Vec<ConfigEntry>,
    pub dynamic_active_clusters: Vec<ConfigEntry>,
    pub dynamic_warming_clusters: Vec<ConfigEntry>,
    /// Absent unless endpoints were asked for.
    pub static_endpoint_configs: Option<Vec<ConfigEntry>>,
    pub dynamic_endpoint_configs: Vec<ConfigEntry>,
    /// Version of the last listener discovery response.
    pub listeners_version_info: String,
    pub static_listeners: Vec<ConfigEntry>,
    pub dynamic_listeners: Vec<ConfigEntry>,
    pub static_route_configs: Vec<ConfigEntry>,
    pub dynamic_route_configs: Vec<ConfigEntry>,
    /// Lists of `ScopedRouteConfiguration`, which are the parts.
    pub inline_scoped_route_configs: Vec<ConfigEntry>,
    pub dynamic_scoped_route_configs: Vec<ConfigEntry>,
    pub static_secrets: Vec<ConfigEntry>,
    pub dynamic_active_secrets: Vec<ConfigEntry>,
    pub dynamic_warming_secrets: Vec<ConfigEntry>,
    /// Configurations of filters that are fetched, by kind of filter.
    pub ecds_filters: Vec<Vec<ConfigEntry>>,
}
