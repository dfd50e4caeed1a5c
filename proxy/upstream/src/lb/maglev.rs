//! Maglev table, host for host as Envoy's `MAGLEV` (listing 1 of the paper, with weights).

use super::HashTable;
use super::ring_hash::hash_key;
use crate::host::Host;
use crate::stats::{ClusterStats, MaglevStats};
use std::sync::Arc;
use xxhash_rust::xxh64::xxh64;

/// The table: an index of a host per slot.
#[derive(Debug)]
pub struct MaglevTable {
    slots: Box<[u32]>,
    hosts: Box<[Arc<Host>]>,
}

struct Build {
    offset: u64,
    skip: u64,
    weight: f64,
    target: f64,
    next: u64,
    count: u64,
}

const EMPTY: u32 = u32::MAX;

impl MaglevTable {
    /// The table of `size` slots (a prime) over hosts whose weights sum to one. `by_name` hashes their names instead of
    /// their addresses.
    pub fn new(hosts: &[(Arc<Host>, f64)], size: u64, by_name: bool, stats: &ClusterStats) -> Self {
        if hosts.is_empty() || size < 2 {
            return MaglevTable { slots: Box::default(), hosts: Box::default() };
        }
        let most = hosts.iter().map(|(_, weight)| *weight).fold(0.0, f64::max);
        // Hosts take their turns in the order of their keys: the table is the same however the cluster lists them.
        let mut keyed: Vec<_> = hosts.iter().map(|(host, weight)| (hash_key(host, by_name), host, *weight)).collect();
        keyed.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
        let mut builds: Vec<Build> = keyed
            .iter()
            .map(|(key, _, weight)| {
                let key = key.as_bytes();
                let (offset, skip) = (xxh64(key, 0) % size, xxh64(key, 1) % (size - 1) + 1);
                Build { offset, skip, weight: *weight, target: 0.0, next: 0, count: 0 }
            })
            .collect();
        let mut slots = vec![EMPTY; size as usize];
        let mut filled = 0;
        let mut iteration = 1u32;
        while filled < size {
            for (index, build) in builds.iter_mut().enumerate() {
                if filled == size {
                    break;
                }
                // The host of most weight is served in every round, one of a third of it in every third.
                if f64::from(iteration) * build.weight < build.target {
                    continue;
                }
                build.target += most;
                let slot = loop {
                    let slot = ((build.offset + build.skip * build.next) % size) as usize;
                    build.next += 1;
                    if slots[slot] == EMPTY {
                        break slot;
                    }
                };
                slots[slot] = index as u32;
                build.count += 1;
                filled += 1;
            }
            iteration += 1;
        }
        let gauges = MaglevStats::new(stats.registry(), &format!("{}maglev_lb.", stats.prefix()));
        gauges.min_entries_per_host().set(builds.iter().map(|build| build.count).min().unwrap_or(0));
        gauges.max_entries_per_host().set(builds.iter().map(|build| build.count).max().unwrap_or(0));
        stats.keep(gauges);
        MaglevTable { slots: slots.into(), hosts: keyed.iter().map(|(_, host, _)| (*host).clone()).collect() }
    }
}

impl HashTable for MaglevTable {
    fn pick(&self, hash: u64, attempt: u32) -> Option<&Arc<Host>> {
        // Each further attempt flips most bits, so that it lands far away.
        let hash = if attempt > 0 { hash ^ (u64::MAX - u64::from(attempt) + 1) } else { hash };
        let slot = self.slots.get((hash % (self.slots.len() as u64).max(1)) as usize)?;
        self.hosts.get(*slot as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{stats, weighted_set};

    #[test]
    fn slots_are_shared_by_weight() {
        let set = weighted_set(&[1, 3]);
        let hosts: Vec<_> = set.host_sets[0].hosts.iter().cloned().zip([0.25, 0.75]).collect();
        let table = MaglevTable::new(&hosts, 401, false, &stats());
        let count = |host| table.slots.iter().filter(|slot| **slot == host).count();
        assert!(count(0).abs_diff(100) <= 1, "{}", count(0));
        assert_eq!(count(0) + count(1), 401);
    }

    #[test]
    fn a_lost_host_moves_few_keys() {
        let set = weighted_set(&[1; 5]);
        let all: Vec<_> = set.host_sets[0].hosts.iter().map(|host| (host.clone(), 0.2)).collect();
        let four: Vec<_> = all[..4].iter().map(|(host, _)| (host.clone(), 0.25)).collect();
        let table = |hosts: &[_]| MaglevTable::new(hosts, 65537, false, &stats());
        let (before, after) = (table(&all), table(&four));
        let moved = (0..65537)
            .filter(|key| {
                let (old, new) = (before.pick(*key, 0), after.pick(*key, 0));
                old.map(|host| host.id) != new.map(|host| host.id) && before.slots[*key as usize] != 4
            })
            .count();
        assert!(moved < 65537 / 20, "{moved}");
    }

    #[test]
    fn the_order_in_which_hosts_are_listed_does_not_matter() {
        let set = weighted_set(&[1, 2, 3, 2, 1]);
        let listed: Vec<_> =
            set.host_sets[0].hosts.iter().cloned().zip([1.0, 2.0, 3.0, 2.0, 1.0].map(|w| w / 9.0)).collect();
        let mut turned = listed.clone();
        turned.reverse();
        for size in [7, 53, 65537] {
            let (one, other) =
                (MaglevTable::new(&listed, size, false, &stats()), MaglevTable::new(&turned, size, false, &stats()));
            let picks = |table: &MaglevTable| (0..size).map(|hash| table.pick(hash, 0).unwrap().id).collect::<Vec<_>>();
            assert!(picks(&one) == picks(&other), "{size}");
        }
    }
}
