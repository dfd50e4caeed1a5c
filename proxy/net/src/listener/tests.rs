//! Listeners over loopback sockets.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use nuncio_base::drain::{DrainHandle, DrainStrategy};
use nuncio_base::stats::{Registry, StatsConfig};
use nuncio_config::address as config;
use nuncio_config::listener::{
    FilterChainConfig, FilterChainMatch, ListenerConfig, ListenerFilterConfig, ProxyProtocolConfig, TrafficDirection,
};
use nuncio_config::tls::CertificateSource;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use super::*;
use crate::connection::{Io, LocalClose, Plain};
use crate::tls::client::{ClientTarget, ClientTlsContext};
use crate::tls::testing::{downstream, self_signed, upstream};

const LONG: Duration = Duration::from_secs(20);

fn chain(name: &str, matches: FilterChainMatch) -> FilterChainConfig {
    FilterChainConfig {
        name: name.into(),
        matches,
        filters: Vec::new(),
        tls: None,
        transport_socket: None,
        transport_socket_connect_timeout: Duration::ZERO,
        metadata: None,
        fingerprint: 0,
        path: "".into(),
    }
}

fn listener_config(chains: Vec<FilterChainConfig>, filters: Vec<ListenerFilterConfig>) -> ListenerConfig {
    let addr: std::net::SocketAddr = "127.0.0.1:0".parse().expect("an address");
    ListenerConfig {
        name: "test".into(),
        addresses: vec![config::Address::Socket(addr.into()).into()],
        metadata: None,
        stat_prefix: Some("t".into()),
        filter_chains: chains.into_iter().map(Arc::new).collect(),
        default_filter_chain: None,
        use_original_dst: false,
        per_connection_buffer_limit_bytes: 1 << 20,
        listener_filters_disabled: Vec::new(),
        stats_matcher: None,
        listener_filters: filters,
        listener_filters_timeout: LONG,
        continue_on_listener_filters_timeout: false,
        transparent: None,
        freebind: None,
        socket_options: Vec::new(),
        tcp_keepalive: None,
        tcp_fast_open_queue_length: None,
        traffic_direction: TrafficDirection::Inbound,
        enable_reuse_port: true,
        bind_to_port: true,
        tcp_backlog_size: None,
        drain_modify_only: false,
        ignore_global_conn_limit: false,
        max_connections_to_accept_per_socket_event: None,
        connection_limit: None,
        filter_chain_matcher: None,
        access_logs: Vec::new(),
        frame_fingerprint: 0,
        path: "listeners[0]".into(),
    }
}

/// Answers with the name of its chain and what is known, then echoes until the peer or a drain ends it.
struct Echo(String);

impl FilterChainFactory for Echo {
    fn create(&self) -> Rc<dyn FilterChainHandler> {
        Rc::new(EchoHandler(self.0.clone(), Cell::new(0)))
    }
}

struct EchoHandler(String, Cell<u32>);

impl FilterChainHandler for EchoHandler {
    fn serve(self: Rc<Self>, mut connection: Connection) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            self.1.set(self.1.get() + 1);
            let info = &connection.info;
            let sni = info.requested_server_name.as_deref().unwrap_or("-");
            let line = format!("{}#{} {} {sni}\n", self.0, self.1.get(), info.remote_address);
            if connection.io.write_all(line.as_bytes()).await.is_err() {
                return;
            }
            let mut buffer = [0; 1024];
            loop {
                tokio::select! {
                    read = connection.io.read(&mut buffer) => match read {
                        Ok(count) if count > 0 => {
                            if connection.io.write_all(&buffer[..count]).await.is_err() {
                                return;
                            }
                        }
                        _ => return,
                    },
                    () = connection.drain.draining() => return,
                }
            }
        })
    }
}

#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl ListenerAccessLog for Lines {
    fn log(&self, info: &Rc<ConnectionInfo>, end: &ConnectionEnd) {
        let line = format!(
            "id={} chain={} rx={} tx={} nr={} why={}",
            u8::from(info.id != 0),
            info.filter_chain_name,
            info.bytes.received.get(),
            info.bytes.sent.get(),
            end.no_filter_chain,
            info.transport_failure_reason.get().map_or("-", |reason| reason),
        );
        self.0.lock().expect("no panic").push(line);
    }
}

