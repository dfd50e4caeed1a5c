//! The two ends against scripted peers and against each other, in memory.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nuncio_base::stats::{Registry, StatsConfig};
use nuncio_config::hcm::{HeaderKeyFormat, Http1Options, UnderscoresAction};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::parse::{Framing, Limits};
use super::request::parse_request;
use super::response::{RequestKind, parse_response};
use super::*;
use crate::codec::stats::Http1Stats;
use crate::codec::{ClientStream, Frame, Protocol, ResetReason, ServerStream, Stream, StreamError};
use crate::headers::{HeaderName, HeaderValue, Headers, names, status_value};

const LIMITS: Limits = Limits { max_bytes: 60 * 1024, max_count: 100 };

fn server_config() -> ServerConfig {
    let registry = Registry::new(1, StatsConfig::default());
    let stats = Http1Stats::new(&registry, "http1.");
    ServerConfig::new(&Http1Options::default(), LIMITS, UnderscoresAction::Allow, 1024 * 1024, stats)
}

fn client_config() -> ClientConfig {
    ClientConfig::new(&Http1Options::default(), LIMITS, 1024 * 1024)
}

fn server(io: DuplexStream, change: impl FnOnce(&mut ServerConfig)) -> H1Server<DuplexStream> {
    let mut config = server_config();
    change(&mut config);
    H1Server::new(io, Rc::new(config), false)
}

async fn deadline<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(5), future).await.expect("in time")
}

async fn next(server: &mut H1Server<DuplexStream>) -> RequestEvent {
    deadline(poll_fn(|cx| server.poll_request(cx))).await
}

async fn request(server: &mut H1Server<DuplexStream>) -> Request {
    match next(server).await {
        RequestEvent::Request(request) => *request,
        other => panic!("{other:?}"),
    }
}

async fn frame(stream: &mut impl Stream) -> Result<Frame, StreamError> {
    deadline(poll_fn(|cx| stream.poll_frame(cx))).await
}

async fn body(stream: &mut impl Stream) -> Result<(Vec<u8>, Headers), StreamError> {
    let mut all = Vec::new();
    loop {
        match frame(stream).await? {
            Frame::Data(data, end) => {
                all.extend_from_slice(&data);
                if end {
                    return Ok((all, Headers::new()));
                }
            }
            Frame::Trailers(trailers) => return Ok((all, trailers)),
        }
    }
}

async fn flush(stream: &mut impl Stream) {
    deadline(poll_fn(|cx| stream.poll_flush(cx))).await.expect("written");
}

async fn finish(server: &mut H1Server<DuplexStream>) -> Finish {
    deadline(poll_fn(|cx| server.poll_finish(cx))).await
}

/// Reads until `end` stands at the end of what came.
async fn read_until(io: &mut DuplexStream, end: &str) -> String {
    let mut all = Vec::new();
    deadline(async {
        while !all.ends_with(end.as_bytes()) {
            let n = io.read_buf(&mut all).await.expect("readable");
            assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&all));
        }
    })
    .await;
    String::from_utf8(all).expect("text")
}

fn headers(lines: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in lines {
        headers
            .append(HeaderName::parse(name).expect("a name"), HeaderValue::parse(value.to_string()).expect("a value"));
    }
    headers
}

fn response(status: u16, lines: &[(&str, &str)]) -> Headers {
    let mut h = headers(lines);
    h.set(names::STATUS, status_value(status));
    h
}

fn show(headers: &Headers) -> String {
    headers.iter().map(|(n, v)| format!("{n}: {}", v.as_bytes().escape_ascii())).collect::<Vec<_>>().join("|")
}

#[tokio::test]
async fn a_request_without_a_body_is_answered_and_the_connection_kept() {
    let (mut client, io) = duplex(64 * 1024);
    let mut server = server(io, |_| {});
    client.write_all(b"GET /a?b HTTP/1.1\r\nX-One: 1\r\nHost: example:80\r\n\r\n").await.unwrap();
    let r = request(&mut server).await;
    assert!(r.end_stream && !r.close && !r.upgrade && r.protocol == Protocol::Http11);
    assert_eq!(show(&r.headers), ":authority: example:80|:path: /a?b|:method: GET|:scheme: http|x-one: 1");
    server.send_headers(&response(200, &[("content-length", "2"), ("Server", "envoy")]), false).unwrap();
    server.send_data(Bytes::from_static(b"ok"), true).unwrap();
    assert_eq!(finish(&mut server).await, Finish::KeepAlive);
    assert_eq!(read_until(&mut client, "ok").await, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nserver: envoy\r\n\r\nok");
    assert!(!server.is_idle() || server.has_partial_request() == false);
    let idle = poll_fn(|cx| Poll::Ready(server.poll_idle_readable(cx).is_pending())).await;
    assert!(idle && server.is_idle(), "an idle connection owns no buffer");
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(request(&mut server).await.close);
    server.send_headers(&response(404, &[]), true).unwrap();
    assert_eq!(finish(&mut server).await, Finish::Close { request_complete: true });
    let text = read_until(&mut client, "\r\n\r\n").await;
    assert_eq!(text, "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
}

#[tokio::test]
async fn the_two_ends_understand_each_other() {
    let (a, b) = duplex(64 * 1024);
    let mut server = server(a, |c| c.enable_trailers = true);
    let mut config = client_config();
    config.enable_trailers = true;
    let mut client = H1Client::new(b, Rc::new(config));
    for round in 0..3 {
        client.begin();
        let head =
            headers(&[(":method", "POST"), (":path", "/p"), (":authority", "h"), (":scheme", "http"), ("x", "y")]);
        client.send_headers(&head, false).unwrap();
        client.send_data(Bytes::from_static(b"hello "), false).unwrap();
        client.send_data(Bytes::from(vec![b'x'; 20_000]), false).unwrap();
        client.send_trailers(&headers(&[("t", "1")])).unwrap();
        flush(&mut client).await;
        let r = request(&mut server).await;
        assert_eq!(show(&r.headers), ":authority: h|:path: /p|:method: POST|:scheme: http|x: y", "round {round}");
        let (data, trailers) = body(&mut server).await.unwrap();
        assert_eq!(data.len(), 20_006);
        assert_eq!(show(&trailers), "t: 1");
        server.send_headers(&response(200, &[]), false).unwrap();
        server.send_data(Bytes::from_static(b"done"), true).unwrap();
        assert_eq!(finish(&mut server).await, Finish::KeepAlive);
        let (h, end) = deadline(poll_fn(|cx| client.poll_headers(cx))).await.unwrap();
        assert_eq!((show(&h), end), (":status: 200".into(), false));
        assert_eq!(body(&mut client).await.unwrap().0, b"done");
        assert!(client.is_reusable());
    }
}
