//! A connection: its byte stream, what is known about it, and the drain signal that ends it.
//!
//! Made by the listener (downstream) and by the upstream connector; read by filters, access logs and formatters. Names are
//! those of Envoy's `ConnectionInfoProvider` and `StreamInfo`. Nothing of HTTP is here.

use nuncio_base::clock;
use std::borrow::Cow;
use std::cell::{Cell, OnceCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use nuncio_base::drain::DrainSignal;
use nuncio_config::listener::TrafficDirection;
use nuncio_config::proxy_protocol::Tlv;
use tokio::time::Instant;

pub use crate::address::Address;
pub use crate::io::{Io, Plain};
pub use crate::meter::{ByteMeter, ByteStats, Spoken};
pub use crate::tls::info::{CertificateInfo, TlsInfo};

/// A connection that is ready for its network filters.
pub struct Connection {
    /// The bytes.
    pub io: Io,
    /// What is known about it.
    pub info: Rc<ConnectionInfo>,
    /// Says when the filter chain, the listener or the server drains.
    pub drain: DrainSignal,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("io", &self.io).field("info", &self.info).finish_non_exhaustive()
    }
}

impl fmt::Debug for ConnectionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionInfo")
            .field("id", &self.id)
            .field("local_address", &self.local_address)
            .field("remote_address", &self.remote_address)
            .finish_non_exhaustive()
    }
}

/// What the ClientHello says about the client's software.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fingerprints {
    /// `%TLS_JA3_FINGERPRINT%`.
    pub ja3: Option<Box<str>>,
    /// `%TLS_JA4_FINGERPRINT%`.
    pub ja4: Option<Box<str>>,
}

/// What is known about a connection. Shared by all of its streams.
pub struct ConnectionInfo {
    /// Unique in the process; `%CONNECTION_ID%`. 0 for a connection that was refused before it had a filter chain.
    pub id: u64,
    /// Wall time of the accept or connect.
    pub start_time: SystemTime,
    /// The same moment on the monotonic clock.
    pub start: Instant,
    /// When connect(2) was done; upstream connections only.
    pub connected: Option<Instant>,
    /// Local address of the socket.
    pub direct_local_address: Address,
    /// Local address after listener filters (original destination, PROXY protocol) restored it.
    pub local_address: Address,
    /// Peer of the socket.
    pub direct_remote_address: Address,
    /// Peer after listener filters restored it.
    pub remote_address: Address,
    /// SNI that the client asked for.
    pub requested_server_name: Option<Box<str>>,
    /// JA3 and JA4, where the TLS inspector is asked for them.
    pub fingerprints: Option<Box<Fingerprints>>,
    /// What the listener filters saw; empty when none looked.
    pub detected_transport_protocol: TransportProtocol,
    /// ALPN names that the client offered, or what the HTTP inspector found.
    pub application_protocols: ProtocolList,
    /// ALPN name that was agreed upon.
    pub negotiated_protocol: Option<Box<[u8]>>,
    /// The TLS session; none on plain text.
    pub tls: Option<Box<TlsInfo>>,
    /// The listener; none on upstream connections.
    pub listener: Option<Arc<ListenerInfo>>,
    /// Name of the filter chain; empty if it has none.
    pub filter_chain_name: Arc<str>,
    /// Metadata of the filter chain, as JSON.
    pub filter_chain_metadata: Option<Arc<serde_json::Value>>,
    /// What the PROXY header said.
    pub proxy_protocol: Option<Box<ProxyProtocolInfo>>,
    /// Bytes that passed.
    pub bytes: Rc<ByteMeter>,
    /// Why the TLS handshake or the transport failed; `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub transport_failure_reason: OnceCell<Box<str>>,
    /// Why this side ended the connection; `%CONNECTION_TERMINATION_DETAILS%`.
    pub termination_details: OnceCell<Box<Cow<'static, str>>>,
    /// Set when this side (not the peer) closed it.
    pub closed_locally: Cell<bool>,
    /// Why this side closed it under what was going on.
    pub local_close: Cell<Option<LocalClose>>,
    /// Why this side closed it, where Envoy says so: `%DOWNSTREAM_LOCAL_CLOSE_REASON%`; empty otherwise.
    pub local_close_reason: Cell<&'static str>,
    /// Whether it ended by a reset.
    pub detected_close: Cell<DetectedClose>,
    /// Text of the peer's IP, made once; boxed, as it is in every idle connection.
    remote_ip_text: OnceCell<Box<Bytes>>,
}

