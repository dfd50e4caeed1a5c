//! The health of one host as its checks tell it: thresholds, transitions, and when to check again. No clock, no I/O.
//!
//! ```text
//!              first success, or healthy_threshold successes
//!  unhealthy ──────────────────────────────────────────────► healthy (or degraded)
//!            ◄──────────────────────────────────────────────
//!              a failed answer, or unhealthy_threshold failures of the network or retriable ones
//! ```

use crate::host::{Host, health_flag};
use nuncio_config::cluster::HealthCheckConfig;
use std::time::Duration;

/// Why a check failed (`HealthCheckFailureType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureType {
    /// The host answered, and badly.
    Active,
    /// The host said so in an answer to a request.
    Passive,
    /// No connection, or it broke.
    Network,
    /// No answer in time.
    NetworkTimeout,
}

/// Result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckResult {
    /// Passed.
    Success {
        /// The host calls itself degraded.
        degraded: bool,
    },
    /// Failed.
    Failure {
        /// How.
        kind: FailureType,
        /// Counts toward the threshold instead of failing at once.
        retriable: bool,
        /// Status of the answer; 0 without one.
        status: u16,
        /// The answer asks for the host to be left out of load balancing.
        exclude: bool,
    },
}

impl CheckResult {
    /// The connection failed.
    pub const NETWORK: CheckResult =
        CheckResult::Failure { kind: FailureType::Network, retriable: false, status: 0, exclude: false };
    /// No answer in time.
    pub const TIMEOUT: CheckResult =
        CheckResult::Failure { kind: FailureType::NetworkTimeout, retriable: false, status: 0, exclude: false };
    /// The answer was not the wanted one.
    pub const WRONG: CheckResult =
        CheckResult::Failure { kind: FailureType::Active, retriable: false, status: 0, exclude: false };
}

/// What a result did to the host's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// Nothing.
    Unchanged,
    /// Its health, or its place in health arithmetic, is another.
    Changed,
    /// A threshold is not reached yet.
    ChangePending,
}

/// What there is to log about a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthEvent {
    /// It has become unhealthy.
    EjectUnhealthy(FailureType, u16),
    /// It has become healthy; whether by its first check.
    AddHealthy(bool),
    /// A check passed.
    Successful,
    /// A check failed; whether it was the first.
    Failure(FailureType, bool, u16),
    /// It has become degraded.
    Degraded,
    /// It is no longer degraded.
    NoLongerDegraded,
}

/// What has been learned of one host.
#[derive(Debug)]
pub(super) struct HostHealth {
    pub(super) first_check: bool,
    successes: u32,
    failures: u32,
}

impl Default for HostHealth {
    fn default() -> Self {
        HostHealth { first_check: true, successes: 0, failures: 0 }
    }
}

fn has(host: &Host, flag: u32) -> bool {
    host.health_flags() & flag != 0
}

impl HostHealth {
    /// Takes in a result: changes the host's flags, and tells `log` what there is to log.
    pub(super) fn on_result(
        &mut self,
        host: &Host,
        result: CheckResult,
        config: &HealthCheckConfig,
        log: &mut dyn FnMut(HealthEvent),
    ) -> Transition {
        let transition = match result {
            CheckResult::Success { degraded } => self.on_success(host, degraded, config, log),
            CheckResult::Failure { kind, retriable, status, exclude } => {
                if exclude {
                    host.set_flags(health_flag::EXCLUDED_VIA_IMMEDIATE_HC_FAIL);
                }
                self.on_failure(host, kind, retriable, status, config, log)
            }
        };
        self.first_check = false;
        transition
    }

    fn on_success(
        &mut self,
        host: &Host,
        degraded: bool,
        config: &HealthCheckConfig,
        log: &mut dyn FnMut(HealthEvent),
    ) -> Transition {
        self.failures = 0;
        let mut transition = Transition::Unchanged;
        if has(host, health_flag::FAILED_ACTIVE_HC) {
            self.successes += 1;
            if self.first_check || self.successes == config.healthy_threshold {
                host.clear_flags(
                    health_flag::ACTIVE_HC_TIMEOUT
                        | health_flag::EXCLUDED_VIA_IMMEDIATE_HC_FAIL
                        | health_flag::FAILED_ACTIVE_HC,
                );
                transition = Transition::Changed;
                log(HealthEvent::AddHealthy(self.first_check));
            } else {
                transition = Transition::ChangePending;
            }
        }
        if transition != Transition::Changed && config.always_log_success {
            log(HealthEvent::Successful);
        }
        transition = clear_pending(host, transition);
        if degraded != has(host, health_flag::DEGRADED_ACTIVE_HC) {
            if degraded {
                host.set_flags(health_flag::DEGRADED_ACTIVE_HC);
                log(HealthEvent::Degraded);
            } else {
                host.clear_flags(health_flag::DEGRADED_ACTIVE_HC);
                log(HealthEvent::NoLongerDegraded);
            }
            if transition == Transition::Unchanged {
                transition = Transition::Changed;
            }
        }
        transition
    }

