//! `tunneling_config`: the connection's bytes go to the upstream as the body of a CONNECT or POST request.
//!
//! Both sides are streams of frames here, so that one loop moves bytes whatever the protocol of the upstream. Over HTTP/2
//! each side ends alone; over HTTP/1 the end of one side is the end of both, as in Envoy. Choosing the host, trying
//! again and logging are the session's.

use nuncio_base::random;
use nuncio_base::timer::{self, Sleep};
use nuncio_config::tcp_proxy::TunnelingConfig;
use nuncio_http::codec::raw::RawClient;
use nuncio_http::codec::{BytesMeter, Frame, Protocol, ResetReason, Stream, StreamError};
use nuncio_http::formatter::{FormatContext, HeaderFormatter};
use nuncio_http::header_mutation::HeaderRules;
use nuncio_http::headers::{HeaderName, HeaderValue, Headers, names};
use nuncio_http::stream_info::{StreamInfo, TUNNEL_RESPONSE_HEADERS, TUNNEL_RESPONSE_TRAILERS};
use nuncio_net::connection::Io;
use nuncio_net::splice::Side;
use nuncio_upstream::{Cluster, Host, PoolFailure, PooledStream, StreamOptions, http_stream};
use serde_json::json;
use std::cell::RefCell;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Where the ids of requests are kept.
const METADATA: &str = "envoy.filters.network.tcp_proxy";

/// Bytes of a RST_STREAM frame.
const RST_STREAM_FRAME: u64 = 13;

/// How the requests of tunnels look, and what of their answers is kept.
pub(super) struct Tunnel {
    host: HeaderFormatter,
    /// The path of POST requests; None for CONNECT.
    post_path: Option<HeaderValue>,
    headers: HeaderRules,
    /// Header and metadata key of the request's id.
    request_id: Option<(HeaderName, Box<str>)>,
    propagate_headers: bool,
    propagate_trailers: bool,
}

/// An accepted tunnel.
pub(super) struct OpenTunnel {
    pub(super) stream: PooledStream,
    /// What earlier attempts have moved.
    before: BytesMeter,
}

/// Why bytes no longer move.
pub(super) enum TunnelEnd {
    /// Both sides have ended in order.
    Finished,
    /// The client's connection failed.
    DownstreamFailed,
    /// The upstream's stream failed; true when it was reset.
    UpstreamFailed(bool),
    /// No byte has moved for the idle timeout.
    IdleTimeout,
    /// The session is to end with the bytes that have moved.
    Asked,
}

/// How bytes move.
pub(super) struct CopyOptions<'a> {
    /// Ends the copy when no byte has moved for this long.
    pub(super) idle_timeout: Option<Duration>,
    /// Asked when bytes have moved; true ends the copy.
    pub(super) over: Option<&'a dyn Fn() -> bool>,
}

impl Tunnel {
    /// Compiles the configuration; errors are text.
    pub(super) fn new(config: &TunnelingConfig) -> Result<Tunnel, String> {
        let headers = HeaderRules::build(&config.headers_to_add, &[]);
        let first = |errors: Vec<(String, String)>| errors.into_iter().next().map(|(_, text)| text).unwrap_or_default();
        let request_id = match &config.request_id {
            Some(id) => {
                let header = HeaderName::parse(&id.header).filter(|name| !name.is_pseudo());
                Some((header.ok_or("request_id_header is not a header name")?, id.metadata_key.clone()))
            }
            None => None,
        };
        Ok(Tunnel {
            host: HeaderFormatter::new(&config.hostname).map_err(|error| error.0)?,
            post_path: match &config.post_path {
                Some(path) => Some(HeaderValue::parse(path.to_string()).ok_or("post_path is not a header value")?),
                None => None,
            },
            headers: headers.map_err(first)?,
            request_id,
            propagate_headers: config.propagate_response_headers,
            propagate_trailers: config.propagate_response_trailers,
        })
    }

    fn request(&self, info: &mut StreamInfo, secure: bool) -> Option<Headers> {
        let id = self.request_id.as_ref().map(|(header, key)| {
            let id = random::uuid_v4();
            let text = String::from_utf8_lossy(&id);
            let metadata = info.dynamic_metadata.get_or_insert_default();
            if let Some(own) = metadata.entry(METADATA).or_insert_with(|| json!({})).as_object_mut() {
                own.insert(key.to_string(), text.into());
            }
            (header.clone(), HeaderValue::from_checked(bytes::Bytes::copy_from_slice(&id)))
        });
        let cx = FormatContext::new(info);
        let mut head = Headers::with_capacity(8);
        head.append(names::METHOD, HeaderValue::from_static(if self.post_path.is_some() { "POST" } else { "CONNECT" }));
        head.append(names::AUTHORITY, self.host.value(&cx)?);
        if let Some(path) = &self.post_path {
            head.append(names::PATH, path.clone());
            head.append(names::SCHEME, HeaderValue::from_static(if secure { "https" } else { "http" }));
        }
        if let Some((header, id)) = id {
            head.set(header, id);
        }
        self.headers.apply_made(&mut head, &cx);
        Some(head)
    }

