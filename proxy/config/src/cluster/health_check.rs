//! `HealthCheck` and `Endpoint.HealthCheckConfig` decoded.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3::endpoint as endpoint_pb;
use envoy_types::pb::envoy::extensions::health_check::event_sinks::file::v3::HealthCheckEventFileSink;
use envoy_types::pb::envoy::extensions::health_checkers::redis::v3::Redis;
use envoy_types::pb::envoy::r#type::v3::{CodecClientType, Int64Range};

use crate::address::Address;
use crate::decode::{Context, bool_value, json, type_name, u32_value};
use crate::extensions::type_of;
use crate::header_mutation::{HeaderMutations, HeaderValueOption};
use crate::listener::ProxyProtocolVersion;
use crate::matchers::StringMatcher;

/// `HealthCheck`.
#[derive(Debug, Clone)]
pub struct HealthCheckConfig {
    /// What is done.
    pub kind: HealthCheckKind,
    /// For the whole of one check.
    pub timeout: Duration,
    /// Between checks.
    pub interval: Duration,
    /// Random time before the first check.
    pub initial_jitter: Duration,
    /// Random addition to each interval.
    pub interval_jitter: Duration,
    /// The same in percent of the interval.
    pub interval_jitter_percent: u32,
    /// Failures (of the network, or retriable) until a host is unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes until a host is healthy again.
    pub healthy_threshold: u32,
    /// Connections serve more than one check; default true.
    pub reuse_connection: bool,
    /// While the cluster has had no traffic; default 60 s.
    pub no_traffic_interval: Duration,
    /// The same for healthy hosts.
    pub no_traffic_healthy_interval: Duration,
    /// For unhealthy hosts.
    pub unhealthy_interval: Duration,
    /// After a first failure.
    pub unhealthy_edge_interval: Duration,
    /// After a first success.
    pub healthy_edge_interval: Duration,
    /// File of the event log.
    pub event_log_path: Option<Box<str>>,
    /// Log every failure.
    pub always_log_failures: bool,
    /// Log every success.
    pub always_log_success: bool,
    /// ALPN names of checks instead of the transport socket's.
    pub check_alpn: Vec<Box<[u8]>>,
    /// Labels that choose the transport socket instead of the endpoint's metadata.
    pub transport_socket_match: Option<serde_json::Value>,
}

/// What a check does.
#[derive(Debug, Clone)]
pub enum HealthCheckKind {
    /// A request.
    Http(Box<HttpHealthCheck>),
    /// A connection, and bytes if there are any.
    Tcp {
        /// Bytes to send.
        send: Bytes,
        /// Bytes that must come, in this order.
        receive: Vec<Bytes>,
        /// Each check begins with a PROXY header that tells of no client.
        proxy_protocol: Option<ProxyProtocolVersion>,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// Service to ask for.
        service_name: Box<str>,
        /// `:authority`; empty for the endpoint's or the cluster's name.
        authority: Box<str>,
        /// Metadata to add.
        initial_metadata: Vec<HeaderValueOption>,
    },
    /// `envoy.health_checkers.redis`
    Redis {
        /// Whose absence is asked for; empty for a PING.
        key: Box<str>,
    },
}

impl HealthCheckKind {
    fn decode_custom(cx: &mut Context, message: &core::health_check::CustomHealthCheck) -> Option<Self> {
        use core::health_check::custom_health_check::ConfigType;
        let any = message.config_type.as_ref().map(|ConfigType::TypedConfig(any)| any);
        match any.map_or("", |any| type_name(&any.type_url)) {
            "envoy.extensions.health_checkers.redis.v3.Redis" => {
                let redis: Redis = cx.at("typed_config", |cx| cx.unpack(any?))?;
                Some(HealthCheckKind::Redis { key: redis.key.into() })
            }
            other => {
                cx.refuse_extension("envoy.health_checkers", &message.name, other);
                None
            }
        }
    }
}

/// `HttpHealthCheck`.
#[derive(Debug, Clone)]
pub struct HttpHealthCheck {
    /// Host; empty for the endpoint's or the cluster's name.
    pub check_host: Box<str>,
    /// Path.
    pub check_path: Box<str>,
    /// Method.
    pub check_method: &'static str,
    /// HTTP/2 instead of HTTP/1.
    pub http2: bool,
    /// Body to send.
    pub payload: Bytes,
    /// Parts that the body of the response must hold, in this order.
    pub receive: Vec<Bytes>,
    /// Bytes of the response that are looked at; 0 for all.
    pub response_buffer_size: u64,
    /// Statuses that pass.
    pub expected_statuses: Vec<Range<u16>>,
    /// Statuses that count toward the threshold instead of failing at once.
    pub retriable_statuses: Vec<Range<u16>>,
    /// What `x-envoy-upstream-healthchecked-cluster` must be.
    pub service_name_matcher: Option<StringMatcher>,
    /// Changes to the request's headers.
    pub request_headers: HeaderMutations,
}

