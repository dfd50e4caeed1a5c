//! Clusters on demand: sources that filters ask when a request or a connection needs a cluster that is not there.
//!
//! All filters with the same `ConfigSource` share a source, which lives as long as the process, as in Envoy: so do the clusters
//! that came from it. Workers ask; the discovery client answers. How it asks is in `xds::on_demand_clusters`.

use crate::source_check::SourceCheck;
use crate::xds::wants::{OnDemand, Want, Wants};
use bytes::Bytes;
use nuncio_base::timer;
use nuncio_config::config_source::{ConfigSource, OnDemandClusters, SourceKind};
use nuncio_config::diagnostics::ConfigError;
use nuncio_config::paths::FieldPath;
use nuncio_extensions::on_demand::{ClusterAnswer, ClusterSource, ClusterSources};
use nuncio_http::filter::LocalFuture;
use nuncio_upstream::ClusterManager;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// One source.
pub struct OnDemandSource {
    /// Unique in the process.
    pub id: u64,
    /// What is configured.
    pub config: ConfigSource,
}

/// All sources.
pub struct OnDemandSources {
    by_config: Mutex<HashMap<Bytes, Arc<OnDemandSource>>>,
    clusters: Arc<ClusterManager>,
    check: Arc<SourceCheck>,
    wants: Wants,
}

impl OnDemandSources {
    /// None yet.
    pub fn new(clusters: &Arc<ClusterManager>, check: &Arc<SourceCheck>, wants: &Wants) -> Arc<OnDemandSources> {
        Arc::new(OnDemandSources {
            by_config: Mutex::default(),
            clusters: clusters.clone(),
            check: check.clone(),
            wants: wants.clone(),
        })
    }
}

impl ClusterSources for OnDemandSources {
    fn source(&self, config: &OnDemandClusters) -> Result<Arc<dyn ClusterSource>, String> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut by_config = self.by_config.lock().unwrap_or_else(PoisonError::into_inner);
        let source = match by_config.get(&config.source) {
            Some(known) => known.clone(),
            None => {
                let parsed = ConfigSource::parse(&config.source, FieldPath::root()).map_err(|errors| text(&errors))?;
                // The cluster of a server may come later.
                if !matches!(parsed.kind, SourceKind::Api(_)) {
                    self.check.usable(&parsed)?;
                }
                if !self.check.is_delta(&parsed) {
                    return Err("clusters on demand need a source of api_type DELTA_GRPC".to_owned());
                }
                let id = NEXT.fetch_add(1, Ordering::Relaxed);
                let made = Arc::new(OnDemandSource { id, config: parsed });
                by_config.insert(config.source.clone(), made.clone());
                made
            }
        };
        let (clusters, wants) = (self.clusters.clone(), self.wants.clone());
        Ok(Arc::new(Asker { source, timeout: config.timeout, clusters, wants }))
    }
}

fn text(errors: &[ConfigError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A source, asked with a timeout.
struct Asker {
    source: Arc<OnDemandSource>,
    timeout: Duration,
    clusters: Arc<ClusterManager>,
    wants: Wants,
}

impl ClusterSource for Asker {
    fn fetch(&self, cluster: &Arc<str>) -> Option<LocalFuture<'static, ClusterAnswer>> {
        if self.clusters.cluster(cluster).is_some() {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        self.wants.send(Want::OnDemand(OnDemand::Cluster {
            source: self.source.clone(),
            cluster: cluster.clone(),
            answer,
        }));
        let (clusters, cluster, timeout) = (self.clusters.clone(), cluster.clone(), self.timeout);
        Some(Box::pin(async move {
            let timed_out = tokio::select! {
                // Dropped, the other end is an answer too.
                _ = answered => false,
                () = timer::sleep(timeout) => true,
            };
            match clusters.cluster(&cluster) {
                Some(_) => ClusterAnswer::Found,
                None if timed_out => ClusterAnswer::TimedOut,
                None => ClusterAnswer::Missing,
            }
        }))
    }
}