    fn on_failure(
        &mut self,
        host: &Host,
        kind: FailureType,
        retriable: bool,
        status: u16,
        config: &HealthCheckConfig,
        log: &mut dyn FnMut(HealthEvent),
    ) -> Transition {
        self.successes = 0;
        let network = matches!(kind, FailureType::Network | FailureType::NetworkTimeout);
        let mut transition = Transition::Unchanged;
        if !has(host, health_flag::FAILED_ACTIVE_HC) {
            let counted = network || retriable;
            self.failures += u32::from(counted);
            if !counted || self.failures == config.unhealthy_threshold {
                host.set_flags(health_flag::FAILED_ACTIVE_HC);
                transition = Transition::Changed;
                log(HealthEvent::EjectUnhealthy(kind, status));
            } else {
                transition = Transition::ChangePending;
            }
        }
        if kind == FailureType::NetworkTimeout && has(host, health_flag::FAILED_ACTIVE_HC) {
            host.set_flags(health_flag::ACTIVE_HC_TIMEOUT);
        } else {
            host.clear_flags(health_flag::ACTIVE_HC_TIMEOUT);
        }
        transition = clear_pending(host, transition);
        if self.first_check || config.always_log_failures {
            log(HealthEvent::Failure(kind, self.first_check, status));
        }
        transition
    }
}

/// The first result ends the time in which a new host is left out.
fn clear_pending(host: &Host, transition: Transition) -> Transition {
    match host.clear_flags(health_flag::PENDING_ACTIVE_HC) & health_flag::PENDING_ACTIVE_HC {
        0 => transition,
        _ => Transition::Changed,
    }
}

/// Time until the next check. `traffic`: the cluster has had connections.
pub(super) fn next_interval(
    config: &HealthCheckConfig,
    healthy: bool,
    transition: Transition,
    traffic: bool,
    random: &mut dyn FnMut() -> u64,
) -> Duration {
    let pending = transition == Transition::ChangePending;
    let base = match (traffic, healthy, pending) {
        (true, false, true) => config.unhealthy_edge_interval,
        (true, false, false) => config.unhealthy_interval,
        (true, true, true) => config.healthy_edge_interval,
        (true, true, false) => config.interval,
        (false, true, false) => config.no_traffic_healthy_interval,
        (false, _, _) => config.no_traffic_interval,
    };
    with_jitter(base, config.interval_jitter_percent, config.interval_jitter, random)
}

