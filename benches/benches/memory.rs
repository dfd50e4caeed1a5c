//! Memory of the release binary: at rest, of ten thousand clusters, per idle connection, and with large bodies for slow
//! receivers. Each has a ceiling, and the bench fails above it: memory, unlike time, can be held on any machine.
//!
//! `cargo bench --bench memory [-- OPTIONS]`:
//! - `--smoke`: receivers that are slow for a shorter time, otherwise all of it;
//! - `--mib N`: another length of the bodies than 1024 MiB.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nuncio_benches::bulk::{self, Body, Version};
use nuncio_benches::procfs;
use nuncio_tests::find;
use nuncio_tests::proxy::free_port;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Resident memory of a process that has started and has nothing to do.
const AT_REST_KIB: u64 = 20 * 1024;
/// Private memory of a connection that waits for its next request.
const CONNECTION_BYTES: u64 = 6 * 1024;
/// Clusters, and virtual hosts that route to them, of a large static configuration.
const CLUSTERS: usize = 10_000;
/// Resident memory with them, at rest. Envoy 1.40 takes four times as much or more: 574 MB.
const CLUSTERS_KIB: u64 = 128 * 1024;
/// Highest resident memory while a large body passes from a sender that speaks HTTP/1.1.
const BODY_KIB: u64 = 24 * 1024;
/// The same from a sender that speaks HTTP/2, which may fill the window of 16 MiB that Envoy's defaults open before anything of
/// it is taken.
const WINDOW_KIB: u64 = 32 * 1024;
/// From listening to having given back what only the start needs.
const SETTLE: Duration = Duration::from_millis(700);
/// Idle connections; half of them are there before it is counted.
const CONNECTIONS: usize = 400;

struct Proxy {
    child: Child,
    ports: [u16; 2],
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn main() -> Result<()> {
    let mut body = Body { length: 1 << 30, slow: Duration::from_secs(3) };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--smoke" => body.slow = Duration::from_millis(800),
            "--mib" => body.length = args.next().context("--mib needs a value")?.parse::<u64>()? << 20,
            "--bench" => {}
            // `cargo bench NAME` passes the name to every bench.
            name if !name.starts_with('-') => {
                if !"memory".contains(name) {
                    return Ok(());
                }
            }
            other => bail!("unknown option {other}"),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, run(body))
}

#[allow(clippy::print_stdout, reason = "the figures are the product")]
async fn run(body: Body) -> Result<()> {
    let upstreams = [bulk::upstream(Version::Http1, body)?, bulk::upstream(Version::Http2, body)?];
    let proxy = Proxy::start(upstreams)?;
    let pid = proxy.child.id();
    tokio::time::sleep(SETTLE).await;
    let mut above = Vec::new();
    let mut hold = |what: &str, measured: u64, ceiling: u64, unit: &str| {
        println!("{what:<44} {measured:>8} {unit}   (ceiling {ceiling})");
        if measured > ceiling {
            above.push(format!("{what}: {measured} {unit} above {ceiling}"));
        }
    };
    hold("at rest", procfs::resident_kib(pid)?, AT_REST_KIB, "KiB");
    hold("at rest with 10,000 clusters and virtual hosts", many_clusters_kib().await?, CLUSTERS_KIB, "KiB");

    let mut idle = Vec::new();
    connect(&mut idle, &proxy, CONNECTIONS / 2).await?;
    let before = procfs::private_kib(pid)?;
    connect(&mut idle, &proxy, CONNECTIONS / 2).await?;
    let grown = procfs::private_kib(pid)?.saturating_sub(before) * 1024;
    hold("per idle HTTP/1.1 connection", grown / (CONNECTIONS as u64 / 2), CONNECTION_BYTES, "bytes");
    drop(idle);

    for downstream in [Version::Http1, Version::Http2] {
        for (path, upstream) in [("/h1", Version::Http1), ("/h2", Version::Http2)] {
            for (upload, direction) in [(false, "download"), (true, "upload")] {
                // Each in a process of its own: what the allocator keeps of one would count for the next.
                let proxy = Proxy::start(upstreams)?;
                let pid = proxy.child.id();
                tokio::time::sleep(SETTLE).await;
                procfs::reset_peak(pid)?;
                let begin = Instant::now();
                let address = proxy.address(downstream);
                let done = match upload {
                    false => bulk::download(downstream, address, path, body).await,
                    true => bulk::upload(downstream, address, path, body).await,
                };
                let what = format!("{direction} {downstream:?} to {upstream:?}");
                done.with_context(|| what.clone())?;
                let what = format!("{what}, {:.1} s, peak", begin.elapsed().as_secs_f64());
                let sender = if upload { downstream } else { upstream };
                let ceiling = if sender == Version::Http2 { WINDOW_KIB } else { BODY_KIB };
                hold(&what, procfs::peak_kib(pid)?, ceiling, "KiB");
            }
        }
    }
    ensure!(above.is_empty(), "{}", above.join("; "));
    Ok(())
}

/// Resident memory of a proxy that has started with [`CLUSTERS`], and shows that it routes to the last of them.
async fn many_clusters_kib() -> Result<u64> {
    let port = free_port();
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
    file.write_all(many_clusters(port).as_bytes())?;
    let path = file.path().to_str().context("the path of the configuration")?;
    let proxy = Proxy::listening(&["-c", path], [port; 2])?;
    // The cluster's host takes no connections: the route is found, and the request then fails.
    let head = request(&mut TcpStream::connect(proxy.address(Version::Http1)).await?, CLUSTERS - 1).await?;
    ensure!(head.starts_with("HTTP/1.1 503"), "{head}");
    tokio::time::sleep(SETTLE).await;
    procfs::resident_kib(proxy.child.id())
}

