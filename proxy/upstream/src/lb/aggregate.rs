//! Aggregate clusters: the priorities of several clusters in one row.
//!
//! The first member's priorities come first, then the second's, and so on; priorities without hosts and clusters that do
//! not exist are left out. Load spreads over the row as it does over the priorities of any cluster, and the member picks
//! the host by its own policy. Rebuilt on the control thread whenever a member changes ([`crate::followers`]).

use super::priority::{Availability, Level, PriorityLoad};
use super::{LbContext, LbTables, Policy};
use crate::cluster::Cluster;
use crate::host::Host;
use nuncio_base::random;
use nuncio_config::cluster::ClusterConfig;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// One priority of one member.
#[derive(Debug)]
struct Place {
    cluster: Arc<Cluster>,
    priority: usize,
    /// What the member is told when its healthy or degraded hosts are wanted.
    healthy: PriorityLoad,
    degraded: PriorityLoad,
}

/// The row of an aggregate cluster's priorities.
#[derive(Debug, Default)]
pub(super) struct Row {
    places: Box<[Place]>,
    levels: Box<[Level]>,
}

impl Row {
    /// The priorities of `members`, those that exist now.
    fn new(members: impl Iterator<Item = Arc<Cluster>>) -> Row {
        let (mut places, mut levels) = (Vec::new(), Vec::new());
        for cluster in members {
            let state = cluster.state();
            let sets = &state.priority_set.host_sets;
            for (priority, set) in sets.iter().enumerate().filter(|(_, set)| !set.hosts.is_empty()) {
                levels.push(Level::of(set));
                places.push(Place {
                    cluster: cluster.clone(),
                    priority,
                    healthy: PriorityLoad::only(priority, Availability::Healthy, sets.len()),
                    degraded: PriorityLoad::only(priority, Availability::Degraded, sets.len()),
                });
            }
        }
        Row { places: places.into(), levels: levels.into() }
    }

    pub(super) fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// The place of a host of a member.
    pub(super) fn level_of(&self, host: &Host) -> Option<usize> {
        let (owner, priority) = (host.owner()?, host.priority.load(Relaxed) as usize);
        self.places.iter().position(|place| place.priority == priority && Arc::ptr_eq(&place.cluster, &owner))
    }

    pub(super) fn choose(&self, load: &PriorityLoad, context: &LbContext<'_>) -> Option<Arc<Host>> {
        let (level, availability) = load.choose(random::u64());
        let place = self.places.get(level)?;
        let load = match availability {
            Availability::Healthy => &place.healthy,
            Availability::Degraded => &place.degraded,
        };
        place.cluster.choose_host(&LbContext { priority_load: Some(load), ..*context })
    }
}

impl LbTables {
    /// The tables of an aggregate cluster over the members that exist.
    pub(crate) fn aggregate(config: &ClusterConfig, members: impl Iterator<Item = Arc<Cluster>>) -> Self {
        let row = Row::new(members);
        let load = match row.levels.is_empty() {
            true => PriorityLoad::only(0, Availability::Healthy, 1),
            false => PriorityLoad::of_levels(&row.levels, config.lb_common.healthy_panic_threshold),
        };
        LbTables {
            policy: Policy::Aggregate(row),
            load,
            fail_traffic_on_panic: false,
            slow_start: None,
            zones: None,
            overrides: None,
            subsets: None,
        }
    }
}
