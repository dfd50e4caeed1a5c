//! Connections for one user each: the TCP proxy, and CONNECT requests that end here.

use super::connect::{self, CountedConnection, CountedPending, CountedRequest, Ended};
use super::{Kind, PoolFailure, PooledStream, StreamOptions};
use crate::circuit_breakers::Resource;
use crate::cluster::Cluster;
use crate::host::Host;
use crate::stats::ClusterStats;
use crate::transport::TransportOptions;
use bytes::Bytes;
use nuncio_http::codec::ResetReason;
use nuncio_http::codec::raw::RawClient;
use nuncio_net::connection::{ConnectionInfo, Io};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// A connection to a host for one user. Counted in the cluster until dropped.
pub struct TcpUpstream {
    /// The bytes.
    pub io: Io,
    /// What is known about it.
    pub info: Rc<ConnectionInfo>,
    counted: CountedConnection,
    request: CountedRequest,
}

impl TcpUpstream {
    /// Waits until the host is found to be failing, which ends its connections; None where that is not wanted
    /// (`close_connections_on_host_health_failure`).
    pub fn host_failure(&self) -> Option<impl Future<Output = ()> + 'static> {
        let wanted = self.counted.cluster.config.close_connections_on_host_health_failure;
        let (host, before) = (self.counted.host.clone(), self.counted.host.failures());
        wanted.then_some(async move { host.failure_after(before).await })
    }

    /// The cluster's stats.
    pub fn stats(&self) -> &Arc<ClusterStats> {
        &self.counted.cluster.stats
    }

    /// Says that the host ended the connection; else it counts as ended by this side.
    pub fn ended_by_host(&mut self) {
        self.counted.ended(Ended::Remote, true);
    }

    /// Says that this side ended it.
    pub fn ended_locally(&mut self) {
        self.counted.ended(Ended::Local, true);
    }
}

impl std::fmt::Debug for TcpUpstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpUpstream").field("info", &self.info).finish_non_exhaustive()
    }
}

/// Opens a connection to `host`. Circuit breakers and stats are those of the cluster. Dropping the future closes what
/// was begun.
///
/// # Errors
/// [`PoolFailure`].
pub async fn tcp_connect(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    options: &StreamOptions<'_>,
) -> Result<TcpUpstream, PoolFailure> {
    tcp_connect_with(cluster, host, options, None).await
}

/// As [`tcp_connect`], for a client that knows what it will speak: over TLS the names in `alpn` are offered.
///
/// # Errors
/// [`PoolFailure`].
pub async fn tcp_connect_with(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    options: &StreamOptions<'_>,
    alpn: Option<&[&[u8]]>,
) -> Result<TcpUpstream, PoolFailure> {
    let cluster = &*cluster.serving(host);
    let limits = cluster.resource_manager(options.priority);
    // Checked first, as in Envoy: a request in the queue would wait for a connection that is never given back.
    let per_host = host.stats.cx_active.load(Relaxed) < limits.max_connections_per_host();
    if !limits.can_create(Resource::Connections) || !per_host {
        cluster.stats.upstream_cx_overflow().inc();
        return Err(PoolFailure::overflow(None));
    }
    if !limits.can_create(Resource::PendingRequests) {
        cluster.stats.upstream_rq_pending_overflow().inc();
        return Err(PoolFailure::overflow(None));
    }
    let mut pending = Pending { counted: Some(CountedPending::new(cluster, host, options.priority)), cluster };
    let mut counted = CountedConnection::new(cluster, host, options.priority);
    let client = options.client.filter(|_| cluster.transport.tells_of_clients(host));
    let transport = TransportOptions { server_name: None, client: client.map(|client| Box::new(client.to_owned())) };
    // Boxed: what connecting needs would else be part of the session for all of its life.
    match Box::pin(connect::connect(cluster, host, &transport, alpn)).await {
        Ok(connected) => {
            counted.connected(&connected.info);
            pending.counted = None;
            if !limits.can_create(Resource::Requests) {
                cluster.stats.upstream_rq_active_overflow().inc();
                return Err(PoolFailure::overflow(Some(host.clone())));
            }
            let request = CountedRequest::new(cluster, host, options.priority);
            counted.in_use();
            Ok(TcpUpstream { io: connected.io, info: Rc::new(connected.info), counted, request })
        }
        Err(failure) => {
            pending.counted = None;
            counted.failed(&failure);
            cluster.stats.upstream_rq_pending_failure_eject().inc();
            Err(PoolFailure {
                reason: failure.reason,
                transport_failure_reason: failure.text,
                host: Some(host.clone()),
                no_pool: false,
            })
        }
    }
}

/// A connection to `host` that is one HTTP stream: `preface` and the request's body go out, and what comes back is the
/// body of a `200`. For CONNECT requests that end here.
///
/// # Errors
/// [`PoolFailure`].
pub async fn raw_stream(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    options: &StreamOptions<'_>,
    preface: Bytes,
) -> Result<PooledStream, PoolFailure> {
    let TcpUpstream { io, info, counted, request } = tcp_connect(cluster, host, options).await?;
    let limit = cluster.config.per_connection_buffer_limit_bytes as usize;
    let client = RawClient::new(io, preface, limit);
    Ok(PooledStream { kind: Kind::Raw(Box::new(RawConnection { client, info, counted, _request: request })) })
}

/// A connection that is one stream.
pub(super) struct RawConnection {
    pub(super) client: RawClient<Io>,
    pub(super) info: Rc<ConnectionInfo>,
    counted: CountedConnection,
    _request: CountedRequest,
}

impl RawConnection {
    pub(super) fn cluster(&self) -> &Arc<Cluster> {
        &self.counted.cluster
    }

    pub(super) fn host(&self) -> &Arc<Host> {
        &self.counted.host
    }
}

impl Drop for RawConnection {
    fn drop(&mut self) {
        let complete = self.client.response_complete() && self.client.request_complete();
        let remote = match self.client.error() {
            Some(error) => error.reason == ResetReason::ConnectionTermination,
            None => complete,
        };
        self.counted.ended(if remote { Ended::Remote } else { Ended::Local }, !complete);
    }
}

/// A request that waits; given up when dropped with the count still in it.
struct Pending<'a> {
    counted: Option<CountedPending>,
    cluster: &'a Cluster,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.counted.take().is_some() {
            self.cluster.stats.upstream_rq_cancelled().inc();
        }
    }
}
