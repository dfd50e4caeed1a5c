//! Listeners: built and bound on the control thread, run by every worker.
//!
//! ```text
//! Listener::new  ->  bind  ->  run_listener on each worker  ->  update (swaps filter chains)  ->  stop  ->  close
//! ```
//!
//! A listener's filter chains and TLS contexts form a table that is swapped whole; chains that an update leaves as they
//! were keep their connections, the others drain. What a filter chain does with a connection is behind
//! [`FilterChainHandler`]; HTTP and TCP proxying are not known here.

mod accept;
mod stats;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::LocalBoxFuture;
use nuncio_base::drain::{DrainHandle, DrainStrategy};
use nuncio_base::stats::Registry;
use nuncio_config::listener::{FilterChainConfig, ListenerConfig, ListenerFilterConfig};
use rustc_hash::FxHashMap;
use socket2::Socket;
use tokio::sync::Notify;

use crate::address::Address;
use crate::chain_matcher::{ChainMatcher, FractionCheck};
use crate::connection::{Connection, ConnectionInfo, ListenerInfo, LocalClose};
use crate::filter_chain::{ChainError, ChainInput, FilterChainIndex};
use crate::listener_filters::{self, FilterSlot};
use crate::socket::{BindError, ListenOptions, listen, start_listening};
use crate::tls::server::ServerTlsContext;
use crate::tls::watch::TlsContexts;
use crate::tls::{TlsConfigError, TlsStats};

pub use accept::{WorkerListeners, run_listener};
pub use stats::{ListenerStats, WorkerListenerStats};

/// Serves the connections of one filter chain on one worker.
pub trait FilterChainHandler {
    /// Serves one connection to its end.
    fn serve(self: Rc<Self>, connection: Connection) -> LocalBoxFuture<'static, ()>;
}

/// Makes the handler of a filter chain on each worker that gets a connection for it.
pub trait FilterChainFactory: Send + Sync {
    /// Called once per worker, on the worker.
    fn create(&self) -> Rc<dyn FilterChainHandler>;
}

/// Writes the access log of a listener.
pub trait ListenerAccessLog: Send + Sync {
    /// A connection has ended.
    fn log(&self, info: &Rc<ConnectionInfo>, end: &ConnectionEnd);
}

/// How a connection ended, as far as the listener knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionEnd {
    /// No filter chain matched: response flag NR, details `filter_chain_not_found`.
    pub no_filter_chain: bool,
}

/// The connections of the whole process, against `overload.global_downstream_max_connections`.
#[derive(Debug)]
pub struct GlobalConnections {
    active: AtomicU64,
    limit: AtomicU64,
}

impl Default for GlobalConnections {
    fn default() -> Self {
        Self { active: AtomicU64::new(0), limit: AtomicU64::new(u64::MAX) }
    }
}

impl GlobalConnections {
    /// Changes the limit; connections over it stay.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Connections that are open.
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    fn try_add(&self) -> bool {
        if self.active.fetch_add(1, Ordering::Relaxed) < self.limit.load(Ordering::Relaxed) {
            return true;
        }
        self.active.fetch_sub(1, Ordering::Relaxed);
        false
    }
}

/// A listener could not be built or bound.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// The filter chains contradict each other.
    #[error("{path}: error adding listener '{addresses}': {source}")]
    Chains {
        /// Path in the configuration.
        path: Box<str>,
        /// The listener's addresses.
        addresses: String,
        /// What is wrong.
        source: ChainError,
    },
    /// A TLS context.
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
    /// A filter chain or a listener filter.
    #[error("{path}: {problem}")]
    Filter {
        /// Path in the configuration.
        path: Box<str>,
        /// What is wrong.
        problem: String,
    },
    /// A socket.
    #[error("error adding listener '{name}': {source}")]
    Bind {
        /// The listener's name.
        name: Arc<str>,
        /// What failed.
        source: BindError,
    },
}

/// Makes the factory of a filter chain, or says what is wrong with its filters.
pub type BuildFilterChain<'a> = dyn Fn(&Arc<FilterChainConfig>) -> Result<Arc<dyn FilterChainFactory>, String> + 'a;

