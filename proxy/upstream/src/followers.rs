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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Zones;
    use crate::lb::LbContext;
    use crate::testing::{assignment, config, eds, manager, pick};
    use nuncio_config::cluster::{ClusterConfig, ClusterLoadAssignment, Discovery, Locality, LocalityEndpoints};

    #[test]
    fn an_aggregate_follows_its_members() {
        let (manager, _registry, _runtime) = manager();
        let discovery = Discovery::Aggregate { clusters: ["x".into(), "y".into()].into() };
        let lb_policy = nuncio_config::cluster::LbPolicy::ClusterProvided;
        manager.add(Arc::new(ClusterConfig { name: "all".into(), discovery, lb_policy, ..config() })).unwrap();
        assert_eq!(pick(&manager, "all"), None);
        let (_, y) = manager.add_or_update(eds("y"), 1).unwrap();
        y.set_endpoints(assignment(&[2]));
        assert_eq!(pick(&manager, "all"), Some(2));
        let (_, x) = manager.add_or_update(eds("x"), 1).unwrap();
        assert_eq!(pick(&manager, "all"), Some(2));
        x.set_endpoints(assignment(&[1]));
        assert_eq!(pick(&manager, "all"), Some(1));
        // A member of the same name takes the place of the old one when it is warm.
        let (_, new) = manager.add_or_update(eds("x"), 2).unwrap();
        assert_eq!(pick(&manager, "all"), Some(1));
        new.set_endpoints(assignment(&[3]));
        assert_eq!(pick(&manager, "all"), Some(3));
        new.set_endpoints(assignment(&[]));
        assert_eq!(pick(&manager, "all"), Some(2));
        new.set_endpoints(assignment(&[3]));
        let host = manager.cluster("all").unwrap().choose_host(&LbContext::default()).unwrap();
        assert!(Arc::ptr_eq(&host.owner().unwrap(), &new));
        assert!(manager.remove("x"));
        assert_eq!(pick(&manager, "all"), Some(2));
    }

    #[test]
    fn zones_follow_the_local_cluster() {
        let (manager, _registry, _runtime) = manager();
        let zone = |name: &str| Locality { zone: name.into(), ..Locality::default() };
        manager.set_zones(Zones { local_cluster: Some("proxies".into()), locality: Arc::new(zone("a")) });
        let mut upstream = ClusterConfig { name: "u".into(), ..config() };
        upstream.lb_common.zone_aware.min_cluster_size = 1;
        let zoned = |ports: &[(&str, u16)]| {
            let mut all = ClusterLoadAssignment::default();
            for (name, port) in ports {
                let one = assignment(&[*port]);
                all.localities.push(LocalityEndpoints { locality: zone(name), ..one.localities[0].clone() });
            }
            all
        };
        upstream.endpoints = zoned(&[("a", 1), ("b", 2)]);
        manager.add(Arc::new(upstream)).unwrap();
        let both = |manager: &ClusterManager| [pick(manager, "u"), pick(manager, "u")];
        let mut spread = both(&manager);
        spread.sort();
        assert_eq!(spread, [Some(1), Some(2)]);
        let (_, proxies) = manager.add_or_update(eds("proxies"), 1).unwrap();
        proxies.set_endpoints(Arc::new(zoned(&[("a", 8), ("b", 9)])));
        assert_eq!(both(&manager), [Some(1), Some(1)]);
        // All proxies are in one zone: nothing is known of the load of the others.
        proxies.set_endpoints(Arc::new(zoned(&[("a", 8)])));
        let mut spread = both(&manager);
        spread.sort();
        assert_eq!(spread, [Some(1), Some(2)]);
    }
}
