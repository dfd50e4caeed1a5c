//! Making one connection: socket, then TLS, under one deadline (`connect_timeout`), and counting it.

use crate::circuit_breakers::{Resource, ResourcePriority};
use crate::cluster::Cluster;
use crate::host::Host;
use crate::stats::ClusterStats;
use crate::transport::TransportOptions;
use nuncio_base::clock;
use nuncio_base::timer;
use nuncio_config::cluster::HappyEyeballs;
use nuncio_config::listener::IpVersion;
use nuncio_http::codec::ResetReason;
use nuncio_net::address::Address;
use nuncio_net::connection::{ByteStats, ConnectionInfo, Io, Plain};
use nuncio_net::socket::{self, ConnectError};
use smallvec::SmallVec;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Delay between attempts of happy eyeballs (RFC 8305), as in Envoy.
const ATTEMPT_DELAY: Duration = Duration::from_millis(300);

/// A connection that is ready for its protocol.
pub(crate) struct Connected {
    pub(crate) io: Io,
    pub(crate) info: ConnectionInfo,
}

/// A connection that could not be made.
#[derive(Debug, Clone)]
pub(crate) struct ConnectFailure {
    pub(crate) reason: ResetReason,
    pub(crate) text: Option<Box<str>>,
}

/// Connects to `host` within the cluster's connect timeout, which covers the TLS handshake. `alpn` replaces the names of
/// the TLS context.
pub(crate) async fn connect(
    cluster: &Cluster,
    host: &Host,
    options: &TransportOptions,
    alpn: Option<&[&[u8]]>,
) -> Result<Connected, ConnectFailure> {
    match timer::timeout(cluster.config.connect_timeout, attempt(cluster, host, options, alpn)).await {
        Ok(result) => result,
        Err(timer::Elapsed) => {
            cluster.stats.upstream_cx_connect_timeout().inc();
            Err(ConnectFailure { reason: ResetReason::ConnectionTimeout, text: None })
        }
    }
}

async fn attempt(
    cluster: &Cluster,
    host: &Host,
    options: &TransportOptions,
    alpn: Option<&[&[u8]]>,
) -> Result<Connected, ConnectFailure> {
    let mut addresses = host.connect_addresses();
    in_turn(&mut addresses, cluster.config.happy_eyeballs);
    let target = Target { addresses: &addresses, socket_match: host.transport_socket_match };
    open(cluster, host, &target, options, alpn).await
}

/// Puts addresses of both IP versions in the order of RFC 8305: some of the first version, one of the other, and so on.
fn in_turn(addresses: &mut SmallVec<[Address; 2]>, order: HappyEyeballs) {
    let version = |address: &Address| address.ip().map(|ip| ip.is_ipv4());
    let [first, rest @ ..] = &**addresses else { return };
    // Other addresses than IP stand alone.
    let Some(v4) = version(first) else { return };
    if order.first.is_none() && rest.iter().all(|address| version(address) == Some(v4)) {
        return;
    }
    let v4 = order.first.map_or(v4, |first| first == IpVersion::V4);
    let (preferred, other): (Vec<_>, Vec<_>) = addresses.drain(..).partition(|address| version(address) == Some(v4));
    let (mut preferred, mut other) = (preferred.into_iter(), other.into_iter());
    while preferred.len() + other.len() > 0 {
        addresses.extend(preferred.by_ref().take(order.count.max(1) as usize));
        addresses.extend(other.next());
    }
}

/// Where a connection goes.
pub(crate) struct Target<'a> {
    /// At least one; tried one after the other.
    pub(crate) addresses: &'a [Address],
    /// Index of the transport socket match.
    pub(crate) socket_match: Option<u32>,
}

/// Connects, without counting anything and without a deadline.
pub(crate) async fn open(
    cluster: &Cluster,
    host: &Host,
    target: &Target<'_>,
    options: &TransportOptions,
    alpn: Option<&[&[u8]]>,
) -> Result<Connected, ConnectFailure> {
    let addresses = target.addresses;
    let (start_time, start) = (SystemTime::now(), clock::now());
    // The deadline is the caller's.
    let connected = socket::connect_any(addresses, &cluster.connect, ATTEMPT_DELAY, Duration::ZERO).await;
    let connected = connected.map(|(index, plain)| (addresses[index].clone(), plain));
    let (address, plain) = connected.map_err(|error| failure(cluster, &addresses[0], error))?;
    if let Some(stream) = plain.tcp_stream() {
        // Latency counts more than the number of packets, as in Envoy; a failure costs only that.
        let _ = stream.set_nodelay(true);
    }
    let local = local_address(&plain, &address);
    let mut info = ConnectionInfo::new(local, address);
    info.connected = Some(info.start);
    (info.start_time, info.start) = (start_time, start);
    let mut io = cluster.transport.wrap(target.socket_match, host, plain, options, alpn, &mut info).await?;
    io.set_meter(info.bytes.clone());
    Ok(Connected { io, info })
}

