//! Access logs: sinks, formats and filters (`envoy.config.accesslog.v3`).

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::access_loggers::{file::v3 as file, grpc::v3 as grpc, stream::v3 as stream};
use envoy_types::pb::google::protobuf::Any;

use crate::config_source::GrpcService;
use crate::data_source::DataSource;
use crate::decode::{Context, bool_value, boxed, json, type_name, u32_value};
use crate::extensions::{refusal_with, type_of};
use crate::matchers::{FractionalPercent, HeaderMatcher, RuntimeFraction};
use crate::route::MetadataMatcher;
use crate::typed_config::TypedConfig;
use std::sync::Arc;
use std::time::Duration;

/// One `AccessLog`: a sink with an optional filter.
#[derive(Debug, Clone)]
pub struct AccessLogConfig {
    /// Configured name.
    pub name: Box<str>,
    /// Only entries that pass are written.
    pub filter: Option<AccessLogFilter>,
    /// The sink.
    pub sink: AccessLogSink,
}

/// Where lines go.
#[derive(Debug, Clone)]
pub enum AccessLogSink {
    /// `FileAccessLog`.
    File {
        /// File path, opened for append and created when absent.
        path: Box<str>,
        /// Line format.
        format: LogFormat,
    },
    /// `StdoutAccessLog`.
    Stdout(LogFormat),
    /// `StderrAccessLog`.
    Stderr(LogFormat),
    /// `HttpGrpcAccessLogConfig`.
    HttpGrpc(Arc<GrpcAccessLogConfig>),
    /// Any other sink; resolved by the extension registry.
    Extension(TypedConfig),
}

/// `HttpGrpcAccessLogConfig`: entries that are streamed to a server.
#[derive(Debug, Clone, PartialEq)]
pub struct GrpcAccessLogConfig {
    /// `log_name`, which the server is told.
    pub log_name: Box<str>,
    /// The server.
    pub service: GrpcService,
    /// The longest that an entry waits for others.
    pub flush_interval: Duration,
    /// Entries of this size together are sent at once; 0 sends each.
    pub buffer_size: usize,
    /// Request headers, response headers and response trailers that entries have beside the usual ones, in lower case.
    pub additional: [Box<[Box<str>]>; 3],
    /// Path in the configuration.
    pub path: Box<str>,
}

/// `SubstitutionFormatString` and its deprecated relatives.
#[derive(Debug, Clone, PartialEq)]
pub struct LogFormat {
    /// The shape.
    pub kind: LogFormatKind,
    /// Leave out what has no value instead of printing "-" (`omit_empty_values`).
    pub omit_empty_values: bool,
    /// Sort JSON properties (`json_format_options.sort_properties`).
    pub sort_properties: bool,
    /// Path of the format in the configuration, for errors found when it is compiled.
    pub path: Box<str>,
}

/// Shape of a line.
#[derive(Debug, Clone, PartialEq)]
pub enum LogFormatKind {
    /// Envoy's default text format.
    Default,
    /// A format string; used exactly as written (Envoy adds no newline).
    Text(Box<str>),
    /// A JSON object whose string leaves are format strings; numbers keep their type where a leaf is a single operator.
    Json(serde_json::Value),
    /// Deprecated `json_format` of FileAccessLog: every value is written as a string.
    UntypedJson(serde_json::Value),
}

/// `AccessLogFilter`.
#[derive(Debug, Clone)]
pub enum AccessLogFilter {
    /// `status_code_filter`.
    StatusCode(Comparison),
    /// `duration_filter`, milliseconds.
    Duration(Comparison),
    /// `not_health_check_filter`.
    NotHealthCheck,
    /// `traceable_filter`.
    Traceable,
    /// `runtime_filter`.
    Runtime {
        /// Share of entries.
        fraction: RuntimeFraction,
        /// Do not derive the choice from x-request-id.
        independent: bool,
    },
    /// `and_filter`.
    And(Vec<AccessLogFilter>),
    /// `or_filter`.
    Or(Vec<AccessLogFilter>),
    /// `header_filter`.
    Header(HeaderMatcher),
    /// `response_flag_filter`: short names; empty means any flag.
    ResponseFlag(Vec<Box<str>>),
    /// `grpc_status_filter`: numeric codes.
    GrpcStatus {
        /// Codes to match.
        codes: Vec<u32>,
        /// Match the others instead.
        exclude: bool,
    },
    /// `log_type_filter`: AccessLogType numbers.
    LogType {
        /// Types to match.
        types: Vec<i32>,
        /// Match the others instead.
        exclude: bool,
    },
    /// `metadata_filter`.
    Metadata(MetadataMatcher, bool),
    /// `extension_filter`.
    Extension(TypedConfig),
}

