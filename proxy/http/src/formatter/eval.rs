//! Where the values of operators come from.

use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use nuncio_net::address::Address;
use nuncio_net::connection::ConnectionInfo;
use serde_json::Value;
use tokio::time::Instant;

use super::FormatContext;
use super::operator::{AddressPart, MetadataOf, Moment, Op, PathOf, Precision, ServerNameOf, Side, Source};
use crate::headers::{HeaderName, Headers, names};
use crate::matchers::{metadata_value, query_parameter};
use crate::stream_info::{
    PROXY_PROTOCOL_TLVS, ResponseFlags, StreamInfo, TUNNEL_RESPONSE_HEADERS, TUNNEL_RESPONSE_TRAILERS,
    UPSTREAM_DYNAMIC_PORT,
};

macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum $name { $($variant),+ }

        impl $name {
            /// By operator name.
            pub(super) fn named(name: &str) -> Option<Self> {
                match name {
                    $($text => Some($name::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

named! {
    /// Numbers that always have a value.
    Number {
        BytesReceived = "BYTES_RECEIVED", BytesSent = "BYTES_SENT", BytesRetransmitted = "BYTES_RETRANSMITTED",
        PacketsRetransmitted = "PACKETS_RETRANSMITTED", ConnectionId = "CONNECTION_ID",
        DownstreamRtt = "DOWNSTREAM_CX_RTT", ResponseCode = "RESPONSE_CODE", Duration = "DURATION",
        DownstreamHeaderRx = "DOWNSTREAM_HEADER_BYTES_RECEIVED", DownstreamHeaderTx = "DOWNSTREAM_HEADER_BYTES_SENT",
        DownstreamPlainHeaderRx = "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED",
        DownstreamPlainHeaderTx = "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT",
        DownstreamWireRx = "DOWNSTREAM_WIRE_BYTES_RECEIVED", DownstreamWireTx = "DOWNSTREAM_WIRE_BYTES_SENT",
        UpstreamHeaderRx = "UPSTREAM_HEADER_BYTES_RECEIVED", UpstreamHeaderTx = "UPSTREAM_HEADER_BYTES_SENT",
        UpstreamPlainHeaderRx = "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED",
        UpstreamPlainHeaderTx = "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT",
        UpstreamWireRx = "UPSTREAM_WIRE_BYTES_RECEIVED", UpstreamWireTx = "UPSTREAM_WIRE_BYTES_SENT",
        UpstreamConnectionId = "UPSTREAM_CONNECTION_ID", AttemptCount = "UPSTREAM_REQUEST_ATTEMPT_COUNT",
        RouteResolutions = "ROUTE_RESOLUTION_COUNT",
    }
}

named! {
    /// Texts and durations that may have none.
    Optional {
        Protocol = "PROTOCOL", UpstreamProtocol = "UPSTREAM_PROTOCOL",
        TerminationDetails = "CONNECTION_TERMINATION_DETAILS", FilterChainName = "FILTER_CHAIN_NAME",
        ListenerName = "LISTENER_NAME", Ja3 = "TLS_JA3_FINGERPRINT", Ja4 = "TLS_JA4_FINGERPRINT", RouteName = "ROUTE_NAME", StreamId = "STREAM_ID",
        VirtualClusterName = "VIRTUAL_CLUSTER_NAME",
        DownstreamTransportFailure = "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
        UpstreamTransportFailure = "UPSTREAM_TRANSPORT_FAILURE_REASON",
        UpstreamCluster = "UPSTREAM_CLUSTER", UpstreamClusterRaw = "UPSTREAM_CLUSTER_RAW",
        UpstreamHost = "UPSTREAM_HOST", UpstreamHostName = "UPSTREAM_HOST_NAME",
        UpstreamHostNameWithoutPort = "UPSTREAM_HOST_NAME_WITHOUT_PORT",
        HostsAttempted = "UPSTREAM_HOSTS_ATTEMPTED", HostsAttemptedWithoutPort = "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT",
        HostNamesAttempted = "UPSTREAM_HOST_NAMES_ATTEMPTED",
        HostNamesAttemptedWithoutPort = "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT",
        ConnectionIdsAttempted = "UPSTREAM_CONNECTION_IDS_ATTEMPTED", UpstreamServerName = "UPSTREAM_SERVER_NAME",
        DownstreamDetectedClose = "DOWNSTREAM_DETECTED_CLOSE_TYPE",
        UpstreamDetectedClose = "UPSTREAM_DETECTED_CLOSE_TYPE",
        DownstreamLocalClose = "DOWNSTREAM_LOCAL_CLOSE_REASON", UpstreamLocalClose = "UPSTREAM_LOCAL_CLOSE_REASON",
        HandshakeDuration = "DOWNSTREAM_HANDSHAKE_DURATION", RouteResolutionTime = "ROUTE_RESOLUTION_TIME_US",
        RequestDuration = "REQUEST_DURATION", RequestTxDuration = "REQUEST_TX_DURATION",
        ResponseDuration = "RESPONSE_DURATION", ResponseTxDuration = "RESPONSE_TX_DURATION",
        PoolReady = "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    }
}

impl Optional {
    fn is_number(self) -> bool {
        use Optional as O;
        matches!(
            self,
            O::RequestDuration
                | O::RequestTxDuration
                | O::ResponseDuration
                | O::ResponseTxDuration
                | O::PoolReady
                | O::HandshakeDuration
                | O::RouteResolutionTime
        )
    }
}

/// Whose address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddressOf {
    DownstreamLocal,
    DownstreamDirectLocal,
    DownstreamRemote,
    DownstreamDirectRemote,
    UpstreamLocal,
    UpstreamRemote,
}

/// A moment in the life of a stream, by Envoy's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimePoint {
    ConnectionBegin,
    ConnectionEnd,
    HandshakeBegin,
    HandshakeEnd,
    RequestBegin,
    RequestEnd,
    ConnectBegin,
    ConnectEnd,
    UpstreamHandshakeEnd,
    UpstreamTxBegin,
    UpstreamTxEnd,
    UpstreamRxBegin,
    UpstreamRxEnd,
    ResponseTxBegin,
    ResponseTxEnd,
    /// Never reached: a name that no filter sets.
    Unknown,
}

impl TimePoint {
    pub(super) fn named(name: &str) -> Self {
        match name {
            "DS_CX_BEG" => TimePoint::ConnectionBegin,
            "DS_CX_END" => TimePoint::ConnectionEnd,
            "DS_HS_BEG" => TimePoint::HandshakeBegin,
            "DS_HS_END" => TimePoint::HandshakeEnd,
            "DS_RX_BEG" => TimePoint::RequestBegin,
            "DS_RX_END" => TimePoint::RequestEnd,
            "US_CX_BEG" => TimePoint::ConnectBegin,
            "US_CX_END" => TimePoint::ConnectEnd,
            "US_HS_END" => TimePoint::UpstreamHandshakeEnd,
            "US_TX_BEG" => TimePoint::UpstreamTxBegin,
            "US_TX_END" => TimePoint::UpstreamTxEnd,
            "US_RX_BEG" => TimePoint::UpstreamRxBegin,
            "US_RX_END" => TimePoint::UpstreamRxEnd,
            "DS_TX_BEG" => TimePoint::ResponseTxBegin,
            "DS_TX_END" => TimePoint::ResponseTxEnd,
            _ => TimePoint::Unknown,
        }
    }

    fn of(self, info: &StreamInfo) -> Option<Instant> {
        let http = info.protocol.is_some();
        let gone = ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION;
        match self {
            TimePoint::ConnectionBegin => Some(info.connection.start),
            // A stream ends before its connection does, unless that takes it along.
            TimePoint::ConnectionEnd => info.complete.filter(|_| !http || info.flags.contains(gone)),
            TimePoint::HandshakeBegin => handshake(&info.connection).map(|(begin, _)| begin),
            TimePoint::HandshakeEnd => handshake(&info.connection).filter(|_| http).map(|(_, end)| end),
            TimePoint::RequestBegin => Some(info.start),
            TimePoint::RequestEnd => info.request_complete,
            TimePoint::ConnectBegin => info.upstream.connection.as_ref().map(|cx| cx.start),
            TimePoint::ConnectEnd => info.upstream.connection.as_ref().and_then(|cx| cx.connected),
            TimePoint::UpstreamHandshakeEnd => {
                info.upstream.connection.as_ref().and_then(|cx| handshake(cx)).map(|(_, end)| end)
            }
            TimePoint::UpstreamTxBegin => info.upstream.first_tx,
            TimePoint::UpstreamTxEnd => info.upstream.last_tx,
            TimePoint::UpstreamRxBegin => info.upstream.first_rx,
            TimePoint::UpstreamRxEnd => info.upstream.last_rx,
            TimePoint::ResponseTxBegin => info.response_first_tx,
            TimePoint::ResponseTxEnd => info.response_last_tx,
            TimePoint::Unknown => None,
        }
    }
}

fn handshake(connection: &ConnectionInfo) -> Option<(Instant, Instant)> {
    connection.tls.as_ref().and_then(|tls| tls.handshake)
}

/// How a value is written in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Digits, as they are.
    Number,
    /// Text in quotes.
    Text,
    /// JSON already ([`Op::write_json`]).
    Json,
}

fn digits(number: u64, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    true
}

fn text(value: Option<&[u8]>, out: &mut Vec<u8>) -> bool {
    if let Some(value) = value {
        out.extend_from_slice(value);
    }
    value.is_some()
}

fn underscored(value: &str, out: &mut Vec<u8>) -> bool {
    out.extend(value.bytes().map(|byte| if byte.is_ascii_whitespace() { b'_' } else { byte }));
    true
}

fn millis(value: Option<Duration>, out: &mut Vec<u8>) -> bool {
    value.is_some_and(|value| digits(value.as_millis() as u64, out))
}

impl Op {
    /// How JSON shows the value.
    pub(super) fn shape(&self) -> Shape {
        match self {
            Op::Number(_) | Op::CommonDuration { .. } | Op::HeadersBytes(_) => Shape::Number,
            Op::Optional(optional) if optional.is_number() => Shape::Number,
            Op::Address { part: AddressPart::Port, .. } => Shape::Number,
            Op::GrpcStatus(form) if form.is_number() => Shape::Number,
            Op::Metadata { .. } | Op::FilterState { .. } | Op::Coalesce(..) => Shape::Json,
            _ => Shape::Text,
        }
    }

    /// Appends the value; false, and nothing appended, where there is none.
    pub(super) fn write(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
        let info = cx.info;
        match self {
            Op::Header { source, name, alternative, max } => {
                let value = header(cx, *source, name, alternative.as_ref());
                text(value.map(|value| &value[..value.len().min(*max)]), out)
            }
            Op::HeaderWithoutQuery { name, alternative, max } => {
                let value = header(cx, Source::Request, name, alternative.as_ref()).map(crate::path::without_query);
                text(value.map(|value| &value[..value.len().min(*max)]), out)
            }
            Op::Time { moment, format } => moment_of(*moment, info).is_some_and(|time| {
                format.write(time, out);
                true
            }),
            Op::Number(number) => digits(number_of(*number, cx), out),
            Op::Optional(optional) => write_optional(*optional, info, out),
            Op::CommonDuration { begin, end, precision } => {
                let (Some(begin), Some(end)) = (begin.of(info), end.of(info)) else { return false };
                let Some(time) = end.checked_duration_since(begin) else { return false };
                let count = match precision {
                    Precision::Millis => time.as_millis(),
                    Precision::Micros => time.as_micros(),
                    Precision::Nanos => time.as_nanos(),
                };
                digits(count as u64, out)
            }
            Op::Address { of, part } => address_of(*of, info).is_some_and(|address| write_address(address, *part, out)),
            Op::Tls { side, field } => match side {
                Side::Downstream => info.connection.tls.as_ref().is_some_and(|tls| field.write(tls, out)),
                Side::Upstream => info
                    .upstream
                    .connection
                    .as_ref()
                    .and_then(|cx| cx.tls.as_ref())
                    .is_some_and(|tls| field.write(tls, out)),
            },
            Op::Metadata { max, .. } => {
                let Some(value) = self.metadata(info) else { return false };
                let start = out.len();
                match value {
                    Value::String(value) => out.extend_from_slice(value.as_bytes()),
                    // Writing to a buffer cannot fail.
                    value => drop(write!(out, "{value}")),
                }
                out.truncate(start.saturating_add(*max));
                true
            }
            Op::FilterState { key, field: Some(field), max, .. } => {
                let Some(value) = filter_state_field(info, key, field) else { return false };
                text(Some(&value.as_bytes()[..value.len().min(*max)]), out)
            }
            Op::FilterState { key, plain, max, .. } => {
                let Some(value) = filter_state(info, key) else { return false };
                let start = out.len();
                match *plain {
                    // A message has no plain text.
                    true if is_message(key) => return false,
                    true => out.extend_from_slice(value.as_bytes()),
                    false => write_typed(key, value, out),
                }
                out.truncate(start.saturating_add(*max));
                true
            }
            Op::Path { query, of, max } => {
                let Some(path) = cx.request.and_then(|headers| path_of(headers, *of)) else { return false };
                let path = if *query { path } else { crate::path::without_query(path) };
                text(Some(&path[..path.len().min(*max)]), out)
            }
            Op::QueryParam { name, max } => {
                let value = cx.request.and_then(|headers| decoded_parameter(headers.path(), name));
                value.is_some_and(|value| decode(value, *max, out))
            }
            Op::QueryParams { decoded, max } => {
                let Some(path) = cx.request.map(Headers::path) else { return false };
                let Some(at) = memchr::memchr(b'?', path) else { return false };
                let query = &path[at + 1..];
                if *decoded {
                    decode_visible(query, *max, out)
                } else {
                    text(Some(&query[..query.len().min(*max)]), out)
                }
            }
            Op::ForwardedCertificate { key, max } => {
                let start = out.len();
                let header = cx.request.and_then(|headers| headers.bytes(&names::X_FORWARDED_CLIENT_CERT));
                let found = header.is_some_and(|header| key.write(header, out));
                out.truncate(start.saturating_add(*max));
                found
            }
            Op::RequestedServerName(of, host) => server_name(*of, *host, cx, out),
            Op::ResponseCodeDetails { spaces } => match info.response_code_details.as_deref() {
                None => false,
                Some(details) if *spaces => text(Some(details.as_bytes()), out),
                Some(details) => underscored(details, out),
            },
            Op::ResponseFlags { long } => {
                write_flags(info.flags, *long, out);
                true
            }
            Op::GrpcStatus(form) => form.write(cx, out),
            Op::HeadersBytes(source) => {
                let added = if *source == Source::Response { cx.info.meter.connection_field_bytes } else { 0 };
                digits(headers(cx, *source).map_or(0, |headers| headers.byte_size() as u64 + added), out)
            }
            Op::AccessLogType => text(Some(cx.log_type.as_str().as_bytes()), out),
            Op::LocalReplyBody => text(Some(info.local_reply_body.as_deref().unwrap_or_default()), out),
            Op::UniqueId => text(Some(&nuncio_base::random::uuid_v4()), out),
            Op::Static(value) => text(Some(value), out),
            Op::Coalesce(ops, max) => {
                let start = out.len();
                for op in ops {
                    if op.write(cx, out) && out.len() > start {
                        out.truncate(start.saturating_add(*max));
                        return true;
                    }
                }
                false
            }
            Op::Nothing => false,
        }
    }

    /// The value as JSON, for operators of [`Shape::Json`]; None where there is none.
    pub(super) fn write_json(&self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
        match self {
            Op::Metadata { .. } => self.metadata(cx.info).is_some_and(|value| {
                drop(write!(out, "{value}"));
                true
            }),
            Op::FilterState { key, field: Some(field), .. } => {
                filter_state_field(cx.info, key, field).is_some_and(|value| {
                    drop(write!(out, "{}", Value::from(value)));
                    true
                })
            }
            Op::FilterState { key, .. } => filter_state(cx.info, key).is_some_and(|value| {
                write_typed(key, value, out);
                true
            }),
            Op::Coalesce(ops, _) => ops.iter().any(|op| super::json::write_value(op, cx, out)),
            _ => false,
        }
    }

    fn metadata<'a>(&self, info: &'a StreamInfo) -> Option<&'a Value> {
        let Op::Metadata { of, namespace, path, .. } = self else { return None };
        let map = match of {
            MetadataOf::Dynamic => info.dynamic_metadata.as_deref(),
            MetadataOf::Route => info.route_metadata.as_ref().and_then(|value| value.as_object()),
            MetadataOf::Cluster => info.upstream.cluster_metadata.as_ref().and_then(|value| value.as_object()),
            MetadataOf::UpstreamHost => info.upstream.host_metadata.as_ref().and_then(|value| value.as_object()),
            MetadataOf::Listener => info.connection.listener.as_ref().and_then(|listener| listener.metadata()),
            MetadataOf::VirtualHost => info.virtual_host_metadata.as_ref().and_then(|value| value.as_object()),
            MetadataOf::FilterChain => {
                info.connection.filter_chain_metadata.as_ref().and_then(|value| value.as_object())
            }
        };
        metadata_value(map, namespace, path).filter(|value| !value.is_null())
    }
}

/// A header, or the other one where that is missing.
fn header<'a>(
    cx: &FormatContext<'a>,
    source: Source,
    name: &HeaderName,
    alternative: Option<&HeaderName>,
) -> Option<&'a [u8]> {
    let headers = headers(cx, source)?;
    headers.bytes(name).or_else(|| headers.bytes(alternative?))
}

