//! Outlier detection: hosts that answer badly are ejected for a while.
//!
//! Workers count at the host (`monitor`); one task per cluster on the control thread runs the `detector` when a limit is
//! reached and at each interval, publishes the host set again when a host's health has changed, and writes the event log.

mod detector;
mod event;
mod monitor;

pub use detector::{EjectionType, Event, OutlierStats, Rates};
pub(crate) use event::timestamp;
pub use monitor::{HostMonitor, OutlierResult};

use crate::cluster::Cluster;
use crate::host::Host;
use crate::host_set::PrioritySet;
use detector::Detector;
use nuncio_base::random;
use nuncio_base::stats::Registry;
use nuncio_config::cluster::OutlierDetectionConfig;
use nuncio_http::access_log::LogFile;
use nuncio_http::matchers::Runtime;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The outlier detection of one cluster.
pub struct OutlierDetection {
    detector: Mutex<Detector>,
    /// A worker has found something, or the cluster is gone.
    wake: Arc<Notify>,
    start: Instant,
    /// Milliseconds.
    interval: AtomicU64,
    /// Without what runtime keys say.
    config: OutlierDetectionConfig,
    log: Option<Arc<LogFile>>,
    cluster: Arc<str>,
}

impl std::fmt::Debug for OutlierDetection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutlierDetection").field("interval", &self.interval()).finish_non_exhaustive()
    }
}

impl OutlierDetection {
    pub(crate) fn new(
        config: &OutlierDetectionConfig,
        registry: &Registry,
        prefix: &str,
        cluster_name: &Arc<str>,
        log: Option<Arc<LogFile>>,
    ) -> Self {
        let detector = Detector::new(config.clone(), registry, prefix, log.is_some());
        OutlierDetection {
            interval: AtomicU64::new(config.interval.as_millis() as u64),
            config: config.clone(),
            detector: Mutex::new(detector),
            wake: Arc::default(),
            start: Instant::now(),
            log,
            cluster: cluster_name.clone(),
        }
    }

    /// A thread that panicked between plain operations leaves a detector that is whole.
    fn detector(&self) -> MutexGuard<'_, Detector> {
        self.detector.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the keys `outlier_detection.*` say; what they do not say is as configured.
    pub(crate) fn apply_runtime(&self, runtime: &dyn Runtime) {
        let config = with_runtime(&self.config, runtime);
        self.interval.store(config.interval.as_millis() as u64, Relaxed);
        self.detector().set_config(config);
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.interval.load(Relaxed).max(1))
    }

    /// The cluster's hosts are now those of `set`.
    pub(crate) fn set_hosts(&self, set: &PrioritySet) {
        self.detector().set_hosts(set, &self.wake);
    }

    /// Ends the task of a cluster that is gone.
    pub(crate) fn stop(&self) {
        self.wake.notify_one();
    }

    /// A health check passed: the host comes back if it was ejected. True when it did.
    pub(crate) fn on_health_check_passed(&self, host: &Host) -> bool {
        let mut detector = self.detector();
        detector.on_health_check_passed(host, self.start.elapsed());
        let changed = detector.take_changed();
        self.write(detector);
        changed
    }

    /// Average success rates and thresholds: of the hosts' answers, and of this side's connections.
    pub fn rates(&self) -> [Rates; 2] {
        self.detector().rates()
    }

    /// Success rates of hosts by id, as of the last interval; -1 where there is none.
    pub fn host_rates(&self) -> Vec<(u64, [f64; 2])> {
        self.detector().host_rates().collect()
    }

    fn write(&self, mut detector: MutexGuard<'_, Detector>) {
        let events = detector.take_events();
        drop(detector);
        let Some(log) = &self.log else { return };
        for event in events {
            log.write(event::line(&event, &self.cluster, std::time::SystemTime::now()).as_bytes());
        }
    }

    /// One look, after something was found or at the end of an interval. True when a host's health has changed.
    fn look(&self, interval_over: bool) -> bool {
        let now = self.start.elapsed();
        let mut detector = self.detector();
        detector.on_found(now, &mut random::u64);
        if interval_over {
            detector.on_interval(now, &mut random::u64);
        }
        let changed = detector.take_changed();
        self.write(detector);
        changed
    }
}

