//! Sends access logs: the streams of [`crate::grpc_logs`], on the connections that discovery has.

use super::Inner;
use super::node;
use crate::grpc_logs::LogStream;
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    HttpAccessLogEntries, Identifier, LogEntries,
};
use nuncio_extensions::access_loggers::http_grpc::Entry;
use prost::Message;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;
use xds_client::transport::{GrpcStream, GrpcTransport};

const PATH: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
/// How long a server may take to take a batch; then the stream is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends what comes until the last logger is gone.
pub(super) fn start(inner: &Rc<Inner>, stream: LogStream) {
    let transport = match inner.sources.channel(&stream.config.service) {
        Ok((_, channel)) => channel,
        Err(error) => {
            tracing::error!(target: "config", "{}: access logs cannot be sent: {error}", stream.config.path);
            return;
        }
    };
    let node = node::node(&inner.server.bootstrap.node);
    let identifier = Identifier { node: Some(node), log_name: stream.config.log_name.to_string() };
    let sender = Sender { identifier, transport: Box::new(transport), open: None };
    tokio::task::spawn_local(run(stream, sender));
}

async fn run(mut stream: LogStream, mut sender: Sender) {
    let mut waiting: Vec<Entry> = Vec::new();
    let mut size = 0;
    let mut due = Instant::now();
    loop {
        let next = tokio::select! {
            entry = stream.entries.recv() => match entry {
                Some(entry) => Some(entry),
                None => break,
            },
            () = tokio::time::sleep_until(due), if !waiting.is_empty() => None,
        };
        let full = match next {
            Some(entry) => {
                if waiting.is_empty() {
                    due = Instant::now() + stream.config.flush_interval;
                }
                size += entry.encoded_len();
                waiting.push(entry);
                size >= stream.config.buffer_size
            }
            None => true,
        };
        if full {
            send(&stream, &mut sender, std::mem::take(&mut waiting)).await;
            size = 0;
        }
    }
    send(&stream, &mut sender, waiting).await;
}

async fn send(stream: &LogStream, sender: &mut Sender, entries: Vec<Entry>) {
    if entries.is_empty() {
        return;
    }
    let count = entries.len() as u64;
    match tokio::time::timeout(PATIENCE, sender.send(entries)).await {
        Ok(Ok(())) => stream.stats.logs_written().add(count),
        failed => {
            sender.open = None;
            stream.stats.logs_dropped().add(count);
            tracing::debug!(target: "config", "{count} access logs are dropped: {failed:?}");
        }
    }
}

struct Sender {
    identifier: Identifier,
    transport: Box<dyn GrpcTransport>,
    open: Option<Box<dyn GrpcStream>>,
}

impl Sender {
    async fn send(&mut self, entries: Vec<Entry>) -> Result<(), String> {
        // A stream that the server has ended is found out by asking it for a message.
        let ended = match &mut self.open {
            Some(open) => {
                std::future::poll_fn(|cx| Poll::Ready(matches!(open.poll_message(cx), Poll::Ready(Err(_))))).await
            }
            None => true,
        };
        let mut message = StreamAccessLogsMessage {
            identifier: None,
            log_entries: Some(LogEntries::HttpLogs(HttpAccessLogEntries { log_entry: entries })),
        };
        if ended {
            self.open = Some(self.transport.open(PATH).await.map_err(|status| status.to_string())?);
            // Only the first message of a stream says who sends it.
            message.identifier = Some(self.identifier.clone());
        }
        let Some(open) = &mut self.open else { return Err("no stream".to_owned()) };
        std::future::poll_fn(|cx| open.poll_ready(cx)).await.map_err(|status| status.to_string())?;
        open.send(message.encode_to_vec().into()).map_err(|status| status.to_string())?;
        // What did not fit the window goes when the server takes it.
        std::future::poll_fn(|cx| open.poll_ready(cx)).await.map_err(|status| status.to_string())
    }
}