fn headers<'a>(cx: &FormatContext<'a>, source: Source) -> Option<&'a Headers> {
    match source {
        Source::Request => cx.request,
        Source::Response => cx.response,
        Source::Trailers => cx.trailers,
    }
}

fn moment_of(moment: Moment, info: &StreamInfo) -> Option<SystemTime> {
    let certificate = |side| match side {
        Side::Downstream => info.connection.tls.as_ref()?.peer_certificate(),
        Side::Upstream => info.upstream.connection.as_ref()?.tls.as_ref()?.peer_certificate(),
    };
    match moment {
        Moment::Start => Some(info.start_time),
        Moment::Emit => Some(SystemTime::now()),
        Moment::CertStart(side) => Some(certificate(side)?.not_before),
        Moment::CertEnd(side) => Some(certificate(side)?.not_after),
    }
}

fn number_of(number: Number, cx: &FormatContext<'_>) -> u64 {
    let info = cx.info;
    match number {
        Number::BytesReceived => info.bytes_received,
        Number::BytesSent => info.bytes_sent,
        Number::BytesRetransmitted | Number::PacketsRetransmitted | Number::DownstreamRtt => 0,
        Number::ConnectionId => info.connection.id,
        Number::ResponseCode => u64::from(info.response_code),
        Number::Duration => duration(info).as_millis() as u64,
        Number::DownstreamHeaderRx | Number::DownstreamPlainHeaderRx => info.meter.header_bytes_received,
        Number::DownstreamHeaderTx | Number::DownstreamPlainHeaderTx => info.meter.header_bytes_sent,
        Number::DownstreamWireRx => info.meter.wire_bytes_received,
        Number::DownstreamWireTx => info.meter.wire_bytes_sent,
        Number::UpstreamHeaderRx | Number::UpstreamPlainHeaderRx => info.upstream.meter.header_bytes_received,
        Number::UpstreamHeaderTx | Number::UpstreamPlainHeaderTx => info.upstream.meter.header_bytes_sent,
        Number::UpstreamWireRx => info.upstream.meter.wire_bytes_received,
        Number::UpstreamWireTx => info.upstream.meter.wire_bytes_sent,
        Number::UpstreamConnectionId => info.upstream.connection.as_ref().map_or(0, |cx| cx.id),
        Number::AttemptCount => u64::from(info.attempt_count),
        Number::RouteResolutions => u64::from(info.route_resolutions),
    }
}

