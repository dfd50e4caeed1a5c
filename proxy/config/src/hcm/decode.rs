//! `HttpConnectionManager` decoded.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use envoy_types::pb::envoy::extensions::http::early_header_mutation::header_mutation::v3 as early;
use envoy_types::pb::envoy::extensions::http::original_ip_detection::{custom_header, xff};
use envoy_types::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use pb::http_connection_manager as manager;

use super::{
    BodyFormat, ClientCertDetails, ClientCertForwarding, CodecType, EscapedSlashesAction, ForwardClientCert,
    ForwardProto, HcmConfig, Http1Options, Http2Options, HttpFilterConfig, LocalReplyConfig, LocalReplyMapper,
    OriginalIpDetection, ProxyStatusConfig, ProxyStatusName, RouteSource, ScopedRoutesConfig,
    ServerHeaderTransformation, StripPort, UnderscoresAction, UpgradeConfig,
};
use crate::access_log::{AccessLogConfig, AccessLogFilter, LogFormat};
use crate::data_source::DataSource;
use crate::decode::{Context, bool_value, lower, serialized, type_name, u32_value};
use crate::discovered::ExtensionSource;
use crate::extensions::{refusal_with, type_of};
use crate::header_mutation::{HeaderMutation, HeaderValueOption};
use crate::matchers::cidr_range;
use crate::matching::{MatchInput, MatchTree};
use crate::paths::Segment;
use crate::route::RouteConfiguration;

/// What a tree of client certificates leads to.
const CLIENT_CERT_ACTION: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.ForwardClientCertConfig";

/// Message of the router filter.
const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

/// Message of the filter that ends a list of upstream filters.
pub(crate) const UPSTREAM_CODEC: &str = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec";

/// Envoy's words for the upstream filters of a cluster.
pub const CLUSTER_UPSTREAM: &str = "upstream http";

/// Envoy's words for those of the router.
pub const ROUTER_UPSTREAM: &str = "router upstream http";

