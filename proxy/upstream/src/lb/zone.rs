//! Zone-aware routing: requests stay in the zone of this proxy as far as that leaves the hosts evenly loaded.
//!
//! What is compared are two clusters: the upstream's healthy hosts by locality, and those of the local cluster
//! (`cluster_manager.local_cluster_name`), which are the proxies that send the load. Where the own zone has at least as
//! large a share of the upstream as of the proxies, everything stays there; else what fits stays and the rest goes to the
//! zones that have room, in proportion to it. Only the first priority is routed so. The plan is made on the control
//! thread; a pick draws two random numbers at most.

use crate::host::{Health, Host};
use crate::host_set::{HostSet, LocalityHosts, PrioritySet};
use crate::stats::ClusterStats;
use nuncio_base::random;
use nuncio_config::cluster::{Locality, ZoneAwareConfig};
use std::sync::Arc;

/// Shares are counted in parts of this.
const WHOLE: u64 = 10_000;

/// Where this proxy is, and its cluster as it is now.
#[derive(Debug, Clone)]
pub struct LocalCluster {
    /// Locality of this proxy.
    pub locality: Arc<Locality>,
    /// Hosts of the local cluster.
    pub hosts: Arc<PrioritySet>,
}

/// How the picks of the first priority are spread over its localities.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Plan {
    /// All to the own locality, which is the first.
    Direct,
    /// A share of [`WHOLE`] to the own locality; the rest by the room that the localities have, summed up in their order.
    Residual { local: u64, room: Box<[u64]> },
}

/// Zone-aware routing of one cluster.
#[derive(Debug)]
pub(super) struct ZoneRouting {
    plan: Plan,
    /// Percentage of picks for which it is done.
    enabled: u32,
    /// The local cluster has too few healthy hosts to be trusted.
    local_panic: bool,
}

/// What a pick is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// All localities alike.
    Anywhere,
    /// The hosts of the locality with this index.
    Locality(usize),
    /// No host at all.
    Nothing,
}

impl ZoneRouting {
    /// The plan for `set`, the first priority of the cluster; None where its localities are not told apart.
    /// `panic_threshold` in percent.
    pub(super) fn new(
        config: &ZoneAwareConfig,
        set: &HostSet,
        local: &LocalCluster,
        panic_threshold: f64,
        stats: &ClusterStats,
    ) -> Option<Self> {
        stats.lb_recalculate_zone_structures().inc();
        let own = local.hosts.host_sets.first()?;
        if set.localities.len() < 2 {
            return None;
        }
        let proxies = by_locality(own);
        if proxies.len() < 2 {
            return None;
        }
        if !proxies.iter().any(|(locality, _)| **locality == *local.locality) {
            stats.lb_local_cluster_not_ok().inc();
            return None;
        }
        if (set.healthy().len() as u64) < config.min_cluster_size {
            stats.lb_zone_cluster_too_small().inc();
            return None;
        }
        let weigh = |host: &Host| if config.by_weight { u64::from(host.weight()) } else { 1 };
        let upstream: Vec<_> = set.localities.iter().map(|entry| sum(&entry.healthy, &weigh)).collect();
        let senders: Vec<_> = proxies.iter().map(|(locality, hosts)| (*locality, sum_of(hosts, &weigh))).collect();
        let has_local = set.localities[0].locality == local.locality;
        let forced = config.force_local_zone.is_some_and(|least| set.localities[0].healthy.len() >= least as usize);
        let shares = shares(&set.localities, &upstream, &senders);
        let total = own.hosts.len().saturating_sub(own.excluded);
        let able = own.healthy().len() + own.degraded.len();
        Some(ZoneRouting {
            plan: Plan::of(&shares, has_local, forced),
            enabled: config.routing_enabled,
            local_panic: total == 0 || 100.0 * (able as f64) / (total as f64) < panic_threshold.min(100.0),
        })
    }

    /// The locality for a pick.
    #[inline]
    pub(super) fn choose(&self, fail_on_panic: bool, stats: &ClusterStats) -> Choice {
        if self.enabled < 100 && random::below(100) >= u64::from(self.enabled) {
            return Choice::Anywhere;
        }
        if self.local_panic {
            stats.lb_local_cluster_not_ok().inc();
            return if fail_on_panic { Choice::Nothing } else { Choice::Anywhere };
        }
        let (local, room) = match &self.plan {
            Plan::Direct => {
                stats.lb_zone_routing_all_directly().inc();
                return Choice::Locality(0);
            }
            Plan::Residual { local, room } => (*local, room),
        };
        if random::below(WHOLE) < local {
            stats.lb_zone_routing_sampled().inc();
            return Choice::Locality(0);
        }
        stats.lb_zone_routing_cross_zone().inc();
        let all = room.last().copied().unwrap_or(0);
        if all == 0 {
            // Rounding alone leaves no room anywhere.
            stats.lb_zone_no_capacity_left().inc();
            return Choice::Locality(random::below(room.len() as u64) as usize);
        }
        let point = random::below(all);
        Choice::Locality(room.partition_point(|sum| *sum <= point))
    }
}