/// Time since the start; the stream's whole time once it is complete.
pub(crate) fn duration(info: &StreamInfo) -> Duration {
    info.complete.unwrap_or_else(Instant::now).saturating_duration_since(info.start)
}

fn write_optional(optional: Optional, info: &StreamInfo, out: &mut Vec<u8>) -> bool {
    let upstream = &info.upstream;
    let since_start = |moment: Option<Instant>| moment.map(|moment| moment.saturating_duration_since(info.start));
    let filled =
        |value: Option<&str>, out: &mut Vec<u8>| text(value.filter(|value| !value.is_empty()).map(str::as_bytes), out);
    match optional {
        Optional::Protocol => filled(info.protocol.map(|protocol| protocol.as_str()), out),
        Optional::UpstreamProtocol => filled(upstream.protocol.map(|protocol| protocol.as_str()), out),
        Optional::TerminationDetails => match info.connection_termination_details.as_deref() {
            Some(details) => filled(Some(details), out),
            None => filled(info.connection.termination_details.get().map(|details| &***details), out),
        },
        Optional::FilterChainName => filled(Some(&info.connection.filter_chain_name), out),
        Optional::Ja3 => filled(info.connection.fingerprints.as_ref().and_then(|found| found.ja3.as_deref()), out),
        Optional::Ja4 => filled(info.connection.fingerprints.as_ref().and_then(|found| found.ja4.as_deref()), out),
        Optional::ListenerName => filled(info.connection.listener.as_ref().map(|listener| &*listener.name), out),
        Optional::RouteName => filled(info.route_name.as_deref(), out),
        Optional::StreamId => text(info.request_id.as_ref().map(|id| &id[..]), out),
        Optional::VirtualClusterName => filled(info.virtual_cluster.as_deref(), out),
        Optional::DownstreamTransportFailure => {
            info.connection.transport_failure_reason.get().is_some_and(|reason| underscored(reason, out))
        }
        Optional::UpstreamTransportFailure => {
            upstream.transport_failure_reason.as_ref().is_some_and(|reason| underscored(reason, out))
        }
        Optional::UpstreamCluster => {
            filled(upstream.cluster_alt_name.as_ref().or(upstream.cluster.as_ref()).map(|name| &**name), out)
        }
        Optional::UpstreamClusterRaw => filled(upstream.cluster.as_deref(), out),
        Optional::UpstreamHost => filled(upstream.host.as_deref(), out),
        Optional::UpstreamHostName => filled(host_name(info), out),
        Optional::UpstreamHostNameWithoutPort => filled(host_name(info).map(without_port), out),
        Optional::HostsAttempted => hosts(info, out, |host, _| host),
        Optional::HostsAttemptedWithoutPort => hosts(info, out, |host, _| without_port(host)),
        Optional::HostNamesAttempted => hosts(info, out, attempted_name),
        Optional::HostNamesAttemptedWithoutPort => {
            hosts(info, out, |host, name| without_port(attempted_name(host, name)))
        }
        Optional::ConnectionIdsAttempted => {
            for (at, id) in upstream.connection_ids_attempted.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                digits(*id, out);
            }
            !upstream.connection_ids_attempted.is_empty()
        }
        Optional::UpstreamServerName => {
            filled(upstream.connection.as_ref().and_then(|cx| cx.requested_server_name.as_deref()), out)
        }
        Optional::DownstreamDetectedClose => filled(Some(info.connection.detected_close.get().as_str()), out),
        // TCP connections always have an upstream side; streams have one once a host was chosen.
        Optional::UpstreamDetectedClose if info.protocol.is_some() && upstream.host.is_none() => false,
        Optional::UpstreamDetectedClose => {
            let connection = upstream.connection.as_ref().map(|cx| cx.detected_close.get());
            let close = upstream.detected_close.or(connection).unwrap_or_default();
            filled(Some(close.as_str()), out)
        }
        Optional::DownstreamLocalClose => filled(Some(info.connection.local_close_reason.get()), out),
        Optional::UpstreamLocalClose => filled(upstream.connection.as_ref().map(|cx| cx.local_close_reason.get()), out),
        // From the start of the stream, so that it is not above zero: the handshake came before.
        Optional::HandshakeDuration => {
            let done = handshake(&info.connection).filter(|_| info.protocol.is_some());
            done.is_some_and(|(_, end)| {
                let before = info.start.saturating_duration_since(end).as_millis() as u64;
                if before > 0 {
                    out.push(b'-');
                }
                digits(before, out)
            })
        }
        Optional::RouteResolutionTime => {
            info.route_resolution_time.is_some_and(|time| digits(time.as_micros() as u64, out))
        }
        Optional::RequestDuration => millis(since_start(info.request_complete), out),
        Optional::RequestTxDuration => millis(since_start(upstream.last_tx), out),
        Optional::ResponseDuration => millis(since_start(upstream.first_rx), out),
        Optional::ResponseTxDuration => {
            let (Some(end), Some(begin)) = (info.response_last_tx, upstream.first_rx) else { return false };
            millis(Some(end.saturating_duration_since(begin)), out)
        }
        Optional::PoolReady => millis(upstream.pool_ready, out),
    }
}

