//! The registry: every family, found again by prefix while it lives, and listed for output.
//!
//! It holds weak references only: when the last handle of a family goes, so do its stats. The lock guards creation, removal
//! and listing; counting never takes it.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustc_hash::FxHashMap;

use super::block::{self, Block, Counter, FamilyDesc, Gauge, Histogram, Unit};
use super::code::CodeBody;
use super::histogram::HistogramData;
use super::tags::TagExtractor;

/// Says whether a stat's full name is meant.
pub type NameMatcher = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// How stats are shown and which exist (`stats_config` of the bootstrap).
#[derive(Default)]
pub struct StatsConfig {
    /// Says whether a stat of this name exists; all do when absent (`stats_matcher`).
    pub matcher: Option<NameMatcher>,
    /// What is shown as tags (`stats_tags`, `use_all_default_tags`).
    pub tags: TagExtractor,
    /// Bucket bounds for the histograms that the matcher means, ascending; the first entry that fits counts
    /// (`histogram_bucket_settings`). The others have [`DEFAULT_BUCKETS`].
    pub histogram_buckets: Vec<(NameMatcher, Vec<f64>)>,
}

/// Envoy's bucket bounds, for milliseconds.
pub const DEFAULT_BUCKETS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0, 30000.0, 60000.0, 300000.0,
    600000.0, 1800000.0, 3600000.0,
];

impl StatsConfig {
    /// Bucket bounds of the histogram `name`.
    pub fn buckets(&self, name: &str) -> &[f64] {
        let found = self.histogram_buckets.iter().find(|(matcher, _)| matcher(name));
        found.map_or(&DEFAULT_BUCKETS, |(_, bounds)| bounds)
    }
}

impl fmt::Debug for StatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatsConfig").field("matcher", &self.matcher.is_some()).finish_non_exhaustive()
    }
}

/// The stats of one server. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    shards: usize,
    config: StatsConfig,
    maps: Mutex<Maps>,
}

#[derive(Default)]
struct Maps {
    /// By family (address of its description) and prefix.
    blocks: FxHashMap<(usize, Arc<str>), Weak<Block>>,
    codes: FxHashMap<Arc<str>, Weak<CodeBody>>,
    texts: FxHashMap<Arc<str>, Weak<TextBody>>,
    /// What goes before the configured matcher, by prefix.
    matchers: FxHashMap<Box<str>, Arc<NameMatcher>>,
}

impl Maps {
    /// The matcher for names that begin with `prefix`, which ends with a dot: that of its longest part that has one.
    fn matcher_of(&self, prefix: &str) -> Option<Arc<NameMatcher>> {
        if self.matchers.is_empty() {
            return None;
        }
        let parts = prefix.match_indices('.').rev().map(|(at, _)| &prefix[..=at]);
        parts.filter_map(|part| self.matchers.get(part)).next().cloned()
    }
}

struct TextBody {
    name: Arc<str>,
    value: Mutex<Option<String>>,
    excluded: bool,
    registry: Weak<Inner>,
}

/// A stat whose value is text. Set rarely, by the control thread.
#[derive(Clone)]
pub struct TextReadout {
    body: Arc<TextBody>,
}

impl TextReadout {
    /// Replaces the text.
    pub fn set(&self, text: &str) {
        *lock(&self.body.value) = Some(text.to_owned());
    }

    /// The text; empty if never set.
    pub fn value(&self) -> String {
        lock(&self.body.value).clone().unwrap_or_default()
    }
}

/// One stat's value at the time of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatValue {
    /// The value.
    pub value: u64,
    /// Whether it was ever counted or set.
    pub used: bool,
}

/// A stat's full name: its family's prefix, shared by the whole family, and its suffix.
#[derive(Clone, Debug)]
pub struct StatName {
    prefix: Arc<str>,
    suffix: Cow<'static, str>,
}

impl StatName {
    /// A name in two parts, either of which may be empty.
    pub fn new(prefix: Arc<str>, suffix: impl Into<Cow<'static, str>>) -> Self {
        Self { prefix, suffix: suffix.into() }
    }

    /// Order by token: as if the dots stood before every other character.
    pub fn cmp_tokens(&self, other: &Self) -> Ordering {
        let key = |byte: u8| if byte == b'.' { 0 } else { byte };
        let mine = self.prefix.bytes().chain(self.suffix.bytes()).map(key);
        mine.cmp(other.prefix.bytes().chain(other.suffix.bytes()).map(key))
    }

    /// Makes `buffer` hold the name.
    pub fn write_to(&self, buffer: &mut String) {
        buffer.clear();
        buffer.push_str(&self.prefix);
        buffer.push_str(&self.suffix);
    }
}