/// Makes a listener filter that is an extension, or whose configuration is fetched.
pub type BuildListenerFilter<'a> = dyn Fn(&ListenerFilterConfig) -> Result<FilterSlot, String> + 'a;

/// What building a listener needs from outside.
pub struct ListenerParts<'a> {
    /// Stats.
    pub registry: &'a Registry,
    /// Connections of the process.
    pub global: Arc<GlobalConnections>,
    /// The server's drain.
    pub drain: &'a DrainHandle,
    /// All TLS contexts.
    pub contexts: &'a TlsContexts,
    /// Network filters.
    pub filter_chain: &'a BuildFilterChain<'a>,
    /// Listener filters that are extensions.
    pub listener_filter: &'a BuildListenerFilter<'a>,
    /// Shares in a `filter_chain_matcher`.
    pub in_fraction: FractionCheck,
    /// Access logs of the listener.
    pub access_logs: Vec<Arc<dyn ListenerAccessLog>>,
}

/// A filter chain at run time.
pub struct FilterChain {
    /// Unique in the process.
    pub id: u64,
    /// Name; may be empty.
    pub name: Arc<str>,
    /// Its configuration.
    pub config: Arc<FilterChainConfig>,
    /// TLS, or none for plain text.
    pub tls: Option<Arc<ServerTlsContext>>,
    factory: Arc<dyn FilterChainFactory>,
    drain: DrainHandle,
    /// Ends the connections that are left.
    kill: Kill,
}

/// An end that tasks can wait for: of a listener's accepting, of a filter chain's connections.
#[derive(Clone, Default)]
pub(crate) struct Kill(Arc<(OnceLock<LocalClose>, Notify)>);

impl Kill {
    /// The first reason stays.
    fn set(&self, reason: LocalClose) {
        self.0.0.get_or_init(|| reason);
        self.0.1.notify_waiters();
    }

    async fn wait(&self) {
        let notified = self.0.1.notified();
        if self.0.0.get().is_none() {
            notified.await;
        }
    }

    /// Waits, and writes down why the connection ends before what goes on in it is dropped.
    async fn close(&self, info: &ConnectionInfo) {
        let notified = self.0.1.notified();
        if self.0.0.get().is_none() {
            notified.await;
        }
        info.local_close.set(self.0.0.get().copied());
        info.closed_locally.set(true);
    }
}

/// The filter chains of a listener and their index; swapped whole.
struct Table {
    chains: Vec<Arc<FilterChain>>,
    default: Option<usize>,
    chooser: Chooser,
    filters: Vec<FilterSlot>,
    access_logs: Vec<Arc<dyn ListenerAccessLog>>,
    config: Arc<ListenerConfig>,
}

/// What chooses the filter chain of a connection.
enum Chooser {
    /// The chains' own matches.
    Matches(FilterChainIndex),
    /// `filter_chain_matcher`.
    Matcher(ChainMatcher),
}

impl Table {
    fn find(&self, info: &ConnectionInfo) -> Option<&Arc<FilterChain>> {
        let at = match &self.chooser {
            Chooser::Matches(index) => index.find(&ChainInput::from(info), None).or(self.default),
            Chooser::Matcher(matcher) => matcher.find(info, self.default),
        };
        self.chains.get(at?)
    }
}

/// Filter chains that are built and not yet in use.
pub struct PreparedUpdate {
    table: Arc<Table>,
}

impl PreparedUpdate {
    /// All chains, those included that stay.
    pub fn filter_chains(&self) -> &[Arc<FilterChain>] {
        &self.table.chains
    }
}

/// A listener, shared by all workers.
pub struct Listener {
    name: Arc<str>,
    info: Arc<ListenerInfo>,
    registry: Registry,
    stat_prefix: Box<str>,
    pub(crate) stats: ListenerStats,
    tls_stats: Arc<TlsStats>,
    table: ArcSwap<Table>,
    /// Told when the table changes.
    changed: Notify,
    addresses: Mutex<Vec<Bound>>,
    drain: DrainHandle,
    stop: Kill,
    /// Its sockets live on in another listener.
    handed_over: AtomicBool,
    ignore_global_limit: bool,
    global: Arc<GlobalConnections>,
    connection_limit: AtomicU64,
    active: AtomicU64,
    /// Told when the last connection has ended.
    idle: Notify,
}

