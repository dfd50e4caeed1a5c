//! Listener filters: they look at the first bytes of a connection before a filter chain is chosen.
//!
//! Each is a parser over what has been read so far, without sockets or time: given the bytes again with more at the end
//! until it is done. Reading, limits and the timeout are the listener's.

use arc_swap::ArcSwapOption;
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

/// A filter of a listener: the one that is configured, or the one whose configuration came last.
#[derive(Clone)]
pub enum FilterSlot {
    /// It stays.
    Fixed(Arc<dyn ListenerFilter>),
    /// It may be replaced; connections are closed while there is none.
    Swapped {
        /// What new connections get.
        current: Arc<ArcSwapOption<Arc<dyn ListenerFilter>>>,
        /// Lives as long as the listener: who replaces it.
        owner: Arc<dyn std::any::Any + Send + Sync>,
    },
}

impl FilterSlot {
    /// The filter at this moment.
    pub(crate) fn pin(&self) -> Option<PinnedFilter<'_>> {
        Some(match self {
            FilterSlot::Fixed(filter) => PinnedFilter::Fixed(&**filter),
            FilterSlot::Swapped { current, .. } => PinnedFilter::Taken(current.load_full()?),
        })
    }

    /// Whether there is none.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, FilterSlot::Swapped { current, .. } if current.load().is_none())
    }
}

/// A filter as it was when it was asked for.
pub(crate) enum PinnedFilter<'a> {
    Fixed(&'a dyn ListenerFilter),
    Taken(Arc<Arc<dyn ListenerFilter>>),
}

impl PinnedFilter<'_> {
    pub(crate) fn get(&self) -> &dyn ListenerFilter {
        match self {
            PinnedFilter::Fixed(filter) => *filter,
            PinnedFilter::Taken(filter) => &***filter,
        }
    }
}

/// The filter for a built-in configuration; none for an extension, which the registry knows, and for one that is fetched.
pub fn build(config: &ListenerFilterConfig, registry: &Registry) -> Option<Arc<dyn ListenerFilter>> {
    Some(match config {
        ListenerFilterConfig::TlsInspector(config) => Arc::new(tls_inspector::TlsInspector::new(*config, registry)),
        ListenerFilterConfig::HttpInspector => Arc::new(http_inspector::HttpInspector::new(registry)),
        ListenerFilterConfig::OriginalDst => Arc::new(original_dst::OriginalDst),
        ListenerFilterConfig::ProxyProtocol(config) => proxy(config, registry),
        ListenerFilterConfig::Discovered(_) | ListenerFilterConfig::Extension(_) => return None,
    })
}

fn proxy(config: &ProxyProtocolConfig, registry: &Registry) -> Arc<dyn ListenerFilter> {
    Arc::new(proxy_protocol::ProxyProtocol::new(config.clone(), registry))
}
