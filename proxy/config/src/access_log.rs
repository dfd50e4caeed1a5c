//! Access logs: sinks, formats and filters (`envoy.config.accesslog.v3`).

use crate::matchers::{HeaderMatcher, RuntimeFraction};
use crate::typed_config::TypedConfig;

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
    /// Any other sink; resolved by the extension registry.
    Extension(TypedConfig),
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
    Metadata(crate::route::MetadataMatcher, bool),
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
