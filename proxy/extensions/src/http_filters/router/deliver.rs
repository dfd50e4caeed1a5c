//! The response of a try on its way downstream: informational heads, the head that answers, the body and trailers.
//!
//! From the head on the request belongs to this try alone. Whether a response is sent at all is `attempt`'s.

use super::attempt::{Attempt, Outcome};
use super::counting::{charge, charge_codes, complete, service_time};
use super::{Request, RouterConfig, hedge, outlier, redirect};
use nuncio_base::clock;
use nuncio_http::active_stream::ActiveStream;
use nuncio_http::codec::Frame;
use nuncio_http::formatter::FormatContext;
use nuncio_http::headers::{HeaderValue, Headers, names};
use std::future::poll_fn;
use std::task::{Context, Poll};

impl Attempt {
    /// Of informational heads only the first one counts, and only if it is of the kinds that are known.
    pub(super) fn inform(&mut self, stream: &mut ActiveStream<'_>, request: &mut Request, head: &Headers) {
        if self.informed || !matches!(head.status(), 100 | 102..=104) {
            return;
        }
        self.informed = true;
        charge_codes(request, Some(&self.host), head.status());
        if stream.connection.hcm.config.proxy_100_continue {
            stream.info.response_code = head.status();
            stream.send_informational(head);
            // What was passed on cannot be taken back.
            request.retry = None;
        }
    }

    /// Sends the response, or follows it where it is a redirect.
    pub(super) async fn deliver(
        &mut self,
        config: &RouterConfig,
        stream: &mut ActiveStream<'_>,
        request: &mut Request,
        head: Headers,
        end: bool,
    ) -> Outcome {
        hedge::reset_all(config, stream, request);
        stream.info.upstream.first_rx = Some(clock::now());
        if redirect::follow(stream, request, &head) {
            return Outcome::Redirected;
        }
        if let Some(outcome) = self.on_head(config, stream, request, head, end) {
            return outcome;
        }
        let outcome = poll_fn(|cx| self.poll_body(config, stream, request, cx)).await;
        let now = clock::now();
        stream.info.upstream.last_rx = Some(now);
        if matches!(outcome, Outcome::Done) {
            complete(stream, request, now);
        }
        outcome
    }

    /// Counts a response. What a gRPC request says of its host is known at its end.
    fn charge_head(&mut self, stream: &ActiveStream<'_>, request: &Request, head: &Headers, end: bool) {
        let status = head.status();
        if !stream.is_grpc() || status >= 500 {
            return charge(request, Some(&self.host), status, true);
        }
        charge_codes(request, Some(&self.host), status);
        match end {
            true => self.host.stats.count_request(outlier::is_grpc_success(head)),
            false => self.grpc_status_due = true,
        }
    }

    /// The gRPC status has come, or will not.
    pub(super) fn grpc_status(&mut self, trailers: Option<&Headers>) {
        if std::mem::take(&mut self.grpc_status_due) {
            self.host.stats.count_request(trailers.is_some_and(outlier::is_grpc_success));
        }
    }

