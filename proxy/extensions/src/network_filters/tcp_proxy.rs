//! `envoy.filters.network.tcp_proxy`: one upstream connection per downstream connection, bytes copied both ways.
//!
//! ```text
//! cluster ──► host ──► connect ──► copy ──► log
//!    ▲                    │ failed, attempts left
//!    └────────────────────┘
//! ```
//! Between plain sockets the bytes do not enter the process (`nuncio_net::splice`). Bytes that arrive before the upstream
//! is connected stay in the socket, so that nothing is buffered here. Built once per filter chain and worker.

mod tunnel;

use super::sni_dynamic_forward_proxy::SniForwardProxy;
use crate::on_demand::{ClusterAnswer, ClusterSource};
use futures_util::future::LocalBoxFuture;
use nuncio_base::stats::Registry;
use nuncio_base::{clock, random, timer};
use nuncio_config::proxy_protocol::Tlv;
use nuncio_config::tcp_proxy::{TcpProxyConfig, TlvMerge};
use nuncio_http::access_log::AccessLogs;
use nuncio_http::codec::ResetReason;
use nuncio_http::formatter::{AccessLogType, FormatContext};
use nuncio_http::headers::Headers;
use nuncio_http::stream_info::{ResponseFlags, StreamInfo};
use nuncio_net::connection::{ByteStats, Connection, ConnectionInfo, DetectedClose};
use nuncio_net::listener::{FilterChainFactory, FilterChainHandler};
use nuncio_net::splice::{CopyEnd, CopyOptions, Side, copy_bidirectional};
use nuncio_upstream::pool::{TcpUpstream, tcp_connect};
use nuncio_upstream::proxy_header::{Client, TlvWriter};
use nuncio_upstream::{
    Cluster, ClusterManager, Host, LbContext, OutlierResult, PoolFailure, PooledStream, StreamOptions,
};
use std::cell::RefCell;
use std::future::Future as _;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use tunnel::{Tunnel, TunnelEnd};
use xxhash_rust::xxh64::xxh64;

nuncio_base::stat_family! {
    /// `tcp.<stat_prefix>.`
    pub struct TcpProxyStats {
        counters {
            downstream_cx_drain_close, downstream_cx_no_route, downstream_cx_overload_close,
            downstream_cx_rx_bytes_total, downstream_cx_total, downstream_cx_tx_bytes_total,
            downstream_flow_control_paused_reading_total, downstream_flow_control_resumed_reading_total,
            early_data_received_count_total, idle_timeout, max_downstream_connection_duration, on_demand_cluster_attempt,
            on_demand_cluster_missing, on_demand_cluster_success, on_demand_cluster_timeout, route_delayed_total,
            upstream_flush_total,
        }
        gauges { downstream_cx_rx_bytes_buffered, downstream_cx_tx_bytes_buffered, upstream_flush_active }
    }
}

/// Where the bytes of connections are counted.
struct TcpBytes(TcpProxyStats);

impl ByteStats for TcpBytes {
    fn received(&self, count: u64) {
        self.0.downstream_cx_rx_bytes_total().add(count);
    }

    fn sent(&self, count: u64) {
        self.0.downstream_cx_tx_bytes_total().add(count);
    }

    fn receive_buffered(&self, change: u64) {
        self.0.downstream_cx_rx_bytes_buffered().add(change);
    }

    fn send_buffered(&self, change: u64) {
        self.0.downstream_cx_tx_bytes_buffered().add(change);
    }
}

/// The filter, ready to serve on any worker.
pub struct TcpProxy {
    config: Arc<TcpProxyConfig>,
    clusters: Arc<ClusterManager>,
    stats: TcpProxyStats,
    logs: AccessLogs,
    total_weight: u64,
    tunnel: Option<Tunnel>,
    /// Where clusters are asked for that are not there.
    on_demand: Option<Arc<dyn ClusterSource>>,
    /// TLVs for upstream connections; None where there are none.
    tlvs: Option<TlvWriter>,
    /// Looks up what TLS names first.
    names: Option<SniForwardProxy>,
}

/// The connection of a session towards its host.
enum Upstream {
    Tcp(TcpUpstream),
    Tunnel(PooledStream),
}

