//! How load spreads over priorities: Envoy's health, overprovisioning and panic arithmetic. Pure functions.

use crate::host::Host;
use crate::host_set::{HostSet, PrioritySet};
use smallvec::SmallVec;
use std::sync::Arc;

/// What the arithmetic wants to know of one priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    hosts: usize,
    healthy: usize,
    degraded: usize,
    /// Left out of the number of hosts.
    excluded: usize,
    /// What availability is the share of: hosts, or their weights.
    available: Available,
    /// In percent.
    overprovisioning_factor: u32,
}

/// Healthy, degraded and all hosts of a priority, those left out not counted; or the sums of their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Available {
    healthy: u64,
    degraded: u64,
    all: u64,
}

impl Available {
    fn of(set: &HostSet) -> Self {
        if !set.weighted_health {
            return Available {
                healthy: set.healthy().len() as u64,
                degraded: set.degraded.len() as u64,
                all: set.hosts.len().saturating_sub(set.excluded) as u64,
            };
        }
        let weigh = |hosts: &[Arc<Host>]| hosts.iter().map(|host| u64::from(host.weight())).sum();
        let counted = set.hosts.iter().filter(|host| !host.excluded());
        Available {
            healthy: weigh(set.healthy()),
            degraded: weigh(&set.degraded),
            all: counted.map(|host| u64::from(host.weight())).sum(),
        }
    }
}

impl Level {
    /// Counts the hosts of a priority.
    pub fn of(set: &HostSet) -> Self {
        Level {
            available: Available::of(set),
            hosts: set.hosts.len(),
            healthy: set.healthy().len(),
            degraded: set.degraded.len(),
            excluded: set.excluded,
            overprovisioning_factor: set.overprovisioning_factor,
        }
    }

    /// Percentage that is available, with the overprovisioning factor, at most 100.
    fn availability(&self, able: u64) -> u32 {
        match self.available.all {
            0 => 0,
            all => (u64::from(self.overprovisioning_factor) * able / all).min(100) as u32,
        }
    }

    fn in_panic(&self, threshold: f64) -> bool {
        let total = self.hosts.saturating_sub(self.excluded);
        let percent = |count: usize| if total == 0 { 0.0 } else { 100.0 * count as f64 / total as f64 };
        percent(self.healthy) + percent(self.degraded) < threshold
    }
}

/// Healthy or degraded hosts of a priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// Healthy hosts.
    Healthy,
    /// Degraded hosts.
    Degraded,
}

/// Percentages of load per priority; the healthy and degraded parts together make 100.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriorityLoad {
    /// To the healthy hosts of each priority.
    pub healthy: Box<[u32]>,
    /// To the degraded hosts of each priority.
    pub degraded: Box<[u32]>,
    /// Priorities in panic: all of their hosts are used.
    pub panic: Box<[bool]>,
}

impl PriorityLoad {
    /// Computes the load for `set`. `panic_threshold` in percent.
    pub fn new(set: &PrioritySet, panic_threshold: f64) -> Self {
        let levels: SmallVec<[Level; 4]> = set.host_sets.iter().map(Level::of).collect();
        Self::of_levels(&levels, panic_threshold)
    }

    /// All load to the hosts of one of `count` priorities.
    pub fn only(level: usize, availability: Availability, count: usize) -> Self {
        let mut load = Self::none(count);
        match availability {
            Availability::Healthy => load.healthy[level] = 100,
            Availability::Degraded => load.degraded[level] = 100,
        }
        load
    }

    fn none(count: usize) -> Self {
        PriorityLoad {
            healthy: vec![0; count].into(),
            degraded: vec![0; count].into(),
            panic: vec![false; count].into(),
        }
    }

