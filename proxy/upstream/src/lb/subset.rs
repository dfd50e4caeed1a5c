//! Subset load balancing: hosts divided by their metadata, and the subset that a request's criteria name.
//!
//! [`Subsets`] is built on the control thread with the other tables and published with them: every subset is a set of
//! hosts with tables of its own, found by a hash of its keys and values. A pick hashes the criteria and looks once; only
//! a miss asks the selectors for what to do then. Which host of a subset serves is the policy's business (`super`).

use super::{LbContext, LbTables, LocalCluster};
use crate::host::Host;
use crate::host_set::{Grouping, HostSet, PrioritySet};
use crate::stats::ClusterStats;
use nuncio_config::cluster::{
    ClusterConfig, FALLBACK_LIST, SelectorFallback, SubsetConfig, SubsetFallback, SubsetSelector,
};
use rustc_hash::{FxHashMap, FxHasher};
use serde_json::{Map, Value};
use smallvec::SmallVec;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

/// Namespace of the metadata that divides hosts.
const NAMESPACE: &str = "envoy.lb";

/// Subsets that lists in the metadata of one host may make for one selector; more are left out.
const MAX_COMBINATIONS: usize = 4096;

type Keys = [Box<str>];

/// All subsets of a cluster, with its fallbacks.
#[derive(Debug)]
pub(crate) struct Subsets {
    config: Arc<SubsetConfig>,
    any: Option<Subset>,
    default: Option<Subset>,
    entries: Vec<Entry>,
    /// Places in `entries` by the hash of their keys and values.
    index: FxHashMap<u64, SmallVec<[u32; 1]>>,
    /// One more than the highest slot of a subset.
    slots: u32,
}

/// Hosts of a subset with tables over them.
#[derive(Debug)]
pub(crate) struct Subset {
    /// Where workers keep their turns of it; the same as long as the subset exists.
    pub(super) slot: u32,
    pub(super) set: PrioritySet,
    pub(super) tables: LbTables,
}

#[derive(Debug)]
struct Entry {
    labels: Labels,
    hosts: Hosts,
}

type Labels = SmallVec<[(Box<str>, Value); 2]>;

#[derive(Debug)]
enum Hosts {
    /// Used whatever its health is.
    Single(Arc<Host>),
    Many(Subset),
}

/// Hosts by priority while they are collected.
struct Collected {
    labels: Labels,
    single: bool,
    levels: Vec<Vec<Arc<Host>>>,
}

impl Subsets {
    /// Divides the hosts of `set`. `previous` are the subsets before, whose workers' turns go on.
    pub(super) fn new(
        config: &ClusterConfig,
        subsets: &Arc<SubsetConfig>,
        set: &PrioritySet,
        stats: &ClusterStats,
        previous: Option<&Subsets>,
        local: Option<&LocalCluster>,
    ) -> Self {
        let (collected, duplicates) = collect(subsets, set);
        let mut slots = Slots::new(previous);
        let make = |slot: u32, levels: &[Vec<Arc<Host>>]| {
            let set = filtered(subsets, set, levels);
            Subset { slot, tables: LbTables::undivided(config, &set, stats, local), set }
        };
        let wanted = |fallback: SubsetFallback| {
            subsets.fallback == fallback
                || subsets.selectors.iter().any(|s| s.fallback == Some(SelectorFallback::To(fallback)))
        };
        // Slots 0 and 1 are those of the fallbacks.
        let any = (subsets.panic_mode_any || wanted(SubsetFallback::Any)).then(|| {
            let levels: Vec<_> = set.host_sets.iter().map(|set| set.hosts.clone()).collect();
            make(0, &levels)
        });
        let default = wanted(SubsetFallback::Default).then(|| {
            let matches = |host: &&Arc<Host>| has_labels(host, &subsets.default_subset, subsets.list_as_any);
            let level = |set: &HostSet| set.hosts.iter().filter(matches).cloned().collect();
            make(1, &set.host_sets.iter().map(level).collect::<Vec<_>>())
        });
        let mut entries = Vec::with_capacity(collected.len());
        let mut index: FxHashMap<u64, SmallVec<[u32; 1]>> = FxHashMap::default();
        let mut created = 0;
        for (hash, collected) in collected {
            let before = previous.and_then(|previous| previous.entry(hash, &collected.labels));
            created += u64::from(before.is_none());
            let hosts = match collected.levels.iter().flatten().next().filter(|_| collected.single) {
                Some(host) => Hosts::Single(host.clone()),
                None => {
                    let slot = match before.map(|before| &before.hosts) {
                        Some(Hosts::Many(subset)) => subset.slot,
                        _ => slots.take(),
                    };
                    Hosts::Many(make(slot, &collected.levels))
                }
            };
            index.entry(hash).or_default().push(entries.len() as u32);
            entries.push(Entry { labels: collected.labels, hosts });
        }
        stats.count_subsets(
            entries.len() as u64,
            previous.map_or(0, |previous| previous.entries.len() as u64),
            created,
        );
        stats.lb_subsets_duplicates(duplicates);
        Subsets { config: subsets.clone(), any, default, entries, index, slots: slots.count }
    }

