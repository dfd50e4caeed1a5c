//! Dynamic forward proxies with a cluster for each name that requests bring (`sub_clusters_config`).
//!
//! An HTTP filter asks for the cluster of a name ([`SubClusters::ask`]); a task on the control thread makes it as a
//! STRICT_DNS cluster with the settings of the parent, and tells when it is visible. A cluster that was not used for a
//! while is removed. The parent itself has no hosts: its picks are those of the name's cluster.

use crate::cluster::Cluster;
use crate::cluster_manager::ClusterManager;
use crate::dns_cache::{Name, authority_of, normalized};
use crate::followers::Followers;
use crate::host::{Host, now_ms};
use crate::lb::LbContext;
use arc_swap::ArcSwap;
use nuncio_config::address::EndpointAddress;
use nuncio_config::cluster::{
    ClusterConfig, ClusterLoadAssignment, Discovery, Endpoint, LocalityEndpoints, SubClustersConfig,
};
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

/// Names that may wait to be made into clusters.
const MOST_WAITING: usize = 4096;

/// What asking for the cluster of a name brings.
pub enum SubCluster {
    /// It is there.
    Ready,
    /// It is made; the receiver yields when it is visible, and an error when there are too many.
    Made(oneshot::Receiver<()>),
    /// There are too many.
    Overflow,
}

/// A name that has no cluster yet.
struct Ask {
    name: Arc<str>,
    /// None for names that nobody waits for.
    ready: Option<oneshot::Sender<()>>,
}

/// The clusters of one forward proxy's names.
pub struct SubClusters {
    config: Arc<SubClustersConfig>,
    followers: Arc<Followers>,
    used: ArcSwap<FxHashMap<Arc<str>, Arc<AtomicU64>>>,
    asks: mpsc::Sender<Ask>,
    /// Until somebody makes them.
    waiting: Mutex<Option<mpsc::Receiver<Ask>>>,
    /// The forward proxy is not wanted any more.
    stopped: Notify,
}

impl std::fmt::Debug for SubClusters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SubClusters").field("count", &self.used.load().len()).finish_non_exhaustive()
    }
}

/// The name of the cluster for a host.
fn cluster_name(authority: &str, default_port: u16) -> Name {
    normalized(authority, default_port).prefixed("DFPCluster:")
}

impl SubClusters {
    pub(crate) fn new(config: &Arc<SubClustersConfig>, followers: &Arc<Followers>) -> Self {
        let (asks, waiting) = mpsc::channel(MOST_WAITING);
        for (host, port) in &config.preresolve {
            let name = cluster_name(host, *port).as_str().into();
            // More than that may not wait; what is left out is made when it is asked for.
            let _ = asks.try_send(Ask { name, ready: None });
        }
        let (used, waiting) = (ArcSwap::default(), Mutex::new(Some(waiting)));
        let stopped = Notify::new();
        SubClusters { config: config.clone(), followers: followers.clone(), used, asks, waiting, stopped }
    }

    /// Asks for the cluster of a host. For workers.
    pub fn ask(&self, authority: &str, default_port: u16) -> SubCluster {
        let name = cluster_name(authority, default_port);
        let used = self.used.load();
        match used.get(name.as_str()) {
            Some(last) => {
                last.store(now_ms(), Relaxed);
                if self.followers.cluster(name.as_str()).is_some() {
                    return SubCluster::Ready;
                }
            }
            None if used.len() as u64 >= u64::from(self.config.max_sub_clusters) => return SubCluster::Overflow,
            None => {}
        }
        let (ready, receiver) = oneshot::channel();
        match self.asks.try_send(Ask { name: name.as_str().into(), ready: Some(ready) }) {
            Ok(()) => SubCluster::Made(receiver),
            Err(_) => SubCluster::Overflow,
        }
    }

    /// The host that the name's cluster picks.
    pub(crate) fn choose(&self, context: &LbContext<'_>, default_port: u16) -> Option<Arc<Host>> {
        let (authority, port) = authority_of(context, default_port)?;
        self.followers.cluster(cluster_name(authority, port).as_str())?.choose_host(context)
    }