    /// A stream to `host` that the upstream has accepted.
    ///
    /// # Errors
    /// Those of the pool; an answer other than 2xx counts as a remote connection failure, as in Envoy.
    pub(super) async fn open(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        info: &RefCell<StreamInfo>,
        options: &StreamOptions<'_>,
    ) -> Result<OpenTunnel, PoolFailure> {
        let failed = |reason, text: Option<Box<str>>| PoolFailure {
            reason,
            transport_failure_reason: text,
            host: Some(host.clone()),
            no_pool: false,
        };
        let stream = Box::pin(http_stream(cluster, host, options)).await?;
        let mut tunnel = OpenTunnel { stream, before: info.borrow().upstream.meter };
        let secure = tunnel.stream.connection().is_tls();
        let Some(head) = self.request(&mut info.borrow_mut(), secure) else {
            tunnel.stream.reset(ResetReason::LocalReset);
            return Err(failed(ResetReason::LocalConnectionFailure, None));
        };
        let answer = self.exchange(&mut tunnel, &head, info).await;
        match answer {
            Ok((200..300, false)) => {
                tunnel.count(info, 0, 0);
                Ok(tunnel)
            }
            answer => {
                // What came with the head counts as received.
                poll_fn(|cx| tunnel.pass_over(cx)).await;
                tunnel.count(info, 0, 0);
                tunnel.stream.reset(ResetReason::LocalReset);
                let text = answer.ok().map(|(status, _)| format!("tunnel_response:{status}").into());
                Err(failed(ResetReason::RemoteConnectionFailure, text))
            }
        }
    }

    /// Sends the head and waits for the final answer's status; true when it is all of the answer.
    async fn exchange(
        &self,
        tunnel: &mut OpenTunnel,
        head: &Headers,
        info: &RefCell<StreamInfo>,
    ) -> Result<(u16, bool), StreamError> {
        tunnel.stream.send_headers(head, false)?;
        tunnel.count(info, 0, 0);
        loop {
            let head = poll_fn(|cx| {
                if let Poll::Ready(Err(error)) = tunnel.stream.poll_flush(cx) {
                    return Poll::Ready(Err(error));
                }
                tunnel.stream.poll_headers(cx)
            });
            let (head, end) = head.await?;
            let status = head.status();
            if !(100..200).contains(&status) || status == 101 {
                if self.propagate_headers {
                    propagate(info, TUNNEL_RESPONSE_HEADERS, &head);
                }
                return Ok((status, end));
            }
        }
    }

    /// Moves bytes between `io` and the tunnel until it ends.
    pub(super) async fn copy(
        &self,
        io: &mut Io,
        tunnel: &mut OpenTunnel,
        info: &RefCell<StreamInfo>,
        options: CopyOptions<'_>,
    ) -> TunnelEnd {
        let mut downstream = RawClient::new(io, bytes::Bytes::new(), tunnel.stream.buffer_limit());
        let half_close = tunnel.stream.http_protocol() == Some(Protocol::Http2);
        let mut up = Way::default();
        let mut down = Way::default();
        let mut idle = options.idle_timeout.filter(|limit| !limit.is_zero()).map(|limit| (limit, timer::sleep(limit)));
        let mut last = None;
        poll_fn(|cx| {
            if last.is_none() {
                let before = (up.moved, down.moved);
                let both = [
                    up.poll(&mut downstream, &mut *tunnel.stream, Side::Downstream, cx),
                    down.poll(&mut *tunnel.stream, &mut downstream, Side::Upstream, cx),
                ];
                let moved = (up.moved, down.moved) != before;
                tunnel.count(info, up.moved, down.moved);
                if let Some(trailers) = down.trailers.take()
                    && self.propagate_trailers
                {
                    propagate(info, TUNNEL_RESPONSE_TRAILERS, &trailers);
                }
                let ended = both.iter().filter(|way| way.is_ready()).count();
                match both {
                    [Poll::Ready(Err((side, reason))), _] | [_, Poll::Ready(Err((side, reason)))] => {
                        return Poll::Ready(match side {
                            Side::Downstream => TunnelEnd::DownstreamFailed,
                            Side::Upstream => TunnelEnd::UpstreamFailed(is_reset(reason, half_close)),
                        });
                    }
                    _ if ended == 2 || ended == 1 && !half_close => last = Some(TunnelEnd::Finished),
                    _ if moved && options.over.is_some_and(|over| over()) => last = Some(TunnelEnd::Asked),
                    _ => return poll_idle(cx, idle.as_mut(), moved),
                }
            }
            // The client gets what was on its way.
            match downstream.poll_flush(cx) {
                Poll::Ready(_) => Poll::Ready(last.take().unwrap_or(TunnelEnd::Finished)),
                Poll::Pending => poll_idle(cx, idle.as_mut(), false),
            }
        })
        .await
    }
}

