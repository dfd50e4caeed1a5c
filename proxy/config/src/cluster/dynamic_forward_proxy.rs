//! Dynamic forward proxies: the DNS cache that a cluster and HTTP filters share.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3::SocketAddress;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3 as cluster;
use envoy_types::pb::envoy::extensions::common::dynamic_forward_proxy::v3 as common;

use super::discovery::dns_cluster;
use super::dns::{failure_refresh, family, resolvers, typed_resolver};
use super::{CommonLbConfig, Discovery, DnsConfig, LbPolicy, UpstreamHttpOptions};
use crate::decode::{Context, u32_value};

/// `DnsCacheConfig`. Whoever gives the same name has to give the same settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsCacheConfig {
    /// Name, also in stats.
    pub name: Box<str>,
    /// How names are asked for; the refresh rate is 60 s by default.
    pub dns: DnsConfig,
    /// A shorter time to live counts as this; default 5 s.
    pub min_refresh_rate: Duration,
    /// A host that was not used for so long is given up; default 5 min.
    pub host_ttl: Duration,
    /// Most hosts; default 1024.
    pub max_hosts: u32,
    /// Answers are waited for so long; default 5 s, zero is forever.
    pub query_timeout: Duration,
    /// Requests that may wait for answers; default 1024.
    pub max_pending_requests: u32,
    /// A name that could not be resolved is asked for by the next request only.
    pub no_refresh_on_failure: bool,
    /// Names that are asked for at once, with their ports.
    pub preresolve: Vec<(Box<str>, u16)>,
}

impl DnsCacheConfig {
    /// Decodes the message.
    pub fn decode(cx: &mut Context, message: &common::DnsCacheConfig) -> Arc<Self> {
        let mut dns = DnsConfig {
            refresh_rate: cx.duration("dns_refresh_rate", &message.dns_refresh_rate).unwrap_or(Duration::from_secs(60)),
            use_tcp: message.use_tcp_for_dns_lookups,
            family: family(message.dns_lookup_family()),
            ..DnsConfig::default()
        };
        if let Some(rate) = &message.dns_failure_refresh_rate {
            dns.failure_refresh =
                cx.at("dns_failure_refresh_rate", |cx| failure_refresh(cx, &rate.base_interval, &rate.max_interval));
        }
        if let Some(config) = &message.dns_resolution_config {
            cx.at("dns_resolution_config", |cx| dns.resolvers = resolvers(cx, "resolvers", &config.resolvers));
        }
        if let Some(resolver) = &message.typed_dns_resolver_config {
            cx.at("typed_dns_resolver_config", |cx| typed_resolver(cx, resolver, true, &mut dns));
        }
        let max_hosts = u32_value(&message.max_hosts).unwrap_or(1024);
        let names = message.preresolve_hostnames.len();
        if names as u64 > u64::from(max_hosts) {
            cx.error_at(
                "preresolve_hostnames",
                format!(
                    "DNS Cache [{}] configured with preresolve_hostnames={names} larger than max_hosts={max_hosts}",
                    message.name
                ),
            );
        }
        let breaker = message.dns_cache_circuit_breaker.as_ref();
        let preresolve = message.preresolve_hostnames.iter().map(name_and_port);
        Arc::new(DnsCacheConfig {
            name: message.name.as_str().into(),
            dns,
            min_refresh_rate: cx
                .duration("dns_min_refresh_rate", &message.dns_min_refresh_rate)
                .unwrap_or(Duration::from_secs(5)),
            host_ttl: cx.duration("host_ttl", &message.host_ttl).unwrap_or(Duration::from_secs(300)),
            max_hosts,
            query_timeout: cx
                .duration("dns_query_timeout", &message.dns_query_timeout)
                .unwrap_or(Duration::from_secs(5)),
            max_pending_requests: breaker.and_then(|b| u32_value(&b.max_pending_requests)).unwrap_or(1024),
            no_refresh_on_failure: message.disable_dns_refresh_on_failure,
            preresolve: preresolve.collect(),
        })
    }
}

/// `sub_clusters_config`
#[derive(Debug, Clone, PartialEq)]
pub struct SubClustersConfig {
    /// Policy of the clusters.
    pub lb_policy: LbPolicy,
    /// Most clusters; default 1024.
    pub max_sub_clusters: u32,
    /// One that was not used for so long is removed; default 5 min.
    pub ttl: Duration,
    /// Names that have a cluster from the start, with their ports.
    pub preresolve: Vec<(Box<str>, u16)>,
    /// How names are asked for; None for the fields of the parent.
    pub dns: Option<DnsConfig>,
    /// All addresses of a name are one host.
    pub logical: bool,
}

