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
    ClusterConfig, ClusterLoadAssignment, Discovery, Endpoint, Locality, LocalityEndpoints, SubClustersConfig,
};
use rustc_hash::FxHashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{mpsc, oneshot};
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
        SubClusters { config: config.clone(), followers: followers.clone(), used, asks, waiting }
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
    let maker =
        Maker { parent: Arc::downgrade(parent), manager: Arc::downgrade(manager), pending: FxHashMap::default() };
    control.spawn(maker.run(subs.clone(), asks));
}

struct Maker {
    parent: Weak<Cluster>,
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
            };
            let Some(manager) = self.manager.upgrade() else { return };
            let parent = self.parent.upgrade().filter(|parent| !parent.is_removed());
            let Some(parent) = parent else {
                for name in subs.used.load().keys() {
                    manager.remove(name);
                }
                return;
            };
            if let Some(ask) = ask {
                self.make(&subs, &parent, &manager, ask);
            }
            self.tell_ready(&manager);
            if Instant::now() >= next {
                next = Instant::now() + subs.config.ttl;
                remove_idle(&subs, &manager);
            }
        }
    }

    fn make(&mut self, subs: &SubClusters, parent: &Cluster, manager: &Arc<ClusterManager>, ask: Ask) {
        let Ask { name, ready } = ask;
        let used = subs.used.load();
        if !used.contains_key(&name) {
            if used.len() as u64 >= u64::from(subs.config.max_sub_clusters) {
                return;
            }
            let Some(config) = config_of(parent, &subs.config, &name) else { return };
            if let Err(error) = manager.add_or_update(Arc::new(config), parent.id) {
                tracing::warn!(cluster = &*name, %error, "a cluster for a name cannot be made");
                return;
            }
            subs.change(|used| drop(used.insert(name.clone(), Arc::new(AtomicU64::new(now_ms())))));
        }
        self.pending.entry(name).or_default().extend(ready);
    }

    fn tell_ready(&mut self, manager: &ClusterManager) {
        self.pending.retain(|name, waiting| {
            if manager.cluster(name).is_none() {
                waiting.retain(|ready| !ready.is_closed());
                return !waiting.is_empty();
            }
            // Who has gone meanwhile does not want it.
            for ready in waiting.drain(..) {
                let _ = ready.send(());
            }
            false
        });
    }
}

fn remove_idle(subs: &SubClusters, manager: &ClusterManager) {
    let (now, ttl) = (now_ms(), subs.config.ttl.as_millis() as u64);
    let idle = |last: &AtomicU64| now.saturating_sub(last.load(Relaxed)) > ttl;
    let used = subs.used.load();
    let gone: Vec<_> = used.iter().filter(|(_, last)| idle(last)).map(|(name, _)| name.clone()).collect();
    if gone.is_empty() {
        return;
    }
    subs.change(|used| used.retain(|name, _| !gone.contains(name)));
    for name in gone {
        manager.remove(&name);
    }
}

/// The parent's settings with one name as endpoint.
fn config_of(parent: &Cluster, config: &SubClustersConfig, name: &Arc<str>) -> Option<ClusterConfig> {
    let (host, port) = name.strip_prefix("DFPCluster:")?.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let address = EndpointAddress::Name { host: host.to_owned(), port: port.parse().ok()? };
    let group = LocalityEndpoints {
        locality: Locality::default(),
        priority: 0,
        weight: None,
        endpoints: vec![Endpoint::new(address)],
    };
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
