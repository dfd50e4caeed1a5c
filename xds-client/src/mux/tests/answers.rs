//! What is asked first, and how responses are answered.

use super::*;

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
    let body = talk.mux.poll_body(talk.now).unwrap();
    assert_eq!((body.version_info.as_str(), body.resource_names), ("", vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(added(&talk.accept(sotw(RDS, "1", "", &["x"]))), [format!("{}: +[x] -[]", id.0)]);
    talk.take(sotw(RDS, "2", "", &["x"]), |_, _, _| Verdict::reject("no"));
    assert_eq!(talk.mux.poll_body(talk.now).unwrap().version_info, "1");
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
