//! Decides which hosts are ejected, when, and for how long. Time and randomness are arguments; nothing here waits.
//!
//! ```text
//!  errors in a row (at once) ──┐                     ┌─► ejected ── time over, or health check passed ─► back
//!  success rate  ┐             ├─► enforced? limit? ─┤
//!  failure share ┴ (interval) ─┘                     └─► counted only
//! ```
//! Formulas are those of Envoy's documentation of outlier detection.

use super::monitor::{HostMonitor, Limits, found};
use crate::host::{Host, health_flag};
use crate::host_set::PrioritySet;
use nuncio_base::stats::Registry;
use nuncio_config::cluster::OutlierDetectionConfig;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

nuncio_base::stat_family! {
    /// `outlier_detection.` of a cluster.
    pub struct OutlierStats {
        counters {
            ejections_consecutive_5xx, ejections_detected_consecutive_5xx,
            ejections_detected_consecutive_gateway_failure, ejections_detected_consecutive_local_origin_failure,
            ejections_detected_degradation, ejections_detected_failure_percentage,
            ejections_detected_local_origin_failure_percentage, ejections_detected_local_origin_success_rate,
            ejections_detected_success_rate,
            ejections_enforced_consecutive_5xx, ejections_enforced_consecutive_gateway_failure,
            ejections_enforced_consecutive_local_origin_failure, ejections_enforced_failure_percentage,
            ejections_enforced_local_origin_failure_percentage, ejections_enforced_local_origin_success_rate,
            ejections_enforced_success_rate, ejections_enforced_total,
            ejections_overflow, ejections_success_rate, ejections_total,
        }
        gauges { ejections_active }
    }
}

/// Why a host is ejected (`OutlierEjectionType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EjectionType {
    /// CONSECUTIVE_5XX
    Consecutive5xx,
    /// CONSECUTIVE_GATEWAY_FAILURE
    ConsecutiveGatewayFailure,
    /// SUCCESS_RATE
    SuccessRate,
    /// CONSECUTIVE_LOCAL_ORIGIN_FAILURE
    ConsecutiveLocalOriginFailure,
    /// SUCCESS_RATE_LOCAL_ORIGIN
    SuccessRateLocalOrigin,
    /// FAILURE_PERCENTAGE
    FailurePercentage,
    /// FAILURE_PERCENTAGE_LOCAL_ORIGIN
    FailurePercentageLocalOrigin,
}

/// What happened to a host, for the event log.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Address of the host.
    pub host: Arc<str>,
    /// Why; None for the end of an ejection.
    pub ejected: Option<EjectionType>,
    /// Whether the ejection took place.
    pub enforced: bool,
    /// Ejections of the host so far.
    pub num_ejections: u32,
    /// Since the host was last ejected or came back.
    pub since_last_action: Option<Duration>,
    /// Success rate of the host, average of the cluster, threshold.
    pub rates: (f64, f64, f64),
}

/// Average success rate and the threshold below which hosts are ejected; -1 where there is none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Average of the hosts with enough requests.
    pub average: f64,
    /// Below it hosts are ejected.
    pub threshold: f64,
}

const NO_RATES: Rates = Rates { average: -1.0, threshold: -1.0 };

struct Entry {
    host: Arc<Host>,
    monitor: Arc<HostMonitor>,
    num_ejections: u32,
    /// Multiplies the base ejection time.
    backoff: u32,
    jitter: Duration,
    ejected_at: Option<Duration>,
    back_at: Option<Duration>,
    /// Success rates shown by the admin: of the host, of this side.
    rates: [f64; 2],
    /// Since when it counts as degraded.
    degraded_at: Option<Duration>,
    /// How often it did; falls while it does not.
    degradations: u32,
}

impl Entry {
    fn is_ejected(&self) -> bool {
        self.host.health_flags() & health_flag::FAILED_OUTLIER_CHECK != 0
    }
}

/// The detector of one cluster.
pub(crate) struct Detector {
    config: OutlierDetectionConfig,
    limits: Arc<Limits>,
    stats: OutlierStats,
    hosts: Vec<Entry>,
    ejected: usize,
    rates: [Rates; 2],
    events: Vec<Event>,
    changed: bool,
    log: bool,
}

