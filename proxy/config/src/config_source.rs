//! Where configuration that is fetched comes from (`envoy.config.core.v3.ConfigSource`).
//!
//! Messages that refer to a source keep it serialized; [`ConfigSource::parse`] reads it when something is to be fetched.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::bootstrap::v3::bootstrap::DynamicResources as PbDynamicResources;
use envoy_types::pb::envoy::config::core::v3 as pb;
use prost::Message as _;

use crate::data_source::DataSource;
use crate::decode::{Context, serialized, u32_value};
use crate::diagnostics::ConfigError;
use crate::paths::FieldPath;

/// `initial_fetch_timeout` where it is not set.
const FETCH_TIMEOUT: Duration = Duration::from_secs(15);
/// `request_timeout` where it is not set.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// A source.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigSource {
    /// What kind.
    pub kind: SourceKind,
    /// How long to wait for the first answer; zero waits for ever.
    pub initial_fetch_timeout: Duration,
}

/// Kinds of sources.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceKind {
    /// `path` and `path_config_source`.
    Path {
        /// The file.
        path: PathBuf,
        /// The directory in which a move shows a change; the file's own otherwise.
        watched_directory: Option<PathBuf>,
        /// A write in that directory shows one, too.
        watch_modify: bool,
    },
    /// The aggregated stream of the bootstrap.
    Ads,
    /// The source that the message with this source came from.
    SelfSource,
    /// A server.
    Api(Box<ApiConfigSource>),
}

/// `ApiConfigSource`.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiConfigSource {
    /// Which protocol.
    pub api: Api,
    /// `rate_limit_settings`, where present.
    pub rate_limit: Option<RateLimitSettings>,
    /// The node goes in the first message of a stream only.
    pub set_node_on_first_message_only: bool,
}

/// Protocols.
#[derive(Debug, Clone, PartialEq)]
pub enum Api {
    /// Polling.
    Rest {
        /// The cluster polled.
        cluster: Box<str>,
        /// Time between two polls.
        refresh_delay: Duration,
        /// Deadline of a poll.
        request_timeout: Duration,
    },
    /// A gRPC stream.
    Grpc {
        /// Changes only, instead of the state of the world.
        delta: bool,
        /// `AGGREGATED_GRPC` and `AGGREGATED_DELTA_GRPC`.
        aggregated: bool,
        /// Where to.
        service: GrpcService,
    },
}

/// `GrpcService`.
#[derive(Debug, Clone, PartialEq)]
pub struct GrpcService {
    /// Who is called.
    pub target: GrpcTarget,
    /// Headers of each stream: name and value.
    pub initial_metadata: Vec<(Box<str>, Box<str>)>,
    /// `retry_policy.retry_back_off`: base and maximum.
    pub backoff: Option<(Duration, Duration)>,
}

/// Who is called.
#[derive(Debug, Clone, PartialEq)]
pub enum GrpcTarget {
    /// A cluster.
    Envoy {
        /// Its name.
        cluster: Box<str>,
        /// `:authority`; the cluster's name where empty.
        authority: Box<str>,
        /// Largest message taken.
        max_receive_message_length: Option<u32>,
        /// No `x-envoy-internal` and `x-forwarded-for`.
        skip_envoy_headers: bool,
    },
    /// A target of its own.
    Google {
        /// `target_uri`.
        uri: Box<str>,
        /// TLS, or None for plain text.
        tls: Option<GoogleTls>,
        /// `stat_prefix`.
        stat_prefix: Box<str>,
    },
}

/// `SslCredentials`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GoogleTls {
    /// Trusted authorities; the system's where absent.
    pub root_certs: Option<DataSource>,
    /// Own key.
    pub private_key: Option<DataSource>,
    /// Own certificate.
    pub cert_chain: Option<DataSource>,
}

/// Clusters that are asked for when they are needed: `OnDemandCds`, and `on_demand` of the TCP proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnDemandClusters {
    /// Serialized `ConfigSource`.
    pub source: Bytes,
    /// How long whoever needs one waits.
    pub timeout: Duration,
}

impl OnDemandClusters {
    /// Decodes the fields of such a message at the current path, of which the source is under the name `field`. None without
    /// a source.
    pub fn decode(
        cx: &mut Context,
        field: &'static str,
        source: &Option<pb::ConfigSource>,
        timeout: &Option<envoy_types::pb::google::protobuf::Duration>,
        default: Duration,
    ) -> Option<Self> {
        let source = source.as_ref()?;
        cx.at(field, |cx| ConfigSource::decode(cx, source));
        let timeout = cx.duration("timeout", timeout).unwrap_or(default);
        Some(OnDemandClusters { source: serialized(source), timeout })
    }
}