impl HcmConfig {
    pub(crate) fn from_message(cx: &mut Context, message: &pb::HttpConnectionManager) -> Option<Self> {
        let common = message.common_http_protocol_options.unwrap_or_default();
        let invalid_message = bool_value(&message.stream_error_on_invalid_http_message);
        let log_options = message.access_log_options.as_ref();
        let pack_trace_reason = pack_trace_reason(cx, message);
        let hour = Some(Duration::from_secs(3600));
        let five_minutes = Some(Duration::from_secs(300));
        let stream_idle_timeout = cx.timeout("stream_idle_timeout", &message.stream_idle_timeout, five_minutes);
        if log_options.is_some() && message.access_log_flush_interval.is_some() {
            cx.error("Only one of access_log_flush_interval or access_log_options can be specified.");
        }
        if log_options.is_some() && message.flush_access_log_on_new_request {
            cx.error("Only one of flush_access_log_on_new_request or access_log_options can be specified.");
        }
        let access_log_flush_interval = match log_options {
            Some(options) => cx.at("access_log_options", |cx| {
                cx.duration("access_log_flush_interval", &options.access_log_flush_interval)
            }),
            None => cx.duration("access_log_flush_interval", &message.access_log_flush_interval),
        };
        let scheme = message.scheme_header_transformation.as_ref();
        let routes = routes(cx, message);
        let internal = message.internal_address_config.as_ref();
        let internal_cidrs = internal.map_or_else(Vec::new, |internal| {
            cx.at("internal_address_config", |cx| cx.each("cidr_ranges", &internal.cidr_ranges, cidr_range))
        });
        let (idle_timeout, max_connection_duration, max_stream_duration) =
            cx.at("common_http_protocol_options", |cx| {
                (
                    cx.timeout("idle_timeout", &common.idle_timeout, hour),
                    cx.timeout("max_connection_duration", &common.max_connection_duration, None),
                    cx.timeout("max_stream_duration", &common.max_stream_duration, None),
                )
            });
        Some(HcmConfig {
            stat_prefix: message.stat_prefix.as_str().into(),
            codec_type: match message.codec_type() {
                manager::CodecType::Auto => CodecType::Auto,
                manager::CodecType::Http1 => CodecType::Http1,
                manager::CodecType::Http2 => CodecType::Http2,
                manager::CodecType::Http3 => CodecType::Http3,
            },
            http_filters: http_filters(cx, "http_filters", &message.http_filters, "http"),
            http1: cx
                .optional("http_protocol_options", &message.http_protocol_options, |cx, options| {
                    Http1Options::decode(cx, options, invalid_message)
                })
                .unwrap_or(Http1Options {
                    stream_error_on_invalid_http_message: invalid_message,
                    ..Http1Options::default()
                }),
            http2: cx
                .optional("http2_protocol_options", &message.http2_protocol_options, |cx, options| {
                    Http2Options::decode(cx, options, invalid_message)
                })
                .unwrap_or(Http2Options {
                    stream_error_on_invalid_http_message: invalid_message,
                    ..Http2Options::default()
                }),
            server_name: if message.server_name.is_empty() { "envoy" } else { &message.server_name }.into(),
            server_header_transformation: match message.server_header_transformation() {
                manager::ServerHeaderTransformation::Overwrite => ServerHeaderTransformation::Overwrite,
                manager::ServerHeaderTransformation::AppendIfAbsent => ServerHeaderTransformation::AppendIfAbsent,
                manager::ServerHeaderTransformation::PassThrough => ServerHeaderTransformation::PassThrough,
            },
            scheme_overwrite: scheme.and_then(|scheme| scheme.transformation.as_ref()).map(
                |core::scheme_header_transformation::Transformation::SchemeToOverwrite(scheme)| scheme.as_str().into(),
            ),
            scheme_match_upstream: scheme.is_some_and(|scheme| scheme.match_upstream),
            max_request_headers_kb: u32_value(&message.max_request_headers_kb).unwrap_or(60),
            max_headers_count: u32_value(&common.max_headers_count).unwrap_or(100),
            idle_timeout,
            max_connection_duration,
            max_connection_duration_jitter: share(common.max_connection_duration_jitter.as_ref()),
            http1_safe_max_connection_duration: message.http1_safe_max_connection_duration,
            max_stream_duration,
            max_requests_per_connection: u32_value(&common.max_requests_per_connection).filter(|max| *max > 0),
            headers_with_underscores_action: underscores(&common),
            stream_idle_timeout,
            stream_flush_timeout: cx
                .duration("stream_flush_timeout", &message.stream_flush_timeout)
                .map(|timeout| Some(timeout).filter(|timeout| !timeout.is_zero())),
            request_timeout: cx.timeout("request_timeout", &message.request_timeout, None),
            request_headers_timeout: cx.timeout("request_headers_timeout", &message.request_headers_timeout, None),
            drain_timeout: cx.duration("drain_timeout", &message.drain_timeout).unwrap_or(Duration::from_secs(5)),
            drain_timeout_jitter: share(message.drain_timeout_jitter.as_ref()),
            delayed_close_timeout: cx
                .duration("delayed_close_timeout", &message.delayed_close_timeout)
                .unwrap_or(Duration::from_secs(1)),
            access_logs: cx.each("access_log", &message.access_log, AccessLogConfig::decode),
            access_log_flush_interval,
            flush_access_log_on_tunnel: log_options
                .is_some_and(|options| options.flush_log_on_tunnel_successfully_established),
            flush_access_log_on_new_request: log_options
                .map_or(message.flush_access_log_on_new_request, |options| options.flush_access_log_on_new_request),
            use_remote_address: bool_value(&message.use_remote_address).unwrap_or(false),
            xff_num_trusted_hops: message.xff_num_trusted_hops,
            original_ip_detection: original_ip_detection(cx, message),
            early_header_mutations: early_header_mutations(cx, message),
            internal_cidrs,
            internal_unix_sockets: internal.is_some_and(|internal| internal.unix_sockets),
            add_user_agent: bool_value(&message.add_user_agent).unwrap_or(false),
            forward_proto: message.forward_proto_config.as_ref().map(|config| {
                Box::new(ForwardProto {
                    https_ports: config.https_destination_ports.as_slice().into(),
                    http_ports: config.http_destination_ports.as_slice().into(),
                })
            }),
            skip_xff_append: message.skip_xff_append,
            via: message.via.as_str().into(),
            generate_request_id: bool_value(&message.generate_request_id).unwrap_or(true),
            preserve_external_request_id: message.preserve_external_request_id,
            always_set_request_id_in_response: message.always_set_request_id_in_response,
            request_id_pack_trace_reason: pack_trace_reason,
            forward_client_cert: forward_client_cert(message.forward_client_cert_details()),
            client_cert_details: client_cert_details(message.set_current_client_cert_details.as_ref()),
            forward_client_cert_matcher: cx
                .optional("forward_client_cert_matcher", &message.forward_client_cert_matcher, client_cert_tree)
                .map(Box::new),
            proxy_100_continue: message.proxy_100_continue,
            upgrades: upgrades(cx, &message.upgrade_configs),
            normalize_path: bool_value(&message.normalize_path).unwrap_or(false),
            merge_slashes: message.merge_slashes,
            escaped_slashes_action: escaped_slashes(message),
            local_reply: cx.optional("local_reply_config", &message.local_reply_config, LocalReplyConfig::decode),
            proxy_status: message.proxy_status_config.as_ref().map(|config| Box::new(proxy_status(config))),
            strip_port: strip_port(cx, message),
            strip_trailing_host_dot: message.strip_trailing_host_dot,
            stream_error_on_invalid_http_message: invalid_message.unwrap_or(false),
            add_proxy_protocol_connection_state: bool_value(&message.add_proxy_protocol_connection_state)
                .unwrap_or(true),
            append_x_forwarded_port: message.append_x_forwarded_port,
            append_local_overload: message.append_local_overload,
            tracing: message.tracing.as_ref().map(serialized),
            path: cx.path_text(),
            routes: routes?,
        })
    }
}

