//! One family's memory, and the handles that count in it.
//!
//! A block holds one shard per thread (control thread and workers); a shard is allocated when its thread first counts
//! there, so ten thousand idle clusters cost almost nothing. Layout of a shard: counters, gauges, then one "used" bit per
//! gauge. Shards start on a cache line of their own, so that workers never share one.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::histogram::{Merged, ShardHistogram};
use super::registry::{Inner, StatName};
use crate::worker;

/// What a histogram's values mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// No unit.
    Unspecified,
    /// Bytes.
    Bytes,
    /// Microseconds.
    Microseconds,
    /// Milliseconds.
    Milliseconds,
    /// Parts of a million of one ("percent scale"): shown divided by 1,000,000.
    Percent,
}

/// The static part of a family: the suffixes of its stats.
#[derive(Debug)]
pub struct FamilyDesc {
    /// Suffixes of the counters.
    pub counters: &'static [&'static str],
    /// Suffixes of the gauges.
    pub gauges: &'static [&'static str],
    /// Suffixes and units of the histograms.
    pub histograms: &'static [(&'static str, Unit)],
    /// Whether it is shown only once it was used.
    pub when_used: bool,
}

/// A family with a single stat whose suffix is empty (the prefix is the whole name).
pub(super) static SINGLE_COUNTER: FamilyDesc =
    FamilyDesc { counters: &[""], gauges: &[], histograms: &[], when_used: false };
/// As [`SINGLE_COUNTER`], for a gauge.
pub(super) static SINGLE_GAUGE: FamilyDesc =
    FamilyDesc { counters: &[], gauges: &[""], histograms: &[], when_used: false };
/// As [`SINGLE_COUNTER`], for histograms of each unit.
pub(super) fn single_histogram(unit: Unit) -> &'static FamilyDesc {
    const fn single(histograms: &'static [(&'static str, Unit)]) -> FamilyDesc {
        FamilyDesc { counters: &[], gauges: &[], histograms, when_used: false }
    }
    static UNSPECIFIED: FamilyDesc = single(&[("", Unit::Unspecified)]);
    static BYTES: FamilyDesc = single(&[("", Unit::Bytes)]);
    static MICROS: FamilyDesc = single(&[("", Unit::Microseconds)]);
    static MILLIS: FamilyDesc = single(&[("", Unit::Milliseconds)]);
    static PERCENT: FamilyDesc = single(&[("", Unit::Percent)]);
    match unit {
        Unit::Unspecified => &UNSPECIFIED,
        Unit::Bytes => &BYTES,
        Unit::Microseconds => &MICROS,
        Unit::Milliseconds => &MILLIS,
        Unit::Percent => &PERCENT,
    }
}

/// Eight cells on one cache line.
#[derive(Default)]
#[repr(align(64))]
struct Line([AtomicU64; 8]);

/// One thread's cells of one block.
#[derive(Default)]
struct Shard(OnceLock<Box<[Line]>>);

impl Shard {
    #[inline]
    fn cells(&self, cells: usize) -> &[Line] {
        self.0.get_or_init(|| std::iter::repeat_with(Line::default).take(cells.div_ceil(8)).collect())
    }

    #[inline]
    fn peek(&self, cell: usize) -> u64 {
        self.0.get().map_or(0, |lines| lines[cell / 8].0[cell % 8].load(Relaxed))
    }
}

/// The memory of one family under one prefix. Made by [`stat_family!`](crate::stat_family).
pub struct Block {
    desc: &'static FamilyDesc,
    prefix: Arc<str>,
    shards: Box<[Shard]>,
    /// What the counters showed at the last reset; absent until then.
    baseline: OnceLock<Box<[AtomicU64]>>,
    /// Per histogram: per shard, then the merged state. Absent until the first record.
    histograms: Box<[HistogramCell]>,
    /// One bit per stat (counters, gauges, histograms in this order) that the stats matcher excludes; empty if none is.
    excluded: Box<[u64]>,
    registry: Weak<Inner>,
}

#[derive(Default)]
struct HistogramCell(OnceLock<Box<HistogramBody>>);

struct HistogramBody {
    shards: Box<[OnceLock<Box<ShardHistogram>>]>,
    merged: Mutex<Merged>,
}

impl Block {
    pub(super) fn new(
        desc: &'static FamilyDesc,
        prefix: Arc<str>,
        shards: usize,
        excluded: Box<[u64]>,
        registry: Weak<Inner>,
    ) -> Self {
        Self {
            desc,
            prefix,
            shards: std::iter::repeat_with(Shard::default).take(shards).collect(),
            baseline: OnceLock::new(),
            histograms: std::iter::repeat_with(HistogramCell::default).take(desc.histograms.len()).collect(),
            excluded,
            registry,
        }
    }

