//! Load reports (LRS): the server says which clusters it wants to hear of and how often, and is told what they have done.
//!
//! [`Reporter`] is the machine: time, responses and loads go in, requests come out. `driver` puts it on a stream that is opened
//! again whenever it ends. What a cluster's load is only its owner knows ([`LoadSource`]).
//!
//! ```text
//!   stream opened -> report (empty the first time) -> response: clusters, interval -> report -> interval -> report ...
//!   stream ended  -> wait -> stream opened: what was counted meanwhile is reported at once
//! ```

mod driver;

pub use driver::{LoadReporting, ReporterOptions, start};

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterStats;
use envoy_types::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use envoy_types::pb::google::protobuf::Duration as ProtoDuration;

/// The method of load reports.
pub const LOAD_STATS_PATH: &str = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats";

/// What tells the server that `send_all_clusters` is understood.
const SEND_ALL_CLUSTERS: &str = "envoy.lrs.supports_send_all_clusters";

/// A server that asks for reports without a pause between them gets this one.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// Knows the load of clusters.
pub trait LoadSource {
    /// All clusters there are.
    fn clusters(&self) -> Vec<String>;

    /// Begins to count what a cluster does; what it did before is not reported.
    fn begin(&self, cluster: &str);

    /// What a cluster has done since the last call; None if there is no such cluster. The interval is filled in by the
    /// reporter. With `endpoints` each endpoint is told apart.
    fn take(&self, cluster: &str, endpoints: bool) -> Option<ClusterStats>;
}

/// Counts what the reporter does (`load_reporter.*`). Every method does nothing by default.
pub trait LoadReporterStats {
    /// `requests`: a response of the server was taken.
    fn request(&self) {}
    /// `responses`: a report was sent.
    fn response(&self) {}
    /// `errors`: a stream ended with an error, or could not be opened.
    fn error(&self) {}
    /// `retries`: a stream is opened again.
    fn retry(&self) {}
}

impl LoadReporterStats for () {}

/// The machine.
#[derive(Debug)]
pub struct Reporter {
    node: Node,
    wanted: Option<Wanted>,
    /// Clusters that are reported, with the begin of what is counted.
    tracked: BTreeMap<String, Instant>,
    next: Option<Instant>,
}

/// What the server wants to hear.
#[derive(Debug)]
struct Wanted {
    clusters: Vec<String>,
    all: bool,
    interval: Duration,
    endpoints: bool,
}

impl Reporter {
    /// A reporter of this node, that has heard nothing yet.
    pub fn new(mut node: Node) -> Reporter {
        node.client_features.push(SEND_ALL_CLUSTERS.to_owned());
        Reporter { node, wanted: None, tracked: BTreeMap::new(), next: None }
    }

    /// The next request: on a new stream, or when [`Reporter::next_report`] has come.
    pub fn report(&mut self, now: Instant, source: &dyn LoadSource) -> LoadStatsRequest {
        let endpoints = self.wanted.as_ref().is_some_and(|wanted| wanted.endpoints);
        let mut reports = Vec::with_capacity(self.tracked.len());
        for (name, since) in &mut self.tracked {
            let Some(mut stats) = source.take(name, endpoints) else { continue };
            stats.load_report_interval = Some(proto_duration(now.saturating_duration_since(*since)));
            *since = now;
            reports.push(stats);
        }
        self.begin_period(now, source);
        LoadStatsRequest { node: Some(self.node.clone()), cluster_stats: reports }
    }

    /// The server says what it wants to hear from now on.
    pub fn on_response(&mut self, now: Instant, response: LoadStatsResponse, source: &dyn LoadSource) {
        let interval = response.load_reporting_interval.as_ref().map(duration);
        self.wanted = Some(Wanted {
            clusters: response.clusters,
            all: response.send_all_clusters,
            interval: interval.unwrap_or_default().max(SHORTEST_INTERVAL),
            endpoints: response.report_endpoint_granularity,
        });
        self.begin_period(now, source);
    }

    /// When the next report is due; None until the server has said.
    pub fn next_report(&self) -> Option<Instant> {
        self.next
    }

    /// Nothing is due before there is another stream.
    pub fn stream_closed(&mut self) {
        self.next = None;
    }

    fn begin_period(&mut self, now: Instant, source: &dyn LoadSource) {
        let Some(wanted) = &self.wanted else { return };
        let names = if wanted.all { source.clusters() } else { wanted.clusters.clone() };
        let mut tracked = BTreeMap::new();
        for name in names {
            // What is counted already goes on: nothing is lost between two responses.
            let since = self.tracked.remove(&name).unwrap_or_else(|| {
                source.begin(&name);
                now
            });
            tracked.insert(name, since);
        }
        self.tracked = tracked;
        self.next = Some(now + wanted.interval);
    }
}

fn duration(proto: &ProtoDuration) -> Duration {
    let nanos = u32::try_from(proto.nanos).unwrap_or(0).min(999_999_999);
    Duration::new(u64::try_from(proto.seconds).unwrap_or(0).min(u64::from(u32::MAX)), nanos)
}

