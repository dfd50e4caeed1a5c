//! What a request needs and is not there yet: it waits until its routes, and its cluster, have been fetched.
//!
//! A filter asks for this with [`HeadersAction::OnDemand`]. Who fetches is known to the connection manager
//! ([`crate::hcm::OnDemandRoutes`]) and to the filter ([`OnDemandCluster`]); nothing here knows how.

use super::*;
use crate::filter::OnDemandCluster;
use std::sync::Arc;

impl ActiveStream<'_> {
    /// Fetches what is missing. False when the stream has ended.
    pub(super) async fn on_demand(&mut self, cluster: Option<Arc<dyn OnDemandCluster>>) -> bool {
        if self.route.is_none() && self.tls_redirect.is_none() {
            let connection = self.connection;
            let routes = connection.hcm.on_demand.as_ref();
            let Some(fetch) = routes.and_then(|routes| routes.fetch(&self.request)) else { return true };
            if !self.wait_and_read(fetch).await {
                return false;
            }
            self.refresh_route();
        }
        let fetch = cluster.and_then(|cluster| cluster.fetch(self.route.as_ref()?));
        match fetch {
            Some(fetch) => self.wait_and_read(fetch).await,
            None => true,
        }
    }

    /// Waits, and reads the request's body meanwhile as far as it may be buffered. False when the stream ended first.
    async fn wait_and_read(&mut self, mut until: LocalFuture<'static, ()>) -> bool {
        let limit = self.buffer_limit();
        let mut size = 0;
        let done = poll_fn(|cx| {
            if until.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            while !self.request_complete && size < limit {
                let Poll::Ready(frame) = self.poll_decoded_frame(cx)? else { break };
                if let Frame::Data(data, _) = &frame {
                    size += data.len();
                }
                self.buffered.push_back(frame);
            }
            self.poll_abort(cx).map(Err)
        });
        match done.await {
            Ok(()) => true,
            Err(abort) => {
                self.abort = Some(abort);
                false
            }
        }
    }
}