    /// The clusters go with their parent.
    pub(crate) fn stop(&self) {
        self.stopped.notify_one();
    }

    fn change(&self, change: impl FnOnce(&mut FxHashMap<Arc<str>, Arc<AtomicU64>>)) {
        let mut used = FxHashMap::clone(&self.used.load());
        change(&mut used);
        self.used.store(Arc::new(used));
    }
}

/// Makes and removes the clusters of `parent`'s names until it is gone. On the control thread.
pub(crate) fn start(parent: &Arc<Cluster>, manager: &Arc<ClusterManager>, control: &tokio::runtime::Handle) {
    let Some(subs) = parent.sub_clusters() else { return };
    let waiting = subs.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(asks) = waiting else { return };
    let maker = Maker {
        parent: Arc::downgrade(parent),
        id: parent.id,
        manager: Arc::downgrade(manager),
        pending: FxHashMap::default(),
    };
    control.spawn(maker.run(subs.clone(), asks));
}

struct Maker {
    parent: Weak<Cluster>,
    /// That of the parent: tells its clusters from those that another forward proxy made of the same names.
    id: u64,
    manager: Weak<ClusterManager>,
    /// Who waits for clusters that warm.
    pending: FxHashMap<Arc<str>, Vec<oneshot::Sender<()>>>,
}

impl Maker {
    async fn run(mut self, subs: Arc<SubClusters>, mut asks: mpsc::Receiver<Ask>) {
        let Some(mut published) = self.manager.upgrade().map(|manager| manager.published()) else { return };
        let mut next = Instant::now() + subs.config.ttl;
        loop {
            let ask = tokio::select! {
                ask = asks.recv() => ask,
                changed = published.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    None
                }
                () = sleep_until(next) => None,
                () = subs.stopped.notified() => None,
            };
            let Some(manager) = self.manager.upgrade() else { return };
            let parent = self.parent.upgrade().filter(|parent| !parent.is_removed());
            let Some(parent) = parent else {
                subs.used.load().keys().for_each(|name| self.remove(&manager, name));
                return;
            };
            match ask {
                Some(ask) => self.make(&subs, &parent, &manager, ask),
                None => self.tell_ready(&manager),
            }
            if Instant::now() >= next {
                next = Instant::now() + subs.config.ttl;
                self.remove_idle(&subs, &manager);
            }
        }
    }

    fn make(&mut self, subs: &SubClusters, parent: &Cluster, manager: &Arc<ClusterManager>, ask: Ask) {
        let Ask { name, ready } = ask;
        let used = subs.used.load();
        let known = used.contains_key(&name);
        // Another forward proxy may have removed a cluster of this name.
        if !known || manager.newest(&name).is_none() {
            if !known && used.len() as u64 >= u64::from(subs.config.max_sub_clusters) {
                return;
            }
            let Some(config) = config_of(parent, &subs.config, &name) else { return };
            if let Err(error) = manager.add_or_update(Arc::new(config), self.id) {
                tracing::warn!(cluster = &*name, %error, "a cluster for a name cannot be made");
                return;
            }
            subs.change(|used| drop(used.insert(name.clone(), Arc::new(AtomicU64::new(now_ms())))));
        }
        if manager.cluster(&name).is_none() {
            self.pending.entry(name).or_default().extend(ready);
        } else if let Some(ready) = ready {
            // Who has gone meanwhile does not want it.
            let _ = ready.send(());
        }
    }

    fn tell_ready(&mut self, manager: &ClusterManager) {
        self.pending.retain(|name, waiting| {
            if manager.cluster(name).is_none() {
                waiting.retain(|ready| !ready.is_closed());
                return !waiting.is_empty();
            }
            for ready in waiting.drain(..) {
                let _ = ready.send(());
            }
            false
        });
    }

    /// Removes the cluster of a name, unless it is another's.
    fn remove(&self, manager: &ClusterManager, name: &str) {
        if manager.newest(name).is_some_and(|cluster| cluster.fingerprint == self.id) {
            manager.remove(name);
        }
    }

    fn remove_idle(&self, subs: &SubClusters, manager: &ClusterManager) {
        let (now, ttl) = (now_ms(), subs.config.ttl.as_millis() as u64);
        let idle = |last: &AtomicU64| now.saturating_sub(last.load(Relaxed)) > ttl;
        let used = subs.used.load();
        let gone: FxHashSet<_> = used.iter().filter(|(_, last)| idle(last)).map(|(name, _)| name.clone()).collect();
        if gone.is_empty() {
            return;
        }
        subs.change(|used| used.retain(|name, _| !gone.contains(name)));
        gone.iter().for_each(|name| self.remove(manager, name));
    }
}

