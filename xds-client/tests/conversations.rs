//! The client against a control plane over HTTP/2: streams, reconnects, polls and files.

mod load_reports;
mod support;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use prost::Message;
use support::{Recorder, Server, client, response, run, summary, within};
use tokio::time::Instant;
use xds_client::stats::{Connected, ControlPlaneStats, SubscriptionStats};
use xds_client::status::ResourceStatus;
use xds_client::transport::grpc::{Channel, ChannelOptions};
use xds_client::transport::{LocalFuture, RestResponse, RestTransport};
use xds_client::{
    Backoff, Client, FetchFailure, GrpcSource, Interest, JsonCodec, PathSource, Protocol, ResourceHandler, RestSource,
    Source, SubscribeError, Subscription, SubscriptionOptions, TypeUrl, Update, Verdict,
};

const CDS: TypeUrl = TypeUrl::CLUSTER;
const EDS: TypeUrl = TypeUrl::CLUSTER_LOAD_ASSIGNMENT;

fn channel(server: &Server) -> Channel {
    let mut options = ChannelOptions::new("xds.cluster");
    options.metadata = vec![("x-token".into(), "secret".into())];
    Channel::new(Box::new(server.connect()), options)
}

fn source(channel: Channel, protocol: Protocol) -> GrpcSource {
    GrpcSource {
        name: "xds".into(),
        protocol,
        transport: Rc::new(channel),
        failover: None,
        node_on_first_message_only: true,
        rate_limit: None,
        backoff: Backoff::default(),
        cache_endpoints: true,
        stats: Rc::new(()),
    }
}

fn ads(server: &Server, protocol: Protocol) -> Client {
    let client = client();
    client.set_ads(source(channel(server), protocol));
    client.start_ads();
    client
}

fn subscribe(client: &Client, type_url: TypeUrl, names: &[&str], handler: &Rc<Recorder>) -> Subscription {
    let interest = match names {
        [] => Interest::Wildcard,
        names => Interest::Names(names.iter().map(|n| (*n).to_owned()).collect()),
    };
    let options = SubscriptionOptions::new(type_url, interest);
    client.subscribe(&Source::Ads, options, handler.clone(), Rc::new(())).unwrap()
}

async fn asked(stream: &mut support::Stream) -> String {
    summary(&within(stream.request::<DiscoveryRequest>()).await.expect("the stream ended"))
}

#[test]
fn an_aggregated_stream_is_asked_answered_and_acknowledged() {
    run(async {
        let mut server = Server::new();
        let client = ads(&server, Protocol::Sotw);
        let handler = Recorder::new();
        let _cds = subscribe(&client, CDS, &[], &handler);
        let mut stream = server.stream().await;
        assert_eq!(stream.path, xds_client::ADS_SOTW_PATH);
        assert_eq!(stream.headers["te"], "trailers");
        assert_eq!(stream.headers["content-type"], "application/grpc");
        assert_eq!(stream.headers["x-token"], "secret");
        let first: DiscoveryRequest = within(stream.request()).await.unwrap();
        assert_eq!(first.node.unwrap().id, "node-1");
        stream.send(&response(&CDS, "1", &["a", "b"]));
        assert_eq!(asked(&mut stream).await, "Cluster v=1 n=n1 []");
        assert_eq!(handler.updates(1).await[0].added.len(), 2);
        *handler.reject.borrow_mut() = Some("no".into());
        stream.send(&response(&CDS, "2", &["a"]));
        assert_eq!(asked(&mut stream).await, "Cluster v=1 n=n2 [] error 13: no");
        let state = &client.snapshot()[0];
        assert_eq!((state.kind, state.connected, state.types[0].error.as_str()), ("ads", true, "no"));
    });
}

/// Subscribes to the endpoints of every cluster that it is told of, from within.
struct Clusters {
    client: RefCell<Option<Client>>,
    endpoints: Rc<Recorder>,
    subscriptions: RefCell<Vec<Subscription>>,
    warming: RefCell<Option<xds_client::Pause>>,
}

