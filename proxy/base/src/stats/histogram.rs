//! Log-linear histograms with two significant digits: the buckets of circllhist, so that the percentiles equal Envoy's.
//!
//! Each worker records into a [`ShardHistogram`]; the flush moves what is new into the interval and the cumulative
//! [`LogLinear`]. Values are unsigned integers, as everywhere in Envoy's data path.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::block::bump;

/// Decades of a u64: 10^0 to 10^19.
const DECADES: usize = 20;
/// Buckets per decade: 10..=99 in the first two digits.
const PER_DECADE: usize = 90;

/// Bucket 0 holds zeros; bucket 1 + decade * 90 + (two digits - 10) holds the rest.
fn bucket_of(value: u64) -> u16 {
    if value == 0 {
        return 0;
    }
    let decade = value.ilog10();
    let digits = if decade == 0 { value * 10 } else { value / 10u64.pow(decade - 1) };
    (1 + decade as usize * PER_DECADE + (digits as usize - 10)) as u16
}

/// What one thread recorded. Decades are allocated when first needed (720 bytes each).
#[derive(Default)]
pub(super) struct ShardHistogram {
    zeros: AtomicU64,
    decades: [OnceLock<Box<Decade>>; DECADES],
}

struct Decade([AtomicU64; PER_DECADE]);

impl ShardHistogram {
    #[inline]
    pub(super) fn record(&self, shard: usize, value: u64) {
        let bucket = usize::from(bucket_of(value));
        let atom = match bucket.checked_sub(1) {
            None => &self.zeros,
            Some(bucket) => {
                let decade = self.decades[bucket / PER_DECADE]
                    .get_or_init(|| Box::new(Decade(std::array::from_fn(|_| AtomicU64::new(0)))));
                &decade.0[bucket % PER_DECADE]
            }
        };
        bump(shard, atom, 1);
    }

    fn for_each(&self, mut visit: impl FnMut(u16, u64)) {
        let zeros = self.zeros.load(Relaxed);
        if zeros != 0 {
            visit(0, zeros);
        }
        for (decade, cells) in self.decades.iter().enumerate() {
            let Some(cells) = cells.get() else { continue };
            for (digit, cell) in cells.0.iter().enumerate() {
                let count = cell.load(Relaxed);
                if count != 0 {
                    visit((1 + decade * PER_DECADE + digit) as u16, count);
                }
            }
        }
    }
}

/// A sparse log-linear histogram: bucket and count, ascending.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogLinear {
    buckets: Vec<(u16, u64)>,
}

impl LogLinear {
    /// Adds `count` samples of `value`.
    pub fn insert(&mut self, value: u64, count: u64) {
        self.add_bucket(bucket_of(value), count);
    }

    fn add_bucket(&mut self, bucket: u16, count: u64) {
        match self.buckets.binary_search_by_key(&bucket, |entry| entry.0) {
            Ok(at) => self.buckets[at].1 += count,
            Err(at) => self.buckets.insert(at, (bucket, count)),
        }
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Number of samples.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|entry| entry.1).sum()
    }
}

/// Interval and cumulative state of one histogram.
#[derive(Clone, Debug, Default)]
pub struct HistogramData {
    /// What was recorded between the last two merges.
    pub interval: LogLinear,
    /// Everything up to the last merge.
    pub cumulative: LogLinear,
}

/// The merged state: cumulative and interval as of the last merge.
#[derive(Default)]
pub(super) struct Merged {
    pub(super) data: HistogramData,
}

impl Merged {
    pub(super) fn merge<'a>(&mut self, shards: impl Iterator<Item = &'a ShardHistogram>) {
        let mut total = LogLinear::default();
        for shard in shards {
            shard.for_each(|bucket, count| total.add_bucket(bucket, count));
        }
        let mut interval = LogLinear::default();
        let mut before = self.data.cumulative.buckets.iter().peekable();
        for &(bucket, count) in &total.buckets {
            while before.next_if(|entry| entry.0 < bucket).is_some() {}
            let old = before.next_if(|entry| entry.0 == bucket).map_or(0, |entry| entry.1);
            if count > old {
                interval.buckets.push((bucket, count - old));
            }
        }
        self.data = HistogramData { interval, cumulative: total };
    }
}