/// `Endpoint.HealthCheckConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct EndpointHealthCheck {
    /// Another port; 0 for the endpoint's.
    pub check_port: u16,
    /// Host of requests.
    pub check_hostname: Box<str>,
    /// Another address.
    pub check_address: Option<Address>,
    /// Not checked: it counts as healthy.
    pub disabled: bool,
}

impl EndpointHealthCheck {
    pub(super) fn decode(cx: &mut Context, message: &endpoint_pb::HealthCheckConfig) -> Option<Self> {
        Some(EndpointHealthCheck {
            check_port: u16::try_from(message.port_value).unwrap_or(0),
            check_hostname: message.hostname.as_str().into(),
            check_address: cx.optional("address", &message.address, Address::decode),
            disabled: message.disable_active_health_check,
        })
    }
}

impl HealthCheckConfig {
    /// The health check of a cluster.
    pub(super) fn of_cluster(cx: &mut Context, messages: &[core::HealthCheck]) -> Option<Self> {
        let decoded = cx.each("health_checks", messages, HealthCheckConfig::decode);
        if messages.len() > 1 {
            cx.error_at("health_checks", "Multiple health checks not supported");
            return None;
        }
        decoded.into_iter().next()
    }

    fn decode(cx: &mut Context, message: &core::HealthCheck) -> Option<Self> {
        use core::health_check::HealthChecker;
        let kind = match message.health_checker.as_ref()? {
            HealthChecker::HttpHealthCheck(http) => cx.at("http_health_check", |cx| HttpHealthCheck::decode(cx, http)),
            HealthChecker::TcpHealthCheck(tcp) => cx.at("tcp_health_check", |cx| {
                Some(HealthCheckKind::Tcp {
                    send: cx.optional("send", &tcp.send, payload).unwrap_or_default(),
                    receive: cx.each("receive", &tcp.receive, payload),
                    proxy_protocol: tcp.proxy_protocol_config.as_ref().map(ProxyProtocolVersion::decode),
                })
            }),
            HealthChecker::GrpcHealthCheck(grpc) => cx.at("grpc_health_check", |cx| {
                Some(HealthCheckKind::Grpc {
                    service_name: grpc.service_name.as_str().into(),
                    authority: grpc.authority.as_str().into(),
                    initial_metadata: cx.each("initial_metadata", &grpc.initial_metadata, HeaderValueOption::decode),
                })
            }),
            HealthChecker::CustomHealthCheck(custom) => {
                cx.at("custom_health_check", |cx| HealthCheckKind::decode_custom(cx, custom))
            }
        };
        let m = message;
        let interval = cx.duration("interval", &m.interval).unwrap_or(Duration::from_secs(60));
        let no_traffic_interval =
            cx.duration("no_traffic_interval", &m.no_traffic_interval).unwrap_or(Duration::from_secs(60));
        let unhealthy_interval = cx.duration("unhealthy_interval", &m.unhealthy_interval).unwrap_or(interval);
        Some(HealthCheckConfig {
            timeout: cx.duration("timeout", &m.timeout).unwrap_or(Duration::from_secs(5)),
            initial_jitter: cx.duration("initial_jitter", &m.initial_jitter).unwrap_or_default(),
            interval_jitter: cx.duration("interval_jitter", &m.interval_jitter).unwrap_or_default(),
            interval_jitter_percent: m.interval_jitter_percent,
            unhealthy_threshold: u32_value(&m.unhealthy_threshold).unwrap_or(1),
            healthy_threshold: u32_value(&m.healthy_threshold).unwrap_or(1),
            reuse_connection: bool_value(&m.reuse_connection).unwrap_or(true),
            no_traffic_healthy_interval: cx
                .duration("no_traffic_healthy_interval", &m.no_traffic_healthy_interval)
                .unwrap_or(no_traffic_interval),
            unhealthy_edge_interval: cx
                .duration("unhealthy_edge_interval", &m.unhealthy_edge_interval)
                .unwrap_or(unhealthy_interval),
            healthy_edge_interval: cx.duration("healthy_edge_interval", &m.healthy_edge_interval).unwrap_or(interval),
            event_log_path: event_log_path(cx, m),
            always_log_failures: m.always_log_health_check_failures,
            always_log_success: m.always_log_health_check_success,
            check_alpn: m
                .tls_options
                .iter()
                .flat_map(|options| &options.alpn_protocols)
                .map(|name| name.as_bytes().into())
                .collect(),
            transport_socket_match: m.transport_socket_match_criteria.as_ref().map(json::from_struct),
            kind: kind?,
            interval,
            no_traffic_interval,
            unhealthy_interval,
        })
    }
}

