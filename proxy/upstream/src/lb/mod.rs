//! Load balancing: tables built cold on the control thread, picks hot and per worker without locks.
//!
//! [`LbTables`] is immutable and published with the host sets; [`WorkerLb`] is one worker's turn counters and schedulers
//! for one cluster. As in Envoy every worker takes its own turns, starting at a random place. First the priority is
//! chosen (`priority`), then the locality where localities are weighted, then the host by the cluster's policy.

mod aggregate;
mod bounded;
#[cfg(test)]
mod distribution;
pub mod edf;
pub mod maglev;
pub(crate) mod override_host;
pub mod priority;
pub mod ring_hash;
mod slow_start;
mod subset;
mod zone;

use crate::dns_cache::{DnsCache, NamedTable};
use crate::host::{Health, Host, now_ms};
use crate::host_set::{Grouping, HostSet, LocalityHosts, PrioritySet};
use crate::original_dst::{DestinationTable, Destinations, Made};
use crate::stats::ClusterStats;
use crate::sub_clusters::SubClusters;
use bounded::Bounds;
use edf::EdfScheduler;
use nuncio_base::random;
use nuncio_config::cluster::{ClusterConfig, LbPolicy};
use nuncio_http::headers::Headers;
use nuncio_http::stream_info::StreamInfo;
use override_host::Overrides;
use priority::{Availability, Level, PriorityLoad};
use serde_json::{Map, Value};
use slow_start::SlowStart;
use smallvec::SmallVec;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use subset::Subsets;
pub use zone::LocalCluster;
use zone::{Choice, ZoneRouting};

/// What a pick may depend on.
#[derive(Clone, Copy, Default)]
pub struct LbContext<'a> {
    /// From the route's hash policy; a random number is used without one.
    pub hash: Option<u64>,
    /// Says that another host should be tried (retry host predicates).
    pub should_select_another_host: Option<&'a dyn Fn(&Host) -> bool>,
    /// How often to try another host.
    pub host_selection_retry_count: u32,
    /// Per priority: load to the healthy and to the degraded, instead of the cluster's own (retry priorities).
    pub priority_load: Option<&'a PriorityLoad>,
    /// Metadata that hosts have to have (`metadata_match`), for clusters of subsets.
    pub metadata_match: Option<&'a Map<String, Value>>,
    /// More of it, from the dynamic metadata of the request or connection; wins over `metadata_match`.
    pub dynamic_metadata: Option<&'a Map<String, Value>>,
    /// Headers of the request, for clusters whose hosts come with requests; None where there are none.
    pub headers: Option<&'a Headers>,
    /// The stream or connection, for the same.
    pub info: Option<&'a StreamInfo>,
    /// How many of the hosts that the request names were tried (`override_host`).
    pub overrides_used: Option<&'a Cell<u32>>,
}

impl std::fmt::Debug for LbContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LbContext").field("hash", &self.hash).finish_non_exhaustive()
    }
}

/// A hashing policy's table over the hosts of one priority.
pub trait HashTable: Send + Sync + std::fmt::Debug {
    /// The host for `hash`; `attempt` counts the hosts refused by the context before.
    fn pick(&self, hash: u64, attempt: u32) -> Option<&Arc<Host>>;
}

/// Makes the table over hosts whose weights sum to one.
type BuildTable<'a> = dyn Fn(&[(Arc<Host>, f64)]) -> Box<dyn HashTable> + 'a;

/// A cluster's policy with what it needs at run time.
#[derive(Debug)]
enum Policy {
    RoundRobin,
    LeastRequest {
        choice_count: u32,
        bias: f64,
        full_scan: bool,
    },
    Random,
    /// The request says where it goes.
    OriginalDst(DestinationTable),
    /// The request names its host.
    Named(NamedTable),
    /// The same, with a cluster for each name; and the port of names that have none.
    SubClusters(Arc<SubClusters>, u16),
    /// Members pick.
    Aggregate(aggregate::Row),
    /// By priority.
    Hash(Box<[HashLevel]>),
}

