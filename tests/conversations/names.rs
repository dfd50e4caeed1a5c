//! Names that clients make up: Nuncio asks the control plane for each, and gives up what brought nothing when there are too
//! many. Nuncio alone: Envoy asks for each for ever.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use nuncio_tests::control_plane::{Asked, ControlPlane, Request};
use nuncio_tests::conversation::encoded;
use nuncio_tests::find;
use nuncio_tests::proxy::free_port;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::spawned::Spawned;

const PATIENCE: Duration = Duration::from_secs(60);
/// So many names that brought nothing are asked for still.
const ABSENT: usize = 1_000;
const MORE: usize = 20;

#[test]
fn hosts_that_clients_make_up_are_given_up_when_there_are_too_many() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap_or_else(|e| panic!("{e}"));
    runtime.block_on(play()).unwrap_or_else(|e| panic!("{e:#}"));
}

/// What the server has seen of virtual hosts.
#[derive(Debug, Default)]
struct Seen {
    subscribed: Vec<String>,
    unsubscribed: Vec<String>,
}

/// Answers everything; of virtual hosts there are none.
async fn serve(plane: &mut ControlPlane, listener: &Value, routes: &Value, seen: &mut Seen) -> Result<()> {
    let mut nonce = 0;
    loop {
        let asked: Asked = plane.asked().await.context("the proxy is gone")?;
        let Request::Delta(request) = &asked.request else { anyhow::bail!("{asked:?}") };
        ensure!(request.error_detail.is_none(), "{request:?}");
        let (kind, names) = (asked.request.type_url().to_owned(), &request.resource_names_subscribe);
        let resources = match kind.rsplit('.').next() {
            Some("VirtualHost") => {
                seen.unsubscribed.extend(request.resource_names_unsubscribe.iter().cloned());
                seen.subscribed.extend(names.iter().cloned());
                let none = |name: &String| Resource { name: name.clone(), aliases: vec![name.clone()], ..version("1") };
                names.iter().map(none).collect()
            }
            _ if !request.response_nonce.is_empty() => continue,
            Some("Listener") => {
                vec![Resource { name: "main".into(), resource: Some(encoded(listener, &kind)?), ..version("1") }]
            }
            Some("RouteConfiguration") => {
                vec![Resource { name: "r1".into(), resource: Some(encoded(routes, &kind)?), ..version("1") }]
            }
            _ => Vec::new(),
        };
        if !request.response_nonce.is_empty() && resources.is_empty() {
            continue;
        }
        nonce += 1;
        let response = DeltaDiscoveryResponse {
            system_version_info: "1".into(),
            nonce: nonce.to_string(),
            type_url: kind,
            resources,
            ..DeltaDiscoveryResponse::default()
        };
        plane.send(asked.stream, &response.encode_to_vec())?;
    }
}

fn version(version: &str) -> Resource {
    Resource { version: version.to_owned(), ..Resource::default() }
}

/// Asks for many hosts, one after the other.
async fn ask(port: u16) -> Result<()> {
    let mut stream = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    for number in 0..ABSENT + MORE {
        let request = format!("GET / HTTP/1.1\r\nhost: host-{number}.example\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            ensure!(stream.read_buf(&mut head).await? > 0, "closed after {number} requests");
        }
        ensure!(head.starts_with(b"HTTP/1.1 404"), "{}", String::from_utf8_lossy(&head));
    }
    Ok(())
}

async fn play() -> Result<()> {
    let nuncio = find::nuncio().map_err(anyhow::Error::msg)?;
    let mut plane = ControlPlane::start().await?;
    let (port, admin) = (free_port(), free_port());
    let address = |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let source = json!({"ads": {}, "resource_api_version": "V3"});
    let extension = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    let manager = json!({
        "@type": extension("network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "main",
        "rds": {"route_config_name": "r1", "config_source": source},
        "http_filters": [
            {"name": "on_demand", "typed_config": {"@type": extension("http.on_demand.v3.OnDemand")}},
            {"name": "router", "typed_config": {"@type": extension("http.router.v3.Router")}},
        ],
    });
    let filters = json!([{"name": "hcm", "typed_config": manager}]);
    let listener = json!({"name": "main", "address": address(port), "filter_chains": [{"filters": filters}]});
    let routes = json!({"name": "r1", "vhds": {"config_source": source}});
    let endpoint = json!({"endpoint": {"address": address(plane.address.port())}});
    let bootstrap = json!({
        "node": {"id": "test", "cluster": "test"},
        "admin": {"address": address(admin)},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC", "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
            },
            "cds_config": source,
            "lds_config": source,
        },
        "static_resources": {"clusters": [{
            "name": "xds", "type": "STATIC", "connect_timeout": "2s",
            "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [endpoint]}]},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }},
        }]},
    });
    let dir = tempfile::tempdir()?;
    let mut proxy = Spawned::start(&nuncio, dir.path(), &bootstrap, &[])?;
    let mut seen = Seen::default();
    let test = async {
        tokio::select! {
            served = serve(&mut plane, &listener, &routes, &mut seen) => served,
            asked = tokio::time::timeout(PATIENCE, ask(port)) => asked.context("not in time").flatten(),
        }
    };
    proxy.during(test).await?;
    // What is given up for the last may be told after its answer.
    let rest = serve(&mut plane, &listener, &routes, &mut seen);
    let _ = tokio::time::timeout(Duration::from_millis(500), rest).await;
    ensure!(seen.subscribed.len() == ABSENT + MORE, "{} names were asked for", seen.subscribed.len());
    let first: Vec<String> = (0..MORE).map(|number| format!("r1/host-{number}.example")).collect();
    ensure!(seen.unsubscribed == first, "given up: {:?}", seen.unsubscribed);
    Ok(())
}
