//! `envoy.filters.network.sni_dynamic_forward_proxy`: looks up the host that TLS names before the TCP proxy needs it.
//!
//! The TCP proxy's cluster shares the DNS cache by its name. A connection waits only for names that are new; one that names
//! no host goes on to find none.

use nuncio_config::listener::SniForwardProxyConfig;
use nuncio_http::stream_info::StreamInfo;
use nuncio_upstream::ClusterManager;
use nuncio_upstream::dns_cache::{DYNAMIC_PORT, DnsCache, LookUp};
use std::cell::RefCell;
use std::sync::Arc;

/// The filter of one filter chain.
pub struct SniForwardProxy {
    cache: Arc<DnsCache>,
    port: u16,
    port_text: Box<str>,
}

impl SniForwardProxy {
    /// The filter for `config`.
    ///
    /// # Errors
    /// A text: the cache has other settings elsewhere, or DNS cannot be set up.
    pub fn new(config: &SniForwardProxyConfig, clusters: &ClusterManager) -> Result<Self, String> {
        let cache = clusters.dns_cache(&config.cache)?;
        Ok(SniForwardProxy { cache, port: config.port, port_text: config.port.to_string().into() })
    }

    /// Looks up the host of a connection. False where there are too many: the connection is to be closed.
    pub(super) async fn look_up(&self, info: &RefCell<StreamInfo>) -> bool {
        let connection = info.borrow().connection.clone();
        let Some(name) = connection.requested_server_name.as_deref().filter(|name| !name.is_empty()) else {
            return true;
        };
        // The cluster looks for the host under this port.
        info.borrow_mut().filter_state.get_or_insert_default().push((DYNAMIC_PORT.into(), self.port_text.clone()));
        match self.cache.look_up(name, self.port) {
            LookUp::Known(_) => true,
            LookUp::Asked(waiting) => {
                waiting.answer().await;
                true
            }
            LookUp::Overflow | LookUp::PendingOverflow => false,
        }
    }
}