    /// The family's static part.
    pub fn desc(&self) -> &'static FamilyDesc {
        self.desc
    }

    /// What stands before each suffix.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn prefix_arc(&self) -> &Arc<str> {
        &self.prefix
    }

    /// The counter at `index` of the family.
    #[inline]
    pub fn counter(&self, index: usize) -> CounterRef<'_> {
        debug_assert!(index < self.desc.counters.len());
        CounterRef { block: self, index }
    }

    /// The gauge at `index` of the family.
    #[inline]
    pub fn gauge(&self, index: usize) -> GaugeRef<'_> {
        debug_assert!(index < self.desc.gauges.len());
        GaugeRef { block: self, index }
    }

    /// The histogram at `index` of the family.
    #[inline]
    pub fn histogram(&self, index: usize) -> HistogramRef<'_> {
        debug_assert!(index < self.desc.histograms.len());
        HistogramRef { block: self, index }
    }

    pub(super) fn stat_name(&self, suffix: &'static str) -> StatName {
        StatName::new(self.prefix.clone(), suffix)
    }

    fn cells(&self) -> usize {
        let gauges = self.desc.gauges.len();
        self.desc.counters.len() + gauges + gauges.div_ceil(64)
    }

    #[inline]
    fn own_shard(&self) -> usize {
        let index = worker::index();
        if index < self.shards.len() { index } else { worker::CONTROL }
    }

    #[inline]
    fn add(&self, cell: usize, amount: u64) {
        let shard = self.own_shard();
        let lines = self.shards[shard].cells(self.cells());
        let atom = &lines[cell / 8].0[cell % 8];
        bump(shard, atom, amount);
    }

    fn sum(&self, cell: usize) -> u64 {
        self.shards.iter().fold(0u64, |sum, shard| sum.wrapping_add(shard.peek(cell)))
    }

    #[inline]
    fn mark_gauge(&self, gauge: usize) {
        let shard = self.own_shard();
        let cell = self.desc.counters.len() + self.desc.gauges.len() + gauge / 64;
        let atom = &self.shards[shard].cells(self.cells())[cell / 8].0[cell % 8];
        let bit = 1u64 << (gauge % 64);
        if atom.load(Relaxed) & bit == 0 {
            atom.fetch_or(bit, Relaxed);
        }
    }

    /// Value since the last reset.
    pub(super) fn counter_value(&self, index: usize) -> u64 {
        let base = self.baseline.get().map_or(0, |base| base[index].load(Relaxed));
        self.sum(index).wrapping_sub(base)
    }

    /// From now on the family is shown.
    pub fn appear(&self) {
        self.shards[self.own_shard()].cells(self.cells().max(1));
    }

    /// Whether the family is shown.
    pub(super) fn is_shown(&self) -> bool {
        !self.desc.when_used
            || self.shards.iter().any(|shard| shard.0.get().is_some())
            || self.histograms.iter().any(|histogram| histogram.0.get().is_some())
    }

    /// Whether the counter was ever incremented; a reset does not clear this.
    pub(super) fn counter_used(&self, index: usize) -> bool {
        self.sum(index) != 0
    }

    pub(super) fn gauge_value(&self, index: usize) -> u64 {
        self.sum(self.desc.counters.len() + index)
    }

    /// Whether the gauge was ever set or changed.
    pub(super) fn gauge_used(&self, index: usize) -> bool {
        let cell = self.desc.counters.len() + self.desc.gauges.len() + index / 64;
        self.shards.iter().any(|shard| shard.peek(cell) & (1 << (index % 64)) != 0)
    }

    pub(super) fn reset_counters(&self) {
        let counters = self.desc.counters.len();
        if counters == 0 || self.shards.iter().all(|shard| shard.0.get().is_none()) {
            return;
        }
        let base = self.baseline.get_or_init(|| (0..counters).map(|_| AtomicU64::new(0)).collect());
        for (index, atom) in base.iter().enumerate() {
            atom.store(self.sum(index), Relaxed);
        }
    }

    pub(super) fn is_excluded(&self, position: usize) -> bool {
        self.excluded.get(position / 64).is_some_and(|bits| bits & (1 << (position % 64)) != 0)
    }

    /// Moves what the shards recorded since the last merge into the interval and cumulative histograms.
    pub(super) fn merge_histograms(&self) {
        for cell in &self.histograms {
            let Some(body) = cell.0.get() else { continue };
            let mut merged = body.merged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            merged.merge(body.shards.iter().filter_map(|shard| shard.get().map(|boxed| &**boxed)));
        }
    }

    /// The merged state of a histogram, if it was ever recorded and merged.
    pub(super) fn with_merged<R>(&self, index: usize, read: impl FnOnce(&Merged) -> R) -> Option<R> {
        let body = self.histograms[index].0.get()?;
        let merged = body.merged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Some(read(&merged))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(inner) = self.registry.upgrade() {
            inner.forget(self);
        }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Adds to a cell of `shard`. A worker is the only writer of its shard, so a load and a store do without the bus lock
/// of a read-modify-write; shard 0 may have several writers (every thread that is no worker).
#[inline]
pub(super) fn bump(shard: usize, atom: &AtomicU64, amount: u64) {
    if shard == worker::CONTROL {
        atom.fetch_add(amount, Relaxed);
    } else {
        atom.store(atom.load(Relaxed).wrapping_add(amount), Relaxed);
    }
}

/// A counter of a family, borrowed for counting.
#[derive(Clone, Copy)]
pub struct CounterRef<'a> {
    block: &'a Block,
    index: usize,
}

