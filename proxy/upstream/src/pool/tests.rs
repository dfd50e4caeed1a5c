//! Pools against servers in the test's process.

use super::*;
use crate::cluster_manager::{ClusterManager, ClusterManagerOptions};
use crate::lb::LbContext;
use crate::testing::config;
use nuncio_base::stats::{Registry, StatsConfig};
use nuncio_config::address::{Address, EndpointAddress};
use nuncio_config::cluster::{BindConfig, ClusterConfig, Endpoint, LocalityEndpoints};
use nuncio_http::headers::{HeaderName, HeaderValue, Headers};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

struct Setup {
    registry: Registry,
    manager: Arc<ClusterManager>,
}

impl Setup {
    fn new(addresses: &[SocketAddr], change: impl FnOnce(&mut ClusterConfig)) -> Setup {
        let registry = Registry::new(1, StatsConfig::default());
        let manager = ClusterManager::new(ClusterManagerOptions {
            registry: registry.clone(),
            upstream_bind: BindConfig::default(),
            control: tokio::runtime::Handle::current(),
            outlier_events: None,
            tls_contexts: Default::default(),
            event_logs: None,
        });
        let mut config = config();
        let endpoint = |addr: &SocketAddr| Endpoint::new(EndpointAddress::Resolved(Address::Socket((*addr).into())));
        config.endpoints.localities.push(LocalityEndpoints {
            endpoints: addresses.iter().map(endpoint).collect(),
            ..LocalityEndpoints::default()
        });
        change(&mut config);
        manager.add(Arc::new(config)).expect("a cluster");
        Setup { registry, manager }
    }

    fn cluster(&self) -> Arc<Cluster> {
        self.manager.cluster("a").expect("the cluster")
    }

    async fn stream(&self) -> Result<PooledStream, PoolFailure> {
        let cluster = self.cluster();
        let host = cluster.choose_host(&LbContext::default()).expect("a host");
        http_stream(&cluster, &host, &StreamOptions::default()).await
    }

    /// The stats with a value, without the prefix and those of response codes.
    fn counts(&self) -> Vec<String> {
        let snapshot = self.registry.snapshot();
        let all = snapshot.counters.into_iter().chain(snapshot.gauges);
        all.filter(|(_, value)| value.value != 0)
            .filter_map(|(name, value)| {
                let name = name.to_string();
                name.strip_prefix("cluster.a.").map(|name| format!("{name}={}", value.value))
            })
            .filter(|line| line.starts_with("upstream") || line.starts_with("circuit"))
            .collect()
    }

    fn count(&self, name: &str) -> u64 {
        let name = format!("cluster.a.{name}");
        self.registry.counter_value(&name).or_else(|| self.registry.gauge_value(&name)).expect("a stat")
    }

