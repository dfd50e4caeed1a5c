//! When changes of a cluster's hosts reach the workers (`update_merge_window`).
//!
//! Changes of health that health checks and outlier detection find within the window of another change wait for its end,
//! and reach the workers together. Hosts that come or go, and whatever else discovery says, is never waited with. Each
//! priority has a window of its own, as in Envoy, and what is counted is what Envoy counts. Bad news is another matter:
//! [`crate::cluster`] hands on at once what says that hosts fail, whatever the window says.
//!
//! No clock and no timer: times are handed in.

use crate::host_set::{HostSet, PrioritySet};
use crate::stats::ClusterManagerStats;
use rustc_hash::FxHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The windows of one cluster.
#[derive(Debug)]
pub(crate) struct MergeWindow {
    /// Zero: nothing waits.
    length: Duration,
    priorities: Vec<Priority>,
}

#[derive(Debug, Default)]
struct Priority {
    seen: Fingerprint,
    /// When a change reached the workers last.
    last: Option<Instant>,
    /// When those that wait will.
    due: Option<Instant>,
}

/// What tells one state of a priority from another.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    /// Of the hosts.
    members: u64,
    /// Of their health, weights and metadata.
    state: u64,
}

impl Fingerprint {
    fn of(set: &HostSet) -> Self {
        let (mut members, mut state) = (FxHasher::default(), FxHasher::default());
        for host in &set.hosts {
            host.id.hash(&mut members);
            (host.health() as u8, host.excluded(), host.weight()).hash(&mut state);
            host.metadata().map(|metadata| Arc::as_ptr(&metadata) as usize).hash(&mut state);
        }
        set.localities.iter().for_each(|locality| locality.weight.hash(&mut state));
        (set.overprovisioning_factor, set.weighted_health).hash(&mut state);
        Fingerprint { members: members.finish(), state: state.finish() }
    }
}

impl MergeWindow {
    pub(crate) fn new(length: Duration) -> Self {
        MergeWindow { length, priorities: Vec::new() }
    }

    /// Takes `set` as it is, without a change: the hosts that a cluster begins with.
    pub(crate) fn begin(&mut self, set: &PrioritySet) {
        self.priorities.resize_with(set.host_sets.len().max(self.priorities.len()), Priority::default);
        for (at, priority) in self.priorities.iter_mut().enumerate() {
            priority.seen = set.host_sets.get(at).map(Fingerprint::of).unwrap_or_default();
        }
    }

    /// The hosts are `set` now; with `health` because checks or ejections have changed the health of some, which Envoy takes
    /// for a change of every priority. The time at which the workers are to hear of it; None for now.
    pub(crate) fn changed(
        &mut self,
        set: &PrioritySet,
        health: bool,
        now: Instant,
        stats: &ClusterManagerStats,
    ) -> Option<Instant> {
        self.priorities.resize_with(set.host_sets.len().max(self.priorities.len()), Priority::default);
        let (mut at_once, mut wait) = (false, None);
        for (at, priority) in self.priorities.iter_mut().enumerate() {
            let seen = set.host_sets.get(at).map(Fingerprint::of).unwrap_or_default();
            let before = std::mem::replace(&mut priority.seen, seen);
            if seen == before && !health {
                continue;
            }
            match priority.changed(health && seen.members == before.members, self.length, now, stats) {
                None => at_once = true,
                Some(due) => wait = Some(wait.map_or(due, |wait: Instant| wait.min(due))),
            }
        }
        wait.filter(|_| !at_once)
    }

    /// The earliest time at which something that waits is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.priorities.iter().filter_map(|priority| priority.due).min()
    }

    /// What waits until `now` reaches the workers; false where nothing does.
    pub(crate) fn merge(&mut self, now: Instant, stats: &ClusterManagerStats) -> bool {
        let mut merged = false;
        for priority in self.priorities.iter_mut().filter(|priority| priority.due.is_some_and(|due| due <= now)) {
            (priority.due, priority.last) = (None, Some(now));
            stats.cluster_updated_via_merge().inc();
            merged = true;
        }
        merged
    }
}