/// What a hashing policy knows of one priority.
#[derive(Debug)]
struct HashLevel {
    table: Box<dyn HashTable>,
    /// There where no host may have more than its share.
    bounds: Option<Bounds>,
}

/// Everything about a cluster that a pick reads.
#[derive(Debug)]
pub struct LbTables {
    policy: Policy,
    load: PriorityLoad,
    fail_traffic_on_panic: bool,
    slow_start: Option<SlowStart>,
    /// Of the first priority.
    zones: Option<Box<ZoneRouting>>,
    /// Asked before everything else.
    overrides: Option<Box<Overrides>>,
    /// Picks are made within one of these.
    subsets: Option<Box<Subsets>>,
}

/// A cluster asks for a load balancing policy that does not exist here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: load balancing policy {policy} is not implemented yet")]
pub struct UnsupportedPolicy {
    /// Path in the configuration.
    pub path: String,
    /// Name of the policy.
    pub policy: String,
}

/// Says whether `config`'s policy can be built.
///
/// # Errors
/// [`UnsupportedPolicy`] for policies of extensions.
pub fn check_policy(config: &ClusterConfig) -> Result<(), UnsupportedPolicy> {
    let policy = match &config.lb_policy {
        LbPolicy::Extension(typed) => typed.type_name.to_string(),
        _ => return Ok(()),
    };
    Err(UnsupportedPolicy { path: format!("{}.lb_policy", config.path), policy })
}

impl LbTables {
    /// Builds the tables for `set`. Runs on the control thread.
    pub fn new(config: &ClusterConfig, set: &PrioritySet, stats: &ClusterStats) -> Self {
        Self::with_subsets(config, set, stats, None, None)
    }

    /// As [`LbTables::new`], in place of these tables: subsets that stay keep their turns. `local` is given where zones
    /// are told apart.
    pub(crate) fn renewed(
        &self,
        config: &ClusterConfig,
        set: &PrioritySet,
        stats: &ClusterStats,
        local: Option<&LocalCluster>,
    ) -> Self {
        Self::with_subsets(config, set, stats, self.subsets.as_deref(), local)
    }

    fn with_subsets(
        config: &ClusterConfig,
        set: &PrioritySet,
        stats: &ClusterStats,
        previous: Option<&Subsets>,
        local: Option<&LocalCluster>,
    ) -> Self {
        let overrides =
            || config.lb_common.override_host.as_deref().map(|sources| Box::new(Overrides::new(sources, set)));
        let Some(subsets) = &config.lb_common.subsets else {
            return LbTables { overrides: overrides(), ..Self::undivided(config, set, stats, local) };
        };
        LbTables {
            // Never asked: every pick is that of a subset.
            policy: Policy::Random,
            load: PriorityLoad::new(set, config.lb_common.healthy_panic_threshold),
            fail_traffic_on_panic: config.lb_common.fail_traffic_on_panic,
            slow_start: None,
            zones: None,
            overrides: overrides(),
            subsets: Some(Box::new(Subsets::new(config, subsets, set, stats, previous, local))),
        }
    }

