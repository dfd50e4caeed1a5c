//! A try whose request passes through filters towards the upstream before there is a connection.

use super::attempt::Outcome;
use super::per_try::PerTry;
use super::replay::Replay;
use super::{Request, RouterConfig, poll_request_timers};
use nuncio_http::active_stream::ActiveStream;
use nuncio_http::filter::HeadersAction;
use nuncio_http::local_reply::LocalReply;
use std::future::poll_fn;
use std::task::Poll;

/// Shows the request's head to the filters of a try. Some: it ends there.
#[cold]
pub(super) async fn filter_head(
    config: &RouterConfig,
    stream: &mut ActiveStream<'_>,
    request: &mut Request,
    per_try: &mut PerTry,
) -> Option<Outcome> {
    let mut action = HeadersAction::Continue;
    loop {
        let end = stream.request_complete() && request.replay.as_ref().is_none_or(Replay::is_empty);
        if matches!(action, HeadersAction::Continue) {
            action = per_try.decode_headers(&mut stream.view(), end);
        }
        match std::mem::replace(&mut action, HeadersAction::Continue) {
            // Clusters on demand are for the filters before the router.
            HeadersAction::Continue | HeadersAction::OnDemand(_) => return None,
            HeadersAction::Respond(reply) => {
                stream.local_reply(reply);
                return Some(answered(config, stream, request, per_try, Outcome::Answered));
            }
            HeadersAction::Buffer => {
                if let Some(outcome) = buffer(stream, request).await {
                    return Some(answered(config, stream, request, per_try, outcome));
                }
            }
            HeadersAction::Wait(mut future) => {
                let done = poll_fn(|cx| {
                    if let Poll::Ready(abort) = stream.poll_abort(cx) {
                        return Poll::Ready(Err(Outcome::Abort(abort)));
                    }
                    if let Some(outcome) = poll_request_timers(stream, request, cx) {
                        return Poll::Ready(Err(outcome));
                    }
                    future.as_mut().poll(cx).map(Ok)
                });
                match done.await {
                    Ok(resume) => action = resume(&mut stream.view()),
                    Err(outcome) => return Some(answered(config, stream, request, per_try, outcome)),
                }
            }
        }
    }
}

/// A try ends before it has a connection, with this outcome.
fn answered(
    config: &RouterConfig,
    stream: &mut ActiveStream<'_>,
    request: &Request,
    per_try: &mut PerTry,
    outcome: Outcome,
) -> Outcome {
    unconnected(config, stream, request, per_try, &outcome);
    outcome
}

/// The last words of a try that has no connection.
#[cold]
pub(super) fn unconnected(
    config: &RouterConfig,
    stream: &mut ActiveStream<'_>,
    request: &Request,
    per_try: &mut PerTry,
    outcome: &Outcome,
) {
    match outcome {
        Outcome::Failed(failure) => {
            per_try.flag(failure.flag());
            per_try.not_connected(failure.transport.as_deref());
        }
        Outcome::GlobalTimeout => per_try.forget_budget(),
        _ => {}
    }
    let meters = (stream.downstream_meter(), stream.info.upstream.meter);
    per_try.end(config, &request.cluster, &mut stream.view(), meters);
}

/// Reads the whole body of the request, within the limit on what is kept of it. Some: the try ends there.
async fn buffer(stream: &mut ActiveStream<'_>, request: &mut Request) -> Option<Outcome> {
    if request.replay.is_none() {
        request.replay = Some(Replay::new(stream.buffer_limit()));
    }
    poll_fn(|cx| {
        while !stream.request_complete() {
            match std::task::ready!(stream.poll_request_frame(cx)) {
                Ok(frame) => request.keep(&frame),
                Err(abort) => return Poll::Ready(Some(Outcome::Abort(abort))),
            }
            if stream.is_over() {
                return Poll::Ready(Some(Outcome::Answered));
            }
            if request.replay.as_ref().is_none_or(Replay::is_abandoned) {
                stream.local_reply(LocalReply::new(413, "Payload Too Large", "request_payload_too_large"));
                return Poll::Ready(Some(Outcome::Answered));
            }
        }
        Poll::Ready(None)
    })
    .await
}
