//! A control plane built on go-control-plane serves both proxies in each mode: clusters, endpoints, listeners and routes,
//! and changes of them.
//!
//! `tests/control-plane` is the program, an ordinary Go module. Where Go is missing the suite says so, and fails in CI.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nuncio_tests::proxy::free_port;
use nuncio_tests::{conversation, find, pending};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::spawned::{self, Spawned};

const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn ads() {
    check("ads");
}

#[test]
fn delta_ads() {
    check("delta-ads");
}

#[test]
fn xds() {
    check("xds");
}

#[test]
fn delta() {
    check("delta");
}

#[test]
fn rest() {
    check("rest");
}

fn check(mode: &str) {
    let Some(control_plane) = find::control_plane_or_loud() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if let Some(envoy) = find::envoy_or_loud() {
        let played = runtime.block_on(play(&envoy, &control_plane, mode));
        played.unwrap_or_else(|e| panic!("Envoy in mode {mode}: {e:#}"));
    }
    let nuncio = find::nuncio().unwrap_or_else(|e| panic!("no Nuncio: {e}"));
    let pending = pending::read_in(&conversation::dir()).1.contains(&format!("modes: {mode}"));
    match runtime.block_on(play(&nuncio, &control_plane, mode)) {
        Ok(()) => assert!(!pending, "{mode}: works now; take it off conversations/PENDING"),
        Err(e) if pending => eprintln!("PENDING modes: {mode}\n{e:#}"),
        Err(e) => panic!("Nuncio in mode {mode}: {e:#}"),
    }
}

/// The program, and what it says.
struct ControlPlane {
    _child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    ports: Ports,
}

impl ControlPlane {
    async fn start(binary: &Path, mode: &str) -> Result<ControlPlane> {
        let mut command = Command::new(binary);
        if mode.ends_with("ads") {
            command.arg("-ads");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let input = child.stdin.take().context("no input")?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let mut this = ControlPlane { _child: child, input, lines, ports: Ports { grpc: 0, rest: 0 } };
        let listening = this.event("listening").await?;
        let port = |kind: &str| listening[kind].as_u64().and_then(|port| u16::try_from(port).ok()).context("no port");
        this.ports = Ports { grpc: port("grpc")?, rest: port("rest")? };
        Ok(this)
    }

    /// The next event of a kind. A refusal of either side is an error.
    async fn event(&mut self, kind: &str) -> Result<Value> {
        loop {
            let line = tokio::time::timeout(DEADLINE, self.lines.next_line()).await.context(kind.to_owned())??;
            let event: Value = serde_json::from_str(&line.context("the control plane has ended")?)?;
            if event["event"] == "nack" || event["event"] == "refused" {
                bail!("{event}");
            }
            if event["event"] == kind {
                return Ok(event);
            }
        }
    }

    async fn serve(&mut self, dir: &Path, version: &str, resources: &Value) -> Result<()> {
        let path = dir.join(format!("{version}.yaml"));
        // JSON is YAML.
        std::fs::write(&path, json!({"version": version, "resources": resources}).to_string())?;
        self.input.write_all(format!("{}\n", path.display()).as_bytes()).await?;
        self.event("serving").await?;
        Ok(())
    }
}

/// Answers every request with `body`.
pub(crate) async fn upstream(body: &'static str) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(1..) = socket.read(&mut buffer).await {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    if socket.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(port)
}

/// A config source of the mode, and the cluster that it names.
fn source(mode: &str) -> Value {
    let api = |api_type: &str| {
        let services = json!([{"envoy_grpc": {"cluster_name": "grpc"}}]);
        json!({"api_type": api_type, "transport_api_version": "V3", "grpc_services": services})
    };
    match mode {
        "ads" | "delta-ads" => json!({"ads": {}, "resource_api_version": "V3"}),
        "xds" => json!({"resource_api_version": "V3", "api_config_source": api("GRPC")}),
        "delta" => json!({"resource_api_version": "V3", "api_config_source": api("DELTA_GRPC")}),
        _ => json!({"resource_api_version": "V3", "api_config_source": {
            "api_type": "REST", "transport_api_version": "V3", "cluster_names": ["rest"], "refresh_delay": "0.1s",
        }}),
    }
}

/// Where the control plane is asked.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) grpc: u16,
    pub(crate) rest: u16,
}

