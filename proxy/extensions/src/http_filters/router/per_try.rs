//! What few configurations want of each try: HTTP filters towards the upstream, an access log, histograms of sizes and times.
//!
//! A try that needs none of it has none of it: it pays for one look at an empty place.

use super::RouterConfig;
use nuncio_base::clock;
use nuncio_base::timer::{self, Sleep};
use nuncio_http::codec::{BytesMeter, Frame};
use nuncio_http::filter::{HeadersAction, StreamView};
use nuncio_http::formatter::{AccessLogType, FormatContext};
use nuncio_http::headers::Headers;
use nuncio_http::local_reply::LocalReply;
use nuncio_http::stream_info::{ResponseFlags, StreamInfo, UpstreamInfo};
use nuncio_http::upstream_filters::FilterRun;
use nuncio_upstream::{Cluster, Host, PooledStream};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;
use tokio::time::Instant;

/// The extras of one try.
pub(crate) struct PerTry {
    filters: Option<FilterRun>,
    log: Option<Box<TryLog>>,
    sizes: bool,
    /// The limit of the try, where shares of it are counted; zero for none.
    budget: Option<Duration>,
    begun: Instant,
    /// Bytes of the bodies.
    sent: u64,
    received: u64,
    /// Bytes and lines of the response's head.
    head: Option<(usize, usize)>,
}

/// What the log of a try tells beside what is known of the whole stream.
struct TryLog {
    info: StreamInfo,
    response: Headers,
    trailers: Headers,
    interval: Option<(Sleep, Duration)>,
}

/// What a try is begun with.
pub(crate) struct Begin<'a> {
    pub(crate) config: &'a RouterConfig,
    pub(crate) cluster: &'a Cluster,
    pub(crate) host: &'a Arc<Host>,
    pub(crate) per_try_timeout: Option<Duration>,
}

impl PerTry {
    /// The extras of a try at `host`; None where nothing is wanted.
    #[inline]
    pub(crate) fn begin(begin: Begin<'_>, view: &mut StreamView<'_>) -> Option<Box<PerTry>> {
        let Begin { config, cluster, .. } = begin;
        let wanted = cluster.upstream_filters().is_some()
            || config.is_extended()
            || cluster.config.track_sizes
            || cluster.config.track_timeout_budgets;
        wanted.then(|| Self::new(begin, view))
    }

    #[cold]
    fn new(begin: Begin<'_>, view: &mut StreamView<'_>) -> Box<PerTry> {
        let Begin { config, cluster, host, per_try_timeout } = begin;
        let filters = cluster.upstream_filters().or(config.filters.as_ref());
        let log = (!config.logs.is_empty()).then(|| {
            let mut info = StreamInfo::new(view.info.connection.clone(), 0, None);
            info.route_name.clone_from(&view.info.route_name);
            info.virtual_host.clone_from(&view.info.virtual_host);
            info.route_metadata.clone_from(&view.info.route_metadata);
            info.virtual_host_metadata.clone_from(&view.info.virtual_host_metadata);
            info.health_check = view.info.health_check;
            info.upstream = UpstreamInfo {
                cluster: Some(cluster.name().clone()),
                cluster_alt_name: Some(cluster.observability_name.clone()),
                host: Some(host.address_text.clone()),
                host_name: Some(host.hostname.clone()),
                host_metadata: host.metadata(),
                cluster_metadata: cluster.config.metadata.clone(),
                ..UpstreamInfo::default()
            };
            let interval = config.log_interval.map(|interval| (timer::sleep(interval), interval));
            Box::new(TryLog { info, response: Headers::new(), trailers: Headers::new(), interval })
        });
        Box::new(PerTry {
            filters: filters.map(|filters| filters.run(view)),
            log,
            sizes: cluster.config.track_sizes,
            budget: cluster.config.track_timeout_budgets.then(|| per_try_timeout.unwrap_or_default()),
            begun: clock::now(),
            sent: 0,
            received: 0,
            head: None,
        })
    }

    /// Whether filters see the request.
    pub(crate) fn is_filtered(&self) -> bool {
        self.filters.is_some()
    }

    /// Shows the request's head to the filters; see [`FilterRun::decode_headers`].
    pub(crate) fn decode_headers(&mut self, view: &mut StreamView<'_>, end: bool) -> HeadersAction {
        self.filters.as_mut().map_or(HeadersAction::Continue, |filters| filters.decode_headers(view, end))
    }

    /// A piece of the request goes out. Some: a filter answers.
    pub(crate) fn decode_frame(&mut self, view: &mut StreamView<'_>, frame: &mut Frame) -> Option<LocalReply> {
        let reply = self.filters.as_mut().and_then(|filters| filters.decode_frame(view, frame));
        if let Frame::Data(data, _) = frame {
            self.sent += data.len() as u64;
        }
        reply
    }

    /// The connection is there.
    pub(crate) fn connected(&mut self, config: &RouterConfig, upstream: &PooledStream, request: &Headers) {
        let Some(log) = &mut self.log else { return };
        let info = &mut log.info;
        info.protocol = upstream.http_protocol();
        info.upstream.protocol = info.protocol;
        info.upstream.pool_ready = Some(clock::now().saturating_duration_since(self.begun));
        info.upstream.connection_ids_attempted.push(upstream.connection().id);
        info.upstream.connection = Some(upstream.connection().clone());
        let (host, name) = (info.upstream.host.clone(), info.upstream.host_name.clone());
        info.upstream.hosts_attempted.extend(host.zip(name));
        info.upstream.first_tx = Some(clock::now());
        if config.log_on_upstream_stream {
            log.write(config, request, AccessLogType::UpstreamPoolReady);
        }
    }