impl ResourceHandler for Clusters {
    fn on_update(&self, update: Update) -> Verdict {
        let client = self.client.borrow();
        let client = client.as_ref().unwrap();
        *self.warming.borrow_mut() = Some(client.pause(&[CDS]));
        let new: Vec<Subscription> =
            update.added.iter().map(|r| subscribe(client, EDS, &[&r.name], &self.endpoints)).collect();
        // The old ones go after the new ones are there, so that nothing is forgotten between.
        let old = std::mem::replace(&mut *self.subscriptions.borrow_mut(), new);
        drop(old);
        Verdict::accept()
    }
}

#[test]
fn a_handler_may_subscribe_and_pause_and_its_requests_go_as_one_before_the_ack() {
    run(async {
        let mut server = Server::new();
        let client = ads(&server, Protocol::Sotw);
        let clusters = Rc::new(Clusters {
            client: RefCell::new(Some(client.clone())),
            endpoints: Recorder::new(),
            subscriptions: RefCell::default(),
            warming: RefCell::default(),
        });
        let options = SubscriptionOptions::new(CDS, Interest::Wildcard);
        let _cds = client.subscribe(&Source::Ads, options, clusters.clone(), Rc::new(())).unwrap();
        let mut stream = server.stream().await;
        assert_eq!(asked(&mut stream).await, "Cluster v= n= [] node");
        stream.send(&response(&CDS, "1", &["a", "b"]));
        assert_eq!(asked(&mut stream).await, "ClusterLoadAssignment v= n= [b a]");
        stream.send(&response(&EDS, "e", &["a", "b"]));
        assert_eq!(asked(&mut stream).await, "ClusterLoadAssignment v=e n=ne [b a]");
        clusters.endpoints.updates(2).await;
        assert_eq!(client.cached(&EDS, "a").unwrap().version, "e");
        drop(clusters.warming.take());
        assert_eq!(asked(&mut stream).await, "Cluster v=1 n=n1 []");
        clusters.client.take();
    });
}

#[test]
fn a_second_server_is_asked_while_the_first_has_never_answered() {
    run(async {
        let (first, mut second) = (Server::new(), Server::new());
        *first.refuse.borrow_mut() = 3;
        let client = client();
        let counters = Rc::new(Counters::default());
        client.set_ads(GrpcSource {
            failover: Some(Rc::new(channel(&second))),
            stats: counters.clone(),
            ..source(channel(&first), Protocol::Sotw)
        });
        client.start_ads();
        let handler = Recorder::new();
        let _cds = subscribe(&client, CDS, &[], &handler);
        let mut stream = second.stream().await;
        assert_eq!(asked(&mut stream).await, "Cluster v= n= [] node");
        stream.send(&response(&CDS, "1", &["a"]));
        assert_eq!(asked(&mut stream).await, "Cluster v=1 n=n1 []");
        // The first is looked at again, which fails once more.
        stream.end(14, "bye");
        let mut stream = second.stream().await;
        assert_eq!(asked(&mut stream).await, "Cluster v=1 n= [] node");
        assert_eq!(
            *counters.connected.borrow(),
            [Connected::No, Connected::Failover, Connected::No, Connected::Failover]
        );
        // Now it is there, and stays the one that is asked.
        stream.end(14, "bye");
        let mut first = first;
        for _ in 0..3 {
            let mut stream = first.stream().await;
            assert_eq!(asked(&mut stream).await, "Cluster v=1 n= [] node");
            stream.send(&response(&CDS, "1", &["a"]));
            assert_eq!(asked(&mut stream).await, "Cluster v=1 n=n1 []");
            stream.end(14, "bye");
        }
    });
}

