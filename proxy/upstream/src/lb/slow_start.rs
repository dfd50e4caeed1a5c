//! Slow start: a host that has just become healthy gets a growing share of its weight. Pure arithmetic over the time since.

use crate::host::{Health, Host};
use nuncio_config::cluster::SlowStartConfig;

/// Slow start as picks use it.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlowStart {
    /// In milliseconds, not 0.
    window: u64,
    /// One divided by the aggression.
    exponent: f64,
    /// Least share of the weight.
    least: f64,
}

impl SlowStart {
    pub(super) fn new(config: &SlowStartConfig) -> Self {
        SlowStart {
            window: u64::try_from(config.window.as_millis()).unwrap_or(u64::MAX).max(1),
            exponent: 1.0 / config.aggression,
            least: config.min_weight_percent / 100.0,
        }
    }

    /// Milliseconds that a healthy host has been in its window; None for hosts that count in full.
    fn elapsed(&self, host: &Host, now: u64) -> Option<u64> {
        let since = host.healthy_since()?;
        Some(now.saturating_sub(since)).filter(|elapsed| *elapsed < self.window && host.health() == Health::Healthy)
    }

    /// Whether the host's weight still grows.
    pub(super) fn concerns(&self, host: &Host, now: u64) -> bool {
        self.elapsed(host, now).is_some()
    }

    /// The share of its weight that `host` gets at `now`.
    pub(super) fn share(&self, host: &Host, now: u64) -> f64 {
        self.elapsed(host, now).map_or(1.0, |elapsed| self.share_after(elapsed))
    }

    fn share_after(&self, elapsed: u64) -> f64 {
        let time = elapsed.max(1) as f64 / self.window as f64;
        let time = if self.exponent == 1.0 { time } else { time.powf(self.exponent) };
        time.max(self.least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::now_ms;
    use crate::lb::{LbContext, LbTables, WorkerLb};
    use crate::testing::{config, host, stats, weighted_set};
    use nuncio_config::cluster::{ClusterConfig, CommonLbConfig, HealthStatus, LbPolicy};
    use std::sync::Arc;
    use std::time::Duration;

    fn slow_start(aggression: f64, min_weight_percent: f64) -> SlowStartConfig {
        SlowStartConfig { window: Duration::from_secs(60), aggression, min_weight_percent }
    }

    fn share(aggression: f64, min_weight_percent: f64, seconds: u64) -> f64 {
        let share = SlowStart::new(&slow_start(aggression, min_weight_percent)).share_after(seconds * 1000);
        (share * 1000.0).round() / 1000.0
    }

    #[test]
    fn the_share_grows_with_time_to_the_power_of_the_inverse_aggression() {
        assert_eq!([share(1.0, 10.0, 15), share(1.0, 10.0, 30), share(1.0, 10.0, 45)], [0.25, 0.5, 0.75]);
        assert_eq!([share(2.0, 10.0, 15), share(2.0, 10.0, 30)], [0.5, 0.707]);
        assert_eq!([share(0.5, 1.0, 15), share(0.5, 1.0, 30)], [0.063, 0.25]);
    }

    #[test]
    fn the_share_is_never_below_the_minimum() {
        assert_eq!([share(1.0, 10.0, 0), share(1.0, 10.0, 3), share(1.0, 10.0, 12)], [0.1, 0.1, 0.2]);
        assert_eq!(share(1.0, 0.0, 0), 0.0, "a millisecond of a minute, rounded");
        assert!(SlowStart::new(&slow_start(1.0, 0.0)).share_after(0) > 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn only_healthy_hosts_within_the_window_are_concerned() {
        let slow = SlowStart::new(&slow_start(1.0, 10.0));
        let host = host(1, 1, &Arc::default());
        assert!(!slow.concerns(&host, now_ms()), "nobody has seen it healthy");
        host.enter_service();
        tokio::time::advance(Duration::from_secs(30)).await;
        // Seen again: the window goes on.
        host.enter_service();
        assert_eq!(slow.share(&host, now_ms()), 0.5);
        host.set_eds_health(HealthStatus::Degraded);
        assert_eq!(slow.share(&host, now_ms()), 1.0);
        host.set_eds_health(HealthStatus::Healthy);
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(!slow.concerns(&host, now_ms()));
        host.note_health_check_passed();
        assert_eq!(slow.share(&host, now_ms()), 0.1);
    }

    /// Picks of the second of two hosts, which is half a minute younger, out of 300.
    async fn picks_of_the_younger(lb_policy: LbPolicy) -> [usize; 2] {
        let lb_common = CommonLbConfig { slow_start: Some(slow_start(1.0, 10.0)), ..CommonLbConfig::default() };
        let config = ClusterConfig { lb_policy, lb_common, ..config() };
        let (set, stats) = (weighted_set(&[1, 1]), stats());
        set.host_sets[0].hosts[0].enter_service();
        tokio::time::advance(Duration::from_secs(60)).await;
        let tables = LbTables::new(&config, &set, &stats);
        tokio::time::advance(Duration::from_secs(30)).await;
        let mut lb = WorkerLb::with_seed(0);
        let mut count = || {
            let picks = (0..300).filter_map(|_| lb.choose_host(&tables, &set, &LbContext::default(), &stats));
            picks.filter(|host| host.address.port() == Some(1)).count()
        };
        let first = count();
        tokio::time::advance(Duration::from_secs(30)).await;
        [first, count()]
    }

    #[tokio::test(start_paused = true)]
    async fn turns_follow_the_growing_weight() {
        let [half, full] = picks_of_the_younger(LbPolicy::RoundRobin).await;
        assert!(half.abs_diff(100) <= 1 && full.abs_diff(150) <= 1, "{half} {full}");
    }

    #[tokio::test(start_paused = true)]
    async fn least_request_follows_the_growing_weight() {
        let policy = LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0, full_scan: false };
        let [half, full] = picks_of_the_younger(policy).await;
        assert!(half.abs_diff(100) <= 1 && full.abs_diff(150) <= 1, "{half} {full}");
    }
}
