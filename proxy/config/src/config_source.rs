//! Where configuration that is fetched comes from (`envoy.config.core.v3.ConfigSource`).
//!
//! Messages that refer to a source keep it serialized; [`ConfigSource::parse`] reads it when something is to be fetched.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap as PbBootstrap;
use envoy_types::pb::envoy::config::bootstrap::v3::bootstrap::DynamicResources as PbDynamicResources;
use envoy_types::pb::envoy::config::core::v3 as pb;
use prost::Message as _;
use rustc_hash::FxHashSet;

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
    /// Authorities whose `xdstp://` names it knows.
    pub authorities: Box<[Box<str>]>,
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
    /// A file with a collection, in place of a response (`file://` locators).
    CollectionFile(PathBuf),
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
        service: Box<GrpcService>,
        /// Where to when that one does not answer.
        failover: Option<Box<GrpcService>>,
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
        /// Sent with each stream.
        access_token: Option<Box<str>>,
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
    /// The collection of listeners.
    pub lds_locator: Option<Box<str>>,
    /// The collection of clusters.
    pub cds_locator: Option<Box<str>>,
    /// `config_sources`: where `xdstp://` names are looked up, by authority.
    pub authorities: Vec<ConfigSource>,
    /// `default_config_source`: where those of other authorities are.
    pub default_authority: Option<ConfigSource>,
    /// `node_context_params`: what of the node is told in the names of collections.
    pub node_context_params: Vec<Box<str>>,
}

impl DynamicResources {
    /// Whether anything is fetched.
    pub fn is_used(&self) -> bool {
        self.fetches_listeners() || self.fetches_clusters() || self.ads.is_some()
    }

    /// Whether there are listeners to be fetched.
    pub fn fetches_listeners(&self) -> bool {
        self.lds.is_some() || self.lds_locator.is_some()
    }

    /// Whether there are clusters to be fetched.
    pub fn fetches_clusters(&self) -> bool {
        self.cds.is_some() || self.cds_locator.is_some()
    }

    /// All that a bootstrap says of what is fetched.
    pub(crate) fn of_bootstrap(cx: &mut Context, message: &PbBootstrap) -> Self {
        let resources = cx.optional("dynamic_resources", &message.dynamic_resources, Self::decode).unwrap_or_default();
        DynamicResources {
            authorities: cx.each("config_sources", &message.config_sources, |cx, source| {
                let source = authority(cx, source)?;
                if source.authorities.is_empty() {
                    cx.error("xdstp-based non-default config source must have at least one authority.");
                }
                Some(source)
            }),
            default_authority: cx.optional("default_config_source", &message.default_config_source, authority),
            node_context_params: message.node_context_params.iter().map(|name| name.as_str().into()).collect(),
            ..resources
        }
    }

