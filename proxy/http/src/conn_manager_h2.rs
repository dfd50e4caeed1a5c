//! The HTTP/2 half of the connection manager: one task for the connection, one per stream, all on the same worker.

use crate::active_stream::ActiveStream;
use crate::codec::StreamError;
use crate::codec::h2::{H2Request, H2Server, ServerConfig};
use crate::conn_manager::ConnectionContext;
use h2::Reason;
use nuncio_base::timer::{self, Sleep};
use nuncio_net::connection::Io;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

enum Wake {
    Request(Box<H2Request>),
    /// A stream or the connection broke the protocol; the codec has answered.
    Error(StreamError),
    Ended,
    Idle,
    MaxDuration,
    Drain,
    DrainEnded,
}

/// Serves HTTP/2 until the connection ends; true when the peer ended it.
pub(crate) async fn serve(context: &Rc<ConnectionContext>, io: Io, config: Rc<ServerConfig>) -> bool {
    let hcm = context.hcm.clone();
    let mut server = H2Server::new(io, config);
    let mut idle = hcm.config.idle_timeout.map(|d| (timer::sleep(d), d));
    let mut duration = hcm.config.max_connection_duration.map(timer::sleep);
    // Between the two GOAWAYs requests that are on their way are still served.
    let mut draining: Option<Sleep> = None;
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
            if !drain_seen && (drain.as_mut().poll(cx).is_ready() || context.is_closing()) {
                drain_seen = true;
                return Poll::Ready(Wake::Drain);
            }
            if let Some((sleep, _)) = &mut idle
                && context.active_streams() == 0
                && Pin::new(sleep).poll(cx).is_ready()
            {
                return Poll::Ready(Wake::Idle);
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
        match wake {
            Wake::Request(request) => {
                context.count_request();
                let context = context.clone();
                tokio::task::spawn_local(serve_stream(context, request));
                if let Some((sleep, delay)) = &mut idle {
                    sleep.reset(*delay);
                }
            }
            Wake::Error(error) => {
                tracing::debug!(target: "http2", "connection {}: {error}", context.info.id);
                if error.status != 0 || !error.details.is_empty() {
                    hcm.stats.downstream_cx_protocol_error().inc();
                    context.info.set_termination_details(error.details);
                }
            }
            Wake::Ended => return !(drain_seen || draining.is_some()),
            Wake::Idle => {
                hcm.stats.downstream_cx_idle_timeout().inc();
                server.graceful_shutdown();
                idle = None;
            }
            Wake::MaxDuration => {
                hcm.stats.downstream_cx_max_duration_reached().inc();
                duration = None;
                server.graceful_shutdown();
            }
            Wake::Drain => {
                if !context.is_closing() {
                    hcm.stats.downstream_cx_drain_close().inc();
                }
                context.set_closing();
                server.graceful_shutdown();
                draining = Some(timer::sleep(hcm.config.drain_timeout.max(Duration::from_millis(1))));
            }
            Wake::DrainEnded => {
                draining = None;
                if context.active_streams() == 0 {
                    server.abrupt_shutdown(Reason::NO_ERROR);
                }
            }
        }
    }
}

async fn serve_stream(context: Rc<ConnectionContext>, request: Box<H2Request>) {
    let H2Request { headers, end_stream, mut stream, .. } = *request;
    let _active = context.begin_stream();
    ActiveStream::new(&context, &mut stream, headers, end_stream).run(None).await;
}
