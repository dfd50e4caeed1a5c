//! Scripted upstreams: HTTP/1.1, HTTP/2 and TCP servers that answer by path and note what they saw.
//!
//! Each proxy gets upstreams of its own, so that what they saw can be compared.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::case::{Answer, TcpStep, UpstreamSpec};
use crate::certs::Certs;
use crate::http1::{self, Framing};
use crate::proxy_header;
use crate::text;
use crate::tls::{self, Io};

/// What the upstreams of one proxy saw since the last look, by upstream.
pub type Seen = BTreeMap<String, Vec<Value>>;

/// The running upstreams of one proxy; dropping them ends them.
#[derive(Debug, Default)]
pub struct Upstreams {
    /// Port by name.
    pub ports: BTreeMap<String, u16>,
    servers: Vec<Arc<Server>>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Server {
    name: String,
    spec: UpstreamSpec,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    seen: Vec<Value>,
    /// How often each path was asked for in this case.
    asked: BTreeMap<String, usize>,
    connections: usize,
    /// How often it was looked at: what a connection tells after its case is not the next one's.
    looks: usize,
}

impl Upstreams {
    /// Starts all upstreams of a case file.
    ///
    /// # Errors
    /// A certificate that is not there, no port.
    pub async fn start(specs: &BTreeMap<String, UpstreamSpec>, certs: &Certs) -> Result<Self> {
        let mut all = Self::default();
        for (name, spec) in specs {
            let loopback: IpAddr = if spec.ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
            let listener = TcpListener::bind((loopback, 0)).await?;
            all.ports.insert(name.clone(), listener.local_addr()?.port());
            let acceptor = spec.tls.as_ref().map(|t| tls::acceptor(t, certs)).transpose()?;
            let server = Arc::new(Server { name: name.clone(), spec: spec.clone(), state: Mutex::default() });
            all.servers.push(server.clone());
            all.tasks.spawn(accept(listener, acceptor, server));
        }
        Ok(all)
    }

    /// Takes what was seen since the last call, and starts counting anew.
    pub fn take(&self) -> Seen {
        let mut all = Seen::new();
        for server in &self.servers {
            let mut state = server.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.asked.clear();
            state.connections = 0;
            state.looks += 1;
            let seen = std::mem::take(&mut state.seen);
            if !seen.is_empty() {
                all.insert(server.name.clone(), seen);
            }
        }
        all
    }
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, server: Arc<Server>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let number = {
            let mut state = server.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.connections += 1;
            state.connections - 1
        };
        let (acceptor, server) = (acceptor.clone(), server.clone());
        connections.spawn(async move {
            // A peer that breaks off is part of many cases; what matters has been noted by then.
            let _ = serve(stream, acceptor, &server, number).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(
    mut stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    server: &Arc<Server>,
    number: usize,
) -> Result<()> {
    let mut extra = json!({});
    if server.spec.connections {
        extra["connection"] = json!(number);
    }
    if server.spec.proxy_header {
        extra["proxy_header"] = json!(proxy_header::read(&mut stream).await?);
    }
    match acceptor {
        Some(acceptor) => {
            let stream = acceptor.accept(stream).await?;
            extra["tls"] = tls::seen(stream.get_ref().1);
            if server.spec.kind == "h2" || stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                serve_h2(stream, server, extra).await
            } else {
                serve_h1(Box::new(stream), None, server, extra).await
            }
        }
        None => match server.spec.kind.as_str() {
            "h2" => serve_h2(stream, server, extra).await,
            "tcp" => serve_tcp(stream, server, extra).await,
            _ => {
                let raw = socket2::SockRef::from(&stream).try_clone()?;
                serve_h1(Box::new(stream), Some(raw), server, extra).await
            }
        },
    }
}

impl Server {
    fn note(&self, value: Value) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).seen.push(value);
    }

    fn looks(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).looks
    }

    /// Notes what a connection saw that began after so many looks, unless there has been one since.
    fn note_of(&self, looks: usize, value: Value) {
        if self.looks() == looks {
            self.note(value);
        }
    }

