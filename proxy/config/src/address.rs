//! Addresses as configured: TCP and UDP sockets, Unix sockets, Envoy-internal names.

use envoy_types::pb::envoy::config::core::v3 as core;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::sync::Arc;

use crate::decode::Context;

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
    /// File of the Linux network namespace in which the socket is made; None for that of the process.
    pub network_namespace: Option<Arc<str>>,
}

impl From<SocketAddr> for SocketAddress {
    /// TCP, with no options.
    fn from(addr: SocketAddr) -> Self {
        SocketAddress { addr, ipv4_compat: false, udp: false, network_namespace: None }
    }
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

impl Address {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &core::Address) -> Option<Self> {
        match EndpointAddress::decode(cx, message)? {
            EndpointAddress::Resolved(address) => Some(address),
            EndpointAddress::Name { host, .. } => {
                cx.at("socket_address", |cx| cx.error_at("address", format!("malformed IP address: {host}")));
                None
            }
        }
    }
}

impl EndpointAddress {
    /// An address that has to be resolved already, since its cluster asks no DNS.
    pub fn resolved(cx: &mut Context, message: &core::Address) -> Option<Self> {
        match Self::decode(cx, message)? {
            EndpointAddress::Name { host, .. } => {
                let advice = "Consider setting resolver_name or setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS'";
                cx.at("socket_address", |cx| {
                    cx.error_at("address", format!("malformed IP address: {host}. {advice}"));
                });
                None
            }
            resolved => Some(resolved),
        }
    }

    /// An address that may be a host name.
    pub fn decode(cx: &mut Context, message: &core::Address) -> Option<Self> {
        use core::address::Address as Kind;
        match message.address.as_ref() {
            Some(Kind::SocketAddress(message)) => cx.at("socket_address", |cx| {
                let port = port(cx, message)?;
                match ip_and_port(&message.address, port) {
                    Some(addr) => Some(EndpointAddress::Resolved(Address::Socket(SocketAddress {
                        addr,
                        ipv4_compat: message.ipv4_compat,
                        udp: message.protocol() == core::socket_address::Protocol::Udp,
                        network_namespace: network_namespace(message),
                    }))),
                    None => Some(EndpointAddress::Name { host: message.address.clone(), port }),
                }
            }),
            Some(Kind::Pipe(pipe)) => {
                if pipe.path.len() > MAX_PIPE_PATH {
                    cx.at("pipe", |cx| {
                        cx.error_at(
                            "path",
                            format!("Path \"{}\" exceeds maximum UNIX domain socket path size of 108.", pipe.path),
                        );
                    });
                    return None;
                }
                if pipe.mode != 0 && pipe.path.starts_with('@') {
                    cx.at("pipe", |cx| cx.error_at("mode", "Cannot set mode for Abstract AF_UNIX sockets"));
                }
                Some(EndpointAddress::Resolved(Address::Pipe { path: pipe.path.as_str().into(), mode: pipe.mode }))
            }
            Some(Kind::EnvoyInternalAddress(internal)) => {
                use core::envoy_internal_address::AddressNameSpecifier;
                let Some(AddressNameSpecifier::ServerListenerName(name)) = &internal.address_name_specifier else {
                    cx.error_at("envoy_internal_address", "internal address without a server_listener_name");
                    return None;
                };
                Some(EndpointAddress::Resolved(Address::Internal {
                    listener_name: name.clone(),
                    endpoint_id: internal.endpoint_id.clone(),
                }))
            }
            None => {
                cx.error("Address must be a socket or pipe: ");
                None
            }
        }
    }
}

/// `network_namespace_filepath`.
pub(crate) fn network_namespace(message: &core::SocketAddress) -> Option<Arc<str>> {
    Some(message.network_namespace_filepath.as_str()).filter(|path| !path.is_empty()).map(Into::into)
}

/// `sun_path` less its closing zero.
const MAX_PIPE_PATH: usize = 107;