    fn undivided(
        config: &ClusterConfig,
        set: &PrioritySet,
        stats: &ClusterStats,
        local: Option<&LocalCluster>,
    ) -> Self {
        let slow_start = config.lb_common.slow_start.as_ref();
        if slow_start.is_some() {
            set.hosts().filter(|host| host.health() == Health::Healthy).for_each(|host| host.enter_service());
        }
        let load = PriorityLoad::new(set, config.lb_common.healthy_panic_threshold);
        let hashing = &config.lb_common.hashing;
        let tables = |build: &BuildTable<'_>| {
            let level = |(set, panic): (&HostSet, &bool)| {
                let hosts = normalized_weights(set, *panic);
                let bounds = hashing.balance_factor.map(|factor| Bounds::new(&hosts, factor));
                HashLevel { table: build(&hosts), bounds }
            };
            set.host_sets.iter().zip(&load.panic).map(level).collect()
        };
        let by_name = hashing.use_hostname;
        let policy = match &config.lb_policy {
            LbPolicy::RingHash { minimum_ring_size, maximum_ring_size, murmur } => Policy::Hash(tables(&|hosts| {
                let sizes = *minimum_ring_size..=*maximum_ring_size;
                Box::new(ring_hash::Ring::new(hosts, sizes, *murmur, by_name, stats))
            })),
            LbPolicy::Maglev { table_size } => {
                Policy::Hash(tables(&|hosts| Box::new(maglev::MaglevTable::new(hosts, *table_size, by_name, stats))))
            }
            LbPolicy::LeastRequest { choice_count, active_request_bias, full_scan } => Policy::LeastRequest {
                choice_count: (*choice_count).max(1),
                bias: *active_request_bias,
                full_scan: *full_scan,
            },
            LbPolicy::Random => Policy::Random,
            // Others were refused by `check_policy`.
            LbPolicy::RoundRobin | LbPolicy::ClusterProvided | LbPolicy::Extension(_) => Policy::RoundRobin,
        };
        LbTables {
            policy,
            load,
            fail_traffic_on_panic: config.lb_common.fail_traffic_on_panic,
            subsets: None,
            slow_start: slow_start.map(SlowStart::new),
            overrides: None,
            zones: local.and_then(|local| {
                let common = &config.lb_common;
                let first = set.host_sets.first()?;
                ZoneRouting::new(&common.zone_aware, first, local, common.healthy_panic_threshold, stats).map(Box::new)
            }),
        }
    }

    /// The tables of a cluster whose requests say where they go, over the hosts that have been asked for.
    pub(crate) fn original_dst(destinations: Arc<Destinations>, set: &PrioritySet) -> Self {
        Self::by_request(Policy::OriginalDst(DestinationTable::new(destinations, set)), set)
    }

    /// The tables of a dynamic forward proxy's cluster.
    pub(crate) fn named(cache: &DnsCache, set: &PrioritySet, default_port: u16) -> Self {
        Self::by_request(Policy::Named(NamedTable::new(cache, set, default_port)), set)
    }

    /// The tables of a dynamic forward proxy with a cluster for each name.
    pub(crate) fn sub_clusters(subs: Arc<SubClusters>, set: &PrioritySet, default_port: u16) -> Self {
        Self::by_request(Policy::SubClusters(subs, default_port), set)
    }

    /// Whether picks can be made ahead: they depend neither on requests nor on what hosts do meanwhile.
    pub(crate) fn picks_in_turn(&self) -> bool {
        matches!(self.policy, Policy::RoundRobin | Policy::Random) && self.overrides.is_none() && self.subsets.is_none()
    }

    fn by_request(policy: Policy, set: &PrioritySet) -> Self {
        LbTables {
            policy,
            load: PriorityLoad::new(set, 0.0),
            fail_traffic_on_panic: false,
            slow_start: None,
            zones: None,
            overrides: None,
            subsets: None,
        }
    }

    /// The cluster goes: its subsets are counted as removed.
    pub(crate) fn release(&self, stats: &ClusterStats) {
        if let Some(subsets) = &self.subsets {
            subsets.release(stats);
        }
    }

    /// Whether `metadata_match` of a context counts.
    #[inline]
    pub fn has_subsets(&self) -> bool {
        self.subsets.is_some()
    }

    /// Load per priority.
    pub fn priority_load(&self) -> &PriorityLoad {
        &self.load
    }

    /// The priorities that load is spread over: those of `set`, or those of an aggregate cluster's members.
    pub(crate) fn levels(&self, set: &PrioritySet) -> SmallVec<[Level; 4]> {
        match &self.policy {
            Policy::Aggregate(row) => row.levels().iter().copied().collect(),
            _ => set.host_sets.iter().map(Level::of).collect(),
        }
    }

    /// The place of `host` among them.
    pub(crate) fn level_of(&self, host: &Host) -> Option<usize> {
        match &self.policy {
            Policy::Aggregate(row) => row.level_of(host),
            _ => Some(host.priority.load(Relaxed) as usize),
        }
    }
}

