//! The Prometheus text format (0.0.4) as Envoy writes it: `# TYPE` without `# HELP`, empty braces, names with `envoy_`.
//!
//! Stats with the same name after their tags were taken out form a group. Names are compared token by token, so that
//! `a.b` stands before `a-b`. Tags are extracted twice, for grouping and for writing, which needs less memory than keeping them.

use std::cmp::Ordering;
use std::fmt::Write as _;

use rustc_hash::FxHashMap;

use super::number::{general, shortest};
use super::{HistogramMode, Shown, StatsParams, bounds_of};
use crate::stats::tags::{Extracted, Tag};
use crate::stats::{HistogramSnapshot, QUANTILES, Snapshot, StatName, StatValue, StatsConfig};

/// Counters, gauges, text readouts (if asked for) and histograms. `params.kind` is not looked at, as in Envoy.
pub fn prometheus(snapshot: &Snapshot, config: &StatsConfig, params: &StatsParams) -> String {
    let mut out = String::new();
    let number = |out: &mut String, name: &str, _: &str, labels: &str, stat: &(StatName, StatValue)| {
        let _ = writeln!(out, "{name}{{{labels}}} {}", stat.1.value);
    };
    let counters: Vec<_> = snapshot.counters.iter().map(|stat| (&stat.0, stat.1.used, stat)).collect();
    write_groups(&mut out, &counters, config, params, "counter", number);
    let gauges: Vec<_> = snapshot.gauges.iter().map(|stat| (&stat.0, stat.1.used, stat)).collect();
    write_groups(&mut out, &gauges, config, params, "gauge", number);
    if params.text_readouts {
        let texts: Vec<_> = snapshot.text_readouts.iter().map(|stat| (&stat.0, stat.2, stat)).collect();
        write_groups(&mut out, &texts, config, params, "gauge", |out, name, _, labels, stat| {
            let mut labels = labels.to_owned();
            write_label(&mut labels, &Tag { name: "text_value", value: &stat.1 });
            let _ = writeln!(out, "{name}{{{labels}}} 0");
        });
    }
    let histograms: Vec<_> = snapshot.histograms.iter().map(|stat| (&stat.name, stat.used, stat)).collect();
    if params.histograms == HistogramMode::Summary {
        write_groups(&mut out, &histograms, config, params, "summary", |out, name, _, labels, stat| {
            write_summary(out, name, labels, stat);
        });
    } else {
        write_groups(&mut out, &histograms, config, params, "histogram", |out, name, full, labels, stat| {
            write_histogram(out, name, labels, stat, bounds_of(config, full));
        });
    }
    out
}

/// Writes one kind of stats in groups. `write` gets the shown name, the full name, the labels and the stat.
fn write_groups<T>(
    out: &mut String,
    stats: &[(&StatName, bool, &T)],
    config: &StatsConfig,
    params: &StatsParams,
    kind: &str,
    write: impl Fn(&mut String, &str, &str, &str, &T),
) {
    let mut full = String::new();
    let mut ids: FxHashMap<Box<str>, u32> = FxHashMap::default();
    let mut members: Vec<(u32, u32)> = Vec::new();
    for (index, (stat, used, _)) in stats.iter().enumerate() {
        if !params.shows(stat, *used, &mut full) {
            continue;
        }
        let Extracted { name, .. } = config.tags.extract(&full);
        let next = ids.len() as u32;
        let id = match ids.get(&*name) {
            Some(id) => *id,
            None => *ids.entry(name.into_owned().into()).or_insert(next),
        };
        members.push((id, index as u32));
    }
    let mut groups: Vec<(Box<str>, u32)> = ids.into_iter().collect();
    groups.sort_unstable_by(|a, b| by_token(&a.0, &b.0));
    let mut rank = vec![0u32; groups.len()];
    for (position, (_, id)) in groups.iter().enumerate() {
        rank[*id as usize] = position as u32;
    }
    // The snapshot is sorted by name, so the first of these stable sorts finds long runs and the second compares numbers.
    members.sort_by(|a, b| stats[a.1 as usize].0.cmp_tokens(stats[b.1 as usize].0));
    members.sort_by_key(|member| rank[member.0 as usize]);
    let mut current = None;
    let (mut shown, mut labels) = (String::new(), String::new());
    for (id, index) in members {
        if current != Some(id) {
            current = Some(id);
            shown.clear();
            shown.push_str("envoy_");
            sanitize(&mut shown, &groups[rank[id as usize] as usize].0);
            let _ = writeln!(out, "# TYPE {shown} {kind}");
        }
        let (stat, _, item) = stats[index as usize];
        stat.write_to(&mut full);
        labels.clear();
        for tag in &config.tags.extract(&full).tags {
            write_label(&mut labels, tag);
        }
        write(out, &shown, &full, &labels, item);
    }
}

fn write_histogram(out: &mut String, name: &str, labels: &str, histogram: &HistogramSnapshot, bounds: &[f64]) {
    let shown = Shown::new(histogram);
    let comma = if labels.is_empty() { "" } else { "," };
    for (bound, _, total) in shown.bounds(bounds, false) {
        // Most bounds are small whole numbers, for which the long way is not needed.
        let bound = if bound.fract() == 0.0 && bound.abs() < 1e15 { bound.to_string() } else { general(bound, 32) };
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
    }
    let data = &histogram.data.cumulative;
    let count = data.count();
    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{name}_sum{{{labels}}} {}", general(data.sum() / shown.scale, 32));
    let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
}

/// The quantiles, sum and count of the last interval.
fn write_summary(out: &mut String, name: &str, labels: &str, histogram: &HistogramSnapshot) {
    let shown = Shown::new(histogram);
    let comma = if labels.is_empty() { "" } else { "," };
    for (quantile, (value, _)) in QUANTILES.iter().zip(shown.quantiles()) {
        let quantile = shortest(*quantile);
        let _ = writeln!(out, "{name}{{{labels}{comma}quantile=\"{quantile}\"}} {}", general(value, 32));
    }
    let data = &histogram.data.interval;
    let _ = writeln!(out, "{name}_sum{{{labels}}} {}", general(data.sum() / shown.scale, 32));
    let _ = writeln!(out, "{name}_count{{{labels}}} {}", data.count());
}

/// Appends `name="value"`, after a comma unless it is the first.
fn write_label(out: &mut String, tag: &Tag<'_>) {
    if !out.is_empty() {
        out.push(',');
    }
    sanitize(out, tag.name);
    out.push_str("=\"");
    for c in tag.value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Appends `name` with everything but letters, digits and underscores made underscores.
fn sanitize(out: &mut String, name: &str) {
    out.extend(name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }));
}

fn by_token(a: &str, b: &str) -> Ordering {
    a.split('.').cmp(b.split('.'))
}