    /// Passes the response's head on.
    fn on_head(
        &mut self,
        config: &RouterConfig,
        stream: &mut ActiveStream<'_>,
        request: &mut Request,
        mut head: Headers,
        end: bool,
    ) -> Option<Outcome> {
        let now = clock::now();
        let status = head.status();
        // From here on the response belongs to downstream: of the body, only what this try has not sent yet is needed.
        request.release_retries();
        self.delivers = true;
        if self.request_sent {
            request.replay = None;
        }
        self.per_try_timer = None;
        self.per_try_due = None;
        request.canary = self.host.is_canary() || head.bytes(&names::X_ENVOY_UPSTREAM_CANARY) == Some(b"true");
        // A 2xx to an upgrade is no upgrade and no answer either: Envoy passes on its status alone.
        let mut failed_upgrade = false;
        if stream.is_upgrade() {
            let connect = stream.request.method() == b"CONNECT";
            failed_upgrade = status / 100 == 2 && !connect;
            if failed_upgrade {
                stream.info.response_code_details = Some("websocket_handshake_unsuccessful".into());
                head.remove(&names::CONTENT_LENGTH);
            }
            if status == 101 || (connect && status / 100 == 2) {
                request.timeout_at = None;
                request.timeouts.global = None;
            }
        }
        if !failed_upgrade {
            self.charge_head(stream, request, &head, end);
        }
        if !config.suppress_envoy_headers && !stream.is_upgrade() && stream.info.request_complete.is_some() {
            let ms = service_time(stream, now);
            head.set(names::X_ENVOY_UPSTREAM_SERVICE_TIME, service_time_value(ms));
        }
        if request.route.entry().virtual_host().config().include_attempt_count_in_response {
            head.set(names::X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(u64::from(stream.info.attempt_count)));
        }
        for cookie in request.set_cookie.drain(..) {
            head.append(names::SET_COOKIE, cookie);
        }
        stream.info.response_code = status;
        if stream.info.response_code_details.is_none() {
            stream.info.response_code_details = Some("via_upstream".into());
        }
        let cx = FormatContext { request: Some(&stream.request), ..FormatContext::new(&stream.info) };
        request.route.finalize_response_headers(&mut head, &cx);
        stream.send_response_headers(head, end || failed_upgrade);
        // A filter may have answered in the response's place.
        let replaced = stream.is_over() && !end;
        if end || failed_upgrade || replaced {
            stream.info.upstream.last_rx = Some(now);
            if (failed_upgrade || replaced) && !end {
                self.reset();
            }
            complete(stream, request, now);
            // The rest of a request that was answered early is not wanted.
            if !self.request_sent {
                self.reset();
            }
            return Some(Outcome::Done);
        }
        None
    }

    /// Moves bodies both ways until the response has ended.
    fn poll_body(
        &mut self,
        config: &RouterConfig,
        stream: &mut ActiveStream<'_>,
        request: &mut Request,
        cx: &mut Context<'_>,
    ) -> Poll<Outcome> {
        if let Poll::Ready(outcome) = self.poll_request(stream, request, cx) {
            return Poll::Ready(outcome);
        }
        loop {
            match stream.poll_response_capacity(cx) {
                Poll::Ready(Ok(())) => self.pause_response(request, false),
                Poll::Ready(Err(abort)) => return Poll::Ready(Outcome::Abort(abort)),
                Poll::Pending => {
                    self.pause_response(request, true);
                    break;
                }
            }
            match self.upstream.poll_frame(cx) {
                Poll::Ready(Ok(mut frame)) => {
                    let end = frame.is_end();
                    if let Some((sleep, delay)) = &mut self.per_try_idle {
                        sleep.reset(*delay);
                    }
                    if let Some(per_try) = &mut self.per_try {
                        per_try.encode_frame(&mut stream.view(), &mut frame);
                    }
                    if end && self.grpc_status_due {
                        self.grpc_status(match &frame {
                            Frame::Trailers(trailers) => Some(trailers),
                            Frame::Data(..) => None,
                        });
                    }
                    match frame {
                        Frame::Data(data, end) => stream.send_response_data(data, end),
                        Frame::Trailers(trailers) => {
                            if !request.load_reported {
                                self.host.read_load_report(&trailers);
                            }
                            stream.send_response_trailers(trailers);
                        }
                    }
                    if end || stream.is_over() {
                        if !self.request_sent {
                            self.reset();
                        }
                        return Poll::Ready(Outcome::Done);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(self.failed(&error)),
                Poll::Pending => break,
            }
        }
        if let Poll::Ready(Err(abort)) = stream.poll_response_flush(cx) {
            return Poll::Ready(Outcome::Abort(abort));
        }
        self.poll_timers(config, stream, request, cx)
    }
}

/// The texts of short times are static: most responses take a few milliseconds.
fn service_time_value(ms: u64) -> HeaderValue {
    const SHORT: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    match SHORT.get(ms as usize) {
        Some(text) => HeaderValue::from_static(text),
        None => HeaderValue::from(ms),
    }
}