    /// The cluster goes: its subsets are counted as removed.
    pub(super) fn release(&self, stats: &ClusterStats) {
        stats.count_subsets(0, self.entries.len() as u64, 0);
    }

    fn entry(&self, hash: u64, labels: &[(Box<str>, Value)]) -> Option<&Entry> {
        let places = self.index.get(&hash)?;
        places.iter().map(|at| &self.entries[*at as usize]).find(|entry| *entry.labels == *labels)
    }

    /// The host for the criteria of `context`; `pick` chooses one of a subset.
    pub(super) fn choose<'a>(
        &'a self,
        context: &LbContext<'a>,
        stats: &ClusterStats,
        mut pick: impl FnMut(&Subset) -> Option<Arc<Host>>,
    ) -> Option<Arc<Host>> {
        let mut criteria =
            Criteria { layers: [context.metadata_match, context.dynamic_metadata, None], ..Criteria::NONE };
        if !self.config.fallback_list {
            return self.choose_by(criteria, stats, &mut pick);
        }
        let Some(list) = criteria.get(FALLBACK_LIST) else { return self.choose_by(criteria, stats, &mut pick) };
        criteria.without_list = true;
        match list.as_array().map_or(&[][..], Vec::as_slice) {
            [] => self.choose_by(criteria, stats, &mut pick),
            list => list.iter().find_map(|instead| {
                let layers = [criteria.layers[0], criteria.layers[1], instead.as_object()];
                self.choose_by(Criteria { layers, ..criteria }, stats, &mut pick)
            }),
        }
    }

    fn choose_by<'a>(
        &'a self,
        mut criteria: Criteria<'a>,
        stats: &ClusterStats,
        pick: &mut dyn FnMut(&Subset) -> Option<Arc<Host>>,
    ) -> Option<Arc<Host>> {
        // Ends: every round but the first has fewer keys than the one before.
        loop {
            let given = criteria;
            if self.config.allow_redundant_keys
                && let Some(selector) = self.config.selectors.iter().find(|s| criteria.has_keys(&s.keys))
            {
                criteria.only = Some(&selector.keys);
            }
            if let Some(entry) = self.find(&criteria) {
                stats.lb_subsets_selected().inc();
                return match &entry.hosts {
                    Hosts::Single(host) => Some(host.clone()),
                    Hosts::Many(subset) => pick(subset),
                };
            }
            match self.selector_fallback(&criteria) {
                None => break,
                Some(SelectorFallback::To(SubsetFallback::None)) => return None,
                Some(SelectorFallback::To(SubsetFallback::Any)) => return pick(self.any.as_ref()?),
                Some(SelectorFallback::To(SubsetFallback::Default)) => return pick(self.default.as_ref()?),
                Some(SelectorFallback::Keys(keys)) => criteria = Criteria { only: Some(keys), ..given },
            }
        }
        let fallback = match self.config.fallback {
            SubsetFallback::None => return None,
            SubsetFallback::Any => &self.any,
            SubsetFallback::Default => &self.default,
        };
        if let Some(host) = fallback.as_ref().and_then(&mut *pick) {
            stats.lb_subsets_fallback().inc();
            return Some(host);
        }
        let host = pick(self.any.as_ref().filter(|_| self.config.panic_mode_any)?)?;
        stats.lb_subsets_fallback_panic().inc();
        Some(host)
    }

    fn find(&self, criteria: &Criteria<'_>) -> Option<&Entry> {
        let (hash, count) = criteria.hash();
        if count == 0 {
            return None;
        }
        let is_meant = |entry: &&Entry| {
            entry.labels.len() == count && entry.labels.iter().all(|(key, value)| criteria.get(key) == Some(value))
        };
        self.index.get(&hash)?.iter().map(|at| &self.entries[*at as usize]).find(is_meant)
    }

    /// What the selector of exactly these keys does. As in Envoy, a selector whose keys begin those of an earlier one
    /// has no say.
    fn selector_fallback(&self, criteria: &Criteria<'_>) -> Option<&SelectorFallback> {
        let count = criteria.hash().1;
        let selectors = &self.config.selectors;
        let at = selectors.iter().position(|s| s.keys.len() == count && count > 0 && criteria.has_keys(&s.keys))?;
        let SubsetSelector { keys, fallback, .. } = &selectors[at];
        if selectors[..at].iter().any(|earlier| earlier.keys.starts_with(keys)) {
            return None;
        }
        fallback.as_ref()
    }
}

