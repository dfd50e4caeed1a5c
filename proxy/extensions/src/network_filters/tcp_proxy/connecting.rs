//! From an accepted connection to a connected upstream: waiting for the client's first bytes where that is wanted,
//! clusters, hosts, attempts and the pauses between them.

use super::early::Early;
use super::{TcpProxy, Upstream};
use nuncio_base::timer::{self, Sleep};
use nuncio_base::{clock, random};
use nuncio_config::proxy_protocol::Tlv;
use nuncio_config::tcp_proxy::{ConnectMode, HashPolicy, TlvMerge};
use nuncio_http::codec::ResetReason;
use nuncio_http::formatter::FormatContext;
use nuncio_http::headers::Headers;
use nuncio_http::stream_info::{ResponseFlags, StreamInfo};
use nuncio_net::connection::{Connection, ConnectionInfo};
use nuncio_upstream::pool::tcp_connect;
use nuncio_upstream::proxy_header::Client;
use nuncio_upstream::{Cluster, Host, LbContext, OutlierResult, PoolFailure, StreamOptions};
use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use xxhash_rust::xxh64::xxh64;

/// How the beginning of a session ended.
pub(super) enum Start {
    /// There is an upstream.
    Connected(Upstream),
    /// There is none.
    Failed,
    /// Nothing happened for the idle timeout.
    Idle,
    /// The client is gone.
    Left,
}

/// A connect attempt that failed.
enum Failed {
    /// Another may help.
    MayRetry,
    /// No other is made.
    Final,
}

impl TcpProxy {
    /// Serves a connection until its upstream is connected.
    pub(super) async fn start(&self, connection: &mut Connection, info: &RefCell<StreamInfo>) -> Start {
        let mut early = self.config.max_early_data.map(Early::new);
        let mut first = false;
        let mut idle = self.config.idle_timeout.map(timer::sleep);
        if self.config.connect_mode == ConnectMode::OnDownstreamData
            && let Some(early) = &mut early
        {
            if let Some(end) = poll_fn(|cx| self.poll_first(early, connection, idle.as_mut(), cx)).await {
                return end;
            }
            first = true;
        }
        // An attempt that failed ends the idle timeout until there is an upstream, as in Envoy.
        let tried = Cell::new(false);
        let shared = connection.info.clone();
        let start = {
            let mut connecting = pin!(self.connect(&shared, info, &tried));
            poll_fn(|cx| {
                let connected = connecting.as_mut().poll(cx);
                // The first bytes count unless they find no cluster and no host, as in Envoy.
                if std::mem::take(&mut first) && !matches!(connected, Poll::Ready(None)) {
                    self.stats.early_data_received_count_total().inc();
                }
                if let Poll::Ready(upstream) = connected {
                    return Poll::Ready(upstream.map_or(Start::Failed, Start::Connected));
                }
                if !tried.get() && idle.as_mut().is_some_and(|idle| Pin::new(idle).poll(cx).is_ready()) {
                    return Poll::Ready(Start::Idle);
                }
                if let Some(early) = &mut early
                    && self.poll_early(early, connection, cx) == Poll::Ready(false)
                {
                    return Poll::Ready(Start::Left);
                }
                Poll::Pending
            })
            .await
        };
        // A tunnel whose request is out has failed with it.
        let mut info = info.borrow_mut();
        if matches!(start, Start::Idle) && info.upstream.meter.wire_bytes_sent > 0 {
            info.flags.insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
        }
        if let (Start::Connected(_), Some(early)) = (&start, early) {
            early.put_back(&mut connection.io);
        }
        start
    }