/// A bound address with the sockets that workers have not taken yet.
struct Bound {
    address: Address,
    /// What was asked for; its port may be 0.
    configured: nuncio_config::address::Address,
    options: ListenOptions,
    sockets: VecDeque<Socket>,
    /// The same sockets, for a listener that takes over: their queues of connections stay open.
    kept: Vec<Socket>,
}

/// A socket for a worker, and how it has to listen.
struct WorkerSocket {
    address: Address,
    network_namespace: Option<Arc<str>>,
    options: ListenOptions,
    socket: Socket,
}

impl Listener {
    /// Builds the filter chains, TLS contexts and filters; binds nothing.
    ///
    /// # Errors
    /// [`ListenerError`], the first that is found.
    pub fn new(config: Arc<ListenerConfig>, parts: ListenerParts<'_>) -> Result<Arc<Self>, ListenerError> {
        let first = config.addresses.first().map(|address| Address::from(&address.address));
        let stat_prefix = match (&config.stat_prefix, &first) {
            (Some(prefix), _) => format!("listener.{prefix}."),
            (None, Some(address)) => format!("listener.{}.", address.stat_name()),
            (None, None) => format!("listener.{}.", config.name),
        };
        let registry = parts.registry;
        let tls_stats = Arc::new(TlsStats::server(registry, &stat_prefix));
        let drain = match config.drain_modify_only {
            true => parts.drain.child_for_modifications(),
            false => parts.drain.child(),
        };
        let table = build_table(&config, &parts, &[], &tls_stats, &drain, &|_, _| false)?;
        Ok(Arc::new(Self {
            name: config.name.clone(),
            info: Arc::new(ListenerInfo {
                name: config.name.clone(),
                direction: config.traffic_direction,
                metadata: config.metadata.clone(),
                buffer_limit: config.per_connection_buffer_limit_bytes,
                network_namespace: None,
            }),
            stats: ListenerStats::new(registry, &stat_prefix),
            tls_stats,
            registry: registry.clone(),
            stat_prefix: stat_prefix.into(),
            table: ArcSwap::from_pointee(table),
            changed: Notify::new(),
            addresses: Mutex::default(),
            drain,
            stop: Kill::default(),
            handed_over: AtomicBool::new(false),
            ignore_global_limit: config.ignore_global_conn_limit,
            global: parts.global,
            connection_limit: AtomicU64::new(config.connection_limit.unwrap_or(u64::MAX)),
            active: AtomicU64::new(0),
            idle: Notify::new(),
        }))
    }

    /// Binds every address and listens, once for each of `workers` where `enable_reuse_port` is set, else once for all.
    ///
    /// # Errors
    /// The first address that cannot be bound; then none is.
    pub fn bind(&self, workers: usize) -> Result<(), ListenerError> {
        self.bind_with(workers, None, false)
    }

