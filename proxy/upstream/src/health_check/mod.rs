//! Active health checks: every host of a cluster is asked again and again whether it is well.
//!
//! ```text
//!  Cluster::update ── new host ──► job ──► [control thread] session: check, wait, check, ...
//!                                              │ result
//!                                              ▼
//!                       flags of the host ── publisher ──► host set published, cluster warm
//! ```
//! `state` is the arithmetic of thresholds and intervals, `probe` does the checks, `event` writes the log. Sessions need
//! the control thread's local task set: whoever runs it calls `run`.

mod event;
mod probe;
mod state;

pub use state::{CheckResult, FailureType, HealthEvent, Transition};

use crate::cluster::Cluster;
use crate::cluster_manager::{Warming, WeakWarming};
use crate::host::{Host, health_flag};
use crate::host_set::PrioritySet;
use nuncio_base::random;
use nuncio_base::stats::{Counter, Registry};
use nuncio_config::cluster::{HealthCheckConfig, HealthCheckKind};
use nuncio_http::access_log::LogFile;
use nuncio_http::matchers::Runtime;
use probe::Prober;
use state::{HostHealth, next_interval, with_jitter};
use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::Instant;

nuncio_base::stat_family! {
    /// `health_check.` of a cluster.
    pub struct HealthCheckStats {
        counters { attempt, failure, network_failure, passive_failure, success, verify_cluster }
        gauges { degraded, healthy }
    }
}

/// What other threads tell the session of a host.
#[derive(Debug, Default)]
pub struct HealthMonitor {
    failed: AtomicBool,
    stopped: AtomicBool,
    wake: Notify,
}

impl HealthMonitor {
    /// An answer of the host asked for it to fail at once.
    pub(crate) fn fail(&self) {
        if !self.failed.swap(true, Relaxed) {
            self.wake.notify_one();
        }
    }

    fn stop(&self) {
        self.stopped.store(true, Relaxed);
        self.wake.notify_one();
    }
}

/// Something to be run on the control thread.
pub(crate) enum Job {
    /// Publishes changes of a cluster's health.
    Publisher(Weak<Cluster>),
    /// Checks one host.
    Session(Weak<Cluster>, Arc<Host>),
    /// Reads the load that one host reports.
    Reports(crate::orca_oob::Session),
}

/// Runs the health checks of all clusters; ends when the cluster manager is gone. Needs a local task set.
pub(crate) async fn run(mut jobs: UnboundedReceiver<Job>) {
    let mut tasks = tokio::task::JoinSet::new();
    while let Some(job) = jobs.recv().await {
        match job {
            Job::Publisher(cluster) => tasks.spawn_local(publish(cluster)),
            Job::Session(cluster, host) => tasks.spawn_local(session(cluster, host)),
            Job::Reports(session) => tasks.spawn_local(session.run()),
        };
        while tasks.try_join_next().is_some() {}
    }
}

/// The active health checking of one cluster.
pub struct HealthChecker {
    config: Arc<HealthCheckConfig>,
    stats: HealthCheckStats,
    /// Envoy has this counter and never counts it.
    _redis: Option<Counter>,
    log: Option<Arc<LogFile>>,
    exclude_new: bool,
    /// `health_check.min_interval` and `health_check.max_interval`, in milliseconds.
    bounds: [AtomicU64; 2],
    inner: Mutex<Inner>,
    /// Something is to be published.
    changed: Notify,
    /// Bounded by the number of hosts.
    jobs: UnboundedSender<Job>,
}

#[derive(Default)]
struct Inner {
    /// Hosts that are checked, and whether they have had their first result.
    hosts: HashMap<u64, (Arc<Host>, bool)>,
    /// What the cluster waits for until its first hosts are there.
    waiting: Option<WeakWarming>,
    /// Held until the first hosts have had their first result.
    warming: Option<Warming>,
    publishes: bool,
}

impl std::fmt::Debug for HealthChecker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HealthChecker").field("config", &self.config).finish_non_exhaustive()
    }
}

impl HealthChecker {
    /// Runtime keys bound the pauses of all health checks.
    pub(crate) fn read_runtime(&self, runtime: &dyn Runtime) {
        self.bounds[0].store(runtime.integer("health_check.min_interval").unwrap_or(0), Relaxed);
        self.bounds[1].store(runtime.integer("health_check.max_interval").unwrap_or(u64::MAX), Relaxed);
    }

    /// The lower bound counts for more, as in Envoy.
    fn bounded(&self, pause: Duration) -> Duration {
        let [least, most] = self.bounds.each_ref().map(|bound| Duration::from_millis(bound.load(Relaxed)));
        pause.min(most).max(least).max(Duration::from_millis(1))
    }

