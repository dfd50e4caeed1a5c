//! The JSON format of `/stats?format=json`, with Envoy's field order and without spaces.

use std::fmt::Write as _;

use super::number::json as number;
use super::{HistogramMode, Shown, StatsParams, bounds_of};
use crate::stats::{HistogramSnapshot, LogLinear, Snapshot, StatsConfig};

const PERCENTILES: &str = "[0,25,50,75,90,95,99,99.5,99.9,100]";

/// `{"stats":[...]}`: an object per stat, and one for all histograms.
pub fn json(snapshot: &Snapshot, config: &StatsConfig, params: &StatsParams) -> String {
    let mut out = String::from("{\"stats\":[");
    let mut separator = "";
    params.texts(snapshot, |name, value| {
        let _ = write!(out, "{separator}{{\"name\":{},\"value\":{}}}", Quoted(name), Quoted(value));
        separator = ",";
    });
    params.values(snapshot, |name, value| {
        let _ = write!(out, "{separator}{{\"name\":{},\"value\":{}}}", Quoted(name), value.value);
        separator = ",";
    });
    params.hosts(snapshot, |name, value| {
        let _ = write!(out, "{separator}{{\"name\":{},\"value\":{value}}}", Quoted(name));
        separator = ",";
    });
    let mut any = false;
    params.histograms(snapshot, |name, histogram| {
        if any {
            out.push(',');
        } else {
            out.push_str(separator);
            out.push_str("{\"histograms\":");
            match params.histograms {
                HistogramMode::Unset | HistogramMode::Summary | HistogramMode::Native(_) => {
                    let _ = write!(out, "{{\"supported_quantiles\":{PERCENTILES},\"computed_quantiles\":[");
                }
                HistogramMode::Detailed => {
                    let _ = write!(out, "{{\"supported_percentiles\":{PERCENTILES},\"details\":[");
                }
                HistogramMode::Cumulative | HistogramMode::Disjoint => out.push('['),
            }
            any = true;
        }
        write_histogram(&mut out, name, histogram, config, params.histograms);
    });
    if any {
        let grouped = matches!(params.histograms, HistogramMode::Cumulative | HistogramMode::Disjoint);
        out.push_str(if grouped { "]}" } else { "]}}" });
    }
    out.push_str("]}");
    out
}

fn write_histogram(
    out: &mut String,
    name: &str,
    histogram: &HistogramSnapshot,
    config: &StatsConfig,
    mode: HistogramMode,
) {
    let shown = Shown::new(histogram);
    let _ = write!(out, "{{\"name\":{}", Quoted(name));
    match mode {
        HistogramMode::Unset | HistogramMode::Summary | HistogramMode::Native(_) => {
            out.push_str(",\"values\":");
            write_quantiles(out, &shown);
        }
        HistogramMode::Cumulative | HistogramMode::Disjoint => {
            out.push_str(",\"buckets\":");
            let bounds = shown.bounds(bounds_of(config, name), mode == HistogramMode::Disjoint);
            list(out, bounds, |out, (bound, interval, total)| {
                let bound = number(bound);
                let _ = write!(out, "{{\"upper_bound\":{bound},\"interval\":{interval},\"cumulative\":{total}}}");
            });
        }
        HistogramMode::Detailed => {
            out.push_str(",\"totals\":");
            write_buckets(out, &histogram.data.cumulative);
            out.push_str(",\"intervals\":");
            write_buckets(out, &histogram.data.interval);
            out.push_str(",\"percentiles\":");
            write_quantiles(out, &shown);
        }
    }
    out.push('}');
}

fn write_quantiles(out: &mut String, shown: &Shown<'_>) {
    list(out, shown.quantiles(), |out, (interval, total)| {
        let _ = write!(out, "{{\"cumulative\":{},\"interval\":{}}}", number(total), number(interval));
    });
}

fn write_buckets(out: &mut String, histogram: &LogLinear) {
    list(out, histogram.buckets(), |out, bucket| {
        let (lower, width, count) = (number(bucket.lower), number(bucket.width), bucket.count);
        let _ = write!(out, "{{\"lower_bound\":{lower},\"width\":{width},\"count\":{count}}}");
    });
}

fn list<T>(out: &mut String, items: impl Iterator<Item = T>, mut write: impl FnMut(&mut String, T)) {
    out.push('[');
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(',');
        }
        write(out, item);
    }
    out.push(']');
}

/// A JSON string.
struct Quoted<'a>(&'a str);

impl std::fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                '\u{8}' => f.write_str("\\b")?,
                '\u{c}' => f.write_str("\\f")?,
                c if c < ' ' || c == '\u{7f}' => write!(f, "\\u{:04x}", c as u32)?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}