    fn decode(cx: &mut Context, message: &PbDynamicResources) -> Option<Self> {
        let ads = cx.optional("ads_config", &message.ads_config, ApiConfigSource::decode);
        let own = |cx: &mut Context, source: &pb::ConfigSource, collection: bool| {
            let source = ConfigSource::decode_any(cx, source, collection)?;
            if source.kind == SourceKind::Ads && message.ads_config.is_none() {
                cx.error("ads is used, and there is no ads_config");
            }
            Some(source)
        };
        let locator = |text: &str| (!text.is_empty()).then(|| text.into());
        let lds_locator: Option<Box<str>> = locator(&message.lds_resources_locator);
        let cds_locator: Option<Box<str>> = locator(&message.cds_resources_locator);
        Some(DynamicResources {
            lds: cx.optional("lds_config", &message.lds_config, |cx, source| own(cx, source, lds_locator.is_some())),
            cds: cx.optional("cds_config", &message.cds_config, |cx, source| own(cx, source, cds_locator.is_some())),
            ads,
            lds_locator,
            cds_locator,
            ..DynamicResources::default()
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
        Self::decode_any(cx, message, false)
    }

    /// As [`ConfigSource::decode`]; aggregated types may stand only where something makes a stream of its own of them.
    fn decode_any(cx: &mut Context, message: &pb::ConfigSource, aggregated: bool) -> Option<Self> {
        use pb::config_source::ConfigSourceSpecifier as Kind;
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
                let api = cx.at("api_config_source", |cx| ApiConfigSource::decode(cx, source))?;
                if let Api::Grpc { delta, aggregated: true, .. } = api.api
                    && !aggregated
                {
                    let kind = if delta { "AGGREGATED_DELTA_GRPC" } else { "AGGREGATED_GRPC" };
                    cx.error(format!("Unsupported config source {kind}"));
                }
                SourceKind::Api(Box::new(api))
            }
            Some(Kind::Ads(_)) => SourceKind::Ads,
            Some(Kind::Self_(_)) => SourceKind::SelfSource,
            None => {
                cx.error("Missing config source specifier in envoy::config::core::v3::ConfigSource");
                return None;
            }
        };
        let initial_fetch_timeout =
            cx.duration("initial_fetch_timeout", &message.initial_fetch_timeout).unwrap_or(FETCH_TIMEOUT);
        let authorities = message.authorities.iter().map(|authority| authority.name.as_str().into()).collect();
        Some(ConfigSource { kind, initial_fetch_timeout, authorities })
    }
}

/// A source of the bootstrap for `xdstp://` names.
fn authority(cx: &mut Context, message: &pb::ConfigSource) -> Option<ConfigSource> {
    use pb::config_source::ConfigSourceSpecifier as Kind;
    if !matches!(message.config_source_specifier, Some(Kind::ApiConfigSource(_))) {
        cx.error("Only api_config_source type is currently supported for xdstp-based config sources.");
        return None;
    }
    let source = ConfigSource::decode_any(cx, message, true)?;
    let mut seen = FxHashSet::default();
    for name in &source.authorities {
        if !seen.insert(name) {
            cx.error(format!(
                "xdstp-based config source authority {name} is configured more than once in an xdstp-based config source."
            ));
        }
    }
    match &source.kind {
        SourceKind::Api(api) if matches!(api.api, Api::Grpc { aggregated: true, .. }) => {}
        _ => cx.error(
            "xdstp-based config source authority only supports AGGREGATED_GRPC and AGGREGATED_DELTA_GRPC types.",
        ),
    }
    Some(source)
}

impl ApiConfigSource {
    pub(crate) fn decode(cx: &mut Context, message: &pb::ApiConfigSource) -> Option<Self> {
        use pb::api_config_source::ApiType;
        let grpc = |cx: &mut Context, delta, aggregated| {
            if !message.cluster_names.is_empty() {
                cx.error_at(
                    "cluster_names",
                    "envoy.config.core.v3.ApiConfigSource::(AGGREGATED_)(DELTA_)GRPC must not have a cluster name specified",
                );
                return None;
            }
            let Some(service) = message.grpc_services.first() else {
                cx.error("API configs must have either a gRPC service or a cluster name defined");
                return None;
            };
            // Whether there may be two is for the runtime to say.
            if message.grpc_services.len() > 2 {
                cx.error_at("grpc_services", too_many_services(2));
            }
            let decode = |cx: &mut Context, index, service| {
                cx.at("grpc_services", |cx| cx.at_index(index, |cx| GrpcService::decode(cx, service)))
            };
            let failover = message.grpc_services.get(1).and_then(|service| decode(cx, 1, service)).map(Box::new);
            let service = Box::new(decode(cx, 0, service)?);
            Some(Api::Grpc { delta, aggregated, service, failover })
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
            cx.error_at(
                "transport_api_version",
                "V2 xDS transport protocol version is deprecated. The v2 xDS major version has been removed and is no longer \
                 supported. See the advice in https://www.envoyproxy.io/docs/envoy/latest/faq/api/envoy_v3.",
            );
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
            Api::Grpc { service, .. } => match &service.target {
                GrpcTarget::Envoy { cluster, .. } => Some(cluster),
                GrpcTarget::Google { .. } => None,
            },
        }
    }
}

