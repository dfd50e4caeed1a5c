//! One upstream host: address, what the configuration says of it, health flags, counters.
//!
//! Shared by all threads; pools and load balancers hold it by `Arc`. A host that is configured again with the same
//! address keeps its object, so its counters and connections go on. Nothing here connects.

use crate::cluster::Cluster;
use crate::health_check::HealthMonitor;
use crate::load_metrics::{LoadMetrics, Metric};
use crate::orca::{LoadReport, Reported};
use crate::outlier::HostMonitor;
use nuncio_base::clock;
use nuncio_config::cluster::{ClientWeightsConfig, EndpointHealthCheck, HealthStatus, Locality};
use nuncio_config::proxy_protocol::Tlv;
use nuncio_http::headers::Headers;
use nuncio_net::address::Address;
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{OnceLock, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Health of a host as load balancing sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Takes no traffic except in panic.
    Unhealthy,
    /// Takes traffic when the healthy ones are too few.
    Degraded,
    /// Takes traffic.
    Healthy,
}

/// Reasons why a host is not healthy; bits of [`Host::health_flags`]. In Envoy's order and with its names.
pub mod health_flag {
    /// `failed_active_hc`
    pub const FAILED_ACTIVE_HC: u32 = 1;
    /// `failed_outlier_check`
    pub const FAILED_OUTLIER_CHECK: u32 = 1 << 1;
    /// `failed_eds_health`
    pub const FAILED_EDS_HEALTH: u32 = 1 << 2;
    /// `degraded_active_hc`
    pub const DEGRADED_ACTIVE_HC: u32 = 1 << 3;
    /// `degraded_eds_health`
    pub const DEGRADED_EDS_HEALTH: u32 = 1 << 4;
    /// `pending_dynamic_removal`
    pub const PENDING_DYNAMIC_REMOVAL: u32 = 1 << 5;
    /// `pending_active_hc`
    pub const PENDING_ACTIVE_HC: u32 = 1 << 6;
    /// `excluded_via_immediate_hc_fail`
    pub const EXCLUDED_VIA_IMMEDIATE_HC_FAIL: u32 = 1 << 7;
    /// `active_hc_timeout`
    pub const ACTIVE_HC_TIMEOUT: u32 = 1 << 8;
    /// `eds_status_draining`
    pub const EDS_STATUS_DRAINING: u32 = 1 << 9;
    /// `degraded_outlier_detection`
    pub const DEGRADED_OUTLIER_DETECTION: u32 = 1 << 10;

    /// Flags that make a host unhealthy.
    pub const UNHEALTHY: u32 = FAILED_ACTIVE_HC | FAILED_OUTLIER_CHECK | FAILED_EDS_HEALTH | EDS_STATUS_DRAINING;
    /// Flags that make it degraded.
    pub const DEGRADED: u32 = DEGRADED_ACTIVE_HC | DEGRADED_EDS_HEALTH | DEGRADED_OUTLIER_DETECTION;
    /// Flags that active health checks set.
    pub const OF_ACTIVE_HC: u32 = FAILED_ACTIVE_HC | DEGRADED_ACTIVE_HC | PENDING_ACTIVE_HC | ACTIVE_HC_TIMEOUT;
    /// Flags that exclude it from the arithmetic of health: hosts that leave make the others no worse.
    pub const EXCLUDED: u32 = PENDING_ACTIVE_HC | EXCLUDED_VIA_IMMEDIATE_HC_FAIL | EDS_STATUS_DRAINING;

    /// All flags with their names, in the order of `/clusters`.
    pub const ALL: &[(u32, &str)] = &[
        (FAILED_ACTIVE_HC, "failed_active_hc"),
        (FAILED_OUTLIER_CHECK, "failed_outlier_check"),
        (FAILED_EDS_HEALTH, "failed_eds_health"),
        (DEGRADED_ACTIVE_HC, "degraded_active_hc"),
        (DEGRADED_EDS_HEALTH, "degraded_eds_health"),
        (PENDING_DYNAMIC_REMOVAL, "pending_dynamic_removal"),
        (PENDING_ACTIVE_HC, "pending_active_hc"),
        (EXCLUDED_VIA_IMMEDIATE_HC_FAIL, "excluded_via_immediate_hc_fail"),
        (ACTIVE_HC_TIMEOUT, "active_hc_timeout"),
        (EDS_STATUS_DRAINING, "eds_status_draining"),
        (DEGRADED_OUTLIER_DETECTION, "degraded_outlier_detection"),
    ];
}