/// What a dynamic forward proxy keeps of the names that requests bring.
#[derive(Debug, Clone, PartialEq)]
pub enum ForwardProxyNames {
    /// A host for each, in a cache.
    Cache(Arc<DnsCacheConfig>),
    /// A cluster for each.
    SubClusters(Arc<SubClustersConfig>),
}

impl ForwardProxyNames {
    /// Of a cluster's `typed_config`.
    pub(super) fn decode(cx: &mut Context, message: &cluster::ClusterConfig) -> Option<Self> {
        use cluster::cluster_config::ClusterImplementationSpecifier as Kind;
        match &message.cluster_implementation_specifier {
            Some(Kind::DnsCacheConfig(config)) => {
                Some(ForwardProxyNames::Cache(cx.at("dns_cache_config", |cx| DnsCacheConfig::decode(cx, config))))
            }
            Some(Kind::SubClustersConfig(config)) => {
                let config = cx.at("sub_clusters_config", |cx| SubClustersConfig::decode(cx, config))?;
                Some(ForwardProxyNames::SubClusters(Arc::new(config)))
            }
            None => {
                cx.error("a dynamic forward proxy needs a dns_cache_config or a sub_clusters_config");
                None
            }
        }
    }
}

impl SubClustersConfig {
    fn decode(cx: &mut Context, message: &cluster::SubClustersConfig) -> Option<Self> {
        if message.lb_policy() == pb::cluster::LbPolicy::ClusterProvided {
            cx.error_at("lb_policy", "unsupported lb_policy 'CLUSTER_PROVIDED' in sub_cluster_config");
            return None;
        }
        let policy = pb::Cluster { lb_policy: message.lb_policy, ..Default::default() };
        let dns = message.dns_cluster_config.as_ref().map(|config| {
            let mut dns = DnsConfig::default();
            let kind = cx.at("dns_cluster_config", |cx| dns_cluster(cx, config, &mut dns));
            (dns, kind == Discovery::LogicalDns)
        });
        Some(SubClustersConfig {
            lb_policy: LbPolicy::decode(cx, &policy, &mut CommonLbConfig::default())?,
            max_sub_clusters: u32_value(&message.max_sub_clusters).unwrap_or(1024),
            ttl: cx.duration("sub_cluster_ttl", &message.sub_cluster_ttl).unwrap_or(Duration::from_secs(300)),
            preresolve: message.preresolve_clusters.iter().map(name_and_port).collect(),
            logical: dns.as_ref().is_some_and(|(_, logical)| *logical),
            dns: dns.map(|(dns, _)| dns),
        })
    }
}

fn name_and_port(address: &SocketAddress) -> (Box<str>, u16) {
    let port = match &address.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(*port).unwrap_or(0),
        _ => 0,
    };
    (address.address.as_str().into(), port)
}

/// The name of the server is checked against certificates unless the cluster says that it need not be.
pub(super) fn check_names(
    cx: &mut Context,
    message: &pb::Cluster,
    allow_insecure: bool,
    typed: bool,
    http: &mut UpstreamHttpOptions,
) {
    if !typed && message.upstream_http_protocol_options.is_none() {
        (http.auto_sni, http.auto_san_validation) = (true, true);
    }
    let checked = http.auto_sni && http.auto_san_validation;
    if !allow_insecure && !checked {
        cx.error(
            "dynamic_forward_proxy cluster must have auto_sni and auto_san_validation true unless allow_insecure_cluster_options is set.",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;

    fn decode(message: &common::DnsCacheConfig) -> Result<Arc<DnsCacheConfig>, Vec<crate::diagnostics::ConfigError>> {
        Context::default().run(|cx| Some(DnsCacheConfig::decode(cx, message)))
    }

    #[test]
    fn a_cache_has_envoys_defaults() {
        let cache = decode(&common::DnsCacheConfig { name: "c".into(), ..Default::default() }).unwrap();
        assert_eq!((cache.max_hosts, cache.max_pending_requests), (1024, 1024));
        assert_eq!((cache.dns.refresh_rate.as_secs(), cache.min_refresh_rate.as_secs()), (60, 5));
        assert_eq!((cache.host_ttl.as_secs(), cache.query_timeout.as_secs()), (300, 5));
    }

    #[test]
    fn names_to_resolve_at_once_have_to_fit() {
        let name = SocketAddress { port_specifier: Some(PortSpecifier::PortValue(80)), ..Default::default() };
        let message = common::DnsCacheConfig {
            name: "c".into(),
            max_hosts: Some(envoy_types::pb::google::protobuf::UInt32Value { value: 1 }),
            preresolve_hostnames: vec![name.clone(), name],
            ..Default::default()
        };
        assert_eq!(
            errors(decode(&message)),
            ["preresolve_hostnames: DNS Cache [c] configured with preresolve_hostnames=2 larger than max_hosts=1"]
        );
    }
}