    /// Computes the load for these priorities, at least one. `panic_threshold` in percent.
    pub fn of_levels(levels: &[Level], panic_threshold: f64) -> Self {
        let (mut load, total) = Self::by_health(levels, |_| false);
        let threshold = panic_threshold.min(100.0);
        if threshold == 0.0 && total == 0 {
            load.healthy[0] = 100;
            return load;
        }
        for (panic, level) in load.panic.iter_mut().zip(levels) {
            *panic = total != 100 && level.in_panic(threshold);
        }
        if load.panic.iter().all(|panic| *panic) {
            load.spread_by_size(levels);
        }
        load
    }

    /// The load with some priorities left out; None where the others have no host to offer. No priority is in panic.
    pub fn excluding(levels: &[Level], excluded: &[bool]) -> Option<Self> {
        let (load, total) = Self::by_health(levels, |level| excluded.get(level) == Some(&true));
        (total > 0).then_some(load)
    }

    /// The load that health alone gives, without panic, and how much of 100 there are hosts for.
    fn by_health(levels: &[Level], excluded: impl Fn(usize) -> bool) -> (Self, u32) {
        let mut load = Self::none(levels.len());
        let share = |able: &dyn Fn(&Level) -> u64| -> Vec<u32> {
            let levels = levels.iter().enumerate();
            levels.map(|(at, level)| if excluded(at) { 0 } else { level.availability(able(level)) }).collect()
        };
        let health = share(&|level| level.available.healthy);
        let degraded = share(&|level| level.available.degraded);
        let total = (health.iter().sum::<u32>() + degraded.iter().sum::<u32>()).min(100);
        if total > 0 {
            let (first_healthy, rest) = distribute(&mut load.healthy, &health, 100, total);
            let (first_degraded, rest) = distribute(&mut load.degraded, &degraded, rest, total);
            // What is left are rounding errors.
            match (first_healthy, first_degraded) {
                (Some(first), _) => load.healthy[first] += rest,
                (None, Some(first)) => load.degraded[first] += rest,
                (None, None) => {}
            }
        }
        (load, total)
    }

    /// With every priority in panic, load follows the number of hosts.
    fn spread_by_size(&mut self, levels: &[Level]) {
        self.healthy.fill(0);
        self.degraded.fill(0);
        let total: usize = levels.iter().map(|level| level.hosts).sum();
        if total == 0 {
            self.healthy[0] = 100;
            return;
        }
        let mut rest = 100;
        for (load, level) in self.healthy.iter_mut().zip(levels) {
            *load = (100 * level.hosts / total) as u32;
            rest -= *load;
        }
        if let Some(first) = levels.iter().position(|level| level.hosts > 0) {
            self.healthy[first] += rest;
        }
    }

    /// The priority for a random number or hash.
    #[inline]
    pub fn choose(&self, hash: u64) -> (usize, Availability) {
        if self.healthy.len() == 1 && self.healthy[0] == 100 {
            return (0, Availability::Healthy);
        }
        let point = (hash % 100) as u32 + 1;
        let mut sum = 0;
        for (priority, load) in self.healthy.iter().enumerate() {
            sum += load;
            if point <= sum {
                return (priority, Availability::Healthy);
            }
        }
        for (priority, load) in self.degraded.iter().enumerate() {
            sum += load;
            if point <= sum {
                return (priority, Availability::Degraded);
            }
        }
        (0, Availability::Healthy)
    }
}

