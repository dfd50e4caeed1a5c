//! The hosts of a cluster by priority and locality, as one immutable value.
//!
//! Built on the control thread whenever hosts, weights or health change, and published whole; workers read it.

use crate::host::{Health, Host};
use nuncio_config::cluster::Locality;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What localities are kept apart for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub enum Grouping {
    /// They are not.
    #[default]
    None,
    /// Load goes by their weights.
    Weighted,
    /// Load stays near this locality, which comes first.
    Zones(Arc<Locality>),
}

/// The hosts of one locality within one priority.
#[derive(Debug)]
pub struct LocalityHosts {
    /// The locality.
    pub locality: Arc<Locality>,
    /// Its weight; 0 takes no traffic in locality-weighted balancing.
    pub weight: u32,
    /// All hosts.
    pub hosts: Vec<Arc<Host>>,
    /// Healthy ones.
    pub healthy: Vec<Arc<Host>>,
    /// Degraded ones.
    pub degraded: Vec<Arc<Host>>,
    /// Number of hosts excluded from health arithmetic.
    pub excluded: usize,
}

/// The hosts of one priority.
#[derive(Debug, Default)]
pub struct HostSet {
    /// All hosts.
    pub hosts: Vec<Arc<Host>>,
    /// Healthy ones; empty when `all_healthy`, as they are the same.
    healthy: Vec<Arc<Host>>,
    all_healthy: bool,
    /// Degraded ones.
    pub degraded: Vec<Arc<Host>>,
    /// Number of hosts excluded from health arithmetic.
    pub excluded: usize,
    /// By locality, in the order of region, zone, sub-zone; empty where they are not kept apart.
    pub localities: Vec<LocalityHosts>,
    /// Why they are kept apart.
    pub grouping: Grouping,
    /// In percent; default 140.
    pub overprovisioning_factor: u32,
    /// Its health is counted in weights instead of hosts.
    pub weighted_health: bool,
}

impl HostSet {
    /// Healthy hosts.
    #[inline]
    pub fn healthy(&self) -> &[Arc<Host>] {
        if self.all_healthy { &self.hosts } else { &self.healthy }
    }

    /// Sorts `hosts` by their health as it is now. `weights` are those of localities; without any, localities are not
    /// weighted.
    pub fn new(
        hosts: Vec<Arc<Host>>,
        grouping: &Grouping,
        weights: &[(Arc<Locality>, u32)],
        overprovisioning_factor: u32,
        weighted_health: bool,
    ) -> Self {
        let grouping =
            if weights.is_empty() && *grouping == Grouping::Weighted { Grouping::None } else { grouping.clone() };
        let mut set = HostSet { overprovisioning_factor, weighted_health, grouping, ..HostSet::default() };
        set.all_healthy = hosts.iter().all(|host| host.health() == Health::Healthy && !host.excluded());
        if !set.all_healthy {
            (set.healthy, set.degraded, set.excluded) = partition(&hosts);
        }
        if set.grouping != Grouping::None {
            let mut localities: Vec<LocalityHosts> = Vec::new();
            for host in &hosts {
                match localities.iter_mut().find(|entry| entry.locality == host.locality) {
                    Some(entry) => entry.hosts.push(host.clone()),
                    None => localities.push(LocalityHosts {
                        locality: host.locality.clone(),
                        weight: weights
                            .iter()
                            .find(|(name, _)| *name == host.locality)
                            .map_or(0, |(_, weight)| *weight),
                        hosts: vec![host.clone()],
                        healthy: Vec::new(),
                        degraded: Vec::new(),
                        excluded: 0,
                    }),
                }
            }
            let own = match &set.grouping {
                Grouping::Zones(own) => Some(own),
                _ => None,
            };
            localities.sort_by(|a, b| {
                fn key<'a>(l: &'a LocalityHosts, own: Option<&Arc<Locality>>) -> (bool, [&'a str; 3]) {
                    let at = &l.locality;
                    (own.is_none_or(|own| *own != l.locality), [&at.region, &at.zone, &at.sub_zone])
                }
                key(a, own).cmp(&key(b, own))
            });
            for entry in &mut localities {
                (entry.healthy, entry.degraded, entry.excluded) = partition(&entry.hosts);
            }
            set.localities = localities;
        }
        set.hosts = hosts;
        set
    }
}

