//! Run-time addresses with Envoy's text forms.
//!
//! Used in connections, access logs, stat names and admin output. Configured addresses with their options are
//! `nuncio_config::address`; nothing is resolved here.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use nuncio_config::address as config;

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `127.0.0.1:80` or `[::1]:80`.
    Ip(SocketAddr),
    /// A Unix socket: its path, `@name` for an abstract one, empty for a socket without a name.
    Pipe(Arc<str>),
    /// `envoy://name/endpoint_id`: a listener inside the process.
    Internal(Arc<InternalAddress>),
}

/// Name of a listener inside the process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InternalAddress {
    /// Name of the internal listener.
    pub listener_name: Box<str>,
    /// Distinguishes endpoints of the same listener.
    pub endpoint_id: Box<str>,
}

impl Address {
    /// The IP, if it has one.
    #[inline]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Address::Ip(addr) => Some(addr.ip()),
            _ => None,
        }
    }

    /// The port, if it has one.
    #[inline]
    pub fn port(&self) -> Option<u16> {
        match self {
            Address::Ip(addr) => Some(addr.port()),
            _ => None,
        }
    }

    /// IP and port, if it is of that kind.
    #[inline]
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self {
            Address::Ip(addr) => Some(*addr),
            _ => None,
        }
    }

    /// Text without the port, as `%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%` shows it.
    pub fn without_port(&self) -> Cow<'_, str> {
        match self {
            Address::Ip(addr) => Cow::Owned(addr.ip().to_string()),
            Address::Pipe(path) => Cow::Borrowed(path),
            Address::Internal(_) => Cow::Owned(self.to_string()),
        }
    }

    /// The part of a stat name made from this address: `:` becomes `_`, as in `listener.127.0.0.1_80.`.
    pub fn stat_name(&self) -> String {
        self.to_string().replace(':', "_")
    }

    /// The peer address of a Unix socket.
    pub fn from_unix(addr: &tokio::net::unix::SocketAddr) -> Self {
        if let Some(path) = addr.as_pathname() {
            return Address::Pipe(path.to_string_lossy().into());
        }
        match addr.as_abstract_name() {
            Some(name) => Address::Pipe(format!("@{}", String::from_utf8_lossy(name)).into()),
            None => Address::Pipe("".into()),
        }
    }

    /// The address of any socket.
    pub fn from_sockaddr(addr: &socket2::SockAddr) -> Self {
        if let Some(ip) = addr.as_socket() {
            return Address::Ip(unmap(ip));
        }
        if let Some(path) = addr.as_pathname() {
            return Address::Pipe(path.to_string_lossy().into());
        }
        match addr.as_abstract_namespace() {
            Some(name) => Address::Pipe(format!("@{}", String::from_utf8_lossy(name)).into()),
            None => Address::Pipe("".into()),
        }
    }
}

/// An IPv4 address that arrived on an IPv6 socket, as IPv4: Envoy shows and matches it so.
#[inline]
pub fn unmap(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::from((v4, v6.port())),
            None => addr,
        },
        SocketAddr::V4(_) => addr,
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        Address::Ip(addr)
    }
}

impl From<&config::Address> for Address {
    fn from(address: &config::Address) -> Self {
        match address {
            config::Address::Socket(socket) => Address::Ip(socket.addr),
            config::Address::Pipe { path, .. } => Address::Pipe(path.to_string_lossy().into()),
            config::Address::Internal { listener_name, endpoint_id } => Address::Internal(Arc::new(InternalAddress {
                listener_name: listener_name.as_str().into(),
                endpoint_id: endpoint_id.as_str().into(),
            })),
        }
    }
}

impl From<&Address> for config::Address {
    fn from(address: &Address) -> Self {
        match address {
            Address::Ip(addr) => config::Address::Socket((*addr).into()),
            Address::Pipe(path) => config::Address::Pipe { path: PathBuf::from(&**path), mode: 0 },
            Address::Internal(internal) => config::Address::Internal {
                listener_name: internal.listener_name.to_string(),
                endpoint_id: internal.endpoint_id.to_string(),
            },
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(SocketAddr::V4(addr)) => write!(f, "{addr}"),
            // Without the scope id that std would append.
            Address::Ip(SocketAddr::V6(addr)) => write!(f, "[{}]:{}", addr.ip(), addr.port()),
            Address::Pipe(path) => f.write_str(path),
            Address::Internal(internal) => {
                write!(f, "envoy://{}/{}", internal.listener_name, internal.endpoint_id)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_are_envoys() {
        let v4 = Address::from(SocketAddr::from(([127, 0, 0, 1], 80)));
        let v6 = Address::from("[::1]:443".parse::<SocketAddr>().expect("an address"));
        let pipe = Address::Pipe("/run/x.sock".into());
        let internal =
            Address::Internal(Arc::new(InternalAddress { listener_name: "main".into(), endpoint_id: "a".into() }));
        assert_eq!([v4.to_string(), v6.to_string()], ["127.0.0.1:80", "[::1]:443"]);
        assert_eq!([pipe.to_string(), internal.to_string()], ["/run/x.sock", "envoy://main/a"]);
        assert_eq!([v4.without_port(), v6.without_port()], ["127.0.0.1", "::1"]);
        assert_eq!([v4.stat_name(), v6.stat_name()], ["127.0.0.1_80", "[__1]_443"]);
    }

    #[test]
    fn an_ipv4_peer_of_an_ipv6_socket_is_shown_as_ipv4() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:5".parse().expect("an address");
        assert_eq!(unmap(mapped).to_string(), "10.0.0.1:5");
    }
}
