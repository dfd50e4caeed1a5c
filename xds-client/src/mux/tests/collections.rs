//! `xdstp://` names and the collections that they are in.

use super::*;

const ALL: &str = "xdstp://a/c/x/*?k=1&l=2";

impl Talk {
    fn collection(&mut self, type_url: TypeUrl, name: &str) -> WatchId {
        let options = SubscriptionOptions::new(type_url, Interest::Collection(name.to_owned()));
        self.mux.subscribe(self.now, options)
    }
}

#[test]
fn a_collection_is_asked_for_and_told_of_what_is_in_it() {
    let mut talk = Talk::delta();
    let all = talk.collection(CDS, "xdstp://a/c/x/*?l=2&k=1");
    assert_eq!(talk.sent(), [format!("CDS n= +[{ALL}] -[] {{}}")]);
    let updates = talk.accept(Response::Delta(DeltaDiscoveryResponse {
        resources: ["xdstp://a/c/x/one?l=2&k=1", "xdstp://a/c/x/one", "xdstp://a/c/y/two?k=1&l=2", "three"]
            .map(|name| ProtoResource {
                name: name.to_owned(),
                version: "1".to_owned(),
                resource: Some(any(&CDS, name)),
                ..ProtoResource::default()
            })
            .to_vec(),
        nonce: "1".to_owned(),
        type_url: CDS.as_str().to_owned(),
        ..DeltaDiscoveryResponse::default()
    }));
    assert_eq!(added(&updates), [format!("{}: +[xdstp://a/c/x/one?l=2&k=1] -[]", all.0)]);
    assert_eq!(talk.status(&CDS, "xdstp://a/c/x/one?k=1&l=2").unwrap().status, ResourceStatus::Acked);
    talk.sent();
    // Nothing is not an update; and what is in a collection is not told to a new stream.
    assert!(talk.accept(delta(CDS, "2", &[])).is_empty());
    assert_eq!(talk.sent(), ["CDS n=2 +[] -[] {}"]);
    talk.mux.stream_opened();
    assert_eq!(talk.sent(), [format!("CDS n= +[{ALL}] -[] {{}}")]);
}

#[test]
fn a_state_of_the_world_with_anything_of_a_collection_is_all_of_it() {
    let mut talk = Talk::sotw();
    let all = talk.collection(CDS, "xdstp://a/c/x/*");
    assert_eq!(talk.sent(), ["CDS v= n= [xdstp://a/c/x/*] node"]);
    let one = ["xdstp://a/c/x/1", "xdstp://a/c/x/2", "xdstp://a/c/x/2/3", "other"];
    let updates = talk.accept(sotw(CDS, "c1", "n1", &one));
    assert_eq!(added(&updates), [format!("{}: +[xdstp://a/c/x/1 xdstp://a/c/x/2] -[]", all.0)]);
    assert!(updates[0].1.full_state);
    let updates = talk.accept(sotw(CDS, "c2", "n2", &["xdstp://a/c/x/2"]));
    assert_eq!(added(&updates), [format!("{}: +[xdstp://a/c/x/2] -[xdstp://a/c/x/1]", all.0)]);
    assert!(talk.status(&CDS, "xdstp://a/c/x/1").is_none());
    assert!(talk.accept(sotw(CDS, "c3", "n3", &["other"])).is_empty());
    assert_eq!(talk.status(&CDS, "xdstp://a/c/x/2").unwrap().version, "c2");
    // What was told as gone is not told again.
    let updates = talk.accept(sotw(CDS, "c4", "n4", &["xdstp://a/c/x/2"]));
    assert_eq!(added(&updates), [format!("{}: +[xdstp://a/c/x/2] -[]", all.0)]);
    talk.mux.unsubscribe(all);
    talk.mux.stream_opened();
    assert_eq!(talk.sent(), NONE);
}

#[test]
fn one_name_may_be_written_in_two_ways() {
    let mut talk = Talk::sotw();
    let one = talk.names(EDS, &["xdstp://a/e/x?b=2&a=1"]);
    assert_eq!(talk.sent(), ["EDS v= n= [xdstp://a/e/x?a=1&b=2] node"]);
    let updates = talk.accept(sotw(EDS, "1", "n1", &["xdstp://a/e/x?b=2&a=1"]));
    assert_eq!(added(&updates), [format!("{}: +[xdstp://a/e/x?b=2&a=1] -[]", one.0)]);
    assert_eq!(talk.status(&EDS, "xdstp://a/e/x?a=1&b=2").unwrap().status, ResourceStatus::Acked);
}

#[test]
fn a_server_that_is_not_known_is_not_told_what_is_held() {
    let mut talk = Talk::delta();
    talk.wildcard(CDS);
    talk.sent();
    talk.accept(delta(CDS, "1", &["a=1"]));
    talk.mux.stream_opened_to(false);
    assert_eq!(talk.sent(), ["CDS n= +[] -[] {}"]);
    talk.mux.stream_opened_to(true);
    assert_eq!(talk.sent(), ["CDS n= +[] -[] {a=1}"]);
}
