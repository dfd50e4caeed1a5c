//! `ClusterLoadAssignment`, bind configuration and socket options decoded.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use prost::Message;

use super::{
    BindConfig, ClusterLoadAssignment, Endpoint, EndpointCollection, EndpointHealthCheck, HealthStatus, Locality,
    LocalityEndpoints, SourceAddress, TcpKeepalive,
};
use crate::address::{Address, EndpointAddress, network_namespace, socket_address};
use crate::decode::{Context, bool_value, json, u32_value};
use crate::diagnostics::ConfigError;
use crate::extensions::type_of;
use crate::listener::{IpVersion, SocketOption, SocketOptionState, SocketOptionValue};
use crate::matchers::FractionalPercent;
use crate::proxy_protocol;

impl ClusterLoadAssignment {
    /// Decodes an assignment that came by EDS: its endpoints have to be addresses.
    pub fn decode(message: &pb::ClusterLoadAssignment, cx: &mut Context) -> Result<Self, Vec<ConfigError>> {
        cx.run(|cx| Self::from_message(cx, message, false))
    }

    /// `names` allows host names, which DNS clusters resolve.
    pub(super) fn from_message(cx: &mut Context, message: &pb::ClusterLoadAssignment, names: bool) -> Option<Self> {
        let localities = cx.each("endpoints", &message.endpoints, |cx, locality| {
            LocalityEndpoints::decode(cx, locality, message, names)
        });
        let mut weights: BTreeMap<u32, u64> = BTreeMap::new();
        for locality in &localities {
            *weights.entry(locality.priority).or_default() += u64::from(locality.weight.unwrap_or(0));
        }
        if weights.values().any(|sum| *sum > u64::from(u32::MAX)) {
            cx.error(format!("The sum of weights of all localities at the same priority exceeds {}", u32::MAX));
        }
        let policy = message.policy.clone().unwrap_or_default();
        let stale_after = cx.at("policy", |cx| cx.timeout("endpoint_stale_after", &policy.endpoint_stale_after, None));
        let drop_per_million = cx.at("policy", |cx| drop_overload(cx, &policy.drop_overloads));
        Some(ClusterLoadAssignment {
            cluster_name: message.cluster_name.as_str().into(),
            stale_after,
            localities,
            overprovisioning_factor: u32_value(&policy.overprovisioning_factor),
            weighted_priority_health: policy.weighted_priority_health,
            drop_per_million,
            drop_category: policy.drop_overloads.first().map(|drop| drop.category.as_str().into()),
        })
    }
}

/// The share of requests that are refused, of a million.
fn drop_overload(cx: &mut Context, drops: &[pb::cluster_load_assignment::policy::DropOverload]) -> u32 {
    if drops.len() > 1 {
        let categories = drops.len();
        cx.error_at(
            "drop_overloads",
            format!("Cluster drop_overloads config has {categories} categories. Envoy only support one."),
        );
    }
    let Some(share) = drops.first().and_then(|drop| drop.drop_percentage.as_ref()).map(FractionalPercent::decode)
    else {
        return 0;
    };
    if share.numerator > share.denominator {
        let ratio = f64::from(share.numerator) / f64::from(share.denominator);
        let (numerator, denominator) = (share.numerator, share.denominator);
        cx.error_at(
            "drop_overloads",
            format!(
                "Cluster drop_overloads config is invalid. drop_ratio={ratio}(Numerator {numerator} / Denominator \
                 {denominator}). The valid range is 0~1."
            ),
        );
        return 0;
    }
    share.numerator * (1_000_000 / share.denominator)
}