/// Gives each priority its share of `rest`; returns the first that is available and what is left.
fn distribute(load: &mut [u32], availability: &[u32], mut rest: u32, total: u32) -> (Option<usize>, u32) {
    for (load, available) in load.iter_mut().zip(availability) {
        *load = (available * 100 / total).min(rest);
        rest -= *load;
    }
    (availability.iter().position(|available| *available > 0), rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::priority_set;

    /// Priorities as (healthy, degraded, unhealthy) hosts.
    fn load(levels: &[(usize, usize, usize)], threshold: f64) -> (Vec<u32>, Vec<u32>, Vec<bool>) {
        let load = PriorityLoad::new(&priority_set(levels), threshold);
        (load.healthy.to_vec(), load.degraded.to_vec(), load.panic.to_vec())
    }

    #[test]
    fn overprovisioning_keeps_the_load_until_it_runs_out() {
        // The table of Envoy's documentation, P0 at 100, 72, 71, 50, 25 and 0 percent of health.
        let level = |healthy: usize| load(&[(healthy, 0, 100 - healthy), (100, 0, 0)], 50.0).0;
        assert_eq!(level(100), [100, 0]);
        assert_eq!(level(72), [100, 0]);
        assert_eq!(level(71), [99, 1]);
        assert_eq!(level(50), [70, 30]);
        assert_eq!(level(25), [35, 65]);
        assert_eq!(level(0), [0, 100]);
    }

    #[test]
    fn load_is_scaled_when_all_priorities_together_are_short() {
        // Health 28 and 28 of 100: both take half.
        let (healthy, _, panic) = load(&[(20, 0, 80), (20, 0, 80)], 10.0);
        assert_eq!((healthy, panic), (vec![50, 50], vec![false, false]));
    }

    #[test]
    fn degraded_hosts_take_what_the_healthy_cannot() {
        let (healthy, degraded, _) = load(&[(50, 50, 0)], 50.0);
        assert_eq!((healthy, degraded), (vec![70], vec![30]));
    }

    #[test]
    fn health_may_be_counted_in_weights() {
        let mut set = priority_set(&[(1, 0, 1), (1, 0, 0)]);
        // Half of the hosts, but nine parts of ten of their weight; and the other way round.
        let load = |set: &PrioritySet| PriorityLoad::new(set, 0.0).healthy.to_vec();
        let weigh = |set: &PrioritySet, healthy, failing| {
            set.host_sets[0].hosts[0].set_weight(healthy);
            set.host_sets[0].hosts[1].set_weight(failing);
        };
        weigh(&set, 9, 1);
        assert_eq!(load(&set), [70, 30]);
        set.host_sets[0].weighted_health = true;
        assert_eq!(load(&set), [100, 0]);
        weigh(&set, 1, 9);
        assert_eq!(load(&set), [14, 86]);
        // Panic is a matter of hosts all the same.
        assert_eq!(PriorityLoad::new(&set, 50.0).panic.to_vec(), [false, false]);
        // Who is left out weighs nothing.
        set.host_sets[0].hosts[1].set_flags(crate::host::health_flag::PENDING_ACTIVE_HC);
        set = set.refreshed();
        assert_eq!(load(&set), [100, 0]);
    }

    #[test]
    fn panic_spreads_load_by_the_number_of_hosts() {
        let (healthy, _, panic) = load(&[(0, 0, 3), (0, 0, 1)], 50.0);
        assert_eq!((healthy, panic), (vec![75, 25], vec![true, true]));
        assert_eq!(load(&[(0, 0, 0)], 50.0), (vec![100], vec![0], vec![true]));
        assert_eq!(load(&[(0, 0, 2)], 0.0), (vec![100], vec![0], vec![false]));
    }

    #[test]
    fn priorities_that_are_left_out_get_no_load() {
        let set = priority_set(&[(2, 0, 0), (1, 0, 1), (0, 0, 1)]);
        let levels: Vec<_> = set.host_sets.iter().map(Level::of).collect();
        let without =
            |excluded: [bool; 3]| PriorityLoad::excluding(&levels, &excluded).map(|load| load.healthy.to_vec());
        assert_eq!(without([true, false, false]), Some(vec![0, 100, 0]));
        assert_eq!(without([false, true, false]), Some(vec![100, 0, 0]));
        assert_eq!(without([true, true, false]), None);
    }

    #[test]
    fn the_choice_follows_the_percentages() {
        let load = PriorityLoad { healthy: [70, 10].into(), degraded: [15, 5].into(), panic: [false; 2].into() };
        let chosen = |hash| load.choose(hash);
        assert_eq!((chosen(69), chosen(70)), ((0, Availability::Healthy), (1, Availability::Healthy)));
        assert_eq!((chosen(80), chosen(199)), ((0, Availability::Degraded), (1, Availability::Degraded)));
    }
}