impl TcpProxy {
    /// The filter for `config`; `logs` are those of its configuration.
    ///
    /// # Errors
    /// What is wrong with `tunneling_config` or `proxy_protocol_tlvs`, and which it is.
    pub fn new(
        config: Arc<TcpProxyConfig>,
        clusters: Arc<ClusterManager>,
        stats: &Registry,
        logs: AccessLogs,
    ) -> Result<Self, (&'static str, String)> {
        let tunnel = config.tunneling.as_ref().map(Tunnel::new).transpose();
        let tlvs = TlvWriter::new(&config.added_tlvs);
        Ok(TcpProxy {
            stats: TcpProxyStats::new(stats, &format!("tcp.{}.", config.stat_prefix)),
            total_weight: config.clusters.iter().map(|(_, weight)| u64::from(*weight)).sum(),
            tunnel: tunnel.map_err(|message| ("tunneling_config", message))?,
            tlvs: Some(tlvs.map_err(|message| ("proxy_protocol_tlvs", message))?).filter(|tlvs| !tlvs.is_empty()),
            names: None,
            on_demand: None,
            config,
            clusters,
            logs,
        })
    }

    /// Clusters that are not there are asked of this source, where there is one.
    #[must_use]
    pub fn with_source(self, on_demand: Option<Arc<dyn ClusterSource>>) -> Self {
        TcpProxy { on_demand, ..self }
    }

    /// The cluster of this name, which is asked for if it is not there.
    async fn cluster(&self, name: &Arc<str>) -> Option<Arc<Cluster>> {
        let found = self.clusters.cluster(name);
        let (None, Some(source)) = (&found, &self.on_demand) else { return found };
        if let Some(answer) = source.fetch(name) {
            self.stats.on_demand_cluster_attempt().inc();
            match answer.await {
                ClusterAnswer::Found => self.stats.on_demand_cluster_success().inc(),
                ClusterAnswer::Missing => self.stats.on_demand_cluster_missing().inc(),
                ClusterAnswer::TimedOut => self.stats.on_demand_cluster_timeout().inc(),
            }
        }
        self.clusters.cluster(name)
    }

    /// The same behind a filter that looks up hosts by the names that TLS brings.
    pub fn with_names(mut self, names: Option<SniForwardProxy>) -> Self {
        self.names = names;
        self
    }

    /// The place of the cluster for one more connection, by weight.
    fn choose_cluster(&self, random: impl FnOnce(u64) -> u64) -> Option<usize> {
        if self.config.clusters.len() == 1 {
            return Some(0);
        }
        let mut point = random(self.total_weight);
        for (at, (_, weight)) in self.config.clusters.iter().enumerate() {
            match point.checked_sub(u64::from(*weight)) {
                None => return Some(at),
                Some(rest) => point = rest,
            }
        }
        None
    }

    /// Serves one connection to its end, and logs it.
    async fn run(&self, mut connection: Connection) {
        self.stats.downstream_cx_total().inc();
        let downstream = connection.info.clone();
        downstream.bytes.attach(Rc::new(TcpBytes(self.stats.clone())));
        let info = RefCell::new(StreamInfo::new(downstream.clone(), random::u64(), None));
        let outcome = {
            let mut session = pin!(self.session(&mut connection, &info));
            let mut life = self.config.max_downstream_connection_duration.map(timer::sleep);
            let interval = self.config.access_log_flush_interval.filter(|interval| !interval.is_zero());
            let mut flush = interval.map(|interval| (interval, timer::sleep(interval)));
            std::future::poll_fn(|cx| {
                if let Poll::Ready(()) = session.as_mut().poll(cx) {
                    return Poll::Ready(Over::Ended);
                }
                if life.as_mut().is_some_and(|life| Pin::new(life).poll(cx).is_ready()) {
                    return Poll::Ready(Over::MaxDuration);
                }
                while let Some((interval, sleep)) = &mut flush {
                    if Pin::new(&mut *sleep).poll(cx).is_pending() {
                        break;
                    }
                    sleep.reset(*interval);
                    self.log(&info, AccessLogType::TcpPeriodic);
                }
                Poll::Pending
            })
            .await
        };
        if let Over::MaxDuration = outcome {
            self.stats.max_downstream_connection_duration().inc();
            downstream.closed_locally.set(true);
            let mut info = info.borrow_mut();
            close_reason(&downstream, info.upstream.connection.as_deref(), "max_connection_duration_reached");
            info.flags.insert(ResponseFlags::DURATION_TIMEOUT);
        }
        downstream.bytes.detach();
        info.borrow_mut().complete = Some(clock::now());
        self.log(&info, AccessLogType::TcpConnectionEnd);
    }

