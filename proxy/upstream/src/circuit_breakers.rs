//! Circuit breakers: limits of a cluster that hold over all workers (Envoy's `ResourceManager`).
//!
//! One atomic per resource. As in Envoy the check and the count are two steps, so that workers racing for the last place
//! may pass the limit by their number. The `*_open` gauges follow the transitions, so they cost nothing below the limit.

use crate::stats::{ClusterStats, RemainingFamily};
use nuncio_base::stats::GaugeRef;
use nuncio_config::cluster::{CircuitBreakers, Thresholds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Priority of a request (`RoutingPriority`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ResourcePriority {
    /// DEFAULT
    #[default]
    Default,
    /// HIGH
    High,
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// `max_connections`
    Connections,
    /// `max_pending_requests`
    PendingRequests,
    /// `max_requests`
    Requests,
    /// `max_retries` or the retry budget
    Retries,
    /// `max_connection_pools`
    ConnectionPools,
}

const RESOURCES: usize = 5;

/// Limits and counts of one priority of one cluster.
pub struct ResourceManager {
    max: [u32; RESOURCES],
    current: [AtomicU32; RESOURCES],
    /// Percent and minimum concurrency.
    retry_budget: Option<(f64, u32)>,
    max_connections_per_host: u32,
    priority: ResourcePriority,
    stats: Arc<ClusterStats>,
    remaining: Option<RemainingFamily>,
}

impl std::fmt::Debug for ResourceManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResourceManager")
            .field("max", &self.max)
            .field("current", &self.current)
            .finish_non_exhaustive()
    }
}

impl ResourceManager {
    /// The manager of `priority` with the limits of `config`.
    pub fn new(priority: ResourcePriority, config: &CircuitBreakers, stats: Arc<ClusterStats>) -> Self {
        let (thresholds, per_host, name): (&Thresholds, _, _) = match priority {
            ResourcePriority::Default => (&config.default, config.per_host_max_connections, "default"),
            ResourcePriority::High => (&config.high, None, "high"),
        };
        let max = [
            thresholds.max_connections,
            thresholds.max_pending_requests,
            thresholds.max_requests,
            thresholds.max_retries,
            thresholds.max_connection_pools.unwrap_or(u32::MAX),
        ];
        let remaining = thresholds.track_remaining.then(|| {
            let prefix = format!("{}circuit_breakers.{name}.", stats.prefix());
            RemainingFamily::new(stats.registry(), &prefix)
        });
        let manager = ResourceManager {
            max,
            current: Default::default(),
            retry_budget: thresholds.retry_budget,
            max_connections_per_host: per_host.unwrap_or(u32::MAX),
            priority,
            stats,
            remaining,
        };
        manager.show_remaining();
        manager
    }

    /// Whether there are gauges of what remains (`track_remaining`).
    pub(crate) fn tracks_remaining(&self) -> bool {
        self.remaining.is_some()
    }

    /// Sets the gauges of what remains. By value and not with each change, as the manager of a cluster that was replaced
    /// has the same gauges, and goes on while its last requests do. For the control thread.
    pub(crate) fn show_remaining(&self) {
        let Some(family) = &self.remaining else { return };
        let left = |resource| u64::from(self.max[resource as usize].saturating_sub(self.count(resource)));
        family.remaining_cx().set(left(Resource::Connections));
        family.remaining_pending().set(left(Resource::PendingRequests));
        family.remaining_rq().set(left(Resource::Requests));
        family.remaining_retries().set(if self.retry_budget.is_some() { 0 } else { left(Resource::Retries) });
        family.remaining_cx_pools().set(match self.max[Resource::ConnectionPools as usize] {
            u32::MAX => u64::MAX - u64::from(self.count(Resource::ConnectionPools)),
            _ => left(Resource::ConnectionPools),
        });
    }

    /// Whether one more of `resource` is within the limit.
    #[inline]
    pub fn can_create(&self, resource: Resource) -> bool {
        self.count(resource) < self.max(resource)
    }

    /// The limit now; that of retries moves with the load where there is a budget.
    #[inline]
    pub fn max(&self, resource: Resource) -> u32 {
        if let (Resource::Retries, Some((percent, min))) = (resource, self.retry_budget) {
            let active = f64::from(self.count(Resource::Requests)) + f64::from(self.count(Resource::PendingRequests));
            return ((percent / 100.0 * active) as u32).max(min);
        }
        self.max[resource as usize]
    }

    /// How many there are.
    #[inline]
    pub fn count(&self, resource: Resource) -> u32 {
        self.current[resource as usize].load(Relaxed)
    }

    /// Limit on connections to one host.
    #[inline]
    pub fn max_connections_per_host(&self) -> u32 {
        self.max_connections_per_host
    }

