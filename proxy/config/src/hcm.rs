//! The HTTP connection manager's configuration.

use crate::access_log::{AccessLogConfig, AccessLogFilter, LogFormat};
use crate::discovered::ExtensionSource;
use crate::header_mutation::HeaderMutation;
use crate::matchers::{CidrRange, StringMatcher};
use crate::matching::MatchTree;
use crate::route::RouteConfiguration;
use crate::typed_config::TypedConfig;
use std::sync::Arc;
use std::time::Duration;

pub(crate) mod decode;
mod protocol_options;
mod scoped_routes;

pub use decode::{CLUSTER_UPSTREAM, ROUTER_UPSTREAM};
pub use scoped_routes::{Extract, KeyFragment, ScopeSource, ScopedRouteConfiguration, ScopedRoutesConfig};

/// `HttpConnectionManager`.
#[derive(Debug, Clone)]
pub struct HcmConfig {
    /// Stats are named `http.<stat_prefix>.`.
    pub stat_prefix: Box<str>,
    /// Which protocols are spoken.
    pub codec_type: CodecType,
    /// Where routes come from.
    pub routes: RouteSource,
    /// HTTP filters in order, the terminal one last.
    pub http_filters: Vec<HttpFilterConfig>,
    /// HTTP/1 options.
    pub http1: Http1Options,
    /// HTTP/2 options.
    pub http2: Http2Options,
    /// Default `envoy`.
    pub server_name: Box<str>,
    /// What is done with `server`.
    pub server_header_transformation: ServerHeaderTransformation,
    /// Force `x-forwarded-proto` and `:scheme` (`scheme_header_transformation`).
    pub scheme_overwrite: Option<Box<str>>,
    /// `match_upstream`.
    pub scheme_match_upstream: bool,
    /// Header block limit of requests in KiB; default 60.
    pub max_request_headers_kb: u32,
    /// Default 100.
    pub max_headers_count: u32,
    /// Connection idle timeout; default 1 h, None when 0.
    pub idle_timeout: Option<Duration>,
    /// `max_connection_duration`.
    pub max_connection_duration: Option<Duration>,
    /// The duration is longer by up to this share (`max_connection_duration_jitter`).
    pub max_connection_duration_jitter: f64,
    /// `http1_safe_max_connection_duration`.
    pub http1_safe_max_connection_duration: bool,
    /// `max_stream_duration` of common options.
    pub max_stream_duration: Option<Duration>,
    /// `max_requests_per_connection`; None for no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Default ALLOW.
    pub headers_with_underscores_action: UnderscoresAction,
    /// Default 5 min, None when 0.
    pub stream_idle_timeout: Option<Duration>,
    /// None: the idle timeout of the route or of streams; Some(None): off.
    pub stream_flush_timeout: Option<Option<Duration>>,
    /// None: off.
    pub request_timeout: Option<Duration>,
    /// None: off.
    pub request_headers_timeout: Option<Duration>,
    /// Time between GOAWAY notices; default 5 s.
    pub drain_timeout: Duration,
    /// It is longer by up to this share (`drain_timeout_jitter`).
    pub drain_timeout_jitter: f64,
    /// Default 1 s.
    pub delayed_close_timeout: Duration,
    /// Access logs.
    pub access_logs: Vec<AccessLogConfig>,
    /// `access_log_options.access_log_flush_interval`.
    pub access_log_flush_interval: Option<Duration>,
    /// A line of the access log when a tunnel is established.
    pub flush_access_log_on_tunnel: bool,
    /// `flush_access_log_on_new_request`.
    pub flush_access_log_on_new_request: bool,
    /// Trust the connection's address instead of XFF.
    pub use_remote_address: bool,
    /// Trusted proxies to the right of XFF.
    pub xff_num_trusted_hops: u32,
    /// `original_ip_detection_extensions`.
    pub original_ip_detection: Vec<OriginalIpDetection>,
    /// Mutations of request headers before everything else looks at them, a list per extension.
    pub early_header_mutations: Vec<Vec<HeaderMutation>>,
    /// Ranges that count as internal; default none (1.33+).
    pub internal_cidrs: Vec<CidrRange>,
    /// `internal_address_config.unix_sockets`.
    pub internal_unix_sockets: bool,
    /// Say which cluster and node forwards (`add_user_agent`).
    pub add_user_agent: bool,
    /// Ports that say which scheme a client used that a PROXY header or the original destination speaks of.
    pub forward_proto: Option<Box<ForwardProto>>,
    /// Leave XFF alone.
    pub skip_xff_append: bool,
    /// Value for `via`; empty adds none.
    pub via: Box<str>,
    /// Make a request id where missing; default true.
    pub generate_request_id: bool,
    /// Keep an id that an external client sent.
    pub preserve_external_request_id: bool,
    /// Put the id on responses too.
    pub always_set_request_id_in_response: bool,
    /// `uuid` extension: `pack_trace_reason` default true, `use_request_id_for_trace_sampling` default true.
    pub request_id_pack_trace_reason: bool,
    /// `forward_client_cert_details`.
    pub forward_client_cert: ForwardClientCert,
    /// Fields for `x-forwarded-client-cert`.
    pub client_cert_details: ClientCertDetails,
    /// What goes before the two above for some requests.
    pub forward_client_cert_matcher: Option<Box<MatchTree<ClientCertForwarding>>>,
    /// Forward 100-continue instead of answering it here.
    pub proxy_100_continue: bool,
    /// Upgrades allowed by name, lower-cased, each with its own filters where given.
    pub upgrades: Vec<UpgradeConfig>,
    /// Default: runtime `http_connection_manager.normalize_path`, off.
    pub normalize_path: bool,
    /// Default false.
    pub merge_slashes: bool,
    /// Default KEEP_UNCHANGED.
    pub escaped_slashes_action: EscapedSlashesAction,
    /// Local reply rewriting.
    pub local_reply: Option<LocalReplyConfig>,
    /// What `proxy-status` says of errors; None for no such header.
    pub proxy_status: Option<Box<ProxyStatusConfig>>,
    /// What to do with a port in the host.
    pub strip_port: StripPort,
    /// Remove a trailing dot of the host.
    pub strip_trailing_host_dot: bool,
    /// Invalid HTTP resets only the stream instead of the connection.
    pub stream_error_on_invalid_http_message: bool,
    /// Upstream connections may tell the client's addresses (`add_proxy_protocol_connection_state`); default true.
    pub add_proxy_protocol_connection_state: bool,
    /// `append_x_forwarded_port`.
    pub append_x_forwarded_port: bool,
    /// `append_local_overload`.
    pub append_local_overload: bool,
    /// Serialized `tracing` message, for the tracers to come.
    pub tracing: Option<bytes::Bytes>,
    /// Path in the configuration.
    pub path: Box<str>,
}

