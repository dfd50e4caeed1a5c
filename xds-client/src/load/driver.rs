//! A [`Reporter`] on a stream, which is opened again whenever it ends.

use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::load_stats::v3::LoadStatsResponse;
use prost::Message;
use tokio::time::Instant;

use super::{LOAD_STATS_PATH, LoadReporterStats, LoadSource, Reporter};
use crate::transport::{GrpcStatus, GrpcStream, GrpcTransport};

/// Between the end of a stream and the next, as in Envoy.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// What reports are made and sent with.
pub struct ReporterOptions {
    /// Who reports.
    pub node: Node,
    /// Opens the stream.
    pub transport: Rc<dyn GrpcTransport>,
    /// Knows the loads.
    pub source: Rc<dyn LoadSource>,
    /// Counts what is done.
    pub stats: Rc<dyn LoadReporterStats>,
}

/// Reports are sent while this lives.
#[must_use]
#[derive(Debug)]
pub struct LoadReporting(tokio::task::AbortHandle);

impl Drop for LoadReporting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens the stream, and keeps it open from now on. Called on a `LocalSet`.
pub fn start(options: ReporterOptions) -> LoadReporting {
    LoadReporting(tokio::task::spawn_local(run(options)).abort_handle())
}

async fn run(options: ReporterOptions) {
    let ReporterOptions { node, transport, source, stats } = options;
    let mut reporter = Reporter::new(node);
    loop {
        let status = match transport.open(LOAD_STATS_PATH).await {
            Ok(mut stream) => serve(&mut reporter, stream.as_mut(), &*source, &*stats).await,
            Err(status) => status,
        };
        reporter.stream_closed();
        if status.code == GrpcStatus::OK {
            tracing::debug!("load reporter stream closed: {status}");
        } else {
            tracing::warn!("load reporter stream/connection closed: {status}");
            stats.error();
        }
        tokio::time::sleep(RETRY_DELAY).await;
        stats.retry();
    }
}

/// Serves one stream to its end.
async fn serve(
    reporter: &mut Reporter,
    stream: &mut dyn GrpcStream,
    source: &dyn LoadSource,
    stats: &dyn LoadReporterStats,
) -> GrpcStatus {
    // A report that waits for the peer's flow control; there is one at most, so that a slow server costs nothing.
    let mut waiting = Some(reporter.report(Instant::now().into_std(), source));
    loop {
        // What was sent may still be on its way out: room is asked for until there is some.
        let full = match std::future::poll_fn(|cx| Poll::Ready(stream.poll_ready(cx))).await {
            Poll::Ready(Err(status)) => return status,
            Poll::Ready(Ok(())) => match waiting.take() {
                Some(report) => {
                    if let Err(status) = stream.send(Bytes::from(report.encode_to_vec())) {
                        return status;
                    }
                    stats.response();
                    continue;
                }
                None => false,
            },
            Poll::Pending => true,
        };
        let due = async {
            match reporter.next_report() {
                Some(at) if waiting.is_none() => tokio::time::sleep_until(at.into()).await,
                _ => std::future::pending().await,
            }
        };
        let message = std::future::poll_fn(|cx| {
            if full && let Poll::Ready(ready) = stream.poll_ready(cx) {
                return Poll::Ready(ready.map(|()| None));
            }
            stream.poll_message(cx).map_ok(Some)
        });
        let event = tokio::select! {
            message = message => match message {
                Ok(message) => message,
                Err(status) => return status,
            },
            () = due => {
                waiting = Some(reporter.report(Instant::now().into_std(), source));
                None
            }
        };
        let Some(message) = event else { continue };
        match LoadStatsResponse::decode(message) {
            Ok(response) => {
                reporter.on_response(Instant::now().into_std(), response, source);
                stats.request();
            }
            Err(e) => return GrpcStatus::new(GrpcStatus::INTERNAL, format!("undecodable response: {e}")),
        }
    }
}
