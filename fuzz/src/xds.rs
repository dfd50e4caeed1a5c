//! Responses of a control plane: gRPC framing, decoding, and what the client makes of them.

use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use xds_client::mux::{Due, Mux, MuxOptions, RequestBody, Response};
use xds_client::transport::grpc::take_message;
use xds_client::{Interest, Now, Protocol, SubscriptionOptions, TypeUrl, Verdict};

/// The largest message taken here.
const LIMIT: usize = 1 << 16;

/// The first byte chooses the form of the protocol and the verdicts; the rest is what arrives on the stream.
pub fn stream(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let protocol = if choice & 1 == 0 { Protocol::Sotw } else { Protocol::Delta };
    let mut now = Now { instant: Instant::now(), wall: SystemTime::UNIX_EPOCH };
    let mut mux = Mux::new(MuxOptions::new(protocol));
    let names = Interest::Names(vec!["a".to_owned(), "b".to_owned()]);
    for (type_url, interest) in [
        (TypeUrl::CLUSTER, Interest::Wildcard),
        (TypeUrl::CLUSTER_LOAD_ASSIGNMENT, names),
        (TypeUrl::VIRTUAL_HOST, Interest::Namespace("a".to_owned())),
    ] {
        mux.subscribe(now, SubscriptionOptions::new(type_url, interest));
    }
    mux.stream_opened();
    while let Due::Send(_) = mux.poll_request(now) {}
    let mut read = BytesMut::from(data);
    while let Ok(Some(message)) = take_message(&mut read, LIMIT) {
        assert!(message.len() <= LIMIT);
        let Ok(response) = Response::decode(protocol, message) else { return };
        let nonce = match &response {
            Response::Sotw(response) => response.nonce.clone(),
            Response::Delta(response) => response.nonce.clone(),
        };
        let Some(mut delivery) = mux.on_response(now, response) else {
            assert_eq!(mux.poll_request(now), Due::Nothing, "a response of no concern was answered");
            continue;
        };
        let refused = choice & 2 != 0;
        let updates = std::mem::take(&mut delivery.updates);
        let any = !updates.is_empty();
        let malformed = delivery.malformed.is_some();
        assert!(!(any && malformed), "a malformed response was handed out");
        let verdict = || if refused { Verdict::reject("no") } else { Verdict::accept() };
        let verdicts: Vec<_> = updates.into_iter().map(|(id, _)| (id, verdict())).collect();
        mux.finish(now, delivery, &verdicts);
        let Due::Send(request) = mux.poll_request(now) else { panic!("no answer") };
        let (answered, error) = match &request.body {
            RequestBody::Sotw(request) => (&request.response_nonce, request.error_detail.is_some()),
            RequestBody::Delta(request) => (&request.response_nonce, request.error_detail.is_some()),
        };
        assert_eq!(*answered, nonce);
        assert_eq!(error, malformed || (any && refused));
        assert_eq!(mux.poll_request(now), Due::Nothing, "answered twice");
        now.instant += Duration::from_secs(1);
        mux.on_deadline(now);
    }
    assert!(mux.snapshot().len() == 3);
}