/// `ComparisonFilter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// Operator.
    pub op: ComparisonOp,
    /// Default value.
    pub value: u64,
    /// Runtime key that overrides it.
    pub runtime_key: Box<str>,
}

/// Operators of [`Comparison`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComparisonOp {
    /// `EQ`
    Eq,
    /// `GE`
    Ge,
    /// `LE`
    Le,
    /// `NE`
    Ne,
}

impl AccessLogConfig {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &pb::AccessLog) -> Option<Self> {
        let filter = cx.optional("filter", &message.filter, AccessLogFilter::decode);
        let any = message.config_type.as_ref().map(|pb::access_log::ConfigType::TypedConfig(any)| any);
        let sink = match any {
            Some(any) => cx.at("typed_config", |cx| AccessLogSink::known(cx, any))?,
            None => None,
        };
        let sink = sink.unwrap_or_else(|| AccessLogSink::Extension(cx.typed_config(&message.name, any)));
        Some(AccessLogConfig { name: message.name.as_str().into(), filter, sink })
    }
}

impl AccessLogSink {
    /// The sinks of the core; `Some(None)` for all others, `None` after an error.
    #[allow(clippy::option_option)] // Outer: decoded without error. Inner: a sink of the core.
    fn known(cx: &mut Context, any: &Any) -> Option<Option<Self>> {
        use stream::{stderr_access_log as stderr, stdout_access_log as stdout};
        Some(Some(match type_name(&any.type_url) {
            "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
                let message: file::FileAccessLog = cx.unpack(any)?;
                AccessLogSink::File { path: message.path.as_str().into(), format: file_format(cx, &message)? }
            }
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
                let message: stream::StdoutAccessLog = cx.unpack(any)?;
                let format = message.access_log_format.map(|stdout::AccessLogFormat::LogFormat(format)| format);
                AccessLogSink::Stdout(stream_format(cx, &format)?)
            }
            "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
                let message: stream::StderrAccessLog = cx.unpack(any)?;
                let format = message.access_log_format.map(|stderr::AccessLogFormat::LogFormat(format)| format);
                AccessLogSink::Stderr(stream_format(cx, &format)?)
            }
            "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig" => {
                let message: grpc::HttpGrpcAccessLogConfig = cx.unpack(any)?;
                AccessLogSink::HttpGrpc(Arc::new(GrpcAccessLogConfig::decode(cx, &message)?))
            }
            _ => return Some(None),
        }))
    }
}

impl GrpcAccessLogConfig {
    fn decode(cx: &mut Context, message: &grpc::HttpGrpcAccessLogConfig) -> Option<Self> {
        // Envoy's defaults.
        const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
        const BUFFER_SIZE: u32 = 16 * 1024;
        let lower = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase().into()).collect();
        let additional = [
            lower(&message.additional_request_headers_to_log),
            lower(&message.additional_response_headers_to_log),
            lower(&message.additional_response_trailers_to_log),
        ];
        let common = message.common_config.as_ref()?;
        let path = cx.path_text();
        cx.at("common_config", |cx| {
            let service = common.grpc_service.as_ref();
            if common.transport_api_version() == core::ApiVersion::V2 {
                cx.error_at("transport_api_version", "the V2 protocol has been removed: set V3");
            }
            Some(GrpcAccessLogConfig {
                log_name: common.log_name.as_str().into(),
                service: cx.at("grpc_service", |cx| GrpcService::decode(cx, service?))?,
                flush_interval: cx
                    .duration("buffer_flush_interval", &common.buffer_flush_interval)
                    .unwrap_or(FLUSH_INTERVAL),
                buffer_size: u32_value(&common.buffer_size_bytes).unwrap_or(BUFFER_SIZE) as usize,
                additional,
                path,
            })
        })
    }
}