    /// Binds every address; workers listen when they begin to run the listener. Sockets of `old` are taken over where it
    /// has the same address with the same options: their queues stay, so that no connection is refused or lost.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_for_later(&self, workers: usize, old: Option<&Listener>) -> Result<(), ListenerError> {
        self.bind_with(workers, old, true)
    }

    fn bind_with(&self, workers: usize, old: Option<&Listener>, bind_only: bool) -> Result<(), ListenerError> {
        let config = self.config();
        let fail = |source| ListenerError::Bind { name: self.name.clone(), source };
        let mut all = Vec::new();
        let addresses = if config.bind_to_port { &*config.addresses } else { &[] };
        for (index, listen_address) in addresses.iter().enumerate() {
            let options = ListenOptions {
                bind_only,
                reuse_port: config.enable_reuse_port,
                backlog: config.tcp_backlog_size,
                socket_options: listen_address.socket_options.as_ref().unwrap_or(&config.socket_options).clone(),
                keepalive: listen_address.tcp_keepalive.unwrap_or(config.tcp_keepalive),
                transparent: config.transparent,
                freebind: config.freebind,
                fast_open: config.tcp_fast_open_queue_length,
            };
            let taken = old.and_then(|old| old.hand_over(&listen_address.address, &options));
            let bound = match taken {
                Some(bound) => bound,
                None => bind_address(&listen_address.address, options, workers).map_err(fail)?,
            };
            tracing::debug!(listener = %self.name, address = %bound.address, index, "bound");
            all.push(bound);
        }
        *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = all;
        Ok(())
    }

    /// Listens on sockets that were bound for later, so that connections are taken before the workers have got to it.
    ///
    /// # Errors
    /// The first socket that cannot listen.
    pub fn listen(&self) -> Result<(), ListenerError> {
        let bound = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        for (bound, socket) in bound.iter().flat_map(|bound| bound.sockets.iter().map(move |socket| (bound, socket))) {
            start_listening(socket, &bound.options, bound.address.clone())
                .map_err(|source| ListenerError::Bind { name: self.name.clone(), source })?;
        }
        Ok(())
    }

    /// Copies of the sockets of an address, for the listener that takes this one's place.
    fn hand_over(&self, configured: &nuncio_config::address::Address, options: &ListenOptions) -> Option<Bound> {
        let own = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |bound: &&Bound| {
            let known = ListenOptions { bind_only: options.bind_only, ..bound.options.clone() };
            bound.configured == *configured && known == *options && !bound.kept.is_empty()
        };
        let bound = own.iter().find(same)?;
        let copies = || bound.kept.iter().map(Socket::try_clone).collect::<io::Result<Vec<_>>>();
        let (sockets, kept) = match (copies(), copies()) {
            (Ok(sockets), Ok(kept)) => (sockets.into(), kept),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(listener = %self.name, %error, "sockets cannot be handed over");
                return None;
            }
        };
        let (address, options) = (bound.address.clone(), options.clone());
        Some(Bound { address, configured: configured.clone(), options, sockets, kept })
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its present configuration.
    pub fn config(&self) -> Arc<ListenerConfig> {
        self.table.load().config.clone()
    }

    /// Bound addresses in the order of the configuration, with the ports that the kernel chose.
    pub fn addresses(&self) -> Vec<Address> {
        self.addresses_in_networks().into_iter().map(|(address, _)| address).collect()
    }

    /// The same with the network namespaces that they are in.
    pub fn addresses_in_networks(&self) -> Vec<(Address, Option<Arc<str>>)> {
        let bound = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        bound.iter().map(|bound| (bound.address.clone(), bound.network_namespace())).collect()
    }

    /// Its present filter chains, the default one included.
    pub fn filter_chains(&self) -> Vec<Arc<FilterChain>> {
        self.table.load().chains.clone()
    }

    /// `listener.ADDRESS.`
    pub fn stat_prefix(&self) -> &str {
        &self.stat_prefix
    }

    /// Open connections, those included whose listener filters still run.
    pub fn active_connections(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    /// Changes the connection limit (a runtime key); none lifts it.
    pub fn set_connection_limit(&self, limit: Option<u64>) {
        self.connection_limit.store(limit.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Builds other filter chains, listener filters and access logs, to be swapped in by [`apply`](Self::apply). Chains for
    /// which `same` says that nothing has changed live on with their connections.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn prepare(
        &self,
        config: Arc<ListenerConfig>,
        parts: &ListenerParts<'_>,
        same: &dyn Fn(&FilterChainConfig, &FilterChainConfig) -> bool,
    ) -> Result<PreparedUpdate, ListenerError> {
        let old = self.table.load_full();
        let table = build_table(&config, parts, &old.chains, &self.tls_stats, &self.drain, same)?;
        Ok(PreparedUpdate { table: Arc::new(table) })
    }

    /// Swaps in what was prepared. Chains that are gone drain for `drain_time`; they are returned, to be ended then.
    pub fn apply(
        &self,
        update: PreparedUpdate,
        strategy: DrainStrategy,
        drain_time: Duration,
    ) -> Vec<Arc<FilterChain>> {
        let old = self.table.swap(update.table);
        let new = self.table.load();
        self.changed.notify_waiters();
        let kept = |chain: &Arc<FilterChain>| new.chains.iter().any(|other| other.id == chain.id);
        let gone: Vec<_> = old.chains.iter().filter(|chain| !kept(chain)).cloned().collect();
        for chain in &gone {
            chain.drain.start(strategy, drain_time);
        }
        gone
    }

    /// [`prepare`](Self::prepare) and [`apply`](Self::apply) in one.
    ///
    /// # Errors
    /// As [`new`](Self::new); nothing has changed then.
    pub fn update(
        &self,
        config: Arc<ListenerConfig>,
        parts: &ListenerParts<'_>,
        same: &dyn Fn(&FilterChainConfig, &FilterChainConfig) -> bool,
        strategy: DrainStrategy,
        drain_time: Duration,
    ) -> Result<Vec<Arc<FilterChain>>, ListenerError> {
        let prepared = self.prepare(config, parts, same)?;
        Ok(self.apply(prepared, strategy, drain_time))
    }

    /// Stops accepting, since another listener runs on its sockets. Connections go on.
    pub fn stop_handed_over(&self) {
        self.handed_over.store(true, Ordering::Release);
        self.stop();
    }

    /// Stops accepting: workers start what waits in the queues and close their sockets. Connections go on.
    pub fn stop(&self) {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).iter_mut().for_each(|bound| {
            bound.sockets.clear();
            bound.kept.clear();
        });
        self.stop.set(LocalClose::Listener);
    }

    /// Tells all connections to end when they can.
    pub fn start_drain(&self, strategy: DrainStrategy, length: Duration) {
        self.drain.start(strategy, length);
    }

    /// Ends all connections at once.
    pub fn close_connections(&self) {
        for chain in &self.table.load().chains {
            chain.kill.set(LocalClose::Listener);
        }
    }

    /// Waits until no connection is left. Call [`stop`](Self::stop) first.
    pub async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            if self.active.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }

    /// A socket for a worker at each address; none are left when every worker has taken its own.
    fn take_sockets(&self) -> Vec<WorkerSocket> {
        let mut bound = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let take = |bound: &mut Bound| {
            let socket = bound.sockets.pop_front()?;
            let (address, options) = (bound.address.clone(), bound.options.clone());
            Some(WorkerSocket { address, network_namespace: bound.network_namespace(), options, socket })
        };
        bound.iter_mut().filter_map(take).collect()
    }
}

