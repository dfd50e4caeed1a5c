//! A cluster at run time: configuration, stats, limits, and its hosts with their load balancing tables.
//!
//! Shared by all threads. The control thread publishes host sets with [`Cluster::update`] (`updates`); workers pick hosts with
//! [`Cluster::choose_host`], which reads one generation number and the worker's own state.

mod lb_runtime;
mod updates;

pub(crate) use lb_runtime::LbRuntime;
pub use lb_runtime::Zones;

use crate::circuit_breakers::{ResourceManager, ResourcePriority};
use crate::cluster_manager::Warming;
use crate::dns_cache::DnsCache;
use crate::endpoints::Given;
use crate::followers::Followers;
use crate::health_check::{HealthChecker, Job};
use crate::host::Host;
use crate::host_set::PrioritySet;
use crate::lb::priority::{Level, PriorityLoad};
use crate::lb::{LbContext, LbTables, UnsupportedPolicy, check_policy, override_host};
use crate::merge_window::MergeWindow;
use crate::orca_oob::OobSessions;
use crate::original_dst::Destinations;
use crate::outlier::OutlierDetection;
use crate::policies::ClusterPolicies;
use crate::stats::{ClusterManagerStats, ClusterStats};
use crate::sub_clusters::SubClusters;
use crate::transport::Transport;
use crate::worker;
use arc_swap::ArcSwap;
use nuncio_base::stats::{NameMatcher, Registry};
use nuncio_config::cluster::{BindConfig, ClusterConfig, Discovery, ForwardProxyNames};
use nuncio_http::access_log::LogFile;
use nuncio_http::headers::{HeaderName, names};
use nuncio_http::matchers::Runtime;
use nuncio_http::route::HashPolicies;
use nuncio_http::upstream_filters::UpstreamFilters;
use nuncio_net::socket::ConnectOptions;
use nuncio_net::tls::client::ClientTlsContext;
use nuncio_net::tls::secrets::Secrets;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use tokio::sync::mpsc::UnboundedSender;
use updates::Merging;

/// What changes when hosts or their health change; published whole.
#[derive(Debug)]
pub struct ClusterState {
    /// Hosts by priority.
    pub priority_set: Arc<PrioritySet>,
    /// Tables of the load balancer over them.
    pub tables: LbTables,
}

impl ClusterState {
    /// How many priorities load is spread over; those of an aggregate cluster are its members'.
    pub fn level_count(&self) -> usize {
        self.tables.priority_load().healthy.len()
    }

    /// The place of `host` among them; None where it has none any more.
    pub fn level_of(&self, host: &Host) -> Option<usize> {
        self.tables.level_of(host)
    }

    /// The load without some of them; None where the others have no host to offer.
    pub fn load_excluding(&self, excluded: &[bool]) -> Option<PriorityLoad> {
        let levels: SmallVec<[Level; 4]> = self.tables.levels(&self.priority_set);
        PriorityLoad::excluding(&levels, excluded)
    }
}

/// Requests of a cluster that were not sent, for load reports.
#[derive(Debug, Default)]
pub struct LoadCounts {
    /// Answered here: a limit of the cluster was reached, or the policy of the endpoints says so.
    pub dropped: AtomicU64,
    /// Refused as the policy of the endpoints says (`drop_overloads`).
    pub drop_overload: AtomicU64,
}