impl OpenTunnel {
    /// Ends the stream before its time.
    pub(super) fn reset(&mut self, info: &RefCell<StreamInfo>) {
        self.stream.reset(ResetReason::LocalReset);
        if self.stream.http_protocol() == Some(Protocol::Http2) {
            info.borrow_mut().upstream.meter.wire_bytes_sent += RST_STREAM_FRAME;
        }
    }

    /// Takes what there is of a body that nobody wants, a few pieces at most, and is ready then.
    fn pass_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..4 {
            if !matches!(self.stream.poll_frame(cx), Poll::Ready(Ok(Frame::Data(_, false)))) {
                break;
            }
        }
        Poll::Ready(())
    }

    /// Notes what was moved: as in Envoy bytes of the connection count once as such and once on the wire of the stream.
    fn count(&self, info: &RefCell<StreamInfo>, up: usize, down: usize) {
        let mut meter = self.before;
        meter.add(self.stream.bytes_meter());
        meter.wire_bytes_sent += up as u64;
        meter.wire_bytes_received += down as u64;
        info.borrow_mut().upstream.meter = meter;
    }
}

/// Keeps the fields of an answer in the filter state, as the message that Envoy makes of them.
fn propagate(info: &RefCell<StreamInfo>, key: &str, headers: &Headers) {
    let fields: Vec<_> = headers
        .iter()
        .map(|(name, value)| json!({"key": name.as_str(), "value": String::from_utf8_lossy(value.as_bytes())}))
        .collect();
    let text = json!({"headers": fields}).to_string().into_boxed_str();
    let mut info = info.borrow_mut();
    let state = info.filter_state.get_or_insert_default();
    match state.iter_mut().find(|(known, _)| **known == *key) {
        Some((_, value)) => *value = text,
        None => state.push((key.into(), text)),
    }
}

/// Whether an upstream ended its stream by a reset. An HTTP/1 tunnel that ends in order is no error.
fn is_reset(reason: ResetReason, http2: bool) -> bool {
    match reason {
        ResetReason::RemoteReset | ResetReason::RemoteRefusedStreamReset => true,
        ResetReason::ConnectionTermination => !http2,
        _ => false,
    }
}

fn poll_idle(cx: &mut Context<'_>, idle: Option<&mut (Duration, Sleep)>, moved: bool) -> Poll<TunnelEnd> {
    let Some((limit, sleep)) = idle else { return Poll::Pending };
    if moved {
        sleep.reset(*limit);
    }
    Pin::new(sleep).poll(cx).map(|()| TunnelEnd::IdleTimeout)
}

/// One direction.
#[derive(Default)]
struct Way {
    moved: usize,
    ended: bool,
    /// What came behind the last byte.
    trailers: Option<Headers>,
}

impl Way {
    /// Ready when `from` has ended and `to` has everything. The error is the side that failed.
    fn poll(
        &mut self,
        from: &mut dyn Stream,
        to: &mut dyn Stream,
        side: Side,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), (Side, ResetReason)>> {
        let other = if side == Side::Downstream { Side::Upstream } else { Side::Downstream };
        while !self.ended {
            match to.poll_capacity(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err((other, error.reason))),
                Poll::Pending => break,
            }
            let (data, end) = match from.poll_frame(cx) {
                Poll::Ready(Ok(Frame::Data(data, end))) => (data, end),
                Poll::Ready(Ok(Frame::Trailers(trailers))) => {
                    self.trailers = Some(trailers);
                    (bytes::Bytes::new(), true)
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err((side, error.reason))),
                Poll::Pending => break,
            };
            self.moved += data.len();
            self.ended = end;
            if let Err(error) = to.send_data(data, end) {
                return Poll::Ready(Err((other, error.reason)));
            }
        }
        match to.poll_flush(cx) {
            Poll::Ready(Ok(())) if self.ended => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(Err((other, error.reason))),
            _ => Poll::Pending,
        }
    }
}
