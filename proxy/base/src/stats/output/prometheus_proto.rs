//! The Prometheus protobuf format: one `io.prometheus.client.MetricFamily` after the other, each after its length.
//!
//! The same groups in the same order as the text format. The few messages are written by hand: numbers of fields are those of
//! Prometheus' `metrics.proto`.

use super::native::native;
use super::prometheus::{GroupKind, Member, Part, sanitize, visit};
use super::{HistogramMode, Shown, StatsParams, bounds_of};
use crate::stats::{HistogramSnapshot, QUANTILES, Snapshot, StatsConfig};

/// As [`prometheus`](super::prometheus()), in protobuf.
pub fn prometheus_proto(snapshot: &Snapshot, config: &StatsConfig, params: &StatsParams) -> Vec<u8> {
    let mut out = Vec::new();
    let mut family = Vec::new();
    let mut kind = GroupKind::Counter;
    visit(snapshot, config, params, &mut |part| match part {
        Part::Group(name, new) => {
            finish(&mut out, &mut family);
            kind = new;
            bytes(&mut family, 1, name.as_bytes());
            let number = match kind {
                GroupKind::Counter => 0,
                GroupKind::Gauge => 1,
                GroupKind::Summary => 2,
                GroupKind::Histogram => 4,
            };
            varint_field(&mut family, 3, number);
        }
        Part::Member { full, tags, stat, .. } => {
            let mut metric = Vec::new();
            for tag in tags {
                label(&mut metric, tag.name, tag.value);
            }
            match stat {
                Member::Number(value) => {
                    let mut inner = Vec::new();
                    double(&mut inner, 1, value as f64);
                    bytes(&mut metric, if kind == GroupKind::Counter { 3 } else { 2 }, &inner);
                }
                Member::Text(text) => {
                    label(&mut metric, "text_value", text);
                    let mut inner = Vec::new();
                    double(&mut inner, 1, 0.0);
                    bytes(&mut metric, 2, &inner);
                }
                Member::Histogram(histogram) => match params.histograms {
                    HistogramMode::Summary => bytes(&mut metric, 4, &summary(histogram)),
                    HistogramMode::Native(most) => bytes(&mut metric, 7, &native(histogram, most)),
                    _ => bytes(&mut metric, 7, &buckets(histogram, bounds_of(config, full))),
                },
            }
            bytes(&mut family, 4, &metric);
        }
    });
    finish(&mut out, &mut family);
    out
}

fn finish(out: &mut Vec<u8>, family: &mut Vec<u8>) {
    if !family.is_empty() {
        varint(out, family.len() as u64);
        out.append(family);
    }
}

fn label(metric: &mut Vec<u8>, name: &str, value: &str) {
    let (mut inner, mut clean) = (Vec::new(), String::new());
    sanitize(&mut clean, name);
    bytes(&mut inner, 1, clean.as_bytes());
    bytes(&mut inner, 2, value.as_bytes());
    bytes(metric, 1, &inner);
}

fn summary(histogram: &HistogramSnapshot) -> Vec<u8> {
    let shown = Shown::new(histogram);
    let data = &histogram.data.interval;
    let mut out = Vec::new();
    varint_field(&mut out, 1, data.count());
    double(&mut out, 2, data.sum() / shown.scale);
    for (quantile, (value, _)) in QUANTILES.iter().zip(shown.quantiles()) {
        let mut inner = Vec::new();
        double(&mut inner, 1, *quantile);
        double(&mut inner, 2, value);
        bytes(&mut out, 3, &inner);
    }
    out
}

fn buckets(histogram: &HistogramSnapshot, bounds: &[f64]) -> Vec<u8> {
    let shown = Shown::new(histogram);
    let data = &histogram.data.cumulative;
    let mut out = Vec::new();
    varint_field(&mut out, 1, data.count());
    double(&mut out, 2, data.sum() / shown.scale);
    for (bound, _, total) in shown.bounds(bounds, false) {
        let mut inner = Vec::new();
        varint_field(&mut inner, 1, total);
        double(&mut inner, 2, bound);
        bytes(&mut out, 3, &inner);
    }
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn varint_field(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(field << 3);
    varint(out, value);
}

pub(super) fn double(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Registry, StatsConfig};

    #[test]
    fn families_are_written_as_envoy_writes_them() {
        let registry = Registry::new(1, StatsConfig::default());
        let counter = registry.counter("cluster.a.upstream_rq_total");
        let gauge = registry.gauge("server.live");
        counter.add(3);
        gauge.set(1);
        let out = prometheus_proto(&registry.snapshot(), registry.config(), &StatsParams::default());
        let text = String::from_utf8_lossy(&out);
        assert!(text.contains("envoy_cluster_upstream_rq_total\u{18}\u{0}\""), "a counter: {text:?}");
        assert!(text.contains("\u{12}envoy_cluster_name\u{12}\u{1}a\u{1a}\t\t"), "its label and value: {text:?}");
        // What Envoy 1.40 answers for this gauge alone.
        let live = [
            0x22, 0x0a, 0x11, 0x65, 0x6e, 0x76, 0x6f, 0x79, 0x5f, 0x73, 0x65, 0x72, 0x76, 0x65, 0x72, 0x5f, 0x6c, 0x69,
            0x76, 0x65, 0x18, 0x01, 0x22, 0x0b, 0x12, 0x09, 0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f,
        ];
        assert!(out.ends_with(&live));
    }
}