    /// Waits until a stat has this value.
    async fn reaches(&self, name: &str, value: u64) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while self.count(name) != value {
            assert!(tokio::time::Instant::now() < deadline, "{name} stays {}", self.count(name));
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

async fn run<F: Future>(test: F) -> F::Output {
    tokio::task::LocalSet::new().run_until(test).await
}

fn get() -> Headers {
    let mut headers = Headers::new();
    for (name, value) in [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")] {
        headers.append(HeaderName::parse(name).expect("a name"), HeaderValue::parse(value).expect("a value"));
    }
    headers
}

/// One exchange without bodies; the status.
async fn exchange(stream: &mut PooledStream) -> Result<u16, ResetReason> {
    stream.send_headers(&get(), true).map_err(|error| error.reason)?;
    poll_fn(|cx| stream.poll_flush(cx)).await.map_err(|error| error.reason)?;
    let (headers, end) = poll_fn(|cx| stream.poll_headers(cx)).await.map_err(|error| error.reason)?;
    let mut end = end;
    while !end {
        end = poll_fn(|cx| stream.poll_frame(cx)).await.map_err(|error| error.reason)?.is_end();
    }
    Ok(headers.status())
}

/// Reads one request and answers it.
async fn answer(socket: &mut TcpStream, response: &str) {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if socket.read(&mut byte).await.unwrap_or(0) == 0 {
            return;
        }
        seen.push(byte[0]);
    }
    socket.write_all(response.as_bytes()).await.expect("written");
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn a_connection_is_reused_and_its_end_is_noticed_while_idle() {
    let (listener, address) = listen().await;
    run(async {
        let setup = Setup::new(&[address], |_| {});
        let server = tokio::task::spawn_local(async move {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            answer(&mut socket, OK).await;
            answer(&mut socket, OK).await;
            (listener, socket)
        });
        let mut stream = setup.stream().await.expect("a stream");
        let first = stream.connection().id;
        assert_eq!(exchange(&mut stream).await, Ok(200));
        drop(stream);
        let mut stream = setup.stream().await.expect("a stream");
        assert_eq!((stream.connection().id, stream.requests_before()), (first, 1));
        assert_eq!(exchange(&mut stream).await, Ok(200));
        drop(stream);
        assert_eq!(
            setup.counts(),
            [
                "upstream_cx_http1_total=1",
                "upstream_cx_rx_bytes_total=80",
                "upstream_cx_total=1",
                "upstream_cx_tx_bytes_total=54",
                "upstream_rq_pending_total=1",
                "upstream_rq_total=2",
                "upstream_cx_active=1",
                "upstream_cx_rx_bytes_buffered=40",
            ]
        );
        drop(server.await.expect("the server ends"));
        setup.reaches("upstream_cx_destroy_remote", 1).await;
        assert_eq!(setup.count("upstream_cx_active"), 0);
        let host = setup.cluster().state().priority_set.host_sets[0].hosts[0].clone();
        assert_eq!(host.stats.cx_active.load(std::sync::atomic::Ordering::Relaxed), 0);
    })
    .await;
}

#[tokio::test]
async fn a_refused_connection_fails_what_waits() {
    let (listener, address) = listen().await;
    drop(listener);
    run(async {
        let setup = Setup::new(&[address], |_| {});
        let failure = setup.stream().await.expect_err("nobody listens");
        assert_eq!(failure.reason, ResetReason::RemoteConnectionFailure);
        assert_eq!(failure.transport_failure_reason.as_deref(), Some("delayed connect error: Connection refused"));
        assert_eq!(
            setup.counts(),
            [
                "upstream_cx_connect_fail=1",
                "upstream_cx_destroy=1",
                "upstream_cx_destroy_remote=1",
                "upstream_cx_http1_total=1",
                "upstream_cx_total=1",
                "upstream_rq_pending_failure_eject=1",
                "upstream_rq_pending_total=1",
            ]
        );
    })
    .await;
}

#[tokio::test]
async fn requests_wait_for_a_place_and_too_many_overflow() {
    let (listener, address) = listen().await;
    run(async {
        let setup = Setup::new(&[address], |config| {
            config.circuit_breakers.default.max_connections = 1;
            config.circuit_breakers.default.max_pending_requests = 1;
        });
        let setup = Rc::new(setup);
        let server = tokio::task::spawn_local(async move {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            answer(&mut socket, OK).await;
            answer(&mut socket, OK).await;
            socket
        });
        let mut first = setup.stream().await.expect("a stream");
        assert_eq!(setup.count("circuit_breakers.default.cx_open"), 1);
        let waiting = tokio::task::spawn_local({
            let setup = setup.clone();
            async move { exchange(&mut setup.stream().await.expect("a stream")).await }
        });
        setup.reaches("upstream_rq_pending_active", 1).await;
        assert_eq!(setup.count("upstream_cx_overflow"), 1);
        let failure = setup.stream().await.expect_err("too many wait");
        assert_eq!((failure.reason, setup.count("upstream_rq_pending_overflow")), (ResetReason::Overflow, 1));
        assert_eq!(exchange(&mut first).await, Ok(200));
        drop(first);
        assert_eq!(waiting.await.expect("it ends"), Ok(200));
        assert_eq!((setup.count("upstream_cx_total"), setup.count("upstream_rq_pending_active")), (1, 0));
        drop(server.await);
    })
    .await;
}

#[tokio::test]
async fn a_request_given_up_leaves_its_connection_to_the_next() {
    let (listener, address) = listen().await;
    run(async {
        let setup = Setup::new(&[address], |_| {});
        {
            let mut given_up = Box::pin(setup.stream());
            assert!(futures_util::poll!(&mut given_up).is_pending());
        }
        assert_eq!((setup.count("upstream_rq_cancelled"), setup.count("upstream_rq_pending_active")), (1, 0));
        let (mut socket, _) = listener.accept().await.expect("it still connects");
        let mut stream = setup.stream().await.expect("a stream");
        let (result, ()) = tokio::join!(exchange(&mut stream), answer(&mut socket, OK));
        assert_eq!((result, setup.count("upstream_cx_total")), (Ok(200), 1));
    })
    .await;
}

#[tokio::test]
async fn the_ends_of_connections_are_told_apart() {
    let (listener, address) = listen().await;
    run(async {
        let setup = Setup::new(&[address], |_| {});
        tokio::task::spawn_local(async move {
            for response in ["", "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", "garbage\r\n\r\n"]
            {
                let (mut socket, _) = listener.accept().await.expect("a connection");
                answer(&mut socket, response).await;
            }
        });
        let mut results = Vec::new();
        for _ in 0..3 {
            results.push(exchange(&mut setup.stream().await.expect("a stream")).await);
        }
        assert_eq!(results, [Err(ResetReason::ConnectionTermination), Ok(200), Err(ResetReason::ProtocolError)]);
        let count = |name| setup.count(name);
        assert_eq!(count("upstream_cx_destroy"), 3);
        assert_eq!(count("upstream_cx_destroy_remote_with_active_rq"), 1);
        assert_eq!(count("upstream_cx_close_notify"), 1);
        assert_eq!((count("upstream_cx_protocol_error"), count("upstream_cx_destroy_local_with_active_rq")), (1, 1));
        assert_eq!((count("upstream_rq_active"), count("upstream_cx_active")), (0, 0));
    })
    .await;
}

#[tokio::test]
async fn a_limit_on_requests_per_connection_closes_it() {
    let (listener, address) = listen().await;
    run(async {
        let setup = Setup::new(&[address], |config| config.http.max_requests_per_connection = Some(1));
        tokio::task::spawn_local(async move {
            loop {
                let (mut socket, _) = listener.accept().await.expect("a connection");
                tokio::task::spawn_local(async move { answer(&mut socket, OK).await });
            }
        });
        for _ in 0..2 {
            assert_eq!(exchange(&mut setup.stream().await.expect("a stream")).await, Ok(200));
        }
        assert_eq!((setup.count("upstream_cx_total"), setup.count("upstream_cx_max_requests")), (2, 2));
        assert_eq!(setup.count("upstream_cx_destroy_local"), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed_after_the_idle_timeout() {
    let (listener, address) = listen().await;
    run(async {
        let setup = Setup::new(&[address], |config| config.http.idle_timeout = Some(Duration::from_secs(60)));
        let server = tokio::task::spawn_local(async move {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            answer(&mut socket, OK).await;
            socket
        });
        assert_eq!(exchange(&mut setup.stream().await.expect("a stream")).await, Ok(200));
        let _socket = server.await.expect("answered");
        tokio::time::sleep(Duration::from_secs(59)).await;
        assert_eq!(setup.count("upstream_cx_active"), 1);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!((setup.count("upstream_cx_idle_timeout"), setup.count("upstream_cx_active")), (1, 0));
    })
    .await;
}

#[tokio::test]
async fn a_removed_cluster_closes_its_idle_connections() {
    let (listener, address) = listen().await;
    run(async {
        let setup = Setup::new(&[address], |config| config.added_via_api = true);
        let server = tokio::task::spawn_local(async move {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            answer(&mut socket, OK).await;
            socket
        });
        let cluster = setup.cluster();
        assert_eq!(exchange(&mut setup.stream().await.expect("a stream")).await, Ok(200));
        let mut socket = server.await.expect("answered");
        assert!(setup.manager.remove("a"));
        assert_eq!(socket.read(&mut [0; 8]).await.expect("an orderly end"), 0);
        assert_eq!((cluster.stats.upstream_cx_active().value(), setup.manager.len()), (0, 0));
    })
    .await;
}

#[tokio::test]
async fn a_request_that_waits_is_served_although_its_host_was_removed() {
    run(async {
        let (listener, address) = listen().await;
        let setup = Setup::new(&[address], |_| {});
        let cluster = setup.cluster();
        let mut waits = Box::pin(setup.stream());
        // The request is in the queue, and nothing is connected yet.
        assert!(futures_util::poll!(&mut waits).is_pending());
        cluster.update(Default::default());
        worker::of(&cluster).pools.host_set_changed(Some(&cluster));
        let server = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            answer(&mut socket, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        };
        let client = async { exchange(&mut waits.await.expect("a stream")).await };
        let (status, ()) = tokio::join!(client, server);
        assert_eq!(status.unwrap(), 200);
        assert_eq!(setup.count("upstream_cx_total"), 1);
    })
    .await;
}

#[tokio::test]
async fn http2_streams_share_a_connection() {
    let (listener, address) = listen().await;
    run(async {
        let setup = Setup::new(&[address], |config| config.http.protocol = UpstreamProtocol::Http2);
        tokio::task::spawn_local(async move {
            let (socket, _) = listener.accept().await.expect("a connection");
            let service = hyper::service::service_fn(|_| async {
                Ok::<_, std::convert::Infallible>(hyper::Response::new(String::from("ok")))
            });
            let io = hyper_util::rt::TokioIo::new(socket);
            let _ = hyper::server::conn::http2::Builder::new(LocalExecutor).serve_connection(io, service).await;
        });
        let (mut one, mut two) = {
            let (one, two) = tokio::join!(setup.stream(), setup.stream());
            (one.expect("a stream"), two.expect("a stream"))
        };
        assert_eq!(one.connection().id, two.connection().id);
        assert_eq!((setup.count("upstream_rq_active"), setup.count("upstream_cx_http2_total")), (2, 1));
        let (first, second) = tokio::join!(exchange(&mut one), exchange(&mut two));
        assert_eq!((first, second, one.protocol()), (Ok(200), Ok(200), Protocol::Http2));
        drop((one, two));
        let mut three = setup.stream().await.expect("a stream");
        assert_eq!(exchange(&mut three).await, Ok(200));
        drop(three);
        assert_eq!((setup.count("upstream_cx_total"), setup.count("upstream_rq_total")), (1, 3));
        assert_eq!((setup.count("upstream_rq_active"), setup.count("upstream_rq_tx_reset")), (0, 0));
    })
    .await;
}

/// An HTTP/2 server of few words: answers each request with 200 and a GOAWAY, `goaways` times, and waits for the end.
async fn answer_with_goaway(mut socket: TcpStream, goaways: usize) -> std::io::Result<()> {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        out.extend([kind, flags]);
        out.extend(stream.to_be_bytes());
        out.extend_from_slice(payload);
        out
    };
    socket.read_exact(&mut [0; 24]).await?;
    socket.write_all(&frame(4, 0, 0, &[])).await?;
    loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        socket.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if head[3] == 1 {
            let goaway = [&stream.to_be_bytes()[..], &[0; 4]].concat();
            let mut answer = frame(7, 0, 0, &goaway).repeat(goaways);
            answer.extend(frame(1, 5, stream, b"\x88"));
            socket.write_all(&answer).await?;
        }
    }
}

#[tokio::test]
async fn thousands_of_goaways_lose_no_request_and_leave_no_connection() {
    let (listener, address) = listen().await;
    run(async {
        let setup = Setup::new(&[address], |config| config.http.protocol = UpstreamProtocol::Http2);
        tokio::task::spawn_local(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::task::spawn_local(answer_with_goaway(socket, 1));
            }
        });
        for served in 1..=2_000 {
            let mut stream = setup.stream().await.expect("a stream");
            assert_eq!(exchange(&mut stream).await, Ok(200), "request {served}");
            drop(stream);
            assert!(setup.count("upstream_cx_active") <= 4, "connections pile up");
        }
        setup.reaches("upstream_cx_active", 0).await;
        assert_eq!((setup.count("upstream_cx_total"), setup.count("upstream_rq_total")), (2_000, 2_000));
        assert_eq!((setup.count("upstream_rq_active"), setup.count("upstream_rq_pending_active")), (0, 0));
        assert_eq!(setup.count("upstream_cx_rx_bytes_buffered"), 0);
    })
    .await;
}

#[tokio::test]
async fn many_goaways_on_one_connection_are_one() {
    let (listener, address) = listen().await;
    run(async {
        let setup = Setup::new(&[address], |config| config.http.protocol = UpstreamProtocol::Http2);
        tokio::task::spawn_local(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::task::spawn_local(answer_with_goaway(socket, 2_000));
            }
        });
        for served in 1..=3 {
            let mut stream = setup.stream().await.expect("a stream");
            assert_eq!(exchange(&mut stream).await, Ok(200));
            assert_eq!(setup.count("upstream_cx_total"), served);
        }
        setup.reaches("upstream_cx_active", 0).await;
    })
    .await;
}

