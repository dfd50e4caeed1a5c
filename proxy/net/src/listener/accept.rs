//! The accept loop of a worker, and the way of a connection from accept to its filter chain.
//!
//! The loop ends only when the listener is stopped: an error of accept(2) is counted and followed by a pause. Each
//! connection is a task of its own; what it needs until its filter chain serves it is in a future that is freed then.

use nuncio_base::clock;
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt as _;
use nuncio_base::timer::timeout;
use rustc_hash::FxHashMap;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::stats::{AcceptedGuard, ConnectionGuard, PreConnectionGuard, WorkerListenerStats};
use super::{
    ConnectionEnd, FilterChain, FilterChainHandler, Listener, ListenerAccessLog, Table, WorkerSocket, is_shortage,
};
use crate::address::{Address, unmap};
use crate::connection::{Connection, ConnectionInfo, Io, ListenerInfo, Plain, TransportProtocol, next_connection_id};
use crate::listener_filters::{FilterSlot, Verdict};
use crate::socket::start_listening;

/// Pause after accept(2) has failed for want of descriptors or memory.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);
/// Deadline of a TLS handshake where `transport_socket_connect_timeout` is not set: Envoy has none then, and leaves it to
/// the idle timeout of the HTTP connection manager, which is this long.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(3600);
/// First read of the listener filters.
const INSPECT_BUFFER: usize = 2048;
/// Connections taken in one go where the configuration sets no limit, so that those already open get their turn.
const ACCEPT_BATCH: u32 = 64;

/// The listeners that run on a worker, found by address (`use_original_dst`).
#[derive(Default)]
pub struct WorkerListeners {
    by_address: RefCell<FxHashMap<SocketAddr, Rc<WorkerListener>>>,
}

impl WorkerListeners {
    /// The listener of an address: of exactly that one, or of all addresses with its port.
    fn find(&self, address: SocketAddr) -> Option<Rc<WorkerListener>> {
        let all = self.by_address.borrow();
        let wildcard = match address {
            SocketAddr::V4(_) => SocketAddr::from(([0; 4], address.port())),
            SocketAddr::V6(_) => SocketAddr::from(([0; 16], address.port())),
        };
        all.get(&address).or_else(|| all.get(&wildcard)).cloned()
    }
}

/// A listener on one worker, with the handlers of its filter chains.
struct WorkerListener {
    listener: Arc<Listener>,
    stats: Rc<WorkerListenerStats>,
    handlers: RefCell<Handlers>,
    others: Rc<WorkerListeners>,
}

/// Handlers made so far, by the id of their chain.
#[derive(Default)]
struct Handlers {
    table: Option<Arc<Table>>,
    by_chain: FxHashMap<u64, Rc<dyn FilterChainHandler>>,
}

/// Runs a listener on this worker (0-based) until it is stopped. To be called inside a `LocalSet`.
///
/// # Errors
/// When a bound socket cannot be given to the runtime.
pub async fn run_listener(listener: Arc<Listener>, worker: usize, others: Rc<WorkerListeners>) -> io::Result<()> {
    let prefix = format!("{}worker_{worker}.", listener.stat_prefix);
    let stats = Rc::new(WorkerListenerStats::new(&listener.registry, &prefix));
    let sockets = listener.take_sockets();
    let this = Rc::new(WorkerListener {
        stats,
        handlers: RefCell::default(),
        others: others.clone(),
        listener: listener.clone(),
    });
    // Connections are handed over by their original destination, which is one of this network.
    let here = sockets.iter().filter(|own| own.network_namespace.is_none());
    let mut keys: Vec<_> = here.filter_map(|own| own.address.socket_addr()).collect();
    if sockets.is_empty() {
        // Not bound: reachable only from another listener.
        let config = listener.config();
        keys.extend(config.addresses.iter().filter_map(|address| Address::from(&address.address).socket_addr()));
    }
    for key in &keys {
        others.by_address.borrow_mut().insert(*key, this.clone());
    }
    let mut acceptors = Vec::new();
    for own in sockets {
        if own.options.bind_only {
            start_listening(&own.socket, &own.options, own.address.clone()).map_err(io::Error::other)?;
        }
        acceptors.push(Acceptor::new(own, &listener)?);
    }
    let loops: Vec<_> = acceptors.iter().map(|acceptor| accept_loop(this.clone(), acceptor)).collect();
    let refresh = async {
        loop {
            this.listener.changed.notified().await;
            // Handlers of chains that are gone must not stay until the next connection.
            this.refresh();
        }
    };
    tokio::select! {
        () = listener.stop.wait() => {}
        () = refresh => {}
        () = async { futures_util::future::join_all(loops).await; std::future::pending::<()>().await } => {}
    }
    others.by_address.borrow_mut().retain(|_, other| !Rc::ptr_eq(other, &this));
    if !listener.handed_over.load(Ordering::Acquire) {
        // Clients of connections that wait in the queue believe that they are connected: closing would reset them.
        for acceptor in acceptors {
            acceptor.take_rest(&this);
        }
    }
    Ok(())
}

