//! LRS: what clusters have done, for the server that balances load.
//!
//! Counters of hosts only grow; what was reported of each is remembered here, so that nothing is added to the path of a
//! request. The protocol is `xds_client::load`.

use super::stats::LoadReporter;
use super::{Inner, node};
use crate::server::Server;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3::cluster_stats::DroppedRequests;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterStats, EndpointLoadMetricStats, UpstreamEndpointStats, UpstreamLocalityStats,
};
use nuncio_config::cluster::{Discovery, Locality};
use nuncio_config::config_source::ApiConfigSource;
use nuncio_upstream::{Cluster, Host, Metric};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use xds_client::load::{LoadReporting, LoadSource, ReporterOptions};

/// Opens the stream to the server.
pub(super) fn start(inner: &Inner, config: &ApiConfigSource) -> Result<LoadReporting, String> {
    let server = &inner.server;
    Ok(xds_client::load::start(ReporterOptions {
        node: node::node(&server.bootstrap.node),
        transport: inner.sources.transport(config)?,
        source: Rc::new(Loads { server: server.clone(), reported: RefCell::default() }),
        stats: Rc::new(LoadReporter::new(&server.context.registry)),
    }))
}

/// Requests of one host, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    success: u64,
    error: u64,
    issued: u64,
    active: u64,
}

impl Counts {
    fn of(host: &Host) -> Counts {
        let stats = &host.stats;
        Counts {
            success: stats.rq_success.load(Relaxed),
            error: stats.rq_error.load(Relaxed),
            issued: stats.rq_total.load(Relaxed),
            active: u64::from(stats.rq_active.load(Relaxed)),
        }
    }

    /// What was added since `before`; what is active is so now.
    fn since(self, before: Counts) -> Counts {
        Counts {
            success: self.success.saturating_sub(before.success),
            error: self.error.saturating_sub(before.error),
            issued: self.issued.saturating_sub(before.issued),
            active: self.active,
        }
    }

    fn add(&mut self, other: Counts) {
        self.success += other.success;
        self.error += other.error;
        self.issued += other.issued;
        self.active += other.active;
    }
}

/// What was reported of one cluster.
#[derive(Default)]
struct Reported {
    /// By id of the host. One that is not here was made since.
    hosts: HashMap<u64, Counts>,
    /// Of the cluster object with this id.
    cluster: u64,
    dropped: u64,
    drop_overload: u64,
}

impl Reported {
    /// All that a cluster has done until now.
    fn now(cluster: &Cluster) -> Reported {
        let state = cluster.state();
        Reported {
            hosts: state.priority_set.hosts().map(|host| (host.id, Counts::of(host))).collect(),
            cluster: cluster.id,
            dropped: cluster.load.dropped.load(Relaxed),
            drop_overload: cluster.load.drop_overload.load(Relaxed),
        }
    }
}

struct Loads {
    server: Arc<Server>,
    /// By name of the cluster.
    reported: RefCell<HashMap<String, Reported>>,
}

impl LoadSource for Loads {
    fn clusters(&self) -> Vec<String> {
        self.server.context.clusters.clusters().iter().map(|cluster| cluster.name().to_string()).collect()
    }

    fn begin(&self, name: &str) {
        let reported = self.server.context.clusters.cluster(name).map(|cluster| Reported::now(&cluster));
        let mut all = self.reported.borrow_mut();
        match reported {
            Some(reported) => drop(all.insert(name.to_owned(), reported)),
            None => drop(all.remove(name)),
        }
    }