    /// `exclude_new`: new hosts stay out of load balancing's arithmetic until their first result.
    pub(crate) fn new(
        config: Arc<HealthCheckConfig>,
        registry: &Registry,
        prefix: &str,
        log: Option<Arc<LogFile>>,
        exclude_new: bool,
        jobs: UnboundedSender<Job>,
    ) -> Self {
        let redis = matches!(config.kind, HealthCheckKind::Redis { .. });
        HealthChecker {
            stats: HealthCheckStats::new(registry, &format!("{prefix}health_check.")),
            _redis: redis.then(|| registry.counter(&format!("{prefix}health_check.redis.exists_failure"))),
            inner: Mutex::default(),
            changed: Notify::new(),
            config,
            log,
            bounds: [AtomicU64::new(0), AtomicU64::new(u64::MAX)],
            exclude_new,
            jobs,
        }
    }

    /// A thread that panicked between plain operations leaves tables that are whole.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stats(&self) -> &HealthCheckStats {
        &self.stats
    }

    /// The cluster, which warms as long as the original of `waiting` lives, is not warm before its first hosts have
    /// been checked.
    pub(crate) fn wait(&self, waiting: WeakWarming) {
        self.inner().waiting = Some(waiting);
    }

    /// The cluster, which is not wanted any more, does not wait for its first hosts to be checked.
    pub(crate) fn stop_waiting(&self) {
        let warming = {
            let mut inner = self.inner();
            inner.waiting = None;
            inner.warming.take()
        };
        drop(warming);
    }

    /// Ends all sessions, and counts their hosts out; the cluster is gone.
    pub(crate) fn stop(&self) {
        let hosts = std::mem::take(&mut self.inner().hosts);
        for (host, _) in hosts.values() {
            host.health_monitor().stop();
            self.count(host.health_flags(), u32::MAX);
        }
        self.changed.notify_one();
    }

    /// The cluster's hosts are about to be those of `set`. New ones count as failed until they pass, unless they take the
    /// place of others; true when there are any, so that the set must be sorted by health again.
    pub(crate) fn set_hosts(&self, cluster: &Weak<Cluster>, set: &PrioritySet) -> bool {
        let mut inner = self.inner();
        let mut old = std::mem::take(&mut inner.hosts);
        let mut new = Vec::new();
        for host in set.hosts().filter(|host| !host.disables_health_check()) {
            let entry = old.remove(&host.id).unwrap_or_else(|| {
                let pending = if self.exclude_new { health_flag::PENDING_ACTIVE_HC } else { 0 };
                host.set_flags(host.inherited().unwrap_or(health_flag::FAILED_ACTIVE_HC | pending));
                new.push(host.clone());
                (host.clone(), false)
            });
            inner.hosts.insert(host.id, entry);
        }
        for (host, _) in old.values() {
            host.health_monitor().stop();
            self.count(host.health_flags(), u32::MAX);
        }
        if let Some(waiting) = inner.waiting.take().filter(|_| !new.is_empty()) {
            inner.warming = waiting.upgrade();
        }
        if !std::mem::replace(&mut inner.publishes, true) {
            // The receiver is gone only when the process ends.
            let _ = self.jobs.send(Job::Publisher(cluster.clone()));
        }
        drop(inner);
        self.changed.notify_one();
        for host in &new {
            self.count(u32::MAX, host.health_flags());
            let _ = self.jobs.send(Job::Session(cluster.clone(), host.clone()));
        }
        !new.is_empty()
    }

    /// Moves the gauges from flags `before` to flags `after`; all ones stand for a host that is not there.
    fn count(&self, before: u32, after: u32) {
        let healthy = |flags: u32| flags != u32::MAX && flags & health_flag::FAILED_ACTIVE_HC == 0;
        let degraded = |flags: u32| flags != u32::MAX && flags & health_flag::DEGRADED_ACTIVE_HC != 0;
        for (gauge, was, is) in [
            (self.stats.healthy(), healthy(before), healthy(after)),
            (self.stats.degraded(), degraded(before), degraded(after)),
        ] {
            match (was, is) {
                (false, true) => gauge.inc(),
                (true, false) => gauge.dec(),
                _ => {}
            }
        }
    }

    /// Takes in the result of a check of `host`.
    fn on_result(&self, cluster: &Cluster, host: &Host, health: &mut HostHealth, result: CheckResult) -> Transition {
        let before = host.health_flags();
        let first = health.first_check;
        let mut log = |event| {
            let Some(log) = &self.log else { return };
            let line = event::line(event, &self.config.kind, cluster.name(), host, SystemTime::now());
            log.write(line.as_bytes());
        };
        let transition = health.on_result(host, result, &self.config, &mut log);
        // A check may end after its host was counted out.
        if self.inner().hosts.contains_key(&host.id) {
            self.count(before, host.health_flags());
        }
        let mut publish = transition == Transition::Changed;
        match result {
            CheckResult::Success { .. } => {
                self.stats.success().inc();
                if before & health_flag::FAILED_ACTIVE_HC != 0 {
                    host.note_health_check_passed();
                }
                let passes = host.health_flags() & health_flag::FAILED_ACTIVE_HC == 0;
                if let Some(outlier) = cluster.outlier_detection().filter(|_| passes) {
                    publish |= outlier.on_health_check_passed(host);
                }
            }
            CheckResult::Failure { kind, .. } => {
                self.stats.failure().inc();
                match kind {
                    FailureType::Network | FailureType::NetworkTimeout => self.stats.network_failure().inc(),
                    FailureType::Passive => self.stats.passive_failure().inc(),
                    FailureType::Active => {}
                }
                if publish && host.health_flags() & health_flag::FAILED_ACTIVE_HC != 0 {
                    host.note_failure();
                }
            }
        }
        if first && let Some(entry) = self.inner().hosts.get_mut(&host.id) {
            entry.1 = true;
            publish = true;
        }
        if publish {
            self.changed.notify_one();
        }
        transition
    }

    /// Ends the waiting when all hosts have had their first result.
    fn release(&self) {
        let warm = {
            let mut inner = self.inner();
            let done = inner.hosts.values().all(|(_, checked)| *checked);
            inner.warming.take_if(|_| done)
        };
        // Without the lock: the cluster becomes visible, and may be handed hosts.
        drop(warm);
    }
}