/// `headers_with_underscores_action` of common options.
fn underscores(common: &core::HttpProtocolOptions) -> UnderscoresAction {
    use core::http_protocol_options::HeadersWithUnderscoresAction as Action;
    match common.headers_with_underscores_action() {
        Action::Allow => UnderscoresAction::Allow,
        Action::RejectRequest => UnderscoresAction::RejectRequest,
        Action::DropHeader => UnderscoresAction::DropHeader,
    }
}

/// A percentage as a share of one.
pub(crate) fn share(percent: Option<&Percent>) -> f64 {
    percent.map_or(0.0, |percent| percent.value / 100.0)
}

fn proxy_status(message: &manager::ProxyStatusConfig) -> ProxyStatusConfig {
    use manager::proxy_status_config::ProxyName;
    ProxyStatusConfig {
        remove_details: message.remove_details,
        remove_connection_termination_details: message.remove_connection_termination_details,
        remove_response_flags: message.remove_response_flags,
        set_recommended_response_code: message.set_recommended_response_code,
        name: match &message.proxy_name {
            Some(ProxyName::UseNodeId(true)) => ProxyStatusName::NodeId,
            Some(ProxyName::LiteralProxyName(name)) => ProxyStatusName::Literal(name.as_str().into()),
            Some(ProxyName::UseNodeId(false)) | None => ProxyStatusName::ServerName,
        },
    }
}

fn client_cert_details(message: Option<&manager::SetCurrentClientCertDetails>) -> ClientCertDetails {
    message.map_or_else(ClientCertDetails::default, |details| ClientCertDetails {
        subject: bool_value(&details.subject).unwrap_or(false),
        cert: details.cert,
        chain: details.chain,
        issuer: details.issuer,
        dns: details.dns,
        uri: details.uri,
    })
}

fn client_cert_tree(cx: &mut Context, matcher: &Matcher) -> Option<MatchTree<ClientCertForwarding>> {
    MatchTree::decode(cx, matcher, &MatchInput::is_of_request, &mut |cx, action| {
        let any = action.typed_config.as_ref();
        cx.at("typed_config", |cx| match any.map_or("", |any| type_name(&any.type_url)) {
            CLIENT_CERT_ACTION => {
                let action: manager::ForwardClientCertConfig = cx.unpack(any?)?;
                Some(ClientCertForwarding {
                    mode: forward_client_cert(action.forward_client_cert_details()),
                    details: client_cert_details(action.set_current_client_cert_details.as_ref()),
                })
            }
            other => {
                cx.error(format!("action '{other}' is not implemented: an action is a ForwardClientCertConfig"));
                None
            }
        })
    })
}