impl Bound {
    fn network_namespace(&self) -> Option<Arc<str>> {
        match &self.configured {
            nuncio_config::address::Address::Socket(socket) => socket.network_namespace.clone(),
            _ => None,
        }
    }
}

/// Binds one address: a socket for each worker, or one for all.
fn bind_address(
    configured: &nuncio_config::address::Address,
    options: ListenOptions,
    workers: usize,
) -> Result<Bound, BindError> {
    let first = listen(configured, &options)?;
    let source = |source| BindError::Listen { address: configured.into(), source };
    let address = Address::from_sockaddr(&first.local_addr().map_err(source)?);
    let per_worker = options.reuse_port && address.ip().is_some();
    let mut sockets = VecDeque::from([first]);
    while sockets.len() < workers {
        let socket = if per_worker {
            // With port 0 the kernel has chosen the port by now.
            let mut again = configured.clone();
            if let (nuncio_config::address::Address::Socket(ip), Some(port)) = (&mut again, address.port()) {
                ip.addr.set_port(port);
            }
            listen(&again, &options)?
        } else {
            sockets[0].try_clone().map_err(source)?
        };
        sockets.push_back(socket);
    }
    let kept = sockets.iter().map(Socket::try_clone).collect::<io::Result<_>>().map_err(source)?;
    Ok(Bound { address, configured: configured.clone(), options, sockets, kept })
}

