//! One gRPC stream, opened again whenever it ends.

use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::time::Instant;

use super::{idle_until, now};
use crate::FetchFailure;
use crate::client::{Channel, ClientShared, GrpcSource};
use crate::mux::{Due, Response};
use crate::transport::{GrpcStatus, GrpcStream};

/// Runs until the channel is dropped.
pub(crate) async fn run(client: Weak<ClientShared>, channel: Weak<Channel>, source: Rc<GrpcSource>, path: String) {
    let mut failures: u32 = 0;
    loop {
        let status = stream(&client, &channel, &source, &path, &mut failures).await;
        let (Some(client), Some(channel)) = (client.upgrade(), channel.upgrade()) else { return };
        tracing::debug!("{path} gRPC config stream to {} closed: {status}", source.name);
        channel.connected.set(false);
        source.stats.connected(false);
        *channel.last_failure.borrow_mut() = status.to_string();
        let subscribed = channel.mux.borrow_mut().stream_closed();
        channel.fail(&subscribed, FetchFailure::ConnectionFailure);
        let again = Instant::now() + source.backoff.wait(failures, client.random());
        failures = failures.saturating_add(1);
        drop(client);
        // First fetches time out and resources expire without a stream, too.
        let weak = Rc::downgrade(&channel);
        drop(channel);
        if idle_until(&weak, tokio::time::sleep_until(again)).await.is_none() {
            return;
        }
    }
}

/// What a stream is waiting for.
enum Event {
    Message(Bytes),
    /// There may be something to send, or something else to wait for.
    Changed,
    Due,
}

/// Opens one stream and serves it to its end.
async fn stream(
    client: &Weak<ClientShared>,
    channel: &Weak<Channel>,
    source: &GrpcSource,
    path: &str,
    failures: &mut u32,
) -> GrpcStatus {
    let gone = || GrpcStatus::new(GrpcStatus::OK, "no longer needed");
    let mut stream = match idle_until(channel, source.transport.open(path)).await {
        Some(Ok(stream)) => stream,
        Some(Err(status)) => return status,
        None => return gone(),
    };
    let protocol = {
        let Some(channel) = channel.upgrade() else { return gone() };
        channel.mux.borrow_mut().stream_opened();
        channel.connected.set(true);
        source.stats.connected(true);
        source.protocol
    };
    loop {
        let (due, changed, hold) = {
            let (Some(client), Some(channel)) = (client.upgrade(), channel.upgrade()) else { return gone() };
            match send(&client, &channel, source, stream.as_mut()).await {
                Ok(hold) => (channel.due(), channel.changed.clone(), hold),
                Err(status) => return status,
            }
        };
        let tokens = async {
            match hold {
                Hold::Tokens(at) => tokio::time::sleep_until(at).await,
                Hold::Nothing | Hold::Room => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            message = next(stream.as_mut(), matches!(hold, Hold::Room)) => match message {
                Ok(Some(message)) => Event::Message(message),
                Ok(None) => Event::Changed,
                Err(status) => return status,
            },
            () = changed.notified() => Event::Changed,
            () = tokens => Event::Changed,
            () = due => Event::Due,
        };
        let Some(channel) = channel.upgrade() else { return gone() };
        match event {
            Event::Changed => {}
            Event::Due => channel.expire(),
            Event::Message(message) => {
                *failures = 0;
                source.stats.connected(true);
                match Response::decode(protocol, message) {
                    Ok(response) => {
                        channel.deliver(response);
                        let mux = channel.mux.borrow();
                        if !mux.control_plane().is_empty() {
                            source.stats.identifier(mux.control_plane());
                        }
                    }
                    // Without a type and a nonce there is nothing to refuse: start again.
                    Err(e) => return GrpcStatus::new(GrpcStatus::INTERNAL, format!("undecodable response: {e}")),
                }
            }
        }
    }
}

/// What keeps a request from being sent.
#[derive(Clone, Copy)]
enum Hold {
    /// There is none.
    Nothing,
    /// The peer's flow control.
    Room,
    /// The rate limit, until then.
    Tokens(Instant),
}

/// Sends whatever is due and may go.
async fn send(
    client: &ClientShared,
    channel: &Channel,
    source: &GrpcSource,
    stream: &mut dyn GrpcStream,
) -> Result<Hold, GrpcStatus> {
    loop {
        match std::future::poll_fn(|cx| Poll::Ready(stream.poll_ready(cx))).await {
            Poll::Ready(result) => result?,
            Poll::Pending => return Ok(Hold::Room),
        }
        let mut mux = channel.mux.borrow_mut();
        let message = match mux.poll_request(now()) {
            Due::Send(request) => request.encode(&client.node_bytes),
            Due::Nothing => {
                source.stats.pending_requests(0);
                return Ok(Hold::Nothing);
            }
            Due::Wait(at) => {
                source.stats.rate_limit_enforced();
                source.stats.pending_requests(mux.pending_requests());
                return Ok(Hold::Tokens(at.into()));
            }
        };
        drop(mux);
        stream.send(message)?;
    }
}

/// The next message; or nothing, once there is room for what `wants_room`.
async fn next(stream: &mut dyn GrpcStream, wants_room: bool) -> Result<Option<Bytes>, GrpcStatus> {
    std::future::poll_fn(|cx: &mut Context<'_>| {
        if wants_room && let Poll::Ready(ready) = stream.poll_ready(cx) {
            return Poll::Ready(ready.map(|()| None));
        }
        stream.poll_message(cx).map_ok(Some)
    })
    .await
}
