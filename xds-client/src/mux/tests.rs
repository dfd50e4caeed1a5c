//! Whole conversations, as a server sees them.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::ControlPlane;
use envoy_types::pb::envoy::service::discovery::v3::Resource as ProtoResource;
use envoy_types::pb::google::protobuf::{Any, Duration as ProtoDuration};

use super::*;
use crate::ResourceError;
use crate::status::ResourceStatus;

const CDS: TypeUrl = TypeUrl::CLUSTER;
const EDS: TypeUrl = TypeUrl::CLUSTER_LOAD_ASSIGNMENT;
const LDS: TypeUrl = TypeUrl::LISTENER;
const RDS: TypeUrl = TypeUrl::ROUTE_CONFIGURATION;

/// A mux, a clock, and the requests in a form that reads like a log:
/// `TYPE v=.. n=.. [names]` or `TYPE n=.. +[..] -[..] {..}`, with `node` and the error if there are any.
struct Talk {
    mux: Mux,
    now: Now,
    short: FxHashMap<String, &'static str>,
}

impl Talk {
    fn new(options: MuxOptions) -> Talk {
        let short = [(CDS, "CDS"), (EDS, "EDS"), (LDS, "LDS"), (RDS, "RDS")];
        let mut talk = Talk {
            mux: Mux::new(options),
            now: Now { instant: Instant::now(), wall: SystemTime::UNIX_EPOCH },
            short: short.into_iter().map(|(t, s)| (t.as_str().to_owned(), s)).collect(),
        };
        talk.mux.stream_opened();
        talk
    }

    fn sotw() -> Talk {
        Talk::new(MuxOptions { node_on_first_message_only: true, ..MuxOptions::new(Protocol::Sotw) })
    }

    fn delta() -> Talk {
        Talk::new(MuxOptions { node_on_first_message_only: true, ..MuxOptions::new(Protocol::Delta) })
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.wall += time;
    }

    fn wildcard(&mut self, type_url: TypeUrl) -> WatchId {
        self.mux.subscribe(self.now, SubscriptionOptions::new(type_url, Interest::Wildcard))
    }

    fn names(&mut self, type_url: TypeUrl, names: &[&str]) -> WatchId {
        self.mux.subscribe(self.now, SubscriptionOptions::new(type_url, named(names)))
    }

    fn sent(&mut self) -> Vec<String> {
        let mut sent = Vec::new();
        while let Due::Send(request) = self.mux.poll_request(self.now) {
            let mut line = match &request.body {
                RequestBody::Sotw(r) => {
                    let kind = self.short[&r.type_url];
                    let error = r.error_detail.as_ref();
                    let mut line =
                        format!("{kind} v={} n={} [{}]", r.version_info, r.response_nonce, r.resource_names.join(" "));
                    if let Some(e) = error {
                        line += &format!(" error {}: {}", e.code, e.message);
                    }
                    line
                }
                RequestBody::Delta(r) => {
                    let mut held: Vec<String> =
                        r.initial_resource_versions.iter().map(|(n, v)| format!("{n}={v}")).collect();
                    held.sort();
                    let mut line = format!("{} n={}", self.short[&r.type_url], r.response_nonce);
                    line += &format!(" +[{}]", r.resource_names_subscribe.join(" "));
                    line += &format!(" -[{}]", r.resource_names_unsubscribe.join(" "));
                    line += &format!(" {{{}}}", held.join(" "));
                    if let Some(e) = &r.error_detail {
                        line += &format!(" error {}: {}", e.code, e.message);
                    }
                    line
                }
            };
            if request.with_node && matches!(request.body, RequestBody::Sotw(_)) {
                line += " node";
            }
            sent.push(line);
        }
        sent
    }

    /// Takes a response, answers every update with `judge`, and returns what was handed out.
    fn take(
        &mut self,
        response: Response,
        mut judge: impl FnMut(&mut Mux, WatchId, &Update) -> Verdict,
    ) -> Vec<(WatchId, Update)> {
        let Some(mut delivery) = self.mux.on_response(self.now, response) else { return Vec::new() };
        let updates = std::mem::take(&mut delivery.updates);
        let verdicts: Vec<(WatchId, Verdict)> =
            updates.iter().map(|(id, update)| (*id, judge(&mut self.mux, *id, update))).collect();
        self.mux.finish(self.now, delivery, &verdicts);
        updates
    }

    fn accept(&mut self, response: Response) -> Vec<(WatchId, Update)> {
        self.take(response, |_, _, _| Verdict::accept())
    }

    fn status(&self, type_url: &TypeUrl, name: &str) -> Option<crate::status::ResourceState> {
        let types = self.mux.snapshot();
        types.into_iter().find(|t| t.type_url == *type_url)?.resources.into_iter().find(|r| r.name == name)
    }
}

fn named(names: &[&str]) -> Interest {
    Interest::Names(names.iter().map(|n| (*n).to_owned()).collect())
}

