//! How a cluster gets its hosts: from its configuration, by DNS, or from outside ([`crate::endpoints`]).

use crate::cluster::{Cluster, ClusterError};
use crate::cluster_manager::Warming;
use crate::dns::cluster::Target;
use crate::dns::{self, Resolver, Resolvers};
use crate::dns_cache::{DnsCache, DnsCaches};
use crate::host::{Host, HostDescription};
use crate::host_set::{HostGroup, HostGroups};
use crate::original_dst;
use crate::transport;
use nuncio_config::address::EndpointAddress;
use nuncio_config::cluster::{ClusterConfig, Discovery as DiscoveryConfig, Endpoint, ForwardProxyNames, Locality};
use nuncio_net::address::Address;
use std::sync::Arc;

/// A discovery ready to start.
pub(crate) enum Discovery {
    /// Hosts are known.
    Static(HostGroups),
    /// Every address of every name.
    StrictDns(Vec<Target>, Resolver),
    /// One host at the newest address of one name.
    LogicalDns(Target, Resolver),
    /// Whoever runs the process hands the endpoints in.
    Given,
    /// Workers make the hosts.
    OriginalDst,
    /// Names that requests bring.
    Names(Arc<DnsCache>),
    /// Names that requests bring, with a cluster for each.
    SubClusters,
    /// There are no hosts of its own.
    None,
}

impl Discovery {
    /// What `cluster`'s configuration asks for.
    ///
    /// # Errors
    /// [`ClusterError::Unsupported`] for kinds that do not exist here and for names in a STATIC cluster.
    pub(crate) fn new(cluster: &Cluster, resolvers: &Resolvers, caches: &DnsCaches) -> Result<Discovery, ClusterError> {
        let config = &cluster.config;
        let unsupported = |field: &str, what: String| {
            Err(ClusterError::Unsupported { path: format!("{}.{field}", config.path), what })
        };
        match &config.discovery {
            DiscoveryConfig::Static => match static_groups(cluster) {
                Ok(groups) => Ok(Discovery::Static(groups)),
                Err(name) => unsupported(
                    "load_assignment",
                    format!("a STATIC cluster needs addresses, and '{name}' is a name (use STRICT_DNS or LOGICAL_DNS)"),
                ),
            },
            DiscoveryConfig::StrictDns | DiscoveryConfig::LogicalDns => {
                let resolver = match resolvers.get(&config.dns) {
                    Ok(resolver) => resolver,
                    Err(error) => return unsupported("type", format!("DNS cannot be set up: {error}")),
                };
                let mut targets = match dns::cluster::targets(config) {
                    Ok(targets) => targets,
                    Err(address) => {
                        return unsupported(
                            "load_assignment",
                            format!("DNS clusters take no address like '{address}'"),
                        );
                    }
                };
                if config.discovery == DiscoveryConfig::StrictDns {
                    return Ok(Discovery::StrictDns(targets, resolver));
                }
                match (targets.pop(), targets.is_empty()) {
                    (Some(target), true) => Ok(Discovery::LogicalDns(target, resolver)),
                    _ => unsupported(
                        "load_assignment",
                        "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint"
                            .to_owned(),
                    ),
                }
            }
            DiscoveryConfig::Eds { .. } => Ok(Discovery::Given),
            DiscoveryConfig::Aggregate { .. } => Ok(Discovery::None),
            DiscoveryConfig::OriginalDst(_) => Ok(Discovery::OriginalDst),
            DiscoveryConfig::DynamicForwardProxy { names: ForwardProxyNames::Cache(cache), .. } => {
                match caches.get(cache) {
                    Ok(cache) => Ok(Discovery::Names(cache)),
                    Err(error) => unsupported("cluster_type", error),
                }
            }
            DiscoveryConfig::DynamicForwardProxy { names: ForwardProxyNames::SubClusters(_), .. } => {
                Ok(Discovery::SubClusters)
            }
            DiscoveryConfig::Extension(typed) => {
                unsupported("cluster_type", format!("cluster type {} is not implemented yet", typed.type_name))
            }
        }
    }

    /// Publishes hosts that are known; begins to look for others.
    pub(crate) fn start(
        self,
        cluster: &Arc<Cluster>,
        control: &tokio::runtime::Handle,
        warming: impl FnOnce() -> Warming,
    ) {
        match self {
            Discovery::Static(groups) => cluster.update(groups.priority_set()),
            Discovery::StrictDns(targets, resolver) => {
                let warming = cluster.config.dns.wait_for_warm_on_init.then(warming);
                dns::cluster::start_strict(cluster, targets, &resolver, control, warming);
            }
            Discovery::LogicalDns(target, resolver) => {
                let warming = cluster.config.dns.wait_for_warm_on_init.then(warming);
                dns::cluster::start_logical(cluster, target, &resolver, control, warming);
            }
            Discovery::None => {}
            Discovery::SubClusters => cluster.update(empty_groups(cluster).priority_set()),
            Discovery::Names(cache) => cluster.use_dns_cache(cache),
            Discovery::OriginalDst => {
                cluster.update(empty_groups(cluster).priority_set());
                original_dst::start(cluster, control);
            }
            Discovery::Given => cluster.wait_for_endpoints(warming()),
        }
    }
}

/// A host of `cluster` for `endpoint` at `address`.
pub(crate) fn make_host(
    config: &ClusterConfig,
    endpoint: &Endpoint,
    address: Address,
    hostname: Arc<str>,
    locality: &Arc<Locality>,
    priority: u32,
) -> Arc<Host> {
    let mut host = Host::new(HostDescription {
        address,
        additional_addresses: endpoint.additional_addresses.iter().map(Address::from).collect(),
        hostname,
        locality: locality.clone(),
        priority,
        weight: endpoint.weight,
        health: endpoint.health,
        metadata: endpoint.metadata.clone(),
        transport_socket_match: transport::find_match(
            config,
            endpoint.metadata.as_deref(),
            endpoint.locality_metadata.as_deref(),
        ),
        own_health_check: endpoint.own_health_check.clone(),
    });
    host.added_tlvs = endpoint.added_tlvs.clone();
    host.observability_name.clone_from(&endpoint.observability_name);
    Arc::new(host)
}

/// Groups without hosts, with the settings of `config`.
pub(crate) fn empty_groups(cluster: &Cluster) -> HostGroups {
    let config = &cluster.config;
    HostGroups {
        groups: Vec::new(),
        overprovisioning_factor: config
            .endpoints
            .overprovisioning_factor
            .unwrap_or(config.lb_common.overprovisioning_factor),
        weighted_health: config.lb_common.weighted_priority_health,
        grouping: cluster.grouping(),
    }
}

/// Hosts as configured; the error is a name that is no address.
fn static_groups(cluster: &Cluster) -> Result<HostGroups, String> {
    let config = &cluster.config;
    let mut groups = empty_groups(cluster);
    for locality in &config.endpoints.localities {
        let name = Arc::new(locality.locality.clone());
        let mut hosts = Vec::with_capacity(locality.endpoints.len());
        for endpoint in &locality.endpoints {
            let address = match &endpoint.address {
                EndpointAddress::Resolved(address) => Address::from(address),
                EndpointAddress::Name { host, .. } => return Err(host.clone()),
            };
            let hostname = (*endpoint.hostname).into();
            hosts.push(make_host(config, endpoint, address, hostname, &name, locality.priority));
        }
        groups.groups.push(HostGroup { priority: locality.priority, locality: name, weight: locality.weight, hosts });
    }
    Ok(groups)
}