    /// Counts one in.
    #[inline]
    pub fn inc(&self, resource: Resource) {
        let before = self.current[resource as usize].fetch_add(1, Relaxed);
        let max = self.max[resource as usize];
        // A limit of 0 is open from the first use on.
        let opens = before + 1 == max || (max == 0 && before == 0 && self.open_gauge(resource).value() == 0);
        if opens {
            self.open_gauge(resource).inc();
        }
    }

    /// Counts one out.
    #[inline]
    pub fn dec(&self, resource: Resource) {
        let before = self.current[resource as usize].fetch_sub(1, Relaxed);
        debug_assert!(before > 0, "more of a resource given back than taken");
        let max = self.max[resource as usize];
        if before == max {
            self.open_gauge(resource).dec();
        }
    }

    fn open_gauge(&self, resource: Resource) -> GaugeRef<'_> {
        let stats = &self.stats;
        match (self.priority, resource) {
            (ResourcePriority::Default, Resource::Connections) => stats.cb_default_cx_open(),
            (ResourcePriority::Default, Resource::PendingRequests) => stats.cb_default_rq_pending_open(),
            (ResourcePriority::Default, Resource::Requests) => stats.cb_default_rq_open(),
            (ResourcePriority::Default, Resource::Retries) => stats.cb_default_rq_retry_open(),
            (ResourcePriority::Default, Resource::ConnectionPools) => stats.cb_default_cx_pool_open(),
            (ResourcePriority::High, Resource::Connections) => stats.cb_high_cx_open(),
            (ResourcePriority::High, Resource::PendingRequests) => stats.cb_high_rq_pending_open(),
            (ResourcePriority::High, Resource::Requests) => stats.cb_high_rq_open(),
            (ResourcePriority::High, Resource::Retries) => stats.cb_high_rq_retry_open(),
            (ResourcePriority::High, Resource::ConnectionPools) => stats.cb_high_cx_pool_open(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_base::stats::{Registry, StatsConfig};

    fn manager(registry: &Registry, thresholds: Thresholds) -> ResourceManager {
        let config = CircuitBreakers { default: thresholds, ..CircuitBreakers::default() };
        ResourceManager::new(ResourcePriority::Default, &config, Arc::new(ClusterStats::new(registry, "a")))
    }

    #[test]
    fn the_open_gauge_follows_the_limit() {
        let registry = Registry::new(1, StatsConfig::default());
        let thresholds = Thresholds { max_requests: 2, track_remaining: true, ..Thresholds::default() };
        let manager = manager(&registry, thresholds);
        let gauge = |name: &str| {
            manager.show_remaining();
            registry.gauge_value(&format!("cluster.a.circuit_breakers.default.{name}"))
        };
        manager.inc(Resource::Requests);
        assert_eq!((gauge("rq_open"), gauge("remaining_rq")), (Some(0), Some(1)));
        manager.inc(Resource::Requests);
        assert!(!manager.can_create(Resource::Requests));
        assert_eq!((gauge("rq_open"), gauge("remaining_rq")), (Some(1), Some(0)));
        manager.inc(Resource::Requests);
        assert_eq!((gauge("rq_open"), gauge("remaining_rq")), (Some(1), Some(0)));
        manager.dec(Resource::Requests);
        assert_eq!((gauge("rq_open"), gauge("remaining_rq")), (Some(1), Some(0)));
        manager.dec(Resource::Requests);
        assert!(manager.can_create(Resource::Requests));
        assert_eq!((gauge("rq_open"), gauge("remaining_rq")), (Some(0), Some(1)));
    }

    #[test]
    fn what_remains_is_that_of_the_manager_which_shows_it_last() {
        let registry = Registry::new(1, StatsConfig::default());
        let thresholds = |max_requests| Thresholds { max_requests, track_remaining: true, ..Thresholds::default() };
        let remaining = || registry.gauge_value("cluster.a.circuit_breakers.default.remaining_rq");
        let old = manager(&registry, thresholds(3));
        old.inc(Resource::Requests);
        old.inc(Resource::Requests);
        let new = manager(&registry, thresholds(5));
        new.inc(Resource::Requests);
        old.dec(Resource::Requests);
        old.dec(Resource::Requests);
        new.show_remaining();
        assert_eq!(remaining(), Some(4));
    }

    #[test]
    fn a_retry_budget_grows_with_the_load_and_has_a_floor() {
        let registry = Registry::new(1, StatsConfig::default());
        let manager =
            manager(&registry, Thresholds { retry_budget: Some((20.0, 3)), max_retries: 0, ..Thresholds::default() });
        assert_eq!(manager.max(Resource::Retries), 3);
        for _ in 0..50 {
            manager.inc(Resource::Requests);
        }
        assert_eq!(manager.max(Resource::Retries), 10);
    }
}
