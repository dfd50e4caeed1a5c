//! What is different in the incremental protocol.

use super::*;

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

#[test]
fn names_on_demand_are_given_up_and_nothing_of_them_is_kept() {
    let mut talk = Talk::delta();
    let id = talk.mux.subscribe(talk.now, SubscriptionOptions::new(CDS, Interest::Namespace("r".into())));
    talk.sent();
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    talk.mux.request_on_demand(talk.now, id, &names(&["r/a", "r/b", "r/c"]));
    assert_eq!(talk.sent(), ["CDS n= +[r/a r/b r/c] -[] {}"]);
    talk.accept(delta(CDS, "1", &["r/a=1", "r/b"]));
    talk.sent();
    talk.mux.release_on_demand(id, &names(&["r/a", "r/b", "other"]));
    assert_eq!(talk.sent(), ["CDS n= +[] -[r/a r/b] {}"]);
    assert!(talk.status(&CDS, "r/a").is_none() && talk.status(&CDS, "r/b").is_none());
    // The answer of the server to that is of no consequence, and another stream learns what is left.
    talk.accept(delta(CDS, "2", &["r/a"]));
    talk.sent();
    talk.mux.stream_closed();
    talk.mux.stream_opened();
    assert_eq!(talk.sent(), ["CDS n= +[* r/c] -[] {}"]);
    talk.mux.unsubscribe(id);
    assert_eq!(talk.sent(), ["CDS n= +[] -[* r/c] {}"]);
}

#[test]
fn names_beside_a_wildcard_that_are_given_up_are_held_by_it() {
    let mut talk = Talk::delta();
    talk.wildcard(CDS);
    let id = talk.names(CDS, &[]);
    talk.sent();
    talk.mux.request_on_demand(talk.now, id, &["a".to_owned()]);
    talk.accept(delta(CDS, "1", &["a=1", "b=1"]));
    talk.sent();
    talk.mux.release_on_demand(id, &["a".to_owned()]);
    assert_eq!(talk.sent(), ["CDS n= +[] -[a] {}"]);
    talk.mux.stream_opened();
    assert_eq!(talk.sent(), ["CDS n= +[] -[] {a=1 b=1}"]);
}
