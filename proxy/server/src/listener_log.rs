//! Access logs of listeners: connections that no filter chain took, and all others at their end.

use nuncio_http::access_log::AccessLogs;
use nuncio_http::codec::Protocol;
use nuncio_http::formatter::{AccessLogType, FormatContext};
use nuncio_http::stream_info::{ResponseFlags, StreamInfo};
use nuncio_net::connection::{ConnectionInfo, Spoken};
use nuncio_net::listener::{ConnectionEnd, ListenerAccessLog};
use std::rc::Rc;
use std::sync::Arc;
use tokio::time::Instant;

struct Logs(AccessLogs);

/// The logs in the form that a listener takes.
pub(crate) fn of(logs: AccessLogs) -> Vec<Arc<dyn ListenerAccessLog>> {
    if logs.is_empty() { Vec::new() } else { vec![Arc::new(Logs(logs))] }
}

impl ListenerAccessLog for Logs {
    fn log(&self, info: &Rc<ConnectionInfo>, end: &ConnectionEnd) {
        let protocol = match info.bytes.logged_protocol() {
            Spoken::Nothing => None,
            Spoken::Http1 => Some(Protocol::Http11),
            Spoken::Http2 => Some(Protocol::Http2),
        };
        let mut stream = StreamInfo::new(info.clone(), info.id, protocol);
        stream.start = info.start;
        stream.start_time = info.start_time;
        stream.complete = Some(Instant::now());
        stream.bytes_received = info.bytes.received.get();
        stream.bytes_sent = info.bytes.sent.get();
        if info.bytes.has_failed() {
            stream.flags.insert(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
        }
        if end.no_filter_chain {
            stream.flags.insert(ResponseFlags::NO_ROUTE_FOUND);
            stream.response_code_details = Some("filter_chain_not_found".into());
        }
        self.0.log(&FormatContext { log_type: AccessLogType::NotSet, ..FormatContext::new(&stream) });
    }
}