fn any(type_url: &TypeUrl, name: &str) -> Any {
    // Field 1 is the name in all of these messages.
    let body = Cluster { name: name.to_owned(), ..Cluster::default() };
    Any { type_url: type_url.as_str().to_owned(), value: body.encode_to_vec() }
}

fn sotw(type_url: TypeUrl, version: &str, nonce: &str, names: &[&str]) -> Response {
    Response::Sotw(DiscoveryResponse {
        version_info: version.to_owned(),
        nonce: nonce.to_owned(),
        resources: names.iter().map(|n| any(&type_url, n)).collect(),
        type_url: type_url.as_str().to_owned(),
        ..DiscoveryResponse::default()
    })
}

/// Each resource is `name=version`, or a bare name for a removal.
fn delta(type_url: TypeUrl, nonce: &str, resources: &[&str]) -> Response {
    let mut response = DeltaDiscoveryResponse {
        system_version_info: format!("s{nonce}"),
        nonce: nonce.to_owned(),
        type_url: type_url.as_str().to_owned(),
        ..DeltaDiscoveryResponse::default()
    };
    for resource in resources {
        match resource.split_once('=') {
            Some((name, version)) => response.resources.push(ProtoResource {
                name: name.to_owned(),
                version: version.to_owned(),
                resource: Some(any(&type_url, name)),
                ..ProtoResource::default()
            }),
            None => response.removed_resources.push((*resource).to_owned()),
        }
    }
    Response::Delta(response)
}

fn added(updates: &[(WatchId, Update)]) -> Vec<String> {
    updates
        .iter()
        .map(|(id, u)| {
            let names: Vec<&str> = u.added.iter().map(|r| r.name.as_str()).collect();
            format!("{}: +[{}] -[{}]", id.0, names.join(" "), u.removed.join(" "))
        })
        .collect()
}

const NONE: [&str; 0] = [];

#[test]
fn the_first_requests_come_in_order_and_what_a_response_leads_to_comes_before_its_ack() {
    let mut talk = Talk::sotw();
    talk.wildcard(CDS);
    assert_eq!(talk.sent(), ["CDS v= n= [] node"]);
    let now = talk.now;
    talk.take(sotw(CDS, "c1", "n1", &["a", "b"]), |mux, _, update| {
        assert!(update.full_state);
        for resource in &update.added {
            mux.subscribe(now, SubscriptionOptions::new(EDS, named(&[&resource.name])));
        }
        Verdict::accept()
    });
    assert_eq!(talk.sent(), ["EDS v= n= [b a]", "CDS v=c1 n=n1 []"]);
    talk.accept(sotw(EDS, "e1", "n2", &["a", "b"]));
    assert_eq!(talk.sent(), ["EDS v=e1 n=n2 [b a]"]);
    talk.wildcard(LDS);
    assert_eq!(talk.sent(), ["LDS v= n= []"]);
    talk.take(sotw(LDS, "l1", "n3", &["x"]), |mux, _, _| {
        // RDS is held while the update is worked on, as listeners are added one by one.
        mux.pause(&RDS);
        for name in ["r1", "r2"] {
            mux.subscribe(now, SubscriptionOptions::new(RDS, named(&[name])));
        }
        mux.resume(&RDS);
        Verdict::accept()
    });
    assert_eq!(talk.sent(), ["RDS v= n= [r2 r1]", "LDS v=l1 n=n3 []"]);
    talk.accept(sotw(RDS, "r", "n4", &["r1", "r2"]));
    assert_eq!(talk.sent(), ["RDS v=r n=n4 [r2 r1]"]);
}

#[test]
fn delta_has_the_same_order_with_names_and_no_versions() {
    let mut talk = Talk::delta();
    talk.wildcard(CDS);
    assert_eq!(talk.sent(), ["CDS n= +[] -[] {}"]);
    let now = talk.now;
    talk.take(delta(CDS, "1", &["a=1", "b=1"]), |mux, _, update| {
        assert!(!update.full_state);
        for resource in &update.added {
            mux.subscribe(now, SubscriptionOptions::new(EDS, named(&[&resource.name])));
        }
        Verdict::accept()
    });
    assert_eq!(talk.sent(), ["EDS n= +[a b] -[] {}", "CDS n=1 +[] -[] {}"]);
}

#[test]
fn the_node_goes_in_every_message_unless_it_is_told_once() {
    let mut talk = Talk::new(MuxOptions::new(Protocol::Sotw));
    talk.wildcard(CDS);
    talk.wildcard(LDS);
    assert_eq!(talk.sent(), ["CDS v= n= [] node", "LDS v= n= [] node"]);
    let mut talk = Talk::sotw();
    talk.wildcard(CDS);
    talk.wildcard(LDS);
    assert_eq!(talk.sent(), ["CDS v= n= [] node", "LDS v= n= []"]);
    talk.mux.stream_closed();
    talk.mux.stream_opened();
    assert_eq!(talk.sent(), ["CDS v= n= [] node", "LDS v= n= []"]);
}

