//! What filters ask for while they serve: clusters that are not there yet.
//!
//! Filters name a source and a cluster. Who asks the source is known to the server, which hands a [`ClusterSources`] to every
//! filter that is built.

use nuncio_config::config_source::OnDemandClusters;
use nuncio_http::filter::LocalFuture;
use std::sync::Arc;

/// What came of asking for a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterAnswer {
    /// It is there.
    Found,
    /// The source has none of the name.
    Missing,
    /// Nothing has come in time.
    TimedOut,
}

/// A source of clusters.
pub trait ClusterSource: Send + Sync {
    /// Asks for a cluster; None if it is there. The future is ready once an answer has come, or has not come in time.
    fn fetch(&self, cluster: &Arc<str>) -> Option<LocalFuture<'static, ClusterAnswer>>;
}

/// Sources by what is configured.
pub trait ClusterSources: Send + Sync {
    /// The source of this configuration.
    ///
    /// # Errors
    /// It cannot be used.
    fn source(&self, config: &OnDemandClusters) -> Result<Arc<dyn ClusterSource>, String>;
}
