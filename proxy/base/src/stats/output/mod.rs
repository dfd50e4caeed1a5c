//! Envoy's output formats of `/stats`: text, JSON and Prometheus.
//!
//! Pure functions over a [`Snapshot`]; the admin interface parses the query and serves the result.

mod json;
mod native;
mod number;
mod prometheus;
mod prometheus_proto;
mod text;

pub use json::json;
pub use number::general;
pub use prometheus::prometheus;
pub use prometheus_proto::prometheus_proto;
pub use text::text;

use super::registry::{Snapshot, StatName};
use super::{HistogramSnapshot, StatValue, StatsConfig};
use crate::stats::Unit;

/// How many times its size a percent value is recorded.
const PERCENT_SCALE: f64 = 1_000_000.0;

/// Which kinds of stats are shown (`type=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Every kind.
    #[default]
    All,
    /// Counters.
    Counters,
    /// Gauges.
    Gauges,
    /// Histograms.
    Histograms,
    /// Text readouts.
    TextReadouts,
}

/// How histograms are shown (`histogram_buckets=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HistogramMode {
    /// The parameter is absent: quantiles, or buckets in Prometheus.
    #[default]
    Unset,
    /// Quantiles, also in Prometheus.
    Summary,
    /// Counts up to each bound.
    Cumulative,
    /// Counts between the bounds.
    Disjoint,
    /// Every bucket that holds a sample, and the quantiles.
    Detailed,
    /// Buckets at powers of a base, for Prometheus in protobuf alone: no more than about this many.
    Native(u32),
}

/// What of the stats is shown, and how.
#[derive(Debug, Default)]
pub struct StatsParams {
    /// Only stats that were ever counted or set.
    pub used_only: bool,
    /// Only names in which this regex is found.
    pub filter: Option<regex::Regex>,
    /// Only names in which it is not.
    pub invert_filter: bool,
    /// Only this kind; not in Prometheus.
    pub kind: Kind,
    /// How histograms are shown.
    pub histograms: HistogramMode,
    /// Prometheus: text readouts, too.
    pub text_readouts: bool,
}

impl StatsParams {
    /// Whether a stat is shown; leaves its name in `name`.
    fn shows(&self, stat: &StatName, used: bool, name: &mut String) -> bool {
        if self.used_only && !used {
            return false;
        }
        stat.write_to(name);
        self.names(name)
    }

    /// Calls `visit` for counters and gauges together, sorted by name.
    fn values<'a>(&self, snapshot: &'a Snapshot, mut visit: impl FnMut(&str, StatValue)) {
        let none: &'a [(StatName, StatValue)] = &[];
        let counters = if matches!(self.kind, Kind::All | Kind::Counters) { &snapshot.counters } else { none };
        let gauges = if matches!(self.kind, Kind::All | Kind::Gauges) { &snapshot.gauges } else { none };
        let (mut counters, mut gauges) = (counters.iter().peekable(), gauges.iter().peekable());
        let mut name = String::new();
        loop {
            let next = match (counters.peek(), gauges.peek()) {
                (Some(counter), Some(gauge)) if gauge.0 < counter.0 => gauges.next(),
                (Some(_), _) => counters.next(),
                (None, _) => gauges.next(),
            };
            let Some((stat, value)) = next else { break };
            if self.shows(stat, value.used, &mut name) {
                visit(&name, *value);
            }
        }
    }

    /// Calls `visit` for the numbers of single hosts, in their order.
    fn hosts(&self, snapshot: &Snapshot, mut visit: impl FnMut(&str, u64)) {
        for metric in &snapshot.hosts {
            let kind = if metric.counter { Kind::Counters } else { Kind::Gauges };
            if (self.kind == Kind::All || self.kind == kind) && self.names(&metric.name) {
                visit(&metric.name, metric.value);
            }
        }
    }

    /// Whether the filter lets a name pass.
    fn names(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.is_match(name) != self.invert_filter)
    }

    fn texts(&self, snapshot: &Snapshot, mut visit: impl FnMut(&str, &str)) {
        let mut name = String::new();
        for (stat, value, used) in &snapshot.text_readouts {
            if matches!(self.kind, Kind::All | Kind::TextReadouts) && self.shows(stat, *used, &mut name) {
                visit(&name, value);
            }
        }
    }

    fn histograms(&self, snapshot: &Snapshot, mut visit: impl FnMut(&str, &HistogramSnapshot)) {
        let mut name = String::new();
        for histogram in &snapshot.histograms {
            if matches!(self.kind, Kind::All | Kind::Histograms)
                && self.shows(&histogram.name, histogram.used, &mut name)
            {
                visit(&name, histogram);
            }
        }
    }
}

/// A histogram's values as they are shown, in its unit.
struct Shown<'a> {
    histogram: &'a HistogramSnapshot,
    scale: f64,
}

impl<'a> Shown<'a> {
    fn new(histogram: &'a HistogramSnapshot) -> Self {
        Self { histogram, scale: if histogram.unit == Unit::Percent { PERCENT_SCALE } else { 1.0 } }
    }

    /// Interval and cumulative quantiles.
    fn quantiles(&self) -> impl Iterator<Item = (f64, f64)> + use<> {
        let (data, scale) = (&self.histogram.data, self.scale);
        let pairs = data.interval.quantiles().into_iter().zip(data.cumulative.quantiles());
        pairs.map(move |(interval, cumulative)| (interval / scale, cumulative / scale))
    }

    /// Bound, and interval and cumulative counts up to it or, if `disjoint`, since the bound before.
    fn bounds<'b>(&'b self, bounds: &'b [f64], disjoint: bool) -> impl Iterator<Item = (f64, u64, u64)> + 'b {
        let mut before = (0, 0);
        bounds.iter().map(move |&bound| {
            let data = &self.histogram.data;
            let below =
                (data.interval.count_below(bound * self.scale), data.cumulative.count_below(bound * self.scale));
            let shown = if disjoint { (below.0 - before.0, below.1 - before.1) } else { below };
            before = below;
            (bound, shown.0, shown.1)
        })
    }
}

/// Bounds of the histogram `name`.
fn bounds_of<'a>(config: &'a StatsConfig, name: &str) -> &'a [f64] {
    config.buckets(name)
}
