//! The assembly: from a bootstrap to a running process, and from a signal to its end.
//!
//! ```text
//! build: stats, clusters, listeners bound, admin bound  ->  run: admin serves, clusters warm, workers accept
//!        -> SIGTERM: stop accepting, drain, exit 0      (a second signal ends at once)
//! ```
//!
//! Everything that can fail fails in [`build`], before anything serves. The same `build` serves `main` and tests.

use crate::admin_listener;
use crate::discovered::ExtensionConfigs;
use crate::discovered::upstream::{Fetch, UpstreamFactory};
use crate::grpc_logs::GrpcLogs;
use crate::init::InitTargets;
use crate::listeners::{self, ListenerManager};
use crate::loading::Bootstrap;
use crate::log::Log;
use crate::named_routes::{RouteTables, TableTools};
use crate::on_demand_clusters::OnDemandSources;
use crate::options::{DrainStrategy as Strategy, IpVersion, Options};
use crate::resources::Resources;
use crate::runtime::RuntimeLoader;
use crate::scoped_routes::ScopeTables;
use crate::source_check::SourceCheck;
use crate::stats::{ListenerManagerStats, RuntimeStats, ServerStats};
use crate::worker::{Worker, WorkerCommand};
use crate::xds::Discovery;
use crate::xds::wants::{Want, Wants};
use nuncio_base::drain::{DrainHandle, DrainStrategy};
use nuncio_base::stats::Registry;
use nuncio_config::access_log::AccessLogConfig;
use nuncio_config::bootstrap::LogFormatChoice;
use nuncio_config::config_source::DynamicResources;
use nuncio_config::diagnostics::{ConfigError, Report};
use nuncio_config::listener::TrafficDirection;
use nuncio_config::paths::FieldPath;
use nuncio_extensions::registry::{AccessLogBuilder, FactoryContext};
use nuncio_http::access_log::{AccessLogWriter, AccessLogs, WriterOptions};
use nuncio_http::header_rules::LocalInfo;
use nuncio_http::headers::HeaderValue;
use nuncio_http::matchers::Runtime;
use nuncio_net::listener::{GlobalConnections, Listener};
use nuncio_net::tls::secrets::SecretEvent;
use nuncio_net::tls::watch::TlsContexts;
use nuncio_upstream::{ClusterManager, ClusterManagerOptions, Zones};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use xds_client::TypeUrl;

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
    /// Access logs that are streamed to servers.
    pub grpc_logs: Arc<GrpcLogs>,
    /// The process, for header rules.
    pub local: Arc<LocalInfo>,
    /// TLS contexts with files to watch.
    pub contexts: TlsContexts,
    /// Connections of the process.
    pub global: Arc<GlobalConnections>,
    /// The server's drain.
    pub drain: DrainHandle,
    /// Route tables that connection managers share by name.
    pub routes: RouteTables,
    /// Scopes of routes, fetched or in place.
    pub scopes: ScopeTables,
    /// Configurations of filters that are fetched.
    pub extensions: Arc<ExtensionConfigs>,
    /// Makes filters towards upstreams.
    pub(crate) upstream_filters: Arc<UpstreamFactory>,
    /// Asks for what must be fetched.
    pub wants: Wants,
    /// Tells what can be fetched.
    pub sources: Arc<SourceCheck>,
    /// Sources of clusters on demand.
    pub on_demand: Arc<OnDemandSources>,
    /// Makes access loggers for extensions.
    pub log_builder: Arc<dyn AccessLogBuilder>,
}

impl Context {
    /// What extensions get whose user waits for nothing.
    pub fn factory_context(&self) -> FactoryContext {
        self.factory_context_for(&Arc::default())
    }

    /// What extensions get; what has to come before they are used is added to `targets`.
    pub(crate) fn factory_context_for(&self, targets: &Arc<InitTargets>) -> FactoryContext {
        FactoryContext {
            clusters: self.clusters.clone(),
            stats: self.registry.clone(),
            on_demand: self.on_demand.clone(),
            access_logs: self.log_builder.clone(),
            fetched: Arc::new(Fetch { factory: self.upstream_filters.clone(), targets: targets.clone() }),
        }
    }

    /// What route tables are compiled with.
    pub fn table_tools(&self) -> TableTools {
        TableTools { registry: self.registry.clone(), on_demand: self.on_demand.clone() }
    }

