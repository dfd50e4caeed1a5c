//! The proxies under load: Nuncio and Envoy on the same bootstrap, nginx and haproxy on what comes closest.
//!
//! All have one worker, no access log, keep-alive to the upstream, and add the forwarding fields that Envoy adds.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nuncio_tests::certs::Certs;
use nuncio_tests::find;
use nuncio_tests::proxy::free_port;

use crate::load::Protocol;
use crate::{procfs, upstream};

/// A running proxy.
#[derive(Debug)]
pub struct Peer {
    /// What it is called in the tables.
    pub name: &'static str,
    child: Child,
    ports: Ports,
    log: PathBuf,
}

/// What the listeners of the proxies do, in the order of their ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// HTTP/1.1 to one upstream.
    Http1,
    /// HTTP/2 to one upstream.
    Http2,
    /// HTTP/1.1 over TLS to one upstream.
    Tls,
    /// TCP to an echo.
    Tcp,
    /// HTTP/1.1 to three upstreams by ring hash, with retries, outlier detection, health checks and circuit breakers: only the
    /// proxies that read Envoy's configuration.
    Policies,
}

/// One for each [`Entry`].
type Ports = [u16; 5];

impl Entry {
    /// The entry that the benches call `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> Result<Self> {
        Ok(match name {
            "h1" => Self::Http1,
            "h2c" => Self::Http2,
            "tls" => Self::Tls,
            "tcp" => Self::Tcp,
            "policies" => Self::Policies,
            other => bail!("no scenario {other}"),
        })
    }

    /// What its clients speak.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Http1 | Self::Policies => Protocol::Http1,
            Self::Http2 => Protocol::Http2,
            Self::Tls => Protocol::Tls,
            Self::Tcp => Protocol::Tcp,
        }
    }
}

/// Where the upstreams are.
#[derive(Clone, Copy, Debug)]
pub struct Upstreams {
    /// HTTP/1.1: the first for most entries, all of them for [`Entry::Policies`].
    pub http: [SocketAddr; 3],
    /// Echo.
    pub echo: SocketAddr,
}

impl Upstreams {
    /// Starts them on the current runtime.
    ///
    /// # Errors
    /// No port.
    pub async fn start() -> Result<Self> {
        let http = [upstream::http().await?, upstream::http().await?, upstream::http().await?];
        Ok(Self { http, echo: upstream::echo().await? })
    }
}