#[test]
fn delta_tells_the_node_once_only_if_it_is_to() {
    for once in [false, true] {
        let mut talk = Talk::new(MuxOptions { node_on_first_message_only: once, ..MuxOptions::new(Protocol::Delta) });
        talk.wildcard(CDS);
        talk.wildcard(LDS);
        let mut nodes = Vec::new();
        while let Due::Send(request) = talk.mux.poll_request(talk.now) {
            nodes.push(request.with_node);
        }
        assert_eq!(nodes, [true, !once]);
    }
}

#[test]
fn a_nack_has_the_last_accepted_version_the_new_nonce_and_the_error_once() {
    let mut talk = Talk::sotw();
    talk.wildcard(CDS);
    talk.sent();
    talk.take(sotw(CDS, "c1", "n1", &["bad"]), |_, _, _| Verdict::reject("no good"));
    assert_eq!(talk.sent(), ["CDS v= n=n1 [] error 13: no good"]);
    talk.accept(sotw(CDS, "c2", "n2", &["a"]));
    assert_eq!(talk.sent(), ["CDS v=c2 n=n2 []"]);
    talk.take(sotw(CDS, "c3", "n3", &["a", "bad"]), |_, _, _| {
        let error = ResourceError { name: "bad".into(), message: "no".into() };
        Verdict::reject_resources("Error adding/updating cluster(s) bad: no", vec![error])
    });
    assert_eq!(talk.sent(), ["CDS v=c2 n=n3 [] error 13: Error adding/updating cluster(s) bad: no"]);
    // The good one was taken; the bad one is known as refused.
    assert_eq!(talk.status(&CDS, "a").unwrap().status, ResourceStatus::Acked);
    assert_eq!(talk.status(&CDS, "a").unwrap().version, "c3");
    let bad = talk.status(&CDS, "bad").unwrap();
    assert_eq!((bad.status, bad.version.as_str(), bad.rejected_version.as_str()), (ResourceStatus::Nacked, "", "c3"));
    assert_eq!(bad.error, "no");
    // A later request of the same type does not repeat the error.
    talk.names(CDS, &["od"]);
    assert_eq!(talk.sent(), ["CDS v=c2 n=n3 [od *]"]);
}

#[test]
fn the_text_of_a_nack_is_cut_at_4096_bytes() {
    let mut talk = Talk::sotw();
    talk.wildcard(CDS);
    talk.sent();
    talk.take(sotw(CDS, "1", "1", &["a"]), |_, _, _| Verdict::reject("é".repeat(3000)));
    let sent = talk.sent();
    assert!(sent[0].ends_with(&format!("error 13: {}...(truncated)", "é".repeat(2048))));
}

#[test]
fn the_same_version_with_a_new_nonce_is_acknowledged_again() {
    let mut talk = Talk::sotw();
    talk.wildcard(CDS);
    talk.sent();
    talk.accept(sotw(CDS, "c1", "n1", &["a"]));
    talk.sent();
    talk.accept(sotw(CDS, "c1", "n2", &["a"]));
    assert_eq!(talk.sent(), ["CDS v=c1 n=n2 []"]);
}

#[test]
fn a_type_that_no_one_asked_for_is_ignored_without_an_answer() {
    let mut talk = Talk::sotw();
    talk.wildcard(CDS);
    talk.sent();
    assert!(talk.mux.on_response(talk.now, sotw(RDS, "1", "1", &["r"])).is_none());
    let unknown = TypeUrl::new("x.Y");
    assert!(talk.mux.on_response(talk.now, sotw(unknown, "1", "1", &["r"])).is_none());
    assert_eq!(talk.sent(), NONE);
}

#[test]
fn a_resource_of_another_type_refuses_the_whole_response() {
    let mut talk = Talk::sotw();
    let id = talk.wildcard(CDS);
    talk.sent();
    let Response::Sotw(mut response) = sotw(CDS, "1", "n1", &["a"]) else { unreachable!() };
    response.resources.push(any(&LDS, "l"));
    let mut delivery = talk.mux.on_response(talk.now, Response::Sotw(response)).unwrap();
    assert!(delivery.malformed.is_some() && delivery.updates.is_empty());
    assert_eq!(talk.mux.subscribed_to(&CDS), [id]);
    delivery.updates.clear();
    talk.mux.finish(talk.now, delivery, &[]);
    let error = "type.googleapis.com/envoy.config.listener.v3.Listener does not match the message-wide type URL \
                 type.googleapis.com/envoy.config.cluster.v3.Cluster in DiscoveryResponse 1";
    assert_eq!(talk.sent(), [format!("CDS v= n=n1 [] error 13: {error}")]);
}