#[derive(Clone)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

#[tokio::test]
async fn a_tcp_connection_is_counted_until_it_is_dropped() {
    let (listener, address) = listen().await;
    run(async {
        let setup = Setup::new(&[address], |config| config.circuit_breakers.default.max_connections = 1);
        let cluster = setup.cluster();
        let host = cluster.choose_host(&LbContext::default()).expect("a host");
        let options = StreamOptions::default();
        let mut upstream = tcp_connect(&cluster, &host, &options).await.expect("a connection");
        let failure = tcp_connect(&cluster, &host, &options).await.expect_err("one is the limit");
        assert_eq!((failure.reason, setup.count("upstream_cx_overflow")), (ResetReason::Overflow, 1));
        let (mut socket, _) = listener.accept().await.expect("a connection");
        upstream.io.write_all(b"ping").await.expect("sent");
        let mut got = [0; 4];
        socket.read_exact(&mut got).await.expect("received");
        upstream.ended_by_host();
        drop(upstream);
        assert_eq!((setup.count("upstream_cx_tx_bytes_total"), setup.count("upstream_cx_active")), (4, 0));
        assert_eq!(setup.count("upstream_cx_destroy_remote_with_active_rq"), 1);
    })
    .await;
}

/// Answers every request on every connection.
fn answer_all(listener: TcpListener) {
    tokio::task::spawn_local(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                loop {
                    let mut byte = [0];
                    if socket.peek(&mut byte).await.unwrap_or(0) == 0 {
                        return;
                    }
                    answer(&mut socket, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            });
        }
    });
}

