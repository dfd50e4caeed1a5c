//! The two ends against scripted peers and against each other, in memory.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use nuncio_base::stats::{Registry, StatsConfig};
use nuncio_config::hcm::{HeaderKeyFormat, Http1Options, UnderscoresAction};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::parse::Limits;
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
        RequestEvent::Request(request) => request,
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

/// One request in, the written response out, and what becomes of the connection.
async fn exchange(
    input: &str,
    change: impl FnOnce(&mut ServerConfig),
    answer: impl FnOnce(&mut H1Server<DuplexStream>),
) -> (String, Finish) {
    let (mut client, io) = duplex(64 * 1024);
    let mut server = server(io, change);
    client.write_all(input.as_bytes()).await.unwrap();
    match next(&mut server).await {
        RequestEvent::Request(_) | RequestEvent::Malformed(_) => {}
        other => panic!("{other:?}"),
    }
    answer(&mut server);
    let finished = finish(&mut server).await;
    drop(server);
    let mut out = String::new();
    deadline(client.read_to_string(&mut out)).await.unwrap();
    (out, finished)
}

fn send(server: &mut H1Server<DuplexStream>, status: u16, lines: &[(&str, &str)], data: &[&'static str]) {
    server.send_headers(&response(status, lines), data.is_empty()).unwrap();
    for (i, piece) in data.iter().enumerate() {
        server.send_data(Bytes::from_static(piece.as_bytes()), i + 1 == data.len()).unwrap();
    }
}

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const CLOSE: Finish = Finish::Close { request_complete: true };
const CLOSE_EARLY: Finish = Finish::Close { request_complete: false };

#[tokio::test]
async fn responses_are_framed_as_the_request_and_status_ask() {
    let (out, f) = exchange(GET, |_| {}, |s| send(s, 200, &[("x", "y")], &["ab", "c"])).await;
    assert_eq!(out, "HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n");
    assert_eq!(f, Finish::KeepAlive);
    let head = "HEAD / HTTP/1.1\r\nhost: a\r\n\r\n";
    let (out, _) = exchange(head, |_| {}, |s| send(s, 200, &[("content-length", "5")], &["hello"])).await;
    assert_eq!(out, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
    let (out, _) = exchange(head, |_| {}, |s| send(s, 200, &[], &[])).await;
    assert_eq!(out, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
    let (out, _) = exchange(GET, |_| {}, |s| send(s, 204, &[("content-length", "0")], &["x"])).await;
    assert_eq!(out, "HTTP/1.1 204 No Content\r\n\r\n");
    let (out, _) = exchange(GET, |_| {}, |s| send(s, 304, &[("content-length", "9")], &[])).await;
    assert_eq!(out, "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n");
    let (out, _) = exchange(GET, |_| {}, |s| send(s, 304, &[], &[])).await;
    assert_eq!(out, "HTTP/1.1 304 Not Modified\r\n\r\n");
    let (out, f) =
        exchange(GET, |_| {}, |s| send(s, 418, &[("transfer-encoding", "gzip"), ("connection", "close")], &[])).await;
    assert_eq!((out.as_str(), f), ("HTTP/1.1 418 Unknown\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", CLOSE));
}

#[tokio::test]
async fn http_10_gets_what_it_can_read() {
    let old = |l: &str| format!("GET / HTTP/1.0\r\nhost: a\r\n{l}\r\n");
    let take = |c: &mut ServerConfig| c.accept_http_10 = true;
    let (out, f) = exchange(&old(""), take, |s| send(s, 200, &[], &["abc"])).await;
    assert_eq!((out.as_str(), f), ("HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nabc", CLOSE));
    let keep = old("connection: keep-alive\r\n");
    let (out, f) = exchange(&keep, take, |s| send(s, 200, &[("content-length", "3")], &["abc"])).await;
    assert_eq!(out, "HTTP/1.0 200 OK\r\ncontent-length: 3\r\nconnection: keep-alive\r\n\r\nabc");
    assert_eq!(f, Finish::KeepAlive);
    let (out, f) = exchange(&keep, take, |s| send(s, 200, &[], &["abc"])).await;
    assert_eq!((out.as_str(), f), ("HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nabc", CLOSE));
}

#[tokio::test]
async fn names_are_written_in_the_case_that_is_asked_for() {
    let proper = |c: &mut ServerConfig| c.header_key_format = HeaderKeyFormat::ProperCase;
    let (out, _) = exchange(GET, proper, |s| send(s, 200, &[("x-request-id", "a-b"), ("www_auth", "c")], &[])).await;
    assert_eq!(out, "HTTP/1.1 200 OK\r\nX-Request-Id: a-b\r\nWww_Auth: c\r\nContent-Length: 0\r\n\r\n");
}

#[tokio::test]
async fn a_malformed_request_can_be_answered_and_ends_the_connection() {
    let (out, f) =
        exchange("GET / HTTP/1.1\r\nx y\r\n\r\n", |_| {}, |s| send(s, 400, &[("content-length", "1")], &["x"])).await;
    assert_eq!(out, "HTTP/1.1 400 Bad Request\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx");
    assert_eq!(f, CLOSE_EARLY);
}

#[tokio::test]
async fn an_early_answer_closes_unless_the_body_has_come() {
    let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nab";
    let (out, f) = exchange(post, |_| {}, |s| send(s, 413, &[], &[])).await;
    assert_eq!(out, "HTTP/1.1 413 Payload Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(f, CLOSE_EARLY);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (mut client, io) = duplex(64 * 1024);
    let mut server = server(io, |_| {});
    let two = "POST /1 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nt: 1\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n";
    client.write_all(two.as_bytes()).await.unwrap();
    let r = request(&mut server).await;
    assert_eq!(r.headers.path(), b"/1");
    // Trailers are dropped where they are not enabled.
    assert_eq!(body(&mut server).await.unwrap(), (b"abc".to_vec(), Headers::new()));
    assert!(poll_fn(|cx| Poll::Ready(server.poll_reset(cx).is_pending())).await);
    send(&mut server, 200, &[("content-length", "1")], &["1"]);
    assert_eq!(finish(&mut server).await, Finish::KeepAlive);
    assert_eq!(request(&mut server).await.headers.path(), b"/2");
    send(&mut server, 200, &[("content-length", "1")], &["2"]);
    assert_eq!(finish(&mut server).await, Finish::KeepAlive);
    let out = read_until(&mut client, "\r\n\r\n2").await;
    assert_eq!(out.matches("HTTP/1.1 200 OK").count(), 2);
    drop(client);
    assert!(matches!(next(&mut server).await, RequestEvent::Closed { partial: false }));
}

#[tokio::test]
async fn a_peer_that_goes_is_seen_while_the_upstream_works() {
    let (mut client, io) = duplex(64 * 1024);
    let mut server = server(io, |_| {});
    client.write_all(GET.as_bytes()).await.unwrap();
    request(&mut server).await;
    assert!(poll_fn(|cx| Poll::Ready(server.poll_reset(cx).is_pending())).await);
    drop(client);
    let error = deadline(poll_fn(|cx| server.poll_reset(cx))).await;
    assert_eq!(error.reason, ResetReason::ConnectionTermination);
    assert_eq!(finish(&mut server).await, CLOSE_EARLY);
}

#[tokio::test]
async fn a_body_that_breaks_off_or_is_broken_is_an_error() {
    for (rest, status) in [("3\r\nab", 0), ("3\r\nabcd\r\n", 400), ("z\r\n", 400)] {
        let (mut client, io) = duplex(64 * 1024);
        let mut server = server(io, |_| {});
        let text = format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{rest}");
        client.write_all(text.as_bytes()).await.unwrap();
        request(&mut server).await;
        client.shutdown().await.unwrap();
        let error = body(&mut server).await.expect_err(rest);
        assert_eq!(error.status, status, "{rest}");
        assert_eq!(error.details, if status == 400 { "http1.codec_error" } else { "" });
    }
}

#[tokio::test]
async fn a_tunnel_opens_only_with_the_answer() {
    for (head, status) in [
        ("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 101),
        ("CONNECT h:1 HTTP/1.1\r\nhost: h:1\r\n\r\n", 200),
    ] {
        let (mut client, io) = duplex(64 * 1024);
        let mut server = server(io, |_| {});
        client.write_all(format!("{head}early").as_bytes()).await.unwrap();
        let r = request(&mut server).await;
        assert!(r.upgrade && !r.end_stream);
        assert!(poll_fn(|cx| Poll::Ready(server.poll_frame(cx).is_pending())).await, "early data waits");
        server.send_headers(&response(status, &[("upgrade", "websocket")]), false).unwrap();
        flush(&mut server).await;
        let Ok(Frame::Data(data, false)) = frame(&mut server).await else { panic!("the early data") };
        assert_eq!(data, "early");
        server.send_data(Bytes::from_static(b"hello"), true).unwrap();
        flush(&mut server).await;
        // Half closed: the other direction goes on.
        let mut out = String::new();
        deadline(client.read_to_string(&mut out)).await.unwrap();
        assert!(out.ends_with("\r\n\r\nhello") && !out.contains("chunked") && !out.contains("close"), "{out}");
        client.write_all(b"more").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(body(&mut server).await.unwrap().0, b"more");
    }
}

#[tokio::test]
async fn a_refused_tunnel_ends_the_connection() {
    let ws =
        "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nGET /smuggled HTTP/1.1\r\n";
    let (out, f) = exchange(ws, |_| {}, |s| send(s, 403, &[], &[])).await;
    assert_eq!(out, "HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(f, CLOSE_EARLY);
    let connect = "CONNECT h:1 HTTP/1.1\r\nhost: h:1\r\n\r\n";
    let (_, f) = exchange(connect, |_| {}, |s| send(s, 404, &[], &[])).await;
    assert_eq!(f, CLOSE_EARLY);
}

#[tokio::test]
async fn continue_is_sent_on_request() {
    let post = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-Continue\r\ncontent-length: 2\r\n\r\n";
    let (mut client, io) = duplex(64 * 1024);
    let mut server = server(io, |_| {});
    client.write_all(post.as_bytes()).await.unwrap();
    assert!(request(&mut server).await.expect_continue);
    server.send_continue();
    flush(&mut server).await;
    assert_eq!(read_until(&mut client, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"ok").await.unwrap();
    assert_eq!(body(&mut server).await.unwrap().0, b"ok");
    send(&mut server, 200, &[], &[]);
    assert_eq!(finish(&mut server).await, Finish::KeepAlive);
}

#[tokio::test]
async fn a_slow_reader_stops_the_writer_and_nothing_is_lost() {
    let (mut client, io) = duplex(1000);
    let mut server = server(io, |c| c.buffer_limit = 32 * 1024);
    client.write_all(GET.as_bytes()).await.unwrap();
    request(&mut server).await;
    server.send_headers(&response(200, &[("content-length", "1000000")]), false).unwrap();
    let reader = tokio::spawn(async move {
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        all
    });
    let (mut sent, mut blocked) = (0usize, 0);
    while sent < 1_000_000 {
        let n = [10, 5_000, 30_000][sent % 3].min(1_000_000 - sent);
        let data: Vec<u8> = (sent..sent + n).map(|i| (i % 251) as u8).collect();
        if poll_fn(|cx| Poll::Ready(server.poll_capacity(cx).is_pending())).await {
            blocked += 1;
            deadline(poll_fn(|cx| server.poll_capacity(cx))).await.unwrap();
        }
        server.send_data(data.into(), sent + n == 1_000_000).unwrap();
        sent += n;
    }
    assert_eq!(finish(&mut server).await, Finish::KeepAlive);
    drop(server);
    let all = deadline(reader).await.unwrap();
    let at = all.len() - 1_000_000;
    assert!(blocked > 10, "{blocked}");
    assert!(all[at..].iter().enumerate().all(|(i, &b)| b == (i % 251) as u8));
}

#[tokio::test]
async fn a_response_is_never_longer_or_shorter_than_announced() {
    let (out, f) = exchange(GET, |_| {}, |s| send(s, 200, &[("content-length", "5")], &["abc"])).await;
    assert!(out.ends_with("\r\n\r\nabc"));
    assert_eq!(f, CLOSE, "only a close says that it is incomplete");
    let (out, f) = exchange(
        GET,
        |_| {},
        |s| {
            s.send_headers(&response(200, &[("content-length", "2")]), false).unwrap();
            assert!(s.send_data(Bytes::from_static(b"abc"), true).is_err());
        },
    )
    .await;
    assert!(out.ends_with("\r\n\r\n"));
    assert_eq!(f, CLOSE_EARLY);
}

/// A client that has sent `GET /` on a connection whose other end is given.
async fn asked(head: &[(&str, &str)]) -> (H1Client<DuplexStream>, DuplexStream, String) {
    let (io, mut far) = duplex(64 * 1024);
    let mut client = H1Client::new(io, Rc::new(client_config()));
    client.begin();
    client.send_headers(&headers(head), true).unwrap();
    flush(&mut client).await;
    let text = read_until(&mut far, "\r\n\r\n").await;
    (client, far, text)
}

const ASK: &[(&str, &str)] = &[(":authority", "h"), (":path", "/p"), (":method", "GET"), (":scheme", "http")];

async fn answer(client: &mut H1Client<DuplexStream>) -> Result<(Headers, bool), StreamError> {
    deadline(poll_fn(|cx| client.poll_headers(cx))).await
}

#[tokio::test]
async fn requests_are_written_with_the_framing_that_they_need() {
    let method =
        |m: &'static str| [(":authority", "h"), (":path", "/p"), (":method", m), (":scheme", "http"), ("x", "y")];
    assert_eq!(asked(&method("GET")).await.2, "GET /p HTTP/1.1\r\nhost: h\r\nx: y\r\n\r\n");
    assert_eq!(asked(&method("DELETE")).await.2, "DELETE /p HTTP/1.1\r\nhost: h\r\nx: y\r\n\r\n");
    assert_eq!(asked(&method("POST")).await.2, "POST /p HTTP/1.1\r\nhost: h\r\nx: y\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(
        asked(&[(":authority", "h:1"), (":method", "CONNECT")]).await.2,
        "CONNECT h:1 HTTP/1.1\r\nhost: h:1\r\n\r\n"
    );
}

#[tokio::test]
async fn informational_heads_come_before_the_final_one() {
    let (mut client, mut far, _) = asked(ASK).await;
    far.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        .await
        .unwrap();
    let (h, end) = answer(&mut client).await.unwrap();
    assert_eq!((show(&h).as_str(), end), (":status: 103|link: x", false));
    let (h, end) = answer(&mut client).await.unwrap();
    assert_eq!((show(&h).as_str(), end), (":status: 200|content-length: 2", false));
    assert!(!client.is_reusable());
    assert_eq!(body(&mut client).await.unwrap().0, b"ok");
    assert!(client.is_reusable() && client.response_complete());
    assert!(poll_fn(|cx| Poll::Ready(client.poll_idle(cx).is_pending())).await);
    // Bytes that nobody asked for, and a close, end it.
    far.write_all(b"HTTP/1.1 408 X\r\n\r\n").await.unwrap();
    deadline(poll_fn(|cx| client.poll_idle(cx))).await;
    assert!(!client.is_reusable());
}

#[tokio::test]
async fn the_end_of_a_response_is_known_or_it_is_an_error() {
    let (mut client, mut far, _) = asked(ASK).await;
    far.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil close").await.unwrap();
    drop(far);
    answer(&mut client).await.unwrap();
    assert_eq!(body(&mut client).await.unwrap().0, b"until close");
    assert!(!client.is_reusable());

    for partial in ["content-length: 9\r\n\r\nshort", "transfer-encoding: chunked\r\n\r\n5\r\nshort\r\n"] {
        let (mut client, mut far, _) = asked(ASK).await;
        far.write_all(format!("HTTP/1.1 200 OK\r\n{partial}").as_bytes()).await.unwrap();
        drop(far);
        answer(&mut client).await.unwrap();
        assert_eq!(body(&mut client).await.expect_err(partial).reason, ResetReason::ProtocolError);
    }

    let (mut client, far, _) = asked(ASK).await;
    drop(far);
    assert_eq!(answer(&mut client).await.expect_err("closed").reason, ResetReason::ConnectionTermination);
    let (mut client, mut far, _) = asked(ASK).await;
    far.write_all(b"garbage\r\n\r\n").await.unwrap();
    assert_eq!(answer(&mut client).await.expect_err("garbage").reason, ResetReason::ProtocolError);
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_spoils_the_connection() {
    let (io, mut far) = duplex(64 * 1024);
    let mut client = H1Client::new(io, Rc::new(client_config()));
    client.begin();
    client.send_headers(&headers(&[(":authority", "h"), (":path", "/"), (":method", "POST")]), false).unwrap();
    client.send_data(Bytes::from_static(b"part"), false).unwrap();
    flush(&mut client).await;
    far.write_all(b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    assert!(answer(&mut client).await.unwrap().1);
    client.send_data(Bytes::new(), true).unwrap();
    flush(&mut client).await;
    assert!(!client.is_reusable());
    assert!(read_until(&mut far, "0\r\n\r\n").await.ends_with("\r\n\r\n4\r\npart\r\n0\r\n\r\n"));
}

#[tokio::test]
async fn early_tunnel_data_waits_for_the_upstreams_consent() {
    let ws =
        [(":authority", "h"), (":path", "/"), (":method", "GET"), ("connection", "Upgrade"), ("upgrade", "websocket")];
    for accept in [true, false] {
        let (io, mut far) = duplex(64 * 1024);
        let mut client = H1Client::new(io, Rc::new(client_config()));
        client.begin();
        client.send_headers(&headers(&ws), false).unwrap();
        client.send_data(Bytes::from_static(b"early"), false).unwrap();
        flush(&mut client).await;
        let text = read_until(&mut far, "\r\n\r\n").await;
        assert_eq!(text, "GET / HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n");
        let answered = if accept {
            "101 Switching Protocols\r\nupgrade: websocket\r\n\r\nhello"
        } else {
            "200 OK\r\ncontent-length: 0\r\n\r\n"
        };
        far.write_all(format!("HTTP/1.1 {answered}").as_bytes()).await.unwrap();
        assert_eq!(answer(&mut client).await.unwrap().1, !accept);
        flush(&mut client).await;
        if accept {
            assert_eq!(read_until(&mut far, "early").await, "early");
            let Ok(Frame::Data(data, false)) = frame(&mut client).await else { panic!("data") };
            assert_eq!(data, "hello");
            client.send_data(Bytes::new(), true).unwrap();
            flush(&mut client).await;
        } else {
            drop(client);
        }
        let mut rest = Vec::new();
        deadline(far.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty(), "nothing follows");
    }
}

#[tokio::test]
async fn a_length_in_an_upgrade_request_does_not_bound_the_tunnel() {
    let ws = [
        (":authority", "h"),
        (":path", "/"),
        (":method", "GET"),
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("content-length", "0"),
    ];
    let (io, mut far) = duplex(64 * 1024);
    let mut client = H1Client::new(io, Rc::new(client_config()));
    client.begin();
    client.send_headers(&headers(&ws), false).unwrap();
    flush(&mut client).await;
    read_until(&mut far, "\r\n\r\n").await;
    far.write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n").await.unwrap();
    assert!(!answer(&mut client).await.unwrap().1);
    client.send_data(Bytes::from_static(b"hello"), true).unwrap();
    flush(&mut client).await;
    let mut rest = Vec::new();
    deadline(far.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"hello");
}

#[tokio::test]
async fn a_response_that_is_abandoned_does_not_hold_the_connection() {
    for complete in [true, false] {
        let (mut far, io) = duplex(1024);
        let mut server = server(io, |_| {});
        far.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        request(&mut server).await;
        server.send_headers(&response(200, &[]), false).unwrap();
        server.send_data(Bytes::from(vec![0; 4096]), complete).unwrap();
        assert!(poll_fn(|cx| Poll::Ready(server.poll_flush(cx).is_pending())).await, "more than the peer takes");
        assert!(poll_fn(|cx| Poll::Ready(server.poll_finish(cx).is_pending())).await);
        server.abandon();
        assert_eq!(finish(&mut server).await, CLOSE_EARLY);
    }
}

#[tokio::test]
async fn preserved_case_goes_through_and_added_names_stay_lower() {
    let (mut far_client, io) = duplex(64 * 1024);
    let mut server = server(io, |c| c.header_key_format = HeaderKeyFormat::PreserveCase);
    // In two pieces, so that a half-read head is looked at first.
    far_client.write_all(b"GET http://h:1/ HTTP/1.1\r\nX-Own-ID: 1\r\nHO").await.unwrap();
    assert!(poll_fn(|cx| Poll::Ready(server.poll_request(cx).is_pending())).await);
    far_client.write_all(b"st: a\r\nETag: q\r\n\r\n").await.unwrap();
    let mut r = request(&mut server).await;
    assert_eq!(show(&r.headers), ":authority: h:1|:path: /|:method: GET|:scheme: http|x-own-id: 1|etag: q");
    r.headers.append(names::VIA, HeaderValue::from_static("1.1 x"));

    let (io, mut far) = duplex(64 * 1024);
    let mut config = client_config();
    config.header_key_format = HeaderKeyFormat::PreserveCase;
    let mut client = H1Client::new(io, Rc::new(config));
    client.begin();
    client.send_headers(&r.headers, true).unwrap();
    flush(&mut client).await;
    let text = read_until(&mut far, "\r\n\r\n").await;
    assert_eq!(text, "GET / HTTP/1.1\r\nHOst: h:1\r\nX-Own-ID: 1\r\nETag: q\r\nvia: 1.1 x\r\n\r\n");
    far.write_all(b"HTTP/1.1 200 OK\r\nContent-LENGTH: 0\r\n\r\n").await.unwrap();
    let (h, end) = answer(&mut client).await.unwrap();
    server.send_headers(&h, end).unwrap();
    assert_eq!(finish(&mut server).await, Finish::KeepAlive);
    assert_eq!(read_until(&mut far_client, "\r\n\r\n").await, "HTTP/1.1 200 OK\r\nContent-LENGTH: 0\r\n\r\n");
}