/// Counters and gauges of one host, as `/clusters` shows them. Written by all workers.
#[derive(Debug, Default)]
pub struct HostStats {
    /// Connections that failed.
    pub cx_connect_fail: AtomicU64,
    /// Connections made.
    pub cx_total: AtomicU64,
    /// Connections now.
    pub cx_active: AtomicU32,
    /// Requests answered with an error (5xx) or reset.
    pub rq_error: AtomicU64,
    /// Requests answered otherwise.
    pub rq_success: AtomicU64,
    /// Requests that timed out.
    pub rq_timeout: AtomicU64,
    /// Requests sent.
    pub rq_total: AtomicU64,
    /// Requests now; least request reads it.
    pub rq_active: AtomicU32,
    /// Requests that wait for a connection.
    pub rq_pending_active: AtomicU32,
}

impl HostStats {
    /// Counts a request by how it ended.
    #[inline]
    pub fn count_request(&self, success: bool) {
        let counter = if success { &self.rq_success } else { &self.rq_error };
        counter.fetch_add(1, Relaxed);
    }
}

/// One host.
#[derive(Debug)]
pub struct Host {
    /// Unique in the process.
    pub id: u64,
    /// Where it is.
    pub address: Address,
    /// The same as text (`%UPSTREAM_HOST%`).
    pub address_text: Arc<str>,
    /// Further addresses for happy eyeballs.
    pub additional_addresses: Box<[Address]>,
    /// Host name; empty when it has none.
    pub hostname: Arc<str>,
    /// Locality.
    pub locality: Arc<Locality>,
    /// Priority; 0 is the highest.
    pub priority: AtomicU32,
    /// Weight, at least 1.
    weight: AtomicU32,
    flags: AtomicU32,
    eds_status: AtomicU32,
    /// Marked `canary` by metadata `envoy.lb`.
    canary: AtomicBool,
    /// Metadata as JSON.
    metadata: arc_swap::ArcSwapOption<serde_json::Value>,
    /// Index of the transport socket match that applies, by order in the cluster; None for the default.
    pub transport_socket_match: Option<u32>,
    /// Its own health check settings.
    pub own_health_check: Option<Arc<EndpointHealthCheck>>,
    /// What stats say in place of its address.
    pub observability_name: Option<Arc<str>>,
    /// TLVs that it adds to PROXY headers.
    pub added_tlvs: Option<Arc<[Tlv]>>,
    /// A LOGICAL_DNS host moves between addresses: those to connect to now, if not `address`.
    current: OnceLock<arc_swap::ArcSwap<CurrentAddresses>>,
    removed: AtomicBool,
    /// What active health checks said of the host whose place this one has taken; bits of [`health_flag`].
    inherited: OnceLock<u32>,
    /// The cluster that it is part of, once it was published.
    owner: OnceLock<Weak<Cluster>>,
    /// Set where its reports of load make its weight.
    reported: OnceLock<Arc<Reported>>,
    /// Made where load reports tell metrics.
    load_metrics: OnceLock<Box<LoadMetrics>>,
    /// Picked since somebody looked.
    picked: AtomicBool,
    /// How often it was ejected or failed its health check: pools then let go of what they had before.
    failures: AtomicU32,
    /// Made for those that want to know at once.
    failed: OnceLock<Notify>,
    /// When it passed its health check after failing it, or was first seen healthy; see [`now_ms`]. 0 for never.
    healthy_since: AtomicU64,
    /// Set where its cluster detects outliers.
    outlier: OnceLock<Arc<HostMonitor>>,
    /// Set where it is health checked.
    health_monitor: OnceLock<Arc<HealthMonitor>>,
    /// Counters.
    pub stats: HostStats,
}

