//! A control plane in the test process: HTTP/2 over pipes, one script per test.

#![allow(unreachable_pub, clippy::type_complexity)]

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::protobuf::Any;
use h2::RecvStream;
use h2::server::SendResponse;
use prost::Message;
use tokio::sync::mpsc;
use xds_client::transport::grpc::take_message;
use xds_client::transport::{Io, LocalFuture};
use xds_client::{Client, ClientOptions, FetchFailure, ResourceHandler, TypeUrl, Update, Verdict};

/// One stream, as the server has it.
pub struct Stream {
    pub path: String,
    pub headers: http::HeaderMap,
    body: RecvStream,
    read: BytesMut,
    respond: SendResponse<Bytes>,
    send: Option<h2::SendStream<Bytes>>,
}

impl Stream {
    /// The next request, or none at the end of the stream.
    pub async fn request<M: Message + Default>(&mut self) -> Option<M> {
        loop {
            if let Some(message) = take_message(&mut self.read, 1 << 20).unwrap() {
                return Some(M::decode(message).unwrap());
            }
            let data = self.body.data().await?.ok()?;
            self.body.flow_control().release_capacity(data.len()).unwrap();
            self.read.extend_from_slice(&data);
        }
    }

    pub fn send(&mut self, message: &impl Message) {
        let message = message.encode_to_vec();
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(message.len() as u32);
        framed.extend_from_slice(&message);
        self.raw(framed.freeze());
    }

    pub fn raw(&mut self, bytes: Bytes) {
        let send = self.send.get_or_insert_with(|| {
            let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            self.respond.send_response(head, false).unwrap()
        });
        send.send_data(bytes, false).unwrap();
    }

    /// Ends the stream with a status.
    pub fn end(mut self, code: u32, message: &str) {
        let status = |b: http::response::Builder| b.header("grpc-status", code).header("grpc-message", message);
        match &mut self.send {
            None => {
                let head = status(http::Response::builder()).body(()).unwrap();
                self.respond.send_response(head, true).unwrap();
            }
            Some(send) => {
                let trailers = status(http::Response::builder()).body(()).unwrap();
                send.send_trailers(trailers.headers().clone()).unwrap();
            }
        }
    }
}

/// All connections and streams that the clients of one test open.
pub struct Server {
    streams: mpsc::UnboundedReceiver<Stream>,
    pub connections: Rc<RefCell<Vec<tokio::task::AbortHandle>>>,
    sender: mpsc::UnboundedSender<Stream>,
    max_streams: Option<u32>,
    /// Tells all connections to drain (GOAWAY).
    pub drain: Rc<tokio::sync::Notify>,
    /// How many connection attempts are to fail.
    pub refuse: Rc<RefCell<u32>>,
}

impl Server {
    pub fn new() -> Server {
        let (sender, streams) = mpsc::unbounded_channel();
        Server {
            streams,
            connections: Rc::default(),
            sender,
            max_streams: None,
            drain: Rc::default(),
            refuse: Rc::default(),
        }
    }

    pub fn with_max_streams(max: u32) -> Server {
        Server { max_streams: Some(max), ..Server::new() }
    }

    pub async fn stream(&mut self) -> Stream {
        within(self.streams.recv()).await.unwrap()
    }

