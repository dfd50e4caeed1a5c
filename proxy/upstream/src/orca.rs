//! Load that hosts report with their responses (ORCA), and the weights that follow from it.
//!
//! Beside the weights, what is asked for of the reports is summed up for load reports ([`crate::load_metrics`]).
//!
//! A report comes in the header or trailer `endpoint-load-metrics` (text, JSON or binary) or `endpoint-load-metrics-bin`.
//! The worker that reads it computes a weight and leaves it at the host; a task of the control thread looks at all
//! hosts in turn, and gives them their weights: not before a host has reported for a while, not after it has gone silent.
//! Who has none gets the median of the others. Formulas are those of Envoy's `client_side_weighted_round_robin`.

use crate::cluster::Cluster;
use crate::host::{Host, now_ms};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nuncio_config::cluster::ClientWeightsConfig;
use nuncio_http::headers::{HeaderName, Headers};
use prost::Message as _;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

static TEXT_HEADER: LazyLock<Option<HeaderName>> = LazyLock::new(|| HeaderName::parse("endpoint-load-metrics"));
static BINARY_HEADER: LazyLock<Option<HeaderName>> = LazyLock::new(|| HeaderName::parse("endpoint-load-metrics-bin"));

/// `xds.data.orca.v3.OrcaLoadReport`
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LoadReport {
    #[prost(double, tag = "1")]
    cpu_utilization: f64,
    #[prost(double, tag = "2")]
    mem_utilization: f64,
    #[prost(map = "string, double", tag = "4")]
    pub(crate) request_cost: HashMap<String, f64>,
    #[prost(map = "string, double", tag = "5")]
    pub(crate) utilization: HashMap<String, f64>,
    #[prost(double, tag = "6")]
    rps_fractional: f64,
    #[prost(double, tag = "7")]
    eps: f64,
    #[prost(map = "string, double", tag = "8")]
    pub(crate) named_metrics: HashMap<String, f64>,
    #[prost(double, tag = "9")]
    application_utilization: f64,
}

impl LoadReport {
    /// None where there is no report, or one that is not understood.
    pub(crate) fn read(headers: &Headers) -> Option<LoadReport> {
        let value = |name: &'static LazyLock<Option<HeaderName>>| headers.str(name.as_ref()?);
        if let Some(text) = value(&BINARY_HEADER) {
            return Self::binary(text);
        }
        let text = value(&TEXT_HEADER)?;
        let (format, rest) = text.split_once(' ')?;
        match format {
            "BIN" => Self::binary(rest),
            "TEXT" => Self::text(rest),
            "JSON" => Self::json(rest),
            _ => None,
        }
    }

    fn binary(text: &str) -> Option<LoadReport> {
        let bytes = STANDARD.decode(text.trim()).ok().filter(|bytes| !bytes.is_empty())?;
        LoadReport::decode(bytes.as_slice()).ok()
    }

