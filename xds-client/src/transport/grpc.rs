//! gRPC streams straight on HTTP/2: the `GrpcTransport` for owners that can open a connection and want nothing more.
//!
//! A [`Channel`] holds the connections to one control plane. All streams share the first of them, hundreds if need be; a
//! further one is opened only when the server's SETTINGS leave no room. A channel does not retry: the client does,
//! stream by stream, with its back-off. Runs on a `LocalSet`.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Request};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::{Connect, GrpcStatus, GrpcStream, GrpcTransport, LocalFuture};

/// Streams that are opened before the server has said how many it allows. One too many would wait on that connection for
/// as long as the others live, though another connection had room.
const STREAMS_BEFORE_SETTINGS: usize = 1;
/// HTTP/2 windows: per stream and per connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How much small DATA frames may cost in memory. Control planes send bursts of them, one for each stream; h2's own
/// limit ends the connection at a few hundred.
const SMALL_FRAMES: usize = 64 << 20;
/// The five bytes before each message.
const PREFIX: usize = 5;

/// How a channel behaves.
#[derive(Clone, Debug)]
pub struct ChannelOptions {
    /// `:authority` of every request.
    pub authority: String,
    /// `https` rather than `http` as `:scheme`.
    pub tls: bool,
    /// `initial_metadata` and whatever else goes with every request.
    pub metadata: Vec<(String, String)>,
    /// How long connecting may take, TLS included. 5 s by default.
    pub connect_timeout: Duration,
    /// The largest message taken, in bytes. 256 MiB by default.
    pub max_message_size: usize,
    /// Pings the server so often, and gives the connection up if an answer takes that long. Off by default.
    pub keepalive: Option<(Duration, Duration)>,
}

impl ChannelOptions {
    /// The defaults, for that authority.
    pub fn new(authority: impl Into<String>) -> ChannelOptions {
        ChannelOptions {
            authority: authority.into(),
            tls: false,
            metadata: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            max_message_size: 256 << 20,
            keepalive: None,
        }
    }
}

/// The connections to one control plane. Clones share them.
#[derive(Clone)]
pub struct Channel {
    shared: Rc<ChannelShared>,
}

struct ChannelShared {
    connect: Box<dyn Connect>,
    options: ChannelOptions,
    connections: RefCell<Vec<Connection>>,
    connecting: RefCell<Option<Attempt>>,
}

/// An attempt to connect, with everyone who waits for it.
type Attempt = Shared<LocalBoxFuture<'static, Result<(), GrpcStatus>>>;

#[derive(Clone)]
struct Connection {
    sender: SendRequest<Bytes>,
    state: Rc<ConnectionState>,
}

#[derive(Default)]
struct ConnectionState {
    /// Streams in use.
    active: Cell<usize>,
    /// The server's SETTINGS have arrived.
    settled: Cell<bool>,
    /// No further stream can be opened on it.
    draining: Cell<bool>,
    closed: Cell<bool>,
    changed: Notify,
}

impl Channel {
    /// A channel that connects when its first stream is opened.
    pub fn new(connect: Box<dyn Connect>, options: ChannelOptions) -> Channel {
        Channel {
            shared: Rc::new(ChannelShared {
                connect,
                options,
                connections: RefCell::default(),
                connecting: RefCell::default(),
            }),
        }
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.shared.connections.borrow().iter().filter(|c| !c.state.closed.get()).count()
    }
}

impl GrpcTransport for Channel {
    fn open(&self, path: &str) -> LocalFuture<Result<Box<dyn GrpcStream>, GrpcStatus>> {
        let shared = self.shared.clone();
        let request = shared.request(path);
        Box::pin(async move {
            let request = request?;
            // A connection may have been told to drain, which is found out by asking: then another is used.
            let mut first_failure = None;
            let (send, response, lease) = loop {
                let (connection, lease) = shared.lease().await?;
                match connection.open(request.clone(), shared.options.connect_timeout).await {
                    Ok((response, send)) => break (send, response, lease),
                    Err(status) => {
                        connection.state.draining.set(true);
                        if let Some(status) = first_failure.replace(status) {
                            return Err(status);
                        }
                    }
                }
            };
            Ok(Box::new(Stream {
                send,
                unsent: Bytes::new(),
                response: Some(response),
                recv: None,
                read: BytesMut::new(),
                ended: None,
                max_message_size: shared.options.max_message_size,
                _lease: lease,
            }) as Box<dyn GrpcStream>)
        })
    }
}