impl fmt::Display for StatName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prefix)?;
        f.write_str(&self.suffix)
    }
}

impl Ord for StatName {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.prefix, &other.prefix) {
            return self.suffix.cmp(&other.suffix);
        }
        let (mine, theirs) = (self.prefix.as_bytes(), other.prefix.as_bytes());
        let common = mine.len().min(theirs.len());
        let (mine, mine_rest) = mine.split_at(common);
        let (theirs, theirs_rest) = theirs.split_at(common);
        // One of the rests is empty.
        mine.cmp(theirs).then_with(|| {
            let (mine, theirs) =
                (mine_rest.iter().chain(self.suffix.as_bytes()), theirs_rest.iter().chain(other.suffix.as_bytes()));
            mine.cmp(theirs)
        })
    }
}

impl PartialOrd for StatName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for StatName {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for StatName {}

/// One histogram at the time of a snapshot.
#[derive(Clone, Debug)]
pub struct HistogramSnapshot {
    /// Full name.
    pub name: StatName,
    /// Unit of the recorded values.
    pub unit: Unit,
    /// Interval and cumulative data; empty if nothing was merged yet.
    pub data: HistogramData,
    /// Whether anything was ever merged.
    pub used: bool,
}

/// All stats at one moment, each list sorted by name.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counters.
    pub counters: Vec<(StatName, StatValue)>,
    /// Gauges.
    pub gauges: Vec<(StatName, StatValue)>,
    /// Text readouts with their used flag.
    pub text_readouts: Vec<(StatName, String, bool)>,
    /// Histograms.
    pub histograms: Vec<HistogramSnapshot>,
    /// Numbers that are kept elsewhere, which the registry leaves empty: those of single hosts.
    pub hosts: Vec<HostMetric>,
}

/// A number of one host of a cluster. It is shown whether or not it was ever used, and never reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMetric {
    /// Full name.
    pub name: String,
    /// The name without what the tags say.
    pub family: &'static str,
    /// Tags: name and value.
    pub tags: Vec<(&'static str, String)>,
    /// It is a counter; else a gauge.
    pub counter: bool,
    /// Its value.
    pub value: u64,
}

impl Registry {
    /// A registry for the control thread and `workers` workers.
    pub fn new(workers: usize, config: StatsConfig) -> Self {
        Self { inner: Arc::new(Inner { shards: workers + 1, config, maps: Mutex::default() }) }
    }

    /// Number of workers that this registry has shards for.
    pub fn workers(&self) -> usize {
        self.inner.shards - 1
    }

    /// How stats are shown.
    pub fn config(&self) -> &StatsConfig {
        &self.inner.config
    }

    /// Says which stats below `prefix` exist (`cluster.a.`), whatever the configured matcher says; None takes it back. Families
    /// that are there already stay as they are.
    pub fn set_matcher(&self, prefix: &str, matcher: Option<NameMatcher>) {
        let prefix = sanitize(prefix);
        let mut maps = lock(&self.inner.maps);
        match matcher {
            Some(matcher) => drop(maps.matchers.insert((*prefix).into(), Arc::new(matcher))),
            None => drop(maps.matchers.remove(&*prefix)),
        }
    }

    /// The family `desc` under `prefix`; for [`stat_family!`](crate::stat_family).
    ///
    /// Colons in the prefix (of addresses, of names that are URLs) become underscores, and several dots at its end one, as
    /// in Envoy.
    pub fn family(&self, desc: &'static FamilyDesc, prefix: &str) -> Arc<Block> {
        let prefix = sanitize(prefix);
        let key = (std::ptr::from_ref(desc) as usize, Arc::<str>::from(&*prefix));
        let mut maps = lock(&self.inner.maps);
        if let Some(block) = maps.blocks.get(&key).and_then(Weak::upgrade) {
            return block;
        }
        let excluded = self.inner.excluded(desc, &prefix, maps.matcher_of(&prefix).as_deref());
        let block = Arc::new(Block::new(desc, key.1.clone(), self.inner.shards, excluded, Arc::downgrade(&self.inner)));
        maps.blocks.insert(key, Arc::downgrade(&block));
        block
    }

    /// A single counter by its full name. The same name gives the same counter.
    pub fn counter(&self, name: &str) -> Counter {
        Counter { block: self.family(&block::SINGLE_COUNTER, name), index: 0 }
    }

    /// A single gauge by its full name.
    pub fn gauge(&self, name: &str) -> Gauge {
        Gauge { block: self.family(&block::SINGLE_GAUGE, name), index: 0 }
    }

