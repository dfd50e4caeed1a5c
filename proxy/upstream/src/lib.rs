//! Upstream: clusters, hosts, load balancing, connection pools, DNS.
//!
//! Reading order: the manager that finds a cluster by name (`cluster_manager`), the cluster (`cluster`) with its hosts
//! (`host_set`, `host`), how one is picked (`lb`), what limits it (`circuit_breakers`), and how a stream to it is had
//! (`pool`). `followers` tells clusters of changes in others. Hosts come from the configuration, from DNS or from outside (`discovery`, `dns`, `endpoints`), or with the
//! requests (`original_dst`, `dns_cache`, `sub_clusters`). `worker` is what each thread keeps.
//! Knows no routes; the router filter does.

pub mod cluster_manager;

pub mod cluster;
mod followers;
pub mod host;
pub mod host_set;

pub mod lb;

pub mod circuit_breakers;
pub mod proxy_header;
pub mod transport;

pub mod pool;

pub mod health_check;
mod load_metrics;
mod merge_window;
mod orca;
mod orca_oob;
pub mod outlier;

pub mod policies;

mod discovery;
mod dns;
pub mod dns_cache;
pub mod endpoints;
mod original_dst;
pub mod sub_clusters;

pub mod stats;
pub mod worker;

#[cfg(test)]
mod testing;

pub use circuit_breakers::{Resource, ResourceManager, ResourcePriority};
pub use cluster::{Cluster, ClusterError, LoadCounts, Zones};
pub use cluster_manager::{ClusterManager, ClusterManagerOptions};
pub use host::{Health, Host};
pub use lb::LbContext;
pub use load_metrics::Metric;
pub use outlier::OutlierResult;
pub use policies::ClusterPolicies;
pub use pool::{PoolFailure, PooledStream, StreamOptions, http_stream, raw_stream};