/// `RateLimitSettings`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimitSettings {
    /// Default 100.
    pub max_tokens: u32,
    /// Per second; default 10.
    pub fill_rate: f64,
}

/// `dynamic_resources` of the bootstrap.
#[derive(Debug, Clone, Default)]
pub struct DynamicResources {
    /// Where listeners come from.
    pub lds: Option<ConfigSource>,
    /// Where clusters come from.
    pub cds: Option<ConfigSource>,
    /// The aggregated stream.
    pub ads: Option<ApiConfigSource>,
}

impl DynamicResources {
    /// Whether anything is fetched.
    pub fn is_used(&self) -> bool {
        self.lds.is_some() || self.cds.is_some() || self.ads.is_some()
    }

    pub(crate) fn decode(cx: &mut Context, message: &PbDynamicResources) -> Option<Self> {
        let ads = cx.optional("ads_config", &message.ads_config, ApiConfigSource::decode);
        let own = |cx: &mut Context, source: &pb::ConfigSource| {
            let source = ConfigSource::decode(cx, source)?;
            if source.kind == SourceKind::Ads && message.ads_config.is_none() {
                cx.error("ads is used, and there is no ads_config");
            }
            Some(source)
        };
        for (set, field) in [
            (!message.lds_resources_locator.is_empty(), "lds_resources_locator"),
            (!message.cds_resources_locator.is_empty(), "cds_resources_locator"),
        ] {
            if set {
                cx.error_at(field, "xdstp resource locators are not implemented yet");
            }
        }
        Some(DynamicResources {
            lds: cx.optional("lds_config", &message.lds_config, own),
            cds: cx.optional("cds_config", &message.cds_config, own),
            ads,
        })
    }
}

impl ConfigSource {
    /// Reads a source that was kept serialized, such as that of an EDS cluster.
    ///
    /// # Errors
    /// Everything that is wrong with it; paths begin at `path`.
    pub fn parse(bytes: &[u8], path: FieldPath) -> Result<Self, Vec<ConfigError>> {
        match pb::ConfigSource::decode(bytes) {
            Ok(message) => Context::new(path).run(|cx| Self::decode(cx, &message)),
            Err(error) => Err(vec![ConfigError::new(path, error.to_string())]),
        }
    }

    pub(crate) fn decode(cx: &mut Context, message: &pb::ConfigSource) -> Option<Self> {
        use pb::config_source::ConfigSourceSpecifier as Kind;
        if !message.authorities.is_empty() {
            cx.error_at("authorities", "xdstp authorities are not implemented yet");
        }
        let kind = match &message.config_source_specifier {
            Some(Kind::Path(path)) => {
                SourceKind::Path { path: path.into(), watched_directory: None, watch_modify: false }
            }
            Some(Kind::PathConfigSource(source)) => SourceKind::Path {
                path: source.path.as_str().into(),
                watched_directory: source.watched_directory.as_ref().map(|directory| directory.path.as_str().into()),
                watch_modify: source.watched_directory.as_ref().is_some_and(|directory| directory.watch_modify),
            },
            Some(Kind::ApiConfigSource(source)) => {
                SourceKind::Api(Box::new(cx.at("api_config_source", |cx| ApiConfigSource::decode(cx, source))?))
            }
            Some(Kind::Ads(_)) => SourceKind::Ads,
            Some(Kind::Self_(_)) => SourceKind::SelfSource,
            None => {
                cx.error(
                    "Missing config source specifier in envoy.config.core.v3.ConfigSource: set one of path_config_source, \
                     api_config_source, ads, self",
                );
                return None;
            }
        };
        let initial_fetch_timeout =
            cx.duration("initial_fetch_timeout", &message.initial_fetch_timeout).unwrap_or(FETCH_TIMEOUT);
        Some(ConfigSource { kind, initial_fetch_timeout })
    }
}

