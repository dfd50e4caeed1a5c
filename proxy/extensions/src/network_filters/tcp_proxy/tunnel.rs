//! `tunneling_config`: the connection's bytes go to the upstream as the body of a CONNECT or POST request.
//!
//! Both sides are streams of frames here, so that one loop moves bytes whatever the protocol of the upstream. Choosing the
//! host, trying again and logging are the session's.

use nuncio_base::timer::{self, Sleep};
use nuncio_config::tcp_proxy::TunnelingConfig;
use nuncio_http::codec::raw::RawClient;
use nuncio_http::codec::{Frame, ResetReason, Stream, StreamError};
use nuncio_http::formatter::{FormatContext, HeaderFormatter};
use nuncio_http::header_mutation::HeaderRules;
use nuncio_http::headers::{HeaderValue, Headers, names};
use nuncio_http::stream_info::StreamInfo;
use nuncio_net::connection::Io;
use nuncio_net::splice::Side;
use nuncio_upstream::{Cluster, Host, PoolFailure, PooledStream, StreamOptions, http_stream};
use std::cell::RefCell;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// How the requests of tunnels look.
pub(super) struct Tunnel {
    host: HeaderFormatter,
    /// The path of POST requests; None for CONNECT.
    post_path: Option<HeaderValue>,
    headers: HeaderRules,
}

/// Why bytes no longer move.
pub(super) enum TunnelEnd {
    /// Both sides have ended in order.
    Finished,
    /// This side failed.
    Failed(Side),
    /// No byte has moved for the idle timeout.
    IdleTimeout,
}

impl Tunnel {
    /// Compiles the configuration; errors are text.
    pub(super) fn new(config: &TunnelingConfig) -> Result<Tunnel, String> {
        let headers = HeaderRules::build(&config.headers_to_add, &[]);
        let first = |errors: Vec<(String, String)>| errors.into_iter().next().map(|(_, text)| text).unwrap_or_default();
        Ok(Tunnel {
            host: HeaderFormatter::new(&config.hostname).map_err(|error| error.0)?,
            post_path: match &config.post_path {
                Some(path) => Some(HeaderValue::parse(path.to_string()).ok_or("post_path is not a header value")?),
                None => None,
            },
            headers: headers.map_err(first)?,
        })
    }

    fn request(&self, info: &StreamInfo, secure: bool) -> Option<Headers> {
        let cx = FormatContext::new(info);
        let mut head = Headers::with_capacity(8);
        head.append(names::METHOD, HeaderValue::from_static(if self.post_path.is_some() { "POST" } else { "CONNECT" }));
        head.append(names::AUTHORITY, self.host.value(&cx)?);
        if let Some(path) = &self.post_path {
            head.append(names::PATH, path.clone());
            head.append(names::SCHEME, HeaderValue::from_static(if secure { "https" } else { "http" }));
        }
        self.headers.apply_request(&mut head, &cx);
        Some(head)
    }

    /// A stream to `host` that the upstream has accepted. The answer may take as long as the connection may be idle.
    ///
    /// # Errors
    /// Those of the pool; an answer other than 2xx counts as a remote connection failure, as in Envoy.
    pub(super) async fn open(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        info: &RefCell<StreamInfo>,
        options: &StreamOptions<'_>,
        idle: Option<Duration>,
    ) -> Result<PooledStream, PoolFailure> {
        let failed = |reason| PoolFailure { reason, transport_failure_reason: None, host: Some(host.clone()) };
        let mut upstream = Box::pin(http_stream(cluster, host, options)).await?;
        let head = self.request(&info.borrow(), upstream.connection().is_tls());
        let Some(head) = head else {
            upstream.reset(ResetReason::LocalReset);
            return Err(failed(ResetReason::LocalConnectionFailure));
        };
        let answer = exchange(&mut upstream, &head);
        let answer = match idle {
            Some(limit) => timer::timeout(limit, answer).await.unwrap_or(Ok(0)),
            None => answer.await,
        };
        match answer {
            Ok(status) if status / 100 == 2 => Ok(upstream),
            Ok(_) | Err(_) => {
                upstream.reset(ResetReason::LocalReset);
                Err(failed(ResetReason::RemoteConnectionFailure))
            }
        }
    }
}

/// Sends the head and waits for the final answer's status.
async fn exchange(upstream: &mut PooledStream, head: &Headers) -> Result<u16, StreamError> {
    upstream.send_headers(head, false)?;
    loop {
        let head = poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = upstream.poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
            upstream.poll_headers(cx)
        });
        let (head, end) = head.await?;
        match head.status() {
            100..200 => {}
            // An answer without a body cannot be a tunnel.
            200..300 if end => return Err(StreamError::new(ResetReason::ConnectionTermination)),
            status => return Ok(status),
        }
    }
}

/// Moves bytes between `io` and the tunnel until both sides have ended, one fails, or nothing moves any more.
pub(super) async fn copy(
    io: &mut Io,
    upstream: &mut PooledStream,
    buffer_limit: usize,
    idle_timeout: Option<Duration>,
) -> TunnelEnd {
    let mut downstream = RawClient::new(io, bytes::Bytes::new(), buffer_limit);
    let mut up = Way::default();
    let mut down = Way::default();
    let mut idle = idle_timeout.filter(|limit| !limit.is_zero()).map(|limit| (limit, timer::sleep(limit)));
    poll_fn(|cx| {
        let before = (up.moved, down.moved);
        let both = [
            up.poll(&mut downstream, &mut **upstream, Side::Downstream, cx),
            down.poll(&mut **upstream, &mut downstream, Side::Upstream, cx),
        ];
        let moved = (up.moved, down.moved) != before;
        match both {
            [Poll::Ready(Err(side)), _] | [_, Poll::Ready(Err(side))] => Poll::Ready(TunnelEnd::Failed(side)),
            [Poll::Ready(Ok(())), Poll::Ready(Ok(()))] => Poll::Ready(TunnelEnd::Finished),
            _ => poll_idle(cx, idle.as_mut(), moved),
        }
    })
    .await
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
}

impl Way {
    /// Ready when `from` has ended and `to` has everything. The error is the side that failed.
    fn poll(
        &mut self,
        from: &mut dyn Stream,
        to: &mut dyn Stream,
        side: Side,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Side>> {
        let other = if side == Side::Downstream { Side::Upstream } else { Side::Downstream };
        while !self.ended {
            match to.poll_capacity(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(other)),
                Poll::Pending => break,
            }
            let (data, end) = match from.poll_frame(cx) {
                Poll::Ready(Ok(Frame::Data(data, end))) => (data, end),
                Poll::Ready(Ok(Frame::Trailers(_))) => (bytes::Bytes::new(), true),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(side)),
                Poll::Pending => break,
            };
            self.moved += data.len();
            self.ended = end;
            if to.send_data(data, end).is_err() {
                return Poll::Ready(Err(other));
            }
        }
        match to.poll_flush(cx) {
            Poll::Ready(Ok(())) if self.ended => Poll::Ready(Ok(())),
            Poll::Ready(Err(_)) => Poll::Ready(Err(other)),
            _ => Poll::Pending,
        }
    }
}