fn host_name(info: &StreamInfo) -> Option<&str> {
    info.upstream.host_name.as_deref().filter(|name| !name.is_empty()).or(info.upstream.host.as_deref())
}

/// Name of an attempted host, or its address.
fn attempted_name<'a>(host: &'a str, name: &'a str) -> &'a str {
    if name.is_empty() { host } else { name }
}

fn hosts(info: &StreamInfo, out: &mut Vec<u8>, show: for<'a> fn(&'a str, &'a str) -> &'a str) -> bool {
    for (at, (host, name)) in info.upstream.hosts_attempted.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(show(host, name).as_bytes());
    }
    !info.upstream.hosts_attempted.is_empty()
}

/// `127.0.0.1:80` without its port; brackets of an IPv6 address stay.
pub(crate) fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        Some(at) if host.rfind(']').is_none_or(|bracket| bracket < at) => &host[..at],
        _ => host,
    }
}

fn address_of(of: AddressOf, info: &StreamInfo) -> Option<&Address> {
    let connection = &info.connection;
    match of {
        AddressOf::DownstreamLocal => Some(&connection.local_address),
        AddressOf::DownstreamDirectLocal => Some(&connection.direct_local_address),
        AddressOf::DownstreamRemote => Some(info.remote_address.as_ref().unwrap_or(&connection.remote_address)),
        AddressOf::DownstreamDirectRemote => Some(&connection.direct_remote_address),
        AddressOf::UpstreamLocal => info.upstream.connection.as_ref().map(|cx| &cx.local_address),
        AddressOf::UpstreamRemote => info.upstream.connection.as_ref().map(|cx| &cx.remote_address),
    }
}