/// One cluster.
pub struct Cluster {
    /// Unique in the process; a cluster that is added again under its name has another.
    pub id: u64,
    /// Its configuration.
    pub config: Arc<ClusterConfig>,
    /// What tells its configuration from another of the same name; 0 where nobody asks.
    pub fingerprint: u64,
    /// Name in stats and in `%UPSTREAM_CLUSTER%`; as configured, `:` not replaced.
    pub observability_name: Arc<str>,
    /// Stats.
    pub stats: Arc<ClusterStats>,
    limits: [ResourceManager; 2],
    state: ArcSwap<ClusterState>,
    generation: AtomicU64,
    merging: Mutex<Merging>,
    manager_stats: ClusterManagerStats,
    control: tokio::runtime::Handle,
    removed: AtomicBool,
    pub(crate) given: Mutex<Given>,
    /// How many of a million requests are refused.
    pub(crate) drop_per_million: AtomicU32,
    /// Requests of a hundred that are refused (`upstream.maintenance_mode.<name>`).
    maintenance: AtomicU32,
    /// Retries of a hundred that are made (`upstream.use_retry`).
    retry_percent: AtomicU32,
    pub(crate) drop_category: Mutex<Option<Arc<str>>>,
    /// What only load reports tell.
    pub load: LoadCounts,
    pub(crate) transport: Transport,
    auto_sni_header: HeaderName,
    /// What requests are hashed by, whatever their routes say.
    hash_policies: Option<HashPolicies>,
    /// How sockets to hosts are made.
    pub(crate) connect: ConnectOptions,
    outlier: Option<Arc<OutlierDetection>>,
    health: Option<Arc<HealthChecker>>,
    /// Streams on which hosts report their load.
    oob: Option<Arc<OobSessions>>,
    weak: Weak<Cluster>,
    /// Where requests may go that say so themselves.
    destinations: Option<Arc<Destinations>>,
    /// The same, with a cluster for each name.
    sub_clusters: Option<Arc<SubClusters>>,
    /// Names of hosts that requests may bring.
    dns_cache: OnceLock<Arc<DnsCache>>,
    followers: Arc<Followers>,
    /// The configuration with what runtime keys say of load balancing.
    lb_config: ArcSwap<ClusterConfig>,
    /// Where this proxy is, for clusters that route by zones.
    zones: Option<Arc<Zones>>,
    policies: Option<Box<ClusterPolicies>>,
    filters: Option<UpstreamFilters>,
    pub(crate) workers: Weak<worker::Workers>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("name", &self.config.name).finish_non_exhaustive()
    }
}

/// A cluster that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The policy does not exist here.
    #[error(transparent)]
    Policy(#[from] UnsupportedPolicy),
    /// A TLS context cannot be built.
    #[error(transparent)]
    Tls(#[from] nuncio_net::tls::TlsConfigError),
    /// Something of the cluster is not supported.
    #[error("{path}: {what}")]
    Unsupported {
        /// Path in the configuration.
        path: String,
        /// What it is.
        what: String,
    },
}

/// The hash policies of the load balancing policy, if it has any.
fn hash_policies(config: &ClusterConfig) -> Result<Option<HashPolicies>, ClusterError> {
    let policies = &config.lb_common.hashing.policies;
    if policies.is_empty() {
        return Ok(None);
    }
    let mut errors = Vec::new();
    let built = HashPolicies::build(policies, &format!("{}.load_balancing_policy", config.path), &mut errors);
    match errors.pop() {
        None => Ok(Some(built)),
        Some((path, what)) => Err(ClusterError::Unsupported { path, what }),
    }
}

/// What a cluster is made with beside its configuration.
pub(crate) struct ClusterParts<'a> {
    pub(crate) registry: &'a Registry,
    /// Used where the cluster binds nothing.
    pub(crate) upstream_bind: &'a BindConfig,
    /// Told of changes.
    pub(crate) workers: Weak<worker::Workers>,
    /// Tells configurations of one name apart.
    pub(crate) fingerprint: u64,
    /// Where ejections are written.
    pub(crate) outlier_events: Option<&'a Arc<LogFile>>,
    /// Where changes of health are written.
    pub(crate) health_log: Option<Arc<LogFile>>,
    /// Who runs health checks.
    pub(crate) health_jobs: &'a UnboundedSender<Job>,
    /// Secrets by name.
    pub(crate) secrets: &'a Secrets,
    /// Who is told of other hosts.
    pub(crate) followers: &'a Arc<Followers>,
    /// Where this proxy is, if that is known.
    pub(crate) zones: Option<&'a Arc<Zones>>,
    /// Goes before the configuration.
    pub(crate) lb_runtime: LbRuntime,
    /// Where updates are counted.
    pub(crate) manager_stats: &'a ClusterManagerStats,
    /// Where what waits is handed on.
    pub(crate) control: &'a tokio::runtime::Handle,
    /// Where those keys are that the configuration names.
    pub(crate) runtime: Option<&'a dyn Runtime>,
    /// HTTP filters between the router and its hosts.
    pub(crate) filters: Option<UpstreamFilters>,
}

