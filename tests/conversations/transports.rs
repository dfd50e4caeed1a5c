//! Ways to a control plane: streams to a cluster with TLS, and polls of a cluster that speaks HTTP/2. Nuncio and Envoy each.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::Ipv4Addr;
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
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::modes::get;
use crate::spawned::Spawned;

const PATIENCE: Duration = Duration::from_secs(20);
const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

#[test]
fn streams_go_to_a_cluster_with_tls_which_is_told_that_it_is_http_2() {
    with_both(|binary| Box::pin(stream_over_tls(binary)));
}

#[test]
fn polls_of_a_cluster_that_speaks_http_2_go_over_http_2() {
    with_both(|binary| Box::pin(poll_over_h2(binary)));
}

type Play = std::pin::Pin<Box<dyn Future<Output = Result<()>>>>;

fn with_both(play: impl Fn(PathBuf) -> Play) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap_or_else(|e| panic!("{e}"));
    let nuncio = find::nuncio().unwrap_or_else(|e| panic!("no Nuncio: {e}"));
    for binary in std::iter::once(nuncio).chain(find::envoy_or_loud()) {
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

async fn stream_over_tls(binary: PathBuf) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let spec = |ca: Option<&str>| CertSpec { ca: ca.map(str::to_owned), sans: vec!["xds.example".to_owned()] };
    let specs = BTreeMap::from([("ca".to_owned(), spec(None)), ("xds".to_owned(), spec(Some("ca")))]);
    let certs = Certs::make(dir.path(), &specs)?;
    let server_tls = ServerTls { cert: "xds".into(), alpn: vec!["h2".into(), "http/1.1".into()], client_ca: None };
    let acceptor = tls::acceptor(&server_tls, &certs)?;
    let mut server = ControlPlane::start().await?;
    // TLS ends before the server.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let behind = server.address;
    let (agreed, mut agreements) = mpsc::unbounded_channel();
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
    let mut xds = cluster(port);
    xds["transport_socket"] = json!({"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": "xds.example",
        "common_tls_context": {"validation_context": {
            "trusted_ca": {"filename": certs.cert("ca")},
            "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "xds.example"}}],
        }},
    }});
    let source = json!({
        "api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
    });
    let admin = free_port();
    let outcome = run(&binary, dir.path(), (admin, xds, source), async {
        let seen = agreements.recv().await.context("no connection")?;
        ensure!(seen["alpn"] == "h2" && seen["sni"] == "xds.example", "{seen}");
        let asked = server.asked().await.context("nothing is asked")?;
        ensure!(asked.request.type_url() == CLUSTER, "{asked:?}");
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
