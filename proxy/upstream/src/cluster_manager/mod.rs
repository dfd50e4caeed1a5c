//! All clusters by name.
//!
//! Workers look names up without locks (`table`). The control thread adds and removes; a cluster that is added while
//! the process serves is not seen before it is warm (`warming`).

mod table;
mod warming;

pub(crate) use warming::{Warming, WeakWarming};

use crate::cluster::{Cluster, ClusterError, ClusterParts, LbRuntime, Zones};
use crate::discovery;
use crate::dns::Resolvers;
use crate::dns_cache::{DnsCache, DnsCaches};
use crate::followers::Followers;
use crate::health_check::{self, Job};
use crate::orca;
use crate::outlier;
use crate::stats::ClusterManagerStats;
use crate::sub_clusters;
use crate::worker::Workers;
use futures_util::future::BoxFuture;
use nuncio_base::stats::Registry;
use nuncio_config::cluster::{BindConfig, ClusterConfig, DnsCacheConfig};
use nuncio_config::hcm::HttpFilterConfig;
use nuncio_http::access_log::{AccessLogWriter, LogFile};
use nuncio_http::matchers::Runtime;
use nuncio_http::upstream_filters::UpstreamFilters;
use nuncio_net::tls::watch::TlsContexts;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use table::ClusterTable;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;
use warming::Waiting;

/// What a cluster manager is made with.
#[derive(Debug, Clone)]
pub struct ClusterManagerOptions {
    /// Where stats live.
    pub registry: Registry,
    /// Source address of upstream connections where a cluster names none (`cluster_manager.upstream_bind_config`).
    pub upstream_bind: BindConfig,
    /// Where discovery (DNS) runs: the control thread's runtime.
    pub control: tokio::runtime::Handle,
    /// Where ejections are logged (`cluster_manager.outlier_detection.event_log_path`).
    pub outlier_events: Option<Arc<LogFile>>,
    /// Where the TLS contexts of clusters are listed and watched.
    pub tls_contexts: TlsContexts,
    /// Opens the event logs of health checks.
    pub event_logs: Option<AccessLogWriter>,
}

/// Makes the HTTP filters of a cluster. The error is a path and a message.
pub type BuildFilters = Box<dyn Fn(&[HttpFilterConfig]) -> Result<BuiltFilters, (String, String)> + Send + Sync>;

/// The HTTP filters of a cluster.
#[derive(Default)]
pub struct BuiltFilters {
    /// None where nothing is left of them.
    pub filters: Option<UpstreamFilters>,
    /// Their configurations have come, or are waited for no longer; None where nothing has to come.
    pub ready: Option<BoxFuture<'static, ()>>,
}

/// A cluster that has not begun.
struct Made {
    cluster: Arc<Cluster>,
    discovery: discovery::Discovery,
    /// What has to come before it is used.
    needs: Vec<BoxFuture<'static, ()>>,
}

/// What [`ClusterManager::add_or_update`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddOutcome {
    /// The name was new.
    Added,
    /// The cluster of this name is replaced.
    Modified,
    /// The cluster of this name is the same, or one that may not be changed.
    Unchanged,
}

/// All clusters.
pub struct ClusterManager {
    clusters: ClusterTable,
    options: ClusterManagerOptions,
    stats: ClusterManagerStats,
    workers: Arc<Workers>,
    followers: Arc<Followers>,
    zones: OnceLock<Arc<Zones>>,
    filters: OnceLock<BuildFilters>,
    resolvers: Arc<Resolvers>,
    dns_caches: DnsCaches,
    control: Mutex<Control>,
    /// Changes when a cluster becomes visible.
    published: watch::Sender<()>,
    /// Clusters that wait for their first hosts.
    waiting: watch::Sender<Waiting>,
    health_jobs: UnboundedSender<Job>,
    /// Until someone runs them.
    health_queue: Mutex<Option<UnboundedReceiver<Job>>>,
    /// Nobody will check: clusters do not wait for it.
    unchecked: AtomicBool,
    /// Some cluster tells how much of its limits remains.
    tracks_remaining: AtomicBool,
}

#[derive(Default)]
struct Control {
    /// Names in the order of adding, for listings.
    order: BTreeMap<u64, Arc<str>>,
    /// Place in the order.
    places: FxHashMap<Arc<str>, u64>,
    next: u64,
    /// What runtime keys say.
    lb_runtime: LbRuntime,
    /// Where they are.
    runtime: Option<Arc<dyn Runtime>>,
    /// Clusters that are not visible yet, by name.
    warming: FxHashMap<Arc<str>, Arc<Cluster>>,
}