fn stream_format(cx: &mut Context, format: &Option<core::SubstitutionFormatString>) -> Option<LogFormat> {
    match format {
        Some(format) => cx.at("log_format", |cx| LogFormat::decode(cx, format)),
        None => Some(LogFormat::simple(cx, LogFormatKind::Default)),
    }
}

fn file_format(cx: &mut Context, message: &file::FileAccessLog) -> Option<LogFormat> {
    use file::file_access_log::AccessLogFormat as Format;
    match &message.access_log_format {
        None => Some(LogFormat::simple(cx, LogFormatKind::Default)),
        Some(Format::Format(text)) if text.is_empty() => Some(LogFormat::simple(cx, LogFormatKind::Default)),
        Some(Format::Format(text)) => {
            Some(cx.at("format", |cx| LogFormat::simple(cx, LogFormatKind::Text(text.as_str().into()))))
        }
        Some(Format::JsonFormat(format)) => Some(
            cx.at("json_format", |cx| LogFormat::simple(cx, LogFormatKind::UntypedJson(json::from_struct(format)))),
        ),
        Some(Format::TypedJsonFormat(format)) => {
            Some(cx.at("typed_json_format", |cx| LogFormat::simple(cx, LogFormatKind::Json(json::from_struct(format)))))
        }
        Some(Format::LogFormat(format)) => cx.at("log_format", |cx| LogFormat::decode(cx, format)),
    }
}

/// `formatters`: the operators of those that are implemented are always there.
pub(crate) fn check_formatters(cx: &mut Context, messages: &[core::TypedExtensionConfig]) {
    const HERE: [&str; 2] = [
        "envoy.extensions.formatter.metadata.v3.Metadata",
        "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery",
    ];
    cx.each("formatters", messages, |cx, message| {
        let kind = type_of(message);
        if !HERE.contains(&kind) {
            let unknown = || format!("Formatter not found: {}", message.name);
            cx.error(refusal_with("envoy.formatter", &message.name, kind, unknown));
        }
        Some(())
    });
}

impl LogFormat {
    /// A format of this kind at the current path, without options.
    pub(crate) fn simple(cx: &Context, kind: LogFormatKind) -> Self {
        LogFormat { kind, omit_empty_values: false, sort_properties: false, path: cx.path_text() }
    }

    /// `SubstitutionFormatString`.
    pub fn decode(cx: &mut Context, message: &core::SubstitutionFormatString) -> Option<Self> {
        use core::substitution_format_string::Format;
        check_formatters(cx, &message.formatters);
        let (kind, field) = match &message.format {
            Some(Format::TextFormat(text)) => (LogFormatKind::Text(text.as_str().into()), "text_format"),
            Some(Format::JsonFormat(format)) => (LogFormatKind::Json(json::from_struct(format)), "json_format"),
            Some(Format::TextFormatSource(source)) => {
                let text = cx.at("text_format_source", |cx| {
                    let bytes = DataSource::decode(cx, source)?.read().map_err(|reason| cx.error(reason)).ok()?;
                    String::from_utf8(bytes).map_err(|_| cx.error("a format has to be UTF-8")).ok()
                })?;
                (LogFormatKind::Text(text.into()), "text_format_source")
            }
            None => {
                cx.error("Field 'format' is missing");
                return None;
            }
        };
        Some(LogFormat {
            kind,
            omit_empty_values: message.omit_empty_values,
            sort_properties: message.json_format_options.as_ref().is_some_and(|options| options.sort_properties),
            path: cx.at(field, |cx| cx.path_text()),
        })
    }
}