#[test]
fn a_resource_that_no_one_asked_for_is_ignored_and_acknowledged() {
    let mut talk = Talk::sotw();
    let a = talk.names(EDS, &["a"]);
    talk.sent();
    let updates = talk.accept(sotw(EDS, "1", "1", &["other", "a"]));
    assert_eq!(added(&updates), [format!("{}: +[a] -[]", a.0)]);
    assert_eq!(talk.sent(), ["EDS v=1 n=1 [a]"]);
    assert!(talk.status(&EDS, "other").is_none());
    // No one of those who asked by name is told of a response without their names.
    assert!(talk.accept(sotw(EDS, "2", "2", &["other"])).is_empty());
    assert_eq!(talk.sent(), ["EDS v=2 n=2 [a]"]);
    // Left out is not removed.
    assert_eq!(talk.status(&EDS, "a").unwrap().status, ResourceStatus::Acked);
}

#[test]
fn an_empty_response_to_a_wildcard_removes_everything() {
    let mut talk = Talk::sotw();
    let id = talk.wildcard(LDS);
    talk.sent();
    talk.accept(sotw(LDS, "1", "1", &["a", "b", "c"]));
    let updates = talk.accept(sotw(LDS, "2", "2", &["b"]));
    assert_eq!(added(&updates), [format!("{}: +[b] -[a c]", id.0)]);
    let updates = talk.accept(sotw(LDS, "3", "3", &[]));
    assert_eq!(added(&updates), [format!("{}: +[] -[b]", id.0)]);
    assert!(updates[0].1.full_state);
    assert_eq!(talk.sent(), ["LDS v=3 n=3 []"]);
    assert!(talk.status(&LDS, "a").is_none());
}

#[test]
fn what_a_refused_full_state_left_out_is_named_again_by_the_next() {
    let mut talk = Talk::sotw();
    let id = talk.wildcard(LDS);
    talk.accept(sotw(LDS, "1", "1", &["a", "b"]));
    talk.take(sotw(LDS, "2", "2", &["b", "c"]), |_, _, _| Verdict::reject("no"));
    let updates = talk.accept(sotw(LDS, "3", "3", &["b"]));
    assert_eq!(added(&updates), [format!("{}: +[b] -[a c]", id.0)]);
}

#[test]
fn the_ack_of_cds_waits_while_clusters_warm_and_eds_goes_ahead() {
    let mut talk = Talk::sotw();
    talk.wildcard(CDS);
    talk.sent();
    let now = talk.now;
    talk.take(sotw(CDS, "c1", "n1", &["a"]), |mux, _, _| {
        mux.pause(&CDS);
        mux.subscribe(now, SubscriptionOptions::new(EDS, named(&["a"])));
        Verdict::accept()
    });
    assert_eq!(talk.sent(), ["EDS v= n= [a]"]);
    talk.accept(sotw(EDS, "e1", "n2", &["a"]));
    assert_eq!(talk.sent(), ["EDS v=e1 n=n2 [a]"]);
    talk.mux.resume(&CDS);
    assert_eq!(talk.sent(), ["CDS v=c1 n=n1 []"]);
}

#[test]
fn pauses_add_up() {
    let mut talk = Talk::delta();
    talk.wildcard(CDS);
    talk.sent();
    talk.mux.pause(&CDS);
    talk.mux.pause(&CDS);
    talk.accept(delta(CDS, "1", &["a=1"]));
    talk.accept(delta(CDS, "2", &["a=2"]));
    talk.mux.resume(&CDS);
    assert!(talk.mux.is_paused(&CDS));
    assert_eq!(talk.sent(), NONE);
    talk.mux.resume(&CDS);
    // Each delta is answered by itself.
    assert_eq!(talk.sent(), ["CDS n=1 +[] -[] {}", "CDS n=2 +[] -[] {}"]);
}

#[test]
fn a_paused_type_is_not_asked_for_on_a_new_stream_until_it_is_resumed() {
    let mut talk = Talk::sotw();
    talk.wildcard(CDS);
    talk.names(EDS, &["a"]);
    talk.accept(sotw(CDS, "c1", "n1", &["a"]));
    talk.sent();
    talk.mux.pause(&CDS);
    talk.mux.stream_closed();
    talk.mux.stream_opened();
    assert_eq!(talk.sent(), ["EDS v= n= [a] node"]);
    talk.mux.resume(&CDS);
    assert_eq!(talk.sent(), ["CDS v=c1 n= []"]);
}

#[test]
fn a_new_stream_starts_with_the_accepted_version_and_no_nonce() {
    let mut talk = Talk::sotw();
    talk.wildcard(CDS);
    talk.names(EDS, &["a"]);
    talk.sent();
    talk.accept(sotw(CDS, "c1", "n1", &["a"]));
    talk.take(sotw(CDS, "c2", "n2", &["a"]), |_, _, _| Verdict::reject("no"));
    talk.accept(sotw(EDS, "e1", "n3", &["a"]));
    // The error was not sent before the stream broke: it is forgotten, with the nonces.
    assert_eq!(talk.mux.stream_closed().len(), 2);
    assert_eq!(talk.sent(), NONE);
    talk.mux.stream_opened();
    assert_eq!(talk.sent(), ["CDS v=c1 n= [] node", "EDS v=e1 n= [a]"]);
}