/// Hosts with weights that sum to one, as the hashing policies use them: by the weights of their localities where there
/// are any, and by their own.
fn normalized_weights(set: &HostSet, panic: bool) -> Vec<(Arc<Host>, f64)> {
    let mut out = Vec::new();
    let mut add = |hosts: &[Arc<Host>], share: f64| {
        let sum: f64 = hosts.iter().map(|host| f64::from(host.weight())).sum();
        out.extend(hosts.iter().map(|host| (host.clone(), share * f64::from(host.weight()) / sum)));
    };
    if set.grouping != Grouping::Weighted {
        add(if panic { &set.hosts } else { set.healthy() }, 1.0);
        return out;
    }
    let sum: f64 = set.localities.iter().map(|locality| f64::from(locality.weight)).sum();
    for locality in set.localities.iter().filter(|locality| locality.weight > 0) {
        add(if panic { &locality.hosts } else { &locality.healthy }, f64::from(locality.weight) / sum);
    }
    out
}

/// Weight of a locality scaled by the share of its hosts that can serve.
fn effective_locality_weight(locality: &LocalityHosts, eligible: usize, factor: u32) -> f64 {
    let total = locality.hosts.len().saturating_sub(locality.excluded);
    if total == 0 {
        return 0.0;
    }
    let ratio = eligible as f64 / total as f64;
    f64::from(locality.weight) * (f64::from(factor) / 100.0 * ratio).min(1.0)
}

/// Which hosts of a priority a pick is among.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    All,
    Healthy,
    Degraded,
    LocalityHealthy(usize),
    LocalityDegraded(usize),
}

impl Source {
    fn index(self) -> usize {
        match self {
            Source::All => 0,
            Source::Healthy => 1,
            Source::Degraded => 2,
            Source::LocalityHealthy(locality) => 3 + 2 * locality,
            Source::LocalityDegraded(locality) => 4 + 2 * locality,
        }
    }

    fn hosts(self, set: &HostSet) -> &[Arc<Host>] {
        match self {
            Source::All => &set.hosts,
            Source::Healthy => set.healthy(),
            Source::Degraded => &set.degraded,
            Source::LocalityHealthy(locality) => &set.localities[locality].healthy,
            Source::LocalityDegraded(locality) => &set.localities[locality].degraded,
        }
    }
}

/// Turns within one source of hosts.
#[derive(Debug, Default)]
struct Turns {
    /// Next host where all weights are equal.
    next: Option<u64>,
    /// Built at the first pick; an inner None says that the weights are equal.
    scheduler: Option<Option<EdfScheduler>>,
}

/// One priority's turns on one worker.
#[derive(Debug, Default)]
struct PriorityTurns {
    healthy_localities: Option<EdfScheduler>,
    degraded_localities: Option<EdfScheduler>,
    localities_built: bool,
    sources: Vec<Turns>,
}

/// One worker's state of one cluster's load balancer.
#[derive(Debug)]
pub struct WorkerLb {
    seed: u64,
    priorities: Vec<PriorityTurns>,
    /// Turns within subsets, by slot.
    subsets: Vec<WorkerLb>,
    /// Hosts of this worker's making.
    made: Made,
}

impl Default for WorkerLb {
    fn default() -> Self {
        WorkerLb::with_seed(random::u64())
    }
}