/// Slots that are free.
struct Slots {
    free: Vec<u32>,
    count: u32,
}

impl Slots {
    /// Those of `previous` are not given out again at once: some of its subsets may stay.
    fn new(previous: Option<&Subsets>) -> Self {
        let Some(previous) = previous else { return Slots { free: Vec::new(), count: 2 } };
        let mut used = vec![false; previous.slots as usize];
        used[..2].fill(true);
        for entry in &previous.entries {
            if let Hosts::Many(subset) = &entry.hosts {
                used[subset.slot as usize] = true;
            }
        }
        Slots { free: (0..previous.slots).filter(|slot| !used[*slot as usize]).collect(), count: previous.slots }
    }

    fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.count += 1;
            self.count - 1
        })
    }
}

/// What a request asks of its host's metadata: layers, of which later ones win.
#[derive(Clone, Copy)]
struct Criteria<'a> {
    layers: [Option<&'a Map<String, Value>>; 3],
    /// Only these keys count.
    only: Option<&'a Keys>,
    /// The list of fallbacks is no criterion.
    without_list: bool,
}

impl<'a> Criteria<'a> {
    const NONE: Criteria<'static> = Criteria { layers: [None; 3], only: None, without_list: false };

    fn counts(&self, layer: usize, key: &str) -> bool {
        self.only.is_none_or(|only| only.iter().any(|name| **name == *key))
            && !(self.without_list && layer < 2 && key == FALLBACK_LIST)
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        let layers = self.layers.iter().enumerate().rev();
        layers.filter(|(at, _)| self.counts(*at, key)).find_map(|(_, layer)| layer.as_ref()?.get(key))
    }

    fn has_keys(&self, keys: &Keys) -> bool {
        keys.iter().all(|key| self.get(key).is_some())
    }

    /// Hash of all keys and values, and their number.
    fn hash(&self) -> (u64, usize) {
        let (mut hash, mut count) = (0u64, 0);
        for (at, layer) in self.layers.iter().enumerate() {
            for (key, value) in layer.iter().flat_map(|layer| layer.iter()) {
                let hidden = self.layers[at + 1..].iter().flatten().any(|later| later.contains_key(key));
                if !hidden && self.counts(at, key) {
                    hash = hash.wrapping_add(label_hash(key, value));
                    count += 1;
                }
            }
        }
        (hash, count)
    }
}

/// Hash of one key with its value; hashes of several are added up, as their order does not count.
fn label_hash(key: &str, value: &Value) -> u64 {
    let mut hasher = FxHasher::default();
    key.hash(&mut hasher);
    hash_value(value, &mut hasher);
    hasher.finish()
}

fn hash_value(value: &Value, hasher: &mut FxHasher) {
    match value {
        Value::Null => hasher.write_u8(0),
        Value::Bool(flag) => hasher.write_u8(1 + u8::from(*flag)),
        Value::Number(number) => hasher.write_u64(number.as_f64().unwrap_or_default().to_bits()),
        Value::String(text) => text.hash(hasher),
        Value::Array(values) => values.iter().for_each(|value| hash_value(value, hasher)),
        Value::Object(object) => {
            let sum = object.iter().fold(0u64, |sum, (key, value)| sum.wrapping_add(label_hash(key, value)));
            hasher.write_u64(sum);
        }
    }
}