/// The deprecated field, or the file sink among the loggers.
fn event_log_path(cx: &mut Context, message: &core::HealthCheck) -> Option<Box<str>> {
    let mut path: Option<Box<str>> =
        (!message.event_log_path.is_empty()).then(|| message.event_log_path.as_str().into());
    cx.each("event_logger", &message.event_logger, |cx, logger| {
        let kind = type_of(logger);
        if kind != "envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink" {
            cx.refuse_extension("envoy.health_check.event_sinks", &logger.name, kind);
            return None;
        }
        let any = logger.typed_config.as_ref()?;
        let sink: HealthCheckEventFileSink = cx.at("typed_config", |cx| cx.unpack(any))?;
        path = Some(sink.event_log_path.as_str().into());
        Some(())
    });
    path
}

/// Text is written in hexadecimal.
fn payload(cx: &mut Context, message: &core::health_check::Payload) -> Option<Bytes> {
    use core::health_check::payload::Payload;
    match message.payload.as_ref()? {
        Payload::Binary(bytes) => Some(Bytes::copy_from_slice(bytes)),
        Payload::Text(text) => {
            let digits: Option<Vec<u8>> =
                text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
            match digits {
                Some(digits) if digits.len() % 2 == 0 => {
                    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
                }
                _ => {
                    cx.error_at("text", format!("invalid hex string '{text}'"));
                    None
                }
            }
        }
    }
}

impl HttpHealthCheck {
    fn decode(cx: &mut Context, message: &core::health_check::HttpHealthCheck) -> Option<HealthCheckKind> {
        use core::RequestMethod;
        let method = message.method();
        let payload = cx.optional("send", &message.send, payload).unwrap_or_default();
        let without_body =
            [RequestMethod::MethodUnspecified, RequestMethod::Get, RequestMethod::Head, RequestMethod::Delete];
        if message.send.is_some() && (without_body.contains(&method) || method == RequestMethod::Trace) {
            let name = if method == RequestMethod::MethodUnspecified { "GET" } else { method.as_str_name() };
            cx.error(format!(
                "HTTP health check cannot specify a request payload with method '{name}'. Only methods that support \
                 a request body (POST, PUT, PATCH, OPTIONS) can be used with payload."
            ));
        }
        let receive = cx.each("receive", &message.receive, self::payload);
        let response_buffer_size = message.response_buffer_size.map_or(1024, |size| size.value);
        let total: usize = receive.iter().map(Bytes::len).sum();
        if response_buffer_size != 0 && total as u64 > response_buffer_size {
            cx.error(format!(
                "The expected response length '{total}' is over than http health response buffer size \
                 '{response_buffer_size}'"
            ));
        }
        let codec = message.codec_client_type();
        if codec == CodecClientType::Http3 {
            cx.error_at("codec_client_type", "health checks over HTTP/3 are not implemented");
        }
        let mut expected = ranges(cx, "expected_statuses", "expected", &message.expected_statuses);
        if message.expected_statuses.is_empty() {
            expected.push(200..201);
        }
        Some(HealthCheckKind::Http(Box::new(HttpHealthCheck {
            check_host: message.host.as_str().into(),
            check_path: message.path.as_str().into(),
            check_method: match method {
                RequestMethod::MethodUnspecified | RequestMethod::Get => "GET",
                other => other.as_str_name(),
            },
            http2: codec == CodecClientType::Http2,
            payload,
            receive,
            response_buffer_size,
            expected_statuses: expected,
            retriable_statuses: ranges(cx, "retriable_statuses", "retriable", &message.retriable_statuses),
            service_name_matcher: cx.optional(
                "service_name_matcher",
                &message.service_name_matcher,
                StringMatcher::decode,
            ),
            request_headers: HeaderMutations::decode(
                cx,
                &message.request_headers_to_add,
                &message.request_headers_to_remove,
                &[],
                &[],
            ),
        })))
    }
}

