//! Access logs over gRPC: what a server is sent by Nuncio and by Envoy for the same requests.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::{Buf as _, Bytes, BytesMut};
use envoy_types::pb::envoy::config::core::v3::Address;
use envoy_types::pb::envoy::config::core::v3::address::Address as Kind;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::data::accesslog::v3::HttpAccessLogEntry;
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use nuncio_tests::find;
use nuncio_tests::proxy::free_port;
use prost::Message as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::modes::{until, upstream};
use crate::spawned::Spawned;

#[test]
fn entries_are_those_of_envoy() {
    let nuncio = find::nuncio().unwrap_or_else(|e| panic!("no Nuncio: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ours = runtime.block_on(play(&nuncio)).unwrap_or_else(|e| panic!("Nuncio: {e:#}"));
    let envoy = match find::envoy() {
        Ok(envoy) => envoy,
        Err(why) if std::env::var_os("CI").is_some() => panic!("no Envoy to compare with: {why}"),
        Err(why) => return eprintln!("NOT COMPARED WITH ENVOY: {why}"),
    };
    let theirs = runtime.block_on(play(&envoy)).unwrap_or_else(|e| panic!("Envoy: {e:#}"));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let diff = similar::TextDiff::from_lines(theirs, ours).unified_diff().context_radius(2).to_string();
        assert!(diff.is_empty(), "- Envoy, + Nuncio\n{diff}");
    }
    assert_eq!(ours.len(), theirs.len());
}

/// Takes streams of entries.
async fn server(found: mpsc::UnboundedSender<StreamAccessLogsMessage>) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let found = found.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    assert_eq!(request.uri().path(), "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs");
                    // What cannot be read is seen by its absence.
                    tokio::spawn(read(request.into_body(), respond, found.clone()));
                }
            });
        }
    });
    Ok(port)
}

async fn read(
    mut body: h2::RecvStream,
    mut respond: h2::server::SendResponse<Bytes>,
    found: mpsc::UnboundedSender<StreamAccessLogsMessage>,
) -> Result<()> {
    let head = http::Response::builder().header("content-type", "application/grpc").body(())?;
    let _open = respond.send_response(head, false)?;
    let mut buffer = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        buffer.extend_from_slice(&data);
        while let Some(length) = buffer.get(1..5) {
            let length = u32::from_be_bytes(length.try_into()?) as usize;
            if buffer.len() < length + 5 {
                break;
            }
            buffer.advance(5);
            found.send(StreamAccessLogsMessage::decode(buffer.split_to(length))?)?;
        }
    }
    Ok(())
}