/// What a host is made from.
#[derive(Debug, Clone)]
pub struct HostDescription {
    /// Address.
    pub address: Address,
    /// Further addresses.
    pub additional_addresses: Vec<Address>,
    /// Host name or empty.
    pub hostname: Arc<str>,
    /// Locality.
    pub locality: Arc<Locality>,
    /// Priority.
    pub priority: u32,
    /// Weight.
    pub weight: u32,
    /// Health by configuration.
    pub health: HealthStatus,
    /// Metadata.
    pub metadata: Option<Arc<serde_json::Value>>,
    /// Transport socket match.
    pub transport_socket_match: Option<u32>,
    /// Health check settings.
    pub own_health_check: Option<Arc<EndpointHealthCheck>>,
}

impl Host {
    /// A new host.
    pub fn new(description: HostDescription) -> Host {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let host = Host {
            id: NEXT.fetch_add(1, Relaxed),
            address_text: description.address.to_string().into(),
            address: description.address,
            additional_addresses: description.additional_addresses.into(),
            hostname: description.hostname,
            locality: description.locality,
            priority: AtomicU32::new(description.priority),
            weight: AtomicU32::new(description.weight.max(1)),
            flags: AtomicU32::new(0),
            eds_status: AtomicU32::new(0),
            canary: AtomicBool::new(is_canary(description.metadata.as_deref())),
            metadata: arc_swap::ArcSwapOption::new(description.metadata),
            transport_socket_match: description.transport_socket_match,
            own_health_check: description.own_health_check,
            observability_name: None,
            added_tlvs: None,
            current: OnceLock::new(),
            removed: AtomicBool::new(false),
            inherited: OnceLock::new(),
            owner: OnceLock::new(),
            picked: AtomicBool::new(false),
            reported: OnceLock::new(),
            load_metrics: OnceLock::new(),
            failures: AtomicU32::new(0),
            failed: OnceLock::new(),
            healthy_since: AtomicU64::new(0),
            outlier: OnceLock::new(),
            health_monitor: OnceLock::new(),
            stats: HostStats::default(),
        };
        host.set_eds_health(description.health);
        host
    }

    /// Metadata as JSON.
    #[inline]
    pub fn metadata(&self) -> Option<Arc<serde_json::Value>> {
        self.metadata.load_full()
    }

    /// Whether its metadata marks it as `canary` (under `envoy.lb`).
    #[inline]
    pub fn is_canary(&self) -> bool {
        self.canary.load(Relaxed)
    }

    /// Changes the metadata; the cluster must then publish its host sets again, as subsets may depend on it.
    pub(crate) fn set_metadata(&self, metadata: Option<Arc<serde_json::Value>>) {
        self.canary.store(is_canary(metadata.as_deref()), Relaxed);
        self.metadata.store(metadata);
    }

    /// It takes the place of `old` at the same address: what health checks found out there holds here, too.
    pub(crate) fn inherit(&self, old: &Host) {
        let _ = self.inherited.set(old.health_flags() & health_flag::OF_ACTIVE_HC);
    }

    /// What it inherited, if it took the place of another host.
    pub(crate) fn inherited(&self) -> Option<u32> {
        self.inherited.get().copied()
    }

    /// Weight, at least 1.
    #[inline]
    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    /// Changes the weight; the cluster must then publish its host sets again.
    pub fn set_weight(&self, weight: u32) {
        self.weight.store(weight.max(1), Relaxed);
    }

    /// Bits of [`health_flag`].
    #[inline]
    pub fn health_flags(&self) -> u32 {
        self.flags.load(Relaxed)
    }

    /// Sets flags; returns the flags before.
    pub fn set_flags(&self, flags: u32) -> u32 {
        self.flags.fetch_or(flags, Relaxed)
    }

    /// Clears flags; returns the flags before.
    pub fn clear_flags(&self, flags: u32) -> u32 {
        self.flags.fetch_and(!flags, Relaxed)
    }

