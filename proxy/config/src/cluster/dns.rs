//! How the names of hosts are looked up: the fields of a cluster, of its type and of the bootstrap.

use std::time::Duration;

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use envoy_types::pb::google::protobuf as google;

use super::{DnsConfig, DnsDefaults, DnsLookupFamily};
use crate::address::Address;
use crate::decode::{Context, bool_value};
use crate::extensions::{check_ignored, type_of};

/// The fields of a cluster; its type may have others.
pub(super) fn dns_config(cx: &mut Context, message: &pb::Cluster) -> DnsConfig {
    let mut dns = DnsConfig {
        respect_ttl: message.respect_dns_ttl,
        use_tcp: message.use_tcp_for_dns_lookups,
        wait_for_warm_on_init: bool_value(&message.wait_for_warm_on_init).unwrap_or(true),
        family: family(message.dns_lookup_family()),
        resolvers: resolvers(cx, "dns_resolvers", &message.dns_resolvers),
        ..DnsConfig::default()
    };
    if let Some(rate) = cx.duration("dns_refresh_rate", &message.dns_refresh_rate) {
        dns.refresh_rate = rate;
    }
    dns.jitter = cx.duration("dns_jitter", &message.dns_jitter).unwrap_or_default();
    if let Some(rate) = &message.dns_failure_refresh_rate {
        dns.failure_refresh =
            cx.at("dns_failure_refresh_rate", |cx| failure_refresh(cx, &rate.base_interval, &rate.max_interval));
    }
    if let Some(config) = &message.dns_resolution_config {
        cx.at("dns_resolution_config", |cx| dns.resolvers = resolvers(cx, "resolvers", &config.resolvers));
        resolver_options(&config.dns_resolver_options, &mut dns);
    }
    if let Some(resolver) = &message.typed_dns_resolver_config {
        use pb::cluster::{ClusterDiscoveryType, DiscoveryType};
        let kind = match message.cluster_discovery_type {
            Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(kind).ok(),
            _ => None,
        };
        let used = matches!(kind, Some(DiscoveryType::StrictDns | DiscoveryType::LogicalDns));
        cx.at("typed_dns_resolver_config", |cx| typed_resolver(cx, resolver, used, &mut dns));
    }
    let own = message.typed_dns_resolver_config.is_some()
        || message.dns_resolution_config.is_some()
        || !message.dns_resolvers.is_empty()
        || message.use_tcp_for_dns_lookups;
    if !own {
        dns.take_defaults(cx.default_dns.clone());
    }
    dns
}

impl DnsConfig {
    pub(super) fn take_defaults(&mut self, defaults: DnsDefaults) {
        self.resolvers = defaults.resolvers;
        self.use_tcp = defaults.use_tcp;
        self.no_default_search_domain = defaults.no_default_search_domain;
    }
}

impl DnsDefaults {
    /// Of the bootstrap.
    pub(crate) fn decode(cx: &mut Context, message: &Bootstrap) -> Self {
        let mut dns = DnsConfig { use_tcp: message.use_tcp_for_dns_lookups, ..DnsConfig::default() };
        if let Some(config) = &message.dns_resolution_config {
            cx.at("dns_resolution_config", |cx| dns.resolvers = resolvers(cx, "resolvers", &config.resolvers));
            resolver_options(&config.dns_resolver_options, &mut dns);
        }
        if let Some(resolver) = &message.typed_dns_resolver_config {
            cx.at("typed_dns_resolver_config", |cx| typed_resolver(cx, resolver, false, &mut dns));
        }
        let DnsConfig { resolvers, use_tcp, no_default_search_domain, .. } = dns;
        DnsDefaults { resolvers, use_tcp, no_default_search_domain }
    }
}

pub(super) fn family(family: pb::cluster::DnsLookupFamily) -> DnsLookupFamily {
    use pb::cluster::DnsLookupFamily as Family;
    match family {
        Family::Auto => DnsLookupFamily::Auto,
        Family::V4Only => DnsLookupFamily::V4Only,
        Family::V6Only => DnsLookupFamily::V6Only,
        Family::V4Preferred => DnsLookupFamily::V4Preferred,
        Family::All => DnsLookupFamily::All,
    }
}

