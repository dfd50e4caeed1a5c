//! Connection pools: per worker, without locks.
//!
//! [`http_stream`] gives a stream to a host: at once when a connection is ready, else after waiting for one.
//! [`tcp_connect`] opens a connection for one user. `http` is the pool of one host, `h1` and `h2` its connections,
//! `connect` makes and counts them.

pub(crate) mod connect;
mod h1;
mod h2;
mod http;
mod tcp;
mod wake;

#[cfg(test)]
mod tests;

pub use tcp::{TcpUpstream, raw_stream, tcp_connect, tcp_connect_with};

use crate::circuit_breakers::{Resource, ResourcePriority};
use crate::cluster::Cluster;
use crate::host::Host;
use crate::proxy_header::Client;
use crate::transport::{TransportOptions, sni_of};
use crate::worker;
pub(crate) use http::Codecs;
use http::{Demand, HttpPool, PoolProtocol};
use nuncio_base::random;
use nuncio_config::cluster::{UpstreamHttpOptions, UpstreamProtocol};
use nuncio_http::codec::h1::parse::Limits;
use nuncio_http::codec::h2::H2ClientStream;
use nuncio_http::codec::stats::{Http1Stats, Http2Stats};
use nuncio_http::codec::{ClientStream, Protocol, ResetReason};
use nuncio_net::connection::ConnectionInfo;
use rustc_hash::{FxHashMap, FxHasher};
use std::cell::{OnceCell, RefCell};
use std::hash::{Hash as _, Hasher as _};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How long a connection is used from now on, at most.
fn connection_duration(options: &UpstreamHttpOptions) -> Option<Duration> {
    let length = options.max_connection_duration?;
    Some(random::jittered(length, options.max_connection_duration_jitter, random::u64()))
}

/// What a stream needs from its connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct StreamOptions<'a> {
    /// Priority of the route.
    pub priority: ResourcePriority,
    /// Protocol of the downstream stream, for clusters that use the same upstream.
    pub downstream_protocol: Option<Protocol>,
    /// `:authority`, or the header of `override_auto_sni_header`; used as SNI where the cluster has `auto_sni`.
    pub authority: Option<&'a str>,
    /// Id of the downstream connection; it has pools of its own where the cluster asks for that
    /// (`connection_pool_per_downstream_connection`).
    pub downstream_connection: u64,
    /// For whom it is, where upstream connections may tell that.
    pub client: Option<Client<'a>>,
}