fn pools(cluster: &Cluster) -> u32 {
    cluster.resource_manager(ResourcePriority::Default).count(Resource::ConnectionPools)
}

#[tokio::test]
async fn preconnecting_counts_what_connections_have_free() {
    let (listener, address) = listen().await;
    run(async {
        answer_all(listener);
        let setup = Setup::new(&[address], |config| config.preconnect.per_upstream_ratio = 1500);
        for _ in 0..8 {
            let mut stream = setup.stream().await.expect("a stream");
            exchange(&mut stream).await.expect("an answer");
            drop(stream);
            setup.reaches("upstream_cx_active", 2).await;
        }
        assert_eq!(setup.count("upstream_cx_total"), 2);
    })
    .await;
}

#[tokio::test]
async fn a_burst_to_an_unknown_protocol_opens_one_connection_and_is_served_all_the_same() {
    let (listener, address) = listen().await;
    run(async {
        answer_all(listener);
        let setup = Setup::new(&[address], |config| config.http.protocol = UpstreamProtocol::Auto);
        let mut burst: Vec<_> = (0..20).map(|_| Box::pin(setup.stream())).collect();
        for stream in &mut burst {
            poll_fn(|cx| {
                assert!(stream.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
        }
        assert_eq!(setup.count("upstream_cx_active"), 1);
        for stream in burst {
            exchange(&mut stream.await.expect("a stream")).await.expect("an answer");
        }
    })
    .await;
}

async fn stream_of(cluster: &Arc<Cluster>, downstream_connection: u64) -> Result<PooledStream, PoolFailure> {
    let host = cluster.choose_host(&LbContext::default()).expect("a host");
    http_stream(cluster, &host, &StreamOptions { downstream_connection, ..StreamOptions::default() }).await
}

#[tokio::test]
async fn a_pool_of_one_user_goes_when_its_host_closes_right_after_the_answer() {
    let (listener, address) = listen().await;
    run(async {
        let server = tokio::task::spawn_local(async move {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            answer(&mut socket, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        });
        let setup = Setup::new(&[address], |config| config.connection_pool_per_downstream_connection = true);
        let cluster = setup.cluster();
        let mut stream = stream_of(&cluster, 7).await.expect("a stream");
        exchange(&mut stream).await.expect("an answer");
        assert_eq!(pools(&cluster), 1);
        server.await.expect("the server ends");
        drop(stream);
        setup.reaches("upstream_cx_active", 0).await;
        assert_eq!(pools(&cluster), 0);
    })
    .await;
}

#[tokio::test]
async fn a_pool_that_nobody_uses_makes_room_for_another() {
    let (listener, address) = listen().await;
    run(async {
        answer_all(listener);
        let setup = Setup::new(&[address], |config| {
            config.connection_pool_per_downstream_connection = true;
            config.circuit_breakers.default.max_connection_pools = Some(1);
        });
        let cluster = setup.cluster();
        let mut first = stream_of(&cluster, 1).await.expect("a stream");
        exchange(&mut first).await.expect("an answer");
        let overflow = stream_of(&cluster, 2).await.expect_err("the only pool is in use");
        assert_eq!(overflow.reason, ResetReason::Overflow);
        drop(first);
        let mut second = stream_of(&cluster, 2).await.expect("a stream");
        exchange(&mut second).await.expect("an answer");
        assert_eq!((pools(&cluster), setup.count("upstream_cx_pool_overflow")), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn a_pool_of_a_cluster_that_is_gone_goes_after_its_last_request() {
    let (listener, address) = listen().await;
    run(async {
        answer_all(listener);
        let setup = Setup::new(&[address], |_| {});
        let cluster = setup.cluster();
        cluster.mark_removed();
        let mut stream = stream_of(&cluster, 0).await.expect("a stream");
        exchange(&mut stream).await.expect("an answer");
        assert_eq!(pools(&cluster), 1);
        drop(stream);
        setup.reaches("upstream_cx_active", 0).await;
        assert_eq!(pools(&cluster), 0);
    })
    .await;
}
