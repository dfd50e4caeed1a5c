//! What one worker thread keeps for the clusters it uses: turns of the load balancer and connection pools.
//!
//! Found through a thread-local map by the cluster's id; nothing is shared, nothing is locked. Changes that need action
//! at once (hosts or clusters removed: close idle connections) arrive in a mailbox that a task of the worker reads; all
//! other changes are seen at the next pick, by the cluster's generation.

use crate::cluster::{Cluster, ClusterState};
use crate::host::Host;
use crate::lb::{LbContext, WorkerLb};
use crate::pool::Pools;
use rustc_hash::{FxHashMap, FxHashSet};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::Notify;

thread_local! {
    static CLUSTERS: RefCell<Map> = RefCell::new(Map::default());
    static REGISTERED: RefCell<Vec<Weak<Workers>>> = const { RefCell::new(Vec::new()) };
}

#[derive(Default)]
struct Map {
    clusters: FxHashMap<u64, Rc<WorkerCluster>>,
    /// Length at which clusters that are gone are looked for.
    sweep_at: usize,
}

/// One worker's part of one cluster.
pub(crate) struct WorkerCluster {
    cluster: Weak<Cluster>,
    picks: RefCell<Picks>,
    pub(crate) pools: Pools,
}

struct Picks {
    generation: u64,
    state: Arc<ClusterState>,
    lb: WorkerLb,
    /// Hosts that were picked already, for connections that are opened ahead.
    ahead: VecDeque<Arc<Host>>,
}

impl WorkerCluster {
    fn new(cluster: &Cluster, weak: Weak<Cluster>) -> Self {
        let picks = Picks {
            generation: cluster.generation(),
            state: cluster.state(),
            lb: WorkerLb::default(),
            ahead: VecDeque::new(),
        };
        WorkerCluster { cluster: weak, picks: RefCell::new(picks), pools: Pools::default() }
    }
}

/// This worker's part of `cluster`, made at its first use.
#[inline]
pub(crate) fn of(cluster: &Cluster) -> Rc<WorkerCluster> {
    CLUSTERS.with_borrow_mut(|map| {
        if let Some(found) = map.clusters.get(&cluster.id) {
            return found.clone();
        }
        if map.clusters.len() >= map.sweep_at {
            map.clusters.retain(|_, entry| entry.cluster.strong_count() > 0 || !entry.pools.is_empty());
            map.sweep_at = (map.clusters.len() * 2).max(64);
        }
        let made = Rc::new(WorkerCluster::new(cluster, cluster.weak()));
        map.clusters.insert(cluster.id, made.clone());
        made
    })
}

/// Picks a host by this worker's turns.
pub(crate) fn choose_host(cluster: &Cluster, context: &LbContext<'_>) -> Option<Arc<Host>> {
    let own = of(cluster);
    let mut picks = own.picks.borrow_mut();
    picks.refresh(cluster);
    if !picks.ahead.is_empty()
        && context.should_select_another_host.is_none()
        && let Some(host) = picks.ahead.pop_front()
    {
        return Some(host);
    }
    let picks = &mut *picks;
    picks.lb.choose_host(&picks.state.tables, &picks.state.priority_set, context, &cluster.stats)
}

/// The host that one of the next picks yields. None where that depends on the request, or every host has had its turn.
pub(crate) fn peek_host(cluster: &Cluster) -> Option<Arc<Host>> {
    let own = of(cluster);
    let mut picks = own.picks.borrow_mut();
    picks.refresh(cluster);
    let picks = &mut *picks;
    let (tables, set) = (&picks.state.tables, &picks.state.priority_set);
    let (_, healthy, ..) = set.membership();
    if !tables.picks_in_turn() || picks.ahead.len() >= healthy {
        return None;
    }
    let host = picks.lb.choose_host(tables, set, &LbContext::default(), &cluster.stats)?;
    picks.ahead.push_back(host.clone());
    Some(host)
}

impl Picks {
    #[inline]
    fn refresh(&mut self, cluster: &Cluster) {
        let generation = cluster.generation();
        if self.generation != generation {
            self.state = cluster.state();
            self.generation = generation;
            self.lb.refresh(&self.state.tables);
            self.ahead.clear();
        }
    }
}

/// Mailboxes of all workers of one cluster manager.
#[derive(Default)]
pub struct Workers {
    boxes: Mutex<Vec<Arc<Mailbox>>>,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").field("count", &lock(&self.boxes).len()).finish()
    }
}

/// Ids of clusters whose pools a worker must look at. Bounded by the number of clusters.
#[derive(Default)]
struct Mailbox {
    changed: Mutex<FxHashSet<u64>>,
    notify: Notify,
}

impl Workers {
    /// Tells every worker that connections of a cluster may have to be closed.
    pub(crate) fn notify(&self, cluster: u64) {
        for mailbox in lock(&self.boxes).iter() {
            lock(&mailbox.changed).insert(cluster);
            mailbox.notify.notify_one();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for mailbox in lock(&self.boxes).drain(..) {
            // The reader's is then the only reference, and it ends.
            mailbox.notify.notify_one();
        }
    }
}

/// Starts this worker's reader of the mailbox of `workers`, once. Called when the first pool is made.
pub(crate) fn register(workers: &Weak<Workers>) {
    let new = REGISTERED.with_borrow_mut(|registered| {
        registered.retain(|entry| entry.strong_count() > 0);
        let known = registered.iter().any(|entry| entry.ptr_eq(workers));
        if !known {
            registered.push(workers.clone());
        }
        !known
    });
    let Some(strong) = workers.upgrade().filter(|_| new) else { return };
    let mailbox = Arc::new(Mailbox::default());
    lock(&strong.boxes).push(mailbox.clone());
    let reader = Reader { workers: workers.clone(), mailbox };
    tokio::task::spawn_local(async move {
        while reader.workers.strong_count() > 0 {
            reader.mailbox.notify.notified().await;
            let changed = std::mem::take(&mut *lock(&reader.mailbox.changed));
            for id in changed {
                let own = CLUSTERS.with_borrow(|map| map.clusters.get(&id).cloned());
                let Some(own) = own else { continue };
                let cluster = own.cluster.upgrade();
                let removed = cluster.as_ref().is_none_or(|cluster| cluster.is_removed());
                own.pools.host_set_changed(cluster.as_deref());
                if removed {
                    CLUSTERS.with_borrow_mut(|map| map.clusters.remove(&id));
                }
            }
        }
    });
}

/// Takes the mailbox out of the list when the runtime drops the reading task.
struct Reader {
    workers: Weak<Workers>,
    mailbox: Arc<Mailbox>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(workers) = self.workers.upgrade() {
            lock(&workers.boxes).retain(|other| !Arc::ptr_eq(other, &self.mailbox));
        }
        let _ = REGISTERED.try_with(|registered| {
            if let Ok(mut registered) = registered.try_borrow_mut() {
                registered.retain(|entry| !entry.ptr_eq(&self.workers));
            }
        });
    }
}

/// A poisoned lock means that another thread panicked between plain set operations; the sets are whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