/// A source of random numbers.
type Random<'a> = &'a mut dyn FnMut() -> u64;

impl Detector {
    /// A detector without hosts; `log` asks for events.
    pub(super) fn new(config: OutlierDetectionConfig, registry: &Registry, prefix: &str, log: bool) -> Self {
        Detector {
            limits: Arc::new(Limits::new(&config)),
            config,
            stats: OutlierStats::new(registry, &format!("{prefix}outlier_detection.")),
            hosts: Vec::new(),
            ejected: 0,
            rates: [NO_RATES; 2],
            events: Vec::new(),
            changed: false,
            log,
        }
    }

    /// Runtime keys say something else.
    pub(super) fn set_config(&mut self, config: OutlierDetectionConfig) {
        self.limits.set(&config);
        self.config = config;
    }

    /// The cluster's hosts are now those of `set`. New ones get a monitor.
    pub(super) fn set_hosts(&mut self, set: &PrioritySet, wake: &Arc<Notify>) {
        let mut old: HashMap<u64, Entry> = self.hosts.drain(..).map(|entry| (entry.host.id, entry)).collect();
        for host in set.hosts() {
            let entry = old.remove(&host.id).unwrap_or_else(|| Entry {
                monitor: host.outlier_monitor_or(|| HostMonitor::new(self.limits.clone(), wake.clone())),
                host: host.clone(),
                num_ejections: 0,
                backoff: 0,
                jitter: Duration::ZERO,
                ejected_at: None,
                back_at: None,
                rates: [-1.0; 2],
                degraded_at: None,
                degradations: 0,
            });
            self.hosts.push(entry);
        }
        let gone = old.values().filter(|entry| entry.is_ejected()).count();
        self.set_ejected(self.ejected.saturating_sub(gone));
    }

    fn set_ejected(&mut self, count: usize) {
        self.ejected = count;
        self.stats.ejections_active().set(count as u64);
    }

    /// Average and threshold of the hosts' answers, and of this side's connections.
    pub(super) fn rates(&self) -> [Rates; 2] {
        self.rates
    }

    /// Success rates of hosts by id, as of the last interval.
    pub(super) fn host_rates(&self) -> impl Iterator<Item = (u64, [f64; 2])> {
        self.hosts.iter().map(|entry| (entry.host.id, entry.rates))
    }

    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Whether a host's health has changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Looks at the errors in a row that workers have found.
    pub(super) fn on_found(&mut self, now: Duration, random: Random<'_>) {
        for index in 0..self.hosts.len() {
            let found = self.hosts[index].monitor.take_found();
            if found == 0 {
                continue;
            }
            if found & found::DEGRADED != 0 {
                self.degrade(index, now);
            }
            for (bit, kind) in [
                (found::GATEWAY_FAILURE, EjectionType::ConsecutiveGatewayFailure),
                (found::SERVER_ERROR, EjectionType::Consecutive5xx),
                (found::LOCAL_ORIGIN_FAILURE, EjectionType::ConsecutiveLocalOriginFailure),
            ] {
                if found & bit == 0 || self.hosts[index].is_ejected() {
                    continue;
                }
                self.detected(index, kind, now, random);
                if kind == EjectionType::Consecutive5xx {
                    self.stats.ejections_consecutive_5xx().inc();
                }
                self.hosts[index].monitor.reset(bit);
            }
        }
    }

    /// The interval is over.
    pub(super) fn on_interval(&mut self, now: Duration, random: Random<'_>) {
        let mut requests = Vec::with_capacity(self.hosts.len());
        for index in 0..self.hosts.len() {
            let entry = &self.hosts[index];
            if let (true, Some(since)) = (entry.is_ejected(), entry.ejected_at) {
                let time = self.ejection_time(entry.backoff) + entry.jitter;
                if time <= now.saturating_sub(since) {
                    self.come_back(index, now);
                }
            }
            self.look_at_degradation(index, now);
            self.hosts[index].rates = [-1.0; 2];
            requests.push(self.hosts[index].monitor.take_requests());
        }
        for side in 0..2 {
            self.look_at_rates(side, &requests, now, random);
        }
        for entry in &mut self.hosts {
            let rested = entry.back_at.is_some_and(|at| now.saturating_sub(at) >= self.config.interval);
            if !entry.is_ejected() && rested {
                entry.backoff = entry.backoff.saturating_sub(1);
            }
        }
    }