impl AccessLogFilter {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &pb::AccessLogFilter) -> Option<Self> {
        use pb::access_log_filter::FilterSpecifier as Specifier;
        Some(match message.filter_specifier.as_ref()? {
            Specifier::StatusCodeFilter(filter) => AccessLogFilter::StatusCode(Comparison::decode(&filter.comparison)),
            Specifier::DurationFilter(filter) => AccessLogFilter::Duration(Comparison::decode(&filter.comparison)),
            Specifier::NotHealthCheckFilter(_) => AccessLogFilter::NotHealthCheck,
            Specifier::TraceableFilter(_) => AccessLogFilter::Traceable,
            Specifier::RuntimeFilter(filter) => AccessLogFilter::Runtime {
                fraction: RuntimeFraction {
                    default: filter
                        .percent_sampled
                        .as_ref()
                        .map_or(FractionalPercent { numerator: 0, denominator: 100 }, FractionalPercent::decode),
                    runtime_key: filter.runtime_key.as_str().into(),
                },
                independent: filter.use_independent_randomness,
            },
            Specifier::AndFilter(and) => {
                AccessLogFilter::And(cx.at("and_filter", |cx| cx.each("filters", &and.filters, Self::decode)))
            }
            Specifier::OrFilter(or) => {
                AccessLogFilter::Or(cx.at("or_filter", |cx| cx.each("filters", &or.filters, Self::decode)))
            }
            Specifier::HeaderFilter(filter) => AccessLogFilter::Header(
                cx.at("header_filter", |cx| cx.required("header", &filter.header, HeaderMatcher::decode))?,
            ),
            Specifier::ResponseFlagFilter(filter) => AccessLogFilter::ResponseFlag(boxed(&filter.flags)),
            Specifier::GrpcStatusFilter(filter) => AccessLogFilter::GrpcStatus {
                codes: filter.statuses.iter().filter_map(|status| u32::try_from(*status).ok()).collect(),
                exclude: filter.exclude,
            },
            Specifier::LogTypeFilter(filter) => {
                AccessLogFilter::LogType { types: filter.types.clone(), exclude: filter.exclude }
            }
            Specifier::MetadataFilter(filter) => {
                let if_missing = bool_value(&filter.match_if_key_not_found).unwrap_or(true);
                match &filter.matcher {
                    Some(matcher) => AccessLogFilter::Metadata(
                        cx.at("metadata_filter", |cx| cx.at("matcher", |cx| MetadataMatcher::decode(cx, matcher)))?,
                        if_missing,
                    ),
                    // Without a matcher no key is ever found: always or never.
                    None if if_missing => AccessLogFilter::And(Vec::new()),
                    None => AccessLogFilter::Or(Vec::new()),
                }
            }
            Specifier::ExtensionFilter(filter) => {
                let any = filter.config_type.as_ref().map(|pb::extension_filter::ConfigType::TypedConfig(any)| any);
                AccessLogFilter::Extension(cx.at("extension_filter", |cx| cx.typed_config(&filter.name, any)))
            }
        })
    }
}

