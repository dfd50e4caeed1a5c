//! Replies that the proxy makes itself, with Envoy's bodies and details.

use crate::access_log::LogFilter;
use crate::formatter::{FormatContext, Formatter, JsonFormatter};
use crate::header_mutation::HeaderRules;
use crate::headers::{HeaderName, HeaderValue, Headers};
use crate::matchers::{NoRuntime, Runtime};
use crate::stream_info::{Details, ResponseFlags, StreamInfo};
use bytes::Bytes;
use nuncio_config::access_log::LogFormatKind;
use nuncio_config::hcm::{BodyFormat, LocalReplyConfig};
use std::sync::Arc;

/// Bytes of a mapper's body at most.
const MAX_BODY: u32 = 1024 * 1024;

/// A reply made by the proxy.
#[derive(Debug, Clone)]
pub struct LocalReply {
    /// Status.
    pub status: u16,
    /// Body, `text/plain` unless `content_type` or a mapper says otherwise; may be empty.
    pub body: Bytes,
    /// Content type of the body where it is not `text/plain`.
    pub content_type: Option<HeaderValue>,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Details,
    /// Flags to add.
    pub flags: ResponseFlags,
    /// Headers to add.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// They come behind what the route adds.
    pub headers_last: bool,
    /// `grpc-status` for gRPC requests; by HTTP status where None.
    pub grpc_status: Option<u32>,
    /// HTTP/1: close the connection after it.
    pub close: bool,
}

impl LocalReply {
    /// A reply with a static body.
    pub fn new(status: u16, body: &'static str, details: impl Into<Details>) -> LocalReply {
        LocalReply {
            status,
            body: Bytes::from_static(body.as_bytes()),
            content_type: None,
            details: details.into(),
            flags: ResponseFlags::default(),
            headers: Vec::new(),
            headers_last: false,
            grpc_status: None,
            close: false,
        }
    }

    /// With flags.
    pub fn flags(mut self, flags: ResponseFlags) -> LocalReply {
        self.flags.insert(flags);
        self
    }

    /// With the connection closed after it.
    pub fn close(mut self) -> LocalReply {
        self.close = true;
        self
    }

    /// With the connection closed after it, when `condition` holds.
    pub fn close_if(mut self, condition: bool) -> LocalReply {
        self.close |= condition;
        self
    }

    /// With a header behind those of the route.
    pub fn last_header(mut self, name: HeaderName, value: HeaderValue) -> LocalReply {
        self.headers_last = true;
        self.header(name, value)
    }

    /// With a header.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> LocalReply {
        self.headers.push((name, value));
        self
    }
}

/// Envoy's mapping from an HTTP status to a gRPC one (`Grpc::Utility::httpToGrpcStatus`).
pub fn grpc_status_of_http(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Reason phrases as Envoy writes them.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        413 => "Payload Too Large",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        _ => "",
    }
}

/// `local_reply_config`, compiled.
#[derive(Default)]
pub struct LocalReplyRules {
    mappers: Vec<Mapper>,
    format: Option<BodyFormatter>,
    runtime: Option<Arc<dyn Runtime>>,
}

struct Mapper {
    filter: LogFilter,
    status: Option<u16>,
    body: Option<Bytes>,
    format: Option<BodyFormatter>,
    headers: HeaderRules,
}

/// A compiled body format with its content type.
#[derive(Debug)]
pub struct BodyFormatter {
    kind: BodyKind,
    content_type: HeaderValue,
}

#[derive(Debug)]
enum BodyKind {
    Text(Formatter),
    Json(JsonFormatter),
}

impl BodyFormatter {
    /// Compiles a format.
    ///
    /// # Errors
    /// What is wrong, with its path.
    pub fn new(config: &BodyFormat) -> Result<BodyFormatter, (String, String)> {
        let omit = config.format.omit_empty_values;
        let path = || config.format.path.to_string();
        let kind = match &config.format.kind {
            LogFormatKind::Text(text) => BodyKind::Text(Formatter::new(text, omit).map_err(|e| (path(), e.0))?),
            LogFormatKind::Default => {
                BodyKind::Text(Formatter::new("%LOCAL_REPLY_BODY%", omit).map_err(|e| (path(), e.0))?)
            }
            LogFormatKind::Json(value) | LogFormatKind::UntypedJson(value) => {
                BodyKind::Json(JsonFormatter::new(value, omit).map_err(|e| (path(), e.0))?)
            }
        };
        let by_shape = if matches!(kind, BodyKind::Json(_)) { "application/json" } else { "text/plain" };
        let content_type = match config.content_type.is_empty() {
            true => HeaderValue::from_static(by_shape),
            false => HeaderValue::parse(config.content_type.to_string())
                .ok_or_else(|| (path(), "content_type is not a valid header value".to_owned()))?,
        };
        Ok(BodyFormatter { kind, content_type })
    }

