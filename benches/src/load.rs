//! Sends requests and measures.
//!
//! Closed loop: every connection sends its next request when the last is answered; gives the highest rate. Open loop:
//! request number i is due at i / rate, whatever became of the ones before; its latency counts from the time it was
//! due, so that a stall is seen by every request it delayed (no coordinated omission).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use nuncio_tests::case::ClientTls;
use nuncio_tests::certs::Certs;
use nuncio_tests::tls::{self, Io};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// What goes over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 with keep-alive.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// HTTP/1.1 with keep-alive over TLS.
    Tls,
    /// 64 bytes there and back.
    Tcp,
}

/// What was measured.
#[derive(Debug)]
pub struct Measured {
    /// Requests answered.
    pub requests: u64,
    /// Requests that failed.
    pub errors: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Latencies in nanoseconds.
    pub latency: Histogram<u64>,
}

/// The requests that are due, by their due time.
struct Schedule {
    due: RefCell<VecDeque<Instant>>,
    wake: Notify,
    over: RefCell<bool>,
}

/// What the connections share.
struct Run {
    schedule: Option<Schedule>,
    until: Instant,
    /// Requests that are still to be begun.
    left: RefCell<u64>,
    latency: RefCell<Histogram<u64>>,
    requests: RefCell<u64>,
    errors: RefCell<u64>,
}

impl Run {
    /// When the next request is due, or None at the end.
    async fn next(&self) -> Option<Instant> {
        let Some(schedule) = &self.schedule else {
            let now = Instant::now();
            let mut left = self.left.borrow_mut();
            *left = left.checked_sub(1)?;
            return (now < self.until).then_some(now);
        };
        loop {
            if let Some(due) = schedule.due.borrow_mut().pop_front() {
                return Some(due);
            }
            if *schedule.over.borrow() {
                return None;
            }
            schedule.wake.notified().await;
        }
    }

    fn done(&self, due: Instant, result: &Result<()>) {
        if result.is_err() {
            *self.errors.borrow_mut() += 1;
            return;
        }
        *self.requests.borrow_mut() += 1;
        let nanos = u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.latency.borrow_mut().saturating_record(nanos);
    }
}

/// Runs a load for some time. `rate` in requests per second makes it an open loop.
///
/// # Errors
/// The connections cannot be made.
pub async fn run(
    protocol: Protocol,
    address: SocketAddr,
    certs: &Certs,
    connections: usize,
    rate: Option<f64>,
    time: Duration,
) -> Result<Measured> {
    let clients = clients(protocol, address, certs, connections).await?;
    drive(clients, rate, time, u64::MAX).await
}

/// Runs a number of requests, as fast as they are answered, and no longer than `most`.
///
/// # Errors
/// The connections cannot be made.
pub async fn run_requests(
    protocol: Protocol,
    address: SocketAddr,
    certs: &Certs,
    connections: usize,
    requests: u64,
    most: Duration,
) -> Result<Measured> {
    let clients = clients(protocol, address, certs, connections).await?;
    drive(clients, None, most, requests).await
}

async fn clients(protocol: Protocol, address: SocketAddr, certs: &Certs, connections: usize) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Client::connect(protocol, address, certs).await.context("a load connection")?);
    }
    Ok(clients)
}

async fn drive(clients: Vec<Client>, rate: Option<f64>, time: Duration, requests: u64) -> Result<Measured> {
    let begin = Instant::now();
    let run = Rc::new(Run {
        schedule: rate.map(|_| Schedule { due: RefCell::default(), wake: Notify::new(), over: RefCell::new(false) }),
        until: begin + time,
        left: RefCell::new(requests),
        latency: RefCell::new(Histogram::new_with_bounds(1, 60_000_000_000, 3)?),
        requests: RefCell::default(),
        errors: RefCell::default(),
    });
    let tasks: Vec<_> = clients.into_iter().map(|c| tokio::task::spawn_local(c.work(run.clone()))).collect();
    if let Some(rate) = rate {
        pace(&run, begin, rate, time).await;
    }
    for task in tasks {
        // What is still open long after the end has failed.
        if tokio::time::timeout(Duration::from_secs(10), task).await.is_err() {
            *run.errors.borrow_mut() += 1;
        }
    }
    let elapsed = begin.elapsed();
    let latency = run.latency.borrow().clone();
    let (requests, errors) = (*run.requests.borrow(), *run.errors.borrow());
    Ok(Measured { requests, errors, elapsed, latency })
}

/// Puts requests on the schedule at their time. A timer would round to a millisecond, so that this yields instead of
/// sleeping: the core of the load is never idle.
async fn pace(run: &Run, begin: Instant, rate: f64, time: Duration) {
    let Some(schedule) = &run.schedule else { return };
    let total = (rate * time.as_secs_f64()) as u64;
    for i in 0..total {
        let due = begin + Duration::from_secs_f64(i as f64 / rate);
        while Instant::now() < due {
            tokio::task::yield_now().await;
        }
        schedule.due.borrow_mut().push_back(due);
        schedule.wake.notify_one();
    }
    *schedule.over.borrow_mut() = true;
    // Connections that are busy now look at `over` when they are done; the idle ones are woken here.
    schedule.wake.notify_waiters();
    while !schedule.due.borrow().is_empty() {
        schedule.wake.notify_one();
        tokio::time::sleep(Duration::from_millis(1)).await;
        schedule.wake.notify_waiters();
        if begin.elapsed() > time + Duration::from_secs(10) {
            return;
        }
    }
}

