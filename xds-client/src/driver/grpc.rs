//! One gRPC stream, opened again whenever it ends.

use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{idle_until, now};
use crate::FetchFailure;
use crate::client::{Channel, ClientShared, GrpcSource};
use crate::mux::{Due, Response};
use crate::stats::Connected;
use crate::transport::{GrpcStatus, GrpcStream};

/// After so many attempts that the first server of a source has not answered the other is tried.
const PATIENCE: u32 = 2;
/// After the other server has ended a stream, or could not be reached.
const BEFORE_PRIMARY: Duration = Duration::from_millis(500);

/// Which server a stream goes to.
struct Servers {
    current: Connected,
    /// Who answered last.
    answered: Connected,
    /// The first has answered once: the other is not asked any more.
    primary_works: bool,
    /// Attempts with the first since it answered.
    attempts: u32,
    /// Failures of the present one in a row, for the wait between two.
    failures: u32,
}

impl Servers {
    fn new() -> Servers {
        Servers { current: Connected::Primary, answered: Connected::No, primary_works: false, attempts: 0, failures: 0 }
    }

    /// There was an answer.
    fn answered(&mut self) {
        self.failures = 0;
        self.answered = self.current;
        if self.current == Connected::Primary {
            self.primary_works = true;
            self.attempts = 0;
        }
    }

    /// The stream has ended, or there was none. What is next, after how long?
    fn ended(&mut self, source: &GrpcSource, random: impl FnOnce() -> u64) -> Duration {
        if self.current == Connected::Failover {
            self.current = Connected::Primary;
            return BEFORE_PRIMARY;
        }
        if source.failover.is_some() && !self.primary_works {
            self.attempts += 1;
            if self.attempts >= PATIENCE {
                self.current = Connected::Failover;
                return Duration::ZERO;
            }
        }
        let wait = source.backoff.wait(self.failures, random());
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

/// Runs until the channel is dropped.
pub(crate) async fn run(client: Weak<ClientShared>, channel: Weak<Channel>, source: Rc<GrpcSource>, path: String) {
    let mut servers = Servers::new();
    loop {
        let status = stream(&client, &channel, &source, &path, &mut servers).await;
        let (Some(client), Some(channel)) = (client.upgrade(), channel.upgrade()) else { return };
        tracing::debug!("{path} gRPC config stream to {} closed: {status}", source.name);
        channel.connected.set(false);
        source.stats.connected(Connected::No);
        *channel.last_failure.borrow_mut() = status.named();
        let subscribed = channel.mux.borrow_mut().stream_closed();
        channel.fail(&subscribed, FetchFailure::ConnectionFailure);
        let again = Instant::now() + servers.ended(&source, || client.random());
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
    servers: &mut Servers,
) -> GrpcStatus {
    let gone = || GrpcStatus::new(GrpcStatus::OK, "no longer needed");
    let transport = match (&source.failover, servers.current) {
        (Some(failover), Connected::Failover) => failover,
        _ => &source.transport,
    };
    let mut stream = match idle_until(channel, transport.open(path)).await {
        Some(Ok(stream)) => stream,
        Some(Err(status)) => return status,
        None => return gone(),
    };
    let protocol = {
        let Some(channel) = channel.upgrade() else { return gone() };
        let known = matches!(servers.answered, Connected::No) || servers.answered == servers.current;
        channel.mux.borrow_mut().stream_opened_to(known);
        channel.connected.set(true);
        source.stats.connected(servers.current);
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
                servers.answered();
                source.stats.connected(servers.current);
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
