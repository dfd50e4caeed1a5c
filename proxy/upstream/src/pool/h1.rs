//! One pooled HTTP/1 connection.

use super::connect::{Connected, CountedConnection, Ended};
use super::wake::{ConnectionWake, JanitorWake};
use nuncio_http::codec::ResetReason;
use nuncio_http::codec::h1::{ClientConfig, H1Client};
use nuncio_net::connection::{ConnectionInfo, Io};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use tokio::time::Instant;

/// A connection that serves one stream at a time.
pub(super) struct H1Connection {
    pub(super) client: H1Client<Io>,
    pub(super) info: Rc<ConnectionInfo>,
    pub(super) counted: CountedConnection,
    wake: Arc<ConnectionWake>,
    waker: Waker,
    /// Streams that it may still serve.
    pub(super) remaining: u32,
    pub(super) served: u32,
    pub(super) idle_since: Instant,
    /// End of `max_connection_duration`.
    pub(super) deadline: Option<Instant>,
    /// Not to be used again.
    pub(super) draining: bool,
}

impl H1Connection {
    pub(super) fn new(
        connected: Connected,
        counted: CountedConnection,
        config: &Rc<ClientConfig>,
        janitor: &Arc<JanitorWake>,
    ) -> Box<Self> {
        let wake = ConnectionWake::new(janitor);
        let http = &counted.cluster.config.http;
        let mut client = H1Client::new(connected.io, config.clone());
        client.count_waiting(connected.info.bytes.clone());
        Box::new(H1Connection {
            client,
            info: Rc::new(connected.info),
            waker: wake.clone().into(),
            wake,
            remaining: http.max_requests_per_connection.filter(|max| *max > 0).unwrap_or(u32::MAX),
            served: 0,
            idle_since: counted.start(),
            deadline: super::connection_duration(http).map(|length| counted.start() + length),
            draining: false,
            counted,
        })
    }

    /// Watches for the end of an idle connection; true when it has ended. No system call while nothing happens.
    pub(super) fn has_ended(&mut self) -> bool {
        self.wake.clear();
        self.client.poll_idle(&mut Context::from_waker(&self.waker)).is_ready()
    }

    /// Whether something happened while it was idle, so that [`H1Connection::has_ended`] must be asked.
    #[inline]
    pub(super) fn woken(&self) -> bool {
        self.wake.fired()
    }

    /// Counts the end of an idle connection: the host closed it, or said something that nobody had asked for.
    pub(super) fn count_idle_end(&mut self) {
        let unasked = self.client.has_unasked();
        if unasked {
            self.counted.cluster.stats.upstream_cx_protocol_error().inc();
        }
        self.counted.ended(if unasked { Ended::Local } else { Ended::Remote }, false);
    }

    /// Counts the end of a connection whose stream is over or given up, by how it ended.
    pub(super) fn count_end(&mut self) {
        let stats = &self.counted.cluster.stats;
        if self.client.close_announced() {
            stats.upstream_cx_close_notify().inc();
        }
        match self.client.error().map(|error| error.reason) {
            Some(ResetReason::ConnectionTermination) => self.counted.ended(Ended::Remote, true),
            Some(ResetReason::ProtocolError) => {
                stats.upstream_cx_protocol_error().inc();
                let who = if self.client.peer_closed() { Ended::Remote } else { Ended::Local };
                self.counted.ended(who, true);
            }
            Some(_) => self.counted.ended(Ended::Local, true),
            None => {
                let complete = self.client.request_complete() && self.client.response_complete();
                let closed = self.client.peer_closed();
                if complete && self.client.has_unasked() {
                    stats.upstream_cx_protocol_error().inc();
                }
                let who = if closed { Ended::Remote } else { Ended::Local };
                self.counted.ended(who, !complete);
            }
        }
    }
}

impl Drop for H1Connection {
    fn drop(&mut self) {
        self.counted.cluster.stats.upstream_rq_per_cx().record(u64::from(self.served));
    }
}
