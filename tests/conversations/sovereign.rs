//! Sovereign, a control plane written in Python, serves Nuncio over REST: clusters, endpoints, listeners and routes from its
//! templates, and what changes in its sources.
//!
//! It comes from PyPI into the target folder. Where that fails the suite says so, and fails in CI.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use nuncio_tests::find;
use nuncio_tests::proxy::free_port;
use serde_json::json;
use tokio::process::Command;

use crate::modes::{Ports, bootstrap, until, upstream};
use crate::spawned::Spawned;

/// A template of each type. What stands in `instances` comes from the source.
const TEMPLATES: [(&str, &str); 4] = [
    (
        "clusters",
        "{name: {{ i.name }}, type: EDS, connect_timeout: 1s, eds_cluster_config: {eds_config: {{ source }}}}",
    ),
    (
        "endpoints",
        "{cluster_name: {{ i.name }}, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: \
         127.0.0.1, port_value: {{ i.port }}}}}}]}]}",
    ),
    (
        "routes",
        "{name: {{ i.name }}, virtual_hosts: [{name: all, domains: ['*'], routes: [{match: {prefix: '{{ i.prefix }}'}, \
         route: {cluster: {{ i.name }}}}]}]}",
    ),
    (
        "listeners",
        "{name: {{ i.name }}, address: {socket_address: {address: 127.0.0.1, port_value: {{ i.listener }}}}, filter_chains: \
         [{filters: [{name: hcm, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.\
         http_connection_manager.v3.HttpConnectionManager, stat_prefix: a, rds: {route_config_name: {{ i.name }}, \
         config_source: {{ source }}}, http_filters: [{name: router, typed_config: {'@type': \
         type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]}",
    ),
];

#[test]
fn templates_are_served_and_changes_of_their_source_too() {
    let Some(packages) = find::sovereign_or_loud() else { return };
    let nuncio = find::nuncio().unwrap_or_else(|e| panic!("no Nuncio: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(play(&nuncio, &packages)).unwrap_or_else(|e| panic!("{e:#}"));
}

/// Sovereign's own configuration, with its templates; the source is a file.
fn configure(dir: &Path) -> Result<()> {
    let source = json!({"resource_api_version": "V3", "api_config_source": {
        "api_type": "REST", "transport_api_version": "V3", "cluster_names": ["rest"], "refresh_delay": "0.1s",
    }});
    let mut templates = serde_json::Map::new();
    for (kind, item) in TEMPLATES {
        let path = dir.join(format!("{kind}.yaml"));
        let item = item.replace("{{ source }}", &source.to_string());
        std::fs::write(&path, format!("resources:\n{{% for i in instances %}}\n- {item}\n{{% endfor %}}\n"))?;
        templates.insert(kind.to_owned(), format!("file+jinja://{}", path.display()).into());
    }
    let instances = format!("file+json://{}", dir.join("instances.json").display());
    let config = json!({
        "sources": [{"type": "file", "config": {"path": instances}}],
        "source_config": {"refresh_rate": 1},
        "templates": {"default": templates},
    });
    // JSON is YAML.
    Ok(std::fs::write(dir.join("sovereign.yaml"), config.to_string())?)
}

async fn play(nuncio: &Path, packages: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (one, two) = (upstream("one").await?, upstream("two").await?);
    let (port, admin, listener) = (free_port(), free_port(), free_port());
    let instances = |endpoint: u16, prefix: &str| -> Result<()> {
        // It is replaced whole, as it may be read at any time.
        let own = json!([{"service_clusters": ["*"], "name": "up", "port": endpoint, "listener": listener,
            "prefix": prefix}]);
        std::fs::write(dir.path().join("new.json"), own.to_string())?;
        Ok(std::fs::rename(dir.path().join("new.json"), dir.path().join("instances.json"))?)
    };
    instances(one, "/")?;
    configure(dir.path())?;
    let said = dir.path().join("sovereign.log");
    let log = std::fs::File::create(&said)?;
    let mut server = Command::new("python3")
        .args(["-c", &format!("import uvicorn, sovereign.app as s; uvicorn.run(s.app, host='127.0.0.1', port={port})")])
        .current_dir(dir.path())
        .env("PYTHONPATH", packages)
        .env("SOVEREIGN_CONFIG", format!("file://{}", dir.path().join("sovereign.yaml").display()))
        .env("SOVEREIGN_ENABLE_ACCESS_LOGS", "0")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("python3")?;
    let bootstrap = bootstrap("rest", admin, Ports { grpc: 1, rest: port });
    let mut proxy = Spawned::start(nuncio, dir.path(), &bootstrap, &[])?;
    let said = || std::fs::read_to_string(&said).unwrap_or_default();
    let served = async {
        until(listener, "/", "200 one").await?;
        instances(two, "/")?;
        until(listener, "/", "200 two").await?;
        instances(two, "/only")?;
        until(listener, "/", "404 ").await?;
        until(listener, "/only", "200 two").await
    };
    tokio::select! {
        served = proxy.during(served) => served.with_context(said),
        ended = server.wait() => bail!("Sovereign ended with {}: {}", ended?, said()),
    }
}
