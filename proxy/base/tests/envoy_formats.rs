//! The stat outputs against what Envoy 1.40 showed for the same stats.

use nuncio_base::stats::output::{HistogramMode, StatsParams, json, prometheus, text};
use nuncio_base::stats::{
    HistogramData, HistogramSnapshot, LogLinear, Snapshot, StatName, StatValue, StatsConfig, Unit,
};

fn values(lines: &str) -> Vec<(StatName, StatValue)> {
    let mut list: Vec<_> = lines
        .lines()
        .map(|line| {
            let (name, value) = line.rsplit_once(": ").expect("a line is `name: value`");
            let value = value.parse().expect("the value is a number");
            (StatName::new(name.into(), ""), StatValue { value, used: value != 0 })
        })
        .collect();
    list.sort_by(|a, b| a.0.cmp(&b.0));
    list
}

fn histogram(name: &str, interval: LogLinear, cumulative: LogLinear) -> HistogramSnapshot {
    let used = !cumulative.is_empty();
    HistogramSnapshot {
        name: StatName::new(name.into(), ""),
        unit: Unit::Milliseconds,
        data: HistogramData { interval, cumulative },
        used,
    }
}

fn samples(list: &[(u64, u64)]) -> LogLinear {
    let mut out = LogLinear::default();
    for (value, count) in list {
        out.insert(*value, *count);
    }
    out
}

#[test]
fn names_and_tags_of_every_kind_equal_envoys() {
    let snapshot = Snapshot {
        counters: values(include_str!("data/tags-counters.txt")),
        gauges: values(include_str!("data/tags-gauges.txt")),
        ..Snapshot::default()
    };
    let shown = prometheus(&snapshot, &StatsConfig::default(), &StatsParams::default());
    let expected = include_str!("data/tags-prometheus.txt");
    for (ours, envoys) in shown.lines().zip(expected.lines()) {
        assert_eq!(ours, envoys);
    }
    assert_eq!(shown.len(), expected.len());
}

#[test]
fn detailed_histograms_in_json_equal_envoys() {
    let list =
        [(112, 21), (120, 2), (140, 8), (220, 9), (230, 11), (280, 7), (290, 13), (570, 9), (580, 11), (1150, 29)];
    let one = histogram("cluster.foo.upstream_rq_time", samples(&list), samples(&list));
    let snapshot = Snapshot { histograms: vec![one], ..Snapshot::default() };
    let params = StatsParams { histograms: HistogramMode::Detailed, ..StatsParams::default() };
    let expected = include_str!("data/histogram-detailed.json").trim_end();
    assert_eq!(json(&snapshot, &StatsConfig::default(), &params), expected);
    let shown = prometheus(&snapshot, &StatsConfig::default(), &StatsParams::default());
    assert!(shown.contains("upstream_rq_time_sum{envoy_cluster_name=\"foo\"} 59150.864661416155286133289337158\n"));
}

fn two_histograms() -> Snapshot {
    let lengths = samples(&[(0, 3), (1, 2), (2, 1), (6, 1)]);
    Snapshot {
        histograms: vec![
            histogram("http.ingress_http.downstream_cx_length_ms", LogLinear::default(), lengths),
            histogram("overload.refresh_interval_delay", LogLinear::default(), LogLinear::default()),
        ],
        ..Snapshot::default()
    }
}

#[test]
fn text_histograms_equal_envoys_in_every_mode() {
    let show = |histograms| {
        let params = StatsParams { histograms, ..StatsParams::default() };
        text(&two_histograms(), &StatsConfig::default(), &params)
    };
    let quantiles = "P0(nan,0) P25(nan,0) P50(nan,1.0333333333333334) P75(nan,2.05) P90(nan,6.05) P95(nan,6.05) \
                     P99(nan,6.05) P99.5(nan,6.05) P99.9(nan,6.05) P100(nan,6.05)";
    let rest = "overload.refresh_interval_delay: No recorded values\n";
    let name = "http.ingress_http.downstream_cx_length_ms";
    assert_eq!(show(HistogramMode::Unset), format!("{name}: {quantiles}\n{rest}"));
    assert_eq!(
        show(HistogramMode::Detailed),
        format!("{name}:\n  totals=0,0:3, 1,0.1:2, 2,0.1:1, 6,0.1:1\n  intervals=\n  summary={quantiles}\n{rest}")
    );
    let bounds = "B0.5 B1 B5 B10 B25 B50 B100 B250 B500 B1000 B2500 B5000 B10000 B30000 B60000 B300000 B600000 \
                  B1.8e+06 B3.6e+06";
    let line = |counts: [u64; 4], last: u64| {
        let counts = counts.into_iter().chain(std::iter::repeat(last));
        let list: Vec<_> = bounds.split(' ').zip(counts).map(|(bound, count)| format!("{bound}(0,{count})")).collect();
        format!("{name}: {}\n{rest}", list.join(" "))
    };
    assert_eq!(show(HistogramMode::Cumulative), line([3, 5, 6, 7], 7));
    assert_eq!(show(HistogramMode::Disjoint), line([3, 2, 1, 1], 0));
}