impl Plan {
    /// `shares` are those of the proxies and of the upstream, by the upstream's localities; the own one is the first if
    /// there is one.
    fn of(shares: &[(u64, u64)], has_local: bool, forced: bool) -> Plan {
        let (senders, hosts) = if has_local { shares[0] } else { (0, 0) };
        if has_local && hosts > 0 && (forced || hosts >= senders) {
            return Plan::Direct;
        }
        let mut sum = 0;
        let room = shares.iter().enumerate().map(|(index, (senders, hosts))| {
            if index > 0 || !has_local {
                sum += hosts.saturating_sub(*senders);
            }
            sum
        });
        Plan::Residual { room: room.collect(), local: (hosts * WHOLE).checked_div(senders).unwrap_or(0) }
    }
}

/// Healthy hosts of the local cluster by their localities; a locality whose hosts all fail counts with none.
fn by_locality(set: &HostSet) -> Vec<(&Locality, Vec<&Host>)> {
    let mut found: Vec<(&Locality, Vec<&Host>)> = Vec::new();
    for host in &set.hosts {
        let at = found.iter().position(|(locality, _)| **locality == *host.locality).unwrap_or_else(|| {
            found.push((&host.locality, Vec::new()));
            found.len() - 1
        });
        if host.health() == Health::Healthy {
            found[at].1.push(host);
        }
    }
    found
}

fn sum(hosts: &[Arc<Host>], weigh: &dyn Fn(&Host) -> u64) -> u64 {
    hosts.iter().map(|host| weigh(host)).sum()
}

fn sum_of(hosts: &[&Host], weigh: &dyn Fn(&Host) -> u64) -> u64 {
    hosts.iter().map(|host| weigh(host)).sum()
}

