//! Internal redirects: a stream that is served again, with other headers, as if it had just arrived.
//!
//! The first pass is logged and counted like any stream; the second has its own log line, route and filters. The terminal
//! filter asks for it with [`ActiveStream::recreate`] and returns.

use super::*;
use std::sync::Arc;

/// Internal redirects that a request has gone through.
#[derive(Debug, Default)]
pub struct Redirects {
    /// How many.
    pub count: u32,
    /// From which route to which.
    visited: Vec<(Box<str>, Box<str>)>,
}

impl Redirects {
    /// Whether the route named `to` is reached from the one named `from` for the first time.
    pub fn visit(&mut self, from: &str, to: &str) -> bool {
        let new = !self.visited.iter().any(|(known_from, known_to)| &**known_from == from && &**known_to == to);
        if new {
            self.visited.push((from.into(), to.into()));
        }
        new
    }
}

impl ActiveStream<'_> {
    /// Looks for the route that these headers would get, and writes it down as the stream's; its name, None where there is
    /// none. The route in force stays.
    pub fn note_route_of(&mut self, headers: &Headers) -> Option<Arc<str>> {
        let hcm = &self.connection.hcm;
        let table = hcm.routes.load(headers);
        let random = nuncio_base::random::u64();
        let request = RouteRequest::new(headers, &self.info, random, &*hcm.runtime);
        let found = match table.as_ref().map(|table| table.route(&request, None)) {
            Some(RouteOutcome::Route(route)) => Ok(Some(route)),
            Some(RouteOutcome::TlsRedirect(_)) => Ok(None),
            Some(RouteOutcome::NotFound) | None => Err(()),
        };
        let route = found.as_ref().ok().and_then(Option::as_ref);
        self.info.note_route(route);
        found.ok().map(|route| route.map_or_else(|| Arc::from(""), |route| route.entry().name().clone()))
    }

    /// Serves the stream again from the start, with its request headers as they are now and this body. `response` is what
    /// the access log shows as the response to the first pass.
    pub fn recreate(&mut self, body: VecDeque<Frame>, response: Headers) {
        self.info.response_code_details = Some("internal_redirect".into());
        self.info.response_code = response.status();
        self.response = response;
        self.recreated = Some(body);
    }

    /// Ends the first pass and sets the stream back, where that was asked for.
    pub(super) fn begin_anew(&mut self) -> bool {
        let Some(body) = self.recreated.take() else { return false };
        self.complete();
        self.completed = false;
        let connection = self.connection;
        let stats = &connection.hcm.stats;
        let config = &connection.hcm.config;
        let protocol = self.downstream.protocol();
        stats.downstream_rq_total().inc();
        match protocol {
            Protocol::Http10 | Protocol::Http11 => stats.downstream_rq_http1_total().inc(),
            Protocol::Http2 => stats.downstream_rq_http2_total().inc(),
            Protocol::Http3 => stats.downstream_rq_http3_total().inc(),
        }
        // What is sent again counts again.
        let again = body.iter().map(|frame| if let Frame::Data(data, _) = frame { data.len() as u64 } else { 0 });
        let received = self.info.bytes_received + again.sum::<u64>();
        let remote = self.info.remote_address.take();
        let request_id = self.info.request_id;
        self.info = StreamInfo::new(connection.info.clone(), connection.next_stream_id(), Some(protocol));
        self.info.bytes_received = received;
        self.info.remote_address = remote;
        self.info.request_id = request_id;
        self.info.request_complete = Some(self.info.start);
        self.response = Headers::new();
        self.route = None;
        self.chain = &self.chains.ordinary;
        self.slots.clear();
        self.head_request = self.request.method() == b"HEAD";
        self.grpc = is_grpc(&self.request);
        self.buffered = body;
        self.timers = Timers {
            idle: config.stream_idle_timeout.map(|d| (timer::sleep(d), d)),
            request: None,
            duration: config.max_stream_duration.map(timer::sleep),
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_from_one_route_to_another_is_new_once() {
        let mut redirects = Redirects::default();
        assert!(redirects.visit("a", "b"));
        assert!(redirects.visit("b", "b"));
        assert!(!redirects.visit("a", "b"));
    }
}