fn bootstrap(port: u16, logs: u16, up: u16, refused: u16) -> serde_json::Value {
    let extension = |name: &str| format!("type.googleapis.com/envoy.extensions.{name}");
    let address = |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let cluster = |name: &str, port: u16| {
        let endpoints = json!([{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]);
        json!({"name": name, "connect_timeout": "1s", "load_assignment": {"cluster_name": name, "endpoints": endpoints}})
    };
    let mut als = cluster("als", logs);
    als["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": extension("upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": {"http2_protocol_options": {}},
    }});
    let log = json!({"name": "log", "typed_config": {
        "@type": extension("access_loggers.grpc.v3.HttpGrpcAccessLogConfig"),
        "common_config": {"log_name": "name of the log", "transport_api_version": "V3", "buffer_flush_interval": "0.1s",
            "grpc_service": {"envoy_grpc": {"cluster_name": "als"}}},
        "additional_request_headers_to_log": ["X-One", "absent"],
        "additional_response_headers_to_log": ["content-length"],
    }});
    let routes = json!([
        {"match": {"prefix": "/direct"}, "direct_response": {"status": 404, "body": {"inline_string": "no"}}, "name": "direct"},
        {"match": {"prefix": "/refused"}, "route": {"cluster": "refused"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "up", "prefix_rewrite": "/other"}, "name": "all"},
    ]);
    let manager = json!({
        "@type": extension("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "main",
        "access_log": [log],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": extension("filters.http.router.v3.Router")}}],
    });
    json!({
        "node": {"id": "test", "cluster": "test"},
        "static_resources": {
            "clusters": [als, cluster("up", up), cluster("refused", refused)],
            "listeners": [{"name": "main", "address": address(port),
                "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}]}],
        },
    })
}

async fn play(binary: &Path) -> Result<Vec<String>> {
    let dir = tempfile::tempdir()?;
    let (sender, mut found) = mpsc::unbounded_channel();
    let (port, refused, up, logs) = (free_port(), free_port(), upstream("body").await?, server(sender).await?);
    let _proxy = Spawned::start(binary, dir.path(), &bootstrap(port, logs, up, refused), &[])?;
    until(port, "/ready", "200 body").await?;
    let requests = [
        "GET /a?b=c HTTP/1.1\r\nhost: h.example\r\nuser-agent: ua\r\nreferer: r\r\nx-one: 1\r\nx-one: 2\r\n",
        "DELETE /direct HTTP/1.1\r\nhost: h.example\r\n",
        "HEAD /refused HTTP/1.1\r\nhost: h.example\r\nx-forwarded-for: 192.0.2.9\r\n",
    ];
    for request in requests {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(format!("{request}\r\n").as_bytes()).await?;
        // The heads are what is logged; bodies are short.
        let mut answer = [0; 4096];
        tokio::time::timeout(Duration::from_secs(10), stream.read(&mut answer)).await??;
    }
    let mut entries = Vec::new();
    let mut named = false;
    // The first are of the requests that waited for the start.
    while entries.last().is_none_or(|e: &HttpAccessLogEntry| !path_of(e).starts_with("/refused")) {
        let message = tokio::time::timeout(Duration::from_secs(20), found.recv()).await.context("no entries")?;
        let message = message.context("the server has ended")?;
        if let Some(identifier) = message.identifier {
            named = identifier.log_name == "name of the log" && identifier.node.is_some_and(|node| node.id == "test");
        }
        if let Some(LogEntries::HttpLogs(logs)) = message.log_entries {
            entries.extend(logs.log_entry.into_iter().filter(|e| path_of(e) != "/ready" && original(e) != "/ready"));
        }
    }
    anyhow::ensure!(named, "the first message does not say who sends it");
    Ok(entries.into_iter().map(|entry| format!("{:#?}", comparable(entry, up, refused))).collect())
}

fn path_of(entry: &HttpAccessLogEntry) -> &str {
    entry.request.as_ref().map_or("", |request| &request.path)
}

fn original(entry: &HttpAccessLogEntry) -> &str {
    entry.request.as_ref().map_or("", |request| &request.original_path)
}

/// Without what differs from run to run: times are there or not, ports have names.
fn comparable(mut entry: HttpAccessLogEntry, up: u16, refused: u16) -> HttpAccessLogEntry {
    let ports = HashMap::from([(u32::from(up), 1), (u32::from(refused), 2)]);
    if let Some(common) = &mut entry.common_properties {
        let times = [
            &mut common.time_to_last_rx_byte,
            &mut common.time_to_first_upstream_tx_byte,
            &mut common.time_to_last_upstream_tx_byte,
            &mut common.time_to_first_upstream_rx_byte,
            &mut common.time_to_last_upstream_rx_byte,
            &mut common.time_to_first_downstream_tx_byte,
            &mut common.time_to_last_downstream_tx_byte,
            &mut common.duration,
        ];
        for time in times {
            *time = time.take().map(|_| Default::default());
        }
        common.start_time = common.start_time.take().map(|_| Default::default());
        let addresses = [
            &mut common.downstream_remote_address,
            &mut common.downstream_direct_remote_address,
            &mut common.downstream_local_address,
            &mut common.upstream_remote_address,
            &mut common.upstream_local_address,
        ];
        for address in addresses {
            if let Some(Address { address: Some(Kind::SocketAddress(at)) }) = address
                && let Some(PortSpecifier::PortValue(port)) = &mut at.port_specifier
            {
                *port = ports.get(port).copied().unwrap_or(0);
            }
        }
        common.stream_id = format!("{} characters", common.stream_id.len());
    }
    // Heads of HTTP/1 are counted as they are on the wire; Envoy leaves the first line and some separators out.
    if let Some(response) = &mut entry.response {
        // A time of one digit or two.
        let time = response.response_headers.get("x-envoy-upstream-service-time").map_or(0, |time| time.len() as u64);
        response.response_headers_bytes -= time;
        if let Some(common) = &mut entry.common_properties {
            common.downstream_wire_bytes_sent -= time;
        }
        (response.upstream_header_bytes_received, response.downstream_header_bytes_sent) = (0, 0);
    }
    if let Some(request) = &mut entry.request {
        (request.upstream_header_bytes_sent, request.downstream_header_bytes_received) = (0, 0);
        request.request_id = format!("{} characters", request.request_id.len());
    }
    entry
}
