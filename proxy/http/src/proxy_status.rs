//! The header `proxy-status` (RFC 9209) on responses that an error brought about: who says it, which error of the RFC comes
//! closest to the response flags, and the details of the log.

use std::fmt::Write as _;

use nuncio_config::hcm::{ProxyStatusConfig, ProxyStatusName};

use crate::header_rules::LocalInfo;
use crate::headers::{HeaderName, HeaderValue, Headers};
use crate::stream_info::{ResponseFlags, StreamInfo};

/// `proxy_status_config`, ready.
pub(crate) struct ProxyStatus {
    config: ProxyStatusConfig,
    header: Option<HeaderName>,
    name: Box<str>,
}

/// Flags in the order in which they count, with their error and the status that the RFC recommends for it.
const ERRORS: &[(ResponseFlags, &str, Option<u16>)] = &[
    (ResponseFlags::FAILED_LOCAL_HEALTH_CHECK, "destination_unavailable", Some(503)),
    (ResponseFlags::NO_HEALTHY_UPSTREAM, "destination_unavailable", Some(503)),
    (ResponseFlags::UPSTREAM_REQUEST_TIMEOUT, "http_response_timeout", Some(504)),
    (ResponseFlags::LOCAL_RESET, "connection_timeout", Some(504)),
    (ResponseFlags::UPSTREAM_REMOTE_RESET, "connection_terminated", Some(502)),
    (ResponseFlags::UPSTREAM_CONNECTION_FAILURE, "connection_refused", Some(502)),
    (ResponseFlags::UPSTREAM_CONNECTION_TERMINATION, "connection_terminated", Some(502)),
    (ResponseFlags::UPSTREAM_OVERFLOW, "connection_limit_reached", Some(503)),
    (ResponseFlags::NO_ROUTE_FOUND, "destination_not_found", Some(500)),
    (ResponseFlags::RATE_LIMITED, "connection_limit_reached", Some(503)),
    (ResponseFlags::RATELIMIT_SERVICE_ERROR, "connection_limit_reached", Some(503)),
    (ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED, "destination_unavailable", Some(503)),
    (ResponseFlags::STREAM_IDLE_TIMEOUT, "http_response_timeout", Some(504)),
    (ResponseFlags::INVALID_ENVOY_REQUEST_HEADERS, "http_request_error", None),
    (ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED, "http_response_timeout", Some(504)),
    (ResponseFlags::NO_FILTER_CONFIG_FOUND, "proxy_configuration_error", Some(500)),
    (ResponseFlags::UPSTREAM_PROTOCOL_ERROR, "http_protocol_error", Some(502)),
    (ResponseFlags::NO_CLUSTER_FOUND, "destination_unavailable", Some(503)),
    (ResponseFlags::DNS_RESOLUTION_FAILED, "dns_error", Some(502)),
];

impl ProxyStatus {
    pub(crate) fn build(config: &ProxyStatusConfig, server_name: &str, local: &LocalInfo) -> Self {
        let name = match &config.name {
            ProxyStatusName::ServerName => server_name.into(),
            ProxyStatusName::NodeId => String::from_utf8_lossy(local.node.as_bytes()).into(),
            ProxyStatusName::Literal(name) => name.clone(),
        };
        ProxyStatus { config: config.clone(), header: HeaderName::parse("proxy-status"), name }
    }

    /// Adds the header to the head of a response, and changes its status, where the stream has an error.
    pub(crate) fn apply(&self, response: &mut Headers, info: &StreamInfo) {
        let found = ERRORS.iter().find(|(flag, ..)| info.flags.contains(*flag));
        let (Some((_, error, recommended)), Some(header)) = (found, &self.header) else { return };
        let Some(value) = HeaderValue::parse(self.value(error, info)) else { return };
        response.append_joined(header.clone(), value.as_bytes(), ", ");
        if self.config.set_recommended_response_code
            && let Some(code) = recommended
        {
            response.set_status(*code);
        }
    }

    fn value(&self, error: &str, info: &StreamInfo) -> String {
        let config = &self.config;
        let mut out = format!("{}; error={error}", self.name);
        if config.remove_details {
            return out;
        }
        let mut details: Vec<&str> = info.response_code_details.as_deref().into_iter().collect();
        if !config.remove_connection_termination_details {
            details.extend(info.connection_termination_details.as_deref());
        }
        let flags = info.flags.names().map(|(short, _)| short).collect::<Vec<_>>().join(",");
        if !config.remove_response_flags && !flags.is_empty() {
            details.push(&flags);
        }
        if !details.is_empty() {
            let _ = write!(out, "; details=\"{}\"", details.join("; "));
        }
        out
    }
}