    /// A single histogram by its full name.
    pub fn histogram(&self, name: &str, unit: Unit) -> Histogram {
        Histogram { block: self.family(block::single_histogram(unit), name), index: 0 }
    }

    /// A text readout by its full name.
    pub fn text_readout(&self, name: &str) -> TextReadout {
        let mut maps = lock(&self.inner.maps);
        if let Some(body) = maps.texts.get(name).and_then(Weak::upgrade) {
            return TextReadout { body };
        }
        let name = Arc::<str>::from(name);
        let body = Arc::new(TextBody {
            excluded: !self.inner.wanted(&name, maps.matcher_of(&name).as_deref()),
            name: name.clone(),
            value: Mutex::default(),
            registry: Arc::downgrade(&self.inner),
        });
        maps.texts.insert(name, Arc::downgrade(&body));
        TextReadout { body }
    }

    pub(super) fn codes(&self, prefix: &str) -> Arc<CodeBody> {
        let prefix = &*sanitize(prefix);
        let mut maps = lock(&self.inner.maps);
        if let Some(body) = maps.codes.get(prefix).and_then(Weak::upgrade) {
            return body;
        }
        let prefix = Arc::<str>::from(prefix);
        let body = Arc::new(CodeBody::new(
            prefix.clone(),
            self.inner.shards,
            maps.matcher_of(&prefix),
            Arc::downgrade(&self.inner),
        ));
        maps.codes.insert(prefix, Arc::downgrade(&body));
        body
    }

    /// Closes the current histogram interval: what was recorded since the last call becomes the interval that the
    /// outputs show. Called at every stats flush (5 s by default).
    pub fn merge_histograms(&self) {
        for block in self.blocks() {
            block.merge_histograms();
        }
    }

    /// Makes every counter show zero. Gauges and histograms stay, as in Envoy.
    pub fn reset_counters(&self) {
        for block in self.blocks() {
            block.reset_counters();
        }
        for codes in self.code_bodies() {
            codes.reset();
        }
    }

    /// Value of the counter of this full name, if it exists. Slow; for tests and admin.
    pub fn counter_value(&self, name: &str) -> Option<u64> {
        find(&self.snapshot().counters, name)
    }

    /// Value of the gauge of this full name, if it exists. Slow; for tests and admin.
    pub fn gauge_value(&self, name: &str) -> Option<u64> {
        find(&self.snapshot().gauges, name)
    }

    /// All stats that exist, sorted by name.
    pub fn snapshot(&self) -> Snapshot {
        let mut out = Snapshot::default();
        let mut blocks = self.blocks();
        blocks.sort_unstable_by(|a, b| a.prefix().cmp(b.prefix()));
        for block in blocks.iter().filter(|block| block.is_shown()) {
            snapshot_block(block, &mut out);
        }
        let mut full = String::new();
        for codes in self.code_bodies() {
            codes.visit(|suffix, value| {
                let name = StatName::new(codes.prefix.clone(), suffix);
                name.write_to(&mut full);
                if self.inner.wanted(&full, codes.matcher.as_deref()) {
                    out.counters.push((name, value));
                }
            });
        }
        let texts: Vec<_> = lock(&self.inner.maps).texts.values().filter_map(Weak::upgrade).collect();
        for text in texts.iter().filter(|text| !text.excluded) {
            let value = lock(&text.value).clone();
            let used = value.is_some();
            out.text_readouts.push((StatName::new(text.name.clone(), ""), value.unwrap_or_default(), used));
        }
        // Nearly sorted already, which the stable sort makes use of.
        out.counters.sort_by(|a, b| a.0.cmp(&b.0));
        out.gauges.sort_by(|a, b| a.0.cmp(&b.0));
        out.text_readouts.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        out.histograms.sort_by(|a, b| a.name.cmp(&b.name));
        out
    }

    fn blocks(&self) -> Vec<Arc<Block>> {
        lock(&self.inner.maps).blocks.values().filter_map(Weak::upgrade).collect()
    }

    fn code_bodies(&self) -> Vec<Arc<CodeBody>> {
        lock(&self.inner.maps).codes.values().filter_map(Weak::upgrade).collect()
    }
}

