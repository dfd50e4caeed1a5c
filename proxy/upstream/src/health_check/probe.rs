//! One check of one host: a connection, a request, and whether the answer is the wanted one.
//!
//! Runs on the control thread. Connections are made as the cluster's are (bind options, TLS), but are counted nowhere
//! and belong to no pool; they serve further checks where configured. The deadline is the caller's.

use super::state::{CheckResult, FailureType};
use crate::cluster::Cluster;
use crate::host::Host;
use crate::pool::connect::{self, Connected, Target};
use crate::pool::{Codecs, codecs};
use crate::transport::{TransportOptions, find_match};
use bytes::{BufMut as _, Bytes, BytesMut};
use nuncio_base::random;
use nuncio_config::cluster::{HealthCheckConfig, HealthCheckKind, HttpHealthCheck};
use nuncio_config::listener::ProxyProtocolVersion;
use nuncio_http::codec::h1::H1Client;
use nuncio_http::codec::h2::{H2Client, H2Sender};
use nuncio_http::codec::{ClientStream, Frame, Protocol};
use nuncio_http::formatter::FormatContext;
use nuncio_http::header_mutation::HeaderRules;
use nuncio_http::headers::{HeaderValue, Headers, names};
use nuncio_http::matchers::string_matches;
use nuncio_http::stream_info::StreamInfo;
use nuncio_net::address::Address;
use nuncio_net::connection::{ConnectionInfo, Io};
use nuncio_net::proxy_protocol_header::{local_header, proxy_protocol_header};
use std::future::{Future as _, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const USER_AGENT: &str = "Envoy/HC";
const CHECK_METHOD: &str = "/grpc.health.v1.Health/Check";
/// `HealthCheckResponse.ServingStatus.SERVING`
const SERVING: u64 = 1;
/// A gRPC answer is two bytes; more than this is none.
const MAX_GRPC_ANSWER: usize = 16 * 1024;
/// The longest line of a Redis answer that is read.
const MAX_REDIS_LINE: usize = 64 * 1024;
/// What a TCP check keeps of an answer.
const MAX_TCP_ANSWER: usize = 1024 * 1024;

/// Aborts its task when dropped.
struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

enum Connection {
    Http1(Box<H1Client<Io>>, Rc<ConnectionInfo>),
    Http2(H2Sender, Driver, Rc<ConnectionInfo>),
    /// With the PROXY header that goes before what each check sends.
    Tcp(Box<Io>, Bytes),
    Redis(Box<Io>),
}

/// Does the checks of one host.
pub(super) struct Prober {
    config: Arc<HealthCheckConfig>,
    host: Arc<Host>,
    rules: HeaderRules,
    codecs: Codecs,
    /// Kept between checks.
    connection: Option<Connection>,
}

impl Prober {
    pub(super) fn new(config: Arc<HealthCheckConfig>, cluster: &Cluster, host: Arc<Host>) -> Self {
        let rules = match &config.kind {
            HealthCheckKind::Http(http) => {
                HeaderRules::build(&http.request_headers.request_add, &http.request_headers.request_remove)
            }
            HealthCheckKind::Grpc { initial_metadata, .. } => HeaderRules::build(initial_metadata, &[]),
            HealthCheckKind::Tcp { .. } | HealthCheckKind::Redis { .. } => Ok(HeaderRules::default()),
        };
        // Formats that cannot be compiled were refused when the cluster was built.
        Prober { rules: rules.unwrap_or_default(), codecs: codecs(cluster), connection: None, config, host }
    }

    /// One check. Dropping the future closes the connection.
    pub(super) async fn check(&mut self, cluster: &Cluster) -> CheckResult {
        let config = self.config.clone();
        match &config.kind {
            HealthCheckKind::Http(http) => self.http(cluster, http).await,
            HealthCheckKind::Tcp { send, receive, proxy_protocol } => {
                self.tcp(cluster, send, receive, *proxy_protocol).await
            }
            HealthCheckKind::Grpc { service_name, authority, .. } => self.grpc(cluster, service_name, authority).await,
            HealthCheckKind::Redis { key } => self.redis(cluster, key).await,
        }
    }

    /// Ends when the host closes the connection kept for further TCP checks: that is a failure too.
    pub(super) async fn closed(&mut self) {
        let Some(Connection::Tcp(io, _)) = &mut self.connection else { return std::future::pending().await };
        let mut buffer = [0; 512];
        while matches!(io.read(&mut buffer).await, Ok(count) if count > 0) {}
        self.connection = None;
    }

    /// Where checks go: the endpoint's own address for checks, or the host with its own port for them.
    fn address(&self) -> Option<Address> {
        let own = self.host.own_health_check.as_ref()?;
        if let Some(address) = &own.check_address {
            return Some(Address::from(address));
        }
        let host = self.host.shown_address().0;
        match (own.check_port, host.ip()) {
            (0, _) | (_, None) => None,
            (port, Some(ip)) => Some(Address::Ip(SocketAddr::new(ip, port))),
        }
    }

    async fn connect(&self, cluster: &Cluster) -> Option<Connected> {
        let addresses =
            self.address().map_or_else(|| self.host.connect_addresses(), |address| [address].into_iter().collect());
        let socket_match = match &self.config.transport_socket_match {
            None => self.host.transport_socket_match,
            Some(labels) => {
                let metadata = serde_json::json!({"envoy.transport_socket_match": labels});
                find_match(&cluster.config, Some(&metadata), None)
            }
        };
        let alpn: Vec<&[u8]> = self.config.check_alpn.iter().map(|name| &**name).collect();
        let alpn = Some(alpn.as_slice()).filter(|names| !names.is_empty());
        let target = Target { addresses: &addresses, socket_match };
        connect::open(cluster, &self.host, &target, &TransportOptions::default(), alpn).await.ok()
    }

    fn authority<'a>(&'a self, cluster: &'a Cluster, configured: &'a str) -> &'a str {
        let own = self.host.own_health_check.as_ref().map_or("", |own| &*own.check_hostname);
        [own, configured].into_iter().find(|name| !name.is_empty()).unwrap_or(cluster.name())
    }

    fn headers(&self, cluster: &Cluster, method: &'static str, authority: &str, path: &str) -> Headers {
        let text = |text: &str| HeaderValue::parse(text.to_owned()).unwrap_or_default();
        let mut headers = Headers::with_capacity(8);
        headers.append(names::METHOD, HeaderValue::from_static(method));
        let scheme = if cluster.transport.is_secure(&self.host) { "https" } else { "http" };
        headers.append(names::SCHEME, HeaderValue::from_static(scheme));
        headers.append(names::AUTHORITY, text(self.authority(cluster, authority)));
        headers.append(names::PATH, text(path));
        headers
    }

    fn apply_rules(&self, headers: &mut Headers, info: &Rc<ConnectionInfo>, protocol: Protocol) {
        if self.rules.is_empty() {
            return;
        }
        let mut stream = StreamInfo::new(info.clone(), random::u64(), Some(protocol));
        stream.upstream.host = Some(self.host.address_text.clone());
        stream.upstream.host_name = Some(self.host.hostname.clone());
        stream.upstream.host_metadata = self.host.metadata();
        self.rules.apply_made(headers, &FormatContext::new(&stream));
    }

    async fn http(&mut self, cluster: &Cluster, http: &HttpHealthCheck) -> CheckResult {
        let mut connection = match self.take_http(http.http2).await {
            Some(connection) => connection,
            None => match self.open_http(cluster, http.http2).await {
                Some(connection) => connection,
                None => return CheckResult::NETWORK,
            },
        };
        let mut headers = self.headers(cluster, http.check_method, &http.check_host, &http.check_path);
        headers.append(names::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        let limit = match (http.receive.is_empty(), http.response_buffer_size) {
            (true, _) => 0,
            (false, 0) => usize::MAX,
            (false, size) => usize::try_from(size).unwrap_or(usize::MAX),
        };
        let length = |headers: &mut Headers| {
            if !http.payload.is_empty() {
                headers.set(names::CONTENT_LENGTH, HeaderValue::from(http.payload.len() as u64));
            }
        };
        let answer = match &mut connection {
            Connection::Http1(client, info) => {
                self.apply_rules(&mut headers, info, Protocol::Http11);
                length(&mut headers);
                client.begin();
                exchange(&mut **client, &headers, &http.payload, limit).await
            }
            Connection::Http2(sender, _, info) => {
                self.apply_rules(&mut headers, info, Protocol::Http2);
                length(&mut headers);
                exchange(&mut sender.stream(), &headers, &http.payload, limit).await
            }
            Connection::Tcp(..) | Connection::Redis(_) => None,
        };
        let Some(answer) = answer else { return CheckResult::NETWORK };
        let reusable = match &connection {
            Connection::Http1(client, _) => client.is_reusable(),
            _ => true,
        };
        if reusable && self.config.reuse_connection {
            self.connection = Some(connection);
        }
        judge(http, &answer, &cluster_stats(cluster))
    }

    /// The connection of the check before, if it is still good.
    async fn take_http(&mut self, http2: bool) -> Option<Connection> {
        match self.connection.take()? {
            Connection::Http1(mut client, info) if !http2 => {
                let ended = poll_fn(|cx| Poll::Ready(client.poll_idle(cx).is_ready())).await;
                (!ended).then_some(Connection::Http1(client, info))
            }
            Connection::Http2(sender, driver, info) if http2 => {
                sender.is_usable().then_some(Connection::Http2(sender, driver, info))
            }
            _ => None,
        }
    }

    async fn open_http(&self, cluster: &Cluster, http2: bool) -> Option<Connection> {
        let connected = self.connect(cluster).await?;
        let info = Rc::new(connected.info);
        if !http2 {
            return Some(Connection::Http1(Box::new(H1Client::new(connected.io, self.codecs.h1.clone())), info));
        }
        let (sender, client) = H2Client::new(connected.io, self.codecs.h2.clone());
        let driver = tokio::task::spawn_local(async move {
            // How it ended is seen by the streams.
            let _ = client.await;
        });
        Some(Connection::Http2(sender, Driver(driver), info))
    }

    async fn grpc(&mut self, cluster: &Cluster, service: &str, authority: &str) -> CheckResult {
        let connection = match self.take_http(true).await {
            Some(connection) => connection,
            None => match self.open_http(cluster, true).await {
                Some(connection) => connection,
                None => return CheckResult::NETWORK,
            },
        };
        let Connection::Http2(sender, _, info) = &connection else { return CheckResult::NETWORK };
        let mut headers = self.headers(cluster, "POST", authority, CHECK_METHOD);
        headers.append(names::TE, HeaderValue::from_static("trailers"));
        headers.append(names::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.append(names::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        self.apply_rules(&mut headers, info, Protocol::Http2);
        let timeout = format!("{}m", self.config.timeout.as_millis().min(99_999_999));
        headers.append(names::GRPC_TIMEOUT, HeaderValue::parse(timeout).unwrap_or_default());
        let answer = exchange(&mut sender.stream(), &headers, &grpc_request(service), MAX_GRPC_ANSWER).await;
        let Some(answer) = answer else { return CheckResult::NETWORK };
        let passed = grpc_serving(&answer);
        if self.config.reuse_connection {
            self.connection = Some(connection);
        }
        if passed { CheckResult::Success { degraded: false } } else { CheckResult::WRONG }
    }

    async fn tcp(
        &mut self,
        cluster: &Cluster,
        send: &Bytes,
        receive: &[Bytes],
        proxy_protocol: Option<ProxyProtocolVersion>,
    ) -> CheckResult {
        let (mut io, header) = match self.connection.take() {
            Some(Connection::Tcp(io, header)) => (io, header),
            _ => match self.connect(cluster).await {
                Some(connected) => {
                    let (from, to) = (&connected.info.local_address, &connected.info.remote_address);
                    let header = match proxy_protocol {
                        None => Vec::new(),
                        Some(ProxyProtocolVersion::V1) => proxy_protocol_header(ProxyProtocolVersion::V1, from, to),
                        Some(ProxyProtocolVersion::V2) => local_header(),
                    };
                    (Box::new(connected.io), Bytes::from(header))
                }
                None => return CheckResult::NETWORK,
            },
        };
        if receive.is_empty() {
            // Only whether it connects is asked; nothing is sent, as in Envoy.
            io.reset_on_close();
            return CheckResult::Success { degraded: false };
        }
        let request: [&[u8]; 2] = [&header, send];
        if io.write_all(&request.concat()).await.is_err() || io.flush().await.is_err() {
            return CheckResult::NETWORK;
        }
        let mut answer = BytesMut::new();
        while !holds(&answer, receive) {
            match io.read_buf(&mut answer).await {
                Ok(count) if count > 0 && answer.len() <= MAX_TCP_ANSWER => {}
                _ => return CheckResult::NETWORK,
            }
        }
        if self.config.reuse_connection {
            self.connection = Some(Connection::Tcp(io, header));
        } else {
            io.reset_on_close();
        }
        CheckResult::Success { degraded: false }
    }
}

impl Prober {
    /// `PING`, or whether a key that takes a host out of service is missing.
    async fn redis(&mut self, cluster: &Cluster, key: &str) -> CheckResult {
        let kept = match self.connection.take() {
            Some(Connection::Redis(mut io)) => {
                // Something to read is nothing that was asked for: perhaps the host has closed it.
                let mut byte = [0];
                let quiet = poll_fn(|cx| Poll::Ready(pin!(io.read(&mut byte)).poll(cx).is_pending())).await;
                quiet.then_some(io)
            }
            _ => None,
        };
        let mut io = match kept {
            Some(io) => io,
            None => match self.connect(cluster).await {
                Some(connected) => Box::new(connected.io),
                None => return CheckResult::NETWORK,
            },
        };
        let (request, wanted) = match key {
            "" => ("*1\r\n$4\r\nPING\r\n".to_owned(), "+PONG"),
            key => (format!("*2\r\n$6\r\nEXISTS\r\n${}\r\n{key}\r\n", key.len()), ":0"),
        };
        if io.write_all(request.as_bytes()).await.is_err() || io.flush().await.is_err() {
            return CheckResult::NETWORK;
        }
        let mut answer = BytesMut::new();
        let line = loop {
            if let Some(end) = answer.windows(2).position(|pair| pair == b"\r\n") {
                break &answer[..end];
            }
            match io.read_buf(&mut answer).await {
                Ok(count) if count > 0 && answer.len() <= MAX_REDIS_LINE => {}
                _ => return CheckResult::NETWORK,
            }
        };
        match line.first() {
            // All of an answer; what is longer ends the connection with the check.
            Some(b'+' | b'-' | b':') if self.config.reuse_connection && line.len() + 2 == answer.len() => {
                self.connection = Some(Connection::Redis(io));
            }
            Some(b'+' | b'-' | b':' | b'$' | b'*' | b'_' | b'#' | b',' | b'(' | b'!' | b'=' | b'%' | b'~' | b'>') => {}
            // It is no Redis; the connection goes with the check.
            _ => return CheckResult::WRONG,
        }
        if line == wanted.as_bytes() { CheckResult::Success { degraded: false } } else { CheckResult::WRONG }
    }
}

/// Counts `verify_cluster`.
fn cluster_stats(cluster: &Cluster) -> impl Fn() + '_ {
    move || {
        if let Some(checker) = cluster.health_checker() {
            checker.stats().verify_cluster().inc();
        }
    }
}

/// A whole response: the body as far as it was asked for.
struct Answer {
    head: Headers,
    body: BytesMut,
    trailers: Option<Headers>,
    head_only: bool,
}

/// Sends a request and reads its response to the end. None when the stream or the connection failed.
async fn exchange(stream: &mut dyn ClientStream, headers: &Headers, body: &Bytes, limit: usize) -> Option<Answer> {
    stream.send_headers(headers, body.is_empty()).ok()?;
    if !body.is_empty() {
        poll_fn(|cx| stream.poll_capacity(cx)).await.ok()?;
        stream.send_data(body.clone(), true).ok()?;
    }
    let (head, head_only) = loop {
        let (head, end) = poll_fn(|cx| poll_head(stream, cx)).await?;
        if !(100..200).contains(&head.status()) {
            break (head, end);
        }
    };
    let mut answer = Answer { head, body: BytesMut::new(), trailers: None, head_only };
    while !answer.head_only {
        match poll_fn(|cx| stream.poll_frame(cx)).await.ok()? {
            Frame::Data(data, end) => {
                let room = limit.saturating_sub(answer.body.len()).min(data.len());
                answer.body.put_slice(&data[..room]);
                if end {
                    break;
                }
            }
            Frame::Trailers(trailers) => {
                answer.trailers = Some(trailers);
                break;
            }
        }
    }
    Some(answer)
}

fn poll_head(stream: &mut dyn ClientStream, cx: &mut Context<'_>) -> Poll<Option<(Headers, bool)>> {
    // The response may come although the request could not be written: reading decides.
    let _ = stream.poll_flush(cx);
    stream.poll_headers(cx).map(Result::ok)
}

fn judge(http: &HttpHealthCheck, answer: &Answer, count_verified: &dyn Fn()) -> CheckResult {
    let status = answer.head.status();
    let failed = |retriable, exclude| CheckResult::Failure { kind: FailureType::Active, retriable, status, exclude };
    let exclude = answer.head.contains(&names::X_ENVOY_IMMEDIATE_HEALTH_CHECK_FAIL);
    if !holds(&answer.body, &http.receive) {
        return failed(false, exclude);
    }
    if !http.expected_statuses.iter().any(|range| range.contains(&status)) {
        return failed(http.retriable_statuses.iter().any(|range| range.contains(&status)), exclude);
    }
    if let Some(matcher) = &http.service_name_matcher {
        count_verified();
        let name = answer.head.bytes(&names::X_ENVOY_UPSTREAM_HEALTHCHECKED_CLUSTER).unwrap_or_default();
        if !string_matches(matcher, name) {
            return failed(false, false);
        }
    }
    CheckResult::Success { degraded: answer.head.contains(&names::X_ENVOY_DEGRADED) }
}

/// Whether `parts` stand in `body`, one after the other, with anything between.
fn holds(body: &[u8], parts: &[Bytes]) -> bool {
    let mut rest = body;
    parts.iter().filter(|part| !part.is_empty()).all(|part| {
        let found = rest.windows(part.len()).position(|window| window == &part[..]);
        if let Some(at) = found {
            rest = &rest[at + part.len()..];
        }
        found.is_some()
    })
}

/// `HealthCheckRequest { service }` in its frame.
fn grpc_request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        put_varint(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put(message);
    frame.freeze()
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Whether the answer is a single message that says SERVING, with the status OK.
fn grpc_serving(answer: &Answer) -> bool {
    let status = |headers: &Headers| headers.bytes(&names::GRPC_STATUS) == Some(b"0");
    let grpc = answer.head.bytes(&names::CONTENT_TYPE).is_some_and(|kind| {
        kind.strip_prefix(b"application/grpc").is_some_and(|rest| rest.is_empty() || rest[0] == b'+')
    });
    if answer.head.status() != 200 || !grpc || !answer.trailers.as_ref().is_some_and(status) {
        return false;
    }
    let body = &answer.body[..];
    let [0, a, b, c, d, message @ ..] = body else { return false };
    message.len() == u32::from_be_bytes([*a, *b, *c, *d]) as usize && serving_status(message) == Some(SERVING)
}

/// Field 1 of a `HealthCheckResponse`; other fields are passed over.
fn serving_status(mut message: &[u8]) -> Option<u64> {
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match key & 7 {
            0 => {
                let value = varint(&mut message)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (at, byte) in from.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * at as u32).min(63);
        if byte & 0x80 == 0 {
            *from = &from[at + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(parts: &[&'static str]) -> Vec<Bytes> {
        parts.iter().map(|part| Bytes::from_static(part.as_bytes())).collect()
    }

    #[test]
    fn parts_are_found_in_their_order() {
        assert!(holds(b"xxPONGyyOK", &bytes(&["PONG", "OK"])));
        assert!(!holds(b"OKxxPONG", &bytes(&["PONG", "OK"])));
        assert!(!holds(b"PO", &bytes(&["PONG"])));
        assert!(holds(b"", &[]));
        // No byte counts twice.
        assert!(!holds(b"aa", &bytes(&["aa", "a"])));
    }

    #[test]
    fn a_grpc_request_names_its_service() {
        assert_eq!(&grpc_request("svc")[..], b"\0\0\0\0\x05\x0a\x03svc");
        assert_eq!(&grpc_request("")[..], b"\0\0\0\0\0");
    }

    fn answer(body: &[u8], status: &'static str) -> Answer {
        let mut head = Headers::default();
        head.set_status(200);
        head.append(names::CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
        let mut trailers = Headers::default();
        trailers.append(names::GRPC_STATUS, HeaderValue::from_static(status));
        Answer { head, body: body.into(), trailers: Some(trailers), head_only: false }
    }

    #[test]
    fn only_serving_with_an_ok_status_passes() {
        assert!(grpc_serving(&answer(b"\0\0\0\0\x02\x08\x01", "0")));
        assert!(!grpc_serving(&answer(b"\0\0\0\0\x02\x08\x01", "14")));
        assert!(!grpc_serving(&answer(b"\0\0\0\0\x02\x08\x02", "0")));
        assert!(!grpc_serving(&answer(b"", "0")));
        // Two messages, and a length that lies.
        assert!(!grpc_serving(&answer(b"\0\0\0\0\x02\x08\x01\0\0\0\0\x02\x08\x01", "0")));
        assert!(!grpc_serving(&answer(b"\0\0\0\0\x03\x08\x01", "0")));
        assert!(!grpc_serving(&answer(b"\0\0\0\0\x02\x08\xff", "0")));
    }

    #[test]
    fn unknown_fields_of_a_grpc_answer_are_passed_over() {
        assert_eq!(serving_status(b"\x12\x02ab\x08\x01"), Some(1));
        assert_eq!(serving_status(b"\x12\x7fab"), None);
    }
}