    /// The answer to the next request for `target`.
    fn answer(&self, target: &str) -> Answer {
        let path = target.split('?').next().unwrap_or_default();
        let prefix = |key: &str| key.strip_suffix('*').is_some_and(|p| path.starts_with(p));
        let found =
            self.spec.paths.get(path).or_else(|| {
                self.spec.paths.iter().filter(|(k, _)| prefix(k)).max_by_key(|(k, _)| k.len()).map(|(_, a)| a)
            });
        let Some(answer) = found else {
            return Answer { body: Some(self.name.clone()), ..Answer::default() };
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = state.asked.entry(path.to_owned()).or_default();
        *asked += 1;
        answer.first.get(*asked - 1).unwrap_or(answer).clone()
    }
}

async fn pause(seconds: Option<f64>) {
    if let Some(seconds) = seconds {
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }
}

fn merge(mut into: Value, extra: &Value) -> Value {
    for (key, value) in extra.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
    into
}

async fn serve_h1(mut io: Box<dyn Io>, raw: Option<socket2::Socket>, server: &Server, extra: Value) -> Result<()> {
    let mut reader = http1::Reader::default();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let mut request = loop {
            if let Some(request) = reader.request_head()? {
                break request;
            }
            let n = io.read(&mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            reader.push(&buffer[..n]);
        };
        let target = request.line.split(' ').nth(1).unwrap_or_default().to_owned();
        let answer = server.answer(&target);
        let upgrade = answer.tunnel || request.line.starts_with("CONNECT ");
        if upgrade {
            request.framing = Framing::None;
        }
        if answer.around_body {
            io.write_all(b"HTTP/1.1 200 Scripted\r\ntransfer-encoding: chunked\r\n\r\n5\r\nearly\r\n").await?;
            io.flush().await?;
            pause(answer.delay).await;
            while !reader.request_body(&mut request)? {
                let n = io.read(&mut buffer).await?;
                if n == 0 {
                    break;
                }
                reader.push(&buffer[..n]);
            }
            server.note(merge(json!({"line": request.line, "body_bytes": request.body.len()}), &extra));
            io.write_all(b"4\r\nlate\r\n0\r\n\r\n").await?;
            io.flush().await?;
            continue;
        }
        let mut whole = answer.early || reader.request_body(&mut request)?;
        while !whole {
            let n = io.read(&mut buffer).await.unwrap_or(0);
            if n == 0 {
                break;
            }
            reader.push(&buffer[..n]);
            whole = reader.request_body(&mut request)?;
        }
        let mut seen = json!({"line": request.line, "headers": http1::pairs(&request.headers)});
        if request.framing != Framing::None {
            seen["body"] = json!(request.body);
            seen["chunked"] = json!(request.framing == Framing::Chunked);
        }
        if !request.trailers.is_empty() {
            seen["trailers"] = http1::pairs(&request.trailers);
        }
        if !whole {
            seen["incomplete"] = json!(true);
        }
        server.note(merge(seen, &extra));
        if !whole {
            return Ok(());
        }
        pause(answer.delay).await;
        write_h1(&mut io, &answer, request.line.starts_with("HEAD ")).await?;
        match answer.then.as_deref() {
            Some("close") => {
                let _ = io.shutdown().await;
                return Ok(());
            }
            Some("reset") => {
                if let Some(raw) = &raw {
                    raw.set_linger(Some(Duration::ZERO))?;
                }
                return Ok(());
            }
            _ => {}
        }
        if upgrade && (answer.tunnel || answer.status.unwrap_or(200) / 100 == 2) {
            io.write_all(&reader.buffer).await?;
            loop {
                let n = io.read(&mut buffer).await?;
                if n == 0 {
                    return Ok(());
                }
                io.write_all(&buffer[..n]).await?;
            }
        }
    }
}

async fn write_h1(io: &mut Box<dyn Io>, answer: &Answer, head_only: bool) -> Result<()> {
    if let Some(raw) = &answer.raw {
        io.write_all(&text::bytes(raw)?).await?;
        return Ok(io.flush().await?);
    }
    if answer.then.is_some() && answer.status.is_none() && answer.body.is_none() && answer.chunks.is_none() {
        return Ok(());
    }
    let status = answer.status.unwrap_or(200);
    let mut head = format!("HTTP/1.1 {status} Scripted\r\n");
    let headers = answer.headers.pairs();
    for (name, value) in &headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let framed = headers
        .iter()
        .any(|(n, _)| n.eq_ignore_ascii_case("content-length") || n.eq_ignore_ascii_case("transfer-encoding"));
    let body = answer.body.clone().unwrap_or_default();
    if answer.chunks.is_some() && !framed {
        head.push_str("transfer-encoding: chunked\r\n");
    } else if !framed && !answer.tunnel && status >= 200 && status != 204 && status != 304 {
        head.push_str(&format!("content-length: {}\r\n", text::bytes(&body)?.len()));
    }
    head.push_str("\r\n");
    let mut out = text::bytes(&head)?;
    if !head_only {
        out.extend(text::bytes(&body)?);
    }
    io.write_all(&out).await?;
    io.flush().await?;
    if let (Some(chunks), false) = (&answer.chunks, head_only) {
        for chunk in chunks {
            pause(answer.pace).await;
            let bytes = text::bytes(chunk)?;
            let mut out = format!("{:x}\r\n", bytes.len()).into_bytes();
            out.extend(&bytes);
            out.extend(b"\r\n");
            io.write_all(&out).await?;
            io.flush().await?;
        }
        let mut end = String::from("0\r\n");
        for (name, value) in answer.trailers.pairs() {
            end.push_str(&format!("{name}: {value}\r\n"));
        }
        end.push_str("\r\n");
        if answer.then.is_none() {
            io.write_all(&text::bytes(&end)?).await?;
        }
        io.flush().await?;
    }
    Ok(())
}

async fn serve_tcp(mut stream: TcpStream, server: &Server, extra: Value) -> Result<()> {
    let looks = server.looks();
    let script = if server.spec.script.is_empty() { None } else { Some(&server.spec.script) };
    let Some(script) = script else {
        let mut buffer = vec![0; 64 * 1024];
        let mut all = Vec::new();
        loop {
            let n = stream.read(&mut buffer).await.unwrap_or(0);
            if n == 0 {
                server.note_of(looks, merge(json!({"received": text::latin1(&all)}), &extra));
                return Ok(());
            }
            all.extend_from_slice(&buffer[..n]);
            stream.write_all(&buffer[..n]).await?;
        }
    };
    let mut received = String::new();
    let outcome = tcp_script(&mut stream, script, &mut received).await;
    server.note_of(looks, merge(json!({"received": received, "finished": outcome.is_ok()}), &extra));
    outcome
}

/// Plays a TCP conversation; what was read is appended to `received`.
///
/// # Errors
/// The connection breaks, or ends before what was to be read.
pub async fn tcp_script<S: Io>(stream: &mut S, script: &[TcpStep], received: &mut String) -> Result<()> {
    for step in script {
        match step {
            TcpStep::Send(text) => {
                stream.write_all(&text::bytes(text)?).await?;
                stream.flush().await?;
            }
            TcpStep::Read(n) => {
                let mut bytes = vec![0; *n];
                let read = stream.read_exact(&mut bytes);
                tokio::time::timeout(Duration::from_secs(5), read).await.context("nothing to read")??;
                received.push_str(&text::latin1(&bytes));
            }
            TcpStep::Eof(seconds) => {
                let mut bytes = Vec::new();
                let read =
                    tokio::time::timeout(Duration::from_secs_f64(*seconds), stream.read_to_end(&mut bytes)).await;
                received.push_str(&text::latin1(&bytes));
                read.context("the stream stays open")??;
            }
            TcpStep::Shutdown(_) => stream.shutdown().await?,
            TcpStep::Delay(seconds) => pause(Some(*seconds)).await,
        }
    }
    Ok(())
}

async fn serve_h2<S: Io + 'static>(io: S, server: &Arc<Server>, extra: Value) -> Result<()> {
    let mut connection = h2::server::Builder::new().max_header_list_size(1 << 20).handshake::<_, Bytes>(io).await?;
    let mut streams = JoinSet::new();
    let (goaway, mut wants_goaway) = tokio::sync::mpsc::unbounded_channel::<()>();
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(stream) => {
                    let (request, respond) = stream?;
                    let (server, extra, goaway) = (server.clone(), extra.clone(), goaway.clone());
                    streams.spawn(async move {
                        let _ = answer_h2(request, respond, &server, extra, goaway).await;
                    });
                }
                None => return Ok(()),
            },
            Some(()) = wants_goaway.recv() => connection.graceful_shutdown(),
        }
    }
}

