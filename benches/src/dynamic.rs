//! What the benches of dynamic configuration have in common: a proxy that takes everything from one aggregated stream, and
//! the resources that it is given, in JSON.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nuncio_tests::find;
use nuncio_tests::proxy::free_port;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A proxy that is driven by a control plane.
#[derive(Debug)]
pub struct Proxy {
    /// `nuncio` or `envoy`.
    pub name: &'static str,
    /// When it was started.
    pub started: Instant,
    admin: u16,
    child: Child,
    log: PathBuf,
}

/// How a proxy is started.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The control plane.
    pub xds: SocketAddr,
    /// Incremental, rather than state of the world.
    pub delta: bool,
    /// `--concurrency`.
    pub workers: usize,
    /// `--drain-time-s`.
    pub drain: u32,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    /// Starts a proxy by name. It is not waited for.
    ///
    /// # Errors
    /// It is not installed.
    pub fn start(name: &'static str, dir: &Path, start: Start) -> Result<Self> {
        let binary = if name == "envoy" { find::envoy() } else { find::nuncio() };
        let binary = binary.map_err(anyhow::Error::msg)?;
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let admin = free_port();
        let config = dir.join("bootstrap.json");
        std::fs::write(&config, bootstrap(admin, start).to_string())?;
        let log = dir.join("stderr");
        let mut command = Command::new(binary);
        command.arg("-c").arg(&config).args(["--disable-hot-restart", "-l", "error"]);
        command.args(["--concurrency", &start.workers.to_string(), "--drain-time-s", &start.drain.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&log)?);
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("{name}: {command:?}"))?;
        Ok(Self { name, started, admin, child, log })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a listener answers a path with a 200.
    ///
    /// # Errors
    /// It does not in time, or ends.
    pub async fn answers(&mut self, port: u16, path: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let last = match get(port, path).await {
                Ok((200, _)) => return Ok(()),
                other => format!("{other:?}"),
            };
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let text = std::fs::read_to_string(&self.log).unwrap_or_default();
                bail!("{} does not serve {path} ({ended:?}): {last}: {}", self.name, &text[..text.len().min(3000)]);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// A stat.
    ///
    /// # Errors
    /// The admin interface does not answer.
    pub async fn stat(&self, name: &str) -> Result<u64> {
        let (_, text) = get(self.admin, &format!("/stats?filter=^{name}$")).await?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.with_context(|| format!("no stat {name}: {text}"))?.parse().context("not a number")
    }
}

/// One request on a connection of its own: the status and the body.
///
/// # Errors
/// No complete answer.
pub async fn get(port: u16, path: &str) -> Result<(u16, String)> {
    let call = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let head = format!("GET {path} HTTP/1.1\r\nhost: bench.example\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let status = answer.split(' ').nth(1).and_then(|n| n.parse().ok()).context("no answer")?;
        Ok((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
    };
    tokio::time::timeout(Duration::from_secs(20), call).await.context("no answer in time")?
}

fn bootstrap(admin: u16, start: Start) -> Value {
    let mut xds = cluster("xds", true);
    xds["type"] = "STATIC".into();
    xds["eds_cluster_config"] = Value::Null;
    xds["load_assignment"] = assignment("xds", &[Endpoint { address: start.xds, drains: false, weight: 1 }]);
    json!({
        "node": {"id": "bench", "cluster": "bench"},
        "admin": {"address": address((Ipv4Addr::LOCALHOST, admin).into())},
        "dynamic_resources": {
            "ads_config": {
                "api_type": if start.delta { "DELTA_GRPC" } else { "GRPC" },
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
            },
            "cds_config": source(),
            "lds_config": source(),
        },
        "static_resources": {"clusters": [xds]},
    })
}

/// The aggregated stream.
pub fn source() -> Value {
    json!({"ads": {}, "resource_api_version": "V3"})
}

/// An address.
pub fn address(at: SocketAddr) -> Value {
    json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}})
}

/// The full name of an extension's message.
pub fn extension(name: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.{name}")
}

/// A cluster whose endpoints are fetched.
pub fn cluster(name: &str, http2: bool) -> Value {
    let mut cluster = json!({
        "name": name, "type": "EDS", "connect_timeout": "2s", "eds_cluster_config": {"eds_config": source()},
    });
    if http2 {
        cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": extension("upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": {"http2_protocol_options": {}},
        }});
    }
    cluster
}

/// An endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// Where it is.
    pub address: SocketAddr,
    /// `DRAINING`.
    pub drains: bool,
    /// `load_balancing_weight`.
    pub weight: u32,
}

/// Endpoints of a cluster.
pub fn assignment(cluster: &str, endpoints: &[Endpoint]) -> Value {
    let endpoint = |e: &Endpoint| {
        json!({
            "endpoint": {"address": address(e.address)},
            "health_status": if e.drains { "DRAINING" } else { "HEALTHY" },
            "load_balancing_weight": e.weight,
        })
    };
    let endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
    json!({"cluster_name": cluster, "endpoints": [{"locality": {"zone": "z"}, "lb_endpoints": endpoints}]})
}

/// A connection manager with the fetched routes `routes`; its `server` field tells versions apart.
pub fn connection_manager(codec: &str, server: &str) -> Value {
    json!({"name": "hcm", "typed_config": {
        "@type": extension("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "main",
        "codec_type": codec,
        "server_name": server,
        "rds": {"route_config_name": "routes", "config_source": source()},
        "http_filters": [{"name": "router", "typed_config": {"@type": extension("filters.http.router.v3.Router")}}],
    }})
}