impl Cluster {
    /// A cluster without hosts.
    ///
    /// # Errors
    /// [`ClusterError`] when the configuration asks for what does not exist here, or its TLS files cannot be used.
    pub(crate) fn new(config: Arc<ClusterConfig>, parts: ClusterParts<'_>) -> Result<Arc<Cluster>, ClusterError> {
        let ClusterParts {
            registry,
            upstream_bind,
            workers,
            fingerprint,
            outlier_events,
            health_log,
            health_jobs,
            secrets,
            followers,
            zones,
            lb_runtime,
            manager_stats,
            control,
            runtime,
            filters,
        } = parts;
        static NEXT: AtomicU64 = AtomicU64::new(1);
        check_policy(&config)?;
        let policies = config.policies.as_ref().map(|policies| ClusterPolicies::new(policies).map(Box::new));
        let policies = policies.transpose().map_err(|(path, what)| ClusterError::Unsupported { path, what })?;
        let observability_name: Arc<str> = match &config.alt_stat_name {
            Some(name) => (**name).into(),
            None => config.name.clone(),
        };
        let matcher = config.stats_matcher.clone();
        let prefix = format!("cluster.{}.", observability_name.replace(':', "_"));
        registry.set_matcher(
            &prefix,
            matcher.map(|matcher| Box::new(move |name: &str| matcher.includes(name)) as NameMatcher),
        );
        let zone = zones.map_or("", |zones| &zones.locality.zone);
        let stats = Arc::new(ClusterStats::in_zone(registry, &observability_name.replace(':', "_"), zone));
        // What is tracked is shown before anything was recorded.
        if config.track_sizes {
            stats.sizes();
        }
        if config.track_timeout_budgets {
            stats.timeout_budgets();
        }
        let transport = Transport::new(&config, &stats, secrets)?;
        let priority_set = Arc::new(PrioritySet::default());
        let lb_config = lb_runtime.applied(&config, runtime);
        let tables = LbTables::new(&lb_config, &priority_set, &stats);
        let limits = [ResourcePriority::Default, ResourcePriority::High]
            .map(|priority| ResourceManager::new(priority, &config.circuit_breakers, stats.clone()));
        let auto_sni_header = config.http.override_auto_sni_header.as_deref().and_then(HeaderName::parse);
        let hash_policies = hash_policies(&config)?;
        let window = MergeWindow::new(config.lb_common.update_merge_window);
        let bind = if config.bind == BindConfig::default() { upstream_bind } else { &config.bind };
        let connect = ConnectOptions { bind: bind.clone(), keepalive: config.tcp_keepalive };
        let outlier = config.outlier_detection.as_ref().map(|detection| {
            let log = outlier_events.cloned();
            Arc::new(OutlierDetection::new(detection, registry, stats.prefix(), &config.name, log))
        });
        let health = config.health_check.as_ref().map(|check| {
            let exclude_new = config.lb_common.ignore_new_hosts_until_first_hc;
            let jobs = health_jobs.clone();
            Arc::new(HealthChecker::new(check.clone(), registry, stats.prefix(), health_log, exclude_new, jobs))
        });
        let reporting = config.lb_common.client_weights.as_ref().and_then(|weights| weights.oob.as_ref());
        let oob = reporting.map(|oob| Arc::new(OobSessions::new(oob, registry, stats.prefix(), health_jobs.clone())));
        let destinations = match &config.discovery {
            Discovery::OriginalDst(rules) => Some(Arc::new(Destinations::new(&config, rules))),
            _ => None,
        };
        let sub_clusters = match &config.discovery {
            Discovery::DynamicForwardProxy { names: ForwardProxyNames::SubClusters(subs), .. } => {
                Some(Arc::new(SubClusters::new(subs, followers)))
            }
            _ => None,
        };
        Ok(Arc::new_cyclic(|weak| Cluster {
            policies,
            filters,
            outlier,
            health,
            oob,
            weak: weak.clone(),
            followers: followers.clone(),
            destinations,
            sub_clusters,
            dns_cache: OnceLock::new(),
            lb_config: ArcSwap::new(lb_config),
            zones: zones.filter(|zones| zones.concern(&config)).cloned(),
            connect,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            observability_name,
            limits,
            state: ArcSwap::from_pointee(ClusterState { priority_set, tables }),
            generation: AtomicU64::new(1),
            merging: Mutex::new(Merging { window, published: true }),
            manager_stats: manager_stats.clone(),
            control: control.clone(),
            removed: AtomicBool::new(false),
            given: Mutex::default(),
            drop_per_million: AtomicU32::new(config.endpoints.drop_per_million),
            maintenance: AtomicU32::new(0),
            retry_percent: AtomicU32::new(100),
            drop_category: Mutex::new(config.endpoints.drop_category.clone()),
            load: LoadCounts::default(),
            fingerprint,
            transport,
            hash_policies,
            auto_sni_header: auto_sni_header.unwrap_or(names::AUTHORITY),
            workers,
            stats,
            config,
        }))
    }

