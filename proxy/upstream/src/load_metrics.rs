//! Metrics that hosts report with their responses (ORCA), summed up for load reports.
//!
//! `lrs_report_endpoint_metrics` names those that count. A worker that has read a report adds to the sums of the host; who
//! sends load reports takes them. Sums are found without a lock; only a name that is new to the host takes one.

use crate::orca::LoadReport;
use arc_swap::ArcSwap;
use rustc_hash::FxHashMap;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Different metrics of one host; more are left out.
const MAX_METRICS: usize = 1024;

/// The maps of a report by the prefix of their names, and the fields beside them.
const PREFIXES: [&str; 4] = ["", "named_metrics.", "utilization.", "request_cost."];

/// A metric that is to be reported.
#[derive(Debug)]
enum Wanted {
    Field(Box<str>),
    /// One of a map, by its place among the prefixes.
    Entry(usize, Box<str>),
    /// All of a map.
    Entries(usize),
}

impl Wanted {
    fn parse(name: &str) -> Self {
        let at = (1..PREFIXES.len()).find(|at| name.starts_with(PREFIXES[*at]));
        match at.map(|at| (at, &name[PREFIXES[at].len()..])) {
            None => Wanted::Field(name.into()),
            Some((at, "*")) => Wanted::Entries(at),
            Some((at, key)) => Wanted::Entry(at, key.into()),
        }
    }
}

#[derive(Debug, Default)]
struct Sum {
    reports: AtomicU64,
    /// Bits of a floating-point number.
    total: AtomicU64,
}

type Sums = FxHashMap<Box<str>, Arc<Sum>>;

/// What was reported of one metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// With its prefix.
    pub name: String,
    /// How many requests reported it.
    pub requests: u64,
    /// Sum of the values.
    pub total: f64,
}

/// The sums of one host.
#[derive(Debug)]
pub(crate) struct LoadMetrics {
    wanted: Box<[Wanted]>,
    /// By prefix.
    sums: [ArcSwap<Sums>; PREFIXES.len()],
    adding: Mutex<()>,
}

impl LoadMetrics {
    pub(crate) fn new(names: &[Box<str>]) -> Self {
        LoadMetrics {
            wanted: names.iter().map(|name| Wanted::parse(name)).collect(),
            sums: Default::default(),
            adding: Mutex::default(),
        }
    }

    /// Adds what is wanted of a report. As in Envoy a field counts whatever it is, an entry of a map if it is there.
    pub(crate) fn add(&self, report: &LoadReport) {
        let map = |at: usize| -> &HashMap<String, f64> {
            match at {
                1 => &report.named_metrics,
                2 => &report.utilization,
                _ => &report.request_cost,
            }
        };
        for wanted in &self.wanted {
            match wanted {
                Wanted::Field(name) => {
                    if let Some(value) = report.field_value(name) {
                        self.count(0, name, value);
                    }
                }
                Wanted::Entry(at, key) => {
                    if let Some(value) = map(*at).get(&**key) {
                        self.count(*at, key, *value);
                    }
                }
                Wanted::Entries(at) => map(*at).iter().for_each(|(key, value)| self.count(*at, key, *value)),
            }
        }
    }

    fn count(&self, at: usize, key: &str, value: f64) {
        let sums = self.sums[at].load();
        let made;
        let sum = match sums.get(key) {
            Some(sum) => sum,
            None => {
                let Some(new) = self.make(at, key) else { return };
                made = new;
                &made
            }
        };
        let _ = sum.total.fetch_update(Relaxed, Relaxed, |total| Some((f64::from_bits(total) + value).to_bits()));
        sum.reports.fetch_add(1, Relaxed);
    }

    #[cold]
    fn make(&self, at: usize, key: &str) -> Option<Arc<Sum>> {
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.sums[at].load();
        if let Some(sum) = known.get(key) {
            return Some(sum.clone());
        }
        if self.sums.iter().map(|sums| sums.load().len()).sum::<usize>() >= MAX_METRICS {
            return None;
        }
        let mut all = Sums::clone(&known);
        let sum = Arc::<Sum>::default();
        all.insert(key.into(), sum.clone());
        self.sums[at].store(Arc::new(all));
        Some(sum)
    }

    /// What was added since the last call, by name.
    pub(crate) fn take(&self) -> Vec<Metric> {
        let mut taken = Vec::new();
        for (prefix, sums) in PREFIXES.iter().zip(&self.sums) {
            for (key, sum) in sums.load().iter() {
                let requests = sum.reports.swap(0, Relaxed);
                if requests > 0 {
                    let total = f64::from_bits(sum.total.swap(0, Relaxed));
                    taken.push(Metric { name: format!("{prefix}{key}"), requests, total });
                }
            }
        }
        taken.sort_by(|a, b| a.name.cmp(&b.name));
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> LoadReport {
        LoadReport::text(text).expect("a report")
    }

    fn metrics(names: &[&str], reports: &[&str]) -> Vec<(String, u64, f64)> {
        let names: Vec<Box<str>> = names.iter().map(|name| (*name).into()).collect();
        let metrics = LoadMetrics::new(&names);
        reports.iter().for_each(|text| metrics.add(&report(text)));
        metrics.take().into_iter().map(|metric| (metric.name, metric.requests, metric.total)).collect()
    }

    #[test]
    fn fields_count_with_every_report_and_entries_where_they_are() {
        let names = ["cpu_utilization", "named_metrics.a", "named_metrics.b", "no_such_field"];
        let sums = metrics(&names, &["cpu_utilization:0.5,named_metrics.a:2", "named_metrics.a:3,named_metrics.c:9"]);
        assert_eq!(sums, [("cpu_utilization".to_owned(), 2, 0.5), ("named_metrics.a".to_owned(), 2, 5.0)]);
    }

    #[test]
    fn a_star_stands_for_all_of_a_map() {
        let sums = metrics(&["named_metrics.*"], &["eps:1,named_metrics.x:1,named_metrics.y:4", "named_metrics.x:2"]);
        assert_eq!(sums, [("named_metrics.x".to_owned(), 2, 3.0), ("named_metrics.y".to_owned(), 1, 4.0)]);
    }

    #[test]
    fn what_was_taken_is_not_told_again() {
        let metrics = LoadMetrics::new(&["eps".into()]);
        metrics.add(&report("eps:1"));
        assert_eq!(metrics.take().len(), 1);
        assert_eq!(metrics.take(), []);
        metrics.add(&report("eps:4"));
        assert_eq!(metrics.take(), [Metric { name: "eps".into(), requests: 1, total: 4.0 }]);
    }

    #[test]
    fn names_are_bounded() {
        let metrics = LoadMetrics::new(&["named_metrics.*".into()]);
        for at in 0..MAX_METRICS + 5 {
            metrics.add(&report(&format!("named_metrics.m{at}:1")));
        }
        assert_eq!(metrics.take().len(), MAX_METRICS);
    }
}
