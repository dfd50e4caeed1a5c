//! What workers count at one host for outlier detection.
//!
//! Any worker may report, without locks: a good answer costs one relaxed addition. Reaching a limit of errors in a row
//! sets a bit and wakes the control thread, where the detector decides.

use nuncio_config::cluster::OutlierDetectionConfig;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use tokio::sync::Notify;

/// Result of a try that is not told by a response code (Envoy's `Outlier::Result`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutlierResult {
    /// Connected; what follows tells its own result.
    ConnectSuccess,
    /// Connected, and nothing follows (TCP).
    ConnectSuccessFinal,
    /// No connection, or it broke.
    ConnectFailed,
    /// A timeout of this side.
    Timeout,
}

/// Errors in a row that were found; bits.
pub(super) mod found {
    pub(crate) const GATEWAY_FAILURE: u8 = 1;
    pub(crate) const SERVER_ERROR: u8 = 2;
    pub(crate) const LOCAL_ORIGIN_FAILURE: u8 = 4;
    /// The host calls itself degraded.
    pub(crate) const DEGRADED: u8 = 8;
}

const SUCCESS: u64 = 1 << 32;

/// Requests since the last look: all in the lower half, the good ones in the upper.
#[derive(Debug, Default)]
struct Bucket(AtomicU64);

impl Bucket {
    #[inline]
    fn count(&self, success: bool) {
        self.0.fetch_add(if success { SUCCESS + 1 } else { 1 }, Relaxed);
    }

    /// All and good ones; the bucket is empty then.
    fn take(&self) -> (u64, u64) {
        let value = self.0.swap(0, Relaxed);
        (value & (SUCCESS - 1), value >> 32)
    }
}

/// Errors in a row.
#[derive(Debug, Default)]
struct InARow(AtomicU32);

impl InARow {
    #[inline]
    fn reset(&self) {
        // Nearly always zero already: no write, so that the line stays shared.
        if self.0.load(Relaxed) != 0 {
            self.0.store(0, Relaxed);
        }
    }

    /// Counts one; true at the `limit`, once.
    fn count(&self, limit: &AtomicU32) -> bool {
        self.0.fetch_add(1, Relaxed).wrapping_add(1) == limit.load(Relaxed)
    }
}

/// The counters of one host.
#[derive(Debug)]
pub struct HostMonitor {
    limits: Arc<Limits>,
    server_errors: InARow,
    gateway_failures: InARow,
    local_origin_failures: InARow,
    external: Bucket,
    local: Bucket,
    found: AtomicU8,
    wake: Arc<Notify>,
}

/// When errors in a row are too many; the same for all hosts of a cluster.
#[derive(Debug)]
pub(super) struct Limits {
    server_errors: AtomicU32,
    gateway_failures: AtomicU32,
    local_origin_failures: AtomicU32,
    split: bool,
    degraded: bool,
}

impl Limits {
    pub(super) fn new(config: &OutlierDetectionConfig) -> Self {
        let limits = Limits {
            server_errors: AtomicU32::new(0),
            gateway_failures: AtomicU32::new(0),
            local_origin_failures: AtomicU32::new(0),
            split: config.split_external_local_origin_errors,
            degraded: config.detect_degraded_hosts,
        };
        limits.set(config);
        limits
    }

    /// Runtime keys may change them.
    pub(super) fn set(&self, config: &OutlierDetectionConfig) {
        self.server_errors.store(config.consecutive_5xx, Relaxed);
        self.gateway_failures.store(config.consecutive_gateway_failure, Relaxed);
        self.local_origin_failures.store(config.consecutive_local_origin_failure, Relaxed);
    }
}

impl HostMonitor {
    pub(super) fn new(limits: Arc<Limits>, wake: Arc<Notify>) -> Self {
        HostMonitor {
            limits,
            server_errors: InARow::default(),
            gateway_failures: InARow::default(),
            local_origin_failures: InARow::default(),
            external: Bucket::default(),
            local: Bucket::default(),
            found: AtomicU8::new(0),
            wake,
        }
    }

    /// A response of the host; gRPC errors as the HTTP code that they stand for.
    #[inline]
    pub fn put_code(&self, code: u16) {
        if !(500..600).contains(&code) {
            self.external.count(true);
            self.server_errors.reset();
            self.gateway_failures.reset();
            return;
        }
        self.put_error(code);
    }

    #[cold]
    fn put_error(&self, code: u16) {
        self.external.count(false);
        if matches!(code, 502..=504) {
            if self.gateway_failures.count(&self.limits.gateway_failures) {
                self.report(found::GATEWAY_FAILURE);
            }
        } else {
            self.gateway_failures.reset();
        }
        if self.server_errors.count(&self.limits.server_errors) {
            self.report(found::SERVER_ERROR);
        }
    }