    #[inline]
    pub(crate) fn weak(&self) -> Weak<Cluster> {
        self.weak.clone()
    }

    /// Name.
    #[inline]
    pub fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    /// The header whose value is the SNI of `auto_sni` (`override_auto_sni_header`); without it, or where it is empty, the
    /// authority is.
    #[inline]
    pub fn auto_sni_header(&self) -> &HeaderName {
        &self.auto_sni_header
    }

    /// What requests are hashed by if it is not for their routes to say.
    #[inline]
    pub fn hash_policies(&self) -> Option<&HashPolicies> {
        self.hash_policies.as_ref()
    }

    /// Tells in the metadata of a request or connection which host was picked, where the policy wants that
    /// (`selected_host_key`).
    #[inline]
    pub fn note_selected(&self, host: &Host, metadata: &mut Option<Box<serde_json::Map<String, serde_json::Value>>>) {
        if let Some(key) = &self.config.lb_common.selected_host_key {
            override_host::note_selected(key, host, metadata);
        }
    }

    /// Its own policies; None where those of routes are used.
    #[inline]
    pub fn policies(&self) -> Option<&ClusterPolicies> {
        self.policies.as_deref()
    }

    /// HTTP filters between the router and its hosts; None where it has none of its own.
    #[inline]
    pub fn upstream_filters(&self) -> Option<&UpstreamFilters> {
        self.filters.as_ref()
    }

    /// Whether connections to `host` are encrypted.
    pub fn is_secure(&self, host: &Host) -> bool {
        self.transport.is_secure(host)
    }

    /// TLS contexts, for certificate listings and reloading.
    pub fn tls_contexts(&self) -> impl Iterator<Item = &Arc<ClientTlsContext>> {
        self.transport.contexts()
    }

    /// Limits of `priority`.
    #[inline]
    pub fn resource_manager(&self, priority: ResourcePriority) -> &ResourceManager {
        &self.limits[priority as usize]
    }

    pub(crate) fn tracks_remaining(&self) -> bool {
        self.limits.iter().any(ResourceManager::tracks_remaining)
    }

    pub(crate) fn show_remaining(&self) {
        self.limits.iter().for_each(ResourceManager::show_remaining);
    }

    /// Hosts and tables as they are now.
    pub fn state(&self) -> Arc<ClusterState> {
        self.state.load_full()
    }

    /// Changes with every update; what a worker compares to know whether its copy is still good.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether it was removed or replaced.
    #[inline]
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// Active health checking where it is configured.
    pub fn health_checker(&self) -> Option<&Arc<HealthChecker>> {
        self.health.as_ref()
    }