impl LocalityEndpoints {
    fn decode(
        cx: &mut Context,
        message: &pb::LocalityLbEndpoints,
        assignment: &pb::ClusterLoadAssignment,
        names: bool,
    ) -> Option<Self> {
        use pb::locality_lb_endpoints::LbConfig;
        let metadata = json::metadata(&message.metadata);
        let collection = match &message.lb_config {
            Some(LbConfig::LedsClusterLocalityConfig(leds)) => {
                if !message.lb_endpoints.is_empty() {
                    cx.error(format!(
                        "A ClusterLoadAssignment for cluster {} cannot include both LEDS (resource: {}) and a list of endpoints.",
                        assignment.cluster_name, leds.leds_collection_name
                    ));
                }
                Some(Arc::new(EndpointCollection {
                    name: leds.leds_collection_name.as_str().into(),
                    source: leds.leds_config.as_ref().map(Message::encode_to_vec).unwrap_or_default().into(),
                    locality_metadata: metadata.clone(),
                }))
            }
            _ => None,
        };
        let decode = |cx: &mut Context, endpoint: &pb::LbEndpoint| {
            let endpoint = Endpoint::decode(cx, endpoint, assignment, names)?;
            Some(Endpoint { locality_metadata: metadata.clone(), ..endpoint })
        };
        let endpoints = match &message.lb_config {
            Some(LbConfig::LoadBalancerEndpoints(list)) if message.lb_endpoints.is_empty() => {
                cx.at("load_balancer_endpoints", |cx| cx.each("lb_endpoints", &list.lb_endpoints, decode))
            }
            _ => cx.each("lb_endpoints", &message.lb_endpoints, decode),
        };
        if let Err(error) = check_weights(&endpoints) {
            cx.error(error);
        }
        Some(LocalityEndpoints {
            locality: message.locality.as_ref().map_or_else(Locality::default, Locality::decode),
            priority: message.priority,
            weight: u32_value(&message.load_balancing_weight),
            endpoints,
            collection,
        })
    }
}

/// The weights of a locality's endpoints are added up in 32 bits.
///
/// # Errors
/// They are too many, in Envoy's words.
pub fn check_weights<'a>(endpoints: impl IntoIterator<Item = &'a Endpoint>) -> Result<(), String> {
    let sum: u64 = endpoints.into_iter().map(|endpoint| u64::from(endpoint.weight)).sum();
    if sum <= u64::from(u32::MAX) {
        return Ok(());
    }
    Err(format!("The sum of weights of all upstream hosts in a locality exceeds {}", u32::MAX))
}

impl Locality {
    pub(crate) fn decode(message: &core::Locality) -> Self {
        Locality {
            region: message.region.as_str().into(),
            zone: message.zone.as_str().into(),
            sub_zone: message.sub_zone.as_str().into(),
        }
    }
}

impl Endpoint {
    /// Decodes an endpoint that came alone, as one of a collection.
    pub fn decode_alone(message: &pb::LbEndpoint, cx: &mut Context) -> Result<Self, Vec<ConfigError>> {
        cx.run(|cx| Self::decode(cx, message, &pb::ClusterLoadAssignment::default(), false))
    }

    fn decode(
        cx: &mut Context,
        message: &pb::LbEndpoint,
        assignment: &pb::ClusterLoadAssignment,
        names: bool,
    ) -> Option<Self> {
        use pb::lb_endpoint::HostIdentifier;
        let Some(host) = &message.host_identifier else {
            cx.error("Address must be set");
            return None;
        };
        let (field, endpoint) = match host {
            HostIdentifier::Endpoint(endpoint) => ("endpoint", endpoint),
            HostIdentifier::EndpointName(name) => match assignment.named_endpoints.get(name) {
                Some(endpoint) => ("endpoint_name", endpoint),
                None => {
                    cx.error_at("endpoint_name", format!("no endpoint named '{name}' in named_endpoints"));
                    return None;
                }
            },
        };
        let (address, additional_addresses, own_health_check) = cx.at(field, |cx| {
            let address = cx.required("address", &endpoint.address, |cx, address| {
                if names { EndpointAddress::decode(cx, address) } else { EndpointAddress::resolved(cx, address) }
            })?;
            let additional = cx.each("additional_addresses", &endpoint.additional_addresses, |cx, additional| {
                cx.required("address", &additional.address, Address::decode)
            });
            let check = cx.optional("health_check_config", &endpoint.health_check_config, EndpointHealthCheck::decode);
            Some((address, additional, check.map(Arc::new)))
        })?;
        Some(Endpoint {
            address,
            additional_addresses,
            hostname: endpoint.hostname.as_str().into(),
            observability_name: Some(&*endpoint.observability_name).filter(|name| !name.is_empty()).map(Into::into),
            health: match message.health_status() {
                core::HealthStatus::Unknown => HealthStatus::Unknown,
                core::HealthStatus::Healthy => HealthStatus::Healthy,
                core::HealthStatus::Unhealthy => HealthStatus::Unhealthy,
                core::HealthStatus::Draining => HealthStatus::Draining,
                core::HealthStatus::Timeout => HealthStatus::Timeout,
                core::HealthStatus::Degraded => HealthStatus::Degraded,
            },
            weight: u32_value(&message.load_balancing_weight).unwrap_or(1),
            metadata: json::metadata(&message.metadata),
            locality_metadata: None,
            own_health_check,
            added_tlvs: proxy_protocol::of_endpoint(&message.metadata).map(Into::into),
        })
    }
}

