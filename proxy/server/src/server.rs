//! The assembly: from a bootstrap to a running process, and from a signal to its end.
//!
//! ```text
//! build: stats, clusters, listeners bound, admin bound  ->  run: admin serves, clusters warm, workers accept
//!        -> SIGTERM: stop accepting, drain, exit 0      (a second signal ends at once)
//! ```
//!
//! Everything that can fail fails in [`build`], before anything serves. The same `build` serves `main` and tests.

use crate::admin_listener;
use crate::hcm_builder::{self, HttpFactory};
use crate::loading::Bootstrap;
use crate::log::Log;
use crate::options::{DrainStrategy as Strategy, IpVersion, Options};
use crate::runtime::RuntimeLoader;
use crate::stats::{ListenerManagerStats, RuntimeStats, ServerStats};
use crate::worker::{Worker, WorkerCommand};
use nuncio_base::drain::{DrainHandle, DrainStrategy};
use nuncio_base::stats::Registry;
use nuncio_config::diagnostics::{ConfigError, Report};
use nuncio_config::listener::{ListenerConfig, NetworkFilterConfig, TrafficDirection};
use nuncio_config::paths::FieldPath;
use nuncio_extensions::network_filters::tcp_proxy::{TcpProxy, TcpProxyFactory};
use nuncio_extensions::registry::{self, FactoryContext};
use nuncio_http::access_log::{AccessLogWriter, WriterOptions};
use nuncio_http::header_rules::LocalInfo;
use nuncio_http::headers::HeaderValue;
use nuncio_http::matchers::Runtime;
use nuncio_net::listener::{FilterChainFactory, GlobalConnections, Listener, ListenerError, ListenerParts};
use nuncio_net::tls::watch::TlsContexts;
use nuncio_upstream::{ClusterManager, ClusterManagerOptions};
use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;

/// What every builder of the server needs.
pub struct Context {
    /// Stats.
    pub registry: Registry,
    /// Clusters.
    pub clusters: Arc<ClusterManager>,
    /// Runtime layers.
    pub runtime: Arc<dyn Runtime>,
    /// Access logs.
    pub access_logs: AccessLogWriter,
    /// The process, for header rules.
    pub local: Arc<LocalInfo>,
    /// TLS contexts with files to watch.
    pub contexts: TlsContexts,
    /// Connections of the process.
    pub global: Arc<GlobalConnections>,
    /// The server's drain.
    pub drain: DrainHandle,
    notices: Mutex<Vec<String>>,
}

impl Context {
    /// What extensions get.
    pub fn factory_context(&self) -> FactoryContext {
        FactoryContext { clusters: self.clusters.clone(), stats: self.registry.clone() }
    }

    /// Notes a part of the configuration that needs a control plane.
    pub fn dynamic_notice(&self, path: &str, what: &str) {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{path}: {what}; none is connected"));
    }
}

/// State of the server, as `/ready` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Serving.
    Live = 0,
    /// Draining.
    Draining = 1,
    /// Clusters are being warmed.
    PreInitializing = 2,
    /// Listeners are being warmed.
    Initializing = 3,
}

/// What the control thread, the admin interface and signals share.
pub struct Server {
    /// The builders' context; it lives as long as the server.
    pub context: Context,
    /// Options it was started with.
    pub options: Options,
    /// The bootstrap.
    pub bootstrap: Bootstrap,
    /// Runtime layers, to be shown and changed.
    pub runtime: Arc<RuntimeLoader>,
    /// Listeners in configuration order.
    pub listeners: Vec<Arc<Listener>>,
    /// The log.
    pub log: Log,
    /// `server.`
    pub stats: ServerStats,
    /// `listener_manager.`
    pub listener_stats: ListenerManagerStats,
    /// `runtime.`
    pub runtime_stats: RuntimeStats,
    /// Start of the process.
    pub started: Instant,
    /// Start of the process on the wall clock.
    pub started_at: SystemTime,
    /// Number of workers.
    pub concurrency: usize,
    state: AtomicU8,
    health_failed: AtomicBool,
    quit: Notify,
    quit_asked: AtomicBool,
}

/// A server whose sockets are bound and which has not begun to serve.
pub struct Bound {
    /// The server.
    pub server: Arc<Server>,
    admin: Option<Arc<Listener>>,
    control: tokio::runtime::Runtime,
}

/// The server could not be started.
#[derive(Debug)]
pub enum StartError {
    /// The configuration is wrong.
    Config(Report),
    /// Something else: a port in use, no threads.
    Other(String),
}