/// `base` and a random part of both jitters, in whole milliseconds and never zero.
pub(super) fn with_jitter(base: Duration, percent: u32, jitter: Duration, random: &mut dyn FnMut() -> u64) -> Duration {
    let base = base.as_millis() as u64;
    let mut total = base;
    for bound in [u64::from(percent) * base / 100, jitter.as_millis() as u64] {
        if bound > 0 {
            total += random() % bound;
        }
    }
    Duration::from_millis(total.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health_check::testing::tcp_check;
    use crate::host::Health;
    use crate::testing::host;
    use std::sync::Arc;

    fn config() -> HealthCheckConfig {
        HealthCheckConfig { unhealthy_threshold: 2, healthy_threshold: 3, ..tcp_check() }
    }

    const PASSED: CheckResult = CheckResult::Success { degraded: false };

    struct Fixture {
        host: Arc<Host>,
        health: HostHealth,
        events: Vec<HealthEvent>,
    }

    fn fixture() -> Fixture {
        let host = host(1, 1, &Arc::default());
        host.set_flags(health_flag::FAILED_ACTIVE_HC);
        Fixture { host, health: HostHealth::default(), events: Vec::new() }
    }

    impl Fixture {
        fn put(&mut self, result: CheckResult) -> Transition {
            let events = &mut self.events;
            self.health.on_result(&self.host, result, &config(), &mut |event| events.push(event))
        }
    }

    #[test]
    fn the_first_success_makes_a_host_healthy_at_once() {
        let mut f = fixture();
        assert_eq!(f.put(PASSED), Transition::Changed);
        assert_eq!((f.host.health(), &f.events[..]), (Health::Healthy, &[HealthEvent::AddHealthy(true)][..]));
        assert_eq!(f.put(PASSED), Transition::Unchanged);
    }

    #[test]
    fn thresholds_count_in_a_row() {
        let mut f = fixture();
        f.put(PASSED);
        assert_eq!(f.put(CheckResult::NETWORK), Transition::ChangePending);
        assert_eq!(f.put(PASSED), Transition::Unchanged);
        assert_eq!(f.put(CheckResult::NETWORK), Transition::ChangePending);
        assert_eq!(f.put(CheckResult::NETWORK), Transition::Changed);
        assert_eq!(f.host.health(), Health::Unhealthy);
        for expected in [Transition::ChangePending, Transition::ChangePending, Transition::Changed] {
            assert_eq!(f.put(PASSED), expected);
        }
        assert_eq!(f.host.health(), Health::Healthy);
    }

    #[test]
    fn a_bad_answer_fails_at_once_unless_it_is_retriable() {
        let mut f = fixture();
        f.put(PASSED);
        let retriable =
            CheckResult::Failure { kind: FailureType::Active, retriable: true, status: 503, exclude: false };
        assert_eq!(f.put(retriable), Transition::ChangePending);
        assert_eq!(f.put(CheckResult::WRONG), Transition::Changed);
        assert_eq!(f.events.last(), Some(&HealthEvent::EjectUnhealthy(FailureType::Active, 0)));
    }

    #[test]
    fn a_timeout_is_shown_while_the_host_is_unhealthy() {
        let mut f = fixture();
        f.put(CheckResult::TIMEOUT);
        assert!(has(&f.host, health_flag::ACTIVE_HC_TIMEOUT));
        f.put(CheckResult::NETWORK);
        assert!(!has(&f.host, health_flag::ACTIVE_HC_TIMEOUT));
    }

    #[test]
    fn a_degraded_host_is_told_from_a_healthy_one() {
        let mut f = fixture();
        f.put(CheckResult::Success { degraded: true });
        assert_eq!(f.host.health(), Health::Degraded);
        assert_eq!(f.put(PASSED), Transition::Changed);
        assert_eq!(f.events.last(), Some(&HealthEvent::NoLongerDegraded));
    }

    #[test]
    fn the_first_result_of_a_new_host_counts_it_in() {
        let mut f = fixture();
        f.host.set_flags(health_flag::PENDING_ACTIVE_HC);
        assert_eq!(f.put(CheckResult::NETWORK), Transition::Changed);
        assert!(!f.host.excluded());
    }

    #[test]
    fn what_was_excluded_comes_back_with_its_health() {
        let mut f = fixture();
        f.put(PASSED);
        f.host.set_flags(health_flag::EXCLUDED_VIA_IMMEDIATE_HC_FAIL);
        let passive = CheckResult::Failure { kind: FailureType::Passive, retriable: false, status: 0, exclude: false };
        assert_eq!(f.put(passive), Transition::Changed);
        assert!(f.host.excluded());
        for _ in 0..3 {
            f.put(PASSED);
        }
        assert!(!f.host.excluded());
    }

    #[test]
    fn each_state_has_its_interval() {
        let seconds = Duration::from_secs;
        let config = HealthCheckConfig {
            interval: seconds(1),
            unhealthy_interval: seconds(2),
            unhealthy_edge_interval: seconds(3),
            healthy_edge_interval: seconds(4),
            no_traffic_interval: seconds(5),
            no_traffic_healthy_interval: seconds(6),
            ..config()
        };
        let next =
            |healthy, transition, traffic| next_interval(&config, healthy, transition, traffic, &mut || 0).as_secs();
        use Transition::{ChangePending, Changed, Unchanged};
        assert_eq!([next(true, Unchanged, true), next(true, ChangePending, true)], [1, 4]);
        assert_eq!([next(false, Changed, true), next(false, ChangePending, true)], [2, 3]);
        assert_eq!(
            [next(true, Unchanged, false), next(true, ChangePending, false), next(false, Unchanged, false)],
            [6, 5, 5]
        );
    }

    #[test]
    fn jitter_is_added_in_milliseconds() {
        let mut numbers = [99, 501].into_iter();
        let total =
            with_jitter(Duration::from_secs(1), 10, Duration::from_millis(500), &mut || numbers.next().unwrap());
        assert_eq!(total, Duration::from_millis(1000 + 99 + 1));
        assert_eq!(with_jitter(Duration::ZERO, 0, Duration::ZERO, &mut || 0), Duration::from_millis(1));
    }
}