/// The parent's settings with one name as endpoint.
fn config_of(parent: &Cluster, config: &SubClustersConfig, name: &Arc<str>) -> Option<ClusterConfig> {
    let (host, port) = name.strip_prefix("DFPCluster:")?.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let address = EndpointAddress::Name { host: host.to_owned(), port: port.parse().ok()? };
    let group = LocalityEndpoints { endpoints: vec![Endpoint::new(address)], ..LocalityEndpoints::default() };
    Some(ClusterConfig {
        name: name.clone(),
        discovery: if config.logical { Discovery::LogicalDns } else { Discovery::StrictDns },
        dns: config.dns.clone().unwrap_or_else(|| parent.config.dns.clone()),
        lb_policy: config.lb_policy.clone(),
        endpoints: ClusterLoadAssignment {
            cluster_name: (**name).into(),
            localities: vec![group],
            ..ClusterLoadAssignment::default()
        },
        added_via_api: true,
        ..(*parent.config).clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use nuncio_config::cluster::ForwardProxyNames;
    use std::time::Duration;

    const NAME: &str = "DFPCluster:127.0.0.1:80";

    fn forward_proxy(name: &str) -> Arc<ClusterConfig> {
        let subs = SubClustersConfig {
            lb_policy: nuncio_config::cluster::LbPolicy::RoundRobin,
            max_sub_clusters: 1,
            ttl: Duration::from_secs(3600),
            preresolve: Vec::new(),
            logical: false,
            dns: None,
        };
        let names = ForwardProxyNames::SubClusters(Arc::new(subs));
        let discovery = Discovery::DynamicForwardProxy { names, allow_insecure: false };
        let lb_policy = nuncio_config::cluster::LbPolicy::ClusterProvided;
        let config = ClusterConfig { name: name.into(), discovery, lb_policy, ..testing::config() };
        Arc::new(ClusterConfig { added_via_api: true, ..config })
    }

    /// Asks until the cluster is there.
    async fn ask(subs: &SubClusters) {
        match subs.ask("127.0.0.1:80", 80) {
            SubCluster::Ready => {}
            SubCluster::Made(made) => made.await.expect("it is made"),
            SubCluster::Overflow => panic!("there is room for one"),
        }
    }

    #[test]
    fn a_cluster_that_another_forward_proxy_took_or_removed_is_made_again() {
        let (manager, _registry, runtime) = testing::manager();
        let add = |name: &str| manager.add_or_update(forward_proxy(name), 1).expect("added").1;
        let (one, other) = (add("one"), add("other"));
        let id = || manager.newest(NAME).map(|cluster| cluster.fingerprint);
        let (subs, others) = (one.sub_clusters().expect("its names"), other.sub_clusters().expect("its names"));
        runtime.block_on(async {
            ask(subs).await;
            assert_eq!(id(), Some(one.id));
            assert!(matches!(subs.ask("127.0.0.2:80", 80), SubCluster::Overflow));
            ask(others).await;
            assert_eq!(id(), Some(other.id));
            // It is not its own any more.
            assert!(manager.remove("one"));
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            assert_eq!(id(), Some(other.id));
            assert!(manager.remove(NAME));
            ask(others).await;
            assert_eq!(id(), Some(other.id));
            assert!(manager.remove("other"));
            let gone = async {
                while id().is_some() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), gone).await.expect("it goes with its parent");
        });
    }
}