#[test]
fn a_broken_stream_is_opened_again_with_what_is_known() {
    run(async {
        let mut server = Server::new();
        let client = ads(&server, Protocol::Sotw);
        let handler = Recorder::new();
        let _cds = subscribe(&client, CDS, &[], &handler);
        let mut stream = server.stream().await;
        assert_eq!(asked(&mut stream).await, "Cluster v= n= [] node");
        stream.send(&response(&CDS, "1", &["a"]));
        assert_eq!(asked(&mut stream).await, "Cluster v=1 n=n1 []");
        // By status, by a broken connection, by a server that is away for a while.
        stream.end(14, "bye%21");
        assert_eq!(handler.failures(1).await, [FetchFailure::ConnectionFailure]);
        assert_eq!(client.snapshot()[0].last_failure, "UNAVAILABLE: bye!");
        let mut stream = server.stream().await;
        assert_eq!(asked(&mut stream).await, "Cluster v=1 n= [] node");
        *server.refuse.borrow_mut() = 5;
        let began = Instant::now();
        server.kill();
        let mut stream = server.stream().await;
        assert!(began.elapsed() < Duration::from_millis(500 + 1000 + 2000 + 4000 + 8000 + 16_000));
        assert_eq!(asked(&mut stream).await, "Cluster v=1 n= [] node");
        assert_eq!(handler.failures(7).await.len(), 7);
    });
}

#[test]
fn garbage_ends_the_stream_and_not_the_client() {
    run(async {
        let mut server = Server::new();
        let client = ads(&server, Protocol::Sotw);
        let handler = Recorder::new();
        let _cds = subscribe(&client, CDS, &[], &handler);
        for garbage in [&b"\0\0\0\0\x03\xff\xff\xff"[..], b"\x01\0\0\0\0", b"\0\xff\xff\xff\xff"] {
            let mut stream = server.stream().await;
            assert_eq!(asked(&mut stream).await, "Cluster v= n= [] node");
            stream.raw(Bytes::from_static(garbage));
        }
        let mut stream = server.stream().await;
        assert_eq!(asked(&mut stream).await, "Cluster v= n= [] node");
        stream.send(&response(&CDS, "1", &["a"]));
        handler.updates(1).await;
    });
}

#[test]
fn delta_resumes_with_the_versions_that_it_holds() {
    run(async {
        let mut server = Server::new();
        let client = ads(&server, Protocol::Delta);
        let handler = Recorder::new();
        let _cds = subscribe(&client, CDS, &[], &handler);
        let mut stream = server.stream().await;
        assert_eq!(stream.path, xds_client::ADS_DELTA_PATH);
        let first: DeltaDiscoveryRequest = within(stream.request()).await.unwrap();
        assert!(first.initial_resource_versions.is_empty() && first.node.is_some());
        let any = response(&CDS, "1", &["a"]).resources.remove(0);
        stream.send(&DeltaDiscoveryResponse {
            system_version_info: "s".into(),
            nonce: "n".into(),
            type_url: CDS.as_str().into(),
            resources: vec![envoy_types::pb::envoy::service::discovery::v3::Resource {
                name: "a".into(),
                version: "7".into(),
                resource: Some(any),
                ..Default::default()
            }],
            ..DeltaDiscoveryResponse::default()
        });
        let ack: DeltaDiscoveryRequest = within(stream.request()).await.unwrap();
        assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("n", None));
        server.kill();
        let mut stream = server.stream().await;
        let again: DeltaDiscoveryRequest = within(stream.request()).await.unwrap();
        assert_eq!(again.initial_resource_versions["a"], "7");
        assert!(again.resource_names_subscribe.is_empty());
    });
}

#[test]
fn hundreds_of_subscriptions_have_a_stream_each_on_one_connection() {
    run(async {
        let mut server = Server::new();
        let client = client();
        let source = Source::Grpc(Rc::new(source(channel(&server), Protocol::Sotw)));
        let handler = Recorder::new();
        let mut subscriptions = Vec::new();
        for i in 0..500 {
            let options = SubscriptionOptions::new(EDS, Interest::Names(vec![format!("c{i}")]));
            subscriptions.push(client.subscribe(&source, options, handler.clone(), Rc::new(())).unwrap());
        }
        let mut streams = Vec::new();
        for _ in 0..500 {
            let mut stream = server.stream().await;
            assert_eq!(Some(stream.path.as_str()), EDS.sotw_path().as_deref());
            let request: DiscoveryRequest = within(stream.request()).await.unwrap();
            assert!(request.node.is_some());
            stream.send(&response(&EDS, "1", &[&request.resource_names[0]]));
            streams.push(stream);
        }
        handler.updates(500).await;
        assert_eq!(server.connections.borrow().len(), 1);
        // A subscription that is dropped takes its stream with it.
        drop(subscriptions);
        for mut stream in streams {
            while within(stream.request::<DiscoveryRequest>()).await.is_some() {}
        }
        assert!(client.snapshot().is_empty());
    });
}

