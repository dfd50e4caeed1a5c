//! A try that failed, and what downstream is told of it.

use super::counting::{charge, count_budget};
use super::{Request, RouterConfig};
use bytes::Bytes;
use nuncio_base::clock;
use nuncio_http::active_stream::ActiveStream;
use nuncio_http::codec::{ResetReason, StreamError};
use nuncio_http::headers::{HeaderValue, names};
use nuncio_http::local_reply::LocalReply;
use nuncio_http::stream_info::ResponseFlags;
use nuncio_upstream::Host;
use std::sync::atomic::Ordering::Relaxed;

/// How a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// There was no connection, or the stream was reset.
    Reset,
    /// `per_try_timeout`.
    PerTryTimeout,
    /// `per_try_idle_timeout`.
    PerTryIdleTimeout,
    /// `max_stream_duration` of the cluster.
    MaxDuration,
}

/// A try that failed without, or in the middle of, a response.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) reason: ResetReason,
    pub(crate) transport: Option<Box<str>>,
    /// The upstream was sent a part of the request.
    pub(crate) started: bool,
    /// Another try has taken this one's place already.
    pub(crate) retried: bool,
    /// It did not come as far as a host: too many requests wait already, which says nothing about the host.
    pub(crate) hostless: bool,
}

impl Failure {
    pub(crate) fn of(error: &StreamError, started: bool) -> Failure {
        Failure {
            kind: FailureKind::Reset,
            reason: error.reason,
            transport: None,
            started,
            retried: false,
            hostless: false,
        }
    }

    pub(crate) fn timed(kind: FailureKind, started: bool) -> Failure {
        Failure { kind, reason: ResetReason::LocalReset, transport: None, started, retried: false, hostless: false }
    }

    /// A limit on the time of one try ended it.
    pub(crate) fn is_try_timeout(&self) -> bool {
        matches!(self.kind, FailureKind::PerTryTimeout | FailureKind::PerTryIdleTimeout)
    }

    /// It is not to be counted among the responses: the last of several tries, counted when it failed, or one that ran
    /// longer than the cluster allows.
    pub(crate) fn is_counted(&self) -> bool {
        self.retried || self.kind == FailureKind::MaxDuration
    }

    /// The flag of the try itself, as its own log tells it.
    pub(crate) fn flag(&self) -> ResponseFlags {
        match self.kind {
            FailureKind::PerTryTimeout => ResponseFlags::UPSTREAM_REQUEST_TIMEOUT,
            FailureKind::PerTryIdleTimeout => ResponseFlags::STREAM_IDLE_TIMEOUT,
            FailureKind::MaxDuration => ResponseFlags::default(),
            FailureKind::Reset => flag_of(self.reason),
        }
    }

    /// The status that it counts as.
    pub(crate) fn status(&self, request: &Request) -> u16 {
        match (self.kind, self.reason) {
            (FailureKind::PerTryTimeout | FailureKind::PerTryIdleTimeout, _) => request.timeout_status,
            (_, ResetReason::ProtocolError) => 502,
            _ => 503,
        }
    }

    /// Answers downstream, or resets a response that has begun. The try was counted before.
    pub(crate) fn answer(self, config: &RouterConfig, stream: &mut ActiveStream<'_>, request: &Request) {
        let started = stream.response_started();
        let (details, flags) = match self.kind {
            FailureKind::PerTryTimeout => ("upstream_per_try_timeout", ResponseFlags::UPSTREAM_REQUEST_TIMEOUT),
            FailureKind::PerTryIdleTimeout => {
                ("upstream_per_try_idle_timeout", ResponseFlags::UPSTREAM_REQUEST_TIMEOUT)
            }
            FailureKind::MaxDuration => {
                let status = if stream.request_complete() { 504 } else { 408 };
                let text = "upstream max stream duration reached";
                let reply = LocalReply::new(status, text, "upstream_max_stream_duration_reached");
                let flags = ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED;
                return stream.routed_reply(reply.flags(flags));
            }
            FailureKind::Reset => {
                if self.reason == ResetReason::Overflow {
                    request.cluster.load.dropped.fetch_add(1, Relaxed);
                }
                return self.answer_reset(config, stream, started);
            }
        };
        count_budget(stream, request, clock::now());
        stream.routed_reply(timeout_reply(request, details).flags(flags));
    }

    fn answer_reset(self, config: &RouterConfig, stream: &mut ActiveStream<'_>, started: bool) {
        let mut inner = self.reason.as_str().replace(' ', "_");
        if let Some(text) = &self.transport {
            inner.push('|');
            inner.push_str(&text.replace(' ', "_"));
        }
        let when = if started { "after" } else { "before" };
        let details = format!("upstream_reset_{when}_response_started{{{inner}}}");
        // Envoy counts it only for streams whose success it waits to learn: gRPC.
        if started && stream.is_grpc() {
            stream.connection.hcm.stats.rq_reset_after_downstream_response_started().inc();
        }
        let status = if self.reason == ResetReason::ProtocolError { 502 } else { 503 };
        let mut reply = LocalReply::new(status, "", details).flags(flag_of(self.reason));
        let retried = if stream.info.attempt_count > 1 { "retried and the latest " } else { "" };
        reply.body = Bytes::from(format!(
            "upstream connect error or disconnect/reset before headers. {retried}reset reason: {}",
            self.reason.as_str()
        ));
        if self.reason == ResetReason::Overflow && !config.suppress_envoy_headers {
            reply = reply.last_header(names::X_ENVOY_OVERLOADED, HeaderValue::from_static("true"));
        }
        stream.routed_reply(reply);
    }
}

/// The reply to a timeout of the upstream: 504, or what `x-envoy-upstream-rq-timeout-alt-response` asks for.
pub(crate) fn timeout_reply(request: &Request, details: &'static str) -> LocalReply {
    let body = if request.timeout_status == 504 { "upstream request timeout" } else { "" };
    LocalReply::new(request.timeout_status, body, details)
}

/// Counts a try that ended without a response head.
pub(crate) fn charge_abort(stream: &ActiveStream<'_>, request: &Request, host: Option<&Host>, status: u16) {
    if !stream.response_started() {
        charge(request, host, status, false);
    }
}

/// The response flag of a reset, as Envoy maps them.
fn flag_of(reason: ResetReason) -> ResponseFlags {
    use ResetReason as R;
    match reason {
        R::LocalConnectionFailure | R::RemoteConnectionFailure | R::ConnectionTimeout => {
            ResponseFlags::UPSTREAM_CONNECTION_FAILURE
        }
        R::ConnectionTermination => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
        R::LocalReset | R::LocalRefusedStreamReset => ResponseFlags::LOCAL_RESET,
        R::Overflow => ResponseFlags::UPSTREAM_OVERFLOW,
        R::RemoteReset | R::RemoteRefusedStreamReset | R::ConnectError => ResponseFlags::UPSTREAM_REMOTE_RESET,
        R::ProtocolError => ResponseFlags::UPSTREAM_PROTOCOL_ERROR,
        R::OverloadManager => ResponseFlags::OVERLOAD_MANAGER,
    }
}