impl BindConfig {
    /// `owner` is what errors name: `Cluster NAME` or `Bootstrap`.
    pub(crate) fn decode(cx: &mut Context, message: &core::BindConfig, owner: &str) -> Option<Self> {
        let source = cx.optional("source_address", &message.source_address, SourceAddress::decode);
        let additional =
            cx.each("additional_source_addresses", &message.additional_source_addresses, SourceAddress::decode);
        let extra = cx.each("extra_source_addresses", &message.extra_source_addresses, |cx, extra| {
            let source = cx.required("address", &extra.address, SourceAddress::decode);
            let options = cx.optional("socket_options", &extra.socket_options, |cx, options| {
                Some(cx.each("socket_options", &options.socket_options, SocketOption::decode))
            });
            Some(SourceAddress { socket_options: options, ..source? })
        });
        if !extra.is_empty() && !additional.is_empty() {
            cx.error(format!(
                "Can't specify both `extra_source_addresses` and `additional_source_addresses` in the {owner}'s upstream binding config"
            ));
        }
        let more = extra.into_iter().chain(additional);
        let sources: Vec<_> = source.into_iter().chain(more).collect();
        if message.source_address.is_none() && !sources.is_empty() {
            cx.error(format!(
                "{owner}'s upstream binding config has extra/additional source addresses but no source_address. Extra/additional addresses cannot be specified if source_address is not set."
            ));
        } else if sources.len() > 2 {
            cx.error(format!(
                "{owner}'s upstream binding config has more than one extra/additional source addresses. Only one extra/additional source can be supported in BindConfig's extra_source_addresses/additional_source_addresses field"
            ));
        } else if let [one, other] = &*sources
            && one.addr.is_ipv4() == other.addr.is_ipv4()
        {
            cx.error(format!(
                "{owner}'s upstream binding config has two same IP version source addresses. Only two different IP version source addresses can be supported in BindConfig's source_address and extra_source_addresses/additional_source_addresses fields"
            ));
        }
        if let Some(selector) = &message.local_address_selector {
            let known = "envoy.config.upstream.local_address_selector.v3.DefaultLocalAddressSelector";
            let kind = type_of(selector);
            if kind != known {
                cx.at("local_address_selector", |cx| {
                    cx.refuse_extension("envoy.upstream.local_address_selector", &selector.name, kind);
                });
            }
        }
        if message.validate_network_namespaces {
            for namespace in sources.iter().filter_map(|source| source.network_namespace.as_deref()) {
                if let Err(error) = std::fs::File::open(namespace) {
                    let why = error.to_string();
                    let why = why.split(" (os error").next().unwrap_or_default();
                    cx.error(format!("failed to open network namespace file {namespace}: {why}"));
                }
            }
        }
        Some(BindConfig {
            sources,
            freebind: bool_value(&message.freebind).unwrap_or(false),
            socket_options: cx.each("socket_options", &message.socket_options, SocketOption::decode),
        })
    }
}

impl SourceAddress {
    fn decode(cx: &mut Context, message: &core::SocketAddress) -> Option<Self> {
        let addr = socket_address(cx, message)?;
        Some(SourceAddress { addr, network_namespace: network_namespace(message), socket_options: None })
    }
}

impl TcpKeepalive {
    /// That of a listener, where a zero switches it off.
    pub(crate) fn of_listener(message: &core::TcpKeepalive) -> Option<Self> {
        let decoded = Self::decode(message);
        let zero = [decoded.probes, decoded.time, decoded.interval].contains(&Some(0));
        (!zero).then_some(decoded)
    }

    pub(crate) fn decode(message: &core::TcpKeepalive) -> Self {
        TcpKeepalive {
            probes: u32_value(&message.keepalive_probes),
            time: u32_value(&message.keepalive_time),
            interval: u32_value(&message.keepalive_interval),
        }
    }
}