pub(super) fn failure_refresh(
    cx: &mut Context,
    base: &Option<google::Duration>,
    max: &Option<google::Duration>,
) -> Option<(Duration, Duration)> {
    let base = cx.duration("base_interval", base)?;
    let max = cx.duration("max_interval", max).unwrap_or(base * 10);
    if max < base {
        cx.error("dns_failure_refresh_rate must have max_interval greater than or equal to the base_interval");
    }
    Some((base, max))
}

pub(super) fn resolvers(
    cx: &mut Context,
    field: &'static str,
    messages: &[core::Address],
) -> Vec<std::net::SocketAddr> {
    cx.each(field, messages, |cx, message| match Address::decode(cx, message)? {
        Address::Socket(address) => Some(address.addr),
        _ => {
            cx.error("a DNS resolver has a socket address");
            None
        }
    })
}

fn resolver_options(options: &Option<core::DnsResolverOptions>, dns: &mut DnsConfig) {
    if let Some(options) = options {
        dns.use_tcp = options.use_tcp_for_dns_lookups;
        dns.no_default_search_domain = options.no_default_search_domain;
    }
}

/// c-ares' settings are taken over; other resolvers of Envoy (getaddrinfo, hickory) have none that matter here. Only where it
/// is `used` does Envoy ask whether there is such a resolver.
pub(super) fn typed_resolver(cx: &mut Context, resolver: &core::TypedExtensionConfig, used: bool, dns: &mut DnsConfig) {
    let kind = type_of(resolver);
    match &resolver.typed_config {
        Some(any) if kind == "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig" => {
            cx.at("typed_config", |cx| {
                if let Some(config) = cx.unpack::<CaresDnsResolverConfig>(any) {
                    dns.resolvers = resolvers(cx, "resolvers", &config.resolvers);
                    resolver_options(&config.dns_resolver_options, dns);
                }
            });
        }
        _ if used => {
            if let Err(error) = check_ignored("envoy.network.dns_resolver", &resolver.name, kind) {
                cx.error(error);
            }
        }
        _ => {}
    }
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Discovery;
    use crate::cluster::decode::tests::{cluster, decode};
    use crate::decode::tests::errors;
    use envoy_types::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as NewFamily;
    use envoy_types::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
    use google::Any;
    use pb::cluster::{ClusterDiscoveryType, DiscoveryType};
    use prost::Message;

    #[test]
    fn the_newer_dns_cluster_carries_its_settings() {
        let config = DnsCluster {
            dns_refresh_rate: Some(google::Duration { seconds: 7, nanos: 0 }),
            dns_lookup_family: NewFamily::V4Only.into(),
            all_addresses_in_single_endpoint: true,
            ..Default::default()
        };
        let any = Any {
            type_url: "type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster".into(),
            value: config.encode_to_vec(),
        };
        let kind = pb::cluster::CustomClusterType { name: "envoy.cluster.dns".into(), typed_config: Some(any) };
        let message = pb::Cluster {
            cluster_discovery_type: Some(ClusterDiscoveryType::ClusterType(kind)),
            ..cluster(DiscoveryType::Static, &["a.example"])
        };
        let cluster = decode(&message).unwrap();
        assert_eq!(cluster.discovery, Discovery::LogicalDns);
        assert_eq!((cluster.dns.refresh_rate.as_secs(), cluster.dns.family), (7, DnsLookupFamily::V4Only));
    }

    #[test]
    fn a_failure_refresh_maximum_below_its_base_is_an_error() {
        let rate = pb::cluster::RefreshRate {
            base_interval: Some(google::Duration { seconds: 5, nanos: 0 }),
            max_interval: Some(google::Duration { seconds: 1, nanos: 0 }),
        };
        let message = pb::Cluster { dns_failure_refresh_rate: Some(rate), ..cluster(DiscoveryType::StrictDns, &["a"]) };
        assert_eq!(
            errors(decode(&message)),
            [
                "dns_failure_refresh_rate: dns_failure_refresh_rate must have max_interval greater than or equal to the base_interval"
            ]
        );
    }
}
