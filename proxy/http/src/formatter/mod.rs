//! Format strings with command operators (`%REQ(X)%`), for access logs, header values and local replies.
//!
//! A format is compiled once; unknown operators and bad arguments are errors then, in Envoy's words. Evaluation writes into
//! a buffer of the caller and does not allocate for common operators. Reading order: this file (what callers use),
//! `operator` (what exists and how it is parsed), `eval` (where values come from), `grpc`, `tls`, `time`, `json`.

mod eval;
mod forwarded;
mod grpc;
mod json;
mod operator;
mod time;
mod tls;

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use bytes::Bytes;

use crate::headers::{HeaderValue, Headers};
use crate::stream_info::StreamInfo;

pub(crate) use eval::duration;
pub(crate) use grpc::any_status;
pub use json::JsonFormatter;
use nuncio_config::access_log::{LogFormat, LogFormatKind};
use operator::{Op, Part};

/// Envoy's default access-log format.
pub const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQUEST_HEADER(:METHOD)% \
    %REQUEST_HEADER(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% \
    %BYTES_SENT% %DURATION% %RESPONSE_HEADER(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQUEST_HEADER(X-FORWARDED-FOR)%\" \
    \"%REQUEST_HEADER(USER-AGENT)%\" \"%REQUEST_HEADER(X-REQUEST-ID)%\" \"%REQUEST_HEADER(:AUTHORITY)%\" \
    \"%UPSTREAM_HOST%\"\n";

/// A format that does not compile; Envoy's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FormatError(pub String);

macro_rules! log_types {
    ($($variant:ident = $number:literal),+ $(,)?) => {
        /// `AccessLogType`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
        pub enum AccessLogType {
            $(#[doc = stringify!($variant)] $variant = $number),+,
            /// NotSet
            #[default]
            NotSet = 0,
        }

        impl AccessLogType {
            /// Envoy's name.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(AccessLogType::$variant => stringify!($variant),)+
                    AccessLogType::NotSet => "NotSet",
                }
            }
        }
    };
}

log_types! {
    TcpUpstreamConnected = 1, TcpPeriodic = 2, TcpConnectionEnd = 3, DownstreamStart = 4, DownstreamPeriodic = 5,
    DownstreamEnd = 6, UpstreamPoolReady = 7, UpstreamPeriodic = 8, UpstreamEnd = 9,
    DownstreamTunnelSuccessfullyEstablished = 10, UdpTunnelUpstreamConnected = 11, UdpPeriodic = 12,
    UdpSessionEnd = 13, TcpConnectionStart = 14,
}

/// What a format can refer to.
#[derive(Clone, Copy)]
pub struct FormatContext<'a> {
    /// Request headers, where there is a request.
    pub request: Option<&'a Headers>,
    /// Response headers, once there are.
    pub response: Option<&'a Headers>,
    /// Response trailers, once there are.
    pub trailers: Option<&'a Headers>,
    /// Everything else.
    pub info: &'a StreamInfo,
    /// Why something is logged.
    pub log_type: AccessLogType,
}

impl<'a> FormatContext<'a> {
    /// A context without headers.
    pub fn new(info: &'a StreamInfo) -> Self {
        Self { request: None, response: None, trailers: None, info, log_type: AccessLogType::NotSet }
    }
}

impl fmt::Debug for FormatContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FormatContext").field("log_type", &self.log_type).finish_non_exhaustive()
    }
}

/// A compiled text format.
#[derive(Debug, Clone)]
pub struct Formatter {
    parts: Box<[Part]>,
    omit_empty: bool,
}

impl Formatter {
    /// Compiles a format. With `omit_empty_values`, what has no value prints nothing instead of `-`.
    pub fn new(format: &str, omit_empty_values: bool) -> Result<Self, FormatError> {
        Ok(Self { parts: operator::parse(format)?.into(), omit_empty: omit_empty_values })
    }

    /// Appends the formatted text.
    pub fn write(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.extend_from_slice(text),
                Part::Op(op) => {
                    if !op.write(cx, out) && !self.omit_empty {
                        out.push(b'-');
                    }
                }
            }
        }
    }

    /// The text when no operator is in it.
    pub fn as_static(&self) -> Option<&[u8]> {
        match &*self.parts {
            [] => Some(b""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Whether `%LOCAL_REPLY_BODY%` occurs, so that the body has to be kept.
    pub fn uses_local_reply_body(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Op(Op::LocalReplyBody)))
    }
}