    /// Takes over the health that the configuration says.
    pub fn set_eds_health(&self, health: HealthStatus) {
        use health_flag::{DEGRADED_EDS_HEALTH, EDS_STATUS_DRAINING, FAILED_EDS_HEALTH};
        self.clear_flags(FAILED_EDS_HEALTH | DEGRADED_EDS_HEALTH | EDS_STATUS_DRAINING);
        let (status, flags) = match health {
            HealthStatus::Unknown => (0, 0),
            HealthStatus::Healthy => (1, 0),
            HealthStatus::Unhealthy => (2, FAILED_EDS_HEALTH),
            HealthStatus::Draining => (3, EDS_STATUS_DRAINING),
            HealthStatus::Timeout => (4, FAILED_EDS_HEALTH),
            HealthStatus::Degraded => (5, DEGRADED_EDS_HEALTH),
        };
        self.eds_status.store(status, Relaxed);
        self.set_flags(flags);
    }

    /// Health by configuration, as given.
    pub fn eds_status(&self) -> HealthStatus {
        match self.eds_status.load(Relaxed) {
            1 => HealthStatus::Healthy,
            2 => HealthStatus::Unhealthy,
            3 => HealthStatus::Draining,
            4 => HealthStatus::Timeout,
            5 => HealthStatus::Degraded,
            _ => HealthStatus::Unknown,
        }
    }

    /// Health by the flags.
    pub fn health(&self) -> Health {
        let flags = self.health_flags();
        if flags & health_flag::UNHEALTHY != 0 {
            Health::Unhealthy
        } else if flags & health_flag::DEGRADED != 0 {
            Health::Degraded
        } else {
            Health::Healthy
        }
    }

    /// Left out of the panic calculation.
    pub fn excluded(&self) -> bool {
        self.health_flags() & health_flag::EXCLUDED != 0
    }

    /// No longer part of its cluster: pools to it drain.
    #[inline]
    pub fn is_removed(&self) -> bool {
        self.removed.load(Relaxed)
    }

    /// The cluster that it is part of.
    pub(crate) fn owner(&self) -> Option<Arc<Cluster>> {
        self.owner.get()?.upgrade()
    }

    pub(crate) fn set_owner(&self, cluster: &Weak<Cluster>) {
        self.owner.get_or_init(|| cluster.clone());
    }

    /// Looks for a report of load in headers or trailers of its response; true when there was one.
    #[inline]
    pub fn read_load_report(&self, headers: &Headers) -> bool {
        let (weights, metrics) = (self.reported.get(), self.load_metrics.get());
        if weights.is_none() && metrics.is_none() {
            return false;
        }
        let Some(report) = LoadReport::read(headers) else { return false };
        if let Some(weights) = weights {
            weights.take(&report, now_ms());
        }
        if let Some(metrics) = metrics {
            metrics.add(&report);
        }
        true
    }

    /// What it has reported since the last call, where its cluster tells that in load reports.
    pub fn take_load_metrics(&self) -> Vec<Metric> {
        self.load_metrics.get().map(|metrics| metrics.take()).unwrap_or_default()
    }

    /// These metrics of its reports count from now on.
    pub(crate) fn sum_metrics(&self, names: &[Box<str>]) {
        self.load_metrics.get_or_init(|| Box::new(LoadMetrics::new(names)));
    }

    pub(crate) fn reported(&self) -> Option<&Arc<Reported>> {
        self.reported.get()
    }

    /// Its reports count from now on.
    pub(crate) fn report_to(&self, config: &Arc<ClientWeightsConfig>) {
        self.reported.get_or_init(|| Arc::new(Reported::new(config)));
    }

    /// Says that it was picked, for [`Host::take_pick`].
    #[inline]
    pub(crate) fn note_pick(&self) {
        // Mostly it is set already, and reading is free of contention.
        if !self.picked.load(Relaxed) {
            self.picked.store(true, Relaxed);
        }
    }

    /// Whether it was picked since the last call.
    pub(crate) fn take_pick(&self) -> bool {
        self.picked.swap(false, Relaxed)
    }

