//! A control plane that does nothing by itself: it hands over what it is asked, and sends what it is told.
//!
//! Called by [`crate::conversation`]. Speaks HTTP/2 in the clear on a port of its own; every discovery service is there.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::envoy::service::load_stats::v3::LoadStatsRequest;
use h2::SendStream;
use h2::server::SendResponse;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// One request of a proxy.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The stream it came on, counted from 0 as they are opened.
    pub stream: usize,
    /// The gRPC path of the stream.
    pub path: String,
    /// The metadata of the stream.
    pub metadata: http::HeaderMap,
    /// What it says.
    pub request: Request,
}

/// The forms of a request.
#[derive(Clone, Debug)]
pub enum Request {
    /// State of the world.
    Sotw(Box<DiscoveryRequest>),
    /// Incremental.
    Delta(Box<DeltaDiscoveryRequest>),
    /// A load report.
    Load(Box<LoadStatsRequest>),
}

impl Request {
    /// The type asked for.
    pub fn type_url(&self) -> &str {
        match self {
            Request::Sotw(r) => &r.type_url,
            Request::Delta(r) => &r.type_url,
            Request::Load(_) => "LoadStats",
        }
    }
}

enum Half {
    Waiting(SendResponse<Bytes>),
    Open(SendStream<Bytes>),
}

type Streams = Arc<Mutex<HashMap<usize, Half>>>;

/// See the module. Dropped, it is gone with all its connections.
#[derive(Debug)]
pub struct ControlPlane {
    /// Where it listens.
    pub address: SocketAddr,
    asked: mpsc::UnboundedReceiver<Asked>,
    streams: Streams,
    _tasks: JoinSet<()>,
}

impl std::fmt::Debug for Half {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Half::Waiting(_)) { "Waiting" } else { "Open" })
    }
}

impl ControlPlane {
    /// Listens.
    ///
    /// # Errors
    /// No port.
    pub async fn start() -> Result<ControlPlane> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// Listens at an address.
    ///
    /// # Errors
    /// It is taken.
    pub async fn start_at(address: SocketAddr) -> Result<ControlPlane> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (sender, asked) = mpsc::unbounded_channel();
        let streams = Streams::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, sender, streams.clone()));
        Ok(ControlPlane { address, asked, streams, _tasks: tasks })
    }

    /// The next request, whenever it comes.
    pub async fn asked(&mut self) -> Option<Asked> {
        self.asked.recv().await
    }

    /// Sends a message on a stream.
    ///
    /// # Errors
    /// The stream is gone.
    pub fn send(&self, stream: usize, message: &[u8]) -> Result<()> {
        let mut framed = BytesMut::with_capacity(message.len() + 5);
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len())?);
        framed.extend_from_slice(message);
        self.raw(stream, framed.freeze())
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The stream is gone.
    pub fn raw(&self, stream: usize, bytes: Bytes) -> Result<()> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let half = streams.remove(&stream).context("the stream is gone")?;
        let mut send = match half {
            Half::Open(send) => send,
            Half::Waiting(mut respond) => {
                let head = http::Response::builder().header("content-type", "application/grpc").body(())?;
                respond.send_response(head, false)?
            }
        };
        let sent = send.send_data(bytes, false);
        streams.insert(stream, Half::Open(send));
        Ok(sent?)
    }

    /// Ends a stream with a gRPC status.
    ///
    /// # Errors
    /// The stream is gone.
    pub fn end(&self, stream: usize, code: u32) -> Result<()> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let head = http::Response::builder().header("grpc-status", code).header("grpc-message", "the script says so");
        match streams.remove(&stream) {
            Some(Half::Open(mut send)) => send.send_trailers(head.body(())?.headers().clone())?,
            Some(Half::Waiting(mut respond)) => {
                respond.send_response(head.header("content-type", "application/grpc").body(())?, true)?;
            }
            None => bail!("the stream is gone"),
        }
        Ok(())
    }
}

async fn accept(listener: TcpListener, sender: mpsc::UnboundedSender<Asked>, streams: Streams) {
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let _ = socket.set_nodelay(true);
        let (sender, streams, count) = (sender.clone(), streams.clone(), count.clone());
        connections.spawn(async move {
            let mut builder = h2::server::Builder::new();
            builder.initial_window_size(1 << 20).initial_connection_window_size(16 << 20).data_frame_budget(64 << 20);
            let Ok(mut connection) = builder.handshake::<_, Bytes>(socket).await else { return };
            let mut readers = JoinSet::new();
            while let Some(Ok((request, respond))) = connection.accept().await {
                let stream = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                streams.lock().unwrap_or_else(PoisonError::into_inner).insert(stream, Half::Waiting(respond));
                let (head, body) = request.into_parts();
                let (sender, streams) = (sender.clone(), streams.clone());
                readers.spawn(async move {
                    // What cannot be read is seen by its absence.
                    let _ = read(stream, &head, body, &sender).await;
                    streams.lock().unwrap_or_else(PoisonError::into_inner).remove(&stream);
                });
            }
        });
    }
}

async fn read(
    stream: usize,
    head: &http::request::Parts,
    mut body: h2::RecvStream,
    sender: &mpsc::UnboundedSender<Asked>,
) -> Result<()> {
    let path = head.uri.path();
    let load = path.ends_with("/StreamLoadStats");
    let delta = path.rsplit('/').next().is_some_and(|method| method.starts_with("Delta"));
    let mut buffer = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        buffer.extend_from_slice(&data);
        while let Some(length) = buffer.get(1..5) {
            let length = u32::from_be_bytes(length.try_into()?) as usize;
            if buffer.len() < length + 5 {
                break;
            }
            let message = buffer.split_to(length + 5).freeze().slice(5..);
            let request = if load {
                Request::Load(Box::new(LoadStatsRequest::decode(message)?))
            } else if delta {
                Request::Delta(Box::new(DeltaDiscoveryRequest::decode(message)?))
            } else {
                Request::Sotw(Box::new(DiscoveryRequest::decode(message)?))
            };
            let asked = Asked { stream, path: path.to_owned(), metadata: head.headers.clone(), request };
            if sender.send(asked).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
