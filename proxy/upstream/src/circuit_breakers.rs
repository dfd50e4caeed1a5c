//! Circuit breakers: limits of a cluster that hold over all workers (Envoy's `ResourceManager`).
//!
//! One atomic per resource. As in Envoy the check and the count are two steps, so that workers racing for the last place
//! may pass the limit by their number. The `*_open` gauges follow the transitions, so they cost nothing below the limit.

use crate::host::now_ms;
use crate::stats::{ClusterStats, RemainingFamily};
use nuncio_base::stats::GaugeRef;
use nuncio_config::cluster::{CircuitBreakers, RetryBudget, Thresholds};
use nuncio_http::matchers::Runtime;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

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
const RESOURCE_FIELDS: [(Resource, &str); RESOURCES] = [
    (Resource::Connections, "max_connections"),
    (Resource::PendingRequests, "max_pending_requests"),
    (Resource::Requests, "max_requests"),
    (Resource::Retries, "max_retries"),
    (Resource::ConnectionPools, "max_connection_pools"),
];

/// Limits and counts of one priority of one cluster.
pub struct ResourceManager {
    /// Without what runtime keys say.
    configured: [u32; RESOURCES],
    max: [AtomicU32; RESOURCES],
    current: [AtomicU32; RESOURCES],
    configured_budget: Option<RetryBudget>,
    budget: Budget,
    /// Requests that count for the budget; None where it follows the active ones.
    recent: Option<Recent>,
    max_connections_per_host: u32,
    priority: ResourcePriority,
    stats: Arc<ClusterStats>,
    remaining: Option<RemainingFamily>,
}