fn snapshot_block(block: &Block, out: &mut Snapshot) {
    let desc = block.desc();
    let mut position = 0..;
    let mut shown = || position.next().is_none_or(|at| !block.is_excluded(at));
    for (index, suffix) in desc.counters.iter().enumerate() {
        if shown() {
            let value = StatValue { value: block.counter_value(index), used: block.counter_used(index) };
            out.counters.push((block.stat_name(suffix), value));
        }
    }
    for (index, suffix) in desc.gauges.iter().enumerate() {
        if shown() {
            let value = StatValue { value: block.gauge_value(index), used: block.gauge_used(index) };
            out.gauges.push((block.stat_name(suffix), value));
        }
    }
    for (index, (suffix, unit)) in desc.histograms.iter().enumerate() {
        if shown() {
            let data = block.with_merged(index, |merged| merged.data.clone()).unwrap_or_default();
            out.histograms.push(HistogramSnapshot {
                name: block.stat_name(suffix),
                unit: *unit,
                used: !data.cumulative.is_empty(),
                data,
            });
        }
    }
}

fn find(list: &[(StatName, StatValue)], name: &str) -> Option<u64> {
    let name = StatName::new(name.into(), "");
    list.binary_search_by(|entry| entry.0.cmp(&name)).ok().map(|at| list[at].1.value)
}

impl Inner {
    fn wanted(&self, name: &str, own: Option<&NameMatcher>) -> bool {
        own.or(self.config.matcher.as_ref()).is_none_or(|matcher| matcher(name))
    }

    /// The bits of the stats that the matcher excludes; empty when it excludes none.
    fn excluded(&self, desc: &FamilyDesc, prefix: &str, own: Option<&NameMatcher>) -> Box<[u64]> {
        if own.is_none() && self.config.matcher.is_none() {
            return Box::default();
        }
        let suffixes = desc.counters.iter().chain(desc.gauges).chain(desc.histograms.iter().map(|(name, _)| name));
        let mut bits = vec![0u64; (desc.counters.len() + desc.gauges.len() + desc.histograms.len()).div_ceil(64)];
        for (at, suffix) in suffixes.enumerate() {
            if !self.wanted(&format!("{prefix}{suffix}"), own) {
                bits[at / 64] |= 1 << (at % 64);
            }
        }
        bits.into()
    }

    /// Removes a block that is being dropped, unless a new one took its place already.
    pub(super) fn forget(&self, block: &Block) {
        let key = (std::ptr::from_ref(block.desc()) as usize, block.prefix_arc().clone());
        let mut maps = lock(&self.maps);
        if maps.blocks.get(&key).is_some_and(|weak| weak.strong_count() == 0) {
            maps.blocks.remove(&key);
        }
    }

    pub(super) fn forget_codes(&self, prefix: &str) {
        let mut maps = lock(&self.maps);
        if maps.codes.get(prefix).is_some_and(|weak| weak.strong_count() == 0) {
            maps.codes.remove(prefix);
        }
    }
}

impl Drop for TextBody {
    fn drop(&mut self) {
        if let Some(inner) = self.registry.upgrade() {
            let mut maps = lock(&inner.maps);
            if maps.texts.get(&self.name).is_some_and(|weak| weak.strong_count() == 0) {
                maps.texts.remove(&self.name);
            }
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("shards", &self.inner.shards).finish_non_exhaustive()
    }
}

/// A prefix as Envoy shows it: no colons, one dot at the end. Names of virtual hosts stay as they are.
fn sanitize(prefix: &str) -> Cow<'_, str> {
    if prefix.starts_with("vhost.") {
        return Cow::Borrowed(prefix);
    }
    let (colon, dots) = (prefix.contains([':', '\0']), prefix.ends_with(".."));
    if !colon && !dots {
        return Cow::Borrowed(prefix);
    }
    let mut out = prefix.replace("://", "_").replace(":/", "_").replace([':', '\0'], "_");
    while out.ends_with("..") {
        out.pop();
    }
    Cow::Owned(out)
}