fn partition(hosts: &[Arc<Host>]) -> (Vec<Arc<Host>>, Vec<Arc<Host>>, usize) {
    let (mut healthy, mut degraded, mut excluded) = (Vec::new(), Vec::new(), 0);
    for host in hosts {
        match host.health() {
            Health::Healthy => healthy.push(host.clone()),
            Health::Degraded => degraded.push(host.clone()),
            Health::Unhealthy => {}
        }
        excluded += usize::from(host.excluded());
    }
    (healthy, degraded, excluded)
}

/// All hosts of a cluster; index 0 is the highest priority. Never empty.
#[derive(Debug)]
pub struct PrioritySet {
    /// By priority.
    pub host_sets: Vec<HostSet>,
}

impl Default for PrioritySet {
    fn default() -> Self {
        PrioritySet { host_sets: vec![HostSet { overprovisioning_factor: 140, ..HostSet::default() }] }
    }
}

impl PrioritySet {
    /// All hosts, highest priority first.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.host_sets.iter().flat_map(|set| &set.hosts)
    }

    /// The same hosts, sorted anew by their health as it is now.
    pub(crate) fn refreshed(&self) -> PrioritySet {
        self.filtered(&|_| true, &[])
    }

    /// As [`PrioritySet::refreshed`], without the hosts that `keep` refuses and with `more`, by their priorities.
    pub(crate) fn filtered(&self, keep: &dyn Fn(&Host) -> bool, more: &[Arc<Host>]) -> PrioritySet {
        let none = HostSet {
            overprovisioning_factor: self.host_sets[0].overprovisioning_factor,
            weighted_health: self.host_sets[0].weighted_health,
            grouping: self.host_sets[0].grouping.clone(),
            ..HostSet::default()
        };
        // A host that is kept may be the last one of its priority.
        let levels = more.iter().map(|host| host.priority.load(Relaxed) as usize + 1).max().unwrap_or(0);
        let refresh = |level: usize| {
            let set = self.host_sets.get(level).unwrap_or(&none);
            let more = more.iter().filter(|host| host.priority.load(Relaxed) as usize == level);
            let hosts = set.hosts.iter().filter(|host| keep(host)).chain(more).cloned().collect();
            let weights: Vec<_> = set.localities.iter().map(|entry| (entry.locality.clone(), entry.weight)).collect();
            HostSet::new(hosts, &set.grouping, &weights, set.overprovisioning_factor, set.weighted_health)
        };
        PrioritySet { host_sets: (0..levels.max(self.host_sets.len())).map(refresh).collect() }
    }

    /// Total, healthy, degraded and excluded hosts.
    pub fn membership(&self) -> (usize, usize, usize, usize) {
        self.host_sets.iter().fold((0, 0, 0, 0), |sum, set| {
            (sum.0 + set.hosts.len(), sum.1 + set.healthy().len(), sum.2 + set.degraded.len(), sum.3 + set.excluded)
        })
    }
}

/// Hosts of one locality and priority.
#[derive(Debug, Clone)]
pub struct HostGroup {
    /// 0 is the highest.
    pub priority: u32,
    /// Where they are.
    pub locality: Arc<Locality>,
    /// Weight of the locality.
    pub weight: Option<u32>,
    /// The hosts.
    pub hosts: Vec<Arc<Host>>,
}

/// Groups of hosts, as configured or resolved, from which a [`PrioritySet`] is made.
#[derive(Debug, Default, Clone)]
pub struct HostGroups {
    /// The groups.
    pub groups: Vec<HostGroup>,
    /// In percent.
    pub overprovisioning_factor: u32,
    /// The health of a priority is counted in weights instead of hosts.
    pub weighted_health: bool,
    /// What localities are kept apart for.
    pub grouping: Grouping,
}

impl HostGroups {
    /// The set of all groups, by the health that hosts have now.
    pub fn priority_set(&self) -> PrioritySet {
        let levels = self.groups.iter().map(|group| group.priority as usize + 1).max().unwrap_or(1);
        let host_sets = (0..levels)
            .map(|level| {
                let groups = || self.groups.iter().filter(move |group| group.priority as usize == level);
                let hosts: Vec<_> = groups().flat_map(|group| group.hosts.iter().cloned()).collect();
                for host in &hosts {
                    host.priority.store(level as u32, Relaxed);
                }
                let weights: Vec<_> = match self.grouping {
                    Grouping::Weighted => groups()
                        .filter_map(|group| group.weight.map(|weight| (group.locality.clone(), weight)))
                        .collect(),
                    _ => Vec::new(),
                };
                HostSet::new(hosts, &self.grouping, &weights, self.overprovisioning_factor, self.weighted_health)
            })
            .collect();
        PrioritySet { host_sets }
    }
}