    /// No connection could be had.
    pub(crate) fn not_connected(&mut self, reason: Option<&str>) {
        if let Some(log) = &mut self.log {
            log.info.upstream.pool_ready = Some(clock::now().saturating_duration_since(self.begun));
            log.info.upstream.transport_failure_reason = reason.map(Into::into);
        }
    }

    /// The whole request has been sent.
    pub(crate) fn request_sent(&mut self) {
        if let Some(log) = &mut self.log {
            log.info.upstream.last_tx = Some(clock::now());
        }
    }

    /// The head of the response is there. Some: a filter answers in its place.
    pub(crate) fn encode_headers(
        &mut self,
        view: &mut StreamView<'_>,
        head: &mut Headers,
        end: bool,
    ) -> Option<LocalReply> {
        let reply = self.filters.as_mut().and_then(|filters| filters.encode_headers(view, head, end));
        self.head = Some((head.byte_size(), head.len()));
        if let Some(log) = &mut self.log {
            log.info.upstream.first_rx = Some(clock::now());
            log.info.response_code = head.status();
            log.response = head.clone();
        }
        reply
    }

    /// A piece of the response has come.
    pub(crate) fn encode_frame(&mut self, view: &mut StreamView<'_>, frame: &mut Frame) {
        if let Some(filters) = &mut self.filters {
            filters.encode_frame(view, frame);
        }
        match (frame, &mut self.log) {
            (Frame::Data(data, _), _) => self.received += data.len() as u64,
            (Frame::Trailers(trailers), Some(log)) => log.trailers = trailers.clone(),
            (Frame::Trailers(_), None) => {}
        }
    }

    /// Something has happened that flags tell.
    pub(crate) fn flag(&mut self, flags: ResponseFlags) {
        if let Some(log) = &mut self.log {
            log.info.flags.insert(flags);
        }
    }

    /// The lines of a try that goes on.
    pub(crate) fn poll_log(
        &mut self,
        config: &RouterConfig,
        view: &StreamView<'_>,
        meters: impl Fn() -> (BytesMeter, BytesMeter),
        cx: &mut Context<'_>,
    ) {
        let (sent, received) = (self.sent, self.received);
        let Some(log) = &mut self.log else { return };
        while let Some((sleep, interval)) = &mut log.interval {
            if Pin::new(&mut *sleep).poll(cx).is_pending() {
                return;
            }
            sleep.reset(*interval);
            log.update((sent, received), meters());
            log.write(config, view.request, AccessLogType::UpstreamPeriodic);
        }
    }

    /// The try has ended. `meters`: bytes of the downstream stream, and of the upstream ones so far.
    pub(crate) fn end(
        &mut self,
        config: &RouterConfig,
        cluster: &Cluster,
        view: &mut StreamView<'_>,
        meters: (BytesMeter, BytesMeter),
    ) {
        if let Some(filters) = &mut self.filters {
            filters.complete(view);
        }
        if let Some(limit) = self.budget {
            let share = percentage(self.begun.elapsed(), limit);
            cluster.stats.timeout_budgets().upstream_rq_timeout_budget_per_try_percent_used().record(share);
        }
        if self.sizes {
            let stats = cluster.stats.sizes();
            stats.upstream_rq_headers_size().record(view.request.byte_size() as u64);
            stats.upstream_rq_headers_count().record(view.request.len() as u64);
            stats.upstream_rq_body_size().record(self.sent);
            if let Some((bytes, lines)) = self.head {
                stats.upstream_rs_headers_size().record(bytes as u64);
                stats.upstream_rs_headers_count().record(lines as u64);
                stats.upstream_rs_body_size().record(self.received);
            }
        }
        if let Some(log) = &mut self.log {
            log.info.complete = Some(clock::now());
            log.info.upstream.last_rx = log.info.upstream.first_rx.and(log.info.complete);
            log.update((self.sent, self.received), meters);
            log.write(config, view.request, AccessLogType::UpstreamEnd);
        }
    }

    /// The route's timeout has ended the try: its own did not come into play.
    pub(crate) fn forget_budget(&mut self) {
        self.budget = None;
    }
}

impl TryLog {
    /// Bytes of bodies sent and received, and of both sides.
    fn update(&mut self, (sent, received): (u64, u64), (downstream, upstream): (BytesMeter, BytesMeter)) {
        // From the upstream's point of view.
        self.info.bytes_sent = sent;
        self.info.bytes_received = received;
        self.info.meter = downstream;
        self.info.upstream.meter = upstream;
    }

    fn write(&self, config: &RouterConfig, request: &Headers, log_type: AccessLogType) {
        config.logs.log(&FormatContext {
            request: Some(request),
            response: Some(&self.response),
            trailers: Some(&self.trailers),
            info: &self.info,
            log_type,
        });
    }
}

/// How much of `limit` was used, in percent; nothing of one that never comes.
pub(crate) fn percentage(used: Duration, limit: Duration) -> u64 {
    let whole = limit.as_millis() as u64;
    (used.as_millis() as u64 * 100).checked_div(whole).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_never_comes_is_never_used() {
        let seconds = Duration::from_secs;
        assert_eq!(percentage(seconds(1), seconds(4)), 25);
        assert_eq!(percentage(seconds(6), seconds(4)), 150);
        assert_eq!(percentage(seconds(6), Duration::ZERO), 0);
    }
}