fn local_address(plain: &Plain, remote: &Address) -> Address {
    match (plain.tcp_stream().and_then(|stream| stream.local_addr().ok()), remote) {
        (Some(local), _) => Address::Ip(local),
        (None, Address::Ip(_)) => Address::Ip(SocketAddr::from(([0, 0, 0, 0], 0))),
        (None, _) => Address::Pipe("".into()),
    }
}

fn failure(cluster: &Cluster, address: &Address, error: ConnectError) -> ConnectFailure {
    match error {
        ConnectError::Timeout => ConnectFailure { reason: ResetReason::ConnectionTimeout, text: None },
        ConnectError::Local { .. } => {
            cluster.stats.bind_errors().inc();
            ConnectFailure { reason: ResetReason::LocalConnectionFailure, text: Some(error.to_string().into()) }
        }
        ConnectError::Failed(error) => {
            // Envoy tells whether connect(2) failed at once or later.
            let later = matches!(address, Address::Ip(_))
                && matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::HostUnreachable
                );
            let when = if later { "delayed" } else { "immediate" };
            let text = format!("{when} connect error: {}", socket::reason(&error));
            ConnectFailure { reason: ResetReason::RemoteConnectionFailure, text: Some(text.into()) }
        }
    }
}

/// Where the bytes of a connection are counted.
struct ClusterBytes(Arc<ClusterStats>);

impl ByteStats for ClusterBytes {
    fn received(&self, count: u64) {
        self.0.upstream_cx_rx_bytes_total().add(count);
    }

    fn sent(&self, count: u64) {
        self.0.upstream_cx_tx_bytes_total().add(count);
    }

    fn receive_buffered(&self, change: u64) {
        self.0.upstream_cx_rx_bytes_buffered().add(change);
    }

    fn send_buffered(&self, change: u64) {
        self.0.upstream_cx_tx_bytes_buffered().add(change);
    }
}

/// Who ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// This proxy.
    Local,
    /// The host.
    Remote,
}

/// One counted connection: in the cluster, at the host, in the circuit breaker. Counted out when dropped.
pub(crate) struct CountedConnection {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) host: Arc<Host>,
    priority: ResourcePriority,
    start: Instant,
    meter: Option<Rc<nuncio_net::connection::ByteMeter>>,
    ended: Option<(Ended, bool)>,
    used: bool,
}

impl CountedConnection {
    /// Counts a connection that begins to connect.
    pub(crate) fn new(cluster: &Arc<Cluster>, host: &Arc<Host>, priority: ResourcePriority) -> Self {
        host.stats.cx_total.fetch_add(1, Relaxed);
        host.stats.cx_active.fetch_add(1, Relaxed);
        cluster.stats.upstream_cx_total().inc();
        cluster.stats.upstream_cx_active().inc();
        cluster.resource_manager(priority).inc(Resource::Connections);
        CountedConnection {
            cluster: cluster.clone(),
            host: host.clone(),
            priority,
            start: clock::now(),
            meter: None,
            ended: None,
            used: false,
        }
    }

    /// It is connected.
    pub(crate) fn connected(&mut self, info: &ConnectionInfo) {
        self.cluster
            .stats
            .upstream_cx_connect_ms()
            .record(clock::now().saturating_duration_since(self.start).as_millis() as u64);
        info.bytes.attach(Rc::new(ClusterBytes(self.cluster.stats.clone())));
        self.meter = Some(info.bytes.clone());
    }

    /// It failed before it was connected.
    pub(crate) fn failed(&mut self, failure: &ConnectFailure) {
        self.cluster.stats.upstream_cx_connect_fail().inc();
        self.host.stats.cx_connect_fail.fetch_add(1, Relaxed);
        let remote = failure.reason == ResetReason::RemoteConnectionFailure;
        self.ended = Some((if remote { Ended::Remote } else { Ended::Local }, false));
    }

    /// Says who ends it, and whether a request was active.
    pub(crate) fn ended(&mut self, who: Ended, with_active_request: bool) {
        self.ended.get_or_insert((who, with_active_request));
    }