#[test]
fn a_subscription_is_asked_for_again_when_it_is_renewed_but_not_by_delta() {
    let mut talk = Talk::sotw();
    let old = talk.names(EDS, &["a"]);
    talk.sent();
    talk.accept(sotw(EDS, "e1", "n1", &["a"]));
    talk.sent();
    talk.names(EDS, &["a"]);
    talk.mux.unsubscribe(old);
    assert_eq!(talk.sent(), ["EDS v=e1 n=n1 [a]"]);

    let mut talk = Talk::delta();
    let old = talk.names(EDS, &["a"]);
    talk.sent();
    talk.accept(delta(EDS, "1", &["a=1"]));
    talk.sent();
    talk.names(EDS, &["a"]);
    talk.mux.unsubscribe(old);
    assert_eq!(talk.sent(), NONE);
}

#[test]
fn the_last_name_that_goes_is_told_with_no_names_but_never_on_a_new_stream() {
    let mut talk = Talk::sotw();
    let a = talk.names(EDS, &["a"]);
    talk.sent();
    talk.accept(sotw(EDS, "e1", "n1", &["a"]));
    talk.sent();
    talk.mux.unsubscribe(a);
    assert_eq!(talk.sent(), ["EDS v=e1 n=n1 []"]);
    // What the server still sends is not answered with another version; nothing, is.
    talk.accept(sotw(EDS, "e2", "n2", &["a"]));
    assert_eq!(talk.sent(), ["EDS v=e1 n=n2 []"]);
    talk.accept(sotw(EDS, "e3", "n3", &[]));
    assert_eq!(talk.sent(), NONE);
    // There, no names would ask for all.
    talk.mux.stream_closed();
    talk.mux.stream_opened();
    assert_eq!(talk.sent(), NONE);
    talk.names(EDS, &["b"]);
    assert_eq!(talk.sent(), ["EDS v=e3 n= [b] node"]);
    let mut talk = Talk::sotw();
    talk.names(EDS, &[]);
    assert_eq!(talk.sent(), NONE);
}

#[test]
fn names_are_those_of_the_latest_subscription_first_each_once() {
    let mut talk = Talk::sotw();
    talk.names(RDS, &["r1"]);
    let two = talk.names(RDS, &["r9", "r1", "r3"]);
    assert_eq!(talk.sent(), ["RDS v= n= [r1 r3 r9] node"]);
    talk.mux.update(talk.now, two, named(&["r2"]));
    assert_eq!(talk.sent(), ["RDS v= n= [r2 r1]"]);
}

#[test]
fn delta_reconnects_with_what_was_accepted_and_all_names() {
    let mut talk = Talk::delta();
    talk.wildcard(CDS);
    talk.names(EDS, &["a", "b"]);
    talk.sent();
    talk.accept(delta(CDS, "1", &["a=1", "b=1", "gone=1"]));
    talk.accept(delta(EDS, "2", &["a=7"]));
    talk.accept(delta(CDS, "3", &["b=2", "gone"]));
    // The good resources of a refused delta are applied, but not listed.
    talk.take(delta(CDS, "4", &["a=9", "bad=1"]), |_, _, _| {
        Verdict::reject_resources("bad", vec![ResourceError { name: "bad".into(), message: "bad".into() }])
    });
    assert_eq!(
        talk.sent(),
        ["CDS n=1 +[] -[] {}", "EDS n=2 +[] -[] {}", "CDS n=3 +[] -[] {}", "CDS n=4 +[] -[] {} error 13: bad"]
    );
    assert_eq!(talk.status(&CDS, "a").unwrap().version, "9");
    talk.mux.stream_closed();
    talk.mux.stream_opened();
    assert_eq!(talk.sent(), ["CDS n= +[] -[] {a=1 b=2}", "EDS n= +[a b] -[] {a=7}"]);
    // What was removed while the stream was away comes as a removal.
    let updates = talk.accept(delta(CDS, "5", &["b"]));
    assert_eq!(updates[0].1.removed, ["b"]);
    talk.mux.stream_opened();
    assert_eq!(talk.sent()[0], "CDS n= +[] -[] {a=1}");
}

#[test]
fn delta_duplicates_refuse_everything() {
    let mut talk = Talk::delta();
    talk.wildcard(CDS);
    talk.sent();
    let updates = talk.accept(delta(CDS, "1", &["q=1", "q=2"]));
    assert!(updates.is_empty());
    assert_eq!(talk.sent(), ["CDS n=1 +[] -[] {} error 13: duplicate name q found among added/updated resources"]);
    talk.accept(delta(CDS, "2", &["q=1", "q"]));
    assert_eq!(
        talk.sent(),
        ["CDS n=2 +[] -[] {} error 13: duplicate name q found in the union of added+removed resources"]
    );
}

