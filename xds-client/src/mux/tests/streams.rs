//! Pauses, new streams, and names that come and go.

use super::*;

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
fn a_type_is_known_to_have_been_asked_for_when_it_was_on_this_stream() {
    let mut talk = Talk::sotw();
    let asked = |talk: &Talk| talk.mux.snapshot()[0].requested;
    talk.wildcard(CDS);
    assert_eq!(asked(&talk), None);
    let first = Some(talk.now.wall);
    talk.sent();
    assert_eq!(asked(&talk), first);
    talk.pass(Duration::from_secs(1));
    talk.accept(sotw(CDS, "c1", "n1", &["a"]));
    assert_eq!((talk.sent().len(), asked(&talk)), (1, first), "an acknowledgement asks for nothing");
    talk.mux.stream_closed();
    talk.mux.stream_opened();
    talk.sent();
    assert_eq!(asked(&talk), Some(talk.now.wall));
}
