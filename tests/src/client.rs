//! The steps of a case, played against one proxy; each gives a JSON value.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use regex::Regex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::case::{AdminCall, Piece, Request, Share, Step};
use crate::certs::Certs;
use crate::http1::Reader;
use crate::proxy::Proxy;
use crate::tls::{self, Io};
use crate::upstream::{h2_fields, tcp_script};
use crate::{frames, text};

/// How long a response may take.
const WAIT: f64 = 5.0;
/// How long an announced end of the connection may take.
const CLOSE_WAIT: f64 = 4.0;
/// How long a connection that should stay open is watched.
const OPEN_WAIT: f64 = 0.03;

/// Plays one step. Failures of the conversation are outcomes (`error`), not errors.
///
/// # Errors
/// The case file asks for something impossible.
pub fn play<'a>(
    step: &'a Step,
    proxy: &'a Proxy,
    certs: &'a Certs,
    listener: &'a str,
) -> Pin<Box<dyn Future<Output = Result<Value>> + Send + 'a>> {
    Box::pin(async move {
        if let Some(seconds) = step.sleep {
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            return Ok(Value::Null);
        }
        if let Some(cluster) = &step.idle {
            return idle(cluster, proxy).await;
        }
        if let Some(steps) = &step.parallel {
            let mut outcomes = Vec::new();
            let futures: Vec<_> = steps.iter().map(|s| play(s, proxy, certs, listener)).collect();
            for outcome in join_all(futures).await {
                outcomes.push(outcome?);
            }
            return Ok(outcomes.into());
        }
        if let Some(call) = &step.admin {
            return admin(call, proxy).await;
        }
        let outcome = match conversation(step, proxy, certs, step.listener.as_deref().unwrap_or(listener)).await {
            Ok(outcome) => outcome,
            Err(error) => json!({"error": kind(&error)}),
        };
        Ok(keep(outcome, step.keep.as_deref()))
    })
}

