//! Hedging: a try that is past its per-try timeout goes on beside the next one, and the first good response wins.
//!
//! The tries that go on are kept in the request. Whatever waits (the next try, the back-off before it) polls them too.
//! Their bad responses and resets are passed over as long as another try may still answer.

use super::attempt::{Head, Outcome, Won};
use super::failure::charge_abort;
use super::{Request, RouterConfig, outlier, poll_request_timers};
use nuncio_http::active_stream::ActiveStream;
use std::future::poll_fn;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

/// Polls the tries that go on; ready with a response that is to be sent, or, unless `others` may still answer, with the
/// last one's failure.
pub(crate) fn poll_winner(
    config: &RouterConfig,
    stream: &mut ActiveStream<'_>,
    request: &mut Request,
    others: bool,
    cx: &mut Context<'_>,
) -> Poll<Outcome> {
    let mut at = 0;
    while at < request.hedged.len() {
        let mut attempt = request.hedged.swap_remove(at);
        match attempt.poll_response(stream, request, cx) {
            Poll::Pending => {
                attempt.poll_log(config, stream, cx);
                request.hedged.push(attempt);
                let last = request.hedged.len() - 1;
                request.hedged.swap(at, last);
                at += 1;
            }
            Poll::Ready(Head::Response(head, end)) => {
                let bad = request.retry.as_ref().is_some_and(|retry| retry.wants_response(&head));
                if bad && (others || !request.hedged.is_empty()) {
                    attempt.host().stats.rq_error.fetch_add(1, Relaxed);
                    attempt.reset();
                    attempt.end(config, stream, request);
                    continue;
                }
                reset_all(config, stream, request);
                return Poll::Ready(Outcome::Won(Box::new(Won { attempt, head, end })));
            }
            Poll::Ready(Head::Outcome(Outcome::Failed(failure))) => {
                outlier::failed(attempt.host());
                charge_abort(stream, request, Some(attempt.host()), failure.status(request));
                attempt.flag(failure.flag());
                attempt.reset();
                attempt.end(config, stream, request);
                if !others && request.hedged.is_empty() {
                    return Poll::Ready(Outcome::Failed(failure));
                }
            }
            Poll::Ready(Head::Outcome(other)) => {
                attempt.reset();
                attempt.end(config, stream, request);
                return Poll::Ready(other);
            }
        }
    }
    Poll::Pending
}

/// Waits for the tries that go on, when no other is left.
pub(crate) async fn wait(config: &RouterConfig, stream: &mut ActiveStream<'_>, request: &mut Request) -> Outcome {
    poll_fn(|cx| {
        if let Poll::Ready(abort) = stream.poll_abort(cx) {
            return Poll::Ready(Outcome::Abort(abort));
        }
        if let Some(outcome) = poll_request_timers(stream, request, cx) {
            return Poll::Ready(outcome);
        }
        poll_winner(config, stream, request, false, cx)
    })
    .await
}

/// Ends the tries that go on.
#[inline]
pub(crate) fn reset_all(config: &RouterConfig, stream: &mut ActiveStream<'_>, request: &mut Request) {
    for mut attempt in std::mem::take(&mut request.hedged) {
        attempt.reset();
        attempt.end(config, stream, request);
    }
}