    /// It serves one user until it ends: unless told otherwise, it ends here with its user active.
    pub(crate) fn in_use(&mut self) {
        self.used = true;
    }

    /// When it began.
    pub(crate) fn start(&self) -> Instant {
        self.start
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        if let Some(meter) = &self.meter {
            meter.detach();
        }
        let stats = &self.cluster.stats;
        let (who, active) = self.ended.unwrap_or((Ended::Local, self.used));
        stats.upstream_cx_destroy().inc();
        match who {
            Ended::Local => stats.upstream_cx_destroy_local().inc(),
            Ended::Remote => stats.upstream_cx_destroy_remote().inc(),
        }
        if active {
            stats.upstream_cx_destroy_with_active_rq().inc();
            match who {
                Ended::Local => stats.upstream_cx_destroy_local_with_active_rq().inc(),
                Ended::Remote => stats.upstream_cx_destroy_remote_with_active_rq().inc(),
            }
        }
        stats.upstream_cx_length_ms().record(clock::now().saturating_duration_since(self.start).as_millis() as u64);
        stats.upstream_cx_active().dec();
        self.host.stats.cx_active.fetch_sub(1, Relaxed);
        self.cluster.resource_manager(self.priority).dec(Resource::Connections);
    }
}

/// One counted request on a connection. Counted out when dropped.
pub(crate) struct CountedRequest {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    priority: ResourcePriority,
}

impl CountedRequest {
    pub(crate) fn new(cluster: &Arc<Cluster>, host: &Arc<Host>, priority: ResourcePriority) -> Self {
        host.stats.rq_total.fetch_add(1, Relaxed);
        host.stats.rq_active.fetch_add(1, Relaxed);
        cluster.stats.upstream_rq_total().inc();
        cluster.stats.upstream_rq_active().inc();
        cluster.resource_manager(priority).inc(Resource::Requests);
        CountedRequest { cluster: cluster.clone(), host: host.clone(), priority }
    }
}

impl Drop for CountedRequest {
    fn drop(&mut self) {
        self.host.stats.rq_active.fetch_sub(1, Relaxed);
        self.cluster.stats.upstream_rq_active().dec();
        self.cluster.resource_manager(self.priority).dec(Resource::Requests);
    }
}

/// One counted request that waits for a connection. Counted out when dropped.
pub(crate) struct CountedPending {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    priority: ResourcePriority,
}

impl CountedPending {
    pub(crate) fn new(cluster: &Arc<Cluster>, host: &Arc<Host>, priority: ResourcePriority) -> Self {
        cluster.stats.upstream_rq_pending_total().inc();
        cluster.stats.upstream_rq_pending_active().inc();
        host.stats.rq_pending_active.fetch_add(1, Relaxed);
        cluster.resource_manager(priority).inc(Resource::PendingRequests);
        CountedPending { cluster: cluster.clone(), host: host.clone(), priority }
    }
}

impl Drop for CountedPending {
    fn drop(&mut self) {
        self.cluster.stats.upstream_rq_pending_active().dec();
        self.host.stats.rq_pending_active.fetch_sub(1, Relaxed);
        self.cluster.resource_manager(self.priority).dec(Resource::PendingRequests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_versions_take_turns() {
        let ordered = |text: &str, first, count| {
            let address = |name: &str| {
                let ip = if name.starts_with('6') { "[::1]" } else { "127.0.0.1" };
                Address::Ip(format!("{ip}:{}", &name[1..]).parse().expect("an address"))
            };
            let mut addresses = text.split(' ').map(address).collect();
            in_turn(&mut addresses, HappyEyeballs { first, count });
            let name = |address: &Address| {
                let version = if address.ip().is_some_and(|ip| ip.is_ipv6()) { 6 } else { 4 };
                format!("{version}{}", address.port().unwrap_or_default())
            };
            addresses.iter().map(name).collect::<Vec<_>>().join(" ")
        };
        let (v4, v6) = (Some(IpVersion::V4), Some(IpVersion::V6));
        assert_eq!(ordered("41 42 63 44 65", None, 1), "41 63 42 65 44");
        assert_eq!(ordered("61 62 43 44", None, 1), "61 43 62 44");
        assert_eq!(ordered("61 42 63 44", v4, 1), "42 61 44 63");
        assert_eq!(ordered("61 42 63 44", v4, 2), "42 44 61 63");
        assert_eq!(ordered("61 62 63 64 45 46", v6, 3), "61 62 63 45 64 46");
        assert_eq!(ordered("41 42 43", v6, 1), "41 42 43");
        assert_eq!(ordered("41", v6, 1), "41");
    }
}
