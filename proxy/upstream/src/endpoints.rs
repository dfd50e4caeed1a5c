//! Endpoints handed in from outside while the cluster lives: what endpoint discovery does to one cluster.
//!
//! Called on the control thread by whoever knows where endpoints come from. A host that stays keeps its object, and with
//! it its counters, connections and pools; only what changed is published, and only in this cluster.

use crate::cluster::Cluster;
use crate::cluster_manager::Warming;
use crate::discovery::{empty_groups, make_host};
use crate::host::{Host, health_flag};
use crate::host_set::{HostGroup, HostGroups};
use crate::transport;
use nuncio_config::address::EndpointAddress;
use nuncio_config::cluster::{ClusterLoadAssignment, Endpoint, Locality};
use nuncio_net::address::Address;
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use tokio::task::AbortHandle;

/// What a cluster remembers of the endpoints that were handed in.
#[derive(Default)]
pub(crate) struct Given {
    /// There until the first endpoints have come.
    pub(crate) warming: Option<Warming>,
    /// There until that has come for which the task waits: secrets, configurations of filters.
    needs: Option<(Warming, AbortHandle)>,
    assignment: Option<Arc<ClusterLoadAssignment>>,
}

/// What [`Cluster::set_endpoints`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointsOutcome {
    /// Other hosts, or other health or weights, are in use now.
    Rebuilt,
    /// Nothing that matters is different (`update_no_rebuild`).
    Unchanged,
}

impl Cluster {
    pub(crate) fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The endpoints that were handed in last.
    pub fn endpoints(&self) -> Option<Arc<ClusterLoadAssignment>> {
        self.given().assignment.clone()
    }

    /// Takes over endpoints; the first ones end the cluster's warming.
    pub fn set_endpoints(&self, assignment: Arc<ClusterLoadAssignment>) -> EndpointsOutcome {
        let mut given = self.given();
        let first = given.assignment.is_none();
        let warming = given.warming.take();
        let outcome = if !first && given.assignment.as_ref().is_some_and(|old| **old == *assignment) {
            self.stats.update_no_rebuild().inc();
            EndpointsOutcome::Unchanged
        } else {
            let groups = self.groups_of(&assignment);
            let heaviest = groups.groups.iter().flat_map(|group| &group.hosts).map(|host| host.weight()).max();
            self.stats.max_host_weight().set(u64::from(heaviest.unwrap_or(0)));
            self.drop_per_million.store(assignment.drop_per_million, Ordering::Relaxed);
            *self.drop_category.lock().unwrap_or_else(PoisonError::into_inner) = assignment.drop_category.clone();
            given.assignment = Some(assignment);
            self.update(groups.priority_set());
            EndpointsOutcome::Rebuilt
        };
        drop(given);
        // After the hosts are there: the end of warming makes the cluster visible.
        drop(warming);
        outcome
    }

    /// How many of a million requests the endpoints' policy (`drop_overloads`) wants to be refused.
    pub fn drop_per_million(&self) -> u32 {
        self.drop_per_million.load(Ordering::Relaxed)
    }