fn forward_client_cert(mode: manager::ForwardClientCertDetails) -> ForwardClientCert {
    use manager::ForwardClientCertDetails as Details;
    match mode {
        Details::Sanitize => ForwardClientCert::Sanitize,
        Details::ForwardOnly => ForwardClientCert::ForwardOnly,
        Details::AppendForward => ForwardClientCert::AppendForward,
        Details::SanitizeSet => ForwardClientCert::SanitizeSet,
        Details::AlwaysForwardOnly => ForwardClientCert::AlwaysForwardOnly,
    }
}

fn escaped_slashes(message: &pb::HttpConnectionManager) -> EscapedSlashesAction {
    use manager::PathWithEscapedSlashesAction as Action;
    match message.path_with_escaped_slashes_action() {
        Action::ImplementationSpecificDefault | Action::KeepUnchanged => EscapedSlashesAction::KeepUnchanged,
        Action::RejectRequest => EscapedSlashesAction::RejectRequest,
        Action::UnescapeAndRedirect => EscapedSlashesAction::UnescapeAndRedirect,
        Action::UnescapeAndForward => EscapedSlashesAction::UnescapeAndForward,
    }
}

fn strip_port(cx: &mut Context, message: &pb::HttpConnectionManager) -> StripPort {
    let any = matches!(message.strip_port_mode, Some(manager::StripPortMode::StripAnyHostPort(true)));
    match (message.strip_matching_host_port, any) {
        (true, true) => {
            cx.error("Error: Only one of `strip_matching_host_port` or `strip_any_host_port` can be set.");
            StripPort::Any
        }
        (true, false) => StripPort::Matching,
        (false, true) => StripPort::Any,
        (false, false) => StripPort::No,
    }
}

fn routes(cx: &mut Context, message: &pb::HttpConnectionManager) -> Option<RouteSource> {
    match message.route_specifier.as_ref() {
        Some(manager::RouteSpecifier::RouteConfig(config)) => {
            let routes = cx.at("route_config", |cx| RouteConfiguration::from_message(cx, config, true))?;
            Some(RouteSource::Static(Arc::new(routes)))
        }
        Some(manager::RouteSpecifier::Rds(rds)) => Some(RouteSource::Rds {
            name: rds.route_config_name.as_str().into(),
            source: rds.config_source.as_ref().map(serialized).unwrap_or_default(),
        }),
        Some(manager::RouteSpecifier::ScopedRoutes(scoped)) => {
            let scoped = cx.at("scoped_routes", |cx| ScopedRoutesConfig::decode(cx, scoped))?;
            Some(RouteSource::Scoped(Arc::new(scoped)))
        }
        None => {
            cx.error("Field 'route_specifier' is missing: one of route_config, rds, scoped_routes");
            None
        }
    }
}

/// `pack_trace_reason` of the UUID extension, the only one there is.
fn pack_trace_reason(cx: &mut Context, message: &pb::HttpConnectionManager) -> bool {
    let any = message.request_id_extension.as_ref().and_then(|extension| extension.typed_config.as_ref());
    let Some(any) = any else { return true };
    let decoded = cx.at("request_id_extension", |cx| {
        if type_name(&any.type_url) != "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig" {
            cx.error(format!("Didn't find a registered implementation for type: '{}'", type_name(&any.type_url)));
            return None;
        }
        cx.at("typed_config", |cx| cx.unpack::<UuidRequestIdConfig>(any))
    });
    decoded.and_then(|config| bool_value(&config.pack_trace_reason)).unwrap_or(true)
}

fn early_header_mutations(cx: &mut Context, message: &pb::HttpConnectionManager) -> Vec<Vec<HeaderMutation>> {
    let field = "early_header_mutation_extensions";
    cx.each(field, &message.early_header_mutation_extensions, |cx, extension| match type_of(extension) {
        "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation" => {
            cx.at("typed_config", |cx| {
                let config: early::HeaderMutation = cx.unpack(extension.typed_config.as_ref()?)?;
                Some(cx.each("mutations", &config.mutations, HeaderMutation::decode))
            })
        }
        other => {
            let name = &extension.name;
            let unknown = || format!("Early header mutation extension not found: '{name}'");
            cx.error(refusal_with("envoy.http.early_header_mutation", name, other, unknown));
            None
        }
    })
}