impl Control {
    fn add(&mut self, name: &Arc<str>) {
        if !self.places.contains_key(name) {
            self.next += 1;
            self.places.insert(name.clone(), self.next);
            self.order.insert(self.next, name.clone());
        }
    }

    fn remove(&mut self, name: &str) {
        if let Some(place) = self.places.remove(name) {
            self.order.remove(&place);
        }
    }
}

impl std::fmt::Debug for ClusterManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterManager").finish_non_exhaustive()
    }
}

impl ClusterManager {
    /// A manager without clusters.
    pub fn new(options: ClusterManagerOptions) -> Arc<ClusterManager> {
        let (health_jobs, health_queue) = mpsc::unbounded_channel();
        let resolvers = Arc::new(Resolvers::default());
        let dns_caches = DnsCaches::new(&resolvers, &options.registry, &options.control);
        let manager = Arc::new(ClusterManager {
            clusters: ClusterTable::default(),
            stats: ClusterManagerStats::new(&options.registry, "cluster_manager."),
            options,
            workers: Arc::default(),
            followers: Arc::default(),
            zones: OnceLock::new(),
            filters: OnceLock::new(),
            dns_caches,
            resolvers,
            control: Mutex::default(),
            published: watch::channel(()).0,
            waiting: watch::channel(Waiting::default()).0,
            health_jobs,
            health_queue: Mutex::new(Some(health_queue)),
            unchecked: AtomicBool::new(false),
            tracks_remaining: AtomicBool::new(false),
        });
        manager.followers.belong_to(&manager);
        manager
    }

    /// Says where this proxy is, before the first cluster is added: clusters then route by zones.
    pub fn set_zones(&self, zones: Zones) {
        let _ = self.zones.set(Arc::new(zones));
    }

    /// Says who makes HTTP filters, before the first cluster is added. Without it clusters that want some are refused.
    pub fn set_filters(&self, build: BuildFilters) {
        let _ = self.filters.set(build);
    }

    /// The HTTP filters of a cluster.
    fn filters(&self, config: &ClusterConfig) -> Result<BuiltFilters, ClusterError> {
        let filters = &config.http.http_filters;
        let built = match self.filters.get() {
            _ if filters.is_empty() => return Ok(BuiltFilters::default()),
            Some(build) => build(filters),
            None => Err((config.path.to_string(), "there are no HTTP filters here".to_owned())),
        };
        built.map_err(|(path, what)| ClusterError::Unsupported { path, what })
    }

    /// Runtime keys may have other values: those of load balancing, limits, health checks and
    /// outlier detection are read again. For the control thread.
    pub fn apply_runtime(&self, runtime: &Arc<dyn Runtime>) {
        let new = LbRuntime::read(&**runtime);
        let mut control = self.control();
        control.runtime = Some(runtime.clone());
        let changed = std::mem::replace(&mut control.lb_runtime, new) != new;
        drop(control);
        for cluster in self.clusters().into_iter().chain(self.warming()) {
            cluster.read_runtime(&**runtime);
            if changed || !cluster.config.lb_common.runtime_keys.is_empty() {
                cluster.apply_runtime(new, &**runtime);
            }
            if let Some(outlier) = cluster.outlier_detection() {
                outlier.apply_runtime(&**runtime);
            }
        }
    }

    /// The DNS cache of this configuration, for HTTP filters; clusters of the same name use the same.
    ///
    /// # Errors
    /// A text: there is one of the name with other settings, or DNS cannot be set up.
    pub fn dns_cache(&self, config: &Arc<DnsCacheConfig>) -> Result<Arc<DnsCache>, String> {
        self.dns_caches.get(config)
    }

    /// The cluster of this name. Lock-free; for every thread.
    #[inline]
    pub fn cluster(&self, name: &str) -> Option<Arc<Cluster>> {
        self.clusters.get(name)
    }