#[test]
fn more_connections_are_opened_when_the_server_limits_streams() {
    run(async {
        let mut server = Server::with_max_streams(10);
        let client = client();
        let source = Source::Grpc(Rc::new(source(channel(&server), Protocol::Sotw)));
        let handler = Recorder::new();
        // The limit is known once the first stream has been answered.
        let one = |i: usize| {
            let options = SubscriptionOptions::new(EDS, Interest::Names(vec![format!("c{i}")]));
            client.subscribe(&source, options, handler.clone(), Rc::new(())).unwrap()
        };
        let mut held = vec![one(0)];
        let mut stream = server.stream().await;
        let _: DiscoveryRequest = within(stream.request()).await.unwrap();
        stream.send(&response(&EDS, "1", &["c0"]));
        handler.updates(1).await;
        held.extend((1..35).map(one));
        let mut streams = vec![stream];
        for _ in 1..35 {
            streams.push(server.stream().await);
        }
        assert_eq!(server.connections.borrow().len(), 4);
    });
}

#[test]
fn a_connection_that_drains_keeps_its_streams_and_new_ones_go_elsewhere() {
    run(async {
        let mut server = Server::new();
        let client = client();
        let source = Source::Grpc(Rc::new(source(channel(&server), Protocol::Sotw)));
        let handler = Recorder::new();
        let one = |name: &str| {
            let options = SubscriptionOptions::new(EDS, Interest::Names(vec![name.to_owned()]));
            client.subscribe(&source, options, handler.clone(), Rc::new(())).unwrap()
        };
        let _a = one("a");
        let mut a = server.stream().await;
        asked(&mut a).await;
        a.send(&response(&EDS, "1", &["a"]));
        handler.updates(1).await;
        server.drain.notify_waiters();
        // The answer comes after GOAWAY, so that GOAWAY has arrived with it.
        a.send(&response(&EDS, "2", &["a"]));
        handler.updates(2).await;
        let _b = one("b");
        let mut b = server.stream().await;
        assert_eq!(asked(&mut b).await, "ClusterLoadAssignment v= n= [b] node");
        assert_eq!(server.connections.borrow().len(), 2);
        a.send(&response(&EDS, "3", &["a"]));
        assert_eq!(handler.updates(3).await[2].version, "3");
        assert!(handler.failures.borrow().is_empty());
    });
}

#[test]
fn the_first_fetch_times_out_without_a_server_too() {
    run(async {
        let server = Server::new();
        *server.refuse.borrow_mut() = u32::MAX;
        let client = ads(&server, Protocol::Sotw);
        let handler = Recorder::new();
        let began = Instant::now();
        let _eds = subscribe(&client, EDS, &["a"], &handler);
        let timed_out = || handler.failures.borrow().contains(&FetchFailure::FetchTimedOut);
        while !timed_out() {
            within(handler.told.notified()).await;
        }
        let waited = began.elapsed();
        assert!(waited >= Duration::from_secs(15) && waited < Duration::from_millis(15_100), "{waited:?}");
        assert_eq!(client.snapshot()[0].types[0].resources[0].status, ResourceStatus::Timeout);
    });
}

#[derive(Default)]
struct Counters {
    attempts: Cell<u32>,
    success: RefCell<Vec<String>>,
    rejected: Cell<u32>,
    failure: Cell<u32>,
    connected: RefCell<Vec<Connected>>,
    identifier: RefCell<String>,
}

impl SubscriptionStats for Counters {
    fn attempt(&self) {
        self.attempts.set(self.attempts.get() + 1);
    }
    fn success(&self, version: &str, _at: SystemTime, _took: Duration) {
        self.success.borrow_mut().push(version.to_owned());
    }
    fn rejected(&self) {
        self.rejected.set(self.rejected.get() + 1);
    }
    fn failure(&self) {
        self.failure.set(self.failure.get() + 1);
    }
}