#[test]
fn delta_removals_of_the_unknown_and_empty_responses_are_acknowledged() {
    let mut talk = Talk::delta();
    let id = talk.wildcard(CDS);
    talk.sent();
    let updates = talk.accept(delta(CDS, "1", &["never"]));
    assert_eq!(added(&updates), [format!("{}: +[] -[never]", id.0)]);
    let updates = talk.accept(delta(CDS, "2", &[]));
    assert_eq!(added(&updates), [format!("{}: +[] -[]", id.0)]);
    assert_eq!(talk.sent(), ["CDS n=1 +[] -[] {}", "CDS n=2 +[] -[] {}"]);
}

#[test]
fn delta_takes_the_outer_name() {
    let mut talk = Talk::delta();
    talk.wildcard(CDS);
    talk.sent();
    let Response::Delta(mut response) = delta(CDS, "1", &["inner=1"]) else { unreachable!() };
    response.resources[0].name = "outer".into();
    let updates = talk.accept(Response::Delta(response));
    assert_eq!(updates[0].1.added[0].name, "outer");
}

#[test]
fn delta_names_beside_a_wildcard_name_the_wildcard_too() {
    let mut talk = Talk::delta();
    talk.wildcard(CDS);
    assert_eq!(talk.sent(), ["CDS n= +[] -[] {}"]);
    let od = talk.names(CDS, &["od"]);
    assert_eq!(talk.sent(), ["CDS n= +[od] -[] {}"]);
    talk.accept(delta(CDS, "1", &["od=1", "w=1"]));
    talk.sent();
    talk.mux.stream_opened();
    assert_eq!(talk.sent(), ["CDS n= +[* od] -[] {od=1 w=1}"]);
    talk.mux.unsubscribe(od);
    assert_eq!(talk.sent(), ["CDS n= +[] -[od] {}"]);
    // It may be among what the wildcard brings: held until the server says.
    talk.mux.stream_opened();
    assert_eq!(talk.sent(), ["CDS n= +[] -[] {od=1 w=1}"]);
    talk.accept(delta(CDS, "2", &["od"]));
    talk.mux.stream_opened();
    assert_eq!(talk.sent(), ["CDS n= +[] -[] {w=1}"]);
}

#[test]
fn delta_names_that_go_and_come_again_are_asked_for_anew() {
    let mut talk = Talk::delta();
    let a = talk.names(EDS, &["a"]);
    talk.names(EDS, &["keep"]);
    talk.sent();
    talk.accept(delta(EDS, "1", &["a=1"]));
    talk.mux.pause(&EDS);
    talk.mux.unsubscribe(a);
    talk.names(EDS, &["a"]);
    talk.mux.resume(&EDS);
    assert_eq!(talk.sent(), ["EDS n=1 +[a] -[] {}"]);
    // It was forgotten, so that its version is not held against it.
    talk.mux.stream_opened();
    assert_eq!(talk.sent(), ["EDS n= +[keep a] -[] {}"]);
}

#[test]
fn an_ack_of_delta_carries_what_else_there_is_to_say() {
    let mut talk = Talk::delta();
    talk.names(EDS, &["a"]);
    talk.sent();
    talk.accept(delta(EDS, "1", &["a=1"]));
    talk.names(EDS, &["b"]);
    assert_eq!(talk.sent(), ["EDS n=1 +[b] -[] {}"]);
}

#[test]
fn virtual_hosts_reach_their_namespace_and_are_asked_for_on_demand() {
    const VHDS: TypeUrl = TypeUrl::VIRTUAL_HOST;
    let mut talk = Talk::delta();
    talk.short.insert(VHDS.as_str().to_owned(), "VHDS");
    let id = talk.mux.subscribe(talk.now, SubscriptionOptions::new(VHDS, Interest::Namespace("r1".into())));
    assert_eq!(talk.sent(), ["VHDS n= +[] -[] {}"]);
    let updates = talk.accept(delta(VHDS, "1", &["r1/a.com=1", "r10/b.com=1", "r1=1"]));
    assert_eq!(added(&updates), [format!("{}: +[r1/a.com] -[]", id.0)]);
    talk.mux.request_on_demand(talk.now, id, &["r1/c.com".to_owned()]);
    assert_eq!(talk.sent(), ["VHDS n=1 +[r1/c.com] -[] {}"]);
    let Response::Delta(mut response) = delta(VHDS, "2", &["r1/c.com=1"]) else { unreachable!() };
    response.resources[0].resource = None;
    response.resources[0].aliases = vec!["r1/c.com".into()];
    let updates = talk.accept(Response::Delta(response));
    assert!(updates[0].1.added[0].unresolved);
    assert_eq!(talk.sent(), ["VHDS n=2 +[] -[] {}"]);
}

fn ttl_resource(type_url: &TypeUrl, name: &str, version: &str, seconds: i64, body: bool) -> ProtoResource {
    ProtoResource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: body.then(|| any(type_url, name)),
        ttl: Some(ProtoDuration { seconds, nanos: 0 }),
        ..ProtoResource::default()
    }
}

