//! `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy`.

use crate::access_log::AccessLogConfig;
use std::sync::Arc;
use std::time::Duration;

/// TCP proxy settings.
#[derive(Debug, Clone)]
pub struct TcpProxyConfig {
    /// Stats are named `tcp.<stat_prefix>.`.
    pub stat_prefix: Box<str>,
    /// Where connections go; a single cluster is one entry of weight 1.
    pub clusters: Vec<(Arc<str>, u32)>,
    /// Default 1 h; None when 0 s was set.
    pub idle_timeout: Option<Duration>,
    /// None for no limit.
    pub max_downstream_connection_duration: Option<Duration>,
    /// Default 1.
    pub max_connect_attempts: u32,
    /// Access logs.
    pub access_logs: Vec<AccessLogConfig>,
    /// Interval of periodic log entries.
    pub access_log_flush_interval: Option<Duration>,
    /// Also log when the upstream is connected.
    pub flush_access_log_on_connected: bool,
    /// Hash on the source IP for hashing load balancers.
    pub hash_source_ip: bool,
    /// Path in the configuration.
    pub path: Box<str>,
}