fn write_address(address: &Address, part: AddressPart, out: &mut Vec<u8>) -> bool {
    // Writing to a buffer cannot fail.
    match (part, address) {
        (AddressPart::All, address) => drop(write!(out, "{address}")),
        (AddressPart::WithoutPort(None), Address::Ip(ip)) => drop(write!(out, "{}", ip.ip())),
        (AddressPart::WithoutPort(Some(length)), Address::Ip(ip)) => {
            let ip = ip.ip();
            let length = length.min(if ip.is_ipv4() { 32 } else { 128 });
            drop(write!(out, "{}/{length}", network(ip, length)));
        }
        (AddressPart::WithoutPort(_), address) => drop(write!(out, "{}", address.without_port())),
        (AddressPart::Port, address) => {
            return address.port().is_some_and(|port| digits(u64::from(port), out));
        }
        (AddressPart::EndpointId, Address::Internal(internal)) => {
            out.extend_from_slice(internal.endpoint_id.as_bytes());
        }
        (AddressPart::EndpointId, _) => {}
    }
    true
}

fn network(ip: IpAddr, length: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4((u32::from(ip) & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6((u128::from(ip) & mask).into())
        }
    }
}

fn filter_state<'a>(info: &'a StreamInfo, key: &str) -> Option<&'a str> {
    info.filter_state.as_ref()?.iter().find(|(name, _)| &**name == key).map(|(_, value)| &**value)
}