    /// Adds a cluster that is visible at once, or replaces the one of the same name: for clusters of the bootstrap. Its
    /// hosts are there where they are configured; those that must be found come later ([`ClusterManager::initialized`]).
    /// For the control thread.
    ///
    /// # Errors
    /// [`ClusterError`]; nothing has changed then.
    pub fn add(self: &Arc<Self>, config: Arc<ClusterConfig>) -> Result<AddOutcome, ClusterError> {
        let Made { cluster, discovery, needs } = self.make(config, 0)?;
        let outcome = self.count_added(cluster.name());
        self.publish(&cluster);
        match self.awaited_checker(&cluster) {
            None => discovery.start(&cluster, &self.options.control, || Warming::new(self, &cluster)),
            Some(checker) => {
                let own = Warming::new(self, &cluster);
                checker.wait(own.downgrade());
                discovery.start(&cluster, &self.options.control, || own.clone());
            }
        }
        self.wait_for_needs(&cluster, needs, || Warming::secondary(self, &cluster));
        Ok(outcome)
    }

    /// Adds a cluster, or replaces the one of the same name, while the process serves. It becomes visible when it has
    /// its first hosts; until then one of the same name goes on. `fingerprint` tells configurations of one name apart:
    /// the same one again does nothing. A cluster of the bootstrap cannot be replaced. For the control thread.
    ///
    /// # Errors
    /// [`ClusterError`]; nothing has changed then.
    pub fn add_or_update(
        self: &Arc<Self>,
        config: Arc<ClusterConfig>,
        fingerprint: u64,
    ) -> Result<(AddOutcome, Arc<Cluster>), ClusterError> {
        if let Some(present) = self.newest(&config.name)
            && (!present.config.added_via_api || present.fingerprint == fingerprint)
        {
            return Ok((AddOutcome::Unchanged, present));
        }
        let Made { cluster, discovery, needs } = self.make(config, fingerprint)?;
        let outcome = self.count_added(cluster.name());
        let replaced = self.control().warming.insert(cluster.name().clone(), cluster.clone());
        if let Some(replaced) = replaced {
            replaced.mark_removed();
            replaced.stop_warming();
        }
        self.show_warming();
        // Dropped at once where hosts are known.
        let own = Warming::new(self, &cluster);
        if let Some(checker) = self.awaited_checker(&cluster) {
            checker.wait(own.downgrade());
        }
        discovery.start(&cluster, &self.options.control, || own.clone());
        self.wait_for_needs(&cluster, needs, || own.clone());
        drop(own);
        Ok((outcome, cluster))
    }

    fn make(self: &Arc<Self>, config: Arc<ClusterConfig>, fingerprint: u64) -> Result<Made, ClusterError> {
        let options = &self.options;
        let health_log = match config.health_check.as_ref().and_then(|check| check.event_log_path.as_deref()) {
            Some(path) => self.open_log(&config, path)?,
            None => None,
        };
        let runtime = self.control().runtime.clone();
        let BuiltFilters { filters, ready } = self.filters(&config)?;
        let parts = ClusterParts {
            registry: &options.registry,
            upstream_bind: &options.upstream_bind,
            workers: Arc::downgrade(&self.workers),
            fingerprint,
            outlier_events: options.outlier_events.as_ref(),
            health_log,
            health_jobs: &self.health_jobs,
            secrets: options.tls_contexts.secrets(),
            followers: &self.followers,
            zones: self.zones.get(),
            lb_runtime: self.control().lb_runtime,
            manager_stats: &self.stats,
            control: &options.control,
            runtime: runtime.as_deref(),
            filters,
        };
        let cluster = Cluster::new(config, parts)?;
        let discovery = discovery::Discovery::new(&cluster, &self.resolvers, &self.dns_caches)?;
        for context in cluster.tls_contexts() {
            options.tls_contexts.add(context);
        }
        if let (Some(outlier), Some(runtime)) = (cluster.outlier_detection(), &runtime) {
            outlier.apply_runtime(&**runtime);
        }
        if let Some(runtime) = &runtime {
            cluster.read_runtime(&**runtime);
        }
        if cluster.tracks_remaining() {
            self.tracks_remaining.store(true, Ordering::Relaxed);
        }
        outlier::start(&cluster, &options.control);
        orca::start(&cluster, &options.control);
        sub_clusters::start(&cluster, self, &options.control);
        let mut needs: Vec<_> = ready.into_iter().collect();
        for secret in cluster.tls_contexts().flat_map(|context| context.secrets().to_vec()) {
            needs.push(Box::pin(async move { secret.ready().await }));
        }
        Ok(Made { cluster, discovery, needs })
    }

    fn open_log(&self, config: &ClusterConfig, path: &str) -> Result<Option<Arc<LogFile>>, ClusterError> {
        let Some(writer) = &self.options.event_logs else { return Ok(None) };
        let failed = |what| ClusterError::Unsupported { path: format!("{}.health_checks", config.path), what };
        writer.open(path).map(Some).map_err(failed)
    }