/// Drives futures together on this task.
async fn join_all<F: Future + Unpin>(mut futures: Vec<F>) -> Vec<F::Output> {
    let mut done: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (future, slot) in futures.iter_mut().zip(&mut done) {
            if slot.is_none() {
                match Pin::new(future).poll(cx) {
                    std::task::Poll::Ready(value) => *slot = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// What kind of failure ended a conversation: the same words on every run.
fn kind(error: &anyhow::Error) -> String {
    for cause in error.chain() {
        if let Some(e) = cause.downcast_ref::<std::io::Error>() {
            if let Some(tls) = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                return match tls {
                    rustls::Error::AlertReceived(alert) => format!("TLS alert {alert:?}"),
                    other => format!("TLS: {other}"),
                };
            }
            return format!("{:?}", e.kind());
        }
        if let Some(e) = cause.downcast_ref::<h2::Error>() {
            return match e.reason() {
                Some(reason) => format!("h2 {reason:?}{}", if e.is_go_away() { " GOAWAY" } else { "" }),
                None => "h2 connection lost".to_owned(),
            };
        }
    }
    format!("{error:#}")
}

fn keep(outcome: Value, keys: Option<&[String]>) -> Value {
    let (Some(keys), Value::Object(map)) = (keys, &outcome) else { return outcome };
    keys.iter().filter_map(|k| Some((k.clone(), map.get(k)?.clone()))).collect()
}

async fn conversation(step: &Step, proxy: &Proxy, certs: &Certs, listener: &str) -> Result<Value> {
    let mut stream = TcpStream::connect(proxy.address(listener)?).await?;
    stream.set_nodelay(true)?;
    if let Some(preamble) = &step.preamble {
        stream.write_all(&text::bytes(preamble)?).await?;
    }
    let mut agreed = Value::Null;
    let io: Box<dyn Io> = match &step.tls {
        Some(tls) => {
            let (io, info) = tls::connect(stream, tls, certs).await?;
            agreed = info;
            io
        }
        None => Box::new(stream),
    };
    let mut outcome = if let Some(script) = &step.tcp {
        tcp(io, script).await
    } else if let Some(requests) = &step.h2 {
        http2(io, requests, step).await?
    } else if let Some(flood) = &step.flood {
        flooded(io, &frames::bytes(flood)?, step.watch_close.unwrap_or(1.0)).await
    } else if let Some(share) = &step.share {
        shares(io, share).await?
    } else {
        http1_conversation(io, step).await?
    };
    if !agreed.is_null() {
        outcome["tls"] = agreed;
    }
    Ok(outcome)
}

async fn tcp(mut io: Box<dyn Io>, script: &[crate::case::TcpStep]) -> Value {
    let mut received = String::new();
    let end = tcp_script(&mut io, script, &mut received).await;
    json!({"received": received, "end": end.err().map_or_else(|| "played".to_owned(), |e| kind(&e))})
}

/// Sends everything, reads what comes back, and says how it ended.
async fn flooded(mut io: Box<dyn Io>, bytes: &[u8], watch: f64) -> Value {
    let (mut read, mut write) = tokio::io::split(&mut io);
    let mut received = Vec::new();
    let mut end = "open";
    let sending = async {
        let _ = write.write_all(bytes).await;
        let _ = write.flush().await;
        std::future::pending::<()>().await;
    };
    let reading = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match tokio::time::timeout(Duration::from_secs_f64(watch), read.read(&mut buffer)).await {
                Ok(Ok(0) | Err(_)) => return "closed",
                Ok(Ok(n)) => received.extend_from_slice(&buffer[..n]),
                Err(_) => return "open",
            }
        }
    };
    tokio::select! {
        () = sending => {}
        how = reading => end = how,
    }
    json!({"frames": frames::summary(&received), "after": end})
}

/// A connection that reads HTTP/1 responses.
struct Http1 {
    io: Box<dyn Io>,
    reader: Reader,
    ended: Option<&'static str>,
}

impl Http1 {
    async fn read_more(&mut self, limit: Duration) -> bool {
        if self.ended.is_some() {
            return false;
        }
        let mut buffer = vec![0; 64 * 1024];
        match tokio::time::timeout(limit, self.io.read(&mut buffer)).await {
            Ok(Ok(0)) => self.ended = Some("closed"),
            Ok(Ok(n)) => self.reader.push(&buffer[..n]),
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionReset => self.ended = Some("reset"),
            // rustls reports an end without close_notify as an error; for the case it is an end.
            Ok(Err(_)) => self.ended = Some("closed"),
            Err(_) => return false,
        }
        self.ended.is_none()
    }

    /// The final response to one request, with the interim ones before it.
    async fn response(&mut self, to_head: bool, wait: f64) -> Result<(Value, bool)> {
        let deadline = Instant::now() + Duration::from_secs_f64(wait);
        let mut interim = Vec::new();
        loop {
            if let Some(response) = self.reader.response(to_head, self.ended.is_some())? {
                if response.status < 200 && response.status != 101 {
                    interim.push(response.to_json());
                    continue;
                }
                let mut out = response.to_json();
                if !interim.is_empty() {
                    out["interim"] = interim.into();
                }
                return Ok((out, response.closes()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let had_ended = self.ended.is_some();
            // The end itself may complete a response; after that nothing more comes.
            if had_ended || (!self.read_more(left).await && self.ended.is_none()) {
                let what = self.ended.unwrap_or("no response");
                let mut out = json!({"none": what});
                if !self.reader.buffer.is_empty() {
                    out["bytes"] = json!(text::latin1(&self.reader.buffer));
                }
                return Ok((out, false));
            }
        }
    }
}

async fn http1_conversation(io: Box<dyn Io>, step: &Step) -> Result<Value> {
    let mut conn = Http1 { io, reader: Reader::default(), ended: None };
    let wait = step.wait.unwrap_or(WAIT);
    let mut outcomes = Vec::new();
    let mut closes = false;
    if let Some(pieces) = &step.send {
        for piece in pieces.items() {
            match piece {
                Piece::Text(text) => {
                    let _ = conn.io.write_all(&text::bytes(text)?).await;
                    let _ = conn.io.flush().await;
                }
                Piece::Delay { delay } => tokio::time::sleep(Duration::from_secs_f64(*delay)).await,
                Piece::Shutdown { .. } => drop(conn.io.shutdown().await),
                Piece::Until { until } => {
                    let want = text::bytes(until)?;
                    while !conn.reader.buffer.windows(want.len()).any(|w| w == want) {
                        if !conn.read_more(Duration::from_secs_f64(wait)).await {
                            break;
                        }
                    }
                }
            }
        }
        for _ in 0..step.replies.unwrap_or(1) {
            let (outcome, close) = conn.response(false, wait).await?;
            closes = close;
            outcomes.push(outcome);
        }
    } else {
        for request in requests(step)? {
            write_request(&mut conn.io, &request).await?;
            let (outcome, close) = conn.response(request.method == "HEAD", wait).await?;
            closes = close;
            outcomes.push(outcome);
        }
    }
    let watch = step.watch_close.unwrap_or(if closes { CLOSE_WAIT } else { OPEN_WAIT });
    let deadline = Instant::now() + Duration::from_secs_f64(watch);
    while Instant::now() < deadline && conn.read_more(deadline.saturating_duration_since(Instant::now())).await {}
    let mut out = json!({"responses": outcomes, "after": conn.ended.unwrap_or("open")});
    if !conn.reader.buffer.is_empty() {
        out["more"] = json!(text::latin1(&conn.reader.buffer));
    }
    Ok(out)
}

fn requests(step: &Step) -> Result<Vec<Request>> {
    if let Some(requests) = &step.requests {
        return Ok(requests.clone());
    }
    let Some(paths) = &step.get else { bail!("a step without an action") };
    paths
        .items()
        .iter()
        .map(|path| {
            let mut request: Request = serde_json::from_value(json!({"path": path}))?;
            request.headers = step.headers.clone();
            Ok(request)
        })
        .collect()
}

async fn write_request(io: &mut Box<dyn Io>, request: &Request) -> Result<()> {
    let mut head = format!("{} {} {}\r\n", request.method, request.path, request.version);
    if let Some(host) = &request.host {
        head.push_str(&format!("Host: {host}\r\n"));
    }
    for (name, value) in request.headers.pairs() {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut body = Vec::new();
    if let Some(text) = &request.body {
        body = text::bytes(text)?;
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    } else if let Some(chunks) = &request.chunks {
        head.push_str("Transfer-Encoding: chunked\r\n");
        for chunk in chunks {
            let bytes = text::bytes(chunk)?;
            body.extend(format!("{:x}\r\n", bytes.len()).into_bytes());
            body.extend(bytes);
            body.extend(b"\r\n");
        }
        body.extend(b"0\r\n");
        for (name, value) in request.trailers.pairs() {
            body.extend(format!("{name}: {value}\r\n").into_bytes());
        }
        body.extend(b"\r\n");
    }
    head.push_str("\r\n");
    let mut bytes = text::bytes(&head)?;
    bytes.extend(body);
    // The proxy may answer and close before it has read everything: then the answer counts, not this error.
    let _ = io.write_all(&bytes).await;
    let _ = io.flush().await;
    Ok(())
}

async fn shares(io: Box<dyn Io>, share: &Share) -> Result<Value> {
    let mut conn = Http1 { io, reader: Reader::default(), ended: None };
    let mut counts: BTreeMap<String, f64> = BTreeMap::new();
    let request: Request = serde_json::from_value(json!({"path": share.get}))?;
    for _ in 0..share.n {
        write_request(&mut conn.io, &request).await?;
        let (response, _) = conn.response(false, WAIT).await?;
        let body = response["body"].as_str().unwrap_or("none").to_owned();
        *counts.entry(body).or_default() += 1.0;
    }
    let total = share.n as f64;
    let within: serde_json::Map<String, Value> = counts
        .iter()
        .map(|(body, count)| {
            let part = count / total;
            let verdict = match share.expect.get(body) {
                Some((low, high)) if (*low..=*high).contains(&part) => "as expected".to_owned(),
                _ => format!("{part:.3} of the answers"),
            };
            (body.clone(), json!(verdict))
        })
        .collect();
    Ok(json!({"shares": within}))
}

async fn http2(io: Box<dyn Io>, requests: &[Request], step: &Step) -> Result<Value> {
    let (mut client, connection) =
        h2::client::Builder::new().enable_push(false).max_header_list_size(1 << 20).handshake::<_, Bytes>(io).await?;
    let driver = tokio::spawn(connection);
    let wait = Duration::from_secs_f64(step.wait.unwrap_or(WAIT));
    let mut outcomes = Vec::new();
    let mut started = Vec::new();
    for request in requests {
        client = match tokio::time::timeout(wait, client.clone().ready()).await {
            Ok(Ok(client)) => client,
            Ok(Err(e)) => {
                outcomes.push(json!({"error": kind(&e.into())}));
                break;
            }
            Err(_) => bail!("the connection takes no stream"),
        };
        let exchange = tokio::spawn(exchange(client.clone(), request.clone()));
        if step.concurrent {
            started.push(exchange);
            tokio::time::sleep(Duration::from_millis(20)).await;
        } else {
            outcomes.push(finish(exchange, wait).await?);
        }
    }
    for exchange in started {
        outcomes.push(finish(exchange, wait).await?);
    }
    drop(client);
    let watch = Duration::from_secs_f64(step.watch_close.unwrap_or(OPEN_WAIT));
    let mut out = json!({"responses": outcomes});
    if step.watch_close.is_some() {
        let end = tokio::time::timeout(watch, driver).await;
        out["after"] = match end {
            Ok(Ok(Ok(()))) => json!("closed"),
            Ok(Ok(Err(e))) => json!(kind(&e.into())),
            _ => json!("open"),
        };
    } else {
        driver.abort();
    }
    Ok(out)
}

async fn finish(exchange: tokio::task::JoinHandle<Result<Value>>, wait: Duration) -> Result<Value> {
    Ok(match tokio::time::timeout(wait, exchange).await {
        Ok(joined) => joined?.unwrap_or_else(|e| json!({"error": kind(&e)})),
        Err(_) => json!({"none": "no response"}),
    })
}

async fn exchange(mut client: h2::client::SendRequest<Bytes>, request: Request) -> Result<Value> {
    let mut head = http::Request::builder().method(request.method.as_str()).version(http::Version::HTTP_2);
    let authority = request.host.clone().unwrap_or_default();
    head = if request.method == "CONNECT" {
        head.uri(authority)
    } else {
        let scheme = request.scheme.clone().unwrap_or_else(|| "http".to_owned());
        head.uri(format!("{scheme}://{authority}{}", request.path))
    };
    for (name, value) in request.headers.pairs() {
        if name == ":protocol" {
            head = head.extension(h2::ext::Protocol::from(value.as_str()));
        } else {
            head = head.header(name.as_str(), text::bytes(&value)?);
        }
    }
    let chunks = request.chunks.clone().unwrap_or_else(|| request.body.iter().cloned().collect());
    let trailers = request.trailers.pairs();
    let end = chunks.is_empty() && trailers.is_empty() && !request.open;
    let (response, mut stream) = client.send_request(head.body(())?, end)?;
    let last = chunks.len();
    for (i, chunk) in chunks.iter().enumerate() {
        stream.send_data(text::bytes(chunk)?.into(), i + 1 == last && trailers.is_empty() && !request.open)?;
    }
    if !trailers.is_empty() {
        let mut map = http::HeaderMap::new();
        for (name, value) in trailers {
            map.append(http::HeaderName::try_from(name)?, text::bytes(&value)?.try_into()?);
        }
        stream.send_trailers(map)?;
    }
    let (head, mut body) = response.await?.into_parts();
    let mut out = json!({"status": head.status.as_u16(), "headers": h2_fields(&head.headers)});
    let mut bytes = Vec::new();
    loop {
        let data = if request.open && !bytes.is_empty() {
            match tokio::time::timeout(Duration::from_millis(200), body.data()).await {
                Ok(data) => data,
                Err(_) => break,
            }
        } else {
            body.data().await
        };
        match data {
            Some(Ok(chunk)) => {
                let _ = body.flow_control().release_capacity(chunk.len());
                bytes.extend_from_slice(&chunk);
            }
            Some(Err(e)) => {
                out["error"] = json!(kind(&e.into()));
                break;
            }
            None => {
                match body.trailers().await {
                    Ok(Some(map)) => out["trailers"] = h2_fields(&map),
                    Ok(None) => {}
                    Err(e) => out["error"] = json!(kind(&e.into())),
                }
                break;
            }
        }
    }
    out["body"] = json!(text::latin1(&bytes));
    Ok(out)
}

/// Waits until a cluster has no requests.
async fn idle(cluster: &str, proxy: &Proxy) -> Result<Value> {
    let deadline = Instant::now() + Duration::from_secs_f64(WAIT);
    loop {
        let stats = proxy.stats().await?;
        let at_hand = |what: &str| stats.get(&format!("cluster.{cluster}.upstream_rq_{what}")).copied();
        let (active, waiting) = (at_hand("active"), at_hand("pending_active"));
        match active.zip(waiting).with_context(|| format!("`idle`: no cluster {cluster}"))? {
            (0, 0) => return Ok(Value::Null),
            _ if Instant::now() > deadline => return Ok(json!({"error": format!("{cluster} still has requests")})),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn admin(call: &AdminCall, proxy: &Proxy) -> Result<Value> {
    tokio::time::sleep(Duration::from_secs_f64(call.after)).await;
    let deadline = Instant::now() + Duration::from_secs_f64(WAIT);
    loop {
        let outcome = asked(call, proxy).await?;
        if outcome["lines"].as_array().map_or(0, Vec::len) >= call.at_least || Instant::now() > deadline {
            return Ok(outcome);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn asked(call: &AdminCall, proxy: &Proxy) -> Result<Value> {
    let (status, body) = match proxy.admin(&call.method, &call.path).await {
        Ok(answer) => answer,
        Err(e) => return Ok(json!({"error": kind(&e)})),
    };
    if let Some(pointer) = &call.pointer {
        let Ok(json) = serde_json::from_str::<Value>(&body) else {
            return Ok(json!({"status": status, "not_json": body}));
        };
        let part = json.pointer(pointer).cloned().unwrap_or(json!("nothing at this pointer"));
        return Ok(json!({"status": status, "body": if call.shape { shape(&part) } else { part }}));
    }
    let mut lines: Vec<String> = body.lines().map(str::to_owned).collect();
    if let Some(pattern) = &call.lines {
        let pattern = Regex::new(pattern).context("`lines`")?;
        lines.retain(|line| pattern.is_match(line));
    }
    if call.shape {
        for line in &mut lines {
            if let Some(at) = line.find(": ") {
                line.truncate(at);
            }
        }
    }
    if call.sort {
        lines.sort();
    }
    Ok(json!({"status": status, "lines": lines}))
}

/// The value with every scalar replaced by its type; of a list, the distinct shapes.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), shape(v))).collect(),
        Value::Array(items) => {
            let mut shapes: Vec<Value> = Vec::new();
            for item in items {
                let one = shape(item);
                if !shapes.contains(&one) {
                    shapes.push(one);
                }
            }
            // The order of Envoy's maps is no contract.
            shapes.sort_by_key(ToString::to_string);
            shapes.into()
        }
        Value::String(_) => json!("text"),
        Value::Number(_) => json!("number"),
        Value::Bool(_) => json!("bool"),
        Value::Null => Value::Null,
    }
}

/// How many access-log lines a step should cause.
pub fn requests_in(step: &Step) -> usize {
    if let Some(steps) = &step.parallel {
        return steps.iter().map(requests_in).sum();
    }
    if let Some(requests) = step.requests.as_ref().or(step.h2.as_ref()) {
        return requests.len();
    }
    if let Some(share) = &step.share {
        return share.n;
    }
    if step.send.is_some() {
        return step.replies.unwrap_or(1);
    }
    usize::from(step.tcp.is_some()) + step.get.as_ref().map_or(0, |g| g.items().len())
}
