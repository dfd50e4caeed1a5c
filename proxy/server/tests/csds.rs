//! Client status discovery (CSDS): asked by a gRPC client through a listener that leads to the admin interface, and by REST.

use bytes::{BufMut as _, Bytes, BytesMut};
use envoy_types::pb::envoy::admin::v3::ClientResourceStatus;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type as SecretType;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::{ClientStatusRequest, ClientStatusResponse};
use envoy_types::pb::envoy::r#type::matcher::v3::{NodeMatcher, StringMatcher, string_matcher::MatchPattern};
use prost::Message as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

const LIMIT: Duration = Duration::from_secs(60);
const SERVICE: &str = "/envoy.service.status.v3.ClientStatusDiscoveryService";
const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

struct Proxy {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    fn start() -> Proxy {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let text = text.replace("@DIR@", &dir.path().display().to_string());
            std::fs::write(dir.path().join(name), text).unwrap();
        };
        write(
            "bootstrap.yaml",
            r#"
node: {id: node-one, cluster: test}
admin: {address: {pipe: {path: "@DIR@/admin"}}}
dynamic_resources: {cds_config: {path_config_source: {path: "@DIR@/cds.yaml"}}}
static_resources:
  clusters:
  - name: admin
    load_assignment: {cluster_name: admin, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: "@DIR@/admin"}}}}]}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
  listeners:
  - name: status
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: status
          route_config:
            virtual_hosts:
            - {name: v, domains: ["*"], routes: [{match: {prefix: /envoy.service.status.v3.}, route: {cluster: admin}}]}
          http_filters:
          - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"#,
        );
        write(
            "cds.yaml",
            r#"
version_info: "7"
resources:
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: good
  type: EDS
  eds_cluster_config: {eds_config: {path_config_source: {path: "@DIR@/eds.yaml"}, initial_fetch_timeout: 0.1s}}
  transport_socket:
    name: tls
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
      common_tls_context:
        tls_certificate_sds_secret_configs: [{name: cert, sds_config: {path_config_source: {path: "@DIR@/sds.yaml"}}}]
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: bad
  load_assignment: {cluster_name: bad, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: nowhere, port_value: 1}}}}]}]}