/// The retry budget in force.
#[derive(Default)]
struct Budget {
    on: AtomicBool,
    /// Bits of an `f64`.
    percent: AtomicU64,
    min_concurrency: AtomicU32,
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
            configured: max,
            max: max.map(AtomicU32::new),
            current: Default::default(),
            configured_budget: thresholds.retry_budget,
            budget: Budget::default(),
            recent: thresholds.retry_budget.and_then(|budget| Recent::new(budget.interval)),
            max_connections_per_host: per_host.unwrap_or(u32::MAX),
            priority,
            stats,
            remaining,
        };
        manager.set_budget(None, None);
        manager.show_remaining();
        manager
    }

    /// Runtime keys (`circuit_breakers.CLUSTER.PRIORITY.`) go before the configuration. For the control thread.
    pub(crate) fn read_runtime(&self, cluster: &str, runtime: &dyn Runtime) {
        let name = if self.priority == ResourcePriority::Default { "default" } else { "high" };
        let key = |key: &str| format!("circuit_breakers.{cluster}.{name}.{key}");
        let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        for (resource, field) in RESOURCE_FIELDS {
            let max = runtime.integer(&key(field)).map_or(self.configured[resource as usize], number);
            self.set_max(resource, max);
        }
        let percent = runtime.double(&key("retry_budget.budget_percent"));
        let least = runtime.integer(&key("retry_budget.min_retry_concurrency")).map(number);
        self.set_budget(percent, least);
    }

    /// The gauge that tells of a full resource follows.
    fn set_max(&self, resource: Resource, max: u32) {
        let old = self.max[resource as usize].swap(max, Relaxed);
        if old == max {
            return;
        }
        let count = self.count(resource);
        let gauge = self.open_gauge(resource);
        let was_open = if old == 0 { gauge.value() > 0 } else { count >= old };
        let is_open = count >= max && count > 0;
        match (was_open, is_open) {
            (false, true) => gauge.inc(),
            (true, false) => gauge.dec(),
            _ => {}
        }
    }

    /// There is a budget where it is configured, or where one of its runtime keys is set.
    fn set_budget(&self, percent: Option<f64>, min_concurrency: Option<u32>) {
        let configured = self.configured_budget;
        let percent_or = percent.or(configured.map(|budget| budget.percent)).unwrap_or(20.0);
        let least_or = min_concurrency.or(configured.map(|budget| budget.min_concurrency)).unwrap_or(3);
        self.budget.percent.store(percent_or.to_bits(), Relaxed);
        self.budget.min_concurrency.store(least_or, Relaxed);
        self.budget.on.store(configured.is_some() || percent.is_some() || min_concurrency.is_some(), Relaxed);
    }

    /// Whether there are gauges of what remains (`track_remaining`).
    pub(crate) fn tracks_remaining(&self) -> bool {
        self.remaining.is_some()
    }

    /// Sets the gauges of what remains. By value and not with each change, as the manager of a cluster that was replaced
    /// has the same gauges, and goes on while its last requests do. For the control thread.
    pub(crate) fn show_remaining(&self) {
        let Some(family) = &self.remaining else { return };
        let left = |resource| u64::from(self.limit(resource).saturating_sub(self.count(resource)));
        family.remaining_cx().set(left(Resource::Connections));
        family.remaining_pending().set(left(Resource::PendingRequests));
        family.remaining_rq().set(left(Resource::Requests));
        family.remaining_retries().set(if self.budget.on.load(Relaxed) { 0 } else { left(Resource::Retries) });
        family.remaining_cx_pools().set(match self.limit(Resource::ConnectionPools) {
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
        if resource == Resource::Retries && self.budget.on.load(Relaxed) {
            let requests = match &self.recent {
                Some(recent) => recent.count(now_ms()),
                None => self.count(Resource::Requests),
            };
            let counted = f64::from(requests) + f64::from(self.count(Resource::PendingRequests));
            let percent = f64::from_bits(self.budget.percent.load(Relaxed));
            return ((percent / 100.0 * counted) as u32).max(self.budget.min_concurrency.load(Relaxed));
        }
        self.limit(resource)
    }

    /// The limit as a number, whatever budget there is.
    #[inline]
    fn limit(&self, resource: Resource) -> u32 {
        self.max[resource as usize].load(Relaxed)
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
        if let (Resource::Requests, Some(recent)) = (resource, &self.recent) {
            recent.add(now_ms());
        }
        let before = self.current[resource as usize].fetch_add(1, Relaxed);
        let max = self.limit(resource);
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
        let max = self.limit(resource);
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

/// How many requests began within an interval, to a 32nd of it: counts by time, which all workers write.
struct Recent {
    /// Milliseconds of one count.
    width: u64,
    /// Time in widths (upper half) and requests that began then (lower half); the places are used in turn.
    counts: Box<[AtomicU64]>,
}

impl Recent {
    /// None for an interval of zero.
    fn new(interval: Duration) -> Option<Self> {
        let interval = interval.as_millis() as u64;
        if interval == 0 {
            return None;
        }
        let width = interval.div_ceil(32);
        let counts = (0..interval.div_ceil(width)).map(|_| AtomicU64::new(0)).collect();
        Some(Recent { width, counts })
    }

    /// One begins, `now` in milliseconds.
    fn add(&self, now: u64) {
        let time = now / self.width;
        let place = &self.counts[(time % self.counts.len() as u64) as usize];
        let _ = place.fetch_update(Relaxed, Relaxed, |old| {
            let count = if old >> 32 == time & TIMES { (old & TIMES).saturating_add(1).min(TIMES) } else { 1 };
            Some((time & TIMES) << 32 | count)
        });
    }

    /// Those that began within the interval that ends `now`.
    fn count(&self, now: u64) -> u32 {
        let time = now / self.width;
        let values = self.counts.iter().map(|place| place.load(Relaxed));
        let within = |value: &u64| time.wrapping_sub(value >> 32) & TIMES < self.counts.len() as u64;
        let sum: u64 = values.filter(within).map(|value| value & TIMES).sum();
        u32::try_from(sum).unwrap_or(u32::MAX)
    }
}

/// The half of a count of [`Recent`].
const TIMES: u64 = u32::MAX as u64;

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
            manager(&registry, Thresholds { retry_budget: Some(BUDGET), max_retries: 0, ..Thresholds::default() });
        assert_eq!(manager.max(Resource::Retries), 3);
        for _ in 0..50 {
            manager.inc(Resource::Requests);
        }
        assert_eq!(manager.max(Resource::Retries), 10);
    }

    const BUDGET: RetryBudget = RetryBudget { percent: 20.0, min_concurrency: 3, interval: Duration::ZERO };

    #[tokio::test(start_paused = true)]
    async fn a_retry_budget_may_follow_the_requests_that_began_in_an_interval() {
        let registry = Registry::new(1, StatsConfig::default());
        let budget = RetryBudget { interval: Duration::from_secs(1), ..BUDGET };
        let manager = manager(&registry, Thresholds { retry_budget: Some(budget), ..Thresholds::default() });
        for _ in 0..50 {
            manager.inc(Resource::Requests);
            manager.dec(Resource::Requests);
        }
        assert_eq!(manager.max(Resource::Retries), 10);
        tokio::time::advance(Duration::from_millis(500)).await;
        for _ in 0..50 {
            manager.inc(Resource::Requests);
        }
        assert_eq!(manager.max(Resource::Retries), 20);
        tokio::time::advance(Duration::from_millis(600)).await;
        assert_eq!(manager.max(Resource::Retries), 10);
        // Those that last do not count for ever.
        tokio::time::advance(Duration::from_millis(600)).await;
        assert_eq!(manager.max(Resource::Retries), 3);
    }

    #[test]
    fn an_interval_may_be_shorter_than_its_parts() {
        assert!(Recent::new(Duration::ZERO).is_none());
        let recent = Recent::new(Duration::from_millis(3)).expect("an interval");
        recent.add(10);
        recent.add(12);
        assert_eq!([10, 12, 13, 15].map(|now| recent.count(now)), [1, 2, 1, 0]);
    }

    struct Keys(&'static [(&'static str, u64)]);

    impl Runtime for Keys {
        fn integer(&self, key: &str) -> Option<u64> {
            self.0.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
        }
    }

    #[test]
    fn runtime_keys_go_before_the_configuration_and_the_gauges_follow() {
        let registry = Registry::new(1, StatsConfig::default());
        let manager = manager(&registry, Thresholds { max_requests: 2, ..Thresholds::default() });
        let open = || registry.gauge_value("cluster.a.circuit_breakers.default.rq_open");
        manager.inc(Resource::Requests);
        manager.read_runtime("a", &Keys(&[("circuit_breakers.a.default.max_requests", 1)]));
        assert_eq!((manager.max(Resource::Requests), open()), (1, Some(1)));
        manager.read_runtime("a", &Keys(&[("circuit_breakers.b.default.max_requests", 1)]));
        assert_eq!((manager.max(Resource::Requests), open()), (2, Some(0)));
        manager.read_runtime("a", &Keys(&[("circuit_breakers.a.default.retry_budget.min_retry_concurrency", 7)]));
        assert_eq!(manager.max(Resource::Retries), 7);
        manager.read_runtime("a", &Keys(&[]));
        assert_eq!(manager.max(Resource::Retries), 3);
        manager.dec(Resource::Requests);
        assert_eq!(open(), Some(0));
    }
}
