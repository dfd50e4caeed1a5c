//! Access logs over gRPC (`envoy.access_loggers.http_grpc`): from a stream that has ended to the entry that a server is sent.
//!
//! Entries are made on workers and handed over through a bounded queue; who owns the other end ([`LogStreams`]) sends them,
//! many at a time. What does not fit is dropped and counted, as Envoy does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::data::accesslog::v3 as data;
use envoy_types::pb::google::protobuf;
use nuncio_config::access_log::GrpcAccessLogConfig;
use nuncio_http::access_log::AccessLogger;
use nuncio_http::codec::Protocol;
use nuncio_http::formatter::FormatContext;
use nuncio_http::headers::{HeaderName, Headers, names};
use nuncio_http::stream_info::ResponseFlags;
use nuncio_net::address::Address;
use nuncio_net::connection::ConnectionInfo;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// An entry as it is sent.
pub type Entry = data::HttpAccessLogEntry;

/// Entries that may wait for their stream.
pub const MOST_WAITING: usize = 16 * 1024;

nuncio_base::stat_family! {
    /// `access_logs.grpc_access_log.`
    pub struct GrpcLogStats {
        counters { logs_dropped, logs_written }
    }
}

/// Who sends entries.
pub trait LogStreams {
    /// The end to which entries of such a log are given. It is the same for logs that are configured alike.
    ///
    /// # Errors
    /// The server cannot be called.
    fn open(&self, config: &Arc<GrpcAccessLogConfig>) -> Result<mpsc::Sender<Entry>, String>;

    /// What is counted.
    fn stats(&self) -> GrpcLogStats;
}

/// The logger of one configuration.
struct HttpGrpc {
    entries: mpsc::Sender<Entry>,
    additional: [Box<[HeaderName]>; 3],
    stats: GrpcLogStats,
}

/// Makes the logger.
///
/// # Errors
/// The server cannot be called, or a header name is none.
pub fn build(config: &Arc<GrpcAccessLogConfig>, streams: &dyn LogStreams) -> Result<Arc<dyn AccessLogger>, String> {
    let names = |names: &[Box<str>]| -> Result<Box<[HeaderName]>, String> {
        names.iter().map(|name| HeaderName::parse(name).ok_or_else(|| format!("'{name}' is no header name"))).collect()
    };
    let [request, response, trailers] = &config.additional;
    let additional = [names(request)?, names(response)?, names(trailers)?];
    Ok(Arc::new(HttpGrpc { entries: streams.open(config)?, additional, stats: streams.stats() }))
}

impl AccessLogger for HttpGrpc {
    fn log(&self, cx: &FormatContext<'_>) {
        // The room is taken first: an entry that would be dropped is not made.
        match self.entries.try_reserve() {
            Ok(room) => room.send(entry(cx, &self.additional)),
            Err(_) => self.stats.logs_dropped().inc(),
        }
    }
}

fn text(headers: &Headers, name: &HeaderName) -> String {
    headers.bytes(name).map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
}

fn chosen(headers: Option<&Headers>, names: &[HeaderName]) -> HashMap<String, String> {
    let value =
        |headers: &Headers, name: &HeaderName| Some(String::from_utf8_lossy(&headers.joined(name)?).into_owned());
    let all = headers.into_iter().flat_map(|headers| {
        names.iter().filter_map(move |name| Some((name.as_str().to_owned(), value(headers, name)?)))
    });
    all.collect()
}