impl WorkerLb {
    /// Turns that begin at `seed` instead of a random place.
    pub fn with_seed(seed: u64) -> Self {
        WorkerLb { seed, priorities: Vec::new(), subsets: Vec::new(), made: Made::default() }
    }

    /// The host sets have changed: weights are read anew, turns among equals go on where they were.
    pub fn refresh(&mut self, tables: &LbTables) {
        if let Policy::OriginalDst(table) = &tables.policy {
            table.forget_published(&mut self.made);
        }
        self.forget_schedules();
    }

    fn forget_schedules(&mut self) {
        for priority in &mut self.priorities {
            priority.localities_built = false;
            for source in &mut priority.sources {
                source.scheduler = None;
            }
        }
        self.subsets.iter_mut().for_each(WorkerLb::forget_schedules);
    }

    /// Picks a host. None when no host may be used.
    pub fn choose_host(
        &mut self,
        tables: &LbTables,
        set: &PrioritySet,
        context: &LbContext<'_>,
        stats: &ClusterStats,
    ) -> Option<Arc<Host>> {
        if let Some(host) = tables.overrides.as_ref().and_then(|overrides| overrides.choose(context)) {
            return Some(host);
        }
        if let Some(subsets) = &tables.subsets {
            return subsets.choose(context, stats, |subset| {
                self.subset(subset.slot).choose_host(&subset.tables, &subset.set, context, stats)
            });
        }
        match &tables.policy {
            Policy::Aggregate(row) => return row.choose(context.priority_load.unwrap_or(&tables.load), context),
            Policy::OriginalDst(table) => return table.choose(&mut self.made, context, stats),
            Policy::Named(table) => return table.choose(context),
            Policy::SubClusters(subs, default_port) => return subs.choose(context, *default_port),
            _ => {}
        }
        let mut attempt = 0;
        loop {
            let host = self.choose_once(tables, set, context, stats, attempt)?;
            match context.should_select_another_host {
                Some(refuses) if attempt < context.host_selection_retry_count && refuses(host) => attempt += 1,
                _ => return Some(host.clone()),
            }
        }
    }

    fn subset(&mut self, slot: u32) -> &mut WorkerLb {
        let slot = slot as usize;
        if self.subsets.len() <= slot {
            self.subsets.resize_with(slot + 1, WorkerLb::default);
        }
        &mut self.subsets[slot]
    }