impl Priority {
    fn changed(
        &mut self,
        mergeable: bool,
        length: Duration,
        now: Instant,
        stats: &ClusterManagerStats,
    ) -> Option<Instant> {
        if length.is_zero() {
            stats.cluster_updated().inc();
            return None;
        }
        let outside = self.last.is_none_or(|last| now.saturating_duration_since(last) > length);
        if mergeable && !outside {
            return Some(*self.due.get_or_insert(now + length));
        }
        if mergeable {
            stats.update_out_of_merge_window().inc();
        }
        if self.due.take().is_some() {
            stats.update_merge_cancelled().inc();
        }
        self.last = Some(now);
        stats.cluster_updated().inc();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{priority_set, weighted_set};
    use nuncio_base::stats::{Registry, StatsConfig};

    struct Fixture {
        window: MergeWindow,
        stats: ClusterManagerStats,
        start: Instant,
        set: PrioritySet,
    }

    impl Fixture {
        fn new(millis: u64, set: PrioritySet) -> Self {
            let stats = ClusterManagerStats::new(&Registry::new(1, StatsConfig::default()), "cluster_manager.");
            let mut window = MergeWindow::new(Duration::from_millis(millis));
            window.begin(&set);
            Fixture { window, stats, start: Instant::now(), set }
        }

        fn at(&self, millis: u64) -> Instant {
            self.start + Duration::from_millis(millis)
        }

        /// The first host weighs something else; when workers hear of it, in milliseconds.
        fn weigh(&mut self, weight: u32, now: u64) -> Option<u64> {
            self.set.host_sets[0].hosts[0].set_weight(weight);
            self.changed(false, now)
        }

        fn changed(&mut self, health: bool, now: u64) -> Option<u64> {
            let due = self.window.changed(&self.set, health, self.at(now), &self.stats)?;
            Some(due.duration_since(self.start).as_millis() as u64)
        }

        fn merge(&mut self, now: u64) -> bool {
            self.window.merge(self.at(now), &self.stats)
        }

        /// updated, via merge, out of the window, cancelled
        fn counts(&self) -> [u64; 4] {
            let stats = &self.stats;
            [
                stats.cluster_updated().value(),
                stats.cluster_updated_via_merge().value(),
                stats.update_out_of_merge_window().value(),
                stats.update_merge_cancelled().value(),
            ]
        }
    }

    #[test]
    fn changes_of_health_within_the_window_wait_for_its_end_together() {
        let mut f = Fixture::new(1000, weighted_set(&[1, 1]));
        assert_eq!(f.changed(true, 0), None);
        assert_eq!((f.changed(true, 400), f.changed(true, 900)), (Some(1400), Some(1400)));
        assert_eq!((f.merge(1399), f.counts()), (false, [1, 0, 1, 0]));
        assert_eq!((f.merge(1400), f.counts()), (true, [1, 1, 1, 0]));
        // The window begins anew.
        assert_eq!((f.changed(true, 2400), f.window.next_due()), (Some(3400), Some(f.at(3400))));
        assert!(f.merge(3400));
        assert_eq!((f.changed(true, 4401), f.counts()), (None, [2, 2, 2, 0]));
    }

    #[test]
    fn what_discovery_says_is_not_waited_with_and_takes_along_what_waits() {
        let mut f = Fixture::new(1000, weighted_set(&[1, 1]));
        f.changed(true, 0);
        assert_eq!(f.changed(true, 100), Some(1100));
        f.set = weighted_set(&[1, 1, 1]);
        assert_eq!((f.changed(false, 200), f.counts()), (None, [2, 0, 1, 1]));
        assert!(!f.merge(1100));
        assert_eq!(f.changed(true, 1150), Some(2150));
        assert_eq!((f.weigh(9, 1160), f.counts()), (None, [3, 0, 1, 2]));
    }

    #[test]
    fn a_change_of_health_is_one_of_every_priority() {
        let mut f = Fixture::new(1000, priority_set(&[(1, 0, 0), (1, 0, 0)]));
        assert_eq!((f.changed(true, 0), f.counts()), (None, [2, 0, 2, 0]));
        assert_eq!((f.changed(true, 10), f.merge(1010), f.counts()), (Some(1010), true, [2, 2, 2, 0]));
        // Another change concerns its own.
        assert_eq!((f.weigh(2, 5000), f.counts()), (None, [3, 2, 2, 0]));
    }

    #[test]
    fn nothing_waits_without_a_window_and_nothing_is_counted_without_a_change() {
        let mut f = Fixture::new(0, weighted_set(&[1, 1]));
        assert_eq!((f.changed(true, 0), f.changed(true, 1), f.counts()), (None, None, [2, 0, 0, 0]));
        assert_eq!((f.changed(false, 2), f.counts()), (None, [2, 0, 0, 0]));
    }
}