/// Writes a value of the filter state as JSON.
fn write_typed(key: &str, value: &str, out: &mut Vec<u8>) {
    if is_message(key) || [UPSTREAM_DYNAMIC_PORT, PROXY_PROTOCOL_TLVS].contains(&key) {
        out.extend_from_slice(value.as_bytes());
    } else {
        // Writing to a buffer cannot fail.
        drop(write!(out, "{}", Value::from(value)));
    }
}

/// Whether the value under `key` is a message, kept as JSON.
fn is_message(key: &str) -> bool {
    [TUNNEL_RESPONSE_HEADERS, TUNNEL_RESPONSE_TRAILERS].contains(&key)
}

/// A field of an object in the filter state. Objects are kept as text; only that of TLVs is JSON.
fn filter_state_field(info: &StreamInfo, key: &str, field: &str) -> Option<String> {
    let object = filter_state(info, key).filter(|_| key == PROXY_PROTOCOL_TLVS)?;
    let object: Value = serde_json::from_str(object).ok()?;
    object.get(field)?.as_str().map(str::to_owned)
}

fn path_of(headers: &Headers, of: PathOf) -> Option<&[u8]> {
    let original = || headers.bytes(&names::X_ENVOY_ORIGINAL_PATH);
    match of {
        PathOf::Original => original(),
        PathOf::Current => headers.bytes(&names::PATH),
        PathOf::OriginalOrCurrent => original().or_else(|| headers.bytes(&names::PATH)),
    }
}