struct Acceptor {
    socket: Accepting,
    /// For connections of another network: the listener with its namespace.
    info: Option<Arc<ListenerInfo>>,
}

enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The local end of connections that a socket accepts.
struct LocalEnd {
    address: Address,
    info: Option<Arc<ListenerInfo>>,
}

impl Acceptor {
    fn new(own: WorkerSocket, listener: &Listener) -> io::Result<Self> {
        let socket = match own.address {
            Address::Ip(_) => Accepting::Tcp(TcpListener::from_std(own.socket.into())?),
            _ => Accepting::Unix(UnixListener::from_std(own.socket.into())?),
        };
        let info = own.network_namespace.map(|namespace| {
            Arc::new(ListenerInfo { network_namespace: Some(namespace), ..ListenerInfo::clone(&listener.info) })
        });
        Ok(Self { socket, info })
    }

    async fn accept(&self) -> io::Result<(Plain, Address)> {
        match &self.socket {
            Accepting::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Plain::tcp(stream), Address::Ip(unmap(peer))))
            }
            Accepting::Unix(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Plain::unix(stream), Address::from_unix(&peer)))
            }
        }
    }

    /// Starts the connections that wait in the queue; closes the socket.
    fn take_rest(self, this: &Rc<WorkerListener>) {
        let own = self.local();
        match self.socket {
            Accepting::Tcp(listener) => {
                let Ok(listener) = listener.into_std() else { return };
                while let Ok((stream, peer)) = listener.accept() {
                    if stream.set_nonblocking(true).is_ok()
                        && let Ok(stream) = TcpStream::from_std(stream)
                    {
                        start(this, Plain::tcp(stream), Address::Ip(unmap(peer)), &own);
                    }
                }
            }
            Accepting::Unix(listener) => {
                let Ok(listener) = listener.into_std() else { return };
                while let Ok((stream, peer)) = listener.accept() {
                    if stream.set_nonblocking(true).is_ok()
                        && let Ok(stream) = UnixStream::from_std(stream)
                    {
                        start(this, Plain::unix(stream), Address::from_unix(&peer.into()), &own);
                    }
                }
            }
        }
    }

    fn local(&self) -> LocalEnd {
        let address = match &self.socket {
            Accepting::Tcp(listener) => listener.local_addr().ok().map(Address::Ip),
            Accepting::Unix(listener) => listener.local_addr().ok().map(|addr| Address::from_unix(&addr)),
        };
        let address = address.unwrap_or_else(|| Address::Pipe("".into()));
        LocalEnd { address, info: self.info.clone() }
    }
}

async fn accept_loop(this: Rc<WorkerListener>, acceptor: &Acceptor) {
    let listener = &this.listener;
    let own = acceptor.local();
    let batch = listener.config().max_connections_to_accept_per_socket_event.unwrap_or(ACCEPT_BATCH).max(1);
    loop {
        let mut next = Some(acceptor.accept().await);
        let mut accepted = 0;
        while let Some(outcome) = next.take() {
            match outcome {
                Ok((plain, peer)) => {
                    accepted += 1;
                    start(&this, plain, peer, &own);
                    if accepted < batch {
                        next = acceptor.accept().now_or_never();
                    }
                }
                Err(error) if is_shortage(&error) => {
                    listener.stats.downstream_cx_overload_reject().inc();
                    tracing::warn!(listener = %listener.name, %error, "cannot accept; trying again soon");
                    tokio::time::sleep(SHORTAGE_PAUSE).await;
                }
                // The connection is gone already (ECONNABORTED and the network errors of accept(2)).
                Err(error) => {
                    tracing::debug!(listener = %listener.name, %error, "accept failed");
                    tokio::task::yield_now().await;
                }
            }
        }
        if accepted > 0 {
            listener.stats.connections_accepted_per_socket_event().record(accepted.into());
        }
        if accepted >= batch {
            tokio::task::yield_now().await;
        }
    }
}