    async fn session(&self, connection: &mut Connection, info: &RefCell<StreamInfo>) {
        if let Some(names) = &self.names
            // Boxed: few proxies have it.
            && !Box::pin(names.look_up(info)).await
        {
            connection.info.closed_locally.set(true);
            reset_unread(connection);
            return;
        }
        let Some(upstream) = self.connect(connection, info).await else {
            connection.info.closed_locally.set(true);
            connection.info.local_close_reason.set(initialization_failure(info.borrow().flags));
            reset_unread(connection);
            return;
        };
        if self.config.flush_access_log_on_connected {
            self.log(info, AccessLogType::TcpUpstreamConnected);
        }
        let mut upstream = match upstream {
            Upstream::Tcp(upstream) => upstream,
            Upstream::Tunnel(upstream) => return self.through(connection, upstream).await,
        };
        let stats = upstream.stats().clone();
        let paused = |reading_from: Side, paused: bool| match (reading_from, paused) {
            (Side::Downstream, true) => self.stats.downstream_flow_control_paused_reading_total().inc(),
            (Side::Downstream, false) => self.stats.downstream_flow_control_resumed_reading_total().inc(),
            (Side::Upstream, true) => stats.upstream_flow_control_paused_reading_total().inc(),
            (Side::Upstream, false) => stats.upstream_flow_control_resumed_reading_total().inc(),
        };
        let options = CopyOptions { idle_timeout: self.config.idle_timeout, paused: Some(&paused), no_splice: false };
        let failure = upstream.host_failure();
        let copied = until(failure, copy_bidirectional(&mut connection.io, &mut upstream.io, options)).await;
        let Some(outcome) = copied else {
            upstream.ended_locally();
            connection.info.closed_locally.set(true);
            return;
        };
        match &outcome.end {
            CopyEnd::IdleTimeout => {
                self.stats.idle_timeout().inc();
                connection.info.closed_locally.set(true);
                close_reason(&connection.info, Some(&upstream.info), "tcp_session_idle_timeout");
                upstream.ended_locally();
            }
            // A reset is passed on.
            CopyEnd::Failed(Side::Upstream, _) => {
                upstream.ended_by_host();
                connection.info.closed_locally.set(true);
                upstream.info.detected_close.set(DetectedClose::RemoteReset);
                connection.info.detected_close.set(DetectedClose::LocalReset);
                info.borrow_mut().flags.insert(ResponseFlags::UPSTREAM_REMOTE_RESET);
                connection.io.reset_on_close();
            }
            CopyEnd::Failed(Side::Downstream, _) => {
                connection.info.detected_close.set(DetectedClose::RemoteReset);
                upstream.ended_locally();
                upstream.io.reset_on_close();
            }
            // Whoever ends last closes the pair.
            CopyEnd::Finished if outcome.closed_first == Some(Side::Downstream) => upstream.ended_by_host(),
            CopyEnd::Finished => upstream.ended_locally(),
        }
    }

    /// Moves bytes through a tunnel until it ends.
    async fn through(&self, connection: &mut Connection, mut upstream: PooledStream) {
        let limit = upstream.buffer_limit();
        let end = tunnel::copy(&mut connection.io, &mut upstream, limit, self.config.idle_timeout).await;
        match end {
            TunnelEnd::Finished => {}
            TunnelEnd::IdleTimeout => {
                self.stats.idle_timeout().inc();
                connection.info.closed_locally.set(true);
            }
            TunnelEnd::Failed(side) => {
                connection.info.closed_locally.set(side == Side::Upstream);
                upstream.reset(ResetReason::LocalReset);
            }
        }
    }

    /// Connects to a host, trying again as often as configured. None when the connection cannot be served.
    async fn connect(&self, connection: &Connection, info: &RefCell<StreamInfo>) -> Option<Upstream> {
        let began = clock::now();
        let chosen = self.choose_cluster(random::below);
        let named = match chosen {
            Some(at) => self.cluster(&self.config.clusters[at].0).await,
            None => None,
        };
        let Some(cluster) = named else {
            self.stats.downstream_cx_no_route().inc();
            info.borrow_mut().flags.insert(ResponseFlags::NO_CLUSTER_FOUND);
            return None;
        };
        {
            let upstream = &mut info.borrow_mut().upstream;
            upstream.cluster = Some(cluster.name().clone());
            upstream.cluster_alt_name = Some(cluster.observability_name.clone());
            upstream.cluster_metadata.clone_from(&cluster.config.metadata);
        }
        let hash = match cluster.hash_policies() {
            Some(policies) => policies.hash(&Headers::default(), &info.borrow(), None),
            None => {
                let address = self.config.hash_source_ip.then(|| connection.info.remote_address.ip()).flatten();
                address.map(|ip| xxh64(ip.to_string().as_bytes(), 0))
            }
        };
        let criteria = chosen.and_then(|at| self.config.metadata_match.get(at)?.as_deref());
        let dynamic = info.borrow().dynamic_metadata.as_ref().and_then(|all| all.get("envoy.lb")?.as_object().cloned());
        let context = LbContext {
            hash,
            metadata_match: criteria.and_then(|criteria| criteria.as_object()),
            dynamic_metadata: dynamic.as_ref(),
            ..LbContext::default()
        };
        for _ in 0..self.config.max_connect_attempts.max(1) {
            match self.attempt(&cluster, &context, info).await {
                Ok(upstream) => {
                    let mut info = info.borrow_mut();
                    info.upstream.pool_ready = Some(clock::now().saturating_duration_since(began));
                    let connection = match &upstream {
                        Upstream::Tcp(upstream) => &upstream.info,
                        Upstream::Tunnel(upstream) => upstream.connection(),
                    };
                    info.upstream.connection_ids_attempted.push(connection.id);
                    info.upstream.connection = Some(connection.clone());
                    return Some(upstream);
                }
                Err(Failed::Final) => return None,
                Err(Failed::MayRetry) => {}
            }
        }
        cluster.stats.upstream_cx_connect_attempts_exceeded().inc();
        info.borrow_mut().flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        None
    }