impl ControlPlaneStats for Counters {
    fn connected(&self, connected: Connected) {
        let mut seen = self.connected.borrow_mut();
        if seen.last() != Some(&connected) {
            seen.push(connected);
        }
    }
    fn identifier(&self, identifier: &str) {
        identifier.clone_into(&mut self.identifier.borrow_mut());
    }
}

#[test]
fn what_happens_is_counted() {
    run(async {
        let mut server = Server::new();
        let client = client();
        let counters = Rc::new(Counters::default());
        client.set_ads(GrpcSource { stats: counters.clone(), ..source(channel(&server), Protocol::Sotw) });
        let handler = Recorder::new();
        let options = SubscriptionOptions::new(CDS, Interest::Wildcard);
        let _cds = client.subscribe(&Source::Ads, options, handler.clone(), counters.clone()).unwrap();
        client.start_ads();
        let mut stream = server.stream().await;
        asked(&mut stream).await;
        let mut first = response(&CDS, "1", &["a"]);
        first.control_plane = Some(envoy_types::pb::envoy::config::core::v3::ControlPlane { identifier: "cp".into() });
        stream.send(&first);
        asked(&mut stream).await;
        *handler.reject.borrow_mut() = Some("no".into());
        stream.send(&response(&CDS, "2", &["a"]));
        asked(&mut stream).await;
        stream.end(0, "");
        handler.failures(1).await;
        assert_eq!(*counters.success.borrow(), ["1"]);
        assert_eq!((counters.attempts.get(), counters.rejected.get(), counters.failure.get()), (4, 1, 1));
        assert_eq!(*counters.connected.borrow(), [Connected::Primary, Connected::No]);
        assert_eq!(*counters.identifier.borrow(), "cp");
    });
}

/// Protobuf in place of JSON: the text is the owner's business.
struct Binary;

impl JsonCodec for Binary {
    fn encode(&self, request: &DiscoveryRequest) -> Result<Vec<u8>, String> {
        Ok(request.encode_to_vec())
    }
    fn decode(&self, json: &[u8]) -> Result<DiscoveryResponse, String> {
        DiscoveryResponse::decode(json).map_err(|e| e.to_string())
    }
}

/// A status and a body; or no answer at all.
type Answer = Option<(u16, Vec<u8>)>;

#[derive(Default)]
struct Polls {
    seen: RefCell<Vec<(Instant, String, DiscoveryRequest)>>,
    answers: RefCell<Vec<Answer>>,
}

impl RestTransport for Polls {
    fn post(&self, path: &str, body: Bytes) -> LocalFuture<Result<RestResponse, String>> {
        let request = DiscoveryRequest::decode(body).unwrap();
        self.seen.borrow_mut().push((Instant::now(), path.to_owned(), request));
        let mut answers = self.answers.borrow_mut();
        let answer = if answers.is_empty() { Some((304, Vec::new())) } else { answers.remove(0) };
        Box::pin(async move {
            match answer {
                Some((status, body)) => Ok(RestResponse { status, body: Bytes::from(body) }),
                None => std::future::pending().await,
            }
        })
    }
}