fn decode(value: &[u8], max: usize, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    out.extend(percent_encoding::percent_decode(value));
    out.truncate(start.saturating_add(max));
    true
}

/// The first query parameter whose name, decoded, is `name`.
fn decoded_parameter<'a>(path: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let query = &path[memchr::memchr(b'?', path)? + 1..];
    if memchr::memchr(b'%', query).is_none() {
        return query_parameter(path, name);
    }
    query.split(|&byte| byte == b'&').find_map(|parameter| {
        let end = memchr::memchr(b'=', parameter).unwrap_or(parameter.len());
        let same = percent_encoding::percent_decode(&parameter[..end]).eq(name.iter().copied());
        same.then(|| parameter.get(end + 1..).unwrap_or_default())
    })
}

/// A query as Envoy decodes it: what would not be visible stays encoded, and a percent sign that encodes nothing goes.
fn decode_visible(query: &[u8], max: usize, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let mut rest = query;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let Some(pair) = after.get(..2).filter(|_| byte == b'%') else {
            out.push(byte);
            continue;
        };
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        let (Some(high), Some(low)) = (digit(0), digit(1)) else { continue };
        rest = &after[2..];
        match (high * 16 + low) as u8 {
            decoded if decoded.is_ascii_graphic() => out.push(decoded),
            _ => out.extend_from_slice(&[b'%', pair[0], pair[1]]),
        }
    }
    out.truncate(start.saturating_add(max));
    true
}