    /// `name=value` or `name:value`, separated by commas; each name once.
    pub(crate) fn text(text: &str) -> Option<LoadReport> {
        let mut report = LoadReport::default();
        let mut seen = Vec::new();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once([':', '='])?;
            let (name, value) = (name.trim(), value.trim().parse::<f64>().ok().filter(|value| value.is_finite())?);
            if seen.contains(&name) {
                return None;
            }
            seen.push(name);
            match name.strip_prefix("named_metrics.") {
                Some("") => return None,
                Some(metric) => drop(report.named_metrics.insert(metric.to_owned(), value)),
                None => *report.field(name)? = value,
            }
        }
        Some(report)
    }

    fn json(text: &str) -> Option<LoadReport> {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
        let mut report = LoadReport::default();
        for (name, value) in object {
            let map = |value: &serde_json::Value| -> Option<HashMap<String, f64>> {
                value.as_object()?.iter().map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect()
            };
            match name.as_str() {
                "requestCost" | "request_cost" => report.request_cost = map(&value)?,
                "utilization" => report.utilization = map(&value)?,
                "namedMetrics" | "named_metrics" => report.named_metrics = map(&value)?,
                "cpuUtilization" => report.cpu_utilization = value.as_f64()?,
                "memUtilization" => report.mem_utilization = value.as_f64()?,
                "applicationUtilization" => report.application_utilization = value.as_f64()?,
                "rpsFractional" => report.rps_fractional = value.as_f64()?,
                "rps" => {}
                name => *report.field(name)? = value.as_f64()?,
            }
        }
        Some(report)
    }

    fn field(&mut self, name: &str) -> Option<&mut f64> {
        Some(match name {
            "cpu_utilization" => &mut self.cpu_utilization,
            "mem_utilization" => &mut self.mem_utilization,
            "application_utilization" => &mut self.application_utilization,
            "rps_fractional" => &mut self.rps_fractional,
            "eps" => &mut self.eps,
            _ => return None,
        })
    }

    /// The value of a field that is no map.
    pub(crate) fn field_value(&self, name: &str) -> Option<f64> {
        Some(match name {
            "cpu_utilization" => self.cpu_utilization,
            "mem_utilization" => self.mem_utilization,
            "application_utilization" => self.application_utilization,
            "rps_fractional" => self.rps_fractional,
            "eps" => self.eps,
            _ => return None,
        })
    }

    /// The largest of the metric or metrics that `name` stands for.
    fn metric(&self, name: &str) -> f64 {
        let of_map = |map: &HashMap<String, f64>, key: &str| match key {
            "*" => map.values().copied().fold(0.0, f64::max),
            key => map.get(key).copied().unwrap_or(0.0),
        };
        match name.split_once('.') {
            Some(("named_metrics", key)) => of_map(&self.named_metrics, key),
            Some(("utilization", key)) => of_map(&self.utilization, key),
            Some(("request_cost", key)) => of_map(&self.request_cost, key),
            _ => self.field_value(name).unwrap_or(0.0),
        }
    }

    /// Requests per second by utilization, errors counting as more of it; None for a report that says nothing.
    fn weight(&self, config: &ClientWeightsConfig) -> Option<u32> {
        let rate = self.rps_fractional;
        if rate.is_nan() || rate <= 0.0 {
            return None;
        }
        let named = config.metric_names.iter().map(|name| self.metric(name)).fold(0.0, f64::max);
        let utilization = [named, self.application_utilization].into_iter().find(|value| *value > 0.0);
        let utilization =
            utilization.unwrap_or(self.cpu_utilization) + config.error_utilization_penalty * self.eps / rate;
        // A weight beyond the range is the largest.
        (utilization > 0.0).then(|| (rate / utilization) as u32)
    }
}

/// What a host has reported.
#[derive(Debug)]
pub(crate) struct Reported {
    config: Arc<ClientWeightsConfig>,
    weight: AtomicU32,
    /// Since when it has reported, 0 for not at all.
    since: AtomicU64,
    last: AtomicU64,
}

impl Reported {
    pub(crate) fn new(config: &Arc<ClientWeightsConfig>) -> Self {
        Reported {
            config: config.clone(),
            weight: AtomicU32::new(0),
            since: AtomicU64::new(0),
            last: AtomicU64::new(0),
        }
    }

    /// Takes the weight of a report; false for one that has none.
    pub(crate) fn take(&self, report: &LoadReport, now: u64) -> bool {
        let Some(weight) = report.weight(&self.config) else { return false };
        self.weight.store(weight, Relaxed);
        self.last.store(now, Relaxed);
        let _ = self.since.compare_exchange(0, now, Relaxed, Relaxed);
        true
    }

    /// The weight, if it is neither too young nor too old. Once it is too old, what comes next is young again.
    fn weight(&self, now: u64) -> Option<u32> {
        let millis = |duration: Duration| duration.as_millis() as u64;
        let since = self.since.load(Relaxed);
        if since == 0 || now.saturating_sub(since) < millis(self.config.blackout_period) {
            return None;
        }
        if now.saturating_sub(self.last.load(Relaxed)) > millis(self.config.weight_expiration_period) {
            self.since.store(0, Relaxed);
            return None;
        }
        Some(self.weight.load(Relaxed))
    }
}

/// Gives hosts the weights that they have reported, or the median of those. True when one has changed.
pub(crate) fn apply<'a>(hosts: impl Iterator<Item = &'a Arc<Host>>, now: u64) -> bool {
    let (mut weights, mut silent, mut changed) = (Vec::new(), Vec::new(), false);
    let mut set = |host: &Host, weight: u32| {
        if host.weight() != weight.max(1) {
            host.set_weight(weight);
            changed = true;
        }
    };
    for host in hosts {
        match host.reported().and_then(|reported| reported.weight(now)) {
            Some(weight) => {
                weights.push(weight);
                set(host, weight);
            }
            None => silent.push(host),
        }
    }
    weights.sort_unstable();
    let middle = weights.len() / 2;
    let median = match weights.len() {
        0 => 1,
        odd if odd % 2 == 1 => weights[middle],
        _ => ((u64::from(weights[middle - 1]) + u64::from(weights[middle])) / 2) as u32,
    };
    silent.into_iter().for_each(|host| set(host, median));
    changed
}

