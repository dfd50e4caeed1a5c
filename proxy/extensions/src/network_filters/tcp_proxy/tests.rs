//! Sessions over real sockets.

use super::*;
use nuncio_base::drain::DrainHandle;
use nuncio_base::stats::StatsConfig;
use nuncio_config::address::{Address, EndpointAddress};
use nuncio_config::cluster::*;
use nuncio_config::tcp_proxy::ConnectMode;
use nuncio_net::connection::Io;
use nuncio_upstream::ClusterManagerOptions;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

fn cluster(addr: SocketAddr) -> ClusterConfig {
    let address = EndpointAddress::Resolved(Address::Socket(addr.into()));
    let group = LocalityEndpoints { endpoints: vec![Endpoint::new(address)], ..LocalityEndpoints::default() };
    ClusterConfig {
        endpoints: ClusterLoadAssignment { localities: vec![group], ..ClusterLoadAssignment::default() },
        ..ClusterConfig::new("a")
    }
}

fn config() -> TcpProxyConfig {
    TcpProxyConfig {
        stat_prefix: "t".into(),
        clusters: vec![("a".into(), 1)],
        metadata_match: Vec::new(),
        added_tlvs: Default::default(),
        tlv_merge: Default::default(),
        idle_timeout: None,
        max_downstream_connection_duration: None,
        max_downstream_connection_duration_jitter: 0.0,
        max_connect_attempts: 1,
        backoff: None,
        connect_mode: Default::default(),
        max_early_data: None,
        check_drain_close: false,
        access_logs: Vec::new(),
        access_log_flush_interval: None,
        flush_access_log_on_connected: false,
        flush_access_log_on_start: false,
        hash_policy: None,
        tunneling: None,
        on_demand: None,
        path: "".into(),
    }
}

struct Setup {
    registry: Registry,
    proxy: Rc<TcpProxy>,
}

impl Setup {
    fn new(upstream: Option<SocketAddr>, config: TcpProxyConfig) -> Setup {
        let registry = Registry::new(1, StatsConfig::default());
        let clusters = ClusterManager::new(ClusterManagerOptions {
            registry: registry.clone(),
            upstream_bind: BindConfig::default(),
            control: tokio::runtime::Handle::current(),
            outlier_events: None,
            tls_contexts: Default::default(),
            event_logs: None,
        });
        if let Some(addr) = upstream {
            clusters.add(Arc::new(cluster(addr))).expect("a cluster");
        }
        let proxy = TcpProxy::new(Arc::new(config), clusters, &registry, AccessLogs::default());
        let proxy = Rc::new(proxy.expect("a filter"));
        Setup { registry, proxy }
    }

    /// A client whose connection the proxy serves, and the end of the serving.
    async fn client(&self) -> (TcpStream, tokio::task::JoinHandle<()>) {
        let (listener, address) = listen().await;
        let client = TcpStream::connect(address).await.expect("connects");
        let (socket, peer) = listener.accept().await.expect("accepts");
        let mut io = Io::tcp(socket);
        let info = Rc::new(ConnectionInfo::new(address.into(), peer.into()));
        io.set_meter(info.bytes.clone());
        let connection = Connection { io, info, drain: DrainHandle::new().signal() };
        let proxy = self.proxy.clone();
        (client, tokio::task::spawn_local(async move { proxy.run(connection).await }))
    }

