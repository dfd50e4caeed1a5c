//! The two ends against each other and against scripted frames, in memory.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use nuncio_base::stats::{Registry, StatsConfig};
use nuncio_config::hcm::{Http2Options, UnderscoresAction};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::LocalSet;

use super::*;
use crate::codec::h1::parse::Limits;
use crate::codec::stats::Http2Stats;
use crate::codec::{ClientStream, Frame, ResetReason, ServerStream, Stream, StreamError};
use crate::headers::{HeaderName, HeaderValue, Headers, names, status_value};

const LIMITS: Limits = Limits { max_bytes: 60 * 1024, max_count: 100 };

fn stats() -> Http2Stats {
    Http2Stats::new(&Registry::new(1, StatsConfig::default()), "http2.")
}

fn options() -> Http2Options {
    Http2Options { allow_connect: true, ..Http2Options::default() }
}

fn server(io: DuplexStream, change: impl FnOnce(&mut Config)) -> H2Server<DuplexStream> {
    let mut config = config();
    change(&mut config);
    H2Server::new(io, Rc::new(config))
}

/// What both ends are given unless a test says otherwise.
pub(super) fn config() -> Config {
    Config {
        options: options(),
        limits: LIMITS,
        underscores: UnderscoresAction::Allow,
        stream_error_on_invalid_http_message: false,
        buffer_limit: 1024 * 1024,
        runtime: None,
        stats: stats(),
    }
}

async fn client(io: DuplexStream) -> H2Sender {
    let (sender, connection) = H2Client::new(io, Rc::new(config()));
    tokio::task::spawn_local(connection);
    sender
}

fn headers(lines: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in lines {
        headers
            .append(HeaderName::parse(name).expect("a name"), HeaderValue::parse(value.to_string()).expect("a value"));
    }
    headers
}

pub(super) fn response(status: u16, lines: &[(&str, &str)]) -> Headers {
    let mut h = headers(lines);
    h.set(names::STATUS, status_value(status));
    h
}

pub(super) fn get(path: &str) -> Headers {
    headers(&[(":authority", "h"), (":path", path), (":method", "GET"), (":scheme", "http")])
}

fn show(headers: &Headers) -> String {
    headers.iter().map(|(n, v)| format!("{n}: {}", v.as_bytes().escape_ascii())).collect::<Vec<_>>().join("|")
}

pub(super) async fn run<F: Future>(test: F) -> F::Output {
    LocalSet::new()
        .run_until(async { tokio::time::timeout(Duration::from_secs(10), test).await.expect("in time") })
        .await
}

async fn frame(stream: &mut impl Stream) -> Result<Frame, StreamError> {
    poll_fn(|cx| stream.poll_frame(cx)).await
}

pub(super) async fn body(stream: &mut impl Stream) -> Result<(usize, Headers), StreamError> {
    let mut n = 0;
    loop {
        match frame(stream).await? {
            Frame::Data(data, end) => {
                n += data.len();
                if end {
                    return Ok((n, Headers::new()));
                }
            }
            Frame::Trailers(trailers) => return Ok((n, trailers)),
        }
    }
}

/// Answers each request with `answer`, until the connection ends.
pub(super) fn serve<F, Fut>(
    mut server: H2Server<DuplexStream>,
    answer: F,
) -> tokio::task::JoinHandle<Option<StreamError>>
where
    F: Fn(H2Request) -> Fut + 'static,
    Fut: Future<Output = ()> + 'static,
{
    tokio::task::spawn_local(async move {
        loop {
            match poll_fn(|cx| server.poll_accept(cx)).await {
                Some(Ok(request)) => {
                    tokio::task::spawn_local(answer(request));
                }
                Some(Err(error)) => return Some(error),
                None => return None,
            }
        }
    })
}

