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
use crate::stats::{HistogramSnapshot, HostMetric, QUANTILES, Snapshot, StatName, StatValue, StatsConfig};

/// Counters, gauges, text readouts (if asked for) and histograms. `params.kind` is not looked at, as in Envoy.
pub fn prometheus(snapshot: &Snapshot, config: &StatsConfig, params: &StatsParams) -> String {
    let mut out = String::new();
    let mut labels = String::new();
    let summary = params.histograms == HistogramMode::Summary;
    visit(snapshot, config, params, &mut |part| match part {
        Part::Group(name, kind) => {
            let _ = writeln!(out, "# TYPE {name} {}", kind.text());
        }
        Part::Member { name, full, tags, stat } => {
            labels.clear();
            tags.iter().for_each(|tag| write_label(&mut labels, tag));
            match stat {
                Member::Number(value) => {
                    let _ = writeln!(out, "{name}{{{labels}}} {value}");
                }
                Member::Text(text) => {
                    write_label(&mut labels, &Tag { name: "text_value", value: text });
                    let _ = writeln!(out, "{name}{{{labels}}} 0");
                }
                Member::Histogram(histogram) if summary => write_summary(&mut out, name, &labels, histogram),
                Member::Histogram(histogram) => {
                    write_histogram(&mut out, name, &labels, histogram, bounds_of(config, full));
                }
            }
        }
    });
    out
}

/// Kinds of groups.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupKind {
    Counter,
    Gauge,
    Summary,
    Histogram,
}

impl GroupKind {
    fn text(self) -> &'static str {
        match self {
            GroupKind::Counter => "counter",
            GroupKind::Gauge => "gauge",
            GroupKind::Summary => "summary",
            GroupKind::Histogram => "histogram",
        }
    }
}

/// One stat of a group.
#[derive(Clone, Copy)]
pub(super) enum Member<'a> {
    Number(u64),
    Text(&'a str),
    Histogram(&'a HistogramSnapshot),
}

/// What [`visit`] goes through.
pub(super) enum Part<'a> {
    /// A group of this name begins.
    Group(&'a str, GroupKind),
    /// Its next stat: name of the group, own full name, tags, value.
    Member { name: &'a str, full: &'a str, tags: &'a [Tag<'a>], stat: Member<'a> },
}

/// Goes through everything that is shown, group by group; both exposition formats are written from this.
pub(super) fn visit(snapshot: &Snapshot, config: &StatsConfig, params: &StatsParams, to: &mut dyn FnMut(Part<'_>)) {
    let numbers = |list: &[(StatName, StatValue)], kind, to: &mut dyn FnMut(Part<'_>)| {
        let stats: Vec<_> = list.iter().enumerate().map(|(at, stat)| (&stat.0, stat.1.used, at)).collect();
        visit_groups(&stats, config, params, kind, to, |at| Member::Number(list[at].1.value));
    };
    numbers(&snapshot.counters, GroupKind::Counter, to);
    numbers(&snapshot.gauges, GroupKind::Gauge, to);
    if params.text_readouts {
        let texts = &snapshot.text_readouts;
        let stats: Vec<_> = texts.iter().enumerate().map(|(at, stat)| (&stat.0, stat.2, at)).collect();
        visit_groups(&stats, config, params, GroupKind::Gauge, to, |at| Member::Text(&texts[at].1));
    }
    let histograms = &snapshot.histograms;
    let stats: Vec<_> = histograms.iter().enumerate().map(|(at, stat)| (&stat.name, stat.used, at)).collect();
    let kind = match params.histograms {
        HistogramMode::Summary => GroupKind::Summary,
        _ => GroupKind::Histogram,
    };
    visit_groups(&stats, config, params, kind, to, |at| Member::Histogram(&histograms[at]));
    visit_hosts(&snapshot.hosts, params, to);
}

/// Goes through the numbers of single hosts: counters, then gauges, each by name and tags.
fn visit_hosts(hosts: &[HostMetric], params: &StatsParams, to: &mut dyn FnMut(Part<'_>)) {
    let mut shown: Vec<&HostMetric> = hosts.iter().filter(|metric| params.names(&metric.name)).collect();
    shown.sort_by(|a, b| (!a.counter, a.family, &a.tags).cmp(&(!b.counter, b.family, &b.tags)));
    let mut current = "";
    let mut group = String::new();
    for metric in shown {
        if current != metric.family {
            current = metric.family;
            group.clear();
            group.push_str("envoy_");
            sanitize(&mut group, current);
            to(Part::Group(&group, if metric.counter { GroupKind::Counter } else { GroupKind::Gauge }));
        }
        let tags: Vec<Tag<'_>> = metric.tags.iter().map(|(name, value)| Tag { name, value }).collect();
        to(Part::Member { name: &group, full: &metric.name, tags: &tags, stat: Member::Number(metric.value) });
    }
}

/// Goes through one kind of stats in groups: name, whether it was used, and its place for `member`.
fn visit_groups<'a>(
    stats: &[(&StatName, bool, usize)],
    config: &StatsConfig,
    params: &StatsParams,
    kind: GroupKind,
    to: &mut dyn FnMut(Part<'_>),
    member: impl Fn(usize) -> Member<'a>,
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
    let mut shown = String::new();
    for (id, index) in members {
        if current != Some(id) {
            current = Some(id);
            shown.clear();
            shown.push_str("envoy_");
            sanitize(&mut shown, &groups[rank[id as usize] as usize].0);
            to(Part::Group(&shown, kind));
        }
        let (stat, _, at) = stats[index as usize];
        stat.write_to(&mut full);
        let tags = config.tags.extract(&full).tags;
        to(Part::Member { name: &shown, full: &full, tags: &tags, stat: member(at) });
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
pub(super) fn sanitize(out: &mut String, name: &str) {
    out.extend(name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }));
}

fn by_token(a: &str, b: &str) -> Ordering {
    a.split('.').cmp(b.split('.'))
}
