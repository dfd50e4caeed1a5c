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

    /// The non-empty buckets, ascending.
    pub fn buckets(&self) -> impl Iterator<Item = Bucket> + '_ {
        self.buckets.iter().map(|&(bucket, count)| Bucket::new(bucket, count))
    }

    /// Approximate sum of the samples: each counts as the harmonic middle of its bucket.
    pub fn sum(&self) -> f64 {
        let middle = |bucket: &Bucket| {
            let upper = bucket.lower + bucket.width;
            bucket.lower + bucket.width * (bucket.lower / (bucket.lower + upper))
        };
        self.buckets().filter(|bucket| bucket.lower > 0.0).map(|bucket| middle(&bucket) * bucket.count as f64).sum()
    }

    /// Number of samples in buckets that start at or below `bound`.
    pub fn count_below(&self, bound: f64) -> u64 {
        self.buckets().take_while(|bucket| bucket.lower <= bound).map(|bucket| bucket.count).sum()
    }

    /// The values at [`QUANTILES`]; NaN if empty. The n samples of a bucket are taken to split it into n + 1 equal parts.
    pub fn quantiles(&self) -> [f64; QUANTILES.len()] {
        let total = self.count() as f64;
        let mut out = [f64::NAN; QUANTILES.len()];
        let mut buckets = self.buckets().peekable();
        let Some(mut bucket) = buckets.next() else { return out };
        let mut before = 0.0;
        for (value, quantile) in out.iter_mut().zip(QUANTILES) {
            let wanted = total * quantile;
            while before + (bucket.count as f64) < wanted
                && let Some(next) = buckets.next()
            {
                before += bucket.count as f64;
                bucket = next;
            }
            let rank = (wanted.ceil() - before).max(1.0);
            *value = bucket.lower + bucket.width * (rank / (bucket.count as f64 + 1.0));
        }
        out
    }
}

/// The quantiles that Envoy shows.
pub const QUANTILES: [f64; 10] = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0];

/// One non-empty bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// Smallest value that it holds.
    pub lower: f64,
    /// It holds values below `lower + width`; zero for the bucket of zeros.
    pub width: f64,
    /// Number of samples.
    pub count: u64,
}

impl Bucket {
    fn new(bucket: u16, count: u64) -> Self {
        let Some(index) = usize::from(bucket).checked_sub(1) else {
            return Self { lower: 0.0, width: 0.0, count };
        };
        let power = 10f64.powi((index / PER_DECADE) as i32);
        let digits = (index % PER_DECADE + 10) as f64;
        Self { lower: digits / 10.0 * power, width: power / 10.0, count }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_buckets_of_two_digits() {
        for (value, lower, width) in [
            (0, 0.0, 0.0),
            (1, 1.0, 0.1),
            (9, 9.0, 0.1),
            (10, 10.0, 1.0),
            (99, 99.0, 1.0),
            (100, 100.0, 10.0),
            (109, 100.0, 10.0),
            (110, 110.00000000000001, 10.0),
            (1999, 1900.0, 100.0),
            (u64::MAX, 1.8e19, 1e18),
        ] {
            let mut histogram = LogLinear::default();
            histogram.insert(value, 1);
            let bucket = histogram.buckets().next().expect("one bucket");
            assert_eq!((bucket.lower, bucket.width, bucket.count), (lower, width, 1), "{value}");
        }
    }

    /// Buckets, percentiles and sum as Envoy 1.40 showed them for one run of 426 requests.
    #[test]
    fn percentiles_and_sums_equal_envoys() {
        let mut connect = LogLinear::default();
        for (value, count) in [(0, 11), (1, 14), (2, 8), (3, 13), (4, 13), (5, 1)] {
            connect.insert(value, count);
        }
        let expected = [
            0.0,
            1.0266666666666666,
            2.0555555555555554,
            3.085714285714286,
            4.057142857142857,
            4.078571428571428,
            5.05,
            5.05,
            5.05,
            5.05,
        ];
        assert_eq!(connect.quantiles(), expected);

        let mut lengths = LogLinear::default();
        for (value, count) in [(0, 3), (1, 2), (2, 1), (6, 1)] {
            lengths.insert(value, count);
        }
        assert_eq!(format!("{:.30}", lengths.sum()), "10.193605359902477403011289425194");
        assert_eq!([0.5, 1.0, 5.0, 10.0].map(|bound| lengths.count_below(bound)), [3, 5, 6, 7]);
        assert!(LogLinear::default().quantiles().iter().all(|value| value.is_nan()));
    }
}
