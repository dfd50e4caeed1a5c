//! `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy`.

use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;

use crate::access_log::AccessLogConfig;
use crate::config_source::OnDemandClusters;
use crate::decode::{Context, json, u32_value};
use crate::header_mutation::HeaderValueOption;
use crate::proxy_protocol::AddedTlvs;
use std::sync::Arc;
use std::time::Duration;

/// How long a connection waits for a cluster on demand where nothing is said.
const ON_DEMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// TCP proxy settings.
#[derive(Debug, Clone)]
pub struct TcpProxyConfig {
    /// Stats are named `tcp.<stat_prefix>.`.
    pub stat_prefix: Box<str>,
    /// Where connections go; a single cluster is one entry of weight 1.
    pub clusters: Vec<(Arc<str>, u32)>,
    /// `metadata_match` for each of `clusters`: its own, and the filter's where that does not say otherwise.
    pub metadata_match: Vec<Option<Arc<serde_json::Value>>>,
    /// Default 1 h; None when 0 s was set.
    pub idle_timeout: Option<Duration>,
    /// None for no limit.
    pub max_downstream_connection_duration: Option<Duration>,
    /// Default 1.
    pub max_connect_attempts: u32,
    /// Access logs.
    pub access_logs: Vec<AccessLogConfig>,
    /// Interval of periodic log entries.
    pub access_log_flush_interval: Option<Duration>,
    /// Also log when the upstream is connected.
    pub flush_access_log_on_connected: bool,
    /// TLVs for the PROXY headers of upstream connections (`proxy_protocol_tlvs`).
    pub added_tlvs: AddedTlvs,
    /// How they go together with those of the client.
    pub tlv_merge: TlvMerge,
    /// Hash on the source IP for hashing load balancers.
    pub hash_source_ip: bool,
    /// The bytes go to the upstream as the body of a request.
    pub tunneling: Option<TunnelingConfig>,
    /// A cluster that is not there is asked for.
    pub on_demand: Option<OnDemandClusters>,
    /// Path in the configuration.
    pub path: Box<str>,
}

/// `ProxyProtocolTlvMergePolicy`: what happens to the TLVs of the TCP proxy where the client brought a PROXY header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlvMerge {
    /// ADD_IF_ABSENT: they are left out.
    #[default]
    AddIfAbsent,
    /// OVERWRITE_BY_TYPE_IF_EXISTS_OR_ADD: they go in place of those of the client that have their types.
    Overwrite,
    /// APPEND_IF_EXISTS_OR_ADD: they follow those of the client.
    Append,
}

/// `TunnelingConfig`.
#[derive(Debug, Clone)]
pub struct TunnelingConfig {
    /// Format string of the authority.
    pub hostname: Box<str>,
    /// The path of POST requests; None for CONNECT.
    pub post_path: Option<Box<str>>,
    /// Headers of the request.
    pub headers_to_add: Vec<HeaderValueOption>,
}

impl TunnelingConfig {
    fn decode(cx: &mut Context, message: &pb::tcp_proxy::TunnelingConfig) -> Self {
        if !message.post_path.is_empty() && !message.use_post {
            cx.error("Can't set a post path when POST method isn't used");
        }
        let path = if message.post_path.is_empty() { "/" } else { &message.post_path };
        TunnelingConfig {
            hostname: message.hostname.as_str().into(),
            post_path: message.use_post.then(|| path.into()),
            headers_to_add: cx.each("headers_to_add", &message.headers_to_add, HeaderValueOption::decode),
        }
    }
}