    /// `content-type` of such bodies.
    pub fn content_type(&self) -> &HeaderValue {
        &self.content_type
    }

    /// The body for a request.
    pub fn body(&self, cx: &FormatContext<'_>) -> Bytes {
        let mut out = Vec::with_capacity(128);
        match &self.kind {
            BodyKind::Text(f) => f.write(cx, &mut out),
            BodyKind::Json(f) => f.write(cx, &mut out),
        }
        out.into()
    }
}

impl LocalReplyRules {
    /// Compiles the configuration.
    ///
    /// # Errors
    /// Formats, filters and bodies that are wrong, each with its path.
    pub fn new(
        config: Option<&LocalReplyConfig>,
        runtime: &Arc<dyn Runtime>,
    ) -> Result<LocalReplyRules, Vec<(String, String)>> {
        let Some(config) = config else { return Ok(LocalReplyRules::default()) };
        let mut errors = Vec::new();
        let mut keep = |format: &Option<BodyFormat>| {
            format.as_ref().and_then(|f| BodyFormatter::new(f).map_err(|e| errors.push(e)).ok())
        };
        let format = keep(&config.body_format);
        let formats: Vec<_> = config.mappers.iter().map(|m| keep(&m.body_format)).collect();
        let mut mappers = Vec::new();
        for (mapper, format) in config.mappers.iter().zip(formats) {
            let filter = match LogFilter::build(&mapper.filter) {
                Ok(filter) => filter,
                Err(e) => {
                    errors.push(("local_reply_config.mappers".to_owned(), e));
                    continue;
                }
            };
            let body = match mapper.body.as_ref().map(|b| crate::route::read(b, MAX_BODY)).transpose() {
                Ok(body) => body,
                Err(e) => {
                    errors.push(("local_reply_config.mappers.body".to_owned(), e));
                    continue;
                }
            };
            match HeaderRules::build(&mapper.headers_to_add, &[]) {
                Ok(headers) => mappers.push(Mapper { filter, status: mapper.status_code, body, format, headers }),
                Err(found) => errors.extend(found),
            }
        }
        if errors.is_empty() {
            Ok(LocalReplyRules { mappers, format, runtime: Some(runtime.clone()) })
        } else {
            Err(errors)
        }
    }

    /// True when nothing is rewritten.
    pub fn is_empty(&self) -> bool {
        self.mappers.is_empty() && self.format.is_none()
    }

    /// Rewrites a reply by the first mapper whose filter passes, then by the general format. Returns the content type
    /// when it is not the usual one.
    pub fn apply(
        &self,
        response: &mut Headers,
        body: &mut Bytes,
        request: &Headers,
        info: &mut StreamInfo,
    ) -> Option<HeaderValue> {
        info.local_reply_body = Some(body.clone());
        let cx = FormatContext { request: Some(request), response: Some(response), ..FormatContext::new(info) };
        let runtime: &dyn Runtime = self.runtime.as_deref().unwrap_or(&NoRuntime);
        let mapper = self.mappers.iter().find(|m| m.filter.passes(&cx, runtime));
        if let Some(m) = mapper {
            if let Some(own) = &m.body {
                body.clone_from(own);
            }
            let cx = FormatContext { request: Some(request), ..FormatContext::new(info) };
            m.headers.apply_response(response, &cx);
            if let Some(status) = m.status {
                response.set_status(status);
            }
        }
        info.response_code = response.status();
        info.local_reply_body = Some(body.clone());
        let format = mapper.and_then(|m| m.format.as_ref()).or(self.format.as_ref())?;
        *body = format.body(&FormatContext {
            request: Some(request),
            response: Some(response),
            ..FormatContext::new(info)
        });
        Some(format.content_type.clone())
    }
}
