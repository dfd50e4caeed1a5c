//! Thousands of clusters with endpoints of their own, and as many routes: how long until they serve, what they take, and what
//! the change of one endpoint among them costs.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nuncio_tests::proxy::free_port;
use nuncio_tests::snapshots::{Message, Snapshots};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::dynamic::{Endpoint, Proxy, Start, address, assignment, cluster, connection_manager};
use crate::{procfs, upstream};

/// How long a proxy may take until it serves.
const PATIENCE: Duration = Duration::from_secs(180);
/// Connections that look for a change; among so many both workers have some.
const LOOKERS: usize = 8;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// How many clusters and routes.
    pub count: usize,
    /// How many endpoint changes are timed, and of how many the CPU time is taken.
    pub changes: usize,
    /// Incremental, rather than state of the world.
    pub delta: bool,
}

/// The figures of one process.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// From the first request at the control plane to the first answer by the last route.
    pub ready: Duration,
    /// CPU time until then.
    pub ready_cpu: Duration,
    /// Resident memory when all is at rest, and its peak, in KiB.
    pub resident_kib: u64,
    /// The highest until then.
    pub peak_kib: u64,
    /// From the sending of a change until every worker applies it, each.
    pub applied: Vec<Duration>,
    /// CPU time for one change.
    pub change_cpu: Duration,
}

fn name(n: usize) -> String {
    format!("c{n:05}")
}

/// Ten routes to a virtual host.
fn routes(count: usize) -> Value {
    let hosts = (0..count.div_ceil(10)).map(|h| {
        let routes = (h * 10..count.min(h * 10 + 10)).map(
            |n| json!({"match": {"prefix": format!("/{}/", name(n))}, "route": {"cluster": name(n), "timeout": "5s"}}),
        );
        json!({"name": format!("h{h}"), "domains": [format!("h{h}.example")], "routes": routes.collect::<Vec<_>>()})
    });
    json!({"name": "routes", "virtual_hosts": hosts.collect::<Vec<_>>()})
}

/// The resources; all endpoints are one.
///
/// # Errors
/// None that is not a mistake in here.
pub fn resources(count: usize, port: u16, upstream: SocketAddr) -> Result<Vec<Message>> {
    let mut all = Vec::with_capacity(2 * count + 2);
    for n in 0..count {
        all.push(Message::new("Cluster", &cluster(&name(n), false))?);
        all.push(endpoints(n, upstream)?);
    }
    all.push(Message::new("RouteConfiguration", &routes(count))?);
    let listener = json!({"name": "main", "address": address((Ipv4Addr::LOCALHOST, port).into()),
        "filter_chains": [{"filters": [connection_manager("HTTP1", "main")]}]});
    all.push(Message::new("Listener", &listener)?);
    Ok(all)
}

fn endpoints(n: usize, upstream: SocketAddr) -> Result<Message> {
    Message::new(
        "ClusterLoadAssignment",
        &assignment(&name(n), &[Endpoint { address: upstream, drains: false, weight: 1 }]),
    )
}