/// Publishes the host set after changes; those that come together are published together.
async fn publish(cluster: Weak<Cluster>) {
    let Some(checker) = cluster.upgrade().and_then(|cluster| cluster.health_checker().cloned()) else { return };
    loop {
        checker.changed.notified().await;
        tokio::task::yield_now().await;
        let Some(cluster) = cluster.upgrade().filter(|cluster| !cluster.is_removed()) else { return };
        cluster.publish_health();
        checker.release();
    }
}

/// What a session waits for beside its timer.
enum Woken {
    /// The host or the cluster is gone.
    Stopped,
    /// An answer asked for the host to fail.
    Failed,
}

async fn woken(monitor: &HealthMonitor) -> Woken {
    loop {
        if monitor.stopped.load(Relaxed) {
            return Woken::Stopped;
        }
        if monitor.failed.swap(false, Relaxed) {
            return Woken::Failed;
        }
        monitor.wake.notified().await;
    }
}

const PASSIVE: CheckResult =
    CheckResult::Failure { kind: FailureType::Passive, retriable: false, status: 0, exclude: false };

/// Checks one host until it or its cluster is gone.
async fn session(weak: Weak<Cluster>, host: Arc<Host>) {
    let Some(mut cluster) = weak.upgrade() else { return };
    let Some(checker) = cluster.health_checker().cloned() else { return };
    let config = checker.config.clone();
    let monitor = host.health_monitor().clone();
    let mut health = HostHealth::default();
    let mut prober = Prober::new(config.clone(), &cluster, host.clone());
    let mut wait = match config.initial_jitter {
        Duration::ZERO => None,
        jitter => Some(with_jitter(Duration::ZERO, 0, jitter, &mut random::u64)),
    };
    loop {
        // A cluster that waits is not kept alive by its checks.
        drop(cluster);
        if let Some(delay) = wait {
            let end = Instant::now() + delay;
            loop {
                let result = tokio::select! {
                    woken = woken(&monitor) => match woken {
                        Woken::Stopped => return,
                        Woken::Failed => PASSIVE,
                    },
                    () = prober.closed() => CheckResult::NETWORK,
                    () = tokio::time::sleep_until(end) => break,
                };
                let Some(cluster) = weak.upgrade() else { return };
                checker.on_result(&cluster, &host, &mut health, result);
            }
        }
        let Some(upgraded) = weak.upgrade().filter(|cluster| !cluster.is_removed()) else { return };
        cluster = upgraded;
        checker.stats.attempt().inc();
        let result = {
            let mut check = pin!(tokio::time::timeout(config.timeout, prober.check(&cluster)));
            loop {
                tokio::select! {
                    result = &mut check => break result.unwrap_or(CheckResult::TIMEOUT),
                    woken = woken(&monitor) => match woken {
                        Woken::Stopped => return,
                        Woken::Failed => {
                            checker.on_result(&cluster, &host, &mut health, PASSIVE);
                        },
                    },
                }
            }
        };
        let transition = checker.on_result(&cluster, &host, &mut health, result);
        let passed = matches!(result, CheckResult::Success { .. });
        let traffic = cluster.stats.upstream_cx_total().value() > 0;
        wait = Some(checker.bounded(next_interval(&config, passed, transition, traffic, &mut random::u64)));
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use nuncio_config::cluster::{HealthCheckConfig, HealthCheckKind};
    use std::time::Duration;

    /// A check that connects, every second.
    pub(crate) fn tcp_check() -> HealthCheckConfig {
        let second = Duration::from_secs(1);
        HealthCheckConfig {
            kind: HealthCheckKind::Tcp { send: bytes::Bytes::new(), receive: Vec::new(), proxy_protocol: None },
            timeout: second,
            interval: second,
            initial_jitter: Duration::ZERO,
            interval_jitter: Duration::ZERO,
            interval_jitter_percent: 0,
            unhealthy_threshold: 1,
            healthy_threshold: 1,
            reuse_connection: true,
            no_traffic_interval: second,
            no_traffic_healthy_interval: second,
            unhealthy_interval: second,
            unhealthy_edge_interval: second,
            healthy_edge_interval: second,
            event_log_path: None,
            always_log_failures: false,
            always_log_success: false,
            check_alpn: Vec::new(),
            transport_socket_match: None,
        }
    }
}
