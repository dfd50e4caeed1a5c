//! Clusters that have to know the hosts of other clusters: aggregate clusters those of their members, and those that
//! route by zones those of the local cluster.
//!
//! Whoever changes a cluster on the control thread says so here ([`Followers::changed`]), and those that follow it build
//! their load balancing tables anew. Their own hosts stay as they are, so a change goes one step and no further.

use crate::cluster::Cluster;
use crate::cluster_manager::ClusterManager;
use rustc_hash::FxHashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// Who follows whom, in one cluster manager.
#[derive(Default)]
pub(crate) struct Followers {
    manager: OnceLock<Weak<ClusterManager>>,
    /// By the name of the cluster that is followed, which need not exist.
    by_name: Mutex<FxHashMap<Box<str>, Vec<Weak<Cluster>>>>,
    any: AtomicBool,
}

impl Followers {
    /// Says whose clusters these are.
    pub(crate) fn belong_to(&self, manager: &Arc<ClusterManager>) {
        let _ = self.manager.set(Arc::downgrade(manager));
    }

    /// The cluster of this name, if there is one.
    pub(crate) fn cluster(&self, name: &str) -> Option<Arc<Cluster>> {
        self.manager.get()?.upgrade()?.cluster(name)
    }

    /// `cluster` follows the cluster `name` from now on, as long as it lives.
    pub(crate) fn follow(&self, name: &str, cluster: &Cluster) {
        self.any.store(true, Relaxed);
        let mut by_name = self.lock();
        let list = by_name.entry(name.into()).or_default();
        list.retain(|other| other.strong_count() > 0);
        list.push(cluster.weak());
    }

    /// The cluster `name` has other hosts or other health, or there is none of this name any more.
    pub(crate) fn changed(&self, name: &str) {
        if !self.any.load(Relaxed) {
            return;
        }
        let mut followers = Vec::new();
        {
            let mut by_name = self.lock();
            let Some(list) = by_name.get_mut(name) else { return };
            list.retain(|other| other.upgrade().is_some_and(|cluster| !cluster.is_removed()));
            followers.extend(list.iter().filter_map(Weak::upgrade));
            if list.is_empty() {
                by_name.remove(name);
            }
        }
        for follower in followers {
            follower.follow();
        }
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<Box<str>, Vec<Weak<Cluster>>>> {
        // A panic between map operations leaves the map whole.
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