fn original_ip_detection(cx: &mut Context, message: &pb::HttpConnectionManager) -> Vec<OriginalIpDetection> {
    if !message.original_ip_detection_extensions.is_empty() {
        if bool_value(&message.use_remote_address).unwrap_or(false) {
            cx.error("Original IP detection extensions and use_remote_address may not be mixed");
        }
        if message.xff_num_trusted_hops > 0 {
            cx.error("Original IP detection extensions and xff_num_trusted_hops may not be mixed");
        }
    }
    cx.each("original_ip_detection_extensions", &message.original_ip_detection_extensions, |cx, extension| {
        let any = extension.typed_config.as_ref();
        Some(match type_of(extension) {
            "envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig" => {
                let config: custom_header::v3::CustomHeaderConfig = cx.at("typed_config", |cx| cx.unpack(any?))?;
                OriginalIpDetection::CustomHeader {
                    header: lower(&config.header_name),
                    trusted: config.allow_extension_to_set_address_as_trusted,
                    reject_with: config
                        .reject_with_status
                        .as_ref()
                        .and_then(|status| u16::try_from(status.code).ok())
                        // Envoy answers 403 for what is no error status.
                        .map(|code| if (400..=511).contains(&code) { code } else { 403 }),
                }
            }
            "envoy.extensions.http.original_ip_detection.xff.v3.XffConfig" => {
                let config: xff::v3::XffConfig = cx.at("typed_config", |cx| cx.unpack(any?))?;
                if config.xff_num_trusted_hops > 0 && config.xff_trusted_cidrs.is_some() {
                    cx.error("Cannot set both xff_num_trusted_hops and xff_trusted_cidrs");
                }
                let cidrs = config.xff_trusted_cidrs.map_or_else(Vec::new, |trusted| {
                    cx.at("typed_config", |cx| {
                        cx.at("xff_trusted_cidrs", |cx| cx.each("cidrs", &trusted.cidrs, cidr_range))
                    })
                });
                OriginalIpDetection::Xff {
                    num_trusted_hops: config.xff_num_trusted_hops,
                    trusted_cidrs: cidrs,
                    skip_append: bool_value(&config.skip_xff_append).unwrap_or(true),
                }
            }
            other => {
                let name = &extension.name;
                let unknown = || format!("Original IP detection extension not found: '{name}'");
                cx.error(refusal_with("envoy.http.original_ip_detection", name, other, unknown));
                return None;
            }
        })
    })
}

/// A chain of HTTP filters; `kind` is Envoy's word for the chain in its errors.
pub(crate) fn http_filters(
    cx: &mut Context,
    field: &'static str,
    messages: &[pb::HttpFilter],
    kind: &str,
) -> Vec<HttpFilterConfig> {
    let last = messages.len().saturating_sub(1);
    let mut index = 0;
    cx.each(field, messages, |cx, message| {
        let filter = http_filter(cx, message);
        let position = index;
        index += 1;
        // That which ends the filters of a cluster cannot be fetched.
        let is_codec = filter.config_discovery.is_none() && *filter.config.type_name == *UPSTREAM_CODEC;
        if position == last && message.disabled {
            cx.error(format!(
                "Error: the last (terminal) filter ({}) in the chain cannot be disabled by default.",
                message.name
            ));
        } else if position == last && kind == CLUSTER_UPSTREAM && !is_codec {
            cx.error(format!(
                "The codec filter is the only valid terminal upstream HTTP filter, use '{UPSTREAM_CODEC}'"
            ));
        } else if filter
            .config_discovery
            .as_ref()
            .is_none_or(|source| source.check_type(&filter.config.type_name).is_ok())
            && let Some(error) = filter.position_error(position == last, kind)
        {
            cx.error(error);
        }
        Some(filter)
    })
}

