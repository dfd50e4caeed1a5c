//! Hosts and configurations for this crate's tests.

use crate::cluster_manager::{ClusterManager, ClusterManagerOptions};
use crate::host::{Host, HostDescription};
use crate::host_set::{Grouping, HostGroup, HostGroups, PrioritySet};
use crate::lb::LbContext;
use crate::stats::ClusterStats;
use nuncio_base::stats::{Registry, StatsConfig};
use nuncio_config::address::EndpointAddress;
use nuncio_config::cluster::{
    BindConfig, ClusterConfig, ClusterLoadAssignment, Discovery, Endpoint, HealthStatus, Locality, LocalityEndpoints,
};
use nuncio_net::address::Address;
use nuncio_net::tls::watch::TlsContexts;
use std::net::SocketAddr;
use std::sync::Arc;

/// A static cluster `a` without endpoints.
pub(crate) fn config() -> ClusterConfig {
    ClusterConfig { path: "static_resources.clusters[0]".into(), ..ClusterConfig::new("a") }
}

pub(crate) fn stats() -> ClusterStats {
    ClusterStats::new(&Registry::new(1, StatsConfig::default()), "a")
}

fn description(port: u16, weight: u32, locality: &Arc<Locality>) -> HostDescription {
    HostDescription {
        address: Address::Ip(SocketAddr::from(([127, 0, 0, 1], port))),
        additional_addresses: Vec::new(),
        hostname: "".into(),
        locality: locality.clone(),
        priority: 0,
        weight,
        health: HealthStatus::Unknown,
        metadata: None,
        transport_socket_match: None,
        own_health_check: None,
    }
}

pub(crate) fn host(port: u16, weight: u32, locality: &Arc<Locality>) -> Arc<Host> {
    Arc::new(Host::new(description(port, weight, locality)))
}

pub(crate) fn named_host(port: u16, name: &str) -> Arc<Host> {
    Arc::new(Host::new(HostDescription { hostname: name.into(), ..description(port, 1, &Arc::default()) }))
}

/// One priority whose hosts have these weights and the ports 0, 1, ...
pub(crate) fn weighted_set(weights: &[u32]) -> PrioritySet {
    let locality = Arc::default();
    let hosts = weights.iter().enumerate().map(|(port, weight)| host(port as u16, *weight, &locality)).collect();
    let groups = vec![HostGroup { priority: 0, locality, weight: None, hosts }];
    HostGroups { groups, overprovisioning_factor: 140, weighted_health: false, grouping: Grouping::None }.priority_set()
}

/// Priorities of (healthy, degraded, unhealthy) hosts; ports count on from 0 in this order.
pub(crate) fn priority_set(levels: &[(usize, usize, usize)]) -> PrioritySet {
    let locality: Arc<Locality> = Arc::default();
    let mut port = 0;
    let groups = levels.iter().enumerate().map(|(level, (healthy, degraded, unhealthy))| {
        let mut hosts = Vec::new();
        for (count, health) in [
            (*healthy, HealthStatus::Healthy),
            (*degraded, HealthStatus::Degraded),
            (*unhealthy, HealthStatus::Unhealthy),
        ] {
            for _ in 0..count {
                let host = host(port, 1, &locality);
                host.set_eds_health(health);
                hosts.push(host);
                port += 1;
            }
        }
        HostGroup { priority: level as u32, locality: locality.clone(), weight: None, hosts }
    });
    HostGroups {
        groups: groups.collect(),
        overprovisioning_factor: 140,
        weighted_health: false,
        grouping: Grouping::None,
    }
    .priority_set()
}

/// A manager, and what must live beside it.
pub(crate) fn manager() -> (Arc<ClusterManager>, Registry, tokio::runtime::Runtime) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let registry = Registry::new(1, StatsConfig::default());
    let options = ClusterManagerOptions {
        registry: registry.clone(),
        upstream_bind: BindConfig::default(),
        control: runtime.handle().clone(),
        outlier_events: None,
        tls_contexts: TlsContexts::default(),
        event_logs: None,
    };
    (ClusterManager::new(options), registry, runtime)
}

/// A cluster whose endpoints are handed in.
pub(crate) fn eds(name: &str) -> Arc<ClusterConfig> {
    let discovery = Discovery::Eds { service_name: name.into(), source: bytes::Bytes::new() };
    Arc::new(ClusterConfig { name: name.into(), discovery, added_via_api: true, ..config() })
}

/// Endpoints at these ports.
pub(crate) fn assignment(ports: &[u16]) -> Arc<ClusterLoadAssignment> {
    let endpoints = ports.iter().map(|port| {
        let address = SocketAddr::from(([127, 0, 0, 1], *port)).into();
        Endpoint::new(EndpointAddress::Resolved(nuncio_config::address::Address::Socket(address)))
    });
    let locality = LocalityEndpoints { endpoints: endpoints.collect(), ..LocalityEndpoints::default() };
    Arc::new(ClusterLoadAssignment { localities: vec![locality], ..ClusterLoadAssignment::default() })
}

/// The port of the host that the cluster picks.
pub(crate) fn pick(manager: &ClusterManager, name: &str) -> Option<u16> {
    manager.cluster(name)?.choose_host(&LbContext::default())?.address.port()
}