async fn request(stream: &mut TcpStream, host: usize) -> Result<String> {
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: h{host}.example\r\n\r\n").as_bytes()).await?;
    let mut head = [0; 1024];
    let n = stream.read(&mut head).await?;
    Ok(head[..n].escape_ascii().to_string())
}

/// Opens connections; each has served a request and waits for the next.
async fn connect(idle: &mut Vec<TcpStream>, proxy: &Proxy, count: usize) -> Result<()> {
    for _ in 0..count {
        let mut stream = TcpStream::connect(proxy.address(Version::Http1)).await?;
        stream.write_all(b"GET /direct HTTP/1.1\r\nhost: a\r\n\r\n").await?;
        let mut head = [0; 1024];
        let n = stream.read(&mut head).await?;
        ensure!(head[..n].starts_with(b"HTTP/1.1 200"), "{}", head[..n].escape_ascii());
        idle.push(stream);
    }
    Ok(())
}

impl Proxy {
    fn address(&self, version: Version) -> SocketAddr {
        let port = self.ports[usize::from(version == Version::Http2)];
        (Ipv4Addr::LOCALHOST, port).into()
    }

    fn start(upstreams: [SocketAddr; 2]) -> Result<Self> {
        let ports = [free_port(), free_port()];
        Self::listening(&["--config-yaml", &bootstrap(ports, upstreams)], ports)
    }

    /// Starts the proxy with these arguments and waits until it listens.
    fn listening(args: &[&str], ports: [u16; 2]) -> Result<Self> {
        let mut command = Command::new(find::nuncio().map_err(anyhow::Error::msg)?);
        command.args(args).args(["--concurrency", "1", "-l", "error"]);
        let child = command.stdin(Stdio::null()).spawn().context("the proxy")?;
        let proxy = Self { child, ports };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !ports.iter().all(|&port| std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()) {
            ensure!(Instant::now() < deadline, "the proxy does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(proxy)
    }
}

/// A listener, [`CLUSTERS`] virtual hosts of one name each, and a cluster of one host for each of them.
fn many_clusters(port: u16) -> String {
    let api = "type.googleapis.com/envoy.extensions.filters";
    let hosts = (0..CLUSTERS).map(|n| {
        format!(
            "            - {{name: v{n}, domains: [h{n}.example], routes: [{{match: {{prefix: /}}, route: {{cluster: c{n}}}}}]}}\n"
        )
    });
    let clusters = (0..CLUSTERS).map(|n| {
        format!(
            "  - {{name: c{n}, connect_timeout: 1s, load_assignment: {{cluster_name: c{n}, endpoints: [{{lb_endpoints: \
             [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}}}}}]}}]}}}}\n"
        )
    });
    let listener = format!(
        "static_resources:\n  listeners:\n  - name: l\n    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\n    \
         filter_chains:\n    - filters:\n      - name: hcm\n        typed_config:\n          \"@type\": \
         {api}.network.http_connection_manager.v3.HttpConnectionManager\n          stat_prefix: a\n          http_filters:\n          \
         - {{name: router, typed_config: {{\"@type\": {api}.http.router.v3.Router}}}}\n          route_config:\n            \
         virtual_hosts:\n"
    );
    std::iter::once(listener).chain(hosts).chain(["  clusters:\n".to_owned()]).chain(clusters).collect()
}

fn bootstrap(ports: [u16; 2], upstreams: [SocketAddr; 2]) -> String {
    let api = "type.googleapis.com/envoy.extensions";
    let listener = |port: u16, codec: &str| {
        format!(
            "  - {{name: {codec}, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: \
             [{{filters: [{{name: hcm, typed_config: {{\"@type\": {api}.filters.network.http_connection_manager.v3.\
             HttpConnectionManager, stat_prefix: {codec}, codec_type: {codec}, route_config: {{virtual_hosts: [{{name: all, \
             domains: [\"*\"], routes: [{{match: {{path: /direct}}, direct_response: {{status: 200}}}}, \
             {{match: {{prefix: /h1}}, route: {{cluster: h1, timeout: 0s}}}}, \
             {{match: {{prefix: /h2}}, route: {{cluster: h2, timeout: 0s}}}}]}}]}}, \
             http_filters: [{{name: router, typed_config: {{\"@type\": {api}.filters.http.router.v3.Router}}}}]}}}}]}}]}}\n"
        )
    };
    let cluster = |name: &str, address: SocketAddr, options: &str| {
        format!(
            "  - {{name: {name}, load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: \
             {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]}}{options}}}\n",
            address.ip(),
            address.port()
        )
    };
    let http2 = format!(
        ", typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{\"@type\": \
         {api}.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{http2_protocol_options: {{}}}}}}}}"
    );
    format!(
        "static_resources:\n  listeners:\n{}{}  clusters:\n{}{}",
        listener(ports[0], "HTTP1"),
        listener(ports[1], "HTTP2"),
        cluster("h1", upstreams[0], ""),
        cluster("h2", upstreams[1], &http2)
    )
}