/// That a source names more than `most` services.
pub fn too_many_services(most: usize) -> String {
    format!(
        "envoy.config.core.v3.ApiConfigSource::(AGGREGATED_)(DELTA_)GRPC must have no more than {most} gRPC services specified"
    )
}

fn rest(cx: &mut Context, message: &pb::ApiConfigSource) -> Option<Api> {
    if !message.grpc_services.is_empty() {
        cx.error_at(
            "grpc_services",
            "envoy.config.core.v3.ApiConfigSource, if not a gRPC type, must not have a gRPC service specified",
        );
        return None;
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
    use pb::grpc_service::google_grpc::call_credentials::CredentialSpecifier as CallCredential;
    use pb::grpc_service::google_grpc::channel_credentials::CredentialSpecifier;
    let mut access_token = None;
    for (index, credentials) in message.call_credentials.iter().enumerate() {
        match &credentials.credential_specifier {
            Some(CallCredential::AccessToken(token)) => access_token = Some(token.as_str().into()),
            _ => cx.at("call_credentials", |cx| {
                cx.at_index(index, |cx| cx.error("call credentials of this kind are not implemented yet"));
            }),
        }
    }
    if !message.call_credentials_plugin.is_empty() {
        cx.error_at("call_credentials_plugin", "credential plugins are not implemented yet");
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
    if access_token.is_some() && tls.is_none() {
        cx.error_at("call_credentials", "an access token needs ssl_credentials: it must not be sent in the clear");
    }
    Some(GrpcTarget::Google {
        uri: message.target_uri.as_str().into(),
        tls,
        access_token,
        stat_prefix: message.stat_prefix.as_str().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::google::protobuf::Duration as PbDuration;
    use envoy_types::pb::xds::core::v3::Authority;

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
        assert!(matches!(source.api, Api::Grpc { delta: true, aggregated: false, failover: None, .. }));
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

    #[test]
    fn sources_of_authorities_are_aggregated_and_name_each_once() {
        use pb::config_source::ConfigSourceSpecifier as Kind;
        let source = |api_type, authorities: &[&str]| {
            let service = pb::GrpcService {
                target_specifier: Some(pb::grpc_service::TargetSpecifier::EnvoyGrpc(Default::default())),
                ..Default::default()
            };
            let api = pb::ApiConfigSource { grpc_services: vec![service], ..api(api_type) };
            let authority = |name: &&str| Authority { name: (*name).into() };
            pb::ConfigSource {
                authorities: authorities.iter().map(authority).collect(),
                config_source_specifier: Some(Kind::ApiConfigSource(api)),
                ..Default::default()
            }
        };
        let decode = |config_sources: Vec<pb::ConfigSource>| {
            let message = PbBootstrap { config_sources, ..Default::default() };
            Context::default().run(|cx| Some(DynamicResources::of_bootstrap(cx, &message)))
        };
        use pb::api_config_source::ApiType;
        let good = decode(vec![source(ApiType::AggregatedGrpc, &["a", "b"])]).unwrap();
        assert_eq!(*good.authorities[0].authorities, ["a".into(), "b".into()]);
        for (bad, wanted) in [
            (source(ApiType::AggregatedGrpc, &[]), "at least one authority"),
            (source(ApiType::AggregatedGrpc, &["a", "a"]), "a is configured more than once"),
            (source(ApiType::Grpc, &["a"]), "only supports AGGREGATED_GRPC"),
            (pb::ConfigSource::default(), "Only api_config_source type"),
        ] {
            let found = errors(decode(vec![bad]));
            assert!(found.len() == 1 && found[0].contains(wanted), "{found:?}");
        }
        let alone = source(ApiType::AggregatedDeltaGrpc, &[]);
        let parsed = ConfigSource::parse(&alone.encode_to_vec(), FieldPath::root());
        assert_eq!(errors(parsed), ["Unsupported config source AGGREGATED_DELTA_GRPC"]);
    }
}
