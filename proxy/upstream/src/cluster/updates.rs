//! How other hosts, or other health, reach the workers. For the control thread.
//!
//! Discovery hands in hosts ([`Cluster::update`]), health checks and ejections the news that health has changed. What is
//! published is a whole state with its tables; a merge window may keep it from the workers for a while.

use super::{Cluster, ClusterState};
use crate::host::{Health, health_flag, now_ms};
use crate::host_set::{Grouping, HostSet, PrioritySet};
use crate::lb::{LbTables, LocalCluster};
use crate::merge_window::MergeWindow;
use crate::orca;
use nuncio_config::cluster::Discovery;
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use tokio::time::Instant;

/// Changes on their way to the workers.
#[derive(Debug)]
pub(super) struct Merging {
    pub(super) window: MergeWindow,
    /// The workers know of the state as it is.
    pub(super) published: bool,
}

impl Cluster {
    /// Publishes new hosts, or the same with changed health or weights. For the control thread. Hosts that are no longer
    /// there are drained by the workers' pools.
    pub fn update(&self, priority_set: PrioritySet) {
        self.update_for(priority_set, false);
    }

    fn update_for(&self, priority_set: PrioritySet, health: bool) {
        let old = self.state();
        let mut priority_set = self.with_stabilized(priority_set, &old.priority_set);
        let now: HashSet<u64> = priority_set.hosts().map(|host| host.id).collect();
        let before: HashSet<u64> = old.priority_set.hosts().map(|host| host.id).collect();
        let mut gone = false;
        for host in old.priority_set.hosts().filter(|host| !now.contains(&host.id)) {
            host.mark_removed();
            gone = true;
        }
        for host in priority_set.hosts().filter(|host| !before.contains(&host.id)) {
            host.set_owner(&self.weak);
            if let Some(config) = &self.config.lb_common.client_weights {
                host.report_to(config);
            }
            if !self.config.lrs_report_endpoint_metrics.is_empty() {
                host.sum_metrics(&self.config.lrs_report_endpoint_metrics);
            }
            self.transport.count_match(host, &self.stats);
        }
        if now != before {
            self.stats.membership_change().add(changed_levels(&old.priority_set, &priority_set));
        }
        let first = self.generation() == 1;
        if let Some(outlier) = self.outlier.as_ref().filter(|_| now != before) {
            outlier.set_hosts(&priority_set);
        }
        if let Some(health) = self.health.as_ref().filter(|_| now != before || first)
            && health.set_hosts(&self.weak, &priority_set)
        {
            // New hosts count as failed until they pass.
            priority_set = priority_set.refreshed();
        }
        if let Some(oob) = self.oob.as_ref().filter(|_| now != before) {
            oob.set_hosts(&self.weak, &old.priority_set, &priority_set);
        }
        if self.config.lb_common.client_weights.is_some() {
            orca::apply(priority_set.hosts(), now_ms());
        }
        let (total, healthy, degraded, excluded) = priority_set.membership();
        self.stats.membership_total().set(total as u64);
        self.stats.membership_healthy().set(healthy as u64);
        self.stats.membership_degraded().set(degraded as u64);
        self.stats.membership_excluded().set(excluded as u64);
        let tables = self.tables_in_place_of(&old.tables, &priority_set);
        // What a cluster begins with is no update.
        let begins = first || self.stats.warming_state().value() != 0;
        let due = self.merge(&priority_set, begins, health).filter(|_| !is_urgent(&old.priority_set));
        self.state.store(Arc::new(ClusterState { priority_set: Arc::new(priority_set), tables }));
        if due.is_none() {
            self.publish();
        }
        if gone || (self.config.lb_common.close_connections_on_host_set_change && now != before) {
            self.notify_workers();
        }
    }

    /// Counts an update; the time at which workers are to hear of it, None for now.
    fn merge(&self, priority_set: &PrioritySet, begins: bool, health: bool) -> Option<Instant> {
        let mut merging = self.merging();
        if begins {
            merging.window.begin(priority_set);
            return None;
        }
        let before = merging.window.next_due();
        let due = merging.window.changed(priority_set, health, Instant::now(), &self.manager_stats);
        merging.published = false;
        let next = merging.window.next_due();
        drop(merging);
        if let Some(next) = next.filter(|next| before.is_none_or(|before| before != *next)) {
            self.merge_at(next);
        }
        due
    }

    /// Sees to it that what waits is handed on at `due`.
    fn merge_at(&self, due: Instant) {
        let weak = self.weak.clone();
        self.control.spawn(async move {
            tokio::time::sleep_until(due).await;
            if let Some(cluster) = weak.upgrade().filter(|cluster| !cluster.is_removed()) {
                cluster.hand_on_what_is_due();
            }
        });
    }

    fn hand_on_what_is_due(&self) {
        let mut merging = self.merging();
        let merged = merging.window.merge(Instant::now(), &self.manager_stats) && !merging.published;
        let next = merging.window.next_due();
        drop(merging);
        if merged {
            self.publish();
        }
        // Of another priority.
        if let Some(next) = next {
            self.merge_at(next);
        }
    }