/// Where an HCM's routes come from.
#[derive(Debug, Clone)]
pub enum RouteSource {
    /// `route_config` in place.
    Static(Arc<RouteConfiguration>),
    /// RDS under a name; the serialized `ConfigSource` beside it.
    Rds {
        /// Route configuration name.
        name: Box<str>,
        /// Serialized `ConfigSource`.
        source: bytes::Bytes,
    },
    /// A table chosen by a key of each request.
    Scoped(Arc<ScopedRoutesConfig>),
}

/// `codec_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CodecType {
    /// By ALPN, else by the first bytes.
    #[default]
    Auto,
    /// HTTP/1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
    /// HTTP/3 only.
    Http3,
}

/// One HTTP filter of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpFilterConfig {
    /// Name, which per-route configuration refers to.
    pub name: Arc<str>,
    /// The extension's message; with `config_discovery` its default, of no type where there is none.
    pub config: TypedConfig,
    /// Skipped when the extension is not known.
    pub is_optional: bool,
    /// Off unless a route switches it on.
    pub disabled: bool,
    /// The configuration is fetched.
    pub config_discovery: Option<Arc<ExtensionSource>>,
}

/// `Http1ProtocolOptions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http1Options {
    /// Default true.
    pub allow_absolute_url: bool,
    /// Default false.
    pub accept_http_10: bool,
    /// Host for 1.0 requests without one.
    pub default_host_for_http_10: Box<str>,
    /// How names are written.
    pub header_key_format: HeaderKeyFormat,
    /// Send and accept trailers; default false.
    pub enable_trailers: bool,
    /// Default false.
    pub allow_chunked_length: bool,
    /// `override_stream_error_on_invalid_http_message`.
    pub stream_error_on_invalid_http_message: Option<bool>,
    /// `send_fully_qualified_url` (upstream).
    pub send_fully_qualified_url: bool,
    /// `ignore_http_11_upgrade`, lower-case.
    pub ignore_http_11_upgrade: Vec<StringMatcherEq>,
    /// `allow_custom_methods`.
    pub allow_custom_methods: bool,
}

