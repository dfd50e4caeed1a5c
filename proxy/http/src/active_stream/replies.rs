//! How a stream ends: replies made here, resets, what an abort is answered with, the access log.

use super::*;
use nuncio_base::clock;
use nuncio_net::connection::LocalClose;

impl ActiveStream<'_> {
    /// Ends a response that has begun and cannot go on: the peer sees an incomplete message.
    pub fn reset(&mut self, reason: ResetReason) {
        if !self.response_complete {
            // Envoy counts the end of a stream that it resets itself as the peer's too.
            self.connection.hcm.stats.downstream_rq_rx_reset().inc();
            self.rx_reset = true;
            self.connection.hcm.stats.downstream_rq_tx_reset().inc();
            self.downstream.reset(reason);
            self.response_complete = true;
            self.cut = true;
        }
    }

    /// Answers with a reply made here. A response that has begun is reset instead.
    pub fn local_reply(&mut self, reply: LocalReply) {
        self.reply(reply, false);
    }

    /// As [`ActiveStream::local_reply`], with the route's changes to response headers applied.
    pub fn routed_reply(&mut self, reply: LocalReply) {
        self.reply(reply, true);
    }

    /// A filter's answer in the place of a response that it was shown. The encoder filters do not see it: those before the
    /// one that answers have seen a response already, as in Envoy.
    pub(super) fn direct_reply(&mut self, reply: LocalReply) {
        self.bypass = true;
        self.local_reply(reply);
    }

    fn reply(&mut self, reply: LocalReply, routed: bool) {
        self.info.flags.insert(reply.flags);
        self.info.response_code_details = Some(reply.details.clone());
        self.connection.set_delay_close(true);
        if self.response_started {
            self.reset(ResetReason::LocalReset);
            return;
        }
        // As in Envoy, HTTP/1 does not go on after an answer that calls the request bad.
        if reply.close || (reply.status == 400 && self.bad_requests_close()) {
            self.downstream.close_after();
        }
        let mut response = Headers::with_capacity(6 + reply.headers.len());
        response.set_status(reply.status);
        if let Some(kind) = reply.content_type.filter(|kind| kind.as_bytes() != b"text/plain") {
            response.append(names::CONTENT_TYPE, kind);
        }
        let mut own = reply.headers;
        if !reply.headers_last {
            own.drain(..).for_each(|(name, value)| response.append(name, value));
        }
        if routed && let Some(route) = &self.route {
            let cx = FormatContext { request: Some(&self.request), ..FormatContext::new(&self.info) };
            route.finalize_response_headers(&mut response, &cx);
            let forwards = self.info.attempt_count > 0;
            if forwards && route.entry().virtual_host().config().include_attempt_count_in_response {
                response.set(names::X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(u64::from(self.info.attempt_count)));
            }
        }
        own.into_iter().for_each(|(name, value)| response.append(name, value));
        let mut body = reply.body.clone();
        let mut content_type = HeaderValue::from_static("text/plain");
        let rules = &self.connection.hcm.local_reply;
        let mut own_type = true;
        if !rules.is_empty() {
            let before = response.get(&names::CONTENT_TYPE).cloned();
            self.info.response_code = reply.status;
            if let Some(kind) = rules.apply(&mut response, &mut body, &self.request, &mut self.info) {
                content_type = kind;
            }
            // A body that was made anew has its format's type, unless the mapper's headers say otherwise.
            own_type = body == reply.body || before.as_ref() != response.get(&names::CONTENT_TYPE);
        }
        // Formats of the access log do not see it.
        self.info.local_reply_body = None;
        if self.grpc {
            return self.grpc_local_reply(response, body, &content_type, reply.grpc_status);
        }
        if body.is_empty() {
            response.remove(&names::CONTENT_LENGTH);
            response.remove(&names::CONTENT_TYPE);
        } else {
            response.set(names::CONTENT_LENGTH, HeaderValue::from(body.len() as u64));
            if !own_type || !response.contains(&names::CONTENT_TYPE) {
                response.set(names::CONTENT_TYPE, content_type);
            }
        }
        let body = if self.head_request { Bytes::new() } else { body };
        self.send_response_headers(response, body.is_empty());
        if !body.is_empty() {
            self.send_response_data(body, true);
        }
    }

    fn bad_requests_close(&self) -> bool {
        let config = &self.connection.hcm.config;
        let own = config.http1.stream_error_on_invalid_http_message;
        self.protocol() != Protocol::Http2 && !own.unwrap_or(config.stream_error_on_invalid_http_message)
    }

    /// gRPC clients get a trailers-only response.
    fn grpc_local_reply(
        &mut self,
        mut response: Headers,
        mut body: Bytes,
        content_type: &HeaderValue,
        grpc_status: Option<u32>,
    ) {
        let status = grpc_status.unwrap_or_else(|| grpc_status_of_http(response.status()));
        response.set_status(200);
        response.set(names::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if response.bytes(&names::GRPC_STATUS).is_none_or(<[u8]>::is_empty) {
            response.set(names::GRPC_STATUS, HeaderValue::from(u64::from(status)));
        }
        if !body.is_empty() && !self.head_request {
            if content_type.as_bytes() == b"application/json" && body.ends_with(b"\n") {
                body.truncate(body.len() - 1);
            }
            response.set(names::GRPC_MESSAGE, HeaderValue::from_checked(percent_encode_grpc(&body)));
        }
        response.remove(&names::CONTENT_LENGTH);
        self.send_response_headers(response, true);
    }

    pub(super) fn answer_malformed(&mut self, error: &StreamError) {
        let hcm = &self.connection.hcm;
        hcm.stats.downstream_cx_protocol_error().inc();
        if self.protocol() != Protocol::Http2 {
            // It is the end of the connection.
            self.connection.info.bytes.fail();
        }
        if error.status != 0 && !self.response_started {
            // A reset counts it itself.
            hcm.stats.downstream_rq_rx_reset().inc();
            self.rx_reset = true;
        }
        self.info.flags.insert(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
        let body = crate::local_reply::reason_phrase(error.status);
        if error.status == 0 {
            self.info.response_code_details = Some(error.details.into());
            self.reset(ResetReason::LocalReset);
            return;
        }
        self.local_reply(LocalReply::new(error.status, body, error.details).close());
    }

    fn answer_abort(&mut self, abort: Abort) {
        let stats = &self.connection.hcm.stats;
        match abort {
            Abort::Downstream(error) => {
                stats.downstream_rq_rx_reset().inc();
                self.rx_reset = true;
                let (flag, details) = match error.reason {
                    // RST_STREAM, whatever its code.
                    ResetReason::RemoteReset | ResetReason::RemoteRefusedStreamReset | ResetReason::ConnectError => {
                        (ResponseFlags::DOWNSTREAM_REMOTE_RESET, error.details)
                    }
                    _ if !error.details.is_empty() => (ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, error.details),
                    // The connection was closed, by the peer unless this side says why.
                    _ => {
                        let local = self.connection.info.local_close.get();
                        let details = local.map_or("downstream_remote_disconnect", LocalClose::http_details);
                        (ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION, details)
                    }
                };
                if self.protocol() != Protocol::Http2 {
                    self.connection.set_left_active();
                }
                if !details.is_empty() {
                    self.info.flags.insert(flag);
                    self.info.response_code_details = Some(details.into());
                }
                self.downstream.abandon();
                self.response_complete = true;
            }
            Abort::Malformed(error) => self.answer_malformed(&error),
            Abort::IdleTimeout => {
                stats.downstream_rq_idle_timeout().inc();
                let status = if self.request_complete { 504 } else { 408 };
                self.local_reply(
                    LocalReply::new(status, "stream timeout", "stream_idle_timeout")
                        .flags(ResponseFlags::STREAM_IDLE_TIMEOUT)
                        .close_if(status == 408),
                );
            }
            Abort::RequestTimeout => {
                stats.downstream_rq_timeout().inc();
                self.local_reply(LocalReply::new(408, "request timeout", "request_overall_timeout").close());
            }
            Abort::MaxDuration => {
                stats.downstream_rq_max_duration_reached().inc();
                let status = if self.request_complete { 504 } else { 408 };
                let reply = LocalReply::new(status, "downstream duration timeout", "max_duration_timeout");
                self.local_reply(LocalReply { grpc_status: Some(4), ..reply }.close_if(status == 408));
            }
        }
    }

    /// Answers what aborted the stream, writes what is queued, counts and logs.
    pub(super) async fn finish(&mut self) {
        let mut left = false;
        if let Some(abort) = self.abort.take() {
            left = matches!(abort, Abort::Downstream(_));
            self.answer_abort(abort);
        }
        if !self.response_complete {
            // The terminal filter ended without an end of the response: nothing more will come.
            self.reset(ResetReason::LocalReset);
        }
        if !self.request_complete && self.response_started {
            let stats = &self.connection.hcm.stats;
            stats.downstream_rq_response_before_rq_complete().inc();
            // Envoy counts the end of such a request as a reset of the peer.
            if !self.rx_reset {
                stats.downstream_rq_rx_reset().inc();
            }
        }
        let config = &self.connection.hcm.config;
        let limit = match config.delayed_close_timeout {
            // What is left of a response that was cut short goes out with the close of the connection.
            delay if self.cut && !delay.is_zero() => Some(delay),
            _ => self.flush_timeout().or(config.idle_timeout),
        };
        let flush = poll_fn(|cx| self.downstream.poll_flush(cx));
        let flushed = match limit {
            Some(limit) => timer::timeout(limit, flush).await.unwrap_or(Err(StreamError::new(ResetReason::LocalReset))),
            None => flush.await,
        };
        if flushed.is_err() {
            self.downstream.abandon();
            if self.info.flags.is_empty() && !left {
                self.info.flags.insert(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
            }
        }
        self.complete();
    }

    /// How long a response may take to leave once it is complete: what the route says, the connection manager, or the
    /// idle timeouts of either.
    fn flush_timeout(&self) -> Option<Duration> {
        let config = &self.connection.hcm.config;
        let action = self.route.as_ref().and_then(|route| route.entry().route_action());
        action
            .and_then(|action| action.flush_timeout)
            .or(config.stream_flush_timeout)
            .or_else(|| action.and_then(|action| action.idle_timeout))
            .unwrap_or(config.stream_idle_timeout)
    }

    /// The connection was closed under the stream, by this side: it is counted and logged all the same.
    pub(super) fn end_with_connection(&mut self) {
        let info = &self.connection.info;
        // A task that is dropped without a word is one that the end of the process finds.
        info.local_close.set(info.local_close.get().or(Some(LocalClose::Listener)));
        if !self.response_complete {
            self.answer_abort(Abort::Downstream(StreamError::new(ResetReason::ConnectionTermination)));
        }
        self.complete();
    }

    pub(super) fn complete(&mut self) {
        self.completed = true;
        let connection = self.connection;
        let hcm = &connection.hcm;
        if self.chain.any.complete {
            for (filter, slot) in self.chain.with_hook(&mut self.slots, |hooks| hooks.complete) {
                let mut view =
                    StreamView { request: &mut self.request, info: &mut self.info, route: self.route.as_ref() };
                filter.complete(slot, &mut view);
            }
        }
        let now = clock::now();
        self.info.complete = Some(now);
        self.info.meter = self.downstream.bytes_meter();
        let elapsed = now.duration_since(self.info.start);
        hcm.stats.downstream_rq_time().record(elapsed.as_millis() as u64);
        if !hcm.access_logs.is_empty() {
            let cx = FormatContext {
                request: Some(&self.request),
                response: Some(&self.response),
                trailers: Some(&self.response_trailers),
                info: &self.info,
                log_type: AccessLogType::DownstreamEnd,
            };
            hcm.access_logs.log(&cx);
        }
    }
}

/// gRPC's percent encoding of a message: printable ASCII but `%` stays.
fn percent_encode_grpc(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len());
    for &b in message {
        if (0x20..0x7f).contains(&b) && b != b'%' {
            out.extend_from_slice(&[b]);
        } else {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            out.extend_from_slice(&[b'%', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
        }
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_messages_are_percent_encoded() {
        assert_eq!(&percent_encode_grpc(b"a b%\n")[..], b"a b%25%0A");
    }
}