fn wrapped(type_url: &TypeUrl, name: &str, version: &str, seconds: i64, body: bool) -> Response {
    let resource = ttl_resource(type_url, name, version, seconds, body);
    let Response::Sotw(mut response) = sotw(type_url.clone(), version, version, &[]) else { unreachable!() };
    response.resources = vec![Any {
        type_url: "type.googleapis.com/envoy.service.discovery.v3.Resource".to_owned(),
        value: resource.encode_to_vec(),
    }];
    Response::Sotw(response)
}

#[test]
fn a_resource_expires_unless_a_heartbeat_comes() {
    for protocol in [Protocol::Sotw, Protocol::Delta] {
        let mut talk = Talk::new(MuxOptions::new(protocol));
        let id = talk.wildcard(LDS);
        talk.sent();
        let response = |nonce: &str, body| match protocol {
            Protocol::Sotw => wrapped(&LDS, "l", "1", 10, body),
            Protocol::Delta => {
                let Response::Delta(mut response) = delta(LDS, nonce, &[]) else { unreachable!() };
                response.resources = vec![ttl_resource(&LDS, "l", "1", 10, body)];
                Response::Delta(response)
            }
        };
        let updates = talk.accept(response("1", true));
        assert_eq!(updates[0].1.added[0].ttl, Some(Duration::from_secs(10)));
        talk.pass(Duration::from_secs(9));
        let updates = talk.accept(response("2", false));
        // A heartbeat brings nothing, and takes nothing away.
        assert!(updates.iter().all(|(_, u)| u.added.is_empty() && u.removed.is_empty()));
        assert_eq!(talk.sent().len(), if protocol == Protocol::Sotw { 1 } else { 2 });
        talk.pass(Duration::from_secs(9));
        assert!(talk.mux.on_deadline(talk.now).removals.is_empty());
        assert_eq!(talk.mux.next_deadline(), Some(talk.now.instant + Duration::from_secs(1)));
        talk.pass(Duration::from_secs(1));
        let expired = talk.mux.on_deadline(talk.now);
        assert_eq!(added(&expired.removals), [format!("{}: +[] -[l]", id.0)]);
        assert_eq!(talk.mux.next_deadline(), None);
        assert!(talk.status(&LDS, "l").is_none());
        // It comes again as new.
        let updates = talk.accept(response("3", true));
        assert_eq!(added(&updates), [format!("{}: +[l] -[]", id.0)]);
    }
}

#[test]
fn a_resource_sent_again_without_ttl_lives_on() {
    let mut talk = Talk::sotw();
    talk.names(RDS, &["r"]);
    talk.accept(wrapped(&RDS, "r", "1", 10, true));
    // The first fetch is done: what is left is the TTL.
    assert_eq!(talk.mux.next_deadline(), Some(talk.now.instant + Duration::from_secs(10)));
    talk.accept(sotw(RDS, "2", "2", &["r"]));
    assert_eq!(talk.mux.next_deadline(), None);
}

#[test]
fn the_first_fetch_times_out_once_and_zero_waits_for_ever() {
    let mut talk = Talk::sotw();
    let a = talk.names(EDS, &["a"]);
    let patient =
        SubscriptionOptions { initial_fetch_timeout: Duration::ZERO, ..SubscriptionOptions::new(EDS, named(&["b"])) };
    talk.mux.subscribe(talk.now, patient);
    let c = talk.names(EDS, &["c"]);
    talk.pass(Duration::from_secs(14));
    talk.accept(sotw(EDS, "1", "1", &["c"]));
    talk.pass(Duration::from_secs(1));
    let expired = talk.mux.on_deadline(talk.now);
    assert_eq!(expired.timed_out, [a]);
    assert_eq!(talk.status(&EDS, "a").unwrap().status, ResourceStatus::Timeout);
    assert_eq!(talk.status(&EDS, "b").unwrap().status, ResourceStatus::Requested);
    assert_eq!(talk.status(&EDS, "c").unwrap().status, ResourceStatus::Acked);
    assert_eq!(talk.mux.next_deadline(), None);
    talk.mux.unsubscribe(c);
    // It is still asked for, and welcome when it comes.
    assert_eq!(added(&talk.accept(sotw(EDS, "2", "2", &["a"]))), [format!("{}: +[a] -[]", a.0)]);
}

#[test]
fn the_rate_limit_holds_requests_back_and_loses_none() {
    let rate_limit = Some(RateLimit { max_tokens: 2, fill_rate: 1.0 });
    let mut talk = Talk::new(MuxOptions { rate_limit, ..MuxOptions::new(Protocol::Sotw) });
    talk.wildcard(CDS);
    talk.wildcard(LDS);
    talk.names(RDS, &["r1"]);
    assert_eq!(talk.sent().len(), 2);
    assert_eq!((talk.mux.pending_requests(), talk.mux.rate_limited()), (1, 1));
    // What is asked for meanwhile goes into the request that waits.
    talk.names(RDS, &["r2"]);
    assert!(matches!(talk.mux.poll_request(talk.now), Due::Wait(_)));
    talk.pass(Duration::from_millis(1001));
    assert_eq!(talk.sent(), ["RDS v= n= [r2 r1] node"]);
    assert_eq!(talk.mux.pending_requests(), 0);
}

