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
    interval: Duration,
    log: Option<Arc<LogFile>>,
    cluster: Arc<str>,
}

impl std::fmt::Debug for OutlierDetection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutlierDetection").field("interval", &self.interval).finish_non_exhaustive()
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
            interval: detector.config().interval,
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

/// Runs the detection of `cluster` on the control thread until the cluster is gone.
pub(crate) fn start(cluster: &Arc<Cluster>, control: &tokio::runtime::Handle) {
    let Some(detection) = cluster.outlier_detection().cloned() else { return };
    let cluster = Arc::downgrade(cluster);
    control.spawn(async move {
        let mut next = Instant::now() + detection.interval;
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
                next = Instant::now() + detection.interval;
            }
        }
    });
}
