//! Addresses as configured: TCP and UDP sockets, Unix sockets, Envoy-internal names.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Where a listener binds or an endpoint lives (`envoy.config.core.v3.Address`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP and a port. A port of 0 on a listener asks the kernel for one.
    Socket(SocketAddress),
    /// A Unix domain socket.
    Pipe {
        /// File path; a leading `@` names an abstract socket.
        path: PathBuf,
        /// Permission bits for the socket file; 0 leaves the umask's choice.
        mode: u32,
    },
    /// `envoy_internal_address`: a listener inside the process.
    Internal {
        /// Name of the internal listener.
        listener_name: String,
        /// Distinguishes endpoints of the same listener.
        endpoint_id: String,
    },
}

/// A resolved IP address and port with the socket's own options.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SocketAddress {
    /// IP and port.
    pub addr: SocketAddr,
    /// Bind an IPv6 wildcard for IPv4 as well (`ipv4_compat`).
    pub ipv4_compat: bool,
    /// True for UDP.
    pub udp: bool,
}

/// An endpoint address that may still be a host name (STRICT_DNS and LOGICAL_DNS clusters).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    /// Already an address.
    Resolved(Address),
    /// To be resolved by DNS.
    Name {
        /// Host name without port.
        host: String,
        /// Port.
        port: u16,
    },
}