/// A [`StringMatcher`] that compares by its source text, so that options that hold one stay comparable.
#[derive(Debug, Clone)]
pub struct StringMatcherEq(pub StringMatcher);

impl PartialEq for StringMatcherEq {
    fn eq(&self, other: &Self) -> bool {
        format!("{:?}", self.0) == format!("{:?}", other.0)
    }
}
impl Eq for StringMatcherEq {}

impl Default for Http1Options {
    fn default() -> Self {
        Http1Options {
            allow_absolute_url: true,
            accept_http_10: false,
            default_host_for_http_10: "".into(),
            header_key_format: HeaderKeyFormat::Lower,
            enable_trailers: false,
            allow_chunked_length: false,
            stream_error_on_invalid_http_message: None,
            send_fully_qualified_url: false,
            ignore_http_11_upgrade: Vec::new(),
            allow_custom_methods: false,
        }
    }
}

/// How HTTP/1 header names are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeaderKeyFormat {
    /// As they are kept.
    #[default]
    Lower,
    /// `proper_case_words`.
    ProperCase,
    /// `preserve_case` formatter.
    PreserveCase,
}

/// `Http2ProtocolOptions` with Envoy's defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http2Options {
    /// Default 4096.
    pub hpack_table_size: u32,
    /// Default 1024.
    pub max_concurrent_streams: u32,
    /// Default 16 MiB.
    pub initial_stream_window_size: u32,
    /// Default 24 MiB.
    pub initial_connection_window_size: u32,
    /// Extended CONNECT.
    pub allow_connect: bool,
    /// Default 10,000.
    pub max_outbound_frames: u32,
    /// Default 1,000.
    pub max_outbound_control_frames: u32,
    /// Default 1.
    pub max_consecutive_inbound_frames_with_empty_payload: u32,
    /// Default 100.
    pub max_inbound_priority_frames_per_stream: u32,
    /// Default 10.
    pub max_inbound_window_update_frames_per_data_frame_sent: u32,
    /// Resets only the stream.
    pub stream_error_on_invalid_http_message: Option<bool>,
    /// `connection_keepalive.interval`.
    pub keepalive_interval: Option<Duration>,
    /// `connection_keepalive.timeout`.
    pub keepalive_timeout: Duration,
    /// `connection_keepalive.interval_jitter`, per mille.
    pub keepalive_jitter: u32,
    /// `connection_keepalive.connection_idle_interval`.
    pub keepalive_idle_interval: Option<Duration>,
    /// `max_header_field_size_kb`.
    pub max_header_field_size_kb: Option<u32>,
    /// `stream_reset_burst`: RST_STREAM frames that a client may send at once.
    pub stream_reset_burst: u64,
    /// `stream_reset_rate`: how many more with each second.
    pub stream_reset_rate: u64,
    /// `disallow_obs_text`: a value with bytes outside ASCII makes a message invalid.
    pub disallow_obs_text: bool,
    /// `custom_settings_parameters` that no other field is for: identifier and value.
    pub custom_settings: Box<[(u16, u32)]>,
}

impl Default for Http2Options {
    fn default() -> Self {
        Http2Options {
            hpack_table_size: 4096,
            max_concurrent_streams: 1024,
            initial_stream_window_size: 16 * 1024 * 1024,
            initial_connection_window_size: 24 * 1024 * 1024,
            allow_connect: false,
            max_outbound_frames: 10_000,
            max_outbound_control_frames: 1_000,
            max_consecutive_inbound_frames_with_empty_payload: 1,
            max_inbound_priority_frames_per_stream: 100,
            max_inbound_window_update_frames_per_data_frame_sent: 10,
            stream_error_on_invalid_http_message: None,
            keepalive_interval: None,
            keepalive_timeout: Duration::from_secs(20),
            keepalive_jitter: 150,
            keepalive_idle_interval: None,
            max_header_field_size_kb: None,
            stream_reset_burst: 1000,
            stream_reset_rate: 33,
            disallow_obs_text: false,
            custom_settings: Box::default(),
        }
    }
}

/// `server_header_transformation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerHeaderTransformation {
    /// Replace.
    #[default]
    Overwrite,
    /// Only where absent.
    AppendIfAbsent,
    /// Leave it.
    PassThrough,
}

/// `headers_with_underscores_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnderscoresAction {
    /// Let them pass.
    #[default]
    Allow,
    /// 400.
    RejectRequest,
    /// Remove the header.
    DropHeader,
}