impl ApiConfigSource {
    pub(crate) fn decode(cx: &mut Context, message: &pb::ApiConfigSource) -> Option<Self> {
        use pb::api_config_source::ApiType;
        let grpc = |cx: &mut Context, delta, aggregated| {
            if !message.cluster_names.is_empty() {
                cx.error_at(
                    "cluster_names",
                    "envoy.config.core.v3.ApiConfigSource::GRPC must not have a cluster name specified",
                );
            }
            let Some(service) = message.grpc_services.first() else {
                cx.error("API configs must have either a gRPC service or a cluster name defined");
                return None;
            };
            if message.grpc_services.len() > 1 {
                cx.error_at(
                    "grpc_services",
                    "only a single gRPC service is supported: failover is not implemented yet",
                );
            }
            let service = cx.at("grpc_services", |cx| cx.at_index(0, |cx| GrpcService::decode(cx, service)))?;
            Some(Api::Grpc { delta, aggregated, service })
        };
        let api = match message.api_type() {
            ApiType::Grpc => grpc(cx, false, false)?,
            ApiType::DeltaGrpc => grpc(cx, true, false)?,
            ApiType::AggregatedGrpc => grpc(cx, false, true)?,
            ApiType::AggregatedDeltaGrpc => grpc(cx, true, true)?,
            ApiType::Rest => rest(cx, message)?,
            #[expect(deprecated, reason = "it stands for what was removed")]
            ApiType::DeprecatedAndUnavailableDoNotUse => {
                cx.error_at(
                    "api_type",
                    "REST_LEGACY no longer a supported ApiConfigSource; set REST, GRPC or DELTA_GRPC",
                );
                return None;
            }
        };
        if message.transport_api_version() == pb::ApiVersion::V2 {
            cx.error_at("transport_api_version", "the V2 protocol has been removed: set V3");
        }
        let rate_limit = message.rate_limit_settings.as_ref().map(|settings| RateLimitSettings {
            max_tokens: u32_value(&settings.max_tokens).unwrap_or(100),
            fill_rate: settings.fill_rate.as_ref().map_or(10.0, |rate| rate.value),
        });
        let set_node_on_first_message_only = message.set_node_on_first_message_only;
        Some(ApiConfigSource { api, rate_limit, set_node_on_first_message_only })
    }

    /// The cluster that is called, if it is one.
    pub fn cluster(&self) -> Option<&str> {
        match &self.api {
            Api::Rest { cluster, .. } => Some(cluster),
            Api::Grpc { service: GrpcService { target: GrpcTarget::Envoy { cluster, .. }, .. }, .. } => Some(cluster),
            Api::Grpc { .. } => None,
        }
    }
}

fn rest(cx: &mut Context, message: &pb::ApiConfigSource) -> Option<Api> {
    if !message.grpc_services.is_empty() {
        cx.error_at(
            "grpc_services",
            "envoy.config.core.v3.ApiConfigSource, if not a gRPC type, must not have a gRPC service specified",
        );
    }
    if message.cluster_names.len() > 1 {
        cx.error_at(
            "cluster_names",
            "envoy.config.core.v3.ApiConfigSource must have a singleton cluster name specified",
        );
    }
    let refresh_delay = cx.duration("refresh_delay", &message.refresh_delay);
    if refresh_delay.is_none() {
        cx.error("refresh_delay is required for REST API configuration sources");
    }
    let request_timeout = cx.duration("request_timeout", &message.request_timeout).unwrap_or(REQUEST_TIMEOUT);
    let Some(cluster) = message.cluster_names.first() else {
        cx.error("API configs must have either a gRPC service or a cluster name defined");
        return None;
    };
    Some(Api::Rest { cluster: cluster.as_str().into(), refresh_delay: refresh_delay?, request_timeout })
}

impl GrpcService {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &pb::GrpcService) -> Option<Self> {
        use pb::grpc_service::TargetSpecifier;
        let (target, retry) = match &message.target_specifier {
            Some(TargetSpecifier::EnvoyGrpc(grpc)) => {
                let target = GrpcTarget::Envoy {
                    cluster: grpc.cluster_name.as_str().into(),
                    authority: grpc.authority.as_str().into(),
                    max_receive_message_length: u32_value(&grpc.max_receive_message_length),
                    skip_envoy_headers: grpc.skip_envoy_headers,
                };
                (target, grpc.retry_policy.as_ref())
            }
            Some(TargetSpecifier::GoogleGrpc(grpc)) => (cx.at("google_grpc", |cx| google(cx, grpc))?, None),
            None => {
                cx.error("set one of envoy_grpc, google_grpc");
                return None;
            }
        };
        let retry = retry.or(message.retry_policy.as_ref());
        let backoff = retry.and_then(|policy| policy.retry_back_off.as_ref()).and_then(|backoff| {
            let base = cx.duration("base_interval", &backoff.base_interval)?;
            let max = cx.duration("max_interval", &backoff.max_interval).unwrap_or(base.saturating_mul(10));
            Some((base, max.max(base)))
        });
        let initial_metadata = message.initial_metadata.iter();
        let initial_metadata =
            initial_metadata.map(|header| (header.key.as_str().into(), header.value.as_str().into())).collect();
        Some(GrpcService { target, initial_metadata, backoff })
    }
}