/// A poisoned lock means that another thread panicked between two plain map operations; the maps are whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::stat_family! {
        /// For the tests.
        struct TestStats {
            counters { a_total, dotted = "b.total" }
            gauges { active }
            histograms { time: Milliseconds }
        }
    }

    #[test]
    fn counts_of_all_shards_are_summed() {
        let registry = Registry::new(2, StatsConfig::default());
        let stats = TestStats::new(&registry, "x.");
        stats.a_total().inc();
        std::thread::scope(|scope| {
            for index in 1..=2 {
                let stats = &stats;
                scope.spawn(move || {
                    crate::worker::set_index(index);
                    stats.a_total().add(10);
                    stats.dotted().inc();
                    stats.active().inc();
                });
            }
        });
        stats.active().dec();
        assert_eq!(registry.counter_value("x.a_total"), Some(21));
        assert_eq!(registry.counter_value("x.b.total"), Some(2));
        assert_eq!(registry.gauge_value("x.active"), Some(1));
    }

    #[test]
    fn the_same_prefix_gives_the_same_stats_until_the_last_handle_goes() {
        let registry = Registry::new(1, StatsConfig::default());
        let one = TestStats::new(&registry, "x.");
        let two = TestStats::new(&registry, "x.");
        one.a_total().inc();
        two.a_total().inc();
        drop(one);
        assert_eq!(registry.counter_value("x.a_total"), Some(2));
        drop(two);
        assert_eq!(registry.counter_value("x.a_total"), None);
        assert!(lock(&registry.inner.maps).blocks.is_empty());
    }

    #[test]
    fn prefixes_are_written_as_envoy_writes_them() {
        let registry = Registry::new(1, StatsConfig::default());
        for (prefix, name) in [
            ("cluster.a://b:/c:d.", "cluster.a_b_c_d.a_total"),
            ("cluster..dot..", "cluster..dot.a_total"),
            ("listener.[::1]:80.", "listener.[__1]_80.a_total"),
            ("listener./run/u.sock.", "listener./run/u.sock.a_total"),
        ] {
            let stats = TestStats::new(&registry, prefix);
            stats.a_total().inc();
            assert_eq!(registry.counter_value(name), Some(1), "{prefix}");
        }
    }

    #[test]
    fn a_gauge_that_is_back_at_zero_is_still_used() {
        let registry = Registry::new(1, StatsConfig::default());
        let stats = TestStats::new(&registry, "x.");
        assert!(!registry.snapshot().gauges[0].1.used);
        stats.active().inc();
        stats.active().dec();
        assert_eq!(registry.snapshot().gauges[0].1, StatValue { value: 0, used: true });
        stats.active().set(u64::MAX);
        assert_eq!(registry.gauge_value("x.active"), Some(u64::MAX));
    }

    #[test]
    fn a_reset_shows_zero_and_keeps_the_used_flag() {
        let registry = Registry::new(1, StatsConfig::default());
        let counter = registry.counter("c");
        let codes = crate::stats::CodeStats::new(&registry, "cluster.a.");
        counter.add(5);
        codes.count(200);
        registry.reset_counters();
        let snapshot = registry.snapshot();
        assert!(snapshot.counters.iter().all(|(_, value)| *value == StatValue { value: 0, used: true }));
        counter.inc();
        codes.count(200);
        assert_eq!(registry.counter_value("c"), Some(1));
        assert_eq!(registry.counter_value("cluster.a.upstream_rq_2xx"), Some(1));
    }

    #[test]
    fn codes_appear_when_first_counted() {
        let registry = Registry::new(1, StatsConfig::default());
        let codes = crate::stats::CodeStats::new(&registry, "cluster.a.");
        assert!(registry.snapshot().counters.is_empty());
        codes.count(503);
        codes.count(200);
        codes.count(204);
        codes.count(999);
        let names: Vec<_> = registry.snapshot().counters.iter().map(|(n, v)| (n.to_string(), v.value)).collect();
        let expected = [
            ("cluster.a.upstream_rq_200", 1),
            ("cluster.a.upstream_rq_204", 1),
            ("cluster.a.upstream_rq_2xx", 2),
            ("cluster.a.upstream_rq_503", 1),
            ("cluster.a.upstream_rq_5xx", 1),
            ("cluster.a.upstream_rq_completed", 4),
            ("cluster.a.upstream_rq_unknown", 1),
        ];
        assert_eq!(names, expected.map(|(n, v)| (n.to_owned(), v)));
    }

    #[test]
    fn excluded_stats_do_not_appear() {
        let config =
            StatsConfig { matcher: Some(Box::new(|name| !name.ends_with("active"))), ..StatsConfig::default() };
        let registry = Registry::new(1, config);
        let stats = TestStats::new(&registry, "x.");
        stats.active().inc();
        stats.a_total().inc();
        let snapshot = registry.snapshot();
        assert!(snapshot.gauges.is_empty());
        assert_eq!(snapshot.counters.len(), 2);
    }

    #[test]
    fn a_merge_closes_the_interval() {
        let registry = Registry::new(1, StatsConfig::default());
        let stats = TestStats::new(&registry, "x.");
        stats.time().record(0);
        stats.time().record(15);
        assert!(!registry.snapshot().histograms[0].used);
        registry.merge_histograms();
        stats.time().record(15);
        registry.merge_histograms();
        let histogram = registry.snapshot().histograms.remove(0);
        assert_eq!((histogram.data.interval.count(), histogram.data.cumulative.count()), (1, 3));
    }
}