impl Peer {
    /// Starts a proxy by name on the given cores; None when it is not installed.
    ///
    /// # Errors
    /// It is installed and does not start.
    pub fn start(
        name: &'static str,
        dir: &Path,
        certs: &Certs,
        upstreams: Upstreams,
        cores: &[usize],
    ) -> Result<Option<Self>> {
        let ports = std::array::from_fn(|_| free_port());
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let mut command = match name {
            "nuncio" => like_envoy(&find::nuncio().map_err(anyhow::Error::msg)?, &dir, certs, upstreams, ports)?,
            "nuncio counted" => {
                let plain = like_envoy(&find::nuncio().map_err(anyhow::Error::msg)?, &dir, certs, upstreams, ports)?;
                let mut counted = Command::new("valgrind");
                counted.args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]);
                counted.arg(plain.get_program()).args(plain.get_args());
                counted
            }
            "envoy" => match find::envoy() {
                Ok(binary) => like_envoy(&binary, &dir, certs, upstreams, ports)?,
                Err(why) => {
                    eprintln!("envoy is left out: {why}");
                    return Ok(None);
                }
            },
            "nginx" => match on_path("nginx") {
                Some(binary) => nginx(&binary, &dir, certs, upstreams, ports)?,
                None => return Ok(None),
            },
            _ => match on_path("haproxy") {
                Some(binary) => haproxy(&binary, &dir, certs, upstreams, ports)?,
                None => return Ok(None),
            },
        };
        let log = dir.join("stderr");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&log)?);
        let own = procfs::cores();
        procfs::bind_to(cores);
        let child = command.spawn().with_context(|| format!("{name}: {command:?}"));
        procfs::bind_to(&own);
        let mut peer = Self { name, child: child?, ports, log };
        peer.wait()?;
        Ok(Some(peer))
    }

    fn wait(&mut self) -> Result<()> {
        // Under valgrind a start takes its time.
        let deadline = Instant::now() + Duration::from_secs(60);
        let entries = [Entry::Http1, Entry::Http2, Entry::Tls, Entry::Tcp, Entry::Policies];
        let addresses: Vec<SocketAddr> = entries.iter().filter_map(|&entry| self.address(entry)).collect();
        while !addresses.iter().all(|address| TcpStream::connect(address).is_ok()) {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let text = std::fs::read_to_string(&self.log).unwrap_or_default();
                bail!("{} does not listen ({ended:?}): {}", self.name, &text[..text.len().min(2000)]);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Asks it to end and waits; what it wrote to stderr.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(mut self) -> Result<String> {
        let pid =
            i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw).context("a process id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "{} does not end", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(std::fs::read_to_string(&self.log)?)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where clients of an entry connect; None when this proxy has no such entry.
    pub fn address(&self, entry: Entry) -> Option<SocketAddr> {
        let like_envoy = !matches!(self.name, "nginx" | "haproxy");
        (like_envoy || entry != Entry::Policies).then(|| (Ipv4Addr::LOCALHOST, self.ports[entry as usize]).into())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).chain([PathBuf::from("/usr/sbin")]).map(|d| d.join(name)).find(|p| p.is_file())
}

/// What the route of [`Entry::Policies`] does. The generated request id makes every request hash to another host.
const ROUTE_POLICIES: &str = "cluster: policies, timeout: 5s, hash_policy: [{header: {header_name: x-request-id}}], retry_policy: \
     {retry_on: \"connect-failure,refused-stream,reset,5xx\", num_retries: 2, per_try_timeout: 1s, \
     host_selection_retry_max_attempts: 3, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, \
     typed_config: {\"@type\": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}]}";
/// And its cluster, beside the hosts.
const CLUSTER_POLICIES: &str = ", lb_policy: RING_HASH, outlier_detection: {consecutive_5xx: 5, interval: 1s, \
     enforcing_failure_percentage: 100}, health_checks: [{timeout: 1s, interval: 1s, unhealthy_threshold: 2, healthy_threshold: \
     1, http_health_check: {path: /}}], circuit_breakers: {thresholds: [{max_connections: 1024, max_requests: 1024, \
     track_remaining: true, retry_budget: {budget_percent: {value: 20}}}]}";

fn like_envoy(binary: &Path, dir: &Path, certs: &Certs, up: Upstreams, ports: Ports) -> Result<Command> {
    let address = |a: SocketAddr| format!("{{socket_address: {{address: {}, port_value: {}}}}}", a.ip(), a.port());
    let local = |port: u16| address((Ipv4Addr::LOCALHOST, port).into());
    let api = "type.googleapis.com/envoy.extensions";
    let hcm = |name: &str, codec: &str, route: &str| {
        format!(
            "filters: [{{name: hcm, typed_config: {{\"@type\": {api}.filters.network.http_connection_manager.v3.\
             HttpConnectionManager, stat_prefix: {name}, codec_type: {codec}, use_remote_address: true, route_config: \
             {{name: rc, virtual_hosts: [{{name: all, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: \
             {{{route}}}}}]}}]}}, http_filters: [{{name: envoy.filters.http.router, typed_config: {{\"@type\": \
             {api}.filters.http.router.v3.Router}}}}]}}}}]"
        )
    };
    let cluster = |name: &str, hosts: &[SocketAddr], more: &str| {
        let hosts: Vec<String> = hosts.iter().map(|&a| format!("{{endpoint: {{address: {}}}}}", address(a))).collect();
        format!(
            "  - {{name: {name}, type: STATIC, connect_timeout: 1s, load_assignment: {{cluster_name: {name}, endpoints: \
             [{{lb_endpoints: [{}]}}]}}{more}}}\n",
            hosts.join(", ")
        )
    };
    let text = format!(
        "static_resources:\n  listeners:\n\
         \x20 - {{name: h1, address: {}, filter_chains: [{{{}}}]}}\n\
         \x20 - {{name: h2, address: {}, filter_chains: [{{{}}}]}}\n\
         \x20 - {{name: tls, address: {}, filter_chains: [{{{}, transport_socket: {{name: tls, typed_config: \
         {{\"@type\": {api}.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {{tls_certificates: \
         [{{certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}}}]}}}}}}}}]}}\n\
         \x20 - {{name: tcp, address: {}, filter_chains: [{{filters: [{{name: tcp, typed_config: {{\"@type\": \
         {api}.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: echo}}}}]}}]}}\n\
         \x20 - {{name: policies, address: {}, filter_chains: [{{{}}}]}}\n\
         \x20 clusters:\n{}{}{}",
        local(ports[0]),
        hcm("h1", "HTTP1", "cluster: http"),
        local(ports[1]),
        hcm("h2", "HTTP2", "cluster: http"),
        local(ports[2]),
        hcm("tls", "HTTP1", "cluster: http"),
        certs.cert("server").display(),
        certs.key("server").display(),
        local(ports[3]),
        local(ports[4]),
        hcm("policies", "HTTP1", ROUTE_POLICIES),
        cluster("http", &up.http[..1], ""),
        cluster("echo", &[up.echo], ""),
        cluster("policies", &up.http, CLUSTER_POLICIES),
    );
    let config = dir.join("bootstrap.yaml");
    std::fs::write(&config, text)?;
    let mut command = Command::new(binary);
    command.arg("-c").arg(config).args(["--concurrency", "1", "--disable-hot-restart", "-l", "error"]);
    Ok(command)
}

fn nginx(binary: &Path, dir: &Path, certs: &Certs, up: Upstreams, ports: Ports) -> Result<Command> {
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let module = if module.exists() { format!("load_module {};", module.display()) } else { String::new() };
    let d = dir.display();
    let text = format!(
        "{module}\ndaemon off;\nmaster_process off;\npid {d}/pid;\nerror_log stderr error;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s;\n\
         client_body_temp_path {d}/b; proxy_temp_path {d}/p; fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u; \
         scgi_temp_path {d}/s;\n\
         upstream up {{ server {}; keepalive 256; keepalive_requests 1000000000; }}\n\
         server {{ listen 127.0.0.1:{}; listen 127.0.0.1:{} http2; listen 127.0.0.1:{} ssl;\n\
         http2_max_requests 1000000000;\n\
         ssl_certificate {}; ssl_certificate_key {};\n\
         location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
         proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; \
         proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Request-Id $request_id; }} }} }}\n\
         stream {{ server {{ listen 127.0.0.1:{}; proxy_pass {}; }} }}\n",
        up.http[0],
        ports[0],
        ports[1],
        ports[2],
        certs.cert("server").display(),
        certs.key("server").display(),
        ports[3],
        up.echo,
    );
    let config = dir.join("nginx.conf");
    std::fs::write(&config, text)?;
    let mut command = Command::new(binary);
    command.arg("-p").arg(dir).arg("-c").arg(config);
    Ok(command)
}

