//! Listener filters: they look at the first bytes of a connection before a filter chain is chosen.
//!
//! Each is a parser over what has been read so far, without sockets or time: given the bytes again with more at the end
//! until it is done. Reading, limits and the timeout are the listener's.

use nuncio_base::stats::Registry;
use nuncio_config::listener::{ListenerFilterConfig, ProxyProtocolConfig};
use std::sync::Arc;
use tokio::net::TcpStream;

use crate::connection::ConnectionInfo;

mod fingerprint;
pub mod http_inspector;
pub mod original_dst;
pub mod proxy_protocol;
pub mod tls_inspector;

/// What a filter says about the bytes so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Undecided; never more than this many bytes are needed in all.
    More {
        /// The most that the filter will look at.
        limit: usize,
    },
    /// Decided. The first bytes, if any, are the filter's own and are not passed on.
    Done {
        /// How many to take away.
        consume: usize,
    },
    /// The connection must be closed.
    Close,
}

/// A listener filter, shared by all connections of a listener.
pub trait ListenerFilter: Send + Sync {
    /// Looks at a new connection. False: the filter needs no bytes.
    fn on_accept(&self, info: &mut ConnectionInfo, socket: Option<&TcpStream>) -> bool {
        let _ = (info, socket);
        true
    }

    /// Looks at what has been read, which is never empty.
    fn on_data(&self, data: &[u8], info: &mut ConnectionInfo) -> Verdict;
}

/// The filter for a built-in configuration; none for an extension, which the registry knows.
pub fn build(config: &ListenerFilterConfig, registry: &Registry) -> Option<Arc<dyn ListenerFilter>> {
    Some(match config {
        ListenerFilterConfig::TlsInspector(config) => Arc::new(tls_inspector::TlsInspector::new(*config, registry)),
        ListenerFilterConfig::HttpInspector => Arc::new(http_inspector::HttpInspector::new(registry)),
        ListenerFilterConfig::OriginalDst => Arc::new(original_dst::OriginalDst),
        ListenerFilterConfig::ProxyProtocol(config) => proxy(config, registry),
        ListenerFilterConfig::Extension(_) => return None,
    })
}

fn proxy(config: &ProxyProtocolConfig, registry: &Registry) -> Arc<dyn ListenerFilter> {
    Arc::new(proxy_protocol::ProxyProtocol::new(config.clone(), registry))
}