/// What is known about a stream, as an entry.
fn entry(cx: &FormatContext<'_>, additional: &[Box<[HeaderName]>; 3]) -> Entry {
    let info = cx.info;
    let protocol_version = match info.protocol {
        None => 0,
        Some(Protocol::Http10) => 1,
        Some(Protocol::Http11) => 2,
        Some(Protocol::Http2) => 3,
        Some(Protocol::Http3) => 4,
    };
    let mut request = data::HttpRequestProperties {
        request_body_bytes: info.bytes_received,
        upstream_header_bytes_sent: info.upstream.meter.header_bytes_sent,
        downstream_header_bytes_received: info.meter.header_bytes_received,
        request_headers: chosen(cx.request, &additional[0]),
        ..data::HttpRequestProperties::default()
    };
    if let Some(headers) = cx.request {
        let method = text(headers, &names::METHOD);
        request.request_method = core::RequestMethod::from_str_name(&method).unwrap_or_default() as i32;
        request.scheme = text(headers, &names::SCHEME);
        request.authority = text(headers, &names::AUTHORITY);
        request.path = text(headers, &names::PATH);
        request.user_agent = text(headers, &names::USER_AGENT);
        request.referer = text(headers, &names::REFERER);
        request.forwarded_for = text(headers, &names::X_FORWARDED_FOR);
        request.request_id = text(headers, &names::X_REQUEST_ID);
        request.original_path = text(headers, &names::X_ENVOY_ORIGINAL_PATH);
        request.request_headers_bytes = headers.byte_size() as u64;
    }
    let code = u32::from(info.response_code);
    let response = data::HttpResponseProperties {
        response_code: (code > 0).then_some(protobuf::UInt32Value { value: code }),
        response_headers_bytes: cx.response.map_or(0, |headers| headers.byte_size() as u64),
        response_body_bytes: info.bytes_sent,
        response_headers: chosen(cx.response, &additional[1]),
        response_trailers: chosen(cx.trailers, &additional[2]),
        response_code_details: info.response_code_details.as_deref().unwrap_or_default().to_owned(),
        upstream_header_bytes_received: info.upstream.meter.header_bytes_received,
        downstream_header_bytes_sent: info.meter.header_bytes_sent,
    };
    Entry { common_properties: Some(common(cx)), protocol_version, request: Some(request), response: Some(response) }
}

fn common(cx: &FormatContext<'_>) -> data::AccessLogCommon {
    let info = cx.info;
    let connection = &*info.connection;
    let upstream = info.upstream.connection.as_deref();
    let since = |at: Option<Instant>| at.map(|at| duration(at.saturating_duration_since(info.start)));
    let owned = |text: Option<&str>| text.unwrap_or_default().to_owned();
    data::AccessLogCommon {
        downstream_remote_address: address(info.remote_address.as_ref().unwrap_or(&connection.remote_address)),
        downstream_direct_remote_address: address(&connection.direct_remote_address),
        downstream_local_address: address(&connection.local_address),
        tls_properties: tls(connection),
        start_time: info
            .start_time
            .duration_since(SystemTime::UNIX_EPOCH)
            .ok()
            .map(|since| protobuf::Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32 }),
        time_to_last_rx_byte: since(info.request_complete),
        time_to_first_upstream_tx_byte: since(info.upstream.first_tx),
        time_to_last_upstream_tx_byte: since(info.upstream.last_tx),
        time_to_first_upstream_rx_byte: since(info.upstream.first_rx),
        time_to_last_upstream_rx_byte: since(info.upstream.last_rx),
        time_to_first_downstream_tx_byte: since(info.response_first_tx),
        time_to_last_downstream_tx_byte: since(info.response_last_tx),
        duration: since(info.complete),
        // Where there is no connection, the host that was tried.
        upstream_remote_address: match upstream {
            Some(connection) => address(&connection.remote_address),
            None => info.upstream.host.as_deref().and_then(|host| address(&Address::Ip(host.parse().ok()?))),
        },
        upstream_local_address: upstream.and_then(|c| address(&c.local_address)),
        upstream_cluster: owned(info.upstream.cluster_alt_name.as_deref()),
        response_flags: Some(flags(info.flags)).filter(|flags| *flags != data::ResponseFlags::default()),
        upstream_transport_failure_reason: owned(info.upstream.transport_failure_reason.as_deref()),
        route_name: owned(info.route_name.as_deref()),
        upstream_request_attempt_count: info.attempt_count,
        connection_termination_details: owned(info.connection_termination_details.as_deref()),
        stream_id: info.request_id.map(|id| String::from_utf8_lossy(&id).into_owned()).unwrap_or_default(),
        downstream_transport_failure_reason: owned(connection.transport_failure_reason.get().map(|text| &**text)),
        downstream_wire_bytes_sent: info.meter.wire_bytes_sent,
        downstream_wire_bytes_received: info.meter.wire_bytes_received,
        upstream_wire_bytes_sent: info.upstream.meter.wire_bytes_sent,
        upstream_wire_bytes_received: info.upstream.meter.wire_bytes_received,
        access_log_type: cx.log_type as i32,
        ..data::AccessLogCommon::default()
    }
}