#[test]
fn a_poll_repeats_with_jitter_and_takes_what_is_new() {
    run(async {
        let client = client();
        let polls = Rc::new(Polls::default());
        *polls.answers.borrow_mut() = vec![
            Some((503, Vec::new())),
            Some((200, response(&CDS, "1", &["a"]).encode_to_vec())),
            None,
            Some((304, Vec::new())),
            Some((200, b"\xff".to_vec())),
            Some((200, response(&CDS, "2", &["b"]).encode_to_vec())),
        ];
        let handler = Recorder::new();
        let counters = Rc::new(Counters::default());
        let rest = Source::Rest(Rc::new(RestSource {
            name: "rest".into(),
            transport: polls.clone(),
            codec: Rc::new(Binary),
            refresh_delay: Duration::from_secs(1),
            request_timeout: Duration::from_secs(1),
        }));
        let options = SubscriptionOptions::new(CDS, Interest::Wildcard);
        let _cds = client.subscribe(&rest, options, handler.clone(), counters.clone()).unwrap();
        let updates = handler.updates(2).await;
        assert_eq!((updates[0].version.as_str(), updates[1].removed.as_slice()), ("1", &["a".to_owned()][..]));
        let seen = polls.seen.borrow();
        let versions: Vec<&str> = seen.iter().map(|(_, _, r)| r.version_info.as_str()).collect();
        assert_eq!(versions, ["", "", "1", "1", "1", "1"]);
        assert!(seen.iter().all(|(_, path, r)| path == "/v3/discovery:clusters" && r.node.is_some()));
        for pair in seen.windows(2) {
            let between = pair[1].0 - pair[0].0;
            assert!(between >= Duration::from_secs(1) && between <= Duration::from_secs(3), "{between:?}");
        }
        assert_eq!(
            *handler.failures.borrow(),
            [FetchFailure::ConnectionFailure, FetchFailure::ConnectionFailure, FetchFailure::UpdateRejected]
        );
        assert_eq!((counters.attempts.get(), counters.failure.get(), counters.rejected.get()), (6, 2, 1));
    });
}

#[test]
fn a_file_is_read_at_once_and_when_it_is_replaced() {
    // Time is real here: a file system does not know of a paused clock.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cds.pb");
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.path().join("new"), bytes).unwrap();
            std::fs::rename(dir.path().join("new"), dir.path().join(name)).unwrap();
        };
        write("cds.pb", &response(&CDS, "1", &["a"]).encode_to_vec());
        let source = Source::Path(Rc::new(PathSource {
            path: path.clone(),
            watched_directory: None,
            watch_modify: false,
            parse: Rc::new(|_, bytes| DiscoveryResponse::decode(bytes).map_err(|e| e.to_string())),
        }));
        let client = client();
        let handler = Recorder::new();
        let counters = Rc::new(Counters::default());
        let options = SubscriptionOptions::new(CDS, Interest::Wildcard);
        let _cds = client.subscribe(&source, options, handler.clone(), counters.clone()).unwrap();
        handler.updates(1).await;
        write("cds.pb", b"\xff");
        assert_eq!(handler.failures(1).await, [FetchFailure::UpdateRejected]);
        write("cds.pb", &response(&CDS, "2", &["b"]).encode_to_vec());
        assert_eq!(handler.updates(2).await[1].removed, ["a"]);
        assert_eq!((counters.attempts.get(), counters.failure.get()), (3, 1));
        let state = &client.snapshot()[0];
        assert_eq!((state.kind, state.types[0].version.as_str()), ("path", "2"));
        let nowhere = Source::Path(Rc::new(PathSource {
            path: dir.path().join("no/such"),
            watched_directory: None,
            watch_modify: false,
            parse: Rc::new(|_, _| Err("never read".to_owned())),
        }));
        let options = SubscriptionOptions::new(CDS, Interest::Wildcard);
        let refused = client.subscribe(&nowhere, options, handler.clone(), Rc::new(()));
        assert!(matches!(refused.err(), Some(SubscribeError::Watch { .. })));
    });
}

#[test]
fn a_service_that_does_not_exist_is_refused_at_once() {
    run(async {
        let server = Server::new();
        let client = client();
        let handler = Recorder::new();
        let options = || SubscriptionOptions::new(TypeUrl::VIRTUAL_HOST, Interest::Namespace("r".into()));
        let refused = client.subscribe(&Source::Ads, options(), handler.clone(), Rc::new(()));
        assert_eq!(refused.err(), Some(SubscribeError::NoAds));
        let sotw = Source::Grpc(Rc::new(source(channel(&server), Protocol::Sotw)));
        let refused = client.subscribe(&sotw, options(), handler.clone(), Rc::new(()));
        assert_eq!(refused.err(), Some(SubscribeError::NoService(TypeUrl::VIRTUAL_HOST)));
        let delta = Source::Grpc(Rc::new(source(channel(&server), Protocol::Delta)));
        assert!(client.subscribe(&delta, options(), handler, Rc::new(())).is_ok());
    });
}
