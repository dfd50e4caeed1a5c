//! The HTTP/2 half of the connection manager: one task for the connection, one per stream, all on the same worker.

use crate::active_stream::ActiveStream;
use crate::codec::StreamError;
use crate::codec::h2::{Config, H2Request, H2Server, RefusedStream};
use crate::conn_manager::{ConnectionContext, StreamGuard};
use crate::headers::Headers;
use nuncio_base::clock;
use nuncio_base::timer::{self, Sleep};
use nuncio_net::connection::Io;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

enum Wake {
    Request(Box<H2Request>),
    /// Requests that the codec refused; nothing else has happened.
    Refused(Vec<StreamError>),
    /// A stream or the connection broke the protocol; the codec has answered.
    Error(StreamError),
    Ended,
    Idle,
    MaxDuration,
    Drain,
    DrainEnded,
}

/// Serves HTTP/2 until the connection ends; true when the peer ended it.
pub(crate) async fn serve(context: &Rc<ConnectionContext>, io: Io, config: Rc<Config>) -> bool {
    let hcm = context.hcm.clone();
    let mut server = H2Server::new(io, config);
    server.count_waiting(context.info.bytes.clone());
    let mut idle = hcm.config.idle_timeout.map(|d| (timer::sleep(d), d));
    let mut duration = context.duration_left().map(timer::sleep);
    // Between the two GOAWAYs requests that are on their way are still served.
    let mut draining: Option<Sleep> = None;
    // Streams have been active since the idle timer was last set: it runs from the end of the last one.
    let mut busy = false;
    let mut drain = Box::pin(async { context.drain_signal().draining().await });
    let mut drain_seen = false;
    loop {
        let wake = poll_fn(|cx| {
            match server.poll_accept(cx) {
                Poll::Ready(Some(Ok(request))) => return Poll::Ready(Wake::Request(Box::new(request))),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Wake::Error(error)),
                Poll::Ready(None) => return Poll::Ready(Wake::Ended),
                Poll::Pending => {}
            }
            let refused = server.take_rejected();
            if !refused.is_empty() {
                return Poll::Ready(Wake::Refused(refused));
            }
            if !drain_seen && (drain.as_mut().poll(cx).is_ready() || context.is_closing()) {
                drain_seen = true;
                return Poll::Ready(Wake::Drain);
            }
            busy |= context.active_streams() > 0;
            if let Some((sleep, delay)) = &mut idle
                && context.active_streams() == 0
            {
                if std::mem::take(&mut busy) {
                    sleep.reset(*delay);
                }
                if Pin::new(sleep).poll(cx).is_ready() {
                    return Poll::Ready(Wake::Idle);
                }
            }
            if let Some(sleep) = &mut duration
                && Pin::new(sleep).poll(cx).is_ready()
            {
                return Poll::Ready(Wake::MaxDuration);
            }
            if let Some(sleep) = &mut draining
                && Pin::new(sleep).poll(cx).is_ready()
            {
                return Poll::Ready(Wake::DrainEnded);
            }
            context.keep_waker(cx);
            Poll::Pending
        })
        .await;
        // They came before what was waited for.
        let ended = matches!(wake, Wake::Error(_));
        for error in server.take_rejected() {
            log_refused(context, error, !ended).await;
            if ended {
                context.leave_unfinished();
            }
        }
        match wake {
            Wake::Request(request) => {
                context.count_request();
                // Counted from here on: its task may end before this one looks again.
                let active = context.begin_stream();
                busy = true;
                tokio::task::spawn_local(clock::once_per_poll(serve_stream(active, request)));
            }
            Wake::Refused(refused) => {
                for error in refused {
                    log_refused(context, error, true).await;
                }
            }
            Wake::Error(error) => {
                tracing::debug!(target: "http2", "connection {}: {error}", context.info.id);
                if server.has_too_many_resets() {
                    hcm.stats.downstream_rq_too_many_premature_resets().inc();
                    hcm.stats.downstream_cx_protocol_error().inc();
                    context.info.bytes.fail();
                    return false;
                }
                if !error.details.is_empty() {
                    context.info.bytes.fail();
                    // Floods have counters of their own.
                    if !server.is_flooded() {
                        hcm.stats.downstream_cx_protocol_error().inc();
                    }
                    let remote = close_late(context, &mut server).await;
                    farewell(&mut server).await;
                    return remote;
                }
            }
            Wake::Ended => {
                // A peer that was told to go away closes by itself.
                let remote = !drain_seen || close_late(context, &mut server).await;
                farewell(&mut server).await;
                return remote;
            }
            Wake::Idle => {
                hcm.stats.downstream_cx_idle_timeout().inc();
                if !server.peer_has_spoken() {
                    return false;
                }
                idle = None;
                drain_seen = true;
                begin_drain(context, &mut server, &mut draining);
            }
            Wake::MaxDuration => {
                hcm.stats.downstream_cx_max_duration_reached().inc();
                if !server.peer_has_spoken() {
                    return false;
                }
                duration = None;
                drain_seen = true;
                begin_drain(context, &mut server, &mut draining);
            }
            Wake::Drain => {
                if !context.is_closing() {
                    hcm.stats.downstream_cx_drain_close().inc();
                }
                begin_drain(context, &mut server, &mut draining);
            }
            Wake::DrainEnded => {
                draining = None;
                // The peer's answer to the ping is not waited for any longer: the connection ends with its last stream.
                server.end_shutdown();
            }
        }
    }
}

/// The first GOAWAY; the second one follows when the peer has answered, or else with the end of the drain timeout.
fn begin_drain(context: &ConnectionContext, server: &mut H2Server<Io>, draining: &mut Option<Sleep>) {
    context.set_closing();
    server.graceful_shutdown();
    let grace = context.drain_grace().max(Duration::from_millis(1));
    draining.get_or_insert_with(|| timer::sleep(grace));
}

async fn serve_stream(active: StreamGuard, request: Box<H2Request>) {
    let H2Request { headers, end_stream, mut stream, .. } = *request;
    let connection = active.connection();
    let chain = connection.hcm.chains.pin();
    ActiveStream::new(connection, &chain, &mut stream, headers, end_stream).run(None).await;
}

/// Ends the socket in good order, which TLS wants.
async fn farewell(server: &mut H2Server<Io>) {
    // A peer that does not take it is left.
    let _ = timer::timeout(Duration::from_secs(1), poll_fn(|cx| server.poll_shutdown(cx))).await;
}

/// The peer may be about to read, or to close: the close is a delayed one. True when the peer closes first.
async fn close_late(context: &ConnectionContext, server: &mut H2Server<Io>) -> bool {
    let hcm = &context.hcm;
    let delay = hcm.config.delayed_close_timeout;
    if delay.is_zero() {
        return false;
    }
    if timer::timeout(delay, poll_fn(|cx| server.poll_drain(cx))).await.is_ok() {
        return true;
    }
    hcm.stats.downstream_cx_delayed_close_timeout().inc();
    false
}

/// A request that the codec refused is counted and logged like any other.
async fn log_refused(context: &ConnectionContext, error: StreamError, reset: bool) {
    // Its RST_STREAM, where the connection goes on.
    let mut stream = RefusedStream { bytes_sent: if reset { 13 } else { 0 } };
    ActiveStream::new(context, &context.hcm.chains.pin(), &mut stream, Headers::new(), true).run_refused(&error).await;
}