/// Number of workers: the flag, or the cores this process may use.
pub fn concurrency(options: &Options) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    // Envoy reads 0 as "by the cores".
    options.concurrency.filter(|n| *n > 0).map_or_else(cores, |n| n as usize)
}

/// Builds everything that the bootstrap names and, unless `bind` is false, binds its sockets.
///
/// # Errors
/// All errors of the configuration at once, or the first thing that the system refuses. Nothing is left behind.
pub fn build(bootstrap: Bootstrap, options: Options, log: Log, bind: bool) -> Result<Bound, StartError> {
    let started = Instant::now();
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| StartError::Other(format!("cannot make the control runtime: {e}")))?;
    let concurrency = concurrency(&options);
    let config = &bootstrap.config;
    let stats_config = crate::stats_config::of(&config.stats)
        .map_err(|e| StartError::Other(format!("stats_config.stats_tags: {e}")))?;
    let registry = Registry::new(concurrency, stats_config);
    let stats = ServerStats::new(&registry, "server.");
    let runtime = RuntimeLoader::new(&config.runtime, &config.node.cluster);
    let clusters = ClusterManager::new(ClusterManagerOptions {
        registry: registry.clone(),
        upstream_bind: config.upstream_bind.clone(),
        control: control.handle().clone(),
    });
    let context = Context {
        access_logs: AccessLogWriter::start(
            &registry,
            WriterOptions {
                flush_interval: Duration::from_millis(options.file_flush_interval_msec),
                flush_min_size: options.file_flush_min_size_kb as usize * 1024,
                ..WriterOptions::default()
            },
        )
        .map_err(|e| StartError::Other(format!("cannot start the access log thread: {e}")))?,
        local: Arc::new(local_info(config, options.local_address_ip_version)),
        contexts: TlsContexts::default(),
        global: Arc::default(),
        drain: DrainHandle::new(),
        notices: Mutex::default(),
        runtime: runtime.clone(),
        registry,
        clusters,
    };
    if let Some(limit) = runtime.integer("overload.global_downstream_max_connections") {
        context.global.set_limit(limit);
    }
    let mut errors = Vec::new();
    {
        let _control = control.enter();
        for cluster in &config.clusters {
            if let Err(e) = context.clusters.add(cluster.clone()) {
                errors.push(ConfigError::new(FieldPath::parse(&cluster.path), e.to_string()));
            }
        }
    }
    let listeners = build_listeners(config.listeners.iter(), &context, &runtime, &mut errors);
    let admin = match &config.admin {
        Some(admin) => admin_listener::build(admin, &context, &mut errors),
        None => None,
    };
    if !errors.is_empty() {
        return Err(StartError::Config(bootstrap.report(errors)));
    }
    let mut bootstrap = bootstrap;
    bootstrap.release();
    nuncio_config::descriptors::release();
    nuncio_net::release_free_memory();
    let server = Arc::new(Server {
        listener_stats: ListenerManagerStats::new(&context.registry, "listener_manager."),
        runtime_stats: RuntimeStats::new(&context.registry, "runtime."),
        context,
        options,
        bootstrap,
        runtime,
        listeners,
        log,
        stats,
        started,
        started_at: SystemTime::now(),
        concurrency,
        state: AtomicU8::new(State::PreInitializing as u8),
        health_failed: AtomicBool::new(false),
        quit: Notify::new(),
        quit_asked: AtomicBool::new(false),
    });
    let admin = admin.map(|pending| pending.finish(&server)).transpose().map_err(StartError::Other)?;
    if bind {
        let _control = control.enter();
        for listener in &server.listeners {
            listener.bind(concurrency).map_err(|e| StartError::Other(e.to_string()))?;
        }
        if let Some(admin) = &admin {
            admin.bind(1).map_err(|e| StartError::Other(format!("admin: {e}")))?;
        }
    }
    Ok(Bound { server, admin, control })
}