/// Why a listener ends connections that are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalClose {
    /// Their filter chain is gone and its drain time over.
    FilterChain,
    /// The listener is, or the process ends.
    Listener,
}

impl LocalClose {
    /// The response code details of requests that end with their connection: Envoy's words, misleading as the second ones
    /// are.
    pub fn http_details(self) -> &'static str {
        match self {
            LocalClose::FilterChain => "downstream_local_disconnect(filter_chain_is_being_removed)",
            LocalClose::Listener => {
                "downstream_local_disconnect(purging_socket_that_have_not_progressed_to_connections)"
            }
        }
    }
}

/// How a connection ended, as far as resets go; `%DOWNSTREAM_DETECTED_CLOSE_TYPE%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DetectedClose {
    /// In good order, or it goes on.
    #[default]
    Normal,
    /// The peer reset it.
    RemoteReset,
    /// This side reset it.
    LocalReset,
}

impl DetectedClose {
    /// Envoy's name.
    pub fn as_str(self) -> &'static str {
        match self {
            DetectedClose::Normal => "Normal",
            DetectedClose::RemoteReset => "RemoteReset",
            DetectedClose::LocalReset => "LocalReset",
        }
    }
}

/// The listener as its connections know it.
#[derive(Debug, Clone)]
pub struct ListenerInfo {
    /// Its name; `%LISTENER_NAME%`.
    pub name: Arc<str>,
    /// `traffic_direction`.
    pub direction: TrafficDirection,
    /// `per_connection_buffer_limit_bytes`.
    pub buffer_limit: u32,
    /// File of the network namespace that the listening socket is in; none in that of the process.
    pub network_namespace: Option<Arc<str>>,
    /// Its metadata, as a JSON object.
    pub metadata: Option<Arc<serde_json::Value>>,
}

impl ListenerInfo {
    /// The metadata by namespace.
    pub fn metadata(&self) -> Option<&serde_json::Map<String, serde_json::Value>> {
        self.metadata.as_ref()?.as_object()
    }
}

/// What the first bytes of a connection looked like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum TransportProtocol {
    /// No listener filter said; matches only chains that do not ask.
    #[default]
    Unknown,
    /// A TLS ClientHello.
    Tls,
    /// Anything else.
    RawBuffer,
}

impl TransportProtocol {
    /// Envoy's text: `tls`, `raw_buffer` or empty.
    pub fn as_str(self) -> &'static str {
        match self {
            TransportProtocol::Unknown => "",
            TransportProtocol::Tls => "tls",
            TransportProtocol::RawBuffer => "raw_buffer",
        }
    }
}

/// ALPN names in the order of the client, kept in their wire form (length, name, ...).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProtocolList(Box<[u8]>);

impl ProtocolList {
    /// From names; longer ones than 255 bytes are left out.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut wire = Vec::new();
        for name in names {
            if let Ok(length) = u8::try_from(name.len()) {
                wire.push(length);
                wire.extend_from_slice(name);
            }
        }
        Self(wire.into())
    }

    /// The names.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (length, tail) = rest.split_first()?;
            let (name, tail) = tail.split_at_checked(usize::from(*length))?;
            rest = tail;
            Some(name)
        })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a PROXY protocol header said beyond the addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyProtocolInfo {
    /// 1 or 2.
    pub version: u8,
    /// TLVs of version 2 that are passed on, in order.
    pub tlvs: Vec<Tlv>,
    /// Values that the rules keep.
    pub kept: Vec<ProxyProtocolMetadata>,
    /// They are filter state, not dynamic metadata.
    pub kept_in_filter_state: bool,
}

/// A TLV that a rule keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyProtocolMetadata {
    /// Metadata namespace.
    pub namespace: Box<str>,
    /// Key in it.
    pub key: Box<str>,
    /// The TLV's value.
    pub value: Box<[u8]>,
}

