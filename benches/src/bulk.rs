//! Large bodies in both directions, with a receiver that is slow at first: what a proxy that buffers would show.
//!
//! Both ends speak HTTP/1.1 or HTTP/2. The sender never waits but for the proxy; the receiver takes a little at a time for
//! [`Body::slow`], then all it can get.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, Response};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What the receiver takes in each [`PACE`] while it is slow: about 6 MB/s.
const SIP: usize = 64 * 1024;
const PACE: Duration = Duration::from_millis(10);
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// A body and its receiver.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    /// Its length.
    pub length: u64,
    /// How long the receiver is slow.
    pub slow: Duration,
}

/// Which version an end speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
}

/// Starts an upstream in a thread of its own: GET is answered with the body, PUT takes it.
///
/// # Errors
/// No port or no thread.
pub fn upstream(version: Version, body: Body) -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    std::thread::Builder::new().name("upstream".to_owned()).spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let listener = TcpListener::from_std(listener)?;
            loop {
                let (stream, _) = listener.accept().await?;
                // What goes wrong here the client sees too.
                tokio::task::spawn_local(async move {
                    match version {
                        Version::Http1 => serve1(stream, body).await,
                        Version::Http2 => serve2(stream, body).await,
                    }
                });
            }
        })
    })?;
    Ok(address)
}

/// Fetches the body through the proxy.
///
/// # Errors
/// It did not arrive whole.
pub async fn download(version: Version, proxy: SocketAddr, path: &str, body: Body) -> Result<()> {
    let stream = TcpStream::connect(proxy).await?;
    let received = match version {
        Version::Http1 => {
            let mut stream = BufReader::with_capacity(SIP, stream);
            stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await?;
            match head(&mut stream).await? {
                Some(length) => receive(&mut stream, length, body.slow).await?,
                None => receive_chunked(&mut stream, body.slow).await?,
            }
        }
        Version::Http2 => {
            let client = connect2(stream).await?;
            let request = Request::get(format!("http://a{path}")).body(())?;
            let (response, _) = client.ready().await?.send_request(request, true)?;
            let response = response.await?;
            ensure!(response.status() == 200, "status {}", response.status());
            receive2(response.into_body(), body.slow).await?
        }
    };
    ensure!(received == body.length, "{received} bytes arrived");
    Ok(())
}

/// Sends the body through the proxy.
///
/// # Errors
/// It did not arrive whole.
pub async fn upload(version: Version, proxy: SocketAddr, path: &str, body: Body) -> Result<()> {
    let stream = TcpStream::connect(proxy).await?;
    match version {
        Version::Http1 => {
            let mut stream = BufReader::new(stream);
            let request = format!("PUT {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.length);
            stream.write_all(request.as_bytes()).await?;
            send(&mut stream, body.length).await?;
            head(&mut stream).await?;
        }
        Version::Http2 => {
            let client = connect2(stream).await?;
            let request = Request::put(format!("http://a{path}")).body(())?;
            let (response, sender) = client.ready().await?.send_request(request, false)?;
            send2(sender, body.length).await?;
            let response = response.await?;
            ensure!(response.status() == 200, "status {}", response.status());
        }
    }
    Ok(())
}

async fn serve1(stream: TcpStream, body: Body) -> Result<()> {
    let mut stream = BufReader::with_capacity(SIP, stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let length = fields(&mut stream).await?;
        if line.starts_with("GET") {
            stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.length).as_bytes()).await?;
            send(&mut stream, body.length).await?;
        } else {
            let received = match length {
                Some(length) => receive(&mut stream, length, body.slow).await?,
                None => receive_chunked(&mut stream, body.slow).await?,
            };
            let status = if received == body.length { "200 OK" } else { "400 Bad Request" };
            stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await?;
        }
        stream.flush().await?;
    }
}

async fn serve2(stream: TcpStream, body: Body) -> Result<()> {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 20)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request?;
        tokio::task::spawn_local(async move {
            if request.method() == Method::GET {
                let sender = respond.send_response(Response::new(()), false)?;
                send2(sender, body.length).await
            } else {
                let received = receive2(request.into_body(), body.slow).await?;
                let status = if received == body.length { 200 } else { 400 };
                respond.send_response(Response::builder().status(status).body(())?, true)?;
                Ok(())
            }
        });
    }
    Ok(())
}

async fn connect2(stream: TcpStream) -> Result<h2::client::SendRequest<Bytes>> {
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 20)
        .handshake(stream)
        .await?;
    tokio::task::spawn_local(connection);
    Ok(client)
}

/// Reads the head of a 200; its content-length, if it has one.
async fn head<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Result<Option<u64>> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    ensure!(line.starts_with("HTTP/1.1 200"), "{line:?}");
    fields(stream).await
}

/// Reads header lines to the blank one; the content-length among them.
async fn fields<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Result<Option<u64>> {
    let mut length = None;
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line).await? > 0, "closed in the head");
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = Some(value.parse()?),
            Some(_) => {}
            None => return Ok(length),
        }
    }
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, length: u64) -> Result<()> {
    let mut left = length;
    while left > 0 {
        let piece = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
        stream.write_all(&ZEROS[..piece]).await?;
        left -= piece as u64;
    }
    Ok(stream.flush().await?)
}

/// Reads at most `length` bytes; how many came.
async fn receive<S: AsyncRead + Unpin>(stream: &mut S, length: u64, slow: Duration) -> Result<u64> {
    let begin = Instant::now();
    let mut buffer = vec![0; SIP];
    let mut received = 0;
    while received < length {
        let want = usize::try_from(length - received).unwrap_or(usize::MAX).min(buffer.len());
        let n = stream.read(&mut buffer[..want]).await?;
        if n == 0 {
            break;
        }
        received += n as u64;
        if begin.elapsed() < slow {
            tokio::time::sleep(PACE).await;
        }
    }
    Ok(received)
}

async fn receive_chunked<S: AsyncRead + Unpin>(stream: &mut BufReader<S>, slow: Duration) -> Result<u64> {
    let begin = Instant::now();
    let mut received = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let size = u64::from_str_radix(line.trim_end(), 16).with_context(|| format!("chunk size {line:?}"))?;
        received += receive(stream, size, slow.saturating_sub(begin.elapsed())).await?;
        stream.read_line(&mut line).await?;
        if size == 0 {
            return Ok(received);
        }
    }
}

async fn send2(mut sender: h2::SendStream<Bytes>, length: u64) -> Result<()> {
    let mut left = length;
    while left > 0 {
        sender.reserve_capacity(ZEROS.len());
        let capacity = std::future::poll_fn(|cx| sender.poll_capacity(cx)).await.context("closed")??;
        let piece = usize::try_from(left).unwrap_or(usize::MAX).min(capacity).min(ZEROS.len());
        left -= piece as u64;
        sender.send_data(Bytes::from_static(&ZEROS[..piece]), left == 0)?;
    }
    Ok(())
}

async fn receive2(mut body: h2::RecvStream, slow: Duration) -> Result<u64> {
    let begin = Instant::now();
    let mut received = 0;
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        received += chunk.len() as u64;
        if begin.elapsed() < slow {
            // Frames are smaller than what is read from a socket at once.
            tokio::time::sleep(PACE.mul_f64((chunk.len() as f64 / SIP as f64).min(1.0))).await;
        }
        body.flow_control().release_capacity(chunk.len())?;
    }
    Ok(received)
}