fn haproxy(binary: &Path, dir: &Path, certs: &Certs, up: Upstreams, ports: Ports) -> Result<Command> {
    let both = dir.join("both.pem");
    let pem = std::fs::read_to_string(certs.cert("server"))? + &std::fs::read_to_string(certs.key("server"))?;
    std::fs::write(&both, pem)?;
    let text = format!(
        "global\n nbthread 1\n maxconn 4096\n\
         defaults\n mode http\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n option http-keep-alive\n\
         frontend web\n bind 127.0.0.1:{}\n bind 127.0.0.1:{} proto h2\n bind 127.0.0.1:{} ssl crt {}\n\
         option forwardfor\n http-request set-header x-forwarded-proto http\n unique-id-format %[uuid()]\n \
         unique-id-header x-request-id\n default_backend up\n\
         backend up\n http-reuse always\n server s {}\n\
         listen tcp\n mode tcp\n bind 127.0.0.1:{}\n server s {}\n",
        ports[0],
        ports[1],
        ports[2],
        both.display(),
        up.http[0],
        ports[3],
        up.echo,
    );
    let config = dir.join("haproxy.cfg");
    std::fs::write(&config, text)?;
    let mut command = Command::new(binary);
    command.arg("-db").arg("-f").arg(config);
    Ok(command)
}
