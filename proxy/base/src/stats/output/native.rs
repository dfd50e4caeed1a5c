//! Prometheus' native histograms: buckets whose bounds are powers of a base, as Envoy makes them from its own buckets.
//!
//! The base is 2 to the power of 2^-schema. The finest schema is taken whose buckets, counted over what the recorded buckets
//! extend over, are no more than the limit. Each recorded bucket then counts where its lower bound is.

use super::Shown;
use super::prometheus_proto::{bytes, double, varint_field};
use crate::stats::{Bucket, HistogramSnapshot};

/// Schemas that are tried, the finest first.
const FINEST: i32 = 4;
const COARSEST: i32 = -4;
/// Schema of a histogram without samples.
const EMPTY: i32 = 3;
/// What is below counts as zero.
const ZERO_THRESHOLD: f64 = 0.5;

/// The message `Histogram` with at most `most` buckets, as far as there is a schema for it.
pub(super) fn native(histogram: &HistogramSnapshot, most: u32) -> Vec<u8> {
    let (shown, data) = (Shown::new(histogram), &histogram.data.cumulative);
    let mut out = Vec::new();
    if data.is_empty() {
        sint(&mut out, 5, EMPTY);
        varint_field(&mut out, 7, 0);
        span(&mut out, 0, 0);
        return out;
    }
    let scaled = |bucket: Bucket| Bucket {
        lower: bucket.lower / shown.scale,
        width: bucket.width / shown.scale,
        count: bucket.count,
    };
    let (low, high): (Vec<_>, Vec<_>) = data.buckets().map(scaled).partition(|bucket| bucket.lower < ZERO_THRESHOLD);
    let schema = (COARSEST..=FINEST).rev().find(|schema| extent(&high, *schema) <= most as usize).unwrap_or(COARSEST);
    varint_field(&mut out, 1, data.count());
    double(&mut out, 2, data.sum() / shown.scale);
    sint(&mut out, 5, schema);
    double(&mut out, 6, ZERO_THRESHOLD);
    varint_field(&mut out, 7, low.iter().map(|bucket| bucket.count).sum());

    let mut counts: Vec<(i32, u64)> = Vec::new();
    for bucket in &high {
        let index = index(bucket.lower, schema);
        match counts.last_mut() {
            Some(last) if last.0 == index => last.1 += bucket.count,
            _ => counts.push((index, bucket.count)),
        }
    }
    // The first offset is an index, further ones are gaps.
    let mut end = 0;
    for run in counts.chunk_by(|a, b| a.0 + 1 == b.0) {
        span(&mut out, run[0].0 - end, run.len() as u64);
        end = run[run.len() - 1].0 + 1;
    }
    let mut before = 0;
    for (_, count) in counts {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        varint_field(&mut out, 13, zigzag(count - before));
        before = count;
    }
    out
}

/// The bucket of `value`: its upper bound is the base to this power, and belongs to it.
fn index(value: f64, schema: i32) -> i32 {
    (value.log2() * f64::from(schema).exp2()).ceil() as i32
}

/// How many buckets of `schema` the recorded ones, which ascend, extend over.
fn extent(buckets: &[Bucket], schema: i32) -> usize {
    let (mut sum, mut covered) = (0, i32::MIN);
    for bucket in buckets {
        let last = index(bucket.lower + bucket.width, schema);
        let first = index(bucket.lower, schema).max(covered.saturating_add(1));
        sum += usize::try_from(last - first + 1).unwrap_or(0);
        covered = covered.max(last);
    }
    sum
}

fn span(out: &mut Vec<u8>, offset: i32, length: u64) {
    let mut inner = Vec::new();
    sint(&mut inner, 1, offset);
    varint_field(&mut inner, 2, length);
    bytes(out, 12, &inner);
}

