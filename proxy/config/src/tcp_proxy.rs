//! `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy`.

use envoy_types::pb::envoy::config::core::v3::BackoffStrategy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as pb;
use envoy_types::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use envoy_types::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;

use crate::access_log::{AccessLogConfig, check_formatters};
use crate::config_source::OnDemandClusters;
use crate::decode::{Context, bool_value, json, type_name, u32_value};
use crate::hcm::decode::share;
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
    /// How much longer it may be, as a share of it.
    pub max_downstream_connection_duration_jitter: f64,
    /// Default 1.
    pub max_connect_attempts: u32,
    /// Pauses between attempts: base and maximum; None for none.
    pub backoff: Option<(Duration, Duration)>,
    /// When the upstream is connected.
    pub connect_mode: ConnectMode,
    /// Bytes that are read from the client before the upstream is connected; None: nothing is read until then.
    pub max_early_data: Option<u32>,
    /// A drain of the listener closes connections with their next bytes.
    pub check_drain_close: bool,
    /// Access logs.
    pub access_logs: Vec<AccessLogConfig>,
    /// Interval of periodic log entries.
    pub access_log_flush_interval: Option<Duration>,
    /// Also log when the upstream is connected.
    pub flush_access_log_on_connected: bool,
    /// Also log when the session begins.
    pub flush_access_log_on_start: bool,
    /// TLVs for the PROXY headers of upstream connections (`proxy_protocol_tlvs`).
    pub added_tlvs: AddedTlvs,
    /// How they go together with those of the client.
    pub tlv_merge: TlvMerge,
    /// What load balancers that hash go by.
    pub hash_policy: Option<HashPolicy>,
    /// The bytes go to the upstream as the body of a request.
    pub tunneling: Option<TunnelingConfig>,
    /// A cluster that is not there is asked for.
    pub on_demand: Option<OnDemandClusters>,
    /// Path in the configuration.
    pub path: Box<str>,
}

/// `UpstreamConnectMode`. A session begins after the TLS handshake, so that ON_DOWNSTREAM_TLS_HANDSHAKE is `Immediate`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ConnectMode {
    /// When the session begins.
    #[default]
    Immediate,
    /// When the client has sent something.
    OnDownstreamData,
}

/// `HashPolicy` of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashPolicy {
    /// The client's IP.
    SourceIp,
    /// A value of the filter state.
    FilterState(Box<str>),
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
    /// The head of the answer goes to the filter state.
    pub propagate_response_headers: bool,
    /// So do its trailers.
    pub propagate_response_trailers: bool,
    /// The request has an id.
    pub request_id: Option<TunnelRequestId>,
}

/// How the request of a tunnel tells its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelRequestId {
    /// `request_id_header`; default `x-request-id`.
    pub header: Box<str>,
    /// `request_id_metadata_key`; default `tunnel_request_id`.
    pub metadata_key: Box<str>,
}

impl TunnelingConfig {
    fn decode(cx: &mut Context, message: &pb::tcp_proxy::TunnelingConfig) -> Self {
        if !message.post_path.is_empty() && !message.use_post {
            cx.error("Can't set a post path when POST method isn't used");
        }
        check_formatters(cx, &message.formatters);
        let path = if message.post_path.is_empty() { "/" } else { &message.post_path };
        TunnelingConfig {
            hostname: message.hostname.as_str().into(),
            post_path: message.use_post.then(|| path.into()),
            headers_to_add: cx.each("headers_to_add", &message.headers_to_add, HeaderValueOption::decode),
            propagate_response_headers: message.propagate_response_headers,
            propagate_response_trailers: message.propagate_response_trailers,
            request_id: request_id(cx, message),
        }
    }
}

/// The id of requests; there is one where an extension is named.
fn request_id(cx: &mut Context, message: &pb::tcp_proxy::TunnelingConfig) -> Option<TunnelRequestId> {
    let any = message.request_id_extension.as_ref()?.typed_config.as_ref()?;
    cx.at("request_id_extension", |cx| {
        let name = type_name(&any.type_url);
        if name != "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig" {
            cx.error(format!(
                "Failed to create request ID extension: INVALID_ARGUMENT: Didn't find a registered implementation for type: '{name}'"
            ));
        } else {
            // Its fields are about traces, which tunnels do not have.
            cx.at("typed_config", |cx| cx.unpack::<UuidRequestIdConfig>(any));
        }
    });
    let or = |text: &str, default: &str| if text.is_empty() { default.into() } else { text.into() };
    Some(TunnelRequestId {
        header: or(&message.request_id_header, "x-request-id"),
        metadata_key: or(&message.request_id_metadata_key, "tunnel_request_id"),
    })
}