fn labels_of(metadata: Option<&Value>) -> Option<&Map<String, Value>> {
    metadata?.get(NAMESPACE)?.as_object()
}

/// Whether the host has all of `wanted`; with `list_as_any` one value of a list is enough.
fn has_labels(host: &Host, wanted: &Map<String, Value>, list_as_any: bool) -> bool {
    let metadata = host.metadata();
    let labels = labels_of(metadata.as_deref());
    let has = |key: &str, wanted: &Value| match labels.and_then(|labels| labels.get(key)) {
        Some(Value::Array(values)) if list_as_any => values.contains(wanted),
        value => value == Some(wanted),
    };
    wanted.iter().all(|(key, value)| has(key, value))
}

/// The subsets that `host` belongs to by `keys`: none where it lacks one of them.
fn combinations(host: &Host, keys: &Keys, list_as_any: bool) -> Vec<Labels> {
    let metadata = host.metadata();
    let Some(labels) = labels_of(metadata.as_deref()).filter(|_| !keys.is_empty()) else { return Vec::new() };
    let mut all = vec![Labels::new()];
    for key in keys {
        let values = match labels.get(&**key) {
            None => return Vec::new(),
            Some(Value::Array(values)) if list_as_any => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let extended = |before: &Labels, value: &Value| {
            let mut labels = before.clone();
            labels.push((key.clone(), value.clone()));
            labels
        };
        let extend = |before: &Labels| values.iter().map(|value| extended(before, value)).collect::<Vec<_>>();
        all = all.iter().flat_map(extend).take(MAX_COMBINATIONS).collect();
    }
    all
}

/// All subsets with their hosts by priority, and how many hosts more than one a subset of a single host would have.
fn collect(config: &SubsetConfig, set: &PrioritySet) -> (Vec<(u64, Collected)>, u64) {
    let mut found: Vec<(u64, Collected)> = Vec::new();
    let mut places: FxHashMap<u64, SmallVec<[usize; 1]>> = FxHashMap::default();
    let mut duplicates = 0;
    for (level, hosts) in set.host_sets.iter().enumerate() {
        for host in &hosts.hosts {
            for selector in &config.selectors {
                for labels in combinations(host, &selector.keys, config.list_as_any) {
                    let hash = labels.iter().fold(0u64, |sum, (key, value)| sum.wrapping_add(label_hash(key, value)));
                    let places = places.entry(hash).or_default();
                    let at = places.iter().copied().find(|at| found[*at].1.labels == labels).unwrap_or_else(|| {
                        let levels = vec![Vec::new(); set.host_sets.len()];
                        found.push((hash, Collected { labels, single: selector.single_host_per_subset, levels }));
                        places.push(found.len() - 1);
                        found.len() - 1
                    });
                    let entry = &mut found[at].1;
                    let level = &mut entry.levels[level];
                    if entry.single && !level.is_empty() {
                        duplicates += 1;
                    } else if level.last().is_none_or(|last| last.id != host.id) {
                        level.push(host.clone());
                    }
                }
            }
        }
    }
    (found, duplicates)
}

/// The set of some of the hosts of `original`. Localities keep their weights where the configuration says so.
fn filtered(config: &SubsetConfig, original: &PrioritySet, levels: &[Vec<Arc<Host>>]) -> PrioritySet {
    let level = |(set, hosts): (&HostSet, &Vec<Arc<Host>>)| {
        let weights = (config.locality_weight_aware && set.grouping == Grouping::Weighted).then(|| {
            let weight = |locality: &crate::host_set::LocalityHosts| {
                if !config.scale_locality_weight {
                    return locality.weight;
                }
                let here = hosts.iter().filter(|host| host.locality == locality.locality).count();
                (f64::from(locality.weight) * here as f64 / locality.hosts.len().max(1) as f64).round() as u32
            };
            set.localities.iter().map(|locality| (locality.locality.clone(), weight(locality))).collect::<Vec<_>>()
        });
        let grouping = match &set.grouping {
            Grouping::Weighted if weights.is_none() => &Grouping::None,
            grouping => grouping,
        };
        let weights = weights.as_deref().unwrap_or_default();
        HostSet::new(hosts.clone(), grouping, weights, set.overprovisioning_factor, set.weighted_health)
    };
    PrioritySet { host_sets: original.host_sets.iter().zip(levels).map(level).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostDescription;
    use crate::host_set::{HostGroup, HostGroups};
    use crate::lb::WorkerLb;
    use crate::testing::{config, host, stats};
    use nuncio_config::cluster::{CommonLbConfig, HealthStatus};
    use nuncio_net::address::Address;
    use serde_json::json;
    use std::sync::atomic::Ordering::Relaxed;

    fn labelled(port: u16, labels: Value) -> Arc<Host> {
        let locality = host(port, 1, &Arc::default()).locality.clone();
        Arc::new(Host::new(HostDescription {
            address: Address::Ip(([127, 0, 0, 1], port).into()),
            additional_addresses: Vec::new(),
            hostname: "".into(),
            locality,
            priority: 0,
            weight: 1,
            health: HealthStatus::Unknown,
            metadata: Some(Arc::new(json!({ "envoy.lb": labels }))),
            transport_socket_match: None,
            own_health_check: None,
        }))
    }

    /// Hosts on the ports 0, 1, ... with these labels.
    fn set(labels: &[Value]) -> PrioritySet {
        set_of(labels.iter().enumerate().map(|(port, labels)| labelled(port as u16, labels.clone())).collect())
    }

    fn set_of(hosts: Vec<Arc<Host>>) -> PrioritySet {
        let groups = vec![HostGroup { priority: 0, locality: Arc::default(), weight: None, hosts }];
        HostGroups { groups, overprovisioning_factor: 140, weighted_health: false, grouping: Grouping::None }
            .priority_set()
    }

    fn selector(keys: &[&str], fallback: Option<SelectorFallback>) -> SubsetSelector {
        SubsetSelector { keys: keys.iter().map(|key| (*key).into()).collect(), fallback, single_host_per_subset: false }
    }

    fn subsets(fallback: SubsetFallback, selectors: Vec<SubsetSelector>) -> SubsetConfig {
        SubsetConfig {
            fallback,
            default_subset: Map::new(),
            selectors,
            locality_weight_aware: false,
            scale_locality_weight: false,
            panic_mode_any: false,
            list_as_any: false,
            fallback_list: false,
            allow_redundant_keys: false,
        }
    }

    struct Lb {
        config: ClusterConfig,
        stats: ClusterStats,
        tables: LbTables,
        set: PrioritySet,
        worker: WorkerLb,
    }

    impl Lb {
        fn new(subsets: SubsetConfig, set: PrioritySet) -> Lb {
            let lb_common = CommonLbConfig { subsets: Some(Arc::new(subsets)), ..CommonLbConfig::default() };
            let (config, stats) = (ClusterConfig { lb_common, ..config() }, stats());
            Lb { tables: LbTables::new(&config, &set, &stats), config, stats, set, worker: WorkerLb::with_seed(0) }
        }

        fn update(&mut self, set: PrioritySet) {
            self.tables = self.tables.renewed(&self.config, &set, &self.stats, None);
            self.set = set;
            self.worker.refresh(&self.tables);
        }

        /// Ports that requests of these criteria reach, sorted.
        fn ports(&mut self, criteria: Value) -> Vec<u16> {
            let context = LbContext { metadata_match: criteria.as_object(), ..LbContext::default() };
            let mut ports: Vec<_> = (0..8).filter_map(|_| self.pick(&context)).collect();
            ports.sort_unstable();
            ports.dedup();
            ports
        }

        fn pick(&mut self, context: &LbContext<'_>) -> Option<u16> {
            self.worker.choose_host(&self.tables, &self.set, context, &self.stats)?.address.port()
        }
    }

    fn versions() -> PrioritySet {
        set(&[
            json!({"v": "1", "s": "a", "w": 1}),
            json!({"v": "1", "s": "b", "w": 2}),
            json!({"v": "2", "s": "a", "w": 1}),
            json!({"v": "2"}),
        ])
    }

    #[test]
    fn criteria_reach_exactly_the_hosts_that_have_them() {
        let selectors = vec![selector(&["v"], None), selector(&["s", "v"], None), selector(&["w"], None)];
        let mut lb = Lb::new(subsets(SubsetFallback::None, selectors), versions());
        assert_eq!(lb.ports(json!({"v": "1"})), [0, 1]);
        assert_eq!(lb.ports(json!({"v": "2", "s": "a"})), [2]);
        assert_eq!(lb.ports(json!({"w": 1})), [0, 2]);
        assert!(lb.ports(json!({"s": "a"})).is_empty(), "no selector has these keys");
        assert!(lb.ports(json!({"v": "3"})).is_empty() && lb.ports(json!({})).is_empty());
        // Two of `v`, three of `s` and `v`, two of `w`; for the control thread and one worker.
        assert_eq!((lb.stats.lb_subsets_created().value(), lb.stats.lb_subsets_active().value()), (14, 14));
        assert_eq!((lb.stats.lb_subsets_selected().value(), lb.stats.lb_subsets_fallback().value()), (24, 0));
    }

    #[test]
    fn without_a_subset_the_fallback_of_the_cluster_answers() {
        let keys = || vec![selector(&["v"], None)];
        let mut any = Lb::new(subsets(SubsetFallback::Any, keys()), versions());
        assert_eq!(any.ports(json!({"v": "9"})), [0, 1, 2, 3]);
        assert_eq!(any.ports(json!({})), [0, 1, 2, 3]);
        assert_eq!(any.stats.lb_subsets_fallback().value(), 16);
        let default_subset = json!({"s": "a"}).as_object().unwrap().clone();
        let with = |default_subset| SubsetConfig { default_subset, ..subsets(SubsetFallback::Default, keys()) };
        assert_eq!(Lb::new(with(default_subset), versions()).ports(json!({"v": "9"})), [0, 2]);
        let nobody = json!({"s": "z"}).as_object().unwrap().clone();
        assert!(Lb::new(with(nobody.clone()), versions()).ports(json!({"v": "9"})).is_empty());
        let mut panic = Lb::new(SubsetConfig { panic_mode_any: true, ..with(nobody) }, versions());
        assert_eq!(panic.ports(json!({"v": "9"})), [0, 1, 2, 3]);
        assert_eq!(
            (panic.stats.lb_subsets_fallback_panic().value(), panic.stats.lb_subsets_fallback().value()),
            (8, 0)
        );
    }

    #[test]
    fn a_selector_has_its_own_fallback() {
        use SelectorFallback::{Keys, To};
        let selectors = vec![
            selector(&["v"], Some(To(SubsetFallback::None))),
            selector(&["s"], Some(To(SubsetFallback::Any))),
            selector(&["w"], Some(To(SubsetFallback::Default))),
            selector(&["s", "v"], Some(Keys(["v".into()].into()))),
        ];
        let default_subset = json!({"v": "2"}).as_object().unwrap().clone();
        let config = SubsetConfig { default_subset, ..subsets(SubsetFallback::Any, selectors) };
        let mut lb = Lb::new(config, versions());
        assert!(lb.ports(json!({"v": "9"})).is_empty());
        assert_eq!(lb.ports(json!({"s": "z"})), [0, 1, 2, 3]);
        assert_eq!(lb.ports(json!({"w": 9})), [2, 3]);
        assert_eq!(lb.ports(json!({"s": "z", "v": "1"})), [0, 1]);
        assert!(lb.ports(json!({"s": "z", "v": "9"})).is_empty(), "the fallback of the fewer keys");
        assert_eq!(lb.stats.lb_subsets_fallback().value(), 0);
    }

    #[test]
    fn lists_of_a_host_stand_for_each_of_their_values() {
        let hosts = || set(&[json!({"v": ["1", "2"], "s": ["a", "b"]}), json!({"v": "2", "s": "a"})]);
        let config = |list_as_any| SubsetConfig {
            list_as_any,
            ..subsets(SubsetFallback::None, vec![selector(&["v"], None), selector(&["s", "v"], None)])
        };
        let mut lb = Lb::new(config(true), hosts());
        assert_eq!(lb.ports(json!({"v": "2"})), [0, 1]);
        assert_eq!(lb.ports(json!({"v": "1", "s": "b"})), [0]);
        let mut lb = Lb::new(config(false), hosts());
        assert_eq!(lb.ports(json!({"v": "2"})), [1]);
        assert_eq!(lb.ports(json!({"v": ["1", "2"]})), [0]);
    }

    #[test]
    fn combinations_of_lists_are_bounded() {
        let many: Vec<_> = (0..100).collect();
        let labels = json!({"a": many, "b": many, "c": many});
        let keys = ["a".into(), "b".into(), "c".into()];
        assert_eq!(combinations(&labelled(1, labels), &keys, true).len(), MAX_COMBINATIONS);
    }

    #[test]
    fn a_list_of_fallbacks_is_tried_in_turn() {
        let config =
            SubsetConfig { fallback_list: true, ..subsets(SubsetFallback::None, vec![selector(&["v"], None)]) };
        let mut lb = Lb::new(config, versions());
        assert_eq!(lb.ports(json!({"fallback_list": [{"v": "9"}, {"v": "2"}, {"v": "1"}]})), [2, 3]);
        assert_eq!(lb.ports(json!({"v": "2", "fallback_list": [{"v": "1"}]})), [0, 1], "what the list says wins");
        assert_eq!(lb.ports(json!({"v": "2", "fallback_list": [{}]})), [2, 3]);
        assert_eq!(lb.ports(json!({"v": "2", "fallback_list": []})), [2, 3]);
        assert!(lb.ports(json!({"fallback_list": [{"v": "9"}]})).is_empty());
    }

    #[test]
    fn redundant_keys_are_passed_over_where_that_is_allowed() {
        let selectors = || vec![selector(&["s", "v"], None), selector(&["v"], None)];
        let mut lb = Lb::new(subsets(SubsetFallback::None, selectors()), versions());
        assert!(lb.ports(json!({"v": "1", "x": "y"})).is_empty());
        let config = SubsetConfig { allow_redundant_keys: true, ..subsets(SubsetFallback::None, selectors()) };
        let mut lb = Lb::new(config, versions());
        assert_eq!(lb.ports(json!({"v": "1", "x": "y"})), [0, 1]);
        assert_eq!(lb.ports(json!({"v": "1", "s": "b", "x": "y"})), [1]);
    }

    #[test]
    fn the_host_of_a_single_host_subset_serves_whatever_its_health() {
        let mut own = selector(&["v"], None);
        own.single_host_per_subset = true;
        let set = versions();
        set.host_sets[0].hosts[2].set_eds_health(HealthStatus::Unhealthy);
        let mut lb = Lb::new(subsets(SubsetFallback::None, vec![own]), set.refreshed());
        assert_eq!((lb.ports(json!({"v": "1"})), lb.ports(json!({"v": "2"}))), (vec![0], vec![2]));
        let gauge = lb.stats.registry().gauge_value("cluster.a.lb_subsets_single_host_per_subset_duplicate");
        assert_eq!(gauge, Some(2));
    }

    #[test]
    fn health_and_panic_count_within_a_subset() {
        let set = versions();
        set.host_sets[0].hosts[0].set_eds_health(HealthStatus::Unhealthy);
        let mut lb = Lb::new(subsets(SubsetFallback::None, vec![selector(&["v"], None)]), set.refreshed());
        assert_eq!(lb.ports(json!({"v": "1"})), [1]);
        assert_eq!(lb.stats.lb_healthy_panic().value(), 0);
        lb.set.host_sets[0].hosts[1].set_eds_health(HealthStatus::Unhealthy);
        let refreshed = lb.set.refreshed();
        lb.update(refreshed);
        assert_eq!(lb.ports(json!({"v": "1"})), [0, 1]);
        assert_eq!(lb.stats.lb_healthy_panic().value(), 8);
    }

    #[test]
    fn subsets_come_and_go_with_their_hosts_and_keep_their_turns() {
        let mut lb = Lb::new(subsets(SubsetFallback::None, vec![selector(&["v"], None)]), versions());
        let one = json!({"v": "1"});
        let context = LbContext { metadata_match: one.as_object(), ..LbContext::default() };
        let first = lb.pick(&context).unwrap();
        let mut hosts: Vec<_> = lb.set.hosts().take(2).cloned().collect();
        hosts.push(labelled(7, json!({"v": "3"})));
        lb.update(set_of(hosts));
        assert_ne!(lb.pick(&context), Some(first));
        assert_eq!(lb.ports(json!({"v": "3"})), [7]);
        assert!(lb.ports(json!({"v": "2"})).is_empty());
        let counts = [lb.stats.lb_subsets_created().value(), lb.stats.lb_subsets_removed().value()];
        assert_eq!((counts, lb.stats.lb_subsets_active().value()), ([6, 2], 4));
        lb.tables.release(&lb.stats);
        assert_eq!((lb.stats.lb_subsets_removed().value(), lb.stats.lb_subsets_active().value()), (6, 0));
    }

    #[test]
    fn dynamic_metadata_wins_over_the_route() {
        let selectors = vec![selector(&["v"], None), selector(&["s", "v"], None)];
        let mut lb = Lb::new(subsets(SubsetFallback::None, selectors), versions());
        let (route, dynamic) = (json!({"v": "1"}), json!({"v": "2", "s": "a"}));
        let mut context = LbContext { metadata_match: route.as_object(), ..LbContext::default() };
        context.dynamic_metadata = dynamic.as_object();
        assert_eq!(lb.pick(&context), Some(2));
        context.metadata_match = None;
        assert_eq!(lb.pick(&context), Some(2));
    }

    #[test]
    fn localities_keep_or_scale_their_weights() {
        let zone = |zone: &str| Arc::new(nuncio_config::cluster::Locality { zone: zone.into(), ..Default::default() });
        let group = |name: &str, weight, hosts: Vec<(u16, &str)>| {
            let hosts = hosts.into_iter().map(|(port, version)| {
                Arc::new(Host::new(HostDescription {
                    address: Address::Ip(([127, 0, 0, 1], port).into()),
                    additional_addresses: Vec::new(),
                    hostname: "".into(),
                    locality: zone(name),
                    priority: 0,
                    weight: 1,
                    health: HealthStatus::Unknown,
                    metadata: Some(Arc::new(json!({"envoy.lb": {"v": version}}))),
                    transport_socket_match: None,
                    own_health_check: None,
                }))
            });
            HostGroup { priority: 0, locality: zone(name), weight: Some(weight), hosts: hosts.collect() }
        };
        let set = || {
            let groups =
                vec![group("a", 10, vec![(0, "1")]), group("b", 10, vec![(1, "1"), (2, "2"), (3, "2"), (4, "2")])];
            HostGroups { groups, overprovisioning_factor: 140, weighted_health: false, grouping: Grouping::Weighted }
                .priority_set()
        };
        let shares = |locality_weight_aware, scale_locality_weight| {
            let config = SubsetConfig {
                locality_weight_aware,
                scale_locality_weight,
                ..subsets(SubsetFallback::None, vec![selector(&["v"], None)])
            };
            let mut lb = Lb::new(config, set());
            let criteria = json!({"v": "1"});
            let context = LbContext { metadata_match: criteria.as_object(), ..LbContext::default() };
            (0..1300).filter(|_| lb.pick(&context) == Some(0)).count()
        };
        assert_eq!((shares(false, false), shares(true, false)), (650, 650));
        // 10 * 1 / 4, rounded: 10 against 3.
        assert_eq!(shares(true, true), 1000);
    }

    #[test]
    fn rq_active_of_hosts_counts_within_subsets_for_least_request() {
        let lb_policy = nuncio_config::cluster::LbPolicy::LeastRequest {
            choice_count: 64,
            active_request_bias: 1.0,
            full_scan: false,
        };
        let mut lb = Lb::new(subsets(SubsetFallback::None, vec![selector(&["v"], None)]), versions());
        lb.config.lb_policy = lb_policy;
        let set = set_of(lb.set.hosts().cloned().collect());
        set.host_sets[0].hosts[0].stats.rq_active.store(5, Relaxed);
        lb.update(set);
        assert_eq!(lb.ports(json!({"v": "1"})), [1]);
    }
}