    fn count(&self, name: &str) -> u64 {
        self.registry.counter_value(name).expect("a counter")
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

#[tokio::test]
async fn bytes_go_both_ways_and_a_half_close_passes() {
    let (listener, address) = listen().await;
    tokio::task::LocalSet::new()
        .run_until(async {
            let setup = Setup::new(Some(address), config());
            let (mut client, served) = setup.client().await;
            client.write_all(b"ping").await.expect("sent");
            client.shutdown().await.expect("half closed");
            let (mut upstream, _) = listener.accept().await.expect("a connection");
            let mut got = Vec::new();
            upstream.read_to_end(&mut got).await.expect("read");
            assert_eq!(got, b"ping");
            upstream.write_all(b"ping pong").await.expect("sent");
            drop(upstream);
            got.clear();
            client.read_to_end(&mut got).await.expect("read");
            assert_eq!(got, b"ping pong");
            served.await.expect("it ends");
            assert_eq!(setup.count("tcp.t.downstream_cx_rx_bytes_total"), 4);
            assert_eq!(setup.count("tcp.t.downstream_cx_tx_bytes_total"), 9);
            assert_eq!(setup.count("cluster.a.upstream_cx_tx_bytes_total"), 4);
            assert_eq!(setup.count("cluster.a.upstream_cx_rx_bytes_total"), 9);
            assert_eq!(setup.count("cluster.a.upstream_cx_destroy_remote_with_active_rq"), 1);
        })
        .await;
}

#[tokio::test]
async fn connecting_is_tried_as_often_as_configured() {
    let (listener, address) = listen().await;
    drop(listener);
    tokio::task::LocalSet::new()
        .run_until(async {
            let setup = Setup::new(Some(address), TcpProxyConfig { max_connect_attempts: 3, ..config() });
            let (mut client, served) = setup.client().await;
            assert_eq!(client.read(&mut [0; 8]).await.expect("an orderly end"), 0);
            served.await.expect("it ends");
            assert_eq!(setup.count("cluster.a.upstream_cx_connect_fail"), 3);
            assert_eq!(setup.count("cluster.a.upstream_cx_connect_attempts_exceeded"), 1);
        })
        .await;
}

#[tokio::test]
async fn a_connection_without_a_cluster_is_closed_and_counted() {
    tokio::task::LocalSet::new()
        .run_until(async {
            let setup = Setup::new(None, config());
            let (mut client, served) = setup.client().await;
            assert_eq!(client.read(&mut [0; 8]).await.expect("an orderly end"), 0);
            served.await.expect("it ends");
            assert_eq!(setup.count("tcp.t.downstream_cx_no_route"), 1);
        })
        .await;
}

#[tokio::test]
async fn idle_and_long_sessions_end() {
    let (listener, address) = listen().await;
    tokio::task::LocalSet::new()
        .run_until(async {
            let short = Some(Duration::from_millis(20));
            for (config, stat) in [
                (TcpProxyConfig { idle_timeout: short, ..config() }, "tcp.t.idle_timeout"),
                (
                    TcpProxyConfig { max_downstream_connection_duration: short, ..config() },
                    "tcp.t.max_downstream_connection_duration",
                ),
            ] {
                let setup = Setup::new(Some(address), config);
                let (mut client, served) = setup.client().await;
                let (mut upstream, _) = listener.accept().await.expect("a connection");
                assert_eq!(client.read(&mut [0; 8]).await.expect("an orderly end"), 0);
                assert_eq!(upstream.read(&mut [0; 8]).await.expect("an orderly end"), 0);
                served.await.expect("it ends");
                assert_eq!(setup.count(stat), 1);
                assert_eq!(setup.count("cluster.a.upstream_cx_destroy_local"), 1);
            }
        })
        .await;
}

#[tokio::test]
async fn weights_choose_the_cluster() {
    let clusters = vec![("a".into(), 1), ("b".into(), 3)];
    let setup = Setup::new(None, TcpProxyConfig { clusters, ..config() });
    let chosen = |point| {
        let at = setup.proxy.choose_cluster(|total| if total == 4 { point } else { 99 })?;
        Some(&*setup.proxy.config.clusters[at].0)
    };
    assert_eq!([chosen(0), chosen(1), chosen(3)], [Some("a"), Some("b"), Some("b")]);
}

#[tokio::test]
async fn the_upstream_is_connected_when_data_comes_and_gets_it() {
    let (listener, address) = listen().await;
    tokio::task::LocalSet::new()
        .run_until(async {
            let connect_mode = ConnectMode::OnDownstreamData;
            let config = TcpProxyConfig { connect_mode, max_early_data: Some(100), ..config() };
            let setup = Setup::new(Some(address), config);
            let (mut client, served) = setup.client().await;
            tokio::task::yield_now().await;
            assert_eq!(setup.count("cluster.a.upstream_cx_total"), 0);
            client.write_all(b"first").await.expect("sent");
            let (mut upstream, _) = listener.accept().await.expect("a connection");
            client.write_all(b" second").await.expect("sent");
            client.shutdown().await.expect("half closed");
            let mut got = Vec::new();
            upstream.read_to_end(&mut got).await.expect("read");
            assert_eq!(got, b"first second");
            drop(upstream);
            assert_eq!(client.read(&mut [0; 8]).await.expect("an orderly end"), 0);
            served.await.expect("it ends");
            assert_eq!(setup.count("tcp.t.downstream_cx_rx_bytes_total"), 12);
            assert!(setup.count("tcp.t.early_data_received_count_total") >= 1);
        })
        .await;
}

#[tokio::test]
async fn a_client_that_ends_without_a_word_is_let_go() {
    tokio::task::LocalSet::new()
        .run_until(async {
            let connect_mode = ConnectMode::OnDownstreamData;
            let setup = Setup::new(None, TcpProxyConfig { connect_mode, max_early_data: Some(0), ..config() });
            let (mut client, served) = setup.client().await;
            client.shutdown().await.expect("half closed");
            assert_eq!(client.read(&mut [0; 8]).await.expect("an orderly end"), 0);
            served.await.expect("it ends");
            assert_eq!(setup.count("tcp.t.downstream_cx_no_route"), 0);
        })
        .await;
}

#[tokio::test]
async fn pauses_between_attempts_grow_to_their_maximum() {
    let backoff = Some((Duration::from_millis(10), Duration::from_millis(25)));
    let setup = Setup::new(None, TcpProxyConfig { backoff, ..config() });
    for (failed, most) in [(1, 10), (2, 20), (3, 25), (40, 25)] {
        let longest = (0..1000).filter_map(|_| setup.proxy.pause(failed)).max().expect("pauses");
        assert!(longest < Duration::from_millis(most), "{failed}: {longest:?}");
        assert!(longest >= Duration::from_millis(most * 9 / 10 - 1), "{failed}: {longest:?}");
    }
    assert_eq!(Setup::new(None, config()).proxy.pause(3), None);
}