fn backoff(cx: &mut Context, message: &BackoffStrategy) -> Option<(Duration, Duration)> {
    let base = cx.duration("base_interval", &message.base_interval)?;
    let max = cx.duration("max_interval", &message.max_interval).unwrap_or(base.saturating_mul(10));
    if max < base {
        cx.error("max_backoff_interval must be greater or equal to base_backoff_interval");
    }
    Some((base, max))
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
        let connect_mode = match message.upstream_connect_mode() {
            pb::UpstreamConnectMode::OnDownstreamData => ConnectMode::OnDownstreamData,
            pb::UpstreamConnectMode::Immediate | pb::UpstreamConnectMode::OnDownstreamTlsHandshake => {
                ConnectMode::Immediate
            }
        };
        let max_early_data = u32_value(&message.max_early_data_bytes);
        if message.upstream_connect_mode() != pb::UpstreamConnectMode::Immediate && max_early_data.is_none() {
            cx.error("max_early_data_bytes must be set when upstream_connect_mode is not IMMEDIATE");
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
            max_downstream_connection_duration_jitter: share(
                message.max_downstream_connection_duration_jitter_percentage.as_ref(),
            ),
            max_connect_attempts: u32_value(&message.max_connect_attempts).unwrap_or(1),
            backoff: cx.optional("backoff_options", &message.backoff_options, backoff),
            connect_mode,
            max_early_data,
            check_drain_close: bool_value(&message.check_drain_close).unwrap_or(false),
            access_logs: cx.each("access_log", &message.access_log, AccessLogConfig::decode),
            access_log_flush_interval,
            flush_access_log_on_connected: options
                .map_or(message.flush_access_log_on_connected, |options| options.flush_access_log_on_connected),
            flush_access_log_on_start: options.is_some_and(|options| options.flush_access_log_on_start),
            added_tlvs: AddedTlvs::decode(cx, "proxy_protocol_tlvs", &message.proxy_protocol_tlvs),
            tlv_merge: match message.proxy_protocol_tlv_merge_policy() {
                pb::ProxyProtocolTlvMergePolicy::AddIfAbsent => TlvMerge::AddIfAbsent,
                pb::ProxyProtocolTlvMergePolicy::OverwriteByTypeIfExistsOrAdd => TlvMerge::Overwrite,
                pb::ProxyProtocolTlvMergePolicy::AppendIfExistsOrAdd => TlvMerge::Append,
            },
            hash_policy: message.hash_policy.first().and_then(|policy| match policy.policy_specifier.as_ref()? {
                PolicySpecifier::SourceIp(_) => Some(HashPolicy::SourceIp),
                PolicySpecifier::FilterState(state) => Some(HashPolicy::FilterState(state.key.as_str().into())),
            }),
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
    use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
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

    #[test]
    fn early_data_needs_its_room_and_pauses_grow() {
        let mode = pb::UpstreamConnectMode::OnDownstreamTlsHandshake as i32;
        let message = pb::TcpProxy {
            upstream_connect_mode: mode,
            backoff_options: Some(BackoffStrategy {
                base_interval: Some(google::Duration { seconds: 2, nanos: 0 }),
                max_interval: Some(google::Duration { seconds: 1, nanos: 0 }),
            }),
            ..minimal()
        };
        let result = Context::default().run(|cx| TcpProxyConfig::from_message(cx, &message));
        assert_eq!(
            errors(result),
            [
                "max_early_data_bytes must be set when upstream_connect_mode is not IMMEDIATE",
                "backoff_options: max_backoff_interval must be greater or equal to base_backoff_interval"
            ]
        );
        let message = pb::TcpProxy {
            upstream_connect_mode: pb::UpstreamConnectMode::OnDownstreamData as i32,
            max_early_data_bytes: Some(google::UInt32Value { value: 0 }),
            backoff_options: Some(BackoffStrategy {
                base_interval: Some(google::Duration { seconds: 2, nanos: 0 }),
                max_interval: None,
            }),
            ..minimal()
        };
        let proxy = TcpProxyConfig::from_message(&mut Context::default(), &message).unwrap();
        assert_eq!((proxy.connect_mode, proxy.max_early_data), (ConnectMode::OnDownstreamData, Some(0)));
        assert_eq!(proxy.backoff, Some((Duration::from_secs(2), Duration::from_secs(20))));
    }

    #[test]
    fn ids_and_formatters_of_tunnels_are_known_ones() {
        let formatter = TypedExtensionConfig { name: "cel".into(), typed_config: None };
        let tunnel =
            pb::tcp_proxy::TunnelingConfig { hostname: "h".into(), formatters: vec![formatter], ..Default::default() };
        let message = pb::TcpProxy { tunneling_config: Some(tunnel), ..minimal() };
        let result = Context::default().run(|cx| TcpProxyConfig::from_message(cx, &message));
        assert_eq!(errors(result), ["tunneling_config.formatters[0]: Formatter not found: cel"]);
    }
}