impl FilterChain {
    /// Ends its connections at once; for the end of a drain.
    pub fn close_connections(&self) {
        self.kill.set(LocalClose::FilterChain);
    }
}

fn build_table(
    config: &Arc<ListenerConfig>,
    parts: &ListenerParts<'_>,
    old: &[Arc<FilterChain>],
    tls_stats: &Arc<TlsStats>,
    drain: &DrainHandle,
    same: &dyn Fn(&FilterChainConfig, &FilterChainConfig) -> bool,
) -> Result<Table, ListenerError> {
    let chooser = match &config.filter_chain_matcher {
        Some(tree) => Chooser::Matcher(ChainMatcher::new(tree.clone(), parts.in_fraction.clone())),
        None => {
            let index = FilterChainIndex::new(config.filter_chains.iter().map(|chain| (&*chain.name, &chain.matches)));
            Chooser::Matches(index.map_err(|source| {
                let addresses = config.addresses.iter().map(|address| Address::from(&address.address).to_string());
                let addresses = addresses.collect::<Vec<_>>().join(",");
                ListenerError::Chains { path: config.path.clone(), addresses, source }
            })?)
        }
    };
    let mut by_fingerprint: FxHashMap<u64, Vec<&Arc<FilterChain>>> = FxHashMap::default();
    for chain in old {
        by_fingerprint.entry(chain.config.fingerprint).or_default().push(chain);
    }
    let mut chains = Vec::new();
    for chain in config.filter_chains.iter().chain(&config.default_filter_chain) {
        let kept = by_fingerprint
            .get(&chain.fingerprint)
            .into_iter()
            .flatten()
            .find(|old| Arc::ptr_eq(&old.config, chain) || same(&old.config, chain));
        chains.push(match kept {
            Some(kept) => Arc::clone(kept),
            None => build_chain(chain, parts, tls_stats, drain)?,
        });
    }
    let mut filters = Vec::new();
    for filter in &config.listener_filters {
        filters.push(match listener_filters::build(filter, parts.registry) {
            Some(filter) => FilterSlot::Fixed(filter),
            None => (parts.listener_filter)(filter)
                .map_err(|problem| ListenerError::Filter { path: config.path.clone(), problem })?,
        });
    }
    let inspects = config.listener_filters.iter().any(|filter| matches!(filter, ListenerFilterConfig::TlsInspector(_)));
    if !inspects && FilterChainIndex::needs_tls_inspector(config.filter_chains.iter().map(|chain| &chain.matches)) {
        tracing::warn!(
            listener = %config.name,
            "filter chain match rules require the TLS inspector listener filter, which is not configured; adding it"
        );
        let inspector = ListenerFilterConfig::TlsInspector(Default::default());
        filters.extend(listener_filters::build(&inspector, parts.registry).map(FilterSlot::Fixed));
    }
    Ok(Table {
        default: config.default_filter_chain.is_some().then(|| config.filter_chains.len()),
        chains,
        chooser,
        filters,
        access_logs: parts.access_logs.clone(),
        config: config.clone(),
    })
}

fn build_chain(
    config: &Arc<FilterChainConfig>,
    parts: &ListenerParts<'_>,
    tls_stats: &Arc<TlsStats>,
    drain: &DrainHandle,
) -> Result<Arc<FilterChain>, ListenerError> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let tls = match &config.tls {
        Some(tls) => {
            let context = ServerTlsContext::with_secrets(tls.clone(), tls_stats.clone(), parts.contexts.secrets())?;
            parts.contexts.add(&context);
            Some(context)
        }
        None => None,
    };
    let factory =
        (parts.filter_chain)(config).map_err(|problem| ListenerError::Filter { path: config.path.clone(), problem })?;
    Ok(Arc::new(FilterChain {
        id: NEXT.fetch_add(1, Ordering::Relaxed),
        name: config.name.clone(),
        config: config.clone(),
        tls,
        factory,
        drain: drain.child(),
        kill: Kill::default(),
    }))
}

/// Whether accept(2) failed for want of something that comes back: descriptors or memory.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