fn with_runtime(config: &OutlierDetectionConfig, runtime: &dyn Runtime) -> OutlierDetectionConfig {
    let mut config = config.clone();
    let value = |key: &str| runtime.integer(&format!("outlier_detection.{key}"));
    let number = |key: &str, field: &mut u32| {
        if let Some(value) = value(key) {
            *field = u32::try_from(value).unwrap_or(u32::MAX);
        }
    };
    number("consecutive_5xx", &mut config.consecutive_5xx);
    number("consecutive_gateway_failure", &mut config.consecutive_gateway_failure);
    number("consecutive_local_origin_failure", &mut config.consecutive_local_origin_failure);
    number("max_ejection_percent", &mut config.max_ejection_percent);
    number("enforcing_consecutive_5xx", &mut config.enforcing_consecutive_5xx);
    number("enforcing_consecutive_gateway_failure", &mut config.enforcing_consecutive_gateway_failure);
    number("enforcing_consecutive_local_origin_failure", &mut config.enforcing_consecutive_local_origin_failure);
    number("enforcing_success_rate", &mut config.enforcing_success_rate);
    number("enforcing_local_origin_success_rate", &mut config.enforcing_local_origin_success_rate);
    number("enforcing_failure_percentage", &mut config.enforcing_failure_percentage);
    number("enforcing_failure_percentage_local_origin", &mut config.enforcing_failure_percentage_local_origin);
    number("success_rate_minimum_hosts", &mut config.success_rate_minimum_hosts);
    number("success_rate_request_volume", &mut config.success_rate_request_volume);
    number("success_rate_stdev_factor", &mut config.success_rate_stdev_factor);
    number("failure_percentage_threshold", &mut config.failure_percentage_threshold);
    number("failure_percentage_minimum_hosts", &mut config.failure_percentage_minimum_hosts);
    number("failure_percentage_request_volume", &mut config.failure_percentage_request_volume);
    let time = |key: &str, field: &mut Duration| {
        if let Some(value) = value(key) {
            *field = Duration::from_millis(value);
        }
    };
    time("interval_ms", &mut config.interval);
    time("base_ejection_time_ms", &mut config.base_ejection_time);
    time("max_ejection_time_ms", &mut config.max_ejection_time);
    time("max_ejection_time_jitter_ms", &mut config.max_ejection_time_jitter);
    if let Some(value) = value("always_eject_one_host") {
        config.always_eject_one_host = value != 0;
    }
    config
}

/// Runs the detection of `cluster` on the control thread until the cluster is gone.
pub(crate) fn start(cluster: &Arc<Cluster>, control: &tokio::runtime::Handle) {
    let Some(detection) = cluster.outlier_detection().cloned() else { return };
    let cluster = Arc::downgrade(cluster);
    control.spawn(async move {
        let mut next = Instant::now() + detection.interval();
        loop {
            let interval_over = tokio::select! {
                () = tokio::time::sleep_until(next) => true,
                () = detection.wake.notified() => false,
            };
            let Some(cluster) = cluster.upgrade().filter(|cluster| !cluster.is_removed()) else { return };
            if detection.look(interval_over) {
                cluster.publish_health();
            }
            if interval_over {
                next = Instant::now() + detection.interval();
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Keys(&'static [(&'static str, u64)]);

    impl Runtime for Keys {
        fn integer(&self, key: &str) -> Option<u64> {
            self.0.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
        }
    }

    #[test]
    fn runtime_keys_go_before_the_configuration() {
        let config = OutlierDetectionConfig::default();
        let keys = Keys(&[("outlier_detection.consecutive_5xx", 2), ("outlier_detection.interval_ms", 1500)]);
        let changed = with_runtime(&config, &keys);
        assert_eq!((changed.consecutive_5xx, changed.interval), (2, Duration::from_millis(1500)));
        assert_eq!(changed.max_ejection_percent, config.max_ejection_percent);
        assert_eq!(with_runtime(&config, &Keys(&[])), config);
    }
}