    /// Runs the health checks of all clusters, on the control thread and in its local task set, until the manager is
    /// gone. A second call does nothing.
    pub fn run_health_checks(&self) -> impl Future<Output = ()> + 'static {
        let jobs = self.health_queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move {
            if let Some(jobs) = jobs {
                health_check::run(jobs).await;
            }
        }
    }

    /// Clusters added from now on are warm without the health checks of their first hosts: the process looks at a
    /// configuration only, and [`ClusterManager::run_health_checks`] is not called.
    pub fn skip_health_checks(&self) {
        self.unchecked.store(true, Ordering::Relaxed);
    }

    fn count_added(&self, name: &str) -> AddOutcome {
        if self.newest(name).is_some() {
            self.stats.cluster_modified().inc();
            AddOutcome::Modified
        } else {
            self.stats.cluster_added().inc();
            AddOutcome::Added
        }
    }

    /// Makes a cluster visible to workers in place of the one of its name.
    fn publish(&self, cluster: &Arc<Cluster>) {
        let mut control = self.control();
        let old = self.clusters.replace(cluster.name(), Some(cluster.clone()));
        match &old {
            Some(old) => old.mark_removed(),
            None => {
                control.add(cluster.name());
                self.stats.active_clusters().inc();
            }
        }
        drop(control);
        if let Some(old) = old {
            old.stop_warming();
        }
        cluster.start_following();
        self.published.send_modify(|()| {});
        self.followers.changed(cluster.name());
    }

    /// Tells of clusters that become visible.
    pub(crate) fn published(&self) -> watch::Receiver<()> {
        self.published.subscribe()
    }

    /// The first hosts of a cluster have come, or will not come.
    fn warmed(&self, cluster: &Arc<Cluster>) {
        {
            let mut control = self.control();
            let own = control.warming.get(cluster.name()).is_some_and(|other| Arc::ptr_eq(other, cluster));
            if !own {
                return;
            }
            control.warming.remove(cluster.name());
        }
        self.show_warming();
        self.publish(cluster);
    }

    fn show_warming(&self) {
        self.stats.warming_clusters().set(self.control().warming.len() as u64);
    }

    /// The cluster of this name that was configured last: the one that warms, or the one in use. For the control thread.
    pub fn newest(&self, name: &str) -> Option<Arc<Cluster>> {
        let warming = self.control().warming.get(name).cloned();
        warming.or_else(|| self.cluster(name))
    }

    /// Removes a cluster; connections to its hosts drain. False when there was none of this name, or it is one of the
    /// bootstrap.
    pub fn remove(&self, name: &str) -> bool {
        if self.cluster(name).is_some_and(|cluster| !cluster.config.added_via_api) {
            return false;
        }
        let mut control = self.control();
        let warming = control.warming.remove(name);
        let old = self.clusters.replace(name, None);
        control.remove(name);
        drop(control);
        let found = warming.is_some() || old.is_some();
        if let Some(warming) = warming {
            warming.mark_removed();
            warming.stop_warming();
            self.show_warming();
        }
        if let Some(old) = old {
            old.mark_removed();
            old.stop_warming();
            self.stats.active_clusters().dec();
            self.followers.changed(name);
        }
        if found {
            self.stats.cluster_removed().inc();
        }
        found
    }

    /// All clusters in the order in which they were added. For listings.
    pub fn clusters(&self) -> Vec<Arc<Cluster>> {
        let control = self.control();
        control.order.values().filter_map(|name| self.cluster(name)).collect()
    }

    /// Clusters that are not visible yet. For listings.
    pub fn warming(&self) -> Vec<Arc<Cluster>> {
        let mut all: Vec<_> = self.control().warming.values().cloned().collect();
        all.sort_by(|a, b| a.name().cmp(b.name()));
        all
    }

    /// Brings the gauges up to date that are not kept so with every change. For the control thread.
    pub fn update_gauges(&self) {
        if self.tracks_remaining.load(Ordering::Relaxed) {
            self.clusters().iter().for_each(|cluster| cluster.show_remaining());
        }
    }

    /// Whether every cluster is visible.
    pub fn is_warm(&self) -> bool {
        self.control().warming.is_empty()
    }

    /// Number of clusters.
    pub fn len(&self) -> usize {
        self.control().order.len()
    }

    /// Whether there is no cluster.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assignment, config, eds, manager};

    #[test]
    fn a_cluster_is_visible_when_its_first_endpoints_have_come() {
        let (manager, _registry, _runtime) = manager();
        let (outcome, first) = manager.add_or_update(eds("x"), 1).unwrap();
        assert_eq!(outcome, AddOutcome::Added);
        assert!(manager.cluster("x").is_none() && first.waits_for_endpoints());
        assert_eq!((manager.warming().len(), manager.len(), manager.stats.warming_clusters().value()), (1, 0, 1));
        first.set_endpoints(assignment(&[1]));
        assert!(Arc::ptr_eq(&manager.cluster("x").unwrap(), &first));
        assert_eq!((manager.warming().len(), manager.len(), manager.stats.active_clusters().value()), (0, 1, 1));
    }

    #[test]
    fn the_old_cluster_serves_until_the_new_one_is_warm_and_drains_then() {
        let (manager, _registry, _runtime) = manager();
        let (_, old) = manager.add_or_update(eds("x"), 1).unwrap();
        old.set_endpoints(assignment(&[1]));
        assert_eq!(manager.add_or_update(eds("x"), 1).unwrap().0, AddOutcome::Unchanged);
        let (outcome, new) = manager.add_or_update(eds("x"), 2).unwrap();
        assert_eq!(outcome, AddOutcome::Modified);
        assert!(Arc::ptr_eq(&manager.cluster("x").unwrap(), &old) && !old.is_removed());
        new.give_up_waiting();
        assert!(Arc::ptr_eq(&manager.cluster("x").unwrap(), &new) && old.is_removed());
    }

    #[test]
    fn of_two_updates_that_warm_the_later_one_counts() {
        let (manager, _registry, _runtime) = manager();
        let (_, one) = manager.add_or_update(eds("x"), 1).unwrap();
        let (_, two) = manager.add_or_update(eds("x"), 2).unwrap();
        assert!(one.is_removed());
        one.set_endpoints(assignment(&[1]));
        assert!(manager.cluster("x").is_none());
        two.set_endpoints(assignment(&[1]));
        assert!(Arc::ptr_eq(&manager.cluster("x").unwrap(), &two));
    }

    #[test]
    fn a_cluster_that_warms_can_be_removed_and_one_of_the_bootstrap_cannot() {
        let (manager, _registry, _runtime) = manager();
        let (_, one) = manager.add_or_update(eds("x"), 1).unwrap();
        assert!(manager.remove("x") && one.is_removed() && !manager.remove("x"));
        one.set_endpoints(assignment(&[1]));
        assert!(manager.cluster("x").is_none() && manager.is_empty());
        manager.add(Arc::new(ClusterConfig { name: "s".into(), ..config() })).unwrap();
        assert!(!manager.remove("s") && manager.cluster("s").is_some());
        assert_eq!(manager.add_or_update(eds("s"), 3).unwrap().0, AddOutcome::Unchanged);
    }

    #[test]
    fn a_cluster_that_goes_while_its_secrets_have_not_come_is_waited_for_no_longer() {
        let (manager, _registry, runtime) = manager();
        for replaced in [false, true] {
            let (_, cluster) = manager.add_or_update(eds("x"), 1).unwrap();
            let task = runtime.spawn(std::future::pending::<()>());
            cluster.wait_for_needs(Warming::new(&manager, &cluster), task.abort_handle());
            cluster.set_endpoints(assignment(&[1]));
            assert!(!manager.is_initialized());
            if replaced {
                let fixed = ClusterConfig { name: "x".into(), added_via_api: true, ..config() };
                manager.add_or_update(Arc::new(fixed), 2).unwrap();
            } else {
                assert!(manager.remove("x"));
            }
            assert!(manager.is_initialized() && manager.is_warm());
        }
    }

    #[test]
    fn clusters_with_known_hosts_replace_each_other_at_once() {
        let (manager, _registry, _runtime) = manager();
        let fixed = |name: &str| Arc::new(ClusterConfig { name: name.into(), added_via_api: true, ..config() });
        manager.add_or_update(fixed("x"), 1).unwrap();
        let old = manager.cluster("x").unwrap();
        manager.add_or_update(fixed("x"), 2).unwrap();
        assert!(old.is_removed() && !manager.cluster("x").unwrap().is_removed());
        assert_eq!(manager.len(), 1);
    }
}