    /// The host passed an active health check.
    pub(super) fn on_health_check_passed(&mut self, host: &Host, now: Duration) {
        if !self.config.successful_active_health_check_uneject_host {
            return;
        }
        let index = self.hosts.iter().position(|entry| entry.host.id == host.id && entry.is_ejected());
        if let Some(index) = index {
            self.come_back(index, now);
        }
    }

    /// The host has called itself degraded: it counts as that, longer each time.
    fn degrade(&mut self, index: usize, now: Duration) {
        let entry = &mut self.hosts[index];
        if entry.degraded_at.is_some() {
            return;
        }
        entry.host.set_flags(health_flag::DEGRADED_OUTLIER_DETECTION);
        entry.degraded_at = Some(now);
        let base = self.config.base_ejection_time;
        if base.saturating_mul(entry.degradations) < self.config.max_ejection_time + base {
            entry.degradations += 1;
        }
        self.stats.ejections_detected_degradation().inc();
        self.changed = true;
    }

    fn look_at_degradation(&mut self, index: usize, now: Duration) {
        let entry = &self.hosts[index];
        match entry.degraded_at {
            Some(since) if self.ejection_time(entry.degradations) <= now.saturating_sub(since) => {
                let entry = &mut self.hosts[index];
                entry.host.clear_flags(health_flag::DEGRADED_OUTLIER_DETECTION);
                entry.degraded_at = None;
                self.changed = true;
            }
            Some(_) => {}
            None => self.hosts[index].degradations = entry.degradations.saturating_sub(1),
        }
    }

    fn ejection_time(&self, backoff: u32) -> Duration {
        self.config.base_ejection_time.saturating_mul(backoff).min(self.config.max_ejection_time)
    }

    /// Ejects by success rate and by failure percentage. `side` 0: answers of hosts, 1: connections of this side.
    fn look_at_rates(&mut self, side: usize, requests: &[[(u64, u64); 2]], now: Duration, random: Random<'_>) {
        let config = &self.config;
        let (rate_hosts, rate_volume) =
            (config.success_rate_minimum_hosts as usize, u64::from(config.success_rate_request_volume));
        let (share_hosts, share_volume) =
            (config.failure_percentage_minimum_hosts as usize, u64::from(config.failure_percentage_request_volume));
        self.rates[side] = NO_RATES;
        if self.hosts.len() < rate_hosts.min(share_hosts) {
            return;
        }
        let (mut by_rate, mut by_share) = (Vec::new(), Vec::new());
        for (index, entry) in self.hosts.iter_mut().enumerate() {
            let (total, good) = requests[index][side];
            if entry.is_ejected() || total == 0 {
                continue;
            }
            let rate = good as f64 * 100.0 / total as f64;
            if total >= rate_volume.min(share_volume) {
                entry.rates[side] = rate;
            }
            if total >= rate_volume {
                by_rate.push((index, rate));
            }
            if total >= share_volume {
                by_share.push((index, rate));
            }
        }
        let (rate_kind, share_kind) = match side {
            0 => (EjectionType::SuccessRate, EjectionType::FailurePercentage),
            _ => (EjectionType::SuccessRateLocalOrigin, EjectionType::FailurePercentageLocalOrigin),
        };
        if !by_rate.is_empty() && by_rate.len() >= rate_hosts {
            let rates: Vec<f64> = by_rate.iter().map(|(_, rate)| *rate).collect();
            self.rates[side] = threshold(&rates, f64::from(self.config.success_rate_stdev_factor) / 1000.0);
            for (index, rate) in by_rate {
                if rate < self.rates[side].threshold {
                    self.stats.ejections_success_rate().inc();
                    self.detected(index, rate_kind, now, random);
                }
            }
        }
        if !by_share.is_empty() && by_share.len() >= share_hosts {
            for (index, rate) in by_share {
                if 100.0 - rate >= f64::from(self.config.failure_percentage_threshold) {
                    self.detected(index, share_kind, now, random);
                }
            }
        }
    }