/// No stream could be had.
#[derive(Debug, Clone)]
pub struct PoolFailure {
    /// Why: a connection failure, a connect timeout or an overflow.
    pub reason: ResetReason,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`, spaces not replaced; None when there is none.
    pub transport_failure_reason: Option<Box<str>>,
    /// The host; None when no connection was tried (too many requests wait).
    pub host: Option<Arc<Host>>,
    /// There is no pool for the request, and there may be no more of them: to it the host is none.
    pub no_pool: bool,
}

impl PoolFailure {
    fn overflow(host: Option<Arc<Host>>) -> Self {
        PoolFailure { reason: ResetReason::Overflow, transport_failure_reason: None, host, no_pool: false }
    }
}

/// A stream to a host. Derefs to [`ClientStream`]. Dropped, it gives its connection back to the pool when both messages
/// are complete, and closes it (HTTP/1) or resets the stream (HTTP/2) otherwise.
pub struct PooledStream {
    kind: Kind,
}

enum Kind {
    /// None only while it is dropped.
    Http1 {
        connection: Option<Box<h1::H1Connection>>,
        pool: Rc<HttpPool>,
    },
    Http2 {
        stream: Box<H2ClientStream>,
        connection: Rc<h2::H2Connection>,
        pool: Rc<HttpPool>,
    },
    /// A connection for this stream alone.
    Raw(Box<tcp::RawConnection>),
}

impl PooledStream {
    /// The connection: addresses, TLS, id.
    pub fn connection(&self) -> &Rc<ConnectionInfo> {
        match &self.kind {
            Kind::Http1 { connection: Some(connection), .. } => &connection.info,
            Kind::Http1 { .. } => unreachable!("only while it is dropped"),
            Kind::Http2 { connection, .. } => &connection.info,
            Kind::Raw(raw) => &raw.info,
        }
    }

    /// The host.
    pub fn host(&self) -> &Arc<Host> {
        match &self.kind {
            Kind::Http1 { pool, .. } | Kind::Http2 { pool, .. } => &pool.host,
            Kind::Raw(raw) => raw.host(),
        }
    }

    /// Bytes that may wait for the other side: the cluster's `per_connection_buffer_limit_bytes`; 0 is no limit.
    pub fn buffer_limit(&self) -> usize {
        let cluster = match &self.kind {
            Kind::Http1 { pool, .. } | Kind::Http2 { pool, .. } => &pool.cluster,
            Kind::Raw(raw) => raw.cluster(),
        };
        cluster.config.per_connection_buffer_limit_bytes as usize
    }

    /// The protocol spoken; None for raw bytes.
    pub fn http_protocol(&self) -> Option<Protocol> {
        match &self.kind {
            Kind::Raw(_) => None,
            _ => Some(self.protocol()),
        }
    }

    /// Requests that the connection served before this one.
    pub fn requests_before(&self) -> u32 {
        match &self.kind {
            Kind::Http1 { connection, .. } => connection.as_ref().map_or(0, |connection| connection.served - 1),
            Kind::Http2 { .. } | Kind::Raw(_) => 0,
        }
    }
}

impl std::fmt::Debug for PooledStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PooledStream").field("host", &self.host().address_text).finish_non_exhaustive()
    }
}

impl Deref for PooledStream {
    type Target = dyn ClientStream;

    #[inline]
    fn deref(&self) -> &(dyn ClientStream + 'static) {
        match &self.kind {
            Kind::Http1 { connection: Some(connection), .. } => &connection.client,
            Kind::Http1 { .. } => unreachable!("only while it is dropped"),
            Kind::Http2 { stream, .. } => &**stream,
            Kind::Raw(raw) => &raw.client,
        }
    }
}

impl DerefMut for PooledStream {
    #[inline]
    fn deref_mut(&mut self) -> &mut (dyn ClientStream + 'static) {
        match &mut self.kind {
            Kind::Http1 { connection: Some(connection), .. } => &mut connection.client,
            Kind::Http1 { .. } => unreachable!("only while it is dropped"),
            Kind::Http2 { stream, .. } => &mut **stream,
            Kind::Raw(raw) => &mut raw.client,
        }
    }
}

impl Drop for PooledStream {
    fn drop(&mut self) {
        match &mut self.kind {
            Kind::Http1 { connection, pool } => {
                pool.stream_ended();
                if let Some(connection) = connection.take() {
                    pool.release_h1(connection);
                }
            }
            Kind::Http2 { stream, connection, pool } => {
                pool.stream_ended();
                connection.close_stream(stream);
                pool.serve_pending();
                pool.connect_for_pending();
            }
            // It counts itself out.
            Kind::Raw(_) => {}
        }
    }
}

/// A stream to `host` of `cluster`. Ready at its first poll, and without allocating, when a connection is ready.
/// Dropping the future takes the request out of the queue; a connection that is being made stays for others.
///
/// # Errors
/// [`PoolFailure`].
pub async fn http_stream(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    options: &StreamOptions<'_>,
) -> Result<PooledStream, PoolFailure> {
    let wait = {
        if cluster.config.preconnect.predictive_ratio > 1000 {
            preconnect(cluster, options);
        }
        let pool = pool_of(&cluster.serving(host), host, options)?;
        if let Some(result) = pool.ready_stream() {
            return result;
        }
        pool.wait()?
    };
    wait.await
}

/// Opens connections to the hosts that are picked next, for streams that are expected to follow the one that comes now.
fn preconnect(cluster: &Arc<Cluster>, options: &StreamOptions<'_>) {
    let ratio = cluster.config.preconnect.predictive_ratio;
    // The number per stream is bounded as in Envoy.
    for _ in 0..3 {
        let mut demand = Demand { streams: 1, capacity: 0 };
        for pool in worker::of(cluster).pools.map.borrow().values() {
            let own = pool.demand();
            demand.streams += own.streams;
            demand.capacity += own.capacity;
        }
        if !demand.exceeds(ratio) {
            return;
        }
        let next = worker::peek_host(cluster).and_then(|host| pool_of(cluster, &host, options).ok());
        if !next.is_some_and(|pool| pool.preconnect(ratio)) {
            return;
        }
    }
}

/// What tells the pools of a cluster apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct PoolKey {
    host: u64,
    priority: ResourcePriority,
    protocol: PoolProtocol,
    /// Hash of the transport options, 0 for the default ones. Equal hashes of different options count on.
    options: u64,
    /// The downstream connection that it belongs to; 0 for all.
    downstream: u64,
}

fn pool_of(cluster: &Arc<Cluster>, host: &Arc<Host>, options: &StreamOptions<'_>) -> Result<Rc<HttpPool>, PoolFailure> {
    let http = &cluster.config.http;
    let protocol = match (http.protocol, options.downstream_protocol) {
        (UpstreamProtocol::Http1, _) => PoolProtocol::Http1,
        (UpstreamProtocol::Http2, _) => PoolProtocol::Http2,
        (UpstreamProtocol::Auto, _) => PoolProtocol::Auto,
        (UpstreamProtocol::UseDownstream, Some(Protocol::Http2 | Protocol::Http3)) => PoolProtocol::Http2,
        (UpstreamProtocol::UseDownstream, _) => PoolProtocol::Http1,
        (UpstreamProtocol::Http3, _) => {
            return Err(PoolFailure {
                reason: ResetReason::LocalConnectionFailure,
                transport_failure_reason: Some("HTTP/3 is not implemented yet".into()),
                host: Some(host.clone()),
                no_pool: false,
            });
        }
    };
    let server_name = match options.authority {
        Some(authority) if http.auto_sni && cluster.transport.is_secure(host) => sni_of(authority),
        _ => None,
    };
    let own_pool = cluster.config.connection_pool_per_downstream_connection;
    let downstream = if own_pool { options.downstream_connection } else { 0 };
    let mut key = PoolKey { host: host.id, priority: options.priority, protocol, options: 0, downstream };
    let client = options.client.filter(|_| cluster.transport.tells_of_clients(host));
    if server_name.is_some() || client.is_some() {
        let mut hasher = FxHasher::default();
        server_name.hash(&mut hasher);
        if let Some(client) = &client {
            client.hash(&mut hasher);
        }
        key.options = hasher.finish() | 1;
    }
    let fits = |options: &TransportOptions| {
        options.server_name.as_deref() == server_name
            && match (&client, &options.client) {
                (Some(client), Some(told)) => client.is(told),
                (client, told) => client.is_none() && told.is_none(),
            }
    };
    let own = worker::of(cluster);
    let map = own.pools.map.borrow();
    loop {
        match map.get(&key) {
            Some(pool) if fits(&pool.options) => return Ok(pool.clone()),
            // Other options with the same hash: a client may look for such, so never share.
            Some(_) => key.options = key.options.wrapping_add(2),
            None => break,
        }
    }
    drop(map);
    let limits = cluster.resource_manager(options.priority);
    if !limits.can_create(Resource::ConnectionPools) {
        own.pools.free_one(options.priority);
    }
    if !limits.can_create(Resource::ConnectionPools) {
        cluster.stats.upstream_cx_pool_overflow().inc();
        return Err(PoolFailure { no_pool: true, ..PoolFailure::overflow(None) });
    }
    worker::register(&cluster.workers);
    let transport = TransportOptions {
        server_name: server_name.map(Into::into),
        client: client.map(|client| Box::new(client.to_owned())),
    };
    let codecs = own.pools.codecs.get_or_init(|| codecs(cluster)).clone();
    let pool = HttpPool::new(cluster, host, options.priority, protocol, transport, key, codecs);
    if cluster.is_removed() {
        pool.drain_from_the_start();
    }
    own.pools.map.borrow_mut().insert(key, pool.clone());
    Ok(pool)
}

/// Codec settings of connections to `cluster`.
pub(crate) fn codecs(cluster: &Cluster) -> Codecs {
    let config = &cluster.config;
    let http = &config.http;
    let buffer_limit = config.per_connection_buffer_limit_bytes as usize;
    let limits = |default_kb: u32| Limits {
        max_bytes: http.max_response_headers_kb.unwrap_or(default_kb) as usize * 1024,
        max_count: http.max_headers_count as usize,
    };
    let stats = Http2Stats::new(cluster.stats.registry(), &format!("{}http2.", cluster.stats.prefix()));
    let h1_stats = Http1Stats::new(cluster.stats.registry(), &format!("{}http1.", cluster.stats.prefix()));
    Codecs {
        h1: Rc::new(nuncio_http::codec::h1::ClientConfig::new(&http.http1, limits(80), buffer_limit)),
        h1_stats,
        h2: Rc::new(nuncio_http::codec::h2::Config {
            options: http.http2.clone(),
            limits: limits(60),
            underscores: nuncio_config::hcm::UnderscoresAction::Allow,
            stream_error_on_invalid_http_message: http.http2.stream_error_on_invalid_http_message.unwrap_or(false),
            buffer_limit,
            runtime: None,
            stats,
        }),
    }
}

/// Takes an unused pool out of the map.
fn forget(cluster: &Cluster, key: PoolKey) {
    let pool = worker::of(cluster).pools.map.borrow_mut().remove(&key);
    drop(pool);
}

/// One worker's pools of one cluster.
#[derive(Default)]
pub(crate) struct Pools {
    map: RefCell<FxHashMap<PoolKey, Rc<HttpPool>>>,
    codecs: OnceCell<Codecs>,
}

impl Pools {
    pub(crate) fn is_empty(&self) -> bool {
        self.map.borrow().is_empty()
    }

    /// Gives up a pool that nobody uses, so that there is room for another one.
    fn free_one(&self, priority: ResourcePriority) {
        let idle = |pool: &&Rc<HttpPool>| pool.priority == priority && pool.is_idle();
        let found = self.map.borrow().values().find(idle).cloned();
        if let Some(pool) = found {
            pool.drain();
            let gone = self.map.borrow_mut().remove(&pool.key);
            drop((gone, pool));
        }
    }

    /// Drains the pools of hosts that are gone, and what those of failing hosts have; all pools when the cluster is gone.
    pub(crate) fn host_set_changed(&self, cluster: Option<&Cluster>) {
        let pools: Vec<_> = self.map.borrow().values().cloned().collect();
        let all = cluster.is_none_or(Cluster::is_removed);
        let every = cluster.is_some_and(|cluster| cluster.config.lb_common.close_connections_on_host_set_change);
        for pool in pools {
            if all || pool.host.is_removed() {
                pool.drain();
            } else if pool.host_failed() || every {
                pool.drain_existing();
            }
        }
    }
}