/// A stream's place on a connection.
struct Lease(Rc<ConnectionState>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.changed.notify_waiters();
    }
}

impl ChannelShared {
    fn request(&self, path: &str) -> Result<Request<()>, GrpcStatus> {
        let invalid = |e: http::Error| GrpcStatus::new(GrpcStatus::INTERNAL, format!("invalid request: {e}"));
        let uri = http::Uri::builder()
            .scheme(if self.options.tls { "https" } else { "http" })
            .authority(self.options.authority.as_str())
            .path_and_query(path)
            .build()
            .map_err(invalid)?;
        let mut request = Request::post(uri)
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .body(())
            .map_err(invalid)?;
        for (name, value) in &self.options.metadata {
            let name = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).map_err(|e| invalid(e.into()))?;
            let value = HeaderValue::from_str(value).map_err(|e| invalid(e.into()))?;
            request.headers_mut().append(name, value);
        }
        Ok(request)
    }

    async fn lease(self: &Rc<Self>) -> Result<(Connection, Lease), GrpcStatus> {
        loop {
            let unsettled = {
                let mut connections = self.connections.borrow_mut();
                connections.retain(|c| !c.state.closed.get() && !c.state.draining.get());
                if let Some(c) = connections.iter().find(|c| c.has_room()) {
                    c.state.active.set(c.state.active.get() + 1);
                    return Ok((c.clone(), Lease(c.state.clone())));
                }
                connections.iter().find(|c| !c.state.settled.get()).map(|c| c.state.clone())
            };
            if let Some(state) = unsettled {
                // All is on one thread: nothing can have changed since the look above.
                let changed = timeout(self.options.connect_timeout, state.changed.notified()).await;
                if changed.is_err() && !state.settled.get() {
                    return Err(GrpcStatus::unavailable("the server sends no settings"));
                }
                continue;
            }
            // Whoever asks meanwhile waits for the same attempt, and shares its failure.
            let current = self.connecting.borrow().clone();
            let attempt = current.unwrap_or_else(|| {
                let this = self.clone();
                let attempt = async move {
                    let result = this.connect().await;
                    *this.connecting.borrow_mut() = None;
                    result
                }
                .boxed_local()
                .shared();
                *self.connecting.borrow_mut() = Some(attempt.clone());
                attempt
            });
            attempt.await?;
        }
    }

    async fn connect(&self) -> Result<(), GrpcStatus> {
        let open = async {
            let io = self.connect.connect().await.map_err(|e| GrpcStatus::unavailable(e.to_string()))?;
            h2::client::Builder::new()
                .initial_max_send_streams(STREAMS_BEFORE_SETTINGS)
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .data_frame_budget(SMALL_FRAMES)
                .enable_push(false)
                .handshake::<_, Bytes>(io)
                .await
                .map_err(|e| status_of(&e))
        };
        let (sender, mut connection) = timeout(self.options.connect_timeout, open)
            .await
            .unwrap_or_else(|_| Err(GrpcStatus::unavailable("connection timeout")))?;
        let state = Rc::new(ConnectionState::default());
        let ping = connection.ping_pong();
        let keepalive = self.options.keepalive;
        tokio::task::spawn_local({
            let state = state.clone();
            async move {
                tokio::select! {
                    ended = connection => if let Err(e) = ended {
                        tracing::debug!("xDS connection: {e}");
                    },
                    () = watch(ping, keepalive, &state) => tracing::debug!("xDS connection: keepalive timeout"),
                }
                state.closed.set(true);
                state.changed.notify_waiters();
            }
        });
        self.connections.borrow_mut().push(Connection { sender, state });
        Ok(())
    }
}

