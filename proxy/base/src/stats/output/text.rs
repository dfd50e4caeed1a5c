//! The text format of `/stats`.

use std::fmt::Write as _;

use super::number::{general, shortest};
use super::{HistogramMode, Shown, StatsParams, bounds_of};
use crate::stats::{HistogramSnapshot, LogLinear, QUANTILES, Snapshot, StatsConfig};

/// One line per stat: text readouts, then counters and gauges, each part sorted by name, numbers of hosts, and histograms.
pub fn text(snapshot: &Snapshot, config: &StatsConfig, params: &StatsParams) -> String {
    let mut out = String::new();
    params.texts(snapshot, |name, value| {
        let _ = writeln!(out, "{name}: \"{value}\"");
    });
    params.values(snapshot, |name, value| {
        let _ = writeln!(out, "{name}: {}", value.value);
    });
    params.hosts(snapshot, |name, value| {
        let _ = writeln!(out, "{name}: {value}");
    });
    params
        .histograms(snapshot, |name, histogram| write_histogram(&mut out, name, histogram, config, params.histograms));
    out
}

fn write_histogram(
    out: &mut String,
    name: &str,
    histogram: &HistogramSnapshot,
    config: &StatsConfig,
    mode: HistogramMode,
) {
    if !histogram.used {
        let _ = writeln!(out, "{name}: No recorded values");
        return;
    }
    let shown = Shown::new(histogram);
    match mode {
        HistogramMode::Unset | HistogramMode::Summary | HistogramMode::Native(_) => {
            let _ = writeln!(out, "{name}: {}", quantiles(&shown));
        }
        HistogramMode::Cumulative | HistogramMode::Disjoint => {
            let bounds = shown.bounds(bounds_of(config, name), mode == HistogramMode::Disjoint);
            let list = bounds.map(|(bound, interval, total)| format!("B{}({interval},{total})", general(bound, 6)));
            let _ = writeln!(out, "{name}: {}", list.collect::<Vec<_>>().join(" "));
        }
        HistogramMode::Detailed => {
            let data = &histogram.data;
            let (totals, intervals) = (details(&data.cumulative), details(&data.interval));
            let summary = quantiles(&shown);
            let _ = writeln!(out, "{name}:\n  totals={totals}\n  intervals={intervals}\n  summary={summary}");
        }
    }
}

fn quantiles(shown: &Shown<'_>) -> String {
    let pairs = QUANTILES.iter().zip(shown.quantiles());
    let one = |(quantile, (interval, total)): (&f64, (f64, f64))| {
        format!("P{}({},{})", general(quantile * 100.0, 6), shortest(interval), shortest(total))
    };
    pairs.map(one).collect::<Vec<_>>().join(" ")
}

fn details(histogram: &LogLinear) -> String {
    let one = |bucket: crate::stats::Bucket| {
        format!("{},{}:{}", general(bucket.lower, 6), general(bucket.width, 6), bucket.count)
    };
    histogram.buckets().map(one).collect::<Vec<_>>().join(", ")
}