#[test]
fn endpoints_are_kept_as_long_as_someone_asks_for_them() {
    for protocol in [Protocol::Sotw, Protocol::Delta] {
        let mut talk = Talk::new(MuxOptions { cached_types: vec![EDS], ..MuxOptions::new(protocol) });
        let old = talk.names(EDS, &["a"]);
        talk.accept(match protocol {
            Protocol::Sotw => sotw(EDS, "1", "1", &["a"]),
            Protocol::Delta => delta(EDS, "1", &["a=1"]),
        });
        let new = talk.names(EDS, &["a"]);
        talk.mux.unsubscribe(old);
        assert_eq!(talk.mux.cached(&EDS, "a").unwrap().version, "1");
        talk.mux.unsubscribe(new);
        assert!(talk.mux.cached(&EDS, "a").is_none());
    }
}

#[test]
fn each_subscription_is_judged_by_itself_and_a_nack_carries_all_texts() {
    let mut talk = Talk::sotw();
    talk.names(EDS, &["a"]);
    talk.names(EDS, &["b"]);
    talk.names(EDS, &["c"]);
    talk.sent();
    talk.take(sotw(EDS, "1", "1", &["a", "b", "c"]), |_, _, update| match update.added[0].name.as_str() {
        "b" => Verdict::accept(),
        name => Verdict::reject(format!("{name} is bad")),
    });
    assert_eq!(talk.sent(), ["EDS v= n=1 [c b a] error 13: c is bad\na is bad"]);
    assert_eq!(talk.status(&EDS, "a").unwrap().error, "a is bad");
    assert_eq!(talk.status(&EDS, "b").unwrap().status, ResourceStatus::Acked);
}

#[test]
fn a_subscription_that_ends_while_another_is_told_is_not_recorded() {
    let mut talk = Talk::sotw();
    let a = talk.names(EDS, &["a"]);
    talk.names(EDS, &["b"]);
    talk.take(sotw(EDS, "1", "1", &["a", "b"]), |mux, _, _| {
        mux.unsubscribe(a);
        Verdict::accept()
    });
    assert!(!talk.mux.is_subscribed(a));
    assert!(talk.status(&EDS, "a").is_none());
    assert_eq!(talk.sent(), ["EDS v=1 n=1 [b] node"]);
}

#[test]
fn the_control_plane_is_known_by_its_identifier() {
    let mut talk = Talk::sotw();
    talk.wildcard(CDS);
    let Response::Sotw(mut response) = sotw(CDS, "1", "1", &[]) else { unreachable!() };
    response.control_plane = Some(ControlPlane { identifier: "istiod-1".into() });
    let updates = talk.accept(Response::Sotw(response));
    assert_eq!((updates[0].1.control_plane.as_str(), talk.mux.control_plane()), ("istiod-1", "istiod-1"));
}

#[test]
fn a_poll_repeats_the_accepted_version_with_sorted_names_and_gives_everything() {
    let mut talk = Talk::new(MuxOptions { deliver_all: true, ..MuxOptions::new(Protocol::Sotw) });
    talk.mux.stream_closed();
    let id = talk.names(RDS, &["b", "a"]);
    let body = talk.mux.poll_body().unwrap();
    assert_eq!((body.version_info.as_str(), body.resource_names), ("", vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(added(&talk.accept(sotw(RDS, "1", "", &["x"]))), [format!("{}: +[x] -[]", id.0)]);
    talk.take(sotw(RDS, "2", "", &["x"]), |_, _, _| Verdict::reject("no"));
    assert_eq!(talk.mux.poll_body().unwrap().version_info, "1");
    assert_eq!(talk.sent(), NONE);
}

#[test]
fn a_request_is_encoded_with_the_node_appended() {
    use envoy_types::pb::envoy::config::core::v3::Node;
    let node = Node { id: "n".into(), ..Node::default() };
    let bytes = node.encode_to_vec();
    let mut talk = Talk::sotw();
    talk.names(EDS, &["a"]);
    let Due::Send(request) = talk.mux.poll_request(talk.now) else { panic!("nothing to send") };
    let decoded = DiscoveryRequest::decode(request.encode(&bytes)).unwrap();
    assert_eq!((decoded.node, decoded.resource_names), (Some(node.clone()), vec!["a".to_owned()]));
    let mut talk = Talk::delta();
    talk.names(EDS, &["a"]);
    let Due::Send(request) = talk.mux.poll_request(talk.now) else { panic!("nothing to send") };
    let decoded = DeltaDiscoveryRequest::decode(request.encode(&bytes)).unwrap();
    assert_eq!((decoded.node, decoded.resource_names_subscribe), (Some(node), vec!["a".to_owned()]));
}