/// An id for a new connection, upstream or downstream; never 0.
pub fn next_connection_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl ConnectionInfo {
    /// A connection between these addresses that starts now.
    pub fn new(local: Address, remote: Address) -> Self {
        Self { id: next_connection_id(), ..Self::unnumbered(local, remote) }
    }

    /// As [`new`](Self::new), without an id: Envoy numbers connections when they have their filter chain.
    pub fn unnumbered(local: Address, remote: Address) -> Self {
        Self {
            id: 0,
            start_time: SystemTime::now(),
            start: clock::now(),
            connected: None,
            direct_local_address: local.clone(),
            local_address: local,
            direct_remote_address: remote.clone(),
            remote_address: remote,
            requested_server_name: None,
            fingerprints: None,
            detected_transport_protocol: TransportProtocol::Unknown,
            application_protocols: ProtocolList::default(),
            negotiated_protocol: None,
            tls: None,
            listener: None,
            filter_chain_name: empty_name(),
            filter_chain_metadata: None,
            proxy_protocol: None,
            bytes: Rc::default(),
            transport_failure_reason: OnceCell::new(),
            termination_details: OnceCell::new(),
            closed_locally: Cell::new(false),
            local_close: Cell::new(None),
            local_close_reason: Cell::new(""),
            detected_close: Cell::default(),
            remote_ip_text: OnceCell::new(),
        }
    }

    /// The peer's IP as text: made once, as every request puts it into a header. None for other addresses.
    pub fn remote_ip_text(&self) -> Option<Bytes> {
        let ip = self.remote_address.ip()?;
        Some(Bytes::clone(self.remote_ip_text.get_or_init(|| Box::new(ip.to_string().into()))))
    }

    /// Whether it is a TLS connection.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether the agreed ALPN name is this one.
    pub fn negotiated(&self, name: &[u8]) -> bool {
        self.negotiated_protocol.as_deref() == Some(name)
    }

    /// File of the network namespace that the listening socket is in; none in that of the process.
    pub fn network_namespace(&self) -> Option<&str> {
        self.listener.as_ref()?.network_namespace.as_deref()
    }

    /// The listener's `traffic_direction`.
    pub fn traffic_direction(&self) -> TrafficDirection {
        self.listener.as_ref().map_or(TrafficDirection::Unspecified, |listener| listener.direction)
    }

    /// Whether both ends have the same IP, or the peer is on the loopback, or it is a Unix socket
    /// (`SAME_IP_OR_LOOPBACK`).
    pub fn is_local(&self) -> bool {
        is_local(&self.local_address, &self.remote_address)
    }

    /// Says why this side ends the connection; the first reason stays.
    pub fn set_termination_details(&self, details: impl Into<Cow<'static, str>>) {
        self.termination_details.get_or_init(|| Box::new(details.into()));
    }
}

/// Envoy's rule for `SAME_IP_OR_LOOPBACK`.
pub(crate) fn is_local(local: &Address, remote: &Address) -> bool {
    match (local, remote) {
        (Address::Ip(local), Address::Ip(remote)) => remote.ip().is_loopback() || local.ip() == remote.ip(),
        (_, Address::Pipe(_)) => true,
        _ => false,
    }
}

thread_local! {
    static EMPTY: Arc<str> = Arc::from("");
}

fn empty_name() -> Arc<str> {
    EMPTY.with(Arc::clone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_lists_keep_their_order() {
        let list = ProtocolList::new([&b"h2"[..], b"http/1.1"]);
        assert_eq!(list.iter().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
        assert!(ProtocolList::default().iter().next().is_none());
    }

    #[test]
    fn the_first_termination_reason_stays() {
        let ip = |port| Address::Ip(([127, 0, 0, 1], port).into());
        let info = ConnectionInfo::new(ip(1), ip(2));
        info.set_termination_details("one");
        info.set_termination_details("two");
        assert_eq!(info.termination_details.get().map(|details| &***details), Some("one"));
        assert!(info.is_local());
    }
}