    /// How often it was found to be failing.
    pub(crate) fn failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }

    /// It was found to be failing: existing connections are not to be used for new requests.
    pub(crate) fn note_failure(&self) {
        self.failures.fetch_add(1, Relaxed);
        if let Some(failed) = self.failed.get() {
            failed.notify_waiters();
        }
    }

    /// Waits until it is found to be failing once more than `before` times.
    pub(crate) async fn failure_after(&self, before: u32) {
        let failed = self.failed.get_or_init(Notify::new);
        loop {
            let mut notified = std::pin::pin!(failed.notified());
            // From here on nothing is missed.
            notified.as_mut().enable();
            if self.failures() != before {
                return;
            }
            notified.await;
        }
    }

    pub(crate) fn mark_removed(&self) {
        self.removed.store(true, Relaxed);
    }

    /// When slow start began for it, on the clock of [`now_ms`].
    #[inline]
    pub(crate) fn healthy_since(&self) -> Option<u64> {
        Some(self.healthy_since.load(Relaxed)).filter(|since| *since != 0)
    }

    /// It is healthy where load is balanced: slow start begins, unless it has begun before.
    pub(crate) fn enter_service(&self) {
        let _ = self.healthy_since.compare_exchange(0, now_ms(), Relaxed, Relaxed);
    }

    /// It passed a health check after failing: slow start begins anew.
    pub(crate) fn note_health_check_passed(&self) {
        self.healthy_since.store(now_ms(), Relaxed);
    }

    /// The response asked for the host to fail its health check at once (`x-envoy-immediate-health-check-fail`).
    pub fn fail_health_check(&self) {
        if let Some(monitor) = self.health_monitor.get() {
            self.set_flags(health_flag::EXCLUDED_VIA_IMMEDIATE_HC_FAIL);
            monitor.fail();
        }
    }

    pub(crate) fn health_monitor(&self) -> &Arc<HealthMonitor> {
        self.health_monitor.get_or_init(Arc::default)
    }

    /// Whether active health checks leave it out.
    pub fn disables_health_check(&self) -> bool {
        self.own_health_check.as_ref().is_some_and(|own| own.disabled)
    }

    /// Where results of tries are reported; None where the cluster detects no outliers.
    #[inline]
    pub fn outlier_monitor(&self) -> Option<&HostMonitor> {
        self.outlier.get().map(|monitor| &**monitor)
    }

    pub(crate) fn outlier_monitor_or(&self, make: impl FnOnce() -> HostMonitor) -> Arc<HostMonitor> {
        self.outlier.get_or_init(|| Arc::new(make())).clone()
    }

    /// Where to connect to now; further addresses are tried after the first.
    pub(crate) fn connect_addresses(&self) -> SmallVec<[Address; 2]> {
        match self.current.get() {
            Some(current) => current.load().addresses.iter().cloned().collect(),
            None => std::iter::once(&self.address).chain(&self.additional_addresses).cloned().collect(),
        }
    }

    /// Address as the admin shows it: that of now.
    pub fn shown_address(&self) -> (Address, Arc<str>) {
        match self.current.get() {
            Some(current) => {
                let current = current.load();
                (current.addresses[0].clone(), current.text.clone())
            }
            None => (self.address.clone(), self.address_text.clone()),
        }
    }

    /// Moves a LOGICAL_DNS host to other addresses; connections that exist stay. False when they are the same.
    pub(crate) fn set_connect_addresses(&self, addresses: &[Address]) -> bool {
        let Some(first) = addresses.first() else { return false };
        if *self.connect_addresses() == *addresses {
            return false;
        }
        let new = Arc::new(CurrentAddresses { addresses: addresses.into(), text: first.to_string().into() });
        match self.current.get() {
            Some(current) => current.store(new),
            None => drop(self.current.set(arc_swap::ArcSwap::new(new))),
        }
        true
    }
}

fn is_canary(metadata: Option<&serde_json::Value>) -> bool {
    metadata.and_then(|metadata| metadata.get("envoy.lb")?.get("canary")?.as_bool()).unwrap_or(false)
}

/// Milliseconds on a clock of the process that never goes back and is never 0.
pub(crate) fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    // A clock that stands still may have been started before this one.
    const MARGIN: Duration = Duration::from_secs(60);
    let start = START.get_or_init(|| clock::now().checked_sub(MARGIN).unwrap_or_else(Instant::now));
    (clock::now().saturating_duration_since(*start).as_millis() as u64).max(1)
}

/// Where a LOGICAL_DNS host is now; at least one address.
#[derive(Debug)]
struct CurrentAddresses {
    addresses: Box<[Address]>,
    text: Arc<str>,
}
