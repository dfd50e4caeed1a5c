//! How a cluster's hosts are found: `type` and `cluster_type` decoded.

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::extensions::clusters::aggregate::v3::ClusterConfig as AggregateCluster;
use envoy_types::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as NewFamily;
use envoy_types::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3::ClusterConfig as ForwardProxyCluster;

use super::dns::{failure_refresh, typed_resolver};
use super::{Discovery, DnsConfig, DnsLookupFamily, ForwardProxyNames, OriginalDstConfig};
use crate::decode::{Context, serialized, type_name};

/// What `message` says; DNS settings of a cluster type go into `dns`.
pub(super) fn discovery(cx: &mut Context, message: &pb::Cluster, dns: &mut DnsConfig) -> Option<Discovery> {
    use pb::cluster::{ClusterDiscoveryType, DiscoveryType};
    let kind = match &message.cluster_discovery_type {
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(number)) => DiscoveryType::try_from(*number).unwrap_or_default(),
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return cx.at("cluster_type", |cx| match custom.typed_config.as_ref() {
                Some(any) if type_name(&any.type_url) == "envoy.extensions.clusters.dns.v3.DnsCluster" => {
                    cx.at("typed_config", |cx| {
                        let config: DnsCluster = cx.unpack(any)?;
                        Some(dns_cluster(cx, &config, dns))
                    })
                }
                Some(any) if type_name(&any.type_url) == "envoy.extensions.clusters.aggregate.v3.ClusterConfig" => cx
                    .at("typed_config", |cx| {
                        let config: AggregateCluster = cx.unpack(any)?;
                        let clusters = config.clusters.iter().map(|name| name.as_str().into()).collect();
                        Some(Discovery::Aggregate { clusters })
                    }),
                Some(any)
                    if type_name(&any.type_url)
                        == "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig" =>
                {
                    cx.at("typed_config", |cx| {
                        let config: ForwardProxyCluster = cx.unpack(any)?;
                        let names = ForwardProxyNames::decode(cx, &config)?;
                        let allow_insecure = config.allow_insecure_cluster_options;
                        Some(Discovery::DynamicForwardProxy { names, allow_insecure })
                    })
                }
                None => match custom.name.as_str() {
                    "envoy.cluster.static" => Some(Discovery::Static),
                    "envoy.cluster.strict_dns" => Some(Discovery::StrictDns),
                    "envoy.cluster.logical_dns" => Some(Discovery::LogicalDns),
                    "envoy.cluster.original_dst" => {
                        Some(Discovery::OriginalDst(OriginalDstConfig::of_cluster(cx, message)))
                    }
                    "envoy.cluster.eds" => eds(cx, message),
                    _ => Some(Discovery::Extension(cx.typed_config(&custom.name, None))),
                },
                any => Some(Discovery::Extension(cx.typed_config(&custom.name, any))),
            });
        }
    };
    if kind != DiscoveryType::Eds && message.eds_cluster_config.is_some() {
        cx.error_at("eds_cluster_config", "eds_cluster_config set in a non-EDS cluster");
    }
    Some(match kind {
        DiscoveryType::Static => Discovery::Static,
        DiscoveryType::StrictDns => Discovery::StrictDns,
        DiscoveryType::LogicalDns => Discovery::LogicalDns,
        DiscoveryType::OriginalDst => Discovery::OriginalDst(OriginalDstConfig::of_cluster(cx, message)),
        DiscoveryType::Eds => eds(cx, message)?,
    })
}

fn eds(cx: &mut Context, message: &pb::Cluster) -> Option<Discovery> {
    let Some(config) = &message.eds_cluster_config else {
        cx.error("cannot create an EDS cluster without an EDS config");
        return None;
    };
    let service = if config.service_name.is_empty() { &message.name } else { &config.service_name };
    Some(Discovery::Eds {
        service_name: service.as_str().into(),
        source: config.eds_config.as_ref().map(serialized).unwrap_or_default(),
    })
}

/// `DnsCluster`, the newer way to say STRICT_DNS and LOGICAL_DNS, which carries its own DNS settings.
pub(super) fn dns_cluster(cx: &mut Context, config: &DnsCluster, dns: &mut DnsConfig) -> Discovery {
    if let Some(rate) = cx.duration("dns_refresh_rate", &config.dns_refresh_rate) {
        dns.refresh_rate = rate;
    }
    if let Some(rate) = &config.dns_failure_refresh_rate {
        dns.failure_refresh =
            cx.at("dns_failure_refresh_rate", |cx| failure_refresh(cx, &rate.base_interval, &rate.max_interval));
    }
    dns.respect_ttl = config.respect_dns_ttl;
    dns.min_refresh_rate = cx.duration("dns_min_refresh_rate", &config.dns_min_refresh_rate).unwrap_or_default();
    dns.jitter = cx.duration("dns_jitter", &config.dns_jitter).unwrap_or_default();
    dns.family = match config.dns_lookup_family() {
        NewFamily::Unspecified | NewFamily::Auto => DnsLookupFamily::Auto,
        NewFamily::V4Only => DnsLookupFamily::V4Only,
        NewFamily::V6Only => DnsLookupFamily::V6Only,
        NewFamily::V4Preferred => DnsLookupFamily::V4Preferred,
        NewFamily::All => DnsLookupFamily::All,
    };
    if let Some(resolver) = &config.typed_dns_resolver_config {
        cx.at("typed_dns_resolver_config", |cx| typed_resolver(cx, resolver, true, dns));
    } else {
        dns.take_defaults(cx.default_dns.clone());
    }
    if config.all_addresses_in_single_endpoint { Discovery::LogicalDns } else { Discovery::StrictDns }
}