fn start(this: &Rc<WorkerListener>, plain: Plain, peer: Address, own: &LocalEnd) {
    let Some(accepted) = AcceptedGuard::new(&this.listener) else { return };
    let local = match (&own.address, plain.tcp_stream()) {
        // A wildcard socket does not know the address that the peer used.
        (Address::Ip(addr), Some(stream)) if addr.ip().is_unspecified() => {
            stream.local_addr().map_or_else(|_| own.address.clone(), |addr| Address::Ip(unmap(addr)))
        }
        _ => own.address.clone(),
    };
    if let Some(stream) = plain.tcp_stream() {
        // Fails only on a connection that is gone.
        let _ = stream.set_nodelay(true);
    }
    let mut info = ConnectionInfo::unnumbered(local, peer);
    info.listener.clone_from(&own.info);
    tokio::task::spawn_local(clock::once_per_poll(connection(this.clone(), plain, info, accepted)));
}

async fn connection(mut this: Rc<WorkerListener>, mut plain: Plain, mut info: ConnectionInfo, accepted: AcceptedGuard) {
    let mut accepted = accepted;
    let table = this.listener.table.load_full();
    if !table.filters.is_empty() {
        match Box::pin(inspect(&this.listener, &table, plain, info)).await {
            Ok(passed) => (plain, info) = passed,
            Err(refused) => return log(&table.access_logs, &Rc::from(refused), ConnectionEnd::default()),
        }
    }
    if table.config.use_original_dst
        && let Some(target) =
            info.local_address.socket_addr().filter(|_| info.local_address != info.direct_local_address)
        && let Some(other) = this.others.find(target).filter(|other| !Arc::ptr_eq(&other.listener, &this.listener))
    {
        let Some(guard) = AcceptedGuard::new(&other.listener) else { return };
        accepted = guard;
        this = other;
    }
    if info.detected_transport_protocol == TransportProtocol::Unknown {
        info.detected_transport_protocol = TransportProtocol::RawBuffer;
    }
    let table = this.listener.table.load_full();
    let chain = table.find(&info).cloned();
    let own = info.listener.take().filter(|own| own.name == this.listener.info.name);
    let Some(chain) = chain else {
        tracing::debug!(peer = %info.remote_address, "closing connection: no matching filter chain found");
        this.listener.stats.no_filter_chain_match().inc();
        close_unread(&plain);
        return log(&table.access_logs, &Rc::new(info), ConnectionEnd { no_filter_chain: true });
    };
    info.id = next_connection_id();
    info.listener = Some(own.unwrap_or_else(|| this.listener.info.clone()));
    info.filter_chain_name = chain.name.clone();
    info.filter_chain_metadata.clone_from(&chain.config.metadata);
    let handler = this.handler(&table, &chain);
    let logs = (!table.access_logs.is_empty()).then(|| table.clone());
    drop(table);
    let counted = ConnectionGuard::new(&this.listener, &this.stats);
    let io = if chain.tls.is_some() {
        let handshake = Box::pin(secure(&this.listener, &chain, plain, info));
        let (io, known) = tokio::select! {
            done = handshake => done,
            () = chain.kill.wait() => return,
        };
        info = known;
        io
    } else {
        let mut io = Io::plain(plain);
        io.set_meter(info.bytes.clone());
        Some(io)
    };
    let info = Rc::new(info);
    if let Some(io) = io {
        let connection = Connection { io, info: info.clone(), drain: chain.drain.signal() };
        let serve = handler.serve(connection);
        tokio::select! {
            () = serve => {}
            () = chain.kill.close(&info) => {}
        }
    }
    drop(counted);
    drop(accepted);
    if let Some(table) = logs {
        log(&table.access_logs, &info, ConnectionEnd::default());
    }
}

fn log(logs: &[Arc<dyn ListenerAccessLog>], info: &Rc<ConnectionInfo>, end: ConnectionEnd) {
    for log in logs {
        log.log(info, &end);
    }
}

/// Envoy's listener filters only peek, so that a close finds unread bytes and the kernel sends a reset. The same here.
fn close_unread(plain: &Plain) {
    if !plain.prefix().is_empty() {
        plain.reset_on_close();
    }
}

