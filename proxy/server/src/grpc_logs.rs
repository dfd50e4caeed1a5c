//! Access logs over gRPC: from the loggers of all workers to streams, each of which belongs to the logs that are configured alike.
//!
//! Loggers get the sending end of a queue when they are built; the discovery client, which has the connections to servers,
//! gets the other end through [`Wants`] and sends what comes (`xds/logs.rs`).

use crate::xds::wants::{Want, Wants};
use nuncio_base::stats::Registry;
use nuncio_config::access_log::GrpcAccessLogConfig;
use nuncio_config::config_source::GrpcTarget;
use nuncio_config::typed_config::TypedConfig;
use nuncio_extensions::access_loggers::http_grpc::{self, Entry, GrpcLogStats, LogStreams, MOST_WAITING};
use nuncio_http::access_log::{AccessLogger, Extensions};
use nuncio_upstream::ClusterManager;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

/// One stream that is wanted.
pub struct LogStream {
    /// How it is configured.
    pub config: Arc<GrpcAccessLogConfig>,
    /// What is to be sent. It ends with the last logger.
    pub entries: mpsc::Receiver<Entry>,
    /// What is counted.
    pub stats: GrpcLogStats,
}

/// All streams.
pub struct GrpcLogs {
    registry: Registry,
    clusters: Arc<ClusterManager>,
    wants: Wants,
    /// By configuration.
    open: Mutex<HashMap<String, mpsc::WeakSender<Entry>>>,
}

impl GrpcLogs {
    /// No streams yet.
    pub fn new(registry: Registry, clusters: Arc<ClusterManager>, wants: Wants) -> GrpcLogs {
        GrpcLogs { registry, clusters, wants, open: Mutex::default() }
    }
}

impl LogStreams for GrpcLogs {
    fn open(&self, config: &Arc<GrpcAccessLogConfig>) -> Result<mpsc::Sender<Entry>, String> {
        if let GrpcTarget::Envoy { cluster, .. } = &config.service.target
            && self.clusters.cluster(cluster).is_none()
        {
            return Err(format!("Unknown gRPC client cluster '{cluster}'"));
        }
        // All but the place in the configuration.
        let key = format!("{:?}", GrpcAccessLogConfig { path: "".into(), ..(**config).clone() });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entries) = open.get(&key).and_then(mpsc::WeakSender::upgrade) {
            return Ok(entries);
        }
        open.retain(|_, entries| entries.strong_count() > 0);
        let (sender, entries) = mpsc::channel(MOST_WAITING);
        open.insert(key, sender.downgrade());
        self.wants.send(Want::Logs(LogStream { config: config.clone(), entries, stats: self.stats() }));
        Ok(sender)
    }

    fn stats(&self) -> GrpcLogStats {
        GrpcLogStats::new(&self.registry, "access_logs.grpc_access_log.")
    }
}

impl Extensions for GrpcLogs {
    fn sink(&self, config: &TypedConfig) -> Result<Arc<dyn AccessLogger>, String> {
        Err(format!("access logger {} is not supported yet", config.type_name))
    }

    fn http_grpc(&self, config: &Arc<GrpcAccessLogConfig>) -> Result<Arc<dyn AccessLogger>, String> {
        http_grpc::build(config, self)
    }
}
