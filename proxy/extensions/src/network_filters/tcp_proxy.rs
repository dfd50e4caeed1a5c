//! `envoy.filters.network.tcp_proxy`: one upstream connection per downstream connection, bytes copied both ways.
//!
//! ```text
//! cluster ──► host ──► connect ──► copy ──► log
//!    ▲                    │ failed, attempts left
//!    └────────────────────┘
//! ```
//! Between plain sockets the bytes do not enter the process (`nuncio_net::splice`). Bytes that arrive before the upstream
//! is connected stay in the socket, unless `early` is asked to read some ahead. `connecting` finds the upstream, `tunnel`
//! is the way through HTTP. Built once per filter chain and worker.

mod connecting;
mod early;
mod tunnel;

use super::sni_dynamic_forward_proxy::SniForwardProxy;
use crate::on_demand::{ClusterAnswer, ClusterSource};
use connecting::Start;
use futures_util::future::LocalBoxFuture;
use nuncio_base::stats::Registry;
use nuncio_base::{clock, random, timer};
use nuncio_config::tcp_proxy::TcpProxyConfig;
use nuncio_http::access_log::AccessLogs;
use nuncio_http::codec::Protocol;
use nuncio_http::formatter::{AccessLogType, FormatContext};
use nuncio_http::stream_info::{ResponseFlags, StreamInfo};
use nuncio_net::connection::{ByteStats, Connection, ConnectionInfo, DetectedClose};
use nuncio_net::listener::{FilterChainFactory, FilterChainHandler};
use nuncio_net::splice::{CopyEnd, CopyOptions, Side, copy_bidirectional};
use nuncio_upstream::pool::TcpUpstream;
use nuncio_upstream::proxy_header::TlvWriter;
use nuncio_upstream::{Cluster, ClusterManager};
use std::cell::RefCell;
use std::future::Future as _;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use tunnel::{OpenTunnel, Tunnel, TunnelEnd};

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
    Tunnel(OpenTunnel),
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
        let mut own = StreamInfo::new(downstream.clone(), random::u64(), None);
        if !self.logs.is_empty() {
            own.request_id = Some(random::uuid_v4());
        }
        let info = RefCell::new(own);
        if self.config.flush_access_log_on_start {
            self.log(&info, AccessLogType::TcpConnectionStart);
        }
        let outcome = {
            let mut session = pin!(self.session(&mut connection, &info));
            let jitter = self.config.max_downstream_connection_duration_jitter;
            let longest = self.config.max_downstream_connection_duration;
            let mut life = longest.map(|length| timer::sleep(random::jittered(length, jitter, random::u64())));
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
        // Boxed: what connecting needs would else be part of the session for all of its life.
        let upstream = match Box::pin(self.start(connection, info)).await {
            Start::Connected(upstream) => upstream,
            Start::Failed => {
                connection.info.closed_locally.set(true);
                connection.info.local_close_reason.set(initialization_failure(info.borrow().flags));
                reset_unread(connection);
                return;
            }
            Start::Idle => {
                self.stats.idle_timeout().inc();
                connection.info.closed_locally.set(true);
                close_reason(&connection.info, None, IDLE);
                reset_unread(connection);
                return;
            }
            Start::Left => return,
        };
        if self.config.flush_access_log_on_connected {
            self.log(info, AccessLogType::TcpUpstreamConnected);
        }
        match upstream {
            Upstream::Tcp(upstream) => self.splice(connection, upstream, info).await,
            Upstream::Tunnel(upstream) => self.through(connection, upstream, info).await,
        }
    }

    /// Moves bytes between two connections until they end.
    async fn splice(&self, connection: &mut Connection, mut upstream: TcpUpstream, info: &RefCell<StreamInfo>) {
        let stats = upstream.stats().clone();
        let paused = |reading_from: Side, paused: bool| match (reading_from, paused) {
            (Side::Downstream, true) => self.stats.downstream_flow_control_paused_reading_total().inc(),
            (Side::Downstream, false) => self.stats.downstream_flow_control_resumed_reading_total().inc(),
            (Side::Upstream, true) => stats.upstream_flow_control_paused_reading_total().inc(),
            (Side::Upstream, false) => stats.upstream_flow_control_resumed_reading_total().inc(),
        };
        let drain = connection.drain.clone();
        let drained = || drain.drain_close();
        let options = CopyOptions {
            idle_timeout: self.config.idle_timeout,
            paused: Some(&paused),
            over: self.config.check_drain_close.then_some(&drained),
            no_splice: false,
        };
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
                close_reason(&connection.info, Some(&upstream.info), IDLE);
                upstream.ended_locally();
            }
            CopyEnd::Asked => {
                self.drain_close(connection, Some(&upstream.info));
                upstream.ended_locally();
            }
            // A reset is passed on.
            CopyEnd::Failed(Side::Upstream, _) => {
                upstream.ended_by_host();
                connection.info.closed_locally.set(true);
                pass_reset_on(connection, info);
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
    async fn through(&self, connection: &mut Connection, mut upstream: OpenTunnel, info: &RefCell<StreamInfo>) {
        let Some(tunnel) = &self.tunnel else { return };
        let drain = connection.drain.clone();
        let drained = || drain.drain_close();
        let options = tunnel::CopyOptions {
            idle_timeout: self.config.idle_timeout,
            over: self.config.check_drain_close.then_some(&drained),
        };
        let end = tunnel.copy(&mut connection.io, &mut upstream, info, options).await;
        match end {
            TunnelEnd::Finished if upstream.stream.http_protocol() == Some(Protocol::Http2) => return,
            // Over HTTP/1 this side closes the connection, whoever ended first.
            TunnelEnd::Finished => {}
            TunnelEnd::IdleTimeout => {
                self.stats.idle_timeout().inc();
                connection.info.closed_locally.set(true);
                close_reason(&connection.info, None, IDLE);
            }
            TunnelEnd::Asked => self.drain_close(connection, None),
            TunnelEnd::DownstreamFailed => connection.info.detected_close.set(DetectedClose::RemoteReset),
            TunnelEnd::UpstreamFailed(reset) => {
                connection.info.closed_locally.set(true);
                if reset {
                    pass_reset_on(connection, info);
                }
                return;
            }
        }
        upstream.reset(info);
    }

    /// Notes that a session ends because its listener drains.
    fn drain_close(&self, connection: &Connection, upstream: Option<&ConnectionInfo>) {
        self.stats.downstream_cx_drain_close().inc();
        connection.info.closed_locally.set(true);
        close_reason(&connection.info, upstream, "tcp_proxy_drain_close");
    }

    fn log(&self, info: &RefCell<StreamInfo>, log_type: AccessLogType) {
        if self.logs.is_empty() {
            return;
        }
        let mut info = info.borrow_mut();
        let (received, sent) = (info.connection.bytes.received.get(), info.connection.bytes.sent.get());
        (info.bytes_received, info.bytes_sent) = (received, sent);
        (info.meter.wire_bytes_received, info.meter.wire_bytes_sent) = (received, sent);
        // The stream of a tunnel has counted for itself.
        if let Some(upstream) = info.upstream.connection.clone().filter(|_| self.tunnel.is_none()) {
            info.upstream.meter.wire_bytes_received = upstream.bytes.received.get();
            info.upstream.meter.wire_bytes_sent = upstream.bytes.sent.get();
        }
        self.logs.log(&FormatContext { log_type, ..FormatContext::new(&info) });
    }
}

/// Why this side closes a session in which nothing moves.
const IDLE: &str = "tcp_session_idle_timeout";

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

/// The upstream's reset is one for the client, too.
fn pass_reset_on(connection: &Connection, info: &RefCell<StreamInfo>) {
    connection.info.detected_close.set(DetectedClose::LocalReset);
    let mut info = info.borrow_mut();
    info.upstream.detected_close = Some(DetectedClose::RemoteReset);
    info.flags.insert(ResponseFlags::UPSTREAM_REMOTE_RESET);
    connection.io.reset_on_close();
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

/// Why a session is over.
enum Over {
    Ended,
    MaxDuration,
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
mod tests;
