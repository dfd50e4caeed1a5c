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
        if assignment.stale_after.is_some() {
            self.stats.assignment_timeout_received().inc();
        }
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
            && host.additional_addresses.len() == endpoint.additional_addresses.len()
            && host.additional_addresses.iter().eq(endpoint
                .additional_addresses
                .iter()
                .map(Address::from)
                .collect::<Vec<_>>()
                .iter())
            && host.transport_socket_match
                == transport::find_match(
                    &self.config,
                    endpoint.metadata.as_deref(),
                    endpoint.locality_metadata.as_deref(),
                )
    }
}