/// Starts a proxy, gives it everything at once, and measures.
///
/// # Errors
/// It refuses something, or does not serve.
pub async fn run(proxy: &'static str, dir: &Path, scale: Scale) -> Result<Figures> {
    let upstreams = [upstream::named("a").await?, upstream::named("b").await?];
    let port = free_port();
    let server = Snapshots::start(0, 0)?;
    server.change(resources(scale.count, port, upstreams[0])?, &[])?.1.await?;
    let start = Start { xds: server.address, delta: scale.delta, workers: 2, drain: 5 };
    let mut proxy = Proxy::start(proxy, dir, start)?;
    let last = scale.count - 1;
    let client = Client { port, count: scale.count };
    client.until_served(&mut proxy, last).await?;
    let first = server.seen().first.context("nothing was asked for")?;
    let mut figures =
        Figures { ready: first.elapsed(), ready_cpu: procfs::cpu_exact(proxy.pid())?, ..Figures::default() };
    server.nothing_refused()?;
    // What only the start needs is given back after a while.
    tokio::time::sleep(Duration::from_secs(3)).await;
    figures.resident_kib = procfs::resident_kib(proxy.pid())?;
    figures.peak_kib = procfs::peak_kib(proxy.pid())?;

    let mut lookers = client.lookers().await?;
    for i in 0..scale.changes {
        // Spread over all; each is looked at before its change, so that connections to its endpoint exist.
        let n = (i * 7919) % scale.count;
        for looker in &mut lookers {
            ensure!(*looker.ask(n, scale.count).await? == *b"a", "the wrong endpoint before the change");
        }
        let (_, sent) = server.change(vec![endpoints(n, upstreams[1])?], &[])?;
        let seen = lookers.into_iter().map(|mut looker| {
            let count = scale.count;
            tokio::task::spawn_local(async move {
                let deadline = Instant::now() + Duration::from_secs(10);
                while *looker.ask(n, count).await? != *b"b" {
                    ensure!(Instant::now() < deadline, "the change of {n} is not applied");
                }
                Ok((looker, Instant::now()))
            })
        });
        let seen: Vec<_> = seen.collect();
        let sent = sent.await?;
        let mut applied = Duration::ZERO;
        lookers = Vec::new();
        for one in seen {
            let (looker, at) = one.await??;
            applied = applied.max(at.saturating_duration_since(sent));
            lookers.push(looker);
        }
        figures.applied.push(applied);
    }
    drop(lookers);

    // The same without anyone looking: what the proxy itself takes for a change, with its acknowledgement.
    let mut cpu = Duration::ZERO;
    for i in 0..scale.changes {
        let n = (i * 7919 + 1) % scale.count;
        let message = endpoints(n, upstreams[1])?;
        let before = procfs::cpu_exact(proxy.pid())?;
        let (version, sent) = server.change(vec![message], &[])?;
        sent.await?;
        server.acked("ClusterLoadAssignment", version, Duration::from_secs(10)).await?;
        tokio::time::sleep(Duration::from_millis(2)).await;
        cpu += procfs::cpu_exact(proxy.pid())?.saturating_sub(before);
    }
    figures.change_cpu = cpu / u32::try_from(scale.changes.max(1))?;
    server.nothing_refused()?;
    Ok(figures)
}

struct Client {
    port: u16,
    count: usize,
}

struct Looker {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn until_served(&self, proxy: &mut Proxy, n: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await {
                let mut looker = Looker { stream, buffer: Vec::new() };
                if looker.ask(n, self.count).await.is_ok() {
                    return Ok(());
                }
            }
            if Instant::now() > deadline {
                proxy.answers(self.port, "/", Duration::ZERO).await?;
                bail!("{} does not serve", proxy.name);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn lookers(&self) -> Result<Vec<Looker>> {
        let mut all = Vec::new();
        for _ in 0..LOOKERS {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
            stream.set_nodelay(true)?;
            all.push(Looker { stream, buffer: Vec::new() });
        }
        Ok(all)
    }
}

impl Looker {
    /// Asks by the route of cluster `n` and returns the body.
    async fn ask(&mut self, n: usize, count: usize) -> Result<Rc<[u8]>> {
        let host = (n / 10).min(count.div_ceil(10));
        let request = format!("GET /{}/x HTTP/1.1\r\nhost: h{host}.example\r\n\r\n", name(n));
        self.stream.write_all(request.as_bytes()).await?;
        self.buffer.clear();
        loop {
            ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "closed");
            let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
            ensure!(head.starts_with("http/1.1 200"), "{head}");
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).context("no content-length")?;
            let body = end + 4..end + 4 + length.parse::<usize>()?;
            if let Some(body) = self.buffer.get(body) {
                return Ok(body.into());
            }
        }
    }
}
