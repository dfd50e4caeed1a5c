//! `envoy.filters.listener.original_dst`: the address that a connection had before the firewall redirected it.

use tokio::net::TcpStream;

use super::{ListenerFilter, Verdict};
use crate::address::{Address, unmap};
use crate::connection::ConnectionInfo;
use crate::sys;

/// The filter.
#[derive(Debug)]
pub struct OriginalDst;

impl ListenerFilter for OriginalDst {
    fn on_accept(&self, info: &mut ConnectionInfo, socket: Option<&TcpStream>) -> bool {
        let ipv6 = matches!(info.direct_local_address, Address::Ip(addr) if addr.is_ipv6());
        if let Some(original) = socket.and_then(|socket| sys::original_destination(socket, ipv6)) {
            info.local_address = Address::Ip(unmap(original));
        }
        false
    }

    fn on_data(&self, _data: &[u8], _info: &mut ConnectionInfo) -> Verdict {
        Verdict::Done { consume: 0 }
    }
}