fn duration(time: Duration) -> protobuf::Duration {
    protobuf::Duration { seconds: time.as_secs() as i64, nanos: time.subsec_nanos() as i32 }
}

fn address(address: &Address) -> Option<core::Address> {
    use core::address::Address as Kind;
    let kind = match address {
        Address::Ip(at) => Kind::SocketAddress(core::SocketAddress {
            address: at.ip().to_string(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(at.port().into())),
            ..core::SocketAddress::default()
        }),
        Address::Pipe(path) => Kind::Pipe(core::Pipe { path: path.to_string(), mode: 0 }),
        // Not an address that a server could make anything of.
        Address::Internal(_) => return None,
    };
    Some(core::Address { address: Some(kind) })
}

fn tls(connection: &ConnectionInfo) -> Option<data::TlsProperties> {
    let tls = connection.tls.as_deref()?;
    let fingerprints = connection.fingerprints.as_deref();
    Some(data::TlsProperties {
        tls_version: match tls.version {
            "TLSv1.2" => 3,
            "TLSv1.3" => 4,
            _ => 0,
        },
        tls_sni_hostname: connection.requested_server_name.as_deref().unwrap_or_default().to_owned(),
        tls_session_id: tls.session_id.to_string(),
        ja3_fingerprint: fingerprints.and_then(|f| f.ja3.as_deref()).unwrap_or_default().to_owned(),
        ..data::TlsProperties::default()
    })
}