    /// Waits for the first bytes; ready with None when they are there.
    fn poll_first(
        &self,
        early: &mut Early,
        connection: &mut Connection,
        idle: Option<&mut Sleep>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Start>> {
        match early.poll(&mut connection.io, cx) {
            Poll::Ready(Ok(())) if early.has_data() => return Poll::Ready(None),
            // Who ends without a word wants nothing.
            Poll::Ready(_) => return Poll::Ready(Some(Start::Left)),
            Poll::Pending => {}
        }
        match idle {
            Some(idle) => Pin::new(idle).poll(cx).map(|()| Some(Start::Idle)),
            None => Poll::Pending,
        }
    }

    /// Reads ahead and counts it. Ready with false when the connection broke.
    fn poll_early(&self, early: &mut Early, connection: &mut Connection, cx: &mut Context<'_>) -> Poll<bool> {
        early.poll(&mut connection.io, cx).map(|read| {
            self.stats.early_data_received_count_total().inc();
            read.is_ok()
        })
    }

    /// Connects to a host, trying again as often as configured. None when the connection cannot be served.
    async fn connect(
        &self,
        connection: &ConnectionInfo,
        info: &RefCell<StreamInfo>,
        tried: &Cell<bool>,
    ) -> Option<Upstream> {
        let mut began = None;
        for attempt in 1.. {
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
            let began = *began.get_or_insert_with(clock::now);
            {
                let upstream = &mut info.borrow_mut().upstream;
                upstream.cluster = Some(cluster.name().clone());
                upstream.cluster_alt_name = Some(cluster.observability_name.clone());
                upstream.cluster_metadata.clone_from(&cluster.config.metadata);
            }
            match self.attempt(&cluster, chosen, connection, info).await {
                Ok(upstream) => {
                    let mut info = info.borrow_mut();
                    info.upstream.pool_ready = Some(clock::now().saturating_duration_since(began));
                    let connection = match &upstream {
                        Upstream::Tcp(upstream) => &upstream.info,
                        Upstream::Tunnel(upstream) => upstream.stream.connection(),
                    };
                    info.upstream.connection_ids_attempted.push(connection.id);
                    info.upstream.connection = Some(connection.clone());
                    return Some(upstream);
                }
                Err(Failed::Final) => return None,
                Err(Failed::MayRetry) if attempt >= self.config.max_connect_attempts => {
                    cluster.stats.upstream_cx_connect_attempts_exceeded().inc();
                    info.borrow_mut().flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
                    return None;
                }
                Err(Failed::MayRetry) => {}
            }
            tried.set(true);
            if let Some(pause) = self.pause(attempt) {
                timer::sleep(pause).await;
            }
        }
        None
    }

    /// The pause after so many attempts that failed: full jitter over an interval that doubles.
    pub(super) fn pause(&self, failed: u32) -> Option<Duration> {
        let (base, max) = self.config.backoff?;
        let interval = base.saturating_mul(1 << (failed - 1).min(20)).min(max);
        Some(Duration::from_millis(random::below(interval.as_millis() as u64)))
    }

    async fn attempt(
        &self,
        cluster: &Arc<Cluster>,
        chosen: Option<usize>,
        connection: &ConnectionInfo,
        info: &RefCell<StreamInfo>,
    ) -> Result<Upstream, Failed> {
        let picked = self.choose_host(cluster, chosen, connection, &info.borrow());
        let Some(host) = picked else {
            cluster.stats.upstream_cx_none_healthy().inc();
            info.borrow_mut().flags.insert(ResponseFlags::NO_HEALTHY_UPSTREAM);
            return Err(Failed::Final);
        };
        let (_, address) = host.shown_address();
        {
            let mut info = info.borrow_mut();
            cluster.note_selected(&host, &mut info.dynamic_metadata);
            info.attempt_count += 1;
            info.upstream.hosts_attempted.push((address.clone(), host.hostname.clone()));
            // The stream of a tunnel has its host before it is accepted.
            if self.tunnel.is_some() {
                info.upstream.host = Some(address.clone());
            }
        }
        let result = self.open(cluster, &host, info).await;
        report(&host, result.as_ref().err());
        let mut info = info.borrow_mut();
        if matches!(&result, Err(failure) if failure.reason == ResetReason::Overflow) {
            info.attempt_count -= 1;
            info.upstream.hosts_attempted.pop();
            info.upstream.host = None;
            info.flags.insert(ResponseFlags::UPSTREAM_OVERFLOW);
            return Err(Failed::Final);
        }
        info.upstream.host = Some(address);
        info.upstream.host_name = Some(host.hostname.clone()).filter(|name| !name.is_empty());
        info.upstream.host_metadata = host.metadata();
        result.map_err(|failure| {
            info.flags.insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
            info.upstream.transport_failure_reason = failure.transport_failure_reason;
            Failed::MayRetry
        })
    }

    fn choose_host(
        &self,
        cluster: &Arc<Cluster>,
        chosen: Option<usize>,
        connection: &ConnectionInfo,
        info: &StreamInfo,
    ) -> Option<Arc<Host>> {
        let hash = match cluster.hash_policies() {
            Some(policies) => policies.hash(&Headers::default(), info, None),
            None => self.hash(connection, info),
        };
        let criteria = chosen.and_then(|at| self.config.metadata_match.get(at)?.as_deref());
        let dynamic = info.dynamic_metadata.as_ref().and_then(|all| all.get("envoy.lb")?.as_object());
        cluster.choose_host(&LbContext {
            hash,
            metadata_match: criteria.and_then(|criteria| criteria.as_object()),
            dynamic_metadata: dynamic,
            info: Some(info),
            ..LbContext::default()
        })
    }

    fn hash(&self, connection: &ConnectionInfo, info: &StreamInfo) -> Option<u64> {
        match self.config.hash_policy.as_ref()? {
            HashPolicy::SourceIp => connection.remote_address.ip().map(|ip| xxh64(ip.to_string().as_bytes(), 0)),
            HashPolicy::FilterState(key) => {
                let state = info.filter_state.as_ref()?;
                state.iter().find(|(known, _)| **known == **key).map(|(_, value)| xxh64(value.as_bytes(), 0))
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
            Some(tunnel) => Box::pin(tunnel.open(cluster, host, info, &options)).await.map(Upstream::Tunnel),
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