impl SocketOption {
    /// None, without an error, for an option of datagram sockets: there are none.
    pub(crate) fn decode(cx: &mut Context, message: &core::SocketOption) -> Option<Self> {
        use core::socket_option::{SocketIpVersion, SocketState, Value};
        if message.r#type.as_ref().is_some_and(|kind| kind.datagram.is_some() && kind.stream.is_none()) {
            return None;
        }
        let (Ok(level), Ok(name)) = (i32::try_from(message.level), i32::try_from(message.name)) else {
            cx.error("level and name of a socket option have 32 bits");
            return None;
        };
        let value = match &message.value {
            Some(Value::IntValue(value)) => match i32::try_from(*value) {
                Ok(value) => SocketOptionValue::Int(value),
                Err(_) => {
                    cx.error_at("int_value", "the value of a socket option has 32 bits");
                    return None;
                }
            },
            Some(Value::BufValue(bytes)) => SocketOptionValue::Bytes(bytes.clone()),
            None => {
                cx.error("Field 'value' is missing: one of int_value, buf_value");
                return None;
            }
        };
        Some(SocketOption {
            level,
            name,
            value,
            state: match message.state() {
                SocketState::StatePrebind => SocketOptionState::Prebind,
                SocketState::StateBound => SocketOptionState::Bound,
                SocketState::StateListening => SocketOptionState::Listening,
            },
            ip_version: match message.ip_version() {
                SocketIpVersion::Unspecified => None,
                SocketIpVersion::Ipv4 => Some(IpVersion::V4),
                SocketIpVersion::Ipv6 => Some(IpVersion::V6),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::envoy::config::core::v3 as pbcore;
    use envoy_types::pb::google::protobuf::UInt32Value;

    fn endpoint(weight: u32) -> pb::LbEndpoint {
        let address = pbcore::SocketAddress {
            address: "10.0.0.1".into(),
            port_specifier: Some(pbcore::socket_address::PortSpecifier::PortValue(80)),
            ..Default::default()
        };
        let address = pbcore::Address { address: Some(pbcore::address::Address::SocketAddress(address)) };
        let endpoint = pb::Endpoint { address: Some(address), ..Default::default() };
        pb::LbEndpoint {
            host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(endpoint)),
            load_balancing_weight: Some(UInt32Value { value: weight }),
            ..Default::default()
        }
    }

    fn locality(endpoints: Vec<pb::LbEndpoint>, weight: u32) -> pb::LocalityLbEndpoints {
        pb::LocalityLbEndpoints {
            lb_endpoints: endpoints,
            load_balancing_weight: Some(UInt32Value { value: weight }),
            ..Default::default()
        }
    }

    fn decode(endpoints: Vec<pb::LocalityLbEndpoints>) -> Result<ClusterLoadAssignment, Vec<ConfigError>> {
        let message = pb::ClusterLoadAssignment { endpoints, ..Default::default() };
        ClusterLoadAssignment::decode(&message, &mut Context::default())
    }

    #[test]
    fn weights_have_32_bits_in_sum() {
        let max = u32::MAX;
        assert_eq!(
            errors(decode(vec![locality(vec![endpoint(max), endpoint(1)], 1)])),
            ["endpoints[0]: The sum of weights of all upstream hosts in a locality exceeds 4294967295"]
        );
        assert_eq!(
            errors(decode(vec![locality(vec![], max), locality(vec![], 1)])),
            ["The sum of weights of all localities at the same priority exceeds 4294967295"]
        );
    }

    #[test]
    fn endpoints_in_the_newer_list_are_read_too() {
        use pb::locality_lb_endpoints::{LbConfig, LbEndpointList};
        let list = LbEndpointList { lb_endpoints: vec![endpoint(2)] };
        let locality =
            pb::LocalityLbEndpoints { lb_config: Some(LbConfig::LoadBalancerEndpoints(list)), ..Default::default() };
        assert_eq!(decode(vec![locality]).unwrap().localities[0].endpoints[0].weight, 2);
    }

    #[test]
    fn a_socket_option_needs_a_value() {
        let option = pbcore::SocketOption { level: 6, name: 9, ..Default::default() };
        assert!(Context::default().run(|cx| SocketOption::decode(cx, &option)).is_err());
        let option = pbcore::SocketOption { value: Some(pbcore::socket_option::Value::IntValue(1)), ..option };
        let option = SocketOption::decode(&mut Context::default(), &option).unwrap();
        assert_eq!((option.level, option.name, option.value), (6, 9, SocketOptionValue::Int(1)));
    }
}