fn sint(out: &mut Vec<u8>, field: u8, value: i32) {
    varint_field(out, field, zigzag(i64::from(value)));
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{HistogramData, LogLinear, StatName, Unit};

    fn histogram(values: impl IntoIterator<Item = u64>) -> HistogramSnapshot {
        let mut cumulative = LogLinear::default();
        values.into_iter().for_each(|value| cumulative.insert(value, 1));
        let data = HistogramData { interval: LogLinear::default(), cumulative };
        HistogramSnapshot { name: StatName::new("".into(), "h"), unit: Unit::Unspecified, used: true, data }
    }

    fn read(bytes: &[u8], at: &mut usize) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[*at];
            *at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }

    fn unzigzag(value: u64) -> i64 {
        (value >> 1) as i64 ^ -((value & 1) as i64)
    }

    /// Schema, count of zeros, spans, and differences of counts.
    fn decoded(message: &[u8]) -> (i64, u64, Vec<(i64, u64)>, Vec<i64>) {
        let (mut at, mut out) = (0, (99, 99, Vec::new(), Vec::new()));
        while at < message.len() {
            let key = read(message, &mut at);
            match (key >> 3, key & 7) {
                (5, 0) => out.0 = unzigzag(read(message, &mut at)),
                (7, 0) => out.1 = read(message, &mut at),
                (12, 2) => {
                    let length = read(message, &mut at) as usize;
                    let (inner, mut place) = (&message[at..at + length], 1);
                    let offset = unzigzag(read(inner, &mut place));
                    place += 1;
                    out.2.push((offset, read(inner, &mut place)));
                    at += length;
                }
                (13, 0) => out.3.push(unzigzag(read(message, &mut at))),
                (_, 0) => drop(read(message, &mut at)),
                (_, wire) => {
                    assert_eq!(wire, 1);
                    at += 8;
                }
            }
        }
        out
    }

    fn shown(values: impl IntoIterator<Item = u64>) -> (i64, u64, Vec<(i64, u64)>, Vec<i64>) {
        decoded(&native(&histogram(values), 20))
    }

    /// All of these are what Envoy 1.40 answered for request bodies of these sizes.
    #[test]
    fn buckets_are_those_of_envoy() {
        let ten = [
            0x08, 0x01, 0x11, 0x3d, 0xcf, 0xf3, 0x3c, 0xcf, 0xf3, 0x24, 0x40, 0x28, 0x08, 0x31, 0, 0, 0, 0, 0, 0, 0xe0,
            0x3f, 0x38, 0x00, 0x62, 0x04, 0x08, 0x6c, 0x10, 0x01, 0x68, 0x02,
        ];
        assert_eq!(native(&histogram([10]), 20), ten);
        assert_eq!(native(&histogram([]), 20), [0x28, 0x06, 0x38, 0x00, 0x62, 0x04, 0x08, 0x00, 0x10, 0x00]);
        assert_eq!(shown([10, 11]), (4, 0, vec![(54, 1), (1, 1)], vec![1, 0]));
        assert_eq!(shown([0, 0, 7]), (4, 2, vec![(45, 1)], vec![1]));
        assert_eq!(shown([15, 150, 1500]), (4, 0, vec![(63, 1), (52, 1), (52, 1)], vec![1, 0, 0]));
        assert_eq!(shown([9, 9, 9, 20, 20, 99]), (4, 0, vec![(51, 1), (18, 1), (36, 1)], vec![3, -1, -1]));
        assert_eq!(shown([1, 1_000_000]), (4, 0, vec![(0, 1), (318, 1)], vec![1, 0]));
        let differences = vec![2, 0, 1, 0, 0, 1, 2, 0, 1, 1, 3, 1, 2, -5];
        assert_eq!(shown(10..100), (2, 0, vec![(14, 14)], differences));
    }

    #[test]
    fn the_schema_is_the_finest_that_is_small_enough() {
        let powers = |base: u64, count: u32| shown((0..count).map(|power| base.pow(power)));
        let schemas = |base, counts: &[u32]| counts.iter().map(|count| powers(base, *count).0).collect::<Vec<_>>();
        assert_eq!(schemas(2, &[9, 10, 11, 14, 19, 20, 21]), [3, 2, 0, 0, 0, -1, -1]);
        assert_eq!(schemas(4, &[10, 11]), [2, -1]);
        assert_eq!(powers(2, 20).2, [(0, 11)]);
        assert_eq!(shown((0..9).map(|power| 1 << power).chain([10, 11])).0, 2);
        assert_eq!(shown((0..9).map(|power| 4_u64.pow(power)).chain([5, 9])).0, 2);
        let many = (1..100).chain((1..100).map(|k| k * 100)).chain((1..60).map(|k| k * 10_000));
        assert_eq!(shown(many), (-1, 0, vec![(0, 11)], vec![1, 2, 9, 36, -11, -29, 22, 30, -55, 15, 13]));
        // Another limit, and one that nothing meets.
        assert_eq!(decoded(&native(&histogram(10..100), 28)).0, 3);
        assert_eq!(decoded(&native(&histogram([1, u64::MAX / 2]), 1)).0, -4);
    }
}