/// Runs the listener filters; gives the connection back, or only what is known about it when it is refused.
async fn inspect(
    listener: &Listener,
    table: &Table,
    mut plain: Plain,
    mut info: ConnectionInfo,
) -> Result<(Plain, ConnectionInfo), Box<ConnectionInfo>> {
    let _pre = PreConnectionGuard::new(&listener.stats);
    let mut buffer = BytesMut::new();
    let limit = table.config.listener_filters_timeout;
    let filters = run_filters(listener, table, &mut plain, &mut buffer, &mut info);
    let passed = if limit.is_zero() {
        filters.await
    } else {
        timeout(limit, filters).await.unwrap_or_else(|_| {
            listener.stats.downstream_pre_cx_timeout().inc();
            table.config.continue_on_listener_filters_timeout
        })
    };
    if !buffer.is_empty() {
        plain.unread(buffer.freeze());
    }
    if passed {
        return Ok((plain, info));
    }
    close_unread(&plain);
    Err(Box::new(info))
}

/// False when the connection must be closed.
async fn run_filters(
    listener: &Listener,
    table: &Table,
    plain: &mut Plain,
    buffer: &mut BytesMut,
    info: &mut ConnectionInfo,
) -> bool {
    if table.filters.iter().any(FilterSlot::is_missing) {
        listener.stats.extension_config_missing().inc();
        return false;
    }
    for (at, slot) in table.filters.iter().enumerate() {
        let condition = table.config.listener_filters_disabled.get(at).and_then(Option::as_ref);
        if condition.is_some_and(|condition| condition.holds(info.local_address.port())) {
            continue;
        }
        let Some(pinned) = slot.pin() else { return false };
        let filter = pinned.get();
        if !filter.on_accept(info, plain.tcp_stream()) {
            continue;
        }
        loop {
            let limit = match buffer.is_empty() {
                true => INSPECT_BUFFER,
                false => match filter.on_data(buffer, info) {
                    Verdict::Done { consume } => {
                        let _ = buffer.split_to(consume.min(buffer.len()));
                        break;
                    }
                    Verdict::Close => return false,
                    Verdict::More { limit } if buffer.len() >= limit => return false,
                    Verdict::More { limit } => limit,
                },
            };
            let room = (limit - buffer.len()).min(buffer.len().max(INSPECT_BUFFER));
            buffer.reserve(room);
            match plain.read_buf(buffer).await {
                Ok(0) => {
                    listener.stats.downstream_listener_filter_remote_close().inc();
                    return false;
                }
                Ok(_) => {}
                Err(_) => {
                    listener.stats.downstream_listener_filter_error().inc();
                    return false;
                }
            }
        }
    }
    true
}

/// Does the TLS handshake; no stream when it failed.
async fn secure(
    listener: &Listener,
    chain: &FilterChain,
    plain: Plain,
    mut info: ConnectionInfo,
) -> (Option<Io>, ConnectionInfo) {
    let Some(tls) = &chain.tls else { return (None, info) };
    let configured = chain.config.transport_socket_connect_timeout;
    let limit = if configured.is_zero() { HANDSHAKE_LIMIT } else { configured };
    match timeout(limit, tls.accept(plain, &mut info)).await {
        Ok(Ok(io)) => return (Some(io), info),
        Ok(Err(error)) => {
            tracing::debug!(peer = %info.remote_address, %error, "TLS handshake failed");
            info.tls = error.tls;
        }
        Err(_) => {
            listener.stats.downstream_cx_transport_socket_connect_timeout().inc();
            info.closed_locally.set(true);
            info.set_termination_details("transport socket timeout was reached");
            let _ = info.transport_failure_reason.set("connect timeout".into());
        }
    }
    (None, info)
}

impl WorkerListener {
    /// This worker's handler of a chain.
    fn handler(&self, table: &Arc<Table>, chain: &FilterChain) -> Rc<dyn FilterChainHandler> {
        let mut handlers = self.handlers.borrow_mut();
        handlers.keep(table);
        handlers.by_chain.entry(chain.id).or_insert_with(|| chain.factory.create()).clone()
    }

    fn refresh(&self) {
        let table = self.listener.table.load_full();
        self.handlers.borrow_mut().keep(&table);
    }
}

impl Handlers {
    /// Drops the handlers of chains that are not in the table.
    fn keep(&mut self, table: &Arc<Table>) {
        if self.table.as_ref().is_some_and(|known| Arc::ptr_eq(known, table)) {
            return;
        }
        self.by_chain.retain(|id, _| table.chains.iter().any(|chain| chain.id == *id));
        self.table = Some(table.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<F>(_: impl Fn(Rc<WorkerListener>, Plain, ConnectionInfo, AcceptedGuard) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_task_of_an_idle_connection_is_small() {
        let task = size(connection);
        // With what tokio adds, a task takes whole multiples of 128 bytes: this is ten.
        assert!(task <= 1176, "{task} bytes, {} of info, {} of io", size_of::<ConnectionInfo>(), size_of::<Io>());
    }
}