    fn take(&self, name: &str, endpoints: bool) -> Option<ClusterStats> {
        let Some(cluster) = self.server.context.clusters.cluster(name) else {
            self.reported.borrow_mut().remove(name);
            return None;
        };
        let now = Reported::now(&cluster);
        let before = self.reported.borrow_mut().remove(name).unwrap_or_default();
        // Another object under the name counts from the start.
        let (dropped, drop_overload) =
            if before.cluster == now.cluster { (before.dropped, before.drop_overload) } else { (0, 0) };
        let (dropped, drop_overload) = (now.dropped - dropped, now.drop_overload - drop_overload);
        let mut stats = ClusterStats {
            cluster_name: name.to_owned(),
            cluster_service_name: service_name(&cluster),
            upstream_locality_stats: localities(&cluster, &before, &now, endpoints),
            total_dropped_requests: dropped,
            ..ClusterStats::default()
        };
        if drop_overload > 0 {
            stats.dropped_requests.push(DroppedRequests {
                category: cluster.drop_category().map(|category| category.to_string()).unwrap_or_default(),
                dropped_count: drop_overload,
            });
        }
        self.reported.borrow_mut().insert(name.to_owned(), now);
        Some(stats)
    }
}

/// The name that the cluster's endpoints were asked for by, if it has one of its own.
fn service_name(cluster: &Cluster) -> String {
    match &cluster.config.discovery {
        Discovery::Eds { service_name, .. } if **service_name != **cluster.name() => service_name.to_string(),
        _ => String::new(),
    }
}

type Key<'a> = (&'a str, &'a str, &'a str);

/// Localities in which something happened, by priority.
fn localities(cluster: &Cluster, before: &Reported, now: &Reported, endpoints: bool) -> Vec<UpstreamLocalityStats> {
    let state = cluster.state();
    let mut out = Vec::new();
    for (priority, set) in state.priority_set.host_sets.iter().enumerate() {
        let mut groups: BTreeMap<Key<'_>, (Counts, UpstreamLocalityStats)> = BTreeMap::new();
        for host in &set.hosts {
            let counts = now.hosts.get(&host.id).copied().unwrap_or_default();
            let counts = counts.since(before.hosts.get(&host.id).copied().unwrap_or_default());
            if counts == Counts::default() {
                continue;
            }
            let locality = &*host.locality;
            let (sum, stats) = groups.entry((&locality.region, &locality.zone, &locality.sub_zone)).or_default();
            stats.locality.get_or_insert_with(|| proto_locality(locality));
            sum.add(counts);
            let metrics = host.take_load_metrics();
            if endpoints {
                stats.upstream_endpoint_stats.push(UpstreamEndpointStats {
                    address: Some(crate::config_dump::proto_address(&host.address)),
                    total_successful_requests: counts.success,
                    total_error_requests: counts.error,
                    total_requests_in_progress: counts.active,
                    total_issued_requests: counts.issued,
                    load_metric_stats: metrics.iter().map(proto_metric).collect(),
                    ..UpstreamEndpointStats::default()
                });
            }
            for metric in metrics {
                match stats.load_metric_stats.iter_mut().find(|known| known.metric_name == metric.name) {
                    Some(known) => {
                        known.num_requests_finished_with_metric += metric.requests;
                        known.total_metric_value += metric.total;
                    }
                    None => stats.load_metric_stats.push(proto_metric(&metric)),
                }
            }
        }
        for (sum, mut stats) in groups.into_values() {
            stats.priority = u32::try_from(priority).unwrap_or(u32::MAX);
            stats.total_successful_requests = sum.success;
            stats.total_error_requests = sum.error;
            stats.total_requests_in_progress = sum.active;
            stats.total_issued_requests = sum.issued;
            out.push(stats);
        }
    }
    out
}

fn proto_metric(metric: &Metric) -> EndpointLoadMetricStats {
    EndpointLoadMetricStats {
        metric_name: metric.name.clone(),
        num_requests_finished_with_metric: metric.requests,
        total_metric_value: metric.total,
    }
}

fn proto_locality(locality: &Locality) -> core::Locality {
    core::Locality {
        region: locality.region.to_string(),
        zone: locality.zone.to_string(),
        sub_zone: locality.sub_zone.to_string(),
    }
}
