//! Clients that keep a steady rate for minutes while the proxy changes under them, and do what correct clients do:
//! a connection that is told to close is not used again, one that was closed while idle is replaced, and where the address
//! has changed the newest is tried first. Everything else that is not a complete answer is a failure.
//!
//! An open loop as in [`crate::load`], but without a busy core: requests are due on a grid of a millisecond.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use hdrhistogram::Histogram;
use nuncio_tests::case::ClientTls;
use nuncio_tests::certs::Certs;
use nuncio_tests::tls::{self, Io};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Streams of one HTTP/2 connection at once.
const STREAMS: usize = 16;

/// What clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// One group of clients.
#[derive(Clone, Debug)]
pub struct Target {
    /// For the report.
    pub name: &'static str,
    /// What they speak.
    pub speaks: Speaks,
    /// With TLS, for this server name.
    pub sni: Option<&'static str>,
    /// Where the listener is; the newest address first.
    pub addresses: Rc<RefCell<Vec<SocketAddr>>>,
    /// Of a hundred requests, how many are theirs.
    pub share: u32,
    /// How many connections they have.
    pub connections: usize,
    /// They leave a connection after so many requests.
    pub requests_per_connection: u32,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Requests that were due.
    pub sent: u64,
    /// Requests answered with a 200, completely.
    pub answered: u64,
    /// What happened to the others, by group and text.
    pub failures: BTreeMap<String, u64>,
    /// Connections opened.
    pub connections: u64,
    /// Subject names of certificates that were presented, with their number.
    pub certificates: BTreeMap<String, u64>,
    /// Latencies in nanoseconds, from the time when a request was due.
    pub latency: Histogram<u64>,
}

impl Outcome {
    /// Requests that failed.
    pub fn failed(&self) -> u64 {
        self.sent - self.answered
    }
}

#[derive(Default)]
struct Queue {
    due: RefCell<VecDeque<Instant>>,
    wake: Notify,
    over: Cell<bool>,
}

impl Queue {
    async fn next(&self) -> Option<Instant> {
        loop {
            if let Some(due) = self.due.borrow_mut().pop_front() {
                return Some(due);
            }
            if self.over.get() {
                return None;
            }
            self.wake.notified().await;
        }
    }
}

struct Group {
    target: Target,
    queue: Queue,
    outcome: Rc<RefCell<Outcome>>,
    certs: Rc<Certs>,
}

/// Keeps `rate` requests a second for some time.
///
/// # Errors
/// A histogram that cannot be.
pub async fn run(targets: &[Target], rate: f64, time: Duration, certs: Rc<Certs>) -> Result<Outcome> {
    let outcome = Rc::new(RefCell::new(Outcome {
        sent: 0,
        answered: 0,
        failures: BTreeMap::new(),
        connections: 0,
        certificates: BTreeMap::new(),
        latency: Histogram::new_with_bounds(1, 60_000_000_000, 3)?,
    }));
    let mut groups = Vec::new();
    let mut tasks = Vec::new();
    // One turn of the wheel is a hundred requests, spread evenly.
    let mut wheel = Vec::new();
    for (index, target) in targets.iter().enumerate() {
        let group = Rc::new(Group {
            target: target.clone(),
            queue: Queue::default(),
            outcome: outcome.clone(),
            certs: certs.clone(),
        });
        for _ in 0..target.connections {
            tasks.push(match target.speaks {
                Speaks::Http1 => tokio::task::spawn_local(http1_client(group.clone())),
                Speaks::Http2 => tokio::task::spawn_local(http2_client(group.clone())),
            });
        }
        groups.push(group);
        wheel.extend((0..target.share).map(|n| (f64::from(n) / f64::from(target.share), index)));
    }
    wheel.sort_by(|a, b| a.0.total_cmp(&b.0));
    let begin = Instant::now();
    let total = (rate * time.as_secs_f64()) as u64;
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut next = 0;
    while next < total {
        tick.tick().await;
        let until = (begin.elapsed().as_secs_f64() * rate) as u64;
        while next < until.min(total) {
            let group = &groups[wheel[(next % wheel.len() as u64) as usize].1];
            group.queue.due.borrow_mut().push_back(begin + Duration::from_secs_f64(next as f64 / rate));
            group.queue.wake.notify_one();
            next += 1;
        }
    }
    outcome.borrow_mut().sent = total;
    for group in &groups {
        group.queue.over.set(true);
    }
    let deadline = Instant::now() + PATIENCE;
    for task in tasks {
        while !task.is_finished() && Instant::now() < deadline {
            groups.iter().for_each(|g| g.queue.wake.notify_waiters());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        task.abort();
    }
    drop(groups);
    let done = outcome.replace(Outcome {
        sent: 0,
        answered: 0,
        failures: BTreeMap::new(),
        connections: 0,
        certificates: BTreeMap::new(),
        latency: Histogram::new_with_bounds(1, 2, 1)?,
    });
    Ok(done)
}

impl Group {
    fn done(&self, due: Instant, result: Result<(), String>) {
        let mut outcome = self.outcome.borrow_mut();
        match result {
            Ok(()) => {
                outcome.answered += 1;
                let nanos = u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX);
                outcome.latency.saturating_record(nanos);
            }
            Err(error) => *outcome.failures.entry(format!("{}: {error}", self.target.name)).or_default() += 1,
        }
    }

    /// Opens a connection. Where none of the addresses takes it there may be another one in a moment.
    async fn connect(&self) -> Result<Box<dyn Io>, String> {
        let mut last = String::new();
        for _ in 0..3 {
            let addresses = self.target.addresses.borrow().clone();
            for address in addresses {
                match TcpStream::connect(address).await {
                    Ok(stream) => {
                        let _ = stream.set_nodelay(true);
                        self.outcome.borrow_mut().connections += 1;
                        return self.secure(stream).await;
                    }
                    Err(error) => last = format!("connect: {error}"),
                }
            }
        }
        Err(last)
    }

    async fn secure(&self, stream: TcpStream) -> Result<Box<dyn Io>, String> {
        let Some(sni) = self.target.sni else { return Ok(Box::new(stream)) };
        let alpn = match self.target.speaks {
            Speaks::Http1 => "http/1.1",
            Speaks::Http2 => "h2",
        };
        let tls = ClientTls { sni: Some(sni.to_owned()), alpn: vec![alpn.to_owned()], ..ClientTls::default() };
        let (io, info) = tls::connect(stream, &tls, &self.certs).await.map_err(|e| format!("handshake: {e:#}"))?;
        let name = info["certificate"].as_str().unwrap_or_default().to_owned();
        *self.outcome.borrow_mut().certificates.entry(name).or_default() += 1;
        Ok(io)
    }
}

