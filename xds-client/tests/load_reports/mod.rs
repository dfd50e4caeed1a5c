//! Load reports over HTTP/2: what is sent, and that a stream which ends is opened again.

use std::cell::Cell;
use std::rc::Rc;

use crate::support::{Server, run, within};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterStats;
use envoy_types::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use envoy_types::pb::google::protobuf::Duration as ProtoDuration;
use xds_client::load::{LoadReporterStats, LoadSource, ReporterOptions, start};
use xds_client::transport::grpc::{Channel, ChannelOptions};

/// One cluster, in which something has happened at each look.
#[derive(Default)]
struct One(Cell<u64>);

impl LoadSource for One {
    fn clusters(&self) -> Vec<String> {
        vec!["one".to_owned()]
    }

    fn begin(&self, _: &str) {
        self.0.set(0);
    }

    fn take(&self, cluster: &str, _: bool) -> Option<ClusterStats> {
        self.0.set(self.0.get() + 1);
        let total_dropped_requests = self.0.get();
        Some(ClusterStats { cluster_name: cluster.to_owned(), total_dropped_requests, ..ClusterStats::default() })
    }
}

#[derive(Default)]
struct Counts {
    requests: Cell<u32>,
    responses: Cell<u32>,
    errors: Cell<u32>,
    retries: Cell<u32>,
}

impl LoadReporterStats for Counts {
    fn request(&self) {
        self.requests.set(self.requests.get() + 1);
    }
    fn response(&self) {
        self.responses.set(self.responses.get() + 1);
    }
    fn error(&self) {
        self.errors.set(self.errors.get() + 1);
    }
    fn retry(&self) {
        self.retries.set(self.retries.get() + 1);
    }
}

#[test]
fn reports_are_sent_at_the_interval_and_go_on_after_the_stream_has_ended() {
    run(async {
        let mut server = Server::new();
        let counts = Rc::new(Counts::default());
        let _reporting = start(ReporterOptions {
            node: Node { id: "n".into(), ..Node::default() },
            transport: Rc::new(Channel::new(Box::new(server.connect()), ChannelOptions::new("lrs"))),
            source: Rc::new(One::default()),
            stats: counts.clone(),
        });
        let mut stream = within(server.stream()).await;
        let first: LoadStatsRequest = within(stream.request()).await.unwrap();
        assert_eq!((first.node.unwrap_or_default().id.as_str(), first.cluster_stats.len()), ("n", 0));
        stream.send(&LoadStatsResponse {
            clusters: vec!["one".to_owned()],
            load_reporting_interval: Some(ProtoDuration { seconds: 0, nanos: 50_000_000 }),
            ..LoadStatsResponse::default()
        });
        for number in 1..=3 {
            let report: LoadStatsRequest = within(stream.request()).await.unwrap();
            let stats = &report.cluster_stats[0];
            assert_eq!((stats.cluster_name.as_str(), stats.total_dropped_requests), ("one", number));
            assert!(stats.load_report_interval.is_some_and(|interval| interval.nanos >= 50_000_000));
        }
        stream.end(14, "gone");
        let mut stream = within(server.stream()).await;
        let report: LoadStatsRequest = within(stream.request()).await.unwrap();
        assert_eq!(report.cluster_stats.len(), 1);
        assert_eq!((counts.requests.get(), counts.errors.get(), counts.retries.get()), (1, 1, 1));
        assert!(counts.responses.get() >= 5);
    });
}
