//! Parts of the configuration dump that are not stored as they are shown.

use crate::admin::{ConfigDump, ConfigEntry, UpdateFailure};
use crate::discovered::Kind;
use crate::listeners::Origin;
use crate::resources::Failure;
use crate::scoped_routes::ScopesDump;
use crate::server::Server;
use bytes::Bytes;
use envoy_types::pb::envoy::config::bootstrap::v3::bootstrap::StaticResources;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use envoy_types::pb::google::protobuf as google;
use google::{Struct, UInt32Value};
use hcm::http_connection_manager::RouteSpecifier;
use nuncio_config::cluster::Discovery;
use nuncio_net::address::Address;
use nuncio_upstream::host::Health;
use nuncio_upstream::{Cluster, Host};
use prost::Message as _;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;

/// Whether the endpoints of a cluster come from outside.
pub(crate) fn is_dynamic(cluster: &Cluster) -> bool {
    matches!(cluster.config.discovery, Discovery::Eds { .. })
}

/// Adds what was fetched.
pub(crate) fn dynamic(server: &Server, include_eds: bool, dump: &mut ConfigDump) {
    clusters(server, dump);
    listeners(server, dump);
    let shown = server.resources.routes().into_iter().filter_map(|view| {
        let mut origin = view.origin.clone()?;
        if !view.hosts.is_empty() {
            // What follows a message is added to its lists.
            let parts: Vec<&[u8]> =
                std::iter::once(&origin.bytes).chain(view.hosts.values()).map(|part| &part[..]).collect();
            origin.bytes = parts.concat().into();
        }
        if let Some((version, updated)) = view.hosts_version {
            (origin.version, origin.updated) = (version, updated);
        }
        let mut entry = entry(&view.name, "envoy.config.route.v3.RouteConfiguration", &origin);
        entry.error = view.failure.as_ref().map(failure);
        Some(entry)
    });
    dump.dynamic_route_configs = shown.collect();
    let scopes = &server.context.scopes;
    dump.inline_scoped_route_configs = scopes.inline_dump().into_iter().map(scoped).collect();
    dump.dynamic_scoped_route_configs = scopes.discovered_dump().into_iter().map(scoped).collect();
    let secrets = server.resources.secrets();
    let shown = secrets.origins().map(|(name, origin)| {
        let mut entry = entry(name, "envoy.extensions.transport_sockets.tls.v3.Secret", origin);
        entry.error = secrets.failure(name).map(failure);
        entry
    });
    dump.dynamic_active_secrets = shown.collect();
    let awaited = server.resources.awaited_secrets().into_iter().map(|(name, updated)| {
        let empty = Secret { name: name.clone(), ..Secret::default() };
        let origin = Origin { version: "uninitialized".to_owned(), bytes: empty.encode_to_vec().into(), updated };
        let mut entry = entry(&name, "envoy.extensions.transport_sockets.tls.v3.Secret", &origin);
        entry.error = secrets.failure(&name).map(failure);
        entry
    });
    dump.dynamic_warming_secrets = awaited.collect();
    let extensions = server.resources.extensions();
    for kind in Kind::ALL.into_iter().filter(|kind| server.context.extensions.has_used(*kind)) {
        let shown = extensions.iter().filter(|view| view.kind == kind).filter_map(|view| {
            let mut entry = entry(&view.name, "envoy.config.core.v3.TypedExtensionConfig", view.origin.as_ref()?);
            entry.error = view.failure.as_ref().map(failure);
            Some(entry)
        });
        dump.ecds_filters.push(shown.collect());
    }
    if include_eds {
        let all = server.context.clusters.clusters().into_iter().filter(|cluster| is_dynamic(cluster));
        let shown = all.map(|cluster| {
            let version = server.resources.endpoints_version(cluster.name());
            let origin = Origin {
                version: version.as_ref().map(|(version, _)| version.clone()).unwrap_or_default(),
                bytes: endpoints(&cluster).encode_to_vec().into(),
                updated: version.map_or(server.started_at, |(_, at)| at),
            };
            entry(cluster.name(), "envoy.config.endpoint.v3.ClusterLoadAssignment", &origin)
        });
        dump.dynamic_endpoint_configs = shown.collect();
    }
}

fn scoped(scopes: ScopesDump) -> ConfigEntry {
    const MESSAGE: &str = "envoy.config.route.v3.ScopedRouteConfiguration";
    let one = |(name, bytes): (String, Bytes)| {
        entry(&name, MESSAGE, &Origin { version: String::new(), bytes, updated: scopes.updated })
    };
    let origin = Origin { version: scopes.version.clone(), bytes: Bytes::new(), updated: scopes.updated };
    let mut all = entry(&scopes.name, MESSAGE, &origin);
    all.parts = scopes.scopes.into_iter().map(one).collect();
    all
}

fn clusters(server: &Server, dump: &mut ConfigDump) {
    let kind = server.resources.clusters();
    let of = |cluster: &Cluster| {
        let mut entry =
            entry(cluster.name(), "envoy.config.cluster.v3.Cluster", kind.origin(cluster.name(), cluster.id)?);
        entry.error = kind.failure(cluster.name()).map(failure);
        Some(entry)
    };
    dump.clusters_version_info.clone_from(&kind.version);
    dump.dynamic_active_clusters =
        server.context.clusters.clusters().iter().filter_map(|cluster| of(cluster)).collect();
    dump.dynamic_warming_clusters =
        server.context.clusters.warming().iter().filter_map(|cluster| of(cluster)).collect();
}