"#,
        );
        write(
            "eds.yaml",
            "version_info: e1\nresources:\n- \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n  \
             cluster_name: good\n",
        );
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        write(
            "sds.yaml",
            &format!(
                "version_info: s1\nresources:\n- \"@type\": {SECRET}\n  name: cert\n  tls_certificate: {{certificate_chain: \
                 {{inline_string: {certificate:?}}}, private_key: {{inline_string: {:?}}}}}\n",
                key.serialize_pem()
            ),
        );
        let child = Command::new(env!("CARGO_BIN_EXE_nuncio"))
            .arg("-c")
            .arg(dir.path().join("bootstrap.yaml"))
            .args(["--concurrency", "1", "-l", "error"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Proxy { child, dir }
    }

    fn admin(&self) -> PathBuf {
        self.dir.path().join("admin")
    }

    /// The port of the listener, once it is there and the proxy serves.
    async fn port(&self) -> u16 {
        let deadline = Instant::now() + LIMIT;
        loop {
            let ready = request(&self.admin(), "GET /ready", "").await.is_some_and(|(status, _)| status == 200);
            if ready && let Some((200, body)) = request(&self.admin(), "GET /listeners?format=json", "").await {
                let shown: serde_json::Value = serde_json::from_str(&body).unwrap();
                let port = shown["listener_statuses"][0]["local_address"]["socket_address"]["port_value"].as_u64();
                return u16::try_from(port.unwrap()).unwrap();
            }
            assert!(Instant::now() < deadline, "it does not serve");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A request over HTTP/1 to a socket: status and body.
async fn request(path: &Path, line: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = UnixStream::connect(path).await.ok()?;
    let length = body.len();
    let head = format!("{line} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let (_, chunked) = answer.split_once("\r\n\r\n")?;
    // Chunks: a line with the length, then the bytes.
    let (mut rest, mut body) = (chunked, String::new());
    while let Some((length, more)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).ok()?;
        body.push_str(more.get(..length)?);
        rest = more.get(length + 2..).unwrap_or_default();
        if length == 0 {
            break;
        }
    }
    Some((status, body))
}

/// What a call has brought: messages, and the code and the text of its status.
struct Called {
    messages: Vec<ClientStatusResponse>,
    status: String,
    text: String,
}

async fn call(port: u16, method: &str, requests: &[ClientStatusRequest]) -> Called {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let head = http::Request::post(format!("http://a{SERVICE}/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (answer, mut out) = client.send_request(head, false).unwrap();
    for request in requests {
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(u32::try_from(request.encoded_len()).unwrap());
        request.encode(&mut framed).unwrap();
        out.send_data(framed.freeze(), false).unwrap();
    }
    out.send_data(Bytes::new(), true).unwrap();
    let answer = tokio::time::timeout(LIMIT, answer).await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    let mut body = answer.into_body();
    let mut bytes = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.unwrap().unwrap();
    connection.abort();
    let text = |name: &str| trailers.get(name).map_or(String::new(), |value| value.to_str().unwrap().to_owned());
    let mut messages = Vec::new();
    while bytes.len() >= 5 {
        let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
        let frame = bytes.split_to(5 + length).freeze();
        messages.push(ClientStatusResponse::decode(frame.slice(5..)).unwrap());
    }
    Called { messages, status: text("grpc-status"), text: text("grpc-message") }
}

fn find<'a>(response: &'a ClientStatusResponse, type_url: &str, name: &str) -> &'a GenericXdsConfig {
    let all = &response.config[0].generic_xds_configs;
    all.iter().find(|config| config.type_url == type_url && config.name == name).unwrap_or_else(|| panic!("{all:?}"))
}

fn matcher(id: &str) -> ClientStatusRequest {
    let id = StringMatcher { match_pattern: Some(MatchPattern::Exact(id.to_owned())), ..Default::default() };
    ClientStatusRequest {
        node_matchers: vec![NodeMatcher { node_id: Some(id), ..Default::default() }],
        ..Default::default()
    }
}

#[tokio::test]
async fn what_was_fetched_and_where_it_stands_is_told_to_grpc_clients() {
    let proxy = Proxy::start();
    let port = proxy.port().await;
    let called = call(port, "FetchClientStatus", &[ClientStatusRequest::default()]).await;
    assert_eq!((called.status.as_str(), called.messages.len()), ("0", 1), "{}", called.text);
    let response = &called.messages[0];
    assert_eq!(response.config[0].node.as_ref().unwrap().id, "node-one");
    let good = find(response, CLUSTER, "good");
    assert_eq!((good.client_status(), good.version_info.as_str()), (ClientResourceStatus::Acked, "7"));
    assert!(good.last_updated.is_some() && good.xds_config.as_ref().unwrap().type_url == CLUSTER);
    assert!(!good.is_static_resource && good.error_state.is_none());
    let bad = find(response, CLUSTER, "bad");
    let error = bad.error_state.as_ref().unwrap();
    assert_eq!((bad.client_status(), error.version_info.as_str()), (ClientResourceStatus::Nacked, "7"));
    assert!(error.details.contains("malformed IP address: nowhere"), "{}", error.details);
    assert!(find(response, CLUSTER, "admin").is_static_resource);
    assert_eq!(find(response, ENDPOINTS, "good").version_info, "e1");
    let secret = find(response, SECRET, "cert").xds_config.as_ref().unwrap();
    let Some(SecretType::TlsCertificate(shown)) = Secret::decode(secret.value.as_slice()).unwrap().r#type else {
        panic!("no certificate")
    };
    let key = shown.private_key.unwrap().specifier;
    assert_eq!(key, Some(Specifier::InlineString("[redacted]".to_owned())));
}

#[tokio::test]
async fn a_stream_is_answered_message_by_message() {
    let proxy = Proxy::start();
    let port = proxy.port().await;
    let without = ClientStatusRequest { exclude_resource_contents: true, ..Default::default() };
    let called = call(port, "StreamClientStatus", &[matcher("node-one"), matcher("node-two"), without]).await;
    assert_eq!((called.status.as_str(), called.messages.len()), ("0", 3), "{}", called.text);
    assert!(find(&called.messages[0], CLUSTER, "good").xds_config.is_some());
    assert!(called.messages[1].config.is_empty());
    assert!(find(&called.messages[2], CLUSTER, "good").xds_config.is_none());
    let unknown = call(port, "NoSuchMethod", &[]).await;
    assert_eq!(unknown.status, "12");
    let none = call(port, "FetchClientStatus", &[]).await;
    assert_eq!(none.status, "13");
}

#[tokio::test]
async fn the_rest_form_answers_in_json() {
    let proxy = Proxy::start();
    proxy.port().await;
    let line = "POST /v3/discovery:client_status";
    let (status, body) = request(&proxy.admin(), line, "{\"exclude_resource_contents\": true}").await.unwrap();
    assert_eq!(status, 200);
    let shown: serde_json::Value = serde_json::from_str(&body).unwrap();
    let all = shown["config"][0]["generic_xds_configs"].as_array().unwrap();
    let bad = all.iter().find(|config| config["name"] == "bad").unwrap();
    assert_eq!((bad["client_status"].as_str(), bad.get("xds_config")), (Some("NACKED"), None));
    let (status, body) = request(&proxy.admin(), line, "{\"no_such_field\": 1}").await.unwrap();
    assert_eq!((status, body.contains("no_such_field")), (400, true), "{body}");
    let (status, _) = request(&proxy.admin(), "GET /v3/discovery:client_status", "").await.unwrap();
    assert_eq!(status, 405);
}