impl Comparison {
    fn decode(message: &Option<pb::ComparisonFilter>) -> Self {
        use pb::comparison_filter::Op;
        let op = message.as_ref().map_or(Op::Eq, pb::ComparisonFilter::op);
        let value = message.as_ref().and_then(|message| message.value.as_ref());
        Comparison {
            op: match op {
                Op::Eq => ComparisonOp::Eq,
                Op::Ge => ComparisonOp::Ge,
                Op::Le => ComparisonOp::Le,
                Op::Ne => ComparisonOp::Ne,
            },
            value: value.map_or(0, |value| u64::from(value.default_value)),
            runtime_key: value.map_or("", |value| value.runtime_key.as_str()).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
    use prost::Message;

    fn log<M: Message>(type_name: &str, message: &M) -> pb::AccessLog {
        let any = Any { type_url: format!("type.googleapis.com/{type_name}"), value: message.encode_to_vec() };
        pb::AccessLog {
            name: "log".into(),
            filter: None,
            config_type: Some(pb::access_log::ConfigType::TypedConfig(any)),
        }
    }

    fn file(format: Option<file::file_access_log::AccessLogFormat>) -> LogFormatKind {
        let message = file::FileAccessLog { path: "/dev/null".into(), access_log_format: format };
        let log = log("envoy.extensions.access_loggers.file.v3.FileAccessLog", &message);
        match AccessLogConfig::decode(&mut Context::default(), &log).unwrap().sink {
            AccessLogSink::File { path, format } if &*path == "/dev/null" => format.kind,
            other => panic!("{other:?}"),
        }
    }

    fn object() -> Struct {
        Struct { fields: [("a".to_owned(), Value { kind: Some(Kind::StringValue("%PROTOCOL%".into())) })].into() }
    }

    #[test]
    fn a_file_log_without_format_or_with_an_empty_one_has_the_default() {
        use file::file_access_log::AccessLogFormat;
        assert_eq!(file(None), LogFormatKind::Default);
        assert_eq!(file(Some(AccessLogFormat::Format(String::new()))), LogFormatKind::Default);
    }

    #[test]
    fn the_deprecated_formats_of_a_file_log_still_work() {
        use file::file_access_log::AccessLogFormat;
        let value = serde_json::json!({"a": "%PROTOCOL%"});
        assert_eq!(file(Some(AccessLogFormat::Format("x\n".into()))), LogFormatKind::Text("x\n".into()));
        assert_eq!(file(Some(AccessLogFormat::JsonFormat(object()))), LogFormatKind::UntypedJson(value.clone()));
        assert_eq!(file(Some(AccessLogFormat::TypedJsonFormat(object()))), LogFormatKind::Json(value));
    }

    #[test]
    fn a_log_over_grpc_has_the_defaults_of_envoy_and_needs_a_server() {
        let name = "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig";
        let service = core::grpc_service::EnvoyGrpc { cluster_name: "als".into(), ..Default::default() };
        let service = core::GrpcService {
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(service)),
            ..Default::default()
        };
        let common =
            grpc::CommonGrpcAccessLogConfig { log_name: "l".into(), grpc_service: Some(service), ..Default::default() };
        let mut message = grpc::HttpGrpcAccessLogConfig {
            common_config: Some(common),
            additional_request_headers_to_log: vec!["X-A".into()],
            ..Default::default()
        };
        let decoded = AccessLogConfig::decode(&mut Context::default(), &log(name, &message)).unwrap().sink;
        let AccessLogSink::HttpGrpc(config) = decoded else { panic!("{decoded:?}") };
        assert_eq!((config.flush_interval, config.buffer_size), (Duration::from_secs(1), 16 * 1024));
        assert_eq!(&*config.additional[0], ["x-a".into()]);
        message.common_config = message.common_config.map(|common| grpc::CommonGrpcAccessLogConfig {
            grpc_service: Some(core::GrpcService::default()),
            ..common
        });
        let result = Context::default().run(|cx| AccessLogConfig::decode(cx, &log(name, &message)));
        assert_eq!(errors(result), ["typed_config.common_config.grpc_service: set one of envoy_grpc, google_grpc"]);
    }

    #[test]
    fn other_sinks_are_left_to_the_registry() {
        let log = log("envoy.extensions.access_loggers.wasm.v3.WasmAccessLog", &());
        let AccessLogSink::Extension(config) = AccessLogConfig::decode(&mut Context::default(), &log).unwrap().sink
        else {
            panic!("not an extension")
        };
        assert_eq!(&*config.type_name, "envoy.extensions.access_loggers.wasm.v3.WasmAccessLog");
        assert_eq!(&*config.path, "typed_config");
    }

    #[test]
    fn a_format_file_that_is_missing_is_an_error() {
        let source = core::DataSource {
            specifier: Some(core::data_source::Specifier::Filename("/nonexistent/x".into())),
            ..Default::default()
        };
        let format = core::SubstitutionFormatString {
            format: Some(core::substitution_format_string::Format::TextFormatSource(source)),
            ..Default::default()
        };
        let result = Context::default().run(|cx| LogFormat::decode(cx, &format));
        assert_eq!(errors(result), ["text_format_source: file /nonexistent/x does not exist"]);
    }

    #[test]
    fn a_metadata_filter_without_matcher_is_always_or_never_true() {
        use pb::access_log_filter::FilterSpecifier;
        let filter = |if_missing: bool| {
            let filter = pb::MetadataFilter {
                matcher: None,
                match_if_key_not_found: Some(envoy_types::pb::google::protobuf::BoolValue { value: if_missing }),
            };
            let message = pb::AccessLogFilter { filter_specifier: Some(FilterSpecifier::MetadataFilter(filter)) };
            AccessLogFilter::decode(&mut Context::default(), &message).unwrap()
        };
        assert!(matches!(filter(true), AccessLogFilter::And(list) if list.is_empty()));
        assert!(matches!(filter(false), AccessLogFilter::Or(list) if list.is_empty()));
    }
}