fn listeners(server: &Server, dump: &mut ConfigDump) {
    const MESSAGE: &str = "envoy.config.listener.v3.Listener";
    let kind = server.resources.listeners();
    dump.listeners_version_info.clone_from(&kind.version);
    let mut shown = HashSet::new();
    for view in server.listeners.views().into_iter().filter(|view| view.dynamic) {
        let warming = view.warming.as_ref().map(|origin| Box::new(entry(&view.name, MESSAGE, origin)));
        let error = kind.failure(&view.name).map(failure);
        let draining = view.draining.as_ref().map(|origin| Box::new(entry(&view.name, MESSAGE, origin)));
        let base = match (&view.active, warming.as_ref().or(draining.as_ref())) {
            (Some(origin), _) => entry(&view.name, MESSAGE, origin),
            (None, Some(other)) => ConfigEntry { active: false, ..(**other).clone() },
            (None, None) => continue,
        };
        dump.dynamic_listeners.push(ConfigEntry { warming, draining, error, ..base });
        shown.insert(view.name.to_string());
    }
    for (name, refused) in kind.failures().filter(|(name, _)| !shown.contains(*name)) {
        let origin = Origin { version: String::new(), bytes: Bytes::new(), updated: refused.last_attempt };
        let base = entry(name, MESSAGE, &origin);
        dump.dynamic_listeners.push(ConfigEntry { active: false, error: Some(failure(refused)), ..base });
    }
}

fn entry(name: &str, message: &str, origin: &Origin) -> ConfigEntry {
    ConfigEntry {
        name: name.to_owned(),
        version_info: origin.version.clone(),
        message: message.to_owned(),
        bytes: origin.bytes.clone(),
        last_updated: origin.updated,
        active: true,
        warming: None,
        draining: None,
        error: None,
        parts: Vec::new(),
    }
}

fn failure(failure: &Failure) -> UpdateFailure {
    UpdateFailure {
        bytes: failure.bytes.clone(),
        last_update_attempt: failure.last_attempt,
        details: failure.details.clone(),
        version_info: failure.version.clone(),
    }
}

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
            // Known where localities are weighed; 0 elsewhere.
            let set = state.priority_set.host_sets.get(priority as usize);
            let weighed = set.and_then(|set| set.localities.iter().find(|own| own.locality == host.locality));
            let weight = weighed.filter(|_| cluster.config.lb_common.locality_weighted).map_or(0, |own| own.weight);
            localities.push(pb::LocalityLbEndpoints {
                locality: Some(locality),
                priority,
                load_balancing_weight: Some(UInt32Value { value: weight }),
                ..Default::default()
            });
            localities.len() - 1
        });
        localities[at].lb_endpoints.push(endpoint(host));
    }
    let first = state.priority_set.host_sets.first();
    let factor = first.map_or(cluster.config.lb_common.overprovisioning_factor, |set| set.overprovisioning_factor);
    let drops = cluster.drop_category().map(|category| pb::cluster_load_assignment::policy::DropOverload {
        category: category.to_string(),
        drop_percentage: Some(FractionalPercent {
            numerator: cluster.drop_per_million(),
            denominator: DenominatorType::Million.into(),
        }),
    });
    pb::ClusterLoadAssignment {
        cluster_name: cluster.name().to_string(),
        endpoints: localities,
        policy: Some(pb::cluster_load_assignment::Policy {
            overprovisioning_factor: Some(UInt32Value { value: factor }),
            drop_overloads: drops.into_iter().collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn endpoint(host: &Host) -> pb::LbEndpoint {
    let status = match host.health() {
        Health::Healthy => core::HealthStatus::Healthy,
        Health::Degraded => core::HealthStatus::Degraded,
        Health::Unhealthy => core::HealthStatus::Unhealthy,
    };
    let check = host.own_health_check.as_deref();
    let additional = host.additional_addresses.iter();
    pb::LbEndpoint {
        health_status: status.into(),
        load_balancing_weight: Some(UInt32Value { value: host.weight() }),
        metadata: host.metadata().and_then(|metadata| Some(proto_metadata(metadata.as_object()?))),
        host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(pb::Endpoint {
            address: Some(proto_address(&host.address)),
            hostname: host.hostname.to_string(),
            health_check_config: Some(pb::endpoint::HealthCheckConfig {
                port_value: check.map_or(0, |check| check.check_port.into()),
                hostname: check.map(|check| check.check_hostname.to_string()).unwrap_or_default(),
                ..Default::default()
            }),
            additional_addresses: additional
                .map(|address| pb::endpoint::AdditionalAddress { address: Some(proto_address(address)) })
                .collect(),
            ..Default::default()
        })),
    }
}

/// Metadata by namespace, as it stands in messages.
fn proto_metadata(all: &Map<String, Value>) -> core::Metadata {
    let filters = all.iter().filter_map(|(name, value)| Some((name.clone(), proto_struct(value.as_object()?))));
    core::Metadata { filter_metadata: filters.collect(), ..Default::default() }
}

fn proto_struct(fields: &Map<String, Value>) -> Struct {
    Struct { fields: fields.iter().map(|(name, value)| (name.clone(), proto_value(value))).collect() }
}

fn proto_value(value: &Value) -> google::Value {
    use google::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(*flag),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(list) => Kind::ListValue(google::ListValue { values: list.iter().map(proto_value).collect() }),
        Value::Object(fields) => Kind::StructValue(proto_struct(fields)),
    };
    google::Value { kind: Some(kind) }
}

/// An address as it stands in messages.
pub(crate) fn proto_address(address: &Address) -> core::Address {
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
