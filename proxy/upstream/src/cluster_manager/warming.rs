//! Clusters that are not in use yet: what they wait for, and who waits for them.
//!
//! A cluster warms as long as somebody holds a [`Warming`] of it: whoever looks for its hosts, checks their health, or
//! fetches its secrets. With the last one dropped [`ClusterManager`] makes it visible.

use super::ClusterManager;
use crate::cluster::Cluster;
use crate::health_check::HealthChecker;
use futures_util::future::BoxFuture;
use nuncio_config::cluster::Discovery;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// How many clusters wait for their first hosts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waiting {
    /// By DNS.
    primary: usize,
    /// For endpoints that are handed in.
    secondary: usize,
}

impl Waiting {
    fn count(&mut self, primary: bool) -> &mut usize {
        if primary { &mut self.primary } else { &mut self.secondary }
    }
}

impl ClusterManager {
    pub(super) fn awaited_checker<'a>(&self, cluster: &'a Cluster) -> Option<&'a Arc<HealthChecker>> {
        cluster.health_checker().filter(|_| !self.unchecked.load(Ordering::Relaxed))
    }

    /// The cluster warms until what it needs has come (secrets, configurations of filters), or it is removed.
    pub(super) fn wait_for_needs(
        &self,
        cluster: &Cluster,
        needs: Vec<BoxFuture<'static, ()>>,
        warming: impl FnOnce() -> Warming,
    ) {
        if needs.is_empty() {
            return;
        }
        let warming = warming();
        let weak = cluster.weak();
        let task = self.options.control.spawn(async move {
            for need in needs {
                need.await;
            }
            if let Some(cluster) = weak.upgrade() {
                cluster.needs_are_met();
            }
        });
        cluster.wait_for_needs(warming, task.abort_handle());
    }

    /// Waits until every cluster added so far has its first hosts, or its first attempt has failed. The server waits for
    /// it before listeners start.
    pub async fn initialized(&self) {
        let mut waiting = self.waiting.subscribe();
        // The sender lives as long as `self`.
        let _ = waiting.wait_for(|waiting| waiting.primary == 0 && waiting.secondary == 0).await;
    }

    /// Whether [`ClusterManager::initialized`] would not wait.
    pub fn is_initialized(&self) -> bool {
        let waiting = *self.waiting.borrow();
        waiting.primary == 0 && waiting.secondary == 0
    }

    /// Waits until the cluster of this name is visible, or none of the name warms any more.
    pub async fn warmed_up(&self, name: &str) {
        let mut waiting = self.waiting.subscribe();
        let over = |_: &Waiting| self.cluster(name).is_some() || !self.control().warming.contains_key(name);
        // The sender lives as long as `self`.
        let _ = waiting.wait_for(over).await;
    }

    /// As [`ClusterManager::initialized`], for those clusters only that do not wait for endpoints from outside: what
    /// endpoints are fetched from must be among them.
    pub async fn primary_initialized(&self) {
        let mut waiting = self.waiting.subscribe();
        let _ = waiting.wait_for(|waiting| waiting.primary == 0).await;
    }
}

/// Counts a cluster as warming until the last clone is dropped; then the cluster becomes visible.
#[derive(Clone)]
pub(crate) struct Warming {
    inner: Arc<WarmingInner>,
}

/// A [`Warming`] that keeps nothing warming by itself.
pub(crate) struct WeakWarming(Weak<WarmingInner>);

impl WeakWarming {
    /// What it stands for, if that still lives.
    pub(crate) fn upgrade(&self) -> Option<Warming> {
        self.0.upgrade().map(|inner| Warming { inner })
    }
}

struct WarmingInner {
    manager: Weak<ClusterManager>,
    cluster: Weak<Cluster>,
    primary: bool,
}

impl Warming {
    pub(super) fn new(manager: &Arc<ClusterManager>, cluster: &Arc<Cluster>) -> Self {
        let primary = !matches!(cluster.config.discovery, Discovery::Eds { .. });
        Self::counted(manager, cluster, primary)
    }

    /// What it waits for may come through another cluster.
    pub(super) fn secondary(manager: &Arc<ClusterManager>, cluster: &Arc<Cluster>) -> Self {
        Self::counted(manager, cluster, false)
    }

    fn counted(manager: &Arc<ClusterManager>, cluster: &Arc<Cluster>, primary: bool) -> Self {
        manager.waiting.send_modify(|waiting| *waiting.count(primary) += 1);
        cluster.stats.warming_state().set(1);
        let (manager, cluster) = (Arc::downgrade(manager), Arc::downgrade(cluster));
        Warming { inner: Arc::new(WarmingInner { manager, cluster, primary }) }
    }

    pub(super) fn downgrade(&self) -> WeakWarming {
        WeakWarming(Arc::downgrade(&self.inner))
    }
}

impl Drop for WarmingInner {
    fn drop(&mut self) {
        let Some(manager) = self.manager.upgrade() else { return };
        if let Some(cluster) = self.cluster.upgrade() {
            cluster.stats.warming_state().set(0);
            manager.warmed(&cluster);
        }
        manager.waiting.send_modify(|waiting| *waiting.count(self.primary) -= 1);
    }
}