    /// The process's own address as text.
    pub fn local_address(&self) -> String {
        String::from_utf8_lossy(self.local.address.as_bytes()).into_owned()
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
    /// Listeners.
    pub listeners: ListenerManager,
    /// What the first listeners wait for.
    pub init: InitTargets,
    /// What is shown of resources that were fetched.
    pub resources: Resources,
    /// The log.
    pub log: Log,
    /// `server.`
    pub stats: ServerStats,
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
    wanted: UnboundedReceiver<Want>,
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
    if let Some(format) = &config.application_log_format {
        if options.log_format != crate::log::DEFAULT_PATTERN {
            let text = "Only one of ApplicationLogConfig.log_format or CLI option --log-format can be specified.";
            return Err(StartError::Other(text.to_owned()));
        }
        match format {
            LogFormatChoice::Text(pattern) => log.set_pattern(pattern),
            LogFormatChoice::Json(format) => log.set_pattern(&format.to_string()),
        }
    }
    let stats_config = crate::stats_config::of(&config.stats)
        .map_err(|e| StartError::Other(format!("stats_config.stats_tags: {e}")))?;
    let registry = Registry::new(concurrency, stats_config);
    let stats = ServerStats::new(&registry, "server.");
    let runtime = RuntimeLoader::new(&config.runtime, &config.node.cluster, RuntimeStats::new(&registry, "runtime."));
    let access_logs = AccessLogWriter::start(
        &registry,
        WriterOptions {
            flush_interval: Duration::from_millis(options.file_flush_interval_msec),
            flush_min_size: options.file_flush_min_size_kb as usize * 1024,
            ..WriterOptions::default()
        },
    )
    .map_err(|e| StartError::Other(format!("cannot start the access log thread: {e}")))?;
    let outlier_events = match &config.outlier_event_log_path {
        Some(path) => Some(
            access_logs
                .open(path)
                .map_err(|e| StartError::Other(format!("cluster_manager.outlier_detection.event_log_path: {e}")))?,
        ),
        None => None,
    };
    let contexts = TlsContexts::default();
    let (wants, wanted) = Wants::channel();
    contexts.secrets().on_event({
        let wants = wants.clone();
        move |event| {
            wants.send(match event {
                SecretEvent::Wanted(secret) => Want::Secret(secret),
                SecretEvent::Gone(id) => Want::SecretGone(id),
            });
        }
    });
    let clusters = ClusterManager::new(ClusterManagerOptions {
        registry: registry.clone(),
        upstream_bind: config.upstream_bind.clone(),
        control: control.handle().clone(),
        outlier_events,
        tls_contexts: contexts.clone(),
        event_logs: Some(access_logs.clone()),
    });
    let keys: Arc<dyn Runtime> = runtime.clone();
    clusters.apply_runtime(&keys);
    let locality = Arc::new(config.node.locality.clone());
    clusters.set_zones(Zones { local_cluster: config.local_cluster_name.clone(), locality });
    let sources = Arc::new(SourceCheck::new(&clusters, &keys, &config.dynamic));
    let grpc_logs = Arc::new(GrpcLogs::new(registry.clone(), clusters.clone(), wants.clone()));
    let log_builder = LogBuilder { writer: access_logs.clone(), runtime: runtime.clone(), grpc: grpc_logs.clone() };
    let log_builder: Arc<dyn AccessLogBuilder> = Arc::new(log_builder);
    let on_demand = OnDemandSources::new(&clusters, &sources, &wants);
    let extensions = Arc::new(ExtensionConfigs::new(wants.clone(), registry.clone()));
    let upstream_filters = Arc::new(UpstreamFactory {
        clusters: Arc::downgrade(&clusters),
        stats: registry.clone(),
        access_logs: Arc::downgrade(&log_builder),
        on_demand: Arc::downgrade(&on_demand),
        extensions: extensions.clone(),
        sources: Arc::downgrade(&sources),
    });
    clusters.set_filters({
        let factory = upstream_filters.clone();
        Box::new(move |filters| factory.of_cluster(filters))
    });
    let tools = TableTools { registry: registry.clone(), on_demand: on_demand.clone() };
    let context = Context {
        grpc_logs,
        access_logs,
        local: Arc::new(local_info(config, options.local_address_ip_version)),
        contexts,
        global: Arc::default(),
        drain: DrainHandle::new(),
        routes: RouteTables::new(wants.clone(), tools.clone()),
        scopes: ScopeTables::new(wants.clone(), tools),
        extensions,
        upstream_filters,
        on_demand,
        log_builder,
        wants,
        runtime: runtime.clone(),
        sources,
        registry,
        clusters,
    };
    if let Some(limit) = runtime.integer("overload.global_downstream_max_connections") {
        context.global.set_limit(limit);
    }
    if !bind {
        context.clusters.skip_health_checks();
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
    errors.extend(config.clusters.iter().flat_map(|cluster| context.sources.cluster(cluster)));
    errors.extend(check_sources(&config.dynamic, &runtime, &context.sources));
    let init = InitTargets::default();
    let mut listeners = Vec::new();
    for config in &config.listeners {
        match listeners::build::listener(config, &context, &init) {
            Ok(listener) => listeners.push(listener),
            Err(found) => errors.extend(found),
        }
    }
    let admin = match &config.admin {
        Some(admin) => admin_listener::build(admin, &context, &mut errors),
        None => None,
    };
    if !errors.is_empty() {
        return Err(StartError::Config(bootstrap.report(errors)));
    }
    let mut bootstrap = bootstrap;
    bootstrap.release();
    if !bootstrap.config.dynamic.is_used() {
        // Resources that are fetched are read with them.
        nuncio_config::descriptors::release();
    }
    nuncio_net::release_free_memory();
    let manager = ListenerManager::new(ListenerManagerStats::new(&context.registry, "listener_manager."), concurrency);
    let server = Arc::new(Server {
        listeners: if bind { manager } else { manager.without_sockets() },
        init,
        resources: Resources::default(),
        context,
        options,
        bootstrap,
        runtime,
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
    server.stats.concurrency().set(concurrency as u64);
    server.stats.hot_restart_epoch().set(u64::from(server.options.restart_epoch));
    // The first digits of the commit, as in Envoy.
    let digits = crate::options::REVISION.get(..6).unwrap_or_default();
    let revision = u64::from_str_radix(digits, 16).unwrap_or_default();
    server.stats.version().set(server.bootstrap.config.stats_server_version.unwrap_or(revision));
    if let Some(path) = &server.bootstrap.config.flags_path {
        tracing::info!("server flags path: {path}");
        if std::path::Path::new(&**path).join("drain").exists() {
            tracing::info!("starting server in drain mode");
            server.fail_health_check(true);
        }
    }
    let admin = admin.map(|pending| pending.finish(&server)).transpose().map_err(StartError::Other)?;
    if bind {
        let _control = control.enter();
        for listener in &listeners {
            listener.bind(concurrency).map_err(|e| StartError::Other(e.to_string()))?;
        }
        if let Some(admin) = &admin {
            admin.bind(1).map_err(|e| StartError::Other(format!("admin: {e}")))?;
        }
    }
    for listener in listeners {
        server.listeners.add_static(listener);
    }
    Ok(Bound { server, admin, control, wanted })
}

/// Sources of what is fetched before listeners. As in Envoy, that of listeners is looked at when they are asked for.
fn check_sources(dynamic: &DynamicResources, runtime: &RuntimeLoader, sources: &SourceCheck) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    errors.extend(sources.authorities().err());
    if let Some(Err(error)) = dynamic.ads.as_ref().and_then(|ads| ads.cluster()).map(|name| sources.is_known(name)) {
        errors.push(ConfigError::new(FieldPath::root().field("dynamic_resources").field("ads_config"), error));
    }
    if dynamic.fetches_clusters()
        && let Err(error) = sources.root(dynamic.cds.as_ref(), dynamic.cds_locator.as_deref(), &TypeUrl::CLUSTER)
    {
        let field = if dynamic.cds_locator.is_some() { "cds_resources_locator" } else { "cds_config" };
        errors.push(ConfigError::new(FieldPath::root().field("dynamic_resources").field(field), error));
    }
    for layer in runtime.fetched() {
        let path = FieldPath::root().field("layered_runtime").field("layers").index(layer.index);
        let path = path.field("rtds_layer").field("rtds_config");
        errors.extend(sources.check(&layer.source, path).err().into_iter().flatten());
    }
    errors
}

/// Makes access loggers for extensions.
struct LogBuilder {
    writer: AccessLogWriter,
    runtime: Arc<dyn Runtime>,
    grpc: Arc<GrpcLogs>,
}

impl AccessLogBuilder for LogBuilder {
    fn build(&self, configs: &[AccessLogConfig]) -> Result<AccessLogs, String> {
        AccessLogs::build(configs, &self.writer, &self.runtime, Some(&*self.grpc)).map_err(|errors| {
            errors.iter().map(|(path, text)| format!("{path}: {text}")).collect::<Vec<_>>().join("; ")
        })
    }
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
            .active()
            .into_iter()
            .filter(|l| !inbound_only || l.config().traffic_direction == TrafficDirection::Inbound)
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
            self.listeners.stats.listener_stopped().inc();
        }
    }

    /// Takes over what runtime keys say of limits on connections and of load balancing, after those have changed. A key that
    /// is gone limits nothing.
    pub fn apply_runtime_limits(&self) {
        let limit = self.runtime.integer("overload.global_downstream_max_connections");
        self.context.global.set_limit(limit.unwrap_or(u64::MAX));
        self.context.clusters.apply_runtime(&self.context.runtime);
        for listener in self.listeners.active() {
            let key = listeners::build::connection_limit_key(listener.name());
            let limit = self.runtime.integer(&key).or(listener.config().connection_limit);
            listener.set_connection_limit(limit);
        }
    }

    /// Brings the gauges that are looked at from outside up to date.
    pub fn update_gauges(&self) {
        let s = &self.stats;
        s.uptime().set(self.started.elapsed().as_secs());
        s.state().set(self.state() as u64);
        s.live().set(u64::from(self.state() == State::Live));
        s.total_connections().set(self.context.global.active());
        self.context.clusters.update_gauges();
        let memory = crate::memory::status();
        s.memory_allocated().set(memory.allocated);
        s.memory_heap_size().set(memory.heap_size);
        s.memory_physical_size().set(memory.total_physical_bytes);
        s.days_until_first_cert_expiring().set(self.days_until_first_expiry());
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

    /// Fetches what the bootstrap asks for and tells what came of it, without serving. For a server that was built
    /// without sockets.
    pub fn check(self, timeout: Duration) -> crate::xds_check::Outcome {
        let Bound { server, control, wanted, .. } = self;
        let tasks = tokio::task::LocalSet::new();
        let outcome = tasks.block_on(&control, crate::xds_check::run(&server, wanted, timeout));
        server.context.access_logs.flush(Duration::from_secs(1));
        outcome
    }

    /// Serves until a signal or the admin interface ends it.
    ///
    /// # Errors
    /// What keeps the process from serving; nothing has been served then.
    pub fn run(self) -> Result<(), String> {
        let Bound { server, admin, control, wanted } = self;
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&control, serve(server, admin, wanted))
    }

    /// As [`Bound::run`], until `until` is ready; for tests and the demo.
    ///
    /// # Errors
    /// As [`Bound::run`].
    pub fn run_until(self, until: impl Future<Output = ()> + 'static) -> Result<(), String> {
        let Bound { server, admin, control, wanted } = self;
        let tasks = tokio::task::LocalSet::new();
        let stopper = server.clone();
        tasks.block_on(&control, async move {
            tokio::task::spawn_local(async move {
                until.await;
                stopper.quit();
            });
            serve(server, admin, wanted).await
        })
    }
}

async fn serve(
    server: Arc<Server>,
    admin: Option<Arc<Listener>>,
    wanted: UnboundedReceiver<Want>,
) -> Result<(), String> {
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
    tokio::task::spawn_local(server.context.clusters.run_health_checks());
    let initialized = async {
        let discovery = Discovery::start(&server, wanted)?;
        discovery.clusters().await?;
        server.set_state(State::Initializing);
        discovery.listeners().await?;
        server.listeners.start_workers(workers.iter().map(|worker| worker.commands.clone()));
        server.stats.initialization_time_ms().record(begun.elapsed().as_millis() as u64);
        server.set_state(State::Live);
        tracing::info!("all clusters initialized; serving with {} worker(s)", workers.len());
        // What assembling the configuration took, beside what reading it did.
        nuncio_net::release_free_memory();
        nuncio_net::release_program_pages();
        crate::signals::notify_ready();
        std::future::pending::<Result<(), String>>().await
    };
    let outcome = tokio::select! {
        failed = initialized => failed,
        () = until_ended(&server, &mut signals) => Ok(()),
    };
    for listener in server.listeners.running() {
        listener.stop();
        listener.close_connections();
    }
    for worker in workers {
        let _ = worker.commands.send(WorkerCommand::Stop);
        worker.join();
    }
    server.context.access_logs.flush(Duration::from_secs(5));
    tracing::info!("exiting");
    outcome
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
    server.stop_listeners(&server.listeners.active());
    server.context.drain.start(DrainStrategy::Immediate, limit);
    let drained = async {
        for listener in server.listeners.running() {
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
    for listener in server.listeners.active() {
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
    if server.runtime.integer("overload.global_downstream_max_connections").is_none() {
        tracing::debug!("no limit on downstream connections: overload.global_downstream_max_connections is not set");
    }
}
