//! Time to live, the first fetch, the rate limit, and what is kept of endpoints.

use super::*;

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
        assert!(expired.removals[0].1.expired && !updates.iter().any(|(_, update)| update.expired));
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