impl HttpFilterConfig {
    /// What is wrong with a filter of this type at this place of a chain, in Envoy's words; `kind` is its word for the
    /// chain.
    pub fn position_error(&self, last: bool, kind: &str) -> Option<String> {
        let type_name = &*self.config.type_name;
        let (name, extension) = (&self.name, extension_name(type_name));
        let upstream = matches!(kind, CLUSTER_UPSTREAM | ROUTER_UPSTREAM);
        // Each of the two is unknown in the other's lists.
        if !last && type_name == (if upstream { UPSTREAM_CODEC } else { ROUTER }) {
            return Some(format!(
                "Error: terminal filter named {name} of type {extension} must be the last filter in a {kind} filter chain."
            ));
        }
        (last && is_never_terminal(type_name)).then(|| {
            let hint = match kind {
                ROUTER_UPSTREAM => {
                    " When upstream_http_filters are specified, they must explicitly end with an UpstreamCodec filter."
                }
                _ => "",
            };
            format!(
                "Error: non-terminal filter named {name} of type {extension} is the last filter in a {kind} filter chain.{hint}"
            )
        })
    }
}

fn http_filter(cx: &mut Context, message: &pb::HttpFilter) -> HttpFilterConfig {
    use pb::http_filter::ConfigType;
    let (config, config_discovery) = match &message.config_type {
        Some(ConfigType::TypedConfig(any)) => (cx.typed_config(&message.name, Some(any)), None),
        Some(ConfigType::ConfigDiscovery(source)) => {
            let steps = [Segment::Field("config_discovery".into()), Segment::Field("default_config".into())];
            let config = cx.typed_config_at(&message.name, source.default_config.as_ref(), &steps);
            let source = cx.at("config_discovery", |cx| ExtensionSource::decode(cx, &message.name, source));
            (config, Some(source))
        }
        None => (cx.typed_config(&message.name, None), None),
    };
    HttpFilterConfig {
        name: config.name.clone(),
        config,
        is_optional: message.is_optional,
        disabled: message.disabled,
        config_discovery,
    }
}

/// The filters of Envoy that end no chain: all its HTTP filters but the few that answer or forward by themselves.
fn is_never_terminal(type_name: &str) -> bool {
    const MAY_END: [&str; 6] =
        ["router", "dynamic_modules", "mcp_router", "reverse_conn", "upstream_codec", "tcp_bridge"];
    type_name
        .strip_prefix("envoy.extensions.filters.http.")
        .and_then(|rest| rest.split('.').next())
        .is_some_and(|name| !MAY_END.contains(&name))
}

/// The extension's own name, as Envoy's errors show it.
fn extension_name(type_name: &str) -> String {
    match type_name.strip_prefix("envoy.extensions.filters.http.").and_then(|rest| rest.split('.').next()) {
        Some(name) => format!("envoy.filters.http.{name}"),
        None => type_name.to_owned(),
    }
}

fn upgrades(cx: &mut Context, messages: &[manager::UpgradeConfig]) -> Vec<UpgradeConfig> {
    let mut upgrades: Vec<UpgradeConfig> = Vec::with_capacity(messages.len());
    cx.at("upgrade_configs", |cx| {
        for (index, message) in messages.iter().enumerate() {
            let upgrade_type = lower(&message.upgrade_type);
            let filters = cx.at_index(index, |cx| {
                if upgrades.iter().any(|known| known.upgrade_type == upgrade_type) {
                    cx.error_at(
                        "upgrade_type",
                        format!("Error: multiple upgrade configs with the same name: '{}'", message.upgrade_type),
                    );
                }
                http_filters(cx, "filters", &message.filters, "http upgrade")
            });
            upgrades.push(UpgradeConfig {
                upgrade_type,
                filters,
                enabled: bool_value(&message.enabled).unwrap_or(true),
            });
        }
    });
    upgrades
}

impl LocalReplyConfig {
    fn decode(cx: &mut Context, message: &pb::LocalReplyConfig) -> Option<Self> {
        Some(LocalReplyConfig {
            mappers: cx.each("mappers", &message.mappers, |cx, mapper| {
                let filter = cx.required("filter", &mapper.filter, AccessLogFilter::decode);
                Some(LocalReplyMapper {
                    status_code: u32_value(&mapper.status_code).and_then(|code| u16::try_from(code).ok()),
                    body: cx.optional("body", &mapper.body, DataSource::decode),
                    body_format: cx.optional("body_format_override", &mapper.body_format_override, BodyFormat::decode),
                    headers_to_add: cx.each("headers_to_add", &mapper.headers_to_add, HeaderValueOption::decode),
                    filter: filter?,
                })
            }),
            body_format: cx.optional("body_format", &message.body_format, BodyFormat::decode),
        })
    }
}