async fn http1_client(group: Rc<Group>) {
    let mut connection: Option<(Box<dyn Io>, u32)> = None;
    let mut buffer = Vec::new();
    loop {
        let due = match &mut connection {
            None => group.queue.next().await,
            Some((io, _)) => {
                buffer.clear();
                tokio::select! {
                    biased;
                    // Closed while idle.
                    _ = io.read_buf(&mut buffer) => {
                        connection = None;
                        continue;
                    }
                    due = group.queue.next() => due,
                }
            }
        };
        let Some(due) = due else { return };
        let exchange = async {
            let (mut io, used) = match connection.take() {
                Some(open) => open,
                None => (group.connect().await?, 0),
            };
            let fate = if used == 0 { "a new connection" } else { "a used connection" };
            let closes = http1(&mut io, &mut buffer).await.map_err(|e| format!("{e} ({fate})"))?;
            if !closes && used + 1 < group.target.requests_per_connection {
                connection = Some((io, used + 1));
            }
            Ok(())
        };
        let result = tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err("no answer".to_owned()));
        group.done(due, result);
    }
}

/// One request; true if the connection is not to be used again.
async fn http1(io: &mut Box<dyn Io>, buffer: &mut Vec<u8>) -> Result<bool, String> {
    const REQUEST: &[u8] = b"GET /some/path?of=it HTTP/1.1\r\nhost: bench.example\r\nuser-agent: nuncio-bench\r\n\r\n";
    io.write_all(REQUEST).await.map_err(|e| format!("write: {}", e.kind()))?;
    buffer.clear();
    loop {
        match io.read_buf(buffer).await {
            Ok(0) if buffer.is_empty() => return Err("closed without an answer".to_owned()),
            Ok(0) => return Err("closed in the answer".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(format!("read: {}", error.kind())),
        }
        let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let length: usize = field("content-length").and_then(|n| n.parse().ok()).ok_or("no content-length")?;
        if buffer.len() < end + 4 + length {
            continue;
        }
        if !head.starts_with("http/1.1 200") {
            let body = String::from_utf8_lossy(&buffer[end + 4..]);
            return Err(format!("{} {body}", head.lines().next().unwrap_or_default()));
        }
        return Ok(field("connection") == Some("close"));
    }
}

struct Http2 {
    send: h2::client::SendRequest<Bytes>,
    used: u32,
}

async fn http2_client(group: Rc<Group>) {
    let streams = Arc::new(Semaphore::new(STREAMS));
    let mut connection: Option<Http2> = None;
    loop {
        let Ok(permit) = streams.clone().acquire_owned().await else { return };
        let Some(due) = group.queue.next().await else { break };
        match open(&group, &mut connection).await {
            Ok(response) => {
                let group = group.clone();
                tokio::task::spawn_local(async move {
                    let result = tokio::time::timeout(PATIENCE, finish(response)).await;
                    group.done(due, result.unwrap_or_else(|_| Err("no answer".to_owned())));
                    drop(permit);
                });
            }
            Err(error) => group.done(due, Err(error)),
        }
    }
    // Those on their way.
    let _ = streams.acquire_many(u32::try_from(STREAMS).unwrap_or(u32::MAX)).await;
}

/// Sends a request, on another connection if the present one takes no more.
async fn open(group: &Rc<Group>, connection: &mut Option<Http2>) -> Result<h2::client::ResponseFuture, String> {
    for _ in 0..3 {
        if let Some(Http2 { send, used }) = connection.take()
            && used < group.target.requests_per_connection
            && let Ok(mut ready) = send.ready().await
        {
            let request = http::Request::get("http://bench.example/some/path?of=it").body(());
            // What cannot be sent has not been sent: the connection is going away.
            if let Ok((response, _)) = ready.send_request(request.map_err(|e| e.to_string())?, true) {
                *connection = Some(Http2 { send: ready, used: used + 1 });
                return Ok(response);
            }
        }
        let io = tokio::time::timeout(PATIENCE, group.connect()).await.map_err(|_| "no connection")??;
        let (send, driver) = h2::client::handshake(io).await.map_err(|e| format!("preface: {e}"))?;
        tokio::task::spawn_local(driver);
        *connection = Some(Http2 { send, used: 0 });
    }
    Err("no connection takes a request".to_owned())
}

async fn finish(response: h2::client::ResponseFuture) -> Result<(), String> {
    let response = response.await.map_err(|e| format!("stream: {e}"))?;
    let status = response.status();
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(|e| format!("body: {e}"))?;
        text.extend_from_slice(&chunk);
        body.flow_control().release_capacity(chunk.len()).map_err(|e| e.to_string())?;
    }
    if status != 200 {
        return Err(format!("{status} {}", String::from_utf8_lossy(&text)));
    }
    Ok(())
}