#[test]
fn json_lists_stats_and_one_object_for_all_histograms() {
    let mut snapshot = two_histograms();
    snapshot.gauges = values("server.live: 1");
    snapshot.text_readouts = vec![(StatName::new("a.text".into(), ""), "say \"hi\"".to_owned(), true)];
    let params = StatsParams { histograms: HistogramMode::Cumulative, ..StatsParams::default() };
    let shown = json(&snapshot, &StatsConfig::default(), &params);
    let start = r#"{"stats":[{"name":"a.text","value":"say \"hi\""},{"name":"server.live","value":1},{"histograms":[{"name":"http.ingress_http.downstream_cx_length_ms","buckets":[{"upper_bound":0.5,"interval":0,"cumulative":3},"#;
    assert!(shown.starts_with(start), "{shown}");
    assert!(shown.contains(r#"{"upper_bound":3e+05,"interval":0,"cumulative":7}"#));
    assert!(shown.ends_with(r#"{"upper_bound":3600000,"interval":0,"cumulative":0}]}]}]}"#), "{shown}");
    let filter = regex::Regex::new("zz").ok();
    let none = json(&snapshot, &StatsConfig::default(), &StatsParams { filter, ..StatsParams::default() });
    assert_eq!(none, r#"{"stats":[]}"#);
    let parsed = text(&snapshot, &StatsConfig::default(), &StatsParams { used_only: true, ..StatsParams::default() });
    assert!(parsed.starts_with("a.text: \"say \"hi\"\"\nserver.live: 1\nhttp."));
    assert!(!parsed.contains("overload"));
}

#[test]
fn prometheus_summaries_and_text_readouts_have_envoys_form() {
    let mut snapshot = two_histograms();
    snapshot.text_readouts = vec![(StatName::new("cluster.a.version".into(), ""), "v\n\"1\"".to_owned(), true)];
    let params = StatsParams { histograms: HistogramMode::Summary, text_readouts: true, ..StatsParams::default() };
    let shown = prometheus(&snapshot, &StatsConfig::default(), &params);
    let start = "# TYPE envoy_cluster_version gauge\n\
                 envoy_cluster_version{envoy_cluster_name=\"a\",text_value=\"v\\n\\\"1\\\"\"} 0\n\
                 # TYPE envoy_http_downstream_cx_length_ms summary\n\
                 envoy_http_downstream_cx_length_ms{envoy_http_conn_manager_prefix=\"ingress_http\",quantile=\"0\"} nan\n";
    assert!(shown.starts_with(start), "{shown}");
    assert!(shown.contains("ms{envoy_http_conn_manager_prefix=\"ingress_http\",quantile=\"0.995\"} nan\n"));
    assert!(
        shown.contains("envoy_http_downstream_cx_length_ms_sum{envoy_http_conn_manager_prefix=\"ingress_http\"} 0\n")
    );
    assert!(shown.ends_with("envoy_overload_refresh_interval_delay_count{} 0\n"));
}

#[test]
fn bucket_bounds_can_be_set_by_name() {
    let config = StatsConfig {
        histogram_buckets: vec![(Box::new(|name| name.starts_with("http.")), vec![0.1, 5.0])],
        ..StatsConfig::default()
    };
    let shown = prometheus(&two_histograms(), &config, &StatsParams::default());
    let labels = "{envoy_http_conn_manager_prefix=\"ingress_http\"";
    let expected = format!(
        "# TYPE envoy_http_downstream_cx_length_ms histogram\n\
         envoy_http_downstream_cx_length_ms_bucket{labels},le=\"0.10000000000000000555111512312578\"}} 3\n\
         envoy_http_downstream_cx_length_ms_bucket{labels},le=\"5\"}} 6\n\
         envoy_http_downstream_cx_length_ms_bucket{labels},le=\"+Inf\"}} 7\n\
         envoy_http_downstream_cx_length_ms_sum{labels}}} 10.193605359902477403011289425194\n\
         envoy_http_downstream_cx_length_ms_count{labels}}} 7\n"
    );
    assert!(shown.starts_with(&expected), "{shown}");
}
