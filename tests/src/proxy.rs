//! One running proxy: its configuration with the placeholders filled in, its process, its admin interface.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::case::CaseFile;
use crate::certs::Certs;
use crate::text;

/// The access-log format behind `{{log}}`: everything that does not change from run to run.
const LOG_FORMAT: &str = "%REQ(:METHOD)% %REQ(:AUTHORITY)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL% \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% rx=%BYTES_RECEIVED% tx=%BYTES_SENT% \
    cluster=%UPSTREAM_CLUSTER% host=%UPSTREAM_HOST% route=%ROUTE_NAME% tfr=%UPSTREAM_TRANSPORT_FAILURE_REASON% \
    ctd=%CONNECTION_TERMINATION_DETAILS%";

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    /// `envoy` or `nuncio`.
    pub name: &'static str,
    /// Ports by placeholder name.
    pub ports: BTreeMap<String, u16>,
    log: PathBuf,
    log_read: usize,
    stderr: PathBuf,
    child: Child,
}

/// A port that nobody holds now, below the range of ephemeral ports so that no connection takes it meanwhile.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    if NEXT.load(Ordering::Relaxed) == 0 {
        let start = u16::try_from(std::process::id() % 10_000).unwrap_or(0);
        let _ = NEXT.compare_exchange(0, 16_000 + start, Ordering::Relaxed, Ordering::Relaxed);
    }
    loop {
        let port = 16_000 + (NEXT.fetch_add(1, Ordering::Relaxed).wrapping_sub(16_000)) % 16_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

impl Proxy {
    /// Starts a proxy on the configuration of `file` and waits until it is ready.
    ///
    /// # Errors
    /// A placeholder without meaning, a process that ends or does not get ready; with what it wrote to stderr.
    pub async fn start(
        name: &'static str,
        binary: &Path,
        dir: &Path,
        file: &CaseFile,
        upstreams: &BTreeMap<String, u16>,
        certs: &Certs,
    ) -> Result<Self> {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let log = dir.join("access.log");
        let mut ports = upstreams.clone();
        ports.insert("admin".to_owned(), free_port());
        let text = format!("admin: {{address: {{{{addr admin}}}}, {}}}\n{}", file.admin, file.config);
        let text = text::expand(&text, |words| placeholder(words, &mut ports, certs, &log))?;
        let config = dir.join("bootstrap.yaml");
        std::fs::write(&config, text)?;
        let stderr = dir.join("stderr");
        let mut command = Command::new(binary);
        command.arg("-c").arg(&config);
        command.args(["--concurrency", "1", "--file-flush-interval-msec", "20", "--disable-hot-restart"]);
        command.args(["-l", "warning", "--drain-time-s", "1"]).args(&file.args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&stderr)?).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("{}", binary.display()))?;
        let mut proxy = Self { name, ports, log, log_read: 0, stderr, child };
        proxy.wait_until_ready().await?;
        Ok(proxy)
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}: {}", self.name, self.stderr_tail());
            }
            if let Ok((200, _)) = self.admin("GET", "/ready").await {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} did not get ready: {}", self.name, self.stderr_tail());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether the process has ended by itself, and what it said.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(format!("{} ended with {status}: {}", self.name, self.stderr_tail()))
    }

    fn stderr_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.stderr).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        tail.chars().take(3000).collect()
    }

    /// Ends the process.
    pub async fn stop(mut self) {
        let _ = self.child.kill().await;
    }

    /// Where a listener or the admin interface is.
    ///
    /// # Errors
    /// A name that the configuration does not use.
    pub fn address(&self, listener: &str) -> Result<SocketAddr> {
        let port = self.ports.get(listener).with_context(|| format!("no listener {listener}"))?;
        Ok((Ipv4Addr::LOCALHOST, *port).into())
    }

    /// Calls the admin interface: status and body.
    ///
    /// # Errors
    /// No connection, or no answer within five seconds.
    pub async fn admin(&self, method: &str, path: &str) -> Result<(u16, String)> {
        let call = async {
            let mut stream = TcpStream::connect(self.address("admin")?).await?;
            let head =
                format!("{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            let mut reader = crate::http1::Reader::default();
            let mut buffer = vec![0; 64 * 1024];
            loop {
                if let Some(response) = reader.response(false, false)? {
                    return Ok((response.status, response.body));
                }
                let n = stream.read(&mut buffer).await?;
                if n == 0 {
                    let response = reader.response(false, true)?.context("an incomplete answer")?;
                    return Ok((response.status, response.body));
                }
                reader.push(&buffer[..n]);
            }
        };
        tokio::time::timeout(Duration::from_secs(5), call).await.context("the admin interface does not answer")?
    }

    /// All counters and gauges.
    ///
    /// # Errors
    /// As [`Self::admin`].
    pub async fn stats(&self) -> Result<BTreeMap<String, i64>> {
        let (_, text) = self.admin("GET", "/stats").await?;
        Ok(text
            .lines()
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(": ")?;
                Some((name.to_owned(), value.trim().parse().ok()?))
            })
            .collect())
    }

    /// The access-log lines since the last call; waits a while until `at_least` have come.
    pub async fn log_lines(&mut self, at_least: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_millis(if at_least == 0 { 60 } else { 2500 });
        loop {
            let text = std::fs::read(&self.log).unwrap_or_default();
            let new = &text[self.log_read.min(text.len())..];
            let whole = new.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
            let lines: Vec<String> = text::latin1(&new[..whole]).lines().map(str::to_owned).collect();
            if (at_least > 0 && lines.len() >= at_least) || Instant::now() > deadline {
                self.log_read += whole;
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(8)).await;
        }
    }
}