    /// Counts a detection, and ejects the host within the limits.
    fn detected(&mut self, index: usize, kind: EjectionType, now: Duration, random: Random<'_>) {
        self.count_detected(kind);
        let percent = 100.0 * (self.ejected + 1) as f64 / self.hosts.len() as f64;
        let allowed = percent <= f64::from(self.config.max_ejection_percent)
            || (self.config.always_eject_one_host && self.ejected == 0);
        if !allowed {
            self.stats.ejections_overflow().inc();
            return;
        }
        if matches!(kind, EjectionType::Consecutive5xx | EjectionType::SuccessRate) {
            self.stats.ejections_total().inc();
        }
        // A host found twice in one interval, by rate and by share, is ejected once.
        let enforced = random() % 100 < u64::from(self.enforcing(kind)) && !self.hosts[index].is_ejected();
        if enforced {
            self.count_enforced(kind);
            self.eject(index, now, random);
        }
        if self.log {
            let entry = &self.hosts[index];
            let side = usize::from(matches!(
                kind,
                EjectionType::SuccessRateLocalOrigin | EjectionType::FailurePercentageLocalOrigin
            ));
            self.events.push(Event {
                host: entry.host.address_text.clone(),
                ejected: Some(kind),
                enforced,
                num_ejections: entry.num_ejections,
                since_last_action: entry.back_at.map(|at| now.saturating_sub(at)),
                rates: (entry.rates[side], self.rates[side].average, self.rates[side].threshold),
            });
        }
    }

    fn eject(&mut self, index: usize, now: Duration, random: Random<'_>) {
        let config = &self.config;
        let jitter = random() % (config.max_ejection_time_jitter.as_millis() as u64 + 1);
        let entry = &mut self.hosts[index];
        entry.host.set_flags(health_flag::FAILED_OUTLIER_CHECK);
        entry.host.note_failure();
        entry.num_ejections += 1;
        entry.ejected_at = Some(now);
        entry.jitter = Duration::from_millis(jitter);
        let base = config.base_ejection_time;
        if base.saturating_mul(entry.backoff) < config.max_ejection_time + base {
            entry.backoff += 1;
        }
        self.set_ejected(self.ejected + 1);
        self.changed = true;
    }

    fn come_back(&mut self, index: usize, now: Duration) {
        let entry = &mut self.hosts[index];
        entry.host.clear_flags(health_flag::FAILED_OUTLIER_CHECK);
        entry.monitor.reset(found::SERVER_ERROR | found::GATEWAY_FAILURE | found::LOCAL_ORIGIN_FAILURE);
        entry.back_at = Some(now);
        if self.log {
            self.events.push(Event {
                host: entry.host.address_text.clone(),
                ejected: None,
                enforced: false,
                num_ejections: entry.num_ejections,
                since_last_action: entry.ejected_at.map(|at| now.saturating_sub(at)),
                rates: (-1.0, -1.0, -1.0),
            });
        }
        self.set_ejected(self.ejected.saturating_sub(1));
        self.changed = true;
    }

    fn enforcing(&self, kind: EjectionType) -> u32 {
        let config = &self.config;
        match kind {
            EjectionType::Consecutive5xx => config.enforcing_consecutive_5xx,
            EjectionType::ConsecutiveGatewayFailure => config.enforcing_consecutive_gateway_failure,
            EjectionType::SuccessRate => config.enforcing_success_rate,
            EjectionType::ConsecutiveLocalOriginFailure => config.enforcing_consecutive_local_origin_failure,
            EjectionType::SuccessRateLocalOrigin => config.enforcing_local_origin_success_rate,
            EjectionType::FailurePercentage => config.enforcing_failure_percentage,
            EjectionType::FailurePercentageLocalOrigin => config.enforcing_failure_percentage_local_origin,
        }
    }