fn proto_duration(duration: Duration) -> ProtoDuration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    // In microseconds, as Envoy.
    ProtoDuration { seconds, nanos: i32::try_from(duration.subsec_micros() * 1000).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    /// Clusters that have done one more thing at each look.
    #[derive(Default)]
    struct Fake {
        clusters: RefCell<Vec<&'static str>>,
        begun: RefCell<Vec<String>>,
        endpoints: Cell<bool>,
    }

    impl LoadSource for Fake {
        fn clusters(&self) -> Vec<String> {
            self.clusters.borrow().iter().map(|name| (*name).to_owned()).collect()
        }

        fn begin(&self, cluster: &str) {
            self.begun.borrow_mut().push(cluster.to_owned());
        }

        fn take(&self, cluster: &str, endpoints: bool) -> Option<ClusterStats> {
            self.endpoints.set(endpoints);
            let known = self.clusters.borrow().contains(&cluster);
            known.then(|| ClusterStats { cluster_name: cluster.to_owned(), ..ClusterStats::default() })
        }
    }

    fn response(clusters: &[&str], all: bool, seconds: i64) -> LoadStatsResponse {
        LoadStatsResponse {
            clusters: clusters.iter().map(|name| (*name).to_owned()).collect(),
            send_all_clusters: all,
            load_reporting_interval: Some(ProtoDuration { seconds, nanos: 0 }),
            report_endpoint_granularity: false,
        }
    }

    fn told(request: &LoadStatsRequest) -> Vec<(&str, i64)> {
        let one = |stats: &'_ ClusterStats| stats.load_report_interval.map_or(-1, |interval| interval.seconds);
        request.cluster_stats.iter().map(|stats| (stats.cluster_name.as_str(), one(stats))).collect()
    }

    #[test]
    fn reports_begin_when_the_server_has_said_what_it_wants() {
        let source = Fake { clusters: RefCell::new(vec!["a", "b"]), ..Fake::default() };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut reporter = Reporter::new(Node { id: "n".into(), ..Node::default() });
        let first = reporter.report(start, &source);
        let node = first.node.as_ref().map(|node| (node.id.as_str(), node.client_features.clone()));
        assert_eq!(node, Some(("n", vec![SEND_ALL_CLUSTERS.to_owned()])));
        assert!(first.cluster_stats.is_empty() && reporter.next_report().is_none());
        reporter.on_response(at(1), response(&["a", "missing"], false, 2), &source);
        assert_eq!((reporter.next_report(), source.begun.take().len()), (Some(at(3)), 2));
        assert_eq!(told(&reporter.report(at(3), &source)), [("a", 2)]);
        assert_eq!((reporter.next_report(), source.begun.take().len()), (Some(at(5)), 0));
        assert_eq!(told(&reporter.report(at(6), &source)), [("a", 3)]);
    }

    #[test]
    fn a_cluster_that_stays_wanted_is_counted_on() {
        let source = Fake { clusters: RefCell::new(vec!["a", "b"]), ..Fake::default() };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut reporter = Reporter::new(Node::default());
        reporter.on_response(start, response(&["a"], false, 10), &source);
        reporter.on_response(at(4), response(&["a", "b"], false, 10), &source);
        assert_eq!(source.begun.take(), ["a", "b"]);
        assert_eq!(told(&reporter.report(at(14), &source)), [("a", 14), ("b", 10)]);
        // Without it in the list it is forgotten, and begins anew later.
        reporter.on_response(at(15), response(&["b"], false, 10), &source);
        reporter.on_response(at(16), response(&["a"], false, 10), &source);
        assert_eq!(source.begun.take(), ["a"]);
    }

    #[test]
    fn all_clusters_are_those_that_there_are_at_each_report() {
        let source = Fake { clusters: RefCell::new(vec!["a"]), ..Fake::default() };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut reporter = Reporter::new(Node::default());
        reporter.on_response(start, response(&[], true, 1), &source);
        source.clusters.borrow_mut().push("b");
        assert_eq!(told(&reporter.report(at(1), &source)), [("a", 1)]);
        assert_eq!(told(&reporter.report(at(2), &source)), [("a", 1), ("b", 1)]);
        source.clusters.borrow_mut().remove(0);
        assert_eq!(told(&reporter.report(at(3), &source)), [("b", 1)]);
    }

    #[test]
    fn what_was_counted_while_there_was_no_stream_is_reported_on_the_next() {
        let source = Fake { clusters: RefCell::new(vec!["a"]), ..Fake::default() };
        let start = Instant::now();
        let mut reporter = Reporter::new(Node::default());
        let mut wanted = response(&["a"], false, 1);
        wanted.report_endpoint_granularity = true;
        reporter.on_response(start, wanted, &source);
        reporter.stream_closed();
        assert!(reporter.next_report().is_none());
        let later = start + Duration::from_secs(7);
        assert_eq!(told(&reporter.report(later, &source)), [("a", 7)]);
        assert!(source.endpoints.get());
        assert_eq!(reporter.next_report(), Some(later + Duration::from_secs(1)));
    }

    #[test]
    fn an_interval_of_nothing_is_not_a_busy_loop() {
        let mut reporter = Reporter::new(Node::default());
        let now = Instant::now();
        reporter.on_response(now, response(&[], true, 0), &Fake::default());
        assert!(reporter.next_report().is_some_and(|next| next > now));
    }
}