/// `path_with_escaped_slashes_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EscapedSlashesAction {
    /// Leave them.
    #[default]
    KeepUnchanged,
    /// 400.
    RejectRequest,
    /// 307 to the unescaped path.
    UnescapeAndRedirect,
    /// Unescape and go on.
    UnescapeAndForward,
}

/// `strip_port_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StripPort {
    /// Leave the port.
    #[default]
    No,
    /// Remove it when it is the listener's own.
    Matching,
    /// Remove any.
    Any,
}

/// `forward_client_cert_details`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardClientCert {
    /// Remove the header.
    #[default]
    Sanitize,
    /// Forward only over mTLS.
    ForwardOnly,
    /// Append over mTLS.
    AppendForward,
    /// Replace over mTLS.
    SanitizeSet,
    /// Always forward.
    AlwaysForwardOnly,
}

/// `set_current_client_cert_details`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientCertDetails {
    /// Subject.
    pub subject: bool,
    /// PEM certificate.
    pub cert: bool,
    /// PEM chain.
    pub chain: bool,
    /// Issuer.
    pub issuer: bool,
    /// DNS SANs.
    pub dns: bool,
    /// URI SAN.
    pub uri: bool,
}

/// What is done with `x-forwarded-client-cert` (`ForwardClientCertConfig`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientCertForwarding {
    /// How the header is handled.
    pub mode: ForwardClientCert,
    /// Its fields.
    pub details: ClientCertDetails,
}

/// `forward_proto_config`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ForwardProto {
    /// Destination ports of clients that spoke https.
    pub https_ports: Box<[u32]>,
    /// Destination ports of clients that spoke http.
    pub http_ports: Box<[u32]>,
}

/// `proxy_status_config`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyStatusConfig {
    /// Without the parameter `details`.
    pub remove_details: bool,
    /// Details without those of the connection's end.
    pub remove_connection_termination_details: bool,
    /// Details without response flags.
    pub remove_response_flags: bool,
    /// The status becomes what RFC 9209 recommends for the error.
    pub set_recommended_response_code: bool,
    /// Who says it.
    pub name: ProxyStatusName,
}

/// The name that `proxy-status` begins with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ProxyStatusName {
    /// The server name of the connection manager.
    #[default]
    ServerName,
    /// The node's id.
    NodeId,
    /// This.
    Literal(Box<str>),
}

/// `original_ip_detection_extensions`.
#[derive(Debug, Clone)]
pub enum OriginalIpDetection {
    /// `custom_header`.
    CustomHeader {
        /// Lower-cased name.
        header: Box<str>,
        /// Treat addresses found so as trusted (internal).
        trusted: bool,
        /// Status when the header is missing or bad.
        reject_with: Option<u16>,
    },
    /// `xff`.
    Xff {
        /// `xff_num_trusted_hops`.
        num_trusted_hops: u32,
        /// `xff_trusted_cidrs`.
        trusted_cidrs: Vec<CidrRange>,
        /// `skip_xff_append`.
        skip_append: bool,
    },
}

/// `UpgradeConfig`.
#[derive(Debug, Clone)]
pub struct UpgradeConfig {
    /// Lower-cased upgrade type: `websocket`, `connect`, `connect-udp`...
    pub upgrade_type: Box<str>,
    /// Own filter chain; empty uses the HCM's.
    pub filters: Vec<HttpFilterConfig>,
    /// Default true on the HCM.
    pub enabled: bool,
}

/// `LocalReplyConfig`.
#[derive(Debug, Clone)]
pub struct LocalReplyConfig {
    /// Tried in order.
    pub mappers: Vec<LocalReplyMapper>,
    /// Format of all local replies' bodies.
    pub body_format: Option<BodyFormat>,
}

/// `ResponseMapper`.
#[derive(Debug, Clone)]
pub struct LocalReplyMapper {
    /// When it applies.
    pub filter: AccessLogFilter,
    /// New status.
    pub status_code: Option<u16>,
    /// New body.
    pub body: Option<crate::data_source::DataSource>,
    /// Format of the body.
    pub body_format: Option<BodyFormat>,
    /// Headers to add.
    pub headers_to_add: Vec<crate::header_mutation::HeaderValueOption>,
}

/// A body format with its content type.
#[derive(Debug, Clone, PartialEq)]
pub struct BodyFormat {
    /// The format.
    pub format: LogFormat,
    /// Content type; by shape where empty.
    pub content_type: Box<str>,
}