    fn count_detected(&self, kind: EjectionType) {
        let stats = &self.stats;
        match kind {
            EjectionType::Consecutive5xx => stats.ejections_detected_consecutive_5xx(),
            EjectionType::ConsecutiveGatewayFailure => stats.ejections_detected_consecutive_gateway_failure(),
            EjectionType::SuccessRate => stats.ejections_detected_success_rate(),
            EjectionType::ConsecutiveLocalOriginFailure => stats.ejections_detected_consecutive_local_origin_failure(),
            EjectionType::SuccessRateLocalOrigin => stats.ejections_detected_local_origin_success_rate(),
            EjectionType::FailurePercentage => stats.ejections_detected_failure_percentage(),
            EjectionType::FailurePercentageLocalOrigin => stats.ejections_detected_local_origin_failure_percentage(),
        }
        .inc();
    }

    fn count_enforced(&self, kind: EjectionType) {
        let stats = &self.stats;
        stats.ejections_enforced_total().inc();
        match kind {
            EjectionType::Consecutive5xx => stats.ejections_enforced_consecutive_5xx(),
            EjectionType::ConsecutiveGatewayFailure => stats.ejections_enforced_consecutive_gateway_failure(),
            EjectionType::SuccessRate => stats.ejections_enforced_success_rate(),
            EjectionType::ConsecutiveLocalOriginFailure => stats.ejections_enforced_consecutive_local_origin_failure(),
            EjectionType::SuccessRateLocalOrigin => stats.ejections_enforced_local_origin_success_rate(),
            EjectionType::FailurePercentage => stats.ejections_enforced_failure_percentage(),
            EjectionType::FailurePercentageLocalOrigin => stats.ejections_enforced_local_origin_failure_percentage(),
        }
        .inc();
    }
}

