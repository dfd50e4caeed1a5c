//! Both ends against those of the `h2` crate: bodies both ways, trailers, many streams, tiny windows, resets.

use std::future::poll_fn;
use std::rc::Rc;

use bytes::Bytes;
use tokio::io::{DuplexStream, duplex};

use super::tests::{body, config, get, response, run, serve};
use super::{Config, H2Client, H2Request, H2Server};
use crate::codec::{ClientStream, Frame, ResetReason, ServerStream, Stream};
use crate::headers::names;

/// Windows and body sizes to play with.
const WINDOWS: [(u32, usize); 3] = [(65_535, 100_000), (1 << 20, 300_000), (100, 5_000)];

fn our_server(io: DuplexStream, change: impl FnOnce(&mut Config)) -> H2Server<DuplexStream> {
    let mut config = config();
    change(&mut config);
    H2Server::new(io, Rc::new(config))
}

/// Sends the request's body back, and its trailers.
async fn echo(mut request: H2Request) {
    let stream = &mut request.stream;
    if request.headers.path() == b"/reset" {
        stream.reset(ResetReason::LocalRefusedStreamReset);
        return;
    }
    stream.send_headers(&response(200, &[("x-method", "seen")]), request.end_stream).expect("sent");
    let mut done = request.end_stream;
    while !done {
        poll_fn(|cx| stream.poll_capacity(cx)).await.expect("capacity");
        match poll_fn(|cx| stream.poll_frame(cx)).await.expect("a frame") {
            Frame::Data(data, end) => {
                stream.send_data(data, end).expect("sent");
                done = end;
            }
            Frame::Trailers(trailers) => {
                stream.send_trailers(&trailers).expect("sent");
                done = true;
            }
        }
    }
    poll_fn(|cx| stream.poll_flush(cx)).await.expect("flushed");
}

/// Sends as much as flow control lets through, piece by piece.
async fn send_all(stream: &mut h2::SendStream<Bytes>, mut left: usize) {
    while left > 0 {
        stream.reserve_capacity(left.min(7000));
        let n = poll_fn(|cx| stream.poll_capacity(cx)).await.expect("open").expect("capacity").min(left);
        stream.send_data(Bytes::from(vec![b'x'; n]), false).expect("sent");
        left -= n;
    }
}

async fn receive_all(stream: &mut h2::RecvStream) -> Result<usize, h2::Error> {
    let mut n = 0;
    while let Some(data) = stream.data().await {
        let data = data?;
        n += data.len();
        stream.flow_control().release_capacity(data.len())?;
    }
    Ok(n)
}

#[tokio::test]
async fn the_server_serves_the_h2_crates_client() {
    run(async {
        for (window, size) in WINDOWS {
            let (a, b) = duplex(20_000);
            let server = our_server(a, |c| {
                c.options.initial_stream_window_size = window.max(65_535);
                c.options.initial_connection_window_size = window.max(65_535);
            });
            let ended = serve(server, echo);
            let mut builder = h2::client::Builder::new();
            builder.initial_window_size(window).initial_connection_window_size(window.max(65_535));
            let (client, connection) = builder.handshake::<_, Bytes>(b).await.expect("a handshake");
            let driver = tokio::task::spawn_local(connection);
            let mut exchanges = tokio::task::JoinSet::new();
            for i in 0..20 {
                let mut client = client.clone().ready().await.expect("ready");
                exchanges.spawn_local(async move {
                    let request = http::Request::post(format!("http://a/{i}")).header("x-i", i).body(()).expect("one");
                    let (answer, mut send) = client.send_request(request, false).expect("sent");
                    let sending = async {
                        send_all(&mut send, size).await;
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("t", "1".parse().expect("a value"));
                        send.send_trailers(trailers).expect("sent");
                    };
                    let receiving = async {
                        let mut body = answer.await.expect("a response").into_body();
                        let n = receive_all(&mut body).await.expect("a body");
                        let trailers = body.trailers().await.expect("an end").expect("trailers");
                        assert_eq!((n, trailers["t"].to_str().expect("text")), (size, "1"));
                    };
                    futures_util::future::join(sending, receiving).await;
                });
            }
            while let Some(done) = exchanges.join_next().await {
                done.expect("no panic");
            }
            let mut refused = client.clone().ready().await.expect("ready");
            let request = http::Request::get("http://a/reset").body(()).expect("one");
            let (answer, _) = refused.send_request(request, true).expect("sent");
            let error = answer.await.expect_err("a reset");
            assert_eq!(error.reason(), Some(h2::Reason::REFUSED_STREAM));
            drop((client, refused));
            driver.await.expect("no panic").expect("a good end");
            assert!(ended.await.expect("no panic").is_none());
        }
    })
    .await;
}

#[tokio::test]
async fn the_client_is_served_by_the_h2_crates_server() {
    run(async {
        for (window, size) in WINDOWS {
            let (a, b) = duplex(20_000);
            tokio::task::spawn_local(async move {
                let mut builder = h2::server::Builder::new();
                builder.initial_window_size(window).initial_connection_window_size(window.max(65_535));
                let mut connection = builder.max_concurrent_streams(50).handshake::<_, Bytes>(b).await.expect("one");
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::task::spawn_local(async move {
                        if request.uri().path() == "/reset" {
                            respond.send_reset(h2::Reason::REFUSED_STREAM);
                            return;
                        }
                        let mut body = request.into_body();
                        let informational = http::Response::builder().status(103).body(()).expect("a head");
                        respond.send_informational(informational).expect("sent");
                        let mut send = respond.send_response(http::Response::new(()), false).expect("sent");
                        let n = receive_all(&mut body).await.expect("a body");
                        send_all(&mut send, n).await;
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("n", n.to_string().parse().expect("a value"));
                        send.send_trailers(trailers).expect("sent");
                    });
                }
            });
            let mut config = config();
            config.options.initial_stream_window_size = window.max(65_535);
            config.options.initial_connection_window_size = window.max(65_535);
            let (sender, client) = H2Client::new(a, Rc::new(config));
            tokio::task::spawn_local(client);
            let mut exchanges = tokio::task::JoinSet::new();
            for _ in 0..20 {
                let sender = sender.clone();
                exchanges.spawn_local(async move {
                    let mut head = get("/");
                    head.set(names::METHOD, crate::headers::HeaderValue::from_static("POST"));
                    let mut stream = sender.new_stream(&head, false).expect("opened");
                    let mut left = size;
                    while left > 0 {
                        poll_fn(|cx| stream.poll_capacity(cx)).await.expect("capacity");
                        let n = left.min(30_000);
                        left -= n;
                        stream.send_data(Bytes::from(vec![b'y'; n]), left == 0).expect("sent");
                    }
                    let (head, _) = poll_fn(|cx| stream.poll_headers(cx)).await.expect("a head");
                    assert_eq!(head.status(), 103);
                    let (head, end) = poll_fn(|cx| stream.poll_headers(cx)).await.expect("a head");
                    assert_eq!((head.status(), end), (200, false));
                    let (n, trailers) = body(&mut stream).await.expect("a body");
                    assert_eq!((n, trailers.len()), (size, 1));
                });
            }
            while let Some(done) = exchanges.join_next().await {
                done.expect("no panic");
            }
            let mut stream = sender.new_stream(&get("/reset"), true).expect("opened");
            let error = poll_fn(|cx| stream.poll_headers(cx)).await.expect_err("a reset");
            assert_eq!(error.reason, ResetReason::RemoteRefusedStreamReset);
            drop(stream);
            assert_eq!((sender.active_streams(), sender.max_streams()), (0, 50));
        }
    })
    .await;
}