/// A line or a body: text or JSON.
#[derive(Debug, Clone)]
pub enum LogFormatter {
    /// Text, as it is written.
    Text(Formatter),
    /// A JSON object in one line.
    Json(JsonFormatter),
}

impl LogFormatter {
    /// Compiles a configured format.
    pub fn new(format: &LogFormat) -> Result<Self, FormatError> {
        Ok(match &format.kind {
            LogFormatKind::Default => LogFormatter::Text(Formatter::new(DEFAULT_FORMAT, format.omit_empty_values)?),
            LogFormatKind::Text(text) => LogFormatter::Text(Formatter::new(text, format.omit_empty_values)?),
            // Envoy types the values of its deprecated field, too.
            LogFormatKind::Json(json) | LogFormatKind::UntypedJson(json) => {
                LogFormatter::Json(JsonFormatter::new(json, format.omit_empty_values)?)
            }
        })
    }

    /// Appends the formatted text.
    pub fn write(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) {
        match self {
            LogFormatter::Text(formatter) => formatter.write(cx, out),
            LogFormatter::Json(formatter) => formatter.write(cx, out),
        }
    }

    /// Whether `%LOCAL_REPLY_BODY%` occurs, so that the body has to be kept.
    pub fn uses_local_reply_body(&self) -> bool {
        match self {
            LogFormatter::Text(formatter) => formatter.uses_local_reply_body(),
            LogFormatter::Json(formatter) => formatter.uses_local_reply_body(),
        }
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A header value: fixed bytes, or a format.
#[derive(Debug, Clone)]
pub enum HeaderFormatter {
    /// No operators: shared.
    Static(HeaderValue),
    /// Evaluated per message.
    Dynamic(Box<Formatter>),
}

impl HeaderFormatter {
    /// Compiles a value of `request_headers_to_add` and its relatives. What has no value prints nothing there.
    pub fn new(format: &str) -> Result<Self, FormatError> {
        let formatter = Formatter::new(&old_forms(format), true)?;
        if let Some(text) = formatter.as_static() {
            let value = HeaderValue::parse(Bytes::copy_from_slice(text))
                .ok_or_else(|| FormatError(format!("invalid header value: {format:?}")))?;
            return Ok(HeaderFormatter::Static(value));
        }
        Ok(HeaderFormatter::Dynamic(Box::new(formatter)))
    }

    /// The value; None where the result cannot be a header value.
    pub fn value(&self, cx: &FormatContext<'_>) -> Option<HeaderValue> {
        match self {
            HeaderFormatter::Static(value) => Some(value.clone()),
            HeaderFormatter::Dynamic(formatter) => {
                // Formatted in a buffer of the thread, so that the value is one allocation of its size.
                let mut out = SCRATCH.take();
                out.clear();
                formatter.write(cx, &mut out);
                let value = HeaderValue::parse(Bytes::copy_from_slice(&out));
                SCRATCH.set(out);
                value
            }
        }
    }
}

/// A value of a header with what only headers may say as everything else says it: `PER_REQUEST_STATE(KEY)`, and
/// metadata named by a JSON list.
fn old_forms(format: &str) -> Cow<'_, str> {
    let mut out = Cow::Borrowed(format);
    if format.contains("%PER_REQUEST_STATE(") {
        let mut pieces = format.split("%PER_REQUEST_STATE(");
        let mut new = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            match piece.split_once(")%") {
                Some((key, rest)) => new.extend(["%FILTER_STATE(", key, ":PLAIN)%", rest]),
                None => new.extend(["%PER_REQUEST_STATE(", piece]),
            }
        }
        out = Cow::Owned(new);
    }
    for name in ["%UPSTREAM_METADATA([", "%DYNAMIC_METADATA(["] {
        while let Some(at) = out.find(name) {
            let start = at + name.len() - 1;
            let Some(end) = out[start..].find("])%").map(|end| start + end + 1) else { break };
            let Ok(names) = serde_json::from_str::<Vec<String>>(&out[start..end]) else { break };
            out = Cow::Owned([&out[..start], &names.join(":"), &out[end..]].concat());
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod tests;