impl Connection {
    async fn open(
        &self,
        request: Request<()>,
        limit: Duration,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), GrpcStatus> {
        // Room was made sure of, so that this waits for nothing but the connection's own task.
        let mut sender = match timeout(limit, self.sender.clone().ready()).await {
            Ok(Ok(sender)) => sender,
            Ok(Err(e)) => return Err(status_of(&e)),
            Err(_) => return Err(GrpcStatus::unavailable("no room for a stream")),
        };
        sender.send_request(request, false).map_err(|e| status_of(&e))
    }

    fn has_room(&self) -> bool {
        self.state.active.get() < self.sender.current_max_send_streams()
    }
}

/// Finds out when the server's SETTINGS have arrived (they come before the answer to any ping), then keeps the
/// connection under watch. Returns only if the connection is to be given up.
async fn watch(ping: Option<h2::PingPong>, keepalive: Option<(Duration, Duration)>, state: &ConnectionState) {
    let Some(mut ping) = ping else { return std::future::pending().await };
    let first = ping.ping(h2::Ping::opaque()).await;
    state.settled.set(true);
    state.changed.notify_waiters();
    let (Some((interval, limit)), Ok(_)) = (keepalive, first) else { return std::future::pending().await };
    loop {
        tokio::time::sleep(interval).await;
        if !matches!(timeout(limit, ping.ping(h2::Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

struct Stream {
    send: SendStream<Bytes>,
    /// What the peer's flow control has not let through yet.
    unsent: Bytes,
    response: Option<ResponseFuture>,
    recv: Option<RecvStream>,
    read: BytesMut,
    ended: Option<GrpcStatus>,
    max_message_size: usize,
    _lease: Lease,
}

impl GrpcStream for Stream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), GrpcStatus>> {
        while !self.unsent.is_empty() {
            // h2 tells of new capacity only; what is left of an earlier grant must be asked for.
            let capacity = match self.send.capacity() {
                0 => match ready!(self.send.poll_capacity(cx)) {
                    Some(Ok(capacity)) => capacity,
                    Some(Err(e)) => return Poll::Ready(Err(status_of(&e))),
                    None => return Poll::Ready(Err(GrpcStatus::unavailable("the stream is closed"))),
                },
                granted => granted,
            };
            let piece = self.unsent.split_to(capacity.min(self.unsent.len()));
            self.send.send_data(piece, false).map_err(|e| status_of(&e))?;
        }
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, message: Bytes) -> Result<(), GrpcStatus> {
        debug_assert!(self.unsent.is_empty(), "sent before it was ready");
        let length = u32::try_from(message.len())
            .map_err(|_| GrpcStatus::new(GrpcStatus::RESOURCE_EXHAUSTED, "the message is too long to send"))?;
        let mut framed = BytesMut::with_capacity(PREFIX + message.len());
        framed.put_u8(0);
        framed.put_u32(length);
        framed.extend_from_slice(&message);
        self.send.reserve_capacity(framed.len());
        self.unsent = framed.freeze();
        // What fits goes at once; `poll_ready` sends the rest.
        match self.poll_ready(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, GrpcStatus>> {
        loop {
            match take_message(&mut self.read, self.max_message_size) {
                Ok(Some(message)) => return Poll::Ready(Ok(message)),
                Ok(None) => {}
                Err(status) => return Poll::Ready(Err(status)),
            }
            if let Some(status) = &self.ended {
                return Poll::Ready(Err(status.clone()));
            }
            if let Some(response) = &mut self.response {
                let head = match ready!(Pin::new(response).poll(cx)) {
                    Ok(response) => response,
                    Err(e) => return Poll::Ready(Err(self.end(status_of(&e)))),
                };
                self.response = None;
                let (head, body) = head.into_parts();
                if let Some(status) = refused(head.status, &head.headers) {
                    return Poll::Ready(Err(self.end(status)));
                }
                self.recv = Some(body);
                continue;
            }
            let Some(recv) = &mut self.recv else {
                return Poll::Ready(Err(GrpcStatus::unavailable("the stream is closed")));
            };
            match ready!(recv.poll_data(cx)) {
                Some(Ok(data)) => {
                    // All that is read is kept, so the window opens again at once; the size limit bounds it.
                    let _ = recv.flow_control().release_capacity(data.len());
                    self.read.extend_from_slice(&data);
                }
                Some(Err(e)) => return Poll::Ready(Err(self.end(status_of(&e)))),
                None => {
                    let status = match ready!(recv.poll_trailers(cx)) {
                        Ok(Some(trailers)) => grpc_status(&trailers),
                        Ok(None) => None,
                        Err(e) => Some(status_of(&e)),
                    };
                    let status = status
                        .unwrap_or_else(|| GrpcStatus::new(GrpcStatus::UNKNOWN, "the stream ended without a status"));
                    return Poll::Ready(Err(self.end(status)));
                }
            }
        }
    }
}

impl Stream {
    fn end(&mut self, status: GrpcStatus) -> GrpcStatus {
        self.ended = Some(status.clone());
        status
    }
}

/// Takes one whole message off the front of `read`, if there is one.
pub fn take_message(read: &mut BytesMut, max: usize) -> Result<Option<Bytes>, GrpcStatus> {
    let Some((prefix, _)) = read.split_first_chunk::<PREFIX>() else { return Ok(None) };
    let [flags, a, b, c, d] = *prefix;
    if flags != 0 {
        return Err(GrpcStatus::new(GrpcStatus::UNIMPLEMENTED, "the server compresses its messages"));
    }
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > max {
        let message = format!("a message of {length} bytes is larger than the limit of {max}");
        return Err(GrpcStatus::new(GrpcStatus::RESOURCE_EXHAUSTED, message));
    }
    if read.len() < PREFIX + length {
        return Ok(None);
    }
    read.advance(PREFIX);
    Ok(Some(read.split_to(length).freeze()))
}

/// The status of a response that ends before its first message: not HTTP 200, or trailers only.
fn refused(status: http::StatusCode, headers: &HeaderMap) -> Option<GrpcStatus> {
    if let Some(status) = grpc_status(headers) {
        return Some(status);
    }
    // The mapping of the gRPC specification (http-grpc-status-mapping).
    let code = match status.as_u16() {
        200 => return None,
        400 => GrpcStatus::INTERNAL,
        401 => 16,
        403 => 7,
        404 => GrpcStatus::UNIMPLEMENTED,
        429 | 502 | 503 | 504 => GrpcStatus::UNAVAILABLE,
        _ => GrpcStatus::UNKNOWN,
    };
    Some(GrpcStatus::new(code, format!("HTTP status {}", status.as_u16())))
}

fn grpc_status(headers: &HeaderMap) -> Option<GrpcStatus> {
    let code = headers.get("grpc-status")?.to_str().ok().and_then(|s| s.parse().ok()).unwrap_or(GrpcStatus::UNKNOWN);
    let message = headers.get("grpc-message").map(HeaderValue::as_bytes).unwrap_or_default();
    Some(GrpcStatus::new(code, percent_encoding::percent_decode(message).decode_utf8_lossy()))
}

fn status_of(error: &h2::Error) -> GrpcStatus {
    // The mapping of the gRPC specification (http2-error-codes), as far as it is not "unavailable".
    let code = match error.reason() {
        Some(h2::Reason::CANCEL) => 1,
        Some(h2::Reason::ENHANCE_YOUR_CALM) => GrpcStatus::RESOURCE_EXHAUSTED,
        Some(h2::Reason::INADEQUATE_SECURITY) => 7,
        Some(h2::Reason::REFUSED_STREAM) | None => GrpcStatus::UNAVAILABLE,
        Some(_) => GrpcStatus::INTERNAL,
    };
    GrpcStatus::new(code, error.to_string())
}