async fn answer_h2(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    server: &Server,
    extra: Value,
    goaway: tokio::sync::mpsc::UnboundedSender<()>,
) -> Result<()> {
    let (head, mut body) = request.into_parts();
    let target = head.uri.path_and_query().map_or("", |p| p.as_str()).to_owned();
    let answer = server.answer(&target);
    let mut seen = json!({
        "method": head.method.as_str(), "path": target, "scheme": head.uri.scheme_str(),
        "authority": head.uri.authority().map(http::uri::Authority::as_str), "headers": h2_fields(&head.headers),
    });
    if let Some(protocol) = head.extensions.get::<h2::ext::Protocol>() {
        seen["protocol"] = json!(protocol.as_str());
    }
    let tunnel = answer.tunnel || head.method == http::Method::CONNECT;
    if !tunnel && !answer.early {
        let mut bytes = Vec::new();
        while let Some(chunk) = body.data().await {
            let Ok(chunk) = chunk else {
                seen["incomplete"] = json!(true);
                break;
            };
            let _ = body.flow_control().release_capacity(chunk.len());
            bytes.extend_from_slice(&chunk);
        }
        if !bytes.is_empty() {
            seen["body"] = json!(text::latin1(&bytes));
        }
        if let Ok(Some(trailers)) = body.trailers().await {
            seen["trailers"] = h2_fields(&trailers);
        }
    }
    server.note(merge(seen, &extra));
    pause(answer.delay).await;
    match answer.then.as_deref() {
        Some("reset") if answer.status.is_none() => {
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
            return Ok(());
        }
        Some("refuse") => {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            return Ok(());
        }
        Some("goaway") => drop(goaway.send(())),
        _ => {}
    }
    let mut response = http::Response::builder().status(answer.status.unwrap_or(200));
    for (name, value) in answer.headers.pairs() {
        response = response.header(name.as_str(), text::bytes(&value)?);
    }
    let mut chunks = answer.chunks.clone().unwrap_or_else(|| answer.body.iter().cloned().collect());
    if head.method == http::Method::HEAD {
        chunks.clear();
    }
    let trailers = answer.trailers.pairs();
    let open = tunnel || answer.then.as_deref() == Some("reset");
    let end = chunks.is_empty() && trailers.is_empty() && !open;
    let mut stream = respond.send_response(response.body(())?, end)?;
    if end {
        return Ok(());
    }
    let last = chunks.len();
    for (i, chunk) in chunks.iter().enumerate() {
        pause(answer.pace).await;
        let done = i + 1 == last && trailers.is_empty() && !open;
        stream.send_data(text::bytes(chunk)?.into(), done)?;
    }
    if tunnel {
        while let Some(Ok(chunk)) = body.data().await {
            let _ = body.flow_control().release_capacity(chunk.len());
            stream.send_data(chunk, false)?;
        }
        match trailers.is_empty() {
            true => stream.send_data(Bytes::new(), true)?,
            false => stream.send_trailers(header_map(trailers)?)?,
        }
    } else if open {
        tokio::time::sleep(Duration::from_millis(30)).await;
        stream.send_reset(h2::Reason::INTERNAL_ERROR);
    } else if !trailers.is_empty() {
        stream.send_trailers(header_map(trailers)?)?;
    }
    Ok(())
}

fn header_map(fields: Vec<(String, String)>) -> Result<http::HeaderMap> {
    let mut map = http::HeaderMap::new();
    for (name, value) in fields {
        map.append(http::HeaderName::try_from(name)?, text::bytes(&value)?.try_into()?);
    }
    Ok(map)
}

/// HTTP/2 fields as JSON. The map of the h2 crate keeps the order of the first appearance of each name only, so they
/// are sorted.
pub fn h2_fields(map: &http::HeaderMap) -> Value {
    let mut fields: Vec<(String, String)> =
        map.iter().map(|(n, v)| (n.as_str().to_owned(), text::latin1(v.as_bytes()))).collect();
    fields.sort();
    http1::pairs(&fields)
}