fn ranges(cx: &mut Context, field: &'static str, kind: &str, messages: &[Int64Range]) -> Vec<Range<u16>> {
    cx.each(field, messages, |cx, range| {
        let (start, end) = (range.start, range.end);
        let what = if start >= end {
            format!("expecting start < end, but found start={start} and end={end}")
        } else if start < 100 {
            format!("expecting start >= 100, but found start={start}")
        } else if end > 600 {
            format!("expecting end <= 600, but found end={end}")
        } else {
            return Some(start as u16..end as u16);
        };
        cx.error(format!("Invalid http {kind} status range: {what}"));
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::envoy::config::core::v3::health_check::{
        HealthChecker, HttpHealthCheck as PbHttp, Payload, TcpHealthCheck, payload as payload_pb,
    };
    use envoy_types::pb::google::protobuf::Duration as PbDuration;

    fn decode(checker: HealthChecker) -> Result<HealthCheckConfig, Vec<crate::diagnostics::ConfigError>> {
        let seconds = |seconds| Some(PbDuration { seconds, nanos: 0 });
        let message = core::HealthCheck {
            interval: seconds(7),
            unhealthy_interval: seconds(3),
            health_checker: Some(checker),
            ..Default::default()
        };
        Context::default().run(|cx| HealthCheckConfig::of_cluster(cx, &[message]))
    }

    fn text(text: &str) -> Payload {
        Payload { payload: Some(payload_pb::Payload::Text(text.into())) }
    }

    #[test]
    fn intervals_default_to_each_other() {
        let config = decode(HealthChecker::HttpHealthCheck(PbHttp { path: "/".into(), ..Default::default() })).unwrap();
        let seconds = [
            config.unhealthy_edge_interval,
            config.healthy_edge_interval,
            config.no_traffic_interval,
            config.no_traffic_healthy_interval,
        ]
        .map(|interval| interval.as_secs());
        assert_eq!(seconds, [3, 7, 60, 60]);
        let HealthCheckKind::Http(http) = config.kind else { panic!("an HTTP check") };
        assert_eq!((http.check_method, http.response_buffer_size), ("GET", 1024));
        assert!(matches!(&http.expected_statuses[..], [range] if *range == (200..201)));
    }

    #[test]
    fn text_is_hexadecimal() {
        let check = |send| {
            decode(HealthChecker::TcpHealthCheck(TcpHealthCheck { send: Some(text(send)), ..Default::default() }))
        };
        let HealthCheckKind::Tcp { send, .. } = check("0aFf").unwrap().kind else { panic!("a TCP check") };
        assert_eq!(&send[..], [0x0a, 0xff]);
        let expected = ["health_checks[0].tcp_health_check.send.text: invalid hex string '0x'"];
        assert_eq!(errors(check("0x")), expected);
    }

    #[test]
    fn status_ranges_are_checked() {
        let range = |start, end| Int64Range { start, end };
        let http = PbHttp {
            path: "/".into(),
            expected_statuses: vec![range(200, 200), range(99, 200), range(500, 601), range(200, 300)],
            ..Default::default()
        };
        assert_eq!(
            errors(decode(HealthChecker::HttpHealthCheck(http))),
            [
                "health_checks[0].http_health_check.expected_statuses[0]: Invalid http expected status range: expecting start < end, but found start=200 and end=200",
                "health_checks[0].http_health_check.expected_statuses[1]: Invalid http expected status range: expecting start >= 100, but found start=99",
                "health_checks[0].http_health_check.expected_statuses[2]: Invalid http expected status range: expecting end <= 600, but found end=601",
            ]
        );
    }

    #[test]
    fn a_get_has_no_payload() {
        let http = PbHttp { path: "/".into(), send: Some(text("61")), ..Default::default() };
        let errors = errors(decode(HealthChecker::HttpHealthCheck(http)));
        assert!(errors[0].contains("cannot specify a request payload with method 'GET'"), "{errors:?}");
    }

    #[test]
    fn a_cluster_has_one_health_check() {
        let check = core::HealthCheck {
            health_checker: Some(HealthChecker::TcpHealthCheck(TcpHealthCheck::default())),
            ..Default::default()
        };
        let result = Context::default().run(|cx| HealthCheckConfig::of_cluster(cx, &[check.clone(), check]));
        assert_eq!(errors(result), ["health_checks: Multiple health checks not supported"]);
    }
}