fn google(cx: &mut Context, message: &pb::grpc_service::GoogleGrpc) -> Option<GrpcTarget> {
    use pb::grpc_service::google_grpc::channel_credentials::CredentialSpecifier;
    if !message.call_credentials.is_empty() || !message.call_credentials_plugin.is_empty() {
        cx.error_at("call_credentials", "call credentials are not implemented yet");
    }
    let credentials = message.channel_credentials.as_ref().and_then(|c| c.credential_specifier.as_ref());
    let tls = match credentials {
        None | Some(CredentialSpecifier::LocalCredentials(_)) => None,
        Some(CredentialSpecifier::GoogleDefault(_)) => {
            cx.error_at("channel_credentials", "google_default credentials are not implemented yet");
            None
        }
        Some(CredentialSpecifier::SslCredentials(ssl)) => cx.at("channel_credentials", |cx| {
            Some(GoogleTls {
                root_certs: cx.optional("root_certs", &ssl.root_certs, DataSource::decode),
                private_key: cx.optional("private_key", &ssl.private_key, DataSource::decode),
                cert_chain: cx.optional("cert_chain", &ssl.cert_chain, DataSource::decode),
            })
        }),
    };
    Some(GrpcTarget::Google {
        uri: message.target_uri.as_str().into(),
        tls,
        stat_prefix: message.stat_prefix.as_str().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::google::protobuf::Duration as PbDuration;

    fn api(api_type: pb::api_config_source::ApiType) -> pb::ApiConfigSource {
        pb::ApiConfigSource { api_type: api_type as i32, ..Default::default() }
    }

    fn parse(specifier: pb::config_source::ConfigSourceSpecifier) -> Result<ConfigSource, Vec<ConfigError>> {
        let message = pb::ConfigSource { config_source_specifier: Some(specifier), ..Default::default() };
        ConfigSource::parse(&message.encode_to_vec(), FieldPath::root())
    }

    #[test]
    fn every_kind_of_source_is_read() {
        use pb::config_source::ConfigSourceSpecifier as Kind;
        let path = parse(Kind::Path("/a".into())).unwrap();
        assert_eq!(path.kind, SourceKind::Path { path: "/a".into(), watched_directory: None, watch_modify: false });
        assert_eq!(path.initial_fetch_timeout, Duration::from_secs(15));
        assert_eq!(parse(Kind::Ads(Default::default())).unwrap().kind, SourceKind::Ads);
        let mut message = api(pb::api_config_source::ApiType::DeltaGrpc);
        message.grpc_services.push(pb::GrpcService {
            target_specifier: Some(pb::grpc_service::TargetSpecifier::EnvoyGrpc(pb::grpc_service::EnvoyGrpc {
                cluster_name: "xds".into(),
                ..Default::default()
            })),
            ..Default::default()
        });
        let SourceKind::Api(source) = parse(Kind::ApiConfigSource(message)).unwrap().kind else { panic!("an API") };
        assert_eq!(source.cluster(), Some("xds"));
        assert!(matches!(source.api, Api::Grpc { delta: true, aggregated: false, .. }));
    }

    #[test]
    fn a_rest_source_needs_a_cluster_and_a_delay() {
        use pb::config_source::ConfigSourceSpecifier as Kind;
        let mut message = api(pb::api_config_source::ApiType::Rest);
        assert_eq!(errors(parse(Kind::ApiConfigSource(message.clone()))).len(), 2);
        message.cluster_names.push("xds".into());
        message.refresh_delay = Some(PbDuration { seconds: 3, nanos: 0 });
        let SourceKind::Api(source) = parse(Kind::ApiConfigSource(message)).unwrap().kind else { panic!("an API") };
        assert!(matches!(source.api, Api::Rest { refresh_delay, .. } if refresh_delay == Duration::from_secs(3)));
    }

    #[test]
    fn ads_without_an_ads_config_is_an_error() {
        let ads = pb::ConfigSource {
            config_source_specifier: Some(pb::config_source::ConfigSourceSpecifier::Ads(Default::default())),
            ..Default::default()
        };
        let message = PbDynamicResources { lds_config: Some(ads), ..Default::default() };
        let result = Context::default().run(|cx| DynamicResources::decode(cx, &message));
        assert_eq!(errors(result), ["lds_config: ads is used, and there is no ads_config"]);
    }
}