#[tokio::test]
async fn bodies_and_trailers_go_both_ways() {
    run(async {
        let (a, b) = duplex(64 * 1024);
        serve(server(a, |_| {}), |mut r| async move {
            assert_eq!(
                show(&r.headers),
                ":authority: h|:path: /p?q|:method: POST|:scheme: http|x-own: 1|cookie: a=1; b=2"
            );
            let (n, trailers) = body(&mut r.stream).await.expect("a body");
            assert_eq!((n, show(&trailers)), (300_000, "t: 1".into()));
            r.stream.send_headers(&response(200, &[("x", "y"), ("connection", "close")]), false).expect("sent");
            for _ in 0..30 {
                poll_fn(|cx| r.stream.poll_capacity(cx)).await.expect("capacity");
                r.stream.send_data(Bytes::from(vec![0; 10_000]), false).expect("sent");
            }
            r.stream.send_trailers(&headers(&[("grpc-status", "0")])).expect("sent");
        });
        let sender = client(b).await;
        let mut head = headers(&[(":authority", "h"), (":path", "/p?q"), (":method", "POST"), (":scheme", "http")]);
        for (n, v) in [("cookie", "a=1"), ("x-own", "1"), ("cookie", "b=2"), ("te", "gzip"), ("keep-alive", "5")] {
            head.append(HeaderName::parse(n).expect("a name"), HeaderValue::parse(v).expect("a value"));
        }
        let mut stream = sender.new_stream(&head, false).expect("opened");
        for _ in 0..3 {
            poll_fn(|cx| stream.poll_capacity(cx)).await.expect("capacity");
            stream.send_data(Bytes::from(vec![0; 100_000]), false).expect("sent");
        }
        stream.send_trailers(&headers(&[("t", "1")])).expect("sent");
        let (h, end) = poll_fn(|cx| stream.poll_headers(cx)).await.expect("a response");
        assert_eq!((show(&h), end), (":status: 200|x: y".into(), false));
        let (n, trailers) = body(&mut stream).await.expect("a body");
        assert_eq!((n, show(&trailers)), (300_000, "grpc-status: 0".into()));
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_is_an_extended_connect_on_the_wire() {
    run(async {
        let (a, b) = duplex(64 * 1024);
        serve(server(a, |_| {}), |mut r| async move {
            assert!(r.upgrade && !r.end_stream);
            assert_eq!(
                show(&r.headers),
                ":authority: h|:path: /|:method: GET|:scheme: http|connection: upgrade|upgrade: websocket"
            );
            let accepted = response(101, &[("connection", "Upgrade"), ("upgrade", "websocket")]);
            r.stream.send_headers(&accepted, false).expect("sent");
            let Ok(Frame::Data(data, false)) = frame(&mut r.stream).await else { panic!("data") };
            r.stream.send_data(data, true).expect("sent");
        });
        let sender = client(b).await;
        let mut h = get("/");
        h.append(names::CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        h.append(names::UPGRADE, HeaderValue::from_static("websocket"));
        let mut stream = sender.new_stream(&h, false).expect("opened");
        let (h, _) = poll_fn(|cx| stream.poll_headers(cx)).await.expect("a response");
        assert_eq!(show(&h), ":status: 101|connection: upgrade|upgrade: websocket");
        stream.send_data(Bytes::from_static(b"echo"), false).expect("sent");
        assert_eq!(body(&mut stream).await.expect("a body").0, 4);
    })
    .await;
}

#[tokio::test]
async fn a_reset_is_seen_by_the_other_side_with_its_reason() {
    run(async {
        let (a, b) = duplex(64 * 1024);
        serve(server(a, |_| {}), |mut r| async move {
            let reason = match r.headers.path() {
                b"/refuse" => ResetReason::LocalRefusedStreamReset,
                _ => ResetReason::LocalReset,
            };
            r.stream.reset(reason);
        });
        let sender = client(b).await;
        for (path, reason) in [("/refuse", ResetReason::RemoteRefusedStreamReset), ("/reset", ResetReason::RemoteReset)]
        {
            let mut stream = sender.new_stream(&get(path), true).expect("opened");
            let error = poll_fn(|cx| stream.poll_headers(cx)).await.expect_err("reset");
            assert_eq!(error.reason, reason);
        }
        assert!(sender.is_usable());
    })
    .await;
}

#[tokio::test]
async fn a_dropped_client_stream_cancels_the_request() {
    run(async {
        let (a, b) = duplex(64 * 1024);
        let (tell, told) = tokio::sync::oneshot::channel();
        let tell = std::cell::Cell::new(Some(tell));
        serve(server(a, |_| {}), move |mut r| {
            let tell = tell.take();
            async move {
                let error = poll_fn(|cx| r.stream.poll_reset(cx)).await;
                tell.expect("one request").send(error).expect("heard");
            }
        });
        let sender = client(b).await;
        let stream = sender.new_stream(&get("/"), true).expect("opened");
        tokio::task::yield_now().await;
        drop(stream);
        assert_eq!(told.await.expect("told").reason, ResetReason::RemoteReset);
    })
    .await;
}

#[tokio::test]
async fn a_slow_reader_stops_the_writer() {
    run(async {
        let (a, b) = duplex(1024);
        serve(server(a, |c| c.buffer_limit = 64 * 1024), |mut r| async move {
            r.stream.send_headers(&response(200, &[]), false).expect("sent");
            let mut sent = 0usize;
            let blocked = poll_fn(|cx| {
                while r.stream.poll_capacity(cx).is_ready() {
                    r.stream.send_data(Bytes::from(vec![0; 16 * 1024]), false).expect("sent");
                    sent += 16 * 1024;
                    if sent > 1024 * 1024 {
                        return std::task::Poll::Ready(false);
                    }
                }
                std::task::Poll::Ready(true)
            })
            .await;
            assert!(blocked, "{sent} bytes were taken");
            assert!(sent <= 160 * 1024, "{sent} bytes were taken");
            r.stream.send_data(Bytes::new(), true).expect("sent");
        });
        let sender = client(b).await;
        let mut stream = sender.new_stream(&get("/"), true).expect("opened");
        poll_fn(|cx| stream.poll_headers(cx)).await.expect("a response");
        assert!(body(&mut stream).await.expect("a body").0 > 0);
    })
    .await;
}

#[tokio::test]
async fn a_graceful_shutdown_lets_running_streams_end() {
    run(async {
        let (a, b) = duplex(64 * 1024);
        let mut server = server(a, |_| {});
        let sender = client(b).await;
        let mut stream = sender.new_stream(&get("/"), true).expect("opened");
        let mut r = poll_fn(|cx| server.poll_accept(cx)).await.expect("a request").expect("a request");
        assert_eq!(server.active_streams(), 1);
        server.graceful_shutdown();
        let ended = serve(server, |_| async {});
        r.stream.send_headers(&response(200, &[]), true).expect("sent");
        assert!(poll_fn(|cx| stream.poll_headers(cx)).await.expect("a response").1);
        drop((stream, r));
        assert!(ended.await.expect("ended").is_none());
        assert!(!sender.is_usable());
    })
    .await;
}

#[tokio::test]
async fn too_many_headers_reset_the_stream_and_cookie_crumbs_count() {
    run(async {
        let (a, b) = duplex(64 * 1024);
        serve(server(a, |_| {}), |mut r| async move {
            r.stream.send_headers(&response(200, &[]), true).expect("sent");
        });
        let sender = client(b).await;
        let with = |n: usize| {
            let mut h = get("/");
            for i in 0..n {
                h.append(names::COOKIE, HeaderValue::parse(format!("c{i}=1")).expect("a value"));
            }
            h
        };
        let mut stream = sender.new_stream(&with(96), true).expect("opened");
        assert_eq!(poll_fn(|cx| stream.poll_headers(cx)).await.expect("a response").0.status(), 200);
        let mut stream = sender.new_stream(&with(97), true).expect("opened");
        assert!(poll_fn(|cx| stream.poll_headers(cx)).await.is_err());
        assert!(sender.is_usable());
    })
    .await;
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn raw_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut f = vec![0, (payload.len() >> 8) as u8, payload.len() as u8, kind, flags];
    f.extend_from_slice(&stream.to_be_bytes());
    f.extend_from_slice(payload);
    f
}

/// Sends a preface, settings and then `frames` again and again until the server ends the connection.
async fn flood(
    frames: impl Fn(u32) -> Vec<u8> + 'static,
    change: impl FnOnce(&mut Config),
    read: bool,
) -> (Option<StreamError>, Http2Stats) {
    let (a, b) = duplex(4096);
    let mut stats = None;
    let server = server(a, |c| {
        change(c);
        stats = Some(c.stats.clone());
    });
    let ended = serve(server, |mut r| async move {
        poll_fn(|cx| r.stream.poll_reset(cx)).await;
    });
    let (mut reader, mut writer) = tokio::io::split(b);
    tokio::task::spawn_local(async move {
        let mut sink = [0; 4096];
        while read && reader.read(&mut sink).await.is_ok_and(|n| n > 0) {}
        std::future::pending::<()>().await;
    });
    tokio::task::spawn_local(async move {
        let mut start = PREFACE.to_vec();
        start.extend(raw_frame(4, 0, 0, &[]));
        let mut result = writer.write_all(&start).await;
        for i in 0..100_000 {
            if result.is_err() {
                break;
            }
            result = writer.write_all(&frames(i)).await;
        }
    });
    let error = tokio::time::timeout(Duration::from_secs(5), ended).await.expect("in time").expect("no panic");
    (error, stats.expect("stats"))
}

/// `GET / http h` in HPACK.
const REQUEST: &[u8] = &[0x82, 0x84, 0x86, 0x01, 1, b'h'];

#[tokio::test]
async fn floods_end_the_connection_and_are_counted() {
    run(async {
        let (error, stats) = flood(|_| raw_frame(2, 0, 1, &[0, 0, 0, 0, 1]), |_| {}, true).await;
        assert_eq!(error.expect("an error").reason, ResetReason::ProtocolError);
        assert_eq!(stats.inbound_priority_frames_flood().value(), 1);

        let (error, stats) = flood(|_| raw_frame(8, 0, 0, &[0, 0, 0, 1]), |_| {}, true).await;
        assert_eq!(error.expect("an error").reason, ResetReason::ProtocolError);
        assert_eq!(stats.inbound_window_update_frames_flood().value(), 1);

        let empty = |i| if i == 0 { raw_frame(1, 4, 1, REQUEST) } else { raw_frame(0, 0, 1, &[]) };
        let (error, stats) = flood(empty, |_| {}, true).await;
        assert_eq!(error.expect("an error").details, "http2.inbound_empty_frames_flood");
        assert_eq!(stats.inbound_empty_frames_flood().value(), 1);

        let (error, stats) = flood(|_| raw_frame(6, 0, 0, &[0; 8]), |_| {}, false).await;
        assert_eq!(error.expect("an error").details, "http2.outbound_frames_flood");
        assert_eq!(stats.outbound_control_flood().value(), 1);
    })
    .await;
}

#[tokio::test]
async fn pings_that_are_answered_and_read_are_no_flood() {
    run(async {
        let (a, b) = duplex(64 * 1024);
        let server = server(a, |_| {});
        serve(server, |_| async {});
        let (mut reader, mut writer) = tokio::io::split(b);
        writer.write_all(PREFACE).await.expect("written");
        writer.write_all(&raw_frame(4, 0, 0, &[])).await.expect("written");
        let acks = tokio::task::spawn_local(async move {
            let (mut all, mut acks) = (Vec::new(), 0);
            while acks < 3000 {
                reader.read_buf(&mut all).await.expect("open");
                while all.len() >= 9 {
                    let n = 9 + (usize::from(all[1]) << 8 | usize::from(all[2]));
                    if all.len() < n {
                        break;
                    }
                    acks += usize::from(all[3] == 6 && all[4] == 1);
                    all.drain(..n);
                }
            }
        });
        for _ in 0..3000 {
            writer.write_all(&raw_frame(6, 0, 0, &[0; 8])).await.expect("written");
        }
        acks.await.expect("all answered");
    })
    .await;
}

#[tokio::test]
async fn a_malformed_request_ends_the_connection_unless_told_otherwise() {
    run(async {
        // `connection: close`, a literal with the name at length 10.
        let mut bad = REQUEST.to_vec();
        bad.extend([0x00, 10]);
        bad.extend(b"connection");
        bad.extend([5]);
        bad.extend(b"close");
        for lenient in [false, true] {
            let (a, mut b) = duplex(64 * 1024);
            let ended = serve(server(a, |c| c.stream_error_on_invalid_http_message = lenient), |mut r| async move {
                r.stream.send_headers(&response(200, &[]), true).expect("sent");
            });
            let mut start = PREFACE.to_vec();
            start.extend(raw_frame(4, 0, 0, &[]));
            start.extend(raw_frame(1, 5, 1, &bad));
            start.extend(raw_frame(1, 5, 3, REQUEST));
            b.write_all(&start).await.expect("written");
            let (mut all, mut seen) = (Vec::new(), Vec::new());
            while !seen.contains(&(1, 3)) {
                if b.read_buf(&mut all).await.expect("open") == 0 {
                    break;
                }
                while all.len() >= 9 {
                    let n = 9 + (usize::from(all[1]) << 8 | usize::from(all[2]));
                    if all.len() < n {
                        break;
                    }
                    seen.push((all[3], all[8]));
                    all.drain(..n);
                }
            }
            assert_eq!(seen.contains(&(3, 1)), lenient, "{seen:?}");
            drop(b);
            ended.await.expect("no panic");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_found_by_pings() {
    run(async {
        let (a, mut b) = duplex(64 * 1024);
        let mut stats = None;
        let server = server(a, |c| {
            c.options.keepalive_interval = Some(Duration::from_secs(1));
            c.options.keepalive_timeout = Duration::from_secs(2);
            stats = Some(c.stats.clone());
        });
        let ended = serve(server, |_| async {});
        b.write_all(PREFACE).await.expect("written");
        b.write_all(&raw_frame(4, 0, 0, &[])).await.expect("written");
        let error = ended.await.expect("ended").expect("an error");
        assert_eq!(error.reason, ResetReason::ConnectionTermination);
        assert_eq!(stats.expect("stats").keepalive_timeout().value(), 1);
    })
    .await;
}