    /// The host says of itself that it is degraded.
    pub fn put_degraded(&self) {
        if self.limits.degraded {
            self.report(found::DEGRADED);
        }
    }

    /// Another result. Where failures of this side are not counted apart they count as the response code that the
    /// client gets (`code` for timeouts, 503 for connections).
    #[inline]
    pub fn put_result(&self, result: OutlierResult, code: Option<u16>) {
        if self.limits.split {
            return match result {
                OutlierResult::ConnectSuccess | OutlierResult::ConnectSuccessFinal => {
                    self.local.count(true);
                    self.local_origin_failures.reset();
                }
                OutlierResult::ConnectFailed | OutlierResult::Timeout => {
                    self.local.count(false);
                    if self.local_origin_failures.count(&self.limits.local_origin_failures) {
                        self.report(found::LOCAL_ORIGIN_FAILURE);
                    }
                }
            };
        }
        match (result, code) {
            (_, Some(code)) => self.put_code(code),
            (OutlierResult::ConnectSuccess, None) => {}
            (OutlierResult::ConnectSuccessFinal, None) => self.put_code(200),
            (OutlierResult::ConnectFailed, None) => self.put_code(503),
            (OutlierResult::Timeout, None) => self.put_code(504),
        }
    }

    fn report(&self, bit: u8) {
        self.found.fetch_or(bit, Relaxed);
        self.wake.notify_one();
    }

    /// What was found since the last call.
    pub(super) fn take_found(&self) -> u8 {
        match self.found.load(Relaxed) {
            0 => 0,
            _ => self.found.swap(0, Relaxed),
        }
    }

    /// Forgets the errors in a row of these kinds.
    pub(super) fn reset(&self, kinds: u8) {
        for (bit, row) in [
            (found::SERVER_ERROR, &self.server_errors),
            (found::GATEWAY_FAILURE, &self.gateway_failures),
            (found::LOCAL_ORIGIN_FAILURE, &self.local_origin_failures),
        ] {
            if kinds & bit != 0 {
                row.reset();
            }
        }
    }

    /// Requests (all, good) since the last call: of the host, and of this side's connections to it.
    pub(super) fn take_requests(&self) -> [(u64, u64); 2] {
        [self.external.take(), self.local.take()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn monitor(split: bool) -> HostMonitor {
        let config = OutlierDetectionConfig {
            consecutive_5xx: 3,
            consecutive_gateway_failure: 2,
            consecutive_local_origin_failure: 2,
            split_external_local_origin_errors: split,
            ..OutlierDetectionConfig::default()
        };
        HostMonitor::new(Arc::new(Limits::new(&config)), Arc::default())
    }

    #[test]
    fn errors_in_a_row_are_found_once_at_their_limit() {
        let monitor = monitor(false);
        for (code, expected) in [(500, 0), (503, 0), (500, found::SERVER_ERROR), (500, 0), (599, 0)] {
            monitor.put_code(code);
            assert_eq!(monitor.take_found(), expected, "{code}");
        }
        monitor.put_code(200);
        for (code, expected) in [(502, 0), (504, found::GATEWAY_FAILURE), (503, found::SERVER_ERROR)] {
            monitor.put_code(code);
            assert_eq!(monitor.take_found(), expected, "{code}");
        }
        assert_eq!(monitor.take_requests(), [(9, 1), (0, 0)]);
        assert_eq!(monitor.take_requests(), [(0, 0), (0, 0)]);
    }

    #[test]
    fn an_error_that_is_no_gateways_breaks_the_gateways_row() {
        let monitor = monitor(false);
        monitor.put_code(503);
        monitor.put_code(500);
        monitor.put_code(503);
        assert_eq!(monitor.take_found(), found::SERVER_ERROR);
    }

    #[test]
    fn failures_of_this_side_count_as_codes_unless_they_are_split_off() {
        let both = monitor(false);
        both.put_result(OutlierResult::ConnectSuccess, None);
        both.put_result(OutlierResult::ConnectFailed, None);
        both.put_result(OutlierResult::Timeout, Some(504));
        assert_eq!((both.take_found(), both.take_requests()), (found::GATEWAY_FAILURE, [(2, 0), (0, 0)]));
        let split = monitor(true);
        split.put_result(OutlierResult::ConnectSuccess, None);
        split.put_result(OutlierResult::ConnectFailed, None);
        split.put_result(OutlierResult::Timeout, Some(504));
        assert_eq!((split.take_found(), split.take_requests()), (found::LOCAL_ORIGIN_FAILURE, [(0, 0), (3, 1)]));
    }
}
