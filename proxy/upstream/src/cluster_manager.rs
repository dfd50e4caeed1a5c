//! All clusters by name.
//!
//! Workers look names up without locks: names hash to shards, each an `ArcSwap` of a short sorted table, so that a
//! change copies a few entries however many clusters there are. The control thread adds and removes.

use crate::cluster::{Cluster, ClusterError};
use crate::discovery;
use crate::dns::Resolvers;
use crate::stats::ClusterManagerStats;
use crate::worker::Workers;
use arc_swap::ArcSwapOption;
use nuncio_base::stats::Registry;
use nuncio_config::cluster::{BindConfig, ClusterConfig};
use std::hash::{BuildHasher as _, BuildHasherDefault};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

const SHARDS: usize = 512;

type Shard = ArcSwapOption<Vec<(u64, Arc<Cluster>)>>;

/// What a cluster manager is made with.
#[derive(Debug, Clone)]
pub struct ClusterManagerOptions {
    /// Where stats live.
    pub registry: Registry,
    /// Source address of upstream connections where a cluster names none (`cluster_manager.upstream_bind_config`).
    pub upstream_bind: BindConfig,
    /// Where discovery (DNS) runs: the control thread's runtime.
    pub control: tokio::runtime::Handle,
}

/// What [`ClusterManager::add`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddOutcome {
    /// The name was new.
    Added,
    /// The cluster of this name was replaced.
    Modified,
}

/// All clusters.
pub struct ClusterManager {
    shards: Box<[Shard]>,
    options: ClusterManagerOptions,
    stats: ClusterManagerStats,
    workers: Arc<Workers>,
    resolvers: Resolvers,
    control: Mutex<Control>,
    /// Clusters that wait for their first hosts.
    warming: watch::Sender<usize>,
}

#[derive(Default)]
struct Control {
    /// Names in the order of adding, for listings.
    order: Vec<Arc<str>>,
}

impl std::fmt::Debug for ClusterManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterManager").finish_non_exhaustive()
    }
}

fn hash(name: &str) -> u64 {
    BuildHasherDefault::<rustc_hash::FxHasher>::default().hash_one(name)
}

impl ClusterManager {
    /// A manager without clusters.
    pub fn new(options: ClusterManagerOptions) -> Arc<ClusterManager> {
        Arc::new(ClusterManager {
            shards: std::iter::repeat_with(Shard::default).take(SHARDS).collect(),
            stats: ClusterManagerStats::new(&options.registry, "cluster_manager."),
            options,
            workers: Arc::default(),
            resolvers: Resolvers::default(),
            control: Mutex::default(),
            warming: watch::channel(0).0,
        })
    }

    /// The cluster of this name. Lock-free; for every thread.
    #[inline]
    pub fn cluster(&self, name: &str) -> Option<Arc<Cluster>> {
        let hash = hash(name);
        let shard = self.shards[shard_of(hash)].load();
        let entries = shard.as_ref()?;
        let from = entries.partition_point(|entry| entry.0 < hash);
        entries[from..]
            .iter()
            .take_while(|entry| entry.0 == hash)
            .find(|entry| **entry.1.name() == *name)
            .map(|entry| entry.1.clone())
    }

    /// Adds a cluster, or replaces the one of the same name. Its hosts are there at once where they are configured;
    /// those that DNS must find come later ([`ClusterManager::initialized`]). For the control thread.
    ///
    /// # Errors
    /// [`ClusterError`]; nothing has changed then.
    pub fn add(self: &Arc<Self>, config: Arc<ClusterConfig>) -> Result<AddOutcome, ClusterError> {
        let cluster =
            Cluster::new(config, &self.options.registry, &self.options.upstream_bind, Arc::downgrade(&self.workers))?;
        let discovery = discovery::Discovery::new(&cluster, &self.resolvers)?;
        let mut control = self.control();
        let old = self.replace(cluster.name(), Some(cluster.clone()));
        let outcome = match &old {
            Some(old) => {
                old.mark_removed();
                self.stats.cluster_modified().inc();
                AddOutcome::Modified
            }
            None => {
                control.order.push(cluster.name().clone());
                self.stats.cluster_added().inc();
                self.stats.active_clusters().inc();
                AddOutcome::Added
            }
        };
        drop(control);
        discovery.start(&cluster, &self.options.control, || Warming::new(self));
        Ok(outcome)
    }

    /// Removes a cluster; connections to its hosts drain. False when there was none of this name.
    pub fn remove(&self, name: &str) -> bool {
        let mut control = self.control();
        let Some(old) = self.replace(name, None) else { return false };
        control.order.retain(|other| **other != *name);
        old.mark_removed();
        self.stats.cluster_removed().inc();
        self.stats.active_clusters().dec();
        true
    }

    /// Swaps the entry of `name`; returns the old one. The caller holds the control lock.
    fn replace(&self, name: &str, new: Option<Arc<Cluster>>) -> Option<Arc<Cluster>> {
        let hash = hash(name);
        let shard = &self.shards[shard_of(hash)];
        let mut entries: Vec<_> = shard.load().as_ref().map(|entries| (**entries).clone()).unwrap_or_default();
        let at = entries.iter().position(|entry| entry.0 == hash && **entry.1.name() == *name);
        let old = at.map(|at| entries.remove(at).1);
        if let Some(new) = new {
            let at = entries.partition_point(|entry| entry.0 < hash);
            entries.insert(at, (hash, new));
        }
        entries.shrink_to_fit();
        shard.store((!entries.is_empty()).then(|| Arc::new(entries)));
        old
    }

    /// All clusters in the order in which they were added. For listings.
    pub fn clusters(&self) -> Vec<Arc<Cluster>> {
        let control = self.control();
        control.order.iter().filter_map(|name| self.cluster(name)).collect()
    }

    /// Number of clusters.
    pub fn len(&self) -> usize {
        self.control().order.len()
    }

    /// Whether there is no cluster.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until every cluster added so far has its first hosts, or its first attempt has failed. The server waits for
    /// it before listeners start.
    pub async fn initialized(&self) {
        let mut warming = self.warming.subscribe();
        // The sender lives as long as `self`.
        let _ = warming.wait_for(|count| *count == 0).await;
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shard_of(hash: u64) -> usize {
    (hash >> 48) as usize % SHARDS
}

/// Counts a cluster as warming until dropped.
pub(crate) struct Warming {
    manager: std::sync::Weak<ClusterManager>,
}

impl Warming {
    fn new(manager: &Arc<ClusterManager>) -> Self {
        manager.warming.send_modify(|count| *count += 1);
        Warming { manager: Arc::downgrade(manager) }
    }
}

impl Drop for Warming {
    fn drop(&mut self) {
        if let Some(manager) = self.manager.upgrade() {
            manager.warming.send_modify(|count| *count -= 1);
        }
    }
}