impl TcpProxyConfig {
    pub(crate) fn from_message(cx: &mut Context, message: &pb::TcpProxy) -> Option<Self> {
        let options = message.access_log_options.as_ref();
        if options.is_some() && message.access_log_flush_interval.is_some() {
            cx.error("Only one of access_log_flush_interval or access_log_options can be specified.");
        }
        if options.is_some() && message.flush_access_log_on_connected {
            cx.error("Only one of flush_access_log_on_connected or access_log_options can be specified.");
        }
        let access_log_flush_interval = match options {
            Some(options) => cx.at("access_log_options", |cx| {
                cx.duration("access_log_flush_interval", &options.access_log_flush_interval)
            }),
            None => cx.duration("access_log_flush_interval", &message.access_log_flush_interval),
        };
        // Envoy accepts clusters that do not exist here: connections are closed until they do.
        let clusters = match message.cluster_specifier.as_ref() {
            Some(pb::tcp_proxy::ClusterSpecifier::Cluster(name)) => vec![(cx.cluster_name(name), 1)],
            Some(pb::tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => {
                weighted.clusters.iter().map(|entry| (cx.cluster_name(&entry.name), entry.weight)).collect()
            }
            None => {
                cx.error("Field 'cluster_specifier' is missing: one of cluster, weighted_clusters");
                return None;
            }
        };
        let common = json::metadata_namespace(&message.metadata_match, "envoy.lb");
        let metadata_match = match message.cluster_specifier.as_ref() {
            Some(pb::tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => {
                let own =
                    weighted.clusters.iter().map(|entry| json::metadata_namespace(&entry.metadata_match, "envoy.lb"));
                own.map(|own| json::merged(common.as_ref(), own)).collect()
            }
            _ => vec![common],
        };
        Some(TcpProxyConfig {
            metadata_match,
            stat_prefix: message.stat_prefix.as_str().into(),
            clusters,
            idle_timeout: cx.timeout("idle_timeout", &message.idle_timeout, Some(Duration::from_secs(3600))),
            max_downstream_connection_duration: cx.timeout(
                "max_downstream_connection_duration",
                &message.max_downstream_connection_duration,
                None,
            ),
            max_connect_attempts: u32_value(&message.max_connect_attempts).unwrap_or(1),
            access_logs: cx.each("access_log", &message.access_log, AccessLogConfig::decode),
            access_log_flush_interval,
            flush_access_log_on_connected: options
                .map_or(message.flush_access_log_on_connected, |options| options.flush_access_log_on_connected),
            added_tlvs: AddedTlvs::decode(cx, "proxy_protocol_tlvs", &message.proxy_protocol_tlvs),
            tlv_merge: match message.proxy_protocol_tlv_merge_policy() {
                pb::ProxyProtocolTlvMergePolicy::AddIfAbsent => TlvMerge::AddIfAbsent,
                pb::ProxyProtocolTlvMergePolicy::OverwriteByTypeIfExistsOrAdd => TlvMerge::Overwrite,
                pb::ProxyProtocolTlvMergePolicy::AppendIfExistsOrAdd => TlvMerge::Append,
            },
            hash_source_ip: message
                .hash_policy
                .iter()
                .any(|policy| matches!(policy.policy_specifier, Some(PolicySpecifier::SourceIp(_)))),
            tunneling: message
                .tunneling_config
                .as_ref()
                .map(|tunnel| cx.at("tunneling_config", |cx| TunnelingConfig::decode(cx, tunnel))),
            on_demand: message.on_demand.as_ref().and_then(|on_demand| {
                let (source, timeout) = (&on_demand.odcds_config, &on_demand.timeout);
                let decode =
                    |cx: &mut Context| OnDemandClusters::decode(cx, "odcds_config", source, timeout, ON_DEMAND_TIMEOUT);
                cx.at("on_demand", decode)
            }),
            path: cx.path_text(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::google::protobuf as google;

    fn minimal() -> pb::TcpProxy {
        pb::TcpProxy {
            stat_prefix: "t".into(),
            cluster_specifier: Some(pb::tcp_proxy::ClusterSpecifier::Cluster("c".into())),
            ..Default::default()
        }
    }

    #[test]
    fn the_defaults_are_envoys() {
        let proxy = TcpProxyConfig::from_message(&mut Context::default(), &minimal()).unwrap();
        assert_eq!(proxy.idle_timeout, Some(Duration::from_secs(3600)));
        assert_eq!((proxy.max_connect_attempts, proxy.clusters.len()), (1, 1));
        let off = pb::TcpProxy { idle_timeout: Some(google::Duration::default()), ..minimal() };
        assert_eq!(TcpProxyConfig::from_message(&mut Context::default(), &off).unwrap().idle_timeout, None);
    }

    #[test]
    fn weights_are_kept() {
        use pb::tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight};
        let entry = |name: &str, weight| ClusterWeight { name: name.into(), weight, ..Default::default() };
        let weighted = WeightedCluster { clusters: vec![entry("a", 3), entry("b", 1)] };
        let message =
            pb::TcpProxy { cluster_specifier: Some(ClusterSpecifier::WeightedClusters(weighted)), ..minimal() };
        let proxy = TcpProxyConfig::from_message(&mut Context::default(), &message).unwrap();
        assert_eq!(proxy.clusters, [("a".into(), 3), ("b".into(), 1)]);
    }

    #[test]
    fn access_log_options_exclude_the_deprecated_fields() {
        let message = pb::TcpProxy {
            flush_access_log_on_connected: true,
            access_log_options: Some(Default::default()),
            ..minimal()
        };
        let result = Context::default().run(|cx| TcpProxyConfig::from_message(cx, &message));
        assert_eq!(
            errors(result),
            ["Only one of flush_access_log_on_connected or access_log_options can be specified."]
        );
    }
}