fn flags(flags: ResponseFlags) -> data::ResponseFlags {
    use data::response_flags::{Unauthorized, unauthorized::Reason};
    let has = |flag| flags.contains(flag);
    let unauthorized = has(ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE);
    data::ResponseFlags {
        failed_local_healthcheck: has(ResponseFlags::FAILED_LOCAL_HEALTH_CHECK),
        no_healthy_upstream: has(ResponseFlags::NO_HEALTHY_UPSTREAM),
        upstream_request_timeout: has(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT),
        local_reset: has(ResponseFlags::LOCAL_RESET),
        upstream_remote_reset: has(ResponseFlags::UPSTREAM_REMOTE_RESET),
        upstream_connection_failure: has(ResponseFlags::UPSTREAM_CONNECTION_FAILURE),
        upstream_connection_termination: has(ResponseFlags::UPSTREAM_CONNECTION_TERMINATION),
        upstream_overflow: has(ResponseFlags::UPSTREAM_OVERFLOW),
        no_route_found: has(ResponseFlags::NO_ROUTE_FOUND),
        delay_injected: has(ResponseFlags::DELAY_INJECTED),
        fault_injected: has(ResponseFlags::FAULT_INJECTED),
        rate_limited: has(ResponseFlags::RATE_LIMITED),
        unauthorized_details: unauthorized.then_some(Unauthorized { reason: Reason::ExternalService as i32 }),
        rate_limit_service_error: has(ResponseFlags::RATELIMIT_SERVICE_ERROR),
        downstream_connection_termination: has(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION),
        upstream_retry_limit_exceeded: has(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED),
        stream_idle_timeout: has(ResponseFlags::STREAM_IDLE_TIMEOUT),
        invalid_envoy_request_headers: has(ResponseFlags::INVALID_ENVOY_REQUEST_HEADERS),
        downstream_protocol_error: has(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR),
        upstream_max_stream_duration_reached: has(ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED),
        response_from_cache_filter: has(ResponseFlags::RESPONSE_FROM_CACHE_FILTER),
        no_filter_config_found: has(ResponseFlags::NO_FILTER_CONFIG_FOUND),
        duration_timeout: has(ResponseFlags::DURATION_TIMEOUT),
        upstream_protocol_error: has(ResponseFlags::UPSTREAM_PROTOCOL_ERROR),
        no_cluster_found: has(ResponseFlags::NO_CLUSTER_FOUND),
        overload_manager: has(ResponseFlags::OVERLOAD_MANAGER),
        dns_resolution_failure: has(ResponseFlags::DNS_RESOLUTION_FAILED),
        downstream_remote_reset: has(ResponseFlags::DOWNSTREAM_REMOTE_RESET),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_base::stats::{Registry, StatsConfig};
    use nuncio_config::config_source::{GrpcService, GrpcTarget};
    use nuncio_http::headers::HeaderValue;
    use nuncio_http::stream_info::StreamInfo;
    use std::rc::Rc;
    use std::sync::Mutex;

    /// A server for one log, with room for one entry.
    struct One {
        sender: mpsc::Sender<Entry>,
        registry: Registry,
        asked: Mutex<u32>,
    }

    impl LogStreams for One {
        fn open(&self, _: &Arc<GrpcAccessLogConfig>) -> Result<mpsc::Sender<Entry>, String> {
            *self.asked.lock().unwrap() += 1;
            Ok(self.sender.clone())
        }

        fn stats(&self) -> GrpcLogStats {
            GrpcLogStats::new(&self.registry, "access_logs.grpc_access_log.")
        }
    }

    fn config(header: &str) -> Arc<GrpcAccessLogConfig> {
        let target = GrpcTarget::Envoy {
            cluster: "als".into(),
            authority: "".into(),
            max_receive_message_length: None,
            skip_envoy_headers: false,
        };
        Arc::new(GrpcAccessLogConfig {
            log_name: "l".into(),
            service: GrpcService { target, initial_metadata: Vec::new(), backoff: None },
            flush_interval: Duration::from_secs(1),
            buffer_size: 0,
            additional: [[header.into()].into(), [].into(), [].into()],
            path: "".into(),
        })
    }

    #[test]
    fn an_entry_says_what_is_known_and_one_too_many_is_dropped_and_counted() {
        let (sender, mut entries) = mpsc::channel(1);
        let registry = Registry::new(1, StatsConfig::default());
        let streams = One { sender, registry: registry.clone(), asked: Mutex::default() };
        assert!(build(&config("no name"), &streams).is_err());
        let logger = build(&config("x-a"), &streams).unwrap();
        assert_eq!(*streams.asked.lock().unwrap(), 1);

        let at = |port: u16| Address::Ip(([127, 0, 0, 1], port).into());
        let connection = Rc::new(ConnectionInfo::new(at(1), at(2)));
        let mut info = StreamInfo::new(connection, 1, Some(Protocol::Http2));
        info.response_code = 503;
        info.flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
        info.upstream.host = Some("127.0.0.1:3".into());
        let mut request = Headers::with_capacity(2);
        request.append(names::METHOD, HeaderValue::parse("PUT").unwrap());
        request.append(HeaderName::parse("x-a").unwrap(), HeaderValue::parse("1").unwrap());
        let cx = FormatContext { request: Some(&request), ..FormatContext::new(&info) };
        logger.log(&cx);
        logger.log(&cx);
        assert_eq!(registry.counter_value("access_logs.grpc_access_log.logs_dropped"), Some(1));

        let entry = entries.try_recv().unwrap();
        assert_eq!(entry.protocol_version, 3);
        let (common, request) = (entry.common_properties.unwrap(), entry.request.unwrap());
        assert_eq!(request.request_method, core::RequestMethod::Put as i32);
        assert_eq!(request.request_headers, HashMap::from([("x-a".to_owned(), "1".to_owned())]));
        assert_eq!(entry.response.unwrap().response_code.unwrap().value, 503);
        assert!(common.response_flags.unwrap().upstream_connection_failure);
        assert_eq!(common.upstream_remote_address, address(&at(3)));
        assert_eq!(common.downstream_remote_address, address(&at(2)));
        assert!(entries.try_recv().is_err());
    }
}