impl CounterRef<'_> {
    /// Adds one.
    #[inline]
    pub fn inc(self) {
        self.add(1);
    }

    /// Adds `amount`.
    #[inline]
    pub fn add(self, amount: u64) {
        self.block.add(self.index, amount);
    }

    /// The value over all shards; for output and tests, not for the request path.
    pub fn value(self) -> u64 {
        self.block.counter_value(self.index)
    }
}

/// A gauge of a family, borrowed for counting.
#[derive(Clone, Copy)]
pub struct GaugeRef<'a> {
    block: &'a Block,
    index: usize,
}

impl GaugeRef<'_> {
    /// Adds one.
    #[inline]
    pub fn inc(self) {
        self.add(1);
    }

    /// Subtracts one; may run on another worker than the `inc` did.
    #[inline]
    pub fn dec(self) {
        self.sub(1);
    }

    /// Adds `amount`.
    #[inline]
    pub fn add(self, amount: u64) {
        self.block.add(self.block.desc.counters.len() + self.index, amount);
        self.block.mark_gauge(self.index);
    }

    /// Subtracts `amount`.
    #[inline]
    pub fn sub(self, amount: u64) {
        self.add(amount.wrapping_neg());
    }

    /// Makes the sum over all shards `value`. A gauge that is set should be set by one thread only.
    pub fn set(self, value: u64) {
        self.add(value.wrapping_sub(self.value()));
    }

    /// The value over all shards; for output and tests, not for the request path.
    pub fn value(self) -> u64 {
        self.block.gauge_value(self.index)
    }
}

/// A histogram of a family, borrowed for recording.
#[derive(Clone, Copy)]
pub struct HistogramRef<'a> {
    block: &'a Block,
    index: usize,
}

impl HistogramRef<'_> {
    /// Records one value in the histogram's unit.
    #[inline]
    pub fn record(self, value: u64) {
        let shard = self.block.own_shard();
        let body = self.block.histograms[self.index].0.get_or_init(|| {
            Box::new(HistogramBody {
                shards: std::iter::repeat_with(OnceLock::new).take(self.block.shards.len()).collect(),
                merged: Mutex::default(),
            })
        });
        body.shards[shard].get_or_init(Box::default).record(shard, value);
    }
}

/// A clonable handle to one counter, for names that are known only at run time.
#[derive(Clone, Debug)]
pub struct Counter {
    pub(super) block: Arc<Block>,
    pub(super) index: usize,
}

impl Counter {
    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `amount`.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.block.add(self.index, amount);
    }

    /// The value over all shards.
    pub fn value(&self) -> u64 {
        self.block.counter_value(self.index)
    }
}

/// A clonable handle to one gauge, for names that are known only at run time.
#[derive(Clone, Debug)]
pub struct Gauge {
    pub(super) block: Arc<Block>,
    pub(super) index: usize,
}

impl Gauge {
    fn as_ref(&self) -> GaugeRef<'_> {
        self.block.gauge(self.index)
    }

    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.as_ref().inc();
    }

    /// Subtracts one.
    #[inline]
    pub fn dec(&self) {
        self.as_ref().dec();
    }

    /// Adds `amount`.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.as_ref().add(amount);
    }

    /// Subtracts `amount`.
    #[inline]
    pub fn sub(&self, amount: u64) {
        self.as_ref().sub(amount);
    }

    /// Makes the sum over all shards `value`.
    pub fn set(&self, value: u64) {
        self.as_ref().set(value);
    }

    /// The value over all shards.
    pub fn value(&self) -> u64 {
        self.as_ref().value()
    }
}

/// A clonable handle to one histogram, for names that are known only at run time.
#[derive(Clone, Debug)]
pub struct Histogram {
    pub(super) block: Arc<Block>,
    pub(super) index: usize,
}

impl Histogram {
    /// Records one value in the histogram's unit.
    #[inline]
    pub fn record(&self, value: u64) {
        self.block.histogram(self.index).record(value);
    }
}