/// For each locality of the upstream its share of the proxies and of the upstream, in parts of [`WHOLE`].
fn shares(localities: &[LocalityHosts], upstream: &[u64], senders: &[(&Locality, u64)]) -> Vec<(u64, u64)> {
    let all_senders: u64 = senders.iter().map(|(_, count)| count).sum();
    let all_hosts: u64 = upstream.iter().sum();
    let share = |count: u64, all: u64| (WHOLE * count).checked_div(all).unwrap_or(0);
    let of = |(entry, hosts): (&LocalityHosts, &u64)| {
        if *hosts == 0 {
            return (0, 0);
        }
        let sending = senders.iter().find(|(locality, _)| **locality == *entry.locality).map_or(0, |(_, count)| *count);
        (share(sending, all_senders), share(*hosts, all_hosts))
    };
    localities.iter().zip(upstream).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_set::{Grouping, HostGroup, HostGroups};
    use crate::testing::{host, stats};
    use nuncio_config::cluster::HealthStatus;

    fn zone(name: &str) -> Arc<Locality> {
        Arc::new(Locality { zone: name.into(), ..Locality::default() })
    }

    /// Zones with (healthy, failing) hosts of weight 1.
    fn set(zones: &[(&str, usize, usize)]) -> PrioritySet {
        let mut port = 0;
        let groups = zones.iter().map(|(name, healthy, failing)| {
            let locality = zone(name);
            let hosts = (0..healthy + failing).map(|index| {
                port += 1;
                let host = host(port, 1, &locality);
                if index >= *healthy {
                    host.set_eds_health(HealthStatus::Unhealthy);
                }
                host
            });
            HostGroup { priority: 0, hosts: hosts.collect(), locality: locality.clone(), weight: None }
        });
        let grouping = Grouping::Zones(zone("a"));
        HostGroups { groups: groups.collect(), overprovisioning_factor: 140, weighted_health: false, grouping }
            .priority_set()
    }

    fn routing(
        upstream: &[(&str, usize, usize)],
        proxies: &[(&str, usize, usize)],
        change: impl FnOnce(&mut ZoneAwareConfig),
    ) -> (Option<ZoneRouting>, ClusterStats) {
        let mut config = ZoneAwareConfig { min_cluster_size: 1, ..ZoneAwareConfig::default() };
        change(&mut config);
        let stats = stats();
        let local = LocalCluster { locality: zone("a"), hosts: Arc::new(set(proxies)) };
        let routing = ZoneRouting::new(&config, &set(upstream).host_sets[0], &local, 50.0, &stats);
        (routing, stats)
    }

    fn plan(upstream: &[(&str, usize, usize)], proxies: &[(&str, usize, usize)]) -> Option<Plan> {
        routing(upstream, proxies, |_| {}).0.map(|routing| routing.plan)
    }

    #[test]
    fn a_zone_with_hosts_enough_keeps_its_requests() {
        assert_eq!(plan(&[("a", 2, 0), ("b", 2, 0)], &[("a", 1, 0), ("b", 1, 0)]), Some(Plan::Direct));
        assert_eq!(plan(&[("a", 3, 0), ("b", 1, 0)], &[("a", 1, 0), ("b", 1, 0)]), Some(Plan::Direct));
    }

    #[test]
    fn what_does_not_fit_goes_where_there_is_room() {
        // The example of Envoy's documentation: proxies 40, 40 and 20 percent, hosts 25, 50 and 25 percent.
        let plan = plan(&[("a", 1, 0), ("b", 2, 0), ("c", 1, 0)], &[("a", 2, 0), ("b", 2, 0), ("c", 1, 0)]);
        assert_eq!(plan, Some(Plan::Residual { local: 6250, room: [0, 1000, 1500].into() }));
    }

    #[test]
    fn a_zone_without_hosts_sends_everything_away() {
        let expected = Plan::Residual { local: 0, room: [0, 5000].into() };
        assert_eq!(plan(&[("b", 1, 0), ("c", 1, 0)], &[("a", 1, 0), ("b", 1, 0)]), Some(expected));
        // The zone is there, but its hosts fail.
        let expected = Plan::Residual { local: 0, room: [0, 5000].into() };
        assert_eq!(plan(&[("a", 0, 1), ("b", 1, 0)], &[("a", 1, 0), ("b", 1, 0)]), Some(expected));
    }

    #[test]
    fn nothing_is_planned_without_two_zones_on_both_sides_or_enough_hosts() {
        let two = [("a", 1, 0), ("b", 1, 0)];
        assert_eq!(plan(&[("a", 2, 0)], &two), None);
        assert_eq!(plan(&two, &[("a", 2, 0)]), None);
        let (none, stats) = routing(&two, &[("b", 1, 0), ("c", 1, 0)], |_| {});
        assert_eq!((none.is_none(), stats.lb_local_cluster_not_ok().value()), (true, 1));
        let (none, stats) = routing(&two, &two, |config| config.min_cluster_size = 3);
        assert_eq!((none.is_none(), stats.lb_zone_cluster_too_small().value()), (true, 1));
        assert_eq!(stats.lb_recalculate_zone_structures().value(), 1);
    }

    #[test]
    fn a_forced_zone_keeps_its_requests_while_it_has_hosts_enough() {
        let (upstream, proxies) = ([("a", 1, 0), ("b", 3, 0)], [("a", 1, 0), ("b", 1, 0)]);
        let plan = |least| {
            let (routing, _) = routing(&upstream, &proxies, |config| config.force_local_zone = Some(least));
            routing.expect("a plan").plan
        };
        assert_eq!(plan(1), Plan::Direct);
        assert_eq!(plan(2), Plan::Residual { local: 5000, room: [0, 2500].into() });
    }

    #[test]
    fn picks_follow_the_plan_and_are_counted() {
        let (routing, stats) =
            routing(&[("a", 1, 0), ("b", 2, 0), ("c", 1, 0)], &[("a", 2, 0), ("b", 2, 0), ("c", 1, 0)], |_| {});
        let routing = routing.expect("a plan");
        let mut counts = [0_u64; 3];
        for _ in 0..20_000 {
            match routing.choose(false, &stats) {
                Choice::Locality(index) => counts[index] += 1,
                other => panic!("{other:?}"),
            }
        }
        // 62.5 percent stay, 25 go to b and 12.5 to c.
        let near = |count: u64, percent: u64| count.abs_diff(percent * 20) < 400;
        assert!(near(counts[0], 625) && near(counts[1], 250) && near(counts[2], 125), "{counts:?}");
        let (stayed, left) = (stats.lb_zone_routing_sampled().value(), stats.lb_zone_routing_cross_zone().value());
        assert_eq!((stayed, left), (counts[0], counts[1] + counts[2]));
    }

    #[test]
    fn a_local_cluster_in_panic_is_not_trusted() {
        let upstream = [("a", 1, 0), ("b", 1, 0)];
        let (routing, stats) = routing(&upstream, &[("a", 1, 2), ("b", 0, 2)], |_| {});
        let routing = routing.expect("a plan");
        assert_eq!((routing.choose(false, &stats), routing.choose(true, &stats)), (Choice::Anywhere, Choice::Nothing));
        assert_eq!(stats.lb_local_cluster_not_ok().value(), 2);
    }

    #[test]
    fn a_part_of_the_requests_may_be_left_out() {
        let two = [("a", 1, 0), ("b", 1, 0)];
        let (routing, stats) = routing(&two, &two, |config| config.routing_enabled = 30);
        let routing = routing.expect("a plan");
        let stay = (0..10_000).filter(|_| routing.choose(false, &stats) == Choice::Locality(0)).count();
        assert!((2_700..3_300).contains(&stay), "{stay}");
    }
}