fn server_name(of: ServerNameOf, host: PathOf, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
    let sni = cx.info.connection.requested_server_name.as_deref().filter(|name| !name.is_empty());
    let host = cx.request.and_then(|headers| {
        let original = || headers.bytes(&names::X_ENVOY_ORIGINAL_HOST);
        match host {
            PathOf::Original => original(),
            PathOf::Current => headers.bytes(&names::AUTHORITY),
            PathOf::OriginalOrCurrent => original().or_else(|| headers.bytes(&names::AUTHORITY)),
        }
    });
    let host = host.filter(|host| !host.is_empty());
    // A host was checked by the codec; only what the TLS client says may hold anything.
    let name = match (of, sni) {
        (ServerNameOf::HostFirst, _) if host.is_some() => return text(host, out),
        (ServerNameOf::SniFirst, None) => return text(host, out),
        (_, sni) => sni,
    };
    let Some(name) = name else { return false };
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    if !name.bytes().all(valid) {
        out.extend_from_slice(b"invalid:");
    }
    out.extend(name.bytes().map(|byte| if valid(byte) { byte } else { b'_' }));
    true
}

fn write_flags(flags: ResponseFlags, long: bool, out: &mut Vec<u8>) {
    if flags.is_empty() {
        out.push(b'-');
        return;
    }
    for (at, (short, name)) in flags.names().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(if long { name } else { short }.as_bytes());
    }
}