    /// What a channel connects with.
    pub fn connect(&self) -> Box<dyn Fn() -> LocalFuture<std::io::Result<Box<dyn Io>>>> {
        let (sender, connections, max) = (self.sender.clone(), self.connections.clone(), self.max_streams);
        let (refuse, drain) = (self.refuse.clone(), self.drain.clone());
        Box::new(move || {
            if *refuse.borrow() > 0 {
                *refuse.borrow_mut() -= 1;
                return Box::pin(async { Err(std::io::Error::other("refused")) });
            }
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            let (sender, drain) = (sender.clone(), drain.clone());
            let task = tokio::task::spawn_local(async move {
                let mut builder = h2::server::Builder::new();
                builder.data_frame_budget(64 << 20);
                if let Some(max) = max {
                    builder.max_concurrent_streams(max);
                }
                let Ok(mut connection) = builder.handshake::<_, Bytes>(theirs).await else { return };
                loop {
                    let accepted = tokio::select! {
                        accepted = connection.accept() => accepted,
                        () = drain.notified() => {
                            connection.graceful_shutdown();
                            continue;
                        }
                    };
                    let Some(Ok((request, respond))) = accepted else { return };
                    let (head, body) = request.into_parts();
                    let stream = Stream {
                        path: head.uri.path().to_owned(),
                        headers: head.headers,
                        body,
                        read: BytesMut::new(),
                        respond,
                        send: None,
                    };
                    if sender.send(stream).is_err() {
                        return;
                    }
                }
            });
            connections.borrow_mut().push(task.abort_handle());
            Box::pin(async move { Ok(Box::new(ours) as Box<dyn Io>) })
        })
    }

    /// Breaks all connections.
    pub fn kill(&self) {
        self.connections.borrow_mut().drain(..).for_each(|c| c.abort());
    }
}

/// Remembers what it is told.
#[derive(Default)]
pub struct Recorder {
    pub updates: RefCell<Vec<Update>>,
    pub failures: RefCell<Vec<FetchFailure>>,
    pub reject: RefCell<Option<String>>,
    pub told: tokio::sync::Notify,
}

impl Recorder {
    pub fn new() -> Rc<Recorder> {
        Rc::default()
    }

    /// Waits until there have been `count` updates.
    pub async fn updates(&self, count: usize) -> Vec<Update> {
        within(async {
            while self.updates.borrow().len() < count {
                self.told.notified().await;
            }
        })
        .await;
        self.updates.borrow().clone()
    }

    pub async fn failures(&self, count: usize) -> Vec<FetchFailure> {
        within(async {
            while self.failures.borrow().len() < count {
                self.told.notified().await;
            }
        })
        .await;
        self.failures.borrow().clone()
    }
}

impl ResourceHandler for Recorder {
    fn on_update(&self, update: Update) -> Verdict {
        self.updates.borrow_mut().push(update);
        self.told.notify_one();
        match &*self.reject.borrow() {
            Some(error) => Verdict::reject(error.clone()),
            None => Verdict::accept(),
        }
    }

    fn on_failure(&self, why: FetchFailure) {
        self.failures.borrow_mut().push(why);
        self.told.notify_one();
    }
}

pub fn client() -> Client {
    Client::new(ClientOptions { node: Node { id: "node-1".into(), ..Node::default() }, seed: 7 })
}

pub fn response(type_url: &TypeUrl, version: &str, names: &[&str]) -> DiscoveryResponse {
    let any = |name: &&str| Any {
        type_url: type_url.as_str().to_owned(),
        value: Cluster { name: (*name).to_owned(), ..Cluster::default() }.encode_to_vec(),
    };
    DiscoveryResponse {
        version_info: version.to_owned(),
        nonce: format!("n{version}"),
        type_url: type_url.as_str().to_owned(),
        resources: names.iter().map(any).collect(),
        ..DiscoveryResponse::default()
    }
}

pub fn summary(request: &DiscoveryRequest) -> String {
    let kind = request.type_url.rsplit('.').next().unwrap_or_default();
    let error = request.error_detail.as_ref().map(|e| format!(" error {}: {}", e.code, e.message)).unwrap_or_default();
    let node = if request.node.is_some() { " node" } else { "" };
    let names = request.resource_names.join(" ");
    format!("{kind} v={} n={} [{names}]{error}{node}", request.version_info, request.response_nonce)
}

/// Nothing in a test waits longer.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("nothing came within a minute")
}

/// Runs a test on a `LocalSet`, with a clock that jumps over waits.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}
