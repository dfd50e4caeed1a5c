//! Ways to a control plane: streams to a cluster or to a target, plain, with TLS of either side's certificate and over Unix
//! sockets, and polls of a cluster that speaks HTTP/2. Nuncio and Envoy each.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use envoy_types::pb::google::protobuf::Any;
use nuncio_tests::case::{CertSpec, ServerTls};
use nuncio_tests::certs::Certs;
use nuncio_tests::control_plane::{ControlPlane, Request};
use nuncio_tests::proxy::free_port;
use nuncio_tests::{find, tls};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::modes::get;
use crate::spawned::Spawned;

const PATIENCE: Duration = Duration::from_secs(20);
const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

#[test]
fn streams_go_to_a_cluster_with_tls_which_is_told_that_it_is_http_2() {
    with_both(|binary| Box::pin(stream(binary, Way::ClusterTls)));
}

#[test]
fn streams_go_to_a_cluster_that_wants_a_certificate() {
    with_both(|binary| Box::pin(stream(binary, Way::ClusterMutualTls)));
}

#[test]
fn streams_go_to_a_cluster_at_a_unix_socket() {
    with_both(|binary| Box::pin(stream(binary, Way::ClusterUnix)));
}

#[test]
fn streams_go_to_a_target() {
    with_both(|binary| Box::pin(stream(binary, Way::Target)));
}

#[test]
fn streams_go_to_a_target_that_wants_a_certificate_with_a_token() {
    with_both(|binary| Box::pin(stream(binary, Way::TargetMutualTls)));
}

#[test]
fn streams_go_to_a_target_at_a_unix_socket() {
    // Envoy has the path as the authority there, which the server of these tests takes for malformed.
    with([nuncio()], |binary| Box::pin(stream(binary, Way::TargetUnix)));
}

/// How a stream goes.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    ClusterTls,
    ClusterMutualTls,
    ClusterUnix,
    Target,
    TargetMutualTls,
    TargetUnix,
}

#[test]
fn polls_of_a_cluster_that_speaks_http_2_go_over_http_2() {
    with_both(|binary| Box::pin(poll_over_h2(binary)));
}

type Play = std::pin::Pin<Box<dyn Future<Output = Result<()>>>>;

fn nuncio() -> PathBuf {
    find::nuncio().unwrap_or_else(|e| panic!("no Nuncio: {e}"))
}

fn with_both(play: impl Fn(PathBuf) -> Play) {
    with(std::iter::once(nuncio()).chain(find::envoy_or_loud()), play);
}

fn with(binaries: impl IntoIterator<Item = PathBuf>, play: impl Fn(PathBuf) -> Play) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap_or_else(|e| panic!("{e}"));
    for binary in binaries {
        let shown = binary.display().to_string();
        runtime.block_on(play(binary)).unwrap_or_else(|e| panic!("{shown}: {e:#}"));
    }
}

/// The cluster `xds` at a port, which speaks HTTP/2.
fn cluster(port: u16) -> Value {
    let endpoint = json!({"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}});
    json!({
        "name": "xds", "type": "STATIC", "connect_timeout": "2s",
        "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }},
    })
}

/// Runs a proxy with clusters from `source` while `test` goes on.
async fn run(
    binary: &Path,
    dir: &Path,
    (admin, xds, source): (u16, Value, Value),
    test: impl Future<Output = Result<()>>,
) -> Result<()> {
    let bootstrap = json!({
        "node": {"id": "test", "cluster": "test"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
        "dynamic_resources": {"cds_config": {"resource_api_version": "V3", "api_config_source": source}},
        "static_resources": {"clusters": [xds]},
    });
    let in_time = async { tokio::time::timeout(PATIENCE, test).await.context("not in time").flatten() };
    Spawned::start(binary, dir, &bootstrap, &[])?.during(in_time).await
}

/// A new cluster without hosts.
fn fetched() -> Any {
    let message = Cluster { name: "fetched".into(), ..Cluster::default() };
    Any { type_url: CLUSTER.into(), value: message.encode_to_vec() }
}

/// Ends TLS before the server at `behind`, and tells what was agreed on.
async fn tls_front(
    acceptor: TlsAcceptor,
    behind: SocketAddr,
) -> Result<(u16, UnboundedReceiver<Value>, JoinHandle<()>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let (agreed, agreements) = mpsc::unbounded_channel();
    let front = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, agreed) = (acceptor.clone(), agreed.clone());
            tokio::spawn(async move {
                let Ok(mut session) = acceptor.accept(socket).await else { return };
                let _ = agreed.send(tls::seen(session.get_ref().1));
                let Ok(mut plain) = TcpStream::connect(behind).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut session, &mut plain).await;
            });
        }
    });
    Ok((port, agreements, front))
}