fn build_listeners<'a>(
    configs: impl Iterator<Item = &'a Arc<ListenerConfig>>,
    context: &Context,
    runtime: &RuntimeLoader,
    errors: &mut Vec<ConfigError>,
) -> Vec<Arc<Listener>> {
    let mut listeners = Vec::new();
    for config in configs {
        let found = RefCell::new(Vec::new());
        let prefix = stat_prefix(config);
        let access_logs = hcm_builder::access_logs(&config.access_logs, context, errors);
        let parts = ListenerParts {
            registry: &context.registry,
            global: context.global.clone(),
            drain: &context.drain,
            contexts: &context.contexts,
            filter_chain: &|chain| {
                let mut chain_errors = Vec::new();
                let built = build_chain(chain, config, &prefix, context, &mut chain_errors);
                found.borrow_mut().extend(chain_errors);
                built.ok_or_else(String::new)
            },
            listener_filter: &|extension| {
                let path = registry::path_of(extension);
                found.borrow_mut().push(registry::not_implemented("listener filter", extension, path));
                Err(String::new())
            },
            access_logs: crate::listener_log::of(access_logs),
        };
        match Listener::new(config.clone(), parts) {
            Ok(listener) => {
                let key = format!("envoy.resource_limits.listener.{}.connection_limit", config.name);
                if let Some(limit) = runtime.integer(&key) {
                    listener.set_connection_limit(Some(limit));
                }
                listeners.push(listener);
            }
            Err(e) => {
                let mut found = found.into_inner();
                if found.is_empty() {
                    found.push(listener_error(e, &config.path));
                }
                errors.extend(found);
            }
        }
    }
    listeners
}

/// The path is in front of the message in some of the network floor's errors: it is told apart here.
fn listener_error(error: ListenerError, listener: &str) -> ConfigError {
    let text = error.to_string();
    let path = match &error {
        ListenerError::Chains { path, .. } | ListenerError::Filter { path, .. } => &**path,
        ListenerError::Tls(_) => text.split_once(": ").map_or(listener, |(path, _)| path),
        ListenerError::Bind { .. } => listener,
    };
    let message = text.strip_prefix(path).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&text);
    ConfigError::new(FieldPath::parse(path), message)
}

fn stat_prefix(config: &ListenerConfig) -> String {
    let address = config.addresses.first().map(|a| nuncio_net::address::Address::from(&a.address).stat_name());
    let name = config.stat_prefix.as_deref().map(str::to_owned).or(address);
    format!("listener.{}.", name.unwrap_or_else(|| config.name.to_string()))
}

/// The factory of a filter chain. Network filters before the terminal one are not implemented yet.
fn build_chain(
    chain: &nuncio_config::listener::FilterChainConfig,
    listener: &ListenerConfig,
    prefix: &str,
    context: &Context,
    errors: &mut Vec<ConfigError>,
) -> Option<Arc<dyn FilterChainFactory>> {
    if let Some(socket) = &chain.transport_socket {
        errors.push(registry::not_implemented("transport socket", socket, registry::path_of(socket)));
    }
    let mut factory: Option<Arc<dyn FilterChainFactory>> = None;
    let last = chain.filters.len().saturating_sub(1);
    for (i, filter) in chain.filters.iter().enumerate() {
        match filter {
            NetworkFilterConfig::Extension(extension) => {
                errors.push(registry::not_implemented("network filter", extension, registry::path_of(extension)));
            }
            _ if i != last => errors.push(ConfigError::new(
                FieldPath::parse(&chain.path).field("filters").index(i),
                "Error: terminal filter must be the last filter in a network filter chain.",
            )),
            NetworkFilterConfig::Http(config) => {
                if let Some(hcm) = hcm_builder::build(config, prefix, context, errors) {
                    let buffer_limit = listener.per_connection_buffer_limit_bytes as usize;
                    factory = Some(Arc::new(HttpFactory { hcm, buffer_limit }));
                }
            }
            NetworkFilterConfig::TcpProxy(config) => {
                let logs = hcm_builder::access_logs(&config.access_logs, context, errors);
                match TcpProxy::new(config.clone(), context.clusters.clone(), &context.registry, logs) {
                    Ok(filter) => factory = Some(Arc::new(TcpProxyFactory::new(filter))),
                    Err(message) => {
                        let path = FieldPath::parse(&config.path).field("tunneling_config");
                        errors.push(ConfigError::new(path, message));
                    }
                }
            }
        }
    }
    if chain.filters.is_empty() {
        // Envoy accepts such a chain and closes its connections.
        factory = Some(Arc::new(crate::empty_chain::EmptyChain));
    }
    factory.filter(|_| errors.is_empty())
}

fn local_info(config: &nuncio_config::bootstrap::BootstrapConfig, version: IpVersion) -> LocalInfo {
    let text = |s: &str| HeaderValue::parse(s.to_owned()).unwrap_or_default();
    LocalInfo {
        address: text(
            &nuncio_net::interfaces::local_address(version == IpVersion::V6)
                .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
                .to_string(),
        ),
        node: text(&config.node.id),
        cluster: text(&config.node.cluster),
    }
}

impl Server {
    /// The state, with a failed health check counted as draining.
    pub fn state(&self) -> State {
        if self.health_failed.load(Ordering::Relaxed) {
            return State::Draining;
        }
        match self.state.load(Ordering::Relaxed) {
            0 => State::Live,
            1 => State::Draining,
            2 => State::PreInitializing,
            _ => State::Initializing,
        }
    }

    fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Relaxed);
        self.stats.state().set(self.state() as u64);
        self.stats.live().set(u64::from(self.state() == State::Live));
    }

    /// Makes `/ready` fail and responses close their connection, or ends that.
    pub fn fail_health_check(&self, fail: bool) {
        self.health_failed.store(fail, Ordering::Relaxed);
        self.context.drain.set_close_all(fail);
        self.stats.live().set(u64::from(self.state() == State::Live));
        self.stats.state().set(self.state() as u64);
    }

    /// Ends the server at once.
    pub fn quit(&self) {
        self.quit_asked.store(true, Ordering::Relaxed);
        self.quit.notify_waiters();
    }

    /// `--drain-strategy`.
    pub fn drain_strategy(&self) -> DrainStrategy {
        match self.options.drain_strategy {
            Strategy::Gradual => DrainStrategy::Gradual,
            Strategy::Immediate => DrainStrategy::Immediate,
        }
    }

    /// `--drain-time-s`.
    pub fn drain_time(&self) -> Duration {
        Duration::from_secs(self.options.drain_time_s)
    }

    /// Drains listeners for the admin interface: they stop accepting, at once or when the drain time is over.
    pub fn drain_listeners(self: &Arc<Self>, graceful: bool, skip_exit: bool, inbound_only: bool) {
        let chosen: Vec<_> = self
            .listeners
            .iter()
            .filter(|l| !inbound_only || l.config().traffic_direction == TrafficDirection::Inbound)
            .cloned()
            .collect();
        if graceful {
            for listener in &chosen {
                listener.start_drain(self.drain_strategy(), self.drain_time());
            }
            if skip_exit {
                return;
            }
            let (server, time) = (self.clone(), self.drain_time());
            tokio::task::spawn_local(async move {
                tokio::time::sleep(time).await;
                server.stop_listeners(&chosen);
            });
        } else {
            self.stop_listeners(&chosen);
        }
    }

    fn stop_listeners(&self, listeners: &[Arc<Listener>]) {
        for listener in listeners {
            listener.stop();
            self.listener_stats.listener_stopped().inc();
        }
    }

    /// Brings the gauges that are looked at from outside up to date.
    pub fn update_gauges(&self) {
        let s = &self.stats;
        s.uptime().set(self.started.elapsed().as_secs());
        s.state().set(self.state() as u64);
        s.live().set(u64::from(self.state() == State::Live));
        s.total_connections().set(self.context.global.active());
        let memory = crate::memory::status();
        s.memory_allocated().set(memory.allocated);
        s.memory_heap_size().set(memory.heap_size);
        s.memory_physical_size().set(memory.total_physical_bytes);
        s.days_until_first_cert_expiring().set(self.days_until_first_expiry());
        let (layers, keys) = self.runtime.counts();
        self.runtime_stats.num_layers().set(layers as u64);
        self.runtime_stats.num_keys().set(keys as u64);
    }

    /// Envoy's value for "no certificate" is the largest 32-bit number.
    fn days_until_first_expiry(&self) -> u64 {
        u64::from(self.context.contexts.days_until_first_expiration(SystemTime::now()).unwrap_or(u32::MAX))
    }
}

impl Bound {
    /// Address of the admin interface.
    pub fn admin_address(&self) -> Option<nuncio_net::address::Address> {
        self.admin.as_ref().and_then(|l| l.addresses().into_iter().next())
    }

    /// Serves until a signal or the admin interface ends it.
    ///
    /// # Errors
    /// What keeps the process from serving; nothing has been served then.
    pub fn run(self) -> Result<(), String> {
        let Bound { server, admin, control } = self;
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&control, serve(server, admin))
    }

    /// As [`Bound::run`], until `until` is ready; for tests and the demo.
    ///
    /// # Errors
    /// As [`Bound::run`].
    pub fn run_until(self, until: impl Future<Output = ()> + 'static) -> Result<(), String> {
        let Bound { server, admin, control } = self;
        let tasks = tokio::task::LocalSet::new();
        let stopper = server.clone();
        tasks.block_on(&control, async move {
            tokio::task::spawn_local(async move {
                until.await;
                stopper.quit();
            });
            serve(server, admin).await
        })
    }
}