    fn choose_once<'a>(
        &mut self,
        tables: &'a LbTables,
        set: &'a PrioritySet,
        context: &LbContext<'_>,
        stats: &ClusterStats,
        attempt: u32,
    ) -> Option<&'a Arc<Host>> {
        let load = context.priority_load.unwrap_or(&tables.load);
        if let Policy::Hash(by_priority) = &tables.policy {
            let hash = context.hash.unwrap_or_else(random::u64);
            let (priority, _) = load.choose(hash);
            if tables.load.panic.get(priority).copied().unwrap_or(false) {
                stats.lb_healthy_panic().inc();
            }
            let HashLevel { table, bounds } = by_priority.get(priority)?;
            return match bounds {
                None => table.pick(hash, attempt),
                Some(bounds) => bounds.pick(&**table, hash, attempt, stats.upstream_rq_active().value()),
            };
        }
        let (priority, availability) = if load.healthy.len() == 1 && load.healthy[0] == 100 {
            (0, Availability::Healthy)
        } else {
            load.choose(random::u64())
        };
        let hosts = set.host_sets.get(priority)?;
        let source = self.source(tables, hosts, priority, availability, stats)?;
        let candidates = source.hosts(hosts);
        match candidates {
            [] => None,
            [one] => Some(one),
            _ => self.pick(tables, priority, source, candidates),
        }
    }

    /// Healthy, degraded or all hosts, of one locality where localities are weighted.
    fn source(
        &mut self,
        tables: &LbTables,
        set: &HostSet,
        priority: usize,
        availability: Availability,
        stats: &ClusterStats,
    ) -> Option<Source> {
        if tables.load.panic[priority] {
            stats.lb_healthy_panic().inc();
            return (!tables.fail_traffic_on_panic).then_some(Source::All);
        }
        if set.grouping == Grouping::Weighted {
            let turns = self.turns(priority);
            if !turns.localities_built {
                turns.localities_built = true;
                let build = |count: &dyn Fn(&LocalityHosts) -> usize| {
                    let weights = set.localities.iter();
                    let weights = weights.map(|l| effective_locality_weight(l, count(l), set.overprovisioning_factor));
                    Some(EdfScheduler::new(weights)).filter(|scheduler| !scheduler.is_empty())
                };
                turns.healthy_localities = build(&|locality| locality.healthy.len());
                turns.degraded_localities = build(&|locality| locality.degraded.len());
            }
            let (scheduler, degraded) = match availability {
                Availability::Healthy => (&mut turns.healthy_localities, false),
                Availability::Degraded => (&mut turns.degraded_localities, true),
            };
            let weight = |index: usize| {
                let locality: &LocalityHosts = &set.localities[index];
                let eligible = if degraded { locality.degraded.len() } else { locality.healthy.len() };
                effective_locality_weight(locality, eligible, set.overprovisioning_factor)
            };
            if let Some(locality) = scheduler.as_mut().and_then(|scheduler| scheduler.pick(weight)) {
                return Some(if degraded {
                    Source::LocalityDegraded(locality)
                } else {
                    Source::LocalityHealthy(locality)
                });
            }
        }
        let choice = match &tables.zones {
            Some(zones) if priority == 0 => zones.choose(tables.fail_traffic_on_panic, stats),
            _ => Choice::Anywhere,
        };
        match (choice, availability) {
            (Choice::Nothing, _) => None,
            (Choice::Anywhere, Availability::Healthy) => Some(Source::Healthy),
            (Choice::Anywhere, Availability::Degraded) => Some(Source::Degraded),
            (Choice::Locality(at), Availability::Healthy) => Some(Source::LocalityHealthy(at)),
            (Choice::Locality(at), Availability::Degraded) => Some(Source::LocalityDegraded(at)),
        }
    }

    fn turns(&mut self, priority: usize) -> &mut PriorityTurns {
        if self.priorities.len() <= priority {
            self.priorities.resize_with(priority + 1, PriorityTurns::default);
        }
        &mut self.priorities[priority]
    }

    fn pick<'a>(
        &mut self,
        tables: &LbTables,
        priority: usize,
        source: Source,
        hosts: &'a [Arc<Host>],
    ) -> Option<&'a Arc<Host>> {
        if matches!(tables.policy, Policy::Random) {
            return hosts.get(random::below(hosts.len() as u64) as usize);
        }
        let seed = self.seed;
        let sources = &mut self.turns(priority).sources;
        if sources.len() <= source.index() {
            sources.resize_with(source.index() + 1, Turns::default);
        }
        let turns = &mut sources[source.index()];
        let slow_start = tables.slow_start.map(|slow_start| (slow_start, now_ms()));
        let weight = |host: &Host| {
            let full = match tables.policy {
                Policy::LeastRequest { bias, .. } => least_request_weight(host, bias),
                _ => f64::from(host.weight()),
            };
            slow_start.map_or(full, |(slow_start, now)| full * slow_start.share(host, now))
        };
        let scheduler = turns.scheduler.get_or_insert_with(|| {
            let first = hosts[0].weight();
            let grows = |host: &Host| slow_start.is_some_and(|(slow_start, now)| slow_start.concerns(host, now));
            if hosts.iter().all(|host| host.weight() == first && !grows(host)) {
                return None;
            }
            let mut scheduler = EdfScheduler::new(hosts.iter().map(|host| weight(host)));
            for _ in 0..seed % hosts.len() as u64 {
                scheduler.pick(|index| weight(&hosts[index]));
            }
            Some(scheduler)
        });
        if let Some(scheduler) = scheduler {
            let index = scheduler.pick(|index| weight(&hosts[index]))?;
            return hosts.get(index);
        }
        match tables.policy {
            Policy::LeastRequest { full_scan: true, .. } => least_of_all(hosts),
            Policy::LeastRequest { choice_count, .. } => {
                let mut best: Option<(&Arc<Host>, u32)> = None;
                for _ in 0..choice_count {
                    let host = hosts.get(random::below(hosts.len() as u64) as usize)?;
                    let active = host.stats.rq_active.load(Relaxed);
                    if best.is_none_or(|(_, least)| active < least) {
                        best = Some((host, active));
                    }
                }
                best.map(|(host, _)| host)
            }
            _ => {
                let next = turns.next.get_or_insert(seed);
                let index = *next % hosts.len() as u64;
                *next = next.wrapping_add(1);
                hosts.get(index as usize)
            }
        }
    }
}

