//! Stats of subscriptions and of streams to control planes, under Envoy's names.

use nuncio_base::stat_family;
use nuncio_base::stats::{Counter, Gauge, Registry, TextReadout};
use nuncio_upstream::Cluster;
use std::sync::Weak;
use std::time::{Duration, SystemTime};
use xds_client::load::LoadReporterStats;
use xds_client::stats::{Connected, ControlPlaneStats, SubscriptionStats, version_hash};

stat_family! {
    /// Of one subscription: `cluster_manager.cds.`, `listener_manager.lds.`, `http.<prefix>.rds.<name>.`
    pub struct SubscriptionFamily {
        counters { init_fetch_timeout, update_attempt, update_failure, update_rejected, update_success }
        gauges { update_time, version }
        histograms { update_duration: Milliseconds }
    }
}

stat_family! {
    /// What a subscription to endpoints has beside the stats that every cluster has.
    pub struct EndpointsFamily {
        counters { init_fetch_timeout, update_rejected }
        gauges { update_time }
        histograms { update_duration: Milliseconds }
    }
}

stat_family! {
    /// What a subscription to virtual hosts has beside: `http.<prefix>.rds.vhds.<name>.`
    pub struct VirtualHostsFamily {
        counters { config_reload, update_empty }
    }
}

stat_family! {
    /// What a subscription to scopes of routes has beside: `http.<prefix>.scoped_rds.<name>.`
    pub struct ScopesFamily {
        counters { config_reload, update_empty }
        gauges { active_scopes, all_scopes, config_reload_time_ms, on_demand_scopes }
    }
}

stat_family! {
    /// What a subscription to the endpoints of a locality has beside: `cluster.<name>.leds.`
    pub struct LocalityEndpointsFamily {
        counters { update_empty }
    }
}

stat_family! {
    /// `load_reporter.`
    pub struct LoadReporterFamily {
        counters { errors, requests, responses, retries }
    }
}

stat_family! {
    /// `control_plane.`
    pub struct ControlPlaneFamily {
        counters { rate_limit_enforced }
        gauges { connected_state, pending_requests }
    }
}

fn millis(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// `config_reload` and its time, of CDS and RDS.
pub(crate) struct Reloads {
    count: Counter,
    time: Gauge,
}

impl Reloads {
    pub(crate) fn new(registry: &Registry, prefix: &str) -> Reloads {
        let time = registry.gauge(&format!("{prefix}config_reload_time_ms"));
        Reloads { count: registry.counter(&format!("{prefix}config_reload")), time }
    }

    /// Another configuration is in use since now.
    pub(crate) fn count(&self) {
        self.count.inc();
        self.time.set(millis(SystemTime::now()));
    }
}

/// Stats of a subscription under a prefix.
pub(crate) struct Counted {
    family: SubscriptionFamily,
    version_text: TextReadout,
}

impl Counted {
    pub(crate) fn new(registry: &Registry, prefix: &str) -> Counted {
        let version_text = registry.text_readout(&format!("{prefix}version_text"));
        Counted { family: SubscriptionFamily::new(registry, prefix), version_text }
    }
}

impl SubscriptionStats for Counted {
    fn attempt(&self) {
        self.family.update_attempt().inc();
    }

    fn success(&self, version: &str, at: SystemTime, took: Duration) {
        self.family.update_success().inc();
        self.family.update_time().set(millis(at));
        self.family.update_duration().record(took.as_millis() as u64);
        self.family.version().set(version_hash(version));
        self.version_text.set(version);
    }

    fn rejected(&self) {
        self.family.update_rejected().inc();
    }

    fn failure(&self) {
        self.family.update_failure().inc();
    }

    fn init_fetch_timeout(&self) {
        self.family.init_fetch_timeout().inc();
    }
}

/// Stats of a subscription to a cluster's endpoints, most of which every cluster has.
pub(crate) struct EndpointsCounted {
    cluster: Weak<Cluster>,
    family: EndpointsFamily,
    version_text: TextReadout,
}

impl EndpointsCounted {
    pub(crate) fn new(registry: &Registry, cluster: &std::sync::Arc<Cluster>) -> EndpointsCounted {
        let prefix = cluster.stats.prefix();
        EndpointsCounted {
            cluster: std::sync::Arc::downgrade(cluster),
            family: EndpointsFamily::new(registry, prefix),
            version_text: registry.text_readout(&format!("{prefix}version_text")),
        }
    }

    fn with(&self, count: impl FnOnce(&Cluster)) {
        if let Some(cluster) = self.cluster.upgrade() {
            count(&cluster);
        }
    }
}

impl SubscriptionStats for EndpointsCounted {
    fn attempt(&self) {
        self.with(|cluster| cluster.stats.update_attempt().inc());
    }

    fn success(&self, version: &str, at: SystemTime, took: Duration) {
        self.with(|cluster| {
            cluster.stats.update_success().inc();
            cluster.stats.version().set(version_hash(version));
        });
        self.family.update_time().set(millis(at));
        self.family.update_duration().record(took.as_millis() as u64);
        self.version_text.set(version);
    }

    fn rejected(&self) {
        self.family.update_rejected().inc();
    }

    fn failure(&self) {
        self.with(|cluster| cluster.stats.update_failure().inc());
    }

    fn init_fetch_timeout(&self) {
        self.family.init_fetch_timeout().inc();
    }
}

/// Stats of load reports.
pub(crate) struct LoadReporter(LoadReporterFamily);

impl LoadReporter {
    pub(crate) fn new(registry: &Registry) -> LoadReporter {
        LoadReporter(LoadReporterFamily::new(registry, "load_reporter."))
    }
}

impl LoadReporterStats for LoadReporter {
    fn request(&self) {
        self.0.requests().inc();
    }

    fn response(&self) {
        self.0.responses().inc();
    }

    fn error(&self) {
        self.0.errors().inc();
    }

    fn retry(&self) {
        self.0.retries().inc();
    }
}

/// Stats of a stream, under the prefix of what it serves.
pub(crate) struct ControlPlane {
    family: ControlPlaneFamily,
    identifier: TextReadout,
}

impl ControlPlane {
    /// `prefix` ends with a dot, or is empty for the aggregated stream.
    pub(crate) fn new(registry: &Registry, prefix: &str) -> ControlPlane {
        let prefix = format!("{prefix}control_plane.");
        let identifier = registry.text_readout(&format!("{prefix}identifier"));
        ControlPlane { family: ControlPlaneFamily::new(registry, &prefix), identifier }
    }
}

impl ControlPlaneStats for ControlPlane {
    fn connected(&self, to: Connected) {
        self.family.connected_state().set(match to {
            Connected::No => 0,
            Connected::Primary => 1,
            Connected::Failover => 2,
        });
    }

    fn pending_requests(&self, count: usize) {
        self.family.pending_requests().set(count as u64);
    }

    fn rate_limit_enforced(&self) {
        self.family.rate_limit_enforced().inc();
    }

    fn identifier(&self, identifier: &str) {
        self.identifier.set(identifier);
    }
}