async fn serve(server: Arc<Server>, admin: Option<Arc<Listener>>) -> Result<(), String> {
    nuncio_base::timer::start();
    let begun = Instant::now();
    if let Some(admin) = &admin {
        write_admin_address(&server.options, admin)?;
        let admin = admin.clone();
        tokio::task::spawn_local(async move {
            if let Err(e) = admin_listener::run(admin).await {
                tracing::error!(target: "admin", "the admin interface does not run: {e}");
            }
        });
    }
    announce(&server, admin.as_ref());
    let mut signals = crate::signals::Signals::new().map_err(|e| format!("cannot handle signals: {e}"))?;
    let mut workers = Vec::new();
    for index in 0..server.concurrency {
        workers.push(Worker::start(index).map_err(|e| format!("cannot start worker {index}: {e}"))?);
    }
    crate::signals::spawn_watchers(&server);
    let warm = server.context.clusters.clone();
    let initialized = async {
        warm.initialized().await;
        server.set_state(State::Initializing);
        for worker in &workers {
            for listener in &server.listeners {
                // A worker that ended has said why.
                let _ = worker.commands.send(WorkerCommand::Run(listener.clone()));
            }
        }
        let s = &server.listener_stats;
        s.listener_added().add(server.listeners.len() as u64);
        s.listener_create_success().add((server.listeners.len() * workers.len()) as u64);
        s.total_listeners_active().set(server.listeners.len() as u64);
        s.workers_started().set(1);
        server.stats.initialization_time_ms().record(begun.elapsed().as_millis() as u64);
        server.set_state(State::Live);
        tracing::info!("all clusters initialized; serving with {} worker(s)", workers.len());
        crate::signals::notify_ready();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = initialized => {}
        () = until_ended(&server, &mut signals) => {}
    }
    for listener in &server.listeners {
        listener.stop();
        listener.close_connections();
    }
    for worker in workers {
        let _ = worker.commands.send(WorkerCommand::Stop);
        worker.join();
    }
    server.context.access_logs.flush(Duration::from_secs(5));
    tracing::info!("exiting");
    Ok(())
}

/// Returns when the process may end: after a drain, or at once when asked so.
async fn until_ended(server: &Arc<Server>, signals: &mut crate::signals::Signals) {
    tokio::select! {
        name = signals.terminate() => {
            tracing::warn!("caught {name}");
            if server.options.no_drain_on_sigterm {
                return;
            }
        }
        () = server.quit.notified() => return,
    }
    if server.quit_asked.load(Ordering::Relaxed) {
        return;
    }
    server.set_state(State::Draining);
    crate::signals::notify_stopping();
    let limit = server.drain_time();
    tracing::info!("draining: no new connections, waiting up to {} s for requests in flight", limit.as_secs());
    server.stop_listeners(&server.listeners);
    server.context.drain.start(DrainStrategy::Immediate, limit);
    let drained = async {
        for listener in &server.listeners {
            listener.drained().await;
        }
    };
    tokio::select! {
        () = drained => tracing::info!("drained"),
        () = tokio::time::sleep(limit) => tracing::warn!("the drain time is over, closing what is left"),
        name = signals.terminate() => tracing::warn!("caught {name} again, ending at once"),
        () = server.quit.notified() => {}
    }
}

fn write_admin_address(options: &Options, admin: &Listener) -> Result<(), String> {
    let Some(path) = &options.admin_address_path else { return Ok(()) };
    let Some(address) = admin.addresses().into_iter().next() else { return Ok(()) };
    std::fs::write(path, address.to_string())
        .map_err(|e| format!("--admin-address-path: cannot write '{}': {e}", path.display()))
}

fn announce(server: &Server, admin: Option<&Arc<Listener>>) {
    tracing::info!(
        "nuncio {} speaking Envoy {}, {} worker(s), {} listener(s), {} cluster(s), started {:.0?} ago",
        env!("CARGO_PKG_VERSION"),
        crate::options::ENVOY_VERSION,
        server.concurrency,
        server.listeners.len(),
        server.context.clusters.len(),
        server.started.elapsed(),
    );
    if let Some(address) = admin.and_then(|a| a.addresses().into_iter().next()) {
        tracing::info!(target: "admin", "admin interface at {address}");
    }
    for listener in &server.listeners {
        for address in listener.addresses() {
            tracing::info!("listener '{}' at {address}", listener.name());
        }
    }
    for line in server.options.no_effect() {
        tracing::warn!("{line}");
    }
    for line in &server.bootstrap.notices {
        tracing::warn!(target: "config", "{line}");
    }
    for line in server.context.notices.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        tracing::warn!(target: "config", "{line}");
    }
    if server.runtime.integer("overload.global_downstream_max_connections").is_none() {
        tracing::debug!("no limit on downstream connections: overload.global_downstream_max_connections is not set");
    }
}