    /// What the requests that are refused are called.
    pub fn drop_category(&self) -> Option<Arc<str>> {
        self.drop_category.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nothing has come in time, or nothing will: the cluster warms no longer, with the hosts that it has.
    pub fn give_up_waiting(&self) {
        let warming = self.given().warming.take();
        drop(warming);
    }

    /// The cluster warms until [`Cluster::needs_are_met`] is called, which `task` does.
    pub(crate) fn wait_for_needs(&self, warming: Warming, task: AbortHandle) {
        self.given().needs = Some((warming, task));
    }

    /// The secrets of its TLS contexts and the configurations of its filters have come.
    pub(crate) fn needs_are_met(&self) {
        let warming = self.given().needs.take();
        drop(warming);
    }

    /// It is not wanted any more: it waits for nothing, and nobody waits for it.
    pub(crate) fn stop_warming(&self) {
        let (endpoints, needs) = {
            let mut given = self.given();
            (given.warming.take(), given.needs.take())
        };
        // Without the lock, as the end of warming may call back.
        drop(endpoints);
        if let Some((warming, task)) = needs {
            task.abort();
            drop(warming);
        }
        if let Some(checker) = self.health_checker() {
            checker.stop_waiting();
        }
    }

    /// Whether it waits for its first endpoints.
    pub fn waits_for_endpoints(&self) -> bool {
        self.given().warming.is_some()
    }

    /// The hosts of an assignment: those that are there already, and new ones.
    fn groups_of(&self, assignment: &ClusterLoadAssignment) -> HostGroups {
        let old = self.state();
        let known: FxHashMap<&Address, &Arc<Host>> =
            old.priority_set.hosts().map(|host| (&host.address, host)).collect();
        let mut groups = empty_groups(self);
        if let Some(factor) = assignment.overprovisioning_factor {
            groups.overprovisioning_factor = factor;
        }
        groups.weighted_health = assignment.weighted_priority_health;
        let mut seen = FxHashSet::default();
        for locality in &assignment.localities {
            let name = Arc::new(locality.locality.clone());
            let mut hosts = Vec::with_capacity(locality.endpoints.len());
            for endpoint in &locality.endpoints {
                // What came by discovery was decoded as addresses.
                let EndpointAddress::Resolved(address) = &endpoint.address else { continue };
                let address = Address::from(address);
                if !seen.insert(address.clone()) {
                    continue;
                }
                hosts.push(match known.get(&address).filter(|host| self.is_same(host, endpoint, &name)) {
                    Some(host) => {
                        host.set_eds_health(endpoint.health);
                        host.set_weight(endpoint.weight);
                        if host.metadata() != endpoint.metadata {
                            host.set_metadata(endpoint.metadata.clone());
                        }
                        // It may have been kept for its health only.
                        host.clear_flags(health_flag::PENDING_DYNAMIC_REMOVAL);
                        Arc::clone(host)
                    }
                    None => {
                        let hostname = (*endpoint.hostname).into();
                        let old = known.get(&address);
                        let host = make_host(&self.config, endpoint, address, hostname, &name, locality.priority);
                        if let Some(old) = old.filter(|old| old.own_health_check == host.own_health_check) {
                            host.inherit(old);
                        }
                        host
                    }
                });
            }
            let (priority, weight) = (locality.priority, locality.weight);
            groups.groups.push(HostGroup { priority, locality: name, weight, hosts });
        }
        groups
    }

    /// Whether a host can go on as `endpoint`: all that cannot change in place is equal.
    fn is_same(&self, host: &Host, endpoint: &Endpoint, locality: &Locality) -> bool {
        *host.locality == *locality
            && *host.hostname == *endpoint.hostname
            && host.own_health_check == endpoint.own_health_check
            && host.added_tlvs == endpoint.added_tlvs
            && host.observability_name == endpoint.observability_name
            && host.additional_addresses.iter().cloned().eq(endpoint.additional_addresses.iter().map(Address::from))
            && host.transport_socket_match
                == transport::find_match(
                    &self.config,
                    endpoint.metadata.as_deref(),
                    endpoint.locality_metadata.as_deref(),
                )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health_check;
    use crate::lb::LbContext;
    use crate::testing::{assignment, eds, manager};
    use nuncio_config::cluster::{ClusterConfig, HealthStatus, LocalityEndpoints};

    fn hosts(cluster: &Cluster) -> Vec<Arc<Host>> {
        cluster.state().priority_set.hosts().cloned().collect()
    }

    /// As [`eds`], with active health checks.
    fn checked(name: &str) -> Arc<ClusterConfig> {
        let check = Arc::new(health_check::testing::tcp_check());
        Arc::new(ClusterConfig { health_check: Some(check), ..(*eds(name)).clone() })
    }

    #[test]
    fn hosts_that_stay_keep_their_objects_and_only_changes_are_published() {
        let (manager, _registry, _runtime) = manager();
        let (_, cluster) = manager.add_or_update(eds("x"), 1).unwrap();
        cluster.set_endpoints(assignment(&[1, 2]));
        let hosts = |cluster: &Cluster| -> Vec<_> { cluster.state().priority_set.hosts().cloned().collect() };
        let before = hosts(&cluster);
        cluster.set_endpoints(assignment(&[2, 3]));
        let after = hosts(&cluster);
        assert!(Arc::ptr_eq(&before[1], &after[0]) && before[0].is_removed() && !before[1].is_removed());
        assert_eq!(cluster.stats.membership_change().value(), 2);
        let state = cluster.state();
        cluster.set_endpoints(assignment(&[2, 3]));
        assert!(Arc::ptr_eq(&state, &cluster.state()));
        assert_eq!(cluster.stats.update_no_rebuild().value(), 1);
    }

    #[test]
    fn health_and_weight_change_in_place() {
        let (manager, _registry, _runtime) = manager();
        let (_, cluster) = manager.add_or_update(eds("x"), 1).unwrap();
        cluster.set_endpoints(assignment(&[1, 2]));
        let before: Vec<_> = cluster.state().priority_set.hosts().cloned().collect();
        let mut changed = (*assignment(&[1, 2])).clone();
        changed.localities[0].endpoints[0].health = HealthStatus::Unhealthy;
        changed.localities[0].endpoints[1].weight = 7;
        cluster.set_endpoints(Arc::new(changed));
        let state = cluster.state();
        let after: Vec<_> = state.priority_set.hosts().cloned().collect();
        assert!(Arc::ptr_eq(&before[0], &after[0]) && Arc::ptr_eq(&before[1], &after[1]));
        assert_eq!((state.priority_set.membership().1, after[1].weight()), (1, 7));
        assert_eq!(cluster.stats.membership_change().value(), 1);
        assert!(cluster.choose_host(&LbContext::default()).is_some_and(|host| Arc::ptr_eq(&host, &after[1])));
    }

    #[test]
    fn metadata_changes_in_place_and_a_host_elsewhere_at_a_known_address_is_as_healthy() {
        use crate::host::health_flag::{FAILED_ACTIVE_HC, FAILED_OUTLIER_CHECK};
        let (manager, registry, _runtime) = manager();
        let (_, cluster) = manager.add_or_update(checked("x"), 1).unwrap();
        cluster.set_endpoints(assignment(&[1, 2]));
        let before = hosts(&cluster);
        let healthy = || registry.gauge_value("cluster.x.health_check.healthy");
        // The first has passed its check, and is ejected.
        before[0].clear_flags(FAILED_ACTIVE_HC);
        cluster.health_checker().unwrap().stats().healthy().inc();
        before[0].set_flags(FAILED_OUTLIER_CHECK);
        let mut changed = (*assignment(&[1, 2])).clone();
        for endpoint in &mut changed.localities[0].endpoints {
            endpoint.metadata = Some(Arc::new(serde_json::json!({"envoy.lb": {"canary": true}})));
        }
        cluster.set_endpoints(Arc::new(changed.clone()));
        let after = hosts(&cluster);
        assert!(Arc::ptr_eq(&before[0], &after[0]) && Arc::ptr_eq(&before[1], &after[1]) && after[0].is_canary());
        assert_eq!((after[0].health_flags(), after[1].health_flags()), (FAILED_OUTLIER_CHECK, FAILED_ACTIVE_HC));
        changed.localities[0].locality.zone = "z".into();
        cluster.set_endpoints(Arc::new(changed));
        let moved = hosts(&cluster);
        assert!(!Arc::ptr_eq(&moved[0], &after[0]) && *moved[0].locality.zone == *"z");
        assert_eq!((moved[0].health_flags(), moved[1].health_flags()), (0, FAILED_ACTIVE_HC));
        assert_eq!(healthy(), Some(1));
        cluster.mark_removed();
        assert_eq!(healthy(), Some(0));
    }

    #[test]
    fn a_host_that_is_kept_for_its_health_stays_at_its_priority_and_may_come_back() {
        use crate::host::health_flag::{FAILED_ACTIVE_HC, PENDING_DYNAMIC_REMOVAL};
        let (manager, _registry, _runtime) = manager();
        let (_, cluster) = manager.add_or_update(checked("x"), 1).unwrap();
        let with = |ports: &[u16], low: &[u16]| {
            let mut both = (*assignment(ports)).clone();
            if !low.is_empty() {
                both.localities.push(LocalityEndpoints { priority: 1, ..assignment(low).localities[0].clone() });
            }
            Arc::new(both)
        };
        cluster.set_endpoints(with(&[1], &[2]));
        for host in hosts(&cluster) {
            host.clear_flags(FAILED_ACTIVE_HC);
        }
        // The second is left out with all of its priority, but passes its checks.
        cluster.set_endpoints(with(&[1], &[]));
        let kept = hosts(&cluster);
        assert_eq!((kept.len(), kept[1].health_flags()), (2, PENDING_DYNAMIC_REMOVAL));
        assert_eq!(cluster.state().priority_set.host_sets.len(), 2);
        cluster.set_endpoints(with(&[1], &[2]));
        let back = hosts(&cluster);
        assert!(Arc::ptr_eq(&back[1], &kept[1]) && back[1].health_flags() == 0);
        // What it stays for no longer depends on its checks.
        back[1].set_flags(FAILED_ACTIVE_HC);
        cluster.publish_health();
        assert_eq!(hosts(&cluster).len(), 2);
    }
}
