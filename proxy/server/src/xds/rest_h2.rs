//! Polls over HTTP/2, of clusters that speak it. One connection for all polls of a source, as long as it lives.

use super::rest::{MAX_RESPONSE, TIMEOUT_HEADER};
use super::transport::Counted;
use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use std::time::Duration;
use tokio::task::AbortHandle;
use xds_client::transport::RestResponse;

/// Large answers are not held up by small windows.
const WINDOW: u32 = 4 << 20;

/// A connection.
pub(super) struct Connection {
    requests: SendRequest<Bytes>,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What a poll asks.
pub(super) struct Poll<'a> {
    pub(super) authority: &'a str,
    pub(super) secure: bool,
    pub(super) path: &'a str,
    /// The proxy's own address.
    pub(super) address: &'a str,
    /// How long the answer may take.
    pub(super) timeout: Duration,
    pub(super) body: Bytes,
}

impl Connection {
    /// Greets the server.
    pub(super) async fn new(stream: Counted) -> Result<Connection, h2::Error> {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).enable_push(false);
        let (requests, connection) = builder.handshake(stream).await?;
        let driver = tokio::task::spawn_local(async move {
            // What ends it is seen by the poll in question.
            let _ = connection.await;
        });
        Ok(Connection { requests, driver: driver.abort_handle() })
    }

    /// Whether another poll may go on it.
    pub(super) async fn is_ready(&self) -> bool {
        self.requests.clone().ready().await.is_ok()
    }

    /// Posts a poll, and reads the answer.
    pub(super) async fn post(&self, poll: &Poll<'_>) -> Result<RestResponse, String> {
        let scheme = if poll.secure { "https" } else { "http" };
        let request = http::Request::post(format!("{scheme}://{}{}", poll.authority, poll.path))
            .header("content-type", "application/json")
            .header("content-length", poll.body.len())
            .header("x-envoy-internal", "true")
            .header("x-forwarded-for", poll.address)
            .header(TIMEOUT_HEADER, poll.timeout.as_millis().to_string())
            .body(())
            .map_err(|error| error.to_string())?;
        let mut requests = self.requests.clone().ready().await.map_err(text)?;
        let (answer, mut sender) = requests.send_request(request, false).map_err(text)?;
        sender.send_data(poll.body.clone(), true).map_err(text)?;
        let (head, mut body) = answer.await.map_err(text)?.into_parts();
        let mut all = BytesMut::new();
        while let Some(piece) = body.data().await {
            let piece = piece.map_err(text)?;
            body.flow_control().release_capacity(piece.len()).map_err(text)?;
            if piece.len() > MAX_RESPONSE - all.len() {
                return Err("the body is too large".to_owned());
            }
            all.extend_from_slice(&piece);
        }
        Ok(RestResponse { status: head.status.as_u16(), body: all.freeze() })
    }
}

fn text(error: h2::Error) -> String {
    error.to_string()
}