fn port(cx: &mut Context, message: &core::SocketAddress) -> Option<u16> {
    use core::socket_address::PortSpecifier;
    match &message.port_specifier {
        Some(PortSpecifier::PortValue(port)) => match u16::try_from(*port) {
            Ok(port) => Some(port),
            Err(_) => {
                cx.error_at("port_value", "port value missed or out of range");
                None
            }
        },
        Some(PortSpecifier::NamedPort(name)) => {
            cx.error_at("named_port", format!("named port '{name}' needs a custom resolver, which is not implemented"));
            None
        }
        None => Some(0),
    }
}

/// A `SocketAddress` that has to be an IP address.
pub fn socket_address(cx: &mut Context, message: &core::SocketAddress) -> Option<SocketAddr> {
    let port = port(cx, message)?;
    let address = ip_and_port(&message.address, port);
    if address.is_none() {
        cx.error_at("address", format!("malformed IP address: {}", message.address));
    }
    address
}

/// An IPv6 address may say which interface it is on: by number, or by name where it is one of that link (`fe80::1%eth0`).
fn ip_and_port(text: &str, port: u16) -> Option<SocketAddr> {
    let Some((ip, zone)) = text.split_once('%') else { return Some(SocketAddr::new(text.parse().ok()?, port)) };
    let ip: Ipv6Addr = ip.parse().ok()?;
    let of_link = ip.is_unicast_link_local() || ip.segments()[0] == 0xff02;
    let named = (of_link && !zone.is_empty() && !zone.contains('/') && !zone.starts_with('.')).then(|| {
        let index = std::fs::read_to_string(format!("/sys/class/net/{zone}/ifindex")).ok()?;
        index.trim_end().parse().ok()
    });
    let scope = named.flatten().or_else(|| zone.bytes().all(|b| b.is_ascii_digit()).then(|| zone.parse().ok())?)?;
    Some(SocketAddrV6::new(ip, port, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;

    fn socket(address: &str, port: u32) -> core::Address {
        core::Address {
            address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                address: address.into(),
                port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
                ..Default::default()
            })),
        }
    }

    #[test]
    fn ip_addresses_of_both_families_are_resolved() {
        for (text, shown) in [("127.0.0.1", "127.0.0.1:80"), ("::1", "[::1]:80")] {
            let Some(Address::Socket(address)) = Address::decode(&mut Context::default(), &socket(text, 80)) else {
                panic!("{text}")
            };
            assert_eq!(address.addr.to_string(), shown);
        }
    }

    #[test]
    fn an_ipv6_address_may_name_its_interface() {
        let shown = |text: &str| ip_and_port(text, 80).map(|address| address.to_string());
        assert_eq!(shown("fe80::1%7").as_deref(), Some("[fe80::1%7]:80"));
        assert_eq!(shown("2001:db8::1%7").as_deref(), Some("[2001:db8::1%7]:80"));
        // The loopback interface is the first everywhere.
        assert_eq!(shown("fe80::1%lo").as_deref(), Some("[fe80::1%1]:80"));
        for bad in
            ["fe80::1%", "fe80::1%nope", "fe80::1%+7", "fe80::1%../lo", "::1%lo", "127.0.0.1%1", "%1", "fe80::1%1%1"]
        {
            assert_eq!(shown(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_host_name_is_no_address() {
        let result = Context::default().run(|cx| Address::decode(cx, &socket("localhost", 80)));
        assert_eq!(errors(result), ["socket_address.address: malformed IP address: localhost"]);
    }

    #[test]
    fn an_endpoint_may_be_a_host_name() {
        let address = EndpointAddress::decode(&mut Context::default(), &socket("a.example", 443));
        assert_eq!(address, Some(EndpointAddress::Name { host: "a.example".into(), port: 443 }));
    }

    #[test]
    fn a_port_has_sixteen_bits() {
        let result = Context::default().run(|cx| Address::decode(cx, &socket("::", 65536)));
        assert_eq!(errors(result), ["socket_address.port_value: port value missed or out of range"]);
    }

    #[test]
    fn a_long_socket_path_is_an_error() {
        let pipe = core::Pipe { path: "p".repeat(108), mode: 0 };
        let message = core::Address { address: Some(core::address::Address::Pipe(pipe)) };
        assert!(Context::default().run(|cx| Address::decode(cx, &message)).is_err());
    }
}