    async fn attempt(
        &self,
        cluster: &Arc<Cluster>,
        context: &LbContext<'_>,
        info: &RefCell<StreamInfo>,
    ) -> Result<Upstream, Failed> {
        let chosen = cluster.choose_host(&LbContext { info: Some(&info.borrow()), ..*context });
        let Some(host) = chosen else {
            cluster.stats.upstream_cx_none_healthy().inc();
            info.borrow_mut().flags.insert(ResponseFlags::NO_HEALTHY_UPSTREAM);
            return Err(Failed::Final);
        };
        cluster.note_selected(&host, &mut info.borrow_mut().dynamic_metadata);
        let result = self.open(cluster, &host, info).await;
        report(&host, result.as_ref().err());
        let mut info = info.borrow_mut();
        let overflow = matches!(&result, Err(failure) if failure.reason == ResetReason::Overflow);
        if !overflow {
            info.attempt_count += 1;
            let (_, address) = host.shown_address();
            info.upstream.hosts_attempted.push((address.clone(), host.hostname.clone()));
            info.upstream.host = Some(address);
            info.upstream.host_name = Some(host.hostname.clone()).filter(|name| !name.is_empty());
            info.upstream.host_metadata = host.metadata();
        }
        match result {
            Ok(upstream) => Ok(upstream),
            Err(_) if overflow => {
                info.flags.insert(ResponseFlags::UPSTREAM_OVERFLOW);
                Err(Failed::Final)
            }
            Err(failure) => {
                info.flags.insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
                info.upstream.transport_failure_reason = failure.transport_failure_reason;
                Err(Failed::MayRetry)
            }
        }
    }

    async fn open(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        info: &RefCell<StreamInfo>,
    ) -> Result<Upstream, PoolFailure> {
        let connection = info.borrow().connection.clone();
        let tlvs =
            self.tlvs.as_ref().map(|own| self.merged(own.tlvs(&FormatContext::new(&info.borrow())), &connection));
        let mut client = Client::of(&connection);
        client.tlvs = tlvs.as_deref().unwrap_or(client.tlvs);
        let options = StreamOptions { client: Some(client), ..StreamOptions::default() };
        match &self.tunnel {
            None => tcp_connect(cluster, host, &options).await.map(Upstream::Tcp),
            // Boxed: what opening needs would else be part of the session for all of its life.
            Some(tunnel) => {
                let open = Box::pin(tunnel.open(cluster, host, info, &options, self.config.idle_timeout));
                open.await.map(Upstream::Tunnel)
            }
        }
    }

    /// The TLVs of this filter together with those of the client's header.
    fn merged(&self, own: Vec<Tlv>, connection: &ConnectionInfo) -> Vec<Tlv> {
        let Some(header) = &connection.proxy_protocol else { return own };
        let came = header.tlvs.iter();
        match self.config.tlv_merge {
            TlvMerge::AddIfAbsent => came.cloned().collect(),
            TlvMerge::Append => came.cloned().chain(own).collect(),
            TlvMerge::Overwrite => {
                let others = came.filter(|(kind, _)| !own.iter().any(|(other, _)| other == kind)).cloned();
                let others: Vec<Tlv> = others.collect();
                own.into_iter().chain(others).collect()
            }
        }
    }