    /// The workers hear of the state as it is now.
    fn publish(&self) {
        self.merging().published = true;
        self.generation.fetch_add(1, Ordering::Release);
        self.followers.changed(self.name());
    }

    fn merging(&self) -> MutexGuard<'_, Merging> {
        self.merging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As Envoy does, hosts that discovery no longer knows stay as long as they pass their health checks, unless
    /// `ignore_health_on_host_removal` says otherwise.
    fn with_stabilized(&self, new: PrioritySet, old: &PrioritySet) -> PrioritySet {
        // Hosts that came with requests go with them.
        let by_request =
            matches!(self.config.discovery, Discovery::OriginalDst(_) | Discovery::DynamicForwardProxy { .. });
        if self.health.is_none() || self.config.ignore_health_on_host_removal || by_request {
            return new;
        }
        let kept: Vec<_> = old
            .hosts()
            .filter(|host| !host.disables_health_check())
            .filter(|host| host.health_flags() & health_flag::FAILED_ACTIVE_HC == 0)
            .filter(|host| !new.hosts().any(|other| other.id == host.id || other.address == host.address))
            .cloned()
            .collect();
        if kept.is_empty() {
            return new;
        }
        for host in &kept {
            host.set_flags(health_flag::PENDING_DYNAMIC_REMOVAL);
        }
        new.filtered(&|_| true, &kept)
    }

    /// Publishes the hosts again, after the health of some has changed. For the control thread.
    pub(crate) fn publish_health(&self) {
        // Of those that discovery no longer knows, the failing ones go now.
        let gone = health_flag::PENDING_DYNAMIC_REMOVAL | health_flag::FAILED_ACTIVE_HC;
        self.update_for(self.state().priority_set.filtered(&|host| host.health_flags() & gone != gone, &[]), true);
        // Connections to hosts that fail are drained.
        self.notify_workers();
    }

    /// Follows the clusters on whose hosts its picks depend.
    pub(crate) fn start_following(&self) {
        if let Discovery::Aggregate { clusters } = &self.config.discovery {
            clusters.iter().for_each(|name| self.followers.follow(name, self));
            self.follow();
        } else if let Some(local) = self.zones.as_ref().and_then(|zones| zones.local_cluster.as_ref()) {
            self.followers.follow(local, self);
        }
    }

    /// What localities are kept apart for.
    pub(crate) fn grouping(&self) -> Grouping {
        match &self.zones {
            _ if self.config.lb_common.locality_weighted => Grouping::Weighted,
            Some(zones) => Grouping::Zones(zones.locality.clone()),
            None => Grouping::None,
        }
    }

    /// The local cluster, where it matters and exists.
    fn local_cluster(&self) -> Option<LocalCluster> {
        let zones = self.zones.as_ref()?;
        let hosts = self.followers.cluster(zones.local_cluster.as_ref()?)?.state().priority_set.clone();
        Some(LocalCluster { locality: zones.locality.clone(), hosts })
    }

    /// One of the clusters that it follows has changed: publishes tables that know of it.
    pub(crate) fn follow(&self) {
        let old = self.state();
        let priority_set = old.priority_set.clone();
        let tables = match &self.config.discovery {
            Discovery::Aggregate { clusters } => LbTables::aggregate(
                &self.lb_config.load(),
                clusters.iter().filter_map(|name| self.followers.cluster(name)),
            ),
            _ => self.tables_in_place_of(&old.tables, &priority_set),
        };
        self.state.store(Arc::new(ClusterState { priority_set, tables }));
        self.generation.fetch_add(1, Ordering::Release);
    }

    pub(super) fn tables_in_place_of(&self, old: &LbTables, set: &PrioritySet) -> LbTables {
        if let Some(destinations) = &self.destinations {
            return LbTables::original_dst(destinations.clone(), set);
        }
        if let Some(subs) = &self.sub_clusters {
            return LbTables::sub_clusters(subs.clone(), set, self.default_port());
        }
        if let Some(cache) = self.dns_cache.get() {
            return LbTables::named(cache, set, self.default_port());
        }
        old.renewed(&self.lb_config.load(), set, &self.stats, self.local_cluster().as_ref())
    }
}

/// How many priorities have other hosts.
fn changed_levels(before: &PrioritySet, now: &PrioritySet) -> u64 {
    let ids = |set: &PrioritySet, level: usize| {
        let mut ids: Vec<_> =
            set.host_sets.get(level).map_or_else(Vec::new, |set| set.hosts.iter().map(|h| h.id).collect());
        ids.sort_unstable();
        ids
    };
    let levels = before.host_sets.len().max(now.host_sets.len());
    (0..levels).filter(|level| ids(before, *level) != ids(now, *level)).count() as u64
}

/// Whether the hosts have changed in a way that must not wait: one that takes requests would not be picked any more, or
/// there was none to pick.
fn is_urgent(before: &PrioritySet) -> bool {
    let worse = |set: &HostSet| {
        set.healthy().iter().any(|host| host.health() != Health::Healthy)
            || set.degraded.iter().any(|host| host.health() == Health::Unhealthy)
    };
    before.host_sets.iter().any(worse) || before.host_sets.iter().all(|set| set.healthy().is_empty())
}