/// Mean, and mean minus `factor` standard deviations.
fn threshold(rates: &[f64], factor: f64) -> Rates {
    let count = rates.len() as f64;
    let average = rates.iter().sum::<f64>() / count;
    let variance = rates.iter().map(|rate| (rate - average).powi(2)).sum::<f64>() / count;
    Rates { average, threshold: average - factor * variance.sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outlier::OutlierResult;
    use crate::testing::weighted_set;
    use nuncio_base::stats::StatsConfig;

    const SECOND: Duration = Duration::from_secs(1);

    struct Fixture {
        detector: Detector,
        registry: Registry,
        set: PrioritySet,
    }

    fn fixture(hosts: usize, config: OutlierDetectionConfig) -> Fixture {
        let registry = Registry::new(1, StatsConfig::default());
        let mut detector = Detector::new(config, &registry, "cluster.a.", true);
        let set = weighted_set(&vec![1; hosts]);
        detector.set_hosts(&set, &Arc::default());
        Fixture { detector, registry, set }
    }

    impl Fixture {
        fn put(&self, host: usize, codes: &[u16]) {
            let host = &self.set.host_sets[0].hosts[host];
            codes.iter().for_each(|code| host.outlier_monitor().unwrap().put_code(*code));
        }

        fn found(&mut self, at: Duration) -> bool {
            self.detector.on_found(at, &mut || 0);
            self.detector.take_changed()
        }

        fn interval(&mut self, at: Duration) -> bool {
            self.detector.on_interval(at, &mut || 0);
            self.detector.take_changed()
        }

        fn ejected(&self) -> Vec<usize> {
            let hosts = self.set.host_sets[0].hosts.iter().enumerate();
            hosts.filter(|(_, host)| host.health() == crate::host::Health::Unhealthy).map(|(at, _)| at).collect()
        }

        fn counter(&self, name: &str) -> u64 {
            self.registry.counter_value(&format!("cluster.a.outlier_detection.{name}")).unwrap()
        }
    }

    #[test]
    fn a_host_that_calls_itself_degraded_counts_as_that_for_a_while() {
        let config = OutlierDetectionConfig { detect_degraded_hosts: true, ..config() };
        let mut f = fixture(2, config);
        let host = f.detector.hosts[0].host.clone();
        let degraded = |host: &Host| host.health_flags() & health_flag::DEGRADED_OUTLIER_DETECTION != 0;
        f.detector.hosts[0].monitor.put_degraded();
        f.detector.on_found(SECOND, &mut || 0);
        assert!(degraded(&host) && f.detector.take_changed());
        // As long as an ejection: 30 s.
        f.detector.on_interval(SECOND * 30, &mut || 0);
        assert!(degraded(&host));
        f.detector.on_interval(SECOND * 31, &mut || 0);
        assert!(!degraded(&host) && f.detector.take_changed());
        // Soon again: twice as long.
        f.detector.hosts[0].monitor.put_degraded();
        f.detector.on_found(SECOND * 32, &mut || 0);
        f.detector.on_interval(SECOND * 62, &mut || 0);
        assert!(degraded(&host));
        f.detector.on_interval(SECOND * 92, &mut || 0);
        assert!(!degraded(&host));
    }

    fn config() -> OutlierDetectionConfig {
        OutlierDetectionConfig { max_ejection_percent: 100, ..OutlierDetectionConfig::default() }
    }

    #[test]
    fn five_errors_in_a_row_eject_for_the_base_time() {
        let mut f = fixture(3, config());
        f.put(1, &[500; 4]);
        assert!(!f.found(SECOND));
        f.put(1, &[500]);
        assert!(f.found(SECOND));
        assert_eq!((f.ejected(), f.counter("ejections_enforced_consecutive_5xx")), (vec![1], 1));
        assert!(!f.interval(SECOND * 30));
        assert!(f.interval(SECOND * 31));
        assert_eq!(f.ejected(), [] as [usize; 0]);
    }

    #[test]
    fn each_ejection_is_longer_up_to_the_maximum_and_a_good_time_shortens_the_next() {
        let config = OutlierDetectionConfig { max_ejection_time: SECOND * 70, ..config() };
        let mut f = fixture(1, config);
        let mut now = SECOND;
        // 30, 60, then 70 instead of 90.
        for length in [30, 60, 70, 70] {
            f.put(0, &[500; 5]);
            assert!(f.found(now));
            assert!(!f.interval(now + SECOND * length - Duration::from_millis(1)));
            now += SECOND * length;
            assert!(f.interval(now), "after {length} s");
        }
        // One step less for each interval after the one in which it came back: from four to none.
        for _ in 0..4 {
            now += SECOND * 10;
            f.interval(now);
        }
        f.put(0, &[500; 5]);
        assert!(f.found(now));
        assert!(!f.interval(now + SECOND * 29));
        assert!(f.interval(now + SECOND * 30));
    }

    #[test]
    fn the_jitter_is_added_to_the_time() {
        let config = OutlierDetectionConfig { max_ejection_time_jitter: SECOND * 5, ..config() };
        let mut f = fixture(1, config);
        f.put(0, &[500; 5]);
        let mut numbers = [0, 2_000].into_iter();
        f.detector.on_found(Duration::ZERO, &mut || numbers.next().unwrap());
        assert!(f.detector.take_changed());
        assert!(!f.interval(SECOND * 31));
        assert!(f.interval(SECOND * 32));
    }

    #[test]
    fn no_more_than_the_percentage_is_ejected_but_one_may_always_be() {
        let mut f = fixture(3, OutlierDetectionConfig { max_ejection_percent: 40, ..config() });
        for host in 0..3 {
            f.put(host, &[500; 5]);
        }
        f.found(SECOND);
        assert_eq!((f.ejected(), f.counter("ejections_overflow")), (vec![0], 2));
        let always = OutlierDetectionConfig { max_ejection_percent: 0, always_eject_one_host: true, ..config() };
        let mut f = fixture(3, always);
        f.put(0, &[500; 5]);
        f.put(1, &[500; 5]);
        f.found(SECOND);
        assert_eq!(f.ejected(), [0]);
    }

    #[test]
    fn what_is_not_enforced_is_counted() {
        let mut f = fixture(1, config());
        f.put(0, &[503; 5]);
        f.found(SECOND);
        assert_eq!(f.counter("ejections_detected_consecutive_gateway_failure"), 1);
        assert_eq!(f.counter("ejections_enforced_consecutive_gateway_failure"), 0);
        assert_eq!(f.counter("ejections_enforced_total"), 1);
        let events = f.detector.take_events();
        let kinds: Vec<_> = events.iter().map(|event| (event.ejected.unwrap(), event.enforced)).collect();
        assert_eq!(kinds, [(EjectionType::ConsecutiveGatewayFailure, false), (EjectionType::Consecutive5xx, true)]);
    }

    #[test]
    fn the_threshold_is_that_of_envoys_example() {
        let rates = threshold(&[50.0, 100.0, 100.0, 100.0, 100.0], 1.9);
        assert_eq!((rates.average, rates.threshold.round()), (90.0, 52.0));
    }

    #[test]
    fn a_host_far_below_the_average_is_ejected_at_the_interval() {
        let mut f = fixture(5, OutlierDetectionConfig { consecutive_5xx: 1000, ..config() });
        for host in 0..4 {
            f.put(host, &[200; 100]);
        }
        for _ in 0..50 {
            f.put(4, &[200, 500]);
        }
        assert!(f.interval(SECOND * 10));
        assert_eq!((f.ejected(), f.counter("ejections_enforced_success_rate")), (vec![4], 1));
        assert_eq!(f.detector.rates()[0].average, 90.0);
        let rates: Vec<f64> = f.detector.host_rates().map(|(_, rates)| rates[0]).collect();
        assert_eq!(rates, [100.0, 100.0, 100.0, 100.0, 50.0]);
        // Nothing since: nothing to say.
        f.interval(SECOND * 20);
        assert_eq!(f.detector.rates(), [NO_RATES; 2]);
    }

    #[test]
    fn too_few_hosts_with_enough_requests_eject_nobody() {
        let mut f = fixture(5, OutlierDetectionConfig { consecutive_5xx: 1000, ..config() });
        for host in 0..4 {
            f.put(host, &[200; 100]);
        }
        f.put(4, &[500; 99]);
        assert!(!f.interval(SECOND * 10));
    }

    #[test]
    fn a_share_of_failures_ejects_when_it_is_enforced() {
        let config = OutlierDetectionConfig {
            enforcing_failure_percentage: 100,
            enforcing_success_rate: 0,
            consecutive_5xx: 1000,
            consecutive_gateway_failure: 1000,
            ..config()
        };
        let mut f = fixture(5, config);
        for host in 0..4 {
            f.put(host, &[200; 50]);
        }
        f.put(4, &[500; 43]);
        f.put(4, &[200; 7]);
        assert!(f.interval(SECOND * 10));
        assert_eq!((f.ejected(), f.counter("ejections_enforced_failure_percentage")), (vec![4], 1));
    }

    #[test]
    fn failures_of_this_side_have_their_own_row_and_rate() {
        let config = OutlierDetectionConfig { split_external_local_origin_errors: true, ..config() };
        let mut f = fixture(1, config);
        let monitor = f.set.host_sets[0].hosts[0].outlier_monitor().unwrap();
        (0..5).for_each(|_| monitor.put_result(OutlierResult::ConnectFailed, None));
        assert!(f.found(SECOND));
        assert_eq!(f.counter("ejections_enforced_consecutive_local_origin_failure"), 1);
    }

    #[test]
    fn a_passed_health_check_ends_an_ejection() {
        let mut f = fixture(1, config());
        f.put(0, &[500; 5]);
        f.found(SECOND);
        let host = f.set.host_sets[0].hosts[0].clone();
        f.detector.on_health_check_passed(&host, SECOND * 2);
        assert!(f.detector.take_changed());
        assert_eq!(f.ejected(), [] as [usize; 0]);
    }

    #[test]
    fn a_removed_host_is_no_longer_counted_as_ejected() {
        let mut f = fixture(2, config());
        f.put(0, &[500; 5]);
        f.found(SECOND);
        assert_eq!(f.registry.gauge_value("cluster.a.outlier_detection.ejections_active"), Some(1));
        f.detector.set_hosts(&PrioritySet::default(), &Arc::default());
        assert_eq!(f.registry.gauge_value("cluster.a.outlier_detection.ejections_active"), Some(0));
    }
}