/// Looks at the hosts of `cluster` again and again, on the control thread, until it is gone.
pub(crate) fn start(cluster: &Arc<Cluster>, control: &tokio::runtime::Handle) {
    let Some(config) = &cluster.config.lb_common.client_weights else { return };
    control.spawn(run(Arc::downgrade(cluster), config.weight_update_period));
}

async fn run(cluster: Weak<Cluster>, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        let Some(cluster) = cluster.upgrade().filter(|cluster| !cluster.is_removed()) else { return };
        if apply(cluster.state().priority_set.hosts(), now_ms()) {
            cluster.follow();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::weighted_set;
    use nuncio_http::headers::HeaderValue;

    fn headers(name: &str, value: &str) -> Headers {
        let mut headers = Headers::default();
        headers.append(HeaderName::parse(name).unwrap(), HeaderValue::parse(value.to_owned()).unwrap());
        headers
    }

    fn config() -> ClientWeightsConfig {
        ClientWeightsConfig { metric_names: Box::new(["named_metrics.foo".into()]), ..ClientWeightsConfig::default() }
    }

    fn weight(name: &str, value: &str) -> Option<u32> {
        LoadReport::read(&headers(name, value))?.weight(&config())
    }

    #[test]
    fn a_report_is_text_json_or_binary() {
        let text = "TEXT cpu_utilization:0.5,rps_fractional:100";
        assert_eq!(weight("endpoint-load-metrics", text), Some(200));
        let json = r#"JSON {"cpuUtilization": 0.5, "rps_fractional": 100}"#;
        assert_eq!(weight("endpoint-load-metrics", json), Some(200));
        let report = LoadReport { cpu_utilization: 0.5, rps_fractional: 100.0, ..LoadReport::default() };
        let binary = STANDARD.encode(report.encode_to_vec());
        assert_eq!(weight("endpoint-load-metrics-bin", &binary), Some(200));
        assert_eq!(weight("endpoint-load-metrics", &format!("BIN {binary}")), Some(200));
    }

    #[test]
    fn a_report_that_is_not_understood_is_none() {
        for bad in ["", "TEXT", "XML a", "TEXT cpu_utilization:x", "TEXT eps:1,eps:2", "TEXT nothing:1", "JSON ["] {
            assert_eq!(weight("endpoint-load-metrics", bad), None, "{bad}");
        }
        assert_eq!(weight("endpoint-load-metrics-bin", "%%"), None);
        // Without a rate or without utilization there is no weight.
        assert_eq!(weight("endpoint-load-metrics", "TEXT cpu_utilization:0.5"), None);
        assert_eq!(weight("endpoint-load-metrics", "TEXT rps_fractional:5"), None);
    }

    #[test]
    fn named_metrics_go_before_application_and_cpu_and_errors_weigh() {
        let all = "TEXT cpu_utilization:0.1,application_utilization:0.2,named_metrics.foo:0.5,rps_fractional:100";
        assert_eq!(weight("endpoint-load-metrics", all), Some(200));
        let without = "TEXT cpu_utilization:0.1,application_utilization:0.2,rps_fractional:100";
        assert_eq!(weight("endpoint-load-metrics", without), Some(500));
        let errors = "TEXT cpu_utilization:0.5,rps_fractional:100,eps:50";
        assert_eq!(weight("endpoint-load-metrics", errors), Some(100));
    }

    #[test]
    fn weights_count_after_the_blackout_and_until_they_expire() {
        let set = weighted_set(&[1, 1, 1]);
        let config = Arc::new(config());
        let hosts: Vec<_> = set.hosts().cloned().collect();
        hosts.iter().for_each(|host| host.report_to(&config));
        let weights = || hosts.iter().map(|host| host.weight()).collect::<Vec<_>>();
        let report = |at: usize, utilization: &str, now: u64| {
            let text = format!("cpu_utilization:{utilization},rps_fractional:100");
            assert!(hosts[at].reported().unwrap().take(&LoadReport::text(&text).unwrap(), now));
        };
        report(0, "0.5", 1_000);
        report(1, "0.25", 1_000);
        // Ten seconds of blackout.
        assert!(!apply(hosts.iter(), 10_999));
        assert!(apply(hosts.iter(), 11_000));
        // The third has the median of both.
        assert_eq!(weights(), [200, 400, 300]);
        assert!(!apply(hosts.iter(), 12_000));
        report(0, "1.0", 60_000);
        // Three minutes after its last report the second is silent; then the median is the first's.
        assert!(apply(hosts.iter(), 181_001));
        assert_eq!(weights(), [100, 100, 100]);
        // What it reports next waits again.
        report(1, "0.25", 190_000);
        assert!(!apply(hosts.iter(), 199_000));
        assert!(apply(hosts.iter(), 200_000));
        assert_eq!(weights(), [100, 400, 250]);
    }
}