/// The host of the fewest active requests; of several, any with the same chance.
fn least_of_all(hosts: &[Arc<Host>]) -> Option<&Arc<Host>> {
    let mut best: Option<(&Arc<Host>, u32)> = None;
    let mut tied = 0;
    for host in hosts {
        let active = host.stats.rq_active.load(Relaxed);
        match best {
            Some((_, least)) if active > least => {}
            Some((_, least)) if active == least => {
                tied += 1;
                if random::below(tied) == 0 {
                    best = Some((host, active));
                }
            }
            _ => {
                tied = 1;
                best = Some((host, active));
            }
        }
    }
    best.map(|(host, _)| host)
}

/// Weight divided by the active requests (and one), to the power of the bias.
fn least_request_weight(host: &Host, bias: f64) -> f64 {
    let active = f64::from(host.stats.rq_active.load(Relaxed)) + 1.0;
    let weight = f64::from(host.weight());
    if bias == 1.0 {
        weight / active
    } else if bias == 0.0 {
        weight
    } else {
        weight / active.powf(bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{config, priority_set, stats, weighted_set};
    use nuncio_config::cluster::{CommonLbConfig, Locality};

    fn picks(config: &ClusterConfig, set: &PrioritySet, lb: &mut WorkerLb, count: usize) -> Vec<u16> {
        let stats = stats();
        let tables = LbTables::new(config, set, &stats);
        let ctx = LbContext::default();
        (0..count)
            .filter_map(|_| lb.choose_host(&tables, set, &ctx, &stats).and_then(|host| host.address.port()))
            .collect()
    }

    #[test]
    fn round_robin_takes_turns_and_goes_on_after_a_change() {
        let set = weighted_set(&[1, 1, 1]);
        let mut lb = WorkerLb::with_seed(1);
        assert_eq!(picks(&config(), &set, &mut lb, 5), [1, 2, 0, 1, 2]);
        lb.forget_schedules();
        assert_eq!(picks(&config(), &set, &mut lb, 2), [0, 1]);
    }

    #[test]
    fn unequal_weights_are_scheduled() {
        let set = weighted_set(&[1, 3]);
        let mut lb = WorkerLb::with_seed(0);
        let picks = picks(&config(), &set, &mut lb, 400);
        assert_eq!(picks.iter().filter(|port| **port == 1).count(), 300);
        assert_eq!(&picks[..4], [1, 1, 0, 1]);
    }

    #[test]
    fn least_request_prefers_the_idle_host() {
        let set = weighted_set(&[1, 1]);
        set.host_sets[0].hosts[0].stats.rq_active.store(5, Relaxed);
        let mut config = config();
        // Two hosts and many choices: the busy one is picked only when all choices hit it.
        config.lb_policy = LbPolicy::LeastRequest { choice_count: 64, active_request_bias: 1.0, full_scan: false };
        assert!(picks(&config, &set, &mut WorkerLb::with_seed(0), 100).iter().all(|port| *port == 1));
        // Weighted: 5 active make a weight of 6 worth one.
        let set = weighted_set(&[6, 1]);
        set.host_sets[0].hosts[0].stats.rq_active.store(5, Relaxed);
        let picks = picks(&config, &set, &mut WorkerLb::with_seed(0), 100);
        assert_eq!(picks.iter().filter(|port| **port == 0).count(), 50);
    }

    #[test]
    fn a_full_scan_finds_the_idle_hosts_and_spreads_over_them() {
        let set = weighted_set(&[1, 1, 1, 1]);
        for (at, active) in [(0, 3), (2, 1)] {
            set.host_sets[0].hosts[at].stats.rq_active.store(active, Relaxed);
        }
        let lb_policy = LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0, full_scan: true };
        let picks = picks(&ClusterConfig { lb_policy, ..config() }, &set, &mut WorkerLb::with_seed(0), 1000);
        let count = |port| picks.iter().filter(|picked| **picked == port).count();
        assert_eq!((count(0), count(2), count(1) + count(3)), (0, 0, 1000));
        assert!((400..600).contains(&count(1)), "{}", count(1));
    }

    #[test]
    fn random_reaches_every_host() {
        let set = weighted_set(&[1, 1, 1]);
        let config = ClusterConfig { lb_policy: LbPolicy::Random, ..config() };
        let picks = picks(&config, &set, &mut WorkerLb::with_seed(0), 300);
        assert!((0..3).all(|port| picks.contains(&port)));
    }

    #[test]
    fn unhealthy_hosts_are_used_in_panic_only() {
        let set = priority_set(&[(2, 0, 1)]);
        let healthy = picks(&config(), &set, &mut WorkerLb::with_seed(0), 30);
        assert!(healthy.iter().all(|port| *port < 2));
        let set = priority_set(&[(1, 0, 2)]);
        let panic = picks(&config(), &set, &mut WorkerLb::with_seed(0), 30);
        assert!((0..3).all(|port| panic.contains(&port)));
        let failing = ClusterConfig {
            lb_common: CommonLbConfig { fail_traffic_on_panic: true, ..CommonLbConfig::default() },
            ..config()
        };
        assert!(picks(&failing, &set, &mut WorkerLb::with_seed(0), 3).is_empty());
    }

    #[test]
    fn localities_share_by_their_weights() {
        let zone = |zone: &str| Arc::new(Locality { zone: zone.into(), ..Locality::default() });
        let group = |name: &str, port, weight| crate::host_set::HostGroup {
            priority: 0,
            locality: zone(name),
            weight,
            hosts: vec![crate::testing::host(port, 1, &zone(name))],
        };
        let groups = crate::host_set::HostGroups {
            groups: vec![group("a", 0, Some(1)), group("b", 1, Some(3)), group("c", 2, None)],
            overprovisioning_factor: 140,
            weighted_health: false,
            grouping: Grouping::Weighted,
        };
        let picks = picks(&config(), &groups.priority_set(), &mut WorkerLb::with_seed(0), 400);
        let count = |port| picks.iter().filter(|picked| **picked == port).count();
        assert_eq!([count(0), count(1), count(2)], [100, 300, 0]);
    }

    #[test]
    fn a_context_can_ask_for_another_host() {
        let set = weighted_set(&[1, 1]);
        let (config, stats) = (config(), stats());
        let tables = LbTables::new(&config, &set, &stats);
        let refuse = |host: &Host| host.address.port() == Some(0);
        let context = LbContext {
            should_select_another_host: Some(&refuse),
            host_selection_retry_count: 1,
            ..LbContext::default()
        };
        let mut lb = WorkerLb::with_seed(0);
        for _ in 0..4 {
            let host = lb.choose_host(&tables, &set, &context, &stats).expect("a host");
            assert_eq!(host.address.port(), Some(1));
        }
    }
}