    /// Outlier detection where it is configured.
    pub fn outlier_detection(&self) -> Option<&Arc<OutlierDetection>> {
        self.outlier.as_ref()
    }

    pub(crate) fn mark_removed(&self) {
        if !self.removed.swap(true, Ordering::Relaxed) {
            self.state().tables.release(&self.stats);
        }
        if let Some(outlier) = &self.outlier {
            outlier.stop();
        }
        if let Some(health) = &self.health {
            health.stop();
        }
        if let Some(oob) = &self.oob {
            oob.stop();
        }
        if let Some(subs) = &self.sub_clusters {
            subs.stop();
        }
        self.generation.fetch_add(1, Ordering::Release);
        self.notify_workers();
    }

    /// Where a dynamic forward proxy has a cluster for each name: those.
    pub fn sub_clusters(&self) -> Option<&Arc<SubClusters>> {
        self.sub_clusters.as_ref()
    }

    /// Where requests may go that say so themselves.
    pub(crate) fn destinations(&self) -> Option<&Arc<Destinations>> {
        self.destinations.as_ref()
    }

    /// Its hosts are the names of `cache` from now on.
    pub(crate) fn use_dns_cache(self: &Arc<Self>, cache: Arc<DnsCache>) {
        self.dns_cache.get_or_init(|| cache).attach(self);
    }

    /// The port of hosts that requests name without one.
    pub fn default_port(&self) -> u16 {
        if self.transport.default_is_secure() { 443 } else { 80 }
    }

    /// The runtime may say that requests are refused, and of other limits and pauses between health checks.
    pub(crate) fn read_runtime(&self, runtime: &dyn Runtime) {
        let percent = runtime.integer(&format!("upstream.maintenance_mode.{}", self.name())).unwrap_or(0);
        self.maintenance.store(percent.min(100) as u32, Ordering::Relaxed);
        let retries = runtime.integer("upstream.use_retry").unwrap_or(100);
        self.retry_percent.store(retries.min(100) as u32, Ordering::Relaxed);
        self.limits.iter().for_each(|limits| limits.read_runtime(self.name(), runtime));
        if let Some(checker) = self.health_checker() {
            checker.read_runtime(runtime);
        }
    }

    /// How many of a hundred retries are made.
    #[inline]
    pub fn retry_percent(&self) -> u32 {
        self.retry_percent.load(Ordering::Relaxed)
    }

    /// How many of a hundred requests are refused.
    #[inline]
    pub fn maintenance_percent(&self) -> u32 {
        self.maintenance.load(Ordering::Relaxed)
    }

    /// Whose pools, limits and stats serve `host`: for an aggregate cluster those of the member that has it, for a forward
    /// proxy with a cluster for each name those of the name.
    #[inline]
    pub fn serving<'a>(self: &'a Arc<Self>, host: &Host) -> Cow<'a, Arc<Cluster>> {
        match self.config.discovery {
            Discovery::Aggregate { .. } => host.owner().map_or(Cow::Borrowed(self), Cow::Owned),
            _ if self.sub_clusters.is_some() => host.owner().map_or(Cow::Borrowed(self), Cow::Owned),
            _ => Cow::Borrowed(self),
        }
    }

    /// Whether dynamic metadata may decide on hosts.
    #[inline]
    pub fn reads_metadata(&self) -> bool {
        self.config.lb_common.subsets.is_some() || matches!(self.config.discovery, Discovery::Aggregate { .. })
    }

    /// The cluster warms until endpoints are handed in, or it is told that none will come.
    pub(crate) fn wait_for_endpoints(&self, warming: Warming) {
        self.given().warming = Some(warming);
    }

    fn notify_workers(&self) {
        if let Some(workers) = self.workers.upgrade() {
            workers.notify(self.id);
        }
    }

    /// Picks a host by the calling worker's turns. None when there is none to use.
    #[inline]
    pub fn choose_host(&self, context: &LbContext<'_>) -> Option<Arc<Host>> {
        worker::choose_host(self, context)
    }
}