impl BodyFormat {
    pub(crate) fn decode(cx: &mut Context, message: &core::SubstitutionFormatString) -> Option<Self> {
        Some(BodyFormat { format: LogFormat::decode(cx, message)?, content_type: message.content_type.as_str().into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use crate::diagnostics::ConfigError;
    use envoy_types::pb::google::protobuf as google;
    use prost::Message;

    fn any<M: Message>(type_name: &str, message: &M) -> google::Any {
        google::Any { type_url: format!("type.googleapis.com/{type_name}"), value: message.encode_to_vec() }
    }

    fn filter(name: &str, type_name: &str) -> pb::HttpFilter {
        pb::HttpFilter {
            name: name.into(),
            config_type: Some(pb::http_filter::ConfigType::TypedConfig(any(type_name, &()))),
            ..Default::default()
        }
    }

    fn minimal() -> pb::HttpConnectionManager {
        pb::HttpConnectionManager {
            stat_prefix: "ingress".into(),
            route_specifier: Some(manager::RouteSpecifier::RouteConfig(Default::default())),
            ..Default::default()
        }
    }

    fn decode(message: &pb::HttpConnectionManager) -> Result<HcmConfig, Vec<ConfigError>> {
        Context::default().run(|cx| HcmConfig::from_message(cx, message))
    }

    #[test]
    fn the_defaults_are_envoys() {
        let hcm = decode(&minimal()).unwrap();
        assert_eq!(&*hcm.server_name, "envoy");
        assert_eq!((hcm.max_request_headers_kb, hcm.max_headers_count), (60, 100));
        assert_eq!(hcm.idle_timeout, Some(Duration::from_secs(3600)));
        assert_eq!(hcm.stream_idle_timeout, Some(Duration::from_secs(300)));
        assert_eq!(hcm.stream_flush_timeout, None);
        assert_eq!((hcm.request_timeout, hcm.request_headers_timeout), (None, None));
        assert_eq!((hcm.drain_timeout.as_secs(), hcm.delayed_close_timeout.as_secs()), (5, 1));
        assert!(hcm.generate_request_id && hcm.request_id_pack_trace_reason && !hcm.use_remote_address);
        assert!(hcm.add_proxy_protocol_connection_state && !hcm.normalize_path);
    }

    #[test]
    fn a_timeout_of_zero_is_off() {
        let zero = Some(google::Duration::default());
        let common = core::HttpProtocolOptions { idle_timeout: zero, ..Default::default() };
        let hcm = decode(&pb::HttpConnectionManager {
            stream_idle_timeout: zero,
            common_http_protocol_options: Some(common),
            ..minimal()
        })
        .unwrap();
        assert_eq!((hcm.stream_idle_timeout, hcm.idle_timeout), (None, None));
    }

    #[test]
    fn an_empty_filter_list_is_accepted() {
        assert!(decode(&minimal()).unwrap().http_filters.is_empty());
    }

    #[test]
    fn the_terminal_filter_stands_last() {
        let filters = vec![filter("r1", ROUTER), filter("r2", ROUTER)];
        assert_eq!(
            errors(decode(&pb::HttpConnectionManager { http_filters: filters, ..minimal() })),
            [
                "http_filters[0]: Error: terminal filter named r1 of type envoy.filters.http.router must be the last filter in a http filter chain."
            ]
        );
        let filters = vec![filter("b", "envoy.extensions.filters.http.buffer.v3.Buffer")];
        assert_eq!(
            errors(decode(&pb::HttpConnectionManager { http_filters: filters, ..minimal() })),
            [
                "http_filters[0]: Error: non-terminal filter named b of type envoy.filters.http.buffer is the last filter in a http filter chain."
            ]
        );
    }

    #[test]
    fn the_terminal_filter_cannot_be_disabled() {
        let router = pb::HttpFilter { disabled: true, ..filter("r", ROUTER) };
        assert_eq!(
            errors(decode(&pb::HttpConnectionManager { http_filters: vec![router], ..minimal() })),
            ["http_filters[0]: Error: the last (terminal) filter (r) in the chain cannot be disabled by default."]
        );
    }

    #[test]
    fn a_filter_keeps_the_path_of_its_config() {
        let hcm = decode(&pb::HttpConnectionManager { http_filters: vec![filter("r", ROUTER)], ..minimal() }).unwrap();
        assert_eq!(&*hcm.http_filters[0].config.path, "http_filters[0].typed_config");
        assert_eq!(&*hcm.http_filters[0].config.type_name, ROUTER);
    }

    #[test]
    fn upgrade_types_are_unique_whatever_their_case() {
        let upgrade = |name: &str| manager::UpgradeConfig { upgrade_type: name.into(), ..Default::default() };
        let message = pb::HttpConnectionManager { upgrade_configs: vec![upgrade("a"), upgrade("A")], ..minimal() };
        assert_eq!(
            errors(decode(&message)),
            ["upgrade_configs[1].upgrade_type: Error: multiple upgrade configs with the same name: 'A'"]
        );
    }

    #[test]
    fn the_two_ways_to_strip_ports_exclude_each_other() {
        let message = pb::HttpConnectionManager {
            strip_matching_host_port: true,
            strip_port_mode: Some(manager::StripPortMode::StripAnyHostPort(true)),
            ..minimal()
        };
        assert_eq!(
            errors(decode(&message)),
            ["Error: Only one of `strip_matching_host_port` or `strip_any_host_port` can be set."]
        );
    }

    #[test]
    fn original_ip_detection_excludes_use_remote_address() {
        let config = xff::v3::XffConfig { xff_num_trusted_hops: 2, ..Default::default() };
        let extension = core::TypedExtensionConfig {
            name: "xff".into(),
            typed_config: Some(any("envoy.extensions.http.original_ip_detection.xff.v3.XffConfig", &config)),
        };
        let mut message = pb::HttpConnectionManager { original_ip_detection_extensions: vec![extension], ..minimal() };
        let detection = decode(&message).unwrap().original_ip_detection;
        assert!(matches!(detection[0], OriginalIpDetection::Xff { num_trusted_hops: 2, skip_append: true, .. }));
        message.use_remote_address = Some(google::BoolValue { value: true });
        assert_eq!(
            errors(decode(&message)),
            ["Original IP detection extensions and use_remote_address may not be mixed"]
        );
    }

    #[test]
    fn clusters_of_a_route_config_in_place_are_checked() {
        use envoy_types::pb::envoy::config::route::v3 as route;
        let action = route::RouteAction {
            cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster("nowhere".into())),
            ..Default::default()
        };
        let prefix = route::route_match::PathSpecifier::Prefix("/".into());
        let route = route::Route {
            r#match: Some(route::RouteMatch { path_specifier: Some(prefix), ..Default::default() }),
            action: Some(route::route::Action::Route(action)),
            ..Default::default()
        };
        let host = route::VirtualHost { domains: vec!["*".into()], routes: vec![route], ..Default::default() };
        let config = route::RouteConfiguration { virtual_hosts: vec![host], ..Default::default() };
        let message = pb::HttpConnectionManager {
            route_specifier: Some(manager::RouteSpecifier::RouteConfig(config)),
            ..minimal()
        };
        let mut cx = Context::default();
        cx.set_clusters([]);
        assert_eq!(
            errors(cx.run(|cx| HcmConfig::from_message(cx, &message))),
            ["route_config.virtual_hosts[0].routes[0].route.cluster: route: unknown cluster 'nowhere'"]
        );
    }

    #[test]
    fn access_log_options_replace_the_deprecated_fields() {
        let mut message = pb::HttpConnectionManager {
            access_log_options: Some(manager::HcmAccessLogOptions {
                access_log_flush_interval: Some(google::Duration { seconds: 3, nanos: 0 }),
                flush_access_log_on_new_request: true,
                ..Default::default()
            }),
            ..minimal()
        };
        let hcm = decode(&message).unwrap();
        assert_eq!(hcm.access_log_flush_interval, Some(Duration::from_secs(3)));
        assert!(hcm.flush_access_log_on_new_request);
        message.flush_access_log_on_new_request = true;
        assert_eq!(
            errors(decode(&message)),
            ["Only one of flush_access_log_on_new_request or access_log_options can be specified."]
        );
    }
}
