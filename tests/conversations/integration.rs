//! go-control-plane's own integration program, with Nuncio where it has Envoy.
//!
//! The program is `pkg/test/main` of that module, an ordinary Go package; it serves snapshots, asks the listeners that are in
//! them, and ends with 0 when each snapshot was served. Its bootstraps are made here, since its ports are fixed otherwise.
//! Where Go is missing the suite says so, and fails in CI.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nuncio_tests::find;
use nuncio_tests::proxy::free_port;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::modes::upstream;
use crate::spawned::Spawned;

/// What the upstream answers.
const MESSAGE: &str = "Hi, there!";
/// The most listeners that a snapshot of the program has.
const LISTENERS: u16 = 8;

#[test]
fn ads() {
    check("ads", &[]);
}

#[test]
fn ads_with_tls() {
    check("ads", &["-tls"]);
}

#[test]
fn xds() {
    check("xds", &[]);
}

#[test]
fn xds_with_tls() {
    check("xds", &["-tls"]);
}

#[test]
fn xds_with_a_cache_of_its_own_for_endpoints() {
    check("xds", &["-mux"]);
}

#[test]
fn xds_with_tls_and_a_cache_of_its_own_for_endpoints() {
    check("xds", &["-mux", "-tls"]);
}

// The program itself ends with a panic for `-mux` with delta, and serves no endpoints for it over REST, whoever asks.
#[test]
fn ads_with_a_cache_of_its_own_for_endpoints() {
    check("ads", &["-mux"]);
}

#[test]
fn delta() {
    check("delta", &[]);
}

#[test]
fn delta_with_tls() {
    check("delta", &["-tls"]);
}

#[test]
fn delta_ads() {
    check("delta-ads", &[]);
}

#[test]
fn delta_ads_with_tls() {
    check("delta-ads", &["-tls"]);
}

#[test]
fn rest() {
    check("rest", &[]);
}

#[test]
fn rest_with_tls() {
    check("rest", &["-tls"]);
}

fn check(mode: &str, flags: &[&str]) {
    let Some(program) = find::integration_or_loud() else { return };
    let nuncio = find::nuncio().unwrap_or_else(|e| panic!("no Nuncio: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(accept(&nuncio, &program, mode, flags)).unwrap_or_else(|e| panic!("{mode} {flags:?}: {e:#}"));
}

/// The first of so many ports in a row that nobody holds and no other test is given.
fn free_ports(count: u16) -> u16 {
    let mut first = free_port();
    let mut last = first;
    while last - first + 1 < count {
        let next = free_port();
        if next != last + 1 {
            first = next;
        }
        last = next;
    }
    first
}

fn source(mode: &str) -> Value {
    let services = json!([{"envoy_grpc": {"cluster_name": "xds_cluster"}}]);
    let api = match mode {
        "ads" | "delta-ads" => return json!({"resource_api_version": "V3", "ads": {}}),
        "rest" => json!({"api_type": "REST", "transport_api_version": "V3", "refresh_delay": "0.5s",
            "cluster_names": ["xds_cluster"]}),
        "delta" => json!({"api_type": "DELTA_GRPC", "transport_api_version": "V3",
            "set_node_on_first_message_only": true, "grpc_services": services}),
        _ => json!({"api_type": "GRPC", "transport_api_version": "V3",
            "set_node_on_first_message_only": true, "grpc_services": services}),
    };
    json!({"resource_api_version": "V3", "api_config_source": api})
}

/// Layers of the runtime, all of which the program serves.
fn runtimes(mode: &str) -> &'static [&'static str] {
    if mode == "ads" { &["runtime-0", "runtime-1"] } else { &["runtime-0"] }
}

fn bootstrap(mode: &str, admin: u16, server: u16, logs: u16) -> Value {
    let address = |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let cluster = |name: &str, port: u16, http2: bool| {
        let endpoint = json!({"endpoint": {"address": address(port)}});
        let mut cluster = json!({"name": name, "connect_timeout": "1s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}});
        if http2 {
            cluster["http2_protocol_options"] = json!({});
        }
        cluster
    };
    let mut dynamic = json!({"cds_config": source(mode), "lds_config": source(mode)});
    if mode.ends_with("ads") {
        dynamic["ads_config"] = json!({
            "api_type": if mode == "ads" { "GRPC" } else { "DELTA_GRPC" },
            "transport_api_version": "V3",
            "set_node_on_first_message_only": true,
            "grpc_services": [{"envoy_grpc": {"cluster_name": "xds_cluster"}}],
        });
    }
    let layer = |name: &&str| json!({"name": name, "rtds_layer": {"name": name, "rtds_config": source(mode)}});
    let layers: Vec<_> = runtimes(mode).iter().map(layer).collect();
    json!({
        "node": {"id": "test-id", "cluster": "test-cluster"},
        "admin": {"address": address(admin)},
        "dynamic_resources": dynamic,
        "layered_runtime": {"layers": layers},
        "static_resources": {"clusters": [
            cluster("xds_cluster", server, mode != "rest"), cluster("als_cluster", logs, true),
        ]},
    })
}

async fn accept(binary: &Path, program: &Path, mode: &str, flags: &[&str]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = upstream(MESSAGE).await?;
    let (server, gateway, logs, base) = (free_port(), free_port(), free_port(), free_ports(LISTENERS));
    let asked = if mode == "rest" { gateway } else { server };
    let bootstrap = bootstrap(mode, free_port(), asked, logs);
    let mut proxy = Spawned::start(binary, dir.path(), &bootstrap, &["--drain-time-s", "1"])?;
    let mut command = Command::new(program);
    let number = |port: u16| port.to_string();
    command.args(["-xds", mode, "-port", &number(server), "-gateway", &number(gateway), "-als", &number(logs)]);
    command.args(["-upstream", &number(upstream), "-base", &number(base), "-message", MESSAGE]);
    command.args(["-runtimes", &runtimes(mode).len().to_string()]);
    // One of the batches has to be answered whole, in time for each; the program makes all of them.
    command.args(if mode == "rest" { ["-r", "10", "-delay", "600ms"] } else { ["-r", "8", "-delay", "400ms"] });
    command.args(flags);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let accepted = async {
        let output = tokio::time::timeout(Duration::from_secs(60), command.output()).await;
        let output = output.context("the program does not end")??;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let tail = said.len().saturating_sub(3000);
            bail!("{}: {}", output.status, &said[tail..]);
        }
        Ok(())
    };
    proxy.during(accepted).await
}