fn placeholder(words: &[&str], ports: &mut BTreeMap<String, u16>, certs: &Certs, log: &Path) -> Option<String> {
    let mut port = |name: &str| *ports.entry(name.to_owned()).or_insert_with(free_port);
    let mut address = |name: &str| format!("{{socket_address: {{address: 127.0.0.1, port_value: {}}}}}", port(name));
    Some(match words {
        // A listener with a connection manager, open for its further fields, twelve columns to the right of `- name`
        // less four: they are written at the depth of `stat_prefix`.
        ["http", name] => format!(
            "- name: {name}\n  address: {}\n  filter_chains:\n  - filters:\n    - name: envoy.filters.network.\
             http_connection_manager\n      typed_config:\n        \"@type\": {}\n        stat_prefix: {name}\n        \
             access_log: {}\n        http_filters: {}",
            address(name),
            type_url("hcm")?,
            access_log("", log)?,
            router()?
        ),
        ["addr", name] => address(name),
        ["port", name] => port(name).to_string(),
        ["endpoints", names @ ..] => {
            let list: Vec<String> =
                names.iter().map(|n| format!("{{endpoint: {{address: {}}}}}", address(n))).collect();
            format!("[{{lb_endpoints: [{}]}}]", list.join(", "))
        }
        ["cluster", name, hosts @ ..] => {
            let hosts = if hosts.is_empty() { &[*name][..] } else { hosts };
            let list: Vec<String> =
                hosts.iter().map(|n| format!("{{endpoint: {{address: {}}}}}", address(n))).collect();
            format!(
                "name: {name}, type: STATIC, connect_timeout: 1s, load_assignment: {{cluster_name: {name}, \
                 endpoints: [{{lb_endpoints: [{}]}}]}}",
                list.join(", ")
            )
        }
        ["cert", name] | ["ca", name] => certs.cert(name).display().to_string(),
        ["key", name] => certs.key(name).display().to_string(),
        ["logpath"] => log.display().to_string(),
        ["log", rest @ ..] => access_log(&rest.join(" "), log)?,
        ["router"] => router()?,
        ["type", name] => type_url(name)?,
        ["http2"] => format!(
            "{{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{\"@type\": {}, \
             explicit_http_config: {{http2_protocol_options: {{}}}}}}}}",
            type_url("http_options")?
        ),
        _ => return None,
    })
}

fn access_log(prefix: &str, log: &Path) -> Option<String> {
    let space = if prefix.is_empty() { "" } else { " " };
    Some(format!(
        "[{{name: file, typed_config: {{\"@type\": {}, path: \"{}\", log_format: {{text_format_source: \
         {{inline_string: \"{prefix}{space}{LOG_FORMAT}\\n\"}}}}}}}}]",
        type_url("file_log")?,
        log.display()
    ))
}

fn router() -> Option<String> {
    Some(format!("[{{name: envoy.filters.http.router, typed_config: {{\"@type\": {}}}}}]", type_url("router")?))
}

/// The type URLs that the case files use by a short name.
fn type_url(name: &str) -> Option<String> {
    let path = match name {
        "hcm" => "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "tcp_proxy" => "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "router" => "extensions.filters.http.router.v3.Router",
        "file_log" => "extensions.access_loggers.file.v3.FileAccessLog",
        "http_options" => "extensions.upstreams.http.v3.HttpProtocolOptions",
        "downstream_tls" => "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "upstream_tls" => "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "upstream_proxy" => "extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
        "raw_buffer" => "extensions.transport_sockets.raw_buffer.v3.RawBuffer",
        "tls_inspector" => "extensions.filters.listener.tls_inspector.v3.TlsInspector",
        "http_inspector" => "extensions.filters.listener.http_inspector.v3.HttpInspector",
        "proxy_protocol" => "extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
        "uuid" => "extensions.request_id.uuid.v3.UuidRequestIdConfig",
        "xff" => "extensions.http.original_ip_detection.xff.v3.XffConfig",
        "custom_header" => "extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig",
        _ => return None,
    };
    Some(format!("type.googleapis.com/envoy.{path}"))
}