/// A Unix socket before the server at `behind`.
fn unix_front(path: &Path, behind: SocketAddr) -> Result<JoinHandle<()>> {
    let listener = UnixListener::bind(path)?;
    Ok(tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut plain) = TcpStream::connect(behind).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut socket, &mut plain).await;
            });
        }
    }))
}

async fn stream(binary: PathBuf, way: Way) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let spec = |ca: Option<&str>, sans: &[&str]| CertSpec {
        ca: ca.map(str::to_owned),
        sans: sans.iter().map(|&name| name.to_owned()).collect(),
    };
    let specs = [
        ("ca", spec(None, &["ca.example"])),
        ("xds", spec(Some("ca"), &["xds.example", "localhost"])),
        ("proxy", spec(Some("ca"), &["proxy.example"])),
    ];
    let certs = Certs::make(dir.path(), &specs.map(|(name, spec)| (name.to_owned(), spec)).into())?;
    let mutual = matches!(way, Way::ClusterMutualTls | Way::TargetMutualTls);
    let server_tls = ServerTls {
        cert: "xds".into(),
        alpn: vec!["h2".into(), "http/1.1".into()],
        client_ca: mutual.then(|| "ca".into()),
    };
    let mut server = ControlPlane::start().await?;
    let (port, mut agreements, front) = tls_front(tls::acceptor(&server_tls, &certs)?, server.address).await?;
    let socket = dir.path().join("socket");
    let unix = unix_front(&socket, server.address)?;
    let file = |path: PathBuf| json!({"filename": path});
    let mut xds = cluster(port);
    let mut context = json!({"validation_context": {
        "trusted_ca": file(certs.cert("ca")),
        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "xds.example"}}],
    }});
    if mutual {
        context["tls_certificates"] =
            json!([{"certificate_chain": file(certs.cert("proxy")), "private_key": file(certs.key("proxy"))}]);
    }
    let target = |uri: String| json!({"google_grpc": {"target_uri": uri, "stat_prefix": "xds"}});
    let mut service = json!({"envoy_grpc": {"cluster_name": "xds"}});
    match way {
        Way::ClusterTls | Way::ClusterMutualTls => {
            xds["transport_socket"] = json!({"name": "tls", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": "xds.example",
                "common_tls_context": context,
            }});
        }
        Way::ClusterUnix => {
            xds["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"] =
                json!({"pipe": {"path": socket}});
        }
        Way::Target => service = target(server.address.to_string()),
        Way::TargetUnix => service = target(format!("unix://{}", socket.display())),
        Way::TargetMutualTls => {
            service = target(format!("localhost:{port}"));
            service["google_grpc"]["channel_credentials"] = json!({"ssl_credentials": {
                "root_certs": file(certs.cert("ca")),
                "cert_chain": file(certs.cert("proxy")),
                "private_key": file(certs.key("proxy")),
            }});
            service["google_grpc"]["call_credentials"] = json!([{"access_token": "secret"}]);
        }
    }
    let source = json!({"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [service]});
    let admin = free_port();
    let outcome = run(&binary, dir.path(), (admin, xds, source), async {
        if matches!(way, Way::ClusterTls | Way::ClusterMutualTls | Way::TargetMutualTls) {
            let seen = agreements.recv().await.context("no connection")?;
            let name = if way == Way::TargetMutualTls { "localhost" } else { "xds.example" };
            ensure!(seen["alpn"] == "h2" && seen["sni"] == name, "{seen}");
            ensure!(seen["client"] == if mutual { json!("proxy") } else { Value::Null }, "{seen}");
        }
        let asked = server.asked().await.context("nothing is asked")?;
        ensure!(asked.request.type_url() == CLUSTER, "{asked:?}");
        let token = asked.metadata.get("authorization").map(|token| token.as_bytes());
        ensure!(token == (way == Way::TargetMutualTls).then_some(&b"Bearer secret"[..]), "{asked:?}");
        let response = DiscoveryResponse {
            version_info: "1".into(),
            nonce: "n".into(),
            type_url: CLUSTER.into(),
            resources: vec![fetched()],
            ..DiscoveryResponse::default()
        };
        server.send(asked.stream, &response.encode_to_vec())?;
        let answer = server.asked().await.context("no answer")?;
        let Request::Sotw(answer) = answer.request else { anyhow::bail!("{answer:?}") };
        ensure!(answer.version_info == "1" && answer.error_detail.is_none(), "{answer:?}");
        Ok(())
    });
    let outcome = outcome.await;
    front.abort();
    unix.abort();
    outcome
}

async fn poll_over_h2(binary: PathBuf) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let (seen, mut polls) = mpsc::unbounded_channel();
    let front = tokio::spawn(async move {
        let mut connections = 0;
        while let Ok((socket, _)) = listener.accept().await {
            connections += 1;
            let (seen, number) = (seen.clone(), connections);
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let seen = seen.clone();
                    tokio::spawn(async move {
                        let (head, mut body) = request.into_parts();
                        let mut all = Vec::new();
                        while let Some(Ok(piece)) = body.data().await {
                            let _ = body.flow_control().release_capacity(piece.len());
                            all.extend_from_slice(&piece);
                        }
                        let answer = json!({
                            "version_info": "7",
                            "resources": [{"@type": CLUSTER, "name": "fetched"}],
                        });
                        let ok = http::Response::builder().header("content-type", "application/json").body(());
                        if let Ok(mut send) =
                            ok.map_err(drop).and_then(|ok| respond.send_response(ok, false).map_err(drop))
                        {
                            let _ = send.send_data(Bytes::from(answer.to_string()), true);
                        }
                        let poll: Value = serde_json::from_slice(&all).unwrap_or_default();
                        let _ = seen.send((number, head, poll));
                    });
                }
            });
        }
    });
    let source = json!({
        "api_type": "REST", "transport_api_version": "V3", "cluster_names": ["xds"], "refresh_delay": "0.1s",
    });
    let admin = free_port();
    let outcome = run(&binary, dir.path(), (admin, cluster(port), source), async {
        let (_, head, first) = polls.recv().await.context("no poll")?;
        ensure!(head.method == "POST" && head.uri.path() == "/v3/discovery:clusters", "{head:?}");
        ensure!(head.uri.authority().is_some_and(|authority| authority == "xds"), "{head:?}");
        ensure!(head.headers.get("content-type").is_some_and(|kind| kind == "application/json"), "{head:?}");
        ensure!(head.headers.get("x-envoy-expected-rq-timeout-ms").is_some_and(|ms| ms == "1000"), "{head:?}");
        ensure!(first["version_info"].as_str().unwrap_or_default().is_empty(), "{first}");
        // The next say what was taken, on the same connection.
        let (number, _, next) = polls.recv().await.context("no second poll")?;
        ensure!(next["version_info"] == "7" && number == 1, "connection {number}: {next}");
        let stats = get(admin, "/stats?filter=cluster_manager.active_clusters").await?;
        ensure!(stats.contains("cluster_manager.active_clusters: 2"), "{stats}");
        Ok(())
    });
    let outcome = outcome.await;
    front.abort();
    outcome
}