pub(crate) fn bootstrap(mode: &str, admin: u16, ports: Ports) -> Value {
    let cluster = |name: &str, port: u16| {
        let endpoint = json!({"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}});
        json!({"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": {
            "cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        }})
    };
    let mut grpc = cluster("grpc", ports.grpc);
    grpc["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }});
    let mut dynamic = json!({"cds_config": source(mode), "lds_config": source(mode)});
    if mode.ends_with("ads") {
        dynamic["ads_config"] = json!({
            "api_type": if mode == "ads" { "GRPC" } else { "DELTA_GRPC" },
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "grpc"}}],
        });
    }
    json!({
        "node": {"id": "test", "cluster": "test"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
        "dynamic_resources": dynamic,
        "static_resources": {"clusters": [grpc, cluster("rest", ports.rest)]},
    })
}

/// A snapshot: one cluster with endpoints, one listener, one route table.
fn snapshot(mode: &str, listener: u16, endpoint: u16, path: &str) -> Value {
    let t = |name: &str| format!("type.googleapis.com/envoy.{name}");
    json!([
        {"@type": t("config.cluster.v3.Cluster"), "name": "up", "type": "EDS", "connect_timeout": "1s",
         "eds_cluster_config": {"eds_config": source(mode)}},
        {"@type": t("config.endpoint.v3.ClusterLoadAssignment"), "cluster_name": "up", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": endpoint}}}},
        ]}]},
        {"@type": t("config.route.v3.RouteConfiguration"), "name": "routes", "virtual_hosts": [
            {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": path}, "route": {"cluster": "up"}}]},
        ]},
        {"@type": t("config.listener.v3.Listener"), "name": "main",
         "address": {"socket_address": {"address": "127.0.0.1", "port_value": listener}},
         "filter_chains": [{"filters": [{"name": "hcm", "typed_config": {
            "@type": t("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "main",
            "rds": {"route_config_name": "routes", "config_source": source(mode)},
            "http_filters": [{"name": "router", "typed_config": {"@type": t("extensions.filters.http.router.v3.Router")}}],
         }}]}]},
    ])
}

pub(crate) async fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await??;
    let status = answer.split_whitespace().nth(1).unwrap_or_default().to_owned();
    Ok(format!("{status} {}", answer.split("\r\n\r\n").nth(1).unwrap_or_default()))
}

/// Asks until the answer is `want`.
pub(crate) async fn until(port: u16, path: &str, want: &str) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let got = get(port, path).await;
        if got.as_ref().is_ok_and(|got| got == want) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("GET {path}: {got:?} instead of {want:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `xds-check` finds everything of the first snapshot good, and leaves the ports alone.
async fn dry_run(nuncio: &Path, bootstrap: &Path) -> Result<()> {
    let mut command = Command::new(nuncio);
    command.args(["xds-check", "--output", "json", "--timeout", "20", "--bootstrap"]).arg(bootstrap).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await??;
    let value: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    let rows = value["resources"].as_array().context("no resources")?;
    let rows: Vec<_> = rows.iter().map(|row| json!([row["name"], row["verdict"]])).collect();
    let names = ["up", "up", "main", "routes"];
    // Delta: each resource has a version of its own.
    let versions = value["resources"].as_array().is_some_and(|rows| rows.iter().all(|row| row["version"] != ""));
    if !output.status.success() || !versions || rows != names.map(|name| json!([name, "accepted"])) {
        bail!("{value:#}");
    }
    Ok(())
}

async fn play(binary: &Path, control_plane: &Path, mode: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut server = ControlPlane::start(control_plane, mode).await?;
    let (one, two) = (upstream("one").await?, upstream("two").await?);
    let (admin, listener) = (free_port(), free_port());
    server.serve(dir.path(), "v1", &snapshot(mode, listener, one, "/")).await?;
    let bootstrap = bootstrap(mode, admin, server.ports);
    if find::nuncio().is_ok_and(|nuncio| nuncio == binary) {
        dry_run(binary, &spawned::write(dir.path(), &bootstrap)?)
            .await
            .with_context(|| format!("xds-check in mode {mode}"))?;
    }
    let mut proxy = Spawned::start(binary, dir.path(), &bootstrap, &[])?;
    let served = async {
        until(listener, "/", "200 one").await?;
        // Endpoints alone.
        server.serve(dir.path(), "v2", &snapshot(mode, listener, two, "/")).await?;
        until(listener, "/", "200 two").await?;
        // Routes alone.
        server.serve(dir.path(), "v3", &snapshot(mode, listener, two, "/only")).await?;
        until(listener, "/", "404 ").await?;
        until(listener, "/only", "200 two").await?;
        // The listener moves.
        let other = free_port();
        server.serve(dir.path(), "v4", &snapshot(mode, other, one, "/")).await?;
        until(other, "/", "200 one").await?;
        if mode != "rest" {
            // All that was sent was acknowledged; a refusal would have been an error of `event`.
            server.event("ack").await?;
        }
        Ok::<(), anyhow::Error>(())
    };
    proxy.during(served).await
}