struct Fixture {
    registry: Registry,
    listener: Arc<Listener>,
    log: Arc<Lines>,
    drain: DrainHandle,
    contexts: TlsContexts,
    global: Arc<GlobalConnections>,
}

impl Fixture {
    fn new(config: ListenerConfig) -> Self {
        let registry = Registry::new(1, StatsConfig::default());
        let (log, drain) = (Arc::<Lines>::default(), DrainHandle::new());
        let (contexts, global) = (TlsContexts::new(), Arc::<GlobalConnections>::default());
        let parts = Self::parts(&registry, &log, &drain, &contexts, &global);
        let listener = Listener::new(Arc::new(config), parts).expect("built");
        listener.bind(1).expect("bound");
        Self { registry, listener, log, drain, contexts, global }
    }

    fn parts<'a>(
        registry: &'a Registry,
        log: &Arc<Lines>,
        drain: &'a DrainHandle,
        contexts: &'a TlsContexts,
        global: &Arc<GlobalConnections>,
    ) -> ListenerParts<'a> {
        ListenerParts {
            registry,
            global: global.clone(),
            drain,
            contexts,
            filter_chain: &|config| Ok(Arc::new(Echo(config.name.to_string()))),
            listener_filter: &|extension| Err(format!("unknown {extension:?}")),
            in_fraction: Arc::new(|_, _| false),
            access_logs: vec![log.clone()],
        }
    }

    fn start(&self) {
        let others = Rc::<WorkerListeners>::default();
        let listener = self.listener.clone();
        tokio::task::spawn_local(async move { run_listener(listener, 0, others).await.expect("runs") });
    }

    async fn connect(&self) -> TcpStream {
        let address = self.listener.addresses()[0].socket_addr().expect("an IP");
        TcpStream::connect(address).await.expect("connects")
    }

    fn count(&self, name: &str) -> u64 {
        let name = format!("listener.t.{name}");
        self.registry.counter_value(&name).or_else(|| self.registry.gauge_value(&name)).unwrap_or(0)
    }

    /// Waits until a stat has a value.
    async fn until(&self, name: &str, value: u64) {
        let reached = async {
            while self.count(name) != value {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let seen = tokio::time::timeout(LONG, reached).await;
        assert!(seen.is_ok(), "{name} is {} and not {value}", self.count(name));
    }
}

async fn line(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    let read = async {
        while text.last() != Some(&b'\n') {
            text.push(stream.read_u8().await.expect("a line"));
        }
    };
    tokio::time::timeout(LONG, read).await.expect("in time");
    String::from_utf8(text).expect("text").trim_end().to_owned()
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(LONG, stream.read(&mut [0; 1])).await.expect("in time");
    read.map_or(true, |count| count == 0)
}

#[tokio::test]
async fn connections_are_served_counted_and_logged() {
    let run = async {
        let fixture = Fixture::new(listener_config(vec![chain("a", FilterChainMatch::default())], Vec::new()));
        fixture.start();
        let mut stream = fixture.connect().await;
        let local = stream.local_addr().expect("an address");
        assert_eq!(line(&mut stream).await, format!("a#1 {local} -"));
        assert_eq!((fixture.count("downstream_cx_active"), fixture.listener.active_connections()), (1, 1));
        let mut second = fixture.connect().await;
        assert!(line(&mut second).await.starts_with("a#2 "), "the handler is made once");
        stream.write_all(b"ping").await.expect("sent");
        stream.read_exact(&mut [0; 4]).await.expect("echo");
        drop((stream, second));
        fixture.until("downstream_cx_destroy", 2).await;
        assert_eq!(fixture.count("worker_0.downstream_cx_total"), 2);
        assert_eq!(fixture.count("downstream_cx_active"), 0);
        let lines = fixture.log.0.lock().expect("no panic").clone();
        assert!(lines.iter().any(|line| line.starts_with("id=1 chain=a rx=4 tx=")), "{lines:?}");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_connection_without_a_chain_is_closed_and_logged() {
    let run = async {
        let tls_only = FilterChainMatch { transport_protocol: "tls".into(), ..FilterChainMatch::default() };
        let fixture = Fixture::new(listener_config(vec![chain("a", tls_only)], Vec::new()));
        fixture.start();
        let mut stream = fixture.connect().await;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
        let error = stream.read(&mut [0; 1]).await.expect_err("a reset, since bytes were unread");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        fixture.until("no_filter_chain_match", 1).await;
        assert_eq!(fixture.count("downstream_cx_total"), 0);
        let lines = fixture.log.0.lock().expect("no panic").clone();
        let reason = "TLS_error|error:1000009c:SSL routines:OPENSSL_internal:HTTP_REQUEST:TLS_error_end";
        assert_eq!(lines, [format!("id=0 chain= rx=0 tx=0 nr=true why={reason}")]);
        assert_eq!(fixture.registry.counter_value("tls_inspector.tls_not_found"), Some(1));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn sni_chooses_the_chain_and_its_tls_context() {
    let run = async {
        let named = |name: &str| {
            let mut tls = downstream();
            tls.common.certificates =
                vec![CertificateSource::Static(self_signed(&[name], &rcgen::PKCS_ECDSA_P256_SHA256).0)];
            let matches = FilterChainMatch { server_names: vec![name.into()], ..FilterChainMatch::default() };
            FilterChainConfig { tls: Some(Arc::new(tls)), ..chain(name, matches) }
        };
        let fixture = Fixture::new(listener_config(vec![named("a.com"), named("*.b.com")], Vec::new()));
        fixture.start();
        let stats = Arc::new(TlsStats::client(&fixture.registry, "cluster.c."));
        let client = ClientTlsContext::new(Arc::new(upstream()), stats).expect("a context");
        for (name, expected) in [("a.com", "a.com"), ("x.b.com", "*.b.com")] {
            let target = ClientTarget { server_name: Some(name), ..ClientTarget::default() };
            let mut session = client.connect(Plain::tcp(fixture.connect().await), &target).await.expect("handshake");
            let text = line(&mut session.io).await;
            assert!(text.starts_with(expected) && text.ends_with(name), "{text}");
            let seen = session.tls.peer_certificate().expect("a certificate");
            assert_eq!(seen.dns_sans().collect::<Vec<_>>(), [expected]);
        }
        assert_eq!(fixture.count("ssl.handshake"), 2);
        assert_eq!(fixture.contexts.certificates().len(), 2);
        let junk = ClientTarget { server_name: Some("other.org"), ..ClientTarget::default() };
        client.connect(Plain::tcp(fixture.connect().await), &junk).await.expect_err("no chain");
        fixture.until("no_filter_chain_match", 1).await;
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_proxy_header_gives_the_remote_address() {
    let run = async {
        let filter = ListenerFilterConfig::ProxyProtocol(ProxyProtocolConfig::default());
        let fixture = Fixture::new(listener_config(vec![chain("a", FilterChainMatch::default())], vec![filter]));
        fixture.start();
        let mut stream = fixture.connect().await;
        stream.write_all(b"PROXY TCP4 1.2.3.4 5.6.7.8 1000").await.expect("sent");
        fixture.until("downstream_pre_cx_active", 1).await;
        stream.write_all(b" 80\r\nrest").await.expect("sent");
        assert_eq!(line(&mut stream).await, "a#1 1.2.3.4:1000 -");
        let mut rest = [0; 4];
        stream.read_exact(&mut rest).await.expect("echo");
        assert_eq!(&rest, b"rest");
        let mut bad = fixture.connect().await;
        bad.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
        assert!(is_closed(&mut bad).await);
        assert_eq!(fixture.registry.counter_value("downstream_cx_proxy_proto_error"), Some(1));
        drop(fixture.connect().await);
        fixture.until("downstream_listener_filter_remote_close", 1).await;
        fixture.until("downstream_pre_cx_active", 0).await;
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn silent_connections_time_out_in_the_listener_filters() {
    let run = async {
        let mut config = listener_config(
            vec![chain("a", FilterChainMatch::default())],
            vec![ListenerFilterConfig::TlsInspector(Default::default())],
        );
        config.listener_filters_timeout = Duration::from_millis(20);
        let fixture = Fixture::new(config.clone());
        fixture.start();
        assert!(is_closed(&mut fixture.connect().await).await);
        assert_eq!(fixture.count("downstream_pre_cx_timeout"), 1);
        config.continue_on_listener_filters_timeout = true;
        let fixture = Fixture::new(config);
        fixture.start();
        assert!(line(&mut fixture.connect().await).await.starts_with("a#1"));
        assert_eq!(fixture.count("downstream_pre_cx_timeout"), 1);
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn connections_over_a_limit_are_closed() {
    let run = async {
        let mut config = listener_config(vec![chain("a", FilterChainMatch::default())], Vec::new());
        config.connection_limit = Some(1);
        let fixture = Fixture::new(config);
        fixture.start();
        let mut first = fixture.connect().await;
        line(&mut first).await;
        assert!(is_closed(&mut fixture.connect().await).await);
        assert_eq!(fixture.count("downstream_cx_overflow"), 1);
        fixture.listener.set_connection_limit(None);
        fixture.global.set_limit(1);
        assert!(is_closed(&mut fixture.connect().await).await);
        assert_eq!(fixture.count("downstream_global_cx_overflow"), 1);
        drop(first);
        fixture.until("downstream_cx_active", 0).await;
        line(&mut fixture.connect().await).await;
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn an_update_drains_only_the_chains_that_changed() {
    let run = async {
        let loopback = FilterChainMatch {
            source_prefix_ranges: vec!["127.0.0.2/32".parse().expect("a range")],
            ..FilterChainMatch::default()
        };
        let kept = chain("kept", loopback);
        let old = listener_config(vec![kept, chain("old", FilterChainMatch::default())], Vec::new());
        let fixture = Fixture::new(old.clone());
        fixture.start();
        let address = fixture.listener.addresses()[0].clone();
        let mut options = crate::socket::ConnectOptions::default();
        options.bind.sources = vec![nuncio_config::cluster::SourceAddress {
            addr: "127.0.0.2:0".parse().expect("an address"),
            network_namespace: None,
            socket_options: None,
        }];
        let from_two =
            || async { Io::plain(crate::socket::connect(&address, &options, LONG).await.expect("connects")) };
        let mut stays = from_two().await;
        assert!(line(&mut stays).await.starts_with("kept#1"));
        let mut goes = fixture.connect().await;
        assert!(line(&mut goes).await.starts_with("old#1"));

        let mut new = old.clone();
        new.filter_chains[1] = Arc::new(chain("new", FilterChainMatch::default()));
        let parts = Fixture::parts(&fixture.registry, &fixture.log, &fixture.drain, &fixture.contexts, &fixture.global);
        let gone = fixture
            .listener
            .update(Arc::new(new), &parts, &|_, _| false, DrainStrategy::Immediate, LONG)
            .expect("updated");
        assert_eq!(gone.iter().map(|chain| &*chain.name).collect::<Vec<_>>(), ["old"]);
        assert!(is_closed(&mut goes).await);
        assert!(line(&mut fixture.connect().await).await.starts_with("new#1"));
        stays.write_all(b"x\n").await.expect("sent");
        assert_eq!(line(&mut stays).await, "x");
        let mut again = from_two().await;
        assert!(line(&mut again).await.starts_with("kept#2"), "the same handler serves on");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_stopped_listener_refuses_and_drains() {
    let run = async {
        let fixture = Fixture::new(listener_config(vec![chain("a", FilterChainMatch::default())], Vec::new()));
        fixture.start();
        let address = fixture.listener.addresses()[0].socket_addr().expect("an IP");
        let mut open = fixture.connect().await;
        line(&mut open).await;
        fixture.listener.stop();
        let refused = async {
            while TcpStream::connect(address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, refused).await.expect("refused");
        open.write_all(b"x\n").await.expect("sent");
        assert_eq!(line(&mut open).await, "x", "an open connection goes on");
        fixture.drain.start(DrainStrategy::Immediate, LONG);
        tokio::time::timeout(LONG, fixture.listener.drained()).await.expect("drained");
        assert!(is_closed(&mut open).await);
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_panic_ends_only_its_connection() {
    struct Panics;
    impl FilterChainHandler for Panics {
        fn serve(self: Rc<Self>, _connection: Connection) -> LocalBoxFuture<'static, ()> {
            Box::pin(async { panic!("on purpose") })
        }
    }
    impl FilterChainFactory for Panics {
        fn create(&self) -> Rc<dyn FilterChainHandler> {
            Rc::new(Panics)
        }
    }
    let run = async {
        let registry = Registry::new(1, StatsConfig::default());
        let (log, drain) = (Arc::<Lines>::default(), DrainHandle::new());
        let (contexts, global) = (TlsContexts::new(), Arc::<GlobalConnections>::default());
        let mut parts = Fixture::parts(&registry, &log, &drain, &contexts, &global);
        parts.filter_chain = &|_| Ok(Arc::new(Panics));
        let config = listener_config(vec![chain("a", FilterChainMatch::default())], Vec::new());
        let listener = Listener::new(Arc::new(config), parts).expect("built");
        listener.bind(1).expect("bound");
        let fixture = Fixture { registry, listener, log, drain: drain.clone(), contexts, global };
        fixture.start();
        for count in 1..=2 {
            assert!(is_closed(&mut fixture.connect().await).await);
            fixture.until("downstream_cx_destroy", count).await;
        }
        assert_eq!((fixture.count("downstream_cx_active"), fixture.listener.active_connections()), (0, 0));
    };
    LocalSet::new().run_until(run).await;
}

#[test]
fn contradicting_chains_are_refused_with_the_address() {
    let registry = Registry::new(1, StatsConfig::default());
    let (log, drain) = (Arc::<Lines>::default(), DrainHandle::new());
    let (contexts, global) = (TlsContexts::new(), Arc::<GlobalConnections>::default());
    let parts = Fixture::parts(&registry, &log, &drain, &contexts, &global);
    let twice = vec![chain("a", FilterChainMatch::default()), chain("b", FilterChainMatch::default())];
    let error = Listener::new(Arc::new(listener_config(twice, Vec::new())), parts).err().expect("refused");
    assert_eq!(
        error.to_string(),
        "listeners[0]: error adding listener '127.0.0.1:0': filter chain 'b' has the same matching rules defined as 'a'"
    );
}

#[tokio::test]
async fn a_listener_takes_over_the_sockets_of_another_and_nothing_in_the_queue_is_lost() {
    let run = async {
        let old = Fixture::new(listener_config(vec![chain("a", FilterChainMatch::default())], Vec::new()));
        // Nobody accepts yet: the connection waits in the queue of the kernel.
        let mut waiting = old.connect().await;
        let parts = Fixture::parts(&old.registry, &old.log, &old.drain, &old.contexts, &old.global);
        let config = listener_config(vec![chain("b", FilterChainMatch::default())], Vec::new());
        let new = Listener::new(Arc::new(config), parts).expect("built");
        new.bind_for_later(1, Some(&old.listener)).expect("bound");
        assert_eq!(new.addresses(), old.listener.addresses());
        old.listener.stop_handed_over();
        let running = new.clone();
        tokio::task::spawn_local(async move { run_listener(running, 0, Rc::default()).await.expect("runs") });
        assert!(line(&mut waiting).await.starts_with("b#1 "));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_listener_that_stops_serves_what_waits_in_its_queue() {
    let run = async {
        let fixture = Fixture::new(listener_config(vec![chain("a", FilterChainMatch::default())], Vec::new()));
        let mut waiting = fixture.connect().await;
        let listener = fixture.listener.clone();
        listener.stop.set(LocalClose::Listener);
        tokio::task::spawn_local(async move { run_listener(listener, 0, Rc::default()).await.expect("runs") });
        assert!(line(&mut waiting).await.starts_with("a#1 "));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_socket_bound_for_later_refuses_connections_until_the_listener_runs() {
    let run = async {
        let registry = Registry::new(1, StatsConfig::default());
        let (log, drain) = (Arc::<Lines>::default(), DrainHandle::new());
        let (contexts, global) = (TlsContexts::new(), Arc::<GlobalConnections>::default());
        let parts = Fixture::parts(&registry, &log, &drain, &contexts, &global);
        let config = listener_config(vec![chain("a", FilterChainMatch::default())], Vec::new());
        let listener = Listener::new(Arc::new(config), parts).expect("built");
        listener.bind_for_later(1, None).expect("bound");
        let address = listener.addresses()[0].socket_addr().expect("an IP");
        let error = TcpStream::connect(address).await.expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        tokio::task::spawn_local(async move { run_listener(listener, 0, Rc::default()).await.expect("runs") });
        let connected = async {
            loop {
                match TcpStream::connect(address).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        };
        let mut stream = tokio::time::timeout(LONG, connected).await.expect("in time");
        assert!(line(&mut stream).await.starts_with("a#1 "));
    };
    LocalSet::new().run_until(run).await;
}