enum Client {
    Http1(Box<dyn Io>, Vec<u8>),
    Http2(h2::client::SendRequest<Bytes>),
    Tcp(TcpStream),
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: nuncio-bench\r\nAccept: */*\r\n\r\n";
const PING: [u8; 64] = [b'x'; 64];
/// Streams of one HTTP/2 connection at once, in a closed loop.
const STREAMS: usize = 8;

impl Client {
    async fn connect(protocol: Protocol, address: SocketAddr, certs: &Certs) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(match protocol {
            Protocol::Http1 => Self::Http1(Box::new(stream), Vec::new()),
            Protocol::Tls => {
                let tls = ClientTls { sni: Some("bench.example".to_owned()), ..ClientTls::default() };
                Self::Http1(tls::connect(stream, &tls, certs).await?.0, Vec::new())
            }
            Protocol::Http2 => {
                let (client, connection) = h2::client::handshake(stream).await?;
                tokio::task::spawn_local(connection);
                Self::Http2(client.ready().await?)
            }
            Protocol::Tcp => Self::Tcp(stream),
        })
    }

    async fn work(self, run: Rc<Run>) {
        match self {
            Self::Http1(mut io, mut buffer) => {
                while let Some(due) = run.next().await {
                    let result = http1(&mut io, &mut buffer).await;
                    run.done(due, &result);
                    if result.is_err() {
                        return;
                    }
                }
            }
            Self::Tcp(mut stream) => {
                while let Some(due) = run.next().await {
                    let result = ping(&mut stream).await;
                    run.done(due, &result);
                    if result.is_err() {
                        return;
                    }
                }
            }
            Self::Http2(client) => {
                let streams: Vec<_> = (0..STREAMS)
                    .map(|_| {
                        let (client, run) = (client.clone(), run.clone());
                        tokio::task::spawn_local(async move {
                            while let Some(due) = run.next().await {
                                let result = http2(client.clone()).await;
                                run.done(due, &result);
                                if result.is_err() {
                                    return;
                                }
                            }
                        })
                    })
                    .collect();
                for stream in streams {
                    let _ = stream.await;
                }
            }
        }
    }
}

/// One request over HTTP/1.1 and its answer, which has a content-length; `buffer` is only kept for the next one.
///
/// # Errors
/// No answer, or not a 200.
pub async fn http1<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S, buffer: &mut Vec<u8>) -> Result<()> {
    io.write_all(REQUEST).await?;
    buffer.clear();
    loop {
        if io.read_buf(buffer).await? == 0 {
            bail!("closed");
        }
        let Some(head) = buffer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        if !buffer.starts_with(b"HTTP/1.1 200") {
            bail!("answered {}", String::from_utf8_lossy(&buffer[..buffer.len().min(12)]));
        }
        let length = content_length(&buffer[..head]).context("no content-length")?;
        if buffer.len() >= head + 4 + length {
            return Ok(());
        }
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    let name = b"\r\ncontent-length: ";
    let at = head.windows(name.len()).position(|w| w.eq_ignore_ascii_case(name))? + name.len();
    let digits = head[at..].iter().take_while(|b| b.is_ascii_digit());
    Some(digits.fold(0, |n, b| n * 10 + usize::from(b - b'0')))
}

async fn ping(stream: &mut TcpStream) -> Result<()> {
    let mut back = PING;
    stream.write_all(&PING).await?;
    stream.read_exact(&mut back).await?;
    Ok(())
}

async fn http2(mut client: h2::client::SendRequest<Bytes>) -> Result<()> {
    let request = http::Request::get("http://bench.example/").header("user-agent", "nuncio-bench").body(())?;
    client = client.ready().await?;
    let (response, _) = client.send_request(request, true)?;
    let response = response.await?;
    if response.status() != 200 {
        bail!("not a 200");
    }
    let mut body = response.into_body();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_read_in_any_case() {
        assert_eq!(content_length(b"HTTP/1.1 200 OK\r\nContent-Length: 123\r\nx: y"), Some(123));
        assert_eq!(content_length(b"HTTP/1.1 200 OK\r\nx: y"), None);
    }

    #[test]
    fn an_open_loop_sends_what_is_due() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let measured = tokio::task::LocalSet::new().block_on(&runtime, async {
            let upstream = crate::upstream::http().await.unwrap();
            let certs = Certs::make(dir.path(), &std::collections::BTreeMap::new()).unwrap();
            run(Protocol::Http1, upstream, &certs, 4, Some(500.0), Duration::from_millis(200)).await.unwrap()
        });
        assert_eq!((measured.requests, measured.errors), (100, 0));
        assert_eq!(measured.latency.len(), 100);
    }
}
