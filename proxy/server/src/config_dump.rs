//! Parts of the configuration dump that are not stored as they are shown.

use envoy_types::pb::envoy::config::bootstrap::v3::bootstrap::StaticResources;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::google::protobuf::UInt32Value;
use hcm::http_connection_manager::RouteSpecifier;
use nuncio_config::cluster::HealthStatus;
use nuncio_net::address::Address;
use nuncio_upstream::{Cluster, Host};
use prost::Message as _;
use std::sync::atomic::Ordering::Relaxed;

/// Route configurations written in listeners: name and message.
pub(crate) fn route_configs(resources: &StaticResources) -> Vec<(String, Vec<u8>)> {
    let mut out = Vec::new();
    for listener in &resources.listeners {
        for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
            for filter in &chain.filters {
                let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { continue };
                if !any.type_url.ends_with(".v3.HttpConnectionManager") {
                    continue;
                }
                let Ok(manager) = hcm::HttpConnectionManager::decode(&any.value[..]) else { continue };
                if let Some(RouteSpecifier::RouteConfig(routes)) = manager.route_specifier {
                    out.push((routes.name.clone(), routes.encode_to_vec()));
                }
            }
        }
    }
    out
}

/// The hosts of a cluster as an endpoint assignment.
pub(crate) fn endpoints(cluster: &Cluster) -> pb::ClusterLoadAssignment {
    let state = cluster.state();
    let mut localities: Vec<pb::LocalityLbEndpoints> = Vec::new();
    for host in state.priority_set.hosts() {
        let priority = host.priority.load(Relaxed);
        let locality = core::Locality {
            region: host.locality.region.to_string(),
            zone: host.locality.zone.to_string(),
            sub_zone: host.locality.sub_zone.to_string(),
        };
        let at = localities.iter().position(|l| l.priority == priority && l.locality.as_ref() == Some(&locality));
        let at = at.unwrap_or_else(|| {
            localities.push(pb::LocalityLbEndpoints { locality: Some(locality), priority, ..Default::default() });
            localities.len() - 1
        });
        localities[at].lb_endpoints.push(endpoint(host));
    }
    pb::ClusterLoadAssignment {
        cluster_name: cluster.name().to_string(),
        endpoints: localities,
        policy: Some(pb::cluster_load_assignment::Policy {
            overprovisioning_factor: Some(UInt32Value { value: cluster.config.lb_common.overprovisioning_factor }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn endpoint(host: &Host) -> pb::LbEndpoint {
    let status = match host.eds_status() {
        HealthStatus::Unknown | HealthStatus::Healthy => core::HealthStatus::Healthy,
        HealthStatus::Unhealthy => core::HealthStatus::Unhealthy,
        HealthStatus::Draining => core::HealthStatus::Draining,
        HealthStatus::Timeout => core::HealthStatus::Timeout,
        HealthStatus::Degraded => core::HealthStatus::Degraded,
    };
    pb::LbEndpoint {
        health_status: status.into(),
        load_balancing_weight: Some(UInt32Value { value: host.weight() }),
        host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(pb::Endpoint {
            address: Some(address(&host.address)),
            hostname: host.hostname.to_string(),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn address(address: &Address) -> core::Address {
    use core::address::Address as A;
    let inner = match address.socket_addr() {
        Some(addr) => A::SocketAddress(core::SocketAddress {
            address: addr.ip().to_string(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(addr.port()))),
            ..Default::default()
        }),
        None => A::Pipe(core::Pipe { path: address.to_string(), mode: 0 }),
    };
    core::Address { address: Some(inner) }
}