    fn log(&self, info: &RefCell<StreamInfo>, log_type: AccessLogType) {
        if self.logs.is_empty() {
            return;
        }
        let mut info = info.borrow_mut();
        let (received, sent) = (info.connection.bytes.received.get(), info.connection.bytes.sent.get());
        (info.bytes_received, info.bytes_sent) = (received, sent);
        (info.meter.wire_bytes_received, info.meter.wire_bytes_sent) = (received, sent);
        if let Some(upstream) = info.upstream.connection.clone() {
            info.upstream.meter.wire_bytes_received = upstream.bytes.received.get();
            info.upstream.meter.wire_bytes_sent = upstream.bytes.sent.get();
        }
        self.logs.log(&FormatContext { log_type, ..FormatContext::new(&info) });
    }
}

/// What `work` yields, or None when `end` comes first.
async fn until<T>(end: Option<impl Future<Output = ()>>, work: impl Future<Output = T>) -> Option<T> {
    // Boxed: few sessions have an end of this kind.
    let Some(mut end) = end.map(Box::pin) else { return Some(work.await) };
    let mut work = pin!(work);
    std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => end.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// What listener filters have looked at counts as unread: closing then resets the connection, as it would if they had not.
fn reset_unread(connection: &Connection) {
    if !connection.io.prefix().is_empty() {
        connection.io.reset_on_close();
    }
}

/// Notes why this side ends a session.
fn close_reason(downstream: &ConnectionInfo, upstream: Option<&ConnectionInfo>, reason: &'static str) {
    downstream.local_close_reason.set(reason);
    if let Some(upstream) = upstream {
        upstream.local_close_reason.set(reason);
    }
}

/// Envoy's words for a session without an upstream, its spelling and its numbers of reasons included.
fn initialization_failure(flags: ResponseFlags) -> &'static str {
    match () {
        () if flags.contains(ResponseFlags::NO_CLUSTER_FOUND) => "tcp_initializion_failure:3",
        () if flags.contains(ResponseFlags::UPSTREAM_OVERFLOW) => "tcp_initializion_failure:2",
        () if flags.contains(ResponseFlags::NO_HEALTHY_UPSTREAM) => "tcp_initializion_failure:1",
        () => "tcp_initializion_failure:0",
    }
}

/// Tells outlier detection how connecting went.
fn report(host: &Host, failure: Option<&PoolFailure>) {
    let Some(monitor) = host.outlier_monitor() else { return };
    match failure.map(|failure| failure.reason) {
        None => monitor.put_result(OutlierResult::ConnectSuccessFinal, None),
        Some(ResetReason::ConnectionTimeout) => monitor.put_result(OutlierResult::Timeout, None),
        Some(ResetReason::RemoteConnectionFailure) => monitor.put_result(OutlierResult::ConnectFailed, None),
        // Limits and local failures say nothing about the host.
        Some(_) => {}
    }
}

/// Why a session is over.
enum Over {
    Ended,
    MaxDuration,
}

/// A connect attempt that failed.
enum Failed {
    /// Another may help.
    MayRetry,
    /// No other is made.
    Final,
}

/// One filter chain's TCP proxy on one worker.
struct Handler {
    filter: Arc<TcpProxy>,
}

impl FilterChainHandler for Handler {
    fn serve(self: Rc<Self>, connection: Connection) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move { self.filter.run(connection).await })
    }
}

/// Makes handlers of a filter.
pub struct TcpProxyFactory {
    filter: Arc<TcpProxy>,
}

impl TcpProxyFactory {
    /// Handlers for `filter`.
    pub fn new(filter: TcpProxy) -> Self {
        TcpProxyFactory { filter: Arc::new(filter) }
    }
}

impl FilterChainFactory for TcpProxyFactory {
    fn create(&self) -> Rc<dyn FilterChainHandler> {
        Rc::new(Handler { filter: self.filter.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nuncio_base::drain::DrainHandle;
    use nuncio_base::stats::StatsConfig;
    use nuncio_config::address::{Address, EndpointAddress};
    use nuncio_config::cluster::*;
    use nuncio_net::connection::Io;
    use nuncio_upstream::ClusterManagerOptions;
    use std::net::SocketAddr;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    fn cluster(addr: SocketAddr) -> ClusterConfig {
        let address = EndpointAddress::Resolved(Address::Socket(addr.into()));
        let group = LocalityEndpoints {
            locality: Locality::default(),
            priority: 0,
            weight: None,
            endpoints: vec![Endpoint::new(address)],
        };
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
            max_connect_attempts: 1,
            access_logs: Vec::new(),
            access_log_flush_interval: None,
            flush_access_log_on_connected: false,
            hash_source_ip: false,
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
}
